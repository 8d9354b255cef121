//! Products with what is done with each of their elements before it is written.

use super::arena::Arena;
use super::contract::{self, Target, is_narrow};
use super::fused::FusedLoop;
use super::plan::{self, Beside};
use crate::device::extent::{Extent, resolve};
use crate::device::nodes::{self, Walk, must_keep_order};
use tpc_ir::DType;
use tpc_ir::program::{Buffer, Contract, Instruction, View};

/// A prepared product with its epilogue.
pub(crate) struct Prepared {
    product: contract::Prepared,
    then: Then,
}

/// What happens behind the product.
enum Then {
    Nothing,
    /// A loop over all of it, which reads it where it is written.
    Loop(Box<FusedLoop>),
    /// A loop over all of it, which lies in the scratch; the loop's accesses that read it.
    LoopOfScratch(Box<FusedLoop>, Vec<usize>),
}

/// Prepares a product and its epilogue.
pub(crate) fn prepare(c: &Contract, arena: &Arena, buffers: &[Buffer]) -> Result<Prepared, String> {
    if c.epilogue.is_empty() {
        let product = contract::prepare(c, Target::Arena, arena, buffers)?;
        return Ok(Prepared { product, then: Then::Nothing });
    }
    let touched = Touched::of(c, arena, buffers)?;
    let dtype = type_of_product(c)?;
    if c.out.dtype == dtype && !touched.strict && !touched.reads_out {
        let product = contract::prepare(&c.alone(c.out.clone()), Target::Arena, arena, buffers)?;
        let then = Then::Loop(Box::new(plan::prepare(&c.behind(&c.out), arena, buffers)?));
        return Ok(Prepared { product, then });
    }
    // The product alone is dense in the scratch.
    let sizes: Vec<usize> = c.dims().map(|d| d.size).collect();
    let beside = Beside::new(arena, buffers, sizes.iter().product::<usize>() * dtype.bytes());
    let raw = View::dense(beside.buffer(), dtype, sizes);
    let mut alone = c.alone(raw.clone());
    let dims = alone.batch.iter_mut().chain(&mut alone.m).chain(&mut alone.n);
    dims.zip(&raw.strides).for_each(|(d, &s)| d.out = s);
    let behind = Contract { epilogue: c.epilogue.clone(), ..alone.clone() }.behind(&raw);
    let product = contract::prepare(&alone, Target::Scratch, arena, buffers)?;
    let body = beside.prepare(&behind, arena, false)?;
    Ok(Prepared { product, then: Then::LoopOfScratch(Box::new(body), givens(&c.epilogue)) })
}

/// The places of the given values among the loads and stores of a loop behind.
fn givens(epilogue: &[Instruction]) -> Vec<usize> {
    let accesses = epilogue
        .iter()
        .filter(|i| matches!(i, Instruction::Load { .. } | Instruction::Store { .. } | Instruction::Given { .. }));
    accesses.enumerate().filter(|(_, i)| matches!(i, Instruction::Given { .. })).map(|(at, _)| at).collect()
}

/// The type in which the product is handed to the epilogue: the one it is computed in, or what the epilogue says if
/// that is no float.
fn type_of_product(c: &Contract) -> Result<DType, String> {
    let mut given = c.epilogue.iter().filter_map(|i| match i {
        Instruction::Given { dtype, .. } => Some(*dtype),
        _ => None,
    });
    let Some(first) = given.next() else { return Ok(c.out.dtype) };
    if !first.is_float() {
        return if given.all(|d| d == first) { Ok(first) } else { Err("the product is given in several types".into()) };
    }
    let mut narrow = is_narrow(c.left.dtype) && is_narrow(c.right.dtype) && is_narrow(first);
    for dtype in given {
        if !dtype.is_float() {
            return Err("the product is given in several types".into());
        }
        narrow &= is_narrow(dtype);
    }
    Ok(if narrow { DType::F32 } else { DType::F64 })
}

/// What is known of the memory that an epilogue touches.
struct Touched {
    /// Its instructions run one after the other on whole rows.
    strict: bool,
    /// It loads what lies where the result does.
    reads_out: bool,
}

impl Touched {
    /// Checks an epilogue.
    fn of(c: &Contract, arena: &Arena, buffers: &[Buffer]) -> Result<Self, String> {
        for (at, ins) in c.epilogue.iter().enumerate() {
            let wrong = match ins {
                Instruction::ReduceRow { .. } => "reduces",
                Instruction::Store { accumulate: Some(_), .. } => "accumulates",
                Instruction::Given { index: 1.., .. } => "is given a value that products do not have",
                _ => continue,
            };
            return Err(format!("instruction {at} of an epilogue {wrong}"));
        }
        let fills = |i: &Instruction| match i {
            Instruction::Store { view, strides, .. } => {
                (view.buffer, view.offset, view.dtype) == (c.out.buffer, c.out.offset, c.out.dtype)
                    && strides.len() == c.dims().count()
                    && c.dims().zip(strides).all(|(d, &s)| d.size == 1 || d.out == s)
            }
            _ => false,
        };
        if !c.epilogue.iter().rfind(|i| matches!(i, Instruction::Store { .. })).is_some_and(fills) {
            return Err("the last store of an epilogue is not that of the result".into());
        }
        let behind = c.behind(&c.out);
        let scan = nodes::scan(&behind, arena.allocated_bytes(), buffers)?;
        let given = |w: &Walk| matches!(c.epilogue[w.at], Instruction::Given { .. });
        let walks: Vec<Walk> = scan.walks.into_iter().filter(|w| !given(w)).collect();
        let strides: Vec<isize> = c.dims().map(|d| d.out).collect();
        let out: Extent = resolve(arena.allocated_bytes(), buffers, &c.out, &behind.dims, &strides)?;
        Ok(Touched {
            strict: must_keep_order(&walks, &behind.dims),
            reads_out: walks.iter().any(|w| !w.store && w.extent.overlaps(&out)),
        })
    }
}

impl Prepared {
    /// Bytes of scratch that a run needs.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.product.scratch_bytes().next_multiple_of(64)
            + match &self.then {
                Then::Nothing => 0,
                Then::Loop(l) | Then::LoopOfScratch(l, _) => l.scratch_bytes,
            }
    }

    /// Computes the product and what is behind it.
    ///
    /// # Safety
    /// `scratch` must be `scratch_bytes` long, aligned to 64 bytes, and nobody else may use it or
    /// the operands meanwhile.
    pub(crate) unsafe fn run(&mut self, scratch: *mut u8) {
        let behind = scratch.wrapping_add(self.product.scratch_bytes().next_multiple_of(64));
        // SAFETY: passed on to the caller; the loop's scratch lies behind the product's.
        unsafe {
            self.product.run(scratch);
            match &mut self.then {
                Then::Nothing => {}
                Then::Loop(l) => l.run(behind),
                Then::LoopOfScratch(l, reads) => {
                    reads.iter().for_each(|&access| l.rebase(access, self.product.whole(scratch)));
                    l.run(behind);
                }
            }
        }
    }
}
