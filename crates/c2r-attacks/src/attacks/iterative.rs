//! Attacks that follow a gradient with steps of fixed length: FGSM, BIM, PGD, the momentum family, TPGD, EOT-PGD,
//! Jitter and CW-Linf. Their options differ; [`Iterative`] runs them all.
//!
//! Longer than 600 lines: a third of it documents the options of twelve attacks, which one loop runs.

use c2r_base::{Goal, Norm, Passes, Seed, ThreatModel, grad::in_range, loss};
use tch::{Kind, Tensor};

use crate::{
    active::{Active, Leaving, Samples},
    attack::{AttackBatch, Family},
    draws::{Draws, Request},
    error::{AttackError, ConfigError},
    options::{ALL_NORMS, Check, LossKind, Search, Step, Task, options, passes},
    oracle::{LossGradient, Oracle},
    pgd::Pgd,
    rows::{attempt_seed, pick, row_budget, where_true, write_rows},
};

/// Steps of the iterative attacks. torchattacks 3.5.1 and DD-RobustBench; Kurakin et al. 2017 and Madry
/// et al. 2018 (arXiv:1706.06083, section 5) use between 7 and 20.
const STEPS: u32 = 10;
/// Momentum decay. Dong et al. 2018 (arXiv:1710.06081), section 4.1.
const DECAY: f64 = 1.0;
/// Neighbours of variance tuning. Wang & He 2021 (arXiv:2103.15571), section 4.1.
const NEIGHBOURS: u32 = 20;
/// Radius of the neighbourhood in epsilons. Wang & He 2021, section 4.1.
const BETA: f64 = 1.5;
/// Confidence of the Linf attack on the CW loss, in logits. Madry et al. 2018, section 5 (table 1).
const CW_LINF_KAPPA: f64 = 50.0;
/// Scale of the logits. Schwinn et al. 2021 (arXiv:2105.10304), section 5.1; torchattacks 3.5.1.
const JITTER_SCALE: f64 = 10.0;
/// Standard deviation of the noise on the softmax. torchattacks 3.5.1.
const JITTER_STD: f64 = 0.1;
/// Standard deviation of the start of TPGD, pixel units. Zhang et al. 2019 (arXiv:1901.08573), their code.
const TPGD_START_STD: f64 = 0.001;
/// Gradients per step of EOT-PGD. torchattacks 3.5.1.
const EOT_SAMPLES: u32 = 2;
/// Share of the values that an L1 step changes. Tramer & Boneh 2019 (arXiv:1904.13000), section 6.
const L1_SPARSITY: f64 = 0.01;

