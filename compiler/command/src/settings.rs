//! The settings that must be the same for all processes of a launched command: its options, and the contents of the
//! files that it reads.

use crate::Outcome;
use clap::ArgMatches;
use std::path::{Path, PathBuf};
use tpc_passes::styles::Plan;
use tpc_passes::targets::Target;
use tpc_runtime::digest::Digest;
use tpc_runtime::settings::{self, Settings};
use tpc_runtime::{RuntimeError, launch};

/// Options that may differ between processes.
const OWN: [&str; 1] = ["deadline"];

/// The options of a subcommand, given or default, with the contents of the `files` that it reads, each named by its
/// option. Other paths are not compared: a file may have a different path on each host, and only one process writes.
pub(crate) fn settings(command: &clap::Command, matches: &ArgMatches, files: &[(String, PathBuf)]) -> Settings {
    let mut settings = Settings::new();
    settings.set("the version of tpc", env!("CARGO_PKG_VERSION"));
    let Some((name, matches)) = matches.subcommand() else { return settings };
    settings.set("the subcommand", name);
    for argument in command.find_subcommand(name).into_iter().flat_map(clap::Command::get_arguments) {
        let id = argument.get_id().as_str();
        let Ok(Some(given)) = matches.try_get_raw(id) else { continue };
        if OWN.contains(&id) {
            continue;
        }
        let is_path = argument.get_value_parser().type_id() == std::any::TypeId::of::<PathBuf>();
        let values = given.map(|value| value.to_string_lossy().into_owned());
        let option = argument.get_long().map_or_else(|| id.to_uppercase(), |long| format!("--{long}"));
        let (option, value) = match (is_path, id) {
            // Every process writes its part there.
            (true, "checkpoint") => (option, absolute(&values.collect::<String>())),
            (true, _) => (option, "given".to_string()),
            (false, "plan") => named(option, &values.collect::<String>(), |name| Plan::built_in(name).is_ok()),
            (false, "target") => named(option, &values.collect::<String>(), |name| Target::built_in(name).is_ok()),
            (false, _) => (option, values.map(|value| number(&value)).collect::<Vec<_>>().join(" ")),
        };
        settings.set(option, value);
    }
    for (option, file) in files {
        settings.set(format!("the digest of {option}"), contents(file));
    }
    settings
}

/// The absolute form of a path.
fn absolute(path: &str) -> String {
    std::path::absolute(path).map_or_else(|_| path.to_string(), |path| path.display().to_string())
}

/// A number in a canonical spelling: `1e-3` and `0.001` are equal.
fn number(text: &str) -> String {
    text.parse::<f64>().map_or_else(|_| text.to_string(), |number| number.to_string())
}

/// A built-in plan or target by its name, a file by its contents.
fn named(option: String, name: &str, is_built_in: fn(&str) -> bool) -> (String, String) {
    match is_built_in(name) {
        true => (option, name.to_string()),
        false => (format!("the digest of {option}"), contents(Path::new(name))),
    }
}

/// A digest of a file's contents; a file that cannot be read is reported where it is used.
fn contents(file: &Path) -> String {
    Digest::of_file(file, || ()).map_or_else(|_| "no file".into(), |digest| digest.to_string())
}

/// Weights of at most this many bytes are read before the processes join, which distinguishes two jobs that differ in
/// nothing else.
const SMALL: u64 = 64 << 20;

/// Data files that are small enough to be read before the processes join, each named by its option and, after the
/// first, its number. Differences in larger files are found when the batches are compared.
pub(crate) fn data_files<'a>(files: impl Iterator<Item = (&'static str, &'a PathBuf)>) -> Vec<(String, PathBuf)> {
    let is_small = |file: &Path| file.metadata().is_ok_and(|file| file.is_file() && file.len() <= SMALL);
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    let mut last = ("", 0);
    for (option, file) in files {
        last = if last.0 == option { (option, last.1 + 1) } else { (option, 1) };
        let name = if last.1 == 1 { option.to_string() } else { format!("{option} (file {})", last.1) };
        if is_small(file) || !file.exists() {
            found.push((name, file.clone()));
        }
    }
    found
}

/// A model's configuration and, if `weights` are read and small, its weights.
pub(crate) fn model_files(dir: &Path, weights: bool) -> Vec<(String, PathBuf)> {
    let of_model = |name: &String| name.starts_with("model") && name.ends_with(".safetensors");
    let found = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        found.filter_map(|entry| entry.file_name().into_string().ok()).filter(of_model).collect();
    names.sort();
    let tokenizers = tpc_data::tokenizer::FILES.into_iter().filter(|name| dir.join(name).exists());
    let bytes: u64 = names.iter().filter_map(|name| dir.join(name).metadata().ok()).map(|file| file.len()).sum();
    if !weights || bytes > SMALL {
        names.clear();
    }
    let others = ["config.json"].into_iter().chain(tokenizers).map(str::to_string);
    others.chain(names).map(|name| (name.clone(), dir.join(name))).collect()
}

/// Compares files that may be too large for every process to read before joining: weights and checkpoints.
///
/// # Errors
/// Reports the file that differs, on every process.
pub(crate) fn compare_files(files: &[PathBuf], running: &crate::launch::Running) -> Outcome {
    let Some(processes) = launch::joined() else { return Ok(()) };
    let compared: Result<(), RuntimeError> = settings::compare_files(&*processes, files, running.options()?.deadline);
    Ok(compared?)
}
