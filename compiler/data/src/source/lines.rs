//! A line of JSON: its text or its conversation.

use super::{Format, MESSAGES, TEXT};
use crate::error::LineProblem;
use serde_json::{Map, Value};

/// What to read from each line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// The text of a field.
    Text(String),
    /// A conversation.
    Messages,
}

impl Reading {
    /// How to read lines, if the file has lines.
    pub(super) fn of(format: &Format, name: &str) -> Option<Self> {
        let name = name.trim_end_matches(".gz").trim_end_matches(".zst");
        match format {
            Format::Field(field) => Some(Reading::Text(field.clone())),
            Format::Chat => Some(Reading::Messages),
            Format::ByName if name.ends_with(".jsonl") || name.ends_with(".ndjson") => Some(Reading::Text(TEXT.into())),
            Format::ByName => None,
        }
    }

    /// Parses a line.
    pub(super) fn text(&self, line: &str) -> Result<Line, LineProblem> {
        let value: Value = serde_json::from_str(line).map_err(|e| LineProblem::Json(json_problem(&e)))?;
        let Value::Object(mut object) = value else { return Err(LineProblem::NoObject) };
        match self {
            Reading::Text(field) => match object.remove(field) {
                Some(Value::String(text)) => Ok(Line::Text(text)),
                Some(other) => Err(wrong(field, "a text", &other)),
                None => Err(missing(field, &object)),
            },
            Reading::Messages => {
                let messages = object.remove(MESSAGES).ok_or_else(|| missing(MESSAGES, &object))?;
                check_messages(&messages)?;
                Ok(Line::Chat { messages, tools: object.remove("tools") })
            }
        }
    }
}

/// The contents of a line.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Line {
    Text(String),
    Chat { messages: Value, tools: Option<Value> },
}

impl Line {
    /// Whether there is nothing to train on.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Line::Text(text) => text.is_empty(),
            Line::Chat { messages, .. } => messages.as_array().is_none_or(Vec::is_empty),
        }
    }
}

/// Checks that a conversation is a list of objects with a role; their other keys concern only the template.
fn check_messages(messages: &Value) -> Result<(), LineProblem> {
    const EXPECTED: &str = "a list of objects with \"role\" and \"content\"";
    let Value::Array(list) = messages else { return Err(wrong(MESSAGES, EXPECTED, messages)) };
    match list.iter().find(|message| !message.get("role").is_some_and(Value::is_string)) {
        Some(other) => Err(wrong(MESSAGES, EXPECTED, other)),
        None => Ok(()),
    }
}

fn missing(field: &str, object: &Map<String, Value>) -> LineProblem {
    LineProblem::NoField { field: field.into(), found: object.keys().cloned().collect() }
}

fn wrong(field: &str, expected: &'static str, found: &Value) -> LineProblem {
    LineProblem::WrongField { field: field.into(), expected, found: found.to_string() }
}

/// serde's message without its line number, which is always 1 here.
fn json_problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let at = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&at) {
        Some(problem) => format!("{problem} at column {}", error.column()),
        None => text,
    }
}
