use c2r_base::{Classifier, ClassifierError, Norm, Passes, Seed, ThreatModel, grad::try_input_gradient, loss};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::config::{AttackConfig, ConfigError};

/// An attack as a value: it holds parameters, never a model.
///
/// Model, batch, threat model and randomness are arguments, so one attack can run on many models.
/// What comes back is a proposal: the driver ([`crate::evaluate`]) projects it into the threat set
/// and judges it by its own forward pass.
pub trait Attack: Send + Sync {
    /// The published name in lower case, e.g. `apgd-ce`: used in tables, options and file names.
    fn name(&self) -> &str;

    /// What kind of attack this is.
    fn family(&self) -> Family;

    /// Whether this attack can run under `threat` on a model with `classes` classes.
    ///
    /// # Errors
    /// [`ConfigError::UnsupportedNorm`], [`ConfigError::UnsupportedGoal`] or [`ConfigError::TooFewClasses`].
    fn check(&self, threat: &ThreatModel, classes: i64) -> Result<(), ConfigError>;

    /// Looks for an adversarial image for every sample of the batch.
    ///
    /// A sample's result depends on its image, label, target and id and on `seed`, not on the other
    /// samples of the batch (up to float rounding).
    ///
    /// # Errors
    /// [`AttackError`], e.g. if the model answers with NaN.
    fn perturb(
        &self,
        model: &dyn Classifier,
        batch: &AttackBatch<'_>,
        threat: &ThreatModel,
        seed: Seed,
    ) -> Result<Perturbed, AttackError>;

    /// The attacks that this one runs one after the other on what survives, if it is a suite.
    fn stages(&self) -> Option<&[Box<dyn Attack>]> {
        None
    }

    /// The options it was made from, for reports; `None` for attacks from outside this crate.
    fn config(&self) -> Option<&AttackConfig> {
        None
    }
}

/// An attack that remembers the options it was made from.
pub(crate) struct Configured {
    pub(crate) config: AttackConfig,
    pub(crate) attack: Box<dyn Attack>,
}

impl Attack for Configured {
    fn name(&self) -> &str {
        self.attack.name()
    }

    fn family(&self) -> Family {
        self.attack.family()
    }

    fn check(&self, threat: &ThreatModel, classes: i64) -> Result<(), ConfigError> {
        self.attack.check(threat, classes)
    }

    fn perturb(
        &self,
        model: &dyn Classifier,
        batch: &AttackBatch<'_>,
        threat: &ThreatModel,
        seed: Seed,
    ) -> Result<Perturbed, AttackError> {
        self.attack.perturb(model, batch, threat, seed)
    }

    fn stages(&self) -> Option<&[Box<dyn Attack>]> {
        self.attack.stages()
    }

    fn config(&self) -> Option<&AttackConfig> {
        Some(&self.config)
    }
}

/// The samples an attack works on.
#[derive(Clone, Copy, Debug)]
pub struct AttackBatch<'a> {
    /// f32 `[N, C, H, W]` in `[0, 1]`, on the model's device.
    pub images: &'a Tensor,
    /// i64 `[N]`, in `0..K`, on the model's device.
    pub labels: &'a Tensor,
    /// One number per sample that stays the same whatever batch it is in: it selects the sample's noise.
    pub ids: &'a [u64],
    /// i64 `[N]`: the class each sample should be taken for, if the goal is targeted.
    pub targets: Option<&'a Tensor>,
}

/// What an attack found.
#[derive(Debug)]
pub struct Perturbed {
    /// f32 `[N, C, H, W]`. A proposal: it may lie outside the threat set.
    pub images: Tensor,
    /// Number of forward passes that each sample took part in.
    pub queries: Vec<u64>,
    /// What the whole batch cost.
    pub passes: Passes,
}

/// Kinds of attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// A floor that every attack must beat: no change, or random noise.
    Sanity,
    /// Follows gradients inside a given ball.
    Gradient,
    /// Looks for the smallest perturbation and is judged at epsilon.
    MinimumNorm,
    /// Sees logits only.
    BlackBox,
    /// Several attacks in order.
    Suite,
}

