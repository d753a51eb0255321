//! What the tests share.

use c2r_attacks::{Answer, Attack, AttackConfig, AttackReport, EvaluateOptions, evaluate};
use c2r_base::{Classifier, Epsilon, LabelledImages, Norm, ThreatModel};
use c2r_testkit::goldens::Goldens;
use tch::{CModule, Device, Tensor};

pub(crate) const MODELS: [&str; 2] = ["convnet_nat", "convnet_at8"];

/// A TorchScript model of the goldens.
pub(crate) struct Script(CModule);

impl Script {
    pub(crate) fn load(goldens: &Goldens, model: &str) -> Self {
        let mut module = CModule::load(goldens.path(&format!("{model}.torchscript.pt"))).unwrap();
        module.set_eval();
        Self(module)
    }
}

impl Classifier for Script {
    fn logits(&self, images: &Tensor) -> Tensor {
        self.0.forward_ts(&[images]).unwrap()
    }

    fn device(&self) -> Device {
        Device::Cpu
    }
}

/// The first `n` images of the goldens.
pub(crate) fn first(goldens: &Goldens, n: i64) -> LabelledImages {
    let (images, labels) = goldens.images();
    LabelledImages::new(images.narrow(0, 0, n), labels.narrow(0, 0, n)).unwrap()
}

pub(crate) fn config(name: &str, options: &[(&str, &str)]) -> AttackConfig {
    let mut config = AttackConfig::named(name).unwrap();
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
    evaluate(model, data, attacks, threat, options, &mut |_| Answer::Continue(())).unwrap()
}

pub(crate) fn flags(tensor: &Tensor) -> Vec<bool> {
    Vec::<bool>::try_from(tensor.to_kind(tch::Kind::Bool)).unwrap()
}

/// How many entries differ.
pub(crate) fn n_different(a: &[bool], b: &[bool]) -> usize {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).filter(|(a, b)| a != b).count()
}
