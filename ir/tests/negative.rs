//! The texts of all errors of the parser and the verifier.

use tpc_ir::graph::{Boundary, Region, Value};
use tpc_ir::verify::{Malformed, VerifyError, verify};
use tpc_ir::{AxisId, AxisSet, DType, Graph, MapFn, Mesh, Op, Origin, Partial, ReduceOp, Sharding, Subscripts, Type};
use tpc_ir::{json, parse, text};

/// The error of parsing `body` after a mesh of dp=2, tp=4 and an input `%0 : f32[8@dp, 6]`.
fn parse_error(body: &str) -> String {
    let head = "mesh <dp=2, tp=4>\n%0 = input data \"x\" : f32[8@dp, 6]\n";
    parse::parse(&format!("{head}{body}")).map(|g| text::print(&g)).unwrap_err().to_string()
}

#[test]
fn parse_errors_have_a_location_and_a_reason() {
    for (body, error) in [
        ("hello", "line 3, column 1: expected `%number = …`, `region` or `output`, found `hello`"),
        ("%x = iota : i64[2]", "line 3, column 2: expected a number, found `x`"),
        ("%0 = iota : i64[2]", "line 3, column 2: expected a number that is not defined yet, found `0`"),
        ("%1 iota : i64[2]", "line 3, column 4: expected `=`, found `iota`"),
        ("%1 = frobnicate %0 : f32[8]", "line 3, column 6: expected an operation, found `frobnicate`"),
        ("%1 = : f32[8]", "line 3, column 6: expected an operation, found `:`"),
        ("%1 = exp %7 : f32[8]", "line 3, column 10: expected a value defined above, found `%7`"),
        ("%1 = exp %0.1 : f32[8]", "line 3, column 10: expected one of the 1 results of that value, found `%0.1`"),
        ("%1 = exp 0.5 : f32[8]", "line 3, column 10: expected a value like %3 or f32:0.5, found `0.5`"),
        ("%1 = exp f33:0.5 : f32[8]", "line 3, column 10: expected a value like %3 or f32:0.5, found `f33:0.5`"),
        ("%1 = exp %0 %0 : f32[8]", "line 3, column 13: expected `,` or ` : type`, found `%0`"),
        ("%1 = exp %0", "line 3, column 12: expected `,` or ` : type`, found the end of the line"),
        ("%1 = exp %0 : f33[8]", "line 3, column 15: expected an element type, found `f33`"),
        ("%1 = exp %0 : f32 8", "line 3, column 19: expected `[`, found `8`"),
        ("%1 = exp %0 : f32[8", "line 3, column 20: expected `,` or `]`, found the end of the line"),
        ("%1 = exp %0 : f32[-8]", "line 3, column 19: expected a number, found `-8`"),
        ("%1 = exp %0 : f32[8@xp]", "line 3, column 21: expected an axis of the mesh (dp, tp), found `xp`"),
        ("%1 = exp %0 : f32[8@(dp tp)]", "line 3, column 25: expected `,` or `)`, found `tp`"),
        ("%1 = exp %0 : f32[8] +mean@tp", "line 3, column 23: expected sum, max, min or prod, found `mean`"),
        ("%1 = exp %0 : f32[8] +sum tp", "line 3, column 27: expected `@`, found `tp`"),
        ("%1 = exp %0 : f32[8, 6] nonsense", "line 3, column 25: expected the end of the line, found `nonsense`"),
        (
            "%1 = exp %0 : f32[8, 6] ; sideways",
            "line 3, column 27: expected a phase, `micro number`, `in module` or `why: reason`, found `sideways`",
        ),
        ("%1 = exp %0 : f32[8, 6] ; in", "line 3, column 29: expected a module path, found the end of the line"),
        (
            "%1 = exp %0 : f32[8, 6] ; why: \"a\\q\"",
            "line 3, column 34: expected an escape like \\n, \\\" or \\u{e9}, found `\\`",
        ),
        (
            "%1 = mul %0, %0 : f32[8]",
            "line 3, column 6: expected subscripts (`mul \"…\"`) for operands whose rank is neither 0 nor the result's, found `mul`",
        ),
        ("%1 = einsum %0, %0 : f32[8]", "line 3, column 13: expected subscripts like \"ab,bc->ac\", found `%0`"),
        (
            "%1 = einsum \"ab,bc\" %0, %0 : f32[8]",
            "line 3, column 13: expected subscripts like \"ab,bc->ac\", found `\"`",
        ),
        (
            "%1 = input tensor \"y\" : f32[8]",
            "line 3, column 12: expected an input kind (parameter, state, data, scalar, seed, constant), found `tensor`",
        ),
        ("%1 = input parameter \"y\" : f32[8] unit x", "line 3, column 40: expected a number, found `x`"),
        ("%1 = input data y : f32[8]", "line 3, column 17: expected a name in double quotes, found `y`"),
        ("%1 = input data \"y : f32[8]", "line 3, column 28: expected a closing `\"`, found the end of the line"),
        ("%1 = input data \"y\" : f32[8] layout 8", "line 3, column 37: expected `[`, found `8`"),
        ("%1 = fill zero : f32[8]", "line 3, column 11: expected a scalar like 0.5, 3 or true, found `zero`"),
        (
            "%1 = random gamma(1.0) stream=0 i64:1 : f32[8]",
            "line 3, column 13: expected bernoulli(p), uniform(low, high) or normal(mean, deviation), found `gamma`",
        ),
        ("%1 = random uniform(1.0) stream=0 i64:1 : f32[8]", "line 3, column 24: expected `,`, found `)`"),
        ("%1 = slice dim=0 step=1 start=0 %0 : f32[8, 6]", "line 3, column 18: expected `start=`, found `step`"),
        ("%1 = pad dim=0 low=0 %0 : f32[8, 6]", "line 3, column 22: expected `value=`, found `%0`"),
        (
            "%1 = all_reduce sum tp %0 : f32[8, 6]",
            "line 3, column 17: expected an axis of the mesh (dp, tp), found `sum`",
        ),
        ("%1 = all_gather dp dim=x %0 : f32[8, 6]", "line 3, column 24: expected a number, found `x`"),
        ("region \"m\" %0 -> %0", "line 3, column 12: expected `(`, found `%0`"),
        ("region \"m\" (%0) (%0)", "line 3, column 17: expected `->`, found `(`"),
        ("output best %0", "line 3, column 8: expected loss, result, gradient or update, found `best`"),
        ("output loss %0 %0", "line 3, column 16: expected the end of the line, found `%0`"),
    ] {
        assert_eq!(parse_error(body), error, "{body}");
    }
    for (text, error) in [
        ("", "line 1, column 1: expected a mesh like `mesh <dp=2, tp=4>` on the first line, found the end of the line"),
        ("\n# a comment\nmesh <dp>", "line 3, column 7: expected axes like `dp=2, tp=4`, found `dp`"),
        (
            "mesh <dp=0>",
            "line 1, column 7: expected other axes (mesh axis `dp` has size 0: an axis holds at least one rank), found `dp`",
        ),
        ("mesh <dp=2", "line 1, column 7: expected a closing `>`, found `dp`"),
        (
            "mesh <a=99999999, b=99999999999>",
            "line 1, column 7: expected other axes (mesh has 9999999899900000001 ranks, more than 65536, the most that a program is planned for), found `a`",
        ),
    ] {
        assert_eq!(parse::parse(text).unwrap_err().to_string(), error, "{text}");
    }
}

