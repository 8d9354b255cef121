//! The JSON form of a graph, for tools. It has the same content as the text form, node by node.
//!
//! ```json
//! {"mesh": [{"name": "tp", "size": 2}],
//!  "nodes": [{"op": "input", "kind": "data", "name": "x", "layout": [4], "operands": [],
//!             "types": [{"dtype": "f32", "shape": [4], "sharding": [["tp"]]}], "phase": "forward"},
//!            {"op": "all_gather", "dim": 0, "axes": ["tp"], "operands": [[0, 0]],
//!             "types": [{"dtype": "f32", "shape": [4], "sharding": [[]]}], "phase": "forward", "why": "output"}],
//!  "regions": [],
//!  "outputs": [{"kind": "loss", "value": [1, 0], "layout": [4]}]}
//! ```
//!
//! Values are `[node, result]`. Scalars are strings as in the text form (`"0.5"`, `"3"`, `"true"`), since JSON numbers
//! can express neither infinity nor the difference between 1 and 1.0. Unlike in the text form, constants keep their
//! position among the nodes and their provenance.

use crate::DType;
use crate::graph::{Boundary, Graph, Node, Origin, Output, OutputKind, Phase, Region, Value};
use crate::input::{InputId, InputKind};
use crate::mesh::{AxisId, AxisSet, Mesh};
use crate::op::{Distribution, MapFn, Op, ReduceOp, Scalar, UnitId};
use crate::parse::MOST_DIMS;
use crate::reason::Reason;
use crate::sharding::{Partial, Sharding, Type};
use crate::subscripts::Subscripts;
use crate::unique;
use petgraph::graph::NodeIndex;
use serde_json::{Map, Value as Json, json};
use std::collections::HashSet;

/// Why a JSON value is not a graph.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum JsonError {
    /// The text is not JSON.
    #[error("not JSON: {0}")]
    Syntax(String),
    /// A field is missing or has the wrong kind.
    #[error("at {path}: expected {expected}")]
    Field {
        /// The path of the field, for example `nodes[3].types[0].dtype`.
        path: String,
        /// The value that should be there.
        expected: String,
    },
}

/// The JSON text of a graph, indented.
pub fn print(graph: &Graph) -> String {
    format!("{:#}\n", to_json(graph))
}

/// Parses the text that [`print()`] writes.
///
/// # Errors
/// The text is not JSON, or a field is not as [`to_json`] writes it; the first such field is reported.
pub fn parse(text: &str) -> Result<Graph, JsonError> {
    from_json(&unique::parse(text).map_err(|e| JsonError::Syntax(e.to_string()))?)
}

/// A graph as JSON.
pub fn to_json(graph: &Graph) -> Json {
    let axes: Vec<Json> = graph.mesh.axes().iter().map(|a| json!({"name": a.name, "size": a.size})).collect();
    let nodes: Vec<Json> = graph.nodes().map(|n| node_json(graph.node(n), &graph.operands(n), &graph.mesh)).collect();
    let boundaries = |all: &[Boundary]| {
        let one = |b: &Boundary| json!({"value": value_json(b.value), "layout": b.layout});
        all.iter().map(one).collect::<Json>()
    };
    let regions = graph
        .regions
        .iter()
        .map(|r| json!({"path": r.path.to_string(), "arguments": boundaries(&r.arguments), "results": boundaries(&r.results)}));
    let outputs = graph.outputs.iter().map(|o| {
        let (kind, name) = match &o.kind {
            OutputKind::Result(n) => ("result", Some(n.clone())),
            OutputKind::Loss => ("loss", None),
            OutputKind::Gradient(path) => ("gradient", Some(path.to_string())),
            OutputKind::Update(id) => ("update", Some(id.to_string())),
        };
        let mut output = json!({"kind": kind, "value": value_json(o.value), "layout": o.layout});
        if let Some(name) = name {
            output["name"] = json!(name);
        }
        output
    });
    json!({"mesh": axes, "nodes": nodes, "regions": regions.collect::<Vec<_>>(), "outputs": outputs.collect::<Vec<_>>()})
}

fn value_json(v: Value) -> Json {
    json!([v.node.index(), v.result])
}

fn values_json(values: &[Value]) -> Json {
    values.iter().map(|&v| value_json(v)).collect()
}

fn axes_json(axes: impl IntoIterator<Item = AxisId>, mesh: &Mesh) -> Json {
    axes.into_iter().map(|a| json!(mesh.name(a))).collect()
}

