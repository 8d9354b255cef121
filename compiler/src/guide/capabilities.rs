//! What tpc supports, and what it does not support yet.
//!
//! # Models
//!
//! - Any burn module whose operations can be recorded, with burn's own optimizers and schedulers, including tied
//!   weights, learning-rate groups, and models too large for one machine, which are built from shapes only. The modules
//!   define the initial values.
//! - Convolutions and pooling sharded on batch and channels; group and instance norms; batch norms with the statistics
//!   of the whole batch, independent of its sharding, and with running statistics that are part of the trained model.
//! - Hugging Face directories as transformers 5 reads them, with its eager attention: llama, mistral, qwen2, qwen3,
//!   gemma 2, gemma 3 (text), phi 3, OLMo 2, gpt2 and bert, read shard by shard, with rotary embeddings of every kind.
//!   `architectures` determines the head: a language model, none, a classification of sequences or tokens, or the
//!   pooling of `modules.json`. Keys and tensors without effect give a warning; keys that would change the model in an
//!   unsupported way are refused. A row that sees no key attends to all keys equally and stays finite.
//! - Texts, JSON lines and conversations as data, with the directory's tokenizer and chat template. Documents in packed
//!   rows do not see each other, and a checkpoint keeps the position in the data.
//! - Heads, vocabularies and lengths that an axis does not divide; fewer key-value heads than ranks.
//!
//! # Plans
//!
//! - Styles as a public trait; layouts at module boundaries, which are inferred from the uses of parameters or marked
//!   with [`scope`](crate::scope()).
//! - Built-in plans for tensor parallelism with and without sequence parallelism, for the data modes, and for both on
//!   two and three axes. Plan files in JSON.
//! - An e-graph over the whole step with numbered rules (`passes/src/egraph/rules/RULES.md`) that can be switched on and off. A
//!   block that occurs L times is searched, proven and printed once.
//! - What a plan costs by module, where two plans differ, and a page that shows both: `tpc costs`, `tpc diff`, `tpc view`
//!   ([costs](super::costs))
//! - Why a collective exists or a value lies where it does, and what the best program without it costs: `tpc why`
//!   ([costs](super::costs))
//! - The time, the exposed communication, MFU and memory of a step on thousands of ranks, and its trace: `tpc simulate`
//!   ([costs](super::costs#thousands-of-ranks))
//! - The fastest built-in plan for a number of ranks: `tpc plans`, `--plan auto`, [`Trainer::auto`](crate::Trainer::auto)
//!   ([`costs`](super::costs))
//! - Placements that the plan leaves open, chosen for the target with a proof of how far from the cheapest they can be:
//!   `--placements planned` ([`costs`](super::costs#planned-placements))
//! - A limit on the memory of a rank, which selective and full activation checkpointing meet without being asked for:
//!   `--memory-limit`, [`Trainer::memory_limit`](crate::Trainer::memory_limit) ([`costs`](super::costs#planned-placements))
//! - Targets: the rates of a device and of the links of each axis, built in, measured by `tpc calibrate`, or written by hand
//!   ([`targets`](crate::targets)). Gradients are reduced hierarchically where one axis is slower than another.
//!
//! # Execution
//!
//! - On CPUs: fused vector loops, a custom matrix product that needs no transposed copies, one planned arena per rank,
//!   no allocation during a step. Attention is recognized in the graph, independent of how a model and its autodiff
//!   write the softmax, and becomes one kernel forward and one backward.
//! - Collectives of one kind share buckets, start early and are waited for late.
//! - Clipping by the global norm, micro-batches (equal to the whole batch for any loss), freezing by patterns, bf16
//!   with f32 master weights.
//! - Text generation from causal models ([`generating`](super::generating)), with a cache that is part of the plan, in
//!   f32 or bf16.
//! - A trace with one track per rank: modules, shapes, bytes, the plan entry of each collective, arrows between ranks.
//! - Checkpoints that all ranks write at once and that resume on any mesh and plan.
//! - Ranks as processes of every launcher in [`processes`](super::processes). A failed, stalled or inconsistent rank is
//!   an error on all ranks.
//! - For NVIDIA GPUs: generated kernels, flash attention, cublasLt products with their epilogues, NCCL and collectives
//!   within one device, one CUDA graph per step. All of this has only been executed on an emulation; `GPU.md` in the
//!   repository has the details.
//!
//! # Not supported
//!
//! - A plan for a model without any: the planner does not choose where parameters lie. Pipeline parallelism.
//! - Attention with sharded keys as one kernel.
//! - Useful overlap on CPU threads: there, a collective makes progress only while its rank waits.
//! - Under burn-train: accumulation of gradients over batches, optimizers by group, batches that grow after the first.
//! - Mixtures of experts, and prompts that join a batch during generation.
//! - Keeping several programs of a trainer loaded on a GPU: programs that alternate are loaded again each time.
//! - A batch norm that runs more than once in a step; this is an error.
