//! Device meshes: ordered, named axes of ranks.

use crate::quote::cut;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The index of an axis of a [`Mesh`].
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

/// One axis of a mesh: an axis that the user named, or a part of one that the compiler split.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MeshAxis {
    /// How the axis is printed. The name of a part is that of the axis that was split, followed by the split: `tp:2` is
    /// the major part (2 groups), `tp:/2` the minor part inside each of those groups.
    pub name: String,
    /// The number of coordinates.
    pub size: usize,
    /// The name that the user gave the whole axis.
    of: String,
    /// The part of that axis that this is, from the first split to the last; empty for the whole axis.
    splits: Vec<Split>,
}

/// One part of an axis that was split into a number of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
enum Split {
    /// The part that counts the groups.
    Major(usize),
    /// The part that counts the ranks of each group.
    Minor(usize),
}

impl MeshAxis {
    fn of(of: String, splits: Vec<Split>, size: usize) -> Self {
        let mut name = of.clone();
        for split in &splits {
            name.push_str(&match split {
                Split::Major(groups) => format!(":{groups}"),
                Split::Minor(groups) => format!(":/{groups}"),
            });
        }
        MeshAxis { name, size, of, splits }
    }

    /// The axis that is printed as `label`; `None` if no axis is printed that way.
    fn labeled(label: &str, size: usize) -> Option<Self> {
        let (of, splits) = label.split_once(':').map_or((label, None), |(of, splits)| (of, Some(splits)));
        let split = |text: &str| match text.strip_prefix('/') {
            Some(groups) => groups.parse().ok().map(Split::Minor),
            None => text.parse().ok().map(Split::Major),
        };
        let splits = splits.map_or(Some(Vec::new()), |splits| splits.split(':').map(split).collect())?;
        let axis = MeshAxis::of(of.into(), splits, size);
        // A text that is not printed for any axis, for example `tp:02`, is not accepted.
        (is_name(of) && axis.name == label).then_some(axis)
    }
}

/// Whether a text may name an axis. A name consists of at most [`LONGEST_NAME`] ASCII letters, digits, `_` and `-`, and
/// begins with a letter or `_`. Other characters have a meaning next to a name: `:` and `/` mark parts of axes. A name
/// does not begin with a digit or `-`, so that it differs from a position and from an option of the command.
pub fn is_name(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.len() <= LONGEST_NAME
        && text.chars().all(legal)
}

/// The greatest number of characters in the name of an axis.
pub const LONGEST_NAME: usize = 64;

/// An ordered list of named axes. Rank numbers are row-major: the last axis is the fastest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mesh {
    axes: Vec<MeshAxis>,
}

/// The greatest number of ranks of a mesh.
pub const MAX_RANKS: usize = 1 << 16;

/// The greatest number of axes of a mesh. An [`AxisSet`] has one bit for each.
pub const MAX_AXES: usize = 32;

/// Why a mesh could not be created.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MeshError {
    /// The text is not a list of `name=size`.
    #[error("mesh `{}` is not a list of axes: write it as `tp=2` or `dp=2,tp=4`", cut(.0))]
    Syntax(String),
    /// A text that does not name an axis.
    #[error(
        "`{}` cannot name a mesh axis: a name has letters, digits, `_` and `-`, begins with a letter or `_`, and has at most {} characters",
        cut(.0),
        LONGEST_NAME
    )]
    Name(String),
    /// The text of a program has a part of an axis without the other parts of that axis.
    #[error(
        "mesh axis `{}` is a part of an axis, and the axes around it are not the other parts: `tp=4` in two groups is `tp:2=2, tp:/2=2`",
        cut(.0)
    )]
    Part(String),
    /// Two axes have one name.
    #[error("mesh axis `{}` is named twice: every axis needs a name of its own", cut(.0))]
    Duplicate(String),
    /// An axis has no ranks.
    #[error("mesh axis `{}` has size 0: an axis holds at least one rank", cut(.0))]
    Empty(String),
    /// More ranks than are supported. `usize::MAX` also stands for any larger number.
    #[error("mesh has {} ranks, more than {}, the most that a program is planned for", count(*.0), .1)]
    TooLarge(usize, usize),
    /// More axes than an [`AxisSet`] can hold.
    #[error("mesh has {0} axes, more than {1}")]
    TooMany(usize, usize),
}

