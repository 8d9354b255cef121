//! Tests of the interpreter: results of single operations against hand-computed ones, detection of wrong placements,
//! and sufficient speed for comparing models.

use std::collections::HashMap;
use std::time::Instant;
use tpc_ir::interpret::{InterpretError, Options, Tensor, interpret, simulate};
use tpc_ir::{DType, Graph, InputId, parse};

fn graph(text: &str) -> Graph {
    parse::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// The outputs of a graph. Its logical and placed meanings must agree.
fn outputs(text: &str, inputs: &[(&str, Tensor)]) -> Vec<Vec<f64>> {
    let given = graph(text);
    let id = |name: &str| given.inputs().find(|(_, id)| id.to_string() == name).unwrap().1.clone();
    let inputs: HashMap<InputId, Tensor> = inputs.iter().map(|(n, t)| (id(n), t.clone())).collect();
    let logical = interpret(&graph(text), &inputs, &Options::default()).unwrap();
    let placed = simulate(&graph(text), &inputs, &Options::default()).unwrap();
    let bits = |ts: &[Tensor]| ts.iter().flat_map(|t| t.data.iter().map(|x| x.to_bits())).collect::<Vec<_>>();
    assert_eq!(bits(&logical), bits(&placed), "{text}");
    logical.into_iter().map(|t| t.data).collect()
}

fn f32s(shape: &[usize], data: &[f64]) -> Tensor {
    Tensor::new(DType::F32, shape, data.to_vec())
}

#[test]
fn operations_by_hand() {
    let x = f32s(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let i = Tensor::new(DType::I64, [4], vec![1.0, -1.0, 0.0, 2.0]);
    for (operation, result) in [
        ("mul %0, f32:2.0 : f32[2, 3]", vec![2.0, 4.0, 6.0, 8.0, 10.0, 12.0]),
        ("neg \"ab->ba\" %0 : f32[3, 2]", vec![-1.0, -4.0, -2.0, -5.0, -3.0, -6.0]),
        ("identity \"ab->acb\" %0 : f32[2, 2, 3]", vec![1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 4.0, 5.0, 6.0]),
        ("add %0, %0, %0 : f32[2, 3]", vec![3.0, 6.0, 9.0, 12.0, 15.0, 18.0]),
        ("einsum \"ab,cb->ac\" %0, %0 : f32[2, 2]", vec![14.0, 32.0, 32.0, 77.0]),
        ("einsum \"ab,ac->bc\" %0, %0 : f32[3, 3]", vec![17.0, 22.0, 27.0, 22.0, 29.0, 36.0, 27.0, 36.0, 45.0]),
        ("einsum \"ab,cd->ca\" %0, %0 : f32[2, 2]", vec![36.0, 90.0, 90.0, 225.0]),
        ("reduce_sum \"ab->b\" %0 : f32[3]", vec![5.0, 7.0, 9.0]),
        ("reduce_max \"ab->a\" %0 : f32[2]", vec![3.0, 6.0]),
        ("reduce_prod \"ab->\" %0 : f32[]", vec![720.0]),
        ("reshape %0 : f32[3, 2]", vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        ("slice dim=1 start=0 step=2 %0 : f32[2, 2]", vec![1.0, 3.0, 4.0, 6.0]),
        ("index dim=1 index=1 %0 : f32[2]", vec![2.0, 5.0]),
        ("concat dim=1 %0, %0 : f32[2, 6]", vec![1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 4.0, 5.0, 6.0]),
        ("pad dim=0 low=1 value=9.0 %0 : f32[4, 3]", vec![9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 9.0, 9.0, 9.0]),
        ("cumsum dim=0 %0 : f32[2, 3]", vec![1.0, 2.0, 3.0, 5.0, 7.0, 9.0]),
        ("cumsum dim=1 %0 : f32[2, 3]", vec![1.0, 3.0, 6.0, 4.0, 9.0, 15.0]),
        ("iota : i64[3]", vec![0.0, 1.0, 2.0]),
        // Rows that do not exist read as zeros and ignore updates.
        ("take %0, %1 : f32[4, 3]", vec![4.0, 5.0, 6.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0]),
        ("scatter_add %1, %1 : i64[2]", vec![0.0, 1.0]),
        ("cast.i32 %0 : i32[2, 3]", vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        (
            "div %0, f32:3.0 : f32[2, 3]",
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0].map(|x: f64| f64::from(x as f32 / 3.0)).to_vec(),
        ),
    ] {
        let text = format!(
            "mesh <>\n%0 = input data \"x\" : f32[2, 3]\n%1 = input data \"i\" : i64[4]\n%2 = {operation}\noutput loss %2"
        );
        assert_eq!(outputs(&text, &[("x", x.clone()), ("i", i.clone())]), [result], "{operation}");
    }
    let nan = f64::NAN;
    let text = "mesh <>\n%0 = input data \"x\" : f32[6]\n%1 = top_k %0 : f32[4], i64[4]\noutput result \"v\" %1.0\noutput result \"i\" %1.1";
    let out = outputs(text, &[("x", f32s(&[6], &[2.0, 7.0, 2.0, nan, -1.0, 7.0]))]);
    assert!(out[0][0].is_nan() && out[0][1..] == [7.0, 7.0, 2.0]);
    assert_eq!(out[1], [3.0, 1.0, 5.0, 0.0]);
}

#[test]
fn uneven_and_empty_chunks_are_right() {
    // 5 columns over 4 ranks are split into 2, 2, 1, 0; a row-wise product results in a partial sum over the ranks.
    let text = "mesh <tp=4>
%0 = input data \"x\" : f32[2, 5@tp]
%1 = input parameter \"w\" : f32[5@tp, 3]
%2 = einsum \"ab,bc->ac\" %0, %1 : f32[2, 3] +sum@tp
%3 = reduce_scatter tp sum dim=1 %2 : f32[2, 3@tp]
%4 = all_to_all tp from=1 to=0 %3 : f32[2@tp, 3]
%5 = reduce_max \"ab->b\" %4 : f32[3] +max@tp
output result \"partial sum\" %2
output result \"sharded\" %3
output result \"moved\" %4
output result \"partial max\" %5";
    let (x, w) =
        (Tensor::from_fn(DType::F32, [2, 5], |i| i as f64), Tensor::from_fn(DType::F32, [5, 3], |i| i as f64 - 7.0));
    let y = vec![20.0, 30.0, 40.0, -5.0, 30.0, 65.0];
    assert_eq!(outputs(text, &[("x", x), ("w", w)]), [y.clone(), y.clone(), y, vec![20.0, 30.0, 65.0]]);
}

#[test]
fn random_values_do_not_depend_on_the_placement() {
    let text = |dims: &str| {
        format!("mesh <a=2, b=3>\n%0 = random normal(0.0, 1.0) stream=5 i64:-3 : f32[{dims}]\noutput loss %0")
    };
    let whole = outputs(&text("5, 7"), &[]);
    for dims in ["5@a, 7@b", "5@(b,a), 7", "5, 7@(a,b)"] {
        assert_eq!(outputs(&text(dims), &[]), whole, "{dims}");
    }
    assert_ne!(whole, outputs(&text("5, 7").replace("stream=5", "stream=6"), &[]));
}

#[test]
fn layouts_and_factors_are_the_same_elements() {
    let text = "mesh <tp=2>
%0 = input parameter \"w\" : f32[2, 3@tp] layout [6]
output update \"w\" %0 layout [6]";
    let flat = Tensor::from_fn(DType::F32, [6], |i| i as f64);
    let factored = Tensor { shape: vec![2, 3], ..flat.clone() };
    for given in [flat.clone(), factored] {
        let inputs = [(InputId::Parameter("w".into()), given)].into();
        assert_eq!(simulate(&graph(text), &inputs, &Options::default()).unwrap()[..], *std::slice::from_ref(&flat));
    }
}

/// Products with a negative factor are 0 like all others, so that neither an order nor a reciprocal tells them apart.
#[test]
fn integers_have_one_zero() {
    let integers = [DType::I64, DType::I32, DType::U8, DType::Bool];
    assert!(integers.iter().all(|dtype| dtype.round(-0.0).is_sign_positive()));
    let text = "mesh <>\n%0 = input data \"x\" : i64[3]\n%1 = mul %0, i64:0 : i64[3]\n%2 = top_k %1 : i64[3], i64[3]\n\
        %3 = cast.f32 %1 : f32[3]\n%4 = rsqrt %3 : f32[3]\noutput result \"i\" %2.1\noutput result \"r\" %4\n";
    let found = outputs(text, &[("x", Tensor::new(DType::I64, [3], vec![2.0, -3.0, 5.0]))]);
    assert_eq!(found, [vec![0.0, 1.0, 2.0], vec![f64::INFINITY; 3]]);
}

#[test]
fn exact_precision_keeps_f64_and_rounded_does_not() {
    let text = "mesh <>\n%0 = input data \"x\" : f32[1]\n%1 = div %0, f32:3.0 : f32[1]\n%2 = cast.bf16 %1 : bf16[1]\noutput loss %1\noutput result \"b\" %2";
    let inputs = [(InputId::Data("x".into()), f32s(&[1], &[1.0]))].into();
    let run =
        |options| interpret(&graph(text), &inputs, &options).unwrap().iter().map(|t| t.data[0]).collect::<Vec<_>>();
    assert_eq!(run(Options::exact()), [1.0 / 3.0, DType::BF16.round(1.0 / 3.0)]);
    assert_eq!(run(Options::default()), [f64::from(1.0f32 / 3.0), DType::BF16.round(1.0 / 3.0)]);
}

/// The error of simulating a text with `x` = 0, 1, 2, … of shape `[4, 4]`.
fn simulate_error(body: &str) -> InterpretError {
    let text = format!("mesh <tp=2>\n{body}");
    let inputs = [(InputId::Data("x".into()), Tensor::from_fn(DType::F32, [4, 4], |i| i as f64))].into();
    interpret(&graph(&text), &inputs, &Options::default()).unwrap();
    simulate(&graph(&text), &inputs, &Options::default()).unwrap_err()
}

#[test]
fn wrong_placements_are_detected() {
    for (body, error) in [
        // Each rank sums only its own rows but claims to hold the whole sum.
        (
            "%0 = input data \"x\" : f32[4@tp, 4]\n%1 = reduce_sum \"ab->b\" %0 : f32[4]\noutput loss %1",
            "output Loss differs between ranks at [0]: rank 1 holds 20, an earlier rank 4",
        ),
        (
            "%0 = input data \"x\" : f32[4@tp, 4]\n%1 = exp %0 : f32[4, 4]\noutput loss %1",
            "node 1 (exp) on rank 0: local shapes [[2, 4], [4, 4]] (the result's last) do not fit \"ab->ab\"",
        ),
        (
            "%0 = input data \"x\" : f32[4@tp, 4]\n%1 = slice dim=0 start=0 step=2 %0 : f32[2@tp, 4]\noutput loss %1",
            "node 1 (slice) on rank 0: dimension 0 is cut, prefixed or sorted, so every rank must hold it whole",
        ),
        (
            "%0 = input data \"x\" : f32[4, 4@tp]\n%1 = index dim=1 index=3 %0 : f32[4]\noutput loss %1",
            "node 1 (index) on rank 0: dimension 1 is cut, prefixed or sorted, so every rank must hold it whole",
        ),
        (
            "%0 = input data \"x\" : f32[4@tp, 4]\n%1 = cumsum dim=0 %0 : f32[4@tp, 4]\noutput loss %1",
            "node 1 (cumsum) on rank 0: dimension 0 is cut, prefixed or sorted, so every rank must hold it whole",
        ),
        (
            "%0 = input data \"x\" : f32[4, 4@tp]\n%1 = top_k %0 : f32[4, 1], i64[4, 1]\noutput loss %1.0",
            "node 1 (top_k) on rank 0: dimension 1 is cut, prefixed or sorted, so every rank must hold it whole",
        ),
        (
            "%0 = input data \"x\" : f32[4, 4@tp]\n%1 = reshape %0 : f32[16]\noutput loss %1",
            "node 1 (reshape) on rank 0: has a result of local shape [4, 2], but its type requires [16]",
        ),
    ] {
        assert_eq!(simulate_error(body).to_string(), error, "{body}");
    }
    // Wrong numbers in correct shapes are detected only by comparing the two meanings.
    let text = "mesh <tp=2>\n%0 = input data \"x\" : f32[2, 4@tp]\n%1 = reshape %0 : f32[8@tp]\noutput loss %1";
    let inputs = [(InputId::Data("x".into()), Tensor::from_fn(DType::F32, [2, 4], |i| i as f64))].into();
    let options = Options::default();
    assert_ne!(interpret(&graph(text), &inputs, &options), simulate(&graph(text), &inputs, &options));
}

#[test]
fn bad_inputs_are_errors() {
    let text = "mesh <tp=2>\n%0 = input data \"x\" : f32[2, 2@tp]\noutput loss %0";
    let run = |inputs: HashMap<InputId, Tensor>| {
        simulate(&graph(text), &inputs, &Options::default()).unwrap_err().to_string()
    };
    assert_eq!(run(HashMap::new()), "input \"x\" was not given");
    let five = Tensor::from_fn(DType::F32, [5], |_| 0.0);
    assert_eq!(
        run([(InputId::Data("x".into()), five)].into()),
        "input \"x\" is f32[5] of 5 elements, expected f32[2, 2] (or any shape of its row-major elements)"
    );
    let ints = Tensor::from_fn(DType::I64, [2, 2], |_| 0.0);
    assert!(run([(InputId::Data("x".into()), ints)].into()).contains("i64"));
    let bad = graph("mesh <>\n%0 = exp : f32[2]");
    let error = interpret(&bad, &HashMap::new(), &Options::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the graph is not well formed (1 errors): %0 = exp: () -> (f32[2]): has 0 operands but needs 1"
    );
}

#[test]
fn fifty_million_multiply_adds_are_quick() {
    let n = 368;
    let text = format!(
        "mesh <>\n%0 = input data \"x\" : f32[{n}, {n}]\n%1 = einsum \"ab,bc->ac\" %0, %0 : f32[{n}, {n}]\n\
         %2 = einsum \"ab,ac->bc\" %1, %0 : f32[{n}, {n}]\noutput loss %2"
    );
    let inputs = [(InputId::Data("x".into()), Tensor::from_fn(DType::F32, [n, n], |i| (i % 7) as f64))].into();
    let start = Instant::now();
    interpret(&graph(&text), &inputs, &Options::default()).unwrap();
    // 100 million take about 0.2 s; the bound allows for a busy machine.
    assert!(start.elapsed().as_secs_f64() < 20.0, "{:?}", start.elapsed());
    println!("100 million multiply-adds: {:?}", start.elapsed());
}
