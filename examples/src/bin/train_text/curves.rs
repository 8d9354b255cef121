//! Compares two loss curves.

/// How far two runs of one computation may drift apart, relatively, because of the order of their sums.
const TOLERANCE: f64 = 1e-3;

/// Prints some points of two curves and their largest difference. Returns whether they are equal.
pub fn compare(losses: &[f64], alone: &[f64], ranks: usize) -> bool {
    println!("\n{:>6}{:>12}{:>12}{:>12}", "step", format!("{ranks} ranks"), "1 rank", "relative");
    let difference = |(a, b): (&f64, &f64)| (a - b).abs() / b.abs();
    let every = losses.len().div_ceil(10);
    for (i, pair) in losses.iter().zip(alone).enumerate() {
        if i == 0 || (i + 1) % every == 0 {
            println!("{:>6}{:>12.5}{:>12.5}{:>12.1e}", i + 1, pair.0, pair.1, difference(pair));
        }
    }
    let (at, largest) =
        losses.iter().zip(alone).map(difference).enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default();
    let equal = largest <= TOLERANCE;
    let verdict = if equal { "the curves are equal" } else { "the curves differ" };
    println!("largest relative difference {largest:.1e}, at step {}; {TOLERANCE:.0e} is allowed: {verdict}", at + 1);
    equal
}
