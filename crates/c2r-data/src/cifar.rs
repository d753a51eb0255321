//! The binary versions of CIFAR-10 and CIFAR-100 (Krizhevsky 2009).

use std::{fs, path::Path};

use crate::{DataError, Dataset, DatasetSpec, Split, dataset};

const PIXELS: usize = 3 * 32 * 32;

/// Reads `data_batch_1..5.bin` and `test_batch.bin`: records of label, R, G, B (row-major planes).
pub(crate) fn load_cifar10(spec: DatasetSpec, folder: &Path) -> Result<Dataset, DataError> {
    check_names(&folder.join("batches.meta.txt"), &spec.classes)?;
    let (mut train, mut notes) = (Records::default(), Vec::new());
    for batch in 1..=5 {
        train.read(&folder.join(format!("data_batch_{batch}.bin")), &[10], 10_000)?;
    }
    let mut test = Records::default();
    test.read(&folder.join("test_batch.bin"), &[10], 10_000)?;
    dataset::note_subset(&mut notes, &spec, train.labels.len(), test.labels.len());
    Ok(Dataset { train: train.into_split(&spec)?, test: test.into_split(&spec)?, spec, notes })
}

/// Reads `train.bin` and `test.bin`: records of coarse label, fine label, R, G, B. The fine label counts.
pub(crate) fn load_cifar100(spec: DatasetSpec, folder: &Path) -> Result<Dataset, DataError> {
    check_names(&folder.join("fine_label_names.txt"), &spec.classes)?;
    let (mut train, mut test, mut notes) = (Records::default(), Records::default(), Vec::new());
    train.read(&folder.join("train.bin"), &[20, 100], 50_000)?;
    test.read(&folder.join("test.bin"), &[20, 100], 10_000)?;
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

    fn into_split(self, spec: &DatasetSpec) -> Result<Split, DataError> {
        Split::from_bytes(spec.shape(), spec.classes.len(), self.pixels, self.labels)
    }
}

/// A file of class names need not be there, but must agree with the registry if it is.
fn check_names(path: &Path, classes: &[String]) -> Result<(), DataError> {
    if !path.exists() {
        return Ok(());
    }
    let text = fs::read_to_string(path).map_err(DataError::io(path))?;
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