/// Why an attack or an evaluation stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttackError {
    /// A parameter that cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Images or labels that cannot be right.
    #[error(transparent)]
    Images(#[from] c2r_base::ImageError),
    /// The model returned an error instead of logits.
    #[error("the model failed on a batch of {rows} images that begins with sample {sample} (during `{attack}`)")]
    Model {
        /// Id of the first sample of the batch.
        sample: u64,
        /// Images in the batch.
        rows: usize,
        /// What was running.
        attack: String,
        /// The model's own error.
        #[source]
        source: ClassifierError,
    },
    /// NaN or infinity: `argmax` would return its index and count an exploded model as broken.
    #[error(
        "the model's logits for sample {sample} are not finite (during `{attack}`); an attack cannot be judged on them"
    )]
    NonFiniteLogits {
        /// Id of the first offending sample.
        sample: u64,
        /// What was running.
        attack: String,
    },
    /// Not `[N, K]` with at least two classes.
    #[error("the model must return logits of shape [{rows}, K] with K of 2 or more, got {got:?}")]
    LogitsShape {
        /// Number of images that went in.
        rows: i64,
        /// Shape that came out.
        got: Vec<i64>,
    },
    /// Not f32.
    #[error("the model must return f32 logits, got {0:?}")]
    LogitsKind(Kind),
    /// A different number of classes than before.
    #[error("the model returned {got} classes after {expected} before")]
    ClassesChanged {
        /// At first.
        expected: i64,
        /// Later.
        got: i64,
    },
    /// An attack returned something that is no image.
    #[error("attack `{attack}` returned a value that is not finite for sample {sample}")]
    NonFiniteImage {
        /// Id of the first offending sample.
        sample: u64,
        /// Which attack.
        attack: String,
    },
    /// An attack returned another number or shape of images.
    #[error("attack `{attack}` returned images of shape {got:?} for {expected:?}")]
    ImageShape {
        /// Which attack.
        attack: String,
        /// Shape of the batch.
        expected: Vec<i64>,
        /// Shape that came back.
        got: Vec<i64>,
    },
    /// The evaluation does not agree with itself.
    #[error("self-check failed: {0}")]
    SelfCheck(String),
    /// The observer stopped the run.
    #[error("interrupted")]
    Interrupted,
    /// A report to continue from that belongs to another evaluation.
    #[error("cannot continue this evaluation: {0}")]
    Resume(String),
}

/// The smallest number of rows that is worth a forward pass: about 2 MiB of pixels. Attacks that try
/// several targets or neighbours of a sample put them in one pass up to this size or the batch's.
const ROW_BUDGET_VALUES: i64 = 1 << 19;

/// How many rows a pass may have for a batch of these images.
pub(crate) fn row_budget(images: &Tensor) -> usize {
    let size = images.size();
    let values: i64 = size[1..].iter().product();
    size[0].max(ROW_BUDGET_VALUES / values.max(1)).max(1) as usize
}

/// The model as an attack sees it: counts passes and refuses logits that are not finite.
pub(crate) struct Oracle<'a> {
    model: &'a dyn Classifier,
    attack: &'a str,
    ids: &'a [u64],
    queries: Vec<u64>,
    passes: Passes,
}

/// A gradient with what was seen on the way to it.
pub(crate) struct Slope {
    /// Gradient of each row's loss, shape of the images.
    pub(crate) gradient: Tensor,
    /// f32 `[rows]`.
    pub(crate) losses: Tensor,
    /// f32 `[rows, K]`, detached.
    pub(crate) logits: Tensor,
}

impl<'a> Oracle<'a> {
    pub(crate) fn new(model: &'a dyn Classifier, attack: &'a str, ids: &'a [u64]) -> Self {
        Self { model, attack, ids, queries: vec![0; ids.len()], passes: Passes::default() }
    }

    /// Logits of `images`, whose row r belongs to sample `rows[r]` of the batch.
    pub(crate) fn logits(&mut self, images: &Tensor, rows: &[usize]) -> Result<Tensor, AttackError> {
        let _no_grad = tch::no_grad_guard();
        let logits = self.model.logits(images).map_err(|source| self.failed(rows, source))?;
        self.seen(&logits, rows)?;
        Ok(logits)
    }

    /// Gradient of the summed `loss(images, logits)`, one loss per row, with respect to the images.
    pub(crate) fn slope(
        &mut self,
        images: &Tensor,
        rows: &[usize],
        loss: impl FnOnce(&Tensor, &Tensor) -> Tensor,
    ) -> Result<Slope, AttackError> {
        let mut logits = None;
        let (gradient, losses) = try_input_gradient(images, |x| {
            let seen = self.model.logits(x).map_err(|source| self.failed(rows, source))?;
            let losses = loss(x, &seen);
            logits = Some(seen.detach());
            Ok::<_, AttackError>(losses)
        })?;
        let logits = logits.expect("input_gradient calls the loss once");
        self.seen(&logits, rows)?;
        self.passes += Passes::backward(rows.len() as u64);
        Ok(Slope { gradient, losses, logits })
    }

