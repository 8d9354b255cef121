//! `tpc launch`: starts the processes of a world, watches them, and ends them all when one fails.
//!
//! If a process fails, the launcher writes this into the control block with the reason, so that the others give up at
//! once. Processes that have not ended after a while, including stopped ones, are killed. A signal to the launcher goes
//! to all processes; it waits for those that report that they finish a step first, until a second signal. If the
//! launcher itself dies, the system kills its children, and processes that have joined notice it themselves.

use super::environment::CONTROL;
use super::error::LaunchError;
use super::signals::Signals;
use super::{DEADLINE, FLIGHT_DIR};
use crate::comm::control::{Control, is_alive, state_of};
use crate::comm::processes::Ending;
use crate::error::of_rank;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What to launch, and how.
#[derive(Clone, Debug)]
pub struct LaunchSpec {
    /// Number of processes, one for each rank.
    pub ranks: usize,
    /// The program.
    pub program: OsString,
    /// Its arguments, the same for all.
    pub arguments: Vec<OsString>,
    /// The deadline of collectives for the processes; `None` for their default.
    pub deadline: Option<Duration>,
    /// How long processes may take to end after one has failed.
    pub grace: Duration,
    /// Directory for the flight record of a failure; by default the system's directory for temporary files.
    pub flight_dir: Option<PathBuf>,
}

/// How a launch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// 0, or the exit code of the process that failed first: 128 plus the signal's number if a signal killed it.
    pub code: u8,
    /// A message about the first failure; `None` if there was none, because all processes finished a step when they
    /// were asked to end.
    pub message: Option<String>,
    /// The path of the flight record.
    pub flight_record: Option<PathBuf>,
    /// Whether the processes joined. A program that does not join runs as often as it was launched, each time alone.
    pub joined: bool,
}

/// Where the error output of the processes goes.
pub type Output = Arc<Mutex<dyn Write + Send>>;

/// Maximum interval at which processes are checked.
const LOOK: Duration = Duration::from_millis(20);
/// How long to wait for the last lines of processes that have ended.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Exit codes of processes that a signal ended: SIGHUP, SIGINT, SIGTERM.
const STOPPED: [u8; 3] = [128 + libc::SIGHUP as u8, 128 + libc::SIGINT as u8, 128 + libc::SIGTERM as u8];

struct Running {
    rank: usize,
    child: Child,
    output: JoinHandle<()>,
    status: Option<ExitStatus>,
    /// Whether it joined the others, known once it has ended.
    joined: bool,
}

impl Running {
    /// Sends a signal to the process and its descendants.
    fn signal(&self, number: i32) {
        if self.status.is_none() {
            // SAFETY: a system call that accesses no memory. The child is not reaped yet, so the number of its process
            // group is still valid.
            unsafe { libc::kill(-(self.child.id() as i32), number) };
        }
    }
}

/// Starts processes and waits until all have ended. Must be called by a thread that lives as long as the program,
/// because the children die with it.
///
/// # Errors
/// Processes that cannot be started. [`Ended`] reports their own failures.
pub fn launch(launch: &LaunchSpec, stderr: &Output) -> Result<Ended, LaunchError> {
    let system = |what: &str| {
        let what = what.to_string();
        move |source| LaunchError::System { what, source }
    };
    let control = Control::shared(launch.ranks).map_err(system("no memory for a control block"))?;
    let signals = Signals::block(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGCHLD]);
    let mut all = Vec::with_capacity(launch.ranks);
    for rank in 0..launch.ranks {
        match start(launch, rank, &control, &signals, stderr) {
            Ok(running) => all.push(running),
            Err(e) => {
                end(&mut all);
                let what = format!("`{}` cannot be started", launch.program.to_string_lossy());
                return Err(LaunchError::System { what, source: e });
            }
        }
    }
    let (code, end) = watch(&mut all, &control, &signals, launch.grace);
    let start = Instant::now();
    while start.elapsed() < LAST_LINES && all.iter().any(|r| !r.output.is_finished()) {
        std::thread::sleep(Duration::from_millis(2));
    }
    signals.restore();
    let joined = all.iter().any(|r| r.joined);
    if code == 0 {
        return Ok(Ended { code, message: None, flight_record: None, joined });
    }
    clean(&control.leftover());
    let failure = control.failure().map(|(rank, reason)| of_rank(rank, " failed: ", &reason));
    let message = match end {
        End::Told(told) => Some(told),
        End::Finishing if failure.is_none() => return Ok(Ended { code, message: None, flight_record: None, joined }),
        End::Finishing | End::Own => failure,
    };
    let flight_record = write_record(&control, launch.flight_dir.as_deref());
    Ok(Ended { code, message, flight_record, joined })
}

