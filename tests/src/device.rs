//! Training steps on any device, compared with the same steps on the CPU.

use crate::training::feed;
use std::collections::HashMap;
use tpc_compiler::program::TrainingProgram;
use tpc_ir::interpret::Tensor;
use tpc_ir::program::{Binding, OutputBinding, RankProgram};
use tpc_ir::{DType, InputId, InputKind, OutputKind};
use tpc_runtime::device::attached::Device;
use tpc_runtime::element::decode;
use tpc_runtime::{LaunchOptions, RuntimeError, Session};

/// How far a device differs from the CPU after some steps.
#[derive(Clone, Debug, Default)]
pub struct Apart {
    /// Losses on the device.
    pub losses: Vec<f64>,
    /// The largest difference of a loss, relative to it.
    pub loss: f64,
    /// The largest difference of a parameter or state, relative to the largest element of its tensor, and its name.
    pub parameter: (f64, String),
}

/// The dense bytes of an input on a rank of a session.
///
/// # Panics
/// If there is no such input.
pub fn input_bytes(session: &Session, rank: usize, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut take = |_: &_, b: &[u8]| {
        bytes = b.to_vec();
        Ok(())
    };
    session.read_box(name, rank, &mut take).unwrap_or_else(|e| panic!("{e}"));
    bytes
}

