//! The embedded dataset: UCI optical digits.

use crate::{DataError, Dataset, DatasetSpec, Split};

pub(crate) const CSV: &str = include_str!("../../../data/digits/optdigits.csv");

/// Reads the embedded CSV. Values 0..=16 become bytes by `round(v * 255 / 16)`; the last 20 % of each
/// class (rounded to the nearest count), in file order, are the test split.
pub(crate) fn load(spec: DatasetSpec) -> Dataset {
    let (pixels, labels) = parse_digits(CSV).expect("the embedded file is tested");
    let all = Split::from_bytes(spec.shape(), spec.classes.len(), pixels, labels).expect("the embedded file is tested");
    let mut is_test = vec![false; all.len()];
    for class in 0..all.n_classes() {
        let positions = all.class_positions(class);
        let n_test = (2 * positions.len() + 5) / 10;
        positions.iter().rev().take(n_test).for_each(|&position| is_test[position] = true);
    }
    let (test, train): (Vec<usize>, Vec<usize>) = (0..all.len()).partition(|&position| is_test[position]);
    Dataset { train: all.select(&train), test: all.select(&test), spec, notes: Vec::new() }
}

/// Reads the layout of the UCI archive: lines of 64 values from 0 to 16 (row by row) and a digit.
///
/// Returns the bytes, `round(v * 255 / 16)`, 64 of each image, and the labels, `0..10`.
///
/// # Errors
/// [`DataError::Line`], naming the embedded file, the line and what was expected there.
pub fn parse_digits(csv: &str) -> Result<(Vec<u8>, Vec<i64>), DataError> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(csv.as_bytes());
    for (index, record) in reader.records().enumerate() {
        let wrong = |expected: &str, found: String| DataError::Line {
            path: "data/digits/optdigits.csv".into(),
            line: index + 1,
            expected: expected.into(),
            found,
        };
        let record = record.map_err(|error| wrong("65 numbers", error.to_string()))?;
        if record.len() != 65 {
            return Err(wrong("65 numbers", format!("{} fields", record.len())));
        }
        for (column, field) in record.iter().enumerate() {
            let largest = if column < 64 { 16 } else { 9 };
            match field.parse::<u32>() {
                Ok(value) if value > largest => return Err(wrong(&format!("at most {largest}"), format!("{value}"))),
                Ok(value) if column < 64 => pixels.push(((value * 255 + 8) / 16) as u8),
                Ok(label) => labels.push(i64::from(label)),
                Err(_) => return Err(wrong("a whole number", format!("`{field}`"))),
            }
        }
    }
    Ok((pixels, labels))
}
