//! Which operations share a loop: the operations on a row stay in its loop, neighbors that read the same values become
//! one loop, and the halves of a rotary embedding need no detour through memory. Each program is also executed.

use tpc_ir::program::Action;
use tpc_ir::text;
use tpc_passes::canonicalize::canonicalize;
use tpc_passes::lower::{LowerOptions, lower_with};
use tpc_passes::targets::Target;
use tpc_tests::named::{inputs, program};
use tpc_tests::{executed_programs, on_ranks, wrong};

/// Labels of the loops and products of rank 0. The program is executed with and without the optimizations that reduce
/// their number.
fn labels(lines: &str) -> Vec<String> {
    let graph = canonicalize(&program(lines));
    let inputs = inputs(&graph);
    let want = on_ranks(&graph, &inputs);
    let mut labels = Vec::new();
    for (recompute, epilogues) in [(false, false), (false, true), (true, false), (true, true)] {
        let options = LowerOptions { recompute, epilogues, ..LowerOptions::default() };
        let programs = lower_with(&graph, Target::cpu(), &options).unwrap();
        let computes = |a: &Action| matches!(a, Action::Loop(_) | Action::Contract(_));
        labels = programs[0].steps.iter().filter(|s| computes(&s.action)).map(|s| s.label.to_string()).collect();
        let got = executed_programs(&graph, programs, &inputs);
        let wrong = wrong(&graph, &got, &want, 2e-5);
        assert!(wrong.is_empty(), "{options:?}: {wrong:?}\n{}", text::print(&graph));
    }
    labels
}

/// RMSNorm's backward pass as autodiff writes it: the gain's gradient, a sum over each row, what is computed from that
/// sum for the row, and the gradient of the normalized value.
const NORM: &str = "mesh <>
%x = input data \"x\" : f32[3, 5, 8]
%g = input data \"g\" : f32[8]
%dy = input data \"dy\" : f32[3, 5, 8]
%q = mul %x, %x : f32[3, 5, 8]
%s = reduce_sum \"abc->ab\" %q : f32[3, 5]
%v = add %s, f32:1.0 : f32[3, 5]
%r = sqrt %v : f32[3, 5]
%n = div \"abc,ab->abc\" %x, %r : f32[3, 5, 8]
%y = mul \"abc,c->abc\" %n, %g : f32[3, 5, 8]
%a = mul \"abc,c->abc\" %dy, %g : f32[3, 5, 8] ; backward
%b = mul %n, %dy : f32[3, 5, 8] ; backward
%dg = reduce_sum \"abc->c\" %b : f32[8] ; backward
%ir = recip %r : f32[3, 5] ; backward
%c = mul \"abc,ab->abc\" %a, %ir : f32[3, 5, 8] ; backward
%nx = neg %x : f32[3, 5, 8] ; backward
%rr = mul %r, %r : f32[3, 5] ; backward
%d = div \"abc,ab->abc\" %nx, %rr : f32[3, 5, 8] ; backward
%e = mul %a, %d : f32[3, 5, 8] ; backward
%f = reduce_sum \"abc->ab\" %e : f32[3, 5] ; backward
%rv = rsqrt %v : f32[3, 5] ; backward
%h = mul %f, %rv : f32[3, 5] ; backward
%w = mul \"ab,->abc\" %h, f32:0.5 : f32[3, 5, 8] ; backward
%k = mul %x, %w : f32[3, 5, 8] ; backward
%dx = add %c, %k, %k : f32[3, 5, 8] ; backward
output result \"y\" %y
output result \"dg\" %dg
output result \"dx\" %dx";

#[test]
fn a_norm_is_one_loop_forward_and_one_backward() {
    assert_eq!(labels(NORM), ["fused norm (6)", "fused norm (15)"]);
}

/// The gradients of both factors read the same product: they are its epilogue.
#[test]
fn gradients_of_a_gate_are_one_loop() {
    let lines = "mesh <>
%s = input data \"s\" : f32[3, 5]
%up = input data \"up\" : f32[3, 5]
%dy = input data \"dy\" : f32[3, 4]
%w = input data \"w\" : f32[5, 4]
%d = einsum \"ad,cd->ac\" %dy, %w : f32[3, 5] ; backward
%du = mul %s, %d : f32[3, 5] ; backward
%t = mul %up, %d : f32[3, 5] ; backward
%dg = mul %t, %s : f32[3, 5] ; backward
output result \"du\" %du
output result \"dg\" %dg";
    assert_eq!(labels(lines), ["einsum + fused map (3)"]);
}

/// Exchanged halves are read from where they are stored, not from a copy.
#[test]
fn halves_of_a_rotation_are_read_where_they_lie() {
    let lines = "mesh <>
%x = input data \"x\" : f32[3, 2, 4]
%sin = input data \"sin\" : f32[2, 4]
%cos = input data \"cos\" : f32[2, 4]
%m = mul \"abc,bc->abc\" %x, %sin : f32[3, 2, 4]
%low = index dim=1 index=0 %m : f32[3, 4]
%high = index dim=1 index=1 %m : f32[3, 4]
%i = iota : i64[2]
%first = eq %i, i64:0 : bool[2]
%a = select \"b,ac,->abc\" %first, %high, f32:0.0 : f32[3, 2, 4]
%second = eq %i, i64:1 : bool[2]
%b = select \"b,ac,->abc\" %second, %low, f32:0.0 : f32[3, 2, 4]
%c = mul \"abc,bc->abc\" %x, %cos : f32[3, 2, 4]
%y = add %a, %b, %c : f32[3, 2, 4]
output result \"y\" %y";
    let found = labels(lines);
    assert_eq!(found.len(), 1, "{found:?}");
}

/// A product reads its operands from memory in any case: its views remain views of one value.
#[test]
fn thirds_for_products_stay_views() {
    let lines = "mesh <>
%x = input data \"x\" : f32[4, 6]
%w = input data \"w\" : f32[6, 2, 3]
%b = input data \"b\" : f32[2, 3]
%p = einsum \"ab,bcd->acd\" %x, %w : f32[4, 2, 3]
%m = add \"acd,cd->acd\" %p, %b : f32[4, 2, 3]
%q = index dim=1 index=0 %m : f32[4, 3]
%k = index dim=1 index=1 %m : f32[4, 3]
%s = einsum \"ad,bd->ab\" %q, %k : f32[4, 4]
output result \"s\" %s";
    assert_eq!(labels(lines), ["einsum + add", "einsum"]);
}

/// A distant loop does not join: its operands would have to wait, and the values that wait for it would live longer.
#[test]
fn a_neighbor_beyond_a_product_stays_apart() {
    let lines = "mesh <>
%x = input data \"x\" : f32[4, 4]
%a = exp %x : f32[4, 4]
%r = reduce_sum \"ab->a\" %a : f32[4]
%p = einsum \"ab,bc->ac\" %x, %x : f32[4, 4]
%q = reduce_sum \"ab->b\" %p : f32[4]
%t = tanh %x : f32[4, 4]
%u = mul \"ab,b->ab\" %t, %q : f32[4, 4]
output result \"r\" %r
output result \"u\" %u";
    assert_eq!(labels(lines), ["fused reduce (2)", "einsum", "fused reduce (1)", "fused map (2)"]);
}
