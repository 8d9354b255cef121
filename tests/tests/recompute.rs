//! Which values loops recompute, and which they must not: every program computes the same with and without
//! recomputation, moves no more memory and holds no more.

use tpc_ir::program::RankProgram;
use tpc_tests::named::program;
use tpc_tests::switches::{agree, idle_loops, most_bytes, moved_bytes, outline};

/// The program of rank 0 without and with recomputation, both without epilogues.
fn both(lines: &str) -> [String; 2] {
    let [without, _, with, _] = agree(&program(lines)).map(|ranks| ranks.into_iter().next().unwrap());
    assert!(moved_bytes(&with) <= moved_bytes(&without), "{} bytes moved\n{}", moved_bytes(&with), outline(&with));
    assert!(most_bytes(&with) <= most_bytes(&without), "{} bytes held\n{}", most_bytes(&with), outline(&with));
    assert!(with.arena_bytes <= without.arena_bytes, "{} bytes\n{}", with.arena_bytes, outline(&with));
    assert_eq!(idle_loops(&with), 0, "{}", outline(&with));
    [without, with].map(|p: RankProgram| outline(&p))
}

/// Checks that a program recomputes nothing.
fn same(lines: &str) -> String {
    let [without, with] = both(lines);
    assert_eq!(without, with);
    with
}

#[test]
fn an_activation_is_computed_again_from_what_is_in_memory() {
    let [without, with] = both(
        "mesh <>
%x = input data \"x\" : f32[64, 8]
%g = input data \"g\" : f32[64, 8]
%w = input data \"w\" : f32[8, 8]
%a = mul %x, %x : f32[64, 8] ; forward
%b = mul %a, %x : f32[64, 8] ; forward
%y = einsum \"ab,bc->ac\" %b, %w : f32[64, 8] ; forward
%d = mul %g, %a : f32[64, 8] ; backward
output result \"y\" %y
output result \"d\" %d",
    );
    assert_eq!(without, "fused map (2): x -> mul, mul\neinsum\nmul: g, mul -> mul\n");
    assert_eq!(with, "fused map (2): x -> mul\neinsum\nmul: x, g -> mul\n");
}

/// A loop that has become empty is removed, and its reads with it.
#[test]
fn a_loop_whose_values_are_computed_again_is_gone() {
    let [without, with] = both(
        "mesh <>
%x = input data \"x\" : f32[64]
%g = input data \"g\" : f32[64]
%y = mul %x, %x : f32[64] ; forward
%z = add %y, f32:1.0 : f32[64] ; forward
%s = mul %g, %z : f32[64] ; backward
output result \"s\" %s",
    );
    assert_eq!(without, "fused map (2): x -> add\nmul: g, add -> mul\n");
    assert_eq!(with, "mul: x, g -> mul\n");
}

/// A loop that keeps only some of its values may have fewer indices: it does not iterate over indices of the removed
/// values.
#[test]
fn what_is_left_of_a_loop_does_not_run_along_indices_that_it_lacks() {
    let graph = program(
        "mesh <>
%b = input data \"b\" : f32[8]
%x = input data \"x\" : f32[64, 8]
%c = mul %b, %b : f32[8] ; forward
%y = add \"b,ab->ab\" %c, %x : f32[64, 8] ; forward
%z = mul %y, %x : f32[64, 8] ; backward
%e = einsum \"b,b->\" %c, %c : f32[] ; backward
output result \"z\" %z
output result \"e\" %e",
    );
    let [.., with, _] = agree(&graph);
    let loops = with[0].to_text();
    assert!(loops.contains("forward mul: loop [8]\n"), "{loops}");
    assert!(loops.contains("backward mul: loop [64, 8]\n"), "{loops}");
}

#[test]
fn who_else_wants_a_value_keeps_it() {
    let of = |more: &str| {
        format!(
            "mesh <>
%x = input data \"x\" : f32[64]
%g = input data \"g\" : f32[64]
%w = input data \"w\" : f32[64, 8]
%y = mul %x, %x : f32[64] ; forward
{more}
%z = mul %g, %y : f32[64] ; backward
output result \"z\" %z"
        )
    };
    let [_, with] = both(&of(""));
    assert_eq!(with, "mul: x, g -> mul\n");
    // A product, a view of it, a reshape, an output.
    for more in [
        "%p = einsum \"a,ab->b\" %y, %w : f32[8] ; forward\n%q = neg %p : f32[8] ; forward",
        "%p = slice dim=0 start=1 step=2 %y : f32[32] ; forward\n%q = neg %p : f32[32] ; forward",
        "%q = reshape %y : f32[8, 8] ; forward",
        "%q = neg %y : f32[64] ; forward\noutput result \"y\" %y",
    ] {
        same(&(of(more) + "\noutput result \"q\" %q"));
    }
}

