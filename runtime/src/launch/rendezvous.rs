//! How processes that another launcher started on one host find each other: rank 0 listens, the other ranks connect to
//! it, and once all have connected, they learn where its control block is.
//!
//! ```text
//! rank k → rank 0:  tpc VERSION GREETING
//! rank 0 → rank k:  ok HANDLE        all have joined
//!                   refused REASON   the job cannot start
//!                   another REASON   the process seems to belong to another job, or has different settings
//!                   busy REASON      according to the launchers, this is another job      one line each
//! ```
//! Two jobs may use the same address. They are distinguished by the launchers' names for them; if the launchers have no
//! names for jobs, by the settings that all processes of a job share: [`Settings`]. A process that is rejected tries
//! again, because its own rank 0 listens there once the other job has started.

use super::Joining;
use super::environment::{Job, Launched};
use super::error::{LaunchError, ranks};
use crate::comm::control::Control;
use crate::comm::shared_memory::Handle;
use crate::settings::{Settings, difference};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Interval between attempts.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a connected process may take to send its line.
const LINE: Duration = Duration::from_secs(5);
/// Maximum bytes of a line.
const LONGEST: u64 = 1 << 20;
/// How long a rejected process waits for its own rank 0, and how long rank 0 waits for other processes after it has
/// rejected one.
const OTHERS: Duration = Duration::from_secs(10);
/// Time after which a process reports which processes it waits for.
const PATIENCE: Duration = Duration::from_secs(3);

/// Joins the other processes.
///
/// # Errors
/// Processes that do not join within the deadline, are on another host, or belong to another job.
pub fn meet(launched: &Launched, joining: &mut Joining) -> Result<Arc<Control>, LaunchError> {
    if launched.rank == 0 { lead(launched, joining) } else { follow(launched, joining) }
}

fn unusable(launched: &Launched, problem: impl ToString) -> LaunchError {
    LaunchError::Address { rank: launched.rank, address: launched.address.clone(), problem: problem.to_string() }
}

/// The identity of a host for processes that share memory: one boot of one machine, and one namespace of process ids.
pub(crate) fn host() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let space = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{}/{}", boot.trim(), space.display())
}

/// The line that a process sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Greeting {
    rank: usize,
    world: usize,
    host: String,
    job: Option<Job>,
    settings: Settings,
}

/// The beginning of every line from a process of this version.
const PREFIX: &str = concat!("tpc ", env!("CARGO_PKG_VERSION"), " ");

impl Greeting {
    fn of(launched: &Launched, joining: &Joining) -> Self {
        let Launched { rank, world, ref job, .. } = *launched;
        Greeting { rank, world, host: host(), job: job.clone(), settings: joining.settings.clone() }
    }

    fn to_line(&self) -> String {
        format!("{PREFIX}{}\n", serde_json::to_string(self).unwrap_or_default())
    }
}

/// How rank 0 classifies a line.
#[derive(Debug, PartialEq, Eq)]
enum Guest {
    /// A rank of this job.
    Ours(usize),
    /// A process of this job that cannot take part.
    Wrong(String),
    /// A process that claims this rank, but whose settings differ from this job's.
    Another(usize, String),
    /// A process of a job with another name.
    Busy(String),
    /// A process of another version of this program.
    OtherVersion,
    /// Another program.
    Stranger,
}

fn guest(line: &str, mine: &Greeting) -> Guest {
    let Some(rest) = line.strip_prefix(PREFIX) else {
        return if line.starts_with("tpc ") { Guest::OtherVersion } else { Guest::Stranger };
    };
    let Ok(theirs) = serde_json::from_str::<Greeting>(rest) else { return Guest::OtherVersion };
    let rank = theirs.rank;
    let name = |job: &Option<Job>| job.as_ref().map_or("a job without a name".into(), |job| format!("job {job}"));
    if mine.job != theirs.job {
        return Guest::Busy(format!("rank 0 belongs to {}, this process to {}", name(&mine.job), name(&theirs.job)));
    }
    let problem = if mine.host != theirs.host {
        Some(format!(
            "rank {rank} is on another host or in another container; processes of several hosts need MPI (tpc, built with the feature `mpi`, started with mpirun), or GPUs with NCCL"
        ))
    } else if theirs.world != mine.world {
        Some(format!("rank 0 is one of {} processes, rank {rank} one of {}", mine.world, theirs.world))
    } else if rank == 0 {
        Some("there is a rank 0 already".into())
    } else if rank >= mine.world {
        Some(format!("there is no rank {rank} among {} processes", mine.world))
    } else {
        None
    };
    match (problem, &mine.job) {
        (Some(problem), Some(_)) => Guest::Wrong(problem),
        (Some(problem), None) => Guest::Another(rank, problem),
        // Processes with the same job name belong to one job: differences are reported when all have joined.
        (None, Some(_)) => Guest::Ours(rank),
        (None, None) => match difference(&[(0, &mine.settings), (rank, &theirs.settings)]) {
            Some(difference) => Guest::Another(rank, difference),
            None => Guest::Ours(rank),
        },
    }
}

