//! Why an attack cannot be made, or stopped.

use std::error::Error;

use c2r_base::{ClassifierError, Epsilon, ImageError, Norm, grad::GradientError};
use tch::{Device, Kind};

/// Where the classes are from that a label is outside of.
fn outputs(error: &ImageError) -> String {
    match error {
        ImageError::Label { classes, .. } => format!(": the model has {classes} outputs"),
        _ => String::new(),
    }
}

/// Names of attacks without what people leave out or write otherwise.
fn plain(name: &str) -> String {
    name.to_lowercase().replace(['-', '_', ' '], "")
}

/// The attack among `known`, separated by spaces, that `name` seems to mean: it is spelled otherwise, or begins its name.
fn meant(name: &str, known: &str) -> String {
    let name = plain(name);
    let is_like = |known: &&str| plain(known) == name;
    let begins = |known: &&str| known.split_once('-').is_some_and(|(first, _)| first == name);
    match known.split(' ').find(is_like).or_else(|| known.split(' ').find(begins)) {
        Some(known) => format!(" (did you mean `{known}`?)"),
        None => String::new(),
    }
}

/// Why a configuration cannot work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No such attack.
    #[error("`{name}` is not an attack{}; known: {known}", meant(name, known))]
    UnknownAttack {
        /// What was asked for.
        name: String,
        /// Everything there is.
        known: String,
    },
    /// An option that the attack does not have.
    #[error("attack `{attack}` has no option `{option}`; it has: {known}")]
    UnknownOption {
        /// Which attack.
        attack: String,
        /// What was set.
        option: String,
        /// What could be set.
        known: String,
    },
    /// An option with a value that cannot be.
    #[error("attack `{attack}`: option `{option}`: {reason}")]
    Option {
        /// Which attack.
        attack: String,
        /// Which option.
        option: String,
        /// What is wrong.
        reason: String,
    },
    /// An option of an attack that is not run.
    #[error("`{attack}.{option}` names an attack that is neither chosen nor in a chosen suite")]
    NotChosen {
        /// Which attack.
        attack: String,
        /// Which option.
        option: String,
    },
    /// One attack with the same options, twice; or, where each attack is judged by itself, of the same name.
    #[error("`{attack}` is chosen twice")]
    Twice {
        /// Which attack.
        attack: String,
    },
    /// A norm that the attack is not defined for.
    #[error("attack `{attack}` is not defined for the norm {norm}; it takes {}", join(known))]
    UnsupportedNorm {
        /// Which attack.
        attack: String,
        /// What was asked for.
        norm: Norm,
        /// What it knows.
        known: Vec<Norm>,
    },
    /// A goal that the attack is not defined for.
    #[error("attack `{attack}` cannot aim at a given class")]
    UnsupportedGoal {
        /// Which attack.
        attack: String,
    },
    /// A suite with the numbers that its authors use for another norm.
    #[error(
        "`{suite}` has the restarts and targets that its authors use for {}, not those for {norm}; make it with AttackConfig::named_for(name, norm)",
        join(known)
    )]
    SuiteOfOtherNorm {
        /// Which suite.
        suite: String,
        /// What was asked for.
        norm: Norm,
        /// What it is made for.
        known: Vec<Norm>,
    },
    /// A ball that holds every image.
    #[error(
        "a radius of {epsilon} is too large: with pixels in [0, 1], two images of this size are at most {diameter} apart in {norm}"
    )]
    EpsilonCoversAll {
        /// The radius, pixel units.
        epsilon: Epsilon,
        /// The norm.
        norm: Norm,
        /// The largest distance of two images, pixel units.
        diameter: f64,
    },
    /// A loss with a denominator of more logits than there are.
    #[error(
        "attack `{attack}` needs a model with {needed} classes or more, but this one has {classes}; apgd-ce, fab-t and square take two"
    )]
    TooFewClasses {
        /// Which attack.
        attack: String,
        /// At least.
        needed: i64,
        /// What the model has.
        classes: i64,
    },
}

