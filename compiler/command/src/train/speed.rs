//! How fast a run was, beside what the machine can do.

use crate::Outcome;
use crate::launch::{Device, Running};
use std::time::{Duration, Instant};
use tpc_compiler::program::{CompileOptions, compile_graph};
use tpc_ir::{Graph, Mesh, Op};
use tpc_passes::styles::Plan;
use tpc_runtime::{LaunchOptions, Session};

/// Rows and columns of the measured product: its matrices fit into a core's caches.
const SIZE: usize = 384;

/// How long it is measured.
const LONG: Duration = Duration::from_millis(60);

/// Floating-point operations a second of so many ranks that do nothing but f32 products, each its own.
///
/// # Errors
/// A host that cannot run so many.
fn product_rate(ranks: usize) -> Outcome<f64> {
    let square = format!("f32[{SIZE}, {SIZE}]");
    let text = format!(
        "mesh <>\n%0 = input data \"a\" : {square}\n%1 = input data \"b\" : {square}\n\
         %2 = einsum \"ab,bc->ac\" %0, %1 : {square}  ; forward\noutput result \"c\" %2\n"
    );
    let mesh = if ranks == 1 { Mesh::single() } else { Mesh::parse(&format!("all={ranks}"))? };
    let plan = Plan { allow_unused_axes: true, ..Plan::default() };
    let stages = compile_graph(tpc_ir::parse::parse(&text)?, &mesh, &plan, &CompileOptions::default())?;
    let mut session = Session::launch(stages.ranks, LaunchOptions::default())?;
    for input in ["a", "b"] {
        session.write_f64(input, &vec![0.5; SIZE * SIZE])?;
    }
    session.step()?;
    let (begun, mut products) = (Instant::now(), 0usize);
    while begun.elapsed() < LONG {
        session.step()?;
        products += ranks;
    }
    Ok(2.0 * (SIZE * SIZE * SIZE * products) as f64 / begun.elapsed().as_secs_f64())
}

/// Floating-point operations of the products of a program, whatever its mesh: two for each term.
pub(super) fn flops(logical: &Graph) -> f64 {
    let products = logical.nodes().filter_map(|node| {
        let Op::Einsum { subs } = &logical.node(node).op else { return None };
        let shapes: Vec<&[usize]> = logical.operands(node).iter().map(|&v| &*logical.ty(v).shape).collect();
        let sizes = subs.sizes(&shapes, None)?;
        Some(2.0 * sizes.iter().map(|&n| n as f64).product::<f64>())
    });
    products.sum()
}

/// What a step computes, and what the machine could.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    /// Floating-point operations of all ranks in a step.
    flops: Option<f64>,
    /// Floating-point operations a second of all ranks of this host in products that fit into the caches.
    rate: Option<f64>,
}

impl Work {
    /// The work of a step of so many ranks; what the machine can do is measured on CPUs only, in some milliseconds.
    ///
    /// # Errors
    /// A host that cannot run so many ranks.
    pub(super) fn of(running: &Running, flops: Option<f64>, ranks: usize) -> Outcome<Self> {
        let alone = tpc_runtime::launch::joined().is_none();
        let is_measured = running.device == Device::Cpu && alone && flops.is_some();
        let rate = if is_measured { Some(product_rate(ranks)?) } else { None };
        Ok(Work { flops, rate })
    }

    /// A line about a run: tokens a second, the share of the time in which it waited for data, memory, and the share of what the machine can
    /// do that its products were (MFU).
    pub(super) fn summary(
        &self,
        session: &Session,
        (steps, tokens): (u64, usize),
        seconds: f64,
        waited: f64,
    ) -> String {
        let ranks = session.local_ranks();
        let bytes = ranks.map(|rank| session.allocated_bytes(rank) + session.scratch_bytes(rank)).max().unwrap_or(0);
        let mut text = format!(
            "{tokens} tokens in {seconds:.1} s: {:.0} tokens/s, {:.1}% of the time waiting for data, {:.1} MB a rank",
            tokens as f64 / seconds,
            waited * 100.0,
            bytes as f64 / 1e6
        );
        if let (Some(flops), Some(rate)) = (self.flops, self.rate) {
            let mfu = flops * steps as f64 / seconds / rate;
            text += &format!(", MFU {:.1}% of {:.1} GFLOP/s measured", mfu * 100.0, rate * 1e-9);
        }
        text
    }
}
