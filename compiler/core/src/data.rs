//! Converts elements of burn's tensors to bytes of the IR's types and back, directly if both have the same type.

use crate::import;
use burn::tensor::{BoolStore, DType as BurnDType, TensorData};
use std::borrow::Cow;
use tpc_ir::DType;
use tpc_runtime::element;

/// The elements of tensor data as bytes of an element type; rounded if the types differ.
pub(crate) fn to_bytes(data: &TensorData, dtype: DType) -> Cow<'_, [u8]> {
    match data.dtype() {
        found if of_burn(found) == Some(dtype) => Cow::Borrowed(data.as_bytes()),
        BurnDType::Bool(BoolStore::U32) if dtype == DType::Bool => {
            let words = data.as_bytes().chunks_exact(4);
            Cow::Owned(words.map(|word| u8::from(word.iter().any(|&byte| byte != 0))).collect())
        }
        _ => {
            let values = data.clone().convert::<f64>().try_to_vec::<f64>().unwrap_or_default();
            Cow::Owned(element::encode(dtype, &values))
        }
    }
}

/// Tensor data from dense bytes.
pub(crate) fn of_bytes(dtype: DType, shape: &[usize], bytes: Vec<u8>) -> TensorData {
    let dtype = match dtype {
        DType::F64 => BurnDType::F64,
        DType::F32 => BurnDType::F32,
        DType::BF16 => BurnDType::BF16,
        DType::F16 => BurnDType::F16,
        DType::I64 => BurnDType::I64,
        DType::I32 => BurnDType::I32,
        DType::U8 => BurnDType::U8,
        DType::Bool => BurnDType::Bool(BoolStore::Native),
    };
    TensorData::from_bytes_vec(bytes, shape.to_vec(), dtype)
}

/// The IR's type with the same bytes per element.
pub(crate) fn of_burn(dtype: BurnDType) -> Option<DType> {
    match dtype {
        // Imported as a type with another representation.
        BurnDType::Flex32 | BurnDType::Bool(BoolStore::U32) => None,
        same => import::dtype(same).ok(),
    }
}

/// The name of an element type; `None` if the IR lacks it. Booleans have one name for all representations.
pub(crate) fn name(dtype: BurnDType) -> Option<&'static str> {
    match dtype {
        BurnDType::Bool(_) => Some(DType::Bool.name()),
        other => of_burn(other).map(DType::name),
    }
}
