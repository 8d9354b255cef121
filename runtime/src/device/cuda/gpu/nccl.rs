//! Collectives by NCCL, through a small table of its functions.
//!
//! Communicators are non-blocking: a call may report that it is in progress, and is then polled until it is done or the
//! deadline has passed. At the deadline the communicator is aborted, so a missing peer is an error and not a hang.

use super::rendezvous::{Hosts, Left, Rendezvous};
use super::watch::Watch;
use crate::comm::Processes;
use crate::device::cuda::emit::{Call, Placed};
use crate::device::cuda::error::CudaError;
use crate::device::cuda::library::Library;
use crate::device::cuda::search;
use crate::error::RuntimeError;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use tpc_ir::program::CollectiveKind;
use tpc_ir::{DType, ReduceOp};

type Comm = *mut c_void;
type Stream = *mut c_void;

/// How long an abort, or the shutdown at the end, may take. Together with the time that streams then take to end, this
/// is less than the grace period of `tpc launch`.
const GOODBYE: Duration = Duration::from_secs(2);

const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

/// `ncclConfig_t` as of version 2.17; later versions recognize it by its size.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cluster: c_int,
    fewest_blocks: c_int,
    most_blocks: c_int,
    net: *const c_char,
    share: c_int,
}

const UNDEFINED: c_int = c_int::MIN;

/// The functions of NCCL in use.
#[derive(Clone, Copy)]
pub struct Nccl {
    version: unsafe extern "C" fn(*mut c_int) -> c_int,
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> c_int,
    async_error: unsafe extern "C" fn(Comm, *mut c_int) -> c_int,
    abort: unsafe extern "C" fn(Comm) -> c_int,
    destroy: unsafe extern "C" fn(Comm) -> c_int,
    finalize: unsafe extern "C" fn(Comm) -> c_int,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int,
    reduce_scatter: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int,
    all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Comm, Stream) -> c_int,
    broadcast: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int,
    reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, c_int, Comm, Stream) -> c_int,
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Comm, Stream) -> c_int,
    receive: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    text: unsafe extern "C" fn(c_int) -> *const c_char,
}

const NAME: &str = "NCCL";

impl Nccl {
    /// Loads the library.
    ///
    /// # Errors
    /// It is missing, or has unexpected contents.
    pub fn load() -> Result<Self, CudaError> {
        let library = search::open(NAME, "nvidia-nccl-cu13", "libnccl.so.2", &[])?;
        Self::of(&library).map_err(|reason| CudaError::BrokenLibrary { library: NAME, reason })
    }

    fn of(library: &Library) -> Result<Self, String> {
        // SAFETY: the types are those of nccl.h, unchanged since 2.14; results are numbers, so values of later versions
        // do no harm.
        unsafe {
            Ok(Nccl {
                version: library.function("ncclGetVersion")?,
                unique_id: library.function("ncclGetUniqueId")?,
                init: library.function("ncclCommInitRankConfig")?,
                async_error: library.function("ncclCommGetAsyncError")?,
                abort: library.function("ncclCommAbort")?,
                destroy: library.function("ncclCommDestroy")?,
                finalize: library.function("ncclCommFinalize")?,
                all_reduce: library.function("ncclAllReduce")?,
                reduce_scatter: library.function("ncclReduceScatter")?,
                all_gather: library.function("ncclAllGather")?,
                broadcast: library.function("ncclBroadcast")?,
                reduce: library.function("ncclReduce")?,
                send: library.function("ncclSend")?,
                receive: library.function("ncclRecv")?,
                group_start: library.function("ncclGroupStart")?,
                group_end: library.function("ncclGroupEnd")?,
                text: library.function("ncclGetErrorString")?,
            })
        }
    }

    /// The version: 23007 is 2.30.7.
    pub fn version(&self) -> i32 {
        let mut version = 0;
        // SAFETY: the pointer is writable.
        unsafe { (self.version)(&mut version) };
        version
    }

