//! The operations of a program: few and primitive.
//!
//! A softmax, a norm or an attention is not an operation but consists of several. The pass that fuses kernels
//! recognizes them. Elementwise operations, products and reductions carry [`Subscripts`], so a transpose or a broadcast
//! costs nothing and has no rule of its own.

use crate::DType;
use crate::input::InputId;
use crate::mesh::{AxisId, AxisSet};
use crate::subscripts::Subscripts;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A unit of the model: parameters that are gathered together if they are sharded over a data axis, and freed together,
/// like those of a module that is passed to `torch.distributed.fsdp.fully_shard`. The number only identifies the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnitId(pub u32);

/// A scalar constant. Floats compare by their bits, so that operations can be hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scalar {
    /// A float, as the bits of an `f64`.
    Float(u64),
    /// An integer.
    Int(i64),
    /// A truth value.
    Bool(bool),
}

impl Scalar {
    /// A float scalar.
    pub fn float(x: f64) -> Self {
        Scalar::Float(x.to_bits())
    }

    /// The value as a float.
    pub fn as_f64(self) -> f64 {
        match self {
            Scalar::Float(bits) => f64::from_bits(bits),
            Scalar::Int(i) => i as f64,
            Scalar::Bool(b) => f64::from(b),
        }
    }

    /// The scalar with a value, of the kind that `dtype` needs.
    pub fn of(dtype: DType, x: f64) -> Self {
        match dtype {
            DType::Bool => Scalar::Bool(x != 0.0),
            d if d.is_float() => Scalar::float(x),
            _ => Scalar::Int(x as i64),
        }
    }
}

impl std::str::FromStr for Scalar {
    type Err = ();

    /// Reads what `Display` writes: `1` is an integer, `1.0`, `1e-5`, `inf` and `NaN` are floats.
    fn from_str(text: &str) -> Result<Self, ()> {
        if let Some(bits) = text.strip_prefix("NaN#") {
            let bits = u64::from_str_radix(bits, 16).map_err(|_| ())?;
            return if f64::from_bits(bits).is_nan() { Ok(Scalar::Float(bits)) } else { Err(()) };
        }
        match text {
            "true" => return Ok(Scalar::Bool(true)),
            "false" => return Ok(Scalar::Bool(false)),
            "NaN" => return Ok(Scalar::float(f64::NAN)),
            "inf" => return Ok(Scalar::float(f64::INFINITY)),
            "-inf" => return Ok(Scalar::float(f64::NEG_INFINITY)),
            _ => {}
        }
        if text.contains(['.', 'e', 'E']) {
            return text.parse().map(Scalar::float).map_err(|_| ());
        }
        text.parse().map(Scalar::Int).map_err(|_| ())
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Scalars compare by bits, so every NaN except the canonical one is printed with its bits.
            Scalar::Float(bits) if f64::from_bits(*bits).is_nan() && *bits != f64::NAN.to_bits() => {
                write!(f, "NaN#{bits:016x}")
            }
            Scalar::Float(bits) => write!(f, "{:?}", f64::from_bits(*bits)),
            Scalar::Int(i) => write!(f, "{i}"),
            Scalar::Bool(b) => write!(f, "{b}"),
        }
    }
}

/// How values combine in a reduction, local or across ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum ReduceOp {
    Sum,
    Max,
    Min,
    Prod,
}

impl ReduceOp {
    /// Every reduction.
    pub const ALL: [ReduceOp; 4] = [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min, ReduceOp::Prod];

