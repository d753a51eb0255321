//! Datasets that no file holds.

use ndarray::{ArrayView3, Axis};

use crate::{DataError, Dataset, DatasetSpec, Split, registry::unlisted_spec};

impl Dataset {
    /// Images in memory as a dataset called `name`, with the settings of most datasets of the registry; its classes are
    /// called 0, 1, ...
    ///
    /// `mean` and `std` are computed from the training images; a channel that never varies gets a `std` of 1 and a note.
    ///
    /// # Errors
    /// [`DataError::Split`] if the training images are empty, or there are test images of another shape or number of classes.
    pub fn in_memory(name: &str, train: Split, test: Split) -> Result<Self, DataError> {
        if train.is_empty() {
            return Err(DataError::Split("there are no training images".to_owned()));
        }
        let of = |split: &Split| (split.shape(), split.n_classes());
        if !test.is_empty() && of(&train) != of(&test) {
            let [(shape, classes), (other, others)] = [of(&train), of(&test)];
            return Err(DataError::Split(format!(
                "training images are {shape:?} in {classes} classes, test images {other:?} in {others}"
            )));
        }
        let (mean, mut std) = moments(&train);
        let mut notes = Vec::new();
        for (channel, std) in std.iter_mut().enumerate().filter(|(_, std)| **std == 0.0) {
            notes.push(format!("{name}: channel {channel} is the same in every training image; it is divided by 1"));
            *std = 1.0;
        }
        let spec = DatasetSpec::unlisted(name, train.shape(), train.n_classes(), mean, std);
        Ok(Self { spec, train, test, notes })
    }
}

impl DatasetSpec {
    /// What is known of images of `shape` (`[C, H, W]`) in `n_classes` classes that no registry lists, with the settings of
    /// most datasets: network, augmentation, radius.
    ///
    /// * `mean`, `std`: of each channel, of pixels in `[0, 1]`.
    pub fn unlisted(name: &str, shape: [i64; 3], n_classes: usize, mean: Vec<f64>, std: Vec<f64>) -> Self {
        let classes = (0..n_classes).map(|class| class.to_string()).collect();
        unlisted_spec(name.to_owned(), name.to_owned(), shape, classes, (mean, std))
    }
}

/// Mean and standard deviation of each channel, of pixels in `[0, 1]`; a deviation of 0 means one value.
pub(crate) fn moments(split: &Split) -> (Vec<f64>, Vec<f64>) {
    let of_channel = |pixels: ArrayView3<'_, u8>| {
        let mut counts = [0u64; 256];
        pixels.iter().for_each(|&value| counts[usize::from(value)] += 1);
        let moment = |power: i32| {
            let sum: f64 = counts.iter().enumerate().map(|(v, &k)| k as f64 * (v as f64 / 255.0).powi(power)).sum();
            sum / pixels.len() as f64
        };
        // Where there is one value, rounding would leave something of the difference.
        let varies = counts.iter().filter(|&&n| n > 0).count() > 1;
        (moment(1), if varies { (moment(2) - moment(1).powi(2)).max(0.0).sqrt() } else { 0.0 })
    };
    split.images().axis_iter(Axis(1)).map(of_channel).unzip()
}

#[cfg(test)]
mod tests {
    use ndarray::{Array4, arr1};

    use super::*;

    /// Two grey images, one black with a white pixel: mean 1/8 of 255, deviation sqrt(1/8 - 1/64).
    #[test]
    fn moments_are_those_of_the_training_images() {
        let mut images = Array4::zeros([2, 2, 2, 2]);
        images[[1, 0, 0, 0]] = 255u8;
        let split = Split::new(images, arr1(&[0, 1]), 2).unwrap();
        let dataset = Dataset::in_memory("mine", split.clone(), split).unwrap();
        assert_eq!(
            (dataset.spec.name.as_str(), dataset.spec.shape(), dataset.spec.classes.len()),
            ("mine", [2, 2, 2], 2)
        );
        assert!((dataset.spec.mean[0] - 0.125).abs() < 1e-12);
        assert!((dataset.spec.std[0] - (1.0f64 / 8.0 - 1.0 / 64.0).sqrt()).abs() < 1e-12);
        // The second channel is black.
        assert_eq!((dataset.spec.mean[1], dataset.spec.std[1], dataset.notes.len()), (0.0, 1.0, 1));
        let none = Split::new(Array4::zeros([0, 2, 2, 2]), arr1(&[]), 2).unwrap();
        assert!(matches!(Dataset::in_memory("none", none.clone(), none), Err(DataError::Split(_))));
        let [three, four] = [3, 4].map(|side| Split::new(Array4::zeros((1, 1, side, side)), arr1(&[0]), 2).unwrap());
        let error = Dataset::in_memory("mixed", three, four).unwrap_err().to_string();
        assert!(error.contains("training images are [1, 3, 3] in 2 classes, test images [1, 4, 4] in 2"), "{error}");
    }
}
