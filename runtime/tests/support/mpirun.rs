//! The launcher of the MPI that tests are built with: `mpirun`, or the one in `TPC_MPIRUN`; OpenMPI's or MPICH's.
#![allow(dead_code)]

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Number of commands that this process has created.
static JOBS: AtomicUsize = AtomicUsize::new(0);

/// A launcher.
pub struct Mpirun {
    program: String,
    /// Otherwise it is MPICH's.
    is_openmpi: bool,
}

impl Mpirun {
    /// Finds the launcher.
    pub fn find() -> Self {
        let program = std::env::var("TPC_MPIRUN").unwrap_or_else(|_| "mpirun".into());
        let said = Command::new(&program).arg("--version").output();
        let said =
            said.unwrap_or_else(|e| panic!("`{program}`: {e}; the feature `mpi` needs it, see TPC_MPIRUN")).stdout;
        let is_openmpi = String::from_utf8_lossy(&said).contains("Open MPI");
        Mpirun { program, is_openmpi }
    }

    /// Starts the appended command in this many processes, regardless of the number of cores.
    pub fn command(&self, ranks: usize) -> Command {
        let mut command = Command::new(&self.program);
        if self.is_openmpi {
            // Otherwise several jobs at a time would all be bound to the same cores.
            command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--tag-output"]);
            // Jobs also share a directory that one job would remove while another starts, so each gets its own.
            let job = JOBS.fetch_add(1, Ordering::Relaxed);
            let own = concat!(env!("CARGO_TARGET_TMPDIR"), "/mpirun-", env!("CARGO_CRATE_NAME"));
            command.args(["--mca", "orte_tmpdir_base", &format!("{own}-{job}")]);
        } else {
            command.args(["-bind-to", "none", "-prepend-rank"]);
        }
        command.arg("-n").arg(ranks.to_string());
        command
    }

    /// The output with `[rank N] ` before the lines of a rank, as in `tpc launch`.
    pub fn tagged(&self, said: &str) -> String {
        let rank = |line: &str| {
            let (rank, text) = match self.is_openmpi {
                true => line.strip_prefix("[1,")?.split_once("]<stderr>:")?,
                false => line.strip_prefix('[')?.split_once("] ")?,
            };
            rank.parse::<usize>().is_ok().then(|| format!("[rank {rank}] {text}"))
        };
        let lines: Vec<String> = said.lines().map(|line| rank(line).unwrap_or_else(|| line.to_string())).collect();
        lines.join("\n")
    }

    /// Its name in messages.
    pub fn name(&self) -> &'static str {
        if self.is_openmpi { "OpenMPI" } else { "MPICH" }
    }

    /// The variable with the rank of a process.
    pub fn rank_variable(&self) -> &'static str {
        if self.is_openmpi { "OMPI_COMM_WORLD_RANK" } else { "PMI_RANK" }
    }
}
