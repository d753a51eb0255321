//! Distilled sets of others as ours.

use std::collections::BTreeMap;

use c2r_base::artifact::TensorFile;
use serde_json::json;
use tch::{Kind, Tensor};

use crate::{
    DataError, DatasetSpec, SyntheticSet,
    synthetic::{Clamped, SyntheticHeader},
};

/// How far a pixel may be outside `[0, 1]` and still be rounding (of f16, or of undoing a normalization).
const ROUNDING: f64 = 1e-3;
/// Part of the values that may be cut off where nothing was declared as normalized: more is no rounding and no pixels that
/// were optimized past their range. Ours; of values that were normalized to mean 0, about half are below 0.
const CLAMPED_UNDECLARED: f64 = 0.1;
/// How far a row of probabilities may be from a sum of 1.
const ROW_SUM_TOLERANCE: f64 = 1e-3;
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
                "`{text}` is no normalization: give cifar10-dd, a dataset's name, or MEAN/STD as in 0.4914,0.4822,0.4465/0.247,0.2435,0.2616"
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
}

/// Makes a synthetic set from the tensors of a foreign file ([`crate::read_tensors`], [`crate::read_class_folders`]).
///
/// * `file`: the images, and the labels unless `labels` has them.
/// * `labels`: another file with the labels, as MTT writes.
/// * `spec`: the dataset that was distilled; it gives shape, classes, mean and deviation.
/// * `origin`: where the tensors come from; with the notes it becomes the set's config.
///
/// Returns the set and notes for people: which tensors were taken, what was undone, what was cut off
/// ([`crate::SetOrigin::clamped`]).
///
/// # Errors
/// [`DataError::Import`] saying what does not fit and which option would say otherwise; [`DataError::Synthetic`] if the
/// outcome breaks a rule of a set.
pub fn import(
    file: &TensorFile,
    labels: Option<&TensorFile>,
    spec: &DatasetSpec,
    options: &ImportOptions,
    origin: serde_json::Value,
) -> Result<(SyntheticSet, Vec<String>), DataError> {
    let _no_grad = tch::no_grad_guard();
    let mut notes = Vec::new();
    let (name, images) = find_images(file, options)?;
    notes.push(format!("images from `{name}`, {:?} {:?}", images.kind(), images.size()));
    let (images, clamped) = pixels(images, spec, options, &mut notes)?;
    let n = images.size()[0];
    let (hard, soft) = find_labels(file, labels, &name, n, spec, options, &mut notes)?;

    let n_classes = spec.classes.len();
    let tiles = options.formation * options.formation;
    let extra_storage = soft.as_ref().map_or(String::new(), |soft| format!("soft labels, {} floats", soft.numel()));
    let soft = match soft {
        Some(soft) if tiles > 1 => Some(soft.repeat_interleave_self_int(tiles, 0, None)),
        other => other,
    };
    let mut config = json!({ "imported": origin, "notes": notes });
    if let Some(clamped) = clamped {
        config[Clamped::KEY] = json!(clamped);
    }
    let mut tensors = BTreeMap::from([("images".to_owned(), images), ("labels".to_owned(), hard)]);
    tensors.extend(soft.map(|soft| ("soft_labels".to_owned(), soft)));
    let header = SyntheticHeader {
        schema_version: crate::SCHEMA_VERSION,
        dataset: spec.name.clone(),
        classes: n_classes,
        images_per_class: n as usize / n_classes,
        method: options.method.clone(),
        seed: 0,
        iterations: 0,
        config,
        versions: BTreeMap::from([("c2r".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]),
        data_sha256: String::new(),
        mean: spec.mean.clone(),
        std: spec.std.clone(),
        extra_storage,
    };
    Ok((SyntheticSet::from_tensors(tensors, options.formation, header)?, notes))
}

fn wrong<T>(reason: String) -> Result<T, DataError> {
    Err(DataError::Import(reason))
}

/// Names, dtypes and shapes, for errors.
fn contents(file: &TensorFile) -> String {
    let of = |(name, tensor): (&String, &Tensor)| format!("`{name}` {:?} {:?}", tensor.kind(), tensor.size());
    let mut list: Vec<String> = file.tensors.iter().take(20).map(of).collect();
    if file.tensors.len() > list.len() {
        list.push(format!("and {} more", file.tensors.len() - list.len()));
    }
    if list.is_empty() { "no tensors".to_owned() } else { list.join(", ") }
}

fn named<'a>(file: &'a TensorFile, name: &str) -> Result<&'a Tensor, DataError> {
    match file.tensors.get(name) {
        Some(tensor) => Ok(tensor),
        None => wrong(format!("there is no tensor `{name}`; there are {}", contents(file))),
    }
}

