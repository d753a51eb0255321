//! Loops over plain arrays for the CPU, where reading a value costs nothing ([`c2r_base::host::is_at_hand`]).
//!
//! Square works on a few images at a time, and FAB's projection reads its rows many times. As operators of libtorch, the first
//! spends as long on calls as on the model, and the second moves every row through memory at each step.

use c2r_base::{Norm, ThreatModel, host};
use tch::Tensor;

use crate::{
    active::Samples,
    attack::AttackBatch,
    attacks::{
        fab::NEWTON_STEPS,
        square::{End, SquareConfig, SquareDraws, stripes},
    },
    error::AttackError,
    oracle::Oracle,
};

/// A sample that Square has not broken yet.
struct Open {
    /// Its place in the result.
    slot: usize,
    /// Its place in the batch.
    sample: usize,
    margin: f32,
}

/// Square's search in Linf; a sample leaves at once when it reaches the goal. See [`super::square::search`].
pub(super) fn square_search(
    oracle: &mut Oracle<'_>,
    batch: &AttackBatch<'_>,
    threat: &ThreatModel,
    config: &SquareConfig,
    open: &[usize],
    draws: &mut SquareDraws,
) -> Result<End, AttackError> {
    let samples = Samples::of(batch, open);
    let size = samples.clean.size();
    let [image, height, width] = [&size[1..], &size[2..3], &size[3..]];
    let (height, width) = (height[0], width[0]);
    let plane = (height * width) as usize;
    let length = plane * image[0] as usize;
    let start = stripes(draws, open, &samples.clean, threat);
    let [low, high] = threat.ball(&samples.clean).range().expect("Linf").map(|limit| host::to_vec::<f32>(&limit));
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
    for query in 0..=config.queries {
        // The first pass judges the start.
        if query > 0 {
            let side = config.side(query - 1, Norm::Linf, height, width) as usize;
            for (row, candidate) in rows.iter().zip(candidates.chunks_exact_mut(length)) {
                let at = row.slot * length;
                candidate.copy_from_slice(&best[at..at + length]);
                signs.clear();
                let first = draws.window(row.sample, 0, side as i64, image, &mut signs) as usize;
                for (channel, sign) in signs[..image[0] as usize].iter().enumerate() {
                    for line in 0..side {
                        let from = channel * plane + first + line * width as usize;
                        for pixel in from..from + side {
                            candidate[pixel] =
                                (candidate[pixel] + sign * step).max(low[at + pixel]).min(high[at + pixel]);
                        }
                    }
                }
            }
            draws.advance(1);
        }
        let used = &candidates[..rows.len() * length];
        let images = Tensor::from_slice(used).view([rows.len() as i64, image[0], height, width]);
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

/// `z_class - max_other`, and whether `class` is the first of the largest logits.
fn margin(logits: &[f32], class: usize) -> (f32, bool) {
    let own = logits[class];
    let before = logits[..class].iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let after = logits[class + 1..].iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (own - before.max(after), own > before && own >= after)
}

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
    use c2r_base::{Classifier, ClassifierError, Seed};
    use tch::{Device, Kind};

    use super::*;
    use crate::{
        attacks::{fab::project_on_hyperplane, square::search},
        oracle::unhurried,
    };

    /// Fixed numbers without structure in `[0, 1)`.
    fn noise(shape: &[i64], stride: f64) -> Tensor {
        let n: i64 = shape.iter().product();
        (Tensor::arange(n, (Kind::Float, Device::Cpu)) * stride).frac().view(shape)
    }

    /// Logits with a bend, of each image by itself: the same whichever images are in the batch.
    struct Bent(Tensor);

    impl Classifier for Bent {
        fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
            let each = images.flatten(1, -1).unbind(0).into_iter();
            let logits = each.map(|x| (x * &self.0).square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float));
            Ok(Tensor::stack(&logits.collect::<Vec<_>>(), 0))
        }

        fn device(&self) -> Device {
            Device::Cpu
        }
    }

    /// Some samples are broken at the start, some on the way, some never; with targets, too, and only a part of the batch.
    #[test]
    fn square_is_the_same_as_on_a_gpu() {
        let model = Bent(noise(&[5, 48], 0.754_877_666) - 0.4);
        let images = noise(&[12, 3, 4, 4], 0.569_840_291) * 0.9 + 0.05;
        let labels = model.logits(&images).unwrap().argmax(1, false);
        let others = (&labels + 1).remainder(5);
        let ids: Vec<u64> = (100..112).collect();
        let open = [0, 2, 3, 4, 5, 7, 8, 9, 10, 11];
        let config = SquareConfig { queries: 150, ..SquareConfig::default() };
        for (targets, epsilon) in [(None, "0.01"), (Some(&others), "0.02")] {
            let threat = ThreatModel::untargeted(Norm::Linf, epsilon.parse().unwrap());
            let batch = AttackBatch { images: &images, labels: &labels, ids: &ids, targets };
            let run = || {
                let from_start = |oracle: &mut Oracle<'_>| {
                    let mut draws = SquareDraws::streams(Seed::new(3), &ids);
                    search(oracle, &batch, &threat, &config, &open, &mut draws)
                };
                let (end, oracle) = unhurried(&model, "square", &ids, from_start).unwrap();
                (end, oracle.finish(images.shallow_clone()).queries)
            };
            let ((ours, our_queries), (theirs, their_queries)) = (run(), host::far(run));
            assert_eq!(ours.reached, theirs.reached);
            let n_reached = ours.reached.iter().filter(|reached| **reached).count();
            assert!((2..9).contains(&n_reached), "{n_reached} of 10 are broken, which shows little");
            assert_eq!((ours.images, ours.margins), (theirs.images, theirs.margins));
            assert_eq!(our_queries, their_queries);
        }
    }

    /// Hyperplanes near and far, one that misses the box, one through the point, one without a normal.
    #[test]
    fn projections_are_the_same_as_on_a_gpu() {
        let points = noise(&[2, 6, 3001], 0.754_877_666);
        let w = noise(&[6, 3001], 0.569_840_291) - 0.5;
        let _zeros = w.get(5).fill_(0.0);
        let here = (&w * points.get(0)).sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        let b = here + Tensor::from_slice(&[1e-3f32, -0.7, 40.0, -1e6, 0.0, 0.2]);
        for norm in [Norm::Linf, Norm::L2] {
            let ours = project_on_hyperplane(norm, &points, &w, &b);
            let theirs = host::far(|| project_on_hyperplane(norm, &points, &w, &b));
            let apart = (&ours - &theirs).abs().max().double_value(&[]);
            assert!(apart < 2e-6, "{norm}: {apart}");
            assert!(ours.get(0).get(1).abs().max().double_value(&[]) > 1e-4, "it moves");
        }
    }

    #[test]
    fn the_first_of_equal_logits_is_the_prediction() {
        let logits = [1.0, 3.0, 3.0, 2.0];
        assert_eq!(
            [0, 1, 2, 3].map(|class| margin(&logits, class)),
            [(-2.0, false), (0.0, true), (0.0, false), (-1.0, false)]
        );
    }
}
