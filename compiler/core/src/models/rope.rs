//! Rotary position embeddings.
//!
//! The angles are computed on the host in f64 and enter a program as two constant tables `[seq, head_dim]`. A rotation
//! is then `x * cos + swap(x) * sin`, where `swap` exchanges the two halves (Hugging Face) or the two elements of each
//! pair (the Llama repository), and the sine table contains the signs of the rotation: six operations forward, and no
//! rotation matrix.

use burn::tensor::{Device, Int, Tensor, TensorData};
use std::f64::consts::PI;

/// How the frequencies of a longer context are derived from the trained ones.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// `rope_type: default`: unchanged frequencies.
    Default,
    /// `rope_type: linear`: divides every frequency by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// `rope_type: dynamic`: a larger base for sequences longer than in training (NTK-aware).
    Dynamic {
        /// The factor.
        factor: f64,
        /// The context length of the training.
        max_position_embeddings: usize,
    },
    /// `rope_type: llama3`: divides low frequencies by a factor and keeps high ones, with a smooth transition.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context length of the original training.
        original_max_position_embeddings: usize,
    },
    /// `rope_type: yarn` (<https://arxiv.org/abs/2309.00071>): like `llama3`, with a linear transition and larger
    /// products.
    Yarn {
        /// The factor.
        factor: f64,
        /// Factor of cosine and sine.
        attention_factor: f64,
        /// Number of rotations within the original context from which frequencies are kept.
        beta_fast: f64,
        /// Number of rotations within the original context up to which frequencies are divided.
        beta_slow: f64,
        /// Whether the transition begins and ends at whole elements.
        truncate: bool,
        /// The context length of the original training.
        original_max_position_embeddings: usize,
    },
    /// `rope_type: longrope`: a divisor for each frequency, with separate lists for short and for long sequences.
    LongRope {
        /// The divisors for sequences within the original context.
        short_factor: Vec<f64>,
        /// The divisors for longer sequences.
        long_factor: Vec<f64>,
        /// Factor of cosine and sine.
        attention_factor: f64,
        /// The context length of the original training.
        original_max_position_embeddings: usize,
    },
}

/// Base, scaling and extent of rotary embeddings.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// The base of the geometric sequence of wavelengths.
    pub theta: f64,
    /// The scaling.
    pub scaling: RopeScaling,
    /// The fraction of a head's elements that are rotated, from the first element on.
    pub partial: f64,
}

impl RopeConfig {
    /// Rotary embeddings of whole heads without scaling.
    pub fn plain(theta: f64) -> Self {
        Self { theta, scaling: RopeScaling::Default, partial: 1.0 }
    }

    /// Number of elements of a head that are rotated.
    pub fn rotated(&self, head_dim: usize) -> usize {
        (head_dim as f64 * self.partial) as usize
    }

    /// The context length of the original training, if the scaling depends on it.
    pub fn original_positions(&self) -> Option<usize> {
        match &self.scaling {
            RopeScaling::Llama3 { original_max_position_embeddings: original, .. }
            | RopeScaling::Yarn { original_max_position_embeddings: original, .. }
            | RopeScaling::LongRope { original_max_position_embeddings: original, .. } => Some(*original),
            RopeScaling::Default | RopeScaling::Linear { .. } | RopeScaling::Dynamic { .. } => None,
        }
    }

    /// Factor of cosine and sine.
    pub fn amplitude(&self) -> f64 {
        match &self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                *attention_factor
            }
            _ => 1.0,
        }
    }

    /// The angular frequencies for sequences of `seq` tokens, one for each pair of rotated elements.
    pub fn frequencies(&self, head_dim: usize, seq: usize) -> Vec<f64> {
        let rotated = self.rotated(head_dim);
        let width = rotated as f64;
        let frequency = |theta: f64, i: usize| theta.powf(-((2 * i) as f64) / width);
        let plain = |i: usize| frequency(self.theta, i);
        let each = |f: &dyn Fn(usize) -> f64| (0..rotated / 2).map(f).collect();
        match &self.scaling {
            RopeScaling::Default => each(&plain),
            RopeScaling::Linear { factor } => each(&|i| plain(i) / factor),
            RopeScaling::Dynamic { factor, max_position_embeddings } => {
                let trained = *max_position_embeddings as f64;
                let stretched = factor * (seq as f64).max(trained) / trained - (factor - 1.0);
                let theta = self.theta * stretched.powf(width / (width - 2.0));
                each(&|i| frequency(theta, i))
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let original = *original_max_position_embeddings as f64;
                each(&|i| {
                    let wavelength = 2.0 * PI / plain(i);
                    if wavelength > original / low_freq_factor {
                        plain(i) / factor
                    } else if wavelength < original / high_freq_factor {
                        plain(i)
                    } else {
                        let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * plain(i) / factor + smooth * plain(i)
                    }
                })
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_max_position_embeddings, .. } => {
                let original = *original_max_position_embeddings as f64;
                // The element with this many rotations within the original context.
                let element = |turns: f64| width * (original / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
                let (mut first, mut last) = (element(*beta_fast), element(*beta_slow));
                if *truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                let (first, last) = (first.max(0.0), last.min(width - 1.0));
                let length = if first == last { 0.001 } else { last - first };
                each(&|i| {
                    let divided = ((i as f64 - first) / length).clamp(0.0, 1.0);
                    plain(i) / factor * divided + plain(i) * (1.0 - divided)
                })
            }
            RopeScaling::LongRope { short_factor, long_factor, original_max_position_embeddings, .. } => {
                let factors = if seq > *original_max_position_embeddings { long_factor } else { short_factor };
                factors.iter().take(rotated / 2).enumerate().map(|(i, factor)| plain(i) / factor).collect()
            }
        }
    }
}

