//! What repeats is optimized once. A program of many layers is shortened to a few ([`tpc_ir::block`]), the short program
//! is placed and searched, and its middle layers, which came out alike, are repeated as often as before.
//!
//! One occurrence in the middle of a short program stands for those that are left out, so its operations count that many
//! times more ([`Shortened::times`]). The planner therefore minimizes the time of the whole program.
//!
//! The long program is only taken if both proofs hold of it: its ranks compute what its types say
//! ([`check`](mod@crate::check)), and it denotes the program that came in ([`denotes`](mod@crate::denotes)). Otherwise the
//! whole program is optimized. So what is here does not have to be right about every model, only about most.
//!
//! A model can be shortened before all of this ([`ShortModel`](crate::short_model::ShortModel)). Then nothing that leads to the
//! placed program sees how deep the model is.
//!
//! Before: 80 layers, each `…, %12 = all_reduce …, %13 = all_reduce …, %14 = add %12, %13`.
//! Optimized: 6 of them. After: 80 layers, each `…, %12 = add …, %13 = all_reduce …  why: … rule 7`.

use tpc_ir::Graph;
use tpc_ir::block::{Block, BlockRegion, Lines, Resized};

/// How many occurrences are optimized. Those at the ends may come out different, and what moves across the border of an
/// occurrence makes the run of equal ones shorter; two of these are needed to see how the run goes on.
pub const KEPT: usize = 6;

/// Most blocks that a quantity is extrapolated along. It is measured twice as often with each further block.
const EXTRAPOLATED: usize = 2;

/// A block of which a short program has few occurrences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// The block, as it was found.
    pub(crate) block: Block,
    /// How many occurrences the short program lacks.
    pub(crate) left_out: usize,
}

impl Cut {
    /// Leaves out most occurrences of the largest block that has many. Also returns the short program.
    pub(crate) fn of(lines: &Lines) -> Option<(Graph, Cut)> {
        lines.blocks().into_iter().filter(|block| block.count > KEPT).find_map(|block| {
            let left_out = block.count - KEPT;
            let short = lines.resized(&block, -(left_out as i64))?.graph;
            Some((short, Cut { block, left_out }))
        })
    }

    /// Calls `make` with what gives a program more occurrences of the block. `None` if its occurrences are not alike.
    pub(crate) fn inserted<T>(&self, graph: &Graph, by: usize, make: impl FnOnce(Resized) -> T) -> Option<T> {
        let lines = Lines::of(graph);
        let resized = lines.resized(self.find(&lines.blocks())?, i64::try_from(by).ok()?)?;
        Some(make(resized))
    }

    /// The block, among those of a program that was made from the short one.
    pub(crate) fn find<'a>(&self, blocks: &'a [Block]) -> Option<&'a Block> {
        blocks.iter().find(|block| block.counts_like(&self.block))
    }
}

/// What the nodes of a short program stand for.
pub(crate) struct Extents {
    /// By node, the number of nodes of the long program that it stands for.
    pub(crate) times: Vec<f64>,
    /// By node, whether it belongs to an occurrence of a block that was cut.
    pub(crate) repeats: Vec<bool>,
}

/// A short program that stands for a long one.
#[derive(Clone, Debug)]
pub struct Shortened {
    /// The short program.
    pub graph: Graph,
    /// What was cut, in this order.
    pub(crate) cuts: Vec<Cut>,
}

impl Shortened {
    /// Shortens a program; `None` if nothing repeats often enough.
    pub fn of(graph: &Graph) -> Option<Shortened> {
        let mut short: Option<Shortened> = None;
        while let Some((graph, cut)) = Cut::of(&Lines::of(short.as_ref().map_or(graph, |short| &short.graph))) {
            let mut cuts = short.map(|short| short.cuts).unwrap_or_default();
            cuts.push(cut);
            short = Some(Shortened { graph, cuts });
        }
        short.filter(|short| short.times(&short.graph).is_some())
    }

    /// The blocks that were cut, and how often each occurs.
    pub fn blocks(&self) -> Vec<(String, usize)> {
        self.cuts.iter().rev().map(|cut| (cut.block.path.clone(), KEPT + cut.left_out)).collect()
    }

    /// How many operations of the long program each node stands for, of the short program or one that was made from it.
    /// `None` if the blocks are not found in it.
    pub fn times(&self, graph: &Graph) -> Option<Vec<f64>> {
        self.extents(graph).map(|extents| extents.times)
    }

