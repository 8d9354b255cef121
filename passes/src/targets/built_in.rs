//! The built-in targets, whose profiles are next to this file.
//!
//! | target | profile |
//! |---|---|
//! | `cpu` | threads or processes of one host, measured by this project on two ranks of a server of AMD EPYC class |
//! | `h100-node` | NVIDIA H100 SXM, eight to a node |
//! | `h200-node` | NVIDIA H200 SXM, eight to a node |
//! | `ethernet` | nodes of four ranks of the class of `cpu`, with 25 Gb/s Ethernet between the nodes |
//!
//! # Where the numbers come from
//! **`cpu`**: measured once, with the kernels and communicators of `tpc-runtime`; `tpc calibrate` measures another
//! machine in the same way. Products of bf16 are computed in f32 and have the rate of f32. The capacity is 16 GiB,
//! shared by two ranks.
//!
//! **`h100-node`, `h200-node`**: peak rates without sparsity, from NVIDIA's data sheets (*NVIDIA H100 Tensor Core GPU*
//! and *NVIDIA H200 Tensor Core GPU*, columns SXM; the sheets list the rates of tensor cores with sparsity, which are
//! twice as large).
//!
//! | number | H100 | H200 | source |
//! |---|---|---|---|
//! | products of bf16 and f16 | 989.5 TFLOP/s | 989.5 TFLOP/s | data sheets: 1,979 with sparsity |
//! | products of f32 | 67 TFLOP/s | 67 TFLOP/s | data sheets, without tensor cores, as the runtime never rounds to TF32 |
//! | products of f64 | 67 TFLOP/s | 67 TFLOP/s | data sheets, tensor cores |
//! | memory | 3.35 TB/s, 80 GB | 4.8 TB/s, 141 GB | data sheets |
//! | bandwidth in a node | 450 GB/s | 450 GB/s | data sheets: NVLink, 900 GB/s in both directions together |
//! | bandwidth between nodes | 50 GB/s | 50 GB/s | *NVIDIA DGX H100/H200* data sheet: one ConnectX-7 with 400 Gb/s for each GPU |
//! | latency in a node | 10 µs | 10 µs | NCCL, `src/graph/tuning.cc`, ring with protocol LL: 3.6 + 14 · 0.47, an all-reduce of eight ranks |
//! | latency between nodes | 20 µs | 20 µs | the same file: 3.6 + 6 · 2.7, an all-reduce of four nodes |
//! | launch | 0.5 µs | 0.5 µs | NVIDIA's blog post *Getting Started with CUDA Graphs*: 3.4 µs a kernel of 2.9 µs in a graph |
//!
//! Programs do not reach peak rates. The search compares costs with each other, so a factor that all of them share
//! changes nothing; if the ratio of products to links matters, `tpc calibrate --device cuda` measures it.
//!
//! **`ethernet`**: 25 Gb/s is the rate of IEEE 802.3by; the four ranks of a node share the adapter, so each has a
//! quarter of 3.125 GB/s. The latency is half of a round trip of 250 µs (Alizadeh et al., *Data Center TCP*, SIGCOMM
//! 2010: round trips between racks without queues). Everything inside a node is `cpu`.
//!
//! The shares `view`, `fused_reads` and `mask` are the same everywhere. They describe how lowering treats an operation,
//! not how fast a device is.

use super::{Target, TargetError};
use std::sync::LazyLock;

/// The names of the built-in targets.
pub const BUILT_IN: [&str; 4] = ["cpu", "h100-node", "h200-node", "ethernet"];

static TARGETS: LazyLock<[Target; 4]> = LazyLock::new(|| {
    let profiles = [
        include_str!("cpu.json"),
        include_str!("h100-node.json"),
        include_str!("h200-node.json"),
        include_str!("ethernet.json"),
    ];
    profiles.map(|profile| Target::from_json(profile).expect("the profiles of built-in targets are tested"))
});

impl Target {
    /// Ranks on the class of CPU that this project was measured on. It is the default target of programs for the CPU.
    pub fn cpu() -> &'static Target {
        &TARGETS[0]
    }

    /// GPUs as in a DGX H100. It is the default target of programs for CUDA.
    pub fn h100_node() -> &'static Target {
        &TARGETS[1]
    }

    /// The built-in target with a name of [`BUILT_IN`].
    ///
    /// # Errors
    /// No target has the name.
    pub fn built_in(name: &str) -> Result<&'static Target, TargetError> {
        let known = || TargetError::BuiltIn { name: name.into(), known: BUILT_IN.join(", ") };
        TARGETS.iter().find(|target| target.name == name).ok_or_else(known)
    }
}

impl From<&Target> for Target {
    fn from(target: &Target) -> Self {
        target.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::{DeviceKind, Link};

    #[test]
    fn every_built_in_target_has_its_name() {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name.as_str()).collect();
        assert_eq!(names, BUILT_IN);
        for name in BUILT_IN {
            assert_eq!(Target::built_in(name).unwrap().name, name);
        }
        assert!(Target::built_in("h100").is_err());
        assert_eq!((Target::cpu().name.as_str(), Target::h100_node().name.as_str()), (BUILT_IN[0], BUILT_IN[1]));
    }

    /// All goldens for the CPU depend on these numbers.
    #[test]
    fn the_cpu_has_one_kind_of_link() {
        let cpu = Target::cpu();
        assert_eq!((cpu.device.kind, cpu.device.memory, cpu.device.launch), (DeviceKind::Cpu, 10e9, 2e-7));
        assert_eq!((cpu.device.products.f32, cpu.device.products.bf16), (60e9, None));
        assert_eq!((cpu.device.view, cpu.device.fused_reads, cpu.mask), (0.1, 0.25, 0.5));
        assert_eq!(cpu.links.default, Link { latency: 5e-6, bandwidth: 4e9 });
        assert!(cpu.links.node.is_none() && cpu.links.axes.is_empty());
    }
}
