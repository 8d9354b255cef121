//! The duration of a collective, by kind, size and number of ranks.

use super::fit::Point;
use super::program::Ranks;
use crate::Outcome;

/// A kind of collective to measure.
#[derive(Clone, Copy, Debug)]
enum Kind {
    AllReduce,
    AllGather,
    ReduceScatter,
    AllToAll,
}

const KINDS: [Kind; 4] = [Kind::AllReduce, Kind::AllGather, Kind::ReduceScatter, Kind::AllToAll];

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
    KINDS.len() * BYTES.len()
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::AllReduce => "all_reduce",
            Kind::AllGather => "all_gather",
            Kind::ReduceScatter => "reduce_scatter",
            Kind::AllToAll => "all_to_all",
        }
    }

    /// A program with one collective of this kind, on a value of rows and columns that are both divisible by the ranks.
    fn program(self, ranks: usize, [rows, columns]: [usize; 2]) -> String {
        let (whole, first, second) = (
            format!("f32[{rows}, {columns}]"),
            format!("f32[{rows}@all, {columns}]"),
            format!("f32[{rows}, {columns}@all]"),
        );
        let input = |ty: &str| format!("%0 = input data \"x\" : {ty}\n");
        let term = format!("{}%1 = to_partial all sum %0 : {whole} +sum@all  ; forward\n", input(&whole));
        let body = match self {
            Kind::AllReduce => {
                format!("{term}%2 = all_reduce all sum %1 : {whole}  ; forward\noutput result \"y\" %2\n")
            }
            Kind::ReduceScatter => {
                format!("{term}%2 = reduce_scatter all sum dim=0 %1 : {first}  ; forward\noutput result \"y\" %2\n")
            }
            Kind::AllGather => {
                format!("{}%1 = all_gather all dim=0 %0 : {whole}  ; forward\noutput result \"y\" %1\n", input(&first))
            }
            Kind::AllToAll => {
                format!(
                    "{}%1 = all_to_all all from=0 to=1 %0 : {second}  ; forward\noutput result \"y\" %1\n",
                    input(&first)
                )
            }
        };
        format!("mesh <all={ranks}>\n{body}")
    }
}

/// Measures all collectives of a group of ranks. Returns for each its description, the bytes that a rank sends, and the
/// time of the fastest step.
pub(super) fn measure(machine: &Ranks, ranks: usize) -> Outcome<Vec<(String, Point)>> {
    let mut found = Vec::new();
    for kind in KINDS {
        for bytes in BYTES {
            // The number of columns is divisible by the ranks, and the number of rows gives about the intended size.
            let columns = 64 * ranks;
            let rows = (bytes / 4 / columns).div_ceil(ranks).max(1) * ranks;
            let mut session = machine.launch(&kind.program(ranks, [rows, columns]), 0.5)?;
            let mut sent = 0.0;
            let seconds = machine.fastest(&mut session, |session, _| {
                let counts: Vec<_> = (0..ranks).flat_map(|rank| session.collectives(rank)).collect();
                sent = counts.iter().map(|c| c.wire_bytes).fold(0.0, f64::max);
                counts.iter().map(|c| c.seconds).sum::<f64>() / ranks as f64
            })?;
            let what = format!("{} of {} KiB on {ranks} ranks", kind.name(), rows * columns * 4 / 1024);
            found.push((what, Point { size: sent, seconds }));
        }
    }
    Ok(found)
}
