//! Why a prompt cannot be generated from.

/// Why text cannot be generated from a prompt.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A model that does not predict the next token.
    #[error("{model_type} does not predict the next token: only causal language models generate")]
    NotCausal {
        /// The model's family.
        model_type: &'static str,
    },
    /// A model whose family has no cached forward pass.
    #[error("generation with a cache is not supported for {model_type}")]
    NoCache {
        /// The model's family.
        model_type: &'static str,
    },
    /// The sizes are empty.
    #[error(
        "generation needs room for at least one sequence and one new token; there is room for {batch} and {new_tokens}"
    )]
    Empty {
        /// Number of sequences.
        batch: usize,
        /// Number of new tokens.
        new_tokens: usize,
    },
    /// More prompts than the programs have sequences.
    #[error("{prompts} prompts at a time, but the programs are compiled for {batch}")]
    TooMany {
        /// Number of prompts.
        prompts: usize,
        /// Number of sequences in the programs.
        batch: usize,
    },
    /// A prompt without tokens, which leaves nothing to predict from.
    #[error("prompt {prompt} has no tokens")]
    NoTokens {
        /// Its position.
        prompt: usize,
    },
    /// A prompt that is longer than the programs allow.
    #[error("prompt {prompt} has {tokens} tokens, but the programs are compiled for prompts of {most}")]
    TooLong {
        /// Its position.
        prompt: usize,
        /// Number of its tokens.
        tokens: usize,
        /// Maximum number of tokens.
        most: usize,
    },
    /// A sequence that needs more positions than the model has learned.
    #[error(
        "prompts of {prompt} tokens with {new_tokens} new ones need {needed} positions, but {model_type} has {positions} learned positions: shorten the prompt or generate fewer tokens"
    )]
    Positions {
        /// Number of tokens of the longest prompt.
        prompt: usize,
        /// Number of tokens to generate.
        new_tokens: usize,
        /// Number of positions that they need.
        needed: usize,
        /// The model's family.
        model_type: &'static str,
        /// Number of positions of the model.
        positions: usize,
    },
    /// A token that is not in the model's vocabulary.
    #[error("prompt {prompt} has token {token} at position {position}, but the vocabulary has {vocabulary} entries")]
    Token {
        /// The position of the prompt.
        prompt: usize,
        /// The token.
        token: i64,
        /// Its position in the prompt.
        position: usize,
        /// Number of entries in the vocabulary.
        vocabulary: usize,
    },
    /// Logits that are NaN.
    #[error("the logits of sequence {sequence} are not all numbers after {tokens} tokens")]
    NotFinite {
        /// The sequence.
        sequence: usize,
        /// Number of tokens of the sequence so far.
        tokens: usize,
    },
}
