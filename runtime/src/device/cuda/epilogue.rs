//! Recognizes the epilogues that cublasLt can apply to a product in the body of an epilogue.
//!
//! The body is read as a linear form of the product and of the loaded operands, followed by an activation of that form.
//! Sums, differences and factors are tracked symbolically. GELU has too many spellings to be recognized symbolically.
//! Instead, a candidate must be a function of one number composed of analytic functions, and its values are compared
//! with the definition at many points; the two may only differ by rounded constants.
//!
//! The library keeps more precision in values that the body rounds to the result's type in between, and in constants of
//! that type within an activation. A body that computes with more precision than the library's f32 is not taken.

use super::gemm::Activation;
use tpc_ir::program::Instruction;
use tpc_ir::{DType, MapFn};

/// A body in the library's terms: `activation(scale · product + Σ factor · load)`.
#[derive(Clone, Debug, PartialEq)]
pub struct LibraryForm {
    /// Factor of the product.
    pub scale: f64,
    /// Added operands: the instructions that load them, and their factors, none of them 0.
    pub added: Vec<(usize, f64)>,
    /// The activation that is applied to the sum.
    pub activation: Option<Activation>,
    /// The instruction that stores the result.
    pub out: usize,
    /// The instruction that stores the sum before the activation, if there is one.
    pub before: Option<usize>,
}

/// A body in the library's terms, if it has such a form. Of two stores, one may store the argument of GELU.
pub fn recognize(body: &[Instruction]) -> Option<LibraryForm> {
    let stores: Vec<usize> =
        (0..body.len()).filter(|&i| matches!(body[i], Instruction::Store { accumulate: None, .. })).collect();
    match stores[..] {
        [out] => read(body, out, None),
        [first, last] => read(body, last, Some(first)).or_else(|| read(body, first, Some(last))),
        _ => None,
    }
}

fn read(body: &[Instruction], out: usize, before: Option<usize>) -> Option<LibraryForm> {
    let store = |at: usize| match &body[at] {
        Instruction::Store { view, arg, .. } => Some((view.dtype, *arg)),
        _ => None,
    };
    let (dtype, arg) = store(out)?;
    let forms = forms(body, dtype);
    let (sum, activation) = match &forms[arg] {
        Some(form) => (form.clone(), None),
        None => relu(body, &forms, arg).or_else(|| gelu(body, &forms, dtype, arg))?,
    };
    if let Some(at) = before {
        let (narrow, arg) = store(at)?;
        // For ReLU, the library stores a mask of the positive elements instead of the argument.
        if activation != Some(Activation::Gelu) || narrow != dtype || forms[arg].as_ref() != Some(&sum) {
            return None;
        }
    }
    let factor = |x: f64| x.is_finite() && x != 0.0;
    if sum.constant != 0.0 || !factor(sum.product) || !sum.loads.iter().all(|l| factor(l.1)) {
        return None;
    }
    Some(LibraryForm { scale: sum.product, added: sum.loads, activation, out, before })
}

/// `product · given + Σ factor · load + constant`.
#[derive(Clone, Debug, Default, PartialEq)]
struct Form {
    product: f64,
    /// The loading instructions, in order, and their factors.
    loads: Vec<(usize, f64)>,
    constant: f64,
    /// Whether the form contains the product or a load, even with factor 0.
    varies: bool,
}

impl Form {
    fn of(constant: f64) -> Self {
        Form { constant, ..Form::default() }
    }

    fn times(mut self, factor: f64) -> Self {
        self.loads.iter_mut().for_each(|l| l.1 *= factor);
        Form { product: self.product * factor, constant: self.constant * factor, ..self }
    }

    fn plus(mut self, other: &Form) -> Self {
        for &(load, factor) in &other.loads {
            match self.loads.iter_mut().find(|l| l.0 == load) {
                Some(known) => known.1 += factor,
                None => self.loads.push((load, factor)),
            }
        }
        self.loads.sort_unstable_by_key(|l| l.0);
        Form {
            product: self.product + other.product,
            constant: self.constant + other.constant,
            varies: self.varies || other.varies,
            ..self
        }
    }
}

/// Whether values of this type are at most as precise as the library's computation for a result of the other type.
fn fits(dtype: DType, result: DType) -> bool {
    dtype == result || (dtype == DType::F32 && matches!(result, DType::BF16 | DType::F16))
}

