//! How messages show text that comes from a user: shortened, and with control characters escaped.
//!
//! A name, a path or a value in a message may come from a file, and thus be a megabyte long or have control characters,
//! which could overwrite the terminal. [`cut`] shows its first [`MOST`] characters and the number of all; [`quoted`]
//! does the same between quotation marks, as `{:?}` would.

use std::fmt::{self, Display, Write as _};

/// The greatest number of characters of a text that a message shows.
pub const MOST: usize = 200;

/// A text for a message, without quotation marks.
#[derive(Clone, Copy, Debug)]
pub struct Cut<'a>(&'a str);

/// A text for a message, between quotation marks.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a>(&'a str);

/// The text, at most [`MOST`] characters of it, with control characters escaped.
///
/// ```
/// assert_eq!(tpc_ir::quote::cut("tp\u{1b}[2J").to_string(), "tp\\u{1b}[2J");
/// assert_eq!(tpc_ir::quote::cut(&"x".repeat(5000)).to_string().chars().count(), 200 + "… (5000 characters)".chars().count());
/// ```
pub fn cut(text: &str) -> Cut<'_> {
    Cut(text)
}

/// The text as `{:?}` writes it, at most [`MOST`] characters of it.
pub fn quoted(text: &str) -> Quoted<'_> {
    Quoted(text)
}

/// The beginning of a text that is shown, and the number of all characters if there are more.
fn beginning(text: &str) -> (&str, Option<usize>) {
    match text.char_indices().nth(MOST) {
        Some((end, _)) => (&text[..end], Some(text.chars().count())),
        None => (text, None),
    }
}

/// Whether a character has no width or changes the direction of the text around it.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

impl Display for Cut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, all) = beginning(self.0);
        for c in shown.chars() {
            match c {
                '\n' | '\r' | '\t' => write!(f, "{}", c.escape_default())?,
                c if c.is_control() || is_invisible(c) => write!(f, "{}", c.escape_unicode())?,
                c => f.write_char(c)?,
            }
        }
        all.map_or(Ok(()), |all| write!(f, "… ({all} characters)"))
    }
}

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, all) = beginning(self.0);
        write!(f, "{shown:?}")?;
        all.map_or(Ok(()), |all| write!(f, "… ({all} characters)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_texts_stay_as_they_are() {
        for text in ["", "model.layers.*.mlp", "größe", "a\\b\"c"] {
            assert_eq!(cut(text).to_string(), text);
            assert_eq!(quoted(text).to_string(), format!("{text:?}"));
        }
    }

    #[test]
    fn long_and_hidden_texts_are_made_safe() {
        assert_eq!(cut("a\nb\u{202e}c\u{7f}").to_string(), "a\\nb\\u{202e}c\\u{7f}");
        let long = "é".repeat(MOST + 1);
        assert_eq!(cut(&long).to_string(), format!("{}… (201 characters)", "é".repeat(MOST)));
        assert_eq!(quoted(&long).to_string(), format!("\"{}\"… (201 characters)", "é".repeat(MOST)));
    }
}
