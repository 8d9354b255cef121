//! Which files import each other. A file that imports one that imports it cannot be read without the other, so there is none.
//!
//! Only the `use` lines of a file outside its tests count. A name that comes through a re-export counts as an import of
//! the file that defines it.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::str::FromStr;

/// A module path within a crate, or the path of a name in one.
type Names = Vec<String>;

/// The crates, by the directories of their sources. The crate `tpc` only re-exports and is left out.
const CRATES: [&str; 6] =
    ["ir/src", "passes/src", "runtime/src", "compiler/core/src", "compiler/command/src", "compiler/data/src"];

/// The imports and re-exports of a file.
#[derive(Default)]
struct File {
    imports: Vec<Names>,
    /// Names that the file has from elsewhere, with their original paths.
    exports: BTreeMap<String, Names>,
}

/// All files of a crate, by their module paths.
fn files(root: &Path) -> BTreeMap<Names, File> {
    fn walk(dir: &Path, module: &[String], found: &mut BTreeMap<Names, File>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let inner: Names = module.iter().cloned().chain([name.clone()]).collect();
            if path.is_dir() {
                walk(&path, &inner, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let is_root = matches!(&*name, "mod" | "lib" | "main");
                let module = if is_root { module.to_vec() } else { inner };
                let text = fs::read_to_string(&path).unwrap();
                found.insert(module, read(TokenStream::from_str(&text).unwrap()));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, &[], &mut found);
    found
}

/// The `use` items of a file, with their paths as written.
fn read(tokens: TokenStream) -> File {
    let mut file = File::default();
    let (mut tokens, mut is_public) = (tokens.into_iter().peekable(), false);
    while let Some(token) = tokens.next() {
        match &token {
            TokenTree::Ident(ident) if ident == "pub" => is_public = true,
            // `(crate)` after `pub`.
            TokenTree::Group(group) if is_public && group.delimiter() == Delimiter::Parenthesis => {}
            TokenTree::Ident(ident) if ident == "use" => {
                let item = tokens.by_ref().take_while(|t| !matches!(t, TokenTree::Punct(p) if p.as_char() == ';'));
                for (name, path) in paths(&[], &item.collect::<Vec<_>>()) {
                    match is_public {
                        true => _ = file.exports.insert(name, path),
                        false => file.imports.push(path),
                    }
                }
                is_public = false;
            }
            _ => is_public = false,
        }
    }
    file
}

/// The paths of a `use` tree, with the names that they introduce.
fn paths(before: &[String], tree: &[TokenTree]) -> Vec<(String, Names)> {
    let (mut path, mut rest) = (before.to_vec(), tree.iter());
    while let Some(token) = rest.next() {
        match token {
            TokenTree::Ident(ident) if ident == "as" => {
                let name = rest.next().map_or_else(String::new, ToString::to_string);
                return vec![(name, path)];
            }
            TokenTree::Ident(ident) => path.push(ident.to_string()),
            TokenTree::Group(group) => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                let parts = inner.split(|t| matches!(t, TokenTree::Punct(p) if p.as_char() == ','));
                return parts.filter(|part| !part.is_empty()).flat_map(|part| paths(&path, part)).collect();
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
    // `a::{self}` means `a`.
    if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
        path.pop();
    }
    vec![(path.last().cloned().unwrap_or_default(), path)]
}

/// The path of a `use` in a module, resolved from the root of its crate; `None` for another crate's.
fn absolute(files: &BTreeMap<Names, File>, module: &[String], path: &[String]) -> Option<Names> {
    let mut base = module.to_vec();
    let mut rest = path;
    match &*path[0] {
        "crate" => (base, rest) = (Vec::new(), &path[1..]),
        "self" => rest = &path[1..],
        "super" => {
            while rest.first().is_some_and(|part| part == "super") {
                base.pop();
                rest = &rest[1..];
            }
        }
        _ if files.contains_key(&[module, &path[..1]].concat()) => {}
        _ => return None,
    }
    Some([&base[..], rest].concat())
}

/// The file that defines what a path from the root names.
fn home(files: &BTreeMap<Names, File>, path: &[String]) -> Option<Names> {
    let known = (0..=path.len()).rev().find(|&len| files.contains_key(&path[..len]))?;
    let module = &path[..known];
    let export = path.get(known).and_then(|name| files[module].exports.get(name));
    match export.and_then(|from| absolute(files, module, from)) {
        Some(from) if from != path => home(files, &[&from[..], &path[known + 1..]].concat()),
        _ => Some(module.to_vec()),
    }
}

/// For each file, the files that it imports, directly or through others.
fn reached(files: &BTreeMap<Names, File>) -> BTreeMap<&Names, BTreeSet<Names>> {
    let mut imports: BTreeMap<&Names, BTreeSet<Names>> = BTreeMap::new();
    for (module, file) in files {
        let of = file.imports.iter().filter_map(|path| home(files, &absolute(files, module, path)?));
        imports.insert(module, of.filter(|to| to != module).collect());
    }
    let reached = |from: &Names| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(module) = open.pop() {
            open.extend(imports[&module].iter().filter(|to| seen.insert((*to).clone())).cloned());
        }
        seen
    };
    files.keys().map(|module| (module, reached(module))).collect()
}

/// The groups of files in which each file imports all others, directly or through others.
fn cycles(files: &BTreeMap<Names, File>) -> BTreeSet<BTreeSet<String>> {
    let reached = reached(files);
    let group = |module: &&Names| -> BTreeSet<String> {
        let with = reached[*module].iter().filter(|other| reached[other].contains(*module));
        with.map(|other| other.join("/")).collect()
    };
    files.keys().filter(|module| reached[module].contains(*module)).map(|module| group(&module)).collect()
}

#[test]
fn no_files_import_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for of in CRATES {
        let files = files(&root.join(of));
        assert!(files.values().map(|file| file.imports.len()).sum::<usize>() > 5, "{of}: no imports were found");
        assert_eq!(cycles(&files), BTreeSet::new(), "{of}");
    }
}

/// The checker of placed programs shares no code with the passes that place values.
#[test]
fn the_checker_imports_nothing_that_places_values() {
    const PLACING: [&str; 6] = ["factors", "propagate", "redistribute", "reshard", "planner", "egraph"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../passes/src");
    let files = files(&root);
    let of = |first: &'static str| files.keys().filter(move |module| module.first().is_some_and(|name| name == first));
    assert!(PLACING.iter().all(|name| of(name).count() > 0));
    let reached = reached(&files);
    for module in of("check") {
        let places = |to: &&Names| to.first().is_some_and(|name| PLACING.contains(&&**name));
        let found: Vec<&Names> = reached[module].iter().filter(places).collect();
        assert!(found.is_empty(), "{module:?} imports {found:?}");
        // Nor by a path without an import.
        let file = root.join(module.join("/"));
        let text =
            fs::read_to_string(if file.is_dir() { file.join("mod.rs") } else { file.with_extension("rs") }).unwrap();
        assert!(PLACING.iter().all(|name| !text.contains(&format!("crate::{name}"))), "{module:?}");
    }
    assert!(of("check").any(|module| !reached[module].is_empty()));
}

#[test]
fn cycles_are_found() {
    let file = |text: &str| read(TokenStream::from_str(text).unwrap());
    let module = |name: &str| name.split('/').map(String::from).collect::<Names>();
    let tree = |of: &[(&str, &str)]| -> BTreeSet<BTreeSet<String>> {
        let files = of.iter().map(|(name, text)| (module(name), file(text)));
        cycles(&files.chain([(Names::new(), File::default())]).collect())
    };
    let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<String>>();
    assert_eq!(
        tree(&[("a", "use crate::b::X;"), ("b", "use super::a::{self, Y};")]),
        BTreeSet::from([set(&["a", "b"])])
    );
    assert_eq!(tree(&[("a", "use crate::b::X;"), ("b", "use super::c::Y;"), ("c", "")]), BTreeSet::new());
    // Through a re-export, whose file itself imports nothing.
    let through = [("a", "use crate::m::X as Z;"), ("m", "pub use b::X;"), ("m/b", "use crate::a::Y;")];
    assert_eq!(tree(&through), BTreeSet::from([set(&["a", "m/b"])]));
    // Tests may import what they test.
    assert_eq!(tree(&[("a", "use crate::b::X;"), ("b", "mod tests { use crate::a::Y; }")]), BTreeSet::new());
}
