//! What holds for every attack and norm, on toys.

use std::{cell::Cell, ops::ControlFlow};

use c2r_attacks::{
    ATTACKS, AdversarialImages, Attack, AttackBatch, AttackConfig, AttackError, EvaluateOptions, Mode, Outcome,
    evaluate, evaluate_with,
};
use c2r_base::{Classifier, Epsilon, Goal, LabelledImages, Norm, Seed, TargetRule, ThreatModel};
use c2r_testkit::toys::{self, Linear, Tanh};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::support::{config, run, threat};

pub(crate) const CLASSES: i64 = 5;
pub(crate) const SHAPE: [i64; 3] = [2, 6, 6];
pub(crate) const NORMS: [(Norm, f64); 3] = [(Norm::Linf, 0.03), (Norm::L2, 0.15), (Norm::L1, 0.6)];

/// Every attack that knows `norm`, short enough for a test.
pub(crate) fn attacks(norm: Norm) -> Vec<Box<dyn Attack>> {
    let short: &[(&str, &[(&str, &str)])] = &[
        ("square", &[("queries", "30")]),
        ("fab", &[("steps", "10")]),
        ("fab-t", &[("steps", "10")]),
        ("apgd-ce", &[("steps", "10")]),
        ("apgd-dlr", &[("steps", "10")]),
        ("apgd-t", &[("steps", "10")]),
        ("vmi-fgsm", &[("neighbours", "3"), ("steps", "5")]),
        ("vni-fgsm", &[("neighbours", "3"), ("steps", "5")]),
        ("cw-l2", &[("steps", "30")]),
    ];
    ATTACKS
        .iter()
        .map(|name| {
            let options = short.iter().find(|(known, _)| known == name).map_or(&[][..], |(_, options)| options);
            config(name, options).build().unwrap()
        })
        .filter(|attack| attack.check(&threat(norm, 0.1), CLASSES).is_ok())
        .collect()
}

pub(crate) fn toy() -> (Tanh, LabelledImages) {
    let model = Tanh::new(CLASSES, SHAPE, 12);
    let images = toys::images(12, SHAPE);
    let labels = model.logits(&images).argmax(1, false);
    // Two images are misclassified: they must not be attacked.
    let wrong = Tensor::from_slice(&[1i64, 7]);
    let other = (labels.index_select(0, &wrong) + 1).remainder(CLASSES);
    let labels = labels.index_copy(0, &wrong, &other);
    (model, LabelledImages::new(images, labels).unwrap())
}

pub(crate) fn perturb(
    attack: &dyn Attack,
    model: &dyn Classifier,
    data: &LabelledImages,
    at: &[usize],
    threat: &ThreatModel,
) -> Tensor {
    let (images, labels) = data.select(at, Device::Cpu);
    let ids: Vec<u64> = at.iter().map(|&position| position as u64).collect();
    let batch = AttackBatch { images: &images, labels: &labels, ids: &ids, targets: None };
    attack.perturb(model, &batch, threat, Seed::new(3)).unwrap().images
}

#[test]
fn inside_ball_and_box_deterministic_and_independent_of_batch_and_order() {
    let (model, data) = toy();
    let all: Vec<usize> = (0..data.len()).collect();
    let backwards: Vec<usize> = all.iter().rev().copied().collect();
    for (norm, epsilon) in NORMS {
        let threat = threat(norm, epsilon);
        for attack in attacks(norm) {
            let what = format!("{} {norm}", attack.name());
            let whole = perturb(attack.as_ref(), &model, &data, &all, &threat);
            let again = perturb(attack.as_ref(), &model, &data, &all, &threat);
            assert_eq!((&whole - again).abs().max().double_value(&[]), 0.0, "{what}: not deterministic");
            let turned = perturb(attack.as_ref(), &model, &data, &backwards, &threat).flip([0i64]);
            let parts: Vec<Tensor> =
                all.chunks(5).map(|part| perturb(attack.as_ref(), &model, &data, part, &threat)).collect();
            for (how, other) in [("order", turned), ("batch", Tensor::cat(&parts, 0))] {
                // A value whose gradient is nearly zero may go either way on a last bit.
                let different = (&whole - &other).abs().gt(1e-4).to_kind(Kind::Float).mean(Kind::Float);
                let share = different.double_value(&[]);
                assert!(share < 0.02, "{what}: {share} of the values depend on the {how}");
            }
            let projected = threat.project(data.images(), &whole);
            let length = norm.distance(&projected, data.images()).max().double_value(&[]);
            assert!(length <= epsilon + 1e-6, "{what}: {length}");
            let (least, most) = (projected.min().double_value(&[]), projected.max().double_value(&[]));
            assert!(least >= 0.0 && most <= 1.0, "{what}: {least} {most}");
            if attack.family() != c2r_attacks::Family::MinimumNorm {
                let own = norm.distance(&whole, data.images()).max().double_value(&[]);
                assert!(own <= epsilon + 1e-5, "{what} leaves the ball by itself: {own}");
            }
        }
    }
}

