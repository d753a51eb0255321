//! Files of tensors: synthetic sets, checkpoints, tensors of others, TorchScript models.

use std::{collections::BTreeSet, path::Path};

use c2r_base::artifact::TensorFile;
use c2r_data::{
    IMPORT_DOUBT, Mosaics, SyntheticSet,
    arrays::{to_array, to_tensor},
};
use c2r_models::{ModelError, TorchScript, checkpoint};
use c2r_run::{
    exit::{self, OrExit},
    terminal::{count, counted},
};
use serde_json::Value;
use tch::{Device, Kind};

use super::{
    doubts::{self, Drawn},
    report::Report,
    results::texts,
};

/// Datasets that a TorchScript model, which does not say what it is for, is tried on.
const TRIED_ON: [&str; 4] = ["digits", "cifar10", "cifar100", "tiny-imagenet"];

pub(super) fn safetensors(
    report: &mut Report,
    path: &Path,
    file: &TensorFile,
    grid: Option<&Path>,
) -> anyhow::Result<bool> {
    if SyntheticSet::is_header(&file.header) {
        return set_or_doubt(report, path, file, grid);
    }
    if file.header.get("format").is_some_and(|format| format == "c2r-model") {
        match checkpoint::load(path, Device::Cpu) {
            Ok((model, header)) => {
                report.title("checkpoint", path.display(), format!("checkpoint of {}", model.spec()));
                let n = count(model.n_parameters() as f64);
                report.line("parameters", format!("{n} in {}", counted(file.tensors.len(), "tensor")));
                report.line("input", serde_json::to_string(model.input())?);
                texts(report, &header);
                for (name, tensor) in &file.tensors {
                    doubts::values(report, name, tensor);
                }
                return Ok(false);
            }
            Err(error) => {
                let reasons: Vec<String> = anyhow::Error::from(error).chain().map(ToString::to_string).collect();
                report.doubt(format!("{}: other commands refuse this checkpoint", reasons.join(": ")));
            }
        }
    }
    let is_inputs = ["images", "labels"].iter().all(|name| file.tensors.contains_key(*name));
    let (kind, words) = match file.header.get("format").map(String::as_str) {
        Some("c2r-adversarial") => ("adversarial", "attacked images"),
        Some("c2r distillation state") => ("state", "state of a distillation"),
        _ if is_inputs => ("attack-inputs", "images and labels for `c2r attack --inputs`, safetensors file"),
        _ => ("safetensors", "safetensors file"),
    };
    report.title(kind, path.display(), format!("{words} with {}", counted(file.tensors.len(), "tensor")));
    texts(report, &file.header);
    tensors(report, file, grid)
}

/// A file that calls itself a synthetic set.
pub(super) fn set_or_doubt(
    report: &mut Report,
    path: &Path,
    file: &TensorFile,
    grid: Option<&Path>,
) -> anyhow::Result<bool> {
    match SyntheticSet::load(path) {
        Ok(set) => synthetic(report, path, &set, grid),
        Err(error) => {
            report.doubt(format!("{error}: other commands refuse this synthetic set"));
            let n = counted(file.tensors.len(), "tensor");
            report.title("broken-set", path.display(), format!("safetensors file with {n}"));
            texts(report, &file.header);
            let named = file.header.get("dataset").cloned();
            report.dataset = report.dataset.take().or(named);
            tensors(report, file, grid)
        }
    }
}

/// Lists the tensors and checks those that are images, with their labels.
pub(super) fn tensors(report: &mut Report, file: &TensorFile, grid: Option<&Path>) -> anyhow::Result<bool> {
    let mut drawn = false;
    let reference = doubts::Reference::of(report, "");
    for (name, dtype) in &file.unread {
        report.line(name, format!("{dtype}; a dtype that c2r does not read"));
    }
    for (name, tensor) in &file.tensors {
        report.tensor(name, tensor, "");
        if !doubts::is_images(name, tensor) {
            doubts::values(report, name, tensor);
            continue;
        }
        doubts::images(report, name, tensor, reference.as_ref());
        let labels = doubts::labels_of(file, name);
        if let Some((labels_name, labels)) = &labels {
            doubts::labels(report, labels_name, labels, reference.as_ref());
            let drawn = Drawn { formation: 1, by_c2r: false };
            doubts::labels_fit(report, tensor, labels, drawn, reference.as_ref());
        }
        if let (Some(grid), false) = (grid, drawn) {
            let (pixels, rows) = doubts::drawable(tensor, labels.as_ref().map(|(_, labels)| labels));
            let pixels = to_array(&pixels).map_err(anyhow::Error::msg)?;
            c2r_data::write_grid(grid, pixels.view(), &rows)?;
            drawn = true;
        }
    }
    Ok(drawn)
}

