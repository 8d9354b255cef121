//! Tensors that a program keeps between runs: attention with a cache of keys and values computes what attention over
//! the whole sequence computes, on every mesh, and writes its rows in place.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, TensorData, activation};
use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor};
use tpc_compiler::capture::{Captured, Kept, Spec, capture_inference, named, scope::scope};
use tpc_compiler::program::{CompileOptions, compile_inference};
use tpc_ir::program::{Action, RankProgram};
use tpc_ir::{InputKind, OutputKind};
use tpc_passes::styles::{ColwiseParallel, Plan, RowwiseParallel};
use tpc_tests::eager::{filled, numbers};
use tpc_tests::training::{mesh, plan, uniform};

const BATCH: usize = 2;
const SLOTS: usize = 5;
const WIDTH: usize = 16;
const HEADS: usize = 4;
const HEAD: usize = 6;

#[derive(Module, Debug)]
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
}

/// A model whose only module is attention.
#[derive(Module, Debug)]
struct Net {
    attention: Attention,
}

impl Net {
    fn new(kv_heads: usize, device: &Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        let attention = Attention {
            q: linear(WIDTH, HEADS * HEAD),
            k: linear(WIDTH, kv_heads * HEAD),
            v: linear(WIDTH, kv_heads * HEAD),
            o: linear(HEADS * HEAD, WIDTH),
        };
        filled(Net { attention }, 1.0)
    }
}

fn heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, seq, width] = x.dims();
    x.reshape([batch, seq, heads, width / heads])
}

impl Attention {
    /// Attends from `x [b, t, d]` to keys and values `[slots, b, kv, hd]`; a query sees the slots up to its own.
    fn attend(&self, x: Tensor<3>, keys: Tensor<4>, values: Tensor<4>, slots: Tensor<1, Int>) -> Tensor<3> {
        let ([batch, seq, _], [all, _, kv, _]) = (x.dims(), keys.dims());
        let query = heads(self.q.forward(x), HEADS).swap_dims(1, 2);
        let shared = |x: Tensor<4>| -> Tensor<4> {
            let x: Tensor<5> = x.permute([1, 2, 0, 3]).unsqueeze_dim(2);
            x.expand([batch, kv, HEADS / kv, all, HEAD]).reshape([batch, HEADS, all, HEAD])
        };
        let scores = query.matmul(shared(keys).swap_dims(2, 3)) * (HEAD as f64).powf(-0.5);
        let columns = Tensor::<1, Int>::arange(0..all as i64, &scores.device()).reshape([1, 1, 1, all]);
        let scores = scores.mask_fill(columns.greater(slots.reshape([1, 1, seq, 1])), -1e30);
        let mixed = activation::softmax(scores, 3).matmul(shared(values));
        self.o.forward(mixed.swap_dims(1, 2).reshape([batch, seq, HEADS * HEAD]))
    }

    fn keys(&self, x: Tensor<3>, kv: usize) -> (Tensor<4>, Tensor<4>) {
        (heads(self.k.forward(x.clone()), kv).swap_dims(0, 1), heads(self.v.forward(x), kv).swap_dims(0, 1))
    }
}

/// Sequences `[b, slots, d]`.
fn sequences() -> Vec<f32> {
    let mut draw = uniform("sequences");
    (0..BATCH * SLOTS * WIDTH).map(|_| (draw() - 0.5) as f32).collect()
}

/// Attention over the whole sequences, by burn itself.
fn expected(net: &Net, kv: usize) -> Vec<f64> {
    let device = Device::flex();
    let x = Tensor::<3>::from_data(TensorData::new(sequences(), [BATCH, SLOTS, WIDTH]), &device);
    let (keys, values) = net.attention.keys(x.clone(), kv);
    let slots = Tensor::<1, Int>::arange(0..SLOTS as i64, &device);
    numbers(net.attention.attend(x, keys, values, slots).into_data())
}

/// A run on this many tokens of each sequence, which keeps their keys and values.
fn captured(net: &Net, kv: usize, tokens: usize) -> Captured {
    let kept = |name: &str| Kept::<4>::new("attention", name, [SLOTS, BATCH, kv, HEAD], DType::F32);
    let inputs = (
        named("x", Spec::<3>::new([BATCH, tokens, WIDTH], DType::F32)),
        named("slots", Spec::<1, Int>::new([tokens], DType::I64)),
        kept("keys"),
        kept("values"),
    );
    let run = |net: &Net, (x, slots, keys, values): (Tensor<3>, Tensor<1, Int>, _, _)| {
        let (keys, values): (tpc_compiler::capture::Before<4>, tpc_compiler::capture::Before<4>) = (keys, values);
        let (k, v) = net.attention.keys(x.clone(), kv);
        let put =
            |table: &Tensor<4>, rows| table.clone().select_assign(0, slots.clone(), rows, IndexingUpdateOp::Assign);
        let (k, v) = (put(&keys.tensor, k), put(&values.tensor, v));
        let y = scope("attention", x, |x| net.attention.attend(x, k.clone(), v.clone(), slots.clone()));
        (named("y", y), keys.becomes(k), values.becomes(v))
    };
    capture_inference(net, inputs, run).unwrap()
}

