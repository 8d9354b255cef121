//! What is recognized as attention and what is not: the program means the same either way.

use tpc_ir::program::Action;
use tpc_ir::{DType, text};
use tpc_passes::lower::{LowerOptions, lower_with};
use tpc_passes::targets::Target;
use tpc_tests::named::{inputs, program};
use tpc_tests::{executed_programs, on_ranks, wrong};

/// Runs a program with and without attention kernels, and lists the kernels of rank 0.
fn found(lines: &str) -> String {
    let graph = program(lines);
    let inputs = inputs(&graph);
    let want = on_ranks(&graph, &inputs);
    let mut labels = Vec::new();
    for attention in [true, false] {
        let programs =
            lower_with(&graph, Target::cpu(), &LowerOptions { attention, ..LowerOptions::default() }).unwrap();
        let of = programs[0].steps.iter().filter(|s| s.label.starts_with("attention")).map(|s| s.label.to_string());
        labels.push(of.collect::<Vec<_>>().join(", "));
        let got = executed_programs(&graph, programs, &inputs);
        let tolerance = if graph.nodes().any(|n| graph.node(n).types[0].dtype == DType::BF16) { 3e-2 } else { 2e-5 };
        let wrong = wrong(&graph, &got, &want, tolerance);
        assert!(wrong.is_empty(), "attention {attention}: {wrong:?}\n{}", text::print(&graph));
    }
    assert_eq!(labels[1], "");
    labels.swap_remove(0)
}

const BOTH: &str = "attention, attention backward";

const HEAD: &str = "mesh <>
%q = input data \"q\" : f32[2, 5, 4]
%k = input data \"k\" : f32[2, 7, 4]
%v = input data \"v\" : f32[2, 7, 3]
%g = input data \"g\" : f32[2, 5, 3]
%s0 = einsum \"hri,hci->hrc\" %q, %k : f32[2, 5, 7]";

const SCORE: &str = "%s = mul %s0, f32:0.5 : f32[2, 5, 7]";

const SOFTMAX: &str = "%m = reduce_max \"hrc->hr\" %s : f32[2, 5]
%x = sub \"hrc,hr->hrc\" %s, %m : f32[2, 5, 7]
%e = exp %x : f32[2, 5, 7]
%l = reduce_sum \"hrc->hr\" %e : f32[2, 5]
%p = div \"hrc,hr->hrc\" %e, %l : f32[2, 5, 7]";

const OUT: &str = "%o = einsum \"hrc,hcw->hrw\" %p, %v : f32[2, 5, 3]";

const GRADIENT: &str = "%dp = einsum \"hrw,hcw->hrc\" %g, %v : f32[2, 5, 7]";

/// The form that burn's autodiff writes.
const DIVISION: &str = "%il = recip %l : f32[2, 5]
%a = mul \"hrc,hr->hrc\" %dp, %il : f32[2, 5, 7]
%ne = neg %e : f32[2, 5, 7]
%ll = mul %l, %l : f32[2, 5]
%b = div \"hrc,hr->hrc\" %ne, %ll : f32[2, 5, 7]
%t = mul %dp, %b : f32[2, 5, 7]
%r = reduce_sum \"hrc->hr\" %t : f32[2, 5]
%u = add \"hrc,hr->hrc\" %a, %r : f32[2, 5, 7]
%ds = mul %e, %u : f32[2, 5, 7]";

/// The form of the textbooks.
const TEXTBOOK: &str = "%t = mul %p, %dp : f32[2, 5, 7]
%r = reduce_sum \"hrc->hr\" %t : f32[2, 5]
%u = sub \"hrc,hr->hrc\" %dp, %r : f32[2, 5, 7]
%ds = mul %p, %u : f32[2, 5, 7]";

const UNSCALE: &str = "%d = mul %ds, f32:0.5 : f32[2, 5, 7]";

const ENDS: &str = "%dq = einsum \"hrc,hci->hri\" %d, %k : f32[2, 5, 4]
%dk = einsum \"hrc,hri->hci\" %d, %q : f32[2, 7, 4]
%dv = einsum \"hrc,hrw->hcw\" %p, %g : f32[2, 7, 3]";

