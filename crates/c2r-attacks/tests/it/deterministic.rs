//! Attacks without randomness: flags of 200 images and adversarial images, by the rules of the goldens'
//! manifest.

use c2r_attacks::{AttackBatch, Draws, EvaluateOptions, Mode, Outcome, replay};
use c2r_base::Norm;
use c2r_testkit::goldens::Goldens;
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::support::{MODELS, Script, config, first, flags, n_different, run, threat};

/// Ours for a reference name, with the parameters of a golden.
fn ours(entry: &Value) -> (c2r_attacks::AttackConfig, Norm, f64) {
    let number = |key: &str| entry["params"][key].as_f64();
    let attack = entry["attack"].as_str().unwrap();
    let epsilon = number("eps").unwrap_or(1.0);
    let step = number("alpha").map(|alpha| format!("{alpha:?}")).unwrap_or_default();
    let steps = number("steps").map(|steps| steps.to_string()).unwrap_or_default();
    let stepped = |name: &str, more: &[(&str, &str)]| {
        let mut options = vec![("steps", steps.as_str()), ("step-size", step.as_str())];
        options.extend(more);
        config(name, &options)
    };
    let no_start = [("random-start", "false")];
    let (config, norm) = match attack {
        "FGSM" => (config("fgsm", &[]), Norm::Linf),
        "BIM" => (stepped("bim", &[]), Norm::Linf),
        "PGD_nostart" | "PGD_given_start" => (stepped("pgd", &no_start), Norm::Linf),
        "PGDL2_nostart" => (stepped("pgd", &no_start), Norm::L2),
        "MIFGSM" => (stepped("mi-fgsm", &[]), Norm::Linf),
        "NIFGSM" => (stepped("ni-fgsm", &[]), Norm::Linf),
        "CW_Linf_nostart" | "CW_Linf_given_start" => (stepped("cw-linf", &no_start), Norm::Linf),
        other => panic!("no such golden: {other}"),
    };
    (config, norm, epsilon)
}

fn entries(goldens: &Goldens, model: &str, list: &str) -> Vec<Value> {
    let all = goldens.value("/deterministic").as_array().unwrap();
    let model = all.iter().find(|entry| entry["model"] == model).unwrap();
    model[list].as_array().unwrap().clone()
}

fn minimum_norm(entry: &Value) -> bool {
    matches!(entry["attack"].as_str(), Some("DeepFool" | "CW_L2"))
}

#[test]
fn logits_and_input_gradients() {
    let Some(goldens) = Goldens::find() else { return };
    for name in MODELS {
        let model = Script::load(&goldens, name);
        let file = goldens.tensors(&format!("deterministic_{name}.safetensors")).tensors;
        let data = first(&goldens, 200);
        let logits = c2r_base::Classifier::logits(&model, data.images());
        let worst = (logits - &file["clean_logits"]).abs().max().double_value(&[]);
        assert!(worst < 1e-4, "{name}: logits are off by {worst:e}");
        let few = first(&goldens, 8);
        let (gradient, _) = c2r_base::grad::input_gradient(few.images(), |x| {
            c2r_attacks::loss::ce(&c2r_base::Classifier::logits(&model, x), few.labels())
        });
        let expected = &file["ce_sum_input_grad_first8"];
        let error = Norm::L2.length(&(gradient - expected)) / Norm::L2.length(expected);
        assert!(error.max().double_value(&[]) < 1e-4, "{name}: gradients are off by {error}");
    }
}

/// Still correct after the attack, as the goldens count: misclassified images are not attacked by our driver,
/// and none of the goldens' came back.
fn still_correct(
    goldens: &Goldens,
    model: &str,
    attack: &c2r_attacks::AttackConfig,
    norm: Norm,
    epsilon: f64,
) -> Vec<bool> {
    let data = first(goldens, 200);
    let attacks = [attack.build().unwrap()];
    let options = EvaluateOptions { batch_size: 100, mode: Mode::Each, self_check: false, ..Default::default() };
    let report = run(&Script::load(goldens, model), &data, &attacks, &threat(norm, epsilon), &options);
    report.attacks[0].samples.iter().map(|sample| sample.outcome == Outcome::Survived).collect()
}

fn check_flags(goldens: &Goldens, wanted: impl Fn(&Value) -> bool) {
    for model in MODELS {
        let file = goldens.tensors(&format!("deterministic_{model}.safetensors")).tensors;
        for entry in entries(goldens, model, "flags") {
            if minimum_norm(&entry) || entry["n"] != 200 || !wanted(&entry) {
                continue;
            }
            let (attack, norm, epsilon) = ours(&entry);
            let got = still_correct(goldens, model, &attack, norm, epsilon);
            let expected = flags(&file[entry["tensor"].as_str().unwrap()]);
            let different = n_different(&got, &expected);
            assert!(different <= 2, "{model} {}: {different} of 200 flags differ", entry["tensor"]);
        }
    }
}

#[test]
fn flags_at_the_protocols_radius() {
    let Some(goldens) = Goldens::find() else { return };
    check_flags(&goldens, |entry| entry["config"] == "dd_eps2" && entry["attack"] != "BIM");
}

#[test]
#[ignore = "slow: every configuration of every attack, about two minutes"]
fn flags_of_every_configuration() {
    let Some(goldens) = Goldens::find() else { return };
    check_flags(&goldens, |_| true);
}