/// On a linear model FGSM from a clean image is exact: the least margin over the ball is `min_k (f_y - f_k - epsilon
/// |w_y - w_k|_1)` as long as no pixel leaves the box.
#[test]
fn the_margin_of_a_linear_model_is_the_robust_margin() {
    let shape = [1, 4, 4];
    let model = Linear::mixed(2, shape);
    let images = toys::images(9, shape) * 0.8 + 0.1;
    let labels = model.logits(&images).argmax(1, false);
    // One image is misclassified: its margin is that of the clean image.
    let labels = labels.index_copy(0, &Tensor::from_slice(&[2i64]), &(1 - labels.narrow(0, 2, 1)));
    let data = LabelledImages::new(images, labels).unwrap();
    let options = EvaluateOptions { mode: Mode::Each, batch_size: 4, ..Default::default() };
    let attacks = ["clean", "fgsm", "apgd-ce"].map(|name| config(name, &[]).build().unwrap());
    let epsilon = 0.05;
    let report = run(&model, &data, &attacks, &threat(Norm::Linf, epsilon), &options);
    let clean = Vec::<f32>::try_from(model.margin(data.images(), data.labels())).unwrap();
    let distance = Vec::<f32>::try_from(model.distance(data.images(), data.labels(), Norm::Linf)).unwrap();
    for position in 0..data.len() {
        let margin = |attack: &str| report.attack(attack).unwrap().samples[position].margin;
        // The margin falls linearly and is zero at the smallest adversarial distance.
        let robust = match clean[position] {
            wrong if wrong < 0.0 => wrong,
            right => right * (1.0 - epsilon as f32 / distance[position]),
        };
        assert!((report.clean_margins[position] - clean[position]).abs() < 1e-5);
        assert!((margin("clean") - clean[position]).abs() < 1e-5, "the floor has the clean margin");
        for attack in ["fgsm", "apgd-ce"] {
            let got = margin(attack);
            assert!((got - robust).abs() < 1e-4, "{attack}, image {position}: {got} instead of {robust}");
        }
    }
    let back: c2r_attacks::AttackReport = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(back, report);
}

#[test]
fn outcomes_do_not_depend_on_the_batch_size_and_floors_hold() {
    let (model, data) = toy();
    for (norm, epsilon) in NORMS {
        let threat = threat(norm, epsilon);
        let report = |batch_size| {
            let options = EvaluateOptions { batch_size, mode: Mode::Each, ..Default::default() };
            run(&model, &data, &attacks(norm), &threat, &options)
        };
        let (whole, parts) = (report(12), report(5));
        assert!((whole.clean_accuracy() - 10.0 / 12.0).abs() < 1e-12);
        for (a, b) in whole.attacks.iter().zip(&parts.attacks) {
            let outcomes = |entry: &c2r_attacks::AttackEntry| -> Vec<Outcome> {
                entry.samples.iter().map(|sample| sample.outcome.clone()).collect()
            };
            assert_eq!(outcomes(a), outcomes(b), "{} {norm}", a.name);
            assert_eq!(a.samples[1].outcome, Outcome::CleanError);
            assert_eq!(a.samples[1].queries, 0, "{} attacks what is misclassified", a.name);
        }
        assert_eq!(whole.attack("clean").unwrap().robust_accuracy(), whole.clean_accuracy());
        let floor = whole.attack("noise").unwrap().robust_accuracy();
        for entry in &whole.attacks {
            assert!(
                entry.name == "clean" || entry.robust_accuracy() <= floor + 1e-12,
                "{norm}: {} leaves {} robust, noise {floor}",
                entry.name,
                entry.robust_accuracy()
            );
        }
    }
}

