//! The heads of models, which `architectures` in `config.json` determines, and `modules.json` for sentence embeddings.

use super::error::ModelError;
use super::keys::Keys;
use super::pooling::Pooling;
use serde_json::{Map, Value, json};

/// The head of a model, which determines its output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// For each token, logits of the next token.
    CausalLm,
    /// For each token, logits of the token itself.
    MaskedLm,
    /// The last hidden states, unchanged.
    Bare,
    /// For each sequence, a number for each label.
    SequenceClassification(Labels),
    /// For each token, a number for each label.
    TokenClassification(Labels),
    /// For each sequence, one vector: its pooled hidden states.
    SentenceEmbedding(Pooling),
}

/// The kind of a head, without its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadKind {
    /// See [`Head::CausalLm`].
    CausalLm,
    /// See [`Head::MaskedLm`].
    MaskedLm,
    /// See [`Head::Bare`].
    Bare,
    /// See [`Head::SequenceClassification`].
    SequenceClassification,
    /// See [`Head::TokenClassification`].
    TokenClassification,
}

/// The labels of a classification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Their names, in the order of their numbers (`id2label`).
    pub names: Vec<String>,
    /// The training objective for the labels.
    pub problem: Problem,
}

/// The relation of labels to a sequence, according to `problem_type`; tokens always have exactly one label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// A sequence has exactly one label: cross entropy.
    SingleLabel,
    /// Each label has a number: mean squared error.
    Regression,
    /// A sequence has any number of labels: binary cross entropy.
    MultiLabel,
}

/// The classes of a family and their heads; the first is the default without `architectures`.
pub(super) type Classes = &'static [(&'static str, HeadKind)];

impl HeadKind {
    /// The name of the kind in errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::CausalLm => "causal language modeling",
            Self::MaskedLm => "masked language modeling",
            Self::Bare => "the last hidden states",
            Self::SequenceClassification => "sequence classification",
            Self::TokenClassification => "token classification",
        }
    }

    /// The head that `architectures` names; the first of several.
    pub(super) fn read(keys: &Keys, classes: Classes) -> Result<Self, ModelError> {
        let named = keys.opt_strings("architectures")?.and_then(|names| names.into_iter().next());
        let Some(name) = named else {
            return Ok(classes.first().map_or(Self::CausalLm, |(_, kind)| *kind));
        };
        match classes.iter().find(|(class, _)| *class == name) {
            Some((_, kind)) => Ok(*kind),
            None => Err(ModelError::UnknownArchitecture {
                file: keys.file().to_path_buf(),
                found: name,
                supported: classes.iter().map(|(class, _)| *class).collect(),
            }),
        }
    }
}

impl Head {
    /// The head of a configuration.
    pub(super) fn read(keys: &Keys, classes: Classes) -> Result<Self, ModelError> {
        Ok(match HeadKind::read(keys, classes)? {
            HeadKind::CausalLm => Self::CausalLm,
            HeadKind::MaskedLm => Self::MaskedLm,
            HeadKind::Bare => Self::Bare,
            HeadKind::SequenceClassification => Self::SequenceClassification(Labels::read(keys)?),
            HeadKind::TokenClassification => {
                Self::TokenClassification(Labels { problem: Problem::SingleLabel, ..Labels::read(keys)? })
            }
        })
    }

    /// The kind of the head. To a reader of only its configuration, a sentence embedding model is a bare model.
    pub fn kind(&self) -> HeadKind {
        match self {
            Self::CausalLm => HeadKind::CausalLm,
            Self::MaskedLm => HeadKind::MaskedLm,
            Self::Bare | Self::SentenceEmbedding(_) => HeadKind::Bare,
            Self::SequenceClassification(_) => HeadKind::SequenceClassification,
            Self::TokenClassification(_) => HeadKind::TokenClassification,
        }
    }

    /// Its labels, if it classifies.
    pub fn labels(&self) -> Option<&Labels> {
        match self {
            Self::SequenceClassification(labels) | Self::TokenClassification(labels) => Some(labels),
            _ => None,
        }
    }

