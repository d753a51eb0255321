//! Zip archives as data: entries in memory, never unpacked to disk.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use c2r_base::artifact::ArtifactError;
use zip::{CompressionMethod, ZipArchive};

use crate::DataError;

/// Bytes that one archive may unpack to, 4 GiB: ten times the largest distilled sets of the field
/// (Tiny-ImageNet, 50 images per class, f32: 0.5 GB). Entries may overlap, so the file's size alone bounds nothing.
pub(crate) const MOST_BYTES: u64 = 4 << 30;
/// Deflate cannot do better: 258 bytes from two bits.
const LARGEST_RATIO: u64 = 1032;

/// An archive whose entries cannot grow beyond what they declare, nor beyond [`MOST_BYTES`] together.
pub(crate) struct Archive {
    path: PathBuf,
    zip: ZipArchive<BufReader<File>>,
    bytes_left: u64,
}

impl Archive {
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io(path))?;
        let zip = ZipArchive::new(BufReader::new(file))
            .map_err(|error| ArtifactError::format(path, "zip", format!("{error}; is it cut short?")))?;
        Ok(Self { path: path.to_owned(), zip, bytes_left: MOST_BYTES })
    }

    /// Names of the entries, in the order of the archive.
    pub(crate) fn names(&self) -> Vec<String> {
        // `file_names` iterates over a hash map.
        let mut names: Vec<String> = self.zip.file_names().map(str::to_owned).collect();
        names.sort_unstable();
        names
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.zip.file_names().any(|other| other == name)
    }

    /// The whole of one entry, of `expected` bytes where that is known.
    pub(crate) fn read(&mut self, name: &str, expected: Option<u64>) -> Result<Vec<u8>, DataError> {
        let path = self.path.clone();
        let wrong = |reason: String| ArtifactError::format(&path, "zip", format!("entry `{name}`: {reason}"));
        let entry = self.zip.by_name(name).map_err(|error| wrong(error.to_string()))?;
        let (size, packed) = (entry.size(), entry.compressed_size());
        if let Some(expected) = expected.filter(|&expected| expected != size) {
            return Err(wrong(format!("{size} bytes where {expected} were expected")).into());
        }
        let largest = match entry.compression() {
            CompressionMethod::Stored => packed,
            CompressionMethod::Deflated => packed.saturating_mul(LARGEST_RATIO),
            other => return Err(wrong(format!("compressed with {other}; c2r reads stored and deflated")).into()),
        };
        if size > largest {
            return Err(wrong(format!("{packed} bytes cannot unpack to the {size} that it declares")).into());
        }
        if size > self.bytes_left {
            return Err(
                wrong(format!("unpacks to {size} bytes; c2r reads at most {MOST_BYTES} from an archive")).into()
            );
        }
        self.bytes_left -= size;
        // Grows with what is really there.
        let mut bytes = Vec::new();
        let mut source = entry.take(size.saturating_add(1));
        source.read_to_end(&mut bytes).map_err(|error| wrong(error.to_string()))?;
        if bytes.len() as u64 != size {
            return Err(wrong(format!("declares {size} bytes and holds {}", bytes.len())).into());
        }
        Ok(bytes)
    }
}
