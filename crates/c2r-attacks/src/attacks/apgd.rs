//! Auto-PGD: PGD with momentum whose step size adapts to each sample.

use c2r_base::{Classifier, Norm, Passes, Seed, ThreatModel};
use tch::{Kind, Tensor};

use crate::{
    active::{Active, Samples, attempt_seed, index, per_image, positions, write_rows},
    aims::Aims,
    attack::{Attack, AttackBatch, Family, Perturbed},
    draws::Draws,
    error::{AttackError, ConfigError},
    options::{ALL_NORMS, Check, LossKind, Options, options, passes},
    oracle::{LossGradient, Oracle},
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

options!(
    /// APGD (Croce & Hein 2020, arXiv:2003.01690, section 3; L1: arXiv:2103.01208).
    ApgdConfig {
        /// Number of steps.
        steps: u32 = STEPS,
        /// Attempts; a sample that is broken is not tried again.
        restarts: u32 = 1,
        /// Share of rising steps below which the step is halved.
        rho: f64 = RHO,
        /// Gradients averaged per step, for randomized models.
        samples: u32 = 1,
        /// Compare the first window's first loss with 0, as the authors' code does by accident, instead of
        /// with the start's loss, as their paper does.
        first_window_from_zero: bool = false,
    }
);
options!(
    /// APGD-T: APGD on the targeted DLR loss towards the classes with the largest clean logits.
    ApgdTConfig {
        /// Number of steps.
        steps: u32 = STEPS,
        /// Attempts per target; a sample that is broken is not tried again.
        restarts: u32 = 1,
        /// Share of rising steps below which the step is halved.
        rho: f64 = RHO,
        /// Gradients averaged per step, for randomized models.
        samples: u32 = 1,
        /// Compare the first window's first loss with 0, as the authors' code does by accident, instead of
        /// with the start's loss, as their paper does.
        first_window_from_zero: bool = false,
        /// Target classes per sample; at most K - 1 are used.
        targets: u32 = TARGETS,
    }
);

/// APGD-CE, APGD-DLR and APGD-T.
pub(crate) struct Apgd {
    pub(crate) name: &'static str,
    pub(crate) config: ApgdConfig,
    pub(crate) loss: LossKind,
    /// How many likely classes it aims at where the goal names none; `None` for away from the label.
    pub(crate) targets: Option<u32>,
}

impl Options for ApgdConfig {
    fn build(&self, name: &'static str) -> Result<Box<dyn Attack>, ConfigError> {
        let check = Check(name);
        check.count("steps", self.steps)?;
        check.count("restarts", self.restarts)?;
        check.count("samples", self.samples)?;
        check.fraction("rho", self.rho)?;
        let loss = if name == "apgd-ce" { LossKind::Ce } else { LossKind::Dlr };
        Ok(Box::new(Apgd { name, config: self.clone(), loss, targets: None }))
    }

    fn passes(&self, _: u64) -> Passes {
        let n = (u64::from(self.steps) + 1) * u64::from(self.restarts) * u64::from(self.samples);
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
    fn build(&self, name: &'static str) -> Result<Box<dyn Attack>, ConfigError> {
        Check(name).count("targets", self.targets)?;
        self.run().build(name)?;
        let (loss, targets) = (LossKind::Dlr, Some(self.targets));
        Ok(Box::new(Apgd { name, config: self.run(), loss, targets }))
    }

    fn passes(&self, classes: u64) -> Passes {
        let Passes { forward_calls: one_run, .. } = self.run().passes(classes);
        let n = one_run * u64::from(self.targets).min(classes.saturating_sub(1));
        passes(n, n)
    }
}

impl Attack for Apgd {
    fn name(&self) -> &str {
        self.name
    }

    fn family(&self) -> Family {
        Family::Gradient
    }

    fn check(&self, threat: &ThreatModel, classes: i64) -> Result<(), ConfigError> {
        let check = Check(self.name);
        check.norm(&ALL_NORMS, threat)?;
        let needed = if self.targets.is_some() { 4 } else { self.loss.classes_needed(threat.goal) };
        check.classes(needed, classes)
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
        let aims = Aims::new(&mut oracle, batch, self.targets)?;
        let mut open: Vec<usize> = (0..batch.ids.len()).collect();
        for restart in 0..self.config.restarts {
            let mut draws = Draws::streams(attempt_seed(seed, restart), &format!("{}/start", self.name), batch.ids);
            let mut left = Vec::new();
            for part in open.chunks(aims.samples_per_pass(batch.images)) {
                let (images, standing) = self.attempt(&mut oracle, batch, threat, part, &aims, &mut draws)?;
                write_rows(&mut found, part, &images);
                left.extend(standing);
            }
            open = left;
            if open.is_empty() {
                break;
            }
        }
        Ok(oracle.finish(found))
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
        let epsilon = threat.epsilon.value();
        let clean = batch.images.index_select(0, &index(&rows, batch.images));
        let mut x = start(draws, &rows, &clean, threat);
        let steps = self.config.steps;
        let end = if threat.norm == Norm::L1 {
            let mut left = steps;
            let mut end = None;
            for (phase, (radius, share)) in L1_PHASES.into_iter().enumerate() {
                let last = phase + 1 == L1_PHASES.len();
                let now = if last { left } else { ((f64::from(steps) * share).ceil() as u32).min(left) };
                left -= now;
                let radius = radius * epsilon;
                x = threat.norm.project(&clean, &x, radius);
                let phase = Phase { norm: threat.norm, radius, steps: now, warm: true, stop: last };
                let reached = self.run(oracle, batch, &rows, row_aims.as_ref(), &x, phase)?;
                x = reached.best.shallow_clone();
                end = Some(reached);
            }
            end.expect("there are three phases")
        } else {
            let phase = Phase { norm: threat.norm, radius: epsilon, steps, warm: false, stop: true };
            self.run(oracle, batch, &rows, row_aims.as_ref(), &x, phase)?
        };
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
    let device = clean.device();
    let epsilon = threat.epsilon.value();
    let moved = match threat.norm {
        Norm::Linf => {
            let noise = draws.uniform(rows, shape, device);
            let largest = per_image(&Norm::Linf.length(&noise)).clamp_min(1e-12);
            clean + noise / largest * epsilon
        }
        Norm::L2 => clean + Norm::L2.steepest(&draws.normal(rows, shape, device)) * epsilon,
        Norm::L1 => return clean + draws.normal(rows, shape, device),
    };
    moved.clamp(0.0, 1.0)
}

/// A part of a run with one radius.
#[derive(Clone, Copy)]
pub(crate) struct Phase {
    pub(crate) norm: Norm,
    /// Of the ball, pixel units.
    pub(crate) radius: f64,
    pub(crate) steps: u32,
    /// Whether the start comes from an earlier phase (L1).
    pub(crate) warm: bool,
    /// Whether a sample leaves at the first image that reaches the goal, with all its rows; success is
    /// then known, so no outcome changes.
    pub(crate) stop: bool,
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
/// Returns bool `[N]`. Condition 1 of Croce & Hein 2020, section 3. Their code compares the first window's
/// first loss with 0 instead of the start's loss.
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
    norm: Norm,
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
        let Phase { norm, radius, steps, warm, stop } = phase;
        let samples = Samples::of(batch, rows);
        let n_values = samples.clean.size()[1..].iter().product::<i64>() as f64;
        let mut end = End {
            best: start.copy(),
            best_losses: Tensor::full([rows.len() as i64], f64::NEG_INFINITY, (Kind::Float, start.device())),
            reached: vec![false; rows.len()],
        };
        let first = self.gradient(oracle, start, rows, &samples.labels, aims)?;
        let like = first.losses.ones_like();
        let (share, n_changed) = match (norm, warm) {
            (Norm::L1, true) => {
                let n_changed = count_changed(start, &samples.clean);
                (&n_changed / (n_values * L1_REDUCTION), n_changed)
            }
            _ => (&like * L1_FIRST_SHARE, &like * n_values),
        };
        let full_step = match norm {
            Norm::Linf | Norm::L2 => 2.0 * radius,
            Norm::L1 => radius,
        };
        let from_zero = self.config.first_window_from_zero;
        let mut state = State {
            active: Active::new(rows),
            samples,
            aims: aims.map(Tensor::shallow_clone),
            norm,
            x: start.copy(),
            x_before: start.copy(),
            x_best: start.copy(),
            gradient_best: first.gradient.copy(),
            gradient: first.gradient,
            loss_best: first.losses.copy(),
            step: per_image(&like) * full_step,
            halved_last: like.gt(0.0),
            best_at_checkpoint: first.losses.copy(),
            window: vec![if from_zero { first.losses.zeros_like() } else { first.losses }],
            share,
            n_changed,
        };
        if stop && !state.retire(&first.logits, &mut end) {
            return Ok(end);
        }

        let mut checks = match norm {
            Norm::Linf | Norm::L2 => checkpoints(steps),
            Norm::L1 => {
                let every = ((0.04 * f64::from(steps)) as u32).max(1);
                (1..=steps / every).map(|nth| nth * every).collect()
            }
        }
        .into_iter()
        .peekable();
        for step in 1..=steps {
            let moved = state.next(radius, if step == 1 { 1.0 } else { MOMENTUM });
            state.x_before = std::mem::replace(&mut state.x, moved);
            let State { active, samples, aims, x, .. } = &state;
            let LossGradient { gradient, losses, logits } =
                self.gradient(oracle, x, active.samples(), &samples.labels, aims.as_ref())?;
            state.gradient = gradient;
            let better = losses.gt_tensor(&state.loss_best);
            let better_image = per_image(&better);
            state.x_best = state.x.where_self(&better_image, &state.x_best);
            state.gradient_best = state.gradient.where_self(&better_image, &state.gradient_best);
            state.loss_best = losses.maximum(&state.loss_best);
            state.window.push(losses);
            if stop && !state.retire(&logits, &mut end) {
                return Ok(end);
            }
            if checks.next_if_eq(&step).is_some() {
                match norm {
                    Norm::Linf | Norm::L2 => state.judge_step(self.config.rho),
                    Norm::L1 => state.judge_sparsity(radius, n_values),
                }
            }
        }
        write_rows(&mut end.best, state.active.slots(), &state.x_best);
        write_rows(&mut end.best_losses, state.active.slots(), &state.loss_best);
        Ok(end)
    }
}

impl State {
    /// Takes out the samples that reached the goal; returns whether any row is left.
    fn retire(&mut self, logits: &Tensor, end: &mut End) -> bool {
        let hit = positions(&self.samples.reached(logits));
        if hit.is_empty() {
            return true;
        }
        self.active.store(&mut end.best, &hit, &self.x);
        self.active.store(&mut end.best_losses, &hit, &self.loss_best);
        for &row in &hit {
            end.reached[self.active.slots()[row]] = true;
        }
        let (_, left) = self.active.split(&hit);
        if !left.is_empty() {
            self.keep(&left);
        }
        !left.is_empty()
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
    }

    /// The next point: a projected step, then momentum, projected again.
    fn next(&self, radius: f64, share_of_new: f64) -> Tensor {
        let (norm, clean) = (self.norm, &self.samples.clean);
        if norm == Norm::L1 {
            let direction = sparse_sign(&self.gradient, &self.share);
            return norm.project(clean, &(&self.x + direction * &self.step), radius);
        }
        let stepped = norm.project(clean, &(&self.x + norm.steepest(&self.gradient) * &self.step), radius);
        let moved = &self.x + (stepped - &self.x) * share_of_new + (&self.x - &self.x_before) * (1.0 - share_of_new);
        norm.project(clean, &moved, radius)
    }

    /// Halves the step of the rows that make no progress and sends them back to their best point.
    fn judge_step(&mut self, rho: f64) {
        let losses = Tensor::stack(&self.window, 0);
        let stuck = self.halved_last.logical_not().logical_and(&self.best_at_checkpoint.ge_tensor(&self.loss_best));
        let halve = oscillates(&losses, rho).logical_or(&stuck);
        let halve_image = per_image(&halve);
        self.step = (&self.step * 0.5).where_self(&halve_image, &self.step);
        self.x = self.x_best.where_self(&halve_image, &self.x);
        self.gradient = self.gradient_best.where_self(&halve_image, &self.gradient);
        self.halved_last = halve;
        self.best_at_checkpoint = self.loss_best.copy();
        self.window.drain(..self.window.len() - 1);
    }

    /// L1: adapts how many values a step changes to the best perturbation, and the step to whether that
    /// became sparser. Croce & Hein 2021, section 3.2.
    fn judge_sparsity(&mut self, radius: f64, n_values: f64) {
        let n_changed = count_changed(&self.x_best, &self.samples.clean);
        let sparser = (&n_changed / self.n_changed.clamp_min(1.0)).lt(L1_SPARSER);
        let sparser_image = per_image(&sparser);
        self.share = &n_changed / (n_values * L1_REDUCTION);
        let full = self.step.full_like(radius);
        self.step = full.where_self(&sparser_image, &(&self.step / L1_REDUCTION)).clamp(L1_MIN_STEP * radius, radius);
        self.x = self.x_best.where_self(&sparser_image, &self.x);
        self.gradient = self.gradient_best.where_self(&sparser_image, &self.gradient);
        self.n_changed = n_changed;
        self.window.drain(..self.window.len() - 1);
    }
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

    #[test]
    fn sparse_sign_changes_the_share_and_has_unit_length() {
        let gradient = Tensor::from_slice(&[0.1f32, -4.0, 3.0, 0.2, 0.0]).view([1, 1, 1, 5]);
        let step = sparse_sign(&gradient, &Tensor::from_slice(&[0.4f32]));
        assert_eq!(Vec::<f32>::try_from(step.flatten(0, -1)).unwrap(), [0.0, -0.5, 0.5, 0.0, 0.0]);
    }
}
