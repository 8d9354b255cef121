//! What the functions of loops cost a rank.

use super::program::Ranks;
use crate::Outcome;
use std::fmt::Write as _;
use tpc_passes::targets::Loops;

/// Elements of the measured loops.
const ELEMENTS: usize = 1 << 18;
/// Elements of the short rows.
const ROW: usize = 32;
/// Elements to which a function is applied at once in a long row.
const TILE: usize = 1024;
/// Functions of a short and a long body, multiples of the number of functions in turn.
const LENGTHS: [usize; 2] = [8, 40];

/// Arithmetic whose results stay in the range of its operands.
const ARITHMETIC: [&str; 2] = ["mul", "add"];
/// Functions that training uses, in an order in which results stay in the range of ordinary numbers.
const FUNCTIONS: [&str; 4] = ["erf", "sqrt", "exp", "div"];

/// Number of measurements.
pub(super) const COUNT: usize = 6;

/// Seconds that all ranks take to apply one function of a list to all elements in rows of this length. A step also starts and
/// moves its operands; both are the same for a short and a long body, so the difference counts.
fn seconds(machine: &Ranks, functions: &[&str], row: usize) -> Outcome<f64> {
    let (all, one) = (format!("f32[{}, {row}]", ELEMENTS / row), format!("f32[{row}]"));
    let mut times = [0.0; 2];
    for (time, length) in times.iter_mut().zip(LENGTHS) {
        let mut text = format!("{}\n%0 = input data \"a\" : {all}\n%1 = input data \"b\" : {one}\n", machine.mesh());
        for i in 0..length {
            let (f, last, next) = (functions[i % functions.len()], if i == 0 { 0 } else { i + 1 }, i + 2);
            let _ = match f {
                "mul" | "add" | "div" => writeln!(text, "%{next} = {f} \"ab,b->ab\" %{last}, %1 : {all}  ; forward"),
                _ => writeln!(text, "%{next} = {f} %{last} : {all}  ; forward"),
            };
        }
        let _ = writeln!(text, "output result \"c\" %{}", length + 1);
        let mut session = machine.launch(&text, 0.5)?;
        *time = machine.fastest(&mut session, |_, seconds| seconds)?;
    }
    let each = (times[1] - times[0]) / (LENGTHS[1] - LENGTHS[0]) as f64;
    // Because of noise, a long body can seem as fast as a short one.
    Ok(each.max(0.1 * times[1] / LENGTHS[1] as f64))
}

/// Measures loops in long rows and in short ones.
pub(super) fn measure(machine: &Ranks) -> Outcome<Loops> {
    let (long, short) = (seconds(machine, &ARITHMETIC, TILE)?, seconds(machine, &ARITHMETIC, ROW)?);
    let slow = seconds(machine, &FUNCTIONS, TILE)?;
    let pieces = |row: usize| (ELEMENTS / row) as f64;
    let dispatch = ((short - long) / (pieces(ROW) - pieces(TILE))).max(1e-11);
    let rate = |seconds: f64| ELEMENTS as f64 / (seconds - pieces(TILE) * dispatch).max(0.1 * seconds);
    Ok(Loops { arithmetic: rate(long), functions: rate(slow), dispatch })
}
