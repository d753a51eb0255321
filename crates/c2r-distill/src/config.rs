use c2r_base::{Epsilon, Goal, Norm, ThreatModel};
use c2r_core::{
    crl::{CrlConfig, CrlError},
    curriculum::{Curriculum, CurriculumError},
    ls_pgd::{LsPgd, LsPgdConfig, LsPgdError},
};
use c2r_data::dsa::Dsa;
use c2r_models::ModelSpec;
use c2r_train::LrSchedule;
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
    pub method: MethodName,
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
    /// The networks that images are optimized through or chosen by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolConfig>,
    /// How adversarial companions are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub companions: Option<CompanionConfig>,
    /// The real images that the synthetic ones are matched to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matching: Option<MatchingConfig>,
    /// Weights of the loss terms of C²R.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<ObjectiveConfig>,
    /// Options of the contrastive robustness loss; used where `objective.robust = "crl"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl: Option<CrlConfig>,
    /// What perturbation scores act on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aac: Option<AacConfig>,
    /// The networks whose parameter gradients are matched (DC and DSA).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradients: Option<GradientsConfig>,
    /// The trainings on real images whose trajectories are matched (MTT and MAT).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertsConfig>,
    /// The unrolled training on synthetic images that is to follow an expert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student: Option<StudentConfig>,
    /// Recovery of images from a trained network (SRe2L and GUARD).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<RecoveryConfig>,
    /// Labels that come with the images.
    pub labels: LabelKind,
    /// The networks that make soft labels; required unless labels are hard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherConfig>,
}

/// What fills the synthetic set; docs/baselines.md describes each with its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MethodName {
    /// C²R or, with its parts switched off, its backbone and ablations.
    C2r,
    /// Real images, drawn class by class, not optimized: the floor that distillation must beat.
    RandomReal,
    /// Real images whose mean embedding is that of their class, chosen one by one.
    Herding,
    /// Real images that no image of their class is far from, in a network's embedding.
    KCenter,
    /// Class means in the embeddings of random networks (DM).
    Dm,
    /// Parameter gradients of networks that learn the synthetic images (DC, DSA).
    GradientMatching,
    /// Trainings on real images, in the space of parameters (MTT, MAT).
    TrajectoryMatching,
    /// Images that a trained network recognizes, with the feature statistics of real ones (SRe2L, GUARD).
    Recovery,
}

impl MethodName {
    /// The word that configurations use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::C2r => "c2r",
            Self::RandomReal => "random-real",
            Self::Herding => "herding",
            Self::KCenter => "k-center",
            Self::Dm => "dm",
            Self::GradientMatching => "gradient-matching",
            Self::TrajectoryMatching => "trajectory-matching",
            Self::Recovery => "recovery",
        }
    }

    /// The sections of the configuration that it reads, apart from those that every method reads.
    pub const fn sections(self) -> &'static [&'static str] {
        match self {
            Self::C2r => &["pool", "companions", "matching", "objective", "crl", "aac"],
            Self::RandomReal => &[],
            Self::Herding | Self::KCenter => &["pool", "companions"],
            Self::Dm => &["matching", "companions"],
            Self::GradientMatching => &["matching", "companions", "gradients"],
            Self::TrajectoryMatching => &["experts", "student", "companions"],
            Self::Recovery => &["pool", "companions", "recovery"],
        }
    }

    /// Whether real images are chosen and then left as they are.
    pub const fn selects(self) -> bool {
        matches!(self, Self::RandomReal | Self::Herding | Self::KCenter)
    }
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
    /// What the learning rate and the gradient are about: pixels, or normalized values as in the code of
    /// the field, whose rates can then be taken over.
    #[serde(default)]
    pub space: ImageSpace,
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
    /// Real training images that cover their class: the one nearest to each centre of a k-means
    /// clustering of the pixels (the idea of DREAM, Liu et al. 2023, arXiv:2302.14416, section 3.3).
    Coverage,
}

/// The space of the images' gradient and learning rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageSpace {
    /// Pixels in `[0, 1]`.
    #[default]
    Pixel,
    /// Pixels less the data set's mean, divided by its deviation.
    Normalized,
}

/// Update rule of the synthetic images; the images are clamped to `[0, 1]` after each update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageOptimizer {
    /// Adam, betas 0.9 and 0.999, epsilon 1e-8.
    Adam,
    /// Adam with betas 0.5 and 0.9, epsilon 1e-8 (SRe2L).
    AdamShort,
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
    /// Weight of a penalty on the curvature of the loss, see [`CurvatureConfig`]; absent means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curvature: Option<CurvatureConfig>,
    /// Augmentation during pool training.
    pub dsa: Dsa,
}

