//! What a library can do with a product before it writes it (cublasLt's epilogues), found in the body that says it.
//!
//! The body is read as a linear form of the product and of what it loads, and an activation of that form. Sums,
//! differences and factors are followed symbolically. Whether the rest is GELU cannot be seen from how it is written:
//! there are too many ways. It is a function of one number, made of analytic functions, which is compared with the
//! definition at many points; nothing but rounded constants may be between them.
//!
//! Values that the body rounds to the result's type in between, or constants of that type within an activation, the
//! library has more precisely; what is computed more precisely than in the library's f32 is not taken.

use super::gemm::Activation;
use tpc_ir::program::Instruction;
use tpc_ir::{DType, MapFn};

/// A body in a library's words: `activation(scale · product + Σ factor · load)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Words {
    /// Multiplies the product.
    pub scale: f64,
    /// What is added: instructions that load it, and their factors, none of them 0.
    pub added: Vec<(usize, f64)>,
    /// What is done with the sum.
    pub activation: Option<Activation>,
    /// The instruction that stores the result.
    pub out: usize,
    /// The one that stores the sum, if an activation follows.
    pub before: Option<usize>,
}

/// A body in a library's words, if it has any: of two stores one may be what GELU is a function of.
pub fn recognize(body: &[Instruction]) -> Option<Words> {
    let stores: Vec<usize> =
        (0..body.len()).filter(|&i| matches!(body[i], Instruction::Store { accumulate: None, .. })).collect();
    match stores[..] {
        [out] => read(body, out, None),
        [first, last] => read(body, last, Some(first)).or_else(|| read(body, first, Some(last))),
        _ => None,
    }
}

fn read(body: &[Instruction], out: usize, before: Option<usize>) -> Option<Words> {
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
        // Of ReLU, the library stores where it cuts, not what.
        if activation != Some(Activation::Gelu) || narrow != dtype || forms[arg].as_ref() != Some(&sum) {
            return None;
        }
    }
    let factor = |x: f64| x.is_finite() && x != 0.0;
    if sum.constant != 0.0 || !factor(sum.product) || !sum.loads.iter().all(|l| factor(l.1)) {
        return None;
    }
    Some(Words { scale: sum.product, added: sum.loads, activation, out, before })
}

/// `product · given + Σ factor · load + constant`.
#[derive(Clone, Debug, Default, PartialEq)]
struct Form {
    product: f64,
    /// Instructions, in order, and their factors.
    loads: Vec<(usize, f64)>,
    constant: f64,
    /// Whether there is a product, or a load: their factors may be 0.
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

/// Whether values of that type are computed as the library does for a result of the other, or less precisely.
fn fits(dtype: DType, result: DType) -> bool {
    dtype == result || (dtype == DType::F32 && matches!(result, DType::BF16 | DType::F16))
}

/// For every register the linear form that it is.
fn forms(body: &[Instruction], result: DType) -> Vec<Option<Form>> {
    let mut forms: Vec<Option<Form>> = Vec::with_capacity(body.len());
    for (at, ins) in body.iter().enumerate() {
        let form = match ins {
            Instruction::Given { dtype, .. } if dtype.is_float() => {
                Some(Form { product: 1.0, varies: true, ..Form::default() })
            }
            Instruction::Load { view, .. } if view.dtype.is_float() => {
                // Equal loads are one.
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

/// The function of linear forms, if it is one.
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

/// `max(form, 0)`.
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

/// A form of which the register is GELU.
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

/// Where a function is compared with GELU: densely where it bends, and far out.
fn points() -> impl Iterator<Item = f64> {
    let near = (-600..=600).map(|i| f64::from(i) * 0.017);
    near.chain([12.0, 20.0, 50.0, 300.0, 1e4, 1e6].into_iter().flat_map(|x| [x, -x]))
}

/// The value of a register where a form is `x`, if it depends on nothing else and by analytic functions alone.
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
            // As it is written: what rounding does to constants of 16 bits the library does not do.
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
                // A cast is for rounding, which is what is left out.
                let f = if matches!(f, MapFn::Cast(_)) { MapFn::Identity } else { *f };
                args.filter(|_| analytic).map(|args| f.eval(&args))
            }
            _ => None,
        };
        values.push(value);
    }
    values[arg]
}

/// Whether `y` is `x · (1 + tanh(√(2/π) · (x + 0.044715 · x³))) / 2`, but for constants that are rounded to f32.
fn is_gelu(x: f64, y: f64) -> bool {
    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    let want = x / (1.0 + (-2.0 * u).exp());
    // What the value moves by if `u` does, by as much as four rounded factors make, and rounded factors of the whole.
    let e = (-2.0 * u.abs()).exp();
    let slope = 0.5 * x.abs() * (4.0 * e / ((1.0 + e) * (1.0 + e))) * u.abs();
    let rounding = 4.0 * 0.5 * f64::from(f32::EPSILON);
    (y - want).abs() <= rounding * (slope + want.abs()) + 2.0 * f64::EPSILON * x.abs()
}
