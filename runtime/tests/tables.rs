//! Copies, prefix sums, the k largest elements, and rows of tables.

pub(crate) mod support;

use support::*;
use tpc_ir::DType;
use tpc_ir::program::*;

#[test]
pub(crate) fn rows_of_a_shard_are_taken_and_added() {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::I32] {
        let mut b = Builder::new();
        let table = b.input("table", dtype, &[4, 3]);
        let index = b.input("index", DType::I64, &[6]);
        let out = b.buffer(dtype, &[6, 3]);
        let sum = b.buffer(dtype, &[4, 3]);
        b.step(Action::Take { table, index: index.clone(), out: out.clone(), first_row: 10 });
        b.step(Action::ScatterAdd { index, update: out.clone(), out: sum.clone(), first_row: 10 });
        b.output("out", &out);
        b.output("sum", &sum);
        let mut session = b.launch();
        let rows: Vec<f64> = (0..12).map(f64::from).collect();
        session.write_f64("table", &rows).unwrap();
        session.write_f64("index", &[10.0, 13.0, 9.0, 14.0, 13.0, -1.0]).unwrap();
        session.step().unwrap();
        session.step().unwrap();
        let want = [0., 1., 2., 9., 10., 11., 0., 0., 0., 0., 0., 0., 9., 10., 11., 0., 0., 0.];
        assert_eq!(session.read_f64(&result("out")).unwrap(), want);
        let want = [0., 1., 2., 0., 0., 0., 0., 0., 0., 18., 20., 22.];
        assert_eq!(session.read_f64(&result("sum")).unwrap(), want);
    }
}

/// Rows of other ranks are left out, the last row with a number wins, and the other rows are unchanged.
#[test]
pub(crate) fn rows_of_a_shard_are_replaced() {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::I32] {
        let mut b = Builder::new();
        let table = b.input("table", dtype, &[4, 3]);
        let index = b.input("index", DType::I64, &[5]);
        let rows = b.input("rows", dtype, &[5, 3]);
        b.step(Action::Put { table: table.clone(), index, rows, first_row: 10 });
        b.output("table", &table);
        let mut session = b.launch();
        session.write_f64("table", &(0..12).map(f64::from).collect::<Vec<_>>()).unwrap();
        session.write_f64("index", &[11.0, 13.0, 9.0, 14.0, 11.0]).unwrap();
        session.write_f64("rows", &(20..35).map(f64::from).collect::<Vec<_>>()).unwrap();
        session.step().unwrap();
        let want = [0., 1., 2., 32., 33., 34., 6., 7., 8., 23., 24., 25.];
        assert_eq!(session.read_f64(&result("table")).unwrap(), want);
    }
}

#[test]
pub(crate) fn copies_between_any_strides() {
    for dtype in DType::ALL {
        let mut b = Builder::new();
        let x = b.input("x", dtype, &[2, 3, 4]);
        let y = b.input("y", dtype, &[4, 2, 5]);
        // x[i, j, l] to y[l, i, j + 1]
        let to = View { offset: 1, shape: vec![2, 3, 4], strides: vec![5, 1, 10], ..y.clone() };
        b.step(Action::Copy { from: x, to });
        b.output("y", &y);
        let mut session = b.launch();
        let values: Vec<f64> = (0..24).map(|i| dtype.round(f64::from(i))).collect();
        session.write_f64("x", &values).unwrap();
        session.write_f64("y", &[0.0; 40]).unwrap();
        session.step().unwrap();
        let y = session.read_f64(&result("y")).unwrap();
        for l in 0..4 {
            for i in 0..2 {
                for j in 0..5 {
                    let want = if (1..4).contains(&j) { values[(i * 3 + j - 1) * 4 + l] } else { 0.0 };
                    assert_eq!(y[(l * 2 + i) * 5 + j], want);
                }
            }
        }
    }
}

