//! What options, restarts and steps do, against rules that are written out here.

use std::cell::RefCell;

use c2r_attacks::{Attack, AttackBatch, Perturbed};
use c2r_base::{Classifier, Goal, LabelledImages, Norm, Seed, TargetRule, ThreatModel};
use c2r_testkit::{
    max_difference,
    toys::{self, Linear},
};
use tch::{Device, Kind, Tensor};

use crate::{
    properties::{CLASSES, NORMS, SHAPE, perturb, toy},
    support::{Recorder, config, flags, threat},
};

pub(crate) fn proposal(
    attack: &dyn Attack,
    model: &dyn Classifier,
    data: &LabelledImages,
    threat: &ThreatModel,
) -> Perturbed {
    let ids: Vec<u64> = (0..data.len() as u64).collect();
    let batch = AttackBatch { images: data.images(), labels: data.labels(), ids: &ids, targets: None };
    attack.perturb(model, &batch, threat, Seed::new(3)).unwrap()
}

#[test]
fn every_option_changes_the_proposal() {
    let (model, data) = toy();
    let all: Vec<usize> = (0..data.len()).collect();
    type Options = &'static [(&'static str, &'static str)];
    let switches: [(&str, Norm, Options, (&str, &str)); 32] = [
        ("fgsm", Norm::Linf, &[], ("loss", "cw")),
        ("r-fgsm", Norm::Linf, &[], ("rel-start", "0.25")),
        ("r-fgsm", Norm::Linf, &[], ("loss", "dlr")),
        ("bim", Norm::Linf, &[], ("loss", "dlr")),
        ("bim", Norm::Linf, &[], ("early-stop", "true")),
        ("pgd", Norm::Linf, &[], ("loss", "cw")),
        ("pgd", Norm::Linf, &[("loss", "cw")], ("kappa", "0")),
        ("pgd", Norm::Linf, &[], ("random-start", "false")),
        ("pgd", Norm::Linf, &[], ("steps", "2")),
        ("pgd", Norm::Linf, &[], ("rel-step-size", "0.1")),
        ("pgd", Norm::Linf, &[], ("step-size", "0.003")),
        ("pgd", Norm::L1, &[], ("sparsity", "0.5")),
        ("cw-linf", Norm::Linf, &[], ("kappa", "0")),
        ("mi-fgsm", Norm::Linf, &[], ("decay", "0.1")),
        ("ni-fgsm", Norm::Linf, &[], ("decay", "0.1")),
        ("vmi-fgsm", Norm::Linf, &[("neighbours", "3")], ("beta", "0.1")),
        ("vmi-fgsm", Norm::Linf, &[("neighbours", "3")], ("neighbours", "2")),
        ("tpgd", Norm::Linf, &[], ("start-std", "0.01")),
        ("jitter", Norm::Linf, &[], ("scale", "1")),
        ("jitter", Norm::Linf, &[], ("std", "0")),
        ("square", Norm::Linf, &[("queries", "60")], ("p-init", "0.1")),
        ("square", Norm::Linf, &[("queries", "60")], ("rescale-schedule", "true")),
        ("fab", Norm::L2, &[("steps", "5")], ("eta", "1.5")),
        ("fab", Norm::L2, &[("steps", "5")], ("beta", "0.5")),
        ("fab", Norm::L2, &[("steps", "5")], ("alpha-max", "0.01")),
        ("deepfool", Norm::L2, &[], ("overshoot", "0.5")),
        ("cw-l2", Norm::L2, &[], ("c", "10")),
        ("cw-l2", Norm::L2, &[], ("kappa", "1")),
        ("cw-l2", Norm::L2, &[], ("lr", "0.1")),
        ("cw-l2", Norm::L2, &[], ("search-steps", "3")),
        ("cw-l2", Norm::L2, &[], ("clipped-margin", "true")),
        ("noise", Norm::Linf, &[], ("samples", "3")),
    ];
    for (name, norm, others, option) in switches {
        let epsilon = NORMS.iter().find(|(known, _)| *known == norm).unwrap().1;
        let of = |options: &[(&str, &str)]| {
            perturb(config(name, options).build().unwrap().as_ref(), &model, &data, &all, &threat(norm, epsilon))
        };
        let idle = config(name, others).idle(&threat(norm, epsilon));
        assert!(!idle.iter().any(|(idle, _)| *idle == option.0), "{name}: `{option:?}` is named as idle");
        let changed = of(&[others, &[option]].concat());
        assert!(max_difference(&of(others), &changed) > 1e-5, "{name}: `{option:?}` has no effect");
    }
}