const OUTPUTS: &str = "output result \"o\" %o
output result \"dq\" %dq
output result \"dk\" %dk
output result \"dv\" %dv";

fn join(parts: &[&str]) -> String {
    parts.join("\n")
}

fn training() -> String {
    join(&[HEAD, SCORE, SOFTMAX, OUT, GRADIENT, DIVISION, UNSCALE, ENDS, OUTPUTS])
}

#[test]
fn forward_alone() {
    assert_eq!(found(&join(&[HEAD, SCORE, SOFTMAX, OUT, "output result \"o\" %o"])), "attention");
}

#[test]
fn a_softmax_has_one_gradient_however_it_is_written() {
    assert_eq!(found(&training()), BOTH);
    assert_eq!(found(&training().replace(DIVISION, TEXTBOOK)), BOTH);
    // e/l · dp − e · (Σ e · dp) / l²
    let apart = "%ed = mul %e, %dp : f32[2, 5, 7]
%t = reduce_sum \"hrc->hr\" %ed : f32[2, 5]
%ll = mul %l, %l : f32[2, 5]
%tl = div %t, %ll : f32[2, 5]
%a = div \"hrc,hr->hrc\" %ed, %l : f32[2, 5, 7]
%b = mul \"hrc,hr->hrc\" %e, %tl : f32[2, 5, 7]
%ds = sub %a, %b : f32[2, 5, 7]";
    assert_eq!(found(&training().replace(DIVISION, apart)), BOTH);
    // The probabilities computed a second time.
    let again =
        TEXTBOOK.replace("%t =", "%il = recip %l : f32[2, 5]\n%p = mul \"hrc,hr->hrc\" %e, %il : f32[2, 5, 7]\n%t =");
    assert_eq!(found(&training().replace(DIVISION, &again)), BOTH);
}

#[test]
fn something_else_is_no_gradient_of_a_softmax() {
    let wrong = [
        ("%u = sub \"hrc,hr->hrc\" %dp, %r", "%u = add \"hrc,hr->hrc\" %dp, %r"),
        ("%t = mul %p, %dp", "%t = mul %e, %dp"),
        ("%ds = mul %p, %u", "%ds = mul %e, %u"),
        ("%t = mul %p, %dp", "%t = mul %p, %p"),
        ("%ds = mul %p, %u", "%ds = mul %dp, %u"),
    ];
    for (of, by) in wrong {
        let source = training().replace(DIVISION, TEXTBOOK);
        assert!(source.contains(of));
        assert_eq!(found(&source.replace(of, by)), "", "{by}");
    }
}

#[test]
fn who_else_reads_a_value_needs_it() {
    for name in ["s0", "s", "e", "p", "dp", "ds", "d"] {
        let source = training() + &format!("\noutput result \"more\" %{name}");
        assert_eq!(found(&source), "", "{name}");
    }
    // The gradient of a bias is a sum of the score's gradient.
    let bias = join(&[
        &HEAD.replace("%s0 =", "%bias = input data \"bias\" : f32[5, 7]\n%s0 ="),
        "%s = add \"hrc,rc->hrc\" %s0, %bias : f32[2, 5, 7]",
        SOFTMAX,
        OUT,
        GRADIENT,
        DIVISION,
    ]);
    let ends = ENDS.replace("%d,", "%ds,");
    assert_eq!(found(&join(&[&bias, &ends, OUTPUTS])), BOTH);
    let more = "%db = reduce_sum \"hrc->rc\" %ds : f32[5, 7]\noutput result \"db\" %db";
    assert_eq!(found(&join(&[&bias, &ends, OUTPUTS, more])), "");
}

#[test]
fn some_gradients_are_not_wanted() {
    for keep in [[true, false, true], [false, true, false], [true, true, false], [false, true, true]] {
        let mut source = training();
        for (name, keep) in ["dq", "dk", "dv"].iter().zip(keep) {
            if !keep {
                let drop = |l: &&str| !l.starts_with(&format!("%{name} =")) && !l.ends_with(&format!("%{name}"));
                source = source.lines().filter(drop).collect::<Vec<_>>().join("\n");
            }
        }
        assert_eq!(found(&source), BOTH, "{keep:?}");
    }
}