    fn failed(&self, call: &str, code: c_int) -> CudaError {
        // SAFETY: a constant text for every number.
        let reason = unsafe { CStr::from_ptr((self.text)(code)) }.to_string_lossy().into_owned();
        CudaError::Call { call: call.into(), reason }
    }
}

fn data_type(d: DType) -> c_int {
    match d {
        DType::U8 | DType::Bool => 1,
        DType::I32 => 2,
        DType::I64 => 4,
        DType::F16 => 6,
        DType::F32 => 7,
        DType::F64 => 8,
        DType::BF16 => 9,
    }
}

/// Integers wrap around, unlike on the CPU and between ranks of one process, where narrow integers saturate. For truth
/// values, sum and maximum are *or*, product and minimum are *and*.
fn operation(op: ReduceOp, d: DType) -> c_int {
    match (op, d) {
        (ReduceOp::Sum, DType::Bool) | (ReduceOp::Max, _) => 2,
        (ReduceOp::Prod, DType::Bool) | (ReduceOp::Min, _) => 3,
        (ReduceOp::Sum, _) => 0,
        (ReduceOp::Prod, _) => 1,
    }
}

/// The communicator of one rank in a group.
struct Communicator {
    comm: Comm,
}

// SAFETY: a communicator may be used from any thread, by one at a time, which the lock of its network ensures.
unsafe impl Send for Communicator {}

/// The communicators of one rank, one for each group.
pub struct Network {
    nccl: Nccl,
    rank: usize,
    deadline: Duration,
    rendezvous: Box<dyn Rendezvous>,
    /// The processes of the ranks, if they were launched together.
    processes: Option<Arc<dyn Processes>>,
    groups: Mutex<HashMap<Vec<usize>, Communicator>>,
}

impl Network {
    /// The network of a rank whose peers use a rendezvous.
    ///
    /// # Errors
    /// NCCL cannot be loaded.
    pub fn new(rank: usize, deadline: Duration, rendezvous: Box<dyn Rendezvous>) -> Result<Arc<Self>, CudaError> {
        let nccl = Nccl::load()?;
        Ok(Arc::new(Network { nccl, rank, deadline, rendezvous, processes: None, groups: Mutex::default() }))
    }

    /// The network of a rank among processes that were launched together: they exchange identifiers through their host
    /// sides, and notice the failure or end of a process.
    ///
    /// # Errors
    /// NCCL cannot be loaded.
    pub fn of_processes(
        rank: usize,
        deadline: Duration,
        processes: Arc<dyn Processes>,
    ) -> Result<Arc<Self>, CudaError> {
        let nccl = Nccl::load()?;
        let rendezvous = Box::new(Hosts { processes: processes.clone(), deadline });
        let processes = Some(processes);
        Ok(Arc::new(Network { nccl, rank, deadline, rendezvous, processes, groups: Mutex::default() }))
    }

    pub(super) fn processes(&self) -> Option<&Arc<dyn Processes>> {
        self.processes.as_ref()
    }