/// And what [`AttackConfig::idle`] names changes nothing.
#[test]
fn options_that_are_named_as_idle_change_nothing() {
    let (model, data) = toy();
    let ids: Vec<u64> = (0..data.len() as u64).collect();
    let next = (data.labels() + 1).remainder(CLASSES);
    let cases: [(&str, Norm, bool, (&str, &str)); 8] = [
        ("pgd", Norm::Linf, false, ("kappa", "0")),
        ("pgd", Norm::L2, false, ("sparsity", "0.5")),
        ("apgd-ce", Norm::L1, false, ("rho", "0.1")),
        ("apgd-dlr", Norm::L1, false, ("rho", "0.1")),
        ("apgd-t", Norm::L1, false, ("rho", "0.1")),
        ("apgd-t", Norm::Linf, true, ("targets", "1")),
        ("fab-t", Norm::Linf, true, ("targets", "1")),
        ("fab-t", Norm::L2, true, ("targets", "1")),
    ];
    for (name, norm, is_targeted, option) in cases {
        let epsilon = NORMS.iter().find(|(known, _)| *known == norm).unwrap().1;
        let goal = if is_targeted { Goal::Targeted(TargetRule::Next) } else { Goal::Untargeted };
        let threat = ThreatModel { goal, ..threat(norm, epsilon) };
        let of = |options: &[(&str, &str)]| {
            let config = config(name, &[&[("steps", "20")], options].concat());
            let targets = is_targeted.then_some(&next);
            let batch = AttackBatch { images: data.images(), labels: data.labels(), ids: &ids, targets };
            assert!(config.idle(&threat).iter().any(|(idle, _)| *idle == option.0), "{name}: {option:?} is not named");
            config.build().unwrap().perturb(&model, &batch, &threat, Seed::new(3)).unwrap().images
        };
        assert_eq!(max_difference(&of(&[]), &of(&[option])), 0.0, "{name}: {option:?} has an effect");
    }
}

/// A step in pixels, and the same one in parts of epsilon.
#[test]
fn both_ways_of_writing_a_step_are_one_step() {
    let (model, data) = toy();
    let all: Vec<usize> = (0..data.len()).collect();
    for (norm, epsilon) in NORMS {
        let of = |option: &str, value: f64| {
            let attack = config("pgd", &[("steps", "3"), (option, &value.to_string())]).build().unwrap();
            perturb(attack.as_ref(), &model, &data, &all, &threat(norm, epsilon))
        };
        assert!(max_difference(&of("step-size", 0.3 * epsilon), &of("rel-step-size", 0.3)) < 1e-6, "{norm}");
    }
}

