//! Auto-PGD: PGD with momentum whose step size adapts to each sample.

use c2r_base::{Ball, Norm, Passes, ThreatModel};
use tch::{Kind, Tensor};

use crate::{
    active::{Active, Leaving, Samples},
    aims::{self, Aims},
    attack::{AttackBatch, Family},
    draws::{Draws, Request},
    error::{AttackError, ConfigError},
    options::{ALL_NORMS, Check, LossKind, Options, Search, Task, options, passes},
    oracle::{LossGradient, Oracle},
    rows::{attempt_seed, index, per_image, write_rows},
};

/// Steps of APGD and FAB. Croce & Hein 2020 (arXiv:2003.01690), section 5.
pub(crate) const STEPS: u32 = 100;
/// Share of rising steps below which APGD halves its step. Croce & Hein 2020, section 3.
const RHO: f64 = 0.75;
/// Target classes of APGD-T and FAB-T. Croce & Hein 2020, section 5.
pub(crate) const TARGETS: u32 = 9;
/// Momentum: share of the new step. Croce & Hein 2020 (arXiv:2003.01690), section 3.
const MOMENTUM: f64 = 0.75;
/// L1: share of the values in the first sparse step. Croce & Hein 2021 (arXiv:2103.01208), section 3.2.
const L1_FIRST_SHARE: f64 = 0.2;
/// L1: a step changes this much fewer values than the best perturbation does, and steps shrink by it.
const L1_REDUCTION: f64 = 1.5;
/// L1: the step is never shorter than this fraction of epsilon.
const L1_MIN_STEP: f64 = 0.1;
/// L1: the perturbation counts as having become sparser below this ratio.
const L1_SPARSER: f64 = 0.95;
/// L1: radii in epsilons and shares of the steps of the three phases. Croce & Hein 2021, section 3.3.
const L1_PHASES: [(f64, f64); 3] = [(3.0, 0.3), (2.0, 0.3), (1.0, 0.4)];

