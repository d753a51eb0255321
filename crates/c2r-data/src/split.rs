use std::{fmt, sync::OnceLock};

use c2r_base::{LabelledImages, Seed, host::send};
use ndarray::{Array1, Array4, ArrayView1, ArrayView4};
use rand::seq::SliceRandom;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::{DataError, pixels::Pixels};

/// Images as bytes on the host, with their labels: one half (training or test) of a dataset.
///
/// The bytes are in memory, or in a mapped file that the system reads on access ([`crate::load`] says for which
/// datasets). Clones share them.
///
/// ```
/// use c2r_data::Split;
/// use ndarray::{arr1, arr2};
/// use tch::Device;
///
/// let images = arr2(&[[0, 255], [51, 102]]).into_shape_with_order((2, 1, 1, 2)).unwrap();
/// let split = Split::new(images, arr1(&[1, 0]), 2).unwrap();
/// assert_eq!(split.images()[[0, 0, 0, 1]], 255);
/// assert_eq!(split.class_positions(1), [0]);
/// let (images, labels) = split.batch(&[1], Device::Cpu);
/// assert_eq!(Vec::<f32>::try_from(images.flatten(0, -1)).unwrap(), [0.2, 0.4]);
/// assert_eq!(labels.int64_value(&[0]), 0);
/// ```
#[derive(Clone)]
pub struct Split {
    shape: [i64; 3],
    pixels: Pixels,
    labels: Array1<i64>,
    by_class: Vec<Vec<usize>>,
    sha256: OnceLock<String>,
}

impl Split {
    /// Checks that images and labels fit each other.
    ///
    /// * `images`: u8 `[N, C, H, W]`.
    /// * `labels`: i64 `[N]`, in `0..n_classes`.
    ///
    /// # Errors
    /// [`DataError::Split`], naming the first label that is out of range or the lengths that differ.
    pub fn new(images: Array4<u8>, labels: Array1<i64>, n_classes: usize) -> Result<Self, DataError> {
        let (n, c, h, w) = images.dim();
        if n != labels.len() {
            return Err(DataError::Split(format!("there are {n} images and {} labels", labels.len())));
        }
        let pixels = Pixels::Memory(images.into_flat().into_shared());
        Self::from_pixels([c, h, w].map(|side| side as i64), n_classes, pixels, labels)
    }

    /// [`Split::new`] for the bytes of N images of `shape`, `[C, H, W]`, one after the other.
    pub(crate) fn from_bytes(
        shape: [i64; 3],
        n_classes: usize,
        pixels: Vec<u8>,
        labels: Vec<i64>,
    ) -> Result<Self, DataError> {
        Self::from_pixels(shape, n_classes, Pixels::Memory(pixels.into()), labels.into())
    }

    /// [`Split::from_bytes`] for bytes that may be in a file.
    pub(crate) fn from_pixels(
        shape: [i64; 3],
        n_classes: usize,
        pixels: Pixels,
        labels: Array1<i64>,
    ) -> Result<Self, DataError> {
        if shape.iter().any(|&length| length < 1) {
            return Err(DataError::Split(format!("shape {shape:?} has a side below 1")));
        }
        let expected = shape
            .iter()
            .try_fold(labels.len(), |product, &length| product.checked_mul(usize::try_from(length).ok()?))
            .ok_or_else(|| DataError::Split(format!("{} images of shape {shape:?} are too many", labels.len())))?;
        if pixels.len() != expected {
            let (n, found) = (labels.len(), pixels.len());
            return Err(DataError::Split(format!(
                "{n} images of shape {shape:?} have {expected} bytes, found {found}"
            )));
        }
        let mut by_class = vec![Vec::new(); n_classes];
        for (position, &label) in labels.iter().enumerate() {
            let class = usize::try_from(label).ok().and_then(|class| by_class.get_mut(class));
            class
                .ok_or_else(|| {
                    let last = (n_classes as i64).saturating_sub(1);
                    DataError::Split(format!("image {position} has label {label}, outside 0..={last}"))
                })?
                .push(position);
        }
        Ok(Self { shape, pixels, labels, by_class, sha256: OnceLock::new() })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// `[C, H, W]` of each image.
    pub const fn shape(&self) -> [i64; 3] {
        self.shape
    }

    /// Number of classes, whether or not each has an image.
    pub const fn n_classes(&self) -> usize {
        self.by_class.len()
    }

    /// All images, u8 `[N, C, H, W]`.
    pub fn images(&self) -> ArrayView4<'_, u8> {
        let [c, h, w] = self.shape.map(|side| side as usize);
        ArrayView4::from_shape((self.len(), c, h, w), &self.pixels).expect("the lengths were checked")
    }