/// A number of ranks as text. The number saturates.
fn count(ranks: usize) -> String {
    if ranks == usize::MAX { format!("at least {ranks}") } else { ranks.to_string() }
}

impl Mesh {
    /// The mesh of one rank, with no axes.
    pub fn single() -> Self {
        Mesh::default()
    }

    /// A mesh of named axes. [`is_name`] decides which names are allowed; only [`Mesh::split`] makes parts of axes.
    ///
    /// # Errors
    /// A text cannot name an axis, a name is repeated, an axis has size 0, or there are too many ranks or axes.
    pub fn new<N: Into<String>>(axes: impl IntoIterator<Item = (N, usize)>) -> Result<Self, MeshError> {
        let named = |(name, size): (N, usize)| {
            let name = name.into();
            if is_name(&name) { Ok(MeshAxis::of(name, Vec::new(), size)) } else { Err(MeshError::Name(name)) }
        };
        Mesh::of(axes.into_iter().map(named))
    }

    /// The mesh that the text of a program declares, whose axes may be parts that [`Mesh::split`] made.
    ///
    /// # Errors
    /// Those of [`Mesh::new`]; also, parts do not make up an axis.
    pub(crate) fn declared<N: AsRef<str>>(axes: impl IntoIterator<Item = (N, usize)>) -> Result<Self, MeshError> {
        let labeled = |(name, size): (N, usize)| {
            MeshAxis::labeled(name.as_ref(), size).ok_or_else(|| MeshError::Name(name.as_ref().into()))
        };
        let mesh = Mesh::of(axes.into_iter().map(labeled))?;
        mesh.check_parts()?;
        Ok(mesh)
    }

    fn of(axes: impl Iterator<Item = Result<MeshAxis, MeshError>>) -> Result<Self, MeshError> {
        let mut axes = axes.fuse();
        let mut mesh = Mesh::default();
        for axis in axes.by_ref() {
            let axis = axis?;
            if mesh.axes.len() == MAX_AXES {
                return Err(MeshError::TooMany(MAX_AXES + 1 + axes.count(), MAX_AXES));
            }
            if axis.size == 0 {
                return Err(MeshError::Empty(axis.name));
            }
            if mesh.axis(&axis.name).is_some() {
                return Err(MeshError::Duplicate(axis.name));
            }
            mesh.axes.push(axis);
        }
        let ranks = mesh.axes.iter().fold(1usize, |n, a| n.saturating_mul(a.size));
        if ranks > MAX_RANKS {
            return Err(MeshError::TooLarge(ranks, MAX_RANKS));
        }
        Ok(mesh)
    }

    /// Joins the parts to the axes that were split. The result must consist of whole axes with different names.
    fn check_parts(&self) -> Result<(), MeshError> {
        let mut whole: Vec<(MeshAxis, &str)> = Vec::new();
        for axis in &self.axes {
            let part = |label: &str| MeshError::Part(label.to_string());
            let mut now = axis.clone();
            while let Some(Split::Minor(groups)) = now.splits.last().copied() {
                let (mut major, _) = whole.pop().ok_or_else(|| part(&axis.name))?;
                let outer = now.splits.len() - 1;
                let fits = major.splits.pop() == Some(Split::Major(groups))
                    && (major.size, &major.of, &major.splits[..]) == (groups, &now.of, &now.splits[..outer]);
                if !fits {
                    return Err(part(&axis.name));
                }
                now = MeshAxis::of(major.of, major.splits, groups * now.size);
            }
            whole.push((now, &axis.name));
        }
        for (i, (axis, label)) in whole.iter().enumerate() {
            if !axis.splits.is_empty() {
                return Err(MeshError::Part(label.to_string()));
            }
            if whole[..i].iter().any(|(other, _)| other.of == axis.of) {
                return Err(MeshError::Duplicate(axis.of.clone()));
            }
        }
        Ok(())
    }

