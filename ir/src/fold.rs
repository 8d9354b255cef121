//! The folded text form: a block that occurs several times is printed once.
//!
//! A [`Run`] of lines is printed as its first occurrence, in which every number that moves is replaced by its range:
//! `%{184..674}` in a block of 11 occurrences is `%184`, `%233`, …, `%674`. The name of the block is the path whose
//! index tells its occurrences apart; the inputs and the forward, backward and optimizer parts of a layer are blocks of
//! one name. [`parse`](crate::parse) reads the folded form too, and gives the same graph for it as for the full text.
//!
//! ```text
//! block @model.layers ×80 inputs {
//!   %{2..81} = input parameter "model.layers.{0..79}.input_layernorm.weight" : f32[8192]
//! }
//! ```

use crate::block::{Line, Lines, Run, runs};
use crate::graph::Graph;
use crate::text::{self, TYPE_COLUMN};
use std::collections::HashMap;
use std::fmt::Write as _;

/// Prints a graph with repeated blocks folded.
pub fn print(graph: &Graph) -> String {
    let lines = Lines::printed(graph);
    let mut titles: HashMap<usize, String> = HashMap::new();
    for block in lines.blocks() {
        for region in &block.regions {
            let part = if region.inputs { "inputs" } else { region.phase.name() };
            titles.insert(region.run.start, format!("{} ×{} {part}", path(&block.path), region.run.count));
        }
    }
    // The text has lines of nodes, then of module regions, then of outputs. Each kind has its own runs.
    let full = text::print(graph);
    let (header, rest) = full.split_once('\n').unwrap_or((&full, ""));
    let all: Vec<&str> = rest.lines().collect();
    let nodes = all.iter().take_while(|l| l.starts_with('%')).count();
    let regions = all[nodes..].iter().take_while(|l| l.starts_with("region")).count();
    let mut out = format!("{header}\n");
    folded(&mut out, &all[..nodes], lines.runs(), |run| titles.get(&run.start).cloned());
    for (part, name) in [(&all[nodes..nodes + regions], "regions"), (&all[nodes + regions..], "outputs")] {
        let mut known = HashMap::new();
        let read = |l: &&str| {
            let (literals, numbers) = digits(l);
            let next = known.len();
            let numbers = numbers.iter().map(|n| n.parse().unwrap_or(i64::MAX)).collect();
            Line { key: *known.entry(literals.join("#")).or_insert(next), numbers }
        };
        let numbered: Vec<Line> = part.iter().map(read).collect();
        folded(&mut out, part, &runs(&numbered), |run| {
            let (a, b) = (part[run.start], part[run.start + run.period * (run.count - 1)]);
            Some(format!("{} ×{} {name}", path(&varying(a, b)), run.count))
        });
    }
    out
}

/// The folded text of a program with more occurrences of a block, from those of one and of the same with one more: every
/// number moves on by the same step `by` times. `None` if the texts differ in more than numbers.
pub fn extrapolated(text: &str, with_one_more: &str, by: usize) -> Option<String> {
    let mut out = String::new();
    let (mut lines, mut longer) = (text.lines(), with_one_more.lines());
    loop {
        let (line, next) = match (lines.next(), longer.next()) {
            (None, None) => return Some(out),
            (line, next) => (line?, next?),
        };
        let moved = |a: &str, b: &str| moved(a, b, by);
        let line = match (split_type(line), split_type(next)) {
            (Some((a, x)), Some((b, y))) => {
                let indent = a.len() - a.trim_start().len();
                let text = moved(a.trim_start(), b.trim_start())?;
                format!("{:indent$}{text:<TYPE_COLUMN$} : {}", "", moved(x, y)?)
            }
            _ => moved(line, next)?,
        };
        let _ = writeln!(out, "{line}");
    }
}

