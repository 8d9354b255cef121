//! Checks that the programs of all processes fit together, before the first collective, because a collective that only some
//! ranks have would hang.

use crate::comm::{self, Processes, describe};
use crate::error::RuntimeError;
use crate::session::output_name;
use fnv::FnvHasher;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::hash::Hasher;
use std::ops::Range;
use std::time::Duration;
use tpc_ir::program::{Binding, RankProgram, RankPrograms};

/// The purpose of the exchanges that compare programs.
const PURPOSE: &str = "launch: compare programs";

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

/// What a process says about the programs of its ranks before any of them runs.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Announced {
    version: String,
    /// Equal for programs that were made from the same placed program in the same way.
    source: u64,
    /// For each group of its ranks, by a digest of the ranks in it: a digest of the collectives that start there.
    groups: BTreeMap<u64, u64>,
}

impl Announced {
    fn of(programs: &RankPrograms, local: &Range<usize>) -> Self {
        let mut groups: BTreeMap<u64, u64> = BTreeMap::new();
        for program in local.clone().map(|rank| &programs[rank]) {
            let mut sequences: BTreeMap<u64, FnvHasher> = BTreeMap::new();
            for collective in program.collectives() {
                let sequence = sequences.entry(of_group(&collective.group)).or_default();
                sequence.write(&comm::fingerprint(collective).to_le_bytes());
            }
            groups.extend(sequences.into_iter().map(|(group, sequence)| (group, sequence.finish())));
        }
        let source = programs.source().unwrap_or_else(|| fingerprint(programs));
        Announced { version: env!("CARGO_PKG_VERSION").into(), source, groups }
    }
}

/// A number that is equal for equal groups.
fn of_group(ranks: &[usize]) -> u64 {
    let mut hasher = FnvHasher::default();
    ranks.iter().for_each(|&rank| hasher.write(&(rank as u64).to_le_bytes()));
    hasher.finish()
}

/// The parts that are compared when programs differ, from the coarsest to the finest.
#[derive(Debug, Serialize, Deserialize)]
struct Summary {
    version: String,
    mesh: String,
    /// For the program of every rank that the process holds, its number of steps and its collectives.
    ranks: BTreeMap<usize, (usize, Vec<String>)>,
    /// The name, type and shape of every input and output.
    ends: Vec<String>,
}

