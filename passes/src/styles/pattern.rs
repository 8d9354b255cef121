//! Path patterns: dotted module paths with wildcards in their segments.
//!
//! | pattern | matches |
//! |---|---|
//! | `*` | any run of characters inside a segment |
//! | `?` | one character inside a segment |
//! | `[abx-z]` | one of these characters; a `]` in the first position is one of them |
//! | `[!abx-z]`, `[^abx-z]` | one character inside a segment that is none of these |
//! | `{a,b.c}` | one of these patterns, which may have braces themselves |
//!
//! A dot separates two segments of a path, and only a dot matches it. A name that contains a dot is one segment, and
//! `[.]` matches a dot in a name. A backslash makes a character a part of a name, as in the text of a path
//! ([`ModulePath`]). The empty pattern matches the root.
//!
//! A pattern is compiled to a nondeterministic automaton with at most one state per character of its text. Matching
//! visits every state at most three times per character of the path. The time is thus at most proportional to the
//! length of the pattern times that of the path, and the memory to the length of the pattern.

use std::fmt;
use std::ops::RangeInclusive;
use strsim::levenshtein;
use tpc_ir::path::unescaped;
use tpc_ir::quote::{MOST, cut};
use tpc_ir::{ModulePath, Segment};

/// A path pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    states: Vec<State>,
}

/// Why a text is not a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A bracket that is not closed.
    #[error("the `{0}` at character {1} is never closed")]
    Unclosed(char, usize),
    /// A range from a higher to a lower character.
    #[error("the range `{}` holds no character: write `{}`", range(*.0, *.1), range(*.1, *.0))]
    Backward(char, char),
}

/// The text of a range in a pattern.
fn range(low: char, high: char) -> String {
    cut(&format!("{low}-{high}")).to_string()
}

/// A state of the automaton. Unless it says otherwise, the state after it in the list follows.
#[derive(Clone, Debug)]
enum State {
    /// Exactly this character.
    One(char),
    /// The end of a segment that is followed by another one.
    Next,
    /// Any character of a segment.
    Any,
    /// Any run of characters of a segment.
    Run,
    /// No character of a segment, for an escape that stands for none.
    Nothing,
    Set(Set),
    /// Continues at each of some states.
    Fork(Vec<usize>),
    /// Continues at another state.
    Jump(usize),
    End,
}

#[derive(Clone, Debug)]
struct Set {
    excludes: bool,
    ranges: Vec<RangeInclusive<char>>,
}

impl Set {
    /// Parses the set after a `[` at `start`. Also returns the number of its characters, including the `]`.
    fn parse(text: &[char], start: usize) -> Result<(Set, usize), PatternError> {
        let unclosed = PatternError::Unclosed('[', start);
        let excludes = matches!(text.first(), Some('!' | '^'));
        let first = usize::from(excludes);
        let mut at = first;
        let mut ranges = Vec::new();
        loop {
            let low = *text.get(at).ok_or(unclosed)?;
            if low == ']' && at > first {
                return Ok((Set { excludes, ranges }, at + 1));
            }
            match (text.get(at + 1), text.get(at + 2)) {
                (Some('-'), Some(&high)) if high != ']' => {
                    if high < low {
                        return Err(PatternError::Backward(low, high));
                    }
                    ranges.push(low..=high);
                    at += 3;
                }
                _ => {
                    ranges.push(low..=low);
                    at += 1;
                }
            }
        }
    }

    /// Whether the set contains a character. Each range that is tested counts as a step.
    fn holds(&self, c: char, steps: &mut usize) -> bool {
        let found = self.ranges.iter().position(|range| range.contains(&c));
        *steps += found.unwrap_or(self.ranges.len());
        found.is_some() != self.excludes
    }
}

