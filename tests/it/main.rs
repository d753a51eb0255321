//! From real images to a robust network, through the libraries as another project would use them.

mod attack_counts;
mod counts;
mod outside;

use std::{collections::BTreeMap, sync::OnceLock};

use c2r_attacks::{AttackConfig, AttackReport, EvaluateOptions, Mode, evaluate};
use c2r_base::{LabelledImages, Norm, Seed, ThreatModel};
use c2r_data::{Dataset, SyntheticSet};
use c2r_distill::{DistillConfig, Distillation};
use c2r_models::{Frozen, Model};
use c2r_train::{Length, Protocol, Targets, TrainSource, model_input, train};
use tch::Device;

const EPSILON: &str = "32/255";

fn digits() -> &'static Dataset {
    static DIGITS: OnceLock<Dataset> = OnceLock::new();
    DIGITS.get_or_init(|| {
        // Networks this small are slower on several threads, above all where tests run side by side.
        tch::set_num_threads(1);
        c2r_data::load("digits", None).unwrap()
    })
}

/// The faithful profile at one image per class, cut down to a few seconds.
fn distil(seed: u64) -> SyntheticSet {
    let mut table: toml::Table = include_str!("../../data/profiles/faithful.toml").parse().unwrap();
    let mut put = |section: Option<&str>, key: &str, value: toml::Value| {
        let table = match section {
            Some(name) => table[name].as_table_mut().unwrap(),
            None => &mut table,
        };
        table.insert(key.to_owned(), value);
    };
    put(None, "ipc", 1.into());
    put(None, "iterations", 40.into());
    put(None, "seed", (seed as i64).into());
    put(None, "model", "ConvNet-D2-W16-IN".into());
    put(None, "dsa", "crop_scale_rotate".into());
    put(Some("threat"), "epsilon", EPSILON.into());
    put(Some("images"), "formation", 1.into());
    put(Some("pool"), "trajectories", 1.into());
    put(Some("pool"), "min-steps", 30.into());
    put(Some("pool"), "max-steps", 90.into());
    put(Some("pool"), "batch-size", 64.into());
    put(Some("pool"), "dsa", "none".into());
    put(Some("matching"), "real-per-class", 16.into());
    put(Some("objective"), "weight", 5.0.into());
    let config: DistillConfig = table.try_into().unwrap();
    let mut distillation = Distillation::new(config, digits(), Device::Cpu).unwrap();
    while distillation.step().unwrap().is_some() {}
    distillation.synthetic_set(BTreeMap::new()).unwrap()
}

fn downstream(set: &SyntheticSet, protocol: Protocol) -> Frozen {
    let input = model_input(&digits().spec);
    let mut config = protocol.config();
    config.length = Length::Steps(150);
    config.dsa = "crop_scale_rotate".parse().unwrap();
    if let Some(adversarial) = &mut config.adversarial {
        adversarial.epsilon = EPSILON.parse().unwrap();
        adversarial.steps = 2;
        adversarial.rel_step_size = 0.75;
    }
    let (images, labels) = set.decode(Device::Cpu);
    let images = LabelledImages::new(images, labels).unwrap();
    let mut model = Model::new(&"ConvNet-D2-W16-IN".parse().unwrap(), &input, Seed::new(1), Device::Cpu).unwrap();
    train(&mut model, &TrainSource::new(&images, Targets::Hard), &config, Seed::new(2), &mut |_| {}).unwrap();
    Frozen::new(model)
}

fn attacked(model: &Frozen, batch_size: usize) -> AttackReport {
    let attacks = ["fgsm", "pgd"].map(|name| name.parse::<AttackConfig>().unwrap().build().unwrap());
    let threat = ThreatModel::untargeted(Norm::Linf, EPSILON.parse().unwrap());
    let options = EvaluateOptions { batch_size, mode: Mode::Each, ..EvaluateOptions::default() };
    evaluate(model, &digits().test.to_labelled(), &attacks, &threat, &options).unwrap()
}

/// Ten stored images train a network that knows most digits; adversarial training makes it robust.
#[test]
fn ten_distilled_images_train_a_robust_network() {
    let set = distil(0);
    assert_eq!(set.images.dim(), (10, 1, 8, 8));
    let natural = attacked(&downstream(&set, Protocol::Natural), 128);
    let robust = attacked(&downstream(&set, Protocol::PgdAt), 128);
    for (name, report) in [("natural", &natural), ("pgd-at", &robust)] {
        let [fgsm, pgd] = [0, 1].map(|attack| report.attacks[attack].robust_accuracy());
        let clean = report.clean_accuracy();
        assert!(clean > 0.5, "{name}: {clean} of the test images, 0.1 is chance");
        assert!(clean > fgsm && fgsm >= pgd - 0.02, "{name}: clean {clean}, FGSM {fgsm}, PGD {pgd}");
    }
    let [natural, robust] = [&natural, &robust].map(|report| report.attacks[1].robust_accuracy());
    assert!(robust > natural + 0.05, "PGD-AT {robust} against {natural}");
}

/// Up to float rounding, which can turn single samples near the boundary.
#[test]
fn reports_do_not_depend_on_the_batch_size() {
    let model = downstream(&distil(1), Protocol::Natural);
    let (large, small) = (attacked(&model, 359), attacked(&model, 17));
    for attack in 0..2 {
        let difference = large.attacks[attack].robust_accuracy() - small.attacks[attack].robust_accuracy();
        assert!(difference.abs() <= 2.0 / 359.0, "attack {attack}: {difference}");
    }
    assert!((large.clean_accuracy() - small.clean_accuracy()).abs() <= 1.0 / 359.0);
}
