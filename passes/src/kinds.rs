//! Kinds of ranks: the ranks of a kind run programs of the same sizes, so one of them stands for all.
//!
//! Lowering makes the same kernels for every rank, in the same order, since both depend on global types only
//! ([`schedule`](mod@crate::lower::schedule)). What differs between ranks is
//!
//! - the length of the chunk that a rank holds of a dimension that its axes do not divide evenly, which is the extent
//!   of loops, products, buffers and collectives;
//! - whether a rank passes a value on as a term of a sum or a constant in its place (`to_partial`), which is a load
//!   more or less in a loop;
//! - offsets, the members of groups, and the positions in them, which take no time and no memory.
//!
//! Two ranks are therefore of one kind if they agree on the first two. Both follow from the coordinates of a rank and the
//! types of the placed program, so no rank is lowered to find the kinds. If all sizes divide evenly and no value becomes a
//! term, there is one kind.
//!
//! Before: `%1 : f32[10@tp, 64]` on `tp=4`. After: ranks 0 to 2, which hold 3 rows, and rank 3, which holds 1.

use std::collections::{BTreeSet, HashMap};
use tpc_ir::sharding::chunk;
use tpc_ir::{AxisId, AxisSet, Graph, Mesh, Op};

/// What the sizes of a rank's program depend on.
struct Features<'a> {
    mesh: &'a Mesh,
    /// Dimensions that are not cut evenly: their size, and the axes that cut them.
    uneven: BTreeSet<(usize, &'a [AxisId])>,
    /// The axes along which a value becomes a term.
    terms: BTreeSet<AxisSet>,
}

impl<'a> Features<'a> {
    fn of(graph: &'a Graph) -> Self {
        let mesh = &graph.mesh;
        let (mut uneven, mut terms) = (BTreeSet::new(), BTreeSet::new());
        for node in graph.nodes().map(|node| graph.node(node)) {
            if let Op::ToPartial { axes, .. } = &node.op {
                terms.insert(*axes);
            }
            for (&size, axes) in node.types.iter().flat_map(|ty| ty.shape.iter().zip(&ty.sharding.dims)) {
                let pieces: usize = axes.iter().map(|&axis| mesh.size(axis)).product();
                if !size.is_multiple_of(pieces) {
                    uneven.insert((size, &axes[..]));
                }
            }
        }
        Features { mesh, uneven, terms }
    }

    /// The features of one rank: the lengths of its chunks, and where it passes values on.
    fn at(&self, rank: usize) -> (Vec<usize>, Vec<bool>) {
        let coords = self.mesh.coords(rank);
        let lengths = self.uneven.iter().map(|(size, axes)| chunk(*size, axes, self.mesh, &coords).len);
        let first = |axes: &AxisSet| axes.iter().all(|axis| coords[axis.0 as usize] == 0);
        (lengths.collect(), self.terms.iter().map(first).collect())
    }
}

/// The ranks of each kind in order, by the first of them. The graphs are placed programs of the same ranks, which run them in
/// turn; ranks of one kind agree in all of them.
pub fn kinds(graphs: &[&Graph]) -> Vec<Vec<usize>> {
    let features: Vec<Features<'_>> = graphs.iter().map(|graph| Features::of(graph)).collect();
    let mut known: HashMap<Vec<_>, usize> = HashMap::new();
    let mut kinds: Vec<Vec<usize>> = Vec::new();
    for rank in 0..graphs.first().map_or(0, |graph| graph.mesh.ranks()) {
        let kind = features.iter().map(|features| features.at(rank)).collect();
        let at = *known.entry(kind).or_insert_with(|| {
            kinds.push(Vec::new());
            kinds.len() - 1
        });
        kinds[at].push(rank);
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpc_ir::parse::parse;

    fn of(text: &str) -> Vec<Vec<usize>> {
        kinds(&[&parse(text).unwrap()])
    }

    #[test]
    fn even_sizes_make_one_kind() {
        let found = of("mesh <dp=2, tp=2>\n%0 = input data \"x\" : f32[8@dp, 6@tp]\noutput result \"y\" %0\n");
        assert_eq!(found, [[0, 1, 2, 3]]);
    }

    #[test]
    fn ranks_with_shorter_chunks_are_of_another_kind() {
        let found = of("mesh <tp=4>\n%0 = input data \"x\" : f32[10@tp, 64]\noutput result \"y\" %0\n");
        assert_eq!(found, [&[0, 1, 2][..], &[3]]);
        // Two of five rows for each of the first two ranks, one for the third, none for the last.
        let found = of("mesh <tp=4>\n%0 = input data \"x\" : f32[5@tp]\noutput result \"y\" %0\n");
        assert_eq!(found, [&[0, 1][..], &[2], &[3]]);
    }

    /// One rank adds the value, the others add nothing.
    #[test]
    fn ranks_that_pass_a_term_on_are_of_another_kind() {
        let found = of("mesh <tp=3>\n%0 = input data \"x\" : f32[4]\n\
            %1 = to_partial tp sum %0 : f32[4] +sum@tp  ; forward\n\
            %2 = all_reduce tp sum %1 : f32[4]  ; forward\noutput result \"y\" %2\n");
        assert_eq!(found, [&[0][..], &[1, 2]]);
    }
}
