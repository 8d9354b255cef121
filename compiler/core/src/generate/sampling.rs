//! Choosing the next token, given the logits.
//!
//! The steps and their order are those of transformers' logits processors and warpers: the repetition penalty, the
//! temperature, the `k` most likely tokens, the smallest set of tokens whose probability reaches `p`. The next token is
//! drawn from the remaining tokens, or the most likely one is taken. A draw only depends on the seed, the sequence and
//! the position, so every rank and every mesh draws the same token.

use std::collections::BTreeSet;
use tpc_ir::random::philox;

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// The most likely token, or a draw.
    pub choice: Choice,
    /// Logits of tokens that already occurred in the sequence are divided by this if positive, and multiplied by it if
    /// negative (Keskar et al., "CTRL"); 1 has no effect.
    pub repetition_penalty: f64,
}

/// How one token is chosen from the candidates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// The most likely token; on ties, the one with the smallest number.
    Greedy,
    /// A random draw.
    Draw {
        /// Divides the logits; must be above 0.
        temperature: f64,
        /// Draw only from this many of the most likely tokens, at least 1; `None` for all.
        top_k: Option<usize>,
        /// Draw only from the most likely tokens whose total probability reaches this: above 0, at most 1 (Holtzman et
        /// al., "The curious case of neural text degeneration").
        top_p: f64,
        /// The seed.
        seed: u64,
    },
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { choice: Choice::Greedy, repetition_penalty: 1.0 }
    }
}

/// A token that may be drawn, and its logit.
type Candidate = (usize, f64);

/// Chooses the next token of a sequence.
///
/// `logits` has one number for each token of the vocabulary and is not empty. `history` is the sequence so far,
/// including the prompt. `sequence` and `position` identify the draw.
pub fn choose(logits: &[f64], history: &[i64], sampling: &Sampling, sequence: u64, position: u64) -> i64 {
    let mut candidates: Vec<Candidate> = logits.iter().copied().enumerate().collect();
    penalize(&mut candidates, history, sampling.repetition_penalty);
    let chosen = match sampling.choice {
        Choice::Greedy => most_likely(&candidates),
        Choice::Draw { temperature, top_k, top_p, seed } => {
            for (_, logit) in &mut candidates {
                *logit /= temperature;
            }
            // The most likely first; ties in the order of their numbers.
            candidates.sort_by(|a, b| b.1.total_cmp(&a.1));
            candidates.truncate(top_k.unwrap_or(usize::MAX).max(1));
            let weights = nucleus(&candidates, top_p);
            let [a, b, ..] = philox(seed, sequence, position);
            let draw = (((u64::from(a) << 32) | u64::from(b)) >> 11) as f64 / (1u64 << 53) as f64;
            candidates[drawn(&weights, draw)].0
        }
    };
    chosen as i64
}

