//! Error messages, their causes and remedies.
//!
//! A message names its subject (the plan entry, the module, the tensor, the rank) and ends with a remedy. This chapter
//! explains the causes. Each block is a message as a program prints it; `tests/tests/documents.rs` compares the blocks
//! with the messages in the code and its tests.
//!
//! # Plans
//!
//! ```text
//! plan entry `model.layers.*.self_atn` matches no module; the nearest are model.layers.0.self_attn, model.layers.1.self_attn, model.layers.0.mlp
//! ```
//! A path consists of field names, separated by dots. Compare it with the listed ones; `tpc dump-ir DIR --stage
//! logical` shows the names of all parameters.
//!
//! ```text
//! plan entry `model.norm` (ColwiseParallel) finds nothing to parallelize in `model.norm`, which is a RmsNorm: it works on a linear, an embedding or a convolution
//! ```
//! The path is right, but the style does not fit. Column-wise and row-wise styles apply to one weight, so their path
//! must end at a linear and not at the block that contains it; for a block, use `PairwiseParallel`.
//!
//! ```text
//! plan entry `unused` (ColwiseParallel) finds nothing to parallelize in `unused`, which is a Linear: the forward pass does not use its parameters (`unused.weight`); remove the entry
//! ```
//! The compiled closure does not call that module.
//!
//! ```text
//! plan entry `merged` (ColwiseParallel) finds nothing to parallelize in `merged`, which is a Linear: `merged.weight` is read by `add`, but the style cuts only weights that a product reads directly; remove the entry to keep it whole on every rank
//! ```
//! The model computes the weight from the parameter before multiplying with it, as merged low-rank adapters do.
//!
//! ```text
//! parameter `model.layers.1.mlp.up_proj.weight` is claimed by two plan entries, `plan "model.layers.*.mlp"` (by columns) and `plan "model.layers.1.mlp.up_proj"` (by rows): remove one of them
//! ```
//! Patterns overlap. A later entry does not override an earlier one: narrow the pattern, for example to
//! `model.layers.[!1].mlp`.
//!
//! ```text
//! plan entry `head` names `head`, a Linear, which shares its weights: `head.weight` is `table.weight` under another name (tied), and one style places both; remove this entry and name `table`: RowwiseParallel there cuts the rows of the embedding, which are the outputs of the head
//! ```
//! An embedding and a head that share a weight have one placement.
//!
//! ```text
//! plan entry `layers.1.norm` places arguments of `layers.1.norm`, but its boundaries cannot be inferred from its parameters: mark them in the model with `tpc::scope("layers.1.norm", inputs, |inputs| …)` around the module's call
//! ```
//! Module boundaries follow from the uses of parameters, which here do not determine the boundary. Wrap the call in the
//! model as the message shows. Outside of a compilation, `scope` only calls the closure, so the model still runs
//! eagerly.
//!
//! ```text
//! plan entry `last` wants Shard(3) for result 0 of `last`, which has the shape [2, 3, 5]: there is no such dimension, use Shard(0) to Shard(2) or Replicate
//! ```
//! Dimensions of layouts are those of the model's tensor, counted from 0.
//!
//! ```text
//! plan entry `layers.0.mlp.net1` gives a layout to argument 1 of `layers.0.mlp.net1`, which has 1: leave that layout out
//! ```
//! The lists of `PrepareModuleInput` are positional, and only tensors count.
//!
//! # Meshes
//!
//! ```text
//! the plan shards along the axis `dp`, but the mesh has no such axis (mesh <tp=2>): add `dp=N` to the mesh or change the plan's axis
//! ```
//! Built-in plans use the axes `tp`, `dp` and `rep`; `along` and the methods of the data modes accept other names.
//!
//! ```text
//! the mesh axis `tp` is not used by the plan: every rank along it would compute the same; remove it from the mesh or give it a data mode
//! ```
//! The mesh has an axis that the plan does not use. The plan `none` accepts this.
//!
//! ```text
//! cannot launch: 65 ranks, but one process can run at most 64 as threads: start one process per rank (`tpc launch`, `mpirun`, `srun`)
//! ```
//! See [`processes`](super::processes).
//!
//! # Plan files
//!
//! ```text
//! the plan has an unknown key `style` in the plan: known are axis, styles, data, loss_parallel
//! ```
//! The file must follow [this schema](super::plans#plan-files).
//!
//! ```text
//! `data.mode` in the plan must be "ddp", "fsdp", "zero1" or "hsdp", found fdsp
//! ```
//! The value is misspelled.
//!
//! ```text
//! the plan has two entries for the path `a.b`: merge them
//! ```
//! A nested map and a dotted path give the same path.
//!
//! # Recording a model
//!
//! ```text
//! a computed value is read in `model.head`: nothing is computed during a capture, so `into_data`, `into_scalar`, `argwhere`, `one_hot` and the like cannot be recorded; compute it outside and pass it as an input
//! ```
//! The closure branches on a tensor's value or prints it. Return the tensor as a further result of the step, or compute
//! the value outside and pass it as a field of the batch. The message names regions that `tpc::scope` marks.
//!
//! ```text
//! no parameter receives a gradient: all are frozen, or none of them is used by the loss
//! ```
//! A frequent cause is a loss that is computed from a detached tensor.
//!
//! ```text
//! the model panicked in `head`: assert_shape!(input, [.., d_input]): axis 1 expected 4, got 3 (dims [4, 3]) (at burn-nn-0.22.1/src/modules/linear.rs:136:35)
//! ```
//! burn refused an operation. The same closure fails in the same way on burn's own device, where the cause is easier to
//! find.
//!
//! ```text
//! the model (in `head`) uses `NumericFloat.CumProd`, which tpc cannot shard yet: there is no rule for it
//! ```
//! burn records the operation, but the compiler has no rule for it. Express it with other operations, or compute it
//! outside.
//!
//! # A trainer
//!
//! ```text
//! the trainer has no learning rate: call `lr` with a number or with one of burn's schedulers before `compile`
//! ```
//! burn's optimizers take their learning rate with each step, so there is no default.
//!
//! ```text
//! field `features` of the batch is f32[8, 7, 5], but the training step was compiled for f32[8, 6, 5]: a batch may have fewer rows in the first dimension, but must otherwise have the example's shape
//! ```
//! Pad sequences to one length, or compile one evaluation for each length.
//!
//! ```text
//! the batch has 9 rows in field `features`, but the training step was compiled for at most 8: compile it with an example of the largest batch
//! ```
//! The example for `compile` must be the largest batch.
//!
//! ```text
//! the batch has no field `weights`, but the example that the training step was compiled for has one: an optional field must be present in all batches or in none
//! ```
//! `Some` and `None` need different programs. Give the field a neutral value instead of `None`.
//!
//! ```text
//! the evaluation was compiled by another trainer: use the trainer whose `evaluation` made it
//! ```
//! An evaluation reads the parameters of the trainer that made it.
//!
//! ```text
//! the module differs from the trained one: its `embed.weight` is f32[5, 24], the trained one is f32[5, 16]
//! ```
//! `load_into` writes by path and shape. If `into_module` reports this error, the function given to `Trainer::new` now
//! builds a different model.
//!
//! ```text
//! `head.weight` would have to be sharded differently than in the training step: add a plan entry for its module, or compute both in the same way
//! ```
//! An evaluation uses the parameters where the training step keeps them. A plan entry that names the module determines
//! its sharding for both.
//!
//! ```text
//! the scheduler gives `weight` and `bias` different learning rates in step 301, after it gave them the same ones in the first 256: these steps determine the groups of parameters; make their rates differ slightly from the beginning
//! ```
//! Groups are found by comparing the rates of the first steps. Multiply one group's rate by 0.999 from the start to
//! separate the groups.
//!
//! # Processes
//!
//! ```text
//! the mesh has 2 ranks, but 3 processes were launched, one for each rank; launch 2 processes or choose a mesh of 3 ranks
//! ```
//! A process runs one rank. `--ranks`, `-n` and the product of the mesh's axes must be the same number.
//!
//! ```text
//! the processes differ: --lr is 0.001 on rank 0 and 0.002 on rank 1; start all of them with the same command and files
//! ```
//! Processes compare options, data, seeds and weights before the first step. A frequent cause is a batch that each
//! process draws separately: all processes must pass the same whole batch to `step`.
//!
//! ```text
//! rank 0: `all_reduce tp` #0 (f32 sum of 4096 elements, forward, ranks [0, 1], why: model.embed_tokens.weight is cut along the summed index (plan tp)) did not finish within 2s: missing rank 1 (rank 1 is stopped by a signal); look at what those ranks do, or raise the deadline if they are only slow
//! ```
//! The other rank is stopped (in a debugger, for example), hangs, or is much slower. The flight record shows the latest
//! collectives of each rank.
//!
//! ```text
//! rank 1 failed: its process exited with code 7
//! ```
//! The last output of that process precedes this message. A process that a signal ended prints nothing; `killed by
//! signal 9 (SIGKILL)` often means that the host ran out of memory.
//!
//! ```text
//! no CUDA device: the driver's library libcuda.so.1 was not found; run on the CPU, or on a machine with an NVIDIA GPU and its driver
//! ```
//! `--device cuda` needs NVIDIA's driver; `nvidia-smi` shows whether it works.
//!
//! # Checkpoints and files
//!
//! ```text
//! RUN: no checkpoint: no directory step-N with an index.json
//! ```
//! A directory of checkpoints holds directories named `step-000100`. `tpc train --resume` starts from the beginning
//! here; a trainer's `resume` returns this error.
//!
//! ```text
//! DIR/directories/model.safetensors: tensor "model.layers.0.mlp.gate_proj.weight" has shape [12, 8], but the configuration says [16, 8]
//! ```
//! `config.json` and the weights belong to different models.
//!
//! # Memory
//!
//! ```text
//! the arenas of 8 ranks take 96636764160 bytes, but 67108864000 bytes of memory are available; use a smaller batch, --micro-batches, or a plan that shards more
//! ```
//! An arena is all memory of a rank: parameters, optimizer state, data and activations. Its size is known before
//! anything runs. [`explain`](crate::CompiledTrainer::explain) shows its parts.
//!
//! # Defects
//!
//! A message that begins with `internal error` or ends with `please report it` is a defect of the compiler. The
//! compiler's own checks found it before a wrong number was computed. A report needs the model, the plan and the mesh;
//! `tpc dump-ir … --stage logical --full` prints the program without any weights.
