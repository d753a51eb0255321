//! The part of a configuration that every method has, and the sections that methods share.
//!
//! Defaults that are not of the paper are the field's (ROME: mosaics, 256 real images per class; the sizes of the pool
//! are ours); a dataset may have others ([`DatasetSpec::distill`](c2r_data::DatasetSpec)).

use c2r_base::{Epsilon, Goal, Norm, ThreatModel};
use c2r_core::ls_pgd::{LsPgd, LsPgdConfig};
use c2r_data::dsa::Dsa;
use c2r_models::ModelSpec;
use c2r_train::{
    LrSchedule,
    layers::KeyError,
    ranges::{RangeError, below_one, count, count_or_none, in_range, not_negative, positive, radius},
};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::ConfigError;

/// What every method has.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CommonConfig {
    /// Name of the profile, written into every artefact.
    pub profile: String,
    /// What tables call the result; absent means a name made from the parts, e.g. `c2r`.
    pub name: Option<String>,
    /// Images per class, at least 1.
    pub ipc: usize,
    /// Updates of the synthetic images.
    pub iterations: u64,
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Use only the first N training images of each class; absent means all.
    pub train_per_class: Option<usize>,
    /// Architecture of the networks, e.g. `ConvNet-D3-W128-IN`.
    pub model: ModelSpec,
    /// Augmentation of the real and the synthetic side, the same draw for both; `none` switches it off.
    pub dsa: Dsa,
    /// What the adversary may do.
    pub threat: ThreatConfig,
    /// How the synthetic images start and move.
    pub images: ImagesConfig,
    /// How networks are trained on real images: those that images are optimized through or chosen by, and the teacher.
    pub pool: Option<PoolConfig>,
    /// How adversarial companions are made.
    pub companions: Option<CompanionConfig>,
    /// Where images are attacked in another way than `companions` and `threat` say.
    #[serde(default)]
    pub attacks: AttacksConfig,
    /// Labels that come with the images.
    pub labels: LabelKind,
    /// The networks that make soft labels; required unless labels are hard.
    pub teacher: Option<TeacherConfig>,
}

/// The adversary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ThreatConfig {
    /// LS-PGD, and with it the method, is defined for `linf`.
    pub norm: Norm,
    /// Radius in pixel units, e.g. `2/255`; `0` leaves images as they are.
    #[serde(deserialize_with = "radius")]
    pub epsilon: Epsilon,
}

fn some_radius<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Epsilon>, D::Error> {
    radius(deserializer).map(Some)
}

/// Where C²R attacks images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The synthetic images: their companions and their scores.
    Synthetic,
    /// The real images that networks are trained on: those of the pool, and a teacher.
    Pool,
    /// The real images of an update, whose class means are matched and which the contrastive loss sees.
    Matching,
}

/// What differs from `companions` and `threat` at each [`Place`]; nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AttacksConfig {
    /// At [`Place::Synthetic`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<PlaceConfig>,
    /// At [`Place::Pool`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PlaceConfig>,
    /// At [`Place::Matching`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matching: Option<PlaceConfig>,
}

/// The attack at one place; what is absent is that of `companions` and `threat`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PlaceConfig {
    /// Its radius, in the unit of `threat.epsilon`.
    #[serde(default, deserialize_with = "some_radius", skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<Epsilon>,
    /// How companions are made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub companions: Option<CompanionConfig>,
}

impl AttacksConfig {
    /// Whether nothing differs anywhere.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What differs at `place`.
    pub const fn at(&self, place: Place) -> Option<&PlaceConfig> {
        match place {
            Place::Synthetic => self.synthetic.as_ref(),
            Place::Pool => self.pool.as_ref(),
            Place::Matching => self.matching.as_ref(),
        }
    }
}

/// The synthetic images as parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ImagesConfig {
    /// First values.
    pub init: Init,
    /// Images per side in each stored image: 1, or 2 for a 2x2 mosaic (multi-formation).
    #[serde(default = "number::<2, _>")]
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
    /// Clamp the images to `[0, 1]` after each update (`true`), or when they are stored alone (as ROME, which does not
    /// even then).
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub clamp: bool,
    /// Decoded images per class in one iteration; 0 means all of them. AAC orders what an epoch of
    /// such batches sees first.
    pub batch_per_class: usize,
}

const fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_true(value: &bool) -> bool {
    *value
}