    /// The name used in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            ReduceOp::Sum => "sum",
            ReduceOp::Max => "max",
            ReduceOp::Min => "min",
            ReduceOp::Prod => "prod",
        }
    }

    /// The reduction with a name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        ReduceOp::ALL.into_iter().find(|r| r.name() == name)
    }

    /// The neutral element, which is also the result of an empty reduction.
    pub const fn identity(self) -> f64 {
        match self {
            ReduceOp::Sum => 0.0,
            ReduceOp::Max => f64::NEG_INFINITY,
            ReduceOp::Min => f64::INFINITY,
            ReduceOp::Prod => 1.0,
        }
    }

    /// The neutral element as an element type holds it: for a maximum, the least value of an integer type instead of
    /// −∞, and false for truth values.
    pub const fn identity_of(self, dtype: DType) -> f64 {
        let (least, greatest) = match dtype {
            DType::F64 | DType::F32 | DType::BF16 | DType::F16 => (f64::NEG_INFINITY, f64::INFINITY),
            DType::I64 => (i64::MIN as f64, i64::MAX as f64),
            DType::I32 => (i32::MIN as f64, i32::MAX as f64),
            DType::U8 => (0.0, 255.0),
            DType::Bool => (0.0, 1.0),
        };
        match self {
            ReduceOp::Max => least,
            ReduceOp::Min => greatest,
            ReduceOp::Sum | ReduceOp::Prod => self.identity(),
        }
    }

    /// Combines two values.
    pub fn combine(self, a: f64, b: f64) -> f64 {
        match self {
            ReduceOp::Sum => a + b,
            // NaN must propagate, as it does in a reduction on a single device.
            ReduceOp::Max => {
                if a.is_nan() || a > b {
                    a
                } else {
                    b
                }
            }
            ReduceOp::Min => {
                if a.is_nan() || a < b {
                    a
                } else {
                    b
                }
            }
            ReduceOp::Prod => a * b,
        }
    }
}

