//! Decoded images, kept in one file and mapped into memory: decoding takes minutes, and the pixels may not fit.
//!
//! The file is safetensors (`train.images`, `train.labels`, `test.images`, `test.labels`), so that other programs can
//! read it. Its header names what it was made from and the SHA-256 of each split; all of it is checked before use.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use c2r_files::{AtomicFile, FileError, remove_abandoned_parts};
use rayon::prelude::*;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    DataError, DatasetSpec, LoadEvent, Split,
    decode::{self, RESAMPLING, Size},
    listing::Listing,
    pixels::{self, Pixels},
};

/// Beside the dataset's folder.
const FOLDER: &str = ".c2r-cache";
const SCHEMA_VERSION: &str = "1";
/// Images that are decoded before they are written: 50 MB at 128x128.
const CHUNK: usize = 1024;
/// A file that a killed process left is removed when nothing has been written to it for so long.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// Stands where a hash will be.
const NO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The splits of a dataset of image files, from the cache or decoded into it.
///
/// * `folder`: the dataset's folder; the cache is next to it.
/// * `size`: what the images must be or become; the size of `spec`.
///
/// # Errors
/// [`DataError`] of the first image that cannot be decoded. Without a cache that
/// can be read and written the images are decoded into memory.
pub(crate) fn splits(
    spec: &DatasetSpec,
    folder: &Path,
    size: Size,
    [train, test]: [Listing; 2],
    on_event: &mut dyn FnMut(LoadEvent),
) -> Result<[Split; 2], DataError> {
    let source = folder.file_name().unwrap_or_default().to_string_lossy();
    let name = format!("{}-{}x{}-{source}.safetensors", spec.base_name(), spec.height, spec.width);
    let cache = Cache {
        path: folder.with_file_name(FOLDER).join(name),
        key: key(spec, folder, size, [&train, &test])?,
        shape: spec.shape(),
        n_classes: spec.classes.len(),
    };
    match cache.read() {
        Ok(splits) => return Ok(splits),
        Err(Unusable::Missing) => {}
        Err(reason) => on_event(LoadEvent::CacheDropped { path: cache.path.clone(), reason: reason.to_string() }),
    }
    let n_images = train.paths.len() + test.paths.len();
    on_event(LoadEvent::Decoding { n_images, cache: cache.path.clone() });
    match cache.write(size, [&train, &test], on_event) {
        Ok(()) => cache.read().map_err(|reason| DataError::Io {
            path: cache.path.clone(),
            source: io::Error::other(format!("what was written just now cannot be used: {reason}")),
        }),
        Err(WriteError::Data(error)) => Err(error),
        Err(WriteError::Cache(error)) => {
            let folder = cache.path.with_file_name("");
            on_event(LoadEvent::NotCached { folder, reason: error.to_string() });
            let read = |listing: Listing| listing.read(spec.shape(), spec.classes.len(), size);
            Ok([read(train)?.0, read(test)?.0])
        }
    }
}

/// SHA-256 of everything that the pixels follow from: how they are made, and name, length, time of change and label of
/// each file. Contents are not read: that would take as long as decoding.
fn key(spec: &DatasetSpec, folder: &Path, size: Size, listings: [&Listing; 2]) -> Result<String, DataError> {
    let mut hash = Sha256::new();
    let how = if matches!(size, Size::Resize(..)) { RESAMPLING } else { "as they are" };
    hash.update(format!("{SCHEMA_VERSION}\n{}\n{:?}\n{how}\n{:?}\n", spec.name, spec.shape(), spec.classes));
    for listing in listings {
        let lines: Result<Vec<String>, DataError> = listing
            .paths
            .par_iter()
            .zip(&listing.labels)
            .map(|(path, label)| {
                let data = path.metadata().map_err(DataError::io(path))?;
                let changed =
                    data.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
                let name = path.strip_prefix(folder).unwrap_or(path).display();
                Ok(format!("{label} {} {} {name}\n", data.len(), changed.as_nanos()))
            })
            .collect();
        hash.update(format!("{} images\n", listing.paths.len()));
        lines?.iter().for_each(|line| hash.update(line));
    }
    Ok(hex::encode(hash.finalize()))
}

struct Cache {
    path: PathBuf,
    key: String,
    /// `[C, H, W]`.
    shape: [i64; 3],
    n_classes: usize,
}

/// Why what is in the cache is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("it is not there")]
    Missing,
    #[error("it was made from other files, or by another version of c2r")]
    Stale,
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// Why nothing was put into the cache.
enum WriteError {
    Data(DataError),
    Cache(io::Error),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Cache(error)
    }
}

impl From<FileError> for WriteError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Io { source, .. } => Self::Cache(source),
            other => Self::Cache(io::Error::other(other)),
        }
    }
}