#[test]
fn json_errors_have_a_location_and_a_reason() {
    let graph = parse::parse("mesh <tp=2>\n%0 = input data \"x\" : f32[4@tp]\n%1 = all_gather tp dim=0 %0 : f32[4] ; forward\noutput loss %1").unwrap();
    let printed = json::print(&graph);
    for (from, to, error) in [
        ("\"tp\"", "\"dp\"", "at nodes[0].types[0].sharding[0][0]: expected an axis of the mesh"),
        ("\"dim\": 0", "\"dim\": \"x\"", "at nodes[1].dim: expected a number"),
        ("\"dim\": 0", "\"size\": 0", "at nodes[1]: expected the field \"dim\""),
        ("\"all_gather\"", "\"gather\"", "at nodes[1].op: expected an operation"),
        ("\"f32\"", "\"f33\"", "at nodes[0].types[0].dtype: expected an element type"),
        ("\"loss\"", "\"gain\"", "at outputs[0].kind: expected loss, result, gradient or update"),
        (
            "\"size\": 2",
            "\"size\": 0",
            "at mesh: expected other axes (mesh axis `tp` has size 0: an axis holds at least one rank)",
        ),
    ] {
        assert!(printed.contains(from), "{from} in {printed}");
        // Renames an axis where it is used but not where it is declared.
        let broken = printed.replace(from, to).replace("\"name\": \"dp\"", "\"name\": \"tp\"");
        assert_eq!(json::parse(&broken).unwrap_err().to_string(), error, "{from} -> {to}");
    }
    assert!(json::parse("[").unwrap_err().to_string().starts_with("not JSON"));
    assert_eq!(json::parse("3").unwrap_err().to_string(), "at the top: expected an object");
}