options!(
    /// FGSM (Goodfellow et al. 2015, arXiv:1412.6572, section 4): one step of length epsilon; in L2 and L1
    /// along the steepest direction (FGM).
    FgsmConfig {
        /// What to ascend.
        loss: LossKind = LossKind::Ce,
    }
);
options!(
    /// R-FGSM (Tramer et al. 2018, arXiv:1705.07204, section 4.1): a random sign step, then FGSM with the rest.
    RFgsmConfig {
        /// Length of the random step, fraction of epsilon, in (0, 1). Tramer et al. use 0.5.
        rel_start: f64 = 0.5,
        /// What to ascend.
        loss: LossKind = LossKind::Ce,
    }
);
options!(
    /// BIM (Kurakin et al. 2017, arXiv:1607.02533): signed steps from the clean image.
    BimConfig steps {
        /// Return the first image that reaches the goal instead of the last one.
        early_stop: bool = false,
        /// What to ascend.
        loss: LossKind = LossKind::Ce,
    }
);
options!(
    /// PGD (Madry et al. 2018, arXiv:1706.06083): steepest steps from a random point of the ball.
    PgdConfig steps {
        /// Start uniformly in the ball instead of at the clean image.
        random_start: bool = true,
        /// Attempts; a sample that is broken is not tried again.
        restarts: u32 = 1,
        /// Return the first image that reaches the goal instead of the last one.
        early_stop: bool = false,
        /// What to ascend.
        loss: LossKind = LossKind::Ce,
        /// Confidence of the CW loss, logits.
        kappa: f64 = CW_LINF_KAPPA,
        /// L1 only: share of the values that a step changes.
        sparsity: f64 = L1_SPARSITY,
    }
);
options!(
    /// MI-FGSM (Dong et al. 2018, arXiv:1710.06081): momentum over gradients of unit mean.
    MiFgsmConfig steps {
        /// Decay of the momentum.
        decay: f64 = DECAY,
        /// Return the first image that reaches the goal instead of the last one.
        early_stop: bool = false,
    }
);
options!(
    /// NI-FGSM (Lin et al. 2020, arXiv:1908.06281): MI-FGSM with the gradient taken ahead. The look-ahead
    /// point may leave the ball and the box, as in the paper.
    NiFgsmConfig steps {
        /// Decay of the momentum.
        decay: f64 = DECAY,
    }
);
options!(
    /// VMI-FGSM and VNI-FGSM (Wang & He 2021, arXiv:2103.15571): MI-FGSM and NI-FGSM plus the variance of the gradient
    /// around the point. Neighbours may leave the box, as in the paper.
    VmiFgsmConfig steps {
        /// Decay of the momentum.
        decay: f64 = DECAY,
        /// Neighbours per step. The protocol of DD-RobustBench and torchattacks use 5.
        neighbours: u32 = NEIGHBOURS,
        /// Radius of the neighbourhood, fraction of epsilon.
        beta: f64 = BETA,
    }
);
options!(
    /// TPGD (Zhang et al. 2019, arXiv:1901.08573): PGD on the divergence from the clean prediction, without
    /// labels. An inner attack of training; weak as an evaluation.
    TpgdConfig steps {
        /// Standard deviation of the Gaussian start, pixel units.
        start_std: f64 = TPGD_START_STD,
    }
);
options!(
    /// EOT-PGD (Liu et al. 2019, arXiv:1810.01279): PGD on the mean of several gradients, for randomized models.
    EotPgdConfig steps {
        /// Start uniformly in the ball instead of at the clean image.
        random_start: bool = true,
        /// Gradients per step.
        samples: u32 = EOT_SAMPLES,
    }
);
options!(
    /// Jitter (Schwinn et al. 2021, arXiv:2105.10304): PGD on [`loss::jitter`].
    JitterConfig steps {
        /// Start uniformly in the ball instead of at the clean image.
        random_start: bool = true,
        /// Scale of the logits after division by the largest.
        scale: f64 = JITTER_SCALE,
        /// Standard deviation of the noise on the softmax.
        std: f64 = JITTER_STD,
    }
);
options!(
    /// CW-Linf: PGD on the CW margin loss, as Madry et al. 2018 (section 5) and DD-RobustBench.
    CwLinfConfig steps {
        /// Start uniformly in the ball instead of at the clean image.
        random_start: bool = true,
        /// Attempts; a sample that is broken is not tried again.
        restarts: u32 = 1,
        /// Return the first image that reaches the goal instead of the last one.
        early_stop: bool = false,
        /// Confidence, logits.
        kappa: f64 = CW_LINF_KAPPA,
    }
);

