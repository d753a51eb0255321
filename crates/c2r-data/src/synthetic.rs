use std::{collections::BTreeMap, fmt};

use c2r_base::{LabelledImages, artifact::TensorFile};
use ndarray::{Array1, Array2, Array4};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::{
    DataError, DatasetSpec,
    arrays::{to_array, to_tensor},
    decode_formation, registry,
};

/// The version of the file format that this crate writes.
pub const SCHEMA_VERSION: u32 = 1;

/// The header text that tells a synthetic set from other safetensors files.
const FORMAT: &str = "c2r-synthetic-set";
/// How far a row of soft labels may be from a sum of 1: f32 rounding over a few hundred classes.
const ROW_SUM_TOLERANCE: f64 = 1e-3;

/// A distilled dataset: pixels, labels and where they come from.
///
/// On disk it is one safetensors file with the tensors `images`, `labels` and, where there are any,
/// `soft_labels`; the header holds `format`, `formation` and every field of [`SyntheticHeader`], texts as
/// they are and everything else as JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct SyntheticSet {
    /// f32 `[M, C, H, W]` in `[0, 1]`; never normalized.
    pub images: Array4<f32>,
    /// i64 `[M]`, in `0..classes`.
    pub labels: Array1<i64>,
    /// Probabilities, f32 `[M * formation^2, K]`, in the order of [`SyntheticSet::decode`].
    pub soft_labels: Option<Array2<f32>>,
    /// 1, or 2 where each image is a mosaic of 2 x 2 images.
    pub formation: i64,
    /// Where the set comes from.
    pub header: SyntheticHeader,
}

/// Where a synthetic set comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyntheticHeader {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Name of the real dataset, e.g. `cifar10`.
    pub dataset: String,
    /// Number of classes, K.
    pub classes: usize,
    /// Stored images per class (mosaics count once).
    pub images_per_class: usize,
    /// How the images were made, e.g. `c2r`.
    pub method: String,
    /// Seed of the distillation.
    pub seed: u64,
    /// Iterations that were run.
    pub iterations: u64,
    /// The resolved configuration.
    pub config: Value,
    /// Versions of what made the file, e.g. `c2r`, `libtorch`.
    pub versions: BTreeMap<String, String>,
    /// [`crate::Split::sha256`] of the real training split; empty where that is not known, as of imported sets.
    pub data_sha256: String,
    /// Mean of each channel to normalize with, in the model.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel to normalize with, in the model.
    pub std: Vec<f64>,
    /// What is stored beyond images and one hard label each, e.g. `teacher weights, 1.3 MB`; empty for nothing.
    pub extra_storage: String,
}

/// What the readers of a set need to know of its [`SyntheticHeader::config`]; every key is optional.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct SetOrigin {
    /// Profile of the distillation; empty for none.
    pub profile: String,
    /// What labels the images.
    pub labels: SetLabels,
    /// The network that labels them, for [`SetLabels::Teacher`]: its file is next to the set.
    pub teacher: Option<SetTeacher>,
    /// How many real training images of each class were used; `None` for all.
    pub train_per_class: Option<u64>,
    /// The learning rate that the distillation learned for trainings on the set; `None` where it learned none.
    pub learned_lr: Option<f64>,
    /// File and hash, where [`crate::import`] made the set: iterations are then unknown, and 0 in the header.
    pub imported: Option<Value>,
    /// What was cut off when the set was imported; `None` for nothing, and where it was not recorded.
    pub clamped: Option<Clamped>,
    /// The mosaics that [`SyntheticSet::decoded`] cut apart; `None` where the images are as they were distilled.
    pub decoded_from: Option<Mosaics>,
}

/// What a set was before [`SyntheticSet::decoded`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mosaics {
    /// Images per side of a mosaic.
    pub formation: i64,
    /// Mosaics per class: what the set has to store.
    pub images_per_class: usize,
}

impl Mosaics {
    /// Its key in [`SyntheticHeader::config`].
    const KEY: &str = "decoded-from";
}