/// Copies inputs of some kinds from a session to one on a device.
fn copy(from: &Session, to: &mut Session, kinds: &[InputKind]) {
    for rank in 0..from.ranks() {
        let inputs: Vec<_> = from.program(rank).inputs.iter().filter(|i| kinds.contains(&i.kind)).cloned().collect();
        for input in inputs {
            let bytes = input_bytes(from, rank, &input.name);
            let mut write = |_: &_, to: &mut [u8]| {
                to.copy_from_slice(&bytes);
                Ok(())
            };
            to.write_box(&input.name, rank, &mut write).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

/// The largest difference, relative to the largest value; NaN if a value is unexpectedly NaN.
fn apart(got: &[u8], want: &[u8], dtype: DType) -> f64 {
    if !dtype.is_float() {
        return if got == want { 0.0 } else { f64::INFINITY };
    }
    farthest(&decode(dtype, got), &decode(dtype, want))
}

/// The largest difference, relative to the largest expected value; NaN if a value is unexpectedly NaN.
fn farthest(got: &[f64], want: &[f64]) -> f64 {
    let largest = want.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    let same = |x: f64, y: f64| x == y || (x.is_nan() && y.is_nan());
    let off = got.iter().zip(want).map(|(&x, &y)| if same(x, y) { 0.0 } else { (x - y).abs() / largest });
    off.fold(0.0, |m, d| if d >= m || d.is_nan() { d } else { m })
}

/// Runs programs on the CPU and on a device, step by step on the same inputs, and compares inputs and outputs
/// afterwards: the largest difference relative to a tensor's largest value, and its place.
///
/// # Errors
/// The device fails.
///
/// # Panics
/// If the CPU does.
pub fn beside<D: Device>(
    programs: &[RankProgram],
    feed: &HashMap<InputId, Tensor>,
    device: &mut D,
    steps: usize,
    step: &mut dyn FnMut(&mut D, usize) -> Result<(), RuntimeError>,
) -> Result<(f64, String), RuntimeError> {
    let mut session = Session::launch(programs.to_vec(), LaunchOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    for input in &programs[0].inputs {
        session.write_f64(input, &feed[&input.id()].data).unwrap_or_else(|e| panic!("{e}"));
    }
    let mut worst = (0.0, String::new());
    for time in 0..steps {
        for (rank, p) in programs.iter().enumerate() {
            for input in &p.inputs {
                device.write(rank, &input.binding, &input_bytes(&session, rank, &input.name))?;
            }
        }
        session.step().unwrap_or_else(|e| panic!("{e}"));
        step(device, time)?;
        for (rank, p) in programs.iter().enumerate() {
            let inputs = p.inputs.iter().map(|i| (i.name.clone(), &i.binding, input_bytes(&session, rank, &i.name)));
            let output = |o: &OutputBinding| session.read_rank(&o.kind, rank).unwrap_or_else(|e| panic!("{e}"));
            let outputs = p.outputs.iter().map(|o| (format!("{:?}", o.kind), &o.binding, output(o)));
            for (name, binding, want) in inputs.chain(outputs).collect::<Vec<_>>() {
                let off = apart(&device.read(rank, binding)?, &want, binding.view.dtype);
                if off > worst.0 || off.is_nan() {
                    worst = (off, format!("rank {rank}, {name}"));
                }
            }
        }
    }
    Ok(worst)
}

/// Runs programs in another precision on a device and a reference on the CPU, step by step from the same inputs, and
/// compares inputs and outputs afterwards as whole tensors: the largest difference relative to a tensor's largest
/// value, and its place.
///
/// # Errors
/// The device fails.
///
/// # Panics
/// If the CPU does.
pub fn against<D: Device + 'static>(
    reference: &[RankProgram],
    feed: &HashMap<InputId, Tensor>,
    device: D,
    steps: usize,
) -> Result<(f64, String), RuntimeError> {
    let mut session = Session::launch(reference.to_vec(), LaunchOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let mut on_device = Session::on(Box::new(device), LaunchOptions::default())?;
    let inputs = &reference[0].inputs;
    for input in inputs {
        session.write_f64(input, &feed[&input.id()].data).unwrap_or_else(|e| panic!("{e}"));
    }
    let mut worst = (0.0, String::new());
    for _ in 0..steps {
        for input in inputs {
            on_device.write_f64(input, &session.read_input_f64(input).unwrap_or_else(|e| panic!("{e}")))?;
        }
        session.step().unwrap_or_else(|e| panic!("{e}"));
        on_device.step()?;
        let mut note = |name: String, got: Vec<f64>, want: Vec<f64>| {
            let off = farthest(&got, &want);
            if off > worst.0 || off.is_nan() {
                worst = (off, name);
            }
        };
        for input in inputs {
            let want = session.read_input_f64(input).unwrap_or_else(|e| panic!("{e}"));
            note(input.name.clone(), on_device.read_input_f64(input)?, want);
        }
        for output in &reference[0].outputs {
            let want = session.read_f64(&output.kind).unwrap_or_else(|e| panic!("{e}"));
            note(format!("{:?}", output.kind), on_device.read_f64(&output.kind)?, want);
        }
    }
    Ok(worst)
}

/// Trains for one step per learning rate on the CPU and in a session on a device, which keeps its own parameters and
/// state: `device` receives the programs of the first step, and continues with those of the later ones.
///
/// # Errors
/// The device fails.
///
/// # Panics
/// If the CPU does.
pub fn follow<D: Device + 'static>(
    program: TrainingProgram,
    vocab: usize,
    rates: &[f64],
    device: &dyn Fn(Vec<RankProgram>) -> Result<D, RuntimeError>,
) -> Result<Apart, RuntimeError> {
    let (first, steady) = (program.first.ranks.clone(), program.steady.ranks.clone());
    let mut training = program.launch(LaunchOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    feed(training.session(), vocab);
    let mut on_device = Session::on(Box::new(device(first.into_vec())?), LaunchOptions::default())?;
    let all = InputKind::ALL;
    copy(training.session(), &mut on_device, &all);
    let mut apart = Apart::default();
    let mut steady = Some(steady);
    for (i, &rate) in rates.iter().enumerate() {
        let loss = training.step(rate).unwrap_or_else(|e| panic!("{e}"));
        if i > 0
            && let Some(steady) = steady.take()
        {
            on_device.switch_to(steady)?;
        }
        copy(training.session(), &mut on_device, &[InputKind::Scalar, InputKind::Seed]);
        on_device.step()?;
        for rank in 0..on_device.ranks() {
            // A step that did not execute every collective would be counted as less.
            let (executed, program) = (on_device.collectives(rank), on_device.program(rank));
            let counted: u64 = executed.iter().map(|c| c.count).sum();
            assert_eq!(counted, program.collectives().count() as u64, "rank {rank}: {executed:?}");
        }
        on_device.reset_counters();
        let found = on_device.read_f64(&OutputKind::Loss)?[0];
        apart.losses.push(found);
        let off = (found - loss).abs() / loss.abs();
        apart.loss = if off <= apart.loss { apart.loss } else { off };
    }
    let session = training.session();
    for rank in 0..session.ranks() {
        for input in &session.program(rank).inputs {
            if matches!(input.kind, InputKind::Parameter | InputKind::State) {
                let binding: &Binding = &input.binding;
                let want = decode(binding.view.dtype, &input_bytes(session, rank, &input.name));
                let mut got = Vec::new();
                let mut take = |_: &_, b: &[u8]| {
                    got = decode(binding.view.dtype, b);
                    Ok(())
                };
                on_device.read_box(&input.name, rank, &mut take)?;
                let largest = want.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
                for (x, y) in got.iter().zip(&want) {
                    let off = (x - y).abs() / largest;
                    if off > apart.parameter.0 || off.is_nan() {
                        apart.parameter = (off, input.name.clone());
                    }
                }
            }
        }
    }
    Ok(apart)
}
