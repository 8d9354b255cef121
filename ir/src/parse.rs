//! The parser of the text form that [`text`](crate::text) and [`fold`] print.
//!
//! It checks only what it needs to build the graph: that names, axes and values exist. [`verify`](crate::verify) checks
//! whether the operations fit their operands.
//!
//! Time and memory are proportional to the length of the text with its blocks expanded. That is at most
//! [`MOST_WRITTEN`] bytes more than the text itself, because everything that a line could repeat without bound (axes
//! and dimensions of a type, occurrences of a block) is limited.
//!
//! ```
//! let text = "mesh <tp=2>\n%0 = input data \"x\" : f32[4@tp]\n%1 = mul %0, f32:2.0 : f32[4@tp] ; forward\noutput loss %1\n";
//! let graph = tpc_ir::parse::parse(text).unwrap();
//! assert_eq!(tpc_ir::parse::parse(&tpc_ir::text::print(&graph)).unwrap(), graph);
//! let error = tpc_ir::parse::parse("mesh <tp=2>\n%0 = mul %1 : f32[4]").unwrap_err();
//! assert_eq!(error.to_string(), "line 2, column 10: expected a value defined above, found `%1`");
//! ```

use crate::graph::{Boundary, Graph, Origin, Output, OutputKind, Phase, Region, Value};
use crate::input::{InputId, InputKind};
use crate::mesh::{AxisId, AxisSet, Mesh};
use crate::op::{Distribution, MapFn, Op, ReduceOp, Scalar, UnitId};
use crate::path::ModulePath;
use crate::quote::cut;
use crate::reason::Reason;
use crate::sharding::{Partial, Sharding, Type};
use crate::subscripts::Subscripts;
use crate::{DType, fold};
use petgraph::graph::NodeIndex;
use std::collections::{HashMap, HashSet};
use std::str::FromStr;

/// The position at which a text is not a graph, and the reason.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}, column {column}: expected {expected}, found {found}")]
pub struct ParseError {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// The syntax that the parser expected.
    pub expected: String,
    /// The text that it found.
    pub found: String,
}

/// Parses a graph. Blank lines and lines that start with `#` are skipped.
///
/// # Errors
/// The first position where the text differs from what [`print`](crate::text::print) writes.
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    let numbered = text.lines().enumerate().map(|(i, text)| Cursor { text, at: 0, line: i + 1 });
    let mut lines = numbered.filter(|c| !c.text.trim().is_empty() && !c.text.trim_start().starts_with('#'));
    let mut first = lines.next().unwrap_or(Cursor { text: "", at: 0, line: 1 });
    let mut reader = Reader {
        graph: Graph::new(first.mesh()?),
        names: HashMap::new(),
        scalars: HashMap::new(),
        states: HashSet::new(),
    };
    first.end()?;
    let mut written = 0;
    while let Some(mut line) = lines.next() {
        if line.word().1 != "block" {
            line.at = 0;
            reader.line(&mut line)?;
            continue;
        }
        let count = line.block()?;
        let mut template = Vec::new();
        loop {
            let Some(mut inner) = lines.next() else { return line.error("lines and a closing `}` on later lines") };
            if inner.take("}") {
                inner.end()?;
                break;
            }
            template.push(inner);
        }
        for which in 0..count {
            for inner in &template {
                let Some(text) = fold::occurrence(inner.text, which, count) else {
                    return inner.error("ranges like {3..8} that consist of equal steps");
                };
                written += text.len() + LEAST_LINE;
                if written > MOST_WRITTEN {
                    return line.error(format!("blocks that expand to at most {MOST_WRITTEN} bytes"));
                }
                reader.line(&mut Cursor { text: &text, at: 0, line: inner.line })?;
            }
        }
    }
    Ok(reader.graph)
}

/// The greatest number of occurrences of a block.
const MOST_OCCURRENCES: usize = 100_000;
/// The greatest number of bytes of all blocks of a text when every occurrence is expanded.
pub const MOST_WRITTEN: usize = 1 << 27;
/// The minimum number of bytes that a line counts for, because a node takes a few hundred bytes.
const LEAST_LINE: usize = 128;
/// The greatest number of dimensions of a type or a layout, which is the number of letters.
pub const MOST_DIMS: usize = 52;

