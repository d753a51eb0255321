use tch::{Device, Kind, Tensor};

/// Pixels so little outside `[0, 1]` are rounding, of `x * std + mean` for example, and are clamped: 8 times the step from
/// 1.0 to the next f32.
const ROUNDING: f64 = 8.0 * f32::EPSILON as f64;

/// Images with their labels, checked once: what attacks and evaluations take.
#[derive(Debug)]
pub struct LabelledImages {
    images: Tensor,
    labels: Tensor,
    n_clamped: usize,
}

/// What to write so that images have a dtype that is taken.
const fn as_images(kind: Kind) -> &'static str {
    match kind {
        Kind::Half | Kind::BFloat16 | Kind::Double => "images.float()",
        _ => "images.to(torch.uint8) for pixels in 0..=255, images.float() for pixels in [0, 1]",
    }
}

/// Why a pair of tensors is not a set of labelled images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Not `[N, C, H, W]`.
    #[error("images must have shape [N, C, H, W], got {0:?}")]
    Shape(Vec<i64>),
    /// Neither u8 nor f32.
    #[error("images must be f32 in [0, 1] or u8 in 0..=255, got {0:?}; in Python, write {advice}", advice = as_images(*.0))]
    ImageKind(Kind),
    /// Not `[N]` for N images.
    #[error("labels must have shape [{expected}], one per image, got {got:?}")]
    LabelShape {
        /// Number of images.
        expected: i64,
        /// Shape of the labels.
        got: Vec<i64>,
    },
    /// Not i64.
    #[error("labels must be i64, got {0:?}; in Python, write labels.long()")]
    LabelKind(Kind),
    /// NaN or infinite pixel.
    #[error("sample {sample} has a pixel that is not finite ({value})")]
    NotFinite {
        /// First offending sample.
        sample: i64,
        /// Its value.
        value: f64,
    },
    /// Pixel outside `[0, 1]`.
    #[error(
        "sample {sample} has a pixel of {value}, outside [0, 1]: images must be pixels, not normalized values (normalization belongs inside the model) and not 0..255 as floats"
    )]
    OutOfRange {
        /// First offending sample.
        sample: i64,
        /// Its value.
        value: f64,
    },
    /// Label below 0.
    #[error("sample {sample} has label {label}; labels start at 0")]
    NegativeLabel {
        /// First offending sample.
        sample: i64,
        /// Its label.
        label: i64,
    },
    /// Label outside `0..classes`.
    #[error("sample {sample} has label {label}, outside 0..={}", classes.saturating_sub(1))]
    Label {
        /// First offending sample.
        sample: i64,
        /// Its label.
        label: i64,
        /// Number of classes.
        classes: i64,
    },
    /// No images at all.
    #[error("there are no images")]
    Empty,
}

impl LabelledImages {
    /// Checks shapes, dtypes and ranges.
    ///
    /// The tensors are shared, not copied: if you change them in place afterwards, nothing checks that.
    ///
    /// * `images`: f32 `[N, C, H, W]` in `[0, 1]`, or u8 `[N, C, H, W]`, which is divided by 255. Values that are outside by
    ///   less than 1e-6, which is rounding, are clamped and counted ([`LabelledImages::n_clamped`]).
    /// * `labels`: i64 `[N]`, at least 0, on any device: they are brought to that of the images. The upper end is checked by
    ///   [`LabelledImages::check_classes`].
    ///
    /// # Errors
    /// [`ImageError`], naming the first offending sample.
    pub fn new(images: Tensor, labels: Tensor) -> Result<Self, ImageError> {
        let size = images.size();
        if size.len() != 4 {
            return Err(ImageError::Shape(size));
        }
        if size.contains(&0) {
            return Err(ImageError::Empty);
        }
        let images = match images.kind() {
            Kind::Uint8 => images.to_kind(Kind::Float) / 255.0,
            Kind::Float => images.detach(),
            other => return Err(ImageError::ImageKind(other)),
        };
        if labels.size() != [size[0]] {
            return Err(ImageError::LabelShape { expected: size[0], got: labels.size() });
        }
        if labels.kind() != Kind::Int64 {
            return Err(ImageError::LabelKind(labels.kind()));
        }
        if let Some((sample, value)) = first_where(&images, &images.isfinite().logical_not()) {
            return Err(ImageError::NotFinite { sample, value });
        }
        let beyond = |by: f64| images.lt(-by).logical_or(&images.gt(1.0 + by));
        let (outside, far) = (beyond(0.0), beyond(ROUNDING));
        if let Some((sample, value)) = first_where(&images, &far) {
            return Err(ImageError::OutOfRange { sample, value });
        }
        let n_clamped = outside.sum(Kind::Int64).int64_value(&[]) as usize;
        let images = if n_clamped > 0 { images.clamp(0.0, 1.0) } else { images };
        let labels = labels.to_device(images.device());
        if let Some((sample, label)) = first_where(&labels, &labels.lt(0)) {
            return Err(ImageError::NegativeLabel { sample, label: label as i64 });
        }
        Ok(Self { images, labels, n_clamped })
    }

    /// Number of values that were outside `[0, 1]` by float rounding and were clamped.
    pub const fn n_clamped(&self) -> usize {
        self.n_clamped
    }

    /// Checks that every label is below `classes`.
    ///
    /// # Errors
    /// [`ImageError::Label`].
    pub fn check_classes(&self, classes: i64) -> Result<(), ImageError> {
        match first_where(&self.labels, &self.labels.ge(classes)) {
            Some((sample, label)) => Err(ImageError::Label { sample, label: label as i64, classes }),
            None => Ok(()),
        }
    }