/// What labels the images of a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SetLabels {
    /// The class of each image.
    #[default]
    Hard,
    /// [`SyntheticSet::soft_labels`].
    Soft,
    /// A network, at each step of the training.
    Teacher,
}

/// The network that labels a set.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct SetTeacher {
    /// Its logits are divided by this before the softmax; positive.
    pub temperature: f64,
}

impl Default for SetTeacher {
    fn default() -> Self {
        Self { temperature: 1.0 }
    }
}

/// What [`crate::import`] cut off of the pixels of a set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clamped {
    /// Share of the values that were outside `[0, 1]`, in `[0, 1]`.
    pub part: f64,
    /// The smallest value before.
    pub low: f64,
    /// The largest value before.
    pub high: f64,
}

impl Clamped {
    /// Its key in [`SyntheticHeader::config`].
    pub(crate) const KEY: &str = "clamped";
}

impl fmt::Display for Clamped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { part, low, high } = self;
        write!(f, "{:.1} % of the values lie outside [0, 1], from {low:.3} to {high:.3}", 100.0 * part)
    }
}

impl SetOrigin {
    /// The key of [`SetOrigin::learned_lr`] in [`SyntheticHeader::config`].
    pub const LEARNED_LR: &str = "learned-lr";
}

impl SyntheticHeader {
    /// Where the set comes from, as [`SyntheticHeader::config`] records it.
    ///
    /// # Errors
    /// [`DataError::Synthetic`] naming the field that has another type.
    pub fn origin(&self) -> Result<SetOrigin, DataError> {
        if !self.config.is_object() {
            return Ok(SetOrigin::default());
        }
        SetOrigin::deserialize(&self.config)
            .map_err(|error| DataError::Synthetic(format!("header field `config`: {error}")))
    }
}

impl SyntheticSet {
    /// The set as a file has it, checked.
    pub(crate) fn to_file(&self) -> Result<TensorFile, DataError> {
        let mut file = TensorFile { tensors: self.tensors(), ..TensorFile::default() };
        check(&file.tensors, self.formation, &self.header)?;
        let Value::Object(fields) = serde_json::to_value(&self.header).expect("the header serializes to JSON") else {
            unreachable!("a struct serializes to an object");
        };
        for (name, value) in fields {
            let text = match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
            file.header.insert(name, text);
        }
        file.header.insert("format".into(), FORMAT.into());
        file.header.insert("formation".into(), self.formation.to_string());
        Ok(file)
    }

    fn tensors(&self) -> BTreeMap<String, Tensor> {
        let mut tensors = BTreeMap::from([
            ("images".to_owned(), to_tensor(self.images.view())),
            ("labels".to_owned(), to_tensor(self.labels.view())),
        ]);
        tensors.extend(self.soft_labels.as_ref().map(|soft| ("soft_labels".to_owned(), to_tensor(soft.view()))));
        tensors
    }

    /// Whether a safetensors header says that it belongs to a synthetic set.
    pub fn is_header(header: &BTreeMap<String, String>) -> bool {
        header.get("format").is_some_and(|format| format == FORMAT)
    }

    pub(crate) fn from_file(mut file: TensorFile) -> Result<Self, DataError> {
        let wrong = |reason: String| DataError::Synthetic(reason);
        if !Self::is_header(&file.header) {
            return Err(wrong(format!("the header has no `format` of `{FORMAT}`")));
        }
        file.header.remove("format");
        let version = file.header.get("schema_version").cloned().unwrap_or_default();
        if version != SCHEMA_VERSION.to_string() {
            return Err(wrong(format!("schema version `{version}`; this program reads {SCHEMA_VERSION}")));
        }
        let formation = file.header.remove("formation").ok_or_else(|| wrong("no `formation` in the header".into()))?;
        let formation = formation.parse().map_err(|_| wrong(format!("formation `{formation}` is not a number")))?;
        const TEXTS: [&str; 4] = ["dataset", "method", "data_sha256", "extra_storage"];
        let mut fields = serde_json::Map::new();
        for (name, text) in file.header {
            let value = if TEXTS.contains(&name.as_str()) {
                Value::String(text)
            } else {
                serde_json::from_str(&text).map_err(|error| wrong(format!("header field `{name}`: {error}")))?
            };
            fields.insert(name, value);
        }
        let header = serde_json::from_value(Value::Object(fields)).map_err(|error| wrong(error.to_string()))?;
        Self::from_tensors(file.tensors, formation, header)
    }

