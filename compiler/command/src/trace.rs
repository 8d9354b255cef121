//! `--trace`: the actions of each rank in the latest steps.

use crate::files::{self, Files};
use crate::launch::leads;
use crate::{Outcome, Terminal};
use clap::Args;
use std::path::PathBuf;
use tpc_runtime::output::Output;
use tpc_runtime::{LaunchOptions, Session};

/// Actions that each rank keeps, 32 bytes each; a step has some thousand actions.
const ACTIONS: usize = 1 << 16;

/// Where a trace is written.
#[derive(Debug, Args)]
pub struct Traced {
    /// File for a trace of each rank's actions in the latest steps, which Perfetto opens (ui.perfetto.dev); with
    /// several processes, of the ranks of the first
    #[arg(long = "trace", value_name = "FILE.json")]
    file: Option<PathBuf>,
}

impl Traced {
    /// Adds tracing to the launch options if a trace was requested.
    pub fn options(&self, launch: LaunchOptions) -> LaunchOptions {
        LaunchOptions { trace: if self.file.is_some() { ACTIONS } else { 0 }, ..launch }
    }

    /// Adds the file to the files that are written.
    pub fn writes(&self, files: Files) -> Files {
        files.writes("--trace", &self.file)
    }

    /// The place of the file, resolved before anything runs.
    ///
    /// # Errors
    /// A place that cannot hold a file.
    pub fn output(&self) -> Outcome<Option<Output>> {
        match &self.file {
            Some(file) if leads() => Ok(Some(files::output(file)?)),
            _ => Ok(None),
        }
    }

    /// Writes the trace of the session's selected program.
    ///
    /// # Errors
    /// A disk that rejects it.
    pub fn write(&self, session: &Session, output: Option<Output>, terminal: &mut Terminal) -> Outcome {
        let Some(output) = output else { return Ok(()) };
        files::write(output, session.trace_json().as_bytes())?;
        if let Some(share) = session.traced_share() {
            terminal.note(format!("the trace accounts for {:.1}% of the latest step's wall time", share * 100.0));
        }
        Ok(())
    }
}
