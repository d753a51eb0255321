//! The routine behind every attack that follows a gradient with fixed steps: FGSM, BIM, PGD, the
//! momentum family, TPGD, EOT-PGD, Jitter and CW-Linf differ only in a [`Recipe`].

use c2r_base::{Classifier, Norm, Seed, ThreatModel, loss};
use tch::{Kind, Tensor};

use crate::{
    attack::{
        ALL_NORMS, Attack, AttackBatch, AttackError, Family, Oracle, Perturbed, check_classes, check_norms, index,
        positions, reached, row_budget,
    },
    config::{ConfigError, LossKind},
    draws::Draws,
    pgd::Pgd,
};

/// How one attack of the family works.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) name: &'static str,
    pub(crate) norms: &'static [Norm],
    pub(crate) steps: u32,
    pub(crate) step: Step,
    pub(crate) start: Start,
    pub(crate) restarts: u32,
    /// Return the first image that reaches the goal instead of the last one.
    pub(crate) early_stop: bool,
    pub(crate) objective: Objective,
    pub(crate) momentum: Option<Momentum>,
    pub(crate) variance: Option<Variance>,
    /// Gradients averaged per step (expectation over a randomized model).
    pub(crate) gradient_samples: u32,
    /// L1 only: share of the values that a step changes.
    pub(crate) sparsity: f64,
}

/// Length of a step in the threat model's norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step {
    /// Pixel units.
    Absolute(f64),
    /// Fraction of epsilon.
    Relative(f64),
}

