//! Attacks as configuration: every option of every attack, its default, and where the default is from.

use c2r_base::{Epsilon, Goal, Norm, loss};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{
    apgd::{Apgd, ApgdLoss},
    attack::{ALL_NORMS, Attack, Configured},
    cw_l2::CwL2,
    deepfool::DeepFool,
    fab::Fab,
    iterative::{Iterative, Momentum, Objective, Recipe, Start, Step, Variance},
    sanity::{Clean, Noise},
    square::Square,
    suite::Suite,
};

/// Steps of the iterative attacks. torchattacks 3.5.1 and DD-RobustBench; Kurakin et al. 2017 and Madry
/// et al. 2018 (arXiv:1706.06083, section 5) use between 7 and 20.
pub const STEPS: u32 = 10;
/// Step size as a fraction of epsilon. Madry et al. 2018, section 5, CIFAR10: 2 of 8.
pub const REL_STEP_SIZE: f64 = 0.25;
/// Momentum decay. Dong et al. 2018 (arXiv:1710.06081), section 4.1.
pub const DECAY: f64 = 1.0;
/// Neighbours of variance tuning. Wang & He 2021 (arXiv:2103.15571), section 4.1.
pub const NEIGHBOURS: u32 = 20;
/// Radius of the neighbourhood in epsilons. Wang & He 2021, section 4.1.
pub const BETA: f64 = 1.5;
/// Confidence of the Linf attack on the CW loss, in logits. Madry et al. 2018, section 5 (table 1).
pub const CW_LINF_KAPPA: f64 = 50.0;
/// Scale of the logits. Schwinn et al. 2021 (arXiv:2105.10304), section 5.1; torchattacks 3.5.1.
pub const JITTER_SCALE: f64 = 10.0;
/// Standard deviation of the noise on the softmax. torchattacks 3.5.1.
pub const JITTER_STD: f64 = 0.1;
/// Standard deviation of the start of TPGD, pixel units. Zhang et al. 2019 (arXiv:1901.08573), their code.
pub const TPGD_START_STD: f64 = 0.001;
/// Gradients per step of EOT-PGD. torchattacks 3.5.1.
pub const EOT_SAMPLES: u32 = 2;
/// Gradients per step of the `-rand` suite. Croce & Hein 2020, section 6.
pub const EOT_SAMPLES_RAND: u32 = 20;
/// Share of the values that an L1 step changes. Tramer & Boneh 2019 (arXiv:1904.13000), section 6.
pub const L1_SPARSITY: f64 = 0.01;
/// Steps of APGD and FAB. Croce & Hein 2020 (arXiv:2003.01690), section 5.
pub const APGD_STEPS: u32 = 100;
/// Share of rising steps below which APGD halves its step. Croce & Hein 2020, section 3.
pub const APGD_RHO: f64 = 0.75;
/// Target classes of APGD-T and FAB-T. Croce & Hein 2020, section 5.
pub const TARGETS: u32 = 9;
/// Bias of FAB towards the original point, at most. Croce & Hein 2020 (arXiv:1907.02044), section 4.
pub const FAB_ALPHA_MAX: f64 = 0.1;
/// Extrapolation of FAB beyond the linearized boundary. Croce & Hein 2020 (arXiv:1907.02044), section 4.
pub const FAB_ETA: f64 = 1.05;
/// Backward step of FAB. Croce & Hein 2020 (arXiv:1907.02044), section 4.
pub const FAB_BETA: f64 = 0.9;
/// Queries of Square in AutoAttack. Croce & Hein 2020 (arXiv:2003.01690), section 5.
pub const SQUARE_QUERIES: u32 = 5000;
/// Share of the image that Square's first windows cover. Croce & Hein 2020 (arXiv:2003.01690), section 5.
pub const SQUARE_P: f64 = 0.8;
/// Steps of DeepFool. Moosavi-Dezfooli et al. 2016 (arXiv:1511.04599), their code.
pub const DEEPFOOL_STEPS: u32 = 50;
/// Overshoot of DeepFool. Moosavi-Dezfooli et al. 2016, section 2.2.
pub const DEEPFOOL_OVERSHOOT: f64 = 0.02;
/// Steps of CW-L2. torchattacks 3.5.1; Carlini & Wagner 2017 (arXiv:1608.04644) use 10,000.
pub const CW_L2_STEPS: u32 = 50;
/// Learning rate of Adam in CW-L2. Carlini & Wagner 2017, their code.
pub const CW_L2_LR: f64 = 0.01;
/// Random perturbations of the noise floor.
pub const NOISE_SAMPLES: u32 = 10;

/// Restarts of APGD-CE in `autoattack-standard` for L1. Croce & Hein 2021 (arXiv:2103.01208), their code.
pub const L1_RESTARTS: u32 = 5;
/// Target classes of APGD-T in `autoattack-standard` for L1. Croce & Hein 2021, their code.
pub const L1_TARGETS: u32 = 5;

/// Why a configuration cannot work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No such attack.
    #[error("`{name}` is no attack; known: {known}")]
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
    /// A norm that the attack is not defined for.
    #[error("attack `{attack}` is not defined for the norm {norm}; it knows {}", join(known))]
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
    /// A loss with a denominator of more logits than there are.
    #[error("attack `{attack}` needs a model with {needed} classes or more, this one has {classes}")]
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

