//! Loops over plain arrays for the CPU, where reading a value costs nothing ([`c2r_base::host::is_at_hand`]).
//!
//! Square works on a few images at a time, and FAB's projection reads its rows many times. As operators of libtorch, the first
//! spends as long on calls as on the model, and the second moves every row through memory at each step.

use std::iter;

use c2r_base::{Norm, ThreatModel, host};
use tch::Tensor;

use crate::{
    active::Samples,
    attack::AttackBatch,
    attacks::windows::{SquareDraws, stripes},
    error::AttackError,
    oracle::Oracle,
};

/// What Square ends with, one entry per sample.
pub(crate) struct End {
    pub(crate) images: Tensor,
    /// f32 `[N]`.
    pub(crate) margins: Tensor,
    pub(crate) reached: Vec<bool>,
}

/// A sample that Square has not broken yet.
struct Open {
    /// Its place in the result.
    slot: usize,
    /// Its place in the batch.
    sample: usize,
    margin: f32,
}

/// Square's search in Linf for the samples `open` of the batch; a sample leaves at once when it reaches the goal.
///
/// `sides`: side of the window of each query, pixels.
pub(super) fn square_search(
    oracle: &mut Oracle<'_>,
    batch: &AttackBatch<'_>,
    threat: &ThreatModel,
    open: &[usize],
    sides: impl Iterator<Item = i64>,
    draws: &mut SquareDraws,
) -> Result<End, AttackError> {
    let samples = Samples::of(batch, open);
    let size = samples.clean.size();
    let image = &size[1..];
    let plane = (image[1] * image[2]) as usize;
    let length = image[0] as usize * plane;
    let start = stripes(draws, open, &samples.clean, threat);
    let [low, high] = threat.ball(&samples.clean).range().expect("Linf").map(host::to_vec::<f32>);
    let step = (2.0 * threat.epsilon.value()) as f32;
    let goals = host::to_vec::<i64>(samples.targets.as_ref().unwrap_or(&samples.labels));
    let judged = |slot: usize, logits: &[f32]| {
        let (margin, is_highest) = margin(logits, goals[slot] as usize);
        if samples.targets.is_some() { (-margin, is_highest) } else { (margin, !is_highest) }
    };

    let mut best = host::to_vec::<f32>(&start);
    let mut margins = vec![0.0; open.len()];
    let mut reached = vec![false; open.len()];
    let mut rows: Vec<Open> =
        open.iter().enumerate().map(|(slot, &sample)| Open { slot, sample, margin: f32::INFINITY }).collect();
    let mut candidates = best.clone();
    let mut signs = Vec::new();
    // The first pass judges the start.
    for side in iter::once(None).chain(sides.map(Some)) {
        if let Some(side) = side {
            for (row, candidate) in rows.iter().zip(candidates.chunks_exact_mut(length)) {
                let at = row.slot * length;
                candidate.copy_from_slice(&best[at..at + length]);
                signs.clear();
                let first = draws.window(row.sample, 0, side, image, &mut signs) as usize;
                let limits = [&low, &high].map(|limit| &limit[at..at + length]);
                for pixels in lines(first, side as usize, image) {
                    let shift = signs[pixels.start / plane] * step;
                    for pixel in pixels {
                        candidate[pixel] = (candidate[pixel] + shift).max(limits[0][pixel]).min(limits[1][pixel]);
                    }
                }
            }
            draws.advance(1);
        }
        let used = &candidates[..rows.len() * length];
        let images = Tensor::from_slice(used).view([rows.len() as i64, image[0], image[1], image[2]]);
        let of_batch: Vec<usize> = rows.iter().map(|row| row.sample).collect();
        let logits = oracle.logit_values(&images, &of_batch)?;
        let n_classes = logits.len() / rows.len();
        for ((row, logits), candidate) in
            rows.iter_mut().zip(logits.chunks_exact(n_classes)).zip(candidates.chunks_exact(length))
        {
            let (now, is_hit) = judged(row.slot, logits);
            if now < row.margin || is_hit {
                best[row.slot * length..][..length].copy_from_slice(candidate);
                row.margin = now;
                margins[row.slot] = now;
            }
            reached[row.slot] = is_hit;
        }
        rows.retain(|row| !reached[row.slot]);
        if rows.is_empty() {
            break;
        }
    }
    let images = Tensor::from_slice(&best).view(size.as_slice());
    Ok(End { images, margins: Tensor::from_slice(&margins), reached })
}

