"""Sentences for `minilm.sh`: their tokens and embeddings as sentence-transformers defines them, computed by transformers; and a comparison.

    python minilm.py write DIR INPUTS.safetensors EXPECTED.safetensors
    python minilm.py compare EXPECTED.safetensors OUTPUT.safetensors
"""

import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

SENTENCES = [
    "The cat sits on the windowsill and watches the rain.",
    "A kitten is looking out of the window.",
    "Tensor parallelism cuts the weights of a layer along the heads of its attention.",
    "Grüße aus Köln!",
    "No.",
    "In the beginning was the Word, and the Word was with God, and the Word was God. The same was in the beginning with God.",
]


def write(model, inputs, expected):
    tokenizer, model = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model, attn_implementation="eager").eval()
    batch = tokenizer(SENTENCES, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        hidden = model.double()(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    embeddings = torch.nn.functional.normalize(pooled, p=2, dim=1)
    save_file({name: tensor.contiguous() for name, tensor in batch.items()}, inputs)
    save_file({"sentence_embedding": embeddings.float().contiguous()}, expected)
    print(f"{len(SENTENCES)} sentences of up to {batch['input_ids'].shape[1]} tokens, {embeddings.shape[1]} elements each")


def compare(expected, output):
    expected = load_file(expected)["sentence_embedding"]
    found = load_file(output)["sentence_embedding"].reshape(expected.shape)
    off = (found - expected).abs().max().item()
    print(f"{output}: embeddings off by at most {off:.2e}; the first two sentences have cosine {(found[0] @ found[1]).item():.4f}")
    sys.exit(0 if off < 1e-5 else 1)


if __name__ == "__main__":
    {"write": write, "compare": compare}[sys.argv[1]](*sys.argv[2:])
