#!/usr/bin/env python3
"""Measures the steps of `gpu_check speed` in PyTorch on the same GPU, eagerly and with torch.compile: one block of llama-8B with the
shards that one of 1, 2, 4 or 8 ranks holds (forward and backward, without collectives), and a training step of llama-1B.

Prints a line of JSON for each: row, who, ms (the median of 10 after a warm-up, by CUDA events), tokens_per_s, shape.
Exits with 3 and a message if torch or a GPU is missing.
"""

import argparse
import json
import statistics
import sys
import time

BEGUN = time.monotonic()

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--small", action="store_true", help="small sizes, as TPC_GPU_SMALL makes them")
parser.add_argument("--cpu", action="store_true", help="on the CPU, to try it where no GPU is")
parser.add_argument("--like", metavar="FILE.jsonl", help="what gpu_check speed wrote: the same batches")
parser.add_argument("--out", metavar="FILE.jsonl", help="write the lines there, too")
parser.add_argument("--check", action="store_true", help="only say why it cannot be done, if it cannot")
parser.add_argument("--seconds", type=float, default=150, help="begin nothing that compiles after this time")
arguments = parser.parse_args()

try:
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
except ImportError as error:
    print(f"skipped: python3 has no PyTorch ({error})")
    sys.exit(3)
if not arguments.cpu and not torch.cuda.is_available():
    print("skipped: PyTorch finds no CUDA device")
    sys.exit(3)
if arguments.check:
    sys.exit(0)

DEVICE = "cpu" if arguments.cpu else "cuda"
SHORT = torch.bfloat16
STEPS, WARM_UP = 10, 3


class Shape:
    def __init__(self, hidden, inner, heads, kv_heads, layers, vocab, seq):
        self.head = hidden // heads
        self.hidden, self.inner, self.heads, self.kv_heads = hidden, inner, heads, kv_heads
        self.layers, self.vocab, self.seq = layers, vocab, seq
        if arguments.small:
            self.hidden, self.inner, self.heads, self.kv_heads, self.head = 128, 256, 16, 8, 8
            self.layers, self.vocab, self.seq = min(layers, 2), min(vocab, 64), 32


BLOCK_8B = Shape(4096, 14336, 32, 8, 1, 8, 4096)
MODEL_1B = Shape(2048, 8192, 32, 8, 16, 32768, 2048)


def rope_tables(shape):
    frequencies = 500000.0 ** (-torch.arange(0, shape.head, 2, device=DEVICE).float() / shape.head)
    angles = torch.outer(torch.arange(shape.seq, device=DEVICE).float(), frequencies)
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(SHORT), angles.sin().to(SHORT)


def rotate(x, tables):
    cos, sin = tables
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


class Layer(nn.Module):
    """A block, or the shard of it that one of `tp` ranks holds: weights are cut by columns, then by rows."""

    def __init__(self, shape, tp=1):
        super().__init__()
        self.heads, self.kv_heads, self.head = shape.heads // tp, max(shape.kv_heads // tp, 1), shape.head
        linear = lambda i, o: nn.Linear(i, o, bias=False)
        self.norm1, self.norm2 = Norm(shape.hidden), Norm(shape.hidden)
        self.q = linear(shape.hidden, self.heads * self.head)
        self.k = linear(shape.hidden, self.kv_heads * self.head)
        self.v = linear(shape.hidden, self.kv_heads * self.head)
        self.o = linear(self.heads * self.head, shape.hidden)
        self.gate, self.up = linear(shape.hidden, shape.inner // tp), linear(shape.hidden, shape.inner // tp)
        self.down = linear(shape.inner // tp, shape.hidden)

    def forward(self, x, cos, sin):
        batch, seq, _ = x.shape
        split = lambda t, heads: t.view(batch, seq, heads, self.head).transpose(1, 2)
        n = self.norm1(x)
        q, k = rotate(split(self.q(n), self.heads), (cos, sin)), rotate(split(self.k(n), self.kv_heads), (cos, sin))
        v = split(self.v(n), self.kv_heads)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
        x = x + self.o(a.transpose(1, 2).reshape(batch, seq, -1))
        n = self.norm2(x)
        return x + self.down(F.silu(self.gate(n)) * self.up(n))


class Model(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.embed = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden)
        self.head = nn.Linear(shape.hidden, shape.vocab, bias=False)

    def forward(self, ids, cos, sin):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


def next_token_loss(hidden, weight, labels):
    logits = F.linear(hidden, weight)[:, :-1]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), labels[:, 1:].reshape(-1))


