//! What an evaluation reports.

use std::{collections::BTreeMap, fmt};

use c2r_base::{Passes, Seed, ThreatModel};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error, ser::SerializeMap};
use serde_json::Value;

use crate::attack::Family;

/// How several attacks are combined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Each attack runs on what the ones before it left: robust accuracy against all of them.
    #[default]
    Suite,
    /// Each attack runs on every correctly classified sample: one robust accuracy per attack.
    Each,
}

/// What happened to one sample under one attack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// Misclassified before any attack: not robust, and not attacked.
    CleanError,
    /// Every attack failed.
    Survived,
    /// An attack reached the goal.
    Broken {
        /// Name of the attack (of the stage, in a suite).
        by: String,
    },
}

/// One sample under one entry of a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleOutcome {
    /// What happened.
    pub outcome: Outcome,
    /// Predicted class of the image that was judged last; the clean prediction where nothing was.
    pub prediction: i64,
    /// Distance of that image from the clean one, pixel units, in the threat model's norm.
    pub distance: f64,
    /// The smallest margin of the label, in logits, among the clean image and those that were judged: an estimate of
    /// the robust margin from above, as good as the attack.
    pub margin: f32,
    /// Forward passes that the sample took part in, judging included.
    pub queries: u64,
    /// Stages of the entry that have been run on it.
    pub stages: usize,
}

/// What one stage of an entry did; an attack that is not a suite is one stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageEntry {
    /// Name of the attack.
    pub attack: String,
    /// What kind of attack it is.
    pub family: Family,
    /// Samples that it was run on.
    pub attacked: usize,
    /// Samples among them that it did not break.
    pub survivors: usize,
    /// What it cost, judging included.
    pub counts: Passes,
    /// Wall clock, judging included.
    pub seconds: f64,
    /// Samples with gradients that had NaN or infinite values, which were replaced ([`crate::Oracle`]).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub repaired_gradients: usize,
    /// Samples whose judged image has a clearly larger margin of the label than the clean one, by over a tenth: counted where
    /// the attack goes up a loss of the label alone.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub surer: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// One attack or suite of a report.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct AttackEntry {
    /// Name, e.g. `pgd` or `autoattack-standard`.
    pub name: String,
    /// Its options ([`crate::Attack::options`]), for attacks of this crate an [`crate::AttackConfig`].
    pub config: Option<Value>,
    /// In order.
    pub stages: Vec<StageEntry>,
    /// One per sample. In [`Mode::Suite`] samples that an earlier entry broke stay broken.
    pub samples: Vec<SampleOutcome>,
}

impl AttackEntry {
    /// Share of all samples that are correctly classified and were not broken.
    pub fn robust_accuracy(&self) -> f64 {
        share(self.samples.iter().map(|sample| sample.outcome == Outcome::Survived))
    }

    /// Share of the samples it was run on that it broke; `None` if it was run on none. In the report of an unfinished run, the
    /// share that it has broken so far.
    pub fn success_rate(&self) -> Option<f64> {
        let attacked = self.stages.first()?.attacked;
        let broken: usize = self.stages.iter().map(|stage| stage.attacked.saturating_sub(stage.survivors)).sum();
        (attacked > 0).then(|| broken as f64 / attacked as f64)
    }

    /// Sum over the stages.
    pub fn counts(&self) -> Passes {
        self.stages.iter().map(|stage| stage.counts).sum()
    }

    /// Sum over the stages.
    pub fn seconds(&self) -> f64 {
        self.stages.iter().map(|stage| stage.seconds).sum()
    }
}

/// Result of [`crate::evaluate`]: what happened to every sample. Rates are computed from it.
///
/// As JSON it carries the rates as well (`clean_accuracy`, `robust_accuracy`, and per attack
/// `robust_accuracy`, `survivors`, `seconds`), which are ignored when it is read back.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct AttackReport {
    /// [`AttackReport::SCHEMA_VERSION`]; a report of another version is not read.
    #[serde(deserialize_with = "known_version")]
    pub schema_version: u32,
    /// What the attacker may do and wants.
    pub threat: ThreatModel,
    /// Whether attacks run on what the ones before left, or each on everything.
    pub mode: Mode,
    /// Where the noise came from.
    pub seed: Seed,
    /// Samples per pass; does not change results.
    pub batch_size: usize,
    /// Number of classes.
    pub classes: i64,
    /// One per sample.
    pub labels: Vec<i64>,
    /// Tells the images that were attacked from others: a hash of their shape and values.
    pub images_fingerprint: String,
    /// Target classes, if the goal is targeted.
    pub targets: Option<Vec<i64>>,
    /// Predictions on the clean images.
    pub clean_predictions: Vec<i64>,
    /// Margins of the labels on the clean images, in logits.
    pub clean_margins: Vec<f32>,
    /// What the clean pass, its warm-up and the self-checks cost.
    pub clean_counts: Passes,
    /// Wall clock of the clean pass alone, with a model that is warm.
    pub clean_seconds: f64,
    /// Wall clock of the warm-up and the self-checks before it.
    pub check_seconds: f64,
    /// In the order they ran.
    pub attacks: Vec<AttackEntry>,
    /// Reasons for doubt.
    pub flags: Vec<Flag>,
    /// Versions of what computed this.
    pub versions: BTreeMap<String, String>,
}

