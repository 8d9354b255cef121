//! Products with epilogues, and their meaning in f64. The data are small integers and the products multiples of an
//! eighth, so that everything linear is exact in every type.

use crate::support::{Builder, Lcg, map};
use tpc_ir::DType::{BF16, F16, F32, F64, I64};
use tpc_ir::program::{Action, Contract, ContractDim, Instruction, RankProgram, View};
use tpc_ir::{DType, MapFn, Scalar};
use tpc_runtime::element::{decode, encode};

/// The best way to compute a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Best {
    /// By the library, without an epilogue other than scaling.
    Alone,
    /// By the library, including the epilogue.
    Epilogue,
    /// By the library, followed by a loop.
    Followed,
    /// By generated kernels.
    Generated,
}

pub struct Case {
    pub name: String,
    pub program: RankProgram,
    /// The initial values of every input.
    pub inputs: Vec<Vec<u8>>,
    /// The expected values afterwards.
    want: Vec<Vec<f64>>,
    /// The allowed differences, relative to each element and to the largest element of its tensor.
    allowed: (f64, f64),
    pub best: Best,
    /// Whether the library needs an operand in another order.
    pub packed: bool,
}

impl Case {
    pub fn check(&self, got: &[Vec<u8>], how: &str) {
        for ((input, want), got) in self.program.inputs.iter().zip(&self.want).zip(got) {
            let got = decode(input.binding.view.dtype, got);
            let largest = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            for (i, (&x, &y)) in got.iter().zip(want).enumerate() {
                let allowed = self.allowed.0 * y.abs() + self.allowed.1 * largest;
                let text = || format!("{}, {how}, {}: element {i} is {x}, not {y}", self.name, input.name);
                assert!((x - y).abs() <= allowed, "{}\n{}", text(), self.program.to_text());
            }
        }
    }
}

/// A product and its body under construction.
struct Making {
    name: String,
    builder: Builder,
    rng: Lcg,
    c: Contract,
    /// The compute type of the body.
    real: DType,
    values: Vec<Vec<f64>>,
}

