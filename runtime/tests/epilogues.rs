//! Products with epilogues on random strided shapes, compared with a scalar interpreter in f64. If the data are
//! integers and the body is exact, so are the results.
// `!(x <= tolerance)` is intentional: NaN must fail.
#![allow(clippy::neg_cmp_op_on_partial_ord)]

pub(crate) mod support;

use support::*;
use tpc_ir::op::Distribution;
use tpc_ir::program::*;
use tpc_ir::{DType, MapFn, ReduceOp, Scalar, random};
use tpc_runtime::{LaunchOptions, Session};

// ---- the meaning ----

/// The elements of every buffer.
type Memory = Vec<Vec<f64>>;

/// All offsets of some dimensions, row-major.
fn offsets(sizes: &[usize], strides: &[isize]) -> Vec<isize> {
    sizes
        .iter()
        .zip(strides)
        .fold(vec![0], |all, (&n, s)| all.iter().flat_map(|o| (0..n as isize).map(move |i| o + i * s)).collect())
}

fn sizes(dims: &[ContractDim]) -> Vec<usize> {
    dims.iter().map(|d| d.size).collect()
}

/// The scaled product, in the order of the epilogue's dimensions.
fn product(c: &Contract, memory: &Memory) -> Vec<f64> {
    let of = |dims: &[ContractDim], stride: fn(&ContractDim) -> isize| {
        offsets(&sizes(dims), &dims.iter().map(stride).collect::<Vec<_>>())
    };
    let (bl, br) = (of(&c.batch, |d| d.left), of(&c.batch, |d| d.right));
    let (ml, nr) = (of(&c.m, |d| d.left), of(&c.n, |d| d.right));
    let (kl, kr) = (of(&c.k, |d| d.left), of(&c.k, |d| d.right));
    let (left, right) =
        (&memory[c.left.buffer.0 as usize][c.left.offset..], &memory[c.right.buffer.0 as usize][c.right.offset..]);
    let mut all = Vec::new();
    for (bl, br) in bl.iter().zip(&br) {
        for ml in &ml {
            let row: Vec<f64> = kl.iter().map(|k| left[(bl + ml + k) as usize]).collect();
            for nr in &nr {
                let terms = row.iter().zip(&kr).map(|(x, k)| x * right[(br + nr + k) as usize]);
                all.push(c.scale * terms.sum::<f64>());
            }
        }
    }
    all
}

/// Executes a contraction.
fn execute(c: &Contract, memory: &mut Memory) {
    let extents: Vec<usize> = c.dims().map(|d| d.size).collect();
    let products = product(c, memory);
    let mut index = vec![0usize; extents.len()];
    // The precision of a float product is up to the device.
    let narrow = |d: DType, x: f64| if matches!(d, DType::F32 | DType::F64) { x } else { d.round(x) };
    let at = |view: &View, strides: &[isize], index: &[usize]| {
        assert_eq!(strides.len(), index.len());
        (view.offset as isize + index.iter().zip(strides).map(|(&i, s)| i as isize * s).sum::<isize>()) as usize
    };
    for given in products {
        let mut r: Vec<f64> = Vec::new();
        for ins in &c.epilogue {
            r.push(match ins {
                Instruction::Load { view, strides } => memory[view.buffer.0 as usize][at(view, strides, &index)],
                Instruction::Constant(x, dtype) => narrow(*dtype, x.as_f64()),
                Instruction::Given { dtype, .. } if dtype.is_float() => given,
                Instruction::Given { dtype, .. } => dtype.round(given),
                Instruction::Index { dim, offset, dtype } => narrow(*dtype, (index[*dim] + offset) as f64),
                Instruction::Random { distribution, stream, seed, index: by, dtype } => {
                    let element: usize = by.iter().map(|&(d, offset, stride)| (index[d] + offset) * stride).sum();
                    let words = random::philox(r[*seed] as i64 as u64, *stream, element as u64);
                    narrow(*dtype, random::element(*distribution, words))
                }
                Instruction::Map { f, args, dtype } => {
                    narrow(*dtype, f.eval(&args.iter().map(|&a| r[a]).collect::<Vec<_>>()))
                }
                Instruction::Store { view, strides, arg, .. } => {
                    memory[view.buffer.0 as usize][at(view, strides, &index)] = view.dtype.round(r[*arg]);
                    f64::NAN
                }
                Instruction::ReduceRow { .. } => panic!("not in an epilogue"),
            });
        }
        for d in (0..index.len()).rev() {
            index[d] += 1;
            if index[d] < extents[d] {
                break;
            }
            index[d] = 0;
        }
    }
}

