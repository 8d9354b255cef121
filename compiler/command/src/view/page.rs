//! The page: a template with the data of the programs as JSON. The script of the page draws everything from it.

use serde::Serialize;
use tpc_compiler::view;

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
/// The parts of the script. Each may use what the ones before it define.
const SCRIPT: [&str; 13] = [
    include_str!("script/elements.js"),
    include_str!("script/data.js"),
    include_str!("script/tensors.js"),
    include_str!("script/totals.js"),
    include_str!("script/tip.js"),
    include_str!("script/step.js"),
    include_str!("script/timeline.js"),
    include_str!("script/modules.js"),
    include_str!("script/operations.js"),
    include_str!("script/changes.js"),
    include_str!("script/search.js"),
    include_str!("script/page.js"),
    include_str!("script/check.js"),
];

/// The data of the page.
#[derive(Debug, Serialize)]
pub(super) struct Page {
    /// The name of the model.
    pub(super) model: String,
    /// What is shown, in words.
    pub(super) described: String,
    /// The number of tokens in a step.
    pub(super) tokens: usize,
    /// Memory of a rank in bytes.
    pub(super) memory: f64,
    /// Floating-point operations per second of one device.
    pub(super) rate: f64,
    /// The plans, one or two.
    pub(super) plans: Vec<Compiled>,
}

/// A program under a plan.
#[derive(Debug, Serialize)]
pub(super) struct Compiled {
    /// The options that compile it.
    pub(super) flags: String,
    /// What the compiler made of it.
    pub(super) view: view::View,
}

impl Page {
    /// The data as JSON.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// The whole page. No text of a user is part of its markup: it is in the data, whose JSON has no `<`, so that nothing
    /// in it can end the element.
    pub(super) fn html(&self) -> serde_json::Result<String> {
        let data = self.json()?.replace('<', "\\u003c");
        let script = SCRIPT.join("\n");
        let parts = [("{{style}}", STYLE), ("{{data}}", &data), ("{{script}}", &script)];
        // What is put in is not searched for the places of the others.
        let (mut page, mut rest) = (String::with_capacity(data.len() + (1 << 17)), TEMPLATE);
        for (place, part) in parts {
            let (before, after) = rest.split_once(place).unwrap_or((rest, ""));
            page.extend([before, part]);
            rest = after;
        }
        Ok(page + rest)
    }
}
