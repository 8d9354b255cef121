//! A random permutation of any number of items, in little memory.

use super::draws::{Draws, Purpose, key};
use tpc_ir::random::philox;

/// A permutation of `0..n`.
#[derive(Clone, Debug)]
pub struct Permutation(Kind);

#[derive(Clone, Debug)]
enum Kind {
    /// For few items: the item at each place.
    Table(Vec<u64>),
    /// For many items: each place is computed separately.
    Network(Network),
}

/// Up to this many items use a table, where every order is equally likely. A network with fewer bits would be biased.
const FEW: u64 = 1 << 12;

/// A Feistel network on the smallest even number of bits that holds all numbers; a result outside of `0..n` is fed in
/// again until one is inside (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
#[derive(Clone, Copy, Debug)]
struct Network {
    n: u64,
    half: u32,
    key: u64,
}

const ROUNDS: u64 = 6;

impl Permutation {
    pub(super) fn new(n: u64, seed: u64, purpose: Purpose, epoch: u64) -> Self {
        if n <= FEW {
            let mut table: Vec<u64> = (0..n).collect();
            Draws::new(seed, purpose, epoch, 0).shuffle(&mut table);
            return Permutation(Kind::Table(table));
        }
        let bits = u64::BITS - (n - 1).leading_zeros();
        Permutation(Kind::Network(Network { n, half: bits.div_ceil(2), key: key(seed, purpose, epoch) }))
    }

    /// The item at a place, which must be below `n`.
    pub fn at(&self, place: u64) -> u64 {
        match &self.0 {
            Kind::Table(table) => table.get(place as usize).copied().unwrap_or(place),
            Kind::Network(network) => network.at(place),
        }
    }
}

impl Network {
    fn at(&self, place: u64) -> u64 {
        debug_assert!(place < self.n);
        let mut number = place;
        loop {
            number = self.of(number);
            if number < self.n {
                return number;
            }
        }
    }

    fn of(&self, number: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let (mut left, mut right) = (number >> self.half, number & mask);
        for round in 0..ROUNDS {
            let [word, ..] = philox(self.key, round, right);
            (left, right) = (right, (left ^ u64::from(word)) & mask);
        }
        (left << self.half) | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_once() {
        for n in (1..70).chain([255, 4096, 4097, 5000, 65_536, 70_001]) {
            let order = Permutation::new(n, 7, Purpose::Epoch, 3);
            let mut seen: Vec<u64> = (0..n).map(|place| order.at(place)).collect();
            assert!(n < 10 || !seen.is_sorted());
            seen.sort_unstable();
            assert_eq!(seen, (0..n).collect::<Vec<_>>(), "{n}");
        }
    }

    /// The chi-squared statistic of counts that should be equal.
    fn chi(counts: &[u64]) -> f64 {
        let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
        counts.iter().map(|&c| (c as f64 - expected).powi(2) / expected).sum()
    }

    /// Over many seeds, each of five items is equally often at each place.
    #[test]
    fn few_things_come_equally_often_everywhere() {
        let n = 5;
        let mut counts = vec![0; (n * n) as usize];
        for seed in 0..20_000 {
            let order = Permutation::new(n, seed, Purpose::Epoch, 0);
            (0..n).for_each(|place| counts[(place * n + order.at(place)) as usize] += 1);
        }
        // 16 degrees of freedom: 39.3 is exceeded once in a thousand times. The seeds are fixed.
        assert!(chi(&counts) < 39.3, "{counts:?}");
    }

    /// Over many seeds, each place is equally often in each sixteenth of many items, and so is the step from a place to
    /// the next.
    #[test]
    fn many_things_come_equally_often_everywhere() {
        let n = 5000;
        let (mut firsts, mut steps) = (vec![0; 16], vec![0; 16]);
        for seed in 0..20_000 {
            let order = Permutation::new(n, seed, Purpose::Epoch, 0);
            let (a, b) = (order.at(17), order.at(18));
            firsts[(a * 16 / n) as usize] += 1;
            steps[((b + n - a) % n * 16 / n) as usize] += 1;
        }
        // 15 degrees of freedom.
        assert!(chi(&firsts) < 37.7 && chi(&steps) < 37.7, "{firsts:?} {steps:?}");
    }
}