fn start(
    launch: &LaunchSpec,
    rank: usize,
    control: &Control,
    signals: &Signals,
    stderr: &Output,
) -> io::Result<Running> {
    let mut command = Command::new(&launch.program);
    command.args(&launch.arguments).stdin(Stdio::null()).stderr(Stdio::piped());
    command.stdout(if rank == 0 { Stdio::inherit() } else { Stdio::null() });
    let handle = control.handle().map(|h| h.to_text()).unwrap_or_default();
    command.env("TPC_RANK", rank.to_string()).env("TPC_WORLD", launch.ranks.to_string()).env(CONTROL, handle);
    if let Some(deadline) = launch.deadline {
        command.env(DEADLINE, deadline.as_secs_f64().to_string());
    }
    if let Some(dir) = &launch.flight_dir {
        command.env(FLIGHT_DIR, dir);
    }
    command.process_group(0);
    let (launcher, mask) = (std::process::id(), signals.before);
    let prepare = move || {
        // SAFETY: these system calls may be made between fork and exec. The child must receive the signals that the
        // launcher blocks; if the launcher has already died, nothing would kill the child.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, std::ptr::null_mut());
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() as u32 != launcher {
                libc::_exit(1);
            }
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls.
    unsafe { command.pre_exec(prepare) };
    let mut child = command.spawn()?;
    let (pipe, stderr) = (child.stderr.take(), stderr.clone());
    let output = std::thread::spawn(move || {
        if let Some(pipe) = pipe {
            forward(rank, pipe, &stderr);
        }
    });
    Ok(Running { rank, child, output, status: None, joined: false })
}

/// Forwards the lines of a process, each prefixed with its rank.
fn forward(rank: usize, pipe: impl Read, stderr: &Output) {
    let mut lines = BufReader::new(pipe);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        let mut stderr = stderr.lock().unwrap_or_else(PoisonError::into_inner);
        // A terminal that is gone takes no lines.
        let _ = stderr.write_all(&[format!("[rank {rank}] ").as_bytes(), &line].concat());
        line.clear();
    }
}

/// Why processes ended.
enum End {
    /// By themselves, or because a rank failed.
    Own,
    /// They were asked to end, and finish a step first.
    Finishing,
    /// They were asked to end, with this message for the user.
    Told(String),
}

