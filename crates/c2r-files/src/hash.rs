use std::{io, path::Path};

use sha2::{Digest, Sha256};

use crate::{FileError, open};

/// SHA-256 of `bytes`, 64 lower-case hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// [`sha256_hex`] of a file's bytes, read a part at a time.
///
/// # Errors
/// [`FileError::Io`], and [`FileError::NotAFile`] for a pipe or a device.
pub fn sha256_of_file(path: &Path) -> Result<String, FileError> {
    let mut hash = Sha256::new();
    io::copy(&mut open(path)?, &mut hash).map_err(FileError::io("read", path))?;
    Ok(hex::encode(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_vector() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_hex(b"abc"), abc);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(sha256_of_file(&path).unwrap(), abc);
        let missing = sha256_of_file(&folder.path().join("missing")).unwrap_err();
        assert!(matches!(missing, FileError::Io { action: "read", .. }), "{missing}");
    }
}
