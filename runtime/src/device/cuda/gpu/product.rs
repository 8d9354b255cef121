//! Matrix products by cublasLt.
//!
//! For each shape, combination of types and alignment, the library proposes several algorithms, and each of them is
//! timed once when a program is loaded, on separate memory. f32 is computed in f32: the compute type that rounds
//! operands to TF32 is never used.
//!
//! Not every algorithm supports every epilogue of the library, which only shows when it is tried: a product with an
//! epilogue counts as unsupported if it could not be tried.

use super::context::{Context, failed, preload};
use crate::device::cuda::error::CudaError;
use crate::device::cuda::gemm::{Activation, Gemm, Matrix, OPERANDS};
use cudarc::cublaslt::{result as lt, sys as blas};
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;
use tpc_ir::DType;

/// Bytes that the library may use per stream: NVIDIA's recommendation for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Number of algorithms to time, and of repetitions.
const ALGORITHMS: usize = 8;
const REPEATS: usize = 4;

fn blas_failed(call: &str) -> impl Fn(lt::CublasError) -> CudaError + '_ {
    move |e| CudaError::Call { call: call.into(), reason: format!("{:?}", e.0) }
}

/// The properties of a matrix that determine the best algorithm: type, rows, columns, both strides, whether it is
/// transposed, and its alignment in bytes.
type MatrixKey = (DType, usize, usize, usize, i64, bool, u32);

/// The properties of a product that determine the best algorithm.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    shape: [usize; 4],
    operands: [Option<MatrixKey>; OPERANDS],
    activation: Option<Activation>,
    in_place: bool,
}

fn alignment(m: &Matrix, moves: impl Iterator<Item = i64>) -> u32 {
    let bytes = m.dtype.bytes() as i64;
    let places = moves.map(|e| e * bytes).chain([m.at, m.batch_stride * bytes]);
    places.fold(256u32, |a, at| if at == 0 { a } else { a.min(1 << at.trailing_zeros().min(8)) })
}

impl Key {
    fn of(g: &Gemm) -> Self {
        let of = |x: usize| {
            let m = g.operands()[x]?;
            let aligned = alignment(m, g.calls.iter().map(move |c| c[x]));
            Some((m.dtype, m.rows, m.columns, m.leading, m.batch_stride, m.transposed, aligned))
        };
        let operands = std::array::from_fn(of);
        Key { shape: [g.m, g.n, g.k, g.batch], operands, activation: g.activation, in_place: is_in_place(g) }
    }

    /// Alignment of an operand in bytes; any number if there is no such operand.
    fn alignment(&self, x: usize) -> u32 {
        self.operands[x].map_or(256, |m| m.6)
    }
}

/// Whether the added matrix is the result.
fn is_in_place(g: &Gemm) -> bool {
    g.c.as_ref().is_some_and(|c| c.at == g.d.at)
}

/// Addresses of the operands of a call; 0 for missing operands.
type Places = [sys::CUdeviceptr; OPERANDS];

/// Descriptions of a product and the chosen algorithm.
struct Prepared {
    operation: blas::cublasLtMatmulDesc_t,
    /// The layouts of a, b, c and d.
    layouts: [blas::cublasLtMatrixLayout_t; 4],
    algorithm: blas::cublasLtMatmulAlgo_t,
}

impl Prepared {
    fn destroy(&self) {
        // SAFETY: the owner destroys it last.
        unsafe {
            let _ = lt::destroy_matmul_desc(self.operation);
            self.layouts.iter().for_each(|&l| _ = lt::destroy_matrix_layout(l));
        }
    }
}

/// The library on one device, and all prepared products.
pub(super) struct Products {
    context: Arc<Context>,
    handle: blas::cublasLtHandle_t,
    /// One per rank, because the streams of ranks run concurrently.
    workspaces: Vec<sys::CUdeviceptr>,
    prepared: Vec<Prepared>,
    /// `None` if the library has no algorithm.
    by_key: HashMap<Key, Option<usize>>,
}

fn data_type(d: DType) -> blas::cudaDataType {
    match d {
        DType::F64 => blas::cudaDataType::CUDA_R_64F,
        DType::BF16 => blas::cudaDataType::CUDA_R_16BF,
        DType::F16 => blas::cudaDataType::CUDA_R_16F,
        _ => blas::cudaDataType::CUDA_R_32F,
    }
}