#[test]
fn gradients_come_in_any_order() {
    let ends: Vec<&str> = ENDS.lines().collect();
    let parts = [GRADIENT, DIVISION, UNSCALE, ends[0], ends[1], ends[2]];
    let in_order = |order: &[usize]| {
        let all: Vec<&str> = order.iter().map(|&i| parts[i]).collect();
        join(&[HEAD, SCORE, SOFTMAX, OUT, &all.join("\n"), OUTPUTS])
    };
    for order in [[5, 0, 1, 2, 3, 4], [0, 5, 1, 2, 3, 4], [0, 1, 5, 2, 4, 3], [0, 1, 2, 4, 5, 3]] {
        assert_eq!(found(&in_order(&order)), BOTH, "{order:?}");
    }
}

#[test]
fn masks_are_made_inside() {
    let mask = "%i = iota : i64[5]
%j = iota : i64[7]
%later = gt \"r,c->rc\" %j, %i : bool[5, 7]
%far = lt \"r,c->rc\" %j, %i : bool[5, 7]
%hidden = and %later, %far : bool[5, 7]
%pad = input data \"pad\" : i64[2, 7]
%padded = eq %pad, i64:0 : bool[2, 7]
%any = or \"rc,hc->hrc\" %hidden, %padded : bool[2, 5, 7]";
    let mask = mask
        .replace("gt \"r,c->rc\" %j, %i", "gt \"c,r->rc\" %j, %i")
        .replace("lt \"r,c->rc\" %j, %i", "lt \"c,r->rc\" %j, %i");
    let scored =
        "%z = mul %s0, f32:0.5 : f32[2, 5, 7]\n%s = select \"hrc,,hrc->hrc\" %any, f32:-1e30, %z : f32[2, 5, 7]";
    let back = "%y = select \"hrc,,hrc->hrc\" %any, f32:0.0, %ds : f32[2, 5, 7]\n%d = mul %y, f32:0.5 : f32[2, 5, 7]";
    let head = HEAD.replace("%s0 =", &format!("{mask}\n%s0 ="));
    let source = join(&[&head, scored, SOFTMAX, OUT, GRADIENT, DIVISION, back, ENDS, OUTPUTS]);
    assert_eq!(found(&source), BOTH);
    let programs = lower_with(&program(&source), Target::cpu(), &LowerOptions::default()).unwrap();
    // No mask of rows and columns is stored.
    assert!(
        !programs[0].steps.iter().any(|s| s.label.contains("or") || s.label.contains("gt")),
        "{}",
        programs[0].to_text()
    );
    assert!(programs[0].steps.iter().any(|s| &*s.label == "eq"));
    // The mask is stored if another operation reads it.
    assert_eq!(found(&(source + "\noutput result \"mask\" %any")), BOTH);
}