/// GUARD's penalty on the curvature of the loss at real images, added to the loss that a network is
/// trained with: `weight * mean_i || grad_x L(x_i + h z_i) - grad_x L(x_i) ||`, z_i the direction of
/// `grad_x L(x_i)`, of length 1, L the mean cross-entropy of the batch.
///
/// Source: Xue et al. 2025 (arXiv:2403.10045), section "Method"; weight 100 and h 3 are the values of
/// the authors' code, which takes the gradient itself for z and its difference's norm, not the square.
/// There x is normalized, and so it is here: h is in units of normalized values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CurvatureConfig {
    /// Weight of the penalty, positive.
    pub weight: f64,
    /// Length of the step h, in normalized values (L2), positive.
    pub step: f64,
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

/// The real images of an iteration, and the weight of matching them: class means in C²R's backbone and in
/// DM, parameter gradients in DC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MatchingConfig {
    /// Weight of the term; 0 switches it off.
    pub weight: f64,
    /// Real images per class and iteration.
    pub real_per_class: usize,
    /// Match attacked real images (`true`, the backbone of C²R) or clean ones.
    pub attacked: bool,
}

/// Weights of the loss:
/// `L = matching.weight * L_DM + weight * [(1 - eta) * L_perf + eta * robust-weight * L_rob]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ObjectiveConfig {
    /// Weight of the bracket.
    pub weight: f64,
    /// Share of the robust term, in `[0, 1]`; absent means [`eta_of_ipc`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta: Option<f64>,
    /// Scale of the robust term, at least 0: the paper gives `eta`, not the scale of the two terms that it weighs.
    #[serde(default = "one")]
    pub robust_weight: f64,
    /// What the robust term is.
    pub robust: RobustTerm,
    /// Which images are the anchors of the contrastive loss.
    #[serde(default)]
    pub anchors: Anchors,
    /// What the anchors are compared with besides the synthetic images and their companions.
    #[serde(default)]
    pub candidates: RealCandidates,
    /// Multiply the cross-entropy by the network's accuracy on its own training batches (ROME and IDM).
    #[serde(default)]
    pub by_accuracy: bool,
}

const fn one() -> f64 {
    1.0
}

/// The share of the robust term for a number of images per class: 0.4 up to 10, 0.6 from 50 on (both from
/// the paper), linear in between (ours).
pub fn eta_of_ipc(ipc: usize) -> f64 {
    const LOW: (f64, f64) = (10.0, 0.4);
    const HIGH: (f64, f64) = (50.0, 0.6);
    let part = ((ipc as f64 - LOW.0) / (HIGH.0 - LOW.0)).clamp(0.0, 1.0);
    LOW.1 + part * (HIGH.1 - LOW.1)
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

impl Remember {
    /// Whether the synthetic images' are remembered.
    pub const fn synthetic(self) -> bool {
        matches!(self, Self::Synthetic | Self::Both)
    }

    /// Whether the real images' are remembered.
    pub const fn real(self) -> bool {
        matches!(self, Self::Real | Self::Both)
    }
}

/// Options of gradient matching.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GradientsConfig {
    /// Updates of the images through one network before a new one is drawn (the paper's T), at least 1;
    /// absent means [`dc_loops`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outer: Option<u64>,
    /// Epochs on the synthetic images that the network learns between two updates (the paper's
    /// sigma_theta); absent means [`dc_loops`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner: Option<u64>,
    /// Synthetic images per training step.
    pub batch_size: usize,
    /// SGD learning rate of the network.
    pub lr: f64,
    /// SGD momentum of the network.
    pub momentum: f64,
}

/// Outer and inner loops of DC and DSA for a number of images per class, as in the authors' code
/// (`get_loops`), which knows 1, 10, 20, 30, 40 and 50: the largest of these that is not above `ipc`.
pub const fn dc_loops(ipc: usize) -> (u64, u64) {
    match ipc {
        0..10 => (1, 1),
        10..20 => (10, 50),
        20..30 => (20, 25),
        30..40 => (30, 20),
        40..50 => (40, 15),
        _ => (50, 10),
    }
}

