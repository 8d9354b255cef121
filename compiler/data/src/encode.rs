//! Encodes a document as tokens, with the tokens that count toward the loss.

use crate::error::DocumentProblem;
use crate::source::Content;
use crate::tokenizer::{Tokenizer, TokenizerError};
use serde::{Deserialize, Serialize};
use tpc_ir::quote::cut;

/// A token of the data. Its JSON form is a list of three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u8, u8)", into = "(u32, u8, u8)")]
pub struct Token {
    /// Its number.
    pub id: u32,
    /// Whether predicting it counts toward the loss.
    pub counts: bool,
    /// Whether it begins a document.
    pub begins: bool,
}

impl From<(u32, u8, u8)> for Token {
    fn from((id, counts, begins): (u32, u8, u8)) -> Self {
        Token { id, counts: counts != 0, begins: begins != 0 }
    }
}

impl From<Token> for (u32, u8, u8) {
    fn from(token: Token) -> Self {
        (token.id, token.counts.into(), token.begins.into())
    }
}

/// Which tokens count toward the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossOn {
    /// All tokens.
    All,
    /// In conversations, the assistant's messages.
    Answers,
}

/// Encodes a document or piece. A text has the tokens that the tokenizer puts around it, and ends with the end-of-text
/// token; a conversation is formatted by the template. `table` is the number of rows of the model's embedding.
pub(crate) fn document(
    tokenizer: &Tokenizer,
    content: &Content,
    loss: LossOn,
    table: usize,
) -> Result<Vec<Token>, DocumentProblem> {
    let tokens = match content {
        Content::Text { text, begins, ends } => self::text(tokenizer, text, *begins, *ends)?,
        Content::Chat { messages, tools } => chat(tokenizer, messages, tools.as_ref(), loss)?,
    };
    match tokens.iter().find(|token| token.id as usize >= table) {
        None => Ok(tokens),
        Some(&Token { id, .. }) => {
            let token = cut(&tokenizer.token(id).unwrap_or_default()).to_string();
            Err(DocumentProblem::OutsideTable { token, id, table })
        }
    }
}

fn text(tokenizer: &Tokenizer, text: &str, begins: bool, ends: bool) -> Result<Vec<Token>, TokenizerError> {
    let encoded = tokenizer.encode_bare(text)?;
    let (before, after) = tokenizer.frame();
    let mut ids = if begins { before.to_vec() } else { Vec::new() };
    ids.extend(encoded.ids);
    if ends {
        ids.extend(after);
        ids.extend(tokenizer.eos().filter(|eos| after.last() != Some(eos)));
    }
    let token = |(at, id)| Token { id, counts: true, begins: begins && at == 0 };
    Ok(ids.into_iter().enumerate().map(token).collect())
}

fn chat(
    tokenizer: &Tokenizer,
    messages: &serde_json::Value,
    tools: Option<&serde_json::Value>,
    loss: LossOn,
) -> Result<Vec<Token>, TokenizerError> {
    let template = tokenizer.template().ok_or(TokenizerError::NoTemplate)?;
    let (text, answers) = match loss {
        LossOn::All => (template.render(messages, tools, false)?, Vec::new()),
        LossOn::Answers => template.answers(messages, tools).map(|rendered| (rendered.text, rendered.answers))?,
    };
    let encoded = tokenizer.encode_bare(&text)?;
    // A token counts if any of its bytes belong to an answer. Both are in order.
    let mut answers = answers.iter().peekable();
    let tokens = encoded.ids.iter().zip(&encoded.bytes).enumerate().map(|(at, (&id, bytes))| {
        while answers.next_if(|answer| answer.end <= bytes.start).is_some() {}
        let answered = answers.peek().is_some_and(|answer| answer.start < bytes.end);
        Token { id, counts: loss == LossOn::All || answered, begins: at == 0 }
    });
    Ok(tokens.collect())
}
