//! Collectives of a training program: predicts what its ranks execute, and checks that they do.

use std::collections::BTreeMap;
use std::fmt;
use tpc::RankProgram;
use tpc_compiler::program::{Stages, TrainingProgram};
use tpc_ir::Phase;
use tpc_ir::program::Collective;
use tpc_runtime::LaunchOptions;
use tpc_runtime::Session;

/// By kind, axes, phase, bytes and ranks: how often it runs, and the bytes sent by all of these runs.
type Counts = BTreeMap<(String, String, Phase, usize, usize), (u64, f64)>;

fn predicted(rank: &RankProgram, steps: u64) -> Counts {
    let mut counts = Counts::new();
    for c in rank.collectives() {
        let entry =
            counts.entry((c.name().into(), c.axes.to_string(), c.phase, c.full_bytes, c.group.len())).or_default();
        entry.0 += steps;
        entry.1 += steps as f64 * c.wire_bytes();
    }
    counts
}

fn executed(session: &Session, rank: usize) -> Counts {
    let mut counts = Counts::new();
    for c in session.collectives(rank) {
        let entry = counts.entry((c.name.into(), c.axes.to_string(), c.phase, c.full_bytes, c.group)).or_default();
        entry.0 += c.count;
        entry.1 += c.wire_bytes;
    }
    counts
}

/// Checks that the steps execute what the programs predict, on every rank.
///
/// # Panics
/// If they do not.
pub fn counts_agree(program: TrainingProgram, write: impl FnOnce(&mut Session)) {
    let [first, steady] = [&program.first, &program.steady].map(|s| s.ranks.clone());
    let mut training = program.launch(LaunchOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    write(training.session());
    let mut step = |steps: u64, ranks: &[RankProgram]| {
        training.session().reset_counters();
        for _ in 0..steps {
            training.step(1e-3).unwrap_or_else(|e| panic!("{e}"));
        }
        for (rank, program) in ranks.iter().enumerate() {
            assert_eq!(executed(training.session(), rank), predicted(program, steps), "rank {rank}");
            let sent: f64 = program.collectives().map(Collective::wire_bytes).sum();
            assert!((training.session().wire_bytes(rank) - steps as f64 * sent).abs() < 1e-6);
        }
    };
    step(1, &first);
    // The second step runs the steady program.
    step(1, &steady);
    step(2, &steady);
}

/// The number of reductions and gathers in a phase of values that have at least `at_least` elements, in halves: an
/// all-reduce is a reduce-scatter and an all-gather. Values that share one collective count separately.
pub fn halves(stages: &Stages, phase: Phase, at_least: usize) -> usize {
    let large = stages.ranks[0].collectives().filter(|c| c.phase == phase && c.full_bytes / c.values >= at_least);
    large.map(|c| if c.name() == "all_reduce" { 2 * c.values } else { c.values }).sum()
}

/// One line for every collective of rank 0.
pub fn list(stages: &Stages) -> String {
    let line = |c: &Collective| {
        let values = if c.values > 1 { format!(" ({} values)", c.values) } else { String::new() };
        format!("{} {} {}{values} {} bytes: {}", c.phase.name(), c.name(), c.axes, c.full_bytes, c.why)
    };
    stages.ranks[0].collectives().map(line).collect::<Vec<_>>().join("\n")
}

/// The collectives of rank 0 in one phase over one axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// All-reduces of values that are at least as large as an activation.
    pub all_reduces: usize,
    /// All-gathers of such values.
    pub all_gathers: usize,
    /// Reduce-scatters of such values.
    pub reduce_scatters: usize,
    /// All-to-alls of such values.
    pub all_to_alls: usize,
    /// Collectives of smaller values.
    pub small: usize,
}

impl Sent {
    /// What a program sends over an axis in a phase. Large values that share one collective count separately.
    pub fn of(stages: &Stages, axis: &str, phase: Phase, activation: usize) -> Self {
        let mut sent = Sent::default();
        for c in stages.ranks[0].collectives().filter(|c| c.phase == phase && over(&c.axes, axis)) {
            let (count, values) = match c.name() {
                _ if c.full_bytes / c.values < activation => (&mut sent.small, 1),
                "all_reduce" => (&mut sent.all_reduces, c.values),
                "all_gather" => (&mut sent.all_gathers, c.values),
                "reduce_scatter" => (&mut sent.reduce_scatters, c.values),
                _ => (&mut sent.all_to_alls, c.values),
            };
            *count += values;
        }
        sent
    }

    /// The large collectives in halves: an all-reduce is a reduce-scatter and an all-gather.
    pub fn halves(&self) -> usize {
        2 * self.all_reduces + self.all_gathers + self.reduce_scatters + self.all_to_alls
    }
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.all_reduces, "AR"),
            (self.all_gathers, "AG"),
            (self.reduce_scatters, "RS"),
            (self.all_to_alls, "A2A"),
            (self.small, "small"),
        ];
        let parts: Vec<String> = counts.iter().filter(|c| c.0 > 0).map(|(n, name)| format!("{n} {name}")).collect();
        f.write_str(&if parts.is_empty() { "0".to_string() } else { parts.join(" + ") })
    }
}

/// Whether the axes of a collective include an axis or a part of it.
pub fn over(axes: &str, axis: &str) -> bool {
    axes.split(|c: char| !c.is_alphanumeric()).any(|a| a == axis)
}