/// Opens the port where rank 0 listens. It may still be used by an earlier run, or by another job until that has
/// started.
fn listen(launched: &Launched, joining: &mut Joining) -> Result<TcpListener, LaunchError> {
    let start = Instant::now();
    loop {
        let error = match TcpListener::bind(&launched.address) {
            Ok(listener) => return Ok(listener),
            Err(error) => error,
        };
        let waited = start.elapsed();
        let is_taken = error.kind() == ErrorKind::AddrInUse;
        let is_short = waited < OTHERS.min(joining.deadline);
        if !is_taken || !is_short && (waited > joining.deadline || !is_led(launched, joining)) {
            let problem = match is_taken {
                true => {
                    format!("{error}; another program or another job listens there, and {} must join", others(launched))
                }
                false => error.to_string(),
            };
            return Err(unusable(launched, problem));
        }
        std::thread::sleep(PAUSE);
    }
}

fn others(launched: &Launched) -> String {
    ranks(&(1..launched.world).collect::<Vec<_>>())
}

/// Whether the rank 0 of another job listens at the address.
fn is_led(launched: &Launched, joining: &Joining) -> bool {
    let greeting = Greeting::of(launched, joining);
    let answer = connect(launched, PAUSE).and_then(|stream| ask(stream, &greeting, LINE));
    answer.is_ok_and(|line| line.starts_with("another ") || line.starts_with("busy "))
}

fn say(stream: &mut TcpStream, word: &str, reason: &str) {
    // A process that has left in the meantime needs no message.
    let _ = writeln!(stream, "{word} {}", reason.replace('\n', " "));
}

