//! Square: random search over windows, with logits only.

use c2r_base::{Classifier, Norm, Passes, Seed, ThreatModel};
use rand::{Rng, RngCore};
use tch::{Device, Kind, Tensor};

use crate::{
    active::{Active, Samples, attempt_seed, index, per_image, pick, positions, write_rows},
    attack::{Attack, AttackBatch, Family, Perturbed},
    error::{AttackError, ConfigError},
    options::{ALL_NORMS, Check, Options, options, passes},
    oracle::Oracle,
};

/// The schedule of window sizes is made for this many queries. Andriushchenko et al. 2020, section 3.
const SCHEDULE_QUERIES: f64 = 10_000.0;
/// After how many queries the share of the image is halved. Their section 3 and code.
const HALVE_AFTER: [u32; 9] = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000];
/// L2 and L1: the start is a grid of this many windows a side. Their code.
const START_TILES: i64 = 5;
/// L2 and L1: smallest window. Their code.
const LEAST_SIDE: i64 = 3;

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
    fn build(&self, name: &'static str) -> Result<Box<dyn Attack>, ConfigError> {
        let check = Check(name);
        check.count("queries", self.queries)?;
        check.count("restarts", self.restarts)?;
        check.fraction("p-init", self.p_init)?;
        Ok(Box::new(Square { name, config: self.clone() }))
    }

    fn passes(&self, _: u64) -> Passes {
        passes((u64::from(self.queries) + 1) * u64::from(self.restarts), 0)
    }
}

/// Square attack.
struct Square {
    name: &'static str,
    config: SquareConfig,
}

impl Attack for Square {
    fn name(&self) -> &str {
        self.name
    }

    fn family(&self) -> Family {
        Family::BlackBox
    }

    fn check(&self, threat: &ThreatModel, _: i64) -> Result<(), ConfigError> {
        Check(self.name).norm(&ALL_NORMS, threat)
    }

    fn perturb(
        &self,
        model: &dyn Classifier,
        batch: &AttackBatch<'_>,
        threat: &ThreatModel,
        seed: Seed,
    ) -> Result<Perturbed, AttackError> {
        let _no_grad = tch::no_grad_guard();
        let mut oracle = Oracle::new(model, self.name, batch.ids);
        let mut found = batch.images.copy();
        let mut open: Vec<usize> = (0..batch.ids.len()).collect();
        for restart in 0..self.config.restarts {
            let mut draws = SquareDraws::streams(attempt_seed(seed, restart), batch.ids);
            let end = search(&mut oracle, batch, threat, &self.config, &open, &mut draws)?;
            write_rows(&mut found, &open, &end.images);
            let left: Vec<usize> = (0..open.len()).filter(|&row| !end.reached[row]).collect();
            open = pick(&open, &left);
            if open.is_empty() {
                break;
            }
        }
        Ok(oracle.finish(found))
    }
}

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

/// Where Square's windows come from: one stream per sample, or a recording.
pub struct SquareDraws(Source);

enum Source {
    Streams(Vec<Box<dyn RngCore>>),
    Recorded { start: Tensor, corners: Vec<(i64, i64)>, signs: Vec<Vec<f32>>, next: usize },
}

/// One window per row: corner and the sign of each channel, and whether the L2 pattern is transposed.
struct Windows {
    /// i64 `[N]`.
    top: Tensor,
    left: Tensor,
    /// f32 `[N, C]`.
    signs: Tensor,
    /// Bool `[N]`.
    transposed: Tensor,
}

impl SquareDraws {
    pub(crate) fn streams(seed: Seed, ids: &[u64]) -> Self {
        Self(Source::Streams(ids.iter().map(|&id| Box::new(seed.stream("square", id)) as Box<dyn RngCore>).collect()))
    }

    /// A recorded Linf run in which all samples share their windows.
    ///
    /// * `start`: f32 `[N, C, 1, W]`, the signs of the first stripes; `corners`: row and column of each
    ///   query's window; `signs`: sign of each channel in it.
    pub fn recorded(start: Tensor, corners: Vec<(i64, i64)>, signs: Vec<Vec<f32>>) -> Self {
        Self(Source::Recorded { start, corners, signs, next: 0 })
    }

