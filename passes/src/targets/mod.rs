//! What a program is compiled for: the rates of a device and of the links between ranks, as data.
//!
//! | question | file |
//! |---|---|
//! | which numbers describe a machine, which link an axis uses | this one |
//! | how a profile is read and written as JSON | `profile`, `target.schema.json` |
//! | which targets are built in, and where their numbers come from | [`built_in`], `*.json` |
//!
//! [`cost`](crate::cost) turns these numbers into the seconds of an operation. There is no default target: a caller
//! names one, or takes the target of the device that runs the ranks.
//!
//! # Links
//! A collective costs α + bytes / bandwidth, where α is a number of seconds ([`Link::latency`]) and the bytes are those that a
//! rank sends. Ranks are numbered so that the last axis of a mesh is the fastest to change, and the ranks of one node have
//! consecutive numbers. The group of an axis therefore stays inside a node if the ranks that it spans (the size of the axis times
//! the sizes of all later axes) divide the ranks of a node; otherwise some group leaves its node, and the axis has the link
//! between nodes. A profile can also give an axis a link by its name, which is then not looked for.
//!
//! A group over several axes has the slowest link of any of them: the largest latency and the smallest bandwidth. Its ring crosses
//! the slow link in few places, but all ranks move one chunk at a time, and every step waits for the chunk that crosses. So a ring
//! over eight ranks of which two edges leave a node takes as long as one whose edges all do. What crosses the slow link can only
//! become less if the collective is taken apart: rule 25 reduces inside the nodes first.

pub mod built_in;
mod profile;

pub use built_in::BUILT_IN;
pub use profile::{SCHEMA, TargetError};

use std::collections::BTreeMap;
use tpc_ir::{AxisId, AxisSet, DType, Mesh};

/// A machine that programs are compiled for.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// What messages call it.
    pub name: String,
    /// What executes one rank.
    pub device: Device,
    /// What connects the ranks.
    pub links: Links,
    /// The share of a reduction's latency that turning a value into one term of a sum costs (`to_partial`).
    ///
    /// Such a mask moves no bytes, but the value that it is added to then waits for it, and the reduction of the sum can no longer
    /// travel with reductions that come before. With a share between 0 and 1 a mask pays if it saves a reduction, and does not
    /// pay if it only moves one.
    pub mask: f64,
}

/// What executes one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Which backends it stands for.
    pub kind: DeviceKind,
    /// How fast it multiplies matrices.
    pub products: Products,
    /// Bytes per second that everything but a product reads and writes.
    pub memory: f64,
    /// Seconds that starting a kernel costs. It is also why small products are slower than large ones: a product of n operations
    /// takes `launch + n / rate`, so that half of the rate is reached at `n = launch · rate` (Hockney's n½). No table of rates by
    /// size is needed beside it.
    pub launch: f64,
    /// The share of a launch that a view costs (a slice of a value that every rank has, an index into a dimension). Most views are
    /// free, since their readers address them; a share above 0 means that doing without is cheaper.
    pub view: f64,
    /// The share of its operands that an elementwise operation reads from memory. Most of them share a loop with the operations that
    /// make their operands, and only the result is written. The search decides before loops are made, so it takes an average.
    pub fused_reads: f64,
    /// Bytes of memory of one rank. No cost depends on it: it is what a plan has to fit into.
    pub capacity: f64,
}

/// Which backends a device stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Threads or processes on a CPU.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

impl DeviceKind {
    /// Its name in a profile.
    pub fn name(self) -> &'static str {
        match self {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Cuda => "cuda",
        }
    }
}

/// Floating-point operations per second of matrix products, by the element type of the operands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Products {
    /// f32, and every type that has no rate of its own.
    pub f32: f64,
    /// bf16.
    pub bf16: Option<f64>,
    /// f16.
    pub f16: Option<f64>,
    /// f64.
    pub f64: Option<f64>,
}

impl Products {
    /// The rate of products of this type.
    pub fn rate(&self, dtype: DType) -> f64 {
        let own = match dtype {
            DType::BF16 => self.bf16,
            DType::F16 => self.f16,
            DType::F64 => self.f64,
            _ => None,
        };
        own.unwrap_or(self.f32)
    }
}

/// A connection of ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Seconds that a collective costs before its first byte (α).
    pub latency: f64,
    /// Bytes per second that each rank sends while all ranks of its group do (1/β).
    pub bandwidth: f64,
}

impl Link {
    /// What bounds a group that uses both links.
    fn slower(self, other: Link) -> Link {
        Link { latency: self.latency.max(other.latency), bandwidth: self.bandwidth.min(other.bandwidth) }
    }
}

/// The connections of a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Links {
    /// Between ranks of different nodes; between any two ranks if there are no nodes.
    pub default: Link,
    /// Between ranks of one node.
    pub node: Option<Node>,
    /// Links of the mesh axes with these names, in the place of what the nodes say.
    pub axes: BTreeMap<String, Link>,
}

/// Ranks with consecutive numbers that are connected by a link of their own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Node {
    /// Ranks of a node.
    pub ranks: usize,
    /// What connects them.
    pub link: Link,
}

impl Node {
    /// Whether every group along an axis of a mesh stays inside a node.
    fn holds(&self, mesh: &Mesh, axis: AxisId) -> bool {
        let spanned: usize = mesh.axes()[axis.0 as usize..].iter().map(|a| a.size).product();
        mesh.ranks() <= self.ranks || self.ranks.is_multiple_of(spanned)
    }
}

