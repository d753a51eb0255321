//! Auto-PGD: PGD with momentum whose step size adapts to each sample.

use c2r_base::{Classifier, Norm, Seed, ThreatModel, loss};
use tch::{Kind, Tensor};

use crate::{
    attack::{
        ALL_NORMS, Attack, AttackBatch, AttackError, Family, Oracle, Perturbed, check_classes, check_norms, index,
        per_image, positions, reached, row_budget,
    },
    config::{ApgdConfig, ConfigError},
    draws::Draws,
};

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

/// What Auto-PGD ascends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ApgdLoss {
    Ce,
    Dlr,
    /// Towards each of the classes with the largest clean logits.
    DlrTargeted {
        targets: u32,
    },
}

impl ApgdLoss {
    fn losses(self, logits: &Tensor, labels: &Tensor, aims: Option<&Tensor>) -> Tensor {
        match (self, aims) {
            (Self::Ce, None) => loss::ce(logits, labels),
            (Self::Ce, Some(aims)) => -loss::ce(logits, aims),
            (_, None) => loss::dlr(logits, labels),
            (_, Some(aims)) => loss::dlr_targeted(logits, labels, aims),
        }
    }
}

/// APGD-CE, APGD-DLR and APGD-T.
pub(crate) struct Apgd {
    name: &'static str,
    config: ApgdConfig,
    loss: ApgdLoss,
}

impl Apgd {
    pub(crate) fn new(name: &'static str, config: ApgdConfig, loss: ApgdLoss) -> Self {
        Self { name, config, loss }
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
        check_norms(self.name, &ALL_NORMS, threat)?;
        let targeted = threat.goal != c2r_base::Goal::Untargeted;
        let needed = match self.loss {
            ApgdLoss::Ce => 2,
            ApgdLoss::Dlr if !targeted => 3,
            ApgdLoss::Dlr | ApgdLoss::DlrTargeted { .. } => 4,
        };
        check_classes(self.name, needed, classes)
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
        let all: Vec<usize> = (0..batch.ids.len()).collect();
        // One class per attempt and sample: i64 `[N, T]`.
        let aims = match (self.loss, batch.targets) {
            (_, Some(targets)) => Some(targets.unsqueeze(1)),
            (ApgdLoss::DlrTargeted { targets }, None) => Some(likely_targets(&mut oracle, batch, targets)?),
            _ => None,
        };
        let n_aims = aims.as_ref().map_or(1, |aims| aims.size()[1] as usize);
        let per_pass = (row_budget(batch.images) / n_aims).max(1);
        let mut open = all;
        for restart in 0..self.config.restarts {
            let seed = if restart == 0 { seed } else { seed.child("restart", u64::from(restart)) };
            let mut draws = Draws::streams(seed, &format!("{}/start", self.name), batch.ids);
            let mut left = Vec::new();
            for part in open.chunks(per_pass) {
                left.extend(self.attempt(&mut oracle, batch, threat, part, aims.as_ref(), &mut draws, &mut found)?);
            }
            open = left;
            if open.is_empty() {
                break;
            }
        }
        Ok(oracle.finish(found))
    }
}

/// The classes with the largest clean logits apart from the label: i64 `[N, T]`, most likely first.
pub(crate) fn likely_targets(
    oracle: &mut Oracle<'_>,
    batch: &AttackBatch<'_>,
    targets: u32,
) -> Result<Tensor, AttackError> {
    let all: Vec<usize> = (0..batch.ids.len()).collect();
    let logits = oracle.logits(batch.images, &all)?;
    let n_targets = i64::from(targets).min(logits.size()[1] - 1);
    let others = logits.scatter_value(1, &batch.labels.unsqueeze(1), f64::NEG_INFINITY);
    Ok(others.topk(n_targets, 1, true, true).1)
}

