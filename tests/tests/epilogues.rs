//! What becomes the epilogue of the product before it, and what must not: every program means the same with and without
//! epilogues and moves no more memory.

use tpc_ir::program::{Action, RankProgram};
use tpc_tests::named::program;
use tpc_tests::switches::{agree, most_bytes, moved_bytes, outline};

/// The program of rank 0 with epilogues and without recomputation.
fn joined(lines: &str) -> RankProgram {
    let [without, with, ..] = agree(&program(lines)).map(|ranks| ranks.into_iter().next().unwrap());
    assert!(moved_bytes(&with) <= moved_bytes(&without), "{} bytes moved\n{}", moved_bytes(&with), outline(&with));
    assert!(with.arena_bytes <= without.arena_bytes, "{} bytes\n{}", with.arena_bytes, outline(&with));
    with
}

/// The number of products with an epilogue.
fn count(program: &RankProgram) -> usize {
    program.steps.iter().filter(|s| matches!(&s.action, Action::Contract(c) if !c.epilogue.is_empty())).count()
}

fn assert_is(lines: &str, expected: &str) {
    assert_eq!(outline(&joined(lines)), expected);
}

/// Checks that nothing becomes an epilogue.
fn assert_none(lines: &str) {
    let with = joined(lines);
    assert_eq!(count(&with), 0, "{}", outline(&with));
}

const HEAD: &str = "mesh <>
%x = input data \"x\" : f32[6, 5]
%w = input parameter \"w\" : f32[5, 4]
%v = input parameter \"v\" : f32[5, 4]
%b = input parameter \"b\" : f32[4]
%r = input data \"r\" : f32[6, 4]
%p = einsum \"ab,bc->ac\" %x, %w : f32[6, 4] ; forward
";

/// Appends lines to the head.
fn with(lines: &str) -> String {
    format!("{HEAD}{lines}")
}

#[test]
fn bias_activation_and_residual() {
    assert_is(
        &with(
            "%z = add \"ac,c->ac\" %p, %b : f32[6, 4] ; forward
%a = max %z, f32:0.0 : f32[6, 4] ; forward
%y = add %a, %r : f32[6, 4] ; forward
output result \"y\" %y",
        ),
        "einsum + fused map (3): b, r -> add\n",
    );
    // The epilogue also writes what the backward pass reads.
    assert_is(
        &with(
            "%z = add \"ac,c->ac\" %p, %b : f32[6, 4] ; forward
%a = tanh %z : f32[6, 4] ; forward
output result \"z\" %z
output result \"y\" %a",
        ),
        "einsum + fused map (2): b -> add, tanh\n",
    );
}

#[test]
fn a_product_that_is_read_twice_by_one_loop() {
    assert_is(&with("%y = mul %p, %p : f32[6, 4] ; forward\noutput result \"y\" %y"), "einsum + mul:  -> mul\n");
    assert_is(&with("%y = add %p, %p : f32[6, 4] ; forward\noutput result \"y\" %y"), "einsum + add:  -> add\n");
    // It is read in two orders, so one element of it is not enough.
    assert_none(
        "mesh <>
%x = input data \"x\" : f32[5, 5]
%p = einsum \"ab,bc->ac\" %x, %x : f32[5, 5] ; forward
%y = add \"ac,ca->ac\" %p, %p : f32[5, 5] ; forward
output result \"y\" %y",
    );
}

#[test]
fn who_else_reads_a_product_needs_it() {
    let y = "%y = add %p, %r : f32[6, 4] ; forward\noutput result \"y\" %y";
    assert_eq!(count(&joined(&with(y))), 1);
    assert_none(&with(&format!("{y}\noutput result \"p\" %p")));
    assert_none(&with(&format!("{y}\n%z = mul %p, %r : f32[6, 4] ; backward\noutput result \"z\" %z")));
    assert_none(&with(&format!("%i = index dim=0 index=2 %p : f32[4] ; forward\n{y}\noutput result \"i\" %i")));
    assert_none(&with(&format!("%i = reshape %p : f32[24] ; forward\n{y}\noutput result \"i\" %i")));
    // Another product.
    let seen = "%q = einsum \"ac,bc->ab\" %p, %w : f32[6, 5] ; forward\noutput result \"q\" %q\n";
    assert_none(&with(&format!("{seen}{y}")));
}

