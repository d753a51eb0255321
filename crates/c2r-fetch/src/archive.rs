use std::{
    fs,
    path::{Path, PathBuf},
};

use c2r_archive::{ArchiveError, ArchiveFormat, Limits, Unpacked};
use c2r_experiment::{DataFile, DatasetEntry};
use c2r_files::FileError;

use crate::{Digests, Event, Expected, FetchError, Patience, Record, Source, Watch, digests_of_file, download};

/// An archive of a dataset, and the data folder that it is for.
#[derive(Debug, Clone, Copy)]
pub struct Archive<'a> {
    /// What the registry says about the dataset.
    pub dataset: &'a DatasetEntry,
    /// One of its archives.
    pub file: &'a DataFile,
    /// The data folder, which must exist.
    pub data: &'a Path,
}

impl Archive<'_> {
    /// The folder that the archive becomes.
    pub fn folder(&self) -> PathBuf {
        self.data.join(&self.file.folder)
    }

    /// Where it is while it comes.
    pub fn part(&self) -> PathBuf {
        self.data.join(format!("{}.part", self.file.name))
    }

    /// Where it is kept if it is not what was expected.
    pub fn rejected(&self) -> PathBuf {
        self.data.join(format!("{}.rejected", self.file.name))
    }

    /// What the registry promises.
    fn expected(&self) -> Expected {
        let DataFile { bytes, md5, sha256, .. } = self.file.clone();
        Expected { bytes, md5, sha256 }
    }

    /// The archive on this machine, and what it is: it is downloaded, or read where it is if it is here.
    ///
    /// * `accepted`: take a file of this SHA-256 whatever the registry promises, also one that was rejected before.
    ///
    /// # Errors
    /// [`FetchError`]; [`FetchError::Rejected`] if it is not what was promised. What came of it is then kept.
    pub fn fetch(
        &self,
        source: &Source,
        accepted: Option<&str>,
        patience: &Patience,
        watch: &mut Watch<'_>,
    ) -> Result<(PathBuf, Digests), FetchError> {
        let by_hand = |hash: &str| Expected { sha256: Some(hash.to_owned()), ..Expected::default() };
        let expected = accepted.map_or_else(|| self.expected(), by_hand);
        let (path, found) = match source {
            Source::File(path) => (path.clone(), digests_of_file(path, watch)?),
            Source::Url(url) => {
                self.make_room(accepted.is_some(), watch)?;
                (self.part(), download(url, &self.part(), &expected, patience, watch)?)
            }
        };
        if expected.matches(&found) {
            return Ok((path, found));
        }
        let kept = match source {
            Source::Url(_) if fs::rename(&path, self.rejected()).is_ok() => self.rejected(),
            _ => path,
        };
        let (name, from) = (self.file.name.clone(), source.clone());
        Err(FetchError::Rejected { name, from, expected: Box::new(expected), found: Box::new(found), kept })
    }

    /// Takes up or deletes what was rejected before, and checks that the disk has space for the rest.
    fn make_room(&self, take_rejected: bool, watch: &mut Watch<'_>) -> Result<(), FetchError> {
        let (part, rejected) = (self.part(), self.rejected());
        if rejected.is_file() {
            if take_rejected && !part.exists() {
                fs::rename(&rejected, &part).map_err(FileError::io("rename", &rejected))?;
            } else {
                (watch.on_event)(Event::RemovingRejected(&rejected));
                c2r_files::remove_if_present(&rejected)?;
            }
        }
        let needed = self.file.bytes.map(|bytes| bytes.saturating_sub(part.metadata().map_or(0, |data| data.len())));
        match (needed, fs4::available_space(self.data)) {
            (Some(needed), Ok(free)) if free < needed => {
                let (name, folder) = (self.file.name.clone(), self.data.to_owned());
                Err(FetchError::NoSpace { name, needed, free, folder })
            }
            _ => Ok(()),
        }
    }

    /// Unpacks the archive at `path` into [`Archive::folder`], which must not exist, with a record; deletes it unless it
    /// was not downloaded.
    ///
    /// # Errors
    /// [`FetchError`]; the archive is then still there and the folder is not.
    pub fn unpack(
        &self,
        path: &Path,
        source: &Source,
        found: &Digests,
        watch: &mut Watch<'_>,
    ) -> Result<Record, FetchError> {
        let not_unpacked = |source| FetchError::NotUnpacked { path: path.to_owned(), source };
        let format = ArchiveFormat::of_name(&self.file.name).ok_or_else(|| {
            not_unpacked(ArchiveError::Limit("its name is that of neither a tar.gz nor a zip".into()))
        })?;
        let record =
            |unpacked: &Unpacked| Record::new(&self.dataset.name, self.file, &self.expected(), source, found, unpacked);
        let unpacked = c2r_archive::unpack(
            format,
            path,
            &self.file.folder,
            &self.folder(),
            &Limits::DATASET,
            |hidden, unpacked| record(unpacked).write(hidden, unpacked),
            &mut |bytes| {
                (watch.on_event)(Event::Progress(bytes));
                !(watch.interrupted)()
            },
        );
        let unpacked = unpacked.map_err(|error| match error {
            ArchiveError::Stopped => FetchError::Interrupted,
            ArchiveError::File(error) => error.into(),
            refused => not_unpacked(refused),
        })?;
        if matches!(source, Source::Url(_)) {
            c2r_files::remove_if_present(path)?;
        }
        Ok(record(&unpacked))
    }
}