/// A default for serde.
fn number<const N: u16, T: From<u16>>() -> T {
    T::from(N)
}

fn is<const N: u16, T: From<u16> + PartialEq>(value: &T) -> bool {
    *value == T::from(N)
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

/// Update rule of the synthetic images.
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
///
/// With `push-every`, as in IDM (Zhao et al. 2023, arXiv:2307.09742) and ROME, networks come and go by time instead: one of
/// age `min-steps` joins before every `push-every`-th update, the first included, and leaves when `alive` others have
/// joined after it, however old it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PoolConfig {
    /// Independently initialized networks, at least 1.
    #[serde(default = "number::<2, _>")]
    pub trajectories: usize,
    /// Copies of each in the pool, at least 1.
    pub snapshots: usize,
    /// Age of the youngest network, in training steps.
    #[serde(default = "number::<200, _>")]
    pub min_steps: u64,
    /// Age of the oldest.
    #[serde(default = "number::<1000, _>")]
    pub max_steps: u64,
    /// Further training in an iteration of each network that is trained then, in steps.
    pub steps_per_iteration: u64,
    /// How many networks are trained in an iteration: as many random ones, or all if there are fewer (ROME: 2); 0 means
    /// the one that was drawn.
    #[serde(default, skip_serializing_if = "is::<0, _>")]
    pub networks_per_iteration: usize,
    /// Updates from one new network to the next (ROME: 30); 0 means that networks are replaced by age instead.
    #[serde(default, skip_serializing_if = "is::<0, _>")]
    pub push_every: u64,
    /// Networks that stay, with `push-every`: the one that joined first leaves (ROME: 100); absent means all stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alive: Option<usize>,
    /// Real images per training step.
    #[serde(default = "number::<256, _>")]
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
/// `grad_x L(x_i)`, of length 1, L(x_i) the cross-entropy of one image.
///
/// Source: Xue et al. 2025 (arXiv:2403.10045), section "Method"; weight 100 / 128 and h 3 are those of the authors' code for CIFAR,
/// which has weight 100 and the gradient of a mean over batches of 128, and takes the gradient itself for z and its
/// difference's norm, not the square. There x is normalized, and so it is here: h is in units of normalized values.
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
    /// The attack of ROME's code, **an error of the field**: PGD on normalized values that are clamped to `[0, 1]`,
    /// targeted at the next class, `(y + 1) mod K`; ROME has `(y + 1) mod 10` for CIFAR-100, too. Its radius is in normalized values. The clamp moves most of the values
    /// much farther than the radius and lowers the contrast, so what it makes is in no threat set at all. It is here to
    /// repeat such results, and no profile uses it.
    ClampedNormalizedPgd(MultiStepConfig),
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
    #[serde(default = "number::<256, _>")]
    pub real_per_class: usize,
    /// Match attacked real images (`true`, the backbone of C²R) or clean ones.
    pub attacked: bool,
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
    #[serde(default = "number::<1, _>", skip_serializing_if = "is::<1, _>")]
    pub count: u32,
    /// Training steps of each.
    pub steps: u64,
    /// Softmax temperature of the labels, positive.
    pub temperature: f64,
    /// How the learning rate, `pool.lr`, changes over its training.
    #[serde(default, skip_serializing_if = "LrSchedule::is_constant")]
    pub lr_schedule: LrSchedule,
}

impl CommonConfig {
    /// Images that the stored ones of a class decode to.
    pub const fn decoded_per_class(&self) -> usize {
        self.ipc.saturating_mul((self.images.formation * self.images.formation) as usize)
    }

    /// What the adversary may do by default.
    pub const fn threat(&self) -> ThreatModel {
        ThreatModel { norm: self.threat.norm, epsilon: self.threat.epsilon, goal: Goal::Untargeted }
    }

    /// What the adversary may do at `place`.
    pub fn threat_at(&self, place: Place) -> ThreatModel {
        let own = self.attacks.at(place).and_then(|at| at.epsilon);
        ThreatModel { epsilon: own.unwrap_or(self.threat.epsilon), ..self.threat() }
    }

    /// How companions are made at `place`.
    pub fn companions_at(&self, place: Place) -> Option<&CompanionConfig> {
        self.attacks.at(place).and_then(|at| at.companions.as_ref()).or(self.companions.as_ref())
    }

