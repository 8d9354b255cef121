//! The public API of the crate `tpc` as a golden: it changes only on purpose, and functions that can fail document
//! when.
//!
//! The crate is a list of `pub use`. Each name is looked up in the sources of the crate that defines it, and is listed
//! with its public fields, methods and implemented traits, without bodies and documentation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use syn::{Attribute, Fields, ImplItem, Item, Signature, TraitItem, UseTree, Visibility};

/// A name of the crate: its path there, and the path that it is re-exported from.
struct Shown {
    module: String,
    from: Vec<String>,
    name: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn parsed(file: &Path) -> syn::File {
    let text = std::fs::read_to_string(file).unwrap();
    syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Whether an attribute hides an item from the documentation, or excludes it from a normal build.
fn is_hidden(attributes: &[Attribute]) -> bool {
    let hides = |a: &Attribute| {
        let words = a.meta.require_list().map(|list| list.tokens.to_string()).unwrap_or_default();
        a.path().is_ident("doc") && words == "hidden" || a.path().is_ident("cfg") && words == "test"
    };
    attributes.iter().any(hides)
}

/// The documentation of an item.
fn documentation(attributes: &[Attribute]) -> String {
    let line = |a: &Attribute| match &a.meta {
        syn::Meta::NameValue(pair) if a.path().is_ident("doc") => match &pair.value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    };
    attributes.iter().filter_map(line).collect::<Vec<_>>().join("\n")
}

/// Collects the names of a module of the crate, and of its submodules.
fn shown(module: &str, items: &[Item], into: &mut Vec<Shown>) {
    for item in items {
        match item {
            Item::Use(u) if is_public(&u.vis) => names(module, &u.tree, &mut Vec::new(), into),
            Item::Mod(m) if is_public(&m.vis) && !is_hidden(&m.attrs) => {
                let (path, file) =
                    (format!("{module}::{}", m.ident), root().join(format!("compiler/src/{}.rs", m.ident)));
                match &m.content {
                    Some((_, items)) => shown(&path, items, into),
                    // The guide's modules contain only text.
                    None if file.exists() => shown(&path, &parsed(&file).items, into),
                    None => {}
                }
            }
            _ => {}
        }
    }
}

fn names(module: &str, tree: &UseTree, path: &mut Vec<String>, into: &mut Vec<Shown>) {
    match tree {
        UseTree::Path(p) => {
            path.push(p.ident.to_string());
            names(module, &p.tree, path, into);
            path.pop();
        }
        UseTree::Group(group) => group.items.iter().for_each(|tree| names(module, tree, path, into)),
        UseTree::Name(name) => {
            into.push(Shown { module: module.into(), from: path.clone(), name: name.ident.to_string() })
        }
        other => panic!("{module}: only names are shown, one by one: {other:?}"),
    }
}

/// The sources of a crate: files with their items, including modules inside of a file.
fn sources(crate_name: &str) -> Vec<(PathBuf, Vec<Item>)> {
    let folder = match crate_name {
        "tpc_compiler" => "compiler/core/src",
        "tpc_derive" => "compiler/derive/src",
        "tpc_ir" => "ir/src",
        "tpc_passes" => "passes/src",
        "tpc_runtime" => "runtime/src",
        other => panic!("no sources of {other} are known"),
    };
    let (mut open, mut found) = (vec![root().join(folder)], Vec::new());
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let items = parsed(&path).items;
            found.push((path, items));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// The item with this name, without its private parts.
fn item(name: &str, items: &[Item]) -> Option<Item> {
    let found = items.iter().find_map(|item| match item {
        Item::Struct(s) if s.ident == name && is_public(&s.vis) => Some(item.clone()),
        Item::Enum(e) if e.ident == name && is_public(&e.vis) => Some(item.clone()),
        Item::Trait(t) if t.ident == name && is_public(&t.vis) => Some(item.clone()),
        Item::Fn(f) if (f.sig.ident == name && is_public(&f.vis)) || derives(f, name) => Some(item.clone()),
        Item::Type(t) if t.ident == name && is_public(&t.vis) => Some(item.clone()),
        Item::Const(c) if c.ident == name && is_public(&c.vis) => Some(item.clone()),
        Item::Mod(m) if m.ident == name && is_public(&m.vis) => Some(item.clone()),
        _ => None,
    });
    found.map(bare)
}

fn derives(f: &syn::ItemFn, name: &str) -> bool {
    f.attrs.iter().any(|a| {
        let first = a.meta.require_list().map(|l| l.tokens.to_string()).unwrap_or_default();
        a.path().is_ident("proc_macro_derive") && first.split(',').next().is_some_and(|n| n.trim() == name)
    })
}

fn bare(mut item: Item) -> Item {
    match &mut item {
        Item::Struct(s) => {
            s.attrs.retain(|a| a.path().is_ident("non_exhaustive"));
            match &mut s.fields {
                Fields::Named(fields) => {
                    fields.named = fields.named.iter().filter(|f| is_public(&f.vis)).cloned().collect();
                    fields.named.iter_mut().for_each(|f| f.attrs.clear());
                }
                Fields::Unnamed(fields) => {
                    fields.unnamed = fields.unnamed.iter().filter(|f| is_public(&f.vis)).cloned().collect()
                }
                Fields::Unit => {}
            }
        }
        Item::Enum(e) => {
            e.attrs.retain(|a| a.path().is_ident("non_exhaustive"));
            for variant in &mut e.variants {
                variant.attrs.clear();
                variant.fields.iter_mut().for_each(|f| f.attrs.clear());
            }
        }
        Item::Trait(t) => {
            t.attrs.clear();
            t.items.retain(|item| !matches!(item, TraitItem::Fn(f) if is_hidden(&f.attrs)));
            for item in &mut t.items {
                if let TraitItem::Fn(f) = item {
                    (f.default, f.semi_token) = (None, Some(Default::default()));
                    f.attrs.clear();
                }
                if let TraitItem::Type(t) = item {
                    t.attrs.clear();
                }
            }
        }
        Item::Fn(f) => {
            f.attrs.clear();
            f.block.stmts.clear();
        }
        Item::Type(t) => t.attrs.clear(),
        Item::Const(c) => c.attrs.clear(),
        Item::Mod(m) => {
            m.attrs.clear();
            m.content = None;
        }
        _ => {}
    }
    item
}

/// The public methods of a type, and the traits that are implemented for it by hand. Functions that can fail and do not
/// document when are added to `silent`.
fn implementations(name: &str, items: &[Item], silent: &mut Vec<String>) -> Vec<Item> {
    let mut found = Vec::new();
    for item in items {
        let Item::Impl(implementation) = item else { continue };
        let syn::Type::Path(of) = &*implementation.self_ty else { continue };
        if of.path.segments.last().is_none_or(|segment| segment.ident != name) || is_hidden(&implementation.attrs) {
            continue;
        }
        let mut shown = implementation.clone();
        shown.attrs.clear();
        if shown.trait_.is_some() {
            shown.items.clear();
            found.push(Item::Impl(shown));
            continue;
        }
        shown.items.retain(|item| matches!(item, ImplItem::Fn(f) if is_public(&f.vis) && !is_hidden(&f.attrs)));
        for item in &mut shown.items {
            let ImplItem::Fn(method) = item else { continue };
            says_when_it_fails(&format!("{name}::"), &method.sig, &method.attrs, silent);
            method.attrs.clear();
            method.block.stmts.clear();
        }
        if !shown.items.is_empty() {
            found.push(Item::Impl(shown));
        }
    }
    found
}

fn says_when_it_fails(holder: &str, signature: &Signature, attributes: &[Attribute], silent: &mut Vec<String>) {
    let syn::ReturnType::Type(_, result) = &signature.output else { return };
    let syn::Type::Path(result) = &**result else { return };
    let fails = result.path.segments.last().is_some_and(|segment| segment.ident == "Result");
    if fails && !documentation(attributes).contains("# Errors") {
        silent.push(format!("{holder}{}", signature.ident));
    }
}

#[test]
fn what_the_crate_shows() {
    let mut all = Vec::new();
    shown("tpc", &parsed(&root().join("compiler/src/lib.rs")).items, &mut all);
    let mut crates: BTreeMap<String, Vec<(PathBuf, Vec<Item>)>> = BTreeMap::new();
    let (mut listing, mut silent) = (String::new(), Vec::new());
    all.sort_by(|a, b| (&a.module, &a.name, &a.from).cmp(&(&b.module, &b.name, &b.from)));
    for Shown { module, from, name } in &all {
        let crate_name = from[0].as_str();
        if crate_name == "crate" {
            listing += &format!(
                "// {module}::{name} is tpc::{}\n",
                [&from[1..], std::slice::from_ref(name)].concat().join("::")
            );
            continue;
        }
        let files = crates.entry(crate_name.into()).or_insert_with(|| sources(crate_name));
        let candidates: Vec<(&PathBuf, Item)> =
            files.iter().filter_map(|(file, items)| Some((file, item(name, items)?))).collect();
        let below = |file: &Path| {
            from[1..]
                .iter()
                .filter(|m| file.components().any(|c| c.as_os_str().to_string_lossy().trim_end_matches(".rs") == **m))
                .count()
        };
        let (_, found) = candidates
            .into_iter()
            .max_by_key(|(file, _)| below(file))
            .unwrap_or_else(|| panic!("{name} of {from:?} is not found"));
        if let Item::Fn(f) = &found {
            let attributes = files.iter().flat_map(|(_, items)| items).find_map(|item| match item {
                Item::Fn(g) if g.sig == f.sig => Some(g.attrs.clone()),
                _ => None,
            });
            says_when_it_fails("", &f.sig, &attributes.unwrap_or_default(), &mut silent);
        }
        let is_type = matches!(found, Item::Struct(_) | Item::Enum(_));
        let mut items = vec![found];
        if is_type {
            items.extend(files.iter().flat_map(|(_, items)| implementations(name, items, &mut silent)));
        }
        let file = syn::File { shebang: None, attrs: Vec::new(), items };
        listing += &format!("// {module}::{name}\n{}\n", prettyplease::unparse(&file).replace(" {}\n", ";\n"));
    }
    assert!(silent.is_empty(), "functions that can fail and do not say when: {silent:?}");
    insta::assert_snapshot!(listing);
}
