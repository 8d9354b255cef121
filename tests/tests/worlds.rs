//! Worlds of more ranks than one process runs: a process lowers its own ranks only, knows what the others hold, and takes
//! part in a world of 4,096 processes.
//!
//! The world is simulated: one process is real, and every other one says and computes what it does. That is what they would
//! do, because all weights and all rows of the batch are equal, so that all shards are.

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Tensor, activation};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tpc_compiler::capture::{Spec, TrainingCapture, capture_training};
use tpc_compiler::program::{
    CompileOptions, CompiledTraining, TrainingSession, compile_training, compile_training_together,
};
use tpc_ir::program::{Collective, CollectiveKind, End, Part, RankPrograms};
use tpc_ir::{DType, InputKind, Mesh, ReduceOp};
use tpc_passes::kinds::kinds;
use tpc_passes::lower::{LowerOptions, lower_some};
use tpc_passes::styles::{ColwiseParallel, Plan, RowwiseParallel};
use tpc_runtime::comm::control::Control;
use tpc_runtime::comm::processes::Ending;
use tpc_runtime::comm::{CollectiveId, Communicator, Communicators, Processes};
use tpc_runtime::device::cpu::arena::Arena;
use tpc_runtime::flight::{Flight, FlightRecord};
use tpc_runtime::{LaunchOptions, RuntimeError, Session};
use tpc_tests::training::{config, language_model, mesh, plan};

// ---------------------------------------------------------------------------------------------------------------------
// A process lowers its own ranks

/// Every part of a program lowers to the same rank programs as the whole, and knows the boxes of all ranks.
#[test]
fn a_part_of_the_ranks_is_lowered_as_all_are() {
    // Heads, rows and vocabulary that do not divide evenly.
    let llama = config(serde_json::json!({
        "model_type": "llama", "hidden_size": 24, "intermediate_size": 20, "num_attention_heads": 6,
        "num_key_value_heads": 3, "num_hidden_layers": 2, "vocab_size": 50, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
    }));
    let cases =
        [("tp-sp", "tp=3", 1), ("tp-sp-fsdp", "dp=2,tp=2", 2), ("fsdp", "dp=4", 1), ("tp-hsdp", "rep=2,dp=2,tp=2", 1)];
    for (name, on, micro_batches) in cases {
        let mut options = CompileOptions::for_cpu();
        options.step.micro_batches = micro_batches;
        let tokens = tpc_compiler::pretrained::TokenBatch::new(8, 6);
        let program = language_model(&llama, tokens, &plan(name), on, &options);
        let (graph, target, lower) = (&program.steady.placed, &options.target, &options.lower);
        let count = graph.mesh.ranks();
        let all = lower_some(graph, target, lower, 0..count, &[]).unwrap();
        assert!(all.is_complete() && all.source().is_none() && all.held() == (0..count));
        let mut sources = Vec::new();
        for ranks in (0..count).map(|rank| rank..rank + 1).chain([0..count / 2, 1..count]) {
            let part = lower_some(graph, target, lower, ranks.clone(), &[]).unwrap();
            assert_eq!(
                (part.held(), part.ranks(), part.is_complete()),
                (ranks.clone(), count, false),
                "{name} on {on}"
            );
            assert!(part.of_ranks(ranks.clone()) == all.of_ranks(ranks.clone()), "{name} on {on}: ranks {ranks:?}");
            let inputs = (0..all[0].inputs.len()).map(End::Input);
            for end in inputs.chain((0..all[0].outputs.len()).map(End::Output)) {
                (0..count).for_each(|rank| assert_eq!(part.held_box(end, rank), all.held_box(end, rank), "{end:?}"));
                assert_eq!(part.boxes(end), all.boxes(end), "{name} on {on}: {end:?}");
            }
            sources.push(part.source().unwrap());
        }
        assert!(sources.iter().all(|source| *source == sources[0]), "{name} on {on}");
        let other = LowerOptions { bucket_bytes: lower.bucket_bytes + 1, ..*lower };
        assert_ne!(lower_some(graph, target, &other, 0..1, &[]).unwrap().source(), Some(sources[0]), "{name} on {on}");
    }
}

