//! `tpc verify`: checks a stored program by the meaning of its operations.

use crate::{Failure, Outcome, Terminal, graph_file};
use clap::Args;
use std::path::PathBuf;
use tpc_ir::quote::cut;
use tpc_ir::size::addressable;
use tpc_passes::check::{CheckError, Checked, check_all};

/// Most faults that are shown.
const MOST: usize = 10;

/// Check a placed program from a file: that its ranks compute what its types say, and that it keeps what its plan demands
#[derive(Debug, Args)]
pub struct Verify {
    /// A program that dump-ir --store has written, or a placed graph in text form (.tpc)
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Verify {
    pub(crate) fn execute(&self, terminal: &mut Terminal) -> Outcome {
        let (graph, obligations) = graph_file::read(&self.file)?;
        let (checked, mut faults) = check_all(&graph);
        // The types of a malformed program may not even have as many dimensions as its plan speaks of.
        if !matches!(faults[..], [CheckError::Malformed(_), ..]) {
            addressable(&graph).map_err(|e| Failure::at(&self.file, e))?;
            faults.extend(obligations.iter().flat_map(|o| o.violations(&graph)));
        }
        if faults.is_empty() {
            return terminal.print(said(&checked, obligations.map(|o| o.list.len())));
        }
        let several = if faults.len() == 1 { "" } else { "s" };
        let mut message = format!("{} fault{several}", faults.len());
        for fault in faults.iter().take(MOST) {
            message.push_str(&format!("\n{fault}"));
        }
        if let more @ 1.. = faults.len().saturating_sub(MOST) {
            message.push_str(&format!("\nand {more} more"));
        }
        Err(Failure::Message(format!("{}: {message}", cut(&self.file.display().to_string()))))
    }
}

/// What was checked.
fn said(checked: &Checked, obligations: Option<usize>) -> String {
    let Checked { operations, results, redistributions, updates, outputs } = checked;
    let plan = match obligations {
        Some(n) => format!("{n} demands, all met"),
        None => "not in the file".into(),
    };
    format!(
        "operations     {operations}, {redistributions} of them redistributions\n\
         results        {results}, which the ranks compute as the types say\n\
         updates        {updates}, placed like their inputs\n\
         other outputs  {outputs}, none partial\n\
         plan           {plan}\n"
    )
}
