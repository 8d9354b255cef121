//! The modules of a model as plans name them.

use std::collections::BTreeSet;
use tpc_compiler::models::{ModelConfig, weight_map};

/// What kind of module holds parameters directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A weight matrix of a product.
    Linear,
    /// A table that is indexed by ids.
    Embedding,
    /// A gain, possibly with a bias.
    Norm,
}

/// The modules of a model, by the module paths of its weight files.
#[derive(Clone, Debug)]
pub struct Modules {
    /// Modules that hold parameters directly.
    pub leaves: Vec<(String, Kind)>,
    /// Modules that hold other modules. The empty path is the whole model.
    pub containers: Vec<String>,
    /// All parameters.
    pub parameters: Vec<String>,
}

impl Modules {
    /// The modules of a configuration's model.
    pub fn of(config: &ModelConfig) -> Self {
        let map = weight_map(config);
        let mut leaves: Vec<(String, Kind)> = Vec::new();
        let mut containers = BTreeSet::new();
        let mut parameters = Vec::new();
        for entry in &map.entries {
            parameters.push(entry.hf_name.clone());
            let Some((path, "weight")) = entry.hf_name.rsplit_once('.') else { continue };
            let last = path.rsplit('.').next().unwrap_or(path);
            let kind = match entry.shape.len() {
                1 => Kind::Norm,
                _ if last.contains("embed") || matches!(last, "wte" | "wpe") => Kind::Embedding,
                _ => Kind::Linear,
            };
            leaves.push((path.to_string(), kind));
            let mut above = path;
            while let Some((parent, _)) = above.rsplit_once('.') {
                containers.insert(parent.to_string());
                above = parent;
            }
        }
        containers.insert(String::new());
        Modules { leaves, containers: containers.into_iter().collect(), parameters }
    }

    /// The linear that computes the logits, unless it shares the embedding's weights.
    pub fn head(&self) -> Option<&str> {
        let heads = ["lm_head", "output", "cls.predictions.decoder"];
        self.leaves.iter().map(|(path, _)| path.as_str()).find(|path| heads.contains(path))
    }
}
