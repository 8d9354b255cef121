//! Emits nodes of a fused loop as CUDA C.

use super::space::{Axis, offset};
use crate::device::cpu::vector::LaneType;
use crate::device::nodes::{Function, Kind, Node, Walk};
use std::collections::HashMap;
use std::fmt::Write as _;
use tpc_ir::op::Distribution;
use tpc_ir::{DType, MapFn, ReduceOp};

/// A loop whose nodes are emitted.
pub(super) struct LoopGraph {
    /// Sizes of the loop.
    pub(super) dims: Vec<usize>,
    pub(super) nodes: Vec<Node>,
    pub(super) walks: Vec<Walk>,
    /// Values at index 0, and strides.
    pub(super) affines: Vec<(i64, Vec<isize>)>,
}

/// How often a node is computed.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(super) enum Level {
    /// Once for the kernel, or once per row.
    Row,
    /// Once per element.
    Element,
}

/// The C type of an element in memory.
pub(super) fn element(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "double",
        DType::F32 => "float",
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        DType::I64 => "i64",
        DType::I32 => "int",
        DType::U8 => "u8",
        DType::Bool => "truth",
    }
}

/// The C type of a lane.
pub(super) fn lane(lane: LaneType) -> &'static str {
    match lane {
        LaneType::F64 => "double",
        LaneType::F32 => "float",
        LaneType::I64 => "i64",
        LaneType::Bool => "u8",
    }
}

/// The type in which lanes are accumulated: f64 for sums and products of f32, as on the CPU.
pub(super) fn accumulator(op: ReduceOp, of: LaneType) -> &'static str {
    match (op, of) {
        (ReduceOp::Sum | ReduceOp::Prod, LaneType::F32) => "double",
        _ => lane(of),
    }
}

/// The functor of a reduction.
pub(super) fn functor(op: ReduceOp) -> &'static str {
    match op {
        ReduceOp::Sum => "Sum",
        ReduceOp::Max => "Max",
        ReduceOp::Min => "Min",
        ReduceOp::Prod => "Prod",
    }
}

/// The identity of a reduction, in the accumulator's type.
pub(super) fn identity(op: ReduceOp, of: LaneType) -> String {
    match of {
        LaneType::F32 | LaneType::F64 => double(op.identity()),
        LaneType::I64 => integer(op.identity() as i64),
        LaneType::Bool => if matches!(op, ReduceOp::Sum | ReduceOp::Max) { "0" } else { "1" }.into(),
    }
}

fn double(x: f64) -> String {
    match x {
        x if x.is_nan() => "(double)__uint_as_float(0x7fc00000u)".into(),
        x if x.is_infinite() => if x > 0.0 { "(double)INF" } else { "-(double)INF" }.into(),
        x => format!("{x:?}"),
    }
}

fn integer(x: i64) -> String {
    if x == i64::MIN { "(-9223372036854775807ll - 1)".into() } else { format!("{x}ll") }
}

fn constant(lane: LaneType, bytes: [u8; 8]) -> String {
    match lane {
        LaneType::F32 => {
            let x = f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            if x.is_finite() { format!("{x:?}f") } else { format!("__uint_as_float({:#x}u)", x.to_bits()) }
        }
        LaneType::F64 => double(f64::from_ne_bytes(bytes)),
        LaneType::I64 => integer(i64::from_ne_bytes(bytes)),
        LaneType::Bool => format!("(u8){}", u8::from(bytes[0] != 0)),
    }
}

/// The arguments of a kernel under construction.
#[derive(Default)]
pub(super) struct Args {
    pub(super) values: Vec<i64>,
    walks: HashMap<usize, usize>,
    affines: HashMap<usize, usize>,
}

impl Args {
    pub(super) fn push(&mut self, value: i64) -> usize {
        self.values.push(value);
        self.values.len() - 1
    }
}