/// A program of a part of the ranks keeps its inputs where another program of these ranks has them.
#[test]
fn a_part_of_the_ranks_shares_inputs_with_other_programs() {
    let options = CompileOptions::for_cpu();
    let on = mesh("dp=2,tp=2");
    let program = compile_training(captured(), &on, &net_plan(), &options, &str::to_string).unwrap();
    let [first, steady] = [&program.first.placed, &program.steady.placed];
    let lower =
        |graph, others: &[&RankPrograms]| lower_some(graph, &options.target, &options.lower, 3..4, others).unwrap();
    let steady = lower(steady, &[]);
    let first = lower(first, &[&steady]);
    for input in first[3].inputs.iter().filter(|input| input.kind == InputKind::Parameter) {
        assert!(first[3].shares(input, &steady[3]), "{}", input.name);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// A world of 4,096 processes

#[derive(Module, Debug)]
struct Net {
    up: Linear,
    down: Linear,
}

/// Rows of the batch, width of the input, width between: each rank holds one element of the first bias.
const SIZES: [usize; 3] = [128, 64, 4096];

/// Gives every parameter one number, a power of two, with which the first forward pass is exact in any order of its sums.
struct Equal(f32);

impl ModuleMapper for Equal {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.0 /= 2.0;
        let number = self.0;
        parameter.map(|tensor| tensor.full_like(number))
    }
}

fn captured() -> TrainingCapture {
    let [rows, width, between] = SIZES;
    let linear = |from, to| LinearConfig::new(from, to);
    // The last bias would be a term of the sum over ranks that only one of them adds.
    let down = linear(between, width).with_bias(false).init(&Device::flex());
    let net = Net { up: linear(width, between).init(&Device::flex()), down }.map(&mut Equal(0.0625));
    let batch = (
        Spec::<2>::new([rows, width], burn::tensor::DType::F32),
        Spec::<2>::new([rows, width], burn::tensor::DType::F32),
    );
    let optimizer = AdamWConfig::new().build();
    capture_training(&net, &optimizer, batch, |net: &Net, (x, y): (Tensor<2>, Tensor<2>)| {
        let apart = net.down.forward(activation::relu(net.up.forward(x))) - y;
        (apart.clone() * apart).mean()
    })
    .unwrap()
}

fn net_plan() -> Plan {
    let styles = Plan::new().with("up", ColwiseParallel::default()).with("down", RowwiseParallel::default());
    Plan { allow_unused_axes: true, ..styles.enable_2d_with_fsdp("dp") }
}

/// What the first process said, by purpose, in order.
type Words = Arc<Mutex<HashMap<String, Vec<Vec<u8>>>>>;

/// A process among others, which say what it says, except the first one, whose words are kept.
#[derive(Debug)]
struct Alike {
    count: usize,
    process: usize,
    first: Words,
    /// How often this process has said something, by purpose.
    said: Mutex<HashMap<String, usize>>,
    control: Arc<Control>,
    failure: Mutex<Option<(usize, String)>>,
}

impl Alike {
    fn new(count: usize, process: usize, first: &Words) -> Arc<Self> {
        let (said, failure) = (Mutex::default(), Mutex::default());
        Arc::new(Alike {
            count,
            process,
            first: first.clone(),
            said,
            control: Control::private(count).unwrap(),
            failure,
        })
    }
}

impl Processes for Alike {
    fn count(&self) -> usize {
        self.count
    }

    fn process(&self) -> usize {
        self.process
    }

    fn local(&self, ranks: usize) -> Result<Range<usize>, RuntimeError> {
        assert_eq!(ranks, self.count);
        Ok(self.process..self.process + 1)
    }

    fn exchange(&self, purpose: &str, bytes: &[u8], _: Duration) -> Result<Vec<Vec<u8>>, RuntimeError> {
        let mut all = vec![bytes.to_vec(); self.count];
        let mut first = self.first.lock().unwrap();
        let words = first.entry(purpose.into()).or_default();
        if self.process == 0 {
            words.push(bytes.to_vec());
        } else {
            let mut said = self.said.lock().unwrap();
            let said = said.entry(purpose.into()).or_default();
            all[0] = words[*said].clone();
            *said += 1;
        }
        Ok(all)
    }

    fn fail(&self, rank: usize, reason: &str) {
        self.failure.lock().unwrap().get_or_insert((rank, reason.into()));
    }

    fn failure(&self) -> Option<(usize, String)> {
        self.failure.lock().unwrap().clone()
    }

    fn gone(&self) -> Vec<usize> {
        Vec::new()
    }

    fn on_host(&self) -> (usize, usize) {
        (0, 1)
    }

    fn written_record(&self) -> Option<PathBuf> {
        None
    }

    fn flight(&self, rank: usize) -> &Flight {
        &self.control.rank(rank).flight
    }

    fn flight_record(&self) -> FlightRecord {
        FlightRecord { failure: self.failure(), ranks: Vec::new() }
    }

    fn progress(&self) {}

    fn leftover(&self, _: &Path) {}

    fn set_ending(&self, _: Ending) {}

    fn open(
        &self,
        programs: Arc<RankPrograms>,
        local: Range<usize>,
        _: Duration,
    ) -> Result<Arc<dyn Communicators>, RuntimeError> {
        let arena = Arena::private(programs[local.start].arena_bytes).unwrap();
        Ok(Arc::new(Peers(Arc::new(arena))))
    }
}

/// The communication with peers that hold the same bytes.
struct Peers(Arc<Arena>);

impl Communicators for Peers {
    fn communicator(self: Arc<Self>, _: usize) -> Box<dyn Communicator> {
        Box::new(Collectives(Vec::new()))
    }

    fn arena(&self, _: usize) -> Arc<Arena> {
        self.0.clone()
    }

    fn finish_step(&self, _: usize) {}

    fn switch_to(
        &self,
        programs: Arc<RankPrograms>,
        local: Range<usize>,
        _: Duration,
    ) -> Result<Arc<dyn Communicators>, RuntimeError> {
        assert!(self.0.grow(programs[local.start].arena_bytes));
        Ok(Arc::new(Peers(self.0.clone())))
    }
}

struct Collectives(Vec<Collective>);

impl Communicator for Collectives {
    fn prepare(&mut self, collective: &Collective) -> Result<CollectiveId, RuntimeError> {
        assert!(collective.group.len() > 1 && collective.dtype == DType::F32, "{collective:?}");
        self.0.push(collective.clone());
        Ok(CollectiveId(self.0.len() - 1))
    }

    unsafe fn start(&mut self, id: CollectiveId, from: *const u8, to: *mut u8) -> Result<(), RuntimeError> {
        let Collective { kind, group, position, from: operand, to: result, .. } = &self.0[id.0];
        // SAFETY: the caller's promise: both are in the arena and unused, and `from` keeps its contents. It is copied
        // because `to` may be the same memory.
        let from = unsafe { std::slice::from_raw_parts(from.cast::<f32>(), operand.elements()) }.to_vec();
        // SAFETY: as above.
        let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<f32>(), result.elements()) };
        let reduced = |op: ReduceOp, x: f32| match op {
            ReduceOp::Sum => (1..group.len()).fold(x, |sum, _| sum + x),
            ReduceOp::Max | ReduceOp::Min => x,
            ReduceOp::Prod => panic!("a product over ranks"),
        };
        // The shards of all ranks are equal, and those of a value follow each other in blocks of `inner`.
        let even = |part: &Part| assert!(part.lens.iter().all(|len| *len == part.lens[0]), "{part:?}");
        match kind {
            CollectiveKind::AllReduce(op) => to.iter_mut().zip(from).for_each(|(to, x)| *to = reduced(*op, x)),
            CollectiveKind::AllGather { parts } => {
                let (mut read, mut written) = (0, 0);
                for part in parts {
                    even(part);
                    let block = part.lens[0] * part.inner;
                    for _ in 0..part.outer {
                        for _ in group {
                            to[written..written + block].copy_from_slice(&from[read..read + block]);
                            written += block;
                        }
                        read += block;
                    }
                }
            }
            CollectiveKind::ReduceScatter { op, parts } => {
                let (mut read, mut written) = (0, 0);
                for part in parts {
                    even(part);
                    let block = part.lens[0] * part.inner;
                    for _ in 0..part.outer {
                        for at in 0..block {
                            to[written + at] = reduced(*op, from[read + position * block + at]);
                        }
                        read += block * group.len();
                        written += block;
                    }
                }
            }
            CollectiveKind::AllToAll { .. } => panic!("a plan without sequence parallelism exchanges no chunks"),
        }
        Ok(())
    }

    fn wait(&mut self, _: CollectiveId) -> Result<(), RuntimeError> {
        Ok(())
    }
}