/// Waits until all processes have ended; returns the exit code, and why they ended.
fn watch(all: &mut [Running], control: &Control, signals: &Signals, grace: Duration) -> (u8, End) {
    let mut code = 0;
    let mut end = End::Own;
    let mut failed: Option<Instant> = None;
    loop {
        for running in all.iter_mut().filter(|r| r.status.is_none()) {
            let status = match running.child.try_wait() {
                Ok(Some(status)) => status,
                Ok(None) => continue,
                // It was reaped elsewhere; its status is unknown.
                Err(_) => ExitStatus::from_raw(1 << 8),
            };
            let (pid, child) = (&control.rank(running.rank).pid, running.child.id());
            // A shell around it may end earlier than the process that finishes its step.
            if matches!(end, End::Finishing) && is_alive(pid.load(Ordering::Acquire)) {
                continue;
            }
            running.status = Some(status);
            // A process that never joined counts as lost.
            running.joined = pid.compare_exchange(0, child, Ordering::AcqRel, Ordering::Relaxed).is_err();
            let by_signal = STOPPED.contains(&code_of(status));
            if by_signal && control.ending(running.rank) == Ending::AsTold && !control.has_failed() {
                // Also if only one rank received a signal, and not the launcher.
                code = code_of(status);
                end = End::Finishing;
            } else if !status.success() {
                control.fail(running.rank, || format!("its process {}", describe(status)));
                if code == 0 {
                    code = code_of(status);
                }
            }
        }
        if all.iter().all(|r| r.status.is_some()) {
            return (if code == 0 && control.has_failed() { 1 } else { code }, end);
        }
        if control.has_failed() {
            let since = *failed.get_or_insert_with(Instant::now);
            let is_stopped = |r: &Running| r.status.is_some() || state_of(r.child.id()) == Some('T');
            // Stopped processes would not end by themselves.
            let nobody_runs = code != 0 && all.iter().all(is_stopped);
            if since.elapsed() > grace || nobody_runs {
                all.iter().for_each(|r| r.signal(libc::SIGKILL));
            }
        }
        if let Some(signal) = signals.wait(LOOK) {
            // A user who asks twice does not want to wait.
            let passed_on = if matches!(end, End::Own) { signal } else { libc::SIGKILL };
            code = 128 + signal as u8;
            end = match end {
                End::Own if all.iter().all(|r| control.ending(r.rank) != Ending::AtOnce) => End::Finishing,
                End::Told(told) => End::Told(told),
                End::Own | End::Finishing => End::Told(format!("ended by {}", name(signal))),
            };
            if let End::Told(told) = &end {
                control.fail(0, || format!("the launcher was {told}"));
            }
            all.iter().for_each(|r| r.signal(passed_on));
        }
    }
}

/// Kills all running processes.
fn end(all: &mut [Running]) {
    for running in all {
        running.signal(libc::SIGKILL);
        running.status = running.child.wait().ok();
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by {}", name(signal)),
        (None, Some(code)) => format!("exited with code {code}"),
        (None, None) => "ended".into(),
    }
}

fn code_of(status: ExitStatus) -> u8 {
    match (status.signal(), status.code()) {
        (Some(signal), _) => (128 + signal) as u8,
        (None, Some(code)) => code as u8,
        (None, None) => 1,
    }
}

fn name(signal: i32) -> String {
    let known = match signal {
        libc::SIGKILL => " (SIGKILL)",
        libc::SIGTERM => " (SIGTERM)",
        libc::SIGINT => " (SIGINT)",
        libc::SIGHUP => " (SIGHUP)",
        libc::SIGSEGV => " (SIGSEGV)",
        libc::SIGBUS => " (SIGBUS, memory that could not be allocated)",
        libc::SIGABRT => " (SIGABRT)",
        libc::SIGXFSZ => " (SIGXFSZ, a file that became too large)",
        _ => "",
    };
    format!("signal {signal}{known}")
}

/// Removes what a process that died was writing, but only if it looks like one of our unfinished checkpoints or files.
fn clean(leftover: &str) {
    let path = Path::new(leftover);
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return };
    // The next save also removes a leftover checkpoint.
    if name.starts_with(".step-") && name.ends_with(".partial") {
        let _ = std::fs::remove_dir_all(path);
    } else if name.ends_with(".tmp") {
        let _ = std::fs::remove_file(path);
    }
}

/// Writes the latest collectives of all ranks, if there are any.
fn write_record(control: &Control, dir: Option<&Path>) -> Option<PathBuf> {
    let record = control.flight_record();
    // A failure before the first collective has no record.
    record.ranks.iter().find(|rank| !rank.operations.is_empty())?;
    let dir = dir.map_or_else(std::env::temp_dir, Path::to_path_buf);
    let path = dir.join(format!("tpc-flight-{}.json", std::process::id()));
    std::fs::create_dir_all(&dir).ok()?;
    std::fs::write(&path, record.to_json()).ok()?;
    Some(path)
}
