//! `c2r.train`: the training of `c2r train`, from a set in memory to a state dict.

use std::{ffi::CString, path::PathBuf};

use c2r_base::{Epsilon, LabelledImages, Seed};
use c2r_data::{Dataset, DatasetSpec, SetLabels, arrays::to_tensor};
use c2r_models::{Frozen, Model, ModelSpec, checkpoint};
use c2r_train::{Protocol, Targets, Teacher, TrainConfig, TrainSource, TrainStep, Trainer, layers, model_input};
use pyo3::{
    exceptions::{PyUserWarning, PyValueError},
    prelude::*,
};
use pyo3_tch::PyTensor;
use tch::{Device, Tensor};

use crate::{
    error::{caught, runtime_error, value_error},
    memory::KeepMemory,
    sets::{self, Given, teacher_beside},
    watch::{Watch, device},
};

/// What Python gives: `package/c2r/_sets.py` fills it.
#[derive(FromPyObject)]
pub(crate) struct Request {
    /// A distilled set and the file that it is from, if it is from one.
    distilled: Option<Given>,
    path: Option<PathBuf>,
    /// Real images otherwise.
    name: String,
    images: Option<PyTensor>,
    labels: Option<PyTensor>,
    n_classes: usize,
    protocol: String,
    /// `key=value` in TOML, in order.
    set: Vec<String>,
    model: Option<String>,
    eps: Option<String>,
    seed: u64,
    device: String,
    progress: Option<Py<PyAny>>,
}

/// What Python gets: parameters by name, the specification of the network, and mean and deviation of each channel.
type Answer = (Vec<(String, PyTensor)>, String, Vec<f64>, Vec<f64>);

#[pyfunction]
pub(crate) fn train(py: Python<'_>, request: Request) -> PyResult<Answer> {
    let device = device(&request.device)?;
    let work = move || {
        let _kept = KeepMemory::new();
        run(request, device)
    };
    py.allow_threads(|| caught("the training", work))
}

/// What to train on.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
enum Material {
    Distilled { images: LabelledImages, formation: i64, soft: Option<Tensor>, teacher: Option<(Frozen, f64)> },
    Real(Dataset),
}

impl Material {
    fn targets(&self) -> Targets<'_> {
        match self {
            Self::Distilled { teacher: Some((network, temperature)), .. } => {
                Targets::Teacher(Teacher { network, temperature: *temperature })
            }
            Self::Distilled { soft: Some(soft), .. } => Targets::Soft(soft),
            _ => Targets::Hard,
        }
    }

    fn source(&self) -> TrainSource<'_> {
        match self {
            Self::Distilled { images, formation, .. } => {
                TrainSource::new(images, self.targets()).of_mosaics(*formation as usize)
            }
            Self::Real(dataset) => TrainSource::of_split(&dataset.train, self.targets()),
        }
    }
}

fn run(request: Request, device: Device) -> PyResult<Answer> {
    let (spec, material) = material(&request, device)?;
    let network: ModelSpec = request.model.as_ref().unwrap_or(&spec.model).parse().map_err(value_error)?;
    let config = config(&request, &spec, &material)?;
    let seed = Seed::new(request.seed);
    let input = model_input(&spec);
    let mut model = Model::new(&network, &input, seed.child("model", 0), device).map_err(value_error)?;
    let mut trainer = Trainer::new(&mut model, &material.source(), &config, seed).map_err(value_error)?;
    let watch = Watch(request.progress);
    let mut text = String::new();
    while let Some(TrainStep { step, steps, loss, .. }) = trainer.step().map_err(runtime_error)? {
        if let Some(loss) = loss {
            text = format!("loss {loss:.3}");
        }
        watch.tell("train", step + 1, steps, text.clone())?;
    }
    let state = model.state().into_iter().map(|(name, tensor)| (name, PyTensor(tensor))).collect();
    Ok((state, network.to_string(), input.mean, input.std))
}

fn material(request: &Request, device: Device) -> PyResult<(DatasetSpec, Material)> {
    let Some(given) = &request.distilled else {
        let (Some(images), Some(labels)) = (&request.images, &request.labels) else {
            return Err(PyValueError::new_err("neither a set nor images"));
        };
        let dataset = sets::dataset(&request.name, images, labels, request.n_classes)?;
        return Ok((dataset.spec.clone(), Material::Real(dataset)));
    };
    let set = given.set()?;
    let (images, labels) = set.decode(device);
    let images = LabelledImages::new(images, labels).map_err(value_error)?;
    let header = &set.header;
    let spec = set.spec().map_err(value_error)?;
    let origin = header.origin().map_err(value_error)?;
    let teacher = match (&request.path, origin.labels) {
        (Some(path), SetLabels::Teacher) => {
            let (model, _) = checkpoint::load(&teacher_beside(path), device).map_err(value_error)?;
            Some((Frozen::new(model), origin.teacher.unwrap_or_default().temperature))
        }
        (None, SetLabels::Teacher) => {
            let message = "the set is labelled by a teacher, whose file is next to the set's: give distill a run_dir, and \
                           train what load_set returns for it";
            return Err(PyValueError::new_err(message));
        }
        _ => None,
    };
    let soft = set.soft_labels.as_ref().map(|soft| to_tensor(soft.view()).to_device(device));
    Ok((spec, Material::Distilled { images, formation: set.formation, soft, teacher }))
}

/// The protocol with the caller's changes, as the command resolves it.
fn config(request: &Request, spec: &DatasetSpec, material: &Material) -> PyResult<TrainConfig> {
    let protocol: Protocol = request.protocol.parse().map_err(value_error)?;
    let is_real = matches!(material, Material::Real(_));
    let mut preset = if is_real { protocol.full_data() } else { protocol.config() };
    preset.labels = material.targets().label_source();
    preset.dsa = spec.dsa.clone();
    let epsilon = request.eps.as_ref().map(|eps| eps.parse::<Epsilon>()).transpose().map_err(value_error)?;
    match &mut preset.adversarial {
        Some(adversarial) => adversarial.epsilon = epsilon.unwrap_or(spec.epsilon),
        None if epsilon.is_some() => Python::with_gil(|py| {
            let text = CString::new(format!("eps has no effect: the protocol {protocol} does not attack"))?;
            // Above `_arguments.ask` and `c2r.train`.
            PyErr::warn(py, &py.get_type::<PyUserWarning>(), &text, 3)
        })?,
        None => {}
    }
    let parse = |text: &String| {
        layers::parse_assignment(text).ok_or_else(|| PyValueError::new_err(format!("`{text}` is not key=value")))
    };
    let changes: Vec<_> = request.set.iter().map(parse).collect::<PyResult<_>>()?;
    let mut table = toml::Table::try_from(&preset).map_err(runtime_error)?;
    layers::assign(&mut table, &changes).map_err(value_error)?;
    let config: TrainConfig = layers::read(table).map_err(value_error)?;
    config.check().map_err(value_error)?;
    Ok(config)
}