#[test]
fn adversarial_images() {
    let Some(goldens) = Goldens::find() else { return };
    let noise = goldens.tensor("inputs.safetensors", "unit_noise_first32");
    for name in MODELS {
        let model = Script::load(&goldens, name);
        let file = goldens.tensors(&format!("deterministic_{name}.safetensors")).tensors;
        for entry in entries(&goldens, name, "images") {
            if minimum_norm(&entry) {
                continue;
            }
            let n = entry["n_images"].as_i64().unwrap();
            let data = first(&goldens, n);
            let (attack, norm, epsilon) = ours(&entry);
            let given = entry["attack"].as_str().unwrap().ends_with("given_start");
            let start = if given {
                (data.images() + noise.narrow(0, 0, n) * epsilon).clamp(0.0, 1.0)
            } else {
                data.images().copy()
            };
            let ids: Vec<u64> = (0..n as u64).collect();
            let batch = AttackBatch { images: data.images(), labels: data.labels(), ids: &ids, targets: None };
            let threat = threat(norm, epsilon);
            let got =
                replay::gradient_attack(&attack, &model, &batch, &threat, &start, &mut Draws::recorded([])).unwrap();
            let what = format!("{name} {}", entry["tensor"]);
            let expected = &file[entry["tensor"].as_str().unwrap()];
            match norm {
                Norm::L2 => same_up_to_rounding_l2(&what, &got, expected, data.images()),
                _ => same_but_for_flipped_signs(&what, &got, expected, entry["attack"] == "FGSM"),
            }
            assert!(threat.norm.distance(&got, data.images()).max().double_value(&[]) <= epsilon + 1e-6, "{what}");
        }
    }
}

/// A value whose gradient is nearly zero moves by plus or minus a step on a last bit.
fn same_but_for_flipped_signs(what: &str, got: &Tensor, expected: &Tensor, one_step: bool) {
    let different = (got - expected).abs().gt(1e-5).to_kind(Kind::Float).flatten(1, -1);
    let shares = different.mean_dim([1i64].as_slice(), false, Kind::Float);
    let (mean, worst) = (shares.mean(Kind::Float).double_value(&[]), shares.max().double_value(&[]));
    let median = shares.median().double_value(&[]);
    if one_step {
        assert!(worst <= 0.001, "{what}: {worst} of the values differ");
    }
    assert!(worst <= 0.15 && mean <= 0.02 && median <= 0.005, "{what}: worst {worst}, mean {mean}, median {median}");
}

fn same_up_to_rounding_l2(what: &str, got: &Tensor, expected: &Tensor, images: &Tensor) {
    let relative = Norm::L2.distance(got, expected) / Norm::L2.distance(expected, images);
    let (worst, median) = (relative.max().double_value(&[]), relative.median().double_value(&[]));
    assert!(worst <= 0.05 && median <= 1e-3, "{what}: worst {worst}, median {median}");
}

/// DeepFool and CW-L2: distances, not flags, as their results lie on the boundary.
fn minimum_norm_images(
    name: &str,
    golden: &str,
    attack: &c2r_attacks::AttackConfig,
    n: i64,
) -> Option<(Tensor, Tensor)> {
    let goldens = Goldens::find()?;
    let mut got = Vec::new();
    let mut expected = Vec::new();
    let model = Script::load(&goldens, name);
    let file = goldens.tensors(&format!("deterministic_{name}.safetensors")).tensors;
    let correct = file["clean_correct"].narrow(0, 0, n).nonzero().squeeze_dim(1);
    let data = first(&goldens, n);
    let (images, labels) = (data.images().index_select(0, &correct), data.labels().index_select(0, &correct));
    let ids: Vec<u64> = (0..images.size()[0] as u64).collect();
    let batch = AttackBatch { images: &images, labels: &labels, ids: &ids, targets: None };
    let seed = c2r_base::Seed::new(0);
    let found = attack.build().unwrap().perturb(&model, &batch, &threat(Norm::L2, 10.0), seed).unwrap();
    got.push(Norm::L2.distance(&found.images, &images));
    expected.push(file[&format!("l2norm/{golden}/default")].index_select(0, &correct));
    Some((Tensor::cat(&got, 0), Tensor::cat(&expected, 0)))
}

#[test]
fn deepfool_distances() {
    let attack = config("deepfool", &[("overshoot-each-step", "true")]);
    for name in MODELS {
        let Some((got, expected)) = minimum_norm_images(name, "DeepFool", &attack, 32) else { return };
        let close = ((&got - &expected).abs() / &expected).le(0.01).to_kind(Kind::Float).mean(Kind::Float);
        assert!(close.double_value(&[]) >= 0.95, "{name}: {close} of the distances agree");
    }
}

#[test]
fn cw_l2_distances() {
    let attack = config("cw-l2", &[("clipped-margin", "true")]);
    for name in MODELS {
        let Some((got, expected)) = minimum_norm_images(name, "CW_L2", &attack, 100) else { return };
        // The reference returns the clean image where it fails; so do we.
        let close = ((&got - &expected).abs() / expected.clamp_min(1e-3)).le(0.02).to_kind(Kind::Float);
        let share = close.mean(Kind::Float).double_value(&[]);
        assert!(share >= 0.95, "{name}: {share} of the distances agree: {got} {expected}");
    }
}
