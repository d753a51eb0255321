use std::{
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use flate2::read::{DeflateDecoder, MultiGzDecoder};
use rawzip::{CompressionMethod, RECOMMENDED_BUFFER_SIZE, ZipArchive};
use tar::{EntryType, PaxExtensions};

use crate::{ArchiveError, entry_path, error::shown};

/// What an archive may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Files and folders.
    pub entries: u64,
    /// Bytes of all files together.
    pub bytes: u64,
    /// Unpacked bytes for each byte of the archive, beyond the first MiB.
    pub ratio: u64,
}

impl Limits {
    /// Twice what the largest archive of `data/datasets.toml` has (Tiny-ImageNet, about 120,000 entries), and more than
    /// any of them unpacks to. Pictures hardly shrink: a ratio of 20 is a bomb.
    pub const DATASET: Self = Self { entries: 250_000, bytes: 4 << 30, ratio: 20 };

    /// The most bytes that an archive of `length` bytes may unpack to.
    fn bytes_for(&self, length: u64) -> u64 {
        const FREE: u64 = 1 << 20;
        self.bytes.min(length.saturating_mul(self.ratio).saturating_add(FREE))
    }

    fn check_entries(&self, n: u64) -> Result<(), ArchiveError> {
        if n <= self.entries {
            return Ok(());
        }
        Err(ArchiveError::Limit(format!("the archive has {n} entries or more; at most {} are unpacked", self.entries)))
    }

    fn too_many_bytes(&self, length: u64) -> ArchiveError {
        let (most, ratio) = (self.bytes_for(length), self.ratio);
        ArchiveError::Limit(format!(
            "the archive ({length} bytes) unpacks to more than {most} bytes; at most {} bytes and {ratio} times its \
             own size are unpacked",
            self.bytes
        ))
    }
}

/// Which kind of archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A gzipped tar: `.tar.gz`, `.tgz`.
    TarGz,
    /// A zip with stored or deflated files.
    Zip,
}

impl Format {
    /// The format that a file name promises.
    pub fn of_name(name: &str) -> Option<Self> {
        let ends = |end: &str| name.ends_with(end);
        if ends(".tar.gz") || ends(".tgz") { Some(Self::TarGz) } else { ends(".zip").then_some(Self::Zip) }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::TarGz => "tar.gz",
            Self::Zip => "zip",
        }
    }

    pub(crate) fn damaged(self, reason: impl ToString) -> ArchiveError {
        ArchiveError::Damaged { format: self.name(), reason: shown(reason.to_string().as_bytes()) }
    }

    /// An error from reading an archive's contents.
    pub(crate) fn explain(self, error: io::Error) -> ArchiveError {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Exhausted>()) {
            Some(Exhausted(message)) => ArchiveError::Limit(message.clone()),
            None => self.damaged(error),
        }
    }
}

/// One entry that passed every check.
pub enum Entry<'a> {
    /// A folder, relative to where the archive is unpacked.
    Folder(&'a Path),
    /// A file and its contents. Its bytes are checked while they are read: an error means that the archive is damaged
    /// or breaks a limit.
    File(&'a Path, &'a mut dyn Read),
}