/// Options of an attack with fixed steps.
pub(crate) trait FixedSteps {
    /// Checks the values and makes the attack that the registry calls `name`.
    fn iterative(&self, name: &'static str) -> Result<Iterative, ConfigError>;
}

const fn ball_if(random_start: bool) -> Start {
    if random_start { Start::Ball } else { Start::Clean }
}

impl FixedSteps for FgsmConfig {
    fn iterative(&self, _: &'static str) -> Result<Iterative, ConfigError> {
        Ok(Iterative { objective: Objective::loss(self.loss), ..Iterative::plain(1, Step::Relative(1.0)) })
    }
}

impl FixedSteps for RFgsmConfig {
    fn iterative(&self, name: &'static str) -> Result<Iterative, ConfigError> {
        Check(name).fraction("rel-start", self.rel_start)?;
        Ok(Iterative {
            objective: Objective::loss(self.loss),
            start: Start::Sign(self.rel_start),
            norms: &[Norm::Linf],
            ..Iterative::plain(1, Step::Relative(1.0 - self.rel_start))
        })
    }
}

/// Makes attacks of options with steps: their `apply` checks the other options and changes what they say.
macro_rules! fixed_steps {
    ($($options:ident)*) => {$(
        impl FixedSteps for $options {
            fn iterative(&self, name: &'static str) -> Result<Iterative, ConfigError> {
                let check = Check(name);
                let step = check.step(self.steps, self.step_size, self.rel_step_size)?;
                let mut attack = Iterative::plain(self.steps, step);
                self.apply(&check, &mut attack)?;
                Ok(attack)
            }
        }
    )*};
}

fixed_steps! {
    BimConfig PgdConfig CwLinfConfig MiFgsmConfig NiFgsmConfig VmiFgsmConfig TpgdConfig EotPgdConfig JitterConfig
}

impl BimConfig {
    fn apply(&self, _: &Check, attack: &mut Iterative) -> Result<(), ConfigError> {
        attack.objective = Objective::loss(self.loss);
        attack.early_stop = self.early_stop;
        Ok(())
    }
}

impl PgdConfig {
    fn apply(&self, check: &Check, attack: &mut Iterative) -> Result<(), ConfigError> {
        check.count("restarts", self.restarts)?;
        check.at_least("kappa", self.kappa, 0.0)?;
        check.fraction("sparsity", self.sparsity)?;
        attack.objective = Objective::Loss(self.loss, self.kappa);
        attack.start = ball_if(self.random_start);
        attack.restarts = self.restarts;
        attack.early_stop = self.early_stop;
        attack.sparsity = self.sparsity;
        Ok(())
    }
}

impl CwLinfConfig {
    fn apply(&self, check: &Check, attack: &mut Iterative) -> Result<(), ConfigError> {
        check.count("restarts", self.restarts)?;
        check.at_least("kappa", self.kappa, 0.0)?;
        attack.objective = Objective::Loss(LossKind::Cw, self.kappa);
        attack.norms = &[Norm::Linf];
        attack.start = ball_if(self.random_start);
        attack.restarts = self.restarts;
        attack.early_stop = self.early_stop;
        Ok(())
    }
}

impl MiFgsmConfig {
    fn apply(&self, check: &Check, attack: &mut Iterative) -> Result<(), ConfigError> {
        check.at_least("decay", self.decay, 0.0)?;
        attack.momentum = Some(Momentum { decay: self.decay, look_ahead: false });
        attack.early_stop = self.early_stop;
        Ok(())
    }
}

impl NiFgsmConfig {
    fn apply(&self, check: &Check, attack: &mut Iterative) -> Result<(), ConfigError> {
        check.at_least("decay", self.decay, 0.0)?;
        attack.momentum = Some(Momentum { decay: self.decay, look_ahead: true });
        attack.norms = &[Norm::Linf];
        Ok(())
    }
}

impl VmiFgsmConfig {
    fn apply(&self, check: &Check, attack: &mut Iterative) -> Result<(), ConfigError> {
        check.at_least("decay", self.decay, 0.0)?;
        check.count("neighbours", self.neighbours)?;
        check.positive("beta", self.beta)?;
        attack.momentum = Some(Momentum { decay: self.decay, look_ahead: check.0 == "vni-fgsm" });
        attack.variance = Some(Variance { neighbours: self.neighbours, beta: self.beta });
        attack.norms = &[Norm::Linf];
        Ok(())
    }
}

impl TpgdConfig {
    fn apply(&self, check: &Check, attack: &mut Iterative) -> Result<(), ConfigError> {
        check.positive("start-std", self.start_std)?;
        attack.objective = Objective::Kl;
        attack.start = Start::Gaussian(self.start_std);
        Ok(())
    }
}

impl EotPgdConfig {
    fn apply(&self, check: &Check, attack: &mut Iterative) -> Result<(), ConfigError> {
        check.count("samples", self.samples)?;
        attack.start = ball_if(self.random_start);
        attack.gradient_samples = self.samples;
        Ok(())
    }
}

impl JitterConfig {
    fn apply(&self, check: &Check, attack: &mut Iterative) -> Result<(), ConfigError> {
        check.positive("scale", self.scale)?;
        check.at_least("std", self.std, 0.0)?;
        attack.objective = Objective::Jitter { scale: self.scale, std: self.std };
        attack.norms = &[Norm::Linf];
        attack.start = ball_if(self.random_start);
        Ok(())
    }
}

/// Where an attempt starts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Start {
    Clean,
    /// Uniform in the ball.
    Ball,
    /// Gaussian with this standard deviation, pixel units.
    Gaussian(f64),
    /// Sign of a Gaussian, this fraction of epsilon long.
    Sign(f64),
}

/// What is to grow.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Objective {
    /// With the confidence of the CW loss.
    Loss(LossKind, f64),
    /// Divergence from the clean prediction, without labels.
    Kl,
    Jitter {
        scale: f64,
        std: f64,
    },
}