/// The linear form of every register, if it has one.
fn forms(body: &[Instruction], result: DType) -> Vec<Option<Form>> {
    let mut forms: Vec<Option<Form>> = Vec::with_capacity(body.len());
    for (at, ins) in body.iter().enumerate() {
        let form = match ins {
            Instruction::Given { dtype, .. } if dtype.is_float() => {
                Some(Form { product: 1.0, varies: true, ..Form::default() })
            }
            Instruction::Load { view, .. } if view.dtype.is_float() => {
                // Equal loads are merged.
                let first = body.iter().position(|i| i == ins).unwrap_or(at);
                Some(Form { loads: vec![(first, 1.0)], varies: true, ..Form::default() })
            }
            Instruction::Constant(x, dtype) => {
                Some(Form::of(if dtype.is_float() { dtype.round(x.as_f64()) } else { x.as_f64() }))
            }
            Instruction::Map { f, args, dtype } if fits(*dtype, result) => {
                let args: Option<Vec<&Form>> = args.iter().map(|&a| forms.get(a)?.as_ref()).collect();
                args.and_then(|args| linear(*f, &args, result)).map(|form| {
                    let constant = if form.varies { form.constant } else { dtype.round(form.constant) };
                    Form { constant, ..form }
                })
            }
            _ => None,
        };
        forms.push(form);
    }
    forms
}

/// The result of a function of linear forms, if it is a linear form.
fn linear(f: MapFn, args: &[&Form], result: DType) -> Option<Form> {
    match f {
        MapFn::Cast(d) if !fits(d, result) => None,
        MapFn::Identity | MapFn::Cast(_) => Some(args[0].clone()),
        MapFn::Add => Some(args[1..].iter().fold(args[0].clone(), |sum, &x| sum.plus(x))),
        MapFn::Sub => Some(args[0].clone().plus(&args[1].clone().times(-1.0))),
        MapFn::Neg => Some(args[0].clone().times(-1.0)),
        MapFn::Mul if !args[1].varies => Some(args[0].clone().times(args[1].constant)),
        MapFn::Mul if !args[0].varies => Some(args[1].clone().times(args[0].constant)),
        MapFn::Div if !args[1].varies => Some(args[0].clone().times(1.0 / args[1].constant)),
        _ if args.iter().all(|a| !a.varies) => {
            Some(Form::of(f.eval(&args.iter().map(|a| a.constant).collect::<Vec<_>>())))
        }
        _ => None,
    }
}

/// Recognizes `max(form, 0)`.
fn relu(body: &[Instruction], forms: &[Option<Form>], mut arg: usize) -> Option<(Form, Option<Activation>)> {
    while let Instruction::Map { f: MapFn::Cast(_) | MapFn::Identity, args, .. } = &body[arg] {
        arg = args[0];
    }
    let Instruction::Map { f: MapFn::Max, args, .. } = &body[arg] else { return None };
    let (a, b) = (forms[args[0]].as_ref()?, forms[args[1]].as_ref()?);
    let zero = |x: &Form| !x.varies && x.constant == 0.0;
    let form = if zero(b) { a } else { Some(b).filter(|_| zero(a))? };
    Some((form.clone(), Some(Activation::Relu)))
}

/// The form that a register is GELU of, if any.
fn gelu(body: &[Instruction], forms: &[Option<Form>], result: DType, arg: usize) -> Option<(Form, Option<Activation>)> {
    let mut tried: Vec<&Form> = Vec::new();
    for form in forms[..arg].iter().flatten().filter(|f| f.varies) {
        if tried.contains(&form) {
            continue;
        }
        tried.push(form);
        if points().all(|x| at_point(body, forms, result, arg, form, x).is_some_and(|y| is_gelu(x, y))) {
            return Some((form.clone(), Some(Activation::Gelu)));
        }
    }
    None
}

/// The points at which a function is compared with GELU: densely where it bends, and far out.
fn points() -> impl Iterator<Item = f64> {
    let near = (-600..=600).map(|i| f64::from(i) * 0.017);
    near.chain([12.0, 20.0, 50.0, 300.0, 1e4, 1e6].into_iter().flat_map(|x| [x, -x]))
}

