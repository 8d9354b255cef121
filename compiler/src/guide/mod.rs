//! The guide: for engineers who know PyTorch's tensor parallelism and FSDP, and burn a little.
//!
//! Its examples are compiled and run by `cargo test`, each on two ranks of a tiny model. What a test cannot run, such as a
//! command under `mpirun`, stands there as a plain block.
//!
//! | chapter | what it answers |
//! |---|---|
//! | [`first_model`] | how a burn model is trained on two ranks, and what that adds to the program |
//! | [`plans`] | how a plan says what is sharded; layouts; plan files and their schema |
//! | [`reading`] | how to read a printed program and the explanation of a step |
//! | [`data_parallelism`] | data parallelism, FSDP, ZeRO-1, hybrids; checkpoints between meshes |
//! | [`training_loop`] | a training loop of one's own: results, evaluation, options, counters, traces |
//! | [`generating`] | text from a model: prompts, sampling, the cache |
//! | [`processes`] | ranks as processes, under MPI, torchrun and SLURM, and on GPUs |
//! | [`pytorch`] | the same program in PyTorch and here, line by line |
//! | [`styles`] | how to write a parallel style |
//! | [`costs`] | what each plan communicates at most; what sending is weighed with |
//! | [`capabilities`] | what there is, and what there is not yet |
//! | [`troubleshooting`] | error messages, their causes and the ways out |
//!
//! `ARCHITECTURE.md` in the repository says which question about the code itself is answered in which file.

pub mod capabilities;
pub mod costs;
pub mod data_parallelism;
pub mod first_model;
pub mod generating;
pub mod plans;
pub mod processes;
pub mod pytorch;
pub mod reading;
pub mod styles;
pub mod training_loop;
pub mod troubleshooting;
