//! Attention of many kinds as programs of one rank, and their meaning: [`reference`] follows the specification
//! (`ir/src/attention.rs`) in f64 on the bytes of an arena, independent of any device.

use super::support::{self, Builder, Lcg};
use std::collections::HashMap;
use tpc_ir::attention::{Attention, Backward, Operand};
use tpc_ir::op::Distribution;
use tpc_ir::program::*;
use tpc_ir::{DType, MapFn, Scalar, random};
use tpc_runtime::element::{decode, encode};

// ---- the meaning ----

/// The outputs of a program of attentions, computed from its inputs.
pub fn reference(program: &RankProgram, inputs: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut arena = vec![0u8; program.arena_bytes];
    for (input, bytes) in program.inputs.iter().zip(inputs) {
        let at = first_byte(program, &input.binding.view);
        arena[at..at + bytes.len()].copy_from_slice(bytes);
    }
    for step in &program.steps {
        let Action::Attention(a) = &step.action else { panic!("only attentions") };
        Memory { program, bytes: &mut arena }.attention(a);
    }
    let read = |view: &View| {
        let at = first_byte(program, view);
        arena[at..at + view.elements() * view.dtype.bytes()].to_vec()
    };
    program.outputs.iter().map(|o| read(&o.binding.view)).collect()
}

fn first_byte(program: &RankProgram, view: &View) -> usize {
    program.buffers[view.buffer.0 as usize].offset + view.offset * view.dtype.bytes()
}

/// All indices of some extents, row-major.
fn indices(extents: &[usize]) -> Vec<Vec<usize>> {
    let start = vec![Vec::new()];
    extents.iter().fold(start, |all, &n| {
        let with = |index: &Vec<usize>, i: usize| index.iter().copied().chain([i]).collect::<Vec<usize>>();
        all.iter().flat_map(|index| (0..n).map(move |i| with(index, i))).collect()
    })
}

fn dot(index: &[usize], strides: &[isize]) -> isize {
    assert_eq!(index.len(), strides.len());
    index.iter().zip(strides).map(|(&i, &s)| i as isize * s).sum()
}

struct Memory<'a> {
    program: &'a RankProgram,
    bytes: &'a mut [u8],
}