// ---- cases ----

/// The kind of an epilogue.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Plain,
    Bias,
    /// Along the rows of the result.
    RowBias,
    Residual,
    /// `out += product`.
    Update,
    UpdateBias,
    UpdateRelu,
    /// `out = min(out + bias, 3) + product`: the result and the product appear in different sums.
    Apart,
    /// `out = max(out + product, out)`.
    Twice,
    /// `out = out · product`.
    Scaled,
    /// `out = outᵀ + product`, one element after the other.
    Transposed,
    Relu,
    /// The product is read twice, and also stored.
    Square,
    Positions,
    Mask,
    /// Writes the memory of the left operand.
    OverLeft,
    /// Writes one element per column, that of the last row.
    LastRow,
    Compare,
    GeluTanh,
    GeluTanhKept,
    GeluErf,
    Silu,
}

impl Kind {
    const EXACT: [Kind; 18] = [
        Kind::Plain,
        Kind::Bias,
        Kind::RowBias,
        Kind::Residual,
        Kind::Update,
        Kind::UpdateBias,
        Kind::UpdateRelu,
        Kind::Apart,
        Kind::Twice,
        Kind::Scaled,
        Kind::Transposed,
        Kind::Relu,
        Kind::Square,
        Kind::Positions,
        Kind::Mask,
        Kind::OverLeft,
        Kind::LastRow,
        Kind::Compare,
    ];
    const SMOOTH: [Kind; 4] = [Kind::GeluTanh, Kind::GeluTanhKept, Kind::GeluErf, Kind::Silu];
}

/// Dense strides of the listed dimensions in a random order.
fn layout(rng: &mut Lcg, sizes: &[usize]) -> Vec<isize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    if rng.below(3) > 0 {
        for i in (1..order.len()).rev() {
            order.swap(i, rng.below(i + 1));
        }
    }
    let mut strides = vec![0; sizes.len()];
    let mut next = 1;
    for &d in order.iter().rev() {
        strides[d] = next as isize;
        next *= sizes[d].max(1);
    }
    strides
}

/// A program under construction.
struct Making<'a> {
    rng: &'a mut Lcg,
    builder: Builder,
    memory: Memory,
    /// Inputs in the order of their buffers.
    names: Vec<String>,
    /// Sizes of the result's dimensions, and how many of them are batch and rows.
    extents: Vec<usize>,
    batch: usize,
    rows: usize,
    body: Vec<Instruction>,
    /// The compute type of the body.
    real: DType,
}

