//! Prints what the ranks exchanged, and what they hold.

use std::collections::BTreeMap;
use tpc::{InputKind, RankProgram, Session};

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// Prints the counters of rank 0's communicator. The first step has a separate program; the others share one.
pub fn print_collectives(session: &Session, steps: u64) {
    let predicted = session.interface().collectives().count() as u64;
    let (mut executed, mut bytes) = (0, 0.0);
    println!("\nCollectives of rank 0 in one step, as executed:");
    println!(
        "{:>5}  {:<15}{:<6}{:<10}{:>12}{:>14}{:>12}",
        "count", "kind", "axes", "phase", "full KiB", "sent KiB", "ms"
    );
    for c in session.collectives(0) {
        let per_step = |x: f64| x / steps as f64;
        println!(
            "{:>5}  {:<15}{:<6}{:<10}{:>12.1}{:>14.1}{:>12.2}",
            per_step(c.count as f64),
            c.name,
            c.axes,
            c.phase.name(),
            c.full_bytes as f64 / 1024.0,
            per_step(c.wire_bytes) / 1024.0,
            per_step(c.seconds) * 1e3,
        );
        executed += c.count;
        bytes += per_step(c.wire_bytes);
    }
    println!("together {:.2} MiB sent; {} collectives executed, {} predicted", mib(bytes), executed, predicted * steps);
}

/// Replaces numbers in a path: `model.layers.3.mlp` becomes `model.layers.*.mlp`.
fn with_star(name: &str) -> String {
    let star = |part| if str::parse::<usize>(part).is_ok() { "*" } else { part };
    name.split('.').map(star).collect::<Vec<_>>().join(".")
}

/// Sizes in bytes of the inputs of one kind: the parts that this rank holds, all whole inputs, and, by name, the inputs
/// that this rank holds completely.
fn held(program: &RankProgram, kind: InputKind) -> (usize, usize, BTreeMap<String, usize>) {
    let (mut local, mut global, mut whole) = (0, 0, BTreeMap::new());
    for input in program.inputs.iter().filter(|i| i.kind == kind) {
        let b = &input.binding;
        let size = b.view.dtype.bytes();
        local += b.view.elements() * size;
        global += b.global.iter().product::<usize>() * size;
        if b.view.shape == b.global {
            *whole.entry(with_star(&input.name)).or_default() += b.view.elements() * size;
        }
    }
    (local, global, whole)
}

pub fn print_memory(session: &Session) {
    println!("\nMemory per rank, in MiB:");
    println!("{:>4}{:>12}{:>12}{:>12}{:>12}", "rank", "parameters", "optimizer", "arena", "scratch");
    for rank in 0..session.ranks() {
        let [parameters, state] = [InputKind::Parameter, InputKind::State].map(|k| held(session.program(rank), k).0);
        let row =
            [parameters, state, session.allocated_bytes(rank), session.scratch_bytes(rank)].map(|b| mib(b as f64));
        println!("{rank:>4}{:>12.2}{:>12.2}{:>12.2}{:>12.2}", row[0], row[1], row[2], row[3]);
    }
    let (_, global, whole) = held(session.interface(), InputKind::Parameter);
    // Training and validation alternate in one arena, which has the larger of the two sizes.
    let predicted = |rank: usize| session.programs().map(|ranks| ranks[rank].arena_bytes).max();
    let exact = (0..session.ranks()).all(|rank| predicted(rank) == Some(session.allocated_bytes(rank)));
    println!("arenas hold parameters, optimizer state and all that lives during a step; as predicted: {exact}");
    println!("the whole model has {:.2} MiB of parameters", mib(global as f64));
    println!("parameters that every rank holds entirely ({:.1} KiB):", whole.values().sum::<usize>() as f64 / 1024.0);
    for (name, bytes) in whole {
        println!("  {name} ({:.1} KiB)", bytes as f64 / 1024.0);
    }
}