/// Restarts try what stands again, from other points, and leave what is broken as it is.
#[test]
fn restarts_try_again_only_what_stands() {
    let (model, data) = toy();
    let threat = threat(Norm::Linf, 0.02);
    for (name, short) in [
        ("pgd", &[("steps", "1")][..]),
        ("cw-linf", &[("steps", "1")]),
        ("apgd-ce", &[("steps", "2")]),
        ("apgd-t", &[("steps", "2"), ("targets", "2")]),
        ("square", &[("queries", "4")]),
    ] {
        let of = |restarts: &str| {
            let attack = config(name, &[short, &[("restarts", restarts)]].concat()).build().unwrap();
            let found = proposal(attack.as_ref(), &model, &data, &threat);
            let stands = flags(&model.logits(&found.images).argmax(1, false).eq_tensor(data.labels()));
            (found, stands)
        };
        let ((once, stand_once), (often, stand_often)) = (of("1"), of("4"));
        let n_standing = stand_once.iter().filter(|stands| **stands).count();
        assert!(n_standing > 0 && n_standing < data.len(), "{name}: {n_standing} stand, which shows little");
        let mut farthest = 0.0f64;
        for (at, stands) in stand_once.into_iter().enumerate() {
            let moved = max_difference(&once.images.get(at as i64), &often.images.get(at as i64));
            if stands {
                farthest = farthest.max(moved);
                assert!(often.queries[at] > once.queries[at] + 1, "{name}: {:?}", often.queries);
            } else {
                assert!(!stand_often[at] && moved == 0.0, "{name}: sample {at} was broken already");
            }
        }
        assert!(farthest > 1e-4, "{name}: nothing was tried from elsewhere");
    }
}

/// FAB keeps the nearest image of all its starts. The first one is the clean image, the others are half as far from it as epsilon or
/// the nearest image so far, whatever is less (the authors' code).
#[test]
fn fab_starts_again_half_way_to_what_it_knows() {
    let (model, data) = toy();
    for epsilon in [0.01, 0.5] {
        let recorder = Recorder::new(&model);
        let of = |restarts: &str| {
            let attack = config("fab", &[("steps", "3"), ("restarts", restarts)]).build().unwrap();
            let found = proposal(attack.as_ref(), &recorder, &data, &threat(Norm::Linf, epsilon)).images;
            Norm::Linf.distance(&found, data.images())
        };
        let (once, often) = (of("1"), of("2"));
        assert!((often - &once).max().double_value(&[]) <= 0.0);
        // A gradient and a judgement for each of three steps, once and then twice.
        let asked = recorder.asked();
        assert_eq!(asked.len(), 18);
        assert_eq!(max_difference(&asked[6], data.images()), 0.0);
        let start = Norm::Linf.distance(&asked[12], data.images());
        let expected = once.masked_fill(&once.eq(0.0), f64::INFINITY).clamp_max(epsilon) * 0.5;
        // The box may cut off the largest change.
        let off = (&expected - &start).abs().median().double_value(&[]);
        assert!(off < 1e-6 && (&start - expected).max().double_value(&[]) < 1e-6, "{start}");
    }
}

/// The second of two classes is the nearest boundary, so an image is broken as soon as its steps add up to its distance.
#[test]
fn an_early_stop_returns_the_first_image_that_is_broken() {
    let model = Linear::mixed(2, SHAPE);
    let images = (toys::images(6, SHAPE) - 0.5) * 0.2 + 0.5;
    let labels = model.logits(&images).argmax(1, false);
    let data = LabelledImages::new(images, labels).unwrap();
    let distances = model.distance(data.images(), data.labels(), Norm::Linf);
    let farthest = distances.max().double_value(&[]);
    // Ten steps, the longest way takes about eight of them.
    let step = farthest / 7.5;
    let expected = (&distances / step).ceil() * step;
    assert!(expected.max().double_value(&[]) > 3.0 * expected.min().double_value(&[]), "{distances}");
    let threat = threat(Norm::Linf, 10.0 * step);
    for name in ["bim", "mi-fgsm", "pgd"] {
        let mut options = vec![("rel-step-size", "0.1"), ("early-stop", "true")];
        options.extend((name == "pgd").then_some(("random-start", "false")));
        let found = proposal(config(name, &options).build().unwrap().as_ref(), &model, &data, &threat);
        let moved = Norm::Linf.distance(&found.images, data.images());
        assert!(max_difference(&moved, &expected) < 1e-6, "{name}: {moved} instead of {expected}");
    }
}

