//! A normal form for the gradient of a softmax: sums of products of powers.
//!
//! `p · (g − Σ p · g)` can be written in many ways (burn's autodiff divides by the square of the sum). Every value of a
//! row is a polynomial, with negative powers, in the exponentials, their sum, the incoming gradient and other values.
//! Two programs compute the same function if their polynomials are equal.

use std::collections::BTreeMap;
use tpc_ir::Value;

/// A variable of the polynomials.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Base {
    /// `exp(score − max)`.
    Exp,
    /// The sum of the exponentials over the columns.
    Sum,
    /// The gradient of the weighted probabilities: `grad_out · value`.
    Gradient,
    /// `Σ p · weight · gradient` over the columns.
    Inner,
    /// Another value. Each of its dimensions is the given dimension of the scores.
    Other(Value, Vec<usize>),
}

/// A product of powers.
pub(super) type Monomial = BTreeMap<Base, i32>;

/// A sum of monomials with their coefficients, none of which is 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Polynomial(pub(super) BTreeMap<Monomial, f64>);

impl Polynomial {
    pub(super) fn constant(x: f64) -> Self {
        Polynomial::of(Monomial::new(), x)
    }

    pub(super) fn base(base: Base) -> Self {
        Polynomial::of(Monomial::from([(base, 1)]), 1.0)
    }

    pub(super) fn of(monomial: Monomial, factor: f64) -> Self {
        Polynomial([(monomial, factor)].into_iter().filter(|(_, f)| *f != 0.0).collect())
    }

    pub(super) fn scaled(mut self, by: f64) -> Self {
        self.0.values_mut().for_each(|f| *f *= by);
        self.0.retain(|_, f| *f != 0.0);
        self
    }

    pub(super) fn plus(mut self, other: Polynomial) -> Self {
        for (monomial, factor) in other.0 {
            let sum = self.0.get(&monomial).copied().unwrap_or(0.0) + factor;
            // A difference that is left by rounding counts as 0.
            if sum.abs() <= 1e-12 * factor.abs() {
                self.0.remove(&monomial);
            } else {
                self.0.insert(monomial, sum);
            }
        }
        self
    }

    pub(super) fn times(&self, other: &Polynomial) -> Self {
        let mut all = Polynomial::default();
        for (a, x) in &self.0 {
            for (b, y) in &other.0 {
                all = all.plus(Polynomial::of(product(a, b, 1), x * y));
            }
        }
        all
    }

    /// The monomial and its coefficient, if there is exactly one.
    pub(super) fn single(&self) -> Option<(&Monomial, f64)> {
        match self.0.len() {
            1 => self.0.iter().next().map(|(m, &f)| (m, f)),
            _ => None,
        }
    }

    /// The reciprocal, if there is exactly one monomial.
    pub(super) fn reciprocal(&self) -> Option<Self> {
        let (monomial, factor) = self.single()?;
        Some(Polynomial::of(product(&Monomial::new(), monomial, -1), 1.0 / factor))
    }

    /// Whether all coefficients are equal up to rounding.
    pub(super) fn equals(&self, other: &Polynomial) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a.abs().max(b.abs());
        self.0.len() == other.0.len() && self.0.iter().all(|(m, &f)| other.0.get(m).is_some_and(|&g| near(f, g)))
    }
}

/// `a · b^power`.
pub(super) fn product(a: &Monomial, b: &Monomial, power: i32) -> Monomial {
    let mut all = a.clone();
    for (base, p) in b {
        let sum = all.get(base).copied().unwrap_or(0) + p * power;
        if sum == 0 {
            all.remove(base);
        } else {
            all.insert(base.clone(), sum);
        }
    }
    all
}