impl Memory<'_> {
    fn place(&self, view: &View, offset: isize) -> std::ops::Range<usize> {
        let size = view.dtype.bytes() as isize;
        let buffer = &self.program.buffers[view.buffer.0 as usize];
        let within = (view.offset as isize + offset) * size;
        assert!(within >= 0 && within + size <= buffer.bytes as isize, "out of the buffer");
        let at = buffer.offset + within as usize;
        at..at + size as usize
    }

    fn get(&self, view: &View, offset: isize) -> f64 {
        decode(view.dtype, &self.bytes[self.place(view, offset)])[0]
    }

    fn set(&mut self, view: &View, offset: isize, x: f64) {
        let place = self.place(view, offset);
        self.bytes[place].copy_from_slice(&encode(view.dtype, &[x]));
    }

    fn body(&self, body: &[Instruction], at: &[usize], given: &[f64]) -> f64 {
        let mut r: Vec<f64> = Vec::new();
        for ins in body {
            let narrow = |d: DType, x: f64| if matches!(d, DType::F32 | DType::F64) { x } else { d.round(x) };
            r.push(match ins {
                Instruction::Load { view, strides } => self.get(view, dot(at, strides)),
                Instruction::Constant(x, dtype) => narrow(*dtype, x.as_f64()),
                Instruction::Given { index, .. } => given[*index],
                Instruction::Index { dim, offset, dtype } => narrow(*dtype, (at[*dim] + offset) as f64),
                Instruction::Random { distribution, stream, seed, index, dtype } => {
                    let counter: usize = index.iter().map(|&(dim, offset, stride)| (at[dim] + offset) * stride).sum();
                    let words = random::philox(r[*seed] as i64 as u64, *stream, counter as u64);
                    narrow(*dtype, random::element(*distribution, words))
                }
                Instruction::Map { f, args, dtype } => {
                    narrow(*dtype, f.eval(&args.iter().map(|&a| r[a]).collect::<Vec<_>>()))
                }
                other => panic!("not in a body of attention: {other:?}"),
            });
        }
        *r.last().expect("a body has a result")
    }

    /// All elements of an operand at an index of the scores' dimensions.
    fn row(&self, o: &Operand, at: &[usize], own: &[Vec<usize>]) -> Vec<f64> {
        own.iter().map(|i| self.get(&o.view, dot(at, &o.dims) + dot(i, &o.own))).collect()
    }

    fn attention(&mut self, a: &Attention) {
        let (inner, width) = (indices(&a.inner), indices(&a.width));
        let (rows, columns) = (a.rows(), a.columns());
        let mut sums: HashMap<(usize, isize), f64> = HashMap::new();
        let gradients = a
            .backward
            .iter()
            .flat_map(|b| [(0, &b.grad_query, &inner), (1, &b.grad_key, &inner), (2, &b.grad_value, &width)]);
        // Every element of a gradient is written, including those that nothing is added to.
        for (which, operand, own) in gradients.clone() {
            let Some(o) = operand else { continue };
            let extents: Vec<usize> = a.dims.iter().zip(&o.dims).map(|(&n, &s)| if s == 0 { 1 } else { n }).collect();
            for at in indices(&extents) {
                own.iter().for_each(|i| _ = sums.insert((which, dot(&at, &o.dims) + dot(i, &o.own)), 0.0));
            }
        }
        for (number, batch) in indices(&a.dims[..a.batch()]).into_iter().enumerate() {
            let at = |r: usize, c: usize| [&batch[..], &[r, c]].concat();
            let keys: Vec<Vec<f64>> = (0..columns).map(|c| self.row(&a.key, &at(0, c), &inner)).collect();
            let values: Vec<Vec<f64>> = (0..columns).map(|c| self.row(&a.value, &at(0, c), &width)).collect();
            for r in 0..rows {
                let query = self.row(&a.query, &at(r, 0), &inner);
                let multiply = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
                let products: Vec<f64> = keys.iter().map(|k| multiply(&query, k)).collect();
                let scores: Vec<f64> = (0..columns).map(|c| self.body(&a.score, &at(r, c), &[products[c]])).collect();
                let weight = |c: usize| if a.weight.is_empty() { 1.0 } else { self.body(&a.weight, &at(r, c), &[]) };
                let weights: Vec<f64> = (0..columns).map(weight).collect();
                let largest = |m: f64, &x: &f64| if m.is_nan() || m > x { m } else { x };
                let max = scores.iter().fold(f64::NEG_INFINITY, largest);
                let exps: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = exps.iter().sum();
                let p: Vec<f64> = exps.iter().map(|e| e / sum).collect();
                let stat = (number * rows + r) as isize;
                let Some(b) = &a.backward else {
                    for (w, i) in width.iter().enumerate() {
                        let x = (0..columns).map(|c| p[c] * weights[c] * values[c][w]).sum();
                        self.set(&a.out.view, dot(&at(r, 0), &a.out.dims) + dot(i, &a.out.own), x);
                    }
                    if a.keep {
                        self.set(&a.max, stat, max);
                        self.set(&a.sum, stat, sum);
                    }
                    continue;
                };
                let grad_out = self.row(&b.grad_out, &at(r, 0), &width);
                let g: Vec<f64> = (0..columns).map(|c| multiply(&grad_out, &values[c]) * weights[c]).collect();
                let delta = multiply(&p, &g);
                let mut add =
                    |which: usize, operand: &Option<Operand>, at: &[usize], own: &[Vec<usize>], x: f64, of: &[f64]| {
                        let Some(o) = operand else { return };
                        for (i, y) in own.iter().zip(of) {
                            *sums.get_mut(&(which, dot(at, &o.dims) + dot(i, &o.own))).unwrap() += x * y;
                        }
                    };
                for c in 0..columns {
                    let given = [p[c] * (g[c] - delta), products[c]];
                    let d = if b.gradient.is_empty() { 0.0 } else { self.body(&b.gradient, &at(r, c), &given) };
                    add(0, &b.grad_query, &at(r, c), &inner, d, &keys[c]);
                    add(1, &b.grad_key, &at(r, c), &inner, d, &query);
                    add(2, &b.grad_value, &at(r, c), &width, p[c] * weights[c], &grad_out);
                }
            }
        }
        for (which, operand, _) in gradients {
            let Some(o) = operand else { continue };
            for (&(of, offset), &x) in &sums {
                if of == which {
                    self.set(&o.view, offset, x);
                }
            }
        }
    }
}