/// The operand of a collective must be in memory.
#[test]
fn what_is_sent_is_kept() {
    let with = same(
        "mesh <tp=2>
%x = input data \"x\" : f32[7@tp]
%g = input data \"g\" : f32[7@tp]
%y = mul %x, %x : f32[7@tp] ; forward
%s = all_gather tp dim=0 %y : f32[7] ; forward
%z = mul %g, %y : f32[7@tp] ; backward
output result \"s\" %s
output result \"z\" %z",
    );
    assert_eq!(with, "mul: x -> mul\nall_gather\nmul: g, mul -> mul\n");
}

#[test]
fn what_comes_from_an_all_reduce_is_read_again_where_it_lies() {
    let [_, with] = both(
        "mesh <tp=2>
%x = input data \"x\" : f32[6, 5@tp]
%w = input data \"w\" : f32[5@tp, 9]
%g = input data \"g\" : f32[6, 9]
%p = einsum \"ab,bc->ac\" %x, %w : f32[6, 9] +sum@tp ; forward
%r = all_reduce tp sum %p : f32[6, 9] ; forward
%y = max %r, f32:0.0 : f32[6, 9] ; forward
%s = reduce_sum \"ab->\" %y : f32[] ; forward
%z = mul %g, %y : f32[6, 9] ; backward
output result \"s\" %s
output result \"z\" %z",
    );
    assert_eq!(with, "einsum\nall_reduce\nfused reduce (2): einsum -> reduce_sum\nmul: einsum, g -> mul\n");
}

/// Random numbers, reductions and products are never recomputed; values computed from them may be.
#[test]
fn random_numbers_reductions_and_products_are_not_repeated() {
    let [_, with] = both(
        "mesh <>
%seed = input scalar \"seed\" : i64[]
%x = input data \"x\" : f32[16, 8]
%g = input data \"g\" : f32[16, 8]
%k = random bernoulli(0.5) stream=3 %seed : bool[16, 8] ; forward
%c = cast.f32 %k : f32[16, 8] ; forward
%y = mul %x, %c : f32[16, 8] ; forward
%s = reduce_sum \"ab->\" %y : f32[] ; forward
%z = mul %g, %c : f32[16, 8] ; backward
output result \"s\" %s
output result \"z\" %z",
    );
    // One byte instead of four.
    assert_eq!(with.lines().next(), Some("fused reduce (4): seed, x -> random, reduce_sum"));
    assert_eq!(with.lines().last(), Some("mul: random, g -> mul"));
}

/// A loop that reads a value in two orders would have to compute it twice.
#[test]
fn a_value_that_is_read_in_two_orders_is_kept() {
    same(
        "mesh <>
%x = input data \"x\" : f32[8, 8]
%y = mul %x, %x : f32[8, 8] ; forward
%z = add \"ab,ba->ab\" %y, %y : f32[8, 8] ; backward
output result \"z\" %z",
    );
    // A loop that reads it in one other order recomputes it there.
    let [_, with] = both(
        "mesh <>
%x = input data \"x\" : f32[8, 8]
%g = input data \"g\" : f32[8, 8]
%y = mul %x, %x : f32[8, 8] ; forward
%z = add \"ab,ba->ba\" %g, %y : f32[8, 8] ; backward
output result \"z\" %z",
    );
    assert_eq!(with, "add: x, g -> add\n");
}

/// An input that is overwritten in the meantime no longer has its old value, and recomputation must not delay the
/// overwriting.
#[test]
fn what_is_made_of_an_input_is_kept_if_the_input_is_updated_before() {
    let lines = "mesh <>
%c = input state \"c\" : f32[64]
%x = input data \"x\" : f32[64]
%w = input data \"w\" : f32[64, 64]
%y = mul %c, %c : f32[64] ; forward
%n = add %c, %x : f32[64] ; forward
%p = einsum \"a,ab->b\" %n, %w : f32[64] ; forward
%z = mul %p, %y : f32[64] ; backward
output update \"c\" %n
output result \"z\" %z";
    let with = same(lines);
    assert_eq!(with, "fused map (2): c, x -> mul, c\neinsum\nmul: einsum, mul -> mul\n");
    // By the loops of the optimizer, and through a view.
    let seen =
        lines.replace("%y = mul %c, %c", "%v = slice dim=0 start=0 step=1 %c : f32[64] ; forward\n%y = mul %v, %v");
    same(&seen);
    // Before the update it is like any other input.
    let early = lines.replace("%n = add %c, %x : f32[64] ; forward\n", "").replace("%n, %w", "%x, %w");
    let early = early.replace("output update", "%n = add %c, %x : f32[64] ; optimizer\noutput update");
    let [_, with] = both(&early);
    assert_eq!(with, "einsum\nmul: c, einsum -> mul\nadd: c, x -> c\n");
}

