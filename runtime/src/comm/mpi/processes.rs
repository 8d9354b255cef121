//! Coordination of the hosts of an MPI world.

use super::ending;
use super::exchange::Exchange;
use super::news::News;
use super::process::Mpi;
use super::ranks::{World, arena_on_all};
use super::wait::wait;
use crate::comm::processes::Ending;
use crate::comm::{Communicators, Processes};
use crate::device::cpu::arena::Arena;
use crate::error::RuntimeError;
use crate::flight::{Flight, FlightRecord};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tpc_ir::program::RankPrograms;

/// The CPU time that an explicit progress report counts for, which is more than any deadline requires.
const EXPLICIT_REPORT: u64 = 1 << 32;

impl Processes for Mpi {
    fn count(&self) -> usize {
        self.world()
    }

    fn process(&self) -> usize {
        self.rank()
    }

    fn local(&self, ranks: usize) -> Result<Range<usize>, RuntimeError> {
        match ranks == self.count() {
            true => Ok(self.rank()..self.rank() + 1),
            false => Err(RuntimeError::Processes { ranks, processes: self.count() }),
        }
    }

    fn exchange(&self, purpose: &str, bytes: &[u8], deadline: Duration) -> Result<Vec<Vec<u8>>, RuntimeError> {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        *rounds += 1;
        let mut exchange = Box::new(Exchange::new(self, purpose, *rounds, bytes));
        let outcome = exchange.begin().and_then(|()| wait(self, deadline, &mut *exchange));
        if let Err(error) = outcome {
            // MPI may still write to its buffers.
            std::mem::forget(exchange);
            // The others would wait for a process that gives up an exchange.
            self.fail(self.rank(), &error.to_string());
            return Err(error);
        }
        Ok(exchange.messages)
    }

    fn fail(&self, rank: usize, reason: &str) {
        self.record_failure(rank, reason);
    }

    fn failure(&self) -> Option<(usize, String)> {
        self.listen();
        self.failed()
    }

    fn gone(&self) -> Vec<usize> {
        (0..self.world()).filter(|&rank| self.has_left(rank) || self.is_gone(rank)).collect()
    }

    fn on_host(&self) -> (usize, usize) {
        self.on_host
    }

    fn written_record(&self) -> Option<PathBuf> {
        Some(self.record_path()).filter(|path| path.is_file())
    }

    fn flight(&self, rank: usize) -> &Flight {
        self.flight_of(rank)
    }

    fn flight_record(&self) -> FlightRecord {
        self.own_record()
    }

    fn progress(&self) {
        // One report that has not been sent yet is enough.
        if self.is_sent() {
            self.tell(&News::Busy(EXPLICIT_REPORT));
        }
    }

    fn leftover(&self, _: &Path) {
        // No process survives a killed one to remove the file; the next save removes it.
    }

    fn set_ending(&self, ending: Ending) {
        // MPI's launchers forward signals and wait for the processes without a deadline.
        self.set_on_request(ending == Ending::AsTold);
    }

    fn open(
        &self,
        programs: Arc<RankPrograms>,
        local: Range<usize>,
        deadline: Duration,
    ) -> Result<Arc<dyn Communicators>, RuntimeError> {
        let (rank, bytes) = (local.start, programs[local.start].arena_bytes);
        let arena = Arena::private(bytes).map(Arc::new).ok_or(RuntimeError::OutOfMemory { rank, bytes });
        let arena = arena_on_all(self, arena, deadline)?;
        let mpi =
            ending::joined().ok_or_else(|| RuntimeError::Launch("this process has not joined an MPI world".into()))?;
        Ok(Arc::new(World::new(mpi, arena, programs, deadline)?))
    }
}