// ---- comparing ----

/// Panics if outputs differ by more than sums of that type may.
pub fn check(case: &Case, got: &[Vec<u8>], what: &str) {
    let want = case.want();
    for ((output, got), want) in case.program.outputs.iter().zip(got).zip(&want) {
        let dtype = output.binding.view.dtype;
        let (got, want) = (decode(dtype, got), decode(dtype, want));
        // Scores that stand for masked elements do not count as magnitudes.
        let ordinary = want.iter().filter(|x| x.abs() < 1e20);
        // Gradients are differences of numbers of about 1, and may cancel completely.
        let largest = ordinary.fold(0.2f64, |m, x| m.max(x.abs()));
        assert_eq!(got.len(), want.len());
        for (i, (&x, &y)) in got.iter().zip(&want).enumerate() {
            let allowed = case.tolerance() * y.abs().max(largest);
            assert!(
                x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= allowed,
                "{}, {what}: element {i} of {:?} is {x}, not {y} (largest {largest})\n{}",
                case.name,
                output.kind,
                case.program.to_text()
            );
        }
    }
}

// ---- cases ----

/// A program and its inputs.
pub struct Case {
    pub name: String,
    pub program: RankProgram,
    /// Dense bytes of each input.
    pub inputs: Vec<Vec<u8>>,
    dtype: DType,
}

impl Case {
    /// The expected outputs after a step.
    pub fn want(&self) -> Vec<Vec<u8>> {
        reference(&self.program, &self.inputs)
    }

    /// How far results may differ, relative to the largest value of a tensor.
    pub fn tolerance(&self) -> f64 {
        match self.dtype {
            DType::F64 => 1e-12,
            DType::BF16 => 1.5e-2,
            DType::F16 => 3e-3,
            _ => 2e-5,
        }
    }
}

/// The order of the operands' dimensions in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    /// `[batch…, sequence, own…]`.
    HeadsFirst,
    /// `[first batch, sequence, other batch…, own…]`.
    SequenceFirst,
    /// `[batch…, sequence, own… in reverse order]`: own dimensions that do not nest.
    OwnReversed,
    /// `[batch…, own…, sequence]`.
    SequenceLast,
}

/// The kind of a score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Score {
    Plain,
    Scaled,
    /// `select(column > row + offset, constant, scaled)`.
    Causal(f64, usize),
    /// In addition, nothing before `row − width`.
    Window(f64, usize),
    /// `select(loaded [first batch, 1, rows, columns], constant, scaled)`.
    Mask(f64),
    /// `scaled + loaded [batch…, rows, columns]`.
    Bias,
    /// `30 · tanh(scaled / 30)`, then causal.
    SoftCap,
    /// `select(loaded [first batch, columns], constant, scaled)`; in some batches everything is masked.
    Padding(f64),
}

/// A case to be built.
#[derive(Clone, Debug)]
pub struct Spec {
    pub dtype: DType,
    pub batch: Vec<usize>,
    pub rows: usize,
    pub columns: usize,
    pub inner: Vec<usize>,
    pub width: Vec<usize>,
    pub layout: Layout,
    pub score: Score,
    pub dropout: bool,
    /// Batch dimensions that the query, the key and the value lack.
    pub lacks: [Vec<usize>; 3],
    /// Which gradients of query, key and value are computed. `None` for no backward pass.
    pub wants: Option<[bool; 3]>,
    /// Factor of the queries.
    pub size: f64,
}