/// A reshape shares the memory of its operand, so it does not protect from an update in place.
#[test]
fn a_reshape_of_an_updated_input_is_read_before_the_update() {
    let with = same(
        "mesh <>
%p = input parameter \"p\" : f32[8, 8]
%g = input data \"g\" : f32[8, 8]
%f = input data \"f\" : f32[64]
%r = reshape %p : f32[64] ; forward
%n = sub %p, %g : f32[8, 8] ; optimizer
%z = add %r, %f : f32[64] ; optimizer
output update \"p\" %n
output result \"z\" %z",
    );
    assert_eq!(with.lines().last(), Some("copy update"));
    same(
        "mesh <>
%p = input parameter \"p\" : f32[8, 8]
%g = input data \"g\" : f32[8, 8]
%f = input data \"f\" : f32[64]
%r = reshape %p : f32[64] ; forward
%y = mul %r, %r : f32[64] ; forward
%s = reduce_sum \"a->\" %y : f32[] ; forward
%n = sub %p, %g : f32[8, 8] ; optimizer
%z = add %y, %f : f32[64] ; optimizer
output update \"p\" %n
output result \"s\" %s
output result \"z\" %z",
    );
}

/// A loop over more than the input's elements would read elements that it has just written.
#[test]
fn an_update_in_a_larger_loop_happens_once() {
    same(
        "mesh <>
%p = input parameter \"p\" : f32[8]
%g = input data \"g\" : f32[8]
%x = input data \"x\" : f32[16, 8]
%n = mul %p, %g : f32[8] ; optimizer
%y = add \"b,ab->ab\" %n, %x : f32[16, 8] ; optimizer
output update \"p\" %n
output result \"y\" %y",
    );
}

/// A loop that keeps a row of a matrix alive keeps the whole matrix.
#[test]
fn a_view_holds_all_that_it_is_a_view_of() {
    same(
        "mesh <>
%x = input data \"x\" : f32[100, 8]
%v = input data \"v\" : f32[8]
%h = mul %x, %x : f32[100, 8] ; forward
%i = index dim=0 index=3 %h : f32[8] ; forward
%y = add %i, %v : f32[8] ; forward
%k = einsum \"ab,ab->\" %h, %h : f32[] ; forward
%b = add %x, %x : f32[100, 8] ; backward
%c = einsum \"ab,b->a\" %b, %v : f32[100] ; backward
%z = mul %y, %v : f32[8] ; backward
output result \"k\" %k
output result \"c\" %c
output result \"z\" %z",
    );
}

/// The parameters of a block are gathered together: keeping one of them alive keeps all of them.
#[test]
fn a_gathered_parameter_is_not_held_until_the_backward_pass() {
    let graph = program(
        "mesh <dp=2>
%w = input parameter \"l.0.w\" : f32[16@dp, 16]
%b = input parameter \"l.0.b\" : f32[16@dp]
%x = input data \"x\" : f32[4, 16]
%wg = all_gather dp dim=0 %w : f32[16, 16] ; forward
%bg = all_gather dp dim=0 %b : f32[16] ; forward
%z = add \"ab,b->ab\" %x, %bg : f32[4, 16] ; forward
%q = einsum \"ab,bc->ac\" %x, %wg : f32[4, 16] ; forward
%t = reduce_sum \"ab->\" %z : f32[] ; forward
%u = einsum \"ab,ac->bc\" %q, %x : f32[16, 16] ; backward
%v = einsum \"ab,bc->ac\" %x, %u : f32[4, 16] ; backward
%y = mul %z, %v : f32[4, 16] ; backward
output result \"t\" %t
output result \"y\" %y",
    );
    let [.., with, _] = agree(&graph);
    assert!(outline(&with[0]).lines().last().unwrap().contains("add"), "{}", outline(&with[0]));
}

