"""Writes tiny random models of every family with what transformers computes from them.

    python tests/reference/families.py [NAME...]

Each directory `tests/data/families/NAME` contains what `save_pretrained` writes, and

- `inputs.safetensors`: `input_ids`, `labels` (-100 is ignored) and, where the model takes them, `attention_mask` and `token_type_ids`;
- `expected.safetensors`: `logits` and `grad.<tensor>` of the first step and `param_after.<tensor>` after three AdamW steps on the same
  batch, computed in float64 by eager attention and rounded to float32;
- `expected.json`: the loss before each step, and the optimizer.

`tests/data/generation/NAME.json` contains the ids that greedy generation gives for left-padded prompts of different lengths.
The directories are kept in the repository; tests never run this script. It was run with torch 2.9.1 and transformers 5.24.0.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import load_file, save_file

DATA = Path(__file__).resolve().parent.parent / "data"
OPTIMIZER = {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "name": "adamw", "applies_to": "every parameter"}
BATCH, SEQ, STEPS, NEW = 2, 12, 3, 64

SMALL = dict(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128, bos_token_id=1, eos_token_id=None, attention_dropout=0.0,
)
TINY = dict(SMALL, vocab_size=64, hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1)
LLAMA3 = dict(rope_type="llama3", rope_theta=1e4, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)


def longrope(pairs, **more):
    return dict(
        rope_type="longrope", rope_theta=1e4, short_factor=[1.0 + 0.05 * i for i in range(pairs)],
        long_factor=[1.5 + 0.7 * i for i in range(pairs)], **more,
    )


# name: configuration class, model class, settings; `generated` tells whether the model also generates text.
MODELS = {
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, dict(SMALL, rope_parameters=LLAMA3)),
    "mistral": (hf.MistralConfig, hf.MistralForCausalLM, dict(SMALL, sliding_window=8, num_key_value_heads=1)),
    "qwen2": (
        hf.Qwen2Config, hf.Qwen2ForCausalLM,
        dict(SMALL, use_sliding_window=True, sliding_window=5, max_window_layers=1, tie_word_embeddings=True),
    ),
    "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM, dict(SMALL, head_dim=16)),
    "gemma2": (
        hf.Gemma2Config, hf.Gemma2ForCausalLM,
        dict(SMALL, head_dim=16, sliding_window=5, query_pre_attn_scalar=24, attn_logit_softcapping=2.0,
             final_logit_softcapping=3.0, pad_token_id=0),
    ),
    "gemma3": (
        hf.Gemma3TextConfig, hf.Gemma3ForCausalLM,
        dict(SMALL, intermediate_size=24, num_hidden_layers=3, num_key_value_heads=1, head_dim=12, sliding_window=6, query_pre_attn_scalar=24, pad_token_id=0,
             layer_types=["sliding_attention", "sliding_attention", "full_attention"],
             rope_parameters={
                 "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
                 "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
             }),
    ),
    "phi3": (
        hf.Phi3Config, hf.Phi3ForCausalLM,
        dict(SMALL, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, sliding_window=None, pad_token_id=0,
             rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.75)),
    ),
    "olmo2": (hf.Olmo2Config, hf.Olmo2ForCausalLM, dict(SMALL, pad_token_id=1)),
    "gpt2": (
        hf.GPT2Config, hf.GPT2LMHeadModel,
        dict(vocab_size=96, n_positions=128, n_embd=32, n_layer=2, n_head=4, n_inner=64, bos_token_id=1, eos_token_id=None, resid_pdrop=0.0,
             embd_pdrop=0.0, attn_pdrop=0.0),
    ),
    # Rotary embeddings.
    "yarn": (
        hf.LlamaConfig, hf.LlamaForCausalLM,
        dict(TINY, rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=32)),
    ),
    "yarn-mscale": (
        hf.Qwen2Config, hf.Qwen2ForCausalLM,
        dict(TINY, rope_parameters=dict(rope_type="yarn", rope_theta=1e3, factor=8.0, original_max_position_embeddings=16, mscale=1.2,
                                         mscale_all_dim=0.7, beta_fast=16.0, beta_slow=2.0, truncate=False)),
    ),
    "dynamic": (
        hf.LlamaConfig, hf.LlamaForCausalLM,
        dict(TINY, max_position_embeddings=8, rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=2.0)),
    ),
    "longrope-short": (
        hf.Phi3Config, hf.Phi3ForCausalLM,
        dict(TINY, original_max_position_embeddings=32, pad_token_id=0, rope_parameters=longrope(3, partial_rotary_factor=0.75)),
    ),
    "longrope-long": (
        hf.Phi3Config, hf.Phi3ForCausalLM,
        dict(TINY, original_max_position_embeddings=8, pad_token_id=0, rope_parameters=longrope(4)),
    ),
}
# Families whose generated ids are kept.
GENERATED = ["llama", "mistral", "qwen3", "gemma3", "gpt2", "phi3"]


def randomize(model):
    """Weights that are large enough to matter: a library's initial values leave attention almost uniform and logits almost flat."""
    generator = torch.Generator().manual_seed(20)
    # If the head is tied to the embedding, large rows would make every token predict itself; Gemma scales looked-up
    # rows.
    std = 0.5 if not model.config.tie_word_embeddings else 0.02 if "gemma" in model.config.model_type else 0.1
    with torch.no_grad():
        for name, parameter in sorted(dict(model.named_parameters()).items()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.2 * noise)
            else:
                fan = parameter.shape[0] if "c_" in name and parameter.dim() == 2 else parameter.shape[-1]
                parameter.copy_(noise * (std if "embed" in name or "wte" in name else 0.5 if "wpe" in name else 1.2 / math.sqrt(fan)))