impl Apgd {
    /// One start per sample of `part` and aim, all in one pass: the aims of a sample run in step, so which
    /// one succeeds first does not depend on the batch. Writes images to `found`; returns the samples
    /// that still stand.
    #[expect(clippy::too_many_arguments, reason = "the state of one call of perturb, which is the only caller")]
    fn attempt(
        &self,
        oracle: &mut Oracle<'_>,
        batch: &AttackBatch<'_>,
        threat: &ThreatModel,
        part: &[usize],
        aims: Option<&Tensor>,
        draws: &mut Draws,
        found: &mut Tensor,
    ) -> Result<Vec<usize>, AttackError> {
        let n_aims = aims.map_or(1, |aims| aims.size()[1] as usize);
        let rows: Vec<usize> = part.iter().flat_map(|&sample| std::iter::repeat_n(sample, n_aims)).collect();
        let at = index(&rows, batch.images);
        let clean = batch.images.index_select(0, &at);
        let aims = aims.map(|aims| aims.index_select(0, &index(part, aims)).flatten(0, 1));
        let problem = Problem {
            labels: batch.labels.index_select(0, &at),
            targets: batch.targets.map(|targets| targets.index_select(0, &at)),
            aims,
            rows,
            clean,
            loss: self.loss,
            samples: self.config.samples,
            rho: self.config.rho,
            first_window_from_zero: self.config.first_window_from_zero,
            norm: threat.norm,
        };
        let epsilon = threat.epsilon.value();
        let steps = self.config.steps;
        let start = start(draws, &problem, threat);
        let end = if threat.norm == Norm::L1 {
            let mut x = start;
            let mut left = steps;
            let mut end = None;
            for (phase, (radius, share)) in L1_PHASES.into_iter().enumerate() {
                let last = phase + 1 == L1_PHASES.len();
                let now = if last { left } else { ((f64::from(steps) * share).ceil() as u32).min(left) };
                left -= now;
                let radius = radius * epsilon;
                x = threat.norm.project(&problem.clean, &x, radius);
                let reached = climb(oracle, problem.shallow(), &x, true, radius, now, last)?;
                x = reached.best.shallow_clone();
                end = Some(reached);
            }
            end.expect("there are three phases")
        } else {
            climb(oracle, problem.shallow(), &start, false, epsilon, steps, true)?
        };
        // The image of the first aim that succeeded, else of the first aim.
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
        let images = end.best.index_select(0, &index(&from, &end.best));
        let _ = found.index_copy_(0, &index(part, found), &images);
        Ok(standing)
    }
}

/// Random points on the sphere of the threat model (the L1 start fills the largest phase's ball).
fn start(draws: &mut Draws, problem: &Problem, threat: &ThreatModel) -> Tensor {
    let shape = &problem.clean.size()[1..];
    let device = problem.clean.device();
    let epsilon = threat.epsilon.value();
    let moved = match threat.norm {
        Norm::Linf => {
            let noise = draws.uniform(&problem.rows, shape, device);
            let largest = per_image(&Norm::Linf.length(&noise)).clamp_min(1e-12);
            &problem.clean + noise / largest * epsilon
        }
        Norm::L2 => &problem.clean + Norm::L2.steepest(&draws.normal(&problem.rows, shape, device)) * epsilon,
        Norm::L1 => return &problem.clean + draws.normal(&problem.rows, shape, device),
    };
    moved.clamp(0.0, 1.0)
}

/// What a run of [`climb`] works on, one entry per row.
pub(crate) struct Problem {
    /// Sample of the batch that each row belongs to; rows of one sample are adjacent.
    pub(crate) rows: Vec<usize>,
    pub(crate) clean: Tensor,
    pub(crate) labels: Tensor,
    /// The goal's targets: what success means.
    pub(crate) targets: Option<Tensor>,
    /// The loss's targets.
    pub(crate) aims: Option<Tensor>,
    pub(crate) loss: ApgdLoss,
    pub(crate) samples: u32,
    pub(crate) rho: f64,
    pub(crate) first_window_from_zero: bool,
    pub(crate) norm: Norm,
}