/// An expensive function is not recomputed for every row if it was computed once.
#[test]
fn a_table_is_not_made_again_for_every_row() {
    let lines = "mesh <>
%f = input data \"f\" : f64[32]
%x = input data \"x\" : f64[ROWS, 32]
%c = cos %f : f64[32] ; forward
%y = mul \"ab,b->ab\" %x, %c : f64[ROWS, 32] ; backward
output result \"y\" %y";
    same(&lines.replace("ROWS", "10"));
    let [_, with] = both(&lines.replace("[ROWS, 32]", "[32]").replace("ab", "b"));
    assert_eq!(with, "mul: f, x -> mul\n");
}

/// Loops of one micro-batch recompute values of another.
#[test]
fn micro_batches_and_phases() {
    let [_, with] = both(
        "mesh <>
%x = input data \"x\" : bf16[9, 8]
%w = input parameter \"w\" : bf16[8]
%a0 = mul \"ab,b->ab\" %x, %w : bf16[9, 8] ; forward micro 0 in a
%s0 = reduce_sum \"ab->a\" %a0 : bf16[9] ; forward micro 0 in a
%d0 = mul \"ab,a->ab\" %a0, %s0 : bf16[9, 8] ; backward micro 0 in a
%g0 = reduce_sum \"ab->b\" %d0 : bf16[8] ; backward micro 0 in a
%g1 = reduce_max \"ab->b\" %a0 : bf16[8] ; backward micro 1 in a
%g = add %g0, %g1 : bf16[8] ; optimizer
%n = sub %w, %g : bf16[8] ; optimizer
output update \"w\" %n
output result \"s\" %s0",
    );
    assert!(with.starts_with("fused reduce (2): x, w -> reduce_sum\n"), "{with}");
}

/// Ranks whose shards are smaller or empty do what rank 0 does.
#[test]
fn uneven_and_empty_shards() {
    for size in [1, 3, 5] {
        let lines = "mesh <a=2, b=2>
%x = input data \"x\" : f64[N@(a,b), 3]
%g = input data \"g\" : f64[N@(a,b), 3]
%y = mul %x, %x : f64[N@(a,b), 3] ; forward
%s = reduce_sum \"ab->b\" %y : f64[3] +sum@(a,b) ; forward
%r = all_reduce (a,b) sum %s : f64[3] ; forward
%z = mul %g, %y : f64[N@(a,b), 3] ; backward
output result \"r\" %r
output result \"z\" %z";
        let [_, with] = both(&lines.replace('N', &size.to_string()));
        assert_eq!(with.lines().last(), Some("mul: x, g -> mul"));
    }
}

/// Values without dimensions.
#[test]
fn scalars() {
    both(
        "mesh <>
%a = input scalar \"a\" : f64[]
%x = input data \"x\" : f64[5]
%b = mul %a, %a : f64[] ; forward
%c = add %b, f64:1.0 : f64[] ; forward
%y = mul \"a,->a\" %x, %c : f64[5] ; backward
%z = mul \"a,->a\" %y, %b : f64[5] ; optimizer
output result \"z\" %z",
    );
}

/// A value that attention computes is in memory, whichever operation reads it.
#[test]
fn results_of_attention_are_in_memory() {
    let graph = program(
        "mesh <>
%q = input data \"q\" : f32[2, 5, 4]
%k = input data \"k\" : f32[2, 7, 4]
%v = input data \"v\" : f32[2, 7, 3]
%r = input data \"r\" : f32[2, 5, 3]
%s = einsum \"hri,hci->hrc\" %q, %k : f32[2, 5, 7]
%m = reduce_max \"hrc->hr\" %s : f32[2, 5]
%x = sub \"hrc,hr->hrc\" %s, %m : f32[2, 5, 7]
%e = exp %x : f32[2, 5, 7]
%l = reduce_sum \"hrc->hr\" %e : f32[2, 5]
%p = div \"hrc,hr->hrc\" %e, %l : f32[2, 5, 7]
%o = einsum \"hrc,hcw->hrw\" %p, %v : f32[2, 5, 3]
%y = neg %o : f32[2, 5, 3]
%t = reduce_sum \"hrw->\" %y : f32[]
%z = mul %y, %r : f32[2, 5, 3] ; backward
output result \"t\" %t
output result \"z\" %z",
    );
    for ranks in agree(&graph) {
        assert_eq!(ranks[0].steps.iter().filter(|s| &*s.label == "attention").count(), 1, "{}", outline(&ranks[0]));
    }
    let [.., with, _] = agree(&graph);
    assert_eq!(outline(&with[0]).lines().last(), Some("mul: einsum, r -> mul"));
}
