//! Operations on small shapes, with values of their operands: what the factor table and the checker are validated on.
#![allow(dead_code)] // every test binary uses its own part

use crate::ranks::dice;
use tpc_ir::op::Distribution;
use tpc_ir::{DType, MapFn, Mesh, Op, ReduceOp, Scalar, Subscripts, Type};

/// The values that an operand is filled with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// Integers from −4 to 4.
    Integers,
    /// Multiples of 1/4 from −4 to 4, for which rounding to integers is not the identity.
    Quarters,
    /// Multiples of 1/3, which every float type rounds.
    Thirds,
    /// −1, 0 and 1, which are often equal.
    Signs,
    /// ±1, ±2 and ±4, whose quotients are exact.
    Powers,
    /// 0 and 1.
    Truth,
    /// 0 to 3, for a type without negative numbers, and sometimes 200, so that sums saturate.
    Bytes,
    /// Row numbers, including one beyond each end.
    Rows(usize),
}

impl Values {
    pub fn element(self, seed: u64, index: usize) -> f64 {
        let below = |n: usize| dice(seed, index, n) as f64;
        match self {
            Values::Integers => below(9) - 4.0,
            Values::Quarters => (below(33) - 16.0) / 4.0,
            Values::Thirds => (below(31) - 15.0) / 3.0,
            Values::Signs => below(3) - 1.0,
            Values::Powers => [-4.0, -2.0, -1.0, 1.0, 2.0, 4.0][dice(seed, index, 6)],
            Values::Truth => below(2),
            Values::Bytes => [0.0, 1.0, 2.0, 3.0, 200.0][dice(seed, index, 5)],
            Values::Rows(n) => below(n + 2) - 1.0,
        }
    }

    /// Suitable values for an element type.
    pub fn of(dtype: DType) -> Self {
        match dtype {
            DType::Bool => Values::Truth,
            DType::U8 => Values::Bytes,
            _ => Values::Integers,
        }
    }
}

/// An operation with its operands and results.
#[derive(Clone)]
pub struct Case {
    /// How a message names it.
    pub name: String,
    /// The operation.
    pub op: Op,
    /// The operands, and what they are filled with.
    pub operands: Vec<(Type, Values)>,
    /// The results.
    pub results: Vec<Type>,
    /// The relative difference that counts as equal.
    pub tolerance: f64,
}

impl Case {
    pub fn new(op: Op, operands: &[(DType, &[usize], Values)], results: &[(DType, &[usize])]) -> Self {
        let operands: Vec<_> = operands.iter().map(|&(d, s, v)| (Type::new(d, s), v)).collect();
        let results: Vec<_> = results.iter().map(|&(d, s)| Type::new(d, s)).collect();
        let mesh = Mesh::single();
        let shapes: Vec<String> = operands.iter().map(|(t, _)| t.display(&mesh)).collect();
        let to: Vec<String> = results.iter().map(|t| t.display(&mesh)).collect();
        let name = match &op {
            Op::Map { subs, .. } | Op::Einsum { subs } | Op::Reduce { subs, .. } => format!("{} {subs}", op.name()),
            op => format!("{op:?}"),
        };
        let name = format!("{name}: {} -> {}", shapes.join(", "), to.join(", "));
        Case { name, op, operands, results, tolerance: 0.0 }
    }

    /// A case of an operation with subscripts; `sizes` are the sizes of its letters.
    pub fn letters(
        op: impl Fn(Subscripts) -> Op,
        subs: &str,
        sizes: &[usize],
        kinds: &[(DType, Values)],
        result: DType,
    ) -> Self {
        let subs = Subscripts::parse(subs).unwrap();
        let shape = |row: &Vec<u8>| row.iter().map(|&l| sizes[l as usize]).collect::<Vec<_>>();
        let shapes: Vec<_> = subs.operands.iter().map(shape).collect();
        let operands: Vec<_> = shapes.iter().zip(kinds).map(|(s, &(d, v))| (d, s.as_slice(), v)).collect();
        let to = shape(&subs.result);
        Case::new(op(subs.clone()), &operands, &[(result, to.as_slice())])
    }

    pub fn roughly(self) -> Self {
        Case { tolerance: 1e-9, ..self }
    }
}

const F: (DType, Values) = (DType::F64, Values::Integers);

fn map(f: MapFn) -> impl Fn(Subscripts) -> Op {
    move |subs| Op::Map { f, subs }
}