impl Products {
    /// Loads the library; `ranks` may compute concurrently.
    pub(super) fn load(context: &Arc<Context>, ranks: usize) -> Result<Self, CudaError> {
        preload("cublasLt", "nvidia-cublas", "libcublasLt.so.13")?;
        // SAFETY: only checks whether the library can be loaded.
        if !unsafe { blas::is_culib_present() } {
            let reason = "libcublasLt.so.13 was loaded, but is not found by its name".into();
            return Err(CudaError::BrokenLibrary { library: "cublasLt", reason });
        }
        context.make_current()?;
        let handle = lt::create_handle().map_err(blas_failed("cublasLtCreate"))?;
        let mut products = Products {
            context: context.clone(),
            handle,
            workspaces: Vec::new(),
            prepared: Vec::new(),
            by_key: HashMap::new(),
        };
        for _ in 0..ranks {
            // SAFETY: freed when this is dropped.
            let space = unsafe { result::malloc_sync(WORKSPACE) }.map_err(failed("cuMemAlloc of a workspace"))?;
            products.workspaces.push(space);
        }
        Ok(products)
    }

    /// Prepares a product; `None` if the library has no algorithm for it.
    pub(super) fn prepare(&mut self, g: &Gemm, stream: sys::CUstream) -> Result<Option<usize>, CudaError> {
        let key = Key::of(g);
        if let Some(&known) = self.by_key.get(&key) {
            return Ok(known);
        }
        // A missing operand has the layout of the result: it is not read.
        let c = g.c.as_ref().unwrap_or(&g.d);
        let layouts = [layout(&g.a, g.batch)?, layout(&g.b, g.batch)?, layout(c, g.batch)?, layout(&g.d, g.batch)?];
        let algorithm = blas::cublasLtMatmulAlgo_t { data: [0; 8] };
        let mut prepared = Prepared { operation: operation(g)?, layouts, algorithm };
        // The library may check the addresses of an epilogue's operands; their contents are not read.
        let elsewhere = std::array::from_fn(|x| self.workspaces[0] + u64::from(key.alignment(x) % 256));
        point(g, prepared.operation, &elsewhere)?;
        let found = self.algorithms(&prepared, &key)?;
        let tried = if found.len() > 1 || (g.has_epilogue() && !found.is_empty()) {
            self.fastest(g, &mut prepared, &found, &key, stream)?
        } else {
            None
        };
        let Some(chosen) = tried.or(found.first().copied().filter(|_| !g.has_epilogue())) else {
            prepared.destroy();
            self.by_key.insert(key, None);
            return Ok(None);
        };
        prepared.algorithm = chosen;
        self.prepared.push(prepared);
        let at = Some(self.prepared.len() - 1);
        self.by_key.insert(key, at);
        Ok(at)
    }

    fn algorithms(&self, prepared: &Prepared, key: &Key) -> Result<Vec<blas::cublasLtMatmulAlgo_t>, CudaError> {
        use blas::cublasLtMatmulPreferenceAttributes_t as Of;
        let preference = lt::create_matmul_pref().map_err(blas_failed("cublasLtMatmulPreferenceCreate"))?;
        let set = |of, value: *const c_void, size| {
            // SAFETY: the value has the size of the attribute.
            unsafe { lt::set_matmul_pref_attribute(preference, of, value, size) }
                .map_err(blas_failed("cublasLtMatmulPreferenceSetAttribute"))
        };
        let bytes = WORKSPACE;
        set(Of::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const bytes).cast(), 8)?;
        // By default the library assumes 256 bytes. A bias has the alignment of the result.
        let [a, b, d, c, bias, _] = std::array::from_fn(|x| key.alignment(x));
        let (c, d) = (if key.operands[3].is_some() { c } else { d }, d.min(bias));
        set(Of::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (&raw const a).cast(), 4)?;
        set(Of::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (&raw const b).cast(), 4)?;
        set(Of::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (&raw const c).cast(), 4)?;
        set(Of::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (&raw const d).cast(), 4)?;
        let [a, b, c, d] = prepared.layouts;
        let mut found: Vec<blas::cublasLtMatmulHeuristicResult_t> = Vec::with_capacity(ALGORITHMS);
        let mut count = 0;
        // SAFETY: all descriptions are alive, and there is room for as many results as requested.
        let said = unsafe {
            blas::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                prepared.operation,
                a,
                b,
                c,
                d,
                preference,
                ALGORITHMS as i32,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        // SAFETY: not used any more.
        let _ = unsafe { lt::destroy_matmul_pref(preference) };
        if said.result().is_err() {
            return Ok(Vec::new());
        }
        // SAFETY: the library has written this many.
        unsafe { found.set_len(count as usize) };
        Ok(found.into_iter().filter(|r| r.state.result().is_ok()).map(|r| r.algo).collect())
    }

