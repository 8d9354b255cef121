//! Paths of modules and parameters, made of names and indices.
//!
//! A path comes from the module tree as it was captured. A name is one segment, whatever its characters are, and an
//! index is the position of an element in a list. The text form joins the segments with dots and escapes characters
//! that would otherwise be read differently: a backslash makes the next character a part of a name, `\u{a0}` is a
//! character by its number, `\e` is the empty name, and a name that consists of digits starts with a backslash.
//! Characters that have a meaning in a pattern of paths, in a message or between quotation marks are escaped as well,
//! so the text of a path is a pattern that matches only this path.
//!
//! ```
//! use tpc_ir::path::{ModulePath, Segment};
//! let path = ModulePath::from("layers.3.mlp");
//! assert_eq!(path.segments()[1], Segment::Index(3));
//! let odd = path.named("up.weight").named("0");
//! assert_eq!(odd.to_string(), r"layers.3.mlp.up\.weight.\0");
//! assert_eq!(ModulePath::from(odd.to_string()), odd);
//! ```

use serde::{Deserialize, Serialize};
use std::fmt::{self, Write as _};
use std::iter::Peekable;
use std::sync::Arc;

/// One step from a module to something that it contains.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Segment {
    /// The field with a name.
    Name(Arc<str>),
    /// The element at a position of a list.
    Index(usize),
}

/// The path from the root of the model to a module or a parameter. The path of the root has no segments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct ModulePath(Arc<[Segment]>);

impl ModulePath {
    /// Its segments, starting at the root.
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    /// Whether it is the path of the whole model.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// This path extended by a segment.
    #[must_use]
    pub fn with(&self, segment: Segment) -> Self {
        self.0.iter().cloned().chain([segment]).collect()
    }

    /// This path extended by a name, which is one segment.
    #[must_use]
    pub fn named(&self, name: &str) -> Self {
        self.with(Segment::Name(name.into()))
    }

    /// This path extended by all segments of another.
    #[must_use]
    pub fn join(&self, below: &ModulePath) -> Self {
        self.0.iter().chain(&*below.0).cloned().collect()
    }

    /// The path of the module that contains this one; the root for the root itself.
    #[must_use]
    pub fn holder(&self) -> Self {
        match self.0.split_last() {
            Some((_, above)) => ModulePath(above.into()),
            None => self.clone(),
        }
    }

    /// Whether this is the path of the given module or of something inside it.
    pub fn is_in(&self, module: &ModulePath) -> bool {
        self.0.starts_with(&module.0)
    }

    /// Whether this is the path of something inside the given module.
    pub fn is_below(&self, module: &ModulePath) -> bool {
        self.0.len() > module.0.len() && self.is_in(module)
    }

    /// The innermost module that contains both.
    #[must_use]
    pub fn common(&self, other: &ModulePath) -> Self {
        let shared = self.0.iter().zip(&*other.0).take_while(|(a, b)| a == b).count();
        ModulePath(self.0[..shared].into())
    }

    /// This path, then the paths of the modules that contain it, from the inside out. The root comes last.
    pub fn outward(&self) -> impl Iterator<Item = ModulePath> + '_ {
        (0..=self.0.len()).rev().map(|n| ModulePath(self.0[..n].into()))
    }

    /// The same path with its indices replaced in order. An index for which there is no replacement stays.
    #[must_use]
    pub fn with_indices(&self, indices: &mut impl Iterator<Item = usize>) -> Self {
        let of = |segment: &Segment| match segment {
            Segment::Index(i) => Segment::Index(indices.next().unwrap_or(*i)),
            name => name.clone(),
        };
        self.0.iter().map(of).collect()
    }

    /// Its indices, starting at the root.
    pub fn indices(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().filter_map(|segment| match segment {
            Segment::Index(i) => Some(*i),
            Segment::Name(_) => None,
        })
    }

    /// The path that displays a text that the user chose. The text is split at its dots, and a backslash in it is an
    /// ordinary character.
    pub fn showing(text: &str) -> Self {
        if text.is_empty() { ModulePath::default() } else { text.split('.').map(|part| segment(part, false)).collect() }
    }
}

impl FromIterator<Segment> for ModulePath {
    fn from_iter<I: IntoIterator<Item = Segment>>(segments: I) -> Self {
        ModulePath(segments.into_iter().collect())
    }
}

/// The segment with the given characters: an index if they are a number in its usual form, otherwise a name.
fn segment(text: &str, escaped: bool) -> Segment {
    match text.parse::<usize>() {
        Ok(i) if !escaped && i.to_string() == text => Segment::Index(i),
        _ => Segment::Name(text.into()),
    }
}

