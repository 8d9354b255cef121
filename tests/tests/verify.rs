//! `tpc dump-ir --store` and `tpc verify`: a stored program is checked, and what is wrong with one is said.

use serde_json::{Value as Json, json};
use std::fmt::Write as _;
use tpc_tests::command::{Scratch, tpc};

/// A stored training step under a plan that shards parameters, activations and the batch.
fn stored(scratch: &Scratch) -> (String, Json) {
    let file = scratch.path("program.json");
    let (code, _, err) =
        run(&format!("dump-ir --preset gpt --train --plan tp-sp --mesh tp=2 --batch 2 --seq 8 --json --store {file}"));
    assert_eq!(code, 0, "{err}");
    let json = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    (file, json)
}

fn run(arguments: &str) -> (u8, String, String) {
    tpc(&arguments.split(' ').collect::<Vec<_>>())
}

/// What `tpc verify` says of a file, without the path of the file.
fn verified(file: &str) -> (u8, String) {
    let (code, out, err) = tpc(&["verify", file]);
    (code, format!("{out}{err}").replace(file, "FILE"))
}

/// The first node with an operation for which something holds.
fn node<'a>(program: &'a mut Json, op: &str, holds: impl Fn(&Json) -> bool) -> &'a mut Json {
    let nodes = program["nodes"].as_array_mut().unwrap();
    nodes.iter_mut().find(|n| n["op"] == op && holds(n)).unwrap()
}

fn any(_: &Json) -> bool {
    true
}

#[test]
fn a_stored_program_is_right_and_is_the_printed_one() {
    let scratch = Scratch::new("verify");
    let (file, json) = stored(&scratch);
    assert!(json["obligations"].as_array().unwrap().iter().any(|o| o.get("value").is_some()));
    let (code, said) = verified(&file);
    assert_eq!(code, 0, "{said}");
    insta::assert_snapshot!("right", said);
    let printed = run("dump-ir --preset gpt --train --plan tp-sp --mesh tp=2 --batch 2 --seq 8 --full").1;
    assert_eq!(run(&format!("dump-ir {file} --full")).1, printed);
    // The text form says nothing of the plan.
    let text = scratch.write("program.tpc", printed);
    let (code, said) = verified(&text);
    assert_eq!(code, 0, "{said}");
    insta::assert_snapshot!("right_text", said);
}

#[test]
fn a_wrong_program_is_refused_with_its_faults() {
    let scratch = Scratch::new("verify-wrong");
    let (_, right) = stored(&scratch);
    let mut all = String::new();
    let mut say = |what: &str, change: &dyn Fn(&mut Json)| {
        let mut wrong = right.clone();
        change(&mut wrong);
        let file = scratch.write("wrong.json", wrong.to_string());
        let (code, said) = verified(&file);
        assert_eq!(code, 1, "{what}: {said}");
        writeln!(all, "{what}\n{said}").unwrap();
    };
    let is_partial = |n: &Json| n["types"][0].get("partial").is_some();
    say("a product is declared as reduced", &|program| {
        node(program, "einsum", is_partial)["types"][0].as_object_mut().unwrap().remove("partial");
    });
    say("a reduction takes the maximum", &|program| node(program, "reduce_scatter", any)["reduce"] = json!("max"));
    say("a gather joins another dimension", &|program| {
        let gather = node(program, "all_gather", any);
        gather["dim"] = json!(2);
    });
    let of = |program: &mut Json, id: Json, sharding: Json| {
        let rows = program["obligations"].as_array_mut().unwrap();
        let row = rows.iter_mut().find(|row| row.get("input") == Some(&id) || row.get("output") == Some(&id)).unwrap();
        row["sharding"] = sharding;
    };
    let parameter = "layers.0.mlp.up.weight";
    let id = right["obligations"].as_array().unwrap().iter().find_map(|row| {
        let id = row.get("input")?;
        id.get("Parameter").filter(|_| row["sharding"] == json!([[], ["tp"]])).map(|_| id.clone())
    });
    let id = id.unwrap_or_else(|| panic!("no parameter like {parameter} is cut by columns"));
    say("a parameter is not where the plan has it", &|program| of(program, id.clone(), json!([["tp"], []])));
    say("the plan names a parameter that is not there", &|program| {
        program["obligations"].as_array_mut().unwrap()[0]["input"] = json!({"Parameter": "nothing.weight"});
    });
    say("an obligation of nothing", &|program| program["obligations"] = json!([{"axes": [], "sharding": []}]));
    say("obligations that are no list", &|program| program["obligations"] = json!(3));
    say("no graph", &|program| _ = program.as_object_mut().unwrap().remove("nodes"));
    insta::assert_snapshot!("wrong", all);
}

#[test]
fn what_cannot_be_stored_or_read() {
    let scratch = Scratch::new("verify-refused");
    let file = scratch.path("program.json");
    let mut all = String::new();
    for arguments in
        [format!("dump-ir --preset mlp --stage logical --store {file}"), format!("verify {file}"), "verify".to_string()]
    {
        let (code, _, err) = run(&arguments);
        writeln!(all, "{code}: {}", err.replace(&file, "FILE").lines().next().unwrap_or_default()).unwrap();
    }
    assert!(scratch.names().is_empty());
    insta::assert_snapshot!("refused", all);
}