/// Parses a type as [`Type::display`] writes it.
///
/// # Errors
/// The text is not a type, or has an axis that the mesh lacks.
pub fn parse_type(text: &str, mesh: &Mesh) -> Result<Type, ParseError> {
    let mut c = Cursor { text, at: 0, line: 1 };
    let ty = c.ty(mesh)?;
    c.end()?;
    Ok(ty)
}

type Parsed<T> = Result<T, ParseError>;

/// A position in one line.
struct Cursor<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

/// The characters of a word: a mnemonic, an axis name, a number, a scalar.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || "_.-+:/#".contains(c)
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn spaces(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// The error that something else was expected here.
    fn error<T>(&self, expected: impl Into<String>) -> Parsed<T> {
        let rest = self.rest();
        let word = rest.find(|c: char| !is_word(c) && c != '%').unwrap_or(rest.len());
        let token = if word > 0 { &rest[..word] } else { rest.chars().next().map_or("", |c| &rest[..c.len_utf8()]) };
        let found = if token.trim().is_empty() { "the end of the line".into() } else { format!("`{}`", cut(token)) };
        let column = self.text[..self.at].chars().count() + 1;
        Err(ParseError { line: self.line, column, expected: expected.into(), found })
    }

    /// Goes back to `at` and fails there.
    fn error_at<T>(&mut self, at: usize, expected: impl Into<String>) -> Parsed<T> {
        self.at = at;
        self.error(expected)
    }

    /// Consumes a symbol if it comes next. Returns whether it did.
    fn take(&mut self, symbol: &str) -> bool {
        self.spaces();
        let found = self.rest().starts_with(symbol);
        if found {
            self.at += symbol.len();
        }
        found
    }

    fn expect(&mut self, symbol: &str) -> Parsed<()> {
        if self.take(symbol) { Ok(()) } else { self.error(format!("`{symbol}`")) }
    }

    fn end(&mut self) -> Parsed<()> {
        self.spaces();
        if self.rest().is_empty() { Ok(()) } else { self.error("the end of the line") }
    }

    /// The next word, and where it starts; possibly empty.
    fn word(&mut self) -> (usize, &'a str) {
        self.spaces();
        let (start, rest) = (self.at, self.rest());
        let len = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        self.at += len;
        (start, &rest[..len])
    }

    /// The next word, converted by `read`.
    fn read<T>(&mut self, expected: &str, read: impl Fn(&str) -> Option<T>) -> Parsed<T> {
        let (start, word) = self.word();
        match read(word) {
            Some(x) => Ok(x),
            None => self.error_at(start, expected),
        }
    }

    fn number<T: FromStr>(&mut self) -> Parsed<T> {
        self.read("a number", |w| w.parse().ok())
    }

    fn scalar(&mut self) -> Parsed<Scalar> {
        self.read("a scalar like 0.5, 3 or true", |w| w.parse().ok())
    }

    fn reduce_op(&mut self) -> Parsed<ReduceOp> {
        self.read("sum, max, min or prod", ReduceOp::from_name)
    }

    /// `name=` and the number after it.
    fn attribute<T: FromStr>(&mut self, name: &str) -> Parsed<T> {
        self.spaces();
        let (start, word) = self.word();
        if word != name || !self.rest().starts_with('=') {
            return self.error_at(start, format!("`{name}=`"));
        }
        self.at += 1;
        self.number()
    }

    /// `[1, 2]`.
    fn numbers(&mut self) -> Parsed<Vec<usize>> {
        self.expect("[")?;
        let mut dims = 0;
        self.list("]", |c| {
            c.dimension(&mut dims)?;
            c.number()
        })
    }

    /// Counts one more dimension.
    fn dimension(&mut self, dims: &mut usize) -> Parsed<()> {
        *dims += 1;
        self.spaces();
        if *dims > MOST_DIMS { self.error(format!("at most {MOST_DIMS} dimensions")) } else { Ok(()) }
    }

    /// Items separated by commas, up to the closing symbol.
    fn list<T>(&mut self, close: &str, mut item: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut items = Vec::new();
        if self.take(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.take(close) {
                return Ok(items);
            }
            if !self.take(",") {
                return self.error(format!("`,` or `{close}`"));
            }
        }
    }

    /// A text in double quotes, with Rust's escapes.
    fn quoted(&mut self) -> Parsed<String> {
        if !self.take("\"") {
            return self.error("a name in double quotes");
        }
        let mut out = String::new();
        loop {
            let Some(c) = self.rest().chars().next() else {
                return self.error("a closing `\"`");
            };
            let start = self.at;
            self.at += c.len_utf8();
            match c {
                '"' => return Ok(out),
                '\\' => match self.escape() {
                    Some(c) => out.push(c),
                    None => return self.error_at(start, "an escape like \\n, \\\" or \\u{e9}"),
                },
                c => out.push(c),
            }
        }
    }

    fn escape(&mut self) -> Option<char> {
        let c = self.rest().chars().next()?;
        self.at += c.len_utf8();
        match c {
            'n' => Some('\n'),
            't' => Some('\t'),
            'r' => Some('\r'),
            '0' => Some('\0'),
            '\\' | '"' | '\'' => Some(c),
            'u' => {
                let (code, _) = self.rest().strip_prefix('{')?.split_once('}')?;
                self.at += code.len() + 2;
                char::from_u32(u32::from_str_radix(code, 16).ok()?)
            }
            _ => None,
        }
    }

    fn subscripts(&mut self) -> Parsed<Subscripts> {
        self.spaces();
        let start = self.at;
        let read = self.quoted().ok().and_then(|t| Subscripts::parse(&t));
        read.map_or_else(|| self.error_at(start, "subscripts like \"ab,bc->ac\""), Ok)
    }

    /// `mesh <dp=2, tp=4>`.
    fn mesh(&mut self) -> Parsed<Mesh> {
        if self.word().1 != "mesh" || !self.take("<") {
            return self.error_at(0, "a mesh like `mesh <dp=2, tp=4>` on the first line");
        }
        let start = self.at;
        let Some((axes, _)) = self.rest().split_once('>') else {
            return self.error("a closing `>`");
        };
        self.at += axes.len() + 1;
        let read = |part: &str| {
            let (name, size) = part.split_once('=')?;
            Some((name.trim().to_string(), size.trim().parse::<usize>().ok()?))
        };
        let parts = axes.split(',').filter(|_| !axes.trim().is_empty());
        match parts.map(read).collect::<Option<Vec<_>>>() {
            Some(axes) => Mesh::declared(axes).or_else(|e| self.error_at(start, format!("other axes ({e})"))),
            None => self.error_at(start, "axes like `dp=2, tp=4`"),
        }
    }

    /// `@model.layers ×80 forward {` after the word `block`. Returns the number of occurrences; the path and the words
    /// after the number are only for people.
    fn block(&mut self) -> Parsed<usize> {
        self.expect("@")?;
        if self.rest().starts_with('"') {
            self.quoted()?;
        } else {
            let rest = self.rest();
            self.at += rest.find(char::is_whitespace).unwrap_or(rest.len());
        }
        if !self.take("×") {
            self.expect("x")?;
        }
        let start = self.at;
        let count = self.number()?;
        if !(1..=MOST_OCCURRENCES).contains(&count) {
            return self.error_at(start, format!("a number from 1 to {MOST_OCCURRENCES}"));
        }
        while !self.rest().trim_start().starts_with('{') {
            if self.word().1.is_empty() {
                return self.error("`{`");
            }
        }
        self.expect("{")?;
        self.end()?;
        Ok(count)
    }

    fn axis(&mut self, mesh: &Mesh) -> Parsed<AxisId> {
        let (start, word) = self.word();
        if let Some(axis) = mesh.axis(word) {
            return Ok(axis);
        }
        let names: Vec<&str> = mesh.axes().iter().map(|a| a.name.as_str()).collect();
        self.error_at(start, format!("an axis of the mesh ({})", names.join(", ")))
    }

    /// `tp` or `(tp,dp)`.
    fn axes(&mut self, mesh: &Mesh) -> Parsed<Vec<AxisId>> {
        let most = mesh.axes().len();
        if !self.take("(") {
            return Ok(vec![self.axis(mesh)?]);
        }
        let mut count = 0;
        self.list(")", |c| {
            count += 1;
            c.spaces();
            if count > most { c.error(format!("at most the {most} axes of the mesh")) } else { c.axis(mesh) }
        })
    }

    fn axis_set(&mut self, mesh: &Mesh) -> Parsed<AxisSet> {
        Ok(self.axes(mesh)?.into_iter().collect())
    }

    /// `f32[8@dp, 4096@(tp,dp), 64] +sum@tp`.
    fn ty(&mut self, mesh: &Mesh) -> Parsed<Type> {
        let dtype = self.read("an element type", DType::from_name)?;
        self.expect("[")?;
        let (mut shape, mut sharding, mut dims) = (Vec::new(), Sharding::default(), 0);
        self.list("]", |c| {
            c.dimension(&mut dims)?;
            shape.push(c.number()?);
            sharding.dims.push(if c.take("@") { c.axes(mesh)? } else { Vec::new() });
            Ok(())
        })?;
        if self.take("+") {
            let op = self.reduce_op()?;
            self.expect("@")?;
            sharding.partial = Some(Partial { op, axes: self.axis_set(mesh)? });
        }
        Ok(Type { dtype, shape, sharding })
    }

    /// `layout [64, 64]`; if it is missing, the shape.
    fn layout(&mut self, shape: &[usize]) -> Parsed<Vec<usize>> {
        self.spaces();
        let start = self.at;
        if self.word().1 == "layout" {
            return self.numbers();
        }
        self.at = start;
        Ok(shape.to_vec())
    }

    /// `unit 3`; `None` if it is missing.
    fn unit(&mut self) -> Parsed<Option<UnitId>> {
        self.spaces();
        let start = self.at;
        if self.word().1 == "unit" {
            return Ok(Some(UnitId(self.number()?)));
        }
        self.at = start;
        Ok(None)
    }

    /// `; forward micro 2 in layers.0 why: the reason`.
    fn origin(&mut self) -> Parsed<Origin> {
        let mut origin = Origin::default();
        if !self.take(";") {
            return Ok(origin);
        }
        let mut said = 0;
        loop {
            let (start, word) = self.word();
            match word {
                "why:" => {
                    self.spaces();
                    let quoted = self.rest().starts_with('"');
                    let why = if quoted { self.quoted()? } else { self.rest().trim_end().to_string() };
                    origin.reason = Reason::read(&why);
                    self.at = if quoted { self.at } else { self.text.len() };
                    return Ok(origin);
                }
                "micro" if said < 2 => {
                    origin.micro_batch = Some(self.number()?);
                    said = 2;
                }
                "in" if said < 3 => {
                    self.spaces();
                    origin.module = if self.rest().starts_with('"') { self.quoted()?.into() } else { self.bare()? };
                    said = 3;
                }
                "" if self.rest().is_empty() => return Ok(origin),
                name => match Phase::from_name(name).filter(|_| said == 0) {
                    Some(phase) => {
                        origin.phase = phase;
                        said = 1;
                    }
                    None => return self.error_at(start, "a phase, `micro number`, `in module` or `why: reason`"),
                },
            }
        }
    }

    /// Everything up to the next space.
    fn bare(&mut self) -> Parsed<ModulePath> {
        let rest = self.rest();
        let len = rest.find(char::is_whitespace).unwrap_or(rest.len());
        if len == 0 {
            return self.error("a module path");
        }
        self.at += len;
        Ok(rest[..len].into())
    }
}