fn lead(launched: &Launched, joining: &mut Joining) -> Result<Arc<Control>, LaunchError> {
    let start = Instant::now();
    let no_memory = |source| LaunchError::System { what: "no memory for a control block".into(), source };
    let control = Control::shared(launched.world).map_err(no_memory)?;
    let listener = listen(launched, joining)?;
    listener.set_nonblocking(true).map_err(|e| unusable(launched, e))?;
    let mine = Greeting::of(launched, joining);
    let mut come: Vec<Option<TcpStream>> = (0..launched.world).map(|_| None).collect();
    let mut turned: Vec<Turned> = Vec::new();
    let mut waits = Waits::new(launched);
    let refuse = |streams: Vec<TcpStream>, reason: &str| {
        streams.into_iter().for_each(|mut stream| say(&mut stream, "refused", reason));
    };
    loop {
        let missing: Vec<usize> = (1..launched.world).filter(|&r| come[r].is_none()).collect();
        if missing.is_empty() {
            break;
        }
        match listener.accept() {
            Ok((mut stream, _)) => {
                let Ok(line) = first_line(&stream, LINE) else { continue };
                match guest(&line, &mine) {
                    Guest::Ours(rank) if come[rank].as_ref().is_some_and(is_open) => {
                        say(&mut stream, "another", &format!("a rank {rank} has already joined"));
                    }
                    Guest::Ours(rank) => come[rank] = Some(stream),
                    Guest::Wrong(reason) => {
                        refuse(come.into_iter().flatten().chain([stream]).collect(), &reason);
                        return Err(unusable(launched, reason));
                    }
                    Guest::Another(rank, reason) => {
                        say(&mut stream, "another", &reason);
                        turn_away(&mut turned, launched, joining, Some(rank), reason);
                    }
                    Guest::Busy(reason) => say(&mut stream, "busy", &reason),
                    Guest::OtherVersion => {
                        let reason = format!(
                            "rank 0 runs version {} of tpc, this process runs another one",
                            env!("CARGO_PKG_VERSION")
                        );
                        say(&mut stream, "refused", &reason);
                        turn_away(&mut turned, launched, joining, None, reason);
                    }
                    // A port scanner, for example.
                    Guest::Stranger => {}
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE.min(Duration::from_millis(5))),
            Err(e) => return Err(unusable(launched, e)),
        }
        waits.tell(joining, &missing);
        // If every missing rank has connected with different settings, that is more likely a mistake than another job.
        let is_hopeless = |rank: &usize| turned.iter().any(|t| t.rank == Some(*rank) && t.since.elapsed() > OTHERS);
        if start.elapsed() > joining.deadline || missing.iter().all(is_hopeless) {
            let reasons: Vec<&str> = turned.iter().map(|t| t.reason.as_str()).collect();
            let detail = match reasons.is_empty() {
                true => String::new(),
                false => format!(" (rejected as processes of another job: {})", reasons.join("; ")),
            };
            let deadline = joining.deadline.min(Duration::from_secs(start.elapsed().as_secs().max(1)));
            let (address, why) = (launched.address.clone(), launched.why());
            let error = LaunchError::Missing { missing, address, deadline, detail, why };
            refuse(come.into_iter().flatten().collect(), &error.to_string());
            return Err(error);
        }
    }
    let handle = control.handle().map(|h| h.to_text()).unwrap_or_default();
    // A process that has left in the meantime is missed later.
    come.into_iter().flatten().for_each(|mut stream| say(&mut stream, "ok", &handle));
    Ok(control)
}

/// The first rejection of a process: the rank that it claimed, the time and the reason.
struct Turned {
    rank: Option<usize>,
    since: Instant,
    reason: String,
}

fn turn_away(
    turned: &mut Vec<Turned>,
    launched: &Launched,
    joining: &mut Joining,
    rank: Option<usize>,
    reason: String,
) {
    // It tries repeatedly.
    if turned.iter().any(|t| t.rank == rank) {
        return;
    }
    let address = &launched.address;
    joining
        .tell(&format!("rank 0 has rejected a process at {address}, which seems to belong to another job: {reason}"));
    turned.push(Turned { rank, since: Instant::now(), reason });
}

/// Reports once which processes this one waits for.
struct Waits<'a> {
    launched: &'a Launched,
    since: Instant,
    told: bool,
}

impl<'a> Waits<'a> {
    fn new(launched: &'a Launched) -> Self {
        Waits { launched, since: Instant::now(), told: false }
    }

    fn tell(&mut self, joining: &mut Joining, missing: &[usize]) {
        if !self.told && self.since.elapsed() > PATIENCE {
            self.told = true;
            let Launched { rank, address, .. } = self.launched;
            joining.tell(&format!("rank {rank} waits for {} at {address}. {}", ranks(missing), self.launched.why()));
        }
    }
}

/// Whether the peer still waits for an answer.
fn is_open(stream: &TcpStream) -> bool {
    let mut byte = [0];
    let waits = |e: &io::Error| e.kind() == ErrorKind::WouldBlock;
    stream.set_nonblocking(true).is_ok() && stream.peek(&mut byte).as_ref().map_or_else(waits, |n| *n > 0)
}

fn connect(launched: &Launched, longest: Duration) -> io::Result<TcpStream> {
    let mut error = io::Error::other("the address cannot be resolved");
    for address in launched.address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, longest.max(PAUSE)) {
            Ok(stream) => return Ok(stream),
            Err(e) => error = e,
        }
    }
    Err(error)
}

/// Sends the greeting, and waits for the answer.
fn ask(mut stream: TcpStream, greeting: &Greeting, longest: Duration) -> io::Result<String> {
    stream.write_all(greeting.to_line().as_bytes())?;
    first_line(&stream, longest)
}

