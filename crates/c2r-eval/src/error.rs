use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use c2r_base::artifact::ArtifactError;
use c2r_experiment::ExperimentError;

/// Why a table cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A file could not be read or written, or is not what it should be.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A record contradicts itself.
    #[error("{}: {reason}", path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A report of attacks from which no table can be made.
    #[error("{}: a table cannot take this report: it was made {why}", path.display())]
    NotACell {
        /// The report.
        path: PathBuf,
        /// What its command did or did not say.
        why: NoCell,
    },
    /// Several files are broken; each is named.
    #[error("{} result files cannot be used:{}", .0.len(), listed(.0))]
    Several(Vec<EvalError>),
    /// An experiment file cannot be used.
    #[error(transparent)]
    Experiment(#[from] ExperimentError),
    /// No result was found.
    #[error("no attack.json was found under {}", .0.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", "))]
    Nothing(Vec<PathBuf>),
    /// Two results that would be in one table were not measured on the same thing.
    #[error("{} and {} cannot be in one table: {what} differ ({a} and {b})", a_path.display(), b_path.display())]
    Mixed {
        /// What differs, plural.
        what: &'static str,
        /// First file.
        a_path: PathBuf,
        /// Its value.
        a: String,
        /// Second file.
        b_path: PathBuf,
        /// Its value.
        b: String,
    },
    /// Two results that would be in one table were made from different real images.
    #[error(
        "{} and {} cannot be in one table: the real training data (SHA-256) differ ({a} and {b})", a_path.display(), b_path.display()
    )]
    TrainingData {
        /// First file.
        a_path: PathBuf,
        /// Its hash, and the number of images where the two differ in it.
        a: String,
        /// Second file.
        b_path: PathBuf,
        /// Its hash.
        b: String,
        /// Whether the two say that they took different numbers of images of each class.
        other_number: bool,
    },
    /// Results that would be in one table were measured on different numbers of test images.
    #[error(
        "the results of {section} have different numbers of test images and cannot be in one table:{}",
        by_number(files)
    )]
    TestImages {
        /// Dataset and protocol of the table.
        section: String,
        /// The files by their number of test images.
        files: BTreeMap<usize, Vec<String>>,
    },
    /// Two results of different training sets or networks that call themselves the same: method, profile, images per class and
    /// seeds.
    #[error(
        "{} and {} come from different {alike} under one name ({name}, the same seeds): {differ}", a.display(), b.display()
    )]
    OneName {
        /// Method and images per class.
        name: String,
        /// What shows it.
        differ: String,
        /// What bears the name.
        alike: Alike,
        /// First file.
        a: PathBuf,
        /// Second file.
        b: PathBuf,
    },
    /// The same measurement twice; counting it as two runs would make the deviation too small.
    #[error(
        "{} and {} hold the same measurement ({what}); leave one of them out, or it would count as two runs",
        a.display(), b.display()
    )]
    Twice {
        /// Which measurement.
        what: String,
        /// First file.
        a: PathBuf,
        /// Second file.
        b: PathBuf,
    },
    /// A report of another network than the one that is there now, or than another report of the same run is of.
    #[error(
        "{} was measured on another network than {} (SHA-256 {measured:.12}... and {now:.12}...)",
        report.display(), other.display()
    )]
    OtherNetwork {
        /// The report.
        report: PathBuf,
        /// Hash of its network.
        measured: String,
        /// The network's file, or the other report.
        other: PathBuf,
        /// Hash of the other network.
        now: String,
    },
    /// The same network as two runs, which would make the deviation too small.
    #[error(
        "{} and {} measured the same network (SHA-256 {sha256:.12}...), but would count as two runs ({seeds})",
        a.display(), b.display()
    )]
    OneNetwork {
        /// Hash of its file.
        sha256: String,
        /// The seeds that tell the runs apart.
        seeds: String,
        /// First file.
        a: PathBuf,
        /// Second file.
        b: PathBuf,
    },
    /// The baseline is not a method of the table.
    #[error("the results have no method `{wanted}` to compare with; they have {methods}")]
    NoBaseline {
        /// What was asked for.
        wanted: String,
        /// Which methods there are.
        methods: String,
    },
}

/// Why a report is not a cell of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoCell {
    /// It attacked the images of a file, not those of a dataset.
    Inputs,
    /// Nothing is known about its network.
    Unknown,
    /// Its attacks ran on what others had left.
    Suite,
}

impl fmt::Display for NoCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inputs => "with `--inputs`, but a table is about the test images of a dataset (`--dataset`)",
            Self::Unknown => "without `--ipc` for a model that c2r did not train",
            Self::Suite => "without `--each`",
        })
    }
}

/// Why a report makes no record, or a record contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RecordError(pub(crate) String);

/// What bears one name in [`EvalError::OneName`]; how it could be told apart depends on that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Alike {
    /// Sets that c2r distilled.
    Sets,
    /// Sets of which at least one was distilled from real images that are not known, as imported sets are.
    ImportedSets,
    /// Networks that c2r did not train.
    Networks,
}

impl fmt::Display for Alike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sets | Self::ImportedSets => "sets",
            Self::Networks => "networks",
        })
    }
}

impl EvalError {
    pub(crate) fn record(path: &Path, reason: impl Into<String>) -> Self {
        Self::Record { path: path.to_owned(), reason: reason.into() }
    }
}

fn listed(errors: &[EvalError]) -> String {
    errors.iter().map(|error| format!("\n  {error}")).collect()
}

/// Files that are named of those with one number of test images.
const NAMED_FILES: usize = 3;

fn by_number(files: &BTreeMap<usize, Vec<String>>) -> String {
    let line = |(n, files): (&usize, &Vec<String>)| {
        let more = match files.len().saturating_sub(NAMED_FILES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("\n  {n} images: {}{more}", files[..files.len().min(NAMED_FILES)].join(", "))
    };
    files.iter().map(line).collect()
}
