use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use c2r_base::{Classifier, ClassifierError};
use tch::{Device, Kind, Tensor};

use crate::{
    architecture::Architecture,
    error::{Misfit, ModelError},
    input::ModelInput,
    layer::{Layer, Stack},
};

/// Where a file may keep its parameters; the empty one is its top level.
const PLACES: [&str; 6] = ["", "state_dict", "model_state_dict", "model", "net", "network"];
/// What wrappers put before every name: `DataParallel` and `torch.compile`.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];
/// Other names of the last layer, and of a block's shortcut: AlexNet of DC has `fc`, torchvision and kuangliu's ResNet
/// `fc`, `linear` and `downsample`.
const SYNONYMS: [(&str, &str); 3] = [("fc", "classifier"), ("linear", "classifier"), ("downsample", "shortcut")];
/// Counted by batch normalization, and used by nothing here.
const COUNTER: &str = "num_batches_tracked";

/// A network whose parameters come from a PyTorch `state_dict`, as a classifier. It computes what the field's code computes
/// after `eval()`, up to float rounding.
#[derive(Debug)]
pub struct StateDict {
    architecture: Architecture,
    stack: Stack,
    input: ModelInput,
    mean: Tensor,
    std: Tensor,
    device: Device,
    left_out: Vec<String>,
}

impl StateDict {
    /// Takes the parameters of `architecture` from the tensors of a file.
    ///
    /// They are looked for at the top level and under `state_dict`, `model_state_dict`, `model`, `net` and `network`, with or
    /// without `module.` before every name; what lies elsewhere, such as the state of an optimizer, is left out
    /// ([`StateDict::left_out`]).
    ///
    /// * `tensors`: by name, nested dictionaries with a point between the names.
    /// * `input`: the images, with the normalization that the network expects; a mean of 0 and a deviation of 1 is none.
    ///
    /// # Errors
    /// [`ModelError::StateDict`] naming everything that does not fit, [`ModelError::Input`], [`ModelError::TooSmall`].
    pub fn new(
        architecture: Architecture,
        input: &ModelInput,
        tensors: &BTreeMap<String, Tensor>,
        device: Device,
    ) -> Result<Self, ModelError> {
        input.check()?;
        let shapes: BTreeMap<String, Vec<i64>> = tensors.iter().map(|(name, t)| (name.clone(), t.size())).collect();
        let Found { layers, names, mut misfit } = find(architecture, input, &shapes)?;
        if !misfit.is_empty() {
            let width = shapes.values().find(|shape| shape.len() == 4).map_or(0, |shape| shape[0]);
            misfit.fits = Architecture::all(width)
                .filter(|other| find(*other, input, &shapes).is_ok_and(|found| found.misfit.is_empty()))
                .map(|other| other.to_string())
                .collect();
            let [channels, height, width] = input.image_shape();
            let of = format!("{architecture} for {channels}x{height}x{width} images in {} classes", input.n_classes);
            return Err(ModelError::StateDict { of, misfit: Box::new(misfit) });
        }
        let mut parameters = BTreeMap::new();
        for (name, in_file) in &names {
            let tensor = &tensors[in_file];
            if !matches!(tensor.kind(), Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16) {
                return Err(ModelError::StateDictKind { name: in_file.clone(), kind: format!("{:?}", tensor.kind()) });
            }
            let parameter = tensor.detach().to_kind(Kind::Float).to_device(device).contiguous();
            parameters.insert(name.clone(), parameter);
        }
        let taken: BTreeSet<&String> = names.values().collect();
        let left_out =
            tensors.keys().filter(|name| !taken.contains(name) && !name.ends_with(COUNTER)).cloned().collect();
        let per_channel = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
            Tensor::from_slice(&values).view([1, input.channels, 1, 1]).to_device(device)
        };
        Ok(Self {
            architecture,
            stack: Stack::new(layers, &parameters),
            mean: per_channel(&input.mean),
            std: per_channel(&input.std),
            input: input.clone(),
            device,
            left_out,
        })
    }

    /// How many classes the file's last layer tells apart, where it has one of the known names.
    pub fn classes_of(tensors: &BTreeMap<String, Tensor>) -> Option<i64> {
        let is_last = |name: &str| {
            let mut parts = name.rsplit('.');
            parts.next() == Some("bias") && parts.next().is_some_and(|part| canonical(part) == "classifier")
        };
        tensors.iter().find(|(name, tensor)| is_last(name) && tensor.dim() == 1).map(|(_, tensor)| tensor.size()[0])
    }

    /// The architecture.
    pub const fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// What it was made for.
    pub const fn input(&self) -> &ModelInput {
        &self.input
    }

    /// Parameters and running statistics by name.
    pub fn state(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.stack.parameters()
    }

    /// Tensors of the file that are not parameters of the network.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// How many numbers the parameters are; running statistics are not parameters.
    pub fn n_parameters(&self) -> i64 {
        self.stack.n_parameters()
    }
}