    /// Whether the head has a loss to train with.
    pub fn has_loss(&self) -> bool {
        self.kind() != HeadKind::Bare
    }

    /// Whether the output is one vector per sequence, not per token.
    pub fn is_per_sequence(&self) -> bool {
        matches!(self, Self::SequenceClassification(_) | Self::SentenceEmbedding(_))
    }

    /// Whether labels are numbers instead of names.
    pub fn takes_values(&self) -> bool {
        matches!(self, Self::SequenceClassification(labels) if labels.problem != Problem::SingleLabel)
    }

    /// The shape of a batch's labels: one label per token, one per sequence, or a number for each label of each
    /// sequence.
    pub fn labels_shape(&self, [batch, seq]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::SequenceClassification(labels) if labels.problem == Problem::SingleLabel => [batch, 1],
            Self::SequenceClassification(labels) => [batch, labels.names.len()],
            _ => [batch, seq],
        }
    }

    /// The name of the output.
    pub fn output(&self) -> &'static str {
        match self {
            Self::Bare => "last_hidden_state",
            Self::SentenceEmbedding(_) => "sentence_embedding",
            _ => "logits",
        }
    }

    /// Writes the keys of `config.json` that describe the head.
    pub(super) fn write(&self, classes: Classes, config: &mut Value) {
        let class = classes.iter().find(|(_, kind)| *kind == self.kind());
        config["architectures"] = json!(class.map(|(class, _)| *class).into_iter().collect::<Vec<_>>());
        let Some(labels) = self.labels() else { return };
        let (mut names, mut ids) = (Map::new(), Map::new());
        for (id, name) in labels.names.iter().enumerate() {
            names.insert(id.to_string(), json!(name));
            ids.insert(name.clone(), json!(id));
        }
        config["id2label"] = Value::Object(names);
        config["label2id"] = Value::Object(ids);
        if let Self::SequenceClassification(_) = self {
            config["problem_type"] = json!(labels.problem.name());
        }
    }
}

impl Labels {
    /// Labels with the default names of transformers.
    pub fn numbered(count: usize) -> Self {
        let problem = if count == 1 { Problem::Regression } else { Problem::SingleLabel };
        Self { names: (0..count).map(|i| format!("LABEL_{i}")).collect(), problem }
    }

    /// Reads `id2label`, `num_labels` and `problem_type`. Without any of them there are two labels.
    fn read(keys: &Keys) -> Result<Self, ModelError> {
        let count = keys.opt_size("num_labels")?;
        let named = keys.opt_object("id2label")?;
        let mut labels = Self::numbered(count.unwrap_or(2));
        if let Some(named) = named {
            let names = named.names().count();
            if let Some(count) = count.filter(|count| *count != names) {
                return Err(keys.inconsistent(format!("num_labels = {count}, but id2label has {names} entries")));
            }
            if names == 0 {
                return Err(keys.wrong("id2label", "a name for each label"));
            }
            let name = |id: usize| match named.has(&id.to_string()) {
                true => named.str(&id.to_string()),
                false => Err(keys.wrong("id2label", &format!("the names of the labels 0 to {}", names - 1))),
            };
            labels = Self { names: (0..names).map(name).collect::<Result<_, _>>()?, ..Self::numbered(names) };
        }
        if keys.has("problem_type") {
            let problems = [Problem::SingleLabel, Problem::Regression, Problem::MultiLabel];
            let found = keys.str("problem_type")?;
            let known = problems.into_iter().find(|problem| problem.name() == found);
            let names = problems.map(Problem::name).join(", ");
            labels.problem = known.ok_or_else(|| keys.wrong("problem_type", &format!("null or one of {names}")))?;
        }
        Ok(labels)
    }
}

impl Problem {
    /// The name in `problem_type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::SingleLabel => "single_label_classification",
            Self::Regression => "regression",
            Self::MultiLabel => "multi_label_classification",
        }
    }
}
