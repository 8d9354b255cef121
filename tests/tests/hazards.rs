use tpc_tests::named::program;
use tpc_tests::switches::{agree, idle_loops, moved_bytes, outline, WAYS};
fn show(name: &str, lines: &str) {
    let r = std::panic::catch_unwind(|| {
    let graph = program(lines);
    let all = agree(&graph);
    for (w, p) in WAYS.iter().zip(&all) {
        println!("== {name} {w:?} arena {} moved {} idle {}\n{}", p[0].arena_bytes, moved_bytes(&p[0]), idle_loops(&p[0]), outline(&p[0]));
    }
    });
    if r.is_err() { println!("!!!! {name} FAILED"); }
}
#[test]
fn all() {
    // attention output read by one loop
    show("attention", "mesh <>
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
output result \"y\" %y");
    // nothing left in home
    show("idle", "mesh <>
%x = input data \"x\" : f32[64]
%g = input data \"g\" : f32[64]
%y = mul %x, %x : f32[64] ; forward
%z = mul %g, %y : f32[64] ; backward
output result \"z\" %z");
    // cache updated in forward
    show("cache", "mesh <>
%c = input state \"c\" : f32[64]
%x = input data \"x\" : f32[64]
%w = input data \"w\" : f32[64, 64]
%y = mul %c, %c : f32[64] ; forward
%n = add %c, %x : f32[64] ; forward
%p = einsum \"a,ab->b\" %n, %w : f32[64] ; forward
%z = mul %p, %y : f32[64] ; backward
output update \"c\" %n
output result \"z\" %z");
    // reshape of an updated parameter
    show("reshape", "mesh <>
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
output result \"z\" %z");
    show("reshape plain", "mesh <>
%p = input parameter \"p\" : f32[8, 8]
%g = input data \"g\" : f32[8, 8]
%f = input data \"f\" : f32[64]
%r = reshape %p : f32[64] ; forward
%n = sub %p, %g : f32[8, 8] ; optimizer
%z = add %r, %f : f32[64] ; optimizer
output update \"p\" %n
output result \"z\" %z");
    // small math over a large loop
    show("tables", "mesh <>
%f = input data \"f\" : f32[64]
%x = input data \"x\" : f32[100, 64]
%c = cos %f : f32[64] ; forward
%y = mul \"ab,b->ab\" %x, %c : f32[100, 64] ; backward
%z = mul \"ab,b->ba\" %y, %c : f32[64, 100] ; optimizer
output result \"z\" %z");
    // slice holds the whole
    show("slice", "mesh <>
%x = input data \"x\" : f32[1000, 64]
%v = input data \"v\" : f32[64]
%h = mul %x, %x : f32[1000, 64] ; forward
%i = index dim=0 index=3 %h : f32[64] ; forward
%y = add %i, %v : f32[64] ; forward
%k = einsum \"ab,ab->\" %h, %h : f32[] ; forward
%b1 = add %x, %x : f32[1000, 64] ; backward
%b2 = einsum \"ab,b->a\" %b1, %v : f32[1000] ; backward
%z = mul %y, %v : f32[64] ; backward
output result \"k\" %k
output result \"b2\" %b2
output result \"z\" %z");
    // f16 holder of a bf16 sum
    show("f16", "mesh <>
%a = input data \"a\" : bf16[32, 32]
%b = input data \"b\" : bf16[32, 32]
%p = einsum \"ab,bc->ac\" %a, %b : bf16[32, 32]
%p2 = einsum \"ab,cb->ac\" %a, %b : bf16[32, 32]
%s = add %p, %p2 : bf16[32, 32]
%m = mul %s, bf16:0.25 : bf16[32, 32]
%h = cast.f16 %m : f16[32, 32]
output result \"h\" %h");
    show("wide", "mesh <>
%a = input data \"a\" : bf16[32, 32]
%b = input data \"b\" : bf16[32, 32]
%p = einsum \"ab,bc->ac\" %a, %b : bf16[32, 32]
%p2 = einsum \"ab,cb->ac\" %a, %b : bf16[32, 32]
%p3 = einsum \"ab,ac->bc\" %a, %b : bf16[32, 32]
%s = add %p, %p2, %p3 : bf16[32, 32]
%h = cast.f64 %s : f64[32, 32]
output result \"h\" %h");
    show("holds", "mesh <>
%a = input data \"a\" : f32[32, 32]
%b = input data \"b\" : f32[32, 32]
%p = einsum \"ab,bc->ac\" %a, %b : f32[32, 32]
%c1 = mul %a, %a : f32[32, 32]
%c2 = einsum \"ab,bc->ac\" %c1, %b : f32[32, 32]
%c3 = reduce_sum \"ab->\" %c2 : f32[]
%s = add %p, %a : f32[32, 32]
%t = mul %p, %b : f32[32, 32]
%u = einsum \"ab,bc->ac\" %s, %t : f32[32, 32]
%v = einsum \"ab,bc->ac\" %u, %t : f32[32, 32]
output result \"c\" %c3
output result \"h\" %v");
    // a gathered block of parameters, of which one is read again
    show("gathered", "mesh <dp=2>
%w = input parameter \"l.0.w\" : f32[64@dp, 64]
%b = input parameter \"l.0.b\" : f32[64@dp]
%x = input data \"x\" : f32[4, 64]
%wg = all_gather dp dim=0 %w : f32[64, 64] ; forward
%bg = all_gather dp dim=0 %b : f32[64] ; forward
%p = einsum \"ab,bc->ac\" %x, %wg : f32[4, 64] ; forward
%q = einsum \"ab,bc->ac\" %p, %wg : f32[4, 64] ; forward
%z = add \"ab,b->ab\" %x, %bg : f32[4, 64] ; forward
%t = mul %z, %q : f32[4, 64] ; forward
%u = einsum \"ab,ac->bc\" %t, %x : f32[64, 64] ; forward
%v = einsum \"ab,bc->ac\" %t, %u : f32[4, 64] ; backward
%v2 = mul %v, f32:0.0 : f32[4, 64] ; backward
%y = mul %z, %v2 : f32[4, 64] ; backward
output result \"y\" %y");
}
