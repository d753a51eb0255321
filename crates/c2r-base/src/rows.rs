//! Values that are drawn row by row, each row from a generator of its own.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Values that are worth a thread: fewer are drawn where the caller is.
const VALUES_PER_THREAD: usize = 1 << 16;

/// Fills `values`, cut into one row for each generator, by calling `draw` for each; side by side on as many threads as
/// libtorch has here, which changes no value.
///
/// # Panics
/// If the values cannot be cut into rows of equal length.
pub fn fill_rows<'a>(
    generators: impl IntoIterator<Item = &'a mut ChaCha8Rng>,
    values: &mut [f32],
    draw: impl Fn(&mut ChaCha8Rng, &mut [f32]) + Sync,
) {
    let generators: Vec<_> = generators.into_iter().collect();
    if generators.is_empty() || values.is_empty() {
        return;
    }
    assert!(values.len().is_multiple_of(generators.len()), "rows of equal length");
    let most = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    let n_threads = (values.len() / VALUES_PER_THREAD).clamp(1, most.max(1));
    let per_row = values.len() / generators.len();
    let mut rows: Vec<_> = generators.into_iter().zip(values.chunks_mut(per_row)).collect();
    let fill = |rows: &mut [(&mut ChaCha8Rng, &mut [f32])]| {
        for (generator, row) in rows {
            draw(generator, row);
        }
    };
    if n_threads == 1 {
        return fill(&mut rows);
    }
    let per_thread = rows.len().div_ceil(n_threads);
    std::thread::scope(|scope| {
        for part in rows.chunks_mut(per_thread) {
            scope.spawn(|| fill(part));
        }
    });
}

/// `n` random values, uniform in `[-bound, bound)`.
///
/// This is here and not beside the networks because they draw millions of values, and this crate is optimized.
pub fn uniform(generator: &mut ChaCha8Rng, bound: f64, n: usize) -> Vec<f32> {
    (0..n).map(|_| ((2.0 * generator.random::<f64>() - 1.0) * bound) as f32).collect()
}

/// Normal values with this `deviation`, f32 `[generators, length]`, each row from its generator alone.
///
/// By the transform of Box and Muller (1958): two uniforms give two values; the last of an odd `length` is the first of its two.
pub fn normal(generators: &mut [ChaCha8Rng], length: usize, deviation: f32) -> Vec<f32> {
    let mut values = vec![0.0; generators.len() * length];
    fill_rows(generators, &mut values, |rng, row| {
        for pair in row.chunks_mut(2) {
            let (u, v) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
            let (sin, cos) = (std::f64::consts::TAU * v).sin_cos();
            let radius = (-2.0 * u.ln()).sqrt();
            for (value, normal) in pair.iter_mut().zip([radius * cos, radius * sin]) {
                *value = normal as f32 * deviation;
            }
        }
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Seed;

    /// Enough rows for several threads, not a multiple of them.
    #[test]
    fn each_row_is_its_own_stream() {
        let (n, length) = (7, VALUES_PER_THREAD / 2);
        let mut streams: Vec<_> = (0..n).map(|row| Seed::new(3).stream("test", row)).collect();
        let mut values = vec![0.0; n as usize * length];
        fill_rows(&mut streams, &mut values, |rng, row| row.fill_with(|| rng.random()));
        for (row, values) in values.chunks(length).enumerate() {
            let mut stream = Seed::new(3).stream("test", row as u64);
            assert!(values.iter().all(|&value| value == stream.random::<f32>()), "row {row}");
        }
        fill_rows(&mut [], &mut [], |_, _| panic!("there is no row"));
    }

    /// Odd rows, several threads: the values of each stream one by one.
    #[test]
    fn normal_values_are_those_of_their_streams() {
        let (n, length) = (3, VALUES_PER_THREAD - 1);
        let streams = || (0..n).map(|row| Seed::new(3).stream("test", row)).collect::<Vec<_>>();
        let values = normal(&mut streams(), length, 0.001);
        assert_eq!(values.len(), n as usize * length);
        for (row, mut stream) in values.chunks(length).zip(streams()) {
            for pair in row.chunks(2) {
                let (u, v): (f64, f64) = (1.0 - stream.random::<f64>(), stream.random());
                let (radius, angle) = ((-2.0 * u.ln()).sqrt(), std::f64::consts::TAU * v);
                let expected = [radius * std::hint::black_box(angle).cos(), radius * angle.sin()];
                assert!(pair.iter().zip(expected).all(|(&value, normal)| value == normal as f32 * 0.001));
            }
        }
        let square = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / values.len() as f64;
        assert!((square.sqrt() / 0.001 - 1.0).abs() < 0.01, "{square}");
    }
}