/// Loops that reduce, have other elements, or have no element of the product's type.
#[test]
fn what_is_no_epilogue() {
    for lines in [
        "%y = reduce_sum \"ac->a\" %p : f32[6] ; forward\noutput result \"y\" %y",
        "%y = add \"ac,b->abc\" %p, %e : f32[6, 5, 4] ; forward\noutput result \"y\" %y",
        "%y = gt %p, %r : bool[6, 4] ; forward\noutput result \"y\" %y",
        "%y = cast.bf16 %p : bf16[6, 4] ; forward\noutput result \"y\" %y",
        "%y = add \"ac,ac->ca\" %p, %r : f32[4, 6] ; forward\noutput result \"y\" %y",
        "%y = add %p, %r : f32[6, 4] ; backward\noutput result \"y\" %y",
        "%y = add %p, %r : f32[6, 4] ; forward micro 1\noutput result \"y\" %y",
    ] {
        assert_none(&with(lines).replace("%r =", "%e = input data \"e\" : f32[5]\n%r ="));
    }
    // One of several results may have another order or type if another result is like the product.
    let y = "%y = add \"ac,ac->ca\" %p, %r : f32[4, 6] ; forward
%g = gt \"ca,ac->ac\" %y, %r : bool[6, 4] ; forward
%n = neg \"ca->ac\" %y : f32[6, 4] ; forward
output result \"y\" %y
output result \"g\" %g
output result \"n\" %n";
    assert_eq!(count(&joined_unbounded(&with(y))), 1);
}

/// [`joined`] without the limit on results that are in memory together with the product's operands.
fn joined_unbounded(lines: &str) -> RankProgram {
    agree(&program(lines)).into_iter().nth(1).unwrap().into_iter().next().unwrap()
}

/// A program that needs more memory with an epilogue: two results are in memory together with the product's larger
/// operand, which would otherwise have been freed.
#[test]
fn two_results_lie_beside_the_operands() {
    let graph = program(
        "mesh <>
%x = input data \"x\" : f32[64, 256]
%w = input data \"w\" : f32[256, 64]
%a = neg %x : f32[64, 256]
%p = einsum \"ab,bc->ac\" %a, %w : f32[64, 64]
%y = neg %p : f32[64, 64]
%z = abs %y : f32[64, 64]
output result \"y\" %y
output result \"z\" %z",
    );
    let [without, with, ..] = agree(&graph).map(|ranks| ranks.into_iter().next().unwrap());
    let value = 64 * 64 * 4;
    assert_eq!(most_bytes(&without), 5 * value); // a, p
    assert_eq!(most_bytes(&with), 6 * value); // a, y, z
    assert_eq!(moved_bytes(&without), moved_bytes(&with) + 2 * value);
}

#[test]
fn sums_of_products_are_made_in_one_place() {
    let q = "%q = einsum \"ab,bc->ac\" %x, %v : f32[6, 4] ; forward\n";
    let s = "%s = add %p, %q : f32[6, 4] ; forward\noutput result \"s\" %s";
    assert_is(&with(&format!("{q}{s}")), "einsum\neinsum + add: add -> add\n");
    // In any order, with other terms, and with the operations that follow.
    let s = "%s = add \"ac,ac,c,ac->ac\" %q, %r, %b, %p : f32[6, 4] ; forward
%y = max %s, f32:0.0 : f32[6, 4] ; forward\noutput result \"y\" %y";
    assert_is(&with(&format!("{q}{s}")), "einsum\neinsum + fused map (2): max, r, b -> max\n");
    // Three products.
    let t = "%t = einsum \"ac,c->ac\" %r, %b : f32[6, 4] ; forward\n";
    let s = "%s = add %p, %q, %t : f32[6, 4] ; forward\noutput result \"s\" %s";
    assert_is(&with(&format!("{q}{t}{s}")), "einsum\neinsum: add -> add\neinsum + add: add -> add\n");
}

/// Not every sum can be computed where its result is stored.
#[test]
fn terms_that_stay_products_of_their_own() {
    let q = "%q = einsum \"ab,bc->ac\" %x, %v : f32[6, 4] ; forward\n";
    for (lines, expected) in [
        // The same term twice.
        (
            "%q = einsum \"ab,bc->ac\" %x, %v : f32[6, 4] ; forward\n%s = add %p, %p, %q : f32[6, 4] ; forward",
            "einsum\neinsum + add: einsum -> add\n",
        ),
        // Read elsewhere in the loop.
        (
            "%q = einsum \"ab,bc->ac\" %x, %v : f32[6, 4] ; forward\n%m = add %p, %q : f32[6, 4] ; forward
%s = mul %m, %p : f32[6, 4] ; forward",
            "einsum\neinsum + fused map (2): einsum -> mul\n",
        ),
        // In another order.
        (
            "%q = einsum \"ab,bc->ca\" %x, %v : f32[4, 6] ; forward\n%s = add \"ac,ca->ac\" %p, %q : f32[6, 4] ; forward",
            "einsum\neinsum\nadd: einsum, einsum -> add\n",
        ),
    ] {
        assert_is(&with(&format!("{lines}\noutput result \"s\" %s")), expected);
    }
    // The sum itself is kept, and further operations read it.
    let s = "%s = add %p, %q : f32[6, 4] ; forward
%y = mul %s, %r : f32[6, 4] ; forward
output result \"s\" %s
output result \"y\" %y";
    let sums = joined_unbounded(&with(&format!("{q}{s}")));
    assert_eq!(outline(&sums), "einsum\neinsum + fused map (2): mul, r -> add, mul\n");
}

