//! Processes: `tpc launch`, MPI, torchrun, SLURM, and GPUs.
//!
//! Ranks are threads of one process unless a launcher starts several processes. Then each process runs one rank, and
//! all of them run the same program: every process makes the same calls with the same arguments and passes the same
//! whole batch to `step`; the runtime takes each rank's part of it.
//!
//! # In a program
//!
//! [`join`](crate::join) finds out from the environment which launcher started this process and connects to the other
//! processes. Without a launcher it returns `None`, so the same program runs both ways.
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
//! // Both ranks are threads of this process.
//! assert_eq!(trainer.session().local_ranks(), 0..2);
//! # Ok(())
//! # }
//! ```
//!
//! The mesh must have as many ranks as there are processes; otherwise all processes report an error. A process generates only
//! the program of its own rank, however many there are. Under `tpc run`, `train` and `bench` the first process places the
//! program for all; a [`Trainer`](crate::Trainer) places it on every process. Before the first step the
//! processes compare their programs, options, data, seeds and weights; a difference is an error that names it.
//!
//! One process runs at most 64 ranks as threads. A mesh, and so a launch, has at most 65,536 ranks.
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
//! If one process fails, all of them end with its exit code, and no process or temporary file remains.
//!
//! # Under MPI
//!
//! With the feature `mpi` a program uses MPI itself, within a host and between hosts (tested with OpenMPI and MPICH).
//! Building it needs `mpicc` and libclang. Without the feature, processes that `mpirun` starts on one host find each
//! other through its environment variables and use shared memory.
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
//! With `--resume` a restarted run continues from its latest checkpoint, or starts from the beginning if there is none.
//!
//! # Under SLURM
//!
//! ```sh
//! srun -n 4 --kill-on-bad-exit=1 tpc train DIR --inputs batch.safetensors --steps 100 --plan 2d --mesh dp=2,tp=2
//! salloc -N 2 mpirun tpc train DIR --inputs batch.safetensors --steps 100 --plan 2d --mesh dp=2,tp=2
//! ```
//!
//! Several hosts need the feature `mpi`. They have only been tested as several nodes of one machine (`tests/slurm`).
//!
//! # When a process fails
//!
//! Every collective has a deadline: the command's `--deadline`, a trainer's [`deadline`](crate::Trainer::deadline), or
//! one minute by default. If a rank dies, hangs or is stopped, all other ranks report an error that names the
//! operation, its plan entry and the missing rank. In addition to the error, a *flight record* with the latest 64
//! collectives of each rank is written to `--flight-dir` of `tpc launch`, to the directory in `TPC_FLIGHT_DIR`, or
//! otherwise to the directory for temporary files.
//!
//! With `--checkpoint`, Ctrl-C or SIGTERM ends a run after the current step, with a checkpoint; a second signal ends it
//! immediately.
//!
//! # GPUs
//!
//! With the feature `cuda`, `--device cuda` or [`Backend::Cuda`](crate::Backend::Cuda) executes the ranks on NVIDIA
//! GPUs. Each process uses the GPU with its number on the host, and the processes communicate over NCCL. A single
//! process runs all its ranks on the first GPU, and processes share GPUs if there are fewer GPUs than processes. The
//! feature compiles without CUDA; the libraries are loaded when the ranks are launched. `GPU.md` in the repository says
//! what has run on which GPU.
//!
//! ```sh
//! cargo build --release -p tpc-command --features cuda
//! target/release/tpc train DIR --inputs batch.safetensors --steps 100 --plan tp --mesh tp=2 --device cuda
//! ```
//!
//! Programs for GPUs are compiled for the target `h100-node`: eight GPUs per node, with NVLink inside a node and
//! InfiniBand between nodes. `--target` selects another target; [`costs`](super::costs) explains targets.
