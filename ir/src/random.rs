//! Random elements, as a function of seed, stream and global index. They are the same on every mesh and device.
//!
//! The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//! The 64-bit seed is the key, low word first. The four counter words are the low and high word of the element's global
//! row-major index in its (factored) type, then the low and high word of the stream. Words 0 and 1 of the block
//! determine one element; see [`element`].
//!
//! The interpreter and every device use these two functions or reproduce them bit for bit.

use crate::op::Distribution;

const ROUNDS: usize = 10;
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// One block of Philox4x32-10: `seed` is the key, `counter` and `stream` are the counter.
pub fn philox(seed: u64, stream: u64, counter: u64) -> [u32; 4] {
    let low_high = |x: u64| [x as u32, (x >> 32) as u32];
    let (mut key, [c0, c1], [c2, c3]) = (low_high(seed), low_high(counter), low_high(stream));
    let mut c = [c0, c1, c2, c3];
    for _ in 0..ROUNDS {
        let [low0, high0] = low_high(u64::from(MULTIPLIERS[0]) * u64::from(c[0]));
        let [low1, high1] = low_high(u64::from(MULTIPLIERS[1]) * u64::from(c[2]));
        c = [high1 ^ c[1] ^ key[0], low1, high0 ^ c[3] ^ key[1], low0];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    c
}

/// Maps a word to one of 2^24 evenly spaced values in `[0, 1)`, which are exact in f32: `(word >> 8) · 2^-24`.
pub fn uniform(word: u32) -> f64 {
    f64::from(word >> 8) * (1.0 / 16_777_216.0)
}

/// The element that a block of words determines, before it is rounded to its element type.
///
/// With `u = uniform(word 0)` and `v = uniform(word 1)`: Bernoulli(p) is 1 if `u < p`, otherwise 0; Uniform(low, high)
/// is `low + (high − low)·u`; Normal(mean, sd) is `mean + sd·√(−2 ln(1 − u))·cos(2πv)` (Box and Muller; `1 − u` is
/// never 0).
pub fn element(distribution: Distribution, words: [u32; 4]) -> f64 {
    let u = uniform(words[0]);
    match distribution {
        Distribution::Bernoulli(p) => f64::from(u < p.as_f64()),
        Distribution::Uniform(low, high) => low.as_f64() + (high.as_f64() - low.as_f64()) * u,
        Distribution::Normal(mean, sd) => {
            let radius = (-2.0 * (1.0 - u).ln()).sqrt();
            mean.as_f64() + sd.as_f64() * radius * (std::f64::consts::TAU * uniform(words[1])).cos()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scalar;

    #[test]
    fn philox_gives_the_published_blocks() {
        // Known answers of Random123 (kat_vectors, philox4x32 with 10 rounds).
        assert_eq!(philox(0, 0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox(!0, !0, !0), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let (counter, stream, key) = (0x85a3_08d3_243f_6a88, 0x0370_7344_1319_8a2e, 0x299f_31d0_a409_3822);
        assert_eq!(philox(key, stream, counter), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn elements_have_the_moments_of_their_distribution() {
        let n = 20_000;
        let moments = |d: Distribution| {
            let xs: Vec<f64> = (0..n).map(|i| element(d, philox(7, 3, i))).collect();
            let mean = xs.iter().sum::<f64>() / n as f64;
            (mean, xs.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n as f64)
        };
        let close = |(m, v): (f64, f64), mean: f64, var: f64| (m - mean).abs() < 0.05 && (v - var).abs() < 0.1;
        let s = Scalar::float;
        assert!(close(moments(Distribution::Bernoulli(s(0.25))), 0.25, 0.1875));
        assert!(close(moments(Distribution::Uniform(s(-1.0), s(3.0))), 1.0, 16.0 / 12.0));
        assert!(close(moments(Distribution::Normal(s(2.0), s(1.5))), 2.0, 2.25));
    }
}
