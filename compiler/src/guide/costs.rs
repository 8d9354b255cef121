//! Upper bounds on the communication of each plan, and the targets that weigh it.
//!
//! `tests/tests/allowance.rs` executes each row for models of several depths on two and four ranks. It checks that the
//! compiled step stays within the bound and that the ranks issue exactly the compiled collectives.
//! `tests/tests/documents.rs` keeps this table and that test equal. The collectives that the programs actually issue
//! are in `tests/tests/snapshots/suite__allowance__parts.snap`, `tests/tests/snapshots/suite__allowance__ends.snap`,
//! `tests/tests/snapshots/suite__allowance__decoders.snap` and `tests/tests/snapshots/suite__allowance__fsdp.snap`.
//!
//! AR is an all-reduce, AG an all-gather and RS a reduce-scatter, each of one activation (under FSDP, of the parameters
//! of one unit, whose gradients take at most 25 MiB; those of larger units are scattered in several pieces). An RS and an
//! AG, which together send the same bytes, may replace an AR. L is the number of layers.
//! *Small* collectives are reductions of a few numbers, or of as many numbers as the gain of a norm. Col and row are
//! column-wise and row-wise linears.
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
//! Every plan that shards the vocabulary has the loss statistics of a decoder, two small reductions; the rows on
//! sequence parallelism do not repeat them. The row on clipping counts what clipping adds, together with the reduction
//! of the norms' gradients.
//!
//! # Why three gradients cost one reduction
//!
//! The input of an attention feeds three column-wise linears, so its gradient is a sum of three partial values.
//! Operation-by-operation execution reduces each of them, which makes three all-reduces for an attention and two for a
//! SwiGLU: 5L+1 in the backward pass of a decoder. Rule 7 adds the partial values first and reduces once: 2L+1. Without
//! the rule, the reductions of an attention share a bucket, and so do those of a SwiGLU, but there are 5L+1 values to
//! reduce:
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
//! bound was reached, `dump-ir` says so. `"search"` in the report of `--json` has why it stopped, its rounds, what it counted, and for
//! each rule the terms to which it was applied, the terms that it added, the classes that it found equal and the operations of
//! the result that are due to it.
//!
//! # Planned placements
//!
//! The styles of a plan place parameters and the values at the boundaries of modules; all other placements follow from
//! these, and the search only changes what they cost. With `--placements planned` the compiler chooses them. Parameters,
//! states, data and results stay where the plan has them. For every other value and operation the planner knows all
//! placements that the operations allow, and it looks for the cheapest combination on the target. From `tp` it finds
//! sequence parallelism where that pays, weights that are gathered where the batch is large, and what a plan with a single
//! entry leaves open:
//!
//! ```sh
//! tpc dump-ir MODEL_DIR --train --plan tp --mesh tp=8 --batch 8 --seq 8192 --target h100-node --placements planned
//! tpc train MODEL_DIR --data text.txt --epochs 1 --plan tp --mesh tp=2 --placements planned --memory-limit 12GiB
//! tpc plans MODEL_DIR --ranks 8 --train --batch 8 --seq 4096 --target h100-node --placements planned
//! ```
//!
//! The result comes with a proof: a bound below which no combination costs, and the gap to it, which `dump-ir` says and
//! `dump-ir --json` lists for each axis. Two axes are planned together. With more axes every two of them are, and then
//! there is no bound on all. Layers that repeat are placed alike, and a value is kept at one placement. The planned
//! program is checked like any other: each placement follows from the factor table, and the program computes the model.
//!
//! The planner counts kernels as they will run: the update of a parameter, a norm and attention each pass through memory once.
//! It does not know the schedule, so on a GPU it plans several times, counting all or little of the collectives that other
//! work can hide. A simulation of the first rank chooses among these programs and the one that follows from the plan, so
//! that the result is not slower than the latter, as simulated. `tpc diff --plan fsdp --plan fsdp --placements given
//! --placements planned` shows what changes. The placements of the plan are not tried where they would take longer even if
//! everything overlapped.
//!
//! Without the option the planner is called in one case: if the search leaves equal layers in different placements, which it
//! does with few tokens and large weights on two axes. Then a note says so.
//!
//! Time is what is minimized. `--memory-limit`, with any placements, limits what a rank needs, which is exact: the size
//! of the arena. The backward pass then computes values of the forward pass a second time: cheap ones first, then
//! products and attention, in as many blocks as it takes (selective and full activation checkpointing). Planned
//! placements also lie where they take less memory, and weights are gathered a second time. Results are equal up to
//! rounding, since kernels are fused in other ways: in f32 by about 1e-6 of the largest gradient of a parameter, in
//! bf16 by a few units in the last place. Of the programs that are tried and fit, the one with the fastest simulated step is
//! taken. Where none fits, collectives are sent one by one instead of in buckets, whose operands take memory; if nothing
//! fits, the error says how much the smallest program needs. `tpc dump-ir --json` lists what is computed a
//! second time, and in the text such operations have the reason `recomputed`. In Rust:
//!
//! ```
//! use tpc::search::{PlacementSource, SearchOptions};
//! let search = SearchOptions { placements: PlacementSource::Planned, ..SearchOptions::default() };
//! # fn with<M: burn::module::Module + 'static, O: burn::optim::Optimizer + 'static>(
//! #     trainer: tpc::Trainer<M, O>,
//! #     search: SearchOptions,
//! # ) -> tpc::Trainer<M, O> {
//! trainer.search(search).memory_limit(12 << 30)
//! # }
//! ```
//!
//! # Plans that are found
//!
//! With `--placements auto` the planner also stores the parameters, states and data of which the plan says nothing. Without a
//! plan it finds data, tensor, sequence or sharded-data parallelism, or a mixture of them, for the mesh; what a plan does
//! say is kept. `tpc plans` then also lists what the planner makes of each mesh of one or two axes, and `--export` writes
//! every plan of the list to a file:
//!
//! ```sh
//! tpc plans MODEL_DIR --ranks 8 --train --batch 8 --seq 4096 --target h100-node --placements auto --export found
//! tpc train MODEL_DIR --data text.txt --epochs 1 --plan found/01-none-x8.json --mesh x=8 --placements planned
//! ```
//!
//! The file lists where inputs are stored, for each dimension the axis that cuts it, as JAX's `PartitionSpec` does:
//! `{"placements": {"parameters": {"layers.*.mlp.up.weight": [null, "x"]}, "states": {…}, "data": {…}}}`. An axis in a list
//! of several is major to those after it. Such entries may also be written by hand, next to styles; `"extends": "tp-sp"`
//! begins with a built-in plan. In Rust, [`Trainer::complete`](crate::Trainer::complete) has the planner complete the plan.
//!
//! # Choosing a plan
//!
//! `tpc plans` compiles each built-in plan on each mesh of so many ranks up to the program of the first rank, which holds
//! the largest shards. The size of its arena is the memory of a rank. A simulation of its steps gives the time: kernels by
//! a roofline, collectives by latency and bandwidth. On a GPU collectives overlap with kernels; on a CPU the rank itself
//! carries them out. `waiting` is the share of the step in which no kernel runs. Nothing is executed.
//!
//! ```sh
//! tpc plans MODEL_DIR --ranks 8 --train --batch 8 --seq 4096 --precision bf16 --target h100-node
//! tpc plans MODEL_DIR --ranks 8 --train --memory 40GiB --json     # plans that need more come last
//! tpc train MODEL_DIR --data text.txt --epochs 1 --plan auto --ranks 2 --target here.json
//! ```
//!
//! `--plan auto` uses the first plan of the list; with `--mesh` only plans for that mesh are candidates. In Rust,
//! [`Trainer::auto`](crate::Trainer::auto) does the same. The simulation takes all ranks to be equally fast, and counts
//! the blocks of attention that a mask hides like the others.
//!
//! # What a plan costs, by module
//!
//! `tpc costs` shows what one plan costs the first rank: the kernels and collectives of each module in each phase with their
//! simulated time, and what the module has in the arena when most of it is in use. `tpc diff` compares two plans. It shows
//! the totals of both and the rows that differ, the largest change of the step first. `--json` prints the same numbers.
//!
//! ```sh
//! tpc costs --preset llama --train --plan tp --mesh tp=2
//! tpc diff --preset llama --train --plan tp --plan tp-sp --mesh tp=2      # one mesh for both plans
//! tpc diff MODEL_DIR --train --plan fsdp --mesh dp=8 --plan 2d --mesh dp=4,tp=2 --target h100-node
//! ```
//!
//! Modules at the same place in equal layers share a row: `model.layers.{0..5}.mlp`. A row has their sum, so the rows add up
//! to the totals: the column `of the step` to all of the step's time, and `adds to the step` to the difference of both
//! times. `time` of a collective is how long it is in flight; on a GPU the step only waits for the part that no kernel
//! hides. A loop belongs to the module of its last operation, a product to its own module whatever its epilogue does, and a
//! collective of several values to the innermost module that all of them are in. An operation of the backward pass belongs to the module whose parameter it reads or
//! whose gradient it makes; `(model)` is what belongs to no single module. Memory is `saved values` if the forward pass
//! leaves it to a later phase, `gradients` if the backward pass leaves it to the optimizer, and `temporaries` if one phase
//! uses it; `gaps` are bytes between two pieces of the arena.
//!
//! # Thousands of ranks
//!
//! `tpc simulate` simulates a step of all ranks of a mesh. Ranks whose programs take the same sizes are of one kind, and one
//! rank of each kind stands for all of them: where all sizes divide evenly there is one kind, whatever the number of ranks.
//!
//! ```sh
//! tpc simulate MODEL_DIR --train --plan tp-sp-fsdp --mesh dp=512,tp=8 --batch 512 --seq 8192 --precision bf16 \
//!     --target h100-node --trace step.json
//! ```
//!
//! For each kind it lists the time of the step, the time of kernels and collectives, `exposed`, the time in which collectives
//! run and no kernel does, what is sent along each axis, and what the arena holds at its peak. The whole step takes as long
//! as that of the slowest kind. This neglects that the slowest kind may change within a step. MFU is the rate of the model's
//! products relative to what all devices can compute, as `tpc train` shows it.
//!
//! `--trace` writes the simulated step as Perfetto (ui.perfetto.dev) shows it, like the `--trace` of executed steps: a track
//! with the kernels, starts and waits of the first rank of each kind, a track for the collectives along each axis with an
//! arrow from each to the kernel that reads its result, and a counter of the memory in use.
//!
//! `tpc bench` shows the simulated time beside the measured one, on the target of `--target`. A profile of `tpc calibrate` has
//! what makes the two comparable; `MEASURED.md` says how far they are apart.
//!
//! # Why a collective exists, and what it is worth
//!
//! `tpc why` answers that for one plan. The last words name what is asked about: a value by the number that `dump-ir --stage
//! placed` prints, a kind of collective, a parameter or another input, or a module, whose collectives are then meant. Paths may
//! be patterns. What is equal in several layers is one answer:
//!
//! ```sh
//! tpc why --preset llama --train --plan tp --mesh tp=2 %179
//! tpc why --preset gpt --train --plan tp --mesh tp=2 --placements planned reduce_scatter tp
//! tpc why MODEL_DIR --train --plan tp-sp --mesh tp=8 'layers.*.feed_forward'
//! ```
//!
//! ```text
//! %179 = all_reduce tp sum %178
//!   type     f32[4, 64, 512] +sum@tp → f32[4, 64, 512]
//!   because  layers.0.feed_forward.w2.weight is cut along the summed index (plan tp)
//!   made by  %178 = einsum "abc,cd->abd" %177, %8 : f32[4, 64, 512] +sum@tp
//!   …
//!                                       step               sent            memory  instead
//!   this program                      264 ms            9.44 MB            171 MB
//!   the best that the planner found   262 ms  -1.71 ms  9.46 MB  +18.4 kB  169 MB
//!   without all_reduce of it over tp  262 ms  -1.71 ms  9.46 MB  +18.4 kB  169 MB  reduce_scatter tp sum dim=1 ×4
//! ```
//!
//! An answer has the types before and after, what is sent, the time by the cost model and in the simulated step, the causes
//! that the compiler has kept (an entry of the plan, a data mode, a rule of the e-graph with its equality, the planner), what
//! computes the value, and what reads it with what the reader needs. The table is about other programs. For each of its rows
//! the planner searches all placements of the values inside the program, also where the program itself has those that follow
//! from the plan. Parameters, states, data and results stay where they are. `without …` rules the collective out, in all
//! layers at once, first its kind and then every collective of the value over these axes; for a value it rules its placement
//! out. A row that is faster than `this program` says that the plan costs more than it has to. The rules of the e-graph are
//! not applied to these programs, so they may still become a little cheaper.
//!
//! `tpc view` takes the same options and writes a page with all of this, which any browser opens without a network:
//!
//! ```sh
//! tpc view --preset llama --train --plan tp --plan tp-sp --mesh tp=2 -o plan.html
//! ```
//!
//! It draws the simulated step and what the arena holds while it runs. A block that repeats is drawn once and says how often
//! it does. Equal layers are one module; for each module it lists the operations, with every value as a tensor that the axes
//! of the mesh cut, and every collective with its bytes and its reason. Enter or a click on an operation shows what each rank
//! holds of its result. With two plans everything is side by side.
//!
//! # Targets
//!
//! Which of two equivalent programs is cheaper depends on how fast the machine multiplies, reads memory and sends. A
//! [`Target`](crate::Target) holds these numbers. Four are built in: `cpu`, `h100-node`, `h200-node` (NVLink inside a
//! node of eight GPUs, InfiniBand between nodes) and `ethernet`. `--target` takes one of these names or a JSON file; in
//! Rust, use [`Trainer::target`](crate::Trainer::target). The default target is that of the device that runs the ranks.
//! A CPU target for ranks on CUDA is an error.
//!
//! ```sh
//! tpc dump-ir --preset llama --train --plan tp-sp-fsdp --mesh dp=2,tp=8 --target h100-node
//! tpc calibrate -o here.json                    # measures this machine: products, memory, collectives
//! tpc train MODEL_DIR --data text.txt --epochs 1 --mesh tp=2 --plan tp --target here.json
//! ```
//!
//! `tpc calibrate` takes about 20 seconds. Its file says more of a CPU than the built-in profiles, for the times that `tpc
//! simulate` and `tpc bench` predict: `product_shares` is the share of their rate that products of some bytes reach,
//! `caches` how fast what was touched lately is read again, and `loops` what the functions of loops cost in addition to
//! memory. It describes ranks that work at the same time (`--ranks`), since they share caches and memory.
//!
//! It measures the links between the threads of one process. For several hosts,
//! add the link inside a host, the link between hosts and the number of ranks per host to the file by hand. The ranks
//! of one host have consecutive numbers, so an axis stays inside a host if its size times the sizes of all axes after
//! it divides the number of ranks per host:
//!
//! ```json
//! "links": {
//!   "default": { "latency": 20e-6, "bandwidth": 50e9 },
//!   "node": { "ranks": 8, "latency": 10e-6, "bandwidth": 450e9 },
//!   "axes": { "tp": { "latency": 8e-6, "bandwidth": 400e9 } }
//! }
//! ```
//!
//! `latency` is in seconds; `bandwidth` is in bytes per second that each rank sends. An entry in `axes` sets the link
//! of the mesh axis with that name. [`SCHEMA`](crate::targets::SCHEMA) describes all keys.
//!
//! A collective over several axes is as slow as its slowest link. Where the links of axes differ, a reduction over them
//! is therefore split if that pays (rule 25). For example, on `--mesh out=2,in=4` in nodes of four, a gradient that is
//! summed over both axes is first scattered inside the nodes; then a quarter of it crosses the slow link, and the sum
//! is gathered inside the nodes.
