//! The duration of a collective, by operation, size and number of ranks.

use super::fit::Point;
use super::program::Ranks;
use crate::Outcome;
use tpc_ir::program::CollectiveOp;

/// Sizes of the whole values, in bytes.
const BYTES: [usize; 4] = [4 << 10, 64 << 10, 1 << 20, 8 << 20];

/// Sizes of the groups to measure on a machine with this many ranks: powers of two, and all ranks.
pub(super) fn groups(ranks: usize) -> Vec<usize> {
    let mut groups: Vec<usize> = (1..).map(|i| 1 << i).take_while(|&n| n < ranks).collect();
    if ranks > 1 {
        groups.push(ranks);
    }
    groups
}

/// Number of measurements per group.
pub(super) const fn each_group() -> usize {
    CollectiveOp::ALL.len() * BYTES.len()
}

/// A program with one collective of this operation, on a value of rows and columns that are both divisible by the ranks.
fn program(op: CollectiveOp, ranks: usize, [rows, columns]: [usize; 2]) -> String {
    let (whole, first, second) = (
        format!("f32[{rows}, {columns}]"),
        format!("f32[{rows}@all, {columns}]"),
        format!("f32[{rows}, {columns}@all]"),
    );
    let input = |ty: &str| format!("%0 = input data \"x\" : {ty}\n");
    let term = format!("{}%1 = to_partial all sum %0 : {whole} +sum@all  ; forward\n", input(&whole));
    let body = match op {
        CollectiveOp::AllReduce => {
            format!("{term}%2 = all_reduce all sum %1 : {whole}  ; forward\noutput result \"y\" %2\n")
        }
        CollectiveOp::ReduceScatter => {
            format!("{term}%2 = reduce_scatter all sum dim=0 %1 : {first}  ; forward\noutput result \"y\" %2\n")
        }
        CollectiveOp::AllGather => {
            format!("{}%1 = all_gather all dim=0 %0 : {whole}  ; forward\noutput result \"y\" %1\n", input(&first))
        }
        CollectiveOp::AllToAll => {
            format!(
                "{}%1 = all_to_all all from=0 to=1 %0 : {second}  ; forward\noutput result \"y\" %1\n",
                input(&first)
            )
        }
    };
    format!("mesh <all={ranks}>\n{body}")
}

/// Measures all collectives of a group of ranks. Returns for each its description, the bytes that a rank sends, and the
/// time of the fastest step.
pub(super) fn measure(machine: &Ranks, ranks: usize) -> Outcome<Vec<(String, Point)>> {
    let mut found = Vec::new();
    for op in CollectiveOp::ALL {
        for bytes in BYTES {
            // The number of columns is divisible by the ranks, and the number of rows gives about the intended size.
            let columns = 64 * ranks;
            let rows = (bytes / 4 / columns).div_ceil(ranks).max(1) * ranks;
            let mut session = machine.launch(&program(op, ranks, [rows, columns]), 0.5)?;
            let mut sent = 0.0;
            let seconds = machine.fastest(&mut session, |session, _| {
                let counts: Vec<_> = (0..ranks).flat_map(|rank| session.collectives(rank)).collect();
                sent = counts.iter().map(|c| c.wire_bytes).fold(0.0, f64::max);
                counts.iter().map(|c| c.seconds).sum::<f64>() / ranks as f64
            })?;
            let what = format!("{} of {} KiB on {ranks} ranks", op.name(), rows * columns * 4 / 1024);
            found.push((what, Point { size: sent, seconds }));
        }
    }
    Ok(found)
}
