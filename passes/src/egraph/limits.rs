//! What a search may cost, as a function of the program's size.
//!
//! With n operations in the program that is searched (a program that repeats is searched with few occurrences):
//!
//! | counted | at most |
//! |---|---|
//! | e-nodes | N = 2,000 + 32 n, and [`SearchOptions::node_limit`] |
//! | terms to which a rule is applied | 16 N |
//! | classes that extraction looks at | 256 N |
//!
//! Tiny models under plans of one axis need 4 to 9 e-nodes for an operation, 9 applications for an e-node and 60 to 150
//! looks. Plans with layouts on many modules and two axes can need 80 e-nodes for an operation: different orders of
//! reductions, gathers and slices multiply.
//!
//! Nothing depends on a clock, so every machine finds the same program. A bound that is reached is in the
//! [`SearchReport`](super::SearchReport). The result is then what was found until there, at worst the program that came in.

use super::options::SearchOptions;
use super::stop::Stop;
use tpc_ir::Graph;

/// E-nodes of any search.
const NODES: usize = 2_000;
/// E-nodes for each operation.
const NODES_EACH: usize = 32;
/// Applications of rules for each e-node.
const APPLICATIONS_EACH: usize = 16;
/// Looks of extraction for each e-node.
const MOVES_EACH: usize = 256;

/// The bounds of one search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Most e-nodes.
    pub nodes: usize,
    /// Most terms to which a rule is applied. The terms of one class are finished.
    pub applications: usize,
    /// Most classes that extraction looks at. A walk that has begun is finished.
    pub moves: usize,
}

impl Bounds {
    /// Those of a program.
    pub fn of(graph: &Graph, options: &SearchOptions) -> Self {
        let nodes = NODES + NODES_EACH * graph.len();
        let (applications, moves) = (APPLICATIONS_EACH * nodes, MOVES_EACH * nodes);
        Bounds { nodes: nodes.min(options.node_limit), applications, moves }
    }

    /// The bound that the rules have reached.
    pub(super) fn reached(&self, nodes: usize, applications: usize) -> Option<Stop> {
        if nodes >= self.nodes {
            Some(Stop::Nodes(self.nodes))
        } else if applications >= self.applications {
            Some(Stop::Applications(self.applications))
        } else {
            None
        }
    }
}