/// A type as JSON.
pub fn type_json(ty: &Type, mesh: &Mesh) -> Json {
    let dims: Vec<Json> = ty.sharding.dims.iter().map(|d| axes_json(d.iter().copied(), mesh)).collect();
    let mut out = json!({"dtype": ty.dtype.name(), "shape": ty.shape, "sharding": dims});
    if let Some(p) = ty.sharding.partial {
        out["partial"] = json!({"op": p.op.name(), "axes": axes_json(p.axes.iter(), mesh)});
    }
    out
}

fn node_json(node: &Node, operands: &[Value], mesh: &Mesh) -> Json {
    let mut out = json!({
        "op": node.op.name(),
        "operands": values_json(operands),
        "types": node.types.iter().map(|t| type_json(t, mesh)).collect::<Vec<_>>(),
        "phase": node.origin.phase.name(),
    });
    if let Some(n) = node.origin.micro_batch {
        out["micro_batch"] = json!(n);
    }
    for (key, text) in [("module", node.origin.module.to_string()), ("why", node.origin.reason.to_string())] {
        if !text.is_empty() {
            out[key] = json!(text);
        }
    }
    let mut set = |key: &str, value: Json| out[key] = value;
    match &node.op {
        Op::Input { id, layout, unit } => {
            set("kind", json!(id.kind().name()));
            set("name", json!(id.to_string()));
            set("layout", json!(layout));
            if let Some(UnitId(unit)) = unit {
                set("unit", json!(unit));
            }
        }
        Op::Fill(s) => set("value", json!(s.to_string())),
        Op::Random { distribution, stream } => {
            let (name, arguments) = match distribution {
                Distribution::Bernoulli(p) => ("bernoulli", vec![p]),
                Distribution::Uniform(a, b) => ("uniform", vec![a, b]),
                Distribution::Normal(a, b) => ("normal", vec![a, b]),
            };
            set("distribution", json!(name));
            set("arguments", arguments.into_iter().map(|s| json!(s.to_string())).collect());
            set("stream", json!(stream));
        }
        Op::Map { subs, .. } | Op::Einsum { subs } | Op::Reduce { subs, .. } => {
            set("subscripts", json!(subs.to_string()))
        }
        Op::Slice { dim, start, step } => {
            set("dim", json!(dim));
            set("start", json!(start));
            set("step", json!(step));
        }
        Op::Index { dim, index } => {
            set("dim", json!(dim));
            set("index", json!(index));
        }
        Op::Concat { dim } | Op::CumSum { dim } => set("dim", json!(dim)),
        Op::Pad { dim, low, value } => {
            set("dim", json!(dim));
            set("low", json!(low));
            set("value", json!(value.to_string()));
        }
        Op::AllReduce { op, axes } | Op::ToPartial { op, axes } => {
            set("reduce", json!(op.name()));
            set("axes", axes_json(axes.iter(), mesh));
        }
        Op::AllGather { dim, axes } | Op::ShardSlice { dim, axes } => {
            set("dim", json!(dim));
            set("axes", axes_json(axes.iter().copied(), mesh));
        }
        Op::ReduceScatter { op, dim, axes } => {
            set("reduce", json!(op.name()));
            set("dim", json!(dim));
            set("axes", axes_json(axes.iter().copied(), mesh));
        }
        Op::AllToAll { from, to, axes } => {
            set("from", json!(from));
            set("to", json!(to));
            set("axes", axes_json(axes.iter().copied(), mesh));
        }
        Op::Iota | Op::Reshape | Op::Take | Op::ScatterAdd | Op::Put | Op::TopK => {}
    }
    out
}

type Read<T> = Result<T, JsonError>;

/// A JSON value and its path.
#[derive(Clone)]
struct At<'a> {
    json: &'a Json,
    path: String,
}

impl<'a> At<'a> {
    fn error<T>(&self, expected: &str) -> Read<T> {
        let path = if self.path.is_empty() { "the top".into() } else { self.path.clone() };
        Err(JsonError::Field { path, expected: expected.into() })
    }

