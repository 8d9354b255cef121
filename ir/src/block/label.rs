//! The things that the numbers of a program count.

use crate::path::{ModulePath, Segment};
use crate::reason::Reason;

/// The things that a number in a path, an origin or an input counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Label<'a> {
    /// The elements of a list, named by the segments between the previous index of the path and this one.
    Elements(&'a [Segment]),
    /// The micro-batches.
    MicroBatches,
    /// The random streams of the program.
    Streams,
    /// The units of parameters.
    Units,
}

impl Label<'_> {
    /// The name of a block whose occurrences are told apart by this label.
    pub(super) fn title(self) -> String {
        match self {
            Label::Elements(list) => {
                let one = |segment: &Segment| match segment {
                    Segment::Name(_) => segment.to_string(),
                    Segment::Index(_) => String::new(),
                };
                list.iter().map(one).collect::<Vec<_>>().join(".")
            }
            Label::MicroBatches => "micro".into(),
            Label::Streams => "stream".into(),
            Label::Units => "unit".into(),
        }
    }

    /// The labels of the indices of a path, in order.
    pub(super) fn of(path: &ModulePath) -> impl Iterator<Item = Label<'_>> {
        let mut from = 0;
        path.segments().iter().enumerate().filter_map(move |(at, segment)| match segment {
            Segment::Index(_) => Some(Label::Elements(&path.segments()[std::mem::replace(&mut from, at)..at])),
            Segment::Name(_) => None,
        })
    }
}

/// The path with zeros for its indices, which are appended to `numbers`.
pub(super) fn without_indices(path: &ModulePath, numbers: &mut Vec<i64>) -> ModulePath {
    numbers.extend(path.indices().map(|i| i64::try_from(i).unwrap_or(i64::MAX)));
    path.with_indices(&mut std::iter::repeat(0))
}

/// The path with the next numbers as its indices, the inverse of [`without_indices`]. `None` if there are too few, or
/// one is negative.
pub(super) fn with_indices(path: &ModulePath, numbers: &mut impl Iterator<Item = i64>) -> Option<ModulePath> {
    let count = path.indices().count();
    let indices = numbers.take(count).map(usize::try_from).collect::<Result<Vec<_>, _>>().ok()?;
    (indices.len() == count).then(|| path.with_indices(&mut indices.into_iter()))
}

/// The reason with zeros for the indices in its paths, which are appended to `numbers`.
pub(super) fn reason_without_indices(reason: &Reason, numbers: &mut Vec<i64>) -> Reason {
    reason.map_paths(|path| without_indices(path, numbers))
}
