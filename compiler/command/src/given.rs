//! Which options were given on the command line, as opposed to having their default. An option without effect is an
//! error.

use crate::{Failure, Outcome};
use clap::ArgMatches;
use clap::parser::ValueSource;
use std::ffi::OsString;

/// The options given to a subcommand, by their names in Rust: `micro_batches`.
#[derive(Clone, Debug, Default)]
pub struct Given {
    options: Vec<String>,
    line: Vec<String>,
}

impl Given {
    /// The options among a subcommand's arguments that were given.
    pub fn of(matches: &ArgMatches) -> Self {
        let ids = matches.ids().map(|id| id.as_str());
        let on_the_line = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
        Given { options: ids.filter(on_the_line).map(str::to_string).collect(), line: Vec::new() }
    }

    /// Adds the command line that the options were given on.
    #[must_use]
    pub fn on(self, line: &[OsString]) -> Self {
        Given { line: line.iter().map(|word| word.to_string_lossy().into_owned()).collect(), ..self }
    }

    /// The command line with one more option, in shell syntax.
    pub fn line_with(&self, option: &str) -> String {
        let words = self.line.iter().map(String::as_str).chain([option]).map(quoted);
        words.collect::<Vec<_>>().join(" ")
    }

    /// Whether an option was given.
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|given| given == option)
    }

    /// The first of these options that was given, as it is spelled on the command line.
    pub fn first(&self, options: &[&str]) -> Option<String> {
        let found = options.iter().find(|option| self.has(option))?;
        Some(format!("--{}", found.replace('_', "-")))
    }

    /// An error if one of these options was given, because none of them has an effect for this reason.
    ///
    /// # Errors
    /// Names the first such option.
    pub fn refuse(&self, options: &[&str], reason: &str) -> Outcome {
        match self.first(options) {
            Some(option) => Err(Failure::new(format!("{option} has no effect {reason}; leave it out"))),
            None => Ok(()),
        }
    }
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+%@".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_one_that_a_shell_reads() {
        let line = ["tpc", "train", "a b", "it's", "", "--mesh", "dp=2,tp=2"].map(OsString::from);
        assert_eq!(
            Given::default().on(&line).line_with("--resume"),
            r"tpc train 'a b' 'it'\''s' '' --mesh dp=2,tp=2 --resume"
        );
    }
}
