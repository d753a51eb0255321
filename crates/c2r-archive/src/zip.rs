use std::{
    collections::BTreeMap,
    io::{Read, Seek},
    path::{Path, PathBuf},
};

use c2r_files::FileError;
use flate2::read::DeflateDecoder;
use rawzip::{
    CompressionMethod, FileReader, RECOMMENDED_BUFFER_SIZE, ReaderAt, ZipArchive, ZipArchiveEntryWayfinder,
    ZipFileHeaderRecord, ZipLocator,
};

use crate::{ArchiveError, ArchiveFormat, Entry, Limits, entry_path};

const FORMAT: ArchiveFormat = ArchiveFormat::Zip;

/// A zip whose members are read whole, by name, in any order: files of arrays rather than folders of pictures.
///
/// What the archive says about itself is checked and not trusted: a member's size must be within [`Limits::ratio`] of its
/// packed size, the members that are read must be within [`Limits::bytes`] together (members may overlap in the file, so
/// its length bounds nothing), memory grows only with bytes that were really unpacked, and checksums must be right.
/// Member names are data here, never paths.
pub struct ZipReader {
    archive: ZipArchive<Box<dyn ReaderAt + Send>>,
    members: BTreeMap<String, Member>,
    limits: Limits,
    bytes_left: u64,
}

#[derive(Clone, Copy)]
struct Member {
    position: ZipArchiveEntryWayfinder,
    method: CompressionMethod,
}

impl ZipReader {
    /// Opens a file and reads its directory.
    ///
    /// # Errors
    /// [`ArchiveError`] if it cannot be read, is not a whole zip, names a member twice or has more than
    /// [`Limits::entries`].
    pub fn open(path: &Path, limits: Limits) -> Result<Self, ArchiveError> {
        let file = c2r_files::open(path)?;
        let length = file.metadata().map_err(FileError::io("read", path))?.len();
        Self::new(Box::new(FileReader::from(file)), length, limits)
    }

    /// As [`ZipReader::open`], for a zip in memory.
    ///
    /// # Errors
    /// As [`ZipReader::open`].
    pub fn from_bytes(bytes: Vec<u8>, limits: Limits) -> Result<Self, ArchiveError> {
        let length = bytes.len() as u64;
        Self::new(Box::new(bytes), length, limits)
    }

    fn new(source: Box<dyn ReaderAt + Send>, length: u64, limits: Limits) -> Result<Self, ArchiveError> {
        let mut buffer = vec![0; RECOMMENDED_BUFFER_SIZE];
        let located = ZipLocator::new().locate_in_reader(source, &mut buffer, length);
        let archive = located.map_err(|(_, error)| FORMAT.damaged(error))?;
        let mut members = BTreeMap::new();
        for_each_header(&archive, &limits, &mut buffer, |header| {
            let name = header.file_path().as_bytes().to_vec();
            let name = String::from_utf8(name)
                .map_err(|error| ArchiveError::refused(error.as_bytes(), "has a name that is not UTF-8"))?;
            let member = Member { position: header.wayfinder(), method: header.compression_method() };
            match members.insert(name.clone(), member) {
                Some(_) => Err(ArchiveError::refused(name.as_bytes(), "is in the archive twice")),
                None => Ok(()),
            }
        })?;
        Ok(Self { archive, members, limits, bytes_left: limits.bytes })
    }

    /// The members' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// Whether there is a member of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// All bytes of a member, which must be `expected` many where that is given.
    ///
    /// # Errors
    /// [`ArchiveError`] if there is no such member, it is damaged, has another size, is compressed in another way than
    /// stored or deflated, or exceeds the [`Limits`].
    pub fn read(&mut self, name: &str, expected: Option<u64>) -> Result<Vec<u8>, ArchiveError> {
        let wrong = |reason: String| ArchiveError::refused(name.as_bytes(), reason);
        let Some(&Member { position, method }) = self.members.get(name) else {
            return Err(wrong("is not in the archive".into()));
        };
        let (size, packed) = (position.uncompressed_size_hint(), position.compressed_size_hint());
        if let Some(expected) = expected.filter(|&expected| expected != size) {
            return Err(wrong(format!("has {size} bytes where {expected} were expected")));
        }
        let largest = match method {
            CompressionMethod::Store => packed,
            CompressionMethod::Deflate => packed.saturating_mul(self.limits.ratio),
            other => return Err(wrong(format!("is compressed with {other:?}; c2r reads stored and deflated"))),
        };
        if size > largest {
            return Err(wrong(format!("cannot unpack from {packed} bytes to the {size} that it declares")));
        }
        self.bytes_left = self.bytes_left.checked_sub(size).ok_or_else(|| {
            let most = self.limits.bytes;
            wrong(format!("unpacks to {size} bytes; c2r reads at most {most} from an archive"))
        })?;
        // The vector grows with what is really there.
        let mut bytes = Vec::new();
        let unpack = |contents: &mut dyn Read| contents.take(size.saturating_add(1)).read_to_end(&mut bytes);
        with_contents(&self.archive, position, method, unpack)
            .and_then(|read| read.map_err(|error| FORMAT.damaged(error)))
            .map_err(|error| wrong(format!("cannot be read: {error}")))?;
        if bytes.len() as u64 != size {
            return Err(wrong(format!("declares {size} bytes and holds {}", bytes.len())));
        }
        Ok(bytes)
    }
}