    /// The fastest of some algorithms, timed on separate memory; `None` if there is too little memory, or none works.
    fn fastest(
        &self,
        g: &Gemm,
        prepared: &mut Prepared,
        found: &[blas::cublasLtMatmulAlgo_t],
        key: &Key,
        stream: sys::CUstream,
    ) -> Result<Option<blas::cublasLtMatmulAlgo_t>, CudaError> {
        let elements = |m: &Matrix| m.leading * m.columns + (g.batch - 1) * m.batch_stride.unsigned_abs() as usize;
        let mut total = 0;
        let mut offsets = [0; OPERANDS];
        for (x, m) in g.operands().into_iter().enumerate() {
            let Some(m) = m else { continue };
            // Aligned no better than the operands.
            offsets[x] = total as u64 + u64::from(key.alignment(x) % 256);
            total += (elements(m) * m.dtype.bytes()).next_multiple_of(256) + 256;
        }
        if key.in_place {
            offsets[3] = offsets[2];
        }
        // SAFETY: freed below; it has no other owner.
        let Ok(memory) = (unsafe { result::malloc_sync(total) }) else { return Ok(None) };
        let timed = self.time_all(g, prepared, found, stream, offsets.map(|o| memory + o));
        // SAFETY: `time_all` has waited for everything that uses it.
        let _ = unsafe { result::free_sync(memory) };
        timed
    }

    fn time_all(
        &self,
        g: &Gemm,
        prepared: &mut Prepared,
        found: &[blas::cublasLtMatmulAlgo_t],
        stream: sys::CUstream,
        places: Places,
    ) -> Result<Option<blas::cublasLtMatmulAlgo_t>, CudaError> {
        let timing = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let start = result::event::create(timing).map_err(failed("cuEventCreate"))?;
        let end = result::event::create(timing).map_err(failed("cuEventCreate"))?;
        let mut best: Option<(f32, blas::cublasLtMatmulAlgo_t)> = None;
        let timed = found.iter().try_for_each(|&algorithm| {
            prepared.algorithm = algorithm;
            // Once to warm up, then timed. An algorithm that fails is skipped.
            if self.call(g, prepared, &places, self.workspaces[0], stream).is_err() {
                return Ok(());
            }
            // SAFETY: events and stream are alive.
            unsafe {
                result::event::record(start, stream)?;
                for _ in 0..REPEATS {
                    if self.call(g, prepared, &places, self.workspaces[0], stream).is_err() {
                        return Ok(());
                    }
                }
                result::event::record(end, stream)?;
                result::event::synchronize(end)?;
                let taken = result::event::elapsed(start, end)?;
                if best.is_none_or(|(t, _)| taken < t) {
                    best = Some((taken, algorithm));
                }
            }
            Ok(())
        });
        // SAFETY: nothing uses the memory after this, and the events are not used again.
        unsafe {
            let _ = result::stream::synchronize(stream);
            let _ = result::event::destroy(start);
            let _ = result::event::destroy(end);
        }
        timed.map_err(failed("timing a matrix product"))?;
        Ok(best.map(|(_, algorithm)| algorithm))
    }

