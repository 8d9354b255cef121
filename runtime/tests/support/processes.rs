//! Tests whose ranks are processes: the test binary starts itself, and the children run a test that is otherwise
//! ignored.
#![allow(dead_code)]

#[cfg(feature = "mpi")]
#[path = "mpirun.rs"]
mod mpirun;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tpc_runtime::LaunchOptions;
use tpc_runtime::launch::supervise::{Ended, LaunchSpec, Output, launch};

/// The role of the children: the name and its arguments, separated by spaces.
pub const ROLE: &str = "TPC_TEST_ROLE";
/// The name of the test that the children run.
pub const CHILD: &str = "child_process";

/// The exit code of a launch of this test binary, and the output of its processes.
pub struct Told {
    pub ended: Ended,
    pub stderr: String,
}

/// How processes are launched: number, role, directory for flight records, deadline.
pub type Launcher = fn(usize, &str, Option<PathBuf>, Option<Duration>) -> Told;

/// This binary's child test as a command line, without the output of the harness.
pub fn command(role: &str) -> Vec<String> {
    let exe = std::env::current_exe().unwrap().display().to_string();
    let script = format!("{ROLE}=\"$0\" exec \"$@\" > /dev/null");
    let parts = ["-c", &script, role, &exe, "--exact", CHILD, "--ignored", "--nocapture"];
    parts.iter().map(ToString::to_string).collect()
}

/// Runs a role in this many processes.
pub fn in_processes(ranks: usize, role: &str, flight_dir: Option<PathBuf>, deadline: Option<Duration>) -> Told {
    let launched = LaunchSpec {
        ranks,
        program: "sh".into(),
        arguments: command(role).into_iter().map(Into::into).collect(),
        deadline,
        grace: Duration::from_secs(3),
        flight_dir: Some(flight_dir.unwrap_or_else(std::env::temp_dir)),
    };
    let said: Arc<Mutex<Vec<u8>>> = Arc::default();
    let output: Output = said.clone();
    let ended = launch(&launched, &output).unwrap();
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    Told { ended, stderr: String::from_utf8_lossy(&said).into_owned() }
}

/// The role of this child.
pub fn role() -> Vec<String> {
    let role = std::env::var(ROLE).expect("this test is for child processes");
    role.split(' ').map(ToString::to_string).collect()
}

/// Launch options of a child, in its world.
pub fn joined() -> LaunchOptions {
    let processes = tpc_runtime::launch::join(Duration::from_secs(60)).unwrap_or_else(|e| fail(&e));
    let deadline = tpc_runtime::launch::deadline().unwrap_or_else(|e| fail(&e)).unwrap_or(Duration::from_secs(60));
    LaunchOptions { processes, deadline, ..Default::default() }
}

/// Ends a child like the `tpc` command: with a message.
pub fn fail(error: &dyn std::fmt::Display) -> ! {
    if let Some(processes) = tpc_runtime::launch::joined() {
        processes.fail(processes.process(), &error.to_string());
    }
    // In one piece, so that MPI's launcher prefixes it with the rank only once.
    let line = format!("error: {error}\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    std::process::exit(1)
}

/// Runs a role in this many MPI processes. Lines on standard error begin with the rank, as everywhere.
#[cfg(feature = "mpi")]
pub fn under_mpirun(ranks: usize, role: &str, flight_dir: Option<PathBuf>, deadline: Option<Duration>) -> Told {
    let mpirun = mpirun::Mpirun::find();
    let mut command = mpirun.command(ranks);
    command.arg("sh").args(self::command(role));
    command.env(tpc_runtime::launch::FLIGHT_DIR, flight_dir.unwrap_or_else(std::env::temp_dir));
    if let Some(deadline) = deadline {
        command.env(tpc_runtime::launch::DEADLINE, deadline.as_secs_f64().to_string());
    }
    let output = command.output().unwrap();
    let code = output.status.code().map_or(255, |code| code as u8);
    let stderr = mpirun.tagged(&String::from_utf8_lossy(&output.stderr));
    Told { ended: Ended { code, message: None, flight_record: None, joined: true }, stderr }
}
