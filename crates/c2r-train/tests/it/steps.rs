//! The first steps of training against those that `tests/goldens/reference.py` computes in PyTorch, following
//! docs/configuration.md. Every clone has its numbers.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use c2r_base::{
    LabelledImages, Norm, Seed,
    artifact::{TensorFile, read_json},
    normal,
};
use c2r_data::{Split, arrays::to_array, dsa::Dsa};
use c2r_models::{Frozen, Model, ModelInput};
use c2r_train::{
    LabelSource, Targets, Teacher, TrainConfig, TrainSource, Trainer,
    state::{Entries, State},
};
use rand::{Rng, seq::SliceRandom};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tch::{Device, Tensor};

/// Of everything random.
const SEED: Seed = Seed::new(3);
const N: usize = 12;
const SHAPE: [i64; 3] = [3, 8, 8];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

struct Steps {
    tensors: BTreeMap<String, Tensor>,
    manifest: Value,
}

impl Steps {
    fn load() -> Self {
        tch::set_num_threads(1);
        let tensors = TensorFile::read(&golden("steps.safetensors")).unwrap().tensors;
        Self { tensors, manifest: read_json(&golden("steps.json")).unwrap() }
    }

    /// The network of the reference, or its teacher.
    fn network(&self, prefix: &str) -> Model {
        let list = |name: &str| Vec::<f64>::deserialize(&self.manifest[name]).unwrap();
        let [channels, height, width] = SHAPE;
        let input = ModelInput { channels, height, width, n_classes: 3, mean: list("mean"), std: list("std") };
        let spec = "ConvNet-D2-W6-IN".parse().unwrap();
        let model = Model::new(&spec, &input, Seed::new(0), Device::Cpu).unwrap();
        let own =
            |(name, value): (&String, &Tensor)| Some((name.strip_prefix(prefix)?.to_owned(), value.shallow_clone()));
        model.load_state(&self.tensors.iter().filter_map(own).collect()).unwrap();
        model
    }

    /// What differs from the reference.
    fn differences(&self, name: &str, setting: &Value) -> Vec<String> {
        let keys = |value: &Value| value.as_object().unwrap().clone();
        let mut keys: Map<String, Value> =
            keys(&self.manifest["common"]).into_iter().chain(keys(&setting["set"])).collect();
        let is_real = keys.remove("images").unwrap() == "real";
        let config: TrainConfig = serde_json::from_value(Value::Object(keys)).unwrap();

        let decoded = c2r_data::decode_formation(&self.tensors["mosaics"], 2).unwrap();
        let labels: Vec<i64> = (0..N as i64).map(|image| image / 4).collect();
        let images = LabelledImages::new(decoded, Tensor::from_slice(&labels)).unwrap();
        let [bytes, labels] = ["real.images", "real.labels"].map(|name| &self.tensors[name]);
        let split = Split::new(to_array(bytes).unwrap(), to_array(labels).unwrap(), 3).unwrap();
        let teacher = Frozen::new(self.network("teacher."));
        let targets = match config.labels {
            LabelSource::Hard => Targets::Hard,
            LabelSource::Soft => Targets::Soft(&self.tensors["soft"]),
            LabelSource::Teacher => Targets::Teacher(Teacher {
                network: &teacher,
                temperature: self.manifest["temperature"].as_f64().unwrap(),
            }),
        };
        let source = match is_real {
            true => TrainSource::of_split(&split, targets),
            false => TrainSource::new(&images, targets).of_mosaics(2),
        };

        let mut model = self.network("weights.");
        let mut trainer = Trainer::new(&mut model, &source, &config, SEED).unwrap();
        let mut found = Vec::new();
        for expected in setting["log"].as_array().unwrap() {
            let step = trainer.step().unwrap().unwrap();
            // Losses are read when a state is saved.
            trainer.state(&mut State::writing(&mut Entries::new())).unwrap();
            for (key, got) in [("lr", step.lr), ("loss", trainer.summary().final_loss)] {
                let expected = expected[key].as_f64().unwrap();
                if (got - expected).abs() > 1e-5 * expected || got.is_nan() {
                    found.push(format!("{name}, step {}: {key} is {got}, not {expected}", step.step));
                }
            }
        }
        assert!(trainer.step().unwrap().is_none(), "{name} is longer");
        for (parameter, value) in model.state() {
            let expected = &self.tensors[&format!("after.{name}.{parameter}")];
            let off = (value - expected).abs().max().double_value(&[]);
            if off.is_nan() || off > 3e-6 {
                found.push(format!("{name}: {parameter} is off by {off:e}"));
            }
        }
        found
    }
}