/// An operation before its types are known.
enum Head {
    Op(Op),
    Input(InputId),
    /// An elementwise operation without subscripts.
    Map(MapFn),
}

/// The graph under construction.
struct Reader {
    graph: Graph,
    names: HashMap<usize, NodeIndex>,
    scalars: HashMap<(DType, Scalar), Value>,
    states: HashSet<InputId>,
}

impl Reader {
    fn line(&mut self, c: &mut Cursor<'_>) -> Parsed<()> {
        if c.take("%") {
            return self.node(c);
        }
        let (start, word) = c.word();
        match word {
            "region" => self.region(c)?,
            "output" => self.output(c)?,
            _ => return c.error_at(start, "`%number = …`, `region` or `output`"),
        }
        c.end()
    }

    fn node(&mut self, c: &mut Cursor<'_>) -> Parsed<()> {
        let start = c.at;
        let name: usize = c.number()?;
        if self.names.contains_key(&name) {
            return c.error_at(start, "a number that is not defined yet");
        }
        c.expect("=")?;
        c.spaces();
        let mnemonic = c.at;
        let head = self.head(c)?;
        c.spaces();
        let mut operands = Vec::new();
        while !c.take(":") {
            if !operands.is_empty() && !c.take(",") {
                return c.error("`,` or ` : type`");
            }
            operands.push(self.value(c)?);
        }
        let mut types = vec![c.ty(&self.graph.mesh)?];
        while c.take(",") {
            types.push(c.ty(&self.graph.mesh)?);
        }
        let op = match head {
            Head::Op(op) => op,
            Head::Input(id) => {
                if id.kind() == InputKind::State {
                    self.states.insert(id.clone());
                }
                let layout = c.layout(&types[0].shape)?;
                Op::Input { id, layout, unit: c.unit()? }
            }
            Head::Map(f) => {
                let ranks: Vec<usize> = operands.iter().map(|&v| self.graph.ty(v).rank()).collect();
                match Subscripts::implied(&ranks, types[0].rank()) {
                    Some(subs) => Op::Map { f, subs },
                    None => {
                        return c.error_at(
                            mnemonic,
                            format!(
                                "subscripts (`{} \"…\"`) for operands whose rank is neither 0 nor the result's",
                                f.name()
                            ),
                        );
                    }
                }
            }
        };
        let origin = c.origin()?;
        c.end()?;
        self.names.insert(name, self.graph.add(op, &operands, types, origin));
        Ok(())
    }