impl Links {
    /// The link that groups along one axis of a mesh use.
    pub fn axis(&self, mesh: &Mesh, axis: AxisId) -> Link {
        let named = self.axes.get(mesh.user_name(axis)).copied();
        let inside = || self.node.filter(|node| node.holds(mesh, axis)).map(|node| node.link);
        named.or_else(inside).unwrap_or(self.default)
    }

    /// The link that bounds a collective over these axes; axes with one rank connect nothing.
    pub fn group(&self, mesh: &Mesh, axes: AxisSet) -> Link {
        let links = axes.iter().filter(|&axis| mesh.size(axis) > 1).map(|axis| self.axis(mesh, axis));
        links.reduce(Link::slower).unwrap_or(self.default)
    }

    /// Whether some axis of a mesh has more bandwidth than another.
    pub fn differ(&self, mesh: &Mesh) -> bool {
        let connecting = mesh.axis_ids().filter(|&axis| mesh.size(axis) > 1);
        let mut bandwidths = connecting.map(|axis| self.axis(mesh, axis).bandwidth);
        bandwidths.next().is_some_and(|first| bandwidths.any(|other| other != first))
    }

    /// The bandwidth of every axis of a mesh, in the mesh's order.
    pub fn bandwidths(&self, mesh: &Mesh) -> Vec<f64> {
        mesh.axis_ids().map(|axis| self.axis(mesh, axis).bandwidth).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(bandwidth: f64) -> Link {
        Link { latency: 1.0 / bandwidth, bandwidth }
    }

    fn nodes(ranks: usize) -> Links {
        Links { default: link(1.0), node: Some(Node { ranks, link: link(10.0) }), axes: BTreeMap::new() }
    }

    #[test]
    fn an_axis_uses_the_link_of_the_ranks_that_it_spans() {
        for (mesh, ranks, expected) in [
            ("dp=2,tp=4", 4, vec![1.0, 10.0]),
            ("dp=2,tp=4", 8, vec![10.0, 10.0]),
            ("dp=2,tp=4", 2, vec![1.0, 1.0]),
            ("rep=2,dp=2,tp=4", 8, vec![1.0, 10.0, 10.0]),
            // The second group of three begins in the first node of four and ends in the second.
            ("dp=2,tp=3", 4, vec![1.0, 1.0]),
            // A single node holds all ranks, whatever their number.
            ("tp=3", 4, vec![10.0]),
            ("tp=6", 4, vec![1.0]),
        ] {
            let mesh = Mesh::parse(mesh).unwrap();
            assert_eq!(nodes(ranks).bandwidths(&mesh), expected, "{mesh} in nodes of {ranks}");
        }
    }

    /// The definition: a link between nodes is used if some group has ranks of two nodes.
    #[test]
    fn an_axis_leaves_its_node_exactly_if_one_of_its_groups_does() {
        for sizes in [[2, 4], [4, 2], [3, 2], [2, 3], [6, 2], [5, 3], [1, 8], [8, 1]] {
            let mesh = Mesh::new([("a", sizes[0]), ("b", sizes[1])]).unwrap();
            for ranks in 1..=16 {
                for axis in mesh.axis_ids() {
                    let crosses = |rank: usize| {
                        let group = mesh.group(rank, &[axis]);
                        group.iter().any(|r| r / ranks != group[0] / ranks)
                    };
                    let leaves = mesh.size(axis) > 1 && (0..mesh.ranks()).any(crosses);
                    let found = nodes(ranks).group(&mesh, AxisSet::one(axis)).bandwidth < 10.0;
                    assert_eq!(found, leaves || mesh.size(axis) == 1, "{mesh}, axis {axis:?}, nodes of {ranks}");
                }
            }
        }
    }

    #[test]
    fn a_group_over_several_axes_has_the_slowest_link_of_them() {
        let mesh = Mesh::parse("rep=2,dp=2,tp=4").unwrap();
        let both: AxisSet = [AxisId(0), AxisId(2)].into_iter().collect();
        assert_eq!(nodes(8).group(&mesh, both), Link { latency: 1.0, bandwidth: 1.0 });
        assert_eq!(nodes(8).group(&mesh, AxisSet::one(AxisId(2))), link(10.0));
        // Latency and bandwidth may be bounded by different links.
        let mut links = nodes(8);
        links.axes.insert("tp".into(), Link { latency: 7.0, bandwidth: 10.0 });
        assert_eq!(links.group(&mesh, both), Link { latency: 7.0, bandwidth: 1.0 });
    }

    /// The part of an axis that a plan splits off may stay inside a node where the axis does not; a name means all its parts.
    #[test]
    fn parts_of_axes_have_links_of_their_own() {
        let mesh = Mesh::parse("tp=16").unwrap().split(AxisId(0), 2).unwrap();
        assert_eq!(nodes(8).bandwidths(&mesh), [1.0, 10.0]);
        let mut links = nodes(8);
        links.axes.insert("tp".into(), link(3.0));
        assert_eq!(links.bandwidths(&mesh), [3.0, 3.0]);
    }

    #[test]
    fn products_without_a_rate_of_their_own_have_that_of_f32() {
        let products = Products { f32: 1.0, bf16: Some(2.0), f16: None, f64: None };
        let rates = [DType::F32, DType::BF16, DType::F16, DType::F64, DType::I64].map(|d| products.rate(d));
        assert_eq!(rates, [1.0, 2.0, 1.0, 1.0, 1.0]);
    }
}