    /// Books `calls` more backward passes of `rows` rows each through a graph that one forward pass built.
    pub(crate) fn count_backward(&mut self, rows: usize, calls: u64) {
        self.passes.backward_calls += calls;
        self.passes.backward_images += rows as u64 * calls;
    }

    /// The model itself, for attacks that differentiate several outputs of one pass; book with
    /// [`Oracle::seen`] and [`Oracle::count_backward`].
    pub(crate) fn model(&self) -> &'a dyn Classifier {
        self.model
    }

    /// The model's error with the samples that it was about.
    pub(crate) fn failed(&self, rows: &[usize], source: ClassifierError) -> AttackError {
        let sample = rows.first().map_or(0, |&row| self.ids[row]);
        AttackError::Model { sample, rows: rows.len(), attack: self.attack.to_owned(), source }
    }

    /// Books a forward pass and checks what came out.
    pub(crate) fn seen(&mut self, logits: &Tensor, rows: &[usize]) -> Result<(), AttackError> {
        self.passes += Passes::forward(rows.len() as u64);
        for &row in rows {
            self.queries[row] += 1;
        }
        let size = logits.size();
        if size.len() != 2 || size[0] != rows.len() as i64 || size[1] < 2 {
            return Err(AttackError::LogitsShape { rows: rows.len() as i64, got: size });
        }
        if let Some(row) = first_not_finite(logits) {
            return Err(AttackError::NonFiniteLogits { sample: self.ids[rows[row]], attack: self.attack.to_owned() });
        }
        Ok(())
    }

    pub(crate) fn finish(self, images: Tensor) -> Perturbed {
        Perturbed { images, queries: self.queries, passes: self.passes }
    }

    pub(crate) fn ids(&self) -> &'a [u64] {
        self.ids
    }
}

/// The first row with a value that is not finite.
pub(crate) fn first_not_finite(values: &Tensor) -> Option<usize> {
    // The sum of finite f32 values cannot overflow in f64, and NaN and infinity survive it.
    if values.sum(Kind::Double).double_value(&[]).is_finite() {
        return None;
    }
    let bad = values.isfinite().logical_not().flatten(1, -1).any_dim(1, false);
    let bad = Vec::<bool>::try_from(bad).expect("bool tensor");
    bad.iter().position(|&bad| bad)
}

/// Whether each row reaches the goal: another class than its label, or its target.
pub(crate) fn reached(logits: &Tensor, labels: &Tensor, targets: Option<&Tensor>) -> Tensor {
    let predicted = logits.argmax(1, false);
    match targets {
        Some(targets) => predicted.eq_tensor(targets),
        None => predicted.ne_tensor(labels),
    }
}

/// Margin to the goal, positive while it is not reached: `z_y - max_other`, or `max_other - z_t`.
pub(crate) fn goal_margin(logits: &Tensor, labels: &Tensor, targets: Option<&Tensor>) -> Tensor {
    match targets {
        Some(targets) => -loss::margin(logits, targets),
        None => loss::margin(logits, labels),
    }
}

/// `mask` (bool `[N]`) as a list of the positions that are true.
pub(crate) fn positions(mask: &Tensor) -> Vec<usize> {
    let mask = Vec::<bool>::try_from(mask.to_kind(Kind::Bool)).expect("bool tensor");
    mask.iter().enumerate().filter_map(|(position, &set)| set.then_some(position)).collect()
}

/// An index tensor for `index_select` on `like`'s device.
pub(crate) fn index(positions: &[usize], like: &Tensor) -> Tensor {
    let positions: Vec<i64> = positions.iter().map(|&position| position as i64).collect();
    Tensor::from_slice(&positions).to_device(like.device())
}

/// Reshapes `[N]` to `[N, 1, 1, 1]`.
pub(crate) fn per_image(values: &Tensor) -> Tensor {
    values.view([-1, 1, 1, 1])
}

/// The check that attacks without special needs share.
pub(crate) fn check_norms(attack: &str, norms: &[Norm], threat: &ThreatModel) -> Result<(), ConfigError> {
    if norms.contains(&threat.norm) {
        return Ok(());
    }
    Err(ConfigError::UnsupportedNorm { attack: attack.to_owned(), norm: threat.norm, known: norms.to_vec() })
}

/// The check of attacks whose loss needs several classes.
pub(crate) fn check_classes(attack: &str, needed: i64, classes: i64) -> Result<(), ConfigError> {
    if classes >= needed {
        return Ok(());
    }
    Err(ConfigError::TooFewClasses { attack: attack.to_owned(), needed, classes })
}

/// All three norms.
pub(crate) const ALL_NORMS: [Norm; 3] = [Norm::Linf, Norm::L2, Norm::L1];
