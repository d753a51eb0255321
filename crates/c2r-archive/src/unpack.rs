use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use c2r_files::FileError;
use sha2::{Digest, Sha256};

use crate::{ArchiveError, ArchiveFormat, Entry, Limits, walk};

/// How the names of unfinished folders begin.
pub const WORKSHOP: &str = ".c2r-unpacking-";

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Every file, in the archive's order.
    pub files: Vec<UnpackedFile>,
}

impl Unpacked {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// One file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnpackedFile {
    /// Relative to the unpacked folder.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: [u8; 32],
}

/// Unpacks an archive: `into` appears with every file in it, or not at all.
///
/// * `archive`: the file.
/// * `top`: the one folder that the archive holds; it becomes `into`.
/// * `into`: must not exist; the folder above must. The files are written into a hidden folder next to it, whose name
///   begins with [`WORKSHOP`], and renamed in one step. Only a killed process leaves such a folder behind.
/// * `finish`: is called with the hidden folder and what is in it before the rename, to add files of its own.
/// * `keep_going`: is called now and then with the bytes written; `false` stops.
///
/// Files get the permissions 0644, folders 0755, whatever the archive says.
///
/// # Errors
/// [`ArchiveError`]; nothing is left then.
pub fn unpack(
    format: ArchiveFormat,
    archive: &Path,
    top: &str,
    into: &Path,
    limits: &Limits,
    finish: impl FnOnce(&Path, &Unpacked) -> io::Result<()>,
    keep_going: &mut dyn FnMut(u64) -> bool,
) -> Result<Unpacked, ArchiveError> {
    let source = File::open(archive).map_err(FileError::io("read", archive))?;
    let parent = into.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let workshop =
        tempfile::Builder::new().prefix(WORKSHOP).tempdir_in(parent).map_err(FileError::io("create", into))?;
    let root = workshop.path().join(top);
    fs::create_dir(&root).map_err(FileError::io("create", &root))?;

    let mut unpacked = Unpacked::default();
    let mut written = 0;
    walk(format, source, top, limits, &mut |entry| {
        if !keep_going(written) {
            return Err(ArchiveError::Stopped);
        }
        match entry {
            Entry::Folder(path) => {
                let folder = workshop.path().join(path);
                Ok(c2r_files::create_folder(&folder)?)
            }
            Entry::File(path, contents) => {
                let file = write(format, &workshop.path().join(path), contents)?;
                written += file.bytes;
                let path = path.strip_prefix(top).expect("every entry is in the top folder").to_owned();
                unpacked.files.push(UnpackedFile { path, ..file });
                Ok(())
            }
        }
    })?;
    if unpacked.files.is_empty() {
        return Err(format.damaged("it holds no file"));
    }
    finish(&root, &unpacked).map_err(FileError::io("write into", &root))?;
    fs::rename(&root, into).map_err(FileError::io("rename the unpacked folder to", into))?;
    Ok(unpacked)
}

fn write(format: ArchiveFormat, path: &Path, contents: &mut dyn Read) -> Result<UnpackedFile, ArchiveError> {
    if let Some(folder) = path.parent() {
        c2r_files::create_folder(folder)?;
    }
    let mut file = File::create_new(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            ArchiveError::refused(name.as_bytes(), "is in the archive twice")
        }
        _ => FileError::io("create", path)(error).into(),
    })?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 64 << 10]);
    loop {
        let n = match contents.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(format.explain(error)),
        };
        hash.update(&buffer[..n]);
        file.write_all(&buffer[..n]).map_err(FileError::io("write", path))?;
        bytes += n as u64;
    }
    Ok(UnpackedFile { path: PathBuf::new(), bytes, sha256: hash.finalize().into() })
}