fn follow(launched: &Launched, joining: &mut Joining) -> Result<Arc<Control>, LaunchError> {
    let start = Instant::now();
    let greeting = Greeting::of(launched, joining);
    let mut waits = Waits::new(launched);
    // The time and the reason of the first rejection of this process.
    let mut turned: Option<(Instant, String)> = None;
    let mut latest = String::new();
    if let Err(e) = launched.address.to_socket_addrs() {
        return Err(unusable(launched, e));
    }
    loop {
        let left = joining.deadline.saturating_sub(start.elapsed());
        let is_hopeless = turned.as_ref().is_some_and(|(since, _)| since.elapsed() > OTHERS);
        if left.is_zero() || is_hopeless {
            let (rank, address) = (launched.rank, launched.address.clone());
            return Err(match turned {
                Some((_, reason)) => LaunchError::TurnedAway { rank, address, reason },
                None => {
                    let (deadline, why) = (joining.deadline, launched.why());
                    LaunchError::Missing { missing: vec![0], address, deadline, detail: latest, why }
                }
            });
        }
        waits.tell(joining, &[0]);
        // Rank 0 waits for the others equally long, so its answer is worth waiting for.
        let answer = connect(launched, left.min(LINE)).and_then(|stream| ask(stream, &greeting, left + LINE));
        let line = match answer {
            Ok(line) => line,
            Err(e) => {
                latest = format!(" (the latest attempt: {e})");
                std::thread::sleep(PAUSE);
                continue;
            }
        };
        let turned_away = |reason: &str, joining: &mut Joining| {
            joining.tell(&format!(
                "rank {} was rejected at {}, which another job uses: {reason}; it waits for its own rank 0",
                launched.rank, launched.address
            ));
        };
        match line.split_once(' ') {
            Some(("ok", handle)) => {
                let handle = Handle::parse(handle).ok_or_else(|| unusable(launched, "rank 0 gave no handle"))?;
                return Control::of_peer(handle)
                    .map_err(|e| unusable(launched, format!("the memory of rank 0 cannot be opened: {e}")));
            }
            Some(("refused", reason)) => return Err(LaunchError::Refused(reason.into())),
            Some(("another", reason)) => {
                if turned.is_none() {
                    turned_away(reason, joining);
                    turned = Some((Instant::now(), reason.into()));
                }
            }
            Some(("busy", reason)) => {
                if latest.is_empty() {
                    turned_away(reason, joining);
                }
                latest = format!(" (the latest attempt: another job uses the address, {reason})");
            }
            _ => return Err(unusable(launched, "another program than tpc answers there, and rank 0 is missing")),
        }
        std::thread::sleep(PAUSE);
    }
}