impl Making<'_> {
    /// A buffer with this many elements, after some unused ones.
    fn buffer(&mut self, dtype: DType, elements: usize) -> View {
        let unused = [0, 0, 3][self.rng.below(3)];
        let name = format!("b{}", self.names.len());
        let whole = self.builder.input(&name, dtype, &[unused + elements]);
        let values = self.rng.integers(unused + elements);
        self.memory.push(values.iter().map(|&x| if dtype.is_float() { x } else { dtype.round(x.abs()) }).collect());
        self.names.push(name);
        View { offset: unused, ..View::dense(whole.buffer, dtype, vec![elements]) }
    }

    /// A view with some of the result's dimensions.
    fn view(&mut self, dtype: DType, has: impl Fn(usize) -> bool) -> (View, Vec<isize>) {
        let kept: Vec<usize> = (0..self.extents.len()).filter(|&d| has(d)).collect();
        let own: Vec<usize> = kept.iter().map(|&d| self.extents[d]).collect();
        let strides = layout(self.rng, &own);
        let mut all = vec![0; self.extents.len()];
        kept.iter().zip(strides).for_each(|(&d, s)| all[d] = s);
        (self.buffer(dtype, own.iter().product()), all)
    }

    fn push(&mut self, ins: Instruction) -> usize {
        self.body.push(ins);
        self.body.len() - 1
    }

    fn map(&mut self, f: MapFn, args: &[usize]) -> usize {
        let dtype = self.real;
        self.push(map(f, args, dtype))
    }

    fn constant(&mut self, x: f64) -> usize {
        let dtype = self.real;
        self.push(Instruction::Constant(Scalar::float(x), dtype))
    }

    fn load(&mut self, (view, strides): (View, Vec<isize>)) -> usize {
        self.push(Instruction::Load { view, strides })
    }

    fn store(&mut self, (view, strides): (View, Vec<isize>), arg: usize) {
        self.push(Instruction::Store { view, strides, arg, accumulate: None });
    }

    /// A new operand with some dimensions, loaded.
    fn operand(&mut self, has: impl Fn(usize) -> bool) -> usize {
        let dtype = self.real;
        let view = self.view(dtype, has);
        self.load(view)
    }

    fn bias(&mut self) -> usize {
        let columns = self.batch + self.rows;
        self.operand(|d| d >= columns)
    }

    fn sigmoid_times(&mut self, x: usize) -> usize {
        let s = self.map(MapFn::Sigmoid, &[x]);
        self.map(MapFn::Mul, &[x, s])
    }

    fn gelu_tanh(&mut self, x: usize) -> usize {
        let square = self.map(MapFn::Mul, &[x, x]);
        let cube = self.map(MapFn::Mul, &[square, x]);
        let a = self.constant(0.044715);
        let scaled = self.map(MapFn::Mul, &[cube, a]);
        let sum = self.map(MapFn::Add, &[x, scaled]);
        let b = self.constant((2.0 / std::f64::consts::PI).sqrt());
        let inner = self.map(MapFn::Mul, &[sum, b]);
        let tanh = self.map(MapFn::Tanh, &[inner]);
        self.gate(x, tanh)
    }

    /// `x/2 · (1 + t)`.
    fn gate(&mut self, x: usize, t: usize) -> usize {
        let (half, one) = (self.constant(0.5), self.constant(1.0));
        let left = self.map(MapFn::Mul, &[x, half]);
        let right = self.map(MapFn::Add, &[t, one]);
        self.map(MapFn::Mul, &[left, right])
    }

    /// The body of a kind; returns the register of the result.
    fn body(&mut self, kind: Kind, left: &View, out: &(View, Vec<isize>)) -> usize {
        let real = self.real;
        let given = |m: &mut Self| m.push(Instruction::Given { index: 0, dtype: real });
        match kind {
            Kind::Plain => given(self),
            Kind::Bias => {
                let (x, b) = (given(self), self.bias());
                self.map(MapFn::Add, &[x, b])
            }
            Kind::RowBias => {
                let (batch, rows) = (self.batch, self.rows);
                let (b, x) = (self.operand(|d| (batch..batch + rows).contains(&d)), given(self));
                self.map(MapFn::Add, &[b, x])
            }
            Kind::Residual => {
                let (x, y) = (given(self), self.operand(|_| true));
                self.map(MapFn::Add, &[y, x])
            }
            Kind::Update => {
                let (y, x) = (self.load(out.clone()), given(self));
                self.map(MapFn::Add, &[y, x])
            }
            Kind::UpdateBias => {
                let (x, y, b) = (given(self), self.load(out.clone()), self.bias());
                let z = self.operand(|_| true);
                let sum = self.map(MapFn::Add, &[x, b]);
                let more = self.map(MapFn::Add, &[z, sum]);
                self.map(MapFn::Add, &[more, y])
            }
            Kind::UpdateRelu => {
                let (x, y) = (given(self), self.load(out.clone()));
                let sum = self.map(MapFn::Add, &[x, y]);
                let kept = self.view(real, |_| true);
                self.store(kept, sum);
                let zero = self.constant(0.0);
                self.map(MapFn::Max, &[sum, zero])
            }
            Kind::Apart => {
                let (y, b, most) = (self.load(out.clone()), self.bias(), self.constant(3.0));
                let sum = self.map(MapFn::Add, &[y, b]);
                let sum = self.map(MapFn::Min, &[sum, most]);
                let x = given(self);
                self.map(MapFn::Add, &[sum, x])
            }
            Kind::Twice => {
                let (y, x) = (self.load(out.clone()), given(self));
                let sum = self.map(MapFn::Add, &[y, x]);
                self.map(MapFn::Max, &[sum, y])
            }
            Kind::Scaled => {
                let (x, y) = (given(self), self.load(out.clone()));
                let (most, least) = (self.constant(3.0), self.constant(-3.0));
                let x = self.map(MapFn::Min, &[x, most]);
                let x = self.map(MapFn::Max, &[x, least]);
                let y = self.map(MapFn::Min, &[y, most]);
                self.map(MapFn::Mul, &[y, x])
            }
            Kind::Transposed => {
                // With the same extents, because it must fit into the result.
                let mut strides = out.1.clone();
                let pairs: Vec<(usize, usize)> = (0..strides.len())
                    .flat_map(|a| (0..a).map(move |b| (b, a)))
                    .filter(|&(a, b)| self.extents[a] == self.extents[b])
                    .collect();
                if let Some(&(a, b)) = pairs.first() {
                    strides.swap(a, b);
                }
                let (y, x) = (self.load((out.0.clone(), strides)), given(self));
                self.map(MapFn::Add, &[y, x])
            }
            Kind::Relu => {
                let (x, zero) = (given(self), self.constant(0.0));
                self.map(MapFn::Max, &[x, zero])
            }
            Kind::Square => {
                let (x, y) = (given(self), given(self));
                let (most, least) = (self.constant(9.0), self.constant(-9.0));
                let kept = self.view(real, |_| true);
                self.store(kept, x);
                let x = self.map(MapFn::Min, &[x, most]);
                let y = self.map(MapFn::Max, &[y, least]);
                let y = self.map(MapFn::Min, &[y, most]);
                let x = self.map(MapFn::Max, &[x, least]);
                self.map(MapFn::Mul, &[x, y])
            }
            Kind::Positions => {
                let mut x = given(self);
                for dim in 0..self.extents.len() {
                    let i = self.push(Instruction::Index { dim, offset: 5 + dim, dtype: DType::I64 });
                    let i = self.map(MapFn::Cast(real), &[i]);
                    x = self.map(MapFn::Add, &[x, i]);
                }
                x
            }
            Kind::Mask => {
                let x = given(self);
                let view = self.view(DType::I64, |_| false);
                let seed = self.load(view);
                let mut index = Vec::new();
                let mut stride = 1;
                for d in (0..self.extents.len()).rev() {
                    index.push((d, 2 + d, stride));
                    stride *= self.extents[d] + 7;
                }
                let distribution = Distribution::Uniform(Scalar::float(0.0), Scalar::float(1.0));
                let u = self.push(Instruction::Random { distribution, stream: 9, seed, index, dtype: DType::F32 });
                let (half, zero) = (self.constant(0.5), self.constant(0.0));
                let kept = self.push(map(MapFn::Lt, &[u, half], DType::Bool));
                self.map(MapFn::Select, &[kept, x, zero])
            }
            Kind::OverLeft => {
                // The operand is only as large as needed if the result is not larger.
                let x = given(self);
                let (most, least) = (self.constant(3.0), self.constant(-3.0));
                let y = self.map(MapFn::Min, &[x, most]);
                let y = self.map(MapFn::Max, &[y, least]);
                let fits = self.extents.iter().product::<usize>() <= left.shape[0];
                if fits {
                    let strides = dense_strides(&self.extents);
                    self.store((left.clone(), strides), y);
                }
                x
            }
            Kind::LastRow => {
                let (x, batch, rows) = (given(self), self.batch, self.rows);
                // The row of the loop must not be overwritten.
                if self.extents[batch + rows..].last().is_some_and(|&n| n > 1) {
                    let target = self.view(real, |d| !(batch..batch + rows).contains(&d));
                    self.store(target, x);
                }
                x
            }
            Kind::Compare => {
                let (x, y) = (given(self), self.operand(|_| true));
                let less = self.push(map(MapFn::Lt, &[x, y], DType::Bool));
                let kept = self.view(DType::Bool, |_| true);
                self.store(kept, less);
                self.map(MapFn::Cast(real), &[less])
            }
            Kind::GeluTanh | Kind::GeluTanhKept => {
                let (x, b) = (given(self), self.bias());
                let sum = self.map(MapFn::Add, &[x, b]);
                if kind == Kind::GeluTanhKept {
                    let kept = self.view(real, |_| true);
                    self.store(kept, sum);
                }
                self.gelu_tanh(sum)
            }
            Kind::GeluErf => {
                let (x, b) = (given(self), self.bias());
                let sum = self.map(MapFn::Add, &[x, b]);
                let c = self.constant(std::f64::consts::FRAC_1_SQRT_2);
                let inner = self.map(MapFn::Mul, &[sum, c]);
                let erf = self.map(MapFn::Erf, &[inner]);
                self.gate(sum, erf)
            }
            Kind::Silu => {
                let y = self.operand(|_| true);
                let s = self.sigmoid_times(y);
                let x = given(self);
                self.map(MapFn::Mul, &[s, x])
            }
        }
    }
}

