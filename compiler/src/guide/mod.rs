//! The guide, for engineers who know PyTorch's tensor parallelism and FSDP, and a little burn.
//!
//! `cargo test` compiles and runs the examples, each on two ranks of a tiny model. Anything that a test cannot run,
//! such as a command under `mpirun`, is a plain block.
//!
//! | chapter | what it answers |
//! |---|---|
//! | [`first_model`] | how to train a burn model on two ranks, and what that adds to the program |
//! | [`plans`] | how a plan says what is sharded; layouts; plan files and their schema |
//! | [`reading`] | how to read a printed program and the explanation of a step |
//! | [`data_parallelism`] | data parallelism, FSDP, ZeRO-1, hybrids; checkpoints between meshes |
//! | [`training_loop`] | a custom training loop: results, evaluation, options, counters, traces |
//! | [`generating`] | text generation: prompts, sampling, the cache |
//! | [`processes`] | ranks as processes, under MPI, torchrun and SLURM, and on GPUs |
//! | [`pytorch`] | the same program in PyTorch and in tpc, line by line |
//! | [`styles`] | how to write a parallel style |
//! | [`costs`] | upper bounds on the communication of each plan; targets |
//! | [`capabilities`] | what tpc supports, and what it does not support yet |
//! | [`troubleshooting`] | error messages, their causes and remedies |
//!
//! `ARCHITECTURE.md` in the repository maps questions about the code to files.

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
