//! Device meshes: ordered, named axes of ranks.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Index of an axis of a [`Mesh`], in the mesh's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AxisId(pub u8);

/// A set of mesh axes. The ranks that differ only in these axes form one communicator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AxisSet(u32);

impl AxisSet {
    /// The empty set.
    pub const EMPTY: AxisSet = AxisSet(0);

    /// The set that holds one axis.
    pub fn one(axis: AxisId) -> Self {
        AxisSet(1 << axis.0)
    }

    /// Whether `axis` is in the set.
    pub fn contains(self, axis: AxisId) -> bool {
        self.0 & (1 << axis.0) != 0
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The axes in either set.
    #[must_use]
    pub fn union(self, other: AxisSet) -> Self {
        AxisSet(self.0 | other.0)
    }

    /// The axes of `self` that are not in `other`.
    #[must_use]
    pub fn minus(self, other: AxisSet) -> Self {
        AxisSet(self.0 & !other.0)
    }

    /// The axes in both sets.
    #[must_use]
    pub fn intersection(self, other: AxisSet) -> Self {
        AxisSet(self.0 & other.0)
    }

    /// Whether every axis of `other` is in `self`.
    pub fn is_superset(self, other: AxisSet) -> bool {
        other.0 & !self.0 == 0
    }

    /// The axes in mesh order.
    pub fn iter(self) -> impl Iterator<Item = AxisId> {
        (0..32).map(AxisId).filter(move |&a| self.contains(a))
    }
}

impl FromIterator<AxisId> for AxisSet {
    fn from_iter<I: IntoIterator<Item = AxisId>>(axes: I) -> Self {
        axes.into_iter().fold(AxisSet::EMPTY, |s, a| s.union(AxisSet::one(a)))
    }
}

/// One axis of a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MeshAxis {
    /// Name. A part of an axis that was split carries its parent's name and the split:
    /// `tp:2` is the major part (2 groups), `tp:/2` the minor part inside each of those groups.
    pub name: String,
    /// Number of coordinates.
    pub size: usize,
}

/// An ordered list of named axes. Rank numbers are row-major: the last axis is the fastest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mesh {
    axes: Vec<MeshAxis>,
}

/// Most ranks of a mesh.
pub const MAX_RANKS: usize = 1 << 16;

/// Most axes of a mesh: an [`AxisSet`] is one word.
pub const MAX_AXES: usize = 32;

/// Why a mesh could not be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MeshError {
    /// The text is not a list of `name=size`.
    #[error("mesh `{0}` is not a list of axes: write it as `tp=2` or `dp=2,tp=4`")]
    Syntax(String),
    /// Two axes have one name.
    #[error("mesh axis `{0}` is named twice: every axis needs a name of its own")]
    Duplicate(String),
    /// An axis has no ranks.
    #[error("mesh axis `{0}` has size 0: an axis holds at least one rank")]
    Empty(String),
    /// More ranks than supported.
    #[error("mesh has {0} ranks, more than {1}, the most that a program is planned for")]
    TooLarge(usize, usize),
    /// More axes than an [`AxisSet`] holds.
    #[error("mesh has {0} axes, more than {1}")]
    TooMany(usize, usize),
}

impl Mesh {
    /// The mesh of one rank, with no axes.
    pub fn single() -> Self {
        Mesh::default()
    }

    /// A mesh of named axes.
    ///
    /// # Errors
    /// An empty, illegible or repeated axis name, an axis of size 0, too many ranks or axes.
    pub fn new<N: Into<String>>(axes: impl IntoIterator<Item = (N, usize)>) -> Result<Self, MeshError> {
        let mut mesh = Mesh::default();
        for (name, size) in axes {
            let name = name.into();
            let legal = |c: char| c.is_alphanumeric() || "_-.:/".contains(c);
            if name.is_empty() || !name.chars().all(legal) {
                return Err(MeshError::Syntax(format!("{name}={size}")));
            }
            if size == 0 {
                return Err(MeshError::Empty(name));
            }
            if mesh.axis(&name).is_some() {
                return Err(MeshError::Duplicate(name));
            }
            mesh.axes.push(MeshAxis { name, size });
        }
        let ranks = mesh.axes.iter().fold(1usize, |n, a| n.saturating_mul(a.size));
        if ranks > MAX_RANKS {
            return Err(MeshError::TooLarge(ranks, MAX_RANKS));
        }
        if mesh.axes.len() > MAX_AXES {
            return Err(MeshError::TooMany(mesh.axes.len(), MAX_AXES));
        }
        Ok(mesh)
    }