    /// Mnemonic and attributes.
    fn head(&self, c: &mut Cursor<'_>) -> Parsed<Head> {
        let mesh = &self.graph.mesh;
        let (start, name) = c.word();
        Ok(Head::Op(match name {
            "input" => {
                let kind =
                    c.read("an input kind (parameter, state, data, scalar, seed, constant)", InputKind::from_name)?;
                return Ok(Head::Input(InputId::read(kind, &c.quoted()?)));
            }
            "fill" => Op::Fill(c.scalar()?),
            "iota" => Op::Iota,
            "random" => Op::Random { distribution: distribution(c)?, stream: c.attribute("stream")? },
            "einsum" => Op::Einsum { subs: c.subscripts()? },
            "reshape" => Op::Reshape,
            "slice" => Op::Slice { dim: c.attribute("dim")?, start: c.attribute("start")?, step: c.attribute("step")? },
            "index" => Op::Index { dim: c.attribute("dim")?, index: c.attribute("index")? },
            "concat" => Op::Concat { dim: c.attribute("dim")? },
            "cumsum" => Op::CumSum { dim: c.attribute("dim")? },
            "pad" => {
                let (dim, low) = (c.attribute("dim")?, c.attribute("low")?);
                let (start, word) = c.word();
                if word != "value" || !c.take("=") {
                    return c.error_at(start, "`value=`");
                }
                Op::Pad { dim, low, value: c.scalar()? }
            }
            "take" => Op::Take,
            "scatter_add" => Op::ScatterAdd,
            "put" => Op::Put,
            "top_k" => Op::TopK,
            "all_reduce" => {
                let axes = c.axis_set(mesh)?;
                Op::AllReduce { op: c.reduce_op()?, axes }
            }
            "to_partial" => {
                let axes = c.axis_set(mesh)?;
                Op::ToPartial { op: c.reduce_op()?, axes }
            }
            "all_gather" => {
                let axes = c.axes(mesh)?;
                Op::AllGather { dim: c.attribute("dim")?, axes }
            }
            "shard_slice" => {
                let axes = c.axes(mesh)?;
                Op::ShardSlice { dim: c.attribute("dim")?, axes }
            }
            "reduce_scatter" => {
                let (axes, op) = (c.axes(mesh)?, c.reduce_op()?);
                Op::ReduceScatter { op, dim: c.attribute("dim")?, axes }
            }
            "all_to_all" => {
                let axes = c.axes(mesh)?;
                Op::AllToAll { from: c.attribute("from")?, to: c.attribute("to")?, axes }
            }
            name => {
                if let Some(op) = name.strip_prefix("reduce_").and_then(ReduceOp::from_name) {
                    Op::Reduce { op, subs: c.subscripts()? }
                } else if let Some(f) = MapFn::from_name(name) {
                    c.spaces();
                    if !c.rest().starts_with('"') {
                        return Ok(Head::Map(f));
                    }
                    Op::Map { f, subs: c.subscripts()? }
                } else {
                    return c.error_at(start, "an operation");
                }
            }
        }))
    }

