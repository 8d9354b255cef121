//! The command on a GPU: without one it says so; on a driver that is not real it trains as on the CPU.
#![cfg(feature = "cuda")]

use std::path::{Path, PathBuf};
use std::process::Command;

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// `tpc train` on the reference llama: three steps, with a checkpoint after two that a second run goes on from.
fn train(device: &str, fakes: Option<&Path>, out: &Path) -> (bool, String, Vec<String>) {
    let model = at("tests/data/hf/llama-tiny");
    let mut said = String::new();
    let mut good = true;
    for (steps, more) in [("2", &[][..]), ("3", &["--resume"])] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpc"));
        command.arg("train").arg(&model).arg("--inputs").arg(model.join("inputs.safetensors"));
        command.args(["--plan", "2d", "--mesh", "dp=2,tp=2", "--clip-norm", "1", "--device", device, "--steps", steps]);
        command.arg("--checkpoint").arg(out.join("checkpoints")).args(more);
        command.arg("--metrics").arg(out.join(format!("{steps}.jsonl")));
        if let Some(fakes) = fakes {
            command.env("LD_LIBRARY_PATH", fakes).env("TPC_CUDA_LIBRARIES", fakes);
            command.env("TPC_CUDA_CACHE", fakes.join("cache"));
        }
        let output = command.output().unwrap();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        good &= output.status.success();
    }
    let lines = ["2", "3"].iter().flat_map(|s| {
        let text = std::fs::read_to_string(out.join(format!("{s}.jsonl"))).unwrap_or_default();
        text.lines().map(ToString::to_string).collect::<Vec<_>>()
    });
    let losses = lines.map(|l| serde_json::from_str::<serde_json::Value>(&l).unwrap()["loss"].to_string()).collect();
    (good, said, losses)
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("tpc-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn without_a_gpu_one_sentence_says_so() {
    if std::env::var_os("TPC_GPU").is_some() {
        return println!("skipped: there is a GPU");
    }
    let out = folder("none");
    let (good, said, losses) = train("cuda", None, &out);
    assert!(!good && losses.is_empty());
    let first = said.lines().next().unwrap_or_default();
    assert!(first.starts_with("error: no CUDA device: ") && first.contains("run on the CPU"), "{said}");
    std::fs::remove_dir_all(out).unwrap();
}

/// Loading, steps, clipping, a checkpoint and resuming from it.
#[test]
fn a_fake_gpu_trains_like_the_cpu() {
    if Command::new("g++").arg("--version").output().is_err() && std::env::var_os("TPC_REQUIRE_NVRTC").is_none() {
        return println!("skipped: g++ is not installed");
    }
    let fakes = folder("fakes");
    let built = Command::new(at("runtime/tests/fake/build")).arg(&fakes).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let runs = [("cpu", None), ("cuda", Some(fakes.as_path()))].map(|(device, fakes)| {
        let out = folder(device);
        let (good, said, losses) = train(device, fakes, &out);
        assert!(good, "{device}: {said}");
        std::fs::remove_dir_all(out).unwrap();
        losses
    });
    assert_eq!(runs[0].len(), 3);
    for (cpu, gpu) in runs[0].iter().zip(&runs[1]) {
        let [cpu, gpu] = [cpu, gpu].map(|l| l.parse::<f64>().unwrap());
        assert!((cpu - gpu).abs() <= 1e-6 * cpu, "{gpu} for {cpu}");
    }
    std::fs::remove_dir_all(fakes).unwrap();
}
