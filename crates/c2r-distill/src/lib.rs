//! Robust dataset distillation: from a training set to a few images per class.
//!
//! ```
//! use c2r_distill::{DistillConfig, Distillation};
//!
//! let digits = c2r_data::load("digits", None)?;
//! let config = DistillConfig::resolve("faithful", &digits.spec, [("ipc", 1), ("iterations", 10)])?;
//! let mut run = Distillation::new(config, &digits, tch::Device::Cpu)?;
//! while run.step()?.is_some() {}
//! let file = std::env::temp_dir().join("digits.safetensors");
//! run.synthetic_set(Default::default())?.save(&file)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **What it is:** [`DistillConfig`] (every switch of every method, from TOML; [`profiles`] has them with
//! their defaults), [`Distillation`] (the run, one [`Distillation::step`] at a time, with a state that can
//! be saved at any step and continued to the same bytes) and [`Method`] with its [`MethodConfig`], which C²R and each of
//! the methods it is compared with implement, and which a method of another crate can.
//!
//! **What it is not:** it trains no downstream network (`c2r-train`), attacks nothing for a report
//! (`c2r-attacks`), never prints, and writes no file: [`folder`] only says which ones the folder of a run has.
//!
//! **Where to start:** [`DistillConfig::resolve`], then docs/method.md for the equations of C²R and the decisions
//! where the paper is silent, and docs/baselines.md for the other methods.

mod config;
mod context;
mod cost;
mod error;
pub mod folder;
mod method;
mod methods;
mod parts;
mod passes;
pub mod profiles;
mod registry;
mod resolve;
mod run;

pub use c2r_train::ranges;
pub use config::{
    AttacksConfig, CommonConfig, CompanionConfig, CurvatureConfig, FgsmConfig, ImageOptimizer, ImageSpace,
    ImagesConfig, Init, LabelKind, MatchingConfig, MultiStepConfig, Place, PlaceConfig, PoolConfig, TeacherConfig,
    ThreatConfig,
};
pub use context::Context;
pub use cost::Work;
pub use error::{ConfigError, DistillError};
pub use method::{Effect, Measured, Method, MethodConfig, MethodEntry, Needs, Sections, Step, StepReport};
pub use methods::{
    c2r::{
        AacConfig, Anchors, C2rConfig, Distance, ObjectiveConfig, RealCandidates, Reduction, Remember, RobustTerm,
        Weighted,
    },
    coreset::Coreset,
    dm::DmConfig,
    gradient_matching::{GradientMatchingConfig, GradientsConfig},
    recovery::{RecoveryConfig, StatisticsConfig},
    trajectory_matching::{ExpertsConfig, StudentConfig, TrajectoryMatchingConfig},
};
pub use parts::{
    companions::{Attacked, CompanionAttack},
    images::SyntheticImages,
};
pub use passes::RunPasses;
pub use registry::METHODS;
pub use resolve::DistillConfig;
pub use run::{DistillEvent, Distillation};
pub use toml;