/// A text with every number moved on `by` times as far as from it to another text.
fn moved(text: &str, next: &str, by: usize) -> Option<String> {
    let ((literals, numbers), (others, next)) = (digits(text), digits(next));
    if literals != others {
        return None;
    }
    let mut out = literals[0].to_string();
    for ((number, next), literal) in numbers.iter().zip(next).zip(&literals[1..]) {
        if *number == next {
            out.push_str(number);
        } else {
            let (number, next): (i64, i64) = (number.parse().ok()?, next.parse().ok()?);
            let _ = write!(out, "{}", number.checked_add((next - number).checked_mul(i64::try_from(by).ok()?)?)?);
        }
        out.push_str(literal);
    }
    Some(out)
}

/// Appends lines to a text, those of runs as blocks.
fn folded(out: &mut String, lines: &[&str], runs: &[Run], title: impl Fn(&Run) -> Option<String>) {
    let mut at = 0;
    let plain = |out: &mut String, lines: &[&str]| {
        for line in lines {
            let _ = writeln!(out, "{line}");
        }
    };
    for run in runs {
        plain(out, &lines[at..run.start]);
        at = run.end();
        let occurrence = |i: usize| &lines[run.start + i * run.period..][..run.period];
        let merged: Option<Vec<String>> =
            occurrence(0).iter().zip(occurrence(run.count - 1)).map(|(a, b)| merge(a, b, run.count)).collect();
        // A run is printed in full if its folded text would not be read back, for example because a name has braces.
        let Some(merged) = merged.filter(|m| reads_back(m, run, lines)) else {
            plain(out, &lines[run.start..at]);
            continue;
        };
        let title = title(run).unwrap_or_else(|| format!("{} ×{}", path(""), run.count));
        let _ = writeln!(out, "block @{title} {{");
        for line in merged {
            let _ = writeln!(out, "  {line}");
        }
        out.push_str("}\n");
    }
    plain(out, &lines[at..]);
}

/// Whether the folded lines expand to the lines of the run, apart from the column of the types.
fn reads_back(merged: &[String], run: &Run, lines: &[&str]) -> bool {
    let squeezed = |l: &str| split_type(l).map_or(l.to_string(), |(a, b)| format!("{a} : {b}"));
    (0..run.count).all(|i| {
        merged
            .iter()
            .zip(&lines[run.start + i * run.period..])
            .all(|(m, line)| occurrence(m, i, run.count).is_some_and(|text| squeezed(&text) == squeezed(line)))
    })
}

/// A path as the name of a block, quoted if it needs to be.
fn path(path: &str) -> String {
    let odd = path.starts_with('"') || path.contains(|c: char| c.is_whitespace() || c.is_control());
    if odd { format!("{path:?}") } else { path.to_string() }
}

/// The path up to the first index in which two lines differ.
fn varying(a: &str, b: &str) -> String {
    let ((literals, x), (_, y)) = (digits(a), digits(b));
    let differ = (0..x.len().min(y.len())).filter(|&i| x[i] != y[i]).map(|i| literals[i]);
    let inner = |c: char| c.is_alphanumeric() || c == '.' || c == '_' || c == '-';
    let paths = differ.filter_map(|l| l.strip_suffix('.')).map(|l| l.rsplit(|c| !inner(c)).next().unwrap_or(l));
    paths.map(String::from).next().unwrap_or_default()
}

/// The parts of a line before and after the colon of its type, which has a column of its own.
fn split_type(line: &str) -> Option<(&str, &str)> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted && line[at..].starts_with(" : ") => return Some((line[..at].trim_end(), &line[at + 3..])),
            _ => {}
        }
    }
    None
}

/// The literals and the numbers of a text, which alternate: there is one literal more than numbers.
fn digits(text: &str) -> (Vec<&str>, Vec<&str>) {
    let (mut literals, mut numbers, mut rest) = (Vec::new(), Vec::new(), text);
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let after = &rest[at..];
        let len = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        literals.push(&rest[..at]);
        numbers.push(&after[..len]);
        rest = &after[len..];
    }
    literals.push(rest);
    (literals, numbers)
}