/// Declares the options of one attack: a struct that refuses unknown keys, with defaults.
macro_rules! options {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

options!(
    /// No attack: the floor that needs no budget.
    CleanConfig {}
);
options!(
    /// The worst of several uniform perturbations in the ball: a floor that every attack must beat.
    NoiseConfig {
        /// Number of perturbations.
        samples: u32 = NOISE_SAMPLES,
    }
);
options!(
    /// FGSM (Goodfellow et al. 2015, arXiv:1412.6572, section 4): one step of length epsilon; in L2 and L1
    /// along the steepest direction (FGM).
    FgsmConfig {
        /// What to ascend.
        loss: LossKind = LossKind::Ce,
    }
);
options!(
    /// R-FGSM (Tramer et al. 2018, arXiv:1705.07204, section 4.1): a random sign step, then FGSM with the rest.
    RFgsmConfig {
        /// Length of the random step, fraction of epsilon, in (0, 1). Tramer et al. use 0.5.
        rel_start: f64 = 0.5,
        /// What to ascend.
        loss: LossKind = LossKind::Ce,
    }
);
options!(
    /// BIM (Kurakin et al. 2017, arXiv:1607.02533): signed steps from the clean image.
    BimConfig {
        /// Number of steps.
        steps: u32 = STEPS,
        /// Length of a step, pixel units; excludes `rel_step_size`.
        step_size: Option<Epsilon> = None,
        /// Length of a step, fraction of epsilon [0.25].
        rel_step_size: Option<f64> = None,
        /// Return the first image that reaches the goal instead of the last one.
        early_stop: bool = false,
        /// What to ascend.
        loss: LossKind = LossKind::Ce,
    }
);
options!(
    /// PGD (Madry et al. 2018, arXiv:1706.06083): steepest steps from a random point of the ball.
    PgdConfig {
        /// Number of steps.
        steps: u32 = STEPS,
        /// Length of a step, pixel units; excludes `rel_step_size`.
        step_size: Option<Epsilon> = None,
        /// Length of a step, fraction of epsilon [0.25].
        rel_step_size: Option<f64> = None,
        /// Start uniformly in the ball instead of at the clean image.
        random_start: bool = true,
        /// Attempts; a sample that is broken is not tried again.
        restarts: u32 = 1,
        /// Return the first image that reaches the goal instead of the last one.
        early_stop: bool = false,
        /// What to ascend.
        loss: LossKind = LossKind::Ce,
        /// Confidence of the CW loss, logits.
        kappa: f64 = CW_LINF_KAPPA,
        /// L1 only: share of the values that a step changes.
        sparsity: f64 = L1_SPARSITY,
    }
);
options!(
    /// MI-FGSM (Dong et al. 2018, arXiv:1710.06081): momentum over gradients of unit mean.
    MiFgsmConfig {
        /// Number of steps.
        steps: u32 = STEPS,
        /// Length of a step, pixel units; excludes `rel_step_size`.
        step_size: Option<Epsilon> = None,
        /// Length of a step, fraction of epsilon [0.25].
        rel_step_size: Option<f64> = None,
        /// Decay of the momentum.
        decay: f64 = DECAY,
        /// Return the first image that reaches the goal instead of the last one.
        early_stop: bool = false,
    }
);
options!(
    /// NI-FGSM (Lin et al. 2020, arXiv:1908.06281): MI-FGSM with the gradient taken ahead. The look-ahead
    /// point may leave the ball and the box, as in the paper.
    NiFgsmConfig {
        /// Number of steps.
        steps: u32 = STEPS,
        /// Length of a step, pixel units; excludes `rel_step_size`.
        step_size: Option<Epsilon> = None,
        /// Length of a step, fraction of epsilon [0.25].
        rel_step_size: Option<f64> = None,
        /// Decay of the momentum.
        decay: f64 = DECAY,
    }
);
options!(
    /// VMI-FGSM (Wang & He 2021, arXiv:2103.15571): MI-FGSM plus the variance of the gradient around the
    /// point. Neighbours may leave the box, as in the paper.
    VmiFgsmConfig {
        /// Number of steps.
        steps: u32 = STEPS,
        /// Length of a step, pixel units; excludes `rel_step_size`.
        step_size: Option<Epsilon> = None,
        /// Length of a step, fraction of epsilon [0.25].
        rel_step_size: Option<f64> = None,
        /// Decay of the momentum.
        decay: f64 = DECAY,
        /// Neighbours per step. The protocol of DD-RobustBench and torchattacks use 5.
        neighbours: u32 = NEIGHBOURS,
        /// Radius of the neighbourhood, fraction of epsilon.
        beta: f64 = BETA,
    }
);
options!(
    /// VNI-FGSM (Wang & He 2021, arXiv:2103.15571): variance tuning on NI-FGSM.
    VniFgsmConfig {
        /// Number of steps.
        steps: u32 = STEPS,
        /// Length of a step, pixel units; excludes `rel_step_size`.
        step_size: Option<Epsilon> = None,
        /// Length of a step, fraction of epsilon [0.25].
        rel_step_size: Option<f64> = None,
        /// Decay of the momentum.
        decay: f64 = DECAY,
        /// Neighbours per step. torchattacks uses 5.
        neighbours: u32 = NEIGHBOURS,
        /// Radius of the neighbourhood, fraction of epsilon.
        beta: f64 = BETA,
    }
);
options!(
    /// TPGD (Zhang et al. 2019, arXiv:1901.08573): PGD on the divergence from the clean prediction; knows no
    /// label. An inner attack of training; weak as an evaluation.
    TpgdConfig {
        /// Number of steps.
        steps: u32 = STEPS,
        /// Length of a step, pixel units; excludes `rel_step_size`.
        step_size: Option<Epsilon> = None,
        /// Length of a step, fraction of epsilon [0.25].
        rel_step_size: Option<f64> = None,
        /// Standard deviation of the Gaussian start, pixel units.
        start_std: f64 = TPGD_START_STD,
    }
);
options!(
    /// EOT-PGD (Liu et al. 2019, arXiv:1810.01279): PGD on the mean of several gradients, for randomized models.
    EotPgdConfig {
        /// Number of steps.
        steps: u32 = STEPS,
        /// Length of a step, pixel units; excludes `rel_step_size`.
        step_size: Option<Epsilon> = None,
        /// Length of a step, fraction of epsilon [0.25].
        rel_step_size: Option<f64> = None,
        /// Start uniformly in the ball instead of at the clean image.
        random_start: bool = true,
        /// Gradients per step.
        samples: u32 = EOT_SAMPLES,
    }
);
options!(
    /// Jitter (Schwinn et al. 2021, arXiv:2105.10304): PGD on [`loss::jitter`].
    JitterConfig {
        /// Number of steps.
        steps: u32 = STEPS,
        /// Length of a step, pixel units; excludes `rel_step_size`.
        step_size: Option<Epsilon> = None,
        /// Length of a step, fraction of epsilon [0.25].
        rel_step_size: Option<f64> = None,
        /// Start uniformly in the ball instead of at the clean image.
        random_start: bool = true,
        /// Scale of the logits after division by the largest.
        scale: f64 = JITTER_SCALE,
        /// Standard deviation of the noise on the softmax.
        std: f64 = JITTER_STD,
    }
);
options!(
    /// CW-Linf: PGD on the CW margin loss, as Madry et al. 2018 (section 5) and DD-RobustBench.
    CwLinfConfig {
        /// Number of steps.
        steps: u32 = STEPS,
        /// Length of a step, pixel units; excludes `rel_step_size`.
        step_size: Option<Epsilon> = None,
        /// Length of a step, fraction of epsilon [0.25].
        rel_step_size: Option<f64> = None,
        /// Start uniformly in the ball instead of at the clean image.
        random_start: bool = true,
        /// Attempts; a sample that is broken is not tried again.
        restarts: u32 = 1,
        /// Return the first image that reaches the goal instead of the last one.
        early_stop: bool = false,
        /// Confidence, logits.
        kappa: f64 = CW_LINF_KAPPA,
    }
);
options!(
    /// APGD (Croce & Hein 2020, arXiv:2003.01690, section 3; L1: arXiv:2103.01208).
    ApgdConfig {
        /// Number of steps.
        steps: u32 = APGD_STEPS,
        /// Attempts; a sample that is broken is not tried again.
        restarts: u32 = 1,
        /// Share of rising steps below which the step is halved.
        rho: f64 = APGD_RHO,
        /// Gradients averaged per step, for randomized models.
        samples: u32 = 1,
        /// Compare the first window's first loss with 0, as the authors' code does by accident, instead of
        /// with the start's loss, as their paper does.
        first_window_from_zero: bool = false,
    }
);
options!(
    /// APGD-T: APGD on the targeted DLR loss towards the classes with the largest clean logits.
    ApgdTConfig {
        /// Number of steps.
        steps: u32 = APGD_STEPS,
        /// Attempts per target; a sample that is broken is not tried again.
        restarts: u32 = 1,
        /// Share of rising steps below which the step is halved.
        rho: f64 = APGD_RHO,
        /// Gradients averaged per step, for randomized models.
        samples: u32 = 1,
        /// Compare the first window's first loss with 0, as the authors' code does by accident, instead of
        /// with the start's loss, as their paper does.
        first_window_from_zero: bool = false,
        /// Target classes per sample; at most K - 1 are used.
        targets: u32 = TARGETS,
    }
);
options!(
    /// DeepFool (Moosavi-Dezfooli et al. 2016, arXiv:1511.04599), L2 and Linf.
    DeepFoolConfig {
        /// Steps at most.
        steps: u32 = DEEPFOOL_STEPS,
        /// How far beyond the boundary, as a fraction of the perturbation.
        overshoot: f64 = DEEPFOOL_OVERSHOOT,
        /// Overshoot every step, as torchattacks does, instead of the sum of the steps, as the paper does.
        overshoot_each_step: bool = false,
    }
);
options!(
    /// CW-L2 (Carlini & Wagner 2017, arXiv:1608.04644, section VI A).
    CwL2Config {
        /// Weight of the margin against the distance, at first if `search_steps` is not 0.
        c: f64 = 1.0,
        /// Confidence, logits.
        kappa: f64 = 0.0,
        /// Steps of Adam.
        steps: u32 = CW_L2_STEPS,
        /// Learning rate of Adam.
        lr: f64 = CW_L2_LR,
        /// Rounds of bisection over `c` after the first run.
        search_steps: u32 = 0,
        /// Clip both sides of the margin at 0, as torchattacks does; wrong where logits are negative.
        clipped_margin: bool = false,
    }
);
options!(
    /// FAB (Croce & Hein 2020, arXiv:1907.02044).
    FabConfig {
        /// Number of steps.
        steps: u32 = APGD_STEPS,
        /// Attempts; the first starts at the clean image, the others at random points.
        restarts: u32 = 1,
        /// Bias towards the original point, at most.
        alpha_max: f64 = FAB_ALPHA_MAX,
        /// Extrapolation beyond the linearized boundary.
        eta: f64 = FAB_ETA,
        /// Backward step.
        beta: f64 = FAB_BETA,
        /// Go on after a perturbation within epsilon was found, for the smallest one.
        minimize: bool = true,
    }
);
options!(
    /// FAB-T: FAB towards one class at a time (Croce & Hein 2020, arXiv:2003.01690, section 4).
    FabTConfig {
        /// Number of steps.
        steps: u32 = APGD_STEPS,
        /// Attempts per target; the first starts at the clean image, the others at random points.
        restarts: u32 = 1,
        /// Bias towards the original point, at most.
        alpha_max: f64 = FAB_ALPHA_MAX,
        /// Extrapolation beyond the linearized boundary.
        eta: f64 = FAB_ETA,
        /// Backward step.
        beta: f64 = FAB_BETA,
        /// Target classes per sample; at most K - 1 are used.
        targets: u32 = TARGETS,
        /// Go on after a perturbation within epsilon was found, for the smallest one.
        minimize: bool = true,
    }
);
options!(
    /// Square (Andriushchenko et al. 2020, arXiv:1912.00049): random search over windows, logits only.
    SquareConfig {
        /// Windows tried per sample; the start is one forward pass more.
        queries: u32 = SQUARE_QUERIES,
        /// Attempts; a sample that is broken is not tried again.
        restarts: u32 = 1,
        /// Share of the image that the first windows cover.
        p_init: f64 = SQUARE_P,
        /// Stretch the schedule of window sizes, made for 10,000 queries, to `queries`. AutoAttack does not.
        rescale_schedule: bool = false,
    }
);

/// Several attacks, each on what the ones before it left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SuiteConfig {
    /// Name in reports.
    pub name: String,
    /// In this order.
    pub attacks: Vec<AttackConfig>,
}

