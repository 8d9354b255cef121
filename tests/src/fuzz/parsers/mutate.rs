//! Almost correct inputs: pieces of valid ones, changed.

use super::dice::Dice;

/// Numbers that are prone to arithmetic errors.
const NUMBERS: [&str; 24] = [
    "0",
    "1",
    "2",
    "-1",
    "+1",
    "01",
    "31",
    "32",
    "33",
    "52",
    "53",
    "255",
    "256",
    "65536",
    "65537",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "-9223372036854775808",
    "0.5",
];

/// Longest input that is made by repeating a part.
const LONGEST: usize = 1 << 16;

/// A valid input, changed in a few places; `tokens` are words that have a meaning to the parser.
pub fn mutated(dice: &mut Dice, corpus: &[Vec<u8>], tokens: &[&str]) -> Vec<u8> {
    let mut input = dice.of(corpus).clone();
    for _ in 0..dice.between(1, 5) {
        change(dice, &mut input, corpus, tokens);
    }
    input
}

/// A sequence of words.
pub fn soup(dice: &mut Dice, tokens: &[&str]) -> Vec<u8> {
    let mut input = String::new();
    for _ in 0..dice.between(0, 40) {
        let word = if dice.one_in(6) { dice.pick(&NUMBERS) } else { dice.pick(tokens) };
        input.push_str(word);
        if dice.one_in(4) {
            input.push_str(dice.pick(&[" ", "\n", ",", ".", ":", "\"", "=", "\t", "é"]));
        }
    }
    input.into_bytes()
}

/// A part of an input, of any length but mostly short.
fn part(dice: &mut Dice, len: usize) -> std::ops::Range<usize> {
    if len == 0 {
        return 0..0;
    }
    let start = dice.below(len);
    let most = (len - start).min(if dice.one_in(4) { len } else { 24 });
    start..start + dice.between(1, most)
}

/// A whole line of an input.
fn line(dice: &mut Dice, input: &[u8]) -> std::ops::Range<usize> {
    if input.is_empty() {
        return 0..0;
    }
    let at = dice.below(input.len());
    let start = input[..at].iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
    let end = input[at..].iter().position(|&b| b == b'\n').map_or(input.len(), |i| at + i + 1);
    start..end
}

/// A run of digits, if there is one.
fn number(dice: &mut Dice, input: &[u8]) -> Option<std::ops::Range<usize>> {
    let digits: Vec<usize> = (0..input.len()).filter(|&i| input[i].is_ascii_digit()).collect();
    let at = *digits.get(dice.below(digits.len().max(1)))?;
    let is_not = |b: &u8| !b.is_ascii_digit();
    let start = input[..at].iter().rposition(is_not).map_or(0, |i| i + 1);
    let end = input[at..].iter().position(is_not).map_or(input.len(), |i| at + i);
    Some(start..end)
}

fn change(dice: &mut Dice, input: &mut Vec<u8>, corpus: &[Vec<u8>], tokens: &[&str]) {
    let at = dice.below(input.len() + 1);
    match dice.below(12) {
        0 if !input.is_empty() => {
            let at = at.min(input.len() - 1);
            input[at] ^= 1 << dice.below(8);
        }
        1 => drop(input.splice(at..at, dice.pick(tokens).bytes())),
        2 => drop(input.drain(part(dice, input.len()))),
        3 => {
            let copy = input[part(dice, input.len())].to_vec();
            input.splice(at..at, copy);
        }
        4 | 5 => {
            if let Some(number) = number(dice, input) {
                input.splice(number, dice.pick(&NUMBERS).bytes());
            }
        }
        6 => {
            let other = dice.of(corpus);
            let piece = other[part(dice, other.len())].to_vec();
            input.splice(at..at, piece);
        }
        7 => input.truncate(at),
        8 => {
            let line = line(dice, input);
            let copy: Vec<u8> = input.drain(line).collect();
            let at = dice.below(input.len() + 1);
            let twice = if dice.one_in(2) { [&copy[..], &copy[..]].concat() } else { copy };
            input.splice(at..at, twice);
        }
        9 => {
            let replaced = part(dice, input.len());
            input.splice(replaced, dice.pick(tokens).bytes());
        }
        10 if dice.one_in(8) => {
            let piece = input[part(dice, input.len())].to_vec();
            let times = (LONGEST.saturating_sub(input.len()) / piece.len().max(1)).min(1 << dice.between(1, 14));
            input.splice(at..at, piece.repeat(times));
        }
        _ => drop(
            input.splice(at..at, dice.pick(&["\0", "\u{1b}[2J", "\u{202e}", "é", "\\", "\"", "{", "[", "\n"]).bytes()),
        ),
    }
}