/// The version of the JSON layout, if it is this one's.
fn known_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let (version, known) = (u32::deserialize(deserializer)?, AttackReport::SCHEMA_VERSION);
    if version == known {
        return Ok(version);
    }
    Err(D::Error::custom(format!("the report's schema_version is {version}; this version of c2r reads {known}")))
}

impl AttackReport {
    /// Version of the JSON layout.
    pub const SCHEMA_VERSION: u32 = 1;

    /// Number of samples.
    pub fn n(&self) -> usize {
        self.labels.len()
    }

    /// Whether a clean image is classified as its label.
    pub fn clean_correct(&self) -> impl Iterator<Item = bool> + '_ {
        self.labels.iter().zip(&self.clean_predictions).map(|(label, prediction)| label == prediction)
    }

    /// Share of clean images that are classified as their label.
    pub fn clean_accuracy(&self) -> f64 {
        share(self.clean_correct())
    }

    /// Share of all samples that are classified correctly and that no attack broke. A sample that an attack's entry lacks, as
    /// in a damaged report, counts as broken.
    pub fn robust_accuracy(&self) -> f64 {
        share(self.clean_correct().enumerate().map(|(at, correct)| {
            let survived =
                |attack: &AttackEntry| attack.samples.get(at).is_some_and(|sample| sample.outcome == Outcome::Survived);
            correct && self.attacks.iter().all(survived)
        }))
    }

    /// The entry of this name.
    pub fn attack(&self, name: &str) -> Option<&AttackEntry> {
        self.attacks.iter().find(|attack| attack.name == name)
    }

    /// Passes of the clean pass, the checks and all attacks.
    pub fn counts(&self) -> Passes {
        [self.clean_counts].into_iter().chain(self.attacks.iter().map(AttackEntry::counts)).sum()
    }

    /// Wall clock of everything.
    pub fn seconds(&self) -> f64 {
        self.check_seconds + self.clean_seconds + self.attacks.iter().map(AttackEntry::seconds).sum::<f64>()
    }
}

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
    /// The model writes into the images that it is given. It gets copies.
    ChangesItsInput {
        /// Largest change of a value, pixel units.
        difference: f64,
    },
    /// All outputs are in `[0, 1]`, those for extreme images, too, as after a softmax or sigmoid: losses on them have almost
    /// no gradient.
    ProbabilitiesNotLogits,
    /// All outputs end at the same two values, where they flatten, as after a tanh or a clamp: losses on them have almost no
    /// gradient.
    BoundedOutputs {
        /// The smallest output seen.
        low: f64,
        /// The largest one.
        high: f64,
    },
    /// A check of the model could not run, so what it looks for may be there unseen.
    CheckFailed {
        /// What the check looks for: the name of a flag.
        check: String,
        /// What failed.
        reason: String,
    },
    /// No gradient reaches the images: attacks that follow one cannot run.
    NoGradient {
        /// What failed.
        reason: String,
    },
    /// The gradients of the cross entropy and of the margin are exactly zero for correctly classified samples: no loss has a
    /// gradient there, as in a model that rounds.
    FlatModel {
        /// How many.
        samples: usize,
        /// Of how many that were tried.
        of: usize,
    },
    /// The gradient of the cross entropy is exactly zero for correctly classified samples, that of the margin is not.
    ZeroGradient {
        /// How many.
        samples: usize,
        /// Of how many that were tried.
        of: usize,
    },
    /// The gradient of the cross entropy is not zero but below 1e-10 in every pixel for many correctly classified samples.
    VanishingGradient {
        /// How many.
        samples: usize,
        /// Of how many that were tried.
        of: usize,
    },
    /// Gradients had values that are NaN or infinite; NaN counted as 0.
    NonFiniteGradient {
        /// Which attack asked for them.
        attack: String,
        /// For how many samples.
        samples: usize,
    },
    /// An attack that follows the gradient leaves most samples classified clearly more surely than the clean images: the gradient
    /// points the wrong way.
    Downhill {
        /// Which attack.
        attack: String,
        /// How many samples are classified more surely.
        samples: usize,
        /// Of how many that were attacked.
        of: usize,
    },
    /// A black-box attack broke what attacks that see gradients did not: gradients may be masked.
    BlackBoxBeatsWhiteBox {
        /// Which black-box attack.
        attack: String,
        /// By how many samples.
        samples: usize,
    },
    /// FGSM broke more than an attack that goes up the same loss in several steps: those may not fit the radius.
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

