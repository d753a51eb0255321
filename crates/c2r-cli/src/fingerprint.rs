//! Which images a network was trained on: the hash that `run.json` records, of images in memory and of a file.

use std::path::Path;

use anyhow::Context;
use c2r_base::{
    LabelledImages,
    artifact::{TensorFile, sha256_hex},
};
use c2r_data::{SetLabels, SyntheticHeader, SyntheticSet, arrays::to_tensor};
use c2r_distill::folder;
use c2r_models::{Frozen, checkpoint};
use c2r_train::{Targets, Teacher};
use tch::Device;

/// SHA-256 of training pixels and of what labels them, so that a run folder notices another training set.
pub(crate) fn of(images: &LabelledImages, targets: &Targets<'_>) -> String {
    let mut file = TensorFile::default();
    file.tensors.insert("images".to_owned(), images.images().shallow_clone());
    file.tensors.insert("labels".to_owned(), images.labels().shallow_clone());
    match targets {
        Targets::Hard => {}
        Targets::Soft(soft) => {
            file.tensors.insert("soft-labels".to_owned(), soft.shallow_clone());
        }
        Targets::Teacher(teacher) => {
            let network = teacher.network.model();
            let named = |(name, tensor)| (format!("teacher.{name}"), tensor);
            file.tensors.extend(network.state().into_iter().map(named));
            file.header.insert("teacher".to_owned(), network.spec().to_string());
            file.header.insert("temperature".to_owned(), teacher.temperature.to_string());
        }
    }
    sha256_hex(&file.to_bytes())
}

/// What the file of a set says, and [`of`] its images; `None` for a set whose teacher is not there. On a GPU, mosaics are enlarged
/// with other rounding, so a network that was trained there may record another hash.
pub(crate) fn of_set(file: &Path) -> anyhow::Result<(SyntheticHeader, Option<String>)> {
    let set = SyntheticSet::load(file)?;
    let origin = set.header.origin().with_context(|| file.display().to_string())?;
    let (images, labels) = set.decode(Device::Cpu);
    let images = LabelledImages::new(images, labels)?;
    let soft = set.soft_labels.as_ref().map(|soft| to_tensor(soft.view()));
    let hash = match soft {
        _ if origin.labels == SetLabels::Teacher => {
            let teacher = checkpoint::load(&file.with_file_name(folder::TEACHER), Device::Cpu);
            let temperature = origin.teacher.unwrap_or_default().temperature;
            teacher.ok().map(|(network, _)| {
                of(&images, &Targets::Teacher(Teacher { network: &Frozen::new(network), temperature }))
            })
        }
        Some(soft) => Some(of(&images, &Targets::Soft(&soft))),
        None => Some(of(&images, &Targets::Hard)),
    };
    Ok((set.header, hash))
}
