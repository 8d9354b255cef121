//! Matrix products: calls to the library, with packing kernels where it needs them, and the generated kernel for all
//! other products.
//!
//! The library applies the epilogue of a product itself if it supports that epilogue. If it does not, or if it has no
//! algorithm for it, the epilogue is a loop after the product alone. The product is then stored in the result's memory,
//! or in the scratch if the loop reads the result's previous contents or if the result's type is narrower. All of these
//! can add to the previous contents (`out += product`).

use super::kernels::Launch;
use super::rank::Rank;
use super::space::Axis;
use super::{Item, contract, copy, fused};
use crate::device::cuda::epilogue::{self, LibraryForm};
use crate::device::cuda::gemm::{self, Epilogue, EpilogueOperand, Gemm};
use crate::device::extent::Extent;
use tpc_ir::DType;
use tpc_ir::program::{Contract, ContractDim, Instruction, Loop};

/// Number of multiplications below which packing is not worth a launch.
const WORTH_PACKING: usize = 1 << 20;

/// A product as a library executes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    /// Kernels that pack operands.
    pub packing: Vec<Launch>,
    /// The library's computation after the packing.
    pub gemm: Gemm,
    /// Kernels of the epilogue, if the library does not apply it.
    pub after: Vec<Launch>,
}

/// A product in all the ways in which it can be computed; `None` if the result is empty.
pub(super) fn emit(rank: &mut Rank<'_>, c: &Contract) -> Result<Option<Item>, String> {
    if c.epilogue.is_empty() {
        let kernels = contract::emit(rank, c, None)?;
        let library = library(rank, c, &Epilogue::default())?.into_iter().collect();
        return Ok((!kernels.is_empty()).then_some(Item::Product { library, kernels }));
    }
    let touched = touched(rank, c)?;
    if c.dims().any(|d| d.size == 0) {
        return Ok(None);
    }
    let form = epilogue::recognize(&c.epilogue);
    if let Some(item) = update(rank, c, form.as_ref(), &touched)? {
        return Ok(Some(item));
    }
    let (alone, then) = apart(rank, c, &touched);
    let after = fused::emit(rank, &then)?;
    let mut kernels = contract::emit(rank, &alone, None)?;
    kernels.extend(after.iter().cloned());
    let plain = library(rank, &alone, &Epilogue::default())?;
    rank.free_scratch();
    let calls = plain.as_ref().map(|p| p.gemm.calls.len());
    let best = match &form {
        Some(form) => in_form(rank, c, form, &touched, calls)?,
        None => None,
    };
    let library = best.into_iter().chain(plain.map(|p| Product { after, ..p })).collect();
    Ok(Some(Item::Product { library, kernels }))
}

/// A product that is added to the result. Every algorithm of the library and the generated kernel can do this, so no
/// alternative is needed, nor memory for the product alone, which would be as large as the gradient of a weight.
fn update(
    rank: &mut Rank<'_>,
    c: &Contract,
    form: Option<&LibraryForm>,
    touched: &[Option<Extent>],
) -> Result<Option<Item>, String> {
    let Some(form) = form.filter(|w| w.activation.is_none() && w.before.is_none()) else { return Ok(None) };
    let [(load, factor)] = form.added[..] else { return Ok(None) };
    let (Instruction::Load { view, strides }, Instruction::Store { view: to, strides: by, .. }) =
        (&c.epilogue[load], &c.epilogue[form.out])
    else {
        return Ok(None);
    };
    let same = touched[load] == touched[form.out]
        && view.dtype == to.dtype
        && c.dims().zip(strides.iter().zip(by)).all(|(d, (a, b))| d.size == 1 || a == b);
    if !same {
        return Ok(None);
    }
    let product = Contract { scale: c.scale * form.scale, ..c.alone(c.out.clone()) };
    let kernels = contract::emit(rank, &product, Some(factor))?;
    let library = in_form(rank, c, form, touched, None)?.into_iter().collect();
    Ok(Some(Item::Product { library, kernels }))
}

