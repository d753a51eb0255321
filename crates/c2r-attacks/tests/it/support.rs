//! What the tests share.

use std::{cell::RefCell, collections::BTreeMap, io::Write};

use c2r_attacks::{Attack, AttackConfig, AttackReport, EvaluateOptions, evaluate};
use c2r_base::{Classifier, ClassifierError, Epsilon, LabelledImages, Norm, ThreatModel};
use c2r_testkit::{goldens::Goldens, toys};
use tch::{CModule, Device, Tensor};

pub(crate) const MODELS: [&str; 2] = ["convnet_nat", "convnet_at8"];

/// A TorchScript model of the goldens.
pub(crate) struct Script(CModule);

impl Script {
    pub(crate) fn load(goldens: &Goldens, model: &str) -> Self {
        // One thread, as the goldens were made; the tests themselves run in parallel.
        tch::set_num_threads(1);
        let mut module = CModule::load(goldens.path(&format!("{model}.torchscript.pt"))).unwrap();
        module.set_eval();
        Self(module)
    }
}

impl Classifier for Script {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        Ok(self.0.forward_ts(&[images]).unwrap())
    }

    fn device(&self) -> Device {
        Device::Cpu
    }
}

/// The same network from its plain weights, computed layer by layer as the reference did: TorchScript
/// fuses layers, which moves last bits.
pub(crate) struct Layers(BTreeMap<String, Tensor>);

impl Layers {
    pub(crate) fn load(goldens: &Goldens, model: &str) -> Self {
        tch::set_num_threads(1);
        Self(goldens.tensors(&format!("{model}.safetensors")).tensors)
    }
}

impl Classifier for Layers {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        let of = |layer: usize, name: &str| &self.0[&format!("features.{layer}.{name}")];
        let mut x = (images - &self.0["norm.mean"]) / &self.0["norm.std"];
        for block in 0..3 {
            let (conv, norm) = (4 * block, 4 * block + 1);
            x = x.conv2d(of(conv, "weight"), Some(of(conv, "bias")), 1, 1, 1, 1);
            x = x.group_norm(32, Some(of(norm, "weight")), Some(of(norm, "bias")), 1e-5, true);
            x = x.relu().avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>);
        }
        Ok(x.flatten(1, -1).linear(&self.0["classifier.weight"], Some(&self.0["classifier.bias"])))
    }

    fn device(&self) -> Device {
        Device::Cpu
    }
}

/// A model that remembers what it was asked about.
pub(crate) struct Recorder<'a>(&'a dyn Classifier, RefCell<Vec<Tensor>>);

impl<'a> Recorder<'a> {
    pub(crate) fn new(model: &'a dyn Classifier) -> Self {
        Self(model, RefCell::default())
    }

    /// The images of each pass since the last call.
    pub(crate) fn asked(&self) -> Vec<Tensor> {
        self.1.take()
    }
}

impl Classifier for Recorder<'_> {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        self.1.borrow_mut().push(images.detach().copy());
        self.0.logits(images)
    }

    fn device(&self) -> Device {
        Device::Cpu
    }
}

/// Logits, f32 `[N, K]`, as a function of the flattened images, f32 `[N, D]`.
pub(crate) fn function(logits: impl Fn(&Tensor) -> Tensor) -> impl Classifier {
    toys::function(move |images| logits(&images.flatten(1, -1)))
}

/// Images of one row of pixels each.
pub(crate) fn rows_of_pixels<const D: usize>(rows: &[[f32; D]]) -> Tensor {
    Tensor::from_slice(rows.as_flattened()).view([-1, 1, 1, D as i64])
}

/// The first `n` images of the goldens.
pub(crate) fn first(goldens: &Goldens, n: i64) -> LabelledImages {
    let (images, labels) = goldens.images();
    LabelledImages::new(images.narrow(0, 0, n), labels.narrow(0, 0, n)).unwrap()
}

pub(crate) fn config(name: &str, options: &[(&str, &str)]) -> AttackConfig {
    let mut config = name.parse::<AttackConfig>().unwrap();
    for (option, value) in options {
        config.set(option, value).unwrap_or_else(|error| panic!("{error}"));
    }
    config
}

/// A threat model with a radius that has no short spelling.
pub(crate) fn threat(norm: Norm, epsilon: f64) -> ThreatModel {
    ThreatModel::untargeted(norm, radius(epsilon))
}

pub(crate) fn radius(epsilon: f64) -> Epsilon {
    // `{:?}` of an f64 reads back as the same f64.
    format!("{epsilon:?}").parse().unwrap()
}

pub(crate) fn run(
    model: &dyn Classifier,
    data: &LabelledImages,
    attacks: &[Box<dyn Attack>],
    threat: &ThreatModel,
    options: &EvaluateOptions,
) -> AttackReport {
    evaluate(model, data, attacks, threat, options).unwrap()
}

pub(crate) fn flags(tensor: &Tensor) -> Vec<bool> {
    Vec::<bool>::try_from(tensor.to_kind(tch::Kind::Bool)).unwrap()
}

/// A line of docs/attacks/conformance.md, past the harness, which keeps the output of tests that pass.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Shares as percents; values that repeat are written once.
pub(crate) fn percents(values: &[f64]) -> String {
    let mut texts: Vec<String> =
        values.iter().map(|value| format!("{:.1}", 100.0 * value).trim_end_matches(".0").to_owned()).collect();
    texts.dedup();
    texts.join(" ")
}

/// How many entries differ.
pub(crate) fn n_different(a: &[bool], b: &[bool]) -> usize {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).filter(|(a, b)| a != b).count()
}