/// The element types and values of the `n` operands of a function.
fn kinds(f: MapFn, n: usize, dtype: DType) -> Vec<(DType, Values)> {
    let mut kinds = vec![(dtype, Values::of(dtype)); n];
    match f {
        MapFn::Select => kinds[0] = (DType::Bool, Values::Truth),
        MapFn::Div | MapFn::Rem if dtype.is_float() => kinds[1].1 = Values::Powers,
        MapFn::Floor | MapFn::Ceil | MapFn::Round | MapFn::Cast(DType::I32) => kinds[0].1 = Values::Quarters,
        MapFn::Cast(DType::Bool) => kinds[0].1 = Values::Signs,
        MapFn::Cast(_) => kinds[0].1 = Values::Thirds,
        MapFn::Eq | MapFn::Ne => kinds.fill((dtype, Values::Signs)),
        _ => {}
    }
    kinds
}

pub fn map_case(f: MapFn, subs: &str, sizes: &[usize], dtype: DType) -> Case {
    let n = subs.split("->").next().unwrap().split(',').count();
    let kinds = kinds(f, n, dtype);
    let dtypes: Vec<DType> = kinds.iter().map(|k| k.0).collect();
    let case = Case::letters(map(f), subs, sizes, &kinds, f.result_dtype(&dtypes));
    let exact = matches!(f, MapFn::Add | MapFn::Sub | MapFn::Mul | MapFn::Max | MapFn::Min | MapFn::Select);
    if exact { case } else { case.roughly() }
}

pub fn functions_of_one_operand() -> Vec<Case> {
    let casts = [DType::F32, DType::BF16, DType::I32, DType::Bool].map(MapFn::Cast);
    let logical = |f: &MapFn| *f == MapFn::Not;
    let unary = MapFn::ALL.iter().copied().filter(|f| f.arity() == Some(1)).chain(casts);
    unary
        .flat_map(|f| {
            let dtype = if logical(&f) { DType::Bool } else { DType::F64 };
            [
                map_case(f, "ab->ab", &[5, 3], dtype),
                map_case(f, "ab->ba", &[2, 3], dtype),
                map_case(f, "a->ba", &[5, 2], dtype),
                map_case(f, "a->a", &[1], dtype),
            ]
        })
        .collect()
}

pub fn linear_functions_of_two_operands() -> Vec<Case> {
    let functions = [MapFn::Add, MapFn::Sub, MapFn::Mul, MapFn::Div];
    functions
        .into_iter()
        .flat_map(|f| {
            let case = |subs: &str, sizes: &[usize]| map_case(f, subs, sizes, DType::F64);
            [
                case("ab,ab->ab", &[5, 2]),
                case("ab,ba->ab", &[2, 3]),
                case("ab,b->ab", &[3, 5]),
                case("a,ab->ba", &[2, 5]),
                case("ab,->ab", &[5, 3]),
                case("a,b->ab", &[3, 2]),
                case("a,a->ab", &[5, 2]),
                case("a,a->a", &[1]),
            ]
        })
        .collect()
}

pub fn other_functions_of_two_operands() -> Vec<Case> {
    let linear = [MapFn::Add, MapFn::Sub, MapFn::Mul, MapFn::Div];
    let binary = MapFn::ALL.iter().copied().filter(|f| f.arity() == Some(2) && !linear.contains(f));
    binary
        .flat_map(|f| {
            let dtype = if matches!(f, MapFn::And | MapFn::Or) { DType::Bool } else { DType::F64 };
            [
                map_case(f, "a,a->a", &[5], dtype),
                map_case(f, "a,ab->ab", &[2, 3], dtype),
                map_case(f, "a,->a", &[3], dtype),
            ]
        })
        .collect()
}

pub fn functions_of_three_operands() -> Vec<Case> {
    let cases = [
        map_case(MapFn::Add, "a,a,a->a", &[5], DType::F64),
        map_case(MapFn::Add, "ab,,b->ab", &[3, 2], DType::F64),
        map_case(MapFn::Select, "a,a,a->a", &[5], DType::F64),
        map_case(MapFn::Select, "a,ab,->ab", &[2, 3], DType::F64),
        map_case(MapFn::Select, "b,a,->ab", &[2, 3], DType::F64),
    ];
    cases.into_iter().collect()
}

