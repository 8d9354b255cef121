//! Fits a latency and a rate to times and sizes: the α and β of Hockney's model.

/// The time of an action of some size, in bytes or floating-point operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The size.
    pub size: f64,
    /// Its duration.
    pub seconds: f64,
}

/// A model of times: `latency + size / rate`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// Seconds of an action of size 0.
    pub latency: f64,
    /// Size per second.
    pub rate: f64,
}

/// Seconds; less than any measured action takes.
const LEAST: f64 = 1e-9;

/// The line with the least sum of squared relative errors. Errors are relative because times differ by orders of
/// magnitude; with absolute errors the largest size would also determine the latency. Both numbers are positive for all
/// points.
pub fn line(points: &[Point]) -> Line {
    // The normal equations of ((a + b x) / t - 1)², where x is the size and t the time of a point.
    let sum = |of: fn(&Point) -> f64| points.iter().map(of).sum::<f64>();
    let square = |p: &Point| p.seconds * p.seconds;
    let (w, wx) =
        (points.iter().map(|p| 1.0 / square(p)).sum::<f64>(), points.iter().map(|p| p.size / square(p)).sum::<f64>());
    let wxx = points.iter().map(|p| p.size * p.size / square(p)).sum::<f64>();
    let (wt, wxt) = (sum(|p| 1.0 / p.seconds), sum(|p| p.size / p.seconds));
    let determinant = w * wxx - wx * wx;
    let (a, b) = ((wt * wxx - wx * wxt) / determinant, (w * wxt - wx * wt) / determinant);
    let slope = if b.is_finite() && b > 0.0 && a.is_finite() && a > LEAST { b } else { wxt / wxx };
    let latency = if slope == b { a } else { LEAST };
    let rate = if slope.is_finite() && slope > 0.0 { 1.0 / slope } else { 1.0 };
    Line { latency, rate }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(of: impl Fn(f64) -> f64) -> Vec<Point> {
        [1e3, 1e4, 1e6, 1e8].map(|size| Point { size, seconds: of(size) }).to_vec()
    }

    #[test]
    fn a_line_is_found_again() {
        let found = line(&points(|size| 5e-6 + size / 4e9));
        assert!((found.latency / 5e-6 - 1.0).abs() < 1e-9 && (found.rate / 4e9 - 1.0).abs() < 1e-9, "{found:?}");
    }

    /// Every point is off by 10%, up or down: both numbers stay within 15%, although the sizes differ by a factor of
    /// 10⁵.
    #[test]
    fn errors_are_relative() {
        let mut off = points(|size| 5e-6 + size / 4e9);
        off.iter_mut().zip([1.1, 0.9, 1.1, 0.9]).for_each(|(p, f)| p.seconds *= f);
        let found = line(&off);
        assert!((found.latency / 5e-6 - 1.0).abs() < 0.15 && (found.rate / 4e9 - 1.0).abs() < 0.15, "{found:?}");
    }

    #[test]
    fn numbers_are_positive_whatever_was_measured() {
        let falling = points(|size| 1.0 / size);
        let below = points(|size| (size / 4e9 - 1e-7).max(1e-9));
        for points in [falling, below, points(|_| 1e-6), Vec::new(), vec![Point { size: 8.0, seconds: 2.0 }]] {
            let Line { latency, rate } = line(&points);
            assert!(latency > 0.0 && latency.is_finite() && rate > 0.0 && rate.is_finite(), "{points:?}");
        }
    }
}