/// Networks and images on which rounding decides nothing: make_steps.py checks that, and that every setting shows.
#[test]
fn the_first_steps_are_those_of_the_reference() {
    let steps = Steps::load();
    let settings = steps.manifest["settings"].as_object().unwrap();
    let found: Vec<String> = settings.iter().flat_map(|(name, setting)| steps.differences(name, setting)).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// What training draws from [`SEED`], for the reference, which cannot draw it itself.
///
/// Orders of three epochs; parameters of augmentation and of CutMix, by the strategy or share, for each step; starts of attacks,
/// by the norm.
fn draws() -> (Value, BTreeMap<String, Tensor>) {
    let orders = (0..3).map(|epoch| {
        let mut order: Vec<usize> = (0..N).collect();
        order.shuffle(&mut SEED.stream("train/order", epoch));
        order
    });
    let full = "color_crop_cutout_flip_scale_rotate";
    let augmented = |name: &str, steps: u64| {
        let dsa: Dsa = name.parse().unwrap();
        (0..steps).map(|step| json!(dsa.draw_each(N, &mut SEED.stream("train/dsa", step)))).collect::<Value>()
    };
    let mut dsa: Map<String, Value> = full.split('_').map(|name| (name.to_owned(), augmented(name, 2))).collect();
    dsa.insert(full.to_owned(), augmented(full, 6));
    let mixed = |share: f64| {
        let step = |step| {
            let rng = &mut SEED.stream("train/cutmix", step);
            rng.random_bool(share).then(|| {
                let lambda: f64 = rng.random();
                let centre = [8i64, 8].map(|side| rng.random_range(0..side));
                let mut others: Vec<i64> = (0..N as i64).collect();
                others.shuffle(rng);
                json!({ "lambda": lambda, "centre": centre, "others": others })
            })
        };
        (0..4).map(|at| json!(step(at))).collect::<Value>()
    };
    let lists = json!({
        "source": "drawn by tests/it/steps.rs",
        "order": orders.collect::<Vec<_>>(),
        "dsa": dsa,
        "cutmix": { "1": mixed(1.0), "0.5": mixed(0.5) },
    });

    let seed = |step| SEED.child("train/attack", step);
    let places: Vec<u64> = (0..N as u64).collect();
    let ball = |norm: Norm, radius: f64, step| norm.values_in_ball(&SHAPE, &places, radius, seed(step), "train/start");
    let gauss = |step| {
        let mut streams: Vec<_> = places.iter().map(|&place| seed(step).stream("train/start", place)).collect();
        normal(&mut streams, SHAPE.iter().product::<i64>() as usize, 0.001)
    };
    let tensor = |name: &str, steps: u64, draw: &dyn Fn(u64) -> Vec<f32>| {
        let values: Vec<f32> = (0..steps).flat_map(draw).collect();
        (
            format!("start.{name}"),
            Tensor::from_slice(&values).view([&[steps as i64, N as i64], &SHAPE[..]].concat().as_slice()),
        )
    };
    let starts = [
        tensor("linf", 3, &|step| ball(Norm::Linf, 16.0 / 255.0, step)),
        tensor("l2", 2, &|step| ball(Norm::L2, 128.0 / 255.0, step)),
        tensor("l1", 2, &|step| ball(Norm::L1, 4.0, step)),
        tensor("trades", 2, &gauss),
    ];
    (lists, starts.into())
}

/// The reference computes with what was drawn once. If something else is drawn now, its numbers have to be made again.
#[test]
fn the_draws_are_those_of_the_reference() {
    let (lists, tensors) = draws();
    if std::env::var_os("C2R_ACCEPT").is_some() {
        std::fs::write(golden("draws.json"), format!("{lists}\n")).unwrap();
        let file = TensorFile {
            tensors: tensors.iter().map(|(name, value)| (name.clone(), value.shallow_clone())).collect(),
            ..TensorFile::default()
        };
        file.write(&golden("draws.safetensors")).unwrap();
    }
    let hint = "differs (C2R_ACCEPT=1 writes it again; then run make_steps.py)";
    assert!(read_json::<Value>(&golden("draws.json")).unwrap() == lists, "draws.json {hint}");
    let stored = TensorFile::read(&golden("draws.safetensors")).unwrap().tensors;
    for (name, drawn) in &tensors {
        assert!(stored[name] == *drawn, "{name} {hint}");
    }
}