/// One attack with its options. In TOML and JSON a table with the key `attack` and the options in
/// kebab case; an option that the attack does not have is an error.
///
/// ```
/// use c2r_attacks::AttackConfig;
/// let mut pgd = AttackConfig::named("pgd").unwrap();
/// pgd.set("steps", "20").unwrap();
/// pgd.set("step-size", "2/255").unwrap();
/// assert!(AttackConfig::named("fgsm").unwrap().set("steps", "20").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "attack", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "each variant is documented at its options")]
pub enum AttackConfig {
    Clean(CleanConfig),
    Noise(NoiseConfig),
    Fgsm(FgsmConfig),
    RFgsm(RFgsmConfig),
    Bim(BimConfig),
    Pgd(PgdConfig),
    MiFgsm(MiFgsmConfig),
    NiFgsm(NiFgsmConfig),
    VmiFgsm(VmiFgsmConfig),
    VniFgsm(VniFgsmConfig),
    Tpgd(TpgdConfig),
    EotPgd(EotPgdConfig),
    Jitter(JitterConfig),
    CwLinf(CwLinfConfig),
    ApgdCe(ApgdConfig),
    ApgdDlr(ApgdConfig),
    ApgdT(ApgdTConfig),
    #[serde(rename = "deepfool")]
    DeepFool(DeepFoolConfig),
    CwL2(CwL2Config),
    Fab(FabConfig),
    FabT(FabTConfig),
    Square(SquareConfig),
    Suite(SuiteConfig),
}

