//! JSON as written by Python, where `NaN`, `Infinity` and `-Infinity` are numbers, unlike in standard JSON.
//!
//! Such a number is stored as a marked string, which no reader accepts as a number, and is printed as Python's literal.
//! A key that no code reads therefore keeps its value when a configuration is saved.

use serde_json::Value;

/// The literals of Python's `json` that are not standard JSON.
const LITERALS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
/// The mark of a string that stands for such a literal. A NUL does not occur in a configuration.
const MARK: &str = "\0python:";
/// [`MARK`] as JSON escapes it inside a string.
const MARK_IN_JSON: &str = "\\u0000python:";

/// Parses JSON that may contain Python's literals instead of numbers.
pub(super) fn parse(text: &str) -> serde_json::Result<Value> {
    // Most files have no such literal, and their errors then name the column in the file.
    match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        Err(error) => match marked(text) {
            Some(text) => serde_json::from_str(&text),
            None => Err(error),
        },
    }
}

/// Prints a value with indentation, with Python's literals.
pub(super) fn print(value: &Value) -> String {
    unmarked(format!("{value:#}"))
}

/// Prints a value on one line.
pub(super) fn print_brief(value: &Value) -> String {
    unmarked(value.to_string())
}

/// The text with every literal outside of strings replaced by a marked string; `None` if there is none.
fn marked(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len() + 64);
    let (mut in_string, mut escaped, mut copied, mut at) = (false, false, 0, 0);
    let bytes = text.as_bytes();
    while let Some(&byte) = bytes.get(at) {
        if in_string {
            (in_string, escaped) = (escaped || byte != b'"', !escaped && byte == b'\\');
        } else if byte == b'"' {
            in_string = true;
        } else if matches!(byte, b'-' | b'I' | b'N')
            && let Some(literal) = LITERALS.into_iter().find(|literal| bytes[at..].starts_with(literal.as_bytes()))
        {
            out.push_str(&text[copied..at]);
            out.push_str(&format!("\"{MARK_IN_JSON}{literal}\""));
            at += literal.len();
            copied = at;
            continue;
        }
        at += 1;
    }
    out.push_str(&text[copied..]);
    (copied > 0).then_some(out)
}

fn unmarked(mut text: String) -> String {
    if text.contains(MARK_IN_JSON) {
        for literal in LITERALS {
            text = text.replace(&format!("\"{MARK_IN_JSON}{literal}\""), literal);
        }
    }
    text
}

/// Whether a value is one of Python's literals.
pub(super) fn is_literal(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.starts_with(MARK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_kept_and_strings_are_not_touched() {
        let text =
            r#"{"a": NaN, "b": [-Infinity, Infinity,NaN], "s": "NaN \" Infinity \\", "t": "-Infinity", "u": -1.5}"#;
        let value = parse(text).unwrap();
        assert!(is_literal(&value["a"]) && is_literal(&value["b"][0]));
        assert_eq!(value["s"], "NaN \" Infinity \\");
        assert_eq!(value["t"], "-Infinity");
        assert!(!is_literal(&value["t"]) && !is_literal(&value["u"]));
        assert_eq!(
            print_brief(&value),
            r#"{"a":NaN,"b":[-Infinity,Infinity,NaN],"s":"NaN \" Infinity \\","t":"-Infinity","u":-1.5}"#
        );
        assert_eq!(parse(&print(&value)).unwrap(), value);
    }

    #[test]
    fn what_is_no_literal_stays_an_error() {
        for text in
            ["{\"a\": nan}", "{\"a\": Infinit}", "{\"a\": NaN", "{\"a\": \"NaN}", "Infinity1", "{\"a\": NaNNaN}", "-"]
        {
            parse(text).unwrap_err();
        }
        assert!(is_literal(&parse("Infinity").unwrap()));
    }
}