/// Trainings on real images whose parameters are recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ExpertsConfig {
    /// Independent trainings, at least 1. Their snapshots are kept in memory and in the saved state:
    /// `count * (epochs + 1)` times the network's parameters.
    pub count: usize,
    /// Epochs of each, a snapshot after every one.
    pub epochs: u64,
    /// Real images per training step.
    pub batch_size: usize,
    /// SGD learning rate.
    pub lr: f64,
    /// SGD momentum.
    pub momentum: f64,
    /// SGD weight decay.
    pub weight_decay: f64,
    /// Train on adversarial companions (MAT) or on clean images (MTT).
    pub adversarial: bool,
    /// Record an exponential moving average of the parameters instead of the parameters (MAT): share of the
    /// average that is kept at each training step, in `[0, 1)`; 0 records the parameters.
    pub average: f64,
    /// Augmentation during training.
    pub dsa: Dsa,
}

/// The unrolled training on the synthetic images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StudentConfig {
    /// Last epoch that the student may start from (excluded), at least 1.
    pub max_start: u64,
    /// Epochs of the expert that it is to follow, at least 1.
    pub span: u64,
    /// Its own SGD steps in that time, at least 1; memory and time are proportional to it.
    pub steps: u64,
    /// Synthetic images per step; 0 means all of them.
    pub batch_size: usize,
    /// Its learning rate at the beginning; it is learned.
    pub lr: f64,
    /// Learning rate of that learning rate (SGD, momentum 0.5); 0 keeps it.
    pub lr_of_lr: f64,
}

/// Recovery of images from a trained network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RecoveryConfig {
    /// Weight of the distance of feature statistics.
    pub statistics: f64,
    /// The first layer's statistics count so many times.
    pub first_layer: f64,
}

/// Labels that come with the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelKind {
    /// One class per image.
    Hard,
    /// Probabilities of the teacher, one row per decoded image, stored in the synthetic set; their mean where there are
    /// several.
    Soft,
    /// The teacher itself is stored and labels every augmented view.
    Teacher,
}

/// The adversarially trained networks that make soft labels; each is trained like a pool network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TeacherConfig {
    /// How many networks: stored soft labels are the mean of their probabilities. One where the network itself is stored
    /// and where images are recovered without soft labels.
    #[serde(default = "one_teacher", skip_serializing_if = "is_one_teacher")]
    pub count: u32,
    /// Training steps of each.
    pub steps: u64,
    /// Softmax temperature of the labels, positive.
    pub temperature: f64,
    /// How the learning rate, `pool.lr`, changes over its training.
    #[serde(default = "constant", skip_serializing_if = "is_constant")]
    pub lr_schedule: LrSchedule,
}

const fn one_teacher() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_one_teacher(count: &u32) -> bool {
    *count == 1
}

const fn constant() -> LrSchedule {
    LrSchedule::Constant
}