impl Objective {
    const fn loss(kind: LossKind) -> Self {
        Self::Loss(kind, CW_LINF_KAPPA)
    }
}

#[derive(Clone, Copy, Debug)]
struct Momentum {
    decay: f64,
    /// Take the gradient where the momentum points to.
    look_ahead: bool,
}

#[derive(Clone, Copy, Debug)]
struct Variance {
    neighbours: u32,
    /// Radius of the neighbourhood, fraction of epsilon.
    beta: f64,
}

/// An attack with fixed steps, its options checked.
#[derive(Clone, Debug)]
pub(crate) struct Iterative {
    norms: &'static [Norm],
    steps: u32,
    step: Step,
    start: Start,
    restarts: u32,
    /// Return the first image that reaches the goal instead of the last one.
    early_stop: bool,
    objective: Objective,
    momentum: Option<Momentum>,
    variance: Option<Variance>,
    /// Gradients averaged per step (expectation over a randomized model).
    gradient_samples: u32,
    /// L1 only: share of the values that a step changes.
    sparsity: f64,
}

impl Search for Iterative {
    fn family(&self) -> Family {
        Family::Gradient
    }

    fn check(&self, check: &Check, threat: &ThreatModel, classes: i64) -> Result<(), ConfigError> {
        check.norm(self.norms, threat)?;
        // In Linf, whatever the shape of the images.
        if let (Norm::Linf, Step::Absolute(length)) = (threat.norm, self.step)
            && length >= 1.0
        {
            let reason = format!(
                "{length} takes a pixel from black to white in one step; write {length}/255 if you mean steps of 8-bit pixels"
            );
            return check.fail("step-size", reason);
        }
        match self.objective {
            Objective::Loss(kind, _) => check.classes(kind.classes_needed(threat.goal), classes),
            // The loss moves away from the clean prediction, wherever that leads.
            Objective::Kl if threat.goal != Goal::Untargeted => {
                Err(ConfigError::UnsupportedGoal { attack: check.0.to_owned() })
            }
            Objective::Kl | Objective::Jitter { .. } => Ok(()),
        }
    }

    fn search(&self, oracle: &mut Oracle<'_>, &Task { batch, threat, seed }: &Task<'_>) -> Result<Tensor, AttackError> {
        let mut found = batch.images.copy();
        let mut open: Vec<usize> = (0..batch.ids.len()).collect();
        for restart in 0..self.restarts {
            let seed = attempt_seed(seed, restart);
            let start = self.start_at(oracle.attack(), batch, &open, threat, seed);
            let mut noise = Draws::streams(seed, &format!("{}/noise", oracle.attack()), batch.ids);
            let last = self.ascend(oracle, batch, threat, &open, &start, &mut noise)?;
            write_rows(&mut found, &open, &last);
            if restart + 1 < self.restarts {
                // A later restart overwrites what failed, so success has to be known here.
                let reached = Samples::of(batch, &open).reached(&oracle.logits(&last, &open)?);
                let reached = oracle.read(&[&reached])?;
                open = pick(&open, &where_true(reached.into_iter().map(|reached| reached == 0.0)));
                if open.is_empty() {
                    break;
                }
            }
        }
        Ok(found)
    }
}

/// What belongs to each row that is still being worked on.
struct State {
    active: Active,
    samples: Samples,
    /// Softmax of the clean logits; only for [`Objective::Kl`].
    clean_probabilities: Option<Tensor>,
    x: Tensor,
    momentum: Option<Tensor>,
    variance: Option<Tensor>,
    /// Steps that are left, this one among them.
    steps: u32,
}

impl Iterative {
    /// Up the cross entropy from the clean image in all norms; callers change what differs.
    fn plain(steps: u32, step: Step) -> Self {
        Self {
            norms: &ALL_NORMS,
            steps,
            step,
            start: Start::Clean,
            restarts: 1,
            early_stop: false,
            objective: Objective::loss(LossKind::Ce),
            momentum: None,
            variance: None,
            gradient_samples: 1,
            sparsity: L1_SPARSITY,
        }
    }

    /// Passes of a sample that the attack does not stop early on.
    pub(crate) fn passes(&self) -> Passes {
        let neighbours = self.variance.map_or(0, |variance| u64::from(variance.neighbours));
        let per_step = u64::from(self.gradient_samples) + neighbours;
        let restarts = u64::from(self.restarts);
        let gradients = u64::from(self.steps) * restarts * per_step;
        // Whether a restart is needed, and what the divergence is measured from.
        let checks = restarts - 1;
        let clean = if self.objective == Objective::Kl { restarts } else { 0 };
        passes(gradients + checks + clean, gradients)
    }

