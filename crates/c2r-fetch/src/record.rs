//! What a downloaded folder remembers of its archive, and whether it is still as it was.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use c2r_archive::Unpacked;
use c2r_experiment::DataFile;
use c2r_files::FileError;
use serde::{Deserialize, Serialize};

use crate::{Digests, Event, Expected, FetchError, Source, Watch, digests_of_file};

/// In the dataset's folder. `c2r` reads it, too, and every result says if a hash was accepted by hand.
const RECORD: &str = ".c2r-download.json";
/// Next to it, as `sha256sum` writes it.
const FILES: &str = ".c2r-download.sha256";
const SCHEMA_VERSION: u32 = 1;

/// Where a folder comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    schema_version: u32,
    /// Name in the registry.
    dataset: String,
    /// The archive's name.
    pub archive: String,
    /// Address or path.
    source: String,
    /// Length of the archive.
    bytes: u64,
    /// Of the archive.
    pub sha256: String,
    /// What the registry promised, where something else was accepted by hand.
    pub accepted_instead_of: Option<String>,
    /// Number of files that were unpacked.
    pub files: usize,
    /// Their bytes together.
    pub unpacked_bytes: u64,
}

impl Record {
    pub(crate) fn new(
        dataset: &str,
        archive: &DataFile,
        expected: &Expected,
        source: &Source,
        found: &Digests,
        unpacked: &Unpacked,
    ) -> Self {
        let promised = || match (&expected.sha256, &expected.md5) {
            (Some(sha256), _) => format!("sha256 {sha256}"),
            (None, Some(md5)) => format!("md5 {md5}"),
            (None, None) => "nothing".into(),
        };
        Self {
            schema_version: SCHEMA_VERSION,
            dataset: dataset.to_owned(),
            archive: archive.name.clone(),
            source: source.to_string(),
            bytes: found.bytes,
            sha256: found.sha256.clone(),
            accepted_instead_of: (!expected.matches(found)).then(promised),
            files: unpacked.files.len(),
            unpacked_bytes: unpacked.bytes(),
        }
    }

    /// The archive, and whether it was accepted by hand.
    pub fn origin(&self) -> String {
        match &self.accepted_instead_of {
            Some(promised) => {
                format!("{}: SHA-256 {} accepted by hand instead of {promised}", self.archive, self.sha256)
            }
            None => self.archive.clone(),
        }
    }

    /// Writes record and list of files into `folder`.
    pub(crate) fn write(&self, folder: &Path, unpacked: &Unpacked) -> io::Result<()> {
        let lines: String = unpacked
            .files
            .iter()
            .map(|file| format!("{}  {}\n", hex::encode(file.sha256), file.path.display()))
            .collect();
        fs::write(folder.join(FILES), lines)?;
        fs::write(folder.join(RECORD), serde_json::to_string_pretty(self)? + "\n")
    }

    /// The record in `folder`, if there is one.
    ///
    /// # Errors
    /// [`FetchError::Record`] if it is there and cannot be used.
    pub fn read(folder: &Path) -> Result<Option<Self>, FetchError> {
        let path = folder.join(RECORD);
        if !path.exists() {
            return Ok(None);
        }
        let damaged = |reason: String| FetchError::Record { path: path.clone(), reason };
        let record: Self =
            serde_json::from_slice(&c2r_files::read(&path)?).map_err(|error| damaged(error.to_string()))?;
        if record.schema_version != SCHEMA_VERSION {
            return Err(damaged(format!("schema_version {} is not known", record.schema_version)));
        }
        Ok(Some(record))
    }

    /// Reads every file again. Returns what is not as it was unpacked, one line each.
    ///
    /// # Errors
    /// [`FetchError`] if the list of files cannot be read, or the caller asked to stop.
    pub fn differences(&self, folder: &Path, watch: &mut Watch<'_>) -> Result<Vec<String>, FetchError> {
        let path = folder.join(FILES);
        let text = fs::read_to_string(&path).map_err(FileError::io("read", &path))?;
        let (mut problems, mut known, mut bytes) = (Vec::new(), BTreeSet::new(), 0);
        for (number, line) in (1..).zip(text.lines()) {
            let Some((hash, name)) = line.split_once("  ") else {
                return Err(FetchError::Record { path, reason: format!("line {number}") });
            };
            let file = folder.join(name);
            known.insert(file.clone());
            if !file.is_file() {
                problems.push(format!("{}: gone", file.display()));
                continue;
            }
            let mut quiet = Watch { interrupted: watch.interrupted, on_event: &mut |_| {} };
            let found = digests_of_file(&file, &mut quiet)?;
            bytes += found.bytes;
            (watch.on_event)(Event::Progress(bytes));
            if found.sha256 != hash {
                problems.push(format!("{}: changed", file.display()));
            }
        }
        if known.len() != self.files {
            problems.push(format!("{}: lists {} files, not {}", path.display(), known.len(), self.files));
        }
        let added = files_below(folder)?.into_iter().filter(|file| !known.contains(file));
        problems.extend(added.map(|file| format!("{}: not from the archive", file.display())));
        Ok(problems)
    }
}

/// Every file below `folder` that is not hidden.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let io_error = || FileError::io("read", folder);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error())? {
        let entry = entry.map_err(io_error())?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let is_folder = entry.file_type().map_err(io_error())?.is_dir();
        if is_folder { files.extend(files_below(&entry.path())?) } else { files.push(entry.path()) }
    }
    files.sort_unstable();
    Ok(files)
}

/// Bytes of all files below `folder` that are not hidden.
///
/// # Errors
/// If a folder cannot be read.
pub fn bytes_below(folder: &Path) -> Result<u64, FileError> {
    Ok(files_below(folder)?.iter().map(|file| file.metadata().map_or(0, |data| data.len())).sum())
}