/// The value of a register where a form is `x`, if the register depends on nothing else, and only through analytic
/// functions.
fn at_point(
    body: &[Instruction],
    forms: &[Option<Form>],
    result: DType,
    arg: usize,
    form: &Form,
    x: f64,
) -> Option<f64> {
    let mut values: Vec<Option<f64>> = Vec::with_capacity(arg + 1);
    for (ins, of) in body[..=arg].iter().zip(forms) {
        let value = match ins {
            _ if of.as_ref() == Some(form) => Some(x),
            // Constants are used as written: the library does not round constants to 16 bits.
            Instruction::Constant(c, _) => Some(c.as_f64()),
            Instruction::Map { f, args, dtype } if fits(*dtype, result) => {
                let integer = |a: &usize| forms[*a].as_ref().is_some_and(|c| !c.varies && c.constant.fract() == 0.0);
                let analytic = match f {
                    MapFn::Cast(d) => fits(*d, result),
                    MapFn::Pow => integer(&args[1]),
                    MapFn::Identity | MapFn::Add | MapFn::Sub | MapFn::Mul | MapFn::Div | MapFn::Neg => true,
                    MapFn::Recip | MapFn::Exp | MapFn::Tanh | MapFn::Sigmoid => true,
                    // Roots of constants are constants.
                    MapFn::Sqrt | MapFn::Rsqrt => forms[args[0]].as_ref().is_some_and(|c| !c.varies),
                    _ => false,
                };
                let args: Option<Vec<f64>> = args.iter().map(|&a| values[a]).collect();
                // A cast only rounds, which is ignored here.
                let f = if matches!(f, MapFn::Cast(_)) { MapFn::Identity } else { *f };
                args.filter(|_| analytic).map(|args| f.eval(&args))
            }
            _ => None,
        };
        values.push(value);
    }
    values[arg]
}