/// The options of APGD, and more.
macro_rules! apgd_options {
    ($(#[$doc:meta])* $name:ident { $($more:tt)* }) => {
        options!(
            $(#[$doc])*
            $name {
                /// Number of steps.
                steps: u32 = STEPS,
                /// Attempts, per target if it has any; a sample that is broken is not tried again.
                restarts: u32 = 1,
                /// Share of rising steps below which the step is halved.
                rho: f64 = RHO,
                /// Gradients averaged per step, for randomized models.
                samples: u32 = 1,
                /// Compare the first window's first loss with 0, as the authors' code does by accident, instead of
                /// with the start's loss, as their paper does.
                first_window_from_zero: bool = false,
                $($more)*
            }
        );
    };
}

apgd_options!(
    /// APGD (Croce & Hein 2020, arXiv:2003.01690, section 3; L1: arXiv:2103.01208).
    ApgdConfig {}
);
apgd_options!(
    /// APGD-T: APGD on the targeted DLR loss towards the classes with the largest clean logits.
    ApgdTConfig {
        /// Target classes per sample; at most K - 1 are used.
        targets: u32 = TARGETS,
    }
);

/// APGD-CE, APGD-DLR and APGD-T.
pub(crate) struct Apgd {
    pub(crate) config: ApgdConfig,
    pub(crate) loss: LossKind,
    /// How many likely classes it aims at where the goal names none; `None` for away from the label.
    pub(crate) targets: Option<u32>,
}

impl ApgdConfig {
    fn attack(&self, check: &Check, loss: LossKind, targets: Option<u32>) -> Result<Box<dyn Search>, ConfigError> {
        check.count("steps", self.steps)?;
        check.count("restarts", self.restarts)?;
        check.count("samples", self.samples)?;
        check.fraction("rho", self.rho)?;
        Ok(Box::new(Apgd { config: self.clone(), loss, targets }))
    }
}

impl Options for ApgdConfig {
    fn build(&self, name: &'static str) -> Result<Box<dyn Search>, ConfigError> {
        self.attack(&Check(name), if name == "apgd-ce" { LossKind::Ce } else { LossKind::Dlr }, None)
    }

    fn passes(&self, threat: &ThreatModel, _: u64) -> Passes {
        // Every phase takes the gradient at its start as well.
        let starts = if threat.norm == Norm::L1 { L1_PHASES.len() as u64 } else { 1 };
        let n = (u64::from(self.steps) + starts) * u64::from(self.restarts) * u64::from(self.samples);
        passes(n, n)
    }
}

impl ApgdTConfig {
    /// The options of each of its runs.
    const fn run(&self) -> ApgdConfig {
        let Self { steps, restarts, rho, samples, first_window_from_zero, .. } = *self;
        ApgdConfig { steps, restarts, rho, samples, first_window_from_zero }
    }
}

impl Options for ApgdTConfig {
    fn build(&self, name: &'static str) -> Result<Box<dyn Search>, ConfigError> {
        let check = Check(name);
        check.count("targets", self.targets)?;
        self.run().attack(&check, LossKind::Dlr, Some(self.targets))
    }

    fn passes(&self, threat: &ThreatModel, classes: u64) -> Passes {
        let Passes { backward_images: one_run, .. } = self.run().passes(threat, classes);
        let (n_aims, to_choose) = aims::cost(threat, self.targets, classes);
        passes(one_run * n_aims + to_choose, one_run * n_aims)
    }
}

impl Search for Apgd {
    fn family(&self) -> Family {
        Family::Gradient
    }

    fn check(&self, check: &Check, threat: &ThreatModel, classes: i64) -> Result<(), ConfigError> {
        check.norm(&ALL_NORMS, threat)?;
        let needed = if self.targets.is_some() { 4 } else { self.loss.classes_needed(threat.goal) };
        check.classes(needed, classes)
    }

    fn search(&self, oracle: &mut Oracle<'_>, &Task { batch, threat, seed }: &Task<'_>) -> Result<Tensor, AttackError> {
        let mut found = batch.images.copy();
        let aims = Aims::new(oracle, batch, self.targets)?;
        let mut open: Vec<usize> = (0..batch.ids.len()).collect();
        for restart in 0..self.config.restarts {
            let purpose = format!("{}/start", oracle.attack());
            let mut draws = Draws::streams(attempt_seed(seed, restart), &purpose, batch.ids);
            let mut left = Vec::new();
            for part in open.chunks(aims.samples_per_pass(batch.images)) {
                let (images, standing) = self.attempt(oracle, batch, threat, part, &aims, &mut draws)?;
                write_rows(&mut found, part, &images);
                left.extend(standing);
            }
            open = left;
            if open.is_empty() {
                break;
            }
        }
        Ok(found)
    }
}

impl Apgd {
    /// One start per sample of `part` and aim, all in one pass: the aims of a sample run in step, so which
    /// one succeeds first does not depend on the batch. Returns one image per sample and the samples that still stand.
    fn attempt(
        &self,
        oracle: &mut Oracle<'_>,
        batch: &AttackBatch<'_>,
        threat: &ThreatModel,
        part: &[usize],
        aims: &Aims,
        draws: &mut Draws,
    ) -> Result<(Tensor, Vec<usize>), AttackError> {
        let (rows, row_aims) = aims.rows(part);
        let Samples { clean, .. } = Samples::of(batch, &rows);
        let mut x = start(draws, &rows, &clean, threat);
        let mut last = None;
        for phase in Phase::of_attempt(threat, self.config.steps) {
            if phase.norm == Norm::L1 {
                x = phase.norm.project(&clean, &x, phase.radius);
            }
            let end = self.run(oracle, batch, &rows, row_aims.as_ref(), &x, phase)?;
            x = end.best.shallow_clone();
            last = Some(end);
        }
        let end = last.expect("an attempt has a phase");
        // The image of the first aim that succeeded, else of the first aim.
        let n_aims = aims.count();
        let mut standing = Vec::new();
        let mut from = Vec::with_capacity(part.len());
        for (slot, &sample) in part.iter().enumerate() {
            let rows = slot * n_aims..(slot + 1) * n_aims;
            match rows.clone().find(|&row| end.reached[row]) {
                Some(row) => from.push(row),
                None => {
                    from.push(rows.start);
                    standing.push(sample);
                }
            }
        }
        Ok((end.best.index_select(0, &index(&from, &end.best)), standing))
    }
}

/// Random points on the sphere of the threat model (the L1 start fills the largest phase's ball).
fn start(draws: &mut Draws, rows: &[usize], clean: &Tensor, threat: &ThreatModel) -> Tensor {
    let shape = &clean.size()[1..];
    let request = Request::once(rows, shape, clean.device());
    let epsilon = threat.epsilon.value();
    let moved = match threat.norm {
        Norm::Linf => {
            let noise = draws.uniform(&request).squeeze_dim(1);
            let largest = per_image(&Norm::Linf.length(&noise)).clamp_min(1e-12);
            clean + noise / largest * epsilon
        }
        Norm::L2 => clean + Norm::L2.steepest(&draws.normal(&request).squeeze_dim(1)) * epsilon,
        Norm::L1 => return clean + draws.normal(&request).squeeze_dim(1),
    };
    moved.clamp(0.0, 1.0)
}

/// A part of an attempt with one radius.
#[derive(Clone, Copy)]
pub(crate) struct Phase {
    pub(crate) norm: Norm,
    /// Of the ball, pixel units.
    pub(crate) radius: f64,
    pub(crate) steps: u32,
    /// L1: whether the first step's sparsity is taken from the start, not a constant.
    pub(crate) warm: bool,
    /// Whether a sample leaves at the first image that reaches the goal, with all its rows; success is
    /// then known, so no outcome changes.
    pub(crate) stop: bool,
}

impl Phase {
    /// The phases of an attempt of `steps` steps, each from the end of the one before.
    fn of_attempt(threat: &ThreatModel, steps: u32) -> Vec<Self> {
        let (norm, epsilon) = (threat.norm, threat.epsilon.value());
        if norm != Norm::L1 {
            return vec![Self { norm, radius: epsilon, steps, warm: false, stop: true }];
        }
        let mut left = steps;
        let phase = |(nth, (radius, share)): (usize, (f64, f64))| {
            let stop = nth + 1 == L1_PHASES.len();
            let steps = if stop { left } else { ((f64::from(steps) * share).ceil() as u32).min(left) };
            left -= steps;
            Self { norm, radius: radius * epsilon, steps, warm: true, stop }
        };
        L1_PHASES.into_iter().enumerate().map(phase).collect()
    }

    /// Length of the first step, pixel units.
    fn first_step(&self) -> f64 {
        match self.norm {
            Norm::Linf | Norm::L2 => 2.0 * self.radius,
            Norm::L1 => self.radius,
        }
    }

    /// After how many steps the step is judged, 1-based.
    fn judged_after(&self) -> Vec<u32> {
        match self.norm {
            Norm::Linf | Norm::L2 => checkpoints(self.steps),
            Norm::L1 => {
                let every = ((0.04 * f64::from(self.steps)) as u32).max(1);
                (1..=self.steps / every).map(|nth| nth * every).collect()
            }
        }
    }
}

/// What [`Apgd::run`] ends with.
pub(crate) struct End {
    /// f32 `[rows, C, H, W]`: the image that reached the goal, else the one with the largest loss.
    pub(crate) best: Tensor,
    /// f32 `[rows]`: the largest loss.
    pub(crate) best_losses: Tensor,
    /// Whether each row's image reaches the goal.
    pub(crate) reached: Vec<bool>,
}

/// After how many steps the step size is judged, 1-based: differences fall by 0.03 of the steps from
/// 0.22 to 0.06. Croce & Hein 2020, section 3; rounding as in their code.
pub fn checkpoints(steps: u32) -> Vec<u32> {
    let share = |fraction: f64| ((fraction * f64::from(steps)) as u32).max(1);
    let (mut width, least, less) = (share(0.22), share(0.06), share(0.03));
    let mut points = Vec::new();
    let mut at = width;
    while at <= steps {
        points.push(at);
        width = width.saturating_sub(less).max(least);
        at += width;
    }
    points
}

/// Whether the loss rose in too few of a window's steps.
///
/// * `losses`: f32 `[k + 1, N]`, the loss before the window and after each of its k steps.
///
/// Returns bool `[N]`. Condition 1 of Croce & Hein 2020, section 3, with "at most" as in their code, where the paper has "less than".
/// Their code compares the first window's first loss with 0 instead of the start's loss.
pub fn oscillates(losses: &Tensor, rho: f64) -> Tensor {
    let steps = losses.size()[0] - 1;
    let rises = losses.narrow(0, 1, steps).gt_tensor(&losses.narrow(0, 0, steps));
    rises.to_kind(Kind::Float).sum_dim_intlist([0i64].as_slice(), false, Kind::Float).le(steps as f64 * rho)
}

/// State of the rows that still run.
struct State {
    active: Active,
    samples: Samples,
    /// The classes that the loss aims at, which need not be the goal's.
    aims: Option<Tensor>,
    phase: Phase,
    ball: Ball,
    x: Tensor,
    x_before: Tensor,
    x_best: Tensor,
    gradient: Tensor,
    gradient_best: Tensor,
    loss_best: Tensor,
    /// f32 `[N, 1, 1, 1]`.
    step: Tensor,
    /// Losses since the last checkpoint, the one before it included.
    window: Vec<Tensor>,
    /// Bool `[N]`.
    halved_last: Tensor,
    best_at_checkpoint: Tensor,
    /// L1: share of the values that a step changes, f32 `[N]`.
    share: Tensor,
    /// L1: values that the best perturbation changed at the last checkpoint, f32 `[N]`.
    n_changed: Tensor,
}

impl Apgd {
    /// Loss and gradient at `x`, averaged over the passes that the options ask for.
    fn gradient(
        &self,
        oracle: &mut Oracle<'_>,
        x: &Tensor,
        rows: &[usize],
        labels: &Tensor,
        aims: Option<&Tensor>,
    ) -> Result<LossGradient, AttackError> {
        // The confidence is the CW loss's, which APGD does not have.
        let mut once = || oracle.gradient(x, rows, |_, logits| self.loss.losses(logits, labels, aims, 0.0));
        let mut found = once()?;
        for _ in 1..self.config.samples {
            let more = once()?;
            found.gradient += more.gradient;
            found.losses += more.losses;
            found.logits = more.logits;
        }
        if self.config.samples > 1 {
            found.gradient /= f64::from(self.config.samples);
            found.losses /= f64::from(self.config.samples);
        }
        Ok(found)
    }

    /// Runs Auto-PGD from `start`, f32 `[rows, C, H, W]`.
    ///
    /// * `rows`: sample of the batch that each row belongs to; rows of one sample are adjacent.
    /// * `aims`: i64 `[rows]`, the class that the loss aims at.
    pub(crate) fn run(
        &self,
        oracle: &mut Oracle<'_>,
        batch: &AttackBatch<'_>,
        rows: &[usize],
        aims: Option<&Tensor>,
        start: &Tensor,
        phase: Phase,
    ) -> Result<End, AttackError> {
        let samples = Samples::of(batch, rows);
        let mut end = End {
            best: start.copy(),
            best_losses: Tensor::full([rows.len() as i64], f64::NEG_INFINITY, (Kind::Float, start.device())),
            reached: Vec::new(),
        };
        let first = self.gradient(oracle, start, rows, &samples.labels, aims)?;
        let mut state = State::new(rows, samples, aims, start, first, phase);
        if self.config.first_window_from_zero {
            state.window = vec![state.loss_best.zeros_like()];
        }
        let passes = u64::from(self.config.samples);
        let mut judged_after = phase.judged_after().into_iter().peekable();
        for step in 1..=phase.steps {
            if phase.stop && !state.leave(oracle, passes, &mut end)? {
                return Ok(end);
            }
            let moved = state.next(if step == 1 { 1.0 } else { MOMENTUM });
            state.x_before = std::mem::replace(&mut state.x, moved);
            let State { active, samples, aims, x, .. } = &state;
            let there = self.gradient(oracle, x, active.samples(), &samples.labels, aims.as_ref())?;
            state.arrive(there);
            if judged_after.next_if_eq(&step).is_some() {
                match phase.norm {
                    Norm::Linf | Norm::L2 => state.judge_step(self.config.rho),
                    Norm::L1 => state.judge_sparsity(),
                }
            }
        }
        // Rows that are done and not stored yet are stored with the others.
        state.active.leave(oracle, passes, true)?;
        let all: Vec<usize> = (0..state.active.len()).collect();
        state.store(&all, &mut end);
        Ok(end)
    }
}

impl State {
    /// At the `start` of a phase, f32 `[rows, C, H, W]`, where loss and gradient are `first`.
    fn new(
        rows: &[usize],
        samples: Samples,
        aims: Option<&Tensor>,
        start: &Tensor,
        first: LossGradient,
        phase: Phase,
    ) -> Self {
        let LossGradient { gradient, losses, logits } = first;
        let like = losses.ones_like();
        let (share, n_changed) = if phase.norm == Norm::L1 && phase.warm {
            let n_changed = count_changed(start, &samples.clean);
            (share_to_change(&n_changed, start), n_changed)
        } else {
            (&like * L1_FIRST_SHARE, &like * values_per_image(start))
        };
        let mut state = Self {
            active: Active::new(rows),
            ball: phase.norm.ball(&samples.clean, phase.radius),
            samples,
            aims: aims.map(Tensor::shallow_clone),
            phase,
            x: start.copy(),
            x_before: start.copy(),
            x_best: start.copy(),
            gradient_best: gradient.copy(),
            gradient,
            loss_best: losses.copy(),
            step: per_image(&like) * phase.first_step(),
            halved_last: like.gt(0.0),
            best_at_checkpoint: losses.copy(),
            window: vec![losses],
            share,
            n_changed,
        };
        if phase.stop {
            // The best image is the start.
            state.active.note(state.samples.reached(&logits));
        }
        state
    }

    /// Takes out the samples that are known to have reached the goal; returns whether any row is left.
    fn leave(&mut self, oracle: &mut Oracle<'_>, passes: u64, end: &mut End) -> Result<bool, AttackError> {
        let Some(Leaving { done, left }) = self.active.leave(oracle, passes, false)? else { return Ok(true) };
        self.store(&done, end);
        if !left.is_empty() {
            self.keep(&left);
        }
        Ok(!left.is_empty())
    }

    fn store(&self, rows: &[usize], end: &mut End) {
        self.active.store(&mut end.best, rows, &self.x_best);
        self.active.store(&mut end.best_losses, rows, &self.loss_best);
        end.reached = self.active.reached().to_vec();
    }

    fn keep(&mut self, rows: &[usize]) {
        let own = [
            &mut self.x,
            &mut self.x_before,
            &mut self.x_best,
            &mut self.gradient,
            &mut self.gradient_best,
            &mut self.loss_best,
            &mut self.step,
            &mut self.halved_last,
            &mut self.best_at_checkpoint,
            &mut self.share,
            &mut self.n_changed,
        ];
        let state = self.samples.tensors().chain(own).chain(&mut self.window).chain(self.aims.as_mut());
        self.active.keep(rows, state);
        self.ball = self.phase.norm.ball(&self.samples.clean, self.phase.radius);
    }

    /// The next point: a projected step, then momentum, projected again.
    fn next(&self, share_of_new: f64) -> Tensor {
        let norm = self.phase.norm;
        if norm == Norm::L1 {
            let direction = sparse_sign(&self.gradient, &self.share);
            return self.ball.project(&(&self.x + direction * &self.step));
        }
        let stepped = self.ball.project(&(&self.x + norm.steepest(&self.gradient) * &self.step));
        let moved = &self.x + (stepped - &self.x) * share_of_new + (&self.x - &self.x_before) * (1.0 - share_of_new);
        self.ball.project(&moved)
    }

    /// Takes in what was found at `x`.
    fn arrive(&mut self, there: LossGradient) {
        let LossGradient { gradient, losses, logits } = there;
        self.gradient = gradient;
        let mut better = losses.gt_tensor(&self.loss_best);
        if self.phase.stop {
            // An image that reached the goal stays the best one, whatever its loss.
            let hit = self.samples.reached(&logits);
            better = self.active.open(better.logical_or(&hit));
            self.active.note(hit);
        }
        let better_image = per_image(&better);
        self.x_best = self.x.where_self(&better_image, &self.x_best);
        self.gradient_best = self.gradient.where_self(&better_image, &self.gradient_best);
        self.loss_best = losses.maximum(&self.loss_best);
        self.window.push(losses);
    }

    /// Halves the step of the rows that make no progress and sends them back to their best point.
    fn judge_step(&mut self, rho: f64) {
        let losses = Tensor::stack(&self.window, 0);
        let stuck = self.halved_last.logical_not().logical_and(&self.best_at_checkpoint.ge_tensor(&self.loss_best));
        let halve = oscillates(&losses, rho).logical_or(&stuck);
        let halve_image = per_image(&halve);
        self.step = (&self.step * 0.5).where_self(&halve_image, &self.step);
        self.return_to_best(&halve_image);
        self.halved_last = halve;
        self.best_at_checkpoint = self.loss_best.copy();
    }

    /// L1: adapts how many values a step changes to the best perturbation, and the step to whether that
    /// became sparser. Croce & Hein 2021, section 3.2.
    fn judge_sparsity(&mut self) {
        let radius = self.phase.radius;
        let n_changed = count_changed(&self.x_best, &self.samples.clean);
        let sparser = (&n_changed / self.n_changed.clamp_min(1.0)).lt(L1_SPARSER);
        self.share = share_to_change(&n_changed, &self.x);
        let sparser_image = per_image(&sparser);
        let full = self.step.full_like(radius);
        self.step = full.where_self(&sparser_image, &(&self.step / L1_REDUCTION)).clamp(L1_MIN_STEP * radius, radius);
        self.return_to_best(&sparser_image);
        self.n_changed = n_changed;
    }

    /// Sends these images, bool `[N, 1, 1, 1]`, back to their best points, and begins the next window.
    fn return_to_best(&mut self, images: &Tensor) {
        self.x = self.x_best.where_self(images, &self.x);
        self.gradient = self.gradient_best.where_self(images, &self.gradient);
        self.window.drain(..self.window.len() - 1);
    }
}

fn values_per_image(images: &Tensor) -> f64 {
    images.size()[1..].iter().product::<i64>() as f64
}

/// L1: share of the values of `images` that a step changes where the best perturbation changed `n_changed`, both f32 `[N]`.
fn share_to_change(n_changed: &Tensor, images: &Tensor) -> Tensor {
    n_changed / (values_per_image(images) * L1_REDUCTION)
}

/// Number of values that differ, f32 `[N]`.
fn count_changed(x: &Tensor, clean: &Tensor) -> Tensor {
    x.ne_tensor(clean).to_kind(Kind::Float).flatten(1, -1).sum_dim_intlist([1i64].as_slice(), false, Kind::Float)
}

/// Signs of each gradient's largest values (`share` of them, f32 `[N]`), L1 length 1.
fn sparse_sign(gradient: &Tensor, share: &Tensor) -> Tensor {
    let flat = gradient.flatten(1, -1);
    let n_values = flat.size()[1];
    let (sorted, _) = flat.abs().sort(1, false);
    let first = ((-share + 1.0) * n_values as f64).clamp(0.0, (n_values - 1) as f64).to_kind(Kind::Int64);
    let least = sorted.gather(1, &first.unsqueeze(1), false);
    let signs = flat.sign() * flat.abs().ge_tensor(&least).to_kind(Kind::Float);
    let count = signs.abs().sum_dim_intlist([1i64].as_slice(), true, Kind::Float).clamp_min(1e-10);
    (signs / count).view_as(gradient)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_of_the_paper() {
        assert_eq!(checkpoints(100), [22, 41, 57, 70, 80, 87, 93, 99]);
        assert_eq!(checkpoints(5), [1, 2, 3, 4, 5]);
        assert_eq!(checkpoints(20), [4, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]);
    }

    /// Grey images, which no start takes out of the box.
    #[test]
    fn starts_lie_on_the_sphere() {
        let clean = Tensor::full([6, 3, 4, 4], 0.5, (Kind::Float, tch::Device::Cpu));
        let ids: Vec<u64> = (0..6).collect();
        for norm in [Norm::Linf, Norm::L2] {
            let threat = ThreatModel::untargeted(norm, "0.2".parse().unwrap());
            let mut draws = Draws::streams(c2r_base::Seed::new(1), "test", &ids);
            let start = start(&mut draws, &[0, 1, 2, 3, 4, 5], &clean, &threat);
            let off = (norm.distance(&start, &clean) - 0.2).abs().max().double_value(&[]);
            assert!(off < 1e-6, "{norm}: {off}");
            assert!((start.get(0) - start.get(1)).abs().max().double_value(&[]) > 0.01);
        }
    }

    #[test]
    fn sparse_sign_changes_the_share_and_has_unit_length() {
        let gradient = Tensor::from_slice(&[0.1f32, -4.0, 3.0, 0.2, 0.0]).view([1, 1, 1, 5]);
        let step = sparse_sign(&gradient, &Tensor::from_slice(&[0.4f32]));
        assert_eq!(Vec::<f32>::try_from(step.flatten(0, -1)).unwrap(), [0.0, -0.5, 0.5, 0.0, 0.0]);
    }
}