impl Flag {
    /// The name that reports have for it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::RandomizedModel { .. } => "randomized-model",
            Self::BatchDependentModel { .. } => "batch-dependent-model",
            Self::ChangesItsInput { .. } => "changes-its-input",
            Self::ProbabilitiesNotLogits => "probabilities-not-logits",
            Self::BoundedOutputs { .. } => "bounded-outputs",
            Self::CheckFailed { .. } => "check-failed",
            Self::NoGradient { .. } => "no-gradient",
            Self::FlatModel { .. } => "flat-model",
            Self::ZeroGradient { .. } => "zero-gradient",
            Self::VanishingGradient { .. } => "vanishing-gradient",
            Self::NonFiniteGradient { .. } => "non-finite-gradient",
            Self::Downhill { .. } => "downhill",
            Self::BlackBoxBeatsWhiteBox { .. } => "black-box-beats-white-box",
            Self::OneStepBeatsMany { .. } => "one-step-beats-many",
            Self::WeakerThanNoise { .. } => "weaker-than-noise",
        }
    }

    /// The attack that it is about; `None` where it is about the model.
    pub fn attack(&self) -> Option<&str> {
        match self {
            Self::NonFiniteGradient { attack, .. }
            | Self::Downhill { attack, .. }
            | Self::BlackBoxBeatsWhiteBox { attack, .. }
            | Self::OneStepBeatsMany { attack, .. }
            | Self::WeakerThanNoise { attack, .. } => Some(attack),
            _ => None,
        }
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RandomizedModel { difference } => write!(
                f,
                "the model is randomized (logits of two passes differ by {difference:.1e}): use autoattack-rand or eot-pgd; if the randomness is not intended, the model is in train mode (dropout): call model.eval(), and only then torch.jit if you export it"
            ),
            Self::BatchDependentModel { difference } => {
                write!(
                    f,
                    "logits depend on the rest of the batch (by {difference:.1e}): is the model in train mode? Call model.eval(), and only then torch.jit if you export it"
                )
            }
            Self::ChangesItsInput { difference } => write!(
                f,
                "the model overwrites its input (by up to {difference:.1e}); it got copies, so the results are valid; in Python, write x = (x - mean) / std instead of x.sub_(mean).div_(std)"
            ),
            Self::ProbabilitiesNotLogits => write!(
                f,
                "the model seems to return probabilities: attacks need logits, before the softmax or sigmoid; with probabilities, robust accuracy comes out too high"
            ),
            Self::BoundedOutputs { low, high } => write!(
                f,
                "all outputs end at {low:.3} and {high:.3}, as after a tanh or a clamp: attacks need the logits before it; with squashed outputs, robust accuracy comes out too high"
            ),
            Self::CheckFailed { check, reason } => {
                write!(f, "the check for {check} could not run, because the model failed in it: {reason}")
            }
            Self::NoGradient { reason } => {
                write!(f, "only attacks that need no gradient (square, noise) can judge this model: {reason}")
            }
            Self::FlatModel { samples, of } => write!(
                f,
                "the model has no gradient (it is zero in every pixel) for {samples} of the {of} images of the first batch that it classifies correctly, as if it rounds its input or its outputs: attacks that follow a gradient cannot move these images, so the robust accuracy that they find is too high; use square, or attack a copy of the model without the rounding"
            ),
            Self::ZeroGradient { samples, of } => write!(
                f,
                "the gradient of the cross entropy is zero for {samples} of {of} samples: use attacks on margins (cw-linf, apgd-dlr, apgd-t)"
            ),
            Self::VanishingGradient { samples, of } => write!(
                f,
                "the gradient of the cross entropy is below 1e-10 in every pixel for {samples} of {of} samples: use attacks on margins (cw-linf, apgd-dlr, apgd-t)"
            ),
            Self::NonFiniteGradient { attack, samples } => write!(
                f,
                "the gradient has values that are NaN or infinite for {samples} sample{} (during `{attack}`); NaN counted as 0, so `{attack}` may be weaker than it should be; sqrt, log, norm and powers have no gradient at 0: write (x + 1e-12).sqrt() in Python",
                plural(*samples)
            ),
            Self::Downhill { attack, samples, of } => write!(
                f,
                "the images of `{attack}` are classified more surely than the clean ones for {samples} of {of} samples: the gradient of the model points the wrong way (a backward pass of its own? gradient reversal?), so attacks that follow it find a robust accuracy that is too high; correct the backward pass, or use square"
            ),
            Self::BlackBoxBeatsWhiteBox { attack, samples } => write!(
                f,
                "`{attack}`, which uses no gradients, broke {samples} sample{} that the gradient attacks before it did not: gradients may be masked, or those attacks may be too short",
                plural(*samples)
            ),
            Self::OneStepBeatsMany { attack, steps, samples } => write!(
                f,
                "`fgsm` breaks {samples} more sample{} in one step than `{attack}` in {steps} steps, whose size may not fit epsilon (outside suites, `{attack}` takes steps of a quarter of epsilon; its option `step-size` changes them, in a suite, too)",
                plural(*samples)
            ),
            Self::WeakerThanNoise { attack, samples } => {
                write!(f, "random noise breaks {samples} more sample{} than `{attack}`", plural(*samples))
            }
        }
    }
}