fn by_heads() -> Plan {
    Plan::new()
        .with("attention.q", ColwiseParallel::default())
        .with("attention.k", ColwiseParallel::default())
        .with("attention.v", ColwiseParallel::default())
        .with("attention.o", RowwiseParallel::default())
}

/// The extents that are larger than 1.
fn long(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|n| *n > 1).collect()
}

/// The local shape of each kept tensor of a rank.
fn kept(program: &RankProgram) -> Vec<(String, Vec<usize>)> {
    let states = program.inputs.iter().filter(|i| i.kind == InputKind::State);
    states.map(|i| (i.name.clone(), long(&i.binding.view.shape))).collect()
}

#[test]
fn a_cache_computes_what_whole_sequences_do() {
    // Tensor parallelism over whole kv heads, over fewer kv heads than ranks, and of a batch that is sharded.
    let cases = [
        (4, "", Plan::new(), [SLOTS, BATCH, 4, HEAD]),
        (4, "tp=2", by_heads(), [SLOTS, BATCH, 2, HEAD]),
        (2, "tp=4", by_heads(), [SLOTS, BATCH, 1, HEAD]),
        (1, "tp=2", by_heads(), [SLOTS, BATCH, 1, HEAD]),
        (2, "dp=2", plan("ddp"), [SLOTS, 1, 2, HEAD]),
        (2, "dp=2", plan("fsdp"), [SLOTS, 1, 2, HEAD]),
        (2, "dp=2,tp=2", Plan { data: plan("ddp").data, ..by_heads() }, [SLOTS, 1, 1, HEAD]),
    ];
    for (kv, on, plan, shape) in cases {
        let net = Net::new(kv, &Device::flex());
        let expected = expected(&net, kv);
        // One token at a time, and two at a time with an overlap: a slot that is written twice gets the same values.
        for (tokens, starts) in [(1, vec![0, 1, 2, 3, 4]), (2, vec![0, 2, 3]), (SLOTS, vec![0])] {
            let captured = captured(&net, kv, tokens);
            let rename = str::to_string;
            let program = compile_inference(&captured, &mesh(on), &plan, &CompileOptions::for_cpu(), &rename).unwrap();
            for rank in &program.stages.ranks {
                let expected = ["attention/keys", "attention/values"].map(|name| (name.to_string(), long(&shape)));
                assert_eq!(kept(rank), expected, "{on}, {kv} kv heads");
                // Rows are written in place: the cache is not copied.
                let puts = rank.steps.iter().filter(|s| matches!(s.action, Action::Put { .. })).count();
                assert_eq!(puts, 2);
                assert!(!rank.steps.iter().any(|s| s.label.starts_with("copy update") || &*s.label == "copy table"));
            }
            let predicted: Vec<usize> = program.stages.ranks.iter().map(|rank| rank.arena_bytes).collect();
            let mut session = program.launch(Default::default()).unwrap();
            let allocated: Vec<usize> = (0..session.ranks()).map(|rank| session.allocated_bytes(rank)).collect();
            assert_eq!(allocated, predicted);
            for name in ["attention/keys", "attention/values"] {
                session.write_f64(name, &vec![0.5; SLOTS * BATCH * kv * HEAD]).unwrap();
            }
            let all = sequences();
            for start in starts {
                let rows = (0..BATCH).flat_map(|b| {
                    let from = (b * SLOTS + start) * WIDTH;
                    all[from..from + tokens * WIDTH].iter().map(|x| f64::from(*x))
                });
                session.write_f64("x", &rows.collect::<Vec<_>>()).unwrap();
                let slots: Vec<f64> = (start..start + tokens).map(|slot| slot as f64).collect();
                session.write_f64("slots", &slots).unwrap();
                session.step().unwrap();
                let found = session.read_f64(&OutputKind::Result("y".into())).unwrap();
                for (b, t) in (0..BATCH).flat_map(|b| (0..tokens).map(move |t| (b, t))) {
                    let found = &found[(b * tokens + t) * WIDTH..][..WIDTH];
                    let expected = &expected[(b * SLOTS + start + t) * WIDTH..][..WIDTH];
                    let far = found.iter().zip(expected).fold(0f64, |most, (a, b)| most.max((a - b).abs()));
                    assert!(far < 1e-5, "{on}, {kv} kv heads, {tokens} tokens at {start}, sequence {b}: {far}");
                }
            }
        }
    }
}
