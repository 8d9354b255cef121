//! Products on random strided shapes, compared with naive loops; the data are integers, so results are exact.

pub(crate) mod support;

use support::*;
use tpc_ir::DType;
use tpc_ir::program::*;

/// Dense strides of the listed dimensions in a random order.
fn layout(rng: &mut Lcg, sizes: &[usize]) -> Vec<isize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    if rng.below(3) > 0 {
        for i in (1..order.len()).rev() {
            order.swap(i, rng.below(i + 1));
        }
    }
    let mut strides = vec![0; sizes.len()];
    let mut next = 1;
    for &d in order.iter().rev() {
        strides[d] = next as isize;
        next *= sizes[d];
    }
    strides
}

fn offsets(dims: &[ContractDim], stride: fn(&ContractDim) -> isize) -> Vec<isize> {
    dims.iter()
        .fold(vec![0], |all, d| all.iter().flat_map(|o| (0..d.size as isize).map(move |i| o + i * stride(d))).collect())
}

fn run(rng: &mut Lcg, sizes: [Vec<usize>; 4], dtypes: [DType; 3], scale: f64) {
    let [b, m, n, k] =
        sizes.map(|s| s.into_iter().map(|size| ContractDim { size, left: 0, right: 0, out: 0 }).collect::<Vec<_>>());
    let size = |d: &[ContractDim]| d.iter().map(|d| d.size).collect::<Vec<_>>();
    let left = layout(rng, &[size(&b), size(&m), size(&k)].concat());
    let right = layout(rng, &[size(&b), size(&k), size(&n)].concat());
    let out = layout(rng, &[size(&b), size(&m), size(&n)].concat());
    let (mut b, mut m, mut n, mut k) = (b, m, n, k);
    for (i, d) in b.iter_mut().chain(&mut m).chain(&mut k).enumerate() {
        d.left = left[i];
    }
    for (i, d) in b.iter_mut().chain(&mut k).chain(&mut n).enumerate() {
        d.right = right[i];
    }
    for (i, d) in b.iter_mut().chain(&mut m).chain(&mut n).enumerate() {
        d.out = out[i];
    }
    let total = |d: &[ContractDim]| d.iter().map(|d| d.size).product::<usize>();
    let (nb, nm, nn, nk) = (total(&b), total(&m), total(&n), total(&k));
    let mut builder = Builder::new();
    let l = builder.input("l", dtypes[0], &[nb * nm * nk]);
    let r = builder.input("r", dtypes[1], &[nb * nk * nn]);
    let o = builder.buffer(dtypes[2], &[nb * nm * nn]);
    builder.output("o", &o);
    let text = format!("b {b:?} m {m:?} n {n:?} k {k:?} {dtypes:?}");
    let (x, y) = (rng.integers(nb * nm * nk), rng.integers(nb * nk * nn));
    let mut want = vec![0.0; nb * nm * nn];
    let (bl, br, bo) = (offsets(&b, |d| d.left), offsets(&b, |d| d.right), offsets(&b, |d| d.out));
    let (ml, mo, kl) = (offsets(&m, |d| d.left), offsets(&m, |d| d.out), offsets(&k, |d| d.left));
    let (kr, nr, no) = (offsets(&k, |d| d.right), offsets(&n, |d| d.right), offsets(&n, |d| d.out));
    for bi in 0..nb {
        for mi in 0..nm {
            for ni in 0..nn {
                let term = |ki: usize| x[(bl[bi] + ml[mi] + kl[ki]) as usize] * y[(br[bi] + kr[ki] + nr[ni]) as usize];
                want[(bo[bi] + mo[mi] + no[ni]) as usize] = dtypes[2].round(scale * (0..nk).map(term).sum::<f64>());
            }
        }
    }
    builder.step(Action::Contract(Contract {
        left: l,
        right: r,
        out: o,
        batch: b,
        m,
        n,
        k,
        scale,
        epilogue: Vec::new(),
    }));
    let mut session = builder.launch();
    session.write_f64("l", &x).unwrap();
    session.write_f64("r", &y).unwrap();
    for _ in 0..2 {
        session.step().unwrap();
        let got = session.read_f64(&result("o")).unwrap();
        if let Some(i) = (0..want.len()).find(|&i| got[i] != want[i]) {
            panic!("{text}: element {i} is {} not {}", got[i], want[i]);
        }
    }
}

#[test]
pub(crate) fn random_shapes_and_strides() {
    let mut rng = Lcg(4);
    for _ in 0..250 {
        let sizes = [0, 1, 1, 2, 3, 5, 8, 17, 33];
        let mut group = |most: usize, sizes: &[usize]| -> Vec<usize> {
            (0..rng.below(most + 1)).map(|_| sizes[rng.below(sizes.len())]).collect()
        };
        let dims = [group(2, &sizes[1..5]), group(2, &sizes), group(2, &sizes), group(2, &sizes)];
        let dtype = [DType::F32, DType::F64][rng.below(2)];
        run(&mut rng, dims, [dtype; 3], 0.5);
    }
}

#[test]
pub(crate) fn large_and_skinny_shapes() {
    let mut rng = Lcg(5);
    for (m, n, k) in
        [(130, 1100, 530), (1, 300, 600), (300, 1, 600), (1, 1, 5000), (7, 33, 513), (25, 17, 257), (256, 512, 64)]
    {
        for _ in 0..4 {
            for dtype in [DType::F32, DType::F64] {
                run(&mut rng, [vec![], vec![m], vec![n], vec![k]], [dtype; 3], 1.0);
            }
        }
    }
    // Heads: rows and sums over two dimensions each, interleaved in memory.
    run(&mut rng, [vec![2, 4], vec![33], vec![35], vec![16]], [DType::F32; 3], 0.25);
    run(&mut rng, [vec![], vec![2, 60], vec![4, 16], vec![3, 100]], [DType::F32; 3], 1.0);
}

/// Sums over two dimensions that are in different orders in the two operands, which a library can only compute after
/// packing one of them.
#[test]
pub(crate) fn sums_over_dimensions_that_do_not_nest() {
    let mut rng = Lcg(8);
    for _ in 0..12 {
        let dtype = [DType::F32, DType::F64][rng.below(2)];
        run(&mut rng, [vec![2, 2], vec![40], vec![48], vec![4, 40]], [dtype; 3], 0.5);
        run(&mut rng, [vec![3], vec![5, 8], vec![6, 9], vec![3, 4, 16]], [dtype; 3], 1.0);
    }
}

#[test]
pub(crate) fn every_element_type() {
    let mut rng = Lcg(6);
    for dtype in DType::ALL.into_iter().filter(|&d| d != DType::Bool && d != DType::U8) {
        for k in [4, 20, 530] {
            run(&mut rng, [vec![2], vec![9], vec![18], vec![k]], [dtype; 3], 1.0);
        }
    }
    run(&mut rng, [vec![], vec![9], vec![18], vec![530]], [DType::BF16, DType::BF16, DType::F32], 1.0);
    run(&mut rng, [vec![], vec![9], vec![18], vec![30]], [DType::F32, DType::BF16, DType::F32], 1.0);
    run(&mut rng, [vec![], vec![9], vec![18], vec![30]], [DType::F32, DType::F64, DType::F64], 1.0);
}
