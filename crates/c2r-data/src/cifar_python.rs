//! The Python versions of CIFAR-10 and CIFAR-100 (Krizhevsky 2009), which torchvision downloads: pickles with an array of
//! NumPy and a list of labels.

use std::{fs, path::Path};

use c2r_base::artifact::ArtifactError;

use crate::{
    DataError,
    pickle::{Id, Pickle, Value},
};

/// A key with labels, and the number of classes.
pub(crate) type Labels = (&'static str, i64);

/// Reads a batch, a dictionary with `data`, u8 `[N, 3072]` (the planes R, G, B of each image), and lists of labels.
///
/// * `labels`: all lists that must be there; the last one is returned.
///
/// Returns the pixels, image by image, and the labels.
///
/// # Errors
/// [`DataError`] naming the file and what was expected.
pub(crate) fn read_batch(
    path: &Path,
    labels: &[Labels],
    n_pixels: usize,
    at_most: usize,
) -> Result<(Vec<u8>, Vec<i64>), DataError> {
    let bytes = fs::read(path).map_err(DataError::io(path))?;
    let (wrong, batch) = open(path, &bytes)?;
    let array = match batch.entry("data").map(|id| batch.get(id)) {
        Some(Value::Array(array)) => array,
        _ => return Err(wrong("expected an array of NumPy as `data`".to_owned())),
    };
    let pixels = batch.data(array);
    let n = array.shape.first().copied().unwrap_or_default();
    let is_right = array.shape == [n, n_pixels] && array.descr.ends_with("u1") && !array.fortran_order;
    if !is_right || n == 0 || n.checked_mul(n_pixels) != Some(pixels.len()) {
        return Err(wrong(format!(
            "expected `data` as bytes, u1 [N, {n_pixels}] row by row; found {} {:?} with {} bytes",
            array.descr,
            array.shape,
            pixels.len()
        )));
    }
    if n > at_most {
        return Err(wrong(format!("expected at most {at_most} images, found {n}")));
    }
    let mut last = Vec::new();
    for &(key, n_classes) in labels {
        let found = match batch.entry(key).map(|id| batch.get(id)) {
            Some(Value::List(items)) => {
                batch.whole_numbers(items).map_err(|reason| wrong(format!("`{key}`: {reason}")))
            }
            _ => Err(wrong(format!("expected a list as `{key}`"))),
        }?;
        if found.len() != n {
            return Err(wrong(format!("`{key}` has {} labels for {n} images", found.len())));
        }
        if let Some(record) = found.iter().position(|label| !(0..n_classes).contains(label)) {
            let found = found[record];
            return Err(wrong(format!("`{key}`, record {record}: expected a label below {n_classes}, found {found}")));
        }
        last = found;
    }
    Ok((pixels.to_vec(), last))
}

/// The names of the classes in `batches.meta` or `meta`, where the file is there.
///
/// # Errors
/// As [`read_batch`].
pub(crate) fn read_names(path: &Path, key: &str) -> Result<Option<Vec<String>>, DataError> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = fs::read(path).map_err(DataError::io(path))?;
    let (wrong, meta) = open(path, &bytes)?;
    let Some(Value::List(items)) = meta.entry(key).map(|id| meta.get(id)) else {
        return Err(wrong(format!("expected a list of names as `{key}`")));
    };
    let name = |&id: &Id| meta.get(id).text().map(str::to_owned);
    let names: Option<Vec<String>> = items.iter().map(name).collect();
    names.map(Some).ok_or_else(|| wrong(format!("expected texts in `{key}`")))
}

/// The pickle in a file, and what makes errors about it.
fn open<'a>(path: &'a Path, bytes: &'a [u8]) -> Result<(impl Fn(String) -> DataError + 'a, Pickle<'a>), DataError> {
    let wrong = |reason: String| DataError::from(ArtifactError::format(path, "CIFAR (Python version)", reason));
    let pickle = Pickle::parse(bytes).map_err(wrong)?;
    Ok((wrong, pickle))
}