    fn call(
        &self,
        g: &Gemm,
        p: &Prepared,
        places: &Places,
        workspace: sys::CUdeviceptr,
        stream: sys::CUstream,
    ) -> Result<(), CudaError> {
        point(g, p.operation, places)?;
        let [a, b, d, c, ..] = *places;
        let c = if g.c.is_some() { c } else { d };
        let (wide, narrow) = ([g.scale, g.beta], [g.scale as f32, g.beta as f32]);
        let factor = |i: usize| -> *const c_void {
            if g.is_double() { (&raw const wide[i]).cast() } else { (&raw const narrow[i]).cast() }
        };
        // SAFETY: the matrices are in device memory, as planned; factors are read at once.
        unsafe {
            lt::matmul(
                self.handle,
                p.operation,
                factor(0),
                factor(1),
                a as *const c_void,
                p.layouts[0],
                b as *const c_void,
                p.layouts[1],
                c as *const c_void,
                p.layouts[2],
                d as *mut c_void,
                p.layouts[3],
                &raw const p.algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        }
        .map_err(blas_failed("cublasLtMatmul"))
    }

    /// Enqueues a prepared product of matrices in the device allocation `memory`.
    pub(super) fn enqueue(
        &self,
        g: &Gemm,
        prepared: usize,
        memory: sys::CUdeviceptr,
        rank: usize,
        stream: sys::CUstream,
    ) -> Result<(), CudaError> {
        let at = |m: &Matrix, moved: i64| memory.wrapping_add_signed(m.at + moved * m.dtype.bytes() as i64);
        g.calls.iter().try_for_each(|c| {
            let operands = g.operands();
            let places = std::array::from_fn(|x| operands[x].map_or(0, |m| at(m, c[x])));
            self.call(g, &self.prepared[prepared], &places, self.workspaces[rank], stream)
        })
    }
}

use blas::cublasLtMatmulDescAttributes_t as Attribute;

/// Sets an attribute of a product's description.
fn describe<T>(operation: blas::cublasLtMatmulDesc_t, of: Attribute, value: T) -> Result<(), CudaError> {
    // SAFETY: callers pass a number of the attribute's size, which is copied.
    unsafe { lt::set_matmul_desc_attribute(operation, of, (&raw const value).cast(), size_of::<T>()) }
        .map_err(blas_failed("cublasLtMatmulDescSetAttribute"))
}

/// The description of a product, except for the addresses of its epilogue's operands.
fn operation(g: &Gemm) -> Result<blas::cublasLtMatmulDesc_t, CudaError> {
    let (compute, scale) = if g.is_double() {
        (blas::cublasComputeType_t::CUBLAS_COMPUTE_64F, blas::cudaDataType::CUDA_R_64F)
    } else {
        (blas::cublasComputeType_t::CUBLAS_COMPUTE_32F, blas::cudaDataType::CUDA_R_32F)
    };
    let operation = lt::create_matmul_desc(compute, scale).map_err(blas_failed("cublasLtMatmulDescCreate"))?;
    // CUBLAS_OP_N and CUBLAS_OP_T.
    describe(operation, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, i32::from(g.a.transposed))?;
    describe(operation, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, i32::from(g.b.transposed))?;
    use blas::cublasLtEpilogue_t as Word;
    let word = match (g.activation, g.bias.is_some(), g.aux.is_some()) {
        (None, false, _) => Word::CUBLASLT_EPILOGUE_DEFAULT,
        (None, true, _) => Word::CUBLASLT_EPILOGUE_BIAS,
        (Some(Activation::Relu), false, _) => Word::CUBLASLT_EPILOGUE_RELU,
        (Some(Activation::Relu), true, _) => Word::CUBLASLT_EPILOGUE_RELU_BIAS,
        (Some(Activation::Gelu), false, false) => Word::CUBLASLT_EPILOGUE_GELU,
        (Some(Activation::Gelu), true, false) => Word::CUBLASLT_EPILOGUE_GELU_BIAS,
        (Some(Activation::Gelu), false, true) => Word::CUBLASLT_EPILOGUE_GELU_AUX,
        (Some(Activation::Gelu), true, true) => Word::CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
    };
    if word != Word::CUBLASLT_EPILOGUE_DEFAULT {
        describe(operation, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, word as i32)?;
    }
    if let Some(bias) = g.bias.as_ref().filter(|_| g.batch > 1) {
        describe(operation, Attribute::CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, bias.batch_stride)?;
    }
    if let Some(aux) = &g.aux {
        describe(operation, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, aux.leading as i64)?;
        if g.batch > 1 {
            describe(operation, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, aux.batch_stride)?;
        }
    }
    Ok(operation)
}

/// Sets the addresses of bias and aux, which are attributes of the description.
fn point(g: &Gemm, operation: blas::cublasLtMatmulDesc_t, places: &Places) -> Result<(), CudaError> {
    if g.bias.is_some() {
        describe(operation, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, places[4])?;
    }
    if g.aux.is_some() {
        describe(operation, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, places[5])?;
    }
    Ok(())
}

fn layout(m: &Matrix, batch: usize) -> Result<blas::cublasLtMatrixLayout_t, CudaError> {
    let of = data_type(m.dtype);
    let layout = lt::create_matrix_layout(of, m.rows as u64, m.columns as u64, m.leading as i64)
        .map_err(blas_failed("cublasLtMatrixLayoutCreate"))?;
    use blas::cublasLtMatrixLayoutAttribute_t as Of;
    let count = batch as i32;
    // SAFETY: the attributes are numbers of 32 and 64 bits.
    unsafe {
        lt::set_matrix_layout_attribute(layout, Of::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, (&raw const count).cast(), 4)
            .and_then(|()| {
                let (stride, of) = (&raw const m.batch_stride, Of::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET);
                lt::set_matrix_layout_attribute(layout, of, stride.cast(), 8)
            })
            .map_err(blas_failed("cublasLtMatrixLayoutSetAttribute"))?;
    }
    Ok(layout)
}

impl Drop for Products {
    fn drop(&mut self) {
        if self.context.make_current().is_err() {
            return;
        }
        // SAFETY: callers have waited for the products that they enqueued. Failures need no handling.
        unsafe {
            self.prepared.iter().for_each(Prepared::destroy);
            self.workspaces.iter().for_each(|&w| _ = result::free_sync(w));
            let _ = lt::destroy_handle(self.handle);
        }
    }
}