/// Element types of the operands and of the result, and the compute type of the body.
#[derive(Clone, Copy, Debug)]
struct Types {
    left: DType,
    right: DType,
    out: DType,
    real: DType,
}

fn all(dtype: DType) -> Types {
    Types { left: dtype, right: dtype, out: dtype, real: dtype }
}

/// Two steps of a program of one product with an epilogue.
fn run(rng: &mut Lcg, [b, m, n, k]: [Vec<usize>; 4], types: Types, kind: Kind, scale: f64) {
    let extents = [&b[..], &m, &n].concat();
    let left_strides = layout(rng, &[&b[..], &m, &k].concat());
    let right_strides = layout(rng, &[&b[..], &k, &n].concat());
    let total = |d: &[&[usize]]| d.concat().iter().product::<usize>();
    let mut making = Making {
        rng,
        builder: Builder::new(),
        memory: Vec::new(),
        names: Vec::new(),
        batch: b.len(),
        rows: m.len(),
        extents,
        body: Vec::new(),
        real: types.real,
    };
    let left = making.buffer(types.left, total(&[&b, &m, &k]));
    let right = making.buffer(types.right, total(&[&b, &k, &n]));
    let out = making.view(types.out, |_| true);
    let result = making.body(kind, &left, &out);
    making.store(out.clone(), result);
    let group = |sizes: &[usize], left: &[isize], right: &[isize], out: &[isize]| -> Vec<ContractDim> {
        let of = |s: &[isize], i: usize| s.get(i).copied().unwrap_or(0);
        let dims = sizes.iter().enumerate();
        dims.map(|(i, &size)| ContractDim { size, left: of(left, i), right: of(right, i), out: of(out, i) }).collect()
    };
    let (nb, nm, nk) = (b.len(), m.len(), k.len());
    let c = Contract {
        batch: group(&b, &left_strides[..nb], &right_strides[..nb], &out.1[..nb]),
        m: group(&m, &left_strides[nb..nb + nm], &[], &out.1[nb..nb + nm]),
        n: group(&n, &[], &right_strides[nb + nk..], &out.1[nb + nm..]),
        k: group(&k, &left_strides[nb + nm..], &right_strides[nb..nb + nk], &[]),
        left,
        right,
        out: out.0,
        scale,
        epilogue: making.body,
    };
    let Making { mut builder, mut memory, names, .. } = making;
    builder.step(Action::Contract(c.clone()));
    let text = format!("{kind:?} {types:?}\n{}", builder.program.to_text());
    let inputs: Vec<(String, DType)> =
        builder.program.inputs.iter().map(|i| (i.name.clone(), i.binding.view.dtype)).collect();
    let mut session = builder.launch();
    for (name, values) in names.iter().zip(&memory) {
        session.write_f64(name, values).unwrap();
    }
    for step in 0..2 {
        execute(&c, &mut memory);
        session.step().unwrap();
        for ((name, dtype), want) in inputs.iter().zip(&memory) {
            let got = session.read_input_f64(name).unwrap();
            assert_eq!(got.len(), want.len());
            // Relative to the largest number that a sum or an approximation has rounded.
            let largest = want.iter().fold(1.0f64, |m, x| m.max(x.abs()));
            let allowed = match dtype {
                _ if Kind::EXACT.contains(&kind) => 0.0,
                DType::F64 => 1e-13 * largest,
                DType::BF16 => largest / 128.0,
                DType::F16 => largest / 1024.0,
                _ => 1e-6 * largest,
            };
            let near = |i: usize| got[i] == want[i] || (got[i] - want[i]).abs() <= allowed;
            if let Some(i) = (0..want.len()).find(|&i| !near(i)) {
                panic!("{text}step {step}, {name}: element {i} is {} not {}", got[i], want[i]);
            }
        }
    }
}

