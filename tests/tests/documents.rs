//! Checks documents: every path and link in a document or a comment exists, and what a document lists is what the code
//! contains.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Tensor, activation::gelu};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use tpc::{Trainer, text};
use tpc_passes::egraph::SearchOptions;
use tpc_passes::egraph::rules::{Tag, all_rules};
use tpc_passes::styles::{ColwiseParallel, Plan, RowwiseParallel};

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// All files of the repository, by their relative paths.
fn files() -> Vec<String> {
    fn walk(dir: &Path, from: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if name == "target" || name == "shared" || (name.starts_with('.') && name != ".ci") {
                continue;
            }
            match path.is_dir() {
                true => walk(&path, from, found),
                false => found.push(path.strip_prefix(from).unwrap().to_string_lossy().into_owned()),
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &root(), &mut found);
    found.sort();
    found
}

// ---------------------------------------------------------------------------------------------------------------------
// Paths and links

/// Expands `{a,b}` in a text.
fn alternatives(text: &str) -> Vec<String> {
    let Some((before, rest)) = text.split_once('{') else { return vec![text.into()] };
    let Some((inner, after)) = rest.split_once('}') else { return vec![text.into()] };
    let each = inner.split(',').flat_map(|one| alternatives(&format!("{before}{one}{after}")));
    each.collect()
}

/// Whether a path, which may contain `*`, is a file or folder, or the end of the path of one.
fn is_there(path: &str, files: &[String]) -> bool {
    fn segment(pattern: &str, name: &str) -> bool {
        match pattern.split_once('*') {
            None => pattern == name,
            Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
                (0..=rest.len()).filter(|&at| rest.is_char_boundary(at)).any(|at| segment(after, &rest[at..]))
            }),
        }
    }
    let wanted: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    files.iter().any(|file| {
        let names: Vec<&str> = file.split('/').collect();
        let ends = |window: &[&str]| window.iter().zip(&wanted).all(|(name, pattern)| segment(pattern, name));
        names.windows(wanted.len()).any(ends)
    })
}

/// The top-level folders of the repository. A text that begins with one is a path in it.
const TOP: [&str; 7] = [".ci/", "compiler/", "examples/", "ir/", "passes/", "runtime/", "tests/"];

/// The words of a text that are paths in the repository. Sources and documents are recognized by their extensions,
/// folders in documents by a trailing slash, and everything else by the top-level folder.
fn paths(text: &str, document: bool) -> Vec<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-./{},*@".contains(c);
    let words = text.split(|c| !is_part(c)).map(|word| word.trim_end_matches(['.', ',', '-']).trim_start_matches(','));
    let balanced = |word: &&str| word.matches('{').count() == word.matches('}').count();
    let words = words.filter(balanced).filter(|word| !word.contains(".."));
    let is_folder = |word: &str| document && word.ends_with('/') && word.starts_with(char::is_alphanumeric);
    words.filter(|word| TOP.iter().any(|top| word.starts_with(top)) || is_source(word) || is_folder(word)).collect()
}

/// Whether a word names a file of this repository, rather than one of burn or of a user.
fn is_source(word: &str) -> bool {
    let (stem, ending) = word.rsplit_once('.').unwrap_or((word, ""));
    let named = stem.rsplit('/').next().is_some_and(|name| name.chars().any(char::is_alphanumeric));
    named && matches!(ending, "rs" | "md" | "snap" | "cuh" | "cpp") && !word.starts_with("burn-")
}

/// The comments of a source file, line by line, or all lines of a document.
fn prose(path: &str, text: &str) -> Vec<(usize, String)> {
    let comment = |line: &str| {
        let mark = match path.rsplit_once('.').map(|(_, ending)| ending) {
            Some("md") => return Some(line.to_string()),
            Some("rs") => "//",
            Some("toml" | "py") => "#",
            // Scripts have no extension.
            _ if text.starts_with("#!") => "#",
            _ => return None,
        };
        let at = line.find(mark)?;
        // A URL does not begin a comment.
        (!line[..at].ends_with(':')).then(|| line[at..].to_string())
    };
    let lines = text.lines().enumerate();
    lines.filter_map(|(number, line)| comment(line).map(|prose| (number + 1, prose))).collect()
}

