"""Writes tests/data/finetune.json: the losses of fine-tuning the tiny models on a text, by a plain loop in PyTorch.

    python compiler/command/tests/reference/finetune.py

The tokens are made by Python's tokenizers, and the order of the data is computed here again from its description in `compiler/data`:
Philox, a shuffle of the documents, packing, a shuffle of the rows. The optimizer is AdamW with two groups, as most training scripts have it.
"""

import json
import math
import pathlib

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, get_cosine_schedule_with_warmup

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[3]
DATA = HERE.parent / "data"
HF = ROOT / "tests" / "data" / "hf"
TOKENIZER = ROOT / "compiler" / "data" / "tests" / "data" / "tokenizer" / "tokenizer.json"
TEXT = ROOT / "examples" / "data" / "kjv-new-testament.txt"

VOCAB, SEQ, ROWS, STEPS, SEED, WARMUP = 400, 32, 4, 50, 11, 5
EOS, BOS, MASK = 0, 1, 2
MASK32, MASK64 = (1 << 32) - 1, (1 << 64) - 1


def philox(seed, stream, counter):
    """Philox4x32-10."""
    split = lambda x: [x & MASK32, x >> 32 & MASK32]
    key, c = split(seed), split(counter) + split(stream)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ key[0], b & MASK32, a >> 32 ^ c[3] ^ key[1], a & MASK32]
        key = [key[0] + 0x9E3779B9 & MASK32, key[1] + 0xBB67AE85 & MASK32]
    return c


class Draws:
    def __init__(self, purpose, epoch, place):
        a, b, *_ = philox(SEED, purpose, epoch)
        self.key, self.stream, self.drawn = a << 32 | b, place, 0

    def below(self, n):
        a, b, *_ = philox(self.key, self.stream, self.drawn)
        self.drawn += 1
        return (a << 32 | b) * n >> 64

    def shuffle(self, items):
        for last in range(len(items) - 1, 0, -1):
            other = self.below(last + 1)
            items[last], items[other] = items[other], items[last]


def masked(row, draws):
    """Masks a row as BERT does."""
    guessed = [at for at, token in enumerate(row) if token not in (EOS,)]
    chosen = [at for at in guessed if draws.below(1000) < 150]
    if not chosen and guessed:
        chosen = [guessed[draws.below(len(guessed))]]
    ids, labels = list(row), [-100] * len(row)
    for at in chosen:
        labels[at] = row[at]
        kind = draws.below(10)
        if kind < 8:
            ids[at] = MASK
        elif kind == 8:
            ids[at] = draws.below(VOCAB)
    return ids, labels


def rows(documents, epoch, kind):
    """The rows of an epoch: their tokens, labels, and the document of each token within its row."""
    order = list(range(len(documents)))
    Draws(2, epoch, 0).shuffle(order)
    tokens = [(token, at) for at in order for token in documents[at]]
    cut = [tokens[at : at + SEQ] for at in range(0, len(tokens), SEQ)]
    draws = Draws(4, epoch, 0)
    made = []
    for row in cut:
        ids, owners = [token for token, _ in row], [owner for _, owner in row]
        if kind == "guessed":
            ids, labels = masked(ids, draws)
        else:
            begins = [at == 0 or kind == "apart" and owners[at] != owners[at - 1] for at in range(len(row))]
            labels = [-100 if begin else token for begin, token in zip(begins, ids)]
        if any(label != -100 for label in labels):
            made.append((ids, labels, owners))
    Draws(3, epoch, 0).shuffle(made)
    return made


def batches(documents, kind):
    waiting, epoch = [], 0
    for _ in range(STEPS):
        while len(waiting) < ROWS:
            waiting += rows(documents, epoch, kind)
            epoch += 1
        batch, waiting = waiting[:ROWS], waiting[ROWS:]
        pad = lambda row, with_: row + [with_] * (SEQ - len(row))
        ids = torch.tensor([pad(ids, EOS) for ids, _, _ in batch])
        labels = torch.tensor([pad(labels, -100) for _, labels, _ in batch])
        owners = torch.tensor([pad(owners, -1) for _, _, owners in batch])
        if kind == "apart":
            # A token sees the tokens of its own document up to itself, and positions restart with each document.
            same = owners[:, :, None] == owners[:, None, :]
            seen = same & torch.ones(SEQ, SEQ).tril().bool()
            mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
            begins = torch.ones(owners.shape, dtype=torch.bool)
            begins[:, 1:] = owners[:, 1:] != owners[:, :-1]
            place = torch.arange(SEQ).expand(owners.shape)
            yield ids, labels, mask, place - torch.where(begins, place, 0).cummax(1).values
        else:
            yield ids, labels, (owners >= 0).long(), None


def extended(name):
    """A tiny model whose token table has additional rows: copies of the first ones, at half the size."""
    directory = HF / name
    config = AutoConfig.from_pretrained(directory, attn_implementation="eager")
    auto = AutoModelForMaskedLM if "bert" in name else AutoModelForCausalLM
    small = auto.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).state_dict()
    old = config.vocab_size
    config.vocab_size = VOCAB
    config.pad_token_id = None if "bert" not in name else config.pad_token_id
    model = auto.from_config(config, attn_implementation="eager", dtype=torch.float32)
    state = model.state_dict()
    for key, value in state.items():
        given = small[key]
        if value.shape != given.shape:
            assert given.shape[0] == old and value.shape[0] == VOCAB, key
            given = torch.cat([given, 0.5 * given[: VOCAB - old]])
        value.copy_(given)
    model.load_state_dict(state)
    return model.train()


def losses(name, documents, kind):
    model = extended(name)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    decayed = [p for _, p in named if p.dim() >= 2]
    others = [p for _, p in named if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.95), eps=1e-8)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
    out = []
    for ids, labels, mask, positions in batches(documents, kind):
        more = {} if positions is None else {"position_ids": positions}
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, **more).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        out.append(loss.item())
        assert math.isfinite(out[-1])
    return out


def main():
    torch.manual_seed(0)
    verses = [line for line in TEXT.read_text(encoding="utf-8").splitlines() if line][:70]
    (DATA / "verses.jsonl").write_text("".join(json.dumps({"verse": verse}) + "\n" for verse in verses))
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    documents = [tokenizer.encode(verse, add_special_tokens=False).ids + [EOS] for verse in verses]
    kinds = [("llama-tiny", "apart"), ("gpt2-tiny", "apart"), ("llama-tiny", "mixed"), ("gpt2-tiny", "mixed"), ("bert-tiny", "guessed")]
    out = {f"{name} {kind}": losses(name, documents, kind) for name, kind in kinds}
    (DATA / "finetune.json").write_text(json.dumps(out) + "\n")
    for name, curve in out.items():
        print(name, curve[0], curve[-1])


if __name__ == "__main__":
    main()
