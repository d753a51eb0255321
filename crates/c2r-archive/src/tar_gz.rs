use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use tar::{EntryType, PaxExtensions};

use crate::{ArchiveError, ArchiveFormat, Entry, Limits, entry_path};

const FORMAT: ArchiveFormat = ArchiveFormat::TarGz;

/// tar has extended headers whose text names the next entry; longer ones name nothing that a file system could hold.
const LONGEST_EXTENSION: u64 = 64 << 10;

/// Calls `each` for every folder and file of a gzipped tar of `length` bytes.
pub(crate) fn walk(
    archive: impl Read,
    length: u64,
    top: &str,
    limits: &Limits,
    each: &mut dyn FnMut(Entry<'_>) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    // Headers and padding count, too: an archive of nothing but entries without contents is a bomb as well.
    let most = limits.bytes_for(length).saturating_add(limits.entries.saturating_mul(1024));
    let explain = |error| FORMAT.explain(error);
    let (left, exhausted) = (most, limits.too_many_bytes(length).to_string());
    let mut unpacked = tar::Archive::new(Metered { inner: MultiGzDecoder::new(archive), left, exhausted });
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
            // `Continuous` is what old tars call a file in one piece.
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
        return Err(FORMAT.damaged("it is empty"));
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

/// Passes on at most `left` bytes; more are an error with the message `exhausted`.
struct Metered<R> {
    inner: R,
    left: u64,
    exhausted: String,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let left = self.left.checked_sub(n as u64);
        self.left = left.ok_or_else(|| io::Error::other(ArchiveError::Limit(self.exhausted.clone())))?;
        Ok(n)
    }
}