#[test]
pub(crate) fn random_shapes_and_strides() {
    let mut rng = Lcg(40);
    for round in 0..600 {
        let kind = Kind::EXACT[round % Kind::EXACT.len()];
        let small = [0, 1, 1, 2, 3, 5, 8, 17, 33];
        let wide = [1, 1, 2, 3, 32, 40, 67];
        let mut group = |most: usize, sizes: &[usize]| -> Vec<usize> {
            (0..rng.below(most + 1)).map(|_| sizes[rng.below(sizes.len())]).collect()
        };
        let (rows, columns) = if round % 3 == 0 { (&small[..], &small[..]) } else { (&wide[..], &wide[..]) };
        let dims = [group(2, &small[1..5]), group(2, rows), group(2, columns), group(2, &small)];
        let dtype = [DType::F32, DType::F64][rng.below(2)];
        run(&mut rng, dims, all(dtype), kind, 0.5);
    }
}

#[test]
pub(crate) fn smooth_functions() {
    let mut rng = Lcg(41);
    for round in 0..80 {
        let kind = Kind::SMOOTH[round % Kind::SMOOTH.len()];
        let dims = [vec![1 + rng.below(2)], vec![1 + rng.below(140)], vec![1 + rng.below(90)], vec![rng.below(40)]];
        let dtype = [DType::F32, DType::F64][rng.below(2)];
        run(&mut rng, dims, all(dtype), kind, 1.0 / 16.0);
        if round % 4 == 0 {
            run(&mut rng, [vec![], vec![125], vec![70], vec![530]], all(DType::F32), kind, 1.0 / 64.0);
            let half = Types { real: DType::F32, ..all([DType::BF16, DType::F16][rng.below(2)]) };
            run(&mut rng, [vec![], vec![125], vec![70], vec![530]], half, kind, 1.0 / 64.0);
        }
    }
}