/// An open brace: the fork at its beginning, the first states of its alternatives, and the jumps at their ends.
struct Brace {
    start: usize,
    fork: usize,
    begins: Vec<usize>,
    ends: Vec<usize>,
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// A bracket is not closed, or a range is reversed.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let text: Vec<char> = text.chars().collect();
        let mut states = Vec::new();
        let mut open: Vec<Brace> = Vec::new();
        let mut at = 0;
        while let Some(&c) = text.get(at) {
            at += 1;
            match c {
                '*' => states.push(State::Run),
                '?' => states.push(State::Any),
                '[' => {
                    let (set, len) = Set::parse(&text[at..], at)?;
                    states.push(State::Set(set));
                    at += len;
                }
                '{' => {
                    open.push(Brace {
                        start: at,
                        fork: states.len(),
                        begins: vec![states.len() + 1],
                        ends: Vec::new(),
                    });
                    states.push(State::Fork(Vec::new()));
                }
                ',' | '}' if !open.is_empty() => {
                    let next = states.len() + 1;
                    states.push(State::Jump(next));
                    let Some(brace) = open.last_mut() else { continue };
                    brace.ends.push(next - 1);
                    if c == ',' {
                        brace.begins.push(next);
                    } else if let Some(Brace { fork, begins, ends, .. }) = open.pop() {
                        states[fork] = State::Fork(begins);
                        ends.into_iter().for_each(|end| states[end] = State::Jump(next));
                    }
                }
                '.' => states.push(State::Next),
                '\\' => {
                    let mut rest = text[at..].iter().copied().peekable();
                    states.push(unescaped(&mut rest).map_or(State::Nothing, State::One));
                    at = text.len() - rest.len();
                }
                c => states.push(State::One(c)),
            }
        }
        if let Some(brace) = open.first() {
            return Err(PatternError::Unclosed('{', brace.start));
        }
        states.push(State::End);
        Ok(Pattern { states })
    }

    /// Whether the pattern matches a path.
    pub fn matches(&self, path: &ModulePath) -> bool {
        self.matches_in_steps(path).0
    }

    /// Whether the pattern matches, and the number of visited states. This is at most three per character of the
    /// pattern, for the beginning and for each character of the path.
    pub fn matches_in_steps(&self, path: &ModulePath) -> (bool, usize) {
        let mut steps = 0;
        let mut now = Reached::new(self.states.len());
        let mut next = Reached::new(self.states.len());
        now.enter(&self.states, 0, false, &mut steps);
        if !path.is_root() {
            now.begin_segment(&self.states, &mut next, &mut steps);
            std::mem::swap(&mut now, &mut next);
        }
        for c in characters(path) {
            next.clear();
            for &at in &now.list {
                let goes_on = match (&self.states[at], c) {
                    (State::One(one), Some(c)) => *one == c,
                    (State::Any, Some(_)) | (State::Next, None) => true,
                    (State::Set(set), Some(c)) => set.holds(c, &mut steps),
                    (State::Run, Some(_)) => {
                        next.enter(&self.states, at, true, &mut steps);
                        false
                    }
                    _ => false,
                };
                if goes_on {
                    next.enter(&self.states, at + 1, true, &mut steps);
                }
            }
            std::mem::swap(&mut now, &mut next);
        }
        (now.holds[self.states.len() - 1], steps)
    }
}

/// The characters of the segments of a path, with `None` between two segments.
fn characters(path: &ModulePath) -> impl Iterator<Item = Option<char>> {
    let mut all = Vec::new();
    for (i, segment) in path.segments().iter().enumerate() {
        all.extend((i > 0).then_some(None));
        match segment {
            Segment::Name(name) => all.extend(name.chars().map(Some)),
            Segment::Index(index) => all.extend(index.to_string().chars().map(Some)),
        }
    }
    all.into_iter()
}

/// The states that are reached before a character.
struct Reached {
    list: Vec<usize>,
    holds: Vec<bool>,
    open: Vec<usize>,
}

impl Reached {
    fn new(states: usize) -> Self {
        Reached { list: Vec::new(), holds: vec![false; states], open: Vec::new() }
    }

    fn clear(&mut self) {
        for at in self.list.drain(..) {
            self.holds[at] = false;
        }
    }

