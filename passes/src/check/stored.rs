//! A placed program in a file, with what its plan obliges it to.
//!
//! It is the JSON form of the graph ([`tpc_ir::json`]) with a list `obligations`. An obligation names an input, an output
//! or a value, and says which of `axes` shard each dimension:
//!
//! ```json
//! {"mesh": …, "nodes": …, "regions": …, "outputs": …,
//!  "obligations": [
//!    {"input": {"Parameter": "up.weight"}, "axes": ["tp"], "sharding": [[], ["tp"]], "why": "plan \"up\""},
//!    {"output": "Loss", "axes": ["tp"], "sharding": [], "why": ""},
//!    {"value": [18, 0], "axes": ["tp"], "sharding": [[], ["tp"]], "why": "plan \"up\": result 0 is Shard(-1)"}]}
//! ```

use super::obligations::{Obligation, Obligations, Subject};
use crate::styles::layout::OnAxes;
use petgraph::graph::NodeIndex;
use serde_json::{Value as Json, json};
use tpc_ir::json::JsonError;
use tpc_ir::reason::Reason;
use tpc_ir::{AxisId, Graph, Mesh, Value, unique};

/// Why a file is not a stored program.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// The file is not JSON, or has a key twice.
    #[error("not JSON: {0}")]
    Syntax(#[from] unique::UniqueError),
    /// The graph is not one.
    #[error(transparent)]
    Graph(#[from] JsonError),
    /// An obligation is not one.
    #[error("at obligations[{at}]: expected {expected}")]
    Obligation {
        /// Its position.
        at: usize,
        /// What it should have.
        expected: &'static str,
    },
    /// The obligations are not a list.
    #[error("at obligations: expected a list")]
    List,
}

/// A placed program and its obligations, if they are known, as JSON.
pub fn to_json(graph: &Graph, obligations: Option<&Obligations>) -> Json {
    let names = |axes: &[AxisId]| axes.iter().map(|&a| json!(graph.mesh.name(a))).collect::<Json>();
    let row = |Obligation { subject, at, why }: &Obligation| {
        let mut row = json!({
            "axes": names(&at.axes),
            "sharding": at.dims.iter().map(|axes| names(axes)).collect::<Json>(),
            "why": why.to_string(),
        });
        match subject {
            Subject::Input(id) => row["input"] = json!(id),
            Subject::Output(kind) => row["output"] = json!(kind),
            Subject::Value(v) => row["value"] = json!([v.node.index(), v.result]),
        }
        row
    };
    let mut stored = tpc_ir::json::to_json(graph);
    if let Some(obligations) = obligations {
        stored["obligations"] = obligations.list.iter().map(row).collect();
    }
    stored
}

/// Reads what [`to_json`] writes. The obligations may be missing.
///
/// # Errors
/// The first part that is not one of a stored program.
pub fn parse(text: &str) -> Result<(Graph, Option<Obligations>), StoredError> {
    let json = unique::parse(text)?;
    let graph = tpc_ir::json::from_json(&json)?;
    let Some(rows) = json.get("obligations") else { return Ok((graph, None)) };
    let rows = rows.as_array().ok_or(StoredError::List)?;
    let read = |(at, row): (usize, &Json)| {
        obligation(row, &graph.mesh).map_err(|expected| StoredError::Obligation { at, expected })
    };
    let list = rows.iter().enumerate().map(read).collect::<Result<_, _>>()?;
    let mesh = graph.mesh.clone();
    Ok((graph, Some(Obligations { mesh, list, given_up: 0 })))
}

/// Reads an obligation. The error is what it should have.
fn obligation(row: &Json, mesh: &Mesh) -> Result<Obligation, &'static str> {
    let axes = |list: &Json| -> Result<Vec<AxisId>, &'static str> {
        let axis = |name: &Json| name.as_str().and_then(|name| mesh.axis(name)).ok_or("names of axes of the mesh");
        list.as_array().ok_or("a list of axes")?.iter().map(axis).collect()
    };
    let subject = match (row.get("input"), row.get("output"), row.get("value")) {
        (Some(id), None, None) => Subject::Input(serde_json::from_value(id.clone()).map_err(|_| "the id of an input")?),
        (None, Some(kind), None) => {
            Subject::Output(serde_json::from_value(kind.clone()).map_err(|_| "the kind of an output")?)
        }
        (None, None, Some(value)) => Subject::Value(read_value(value).ok_or("a value [node, result]")?),
        _ => return Err("one of \"input\", \"output\" and \"value\""),
    };
    let dims = row.get("sharding").and_then(Json::as_array).ok_or("the list \"sharding\"")?;
    Ok(Obligation {
        subject,
        at: OnAxes {
            axes: axes(row.get("axes").ok_or("the list \"axes\"")?)?,
            dims: dims.iter().map(axes).collect::<Result<_, _>>()?,
        },
        why: Reason::read(row.get("why").and_then(Json::as_str).ok_or("the text \"why\"")?),
    })
}

fn read_value(json: &Json) -> Option<Value> {
    match json.as_array()?.as_slice() {
        [node, result] => {
            let number = |json: &Json| json.as_u64().and_then(|n| u32::try_from(n).ok());
            Some(Value { node: NodeIndex::new(number(node)? as usize), result: number(result)? })
        }
        _ => None,
    }
}