/// Two steps: the losses, and the parameters afterwards.
fn trained(mut training: TrainingSession) -> (Vec<f64>, Vec<Vec<f64>>) {
    let [rows, width, _] = SIZES;
    let inputs = training.session().interface().inputs.clone();
    let data: Vec<_> = inputs.iter().filter(|input| input.kind == InputKind::Data).collect();
    for (input, number) in data.iter().zip([0.5, 0.25]) {
        training.session().write_f64(*input, &vec![number; rows * width]).unwrap();
    }
    let losses = (0..2).map(|_| training.step(0.001).unwrap()).collect();
    let parameters = inputs.iter().filter(|input| input.kind == InputKind::Parameter);
    let parameters = parameters.map(|input| training.session().read_input_f64(input).unwrap()).collect();
    (losses, parameters)
}

fn compiled(mesh: &Mesh, launch: &LaunchOptions, held: &mut Option<Range<usize>>) -> CompiledTraining {
    let options = CompileOptions::for_cpu();
    compile_training_together((captured(), None), mesh, &net_plan(), &options, &str::to_string, launch, |program| {
        assert_eq!(kinds(&[&program.steady.placed, &program.first.placed]).len(), 1, "all ranks do the same");
        *held = Some(program.steady.ranks.held());
    })
    .unwrap()
}