impl Spec {
    /// Two heads of two batches, everything dense, forward and backward.
    pub fn new(dtype: DType, rows: usize, columns: usize, d: usize, score: Score) -> Self {
        Spec {
            dtype,
            batch: vec![2, 2],
            rows,
            columns,
            inner: vec![d],
            width: vec![d],
            layout: Layout::HeadsFirst,
            score,
            dropout: false,
            lacks: Default::default(),
            wants: Some([true; 3]),
            size: 2.0,
        }
    }

    pub fn batch(self, batch: &[usize]) -> Self {
        Spec { batch: batch.to_vec(), ..self }
    }

    pub fn layout(self, layout: Layout) -> Self {
        Spec { layout, ..self }
    }

    pub fn own(self, inner: &[usize], width: &[usize]) -> Self {
        Spec { inner: inner.to_vec(), width: width.to_vec(), ..self }
    }

    fn lacking(self, query: &[usize], key: &[usize], value: &[usize]) -> Self {
        Spec { lacks: [query.to_vec(), key.to_vec(), value.to_vec()], ..self }
    }

    fn wanting(self, wants: Option<[bool; 3]>) -> Self {
        Spec { wants, ..self }
    }
}

/// Strides of dimensions in the given memory order, 0 for those not named; and the number of elements.
fn strides(sizes: &[usize], order: &[usize]) -> (Vec<isize>, usize) {
    let mut strides = vec![0; sizes.len()];
    let mut next = 1;
    for &d in order.iter().rev() {
        strides[d] = next as isize;
        next *= sizes[d];
    }
    (strides, next)
}

struct Making<'a> {
    spec: &'a Spec,
    builder: Builder,
    inputs: Vec<Vec<u8>>,
    rng: Lcg,
    real: DType,
}

