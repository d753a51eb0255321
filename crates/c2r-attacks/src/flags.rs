use std::fmt;

use serde::{Deserialize, Serialize};

/// A reason to doubt a result, as AutoAttack's `flags_doc.md` has them; docs/attacks/flags.md says what
/// to do about each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "flag", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
#[non_exhaustive]
pub enum Flag {
    /// Two passes over the same images gave different logits.
    RandomizedModel {
        /// Largest difference, logits.
        difference: f64,
    },
    /// An image alone gave other logits than in a batch: batch statistics are in use (train mode?).
    BatchDependentModel {
        /// Largest difference, logits.
        difference: f64,
    },
    /// The outputs look like probabilities: losses on them have almost no gradient.
    ProbabilitiesNotLogits,
    /// The gradient of the cross entropy is exactly zero for correctly classified samples.
    ZeroGradient {
        /// How many.
        samples: usize,
        /// Of how many that were tried.
        of: usize,
    },
    /// A black-box attack broke what attacks that see gradients did not: gradients may be masked.
    BlackBoxBeatsWhiteBox {
        /// Which black-box attack.
        attack: String,
        /// By how many samples.
        samples: usize,
    },
    /// FGSM broke more than an attack that goes up the same loss in several steps: those do not fit the radius.
    OneStepBeatsMany {
        /// Which attack of several steps.
        attack: String,
        /// How many steps.
        steps: u32,
        /// By how many samples.
        samples: usize,
    },
    /// Random noise broke what an attack did not.
    WeakerThanNoise {
        /// Which attack.
        attack: String,
        /// By how many samples.
        samples: usize,
    },
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RandomizedModel { difference } => write!(
                f,
                "the model is randomized (logits of two passes differ by {difference:.1e}): use autoattack-rand or eot-pgd"
            ),
            Self::BatchDependentModel { difference } => {
                write!(f, "logits depend on the rest of the batch (by {difference:.1e}): is the model in train mode?")
            }
            Self::ProbabilitiesNotLogits => {
                write!(f, "the model seems to return probabilities: attacks need logits, before the softmax")
            }
            Self::ZeroGradient { samples, of } => write!(
                f,
                "the gradient of the cross entropy is zero for {samples} of {of} samples: use attacks on margins (cw-linf, apgd-dlr, apgd-t)"
            ),
            Self::BlackBoxBeatsWhiteBox { attack, samples } => write!(
                f,
                "`{attack}`, which sees no gradient, broke {samples} samples that the gradient attacks before it did not: gradients may be masked, or those attacks too short"
            ),
            Self::OneStepBeatsMany { attack, steps, samples } => write!(
                f,
                "`fgsm`, one step, breaks {samples} samples more than the {steps} steps of `{attack}`: their step size does not fit epsilon (`{attack}` by itself steps a quarter of it; `--set {attack}.step-size=SIZE` changes a suite's)"
            ),
            Self::WeakerThanNoise { attack, samples } => {
                write!(f, "random noise breaks {samples} samples more than `{attack}`")
            }
        }
    }
}
