//! Which dimensions of the operand of a reshape become which dimensions of its result.

use std::ops::Range;

/// Groups of dimensions with equal products, in order: `[4, 6, 5]` and `[4, 30]` give `4 = 4` and `6·5 = 30`. A
/// dimension of extent 1 is a group on its own, with no dimensions on the other side.
pub fn aligned(from: &[usize], to: &[usize]) -> Vec<(Range<usize>, Range<usize>)> {
    let (mut i, mut j, mut groups) = (0, 0, Vec::new());
    while i < from.len() || j < to.len() {
        let (i0, j0) = (i, j);
        if from.get(i) == Some(&1) {
            i += 1;
        } else if to.get(j) == Some(&1) {
            j += 1;
        } else {
            let (mut a, mut b) = (1usize, 1usize);
            loop {
                if i < from.len() && (a <= b || j == to.len()) {
                    a *= from[i];
                    i += 1;
                } else if j < to.len() {
                    b *= to[j];
                    j += 1;
                }
                if a == b || (i == from.len() && j == to.len()) {
                    break;
                }
            }
        }
        groups.push((i0..i, j0..j));
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_of_one_stand_alone() {
        assert_eq!(aligned(&[4, 6, 5], &[4, 30]), [(0..1, 0..1), (1..3, 1..2)]);
        assert_eq!(aligned(&[5], &[1, 5]), [(0..0, 0..1), (0..1, 1..2)]);
    }
}