/// The only error of a text after a mesh of dp=2, tp=4 and some inputs.
fn verify_error(body: &str) -> String {
    let head = "mesh <dp=2, tp=4>\n\
        %0 = input data \"x\" : f32[8@dp, 6]\n\
        %1 = input parameter \"w\" : f32[6, 4@tp]\n\
        %2 = input data \"i\" : i64[3]\n\
        %3 = input data \"s\" : f32[8, 6@(tp,dp)]\n\
        %4 = einsum \"ab,ac->bc\" %0, %0 : f32[6, 6] +sum@dp\n\
        %5 = input data \"b\" : bool[8, 6]\n";
    let graph = parse::parse(&format!("{head}{body}")).unwrap();
    let errors = verify(&graph).expect_err(body);
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors[0].to_string()
}

#[test]
fn verify_errors_name_the_node_its_types_and_the_fault() {
    let cases: &[(&str, &str)] = &[
        (
            "%9 = input data \"y\" : f32[4] unit 3",
            "%6 = input data \"y\": () -> (f32[4]): only a parameter can belong to a unit, not an input of kind data",
        ),
        // Types.
        (
            "%9 = fill 1.0 : f32[8@dp, 6@dp]",
            "%6 = fill 1.0: () -> (f32[8@dp, 6@dp]): axis dp occurs twice in f32[8@dp, 6@dp]",
        ),
        (
            "%9 = fill 0.0 : f32[8@dp] +sum@dp",
            "%6 = fill 0.0: () -> (f32[8@dp] +sum@dp): axis dp occurs twice in f32[8@dp] +sum@dp",
        ),
        (
            "%9 = fill 0.0 : f32[8] +sum@()",
            "%6 = fill 0.0: () -> (f32[8] +sum): the type f32[8] +sum is partial over no axes",
        ),
        (
            "%9 = fill 0.0 : f32[0, 9223372036854775807, 3]",
            "%6 = fill 0.0: () -> (f32[0, 9223372036854775807, 3]): the type f32[0, 9223372036854775807, 3] has more bytes than can be addressed",
        ),
        (
            "%9 = fill 1.0 : f32[8] +sum@dp",
            "%6 = fill 1.0: () -> (f32[8] +sum@dp): the sum of one copy per rank differs from this constant: use to_partial",
        ),
        (
            "%9 = iota : i64[8] +sum@dp",
            "%6 = iota: () -> (i64[8] +sum@dp): the sum of one copy per rank differs from this constant: use to_partial",
        ),
        (
            "%9 = input data \"y\" : f32[8] +sum@dp",
            "%6 = input data \"y\": () -> (f32[8] +sum@dp): an input is a whole value, so its type cannot be partial",
        ),
        // Operands and results.
        ("%9 = exp : f32[8]", "%6 = exp: () -> (f32[8]): has 0 operands but needs 1"),
        (
            "%9 = add %0 : f32[8@dp, 6]",
            "%6 = add: (f32[8@dp, 6]) -> (f32[8@dp, 6]): has 1 operands but needs 2 or more",
        ),
        ("%9 = concat dim=0 : f32[8]", "%6 = concat dim=0: () -> (f32[8]): has 0 operands but needs 1 or more"),
        (
            "%9 = top_k %0 : f32[8@dp, 2]",
            "%6 = top_k: (f32[8@dp, 6]) -> (f32[8@dp, 2]): has 1 result types but needs 2",
        ),
        ("%9 = iota : i64[8, 2]", "%6 = iota: () -> (i64[8, 2]): the result should be of rank 1, not 2"),
        (
            "%9 = random bernoulli(0.5) stream=0 %2 : f32[8]",
            "%6 = random bernoulli(0.5) stream=0: (i64[3]) -> (f32[8]): operand 0 should be of rank 0, not 1",
        ),
        // Element types.
        (
            "%9 = add \"ab,c->ab\" %0, %2 : f32[8@dp, 6]",
            "%6 = add \"ab,c->ab\": (f32[8@dp, 6], i64[3]) -> (f32[8@dp, 6]): operand 1 should be f32, not i64",
        ),
        ("%9 = exp %0 : f64[8@dp, 6]", "%6 = exp: (f32[8@dp, 6]) -> (f64[8@dp, 6]): the result should be f32, not f64"),
        (
            "%9 = lt %0, f32:0.0 : f32[8@dp, 6]",
            "%6 = lt \"ab,->ab\": (f32[8@dp, 6], f32[]) -> (f32[8@dp, 6]): the result should be bool, not f32",
        ),
        (
            "%9 = select %0, %0, %0 : f32[8@dp, 6]",
            "%6 = select: (f32[8@dp, 6], f32[8@dp, 6], f32[8@dp, 6]) -> (f32[8@dp, 6]): operand 0 should be bool, not f32",
        ),
        (
            "%9 = select %5, %0, %5 : f32[8@dp, 6]",
            "%6 = select: (bool[8, 6], f32[8@dp, 6], bool[8, 6]) -> (f32[8@dp, 6]): operand 2 should be f32, not bool",
        ),
        (
            "%9 = not %0 : bool[8@dp, 6]",
            "%6 = not: (f32[8@dp, 6]) -> (bool[8@dp, 6]): operand 0 should be bool, not f32",
        ),
        (
            "%9 = cast.f64 %0 : f32[8@dp, 6]",
            "%6 = cast.f64: (f32[8@dp, 6]) -> (f32[8@dp, 6]): the result should be f64, not f32",
        ),
        (
            "%9 = take %0, %0 : f32[8@dp, 6, 6]",
            "%6 = take: (f32[8@dp, 6], f32[8@dp, 6]) -> (f32[8@dp, 6, 6]): operand 1 should be an integer, not f32",
        ),
        // Subscripts.
        (
            "%9 = einsum \"ab,bc,cd->ad\" %0, %1 : f32[8@dp, 4@tp]",
            "%6 = einsum \"ab,bc,cd->ad\": (f32[8@dp, 6], f32[6, 4@tp]) -> (f32[8@dp, 4@tp]): \"ab,bc,cd->ad\" is for 3 operands, but the node has 2",
        ),
        (
            "%9 = einsum \"a,bc->ac\" %0, %1 : f32[8@dp, 4@tp]",
            "%6 = einsum \"a,bc->ac\": (f32[8@dp, 6], f32[6, 4@tp]) -> (f32[8@dp, 4@tp]): \"a,bc->ac\" gives operand 0 1 letters, but its rank is 2",
        ),
        (
            "%9 = einsum \"ab,ac->bc\" %0, %1 : f32[6, 4@tp]",
            "%6 = einsum \"ab,ac->bc\": (f32[8@dp, 6], f32[6, 4@tp]) -> (f32[6, 4@tp]): letter a of \"ab,ac->bc\" is 8 and 6",
        ),
        (
            "%9 = einsum \"aa,ab->b\" %4, %1 : f32[4@tp]",
            "%6 = einsum \"aa,ab->b\": (f32[6, 6] +sum@dp, f32[6, 4@tp]) -> (f32[4@tp]): letter a of \"aa,ab->b\" occurs twice in operand 0",
        ),
        (
            "%9 = einsum \"ab,bc->ad\" %0, %1 : f32[8@dp, 4@tp]",
            "%6 = einsum \"ab,bc->ad\": (f32[8@dp, 6], f32[6, 4@tp]) -> (f32[8@dp, 4@tp]): letter d of \"ab,bc->ad\" occurs only in the result",
        ),
        (
            "%9 = reduce_sum \"ab->ac\" %0 : f32[8@dp, 4]",
            "%6 = reduce_sum \"ab->ac\": (f32[8@dp, 6]) -> (f32[8@dp, 4]): letter c of \"ab->ac\" occurs only in the result",
        ),
        (
            "%9 = exp \"ab->a\" %0 : f32[8@dp]",
            "%6 = exp \"ab->a\": (f32[8@dp, 6]) -> (f32[8@dp]): letter b of \"ab->a\" occurs only in operand 0",
        ),
        ("%9 = exp %0 : f32[8@dp, 7]", "%6 = exp: (f32[8@dp, 6]) -> (f32[8@dp, 7]): letter b of \"ab->ab\" is 6 and 7"),
        // Shapes.
        (
            "%9 = reshape %0 : f32[47]",
            "%6 = reshape: (f32[8@dp, 6]) -> (f32[47]): the shapes [47] and [8, 6] differ in their number of elements",
        ),
        (
            "%9 = slice dim=2 start=0 step=1 %0 : f32[8@dp, 6]",
            "%6 = slice dim=2 start=0 step=1: (f32[8@dp, 6]) -> (f32[8@dp, 6]): dimension 2 does not exist in rank 2",
        ),
        (
            "%9 = slice dim=1 start=1 step=2 %0 : f32[8@dp, 4]",
            "%6 = slice dim=1 start=1 step=2: (f32[8@dp, 6]) -> (f32[8@dp, 4]): 4 indices from 1 by 2 does not fit the 6 indices of dimension 1",
        ),
        (
            "%9 = slice dim=1 start=0 step=0 %0 : f32[8@dp, 4]",
            "%6 = slice dim=1 start=0 step=0: (f32[8@dp, 6]) -> (f32[8@dp, 4]): 4 indices from 0 by 0 does not fit the 6 indices of dimension 1",
        ),
        (
            "%9 = slice dim=1 start=0 step=1 %0 : f32[7, 4]",
            "%6 = slice dim=1 start=0 step=1: (f32[8@dp, 6]) -> (f32[7, 4]): the result's shape should be [8, 4], not [7, 4]",
        ),
        (
            "%9 = index dim=1 index=6 %0 : f32[8@dp]",
            "%6 = index dim=1 index=6: (f32[8@dp, 6]) -> (f32[8@dp]): index 6 does not fit the 6 indices of dimension 1",
        ),
        (
            "%9 = index dim=1 index=5 %0 : f32[6]",
            "%6 = index dim=1 index=5: (f32[8@dp, 6]) -> (f32[6]): the result's shape should be [8], not [6]",
        ),
        (
            "%9 = concat dim=1 %0, %1 : f32[8@dp, 10]",
            "%6 = concat dim=1: (f32[8@dp, 6], f32[6, 4@tp]) -> (f32[8@dp, 10]): the result's shape should be [6, 10], not [8, 10]",
        ),
        (
            "%9 = concat dim=1 %0, %0 : f32[8@dp, 13]",
            "%6 = concat dim=1: (f32[8@dp, 6], f32[8@dp, 6]) -> (f32[8@dp, 13]): the result's shape should be [8, 12], not [8, 13]",
        ),
        (
            "%9 = pad dim=1 low=3 value=0.0 %0 : f32[8@dp, 8]",
            "%6 = pad dim=1 low=3 value=0.0: (f32[8@dp, 6]) -> (f32[8@dp, 8]): 3 copies before 6 indices does not fit the 8 indices of dimension 1",
        ),
        (
            "%9 = take %0, %2 : f32[8, 6]",
            "%6 = take: (f32[8@dp, 6], i64[3]) -> (f32[8, 6]): the result's shape should be [3, 6], not [8, 6]",
        ),
        (
            "%9 = scatter_add %2, %0 : f32[5, 6]",
            "%6 = scatter_add: (i64[3], f32[8@dp, 6]) -> (f32[5, 6]): the update's shape [8, 6] does not start with the shape of the index, [3]",
        ),
        (
            "%9 = cumsum dim=3 %0 : f32[8@dp, 6]",
            "%6 = cumsum dim=3: (f32[8@dp, 6]) -> (f32[8@dp, 6]): dimension 3 does not exist in rank 2",
        ),
        (
            "%9 = top_k %0 : f32[8@dp, 7], i64[8@dp, 7]",
            "%6 = top_k: (f32[8@dp, 6]) -> (f32[8@dp, 7], i64[8@dp, 7]): top 7 does not fit the 6 indices of dimension 1",
        ),
        // Redistributions.
        (
            "%9 = all_reduce () sum %4 : f32[6, 6] +sum@dp",
            "%6 = all_reduce () sum: (f32[6, 6] +sum@dp) -> (f32[6, 6] +sum@dp): a redistribution needs at least one axis",
        ),
        (
            "%9 = all_reduce tp sum %4 : f32[6, 6] +sum@dp",
            "%6 = all_reduce tp sum: (f32[6, 6] +sum@dp) -> (f32[6, 6] +sum@dp): the operand is not partial sum over tp",
        ),
        (
            "%9 = all_reduce dp max %4 : f32[6, 6]",
            "%6 = all_reduce dp max: (f32[6, 6] +sum@dp) -> (f32[6, 6]): the operand is not partial max over dp",
        ),
        (
            "%9 = all_reduce dp sum %4 : f32[6, 6] +sum@dp",
            "%6 = all_reduce dp sum: (f32[6, 6] +sum@dp) -> (f32[6, 6] +sum@dp): the result's type should be f32[6, 6], not f32[6, 6] +sum@dp",
        ),
        (
            "%9 = all_gather tp dim=1 %3 : f32[8, 6@dp]",
            "%6 = all_gather tp dim=1: (f32[8, 6@(tp,dp)]) -> (f32[8, 6@dp]): dimension 1 does not end with the axes tp: gather its minor-most axes, listed major to minor",
        ),
        (
            "%9 = all_gather (dp,tp) dim=1 %3 : f32[8, 6]",
            "%6 = all_gather (dp,tp) dim=1: (f32[8, 6@(tp,dp)]) -> (f32[8, 6]): dimension 1 does not end with the axes (dp,tp): gather its minor-most axes, listed major to minor",
        ),
        (
            "%9 = all_gather (dp,dp) dim=1 %3 : f32[8, 6]",
            "%6 = all_gather (dp,dp) dim=1: (f32[8, 6@(tp,dp)]) -> (f32[8, 6]): axis dp occurs twice in (dp,dp)",
        ),
        (
            "%9 = all_gather dp dim=1 %3 : f32[8, 6]",
            "%6 = all_gather dp dim=1: (f32[8, 6@(tp,dp)]) -> (f32[8, 6]): the result's type should be f32[8, 6@tp], not f32[8, 6]",
        ),
        (
            "%9 = reduce_scatter dp sum dim=2 %4 : f32[6, 6@dp]",
            "%6 = reduce_scatter dp sum dim=2: (f32[6, 6] +sum@dp) -> (f32[6, 6@dp]): dimension 2 does not exist in rank 2",
        ),
        (
            "%9 = reduce_scatter dp sum dim=0 %4 : f32[6, 6@dp]",
            "%6 = reduce_scatter dp sum dim=0: (f32[6, 6] +sum@dp) -> (f32[6, 6@dp]): the result's type should be f32[6@dp, 6], not f32[6, 6@dp]",
        ),
        (
            "%9 = all_to_all dp from=0 to=0 %0 : f32[8@dp, 6]",
            "%6 = all_to_all dp from=0 to=0: (f32[8@dp, 6]) -> (f32[8@dp, 6]): an all_to_all moves axes to another dimension, not from 0 to 0",
        ),
        (
            "%9 = shard_slice dp dim=1 %0 : f32[8@dp, 6]",
            "%6 = shard_slice dp dim=1: (f32[8@dp, 6]) -> (f32[8@dp, 6]): the operand already varies over axis dp",
        ),
        (
            "%9 = to_partial dp sum %0 : f32[8, 6] +sum@dp",
            "%6 = to_partial dp sum: (f32[8@dp, 6]) -> (f32[8, 6] +sum@dp): the operand already varies over axis dp",
        ),
        (
            "%9 = to_partial tp max %4 : f32[6, 6] +sum@(dp,tp)",
            "%6 = to_partial tp max: (f32[6, 6] +sum@dp) -> (f32[6, 6] +sum@(dp,tp)): the operand is partial sum and cannot become partial max too",
        ),
        // Inputs and outputs.
        (
            "%9 = input data \"x\" : f32[8@dp, 6]",
            "%6 = input data \"x\": () -> (f32[8@dp, 6]): another input has the name \"x\"",
        ),
        (
            "%9 = input state \"w\" : f32[6, 4]",
            "%6 = input state \"w\": () -> (f32[6, 4]): another input has the name \"w\"",
        ),
        (
            "%9 = input state \"y\" : f32[8@dp, 6] layout [7]",
            "%6 = input state \"y\": () -> (f32[8@dp, 6]): the shapes [7] and [8, 6] differ in their number of elements",
        ),
        ("output loss %0\noutput loss %1", "output loss: is defined more than once"),
        ("output loss %0 layout [7]", "output loss: the shapes [7] and [8, 6] differ in their number of elements"),
        ("output update \"x\" %0", "output update \"x\": there is no parameter or state of the name \"x\" to update"),
        ("output update \"w\" %0", "output update \"w\": the update is f32[8@dp, 6], but its input is f32[6, 4@tp]"),
    ];
    for (body, error) in cases {
        assert_eq!(verify_error(body), *error, "{body}");
    }
}

