//! The readers on real images, where there are some: in the folder that C2R_DATA names, or beside the
//! repository in `../shared/data`, from where they are unpacked once into `target/test-data`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use c2r_data::{Dataset, Split, load};
use ndarray::Axis;

use crate::readers::corners;

/// A dataset's images, and whether they lie in the order of `shared/data/unpack`.
fn real(name: &str) -> Option<(Dataset, bool)> {
    if let Some(folder) = std::env::var_os("C2R_DATA") {
        match load(name, Some(Path::new(&folder))) {
            Ok(data) => return Some((data, false)),
            Err(error) => skipped(name, &error.to_string()),
        }
        return None;
    }
    match unpacked(name) {
        Ok(folder) => Some((load(name, Some(&folder)).unwrap(), true)),
        Err(reason) => {
            skipped(name, &reason);
            None
        }
    }
}

fn skipped(name: &str, reason: &str) {
    c2r_testkit::skipped(&format!("tests on real images of {name}: {reason}"));
}

/// The folder that holds `name`, unpacked under another name and renamed, so that two processes may try
/// at once and nobody sees half a dataset.
fn unpacked(name: &str) -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = root.join("target/test-data").join(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    let script = root.join("../shared/data/unpack");
    if !script.is_file() {
        return Err("neither C2R_DATA nor ../shared/data is there".into());
    }
    fs::create_dir_all(folder.parent().unwrap()).map_err(|error| error.to_string())?;
    let part = tempfile::tempdir_in(folder.parent().unwrap()).map_err(|error| error.to_string())?;
    let output = Command::new("python3").arg(script).arg(part.path()).arg(name).output();
    let output = output.map_err(|error| format!("python3: {error}"))?;
    if !output.status.success() {
        return Err(format!("unpack failed: {}", String::from_utf8_lossy(&output.stderr)));
    }
    match fs::rename(part.path(), &folder) {
        Err(error) if !folder.is_dir() => Err(error.to_string()),
        _ => Ok(folder),
    }
}

/// Corners of the first, the middle and the last image, computed with Python from the stored pictures.
fn check(split: &Split, expected: [(i64, [[u8; 3]; 4]); 3], tolerance: u8) {
    let n = split.len();
    for (position, (label, expected)) in [0, n / 2, n - 1].into_iter().zip(expected) {
        assert_eq!(split.labels()[position], label, "image {position}");
        let found = corners(split, position);
        let mut pairs = found.as_flattened().iter().zip(expected.as_flattened());
        assert!(pairs.all(|(a, b)| a.abs_diff(*b) <= tolerance), "image {position}: {found:?} is not {expected:?}");
    }
}

#[test]
fn cifar10() {
    let Some((data, golden)) = real("cifar10") else { return };
    assert_eq!((data.train.len(), data.test.len()), (50_000, 10_000));
    assert!(data.notes.is_empty());
    assert!((0..10).all(|class| data.train.class_positions(class).len() == 5000));
    assert!((0..10).all(|class| data.test.class_positions(class).len() == 1000));
    moments(&data);
    if golden {
        let train = [
            (9, [[232, 238, 212], [210, 235, 249], [130, 124, 130], [115, 107, 108]]),
            (8, [[91, 141, 169], [65, 117, 144], [39, 74, 81], [19, 48, 60]]),
            (0, [[101, 152, 218], [101, 150, 218], [105, 159, 223], [103, 157, 220]]),
        ];
        let test = [
            (2, [[254, 246, 255], [255, 255, 255], [196, 186, 237], [208, 206, 246]]),
            (6, [[12, 24, 20], [11, 18, 17], [51, 72, 92], [7, 16, 15]]),
            (0, [[177, 222, 245], [180, 218, 243], [35, 85, 155], [66, 89, 130]]),
        ];
        check(&data.train, train, 0);
        check(&data.test, test, 0);
    }
}

#[test]
fn cifar100() {
    let Some((data, golden)) = real("cifar100") else { return };
    assert_eq!(data.test.len(), 10_000);
    assert!((0..100).all(|class| data.test.class_positions(class).len() == 100));
    assert_eq!(data.notes.is_empty(), data.train.len() == 50_000);
    if golden {
        assert_eq!(data.notes, ["cifar100 train: 20000 of 50000 images (subset)"]);
        assert!((0..100).all(|class| data.train.class_positions(class).len() == 200));
        let train = [
            (18, [[156, 173, 148], [6, 8, 3], [31, 44, 17], [18, 31, 13]]),
            (27, [[24, 21, 26], [65, 66, 52], [190, 137, 118], [126, 97, 76]]),
            (2, [[109, 82, 73], [34, 27, 17], [140, 148, 163], [66, 63, 59]]),
        ];
        let test = [
            (28, [[39, 49, 53], [24, 29, 33], [76, 101, 92], [61, 81, 77]]),
            (67, [[148, 176, 164], [90, 89, 59], [99, 100, 87], [110, 124, 90]]),
            (5, [[153, 143, 138], [201, 193, 191], [214, 207, 203], [255, 249, 251]]),
        ];
        check(&data.train, train, 0);
        check(&data.test, test, 0);
    }
}

/// Two JPEG decoders may round differently: the expected values are those of libjpeg-turbo.
#[test]
fn tiny_imagenet() {
    const TOLERANCE: u8 = 0;
    let Some((data, golden)) = real("tiny-imagenet") else { return };
    assert_eq!((data.train.shape(), data.train.n_classes()), ([3, 64, 64], 200));
    assert_eq!(data.notes.is_empty(), (data.train.len(), data.test.len()) == (100_000, 10_000));
    if golden {
        assert_eq!(
            data.notes,
            [
                "tiny-imagenet train: 6000 of 100000 images (subset)",
                "tiny-imagenet test: 2000 of 10000 images (subset)"
            ]
        );
        let train = [
            (0, [[255, 136, 193], [127, 163, 161], [91, 119, 68], [72, 61, 43]]),
            (100, [[252, 252, 252], [246, 255, 248], [253, 251, 252], [12, 21, 18]]),
            (199, [[232, 229, 224], [230, 227, 222], [229, 226, 221], [228, 225, 220]]),
        ];
        // The middle one is a grey JPEG.
        let test = [
            (0, [[26, 21, 41], [161, 169, 128], [114, 107, 149], [97, 108, 48]]),
            (100, [[104; 3], [117; 3], [133; 3], [139; 3]]),
            (199, [[255, 255, 255], [112, 117, 97], [86, 85, 67], [176, 180, 166]]),
        ];
        check(&data.train, train, TOLERANCE);
        check(&data.test, test, TOLERANCE);
    }
}

/// The registry's mean and std are those of the training pixels.
fn moments(data: &Dataset) {
    for channel in 0..3 {
        let (mut n, mut sum, mut squares) = (0u64, 0u64, 0u64);
        for value in data.train.images().index_axis(Axis(1), channel).iter().map(|&value| u64::from(value)) {
            (n, sum, squares) = (n + 1, sum + value, squares + value * value);
        }
        let mean = sum as f64 / n as f64 / 255.0;
        let std = (squares as f64 / n as f64 / 255.0f64.powi(2) - mean * mean).sqrt();
        let (mean_there, std_there) = (data.spec.mean[channel], data.spec.std[channel]);
        assert!((mean - mean_there).abs() < 1e-4 && (std - std_there).abs() < 1e-4, "{channel}: {mean} {std}");
    }
}
