//! The residual network on every mesh has the losses of one rank, and its trained model has running statistics that
//! burn's own backend can evaluate with.

use std::process::Command;

/// The losses of all steps, and the number of images that the trained model classifies correctly on one device.
fn run(mesh: &str) -> (Vec<f64>, u32) {
    let output = Command::new(env!("CARGO_BIN_EXE_resnet")).arg(mesh).output().unwrap();
    assert!(output.status.success(), "{mesh}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let losses = text.lines().filter_map(|line| line.split("loss ").nth(1)?.parse().ok()).collect();
    let right = text.lines().find_map(|line| line.split("right ").nth(1)?.split(' ').next()?.parse().ok());
    (losses, right.unwrap())
}

#[test]
fn it_learns_alike_on_every_mesh_and_comes_back() {
    let (losses, right) = run("");
    assert_eq!(losses.len(), 18);
    assert!(right >= 90, "{losses:?} {right}");
    for mesh in ["tp=2", "dp=2", "dp=2,tp=2"] {
        let (found, also) = run(mesh);
        for (a, b) in losses.iter().zip(&found) {
            assert!((a - b).abs() <= 1e-3 * a, "{mesh}: {losses:?} and {found:?}");
        }
        assert!((found[16] - found[17]).abs() <= 1e-5, "{mesh}: {found:?}");
        assert!(also.abs_diff(right) <= 1, "{mesh}: {right} and {also}");
    }
}
