"""Checks that transformers reads what `tpc train --save` writes, and computes the same.

    python tests/reference/saved.py TPC

TPC is the path of the command. Each model of `tests/data` is trained without changing a weight (`--lr 0`) and saved as one f32 file, as
shards of 20 KB, and as bf16. transformers must load the directory with its Auto classes, without a missing or unexpected tensor, and
compute exactly the logits of the original model.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import load_file, save_file

DATA = Path(__file__).resolve().parent.parent / "data"
MODELS = {
    "families/llama": hf.AutoModelForCausalLM, "families/mistral": hf.AutoModelForCausalLM, "families/qwen3": hf.AutoModelForCausalLM,
    "families/gemma2": hf.AutoModelForCausalLM, "families/gemma3": hf.AutoModelForCausalLM, "families/phi3": hf.AutoModelForCausalLM,
    "families/olmo2": hf.AutoModelForCausalLM, "families/gpt2": hf.AutoModelForCausalLM, "hf/bert-tiny": hf.AutoModelForMaskedLM,
    "heads/bert-sequence": hf.AutoModelForSequenceClassification, "heads/llama-sequence": hf.AutoModelForSequenceClassification,
    "heads/bert-token": hf.AutoModelForTokenClassification,
}
WAYS = {"one file": [], "shards": ["--max-shard-size", "20KB"], "bf16": ["--dtype", "bf16"]}


def logits(auto, directory, inputs, **more):
    model, report = auto.from_pretrained(directory, attn_implementation="eager", output_loading_info=True, **more)
    wrong = {key: found for key, found in report.items() if found}
    assert not wrong, f"{directory}: {wrong}"
    with torch.no_grad():
        return model.eval()(**{k: v for k, v in inputs.items() if k != "labels"}).logits, model.dtype


def main(tpc):
    for name, auto in MODELS.items():
        inputs = load_file(DATA / name / "inputs.safetensors")
        # In bf16, the expected weights are those that transformers converts from f32.
        before = {dtype: logits(auto, DATA / name, inputs, dtype=dtype)[0].float() for dtype in (torch.float32, torch.bfloat16)}
        for way, options in WAYS.items():
            with tempfile.TemporaryDirectory() as scratch:
                to = Path(scratch) / "saved"
                command = [tpc, "train", DATA / name, "--inputs", DATA / name / "inputs.safetensors", "--steps", "1", "--lr", "0",
                           "--save", to, "--plan", "tp", "--mesh", "tp=2", *options]
                subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
                after, dtype = logits(auto, to, inputs)
                expected = before[dtype]
                off = ((after.float() - expected).abs().max() / expected.abs().max()).item()
                files = len(list(to.glob("*.safetensors")))
                print(f"{name}, {way}: {files} files, {dtype}, logits off by {off:.1e} of the largest")
                assert dtype == (torch.bfloat16 if way == "bf16" else torch.float32)
                assert off == 0.0, f"{name}, {way}: {off}"


if __name__ == "__main__":
    main(sys.argv[1])