/// Every single attack, in the order of docs/attacks.
pub const ATTACKS: [&str; 22] = [
    "clean", "noise", "fgsm", "r-fgsm", "bim", "pgd", "mi-fgsm", "ni-fgsm", "vmi-fgsm", "vni-fgsm", "tpgd", "eot-pgd",
    "jitter", "cw-linf", "apgd-ce", "apgd-dlr", "apgd-t", "deepfool", "cw-l2", "fab", "fab-t", "square",
];

/// Every suite.
pub const SUITES: [&str; 4] = ["paper-six", "autoattack-standard", "autoattack-plus", "autoattack-rand"];

impl AttackConfig {
    /// An attack or suite of [`ATTACKS`] or [`SUITES`] with its defaults.
    ///
    /// `paper-six` carries the parameters of the DD-RobustBench protocol (docs/attacks/suites.md).
    ///
    /// # Errors
    /// [`ConfigError::UnknownAttack`].
    pub fn named(name: &str) -> Result<Self, ConfigError> {
        if let Some(suite) = crate::suite::named(name) {
            return Ok(suite);
        }
        if ATTACKS.contains(&name) {
            let plain = serde_json::json!({ "attack": name });
            return Ok(serde_json::from_value(plain).expect("every attack has defaults"));
        }
        Err(ConfigError::UnknownAttack {
            name: name.to_owned(),
            known: ATTACKS.iter().chain(&SUITES).copied().collect::<Vec<_>>().join(" "),
        })
    }

