//! What the functions of loops cost a rank.

use super::program::Ranks;
use crate::Outcome;
use std::fmt::Write as _;
use tpc_passes::targets::Loops;

/// Elements of the measured loops.
const ELEMENTS: usize = 1 << 18;
/// Elements of rows that are long enough not to share a tile.
const ROW: usize = 128;
/// Elements to which a function is applied at once in a long row.
const TILE: usize = 1024;
/// Functions of a short and a long body, multiples of the number of functions in turn.
const LENGTHS: [usize; 2] = [8, 40];

/// Arithmetic whose results stay in the range of its operands.
const ARITHMETIC: [&str; 2] = ["mul", "add"];
/// Divisions and roots, whose results stay in the range of ordinary numbers.
const DIVISIONS: [&str; 2] = ["sqrt", "div"];
/// Functions that training uses, in an order in which results stay in the range of ordinary numbers.
const FUNCTIONS: [&str; 2] = ["erf", "exp"];

/// Elements of a loop over short rows, few enough for all its operands to stay in a core's own caches, which hide most of their
/// movement.
const FEW_ELEMENTS: usize = 1 << 12;
/// Groups of a few rows, whose rows are adjacent in the result and apart in the operands, and elements of a row.
const SHORT: [usize; 2] = [8, 16];
/// Operands of a short and a long body.
const OPERANDS: [usize; 2] = [1, 3];

/// Number of measurements.
pub(super) const COUNT: usize = 10;

/// Seconds that all ranks take for each function by which two bodies differ. A step also starts, and moves its operands, which
/// takes as long for both, so the difference counts.
fn each(machine: &Ranks, lengths: [usize; 2], body: impl Fn(usize) -> String) -> Outcome<f64> {
    let mut times = [0.0; 2];
    for (time, length) in times.iter_mut().zip(lengths) {
        let mut session = machine.launch(&body(length), 0.5)?;
        *time = machine.fastest(&mut session, |_, seconds| seconds)?;
    }
    let each = (times[1] - times[0]) / (lengths[1] - lengths[0]) as f64;
    // Because of noise, a long body can seem as fast as a short one.
    Ok(each.max(0.1 * times[1] / lengths[1] as f64))
}

/// Seconds that it takes to apply one function of a list to all elements in rows of this length.
fn function(machine: &Ranks, functions: &[&str], row: usize) -> Outcome<f64> {
    let (all, one) = (format!("f32[{}, {row}]", ELEMENTS / row), format!("f32[{row}]"));
    each(machine, LENGTHS, |length| {
        let mut text = format!("{}\n%0 = input data \"a\" : {all}\n%1 = input data \"b\" : {one}\n", machine.mesh());
        for i in 0..length {
            let (f, last, next) = (functions[i % functions.len()], if i == 0 { 0 } else { i + 1 }, i + 2);
            let _ = match f {
                "mul" | "add" | "div" => writeln!(text, "%{next} = {f} \"ab,b->ab\" %{last}, %1 : {all}  ; forward"),
                _ => writeln!(text, "%{next} = {f} %{last} : {all}  ; forward"),
            };
        }
        let _ = writeln!(text, "output result \"c\" %{}", length + 1);
        text
    })
}

/// Seconds that it takes to add an operand whose short rows are apart.
fn apart(machine: &Ranks) -> Outcome<f64> {
    let [group, row] = SHORT;
    let groups = FEW_ELEMENTS / (group * row);
    let (all, operand) = (format!("f32[{groups}, {group}, {row}]"), format!("f32[{group}, {groups}, {row}]"));
    each(machine, OPERANDS, |count| {
        let mut text = format!("{}\n%0 = input data \"a\" : {all}\n", machine.mesh());
        for i in 1..=count {
            let _ = writeln!(text, "%{i} = input data \"b{i}\" : {operand}");
        }
        for i in 1..=count {
            let (last, next) = (if i == 1 { 0 } else { count + i - 1 }, count + i);
            let _ = writeln!(text, "%{next} = add \"abc,bac->abc\" %{last}, %{i} : {all}  ; forward");
        }
        let _ = writeln!(text, "output result \"c\" %{}", 2 * count);
        text
    })
}

/// Measures loops in long rows and in shorter ones.
pub(super) fn measure(machine: &Ranks) -> Outcome<Loops> {
    let (long, short) = (function(machine, &ARITHMETIC, TILE)?, function(machine, &ARITHMETIC, ROW)?);
    let (divided, slow) = (function(machine, &DIVISIONS, TILE)?, function(machine, &FUNCTIONS, TILE)?);
    let pieces = |row: usize| (ELEMENTS / row) as f64;
    let dispatch = ((short - long) / (pieces(ROW) - pieces(TILE))).max(1e-11);
    let rate = |seconds: f64| ELEMENTS as f64 / (seconds - pieces(TILE) * dispatch).max(0.1 * seconds);
    // An addition and a load for each tile.
    let copied = apart(machine)?;
    let others = FEW_ELEMENTS as f64 / rate(long) + 2.0 * (FEW_ELEMENTS / TILE) as f64 * dispatch;
    Ok(Loops {
        arithmetic: rate(long),
        divisions: rate(divided),
        functions: rate(slow),
        copies: FEW_ELEMENTS as f64 / (copied - others).max(0.1 * copied),
        dispatch,
    })
}