/// The faults of a graph that cannot be written as text.
fn faults(graph: &Graph) -> Vec<Malformed> {
    verify(graph).unwrap_err().into_iter().map(|e: VerifyError| e.fault).collect()
}

#[test]
fn graphs_that_no_text_expresses_are_errors_too() {
    let (o, mesh) = (Origin::default(), Mesh::parse("tp=2").unwrap());
    let ty = Type::new(DType::F32, [4]);
    let fill = || Op::Fill(tpc_ir::Scalar::float(0.0));
    let graph = |op: Op, ty: &Type| {
        let mut g = Graph::new(mesh.clone());
        g.push(op, &[], ty.clone(), &o);
        g
    };

    let unknown = ty.placed(Sharding { dims: vec![vec![AxisId(40)]], partial: None });
    let g = graph(fill(), &unknown);
    assert_eq!(faults(&g), [Malformed::UnknownAxis(40)]);
    assert_eq!(
        verify(&g).unwrap_err()[0].to_string(),
        "%0 = fill 0.0: () -> (f32[4@?]): axis number 40 is not in the mesh"
    );

    let dims = ty.placed(Sharding::replicated(2));
    assert_eq!(faults(&graph(fill(), &dims)), [Malformed::Dims { ty: "f32[4]".into(), found: 2 }]);

    // An operation on such a value is not checked.
    let mut g = graph(fill(), &dims);
    g.push(Op::AllGather { dim: 0, axes: vec![AxisId(0)] }, &[Value { node: 0.into(), result: 0 }], ty.clone(), &o);
    let short = ty.placed(Sharding::replicated(0));
    let mut h = graph(fill(), &short);
    h.push(Op::AllGather { dim: 0, axes: vec![AxisId(0)] }, &[Value { node: 0.into(), result: 0 }], ty.clone(), &o);
    assert_eq!(faults(&g), [Malformed::Dims { ty: "f32[4]".into(), found: 2 }]);
    assert_eq!(faults(&h), [Malformed::Dims { ty: "f32[]".into(), found: 0 }]);

    let empty = Sharding { dims: vec![vec![]], partial: Some(Partial { op: ReduceOp::Sum, axes: AxisSet::EMPTY }) };
    assert_eq!(faults(&graph(fill(), &ty.placed(empty))), [Malformed::EmptyPartial("f32[4] +sum".into())]);

    let mut g = graph(fill(), &ty);
    let missing = Value { node: 0.into(), result: 3 };
    g.push(Op::Reshape, &[missing], ty.clone(), &o);
    g.regions.push(Region {
        path: "m".into(),
        arguments: vec![Boundary { value: missing, layout: vec![] }],
        results: vec![],
    });
    let gone = || Malformed::NoSuchValue { node: 0, result: 3 };
    assert_eq!(faults(&g), [gone(), gone()]);
    assert_eq!(
        verify(&g).unwrap_err()[1].to_string(),
        "region \"m\": refers to result 3 of node 0, which does not exist"
    );

    let mut g = graph(fill(), &ty);
    g.add(Op::Iota, &[], vec![], o.clone());
    assert_eq!(faults(&g), [Malformed::Results { expected: 1, found: 0 }]);

    let mut g = graph(fill(), &ty);
    let subs = Subscripts { operands: vec![vec![3]], result: vec![3] };
    g.push(Op::Map { f: MapFn::Exp, subs }, &[Value { node: 0.into(), result: 0 }], ty.clone(), &o);
    assert_eq!(faults(&g), [Malformed::NotCanonical("d->d".into())]);
}