    /// A set of the tensors `images`, `labels` and perhaps `soft_labels`, checked.
    ///
    /// # Errors
    /// As [`SyntheticSet::check`]; [`DataError::Synthetic`] where a tensor is missing, has another name or another dtype.
    pub fn from_tensors(
        mut tensors: BTreeMap<String, Tensor>,
        formation: i64,
        header: SyntheticHeader,
    ) -> Result<Self, DataError> {
        check(&tensors, formation, &header)?;
        let mut take =
            |name: &str| tensors.remove(name).ok_or_else(|| DataError::Synthetic(format!("no tensor `{name}`")));
        Ok(Self {
            images: to_array(&take("images")?).map_err(DataError::Synthetic)?,
            labels: to_array(&take("labels")?).map_err(DataError::Synthetic)?,
            soft_labels: take("soft_labels")
                .ok()
                .map(|soft| to_array(&soft))
                .transpose()
                .map_err(DataError::Synthetic)?,
            formation,
            header,
        })
    }

    /// Checks every rule of the fields.
    ///
    /// # Errors
    /// [`DataError::Synthetic`] or [`DataError::Formation`], naming what breaks which rule.
    pub fn check(&self) -> Result<(), DataError> {
        check(&self.tensors(), self.formation, &self.header)
    }

    /// What is known of the dataset of which this is a set: its entry in the registry, or else what the set says itself, with
    /// [`DatasetSpec::unlisted`]'s settings where no such dataset of this shape and number of classes is listed. So a set of a folder of images needs neither the folder nor its name. Mean and
    /// deviation are the set's.
    ///
    /// # Errors
    /// [`DataError::Size`] where the name ends in a size that the dataset does not come in.
    pub fn spec(&self) -> Result<DatasetSpec, DataError> {
        let (header, (_, channels, height, width)) = (&self.header, self.images.dim());
        let shape = [channels, height, width].map(|side| side as i64);
        match registry::spec(&header.dataset) {
            // Images of another dataset may bear its name.
            Ok(mut spec) if spec.shape() == shape && spec.classes.len() == header.classes => {
                (spec.mean, spec.std) = (header.mean.clone(), header.std.clone());
                Ok(spec)
            }
            Ok(_) | Err(DataError::UnknownDataset { .. }) => {
                let (mean, std) = (header.mean.clone(), header.std.clone());
                Ok(DatasetSpec::unlisted(&header.dataset, shape, header.classes, mean, std))
            }
            Err(error) => Err(error),
        }
    }

    /// The images to train on: mosaics cut apart and enlarged, see [`decode_formation`].
    ///
    /// Returns images, f32 `[M * formation^2, C, H, W]`, and labels, i64 `[M * formation^2]`, on `device`.
    ///
    /// # Panics
    /// If `formation` does not fit the images, which [`SyntheticSet::check`], `save` and `load` refuse.
    pub fn decode(&self, device: Device) -> (Tensor, Tensor) {
        let images = decode_formation(&to_tensor(self.images.view()).to_device(device), self.formation)
            .expect("formation fits the images of a checked set");
        let tiles = self.formation * self.formation;
        (images, to_tensor(self.labels.view()).to_device(device).repeat_interleave_self_int(tiles, 0, None))
    }

