//! Runs a small program on ranks and times its fastest step.

use crate::Outcome;
use std::time::{Duration, Instant};
use tpc_compiler::error::Error;
use tpc_compiler::target::of_backend;
use tpc_passes::lower::{LowerOptions, lower_with};
use tpc_runtime::session::Backend;
use tpc_runtime::{LaunchOptions, Session};

/// The ranks that measure, and the duration of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Ranks {
    /// What executes the ranks.
    pub backend: Backend,
    /// Number of ranks.
    pub ranks: usize,
    /// Duration of one measurement.
    pub each: Duration,
}

/// Least number of steps in a measurement, independent of their duration.
const LEAST_STEPS: usize = 3;

impl Ranks {
    /// The mesh of all ranks, as programs declare it.
    pub(super) fn mesh(&self) -> String {
        if self.ranks == 1 { "mesh <>".into() } else { format!("mesh <all={}>", self.ranks) }
    }

    /// Starts a placed program, given as text, with every element of its inputs set to the value.
    pub(super) fn launch(&self, source: &str, value: f64) -> Outcome<Session> {
        let graph = tpc_ir::parse::parse(source)?;
        let ranks = lower_with(&graph, of_backend(self.backend), &LowerOptions::plain()).map_err(Error::from)?;
        let mut session = Session::launch(ranks, LaunchOptions { backend: self.backend, ..LaunchOptions::default() })?;
        for (node, id) in graph.inputs() {
            let count = graph.node(node).types[0].shape.iter().product();
            session.write_f64((id.kind(), &*id.to_string()), &vec![value; count])?;
        }
        // The first step touches the memory for the first time.
        session.step()?;
        Ok(session)
    }

    /// The smallest value that `read` returns after each step.
    pub(super) fn fastest(
        &self,
        session: &mut Session,
        mut read: impl FnMut(&mut Session, f64) -> f64,
    ) -> Outcome<f64> {
        let (begun, mut steps, mut least) = (Instant::now(), 0, f64::INFINITY);
        while steps < LEAST_STEPS || begun.elapsed() < self.each {
            session.reset_counters();
            let seconds = session.step()?.seconds;
            least = least.min(read(session, seconds));
            steps += 1;
        }
        Ok(least)
    }
}