fn join(norms: &[Norm]) -> String {
    norms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Why an attack or an evaluation stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttackError {
    /// A parameter that cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Images or labels that cannot be right.
    #[error("{0}{more}", more = outputs(.0))]
    Images(#[from] ImageError),
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
    /// An attack failed for a reason of its own; see [`AttackError::failed`].
    #[error("attack `{attack}` failed")]
    Failed {
        /// Which attack.
        attack: String,
        /// Its own error.
        #[source]
        source: Box<dyn Error + Send + Sync>,
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
    /// NaN or infinity at a point outside `[0, 1]`, where some attacks take gradients.
    #[error(
        "the model's logits for sample {sample} are not finite outside [0, 1], where `{attack}` takes a gradient, as its paper does: write images.clamp(0, 1) at the start of the model's forward, or use an attack that stays inside, such as pgd"
    )]
    NonFiniteOutside {
        /// Id of the first offending sample.
        sample: u64,
        /// What was running.
        attack: String,
    },
    /// The gradient of a sample is NaN in every value: it has no direction.
    #[error(
        "the model's gradient for sample {sample} is NaN in every pixel (during `{attack}`), so no attack can follow it; sqrt, log, norm and powers have no gradient at 0: write (x + 1e-12).sqrt() in Python"
    )]
    NonFiniteGradient {
        /// Id of the first offending sample.
        sample: u64,
        /// What was running.
        attack: String,
    },
    /// The outputs cannot be differentiated.
    #[error(
        "`{attack}` needs the gradient of the model: {source}; use attacks that need none (square, noise), or a model without no_grad, detach, argmax and round"
    )]
    NoGradient {
        /// What was running.
        attack: String,
        /// What is missing.
        source: GradientError,
    },
    /// Not `[N, K]` with at least two classes.
    #[error("the model must return logits of shape [{rows}, K] with K of 2 or more, got {got:?}")]
    LogitsShape {
        /// Number of images that went in.
        rows: i64,
        /// Shape that came out.
        got: Vec<i64>,
    },
    /// The targets of a targeted evaluation do not fit.
    #[error("targets: {0}; with the goal `given` there must be one for each sample, and none that is its label")]
    Targets(String),
    /// Not f32.
    #[error("the model must return f32 logits, got {0:?}; in Python, return logits.float()")]
    LogitsKind(Kind),
    /// A different number of classes than before.
    #[error(
        "the model returned {got} logits for each image, but {expected} in an earlier pass; the number of classes must not change"
    )]
    ClassesChanged {
        /// At first.
        expected: i64,
        /// Later.
        got: i64,
    },
    /// An attack proposed NaN or infinity.
    #[error("attack `{attack}` returned a value that is not finite for sample {sample}")]
    NonFiniteImage {
        /// Id of the first offending sample.
        sample: u64,
        /// Which attack.
        attack: String,
    },
    /// An attack returned another number or shape of images.
    #[error("attack `{attack}` returned images of shape {got:?}; they must have the shape of the batch, {expected:?}")]
    ImageShape {
        /// Which attack.
        attack: String,
        /// Shape of the batch.
        expected: Vec<i64>,
        /// Shape that came back.
        got: Vec<i64>,
    },
    /// An attack returned images that are not f32.
    #[error("attack `{attack}` returned images of dtype {got:?}; they must be f32 (`images.to_kind(Kind::Float)`)")]
    ImageKind {
        /// Which attack.
        attack: String,
        /// Their dtype.
        got: Kind,
    },
    /// An attack returned images on another device than the model's.
    #[error("attack `{attack}` returned images on {got:?}; the batch is on {expected:?}")]
    ImageDevice {
        /// Which attack.
        attack: String,
        /// Where the batch is.
        expected: Device,
        /// Where its images are.
        got: Device,
    },
    /// An attack returned too few or too many counts.
    #[error("attack `{attack}` returned {got} `{field}` for {expected} samples; there must be one for each")]
    PerSample {
        /// Which attack.
        attack: String,
        /// A field of [`crate::Perturbed`].
        field: &'static str,
        /// Samples in the batch.
        expected: usize,
        /// What it returned.
        got: usize,
    },
    /// An attack asked its oracle about images of samples that are not in the batch.
    #[error("attack `{attack}` gave its oracle {reason}: `rows` has, for each image, the sample that it belongs to")]
    Rows {
        /// Which attack.
        attack: String,
        /// What does not fit.
        reason: String,
    },
    /// The evaluation does not agree with itself.
    #[error("self-check failed: {0}")]
    SelfCheck(String),
    /// The observer or [`crate::EvaluateOptions::stop`] stopped the run.
    #[error("interrupted")]
    Interrupted,
    /// A report to continue from that belongs to another evaluation.
    #[error("cannot continue this evaluation: {0}")]
    Resume(String),
}

impl AttackError {
    /// The error of an attack that failed for a reason of its own: another error, or a message.
    pub fn failed(attack: &str, reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed { attack: attack.to_owned(), source: reason.into() }
    }

    /// What the model or the attack itself said, if it said something.
    pub(crate) fn reason(&self) -> String {
        self.source().map_or_else(|| self.to_string(), ToString::to_string)
    }
}
