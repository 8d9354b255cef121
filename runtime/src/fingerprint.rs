//! Checks that all processes run the same programs, before the first collective, because a collective that only some
//! ranks have would hang.

use crate::comm::{Processes, describe};
use crate::error::RuntimeError;
use fnv::FnvHasher;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::hash::Hasher;
use std::time::Duration;
use tpc_ir::program::RankProgram;

/// The hash of a text that is never held.
#[derive(Default)]
struct Text(FnvHasher);

impl Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

/// A number that is equal for equal programs of all ranks.
pub fn fingerprint(programs: &[RankProgram]) -> u64 {
    let mut text = Text::default();
    for program in programs {
        // The hasher never fails.
        let _ = write!(text, "{program:?}");
    }
    text.0.finish()
}

/// The parts that are compared when fingerprints differ, from the coarsest to the finest.
#[derive(Debug, Serialize, Deserialize)]
struct Summary {
    version: String,
    mesh: String,
    /// For every rank's program, its number of steps and its collectives.
    ranks: Vec<(usize, Vec<String>)>,
}

impl Summary {
    fn of(programs: &[RankProgram]) -> Self {
        Summary {
            version: env!("CARGO_PKG_VERSION").into(),
            mesh: programs.first().map(|p| p.mesh.to_string()).unwrap_or_default(),
            ranks: programs.iter().map(|p| (p.steps.len(), p.collectives().map(describe).collect())).collect(),
        }
    }

    /// The coarsest part in which two summaries differ: its name, and its value in the first and in the second.
    fn difference(&self, other: &Summary) -> (String, String, String) {
        if self.version != other.version {
            return ("the version of tpc".into(), self.version.clone(), other.version.clone());
        }
        if self.mesh != other.mesh {
            return ("the mesh".into(), self.mesh.clone(), other.mesh.clone());
        }
        for (rank, (a, b)) in self.ranks.iter().zip(&other.ranks).enumerate() {
            let longest = a.1.len().max(b.1.len());
            let name = |c: Option<&String>| c.map_or("none", |c| c).to_string();
            if let Some(i) = (0..longest).find(|&i| a.1.get(i) != b.1.get(i)) {
                let what = format!("collective {i} of rank {rank}'s program");
                return (what, name(a.1.get(i)), name(b.1.get(i)));
            }
            if a.0 != b.0 {
                return (format!("the number of steps of rank {rank}'s program"), a.0.to_string(), b.0.to_string());
            }
        }
        let same = "the same collectives and steps".to_string();
        ("sizes or kernels between the collectives".into(), same.clone(), same)
    }
}

/// Compares the programs of all processes.
///
/// # Errors
/// Every process reports which ranks differ from rank 0, and in what; a process that does not respond.
pub fn compare(processes: &dyn Processes, programs: &[RankProgram], deadline: Duration) -> Result<(), RuntimeError> {
    if processes.count() == 1 {
        return Ok(());
    }
    const PURPOSE: &str = "launch: compare programs";
    let mine = format!("{} {:016x}", env!("CARGO_PKG_VERSION"), fingerprint(programs));
    let all = processes.exchange(PURPOSE, mine.as_bytes(), deadline)?;
    let others: Vec<usize> = (0..all.len()).filter(|&p| all[p] != all[0]).collect();
    let Some(&other) = others.first() else { return Ok(()) };
    let mine = serde_json::to_vec(&Summary::of(programs)).unwrap_or_default();
    let all = processes.exchange(PURPOSE, &mine, deadline)?;
    let parsed = |p: usize| serde_json::from_slice::<Summary>(&all[p]);
    let (what, first, second) = match (parsed(0), parsed(other)) {
        (Ok(a), Ok(b)) => a.difference(&b),
        _ => ("the version of tpc".into(), "another".into(), "another".into()),
    };
    let names: Vec<String> = others.iter().map(ToString::to_string).collect();
    let (ranks, differ) = if others.len() == 1 { ("rank", "differs") } else { ("ranks", "differ") };
    Err(RuntimeError::Programs(format!(
        "{ranks} {} {differ} from rank 0 in {what}: rank 0 has {first}, rank {other} has {second}",
        names.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coarsest_difference_is_told() {
        let summary = |mesh: &str, steps: usize, collectives: &[&str]| Summary {
            version: "1".into(),
            mesh: mesh.into(),
            ranks: vec![(steps, collectives.iter().map(ToString::to_string).collect())],
        };
        let base = summary("<tp=2>", 3, &["a", "b"]);
        let what = |other: Summary| {
            let (what, first, second) = base.difference(&other);
            format!("{what}: {first}, {second}")
        };
        assert_eq!(what(summary("<dp=2>", 4, &[])), "the mesh: <tp=2>, <dp=2>");
        assert_eq!(what(summary("<tp=2>", 4, &["a", "c"])), "collective 1 of rank 0's program: b, c");
        assert_eq!(what(summary("<tp=2>", 3, &["a"])), "collective 1 of rank 0's program: b, none");
        assert_eq!(what(summary("<tp=2>", 4, &["a", "b"])), "the number of steps of rank 0's program: 3, 4");
        assert!(what(summary("<tp=2>", 3, &["a", "b"])).starts_with("sizes or kernels"));
        let other = Summary { version: "2".into(), ..summary("", 0, &[]) };
        assert_eq!(what(other), "the version of tpc: 1, 2");
    }

    #[test]
    fn programs_have_equal_fingerprints_if_they_are_equal() {
        let program = RankProgram::default();
        let other = RankProgram { arena_bytes: 64, ..RankProgram::default() };
        assert_eq!(fingerprint(&[program.clone(), other.clone()]), fingerprint(&[program.clone(), other.clone()]));
        assert_ne!(fingerprint(&[program]), fingerprint(&[other]));
    }
}