#[test]
fn dropout_and_functions_of_scores() {
    let mask = "%seed = input scalar \"seed\" : i64[]
%w0 = random bernoulli(0.8) stream=3 %seed : bool[2, 5, 7]
%w = cast.f32 %w0 : f32[2, 5, 7]";
    let head = HEAD.replace("%s0 =", &format!("{mask}\n%s0 ="));
    let dropped = "%pw = mul %p, %w : f32[2, 5, 7]\n%pd = mul %pw, f32:1.25 : f32[2, 5, 7]";
    let out = OUT.replace("%p,", "%pd,");
    let gradient = format!(
        "{}\n%dw = mul %dpd, f32:1.25 : f32[2, 5, 7]\n%dp = mul %dw, %w : f32[2, 5, 7]",
        GRADIENT.replace("%dp ", "%dpd ")
    );
    let ends = ENDS.replace("%p,", "%pd,");
    for softmax in [DIVISION, TEXTBOOK] {
        let source = join(&[&head, SCORE, SOFTMAX, dropped, &out, &gradient, softmax, UNSCALE, &ends, OUTPUTS]);
        assert_eq!(found(&source), BOTH);
        let programs = lower_with(&program(&source), Target::cpu(), &LowerOptions::default()).unwrap();
        assert!(!programs[0].steps.iter().any(|s| s.label.contains("random")), "random numbers are made inside");
        // Another mask in the backward pass.
        assert_eq!(found(&source.replace("%dp = mul %dw, %w", "%dp = mul %dw, %s0")), "");
    }
    let cap =
        "%y = mul %s0, f32:0.5 : f32[2, 5, 7]\n%th = tanh %y : f32[2, 5, 7]\n%s = mul %th, f32:3.0 : f32[2, 5, 7]";
    let back = "%d3 = mul %ds, f32:3.0 : f32[2, 5, 7]
%tt = mul %th, %th : f32[2, 5, 7]
%one = sub f32:1.0, %tt : f32[2, 5, 7]
%d1 = mul %d3, %one : f32[2, 5, 7]
%d = mul %d1, f32:0.5 : f32[2, 5, 7]";
    assert_eq!(found(&join(&[HEAD, cap, SOFTMAX, OUT, GRADIENT, DIVISION, back, ENDS, OUTPUTS])), BOTH);
}

#[test]
fn other_softmaxes_are_not_attention() {
    let forward = join(&[HEAD, SCORE, SOFTMAX, OUT, "output result \"o\" %o"]);
    let not = [
        // The maximum of another value, over another dimension, or none at all.
        ("%m = reduce_max \"hrc->hr\" %s ", "%m = reduce_max \"hrc->hr\" %s0 "),
        ("%e = exp %x", "%e = exp %s"),
        ("%l = reduce_sum \"hrc->hr\" %e", "%l = reduce_sum \"hrc->hr\" %s"),
        ("%p = div \"hrc,hr->hrc\" %e, %l", "%p = div \"hrc,hr->hrc\" %e, %m"),
        ("einsum \"hrc,hcw->hrw\" %p, %v", "einsum \"hrc,hcw->hrw\" %e, %v"),
    ];
    for (of, by) in not {
        assert!(forward.contains(of), "{of}");
        assert_eq!(found(&forward.replace(of, by)), "", "{by}");
    }
    // Also summed over heads.
    let heads = forward.replace("\"hrc,hcw->hrw\" %p, %v : f32[2, 5, 3]", "\"hrc,hcw->rw\" %p, %v : f32[5, 3]");
    assert_eq!(found(&heads), "");
}

#[test]
fn shared_heads_transposed_operands_and_no_batch() {
    // Two query heads for each key head, with queries as `[row, head, …]`; the gradients of the group are sums.
    let source = "mesh <>
%q = input data \"q\" : f32[5, 2, 3, 4]
%k = input data \"k\" : f32[2, 4, 7]
%v = input data \"v\" : f32[7, 2, 3]
%g = input data \"g\" : f32[5, 2, 3, 3]
%s = einsum \"rhni,hic->hnrc\" %q, %k : f32[2, 3, 5, 7]
%m = reduce_max \"hnrc->rnh\" %s : f32[5, 3, 2]
%x = sub \"hnrc,rnh->hnrc\" %s, %m : f32[2, 3, 5, 7]
%e = exp %x : f32[2, 3, 5, 7]
%l = reduce_sum \"hnrc->hnr\" %e : f32[2, 3, 5]
%p = div \"hnrc,hnr->cnrh\" %e, %l : f32[7, 3, 5, 2]
%o = einsum \"cnrh,chw->rhnw\" %p, %v : f32[5, 2, 3, 3]
%dp = einsum \"rhnw,chw->hnrc\" %g, %v : f32[2, 3, 5, 7]
%t = mul \"cnrh,hnrc->hnrc\" %p, %dp : f32[2, 3, 5, 7]
%z = reduce_sum \"hnrc->hnr\" %t : f32[2, 3, 5]
%u = sub \"hnrc,hnr->hnrc\" %dp, %z : f32[2, 3, 5, 7]
%ds = mul \"cnrh,hnrc->hnrc\" %p, %u : f32[2, 3, 5, 7]
%dq = einsum \"hnrc,hic->rhni\" %ds, %k : f32[5, 2, 3, 4]
%dk = einsum \"hnrc,rhni->ihc\" %ds, %q : f32[4, 2, 7]
%dv = einsum \"cnrh,rhnw->hwc\" %p, %g : f32[2, 3, 7]
output result \"o\" %o
output result \"dq\" %dq
output result \"dk\" %dk
output result \"dv\" %dv";
    assert_eq!(found(source), BOTH);
    // Only one row, therefore no dimension of rows.
    let one = "mesh <>
%q = input data \"q\" : f32[4]
%k = input data \"k\" : f32[7, 4]
%v = input data \"v\" : f32[7, 3]
%s = einsum \"i,ci->c\" %q, %k : f32[7]
%m = reduce_max \"c->\" %s : f32[]
%x = sub \"c,->c\" %s, %m : f32[7]
%e = exp %x : f32[7]
%l = reduce_sum \"c->\" %e : f32[]
%p = div \"c,->c\" %e, %l : f32[7]
%o = einsum \"c,cw->w\" %p, %v : f32[3]
output result \"o\" %o";
    assert_eq!(found(one), "attention");
}