fn find_images<'a>(file: &'a TensorFile, options: &ImportOptions) -> Result<(String, &'a Tensor), DataError> {
    let found = |name: &str| Ok((name.to_owned(), named(file, name)?));
    if let Some(name) = &options.images {
        return found(name);
    }
    // `data[0][0]`: the layout of DC, DSA, DM; further entries are further experiments.
    if let Some(known) = ["images", "data[0][0]"].into_iter().find(|&name| file.tensors.contains_key(name)) {
        return found(known);
    }
    let candidates: Vec<&String> =
        file.tensors.iter().filter(|(_, tensor)| tensor.dim() == 4).map(|(name, _)| name).collect();
    match candidates[..] {
        [only] => found(only),
        _ => wrong(format!("which tensor has the images? Say option `images NAME`; there are {}", contents(file))),
    }
}

/// f32 `[N, C, H, W]` in `[0, 1]`, and what was cut off for it.
fn pixels(
    images: &Tensor,
    spec: &DatasetSpec,
    options: &ImportOptions,
    notes: &mut Vec<String>,
) -> Result<(Tensor, Option<Clamped>), DataError> {
    let stored = images.size();
    let mut images = images.shallow_clone();
    if options.nhwc && images.dim() == 4 {
        images = images.permute([0, 3, 1, 2]);
    }
    let size = images.size();
    if size.len() != 4 || size[1..] != spec.shape() || size[0] == 0 {
        let [c, h, w] = spec.shape();
        let mut hint = "";
        if !options.nhwc && size.len() == 4 && size[1..] == [h, w, c] {
            hint = "; the channels come last: say option `nhwc`";
        } else if options.nhwc && stored.len() == 4 && stored[1..] == [c, h, w] {
            hint = " after option `nhwc`: the channels come second already, leave it out";
        }
        return wrong(format!("images of {} are [N, {c}, {h}, {w}], these are {size:?}{hint}", spec.name));
    }
    let bytes = images.kind() == Kind::Uint8;
    if !bytes && !images.is_floating_point() {
        return wrong(format!("images must be floats or u8, these are {:?}", images.kind()));
    }
    if bytes && options.values != PixelValues::Unit {
        return wrong(
            "images are bytes, which are pixels already: leave option `normalized` and option `of-255` out".to_owned(),
        );
    }
    if bytes && images.max().int64_value(&[]) == 1 {
        return wrong(
            "the largest value is 1, and bytes go to 255: nearly black images; where 1 means white, store floats in [0, 1]"
                .to_owned(),
        );
    }
    if options.bgr && spec.channels == 1 {
        return wrong(format!("images of {} have one channel: leave option `bgr` out", spec.name));
    }
    if options.bgr {
        images = images.flip([1]);
        notes.push("channels were reversed: blue, green, red to red, green, blue".to_owned());
    }
    if bytes {
        return Ok(((images.to_kind(Kind::Float) / 255.0).contiguous(), None));
    }
    let raw = images.to_kind(Kind::Double);
    if raw.isfinite().all().int64_value(&[]) == 0 {
        return wrong("images hold values that are not finite".to_owned());
    }
    let values = match &options.values {
        PixelValues::Unit => raw.shallow_clone(),
        PixelValues::Bytes => {
            let high = raw.max().double_value(&[]);
            if high <= 1.0 + ROUNDING && raw.any().int64_value(&[]) == 1 {
                return wrong(format!(
                    "the largest value is {high:.3}, and option `of-255` divides by 255: nearly black images; drop it"
                ));
            }
            &raw / 255.0
        }
        PixelValues::Normalized { mean, std } => {
            if mean.len() as i64 != spec.channels {
                return wrong(format!(
                    "the normalization has {} channels, the images have {}",
                    mean.len(),
                    spec.channels
                ));
            }
            if raw.min().double_value(&[]) >= 0.0 && raw.max().double_value(&[]) <= 1.0 {
                return wrong("all values are in [0, 1]: not normalized, leave option `normalized` out".to_owned());
            }
            let channel = |values: &[f64]| Tensor::from_slice(values).view([1, -1, 1, 1]);
            notes.push(format!("undone: (pixel - {mean:?}) / {std:?}"));
            &raw * channel(std) + channel(mean)
        }
    };
    let (low, high) = (values.min().double_value(&[]), values.max().double_value(&[]));
    let mut clamped = None;
    if low < -ROUNDING || high > 1.0 + ROUNDING {
        let outside = values.lt(-ROUNDING).logical_or(&values.gt(1.0 + ROUNDING)).sum(Kind::Int64).int64_value(&[]);
        let cut = Clamped { part: outside as f64 / values.numel() as f64, low, high };
        let normalized = matches!(options.values, PixelValues::Normalized { .. });
        if !options.clamp || (!normalized && cut.part > CLAMPED_UNDECLARED) {
            return wrong(format!("{cut}{}", hint(options, &cut)));
        }
        notes.push(format!("{cut}: cut off"));
        clamped = Some(cut);
    }
    Ok((values.clamp(0.0, 1.0).to_kind(Kind::Float).contiguous(), clamped))
}