macro_rules! map_fns {
    ($($variant:ident $name:literal $arity:literal),+ $(,)?) => {
        /// A function applied to every element.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[allow(missing_docs)]
        pub enum MapFn { $($variant),+, #[doc = "Conversion to another element type."] Cast(DType) }

        impl MapFn {
            /// Every function except casts.
            pub const ALL: &'static [MapFn] = &[$(MapFn::$variant),+];

            /// The name used in the text form; a cast is `cast.bf16` there.
            pub fn name(self) -> String {
                match self { $(MapFn::$variant => $name.to_string(),)+ MapFn::Cast(d) => format!("cast.{d}") }
            }

            /// Number of operands; `None` for a sum, which takes two or more.
            pub fn arity(self) -> Option<usize> {
                match self { $(MapFn::$variant => Some($arity).filter(|&n: &usize| n > 0),)+ MapFn::Cast(_) => Some(1) }
            }
        }
    };
}

map_fns! {
    Identity "identity" 1,
    Add "add" 0, Sub "sub" 2, Mul "mul" 2, Div "div" 2, Max "max" 2, Min "min" 2, Pow "pow" 2, Rem "rem" 2,
    Neg "neg" 1, Abs "abs" 1, Sign "sign" 1, Exp "exp" 1, Log "log" 1, Sqrt "sqrt" 1, Rsqrt "rsqrt" 1,
    Recip "recip" 1, Tanh "tanh" 1, Erf "erf" 1, Sin "sin" 1, Cos "cos" 1, Sigmoid "sigmoid" 1,
    Floor "floor" 1, Ceil "ceil" 1, Round "round" 1, Not "not" 1,
    Eq "eq" 2, Ne "ne" 2, Lt "lt" 2, Le "le" 2, Gt "gt" 2, Ge "ge" 2, And "and" 2, Or "or" 2,
    Select "select" 3,
}

impl MapFn {
    /// The function with a name, if there is one.
    pub fn from_name(name: &str) -> Option<MapFn> {
        if let Some(d) = name.strip_prefix("cast.") {
            return DType::from_name(d).map(MapFn::Cast);
        }
        MapFn::ALL.iter().copied().find(|f| f.name() == name)
    }

    /// The element type of the result, given those of the operands.
    pub fn result_dtype(self, operands: &[DType]) -> DType {
        match self {
            MapFn::Cast(d) => d,
            MapFn::Eq | MapFn::Ne | MapFn::Lt | MapFn::Le | MapFn::Gt | MapFn::Ge => DType::Bool,
            MapFn::Not | MapFn::And | MapFn::Or => DType::Bool,
            MapFn::Select => operands[1],
            _ => operands[0],
        }
    }

    /// The sets of operands in which the function is *jointly* linear. The terms of a partial sum pass through the
    /// function exactly if they are the operands of one such set and every other operand is the same on every rank.
    pub fn linear(self) -> &'static [&'static [usize]] {
        match self {
            MapFn::Add => &[&[]], // All operands jointly, whose number varies: see [`MapFn::is_sum`].
            MapFn::Sub => &[&[0, 1]],
            MapFn::Mul => &[&[0], &[1]],
            MapFn::Div | MapFn::Neg | MapFn::Identity => &[&[0]],
            MapFn::Select => &[&[1, 2]],
            _ => &[],
        }
    }

    /// Whether the function is a sum of all its operands.
    pub fn is_sum(self) -> bool {
        self == MapFn::Add
    }

    /// Whether the function is increasing on *all* numbers and ±∞, so that a maximum passes through it. A logarithm or
    /// a square root is not: a rank whose own term is negative (or −∞, the maximum of nothing) would turn the maximum
    /// into NaN.
    pub fn is_increasing(self) -> bool {
        matches!(self, MapFn::Exp | MapFn::Tanh | MapFn::Erf | MapFn::Sigmoid | MapFn::Identity)
    }

    /// Whether the order of the operands does not matter.
    pub fn is_commutative(self) -> bool {
        matches!(
            self,
            MapFn::Add | MapFn::Mul | MapFn::Max | MapFn::Min | MapFn::Eq | MapFn::Ne | MapFn::And | MapFn::Or
        )
    }

    /// Evaluates the function in double precision.
    pub fn eval(self, x: &[f64]) -> f64 {
        let truth = f64::from;
        match self {
            MapFn::Identity => x[0],
            MapFn::Add => x.iter().sum(),
            MapFn::Sub => x[0] - x[1],
            MapFn::Mul => x[0] * x[1],
            MapFn::Div => x[0] / x[1],
            MapFn::Max => ReduceOp::Max.combine(x[0], x[1]),
            MapFn::Min => ReduceOp::Min.combine(x[0], x[1]),
            MapFn::Pow => x[0].powf(x[1]),
            MapFn::Rem => x[0] - x[1] * (x[0] / x[1]).floor(),
            MapFn::Neg => -x[0],
            MapFn::Abs => x[0].abs(),
            MapFn::Sign => {
                if x[0] > 0.0 {
                    1.0
                } else if x[0] < 0.0 {
                    -1.0
                } else {
                    x[0]
                }
            }
            MapFn::Exp => x[0].exp(),
            MapFn::Log => x[0].ln(),
            MapFn::Sqrt => x[0].sqrt(),
            MapFn::Rsqrt => 1.0 / x[0].sqrt(),
            MapFn::Recip => 1.0 / x[0],
            MapFn::Tanh => x[0].tanh(),
            MapFn::Erf => erf(x[0]),
            MapFn::Sin => x[0].sin(),
            MapFn::Cos => x[0].cos(),
            MapFn::Sigmoid => 1.0 / (1.0 + (-x[0]).exp()),
            MapFn::Floor => x[0].floor(),
            MapFn::Ceil => x[0].ceil(),
            MapFn::Round => x[0].round_ties_even(),
            MapFn::Not => truth(x[0] == 0.0),
            MapFn::Eq => truth(x[0] == x[1]),
            MapFn::Ne => truth(x[0] != x[1]),
            MapFn::Lt => truth(x[0] < x[1]),
            MapFn::Le => truth(x[0] <= x[1]),
            MapFn::Gt => truth(x[0] > x[1]),
            MapFn::Ge => truth(x[0] >= x[1]),
            MapFn::And => truth(x[0] != 0.0 && x[1] != 0.0),
            MapFn::Or => truth(x[0] != 0.0 || x[1] != 0.0),
            MapFn::Select => {
                if x[0] != 0.0 {
                    x[1]
                } else {
                    x[2]
                }
            }
            MapFn::Cast(d) => d.round(x[0]),
        }
    }
}

/// The error function in double precision.
pub fn erf(x: f64) -> f64 {
    libm::erf(x)
}

/// How random elements are distributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Distribution {
    /// 1 with this probability, otherwise 0.
    Bernoulli(Scalar),
    /// Uniform in `[low, high)`.
    Uniform(Scalar, Scalar),
    /// Normal with this mean and standard deviation.
    Normal(Scalar, Scalar),
}