/// Far from the boundary, the margin is the fifth power of the distance: a step with an overshoot of 0.05 leaves 79 % of it. Near
/// the boundary it is linear, and a step crosses it. The hit is in step 14; the host reads after step 15.
#[test]
fn deepfool_returns_the_first_image_that_is_broken() {
    let model = toys::function(|x| {
        let near = 0.105;
        let left = (x.mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float) - 0.5) * 10.0;
        let line = (&left - 0.8 * near) * (5.0 * f64::powi(near, 4));
        let margin = left.pow_tensor_scalar(5).where_self(&left.gt(near), &line);
        Tensor::stack(&[&margin, &left.zeros_like()], 1)
    });
    let images = toys::images(4, SHAPE) * 0.2 + 0.6;
    let data = LabelledImages::new(images, Tensor::zeros([4], (Kind::Int64, Device::Cpu))).unwrap();
    let after = |steps: &str| {
        let attack = config("deepfool", &[("overshoot", "0.05"), ("steps", steps)]).build().unwrap();
        proposal(attack.as_ref(), &model, &data, &threat(Norm::Linf, 0.5)).images
    };
    let broken = |images: &Tensor| model.logits(images).unwrap().argmax(1, false).sum(Kind::Int64).int64_value(&[]);
    assert_eq!((broken(&after("13")), broken(&after("14"))), (0, 4));
    assert_eq!(max_difference(&after("50"), &after("14")), 0.0);
}

/// A sign step of a quarter of epsilon, then three quarters against the margin of a linear model: each value has moved by
/// all of epsilon or by half of it.
#[test]
fn r_fgsm_by_hand() {
    let model = Linear::mixed(2, SHAPE);
    let images = (toys::images(4, SHAPE) - 0.5) * 0.2 + 0.5;
    let labels = model.logits(&images).argmax(1, false);
    let data = LabelledImages::new(images, labels).unwrap();
    let attack = config("r-fgsm", &[("rel-start", "0.25")]).build().unwrap();
    let found = proposal(attack.as_ref(), &model, &data, &threat(Norm::Linf, 0.04)).images;
    let loss = |x: &Tensor| c2r_base::loss::ce(&model.logits(x), data.labels());
    let (gradient, _) = c2r_base::grad::input_gradient(data.images(), loss);
    let share = (found - data.images()) * gradient.sign() / 0.04;
    let whole = (&share - 1.0).abs().lt(1e-4);
    let half = (&share - 0.5).abs().lt(1e-4);
    assert_eq!(whole.logical_or(&half).all().int64_value(&[]), 1, "{share}");
    let n_whole = whole.to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
    assert!((0.35..0.65).contains(&n_whole), "{n_whole}");
}

/// More noise is the same noise and more of it: no margin rises.
#[test]
fn more_noise_never_raises_a_margin() {
    let (model, data) = toy();
    let threat = threat(Norm::Linf, 0.05);
    let margins = |samples: usize| {
        let attack = config("noise", &[("samples", &samples.to_string())]).build().unwrap();
        let found = proposal(attack.as_ref(), &model, &data, &threat).images;
        c2r_base::loss::margin(&model.logits(&found), data.labels())
    };
    let margins: Vec<Tensor> = (1..8).map(margins).collect();
    for pair in margins.windows(2) {
        assert!((&pair[1] - &pair[0]).max().double_value(&[]) <= 1e-6);
    }
    let fall = (&margins[0] - &margins[6]).gt(1e-4).sum(Kind::Int64).int64_value(&[]);
    assert!(fall > 6, "the margins of {fall} of 12 images fell with seven samples");
}

/// A weight of the margin that is far too small moves nothing; the search makes it ten times larger until an image is broken.
#[test]
fn the_search_of_cw_l2_finds_a_weight() {
    let (model, data) = toy();
    let n_standing = |search_steps: &str| {
        let attack = config("cw-l2", &[("c", "0.0001"), ("search-steps", search_steps)]).build().unwrap();
        let found = proposal(attack.as_ref(), &model, &data, &threat(Norm::L2, 5.0)).images;
        model.logits(&found).argmax(1, false).eq_tensor(data.labels()).sum(Kind::Int64).int64_value(&[])
    };
    assert_eq!((n_standing("0"), n_standing("6")), (10, 0));
}