def build(config_class, model_class, settings):
    config = config_class(**settings, attn_implementation="eager")
    torch.manual_seed(7)
    model = model_class(config).float().eval()
    randomize(model)
    return model


def batch(model):
    generator = torch.Generator().manual_seed(3)
    vocab = model.config.vocab_size
    ids = torch.randint(2, vocab, (BATCH, SEQ), generator=generator)
    labels = ids.clone()
    labels[0, 3] = -100
    labels[1, -2:] = -100
    return {"input_ids": ids, "labels": labels}


def reference(directory, model, inputs):
    """Three steps of AdamW in float64."""
    names = {id(p): n for n, p in model.named_parameters()}
    model = model.double()
    call = {k: (v.double() if v.is_floating_point() else v) for k, v in inputs.items()}
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=OPTIMIZER["lr"], betas=OPTIMIZER["betas"], eps=OPTIMIZER["eps"], weight_decay=OPTIMIZER["weight_decay"]
    )
    tensors, losses = {}, []
    for step in range(STEPS):
        out = model(**call)
        losses.append(out.loss.item())
        optimizer.zero_grad()
        out.loss.backward()
        if step == 0:
            tensors["logits"] = out.logits.detach()
            tensors |= {f"grad.{names[id(p)]}": p.grad for p in model.parameters() if p.grad is not None}
        optimizer.step()
    tensors |= {f"param_after.{names[id(p)]}": p.detach() for p in model.parameters()}
    save_file({k: v.float().contiguous() for k, v in tensors.items()}, directory / "expected.safetensors")
    save_file(inputs, directory / "inputs.safetensors")
    text = {"losses": losses, "optimizer": OPTIMIZER, "torch": torch.__version__, "transformers": hf.__version__}
    (directory / "expected.json").write_text(json.dumps(text, indent=1) + "\n")
    return losses


def greedy(model, ids, mask):
    """New ids, and the smallest distance between the best and the second-best logit."""
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None,
        return_dict_in_generate=True, output_scores=True,
    )
    gaps = [(lambda top: (top.values[..., 0] - top.values[..., 1]).min().item())(scores.topk(2, -1)) for scores in out.scores]
    return out.sequences[:, ids.shape[1]:].tolist(), min(gaps)


def generate(name, model):
    """Greedy ids for left-padded prompts of different lengths; the padding is token 0.

    Prompts are drawn until the text is no mere repetition, and no two tokens are so close that rounding could decide between them.
    """
    lengths, best = [3, 11, 7], None
    longest = max(lengths)
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        prompts = [torch.randint(2, model.config.vocab_size, (n,), generator=generator).tolist() for n in lengths]
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        new, gap = greedy(model, ids, mask)
        different = min(len(set(row)) for row in new)
        if gap > 1e-3 and (best is None or different > best[0]):
            best = different, gap, prompts, new
        if best is not None and best[0] >= 16:
            break
    different, gap, prompts, new = best
    for prompt, expected in zip(prompts, new):
        alone, _ = greedy(model, torch.tensor([prompt]), torch.ones(1, len(prompt), dtype=torch.long))
        assert alone[0] == expected, f"{name}: a padded prompt gives other tokens than it does alone"
    text = {"model": f"families/{name}", "smallest_gap": gap, "prompts": prompts, "expected": new}
    path = DATA / "generation" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(text) + "\n")
    print(f"{name}: at least {different} different tokens, {gap:.1e} between the best two logits at least")


def main(wanted):
    for name, (config_class, model_class, settings) in MODELS.items():
        if wanted and name not in wanted:
            continue
        directory = DATA / "families" / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        model = build(config_class, model_class, settings)
        model.save_pretrained(directory)
        if name in GENERATED:
            generate(name, model)
        losses = reference(directory, model, batch(model))
        size = sum(f.stat().st_size for f in directory.iterdir())
        print(f"{name}: losses {losses}, {size} bytes, {len(load_file(directory / 'model.safetensors'))} tensors")


if __name__ == "__main__":
    main(sys.argv[1:])