/// What to say where values are not pixels.
fn hint(options: &ImportOptions, cut: &Clamped) -> String {
    let many = cut.part > CLAMPED_UNDECLARED;
    match options.values {
        PixelValues::Unit if cut.low >= 0.0 && cut.high > 2.0 && cut.high <= 255.0 => {
            ": bytes as floats? Say option `of-255`".to_owned()
        }
        PixelValues::Unit if many => {
            let limit = if options.clamp {
                format!(", and option `clamp` cuts off {:.0} % at most", 100.0 * CLAMPED_UNDECLARED)
            } else {
                String::new()
            };
            format!(": these are not pixels{limit}; normalized? Say option `normalized MEAN/STD`")
        }
        PixelValues::Unit => {
            ": normalized? Say option `normalized MEAN/STD`; pixels that were optimized past their range? option `clamp` cuts that off"
                .to_owned()
        }
        PixelValues::Bytes if many => {
            ", after dividing by 255: these are not 0 to 255; normalized? Say option `normalized MEAN/STD` instead of option `of-255`"
                .to_owned()
        }
        _ => {
            ", after undoing what was declared: optimized images may leave the range of pixels, and option `clamp` cuts that off; much outside means another normalization"
                .to_owned()
        }
    }
}

/// Hard labels, i64 `[N]`, and soft ones, f32 `[N, K]`.
fn find_labels(
    file: &TensorFile,
    labels: Option<&TensorFile>,
    images: &str,
    n: i64,
    spec: &DatasetSpec,
    options: &ImportOptions,
    notes: &mut Vec<String>,
) -> Result<(Tensor, Option<Tensor>), DataError> {
    let k = spec.classes.len() as i64;
    if n % k != 0 {
        return wrong(format!("{n} images are not equally many for each of the {k} classes of {}", spec.name));
    }
    let by_position = || Tensor::arange(k, (Kind::Int64, tch::Device::Cpu)).repeat_interleave_self_int(n / k, 0, None);
    let source = labels.unwrap_or(file);
    let is_named = labels.is_some() || options.labels.is_some();
    let name = match &options.labels {
        Some(name) => Some(name.clone()),
        // Where the class follows from the position, a tensor that cannot be labels is not taken for them.
        None => guess_labels(source, labels.is_some(), images, n, k)
            .filter(|name| is_named || !options.grouped || may_be_labels(&source.tensors[name])),
    };
    let Some(name) = name else {
        if options.grouped && !is_named {
            if options.logits {
                return wrong("there are no labels: leave option `logits` out".to_owned());
            }
            notes.push(format!("labels by position, {} per class", n / k));
            return Ok((by_position(), None));
        }
        return wrong(format!(
            "which tensor has the labels? Say option `labels NAME`, option `labels-from FILE`, or option `grouped` where the images are grouped by class; there are {}",
            contents(source)
        ));
    };
    let tensor = named(source, &name)?;
    let size = tensor.size();
    notes.push(format!("labels from `{name}`, {:?} {size:?}", tensor.kind()));
    let flat = size[..] == [n] || size[..] == [n, 1];
    if !flat && size[..] != [n, k] {
        return wrong(format!("labels must be [{n}] or [{n}, {k}], `{name}` is {size:?}"));
    }
    if flat {
        let values = tensor.view([n]).to_kind(Kind::Double);
        if !values.equal(&values.round()) {
            return wrong(format!("`{name}` holds numbers that are no classes"));
        }
        if options.logits {
            return wrong(format!(
                "`{name}` holds classes, not logits, which are [{n}, {k}]: leave option `logits` out"
            ));
        }
        if options.grouped {
            return wrong(has_labels(&name));
        }
        if values.min().double_value(&[]) >= 1.0 && values.max().double_value(&[]) == k as f64 {
            return wrong(format!(
                "`{name}` has labels up to {k}, outside 0..={}, and none of 0: they seem to count from 1; subtract 1 from \
                 each and save the file again",
                k - 1
            ));
        }
        return Ok((values.to_kind(Kind::Int64), None));
    }
    let mut soft = tensor.to_kind(Kind::Double);
    if soft.isfinite().all().int64_value(&[]) == 0 {
        return wrong(format!("`{name}` holds values that are not finite"));
    }
    let furthest_sum = |rows: &Tensor| {
        let sums = rows.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        (sums - 1.0).abs().max().double_value(&[])
    };
    let are_probabilities =
        |rows: &Tensor| rows.min().double_value(&[]) >= 0.0 && furthest_sum(rows) <= ROW_SUM_TOLERANCE;
    if options.logits {
        if are_probabilities(&soft) {
            return wrong(format!(
                "the rows of `{name}` are probabilities or one-hot already: leave option `logits` out"
            ));
        }
        soft = soft.softmax(1, Kind::Double);
        notes.push("softmax of the logits".to_owned());
    }
    if !are_probabilities(&soft) {
        return wrong(format!(
            "the rows of `{name}` are not probabilities: they range from {:.3} to {:.3} and miss a sum of 1 by up to {:.3}; logits? Say option `logits`",
            soft.min().double_value(&[]),
            soft.max().double_value(&[]),
            furthest_sum(&soft)
        ));
    }
    let one_hot = soft.eq(0.0).logical_or(&soft.eq(1.0)).all().int64_value(&[]) == 1;
    if one_hot && options.grouped && !options.logits {
        return wrong(has_labels(&name));
    }
    let hard = if options.grouped { by_position() } else { soft.argmax(1, false) };
    if one_hot && soft.argmax(1, false).equal(&hard) {
        notes.push("they are one-hot: hard labels".to_owned());
        return Ok((hard, None));
    }
    Ok((hard, Some(soft.to_kind(Kind::Float))))
}

