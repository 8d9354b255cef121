//! Files of a model directory other than configuration and weights: tokenizer, generation settings, chat template,
//! pooling.

use super::error::ModelError;
use super::keys::read_json;
use super::pooling::MODULES;
use std::path::{Component, Path, PathBuf};
use tpc_runtime::output::{self, Output};

/// The files that are copied unchanged.
const FILES: [&str; 17] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    MODULES,
];

/// Copies the files that describe the use of a model from its directory to another one, which is created if needed, and
/// returns their names. Existing files are replaced atomically.
///
/// # Errors
/// A file that cannot be read or written.
pub fn copy_companions(from: &Path, to: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same(from, to) {
        return Ok(Vec::new());
    }
    let files = FILES.iter().map(PathBuf::from).chain(modules(from)?);
    let files: Vec<PathBuf> = files.filter(|file| from.join(file).is_file()).collect();
    for file in &files {
        let (source, target) = (from.join(file), to.join(file));
        let bytes =
            std::fs::read(&source).map_err(|source_error| ModelError::Io { file: source, source: source_error })?;
        let written = match target.parent() {
            Some(parent) => output::make_dir(parent),
            None => Ok(()),
        };
        let written = written.and_then(|()| Output::at(&target)).and_then(|output| output.write(&bytes));
        written.map_err(|source| ModelError::Io { file: target, source })?;
    }
    Ok(files)
}

/// The configurations of the modules that `modules.json` lists, in their own directories.
fn modules(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let file = dir.join(MODULES);
    if !file.is_file() {
        return Ok(Vec::new());
    }
    let json = read_json(&file)?;
    let paths = json.as_array().into_iter().flatten().filter_map(|module| module.get("path")?.as_str());
    // A path that leads out of the directory is ignored.
    let inside =
        |path: &&str| !path.is_empty() && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    Ok(paths.filter(inside).map(|path| Path::new(path).join("config.json")).collect())
}