impl Making<'_> {
    fn dims(&self) -> Vec<usize> {
        let s = self.spec;
        [&s.batch[..], &[s.rows, s.columns]].concat()
    }

    fn number(&mut self) -> f64 {
        self.rng.below(2001) as f64 / 1000.0 - 1.0
    }

    fn input(&mut self, name: &str, dtype: DType, values: &[f64]) -> View {
        self.inputs.push(encode(dtype, values));
        self.builder.input(name, dtype, &[values.len()])
    }

    fn reals(&mut self, name: &str, dtype: DType, n: usize, size: f64) -> View {
        let values: Vec<f64> = (0..n).map(|_| dtype.round(self.number() * size)).collect();
        self.input(name, dtype, &values)
    }

    /// An operand that has the sequence dimension `sequence`, in the memory order of the case.
    fn operand(
        &mut self,
        sequence: usize,
        lacks: &[usize],
        own: &[usize],
        make: &mut dyn FnMut(&mut Self, usize) -> View,
    ) -> Operand {
        let dims = self.dims();
        let nb = dims.len() - 2;
        let sizes = [&dims[..], own].concat();
        let batch: Vec<usize> = (0..nb).filter(|d| !lacks.contains(d)).collect();
        let own: Vec<usize> = (dims.len()..sizes.len()).collect();
        let order = match self.spec.layout {
            Layout::HeadsFirst => [&batch[..], &[sequence], &own].concat(),
            Layout::SequenceFirst if batch.is_empty() => [&[sequence], &own[..]].concat(),
            Layout::SequenceFirst => [&batch[..1], &[sequence], &batch[1..], &own].concat(),
            Layout::OwnReversed => {
                let reversed: Vec<usize> = own.iter().rev().copied().collect();
                [&batch[..], &[sequence], &reversed].concat()
            }
            Layout::SequenceLast => [&batch[..], &own, &[sequence]].concat(),
        };
        let (strides, count) = strides(&sizes, &order);
        let view = make(self, count);
        Operand { view, dims: strides[..dims.len()].to_vec(), own: strides[dims.len()..].to_vec() }
    }

    fn constant(&self, x: f64) -> Instruction {
        Instruction::Constant(Scalar::float(x), self.real)
    }

    fn index(&self, dim: usize, offset: usize) -> Instruction {
        Instruction::Index { dim: self.spec.batch.len() + dim, offset, dtype: DType::I64 }
    }

    /// The bodies `score` and `gradient`.
    fn bodies(&mut self) -> (Vec<Instruction>, Vec<Instruction>) {
        let spec = self.spec;
        let (real, nb) = (self.real, spec.batch.len());
        let scale = 1.0 / (spec.inner.iter().product::<usize>() as f64).sqrt().max(1.0);
        let map = |f: MapFn, args: &[usize]| support::map(f, args, real);
        let truth = |f: MapFn, args: &[usize]| support::map(f, args, DType::Bool);
        let given = |index: usize| Instruction::Given { index, dtype: real };
        let scaled = vec![given(0), self.constant(scale), map(MapFn::Mul, &[0, 1])];
        // From register 3 on: the condition, the constant, and the selection.
        let masked = |making: &Self, condition: Vec<Instruction>, constant: f64| {
            let at = 3 + condition.len();
            let select = map(MapFn::Select, &[at - 1, at, 2]);
            let body = |constant: f64| {
                [scaled.clone(), condition.clone(), vec![making.constant(constant), select.clone()]].concat()
            };
            (body(constant), body(0.0))
        };
        match spec.score {
            Score::Plain => (vec![given(0)], vec![given(0)]),
            Score::Scaled => (scaled.clone(), scaled),
            Score::Causal(constant, offset) => {
                let condition = vec![self.index(1, 0), self.index(0, offset), truth(MapFn::Gt, &[3, 4])];
                masked(self, condition, constant)
            }
            Score::Window(constant, width) => {
                let condition = vec![
                    self.index(1, 0),
                    self.index(0, 0),
                    truth(MapFn::Gt, &[3, 4]),
                    Instruction::Constant(Scalar::Int(width as i64), DType::I64),
                    support::map(MapFn::Sub, &[4, 6], DType::I64),
                    truth(MapFn::Lt, &[3, 7]),
                    truth(MapFn::Or, &[5, 8]),
                ];
                masked(self, condition, constant)
            }
            Score::Mask(constant) => {
                let (mut strides, n) =
                    strides(&self.dims(), &[&(0..nb.min(1)).collect::<Vec<_>>()[..], &[nb, nb + 1]].concat());
                strides.iter_mut().zip(self.dims()).for_each(|(s, n)| {
                    if n == 1 {
                        *s = 0
                    }
                });
                let mask: Vec<f64> = (0..n).map(|_| f64::from(self.rng.below(3) == 0)).collect();
                let view = self.input("mask", DType::Bool, &mask);
                masked(self, vec![Instruction::Load { view, strides }], constant)
            }
            Score::Padding(constant) => {
                let columns = spec.columns;
                let (strides, n) =
                    strides(&self.dims(), &[&(0..nb.min(1)).collect::<Vec<_>>()[..], &[nb + 1]].concat());
                // Everything in the first batch, in the others everything after some column.
                let mask: Vec<f64> =
                    (0..n).map(|i| f64::from(i % columns.max(1) >= i / columns.max(1) * (columns / 2 + 1))).collect();
                let view = self.input("mask", DType::Bool, &mask);
                masked(self, vec![Instruction::Load { view, strides }], constant)
            }
            Score::Bias => {
                let (strides, n) = strides(&self.dims(), &(0..nb + 2).collect::<Vec<_>>());
                let view = self.reals("bias", DType::F32, n, 2.0);
                let bias = Instruction::Load { view, strides };
                ([scaled.clone(), vec![bias, map(MapFn::Add, &[2, 3])]].concat(), scaled)
            }
            Score::SoftCap => {
                let cap = 30.0f64;
                let causal = [self.index(1, 0), self.index(0, 0)];
                let score = vec![
                    given(0),
                    self.constant(scale / cap),
                    map(MapFn::Mul, &[0, 1]),
                    map(MapFn::Tanh, &[2]),
                    self.constant(cap),
                    map(MapFn::Mul, &[3, 4]),
                    causal[0].clone(),
                    causal[1].clone(),
                    truth(MapFn::Gt, &[6, 7]),
                    self.constant(f64::NEG_INFINITY),
                    map(MapFn::Select, &[8, 9, 5]),
                ];
                let gradient = vec![
                    given(1),
                    self.constant(scale / cap),
                    map(MapFn::Mul, &[0, 1]),
                    map(MapFn::Tanh, &[2]),
                    map(MapFn::Mul, &[3, 3]),
                    self.constant(1.0),
                    map(MapFn::Sub, &[5, 4]),
                    given(0),
                    map(MapFn::Mul, &[6, 7]),
                    self.constant(scale),
                    map(MapFn::Mul, &[8, 9]),
                    causal[0].clone(),
                    causal[1].clone(),
                    truth(MapFn::Gt, &[11, 12]),
                    self.constant(0.0),
                    map(MapFn::Select, &[13, 14, 10]),
                ];
                (score, gradient)
            }
        }
    }

    fn weight(&mut self) -> Vec<Instruction> {
        if !self.spec.dropout {
            return Vec::new();
        }
        let dims = self.dims();
        let view = self.input("seed", DType::I64, &[77.0]);
        let strides = dense_strides(&dims);
        let index = strides.iter().enumerate().map(|(d, &s)| (d, 0, s as usize)).collect();
        let distribution = Distribution::Uniform(Scalar::float(0.0), Scalar::float(1.0));
        let uniform = Instruction::Random { distribution, stream: 5, seed: 0, index, dtype: self.real };
        vec![
            Instruction::Load { view, strides: vec![0; dims.len()] },
            uniform,
            self.constant(0.25),
            support::map(MapFn::Ge, &[1, 2], DType::Bool),
            support::map(MapFn::Cast(self.real), &[3], self.real),
            self.constant(1.0 / 0.75),
            support::map(MapFn::Mul, &[4, 5], self.real),
        ]
    }
}