/// More than one block of rows, columns and summed elements; one row; one column; almost nothing.
#[test]
pub(crate) fn large_and_skinny_shapes() {
    let mut rng = Lcg(42);
    for (m, n, k) in [(130, 1100, 530), (1, 1300, 600), (300, 1, 600), (1, 1, 700), (7, 33, 513), (257, 67, 64)] {
        for kind in Kind::EXACT {
            let dtype = if k % 2 == 0 { DType::F32 } else { DType::F64 };
            run(&mut rng, [vec![], vec![m], vec![n], vec![k]], all(dtype), kind, 1.0);
        }
    }
    for kind in Kind::EXACT {
        // Heads: rows and sums over two dimensions each, interleaved in memory.
        run(&mut rng, [vec![2, 3], vec![33], vec![35], vec![16]], all(DType::F32), kind, 0.25);
        run(&mut rng, [vec![], vec![2, 67], vec![3, 37], vec![3, 100]], all(DType::F32), kind, 1.0);
        run(&mut rng, [vec![2], vec![1031], vec![3, 40], vec![7]], all(DType::F32), kind, 1.0);
        // No summed elements: the product is 0.
        run(&mut rng, [vec![2], vec![125], vec![1030], vec![0]], all(DType::F32), kind, 1.0);
        run(&mut rng, [vec![3], vec![1], vec![50], vec![3, 0]], all(DType::F64), kind, 1.0);
        for empty in [[0, 4, 5], [4, 0, 5], [4, 50, 0]] {
            let [b, m, n] = empty.map(|n| vec![n]);
            run(&mut rng, [b, m, n, vec![6]], all(DType::F32), kind, 1.0);
        }
    }
}

/// Results in a narrow type, bodies in a wide one, and products of integers.
#[test]
pub(crate) fn every_element_type() {
    let mut rng = Lcg(43);
    use DType::{BF16, Bool, F16, F32, F64, I32, I64, U8};
    for kind in Kind::EXACT {
        for k in [4, 20, 530] {
            for half in [BF16, F16] {
                let narrow = Types { left: half, right: half, out: half, real: F32 };
                run(&mut rng, [vec![2], vec![9], vec![45], vec![k]], narrow, kind, 1.0);
                run(&mut rng, [vec![], vec![130], vec![40], vec![k]], Types { out: F32, ..narrow }, kind, 1.0);
                run(&mut rng, [vec![2], vec![9], vec![45], vec![k]], Types { left: F32, ..narrow }, kind, 1.0);
            }
            let wide = Types { left: F32, right: F64, out: F32, real: F64 };
            run(&mut rng, [vec![], vec![9], vec![45], vec![k]], wide, kind, 1.0);
            run(&mut rng, [vec![], vec![9], vec![45], vec![k]], Types { out: I64, ..all(F32) }, kind, 1.0);
        }
        for k in [4, 530] {
            for dtype in [I64, I32] {
                run(&mut rng, [vec![2], vec![9], vec![45], vec![k]], all(dtype), kind, 1.0);
            }
        }
        // Counts of bytes that do not overflow.
        let grows = [Kind::Update, Kind::UpdateBias, Kind::UpdateRelu, Kind::Apart, Kind::Twice, Kind::Transposed];
        if kind != Kind::Square && !grows.contains(&kind) {
            run(&mut rng, [vec![2], vec![3], vec![40], vec![4]], Types { out: I32, ..all(U8) }, kind, 1.0);
        }
    }
    for kind in [Kind::Plain, Kind::Bias, Kind::Residual, Kind::Relu, Kind::Compare] {
        run(&mut rng, [vec![2], vec![9], vec![45], vec![3]], Types { out: I32, ..all(Bool) }, kind, 1.0);
    }
}