/// The character of an escape whose backslash has been consumed; `None` for an escape that stands for no character.
pub fn unescaped(chars: &mut Peekable<impl Iterator<Item = char>>) -> Option<char> {
    match chars.next() {
        None => Some('\\'),
        Some('e') => None,
        Some('u') if chars.peek() == Some(&'{') => {
            let code: String = chars.skip(1).take_while(|c| *c != '}').collect();
            u32::from_str_radix(&code, 16).ok().and_then(char::from_u32)
        }
        Some(c) => Some(c),
    }
}

/// Appends a character of a name, escaped if it has a meaning in a path, a pattern or a message.
pub(crate) fn escape(out: &mut impl fmt::Write, c: char) -> fmt::Result {
    match c {
        '\\' | '/' | ',' | ';' | '(' | ')' | '"' | '`' | '{' | '}' | '*' | '?' | '[' | ']' => write!(out, "\\{c}"),
        c if c.is_whitespace() || c.is_control() => write!(out, "\\u{{{:x}}}", u32::from(c)),
        c => out.write_char(c),
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Segment::Index(i) => write!(f, "{i}"),
            Segment::Name(name) if name.is_empty() => f.write_str("\\e"),
            Segment::Name(name) => {
                if matches!(segment(name, false), Segment::Index(_)) {
                    f.write_char('\\')?;
                }
                name.chars().try_for_each(|c| if c == '.' { f.write_str("\\.") } else { escape(f, c) })
            }
        }
    }
}

impl fmt::Display for ModulePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.0.iter().enumerate() {
            f.write_str(if i > 0 { "." } else { "" })?;
            segment.fmt(f)?;
        }
        Ok(())
    }
}

/// Reads the text form.
impl From<&str> for ModulePath {
    fn from(text: &str) -> Self {
        if text.is_empty() {
            return ModulePath::default();
        }
        let (mut segments, mut name, mut escaped) = (Vec::new(), String::new(), false);
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '.' => segments.push(segment(&std::mem::take(&mut name), std::mem::take(&mut escaped))),
                '\\' => {
                    name.extend(unescaped(&mut chars));
                    escaped = true;
                }
                c => name.push(c),
            }
        }
        segments.push(segment(&name, escaped));
        segments.into_iter().collect()
    }
}

/// Reads the text form.
impl From<&String> for ModulePath {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

/// Reads the text form.
impl From<String> for ModulePath {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<ModulePath> for String {
    fn from(path: ModulePath) -> Self {
        path.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Segment {
        Segment::Name(text.into())
    }

    #[test]
    fn every_path_is_read_back() {
        let odd =
            ["", "a", "0", "007", "a.b", ".", "\\", "e", "u{41}", "a/b", "a b", "\n", "\u{a0}", "\"", "{0..3}", "; "];
        for a in odd {
            for b in odd {
                for path in [vec![name(a), name(b)], vec![name(a), Segment::Index(7), name(b)], vec![name(b)]] {
                    let path: ModulePath = path.into_iter().collect();
                    assert_eq!(ModulePath::from(path.to_string()), path, "{path}");
                    assert!(!path.to_string().contains(char::is_whitespace), "{path}");
                }
            }
        }
        assert!(ModulePath::from("").is_root() && ModulePath::default().to_string().is_empty());
    }

    #[test]
    fn a_name_is_not_an_index() {
        assert_eq!(ModulePath::from("a.3.b").segments(), [name("a"), Segment::Index(3), name("b")]);
        assert_eq!(ModulePath::from("a.03").segments(), [name("a"), name("03")]);
        assert_eq!(ModulePath::from(r"a.\3").segments(), [name("a"), name("3")]);
        assert_eq!(ModulePath::showing(r"a\.3").segments(), [name(r"a\"), Segment::Index(3)]);
    }

    #[test]
    fn paths_in_paths() {
        let (inner, outer) = (ModulePath::from("a.1.b"), ModulePath::from("a.1"));
        assert!(inner.is_below(&outer) && inner.is_in(&inner) && !inner.is_below(&inner));
        assert!(!ModulePath::from("a.10").is_in(&outer));
        assert_eq!(inner.common(&"a.1.c".into()), outer);
        assert_eq!(inner.holder(), outer);
        assert_eq!(inner.outward().map(|p| p.to_string()).collect::<Vec<_>>(), ["a.1.b", "a.1", "a", ""]);
        assert_eq!(inner.with_indices(&mut [4].into_iter()).to_string(), "a.4.b");
    }
}