/// What makes `sample` of that many.
const fn plural(samples: usize) -> &'static str {
    if samples == 1 { "" } else { "s" }
}

fn share(hits: impl Iterator<Item = bool>) -> f64 {
    let (mut n, mut n_hits) = (0usize, 0usize);
    for hit in hits {
        n += 1;
        n_hits += usize::from(hit);
    }
    n_hits as f64 / n.max(1) as f64
}

/// With the rates, which are ignored when it is read back.
impl Serialize for AttackReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("schema_version", &self.schema_version)?;
        map.serialize_entry("threat", &self.threat)?;
        map.serialize_entry("mode", &self.mode)?;
        map.serialize_entry("seed", &self.seed)?;
        map.serialize_entry("n", &self.n())?;
        map.serialize_entry("classes", &self.classes)?;
        map.serialize_entry("batch_size", &self.batch_size)?;
        map.serialize_entry("clean_accuracy", &self.clean_accuracy())?;
        map.serialize_entry("robust_accuracy", &self.robust_accuracy())?;
        map.serialize_entry("counts", &self.counts())?;
        map.serialize_entry("seconds", &self.seconds())?;
        map.serialize_entry("flags", &self.flags)?;
        map.serialize_entry("flag_notes", &self.flags.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        map.serialize_entry("versions", &self.versions)?;
        map.serialize_entry("clean_counts", &self.clean_counts)?;
        map.serialize_entry("clean_seconds", &self.clean_seconds)?;
        map.serialize_entry("check_seconds", &self.check_seconds)?;
        map.serialize_entry("attacks", &self.attacks)?;
        map.serialize_entry("labels", &self.labels)?;
        map.serialize_entry("images_fingerprint", &self.images_fingerprint)?;
        if let Some(targets) = &self.targets {
            map.serialize_entry("targets", targets)?;
        }
        map.serialize_entry("clean_predictions", &self.clean_predictions)?;
        map.serialize_entry("clean_margins", &self.clean_margins)?;
        map.end()
    }
}

/// With the rates, which are ignored when it is read back.
impl Serialize for AttackEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let survivors = self.samples.iter().filter(|sample| sample.outcome == Outcome::Survived).count();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("robust_accuracy", &self.robust_accuracy())?;
        map.serialize_entry("success_rate", &self.success_rate())?;
        map.serialize_entry("survivors", &survivors)?;
        map.serialize_entry("counts", &self.counts())?;
        map.serialize_entry("seconds", &self.seconds())?;
        if let Some(config) = &self.config {
            map.serialize_entry("config", config)?;
        }
        map.serialize_entry("stages", &self.stages)?;
        map.serialize_entry("samples", &self.samples)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stages that were run on so many samples and left so many.
    fn entry(stages: &[(usize, usize)]) -> AttackEntry {
        let stage = |&(attacked, survivors): &(usize, usize)| StageEntry {
            attack: "pgd".to_owned(),
            family: Family::Gradient,
            attacked,
            survivors,
            counts: Passes::default(),
            seconds: 0.0,
            repaired_gradients: 0,
            surer: 0,
        };
        let stages = stages.iter().map(stage).collect();
        AttackEntry { name: "pgd".to_owned(), config: None, stages, samples: Vec::new() }
    }

    #[test]
    fn the_success_rate_counts_what_is_broken_so_far() {
        assert_eq!(entry(&[]).success_rate(), None);
        assert_eq!(entry(&[(0, 0)]).success_rate(), None);
        assert_eq!(entry(&[(100, 40), (40, 30), (30, 30)]).success_rate(), Some(0.7), "finished");
        assert_eq!(entry(&[(100, 50), (10, 5)]).success_rate(), Some(0.55), "10 of the 50 that are left");
        assert_eq!(entry(&[(100, 50), (0, 0)]).success_rate(), Some(0.5));
    }
}