const fn is_constant(schedule: &LrSchedule) -> bool {
    matches!(schedule, LrSchedule::Constant)
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
    /// A method without one of its sections.
    #[error("method = \"{method}\" needs a [{section}] section")]
    SectionMissing {
        /// Name of the section.
        section: &'static str,
        /// What needs it.
        method: &'static str,
    },
    /// A section that nothing reads.
    #[error("a [{section}] section has no effect with method = \"{method}\"; remove it")]
    SectionUnused {
        /// Name of the section.
        section: &'static str,
        /// What does not read it.
        method: &'static str,
    },
    /// Labels need a teacher that is not described.
    #[error("labels = \"{0}\" needs a [teacher] section, e.g. --set 'teacher={{steps=1000,temperature=1.0}}'")]
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

/// Sections that only some methods read.
const SECTIONS: [&str; 10] =
    ["pool", "companions", "matching", "objective", "crl", "aac", "gradients", "experts", "student", "recovery"];

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
    /// Removes the sections that `method` does not read from a configuration in the making, so that settings
    /// which several methods share can be given to all of them. Returns the names of what it removed.
    pub fn drop_unread(table: &mut toml::Table) -> Vec<String> {
        let read = |section: &str, table: &toml::Table| {
            let method = table.get("method").cloned().and_then(|name| name.try_into::<MethodName>().ok());
            let labelled = table.contains_key("teacher") && matches!(section, "pool" | "companions");
            labelled || method.is_none_or(|method| method.sections().contains(&section))
        };
        let unread: Vec<String> = SECTIONS
            .iter()
            .filter(|section| table.contains_key(**section) && !read(section, table))
            .map(|&section| section.to_owned())
            .collect();
        for section in &unread {
            table.remove(section);
        }
        unread
    }

    /// Writes out the values that follow from others: eta and the loops of gradient matching, from the
    /// images per class.
    pub fn fill_in(&mut self) {
        let ipc = self.ipc;
        if let Some(objective) = &mut self.objective {
            objective.eta.get_or_insert_with(|| eta_of_ipc(ipc));
        }
        if let Some(gradients) = &mut self.gradients {
            let (outer, inner) = dc_loops(ipc);
            gradients.outer.get_or_insert(outer);
            gradients.inner.get_or_insert(inner);
        }
    }

    /// Whether networks are trained on, or images matched to, adversarial companions.
    fn needs_companions(&self) -> bool {
        self.method == MethodName::C2r
            || self.pool.as_ref().is_some_and(|pool| pool.adversarial)
            || self.matching.as_ref().is_some_and(|matching| matching.attacked)
            || self.experts.as_ref().is_some_and(|experts| experts.adversarial)
    }

    /// A section, or the error that says who misses it.
    pub(crate) fn need<'a, T>(&self, section: &'a Option<T>, name: &'static str) -> Result<&'a T, ConfigError> {
        section.as_ref().ok_or(ConfigError::SectionMissing { section: name, method: self.method.as_str() })
    }

    fn present(&self) -> [(&'static str, bool); SECTIONS.len()] {
        [
            ("pool", self.pool.is_some()),
            ("companions", self.companions.is_some()),
            ("matching", self.matching.is_some()),
            ("objective", self.objective.is_some()),
            ("crl", self.crl.is_some()),
            ("aac", self.aac.is_some()),
            ("gradients", self.gradients.is_some()),
            ("experts", self.experts.is_some()),
            ("student", self.student.is_some()),
            ("recovery", self.recovery.is_some()),
        ]
    }

    /// Checks everything that can be checked without data.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let method = self.method.as_str();
        for (section, present) in self.present() {
            let for_teacher = matches!(section, "pool" | "companions") && self.teacher.is_some();
            let reads = self.method.sections().contains(&section) || for_teacher;
            let needs = reads && (section != "companions" || self.needs_companions());
            if present && !reads {
                return Err(ConfigError::SectionUnused { section, method });
            }
            if needs && !present {
                return Err(ConfigError::SectionMissing { section, method });
            }
        }
        in_range(self.ipc >= 1, "ipc", "at least 1", self.ipc)?;
        in_range(self.train_per_class != Some(0), "train-per-class", "at least 1", 0)?;
        in_range(self.threat.norm == Norm::Linf, "threat.norm", "linf", self.threat.norm)?;
        let epsilon = self.threat.epsilon;
        in_range(
            epsilon.value() < 1.0,
            "threat.epsilon",
            "below 1 (pixels are in [0, 1]; write 8/255 for 8)",
            epsilon,
        )?;
        let images = &self.images;
        in_range(matches!(images.formation, 1 | 2), "images.formation", "1 or 2", images.formation)?;
        in_range(positive(images.lr), "images.lr", "positive", images.lr)?;
        in_range(not_negative(images.final_lr), "images.final-lr", "at least 0", images.final_lr)?;
        self.pool.iter().try_for_each(PoolConfig::validate)?;
        self.companions.iter().try_for_each(|companions| companions.validate(self.threat()))?;
        if let Some(matching) = &self.matching {
            in_range(not_negative(matching.weight), "matching.weight", "at least 0", matching.weight)?;
            let n = matching.real_per_class;
            in_range(n >= 2, "matching.real-per-class", "at least 2", n)?;
        }
        if let Some(objective) = &self.objective {
            in_range(not_negative(objective.weight), "objective.weight", "at least 0", objective.weight)?;
            let eta = objective.eta.unwrap_or(0.0);
            in_range((0.0..=1.0).contains(&eta), "objective.eta", "in [0, 1]", eta)?;
            let matched = self.matching.as_ref().is_none_or(|matching| matching.weight > 0.0);
            let expected = "positive where matching.weight is 0, since nothing would be optimized";
            in_range(matched || objective.weight > 0.0, "objective.weight", expected, objective.weight)?;
            let scale = objective.robust_weight;
            in_range(not_negative(scale), "objective.robust-weight", "at least 0", scale)?;
        }
        if let Some(crl) = &self.crl {
            crl.validate()?;
        }
        self.aac.iter().try_for_each(AacConfig::validate)?;
        let per_class = self.images.batch_per_class;
        if let (Some(AacConfig { synthetic: curriculum @ Curriculum::Order(_), .. }), 0) = (&self.aac, per_class) {
            return Err(ConfigError::CurriculumPlace {
                key: "aac.synthetic",
                mode: curriculum.mode(),
                reason: "with images.batch-per-class = 0 all images are in one batch, which has no order",
            });
        }
        in_range(
            self.method == MethodName::C2r || per_class == 0,
            "images.batch-per-class",
            "0 but for C²R",
            per_class,
        )?;
        self.gradients.iter().try_for_each(GradientsConfig::validate)?;
        self.experts.iter().try_for_each(ExpertsConfig::validate)?;
        if let (Some(experts), Some(student)) = (&self.experts, &self.student) {
            student.validate(experts)?;
        }
        if let Some(recovery) = &self.recovery {
            in_range(not_negative(recovery.statistics), "recovery.statistics", "at least 0", recovery.statistics)?;
            in_range(not_negative(recovery.first_layer), "recovery.first-layer", "at least 0", recovery.first_layer)?;
            self.need(&self.teacher, "teacher")?;
        }
        match (&self.teacher, self.labels) {
            (None, LabelKind::Soft) => Err(ConfigError::TeacherMissing("soft")),
            (None, LabelKind::Teacher) => Err(ConfigError::TeacherMissing("teacher")),
            (Some(_), LabelKind::Hard) if self.method != MethodName::Recovery => Err(ConfigError::TeacherUnused),
            (Some(teacher), labels) => {
                in_range(positive(teacher.temperature), "teacher.temperature", "positive", teacher.temperature)?;
                let (most, expected) = match labels {
                    LabelKind::Soft => (u32::MAX, "at least 1"),
                    LabelKind::Hard | LabelKind::Teacher => (1, "1 unless labels = \"soft\""),
                };
                in_range((1..=most).contains(&teacher.count), "teacher.count", expected, teacher.count)
            }
            (None, LabelKind::Hard) => Ok(()),
        }
    }

    /// Whether the order of the synthetic images is asked for but cannot act, because one batch holds all of them.
    pub fn order_is_idle(&self) -> bool {
        let decoded = self.ipc * (self.images.formation * self.images.formation) as usize;
        let orders = self.aac.as_ref().is_some_and(|aac| matches!(aac.synthetic, Curriculum::Order(_)));
        orders && self.images.batch_per_class >= decoded
    }

    /// Keys that cannot act beside the others, whatever their values, and why. Profiles have some of them; whoever sets
    /// one should be told.
    pub fn idle(&self) -> Vec<(&'static str, &'static str)> {
        let mut idle = Vec::new();
        let mut note = |when: bool, keys: &[&'static str], reason| {
            if when {
                idle.extend(keys.iter().map(|&key| (key, reason)));
            }
        };
        let remembers = matches!(&self.companions, Some(CompanionConfig::LsPgd(ls)) if ls.warm_start);
        note(
            self.aac.is_some() && !remembers,
            &["aac.remember"],
            "perturbations are remembered only with companions.warm-start = true",
        );
        if let Some(CompanionConfig::LsPgd(ls)) = &self.companions {
            note(ls.candidates == 1, &["companions.growth"], "companions.candidates = 1 tries one step length");
        }
        if let (MethodName::C2r, Some(objective), Some(aac)) = (self.method, &self.objective, &self.aac) {
            let contrasts = objective.robust == RobustTerm::Crl;
            let keys = ["crl", "objective.anchors", "objective.candidates"];
            note(!contrasts, &keys, "objective.robust is not \"crl\"");
            note(
                contrasts && objective.anchors == Anchors::Real,
                &["objective.candidates"],
                "it is about synthetic anchors, and objective.anchors = \"real\" has none",
            );
            let silent = objective.robust == RobustTerm::None || objective.eta == Some(0.0);
            note(silent, &["objective.robust-weight"], "there is no robust term (objective.robust, objective.eta)");
            let keys = ["objective.eta", "objective.robust-weight", "objective.robust", "crl"];
            note(objective.weight == 0.0, &keys, "objective.weight is 0");
            let weighs = matches!(aac.synthetic, Curriculum::Weight(_)) && aac.weighted != Weighted::Both;
            let entropy = objective.weight > 0.0 && objective.eta != Some(1.0);
            note(
                weighs && !entropy,
                &["aac.synthetic"],
                "it weighs the cross-entropy, whose share (objective.eta, objective.weight) is 0",
            );
        }
        idle
    }

    /// The threat model of the companions.
    pub fn threat(&self) -> ThreatModel {
        ThreatModel { norm: self.threat.norm, epsilon: self.threat.epsilon, goal: Goal::Untargeted }
    }
}

