//! x
use tpc_passes::lower::LowerOptions;
use tpc_tests::named::program;
use tpc_tests::switches::{WAYS, idle_loops, integers, lowered, moved_bytes};
use tpc_tests::{executed_programs, on_ranks};
#[test]
fn all() {
    let graph = program(
        r##"mesh <x=2>
%v0 = input parameter "i0"  : f64[8]
%v1 = input state "i1"  : f64[33@x, 8]
%v2 = input parameter "i2"  : f64[8]
%v3 = input data "i3"  : f64[8]
%v4 = input state "i4"  : f64[8]
%v5 = input state "i5"  : f64[33@x, 8]
%v6 = input data "seed"  : i64[]
%v7 = to_partial x sum %v2 : f64[8] +sum@x ; forward
%v8 = abs "a->a" %v3 : f64[8] ; forward
%v9 = einsum "a,a->a" %v4, %v8 : f64[8] ; forward
%v10 = sub "cb,cb->cb" %v1, %v1 : f64[33@x, 8] ; forward
%v11 = reduce_sum "a->" %v9 : f64[] ; forward
%v12 = reduce_scatter x sum dim=0 %v7 : f64[8@x] ; forward
%v13 = add "a,ca->ac" %v4, %v5 : f64[8, 33@x] ; forward
%v14 = exp "ca->ca" %v5 : f64[33@x, 8] ; forward
%v15 = reduce_scatter x sum dim=0 %v7 : f64[8@x] ; backward
%v16 = sigmoid "cb->cb" %v10 : f64[33@x, 8] ; backward
%v17 = reduce_max "ca->" %v14 : f64[] +max@x ; backward
%v18 = reduce_max "ca->a" %v5 : f64[8] +max@x ; backward
%v19 = sub "cb,cb->cb" %v1, %v1 : f64[33@x, 8] ; backward
%v20 = reduce_max "cb->c" %v19 : f64[33@x] ; backward
%v21 = random bernoulli(0.5) stream=21 %v6 : bool[8@x] ; backward
%v22 = select "d,d,->d" %v21, %v12, f64:0.0 : f64[8@x] ; backward
%v23 = sigmoid "c->c" %v20 : f64[33@x] ; backward
%v24 = all_reduce x sum %v7 : f64[8] ; optimizer
%v25 = slice dim=0 start=1 step=1 %v24 : f64[7] ; optimizer
%v26 = shard_slice x dim=0 %v25 : f64[7@x] ; optimizer
%v27 = all_reduce x max %v17 : f64[] ; optimizer
%v28 = mul "a,a->a" %v2, %v9 : f64[8] ; optimizer
%v29 = erf "d->d" %v12 : f64[8@x] ; optimizer
%v30 = cast.f64 "d->d" %v15 : f64[8@x] ; optimizer
%v31 = sub "ca,ca->ca" %v5, %v14 : f64[33@x, 8] ; optimizer
%v32 = mul "ac,->ac" %v13, f64:-1.0 : f64[8, 33@x] ; optimizer
%v33 = add "a,ca->ac" %v28, %v31 : f64[8, 33@x] ; optimizer
%v34 = sub "a,a->a" %v4, %v9 : f64[8] ; optimizer
%v35 = all_reduce x max %v18 : f64[8] ; optimizer
output update "i1" %v19
output update "i2" %v28
output update "i5" %v31
output update "i4" %v34
output result "r0" %v11
output result "r1" %v13
output result "r2" %v16
output result "r3" %v35
output result "r4" %v22
output result "r5" %v23
output result "r6" %v26
output result "r7" %v27
output result "r8" %v30
output result "r9" %v32
output result "r10" %v33
output result "r11" %v34
"##,
    );
    let inputs = integers(&graph);
    let want = on_ranks(&graph, &inputs);
    for w in WAYS {
        for base in [LowerOptions::plain(), LowerOptions { memory_growth: 10.0, ..LowerOptions::default() }] {
            let p = lowered(&graph, w, &base);
            println!(
                "== {w:?} arena {} moved {} idle {}\n{}",
                p[0].arena_bytes,
                moved_bytes(&p[0]),
                idle_loops(&p[0]),
                p[0].to_text()
            );
            let got = executed_programs(&graph, p, &inputs);
            println!("wrong {:?}", tpc_tests::wrong(&graph, &got, &want, 1e-6));
        }
    }
}