#[test]
fn tpgd_refuses_a_target() {
    let (model, data) = toy();
    let attacks = [config("tpgd", &[]).build().unwrap()];
    let threat = ThreatModel { goal: Goal::Targeted(TargetRule::Next), ..threat(Norm::Linf, 0.02) };
    let refused = evaluate(&model, &data, &attacks, &threat, &EvaluateOptions::default());
    assert!(matches!(refused, Err(AttackError::Config(_))), "{refused:?}");
}

#[test]
fn epsilon_zero_is_clean_accuracy() {
    let (model, data) = toy();
    for (norm, _) in NORMS {
        let threat = ThreatModel::untargeted(norm, Epsilon::ZERO);
        let options = EvaluateOptions { mode: Mode::Each, ..Default::default() };
        let report = run(&model, &data, &attacks(norm), &threat, &options);
        for entry in &report.attacks {
            assert_eq!(entry.robust_accuracy(), report.clean_accuracy(), "{} {norm}", entry.name);
        }
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<c2r_attacks::AttackReport>(&text).unwrap(), report, "{norm}");
    }
}

#[test]
fn parameters_and_their_gradients_are_untouched() {
    let weight = toys::images(1, [1, 72, CLASSES]).view([72, CLASSES]) - 0.5;
    let before = weight.copy();
    let weight = weight.set_requires_grad(true);
    let model = toys::function(|images| images.flatten(1, -1).matmul(&weight));
    let images = toys::images(6, SHAPE);
    let labels = model.logits(&images).unwrap().argmax(1, false);
    let data = LabelledImages::new(images.copy(), labels).unwrap();
    for (norm, epsilon) in NORMS {
        let options = EvaluateOptions { mode: Mode::Each, ..Default::default() };
        run(&model, &data, &attacks(norm), &threat(norm, epsilon), &options);
    }
    assert!(!weight.grad().defined());
    assert_eq!((weight.detach() - before).abs().max().double_value(&[]), 0.0);
    assert_eq!((data.images() - images).abs().max().double_value(&[]), 0.0);
}

#[test]
fn linear_models_are_broken_exactly_beyond_their_distance() {
    let model = Linear::mixed(3, SHAPE);
    // Near mid-grey, so that the box does not matter.
    let images = (toys::images(8, SHAPE) - 0.5) * 0.2 + 0.5;
    let labels = model.logits(&images).argmax(1, false);
    let distances = |norm| model.distance(&images, &labels, norm);
    for (norm, names) in [
        (Norm::Linf, &["fgsm", "pgd", "apgd-ce", "apgd-dlr", "fab", "fab-t", "deepfool"][..]),
        (Norm::L2, &["fgsm", "pgd", "apgd-ce", "fab", "fab-t", "deepfool"]),
        (Norm::L1, &["apgd-ce", "fab", "fab-t"]),
    ] {
        let exact = distances(norm);
        for row in 0..8 {
            let data = LabelledImages::new(images.narrow(0, row, 1), labels.narrow(0, row, 1)).unwrap();
            let distance = exact.double_value(&[row]);
            for (factor, robust) in [(0.97, 1.0), (1.06, 0.0)] {
                for &name in names {
                    let attack = [config(name, &[]).build().unwrap()];
                    let threat = threat(norm, distance * factor);
                    let report = run(&model, &data, &attack, &threat, &EvaluateOptions::default());
                    let got = report.robust_accuracy();
                    // Cross entropy and DLR look at more than one class, so their steps may miss the nearest.
                    let certain = robust == 1.0 || !matches!(name, "fgsm" | "pgd" | "apgd-ce" | "apgd-dlr");
                    assert!(got == robust || !certain, "{name} {norm} at {factor} of the distance of {row}");
                }
            }
        }
    }
}