/// Where the loss of [`apgd_takes_the_steps_of_its_paper`] is largest.
const TOP: f64 = 0.7123;

/// Algorithm 1 of Croce & Hein 2020 (arXiv:2003.01690) for one pixel: the points that it asks about, in order. Checkpoints are
/// those of 100 steps, of section 3.2; alpha = 0.75. The loss stands for its value: it is larger where it is nearer
/// to the peak.
fn algorithm_1(clean: f64, epsilon: f64, rho: f64, start: f64) -> Vec<f64> {
    let project = |x: f64| x.clamp(clean - epsilon, clean + epsilon).clamp(0.0, 1.0);
    let (loss, sign) = (|x: f64| -(x - TOP).abs(), |x: f64| (TOP - x).signum());
    let mut eta = 2.0 * epsilon;
    let mut asked = vec![start, project(start + eta * sign(start))];
    let (mut before, mut x) = (start, asked[1]);
    let mut best = if loss(x) > loss(start) { x } else { start };
    let (mut last_point, mut rises) = (0, usize::from(loss(x) > loss(start)));
    // Whether the step was halved at the last checkpoint, and the best loss there.
    let (mut halved, mut best_then) = (true, loss(start));
    for k in 2..=100 {
        let z = project(x + eta * sign(x));
        let next = project(x + 0.75 * (z - x) + 0.25 * (x - before));
        // What the last point was worth, not the best one that a checkpoint may have gone back to.
        rises += usize::from(loss(next) > loss(asked[k - 1]));
        (before, x) = (x, next);
        asked.push(x);
        if loss(x) > loss(best) {
            best = x;
        }
        if [22, 41, 57, 70, 80, 87, 93, 99].contains(&k) {
            let few = rises as f64 <= rho * (k - last_point) as f64;
            let stuck = !halved && loss(best) <= best_then;
            halved = few || stuck;
            if halved {
                eta /= 2.0;
                x = best;
            }
            (last_point, rises, best_then) = (k, 0, loss(best));
        }
    }
    asked
}

#[test]
fn apgd_takes_the_steps_of_its_paper() {
    let clean = [0.61f32, 0.53, 0.83, 0.97, 0.2];
    let images = Tensor::from_slice(&clean).view([5, 1, 1, 1]);
    let data = LabelledImages::new(images, Tensor::from_slice(&[1i64; 5])).unwrap();
    let epsilon = 0.23;
    for rho in [0.75, 0.5] {
        let asked = RefCell::new(Vec::<Vec<f64>>::new());
        // Of images of one pixel. For class 1 the loss is largest at the peak, and class 0 never wins.
        let model = toys::function(|images| {
            let x = images.view([-1, 1]);
            asked.borrow_mut().push(Vec::try_from(x.detach().view(-1).to_kind(Kind::Double)).unwrap());
            Tensor::cat(&[(&x - TOP).abs() * -20.0 - 1.0, x.zeros_like()], 1)
        });
        let attack = config("apgd-ce", &[("rho", &rho.to_string())]).build().unwrap();
        let found = proposal(attack.as_ref(), &model, &data, &threat(Norm::Linf, epsilon)).images;
        let asked = asked.take();
        assert_eq!(asked.len(), 101);
        for (at, &clean) in clean.iter().enumerate() {
            let expected = algorithm_1(f64::from(clean), epsilon, rho, asked[0][at]);
            for (step, (got, expected)) in asked.iter().map(|points| points[at]).zip(&expected).enumerate() {
                assert!((got - expected).abs() < 1e-4, "pixel {clean}, step {step}: {got} instead of {expected}");
            }
            let nearest = expected.iter().copied().min_by(|a, b| (a - TOP).abs().total_cmp(&(b - TOP).abs())).unwrap();
            let image = found.double_value(&[at as i64, 0, 0, 0]);
            assert!((image - nearest).abs() < 1e-4, "pixel {clean}: {image} instead of {nearest}");
        }
    }
}
