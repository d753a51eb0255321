//! Models as people have them: tiny, infinite or missing gradients, outputs that are not logits, side effects, failures.

use std::{cell::Cell, collections::BTreeSet, time::Duration};

use c2r_attacks::{
    ATTACKS, Attack, AttackError, AttackReport, ConfigError, EvaluateOptions, Family, Flag, Mode, Outcome, evaluate,
};
use c2r_base::{Classifier, LabelledImages, Norm, grad::GradientError};
use c2r_testkit::toys::{self, Linear, Tanh, function};
use tch::{Device, Kind, Tensor};

use crate::{
    properties::{NORMS, attacks},
    support::{config, run, threat},
};

const SHAPE: [i64; 3] = [2, 6, 6];

/// A linear model of `classes` classes and 24 images that it classifies correctly.
fn linear(classes: i64) -> (Linear, LabelledImages) {
    let model = Linear::mixed(classes, SHAPE);
    let images = toys::images(24, SHAPE);
    let labels = model.logits(&images).argmax(1, false);
    (model, LabelledImages::new(images, labels).unwrap())
}

fn built(names: &[&str]) -> Vec<Box<dyn Attack>> {
    names.iter().map(|name| config(name, &[]).build().unwrap()).collect()
}

fn each() -> EvaluateOptions {
    EvaluateOptions { mode: Mode::Each, ..EvaluateOptions::default() }
}

/// Who survived each attack.
fn survivors(report: &AttackReport) -> Vec<(String, Vec<bool>)> {
    let survived =
        |samples: &[c2r_attacks::SampleOutcome]| samples.iter().map(|s| s.outcome == Outcome::Survived).collect();
    report.attacks.iter().map(|entry| (entry.name.clone(), survived(&entry.samples))).collect()
}

/// Logits times a constant are the same classifier. On two classes the gradient of every loss is then the same but for its
/// size, here between 1e-37 and 1e28, whose squares f32 does not hold; attacks whose loss is flat for such logits are
/// left out.
#[test]
fn the_size_of_a_gradient_decides_nothing() {
    let (model, data) = linear(2);
    let steps = built(&["fgsm", "bim", "pgd", "mi-fgsm", "deepfool", "fab", "fab-t"]);
    for (norm, epsilon) in [(Norm::Linf, 0.05), (Norm::L2, 0.3), (Norm::L1, 1.5)] {
        let known = |attack: &&dyn Attack| attack.check(&threat(norm, epsilon), 2).is_ok();
        let names: BTreeSet<&str> = steps.iter().map(AsRef::as_ref).filter(known).map(Attack::name).collect();
        let attacks = built(&names.into_iter().collect::<Vec<_>>());
        let report = |factor: f64| {
            run(&function(|x| model.logits(x) * factor), &data, &attacks, &threat(norm, epsilon), &each())
        };
        let expected = survivors(&report(1.0));
        assert!(expected.iter().any(|(_, survived)| survived.contains(&true) && survived.contains(&false)), "{norm}");
        for factor in [1e-36, 1e-20, 1e28] {
            for ((name, ours), (_, expected)) in survivors(&report(factor)).iter().zip(&expected) {
                // The cross entropy of logits of 1e28 is saturated: nothing is left of its gradient.
                if factor > 1.0 && !["deepfool", "fab", "fab-t"].contains(&name.as_str()) {
                    continue;
                }
                // On the boundary the last bit decides.
                let different = ours.iter().zip(expected).filter(|(a, b)| a != b).count();
                assert!(different <= 1, "{name} {norm}, logits times {factor}: {ours:?} instead of {expected:?}");
            }
        }
    }
}

/// Saturated logits: the cross entropy's gradient is between 1e-38 and 1e-10, and of full use.
#[test]
fn saturated_logits_are_attacked_in_l2_and_flagged() {
    // Two opposite logits: of a saturated softmax, f32 keeps the gradient of the other class alone.
    let weight = Tensor::arange(72, (Kind::Float, Device::Cpu)).sin().view([1, 72]);
    let bias = -(&weight * 0.5).sum(Kind::Float).view([1]);
    let model = Linear::new(Tensor::cat(&[&weight, &-&weight], 0), Tensor::cat(&[&bias, &-&bias], 0));
    let images = toys::images(24, SHAPE);
    let data = LabelledImages::new(images.copy(), model.logits(&images).argmax(1, false)).unwrap();
    let attacks = built(&["fgsm", "pgd", "apgd-ce"]);
    let report =
        |factor: f64| run(&function(|x| model.logits(x) * factor), &data, &attacks, &threat(Norm::L2, 0.3), &each());
    let margins = Vec::<f32>::try_from(model.margin(data.images(), data.labels())).unwrap();
    let factor = 40.0 / f64::from(margins.iter().copied().fold(0.0, f32::max));
    let (plain, saturated) = (report(1.0), report(factor * 2.0));
    let n_vanishing = margins.iter().filter(|&&margin| f64::from(margin) * factor * 2.0 > 25.0).count();
    assert!(
        matches!(saturated.flags[..], [Flag::VanishingGradient { samples, of: 24 }] if samples.abs_diff(n_vanishing) <= 2),
        "{:?}, about {n_vanishing}",
        saturated.flags
    );
    assert_eq!(plain.flags, []);
    for ((name, ours), (_, expected)) in survivors(&saturated).iter().zip(survivors(&plain)) {
        let different = ours.iter().zip(&expected).filter(|(a, b)| a != b).count();
        assert!(different <= 1, "{name}: {ours:?} instead of {expected:?}");
    }
}

