//! Every parser of texts from users or files, on almost correct inputs.
//!
//! | question | file |
//! |---|---|
//! | plan files | `plan` |
//! | the IR's text and JSON | `ir` |
//! | `config.json` | `config` |
//! | safetensors, and the index of several files | `weights` |
//! | the index of a checkpoint | `checkpoint` |
//! | launchers' environments | `environment` |
//! | meshes and path patterns, as in arguments | `arguments` |
//! | how an input is made from valid ones | `mutate` |
//! | random choices | `dice` |
//!
//! An execution makes an input from the seed and its own number, and parses it. It fails if the parser panics, if an
//! accepted input lacks the properties that the parser's file names, or if the parser allocates more bytes in total
//! than a constant times the length of the input. This bounds the memory, and the time as far as work needs memory.
//! Where steps can be counted (path patterns), they are.

mod arguments;
mod checkpoint;
mod config;
mod dice;
mod environment;
mod ir;
mod mutate;
mod plan;
mod weights;

pub use dice::Dice;
pub use weights::clean;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

/// A parser and its inputs.
pub struct Parser {
    /// Its name.
    pub name: &'static str,
    /// Valid inputs.
    corpus: fn() -> Vec<Vec<u8>>,
    /// Words that have a meaning to the parser.
    tokens: &'static [&'static str],
    /// An input made by a grammar.
    generate: fn(&mut Dice) -> Vec<u8>,
    /// Parses an input, returns whether it is accepted, and panics if the result is wrong.
    parse: fn(&[u8]) -> bool,
    /// Bytes that it may allocate for any input.
    base: usize,
    /// Bytes that it may allocate for each byte of the input.
    per_byte: usize,
    /// How many times the input can be as long as its bytes, if it can repeat a part.
    repeats: fn(&[u8]) -> usize,
}

/// All parsers.
pub const PARSERS: [&Parser; 10] = [
    &plan::PLAN,
    &ir::TEXT,
    &ir::JSON,
    &config::CONFIG,
    &weights::FILE,
    &weights::INDEX,
    &checkpoint::INDEX,
    &environment::ENVIRONMENT,
    &arguments::MESH,
    &arguments::GLOB,
];

/// An input that a parser fails on.
#[derive(Debug)]
pub struct Finding {
    /// The parser.
    pub parser: &'static str,
    /// The number of the execution; together with the seed it reproduces the input.
    pub execution: u64,
    /// The input.
    pub input: Vec<u8>,
    /// What is wrong.
    pub problem: String,
}

/// Statistics of a search without a finding.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Inputs that were parsed.
    pub executions: u64,
    /// Inputs that were accepted.
    pub accepted: u64,
    /// The longest input.
    pub longest: usize,
    /// The most bytes allocated per byte of an input of more than 1,000 bytes.
    pub most_per_byte: usize,
}

/// How many bytes the process has allocated so far, including freed ones.
pub type Meter<'a> = &'a dyn Fn() -> usize;

impl Parser {
    /// Feeds the parser with the inputs of the executions with these numbers.
    ///
    /// # Errors
    /// The first input that it fails on.
    pub fn run(&self, seed: u64, executions: std::ops::Range<u64>, meter: Meter) -> Result<Seen, Box<Finding>> {
        let corpus = (self.corpus)();
        let mut seen = Seen::default();
        // Data that are created once, such as tables, do not count for an input.
        for input in &corpus {
            assert!((self.parse)(input), "{}: a valid input is refused: {}", self.name, String::from_utf8_lossy(input));
        }
        for execution in executions {
            let mut dice = Dice::new(seed, execution);
            let input = match dice.below(8) {
                0 => mutate::soup(&mut dice, self.tokens),
                1 | 2 => (self.generate)(&mut dice),
                _ => mutate::mutated(&mut dice, &corpus, self.tokens),
            };
            match self.execute(&input, meter) {
                Ok((accepted, allocated)) => {
                    seen.executions += 1;
                    seen.accepted += u64::from(accepted);
                    seen.longest = seen.longest.max(input.len());
                    if input.len() > 1000 {
                        let length = input.len() * (self.repeats)(&input);
                        seen.most_per_byte = seen.most_per_byte.max(allocated / length);
                    }
                }
                Err(problem) => {
                    return Err(Box::new(Finding { parser: self.name, execution, input, problem }));
                }
            }
        }
        Ok(seen)
    }

    /// Whether an input is accepted, and the bytes that were allocated for it.
    fn execute(&self, input: &[u8], meter: Meter) -> Result<(bool, usize), String> {
        let before = meter();
        let accepted = catch_unwind(AssertUnwindSafe(|| (self.parse)(input))).map_err(|panic| message(&*panic))?;
        let allocated = meter() - before;
        let most = self.base + self.per_byte * input.len() * (self.repeats)(input);
        if allocated > most {
            return Err(format!("{allocated} bytes are allocated for {}, at most {most} expected", input.len()));
        }
        Ok((accepted, allocated))
    }
}

/// Where the latest panic happened; only known after [`quiet_panics`].
static PANICKED_AT: Mutex<String> = Mutex::new(String::new());

/// Keeps panics from printing: each is a finding, which is shown with its input.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        *PANICKED_AT.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }));
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let place = PANICKED_AT.lock().unwrap_or_else(PoisonError::into_inner);
    format!("panic at {place}: {}", text.unwrap_or("no message"))
}

/// For inputs that cannot repeat a part.
fn once(_: &[u8]) -> usize {
    1
}

/// The files with valid inputs in a directory of the tests' data.
fn data(dir: &str) -> Vec<Vec<u8>> {
    let dir = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data").join(dir);
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap_or_else(|e| panic!("{}: {e}", dir.display())).path())
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))).collect()
}

/// Checks that an error's text suits a terminal and a reader.
fn check_message(error: &dyn std::fmt::Display) {
    let text = error.to_string();
    assert!(!text.is_empty(), "an error without a text");
    assert!(text.chars().count() <= MOST_MESSAGE, "a message of {} characters: {text:.300}", text.chars().count());
    assert!(!text.contains(|c: char| c.is_control()), "a message with control characters: {text:?}");
}

/// Checks that an error has a text; the command shortens and escapes texts from files and environments.
fn check_text(error: &dyn std::fmt::Display) {
    assert!(!error.to_string().is_empty(), "an error without a text");
}

/// A message may contain several texts of the user, each shortened.
const MOST_MESSAGE: usize = 3000;
