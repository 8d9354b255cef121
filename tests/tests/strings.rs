//! No part of the compiler or the runtime derives identity from text: paths, labels, names and reasons are taken apart
//! only where they are parsed or printed, in patterns of plans, and where a file format or the text of another program
//! is read.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The sources that are searched.
const SOURCES: [&str; 4] = ["ir/src", "passes/src", "runtime/src", "compiler/core/src"];

/// Methods that inspect a text, if their argument is a text, a character or a predicate on characters.
const SURGERY: [&str; 22] = [
    "split",
    "rsplit",
    "splitn",
    "rsplitn",
    "split_once",
    "rsplit_once",
    "split_terminator",
    "split_inclusive",
    "strip_prefix",
    "strip_suffix",
    "starts_with",
    "ends_with",
    "contains",
    "find",
    "rfind",
    "matches",
    "rmatches",
    "match_indices",
    "rmatch_indices",
    "trim_start_matches",
    "trim_end_matches",
    "trim_matches",
];

/// Texts that must not be compared: a step, a collective and an operation are identified by what they do.
const WORDS: [&str; 3] = ["label", "module", "why"];

/// The files that may do so, and why.
const ALLOWED: [(&str, &str); 47] = [
    ("ir/src/fold.rs", "prints blocks and reads their lines back"),
    ("ir/src/json.rs", "the JSON form: operations by their names"),
    ("ir/src/mesh.rs", "the text of a mesh, and what may name an axis"),
    ("ir/src/op.rs", "operations and scalars by their names in the text form"),
    ("ir/src/parse.rs", "the parser of the text form"),
    ("ir/src/path.rs", "the text of a path: parsing and printing"),
    ("ir/src/reason.rs", "the words of reasons: parsing and printing"),
    ("ir/src/subscripts.rs", "the text of subscripts"),
    ("ir/src/text.rs", "prints the text form"),
    ("ir/src/verify.rs", "prints axes without their sign in an error"),
    ("passes/src/check/stored.rs", "the JSON form of what a plan obliges a program to"),
    ("passes/src/options/freeze.rs", "a freezing pattern may begin with an exclamation mark"),
    ("passes/src/styles/layout.rs", "the text of a layout in a plan"),
    ("passes/src/styles/plan.rs", "the names of built-in plans"),
    ("passes/src/styles/plan_file.rs", "the file format of plans"),
    ("passes/src/styles/prepare.rs", "the names of prepare functions in a plan"),
    ("compiler/core/src/capture/error.rs", "messages of burn's panics"),
    ("compiler/core/src/capture/operation.rs", "burn's names of operations, for texts"),
    ("compiler/core/src/capture/position.rs", "how burn writes the type of a module"),
    ("compiler/core/src/capture/text.rs", "burn's serialized operations, for a text"),
    ("compiler/core/src/capture/trace.rs", "lines of its own making, which begin with the operation"),
    ("compiler/core/src/explain.rs", "the article before a word; the exclamation mark of a freezing pattern"),
    ("compiler/core/src/memory.rs", "the files of the kernel about memory"),
    ("compiler/core/src/models/mha_mlp.rs", "names of weights in files"),
    ("compiler/core/src/models/pooling.rs", "the file format of sentence transformers"),
    ("compiler/core/src/models/save.rs", "names of weight files"),
    ("compiler/core/src/models/saving.rs", "a size as a user writes it"),
    ("compiler/core/src/models/warning.rs", "names of weights in files, listed for people"),
    ("compiler/core/src/models/weight_map.rs", "names of weights in files"),
    ("compiler/core/src/models/weights.rs", "names of weights in files, and of files"),
    ("runtime/src/checkpoint/directory.rs", "names of checkpoints"),
    ("runtime/src/checkpoint/index.rs", "the file format of checkpoints"),
    ("runtime/src/checkpoint/write.rs", "a message between processes"),
    ("runtime/src/comm/control.rs", "the kernel's text about a process"),
    ("runtime/src/comm/local.rs", "a message between processes"),
    ("runtime/src/comm/mpi/exchange.rs", "a message between processes"),
    ("runtime/src/comm/mpi/join.rs", "a message between processes"),
    ("runtime/src/comm/shared_memory.rs", "a message between processes"),
    ("runtime/src/device/cuda/emit/kernels.rs", "names that the generator itself gave to its kernels"),
    ("runtime/src/device/cuda/nvrtc.rs", "the log of NVRTC"),
    ("runtime/src/device/cuda/search.rs", "a list of folders in an environment variable"),
    ("runtime/src/device/cuda/usage.rs", "the log of NVRTC"),
    ("runtime/src/error.rs", "an error that another process said in words"),
    ("runtime/src/launch/environment.rs", "addresses and variables of launchers"),
    ("runtime/src/launch/rendezvous.rs", "messages between processes"),
    ("runtime/src/launch/slurm.rs", "variables of SLURM"),
    ("runtime/src/launch/supervise.rs", "names of files that an interrupted run leaves"),
];

struct Finding {
    file: String,
    what: String,
}

