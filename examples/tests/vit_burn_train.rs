//! The vision transformer under burn-train: it learns on a mesh, and leaves metrics and checkpoints.

use std::process::Command;

#[test]
fn it_learns_under_burn_train() {
    let folder = std::env::temp_dir().join(format!("tpc-vit-burn-train-{}", std::process::id()));
    let mesh = "dp=2,tp=2";
    let output = Command::new(env!("CARGO_BIN_EXE_vit_burn_train")).arg(mesh).arg(&folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let right = said.split("on one device: right ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok());
    assert!(right.unwrap() >= 90, "{said}");
    for file in
        ["train/epoch-1/Loss.log", "valid/epoch-5/Accuracy.log", "checkpoint/model-5.bpk", "checkpoint/optim-5.bpk"]
    {
        assert!(folder.join(file).exists(), "{file}: {said}");
    }
    // What the metric was told of the last epoch is what the model finds that came back.
    let log = std::fs::read_to_string(folder.join("valid/epoch-5/Accuracy.log")).unwrap();
    let batches = log.lines().filter_map(|line| {
        let (value, rest) = line.split_once(',')?;
        Some((value.parse::<f64>().ok()?, rest.split(',').next()?.parse::<f64>().ok()?))
    });
    let found: f64 = batches.map(|(accuracy, rows)| accuracy * rows / 100.0).sum();
    assert_eq!(found.round() as u32, right.unwrap(), "{log}");
    std::fs::remove_dir_all(&folder).unwrap();
}
