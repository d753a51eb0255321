//! The configuration of C²R.

use c2r_core::{crl::CrlConfig, curriculum::Curriculum};
use serde::{Deserialize, Serialize};

use crate::config::{CommonConfig, MatchingConfig, Place};

/// Weight of the loss and scale of its robust term: from ten images per class on and below, as chosen on held-out
/// images at ten and at one (docs/method.md, "The weight of the loss").
pub(super) const fn loss_weights(ipc: usize) -> (f64, f64) {
    if ipc >= 10 { (1.0, 6.0) } else { (5.0, 1.0) }
}

/// The share of the robust term for a number of images per class: 0.4 up to 10, 0.6 from 50 on (both from
/// the paper), linear in between (ours).
pub(super) fn eta(ipc: usize) -> f64 {
    const LOW: (f64, f64) = (10.0, 0.4);
    const HIGH: (f64, f64) = (50.0, 0.6);
    let part = ((ipc as f64 - LOW.0) / (HIGH.0 - LOW.0)).clamp(0.0, 1.0);
    LOW.1 + part * (HIGH.1 - LOW.1)
}

/// Options of C²R.
#[derive(Clone, Debug, Deserialize)]
pub struct C2rConfig {
    /// The real images that the synthetic ones are matched to.
    pub matching: MatchingConfig,
    /// Weights of the loss terms.
    pub objective: ObjectiveConfig,
    /// Options of the contrastive robustness loss; used where `objective.robust = "crl"`.
    pub crl: CrlConfig,
    /// What perturbation scores act on.
    pub aac: AacConfig,
}

/// Weights of the loss:
/// `L = matching.weight * L_DM + weight * [(1 - eta) * L_perf + eta * robust-weight * L_rob]`.
///
/// A configuration that does not give `weight`, `eta` or `robust-weight` gets them by its images per class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ObjectiveConfig {
    /// Weight of the bracket.
    pub weight: f64,
    /// Share of the robust term, in `[0, 1]`.
    pub eta: f64,
    /// Scale of the robust term, at least 0: the paper gives `eta`, not the scale of the two terms that it weighs.
    pub robust_weight: f64,
    /// What the robust term is.
    pub robust: RobustTerm,
    /// Which images are the anchors of the contrastive loss.
    #[serde(default)]
    pub anchors: Anchors,
    /// What the anchors are compared with besides the synthetic images and their companions.
    #[serde(default)]
    pub candidates: RealCandidates,
    /// Multiply the cross-entropy by the network's accuracy on its own training batches, in `[0, 1]` (ROME and IDM, whose
    /// accuracy is in percent: 100 times the weight).
    #[serde(default)]
    pub by_accuracy: bool,
    /// What `L_DM` measures.
    #[serde(default, skip_serializing_if = "is_default")]
    pub distance: Distance,
    /// Whether the loss of all classes is the mean or the sum of theirs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub reduction: Reduction,
    /// One augmentation draw for each class (DM, ROME) instead of one for all images of an update.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dsa_per_class: bool,
    /// Attack images after they are augmented (ROME), clamped to `[0, 1]` for that, instead of before.
    #[serde(default, skip_serializing_if = "is_default")]
    pub attack_after_dsa: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Distance of the mean embedding of synthetic images from that of real ones, for one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distance {
    /// Squared L2 distance, divided by the variance of the real embeddings.
    #[default]
    ScaledL2,
    /// The square of half the L1 distance: `total_variation_2` of ROME's code. It depends on the scale and the length of the
    /// embedding.
    SquaredL1,
}

/// How the losses of the classes become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Their mean. Adam does not care.
    #[default]
    Mean,
    /// Their sum: the number of classes times the mean (DM, ROME).
    Sum,
}

/// Which images are the anchors of the contrastive loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Anchors {
    /// The synthetic images, each with its own companion.
    #[default]
    Synthetic,
    /// The real images, each with its own companion; the synthetic ones move as their candidates.
    Real,
    /// Both, the mean of the two losses.
    Both,
}

/// Real images among the candidates of the contrastive loss; no gradient flows to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RealCandidates {
    /// None: synthetic images, their companions and the queue.
    None,
    /// Attacked ones.
    Attacked,
    /// Clean and attacked ones.
    #[default]
    Both,
}

/// The robust term of the objective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RobustTerm {
    /// Contrastive robustness loss.
    Crl,
    /// Squared distance of clean and adversarial class means of the synthetic images, the ablation.
    ClassMean,
    /// None; `eta` then only scales the cross-entropy.
    None,
}

/// What perturbation scores act on; each place takes any curriculum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AacConfig {
    /// Order, choice or weight of the synthetic images in the cross-entropy.
    pub synthetic: Curriculum,
    /// Order or choice of the real images that a pool network is trained on, epoch by epoch.
    pub pool: Curriculum,
    /// Choice or weight of the real images whose class means are matched.
    pub matching: Curriculum,
    /// Which terms of the loss the weights of `synthetic` act on; read where its mode is `weight`.
    #[serde(default)]
    pub weighted: Weighted,
    /// Whose perturbations are remembered where `companions.warm-start` is on (the paper's continuation).
    #[serde(default)]
    pub remember: Remember,
}

/// The terms in which a synthetic image counts by its weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weighted {
    /// The cross-entropy alone.
    #[default]
    Performance,
    /// The cross-entropy and the robust term: its loss as an anchor, or its part in the class means.
    Both,
}

/// Whose perturbations are remembered for the next visit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remember {
    /// The synthetic images', for each network of the pool its own.
    #[default]
    Synthetic,
    /// The real images', one for all networks: `N * C * H * W` floats.
    Real,
    /// Both.
    Both,
}

impl C2rConfig {
    /// Whether `matching.attacked` and `aac.matching` can act: through `L_DM`, or through the variance that the class means
    /// of the robust term are divided by.
    pub(super) fn matches(&self) -> bool {
        self.matching.weight > 0.0 || self.objective.robust == RobustTerm::ClassMean
    }

    /// Whether perturbations of synthetic images are remembered.
    pub(super) fn remembers_synthetic(&self, common: &CommonConfig) -> bool {
        common.remembers_at(Place::Synthetic) && self.aac.remember != Remember::Real
    }

    /// Whether the contrastive loss is a term.
    pub(super) fn contrasts(&self) -> bool {
        self.objective.robust == RobustTerm::Crl
    }

    /// Whether real images are anchors of the contrastive loss.
    pub(super) fn anchors_real(&self) -> bool {
        self.contrasts() && self.objective.anchors != Anchors::Synthetic
    }

    /// Whether an update makes companions of its synthetic images.
    pub(super) fn attacks_synthetic(&self) -> bool {
        self.objective.robust != RobustTerm::None || self.aac.synthetic.needs_scores()
    }

    /// Whether an update embeds attacked real images, and whether it embeds clean ones.
    pub(super) fn embeds_real(&self) -> (bool, bool) {
        let (candidates, anchors) = (self.objective.candidates, self.anchors_real());
        let as_candidates = self.contrasts() && (candidates != RealCandidates::None || self.crl.queue.is_some());
        let attacked = self.matching.attacked || anchors || as_candidates;
        let clean = !self.matching.attacked || anchors || (self.contrasts() && candidates == RealCandidates::Both);
        (attacked, clean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eta_follows_from_the_images_per_class() {
        assert_eq!([1, 10, 30, 50, 100].map(|ipc| (eta(ipc) * 1e6).round() / 1e6), [0.4, 0.4, 0.5, 0.6, 0.6]);
    }
}
