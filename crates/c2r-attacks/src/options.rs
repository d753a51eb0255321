//! What the options of several attacks share: how they are declared, checked and counted.

use c2r_base::{Epsilon, Goal, Norm, Passes, Seed, ThreatModel, loss};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{
    attack::{AttackBatch, Family},
    error::{AttackError, ConfigError},
    oracle::Oracle,
};

/// Default length of a step, as a share of epsilon. Madry et al. 2018 (arXiv:1706.06083), section 5,
/// CIFAR10: 2 of 8.
const REL_STEP_SIZE: f64 = 0.25;

/// What the registry asks of an attack's options. `name` is the registry's for them.
pub(crate) trait Options {
    /// Checks the values and makes the attack.
    fn build(&self, name: &'static str) -> Result<Box<dyn Search>, ConfigError>;

    /// Passes of a sample that the attack does not stop early on, on a model with `classes` classes.
    fn passes(&self, threat: &ThreatModel, classes: u64) -> Passes;
}

/// What an attack is asked for: the arguments of [`Attack::perturb`](crate::Attack::perturb).
pub(crate) struct Task<'a> {
    pub(crate) batch: &'a AttackBatch<'a>,
    pub(crate) threat: &'a ThreatModel,
    pub(crate) seed: Seed,
}

/// What each attack of this crate writes for itself; the registry makes an [`Attack`](crate::Attack) of it.
pub(crate) trait Search: Send + Sync {
    /// The same as of an [`Attack`](crate::Attack).
    fn family(&self) -> Family;

    /// The same as of an [`Attack`](crate::Attack); `check` gets its name, too. An attack without a targeted form refuses a target.
    fn check(&self, check: &Check, threat: &ThreatModel, classes: i64) -> Result<(), ConfigError>;

    /// The proposal, f32 `[N, C, H, W]`, made without gradient tracking; the same for the same answers of `oracle`.
    fn search(&self, oracle: &mut Oracle<'_>, task: &Task<'_>) -> Result<Tensor, AttackError>;
}

/// This many passes of one image each.
pub(crate) const fn passes(forward: u64, backward: u64) -> Passes {
    Passes { forward_calls: forward, forward_images: forward, backward_calls: backward, backward_images: backward }
}

/// Declares the options of one attack: a struct that refuses unknown keys, with defaults. With `steps` the three
/// options of attacks with fixed steps come first; [`Check::step`] reads them.
macro_rules! options {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
    ($(#[$doc:meta])* $name:ident steps { $($rest:tt)* }) => {
        $crate::options::options!(
            $(#[$doc])*
            $name {
                /// Number of steps.
                steps: u32 = STEPS,
                /// Length of a step, pixel units; excludes `rel_step_size`.
                step_size: Option<c2r_base::Epsilon> = None,
                /// Length of a step, fraction of epsilon [0.25].
                rel_step_size: Option<f64> = None,
                $($rest)*
            }
        );
    };
}
pub(crate) use options;

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

/// The loss that a gradient attack ascends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// [`loss::ce`].
    #[default]
    Ce,
    /// [`loss::cw`].
    Cw,
    /// [`loss::dlr`], or [`loss::dlr_targeted`] for a targeted goal.
    Dlr,
}

impl LossKind {
    pub(crate) fn classes_needed(self, goal: Goal) -> i64 {
        match (self, goal) {
            (Self::Dlr, Goal::Untargeted) => 3,
            (Self::Dlr, Goal::Targeted(_)) => 4,
            _ => 2,
        }
    }

    /// One loss per sample; grows towards the goal.
    pub(crate) fn losses(self, logits: &Tensor, labels: &Tensor, targets: Option<&Tensor>, kappa: f64) -> Tensor {
        match (self, targets) {
            (Self::Ce, None) => loss::ce(logits, labels),
            (Self::Ce, Some(targets)) => -loss::ce(logits, targets),
            (Self::Cw, None) => loss::cw(logits, labels, kappa),
            (Self::Cw, Some(targets)) => -(kappa - loss::margin(logits, targets)).clamp_min(0.0),
            (Self::Dlr, None) => loss::dlr(logits, labels),
            (Self::Dlr, Some(targets)) => loss::dlr_targeted(logits, labels, targets),
        }
    }
}

/// Checks values; carries the attack's name for the message.
pub(crate) struct Check(pub(crate) &'static str);

impl Check {
    pub(crate) fn fail<T>(&self, option: &str, reason: impl Into<String>) -> Result<T, ConfigError> {
        Err(ConfigError::Option { attack: self.0.to_owned(), option: option.to_owned(), reason: reason.into() })
    }

    pub(crate) fn count(&self, option: &str, value: u32) -> Result<(), ConfigError> {
        // The sum of two counts still fits into 32 bits.
        let most = i32::MAX as u32;
        match value {
            0 => self.fail(option, "must be at least 1"),
            _ if value > most => self.fail(option, format!("must be at most {most}, got {value}")),
            _ => Ok(()),
        }
    }

    pub(crate) fn at_least(&self, option: &str, value: f64, least: f64) -> Result<(), ConfigError> {
        if value.is_finite() && value >= least {
            return Ok(());
        }
        self.fail(option, format!("must be at least {least}, got {value}"))
    }

    pub(crate) fn positive(&self, option: &str, value: f64) -> Result<(), ConfigError> {
        if value.is_finite() && value > 0.0 {
            return Ok(());
        }
        self.fail(option, format!("must be positive, got {value}"))
    }

    pub(crate) fn fraction(&self, option: &str, value: f64) -> Result<(), ConfigError> {
        if value > 0.0 && value <= 1.0 {
            return Ok(());
        }
        self.fail(option, format!("must be above 0 and at most 1, got {value}"))
    }

    pub(crate) fn step(
        &self,
        steps: u32,
        absolute: Option<Epsilon>,
        relative: Option<f64>,
    ) -> Result<Step, ConfigError> {
        self.count("steps", steps)?;
        match (absolute, relative) {
            (Some(_), Some(_)) => self.fail("step-size", "cannot be set together with `rel-step-size`"),
            (Some(length), None) => {
                self.positive("step-size", length.value())?;
                Ok(Step::Absolute(length.value()))
            }
            (None, relative) => {
                let relative = relative.unwrap_or(REL_STEP_SIZE);
                self.positive("rel-step-size", relative)?;
                Ok(Step::Relative(relative))
            }
        }
    }

    /// That the attack is defined for the norm of `threat`.
    pub(crate) fn norm(&self, known: &[Norm], threat: &ThreatModel) -> Result<(), ConfigError> {
        if known.contains(&threat.norm) {
            return Ok(());
        }
        Err(ConfigError::UnsupportedNorm { attack: self.0.to_owned(), norm: threat.norm, known: known.to_vec() })
    }

    /// That the model has the classes that a loss needs.
    pub(crate) fn classes(&self, needed: i64, classes: i64) -> Result<(), ConfigError> {
        if classes >= needed {
            return Ok(());
        }
        Err(ConfigError::TooFewClasses { attack: self.0.to_owned(), needed, classes })
    }
}

/// All three norms.
pub(crate) const ALL_NORMS: [Norm; 3] = [Norm::Linf, Norm::L2, Norm::L1];
