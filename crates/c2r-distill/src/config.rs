use c2r_base::{Epsilon, Goal, Norm, ThreatModel};
use c2r_core::{
    crl::{CrlConfig, CrlError},
    curriculum::{Curriculum, CurriculumError},
    ls_pgd::{LsPgd, LsPgdConfig, LsPgdError},
};
use c2r_data::dsa::Dsa;
use c2r_models::ModelSpec;
use serde::{Deserialize, Serialize};

/// Everything that decides what a distillation produces, except the data itself.
///
/// Unknown keys are errors. A profile (`data/profiles/*.toml`) is one of these with comments; the
/// command line changes single keys of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DistillConfig {
    /// Name of the profile, written into every artefact.
    pub profile: String,
    /// What tables call the result; absent means a name made from the parts, e.g. `c2r`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What fills the synthetic set.
    pub method: Method,
    /// Images per class, at least 1.
    pub ipc: usize,
    /// Updates of the synthetic images.
    pub iterations: u64,
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Use only the first so many training images of each class; absent means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_per_class: Option<usize>,
    /// Architecture of the pool, e.g. `ConvNet-D3-W128-IN`.
    pub model: ModelSpec,
    /// Augmentation of the real and the synthetic side, the same draw for both; `none` switches it off.
    pub dsa: Dsa,
    /// What the adversary may do.
    pub threat: ThreatConfig,
    /// How the synthetic images start and move.
    pub images: ImagesConfig,
    /// The networks.
    pub pool: PoolConfig,
    /// How adversarial companions are made.
    pub companions: CompanionConfig,
    /// Class-mean matching to real images (the backbone).
    pub matching: MatchingConfig,
    /// Weights of the loss terms.
    pub objective: ObjectiveConfig,
    /// Options of the contrastive robustness loss; used where `objective.robust = "crl"`.
    pub crl: CrlConfig,
    /// What perturbation scores act on.
    pub aac: AacConfig,
    /// Labels that come with the images.
    pub labels: LabelKind,
    /// The network that makes soft labels; required unless labels are hard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherConfig>,
}

/// What fills the synthetic set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// C²R or, with its parts switched off, its backbone and ablations.
    C2r,
    /// Real images, drawn class by class, not optimized: the floor that distillation must beat.
    RandomReal,
}

/// The adversary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ThreatConfig {
    /// LS-PGD, and with it the method, is defined for `linf`.
    pub norm: Norm,
    /// Radius in pixel units, e.g. `2/255`.
    pub epsilon: Epsilon,
}

/// The synthetic images as parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ImagesConfig {
    /// First values.
    pub init: Init,
    /// Images per side in each stored image: 1, or 2 for a 2x2 mosaic (multi-formation).
    pub formation: i64,
    /// Update rule.
    pub optimizer: ImageOptimizer,
    /// Learning rate at the first iteration.
    pub lr: f64,
    /// Learning rate at the last iteration, reached on a cosine.
    pub final_lr: f64,
    /// Decoded images per class in one iteration; 0 means all of them. AAC orders what an epoch of
    /// such batches sees first.
    pub batch_per_class: usize,
}

/// First values of the synthetic images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Real training images of the class, drawn by seed.
    Real,
    /// Gaussian noise around the data set's mean with its deviation, clamped to `[0, 1]`.
    Noise,
}

/// Update rule of the synthetic images; the images are clamped to `[0, 1]` after each update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageOptimizer {
    /// Adam, betas 0.9 and 0.999, epsilon 1e-8.
    Adam,
    /// SGD with momentum 0.5 (DM and ROME).
    Sgd,
}

