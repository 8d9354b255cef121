//! Random well-formed graphs whose placement is correct by construction, with inputs to execute them on.
//!
//! Every choice is taken from a list of numbers, so that proptest can shrink a graph by shortening the list. All values
//! that are used as operands are integers small enough that every order of summation gives the same result, so the
//! placed and the logical meaning must agree exactly.

use std::collections::HashMap;
use tpc_ir::graph::{OutputKind, Region};
use tpc_ir::interpret::Tensor;
use tpc_ir::op::Distribution;
use tpc_ir::verify::redistributed;
use tpc_ir::*;

/// A graph and its inputs.
#[derive(Debug)]
pub struct Case {
    pub graph: Graph,
    pub inputs: HashMap<InputId, Tensor>,
}

/// Builds a graph of about `choices.len() / 12` operations from a list of choices.
pub fn build(choices: &[u16]) -> Case {
    let mut dice = Dice { choices, at: 0 };
    let meshes = ["a=2,b=3", "a=3,b=2", "dp=2,tp=2", "a=1,b=2", "tp=4", "a=4,b=1"].map(|m| Mesh::parse(m).unwrap());
    let mesh = &meshes[dice.below(meshes.len())];
    // Four ranks on one axis form two parts.
    let parts = if mesh.axes().len() == 1 { mesh.split(AxisId(0), 2) } else { None };
    let graph = Graph::new(parts.unwrap_or_else(|| mesh.clone()));
    let mut b = Builder { graph, inputs: HashMap::new(), dice, pool: Vec::new(), bounds: HashMap::new() };
    for _ in 0..2 {
        b.input();
    }
    while b.dice.at < choices.len() {
        b.operation();
    }
    b.finish()
}

struct Dice<'a> {
    choices: &'a [u16],
    at: usize,
}

impl Dice<'_> {
    /// A number below `n`; 0 once the list is exhausted.
    fn below(&mut self, n: usize) -> usize {
        self.at += 1;
        self.choices.get(self.at - 1).map_or(0, |&c| c as usize % n)
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

struct Builder<'a> {
    graph: Graph,
    inputs: HashMap<InputId, Tensor>,
    dice: Dice<'a>,
    /// Values that operations may use.
    pool: Vec<Value>,
    /// Upper bound on the magnitude of the elements of every value in the pool.
    bounds: HashMap<Value, f64>,
}

type Dims = Vec<Vec<AxisId>>;

