//! The MPI library: the few calls that are needed. All of them except the first and the last are nonblocking.
//!
//! MPI is initialized with `MPI_THREAD_SERIALIZED`, which every implementation supports: only one thread may call it at
//! a time. A lock ensures this for the threads of the rank and of the host program and for the listening thread.

use mpi::ffi;
use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Maximum number of bytes in one message, because MPI counts in `int`s.
const LARGEST: usize = 1 << 30;

/// The subject of a message. Each channel has its own communicator, so that messages of different channels cannot be
/// confused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    /// Failures, departures and progress reports.
    News,
    /// Exchanges between hosts.
    Hosts,
    /// Collectives.
    Ranks,
}

/// The initialized library.
pub(super) struct Library {
    news: ffi::MPI_Comm,
    hosts: ffi::MPI_Comm,
    ranks: ffi::MPI_Comm,
    /// Whether MPI may still be called.
    open: Mutex<bool>,
    rank: usize,
    world: usize,
}

// SAFETY: communicators are handles without thread affinity, and all calls are made under the lock.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

/// A list of messages in flight.
pub(super) struct Requests {
    handles: Vec<ffi::MPI_Request>,
    finished: Vec<bool>,
    left: usize,
    indices: Vec<c_int>,
    statuses: Vec<ffi::MPI_Status>,
}

// SAFETY: requests are handles without thread affinity, and all calls are made under the library's lock.
unsafe impl Send for Requests {}

impl Requests {
    /// An empty list.
    pub(super) fn new() -> Self {
        let (handles, finished, indices, statuses) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Requests { handles, finished, left: 0, indices, statuses }
    }

    /// Number of messages in flight.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Number of messages in the list, finished or not.
    pub(super) fn len(&self) -> usize {
        self.handles.len()
    }

    /// Whether the message has been sent or received.
    pub(super) fn is_finished(&self, index: usize) -> bool {
        self.finished[index]
    }

    /// Clears the list, all of whose messages must be finished. The allocated memory is kept.
    pub(super) fn clear(&mut self) {
        debug_assert_eq!(self.left, 0);
        self.handles.clear();
        self.finished.clear();
    }

    fn push(&mut self, handle: ffi::MPI_Request) {
        self.handles.push(handle);
        self.finished.push(false);
        self.left += 1;
    }
}

/// Turns a return code into a result with MPI's message.
fn checked(code: c_int) -> Result<(), String> {
    if code == 0 {
        return Ok(());
    }
    let mut text = [0u8; 1024];
    let mut length = 0;
    // SAFETY: the buffer holds any message of MPI (`MPI_MAX_ERROR_STRING` is 256 to 1024, with the terminator).
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &raw mut length) };
    let length = usize::try_from(length).unwrap_or(0).min(text.len());
    Err(String::from_utf8_lossy(&text[..length]).into_owned())
}

const CLOSED: &str = "MPI has been finalized";

impl Library {
    /// Initializes MPI. This waits for all processes, without a deadline.
    ///
    /// # Errors
    /// The error that MPI reports.
    pub(super) fn init() -> Result<Self, String> {
        // SAFETY: MPI is initialized once in a process, before any other call; the pointers live through the calls.
        unsafe {
            let (mut provided, mut rank, mut world) = (0, 0, 0);
            let required = ffi::RSMPI_THREAD_SERIALIZED;
            checked(ffi::MPI_Init_thread(std::ptr::null_mut(), std::ptr::null_mut(), required, &raw mut provided))?;
            if provided < required {
                return Err(
                    "this MPI library does not support serialized calls from several threads (`MPI_THREAD_SERIALIZED`)"
                        .into(),
                );
            }
            checked(ffi::MPI_Comm_rank(ffi::RSMPI_COMM_WORLD, &raw mut rank))?;
            checked(ffi::MPI_Comm_size(ffi::RSMPI_COMM_WORLD, &raw mut world))?;
            let duplicate = || {
                let mut communicator = ffi::RSMPI_COMM_NULL;
                checked(ffi::MPI_Comm_dup(ffi::RSMPI_COMM_WORLD, &raw mut communicator))?;
                checked(ffi::MPI_Comm_set_errhandler(communicator, ffi::RSMPI_ERRORS_RETURN))?;
                Ok::<_, String>(communicator)
            };
            let (news, hosts, ranks) = (duplicate()?, duplicate()?, duplicate()?);
            Ok(Library { news, hosts, ranks, open: Mutex::new(true), rank: rank as usize, world: world as usize })
        }
    }

