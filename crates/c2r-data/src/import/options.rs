//! What a foreign file does not say about itself.

use c2r_base::artifact::TensorFile;
use tch::Tensor;

use crate::{DataError, DatasetSpec};

/// How notes of [`import`](super::import) begin that doubt what was declared. They are in the set's config, too, under `notes`.
pub const IMPORT_DOUBT: &str = "doubtful: ";

/// The deviations of CIFAR-10 in the code of DC, DSA, DM and MTT. They are means of the deviations inside images, not
/// the deviation of all pixels.
const CIFAR10_DD_STD: [f64; 3] = [0.2023, 0.1994, 0.2010];

/// What the numbers in a file mean.
#[derive(Clone, Debug, PartialEq)]
pub enum PixelValues {
    /// Pixels in `[0, 1]`, or bytes.
    Unit,
    /// Floats in `[0, 255]`.
    Bytes,
    /// `(pixel - mean) / std` per channel.
    Normalized {
        /// One per channel.
        mean: Vec<f64>,
        /// One per channel, positive.
        std: Vec<f64>,
    },
}

impl PixelValues {
    /// Reads a normalization: a dataset's name (mean and deviation of `data/datasets.toml`), `cifar10-dd` (those
    /// of DC, DSA, DM and MTT for CIFAR-10), or `MEAN/STD`, each one number per channel with commas between.
    ///
    /// # Errors
    /// [`DataError::Import`] naming what is allowed.
    pub fn normalized(text: &str) -> Result<Self, DataError> {
        let of = |name| crate::spec(name).map(|spec| (spec.mean.clone(), spec.std.clone()));
        if text == "cifar10-dd" {
            return Ok(Self::Normalized { mean: of("cifar10")?.0, std: CIFAR10_DD_STD.to_vec() });
        }
        if let Ok((mean, std)) = of(text) {
            return Ok(Self::Normalized { mean, std });
        }
        let wrong = || {
            DataError::Import(format!(
                "`{text}` is not a normalization: give cifar10-dd, a dataset's name, or MEAN/STD as in 0.4914,0.4822,0.4465/0.247,0.2435,0.2616"
            ))
        };
        let numbers = |part: &str| -> Option<Vec<f64>> {
            part.split(',').map(|number| number.trim().parse().ok().filter(|value: &f64| value.is_finite())).collect()
        };
        let (mean, std) = text.split_once('/').ok_or_else(wrong)?;
        let (mean, std) = (numbers(mean).ok_or_else(wrong)?, numbers(std).ok_or_else(wrong)?);
        if mean.len() != std.len() || std.iter().any(|&value| value <= 0.0) {
            return Err(wrong());
        }
        Ok(Self::Normalized { mean, std })
    }
}

/// What else the values of a set of `spec` may be, by name: its own normalization, that of DC, DSA, DM and MTT, and pixels.
pub(super) fn usual_values(spec: &DatasetSpec) -> Vec<(String, PixelValues)> {
    let dd = (spec.base_name() == "cifar10").then_some("cifar10-dd");
    let names = [Some(spec.name.as_str()), dd].into_iter().flatten();
    let named = |name: &str| Some((format!("`{name}`"), PixelValues::normalized(name).ok()?));
    names.filter_map(named).chain([("none".to_owned(), PixelValues::Unit)]).collect()
}

/// What a foreign file does not say about itself. Errors call these options by the names that `c2r import` has for them.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Name of the tensor with the images; the one that can only be meant if not given.
    pub images: Option<String>,
    /// Name of the tensor with the labels; the one that can only be meant if not given.
    pub labels: Option<String>,
    /// The images are grouped by class, equally many of each: hard labels follow from the position. For files without hard
    /// labels.
    pub grouped: bool,
    /// The label rows are logits: their softmax is meant.
    pub logits: bool,
    /// What the pixels are.
    pub values: PixelValues,
    /// Images are `[N, H, W, C]`.
    pub nhwc: bool,
    /// Channels are blue, green, red.
    pub bgr: bool,
    /// Cut off what is outside `[0, 1]`, instead of refusing it; at most a tenth of the values unless they were normalized.
    pub clamp: bool,
    /// Each image is a mosaic of `formation` x `formation` images.
    pub formation: i64,
    /// Who made it, e.g. `dm`.
    pub method: String,
    /// Seed of its distillation: what tells sets of one method apart.
    pub seed: u64,
}

pub(super) fn wrong<T>(reason: String) -> Result<T, DataError> {
    Err(DataError::Import(reason))
}

/// Names, dtypes and shapes, for errors.
pub(super) fn contents(file: &TensorFile) -> String {
    let of = |(name, tensor): (&String, &Tensor)| format!("`{name}` {:?} {:?}", tensor.kind(), tensor.size());
    let mut list: Vec<String> = file.tensors.iter().take(20).map(of).collect();
    if file.tensors.len() > list.len() {
        list.push(format!("and {} more", file.tensors.len() - list.len()));
    }
    let unread = |(name, dtype): (&String, &String)| format!("`{name}` {dtype}, which c2r does not read");
    list.extend(file.unread.iter().take(20).map(unread));
    if list.is_empty() { "no tensors".to_owned() } else { list.join(", ") }
}

pub(super) fn named<'a>(file: &'a TensorFile, name: &str) -> Result<&'a Tensor, DataError> {
    match file.tensors.get(name) {
        Some(tensor) => Ok(tensor),
        None => wrong(format!("there is no tensor `{name}`; there are {}", contents(file))),
    }
}
