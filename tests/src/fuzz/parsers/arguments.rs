//! Meshes and path patterns, as in the command's arguments and in plans.

use super::{Dice, Parser, check_message, once};
use tpc_ir::mesh::{MAX_AXES, MAX_RANKS, is_name};
use tpc_ir::{AxisId, Mesh, ModulePath, parse};
use tpc_passes::styles::pattern::{Pattern, nearest};

/// An accepted mesh has unambiguous names, also after each axis is split, and is the same mesh in the IR's text.
pub(super) const MESH: Parser = Parser {
    name: "mesh",
    corpus: || ["", "tp=2", "dp=2,tp=4", "rep=2, dp=2 ,tp=8", "_a-b=1"].iter().map(|t| t.as_bytes().to_vec()).collect(),
    tokens: &["=", ",", "tp", "dp", "tp:2", "tp:/2", "tp:x", ":", "/", " ", "a", "-", "_", "2", "65536", "3"],
    generate: |dice| {
        let axes = |dice: &mut Dice| {
            let name = dice.pick(&["tp", "dp", "a", "b", "_c", "d-1", "tp:2", "tp:/2", "x y", ""]);
            format!("{name}={}", dice.pick(&["1", "2", "3", "8", "0", "256", "4611686018427387904", "x"]))
        };
        let count = if dice.one_in(20) { dice.between(30, 40) } else { dice.between(0, 4) };
        (0..count).map(|_| axes(dice)).collect::<Vec<_>>().join(",").into_bytes()
    },
    parse: parse_mesh,
    base: 64 << 10,
    per_byte: 500,
    repeats: once,
};

/// A pattern and a path on two lines. Steps are counted, and a pattern of sets and stars agrees with a plain matcher.
pub(super) const GLOB: Parser = Parser {
    name: "glob",
    corpus: || {
        ["layers.*.mlp\nlayers.0.mlp", "a.{b,c.d}[!x-z]?\na.c.dee", "{{a,b},c}*\nbcd", "\n", "[]a]^\n]^"]
            .iter()
            .map(|t| t.as_bytes().to_vec())
            .collect()
    },
    tokens: &[
        "*", "?", "[", "]", "{", "}", ",", "!", "^", "-", ".", "a", "b", "\n", "{a,b}", "[!a]", "**", "é", "[a-z]",
    ],
    generate: |dice| {
        let pattern: String =
            (0..dice.between(0, 12)).map(|_| dice.pick(&["*", "?", "a", "b", ".", "[ab]", "[!a]", "[^b]"])).collect();
        let path: String = (0..dice.between(0, 12)).map(|_| dice.pick(&["a", "b", "c", "."])).collect();
        format!("{pattern}\n{path}").into_bytes()
    },
    parse: parse_glob,
    base: 64 << 10,
    per_byte: 2000,
    repeats: once,
};

fn parse_mesh(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let mesh = match Mesh::parse(text) {
        Ok(mesh) => mesh,
        Err(error) => {
            check_message(&error);
            return false;
        }
    };
    assert!(mesh.axes().len() <= MAX_AXES && (1..=MAX_RANKS).contains(&mesh.ranks()), "{mesh}");
    let program = |mesh: &Mesh| parse::parse(&mesh.to_string()).unwrap_or_else(|e| panic!("{mesh}: {e}")).mesh;
    assert_eq!(program(&mesh), mesh);
    for axis in mesh.axis_ids() {
        assert!(is_name(mesh.name(axis)), "{mesh}");
        assert_eq!(mesh.parts(mesh.name(axis)), [axis]);
        for major in (1..=4).filter(|major| mesh.size(axis).is_multiple_of(*major)) {
            let Some(fine) = mesh.split(axis, major).filter(|fine| fine.axes().len() <= MAX_AXES) else { continue };
            assert_eq!(program(&fine), fine);
            assert_eq!(fine.parts(mesh.name(axis)), [axis, AxisId(axis.0 + 1)]);
            assert_eq!(fine.ranks(), mesh.ranks());
        }
    }
    true
}

fn parse_glob(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let (pattern, path) = text.split_once('\n').unwrap_or((text, "a.b"));
    let shown = ModulePath::showing(path);
    assert!(nearest(pattern, &["".into(), shown.clone(), "a.b".into()]).iter().all(|name| !name.is_empty()));
    let compiled = match Pattern::new(pattern) {
        Ok(compiled) => compiled,
        Err(error) => {
            check_message(&error);
            return false;
        }
    };
    let (matched, steps) = compiled.matches_in_steps(&shown);
    let most = 3 * (pattern.chars().count() + 2) * (path.chars().count() + 1);
    assert!(steps <= most, "{steps} steps for {} and {} characters", pattern.len(), path.len());
    if !pattern.contains(['{', '}', '-', '\\']) && pattern.len() <= 12 && path.len() <= 16 {
        let (p, s): (Vec<char>, Vec<char>) = (pattern.chars().collect(), path.chars().collect());
        let plain = plain(&p, &s) && (!s.is_empty() || p.is_empty());
        assert_eq!(matched, plain, "{pattern:?} {path:?}");
    }
    true
}

/// Matches a pattern without braces and ranges by trying everything.
fn plain(p: &[char], s: &[char]) -> bool {
    match (p.first(), s.first()) {
        (None, _) => s.is_empty(),
        (Some('*'), _) => plain(&p[1..], s) || s.first().is_some_and(|&c| c != '.') && plain(p, &s[1..]),
        (_, None) => false,
        (Some('?'), Some(&c)) => c != '.' && plain(&p[1..], &s[1..]),
        (Some('['), Some(&c)) => {
            let excludes = matches!(p.get(1), Some('!' | '^'));
            let first = 1 + usize::from(excludes);
            let Some(len) = p.iter().skip(first + 1).position(|&c| c == ']') else { return false };
            let end = first + 1 + len;
            c != '.' && p[first..end].contains(&c) != excludes && plain(&p[end + 1..], &s[1..])
        }
        (Some(one), Some(c)) => one == c && plain(&p[1..], &s[1..]),
    }
}