impl Cache {
    /// Both splits, after a look at every byte.
    fn read(&self) -> Result<[Split; 2], Unusable> {
        let damaged = |reason: &dyn std::fmt::Display| Unusable::Damaged(reason.to_string());
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unusable::Missing),
            other => other.map_err(|error| damaged(&error))?,
        };
        let map = pixels::map(&file).map_err(|error| damaged(&error))?;
        let (length, metadata) = SafeTensors::read_metadata(&map).map_err(|error| damaged(&error))?;
        let texts = metadata.metadata().clone().unwrap_or_default();
        let text = |name: &str| texts.get(name).map(String::as_str).unwrap_or_default();
        if text("schema_version") != SCHEMA_VERSION || text("key") != self.key {
            return Err(Unusable::Stale);
        }
        let start = 8 + length;
        let range = |name: &str| -> Result<(std::ops::Range<usize>, usize), Unusable> {
            let info = metadata.info(name).ok_or_else(|| damaged(&format!("it has no {name}")))?;
            let [begin, end] = [info.data_offsets.0, info.data_offsets.1].map(|at| start.saturating_add(at));
            Ok((begin..end, info.shape.first().copied().unwrap_or(0)))
        };
        let map = Arc::new(map);
        let split = |name: &str| -> Result<Split, Unusable> {
            let (images, n) = range(&format!("{name}.images"))?;
            let (labels, n_labels) = range(&format!("{name}.labels"))?;
            let [bytes, end] = [&labels, &images].map(|range| range.end);
            if bytes > map.len() || end > map.len() || n != n_labels {
                return Err(damaged(&"its parts do not fit its length"));
            }
            let labels =
                map[labels].chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes"))).collect();
            let pixels = Pixels::Mapped(map.clone(), images.clone());
            let split =
                Split::from_pixels(self.shape, self.n_classes, pixels, labels).map_err(|error| damaged(&error))?;
            // Through the file, not the map: a mapped page stays counted as ours until the system needs it.
            let hashed = File::open(&self.path).and_then(|file| hash_of_part(&split, file, images));
            let found = hashed.map_err(|error| damaged(&error))?;
            if found != text(&format!("{name}.sha256")) {
                return Err(damaged(&format!("the SHA-256 of {name} is {found}, not what it was")));
            }
            split.set_sha256(found);
            Ok(split)
        };
        let (train, test) = rayon::join(|| split("train"), || split("test"));
        Ok([train?, test?])
    }

    /// Decodes everything into a new file, a part at a time, and puts it in place of the old one.
    fn write(
        &self,
        size: Size,
        listings: [&Listing; 2],
        on_event: &mut dyn FnMut(LoadEvent),
    ) -> Result<(), WriteError> {
        // One that cannot be removed, such as another user's, does no harm.
        let _ = remove_abandoned_parts(self.path.parent().unwrap_or(Path::new(".")), ABANDONED);
        let mut file = AtomicFile::create(&self.path)?;
        let n_images = listings.map(|listing| listing.paths.len());
        file.write_all(&self.header(n_images, [NO_HASH, NO_HASH]))?;
        for listing in listings {
            let labels: Vec<u8> = listing.labels.iter().flat_map(|label| label.to_le_bytes()).collect();
            file.write_all(&labels)?;
        }
        let (mut hashes, mut done) = (Vec::new(), 0);
        let length = self.shape.iter().product::<i64>() as usize;
        let mut buffer = vec![0; length * CHUNK];
        for listing in listings {
            let mut hash = Split::start_of_hash(self.shape, self.n_classes, (&listing.labels).into());
            for paths in listing.paths.chunks(CHUNK) {
                let pixels = &mut buffer[..paths.len() * length];
                decode::read_into(paths, size, pixels).map_err(WriteError::Data)?;
                hash.update(&*pixels);
                file.write_all(pixels)?;
                done += paths.len();
                on_event(LoadEvent::Decoded { n_images: done });
            }
            hashes.push(hex::encode(hash.finalize()));
        }
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&self.header(n_images, [&hashes[0], &hashes[1]]))?;
        Ok(file.finish_read_only()?)
    }

    /// Length, JSON and padding. As long with one pair of hashes as with another.
    fn header(&self, n_images: [usize; 2], hashes: [&str; 2]) -> Vec<u8> {
        let [c, h, w] = self.shape;
        let length = (c * h * w) as usize;
        let mut at = 0;
        let mut tensor = |dtype: &str, shape: Value, bytes: usize| {
            at += bytes;
            json!({ "dtype": dtype, "shape": shape, "data_offsets": [at - bytes, at] })
        };
        // Labels first: eight bytes wide, they must begin where eight divides.
        let [n_train, n_test] = n_images;
        let header = json!({
            "__metadata__": {
                "schema_version": SCHEMA_VERSION,
                "key": self.key,
                "train.sha256": hashes[0],
                "test.sha256": hashes[1],
            },
            "train.labels": tensor("I64", json!([n_train]), 8 * n_train),
            "test.labels": tensor("I64", json!([n_test]), 8 * n_test),
            "train.images": tensor("U8", json!([n_train, c, h, w]), n_train * length),
            "test.images": tensor("U8", json!([n_test, c, h, w]), n_test * length),
        });
        let mut json = header.to_string().into_bytes();
        json.resize(json.len().next_multiple_of(8), b' ');
        [&(json.len() as u64).to_le_bytes(), json.as_slice()].concat()
    }
}

/// [`Split::sha256`] of a split whose pixels are the bytes `range` of a file.
fn hash_of_part(split: &Split, mut file: File, range: std::ops::Range<usize>) -> io::Result<String> {
    let mut hash = Split::start_of_hash(split.shape(), split.n_classes(), split.labels());
    file.seek(SeekFrom::Start(range.start as u64))?;
    io::copy(&mut BufReader::with_capacity(1 << 20, file).take(range.len() as u64), &mut hash)?;
    Ok(hex::encode(hash.finalize()))
}
