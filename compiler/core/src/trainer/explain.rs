//! Describes what a program communicates and holds, as text.

use std::fmt::Write as _;
use tpc_ir::InputKind;
use tpc_ir::program::{Collective, RankPrograms};

/// One line for each kind of collective with its reason, and the memory of the ranks whose programs these are.
pub(super) fn step(what: &str, ranks: &RankPrograms) -> String {
    let mut text = String::new();
    let Some(program) = ranks.first() else { return text };
    let _ = writeln!(text, "{what} on {} ranks, {}", ranks.ranks(), program.mesh);
    let mut kinds: Vec<(&Collective, usize)> = Vec::new();
    for collective in program.collectives() {
        let alike = |(other, _): &&mut (&Collective, usize)| kind(other) == kind(collective);
        match kinds.iter_mut().find(alike) {
            Some((_, count)) => *count += 1,
            None => kinds.push((collective, 1)),
        }
    }
    if kinds.is_empty() {
        let _ = writeln!(text, "  no communication");
    }
    for (collective, count) in &kinds {
        let Collective { axes, phase, full_bytes, why, .. } = collective;
        let bytes = size(*full_bytes as f64);
        let _ = write!(text, "  {count} × {} {axes} of {bytes}, {}", collective.name(), phase.name());
        let _ = match why.is_empty() {
            true => writeln!(text),
            false => writeln!(text, ": {why}"),
        };
    }
    let sent: f64 = program.collectives().map(Collective::wire_bytes).sum();
    let _ = writeln!(text, "  sent by rank {}: {}", program.rank, size(sent));
    for program in ranks {
        let held = |kind| {
            let inputs = program.inputs.iter().filter(|input| input.kind == kind);
            inputs.map(|i| i.binding.view.elements() * i.binding.view.dtype.bytes()).sum::<usize>() as f64
        };
        let (parameters, state) = (size(held(InputKind::Parameter)), size(held(InputKind::State)));
        let arena = size(program.arena_bytes as f64);
        let _ = writeln!(
            text,
            "  memory of rank {}: parameters {parameters}, optimizer state {state}, arena {arena} in total",
            program.rank
        );
    }
    text
}

/// The key by which collectives share a line.
fn kind(c: &Collective) -> impl PartialEq + '_ {
    (c.name(), &c.axes, c.phase, c.dtype, c.full_bytes, &c.why)
}

/// Formats a number of bytes.
fn size(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut size = bytes;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        (size, unit) = (size / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{size:.0} {}", UNITS[0]) } else { format!("{size:.2} {}", UNITS[unit]) }
}
