//! Zips that hold their entries as they are, for readers that do not unpack.

use std::io::{Cursor, Write};

use zip::{CompressionMethod, ZipWriter, write::FileOptions};

/// The bytes of a zip with these entries; equal entries give equal bytes.
pub(crate) fn stored(entries: impl IntoIterator<Item = (String, Vec<u8>)>) -> std::io::Result<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        let options = FileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(bytes.len() > 1 << 31)
            // Neither the time nor the umask.
            .last_modified_time(zip::DateTime::default())
            .unix_permissions(0o644);
        zip.start_file(name, options)?;
        zip.write_all(&bytes)?;
    }
    Ok(zip.finish()?.into_inner())
}