fn first_line(stream: &TcpStream, longest: Duration) -> io::Result<String> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(longest.max(PAUSE)))?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST)).read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(line) => Ok(line.to_string()),
        None => Err(ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::environment::LauncherKind;
    use super::*;

    fn launched(rank: usize, world: usize, port: u16) -> Launched {
        let (kind, address) = (LauncherKind::Torchrun, format!("127.0.0.1:{port}"));
        let names = ["RANK", "WORLD_SIZE"];
        Launched { kind, rank, world, local_rank: rank, local_world: world, address, job: None, names }
    }

    /// Joins with a single setting.
    fn meet_with(launched: &Launched, lr: &str, seconds: f64) -> Result<Arc<Control>, LaunchError> {
        let mut settings = Settings::new();
        settings.set("--lr", lr);
        let deadline = Duration::from_secs_f64(seconds);
        super::meet(launched, &mut Joining { deadline, settings, notes: &mut |_| () })
    }

    fn meet(launched: &Launched, deadline: Duration) -> Result<Arc<Control>, LaunchError> {
        meet_with(launched, "0.1", deadline.as_secs_f64())
    }

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn all_come_in_any_order_and_share_a_control_block() {
        let port = free_port();
        let threads: Vec<_> = (0..4)
            .rev()
            .map(|rank| {
                std::thread::sleep(Duration::from_millis(10));
                std::thread::spawn(move || meet(&launched(rank, 4, port), Duration::from_secs(20)).unwrap())
            })
            .collect();
        let controls: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        controls[2].fail(3, || "it did".into());
        controls.iter().for_each(|c| assert_eq!(c.failure(), Some((3, "it did".into()))));
    }

    #[test]
    fn those_who_do_not_come_are_named_to_all() {
        let port = free_port();
        let short = Duration::from_millis(300);
        let one = std::thread::spawn(move || meet(&launched(1, 4, port), Duration::from_secs(20)).unwrap_err());
        let error = meet(&launched(0, 4, port), short).unwrap_err().to_string();
        assert!(error.starts_with("ranks 2, 3 did not join at 127.0.0.1"), "{error}");
        let told = one.join().unwrap().to_string();
        assert!(told.contains("ranks 2, 3 did not join"), "{told}");
        let error = meet(&launched(1, 2, free_port()), short).unwrap_err().to_string();
        assert!(error.starts_with("rank 0 did not join at 127.0.0.1"), "{error}");
        assert!(error.contains("(the latest attempt: Connection refused") && error.contains("unset RANK"), "{error}");
    }

    fn connected(port: u16) -> TcpStream {
        loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    #[test]
    fn strangers_and_other_jobs_are_turned_away_and_the_job_meets() {
        let port = free_port();
        let lead = std::thread::spawn(move || meet(&launched(0, 2, port), Duration::from_secs(20)));
        connected(port).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut old = connected(port);
        old.write_all(b"tpc 0.0.0 rank 1 of 2 on here\n").unwrap();
        assert!(first_line(&old, LINE).unwrap().starts_with("refused rank 0 runs version"));
        // It gives up before the deadline.
        let error = meet(&launched(1, 3, port), Duration::from_secs(1)).unwrap_err().to_string();
        assert!(error.contains("rejected at 127.0.0.1") && error.contains("rank 0 is one of 2 processes"), "{error}");
        let error = meet_with(&launched(1, 2, port), "0.2", 1.0).unwrap_err().to_string();
        assert!(error.contains("--lr is 0.1 on rank 0 and 0.2 on rank 1"), "{error}");
        assert!(meet(&launched(1, 2, port), Duration::from_secs(20)).is_ok() && lead.join().unwrap().is_ok());
    }

    /// Each process first connects to the other job's rank 0.
    #[test]
    fn two_jobs_meet_at_one_address_one_after_the_other() {
        let port = free_port();
        let join = |rank: usize, lr: &'static str| {
            let thread = std::thread::spawn(move || meet_with(&launched(rank, 2, port), lr, 60.0).unwrap());
            std::thread::sleep(Duration::from_millis(100));
            thread
        };
        let threads = [join(0, "A"), join(1, "B"), join(1, "A"), join(0, "B")];
        let [a0, b1, a1, b0] = threads.map(|thread| thread.join().unwrap());
        a0.fail(1, || "of A".into());
        b0.fail(1, || "of B".into());
        for (control, reason) in [(a1, "of A"), (b1, "of B")] {
            assert_eq!(control.failure(), Some((1, reason.into())));
        }
    }

    #[test]
    fn names_of_jobs_decide_before_settings() {
        let greeting = |job: Option<&str>, lr: &str| {
            let job = job.map(|job| serde_json::from_value(job.into()).unwrap());
            let mut settings = Settings::new();
            settings.set("--lr", lr);
            Greeting { rank: 1, world: 2, host: host(), job, settings }
        };
        let of = |theirs: &Greeting, mine: &Greeting| guest(theirs.to_line().trim_end(), mine);
        let (a, b) = (greeting(Some("12.0"), "1"), greeting(Some("12.1"), "1"));
        assert_eq!(of(&b, &a), Guest::Busy("rank 0 belongs to job 12.0, this process to job 12.1".into()));
        assert!(matches!(of(&greeting(None, "1"), &a), Guest::Busy(_)));
        assert_eq!(of(&greeting(Some("12.0"), "2"), &a), Guest::Ours(1), "a difference is told to all");
        let another = Guest::Another(1, "--lr is 1 on rank 0 and 2 on rank 1".into());
        assert_eq!(of(&greeting(None, "2"), &greeting(None, "1")), another);
        let far = Greeting { host: "elsewhere".into(), ..a.clone() };
        assert!(matches!(of(&far, &a), Guest::Wrong(reason) if reason.contains("need MPI")));
        let wide = Greeting { rank: 7, ..a.clone() };
        assert!(matches!(of(&wide, &a), Guest::Wrong(reason) if reason.contains("no rank 7 among 2")));
        for line in ["", "tpc", "tpc 0.1.0 {", "tpc 0.1.0 []", "GET /"] {
            assert!(matches!(guest(line, &a), Guest::Stranger | Guest::OtherVersion), "{line}");
        }
    }
}