    /// Number of steps, if they go up the cross entropy.
    pub(crate) fn cross_entropy_steps(&self) -> Option<u32> {
        matches!(self.objective, Objective::Loss(LossKind::Ce, _)).then_some(self.steps)
    }

    fn start_at(
        &self,
        name: &str,
        batch: &AttackBatch<'_>,
        rows: &[usize],
        threat: &ThreatModel,
        seed: Seed,
    ) -> Tensor {
        let Samples { clean, .. } = Samples::of(batch, rows);
        let purpose = format!("{name}/start");
        let (shape, device) = (&clean.size()[1..], clean.device());
        let normal =
            || Draws::streams(seed, &purpose, batch.ids).normal(&Request::once(rows, shape, device)).squeeze_dim(1);
        let moved = match self.start {
            Start::Clean => return clean,
            Start::Ball => return self.pgd(threat).random_start(&clean, &pick(batch.ids, rows), seed, &purpose),
            Start::Gaussian(std) => &clean + normal() * std,
            Start::Sign(fraction) => &clean + normal().sign() * (fraction * threat.epsilon.value()),
        };
        threat.project(&clean, &moved)
    }

    fn pgd(&self, threat: &ThreatModel) -> Pgd {
        let step_size = self.step.length(threat.epsilon.value());
        Pgd { threat: *threat, steps: self.steps, step_size, sparsity: Some(self.sparsity) }
    }

    /// Takes the steps from `start` for the samples `open` of the batch; returns one image per sample.
    pub(crate) fn ascend(
        &self,
        oracle: &mut Oracle<'_>,
        batch: &AttackBatch<'_>,
        threat: &ThreatModel,
        open: &[usize],
        start: &Tensor,
        noise: &mut Draws,
    ) -> Result<Tensor, AttackError> {
        let pgd = self.pgd(threat);
        let mut state = State {
            active: Active::new(open),
            samples: Samples::of(batch, open),
            clean_probabilities: None,
            x: start.copy(),
            momentum: self.momentum.map(|_| start.zeros_like()),
            variance: self.variance.map(|_| start.zeros_like()),
            steps: self.steps,
        };
        if self.objective == Objective::Kl {
            let logits = oracle.logits(&state.samples.clean, open)?;
            state.clean_probabilities = Some(logits.softmax(1, Kind::Float));
        }
        let mut result = start.copy();
        let mut ball = threat.ball(&state.samples.clean);
        while state.steps > 0 {
            let (direction, logits) = self.direction(oracle, &mut state, threat, noise)?;
            let moved = pgd.step_in(&ball, &state.x, &direction);
            state.steps -= 1;
            if !self.early_stop {
                state.x = moved;
                continue;
            }
            // The image that reached the goal stays.
            let State { active, samples, clean_probabilities, x, momentum, variance, steps } = &mut state;
            active.note(samples.reached(&logits));
            *x = active.kept(x, moved);
            if let Some(Leaving { done, left }) = active.leave(oracle, u64::from(self.gradient_samples), *steps == 0)? {
                active.store(&mut result, &done, x);
                if left.is_empty() {
                    return Ok(result);
                }
                let own = [clean_probabilities, momentum, variance].into_iter().flat_map(Option::as_mut);
                active.keep(&left, samples.tensors().chain([x]).chain(own));
                ball = threat.ball(&samples.clean);
            }
        }
        let all: Vec<usize> = (0..state.active.len()).collect();
        state.active.store(&mut result, &all, &state.x);
        Ok(result)
    }