#[test]
fn fab_and_deepfool_find_the_exact_distance_of_linear_models() {
    let model = Linear::mixed(4, SHAPE);
    let images = (toys::images(6, SHAPE) - 0.5) * 0.2 + 0.5;
    let labels = model.logits(&images).argmax(1, false);
    let data = LabelledImages::new(images, labels).unwrap();
    let all: Vec<usize> = (0..6).collect();
    for (norm, name) in [
        (Norm::Linf, "fab"),
        (Norm::Linf, "fab-t"),
        (Norm::L2, "fab"),
        (Norm::L2, "fab-t"),
        (Norm::Linf, "deepfool"),
        (Norm::L2, "deepfool"),
        (Norm::L1, "fab"),
    ] {
        let attack = config(name, &[]).build().unwrap();
        let found = perturb(attack.as_ref(), &model, &data, &all, &threat(norm, 100.0));
        let ratio = norm.distance(&found, data.images()) / model.distance(data.images(), data.labels(), norm);
        let (least, most) = (ratio.min().double_value(&[]), ratio.max().double_value(&[]));
        assert!(least >= 0.999 && most <= 1.03, "{name} {norm}: between {least} and {most} of the distance");
    }
}

#[test]
fn more_steps_never_lower_the_best_loss() {
    let (model, data) = toy();
    for (norm, epsilon) in NORMS {
        for kind in [c2r_attacks::LossKind::Ce, c2r_attacks::LossKind::Dlr] {
            let best = |steps| {
                let start = data.images();
                // The same checkpoints, so that the shorter run is the beginning of the longer one.
                c2r_attacks::replay::apgd(&model, data.images(), data.labels(), None, kind, norm, epsilon, steps, start)
                    .unwrap()
                    .losses
            };
            let start = kind_losses(kind, &model, &data);
            assert!((best(20) - &start).min().double_value(&[]) >= 0.0, "{norm} {kind:?}");
        }
        // Restarts keep what they found.
        let robust = |restarts: &str| {
            let attack = [config("pgd", &[("restarts", restarts), ("steps", "3")]).build().unwrap()];
            run(&model, &data, &attack, &threat(norm, epsilon), &EvaluateOptions::default()).robust_accuracy()
        };
        assert!(robust("4") <= robust("1"), "{norm}");
    }
}

fn kind_losses(kind: c2r_attacks::LossKind, model: &dyn Classifier, data: &LabelledImages) -> Tensor {
    let logits = model.logits(data.images()).unwrap();
    match kind {
        c2r_attacks::LossKind::Ce => c2r_base::loss::ce(&logits, data.labels()),
        _ => c2r_base::loss::dlr(&logits, data.labels()),
    }
}

#[test]
fn early_stop_breaks_at_least_as_much() {
    let (model, data) = toy();
    for (norm, epsilon) in NORMS {
        for name in ["pgd", "bim", "mi-fgsm"] {
            let robust = |stop: &str| {
                let attack = [config(name, &[("early-stop", stop)]).build().unwrap()];
                let report = run(&model, &data, &attack, &threat(norm, epsilon), &EvaluateOptions::default());
                (report.robust_accuracy(), report.counts().backward_images)
            };
            let (with, without) = (robust("true"), robust("false"));
            assert!(with.0 <= without.0 && with.1 <= without.1, "{name} {norm}: {with:?} {without:?}");
        }
    }
}

