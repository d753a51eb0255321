//! Square: random search over windows, with logits only.

use std::collections::BTreeMap;

use c2r_base::{Norm, Passes, Seed, ThreatModel, host};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use crate::{
    active::{Active, Leaving, Samples},
    attack::{AttackBatch, Family},
    attacks::at_hand::square_search,
    error::{AttackError, ConfigError},
    options::{ALL_NORMS, Check, Options, Search, Task, options, passes},
    oracle::Oracle,
    rows::{attempt_seed, index, per_image, pick, where_true, write_rows},
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
    fn build(&self, name: &'static str) -> Result<Box<dyn Search>, ConfigError> {
        let check = Check(name);
        check.count("queries", self.queries)?;
        check.count("restarts", self.restarts)?;
        check.fraction("p-init", self.p_init)?;
        Ok(Box::new(self.clone()))
    }

    fn passes(&self, _: u64) -> Passes {
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
    Streams(Vec<ChaCha8Rng>),
    Recorded { start: Tensor, corners: Vec<(i64, i64)>, signs: Vec<Vec<f32>>, next: usize },
}

/// One window per row: where it begins, and what is in it.
struct Window {
    /// Position of its first pixel in a flattened plane: i64 `[N, 1]`.
    first: Tensor,
    /// Sign of each channel, f32 `[N, C, 1]`.
    signs: Tensor,
    /// Positive where the L2 pattern is transposed, f32 `[N, 1, 1]`.
    turned: Tensor,
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
    fn signs(&mut self, rows: &[usize], shape: &[i64], device: Device) -> Tensor {
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
                Tensor::from_slice(&values).view(size.as_slice()).to_device(device)
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
    fn windows(&mut self, rows: &[usize], sides: &[i64], image: &[i64], device: Device) -> Vec<Window> {
        let (mut first, mut signs) = (Vec::new(), Vec::new());
        for &row in rows {
            for (ahead, &side) in sides.iter().enumerate() {
                first.push(self.window(row, ahead, side, image, &mut signs));
            }
        }
        self.advance(sides.len());
        let (n, each, channels) = (rows.len() as i64, sides.len() as i64, image[0]);
        let first = Tensor::from_slice(&first).view([n, each, 1]).to_device(device);
        let signs = Tensor::from_slice(&signs).view([n, each, channels + 1, 1]).to_device(device);
        let turned = signs.narrow(2, channels, 1).unbind(1);
        let signs = signs.narrow(2, 0, channels).unbind(1);
        let parts = first.unbind(1).into_iter().zip(signs).zip(turned);
        parts.map(|((first, signs), turned)| Window { first, signs, turned }).collect()
    }
}

fn sign(rng: &mut ChaCha8Rng) -> f32 {
    if rng.random::<bool>() { 1.0 } else { -1.0 }
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
    if norm == Norm::Linf && host::is_at_hand(batch.images.device()) {
        return square_search(oracle, batch, threat, config, open, draws);
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

/// Linf: the start, vertical stripes with random signs.
pub(super) fn stripes(draws: &mut SquareDraws, rows: &[usize], clean: &Tensor, threat: &ThreatModel) -> Tensor {
    let (size, device) = (clean.size(), clean.device());
    let signs = draws.signs(rows, &[size[1], 1, size[3]], device);
    threat.project(clean, &(clean + signs * threat.epsilon.value()))
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