/// The pool of adversarially trained networks.
///
/// `trajectories` networks are trained one after the other; `snapshots` copies of each enter the
/// pool, at ages evenly spaced from `min-steps` to `max-steps`. An iteration draws one network, and
/// trains it `steps-per-iteration` steps further; past `max-steps` a new network of age `min-steps`
/// takes its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PoolConfig {
    /// Independently initialized networks, at least 1.
    pub trajectories: usize,
    /// Copies of each in the pool, at least 1.
    pub snapshots: usize,
    /// Age of the youngest network, in training steps.
    pub min_steps: u64,
    /// Age of the oldest.
    pub max_steps: u64,
    /// Further training of the drawn network, in steps.
    pub steps_per_iteration: u64,
    /// Real images per training step.
    pub batch_size: usize,
    /// SGD learning rate.
    pub lr: f64,
    /// SGD momentum.
    pub momentum: f64,
    /// SGD weight decay.
    pub weight_decay: f64,
    /// Train on adversarial companions (`true`, the method) or on clean images (an ablation).
    pub adversarial: bool,
    /// Augmentation during pool training.
    pub dsa: Dsa,
}

/// How adversarial companions are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "attack", deny_unknown_fields, rename_all = "kebab-case")]
pub enum CompanionConfig {
    /// The paper's line-search PGD.
    LsPgd(LsPgdConfig),
    /// Multi-step PGD, the paper's comparison.
    Pgd(MultiStepConfig),
    /// One signed-gradient step of length epsilon.
    Fgsm(FgsmConfig),
}

/// Options of multi-step PGD companions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MultiStepConfig {
    /// Number of steps, at least 1.
    pub steps: u32,
    /// Length of a step as a fraction of epsilon, positive.
    pub rel_step_size: f64,
    /// Start uniformly in the ball instead of at the clean image.
    pub random_start: bool,
}

/// FGSM has no options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FgsmConfig {}

/// Matching of class means to real images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MatchingConfig {
    /// Weight of the term; 0 switches it off.
    pub weight: f64,
    /// Real images per class and iteration.
    pub real_per_class: usize,
    /// Match the means of attacked real images (`true`, the backbone) or of clean ones.
    pub attacked: bool,
}

/// Weights of the loss:
/// `L = matching.weight * L_DM + weight * [(1 - eta) * L_perf + eta * L_rob]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ObjectiveConfig {
    /// Weight of the bracket.
    pub weight: f64,
    /// Share of the robust term, in `[0, 1]`.
    pub eta: f64,
    /// What the robust term is.
    pub robust: RobustTerm,
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
    /// Choice of the real images whose class means are matched.
    pub matching: Curriculum,
}

/// Labels that come with the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelKind {
    /// One class per image.
    Hard,
    /// Teacher probabilities, one row per decoded image, stored in the synthetic set.
    Soft,
    /// The teacher itself is stored and labels every augmented view.
    Teacher,
}

/// The adversarially trained network that makes soft labels; trained like a pool network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TeacherConfig {
    /// Training steps.
    pub steps: u64,
    /// Softmax temperature of the labels, positive.
    pub temperature: f64,
}

