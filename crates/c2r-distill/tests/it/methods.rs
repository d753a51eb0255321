//! What holds for every method, checked with every profile.

use c2r_distill::{DistillEvent, profiles};
use c2r_testkit::max_difference;

use super::*;

type Changes = Vec<(&'static str, toml::Value)>;

#[test]
fn every_profile_resolves_and_says_what_it_is() {
    for name in profiles::names() {
        let config = profile(name, &[]);
        config.validate().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(config.common.profile, name);
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<DistillConfig>(&text).unwrap(), config, "{text}");
    }
}

/// The field stores one image in each; every method here can store mosaics instead, its labels and rules unchanged.
#[test]
fn every_method_can_store_mosaics() {
    for name in profiles::names() {
        let mosaics = [("images.formation", 2.into()), ("ipc", 1.into()), ("iterations", 1.into())];
        let mut distillation = start(&profile(name, &mosaics));
        finish(&mut distillation);
        let set = distillation.synthetic_set(BTreeMap::new()).unwrap();
        let decoded = set.decode(Device::Cpu).0.size();
        assert_eq!((set.formation, set.labels.len(), decoded), (2, 10, vec![40, 1, 8, 8]), "{name}");
    }
}

/// The rate that trajectory matching learned is in the set; nothing else learns one.
#[test]
fn a_learned_rate_comes_with_the_set() {
    let of = |name: &str, changes: &[(&str, toml::Value)]| {
        let mut distillation = start(&profile(name, changes));
        let last = finish(&mut distillation).pop();
        let origin = distillation.synthetic_set(BTreeMap::new()).unwrap().header.origin().unwrap();
        (origin.learned_lr, last.and_then(|report| report.student_lr))
    };
    for name in ["mtt", "mat"] {
        // At the profile's rate of the rate it would not move in four steps of so small a student.
        let (recorded, reported) = of(name, &[("student.lr-of-lr", 1e-3.into())]);
        assert!(recorded.is_some() && recorded == reported && recorded != Some(0.01), "{name}: {recorded:?}");
    }
    assert_eq!(of("mtt", &[("student.lr-of-lr", 0.0.into())]).0, None);
    assert_eq!(of("dm", &[]).0, None);
}

/// Saved, dropped and taken up before every single step, every method ends with the same bytes; so does a run
/// that is simply repeated, and another seed does not.
#[test]
fn every_method_resumes_to_the_same_bytes() {
    for name in profiles::names() {
        let config = profile(name, &[]);
        let mut whole = start(&config);
        finish(&mut whole);
        let expected = bytes(&whole);
        let mut other = start(&profile(name, &[("seed", 1.into())]));
        finish(&mut other);
        assert_ne!(bytes(&other), expected, "{name}: the seed changes nothing");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let mut distillation = start(&config);
        let mut n_steps = 0;
        while !distillation.is_finished() {
            distillation.state().unwrap().write(&path).unwrap();
            let before = distillation.progress();
            distillation = start(&config);
            distillation.restore(&TensorFile::read(&path).unwrap()).unwrap();
            assert_eq!(distillation.progress(), before, "{name}");
            let (worked, _) = distillation.work_progress();
            distillation.step().unwrap();
            assert!(distillation.work_progress().0 >= worked, "{name}");
            assert_eq!(distillation.progress().0, before.0 + 1, "{name}: a step is a unit of work");
            n_steps += 1;
        }
        let (done, total) = distillation.progress();
        assert_eq!((done, n_steps), (total, total), "{name}");
        let (done, total) = distillation.work_progress();
        assert!((done - total).abs() <= 1e-9 * total, "{name}: {done} of {total}");
        assert_eq!(bytes(&distillation), expected, "{name}");
        assert_eq!(distillation.passes(), whole.passes(), "{name}");
    }
}

/// An update of 40 images that is matched with 40 real ones is more work than a training step on 4.
#[test]
fn work_counts_an_update_for_more_than_a_training_step() {
    let mut distillation = start(&profile("faithful", &[("pool.batch-size", 4.into())]));
    let (steps, total) = distillation.progress();
    assert_eq!((steps, distillation.work_progress().0), (0, 0.0));
    let mut parts = [0.0; 2];
    while !distillation.is_finished() {
        let (before, _) = distillation.work_progress();
        let event = distillation.step().unwrap();
        let part = usize::from(matches!(event, Some(DistillEvent::Images { .. })));
        parts[part] += distillation.work_progress().0 - before;
    }
    let updates = distillation.iterations() as f64;
    let [of_step, of_update] = [parts[0] / (total as f64 - updates), parts[1] / updates];
    assert!(of_update > 3.0 * of_step, "{of_update} against {of_step}");
}