#[test]
fn narrow_types_are_computed_wide() {
    let source = training().replace("f32[", "bf16[").replace("f32:", "bf16:");
    assert_eq!(found(&source), BOTH);
    let double = training().replace("f32[", "f64[").replace("f32:", "f64:");
    assert_eq!(found(&double), BOTH);
}

#[test]
fn on_a_mesh() {
    // If heads or rows are cut, each rank computes its shard. If columns are cut, the softmax needs all ranks.
    let cut = |source: &str, axis: char| {
        let of = |c: char| if c == axis { "@tp" } else { "" };
        let (h, r, c) = (of('h'), of('r'), of('c'));
        let mut text = source.replace("mesh <>", "mesh <tp=2>");
        for (from, to) in
            [("[2, 5, 7]", 1), ("[2, 5, 4]", 2), ("[2, 7, 4]", 3), ("[2, 7, 3]", 4), ("[2, 5, 3]", 5), ("[2, 5]", 6)]
        {
            let to = match to {
                1 => format!("[2{h}, 5{r}, 7{c}]"),
                2 => format!("[2{h}, 5{r}, 4]"),
                3 => format!("[2{h}, 7{c}, 4]"),
                4 => format!("[2{h}, 7{c}, 3]"),
                5 => format!("[2{h}, 5{r}, 3]"),
                _ => format!("[2{h}, 5{r}]"),
            };
            text = text.replace(from, &to);
        }
        text
    };
    assert_eq!(found(&cut(&training(), 'h')), BOTH);
    let forward = join(&[HEAD, SCORE, SOFTMAX, OUT, "output result \"o\" %o"]);
    assert_eq!(found(&cut(&forward, 'r')), "attention");
    let reduced = cut(&forward, 'c')
        .replace(
            "%m = reduce_max \"hrc->hr\" %s : f32[2, 5]",
            "%m0 = reduce_max \"hrc->hr\" %s : f32[2, 5] +max@tp\n%m = all_reduce tp max %m0 : f32[2, 5]",
        )
        .replace(
            "%l = reduce_sum \"hrc->hr\" %e : f32[2, 5]",
            "%l0 = reduce_sum \"hrc->hr\" %e : f32[2, 5] +sum@tp\n%l = all_reduce tp sum %l0 : f32[2, 5]",
        )
        .replace(
            "%o = einsum \"hrc,hcw->hrw\" %p, %v : f32[2, 5, 3]",
            "%o0 = einsum \"hrc,hcw->hrw\" %p, %v : f32[2, 5, 3] +sum@tp\n%o = all_reduce tp sum %o0 : f32[2, 5, 3]",
        );
    assert_eq!(found(&reduced), "");
}

