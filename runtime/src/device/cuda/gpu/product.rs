//! Matrix products by cublasLt.
//!
//! The library is asked for several algorithms for each shape, types and alignment, and each of them is
//! timed once when a program is loaded, on memory of its own. f32 is computed in f32: the compute type
//! that rounds operands to TF32 is never asked for.

use super::context::{Context, failed, preload};
use crate::device::cuda::error::CudaError;
use crate::device::cuda::gemm::{Gemm, Matrix};
use cudarc::cublaslt::{result as lt, sys as blas};
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;
use tpc_ir::DType;

/// Bytes that the library may use for one stream: what NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Algorithms that are timed, and how often.
const ALGORITHMS: usize = 8;
const REPEATS: usize = 4;

fn blas_failed(call: &str) -> impl Fn(lt::CublasError) -> CudaError + '_ {
    move |e| CudaError::Call { call: call.into(), reason: format!("{:?}", e.0) }
}

/// What decides which algorithm is best.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    shape: [usize; 4],
    matrices: [(DType, usize, usize, usize, i64, bool, u32); 3],
}

fn alignment(m: &Matrix, moves: impl Iterator<Item = i64>) -> u32 {
    let bytes = m.dtype.bytes() as i64;
    let places = moves.map(|e| e * bytes).chain([m.at, m.batch_stride * bytes]);
    places.fold(256u32, |a, at| if at == 0 { a } else { a.min(1 << at.trailing_zeros().min(8)) })
}

impl Key {
    fn of(g: &Gemm) -> Self {
        let of = |m: &Matrix, x: usize| {
            let aligned = alignment(m, g.calls.iter().map(move |c| c[x]));
            (m.dtype, m.rows, m.columns, m.leading, m.batch_stride, m.transposed, aligned)
        };
        Key { shape: [g.m, g.n, g.k, g.batch], matrices: [of(&g.a, 0), of(&g.b, 1), of(&g.d, 2)] }
    }
}

/// Descriptions of a product and the algorithm that was chosen.
struct Prepared {
    operation: blas::cublasLtMatmulDesc_t,
    layouts: [blas::cublasLtMatrixLayout_t; 3],
    algorithm: blas::cublasLtMatmulAlgo_t,
}

/// The library on one device, and everything that was prepared.
pub(super) struct Products {
    context: Arc<Context>,
    handle: blas::cublasLtHandle_t,
    /// One for each rank, whose streams run side by side.
    workspaces: Vec<sys::CUdeviceptr>,
    prepared: Vec<Prepared>,
    /// `None` where the library has no algorithm.
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
    /// Loads the library; `ranks` may compute side by side.
    pub(super) fn load(context: &Arc<Context>, ranks: usize) -> Result<Self, CudaError> {
        preload("cublasLt", "nvidia-cublas", "libcublasLt.so.13")?;
        // SAFETY: only looks whether the library can be loaded.
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
        let (compute, scale) = if g.is_double() {
            (blas::cublasComputeType_t::CUBLAS_COMPUTE_64F, blas::cudaDataType::CUDA_R_64F)
        } else {
            (blas::cublasComputeType_t::CUBLAS_COMPUTE_32F, blas::cudaDataType::CUDA_R_32F)
        };
        let operation = lt::create_matmul_desc(compute, scale).map_err(blas_failed("cublasLtMatmulDescCreate"))?;
        use blas::cublasLtMatmulDescAttributes_t as Of;
        for (m, of) in [(&g.a, Of::CUBLASLT_MATMUL_DESC_TRANSA), (&g.b, Of::CUBLASLT_MATMUL_DESC_TRANSB)] {
            // CUBLAS_OP_N and CUBLAS_OP_T.
            let op = i32::from(m.transposed);
            // SAFETY: the attribute is a 32-bit number.
            unsafe { lt::set_matmul_desc_attribute(operation, of, (&raw const op).cast(), 4) }
                .map_err(blas_failed("cublasLtMatmulDescSetAttribute"))?;
        }
        let layouts = [layout(&g.a, g.batch)?, layout(&g.b, g.batch)?, layout(&g.d, g.batch)?];
        let found = self.algorithms(operation, layouts, &key)?;
        let Some(first) = found.first().copied() else {
            // SAFETY: nothing else knows them.
            unsafe {
                let _ = lt::destroy_matmul_desc(operation);
                layouts.iter().for_each(|&l| _ = lt::destroy_matrix_layout(l));
            }
            self.by_key.insert(key, None);
            return Ok(None);
        };
        let mut prepared = Prepared { operation, layouts, algorithm: first };
        if found.len() > 1
            && let Some(best) = self.fastest(g, &mut prepared, &found, stream)?
        {
            prepared.algorithm = best;
        }
        self.prepared.push(prepared);
        let at = Some(self.prepared.len() - 1);
        self.by_key.insert(key, at);
        Ok(at)
    }

