//! A custom style trains equally on every mesh, keeps its logits sharded, and the trained model is returned.

use std::process::Command;

/// The output of a run, and its losses in order.
fn run(mesh: &str) -> (String, Vec<f64>) {
    let output = Command::new(env!("CARGO_BIN_EXE_own_style")).arg(mesh).output().unwrap();
    assert!(output.status.success(), "{mesh}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let losses = text.lines().filter_map(|line| line.split("loss ").nth(1)?.parse().ok()).collect();
    (text, losses)
}

#[test]
fn it_trains_alike_on_every_mesh_and_comes_back() {
    let (_, losses) = run("");
    assert_eq!(losses.len(), 42);
    assert!(losses[41] < 0.1 * losses[0], "{losses:?}");
    for mesh in ["tp=2", "dp=2", "dp=2,tp=2"] {
        let (text, found) = run(mesh);
        for (a, b) in losses.iter().zip(&found) {
            assert!((a - b).abs() <= 1e-4 * a, "{mesh}: {losses:?} and {found:?}");
        }
        assert!((found[40] - found[41]).abs() <= 1e-5, "{mesh}: {found:?}");
        let cut = text.contains("scores.weight is cut along the summed index (plan \"\")");
        assert_eq!(cut, mesh.contains("tp"), "{text}");
        // The scores of 64 words, or of half of them, are never gathered.
        assert!(!text.contains("25.00 KiB") && !text.contains("12.50 KiB"), "{text}");
    }
}
