//! Runs the built `tpc` and inspects its processes.
#![allow(dead_code)]

use safetensors::SafeTensors;
use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The directory of a small model with reference results.
pub fn model(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/hf").join(name)
}

/// The optimizer of the reference results.
pub const OPTIMIZER: &str =
    "--optimizer adamw --lr 0.001 --beta1 0.9 --beta2 0.95 --eps 1e-8 --weight-decay 0.1 --decay-all";

/// A directory for one test.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("tpc-launch-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// All files in it, at any depth.
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut dirs = vec![self.0.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                names.push(entry.path().strip_prefix(&self.0).unwrap().display().to_string());
                if entry.file_type().unwrap().is_dir() {
                    dirs.push(entry.path());
                }
            }
        }
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The output of a command.
#[derive(Debug)]
pub struct Told {
    pub code: i32,
    pub out: String,
    pub err: String,
    pub seconds: f64,
}

impl Told {
    /// The lines on standard error, without notes that are expected in the small runs of the tests: ranks without a
    /// part of the batch, results that are not kept, a run that has nothing to resume.
    pub fn said(&self) -> Vec<&str> {
        let expected = ["have no rows", "the trained model will be lost", "training starts from the beginning"];
        let is_expected = |line: &&str| line.contains("note: ") && expected.iter().any(|note| line.contains(note));
        self.err.lines().filter(|line| !is_expected(line)).collect()
    }
}

/// A running `tpc`.
pub struct Tpc {
    child: Child,
    started: Instant,
}

impl Tpc {
    pub fn start(arguments: &[&str]) -> Self {
        // The process that started the tests may ignore signals, which child processes inherit.
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP,INT,TERM", env!("CARGO_BIN_EXE_tpc")]).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Tpc::run(command)
    }

    pub fn run(mut command: Command) -> Self {
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        Tpc { child, started: Instant::now() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end, up to a limit.
    pub fn end(mut self, longest: Duration) -> Told {
        let (out, err) = (read(self.child.stdout.take().unwrap()), read(self.child.stderr.take().unwrap()));
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.started.elapsed() > longest {
                let _ = self.child.kill();
                panic!("it hangs: {:?}", err.join());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let seconds = self.started.elapsed().as_secs_f64();
        let code = status.signal().map_or_else(|| status.code().unwrap(), |signal| 128 + signal);
        Told { code, out: out.join().unwrap(), err: err.join().unwrap(), seconds }
    }
}

fn read(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = pipe.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// Runs `tpc`.
pub fn tpc(arguments: &[&str]) -> Told {
    Tpc::start(arguments).end(Duration::from_secs(120))
}

/// The processes that a launcher has started, by rank.
pub fn children(launcher: u32) -> HashMap<usize, u32> {
    let mut found = HashMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let variables: Vec<&str> = environment.split(|b| *b == 0).filter_map(|v| std::str::from_utf8(v).ok()).collect();
        let value = |name: &str| variables.iter().find_map(|v| v.strip_prefix(name)?.strip_prefix('='));
        let of_launcher = value("TPC_CONTROL").is_some_and(|c| c.starts_with(&format!("{launcher}:")));
        if let (true, Some(rank)) = (of_launcher, value("TPC_RANK").and_then(|r| r.parse().ok())) {
            found.insert(rank, pid);
        }
    }
    found
}

/// Processes of `tpc` that keep checkpoints in a test's directory.
pub fn of_scratch(scratch: &Scratch) -> Vec<u32> {
    let wanted = scratch.path("run").into_bytes();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let ours = |pid: &u32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim() == "tpc" && arguments.split(|b| *b == 0).any(|a| a == wanted)
    };
    pids.filter(ours).collect()
}

/// The process whose environment variable names this rank.
pub fn process_of(scratch: &Scratch, variable: &str, rank: usize) -> u32 {
    let wanted = format!("{variable}={rank}").into_bytes();
    let is_it = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|v| v == wanted)
    };
    of_scratch(scratch).into_iter().find(is_it).expect("it runs")
}

/// Waits until a condition holds, up to a limit.
pub fn until(what: &str, longest: Duration, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < longest, "{what} within {longest:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The step of the latest complete checkpoint.
pub fn whole(scratch: &Scratch) -> Option<u64> {
    let names = scratch.names();
    let steps = names.iter().filter_map(|n| n.strip_prefix("run/step-")?.strip_suffix("/index.json")?.parse().ok());
    steps.max()
}

/// Sends a signal, given by its name.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").args(["-s", name, &pid.to_string()]).stderr(Stdio::null()).status();
}

pub type Tensors = HashMap<String, Vec<f64>>;

/// The float tensors of a file.
pub fn tensors(path: impl AsRef<Path>) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = file.iter().filter(|(_, t)| t.dtype() == safetensors::Dtype::F32);
    let values = |data: &[u8]| data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    floats.map(|(n, t)| (n.to_string(), values(t.data()))).collect()
}

/// The losses in a file of metrics, with their steps.
pub fn losses(path: impl AsRef<Path>) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.map(|line| (line["step"].as_u64().unwrap(), line["loss"].as_f64().unwrap())).collect()
}