impl PoolConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        in_range(self.trajectories >= 1, "pool.trajectories", "at least 1", self.trajectories)?;
        in_range(self.snapshots >= 1, "pool.snapshots", "at least 1", self.snapshots)?;
        in_range(self.batch_size >= 1, "pool.batch-size", "at least 1", self.batch_size)?;
        in_range(self.min_steps <= self.max_steps, "pool.min-steps", "at most pool.max-steps", self.min_steps)?;
        in_range(not_negative(self.lr), "pool.lr", "at least 0", self.lr)?;
        in_range((0.0..1.0).contains(&self.momentum), "pool.momentum", "in [0, 1)", self.momentum)?;
        in_range(not_negative(self.weight_decay), "pool.weight-decay", "at least 0", self.weight_decay)?;
        if let Some(curvature) = &self.curvature {
            in_range(positive(curvature.weight), "pool.curvature.weight", "positive", curvature.weight)?;
            in_range(positive(curvature.step), "pool.curvature.step", "positive", curvature.step)?;
        }
        Ok(())
    }
}

impl CompanionConfig {
    fn validate(&self, threat: ThreatModel) -> Result<(), ConfigError> {
        match self {
            Self::LsPgd(config) => LsPgd::new(config.clone(), threat).map(drop).map_err(ConfigError::from),
            Self::Pgd(config) => {
                in_range(config.steps >= 1, "companions.steps", "at least 1", config.steps)?;
                in_range(positive(config.rel_step_size), "companions.rel-step-size", "positive", config.rel_step_size)
            }
            Self::Fgsm(_) => Ok(()),
        }
    }
}