/// Calls `each` for every folder and file of an archive, in the archive's order.
///
/// * `archive`: read from its start, whatever its position.
/// * `top`: the one folder that every entry must lie in.
/// * `each`: must read a file to its end; what it returns as an error ends the walk.
///
/// The names of a zip are all checked before `each` is called for the first time; a tar.gz is read once, so there `each`
/// may be called before a later entry is refused.
///
/// # Errors
/// [`ArchiveError`]: damaged, refused, beyond the limits, or what `each` returned.
pub fn walk(
    format: Format,
    mut archive: impl Read + Seek,
    top: &str,
    limits: &Limits,
    each: &mut dyn FnMut(Entry<'_>) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let seek = |archive: &mut dyn SeekRead, to| archive.seek(to).map_err(|error| format.damaged(error));
    let length = seek(&mut archive, SeekFrom::End(0))?;
    seek(&mut archive, SeekFrom::Start(0))?;
    match format {
        Format::TarGz => walk_tar_gz(archive, length, top, limits, each),
        Format::Zip => walk_zip(archive, length, top, limits, each),
    }
}

trait SeekRead: Read + Seek {}
impl<T: Read + Seek> SeekRead for T {}

/// tar has extended headers whose text names the next entry; longer ones name nothing that a file system could hold.
const LONGEST_EXTENSION: u64 = 64 << 10;

fn walk_tar_gz(
    archive: impl Read,
    length: u64,
    top: &str,
    limits: &Limits,
    each: &mut dyn FnMut(Entry<'_>) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let format = Format::TarGz;
    // Headers and padding count, too: an archive of nothing but entries without contents is a bomb as well.
    let most = limits.bytes_for(length).saturating_add(limits.entries.saturating_mul(1024));
    let explain = |error| format.explain(error);
    let exhausted = limits.too_many_bytes(length).to_string();
    let mut unpacked = tar::Archive::new(Metered { inner: MultiGzDecoder::new(archive), left: most, exhausted });
    let (mut n, mut bytes) = (0u64, 0u64);
    let mut long_name: Option<Vec<u8>> = None;
    // Raw: tar's own handling of extended headers reads them whole, however long they are.
    for entry in unpacked.entries().map_err(explain)?.raw(true) {
        let mut entry = entry.map_err(explain)?;
        n += 1;
        limits.check_entries(n)?;
        let kind = entry.header().entry_type();
        let own_name = entry.header().path_bytes().into_owned();
        if let EntryType::GNULongName | EntryType::XHeader | EntryType::XGlobalHeader = kind {
            let size = entry.header().entry_size().map_err(explain)?;
            if size > LONGEST_EXTENSION {
                return Err(ArchiveError::refused(&own_name, format!("is an extended header of {size} bytes")));
            }
            let mut text = Vec::new();
            entry.read_to_end(&mut text).map_err(explain)?;
            if let Some(name) = name_in_extension(kind, text).map_err(|why| ArchiveError::refused(&own_name, why))? {
                long_name = Some(name);
            }
            continue;
        }
        let name = long_name.take().unwrap_or(own_name);
        let path = entry_path(&name, top).map_err(|reason| ArchiveError::refused(&name, reason))?;
        match kind {
            EntryType::Directory => each(Entry::Folder(&path))?,
            // `Continuous` is what old tars call a file that lies in one piece.
            EntryType::Regular | EntryType::Continuous if path.components().count() > 1 => {
                bytes = bytes.saturating_add(entry.header().entry_size().map_err(explain)?);
                if bytes > limits.bytes_for(length) {
                    return Err(limits.too_many_bytes(length));
                }
                each(Entry::File(&path, &mut entry))?;
            }
            _ => {
                return Err(ArchiveError::refused(
                    &name,
                    format!("is {}; only files and folders are unpacked", kind_name(kind)),
                ));
            }
        }
    }
    // To the end: only there does gzip say whether its checksum is right.
    io::copy(&mut unpacked.into_inner(), &mut io::sink()).map_err(explain)?;
    if n == 0 {
        return Err(format.damaged("it is empty"));
    }
    Ok(())
}

/// The name that an extended header gives the next entry.
fn name_in_extension(kind: EntryType, mut text: Vec<u8>) -> Result<Option<Vec<u8>>, String> {
    if kind == EntryType::GNULongName {
        text.truncate(text.iter().position(|&byte| byte == 0).unwrap_or(text.len()));
        return Ok(Some(text));
    }
    let mut name = None;
    for record in PaxExtensions::new(&text) {
        let record = record.map_err(|error| format!("is an extended header that cannot be read ({error})"))?;
        match record.key_bytes() {
            b"path" if kind == EntryType::XHeader => name = Some(record.value_bytes().to_vec()),
            // With these, two programs may read one archive in two ways.
            key @ (b"path" | b"size") => {
                return Err(format!("is an extended header that changes the {}", key.escape_ascii()));
            }
            key if key.starts_with(b"GNU.sparse") => return Err("describes a sparse file".into()),
            _ => {}
        }
    }
    Ok(name)
}

fn kind_name(kind: EntryType) -> String {
    match kind {
        EntryType::Link => "a hard link".into(),
        EntryType::Symlink | EntryType::GNULongLink => "a link".into(),
        EntryType::Char | EntryType::Block => "a device".into(),
        EntryType::Fifo => "a pipe".into(),
        EntryType::GNUSparse => "a sparse file".into(),
        EntryType::Regular | EntryType::Continuous => "a file in place of the top folder".into(),
        other => format!("of the type {}", [other.as_byte()].escape_ascii()),
    }
}

fn walk_zip(
    archive: impl Read + Seek,
    length: u64,
    top: &str,
    limits: &Limits,
    each: &mut dyn FnMut(Entry<'_>) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let format = Format::Zip;
    let mut buffer = vec![0; RECOMMENDED_BUFFER_SIZE];
    let archive = ZipArchive::from_seekable(archive, &mut buffer).map_err(|error| format.damaged(error))?;
    let check = |entry: &rawzip::ZipFileHeaderRecord<'_>| -> Result<(PathBuf, bool), ArchiveError> {
        const TYPE: u32 = 0o170_000;
        let name = entry.file_path().as_bytes().to_vec();
        let path = entry_path(&name, top).map_err(|reason| ArchiveError::refused(&name, reason))?;
        let is_folder = match (entry.is_dir(), entry.mode().value() & TYPE) {
            // rawzip adds the bit of a folder to the type of whatever ends in a slash.
            (true, 0o040_000 | 0o140_000) | (false, 0o040_000) => true,
            (false, 0 | 0o100_000) => false,
            (_, 0o120_000 | 0o160_000) => {
                return Err(ArchiveError::refused(&name, "is a link; only files and folders are unpacked"));
            }
            _ => {
                let reason = "is a device, pipe or socket; only files and folders are unpacked";
                return Err(ArchiveError::refused(&name, reason));
            }
        };
        if !is_folder && path.components().count() < 2 {
            return Err(ArchiveError::refused(&name, "is a file in place of the top folder"));
        }
        if !matches!(entry.compression_method(), CompressionMethod::Store | CompressionMethod::Deflate) {
            return Err(ArchiveError::refused(&name, "is packed in another way than stored or deflated"));
        }
        Ok((path, is_folder))
    };
    let (mut n, mut bytes) = (0u64, 0u64);
    limits.check_entries(archive.entries_hint())?;
    let mut entries = archive.entries(&mut buffer);
    while let Some(entry) = entries.next_entry().map_err(|error| format.damaged(error))? {
        n += 1;
        limits.check_entries(n)?;
        check(&entry)?;
        bytes = bytes.saturating_add(entry.uncompressed_size_hint());
        if bytes > limits.bytes_for(length) {
            return Err(limits.too_many_bytes(length));
        }
    }
    if n != archive.entries_hint() || n == 0 {
        return Err(format.damaged(format!("it promises {} entries and has {n}", archive.entries_hint())));
    }
    // The sum of the sizes was checked, and a file that turns out longer than its size is an error when it is read.
    let mut entries = archive.entries(&mut buffer);
    while let Some(entry) = entries.next_entry().map_err(|error| format.damaged(error))? {
        let (path, is_folder) = check(&entry)?;
        if is_folder {
            each(Entry::Folder(&path))?;
            continue;
        }
        let deflated = entry.compression_method() == CompressionMethod::Deflate;
        let contents = archive.get_entry(entry.wayfinder()).map_err(|error| format.damaged(error))?;
        if deflated {
            each(Entry::File(&path, &mut contents.verifying_reader(DeflateDecoder::new(contents.reader()))))?;
        } else {
            each(Entry::File(&path, &mut contents.verifying_reader(contents.reader())))?;
        }
    }
    Ok(())
}

/// Passes on at most `left` bytes; more are an error that says `exhausted`.
struct Metered<R> {
    inner: R,
    left: u64,
    exhausted: String,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Exhausted(String);

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let left = self.left.checked_sub(n as u64);
        self.left = left.ok_or_else(|| io::Error::other(Exhausted(self.exhausted.clone())))?;
        Ok(n)
    }
}
