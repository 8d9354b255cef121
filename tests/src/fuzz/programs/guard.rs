//! Runs work that may panic or never end in a separate thread.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::Duration;

/// Why guarded work gave no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It panicked, with this message and location.
    Panicked(String),
    /// It did not finish in time. Its thread keeps running.
    Hung(Duration),
}

thread_local! {
    /// The latest panic of a guarded thread.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The name of threads whose panics are recorded instead of printed.
const NAME: &str = "guarded";

/// Keeps panics of guarded threads and of ranks from being printed: their errors contain the same text.
fn keep_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            match thread.name() {
                Some(NAME) => PANIC.with_borrow_mut(|panic| *panic = Some(info.to_string())),
                Some(name) if name.starts_with("rank ") => {}
                _ => before(info),
            }
        }));
    });
}

/// Runs `work` with a time limit, in a thread with the stack size of a main thread.
///
/// # Errors
/// If the work panics or does not finish in time.
///
/// # Panics
/// If the system cannot create a thread.
pub fn guarded<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Ended> {
    keep_quiet();
    let (sender, receiver) = channel();
    let guarded = move || {
        let done = catch_unwind(AssertUnwindSafe(work));
        let panic = || PANIC.with_borrow_mut(Option::take).unwrap_or_default();
        // The receiver no longer exists after the time limit.
        let _ = sender.send(done.map_err(|_| Ended::Panicked(panic())));
    };
    let thread = Builder::new().name(NAME.into()).stack_size(8 << 20).spawn(guarded);
    let thread = thread.unwrap_or_else(|e| panic!("no thread: {e}"));
    match receiver.recv_timeout(limit) {
        Ok(result) => {
            let _ = thread.join();
            result
        }
        Err(RecvTimeoutError::Timeout) => Err(Ended::Hung(limit)),
        Err(RecvTimeoutError::Disconnected) => Err(Ended::Panicked("the thread has gone".into())),
    }
}
