//! Targets: the rates of devices, and of the links between ranks, that programs are compiled for.
//!
//! | question | file |
//! |---|---|
//! | which numbers describe a machine, which link an axis uses | this file |
//! | how a profile is read and written as JSON | `profile`, `target.schema.json` |
//! | which targets are built in, and where their numbers come from | [`built_in`], `*.json` |
//!
//! [`cost`](crate::cost) turns these numbers into the seconds of an operation. There is no default target: a caller
//! names one, or uses the target of the device that runs the ranks.
//!
//! # Links
//! A collective takes α + bytes / bandwidth, where α is its latency in seconds ([`Link::latency`]) and the bytes are
//! those that a rank sends. Ranks are numbered so that the last axis of a mesh is the fastest to change, and the ranks
//! of one node have consecutive numbers. The group of an axis therefore stays inside a node if the ranks that it spans
//! (the size of the axis times the sizes of all later axes) divide the ranks of a node; otherwise some group leaves its
//! node, and the axis has the link between nodes. A profile can also give a link to an axis by name, which then takes
//! precedence.
//!
//! The link of a group over several axes has the largest latency and the smallest bandwidth of the links of these axes. Its
//! ring crosses the slow link in few places, but all ranks send one chunk at a time, and every step waits for the chunk
//! that crosses it. A ring over eight ranks of which two edges leave a node therefore takes as long as one whose edges
//! all do. Only splitting the collective reduces the bytes that cross the slow link: rule 25 reduces inside the nodes
//! first.

pub mod built_in;
mod profile;

pub use built_in::BUILT_IN;
pub use profile::{SCHEMA, TargetError};

use std::collections::BTreeMap;
use tpc_ir::{AxisId, AxisSet, DType, Mesh};

/// A machine that programs are compiled for.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The name in messages.
    pub name: String,
    /// The device that executes one rank.
    pub device: Device,
    /// The links between ranks.
    pub links: Links,
    /// The cost of turning a value into a term of a sum (`to_partial`), as a share of the latency of a reduction.
    ///
    /// Such a mask moves no bytes, but the value to which it is added must wait for it, and the reduction of the sum
    /// can no longer be merged with earlier reductions. With a share between 0 and 1, a mask pays off if it saves a
    /// reduction, but not if it only moves one.
    pub mask: f64,
}

/// The device that executes one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// The backends that it stands for.
    pub kind: DeviceKind,
    /// The rates of matrix products.
    pub products: Products,
    /// The bytes per second that all operations except products read and write.
    pub memory: f64,
    /// The seconds that it takes to start a kernel. It also makes small products slower than large ones: a product of n
    /// operations takes `launch + n / rate`, which is half of the rate at `n = launch · rate` (Hockney's n½).
    pub launch: f64,
    /// The share of their rate that products reach, by the bytes of their operands and results, the smallest first. Between
    /// two sizes it follows the logarithm of the size. Without an entry, products reach their rate.
    pub product_shares: Vec<Share>,
    /// What the functions of loops cost. None if they cost nothing in addition to their memory accesses, as on a GPU.
    pub loops: Option<Loops>,
    /// Memory that is faster than `memory` for what was touched lately, the smallest first.
    pub caches: Vec<Cache>,
    /// The cost of a view (a slice of a value that every rank has, an index into a dimension), as a share of a launch.
    /// Most views are free, because their readers address the viewed value; a share above 0 makes it cheaper to have no
    /// view.
    pub view: f64,
    /// The share of its operands that an elementwise operation reads from memory. Most elementwise operations are in
    /// one loop with those that compute their operands, and only the result is written. The search runs before loops
    /// are formed, so it uses an average.
    pub fused_reads: f64,
    /// The bytes of memory of one rank. Costs do not depend on it, but a plan must fit into it.
    pub capacity: f64,
}

/// The share of their rate that products of a size reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Bytes of operands and result.
    pub bytes: f64,
    /// The share.
    pub share: f64,
}

/// What the functions of loops cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loops {
    /// Elements per second of an addition, a comparison or the like.
    pub arithmetic: f64,
    /// Elements per second of a division or a square root.
    pub divisions: f64,
    /// Elements per second of an exponential, a sine or the like.
    pub functions: f64,
    /// Elements per second that are copied from short rows, or to them, where several rows are computed together.
    pub copies: f64,
    /// Seconds that it takes to apply a function, a load or a store to a row or to several short ones, in addition to its
    /// elements.
    pub dispatch: f64,
}

/// What is read again before many other bytes are read is read faster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cache {
    /// The bytes that may be touched in between.
    pub bytes: f64,
    /// Bytes per second.
    pub bandwidth: f64,
}