/// The program of a case: the forward action, and the backward action if a gradient is computed.
pub fn build(spec: &Spec) -> Case {
    let real = if spec.dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let mut m = Making { spec, builder: Builder::new(), inputs: Vec::new(), rng: Lcg(9), real };
    let (dims, nb) = (m.dims(), spec.batch.len());
    let (dtype, [lq, lk, lv]) = (spec.dtype, &spec.lacks);
    let read = |m: &mut Making<'_>, name: &str, sequence: usize, lacks: &[usize], own: &[usize], size: f64| {
        m.operand(sequence, lacks, own, &mut |m, n| m.reals(name, dtype, n, size))
    };
    let query = read(&mut m, "query", nb, lq, &spec.inner, spec.size);
    let key = read(&mut m, "key", nb + 1, lk, &spec.inner, 1.0);
    let value = read(&mut m, "value", nb + 1, lv, &spec.width, 1.0);
    let (score, gradient) = m.bodies();
    let weight = m.weight();
    let written = |m: &mut Making<'_>, name: &str, sequence: usize, lacks: &[usize], own: &[usize]| {
        m.operand(sequence, lacks, own, &mut |m, n| {
            let view = m.builder.buffer(dtype, &[n]);
            m.builder.output(name, &view);
            view
        })
    };
    let out = written(&mut m, "out", nb, &[], &spec.width);
    let keep = spec.wants.is_some();
    let stats = dims[..nb + 1].to_vec();
    let [max, sum, delta] = [0; 3].map(|_| m.builder.buffer(real, &stats));
    let tile = m.builder.buffer(real, &[2, spec.rows.min(16), spec.columns]);
    if keep {
        m.builder.output("max", &max);
        m.builder.output("sum", &sum);
    }
    let (inner, width) = (spec.inner.clone(), spec.width.clone());
    let forward =
        Attention { dims, inner, width, query, key, value, out, max, sum, keep, score, weight, tile, backward: None };
    m.builder.step(Action::Attention(Box::new(forward.clone())));
    if let Some(wants) = spec.wants {
        let grad_out = read(&mut m, "grad_out", nb, &[], &spec.width, 1.0);
        let grad = |m: &mut Making<'_>, which: usize, name: &str, sequence: usize, own: &[usize]| {
            wants[which].then(|| written(m, name, sequence, &spec.lacks[which], own))
        };
        let grad_query = grad(&mut m, 0, "grad_query", nb, &spec.inner);
        let grad_key = grad(&mut m, 1, "grad_key", nb + 1, &spec.inner);
        let grad_value = grad(&mut m, 2, "grad_value", nb + 1, &spec.width);
        let sums = m.builder.buffer(real, &[summed(spec, &forward, wants)]);
        // For the gradient of the values alone, the gradient of the product is not needed.
        let gradient = if wants[0] || wants[1] { gradient } else { Vec::new() };
        let backward = Backward { grad_out, gradient, grad_query, grad_key, grad_value, delta, sums };
        m.builder.step(Action::Attention(Box::new(Attention { backward: Some(backward), ..forward })));
    }
    Case { name: format!("{spec:?}"), program: m.builder.program, inputs: m.inputs, dtype }
}