#[test]
fn a_gradient_that_masks_do_not_make_zero_is_none() {
    // Later columns are masked for all rows of a block; the gradient there is 1, not 0.
    let mask = "%i = iota : i64[5]
%j = iota : i64[7]
%any = gt \"c,r->rc\" %j, %i : bool[5, 7]";
    let head = HEAD.replace("%s0 =", &format!("{mask}\n%s0 ="));
    let scored =
        "%z = mul %s0, f32:0.5 : f32[2, 5, 7]\n%s = select \"rc,,hrc->hrc\" %any, f32:-1e30, %z : f32[2, 5, 7]";
    let with = |back: &str| join(&[&head, scored, SOFTMAX, OUT, GRADIENT, DIVISION, back, ENDS, OUTPUTS]);
    let not = [
        "%d = add %ds, f32:1.0 : f32[2, 5, 7]",
        "%d = add %ds, %s0 : f32[2, 5, 7]",
        "%d = select \"rc,,hrc->hrc\" %any, f32:1.0, %ds : f32[2, 5, 7]",
        "%d = exp %ds : f32[2, 5, 7]",
        "%d = div %s0, %ds : f32[2, 5, 7]",
        "%b = gt %s0, %ds : bool[2, 5, 7]\n%d = select %b, %ds, %s0 : f32[2, 5, 7]",
    ];
    for back in not {
        assert_eq!(found(&with(back)), "", "{back}");
    }
    let linear = [
        "%d = add %ds, %ds : f32[2, 5, 7]",
        "%y = neg %ds : f32[2, 5, 7]\n%d = select \"rc,hrc,->hrc\" %any, %y, f32:0.0 : f32[2, 5, 7]",
        "%y = div %ds, f32:3.0 : f32[2, 5, 7]\n%b = gt %s0, f32:0.5 : bool[2, 5, 7]\n%d = select %b, %ds, %y : f32[2, 5, 7]",
    ];
    for back in linear {
        assert_eq!(found(&with(back)), BOTH, "{back}");
    }
}

#[test]
fn conversions_to_integers_are_not_passed_over() {
    let integers = "%dpi = einsum \"hrw,hcw->hrc\" %g, %v : f32[2, 5, 7]
%dpj = cast.i64 %dpi : i64[2, 5, 7]
%dp = cast.f32 %dpj : f32[2, 5, 7]";
    for softmax in [DIVISION, TEXTBOOK] {
        assert_eq!(found(&training().replace(DIVISION, softmax).replace(GRADIENT, integers)), "");
    }
}

#[test]
fn the_incoming_gradient_is_one_function_of_the_scores() {
    // Both dimensions that the value lacks have the same size; the gradient is also read with the two exchanged.
    let source = |other: &str| {
        format!(
            "mesh <>
%q = input data \"q\" : f32[3, 3, 4]
%k = input data \"k\" : f32[7, 4]
%v = input data \"v\" : f32[7, 2]
%g = input data \"g\" : f32[3, 3, 2]
%s = einsum \"nri,ci->nrc\" %q, %k : f32[3, 3, 7]
%m = reduce_max \"nrc->nr\" %s : f32[3, 3]
%x = sub \"nrc,nr->nrc\" %s, %m : f32[3, 3, 7]
%e = exp %x : f32[3, 3, 7]
%l = reduce_sum \"nrc->nr\" %e : f32[3, 3]
%p = div \"nrc,nr->nrc\" %e, %l : f32[3, 3, 7]
%o = einsum \"nrc,cw->nrw\" %p, %v : f32[3, 3, 2]
%dp = einsum \"nrw,cw->nrc\" %g, %v : f32[3, 3, 7]
%t = mul \"nrc,nrc->nrc\" %p, %dp : f32[3, 3, 7]
%z = reduce_sum \"nrc->nr\" %t : f32[3, 3]
%u = sub \"{other},nr->nrc\" %dp, %z : f32[3, 3, 7]
%ds = mul %p, %u : f32[3, 3, 7]
%dq = einsum \"nrc,ci->nri\" %ds, %k : f32[3, 3, 4]
output result \"o\" %o
output result \"dq\" %dq"
        )
    };
    assert_eq!(found(&source("nrc")), BOTH);
    assert_eq!(found(&source("rnc")), "");
}