    /// Reads `tp=2` or `dp=2,tp=4`.
    ///
    /// # Errors
    /// Anything else, a repeated name, a size of 0.
    pub fn parse(text: &str) -> Result<Self, MeshError> {
        let mut axes = Vec::new();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let parsed =
                part.split_once('=').and_then(|(name, size)| Some((name.trim(), size.trim().parse::<usize>().ok()?)));
            axes.push(parsed.ok_or_else(|| MeshError::Syntax(text.to_string()))?);
        }
        Mesh::new(axes)
    }

    /// The axes in order.
    pub fn axes(&self) -> &[MeshAxis] {
        &self.axes
    }

    /// Every axis id in order.
    pub fn axis_ids(&self) -> impl Iterator<Item = AxisId> + use<> {
        (0..self.axes.len() as u8).map(AxisId)
    }

    /// The axis of that name.
    pub fn axis(&self, name: &str) -> Option<AxisId> {
        self.axes.iter().position(|a| a.name == name).map(|i| AxisId(i as u8))
    }

    /// The axes that are `name` itself or parts of it, major to minor.
    pub fn parts(&self, name: &str) -> Vec<AxisId> {
        let prefix = format!("{name}:");
        self.axis_ids().filter(|&a| self.name(a) == name || self.name(a).starts_with(&prefix)).collect()
    }

    /// Name of an axis; `?` of one that the mesh lacks.
    pub fn name(&self, axis: AxisId) -> &str {
        self.axes.get(axis.0 as usize).map_or("?", |a| &a.name)
    }

    /// Number of coordinates of an axis.
    pub fn size(&self, axis: AxisId) -> usize {
        self.axes[axis.0 as usize].size
    }

    /// Number of ranks in a group that differs in `axes`.
    pub fn group_size(&self, axes: AxisSet) -> usize {
        axes.iter().map(|a| self.size(a)).product()
    }

    /// Number of ranks of the whole mesh.
    pub fn ranks(&self) -> usize {
        self.axes.iter().map(|a| a.size).product()
    }

    /// Coordinates of a rank, one per axis.
    pub fn coords(&self, rank: usize) -> Vec<usize> {
        let mut rest = rank;
        let mut coords = vec![0; self.axes.len()];
        for (c, a) in coords.iter_mut().zip(&self.axes).rev() {
            *c = rest % a.size;
            rest /= a.size;
        }
        coords
    }

    /// The rank at these coordinates.
    pub fn rank(&self, coords: &[usize]) -> usize {
        self.axes.iter().zip(coords).fold(0, |r, (a, &c)| r * a.size + c)
    }

    /// The ranks that share every coordinate with `rank` except those of `axes`, ordered by the
    /// listed axes, first axis major.
    pub fn group(&self, rank: usize, axes: &[AxisId]) -> Vec<usize> {
        let base = self.coords(rank);
        let count: usize = axes.iter().map(|&a| self.size(a)).product();
        (0..count)
            .map(|i| {
                let (mut coords, mut rest) = (base.clone(), i);
                for &a in axes.iter().rev() {
                    coords[a.0 as usize] = rest % self.size(a);
                    rest /= self.size(a);
                }
                self.rank(&coords)
            })
            .collect()
    }

    /// This mesh with `axis` split into a major part of `major` coordinates and a minor part of the
    /// rest. Rank numbers do not change. `None` if `major` does not divide the axis.
    pub fn split(&self, axis: AxisId, major: usize) -> Option<Mesh> {
        let MeshAxis { name, size } = &self.axes[axis.0 as usize];
        if major == 0 || size % major != 0 {
            return None;
        }
        let parts = [
            MeshAxis { name: format!("{name}:{major}"), size: major },
            MeshAxis { name: format!("{name}:/{major}"), size: size / major },
        ];
        let mut axes = self.axes.clone();
        axes.splice(axis.0 as usize..=axis.0 as usize, parts);
        Some(Mesh { axes })
    }
}

impl fmt::Display for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mesh <")?;
        for (i, a) in self.axes.iter().enumerate() {
            write!(f, "{}{}={}", if i > 0 { ", " } else { "" }, a.name, a.size)?;
        }
        write!(f, ">")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_row_major_and_groups_follow_the_listed_order() {
        let mesh = Mesh::parse("dp=2,tp=3").unwrap();
        assert_eq!(mesh.ranks(), 6);
        assert_eq!(mesh.coords(4), [1, 1]);
        assert_eq!(mesh.rank(&[1, 1]), 4);
        let (dp, tp) = (AxisId(0), AxisId(1));
        assert_eq!(mesh.group(4, &[tp]), [3, 4, 5]);
        assert_eq!(mesh.group(4, &[dp]), [1, 4]);
        assert_eq!(mesh.group(0, &[tp, dp]), [0, 3, 1, 4, 2, 5]);
    }

    #[test]
    fn splitting_an_axis_keeps_rank_numbers() {
        let mesh = Mesh::parse("tp=4").unwrap();
        let fine = mesh.split(AxisId(0), 2).unwrap();
        assert_eq!(fine.to_string(), "mesh <tp:2=2, tp:/2=2>");
        assert_eq!(fine.coords(3), [1, 1]);
        assert_eq!(fine.parts("tp"), [AxisId(0), AxisId(1)]);
        assert!(mesh.split(AxisId(0), 3).is_none());
    }

    #[test]
    fn bad_meshes_say_why() {
        assert!(matches!(Mesh::parse("tp"), Err(MeshError::Syntax(_))));
        assert!(matches!(Mesh::parse("tp=0"), Err(MeshError::Empty(_))));
        assert!(matches!(Mesh::parse("a=2,a=2"), Err(MeshError::Duplicate(_))));
    }
}
