//! How processes that somebody else launched on one host find each other: rank 0 listens, the others tell it that they have come, and
//! once all have, learn where its control block is.
//!
//! ```text
//! rank k → rank 0:  tpc VERSION rank k of N on HOST
//! rank 0 → rank k:  ok HANDLE | refused REASON          one line each
//! ```

use super::environment::Launched;
use super::error::LaunchError;
use crate::comm::control::Control;
use crate::comm::shared_memory::Handle;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often is looked again.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a process that has connected may take for its line.
const LINE: Duration = Duration::from_secs(5);

/// Meets the other processes.
///
/// # Errors
/// Processes that do not come within the deadline, are on another host, or are of another job.
pub fn meet(launched: &Launched, deadline: Duration) -> Result<Arc<Control>, LaunchError> {
    if launched.rank == 0 { lead(launched, deadline) } else { follow(launched, deadline) }
}

fn unusable(launched: &Launched, problem: impl ToString) -> LaunchError {
    LaunchError::Address { rank: launched.rank, address: launched.address.clone(), problem: problem.to_string() }
}

/// The host as processes see it that share memory: one boot of one machine, one space of process ids.
pub(crate) fn host() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let space = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{}/{}", boot.trim(), space.display())
}

fn greeting(rank: usize, world: usize) -> String {
    format!("tpc {} rank {rank} of {world} on {}", env!("CARGO_PKG_VERSION"), host())
}

/// The rank of a greeting that fits.
fn greeted(line: &str, world: usize) -> Result<usize, String> {
    let rank = line.split(' ').nth(3).and_then(|rank| rank.parse().ok());
    match rank {
        Some(rank) if rank > 0 && rank < world && line == greeting(rank, world) => Ok(rank),
        Some(rank) if line.starts_with("tpc ") => {
            let hosts = line.split(" on ").nth(1) != Some(&host());
            let why = if hosts {
                "on another host or in another container; processes of several hosts need MPI (tpc, built with the feature `mpi`, started with mpirun), or GPUs with NCCL"
            } else {
                "of another world or another version of tpc"
            };
            Err(format!("rank {rank} is {why}"))
        }
        _ => Err("something else than tpc connected".into()),
    }
}

fn lead(launched: &Launched, deadline: Duration) -> Result<Arc<Control>, LaunchError> {
    let start = Instant::now();
    let no_memory = |source| LaunchError::System { what: "no memory for a control block".into(), source };
    let control = Control::shared(launched.world).map_err(no_memory)?;
    let listener = loop {
        match TcpListener::bind(&launched.address) {
            Ok(listener) => break listener,
            // The port of an earlier run is free soon.
            Err(e) if e.kind() == ErrorKind::AddrInUse && start.elapsed() < deadline.min(LINE) => {
                std::thread::sleep(PAUSE)
            }
            Err(e) => return Err(unusable(launched, e)),
        }
    };
    listener.set_nonblocking(true).map_err(|e| unusable(launched, e))?;
    let mut come: Vec<Option<TcpStream>> = (0..launched.world).map(|_| None).collect();
    let refuse = |streams: Vec<TcpStream>, reason: &str| {
        for mut stream in streams {
            // Whoever has gone meanwhile need not be told.
            let _ = writeln!(stream, "refused {reason}");
        }
    };
    while come.iter().skip(1).any(Option::is_none) {
        match listener.accept() {
            Ok((stream, _)) => match first_line(&stream, LINE)
                .map_err(|e| e.to_string())
                .and_then(|line| greeted(&line, launched.world))
            {
                Ok(rank) => come[rank] = Some(stream),
                // A port scanner or another job's process is no reason to end; one of ours is.
                Err(reason) if reason.starts_with("rank") => {
                    refuse(come.into_iter().flatten().chain([stream]).collect(), &reason);
                    return Err(unusable(launched, reason));
                }
                Err(_) => {}
            },
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE.min(Duration::from_millis(5))),
            Err(e) => return Err(unusable(launched, e)),
        }
        if start.elapsed() > deadline {
            let missing: Vec<usize> = (1..launched.world).filter(|&r| come[r].is_none()).collect();
            let error = LaunchError::Missing { missing, address: launched.address.clone(), deadline };
            refuse(come.into_iter().flatten().collect(), &error.to_string());
            return Err(error);
        }
    }
    let handle = control.handle().map(|h| h.to_text()).unwrap_or_default();
    for mut stream in come.into_iter().flatten() {
        // Whoever has gone meanwhile is missed later.
        let _ = writeln!(stream, "ok {handle}");
    }
    Ok(control)
}

fn follow(launched: &Launched, deadline: Duration) -> Result<Arc<Control>, LaunchError> {
    let start = Instant::now();
    let missing = || LaunchError::Missing { missing: vec![0], address: launched.address.clone(), deadline };
    loop {
        let left = deadline.checked_sub(start.elapsed()).filter(|left| !left.is_zero()).ok_or_else(missing)?;
        let addresses = launched.address.to_socket_addrs().map_err(|e| unusable(launched, e))?;
        let stream = addresses.into_iter().find_map(|a| TcpStream::connect_timeout(&a, left).ok());
        let Some(mut stream) = stream else {
            std::thread::sleep(PAUSE);
            continue;
        };
        let told = writeln!(stream, "{}", greeting(launched.rank, launched.world));
        // Rank 0 waits for the others as long; its word is worth waiting for.
        let answer = told.and_then(|()| first_line(&stream, left + LINE));
        let Ok(line) = answer else {
            std::thread::sleep(PAUSE);
            continue;
        };
        return match line.split_once(' ') {
            Some(("ok", handle)) => {
                let handle = Handle::parse(handle).ok_or_else(|| unusable(launched, "rank 0 gave no handle"))?;
                Control::of_peer(handle)
                    .map_err(|e| unusable(launched, format!("the memory of rank 0 cannot be opened: {e}")))
            }
            Some(("refused", reason)) => Err(LaunchError::Refused(reason.into())),
            _ => Err(unusable(launched, "something else than tpc answers there")),
        };
    }
}

fn first_line(stream: &TcpStream, longest: Duration) -> io::Result<String> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(longest.max(PAUSE)))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
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
        Launched { kind, rank, world, local_rank: rank, local_world: world, address }
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
        assert!(error.starts_with("ranks 2, 3 did not come to 127.0.0.1"), "{error}");
        let told = one.join().unwrap().to_string();
        assert!(told.contains("ranks 2, 3 did not come"), "{told}");
        let error = meet(&launched(1, 2, free_port()), short).unwrap_err().to_string();
        assert!(error.starts_with("rank 0 did not come"), "{error}");
    }

    #[test]
    fn strangers_are_ignored_and_other_worlds_refused() {
        let port = free_port();
        let lead = std::thread::spawn(move || meet(&launched(0, 2, port), Duration::from_secs(20)));
        let connect = || loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(PAUSE),
            }
        };
        connect().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let error = meet(&launched(1, 3, port), Duration::from_secs(20)).unwrap_err().to_string();
        assert!(error.contains("rank 1 is of another world"), "{error}");
        assert!(lead.join().unwrap().is_err());
        let far = format!("{} ", greeting(1, 2)).replace(" on ", " on elsewhere");
        assert!(greeted(&far, 2).unwrap_err().contains("need MPI"));
    }
}
