//! The vision transformer under burn-train learns equally on every mesh, and writes metrics and checkpoints.

use std::path::Path;
use std::process::Command;

/// A metric of each batch of an epoch, with the batch's rows.
fn logged(folder: &Path, file: &str) -> Vec<(f64, f64)> {
    let log = std::fs::read_to_string(folder.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let batch = |line: &str| {
        let (value, rest) = line.split_once(',')?;
        Some((value.parse().ok()?, rest.split(',').next()?.parse().ok()?))
    };
    log.lines().filter_map(batch).collect()
}

/// The losses of all epochs, in training and in validation.
fn run(mesh: &str) -> Vec<f64> {
    let folder = std::env::temp_dir().join(format!("tpc-vit-burn-train-{}-{mesh}", std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_vit_burn_train")).arg(mesh).arg(&folder).output().unwrap();
    assert!(output.status.success(), "{mesh}: {}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let right = said.split("on one device: right ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok());
    assert!(right.unwrap() >= 90, "{mesh}: {said}");
    assert!(folder.join("checkpoint/model-5.bpk").exists() && folder.join("checkpoint/optim-5.bpk").exists());
    // The metric of the last epoch equals the result of the returned model.
    let found: f64 =
        logged(&folder, "valid/epoch-5/Accuracy.log").iter().map(|(accuracy, rows)| accuracy * rows / 100.0).sum();
    assert_eq!(found.round() as u32, right.unwrap(), "{mesh}");
    let epochs = (1..=5).flat_map(|epoch| [format!("train/epoch-{epoch}"), format!("valid/epoch-{epoch}")]);
    let losses = epochs.flat_map(|epoch| logged(&folder, &format!("{epoch}/Loss.log"))).map(|(loss, _)| loss).collect();
    std::fs::remove_dir_all(&folder).unwrap();
    losses
}

#[test]
fn it_learns_alike_on_every_mesh() {
    let losses = run("");
    assert_eq!(losses.len(), 5 * (16 + 4));
    for mesh in ["tp=2", "dp=2", "dp=2,tp=2"] {
        let found = run(mesh);
        assert_eq!(found.len(), losses.len(), "{mesh}");
        for (a, b) in losses.iter().zip(&found) {
            assert!((a - b).abs() <= 2e-3 * a, "{mesh}: {losses:?} and {found:?}");
        }
    }
}
