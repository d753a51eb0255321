//! Square's windows: how large they are, and where they come from.

use c2r_base::{Norm, Seed, ThreatModel, host::send};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use crate::rows::index;

/// The schedule of window sizes is made for this many queries. Andriushchenko et al. 2020, section 3.
const SCHEDULE_QUERIES: f64 = 10_000.0;
/// After how many queries the share of the image is halved. Their section 3 and code.
const HALVE_AFTER: [u32; 9] = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000];
/// L2 and L1: smallest window. Their code.
const LEAST_SIDE: i64 = 3;

/// Share of the image that the window of a query covers; `query` counts from 0.
pub fn share(p_init: f64, query: u32, queries: u32, rescaled: bool) -> f64 {
    let at = if rescaled { (f64::from(query) / f64::from(queries) * SCHEDULE_QUERIES) as u32 } else { query };
    p_init / f64::from(1u32 << HALVE_AFTER.iter().filter(|&&after| at > after).count())
}

/// Side of a window that covers the share `p`, pixels; odd in L2 and L1.
pub fn side(norm: Norm, p: f64, height: i64, width: i64) -> i64 {
    let side = (p * (height * width) as f64).sqrt().round_ties_even() as i64;
    let fits = height.min(width);
    match norm {
        Norm::Linf => side.max(1).min(fits),
        Norm::L2 | Norm::L1 => {
            let odd = side.max(LEAST_SIDE) | 1;
            if odd <= fits { odd } else { fits }
        }
    }
}

/// Where Square's windows come from: one stream per sample, or a recording.
pub struct SquareDraws(Source);

enum Source {
    Streams(Vec<ChaCha8Rng>),
    Recorded { start: Tensor, corners: Vec<(i64, i64)>, signs: Vec<Vec<f32>>, next: usize },
}

/// One window per row: where it begins, and what is in it.
pub(super) struct Window {
    /// Position of its first pixel in a flattened plane: i64 `[N, 1]`.
    pub(super) first: Tensor,
    /// Sign of each channel, f32 `[N, C, 1]`.
    pub(super) signs: Tensor,
    /// Positive where the L2 pattern is transposed, f32 `[N, 1, 1]`.
    pub(super) turned: Tensor,
}

impl SquareDraws {
    pub(crate) fn streams(seed: Seed, ids: &[u64]) -> Self {
        Self(Source::Streams(ids.iter().map(|&id| seed.stream("square", id)).collect()))
    }

    /// A recorded Linf run in which all samples share their windows.
    ///
    /// * `start`: f32 `[N, C, 1, W]`, the signs of the first stripes; `corners`: row and column of each
    ///   query's window; `signs`: sign of each channel in it.
    pub fn recorded(start: Tensor, corners: Vec<(i64, i64)>, signs: Vec<Vec<f32>>) -> Self {
        Self(Source::Recorded { start, corners, signs, next: 0 })
    }

    /// Random signs, f32 `[rows, shape..]`.
    pub(super) fn signs(&mut self, rows: &[usize], shape: &[i64], device: Device) -> Tensor {
        let mut size = vec![rows.len() as i64];
        size.extend_from_slice(shape);
        match &mut self.0 {
            Source::Recorded { start, .. } => start.index_select(0, &index(rows, start)).to_device(device),
            Source::Streams(streams) => {
                let per_row = shape.iter().product::<i64>();
                let mut values = Vec::with_capacity(rows.len() * per_row as usize);
                for &row in rows {
                    values.extend((0..per_row).map(|_| sign(&mut streams[row])));
                }
                send(&Tensor::from_slice(&values).view(size.as_slice()), device)
            }
        }
    }

    /// A window of `row` at a uniform place, the one `ahead` after the next: the position of its first pixel in a flattened plane.
    /// Appends the signs of its channels and that of its pattern to `signs`.
    pub(super) fn window(&mut self, row: usize, ahead: usize, side: i64, image: &[i64], signs: &mut Vec<f32>) -> i64 {
        let (channels, height, width) = (image[0], image[1], image[2]);
        match &mut self.0 {
            Source::Recorded { corners, signs: recorded, next, .. } => {
                let (top, left) = corners[*next + ahead];
                signs.extend(&recorded[*next + ahead]);
                signs.push(-1.0);
                top * width + left
            }
            Source::Streams(streams) => {
                let stream = &mut streams[row];
                let (top, left) = (stream.random_range(0..=height - side), stream.random_range(0..=width - side));
                signs.extend((0..=channels).map(|_| sign(stream)));
                top * width + left
            }
        }
    }

    /// After `n` windows of every row.
    pub(super) fn advance(&mut self, n: usize) {
        if let Source::Recorded { next, .. } = &mut self.0 {
            *next += n;
        }
    }

    /// Windows of these `sides`, each for all rows, drawn one after the other and moved together.
    pub(super) fn windows(&mut self, rows: &[usize], sides: &[i64], image: &[i64], device: Device) -> Vec<Window> {
        let (mut first, mut signs) = (Vec::new(), Vec::new());
        for &row in rows {
            for (ahead, &side) in sides.iter().enumerate() {
                first.push(self.window(row, ahead, side, image, &mut signs));
            }
        }
        self.advance(sides.len());
        let (n, each, channels) = (rows.len() as i64, sides.len() as i64, image[0]);
        let first = send(&Tensor::from_slice(&first).view([n, each, 1]), device);
        let signs = send(&Tensor::from_slice(&signs).view([n, each, channels + 1, 1]), device);
        let turned = signs.narrow(2, channels, 1).unbind(1);
        let signs = signs.narrow(2, 0, channels).unbind(1);
        let parts = first.unbind(1).into_iter().zip(signs).zip(turned);
        parts.map(|((first, signs), turned)| Window { first, signs, turned }).collect()
    }
}

fn sign(rng: &mut ChaCha8Rng) -> f32 {
    if rng.random::<bool>() { 1.0 } else { -1.0 }
}

/// Linf: the start, vertical stripes with random signs.
pub(super) fn stripes(draws: &mut SquareDraws, rows: &[usize], clean: &Tensor, threat: &ThreatModel) -> Tensor {
    let (size, device) = (clean.size(), clean.device());
    let signs = draws.signs(rows, &[size[1], 1, size[3]], device);
    threat.project(clean, &(clean + signs * threat.epsilon.value()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Windows of 3 x 3 pixels in images of 5 x 6: three places down, four across, each equally often.
    #[test]
    fn windows_lie_anywhere_in_the_image() {
        let mut draws = SquareDraws::streams(Seed::new(2), &[7]);
        let mut counts = [[0; 4]; 3];
        let mut n_positive = [0; 3];
        for _ in 0..6000 {
            let mut signs = Vec::new();
            let first = draws.window(0, 0, 3, &[2, 5, 6], &mut signs) as usize;
            counts[first / 6][first % 6] += 1;
            assert!(signs.len() == 3 && signs.iter().all(|sign| sign.abs() == 1.0));
            for (n, sign) in n_positive.iter_mut().zip(signs) {
                *n += usize::from(sign > 0.0);
            }
        }
        assert!(counts.as_flattened().iter().all(|count| (400..600).contains(count)), "{counts:?}");
        assert!(n_positive.iter().all(|n| (2800..3200).contains(n)), "{n_positive:?}");
    }
}
