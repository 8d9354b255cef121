//! Processes: `tpc launch`, MPI, torchrun, SLURM, and GPUs.
//!
//! Ranks are threads of one process unless a launcher starts several processes. Then each process runs one rank, and all of them
//! run the same program: every process makes the same calls with the same arguments, and hands the same, whole batch to `step`;
//! the runtime takes each rank's part of it.
//!
//! # In a program
//!
//! [`join`](crate::join) asks the environment which launcher started this process and meets the others. Alone it
//! gives `None`, so the same program runs both ways.
//!
//! ```
//! # use burn::{nn::{Linear, LinearConfig}, optim::SgdConfig, tensor::{Device, Tensor}};
//! # use tpc::prelude::*;
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let device = Device::flex();
//! # let x = Tensor::<2>::ones([4, 8], &device);
//! let processes = join(Duration::from_secs(60))?;
//! assert!(processes.is_none(), "nothing has launched this example");
//! let mut trainer = Trainer::new(|device: &Device| LinearConfig::new(8, 6).init(device), SgdConfig::new().build())
//!     .mesh([("tp", 2)])?
//!     .processes(processes)
//!     .deadline(Duration::from_secs(30))
//!     .plan(ColwiseParallel::default())
//!     .lr(0.1)
//!     .compile(&x, |model: &Linear, x: Tensor<2>| model.forward(x).square().mean())?
//!     .launch()?;
//! assert!(trainer.step(&x)?.loss > 0.0);
//! // Two ranks, both of them threads of this process.
//! assert_eq!(trainer.session().local_ranks(), 0..2);
//! # Ok(())
//! # }
//! ```
//!
//! The mesh has as many ranks as there are processes; another number is an error on all of them. The first process compiles for
//! all. Before the first step the processes compare their programs, options, data, seeds and weights, and a difference is an
//! error that names it.
//!
//! # On one host
//!
//! `tpc launch` starts the processes of one host, which share memory. It runs a subcommand of `tpc` or any program that joins:
//!
//! ```sh
//! tpc launch --ranks 4 -- train DIR --inputs batch.safetensors --steps 100 --plan 2d --mesh dp=2,tp=2 --checkpoint run
//! tpc launch --ranks 4 -- target/release/vit dp=2,tp=2
//! ```
//!
//! If one process fails, all end, with its exit code, and no process and no temporary file remains.
//!
//! # Under MPI
//!
//! With the feature `mpi` a program speaks MPI itself, within a host and between hosts (OpenMPI and MPICH were tried). Building
//! it needs `mpicc` and libclang. Without the feature, processes that `mpirun` starts on one host find each other through its
//! environment variables and use shared memory.
//!
//! ```sh
//! cargo build --release -p tpc-command --features mpi
//! mpirun -n 4 target/release/tpc train DIR --inputs batch.safetensors --steps 100 --plan 2d --mesh dp=2,tp=2
//! ```
//!
//! # Under torchrun
//!
//! ```sh
//! torchrun --nproc_per_node 4 --no_python --max_restarts 3 tpc train DIR --inputs batch.safetensors --steps 100 --plan 2d --mesh dp=2,tp=2 --checkpoint run --resume
//! ```
//!
//! With `--resume` a restarted run goes on from its latest checkpoint, and begins if there is none.
//!
//! # Under SLURM
//!
//! ```sh
//! srun -n 4 --kill-on-bad-exit=1 tpc train DIR --inputs batch.safetensors --steps 100 --plan 2d --mesh dp=2,tp=2
//! salloc -N 2 mpirun tpc train DIR --inputs batch.safetensors --steps 100 --plan 2d --mesh dp=2,tp=2
//! ```
//!
//! Several hosts need the feature `mpi`. They were tried as several nodes of one machine (`tests/slurm`).
//!
//! # When a process fails
//!
//! Every collective has a deadline: `--deadline` of the command, [`deadline`](crate::Trainer::deadline) of a trainer, a minute
//! without either. A rank that dies, hangs or is stopped is an error on all others, which names the operation, its line of the
//! plan and the missing rank. A *flight record* with the latest 64 collectives of each rank is written beside the error, into
//! `--flight-dir` of `tpc launch` or the directory that `TPC_FLIGHT_DIR` names, otherwise into that for temporary files.
//!
//! With `--checkpoint`, Ctrl-C or SIGTERM ends a run after the current step, with a checkpoint; a second signal ends it at once.
//!
//! # GPUs
//!
//! With the feature `cuda`, `--device cuda` or [`Backend::Cuda`](crate::Backend::Cuda) executes the ranks on NVIDIA GPUs:
//! each process on the GPU of its number on the host, over NCCL. A process that is alone runs all its ranks on the first GPU, and
//! processes share where there are fewer GPUs than processes. The feature compiles without CUDA; the libraries are loaded when
//! the ranks are launched. `GPU.md` in the repository says what has run on which GPU.
//!
//! ```sh
//! cargo build --release -p tpc-command --features cuda
//! target/release/tpc train DIR --inputs batch.safetensors --steps 100 --plan tp --mesh tp=2 --device cuda
//! ```
//!
//! Programs for GPUs are compiled for the target `h100-node`: eight GPUs to a node, with NVLink inside and InfiniBand between
//! the nodes. `--target` names another one; [`costs`](super::costs) says what a target is.
