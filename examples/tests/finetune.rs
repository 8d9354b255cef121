//! A model directory is fine-tuned equally on every mesh, and the saved model is the trained model.

use std::path::Path;
use std::process::Command;

/// The losses that a run prints, in order.
fn run(family: &str, mesh: &str) -> Vec<f64> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/hf").join(family);
    let out = std::env::temp_dir().join(format!("tpc-finetune-{}-{family}-{mesh}", std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_finetune")).args([&dir, &out]).arg(mesh).output().unwrap();
    assert!(output.status.success(), "{family} {mesh}: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::remove_dir_all(out).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split("loss ").skip(1).map(|rest| rest.split([',', '\n']).next().unwrap().parse().unwrap()).collect()
}

#[test]
fn it_tunes_alike_on_every_mesh_and_writes_what_it_trained() {
    for family in ["llama-tiny", "gpt2-tiny"] {
        let losses = run(family, "");
        let [.., end, read] = losses[..] else { panic!("{losses:?}") };
        assert!(end < 0.7 * losses[1], "{family}: {losses:?}");
        assert!((end - read).abs() <= 1e-5 * end, "{family}: {losses:?}");
        for mesh in ["tp=2", "dp=2", "dp=2,tp=2"] {
            let found = run(family, mesh);
            for (a, b) in losses.iter().zip(&found) {
                assert!((a - b).abs() <= 1e-3 * a, "{family} {mesh}: {losses:?} and {found:?}");
            }
        }
    }
}