/// Everything that a line can repeat has a limit, so that memory is proportional to the length of the text.
#[test]
fn errors_in_large_texts_have_a_location() {
    let dims = |n: usize| vec!["1"; n].join(", ");
    let fill = |n: usize| parse_error_of(&format!("%1 = fill 0.0 : f32[{}]", dims(n)));
    assert_eq!(fill(52), None);
    assert_eq!(fill(53).unwrap(), "line 3, column 177: expected at most 52 dimensions, found `1`");
    let layout = |n: usize| parse_error_of(&format!("%1 = input data \"y\" : f32[] layout [{}]", dims(n)));
    assert_eq!(layout(52), None);
    assert_eq!(layout(53).unwrap(), "line 3, column 193: expected at most 52 dimensions, found `1`");
    assert_eq!(
        parse_error("%1 = fill 0.0 : f32[8@(dp,tp,dp)]"),
        "line 3, column 30: expected at most the 2 axes of the mesh, found `dp`"
    );
    assert_eq!(
        parse_error("%1 = all_gather (dp,tp,dp) dim=0 %0 : f32[8, 6]"),
        "line 3, column 24: expected at most the 2 axes of the mesh, found `dp`"
    );
    // A block with too many lines and occurrences is rejected before it is expanded.
    let lines: String =
        (0..100).map(|i| format!("  %{{{}..{}}} = iota : i64[4]\n", 1000 + i, 1000 + i + 99_999 * 100)).collect();
    let block = format!("block @a ×100000 forward {{\n{lines}}}\n");
    assert_eq!(
        parse_error(&block),
        "line 3, column 27: expected blocks that expand to at most 134217728 bytes, found the end of the line"
    );
    // Sizes that do not fit into a machine word.
    assert_eq!(
        parse_error("%1 = iota : i64[18446744073709551616]"),
        "line 3, column 17: expected a number, found `18446744073709551616`"
    );
    let long = "x".repeat(100_000);
    for body in
        [long.clone(), format!("%1 = {long}"), format!("%1 = exp %0 : {long}"), format!("%1 = exp %0 : f32[8@{long}]")]
    {
        let error = parse_error(&body);
        assert!(error.chars().count() < 400, "{} characters", error.chars().count());
    }
}