// ---- errors ----

/// The program of a small product with this epilogue, whose buffers are left, right, out and one of 5 elements.
fn small(epilogue: impl Fn(&View, &View) -> Vec<Instruction>) -> RankProgram {
    let mut b = Builder::new();
    let f = DType::F32;
    let (left, right) = (b.buffer(f, &[4, 3]), b.buffer(f, &[3, 5]));
    let (out, bias) = (b.buffer(f, &[4, 5]), b.buffer(f, &[5]));
    let dim = |size, left, right, out| ContractDim { size, left, right, out };
    b.step(Action::Contract(Contract {
        epilogue: epilogue(&out, &bias),
        left,
        right,
        out,
        batch: vec![],
        m: vec![dim(4, 3, 0, 5)],
        n: vec![dim(5, 0, 1, 1)],
        k: vec![dim(3, 1, 5, 0)],
        scale: 1.0,
    }));
    b.program
}

#[test]
fn epilogues_that_are_none_are_errors() {
    let f = DType::F32;
    let given = |index| Instruction::Given { index, dtype: f };
    let load = |view: &View, strides: [isize; 2]| Instruction::Load { view: view.clone(), strides: strides.to_vec() };
    let fails = |program: RankProgram| match Session::launch(vec![program], LaunchOptions::default()) {
        Ok(_) => "nothing".to_string(),
        Err(e) => e.to_string(),
    };
    let says = |what: &str, program: RankProgram| {
        let error = fails(program);
        assert!(error.contains(what) && error.contains("step 0"), "{error}");
    };
    assert_eq!(fails(small(|out, _| vec![given(0), store(out, 0)])), "nothing");
    says(
        "instruction 1 of an epilogue reduces",
        small(|out, _| vec![given(0), Instruction::ReduceRow { op: ReduceOp::Sum, arg: 0, dtype: f }, store(out, 0)]),
    );
    says(
        "instruction 1 of an epilogue accumulates",
        small(|out, _| {
            let (view, strides) = (out.clone(), vec![5, 1]);
            vec![given(0), Instruction::Store { view, strides, arg: 0, accumulate: Some(ReduceOp::Sum) }, store(out, 0)]
        }),
    );
    says(
        "instruction 0 of an epilogue is given a value that products do not have",
        small(|out, _| vec![given(1), store(out, 0)]),
    );
    let not_filled = "the last store of an epilogue does not write the result";
    says(not_filled, small(|_, _| vec![given(0)]));
    says(
        not_filled,
        small(|_, bias| {
            let (view, strides) = (bias.clone(), vec![0, 1]);
            vec![given(0), Instruction::Store { view, strides, arg: 0, accumulate: None }]
        }),
    );
    says(
        not_filled,
        small(|out, _| {
            let (view, strides) = (out.clone(), vec![1, 4]);
            vec![given(0), Instruction::Store { view, strides, arg: 0, accumulate: None }]
        }),
    );
    says(
        "instruction 1: a view of b3 reaches",
        small(|out, bias| vec![given(0), load(bias, [1, 1]), map(MapFn::Add, &[0, 1], f), store(out, 2)]),
    );
    says("instruction 1 uses r2", small(|out, _| vec![given(0), map(MapFn::Neg, &[2], f), store(out, 1)]));
    says(
        "the loop has no dimension 2",
        small(|out, _| vec![given(0), Instruction::Index { dim: 2, offset: 0, dtype: f }, store(out, 0)]),
    );
    says(
        "the product is given in several types",
        small(|out, _| vec![given(0), Instruction::Given { index: 0, dtype: DType::I64 }, store(out, 0)]),
    );
    let mut over = small(|out, _| vec![given(0), store(out, 0)]);
    over.buffers[2].offset = over.buffers[0].offset;
    says("the result overlaps an operand", over);
}
