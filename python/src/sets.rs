//! `c2r.load_set`, `c2r.save_set`, and datasets from tensors in memory.

use std::path::{Path, PathBuf};

use c2r_base::LabelledImages;
use c2r_data::{Dataset, Split, SyntheticHeader, SyntheticSet, arrays::to_array, arrays::to_tensor};
use c2r_distill::folder;
use pyo3::prelude::*;
use pyo3_tch::PyTensor;
use tch::{Device, Kind, Tensor};

use crate::error::{runtime_error, value_error};

/// A set as Python has it: `package/c2r/_sets.py` makes a `DistilledSet` of it.
#[derive(IntoPyObject)]
pub(crate) struct Parts {
    /// As stored, f32 `[M, C, H, W]`.
    stored: PyTensor,
    /// i64 `[M]`.
    stored_labels: PyTensor,
    formation: i64,
    /// The images to train on and their labels.
    images: PyTensor,
    labels: PyTensor,
    soft_labels: Option<PyTensor>,
    /// JSON.
    header: String,
}

impl Parts {
    pub(crate) fn of(set: &SyntheticSet) -> PyResult<Self> {
        let (images, labels) = set.decode(Device::Cpu);
        Ok(Self {
            stored: PyTensor(to_tensor(set.images.view())),
            stored_labels: PyTensor(to_tensor(set.labels.view())),
            formation: set.formation,
            images: PyTensor(images),
            labels: PyTensor(labels),
            soft_labels: set.soft_labels.as_ref().map(|soft| PyTensor(to_tensor(soft.view()))),
            header: serde_json::to_string(&set.header).map_err(runtime_error)?,
        })
    }
}

#[pyfunction]
pub(crate) fn load_set(path: PathBuf) -> PyResult<Parts> {
    let inside = path.join(folder::SET);
    let is_folder = path.is_dir() && !SyntheticSet::is_png_folder(&path);
    let is_run = is_folder && inside.is_file();
    if is_folder && !is_run && path.join("run.json").is_file() {
        return Err(pyo3::exceptions::PyValueError::new_err(format!(
            "the distillation in {} is not finished: the call or the command that began it goes on with it",
            path.display()
        )));
    }
    Parts::of(&SyntheticSet::load(if is_run { &inside } else { &path }).map_err(value_error)?)
}

/// What Python stores: tensors and the header's JSON.
#[derive(FromPyObject)]
pub(crate) struct Given {
    stored: PyTensor,
    stored_labels: PyTensor,
    soft_labels: Option<PyTensor>,
    formation: i64,
    header: String,
}

impl Given {
    pub(crate) fn set(&self) -> PyResult<SyntheticSet> {
        let header: SyntheticHeader = serde_json::from_str(&self.header).map_err(value_error)?;
        let named = [("images", &self.stored), ("labels", &self.stored_labels)];
        let soft = self.soft_labels.as_ref().map(|soft| ("soft_labels", soft));
        let tensors = named
            .into_iter()
            .chain(soft)
            .map(|(name, tensor)| (name.to_owned(), tensor.detach().to_device(Device::Cpu).contiguous()));
        SyntheticSet::from_tensors(tensors.collect(), self.formation, header).map_err(value_error)
    }
}

/// The images to train on and their labels, of what is stored.
#[pyfunction]
pub(crate) fn decode(set: Given) -> PyResult<(PyTensor, PyTensor)> {
    let (images, labels) = set.set()?.decode(Device::Cpu);
    Ok((PyTensor(images), PyTensor(labels)))
}

/// Writes a set in the format that the name of the path says: `.npz`, a folder of PNG images without an extension, else
/// safetensors.
#[pyfunction]
pub(crate) fn save_set(set: Given, path: PathBuf, quantize: bool) -> PyResult<()> {
    let set = set.set()?;
    let written = match path.extension().and_then(|extension| extension.to_str()) {
        Some("npz") => set.save_npz(&path),
        None => set.save_png(&path, quantize).map(drop),
        Some(_) => set.save(&path),
    };
    written.map_err(value_error)
}

/// Labelled images of Python as a training set.
pub(crate) fn dataset(name: &str, images: &Tensor, labels: &Tensor, n_classes: usize) -> PyResult<Dataset> {
    let images = bytes(images, labels)?;
    let images = to_array(&images).map_err(pyo3::exceptions::PyValueError::new_err)?;
    let labels = to_array(&labels.to_device(Device::Cpu)).map_err(pyo3::exceptions::PyValueError::new_err)?;
    let train = Split::new(images, labels, n_classes).map_err(value_error)?;
    let test = train.select(&[]);
    Dataset::in_memory(name, train, test).map_err(value_error)
}

/// u8 images as they are; f32 images in [0, 1] to the nearest of 256 values, as files of images have them.
fn bytes(images: &Tensor, labels: &Tensor) -> PyResult<Tensor> {
    let images = images.detach().to_device(Device::Cpu);
    let checked = LabelledImages::new(images.shallow_clone(), labels.detach().to_device(Device::Cpu));
    let checked = checked.map_err(value_error)?;
    if images.kind() == Kind::Uint8 {
        return Ok(images.contiguous());
    }
    let _no_grad = tch::no_grad_guard();
    Ok((checked.images() * 255.0).round().to_kind(Kind::Uint8))
}

/// The file of a teacher that labels the set at `path`.
pub(crate) fn teacher_beside(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(folder::TEACHER) } else { path.with_file_name(folder::TEACHER) }
}