/// Whether an argument is a text, a character, several characters, or a predicate on characters.
fn is_textual(argument: &TokenStream) -> bool {
    let tokens: Vec<TokenTree> = argument.clone().into_iter().collect();
    let first = tokens.iter().find(|t| !matches!(t, TokenTree::Punct(p) if p.as_char() == '&'));
    match first {
        Some(TokenTree::Literal(literal)) => literal.to_string().starts_with(['"', '\'', 'r']),
        Some(TokenTree::Ident(ident)) => ident == "format" || ident == "char",
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Bracket => is_textual(&group.stream()),
        // A closure on characters.
        Some(TokenTree::Punct(bar)) if bar.as_char() == '|' => {
            let types = tokens.iter().skip(1).take_while(|t| !matches!(t, TokenTree::Punct(p) if p.as_char() == '|'));
            types.into_iter().any(|t| matches!(t, TokenTree::Ident(i) if i == "char"))
        }
        _ => false,
    }
}

/// Searches tokens, except those of test modules.
fn search(tokens: TokenStream, file: &str, found: &mut Vec<Finding>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let ident =
        |at: usize, of: &[&str]| matches!(tokens.get(at), Some(TokenTree::Ident(i)) if of.iter().any(|w| i == w));
    let punct = |at: usize, of: char| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == of);
    let mut note = |what: String| found.push(Finding { file: file.into(), what });
    let mut inner = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let token = &tokens[at];
        match token {
            TokenTree::Punct(p) if p.as_char() == '#' => {
                let is_test = matches!(tokens.get(at + 1), Some(TokenTree::Group(g)) if g.to_string().replace(' ', "") == "[cfg(test)]");
                if is_test {
                    // The item that follows, up to its braces or its semicolon.
                    while at < tokens.len() {
                        at += 1;
                        let ends = match tokens.get(at) {
                            Some(TokenTree::Group(g)) => g.delimiter() == Delimiter::Brace,
                            Some(TokenTree::Punct(p)) => p.as_char() == ';',
                            _ => false,
                        };
                        if ends {
                            break;
                        }
                    }
                }
            }
            TokenTree::Ident(method) if at > 0 && punct(at - 1, '.') && SURGERY.iter().any(|s| method == s) => {
                if let Some(TokenTree::Group(arguments)) = tokens.get(at + 1)
                    && is_textual(&arguments.stream())
                {
                    note(format!(".{method}({})", arguments.stream()));
                }
            }
            TokenTree::Ident(word) if at > 0 && punct(at - 1, '.') && WORDS.iter().any(|w| word == w) => {
                let compares = (punct(at + 1, '=') || punct(at + 1, '!')) && punct(at + 2, '=');
                if compares && matches!(tokens.get(at + 3), Some(TokenTree::Literal(_))) {
                    note(format!("{word} is compared with a text"));
                }
            }
            TokenTree::Ident(reason) if reason == "Reason" && punct(at + 1, ':') && ident(at + 3, &["read"]) => {
                note("a reason is read from words".into());
            }
            _ => {}
        }
        if let Some(TokenTree::Group(group)) = tokens.get(at) {
            let after_test = at > 1 && tokens[..at].iter().rev().take(6).any(|t| {
                matches!(t, TokenTree::Group(g) if g.delimiter() == Delimiter::Bracket && g.to_string().replace(' ', "") == "[cfg(test)]")
            });
            if !(after_test && group.delimiter() == Delimiter::Brace) {
                inner.push(group.stream());
            }
        }
        at += 1;
    }
    inner.into_iter().for_each(|group| search(group, file, found));
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, found),
            false if path.extension().is_some_and(|e| e == "rs") => found.push(path),
            false => {}
        }
    }
}

#[test]
fn texts_are_taken_apart_only_where_they_are_read_and_printed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    let mut files = Vec::new();
    SOURCES.iter().for_each(|dir| sources(&root.join(dir), &mut files));
    files.sort();
    let mut found = Vec::new();
    for file in &files {
        let name = file.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        let source = std::fs::read_to_string(file).unwrap();
        search(TokenStream::from_str(&source).unwrap_or_else(|e| panic!("{name}: {e}")), &name, &mut found);
    }
    let allowed = |file: &str| ALLOWED.iter().any(|(path, _)| *path == file);
    let wrong: Vec<String> =
        found.iter().filter(|f| !allowed(&f.file)).map(|f| format!("{}: {}", f.file, f.what)).collect();
    assert!(wrong.is_empty(), "identity is a type; take no text apart here:\n{}", wrong.join("\n"));
    // An entry that is no longer needed must be removed.
    let needed: BTreeSet<&str> = found.iter().map(|f| f.file.as_str()).collect();
    let idle: Vec<&str> = ALLOWED.iter().map(|(path, _)| *path).filter(|path| !needed.contains(path)).collect();
    assert!(idle.is_empty(), "these take no text apart: {idle:?}");
    assert!(ALLOWED.iter().all(|(_, why)| !why.is_empty()));
}
