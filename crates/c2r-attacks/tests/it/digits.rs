//! Reference results on a small network for the digits, made by `tests/goldens/make_digits.py`: every clone
//! has these.

use std::{collections::BTreeMap, path::Path};

use c2r_attacks::{AttackBatch, AttackConfig, AttackReport, CwL2Config, EvaluateOptions, Mode, Outcome, replay};
use c2r_base::{Classifier, ClassifierError, LabelledImages, Norm, Seed, artifact::TensorFile};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::support::{config, flags, n_different, run, threat};

pub(crate) struct Digits {
    tensors: BTreeMap<String, Tensor>,
    manifest: Value,
}

impl Digits {
    pub(crate) fn load() -> Self {
        tch::set_num_threads(1);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
        Self {
            tensors: TensorFile::read(&folder.join("digits.safetensors")).unwrap().tensors,
            manifest: c2r_base::artifact::read_json(&folder.join("digits.json")).unwrap(),
        }
    }

    fn number(&self, key: &str) -> f64 {
        self.manifest[key].as_f64().unwrap()
    }

    pub(crate) fn data(&self, n: i64) -> LabelledImages {
        LabelledImages::new(self.tensors["images"].narrow(0, 0, n), self.tensors["labels"].narrow(0, 0, n)).unwrap()
    }

    fn attacked(&self, n: i64, norm: Norm, epsilon: f64, seed: u64, attacks: &[AttackConfig]) -> AttackReport {
        let attacks: Vec<_> = attacks.iter().map(|attack| attack.build().unwrap()).collect();
        let options = EvaluateOptions { seed: Seed::new(seed), mode: Mode::Suite, ..Default::default() };
        run(self, &self.data(n), &attacks, &threat(norm, epsilon), &options)
    }
}

impl Classifier for Digits {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        let of = |name: &str| &self.tensors[&format!("weights.{name}")];
        let mut x = images.shallow_clone();
        for layer in ["conv1", "conv2"] {
            x = x.conv2d(of(&format!("{layer}.weight")), Some(of(&format!("{layer}.bias"))), 1, 1, 1, 1);
            x = x.relu().avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>);
        }
        Ok(x.flatten(1, -1).linear(of("linear.weight"), Some(of("linear.bias"))))
    }

    fn device(&self) -> Device {
        Device::Cpu
    }
}

/// An image that comes to lie on the boundary must not stay there.
#[test]
fn deepfool_leaves_no_image_where_the_radius_is_no_limit() {
    let digits = Digits::load();
    let n = digits.number("n") as i64;
    let data = digits.data(n);
    for (norm, epsilon) in [(Norm::L2, 7.0), (Norm::Linf, 0.9)] {
        let outcomes = |batch_size| {
            let options = EvaluateOptions { batch_size, ..Default::default() };
            run(&digits, &data, &[config("deepfool", &[]).build().unwrap()], &threat(norm, epsilon), &options)
        };
        let (whole, single) = (outcomes(128), outcomes(1));
        assert_eq!((whole.robust_accuracy(), single.robust_accuracy()), (0.0, 0.0), "{norm}");
    }
}

#[test]
fn deterministic_attacks() {
    let digits = Digits::load();
    let n = digits.number("n") as i64;
    let data = digits.data(n);
    let worst = (digits.logits(data.images()).unwrap() - &digits.tensors["clean_logits"]).abs().max().double_value(&[]);
    assert!(worst < 1e-4, "logits are off by {worst:e}");
    let clean = flags(&digits.tensors["flags/clean"]);
    let start = [("random-start", "false")];
    for (golden, name, norm, options) in [
        ("fgsm", "fgsm", Norm::Linf, &[][..]),
        ("bim", "bim", Norm::Linf, &[]),
        ("pgd", "pgd", Norm::Linf, &start),
        ("mi-fgsm", "mi-fgsm", Norm::Linf, &[]),
        ("ni-fgsm", "ni-fgsm", Norm::Linf, &[]),
        ("eot-pgd", "eot-pgd", Norm::Linf, &start),
        ("pgd-l2", "pgd", Norm::L2, &start),
    ] {
        let epsilon = digits.number(if norm == Norm::L2 { "epsilon_l2" } else { "epsilon" });
        let attack = config(name, options);
        let report = digits.attacked(n, norm, epsilon, 0, std::slice::from_ref(&attack));
        let got: Vec<bool> = report.attacks[0].samples.iter().map(|s| s.outcome == Outcome::Survived).collect();
        let expected: Vec<bool> = flags(&digits.tensors[&format!("flags/{golden}")])
            .into_iter()
            .zip(&clean)
            .map(|(still, clean)| still && *clean)
            .collect();
        assert!(n_different(&got, &expected) <= 1, "{golden}: {got:?} instead of {expected:?}");

        let few = digits.data(16);
        let ids: Vec<u64> = (0..16).collect();
        let batch = AttackBatch { images: few.images(), labels: few.labels(), ids: &ids, targets: None };
        let images = replay::gradient_attack(
            &attack,
            &digits,
            &batch,
            &threat(norm, epsilon),
            few.images(),
            &mut replay::Draws::recorded([]),
        );
        let different = (images.unwrap() - &digits.tensors[&format!("images/{golden}")]).abs().gt(1e-4);
        let share = different.to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
        assert!(share <= 0.02, "{golden}: {share} of the values differ");
    }
}

