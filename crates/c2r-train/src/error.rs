use c2r_models::ModelError;

use crate::{ranges::RangeError, state::StateError};

/// Why training did not start or did not finish.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting that makes no sense.
    #[error(transparent)]
    Config(#[from] RangeError),
    /// Images or labels that do not fit the network, the config or each other.
    #[error("the training set does not fit: {0}")]
    Source(String),
    /// The loss is NaN or infinite.
    #[error("the loss is {loss} at step {step} of {steps} (learning rate {lr}); try a smaller lr")]
    NotFinite {
        /// Zero-based step.
        step: u64,
        /// Total number of steps.
        steps: u64,
        /// What the loss was.
        loss: f64,
        /// Learning rate of the step.
        lr: f64,
    },
    /// A saved state of a trainer that does not fit.
    #[error("the saved state does not fit: {0}")]
    State(StateError),
    /// A saved network that does not fit.
    #[error(transparent)]
    Model(#[from] ModelError),
}

// With `#[from]`, the reason would be the source, too, and would be printed twice.
impl From<StateError> for TrainError {
    fn from(error: StateError) -> Self {
        Self::State(error)
    }
}
