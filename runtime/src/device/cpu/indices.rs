//! Computes positions as floats. A mask compares indices for every score, and a vector holds half as many integer lanes
//! as f32 lanes; f32 represents all integers below 2²⁴.

use tpc_ir::program::Instruction;
use tpc_ir::{DType, MapFn};

/// All integers up to this are exact in f32.
const EXACT: f64 = (1 << 24) as f64;

/// Converts indices, and numbers that are added to them, to f32 where only comparisons read them. `extents` are the
/// sizes of the dimensions.
pub(super) fn as_floats(body: &[Instruction], extents: &[usize]) -> Vec<Instruction> {
    // The largest magnitude of each register that may be a float.
    let mut reach: Vec<Option<f64>> = Vec::with_capacity(body.len());
    for instruction in body {
        let of = |r: &usize| reach[*r];
        let known = match instruction {
            Instruction::Index { dim, offset, dtype: DType::I64 } => extents.get(*dim).map(|n| (n + offset) as f64),
            Instruction::Constant(x, DType::I64) => Some(x.as_f64().abs()),
            Instruction::Map { f: MapFn::Add | MapFn::Sub, args, dtype: DType::I64 } => args.iter().map(of).sum(),
            _ => None,
        };
        reach.push(known.filter(|&x| x < EXACT));
    }
    // Operands of one comparison are converted together or not at all.
    loop {
        let mut kept = reach.clone();
        for (at, instruction) in body.iter().enumerate() {
            let args: &[usize] = match instruction {
                Instruction::Map { args, .. } => args,
                Instruction::ReduceRow { arg, .. } | Instruction::Store { arg, .. } => std::slice::from_ref(arg),
                Instruction::Random { seed, .. } => std::slice::from_ref(seed),
                _ => &[],
            };
            let compares = matches!(instruction, Instruction::Map { f, .. } if super::vector::is_comparison(*f));
            let fits = (compares || reach[at].is_some()) && args.iter().all(|&a| reach[a].is_some());
            if !fits {
                args.iter().for_each(|&a| kept[a] = None);
                if reach[at].is_some() && !args.is_empty() {
                    kept[at] = None;
                }
            }
        }
        if kept == reach {
            break;
        }
        reach = kept;
    }
    let narrowed = body.iter().zip(&reach).map(|(instruction, float)| {
        let mut made = instruction.clone();
        if float.is_some()
            && let Instruction::Index { dtype, .. } | Instruction::Constant(_, dtype) | Instruction::Map { dtype, .. } =
                &mut made
        {
            *dtype = DType::F32;
        }
        made
    });
    narrowed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpc_ir::Scalar;

    fn index(dim: usize) -> Instruction {
        Instruction::Index { dim, offset: 3, dtype: DType::I64 }
    }

    fn map(f: MapFn, args: &[usize], dtype: DType) -> Instruction {
        Instruction::Map { f, args: args.to_vec(), dtype }
    }

    fn types(body: &[Instruction], extents: &[usize]) -> Vec<DType> {
        let of = |ins: &Instruction| match ins {
            Instruction::Index { dtype, .. } | Instruction::Constant(_, dtype) | Instruction::Map { dtype, .. } => {
                *dtype
            }
            other => panic!("{other:?}"),
        };
        as_floats(body, extents).iter().map(of).collect()
    }

    #[test]
    fn comparisons_of_indices_and_sums() {
        use DType::{Bool, F32, I64};
        let window = vec![
            index(0),
            index(1),
            Instruction::Constant(Scalar::Int(7), I64),
            map(MapFn::Sub, &[1, 2], I64),
            map(MapFn::Lt, &[0, 3], Bool),
        ];
        assert_eq!(types(&window, &[100, 100]), [F32, F32, F32, F32, Bool]);
        // Registers are not converted if their integers are not exact, or another operation reads them.
        assert_eq!(types(&window, &[1 << 24, 100]), [I64, I64, I64, I64, Bool]);
        let mut read = window.clone();
        read.push(map(MapFn::Mul, &[1, 1], I64));
        assert_eq!(types(&read, &[100, 100]), [I64, I64, I64, I64, Bool, I64]);
        let apart = [window.clone(), vec![index(0), map(MapFn::Neg, &[5], I64)]].concat();
        assert_eq!(types(&apart, &[100, 100]), [F32, F32, F32, F32, Bool, I64, I64]);
    }
}
