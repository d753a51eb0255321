//! Square: random search over windows, with logits only.

use std::collections::BTreeMap;

use c2r_base::{Norm, Passes, ThreatModel, host};
use tch::{Device, Kind, Tensor};

use crate::{
    active::{Active, Leaving, Samples},
    attack::{AttackBatch, Family},
    attacks::{
        at_hand::{End, square_search},
        windows::{SquareDraws, Window, share, side, stripes},
    },
    error::{AttackError, ConfigError},
    options::{ALL_NORMS, Check, Options, Search, Task, options, passes},
    oracle::Oracle,
    rows::{attempt_seed, per_image, pick, where_true, write_rows},
};

/// L2 and L1: the start is a grid of this many windows a side. Their code.
const START_TILES: i64 = 5;

/// Queries of Square in AutoAttack. Croce & Hein 2020 (arXiv:2003.01690), section 5.
const QUERIES: u32 = 5000;
/// Share of the image that Square's first windows cover. Croce & Hein 2020 (arXiv:2003.01690), section 5.
const P_INIT: f64 = 0.8;

options!(
    /// Square (Andriushchenko et al. 2020, arXiv:1912.00049): random search over windows, logits only.
    SquareConfig {
        /// Windows tried per sample; the start is one forward pass more.
        queries: u32 = QUERIES,
        /// Attempts; a sample that is broken is not tried again.
        restarts: u32 = 1,
        /// Share of the image that the first windows cover.
        p_init: f64 = P_INIT,
        /// Stretch the schedule of window sizes, made for 10,000 queries, to `queries`. AutoAttack does not.
        rescale_schedule: bool = false,
    }
);

impl Options for SquareConfig {
    fn build(&self, name: &'static str) -> Result<Box<dyn Search>, ConfigError> {
        let check = Check(name);
        check.count("queries", self.queries)?;
        check.count("restarts", self.restarts)?;
        check.fraction("p-init", self.p_init)?;
        Ok(Box::new(self.clone()))
    }

    fn passes(&self, _: &ThreatModel, _: u64) -> Passes {
        passes((u64::from(self.queries) + 1) * u64::from(self.restarts), 0)
    }
}

impl Search for SquareConfig {
    fn family(&self) -> Family {
        Family::BlackBox
    }

    fn check(&self, check: &Check, threat: &ThreatModel, _: i64) -> Result<(), ConfigError> {
        check.norm(&ALL_NORMS, threat)
    }

    fn search(&self, oracle: &mut Oracle<'_>, &Task { batch, threat, seed }: &Task<'_>) -> Result<Tensor, AttackError> {
        let mut found = batch.images.copy();
        let mut open: Vec<usize> = (0..batch.ids.len()).collect();
        for restart in 0..self.restarts {
            let mut draws = SquareDraws::streams(attempt_seed(seed, restart), batch.ids);
            let end = search(oracle, batch, threat, self, &open, &mut draws)?;
            write_rows(&mut found, &open, &end.images);
            open = pick(&open, &where_true(end.reached.iter().map(|reached| !reached)));
            if open.is_empty() {
                break;
            }
        }
        Ok(found)
    }
}

impl SquareConfig {
    /// Side of the window of a query, pixels.
    pub(super) fn side(&self, query: u32, norm: Norm, height: i64, width: i64) -> i64 {
        side(norm, share(self.p_init, query, self.queries, self.rescale_schedule), height, width)
    }
}

/// The window of the L2 attack, f32 `[side, side]`, Euclidean length 1: two halves of opposite sign, each
/// falling off from its centre.
pub fn window(side: i64) -> Tensor {
    let half = side / 2;
    let upper = falling_off(half, side);
    let lower = -falling_off(side - half, side);
    let both = Tensor::cat(&[upper, lower], 0);
    let length = both.square().sum(Kind::Float).sqrt();
    both / length
}

