//! Why a configuration makes no sense, and why a distillation cannot start or continue.

use c2r_base::ClassifierError;
use c2r_core::{crl::CrlError, curriculum::CurriculumError, ls_pgd::LsPgdError};
use c2r_data::DataError;
use c2r_models::ModelError;
use c2r_train::{TrainError, layers::KeyError, ranges::RangeError, state::StateError};

use crate::profiles::ProfileError;

/// A configuration that makes no sense; the message names the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A key that does not exist, is missing or has a value of another type.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No such profile.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A number outside its range.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// A value that cannot act beside the others.
    #[error("{key} cannot be `{value}`: {reason}")]
    Conflict {
        /// Dotted key.
        key: &'static str,
        /// Its value.
        value: &'static str,
        /// Why not.
        reason: &'static str,
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
    /// In `[companions]`.
    #[error(transparent)]
    LsPgd(#[from] LsPgdError),
    /// In `[crl]`.
    #[error(transparent)]
    Crl(#[from] CrlError),
    /// In `[aac]`.
    #[error("aac.{place}: {reason}")]
    Curriculum {
        /// The key in `[aac]`.
        place: &'static str,
        /// What is wrong with it.
        reason: CurriculumError,
    },
}

/// Why a distillation cannot start or continue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DistillError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The network cannot be built or restored.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A network cannot be trained.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The synthetic set cannot be made.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A network gave no logits.
    #[error(transparent)]
    Classifier(#[from] ClassifierError),
    /// Fewer real images than the run needs.
    #[error("class {class} has {got} training images, but {needed} are needed ({why})")]
    TooFewImages {
        /// Class index.
        class: usize,
        /// Images there.
        got: usize,
        /// Images needed.
        needed: usize,
        /// What needs them.
        why: &'static str,
    },
    /// A loss exploded.
    #[error("{what} is {value} at step {at}: lower the learning rates; the state of the last checkpoint is unharmed")]
    NotFinite {
        /// Which number.
        what: &'static str,
        /// At which step of its loop.
        at: u64,
        /// NaN or infinite.
        value: f64,
    },
    /// A method that does not do what it must.
    #[error("method \"{method}\": {reason}")]
    Broken {
        /// Its name in configurations.
        method: &'static str,
        /// What it did, and what it must do.
        reason: String,
    },
    /// A saved state that does not belong to this configuration, or is damaged.
    #[error("the saved state cannot be continued: {0}")]
    State(StateError),
    /// An error of a method that is not one of ours.
    #[error(transparent)]
    Method(Box<dyn std::error::Error + Send + Sync>),
}

// With `#[from]`, the reason would be the source, too, and would be printed twice.
impl From<StateError> for DistillError {
    fn from(error: StateError) -> Self {
        Self::State(error)
    }
}

/// Refuses scores of images that are NaN: a network exploded, and no order follows from them.
///
/// * `at`: the step of the loop.
pub(crate) fn check_scores(scores: &[f32], at: u64) -> Result<(), DistillError> {
    match scores.iter().find(|score| score.is_nan()) {
        Some(&score) => Err(DistillError::NotFinite { what: "score of an image", at, value: f64::from(score) }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_numbers() {
        assert!(check_scores(&[0.0, f32::INFINITY], 3).is_ok());
        let error = check_scores(&[0.0, f32::NAN], 3).unwrap_err();
        assert!(matches!(error, DistillError::NotFinite { what: "score of an image", at: 3, .. }), "{error}");
    }
}