/// The last product takes the sum of products from a loop that does more, unless the rest of the loop reads the terms,
/// too.
#[test]
fn the_sum_of_a_norm() {
    let lines = |square: &str| {
        with(&format!(
            "%q = einsum \"ab,bc->ac\" %x, %v : f32[6, 4] ; forward
%s = add %p, %q, %r : f32[6, 4] ; forward
%m = mul {square} : f32[6, 4] ; forward
%n = reduce_sum \"ac->a\" %m : f32[6] ; forward
%y = mul \"ac,a->ac\" %s, %n : f32[6, 4] ; forward
output result \"y\" %y"
        ))
    };
    assert_is(&lines("%s, %s"), "einsum\neinsum + add: add, r -> add\nfused reduce (3): add -> mul\n");
    let [without, with, ..] = agree(&program(&lines("%s, %r")));
    assert_eq!(outline(&with[0]), outline(&without[0]));
}

/// A sum in a wider type is not accumulated in its own, larger memory.
#[test]
fn results_of_other_types() {
    let lines = |by: &str| {
        format!(
            "mesh <>
%x = input data \"x\" : bf16[6, 5]
%w = input data \"w\" : bf16[5, 4]
%p = einsum \"ab,bc->ac\" %x, %w : bf16[6, 4]
%q = einsum \"ab,bc->ac\" %x, %w : bf16[6, 4]
%s = add %p, %q : bf16[6, 4]
%y = cast.{by} %s : {by}[6, 4]
output result \"y\" %y"
        )
    };
    for wide in ["f32", "f64"] {
        assert_is(&lines(wide), &format!("einsum\neinsum + fused map (2): einsum -> cast.{wide}\n"));
    }
    // An intermediate value that is too large for f16 must not be rounded to it.
    assert_is(&lines("f16"), "einsum\neinsum + add: add -> add\ncast.f16: add -> cast.f16\n");
}

/// A product is not moved after a collective that it hides, nor after an update of what it reads.
#[test]
fn terms_are_not_moved_far() {
    let lines = |between: &str| {
        format!(
            "mesh <tp=2>
%c = input state \"c\" : f32[4]
%x = input data \"x\" : f32[6, 4]
%z = input data \"z\" : f32[4@tp]
%p = einsum \"ab,b->a\" %x, %c : f32[6] ; forward
{between} ; forward
%q = einsum \"ab,b->a\" %x, %n : f32[6] ; forward
%s = add %p, %q : f32[6] ; forward
output result \"s\" %s"
        )
    };
    let sent = lines("%n = all_gather tp dim=0 %z : f32[4]");
    // Their sum is stored where the first term was.
    assert_is(&sent, "einsum\nall_gather\neinsum + add: einsum -> einsum\n");
    let updated = lines("%n = neg %c : f32[4]") + "\noutput update \"c\" %n";
    assert_is(&updated, "einsum\nneg: c -> c\neinsum + add: einsum -> einsum\n");
}

/// The new value of an input is written over it by a loop.
#[test]
fn updates_of_inputs_do_not_join() {
    let lines = "mesh <>
%w = input parameter \"w\" : f32[5, 4]
%x = input data \"x\" : f32[6, 5]
%g = input data \"g\" : f32[6, 4]
%d = einsum \"ab,ac->bc\" %x, %g : f32[5, 4] ; backward
%n = sub %w, %d : f32[5, 4] ; PHASE
output update \"w\" %n";
    for phase in ["optimizer", "backward"] {
        assert_is(&lines.replace("PHASE", phase), "einsum\nsub: w, einsum -> w\n");
    }
}

