//! What a model makes of its last hidden states: `architectures` of `config.json` says, and `modules.json` for embeddings of sentences.

use super::error::ModelError;
use super::keys::Keys;
use super::pooling::Pooling;
use serde_json::{Map, Value, json};

/// What a model's output is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// For each token, logits of the next one.
    CausalLm,
    /// For each token, logits of what it is itself.
    MaskedLm,
    /// The last hidden states, as they are.
    Bare,
    /// For each sequence, a number for each label.
    SequenceClassification(Labels),
    /// For each token, a number for each label.
    TokenClassification(Labels),
    /// For each sequence, one vector: its hidden states pooled.
    SentenceEmbedding(Pooling),
}

/// A kind of head, without what the configuration says of it.
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
    /// What is learned of them.
    pub problem: Problem,
}

/// What labels are to a sequence, as `problem_type` says; tokens always have exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// It has exactly one of them: cross entropy.
    SingleLabel,
    /// Each is a number: mean squared error.
    Regression,
    /// It has any of them: binary cross entropy.
    MultiLabel,
}

/// The classes of a family and their heads; the first is the one without `architectures`.
pub(super) type Classes = &'static [(&'static str, HeadKind)];

impl HeadKind {
    /// What errors call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::CausalLm => "causal language modeling",
            Self::MaskedLm => "masked language modeling",
            Self::Bare => "the last hidden states",
            Self::SequenceClassification => "sequence classification",
            Self::TokenClassification => "token classification",
        }
    }

    /// The head that `architectures` names: of several, the first.
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

    /// Which kind it is. An embedding of sentences is a bare model to those who read its configuration alone.
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

    /// Whether there is a loss: a head that learns.
    pub fn has_loss(&self) -> bool {
        self.kind() != HeadKind::Bare
    }

    /// Whether the output is one vector for a sequence, not for each token.
    pub fn is_per_sequence(&self) -> bool {
        matches!(self, Self::SequenceClassification(_) | Self::SentenceEmbedding(_))
    }

    /// Whether labels are numbers, not names.
    pub fn takes_values(&self) -> bool {
        matches!(self, Self::SequenceClassification(labels) if labels.problem != Problem::SingleLabel)
    }

    /// The shape of a batch's labels: a label for each token, one for each sequence, or a number for each label of each sequence.
    pub fn labels_shape(&self, [batch, seq]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::SequenceClassification(labels) if labels.problem == Problem::SingleLabel => [batch, 1],
            Self::SequenceClassification(labels) => [batch, labels.names.len()],
            _ => [batch, seq],
        }
    }

    /// What the output is called.
    pub fn output(&self) -> &'static str {
        match self {
            Self::Bare => "last_hidden_state",
            Self::SentenceEmbedding(_) => "sentence_embedding",
            _ => "logits",
        }
    }

    /// Writes what `config.json` says of the head.
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
    /// Labels without names of their own, as transformers calls them.
    pub fn numbered(count: usize) -> Self {
        let problem = if count == 1 { Problem::Regression } else { Problem::SingleLabel };
        Self { names: (0..count).map(|i| format!("LABEL_{i}")).collect(), problem }
    }

    /// `id2label`, `num_labels` and `problem_type`. Without any of them there are two labels.
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
    /// The name that `problem_type` gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SingleLabel => "single_label_classification",
            Self::Regression => "regression",
            Self::MultiLabel => "multi_label_classification",
        }
    }
}
