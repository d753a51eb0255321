//! What an attack is.

use std::fmt;

use c2r_base::{Classifier, Goal, Passes, Seed, ThreatModel, loss};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::error::{AttackError, ConfigError};

/// An attack as a value: it holds parameters, never a model.
///
/// Model, batch, threat model and randomness are arguments, so one attack can run on many models.
/// What comes back is a proposal: the driver ([`crate::evaluate`]) projects it into the threat set
/// and judges it by its own forward pass. An attack of your own asks the model through an [`crate::Oracle`], whose
/// documentation has an example.
///
/// Several threads may share an attack. What changes while it runs belongs in a lock: a [`Tensor`] is `Send` but not
/// `Sync`, so an attack that keeps one (a universal perturbation, say) holds a `Mutex<Tensor>` and takes a
/// `shallow_clone` out of it for each call.
///
/// ```
/// use std::sync::Mutex;
/// use c2r_attacks::tch::Tensor;
///
/// /// Adds the same perturbation to every image.
/// struct Universal {
///     delta: Mutex<Tensor>,
/// }
///
/// impl Universal {
///     fn delta(&self) -> Tensor {
///         self.delta.lock().expect("no thread panics while it has the lock").shallow_clone()
///     }
/// }
///
/// fn shared<T: Send + Sync>() {}
/// shared::<Universal>();
/// ```
pub trait Attack: Send + Sync {
    /// The published name in lower case, e.g. `apgd-ce`: used in tables, options and file names.
    fn name(&self) -> &str;

    /// What kind of attack this is.
    fn family(&self) -> Family;

    /// Whether this attack can run under `threat` on a model with `classes` classes; by default it can in every norm, unless
    /// the goal is targeted.
    ///
    /// An attack that aims at [`AttackBatch::targets`] where there are any, as one that follows
    /// [`AttackBatch::goal_margin`] does, returns `Ok(())` here.
    ///
    /// # Errors
    /// [`ConfigError::UnsupportedNorm`], [`ConfigError::UnsupportedGoal`] or [`ConfigError::TooFewClasses`].
    fn check(&self, threat: &ThreatModel, _classes: i64) -> Result<(), ConfigError> {
        match threat.goal {
            Goal::Untargeted => Ok(()),
            Goal::Targeted(_) => Err(ConfigError::UnsupportedGoal { attack: self.name().to_owned() }),
        }
    }

    /// Looks for an adversarial image for every sample of the batch.
    ///
    /// A sample's result depends on its image, label, target and id and on `seed`, not on the other
    /// samples of the batch (up to float rounding).
    ///
    /// The driver calls it with gradients off. [`crate::Oracle`] turns them on where it needs them; an attack that calls
    /// `model` itself, or differentiates what it computed, does that inside `tch::with_grad(|| ..)`.
    ///
    /// # Errors
    /// [`AttackError`], e.g. if the model fails or returns NaN; [`AttackError::failed`] for errors of the attack's own.
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

    /// The options it was made from, for reports; an evaluation is only continued with the same ones.
    fn options(&self) -> Option<serde_json::Value> {
        None
    }
}

impl fmt::Debug for dyn Attack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attack").field("name", &self.name()).field("options", &self.options()).finish()
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

impl AttackBatch<'_> {
    /// Whether each sample reaches the goal with these logits, f32 `[N, K]`: another class than its label, or its
    /// target. Bool `[N]`.
    pub fn reached(&self, logits: &Tensor) -> Tensor {
        let predicted = logits.argmax(1, false);
        match self.targets {
            Some(targets) => predicted.eq_tensor(targets),
            None => predicted.ne_tensor(self.labels),
        }
    }

    /// Margin to the goal, f32 `[N]` in logits, positive while it is not reached: `z_y - max_other`, or
    /// `max_other - z_t`.
    pub fn goal_margin(&self, logits: &Tensor) -> Tensor {
        match self.targets {
            Some(targets) => -loss::margin(logits, targets),
            None => loss::margin(logits, self.labels),
        }
    }
}

/// What an attack proposes.
#[derive(Debug)]
pub struct Perturbed {
    /// f32 `[N, C, H, W]`. A proposal: it may lie outside the threat set.
    pub images: Tensor,
    /// Number of forward passes that each sample took part in.
    pub queries: Vec<u64>,
    /// What the whole batch cost.
    pub passes: Passes,
    /// Whether a gradient of each sample had values that were NaN or infinite and were replaced ([`crate::Oracle`]).
    pub repaired: Vec<bool>,
}

impl Perturbed {
    /// Checks that there is one image of the right form and one count for each sample of `batch`.
    pub(crate) fn check(&self, attack: &str, batch: &AttackBatch<'_>) -> Result<(), AttackError> {
        let attack = || attack.to_owned();
        let got = if self.images.defined() { self.images.size() } else { Vec::new() };
        let expected = batch.images.size();
        if got != expected {
            return Err(AttackError::ImageShape { attack: attack(), expected, got });
        }
        if self.images.kind() != Kind::Float {
            return Err(AttackError::ImageKind { attack: attack(), got: self.images.kind() });
        }
        let (expected, got) = (batch.images.device(), self.images.device());
        if got != expected {
            return Err(AttackError::ImageDevice { attack: attack(), expected, got });
        }
        for (field, got) in [("queries", self.queries.len()), ("repaired", self.repaired.len())] {
            let expected = batch.ids.len();
            if got != expected {
                return Err(AttackError::PerSample { attack: attack(), field, expected, got });
            }
        }
        Ok(())
    }
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

impl Family {
    /// Whether an attack of this kind follows gradients. Of a suite, ask its attacks ([`Attack::stages`]).
    pub const fn follows_gradients(self) -> bool {
        matches!(self, Self::Gradient | Self::MinimumNorm)
    }
}