impl Classifier for StateDict {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        let (size, shape) = (images.size(), self.input.image_shape());
        if size.len() != 4 || size[1..] != shape {
            let reason = format!("{} takes images of shape {shape:?} for each, got {size:?}", self.architecture);
            return Err(ClassifierError::new(reason));
        }
        let features = self.stack.features(&((images - &self.mean) / &self.std), None);
        let last = |part: &str| self.stack.parameter("classifier", part);
        Ok(features.linear(last("weight").expect("it was found when the network was made"), last("bias")))
    }

    fn device(&self) -> Device {
        self.device
    }

    fn replica(&self) -> Option<Box<dyn Classifier + Send>> {
        Some(Box::new(Self {
            architecture: self.architecture,
            stack: self.stack.share(),
            input: self.input.clone(),
            mean: self.mean.shallow_clone(),
            std: self.std.shallow_clone(),
            device: self.device,
            left_out: Vec::new(),
        }))
    }
}

struct Found {
    layers: Vec<Layer>,
    /// Name in the file by name in the architecture.
    names: BTreeMap<String, String>,
    misfit: Misfit,
}

/// The place in the file, and the padding, that fit best.
fn find(
    architecture: Architecture,
    input: &ModelInput,
    shapes: &BTreeMap<String, Vec<i64>>,
) -> Result<Found, ModelError> {
    let mut best: Option<Found> = None;
    for (layers, n_features) in architecture.variants(input)? {
        let expected = Architecture::parameters(&layers, n_features, input.n_classes);
        // Lightning keeps `model.` inside `state_dict`.
        let places = PLACES.iter().flat_map(|outer| PLACES.map(|inner| format!("{outer}.{inner}")));
        for place in places {
            let found = compare(&expected, place.trim_matches('.'), shapes);
            // Where no name is known, the error lists the whole file.
            let rank = |found: &Found| match found.names.len() {
                0 => (Reverse(0), usize::MAX - found.misfit.unexpected.len()),
                n => (Reverse(n), found.misfit.len()),
            };
            let found = Found { layers: layers.clone(), ..found };
            if best.as_ref().is_none_or(|best| rank(&found) < rank(best)) {
                best = Some(found);
            }
        }
    }
    Ok(best.expect("there is a variant and a place"))
}

/// What the tensors under `place` have of the `expected` ones.
fn compare(expected: &[(String, Vec<i64>)], place: &str, shapes: &BTreeMap<String, Vec<i64>>) -> Found {
    let mut by_name: BTreeMap<String, (&String, &Vec<i64>)> = BTreeMap::new();
    for (in_file, shape) in shapes {
        let inside = if place.is_empty() {
            Some(in_file.as_str())
        } else {
            in_file.strip_prefix(place).and_then(|rest| rest.strip_prefix('.'))
        };
        if let Some(mut name) = inside.filter(|name| !name.ends_with(COUNTER)) {
            while let Some(rest) = WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper)) {
                name = rest;
            }
            let name = name.split('.').map(canonical).collect::<Vec<_>>().join(".");
            by_name.insert(name, (in_file, shape));
        }
    }
    let mut found = Found { layers: Vec::new(), names: BTreeMap::new(), misfit: Misfit::default() };
    for (name, shape) in expected {
        match by_name.remove(name) {
            None => found.misfit.missing.push((name.clone(), shape.clone())),
            Some((in_file, there)) => {
                if there != shape {
                    found.misfit.shapes.push((in_file.clone(), there.clone(), shape.clone()));
                }
                found.names.insert(name.clone(), in_file.clone());
            }
        }
    }
    // At the top level lies also what belongs to a training: its own dictionaries are not parameters.
    let other = |name: &str| place.is_empty() && !found.names.is_empty() && is_training(name);
    let unexpected = by_name.into_values().filter(|(name, _)| !other(name));
    found.misfit.unexpected = unexpected.map(|(name, shape)| (name.clone(), shape.clone())).collect();
    found
}

