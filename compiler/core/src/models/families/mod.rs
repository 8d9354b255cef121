//! The families of decoders. Each is described by data in a file of its own.

pub(super) mod facts;
mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;

use facts::Facts;

/// The family of causal models that a configuration of the shared decoder belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `llama`
    Llama,
    /// `mistral`
    Mistral,
    /// `qwen2`
    Qwen2,
    /// `qwen3`
    Qwen3,
    /// `gemma2`
    Gemma2,
    /// `gemma3_text`
    Gemma3,
    /// `phi3`
    Phi3,
    /// `olmo2`
    Olmo2,
}

impl Family {
    /// All families.
    pub const ALL: [Self; 8] =
        [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Gemma2, Self::Gemma3, Self::Phi3, Self::Olmo2];

    /// The `model_type`.
    pub fn name(self) -> &'static str {
        self.facts().model_type
    }

    /// The properties of the family.
    pub(super) fn facts(self) -> &'static Facts {
        match self {
            Self::Llama => &llama::FACTS,
            Self::Mistral => &mistral::FACTS,
            Self::Qwen2 => &qwen2::FACTS,
            Self::Qwen3 => &qwen3::FACTS,
            Self::Gemma2 => &gemma2::FACTS,
            Self::Gemma3 => &gemma3::FACTS,
            Self::Phi3 => &phi3::FACTS,
            Self::Olmo2 => &olmo2::FACTS,
        }
    }
}