/// The state of emitting nodes.
pub(super) struct Body<'a> {
    pub(super) graph: &'a LoopGraph,
    /// Axes of rows and within rows, with strides of accesses, then of affine integers.
    pub(super) kept: Vec<Axis>,
    pub(super) reduced: Vec<Axis>,
    /// Number of consecutive elements along the innermost axis that a thread processes; 1 for no packs.
    pub(super) vector: usize,
    /// Accesses that read or write packs of this size.
    pub(super) packed: Vec<bool>,
    /// Accesses to memory that no store of the kernel writes.
    pub(super) read_only: Vec<bool>,
    pub(super) level: Vec<Level>,
    /// Loads that replace reductions, which another kernel computed.
    pub(super) stands_for: HashMap<usize, usize>,
    /// First byte of the rank's memory in the device allocation.
    pub(super) base: i64,
    /// Whether integers at index 0 are written as literals, so that the compiler knows them, instead of being
    /// arguments.
    pub(super) literal: bool,
    pub(super) args: Args,
    /// Declarations of pointers.
    pub(super) head: String,
    /// Statements for the row.
    pub(super) row: String,
    /// Statements for an element: reads of packs, computation, writes of packs.
    pub(super) packs: String,
    pub(super) lanes: String,
    pub(super) stores: String,
    /// Names of nodes of the row, and of the element.
    pub(super) rows: HashMap<usize, String>,
    pub(super) elements: HashMap<usize, String>,
    /// Element nodes that are kept in registers: whether to write or read the registers.
    pub(super) cached: HashMap<usize, bool>,
    /// The index of an element in such a register array.
    pub(super) cache_place: String,
    packed_reads: HashMap<usize, ()>,
}

impl<'a> Body<'a> {
    pub(super) fn new(graph: &'a LoopGraph, kept: Vec<Axis>, reduced: Vec<Axis>, base: i64) -> Self {
        Body {
            graph,
            kept,
            reduced,
            vector: 1,
            packed: vec![false; graph.walks.len()],
            read_only: vec![false; graph.walks.len()],
            level: vec![Level::Element; graph.nodes.len()],
            stands_for: HashMap::new(),
            base,
            literal: false,
            args: Args::default(),
            head: String::new(),
            row: String::new(),
            packs: String::new(),
            lanes: String::new(),
            stores: String::new(),
            rows: HashMap::new(),
            elements: HashMap::new(),
            cached: HashMap::new(),
            cache_place: String::new(),
            packed_reads: HashMap::new(),
        }
    }

    /// Forgets the names of the emitted element.
    pub(super) fn next_element(&mut self) {
        self.packs.clear();
        self.lanes.clear();
        self.stores.clear();
        self.elements.clear();
        self.packed_reads.clear();
    }

    fn groups(&self) -> [(&str, &[Axis]); 2] {
        [("k", &self.kept), ("n", &self.reduced)]
    }

    /// The innermost axis, along which packs extend.
    fn innermost(&self) -> Option<&Axis> {
        self.reduced.last().or(self.kept.last())
    }

    /// The number of an access's pointer.
    pub(super) fn pointer(&mut self, w: usize) -> usize {
        if let Some(&a) = self.args.walks.get(&w) {
            return a;
        }
        let walk = &self.graph.walks[w];
        let a = self.args.push(self.base + walk.extent.base as i64);
        self.args.walks.insert(w, a);
        let t = element(walk.dtype);
        let _ = writeln!(self.head, "    {t}* const p{a} = ({t}*)(A + a{a});");
        a
    }

    /// The offset of an access for the current element.
    pub(super) fn offset(&self, w: usize, at_lane: bool) -> String {
        let mut text = offset(w, self.groups(), "");
        let s = self.innermost().map_or(0, |a| a.strides[w]);
        if at_lane && self.vector > 1 && s != 0 {
            let _ = write!(text, " + v * {s}");
        }
        text
    }

    /// The lane of an element that an access reads.
    fn load(&mut self, w: usize, level: Level) -> String {
        let p = self.pointer(w);
        let read = if self.read_only[w] { "read_only" } else { "read" };
        if level == Level::Element && self.packed[w] {
            if self.packed_reads.insert(w, ()).is_none() {
                let (t, n) = (element(self.graph.walks[w].dtype), self.vector);
                let at = self.offset(w, false);
                let _ =
                    writeln!(self.packs, "const Pack<{t}, {n}> q{p} = {read}((const Pack<{t}, {n}>*)(p{p} + {at}));");
            }
            return format!("lane(q{p}.x[v])");
        }
        let at = self.offset(w, level == Level::Element);
        format!("lane({read}(p{p} + {at}))")
    }