    /// What each node stands for, of the short program or one that was made from it. `None` if the blocks are not found in
    /// it.
    pub(crate) fn extents(&self, graph: &Graph) -> Option<Extents> {
        let mut found = Extents { times: once(graph), repeats: vec![false; graph.len()] };
        let lines = Lines::of(graph);
        let blocks = lines.blocks();
        for cut in &self.cuts {
            for BlockRegion { run, .. } in &cut.find(&blocks)?.regions {
                for node in lines.occurrence(run, run.count / 2) {
                    found.times[node.index()] *= (1 + cut.left_out) as f64;
                }
                for node in (0..run.count).flat_map(|which| lines.occurrence(run, which)) {
                    found.repeats[node.index()] = true;
                }
            }
        }
        Some(found)
    }

    /// Whether the occurrences of a program that was made from the short one are alike, so that there can be more of them.
    pub(crate) fn is_repeated_by(&self, graph: &Graph) -> bool {
        self.lengthened_by(graph, |_| 1).is_some()
    }

    /// The program with further blocks cut, if there are some. The blocks that are cut already are not cut a second time.
    #[must_use]
    pub fn further(self) -> Shortened {
        match Shortened::of(&self.graph) {
            Some(short) => Shortened { graph: short.graph, cuts: [self.cuts, short.cuts].concat() },
            None => self,
        }
    }

    /// A program that was made from this one, with all occurrences of every block after the first `cuts` of those that this
    /// one lacks. `None` if its occurrences are not alike.
    pub fn with_cuts(&self, graph: &Graph, cuts: usize) -> Option<Graph> {
        self.lengthened_by(graph, |cut| if cut < cuts { 0 } else { self.cuts[cut].left_out })
    }

    /// Makes a program that was made from the short one as long as the long one. `None` if its occurrences are not alike, or
    /// if its inputs and outputs do not lie where those of the long one do.
    pub fn lengthened(&self, graph: &Graph, long: &Graph) -> Option<Graph> {
        self.with_cuts(graph, 0).filter(|found| same_ends(found, long))
    }

    /// Extrapolates what a program takes to the long one, from programs that are not much longer than the short one.
    /// `None` if the occurrences are not alike, or if too many blocks were cut.
    ///
    /// # Errors
    /// Those of `measure`.
    pub fn extrapolated<E>(&self, graph: &Graph, measure: impl Fn(&Graph) -> Result<f64, E>) -> Result<Option<f64>, E> {
        if self.cuts.len() > EXTRAPOLATED {
            return Ok(None);
        }
        // What a step takes is linear in the occurrences of every block, as long as those of the others stay the same.
        let mut total = 0.0;
        for corner in 0..1usize << self.cuts.len() {
            let is_longer = |cut: usize| corner >> cut & 1 == 1;
            let longer = |cut: usize| if is_longer(cut) { self.cuts[cut].left_out.min(KEPT) } else { 0 };
            let Some(longer) = self.lengthened_by(graph, longer) else { return Ok(None) };
            let weight = |(i, cut): (usize, &Cut)| {
                let steps = cut.left_out as f64 / cut.left_out.min(KEPT) as f64;
                if is_longer(i) { steps } else { 1.0 - steps }
            };
            let weight: f64 = self.cuts.iter().enumerate().map(weight).product();
            if weight != 0.0 {
                total += weight * measure(&longer)?;
            }
        }
        Ok(Some(total))
    }

    fn lengthened_by(&self, graph: &Graph, by: impl Fn(usize) -> usize) -> Option<Graph> {
        let mut long = graph.clone();
        for (i, cut) in self.cuts.iter().enumerate().rev().filter(|&(i, _)| by(i) > 0) {
            long = cut.inserted(&long, by(i), |longer| longer.graph)?;
        }
        Some(long)
    }
}

/// What a program stands for.
#[derive(Clone, Copy, Debug)]
pub enum Extent<'a> {
    /// Itself.
    Whole,
    /// The long program that was shortened to it, or to what it was made from.
    Short(&'a Shortened),
}

impl Extent<'_> {
    /// How many operations each node of a program stands for. `None` if it does not repeat as the short program does.
    pub fn times(self, graph: &Graph) -> Option<Vec<f64>> {
        match self {
            Extent::Whole => Some(once(graph)),
            Extent::Short(short) => short.times(graph),
        }
    }
}

/// Every node of a program that stands for itself counts once.
pub(crate) fn once(graph: &Graph) -> Vec<f64> {
    vec![1.0; graph.len()]
}

/// Whether inputs and outputs lie in the same places, and inputs belong to the same units.
fn same_ends(a: &Graph, b: &Graph) -> bool {
    let inputs = |graph: &Graph| {
        let input = |(node, _)| (graph.node(node).types[0].clone(), graph.unit_of(node));
        graph.inputs().map(input).collect::<Vec<_>>()
    };
    let outputs = |graph: &Graph| graph.outputs.iter().map(|output| graph.ty(output.value).clone()).collect::<Vec<_>>();
    inputs(a) == inputs(b) && outputs(a) == outputs(b)
}