impl Summary {
    fn of(programs: &RankPrograms) -> Self {
        let steps = |p: &RankProgram| (p.steps.len(), p.collectives().map(describe).collect());
        let end = |name: String, b: &Binding| format!("{name} : {}{:?}", b.view.dtype, b.layout);
        let ends = programs.first().map_or_else(Vec::new, |program| {
            let inputs = program.inputs.iter().map(|i| end(format!("input `{}`", i.name), &i.binding));
            let outputs = program.outputs.iter().map(|o| end(format!("output `{}`", output_name(&o.kind)), &o.binding));
            inputs.chain(outputs).collect()
        });
        Summary {
            version: env!("CARGO_PKG_VERSION").into(),
            mesh: programs.mesh().to_string(),
            ranks: programs.iter().map(|p| (p.rank, steps(p))).collect(),
            ends,
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
        let name = |text: Option<&String>| text.map_or("none", |text| text).to_string();
        for (rank, a) in &self.ranks {
            let Some(b) = other.ranks.get(rank) else { continue };
            let longest = a.1.len().max(b.1.len());
            if let Some(i) = (0..longest).find(|&i| a.1.get(i) != b.1.get(i)) {
                let what = format!("collective {i} of rank {rank}'s program");
                return (what, name(a.1.get(i)), name(b.1.get(i)));
            }
            if a.0 != b.0 {
                return (format!("the number of steps of rank {rank}'s program"), a.0.to_string(), b.0.to_string());
            }
        }
        let longest = self.ends.len().max(other.ends.len());
        if let Some(i) = (0..longest).find(|&i| self.ends.get(i) != other.ends.get(i)) {
            let what = "an input or output".into();
            return (what, name(self.ends.get(i)), name(other.ends.get(i)));
        }
        match self.ranks.keys().any(|rank| other.ranks.contains_key(rank)) {
            true => {
                let same = "the same collectives and steps".to_string();
                ("sizes or kernels between the collectives".into(), same.clone(), same)
            }
            false => {
                let same = "the same inputs and outputs".to_string();
                ("the placed program, the target or the options of lowering".into(), same.clone(), same)
            }
        }
    }
}

/// Compares the programs of all processes. Each process has at least the programs of its own ranks, `local`. If it has no
/// others, nothing has compared the ranks with each other yet: programs of the same source start the same collectives in
/// every group, and this is checked as well, because a group that disagrees would hang.
///
/// # Errors
/// Every process reports which ranks differ from rank 0, and in what; a process that does not respond.
pub fn compare(
    processes: &dyn Processes,
    programs: &RankPrograms,
    local: &Range<usize>,
    deadline: Duration,
) -> Result<(), RuntimeError> {
    if processes.count() == 1 {
        return Ok(());
    }
    let announced = Announced::of(programs, local);
    let all = processes.exchange(PURPOSE, &serde_json::to_vec(&announced).unwrap_or_default(), deadline)?;
    let all: Vec<Option<Announced>> = all.iter().map(|bytes| serde_json::from_slice(bytes).ok()).collect();
    let made = |p: usize| all[p].as_ref().map(|announced| (&announced.version, announced.source));
    let others: Vec<usize> = (0..all.len()).filter(|&p| made(p) != made(0)).collect();
    if !others.is_empty() {
        return Err(different(processes, programs, &others, deadline));
    }
    // The programs of all ranks were compared with each other when they were made.
    if programs.is_complete() {
        return Ok(());
    }
    // The ranks outside a group that disagrees do not see it.
    let agree = compare_groups(&announced, &all, programs, local);
    comm::processes::together(processes, "launch: compare collectives", agree, deadline)
}

/// Checks that the other ranks of every group of this process start the same collectives there.
fn compare_groups(
    announced: &Announced,
    all: &[Option<Announced>],
    programs: &RankPrograms,
    local: &Range<usize>,
) -> Result<(), RuntimeError> {
    // All processes have equally many ranks.
    let process_of = |rank: usize| rank / local.len();
    for group in comm::groups(programs.of_ranks(local.clone())) {
        let key = of_group(&group);
        let mine = announced.groups.get(&key);
        let differs =
            |&&rank: &&usize| all[process_of(rank)].as_ref().is_none_or(|other| other.groups.get(&key) != mine);
        if let Some(rank) = group.iter().find(differs) {
            let reason =
                format!("rank {rank} starts other collectives in the group {group:?} than rank {}", local.start);
            return Err(RuntimeError::Programs(reason));
        }
    }
    Ok(())
}

/// What differs between the programs of the first process and those of others.
fn different(processes: &dyn Processes, programs: &RankPrograms, others: &[usize], deadline: Duration) -> RuntimeError {
    let mine = serde_json::to_vec(&Summary::of(programs)).unwrap_or_default();
    let all = match processes.exchange(PURPOSE, &mine, deadline) {
        Ok(all) => all,
        Err(error) => return error,
    };
    let other = others[0];
    let parsed = |p: usize| serde_json::from_slice::<Summary>(&all[p]);
    let (what, first, second) = match (parsed(0), parsed(other)) {
        (Ok(a), Ok(b)) => a.difference(&b),
        _ => ("the version of tpc".into(), "another".into(), "another".into()),
    };
    let names: Vec<String> = others.iter().map(ToString::to_string).collect();
    let (ranks, differ) = if others.len() == 1 { ("rank", "differs") } else { ("ranks", "differ") };
    RuntimeError::Programs(format!(
        "{ranks} {} {differ} from rank 0 in {what}: rank 0 has {first}, rank {other} has {second}",
        names.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpc_ir::program::{Action, BufferId, Collective, CollectiveKind, PlacedEnds, Step, View};
    use tpc_ir::{DType, Mesh, ModulePath, Phase, ReduceOp};

    #[test]
    fn the_coarsest_difference_is_told() {
        let summary = |mesh: &str, steps: usize, collectives: &[&str]| Summary {
            version: "1".into(),
            mesh: mesh.into(),
            ranks: [(0, (steps, collectives.iter().map(ToString::to_string).collect()))].into(),
            ends: vec!["input `x` : f32[4]".into()],
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
        let input = Summary { ends: vec!["input `x` : f32[8]".into()], ..summary("<tp=2>", 3, &["a", "b"]) };
        assert_eq!(what(input), "an input or output: input `x` : f32[4], input `x` : f32[8]");
        // Processes that hold the programs of different ranks.
        let of_rank_1 = |summary: Summary| Summary { ranks: [(1, (9, Vec::new()))].into(), ..summary };
        assert!(what(of_rank_1(summary("<tp=2>", 3, &[]))).starts_with("the placed program, the target or"));
        let other = Summary { version: "2".into(), ..summary("", 0, &[]) };
        assert_eq!(what(other), "the version of tpc: 1, 2");
    }

    /// A program of one rank of two with an all-reduce of so many elements.
    fn reducing(rank: usize, elements: usize) -> RankPrograms {
        let view = View::dense(BufferId(0), DType::F32, vec![elements]);
        let collective = Collective {
            kind: CollectiveKind::AllReduce(ReduceOp::Sum),
            group: vec![0, 1],
            position: rank,
            dtype: DType::F32,
            from: view.clone(),
            to: view,
            tag: 0,
            axes: "tp".into(),
            phase: Phase::Forward,
            values: 1,
            full_bytes: 4 * elements,
            why: "".into(),
        };
        let action = Action::Start(Box::new(collective));
        let step =
            Step { action, phase: Phase::Forward, label: "".into(), micro_batch: None, module: ModulePath::default() };
        let mesh = Mesh::new([("tp", 2)]).unwrap();
        let program = RankProgram { mesh, rank, steps: vec![step], ..RankProgram::default() };
        RankPrograms::of_some(vec![program], PlacedEnds { inputs: Vec::new(), outputs: Vec::new(), source: 7 })
    }

    #[test]
    fn ranks_of_a_group_must_start_the_same_collectives() {
        let mine = reducing(0, 4);
        let said = || Announced::of(&mine, &(0..1));
        let with = |other| compare_groups(&said(), &[Some(said()), other], &mine, &(0..1));
        assert_eq!(with(Some(Announced::of(&reducing(1, 4), &(1..2)))), Ok(()));
        let refused = |other| with(other).unwrap_err().to_string();
        let told = "rank 1 starts other collectives in the group [0, 1] than rank 0";
        assert!(refused(Some(Announced::of(&reducing(1, 5), &(1..2)))).contains(told));
        let nothing = Announced { version: String::new(), source: 7, groups: BTreeMap::new() };
        assert!(refused(Some(nothing)).contains(told));
        assert!(refused(None).contains(told));
    }

    #[test]
    fn programs_have_equal_fingerprints_if_they_are_equal() {
        let program = RankProgram::default();
        let other = RankProgram { arena_bytes: 64, ..RankProgram::default() };
        assert_eq!(fingerprint(&[program.clone(), other.clone()]), fingerprint(&[program.clone(), other.clone()]));
        assert_ne!(fingerprint(&[program]), fingerprint(&[other]));
    }
}