    /// An affine integer.
    fn affine(&mut self, a: usize, level: Level) -> String {
        let first = self.graph.affines[a].0;
        let first = match self.args.affines.get(&a) {
            _ if self.literal => integer(first),
            Some(&arg) => format!("a{arg}"),
            None => {
                let arg = self.args.push(first);
                self.args.affines.insert(a, arg);
                format!("a{arg}")
            }
        };
        let item = self.graph.walks.len() + a;
        let mut text = offset(item, self.groups(), "(i64)");
        let s = self.innermost().map_or(0, |x| x.strides[item]);
        if level == Level::Element && self.vector > 1 && s != 0 {
            let _ = write!(text, " + v * {s}ll");
        }
        format!("({first} + {text})")
    }

    /// The name of a node's value, after emitting its operands.
    pub(super) fn value(&mut self, node: usize) -> String {
        let n = &self.graph.nodes[node];
        if let Kind::Constant(bytes) = n.kind {
            return constant(n.lane, bytes);
        }
        let level = self.level[node];
        let known = if level == Level::Row { &self.rows } else { &self.elements };
        if let Some(name) = known.get(&node) {
            return name.clone();
        }
        if level == Level::Element && self.cached.get(&node) == Some(&false) {
            return format!("c{node}[{}]", self.cache_place);
        }
        let inputs: Vec<String> = if self.stands_for.contains_key(&node) {
            Vec::new()
        } else {
            n.inputs.iter().map(|&x| self.value(x)).collect()
        };
        let expression = self.expression(node, &inputs, level);
        let name = format!("r{node}");
        let text = format!("const {} {name} = {expression};\n", lane(n.lane));
        if level == Level::Row {
            self.row.push_str("    ");
            self.row.push_str(&text);
            self.rows.insert(node, name.clone());
        } else {
            self.lanes.push_str(&text);
            if self.cached.get(&node) == Some(&true) {
                let _ = writeln!(self.lanes, "c{node}[{}] = {name};", self.cache_place);
            }
            self.elements.insert(node, name.clone());
        }
        name
    }

    /// The expression of a node's value from these operands.
    pub(super) fn expression(&mut self, node: usize, x: &[String], level: Level) -> String {
        let n = &self.graph.nodes[node];
        let to = lane(n.lane);
        if let Some(&w) = self.stands_for.get(&node) {
            return self.load(w, level);
        }
        match &n.kind {
            Kind::Load(w) => self.load(*w, level),
            Kind::Index(a) => format!("As<{to}>::of({})", self.affine(*a, level)),
            Kind::Random { affine, distribution, stream } => {
                let at = self.affine(*affine, level);
                let stream = self.args.push(*stream as i64);
                let words = format!("philox((u64){}, (u64)a{stream}, (u64){at})", x[0]);
                let drawn = match distribution {
                    Distribution::Bernoulli(p) => format!("bernoulli({words}, {})", double(p.as_f64())),
                    Distribution::Uniform(a, b) => {
                        format!("uniform({words}, {}, {})", double(a.as_f64()), double(b.as_f64()))
                    }
                    Distribution::Normal(m, s) => {
                        format!("normal({words}, {}, {})", double(m.as_f64()), double(s.as_f64()))
                    }
                };
                format!("As<{to}>::of({drawn})")
            }
            Kind::Function(f) => function(*f, to, x),
            Kind::Constant(_) | Kind::Reduce(_) | Kind::Store(_) | Kind::Accumulate(..) => {
                unreachable!("has no expression")
            }
        }
    }

    /// The condition under which a store takes effect: of iterations that write to the same address, only the last.
    fn guard(&self, w: usize, level: Level) -> String {
        let mut conditions = Vec::new();
        for (name, axes) in self.groups() {
            let of_row = name == "n" && level == Level::Row;
            for (i, axis) in axes.iter().enumerate().filter(|(_, a)| a.strides[w] == 0 && !of_row) {
                let innermost =
                    level == Level::Element && self.vector > 1 && std::ptr::eq(axis, self.innermost().unwrap_or(axis));
                let lane = if innermost { " + v" } else { "" };
                conditions.push(format!("{name}{i}{lane} == {}", axis.size - 1));
            }
        }
        if conditions.is_empty() { String::new() } else { format!("if ({}) ", conditions.join(" && ")) }
    }