#[test]
fn targeted_goals_aim_at_the_rules_class() {
    let (model, data) = toy();
    for rule in [TargetRule::Next, TargetRule::Random, TargetRule::LeastLikely, TargetRule::SecondBest] {
        let threat = ThreatModel { norm: Norm::Linf, epsilon: "0.5".parse().unwrap(), goal: Goal::Targeted(rule) };
        let attacks: Vec<Box<dyn Attack>> = ATTACKS
            .iter()
            .map(|name| name.parse::<AttackConfig>().unwrap().build().unwrap())
            .filter(|attack| attack.check(&threat, CLASSES).is_ok() && attack.family() != c2r_attacks::Family::BlackBox)
            .collect();
        let options = EvaluateOptions { mode: Mode::Each, ..Default::default() };
        let report = run(&model, &data, &attacks, &threat, &options);
        let targets = report.targets.as_ref().unwrap();
        assert!(targets.iter().zip(&report.labels).all(|(target, label)| target != label));
        for entry in &report.attacks {
            for (sample, target) in entry.samples.iter().zip(targets) {
                if matches!(sample.outcome, Outcome::Broken { .. }) {
                    assert_eq!(sample.prediction, *target, "{}", entry.name);
                }
            }
        }
        // FAB walks to the boundary between label and target, where a third class may be larger.
        for name in ["pgd", "apgd-ce", "apgd-t"] {
            let rate = report.attack(name).unwrap().success_rate().unwrap();
            assert!(rate > 0.5, "{name} reaches {rate} of its targets at a huge radius ({rule:?})");
        }
    }
}

#[test]
fn too_few_classes_and_unknown_norms_are_errors_before_anything_runs() {
    let two = Linear::two_pixels();
    let image = Tensor::from_slice(&[0.75f32, 0.5]).view([1, 1, 1, 2]);
    let data = LabelledImages::new(image, Tensor::from_slice(&[0i64])).unwrap();
    let message = |name: &str, norm| {
        let attacks = [name.parse::<AttackConfig>().unwrap().build().unwrap()];
        let options = EvaluateOptions::default();
        let result = evaluate(&two, &data, &attacks, &threat(norm, 0.1), &options);
        result.unwrap_err().to_string()
    };
    assert!(message("apgd-dlr", Norm::Linf).contains("needs a model with 3 classes"));
    assert!(message("apgd-t", Norm::Linf).contains("needs a model with 4 classes"));
    assert!(message("autoattack-standard", Norm::Linf).contains("apgd-t"));
    assert!(message("deepfool", Norm::L1).contains("not defined for the norm l1; it takes linf, l2"));
}

#[test]
fn a_suite_runs_on_survivors_and_its_images_give_the_same_accuracy() {
    let (model, data) = toy();
    let attacks = ["fgsm", "pgd", "apgd-ce"].map(|name| name.parse::<AttackConfig>().unwrap().build().unwrap());
    let threat = threat(Norm::Linf, 0.03);
    let mut saved = AdversarialImages::new(&data, attacks.len(), Mode::Suite);
    let options = EvaluateOptions { batch_size: 5, ..Default::default() };
    let report = evaluate_with(&model, &data, &attacks, &threat, &options, &mut |event| {
        saved.observe(event);
        ControlFlow::Continue(())
    })
    .unwrap();
    for pair in report.attacks.windows(2) {
        assert_eq!(pair[1].stages[0].attacked, pair[0].stages[0].survivors);
    }
    let predictions = model.logits(&saved.sets()[0]).argmax(1, false);
    let accuracy = predictions.eq_tensor(data.labels()).to_kind(Kind::Float).mean(Kind::Double).double_value(&[]);
    assert!((accuracy - report.robust_accuracy()).abs() < 1e-9);
    assert!(report.robust_accuracy() < report.clean_accuracy());
    // The same as one attack with stages.
    let suite = AttackConfig::Suite(c2r_attacks::SuiteConfig {
        name: "three".into(),
        attacks: ["fgsm", "pgd", "apgd-ce"].map(|name| name.parse::<AttackConfig>().unwrap()).to_vec(),
        norm: None,
    });
    let one = run(&model, &data, &[suite.build().unwrap()], &threat, &options);
    assert_eq!(one.robust_accuracy(), report.robust_accuracy());
    assert_eq!(one.attacks[0].stages.len(), 3);
    let last = &report.attacks[2].samples;
    assert!(one.attacks[0].samples.iter().zip(last).all(|(a, b)| a.outcome == b.outcome && a.queries == b.queries));
    let direct = perturb(suite.build().unwrap().as_ref(), &model, &data, &[0, 2, 3], &threat);
    let kept = saved.sets()[0].index_select(0, &Tensor::from_slice(&[0i64, 2, 3]));
    assert!((direct - kept).abs().max().double_value(&[]) < 1e-4);
}

