//! Index notation, `"ab,bc->ac"`: which dimension of each operand is which dimension of the result.
//!
//! Elementwise operations, reductions and products have subscripts. Transposes and broadcasts therefore need no
//! operations of their own, and the subscripts determine how an operation behaves under sharding.

use std::fmt;

/// A letter of the notation. Letters are numbered in order of first appearance, so that equivalent notations are equal
/// values.
pub type Letter = u8;

/// The subscripts of the operands and of the result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subscripts {
    /// One list of letters per operand.
    pub operands: Vec<Vec<Letter>>,
    /// The letters of the result.
    pub result: Vec<Letter>,
}

impl Subscripts {
    /// Subscripts with letters renumbered in order of first appearance.
    pub fn new<L: Copy + PartialEq>(operands: &[Vec<L>], result: &[L]) -> Self {
        let mut seen: Vec<L> = Vec::new();
        let mut number = |l: &L| {
            let i = seen.iter().position(|s| s == l).unwrap_or_else(|| {
                seen.push(*l);
                seen.len() - 1
            });
            i as Letter
        };
        let operands = operands.iter().map(|o| o.iter().map(&mut number).collect()).collect();
        let result = result.iter().map(&mut number).collect();
        Subscripts { operands, result }
    }

    /// The subscripts of an elementwise operation without transposes and broadcasts: the same letters for `n` operands
    /// and the result.
    pub fn elementwise(n: usize, rank: usize) -> Self {
        let letters: Vec<Letter> = (0..rank as Letter).collect();
        Subscripts { operands: vec![letters.clone(); n], result: letters }
    }

    /// Parses `"ab,bc->ac"`.
    pub fn parse(text: &str) -> Option<Self> {
        let (operands, result) = text.split_once("->")?;
        let letters = |s: &str| s.chars().collect::<Vec<char>>();
        if !operands.chars().all(|c| c.is_ascii_alphabetic() || c == ',')
            || !result.chars().all(|c| c.is_ascii_alphabetic())
        {
            return None;
        }
        let operands: Vec<_> = operands.split(',').map(letters).collect();
        Some(Subscripts::new(&operands, &letters(result)))
    }

    /// Whether every operand has the same letters as the result, in the same order.
    pub fn is_elementwise(&self) -> bool {
        self.operands.iter().all(|o| *o == self.result)
    }

    /// Whether letters are numbered in order of first appearance, as by [`Subscripts::new`].
    pub fn is_canonical(&self) -> bool {
        *self == Subscripts::new(&self.operands, &self.result)
    }

    /// The subscripts that the text form of an elementwise operation omits: operands of the same rank as the result
    /// have the letters of the result, operands of rank 0 have none. `None` for operands of other ranks.
    pub fn implied(operand_ranks: &[usize], rank: usize) -> Option<Self> {
        let letters: Vec<Letter> = (0..rank).map(|l| l as Letter).collect();
        let row = |&r: &usize| match r {
            r if r == rank => Some(letters.clone()),
            0 => Some(Vec::new()),
            _ => None,
        };
        let operands = operand_ranks.iter().map(row).collect::<Option<_>>()?;
        Some(Subscripts { operands, result: letters })
    }

    /// The number of distinct letters.
    pub fn letters(&self) -> usize {
        let all = self.operands.iter().flatten().chain(&self.result);
        all.map(|&l| l as usize + 1).max().unwrap_or(0)
    }

    /// The letters that occur in an operand but not in the result.
    pub fn contracted(&self) -> Vec<Letter> {
        let n = self.letters() as Letter;
        (0..n).filter(|l| !self.result.contains(l)).collect()
    }

    /// The size of every letter, given the shapes of the operands and, for letters that only the result has, the shape
    /// of the result. `None` if two dimensions with the same letter differ in size.
    pub fn sizes(&self, operands: &[&[usize]], result: Option<&[usize]>) -> Option<Vec<usize>> {
        let mut sizes = vec![None; self.letters()];
        let rows = self.operands.iter().zip(operands.iter().copied());
        for (letters, shape) in rows.chain(result.map(|r| (&self.result, r))) {
            if letters.len() != shape.len() {
                return None;
            }
            for (&l, &n) in letters.iter().zip(shape) {
                if *sizes[l as usize].get_or_insert(n) != n {
                    return None;
                }
            }
        }
        Some(sizes.into_iter().map(|s| s.unwrap_or(1)).collect())
    }
}

impl fmt::Display for Subscripts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |ls: &[Letter]| ls.iter().map(|&l| letter_name(l)).collect::<String>();
        let operands: Vec<_> = self.operands.iter().map(|o| text(o)).collect();
        write!(f, "{}->{}", operands.join(","), text(&self.result))
    }
}

/// The character of a letter: `a` to `z`, then `A` to `Z`.
pub fn letter_name(l: Letter) -> char {
    (if l < 26 { b'a' + l } else { b'A' + (l - 26) % 26 }) as char
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equivalent_notations_are_equal_values() {
        assert_eq!(Subscripts::parse("bsk,kn->bsn"), Subscripts::parse("abc,cd->abd"));
        assert_eq!(Subscripts::parse("bsk,kn->bsn").unwrap().to_string(), "abc,cd->abd");
        assert_eq!(Subscripts::parse("ab->").unwrap().contracted(), [0, 1]);
        assert!(Subscripts::parse("a b").is_none());
        assert!(Subscripts::parse("a->b->c").is_none());
        assert!(Subscripts::parse("a->b,c").is_none());
    }
}
