use serde::{Deserialize, Serialize};

/// What a trained network is: copied from the synthetic set into the checkpoint and from there into
/// every attack report, so that a table can be made from reports alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// Dataset name, e.g. `cifar10`.
    pub dataset: String,
    /// How the training images were made, e.g. `c2r`, `class-mean`, `random-real`, or `full`.
    pub method: String,
    /// The distillation profile, e.g. `faithful`, `plus`; empty for real images.
    pub profile: String,
    /// Images per class of the synthetic set; `None` where the network saw the whole training set.
    pub images_per_class: Option<usize>,
    /// Seed of the distillation; `None` where nothing was distilled.
    pub distill_seed: Option<u64>,
    /// Seed of the downstream training.
    pub train_seed: u64,
    /// Downstream protocol: `natural`, `pgd-at`, ...
    pub protocol: String,
    /// Architecture, e.g. `ConvNet-D3-W128-IN`.
    pub model: String,
    /// Number of stored training images.
    pub n_images: usize,
    /// What the training set stores beyond images and one hard label each; empty for nothing.
    pub extra_storage: String,
    /// SHA-256 of the real training split the set was made from.
    pub data_sha256: String,
    /// Reductions and oddities to print under a table, e.g. a subset of the training data.
    pub notes: Vec<String>,
}
