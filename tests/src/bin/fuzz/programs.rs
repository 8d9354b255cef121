//! `fuzz programs`: random models, plans, meshes and options for some minutes.

use clap::Args;
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tpc_tests::fuzz::programs::corpus::{self, Kept};
use tpc_tests::fuzz::programs::examine::examine_alone;
use tpc_tests::fuzz::programs::search::{Found, Summary, search};
use tpc_tests::fuzz::programs::shrink::shrink;
use tpc_tests::fuzz::programs::verdict::Verdict;

/// Draw models, plans, meshes and options, and compare each program with one rank.
#[derive(Args)]
pub struct Programs {
    /// Seed of all choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Minutes to search
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Number of the first case
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Only the case with this number
    #[arg(long, conflicts_with_all = ["first", "replay"])]
    case: Option<u64>,
    /// Only the case in this file
    #[arg(long, value_name = "FILE.json")]
    replay: Option<PathBuf>,
    /// Seconds for simplifying a case with a fault; 0 keeps it unchanged
    #[arg(long, default_value_t = 60)]
    shrink: u64,
    /// Directory for files of cases with a fault
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Number of faults with the same signature that are simplified; further ones are only listed.
const SHRUNK: usize = 3;

impl Programs {
    pub fn execute(&self) -> ExitCode {
        if let Some(file) = &self.replay {
            let Kept { fault, case } = corpus::read(file);
            let verdict = examine_alone(&case);
            println!("{case}\nwas: {fault}\nis: {verdict:?}");
            return if matches!(verdict, Verdict::Fault(_)) { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
        let (began, mut told) = (Instant::now(), Instant::now());
        let numbers = self.case.map_or(self.first..u64::MAX, |case| case..case + 1);
        let end = began + Duration::from_secs_f64(60.0 * self.minutes);
        let mut seen: HashMap<String, usize> = HashMap::new();
        let goes_on = |summary: &Summary| {
            if told.elapsed() > Duration::from_secs(60) {
                told = Instant::now();
                println!("{}", line(summary, began.elapsed()));
            }
            self.case.is_some() || Instant::now() < end
        };
        let summary = search(self.seed, numbers, goes_on, |found| self.tell(found, &mut seen));
        println!("{}", line(&summary, began.elapsed()));
        for (why, count) in &summary.refused {
            println!("  refused, {why}: {count}");
        }
        for (signature, count) in &summary.faults {
            println!("  fault, {signature}: {count}");
        }
        if summary.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn tell(&self, Found { number, case, fault }: Found, seen: &mut HashMap<String, usize>) {
        let count = seen.entry(fault.signature()).or_default();
        *count += 1;
        let first = fault.text.lines().next().unwrap_or_default();
        println!("fuzz programs --seed {} --case {number}: {:?}: {first}", self.seed, fault.kind);
        if *count > SHRUNK && self.case.is_none() {
            return;
        }
        let (case, fault) = match self.shrink {
            0 => (case, fault),
            seconds => shrink(&case, &fault, Duration::from_secs(seconds)),
        };
        println!("{case}\n{fault}\n");
        if let Some(dir) = &self.keep {
            let file = dir.join(format!("seed{}-case{number}.json", self.seed));
            let kept = Kept { fault: fault.to_string().lines().next().unwrap_or_default().into(), case };
            if let Err(error) = std::fs::create_dir_all(dir).and_then(|()| corpus::write(&file, &kept)) {
                println!("{}: {error}", file.display());
            }
        }
    }
}

fn line(summary: &Summary, time: Duration) -> String {
    let (number, slowest) = summary.slowest;
    format!(
        "{} cases in {:.0} s ({:.1} a second): {} equal, {} of 100 refused, {} with a fault; slowest is {number} with {:.1} s",
        summary.cases,
        time.as_secs_f64(),
        summary.cases as f64 / time.as_secs_f64(),
        summary.equal,
        summary.refused_percent(),
        summary.faults.values().sum::<usize>(),
        slowest.as_secs_f64()
    )
}