    /// Adds a state and all states that can be reached from it without a character. A run of no characters and an
    /// escape that stands for no character are parts of a segment, so they can only be skipped inside one.
    fn enter(&mut self, states: &[State], at: usize, in_segment: bool, steps: &mut usize) {
        self.open.push(at);
        while let Some(at) = self.open.pop() {
            *steps += 1;
            if std::mem::replace(&mut self.holds[at], true) {
                continue;
            }
            self.list.push(at);
            match &states[at] {
                State::Run | State::Nothing if in_segment => self.open.push(at + 1),
                State::Fork(begins) => self.open.extend(begins),
                State::Jump(to) => self.open.push(*to),
                _ => {}
            }
        }
    }

    /// Enters the first segment of a path, given the states before it. A segment without characters is not the root, so
    /// the pattern may only end after it if a part of the pattern matches the segment.
    fn begin_segment(&self, states: &[State], inside: &mut Reached, steps: &mut usize) {
        for &at in &self.list {
            if !matches!(states[at], State::Fork(_) | State::Jump(_) | State::End) {
                inside.enter(states, at, true, steps);
            }
        }
    }
}

/// The existing paths that are most similar to a path that matches nothing, at most three, the most similar one first.
/// The root has no name, so it is not among them.
pub fn nearest<'a>(wanted: &str, existing: impl IntoIterator<Item = &'a ModulePath>) -> Vec<String> {
    // A longer text is not similar to any path, and the distance takes time per character.
    let wanted: String = wanted.chars().take(MOST).collect();
    let named = existing.into_iter().filter(|path| !path.is_root()).map(ToString::to_string);
    let mut scored: Vec<(usize, String)> = named.map(|path| (levenshtein(&wanted, &path), path)).collect();
    scored.sort();
    scored.into_iter().take(3).map(|(_, path)| path).collect()
}

/// The part of an error message that lists the nearest names.
pub(crate) struct Nearest<'a>(pub &'a [String]);

