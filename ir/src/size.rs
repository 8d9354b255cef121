//! Checks that the sizes of a program fit into its integers.
//!
//! Later stages compute sizes of values, of buffers for several values and of arenas in `usize`. Each of these sizes is
//! at most a few times the number of bytes of all values of the program, so one check of that number keeps all of them
//! from overflowing.

use crate::graph::Graph;
use crate::op::Op;
use crate::quote::cut;
use crate::sharding::Type;

/// The greatest number of bytes that all values of a program may have together: a sixteenth of the range of `usize`.
pub const MOST: usize = 1 << 60;

/// The values of a program have more bytes than [`MOST`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{tensor} of type {ty} has more elements than can be addressed{}; use fewer sequences, shorter ones, or a smaller model",
    if *.alone { "" } else { " together with the other values of the program" }
)]
pub struct TooLarge {
    /// The largest value: the name of an input, or an operation and its module.
    pub tensor: String,
    /// Its type.
    pub ty: String,
    /// Whether it is too large on its own.
    pub alone: bool,
}

/// Checks that all values of the program together have at most [`MOST`] bytes.
///
/// # Errors
/// The largest value.
pub fn addressable(graph: &Graph) -> Result<(), TooLarge> {
    let mut total = Some(0usize);
    let mut largest: Option<(usize, _, &Type)> = None;
    for node in graph.nodes() {
        for ty in &graph.node(node).types {
            let bytes = bytes(ty);
            total = total.zip(bytes).and_then(|(a, b)| a.checked_add(b)).filter(|&n| n <= MOST);
            let size = bytes.unwrap_or(usize::MAX);
            if largest.as_ref().is_none_or(|(most, ..)| *most < size) {
                largest = Some((size, node, ty));
            }
        }
    }
    match (total, largest) {
        (None, Some((size, node, ty))) => {
            let n = graph.node(node);
            let tensor = match &n.op {
                Op::Input { id, .. } => format!("the tensor `{}`", cut(&id.to_string())),
                op if n.origin.module.is_root() => format!("the result of {}", op.name()),
                op => format!("the result of {} in `{}`", op.name(), cut(&n.origin.module.to_string())),
            };
            Err(TooLarge { tensor, ty: ty.display(&graph.mesh), alone: size > MOST })
        }
        _ => Ok(()),
    }
}

/// The bytes of a whole value. A dimension of size 0 counts as 1, because products of the other dimensions are
/// computed, too.
fn bytes(ty: &Type) -> Option<usize> {
    ty.shape.iter().try_fold(ty.dtype.bytes(), |n, &d| n.checked_mul(d.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Origin;
    use crate::input::InputId;
    use crate::{DType, Mesh};

    fn program(shapes: &[&[usize]]) -> Graph {
        let mut graph = Graph::new(Mesh::single());
        for (i, shape) in shapes.iter().enumerate() {
            let ty = Type::new(DType::F32, *shape);
            let op = Op::Input { id: InputId::Data(format!("x{i}").into()), layout: ty.shape.clone(), unit: None };
            graph.push(op, &[], ty, &Origin::default());
        }
        graph
    }

    #[test]
    fn overflows_of_sums_and_products_are_found() {
        let most = MOST / 4;
        assert_eq!(addressable(&program(&[&[most]])), Ok(()));
        assert_eq!(addressable(&program(&[&[1 << 40, 4096], &[8]])), Ok(()));
        let said = |shapes: &[&[usize]]| addressable(&program(shapes)).unwrap_err().to_string();
        let remedy = "; use fewer sequences, shorter ones, or a smaller model";
        for shape in [&[1usize << 62, 256][..], &[0, 1 << 63, 2], &[most + 1]] {
            let ty = Type::new(DType::F32, shape).display(&Mesh::single());
            let expected = format!("the tensor `x1` of type {ty} has more elements than can be addressed{remedy}");
            assert_eq!(said(&[&[2], shape]), expected);
        }
        assert_eq!(
            said(&[&[most], &[1]]),
            format!(
                "the tensor `x0` of type f32[{most}] has more elements than can be addressed together with the other values of the program{remedy}"
            )
        );
    }
}