    /// `%3`, `%3.1` or `f32:0.5`.
    fn value(&mut self, c: &mut Cursor<'_>) -> Parsed<Value> {
        c.spaces();
        let start = c.at;
        if !c.take("%") {
            let (_, word) = c.word();
            let constant =
                word.split_once(':').and_then(|(d, s)| Some((DType::from_name(d)?, s.parse::<Scalar>().ok()?)));
            let Some((dtype, scalar)) = constant else {
                return c.error_at(start, "a value like %3 or f32:0.5");
            };
            let graph = &mut self.graph;
            let fill = || graph.push(Op::Fill(scalar), &[], Type::new(dtype, []), &Origin::default());
            return Ok(*self.scalars.entry((dtype, scalar)).or_insert_with(fill));
        }
        let (_, word) = c.word();
        let (number, result) = word.split_once('.').map_or((word, Some(0)), |(n, r)| (n, r.parse::<u32>().ok()));
        let node = number.parse::<usize>().ok().and_then(|n| self.names.get(&n));
        let Some((&node, result)) = node.zip(result) else {
            return c.error_at(start, "a value defined above");
        };
        let results = self.graph.node(node).types.len();
        if result as usize >= results {
            return c.error_at(start, format!("one of the {results} results of that value"));
        }
        Ok(Value { node, result })
    }