/// The order of the result's dimensions in memory, outermost first, and a gap after each of its rows.
#[derive(Clone, Copy)]
struct Order(&'static [usize], usize);

/// Dense strides in an order, except for the gap.
fn strides(sizes: &[usize], Order(order, gap): Order) -> (Vec<isize>, usize) {
    let mut strides = vec![0; sizes.len()];
    let mut next = 1;
    for (i, &d) in order.iter().rev().enumerate() {
        strides[d] = next as isize;
        next *= sizes[d] + if i == 0 { gap } else { 0 };
    }
    (strides, next)
}

impl Making {
    /// Sizes of batch, m, n and k; types of operands, result and body.
    fn new(name: &str, sizes: [&[usize]; 4], order: Order, types: [DType; 3]) -> Self {
        Making::laid(name, sizes, order, types, false)
    }

    /// Like [`Making::new`], with a right operand whose first summed dimension is the innermost.
    fn laid(name: &str, sizes: [&[usize]; 4], order: Order, [operands, out, real]: [DType; 3], apart: bool) -> Self {
        let [b, m, n, k] = sizes;
        let dense = |parts: &[&[usize]], apart: bool| {
            let all = parts.concat();
            let mut at: Vec<usize> = (0..all.len()).collect();
            if apart {
                let first = at.remove(parts[0].len());
                at.push(first);
            }
            let mut strides = vec![0; all.len()];
            let mut next = 1;
            for &d in at.iter().rev() {
                strides[d] = next as isize;
                next *= all[d];
            }
            (strides, next)
        };
        let (of_left, left) = dense(&[b, m, k], false);
        let (of_right, right) = dense(&[b, k, n], apart);
        let (of_out, outs) = strides(&[b, m, n].concat(), order);
        let mut builder = Builder::new();
        let (left, right) = (builder.input("left", operands, &[left]), builder.input("right", operands, &[right]));
        let result = builder.input("out", out, &[outs]);
        let (nb, nm, nn, nk) = (b.len(), m.len(), n.len(), k.len());
        let dim = |size: usize, left: isize, right: isize, out: isize| ContractDim { size, left, right, out };
        let c = Contract {
            batch: (0..nb).map(|i| dim(b[i], of_left[i], of_right[i], of_out[i])).collect(),
            m: (0..nm).map(|i| dim(m[i], of_left[nb + i], 0, of_out[nb + i])).collect(),
            n: (0..nn).map(|i| dim(n[i], 0, of_right[nb + nk + i], of_out[nb + nm + i])).collect(),
            k: (0..nk).map(|i| dim(k[i], of_left[nb + nm + i], of_right[nb + i], 0)).collect(),
            left,
            right,
            out: result,
            scale: if out == I64 { 1.0 } else { 0.125 },
            epilogue: Vec::new(),
        };
        let name = format!("{name}, {sizes:?}, order {:?} gap {}, {operands} {out} {real}", order.0, order.1);
        let mut making = Making { name, builder, rng: Lcg(7), c, real, values: Vec::new() };
        for view in [making.c.left.clone(), making.c.right.clone(), making.c.out.clone()] {
            let values = making.rng.integers(view.elements());
            making.values.push(values);
        }
        making
    }

    fn push(&mut self, ins: Instruction) -> usize {
        self.c.epilogue.push(ins);
        self.c.epilogue.len() - 1
    }

    /// In the compute type of the body.
    fn cast(&mut self, arg: usize, from: DType) -> usize {
        let real = self.real;
        if from == real { arg } else { self.push(map(MapFn::Cast(real), &[arg], real)) }
    }

    /// The product, of the operands' type.
    fn product(&mut self) -> usize {
        let dtype = self.c.left.dtype;
        let given = self.push(Instruction::Given { index: 0, dtype });
        self.cast(given, dtype)
    }

    fn load(&mut self, view: View, strides: Vec<isize>) -> usize {
        let dtype = view.dtype;
        let load = self.push(Instruction::Load { view, strides });
        self.cast(load, dtype)
    }

    /// A new input.
    fn input(&mut self, name: &str, elements: usize) -> View {
        let view = self.builder.input(name, self.c.out.dtype, &[elements]);
        let values = self.rng.integers(elements);
        self.values.push(values);
        view
    }

    fn of_out(&self) -> Vec<isize> {
        self.c.dims().map(|d| d.out).collect()
    }

    /// A matrix that is added, with the result's layout.
    fn matrix(&mut self) -> usize {
        let (strides, elements) = (self.of_out(), self.c.out.elements());
        let view = self.input("matrix", elements);
        self.load(view, strides)
    }

    /// A vector over the columns, or over the rows.
    fn bias(&mut self, columns: bool) -> usize {
        let (b, m) = (self.c.batch.len(), self.c.m.len());
        let chosen = if columns { b + m..b + m + self.c.n.len() } else { b..b + m };
        let sizes: Vec<usize> = self.c.dims().map(|d| d.size).collect();
        let mut strides = vec![0; sizes.len()];
        let mut next = 1;
        for d in chosen.rev() {
            strides[d] = next as isize;
            next *= sizes[d];
        }
        let view = self.input("bias", next);
        self.load(view, strides)
    }

    /// The previous contents of the result.
    fn old(&mut self) -> usize {
        let (view, strides) = (self.c.out.clone(), self.of_out());
        self.load(view, strides)
    }

    fn number(&mut self, x: f64) -> usize {
        let real = self.real;
        self.push(Instruction::Constant(Scalar::of(real, x), real))
    }

    fn map(&mut self, f: MapFn, args: &[usize]) -> usize {
        let real = self.real;
        self.push(map(f, args, real))
    }

    /// GELU as frameworks write it.
    fn gelu(&mut self, x: usize) -> usize {
        let (half, one, root, cubic, three) =
            (self.number(0.5), self.number(1.0), self.number(0.797_884_560_802_865_4), self.number(0.044_715), {
                self.number(3.0)
            });
        let cube = self.map(MapFn::Pow, &[x, three]);
        let cube = self.map(MapFn::Mul, &[cube, cubic]);
        let sum = self.map(MapFn::Add, &[x, cube]);
        let inner = self.map(MapFn::Mul, &[sum, root]);
        let tanh = self.map(MapFn::Tanh, &[inner]);
        let more = self.map(MapFn::Add, &[tanh, one]);
        let x = self.map(MapFn::Mul, &[x, half]);
        self.map(MapFn::Mul, &[x, more])
    }

    fn store(&mut self, view: View, arg: usize) {
        let real = self.real;
        let arg = if view.dtype == real { arg } else { self.push(map(MapFn::Cast(view.dtype), &[arg], view.dtype)) };
        let strides = self.of_out();
        self.push(Instruction::Store { view, strides, arg, accumulate: None });
    }

    /// Also stores the value in a separate buffer with the result's layout.
    fn aside(&mut self, arg: usize) {
        let view = self.input("aside", self.c.out.elements());
        self.store(view, arg);
    }

    /// The expected values of every input after the product.
    fn meaning(&self) -> Vec<Vec<f64>> {
        let of = |v: &View| v.buffer.0 as usize;
        let c = &self.c;
        let mut after = self.values.clone();
        let dims: Vec<ContractDim> = c.dims().copied().collect();
        let points = |dims: &[ContractDim]| -> Vec<Vec<usize>> {
            dims.iter().fold(vec![vec![]], |all, d| {
                all.iter().flat_map(|p| (0..d.size).map(move |i| [&p[..], &[i]].concat())).collect()
            })
        };
        let at = |strides: &mut dyn Iterator<Item = isize>, point: &[usize]| -> isize {
            strides.zip(point).map(|(s, &i)| s * i as isize).sum()
        };
        let sum = points(&c.k);
        for point in points(&dims) {
            let (l, r) = (at(&mut dims.iter().map(|d| d.left), &point), at(&mut dims.iter().map(|d| d.right), &point));
            let term = |k: &Vec<usize>| {
                let (kl, kr) = (at(&mut c.k.iter().map(|d| d.left), k), at(&mut c.k.iter().map(|d| d.right), k));
                self.values[0][(l + kl) as usize] * self.values[1][(r + kr) as usize]
            };
            let product = c.scale * sum.iter().map(term).sum::<f64>();
            let mut registers: Vec<f64> = Vec::new();
            for ins in &c.epilogue {
                let place = |view: &View, strides: &[isize]| {
                    (view.offset as isize + at(&mut strides.iter().copied(), &point)) as usize
                };
                registers.push(match ins {
                    Instruction::Given { .. } => product,
                    Instruction::Load { view, strides } => self.values[of(view)][place(view, strides)],
                    Instruction::Constant(x, _) => x.as_f64(),
                    Instruction::Index { dim, offset, .. } => (point[*dim] + offset) as f64,
                    // Casts only round, which the tolerance allows.
                    Instruction::Map { f: MapFn::Cast(_), args, .. } => registers[args[0]],
                    Instruction::Map { f, args, .. } => f.eval(&args.iter().map(|&a| registers[a]).collect::<Vec<_>>()),
                    Instruction::Store { view, strides, arg, .. } => {
                        after[of(view)][place(view, strides)] = view.dtype.round(registers[*arg]);
                        0.0
                    }
                    other => panic!("{other:?}"),
                });
            }
        }
        after
    }

    /// The case whose result is this register.
    fn end(mut self, arg: usize, exact: bool, best: Best) -> Case {
        let out = self.c.out.clone();
        self.store(out.clone(), arg);
        let want = self.meaning();
        let unit = match out.dtype {
            BF16 => 1.0 / 128.0,
            F16 => 1.0 / 1024.0,
            _ => 0.0,
        };
        let allowed = match out.dtype {
            _ if exact => (0.0, 0.0),
            F64 => (0.0, 1e-13),
            // Rounded once, or at every step of the body.
            _ if self.real == F32 => (unit, 1e-6),
            _ => (unit, unit),
        };
        let bytes = |(i, v): (&tpc_ir::program::InputBinding, &Vec<f64>)| encode(i.binding.view.dtype, v);
        let inputs = self.builder.program.inputs.iter().zip(&self.values).map(bytes).collect();
        self.builder.step(Action::Contract(self.c));
        let program = self.builder.program;
        Case { name: self.name, program, inputs, want, allowed, best, packed: false }
    }
}

/// Sizes and orders; in all of them the columns are contiguous.
const SHAPES: [([&[usize]; 4], Order); 5] = [
    ([&[], &[33], &[24], &[17]], Order(&[0, 1], 0)),
    ([&[], &[5], &[11], &[9]], Order(&[0, 1], 0)),
    ([&[3], &[7], &[16], &[16]], Order(&[0, 1, 2], 8)),
    // Heads are outermost, so that the bias moves with them.
    ([&[], &[9], &[3, 8], &[12]], Order(&[1, 0, 2], 0)),
    ([&[3], &[4], &[2, 8], &[8]], Order(&[2, 0, 1, 3], 0)),
];

/// Types of operands, result and body.
const TYPES: [[DType; 3]; 6] =
    [[F32, F32, F32], [BF16, BF16, F32], [BF16, BF16, BF16], [F16, F16, F32], [F64, F64, F64], [BF16, F32, F32]];

pub fn cases() -> Vec<Case> {
    use Best::{Alone, Epilogue, Followed, Generated};
    let mut all = Vec::new();
    for (s, (sizes, order)) in SHAPES.into_iter().enumerate() {
        for (t, types) in TYPES.into_iter().enumerate() {
            let new = |name: &str| Making::new(name, sizes, order, types);
            // In f64 the library adds matrices and has no epilogues.
            let word = if types[1] == F64 { Followed } else { Epilogue };
            // The columns of the stored sum must be a multiple of 8 elements apart.
            let aside = if s == 1 { Followed } else { word };
            let mut c = new("bias");
            let (x, b) = (c.product(), c.bias(true));
            let y = c.map(MapFn::Add, &[x, b]);
            all.push(c.end(y, true, word));
            let mut c = new("twice what was there minus the product");
            let (old, x, two) = (c.old(), c.product(), c.number(2.0));
            let y = c.map(MapFn::Mul, &[two, old]);
            let y = c.map(MapFn::Sub, &[y, x]);
            all.push(c.end(y, true, Epilogue));
            let mut c = new("gelu of a sum that is kept");
            let (x, b) = (c.product(), c.bias(true));
            let y = c.map(MapFn::Add, &[b, x]);
            c.aside(y);
            let y = c.gelu(y);
            all.push(c.end(y, false, aside));
            // The others not for every shape with every type.
            if (s + t) % 2 == 0 {
                let mut c = new("residual and bias");
                let (x, r, b) = (c.product(), c.matrix(), c.bias(true));
                let y = c.map(MapFn::Add, &[x, b, r]);
                all.push(c.end(y, true, word));
                let mut c = new("relu");
                let (b, x, zero) = (c.bias(true), c.product(), c.number(0.0));
                let y = c.map(MapFn::Add, &[x, b]);
                let y = c.map(MapFn::Max, &[zero, y]);
                all.push(c.end(y, true, word));
                let mut c = new("a sum, and its gelu aside");
                let (x, r) = (c.product(), c.matrix());
                let y = c.map(MapFn::Add, &[x, r]);
                let z = c.gelu(y);
                c.aside(z);
                all.push(c.end(y, false, aside));
                let mut c = new("gated");
                let (x, gate) = (c.product(), c.matrix());
                let s = c.map(MapFn::Sigmoid, &[gate]);
                let y = c.map(MapFn::Mul, &[gate, s]);
                let y = c.map(MapFn::Mul, &[y, x]);
                all.push(c.end(y, false, Followed));
            } else {
                let mut c = new("residual");
                let (r, x) = (c.matrix(), c.product());
                let y = c.map(MapFn::Add, &[r, x]);
                all.push(c.end(y, true, Epilogue));
                let mut c = new("gelu with what was there");
                let (x, old) = (c.product(), c.old());
                let y = c.map(MapFn::Add, &[x, old]);
                let y = c.gelu(y);
                all.push(c.end(y, false, word));
                let mut c = new("scaled");
                let (x, half) = (c.product(), c.number(-0.5));
                let y = c.map(MapFn::Mul, &[x, half]);
                let y = c.map(MapFn::Div, &[y, half]);
                all.push(c.end(y, true, Alone));
                let mut c = new("times what was there");
                let (x, old) = (c.product(), c.old());
                let y = c.map(MapFn::Mul, &[x, old]);
                all.push(c.end(y, false, Followed));
                let mut c = new("erf gelu of a sum that is kept, with an index");
                let (x, half, one, root) = (c.product(), c.number(0.5), c.number(1.0), c.number(2f64.sqrt().recip()));
                let index = c.push(Instruction::Index { dim: 0, offset: 2, dtype: I64 });
                let index = c.cast(index, I64);
                let x = c.map(MapFn::Add, &[x, index]);
                c.aside(x);
                let y = c.map(MapFn::Mul, &[x, root]);
                let y = c.map(MapFn::Erf, &[y]);
                let y = c.map(MapFn::Add, &[y, one]);
                let y = c.map(MapFn::Mul, &[y, x]);
                let y = c.map(MapFn::Mul, &[y, half]);
                all.push(c.end(y, false, Followed));
            }
        }
    }
    // Results of one row and of one column, and results whose rows are contiguous.
    for (m, n) in [(1, 19), (19, 1), (1, 1), (13, 10)] {
        for columns in [true, false] {
            for order in [Order(&[0, 1], 0), Order(&[1, 0], 0)] {
                let mut c = Making::new("bias", [&[], &[m], &[n], &[8]], order, [F32; 3]);
                let (x, b) = (c.product(), c.bias(columns));
                let y = c.map(MapFn::Add, &[x, b]);
                // A bias is contiguous; a matrix is not repeated. A single vector can be both.
                let along = m == 1 || n == 1 || columns == (order.0 == [0, 1]);
                let mut case = c.end(y, true, if along { Epilogue } else { Followed });
                case.name += if columns { " over columns" } else { " over rows" };
                all.push(case);
            }
        }
    }
    // Operands that are packed; the sum has more terms than bf16 could hold exactly.
    let scrambled: [&[usize]; 4] = [&[2, 2], &[40], &[48], &[4, 40]];
    let mut c = Making::laid("packed", scrambled, Order(&[0, 1, 2, 3], 0), [F32; 3], true);
    let (x, b) = (c.product(), c.bias(true));
    let y = c.map(MapFn::Add, &[x, b]);
    all.push(Case { packed: true, ..c.end(y, true, Epilogue) });
    let mut c = Making::laid("packed, with what was there", scrambled, Order(&[0, 1, 2, 3], 0), [BF16, F32, F32], true);
    let (x, old) = (c.product(), c.old());
    let y = c.map(MapFn::Mul, &[x, old]);
    all.push(Case { packed: true, ..c.end(y, true, Followed) });
    // The gaps between the rows of the result belong to its bytes, but not to the result.
    let mut c = Making::new("between the rows", [&[], &[6], &[16], &[8]], Order(&[0, 1], 16), [F32; 3]);
    let (x, strides) = (c.product(), c.of_out());
    let between = c.load(View { offset: 16, ..c.c.out.clone() }, strides);
    let y = c.map(MapFn::Add, &[x, between]);
    all.push(c.end(y, true, Followed));
    // Products that no library computes.
    for types in [[I64; 3], [F32, F64, F64]] {
        let mut c = Making::new("bias", [&[2], &[6], &[10], &[5]], Order(&[0, 1, 2], 0), types);
        let (x, b) = (c.product(), c.bias(true));
        let y = c.map(MapFn::Add, &[x, b]);
        all.push(c.end(y, true, Generated));
    }
    // Sums over nothing.
    for order in [Order(&[0, 1], 0), Order(&[1, 0], 3)] {
        let mut c = Making::new("empty sum", [&[], &[6], &[10], &[0]], order, [F32; 3]);
        let (x, old) = (c.product(), c.old());
        let y = c.map(MapFn::Sub, &[x, old]);
        all.push(c.end(y, true, Generated));
    }
    all
}