/// The folded line, given its first and last occurrence; `None` if they differ in more than numbers.
fn merge(first: &str, last: &str, count: usize) -> Option<String> {
    if first.contains(['{', '}']) {
        return None;
    }
    let side = |a: &str, b: &str| {
        let ((literals, x), (others, y)) = (digits(a), digits(b));
        if literals != others {
            return None;
        }
        let mut text = literals[0].to_string();
        for (i, literal) in literals[1..].iter().enumerate() {
            if x[i] == y[i] {
                text.push_str(x[i]);
            } else {
                let _ = write!(text, "{{{}..{}}}", x[i], y[i]);
            }
            text.push_str(literal);
        }
        occurrence(&text, count - 1, count).map(|_| text)
    };
    match (split_type(first), split_type(last)) {
        (Some((a, x)), Some((b, y))) => Some(format!("{:<TYPE_COLUMN$} : {}", side(a, b)?, side(x, y)?)),
        _ => side(first, last),
    }
}

/// A line of a block in one of its occurrences: `%{3..7}` is `%5` in the second of three. `None` if braces hold
/// anything but a range, or if the range does not consist of equal integer steps.
pub fn occurrence(line: &str, which: usize, count: usize) -> Option<String> {
    let (mut text, mut rest) = (String::new(), line);
    while let Some((before, after)) = rest.split_once('{') {
        let (range, tail) = after.split_once('}')?;
        let (first, last) = range.split_once("..")?;
        let (first, last): (i64, i64) = (first.parse().ok()?, last.parse().ok()?);
        let (steps, distance) = (count.checked_sub(1)? as i64, last.checked_sub(first)?);
        let step = if steps == 0 { 0 } else { distance / steps };
        if step.checked_mul(steps)? != distance {
            return None;
        }
        text.push_str(before);
        text.push_str(&(first + step * which as i64).to_string());
        rest = tail;
    }
    text.push_str(rest);
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moving_number_is_folded_to_its_range() {
        let (a, b) = ("%9 = mul %8, f32:0.5 : f32[4] ; in a.0.b", "%13 = mul %12, f32:0.5   : f32[4] ; in a.2.b");
        let merged = merge(a, b, 3).unwrap();
        let left = format!("{:<TYPE_COLUMN$}", "%{9..13} = mul %{8..12}, f32:0.5");
        assert_eq!(merged, format!("{left} : f32[4] ; in a.{{0..2}}.b"));
        let second = occurrence(&merged, 1, 3).unwrap();
        assert_eq!(split_type(&second), Some(("%11 = mul %10, f32:0.5", "f32[4] ; in a.1.b")));
        assert_eq!(occurrence("%{3..4}", 1, 3), None);
        assert_eq!(occurrence("%{7..3}", 2, 3).unwrap(), "%3");
        assert_eq!(varying("output update \"l.0.w\" %3", "output update \"l.4.w\" %9"), "l");
        assert_eq!(merge("output result \"{\" %3", "output result \"{\" %4", 2), None);
    }

    #[test]
    fn numbers_are_extrapolated_and_types_stay_in_their_column() {
        let line = |left: &str, right: &str| format!("  {left:<TYPE_COLUMN$} : {right}\n");
        let (six, seven) = (line("%{9..59} = mul %8, f32:0.5", "f32[4] why: w and 9 more"), "block @l ×6 {\n");
        let (six, seven) = (format!("{seven}{six}"), line("%{9..69} = mul %8, f32:0.5", "f32[4] why: w and 11 more"));
        let seven = format!("block @l ×7 {{\n{seven}");
        let expected = line("%{9..10059} = mul %8, f32:0.5", "f32[4] why: w and 2009 more");
        assert_eq!(extrapolated(&six, &seven, 1000).unwrap(), format!("block @l ×1006 {{\n{expected}"));
        assert_eq!(extrapolated(&six, &seven, 0).unwrap(), six);
        assert_eq!(extrapolated("a %1, %2\n", "a %1, %2, %3\n", 1), None);
        assert_eq!(extrapolated("a\n", "a\nb\n", 1), None);
    }
}