    /// Begins a wait for the other ranks.
    pub(super) fn watch(&self) -> Watch<'_> {
        Watch::new(self.processes.as_deref(), self.rank)
    }

    /// The deadline of a collective.
    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    fn groups(&self) -> std::sync::MutexGuard<'_, HashMap<Vec<usize>, Communicator>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Polls a communicator until its operation is done.
    fn settle(&self, comm: Comm, call: &str, deadline: Duration) -> Result<(), RuntimeError> {
        let (start, mut watch) = (Instant::now(), self.watch());
        loop {
            let mut state = SUCCESS;
            // SAFETY: the communicator is alive.
            let asked = unsafe { (self.nccl.async_error)(comm, &mut state) };
            match (asked, state) {
                (SUCCESS, SUCCESS) => return Ok(()),
                (SUCCESS, IN_PROGRESS) => {}
                (SUCCESS, code) | (code, _) => return Err(self.nccl.failed(call, code).into()),
            }
            let (rank, operation) = (self.rank, call.to_string());
            let error = match watch.trouble(|| operation.clone()) {
                Some(error) => error,
                None if start.elapsed() > deadline => CudaError::Deadline { rank, operation, deadline }.into(),
                None => {
                    std::thread::yield_now();
                    continue;
                }
            };
            self.abort_all();
            return Err(error);
        }
    }

    fn checked(&self, comm: Comm, code: c_int, call: &str) -> Result<(), RuntimeError> {
        match code {
            SUCCESS => Ok(()),
            IN_PROGRESS => self.settle(comm, call, self.deadline),
            code => Err(self.nccl.failed(call, code).into()),
        }
    }

    /// Joins groups, except those that this rank has already joined. This is collective over all ranks, which must list
    /// the groups that they share in the same order. An error in `ready` is shared with the others, and no rank joins.
    ///
    /// # Errors
    /// That error, or another rank's; ranks that do not respond.
    pub(super) fn join(&self, groups: &[Vec<usize>], ready: Result<(), RuntimeError>) -> Result<(), RuntimeError> {
        let mut new: Vec<&Vec<usize>> = Vec::new();
        groups.iter().filter(|g| !self.groups().contains_key(*g)).for_each(|g| {
            if !new.contains(&g) {
                new.push(g);
            }
        });
        let key = |group: &[usize]| {
            let names: Vec<String> = group.iter().map(ToString::to_string).collect();
            format!("nccl-{}", names.join("-"))
        };
        let (led, wanted): (Vec<&Vec<usize>>, Vec<_>) = new.iter().partition(|g| g.first() == Some(&self.rank));
        let mine = ready.and_then(|()| {
            if let Some(group) = new.iter().find(|g| !g.contains(&self.rank)) {
                let reason = format!("rank {} is not among them", self.rank);
                return Err(CudaError::Call { call: format!("joining ranks {group:?}"), reason }.into());
            }
            led.iter().map(|group| Ok((key(group), self.identifier()?.0.to_vec()))).collect::<Result<Left, _>>()
        });
        let led: HashMap<String, Vec<u8>> = mine.iter().flatten().cloned().collect();
        let keys: Vec<String> = wanted.iter().map(|group| key(group)).collect();
        let found = self.rendezvous.share(mine, &keys)?;
        let identifiers: HashMap<String, Vec<u8>> = keys.into_iter().zip(found).chain(led).collect();
        for group in new {
            let bytes = identifiers.get(&key(group)).and_then(|b| <[u8; 128]>::try_from(&b[..]).ok());
            let none = || CudaError::Call {
                call: format!("joining ranks {group:?}"),
                reason: "their identifier has a different size; all processes need the same version of tpc".into(),
            };
            self.enter(group, UniqueId(bytes.ok_or_else(none)?))?;
        }
        Ok(())
    }

    fn identifier(&self) -> Result<UniqueId, RuntimeError> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: the pointer is writable.
        let code = unsafe { (self.nccl.unique_id)(&mut id) };
        match code {
            SUCCESS => Ok(id),
            code => Err(self.nccl.failed("ncclGetUniqueId", code).into()),
        }
    }

    fn enter(&self, group: &[usize], id: UniqueId) -> Result<(), RuntimeError> {
        let position = group.iter().position(|&r| r == self.rank).unwrap_or_default();
        let mut config = Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: 21701,
            blocking: 0,
            cluster: UNDEFINED,
            fewest_blocks: UNDEFINED,
            most_blocks: UNDEFINED,
            net: std::ptr::null(),
            share: UNDEFINED,
        };
        let mut comm = std::ptr::null_mut();
        // SAFETY: the configuration has the size that it declares and is read at once.
        let code = unsafe { (self.nccl.init)(&mut comm, group.len() as c_int, id, position as c_int, &mut config) };
        // Recorded before it is ready, so that it is aborted with the others if it never becomes ready.
        if !comm.is_null() {
            self.groups().insert(group.to_vec(), Communicator { comm });
        }
        self.checked(comm, code, &format!("ncclCommInitRankConfig of ranks {group:?}"))
    }

    /// Enqueues the calls of a collective, as one group; `memory` is the device allocation.
    pub(super) fn enqueue(&self, placed: &Placed, memory: u64, stream: Stream) -> Result<(), RuntimeError> {
        let c = &placed.collective;
        let what = crate::comm::describe(c);
        let comm = self.groups().get(&c.group).map(|g| g.comm);
        let comm =
            comm.ok_or_else(|| CudaError::Call { call: what.clone(), reason: "the group was not joined".into() })?;
        let d = data_type(c.dtype);
        let op = match c.kind {
            CollectiveKind::AllReduce(op) | CollectiveKind::ReduceScatter { op, .. } => operation(op, c.dtype),
            _ => 0,
        };
        let at = |place: i64| memory.wrapping_add_signed(place) as *mut c_void;
        let n = &self.nccl;
        // SAFETY: all offsets are in the device allocation, as planned, and the memory stays unused until the rank has
        // waited for the collective.
        let grouped = unsafe {
            (n.group_start)();
            let mut first = SUCCESS;
            for call in &placed.wire.calls {
                let code = match *call {
                    Call::AllReduce { from, to, count } => (n.all_reduce)(at(from), at(to), count, d, op, comm, stream),
                    Call::AllGather { from, to, count } => (n.all_gather)(at(from), at(to), count, d, comm, stream),
                    Call::ReduceScatter { from, to, count } => {
                        (n.reduce_scatter)(at(from), at(to), count, d, op, comm, stream)
                    }
                    Call::Broadcast { from, to, count, root } => {
                        (n.broadcast)(at(from), at(to), count, d, root as c_int, comm, stream)
                    }
                    Call::Reduce { from, to, count, root } => {
                        (n.reduce)(at(from), at(to), count, d, op, root as c_int, comm, stream)
                    }
                    Call::Send { from, count, peer } => (n.send)(at(from), count, d, peer as c_int, comm, stream),
                    Call::Receive { to, count, peer } => (n.receive)(at(to), count, d, peer as c_int, comm, stream),
                };
                if code != SUCCESS && code != IN_PROGRESS && first == SUCCESS {
                    first = code;
                }
            }
            let ended = (n.group_end)();
            if first == SUCCESS { ended } else { first }
        };
        self.checked(comm, grouped, &what)
    }

    /// The error that occurred in a communicator, if any.
    pub(super) fn failure(&self) -> Option<CudaError> {
        for (group, g) in self.groups().iter() {
            let mut state = SUCCESS;
            // SAFETY: the communicator is alive.
            let code = unsafe { (self.nccl.async_error)(g.comm, &mut state) };
            let code = if code == SUCCESS { state } else { code };
            if code != SUCCESS && code != IN_PROGRESS {
                return Some(self.nccl.failed(&format!("communication of ranks {group:?}"), code));
            }
        }
        None
    }

    /// Aborts all communication. NCCL says that this does not hang; code with a deadline does not rely on that.
    pub(super) fn abort_all(&self) {
        let groups: Vec<Communicator> = self.groups().drain().map(|g| g.1).collect();
        if groups.is_empty() {
            return;
        }
        let (abort, (sender, receiver)) = (self.nccl.abort, mpsc::channel());
        let aborting = std::thread::Builder::new().name("NCCL abort".into()).spawn(move || {
            for g in groups {
                // SAFETY: the communicator is alive, and not used again.
                unsafe { abort(g.comm) };
            }
            let _ = sender.send(());
        });
        if aborting.is_ok() {
            let _ = receiver.recv_timeout(GOODBYE);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let groups: Vec<_> = self.groups().drain().collect();
        let deadline = self.deadline.min(GOODBYE);
        for (group, g) in groups {
            // SAFETY: the communicator is alive, and not used again once it is destroyed.
            let code = unsafe { (self.nccl.finalize)(g.comm) };
            let settled = || self.settle(g.comm, "ncclCommFinalize", deadline).is_ok();
            if code == SUCCESS || (code == IN_PROGRESS && settled()) {
                // SAFETY: as above.
                unsafe { (self.nccl.destroy)(g.comm) };
            } else {
                self.groups().insert(group, g);
            }
        }
        self.abort_all();
    }
}