impl Device {
    /// The share of their rate that products reach whose operands and results have so many bytes.
    pub fn product_share(&self, bytes: f64) -> f64 {
        let next = self.product_shares.iter().position(|share| share.bytes >= bytes);
        match (next, self.product_shares.last()) {
            (_, None) => 1.0,
            (Some(0), _) => self.product_shares[0].share,
            (Some(next), _) => {
                let (a, b) = (self.product_shares[next - 1], self.product_shares[next]);
                a.share + (b.share - a.share) * (bytes / a.bytes).ln() / (b.bytes / a.bytes).ln()
            }
            (None, Some(last)) => last.share,
        }
    }

    /// Bytes per second at which bytes are read that were touched before so many others.
    pub fn bandwidth(&self, distance: f64) -> f64 {
        self.caches.iter().find(|cache| distance <= cache.bytes).map_or(self.memory, |cache| cache.bandwidth)
    }
}

/// The backends that a device stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Threads or processes on a CPU.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

impl DeviceKind {
    /// Whether collectives run while kernels do. On a CPU, the rank itself adds and copies.
    pub fn overlaps(self) -> bool {
        self == DeviceKind::Cuda
    }

    /// The name in profiles.
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
    /// The rate for f32, and for every type without another rate.
    pub f32: f64,
    /// The rate for bf16.
    pub bf16: Option<f64>,
    /// The rate for f16.
    pub f16: Option<f64>,
    /// The rate for f64.
    pub f64: Option<f64>,
}

impl Products {
    /// The rate of products with operands of a type.
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

/// A link between ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// The seconds that a collective takes in addition to the time for its bytes (α).
    pub latency: f64,
    /// The bytes per second that each rank sends while all ranks of its group send (1/β).
    pub bandwidth: f64,
}

impl Link {
    /// The link that bounds a group that uses two links.
    fn slower(self, other: Link) -> Link {
        Link { latency: self.latency.max(other.latency), bandwidth: self.bandwidth.min(other.bandwidth) }
    }
}

/// The links of a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Links {
    /// The link between ranks of different nodes, or between any two ranks if there are no nodes.
    pub default: Link,
    /// The nodes, if there are any, and the link between ranks of one node.
    pub node: Option<Node>,
    /// Links of mesh axes by name, which take precedence over nodes.
    pub axes: BTreeMap<String, Link>,
}

/// Ranks with consecutive numbers that have a common, faster link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Node {
    /// The number of ranks of a node.
    pub ranks: usize,
    /// The link between them.
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

    /// The link that bounds a collective over some axes. Axes of one rank do not count.
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

    /// By definition, the link between nodes is used if some group has ranks of two nodes.
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

    /// A part of an axis may stay inside a node even if the axis does not. A name stands for all parts of the axis.
    #[test]
    fn parts_of_axes_have_links_of_their_own() {
        let mesh = Mesh::parse("tp=16").unwrap().split(AxisId(0), 2).unwrap();
        assert_eq!(nodes(8).bandwidths(&mesh), [1.0, 10.0]);
        let mut links = nodes(8);
        links.axes.insert("tp".into(), link(3.0));
        assert_eq!(links.bandwidths(&mesh), [3.0, 3.0]);
    }

    #[test]
    fn shares_follow_the_logarithm_of_the_size() {
        let mut device = Target::cpu().device.clone();
        assert_eq!((device.product_share(1e3), device.bandwidth(0.0)), (1.0, device.memory));
        device.product_shares =
            [(1e4, 0.5), (1e6, 1.0), (1e8, 0.6)].map(|(bytes, share)| Share { bytes, share }).to_vec();
        let close = |bytes: f64, share: f64| assert!((device.product_share(bytes) - share).abs() < 1e-12, "{bytes}");
        for (bytes, share) in [(0.0, 0.5), (1e4, 0.5), (1e5, 0.75), (1e6, 1.0), (1e7, 0.8), (1e8, 0.6), (1e12, 0.6)] {
            close(bytes, share);
        }
        device.caches = [(10.0, 3.0), (20.0, 2.0)].map(|(bytes, bandwidth)| Cache { bytes, bandwidth }).to_vec();
        assert_eq!([0.0, 10.0, 11.0, 20.0].map(|distance| device.bandwidth(distance)), [3.0, 3.0, 2.0, 2.0]);
        assert_eq!([21.0, f64::INFINITY].map(|distance| device.bandwidth(distance)), [device.memory; 2]);
    }

    #[test]
    fn products_without_a_rate_of_their_own_have_that_of_f32() {
        let products = Products { f32: 1.0, bf16: Some(2.0), f16: None, f64: None };
        let rates = [DType::F32, DType::BF16, DType::F16, DType::F64, DType::I64].map(|d| products.rate(d));
        assert_eq!(rates, [1.0, 2.0, 1.0, 1.0, 1.0]);
    }
}