    fn object(&self) -> Read<&'a Map<String, Json>> {
        self.json.as_object().map_or_else(|| self.error("an object"), Ok)
    }

    fn find(&self, key: &str) -> Read<Option<At<'a>>> {
        let dot = if self.path.is_empty() { "" } else { "." };
        Ok(self.object()?.get(key).map(|json| At { json, path: format!("{}{dot}{key}", self.path) }))
    }

    fn field(&self, key: &str) -> Read<At<'a>> {
        self.find(key)?.map_or_else(|| self.error(&format!("the field {key:?}")), Ok)
    }

    fn items(&self) -> Read<Vec<At<'a>>> {
        let Some(items) = self.json.as_array() else {
            return self.error("a list");
        };
        Ok(items.iter().enumerate().map(|(i, json)| At { json, path: format!("{}[{i}]", self.path) }).collect())
    }

    fn list<T>(&self, item: impl Fn(&At<'a>) -> Read<T>) -> Read<Vec<T>> {
        self.items()?.iter().map(item).collect()
    }

    fn text(&self) -> Read<&'a str> {
        self.json.as_str().map_or_else(|| self.error("a string"), Ok)
    }

    fn number(&self) -> Read<usize> {
        let n = self.json.as_u64().and_then(|n| usize::try_from(n).ok());
        n.map_or_else(|| self.error("a number"), Ok)
    }

    fn unit(&self) -> Read<UnitId> {
        u32::try_from(self.number()?).map_or_else(|_| self.error("a number of 32 bits"), |unit| Ok(UnitId(unit)))
    }

    fn named<T>(&self, expected: &str, read: impl Fn(&str) -> Option<T>) -> Read<T> {
        self.json.as_str().and_then(read).map_or_else(|| self.error(expected), Ok)
    }

    fn scalar(&self) -> Read<Scalar> {
        self.named("a scalar like \"0.5\", \"3\" or \"true\"", |s| s.parse().ok())
    }

    fn reduce_op(&self) -> Read<ReduceOp> {
        self.named("sum, max, min or prod", ReduceOp::from_name)
    }

    /// Fails if the value is a list of more than `most` items.
    fn at_most(&self, most: usize, what: &str) -> Read<()> {
        let items = self.json.as_array().map_or(0, Vec::len);
        if items > most { self.error(&format!("at most {most} {what}")) } else { Ok(()) }
    }

    /// The dimensions of a shape or a layout.
    fn dims(&self) -> Read<Vec<usize>> {
        self.at_most(MOST_DIMS, "dimensions")?;
        self.list(At::number)
    }

    fn axes(&self, mesh: &Mesh) -> Read<Vec<AxisId>> {
        self.at_most(mesh.axes().len(), "axes, as many as the mesh has")?;
        self.list(|a| a.named("an axis of the mesh", |n| mesh.axis(n)))
    }

    fn axis_set(&self, mesh: &Mesh) -> Read<AxisSet> {
        Ok(self.axes(mesh)?.into_iter().collect())
    }

    fn value(&self, graph: &Graph) -> Read<Value> {
        let pair = self.list(At::number)?;
        let found = match pair[..] {
            [node, result] if node < graph.len() => {
                let node = NodeIndex::new(node);
                (result < graph.node(node).types.len()).then_some(Value { node, result: result as u32 })
            }
            _ => None,
        };
        found.map_or_else(|| self.error("[node, result] of an earlier node"), Ok)
    }

    fn ty(&self, mesh: &Mesh) -> Read<Type> {
        let partial = self
            .find("partial")?
            .map(|p| Ok(Partial { op: p.field("op")?.reduce_op()?, axes: p.field("axes")?.axis_set(mesh)? }));
        let sharding = self.field("sharding")?;
        sharding.at_most(MOST_DIMS, "dimensions")?;
        Ok(Type {
            dtype: self.field("dtype")?.named("an element type", DType::from_name)?,
            shape: self.field("shape")?.dims()?,
            sharding: Sharding { dims: sharding.list(|d| d.axes(mesh))?, partial: partial.transpose()? },
        })
    }

    fn origin(&self) -> Read<Origin> {
        let text = |key| Ok(self.find(key)?.map(|t| t.text()).transpose()?.unwrap_or_default());
        let phase = self.field("phase")?.named("a phase", Phase::from_name)?;
        let micro_batch = self.find("micro_batch")?.map(|n| n.number()).transpose()?;
        Ok(Origin { phase, micro_batch, module: text("module")?.into(), reason: Reason::read(text("why")?) })
    }

    fn op(&self, mesh: &Mesh) -> Read<Op> {
        let number = |key: &str| self.field(key)?.number();
        let axes = || self.field("axes")?.axes(mesh);
        let reduce = || self.field("reduce")?.reduce_op();
        let subs = || self.field("subscripts")?.named("subscripts like \"ab,bc->ac\"", Subscripts::parse);
        let name = self.field("op")?;
        Ok(match name.text()? {
            "input" => Op::Input {
                id: InputId::read(
                    self.field("kind")?.named("an input kind", InputKind::from_name)?,
                    self.field("name")?.text()?,
                ),
                layout: self.field("layout")?.dims()?,
                unit: self.find("unit")?.map(|unit| unit.unit()).transpose()?,
            },
            "fill" => Op::Fill(self.field("value")?.scalar()?),
            "iota" => Op::Iota,
            "random" => {
                let kind = self.field("distribution")?;
                let arguments = self.field("arguments")?.list(At::scalar)?;
                let distribution = match (kind.text()?, &arguments[..]) {
                    ("bernoulli", &[p]) => Distribution::Bernoulli(p),
                    ("uniform", &[a, b]) => Distribution::Uniform(a, b),
                    ("normal", &[a, b]) => Distribution::Normal(a, b),
                    _ => return kind.error("bernoulli of one argument, uniform or normal of two"),
                };
                let stream = self.field("stream")?;
                Op::Random { distribution, stream: stream.json.as_u64().map_or_else(|| stream.error("a number"), Ok)? }
            }
            "einsum" => Op::Einsum { subs: subs()? },
            "reshape" => Op::Reshape,
            "slice" => Op::Slice { dim: number("dim")?, start: number("start")?, step: number("step")? },
            "index" => Op::Index { dim: number("dim")?, index: number("index")? },
            "concat" => Op::Concat { dim: number("dim")? },
            "cumsum" => Op::CumSum { dim: number("dim")? },
            "pad" => Op::Pad { dim: number("dim")?, low: number("low")?, value: self.field("value")?.scalar()? },
            "take" => Op::Take,
            "scatter_add" => Op::ScatterAdd,
            "put" => Op::Put,
            "top_k" => Op::TopK,
            "all_reduce" => Op::AllReduce { op: reduce()?, axes: axes()?.into_iter().collect() },
            "to_partial" => Op::ToPartial { op: reduce()?, axes: axes()?.into_iter().collect() },
            "all_gather" => Op::AllGather { dim: number("dim")?, axes: axes()? },
            "shard_slice" => Op::ShardSlice { dim: number("dim")?, axes: axes()? },
            "reduce_scatter" => Op::ReduceScatter { op: reduce()?, dim: number("dim")?, axes: axes()? },
            "all_to_all" => Op::AllToAll { from: number("from")?, to: number("to")?, axes: axes()? },
            other => match (other.strip_prefix("reduce_").and_then(ReduceOp::from_name), MapFn::from_name(other)) {
                (Some(op), _) => Op::Reduce { op, subs: subs()? },
                (None, Some(f)) => Op::Map { f, subs: subs()? },
                (None, None) => return name.error("an operation"),
            },
        })
    }
}