    /// Where the next step goes, f32 `[rows, C, H, W]`, and the logits that go with its gradient, f32 `[rows, K]`.
    fn direction(
        &self,
        oracle: &mut Oracle<'_>,
        state: &mut State,
        threat: &ThreatModel,
        noise: &mut Draws,
    ) -> Result<(Tensor, Tensor), AttackError> {
        let point = match (&state.momentum, self.momentum) {
            (Some(momentum), Some(Momentum { decay, look_ahead: true })) => {
                &state.x + momentum * (decay * self.pgd(threat).step_size)
            }
            _ => state.x.shallow_clone(),
        };
        let LossGradient { mut gradient, logits, .. } = self.gradient(oracle, state, &point, noise)?;
        for _ in 1..self.gradient_samples {
            gradient += self.gradient(oracle, state, &point, noise)?.gradient;
        }
        let direction = match (&state.variance, self.variance) {
            (Some(before), Some(variance)) => {
                let tuned = &gradient + before;
                let neighbours = self.neighbour_gradient(oracle, state, variance, threat, noise)?;
                state.variance = Some(neighbours - &gradient);
                tuned
            }
            _ => gradient,
        };
        let direction = match (&state.momentum, self.momentum) {
            (Some(before), Some(Momentum { decay, .. })) => {
                let grown = next_momentum(&direction, before, decay);
                state.momentum = Some(grown.shallow_clone());
                grown
            }
            _ => direction,
        };
        Ok((direction, logits))
    }

    /// The gradient at `point`, f32 `[rows, C, H, W]`, one row per row of the state.
    fn gradient(
        &self,
        oracle: &mut Oracle<'_>,
        state: &State,
        point: &Tensor,
        noise: &mut Draws,
    ) -> Result<LossGradient, AttackError> {
        let (rows, Samples { clean, labels, targets }) = (state.active.samples(), &state.samples);
        oracle.gradient(point, rows, |x, logits| match self.objective {
            Objective::Loss(kind, kappa) => kind.losses(logits, labels, targets.as_ref(), kappa),
            Objective::Kl => {
                loss::kl(state.clean_probabilities.as_ref().expect("computed before the first step"), logits)
            }
            Objective::Jitter { scale, std } => {
                let (shape, device) = (&logits.size()[1..], logits.device());
                let request = Request { rows, n: 1, shape, requests: state.steps, device };
                let drawn = noise.normal(&request).squeeze_dim(1) * std;
                let moved = Norm::Linf.length(&(x - clean));
                match targets {
                    Some(targets) => -loss::jitter(logits, targets, &drawn, scale, &moved.zeros_like()),
                    None => loss::jitter(logits, labels, &drawn, scale, &moved),
                }
            }
        })
    }

    /// Mean gradient over random points around the current one.
    fn neighbour_gradient(
        &self,
        oracle: &mut Oracle<'_>,
        state: &State,
        variance: Variance,
        threat: &ThreatModel,
        noise: &mut Draws,
    ) -> Result<Tensor, AttackError> {
        let (rows, shape, n) = (state.active.samples(), &state.x.size()[1..], i64::from(variance.neighbours));
        let radius = threat.epsilon.value() * variance.beta;
        let request = Request { rows, n, shape, requests: state.steps, device: state.x.device() };
        let points = state.x.unsqueeze(1) + noise.uniform(&request) * radius;
        let together = (row_budget(&state.x) / rows.len()).clamp(1, n as usize) as i64;
        let mut sum: Option<Tensor> = None;
        for points in points.split(together, 1) {
            let n = points.size()[1];
            let many = State {
                active: Active::new(
                    &rows.iter().flat_map(|&row| std::iter::repeat_n(row, n as usize)).collect::<Vec<_>>(),
                ),
                samples: state.samples.repeat(n),
                clean_probabilities: None,
                x: state.x.shallow_clone(),
                momentum: None,
                variance: None,
                steps: state.steps,
            };
            let gradient = self.gradient(oracle, &many, &points.flatten(0, 1), noise)?.gradient;
            for part in gradient.reshape_as(&points).unbind(1) {
                sum = Some(sum.map_or_else(|| part.shallow_clone(), |sum| sum + &part));
            }
        }
        Ok(sum.expect("at least one neighbour") / f64::from(variance.neighbours))
    }
}

/// One step of momentum, `gradient / mean|gradient| + decay * momentum`, each f32 `[N, C, H, W]`; a zero gradient stays
/// zero.
///
/// Dong et al. 2018 divide by the L1 length; this divides by the mean, as torchattacks does, so the momentum is `C * H * W`
/// times longer. The direction of a step is the same, but the look-ahead of NI-FGSM and VNI-FGSM is that much longer, too
/// (docs/attacks/iterative.md).
pub fn next_momentum(gradient: &Tensor, momentum: &Tensor, decay: f64) -> Tensor {
    let (gradient, _) = in_range(gradient);
    let mean = gradient.abs().mean_dim([1i64, 2, 3].as_slice(), true, Kind::Float);
    gradient / mean.clamp_min(f64::from(f32::MIN_POSITIVE)) + momentum * decay
}
