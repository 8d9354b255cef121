//! What this machine can do, measured.

use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Rows and columns of the products: three matrices of this size fit into a core's caches.
const SIZE: usize = 384;

/// How long a thread computes.
const LONG: Duration = Duration::from_millis(60);

/// Floating-point operations a second of f32 products by so many threads at once, each with its own matrices: what ranks that do nothing but
/// products would do together.
pub fn product_rate(threads: usize) -> f64 {
    let together = Barrier::new(threads);
    let one = || {
        let (a, b, mut c) = (vec![0.5f32; SIZE * SIZE], vec![0.25f32; SIZE * SIZE], vec![0f32; SIZE * SIZE]);
        product(&a, &b, &mut c);
        together.wait();
        let (begun, mut products) = (Instant::now(), 0u32);
        while begun.elapsed() < LONG {
            product(&a, &b, &mut c);
            products += 1;
        }
        2.0 * (SIZE * SIZE * SIZE) as f64 * f64::from(products) / begun.elapsed().as_secs_f64()
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).sum()
    })
}

/// `c = a b` of square matrices.
fn product(a: &[f32], b: &[f32], c: &mut [f32]) {
    let stride = SIZE as isize;
    // SAFETY: all three have SIZE rows of SIZE elements, and only `c` is written.
    unsafe {
        gemm::gemm(
            SIZE,
            SIZE,
            SIZE,
            c.as_mut_ptr(),
            1,
            stride,
            false,
            a.as_ptr(),
            1,
            stride,
            b.as_ptr(),
            1,
            stride,
            0f32,
            1f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_what_they_are_counted_as() {
        let (a, b, mut c) = (vec![0.5; SIZE * SIZE], vec![0.25; SIZE * SIZE], vec![1.0; SIZE * SIZE]);
        product(&a, &b, &mut c);
        assert!(c.iter().all(|x| *x == 0.125 * SIZE as f32));
        assert!(product_rate(2) > 0.0);
    }
}