/// Reads a graph from the value that [`to_json`] writes.
///
/// # Errors
/// The first field that is missing or has the wrong kind.
pub fn from_json(json: &Json) -> Result<Graph, JsonError> {
    let top = At { json, path: String::new() };
    let axes = top.field("mesh")?;
    let sizes = axes.list(|a| Ok((a.field("name")?.text()?, a.field("size")?.number()?)))?;
    let mut graph = Graph::new(Mesh::declared(sizes).or_else(|e| axes.error(&format!("other axes ({e})")))?);
    for node in top.field("nodes")?.items()? {
        let op = node.op(&graph.mesh)?;
        let operands = node.field("operands")?.list(|v| v.value(&graph))?;
        let types = node.field("types")?.list(|t| t.ty(&graph.mesh))?;
        graph.add(op, &operands, types, node.origin()?);
    }
    for region in top.field("regions")?.items()? {
        let boundary = |b: &At<'_>| {
            let layout = b.field("layout")?.dims()?;
            Ok(Boundary { value: b.field("value")?.value(&graph)?, layout })
        };
        let (arguments, results) =
            (region.field("arguments")?.list(boundary)?, region.field("results")?.list(boundary)?);
        graph.regions.push(Region { path: region.field("path")?.text()?.into(), arguments, results });
    }
    let states: HashSet<InputId> = graph.inputs().map(|(_, id)| id.clone()).collect();
    for output in top.field("outputs")?.items()? {
        let name = || Ok(output.field("name")?.text()?.to_string());
        let kind = output.field("kind")?;
        let kind = match kind.text()? {
            "loss" => OutputKind::Loss,
            "result" => OutputKind::Result(name()?),
            "gradient" => OutputKind::Gradient(name()?.into()),
            "update" => OutputKind::Update(InputId::kept_in(&name()?, &states)),
            _ => return kind.error("loss, result, gradient or update"),
        };
        let value = output.field("value")?.value(&graph)?;
        graph.outputs.push(Output { kind, value, layout: output.field("layout")?.dims()? });
    }
    Ok(graph)
}