/// What an epilogue writes can be sent, and an epilogue can read what was received.
#[test]
fn between_collectives() {
    let with = joined(
        "mesh <tp=2>
%x = input data \"x\" : f32[6, 5@tp]
%w = input data \"w\" : f32[5@tp, 7]
%u = input data \"u\" : f32[7, 5@tp]
%r = input data \"r\" : f32[6, 7]
%p = einsum \"ab,bc->ac\" %x, %w : f32[6, 7] +sum@tp
%q = mul %p, f32:2.0 : f32[6, 7] +sum@tp
%s = all_reduce tp sum %q : f32[6, 7]
%t = einsum \"ac,cb->ab\" %s, %u : f32[6, 5@tp]
%y = add %t, %x : f32[6, 5@tp]
%z = all_gather tp dim=1 %y : f32[6, 5]
output result \"z\" %z",
    );
    assert_eq!(outline(&with), "einsum + mul:  -> mul\nall_reduce\neinsum + add: x -> add\nall_gather\n");
}

/// Operands of collectives that share a bucket are written next to each other, also by epilogues.
#[test]
fn operands_of_a_bucket() {
    let with = joined(
        "mesh <dp=2>
%x = input data \"x\" : f32[6@dp, 5]
%w = input data \"w\" : f32[6@dp, 3]
%p = einsum \"ab,ac->bc\" %x, %w : f32[5, 3] +sum@dp ; backward
%q = mul %p, f32:2.0 : f32[5, 3] +sum@dp ; backward
%m = einsum \"ab,ac->cb\" %x, %w : f32[3, 5] +sum@dp ; backward
%n = mul %m, f32:-1.0 : f32[3, 5] +sum@dp ; backward
%s = all_reduce dp sum %q : f32[5, 3] ; backward
%t = all_reduce dp sum %n : f32[3, 5] ; backward
output result \"s\" %s
output result \"t\" %t",
    );
    assert_eq!(count(&with), 2, "{}", outline(&with));
}

/// Attention's results are not products.
#[test]
fn results_of_attention_have_no_epilogue() {
    let with = joined(
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
%y = add %o, %r : f32[2, 5, 3]
output result \"y\" %y",
    );
    assert_eq!(outline(&with), "attention\nadd: einsum, r -> add\n");
}

/// All ranks are executed, also those with small or empty shards.
#[test]
fn uneven_and_empty_shards() {
    for size in [1, 3, 5] {
        let lines = "mesh <a=2, b=2>
%x = input data \"x\" : f64[N@(a,b), 3]
%w = input data \"w\" : f64[3, 7]
%c = input data \"c\" : f64[7]
%p = einsum \"ab,bc->ac\" %x, %w : f64[N@(a,b), 7]
%q = einsum \"ab,cb->ac\" %x, %u : f64[N@(a,b), 7]
%s = add \"ac,c,ac->ac\" %p, %c, %q : f64[N@(a,b), 7]
%y = abs %s : f64[N@(a,b), 7]
output result \"y\" %y";
        let lines = lines.replace("%p =", "%u = input data \"u\" : f64[7, 3]\n%p =").replace('N', &size.to_string());
        assert_is(&lines, "einsum\neinsum + fused map (2): abs, c -> abs\n");
    }
}

/// Products without dimensions, and products that have only the dimensions of both operands.
#[test]
fn products_without_rows_or_columns() {
    assert_is(
        "mesh <>
%x = input data \"x\" : f64[7]
%w = input data \"w\" : f64[7]
%p = einsum \"a,a->\" %x, %w : f64[]
%y = add %p, f64:1.0 : f64[]
%q = einsum \"a,a->a\" %x, %w : f64[7]
%z = sub \"a,->a\" %q, %y : f64[7]
output result \"z\" %z",
        "einsum + add:  -> add\neinsum + sub: add -> sub\n",
    );
}

/// The other operands of an epilogue may be recomputed there.
#[test]
fn an_epilogue_computes_again() {
    let lines = "mesh <>
%x = input data \"x\" : f32[6, 5]
%w = input data \"w\" : f32[5, 4]
%r = input data \"r\" : f32[6, 4]
%g = mul %r, %r : f32[6, 4] ; forward
%t = reduce_sum \"ac->\" %g : f32[] ; forward
%p = einsum \"ab,bc->ac\" %x, %w : f32[6, 4] ; backward
%y = mul %p, %g : f32[6, 4] ; backward
output result \"t\" %t
output result \"y\" %y";
    let [.., both] = agree(&program(lines));
    assert_eq!(outline(&both[0]), "fused reduce (2): r -> reduce_sum\neinsum + mul: r -> mul\n");
}
