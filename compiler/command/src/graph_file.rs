//! Graphs in files: the text form, and the JSON form of a stored program with what its plan obliges it to.

use crate::{Failure, Outcome};
use std::path::Path;
use tpc_ir::Graph;
use tpc_passes::check::obligations::Obligations;
use tpc_passes::check::stored;

/// Reads a graph, and what its plan obliges it to if the file says so. The graph may be malformed.
///
/// # Errors
/// A file that cannot be read or has neither form.
pub(crate) fn read(file: &Path) -> Outcome<(Graph, Option<Obligations>)> {
    let source = std::fs::read_to_string(file).map_err(|e| Failure::at(file, e))?;
    if source.trim_start().starts_with('{') {
        return stored::parse(&source).map_err(|e| Failure::at(file, e));
    }
    let graph = tpc_ir::parse::parse(&source).map_err(|e| Failure::at(file, e))?;
    Ok((graph, None))
}
