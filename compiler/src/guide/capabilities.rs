//! What there is, and what there is not yet.
//!
//! # Models
//!
//! - Any burn module whose operations can be recorded, with burn's own optimizers and schedulers: tied weights, groups of
//!   learning rates, models too large to hold (by their shapes). Initial values are those of the modules.
//! - Convolutions and pooling sharded on batch and channels; group and instance norms, and batch norms with the statistics of
//!   the whole batch, however it is shared out, and running statistics that come back with the model.
//! - Hugging Face directories as transformers 5 reads them, with its eager attention: llama, mistral, qwen2, qwen3, gemma 2,
//!   gemma 3 (text), phi 3, OLMo 2, gpt2 and bert, read shard by shard, with rotary embeddings of every kind. The head is that of
//!   `architectures`: a language model, none, a classification of sequences or tokens, or the pooling of `modules.json`. Keys
//!   and tensors that have no effect are named; what would change the model is refused. A row that sees no key attends to all
//!   keys alike and stays finite.
//! - Texts, JSON lines and conversations as data, by the directory's tokenizer and chat template; documents in packed rows do not
//!   see each other, and a checkpoint keeps the place in the data ([`generating`](super::generating) is the way back to text).
//! - Heads, vocabularies and lengths that no axis divides; fewer key-value heads than ranks.
//!
//! # Plans
//!
//! - Styles as a public trait; layouts on module boundaries, which are inferred from the uses of parameters or marked with
//!   [`scope`](crate::scope()).
//! - Built-in plans for tensor parallelism with and without sequence parallelism, the data modes, and both on two and three axes.
//!   Plan files in JSON.
//! - An e-graph over the whole step with numbered rules (`passes/src/egraph/rules/RULES.md`) that can be switched on and off. A
//!   block that occurs L times is searched, proven and printed once.
//! - Targets: the rates of a device and of the links of each axis, built in, measured by `tpc calibrate`, or written by hand
//!   ([`targets`](crate::targets)). Gradients are reduced hierarchically where one axis is slower than another.
//!
//! # Execution
//!
//! - On CPUs: fused vector loops, a matrix product of its own that needs no transposed copies, one planned arena per rank, no
//!   allocation in a step. Attention is found in the graph, however a model and its autodiff write the softmax, and is one kernel
//!   forward and one backward.
//! - Collectives of one kind in buckets, started early and waited for late.
//! - Clipping by the common norm, micro-batches (equal to the whole batch for any loss), freezing by patterns, bf16 with f32
//!   masters.
//! - Text from causal models, with a cache that is part of the plan, in f32 or bf16.
//! - A trace with a track per rank: modules, shapes, bytes, the plan line of each collective, arrows between ranks.
//! - Checkpoints written by all ranks at once and resumed on any mesh and plan.
//! - Ranks as processes of every launcher in [`processes`](super::processes). A failed, stalled or disagreeing rank is an error
//!   on all ranks.
//! - For NVIDIA GPUs: generated kernels, flash attention, cublasLt products with their epilogues, NCCL and collectives within one
//!   device, a graph per step. They have been executed on an emulation only; `GPU.md` in the repository has the details.
//!
//! # What there is not
//!
//! - Plans that the compiler chooses, and pipeline parallelism.
//! - Sequence parallelism that the compiler chooses: the rule that splits all-reduces (rule 1) is off by default.
//! - Attention whose keys are sharded, as one kernel.
//! - Overlap that pays on CPU threads: a collective makes progress there only while its rank waits.
//! - Rematerialization of products; attention and elementwise values are computed again where that is cheaper than keeping them.
//! - Under burn-train: accumulation of gradients over batches, optimizers by group, batches that grow after the first.
//! - Mixtures of experts; prompts that join a batch while others are being generated.
//! - On a GPU, programs of a trainer that take turns are loaded again each time.
//! - A batch norm that runs more than once in a step; it is an error.