/// `sqrt(x)^2` is x, but its gradient at 0 is NaN (infinity times 0). Every attack either finds what it finds on x itself
/// and is flagged, or ends with an error that names the gradient. No attack returns NaN.
#[test]
fn nan_in_gradients_is_repaired_and_flagged_or_named() {
    let model = Linear::mixed(3, SHAPE);
    let images = toys::images(24, SHAPE);
    let _ = images.narrow(2, 0, 1).narrow(3, 0, 1).fill_(0.0);
    let data = LabelledImages::new(images.copy(), model.logits(&images).argmax(1, false)).unwrap();
    let root = function(|x| model.logits(&x.sqrt().square()));
    let mut n_flagged = BTreeSet::new();
    for (norm, epsilon) in NORMS {
        let threat = threat(norm, epsilon * 3.0);
        for attack in attacks(norm).into_iter().filter(|attack| attack.check(&threat, 3).is_ok()) {
            let what = format!("{} {norm}", attack.name());
            let attacks = [attack];
            let plain = evaluate(&model, &data, &attacks, &threat, &each()).unwrap();
            match evaluate(&root, &data, &attacks, &threat, &each()) {
                Ok(report) => {
                    // CW-L2 stays 5e-7 inside the pixel range.
                    let sees_gradients = report.counts().backward_images > report.clean_counts.backward_images
                        && attacks[0].name() != "cw-l2";
                    let flagged = report.flags.iter().any(
                        |flag| matches!(flag, Flag::NonFiniteGradient { attack, samples: 1.. } if attack == attacks[0].name()),
                    );
                    assert_eq!(flagged, sees_gradients, "{what}: {:?}", report.flags);
                    n_flagged.extend(flagged.then(|| attacks[0].name().to_owned()));
                    let (ours, expected) = (report.robust_accuracy(), plain.robust_accuracy());
                    assert!(ours <= expected + 0.15, "{what}: {ours} instead of {expected}");
                    assert!(report.attacks[0].samples.iter().all(|sample| sample.distance.is_finite()), "{what}");
                }
                Err(AttackError::NonFiniteOutside { attack, .. }) => {
                    assert!(["ni-fgsm", "vmi-fgsm", "vni-fgsm"].contains(&&*attack), "{what}");
                }
                Err(other) => panic!("{what}: {other}"),
            }
        }
    }
    for name in ["fgsm", "pgd", "mi-fgsm", "apgd-ce", "apgd-dlr", "deepfool", "fab", "jitter", "tpgd", "eot-pgd"] {
        assert!(n_flagged.contains(name), "{name} is not among {n_flagged:?}");
    }
}

#[test]
fn a_gradient_without_direction_is_an_error_that_names_it() {
    let (model, data) = linear(3);
    // The square root of 0 times x: NaN in every pixel.
    let lost = function(|x| {
        model.logits(x) + (x * 0.0).sqrt().flatten(1, -1).sum_dim_intlist([1i64].as_slice(), true, Kind::Float)
    });
    for name in ["fgsm", "mi-fgsm", "deepfool", "fab-t", "apgd-ce"] {
        let error = evaluate(&lost, &data, &built(&[name]), &threat(Norm::Linf, 0.05), &each()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("gradient") && text.contains("Python"), "{text}");
        assert!(matches!(error, AttackError::NonFiniteGradient { sample: 0, attack } if attack == name), "{text}");
    }
    // Square asks for none.
    let attacks = [config("square", &[("queries", "20")]).build().unwrap()];
    let report = run(&lost, &data, &attacks, &threat(Norm::Linf, 0.05), &each());
    assert!(matches!(&report.flags[..], [Flag::NoGradient { .. }]), "{:?}", report.flags);
}

type Logits<'a> = &'a dyn Fn(&Tensor) -> Tensor;

