use std::{io, path::Path};

use crate::{FileError, read};

/// What some editors and programs put before a text in UTF-8.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// How texts in UTF-16 begin.
const UTF16: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];

/// Reads a text in UTF-8, without the byte order mark that it may begin with.
///
/// # Errors
/// [`FileError::Io`] if it cannot be read or is not UTF-8.
///
/// ```
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("names.txt");
/// std::fs::write(&path, "\u{feff}airplane\n")?;
/// assert_eq!(c2r_files::read_text(&path)?, "airplane\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn read_text(path: &Path) -> Result<String, FileError> {
    let mut bytes = read(path)?;
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    let is_utf16 = UTF16.iter().any(|mark| bytes.starts_with(mark));
    String::from_utf8(bytes).map_err(|error| {
        let reason = if is_utf16 {
            "it is UTF-16; save it as UTF-8".to_owned()
        } else {
            format!("byte {} is not UTF-8; save it as UTF-8", error.utf8_error().valid_up_to())
        };
        FileError::io("read", path)(io::Error::new(io::ErrorKind::InvalidData, reason))
    })
}

#[cfg(test)]
mod tests {
    use std::{error::Error, fs};

    use super::*;

    #[test]
    fn marks_are_left_out_and_other_encodings_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("names.txt");
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read_text(&path)
        };
        assert_eq!(read(b"\xef\xbb\xbfa\xef\xbb\xbfb").unwrap(), "a\u{feff}b");
        assert_eq!(read(b"").unwrap(), "");
        for (bytes, part) in
            [(&b"\xff\xfea\0"[..], "UTF-16"), (b"\xfe\xff\0a", "UTF-16"), (b"ab\xe9", "byte 2 is not UTF-8")]
        {
            let error = read(bytes).unwrap_err();
            assert!(error.source().unwrap().to_string().contains(part), "{error}: {:?}", error.source());
            assert!(error.to_string().contains("names.txt"));
        }
        fs::remove_file(&path).unwrap();
        assert!(read_text(&path).is_err());
    }
}