/// Why option `grouped` does not go with hard labels.
fn has_labels(name: &str) -> String {
    format!(
        "`{name}` says the class of each image, and option `grouped` takes it from the position: leave option `grouped` out"
    )
}

/// Whether a tensor of a fitting shape holds classes, or rows.
fn may_be_labels(tensor: &Tensor) -> bool {
    tensor.size().get(1).is_some_and(|&k| k > 1) || tensor.equal(&tensor.round())
}

/// The tensor that can only be the labels.
fn guess_labels(file: &TensorFile, own_file: bool, images: &str, n: i64, k: i64) -> Option<String> {
    let sibling = images.strip_suffix("[0]").map(|entry| format!("{entry}[1]"));
    let usual = ["soft_labels", "labels", "label", "y"].map(str::to_owned);
    if let Some(known) = sibling.into_iter().chain(usual).find(|name| file.tensors.contains_key(name)) {
        return Some(known);
    }
    let fits = |tensor: &Tensor| {
        let size = tensor.size();
        size[..] == [n] || size[..] == [n, 1] || size[..] == [n, k]
    };
    let candidates: Vec<&String> = file
        .tensors
        .iter()
        .filter(|(name, tensor)| (own_file || *name != images) && fits(tensor))
        .map(|(name, _)| name)
        .collect();
    match candidates[..] {
        [only] => Some(only.clone()),
        _ => None,
    }
}