/// The memory that the instructions of an epilogue load and store, after checking that it is an epilogue.
fn touched(rank: &Rank<'_>, c: &Contract) -> Result<Vec<Option<Extent>>, String> {
    let [left, right, out] = contract::extents(rank, c)?;
    let sizes: Vec<usize> = c.dims().map(|d| d.size).collect();
    let mut last = None;
    let of = |(at, ins): (usize, &Instruction)| -> Result<Option<Extent>, String> {
        match ins {
            Instruction::Given { index: 1.., .. } => {
                return Err(format!("instruction {at}: a product gives its epilogue only one value"));
            }
            Instruction::ReduceRow { .. } | Instruction::Store { accumulate: Some(_), .. } => {
                return Err(format!("instruction {at} of an epilogue reduces"));
            }
            Instruction::Load { view, strides } | Instruction::Store { view, strides, .. } => {
                let extent = rank.extent(view, &sizes, strides).map_err(|e| format!("instruction {at}: {e}"))?;
                if matches!(ins, Instruction::Store { .. }) {
                    if extent.overlaps(&left) || extent.overlaps(&right) {
                        return Err("the result overlaps an operand".into());
                    }
                    last = Some(extent);
                }
                return Ok(Some(extent));
            }
            _ => {}
        }
        Ok(None)
    };
    let touched = c.epilogue.iter().enumerate().map(of).collect::<Result<Vec<_>, String>>()?;
    if last != Some(out) {
        return Err("the last store of an epilogue does not fill the result".into());
    }
    Ok(touched)
}

/// Whether one type holds all values of another.
fn holds(wide: DType, narrow: DType) -> bool {
    wide == narrow
        || matches!((wide, narrow), (DType::F64, DType::F32) | (DType::F64 | DType::F32, DType::BF16 | DType::F16))
}

/// Splits off the epilogue: the product alone, and a loop that applies the epilogue.
fn apart(rank: &mut Rank<'_>, c: &Contract, touched: &[Option<Extent>]) -> (Contract, Loop) {
    let given = c.epilogue.iter().filter_map(|ins| match ins {
        Instruction::Given { dtype, .. } => Some(*dtype),
        _ => None,
    });
    let given = given.reduce(|a, b| if holds(a, b) { a } else { b }).unwrap_or(c.out.dtype);
    // All but the last store.
    let last = touched.iter().rposition(Option::is_some).unwrap_or(0);
    let out = touched[last];
    let others = touched[..last].iter().flatten();
    if holds(c.out.dtype, given) && !out.is_some_and(|out| others.into_iter().any(|e| e.overlaps(&out))) {
        return (c.alone(c.out.clone()), c.epilogue_loop(&c.out));
    }
    // In the result's order, but without the gaps that the result may have.
    let mut dense = c.clone();
    let mut dims: Vec<&mut ContractDim> = dense.batch.iter_mut().chain(&mut dense.m).chain(&mut dense.n).collect();
    dims.sort_by_key(|d| d.out.unsigned_abs());
    let mut elements = 1;
    for d in dims {
        d.out = elements as isize;
        elements *= d.size;
    }
    let raw = rank.scratch_view(given, elements);
    (dense.alone(raw.clone()), dense.epilogue_loop(&raw))
}

