//! What a downloaded folder remembers of its archive, and whether it is still as it was.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use c2r_archive::Unpacked;
use serde::{Deserialize, Serialize};

use super::fetch::{self, Found, Promise, Watch, hex};
use crate::exit;

/// In the dataset's folder. `c2r` reads it, too, and says in every result when a hash was accepted by hand.
pub(super) const RECORD: &str = ".c2r-download.json";
/// Beside it, as `sha256sum` writes it.
const FILES: &str = ".c2r-download.sha256";
const SCHEMA_VERSION: u32 = 1;

/// Where a folder comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    schema_version: u32,
    /// Name in `data/datasets.toml`.
    pub(super) dataset: String,
    /// The archive's name.
    pub(super) archive: String,
    /// Address or path.
    source: String,
    /// Length of the archive.
    bytes: u64,
    /// Of the archive.
    sha256: String,
    /// What `data/datasets.toml` promised, where something else was accepted by hand.
    accepted_instead_of: Option<String>,
    /// Files that were unpacked.
    files: usize,
    /// Their bytes together.
    pub(super) unpacked_bytes: u64,
}

impl Record {
    pub(super) fn new(
        dataset: &str,
        archive: &str,
        source: &str,
        found: &Found,
        promise: &Promise,
        unpacked: &Unpacked,
    ) -> Self {
        let promised = || match (&promise.sha256, &promise.md5) {
            (Some(sha256), _) => format!("sha256 {sha256}"),
            (None, Some(md5)) => format!("md5 {md5}"),
            (None, None) => "nothing".into(),
        };
        Self {
            schema_version: SCHEMA_VERSION,
            dataset: dataset.into(),
            archive: archive.into(),
            source: source.into(),
            bytes: found.bytes,
            sha256: found.sha256.clone(),
            accepted_instead_of: (!promise.is_kept_by(found)).then(promised),
            files: unpacked.files.len(),
            unpacked_bytes: unpacked.bytes(),
        }
    }

    /// The archive, and whether it was accepted by hand.
    pub(super) fn origin(&self) -> String {
        match &self.accepted_instead_of {
            Some(promised) => {
                format!("{}: SHA-256 {} accepted by hand instead of {promised}", self.archive, self.sha256)
            }
            None => self.archive.clone(),
        }
    }

    /// Writes record and list of files into `folder`.
    pub(super) fn write(&self, folder: &Path, unpacked: &Unpacked) -> io::Result<()> {
        let lines: String =
            unpacked.files.iter().map(|file| format!("{}  {}\n", hex(&file.sha256), file.path.display())).collect();
        fs::write(folder.join(FILES), lines)?;
        fs::write(folder.join(RECORD), serde_json::to_string_pretty(self)? + "\n")
    }

    /// The record in `folder`, if there is one.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    pub(super) fn read(folder: &Path) -> anyhow::Result<Option<Self>> {
        let path = folder.join(RECORD);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let record: Self = serde_json::from_str(&text)
            .map_err(|error| exit::error(exit::DATA, format!("{} is damaged: {error}", path.display())))?;
        if record.schema_version != SCHEMA_VERSION {
            let version = record.schema_version;
            return Err(exit::error(exit::DATA, format!("{}: schema_version {version} is not known", path.display())));
        }
        Ok(Some(record))
    }

    /// Reads every file again. Returns what is not as it was unpacked, one line each.
    ///
    /// # Errors
    /// If the list of files cannot be read, or the user interrupted us.
    pub(super) fn differences(&self, folder: &Path, watch: &mut Watch<'_>) -> anyhow::Result<Vec<String>> {
        let path = folder.join(FILES);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let (mut problems, mut known, mut bytes) = (Vec::new(), BTreeSet::new(), 0);
        for (number, line) in (1..).zip(text.lines()) {
            let Some((hash, name)) = line.split_once("  ") else {
                return Err(exit::error(exit::DATA, format!("{}: line {number} is damaged", path.display())));
            };
            let file = folder.join(name);
            known.insert(file.clone());
            if !file.is_file() {
                problems.push(format!("{}: gone", file.display()));
                continue;
            }
            let progress = &mut *watch.progress;
            let mut inner = Watch { interrupted: watch.interrupted, progress: &mut |read| progress(bytes + read) };
            let found = fetch::inspect(&file, &mut inner)?;
            bytes += found.bytes;
            if found.sha256 != hash {
                problems.push(format!("{}: changed", file.display()));
            }
        }
        if known.len() != self.files {
            problems.push(format!("{}: lists {} files, not {}", path.display(), known.len(), self.files));
        }
        for file in files_below(folder)? {
            if !known.contains(&file) {
                problems.push(format!("{}: not from the archive", file.display()));
            }
        }
        Ok(problems)
    }
}

/// Every file below `folder` that is not hidden.
fn files_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.file_type()?.is_dir() { files.extend(files_below(&entry.path())?) } else { files.push(entry.path()) }
    }
    files.sort_unstable();
    Ok(files)
}

/// Bytes of all files below `folder`.
///
/// # Errors
/// If a folder cannot be read.
pub(super) fn bytes_below(folder: &Path) -> anyhow::Result<u64> {
    Ok(files_below(folder)?.iter().map(|file| file.metadata().map_or(0, |data| data.len())).sum())
}