pub(super) fn synthetic(
    report: &mut Report,
    path: &Path,
    set: &SyntheticSet,
    grid: Option<&Path>,
) -> anyhow::Result<bool> {
    let header = &set.header;
    report.title("synthetic-set", path.display(), format!("synthetic set of {}", header.dataset));
    let origin = header.origin().or_exit(exit::DATA)?;
    let run = match origin.imported {
        Some(_) if header.seed == 0 => "imported".to_owned(),
        Some(_) => format!("imported, seed {}", header.seed),
        None => format!("seed {}, {} iterations", header.seed, count(header.iterations as f64)),
    };
    // `imported` is also what `c2r import` calls a method that it was not told.
    let method = Some(&header.method).filter(|method| !run.starts_with(method.as_str()));
    report.line("made by", method.map_or(run.clone(), |method| format!("{method}, {run}")));
    let images = to_tensor(set.images.view());
    report.tensor("images", &images, "");
    report.tensor(
        "labels",
        &to_tensor(set.labels.view()),
        &format!(", {} per class of {}", header.images_per_class, header.classes),
    );
    let tiles = set.formation * set.formation * set.labels.len() as i64;
    if set.formation > 1 {
        report.line("formation", format!("{0} x {0} mosaics: {tiles} training images", set.formation));
    }
    if let Some(Mosaics { formation, images_per_class }) = origin.decoded_from {
        report
            .line("decoded from", format!("{images_per_class} mosaics of {formation} x {formation} images per class"));
    }
    if let Some(soft) = set.soft_labels.as_ref().map(|soft| to_tensor(soft.view())) {
        let confidence = soft.amax([1i64].as_slice(), false).mean(Kind::Double).double_value(&[]);
        report.tensor("soft labels", &soft, &format!(", mean largest probability {confidence:.3}"));
    }
    report.line("clipped", origin.clamped.map(|cut| cut.to_string()).unwrap_or_default());
    report.line("extra storage", &header.extra_storage);
    report.line("mean, std", format!("{:?}, {:?} (for the model)", header.mean, header.std));
    report.line("data sha256", &header.data_sha256);
    let versions: Vec<String> = header.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    report.line("versions", versions.join(", "));
    report.line("config", header.config.to_string());
    // In a run folder, the record has it as well.
    report.configuration.get_or_insert_with(|| header.config.clone());
    let notes = header.config.get("notes").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    notes.filter_map(|note| note.strip_prefix(IMPORT_DOUBT)).for_each(|doubt| report.doubt(doubt));
    let reference = doubts::Reference::of(report, &header.dataset);
    doubts::images(report, "images", &images, reference.as_ref());
    // A folder of images is only known if it can be read.
    let known = c2r_data::spec(&header.dataset).ok().or_else(|| Some(reference.as_ref()?.spec.clone()));
    match known {
        Some(spec) if spec.shape() != images.size()[1..] => {
            let found = &images.size()[1..];
            report.doubt(format!("{} images are {:?}, but these are {found:?}", spec.name, spec.shape()));
        }
        Some(spec) if (&spec.mean, &spec.std) != (&header.mean, &header.std) => {
            report.doubt(format!("mean and std differ from those of {}: {:?}, {:?}", spec.name, spec.mean, spec.std));
        }
        _ => {}
    }
    let (decoded, labels) = set.decode(Device::Cpu);
    let formation = origin.decoded_from.map_or(set.formation, |mosaics| mosaics.formation);
    let drawn = Drawn { formation, by_c2r: origin.imported.is_none() };
    doubts::labels_fit(report, &decoded, &labels, drawn, reference.as_ref());
    if let Some(grid) = grid {
        set.grid_png(grid)?;
    }
    Ok(true)
}

pub(super) fn torchscript(report: &mut Report, path: &Path) -> anyhow::Result<()> {
    let model = TorchScript::load(path, Device::Cpu).or_exit(exit::DATA)?;
    let parameters = model.parameters().or_exit(exit::DATA)?;
    let n: usize = parameters.iter().map(|(_, parameter)| parameter.numel()).sum();
    report.title("torchscript", path.display(), "TorchScript model");
    report.line("parameters", format!("{} in {}", count(n as f64), counted(parameters.len(), "tensor")));
    let mut names = Vec::new();
    let mut wrong = BTreeSet::new();
    for name in TRIED_ON {
        let spec = c2r_data::spec(name).expect("the registry has it");
        match model.probe(spec.shape()) {
            Ok(probed) if probed.n_classes == spec.classes.len() as i64 => {
                names.push(name);
                wrong.extend(
                    probed.no_gradient.map(|reason| {
                        format!("{reason}: only attacks without gradients (square, noise) can evaluate it")
                    }),
                );
            }
            // It takes such images, but not as attacks give them, or returns something else than logits.
            Err(ModelError::NotAClassifier { reason, shape: [channels, height, width], .. }) => {
                wrong.insert(format!("for images of {channels} channels and {height}x{width} pixels, {reason}"));
            }
            _ => {}
        }
    }
    wrong.into_iter().for_each(|doubt| report.doubt(doubt));
    let other = parameters.iter().map(|(_, parameter)| parameter.kind()).find(|kind| *kind != Kind::Float);
    if let Some(kind) = other {
        report.doubt(format!("its parameters are {kind:?}, but images are Float: call model.float() before torch.jit"));
    }
    let none = || {
        let tried = TRIED_ON.join(", ");
        format!("none of {tried}; images of another size or another number of classes were not tried")
    };
    report.line("classifies", if names.is_empty() { none() } else { names.join(", ") });
    parameters.iter().for_each(|(name, parameter)| doubts::values(report, name, parameter));
    Ok(())
}
