//! The last step of every message: text from the user that was inserted verbatim is shortened and escaped here.
//!
//! Errors that quote a user's text shorten it themselves ([`cut`]). Errors of the argument parser, errors of the system
//! and errors that print a path cannot.

use std::ffi::OsString;
use std::fmt::Write as _;
use tpc_ir::quote::{MOST, cut};

/// Shortens the arguments in a message, and every other word and every text in quotes or backticks. Line breaks stay,
/// and text that is already shortened stays as it is.
pub(crate) fn shown(message: &str, arguments: &[OsString]) -> String {
    let mut message = message.to_string();
    for argument in arguments {
        let argument = argument.to_string_lossy();
        // The text after `=` in an argument is a separate value.
        let value = argument.split_once('=').map(|(_, value)| value);
        for text in [Some(&*argument), value].into_iter().flatten() {
            let short = cut(text).to_string();
            if short != text {
                message = message.replace(text, &short);
            }
        }
    }
    let lines: Vec<String> = message.split('\n').map(line).collect();
    lines.join("\n")
}

fn line(line: &str) -> String {
    let mut shown = String::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let is_quote = ['"', '`'].contains(&first);
        let word = || rest.find([' ', '"', '`']).unwrap_or(rest.len());
        let quoted = quoted(rest, first).filter(|_| is_quote);
        let (piece, after) = rest.split_at(quoted.unwrap_or_else(|| word().max(1)));
        // The quotes around a text do not belong to it.
        match quoted {
            Some(end) => _ = write!(shown, "{first}{}{first}", once(&piece[1..end - 1])),
            None => shown.push_str(&once(piece)),
        }
        rest = after;
    }
    shown
}

/// Shortens a text unless part of it is already shortened.
fn once(text: &str) -> String {
    let (mut shown, mut rest) = (String::new(), text);
    if text.contains('…') && text.chars().count() <= 3 * MOST {
        // In pieces, because only control characters may change.
        while let Some((end, _)) = rest.char_indices().nth(MOST) {
            _ = write!(shown, "{}", cut(&rest[..end]));
            rest = &rest[end..];
        }
    }
    shown + &cut(rest).to_string()
}

/// Length in bytes of the quoted text at the beginning of `text`, including the quotes. A quote after a backslash
/// belongs to the text.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    let end = text.get(1..)?.find(|c: char| {
        let ends = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })?;
    Some(end + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(message: &str) -> String {
        shown(message, &[])
    }

    #[test]
    fn short_text_is_shown_as_it_is() {
        for text in
            ["", "model.layers.0", "größe 長", &"x".repeat(MOST), "a \"b\" `c` d", "it is \"quo\\\"ted\" and `open"]
        {
            assert_eq!(plain(text), text);
        }
        let sentence = "word ".repeat(2000);
        assert_eq!(plain(&sentence), sentence);
    }

    #[test]
    fn what_a_terminal_would_execute_is_escaped() {
        assert_eq!(plain("no `\u{1b}[2J` here\nnor\u{7} there"), "no `\\u{1b}[2J` here\nnor\\u{7} there");
        let arguments = ["a\nb".into(), "--plan=\u{1b}c".into()];
        assert_eq!(shown("a\nb: no file\n\u{1b}c", &arguments), "a\\nb: no file\n\\u{1b}c");
    }

    #[test]
    fn a_message_keeps_its_own_words() {
        let long = "name ".repeat(2000);
        let short = cut(&long).to_string();
        for (open, close) in [("\"", "\""), ("`", "`")] {
            let message =
                |inner: &str| format!("plan entry {open}{inner}{close} matches no module; the nearest are a, b");
            assert_eq!(plain(&message(&long)), message(&short));
            assert_eq!(plain(&message(&short)), message(&short));
        }
        assert_eq!(shown(&format!("{long}/a: no file"), &[long.clone().into()]), format!("{short}/a: no file"));
        let word = "x".repeat(1000);
        // The colon belongs to the word that is shortened.
        let expected = format!("{0}… (1001 characters) no; {0}… (1000 characters)", &word[..MOST]);
        assert_eq!(plain(&format!("{word}: no; {word}")), expected);
        assert_eq!(plain(&expected), expected);
    }
}