impl fmt::Display for Nearest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => write!(f, "; the model has no submodules, and `` stands for the whole model"),
            names => write!(f, "; the nearest are {}", names.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Pattern::new(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}")).matches(&path.into())
    }

    #[test]
    fn globs_match_per_segment() {
        for (pattern, path, expected) in [
            ("layers.*.mlp", "layers.10.mlp", true),
            ("layers.*", "layers.1.mlp", false),
            ("a.w[qkv]", "a.wq", true),
            ("a.w[qkv]", "a.wo", false),
            ("a.{gate,up}_proj", "a.up_proj", true),
            ("a.{gate,up}_proj", "a.down_proj", false),
            ("h.[0-3].?n", "h.2.ln", true),
            ("h.[0-3].?n", "h.4.ln", false),
            ("", "", true),
            ("", "a", false),
            ("*", "", false),
            ("*", "a", true),
            ("*", "a.b", false),
            ("?", ".", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("*.*", "a.b", true),
            ("{,a}", "", true),
            ("{,*}", "", true),
            ("{a.b,c}.d", "a.b.d", true),
            ("{a.b,c}.d", "c.d", true),
            ("{a.b,c}.d", "a.d", false),
            ("x{a,{b,c}d,}y", "xcdy", true),
            ("x{a,{b,c}d,}y", "xy", true),
            ("x{a,{b,c}d,}y", "xcy", false),
            ("{a}", "a", true),
            ("a,b", "a,b", true),
            ("a}", "a}", true),
            ("größe.?", "größe.ß", true),
            ("a.*", r"a.b\.c", true),
            ("a.b.c", r"a.b\.c", false),
            ("a.b[.]c", r"a.b\.c", true),
            (r"a.b\.c", r"a.b\.c", true),
            (r"a.b\.c", "a.b.c", false),
            (r"a.\*\u{20}", r"a.*\u{20}", true),
            (r"a.\e", r"a.\e", true),
            // A segment without characters is not the root.
            (r"\e", r"\e", true),
            (r"\e", "", false),
            (r"{\e,a}", "", false),
            (r"{\e,a}", r"\e", true),
            ("", r"\e", false),
            ("{,a}", r"\e", false),
            ("{,a}*", r"\e", true),
            ("*", r"\e", true),
            (".a", r"\e.a", true),
            ("{,b}.a", r"\e.a", true),
            // An escape for an invalid character stands for no character, in a path and in a pattern.
            (r"a.b\u{zz}", r"a.b\u{zz}", true),
            (r"a.b\u{zz}", "a.b", true),
            ("a\\", "a\\", true),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    /// `[!0]` and `[^0]` match every layer except 0.
    #[test]
    fn sets_can_exclude() {
        for (pattern, yes, no) in [
            ("h.[!0]", "123a!^", "0."),
            ("h.[^0]", "123a!^", "0."),
            ("h.[!0-2x]", "3y!", "012x."),
            ("h.[0!]", "0!", "1^"),
            ("h.[0^]", "0^", "1!"),
            ("h.[a-]", "a-", "b"),
            ("h.[-a]", "-a", "b"),
            ("h.[]a]", "]a", "b"),
            ("h.[!]a]", "b", "]a"),
            ("h.[a-c-e]", "abc-e", "d"),
            ("h.[*]", "*", "a"),
            ("h.[,{}]", ",{}", "a"),
        ] {
            yes.chars().for_each(|c| assert!(matches(pattern, &format!("h.{c}")), "{pattern} {c}"));
            no.chars().for_each(|c| assert!(!matches(pattern, &format!("h.{c}")), "{pattern} {c}"));
        }
        assert!(!matches("h.[!0]", "h.") && !matches("h.[!0]", "h.12"));
    }

    #[test]
    fn invalid_patterns_are_explained() {
        for (pattern, expected) in [
            ("a.[", "the `[` at character 3 is never closed"),
            ("a.[!", "the `[` at character 3 is never closed"),
            ("[]", "the `[` at character 1 is never closed"),
            ("[!]", "the `[` at character 1 is never closed"),
            ("[a-", "the `[` at character 1 is never closed"),
            ("x{a,{b}", "the `{` at character 2 is never closed"),
            ("{[}]", "the `{` at character 1 is never closed"),
            ("h.[9-0]", "the range `9-0` holds no character: write `0-9`"),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap_err().to_string(), expected, "{pattern}");
        }
    }

    /// Time is counted in visited states: at most three per character of the pattern, for the beginning and for each
    /// character of the path.
    #[test]
    fn matching_takes_time_in_proportion_to_both_lengths() {
        let patterns = [
            "{a,b}".repeat(2000),
            "*".repeat(5000),
            "a*".repeat(5000),
            "{a,b,}*".repeat(2000),
            "[!a-c]?".repeat(1000),
            "{".repeat(5000) + &"}".repeat(5000),
            "{".repeat(2000) + &",a}".repeat(2000),
            format!("{{{}}}*", "a,".repeat(3000)),
            format!("[!{}]*", "xy".repeat(3000)),
        ];
        for pattern in &patterns {
            let compiled = Pattern::new(pattern).unwrap();
            assert!(compiled.states.len() <= pattern.len() + 2);
            for path in [String::new(), "a".repeat(200), "b.".repeat(100), format!("{}c", "ab".repeat(100))] {
                let (_, steps) = compiled.matches_in_steps(&path.as_str().into());
                let most = 3 * (pattern.len() + 2) * (path.len() + 2);
                assert!(steps <= most, "{steps} steps, at most {most}: {}", &pattern[..20]);
            }
        }
        assert!(matches(&"{a,b}".repeat(2000), &"ab".repeat(1000)));
        assert!(!matches(&"{a,b}".repeat(2000), &"ab".repeat(999)));
    }

    #[test]
    fn a_misspelled_path_finds_similar_ones() {
        let paths = ["layers.0.attention", "layers.0.feed_forward", "norm", ""].map(ModulePath::from);
        let nearest = |wanted: &str, paths: &[ModulePath]| super::nearest(wanted, paths);
        assert_eq!(nearest("layers.0.atention", &paths)[0], "layers.0.attention");
        assert_eq!(nearest("x", &paths), ["norm", "layers.0.attention", "layers.0.feed_forward"]);
        assert!(nearest("", &["".into()]).is_empty());
        assert_eq!(nearest(&"x".repeat(1 << 20), &paths).len(), 3);
    }
}
