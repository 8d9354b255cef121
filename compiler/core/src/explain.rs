//! Adds facts about the captured model to the errors of a plan.
//!
//! The passes know the parameters that a program uses. Only the capture knows the types of modules, which modules share
//! a parameter, and which ones are in the model but not in the program.

use crate::capture::{Captured, InputKind};
use crate::error::Error;
use crate::rename::{Rename, renamed_path};
use std::collections::{HashMap, HashSet};
use tpc_ir::ModulePath;
use tpc_passes::options::OptionError;
use tpc_passes::styles::pattern::Pattern;
use tpc_passes::styles::{StyleError, TiedNames};

/// A module of the captured model, under its name in plans.
#[derive(Clone, Debug)]
struct ModuleFacts {
    path: ModulePath,
    /// `a Linear`; `None` if burn does not provide the type.
    kind: Option<String>,
    /// Its own parameters.
    parameters: Vec<ModulePath>,
    /// Whether the program has a parameter of this module or of a module inside it.
    in_program: bool,
}

/// Facts about a captured model that are not in its program.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    modules: Vec<ModuleFacts>,
    /// `(alias, parameter)`: another name of a parameter.
    aliases: Vec<(ModulePath, ModulePath)>,
}

/// A path and the paths of all modules around it, without the root.
fn around(path: &ModulePath) -> impl Iterator<Item = ModulePath> + '_ {
    path.outward().filter(|path| !path.is_root())
}

/// The name of a type with an article: `a Linear`, `an Embedding`.
fn with_article(kind: &str) -> String {
    let article = if kind.starts_with(['A', 'E', 'I', 'O', 'U']) { "an" } else { "a" };
    format!("{article} {kind}")
}

impl Facts {
    /// The facts of a captured model whose parameters still have burn's paths.
    pub fn of(captured: &Captured, rename: Rename) -> Self {
        let parameters = captured.inputs.iter().filter_map(|input| match &input.kind {
            InputKind::Parameter { path, .. } => Some(path),
            _ => None,
        });
        let rename = |path: &ModulePath| renamed_path(path, rename);
        let parameters: Vec<&ModulePath> = parameters.collect();
        let named: Vec<ModulePath> = parameters.iter().map(|p| rename(p).holder()).collect();
        let in_program: HashSet<ModulePath> = named.iter().flat_map(around).collect();
        // The name of a module in files follows from the names of its parameters.
        let mut called: HashMap<ModulePath, ModulePath> =
            parameters.into_iter().map(|p| (p.holder(), rename(p).holder())).collect();
        let modules = captured.modules.iter().map(|module| {
            let parameters: Vec<ModulePath> = module.parameters.iter().map(rename).collect();
            let own = || parameters.first().map_or(module.path.clone(), ModulePath::holder);
            let path = called.remove(&module.path).unwrap_or_else(own);
            let kind = (!module.container.is_empty()).then(|| with_article(&module.container));
            let in_program = path.is_root() || in_program.contains(&path);
            ModuleFacts { path, kind, parameters, in_program }
        });
        let modules: Vec<ModuleFacts> = modules.collect();
        let aliases = captured.aliases.iter().map(|(alias, path)| (rename(alias), rename(path))).collect();
        Facts { modules, aliases }
    }

    fn kind(&self, module: &ModulePath) -> Option<String> {
        self.modules.iter().find(|m| m.path == *module)?.kind.clone()
    }

    /// Adds to an error about a plan or an option what is known about the modules that it names.
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
                let shared = self.aliases.iter().find(|(alias, _)| alias.holder() == module);
                match shared.filter(|_| !module.is_root()).cloned() {
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

    fn tied(&self, path: String, module: ModulePath, parameter: ModulePath, shared: ModulePath) -> StyleError {
        let table = self.kind(&shared.holder()) == Some(with_article("Embedding"));
        StyleError::Tied {
            kind: self.kind(&module),
            path,
            module,
            same: Box::new(TiedNames { parameter, shared, table }),
        }
    }

    /// The module or parameter that a pattern names by an alias: what it names, the alias, and the parameter.
    fn shared_by(&self, pattern: &str) -> Option<(ModulePath, ModulePath, ModulePath)> {
        let pattern = Pattern::new(pattern).ok()?;
        self.aliases.iter().find_map(|(alias, parameter)| {
            let named = around(alias).find(|path| pattern.matches(path))?;
            Some((named, alias.clone(), parameter.clone()))
        })
    }
}