/// Whether `y` is `x · (1 + tanh(√(2/π) · (x + 0.044715 · x³))) / 2`, except for constants that are rounded to f32.
fn is_gelu(x: f64, y: f64) -> bool {
    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    let want = x / (1.0 + (-2.0 * u).exp());
    // How far the value moves if `u` moves by the error of four rounded factors, plus the error of rounded factors of
    // the whole.
    let e = (-2.0 * u.abs()).exp();
    let slope = 0.5 * x.abs() * (4.0 * e / ((1.0 + e) * (1.0 + e))) * u.abs();
    let rounding = 4.0 * 0.5 * f64::from(f32::EPSILON);
    (y - want).abs() <= rounding * (slope + want.abs()) + 2.0 * f64::EPSILON * x.abs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpc_ir::DType::{BF16, F16, F32, F64};
    use tpc_ir::Scalar;
    use tpc_ir::program::{BufferId, View};

    /// A body under construction: register 0 is the product, 1 a bias, 2 a matrix.
    struct Body {
        real: DType,
        list: Vec<Instruction>,
    }

    fn view(buffer: u32, dtype: DType) -> View {
        View::dense(BufferId(buffer), dtype, vec![8, 8])
    }

    impl Body {
        fn new(real: DType) -> Self {
            let load = |buffer, strides| Instruction::Load { view: view(buffer, real), strides };
            let given = Instruction::Given { index: 0, dtype: real };
            Body { real, list: vec![given, load(1, vec![0, 1]), load(2, vec![8, 1])] }
        }

        fn push(&mut self, ins: Instruction) -> usize {
            self.list.push(ins);
            self.list.len() - 1
        }

        fn map(&mut self, f: MapFn, args: &[usize]) -> usize {
            let dtype = if let MapFn::Cast(d) = f { d } else { self.real };
            self.push(Instruction::Map { f, args: args.to_vec(), dtype })
        }

        fn number(&mut self, x: f64) -> usize {
            self.push(Instruction::Constant(Scalar::float(x), self.real))
        }

        /// `x · factor`.
        fn scaled(&mut self, x: usize, factor: f64) -> usize {
            let factor = self.number(factor);
            self.map(MapFn::Mul, &[x, factor])
        }

        /// `x + more`.
        fn shifted(&mut self, x: usize, more: f64) -> usize {
            let more = self.number(more);
            self.map(MapFn::Add, &[x, more])
        }

        /// The product and the bias.
        fn sum(&mut self) -> usize {
            self.map(MapFn::Add, &[0, 1])
        }

        fn store(&mut self, arg: usize) -> usize {
            let view = view(3 + self.list.len() as u32, self.real);
            self.push(Instruction::Store { view, strides: vec![8, 1], arg, accumulate: None })
        }

        /// `root · (x + cubic · x³)`.
        fn inner(&mut self, x: usize, root: f64, cubic: f64) -> usize {
            let square = self.map(MapFn::Mul, &[x, x]);
            let cube = self.map(MapFn::Mul, &[square, x]);
            let cube = self.scaled(cube, cubic);
            let inner = self.map(MapFn::Add, &[cube, x]);
            self.scaled(inner, root)
        }

        /// `x · (0.5 + 0.5 · tanh(inner))`.
        fn gelu_of(&mut self, x: usize, inner: usize) -> usize {
            let tanh = self.map(MapFn::Tanh, &[inner]);
            let half = self.scaled(tanh, 0.5);
            let more = self.shifted(half, 0.5);
            self.map(MapFn::Mul, &[more, x])
        }

        fn gelu(&mut self, x: usize) -> usize {
            let inner = self.inner(x, ROOT, 0.044_715);
            self.gelu_of(x, inner)
        }

        /// What is recognized if that register is the result.
        fn end(mut self, arg: usize) -> Option<LibraryForm> {
            self.store(arg);
            recognize(&self.list)
        }
    }

    const ROOT: f64 = 0.797_884_560_802_865_4;

    /// The factor of the product, the added operands, the activation.
    type Said = (f64, Vec<(usize, f64)>, Option<Activation>);

    /// What is recognized in a body with one store, except for the position of the store.
    fn said(form: Option<LibraryForm>) -> Option<Said> {
        form.map(|w| (w.scale, w.added, w.activation))
    }

    #[test]
    fn sums_and_factors_are_one_linear_form() {
        let product = |x: f64| Some((x, vec![], None));
        let b = Body::new(F32);
        assert_eq!(said(b.end(0)), product(1.0));
        let mut b = Body::new(F32);
        let x = b.scaled(0, 3.0);
        let x = b.map(MapFn::Neg, &[x]);
        let four = b.number(4.0);
        let x = b.map(MapFn::Div, &[x, four]);
        assert_eq!(said(b.end(x)), product(-0.75));
        let mut b = Body::new(F32);
        // 2 · (product − matrix) + bias + product + matrix.
        let x = b.map(MapFn::Sub, &[0, 2]);
        let two = b.number(2.0);
        let x = b.map(MapFn::Mul, &[two, x]);
        let x = b.map(MapFn::Add, &[x, 1, 0, 2]);
        assert_eq!(said(b.end(x)), Some((3.0, vec![(1, 1.0), (2, -1.0)], None)));
        // Factors that are computed from constants.
        let mut b = Body::new(F64);
        let (four, x) = (b.number(4.0), b.sum());
        let root = b.map(MapFn::Rsqrt, &[four]);
        let y = b.map(MapFn::Mul, &[x, root]);
        assert_eq!(said(b.end(y)), Some((0.5, vec![(1, 0.5)], None)));
        // Equal loads are merged.
        let mut b = Body::new(F32);
        let again = b.list[2].clone();
        let again = b.push(again);
        let x = b.map(MapFn::Add, &[2, 0, again]);
        assert_eq!(said(b.end(x)), Some((1.0, vec![(2, 2.0)], None)));
    }

    #[test]
    fn constants_are_rounded_to_their_type() {
        for (dtype, factor) in
            [(F64, 0.1), (F32, f64::from(0.1f32)), (BF16, 0.100_097_656_25), (F16, 0.099_975_585_937_5)]
        {
            let mut b = Body::new(dtype);
            let x = b.scaled(0, 0.1);
            assert_eq!(said(b.end(x)), Some((factor, vec![], None)), "{dtype}");
        }
    }

    #[test]
    fn casts_that_widen_pass_and_those_that_lose_do_not() {
        // bf16 → f32 → bf16.
        let mut b = Body::new(BF16);
        let (x, y) = (b.map(MapFn::Cast(F32), &[0]), b.map(MapFn::Cast(F32), &[1]));
        b.real = F32;
        let x = b.map(MapFn::Add, &[x, y]);
        b.real = BF16;
        let x = b.map(MapFn::Cast(BF16), &[x]);
        assert_eq!(said(b.end(x)), Some((1.0, vec![(1, 1.0)], None)));
        // A sum of gradients: a product declared as bf16 is added in f32.
        let mut b = Body::new(F32);
        b.list[0] = Instruction::Given { index: 0, dtype: BF16 };
        let x = b.map(MapFn::Cast(F32), &[0]);
        let x = b.map(MapFn::Add, &[x, 2]);
        assert_eq!(said(b.end(x)), Some((1.0, vec![(2, 1.0)], None)));
        // Rounded to less than the result holds; computed more precisely than the library does; integers.
        for (result, between) in [(F32, BF16), (F32, F64), (BF16, F16), (BF16, F64), (F64, F32), (F32, DType::I32)] {
            let mut b = Body::new(result);
            let x = b.sum();
            let x = b.map(MapFn::Cast(between), &[x]);
            let x = b.map(MapFn::Cast(result), &[x]);
            assert_eq!(b.end(x), None, "{result} {between}");
        }
    }

    #[test]
    fn what_is_not_linear_is_not_read() {
        let bodies: [fn(&mut Body) -> usize; 12] = [
            |b| b.shifted(0, 1.0),
            |b| b.map(MapFn::Mul, &[0, 1]),
            |b| b.map(MapFn::Mul, &[0, 0]),
            |b| b.map(MapFn::Div, &[0, 1]),
            |b| b.map(MapFn::Add, &[1, 2]),
            |b| b.map(MapFn::Sub, &[0, 0]),
            |b| b.scaled(0, 0.0),
            |b| b.scaled(0, f64::INFINITY),
            |b| b.map(MapFn::Abs, &[0]),
            |b| {
                let i = b.push(Instruction::Index { dim: 1, offset: 0, dtype: F32 });
                b.map(MapFn::Add, &[0, i])
            },
            |b| {
                let s = b.map(MapFn::Sigmoid, &[2]);
                let s = b.map(MapFn::Mul, &[s, 2]);
                b.map(MapFn::Mul, &[s, 0])
            },
            // A load with factor 0 still matters: 0 · ∞ is NaN.
            |b| {
                let x = b.scaled(2, 0.0);
                b.map(MapFn::Add, &[0, x])
            },
        ];
        for (i, body) in bodies.into_iter().enumerate() {
            let mut b = Body::new(F32);
            let x = body(&mut b);
            assert_eq!(b.end(x), None, "body {i}");
        }
    }

    #[test]
    fn relu_is_a_maximum_with_0() {
        for swapped in [false, true] {
            let mut b = Body::new(F32);
            let (x, zero) = (b.sum(), b.number(0.0));
            let y = b.map(MapFn::Max, &if swapped { [zero, x] } else { [x, zero] });
            assert_eq!(said(b.end(y)), Some((1.0, vec![(1, 1.0)], Some(Activation::Relu))));
        }
        // In f32, rounded to the result's type.
        let mut b = Body::new(BF16);
        let x = b.sum();
        let x = b.map(MapFn::Cast(F32), &[x]);
        b.real = F32;
        let zero = b.number(0.0);
        let y = b.map(MapFn::Max, &[x, zero]);
        b.real = BF16;
        let y = b.map(MapFn::Cast(BF16), &[y]);
        assert_eq!(said(b.end(y)), Some((1.0, vec![(1, 1.0)], Some(Activation::Relu))));
        // Another bound, another function, a maximum of two forms that vary, another operation after it.
        let others: [fn(&mut Body, usize, usize) -> usize; 4] = [
            |b, x, _| {
                let one = b.number(1.0);
                b.map(MapFn::Max, &[x, one])
            },
            |b, x, zero| b.map(MapFn::Min, &[x, zero]),
            |b, x, _| b.map(MapFn::Max, &[x, 2]),
            |b, x, zero| {
                let y = b.map(MapFn::Max, &[x, zero]);
                b.scaled(y, 2.0)
            },
        ];
        for (i, other) in others.into_iter().enumerate() {
            let mut b = Body::new(F32);
            let (x, zero) = (b.sum(), b.number(0.0));
            let y = other(&mut b, x, zero);
            assert_eq!(b.end(y), None, "{i}");
        }
    }

    #[test]
    fn gelu_is_found_however_it_is_written() {
        let ways: [fn(&mut Body, usize) -> usize; 8] = [
            |b, x| b.gelu(x),
            // As burn writes it: x · 0.5 · (1 + tanh(√(2/π) · (x + 0.044715 · x³))), where the cube is one power.
            |b, x| {
                let three = b.number(3.0);
                let cube = b.map(MapFn::Pow, &[x, three]);
                let cube = b.scaled(cube, 0.044_715);
                let sum = b.map(MapFn::Add, &[x, cube]);
                let inner = b.scaled(sum, ROOT);
                let tanh = b.map(MapFn::Tanh, &[inner]);
                let more = b.shifted(tanh, 1.0);
                let half = b.scaled(x, 0.5);
                b.map(MapFn::Mul, &[half, more])
            },
            // Constants as f32 holds them, and with fewer digits.
            |b, x| {
                let inner = b.inner(x, f64::from(ROOT as f32), f64::from(0.044_715f32));
                b.gelu_of(x, inner)
            },
            |b, x| {
                let inner = b.inner(x, 0.797_884_56, 0.044_715);
                b.gelu_of(x, inner)
            },
            // x · sigmoid(2 · …).
            |b, x| {
                let inner = b.inner(x, 2.0 * ROOT, 0.044_715);
                let s = b.map(MapFn::Sigmoid, &[inner]);
                b.map(MapFn::Mul, &[x, s])
            },
            // x / (1 + exp(−2 · …)).
            |b, x| {
                let inner = b.inner(x, -2.0 * ROOT, 0.044_715);
                let e = b.map(MapFn::Exp, &[inner]);
                let one = b.shifted(e, 1.0);
                b.map(MapFn::Div, &[x, one])
            },
            // Distributed: 0.5 · x + 0.5 · x · tanh(a · x + b · x³).
            |b, x| {
                let square = b.map(MapFn::Mul, &[x, x]);
                let inner = b.scaled(square, ROOT * 0.044_715);
                let inner = b.shifted(inner, ROOT);
                let inner = b.map(MapFn::Mul, &[inner, x]);
                let (tanh, half) = (b.map(MapFn::Tanh, &[inner]), b.scaled(x, 0.5));
                let y = b.map(MapFn::Mul, &[half, tanh]);
                b.map(MapFn::Add, &[y, half])
            },
            // x · (1 − 1 / (1 + exp(2 · …))), with a computed root.
            |b, x| {
                let two = b.number(2.0 / std::f64::consts::PI);
                let root = b.map(MapFn::Sqrt, &[two]);
                let inner = b.inner(x, 2.0, 0.044_715);
                let inner = b.map(MapFn::Mul, &[inner, root]);
                let e = b.map(MapFn::Neg, &[inner]);
                let e = b.map(MapFn::Exp, &[e]);
                let s = b.shifted(e, 1.0);
                let s = b.map(MapFn::Recip, &[s]);
                b.map(MapFn::Mul, &[s, x])
            },
        ];
        for (i, way) in ways.into_iter().enumerate() {
            for dtype in [F32, BF16, F16] {
                let mut b = Body::new(dtype);
                let x = b.map(MapFn::Add, &[0, 1, 2]);
                let y = way(&mut b, x);
                let want = (1.0, vec![(1, 1.0), (2, 1.0)], Some(Activation::Gelu));
                assert_eq!(said(b.end(y)), Some(want), "way {i}, {dtype}");
                // GELU of a scaled argument.
                let mut b = Body::new(dtype);
                let x = b.scaled(0, 0.25);
                let y = way(&mut b, x);
                assert_eq!(said(b.end(y)), Some((0.25, vec![], Some(Activation::Gelu))), "way {i}, {dtype}");
            }
        }
    }

    #[test]
    fn what_resembles_gelu_is_not() {
        let others: [fn(&mut Body, usize) -> usize; 12] = [
            // With the error function.
            |b, x| {
                let y = b.scaled(x, 0.5f64.sqrt());
                let y = b.map(MapFn::Erf, &[y]);
                let y = b.shifted(y, 1.0);
                let half = b.scaled(x, 0.5);
                b.map(MapFn::Mul, &[half, y])
            },
            // x · sigmoid(1.702 · x), and SiLU.
            |b, x| {
                let y = b.scaled(x, 1.702);
                let y = b.map(MapFn::Sigmoid, &[y]);
                b.map(MapFn::Mul, &[x, y])
            },
            |b, x| {
                let y = b.map(MapFn::Sigmoid, &[x]);
                b.map(MapFn::Mul, &[x, y])
            },
            // Constants that are slightly wrong.
            |b, x| {
                let inner = b.inner(x, 0.79788, 0.044_715);
                b.gelu_of(x, inner)
            },
            |b, x| {
                let inner = b.inner(x, ROOT, 0.0447);
                b.gelu_of(x, inner)
            },
            |b, x| {
                let inner = b.inner(x, BF16.round(ROOT), BF16.round(0.044_715));
                b.gelu_of(x, inner)
            },
            // Scaled, shifted, negated, of a shifted argument.
            |b, x| {
                let y = b.gelu(x);
                b.scaled(y, 1.001)
            },
            |b, x| {
                let y = b.gelu(x);
                b.shifted(y, 1e-3)
            },
            |b, x| {
                let y = b.gelu(x);
                b.map(MapFn::Neg, &[y])
            },
            |b, x| {
                let y = b.shifted(x, 1e-3);
                b.gelu(y)
            },
            // GELU of two values.
            |b, x| {
                let inner = b.inner(2, ROOT, 0.044_715);
                b.gelu_of(x, inner)
            },
            // Equal except for a cutoff.
            |b, x| {
                let (y, most) = (b.gelu(x), b.number(3.0));
                b.map(MapFn::Min, &[y, most])
            },
        ];
        for (i, other) in others.into_iter().enumerate() {
            for dtype in [F32, BF16] {
                let mut b = Body::new(dtype);
                let x = b.sum();
                let y = other(&mut b, x);
                assert_eq!(b.end(y), None, "{i}, {dtype}");
            }
        }
        // GELU of a loaded operand does not involve the product.
        let mut b = Body::new(F32);
        let y = b.gelu(2);
        assert_eq!(b.end(y), None);
    }

    #[test]
    fn of_two_stores_one_is_what_gelu_is_of() {
        // In both orders; the result is the activated value.
        for gelu_first in [false, true] {
            let mut b = Body::new(F32);
            let x = b.sum();
            let y = b.gelu(x);
            let (out, before) = if gelu_first {
                (b.store(y), b.store(x))
            } else {
                let before = b.store(x);
                (b.store(y), before)
            };
            let form = recognize(&b.list).unwrap();
            assert_eq!((form.out, form.before, form.activation), (out, Some(before), Some(Activation::Gelu)));
        }
        // Another value is kept; ReLU's argument; the same one twice; three stores; none; one that accumulates.
        let others: [fn(&mut Body, usize); 6] = [
            |b, x| {
                let (half, y) = (b.scaled(x, 0.5), b.gelu(x));
                b.store(half);
                b.store(y);
            },
            |b, x| {
                let zero = b.number(0.0);
                let y = b.map(MapFn::Max, &[x, zero]);
                b.store(x);
                b.store(y);
            },
            |b, x| {
                b.store(x);
                b.store(x);
            },
            |b, x| {
                let y = b.gelu(x);
                b.store(x);
                b.store(x);
                b.store(y);
            },
            |_, _| {},
            |b, x| {
                b.store(x);
                let Some(Instruction::Store { accumulate, .. }) = b.list.last_mut() else { panic!("a store") };
                *accumulate = Some(tpc_ir::ReduceOp::Sum);
            },
        ];
        for (i, other) in others.into_iter().enumerate() {
            let mut b = Body::new(F32);
            let x = b.sum();
            other(&mut b, x);
            assert_eq!(recognize(&b.list), None, "{i}");
        }
        // Kept in another type.
        let mut b = Body::new(BF16);
        let x = b.sum();
        b.real = F32;
        let wide = b.map(MapFn::Cast(F32), &[x]);
        b.store(wide);
        b.real = BF16;
        let y = b.gelu(x);
        b.store(y);
        assert_eq!(recognize(&b.list), None);
    }
}