    /// Writes a lane to an access, from an element or from the row.
    pub(super) fn store(&mut self, w: usize, value: &str, level: Level) {
        let p = self.pointer(w);
        let t = element(self.graph.walks[w].dtype);
        let guard = self.guard(w, level);
        if level == Level::Row {
            let at = self.offset(w, false);
            let _ = writeln!(self.row, "    {guard}p{p}[{at}] = To<{t}>::of({value});");
        } else if self.packed[w] {
            let n = self.vector;
            let at = self.offset(w, false);
            let _ = writeln!(self.packs, "Pack<{t}, {n}> o{p};");
            let _ = writeln!(self.lanes, "o{p}.x[v] = To<{t}>::of({value});");
            let _ = writeln!(self.stores, "{guard}*(Pack<{t}, {n}>*)(p{p} + {at}) = o{p};");
        } else {
            let at = self.offset(w, true);
            let _ = writeln!(self.lanes, "{guard}p{p}[{at}] = To<{t}>::of({value});");
        }
    }

    /// Decides which accesses move in packs: the kernel's whole element loop then processes `vector` consecutive
    /// elements at a time. `used` are the accesses at the level of elements.
    pub(super) fn choose_vector(&mut self, used: &[usize], most: usize) {
        let Some(inner) = self.innermost() else { return };
        let bytes = |w: usize| self.graph.walks[w].dtype.bytes();
        let dense: Vec<usize> = used.iter().copied().filter(|&w| inner.strides[w] == 1).collect();
        let Some(largest) = dense.iter().map(|&w| bytes(w)).max() else { return };
        let mut vector = (16 / largest).min(most);
        while vector > 1 && inner.size % vector != 0 {
            vector /= 2;
        }
        let fits = |w: usize, vector: usize| {
            let outer = self.kept.iter().chain(&self.reduced).filter(|a| !std::ptr::eq(*a, inner));
            (self.base as usize + self.graph.walks[w].extent.base).is_multiple_of(vector * bytes(w))
                && outer.map(|a| a.strides[w]).all(|s| s % vector as isize == 0)
        };
        while vector > 1 && !dense.iter().any(|&w| fits(w, vector)) {
            vector /= 2;
        }
        if vector > 1 {
            let packed: Vec<usize> = dense.into_iter().filter(|&w| fits(w, vector)).collect();
            packed.into_iter().for_each(|w| self.packed[w] = true);
            self.vector = vector;
        }
    }

    /// The statements of the emitted element.
    pub(super) fn element_text(&self, indent: &str) -> String {
        let mut text = String::new();
        let mut lines = |from: &str, indent: &str| {
            for line in from.lines() {
                let _ = writeln!(text, "{indent}{line}");
            }
        };
        lines(&self.packs, indent);
        if self.vector > 1 {
            lines("#pragma unroll", indent);
            lines(&format!("for (int v = 0; v < {}; v++) {{", self.vector), indent);
            lines(&self.lanes, &format!("{indent}    "));
            lines("}", indent);
        } else {
            lines(&self.lanes, indent);
        }
        lines(&self.stores, indent);
        text
    }
}

/// A function of lanes.
pub(super) fn function(f: Function, to: &str, x: &[String]) -> String {
    let f = match f {
        Function::Convert => return format!("As<{to}>::of({})", x[0]),
        Function::Round(d) => return format!("rounded<{}>({})", element(d), x[0]),
        Function::MultiplyAdd => return format!("m_fma({}, {}, {})", x[0], x[1], x[2]),
        Function::Map(f) => f,
    };
    let compare = |op: &str| format!("(u8)({} {op} {})", x[0], x[1]);
    match f {
        MapFn::Add => format!("Sum::of({}, {})", x[0], x[1]),
        MapFn::Mul => format!("Prod::of({}, {})", x[0], x[1]),
        MapFn::Max => format!("Max::of({}, {})", x[0], x[1]),
        MapFn::Min => format!("Min::of({}, {})", x[0], x[1]),
        MapFn::Eq => compare("=="),
        MapFn::Ne => compare("!="),
        MapFn::Lt => compare("<"),
        MapFn::Le => compare("<="),
        MapFn::Gt => compare(">"),
        MapFn::Ge => compare(">="),
        MapFn::Select => format!("({} ? {} : {})", x[0], x[1], x[2]),
        f => format!("m_{}({})", f.name(), x.join(", ")),
    }
}
