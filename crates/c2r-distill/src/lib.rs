//! Robust dataset distillation: from a training set to a few images per class.
//!
//! **What it is:** [`DistillConfig`] (every switch of every method, from TOML; [`profiles`] has them with
//! their defaults), [`Distillation`] (the outer loop, one [`Distillation::step`] at a time, with a state that can
//! be saved at any step and continued to the same bytes) and [`Method`], which C²R and each of the methods it is
//! compared with implement.
//!
//! **What it is not:** it trains no downstream network (`c2r-train`), attacks nothing for a report
//! (`c2r-attacks`), and never prints or chooses a file name.
//!
//! **Where to start:** [`Distillation::new`], then docs/method.md for the equations of C²R and the decisions
//! where the paper is silent, and docs/baselines.md for the other methods.

mod c2r;
mod canvas;
mod companions;
mod config;
mod coreset;
mod distillation;
mod dm;
mod estimate;
mod gradient_matching;
mod method;
mod optimizer;
mod passes;
mod plan;
mod pool;
pub mod profiles;
mod recovery;
mod setting;
mod state;
mod trajectory_matching;

pub use canvas::Canvas;
pub use companions::Companion;
pub use config::{
    AacConfig, Anchors, CompanionConfig, ConfigError, CurvatureConfig, DistillConfig, ExpertsConfig, FgsmConfig,
    GradientsConfig, ImageOptimizer, ImageSpace, ImagesConfig, Init, LabelKind, MatchingConfig, MethodName,
    MultiStepConfig, ObjectiveConfig, PoolConfig, RealCandidates, RecoveryConfig, Remember, RobustTerm, StudentConfig,
    TeacherConfig, ThreatConfig, Weighted, dc_loops, eta_of_ipc,
};
pub use distillation::{DistillError, DistillEvent, Distillation};
pub use estimate::{Work, work};
pub use method::{Claims, Method, StepReport, Turn};
pub use passes::RunPasses;
pub use pool::Pool;
pub use setting::Setting;