    /// `(%1 layout [2, 6], %2)`.
    fn boundaries(&mut self, c: &mut Cursor<'_>) -> Parsed<Vec<Boundary>> {
        c.expect("(")?;
        c.list(")", |c| {
            let value = self.value(c)?;
            Ok(Boundary { value, layout: c.layout(&self.graph.ty(value).shape)? })
        })
    }

    fn region(&mut self, c: &mut Cursor<'_>) -> Parsed<()> {
        let (path, arguments) = (c.quoted()?.into(), self.boundaries(c)?);
        c.expect("->")?;
        let results = self.boundaries(c)?;
        self.graph.regions.push(Region { path, arguments, results });
        Ok(())
    }

    fn output(&mut self, c: &mut Cursor<'_>) -> Parsed<()> {
        let (start, word) = c.word();
        let kind = match word {
            "loss" => OutputKind::Loss,
            "result" => OutputKind::Result(c.quoted()?),
            "gradient" => OutputKind::Gradient(c.quoted()?.into()),
            "update" => OutputKind::Update(InputId::kept_in(&c.quoted()?, &self.states)),
            _ => return c.error_at(start, "loss, result, gradient or update"),
        };
        let value = self.value(c)?;
        let layout = c.layout(&self.graph.ty(value).shape)?;
        self.graph.outputs.push(Output { kind, value, layout });
        Ok(())
    }
}

/// `bernoulli(0.1)`, `uniform(0.0, 1.0)` or `normal(0.0, 1.0)`.
fn distribution(c: &mut Cursor<'_>) -> Parsed<Distribution> {
    let (start, name) = c.word();
    if !["bernoulli", "uniform", "normal"].contains(&name) {
        return c.error_at(start, "bernoulli(p), uniform(low, high) or normal(mean, deviation)");
    }
    c.expect("(")?;
    let first = c.scalar()?;
    if name == "bernoulli" {
        c.expect(")")?;
        return Ok(Distribution::Bernoulli(first));
    }
    c.expect(",")?;
    let second = c.scalar()?;
    c.expect(")")?;
    Ok(if name == "uniform" { Distribution::Uniform(first, second) } else { Distribution::Normal(first, second) })
}
