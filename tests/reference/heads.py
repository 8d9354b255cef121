"""Writes tiny random models with heads other than those of language models, with what transformers computes from them.

    python tests/reference/heads.py [NAME...]

Directories `tests/data/heads/NAME` have the files of `families.py`; `logits` is `last_hidden_state` for a model without a head, and
`sentence_embedding` for one with `modules.json`, for which the pooling is written out here as sentence-transformers defines it.
"""

import json
import shutil
import sys

import torch
import transformers as hf
from safetensors.torch import save_file

from families import DATA, TINY, randomize, reference

BERT = dict(
    vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0, initializer_range=0.05,
)
GPT2 = dict(
    vocab_size=48, n_positions=32, n_embd=16, n_layer=2, n_head=2, n_inner=24, bos_token_id=1, eos_token_id=None, resid_pdrop=0.0,
    embd_pdrop=0.0, attn_pdrop=0.0, pad_token_id=0,
)
SMALL = dict(TINY, vocab_size=48, pad_token_id=0)
NAMES = {0: "person", 1: "place", 2: "none of these"}
BATCH, SEQ = 3, 8

# name: configuration class, model class, settings, labels.
MODELS = {
    "bert-sequence": (hf.BertConfig, hf.BertForSequenceClassification, dict(BERT, id2label=NAMES), "classes"),
    "bert-regression": (hf.BertConfig, hf.BertForSequenceClassification, dict(BERT, num_labels=1), "values"),
    "bert-multi-label": (
        hf.BertConfig, hf.BertForSequenceClassification, dict(BERT, num_labels=3, problem_type="multi_label_classification"), "any",
    ),
    "bert-token": (hf.BertConfig, hf.BertForTokenClassification, dict(BERT, id2label=NAMES), "tokens"),
    "llama-sequence": (hf.LlamaConfig, hf.LlamaForSequenceClassification, dict(SMALL, num_labels=3), "classes"),
    "qwen3-regression": (
        hf.Qwen3Config, hf.Qwen3ForSequenceClassification,
        dict(SMALL, head_dim=8, num_labels=2, problem_type="regression"), "values",
    ),
    "gemma3-sequence": (
        hf.Gemma3TextConfig, hf.Gemma3TextForSequenceClassification,
        dict(SMALL, head_dim=8, num_labels=3, sliding_window=4, layer_types=["sliding_attention", "full_attention"]), "classes",
    ),
    "phi3-token": (hf.Phi3Config, hf.Phi3ForTokenClassification, dict(SMALL, num_labels=4), "tokens"),
    "gpt2-sequence": (hf.GPT2Config, hf.GPT2ForSequenceClassification, dict(GPT2, num_labels=3), "classes"),
    "gpt2-token": (hf.GPT2Config, hf.GPT2ForTokenClassification, dict(GPT2, num_labels=3, classifier_dropout=0.0), "tokens"),
    "bert-bare": (hf.BertConfig, hf.BertModel, BERT, None),
    "llama-bare": (hf.LlamaConfig, hf.LlamaModel, SMALL, None),
    "gpt2-bare": (hf.GPT2Config, hf.GPT2Model, GPT2, None),
    "phi3-bare": (hf.Phi3Config, hf.Phi3Model, SMALL, None),
    "embedding-mean": (hf.BertConfig, hf.BertModel, BERT, "mean"),
    "embedding-cls": (hf.BertConfig, hf.BertModel, BERT, "cls"),
    "embedding-max": (hf.Qwen3Config, hf.Qwen3Model, dict(SMALL, head_dim=8), "max"),
}


def batch(model, kind):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, model.config.vocab_size, (BATCH, SEQ), generator=generator)
    mask = torch.ones(BATCH, SEQ, dtype=torch.long)
    # Padding on the right, on one row only; another row has the padding token in its middle.
    mask[1, 5:] = 0
    ids[1, 5:] = 0
    ids[2, 3] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if isinstance(model, hf.BertPreTrainedModel):
        inputs["token_type_ids"] = (torch.arange(SEQ) >= 4).long().repeat(BATCH, 1)
    labels = model.config.num_labels
    if kind == "classes":
        inputs["labels"] = torch.tensor([2, 0, 1])
    elif kind == "values":
        inputs["labels"] = torch.randn((BATCH, labels), generator=generator).squeeze(-1)
    elif kind == "any":
        inputs["labels"] = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    elif kind == "tokens":
        inputs["labels"] = torch.randint(0, labels, (BATCH, SEQ), generator=generator)
        inputs["labels"][mask == 0] = -100
    return inputs


def pool(hidden, mask, mode):
    mask = mask.unsqueeze(-1).to(hidden.dtype)
    if mode == "mean":
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    elif mode == "cls":
        return hidden[:, 0]
    else:
        pooled = hidden.masked_fill(mask == 0, -1e9).max(1).values
    return torch.nn.functional.normalize(pooled, p=2, dim=1)


def modules(directory, mode, width):
    """Writes the modules as sentence-transformers does: with the older keys for two of the modes, and the newer one for the third."""
    kinds = ["Transformer", "Pooling"] + (["Normalize"] if mode != "cls" else [])
    listed = [
        {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(listed, indent=2) + "\n")
    (directory / "1_Pooling").mkdir()
    keys = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}
    config = {"word_embedding_dimension": width}
    if mode == "max":
        config = {"embedding_dimension": width, "pooling_mode": "max", "include_prompt": True}
    else:
        config |= {f"pooling_mode_{key}": name == mode for name, key in keys.items()}
        config["pooling_mode_mean_sqrt_len_tokens"] = False
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main(wanted):
    for name, (config_class, model_class, settings, kind) in MODELS.items():
        if wanted and name not in wanted:
            continue
        directory = DATA / "heads" / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        torch.manual_seed(7)
        model = model_class(config_class(**settings, attn_implementation="eager")).float().eval()
        randomize(model)
        model.save_pretrained(directory)
        inputs = batch(model, kind)
        if "labels" in inputs:
            print(f"{name}: losses {reference(directory, model, inputs)}")
            continue
        with torch.no_grad():
            hidden = model.double()(**inputs).last_hidden_state
        if kind is not None:
            modules(directory, kind, hidden.shape[-1])
            hidden = pool(hidden, inputs["attention_mask"], kind)
        save_file({"logits": hidden.float().contiguous()}, directory / "expected.safetensors")
        save_file(inputs, directory / "inputs.safetensors")
        print(f"{name}: {list(hidden.shape)}")


if __name__ == "__main__":
    main(sys.argv[1:])
