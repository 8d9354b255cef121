//! Which options stand on the command line, as against those that have their default: one that changes nothing is an error, not silence.

use crate::{Failure, Outcome};
use clap::ArgMatches;
use clap::parser::ValueSource;

/// The options that a subcommand was given, by their names in Rust: `micro_batches`.
#[derive(Clone, Debug, Default)]
pub struct Given(Vec<String>);

impl Given {
    /// The options of a subcommand's arguments.
    pub fn of(matches: &ArgMatches) -> Self {
        let ids = matches.ids().map(|id| id.as_str());
        let on_the_line = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
        Given(ids.filter(on_the_line).map(str::to_string).collect())
    }

    /// Whether an option was given.
    pub fn has(&self, option: &str) -> bool {
        self.0.iter().any(|given| given == option)
    }

    /// The first of these options that was given, as it is spelled on the command line.
    pub fn first(&self, options: &[&str]) -> Option<String> {
        let found = options.iter().find(|option| self.has(option))?;
        Some(format!("--{}", found.replace('_', "-")))
    }

    /// An error if one of these options was given, which all have no effect for this reason.
    ///
    /// # Errors
    /// The first of them.
    pub fn refuse(&self, options: &[&str], reason: &str) -> Outcome {
        match self.first(options) {
            Some(option) => Err(Failure::new(format!("{option} has no effect {reason}; leave it out"))),
            None => Ok(()),
        }
    }
}