/// Mean of the first and of the last third of a method's losses.
fn fall(name: &str, changes: &[(&str, toml::Value)]) -> (f64, f64) {
    let mut distillation = start(&profile(name, changes));
    let losses: Vec<f64> = finish(&mut distillation).iter().map(|report| report.loss).collect();
    let third = losses.len() / 3;
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    (mean(&losses[..third]), mean(&losses[losses.len() - third..]))
}

/// Every method that optimizes lowers what it optimizes, from noise.
#[test]
fn every_method_lowers_its_own_objective() {
    let noise = || vec![("images.init", "noise".into()), ("dsa", "none".into())];
    let with = |more: Changes| [noise(), more].concat();
    let frozen = || {
        // Networks that have learned something and stay as they are, so that losses compare.
        with(vec![
            ("iterations", 45.into()),
            ("images.lr", 0.05.into()),
            ("pool.min-steps", 60.into()),
            ("pool.max-steps", 60.into()),
            ("pool.snapshots", 1.into()),
            ("pool.lr", 0.05.into()),
            ("pool.steps-per-iteration", 0.into()),
        ])
    };
    // The contrastive loss cannot fall far at a high temperature. `literal` needs time: its queue fills first, and rounding
    // differs between processors.
    let contrasted = || [frozen(), vec![("crl.temperature", 0.1.into())]].concat();
    let squeezed = || with(vec![("iterations", 45.into()), ("teacher.steps", 60.into()), ("pool.lr", 0.05.into())]);
    let followed = || {
        with(vec![
            ("iterations", 45.into()),
            ("images.lr", 3.0.into()),
            ("experts.count", 1.into()),
            ("experts.lr", 0.1.into()),
            ("student.lr", 0.1.into()),
            ("student.max-start", 1.into()),
            ("student.steps", 5.into()),
        ])
    };
    let cases: [(&str, f64, Changes); 12] = [
        ("faithful", 0.9, contrasted()),
        ("literal", 0.97, [contrasted(), vec![("iterations", 90.into())]].concat()),
        ("class-mean", 0.9, frozen()),
        ("aac", 0.9, frozen()),
        ("crl", 0.9, contrasted()),
        ("rome", 0.9, frozen()),
        ("dm", 0.5, with(vec![("iterations", 60.into())])),
        ("dc", 0.9, with(vec![("iterations", 30.into()), ("gradients.outer", 1.into()), ("images.lr", 1.0.into())])),
        ("mtt", 0.97, followed()),
        ("mat", 0.97, followed()),
        ("sre2l", 0.6, squeezed()),
        ("guard", 0.9, squeezed()),
    ];
    for (name, share, changes) in cases {
        let (first, last) = fall(name, &changes);
        assert!(last < share * first, "{name}: from {first} to {last}");
    }
}

/// If a class is one image many times, the means of both sides are equal if they are augmented alike, and only then.
#[test]
fn both_sides_are_augmented_alike() {
    let mut copies = digits();
    let train = &copies.train;
    let positions: Vec<usize> = (0..10).flat_map(|class| [train.class_positions(class)[0]; 8]).collect();
    copies.train = train.select(&positions);
    let matching = |name: &str, changes: &[(&str, toml::Value)]| {
        let changes = [&[("dsa", "rotate".into()), ("iterations", 1.into())], changes].concat();
        tch::set_num_threads(1);
        let mut distillation = Distillation::new(profile(name, &changes), &copies, Device::Cpu).unwrap();
        finish(&mut distillation).swap_remove(0).matching.unwrap()
    };
    let c2r = |per_class: bool, attack_after: bool| {
        let clean = ("matching.attacked", false.into());
        let order =
            [("objective.dsa-per-class", per_class.into()), ("objective.attack-after-dsa", attack_after.into())];
        matching("faithful", &[&[clean], &order[..]].concat())
    };
    let all = [matching("dm", &[]), c2r(false, false), c2r(false, true), c2r(true, false), c2r(true, true)];
    assert!(all.iter().all(|&distance| distance < 1e-6), "{all:?}");
    let attacked = matching("faithful", &[("matching.attacked", true.into())]);
    assert!(attacked > 1e-5, "{attacked}");
}