/// f32 `[height, width]`, Euclidean length 1: sums of ever larger centred boxes with falling weight.
fn falling_off(height: i64, width: i64) -> Tensor {
    let sum = Tensor::zeros([height, width], (Kind::Float, Device::Cpu));
    if height == 0 {
        return sum;
    }
    let (mut top, mut left) = (height / 2, width / 2);
    for ring in 0..(height / 2 + 1).max(width / 2 + 1) {
        let (first_row, last_row) = (top.max(0), (top + 2 * ring + 1).min(height));
        let (first_column, last_column) = (left.max(0), (left + 2 * ring + 1).min(width));
        let mut inside = sum.narrow(0, first_row, last_row - first_row);
        inside = inside.narrow(1, first_column, last_column - first_column);
        let _ = inside.g_add_scalar_(1.0 / ((ring + 1) * (ring + 1)) as f64);
        top -= 1;
        left -= 1;
    }
    let length = sum.square().sum(Kind::Float).sqrt();
    sum / length
}

/// What windows of one side share, made when the side is first met.
struct Sides {
    norm: Norm,
    width: i64,
    device: Device,
    known: BTreeMap<i64, Side>,
}

struct Side {
    /// Position of a window's pixels after its first one: i64 `[1, side * side]`.
    pixels: Tensor,
    /// L2 and L1: its pattern and the pattern transposed, f32 `[1, 1, side * side]`.
    patterns: Option<[Tensor; 2]>,
}

impl Sides {
    const fn new(norm: Norm, width: i64, device: Device) -> Self {
        Self { norm, width, device, known: BTreeMap::new() }
    }

    fn get(&mut self, side: i64) -> &Side {
        let Self { norm, width, device, known } = self;
        known.entry(side).or_insert_with(|| {
            let along = Tensor::arange(side, (Kind::Int64, *device));
            let pattern = || {
                let pattern = window(side).to_device(*device);
                [pattern.transpose(0, 1).contiguous(), pattern].map(|pattern| pattern.view([1, 1, -1]))
            };
            Side {
                pixels: (along.unsqueeze(1) * *width + along).view([1, -1]),
                patterns: (*norm != Norm::Linf).then(pattern).map(|[turned, plain]| [plain, turned]),
            }
        })
    }
}

impl Window {
    /// Positions of its pixels in flattened planes: i64 `[N, C, side * side]`.
    fn pixels(&self, side: &Side) -> Tensor {
        (&self.first + &side.pixels).unsqueeze(1).expand([-1, self.signs.size()[1], -1], false)
    }
}

