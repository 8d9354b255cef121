//! The header of a safetensors file: 8 bytes with its length, then JSON; the tensors' bytes follow in order.
//!
//! The crate `safetensors` only writes whole files, while this module writes blocks from the arenas to the disk. A test
//! compares the two.

use serde_json::{Map, Value, json};
use tpc_ir::DType;

/// The name of an element type in safetensors files.
pub fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "F64",
        DType::F32 => "F32",
        DType::BF16 => "BF16",
        DType::F16 => "F16",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::U8 => "U8",
        DType::Bool => "BOOL",
    }
}

/// A tensor of a file: name, element type, shape.
pub type Entry<'a> = (&'a str, DType, &'a [usize]);

/// The header of a file with these tensors in sequence, and the offset of each tensor in the file.
pub fn head(tensors: &[Entry<'_>]) -> (Vec<u8>, Vec<u64>) {
    let mut entries = Map::new();
    let mut places = Vec::with_capacity(tensors.len());
    let mut offset = 0;
    for (name, dtype, shape) in tensors {
        let end = offset + shape.iter().product::<usize>() * dtype.bytes();
        let entry = json!({ "dtype": dtype_name(*dtype), "shape": shape, "data_offsets": [offset, end] });
        entries.insert((*name).into(), entry);
        places.push(offset as u64);
        offset = end;
    }
    let mut json = Value::Object(entries).to_string();
    // Data starts at a multiple of 8.
    json.extend(std::iter::repeat_n(' ', json.len().next_multiple_of(8) - json.len()));
    let mut head = (json.len() as u64).to_le_bytes().to_vec();
    head.extend(json.as_bytes());
    places.iter_mut().for_each(|place| *place += head.len() as u64);
    (head, places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn the_crate_reads_what_is_written() {
        let shapes: Vec<(String, DType, Vec<usize>)> =
            DType::ALL.iter().enumerate().map(|(i, d)| (format!("a \"{i}\"/é"), *d, vec![i, 3])).collect();
        let entries: Vec<Entry> = shapes.iter().map(|(n, d, s)| (n.as_str(), *d, &s[..])).collect();
        let (head, places) = head(&entries);
        let bytes: usize = shapes.iter().map(|(_, d, s)| s.iter().product::<usize>() * d.bytes()).sum();
        let mut file = head.clone();
        file.extend((0..bytes).map(|i| i as u8));
        assert_eq!(head.len() % 8, 0);
        let read = SafeTensors::deserialize(&file).unwrap();
        for ((name, dtype, shape), place) in entries.iter().zip(places) {
            let tensor = read.tensor(name).unwrap();
            assert_eq!((tensor.shape(), tensor.dtype().to_string().as_str()), (*shape, dtype_name(*dtype)));
            assert!(file[place as usize..].starts_with(tensor.data()));
        }
    }
}