/// Whether a name at the top level begins with a dictionary that trainings save beside the parameters.
fn is_training(name: &str) -> bool {
    let first = name.split(['.', '[']).next().unwrap_or_default();
    ["optimizer", "optim", "scheduler", "lr_scheduler", "scaler", "ema", "best", "epoch"]
        .iter()
        .any(|known| first == *known || first.strip_prefix(known).is_some_and(|rest| rest.starts_with('_')))
}

/// The name that the architectures use for a part of a name.
fn canonical(part: &str) -> &str {
    SYNONYMS.iter().find(|(other, _)| *other == part).map_or(part, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use c2r_testkit::assert_close;
    use serde::Deserialize;

    use super::*;

    /// Made by `tests/state_dict.py`.
    #[derive(Deserialize)]
    struct Case {
        architecture: String,
        image: [i64; 3],
        state: BTreeMap<String, Vec<i64>>,
        logits: Vec<Vec<f32>>,
    }

    fn cases() -> Vec<Case> {
        serde_json::from_str(include_str!("../tests/state_dict.json")).unwrap()
    }

    /// The formula of `noise` in `tests/state_dict.py`.
    fn noise(n: i64, j: usize) -> Vec<f64> {
        let (a, b) = (0.754_877_666_246_692_7, 0.569_840_290_998_053_2);
        (1..=n).map(|i| i as f64 * a + j as f64 * b).map(|x| x - x.floor() - 0.5).collect()
    }

    /// The formula of `fill` in `tests/state_dict.py`.
    fn filled(state: &BTreeMap<String, Vec<i64>>) -> BTreeMap<String, Tensor> {
        let names = state.iter().filter(|(name, _)| !name.ends_with(COUNTER));
        let mut tensors: BTreeMap<String, Tensor> = names
            .enumerate()
            .map(|(j, (name, shape))| {
                let fan_in = shape[1..].iter().product::<i64>() as f64;
                let value = |v: f64| match shape.len() {
                    2 | 4 => v * 4.0 / fan_in.sqrt(),
                    _ if name.ends_with("weight") || name.ends_with("running_var") => 1.0 + 0.4 * v,
                    _ => 0.2 * v,
                };
                let values: Vec<f32> = noise(shape.iter().product(), j).into_iter().map(|v| value(v) as f32).collect();
                (name.clone(), Tensor::from_slice(&values).view(shape.as_slice()))
            })
            .collect();
        let counters = state.keys().filter(|name| name.ends_with(COUNTER));
        tensors.extend(counters.map(|name| (name.clone(), Tensor::from(7i64))));
        tensors
    }

    fn input([channels, height, width]: [i64; 3]) -> ModelInput {
        let per_channel = |value: f64| vec![value; channels as usize];
        ModelInput { channels, height, width, n_classes: 10, mean: per_channel(0.4), std: per_channel(0.25) }
    }

    #[test]
    fn the_logits_are_those_of_pytorch() {
        for case in cases() {
            let name = format!("{} {:?}", case.architecture, case.image);
            let architecture: Architecture = case.architecture.parse().unwrap();
            let network = StateDict::new(architecture, &input(case.image), &filled(&case.state), Device::Cpu);
            let network = network.unwrap_or_else(|error| panic!("{name}: {error}"));
            let [channels, height, width] = case.image;
            let pixels: Vec<f32> =
                noise(2 * channels * height * width, 0).into_iter().map(|v| (v + 0.5) as f32).collect();
            let images = Tensor::from_slice(&pixels).view([2, channels, height, width]);
            let expected = Tensor::from_slice2(&case.logits);
            let size = expected.abs().max().double_value(&[]);
            assert_close(&name, &(network.logits(&images).unwrap() / size), &(&expected / size), 1e-5);
            assert_close(
                &name,
                &(network.replica().unwrap().logits(&images).unwrap() / size),
                &(&expected / size),
                1e-5,
            );
            assert!(network.left_out().is_empty(), "{name}: {:?}", network.left_out());
            // The images tell one set of parameters from another.
            assert!(expected.std_dim([1i64].as_slice(), true, false).min().double_value(&[]) > 1e-2 * size, "{name}");
        }
    }

    fn convnet() -> (Architecture, ModelInput, BTreeMap<String, Tensor>) {
        let case = cases().remove(0);
        (case.architecture.parse().unwrap(), input(case.image), filled(&case.state))
    }

    #[test]
    fn parameters_are_found_where_trainings_put_them() {
        let (architecture, input, plain) = convnet();
        let logits = |tensors: &BTreeMap<String, Tensor>| {
            let network = StateDict::new(architecture, &input, tensors, Device::Cpu).unwrap();
            let images = c2r_testkit::toys::images(2, [3, 32, 32]);
            (network.logits(&images).unwrap(), network.left_out().to_vec())
        };
        let (expected, _) = logits(&plain);
        for prefix in
            ["module.", "state_dict.", "net.module.", "model._orig_mod.", "state_dict.model.", "model_state_dict."]
        {
            let mut tensors: BTreeMap<String, Tensor> =
                plain.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.shallow_clone())).collect();
            tensors.insert(
                "optimizer.state.0.momentum_buffer".into(),
                Tensor::zeros([16, 3, 3, 3], (Kind::Float, Device::Cpu)),
            );
            let (found, left_out) = logits(&tensors);
            assert_eq!(found, expected, "{prefix}");
            assert_eq!(left_out, ["optimizer.state.0.momentum_buffer"], "{prefix}");
        }
        let fc: BTreeMap<String, Tensor> = plain
            .iter()
            .map(|(name, tensor)| (name.replace("classifier", "fc"), tensor.to_kind(Kind::Double)))
            .collect();
        assert_eq!(logits(&fc).0, expected);
        assert_eq!(StateDict::classes_of(&fc), Some(10));
    }

    #[test]
    fn what_does_not_fit_is_listed_on_both_sides() {
        let (architecture, input, plain) = convnet();
        let misfit = |architecture: Architecture, tensors: &BTreeMap<String, Tensor>| match StateDict::new(
            architecture,
            &input,
            tensors,
            Device::Cpu,
        ) {
            Err(ModelError::StateDict { misfit, .. }) => *misfit,
            other => panic!("{other:?}"),
        };
        let mut tensors: BTreeMap<String, Tensor> =
            plain.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        let bias = tensors.remove("features.1.bias").unwrap();
        tensors.insert("features.1.beta".into(), bias);
        tensors.insert("classifier.bias".into(), Tensor::zeros([100], (Kind::Float, Device::Cpu)));
        let found = misfit(architecture, &tensors);
        assert_eq!(found.missing, [("features.1.bias".to_owned(), vec![16])]);
        assert_eq!(found.unexpected, [("features.1.beta".to_owned(), vec![16])]);
        assert_eq!(found.shapes, [("classifier.bias".to_owned(), vec![100], vec![10])]);
        assert!(found.fits.is_empty());

        let other = misfit("ConvNet-D3-W128-NONE".parse().unwrap(), &plain);
        assert_eq!(other.fits, ["ConvNet-D3-W16-IN", "ConvNet-D3-W16-GN"]);
        let said = other.to_string();
        assert!(said.contains("`features.0.weight` is [16, 3, 3, 3] in the file and [128, 3, 3, 3]"), "{said}");
        assert!(said.contains("the file fits ConvNet-D3-W16-IN or ConvNet-D3-W16-GN"), "{said}");

        let whole: BTreeMap<String, Tensor> =
            plain.iter().map(|(name, tensor)| (name.clone(), tensor.to_kind(Kind::Int64))).collect();
        let error = StateDict::new(architecture, &input, &whole, Device::Cpu).unwrap_err();
        assert!(matches!(&error, ModelError::StateDictKind { kind, .. } if kind == "Int64"), "{error}");
    }
}