    /// f32 `[N, C, H, W]` in `[0, 1]`.
    pub const fn images(&self) -> &Tensor {
        &self.images
    }

    /// i64 `[N]`, on the images' device.
    pub const fn labels(&self) -> &Tensor {
        &self.labels
    }

    /// Number of images, at least 1.
    pub fn len(&self) -> usize {
        self.labels.size()[0] as usize
    }

    /// Always false; an empty set cannot be made.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// `[C, H, W]`.
    pub fn image_shape(&self) -> [i64; 3] {
        let size = self.images.size();
        [size[1], size[2], size[3]]
    }

    /// The same data on `device`; nothing is copied if it is there.
    pub fn to_device(&self, device: Device) -> Self {
        Self { images: self.images.to_device(device), labels: self.labels.to_device(device), n_clamped: self.n_clamped }
    }

    /// The samples at `positions`, on `device`: images f32 `[n, C, H, W]`, labels i64 `[n]`.
    ///
    /// # Panics
    /// If a position is not below [`LabelledImages::len`].
    pub fn select(&self, positions: &[usize], device: Device) -> (Tensor, Tensor) {
        let index: Vec<i64> = positions.iter().map(|&position| position as i64).collect();
        let index = Tensor::from_slice(&index).to_device(self.images.device());
        (self.images.index_select(0, &index).to_device(device), self.labels.index_select(0, &index).to_device(device))
    }
}

/// The first sample of `values` with a true entry in `mask`, and its value there.
fn first_where(values: &Tensor, mask: &Tensor) -> Option<(i64, f64)> {
    if mask.any().int64_value(&[]) == 0 {
        return None;
    }
    let flat = mask.flatten(0, -1).to_kind(Kind::Uint8).argmax(0, false).int64_value(&[]);
    let per_sample = values.numel() as i64 / values.size()[0];
    Some((flat / per_sample, values.flatten(0, -1).double_value(&[flat])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(value: f32) -> Tensor {
        let images = Tensor::full([3, 1, 2, 2], 0.5, (Kind::Float, Device::Cpu));
        let _ = images.get(1).get(0).get(1).get(0).fill_(f64::from(value));
        images
    }

    #[test]
    fn errors_name_the_first_offending_sample() {
        let labels = || Tensor::from_slice(&[0i64, 1, 2]);
        let error = |images, labels| LabelledImages::new(images, labels).unwrap_err();
        assert!(matches!(error(images(1.5), labels()), ImageError::OutOfRange { sample: 1, value: 1.5 }));
        assert!(
            matches!(error(images(f32::NAN), labels()), ImageError::NotFinite { sample: 1, value } if value.is_nan())
        );
        assert!(matches!(error(images(0.5).view([3, 4]), labels()), ImageError::Shape(shape) if shape == [3, 4]));
        let double = error(images(0.5).to_kind(Kind::Double), labels());
        assert!(matches!(double, ImageError::ImageKind(Kind::Double)));
        assert!(double.to_string().ends_with("got Double; in Python, write images.float()"), "{double}");
        let whole = error(images(0.5).to_kind(Kind::Int64), labels());
        assert!(whole.to_string().contains("images.to(torch.uint8) for pixels in 0..=255"), "{whole}");
        let two = error(images(0.5), Tensor::from_slice(&[0i64, 1]));
        assert!(matches!(two, ImageError::LabelShape { expected: 3, got } if got == [2]));
        let narrow = error(images(0.5), Tensor::from_slice(&[0i32, 1, 2]));
        assert!(matches!(narrow, ImageError::LabelKind(Kind::Int)));
        assert_eq!(narrow.to_string(), "labels must be i64, got Int; in Python, write labels.long()");
        let negative = error(images(0.5), Tensor::from_slice(&[0i64, -1, 2]));
        assert!(matches!(negative, ImageError::NegativeLabel { sample: 1, label: -1 }));
        let none = Tensor::zeros([0, 1, 2, 2], (Kind::Float, Device::Cpu));
        assert!(matches!(error(none, labels()), ImageError::Empty));
        let set = LabelledImages::new(images(0.5), labels()).unwrap();
        let above = set.check_classes(2).unwrap_err();
        assert!(matches!(above, ImageError::Label { sample: 2, label: 2, classes: 2 }));
    }

    /// f32 has steps of 1.2e-7 above 1.0. A value of 1e-5 outside is not a rounding error.
    #[test]
    fn rounding_is_clamped_and_counted() {
        let set = |value: f32| LabelledImages::new(images(value), Tensor::from_slice(&[0i64, 1, 2]));
        for (given, kept) in [(1.0f32.next_up(), 1.0), (1.0000005, 1.0), (-1e-7, 0.0), (-0.0, 0.0)] {
            let set = set(given).unwrap();
            assert_eq!(set.n_clamped(), usize::from(given != kept), "{given}");
            assert_eq!(set.images().double_value(&[1, 0, 1, 0]), f64::from(kept), "{given}");
        }
        for given in [1.00001f32, -1e-5] {
            assert!(matches!(set(given), Err(ImageError::OutOfRange { sample: 1, .. })), "{given}");
        }
    }

    #[test]
    fn bytes_are_divided_by_255() {
        let bytes = Tensor::from_slice(&[0u8, 51, 255, 102]).view([1, 1, 2, 2]);
        let set = LabelledImages::new(bytes, Tensor::from_slice(&[0i64])).unwrap();
        assert_eq!(Vec::<f32>::try_from(set.images().flatten(0, -1)).unwrap(), [0.0, 51.0 / 255.0, 1.0, 102.0 / 255.0]);
    }
}