/// A process of 4,096 lowers its own rank, trains with the others, and reads whole tensors, which are those of a single rank.
/// The first process compiles; the other three receive what it sent.
#[test]
fn a_process_takes_part_in_a_world_of_4096() {
    let large = mesh("dp=64,tp=64");
    assert_eq!(large.ranks(), 4096);
    let alone =
        trained(compiled(&mesh(""), &LaunchOptions::default(), &mut None).launch(LaunchOptions::default()).unwrap());
    let first = Arc::default();
    for process in [0, 1, 64, 4095] {
        let processes: Arc<dyn Processes> = Alike::new(4096, process, &first);
        let launch = LaunchOptions { processes: Some(processes), ..LaunchOptions::default() };
        let mut held = None;
        let program = compiled(&large, &launch, &mut held);
        // Only the first process compiles.
        assert_eq!(held, (process == 0).then_some(0..1));
        let mut training = program.launch(launch).unwrap();
        let session: &Session = training.session();
        assert_eq!((session.ranks(), session.local_ranks()), (4096, process..process + 1));
        assert!(session.programs().all(|programs| programs.held() == (process..process + 1)));
        assert_eq!(session.allocated_bytes(process), session.program(process).arena_bytes);
        let (losses, parameters) = trained(training);
        let close = |a: &f64, b: &f64| (a - b).abs() <= 1e-5 * b.abs();
        assert_eq!(losses[0], alone.0[0], "{process}");
        assert!(losses[0] > 1.0 && close(&losses[1], &alone.0[1]), "{process}: {losses:?}, {:?}", alone.0);
        assert_eq!(parameters.len(), alone.1.len());
        for (mine, theirs) in parameters.iter().zip(&alone.1) {
            assert!(mine.len() == theirs.len() && mine.iter().zip(theirs).all(|(a, b)| close(a, b)), "{process}");
        }
    }
}
