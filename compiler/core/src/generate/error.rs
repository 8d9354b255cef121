//! Why a prompt cannot be generated from.

/// Why a prompt cannot be generated from.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A model that predicts other tokens than the next.
    #[error("{model_type} predicts no next tokens: only causal language models generate")]
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
    /// Nothing to compile for.
    #[error(
        "generation needs room for at least one sequence and one new token; there is room for {batch} and {new_tokens}"
    )]
    Empty {
        /// Sequences.
        batch: usize,
        /// New tokens.
        new_tokens: usize,
    },
    /// More prompts than the programs have sequences.
    #[error("{prompts} prompts at a time, but the programs are compiled for {batch}")]
    TooMany {
        /// Prompts.
        prompts: usize,
        /// Sequences of the programs.
        batch: usize,
    },
    /// A prompt without tokens: there is nothing to predict from.
    #[error("prompt {prompt} has no tokens")]
    NoTokens {
        /// Its position.
        prompt: usize,
    },
    /// A prompt that is longer than what the programs are compiled for.
    #[error("prompt {prompt} has {tokens} tokens, but the programs are compiled for prompts of {most}")]
    TooLong {
        /// Its position.
        prompt: usize,
        /// Its tokens.
        tokens: usize,
        /// The most that there may be.
        most: usize,
    },
    /// A sequence that does not fit the positions that a model learned.
    #[error(
        "prompts of {prompt} tokens with {new_tokens} new ones need {needed} positions, but {model_type} has {positions} learned positions: shorten the prompt or generate fewer tokens"
    )]
    Positions {
        /// Tokens of the longest prompt.
        prompt: usize,
        /// Tokens to generate.
        new_tokens: usize,
        /// Positions that they take.
        needed: usize,
        /// The model's family.
        model_type: &'static str,
        /// Positions that there are.
        positions: usize,
    },
    /// A token that the model's table does not have.
    #[error("prompt {prompt} has token {token} at position {position}, but the vocabulary has {vocabulary} entries")]
    Token {
        /// Its position among the prompts.
        prompt: usize,
        /// The token.
        token: i64,
        /// Its position in the prompt.
        position: usize,
        /// Entries of the vocabulary.
        vocabulary: usize,
    },
    /// Logits that are no numbers.
    #[error("the logits of sequence {sequence} are not all numbers after {tokens} tokens")]
    NotFinite {
        /// The sequence.
        sequence: usize,
        /// Tokens of the sequence so far.
        tokens: usize,
    },
}