/// Squashed outputs are doubted in any form, logits of small models in none.
#[test]
fn bounded_outputs_are_doubted_and_ordinary_logits_are_not() {
    let flags = |model: Logits<'_>, data: &LabelledImages| {
        let report = run(&function(model), data, &built(&["clean"]), &threat(Norm::Linf, 0.01), &each());
        let about = |flag: &Flag| matches!(flag, Flag::ProbabilitiesNotLogits | Flag::BoundedOutputs { .. });
        report.flags.into_iter().filter(about).collect::<Vec<_>>()
    };
    for classes in [2, 3, 10, 40] {
        let (linear, data) = linear(classes);
        let small = Tanh::new(classes, SHAPE, 12);
        let logits: [(&str, Logits<'_>); 2] = [("linear", &|x| linear.logits(x)), ("tanh units", &|x| small.logits(x))];
        for (name, logits) in logits {
            let ordinary: [(&str, Logits<'_>); 6] = [
                ("logits", &|x| logits(x)),
                ("small logits", &|x| logits(x) * 1e-3),
                ("large logits", &|x| logits(x) * 100.0),
                ("logits around 0.5", &|x| logits(x) * 0.03 + 0.5),
                ("log softmax", &|x| logits(x).log_softmax(1, Kind::Float)),
                ("relu", &|x| logits(x).relu()),
            ];
            for (form, model) in ordinary {
                assert_eq!(flags(model, &data), [], "{form} of a {name} model with {classes} classes");
            }
            type Expected = fn(&[Flag]) -> bool;
            let in_unit: Expected = |flags| matches!(flags, [Flag::ProbabilitiesNotLogits]);
            let in_bounds: Expected = |flags| matches!(flags, [Flag::BoundedOutputs { .. }]);
            let squashed: [(&str, Logits<'_>, Expected); 7] = [
                ("sigmoid", &|x| logits(x).sigmoid(), in_unit),
                ("softmax", &|x| logits(x).softmax(1, Kind::Float), in_unit),
                ("one-hot", &|x| logits(x).argmax(1, false).onehot(classes), in_unit),
                ("tanh", &|x| (logits(x) * 5.0).tanh(), in_bounds),
                ("10 sigmoid", &|x| (logits(x) * 5.0).sigmoid() * 10.0, in_bounds),
                ("clamp", &|x| logits(x).clamp(-0.5, 0.5), in_bounds),
                (
                    "softsign",
                    &|x| {
                        let z = logits(x) * 100.0;
                        &z / (z.abs() + 1.0)
                    },
                    in_bounds,
                ),
            ];
            for (form, model, expected) in squashed {
                let found = flags(model, &data);
                assert!(expected(&found), "{form} of a {name} model with {classes} classes: {found:?}");
            }
        }
    }
}

/// A model that writes into its input: it hurts nobody, and is not called randomized.
#[test]
fn a_model_may_change_its_images() {
    let (model, data) = linear(3);
    let before = data.images().copy();
    let darker = function(|x| model.logits(&(x * 0.9)));
    let changing = function(|x| {
        let mut given = x.detach();
        let _ = given.g_mul_scalar_(0.9);
        model.logits(x)
    });
    for (norm, epsilon) in NORMS {
        // Its gradient lacks the factor 0.9, which attacks for the smallest perturbation weigh against distances.
        let known = |attack: &dyn Attack| {
            attack.family() != Family::MinimumNorm && attack.check(&threat(norm, epsilon), 3).is_ok()
        };
        let attacks = attacks(norm).into_iter().filter(|attack| known(attack.as_ref()));
        let attacks: Vec<_> = attacks.collect();
        let (ours, expected) = [&changing as &dyn Classifier, &darker]
            .map(|model| run(model, &data, &attacks, &threat(norm, epsilon), &each()))
            .into();
        let of_model: Vec<&Flag> = ours.flags.iter().filter(|flag| !expected.flags.contains(flag)).collect();
        assert!(matches!(of_model[..], [Flag::ChangesItsInput { difference: 0.05..=0.1 }]), "{:?}", ours.flags);
        for ((name, ours), (_, expected)) in survivors(&ours).iter().zip(survivors(&expected)) {
            let different = ours.iter().zip(&expected).filter(|(a, b)| a != b).count();
            assert!(different <= 1, "{name} {norm}: {ours:?} instead of {expected:?}");
        }
        let longest =
            ours.attacks.iter().flat_map(|entry| &entry.samples).map(|sample| sample.distance).fold(0.0, f64::max);
        assert!(longest <= epsilon + 1e-5, "{norm}: {longest}");
    }
    assert_eq!((data.images() - before).abs().max().double_value(&[]), 0.0);
}

#[test]
fn what_has_no_gradient_is_left_to_black_box_attacks() {
    let (model, data) = linear(3);
    let classes = function(|x| model.logits(x).argmax(1, false).onehot(3));
    let threat = threat(Norm::Linf, 0.2);
    let black_box = [config("square", &[("queries", "100")]).build().unwrap(), config("noise", &[]).build().unwrap()];
    let report = run(&classes, &data, &black_box, &threat, &each());
    assert!(report.flags.iter().any(|flag| matches!(flag, Flag::NoGradient { .. })), "{:?}", report.flags);
    assert!(report.attack("square").unwrap().robust_accuracy() < 1.0);
    for name in ATTACKS {
        let attack = config(name, &[]).build().unwrap();
        let sees_gradients = matches!(attack.family(), Family::Gradient | Family::MinimumNorm);
        if sees_gradients && attack.check(&threat, 3).is_ok() {
            let error = evaluate(&classes, &data, &[attack], &threat, &each()).unwrap_err();
            assert!(
                matches!(&error, AttackError::NoGradient { attack, source: GradientError::Untracked } if attack == name),
                "{name}: {error}"
            );
        }
    }
}

/// Misbehaviour at any time is an error with the model's own words, never a panic.
#[test]
fn a_model_that_misbehaves_later_is_an_error() {
    let (model, data) = linear(3);
    let threat = threat(Norm::Linf, 0.05);
    let result = |model: &dyn Classifier, batch_size: usize| {
        let options = EvaluateOptions { batch_size, ..each() };
        evaluate(model, &data, &built(&["fgsm", "deepfool"]), &threat, &options)
    };
    let squeezed = function(|x| if x.size()[0] == 1 { model.logits(x).squeeze_dim(0) } else { model.logits(x) });
    for batch_size in [1, 23, 24] {
        let error = result(&squeezed, batch_size).unwrap_err();
        assert!(matches!(&error, AttackError::LogitsShape { rows: 1, got } if got == &[3]), "{error}");
    }
    let clean = data.images().copy();
    let is_clean = |x: &Tensor| x.size() == clean.size() && (x - &clean).abs().max().double_value(&[]) == 0.0;
    let fewer = function(|x| if is_clean(x) { model.logits(x) } else { model.logits(x).narrow(1, 0, 2) });
    let options = EvaluateOptions { self_check: false, ..each() };
    let error = evaluate(&fewer, &data, &built(&["fgsm"]), &threat, &options).unwrap_err();
    let AttackError::Model { source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(
        source.to_string(),
        "the model returned 2 logits for each image, but 3 in an earlier pass; the number of classes must not change"
    );

    // Written over after it was needed for the backward pass.
    let overwritten = function(|x| {
        let mut z = model.logits(x).exp();
        let z_before = z.shallow_clone();
        let _ = z.g_add_scalar_(1.0);
        z_before
    });
    let error = result(&overwritten, 24).unwrap_err();
    let AttackError::Model { attack, source, .. } = &error else { panic!("{error:?}") };
    assert!(attack == "fgsm" && source.to_string().contains("modified by an inplace operation"), "{source}");
}

#[test]
fn a_radius_that_reaches_every_image_is_refused_in_every_norm() {
    let (model, data) = linear(3);
    let n_values = 72.0f64;
    for (norm, largest) in [(Norm::Linf, 1.0), (Norm::L2, n_values.sqrt()), (Norm::L1, n_values)] {
        let result = |epsilon| evaluate(&model, &data, &built(&["clean"]), &threat(norm, epsilon), &each());
        assert!(result(largest * 0.999).is_ok(), "{norm}");
        for epsilon in [largest, 128.0 * largest] {
            let error = result(epsilon).unwrap_err();
            let AttackError::Config(ConfigError::EpsilonCoversAll { diameter, .. }) = error else { panic!("{error}") };
            assert_eq!(diameter, largest);
        }
    }
}

/// The first pass of a model takes a second here, as where kernels are compiled or memory is mapped.
#[test]
fn the_clean_pass_is_timed_without_warm_up_and_checks() {
    let (model, data) = linear(3);
    let is_warm = Cell::new(false);
    let cold = function(|x| {
        if !is_warm.replace(true) {
            std::thread::sleep(Duration::from_secs(1));
        }
        model.logits(x)
    });
    let report = run(&cold, &data, &built(&["clean"]), &threat(Norm::Linf, 0.1), &EvaluateOptions::default());
    assert!(
        report.check_seconds >= 1.0 && report.clean_seconds < 0.5,
        "{} {}",
        report.check_seconds,
        report.clean_seconds
    );
    assert!(report.seconds() >= report.check_seconds + report.clean_seconds);
    assert!(report.clean_seconds > 0.0);
}
