//! Generic access to operations of all kinds.

use burn_ir::{IrVisitorMut, OperationIr, ScalarIr, TensorIr};

/// The name of an operation: its category and its variant, such as `NumericFloat.MulScalar`.
pub fn name(operation: &OperationIr) -> String {
    // The derived `Debug` of burn's enums is the only thing that names all of their variants.
    let text = debug_head(operation);
    let mut parts = text.split('(');
    let category = parts.next().unwrap_or_default();
    let rest = parts.next().unwrap_or_default();
    let variant = rest.rsplit(", ").next().unwrap_or(rest);
    let first = |text: &str| text.split([' ', '{']).next().unwrap_or_default().to_owned();
    match variant.is_empty() {
        true => first(category),
        // `Drop(TensorIr { .. })`, `Init(InitOperationIr { .. })`, `Custom(CustomOpIr { .. })` have no variant.
        false if variant.ends_with("Ir") || variant.contains('{') => first(category),
        false => format!("{}.{}", first(category), first(variant)),
    }
}

/// The beginning of the `Debug` text. Formatting an operation with all its tensors would be far slower.
fn debug_head(operation: &OperationIr) -> String {
    struct Head(String);
    impl std::fmt::Write for Head {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.push_str(text);
            if self.0.contains('{') { Err(std::fmt::Error) } else { Ok(()) }
        }
    }
    let mut head = Head(String::new());
    // The error serves only to end the formatting early.
    let _ = std::fmt::Write::write_fmt(&mut head, format_args!("{operation:?}"));
    head.0
}

/// The scalars of an operation, in burn's visiting order.
pub(super) fn scalars(operation: &OperationIr) -> Vec<ScalarIr> {
    struct Collect(Vec<ScalarIr>);
    impl IrVisitorMut for Collect {
        fn visit_scalar_mut(&mut self, scalar: &mut ScalarIr) {
            self.0.push(*scalar);
        }
    }
    let mut collect = Collect(Vec::new());
    operation.clone().visit_mut(&mut collect);
    collect.0
}

/// Calls `f` on every tensor of an operation.
pub(super) fn for_each_tensor(operation: &mut OperationIr, f: impl FnMut(&mut TensorIr)) {
    struct Each<F>(F);
    impl<F: FnMut(&mut TensorIr)> IrVisitorMut for Each<F> {
        fn visit_tensor_mut(&mut self, tensor: &mut TensorIr) {
            (self.0)(tensor);
        }
    }
    operation.visit_mut(&mut Each(f));
}

/// The smallest id of the results, by which recorded operations are ordered.
pub(super) fn first_result(operation: &OperationIr) -> u64 {
    operation.outputs().map(|tensor| tensor.id.value()).min().unwrap_or(0)
}
