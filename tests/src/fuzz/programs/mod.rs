//! Random programs: a model, a batch, a plan, a mesh and options are drawn, and many ranks must compute what one rank
//! computes.
//!
//! A *subject* is what is computed: a model with its batch, its optimizer, and the options that change the result. Its
//! reference is computed once, by the interpreter in double precision and on one rank. A *case* is a way to compute it: a
//! plan, a mesh, and options that must not change the result. Numbers are compared within what rounding explains; a case
//! may also be refused, with an error that is right for its plan. Panics, internal errors, ranks that disagree and missed
//! deadlines are faults. The seed and the number of a case reproduce it, and a case with a fault is simplified until
//! nothing can be left out.
//!
//! | question | file |
//! |---|---|
//! | where choices come from | [`dice`] |
//! | which models, batches, plans, meshes and options are drawn | [`model`], [`batch`], [`modules`], [`plan`], [`options`] |
//! | what a case is, and which cases are simpler | [`case`](mod@case) |
//! | what a subject computes | [`mod@reference`] |
//! | how a case is compiled and executed | [`run`](mod@run) |
//! | the same through files and flags | [`command`] |
//! | what equal means | [`compare`] |
//! | possible verdicts, and which errors are expected | [`verdict`] |
//! | panics and hangs | [`guard`] |
//! | one case, many cases, a simpler case | [`examine`](mod@examine), [`search`](mod@search), [`shrink`](mod@shrink) |
//! | cases that once had a fault | [`corpus`] |

pub mod batch;
pub mod case;
pub mod command;
pub mod compare;
pub mod corpus;
pub mod dice;
pub mod examine;
pub mod guard;
pub mod model;
pub mod modules;
pub mod options;
pub mod plan;
pub mod reference;
pub mod run;
pub mod search;
pub mod shrink;
pub mod verdict;