/// The faults of a line: paths that do not exist, and addresses that are invalid.
fn faults(line: &str, document: bool, files: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    for word in paths(line, document) {
        let missing = alternatives(word).into_iter().filter(|path| !is_there(path, files));
        wrong.extend(missing.map(|path| format!("`{path}` is not in the repository")));
    }
    for scheme in ["http://", "https://"] {
        for (at, _) in line.match_indices(scheme) {
            let address: &str = line[at + scheme.len()..]
                .split(|c: char| c.is_whitespace() || ")>`\"'".contains(c))
                .next()
                .unwrap_or("");
            let host = address.split(['/', ':', '?', '#']).next().unwrap_or("");
            let legal = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
            if !(host.contains('.') && host.split('.').all(legal)) {
                wrong.push(format!("{scheme}{address} is no address"));
            }
        }
    }
    wrong
}

#[test]
fn every_path_that_a_document_or_a_comment_names_is_there() {
    let files = files();
    let mut wrong = Vec::new();
    for path in &files {
        if path.starts_with("tests/data/") {
            continue;
        }
        let Ok(text) = fs::read_to_string(root().join(path)) else { continue };
        for (number, line) in prose(path, &text) {
            wrong.extend(
                faults(&line, path.ends_with(".md"), &files)
                    .into_iter()
                    .map(|fault| format!("{path}:{number}: {fault}")),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether a word of the map stands for a source file: it is the end of the file's path, or a folder on it.
fn stands_for(word: &str, file: &str) -> bool {
    let file = format!("/{file}");
    match word.ends_with('/') {
        true => file.contains(&format!("/{word}")),
        false => file.ends_with(&format!("/{word}")),
    }
}

/// ARCHITECTURE.md says which file answers which question. `lib.rs` and `mod.rs` say themselves what is in their folders.
#[test]
fn every_source_file_is_in_the_map() {
    let map = read("ARCHITECTURE.md");
    // A section, for example "`passes/`: from graph …", is about the files of a folder and names them within it.
    let sections = map.split("\n## ").filter_map(|section| {
        let words: Vec<&str> = section.split('`').skip(1).step_by(2).collect();
        let folder = words.first().filter(|word| section.starts_with('`') && word.ends_with('/'))?;
        let names: Vec<String> = words.iter().flat_map(|word| alternatives(word)).collect();
        Some((*folder, names))
    });
    let sections: BTreeMap<&str, Vec<String>> = sections.collect();
    let mut missing = Vec::new();
    for file in files().iter().filter(|file| file.contains("/src/") && file.ends_with(".rs")) {
        let of = sections.iter().filter(|(folder, _)| file.starts_with(**folder));
        let Some((_, names)) = of.max_by_key(|(folder, _)| folder.len()) else { continue };
        let is_root = ["/lib.rs", "/mod.rs", "/main.rs"].iter().any(|end| file.ends_with(end));
        if !is_root && !names.iter().any(|name| stands_for(name, file)) {
            missing.push(file.clone());
        }
    }
    assert!(sections.len() > 5 && missing.is_empty(), "not in ARCHITECTURE.md: {missing:#?}");
    assert!(stands_for("lower/emit/", "src/lower/emit/views.rs") && stands_for("views.rs", "src/lower/emit/views.rs"));
    assert!(!stands_for("iews.rs", "src/lower/emit/views.rs") && !stands_for("emit/", "src/lower/views.rs"));
}

#[test]
fn a_wrong_path_is_found() {
    let files = ["passes/src/egraph/rules/mod.rs", "ir/LAWS.md", "tests/run"].map(String::from);
    let wrong = |line: &str| faults(line, true, &files).len();
    for right in [
        "see `rules/mod.rs`.",
        "`egraph/{rules}/`",
        "(ir/LAWS.md)",
        "tests/*",
        "either/or",
        "[docs](https://burn.dev/x)",
    ] {
        assert_eq!(wrong(right), 0, "{right}");
    }
    for bad in [
        "RULES.md section 3",
        "`rules/table.rs`",
        "`rules/{mod,no}.rs`",
        "egraph/role/",
        "tests/runs",
        "ules/mod.rs",
        "https://burn/x",
    ] {
        assert_eq!(wrong(bad), 1, "{bad}");
    }
}

/// Every link between documents leads to an existing file and heading.
#[test]
fn every_link_of_a_document_leads_somewhere() {
    let mut wrong = Vec::new();
    for path in files().iter().filter(|path| path.ends_with(".md")) {
        let text = read(path);
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap_or("");
            if target.starts_with("http") {
                continue; // checked above
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let linked = match file {
                "" => root().join(path),
                file => root().join(path).parent().unwrap().join(file),
            };
            let anchors = || -> Vec<String> {
                let text = fs::read_to_string(&linked).unwrap_or_default();
                let headings = text.lines().filter(|line| line.starts_with('#'));
                headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
            };
            if !linked.exists() || !heading.is_empty() && !anchors().iter().any(|a| a == heading) {
                wrong.push(format!("{path}: {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The anchor of a heading in a link.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
    kept.replace(' ', "-")
}

// ---------------------------------------------------------------------------------------------------------------------
// Tables

/// The rows of the tables in a text, cell by cell.
fn rows(text: &str) -> Vec<Vec<String>> {
    let lines = text.lines().map(|line| line.trim_start_matches("//!").trim());
    let row = |line: &str| -> Option<Vec<String>> {
        let inner = line.strip_prefix('|')?.strip_suffix('|')?.replace("\\|", "\u{0}");
        Some(inner.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect())
    };
    lines.filter_map(row).collect()
}

/// A cell without its backticks.
fn bare(cell: &str) -> &str {
    cell.trim_matches('`')
}

#[test]
fn every_rule_of_the_e_graph_is_documented_and_every_documented_one_exists() {
    let usual = SearchOptions::default();
    let found: Vec<Vec<String>> = rows(&read("passes/src/egraph/rules/RULES.md"))
        .into_iter()
        .filter(|row| row[0].parse::<u32>().is_ok())
        .map(|row| vec![row[0].clone(), row[1].clone(), bare(&row[2]).to_string(), row[4].clone(), row[5].clone()])
        .collect();
    let expected: Vec<Vec<String>> = all_rules()
        .iter()
        .map(|rule| {
            let effect = match rule.tag {
                Tag::Exact => "exact",
                Tag::Reassociates => "reassociates",
                Tag::Precision => "precision",
            };
            let default = if usual.allows(rule) { "on" } else { "off" };
            [&rule.id.to_string(), rule.name, rule.equality, effect, default].map(str::to_string).to_vec()
        })
        .collect();
    assert_eq!(found, expected);
}

/// The rows of the table of costs are exactly the rows that are executed.
#[test]
fn the_costs_of_the_guide_are_those_that_are_tested() {
    let mut tested = BTreeSet::new();
    for name in ["parts", "ends", "decoders", "fsdp"] {
        let text = read(&format!("tests/tests/snapshots/suite__allowance__{name}.snap"));
        let body = text.splitn(3, "---\n").nth(2).unwrap();
        tested.extend(body.lines().filter(|line| !line.starts_with(' ')).map(str::to_string));
    }
    let told: BTreeSet<String> = rows(&read("compiler/src/guide/costs.rs"))
        .into_iter()
        .filter(|row| row[0] != "model and plan" && !row[0].starts_with('-'))
        .map(|row| {
            let phases: Vec<&str> = row[1..].iter().map(String::as_str).filter(|cell| !cell.is_empty()).collect();
            format!("{}: {}", row[0], phases.join(" | "))
        })
        .collect();
    assert_eq!(told, tested);
}

/// The schema describes exactly what the parser of plan files accepts, as its errors list it.
#[test]
fn the_schema_of_plan_files_is_what_the_parser_accepts() {
    let schema: Json = serde_json::from_str(tpc_passes::styles::plan::SCHEMA).unwrap();
    let keys = |json: &Json| -> BTreeSet<String> {
        json["properties"].as_object().map(|all| all.keys().cloned().collect()).unwrap_or_default()
    };
    let known = |plan: Json, before: &str| -> BTreeSet<String> {
        let error = Plan::from_json(&plan.to_string()).unwrap_err().to_string();
        let list = error.rsplit_once(before).unwrap_or_else(|| panic!("{error}")).1;
        list.split(", ").filter(|name| *name != "none").map(str::to_string).collect()
    };
    let json = |text: &str| serde_json::from_str::<Json>(text).unwrap();
    assert_eq!(keys(&schema), known(json(r#"{"?": 1}"#), "known are "));
    assert_eq!(keys(&schema["$defs"]["data"]), known(json(r#"{"data": {"mode": "ddp", "?": 1}}"#), "known are "));
    let placements = known(json(r#"{"placements": {"?": 1}}"#), "known are ");
    assert_eq!(keys(&schema["properties"]["placements"]), placements);
    let styles = known(json(r#"{"styles": {"a": "?"}}"#), "use ");
    assert_eq!(keys(&schema["$defs"]["style"]), styles);
    let names = schema["$defs"]["name"]["enum"].as_array().unwrap();
    assert_eq!(names.iter().map(|name| name.as_str().unwrap().to_string()).collect::<BTreeSet<_>>(), styles);
    for style in styles {
        let options = &schema["$defs"]["style"]["properties"][&style];
        let options = match options["$ref"].as_str() {
            Some(name) => &schema["$defs"][name.rsplit('/').next().unwrap()],
            None => options,
        };
        let plan = format!(r#"{{"styles": {{"a": {{"{style}": {{"?": 1}}}}}}}}"#);
        assert_eq!(keys(options), known(json(&plan), "known are "), "{style}");
    }
    let modes = schema["$defs"]["mode"]["enum"].as_array().unwrap();
    for mode in modes {
        assert!(Plan::from_json(&serde_json::json!({ "data": mode }).to_string()).is_ok(), "{mode}");
    }
    let error = Plan::from_json(r#"{"data": "?"}"#).unwrap_err().to_string();
    assert_eq!(error.matches('"').count(), 2 * modes.len(), "{error}");
}

// ---------------------------------------------------------------------------------------------------------------------
// Messages

/// The string literals of a token stream, except for documentation.
fn literals(tokens: TokenStream, found: &mut BTreeSet<String>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => {
                let is_doc = group.delimiter() == Delimiter::Bracket
                    && matches!(group.stream().into_iter().next(), Some(TokenTree::Ident(name)) if name == "doc");
                if !is_doc {
                    literals(group.stream(), found);
                }
            }
            TokenTree::Literal(literal) => {
                if let Ok(text) = syn::parse_str::<syn::LitStr>(&literal.to_string()) {
                    let text = text.value();
                    found.insert(text.trim_end().trim_start_matches("error: ").to_string());
                }
            }
            _ => {}
        }
    }
}

/// Whether a literal, whose braces match any text, can have produced a message; if so, how much of the message is
/// literal text.
fn made_from(message: &str, literal: &str) -> Option<usize> {
    let mut pieces = vec![String::new()];
    let mut rest = literal;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, brace) = rest.split_at(at);
        pieces.last_mut()?.push_str(before);
        rest = match (brace.strip_prefix("{{"), brace.strip_prefix("}}"), brace.find('}')) {
            (Some(after), ..) => (pieces.last_mut()?.push('{'), after).1,
            (_, Some(after), _) => (pieces.last_mut()?.push('}'), after).1,
            (.., Some(end)) => (pieces.push(String::new()), &brace[end + 1..]).1,
            (.., None) => return None,
        };
    }
    pieces.last_mut()?.push_str(rest);
    let (first, others) = pieces.split_first()?;
    let mut left = message.strip_prefix(first.as_str())?;
    for (i, piece) in others.iter().enumerate() {
        left = match i + 1 == others.len() {
            true => left.strip_suffix(piece.as_str())?,
            false => left.split_once(piece.as_str())?.1,
        };
    }
    (left.is_empty() || !others.is_empty()).then(|| pieces.iter().map(String::len).sum())
}

/// A test expects or the code produces every message in the chapter on troubleshooting.
#[test]
fn messages_of_the_guide_are_real() {
    let chapter = "compiler/src/guide/troubleshooting.rs";
    let mut known = BTreeSet::new();
    for path in files().iter().filter(|path| path.ends_with(".rs") && !path.contains("src/guide/")) {
        if path != "tests/tests/documents.rs" {
            literals(TokenStream::from_str(&read(path)).unwrap_or_else(|e| panic!("{path}: {e}")), &mut known);
        }
    }
    let text: Vec<String> =
        read(chapter).lines().map(|line| line.trim_start_matches("//!").trim().to_string()).collect();
    let mut told = 0;
    for (i, _) in text.iter().enumerate().filter(|(_, line)| *line == "```text") {
        let message = &text[i + 1];
        assert_eq!(text[i + 2], "```", "one message is one line: {message}");
        let said = known.iter().filter_map(|literal| made_from(message, literal)).max().unwrap_or(0);
        assert!(3 * said >= message.len(), "nothing says: {message}");
        told += 1;
    }
    assert!(told > 30, "{told} messages");
}

// ---------------------------------------------------------------------------------------------------------------------
// The README's program

#[derive(Module, Debug)]
struct Mlp {
    up: Linear,
    down: Linear,
}

#[derive(tpc::Batch, Clone, Debug)]
struct Pairs {
    x: Tensor<2>,
    y: Tensor<2>,
}

/// The README shows the program of `examples/src/bin/quickstart.rs`, and the part of its output about the forward pass.
#[test]
fn the_program_of_the_readme_is_the_example_and_prints_what_the_readme_shows() {
    let readme = read("README.md");
    let block = |begin: &str| readme.split(begin).nth(1).unwrap().split("```").next().unwrap().trim().to_string();
    let example = read("examples/src/bin/quickstart.rs");
    assert_eq!(block("```rust\n"), example.split_once('\n').unwrap().1.trim());

    let pairs = Pairs { x: Tensor::ones([32, 64], &Device::flex()), y: Tensor::ones([32, 64], &Device::flex()) };
    let build = |d: &Device| Mlp { up: LinearConfig::new(64, 256).init(d), down: LinearConfig::new(256, 64).init(d) };
    let compiled = Trainer::new(build, AdamWConfig::new().build())
        .mesh([("tp", 2)])
        .unwrap()
        .plan(Plan::new().with("up", ColwiseParallel::default()).with("down", RowwiseParallel::default()))
        .lr(3e-3)
        .compile(&pairs, |m, Pairs { x, y }: Pairs| (m.down.forward(gelu(m.up.forward(x))) - y).square().mean())
        .unwrap();
    let printed = text::print(&compiled.stages().placed);
    let mut left = printed.lines();
    for line in block("```text\n").lines() {
        assert!(left.any(|found| found == line), "{line}\n{printed}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Counts

/// The lines of code: those that are neither blank nor comments.
fn code(path: &str) -> Vec<String> {
    let text = read(path);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
    lines.map(str::to_string).collect()
}

/// The guide's count of lines that a mesh adds to a program in burn alone is correct.
#[test]
fn a_sharded_program_is_as_many_lines_longer_as_the_guide_says() {
    const NAMES: [&str; 18] = [
        "tpc",
        "Batch",
        "Trainer",
        "trainer",
        "Plan",
        "plan",
        "Mesh",
        "mesh",
        "join",
        "processes",
        "PairwiseParallel",
        "compile",
        "launch",
        "evaluation",
        "explain",
        "enable_2d_with_fsdp",
        "into_module",
        "lr",
    ];
    let (sharded, alone) = (code("examples/src/bin/vit.rs"), code("examples/src/bin/vit_burn.rs"));
    let mentions = |line: &&String| {
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        words.any(|word| NAMES.contains(&word))
    };
    let mentioning = sharded.iter().filter(mentions).count();
    let told: BTreeMap<String, String> = rows(&read("compiler/src/guide/first_model.rs"))
        .into_iter()
        .filter_map(|row| <[String; 2]>::try_from(row).ok().map(Into::into))
        .collect();
    let counted = [
        ("the sharded program", sharded.len()),
        ("the program in burn alone", alone.len()),
        ("difference", sharded.len() - alone.len()),
        ("lines of the sharded program that mention the compiler, its mesh, its plan or its trainer", mentioning),
    ];
    for (what, lines) in counted {
        assert_eq!(told.get(what), Some(&lines.to_string()), "{what}");
    }
    assert!(sharded.len() - alone.len() <= 15);
    let left: Vec<&String> = alone.iter().filter(|line| line.replace("tpc_examples", "").contains("tpc")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The document gives a reason for each direct dependency of `tpc` and of the crate that it re-exports, and states the
/// correct size of the whole tree.
#[test]
fn every_dependency_has_a_reason() {
    let direct = |manifest: &str| {
        let manifest = read(manifest);
        let section = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
        let entries = section.lines().filter(|line| line.starts_with(char::is_alphabetic));
        entries.map(|line| line.split(['.', ' ', '=']).next().unwrap().to_string()).collect::<Vec<String>>()
    };
    let declared: BTreeSet<String> =
        ["compiler/Cargo.toml", "compiler/core/Cargo.toml"].into_iter().flat_map(direct).collect();
    let document = read("compiler/DEPENDENCIES.md");
    let listed = rows(&document).into_iter().filter(|row| row[0].starts_with('`'));
    let listed: BTreeSet<String> = listed.map(|row| bare(&row[0]).to_string()).collect();
    assert_eq!(listed, declared);

    let tree = ["tree", "--offline", "--locked", "--package", "tpc-burn", "--edges", "normal", "--prefix", "none"];
    let told = Command::new(env!("CARGO"))
        .args(tree)
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let text = String::from_utf8(told.stdout).unwrap();
    let crates: BTreeSet<&str> = text.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    let ours = crates.iter().filter(|name| name.starts_with("tpc")).count();
    let expected = format!("{} crates, of which {ours} are this repository's", crates.len());
    assert!(document.contains(&expected), "the document should say: {expected}");
}