/// Of the images that are classified correctly, 95 % have the reference's distance up to `tolerance`, relative.
fn check_distances(digits: &Digits, name: &str, tolerance: f64, attack: impl Fn(&AttackBatch<'_>) -> Tensor) {
    let data = digits.data(digits.number("n_slow") as i64);
    let ids: Vec<u64> = (0..data.len() as u64).collect();
    let batch = AttackBatch { images: data.images(), labels: data.labels(), ids: &ids, targets: None };
    let got = Norm::L2.distance(&attack(&batch), data.images());
    let expected = &digits.tensors[&format!("distance/{name}")];
    let correct = digits.tensors["flags/clean"].narrow(0, 0, data.len() as i64).to_kind(Kind::Bool);
    let close = ((&got - expected).abs() / expected.clamp_min(1e-3)).le(tolerance).masked_select(&correct);
    let share = close.to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
    assert!(share >= 0.95, "{share} of the distances of {name} agree: {got} {expected}");
}

#[test]
fn deepfool() {
    let digits = Digits::load();
    let attack = config("deepfool", &[("overshoot-each-step", "true")]).build().unwrap();
    let threat = threat(Norm::L2, 100.0);
    check_distances(&digits, "deepfool", 0.01, |batch| {
        attack.perturb(&digits, batch, &threat, Seed::new(0)).unwrap().images
    });
}

/// With torchattacks' margin, which is clipped on both sides, and its stop over the batch.
#[test]
fn cw_l2() {
    let digits = Digits::load();
    let config = CwL2Config { clipped_margin: true, steps: 100, ..Default::default() };
    check_distances(&digits, "cw-l2", 0.02, |batch| replay::cw_l2(&config, &digits, batch).unwrap().images);
}

/// None of our three seeds leaves more than the reference's worst seed, and their mean not less than its best, up to a few
/// images.
fn check(what: &str, ours: &[usize], reference: &Value, images: f64) {
    let reference: Vec<f64> = reference.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
    let mean = ours.iter().sum::<usize>() as f64 / ours.len() as f64;
    let most = ours.iter().copied().max().unwrap() as f64;
    let (best, worst) =
        (reference.iter().copied().fold(f64::MAX, f64::min), reference.iter().copied().fold(0.0, f64::max));
    assert!(
        most <= worst + images && mean >= best - images,
        "{what}: {ours:?} survive, of the reference {reference:?}"
    );
}

fn survivors(report: &AttackReport) -> usize {
    (report.robust_accuracy() * report.n() as f64).round() as usize
}

#[test]
fn stochastic_attacks() {
    let digits = Digits::load();
    let n = digits.number("n") as i64;
    for (name, reference) in digits.manifest["stochastic"].as_object().unwrap() {
        let options: &[(&str, &str)] = if name.starts_with('v') { &[("neighbours", "5")] } else { &[] };
        let attack = [config(name, options)];
        let ours: Vec<usize> = (0..3)
            .map(|seed| survivors(&digits.attacked(n, Norm::Linf, digits.number("epsilon"), seed, &attack)))
            .collect();
        let images = match name.as_str() {
            "pgd" | "eot-pgd" => 2.0,
            "tpgd" => 6.0,
            _ => 3.0,
        };
        check(name, &ours, reference, images);
    }
}

#[test]
fn autoattack_in_three_norms() {
    let digits = Digits::load();
    let n = digits.number("n_slow") as i64;
    for (case, reference) in digits.manifest["autoattack"].as_object().unwrap() {
        let (norm, names) = case.split_once('/').unwrap();
        let attacks: Vec<AttackConfig> = names
            .split('+')
            .map(|name| match name {
                "square" => config(name, &[("queries", "500")]),
                "fab-t" => config(name, &[("minimize", "false")]),
                _ => config(name, &[]),
            })
            .collect();
        let epsilon = reference["epsilon"].as_f64().unwrap();
        let ours: Vec<usize> =
            (0..3).map(|seed| survivors(&digits.attacked(n, norm.parse().unwrap(), epsilon, seed, &attacks))).collect();
        let images = if names == "square" || names == "fab-t" { 3.0 } else { 2.0 };
        check(case, &ours, &reference["robust"], images);
    }
}
