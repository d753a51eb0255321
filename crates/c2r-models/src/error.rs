use std::{fmt, path::PathBuf};

use c2r_base::artifact::ArtifactError;

/// Why a network could not be made, loaded or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The input description contradicts itself.
    #[error("the model input is not valid: {0}")]
    Input(String),
    /// Images too small for this many halvings.
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
    /// Names or shapes of a `state_dict` that do not fit the architecture.
    #[error("the state dict does not fit {of}: {misfit}")]
    StateDict {
        /// The architecture and the images.
        of: String,
        /// Everything that does not fit.
        misfit: Box<Misfit>,
    },
    /// A parameter of a `state_dict` that is not made of floats.
    #[error("`{name}` has dtype {kind}; parameters are floats")]
    StateDictKind {
        /// Its name in the file.
        name: String,
        /// What it is made of.
        kind: String,
    },
    /// libtorch could not make a TorchScript model of a network.
    #[error("libtorch cannot make a TorchScript model of this network: {0}")]
    Script(String),
    /// libtorch refused a TorchScript file or failed to run it.
    #[error("{} cannot be used as a TorchScript classifier: {reason}", path.display())]
    TorchScript {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// What of a `state_dict` does not fit an architecture. Both sides are complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Misfit {
    /// In the architecture and not in the file, with their shapes.
    pub missing: Vec<(String, Vec<i64>)>,
    /// In the file and not in the architecture, with their shapes.
    pub unexpected: Vec<(String, Vec<i64>)>,
    /// Name, shape in the file, shape in the architecture.
    pub shapes: Vec<(String, Vec<i64>, Vec<i64>)>,
    /// Architectures that the file fits.
    pub fits: Vec<String>,
}

impl Misfit {
    /// Whether everything fits.
    pub const fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.shapes.is_empty()
    }

    pub(crate) const fn len(&self) -> usize {
        self.missing.len() + self.unexpected.len() + self.shapes.len()
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |all: &[(String, Vec<i64>)]| {
            all.iter().map(|(name, shape)| format!("`{name}` {shape:?}")).collect::<Vec<_>>().join(", ")
        };
        let mut parts = Vec::new();
        if !self.missing.is_empty() {
            parts.push(format!("missing in the file: {}", list(&self.missing)));
        }
        if !self.unexpected.is_empty() {
            parts.push(format!("not in the architecture: {}", list(&self.unexpected)));
        }
        if !self.shapes.is_empty() {
            let one = |(name, found, expected): &(String, Vec<i64>, Vec<i64>)| {
                format!("`{name}` is {found:?} in the file and {expected:?} in the architecture")
            };
            parts.push(format!("other shapes: {}", self.shapes.iter().map(one).collect::<Vec<_>>().join(", ")));
        }
        if !self.fits.is_empty() {
            parts.push(format!("the file fits {}", self.fits.join(" or ")));
        }
        f.write_str(&parts.join("; "))
    }
}
