//! The MPI library: the few calls that are needed, all of them non-blocking but the first and the last.
//!
//! One thread calls it at a time (`MPI_THREAD_SERIALIZED`, which every MPI has, is asked for): a lock sees to that, because the threads
//! of a rank, of the host program and of the beat all do.

use mpi::ffi;
use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of one message: MPI counts in `int`s.
const LARGEST: usize = 1 << 30;

/// What messages are about. Each has a communicator of its own, so that they cannot be taken for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    /// Failures, farewells and signs of life.
    News,
    /// What hosts exchange.
    Hosts,
    /// Collectives.
    Ranks,
}

/// The initialized library.
pub(super) struct Library {
    news: ffi::MPI_Comm,
    hosts: ffi::MPI_Comm,
    ranks: ffi::MPI_Comm,
    /// Whether it may still be called.
    open: Mutex<bool>,
    rank: usize,
    world: usize,
}

// SAFETY: communicators are handles without thread affinity, and all calls are made under the lock.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

/// Some messages that are under way.
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
    /// None.
    pub(super) fn new() -> Self {
        let (handles, finished, indices, statuses) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Requests { handles, finished, left: 0, indices, statuses }
    }

    /// How many are under way.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// How many there were.
    pub(super) fn len(&self) -> usize {
        self.handles.len()
    }

    /// Whether the message has been sent or received.
    pub(super) fn is_finished(&self, index: usize) -> bool {
        self.finished[index]
    }

    /// Forgets all, which must be finished. What was allocated stays for the next ones.
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

/// What a call says, if it is no success.
fn checked(code: c_int) -> Result<(), String> {
    if code == 0 {
        return Ok(());
    }
    let mut text = [0u8; 1024];
    let mut length = 0;
    // SAFETY: the text is longer than any message of MPI (`MPI_MAX_ERROR_STRING` is 256 to 1024 with its end).
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &raw mut length) };
    let length = usize::try_from(length).unwrap_or(0).min(text.len());
    Err(String::from_utf8_lossy(&text[..length]).into_owned())
}

const CLOSED: &str = "MPI has been finalized";

impl Library {
    /// Initialises MPI, which waits for all processes, as long as it takes.
    ///
    /// # Errors
    /// What MPI says.
    pub(super) fn init() -> Result<Self, String> {
        // SAFETY: MPI is initialized once in a process, before any other call; the pointers live through the calls.
        unsafe {
            let (mut given, mut rank, mut world) = (0, 0, 0);
            let wanted = ffi::RSMPI_THREAD_SERIALIZED;
            checked(ffi::MPI_Init_thread(std::ptr::null_mut(), std::ptr::null_mut(), wanted, &raw mut given))?;
            if given < wanted {
                return Err("this MPI cannot be called by several threads, one at a time".into());
            }
            checked(ffi::MPI_Comm_rank(ffi::RSMPI_COMM_WORLD, &raw mut rank))?;
            checked(ffi::MPI_Comm_size(ffi::RSMPI_COMM_WORLD, &raw mut world))?;
            let another = || {
                let mut communicator = ffi::RSMPI_COMM_NULL;
                checked(ffi::MPI_Comm_dup(ffi::RSMPI_COMM_WORLD, &raw mut communicator))?;
                checked(ffi::MPI_Comm_set_errhandler(communicator, ffi::RSMPI_ERRORS_RETURN))?;
                Ok::<_, String>(communicator)
            };
            let (news, hosts, ranks) = (another()?, another()?, another()?);
            Ok(Library { news, hosts, ranks, open: Mutex::new(true), rank: rank as usize, world: world as usize })
        }
    }

    /// This process.
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

    /// Starts to send bytes to a process, in as many messages as it takes, none for no bytes.
    ///
    /// # Safety
    /// The bytes must stay there unchanged until the requests are finished.
    ///
    /// # Errors
    /// What MPI says.
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
            // SAFETY: the caller keeps the bytes; MPI is open, and this thread alone calls it.
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

    /// Starts to receive bytes from a process, or from any, in as many messages as [`Library::send`] makes of so many.
    ///
    /// # Safety
    /// The place must stay there and unused until the requests are finished.
    ///
    /// # Errors
    /// What MPI says.
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

    /// Looks which messages are finished, and lets MPI go on with all others.
    ///
    /// # Errors
    /// What MPI says of one that went wrong; it counts as finished.
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
            // SAFETY: a status is integers only; it is read where MPI has written it.
            requests.statuses.resize_with(count, || unsafe { std::mem::zeroed() });
        }
        let mut finished = 0;
        // SAFETY: both lists have room for all requests; MPI is open, and this thread alone calls it.
        let code = unsafe {
            ffi::MPI_Testsome(
                count as c_int,
                requests.handles.as_mut_ptr(),
                &raw mut finished,
                requests.indices.as_mut_ptr(),
                requests.statuses.as_mut_ptr(),
            )
        };
        // Above the number of requests it is "undefined": none was under way.
        let finished = usize::try_from(finished).unwrap_or(0).min(requests.left);
        let mut outcome = Ok(());
        for at in 0..finished {
            let index = requests.indices[at] as usize;
            if !std::mem::replace(&mut requests.finished[index], true) {
                requests.left -= 1;
            }
            // Statuses have errors only where the call says so.
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
            // SAFETY: MPI is open, and this thread alone calls it.
            unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code) };
        }
    }

    /// Ends MPI, when all processes do and no message is under way. `standing` is a receive that is given up.
    pub(super) fn finalize(&self, standing: &mut Requests) {
        let mut open = self.lock();
        if std::mem::replace(&mut *open, false) {
            // SAFETY: MPI is open, and this thread alone calls it; a request is either null or under way.
            unsafe {
                for (handle, finished) in standing.handles.iter_mut().zip(&standing.finished) {
                    if !finished {
                        ffi::MPI_Cancel(handle);
                        ffi::MPI_Wait(handle, ffi::RSMPI_STATUS_IGNORE);
                    }
                }
                ffi::MPI_Finalize();
            }
            standing.left = 0;
        }
    }
}
