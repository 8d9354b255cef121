//! Conversations as text: renders the chat template of a model directory like transformers.
//!
//! Templates are Jinja with transformers' additions: `raise_exception`, `strftime_now`, a `tojson` that writes Python's
//! JSON, the methods of Python's strings, lists and dictionaries, loop controls, and `{% generation %}` blocks around
//! the text that the model learns to generate.

use super::error::TokenizerError;
use super::python::{Json, strftime};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value as Message;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The chat template of a model directory.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    file: PathBuf,
    /// Whether the template marks answers itself.
    marks: bool,
    tokens: BTreeMap<String, String>,
}

/// A conversation as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// The byte ranges that are answers.
    pub answers: Vec<Range<usize>>,
}

const NAME: &str = "chat";

/// Begin and end of an answer in a template's text: two code points that are never characters.
const BEGIN: char = '\u{fdd0}';
const END: char = '\u{fdd1}';

/// The filter that replaces a `{% generation %}` block.
const ANSWER: &str = "tpc_answer";

/// The role whose messages are answers.
const ASSISTANT: &str = "assistant";

impl Template {
    /// A template with the texts of the special tokens that it may use; `now` is the current time for the template, in
    /// seconds since 1970.
    ///
    /// # Errors
    /// A template that is not valid Jinja.
    pub(super) fn new(
        file: PathBuf,
        source: &str,
        tokens: &BTreeMap<String, String>,
        now: u64,
    ) -> Result<Self, TokenizerError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let (source, marks) = with_answers(source);
        let failed = |e: &Error| failure(&file, e);
        environment.set_syntax(syntax.map_err(|e| failed(&e))?);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_filter(ANSWER, |text: String| format!("{BEGIN}{text}{END}"));
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", move |format: String| {
            let unknown =
                || Error::new(ErrorKind::InvalidOperation, format!("strftime_now: unknown format {format:?}"));
            strftime(&format, now).ok_or_else(unknown)
        });
        environment.add_template_owned(NAME, source).map_err(|e| failed(&e))?;
        Ok(Template { environment, file, marks, tokens: tokens.clone() })
    }

    /// Renders a conversation; with `prompt`, up to where the next answer begins.
    ///
    /// # Errors
    /// A template that fails on the conversation or rejects it.
    pub fn render(&self, messages: &Message, tools: Option<&Message>, prompt: bool) -> Result<String, TokenizerError> {
        let text = self.marked(messages, tools, prompt)?;
        Ok(if self.marks { text.replace([BEGIN, END], "") } else { text })
    }

    /// Renders a conversation and finds its answers: the contents of `{% generation %}` blocks or, for a template
    /// without them, the text that each message of the assistant adds to the prompt for it.
    ///
    /// # Errors
    /// The errors of [`Template::render`]; a conversation without answers; a template that does not show where they are.
    pub fn answers(&self, messages: &Message, tools: Option<&Message>) -> Result<Rendered, TokenizerError> {
        let rendered = if self.marks {
            let text = self.marked(messages, tools, false)?;
            // The marks would shift the ranges that they mark.
            if let Some(marker) = [BEGIN, END].into_iter().find(|&mark| messages.to_string().contains(mark)) {
                return Err(TokenizerError::Marker(marker.into()));
            }
            unmarked(&text)
        } else {
            self.compared(messages, tools)?
        };
        match rendered.answers.iter().any(|answer| !answer.is_empty()) {
            true => Ok(rendered),
            false => Err(TokenizerError::NothingToLearn),
        }
    }

    /// The answers of a template without blocks: the text with a message begins with the text up to it and the prompt
    /// for it.
    fn compared(&self, messages: &Message, tools: Option<&Message>) -> Result<Rendered, TokenizerError> {
        let text = self.marked(messages, tools, false)?;
        let list = messages.as_array().map(Vec::as_slice).unwrap_or_default();
        let mut answers = Vec::new();
        for (at, message) in list.iter().enumerate() {
            if message.get("role").and_then(Message::as_str) != Some(ASSISTANT) {
                continue;
            }
            let first = |n: usize| Message::Array(list.iter().take(n).cloned().collect());
            let before = self.marked(&first(at), tools, true)?;
            let with = if at + 1 == list.len() { text.clone() } else { self.marked(&first(at + 1), tools, false)? };
            if !with.starts_with(&before) || !text.starts_with(&with) {
                return Err(TokenizerError::NoAnswers { file: self.file.clone(), message: at });
            }
            answers.push(before.len()..with.len());
        }
        Ok(Rendered { text, answers })
    }

    /// Renders the template with marks.
    fn marked(&self, messages: &Message, tools: Option<&Message>, prompt: bool) -> Result<String, TokenizerError> {
        let failed = |e: Error| failure(&self.file, &e);
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let rest = Value::from(Serde(&self.tokens));
        let given = context! {
            messages => Value::from(Serde(messages)),
            tools => tools.map_or(Value::from(()), |tools| Value::from(Serde(tools))),
            documents => Value::from(()),
            add_generation_prompt => prompt,
            ..rest
        };
        template.render(given).map_err(failed)
    }
}

fn failure(file: &Path, error: &Error) -> TokenizerError {
    let problem = match error.detail() {
        Some(detail) if error.kind() == ErrorKind::InvalidOperation => detail.to_string(),
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    TokenizerError::Template { file: file.into(), line: error.line(), problem }
}

/// Replaces the `{% generation %}` blocks of a template by filters that mark their text, and returns whether there are
/// any. Jinja has no such block; a filter block treats white space around it in the same way.
fn with_answers(source: &str) -> (String, bool) {
    let (mut out, mut rest, mut marks) = (String::with_capacity(source.len()), source, false);
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (inside, after) = (tag.get(2..end).unwrap_or_default(), tag.get(end + 2..).unwrap_or_default());
        let word = inside.trim_matches(['-', '+']).trim();
        let replaced = match word {
            "generation" => format!("{{%{}%}}", inside.replacen(word, &format!("filter {ANSWER}"), 1)),
            "endgeneration" => format!("{{%{}%}}", inside.replacen(word, "endfilter", 1)),
            _ => format!("{{%{inside}%}}"),
        };
        marks |= word == "generation";
        out.push_str(&replaced);
        rest = after;
    }
    out.push_str(rest);
    (out, marks)
}

fn unmarked(marked: &str) -> Rendered {
    let (mut text, mut answers, mut begun) = (String::with_capacity(marked.len()), Vec::new(), 0);
    for c in marked.chars() {
        match c {
            BEGIN => begun = text.len(),
            END => answers.push(begun..text.len()),
            c => text.push(c),
        }
    }
    Rendered { text, answers }
}

fn tojson(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<String, Error> {
    let named: Option<usize> = options.get("indent")?;
    let (sorted, ascii): (Option<bool>, Option<bool>) = (options.get("sort_keys")?, options.get("ensure_ascii")?);
    let json = serde_json::to_value(value)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, "cannot be written as JSON").with_source(e))?;
    let how = Json { indent: indent.or(named), sorted: sorted.unwrap_or(false), ascii: ascii.unwrap_or(false) };
    Ok(how.text(&json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_become_filters_with_the_same_white_space() {
        let (source, marks) = with_answers("a {%- generation -%} b {% endgeneration %}{% if x %}");
        assert_eq!(source, "a {%- filter tpc_answer -%} b {% endfilter %}{% if x %}");
        assert!(marks);
        assert_eq!(with_answers("{% if generation %}{{ x }} {%"), ("{% if generation %}{{ x }} {%".into(), false));
    }
}