#[test]
fn wider_scores_are_computed_wide() {
    let cast = "%s = cast.f64 %s0 : f64[2, 5, 7]";
    let softmax = SOFTMAX.replace("f32", "f64").replace("%p =", "%pp =") + "\n%p = cast.f32 %pp : f32[2, 5, 7]";
    let source = join(&[HEAD, cast, &softmax, OUT, "output result \"o\" %o"]);
    assert_eq!(found(&source), "attention");
    let programs = lower_with(&program(&source), Target::cpu(), &LowerOptions::default()).unwrap();
    let tile = programs[0].steps.iter().find_map(|s| match &s.action {
        Action::Attention(a) => Some(a.tile.dtype),
        _ => None,
    });
    assert_eq!(tile, Some(DType::F64));
}

#[test]
fn what_one_attention_makes_again_another_may_read() {
    let head = HEAD.replace(
        "%s0 =",
        "%i = iota : i64[5]
%j = iota : i64[7]
%ij = sub \"r,c->rc\" %i, %j : i64[5, 7]
%bias = cast.f32 %ij : f32[5, 7]
%k2 = input data \"k2\" : f32[6, 7]
%v2 = input data \"v2\" : f32[6, 3]
%s0 =",
    );
    let second = "%as = einsum \"ri,ci->rc\" %bias, %k2 : f32[5, 6]
%am = reduce_max \"rc->r\" %as : f32[5]
%ax = sub \"rc,r->rc\" %as, %am : f32[5, 6]
%ae = exp %ax : f32[5, 6]
%al = reduce_sum \"rc->r\" %ae : f32[5]
%ap = div \"rc,r->rc\" %ae, %al : f32[5, 6]
%ao = einsum \"rc,cw->rw\" %ap, %v2 : f32[5, 3]
output result \"o\" %o
output result \"ao\" %ao";
    let score = "%s = add \"hrc,rc->hrc\" %s0, %bias : f32[2, 5, 7]";
    assert_eq!(found(&join(&[&head, score, SOFTMAX, OUT, second])), "attention, attention");
}

#[test]
fn ranks_without_rows() {
    // One row for three ranks; in memory the columns are the outer dimension of an empty shard.
    let source = "mesh <tp=3>
%q = input data \"q\" : f32[1@tp, 4]
%k = input data \"k\" : f32[7, 4]
%v = input data \"v\" : f32[7, 3]
%g = input data \"g\" : f32[1@tp, 3]
%s = einsum \"ri,ci->cr\" %q, %k : f32[7, 1@tp]
%m = reduce_max \"cr->r\" %s : f32[1@tp]
%x = sub \"cr,r->cr\" %s, %m : f32[7, 1@tp]
%e = exp %x : f32[7, 1@tp]
%l = reduce_sum \"cr->r\" %e : f32[1@tp]
%p = div \"cr,r->cr\" %e, %l : f32[7, 1@tp]
%o = einsum \"cr,cw->rw\" %p, %v : f32[1@tp, 3]
%dp = einsum \"rw,cw->cr\" %g, %v : f32[7, 1@tp]
%t = mul %p, %dp : f32[7, 1@tp]
%z = reduce_sum \"cr->r\" %t : f32[1@tp]
%u = sub \"cr,r->cr\" %dp, %z : f32[7, 1@tp]
%ds = mul %p, %u : f32[7, 1@tp]
%dq = einsum \"cr,ci->ri\" %ds, %k : f32[1@tp, 4]
%dk0 = einsum \"cr,ri->ci\" %ds, %q : f32[7, 4] +sum@tp
%dv0 = einsum \"cr,rw->cw\" %p, %g : f32[7, 3] +sum@tp
%dk = all_reduce tp sum %dk0 : f32[7, 4]
%dv = all_reduce tp sum %dv0 : f32[7, 3]";
    assert_eq!(found(&join(&[source, OUTPUTS])), BOTH);
    assert_eq!(found(&join(&[source, OUTPUTS, "output result \"p\" %p"])), "");
}
