//! CIFAR-10 and CIFAR-100 (Krizhevsky 2009), in the binary or in the Python version.

use std::{fs, path::Path};

use crate::{
    DataError, Dataset, DatasetSpec, Split,
    cifar_python::{self, Labels},
    dataset,
};

const PIXELS: usize = 3 * 32 * 32;
/// Lists of labels in the Python versions.
const LABELS10: [Labels; 1] = [("labels", 10)];
const LABELS100: [Labels; 2] = [("coarse_labels", 20), ("fine_labels", 100)];

/// Whether `folder` is read as the Python version: it has not the binary file `binary`, and has `python` or is called as
/// the archive's folder.
fn is_python(folder: &Path, binary: &str, python: &str) -> bool {
    let is_called_so = ["cifar-10-batches-py", "cifar-100-python"].iter().any(|name| folder.ends_with(name));
    !folder.join(binary).exists() && (folder.join(python).exists() || is_called_so)
}

/// Reads `data_batch_1..5.bin` and `test_batch.bin`: records of label, R, G, B (row-major planes). Or, in the Python
/// version, `data_batch_1..5` and `test_batch`.
pub(crate) fn load_cifar10(spec: DatasetSpec, folder: &Path) -> Result<Dataset, DataError> {
    let (mut train, mut test) = (Records::default(), Records::default());
    let batches: Vec<String> = (1..=5).map(|batch| format!("data_batch_{batch}")).collect();
    if is_python(folder, "data_batch_1.bin", "data_batch_1") {
        check_python_names(&folder.join("batches.meta"), "label_names", &spec.classes)?;
        batches.iter().try_for_each(|name| train.read_python(&folder.join(name), &LABELS10, 10_000))?;
        test.read_python(&folder.join("test_batch"), &LABELS10, 10_000)?;
    } else {
        check_names(&folder.join("batches.meta.txt"), &spec.classes)?;
        batches.iter().try_for_each(|name| train.read(&folder.join(format!("{name}.bin")), &[10], 10_000))?;
        test.read(&folder.join("test_batch.bin"), &[10], 10_000)?;
    }
    into_dataset(spec, train, test)
}

/// Reads `train.bin` and `test.bin`: records of coarse label, fine label, R, G, B. The fine label counts. Or, in the Python
/// version, `train` and `test`.
pub(crate) fn load_cifar100(spec: DatasetSpec, folder: &Path) -> Result<Dataset, DataError> {
    let (mut train, mut test) = (Records::default(), Records::default());
    if is_python(folder, "train.bin", "train") {
        check_python_names(&folder.join("meta"), "fine_label_names", &spec.classes)?;
        train.read_python(&folder.join("train"), &LABELS100, 50_000)?;
        test.read_python(&folder.join("test"), &LABELS100, 10_000)?;
    } else {
        check_names(&folder.join("fine_label_names.txt"), &spec.classes)?;
        train.read(&folder.join("train.bin"), &[20, 100], 50_000)?;
        test.read(&folder.join("test.bin"), &[20, 100], 10_000)?;
    }
    into_dataset(spec, train, test)
}

fn into_dataset(spec: DatasetSpec, train: Records, test: Records) -> Result<Dataset, DataError> {
    let mut notes = Vec::new();
    dataset::note_subset(&mut notes, &spec, train.labels.len(), test.labels.len());
    Ok(Dataset { train: train.into_split(&spec)?, test: test.into_split(&spec)?, spec, notes })
}

#[derive(Default)]
struct Records {
    pixels: Vec<u8>,
    labels: Vec<i64>,
}

impl Records {
    /// Appends the records of one file: a byte per entry of `n_classes` (the last one is the label),
    /// then the pixels.
    fn read(&mut self, path: &Path, n_classes: &[u8], at_most: usize) -> Result<(), DataError> {
        let bytes = fs::read(path).map_err(DataError::io(path))?;
        let length = n_classes.len() + PIXELS;
        let wrong = |record: usize, offset: usize, expected: String, found: String| DataError::Bytes {
            path: path.to_owned(),
            offset: offset as u64,
            record: record as u64,
            expected,
            found,
        };
        let (n, left) = (bytes.len() / length, bytes.len() % length);
        if left > 0 || n == 0 {
            let found = format!("{left} bytes before the end of the file");
            return Err(wrong(n, n * length, format!("a record of {length} bytes"), found));
        }
        if n > at_most {
            let expected = format!("the end of the file after {at_most} records of {length} bytes");
            return Err(wrong(at_most, at_most * length, expected, format!("{} more bytes", (n - at_most) * length)));
        }
        self.pixels.reserve(n * PIXELS);
        for (record, bytes) in bytes.chunks_exact(length).enumerate() {
            let (labels, pixels) = bytes.split_at(n_classes.len());
            for (at, (&label, &n_classes)) in labels.iter().zip(n_classes).enumerate() {
                if label >= n_classes {
                    let expected = format!("a label below {n_classes}");
                    return Err(wrong(record, record * length + at, expected, label.to_string()));
                }
            }
            self.labels.push(i64::from(labels[labels.len() - 1]));
            self.pixels.extend_from_slice(pixels);
        }
        Ok(())
    }

    /// Appends the images of one file of the Python version.
    fn read_python(&mut self, path: &Path, labels: &[Labels], at_most: usize) -> Result<(), DataError> {
        let (pixels, labels) = cifar_python::read_batch(path, labels, PIXELS, at_most)?;
        self.pixels.extend(pixels);
        self.labels.extend(labels);
        Ok(())
    }

    fn into_split(self, spec: &DatasetSpec) -> Result<Split, DataError> {
        Split::from_bytes(spec.shape(), spec.classes.len(), self.pixels, self.labels)
    }
}

/// A file of class names need not be there, but must agree with the registry if it is.
fn check_names(path: &Path, classes: &[String]) -> Result<(), DataError> {
    if !path.exists() {
        return Ok(());
    }
    let text = c2r_files::read_text(path)?;
    let mut names = text.lines().map(str::trim).filter(|line| !line.is_empty());
    for (index, class) in classes.iter().enumerate() {
        let found = names.next();
        if found != Some(class) {
            return Err(DataError::Line {
                path: path.to_owned(),
                line: index + 1,
                expected: format!("class `{class}`"),
                found: found.map_or("the end of the file".into(), |name| format!("`{name}`")),
            });
        }
    }
    Ok(())
}

/// [`check_names`] of the Python version.
fn check_python_names(path: &Path, key: &str, classes: &[String]) -> Result<(), DataError> {
    match cifar_python::read_names(path, key)? {
        Some(names) if names != *classes => {
            let at = names.iter().zip(classes).position(|(found, class)| found != class);
            let at = at.unwrap_or(names.len().min(classes.len()));
            let name =
                |names: &[String]| names.get(at).map_or("no more classes".to_owned(), |name| format!("`{name}`"));
            Err(DataError::Layout {
                path: path.to_owned(),
                expected: format!("{} as class {at} in `{key}`, found {}", name(classes), name(&names)),
            })
        }
        _ => Ok(()),
    }
}
