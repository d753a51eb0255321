use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};

use crate::{FileError, read, utf8::BYTE_ORDER_MARK, write_atomically};

/// Writes `value` as indented JSON with a line feed at the end, whole or not at all.
///
/// # Errors
/// [`FileError::Io`].
///
/// # Panics
/// If `value` cannot be written as JSON: a map whose keys are not texts.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), FileError> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("our types serialize to JSON");
    bytes.push(b'\n');
    write_atomically(path, &bytes)
}

/// Reads JSON, which may begin with a byte order mark.
///
/// # Errors
/// [`FileError::Io`], or [`FileError::Format`] with line and column.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let bytes = read(path)?;
    let json = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes);
    serde_json::from_slice(json).map_err(|error| FileError::format(path, "JSON", error.to_string()))
}
