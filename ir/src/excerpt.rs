//! User text in messages: as much of it as a reader can use, in characters that do nothing to a terminal.
//!
//! A path, a name or a key of 10,000 characters would bury the sentence around it, and an escape sequence in it would be executed by the
//! terminal that shows it.

use std::fmt::Write as _;

/// Characters of user text that a message shows.
pub const LONGEST: usize = 200;

/// A text as messages show it: control characters are escaped, and after [`LONGEST`] characters only the number of the rest is given.
///
/// ```
/// assert_eq!(tpc_ir::excerpt::excerpt("a\u{1b}[31m\n"), "a\\u{1b}[31m\\n");
/// assert_eq!(tpc_ir::excerpt::excerpt(&"x".repeat(10_000)), format!("{}… (9800 more characters)", "x".repeat(200)));
/// ```
pub fn excerpt(text: &str) -> String {
    let mut shown = String::new();
    let mut characters = text.chars();
    characters.by_ref().take(LONGEST).for_each(|c| push(&mut shown, c));
    match characters.count() {
        0 => {}
        more => _ = write!(shown, "… ({more} more characters)"),
    }
    shown
}

/// A message that was put together elsewhere: each word, and each text in quotes or backticks, is shown as an [`excerpt`]. Lines stay lines.
///
/// This holds for messages whose user text is found only here, such as those of the parser of arguments. What is an excerpt already stays
/// as it is.
pub fn excerpts(message: &str) -> String {
    let mut shown = String::new();
    for (i, line) in message.split('\n').enumerate() {
        if i > 0 {
            shown.push('\n');
        }
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            let len = quoted(rest, first).or_else(|| rest.find([' ', '"', '`']).filter(|len| *len > 0));
            let (piece, after) = rest.split_at(len.unwrap_or(match first {
                ' ' | '"' | '`' => 1,
                _ => rest.len(),
            }));
            // The quotes around a text are not its own.
            match piece.len() > 1 && ['"', '`'].contains(&first) {
                true => _ = write!(shown, "{first}{}{first}", once(&piece[1..piece.len() - 1])),
                false => shown.push_str(&once(piece)),
            }
            rest = after;
        }
    }
    shown
}

/// An excerpt, unless the text holds one.
fn once(text: &str) -> String {
    if !text.contains('…') || text.chars().count() > 3 * LONGEST {
        return excerpt(text);
    }
    let mut shown = String::new();
    text.chars().for_each(|c| push(&mut shown, c));
    shown
}

/// Bytes of the quoted text that `text` begins with, its quotes included. A backslash before a quote makes it a part of the text.
fn quoted(text: &str, quote: char) -> Option<usize> {
    if !['"', '`'].contains(&quote) {
        return None;
    }
    let mut escaped = false;
    let end = text[1..].find(|c: char| {
        let ends = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })?;
    Some(end + 2)
}

fn push(shown: &mut String, c: char) {
    match c.is_control() {
        true => shown.extend(c.escape_default()),
        false => shown.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_text_is_shown_as_it_is() {
        for text in ["", "model.layers.0", "größe 長", &"x".repeat(LONGEST)] {
            assert_eq!(excerpt(text), text);
            assert_eq!(excerpts(text), text);
        }
    }

    #[test]
    fn what_a_terminal_would_execute_is_escaped() {
        assert_eq!(excerpt("a\tb\r\u{7f}\u{9b}2J"), "a\\tb\\r\\u{7f}\\u{9b}2J");
        assert_eq!(excerpts("no `\u{1b}[2J` here\nnor\u{7} there"), "no `\\u{1b}[2J` here\nnor\\u{7} there");
    }

    #[test]
    fn a_message_keeps_its_own_words() {
        let long = "name ".repeat(2000);
        let (head, more) = (&long[..LONGEST], long.len() - LONGEST);
        let cut = format!("{head}… ({more} more characters)");
        for (open, close) in [("\"", "\""), ("`", "`")] {
            let message =
                |inner: &str| format!("plan entry {open}{inner}{close} matches no module; the nearest are a, b");
            assert_eq!(excerpts(&message(&long)), message(&cut));
            assert_eq!(excerpts(&message(&cut)), message(&cut));
        }
        let word = "x".repeat(1000);
        assert_eq!(
            excerpts(&format!("{word}: No such file; {word}")),
            // The colon is a part of the word that is cut.
            format!("{0}… (801 more characters) No such file; {0}… (800 more characters)", &word[..LONGEST])
        );
        assert_eq!(excerpts("it is \"quo\\\"ted\" and `open"), "it is \"quo\\\"ted\" and `open");
        let sentence = "word ".repeat(2000);
        assert_eq!(excerpts(&sentence), sentence);
    }
}