    fn algorithms(
        &self,
        operation: blas::cublasLtMatmulDesc_t,
        [a, b, d]: [blas::cublasLtMatrixLayout_t; 3],
        key: &Key,
    ) -> Result<Vec<blas::cublasLtMatmulAlgo_t>, CudaError> {
        use blas::cublasLtMatmulPreferenceAttributes_t as Of;
        let preference = lt::create_matmul_pref().map_err(blas_failed("cublasLtMatmulPreferenceCreate"))?;
        let set = |of, value: *const c_void, size| {
            // SAFETY: the value is as large as the attribute.
            unsafe { lt::set_matmul_pref_attribute(preference, of, value, size) }
                .map_err(blas_failed("cublasLtMatmulPreferenceSetAttribute"))
        };
        let bytes = WORKSPACE;
        set(Of::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const bytes).cast(), 8)?;
        // Left to itself the library assumes 256 bytes.
        let aligned = key.matrices.each_ref().map(|m| m.6);
        set(Of::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (&raw const aligned[0]).cast(), 4)?;
        set(Of::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (&raw const aligned[1]).cast(), 4)?;
        set(Of::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (&raw const aligned[2]).cast(), 4)?;
        set(Of::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (&raw const aligned[2]).cast(), 4)?;
        let mut found: Vec<blas::cublasLtMatmulHeuristicResult_t> = Vec::with_capacity(ALGORITHMS);
        let mut count = 0;
        // SAFETY: all descriptions are alive, and there is room for as many results as are asked for.
        let said = unsafe {
            blas::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                operation,
                a,
                b,
                d,
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
        // SAFETY: the library has written that many.
        unsafe { found.set_len(count as usize) };
        Ok(found.into_iter().filter(|r| r.state.result().is_ok()).map(|r| r.algo).collect())
    }

    /// The fastest of some algorithms, on memory of its own; `None` if there is too little of that.
    fn fastest(
        &self,
        g: &Gemm,
        prepared: &mut Prepared,
        found: &[blas::cublasLtMatmulAlgo_t],
        stream: sys::CUstream,
    ) -> Result<Option<blas::cublasLtMatmulAlgo_t>, CudaError> {
        let elements = |m: &Matrix| m.leading * m.columns + (g.batch - 1) * m.batch_stride.unsigned_abs() as usize;
        let bytes = |m: &Matrix| (elements(m) * m.dtype.bytes()).next_multiple_of(256);
        let total = bytes(&g.a) + bytes(&g.b) + bytes(&g.d);
        // SAFETY: freed below; nothing else knows it.
        let Ok(memory) = (unsafe { result::malloc_sync(total) }) else { return Ok(None) };
        let timed = self.time_all(g, prepared, found, stream, memory, [0, bytes(&g.a), bytes(&g.a) + bytes(&g.b)]);
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
        memory: sys::CUdeviceptr,
        offsets: [usize; 3],
    ) -> Result<Option<blas::cublasLtMatmulAlgo_t>, CudaError> {
        let timing = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let start = result::event::create(timing).map_err(failed("cuEventCreate"))?;
        let end = result::event::create(timing).map_err(failed("cuEventCreate"))?;
        let places = offsets.map(|o| memory + o as u64);
        let mut best: Option<(f32, blas::cublasLtMatmulAlgo_t)> = None;
        let timed = found.iter().try_for_each(|&algorithm| {
            prepared.algorithm = algorithm;
            // Once to warm up, then timed. An algorithm that fails is none.
            if self.call(g, prepared, places, self.workspaces[0], stream).is_err() {
                return Ok(());
            }
            // SAFETY: events and stream are alive.
            unsafe {
                result::event::record(start, stream)?;
                for _ in 0..REPEATS {
                    if self.call(g, prepared, places, self.workspaces[0], stream).is_err() {
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
        // SAFETY: nothing uses the memory behind this, and the events are not used again.
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
        [a, b, d]: [sys::CUdeviceptr; 3],
        workspace: sys::CUdeviceptr,
        stream: sys::CUstream,
    ) -> Result<(), CudaError> {
        let (narrow, wide, zero) = (g.scale as f32, g.scale, 0f64);
        let scale: *const c_void = if g.is_double() { (&raw const wide).cast() } else { (&raw const narrow).cast() };
        // SAFETY: the matrices lie in device memory, as they were planned; scales are read at once.
        unsafe {
            lt::matmul(
                self.handle,
                p.operation,
                scale,
                // Zero bits are zero in both types.
                (&raw const zero).cast(),
                a as *const c_void,
                p.layouts[0],
                b as *const c_void,
                p.layouts[1],
                d as *const c_void,
                p.layouts[2],
                d as *mut c_void,
                p.layouts[2],
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
            let places = [at(&g.a, c[0]), at(&g.b, c[1]), at(&g.d, c[2])];
            self.call(g, &self.prepared[prepared], places, self.workspaces[rank], stream)
        })
    }
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
        // SAFETY: whoever enqueued products has waited for them. Failures leave nothing to do.
        unsafe {
            for p in &self.prepared {
                let _ = lt::destroy_matmul_desc(p.operation);
                p.layouts.iter().for_each(|&l| _ = lt::destroy_matrix_layout(l));
            }
            self.workspaces.iter().for_each(|&w| _ = result::free_sync(w));
            let _ = lt::destroy_handle(self.handle);
        }
    }
}