    /// Random signs, f32 `[rows, shape..]`.
    fn signs(&mut self, rows: &[usize], shape: &[i64], device: Device) -> Tensor {
        let mut size = vec![rows.len() as i64];
        size.extend_from_slice(shape);
        match &mut self.0 {
            Source::Recorded { start, .. } => start.index_select(0, &index(rows, start)).to_device(device),
            Source::Streams(streams) => {
                let per_row = shape.iter().product::<i64>();
                let mut values = Vec::with_capacity(rows.len() * per_row as usize);
                for &row in rows {
                    let stream = streams[row].as_mut();
                    values.extend((0..per_row).map(|_| sign(stream)));
                }
                Tensor::from_slice(&values).view(size.as_slice()).to_device(device)
            }
        }
    }

    /// A window of `side` at a uniform place for each row.
    fn windows(&mut self, rows: &[usize], side: i64, image: &[i64], device: Device) -> Windows {
        let (channels, height, width) = (image[0], image[1], image[2]);
        let (mut top, mut left, mut signs, mut transposed) = (vec![], vec![], vec![], vec![]);
        match &mut self.0 {
            Source::Recorded { corners, signs: recorded, next, .. } => {
                let (row, column) = corners[*next];
                for _ in rows {
                    top.push(row);
                    left.push(column);
                    signs.extend(&recorded[*next]);
                    transposed.push(false);
                }
                *next += 1;
            }
            Source::Streams(streams) => {
                for &row in rows {
                    let stream = streams[row].as_mut();
                    top.push(stream.random_range(0..=height - side));
                    left.push(stream.random_range(0..=width - side));
                    signs.extend((0..channels).map(|_| sign(stream)));
                    transposed.push(stream.random::<bool>());
                }
            }
        }
        Windows {
            top: Tensor::from_slice(&top).to_device(device),
            left: Tensor::from_slice(&left).to_device(device),
            signs: Tensor::from_slice(&signs).view([-1, channels]).to_device(device),
            transposed: Tensor::from_slice(&transposed).to_device(device),
        }
    }
}

fn sign(rng: &mut dyn RngCore) -> f32 {
    if rng.random::<bool>() { 1.0 } else { -1.0 }
}

impl Windows {
    /// Positions of the windows' pixels in a flattened plane: i64 `[N, side * side]`.
    fn pixels(&self, side: i64, width: i64) -> Tensor {
        let along = Tensor::arange(side, (Kind::Int64, self.top.device()));
        let rows = self.top.view([-1, 1, 1]) + along.view([1, -1, 1]);
        let columns = self.left.view([-1, 1, 1]) + along.view([1, 1, -1]);
        (rows * width + columns).flatten(1, -1)
    }
}

/// What [`search`] ends with, one entry per sample.
pub(crate) struct End {
    pub(crate) images: Tensor,
    /// f32 `[N]`.
    pub(crate) margins: Tensor,
    pub(crate) reached: Vec<bool>,
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
    let mut active = Active::new(open);
    let mut samples = Samples::of(batch, open);
    let image = samples.clean.size()[1..].to_vec();
    let (height, width, device) = (image[1], image[2], samples.clean.device());

    let mut best = match norm {
        Norm::Linf => {
            let stripes = draws.signs(open, &[image[0], 1, width], device);
            threat.project(&samples.clean, &(&samples.clean + stripes * threat.epsilon.value()))
        }
        Norm::L2 | Norm::L1 => tiles(draws, open, &samples.clean, threat),
    };
    let logits = oracle.logits(&best, open)?;
    let mut margin = samples.batch(&[]).goal_margin(&logits);
    let mut done = samples.reached(&logits);
    let mut end = End { images: best.copy(), margins: margin.copy(), reached: vec![false; open.len()] };

