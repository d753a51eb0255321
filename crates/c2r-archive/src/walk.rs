use std::io::{Read, Seek, SeekFrom};

use crate::{ArchiveError, ArchiveFormat, Entry, Limits, tar_gz, zip};

/// Calls `each` for every folder and file of an archive, in the archive's order.
///
/// * `archive`: read from its start, whatever its position.
/// * `top`: the one folder that every entry must be in.
/// * `each`: must read a file to its end; what it returns as an error ends the walk.
///
/// The names of a zip are all checked before `each` is called for the first time; a tar.gz is read once, so there `each`
/// may be called before a later entry is refused.
///
/// # Errors
/// [`ArchiveError`]: damaged, refused, beyond the limits, or what `each` returned.
pub fn walk(
    format: ArchiveFormat,
    mut archive: impl Read + Seek,
    top: &str,
    limits: &Limits,
    each: &mut dyn FnMut(Entry<'_>) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let length = archive.seek(SeekFrom::End(0)).map_err(|error| format.damaged(error))?;
    archive.rewind().map_err(|error| format.damaged(error))?;
    match format {
        ArchiveFormat::TarGz => tar_gz::walk(archive, length, top, limits, each),
        ArchiveFormat::Zip => zip::walk(archive, length, top, limits, each),
    }
}
