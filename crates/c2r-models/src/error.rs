use std::path::PathBuf;

use c2r_base::artifact::ArtifactError;

/// Why a network could not be made, loaded or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The input description contradicts itself.
    #[error("the model input is not valid: {0}")]
    Input(String),
    /// Images too small for so many halvings.
    #[error(
        "{spec} halves its input {depth} times, which leaves nothing of {height}x{width} images; use a smaller depth"
    )]
    TooDeep {
        /// The architecture.
        spec: String,
        /// Its number of poolings.
        depth: i64,
        /// Image height.
        height: i64,
        /// Image width.
        width: i64,
    },
    /// Images too small for an architecture of fixed depth.
    #[error("{spec} needs images of at least {smallest}x{smallest} pixels, these are {height}x{width}")]
    TooSmall {
        /// The architecture.
        spec: String,
        /// The smallest side that it takes.
        smallest: i64,
        /// Image height.
        height: i64,
        /// Image width.
        width: i64,
    },
    /// Tensors that do not fit the network.
    #[error("the parameters do not fit {spec}: {}", differences.join("; "))]
    State {
        /// The architecture.
        spec: String,
        /// One entry per missing, unexpected or differing tensor, sorted by name.
        differences: Vec<String>,
    },
    /// A file could not be read or written, or is not what it should be.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A checkpoint whose tensors do not fit the architecture in its own header.
    #[error("{} cannot be loaded", path.display())]
    Checkpoint {
        /// Which file.
        path: PathBuf,
        /// What does not fit.
        #[source]
        source: Box<ModelError>,
    },
    /// A TorchScript model runs, but not on every batch, or it does not return one logit per class.
    #[error("{} is not usable as a classifier of images {shape:?}: {reason}", path.display())]
    NotAClassifier {
        /// Which file.
        path: PathBuf,
        /// `[C, H, W]` of the images that it was tried on.
        shape: [i64; 3],
        /// What is wrong, and what to write in Python.
        reason: String,
    },
    /// libtorch refused a TorchScript file or failed to run it.
    #[error("{} cannot be used as a TorchScript classifier: {reason}", path.display())]
    TorchScript {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}