/// Random search for the samples `open` of the batch; a sample stops when it reaches the goal.
pub(crate) fn search(
    oracle: &mut Oracle<'_>,
    batch: &AttackBatch<'_>,
    threat: &ThreatModel,
    config: &SquareConfig,
    open: &[usize],
    draws: &mut SquareDraws,
) -> Result<End, AttackError> {
    let norm = threat.norm;
    if norm == Norm::Linf && host::is_at_hand(batch.images.device()) {
        let size = batch.images.size();
        let sides = (0..config.queries).map(|query| config.side(query, norm, size[2], size[3]));
        return square_search(oracle, batch, threat, open, sides, draws);
    }
    let mut active = Active::new(open);
    let mut samples = Samples::of(batch, open);
    let image = samples.clean.size()[1..].to_vec();
    let (height, width, device) = (image[1], image[2], samples.clean.device());
    let mut sides = Sides::new(norm, width, device);
    // Two for each query where mass is moved from one window to another.
    let per_query = if norm == Norm::Linf { 1 } else { 2 };
    let mut range = Range::new(&samples.clean, threat);

    let mut best = match norm {
        Norm::Linf => stripes(draws, open, &samples.clean, threat),
        Norm::L2 | Norm::L1 => tiles(draws, open, &samples.clean, threat),
    };
    let logits = oracle.logits(&best, open)?;
    let mut margin = samples.batch(&[]).goal_margin(&logits);
    let mut end = End { images: best.copy(), margins: margin.copy(), reached: Vec::new() };
    active.note(samples.reached(&logits));

    let mut windows = Vec::new().into_iter();
    for query in 0..config.queries {
        if let Some(Leaving { done, left }) = active.leave(oracle, 1, false)? {
            active.store(&mut end.images, &done, &best);
            active.store(&mut end.margins, &done, &margin);
            if left.is_empty() {
                break;
            }
            active.keep(&left, samples.tensors().chain([&mut best, &mut margin]));
            range = Range::new(&samples.clean, threat);
        }
        let side_at = |query| config.side(query, norm, height, width);
        if windows.len() == 0 {
            // No row leaves before this many queries.
            let last = config.queries.min(query + active.steps_to_reading().max(1));
            let ahead: Vec<i64> =
                (query..last).flat_map(|query| std::iter::repeat_n(side_at(query), per_query)).collect();
            windows = draws.windows(active.samples(), &ahead, &image, device).into_iter();
        }
        let (side, window) = (sides.get(side_at(query)), windows.next().expect("drawn ahead"));
        let candidate = match &range {
            Some(range) => range.candidate(&best, &window, side, threat),
            None => moved_mass(&samples.clean, &best, [&window, &windows.next().expect("drawn ahead")], side, threat),
        };
        let logits = oracle.logits(&candidate, active.samples())?;
        let now = samples.batch(&[]).goal_margin(&logits);
        let hit = samples.reached(&logits);
        let better = active.open(now.lt_tensor(&margin).logical_or(&hit));
        best = candidate.where_self(&per_image(&better), &best);
        margin = now.where_self(&better, &margin);
        active.note(hit);
    }
    active.leave(oracle, 1, true)?;
    let all: Vec<usize> = (0..active.len()).collect();
    active.store(&mut end.images, &all, &best);
    active.store(&mut end.margins, &all, &margin);
    end.reached = active.reached().to_vec();
    Ok(end)
}

/// Linf: the smallest and the largest value of each pixel, f32 `[N, C, H * W]`.
struct Range([Tensor; 2]);

impl Range {
    fn new(clean: &Tensor, threat: &ThreatModel) -> Option<Self> {
        threat.ball(clean).range().map(|range| Self(range.map(|limit| limit.flatten(2, 3))))
    }

    /// Every pixel of the window goes to the end of its range that the channel's sign says. Only the window is computed:
    /// after the first queries it is a small part of the image.
    fn candidate(&self, best: &Tensor, window: &Window, side: &Side, threat: &ThreatModel) -> Tensor {
        let here = window.pixels(side);
        let flat = best.flatten(2, 3);
        let moved = flat.gather(2, &here, false) + &window.signs * (2.0 * threat.epsilon.value());
        let [low, high] = self.0.each_ref().map(|limit| limit.gather(2, &here, false));
        flat.scatter(2, &here, &moved.clamp_tensor(Some(low), Some(high))).view_as(best)
    }
}

/// L2 and L1: the start, a grid of windows with random signs.
fn tiles(draws: &mut SquareDraws, rows: &[usize], clean: &Tensor, threat: &ThreatModel) -> Tensor {
    let size = clean.size();
    let (channels, height, width) = (size[1], size[2], size[3]);
    let side = (height.min(width) / START_TILES).max(1);
    let pattern = window(side).to_device(clean.device());
    let margin = |length: i64| (length - side * START_TILES).max(0) / 2;
    let delta = clean.zeros_like();
    let mut top = margin(height);
    while top + side <= height {
        let mut left = margin(width);
        while left + side <= width {
            let signs = draws.signs(rows, &[channels + 1], clean.device());
            let turned = signs.select(1, channels).gt(0.0).view([-1, 1, 1, 1]);
            let pattern = pattern
                .transpose(0, 1)
                .contiguous()
                .view([1, 1, side, side])
                .where_self(&turned, &pattern.view([1, 1, side, side]));
            let mut tile = delta.narrow(2, top, side).narrow(3, left, side);
            tile += pattern * signs.narrow(1, 0, channels).unsqueeze(2).unsqueeze(3);
            left += side;
        }
        top += side;
    }
    filled(clean, &delta, threat)
}