/// A configuration that makes no sense; the message names the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Outside its range.
    #[error("{key} must be {expected}, got {got}")]
    Range {
        /// Dotted key.
        key: &'static str,
        /// What is allowed.
        expected: &'static str,
        /// What was given.
        got: String,
    },
    /// Labels need a teacher that is not described.
    #[error("labels = \"{0}\" needs a [teacher] section")]
    TeacherMissing(&'static str),
    /// A teacher that nothing uses.
    #[error("a [teacher] section has no effect with labels = \"hard\"; remove it or choose soft or teacher labels")]
    TeacherUnused,
    /// A curriculum that cannot act where it stands.
    #[error("{key} cannot be `{mode}`: {reason}")]
    CurriculumPlace {
        /// Dotted key.
        key: &'static str,
        /// Curriculum mode.
        mode: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// In `[companions]`.
    #[error(transparent)]
    LsPgd(#[from] LsPgdError),
    /// In `[crl]`.
    #[error(transparent)]
    Crl(#[from] CrlError),
    /// In `[aac]`.
    #[error(transparent)]
    Curriculum(#[from] CurriculumError),
}

fn in_range(ok: bool, key: &'static str, expected: &'static str, got: impl ToString) -> Result<(), ConfigError> {
    if ok { Ok(()) } else { Err(ConfigError::Range { key, expected, got: got.to_string() }) }
}

fn positive(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

fn not_negative(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}

impl DistillConfig {
    /// Checks everything that can be checked without data.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        in_range(self.ipc >= 1, "ipc", "at least 1", self.ipc)?;
        in_range(self.train_per_class != Some(0), "train-per-class", "at least 1", 0)?;
        in_range(matches!(self.images.formation, 1 | 2), "images.formation", "1 or 2", self.images.formation)?;
        in_range(positive(self.images.lr), "images.lr", "positive", self.images.lr)?;
        in_range(not_negative(self.images.final_lr), "images.final-lr", "at least 0", self.images.final_lr)?;
        in_range(self.pool.trajectories >= 1, "pool.trajectories", "at least 1", self.pool.trajectories)?;
        in_range(self.pool.snapshots >= 1, "pool.snapshots", "at least 1", self.pool.snapshots)?;
        in_range(self.pool.batch_size >= 1, "pool.batch-size", "at least 1", self.pool.batch_size)?;
        in_range(
            self.pool.min_steps <= self.pool.max_steps,
            "pool.min-steps",
            "at most pool.max-steps",
            self.pool.min_steps,
        )?;
        in_range(not_negative(self.pool.lr), "pool.lr", "at least 0", self.pool.lr)?;
        in_range((0.0..1.0).contains(&self.pool.momentum), "pool.momentum", "in [0, 1)", self.pool.momentum)?;
        in_range(not_negative(self.pool.weight_decay), "pool.weight-decay", "at least 0", self.pool.weight_decay)?;
        in_range(not_negative(self.matching.weight), "matching.weight", "at least 0", self.matching.weight)?;
        in_range(
            self.matching.real_per_class >= 2,
            "matching.real-per-class",
            "at least 2",
            self.matching.real_per_class,
        )?;
        in_range(not_negative(self.objective.weight), "objective.weight", "at least 0", self.objective.weight)?;
        in_range((0.0..=1.0).contains(&self.objective.eta), "objective.eta", "in [0, 1]", self.objective.eta)?;
        self.crl.validate()?;
        for curriculum in [&self.aac.synthetic, &self.aac.pool, &self.aac.matching] {
            curriculum.validate()?;
        }
        if matches!(self.aac.matching, Curriculum::Order(_) | Curriculum::Weight(_)) {
            return Err(ConfigError::CurriculumPlace {
                key: "aac.matching",
                mode: if matches!(self.aac.matching, Curriculum::Order(_)) { "order" } else { "weight" },
                reason: "class means are taken over the whole batch, so only a choice (`prefix`) can act",
            });
        }
        if matches!(self.aac.pool, Curriculum::Weight(_)) {
            return Err(ConfigError::CurriculumPlace {
                key: "aac.pool",
                mode: "weight",
                reason: "pool networks are trained without sample weights; use `order` or `prefix`",
            });
        }
        match &self.companions {
            CompanionConfig::LsPgd(config) => {
                LsPgd::new(config.clone(), self.threat())?;
            }
            CompanionConfig::Pgd(config) => {
                in_range(config.steps >= 1, "companions.steps", "at least 1", config.steps)?;
                in_range(positive(config.rel_step_size), "companions.rel-step-size", "positive", config.rel_step_size)?;
            }
            CompanionConfig::Fgsm(_) => {}
        }
        in_range(self.threat.norm == Norm::Linf, "threat.norm", "linf", self.threat.norm)?;
        match (&self.teacher, self.labels) {
            (None, LabelKind::Soft) => Err(ConfigError::TeacherMissing("soft")),
            (None, LabelKind::Teacher) => Err(ConfigError::TeacherMissing("teacher")),
            (Some(_), LabelKind::Hard) => Err(ConfigError::TeacherUnused),
            (Some(teacher), _) => {
                in_range(positive(teacher.temperature), "teacher.temperature", "positive", teacher.temperature)
            }
            (None, LabelKind::Hard) => Ok(()),
        }
    }

    /// The threat model of the companions.
    pub fn threat(&self) -> ThreatModel {
        ThreatModel { norm: self.threat.norm, epsilon: self.threat.epsilon, goal: Goal::Untargeted }
    }
}