    for query in 0..=config.queries {
        let hit = positions(&done);
        let last = query == config.queries;
        if !hit.is_empty() || last {
            let leaving = if last { (0..active.len()).collect() } else { hit.clone() };
            active.store(&mut end.images, &leaving, &best);
            active.store(&mut end.margins, &leaving, &margin);
            for &row in &hit {
                end.reached[active.slots()[row]] = true;
            }
            let left = positions(&done.logical_not());
            if last || left.is_empty() {
                break;
            }
            active.keep(&left, samples.tensors().chain([&mut best, &mut margin]));
        }
        let p = share(config.p_init, query, config.queries, config.rescale_schedule);
        let side = side(norm, p, height, width);
        let windows = draws.windows(active.samples(), side, &image, device);
        let candidate = match norm {
            Norm::Linf => linf_candidate(&samples.clean, &best, &windows, side, threat),
            Norm::L2 | Norm::L1 => {
                let other = draws.windows(active.samples(), side, &image, device);
                moved_mass(&samples.clean, &best, &windows, &other, side, threat)
            }
        };
        let logits = oracle.logits(&candidate, active.samples())?;
        let now = samples.batch(&[]).goal_margin(&logits);
        done = samples.reached(&logits);
        let better = now.lt_tensor(&margin).logical_or(&done);
        best = candidate.where_self(&per_image(&better), &best);
        margin = now.where_self(&better, &margin);
    }
    Ok(end)
}

/// Linf: every pixel of the window goes to the end of its range that the channel's sign says. Only the window is
/// computed: after the first queries it is a small part of the image.
fn linf_candidate(clean: &Tensor, best: &Tensor, windows: &Windows, side: i64, threat: &ThreatModel) -> Tensor {
    let size = clean.size();
    let here = windows.pixels(side, size[3]).unsqueeze(1).expand([-1, size[1], -1], false);
    let best = best.flatten(2, 3);
    let change = windows.signs.unsqueeze(2) * (2.0 * threat.epsilon.value());
    let moved = best.gather(2, &here, false) + change;
    let moved = threat.project(&clean.flatten(2, 3).gather(2, &here, false), &moved);
    best.scatter(2, &here, &moved).view_as(clean)
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
    first: &Windows,
    second: &Windows,
    side: i64,
    threat: &ThreatModel,
) -> Tensor {
    let epsilon = threat.epsilon.value();
    let size = clean.size();
    let (channels, width) = (size[1], size[3]);
    let flat = (best - clean).flatten(2, 3);
    let squared = threat.norm == Norm::L2;
    // Length over the last dimension, and its power that adds up over disjoint parts.
    let powers = |values: &Tensor| if squared { values.square() } else { values.abs() };
    let length = |values: &Tensor| {
        let sum = powers(values).sum_dim_intlist([-1i64].as_slice(), true, Kind::Float);
        if squared { sum.sqrt() } else { sum }
    };
    let pixels = |windows: &Windows| windows.pixels(side, width).unsqueeze(1).expand([-1, channels, -1], false);
    let (here, there) = (pixels(first), pixels(second));
    let outside = flat.scatter_value(2, &here, 0.0).scatter_value(2, &there, 0.0);
    let per_sample = |values: &Tensor| powers(values).sum_dim_intlist([1i64, 2].as_slice(), true, Kind::Float);
    let (whole, rest) = (per_sample(&flat), per_sample(&outside));
    let budget = if squared { epsilon * epsilon } else { epsilon };
    let windows = (&whole - rest).clamp_min(0.0);
    let unused = (budget - whole).clamp_min(0.0);

    let pattern = window(side).to_device(clean.device());
    let turned = pattern.transpose(0, 1).contiguous().view([1, 1, -1]);
    let pattern = turned.where_self(&first.transposed.view([-1, 1, 1]), &pattern.view([1, 1, -1]));
    let old = flat.gather(2, &here, false);
    let new = pattern * first.signs.unsqueeze(2) + &old / (length(&old) + 1e-12);
    let new = &new / (length(&new) + 1e-12);
    let new = if squared {
        new * (unused / channels as f64 + windows).sqrt()
    } else {
        new * (unused / channels as f64 + windows) * channels as f64
    };
    let delta = flat.scatter_value(2, &there, 0.0).scatter(2, &here, &new).view_as(clean);
    filled(clean, &delta, threat)
}
