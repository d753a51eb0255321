//! Robust dataset distillation: from a training set to a few images per class.
//!
//! **What it is:** [`DistillConfig`] (every switch of the method, from TOML), [`Distillation`] (the
//! outer loop, one [`Distillation::step`] at a time, with a state that can be saved at any step and
//! continued to the same bytes) and [`Pool`] (the adversarially trained networks it looks through).
//!
//! **What it is not:** it trains no downstream network (`c2r-train`), attacks nothing for a report
//! (`c2r-attacks`), and never prints or chooses a file name.
//!
//! **Where to start:** [`Distillation::new`], then docs/method.md for the equations and the
//! decisions where the paper is silent.

mod companions;
mod config;
mod distillation;
mod estimate;
mod optimizer;
mod plan;
mod pool;

pub use companions::Companion;
pub use config::{
    AacConfig, CompanionConfig, ConfigError, DistillConfig, FgsmConfig, ImageOptimizer, ImagesConfig, Init, LabelKind,
    MatchingConfig, Method, MultiStepConfig, ObjectiveConfig, PoolConfig, RobustTerm, TeacherConfig, ThreatConfig,
};
pub use distillation::{DistillError, DistillEvent, Distillation, StepReport};
pub use estimate::{Work, work};
pub use pool::Pool;
