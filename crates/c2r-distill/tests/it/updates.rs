//! The first updates of C²R against those that `tests/goldens/reference.py` computes in PyTorch, following docs/method.md.
//! Every clone has its numbers.

use std::{collections::BTreeMap, path::Path};

use c2r_base::artifact::{TensorFile, read_json};
use c2r_data::{Dataset, Split, arrays::to_array};
use c2r_distill::{DistillConfig, Distillation};
use serde::Deserialize;
use serde_json::Value;
use tch::{Device, Tensor};

struct Updates {
    tensors: BTreeMap<String, Tensor>,
    manifest: Value,
    dataset: Dataset,
}

impl Updates {
    fn load() -> Self {
        tch::set_num_threads(1);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
        let tensors = TensorFile::read(&folder.join("updates.safetensors")).unwrap().tensors;
        let manifest: Value = read_json(&folder.join("updates.json")).unwrap();
        let list = |name: &str| Vec::<f64>::deserialize(&manifest[name]).unwrap();
        let mut spec = c2r_data::spec("cifar10").unwrap();
        (spec.height, spec.width) = (8, 8);
        (spec.mean, spec.std) = (list("mean"), list("std"));
        spec.classes.truncate(3);
        let [images, labels] = ["real.images", "real.labels"].map(|name| &tensors[name]);
        let train = Split::new(to_array(images).unwrap(), to_array(labels).unwrap(), 3).unwrap();
        Self { dataset: Dataset { spec, test: train.clone(), train, notes: Vec::new() }, tensors, manifest }
    }

    fn settings(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.manifest["settings"].as_object().unwrap().iter()
    }

    /// The run of a setting before its first update, with the network and the images of the reference.
    fn start(&self, changes: &Value) -> Distillation {
        let mut keys = self.manifest["common"].as_object().unwrap().clone();
        keys.extend(changes.as_object().unwrap().clone());
        let keys = keys.into_iter().map(|(key, value)| (key, toml::Value::deserialize(value).unwrap()));
        let config = DistillConfig::resolve("faithful", &self.dataset.spec, keys).unwrap();
        let formation = config.common.images.formation;
        let mut run = Distillation::new(config, &self.dataset, Device::Cpu).unwrap();
        while run.progress().0 < 5 {
            run.step().unwrap();
        }
        // The pool holds one network, which five steps have trained. Nothing of it stays. It may still be trained, and has an
        // accuracy since its first step.
        let mut state = run.state().unwrap();
        let mut put = |name: &str, value: Tensor| {
            let old = state.tensors.insert(name.to_owned(), value).unwrap_or_else(|| panic!("no `{name}` in a state"));
            assert_eq!(old.size(), state.tensors[name].size(), "{name}");
        };
        put("images", self.tensors[&format!("first.{formation}")].shallow_clone());
        put("pool.0000.accuracy", Tensor::from_slice(&[self.manifest["accuracy"].as_f64().unwrap()]));
        put("pool.0000.age", Tensor::from_slice(&[1i64]));
        for (name, value) in &self.tensors {
            if let Some(name) = name.strip_prefix("weights.") {
                put(&format!("pool.0000.sgd.{name}"), value.zeros_like());
                put(&format!("pool.0000.model.{name}"), value.shallow_clone());
            }
        }
        run.restore(&state).unwrap();
        run
    }

    /// What differs from the reference.
    fn differences(&self, name: &str, setting: &Value) -> Vec<String> {
        let mut run = self.start(&setting["set"]);
        let mut found = Vec::new();
        for (t, expected) in setting["log"].as_array().unwrap().iter().enumerate() {
            run.step().unwrap();
            let report = serde_json::to_value(run.report().unwrap().unwrap()).unwrap();
            for (key, expected) in expected.as_object().unwrap() {
                if !is_close(&report[key], expected, key.contains("margin")) {
                    let update = t + 1;
                    found.push(format!("{name}, update {update}: {key} is {}, not {expected}", report[key]));
                }
            }
        }
        assert!(run.is_finished(), "{name}");
        // Not `images()`, which are clamped.
        let images = &run.state().unwrap().tensors["images"];
        let off = (images - &self.tensors[&format!("images.{name}")]).abs().max().double_value(&[]);
        if off.is_nan() || off > 1e-5 {
            found.push(format!("{name}: pixels are off by {off:e}"));
        }
        found
    }
}

/// Numbers, lists of them, and what is not measured.
fn is_close(got: &Value, expected: &Value, is_margin: bool) -> bool {
    match (got, expected) {
        (Value::Null, Value::Null) => true,
        (Value::Array(got), Value::Array(expected)) => {
            got.len() == expected.len()
                && got.iter().zip(expected).all(|(got, expected)| is_close(got, expected, is_margin))
        }
        _ => {
            let [got, expected] = [got, expected].map(|value| value.as_f64().unwrap_or(f64::NAN));
            // Margins may be about 0.
            let scale = if is_margin { 1.0 } else { expected.abs() };
            (got - expected).abs() <= 2e-5 * scale
        }
    }
}

/// A network and images on which rounding decides nothing: make_updates.py checks that, and that every setting shows.
#[test]
fn the_first_updates_are_those_of_the_reference() {
    let updates = Updates::load();
    let found: Vec<String> =
        updates.settings().flat_map(|(name, setting)| updates.differences(name, setting)).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}
