//! Rotary position embeddings.
//!
//! The angles are computed on the host in f64 and enter a program as two constant tables `[seq, head_dim]`. A rotation is then
//! `x * cos + swap(x) * sin`, where `swap` exchanges the two halves (Hugging Face) or the two elements of each pair (the Llama
//! repository), and the sign of the rotation lives in the sine table: six operations forward, no materialized rotation matrix.

use burn::tensor::{Device, Tensor, TensorData};

/// How the frequencies of a longer context are derived from the trained ones.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// `rope_type: default`: frequencies as they are.
    Default,
    /// `rope_type: linear`: every frequency divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// `rope_type: llama3`: low frequencies divided by a factor, high ones kept, a smooth passage between them.
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
}

/// Base and scaling of rotary embeddings.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// The base of the geometric sequence of wavelengths.
    pub theta: f64,
    /// The scaling.
    pub scaling: RopeScaling,
}

impl RopeConfig {
    /// The `head_dim / 2` angular frequencies.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2)
            .map(|i| {
                let frequency = self.theta.powf(-((2 * i) as f64) / head_dim as f64);
                match self.scaling {
                    RopeScaling::Default => frequency,
                    RopeScaling::Linear { factor } => frequency / factor,
                    RopeScaling::Llama3 {
                        factor,
                        low_freq_factor,
                        high_freq_factor,
                        original_max_position_embeddings,
                    } => {
                        let original = original_max_position_embeddings as f64;
                        let wavelength = 2.0 * std::f64::consts::PI / frequency;
                        if wavelength > original / low_freq_factor {
                            frequency / factor
                        } else if wavelength < original / high_freq_factor {
                            frequency
                        } else {
                            let smooth =
                                (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                            (1.0 - smooth) * frequency / factor + smooth * frequency
                        }
                    }
                }
            })
            .collect()
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
}

impl RopeTables {
    /// Computes the tables of positions `0..seq`.
    pub fn new(config: &RopeConfig, pairs: RopePairs, seq: usize, head_dim: usize, device: &Device) -> Self {
        let frequencies = config.frequencies(head_dim);
        let half = head_dim / 2;
        let mut cos = Vec::with_capacity(seq * head_dim);
        let mut sin = Vec::with_capacity(seq * head_dim);
        for position in 0..seq {
            for d in 0..head_dim {
                let (pair, first) = match pairs {
                    RopePairs::Halves => (d % half, d < half),
                    RopePairs::Interleaved => (d / 2, d % 2 == 0),
                };
                let (s, c) = (position as f64 * frequencies[pair]).sin_cos();
                cos.push(c as f32);
                sin.push(if first { -s } else { s } as f32);
            }
        }
        let table = |values: Vec<f32>| {
            Tensor::<2>::from_data(TensorData::new(values, [seq, head_dim]), device).reshape([1, seq, 1, head_dim])
        };
        Self { cos: table(cos), sin: table(sin), pairs }
    }

    /// Rotates `x [batch, seq, heads, head_dim]`.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
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