/// Hand-made examples of both rules are beside the code; this is about what becomes of them in a set.
#[test]
fn coresets_are_training_images_and_differ_from_random_ones() {
    let train = digits().train.subset_per_class(40);
    let mut random = start(&profile("random-real", &[]));
    finish(&mut random);
    for name in ["herding", "k-center"] {
        let mut distillation = start(&profile(name, &[]));
        finish(&mut distillation);
        let set = distillation.synthetic_set(BTreeMap::new()).unwrap();
        assert_eq!((set.header.method.as_str(), set.header.iterations), (name, 0));
        for row in 0..20 {
            let class = set.labels[row] as usize;
            let (real, _) = train.batch(train.class_positions(class), Device::Cpu);
            let nearest = (real - to_tensor(set.images.index_axis(Axis(0), row)))
                .abs()
                .amax([1i64, 2, 3].as_slice(), false)
                .min();
            assert!(nearest.double_value(&[]) < 1e-6, "{name}: image {row} is no training image of its class");
        }
        let chosen = to_tensor(set.images.view());
        assert!(max_difference(&chosen, &images(&random)) > 0.1, "{name} chose the random images");
        let (first, second) = (chosen.get(0), chosen.get(1));
        assert!(max_difference(&first, &second) > 1e-3, "{name}: no image twice");
    }
}

/// MAT's average lags behind the parameters, and its experts are trained on other images than MTT's.
#[test]
fn adversarial_trajectories_differ_from_natural_ones() {
    let run = |name, changes: &[(&str, toml::Value)]| {
        let mut distillation = start(&profile(name, changes));
        finish(&mut distillation);
        images(&distillation)
    };
    let mtt = run("mtt", &[]);
    let mat = run("mat", &[("experts.average", 0.0.into())]);
    assert!(max_difference(&mtt, &mat) > 1e-6, "adversarial experts");
    let averaged = run("mat", &[("experts.average", 0.9.into())]);
    assert!(max_difference(&averaged, &mat) > 1e-6, "averaged experts");
}

/// GUARD's penalty makes the loss of the squeezed network flatter at the real images.
#[test]
fn the_curvature_penalty_flattens_the_loss() {
    let curvature = |name: &str| {
        let changes = [("iterations", 0.into()), ("teacher.steps", 80.into()), ("pool.lr", 0.05.into())];
        let mut distillation = start(&profile(name, &changes));
        while let Some(event) = distillation.step().unwrap() {
            assert!(matches!(event, DistillEvent::Teacher { .. }));
        }
        let teacher = distillation.teachers().next().unwrap();
        let train = digits().train.subset_per_class(20);
        let (images, labels) = train.batch(&(0..train.len()).collect::<Vec<_>>(), Device::Cpu);
        let slope = |x: &Tensor| {
            c2r_base::grad::input_gradient(x, |x| {
                teacher.logits(x).cross_entropy_loss::<Tensor>(&labels, None, tch::Reduction::None, -100, 0.0)
            })
            .0
        };
        let here = slope(&images);
        let length = |x: &Tensor| x.square().sum_dim_intlist([1i64, 2, 3].as_slice(), true, Kind::Float).sqrt();
        let there = slope(&(&images + &here / length(&here).clamp_min(1e-9)));
        length(&(there - here)).mean(Kind::Float).double_value(&[])
    };
    let (plain, flat) = (curvature("sre2l"), curvature("guard"));
    assert!(flat < 0.7 * plain, "curvature {flat} with the penalty, {plain} without");
}

/// Every entry of a state, with another dtype, shape or value, or none, is refused by name or is harmless: nothing
/// panics, neither there nor in the next step. One profile for each kind of state, before the last step and, where
/// networks are still being trained, before that.
#[test]
fn a_hostile_state_is_refused_or_harmless() {
    let cases = [
        ("", 1),
        ("", 8),
        ("plus", 1),
        ("herding", 3),
        ("random-real", 0),
        ("dsa", 1),
        ("mat", 1),
        ("mat", 5),
        ("sre2l", 1),
        ("backbone", 1),
    ];
    for (name, before_end) in cases {
        let mut config = match name {
            "" => everything(),
            "backbone" => backbone::freedom(),
            name => profile(name, &[]),
        };
        config.common.ipc = 1;
        let mut distillation = start(&config);
        while distillation.progress().0 + before_end < distillation.progress().1 {
            distillation.step().unwrap();
        }
        attack_state(name, &config, &distillation.state().unwrap());
    }
}