impl AacConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        for curriculum in [&self.synthetic, &self.pool, &self.matching] {
            curriculum.validate()?;
        }
        if self.weighted == Weighted::Both && !matches!(self.synthetic, Curriculum::Weight(_)) {
            return Err(ConfigError::CurriculumPlace {
                key: "aac.weighted",
                mode: "both",
                reason: "aac.synthetic has no weights; set its mode to `weight`",
            });
        }
        if matches!(self.matching, Curriculum::Order(_)) {
            return Err(ConfigError::CurriculumPlace {
                key: "aac.matching",
                mode: self.matching.mode(),
                reason: "class means are taken over the whole batch, so only a choice (`prefix`, `pace`) or weights can act",
            });
        }
        Ok(())
    }
}

impl GradientsConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        in_range(self.outer != Some(0), "gradients.outer", "at least 1", 0)?;
        in_range(self.batch_size >= 1, "gradients.batch-size", "at least 1", self.batch_size)?;
        in_range(not_negative(self.lr), "gradients.lr", "at least 0", self.lr)?;
        in_range((0.0..1.0).contains(&self.momentum), "gradients.momentum", "in [0, 1)", self.momentum)
    }
}

impl ExpertsConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        in_range(self.count >= 1, "experts.count", "at least 1", self.count)?;
        in_range(self.epochs >= 1, "experts.epochs", "at least 1", self.epochs)?;
        in_range(self.batch_size >= 1, "experts.batch-size", "at least 1", self.batch_size)?;
        in_range(not_negative(self.lr), "experts.lr", "at least 0", self.lr)?;
        in_range((0.0..1.0).contains(&self.momentum), "experts.momentum", "in [0, 1)", self.momentum)?;
        in_range(not_negative(self.weight_decay), "experts.weight-decay", "at least 0", self.weight_decay)?;
        in_range((0.0..1.0).contains(&self.average), "experts.average", "in [0, 1)", self.average)
    }
}

impl StudentConfig {
    fn validate(&self, experts: &ExpertsConfig) -> Result<(), ConfigError> {
        in_range(self.max_start >= 1, "student.max-start", "at least 1", self.max_start)?;
        in_range(self.span >= 1, "student.span", "at least 1", self.span)?;
        let last = (self.max_start - 1).saturating_add(self.span);
        let reach = "no later with student.max-start than experts.epochs";
        in_range(last <= experts.epochs, "student.span", reach, format!("epoch {last} of {}", experts.epochs))?;
        in_range(self.steps >= 1, "student.steps", "at least 1", self.steps)?;
        in_range(positive(self.lr), "student.lr", "positive", self.lr)?;
        in_range(not_negative(self.lr_of_lr), "student.lr-of-lr", "at least 0", self.lr_of_lr)
    }
}