/// Rows of several elements may begin where one element may: two bf16 elements at an address that is not a multiple of
/// 4.
#[test]
pub(crate) fn copies_of_short_rows() {
    for (dtype, row) in [(DType::BF16, 2), (DType::Bool, 4), (DType::F16, 2), (DType::F32, 1)] {
        let mut b = Builder::new();
        let x = b.input("x", dtype, &[5, row + 1]);
        let y = b.buffer(dtype, &[5, row]);
        let from = View { offset: 1, shape: vec![5, row], ..x };
        b.step(Action::Copy { from, to: y.clone() });
        b.output("y", &y);
        let mut session = b.launch();
        let values: Vec<f64> = (0..5 * (row + 1)).map(|n| dtype.round((n % 3) as f64)).collect();
        session.write_f64("x", &values).unwrap();
        session.step().unwrap();
        let want: Vec<f64> = values.chunks(row + 1).flat_map(|r| r[1..].to_vec()).collect();
        assert_eq!(session.read_f64(&result("y")).unwrap(), want);
    }
}

#[test]
pub(crate) fn copies_that_transpose() {
    // x[b, i, j] to y[j, b, i]: dense in different dimensions, of even and uneven sizes.
    for (dtype, [b, i, j]) in [
        (DType::F32, [1, 64, 96]),
        (DType::BF16, [3, 33, 70]),
        (DType::F64, [2, 16, 17]),
        (DType::Bool, [2, 40, 31]),
        (DType::I32, [1, 15, 200]),
    ] {
        let mut builder = Builder::new();
        let x = builder.input("x", dtype, &[b, i, j]);
        let y = builder.buffer(dtype, &[j, b, i]);
        let to = View { shape: vec![b, i, j], strides: vec![i as isize, 1, (b * i) as isize], ..y.clone() };
        builder.step(Action::Copy { from: x, to });
        builder.output("y", &y);
        let mut session = builder.launch();
        let values: Vec<f64> = (0..b * i * j).map(|n| dtype.round((n % 251) as f64)).collect();
        session.write_f64("x", &values).unwrap();
        session.step().unwrap();
        let got = session.read_f64(&result("y")).unwrap();
        for (n, &value) in got.iter().enumerate() {
            let (nj, nb, ni) = (n / (b * i), n / i % b, n % i);
            assert_eq!(value, values[(nb * i + ni) * j + nj]);
        }
    }
}

#[test]
pub(crate) fn prefix_sums_along_any_dimension() {
    for dim in 0..3 {
        let mut b = Builder::new();
        let x = b.input("x", DType::F32, &[2, 3, 4]);
        let y = b.buffer(DType::F32, &[2, 3, 4]);
        b.step(Action::CumSum { from: x, to: y.clone(), dim });
        b.output("y", &y);
        let mut session = b.launch();
        let values = Lcg(2).integers(24);
        session.write_f64("x", &values).unwrap();
        session.step().unwrap();
        let mut want = values;
        let stride = [12, 4, 1][dim];
        for i in 0..24 {
            if i / stride % [2, 3, 4][dim] > 0 {
                want[i] += want[i - stride];
            }
        }
        assert_eq!(session.read_f64(&result("y")).unwrap(), want);
    }
}

#[test]
pub(crate) fn the_k_largest_and_where_they_are() {
    for k in 0..=6 {
        let mut b = Builder::new();
        let x = b.input("x", DType::F32, &[2, 6]);
        let values = b.buffer(DType::F32, &[2, k]);
        let indices = b.buffer(DType::I64, &[2, k]);
        b.step(Action::TopK { from: x, values: values.clone(), indices: indices.clone() });
        b.output("values", &values);
        b.output("indices", &indices);
        let mut session = b.launch();
        session.write_f64("x", &[1., 5., 2., 5., -1., 0., 3., f64::NAN, 3., 3., 7., -2.]).unwrap();
        session.step().unwrap();
        let order = [[1, 3, 2, 0, 5, 4], [1, 4, 0, 2, 3, 5]];
        let want: Vec<f64> = order.iter().flat_map(|o| o[..k].iter().map(|&i| f64::from(i))).collect();
        assert_eq!(session.read_f64(&result("indices")).unwrap(), want);
        let got = session.read_f64(&result("values")).unwrap();
        assert!(k == 0 || (got[0] == 5.0 && got[k].is_nan()));
    }
}
