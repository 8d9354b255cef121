//! The interface of a device with separate memory: it holds the arenas of a [`crate::Session`]'s ranks and executes
//! their programs.

use crate::error::RuntimeError;
use std::ops::Range;
use tpc_ir::program::{Binding, RankProgram};

/// The cost of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Time from the call to the end of the last rank, in seconds.
    pub seconds: f64,
}

/// A device with loaded programs. Ranks are given by the position of their programs.
pub trait Device: Send {
    /// The programs, in the order of their ranks.
    fn programs(&self) -> &[RankProgram];

    /// Bytes that a rank has on the device in addition to its program's arena.
    fn scratch_bytes(&self, rank: usize) -> usize;

    /// A range of the dense bytes of a binding.
    ///
    /// # Errors
    /// The device failed.
    fn read_range(&self, rank: usize, binding: &Binding, bytes: Range<usize>) -> Result<Vec<u8>, RuntimeError>;

    /// The dense bytes of a binding.
    ///
    /// # Errors
    /// The device failed.
    fn read(&self, rank: usize, binding: &Binding) -> Result<Vec<u8>, RuntimeError> {
        self.read_range(rank, binding, 0..binding.view.elements() * binding.view.dtype.bytes())
    }

    /// Writes the dense bytes of a binding; the device may defer this until they are needed.
    ///
    /// # Errors
    /// The device failed.
    fn write(&mut self, rank: usize, binding: &Binding, bytes: &[u8]) -> Result<(), RuntimeError>;

    /// Runs all programs once, to completion.
    ///
    /// # Errors
    /// The device failed, or a collective did not finish.
    fn step(&mut self) -> Result<StepReport, RuntimeError>;

    /// For every collective of a rank's program, in program order, whether the latest step executed it.
    fn executed(&self, rank: usize) -> Vec<bool>;

    /// Switches to other programs. Arenas stay as large or grow, and every byte keeps its contents.
    ///
    /// # Errors
    /// Programs that cannot be executed; too little memory.
    fn switch_to(&mut self, programs: Vec<RankProgram>) -> Result<(), RuntimeError>;
}
