use std::{fmt, path::Path};

use c2r_experiment::DatasetFormat;
use serde::Deserialize;

use crate::registry;

/// Where the files of a dataset come from, as far as this machine has it on record.
///
/// The record is what `cargo xtask download` left in the folder; whether the files are still as they were unpacked is
/// what its `--verify` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provenance {
    /// Part of this crate.
    Embedded,
    /// Unpacked from an archive with the hash that `data/datasets.toml` lists.
    Published {
        /// Its name.
        archive: String,
        /// Its SHA-256, hexadecimal.
        sha256: String,
    },
    /// Unpacked from an archive with another hash, which was accepted by hand.
    Accepted {
        /// Its name.
        archive: String,
        /// Its SHA-256, hexadecimal.
        sha256: String,
        /// The hash it should have had, with the name of the function.
        instead_of: String,
    },
    /// Not on record: put there by hand, or by another program.
    Unknown,
}

impl Provenance {
    /// Where the dataset called `name` comes from, looked for as [`crate::load`] does.
    pub fn of(name: &str, data_dir: Option<&Path>) -> Self {
        match registry::spec(name) {
            Ok(spec) if spec.format == DatasetFormat::Digits => Self::Embedded,
            Ok(spec) => data_dir
                .and_then(|data_dir| spec.folder_in(data_dir))
                .map_or(Self::Unknown, |folder| Self::of_folder(&folder)),
            Err(_) => Self::Unknown,
        }
    }

    pub(crate) fn of_folder(folder: &Path) -> Self {
        #[derive(Deserialize)]
        struct Record {
            archive: String,
            sha256: String,
            accepted_instead_of: Option<String>,
        }
        let record = c2r_files::read_text(&folder.join(".c2r-download.json"))
            .ok()
            .and_then(|text| serde_json::from_str::<Record>(&text).ok());
        match record {
            Some(Record { archive, sha256, accepted_instead_of: Some(instead_of) }) => {
                Self::Accepted { archive, sha256, instead_of }
            }
            Some(Record { archive, sha256, accepted_instead_of: None }) => Self::Published { archive, sha256 },
            None => Self::Unknown,
        }
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("part of c2r"),
            Self::Published { archive, sha256 } => write!(f, "the published archive {archive}, sha256 {sha256}"),
            Self::Accepted { archive, sha256, instead_of } => {
                write!(f, "{archive} was accepted by hand with sha256 {sha256} instead of {instead_of}")
            }
            Self::Unknown => f.write_str("unknown: the folder has no record of `cargo xtask download`"),
        }
    }
}
