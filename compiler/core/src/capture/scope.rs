//! Marked regions: `tpc::scope(path, args, f)`.

use std::cell::RefCell;

use burn_capture::CaptureClient;
use burn_router::RouterClient;
use tpc_ir::ModulePath;

use super::tensors::Tensors;

/// A region in ids of the recording.
#[derive(Clone, Debug)]
pub(super) struct RawScope {
    pub(super) path: ModulePath,
    pub(super) arguments: Vec<u64>,
    pub(super) results: Vec<u64>,
    /// The range of ids that the region may have produced.
    pub(super) ids: (u64, u64),
}

struct Active {
    client: CaptureClient,
    open: Vec<ModulePath>,
    closed: Vec<(usize, RawScope)>,
    opened: usize,
}

thread_local! {
    static ACTIVE: RefCell<Option<Active>> = const { RefCell::new(None) };
}

/// Marks a region of a model: runs `f` on `arguments` and returns its results.
///
/// During a capture, the path of the region, its arguments and results in order, and the operations in between are
/// recorded as a [`ScopeRecord`](super::ScopeRecord); nothing is inserted into the graph. Outside a capture it only
/// calls `f`, so that the same model also runs eagerly. Paths are relative to the enclosing scope. Dots separate the
/// segments of a path, a number is the index of an element in a list, and a backslash makes the character after it part
/// of a name ([`ModulePath`]).
///
/// ```ignore
/// let x = tpc::scope("attention", x, |x| self.attention.forward(x));
/// ```
pub fn scope<A: Tensors, R: Tensors>(path: &str, arguments: A, f: impl FnOnce(A) -> R) -> R {
    let Some(open) = enter(path, &arguments) else {
        return f(arguments);
    };
    let results = f(arguments);
    leave(open, &results);
    results
}

/// The path of the innermost open region.
pub(super) fn current() -> Option<String> {
    // A panic hook can call this at any moment, even while the registry is borrowed.
    let join = |active: &Active| (!active.open.is_empty()).then(|| path(&active.open).to_string());
    ACTIVE.with(|active| active.try_borrow().ok()?.as_ref().and_then(join))
}

/// Runs `f` with a fresh registry and returns its result and the regions, in the order in which they were entered.
pub(super) fn collect<R>(client: CaptureClient, f: impl FnOnce() -> R) -> (R, Vec<RawScope>) {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            ACTIVE.set(None);
        }
    }
    ACTIVE.set(Some(Active { client, open: Vec::new(), closed: Vec::new(), opened: 0 }));
    let reset = Reset;
    let result = f();
    let mut closed = ACTIVE.take().map(|active| active.closed).unwrap_or_default();
    drop(reset);
    closed.sort_by_key(|(order, _)| *order);
    (result, closed.into_iter().map(|(_, scope)| scope).collect())
}

/// The full path of the innermost open region.
fn path(open: &[ModulePath]) -> ModulePath {
    open.iter().fold(ModulePath::default(), |outer, inner| outer.join(inner))
}

struct Open {
    order: usize,
    arguments: Vec<u64>,
    begin: u64,
}

fn enter(path: &str, arguments: &impl Tensors) -> Option<Open> {
    let arguments = || ids(arguments);
    ACTIVE.with_borrow_mut(|active| {
        let active = active.as_mut()?;
        active.open.push(path.into());
        active.opened += 1;
        Some(Open { order: active.opened, arguments: arguments(), begin: active.client.create_empty_handle().value() })
    })
}

fn leave(open: Open, results: &impl Tensors) {
    let results = ids(results);
    ACTIVE.with_borrow_mut(|active| {
        let Some(active) = active.as_mut() else {
            return;
        };
        let end = active.client.create_empty_handle().value();
        let path = path(&active.open);
        active.open.pop();
        let scope = RawScope { path, arguments: open.arguments, results, ids: (open.begin, end) };
        active.closed.push((open.order, scope));
    });
}

fn ids(tensors: &impl Tensors) -> Vec<u64> {
    let mut leaves = Vec::new();
    tensors.leaves(None, &mut leaves);
    leaves.into_iter().filter_map(|leaf| leaf.id).map(|id| id.value()).collect()
}