fn penalize(candidates: &mut [Candidate], history: &[i64], penalty: f64) {
    if penalty == 1.0 {
        return;
    }
    let seen: BTreeSet<usize> = history.iter().filter_map(|token| usize::try_from(*token).ok()).collect();
    for token in seen {
        if let Some((_, logit)) = candidates.get_mut(token) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

fn most_likely(candidates: &[Candidate]) -> usize {
    let better = |best: Candidate, next: &Candidate| if next.1 > best.1 { *next } else { best };
    candidates.iter().fold((0, f64::NEG_INFINITY), better).0
}

/// The probabilities, up to a factor, of the candidates to draw from; `candidates` is sorted by descending likelihood.
///
/// As in transformers, a token is left out if the more likely tokens already reach `top_p`.
fn nucleus(candidates: &[Candidate], top_p: f64) -> Vec<f64> {
    let largest = candidates.first().map_or(0.0, |c| c.1);
    let weights: Vec<f64> = candidates.iter().map(|(_, logit)| (logit - largest).exp()).collect();
    let all: f64 = weights.iter().sum();
    let mut before = 0.0;
    let kept = weights.iter().take_while(|weight| {
        let kept = before == 0.0 || before / all < top_p;
        before += **weight;
        kept
    });
    kept.copied().collect()
}

/// The index that a number in `[0, 1)` selects.
fn drawn(weights: &[f64], draw: f64) -> usize {
    let all: f64 = weights.iter().sum();
    let mut left = draw * all;
    for (position, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return position;
        }
    }
    // Rounding may leave a remainder after the last one.
    weights.len().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f64; 6] = [1.0, 3.0, -2.0, 3.0, 0.5, 2.0];

    fn draws(top_k: Option<usize>, top_p: f64, temperature: f64, penalty: f64, history: &[i64]) -> [usize; 6] {
        let choice = Choice::Draw { temperature, top_k, top_p, seed: 7 };
        let sampling = Sampling { choice, repetition_penalty: penalty };
        let mut count = [0; 6];
        for position in 0..20_000 {
            count[choose(&LOGITS, history, &sampling, 3, position) as usize] += 1;
        }
        count
    }

    /// The share of each token is its probability, up to four standard deviations.
    fn distributed_as(found: [usize; 6], weights: [f64; 6]) {
        let all: f64 = weights.iter().sum();
        for (token, (count, weight)) in found.into_iter().zip(weights).enumerate() {
            let p = weight / all;
            let deviation = (20_000.0 * p * (1.0 - p)).sqrt();
            let expected = 20_000.0 * p;
            assert!((count as f64 - expected).abs() <= 4.0 * deviation, "token {token}: {count} for {expected}");
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(choose(&LOGITS, &[], &Sampling::default(), 0, 0), 1);
        assert_eq!(choose(&[f64::NAN, 1.0, 2.0], &[], &Sampling::default(), 0, 0), 2);
    }

    #[test]
    fn a_penalty_moves_tokens_that_occurred_away() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        assert_eq!(choose(&LOGITS, &[1], &sampling, 0, 0), 3);
        assert_eq!(choose(&LOGITS, &[1, 1, 3], &sampling, 0, 0), 5);
        // A negative logit becomes smaller; a token that is not in the vocabulary has no effect.
        let weights = LOGITS.map(f64::exp);
        let mut expected = weights;
        expected[2] = (-4f64).exp();
        distributed_as(draws(None, 1.0, 1.0, 2.0, &[2, -1, 99]), expected);
    }

    #[test]
    fn draws_have_the_probabilities_of_the_softmax() {
        distributed_as(draws(None, 1.0, 1.0, 1.0, &[]), LOGITS.map(f64::exp));
        distributed_as(draws(None, 1.0, 0.5, 1.0, &[]), LOGITS.map(|x| (x / 0.5).exp()));
    }

    #[test]
    fn top_k_and_top_p_leave_the_rest_out() {
        let [_, b, _, d, _, f] = LOGITS.map(f64::exp);
        distributed_as(draws(Some(3), 1.0, 1.0, 1.0, &[]), [0.0, b, 0.0, d, 0.0, f]);
        distributed_as(draws(Some(1), 1.0, 1.0, 1.0, &[]), [0.0, b, 0.0, 0.0, 0.0, 0.0]);
        // The two most likely tokens have a probability of 0.77: the third is still needed to reach 0.79.
        distributed_as(draws(None, 0.79, 1.0, 1.0, &[]), [0.0, b, 0.0, d, 0.0, f]);
        distributed_as(draws(None, 0.5, 1.0, 1.0, &[]), [0.0, b, 0.0, d, 0.0, 0.0]);
        distributed_as(draws(None, 1e-9, 1.0, 1.0, &[]), [0.0, b, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn draws_differ_by_sequence_and_position_only() {
        let choice = Choice::Draw { temperature: 1.0, top_k: None, top_p: 1.0, seed: 1 };
        let sampling = Sampling { choice, repetition_penalty: 1.0 };
        let row = |sequence| (0..64).map(|position| choose(&LOGITS, &[], &sampling, sequence, position)).collect();
        let (first, again, other): (Vec<i64>, Vec<i64>, Vec<i64>) = (row(0), row(0), row(1));
        assert_eq!(first, again);
        assert_ne!(first, other);
    }
}
