use std::path::PathBuf;

use crate::{DatasetSpec, Split};

/// A dataset in memory.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Name, shape, classes, normalization.
    pub spec: DatasetSpec,
    /// Training images.
    pub train: Split,
    /// Test images.
    pub test: Split,
    /// What a result on this data must say, e.g. `cifar100 train: 20000 of 50000 images (subset)`.
    pub notes: Vec<String>,
}

/// What happens while a dataset is read that a person waits for or should know. None of it changes the data.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadEvent {
    /// The contents of the cache are not used, and are made again.
    CacheDropped {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// This many images are decoded, into a file that the next call finds.
    Decoding {
        /// Images of both splits.
        n_images: usize,
        /// The file.
        cache: PathBuf,
    },
    /// This many of them are done.
    Decoded {
        /// Images so far.
        n_images: usize,
    },
    /// The decoded images cannot be kept in a file: they are decoded into memory, and the next call does it again.
    NotCached {
        /// Where they would be.
        folder: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// Notes each split that holds fewer images than published.
pub(crate) fn note_subset(notes: &mut Vec<String>, spec: &DatasetSpec, n_train: usize, n_test: usize) {
    for (split, found, published) in [("train", n_train, spec.n_train), ("test", n_test, spec.n_test)] {
        if let Some(published) = published.filter(|&published| found < published) {
            notes.push(format!("{} {split}: {found} of {published} images (subset)", spec.name));
        }
    }
}
