//! Matrix products: the library's words, an operand packed first where it needs that, and the generated
//! kernel for everything else.

use super::kernels::Launch;
use super::rank::Rank;
use super::space::Axis;
use super::{contract, copy};
use crate::device::cuda::gemm::{self, Gemm};
use tpc_ir::program::{Contract, ContractDim};

/// Multiplications below which packing is not worth a launch.
const WORTH_PACKING: usize = 1 << 20;

/// A product as a library executes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    /// Kernels that pack operands.
    pub packing: Vec<Launch>,
    /// What the library computes then.
    pub gemm: Gemm,
}

/// How the library computes a product, if it can.
pub(super) fn library(rank: &mut Rank<'_>, c: &Contract) -> Result<Option<Product>, String> {
    let places = contract::places(rank, c)?.map(|p| rank.at(p));
    if let Some(gemm) = gemm::of(c, places) {
        return Ok(Some(Product { packing: Vec::new(), gemm }));
    }
    let all = c.batch.iter().chain(&c.m).chain(&c.n).chain(&c.k);
    if all.map(|d| d.size).product::<usize>() < WORTH_PACKING {
        return Ok(None);
    }
    for (left, right) in [(true, false), (false, true), (true, true)] {
        let mut packed = c.clone();
        let left_bytes = if left { dense(&mut packed, |d| &mut d.left, true) * c.left.dtype.bytes() } else { 0 };
        let right_bytes = if right { dense(&mut packed, |d| &mut d.right, false) * c.right.dtype.bytes() } else { 0 };
        // Whether it helps is known before memory is taken.
        if gemm::of(&packed, places).is_none() {
            continue;
        }
        let mut at = places;
        let mut packing = Vec::new();
        if left {
            let to = rank.scratch(left_bytes);
            at[0] = rank.at(to);
            let axes = axes([&c.batch, &c.m, &c.k], [&packed.batch, &packed.m, &packed.k], |d| d.left);
            packing.extend(copy::strided(rank, c.left.dtype.bytes(), axes, (places[0], at[0]))?);
        }
        if right {
            let to = rank.scratch(right_bytes);
            at[1] = rank.at(to);
            let axes = axes([&c.batch, &c.k, &c.n], [&packed.batch, &packed.k, &packed.n], |d| d.right);
            packing.extend(copy::strided(rank, c.right.dtype.bytes(), axes, (places[1], at[1]))?);
        }
        return Ok(gemm::of(&packed, at).map(|gemm| Product { packing, gemm }));
    }
    Ok(None)
}

/// Dimensions, and by what they are ordered.
type Ordered<'a> = (&'a mut Vec<ContractDim>, &'a dyn Fn(&ContractDim) -> usize);

/// Gives an operand dense strides: batches, then rows, then the sum, or batches, the sum, and columns,
/// each of them in the order in which the result or the other operand has them, so that they nest there,
/// too. The number of its elements.
fn dense(c: &mut Contract, stride: fn(&mut ContractDim) -> &mut isize, left: bool) -> usize {
    let of_out = |d: &ContractDim| d.out.unsigned_abs();
    let of_other = move |d: &ContractDim| if left { d.right } else { d.left }.unsigned_abs();
    let (sum, own, batch): (Ordered<'_>, Ordered<'_>, Ordered<'_>) =
        ((&mut c.k, &of_other), (if left { &mut c.m } else { &mut c.n }, &of_out), (&mut c.batch, &of_out));
    let mut next = 1;
    for (dims, key) in if left { [sum, own, batch] } else { [own, sum, batch] } {
        let mut order: Vec<usize> = (0..dims.len()).collect();
        order.sort_by_key(|&i| key(&dims[i]));
        for i in order {
            *stride(&mut dims[i]) = next as isize;
            next *= dims[i].size;
        }
    }
    next
}

/// The axes of a copy from one layout to the other.
fn axes(from: [&Vec<ContractDim>; 3], to: [&Vec<ContractDim>; 3], stride: fn(&ContractDim) -> isize) -> Vec<Axis> {
    let pairs = from.into_iter().flatten().zip(to.into_iter().flatten());
    pairs
        .filter(|(f, _)| f.size != 1)
        .map(|(f, t)| Axis { size: f.size, strides: vec![stride(f), stride(t)] })
        .collect()
}