/// An operation. The [`Node`](crate::Node) has the types of its results.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// A value that comes from outside. The type of the node may split the dimensions of `layout` into factors; both
    /// are row-major, so the elements have the same order.
    Input {
        /// The identity of the input.
        id: InputId,
        /// Shape as the model knows it.
        layout: Vec<usize>,
        /// The unit that a parameter belongs to; `None` if it belongs to the model as a whole, or if the input is not a
        /// parameter.
        unit: Option<UnitId>,
    },
    /// A tensor of one repeated value. The shape is in the type.
    Fill(Scalar),
    /// `0, 1, 2, …` along its only dimension. If that is sharded, each rank counts from its own offset.
    Iota,
    /// Random elements. They are a function of the operand, which is the seed, of `stream` and of the global index, and
    /// hence the same on every mesh. The generator is counter-based, after Salmon et al., "Parallel random numbers: as
    /// easy as 1, 2, 3".
    Random {
        /// The distribution.
        distribution: Distribution,
        /// Distinguishes the random tensors of one program.
        stream: u64,
    },
    /// A function that is applied to corresponding elements.
    Map {
        /// The function.
        f: MapFn,
        /// Which dimension of each operand is which dimension of the result.
        subs: Subscripts,
    },
    /// A product, summed over the letters that the result lacks. Every matrix product is one.
    Einsum {
        /// The subscripts of the two operands and the result.
        subs: Subscripts,
    },
    /// A reduction over the letters that the result lacks.
    Reduce {
        /// How elements combine.
        op: ReduceOp,
        /// The subscripts of the operand and the result.
        subs: Subscripts,
    },
    /// The same elements in row-major order with another shape. Canonicalizing leaves it only where factored dimensions
    /// cannot express it.
    Reshape,
    /// The indices `start, start+step, …` of one dimension. The type of the result has their number.
    Slice {
        /// The dimension that is cut.
        dim: usize,
        /// The first index.
        start: usize,
        /// The distance between indices.
        step: usize,
    },
    /// One index of a dimension, which the result does not have.
    Index {
        /// The dimension.
        dim: usize,
        /// The index.
        index: usize,
    },
    /// The operands one after the other along one dimension.
    Concat {
        /// The dimension.
        dim: usize,
    },
    /// Copies of a value before and after the indices of one dimension: `low` of them before, and after as many as the
    /// type of the result needs.
    Pad {
        /// The dimension.
        dim: usize,
        /// The number of copies before the first index.
        low: usize,
        /// The value.
        value: Scalar,
    },
    /// `table[v, h…], index[t…] -> [t…, h…]`: gathers rows of a table.
    Take,
    /// `index[t…], update[t…, h…] -> [v, h…]`: adds each update to the row of its index, starting from zeros.
    ScatterAdd,
    /// `table[v, h…], index[t…], rows[t…, h…] -> [v, h…]`: the table after each row `index[t…]` is replaced by
    /// `rows[t…]`. If a number occurs several times, its last row counts; a number outside the table is ignored. XLA's
    /// `dynamic_update_slice` is the case of consecutive numbers.
    Put,
    /// Inclusive prefix sums along a dimension.
    CumSum {
        /// The dimension.
        dim: usize,
    },
    /// The `k` largest elements along the last dimension in descending order, and their indices. These are two results.
    TopK,
    /// Combines the terms of a partial value on every rank of `axes`.
    AllReduce {
        /// How terms combine.
        op: ReduceOp,
        /// Over which axes.
        axes: AxisSet,
    },
    /// Joins the chunks into which the minor-most `axes` cut a dimension.
    AllGather {
        /// The dimension.
        dim: usize,
        /// The axes, major to minor.
        axes: Vec<AxisId>,
    },
    /// Combines the terms of a partial value and leaves each rank its chunk of a dimension.
    ReduceScatter {
        /// How terms combine.
        op: ReduceOp,
        /// The dimension that is cut.
        dim: usize,
        /// The axes, major to minor.
        axes: Vec<AxisId>,
    },
    /// Moves the minor-most `axes` of one dimension to another, where they become the minor-most ones.
    AllToAll {
        /// The dimension that is joined.
        from: usize,
        /// The dimension that is cut.
        to: usize,
        /// The axes, major to minor.
        axes: Vec<AxisId>,
    },
    /// Keeps this rank's chunk of a dimension. It does not communicate.
    ShardSlice {
        /// The dimension.
        dim: usize,
        /// The axes, major to minor.
        axes: Vec<AxisId>,
    },
    /// Turns an invariant value into a partial one: the first rank keeps the value, the others hold the neutral element
    /// of the reduction. It does not communicate.
    ToPartial {
        /// How terms combine.
        op: ReduceOp,
        /// Over which axes.
        axes: AxisSet,
    },
}