    /// [`AttackConfig::named`] with what the authors of a suite use for `norm`: the `autoattack` suites in L1
    /// take five restarts of APGD-CE and five targets of APGD-T (Croce & Hein 2021, arXiv:2103.01208, section 5).
    ///
    /// # Errors
    /// [`ConfigError::UnknownAttack`].
    pub fn named_for(name: &str, norm: Norm) -> Result<Self, ConfigError> {
        let mut config = Self::named(name)?;
        if norm == Norm::L1 {
            config.for_l1();
        }
        Ok(config)
    }

    fn for_l1(&mut self) {
        let Self::Suite(suite) = self else { return };
        let standard = suite.name == "autoattack-standard";
        for member in &mut suite.attacks {
            match member {
                Self::ApgdCe(apgd) if standard => apgd.restarts = L1_RESTARTS,
                Self::ApgdT(apgd) if standard => apgd.targets = L1_TARGETS,
                Self::Suite(_) => member.for_l1(),
                _ => {}
            }
        }
    }

    /// Passes per sample that no attack stops early on, for estimates of time: forward (those that a
    /// backward pass follows included) and backward.
    pub fn passes(&self, classes: u64) -> (u64, u64) {
        let many = u64::from;
        let targets = |wanted: u32| many(wanted).min(classes.saturating_sub(1));
        let both = |n: u64| (n, n);
        match self {
            Self::Clean(_) => (0, 0),
            Self::Noise(config) => (many(config.samples), 0),
            Self::ApgdCe(config) | Self::ApgdDlr(config) => {
                both((many(config.steps) + 1) * many(config.restarts) * many(config.samples))
            }
            Self::ApgdT(config) => {
                both((many(config.steps) + 1) * many(config.restarts) * many(config.samples) * targets(config.targets))
            }
            Self::DeepFool(config) => (2 * many(config.steps), classes * many(config.steps)),
            Self::CwL2(config) => both(many(config.steps) * (many(config.search_steps) + 1)),
            Self::Fab(config) => {
                let steps = many(config.steps) * many(config.restarts);
                (2 * steps, classes * steps)
            }
            Self::FabT(config) => {
                let steps = many(config.steps) * many(config.restarts) * targets(config.targets);
                (2 * steps, steps)
            }
            Self::Square(config) => ((many(config.queries) + 1) * many(config.restarts), 0),
            Self::Suite(suite) => suite
                .attacks
                .iter()
                .map(|attack| attack.passes(classes))
                .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1)),
            _ => match self.recipe() {
                Ok(Some(recipe)) => {
                    let neighbours = recipe.variance.map_or(0, |variance| many(variance.neighbours));
                    let per_step = many(recipe.gradient_samples) + neighbours;
                    both(many(recipe.steps) * many(recipe.restarts) * per_step)
                }
                _ => (0, 0),
            },
        }
    }

    /// Number of fixed steps up the cross entropy, for an attack that is made of them: FGSM has one.
    pub(crate) fn cross_entropy_steps(&self) -> Option<u32> {
        let recipe = self.recipe().ok()??;
        matches!(recipe.objective, Objective::Loss(LossKind::Ce, _)).then_some(recipe.steps)
    }

    /// The name it was asked for by.
    pub fn name(&self) -> String {
        match self {
            Self::Suite(suite) => suite.name.clone(),
            _ => self.fields()["attack"].as_str().expect("the tag").to_owned(),
        }
    }

    /// Names of the options, in the order of the documentation.
    pub fn options(&self) -> Vec<String> {
        match self {
            Self::Suite(_) => Vec::new(),
            _ => self.fields().keys().filter(|key| *key != "attack").cloned().collect(),
        }
    }

    fn fields(&self) -> serde_json::Map<String, serde_json::Value> {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => unreachable!("an attack is a table"),
        }
    }

    /// Sets one option from its text, as on a command line: `steps` to `20`, `step-size` to `2/255`. On a
    /// suite it is set on every member that has it.
    ///
    /// # Errors
    /// [`ConfigError::UnknownOption`] or [`ConfigError::Option`].
    pub fn set(&mut self, option: &str, text: &str) -> Result<(), ConfigError> {
        let attack = self.name();
        let unknown = |known: Vec<String>| ConfigError::UnknownOption {
            attack: attack.clone(),
            option: option.to_owned(),
            known: if known.is_empty() { "none".to_owned() } else { known.join(", ") },
        };
        if let Self::Suite(suite) = self {
            let mut taken = false;
            for member in &mut suite.attacks {
                if member.has_option(option) {
                    member.set(option, text)?;
                    taken = true;
                }
            }
            let known: std::collections::BTreeSet<String> = suite.attacks.iter().flat_map(Self::options).collect();
            return if taken { Ok(()) } else { Err(unknown(known.into_iter().collect())) };
        }
        let mut fields = self.fields();
        if option == "attack" || !fields.contains_key(option) {
            return Err(unknown(self.options()));
        }
        // Numbers and booleans are read as such; `2/255` and names stay texts.
        let value = if option == "step-size" {
            serde_json::Value::String(text.to_owned())
        } else {
            serde_json::from_str(text).unwrap_or_else(|_| serde_json::Value::String(text.to_owned()))
        };
        fields.insert(option.to_owned(), value);
        *self = serde_json::from_value(serde_json::Value::Object(fields)).map_err(|error| ConfigError::Option {
            attack: attack.clone(),
            option: option.to_owned(),
            reason: error.to_string(),
        })?;
        self.build().map(drop)
    }

    /// Whether [`AttackConfig::set`] would know this option.
    pub fn has_option(&self, option: &str) -> bool {
        match self {
            Self::Suite(suite) => suite.attacks.iter().any(|member| member.has_option(option)),
            _ => self.options().iter().any(|known| known == option),
        }
    }

    /// Checks every value and makes the attack.
    ///
    /// # Errors
    /// [`ConfigError::Option`] for a value that cannot be.
    pub fn build(&self) -> Result<Box<dyn Attack>, ConfigError> {
        let attack: Box<dyn Attack> = match self {
            Self::Clean(CleanConfig {}) => Box::new(Clean),
            Self::Noise(config) => {
                let check = Check("noise");
                check.count("samples", config.samples)?;
                Box::new(Noise::new(config.samples))
            }
            Self::ApgdCe(config) => Box::new(config.build("apgd-ce", ApgdLoss::Ce)?),
            Self::ApgdDlr(config) => Box::new(config.build("apgd-dlr", ApgdLoss::Dlr)?),
            Self::ApgdT(config) => {
                let check = Check("apgd-t");
                check.count("targets", config.targets)?;
                let ApgdTConfig { steps, restarts, rho, samples, first_window_from_zero, targets } = config.clone();
                let plain = ApgdConfig { steps, restarts, rho, samples, first_window_from_zero };
                Box::new(plain.build("apgd-t", ApgdLoss::DlrTargeted { targets })?)
            }
            Self::DeepFool(config) => {
                let check = Check("deepfool");
                check.count("steps", config.steps)?;
                check.at_least("overshoot", config.overshoot, 0.0)?;
                Box::new(DeepFool::new(config.clone()))
            }
            Self::CwL2(config) => {
                let check = Check("cw-l2");
                check.count("steps", config.steps)?;
                check.positive("c", config.c)?;
                check.positive("lr", config.lr)?;
                check.at_least("kappa", config.kappa, 0.0)?;
                Box::new(CwL2::new(config.clone()))
            }
            Self::Fab(config) => {
                let FabConfig { steps, restarts, alpha_max, eta, beta, minimize } = config.clone();
                Box::new(fab("fab", &FabTConfig { steps, restarts, alpha_max, eta, beta, targets: 1, minimize }, None)?)
            }
            Self::FabT(config) => Box::new(fab("fab-t", config, Some(config.targets))?),
            Self::Square(config) => {
                let check = Check("square");
                check.count("queries", config.queries)?;
                check.count("restarts", config.restarts)?;
                check.fraction("p-init", config.p_init)?;
                Box::new(Square::new(config.clone()))
            }
            Self::Suite(suite) => {
                if suite.attacks.is_empty() {
                    return Err(ConfigError::Option {
                        attack: suite.name.clone(),
                        option: "attacks".to_owned(),
                        reason: "a suite needs at least one attack".to_owned(),
                    });
                }
                let stages = suite.attacks.iter().map(Self::build).collect::<Result<_, _>>()?;
                Box::new(Suite::new(suite.name.clone(), stages))
            }
            _ => Box::new(Iterative::new(self.recipe()?.expect("the other attacks are in this match"))),
        };
        Ok(Box::new(Configured { config: self.clone(), attack }))
    }

    /// The recipe, if this attack is one of the iterative family.
    pub(crate) fn recipe(&self) -> Result<Option<Recipe>, ConfigError> {
        let loss = |kind| Objective::Loss(kind, CW_LINF_KAPPA);
        let ball = |random_start| if random_start { Start::Ball } else { Start::Clean };
        let recipe = match self {
            Self::Fgsm(config) => Recipe::plain("fgsm", 1, Step::Relative(1.0), loss(config.loss)),
            Self::RFgsm(config) => {
                let check = Check("r-fgsm");
                check.fraction("rel-start", config.rel_start)?;
                let mut recipe = Recipe::plain("r-fgsm", 1, Step::Relative(1.0 - config.rel_start), loss(config.loss));
                recipe.start = Start::Sign(config.rel_start);
                recipe.norms = &[Norm::Linf];
                recipe
            }
            Self::Bim(config) => {
                let check = Check("bim");
                let step = check.steps(config.steps, config.step_size, config.rel_step_size)?;
                let mut recipe = Recipe::plain("bim", config.steps, step, loss(config.loss));
                recipe.early_stop = config.early_stop;
                recipe
            }
            Self::Pgd(config) => {
                let check = Check("pgd");
                let step = check.steps(config.steps, config.step_size, config.rel_step_size)?;
                check.count("restarts", config.restarts)?;
                check.at_least("kappa", config.kappa, 0.0)?;
                check.fraction("sparsity", config.sparsity)?;
                let mut recipe = Recipe::plain("pgd", config.steps, step, Objective::Loss(config.loss, config.kappa));
                recipe.start = ball(config.random_start);
                recipe.restarts = config.restarts;
                recipe.early_stop = config.early_stop;
                recipe.sparsity = config.sparsity;
                recipe
            }
            Self::CwLinf(config) => {
                let check = Check("cw-linf");
                let step = check.steps(config.steps, config.step_size, config.rel_step_size)?;
                check.count("restarts", config.restarts)?;
                check.at_least("kappa", config.kappa, 0.0)?;
                let objective = Objective::Loss(LossKind::Cw, config.kappa);
                let mut recipe = Recipe::plain("cw-linf", config.steps, step, objective);
                recipe.norms = &[Norm::Linf];
                recipe.start = ball(config.random_start);
                recipe.restarts = config.restarts;
                recipe.early_stop = config.early_stop;
                recipe
            }
            Self::MiFgsm(config) => {
                let check = Check("mi-fgsm");
                let step = check.steps(config.steps, config.step_size, config.rel_step_size)?;
                let mut recipe = Recipe::plain("mi-fgsm", config.steps, step, loss(LossKind::Ce));
                recipe.momentum = Some(check.momentum(config.decay, false)?);
                recipe.early_stop = config.early_stop;
                recipe
            }
            Self::NiFgsm(config) => {
                let check = Check("ni-fgsm");
                let step = check.steps(config.steps, config.step_size, config.rel_step_size)?;
                let mut recipe = Recipe::plain("ni-fgsm", config.steps, step, loss(LossKind::Ce));
                recipe.norms = &[Norm::Linf];
                recipe.momentum = Some(check.momentum(config.decay, true)?);
                recipe
            }
            Self::VmiFgsm(config) => {
                let check = Check("vmi-fgsm");
                let step = check.steps(config.steps, config.step_size, config.rel_step_size)?;
                let mut recipe = Recipe::plain("vmi-fgsm", config.steps, step, loss(LossKind::Ce));
                recipe.norms = &[Norm::Linf];
                recipe.momentum = Some(check.momentum(config.decay, false)?);
                recipe.variance = Some(check.variance(config.neighbours, config.beta)?);
                recipe
            }
            Self::VniFgsm(config) => {
                let check = Check("vni-fgsm");
                let step = check.steps(config.steps, config.step_size, config.rel_step_size)?;
                let mut recipe = Recipe::plain("vni-fgsm", config.steps, step, loss(LossKind::Ce));
                recipe.norms = &[Norm::Linf];
                recipe.momentum = Some(check.momentum(config.decay, true)?);
                recipe.variance = Some(check.variance(config.neighbours, config.beta)?);
                recipe
            }
            Self::Tpgd(config) => {
                let check = Check("tpgd");
                let step = check.steps(config.steps, config.step_size, config.rel_step_size)?;
                check.positive("start-std", config.start_std)?;
                let mut recipe = Recipe::plain("tpgd", config.steps, step, Objective::Kl);
                recipe.start = Start::Gaussian(config.start_std);
                recipe
            }
            Self::EotPgd(config) => {
                let check = Check("eot-pgd");
                let step = check.steps(config.steps, config.step_size, config.rel_step_size)?;
                check.count("samples", config.samples)?;
                let mut recipe = Recipe::plain("eot-pgd", config.steps, step, loss(LossKind::Ce));
                recipe.start = ball(config.random_start);
                recipe.gradient_samples = config.samples;
                recipe
            }
            Self::Jitter(config) => {
                let check = Check("jitter");
                let step = check.steps(config.steps, config.step_size, config.rel_step_size)?;
                check.positive("scale", config.scale)?;
                check.at_least("std", config.std, 0.0)?;
                let objective = Objective::Jitter { scale: config.scale, std: config.std };
                let mut recipe = Recipe::plain("jitter", config.steps, step, objective);
                recipe.norms = &[Norm::Linf];
                recipe.start = ball(config.random_start);
                recipe
            }
            _ => return Ok(None),
        };
        debug_assert!(recipe.norms.iter().all(|norm| ALL_NORMS.contains(norm)));
        Ok(Some(recipe))
    }
}