fn parse_error_of(body: &str) -> Option<String> {
    let head = "mesh <dp=2, tp=4>\n%0 = input data \"x\" : f32[8@dp, 6]\n";
    parse::parse(&format!("{head}{body}")).err().map(|e| e.to_string())
}

/// If every node of a graph has a fault, only some are reported, in a text of readable length.
#[test]
fn many_and_long_faults_are_truncated() {
    let long = "x".repeat(10_000);
    let lines: String = (0..2000).map(|i| format!("%{i} = input data \"{long}\" : f32[2]\n")).collect();
    let faults = verify(&parse::parse(&format!("mesh <>\n{lines}")).unwrap()).unwrap_err();
    assert_eq!(faults.len(), tpc_ir::verify::MOST_FAULTS);
    faults.iter().for_each(|fault| assert!(fault.to_string().chars().count() < 600));
    let operands = vec!["%0"; 1000].join(", ");
    let body = format!("mesh <>\n%0 = input data \"x\" : f32[2]\n%1 = add {operands} : f64[2]\n");
    let fault = verify(&parse::parse(&body).unwrap()).unwrap_err().remove(0).to_string();
    let shown = vec!["f32[2]"; tpc_ir::verify::MOST_SHOWN].join(", ");
    assert_eq!(fault, format!("%1 = add: ({shown}, …) -> (f64[2]): the result should be f32, not f64"));
}

#[test]
fn values_that_are_too_large_together_are_rejected() {
    let text = |size: usize| format!("mesh <>\n%0 = input data \"x\" : f32[{size}]\n%1 = exp %0 : f32[{size}]\n");
    let found = |size: usize| verify(&parse::parse(&text(size)).unwrap());
    assert_eq!(found((1 << 59) - 1), Ok(()));
    assert_eq!(
        found(1 << 60).unwrap_err()[0].to_string(),
        "the program: its values together have more bytes than can be addressed"
    );
}
