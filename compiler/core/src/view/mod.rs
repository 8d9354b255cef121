//! What the compiler made of a program under a plan, as data for a page: the modules with their operations, the simulated
//! step, the arena over time, the search.
//!
//! | question | file |
//! |---|---|
//! | which modules there are, where equal elements of a list are one | `modules` |
//! | the operations of a module, and how its values are placed | `operations` |
//! | what kernels and collectives cost, and when they run | `timeline` |
//! | what the arena holds over time | `arena` |
//! | what the search bought | `search` |
//!
//! The data is folded: 80 equal layers are one module, one list of operations and one stretch of the step, each with its
//! count. A view refers to modules, types, reasons and actions by their positions in its lists.
//!
//! Before: `layers.0.mlp`, …, `layers.79.mlp` with twelve operations each. After: the module `layers.{0..79}.mlp` of count
//! 80 with one listing of twelve operations.

mod arena;
mod modules;
mod operations;
mod search;
mod timeline;

pub(crate) use arena::in_steps;
pub use arena::{Arena, Held, Holding, Moment};
pub use modules::Module;
pub use operations::{Dim, Listing, Operand, Operation, PartialSum, Placed, Section, Sent};
pub use search::{AxesPlanned, Planned, Ruled, Searched};
pub(crate) use timeline::clock;
pub use timeline::{Action, Bins, Busy, Drawn, Execution, Stretch};

use crate::summary::Summary;
use modules::Modules;
use operations::Listings;
use serde::Serialize;
use tpc_ir::program::RankProgram;
use tpc_ir::{Graph, Mesh};
use tpc_passes::egraph::SearchReport;
use tpc_passes::simulate::simulate;
use tpc_passes::targets::Target;

/// An axis of the mesh.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Axis {
    /// Its name.
    pub name: String,
    /// Its number of ranks.
    pub size: usize,
}

/// A compiled program under one plan, as seen by the first rank.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    /// The mesh.
    pub mesh: Vec<Axis>,
    /// Duration of a step in seconds.
    pub seconds: f64,
    /// Floating-point operations of the model's products in a step, independent of the mesh.
    pub flops: f64,
    /// The modules. The first is the whole model, and a module comes after the one that it is in.
    pub modules: Vec<Module>,
    /// The types of values.
    pub types: Vec<Placed>,
    /// The reasons for which operations exist.
    pub reasons: Vec<String>,
    /// The operations of each module.
    pub listings: Vec<Listing>,
    /// What runs, and when.
    pub execution: Execution,
    /// What the arena holds.
    pub arena: Arena,
    /// The search.
    pub search: Searched,
}

/// What a view is made of: the steady program in its stages, each with modules for all operations, and the program of the
/// first step if there is one.
pub(crate) struct Sources<'a> {
    pub(crate) placed: &'a Graph,
    pub(crate) report: &'a SearchReport,
    pub(crate) program: &'a RankProgram,
    pub(crate) first: Option<&'a RankProgram>,
    pub(crate) target: &'a Target,
    pub(crate) flops: f64,
}

impl View {
    pub(crate) fn of(sources: &Sources<'_>) -> Self {
        let Sources { placed, report, program, first, target, flops } = *sources;
        let timeline = simulate(program, target);
        let summary = Summary::of(program, first, target);
        let modules = Modules::of(placed, program, &summary);
        let Listings { types, reasons, listings } = operations::listings(placed, &modules);
        View {
            mesh: axes(&placed.mesh),
            seconds: timeline.seconds,
            flops,
            types,
            reasons,
            listings,
            execution: timeline::execution(program, &timeline, target.device.kind, &modules),
            arena: arena::arena(program, &timeline, target.device.kind, &summary, &modules),
            search: search::searched(report, &placed.mesh),
            modules: modules.list,
        }
    }
}

fn axes(mesh: &Mesh) -> Vec<Axis> {
    mesh.axes().iter().map(|axis| Axis { name: axis.name.clone(), size: axis.size }).collect()
}