impl ApgdConfig {
    fn build(&self, name: &'static str, loss: ApgdLoss) -> Result<Apgd, ConfigError> {
        let check = Check(name);
        check.count("steps", self.steps)?;
        check.count("restarts", self.restarts)?;
        check.count("samples", self.samples)?;
        check.fraction("rho", self.rho)?;
        Ok(Apgd::new(name, self.clone(), loss))
    }
}

fn fab(name: &'static str, config: &FabTConfig, targets: Option<u32>) -> Result<Fab, ConfigError> {
    let check = Check(name);
    check.count("steps", config.steps)?;
    check.count("restarts", config.restarts)?;
    check.count("targets", config.targets)?;
    check.at_least("alpha-max", config.alpha_max, 0.0)?;
    check.at_least("eta", config.eta, 1.0)?;
    check.fraction("beta", config.beta)?;
    Ok(Fab::new(name, config.clone(), targets))
}

/// Checks option values; carries the attack's name for the message.
struct Check(&'static str);

impl Check {
    fn fail<T>(&self, option: &str, reason: impl Into<String>) -> Result<T, ConfigError> {
        Err(ConfigError::Option { attack: self.0.to_owned(), option: option.to_owned(), reason: reason.into() })
    }

    fn count(&self, option: &str, value: u32) -> Result<(), ConfigError> {
        if value == 0 { self.fail(option, "must be at least 1") } else { Ok(()) }
    }

    fn at_least(&self, option: &str, value: f64, least: f64) -> Result<(), ConfigError> {
        if value.is_finite() && value >= least {
            return Ok(());
        }
        self.fail(option, format!("must be at least {least}, got {value}"))
    }

    fn positive(&self, option: &str, value: f64) -> Result<(), ConfigError> {
        if value.is_finite() && value > 0.0 {
            return Ok(());
        }
        self.fail(option, format!("must be positive, got {value}"))
    }

    fn fraction(&self, option: &str, value: f64) -> Result<(), ConfigError> {
        if value > 0.0 && value <= 1.0 {
            return Ok(());
        }
        self.fail(option, format!("must be above 0 and at most 1, got {value}"))
    }

    fn steps(&self, steps: u32, absolute: Option<Epsilon>, relative: Option<f64>) -> Result<Step, ConfigError> {
        self.count("steps", steps)?;
        match (absolute, relative) {
            (Some(_), Some(_)) => self.fail("step-size", "cannot be set together with `rel-step-size`"),
            (Some(length), None) => Ok(Step::Absolute(length.value())),
            (None, relative) => {
                let relative = relative.unwrap_or(REL_STEP_SIZE);
                self.positive("rel-step-size", relative)?;
                Ok(Step::Relative(relative))
            }
        }
    }

    fn momentum(&self, decay: f64, look_ahead: bool) -> Result<Momentum, ConfigError> {
        self.at_least("decay", decay, 0.0)?;
        Ok(Momentum { decay, look_ahead })
    }

    fn variance(&self, neighbours: u32, beta: f64) -> Result<Variance, ConfigError> {
        self.count("neighbours", neighbours)?;
        self.positive("beta", beta)?;
        Ok(Variance { neighbours, beta })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_builds_and_round_trips() {
        for name in ATTACKS.iter().chain(&SUITES) {
            let config = AttackConfig::named(name).unwrap();
            assert_eq!(config.name(), *name);
            assert_eq!(config.build().unwrap().name(), *name);
            let text = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<AttackConfig>(&text).unwrap(), config, "{text}");
        }
        assert!(AttackConfig::named("pgdd").err().unwrap().to_string().contains("apgd-ce"));
    }

    #[test]
    fn unknown_options_are_errors_everywhere() {
        for name in ATTACKS {
            let text = format!(r#"{{"attack": "{name}", "stpes": 3}}"#);
            let error = serde_json::from_str::<AttackConfig>(&text).unwrap_err().to_string();
            assert!(error.contains("stpes"), "{name}: {error}");
            let error = AttackConfig::named(name).unwrap().set("stpes", "3").unwrap_err().to_string();
            assert!(error.contains("has no option `stpes`"), "{name}: {error}");
        }
        let error = AttackConfig::named("fgsm").unwrap().set("steps", "3").unwrap_err().to_string();
        assert_eq!(error, "attack `fgsm` has no option `steps`; it has: loss");
    }

    #[test]
    fn values_are_checked() {
        for (name, option, value) in [
            ("pgd", "steps", "0"),
            ("pgd", "steps", "-1"),
            ("pgd", "steps", "x"),
            ("pgd", "step-size", "0"),
            ("pgd", "rel-step-size", "-1"),
            ("pgd", "random-start", "maybe"),
            ("pgd", "loss", "mse"),
            ("square", "queries", "0"),
            ("square", "p-init", "1.5"),
            ("vmi-fgsm", "beta", "0"),
            ("apgd-t", "targets", "0"),
            ("fab", "eta", "0.5"),
        ] {
            let error = AttackConfig::named(name).unwrap().set(option, value).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(option), "{error}");
        }
        let mut both = AttackConfig::named("pgd").unwrap();
        both.set("step-size", "2/255").unwrap();
        assert!(both.set("rel-step-size", "0.5").unwrap_err().to_string().contains("together"));
    }

    #[test]
    fn a_suite_passes_options_on() {
        let mut suite = AttackConfig::named("autoattack-standard").unwrap();
        suite.set("queries", "7").unwrap();
        let AttackConfig::Suite(SuiteConfig { attacks, .. }) = &suite else { unreachable!() };
        assert!(matches!(attacks.last(), Some(AttackConfig::Square(SquareConfig { queries: 7, .. }))));
        assert!(suite.set("decay", "0.5").is_err());
    }
}
