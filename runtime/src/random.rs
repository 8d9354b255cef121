//! Counter-based random numbers: every element is a function of seed, stream and global index, so
//! that a tensor has the same values on every mesh.
//!
//! The generator is Philox 4x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as
//! 1, 2, 3"). The key is the 64-bit seed, low word first; the counter is the global element index in
//! its low two words and the stream in its high two. Of the four words of a block
//!
//! - *uniform* uses `u = (w0 >> 8) · 2⁻²⁴`, exact in f32, as `low + u · (high − low)` in f64;
//! - *bernoulli* is 1 where that `u` is less than the probability;
//! - *normal* is `mean + std · √(−2 ln((w0 + 1) · 2⁻³²)) · cos(2π · w1 · 2⁻³²)` in f64.

use tpc_ir::op::Distribution;

/// One block of Philox 4x32-10.
#[inline(always)]
pub fn philox(seed: u64, stream: u64, index: u64) -> [u32; 4] {
    let mut key = [seed as u32, (seed >> 32) as u32];
    let mut c = [index as u32, (index >> 32) as u32, stream as u32, (stream >> 32) as u32];
    for _ in 0..10 {
        let p0 = u64::from(c[0]) * 0xD251_1F53;
        let p1 = u64::from(c[2]) * 0xCD9E_8D57;
        c = [(p1 >> 32) as u32 ^ c[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// The element of that index.
#[inline(always)]
pub fn element(distribution: Distribution, seed: u64, stream: u64, index: u64) -> f64 {
    let w = philox(seed, stream, index);
    let u = f64::from(w[0] >> 8) / f64::from(1 << 24);
    match distribution {
        Distribution::Bernoulli(p) => f64::from(u8::from(u < p.as_f64())),
        Distribution::Uniform(low, high) => low.as_f64() + u * (high.as_f64() - low.as_f64()),
        Distribution::Normal(mean, std) => {
            let unit = 1.0 / 4_294_967_296.0;
            let radius = (-2.0 * ((f64::from(w[0]) + 1.0) * unit).ln()).sqrt();
            let angle = std::f64::consts::TAU * (f64::from(w[1]) * unit);
            mean.as_f64() + std.as_f64() * radius * angle.cos()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Known-answer tests of the Random123 library, philox4x32-10.
        assert_eq!(philox(0, 0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = u64::MAX;
        assert_eq!(philox(ones, ones, ones), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }
}
