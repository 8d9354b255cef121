//! Settings that must be the same for all processes of a world in addition to their programs: options, data, seeds,
//! weights. They are compared when the processes join, because processes with different settings would compute a result
//! that none of them was asked for.

use crate::comm::Processes;
use crate::digest::Digest;
use crate::error::RuntimeError;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// Named values in the order in which differences are reported, for example `--lr` and `0.001`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings(Vec<(String, String)>);

/// Number of characters of a value that are shown.
const SHOWN: usize = 80;
/// Number of differences that are reported.
const TOLD: usize = 5;

impl Settings {
    /// Creates empty settings.
    pub fn new() -> Self {
        Settings::default()
    }

    /// Sets a value; `name` is the subject of "is VALUE on rank 0 and VALUE on rank 1".
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let (name, value) = (name.into(), value.into());
        match self.0.iter_mut().find(|known| known.0 == name) {
            Some(known) => known.1 = value,
            None => self.0.push((name, value)),
        }
    }

    /// Whether there are no settings.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|s| s.0 == name).map(|s| s.1.as_str())
    }
}

/// The differences between the settings of some ranks, each with its number: `--lr is 0.01 on rank 0 and 0.001 on ranks
/// 1, 2`. `None` if there are none.
pub fn difference(all: &[(usize, &Settings)]) -> Option<String> {
    let mut names: Vec<&str> = Vec::new();
    for name in all.iter().flat_map(|(_, settings)| &settings.0).map(|(name, _)| name.as_str()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let differing: Vec<String> = names.iter().filter_map(|name| difference_in(name, all)).collect();
    let more = match differing.len().checked_sub(TOLD) {
        None | Some(0) => String::new(),
        Some(more) => format!("; and {more} more"),
    };
    let told = differing.iter().take(TOLD).map(String::as_str).collect::<Vec<_>>().join("; ");
    (!told.is_empty()).then(|| told + &more)
}

fn difference_in(name: &str, all: &[(usize, &Settings)]) -> Option<String> {
    // Every value with the ranks that have it, in the order of the ranks.
    let mut values: Vec<(Option<&str>, Vec<usize>)> = Vec::new();
    for (rank, settings) in all {
        let value = settings.get(name);
        match values.iter_mut().find(|(known, _)| *known == value) {
            Some((_, ranks)) => ranks.push(*rank),
            None => values.push((value, vec![*rank])),
        }
    }
    if values.len() < 2 {
        return None;
    }
    let one = |(value, ranks): &(Option<&str>, Vec<usize>)| {
        let numbers: Vec<String> = ranks.iter().map(ToString::to_string).collect();
        let ranks = if ranks.len() == 1 { "rank" } else { "ranks" };
        format!("{} on {ranks} {}", value.map_or("not given".into(), shown), numbers.join(", "))
    };
    let values: Vec<String> = values.iter().map(one).collect();
    let (last, first) = values.split_last()?;
    Some(format!("{name} is {} and {last}", first.join(", ")))
}

fn shown(value: &str) -> String {
    let cut: String = value.chars().take(SHOWN).collect();
    if cut.len() < value.len() { format!("{cut}…") } else { cut }
}

/// Compares the settings of all processes.
///
/// # Errors
/// Every process reports the differences; a process that does not respond.
pub fn compare(processes: &dyn Processes, settings: &Settings, deadline: Duration) -> Result<(), RuntimeError> {
    if processes.count() == 1 {
        return Ok(());
    }
    let mine = serde_json::to_vec(settings).unwrap_or_default();
    let all = processes.exchange("launch: compare settings", &mine, deadline)?;
    let parsed: Vec<Settings> =
        all.iter().map(|bytes| serde_json::from_slice(bytes).unwrap_or_default()).collect::<Vec<_>>();
    let numbered: Vec<(usize, &Settings)> = parsed.iter().enumerate().collect();
    difference(&numbered).map_or(Ok(()), |difference| Err(RuntimeError::Settings(difference)))
}

/// The identity of a file without reading it: any change of a file changes one of these.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    name: String,
    bytes: u64,
    inode: u64,
    modified: u128,
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        let metadata = path.metadata().ok()?;
        Some(Identity {
            name: path.file_name()?.to_string_lossy().into_owned(),
            bytes: metadata.len(),
            inode: metadata.ino(),
            modified: metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos(),
        })
    }
}

/// Compares files that all processes read, one by one. A file that is the same file on all processes is not read;
/// copies, for example on several hosts, are compared by their contents.
///
/// # Errors
/// Every process reports which file differs; a process that does not respond.
pub fn compare_files(processes: &dyn Processes, files: &[PathBuf], deadline: Duration) -> Result<(), RuntimeError> {
    if processes.count() == 1 {
        return Ok(());
    }
    let mine: Vec<Option<Identity>> = files.iter().map(|file| Identity::of(file)).collect();
    let all = processes.exchange("launch: compare files", &serde_json::to_vec(&mine).unwrap_or_default(), deadline)?;
    if all.iter().all(|theirs| *theirs == all[0]) && mine.iter().all(Option::is_some) {
        return Ok(());
    }
    let mut settings = Settings::new();
    settings.set("the number of files", files.len().to_string());
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let digest = Digest::of_file(file, || processes.progress());
        let value = digest.map_or_else(|e| format!("unreadable ({e})"), |digest| digest.to_string());
        settings.set(format!("the digest of {name}"), value);
    }
    compare(processes, &settings, deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[(&str, &str)]) -> Settings {
        Settings(values.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
    }

    fn told(all: &[&Settings]) -> Option<String> {
        difference(&all.iter().copied().enumerate().collect::<Vec<_>>())
    }

    #[test]
    fn differences_name_what_and_where() {
        let base = of(&[("--lr", "0.01"), ("--steps", "5")]);
        assert_eq!(told(&[&base, &base]), None);
        assert_eq!(told(&[]), None);
        let slow = of(&[("--lr", "0.001"), ("--steps", "5")]);
        let expected = "--lr is 0.01 on ranks 0, 2 and 0.001 on rank 1";
        assert_eq!(told(&[&base, &slow, &base]).as_deref(), Some(expected));
        let short = of(&[("--lr", "0.01")]);
        assert_eq!(told(&[&short, &base]).as_deref(), Some("--steps is not given on rank 0 and 5 on rank 1"));
        let all = [of(&[("a", "1")]), of(&[("a", "2")]), of(&[("a", "3")])];
        assert_eq!(told(&all.each_ref()).as_deref(), Some("a is 1 on rank 0, 2 on rank 1 and 3 on rank 2"));
    }

    #[test]
    fn many_and_long_differences_are_cut() {
        let names: Vec<String> = (0..8).map(|i| format!("o{i}")).collect();
        let with = |value: &str| Settings(names.iter().map(|n| (n.clone(), value.to_string())).collect());
        let text = told(&[&with("x"), &with(&"y".repeat(1000))]).unwrap();
        assert!(text.ends_with("; and 3 more") && text.len() < 800, "{text}");
        assert!(text.contains(&format!("{}… on rank 1", "y".repeat(80))), "{text}");
    }
}
