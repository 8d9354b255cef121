//! The files next to `tokenizer.json`: special tokens and the chat template.

use super::error::TokenizerError;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub(super) const FILE: &str = "tokenizer_config.json";
pub(super) const SPECIAL_TOKENS: &str = "special_tokens_map.json";
pub(super) const TEMPLATE: &str = "chat_template.jinja";

/// The contents of the files.
#[derive(Debug, Default)]
pub(super) struct Config {
    /// The texts of special tokens by their names: `bos_token`, `eos_token`, ….
    pub(super) tokens: BTreeMap<String, String>,
    /// The chat template and its file.
    pub(super) template: Option<(PathBuf, String)>,
}

impl Config {
    /// Reads the files of a model directory.
    pub(super) fn of_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let mut config = Config::default();
        // The configuration's tokens take precedence over those of the older file.
        for name in [SPECIAL_TOKENS, FILE] {
            let Some(json) = json(&dir.join(name))? else { continue };
            for (key, value) in json.as_object().into_iter().flatten() {
                let text = value.as_str().or_else(|| value.get("content")?.as_str());
                if let (true, Some(text)) = (key.ends_with("_token"), text) {
                    config.tokens.insert(key.clone(), text.into());
                }
            }
            if let Some(template) = json.get("chat_template") {
                let wrong = || invalid(&dir.join(name), "chat_template is neither a text nor a list of named texts");
                match template_text(template) {
                    _ if template.is_null() => {}
                    Some(text) => config.template = Some((dir.join(name), text.into())),
                    None => return Err(wrong()),
                }
            }
        }
        if let Some(text) = read(&dir.join(TEMPLATE))? {
            config.template = Some((dir.join(TEMPLATE), text));
        }
        Ok(config)
    }
}

/// A template, or the one named `default` of several.
fn template_text(template: &Value) -> Option<&str> {
    let named = |named: &&Value| named.get("name").and_then(Value::as_str) == Some("default");
    template.as_str().or_else(|| template.as_array()?.iter().find(named)?.get("template")?.as_str())
}

/// Reads a file; `None` if it does not exist.
pub(super) fn read(file: &Path) -> Result<Option<String>, TokenizerError> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(|source| TokenizerError::Io { file: file.into(), source }),
    }
}

fn json(file: &Path) -> Result<Option<Value>, TokenizerError> {
    let Some(text) = read(file)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|e| invalid(file, &format!("not valid JSON: {e}")))
}

pub(super) fn invalid(file: &Path, problem: &str) -> TokenizerError {
    TokenizerError::Invalid { file: file.into(), problem: problem.into() }
}