/// Calls `each` for every folder and file of a zip of `length` bytes. Its directory is read twice, because it may be too
/// large to keep.
pub(crate) fn walk(
    archive: impl Read + Seek,
    length: u64,
    top: &str,
    limits: &Limits,
    each: &mut dyn FnMut(Entry<'_>) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut buffer = vec![0; RECOMMENDED_BUFFER_SIZE];
    let archive = ZipArchive::from_seekable(archive, &mut buffer).map_err(|error| FORMAT.damaged(error))?;
    let mut bytes = 0u64;
    for_each_header(&archive, limits, &mut buffer, |header| {
        check(header, top)?;
        bytes = bytes.saturating_add(header.uncompressed_size_hint());
        if bytes > limits.bytes_for(length) {
            return Err(limits.too_many_bytes(length));
        }
        Ok(())
    })?;
    // The sum of the sizes was checked, and a file that turns out longer than its size is an error when it is read.
    for_each_header(&archive, limits, &mut buffer, |header| {
        let (path, is_folder) = check(header, top)?;
        if is_folder {
            return each(Entry::Folder(&path));
        }
        let (position, method) = (header.wayfinder(), header.compression_method());
        with_contents(&archive, position, method, |contents| each(Entry::File(&path, contents)))?
    })
}

/// Where an entry is unpacked, and whether it is a folder.
fn check(header: &ZipFileHeaderRecord<'_>, top: &str) -> Result<(PathBuf, bool), ArchiveError> {
    const TYPE: u32 = 0o170_000;
    let name = header.file_path().as_bytes().to_vec();
    let refused = |reason: &str| Err(ArchiveError::refused(&name, reason));
    let path = entry_path(&name, top).map_err(|reason| ArchiveError::refused(&name, reason))?;
    let is_folder = match (header.is_dir(), header.mode().value() & TYPE) {
        // rawzip adds the bit of a folder to the type of whatever ends in a slash.
        (true, 0o040_000 | 0o140_000) | (false, 0o040_000) => true,
        (false, 0 | 0o100_000) => false,
        (_, 0o120_000 | 0o160_000) => return refused("is a link; only files and folders are unpacked"),
        _ => return refused("is a device, pipe or socket; only files and folders are unpacked"),
    };
    if !is_folder && path.components().count() < 2 {
        return refused("is a file in place of the top folder");
    }
    if !matches!(header.compression_method(), CompressionMethod::Store | CompressionMethod::Deflate) {
        return refused("is packed in another way than stored or deflated");
    }
    Ok((path, is_folder))
}

/// Calls `each` for every entry of the directory; there must be as many as the archive says, and not more than allowed.
fn for_each_header<R: ReaderAt>(
    archive: &ZipArchive<R>,
    limits: &Limits,
    buffer: &mut [u8],
    mut each: impl FnMut(&ZipFileHeaderRecord<'_>) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let promised = archive.entries_hint();
    limits.check_entries(promised)?;
    let mut n = 0;
    let mut headers = archive.entries(buffer);
    loop {
        match headers.next_entry() {
            Ok(Some(header)) => {
                n += 1;
                limits.check_entries(n)?;
                each(&header)?;
            }
            Ok(None) => break,
            // torch.save writes a zip64 record after the directory, also where the directory does not need one.
            Err(_) if n == promised => break,
            Err(error) => return Err(FORMAT.damaged(error)),
        }
    }
    if n != promised || n == 0 {
        return Err(FORMAT.damaged(format!("it promises {promised} entries and has {n}")));
    }
    Ok(())
}

/// Calls `use_contents` with a reader of an entry's unpacked bytes, which checks their number and checksum at the end.
fn with_contents<R: ReaderAt, T>(
    archive: &ZipArchive<R>,
    position: ZipArchiveEntryWayfinder,
    method: CompressionMethod,
    use_contents: impl FnOnce(&mut dyn Read) -> T,
) -> Result<T, ArchiveError> {
    let contents = archive.get_entry(position).map_err(|error| FORMAT.damaged(error))?;
    Ok(if method == CompressionMethod::Deflate {
        use_contents(&mut contents.verifying_reader(DeflateDecoder::new(contents.reader())))
    } else {
        use_contents(&mut contents.verifying_reader(contents.reader()))
    })
}