/// Which elements of a head form a rotated pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// `(x[i], x[i + head_dim/2])`, Hugging Face's "rotate half".
    Halves,
    /// `(x[2i], x[2i+1])`, the Llama repository's complex form.
    Interleaved,
}

/// The two tables for one sequence length.
#[derive(Debug, Clone)]
pub struct RopeTables {
    cos: Tensor<4>,
    sin: Tensor<4>,
    pairs: RopePairs,
    /// Number of elements of a head that are rotated.
    rotated: usize,
}

impl RopeTables {
    /// Computes the tables of positions `0..seq`.
    pub fn new(config: &RopeConfig, pairs: RopePairs, seq: usize, head_dim: usize, device: &Device) -> Self {
        let (frequencies, amplitude) = (config.frequencies(head_dim, seq), config.amplitude());
        let width = 2 * frequencies.len();
        let half = width / 2;
        let mut cos = Vec::with_capacity(seq * width);
        let mut sin = Vec::with_capacity(seq * width);
        for position in 0..seq {
            for d in 0..width {
                let (pair, first) = match pairs {
                    RopePairs::Halves => (d % half, d < half),
                    RopePairs::Interleaved => (d / 2, d % 2 == 0),
                };
                let (s, c) = (position as f64 * frequencies[pair]).sin_cos();
                cos.push((c * amplitude) as f32);
                let s = if first { -s } else { s };
                sin.push((s * amplitude) as f32);
            }
        }
        let table = |values: Vec<f32>| {
            Tensor::<2>::from_data(TensorData::new(values, [seq, width]), device).reshape([1, seq, 1, width])
        };
        Self { cos: table(cos), sin: table(sin), pairs, rotated: width }
    }

    /// The rows of the tables at positions `[batch, seq]`.
    pub fn at(&self, positions: Tensor<2, Int>) -> Self {
        let [batch, seq] = positions.dims();
        let rows = positions.reshape([batch * seq]);
        let [_, all, _, width] = self.cos.dims();
        let of = |table: &Tensor<4>| {
            let table = table.clone().reshape([all, width]);
            table.select(0, rows.clone()).reshape([batch, seq, 1, width])
        };
        Self { cos: of(&self.cos), sin: of(&self.sin), ..self.clone() }
    }

    /// Rotates `x [batch, seq, heads, head_dim]`; elements beyond the rotated ones are unchanged.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let [_, _, _, head_dim] = x.dims();
        match head_dim - self.rotated {
            0 => self.rotate(x),
            kept => {
                let rotated = self.rotate(x.clone().narrow(3, 0, self.rotated));
                Tensor::cat(vec![rotated, x.narrow(3, self.rotated, kept)], 3)
            }
        }
    }

    /// Rotates all elements.
    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, seq, heads, head_dim] = x.dims();
        let swapped = match self.pairs {
            RopePairs::Halves => {
                let half = head_dim / 2;
                let first = x.clone().narrow(3, 0, half);
                let second = x.clone().narrow(3, half, half);
                Tensor::cat(vec![second, first], 3)
            }
            RopePairs::Interleaved => {
                let pairs = x.clone().reshape([batch, seq, heads, head_dim / 2, 2]);
                let first = pairs.clone().narrow(4, 0, 1);
                let second = pairs.narrow(4, 1, 1);
                Tensor::cat(vec![second, first], 4).reshape([batch, seq, heads, head_dim])
            }
        };
        x * self.cos.clone() + swapped * self.sin.clone()
    }
}