    /// The set with the images of [`SyntheticSet::decode`] instead of mosaics: what another program trains on. The header
    /// counts them, and [`SetOrigin::decoded_from`] says what they were. A set without mosaics stays as it is.
    ///
    /// # Panics
    /// As [`SyntheticSet::decode`].
    pub fn decoded(&self) -> Self {
        if self.formation == 1 {
            return self.clone();
        }
        let _no_grad = tch::no_grad_guard();
        let (images, labels) = self.decode(Device::Cpu);
        let mut header = self.header.clone();
        let mosaics = Mosaics { formation: self.formation, images_per_class: header.images_per_class };
        header.images_per_class *= (self.formation * self.formation) as usize;
        if !header.config.is_object() {
            header.config = json!({});
        }
        header.config[Mosaics::KEY] = json!(mosaics);
        let soft_labels = self.soft_labels.clone();
        let (images, labels) = (to_array(&images.clamp(0.0, 1.0)), to_array(&labels));
        let (images, labels) = (images.expect("images are f32 [N, C, H, W]"), labels.expect("labels are i64 [N]"));
        Self { images, labels, soft_labels, formation: 1, header }
    }
}

/// Checks every rule of the fields of a set.
fn check(tensors: &BTreeMap<String, Tensor>, formation: i64, header: &SyntheticHeader) -> Result<(), DataError> {
    let wrong = |reason: String| Err(DataError::Synthetic(reason));
    let names = ["images", "labels", "soft_labels"];
    if let Some(name) = tensors.keys().find(|name| !names.contains(&name.as_str())) {
        return wrong(format!("unexpected tensor `{name}`"));
    }
    let [Some(images), Some(labels), soft] = names.map(|name| tensors.get(name)) else {
        let missing = names.into_iter().find(|name| !tensors.contains_key(*name)).unwrap_or_default();
        return wrong(format!("no tensor `{missing}`"));
    };
    if header.schema_version != SCHEMA_VERSION {
        return wrong(format!("schema version {}; this program writes {SCHEMA_VERSION}", header.schema_version));
    }
    if images.kind() != Kind::Float {
        return wrong(format!("images must be f32, got {:?}", images.kind()));
    }
    let set = LabelledImages::new(images.detach(), labels.detach());
    let set = set.and_then(|set| set.check_classes(header.classes as i64).map(|()| set));
    let set = set.map_err(|error| DataError::Synthetic(error.to_string()))?;
    let [channels, height, width] = set.image_shape();
    if !matches!(formation, 1 | 2) || height % formation != 0 || width % formation != 0 {
        return Err(DataError::Formation { height, width, formation });
    }
    for (name, values) in [("mean", &header.mean), ("std", &header.std)] {
        if values.len() as i64 != channels {
            return wrong(format!("{} values of {name} for {channels} channels", values.len()));
        }
        if values.iter().any(|&value| !value.is_finite() || (name == "std" && value <= 0.0)) {
            return wrong(format!("{name} {values:?}: mean must be finite and std positive, or training yields NaN"));
        }
    }
    // Before anything is allocated by the number of classes.
    let (n, classes, per_class) = (set.len(), header.classes, header.images_per_class);
    if classes.checked_mul(per_class) != Some(n) {
        return wrong(format!("{n} images are not {classes} classes of {per_class}"));
    }
    let mut counts = vec![0usize; classes];
    for label in Vec::<i64>::try_from(labels.to_device(Device::Cpu)).expect("labels are i64 [M]") {
        counts[label as usize] += 1;
    }
    if let Some((class, &count)) = counts.iter().enumerate().find(|(_, count)| **count != per_class) {
        return wrong(format!("class {class} has {count} images, not {per_class}"));
    }
    let Some(soft) = soft else { return Ok(()) };
    let expected = [set.len() as i64 * formation * formation, header.classes as i64];
    if soft.size() != expected || soft.kind() != Kind::Float {
        return wrong(format!("soft labels must be f32 {expected:?}, got {:?} {:?}", soft.kind(), soft.size()));
    }
    let _no_grad = tch::no_grad_guard();
    let sums = soft.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
    let worst = (sums - 1.0).abs().max().double_value(&[]);
    // Written so that NaN fails.
    if !(soft.min().double_value(&[]) >= 0.0 && worst <= ROW_SUM_TOLERANCE) {
        return wrong("soft labels must be probabilities: a row is negative or does not sum to 1".into());
    }
    Ok(())
}
