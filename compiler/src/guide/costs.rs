//! What each plan communicates at most, and what it is weighed with.
//!
//! Each row is executed by `tests/tests/allowance.rs`, for models of several depths on two and four ranks: the compiled step
//! stays within it, and the ranks issue exactly the collectives that were compiled. `tests/tests/documents.rs` keeps this table
//! and that test equal; what the programs do issue is in `tests/tests/snapshots/allowance__parts.snap`,
//! `tests/tests/snapshots/allowance__ends.snap`, `tests/tests/snapshots/allowance__decoders.snap` and
//! `tests/tests/snapshots/allowance__fsdp.snap`.
//!
//! AR is an all-reduce, AG an all-gather, RS a reduce-scatter, each of one activation (under FSDP of the parameters of one unit);
//! an AR may appear as an RS and an AG, which send the same bytes. L is the number of layers. *Small* are reductions of a few
//! numbers, and those of the size of a norm's gain. Col and row are column-wise and row-wise linears.
//!
//! | model and plan | forward | backward | optimizer |
//! |---|---|---|---|
//! | MLP col→row, replicated in and out | 1 AR | 1 AR, 0 if the input needs no gradient | |
//! | MLP col→row, token-sharded in and out | 1 AG + 1 RS | 1 AG + 1 RS | |
//! | attention: q, k, v column-wise, out row-wise | 1 AR | 1 AR | |
//! | SwiGLU: gate, up column-wise, down row-wise | 1 AR | 1 AR | |
//! | fused q\|k\|v linear | 1 AR | 1 AR | |
//! | parallel attention + MLP block | 1 AR | 1 AR | |
//! | vocab-parallel cross entropy | 2 small AR | 0 | |
//! | vocab-parallel embedding → R | 1 AR (rows) or 1 AG (hidden) | 0 | |
//! | decoder, plain plan | (2L+1) AR + small loss statistics | (2L+1) AR, logits never gathered | |
//! | decoder, sequence-parallel plan | (2L+1) RS + (2L+1) AG | (2L+1) AG + (2L+1) RS | 1 small |
//! | clip by norm on a sequence-parallel plan | 1 | | |
//! | FSDP × TP | L+1 AG | L−1 AG + (L+1) RS, + TP | |
//!
//! The loss statistics of a decoder, two small reductions, are in every plan that shards its vocabulary; the rows on sequence
//! parallelism do not repeat them. The row on clipping counts what clipping adds, together with the reduction of the norms'
//! gradients.
//!
//! # Why three gradients cost one reduction
//!
//! The input of an attention feeds three column-wise linears, so its gradient is a sum of three partial values. Operation by
//! operation, each of them is reduced, which makes three all-reduces for an attention and two for a SwiGLU: 5L+1 in the backward
//! pass of a decoder. Rule 7 adds them first and reduces once: 2L+1. Without the rule the values
//! travel in one bucket for each attention and each SwiGLU, but there are 5L+1 of them:
//!
//! ```sh
//! tpc dump-ir --preset llama --train --plan tp --mesh tp=2 --json                    # "wire_bytes": 37761024
//! tpc dump-ir --preset llama --train --plan tp --mesh tp=2 --json --disable-rule 7   # "wire_bytes": 62926848
//! ```
//!
//! # Which rules are applied
//!
//! A rule is an equality with a number; `passes/src/egraph/rules/RULES.md` lists them with what each of them buys. Three options
//! of every command that compiles say which ones the search applies:
//!
//! ```sh
//! tpc dump-ir --preset llama --train --plan tp --mesh tp=2 --fp exact        # no rule changes the order of a sum
//! tpc dump-ir --preset llama --train --plan tp --mesh tp=2 --disable-rule 7  # a rule is left out; may be repeated
//! tpc dump-ir --preset llama --train --plan tp --mesh tp=2 --enable-rule 1   # a rule that is off by default
//! ```
//!
//! `--fp reassociate` is the default. `--fp exact` is about rules alone: a plan that cuts a summed index takes the sum in parts
//! anyway. `--fp relaxed` would also allow rules that compute in another precision, of which there is none yet. From Rust,
//! `CompileOptions::search` says the same.
//!
//! The search makes at most 8 rounds and is bounded by the size of the program. The result is then the best program so far; if a
//! bound was reached, the command says so. `"search"` in the report of `--json` has why it stopped, its rounds, what it counted, and for
//! each rule the terms to which it was applied, the terms that it added, the classes that it found equal and the operations of
//! the result that are due to it.
//!
//! # Targets: what sending is weighed with
//!
//! Which of two equal programs is cheaper depends on the machine: on how fast it multiplies, reads memory and sends. These
//! numbers are a [`Target`](crate::Target). Four are built in: `cpu`, `h100-node`, `h200-node` (NVLink inside a node of eight GPUs,
//! InfiniBand between the nodes) and `ethernet`. `--target` names one of them, or a JSON file; [`Trainer::target`](crate::Trainer::target)
//! does it in Rust. Without either, the target is that of the device that runs the ranks. A target of CPUs for ranks on CUDA is an
//! error.
//!
//! ```sh
//! tpc dump-ir --preset llama --train --plan tp-sp-fsdp --mesh dp=2,tp=8 --target h100-node
//! tpc calibrate -o here.json                    # measures this machine: products, memory, collectives
//! tpc train MODEL_DIR --data text.txt --epochs 1 --mesh tp=2 --plan tp --target here.json
//! ```
//!
//! `tpc calibrate` takes about 20 seconds. The links that it measures are those between the threads of one process. A file for
//! several hosts gets the link inside a host and the one between hosts by hand, and says how many ranks a host has. Ranks of one
//! host have consecutive numbers, so an axis stays inside a host if its size times the sizes of all axes after it divides that
//! number:
//!
//! ```json
//! "links": {
//!   "default": { "latency": 20e-6, "bandwidth": 50e9 },
//!   "node": { "ranks": 8, "latency": 10e-6, "bandwidth": 450e9 },
//!   "axes": { "tp": { "latency": 8e-6, "bandwidth": 400e9 } }
//! }
//! ```
//!
//! `latency` is in seconds, `bandwidth` in bytes per second that each rank sends. An entry in `axes` sets the link of the mesh axis of
//! that name. [`SCHEMA`](crate::targets::SCHEMA) describes all keys.
//!
//! A collective over several axes has the slowest link of them. Where axes differ, a reduction over them is therefore taken apart
//! if that pays (rule 25): on `--mesh out=2,in=4` in nodes of four, a gradient that is summed over both axes is first scattered
//! inside the nodes, then a quarter of it crosses the slow link, and the sum is gathered inside the nodes.