def block_step(shape, tp, batch, compiled):
    layer = Layer(shape, tp).to(DEVICE, SHORT)
    if compiled:
        layer.compile()
    cos, sin = rope_tables(shape)
    x = torch.randn(batch, shape.seq, shape.hidden, device=DEVICE, dtype=SHORT, requires_grad=True)
    gradient = torch.randn_like(x)

    def step():
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x, cos, sin).backward(gradient)

    return step


def model_step(shape, batch, compiled):
    """AdamW on f32 master weights; the model computes with a bf16 copy of them."""
    model = Model(shape).to(DEVICE, SHORT)
    short = list(model.parameters())
    masters = [p.detach().float().clone() for p in short]
    optimizer = torch.optim.AdamW(masters, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    loss_of = next_token_loss
    if compiled:
        # Layer by layer: equal layers are compiled once.
        for layer in model.layers:
            layer.compile()
        loss_of = torch.compile(next_token_loss)
    cos, sin = rope_tables(shape)
    ids = torch.randint(0, shape.vocab, (batch, shape.seq), device=DEVICE)

    def step():
        loss = loss_of(model(ids, cos, sin), model.head.weight, ids)
        loss.backward()
        for master, p in zip(masters, short):
            master.grad = p.grad.float()
            p.grad = None
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(short, masters)

    return step


def measure(step):
    """The median time of a step, in milliseconds."""
    for _ in range(WARM_UP):
        step()
    if DEVICE == "cpu":
        times = []
        for _ in range(STEPS):
            start = time.perf_counter()
            step()
            times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times)
    torch.cuda.synchronize()
    pairs = []
    for _ in range(STEPS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs)


shapes = {}
if arguments.like:
    for line in open(arguments.like):
        if line.startswith("{"):
            row = json.loads(line)
            shapes[row["row"]] = row["shape"]

rows = []
for tp in [1, 2, 4, 8]:
    shape = {"tp": tp, "batch": 1, "seq": BLOCK_8B.seq}
    rows.append((f"block tp={tp}", shape, lambda compiled, tp=tp: block_step(BLOCK_8B, tp, 1, compiled)))
batch = shapes.get("llama-1b step", {"batch": 4})["batch"]
shape = {"batch": batch, "seq": MODEL_1B.seq}
rows.append(("llama-1b step", shape, lambda compiled: model_step(MODEL_1B, batch, compiled)))

out = open(arguments.out, "w") if arguments.out else None
name = "the CPU" if arguments.cpu else torch.cuda.get_device_name()
print(f"PyTorch {torch.__version__} on {name}", flush=True)
# The large step before small blocks, so that the least interesting part is dropped if time runs out.
for compiled in [False, True]:
    for row, shape, make in [rows[0], rows[-1]] + rows[1:-1]:
        line = {"row": row, "who": "torch compile" if compiled else "torch eager", "ms": None, "shape": shape}
        if compiled and time.monotonic() - BEGUN > arguments.seconds:
            line["why"] = "no time was left"
        else:
            try:
                line["ms"] = measure(make(compiled))
                line["tokens_per_s"] = shape["batch"] * shape["seq"] / line["ms"] * 1e3
            except Exception as error:  # A row that does not work is no reason to lose the others.
                line["why"] = f"{type(error).__name__}: {error}"[:300]
        line["at_s"] = round(time.monotonic() - BEGUN, 1)
        text = json.dumps(line)
        print(text, flush=True)
        if out:
            out.write(text + "\n")
            out.flush()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