/// The pixels of a window in every channel of a flattened `image`, line by line.
fn lines(first: usize, side: usize, image: &[i64]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let [channels, height, width] = [0, 1, 2].map(|axis| image[axis] as usize);
    (0..channels).flat_map(move |channel| {
        let from = channel * height * width + first;
        (0..side).map(move |line| from + line * width..from + line * width + side)
    })
}

/// `z_class - max_other`, and whether `class` is the first of the largest logits.
fn margin(logits: &[f32], class: usize) -> (f32, bool) {
    let own = logits[class];
    let before = logits[..class].iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let after = logits[class + 1..].iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (own - before.max(after), own > before && own >= after)
}

/// Steps of Newton's method in [`multiplier`].
pub(super) const NEWTON_STEPS: usize = 8;

/// Values that are added up side by side, so that the compiler uses vectors.
const LANES: usize = 16;

/// The sums of both of `f`'s results over all pairs of values.
fn sums(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> [f32; 2]) -> [f32; 2] {
    let mut lanes = [[0.0f32; LANES]; 2];
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    for (a, b) in whole_a.iter().zip(whole_b) {
        for lane in 0..LANES {
            let [first, second] = f(a[lane], b[lane]);
            lanes[0][lane] += first;
            lanes[1][lane] += second;
        }
    }
    for (a, b) in rest_a.iter().zip(rest_b) {
        let [first, second] = f(*a, *b);
        lanes[0][0] += first;
        lanes[1][0] += second;
    }
    lanes.map(|lanes| lanes.iter().sum())
}

/// What [`super::fab::project_on_hyperplane`] returns in Linf and L2, row after row.
///
/// * `points`: as many times `[N, D]` as there are points for each hyperplane; `w`: `[N, D]`; `b`: `[N]`.
pub(super) fn hyperplane_moves(norm: Norm, [points, w, b]: [&[f32]; 3]) -> Vec<f32> {
    let d = w.len() / b.len();
    let mut moves = vec![0.0; points.len()];
    let [mut gains, mut rooms, mut rates] = [vec![0.0; d], vec![0.0; d], vec![0.0; d]];
    let planes = w.chunks_exact(d).zip(b).cycle();
    for ((point, (w, b)), out) in points.chunks_exact(d).zip(planes).zip(moves.chunks_exact_mut(d)) {
        let [at, _] = sums(w, point, |w, x| [w * x, 0.0]);
        let gap = at - b;
        // Every value can only move against this direction.
        let side = f32::from(i8::from(gap > 0.0) - i8::from(gap < 0.0));
        for i in 0..d {
            rooms[i] = if w[i] * side < 0.0 { 1.0 - point[i] } else { point[i] };
            gains[i] = w[i].abs() * rooms[i];
            rates[i] = if norm == Norm::L2 { w[i] * w[i] } else { w[i].abs() };
        }
        let t = multiplier(&gains, &rates, gap.abs());
        for i in 0..d {
            let size = if norm == Norm::L2 { w[i].abs() * t } else { t };
            // NaN stays NaN.
            let size = if rooms[i] < size { rooms[i] } else { size };
            let direction = w[i] * side;
            out[i] = if direction > 0.0 {
                -size
            } else if direction < 0.0 {
                size
            } else {
                0.0
            };
        }
    }
    moves
}

/// The multiplier of one row by Newton's method; see `multiplier` beside [`super::fab::project_on_hyperplane`].
fn multiplier(gains: &[f32], rates: &[f32], needed: f32) -> f32 {
    let [all, _] = sums(rates, rates, |rate, _| [rate, 0.0]);
    // 0 / 0 where nothing is needed and nothing moves.
    let first = needed / all;
    let mut t = if first.is_nan() { 0.0 } else { first.min(f32::MAX) };
    for _ in 0..NEWTON_STEPS {
        let [slope, full] = sums(gains, rates, |gain, rate| if t * rate < gain { [rate, 0.0] } else { [0.0, gain] });
        let next = if slope > 0.0 { ((needed - full) / slope).clamp(0.0, f32::MAX) } else { f32::MAX };
        // It has arrived; rounding may not send it back.
        if next <= t {
            break;
        }
        t = next;
    }
    t
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_logits_is_the_prediction() {
        let logits = [1.0, 3.0, 3.0, 2.0];
        assert_eq!(
            [0, 1, 2, 3].map(|class| margin(&logits, class)),
            [(-2.0, false), (0.0, true), (0.0, false), (-1.0, false)]
        );
    }
}
