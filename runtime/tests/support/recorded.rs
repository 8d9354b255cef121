//! Sessions whose steps can be recorded, so that other devices can repeat them.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use tpc_ir::program::RankProgram;
use tpc_runtime::{LaunchOptions, RuntimeError, Session, StepReport};

/// A recorded step: programs, inputs before the step, and inputs and outputs after it, as the dense bytes of each
/// binding for each rank.
pub struct Case {
    pub programs: Vec<RankProgram>,
    pub before: Vec<Vec<Vec<u8>>>,
    pub after: Vec<Vec<Vec<u8>>>,
}

thread_local! {
    static CASES: RefCell<Option<Vec<Case>>> = const { RefCell::new(None) };
}

/// Records the steps of all sessions that `f` launches with [`Recorded::launch`] in this thread.
pub fn record(f: impl FnOnce()) -> Vec<Case> {
    CASES.set(Some(Vec::new()));
    f();
    CASES.take().unwrap_or_default()
}

pub struct Recorded {
    session: Session,
    programs: Vec<RankProgram>,
}

impl Recorded {
    pub fn launch(programs: Vec<RankProgram>) -> Self {
        let session = Session::launch(programs.clone(), LaunchOptions::default()).unwrap();
        Recorded { session, programs }
    }

    fn inputs(&self) -> Vec<Vec<Vec<u8>>> {
        let read = |rank: usize, name: &str| {
            let mut bytes = Vec::new();
            let mut take = |_: &_, b: &[u8]| {
                bytes = b.to_vec();
                Ok(())
            };
            self.session.read_box(name, rank, &mut take).unwrap();
            bytes
        };
        let of = |(rank, p): (usize, &RankProgram)| p.inputs.iter().map(|i| read(rank, &i.name)).collect();
        self.programs.iter().enumerate().map(of).collect()
    }

    pub fn step(&mut self) -> Result<StepReport, RuntimeError> {
        let recording = CASES.with_borrow(Option::is_some);
        if !recording {
            return self.session.step();
        }
        let before = self.inputs();
        let report = self.session.step()?;
        let mut after = self.inputs();
        for (rank, p) in self.programs.iter().enumerate() {
            after[rank].extend(p.outputs.iter().map(|o| self.session.read_rank(&o.kind, rank).unwrap()));
        }
        let case = Case { programs: self.programs.clone(), before, after };
        CASES.with_borrow_mut(|c| c.as_mut().unwrap().push(case));
        Ok(report)
    }
}

impl Deref for Recorded {
    type Target = Session;
    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Recorded {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}