    /// Whether perturbations are remembered from one visit to the next at `place`.
    pub fn remembers_at(&self, place: Place) -> bool {
        matches!(self.companions_at(place), Some(CompanionConfig::LsPgd(ls)) if ls.warm_start)
    }

    /// Checks everything that does not depend on the method.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        count("ipc", self.ipc as u64)?;
        count_or_none("iterations", self.iterations)?;
        if let Some(name) = self.name.as_ref().filter(|name| name.trim().is_empty()) {
            in_range(false, "name", "at least one character, or left out", format!("`{name}`"))?;
        }
        in_range(self.train_per_class != Some(0), "train-per-class", "at least 1", 0)?;
        in_range(self.threat.norm == Norm::Linf, "threat.norm", "linf", self.threat.norm)?;
        let epsilon = self.threat.epsilon;
        let expected = "below 1 (pixels are in [0, 1]; write 8/255 for 8)";
        in_range(epsilon.value() < 1.0, "threat.epsilon", expected, epsilon)?;
        for (place, keys) in [
            (Place::Synthetic, ["attacks.synthetic.epsilon", "attacks.synthetic.companions"]),
            (Place::Pool, ["attacks.pool.epsilon", "attacks.pool.companions"]),
            (Place::Matching, ["attacks.matching.epsilon", "attacks.matching.companions"]),
        ] {
            let Some(at) = self.attacks.at(place) else { continue };
            let threat = self.threat_at(place);
            in_range(threat.epsilon.value() < 1.0, keys[0], expected, threat.epsilon)?;
            // The messages of the options name keys of [companions].
            let own = at.companions.iter().try_for_each(|companions| companions.validate(threat));
            own.map_err(|error| KeyError::new(keys[1].to_owned(), error.to_string()))?;
        }
        let images = &self.images;
        in_range(matches!(images.formation, 1 | 2), "images.formation", "1 or 2", images.formation)?;
        count_or_none("images.batch-per-class", images.batch_per_class as u64)?;
        positive("images.lr", images.lr)?;
        not_negative("images.final-lr", images.final_lr)?;
        self.pool.iter().try_for_each(PoolConfig::validate)?;
        self.companions.iter().try_for_each(|companions| companions.validate(self.threat()))
    }
}

impl PoolConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        count("pool.trajectories", self.trajectories as u64)?;
        count("pool.snapshots", self.snapshots as u64)?;
        count("pool.batch-size", self.batch_size as u64)?;
        count_or_none("pool.max-steps", self.max_steps)?;
        count_or_none("pool.steps-per-iteration", self.steps_per_iteration)?;
        count_or_none("pool.networks-per-iteration", self.networks_per_iteration as u64)?;
        count_or_none("pool.push-every", self.push_every)?;
        let (alive, first) = (self.alive.unwrap_or(usize::MAX), self.trajectories * self.snapshots);
        in_range(alive >= first, "pool.alive", "at least pool.trajectories times pool.snapshots", alive)?;
        let steps =
            format!("{} and {}; a key that you do not set has its default: set both", self.min_steps, self.max_steps);
        in_range(self.min_steps <= self.max_steps, "pool.min-steps", "at most pool.max-steps", steps)?;
        not_negative("pool.lr", self.lr)?;
        below_one("pool.momentum", self.momentum)?;
        not_negative("pool.weight-decay", self.weight_decay)?;
        self.curvature.iter().try_for_each(|curvature| {
            positive("pool.curvature.weight", curvature.weight)?;
            Ok(positive("pool.curvature.step", curvature.step)?)
        })
    }
}

impl CompanionConfig {
    pub(crate) fn validate(&self, threat: ThreatModel) -> Result<(), ConfigError> {
        match self {
            Self::LsPgd(config) => LsPgd::new(config.clone(), threat).map(drop).map_err(ConfigError::from),
            Self::Pgd(config) | Self::ClampedNormalizedPgd(config) => {
                count("companions.steps", u64::from(config.steps))?;
                Ok(positive("companions.rel-step-size", config.rel_step_size)?)
            }
            Self::Fgsm(_) => Ok(()),
        }
    }
}

impl MatchingConfig {
    pub(crate) fn validate(&self) -> Result<(), RangeError> {
        not_negative("matching.weight", self.weight)?;
        let n = self.real_per_class;
        in_range(n >= 2, "matching.real-per-class", "at least 2", n)?;
        count("matching.real-per-class", n as u64)
    }
}