/// Of logits as far apart as two f32 can be, which change their signs from pass to pass.
#[test]
fn margins_beyond_f32_are_the_largest_in_it() {
    for is_random in [false, true] {
        let passes = Cell::new(0);
        let model = toys::function(|images| {
            passes.set(passes.get() + 1);
            let sign = if is_random && passes.get() % 2 == 0 { -3e38 } else { 3e38 };
            let logit = (images.mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float) - 0.5) * 2.0 * sign;
            Tensor::stack(&[&logit, &-&logit], 1)
        });
        let bright = Tensor::full([2, 1, 2, 2], 0.95, (Kind::Float, Device::Cpu));
        let images = Tensor::cat(&[&bright, &(1.0 - &bright)], 0);
        let data = LabelledImages::new(images, Tensor::from_slice(&[0i64, 1, 1, 0])).unwrap();
        let pgd = [config("pgd", &[]).build().unwrap()];
        let report = run(&model, &data, &pgd, &threat(Norm::Linf, 0.01), &EvaluateOptions::default());
        let most = f32::MAX;
        let expected = if is_random { report.clean_margins.clone() } else { vec![most, -most, most, -most] };
        assert!(report.clean_margins == expected && expected.iter().all(|margin| margin.abs() == most), "{expected:?}");
        let text = serde_json::to_string(&report).unwrap();
        assert!(serde_json::from_str::<c2r_attacks::AttackReport>(&text).unwrap() == report, "{text}");
    }
}

#[test]
fn report_round_trips_through_json() {
    let (model, data) = toy();
    let attacks = [config("pgd", &[]).build().unwrap()];
    let report = run(&model, &data, &attacks, &threat(Norm::Linf, 0.02), &EvaluateOptions::default());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["schema_version"], 1);
    assert_eq!(json["robust_accuracy"], report.robust_accuracy());
    assert_eq!(json["attacks"][0]["robust_accuracy"], report.attacks[0].robust_accuracy());
    assert_eq!(serde_json::from_value::<c2r_attacks::AttackReport>(json.clone()).unwrap(), report);
    let mut later = json;
    later["schema_version"] = 2.into();
    let error = serde_json::from_value::<c2r_attacks::AttackReport>(later).unwrap_err().to_string();
    assert_eq!(error, "the report's schema_version is 2; this version of c2r reads 1");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random norm, radius and seed: the judged images stay inside, and broken samples are really broken.
    #[test]
    fn judged_images_are_inside_and_outcomes_true(
        which in 0usize..3,
        scale in 0.1f64..3.0,
        seed in 0u64..1000,
    ) {
        let (model, data) = toy();
        let (norm, epsilon) = NORMS[which];
        let threat = threat(norm, epsilon * scale);
        let attacks = ["pgd", "apgd-ce", "noise", "square"].map(|name| {
            let options: &[(&str, &str)] = if name == "square" { &[("queries", "15")] } else { &[] };
            config(name, options).build().unwrap()
        });
        let options = EvaluateOptions { seed: Seed::new(seed), batch_size: 7, mode: Mode::Each, ..Default::default() };
        let mut saved = AdversarialImages::new(&data, attacks.len(), Mode::Each);
        let report = evaluate_with(&model, &data, &attacks, &threat, &options, &mut |event| {
            saved.observe(event);
            ControlFlow::Continue(())
        }).unwrap();
        for (entry, images) in report.attacks.iter().zip(saved.sets()) {
            prop_assert!(norm.distance(images, data.images()).max().double_value(&[]) <= threat.epsilon.value() + 1e-6);
            prop_assert!(images.min().double_value(&[]) >= 0.0 && images.max().double_value(&[]) <= 1.0);
            let predictions = Vec::<i64>::try_from(model.logits(images).argmax(1, false)).unwrap();
            for ((sample, prediction), label) in entry.samples.iter().zip(predictions).zip(&report.labels) {
                prop_assert_eq!(sample.prediction, prediction);
                prop_assert_eq!(sample.outcome == Outcome::Survived, prediction == *label);
            }
        }
    }
}
