//! Tables as text: columns, and numbers with three digits.

use serde_json::{Value as Json, json};

/// Formats rows as columns. The columns of `left` are aligned to the left, the others to the right.
pub(crate) fn aligned<const N: usize>(cells: &[[String; N]], left: &[usize]) -> String {
    let width = |at: usize| cells.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cell = |at: usize| match left.contains(&at) {
            true => format!("{:<1$}", row[at], widths[at]),
            false => format!("{:>1$}", row[at], widths[at]),
        };
        (0..N).map(cell).collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    cells.iter().map(|row| line(row) + "\n").collect()
}

/// Formats a number with three digits and the largest unit that makes it at least 1.
fn scaled(x: f64, units: &[(f64, &str)]) -> String {
    let &(factor, unit) = units.iter().rev().find(|(factor, _)| x >= *factor).unwrap_or(&units[0]);
    let x = x / factor;
    let digits = if x < 10.0 { 2 } else { usize::from(x < 100.0) };
    format!("{x:.digits$} {unit}")
}

pub(crate) fn seconds(x: f64) -> String {
    scaled(x, &[(1e-6, "us"), (1e-3, "ms"), (1.0, "s")])
}

pub(crate) fn bytes(x: f64) -> String {
    scaled(x, &[(1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB")])
}

/// Floating-point operations per second.
pub(crate) fn operations(x: f64) -> String {
    scaled(x, &[(1e9, "GFLOP/s"), (1e12, "TFLOP/s")])
}

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Bytes,
    Pieces,
}

impl Unit {
    pub(crate) fn text(self, x: f64) -> String {
        match self {
            _ if x == 0.0 => "0".into(),
            Unit::Seconds => seconds(x),
            Unit::Bytes => bytes(x),
            Unit::Pieces => format!("{x:.0}"),
        }
    }

    /// Two numbers that are the same text are shown as one.
    pub(crate) fn both(self, [a, b]: [f64; 2]) -> String {
        let (a, b) = (self.text(a), self.text(b));
        if a == b { a } else { format!("{a} → {b}") }
    }

    /// How much the second number is larger or smaller than the first; empty if they are equal.
    pub(crate) fn change(self, [a, b]: [f64; 2]) -> String {
        let sign = if b > a { "+" } else { "-" };
        if a == b { String::new() } else { format!("{sign}{}", self.text((b - a).abs())) }
    }

    /// The number as JSON. Bytes of the ring formula are rounded.
    pub(crate) fn json(self, x: f64) -> Json {
        if self == Unit::Seconds { json!(x) } else { json!(x.round() as u64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!(
            [0.0, 2.5e-7, 3.14159e-3, 0.713, 12.34, 123.4].map(seconds),
            ["0.00 us", "0.25 us", "3.14 ms", "713 ms", "12.3 s", "123 s"]
        );
        assert_eq!([0.0, 999.0, 80e9].map(bytes), ["0.00 kB", "1.00 kB", "80.0 GB"]);
        assert_eq!([60e9, 989.5e12].map(operations), ["60.0 GFLOP/s", "990 TFLOP/s"]);
    }

    #[test]
    fn two_numbers_show_what_changes() {
        let shown = |unit: Unit, pair| (unit.both(pair), unit.change(pair));
        assert_eq!(shown(Unit::Pieces, [3.0, 1.0]), ("3 → 1".into(), "-2".into()));
        assert_eq!(shown(Unit::Bytes, [1e6, 3e6]), ("1.00 MB → 3.00 MB".into(), "+2.00 MB".into()));
        assert_eq!(shown(Unit::Seconds, [1e-3, 1e-3]), ("1.00 ms".into(), String::new()));
    }
}