/// Checks that two runs of that many steps have the same losses in `m.jsonl`, up to a relative tolerance.
pub fn same_losses(a: &Scratch, b: &Scratch, steps: usize, tolerance: f64) {
    let (a, b) = (losses(a.path("m.jsonl")), losses(b.path("m.jsonl")));
    assert_eq!((a.len(), b.len()), (steps, steps));
    for ((step, a), (other, b)) in a.into_iter().zip(b) {
        assert!(step == other && (a - b).abs() <= tolerance * a, "step {step}: {a} and {b}");
    }
}

/// Checks that the logits from `tpc run` are the reference results of a model.
pub fn expected_logits(output: &str, dir: &Path) {
    let (found, expected) = (tensors(output), tensors(dir.join("expected.safetensors")));
    let far = found["logits"].iter().zip(&expected["logits"]).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(far <= 1e-3, "{far}");
}

/// Compares the results of three AdamW steps in `m.jsonl`, `g.safetensors` and `saved` with the reference results of a
/// model: losses, gradients and parameters, as in `tests/tests/conformance.rs`.
pub fn compares(scratch: &Scratch, context: &str, dir: &Path) {
    let expected: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("expected.json")).unwrap()).unwrap();
    let expected: Vec<f64> = expected["losses"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
    let found = losses(scratch.path("m.jsonl"));
    assert_eq!(found.len(), expected.len());
    for ((step, found), want) in found.into_iter().zip(expected) {
        assert!((found - want).abs() <= 1e-5 * want, "{context}: loss {step} is {found}, expected {want}");
    }
    let tensors_of = tensors(dir.join("expected.safetensors"));
    let largest = |values: &[f64]| values.iter().fold(0f64, |m, v| m.max(v.abs()));
    let gradients = tensors_of.iter().filter(|(n, _)| n.starts_with("grad.")).map(|(_, v)| largest(v));
    let largest_anywhere = gradients.fold(0f64, f64::max);
    for (name, found) in tensors(scratch.path("g.safetensors")) {
        let Some(want) = tensors_of.get(&format!("grad.{name}")) else { continue };
        let own = largest(want);
        let scale = if own < 1e-6 * largest_anywhere { largest_anywhere } else { own };
        let far = found.iter().zip(want).fold(0f64, |m, (f, w)| m.max((f - w).abs())) / scale;
        assert!(far <= 1e-4, "{context}: gradient of {name} is off by {far:e}");
    }
    let saved = tensors(scratch.0.join("saved/model.safetensors"));
    let mut compared = 0;
    for (name, found) in &saved {
        let Some(want) = tensors_of.get(&format!("param_after.{name}")) else { continue };
        let gradient = &tensors_of[&format!("grad.{name}")];
        let top = largest(gradient);
        assert_eq!(found.len(), want.len());
        for ((f, w), g) in found.iter().zip(want).zip(gradient) {
            // Adam divides by the gradient's magnitude: if that is rounding noise, so is the step.
            let noise = g.abs() < 1e-6 * top || top < 1e-6 * largest_anywhere;
            assert!(noise || (f - w).abs() <= 2e-4, "{context}: parameter {name} is {f}, expected {w}");
        }
        compared += 1;
    }
    assert_eq!(compared, tensors_of.keys().filter(|n| n.starts_with("param_after.")).count(), "{:?}", saved.keys());
}

/// The arguments of a run for [`compares`]: three AdamW steps of a model with reference results.
pub fn reference(scratch: &Scratch, dir: &Path, plan: &str, mesh: &str) -> Vec<String> {
    let (dir_text, inputs) = (dir.display().to_string(), dir.join("inputs.safetensors").display().to_string());
    let (save, metrics, grads) = (scratch.path("saved"), scratch.path("m.jsonl"), scratch.path("g.safetensors"));
    let mut arguments = vec!["train", &dir_text, "--plan", plan, "--mesh", mesh, "--inputs", &inputs, "--steps", "3"];
    arguments.extend(["--save", &save, "--metrics", &metrics, "--grads", &grads]);
    arguments.extend(OPTIMIZER.split(' '));
    arguments.into_iter().map(String::from).collect()
}

/// The arguments of a training run of the small llama.
pub fn training(scratch: &Scratch, steps: &str, mesh: &str, plan: &str) -> Vec<String> {
    let dir = model("llama-tiny");
    let mut arguments = vec!["train".to_string(), dir.display().to_string()];
    let inputs = dir.join("inputs.safetensors").display().to_string();
    let (checkpoint, metrics) = (scratch.path("run"), scratch.path("m.jsonl"));
    let rest = ["--plan", plan, "--mesh", mesh, "--inputs", &inputs, "--steps", steps, "--checkpoint", &checkpoint];
    arguments.extend(rest.map(String::from));
    arguments.extend(["--metrics", &metrics, "--resume"].map(String::from));
    arguments.extend(OPTIMIZER.split(' ').map(String::from));
    arguments
}