impl Problem {
    fn shallow(&self) -> Self {
        Self {
            rows: self.rows.clone(),
            clean: self.clean.shallow_clone(),
            labels: self.labels.shallow_clone(),
            targets: self.targets.as_ref().map(Tensor::shallow_clone),
            aims: self.aims.as_ref().map(Tensor::shallow_clone),
            ..*self
        }
    }

    fn slope(&self, oracle: &mut Oracle<'_>, x: &Tensor) -> Result<crate::attack::Slope, AttackError> {
        let once = |oracle: &mut Oracle<'_>| {
            oracle.slope(x, &self.rows, |_, logits| self.loss.losses(logits, &self.labels, self.aims.as_ref()))
        };
        let mut slope = once(oracle)?;
        for _ in 1..self.samples {
            let more = once(oracle)?;
            slope.gradient += more.gradient;
            slope.losses += more.losses;
            slope.logits = more.logits;
        }
        if self.samples > 1 {
            slope.gradient /= f64::from(self.samples);
            slope.losses /= f64::from(self.samples);
        }
        Ok(slope)
    }
}

/// What [`climb`] found.
pub(crate) struct Summit {
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
struct Climbers {
    problem: Problem,
    /// Row of the result.
    slot: Vec<usize>,
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

impl Climbers {
    fn keep(&mut self, keep: &[usize]) {
        let at = index(keep, &self.x);
        let pick = |tensor: &Tensor| tensor.index_select(0, &at);
        self.slot = keep.iter().map(|&row| self.slot[row]).collect();
        let problem = &mut self.problem;
        problem.rows = keep.iter().map(|&row| problem.rows[row]).collect();
        for tensor in [
            &mut problem.clean,
            &mut problem.labels,
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
        ]
        .into_iter()
        .chain(&mut self.window)
        .chain(problem.targets.as_mut())
        .chain(problem.aims.as_mut())
        {
            *tensor = pick(tensor);
        }
    }
}

/// Runs Auto-PGD from `start` for `steps` steps.
///
/// With `stop`, a sample leaves at the first image that reaches the goal, with all its rows; success is
/// then known, so no outcome changes. `warm` says that the start comes from an earlier phase (L1).
pub(crate) fn climb(
    oracle: &mut Oracle<'_>,
    problem: Problem,
    start: &Tensor,
    warm: bool,
    epsilon: f64,
    steps: u32,
    stop: bool,
) -> Result<Summit, AttackError> {
    let norm = problem.norm;
    let n_rows = problem.rows.len();
    let n_values = problem.clean.size()[1..].iter().product::<i64>() as f64;
    let mut result = Summit {
        best: start.copy(),
        best_losses: Tensor::full([n_rows as i64], f64::NEG_INFINITY, (Kind::Float, start.device())),
        reached: vec![false; n_rows],
    };
    let first = problem.slope(oracle, start)?;
    let like = first.losses.ones_like();
    let (share, n_changed) = match (norm, warm) {
        (Norm::L1, true) => {
            let n_changed = count_changed(start, &problem.clean);
            (&n_changed / (n_values * L1_REDUCTION), n_changed)
        }
        _ => (&like * L1_FIRST_SHARE, &like * n_values),
    };
    let full_step = match norm {
        Norm::Linf | Norm::L2 => 2.0 * epsilon,
        Norm::L1 => epsilon,
    };
    let mut rows = Climbers {
        slot: (0..n_rows).collect(),
        x: start.copy(),
        x_before: start.copy(),
        x_best: start.copy(),
        gradient_best: first.gradient.copy(),
        gradient: first.gradient,
        loss_best: first.losses.copy(),
        step: per_image(&like) * full_step,
        halved_last: like.gt(0.0),
        best_at_checkpoint: first.losses.copy(),
        window: vec![if problem.first_window_from_zero { first.losses.zeros_like() } else { first.losses }],
        share,
        n_changed,
        problem,
    };
    if stop && !retire(&mut rows, &first.logits, &mut result) {
        return Ok(result);
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
        let moved = rows.next(epsilon, if step == 1 { 1.0 } else { MOMENTUM });
        rows.x_before = std::mem::replace(&mut rows.x, moved);
        let slope = rows.problem.slope(oracle, &rows.x)?;
        rows.gradient = slope.gradient;
        let better = slope.losses.gt_tensor(&rows.loss_best);
        let better_image = per_image(&better);
        rows.x_best = rows.x.where_self(&better_image, &rows.x_best);
        rows.gradient_best = rows.gradient.where_self(&better_image, &rows.gradient_best);
        rows.loss_best = slope.losses.maximum(&rows.loss_best);
        rows.window.push(slope.losses);
        if stop && !retire(&mut rows, &slope.logits, &mut result) {
            return Ok(result);
        }
        if checks.next_if_eq(&step).is_some() {
            match norm {
                Norm::Linf | Norm::L2 => rows.judge_step(),
                Norm::L1 => rows.judge_sparsity(epsilon, n_values),
            }
        }
    }
    let at = index(&rows.slot, &result.best);
    let _ = result.best.index_copy_(0, &at, &rows.x_best);
    let _ = result.best_losses.index_copy_(0, &at, &rows.loss_best);
    Ok(result)
}

/// Takes out the samples that reached the goal; returns whether any row is left.
fn retire(rows: &mut Climbers, logits: &Tensor, result: &mut Summit) -> bool {
    let hit = positions(&reached(logits, &rows.problem.labels, rows.problem.targets.as_ref()));
    if hit.is_empty() {
        return true;
    }
    let at: Vec<usize> = hit.iter().map(|&row| rows.slot[row]).collect();
    let images = rows.x.index_select(0, &index(&hit, &rows.x));
    let _ = result.best.index_copy_(0, &index(&at, &result.best), &images);
    let losses = rows.loss_best.index_select(0, &index(&hit, &rows.x));
    let _ = result.best_losses.index_copy_(0, &index(&at, &result.best), &losses);
    for slot in at {
        result.reached[slot] = true;
    }
    let done: std::collections::BTreeSet<usize> = hit.iter().map(|&row| rows.problem.rows[row]).collect();
    let left: Vec<usize> = (0..rows.slot.len()).filter(|&row| !done.contains(&rows.problem.rows[row])).collect();
    if !left.is_empty() {
        rows.keep(&left);
    }
    !left.is_empty()
}

impl Climbers {
    /// The next point: a projected step, then momentum, projected again.
    fn next(&self, epsilon: f64, share_of_new: f64) -> Tensor {
        let norm = self.problem.norm;
        let clean = &self.problem.clean;
        if norm == Norm::L1 {
            let direction = sparse_sign(&self.gradient, &self.share);
            return norm.project(clean, &(&self.x + direction * &self.step), epsilon);
        }
        let stepped = norm.project(clean, &(&self.x + norm.steepest(&self.gradient) * &self.step), epsilon);
        let moved = &self.x + (stepped - &self.x) * share_of_new + (&self.x - &self.x_before) * (1.0 - share_of_new);
        norm.project(clean, &moved, epsilon)
    }

    /// Halves the step of the rows that make no progress and sends them back to their best point.
    fn judge_step(&mut self) {
        let losses = Tensor::stack(&self.window, 0);
        let stuck = self.halved_last.logical_not().logical_and(&self.best_at_checkpoint.ge_tensor(&self.loss_best));
        let halve = oscillates(&losses, self.problem.rho).logical_or(&stuck);
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
    fn judge_sparsity(&mut self, epsilon: f64, n_values: f64) {
        let n_changed = count_changed(&self.x_best, &self.problem.clean);
        let sparser = (&n_changed / self.n_changed.clamp_min(1.0)).lt(L1_SPARSER);
        let sparser_image = per_image(&sparser);
        self.share = &n_changed / (n_values * L1_REDUCTION);
        let full = self.step.full_like(epsilon);
        self.step = full.where_self(&sparser_image, &(&self.step / L1_REDUCTION)).clamp(L1_MIN_STEP * epsilon, epsilon);
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