    /// The rank of this process.
    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// Number of processes.
    pub(super) fn world(&self) -> usize {
        self.world
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn communicator(&self, channel: Channel) -> ffi::MPI_Comm {
        match channel {
            Channel::News => self.news,
            Channel::Hosts => self.hosts,
            Channel::Ranks => self.ranks,
        }
    }

    /// Starts to send bytes to a process, in as many messages as necessary; none for zero bytes.
    ///
    /// # Safety
    /// The bytes must stay valid and unchanged until the requests are finished.
    ///
    /// # Errors
    /// The error that MPI reports.
    pub(super) unsafe fn send(
        &self,
        channel: Channel,
        to: usize,
        tag: i32,
        bytes: *const u8,
        length: usize,
        requests: &mut Requests,
    ) -> Result<(), String> {
        let open = self.lock();
        if !*open {
            return Err(CLOSED.into());
        }
        for start in (0..length).step_by(LARGEST) {
            let count = LARGEST.min(length - start) as c_int;
            // SAFETY: the caller keeps the bytes. MPI is open, and the lock excludes other calls.
            unsafe {
                let (from, mut request) = (bytes.add(start).cast(), ffi::RSMPI_REQUEST_NULL);
                let communicator = self.communicator(channel);
                let kind = ffi::RSMPI_UINT8_T;
                checked(ffi::MPI_Isend(from, count, kind, to as c_int, tag, communicator, &raw mut request))?;
                requests.push(request);
            }
        }
        Ok(())
    }

    /// Starts to receive bytes from one process or from any, in as many messages as [`Library::send`] uses for that
    /// length.
    ///
    /// # Safety
    /// The memory must stay valid and unused until the requests are finished.
    ///
    /// # Errors
    /// The error that MPI reports.
    pub(super) unsafe fn receive(
        &self,
        channel: Channel,
        from: Option<usize>,
        tag: i32,
        bytes: *mut u8,
        length: usize,
        requests: &mut Requests,
    ) -> Result<(), String> {
        let open = self.lock();
        if !*open {
            return Err(CLOSED.into());
        }
        for start in (0..length).step_by(LARGEST) {
            let count = LARGEST.min(length - start) as c_int;
            // SAFETY: as in `send`.
            unsafe {
                let (to, mut request) = (bytes.add(start).cast(), ffi::RSMPI_REQUEST_NULL);
                let from = from.map_or(ffi::RSMPI_ANY_SOURCE, |rank| rank as c_int);
                let communicator = self.communicator(channel);
                checked(ffi::MPI_Irecv(to, count, ffi::RSMPI_UINT8_T, from, tag, communicator, &raw mut request))?;
                requests.push(request);
            }
        }
        Ok(())
    }

    /// Checks which messages are finished, and lets MPI make progress on all others.
    ///
    /// # Errors
    /// The error that MPI reports for a message, which then counts as finished.
    pub(super) fn test(&self, requests: &mut Requests) -> Result<(), String> {
        if requests.left == 0 {
            return Ok(());
        }
        let open = self.lock();
        if !*open {
            return Err(CLOSED.into());
        }
        let count = requests.handles.len();
        if requests.indices.len() < count {
            requests.indices.resize(count, 0);
            // SAFETY: a status consists of integers, and only those that MPI has written are read.
            requests.statuses.resize_with(count, || unsafe { std::mem::zeroed() });
        }
        let mut finished = 0;
        // SAFETY: both lists have room for all requests. MPI is open, and the lock excludes other calls.
        let code = unsafe {
            ffi::MPI_Testsome(
                count as c_int,
                requests.handles.as_mut_ptr(),
                &raw mut finished,
                requests.indices.as_mut_ptr(),
                requests.statuses.as_mut_ptr(),
            )
        };
        // MPI_UNDEFINED, which exceeds the number of requests, means that none was in flight.
        let finished = usize::try_from(finished).unwrap_or(0).min(requests.left);
        let mut outcome = Ok(());
        for at in 0..finished {
            let index = requests.indices[at] as usize;
            if !std::mem::replace(&mut requests.finished[index], true) {
                requests.left -= 1;
            }
            // Statuses contain error codes only if the call fails.
            if code != 0 && outcome.is_ok() {
                outcome = checked(requests.statuses[at].MPI_ERROR);
            }
        }
        if finished == 0 { checked(code) } else { outcome }
    }

    /// Ends all processes.
    pub(super) fn abort(&self, code: i32) {
        let mut open = self.lock();
        if std::mem::replace(&mut *open, false) {
            // SAFETY: MPI is open, and the lock excludes other calls.
            unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code) };
        }
    }

    /// Finalizes MPI once all processes do. No messages may be in flight except the pending receives `receives`, which
    /// are canceled.
    pub(super) fn finalize(&self, receives: &mut Requests) {
        let mut open = self.lock();
        if std::mem::replace(&mut *open, false) {
            // SAFETY: MPI is open, and the lock excludes other calls. A request is either null or in flight.
            unsafe {
                for (handle, finished) in receives.handles.iter_mut().zip(&receives.finished) {
                    if !finished {
                        ffi::MPI_Cancel(handle);
                        ffi::MPI_Wait(handle, ffi::RSMPI_STATUS_IGNORE);
                    }
                }
                ffi::MPI_Finalize();
            }
            receives.left = 0;
        }
    }
}
