//! Joins the results of `gpu_check speed` and `tests/gpu/peer.py` in a table that compares tpc with PyTorch.

use serde_json::Value;
use std::path::Path;
use tpc_runtime::RuntimeError;

fn rows(path: &Path) -> Result<Vec<Value>, RuntimeError> {
    let failed = |e: String| RuntimeError::Launch(format!("{}: {e}; measure first", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    let lines = text.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).map_err(|e| failed(e.to_string()))).collect()
}

/// Formats milliseconds or a ratio; a dash if there was no measurement.
fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".into(), |v| format!("{v:.digits$}"))
}

/// The rows of both, joined by their names.
fn table(ours: &[Value], theirs: &[Value]) -> String {
    let mut out = String::from(
        "| row | tpc ms | torch eager ms | torch compile ms | tpc/eager | tpc/compile |\n|---|---|---|---|---|---|\n",
    );
    for row in ours {
        let of = |who: &str| {
            let same = |r: &&Value| r["row"] == row["row"] && r["who"] == who && r["shape"] == row["shape"];
            theirs.iter().find(same).and_then(|r| r["ms"].as_f64())
        };
        let mine = row["graph_ms"].as_f64();
        let (eager, compiled) = (of("torch eager"), of("torch compile"));
        let ratio = |other: Option<f64>| mine.zip(other).map(|(a, b)| a / b);
        let name = row["row"].as_str().unwrap_or_default();
        out.push_str(&format!(
            "| {name} | {} | {} | {} | {} | {} |\n",
            cell(mine, 2),
            cell(eager, 2),
            cell(compiled, 2),
            cell(ratio(eager), 2),
            cell(ratio(compiled), 2)
        ));
    }
    out
}

/// Prints the table.
pub fn join(ours: &Path, theirs: &Path) -> Result<(), RuntimeError> {
    print!("{}", table(&rows(ours)?, &rows(theirs)?));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_of_the_same_name_and_shape_are_joined() {
        let ours = [json!({"row": "a", "graph_ms": 2.0, "shape": 1}), json!({"row": "b", "graph_ms": 3.0, "shape": 1})];
        let theirs = [
            json!({"row": "a", "who": "torch eager", "ms": 4.0, "shape": 1}),
            json!({"row": "a", "who": "torch compile", "ms": null, "shape": 1}),
            json!({"row": "b", "who": "torch eager", "ms": 4.0, "shape": 2}),
        ];
        let table = table(&ours, &theirs);
        assert!(table.contains("| a | 2.00 | 4.00 | - | 0.50 | - |\n"), "{table}");
        assert!(table.contains("| b | 3.00 | - | - | - | - |\n"), "another shape is another row: {table}");
    }
}