/// Quotients of integers are rounded, and bytes and truth values saturate, so fewer functions are linear in them.
pub fn functions_of_other_element_types() -> Vec<Case> {
    let arithmetic = [MapFn::Add, MapFn::Sub, MapFn::Mul, MapFn::Neg, MapFn::Identity];
    let types = [DType::I64, DType::I32, DType::U8, DType::Bool];
    let cases = types.into_iter().flat_map(|dtype| {
        arithmetic.into_iter().map(move |f| {
            let subs = if f.arity() == Some(1) { "a->a" } else { "a,a->a" };
            map_case(f, subs, &[5], dtype)
        })
    });
    let quotients = [DType::I64, DType::I32].map(|dtype| {
        let kinds = [(dtype, Values::Integers), (dtype, Values::Powers)];
        Case::letters(map(MapFn::Div), "a,a->a", &[5], &kinds, dtype)
    });
    let sums = types.into_iter().flat_map(|dtype| {
        let kind = (dtype, Values::of(dtype));
        let product = Case::letters(|subs| Op::Einsum { subs }, "ab,b->a", &[2, 5], &[kind, kind], dtype);
        let reduction = |op| Case::letters(move |subs| Op::Reduce { op, subs }, "ab->a", &[2, 5], &[kind], dtype);
        std::iter::once(product).chain(ReduceOp::ALL.map(reduction))
    });
    cases.chain(quotients).chain(sums).collect()
}

pub fn products() -> Vec<Case> {
    let case =
        |subs: &str, sizes: &[usize]| Case::letters(|subs| Op::Einsum { subs }, subs, sizes, &[F, F], DType::F64);
    vec![
        case("ab,bc->ac", &[2, 5, 3]),
        case("ab,bc->ca", &[5, 2, 2]),
        case("ab,ac->bc", &[3, 2, 5]),
        case("ab,ab->", &[5, 2]),
        case("ab,b->a", &[3, 5]),
        case("a,b->ab", &[5, 3]),
        case("a,b->b", &[5, 3]),
        case("a,a->a", &[5]),
        case("ab,bc->ac", &[1, 2, 1]),
    ]
}

pub fn batched_products() -> Vec<Case> {
    let case =
        |subs: &str, sizes: &[usize]| Case::letters(|subs| Op::Einsum { subs }, subs, sizes, &[F, F], DType::F64);
    vec![case("abc,acd->abd", &[2, 3, 2, 2]), case("abc,bc->ab", &[2, 3, 5])]
}

pub fn reductions() -> Vec<Case> {
    let reduce = |op: ReduceOp| move |subs: Subscripts| Op::Reduce { op, subs };
    ReduceOp::ALL
        .into_iter()
        .flat_map(|op| {
            let kind = if op == ReduceOp::Prod { (DType::F64, Values::Powers) } else { F };
            let case = |subs: &str, sizes: &[usize]| Case::letters(reduce(op), subs, sizes, &[kind], DType::F64);
            [
                case("ab->a", &[3, 5]),
                case("ab->b", &[2, 3]),
                case("ab->", &[5, 2]),
                case("abc->ca", &[2, 3, 5]),
                case("ab->a", &[2, 1]),
            ]
        })
        .collect()
}

pub fn cutting_and_joining() -> Vec<Case> {
    let slice = |dim, start, step| Op::Slice { dim, start, step };
    let pad = |dim, low, value: f64| Op::Pad { dim, low, value: Scalar::float(value) };
    let one = |op: Op, from: &[usize], to: &[usize]| Case::new(op, &[float(from)], &[(DType::F64, to)]);
    let concat = |dim, from: &[&[usize]], to: &[usize]| {
        let operands: Vec<_> = from.iter().map(|s| float(s)).collect();
        Case::new(Op::Concat { dim }, &operands, &[(DType::F64, to)])
    };
    vec![
        one(slice(0, 1, 2), &[5, 3], &[2, 3]),
        one(slice(1, 0, 1), &[5, 3], &[5, 2]),
        one(Op::Index { dim: 0, index: 1 }, &[3, 5], &[5]),
        one(Op::Index { dim: 1, index: 4 }, &[3, 5], &[3]),
        one(Op::Index { dim: 1, index: 1 }, &[2, 3, 5], &[2, 5]),
        one(pad(0, 1, 0.0), &[3, 5], &[5, 5]),
        one(pad(1, 0, 7.0), &[3, 2], &[3, 5]),
        one(Op::CumSum { dim: 0 }, &[5, 3], &[5, 3]),
        one(Op::CumSum { dim: 1 }, &[2, 3], &[2, 3]),
        concat(0, &[&[3], &[2]], &[5]),
        concat(1, &[&[3, 2], &[3, 3]], &[3, 5]),
        concat(0, &[&[2], &[3], &[2]], &[7]),
    ]
}

