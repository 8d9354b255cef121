//! Tests of the predicted timeline of a rank: the total times of its kernels and collectives, with and without overlap.

use tpc_ir::program::{Action, RankProgram};
use tpc_ir::reason::Demand;
use tpc_ir::{AxisId, InputId, Mesh, parse};
use tpc_passes::lower::{LowerOptions, lower_with};
use tpc_passes::propagate::propagate;
use tpc_passes::simulate::{Lane, Timeline, simulate};
use tpc_passes::styles::annotations::{Annotation, Annotations};
use tpc_passes::targets::{DeviceKind, Target};

/// Two independent pairs of products, each followed by a reduction.
const MODEL: &str = r#"mesh <>
%0 = input data "x" : f32[64, 128]
%1 = input parameter "a" : f32[128, 256]
%2 = input parameter "b" : f32[256, 128]
%3 = input parameter "c" : f32[128, 256]
%4 = input parameter "d" : f32[256, 128]
%5 = einsum "ab,bc->ac" %0, %1 : f32[64, 256] ; forward
%6 = einsum "ab,bc->ac" %5, %2 : f32[64, 128] ; forward
%7 = tanh %6 : f32[64, 128] ; forward
%8 = einsum "ab,bc->ac" %0, %3 : f32[64, 256] ; forward
%9 = einsum "ab,bc->ac" %8, %4 : f32[64, 128] ; forward
%10 = mul %7, %9 : f32[64, 128] ; forward
output result "y" %10
"#;

/// The program of the first of two ranks, with each pair cut by columns and rows.
fn program(target: &Target) -> RankProgram {
    let model = parse::parse(MODEL).unwrap();
    let mesh = Mesh::parse("tp=2").unwrap();
    let cut = |name: &str, dim: usize| {
        let id = InputId::Parameter(name.into());
        let sharding = model.node(model.inputs_by_id()[&id]).types[0].sharding.pushed(dim, AxisId(0));
        (id, Annotation { sharding, why: Demand::Note("test".into()).into() })
    };
    let inputs = [cut("a", 1), cut("b", 0), cut("c", 1), cut("d", 0)].into_iter().collect();
    let placed = propagate(&model, &Annotations { mesh, inputs, ..Annotations::default() }, target);
    // Buckets would combine the two collectives.
    let options = LowerOptions { bucket_bytes: 0, ..LowerOptions::default() };
    lower_with(&placed, target, &options).unwrap().remove(0)
}

/// A target on which the times of launches, products, memory and links are easy to add up.
fn target(kind: DeviceKind, latency: f64, bandwidth: f64) -> Target {
    let mut target = Target::cpu().clone();
    target.device.kind = kind;
    target.device.launch = 1.0;
    target.device.products.f32 = 1e6;
    target.device.memory = f64::INFINITY;
    target.links.default.latency = latency;
    target.links.default.bandwidth = bandwidth;
    target.links.node = None;
    target
}

/// Floating-point operations of a rank, which computes four products of 64 × 128 × 128 terms.
const FLOPS: f64 = 4.0 * 2.0 * 64.0 * 128.0 * 128.0;
/// Size of a reduced value in bytes.
const VALUE: f64 = 64.0 * 128.0 * 4.0;

fn kernels(program: &RankProgram) -> usize {
    program.steps.iter().filter(|s| !matches!(s.action, Action::Start(_) | Action::Wait { .. })).count()
}

fn simulated(kind: DeviceKind, latency: f64, bandwidth: f64) -> (RankProgram, Timeline) {
    let target = target(kind, latency, bandwidth);
    let program = program(&target);
    let timeline = simulate(&program, &target);
    (program, timeline)
}

fn about(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

#[test]
fn a_cpu_overlaps_nothing() {
    let (program, timeline) = simulated(DeviceKind::Cpu, 0.5, VALUE);
    let compute = kernels(&program) as f64 + FLOPS / 1e6;
    assert!(about(timeline.flops, FLOPS) && about(timeline.busy(Lane::Compute), compute), "{timeline:?}");
    // An all-reduce on two ranks sends the value once.
    assert!(about(timeline.sent, 2.0 * VALUE) && about(timeline.busy(Lane::Communication), 2.0 * 1.5));
    assert!(about(timeline.seconds, compute + 3.0) && about(timeline.exposed(), 3.0));
    assert_eq!(timeline.busy(Lane::Waiting), 0.0);
}

#[test]
fn a_gpu_waits_only_for_what_no_kernel_hides() {
    let (program, timeline) = simulated(DeviceKind::Cuda, 0.5, VALUE);
    let compute = kernels(&program) as f64 + FLOPS / 1e6;
    // The first reduction is in flight while the second pair of products runs; the loop after the second reduction
    // waits for all of it.
    assert!(about(timeline.busy(Lane::Communication), 3.0) && about(timeline.busy(Lane::Waiting), 1.5), "{timeline:?}");
    assert!(about(timeline.seconds, compute + 1.5) && about(timeline.exposed(), 1.5), "{timeline:?}");
}

#[test]
fn links_without_latency_and_limit_cost_nothing() {
    for kind in [DeviceKind::Cpu, DeviceKind::Cuda] {
        let (_, timeline) = simulated(kind, 0.0, f64::INFINITY);
        assert_eq!((timeline.exposed(), timeline.busy(Lane::Communication)), (0.0, 0.0), "{kind:?}");
    }
}

#[test]
fn collectives_are_executed_in_sequence() {
    // The collectives are slower than all kernels together, so the second waits for the first on the stream.
    let (_, timeline) = simulated(DeviceKind::Cuda, 100.0, f64::INFINITY);
    let collectives: Vec<_> = timeline.slices.iter().filter(|slice| slice.lane == Lane::Communication).collect();
    assert_eq!(collectives.len(), 2);
    assert!(about(collectives[1].start, collectives[0].start + 100.0), "{timeline:?}");
}

#[test]
fn slices_of_a_lane_do_not_overlap() {
    for (latency, bandwidth) in [(0.5, VALUE), (100.0, 1e3), (1e-3, 1e9)] {
        let (_, timeline) = simulated(DeviceKind::Cuda, latency, bandwidth);
        for lanes in [&[Lane::Compute, Lane::Waiting][..], &[Lane::Communication]] {
            let mut end = 0.0;
            for slice in timeline.slices.iter().filter(|slice| lanes.contains(&slice.lane)) {
                assert!(slice.start >= end - 1e-9, "{timeline:?}");
                end = slice.start + slice.seconds;
            }
            assert!(end <= timeline.seconds + 1e-9);
        }
    }
}
