use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Ball, Epsilon, Norm};

/// What the attacker may do and wants: a ball of `epsilon` in `norm` intersected with `[0, 1]`, and
/// the goal.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ThreatModel {
    /// How perturbations are measured.
    pub norm: Norm,
    /// The largest allowed perturbation, pixel units.
    pub epsilon: Epsilon,
    /// What counts as success.
    #[serde(default)]
    pub goal: Goal,
}

impl ThreatModel {
    /// An untargeted attacker.
    pub const fn untargeted(norm: Norm, epsilon: Epsilon) -> Self {
        Self { norm, epsilon, goal: Goal::Untargeted }
    }

    /// [`Norm::project`] with this model's radius: inside the ball and inside `[0, 1]`.
    pub fn project(&self, images: &Tensor, candidate: &Tensor) -> Tensor {
        self.norm.project(images, candidate, self.epsilon.value())
    }

    /// [`Norm::ball`] with this model's radius.
    pub fn ball(&self, images: &Tensor) -> Ball {
        self.norm.ball(images, self.epsilon.value())
    }
}

/// What counts as a successful attack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// Any class but the label.
    #[default]
    Untargeted,
    /// One given class per sample, chosen by a rule.
    Targeted(TargetRule),
}

/// How the target class of a targeted attack is chosen for a sample; never its label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetRule {
    /// `(label + 1) mod K`.
    Next,
    /// Uniform over the other classes, from the sample's stream.
    Random,
    /// The class with the smallest clean logit.
    LeastLikely,
    /// The class with the largest clean logit apart from the label.
    SecondBest,
    /// Chosen by the caller, for each sample.
    Given,
}
