//! The vision transformer on every mesh has the losses of one rank, and burn's own backend evaluates the trained model
//! equally.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tpc_runtime::launch::supervise::{LaunchSpec, Output, launch};

/// The output of a run: losses and numbers of correct images of each epoch; the last number is that of the trained
/// model on one device.
fn run(mesh: &str) -> (Vec<f64>, Vec<u32>) {
    let output = Command::new(env!("CARGO_BIN_EXE_vit")).arg(mesh).output().unwrap();
    assert!(output.status.success(), "{mesh}: {}", String::from_utf8_lossy(&output.stderr));
    said(&String::from_utf8(output.stdout).unwrap())
}

fn said(text: &str) -> (Vec<f64>, Vec<u32>) {
    let word =
        |line: &str, key: &str| line.split(key).nth(1).map(|rest| rest.split([',', ' ']).next().unwrap().to_owned());
    let losses = text.lines().filter_map(|line| word(line, "loss ")?.parse().ok()).collect();
    let right = text.lines().filter_map(|line| word(line, "right ")?.parse().ok()).collect();
    (losses, right)
}

#[test]
fn it_learns_alike_on_every_mesh_and_comes_back() {
    let (losses, right) = run("");
    assert_eq!((losses.len(), right.len()), (7, 6));
    assert!(right[4] >= 90, "{losses:?} {right:?}");
    for mesh in ["tp=2", "dp=2", "dp=2,tp=2"] {
        let (found, also) = run(mesh);
        for (a, b) in losses.iter().zip(&found) {
            assert!((a - b).abs() <= 1e-3 * a, "{mesh}: {losses:?} and {found:?}");
        }
        assert_eq!(also[4], also[5], "{mesh}");
        assert!((found[5] - found[6]).abs() <= 1e-5, "{mesh}: {found:?}");
        assert!(also[4].abs_diff(right[4]) <= 1, "{mesh}: {right:?} and {also:?}");
    }
}

#[test]
fn processes_learn_as_threads_do() {
    let folder = std::env::temp_dir().join(format!("tpc-vit-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    // The output of each process goes to a separate file.
    let script = "exec \"$0\" tp=2 > \"$1/$$\"";
    let arguments = ["-c", script, env!("CARGO_BIN_EXE_vit"), folder.to_str().unwrap()];
    let launched = LaunchSpec {
        ranks: 2,
        program: "sh".into(),
        arguments: arguments.into_iter().map(Into::into).collect(),
        deadline: Some(Duration::from_secs(60)),
        grace: Duration::from_secs(3),
        flight_dir: Some(std::env::temp_dir()),
    };
    let errors: Arc<Mutex<Vec<u8>>> = Arc::default();
    let output: Output = errors.clone();
    let ended = launch(&launched, &output).unwrap();
    assert_eq!(ended.code, 0, "{}", String::from_utf8_lossy(&errors.lock().unwrap()));
    let threads = run("tp=2");
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 2);
    for file in files {
        assert_eq!(said(&std::fs::read_to_string(file).unwrap()), threads);
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