    /// The label of each image, i64 `[N]`, in `0..n_classes`.
    pub fn labels(&self) -> ArrayView1<'_, i64> {
        self.labels.view()
    }

    /// Positions of the images of one class, ascending.
    ///
    /// # Panics
    /// If `class` is not below [`Split::n_classes`].
    pub fn class_positions(&self, class: usize) -> &[usize] {
        &self.by_class[class]
    }

    /// The images at `positions`, in that order (a position may occur twice).
    ///
    /// Returns images, f32 `[n, C, H, W]` in `[0, 1]` (byte / 255), and labels, i64 `[n]`, on `device`.
    ///
    /// # Panics
    /// If a position is not below [`Split::len`].
    pub fn batch(&self, positions: &[usize], device: Device) -> (Tensor, Tensor) {
        let (bytes, labels) = self.gather(positions);
        let [c, h, w] = self.shape;
        let bytes = Tensor::from_data_size(&bytes, &[positions.len() as i64, c, h, w], Kind::Uint8);
        // The bytes travel to the device, not the floats: a quarter of the traffic.
        (to_pixels(&send(&bytes, device)), send(&Tensor::from_slice(&labels), device))
    }

    /// The first `per_class` images of every class (fewer where a class has fewer), in file order.
    pub fn subset_per_class(&self, per_class: usize) -> Self {
        self.of_each_class(|class| &class[..per_class.min(class.len())])
    }

    /// The complement of [`subset_per_class`](Self::subset_per_class): every class's images after the first `per_class`, in
    /// file order.
    pub fn rest_per_class(&self, per_class: usize) -> Self {
        self.of_each_class(|class| &class[per_class.min(class.len())..])
    }

    fn of_each_class(&self, part: impl Fn(&[usize]) -> &[usize]) -> Self {
        let mut positions: Vec<usize> = self.by_class.iter().flat_map(|class| part(class)).copied().collect();
        positions.sort_unstable();
        self.select(&positions)
    }

    /// The images at `positions` as a split of their own, copied into memory.
    ///
    /// # Panics
    /// If a position is not below [`Split::len`].
    pub fn select(&self, positions: &[usize]) -> Self {
        let (pixels, labels) = self.gather(positions);
        Self::from_bytes(self.shape, self.n_classes(), pixels, labels).expect("taken from a valid split")
    }

    /// Cuts off a part for choosing settings without looking at test data.
    ///
    /// Of each class with at least two images, `round(fraction * n)` of them, at least 1 and at most
    /// `n - 1`, are held out at random; smaller classes stay whole. Returns (rest, held out), both in
    /// file order.
    ///
    /// # Panics
    /// If `fraction` is not strictly between 0 and 1.
    pub fn hold_out(&self, fraction: f64, seed: Seed) -> (Self, Self) {
        assert!(fraction > 0.0 && fraction < 1.0, "fraction {fraction} is not between 0 and 1");
        let mut held_out = vec![false; self.len()];
        for (class, positions) in self.by_class.iter().enumerate().filter(|(_, positions)| positions.len() > 1) {
            let n = ((positions.len() as f64 * fraction).round() as usize).clamp(1, positions.len() - 1);
            let mut shuffled = positions.clone();
            let (chosen, _) = shuffled.partial_shuffle(&mut seed.stream("data/hold-out", class as u64), n);
            chosen.iter().for_each(|&position| held_out[position] = true);
        }
        let (out, rest): (Vec<usize>, Vec<usize>) = (0..self.len()).partition(|&position| held_out[position]);
        (self.select(&rest), self.select(&out))
    }

    /// SHA-256 (hexadecimal) of shape, number of classes, labels and pixels; equal splits, equal text.
    ///
    /// The hashed bytes are `C H W K N` as decimal text with spaces and a line feed, then the labels as
    /// little-endian i64, then the pixels. Computed once.
    pub fn sha256(&self) -> String {
        self.sha256
            .get_or_init(|| {
                let mut hash = Self::start_of_hash(self.shape, self.n_classes(), self.labels());
                hash.update(&*self.pixels);
                hex::encode(hash.finalize())
            })
            .clone()
    }

    /// The hash of everything but the pixels, which come next.
    pub(crate) fn start_of_hash([c, h, w]: [i64; 3], n_classes: usize, labels: ArrayView1<'_, i64>) -> Sha256 {
        let mut hash = Sha256::new();
        hash.update(format!("{c} {h} {w} {n_classes} {}\n", labels.len()));
        labels.iter().for_each(|label| hash.update(label.to_le_bytes()));
        hash
    }

    /// Keeps what [`Split::sha256`] would compute.
    pub(crate) fn set_sha256(&self, sha256: String) {
        let _ = self.sha256.set(sha256);
    }

    /// All images on the CPU, as attacks and evaluations take them.
    ///
    /// # Panics
    /// If the split is empty; [`crate::load`] never returns an empty one.
    pub fn to_labelled(&self) -> LabelledImages {
        let (images, labels) = self.batch(&(0..self.len()).collect::<Vec<_>>(), Device::Cpu);
        LabelledImages::new(images, labels).expect("bytes over 255 are pixels, and labels were checked")
    }

    fn gather(&self, positions: &[usize]) -> (Vec<u8>, Vec<i64>) {
        let length = self.shape.iter().product::<i64>() as usize;
        let mut bytes = Vec::with_capacity(positions.len() * length);
        for &position in positions {
            bytes.extend_from_slice(&self.pixels[position * length..(position + 1) * length]);
        }
        (bytes, positions.iter().map(|&position| self.labels[position]).collect())
    }
}

/// u8 images as f32 in `[0, 1]`: byte / 255.
pub(crate) fn to_pixels(bytes: &Tensor) -> Tensor {
    let mut images = bytes.to_kind(Kind::Float);
    images /= 255.0;
    images
}

/// Without the pixels: a failing assertion should not print megabytes.
impl fmt::Debug for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shape, n_classes, n) = (self.shape, self.n_classes(), self.len());
        f.debug_struct("Split")
            .field("shape", &shape)
            .field("n_classes", &n_classes)
            .field("len", &n)
            .finish_non_exhaustive()
    }
}
