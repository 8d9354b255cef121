//! The CPU device: everything is prepared when a program is loaded, and a step allocates nothing.
//!
//! | question | file |
//! |---|---|
//! | a rank's memory, and whether a view is in it | `arena` |
//! | how a program becomes a list of prepared actions, and how that runs | `load` |
//! | attention in blocks of rows; positions in its masks | `attention`, `indices` |
//! | matrix products | `contract`, its inner kernels `microkernel` |
//! | epilogues, which are applied to a product's elements before they are written | `epilogue` |
//! | fused loops | `fused` runs them, `plan` prepares them |
//! | functions of lanes | `vector`, in which `math` approximates the transcendental ones |
//! | copies, prefix sums, the k largest elements | `copy` |
//! | rows of tables | `gather` |

pub mod arena;
pub mod math;

pub(crate) mod attention;
pub(crate) mod contract;
pub(crate) mod copy;
pub(crate) mod epilogue;
pub(crate) mod executable;
pub(crate) mod fused;
pub(crate) mod gather;
pub(crate) mod indices;
pub(crate) mod microkernel;
pub(crate) mod plan;
pub(crate) mod vector;

/// Whether kernels may use AVX-512.
pub fn has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx512f")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Whether kernels may use AVX2 and FMA.
pub fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}