/// Elements of computed gradients that are narrower than their sums, for one index of the common batch dimensions.
fn summed(spec: &Spec, a: &Attention, wants: [bool; 3]) -> usize {
    if matches!(spec.dtype, DType::F32 | DType::F64) {
        return 0;
    }
    let own: [usize; 3] = [&spec.inner, &spec.inner, &spec.width].map(|o| o.iter().product());
    let lines = [spec.rows, spec.columns, spec.columns];
    let of = |which: usize| {
        let others = (0..a.batch()).filter(|&d| !a.is_common(d) && !spec.lacks[which].contains(&d));
        own[which] * lines[which] * others.map(|d| a.dims[d]).product::<usize>()
    };
    (0..3).filter(|&which| wants[which]).map(of).sum()
}

/// Every kind once.
pub fn specs() -> Vec<Spec> {
    use DType::{BF16, F16, F32, F64};
    use Layout::{OwnReversed, SequenceFirst, SequenceLast};
    let new = Spec::new;
    let inf = f64::NEG_INFINITY;
    vec![
        // Element types and head dimensions.
        new(F32, 65, 65, 64, Score::Scaled),
        new(BF16, 65, 65, 64, Score::Scaled),
        new(F16, 65, 65, 64, Score::Scaled),
        new(F64, 33, 65, 64, Score::Scaled),
        new(F32, 20, 40, 8, Score::Plain).batch(&[3]),
        new(BF16, 20, 40, 8, Score::Plain).batch(&[3]),
        new(BF16, 40, 20, 16, Score::Plain).batch(&[3]).layout(SequenceFirst),
        new(BF16, 70, 50, 40, Score::Scaled).batch(&[1, 2]).layout(SequenceFirst),
        new(F32, 30, 50, 80, Score::Scaled).batch(&[1, 2]).layout(SequenceFirst),
        new(BF16, 30, 50, 80, Score::Scaled).batch(&[2]),
        new(BF16, 70, 90, 128, Score::Causal(-1e30, 20)).batch(&[2]),
        new(F32, 40, 70, 128, Score::Causal(-1e30, 30)).batch(&[2]),
        new(F64, 20, 20, 128, Score::Causal(inf, 0)).batch(&[1]),
        new(BF16, 17, 33, 256, Score::Scaled).batch(&[]),
        new(F32, 17, 33, 256, Score::Scaled).batch(&[]),
        new(F32, 9, 300, 600, Score::Causal(-1e30, 295)).batch(&[1]),
        new(F64, 5, 7, 1100, Score::Scaled).batch(&[1]),
        // Own dimensions that nest, and that do not; a different width.
        new(BF16, 33, 40, 64, Score::Scaled).own(&[2, 32], &[64]).batch(&[2]),
        new(BF16, 33, 40, 64, Score::Scaled).own(&[2, 32], &[4, 8]).batch(&[2]).layout(OwnReversed),
        new(F32, 33, 40, 64, Score::Scaled).own(&[2, 16], &[3, 5]).batch(&[2]).layout(OwnReversed),
        new(BF16, 33, 40, 24, Score::Scaled).own(&[24], &[72]).batch(&[2]).layout(SequenceLast),
        new(F32, 12, 9, 5, Score::Scaled).own(&[5], &[3]).batch(&[2]),
        // Extents.
        new(BF16, 1, 130, 64, Score::Scaled),
        new(F32, 130, 1, 16, Score::Scaled),
        new(F32, 1, 7, 16, Score::Causal(-1e30, 6)),
        new(F32, 0, 7, 16, Score::Scaled),
        new(BF16, 7, 0, 16, Score::Scaled),
        new(F32, 7, 7, 16, Score::Scaled).batch(&[2, 0]),
        // Batch dimensions that some operands lack.
        new(BF16, 40, 40, 32, Score::Causal(-1e30, 0)).batch(&[2, 2, 3]).lacking(&[], &[2], &[2]).layout(SequenceFirst),
        new(F32, 20, 24, 16, Score::Causal(-1e30, 0)).batch(&[2, 2, 3]).lacking(&[], &[2], &[2]),
        new(F32, 20, 24, 16, Score::Scaled).batch(&[3, 2]).lacking(&[0], &[1], &[]),
        new(BF16, 20, 24, 16, Score::Scaled).batch(&[3, 2]).lacking(&[0], &[], &[0, 1]),
        // Masks: what is skipped, and what must not be.
        new(F32, 130, 130, 16, Score::Causal(-1e30, 0)).batch(&[1]),
        new(BF16, 130, 130, 64, Score::Causal(inf, 0)).batch(&[2]).layout(SequenceFirst),
        new(BF16, 200, 200, 16, Score::Causal(-1.0, 0)).batch(&[1]),
        new(F32, 130, 130, 8, Score::Causal(-1.0, 0)).batch(&[1]),
        Spec { size: 400.0, ..new(F32, 130, 130, 8, Score::Causal(-90.0, 0)).batch(&[1]) },
        new(BF16, 300, 300, 16, Score::Window(inf, 40)).batch(&[1]),
        new(F32, 150, 150, 8, Score::Window(-1e30, 20)).batch(&[1]),
        new(F32, 200, 60, 8, Score::Window(-1e30, 20)).batch(&[1]),
        new(F32, 40, 40, 8, Score::Window(inf, 20)).batch(&[1]),
        new(F32, 100, 40, 8, Score::Window(inf, 20)).batch(&[1]),
        new(BF16, 50, 70, 32, Score::Mask(-1e30)),
        new(F32, 50, 70, 16, Score::Mask(inf)),
        new(BF16, 50, 70, 32, Score::Bias),
        new(F32, 30, 70, 8, Score::Bias),
        new(BF16, 70, 70, 32, Score::SoftCap).batch(&[2]),
        new(F32, 70, 70, 16, Score::SoftCap).batch(&[2]),
        new(F64, 40, 40, 16, Score::SoftCap).batch(&[2]),
        new(BF16, 40, 70, 32, Score::Padding(-1e30)).batch(&[3, 1]),
        new(F32, 20, 70, 8, Score::Padding(-1e30)).batch(&[3, 1]),
        new(F32, 20, 70, 8, Score::Padding(inf)).batch(&[2]),
        Spec { dropout: true, ..new(BF16, 70, 40, 32, Score::Causal(-1e30, 0)) },
        Spec { dropout: true, ..new(F32, 40, 70, 8, Score::Causal(-1e30, 0)) },
        // Whole blocks.
        new(BF16, 128, 64, 32, Score::Causal(-1e30, 0)).batch(&[1]),
        new(F32, 64, 64, 16, Score::Scaled).batch(&[1]),
        // Which gradients are computed.
        new(BF16, 33, 33, 16, Score::Scaled).batch(&[1]).wanting(None),
        new(F32, 33, 33, 16, Score::Scaled).batch(&[1]).wanting(None),
        new(BF16, 33, 33, 16, Score::Scaled).batch(&[1]).wanting(Some([false, true, true])),
        new(F32, 33, 33, 16, Score::Scaled).batch(&[1]).wanting(Some([true, false, true])),
        new(BF16, 33, 33, 16, Score::Scaled).batch(&[1]).wanting(Some([true, true, false])),
        new(F32, 33, 33, 16, Score::Scaled).batch(&[1]).wanting(Some([false, false, true])),
        new(F32, 600, 9, 600, Score::Scaled).batch(&[1]).wanting(Some([false, true, true])),
    ]
}

/// All cases.
pub fn cases() -> Vec<Case> {
    specs().iter().map(build).collect()
}