impl Op {
    /// The mnemonic of the text form.
    pub fn name(&self) -> String {
        match self {
            Op::Input { .. } => "input".into(),
            Op::Fill(_) => "fill".into(),
            Op::Iota => "iota".into(),
            Op::Random { .. } => "random".into(),
            Op::Map { f, .. } => f.name(),
            Op::Einsum { .. } => "einsum".into(),
            Op::Reduce { op, .. } => format!("reduce_{}", op.name()),
            Op::Reshape => "reshape".into(),
            Op::Slice { .. } => "slice".into(),
            Op::Index { .. } => "index".into(),
            Op::Concat { .. } => "concat".into(),
            Op::Pad { .. } => "pad".into(),
            Op::Take => "take".into(),
            Op::ScatterAdd => "scatter_add".into(),
            Op::Put => "put".into(),
            Op::CumSum { .. } => "cumsum".into(),
            Op::TopK => "top_k".into(),
            Op::AllReduce { .. } => "all_reduce".into(),
            Op::AllGather { .. } => "all_gather".into(),
            Op::ReduceScatter { .. } => "reduce_scatter".into(),
            Op::AllToAll { .. } => "all_to_all".into(),
            Op::ShardSlice { .. } => "shard_slice".into(),
            Op::ToPartial { .. } => "to_partial".into(),
        }
    }

    /// Number of operands; `None` if it varies.
    pub fn arity(&self) -> Option<usize> {
        match self {
            Op::Input { .. } | Op::Fill(_) | Op::Iota => Some(0),
            Op::Map { f, .. } => f.arity(),
            Op::Concat { .. } => None,
            Op::Einsum { .. } | Op::Take | Op::ScatterAdd => Some(2),
            Op::Put => Some(3),
            _ => Some(1),
        }
    }

    /// Number of results.
    pub fn results(&self) -> usize {
        if *self == Op::TopK { 2 } else { 1 }
    }

    /// Whether the operation communicates.
    pub fn is_collective(&self) -> bool {
        matches!(self, Op::AllReduce { .. } | Op::AllGather { .. } | Op::ReduceScatter { .. } | Op::AllToAll { .. })
    }

    /// Whether the operation changes only the placement of a value, not the value.
    pub fn is_redistribution(&self) -> bool {
        self.is_collective() || matches!(self, Op::ShardSlice { .. } | Op::ToPartial { .. })
    }

    /// Whether the result is computed from its type alone, so that the same local tensor can stand for different
    /// values. Such operations carry their full type, placement included.
    pub fn carries_type(&self) -> bool {
        matches!(self, Op::Fill(_) | Op::Iota | Op::Random { .. })
    }

    /// The axes of a redistribution; empty for other operations.
    pub fn axes(&self) -> AxisSet {
        match self {
            Op::AllReduce { axes, .. } | Op::ToPartial { axes, .. } => *axes,
            Op::AllGather { axes, .. }
            | Op::ReduceScatter { axes, .. }
            | Op::AllToAll { axes, .. }
            | Op::ShardSlice { axes, .. } => axes.iter().copied().collect(),
            _ => AxisSet::EMPTY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_accurate() {
        // Reference values from Abramowitz and Stegun, table 7.1, and mpmath.
        for (x, y) in [(0.5, 0.520_499_877_813_046_5), (1.0, 0.842_700_792_949_714_9), (3.0, 0.999_977_909_503_001_4)] {
            assert!((erf(x) - y).abs() < 1e-15, "{x}: {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }

    #[test]
    fn names_are_unique_and_parse_back() {
        for &f in MapFn::ALL {
            assert_eq!(MapFn::from_name(&f.name()), Some(f));
        }
        assert_eq!(MapFn::from_name("cast.bf16"), Some(MapFn::Cast(DType::BF16)));
    }
}
