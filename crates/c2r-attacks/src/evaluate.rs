//! Attacks a model on labelled images and judges what comes back.

mod bounds;
mod contradictions;
mod driver;
mod event;
mod flags;
mod judge;
mod parallel;
mod report;
mod resume;

pub use contradictions::{AttackResult, contradictions};
pub use driver::{EvaluateOptions, default_batch_size, evaluate, evaluate_with};
pub use event::{AdversarialImages, Event};
pub use report::{AttackEntry, AttackReport, Flag, Mode, Outcome, SampleOutcome, StageEntry};
