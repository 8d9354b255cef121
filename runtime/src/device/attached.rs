//! What a [`crate::Session`] needs of a device with memory of its own: it holds what the ranks have, and executes their programs.

use crate::error::RuntimeError;
use std::ops::Range;
use tpc_ir::program::{Binding, RankProgram};

/// What a step took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// From the call to the end of the last rank.
    pub seconds: f64,
}

/// A device with programs. Ranks are given by the position of their programs.
pub trait Device: Send {
    /// The programs, in the order of their ranks.
    fn programs(&self) -> &[RankProgram];

    /// Bytes that a rank has on the device besides what its program asks for.
    fn scratch_bytes(&self, rank: usize) -> usize;

    /// Some of the dense bytes of a binding.
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

    /// Writes the dense bytes of a binding; the device may wait with it until they are needed.
    ///
    /// # Errors
    /// The device failed.
    fn write(&mut self, rank: usize, binding: &Binding, bytes: &[u8]) -> Result<(), RuntimeError>;

    /// Runs all programs once, to their end.
    ///
    /// # Errors
    /// The device failed, or a collective did not finish.
    fn step(&mut self) -> Result<StepReport, RuntimeError>;

    /// Of every collective of a rank's program, in program order, whether the latest step executed it.
    fn executed(&self, rank: usize) -> Vec<bool>;

    /// Executes other programs from now on. Arenas are as large as before or larger, and every byte of them keeps what it holds.
    ///
    /// # Errors
    /// Programs that cannot be executed; too little memory.
    fn switch_to(&mut self, programs: Vec<RankProgram>) -> Result<(), RuntimeError>;
}
