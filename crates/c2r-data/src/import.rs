//! Distilled sets of others as ours.

mod images;
mod labels;
mod options;

use std::collections::{BTreeMap, BTreeSet};

use c2r_base::artifact::TensorFile;
use images::{find_images, pixels};
use labels::{Labels, Wanted, find_labels};
use options::wrong;
pub use options::{IMPORT_DOUBT, ImportOptions, PixelValues};
use serde_json::json;
use tch::Tensor;

use crate::{
    DataError, DatasetSpec, SyntheticSet,
    synthetic::{Clamped, SyntheticHeader},
};

/// Names that a note lists.
const LISTED: usize = 20;

/// Makes a synthetic set from the tensors of a foreign file ([`crate::read_tensors`], [`crate::read_class_folders`]).
///
/// * `file`: the images, and the labels unless `labels` has them.
/// * `labels`: another file with the labels, as MTT writes.
/// * `spec`: the dataset that was distilled; it gives shape, classes, mean and deviation.
/// * `origin`: where the tensors come from; with the notes it becomes the set's config.
///
/// Returns the set and notes for people: which tensors were taken and which were not, what was undone, what was cut off
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
    if let Some(formation) =
        file.tensors.get("formation").filter(|tensor| tensor.numel() == 1).map(|t| t.int64_value(&[0]))
        && formation != options.formation
    {
        return Err(DataError::Import(format!(
            "`formation` in the file says that its images are mosaics of {formation}x{formation} tiles: give option \
             `formation` {formation}"
        )));
    }
    notes.push(format!("images from `{name}`, {:?} {:?}", images.kind(), images.size()));
    let (images, clamped) = pixels(images, spec, options, &mut notes)?;
    let n = images.size()[0];
    let wanted = Wanted { images: &name, n, spec, options };
    let Labels { hard, soft, names, is_largest } = find_labels(file, labels, &wanted, &mut notes)?;
    check_balance(&hard, spec, is_largest)?;
    notes.extend(unused(file, labels, &name, &names));

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
        seed: options.seed,
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

/// The same number of images of each class, which is what a set's header and a table's row say.
fn check_balance(hard: &Tensor, spec: &DatasetSpec, is_largest: bool) -> Result<(), DataError> {
    let labels = Vec::<i64>::try_from(hard).expect("labels are i64 [N]");
    let mut counts = vec![0usize; spec.classes.len()];
    for label in &labels {
        match usize::try_from(*label).ok().and_then(|class| counts.get_mut(class)) {
            Some(count) => *count += 1,
            // What the set says about labels outside the classes.
            None => return Ok(()),
        }
    }
    let per_class = labels.len() / counts.len();
    let Some(class) = counts.iter().position(|&count| count != per_class) else { return Ok(()) };
    let advice = if is_largest {
        ", where the class of an image is that of its largest probability; store the classes as `labels` next to it, or use \
         option `grouped` if the images are grouped by class"
    } else {
        "; c2r takes sets with equally many images of each class"
    };
    wrong(format!(
        "class {class} (`{}`) has {} images, not {per_class}, of {} for {} classes{advice}",
        spec.classes[class],
        counts[class],
        labels.len(),
        counts.len()
    ))
}

/// What else the files hold, in words.
fn unused(file: &TensorFile, labels: Option<&TensorFile>, images: &str, names: &[String]) -> Option<String> {
    let of = |file: &TensorFile, used: &[&str]| -> BTreeSet<String> {
        // What torch says about itself in safetensors.
        let texts = file.header.keys().filter(|name| *name != "format");
        file.tensors
            .keys()
            .chain(file.unread.keys())
            .chain(texts)
            .filter(|name| !used.contains(&name.as_str()))
            .cloned()
            .collect()
    };
    let mut own = vec![images];
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let other = labels.map(|labels| of(labels, &names)).unwrap_or_default();
    if labels.is_none() {
        own.extend(&names);
    }
    let all: Vec<String> = of(file, &own).into_iter().chain(other).map(|name| format!("`{name}`")).collect();
    let more = if all.len() > LISTED { format!(" and {} more", all.len() - LISTED) } else { String::new() };
    (!all.is_empty()).then(|| format!("not used: {}{more}", all[..all.len().min(LISTED)].join(", ")))
}
