//! What each plan communicates at most.
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