fn attack_state(method: &str, config: &DistillConfig, whole: &TensorFile) {
    let copy = || TensorFile {
        header: whole.header.clone(),
        tensors: whole.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect(),
        ..TensorFile::default()
    };
    let refused = |name: &str, change: Option<Tensor>, must: bool| {
        let mut state = copy();
        let (changed, shown) = (change.is_some(), format!("{change:?}"));
        match change {
            Some(tensor) => drop(state.tensors.insert(name.to_owned(), tensor)),
            None => drop(state.tensors.remove(name)),
        }
        let mut distillation = start(config);
        match distillation.restore(&state) {
            Err(error) => {
                let message = error.to_string();
                let head = name.split('.').next().unwrap();
                // What is no longer there may leave its neighbours without a place.
                assert!(!changed || message.contains(head), "{method}: {name}: {message}");
            }
            Ok(()) => {
                assert!(!must, "{method}: `{name}` was taken as {shown}");
                let _ = distillation.step();
            }
        }
    };
    // All parameters of a network are read by one function: the first is enough.
    let is_one_of_many = |name: &str| {
        let part =
            [".model.", ".sgd."].into_iter().find_map(|mark| Some(name.split_at(name.find(mark)? + mark.len()).0));
        part.is_some_and(|part| {
            whole.tensors.keys().find(|name| name.starts_with(part)).is_some_and(|first| first != name)
        })
    };
    for (name, tensor) in whole.tensors.iter().filter(|(name, _)| !is_one_of_many(name)) {
        refused(name, None, false);
        refused(name, Some(tensor.unsqueeze(0)), true);
        let other = if tensor.kind() == Kind::Float { Kind::Double } else { Kind::Float };
        refused(name, Some(tensor.to_kind(other)), true);
        let integers = tensor.kind() == Kind::Int64;
        if tensor.numel() > 0 {
            let of = |value: f64| tensor.full_like(value);
            let clamped = name == "images" && config.common.images.clamp;
            refused(name, Some(of(-1e9)), integers || clamped || name == "update.second");
            refused(name, Some(of(1e18)), integers && !name.ends_with(".pushed") || clamped);
            if !integers {
                refused(name, Some(of(f64::NAN)), !name.ends_with(".losses"));
            }
        }
    }
    refused("stray", Some(Tensor::from_slice(&[1i64])), true);
}

/// The estimate of a whole run beside what the run counted.
#[test]
fn the_work_is_what_was_estimated() {
    for name in profiles::names() {
        let config = profile(name, &[("iterations", 12.into())]);
        let mut distillation = start(&config);
        finish(&mut distillation);
        let (work, passes) = (config.work(10, 400), distillation.passes());
        let estimated = [work.forward + work.training, work.input_gradient + work.training];
        for (estimated, counted) in estimated.into_iter().zip([passes.forward as f64, passes.backward as f64]) {
            // Which networks are drawn, and so replaced, is chance.
            assert!((estimated - counted).abs() <= 0.25 * counted, "{name}: {estimated} for {counted} passes");
        }
    }
}

/// Where perturbations are remembered, an epoch begins with scoring all images.
#[test]
fn scores_of_an_epoch_are_estimated_where_they_are_computed() {
    let gradients = |remember: &str| {
        let config = config(&[
            ("aac.synthetic", table("mode = \"weight\"")),
            ("companions.warm-start", true.into()),
            ("images.batch-per-class", 1.into()),
            ("aac.remember", remember.into()),
            ("iterations", 12.into()),
        ]);
        let mut distillation = start(&config);
        finish(&mut distillation);
        (config.work(10, 400).input_gradient, distillation.passes().backward as f64)
    };
    let (both, real) = (gradients("both"), gradients("real"));
    let (estimated, counted) = (both.0 - real.0, both.1 - real.1);
    assert!(counted > 0.0 && (estimated - counted).abs() <= 0.25 * counted, "{estimated} for {counted} passes");
}