impl Step {
    pub(crate) fn length(self, epsilon: f64) -> f64 {
        match self {
            Self::Absolute(length) => length,
            Self::Relative(fraction) => fraction * epsilon,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Start {
    Clean,
    /// Uniform in the ball.
    Ball,
    /// Gaussian with this standard deviation, pixel units.
    Gaussian(f64),
    /// Sign of a Gaussian, this fraction of epsilon long.
    Sign(f64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Objective {
    Loss(LossKind, f64),
    /// Divergence from the clean prediction; knows no label.
    Kl,
    Jitter {
        scale: f64,
        std: f64,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Momentum {
    pub(crate) decay: f64,
    /// Take the gradient where the momentum points to.
    pub(crate) look_ahead: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Variance {
    pub(crate) neighbours: u32,
    /// Radius of the neighbourhood, fraction of epsilon.
    pub(crate) beta: f64,
}

/// An attack of the family, ready to run.
pub(crate) struct Iterative(Recipe);

impl Iterative {
    pub(crate) fn new(recipe: Recipe) -> Self {
        Self(recipe)
    }
}

impl Attack for Iterative {
    fn name(&self) -> &str {
        self.0.name
    }

    fn family(&self) -> Family {
        Family::Gradient
    }

    fn check(&self, threat: &ThreatModel, classes: i64) -> Result<(), ConfigError> {
        check_norms(self.0.name, self.0.norms, threat)?;
        if let Objective::Loss(kind, _) = self.0.objective {
            check_classes(self.0.name, kind.classes_needed(threat.goal), classes)?;
        }
        Ok(())
    }

    fn perturb(
        &self,
        model: &dyn Classifier,
        batch: &AttackBatch<'_>,
        threat: &ThreatModel,
        seed: Seed,
    ) -> Result<Perturbed, AttackError> {
        let _no_grad = tch::no_grad_guard();
        let recipe = &self.0;
        let mut oracle = Oracle::new(model, recipe.name, batch.ids);
        let mut found = batch.images.copy();
        let mut open: Vec<usize> = (0..batch.ids.len()).collect();
        for restart in 0..recipe.restarts {
            let seed = if restart == 0 { seed } else { seed.child("restart", u64::from(restart)) };
            let start = recipe.start_at(batch, &open, threat, seed);
            let mut noise = Draws::streams(seed, &format!("{}/noise", recipe.name), batch.ids);
            let last = ascend(recipe, &mut oracle, batch, threat, &open, &start, &mut noise)?;
            let at = index(&open, &found);
            let _ = found.index_copy_(0, &at, &last);
            if restart + 1 < recipe.restarts {
                // A later restart overwrites what failed, so success has to be known here.
                let logits = oracle.logits(&last, &open)?;
                let targets = batch.targets.map(|targets| targets.index_select(0, &at));
                let done = reached(&logits, &batch.labels.index_select(0, &at), targets.as_ref());
                open = positions(&done.logical_not()).into_iter().map(|row| open[row]).collect();
                if open.is_empty() {
                    break;
                }
            }
        }
        Ok(oracle.finish(found))
    }
}

impl Recipe {
    /// A plain attack from the clean image; callers change what differs.
    pub(crate) fn plain(name: &'static str, steps: u32, step: Step, objective: Objective) -> Self {
        Self {
            name,
            norms: &ALL_NORMS,
            steps,
            step,
            start: Start::Clean,
            restarts: 1,
            early_stop: false,
            objective,
            momentum: None,
            variance: None,
            gradient_samples: 1,
            sparsity: crate::config::L1_SPARSITY,
        }
    }

    fn start_at(&self, batch: &AttackBatch<'_>, rows: &[usize], threat: &ThreatModel, seed: Seed) -> Tensor {
        let clean = batch.images.index_select(0, &index(rows, batch.images));
        let ids: Vec<u64> = rows.iter().map(|&row| batch.ids[row]).collect();
        let shape = &batch.images.size()[1..];
        let epsilon = threat.epsilon.value();
        let purpose = format!("{}/start", self.name);
        let device = batch.images.device();
        let normal = || Draws::streams(seed, &purpose, batch.ids).normal(rows, shape, device);
        let moved = match self.start {
            Start::Clean => return clean,
            Start::Ball => &clean + threat.norm.random_in_ball(shape, &ids, epsilon, seed, &purpose).to_device(device),
            Start::Gaussian(std) => &clean + normal() * std,
            Start::Sign(fraction) => &clean + normal().sign() * (fraction * epsilon),
        };
        threat.project(&clean, &moved)
    }
}

/// What belongs to each row that is still being worked on.
struct Rows {
    /// Position of each row in the batch.
    at: Vec<usize>,
    clean: Tensor,
    labels: Tensor,
    targets: Option<Tensor>,
    /// Softmax of the clean logits; only for [`Objective::Kl`].
    clean_probabilities: Option<Tensor>,
    x: Tensor,
    momentum: Option<Tensor>,
    variance: Option<Tensor>,
}

impl Rows {
    fn keep(&mut self, keep: &[usize]) {
        let at = index(keep, &self.x);
        let pick = |tensor: &Tensor| tensor.index_select(0, &at);
        self.at = keep.iter().map(|&row| self.at[row]).collect();
        self.clean = pick(&self.clean);
        self.labels = pick(&self.labels);
        self.x = pick(&self.x);
        for slot in [&mut self.targets, &mut self.clean_probabilities, &mut self.momentum, &mut self.variance] {
            *slot = slot.as_ref().map(pick);
        }
    }
}

/// Runs `recipe` from `start` for the samples `open` of the batch; returns one image per sample.
pub(crate) fn ascend(
    recipe: &Recipe,
    oracle: &mut Oracle<'_>,
    batch: &AttackBatch<'_>,
    threat: &ThreatModel,
    open: &[usize],
    start: &Tensor,
    noise: &mut Draws,
) -> Result<Tensor, AttackError> {
    let epsilon = threat.epsilon.value();
    let pgd = Pgd {
        threat: *threat,
        steps: recipe.steps,
        step_size: recipe.step.length(epsilon),
        sparsity: Some(recipe.sparsity),
    };
    let at = index(open, batch.images);
    let mut rows = Rows {
        at: open.to_vec(),
        clean: batch.images.index_select(0, &at),
        labels: batch.labels.index_select(0, &at),
        targets: batch.targets.map(|targets| targets.index_select(0, &at)),
        clean_probabilities: None,
        x: start.copy(),
        momentum: recipe.momentum.map(|_| start.zeros_like()),
        variance: recipe.variance.map(|_| start.zeros_like()),
    };
    if recipe.objective == Objective::Kl {
        rows.clean_probabilities = Some(oracle.logits(&rows.clean, &rows.at)?.softmax(1, Kind::Float));
    }
    let result = start.copy();
    // Row of `result` for each position in the batch.
    let mut slot = vec![usize::MAX; batch.ids.len()];
    for (row, &position) in open.iter().enumerate() {
        slot[position] = row;
    }
    let store = |mut result: Tensor, positions: &[usize], images: &Tensor| {
        let to: Vec<usize> = positions.iter().map(|&position| slot[position]).collect();
        let _ = result.index_copy_(0, &index(&to, images), images);
    };

    for _ in 0..pgd.steps {
        let point = match (&rows.momentum, recipe.momentum) {
            (Some(momentum), Some(Momentum { decay, look_ahead: true })) => {
                &rows.x + momentum * (decay * pgd.step_size)
            }
            _ => rows.x.shallow_clone(),
        };
        let mut slope = recipe.slope(oracle, &rows, &point, noise)?;
        for _ in 1..recipe.gradient_samples {
            slope.gradient += recipe.slope(oracle, &rows, &point, noise)?.gradient;
        }
        let mut gradient = slope.gradient;
        if recipe.early_stop {
            let done = reached(&slope.logits, &rows.labels, rows.targets.as_ref());
            let stopped = positions(&done);
            if !stopped.is_empty() {
                let from = index(&stopped, &rows.x);
                let stopped_at: Vec<usize> = stopped.iter().map(|&row| rows.at[row]).collect();
                store(result.shallow_clone(), &stopped_at, &rows.x.index_select(0, &from));
                let left = positions(&done.logical_not());
                if left.is_empty() {
                    return Ok(result);
                }
                rows.keep(&left);
                gradient = gradient.index_select(0, &index(&left, &gradient));
            }
        }
        let direction = match recipe.variance {
            Some(variance) => {
                let tuned = &gradient + rows.variance.as_ref().expect("set with the recipe");
                let neighbours = recipe.neighbour_gradient(oracle, &rows, variance, epsilon, noise)?;
                rows.variance = Some(neighbours - &gradient);
                tuned
            }
            None => gradient,
        };
        let direction = match (&rows.momentum, recipe.momentum) {
            (Some(momentum), Some(Momentum { decay, .. })) => {
                let grown = unit_mean(&direction) + momentum * decay;
                rows.momentum = Some(grown.shallow_clone());
                grown
            }
            _ => direction,
        };
        rows.x = pgd.step(&rows.clean, &rows.x, &direction);
    }
    store(result.shallow_clone(), &rows.at, &rows.x);
    Ok(result)
}

/// Divides each gradient by its mean absolute value; zero stays zero.
///
/// Dong et al. 2018 divide by the L1 length, the libraries by the mean: under the sign of the sum of
/// such terms these are the same.
pub(crate) fn unit_mean(gradient: &Tensor) -> Tensor {
    let mean = gradient.abs().mean_dim([1i64, 2, 3].as_slice(), true, Kind::Float);
    gradient / mean.clamp_min(f64::from(f32::MIN_POSITIVE))
}

impl Recipe {
    fn slope(
        &self,
        oracle: &mut Oracle<'_>,
        rows: &Rows,
        point: &Tensor,
        noise: &mut Draws,
    ) -> Result<crate::attack::Slope, AttackError> {
        oracle.slope(point, &rows.at, |x, logits| match self.objective {
            Objective::Loss(kind, kappa) => kind.losses(logits, &rows.labels, rows.targets.as_ref(), kappa),
            Objective::Kl => {
                loss::kl(rows.clean_probabilities.as_ref().expect("computed before the first step"), logits)
            }
            Objective::Jitter { scale, std } => {
                let drawn = noise.normal(&rows.at, &logits.size()[1..], logits.device()) * std;
                let moved = Norm::Linf.length(&(x - &rows.clean));
                match &rows.targets {
                    Some(targets) => -loss::jitter(logits, targets, &drawn, scale, &moved.zeros_like()),
                    None => loss::jitter(logits, &rows.labels, &drawn, scale, &moved),
                }
            }
        })
    }

    /// Mean gradient over random points around the current one.
    fn neighbour_gradient(
        &self,
        oracle: &mut Oracle<'_>,
        rows: &Rows,
        variance: Variance,
        epsilon: f64,
        noise: &mut Draws,
    ) -> Result<Tensor, AttackError> {
        let n = rows.at.len();
        let shape = rows.x.size()[1..].to_vec();
        let together = (row_budget(&rows.x) / n).clamp(1, variance.neighbours as usize);
        let mut sum = rows.x.zeros_like();
        let mut left = variance.neighbours as usize;
        while left > 0 {
            let now = left.min(together);
            left -= now;
            let points: Vec<Tensor> = (0..now)
                .map(|_| &rows.x + noise.uniform(&rows.at, &shape, rows.x.device()) * (epsilon * variance.beta))
                .collect();
            let many = Rows {
                at: rows.at.repeat(now),
                clean: rows.clean.repeat([now as i64, 1, 1, 1]),
                labels: rows.labels.repeat([now as i64]),
                targets: rows.targets.as_ref().map(|targets| targets.repeat([now as i64])),
                clean_probabilities: None,
                x: rows.x.shallow_clone(),
                momentum: None,
                variance: None,
            };
            let gradient = self.slope(oracle, &many, &Tensor::cat(&points, 0), noise)?.gradient;
            for part in gradient.chunk(now as i64, 0) {
                sum += part;
            }
        }
        Ok(sum / f64::from(variance.neighbours))
    }
}

/// Runs one attack of the family from a given start with given draws, for comparison with recorded runs.
pub(crate) fn replay(
    recipe: &Recipe,
    model: &dyn Classifier,
    batch: &AttackBatch<'_>,
    threat: &ThreatModel,
    start: &Tensor,
    draws: &mut Draws,
) -> Result<Tensor, AttackError> {
    let _no_grad = tch::no_grad_guard();
    let mut oracle = Oracle::new(model, recipe.name, batch.ids);
    let all: Vec<usize> = (0..batch.ids.len()).collect();
    ascend(recipe, &mut oracle, batch, threat, &all, start, draws)
}