    /// Reads `tp=2` or `dp=2,tp=4`.
    ///
    /// # Errors
    /// The text has another form, or [`Mesh::new`] fails.
    pub fn parse(text: &str) -> Result<Self, MeshError> {
        let mut axes = Vec::new();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let parsed =
                part.split_once('=').and_then(|(name, size)| Some((name.trim(), size.trim().parse::<usize>().ok()?)));
            let legible = parsed.filter(|(name, _)| !name.is_empty() && !name.contains(char::is_whitespace));
            axes.push(legible.ok_or_else(|| MeshError::Syntax(text.to_string()))?);
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

    /// The axis with a name, if there is one.
    pub fn axis(&self, name: &str) -> Option<AxisId> {
        self.axes.iter().position(|a| a.name == name).map(|i| AxisId(i as u8))
    }

    /// The axes that are `name` itself or parts of it, major to minor.
    pub fn parts(&self, name: &str) -> Vec<AxisId> {
        let Some(whole) = MeshAxis::labeled(name, 1) else { return Vec::new() };
        let within = |a: &MeshAxis| a.of == whole.of && a.splits.starts_with(&whole.splits);
        self.axis_ids().filter(|a| within(&self.axes[a.0 as usize])).collect()
    }

    /// The name of an axis; `?` if the mesh lacks it.
    pub fn name(&self, axis: AxisId) -> &str {
        self.axes.get(axis.0 as usize).map_or("?", |a| &a.name)
    }

    /// The name that the user gave to the axis or to the axis of which it is a part; `?` if the mesh lacks it.
    pub fn user_name(&self, axis: AxisId) -> &str {
        self.axes.get(axis.0 as usize).map_or("?", |a| &a.of)
    }

    /// The number of coordinates of an axis.
    pub fn size(&self, axis: AxisId) -> usize {
        self.axes[axis.0 as usize].size
    }

    /// The number of ranks in a group whose members differ only in `axes`.
    pub fn group_size(&self, axes: AxisSet) -> usize {
        axes.iter().map(|a| self.size(a)).product()
    }

    /// The number of ranks of the whole mesh.
    pub fn ranks(&self) -> usize {
        self.axes.iter().map(|a| a.size).product()
    }

    /// The coordinates of a rank, one per axis.
    pub fn coords(&self, rank: usize) -> Vec<usize> {
        let mut rest = rank;
        let mut coords = vec![0; self.axes.len()];
        for (c, a) in coords.iter_mut().zip(&self.axes).rev() {
            *c = rest % a.size;
            rest /= a.size;
        }
        coords
    }

    /// The rank at some coordinates.
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

    /// The axes along which the coordinates of a group's ranks differ.
    pub fn spanned(&self, group: &[usize]) -> AxisSet {
        let coordinates: Vec<Vec<usize>> = group.iter().map(|&rank| self.coords(rank)).collect();
        let differs = |at: usize| coordinates.iter().any(|c| c[at] != coordinates[0][at]);
        self.axis_ids().filter(|axis| differs(axis.0 as usize)).collect()
    }

    /// This mesh with `axis` split into a major part of `major` coordinates and a minor part. Ranks keep their numbers.
    /// `None` if `major` does not divide the size of the axis.
    pub fn split(&self, axis: AxisId, major: usize) -> Option<Mesh> {
        let MeshAxis { of, splits, size, .. } = &self.axes[axis.0 as usize];
        if major == 0 || size % major != 0 {
            return None;
        }
        let part = |split, size| MeshAxis::of(of.clone(), [&splits[..], &[split]].concat(), size);
        let parts = [part(Split::Major(major), major), part(Split::Minor(major), size / major)];
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

    /// If a name looked like a part of another axis, [`Mesh::parts`] of that axis would include it.
    #[test]
    fn names_cannot_be_taken_for_anything_else() {
        for name in ["tp", "dp_2", "_", "node-local", "TP", &"x".repeat(LONGEST_NAME)] {
            assert!(Mesh::new([(name, 2)]).is_ok(), "{name}");
        }
        let long = "x".repeat(LONGEST_NAME + 1);
        for name in
            ["", "tp:x", "tp:2", "tp:/2", "a.b", "a/b", "a b", "2", "2d", "-a", "a,b", "a=b", "größe", "a\n", &long]
        {
            assert_eq!(Mesh::new([("tp", 2), (name, 2)]), Err(MeshError::Name(name.into())), "{name:?}");
        }
        assert_eq!(Mesh::parse("tp=2,tp:x=2"), Err(MeshError::Name("tp:x".into())));
        // An axis whose name begins with the name of another axis is not a part of it.
        let mesh = Mesh::parse("tp=2,tp-x=2,tpx=2").unwrap();
        assert_eq!(mesh.parts("tp"), [AxisId(0)]);
        assert_eq!(mesh.parts("tp:"), []);
    }

    #[test]
    fn parts_of_parts_are_parts() {
        let fine = Mesh::parse("dp=2,tp=8").unwrap().split(AxisId(1), 2).and_then(|m| m.split(AxisId(2), 2)).unwrap();
        assert_eq!(fine.to_string(), "mesh <dp=2, tp:2=2, tp:/2:2=2, tp:/2:/2=2>");
        assert_eq!(fine.parts("tp"), [AxisId(1), AxisId(2), AxisId(3)]);
        assert_eq!(fine.parts("tp:/2"), [AxisId(2), AxisId(3)]);
        assert_eq!(fine.parts("tp:2"), [AxisId(1)]);
    }

    #[test]
    fn declared_parts_must_make_up_an_axis() {
        let declared = |axes: &[(&str, usize)]| Mesh::declared(axes.iter().copied());
        for axes in [
            &[("dp", 2), ("tp:2", 2), ("tp:/2", 3)][..],
            &[("tp:2", 2), ("tp:/2:2", 2), ("tp:/2:/2", 2), ("dp", 3)],
            &[("tp:4:2", 2), ("tp:4:/2", 2), ("tp:/4", 1), ("dp:1", 1), ("dp:/1", 5)],
        ] {
            let mesh = declared(axes).unwrap();
            let whole = Mesh::new(axes.iter().filter(|(name, _)| is_name(name)).copied()).unwrap();
            assert!(mesh.axes().len() > whole.axes().len());
        }
        let part = |axes: &[(&str, usize)], label: &str| assert_eq!(declared(axes), Err(MeshError::Part(label.into())));
        part(&[("tp:2", 2)], "tp:2");
        part(&[("tp:/2", 2)], "tp:/2");
        part(&[("tp:/2", 2), ("tp:2", 2)], "tp:/2");
        part(&[("tp:2", 3), ("tp:/2", 2)], "tp:/2");
        part(&[("tp:2", 2), ("tp:/3", 2)], "tp:/3");
        part(&[("tp:2", 2), ("dp:/2", 2)], "dp:/2");
        part(&[("tp:2", 2), ("dp", 2), ("tp:/2", 2)], "tp:/2");
        part(&[("tp:3:2", 2), ("tp:3:/2", 2), ("tp:/3", 2)], "tp:/3");
        assert_eq!(declared(&[("tp:2", 2), ("tp:/2", 2), ("tp", 2)]), Err(MeshError::Duplicate("tp".into())));
        for label in ["tp:x", "tp:", "tp:02", "tp:/", "tp:2:", ":2", "tp:-1", "tp:+2"] {
            assert_eq!(declared(&[(label, 2)]), Err(MeshError::Name(label.into())), "{label}");
        }
    }

    #[test]
    fn meshes_of_any_size_are_refused_without_being_made() {
        let huge = (0..1_000_000).map(|i| (format!("a{i}"), 1 << 20));
        assert_eq!(Mesh::new(huge), Err(MeshError::TooMany(1_000_000, MAX_AXES)));
        let large = Mesh::parse("a=1152921504606846976,b=1152921504606846976").unwrap_err();
        assert!(
            large.to_string().starts_with("mesh has at least 18446744073709551615 ranks, more than 65536"),
            "{large}"
        );
    }

    #[test]
    fn bad_meshes_say_why() {
        assert!(matches!(Mesh::parse("tp"), Err(MeshError::Syntax(_))));
        assert!(matches!(Mesh::parse("tp=0"), Err(MeshError::Empty(_))));
        assert!(matches!(Mesh::parse("a=2,a=2"), Err(MeshError::Duplicate(_))));
    }
}
