//! What the errors of a plan say of the captured model.
//!
//! The passes know the parameters that a program uses. Which types modules have, which of them share a parameter, and
//! which are in the model without being in the program, only the capture knows.

use crate::capture::{Captured, InputKind};
use crate::program::{Error, Rename};
use std::collections::{HashMap, HashSet};
use tpc_passes::options::OptionError;
use tpc_passes::styles::pattern::Pattern;
use tpc_passes::styles::{Same, StyleError};

/// A module of the captured model, under the name that plans use.
#[derive(Clone, Debug)]
struct ModuleFacts {
    path: String,
    /// `a Linear`; `None` if burn does not say.
    kind: Option<String>,
    /// Its own parameters.
    parameters: Vec<String>,
    /// Whether the program has a parameter of it, or of a module inside.
    in_program: bool,
}

/// Facts about a captured model that its program does not hold.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    modules: Vec<ModuleFacts>,
    /// `(alias, parameter)`: a further name of a parameter.
    aliases: Vec<(String, String)>,
}

/// The path of the module that holds a parameter.
fn module_of(parameter: &str) -> &str {
    parameter.rsplit_once('.').map_or("", |(module, _)| module)
}

/// A path and every module around it, without the root.
fn around(path: &str) -> impl Iterator<Item = &str> {
    let ends = std::iter::once(path.len()).chain(path.rmatch_indices('.').map(|(end, _)| end));
    ends.map(|end| &path[..end])
}

/// The name of a type as a thing: `a Linear`, `an Embedding`.
fn with_article(kind: &str) -> String {
    let article = if kind.starts_with(['A', 'E', 'I', 'O', 'U']) { "an" } else { "a" };
    format!("{article} {kind}")
}

impl Facts {
    /// The facts of a captured model whose parameters are still called by burn's paths.
    pub fn of(captured: &Captured, rename: Rename) -> Self {
        let parameters = captured.inputs.iter().filter_map(|input| match &input.kind {
            InputKind::Parameter { path, .. } => Some(path.as_str()),
            _ => None,
        });
        let parameters: Vec<&str> = parameters.collect();
        let named: Vec<String> = parameters.iter().map(|p| rename(p)).collect();
        let in_program: HashSet<&str> = named.iter().flat_map(|p| around(module_of(p))).collect();
        // A module is called in files as its own parameters say.
        let mut called: HashMap<String, String> =
            parameters.into_iter().map(|p| (module_of(p).to_string(), module_of(&rename(p)).to_string())).collect();
        let modules = captured.modules.iter().map(|module| {
            let inside =
                |name: &String| if module.path.is_empty() { name.clone() } else { format!("{}.{name}", module.path) };
            let parameters: Vec<String> = module.parameters.iter().map(|name| rename(&inside(name))).collect();
            let own = || parameters.first().map_or(module.path.clone(), |p| module_of(p).to_string());
            let path = called.remove(&module.path).unwrap_or_else(own);
            let kind = module.container.rsplit(':').next().filter(|kind| !kind.is_empty());
            let in_program = path.is_empty() || in_program.contains(&*path);
            ModuleFacts { path, kind: kind.map(with_article), parameters, in_program }
        });
        let modules: Vec<ModuleFacts> = modules.collect();
        let aliases = captured.aliases.iter().map(|(alias, path)| (rename(alias), rename(path))).collect();
        Facts { modules, aliases }
    }

    fn kind(&self, module: &str) -> Option<String> {
        self.modules.iter().find(|m| m.path == module)?.kind.clone()
    }

    /// An error about a plan or an option, with what the model tells about the modules that it names.
    pub fn explain(&self, error: Error) -> Error {
        match error {
            Error::Style(style) => Error::Style(Box::new(self.of_style(*style))),
            Error::Option(OptionError::NoParameter { pattern, nearest }) => {
                Error::Option(match self.shared_by(pattern.trim_start_matches('!')) {
                    Some((_, parameter, shared)) => OptionError::Tied { pattern, parameter, shared },
                    None => OptionError::NoParameter { pattern, nearest },
                })
            }
            other => other,
        }
    }

    fn of_style(&self, error: StyleError) -> StyleError {
        match error {
            StyleError::Nothing { path, style, module, because, .. } => {
                let shared = self.aliases.iter().find(|(alias, _)| module_of(alias) == module);
                match shared.filter(|_| !module.is_empty()).cloned() {
                    Some((parameter, shared)) => self.tied(path, module, parameter, shared),
                    None => StyleError::Nothing { kind: self.kind(&module), path, style, module, because },
                }
            }
            StyleError::NoModule { path, nearest } => {
                if let Some((module, parameter, shared)) = self.shared_by(&path) {
                    return self.tied(path, module, parameter, shared);
                }
                let Ok(pattern) = Pattern::new(&path) else { return StyleError::NoModule { path, nearest } };
                match self.modules.iter().find(|m| !m.in_program && pattern.matches(&m.path)).cloned() {
                    Some(ModuleFacts { path: module, kind, parameters, .. }) => {
                        StyleError::Absent { path, module, kind, parameters }
                    }
                    None => StyleError::NoModule { path, nearest },
                }
            }
            other => other,
        }
    }

    fn tied(&self, path: String, module: String, parameter: String, shared: String) -> StyleError {
        let table = self.kind(module_of(&shared)).is_some_and(|kind| kind.ends_with(" Embedding"));
        StyleError::Tied { kind: self.kind(&module), path, module, same: Box::new(Same { parameter, shared, table }) }
    }

    /// The module or parameter that a pattern names by a further name of its parameter: as what is named, the further
    /// name, the parameter.
    fn shared_by(&self, pattern: &str) -> Option<(String, String, String)> {
        let pattern = Pattern::new(pattern).ok()?;
        self.aliases.iter().find_map(|(alias, parameter)| {
            let named = around(alias).find(|path| pattern.matches(path))?;
            Some((named.to_string(), alias.clone(), parameter.clone()))
        })
    }
}