/// The library's product with its epilogue, in at most this many calls.
fn in_form(
    rank: &mut Rank<'_>,
    c: &Contract,
    form: &LibraryForm,
    touched: &[Option<Extent>],
    calls: Option<usize>,
) -> Result<Option<Product>, String> {
    // The memory that each instruction loads or stores.
    let access = |at: usize| match (&c.epilogue[at], touched[at]) {
        (Instruction::Load { view, strides } | Instruction::Store { view, strides, .. }, Some(extent)) => {
            Some((view, strides, extent))
        }
        _ => None,
    };
    let operand = |at: usize| {
        access(at).map(|(view, strides, extent)| EpilogueOperand {
            at: rank.at(extent.base),
            dtype: view.dtype,
            strides: strides.clone(),
        })
    };
    let Some((view, strides, out)) = access(form.out) else { return Ok(None) };
    // If there are two results, the result of the library call is the one after the activation.
    let mut product = Contract { out: view.clone(), scale: c.scale * form.scale, ..c.alone(view.clone()) };
    let dims = product.batch.iter_mut().chain(&mut product.m).chain(&mut product.n);
    dims.zip(strides).for_each(|(d, &s)| d.out = s);
    let before = form.before.and_then(access);
    if let Some((_, strides, extent)) = before
        && (extent.overlaps(&out) || c.dims().zip(strides).any(|(d, &s)| d.size > 1 && s == 0))
    {
        return Ok(None);
    }
    let mut in_place = Vec::new();
    for &(load, _) in &form.added {
        let Some((of, by, extent)) = access(load) else { return Ok(None) };
        let same = extent == out
            && of.dtype == view.dtype
            && c.dims().zip(by.iter().zip(strides)).all(|(d, (a, b))| d.size == 1 || a == b);
        if before.is_some_and(|(.., e)| e.overlaps(&extent)) || (extent.overlaps(&out) && !same) {
            return Ok(None);
        }
        in_place.push(same);
    }
    // Which of the added operands is the matrix, and which is the bias, which has no factor.
    let is_bias = |i: usize| form.added[i].1 == 1.0 && !in_place[i];
    let ways: &[[Option<usize>; 2]] = match form.added.len() {
        0 => &[[None, None]],
        1 => &[[None, Some(0)], [Some(0), None]],
        2 => &[[Some(0), Some(1)], [Some(1), Some(0)]],
        _ => &[],
    };
    let mut tries = Vec::new();
    for [matrix, bias] in ways {
        if bias.is_some_and(|i| !is_bias(i)) {
            continue;
        }
        tries.push(Epilogue {
            beta: matrix.map_or(0.0, |i| form.added[i].1),
            c: matrix.and_then(|i| operand(form.added[i].0)),
            bias: bias.and_then(|i| operand(form.added[i].0)),
            activation: form.activation,
            aux: form.before.and_then(operand),
        });
    }
    for epilogue in &tries {
        let made = library(rank, &product, epilogue)?;
        if let Some(made) = made.filter(|p| calls.is_none_or(|calls| p.gemm.calls.len() <= calls)) {
            return Ok(Some(made));
        }
    }
    Ok(None)
}

/// The library's way to compute a product and its epilogue, if there is one.
fn library(rank: &mut Rank<'_>, c: &Contract, epilogue: &Epilogue) -> Result<Option<Product>, String> {
    let places = contract::places(rank, c)?.map(|p| rank.at(p));
    if let Some(gemm) = gemm::with(c, places, epilogue) {
        return Ok(Some(Product { packing: Vec::new(), gemm, after: Vec::new() }));
    }
    let all = c.batch.iter().chain(&c.m).chain(&c.n).chain(&c.k);
    if all.map(|d| d.size).product::<usize>() < WORTH_PACKING {
        return Ok(None);
    }
    for (left, right) in [(true, false), (false, true), (true, true)] {
        let mut packed = c.clone();
        let left_bytes = if left { dense(&mut packed, |d| &mut d.left, true) * c.left.dtype.bytes() } else { 0 };
        let right_bytes = if right { dense(&mut packed, |d| &mut d.right, false) * c.right.dtype.bytes() } else { 0 };
        // Checked before memory is allocated.
        if gemm::with(&packed, places, epilogue).is_none() {
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
        return Ok(gemm::with(&packed, at, epilogue).map(|gemm| Product { packing, gemm, after: Vec::new() }));
    }
    Ok(None)
}

/// Dimensions, and the key that they are ordered by.
type Ordered<'a> = (&'a mut Vec<ContractDim>, &'a dyn Fn(&ContractDim) -> usize);

/// Gives an operand dense strides: batches, then rows, then the sum, or batches, the sum, and columns. Each of these is
/// in the order of the result or the other operand, so that the dimensions nest there as well. Returns the number of
/// the operand's elements.
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
