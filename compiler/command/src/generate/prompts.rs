//! The prompts of a command, from the command line or from a file with one prompt per line.

use crate::{Failure, Outcome};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Prompt {
    /// A text.
    Text(String),
    /// Its tokens.
    Tokens(Vec<i64>),
    /// The messages of a conversation, which the model answers.
    Messages(Vec<Value>),
}

/// Reads a file of prompts: a text in each line or, if the first line begins with `{`, JSON objects with a `prompt`,
/// with `tokens` or with `messages`.
///
/// # Errors
/// A file that cannot be read, is not UTF-8 or has no prompts; a line that is not such an object.
pub(super) fn read(file: &Path) -> Outcome<Vec<Prompt>> {
    let bytes = fs::read(file).map_err(|e| Failure::at(file, e))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        Failure::at(file, format!("byte {} is not the beginning of a UTF-8 character", e.utf8_error().valid_up_to()))
    })?;
    let lines = || text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let json = lines().next().is_some_and(|(_, line)| line.trim_start().starts_with('{'));
    let prompts: Outcome<Vec<Prompt>> = lines()
        .map(|(number, line)| match json {
            true => object(line).map_err(|problem| Failure::at(file, format!("line {}: {problem}", number + 1))),
            false => Ok(Prompt::Text(line.into())),
        })
        .collect();
    match prompts? {
        prompts if prompts.is_empty() => {
            Err(Failure::at(file, "has no prompts: each line must be a text or a JSON object"))
        }
        prompts => Ok(prompts),
    }
}

fn object(line: &str) -> Result<Prompt, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| format!("not a JSON object: {e}"))?;
    let found = (value.get("prompt"), value.get("tokens"), value.get("messages"));
    match found {
        (Some(Value::String(text)), None, None) => Ok(Prompt::Text(text.clone())),
        (None, Some(Value::Array(tokens)), None) => {
            let tokens: Option<Vec<i64>> = tokens.iter().map(Value::as_i64).collect();
            tokens.map(Prompt::Tokens).ok_or_else(|| "`tokens` must contain only token numbers".to_string())
        }
        (None, None, Some(Value::Array(messages))) => Ok(Prompt::Messages(messages.clone())),
        (Some(_), None, None) => Err("`prompt` is not a text".into()),
        (None, Some(_), None) => Err("`tokens` is not a list".into()),
        (None, None, Some(_)) => Err("`messages` is not a list".into()),
        (None, None, None) => Err("has none of `prompt`, `tokens`, `messages`".into()),
        _ => Err("has more than one of `prompt`, `tokens`, `messages`".into()),
    }
}