pub fn sorting() -> Vec<Case> {
    let case =
        |from: &[usize], to: &[usize]| Case::new(Op::TopK, &[float(from)], &[(DType::F64, to), (DType::I64, to)]);
    vec![case(&[5], &[2]), case(&[3, 5], &[3, 2])]
}

pub fn tables() -> Vec<Case> {
    let take = |table: &[usize], index: &[usize]| {
        let to = [index, &table[1..]].concat();
        let index = (DType::I64, index, Values::Rows(table[0]));
        Case::new(Op::Take, &[float(table), index], &[(DType::F64, to.as_slice())])
    };
    let scatter = |rows: usize, index: &[usize], rest: &[usize]| {
        let (update, to) = ([index, rest].concat(), [&[rows], rest].concat());
        let index = (DType::I64, index, Values::Rows(rows));
        Case::new(Op::ScatterAdd, &[index, float(&update)], &[(DType::F64, to.as_slice())])
    };
    let put = |table: &[usize], index: &[usize]| {
        let rows = [index, &table[1..]].concat();
        let index = (DType::I64, index, Values::Rows(table[0]));
        Case::new(Op::Put, &[float(table), index, float(&rows)], &[(DType::F64, table)])
    };
    vec![
        take(&[5, 2], &[3]),
        take(&[3, 5], &[2]),
        take(&[5], &[3, 2]),
        take(&[3], &[]),
        scatter(3, &[5], &[2]),
        scatter(5, &[3], &[]),
        scatter(2, &[5, 3], &[]),
        put(&[5, 2], &[3]),
        put(&[3, 5], &[2]),
        put(&[5], &[3, 2]),
        put(&[3, 2], &[]),
    ]
}

pub fn reshapes() -> Vec<Case> {
    let case = |from: &[usize], to: &[usize]| Case::new(Op::Reshape, &[float(from)], &[(DType::F64, to)]);
    vec![
        case(&[5, 3], &[5, 3]),
        case(&[3, 2, 5], &[3, 10]),
        case(&[2, 3], &[6]),
        case(&[6], &[2, 3]),
        case(&[3, 5, 2], &[15, 2]),
        case(&[10, 3], &[5, 2, 3]),
        case(&[2, 6], &[4, 3]),
        case(&[5], &[1, 5]),
        case(&[5, 1], &[5]),
        case(&[3, 1, 2], &[1, 3, 2]),
    ]
}

/// Values without elements, and empty sums.
pub fn empty_dimensions() -> Vec<Case> {
    let sum = |op: ReduceOp| move |subs: Subscripts| Op::Reduce { op, subs };
    let take = Op::Take;
    let cases = [
        map_case(MapFn::Add, "a,a->a", &[0], DType::F64),
        map_case(MapFn::Mul, "ab,b->ab", &[3, 0], DType::F64),
        Case::letters(|subs| Op::Einsum { subs }, "ab,bc->ac", &[3, 0, 2], &[F, F], DType::F64),
        Case::letters(sum(ReduceOp::Sum), "ab->a", &[3, 0], &[F], DType::F64),
        Case::letters(sum(ReduceOp::Max), "ab->a", &[3, 0], &[F], DType::F64),
        Case::new(take, &[float(&[0, 3]), (DType::I64, &[2], Values::Rows(0))], &[(DType::F64, &[2, 3])]),
        Case::new(Op::Reshape, &[float(&[0, 3])], &[(DType::F64, &[3, 0])]),
    ];
    cases.into_iter().collect()
}

pub fn results_determined_only_by_their_type() -> Vec<Case> {
    let fill = |shape: &[usize]| Case::new(Op::Fill(Scalar::float(3.0)), &[], &[(DType::F64, shape)]);
    let iota = |n: usize| Case::new(Op::Iota, &[], &[(DType::I64, &[n])]);
    let s = Scalar::float;
    let all =
        [Distribution::Bernoulli(s(0.4)), Distribution::Uniform(s(-1.0), s(2.0)), Distribution::Normal(s(0.0), s(1.0))];
    let random = all.map(|distribution| {
        let op = Op::Random { distribution, stream: 3 };
        Case::new(op, &[(DType::I64, &[], Values::Integers)], &[(DType::F64, &[5, 3])])
    });
    [fill(&[5, 3]), fill(&[]), iota(5), iota(3), iota(2)].into_iter().chain(random).collect()
}

fn float(shape: &[usize]) -> (DType, &[usize], Values) {
    (DType::F64, shape, Values::Integers)
}
