//! Matrix products as a library's strided batches.

use tpc_ir::DType;
use tpc_ir::program::Contract;

/// A product as cublasLt sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemm {}

/// The library's product, if it can take this one.
pub(super) fn of(_c: &Contract, _places: [i64; 3]) -> Option<Gemm> {
    let _ = DType::F32;
    None
}