impl Builder<'_> {
    fn ty(&self, v: Value) -> Type {
        self.graph.ty(v).clone()
    }

    fn origin(&mut self) -> Origin {
        let modules = [
            (None, ""),
            (None, "layers.0.mlp"),
            (Some(0), "a \"b\""),
            (None, "in"),
            (Some(12), "why:"),
            (None, "micro.0"),
            (None, r"up\.weight.\0"),
            (Some(1), "\n{}"),
        ];
        let whys = [
            "",
            "column-wise (plan \"x\")",
            " spaces ",
            "two\nlines",
            "; why: in x",
            "\"quoted\"",
            "rule 7; a.0 is cut (plan tp)",
        ];
        let phase = self.dice.of(&Phase::ALL);
        let (micro_batch, module) = self.dice.of(&modules);
        Origin { phase, micro_batch, module: module.into(), reason: Reason::read(self.dice.of(&whys)) }
    }

    fn push(&mut self, op: Op, operands: &[Value], ty: Type, bound: f64) -> Value {
        let origin = self.origin();
        let v = self.graph.push(op, operands, ty, &origin);
        self.keep(v, bound);
        v
    }

    fn keep(&mut self, v: Value, bound: f64) {
        self.pool.push(v);
        self.bounds.insert(v, bound);
    }

    /// Assigns distinct axes to dimensions, without those in `used`.
    fn deal(&mut self, rank: usize, used: AxisSet) -> Dims {
        let mut dims = vec![Vec::new(); rank];
        let mut axes: Vec<AxisId> = self.graph.mesh.axis_ids().filter(|&a| !used.contains(a)).collect();
        if self.dice.below(2) == 0 {
            axes.reverse();
        }
        for a in axes {
            let d = self.dice.below(rank + 1);
            if d < rank {
                dims[d].push(a);
            }
        }
        dims
    }

    fn shape(&mut self, least: usize) -> Vec<usize> {
        let rank = least + self.dice.below(4 - least);
        (0..rank).map(|_| 1 + self.dice.below(7)).collect()
    }

    fn placed(&mut self, dtype: DType, shape: Vec<usize>) -> Type {
        let dims = self.deal(shape.len(), AxisSet::EMPTY);
        Type { dtype, shape, sharding: Sharding { dims, partial: None } }
    }

    fn feed(&mut self, ty: Type, low: f64, high: f64) -> Value {
        let odd = self.dice.of(&["", "", " \"q\" \\ é\u{1}"]);
        let kind = self.dice.of(&InputKind::ALL);
        let id = InputId::read(kind, &format!("x{}{odd}", self.inputs.len()));
        let layout = if self.dice.below(3) == 0 { vec![ty.elements()] } else { ty.shape.clone() };
        let given = if self.dice.below(2) == 0 { layout.clone() } else { ty.shape.clone() };
        let salt = self.dice.below(1000) as u64;
        let span = high - low + 1.0;
        let element = |i: usize| low + f64::from(random::philox(salt, 0, i as u64)[0]) % span;
        self.inputs.insert(id.clone(), Tensor::from_fn(ty.dtype, given, element));
        let bound = low.abs().max(high.abs());
        let unit = (kind == InputKind::Parameter && salt.is_multiple_of(2)).then_some(UnitId(salt as u32 % 9));
        self.push(Op::Input { id, layout, unit }, &[], ty, bound)
    }

    fn input(&mut self) -> Value {
        let shape = self.shape(0);
        let dtype = self.dice.of(&[DType::F64, DType::F64, DType::I64]);
        let ty = self.placed(dtype, shape);
        self.feed(ty, -3.0, 3.0)
    }

    /// A value of the pool that is not too large and has at least the given rank; a new input if there is none.
    fn value(&mut self, least: usize, bound: f64) -> Value {
        let fits = |v: &&Value| {
            let t = self.graph.ty(**v);
            t.rank() >= least && self.bounds[*v] <= bound && matches!(t.dtype, DType::F64 | DType::I64)
        };
        let found: Vec<Value> = self.pool.iter().filter(fits).copied().collect();
        if !found.is_empty() {
            return self.dice.of(&found);
        }
        let shape = self.shape(least.max(1));
        let ty = self.placed(DType::F64, shape);
        self.feed(ty, -3.0, 3.0)
    }

    fn redistribute(&mut self, op: Op, v: Value) -> Option<Value> {
        let ty = redistributed(&op, self.graph.ty(v), &self.graph.mesh).ok()?;
        let bound = self.bounds[&v] * self.graph.mesh.ranks() as f64;
        Some(self.push(op, &[v], ty, bound))
    }

    /// Reduces a value and redistributes it to the given dimensions.
    fn moved(&mut self, mut v: Value, target: &Dims) -> Value {
        let bound = self.bounds[&v];
        if let Some(p) = self.ty(v).sharding.partial {
            v = self.redistribute(Op::AllReduce { op: p.op, axes: p.axes }, v).unwrap();
        }
        for (dim, wanted) in target.iter().enumerate() {
            let now = self.ty(v).sharding.dims[dim].clone();
            let same = now.iter().zip(wanted).take_while(|(a, b)| a == b).count();
            if same < now.len() {
                v = self.redistribute(Op::AllGather { dim, axes: now[same..].to_vec() }, v).unwrap();
            }
        }
        for (dim, wanted) in target.iter().enumerate() {
            let now = self.ty(v).sharding.dims[dim].len();
            if now < wanted.len() {
                v = self.redistribute(Op::ShardSlice { dim, axes: wanted[now..].to_vec() }, v).unwrap();
            }
        }
        self.bounds.insert(v, bound);
        v
    }

    /// Redistributes a value so that dimension `whole` is not sharded.
    fn whole(&mut self, v: Value, whole: usize) -> Value {
        let mut dims = self.deal(self.ty(v).rank(), AxisSet::EMPTY);
        dims[whole].clear();
        self.moved(v, &dims)
    }

    fn operation(&mut self) {
        match self.dice.below(17) {
            0 => drop(self.input()),
            1 | 2 => self.map(),
            3 | 4 => self.einsum(),
            5 => self.reduce(),
            6 => self.made(),
            7 => self.cut(),
            8 => self.concat(),
            9 => self.take(),
            10 => self.scatter(),
            11 => self.ordered(),
            12 => self.reshape(),
            16 => self.put(),
            _ => self.collective(),
        }
    }

    /// Shardings of operands and result from axes assigned to letters, and the axes of summed letters.
    fn by_letters(&mut self, subs: &Subscripts) -> (Vec<Dims>, Dims, AxisSet) {
        let letters = self.deal(subs.letters(), AxisSet::EMPTY);
        let dims = |row: &Vec<u8>| row.iter().map(|&l| letters[l as usize].clone()).collect::<Dims>();
        let summed = subs.contracted().iter().flat_map(|&l| letters[l as usize].clone()).collect();
        (subs.operands.iter().map(dims).collect(), dims(&subs.result), summed)
    }

    fn map(&mut self) {
        let a = self.value(0, 1e4);
        let t = self.ty(a);
        // The letters of the result are those of the operand, rotated, and sometimes one more.
        let mut letters: Vec<u8> = (0..t.rank() as u8).collect();
        let own = letters.clone();
        let mut shape = t.shape.clone();
        if !letters.is_empty() && self.dice.below(2) == 0 {
            letters.rotate_left(1);
            shape.rotate_left(1);
        }
        if t.rank() < 3 && self.dice.below(4) == 0 {
            letters.push(9);
            shape.push(1 + self.dice.below(5));
        }
        let functions = [
            MapFn::Add,
            MapFn::Sub,
            MapFn::Mul,
            MapFn::Max,
            MapFn::Neg,
            MapFn::Abs,
            MapFn::Lt,
            MapFn::Eq,
            MapFn::Select,
            MapFn::Identity,
            MapFn::Cast(DType::F32),
            MapFn::Cast(DType::I32),
            MapFn::Cast(DType::BF16),
            MapFn::Exp,
            MapFn::Rsqrt,
            MapFn::Sigmoid,
        ];
        let f = self.dice.of(&functions);
        let count = f.arity().unwrap_or(3);
        let bound = self.bounds[&a];
        let mut operands = vec![a];
        let mut rows = vec![own];
        for _ in 1..count {
            if self.dice.below(3) == 0 {
                let x = self.dice.of(&[2.0, -1.0, 0.0]);
                let scalar = self.graph.scalar(t.dtype, x, &Origin::default());
                self.bounds.insert(scalar, 2.0);
                operands.push(scalar);
                rows.push(Vec::new());
            } else {
                operands.push(a);
                rows.push(rows[0].clone());
            }
        }
        if f == MapFn::Select {
            let dims = self.ty(a).sharding.dims.clone();
            let plain = self.moved(a, &dims);
            let zero = self.graph.scalar(t.dtype, 0.0, &Origin::default());
            let subs = Subscripts::implied(&[t.rank(), 0], t.rank()).unwrap();
            let ty = Type { dtype: DType::Bool, ..self.ty(plain) };
            operands[0] = self.push(Op::Map { f: MapFn::Gt, subs }, &[plain, zero], ty, 1.0);
        }
        let subs = Subscripts::new(&rows, &letters);
        let (dims, result, _) = self.by_letters(&subs);
        let operands: Vec<Value> = operands
            .into_iter()
            .zip(&dims)
            .map(|(v, d)| if text::is_inline(&self.graph, v.node) { v } else { self.moved(v, d) })
            .collect();
        let dtypes: Vec<DType> = operands.iter().map(|&v| self.ty(v).dtype).collect();
        let ty = Type { dtype: f.result_dtype(&dtypes), shape, sharding: Sharding { dims: result, partial: None } };
        let b = bound.max(2.0);
        let bound = if f == MapFn::Mul { b * b } else { 3.0 * b };
        let v = self.push(Op::Map { f, subs }, &operands, ty, bound);
        if matches!(f, MapFn::Exp | MapFn::Rsqrt | MapFn::Sigmoid | MapFn::Cast(DType::BF16)) {
            self.bounds.insert(v, f64::INFINITY);
        }
    }

    fn einsum(&mut self) {
        let a = self.value(1, 300.0);
        let t = self.ty(a);
        let templates: &[&str] = match t.rank() {
            1 => &["a,a->", "a,b->ab", "a,a->a", "a,b->b"],
            2 => &["ab,bc->ac", "ab,cb->ca", "ab,ab->", "ab,b->a", "ab,bc->cab"],
            _ => &["abc,cd->abd", "abc,abd->cd", "abc,adc->abd", "abc,bc->a", "abc,d->dab"],
        };
        let subs = Subscripts::parse(self.dice.of(templates)).unwrap();
        let sizes: Vec<usize> =
            (0..subs.letters()).map(|l| t.shape.get(l).copied().unwrap_or_else(|| 1 + self.dice.below(5))).collect();
        let shape = |row: &Vec<u8>| row.iter().map(|&l| sizes[l as usize]).collect::<Vec<_>>();
        let (dims, result, summed) = self.by_letters(&subs);
        let left = self.moved(a, &dims[0]);
        let ty = Type {
            dtype: t.dtype,
            shape: shape(&subs.operands[1]),
            sharding: Sharding { dims: dims[1].clone(), partial: None },
        };
        let right = self.feed(ty, -3.0, 3.0);
        let mut sharding = Sharding { dims: result, partial: None };
        sharding = sharding.with_partial(ReduceOp::Sum, summed).unwrap();
        let ty = Type { dtype: t.dtype, shape: shape(&subs.result), sharding };
        let bound = self.bounds[&left] * 3.0 * 343.0;
        self.push(Op::Einsum { subs }, &[left, right], ty, bound);
    }

    fn reduce(&mut self) {
        let a = self.value(1, 1e9);
        let t = self.ty(a);
        let op = self.dice.of(&[ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min]);
        let all: Vec<u8> = (0..t.rank() as u8).collect();
        let mask = self.dice.below(8);
        let kept: Vec<u8> = all.iter().copied().filter(|l| mask >> l & 1 == 1).collect();
        let subs = Subscripts::new(&[all], &kept);
        let (dims, result, summed) = self.by_letters(&subs);
        let v = self.moved(a, &dims[0]);
        let shape = kept.iter().map(|&l| t.shape[l as usize]).collect();
        let sharding = Sharding { dims: result, partial: None }.with_partial(op, summed).unwrap();
        let bound = self.bounds[&v] * 343.0;
        self.push(Op::Reduce { op, subs }, &[v], Type { dtype: t.dtype, shape, sharding }, bound);
    }

    /// Fill, iota, random.
    fn made(&mut self) {
        let shape = self.shape(1);
        match self.dice.below(4) {
            0 => {
                let ty = self.placed(DType::F64, shape);
                self.push(Op::Fill(Scalar::float(-2.0)), &[], ty, 2.0);
            }
            1 => {
                let ty = self.placed(DType::I64, shape[..1].to_vec());
                self.push(Op::Iota, &[], ty, 7.0);
            }
            n => {
                let seed = self.graph.scalar(DType::I64, 7.0 - n as f64, &Origin::default());
                let s = Scalar::float;
                let list = [
                    Distribution::Bernoulli(s(0.3)),
                    Distribution::Uniform(s(-1.0), s(1e-5)),
                    Distribution::Normal(Scalar::Int(0), s(2.5)),
                ];
                let distribution = self.dice.of(&list);
                let ty = self.placed(DType::F64, shape);
                let exact = matches!(distribution, Distribution::Bernoulli(_));
                let bound = if exact { 1.0 } else { f64::INFINITY };
                let stream = self.dice.below(3) as u64;
                self.push(Op::Random { distribution, stream }, &[seed], ty, bound);
            }
        }
    }

    /// Slice, index, pad, cumulative sum.
    fn cut(&mut self) {
        let v = self.value(1, 1e9);
        let dim = self.dice.below(self.ty(v).rank());
        let v = self.whole(v, dim);
        let (mut ty, bound) = (self.ty(v), self.bounds[&v].max(2.0));
        let size = ty.shape[dim];
        let op = match self.dice.below(4) {
            0 => {
                let (start, step) = (self.dice.below(size), 1 + self.dice.below(2));
                ty.shape[dim] = self.dice.below((size - start).div_ceil(step)) + 1;
                Op::Slice { dim, start, step }
            }
            1 => {
                ty.shape.remove(dim);
                ty.sharding.dims.remove(dim);
                Op::Index { dim, index: self.dice.below(size) }
            }
            2 => {
                let low = self.dice.below(3);
                ty.shape[dim] = (low + size + self.dice.below(2)).min(9.max(low + size));
                Op::Pad { dim, low, value: Scalar::of(ty.dtype, 2.0) }
            }
            _ => Op::CumSum { dim },
        };
        self.push(op, &[v], ty, bound * 9.0);
    }

    fn concat(&mut self) {
        let v = self.value(1, 1e9);
        let dim = self.dice.below(self.ty(v).rank());
        let v = self.whole(v, dim);
        let mut ty = self.ty(v);
        let n = 1 + self.dice.below(2);
        ty.shape[dim] *= n;
        let bound = self.bounds[&v];
        if ty.shape[dim] < 12 {
            self.push(Op::Concat { dim }, &vec![v; n], ty, bound);
        }
    }

    fn take(&mut self) {
        let v = self.value(1, 1e9);
        let t = self.ty(v);
        let dims = self.deal(t.rank(), AxisSet::EMPTY);
        let table = self.moved(v, &dims);
        let used: AxisSet = dims.iter().flatten().copied().collect();
        let count = self.shape(0).into_iter().take(2).collect::<Vec<_>>();
        let cut = self.deal(count.len(), used);
        let ty =
            Type { dtype: DType::I64, shape: count.clone(), sharding: Sharding { dims: cut.clone(), partial: None } };
        // One row before and one row after the table, which read as zeros.
        let index = self.feed(ty, -1.0, t.shape[0] as f64);
        let sharding = Sharding { dims: [cut, dims[1..].to_vec()].concat(), partial: None };
        let sharding = sharding.with_partial(ReduceOp::Sum, dims[0].iter().copied().collect()).unwrap();
        let shape = [count, t.shape[1..].to_vec()].concat();
        let bound = self.bounds[&table];
        if shape.len() < 4 {
            self.push(Op::Take, &[table, index], Type { dtype: t.dtype, shape, sharding }, bound);
        }
    }

    fn put(&mut self) {
        let v = self.value(1, 1e9);
        let t = self.ty(v);
        let dims = self.deal(t.rank(), AxisSet::EMPTY);
        let table = self.moved(v, &dims);
        let named = 1 + self.dice.below(4);
        // A row number may occur twice, and may be outside the table.
        let index = self.feed(Type::new(DType::I64, vec![named]), -1.0, t.shape[0] as f64);
        let shape = [&[named], &t.shape[1..]].concat();
        let sharding = Sharding { dims: [&[Vec::new()], &dims[1..]].concat(), partial: None };
        let rows = self.feed(Type { dtype: t.dtype, shape, sharding }, -3.0, 3.0);
        let bound = self.bounds[&table].max(3.0);
        let ty = Type { dtype: t.dtype, shape: t.shape, sharding: Sharding { dims, partial: None } };
        self.push(Op::Put, &[table, index, rows], ty, bound);
    }

    fn scatter(&mut self) {
        let v = self.value(1, 1e9);
        let t = self.ty(v);
        let dims = self.deal(t.rank(), AxisSet::EMPTY);
        let update = self.moved(v, &dims);
        let n = 1 + self.dice.below(t.rank());
        let rows = 1 + self.dice.below(7);
        let ty = Type {
            dtype: DType::I64,
            shape: t.shape[..n].to_vec(),
            sharding: Sharding { dims: dims[..n].to_vec(), partial: None },
        };
        let index = self.feed(ty, -1.0, rows as f64);
        let used = dims.iter().flatten().copied().collect();
        let cut = self.deal(1, used);
        let sharding = Sharding { dims: [cut, dims[n..].to_vec()].concat(), partial: None };
        let sharding = sharding.with_partial(ReduceOp::Sum, dims[..n].iter().flatten().copied().collect()).unwrap();
        let shape = [vec![rows], t.shape[n..].to_vec()].concat();
        let bound = self.bounds[&update] * 343.0;
        self.push(Op::ScatterAdd, &[index, update], Type { dtype: t.dtype, shape, sharding }, bound);
    }

    fn ordered(&mut self) {
        let v = self.value(1, 1e12);
        let last = self.ty(v).rank() - 1;
        let v = self.whole(v, last);
        let mut ty = self.ty(v);
        ty.shape[last] = 1 + self.dice.below(ty.shape[last]);
        let origin = self.origin();
        let types = vec![ty.clone(), Type { dtype: DType::I64, ..ty }];
        let node = self.graph.add(Op::TopK, &[v], types, origin);
        let bound = self.bounds[&v].max(7.0);
        self.keep(Value { node, result: 0 }, bound);
        self.keep(Value { node, result: 1 }, bound);
    }

    fn reshape(&mut self) {
        let v = self.value(1, 1e12);
        let t = self.ty(v);
        let v = self.moved(v, &vec![Vec::new(); t.rank()]);
        let shape = if t.rank() > 1 { vec![t.elements()] } else { vec![1, t.elements()] };
        let bound = self.bounds[&v];
        self.push(Op::Reshape, &[v], Type::new(t.dtype, shape), bound);
    }

    fn collective(&mut self) {
        let v = self.value(0, 1e9);
        let t = self.ty(v);
        let mut axes: Vec<AxisId> = self.graph.mesh.axis_ids().collect();
        if self.dice.below(2) == 0 {
            axes.reverse();
        }
        axes.truncate(1 + self.dice.below(2));
        let set: AxisSet = axes.iter().copied().collect();
        let op = t.sharding.partial.map_or(ReduceOp::Sum, |p| p.op);
        let rank = t.rank().max(1);
        let (dim, other) = (self.dice.below(rank), self.dice.below(rank));
        let all = [
            Op::AllReduce { op, axes: set },
            Op::ReduceScatter { op, dim, axes: axes.clone() },
            Op::AllGather { dim, axes: axes.clone() },
            Op::AllToAll { from: dim, to: other, axes: axes.clone() },
            Op::ShardSlice { dim, axes },
            Op::ToPartial { op, axes: set },
        ];
        let first = self.dice.below(all.len());
        let _ = (0..all.len()).find_map(|i| self.redistribute(all[(first + i) % all.len()].clone(), v));
    }

    fn finish(mut self) -> Case {
        let used: Vec<bool> = self.graph.nodes().map(|n| self.graph.users(n).count() > 0).collect();
        let leaves: Vec<Value> = self.pool.iter().copied().filter(|v| !used[v.node.index()]).collect();
        for (i, &value) in leaves.iter().enumerate() {
            let layout = if self.dice.below(2) == 0 { self.ty(value).shape } else { vec![self.ty(value).elements()] };
            let kind = match i {
                0 => OutputKind::Loss,
                1 => OutputKind::Gradient("g".into()),
                _ => OutputKind::Result(format!("y{i}")),
            };
            self.graph.outputs.push(Output { kind, value, layout });
        }
        let trained = self.graph.inputs().find(|(_, id)| id.is_kept());
        if let Some((node, id)) = trained {
            let output = Output {
                kind: OutputKind::Update(id.clone()),
                value: node.into(),
                layout: self.graph.node(node).types[0].shape.clone(),
            };
            self.graph.outputs.push(output);
        }
        let graph = &self.graph;
        let boundaries = |values: &[Value]| -> Vec<Boundary> {
            // The first output keeps its layout; the others are flattened.
            let layout = |i: usize, v: Value| match i {
                0 => graph.ty(v).shape.clone(),
                _ => vec![graph.ty(v).elements()],
            };
            values.iter().enumerate().map(|(i, &v)| Boundary { value: v, layout: layout(i, v) }).collect()
        };
        let (arguments, results) = (boundaries(&self.pool[..1]), boundaries(&leaves));
        let region = Region { path: "a.\"b\"".into(), arguments, results };
        self.graph.regions.push(region);
        self.graph.regions.push(Region { path: ModulePath::default(), arguments: Vec::new(), results: Vec::new() });
        Case { graph: self.graph, inputs: self.inputs }
    }
}
