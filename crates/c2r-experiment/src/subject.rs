use std::fmt;

use serde::{Deserialize, Serialize};

/// What a trained network is: copied from the synthetic set into the checkpoint and from there into
/// every attack report, so that a table can be made from reports alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Which step's network this is.
    #[serde(default, skip_serializing_if = "Selection::is_last")]
    pub selection: Selection,
    /// Architecture, e.g. `ConvNet-D3-W128-IN`.
    pub model: String,
    /// Number of stored training images.
    pub n_images: usize,
    /// What the training set stores beyond images and one hard label each; empty for nothing.
    pub extra_storage: String,
    /// SHA-256 of the real training split the set was made from; empty where that is not known, as of imported sets.
    pub data_sha256: String,
    /// Reductions and oddities to print under a table, e.g. a subset of the training data.
    pub notes: Vec<String>,
}

impl Subject {
    /// The note of a network that was trained on mosaics of `formation` images per side.
    pub fn mosaic_note(formation: i64) -> String {
        format!("each stored image is a {formation}x{formation} mosaic")
    }

    /// The note of a network that was trained on the first `n` real images of each class, or, if `is_distilled`, on what was
    /// distilled from them.
    pub fn part_note(n: impl fmt::Display, is_distilled: bool) -> String {
        let how = if is_distilled { "distilled from" } else { "trained on" };
        format!("{how} the first {n} training images of each class")
    }

    /// How many real images of each class it was made from, as the notes say; `None` for all, and where that is not known.
    pub fn n_train_per_class(&self) -> Option<usize> {
        let number = |note: &String| {
            let n: usize = note.split(' ').find_map(|word| word.parse().ok())?;
            [true, false].iter().any(|&is_distilled| *note == Self::part_note(n, is_distilled)).then_some(n)
        };
        self.notes.iter().find_map(number)
    }

    /// Images per side in each stored training image, as the notes say: 1 for whole images.
    pub fn formation(&self) -> i64 {
        (2..10).find(|&formation| self.notes.contains(&Self::mosaic_note(formation))).unwrap_or(1)
    }
}

/// Which step's network a training keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// The last step's: nothing is chosen.
    #[default]
    Last,
    /// The most accurate one on a part of the real **training** images that it was not trained on.
    HeldOut,
    /// The most accurate one on the **test** images, as DD-RobustBench does it. Its test accuracies are optimistic;
    /// it is for comparison only, and every output states it.
    BestTest,
}

impl Selection {
    /// Whether nothing is chosen.
    pub fn is_last(&self) -> bool {
        *self == Self::Last
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Last => "last",
            Self::HeldOut => "held-out",
            Self::BestTest => "best-test",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_of_the_training_images_is_read_from_its_note() {
        let part = |notes: &[&str]| {
            let notes = notes.iter().map(|note| (*note).to_owned()).collect();
            Subject { notes, ..Subject::default() }.n_train_per_class()
        };
        for is_distilled in [true, false] {
            assert_eq!(part(&["7 of 9", &Subject::part_note(50, is_distilled)]), Some(50));
        }
        assert_eq!(Subject::part_note(50, true), "distilled from the first 50 training images of each class");
        assert_eq!(Subject::part_note(50, false), "trained on the first 50 training images of each class");
        assert_eq!(part(&["judged on the first 50 training images of each class"]), None);
        assert_eq!(part(&[]), None);
    }
}