/// Adds `delta` at full length.
fn filled(clean: &Tensor, delta: &Tensor, threat: &ThreatModel) -> Tensor {
    match threat.norm {
        Norm::L2 => (clean + Norm::L2.steepest(delta) * threat.epsilon.value()).clamp(0.0, 1.0),
        norm => norm.project(clean, &(clean + delta), threat.epsilon.value()),
    }
}

/// L2 and L1: takes the perturbation's length from two windows and puts it into the first one, in a new
/// pattern (their algorithm 3; L1 as in AutoAttack's code).
fn moved_mass(
    clean: &Tensor,
    best: &Tensor,
    [first, second]: [&Window; 2],
    side: &Side,
    threat: &ThreatModel,
) -> Tensor {
    let epsilon = threat.epsilon.value();
    let channels = clean.size()[1];
    let flat = (best - clean).flatten(2, 3);
    let squared = threat.norm == Norm::L2;
    // Length over the last dimension, and its power that adds up over disjoint parts.
    let powers = |values: &Tensor| if squared { values.square() } else { values.abs() };
    let length = |values: &Tensor| {
        let sum = powers(values).sum_dim_intlist([-1i64].as_slice(), true, Kind::Float);
        if squared { sum.sqrt() } else { sum }
    };
    let (here, there) = (first.pixels(side), second.pixels(side));
    let outside = flat.scatter_value(2, &here, 0.0).scatter_value(2, &there, 0.0);
    let per_sample = |values: &Tensor| powers(values).sum_dim_intlist([1i64, 2].as_slice(), true, Kind::Float);
    let (whole, rest) = (per_sample(&flat), per_sample(&outside));
    let budget = if squared { epsilon * epsilon } else { epsilon };
    let windows = (&whole - rest).clamp_min(0.0);
    let unused = (budget - whole).clamp_min(0.0);

    let [pattern, turned] = side.patterns.as_ref().expect("made for this norm");
    let pattern = turned.where_self(&first.turned.gt(0.0), pattern);
    let old = flat.gather(2, &here, false);
    let new = pattern * &first.signs + &old / (length(&old) + 1e-12);
    let new = &new / (length(&new) + 1e-12);
    let new = if squared {
        new * (unused / channels as f64 + windows).sqrt()
    } else {
        new * (unused / channels as f64 + windows) * channels as f64
    };
    let delta = flat.scatter_value(2, &there, 0.0).scatter(2, &here, &new).view_as(clean);
    filled(clean, &delta, threat)
}

#[cfg(test)]
mod tests {
    use c2r_base::{Classifier, Seed};

    use super::*;
    use crate::oracle::unhurried;

    /// Fixed numbers without structure in `[0, 1)`.
    fn noise(shape: &[i64], stride: f64) -> Tensor {
        let n: i64 = shape.iter().product();
        (Tensor::arange(n, (Kind::Float, Device::Cpu)) * stride).frac().view(shape)
    }

    /// Some samples are broken at the start, some on the way, some never; with targets, too, and only a part of the batch.
    #[test]
    fn square_is_the_same_as_on_a_gpu() {
        let weight = noise(&[5, 48], 0.754_877_666) - 0.4;
        // Logits with a bend, of each image by itself: the same whichever images are in the batch.
        let model = c2r_testkit::toys::function(|images| {
            let each = images.flatten(1, -1).unbind(0).into_iter();
            let logits = each.map(|x| (x * &weight).square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float));
            Tensor::stack(&logits.collect::<Vec<_>>(), 0)
        });
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
}
