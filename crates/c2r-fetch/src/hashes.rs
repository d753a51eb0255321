use std::{fs::File, io::Read, path::Path};

use c2r_files::FileError;
use md5::Md5;
use sha2::{Digest, Sha256};

use crate::{Digests, Event, FetchError, Watch};

/// [`Digests`] of what has come so far.
#[derive(Default)]
pub(crate) struct Hashes {
    md5: Md5,
    sha256: Sha256,
    pub(crate) bytes: u64,
}

impl Hashes {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        self.sha256.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    pub(crate) fn digests(&self) -> Digests {
        Digests {
            bytes: self.bytes,
            md5: hex::encode(self.md5.clone().finalize()),
            sha256: hex::encode(self.sha256.clone().finalize()),
        }
    }

    /// Of the rest of a file.
    pub(crate) fn of(file: &mut File, path: &Path, watch: &mut Watch<'_>) -> Result<Self, FetchError> {
        let (mut hashes, mut buffer) = (Self::default(), vec![0; 1 << 20]);
        loop {
            if (watch.interrupted)() {
                return Err(FetchError::Interrupted);
            }
            match file.read(&mut buffer).map_err(FileError::io("read", path))? {
                0 => return Ok(hashes),
                n => hashes.update(&buffer[..n]),
            }
            (watch.on_event)(Event::Progress(hashes.bytes));
        }
    }
}

/// Length and hashes of a file of this machine.
///
/// # Errors
/// [`FetchError::File`] or [`FetchError::Interrupted`].
pub fn digests_of_file(path: &Path, watch: &mut Watch<'_>) -> Result<Digests, FetchError> {
    let mut file = File::open(path).map_err(FileError::io("read", path))?;
    Ok(Hashes::of(&mut file, path, watch)?.digests())
}
