//! Every switch of C²R changes what it should, and nothing else.

use c2r_testkit::max_difference;

use super::*;

/// The reports of a run of the faithful profile with `changes`, and its images.
pub(super) fn run(changes: &[(&str, toml::Value)]) -> (Vec<StepReport>, Tensor) {
    let mut distillation = start(&config(changes));
    let reports = finish(&mut distillation);
    (reports, images(&distillation))
}

pub(super) fn off() -> toml::Value {
    table("mode = \"off\"")
}

/// Keys of methods that do not read them.
#[test]
fn methods_without_updates_or_attacks_name_what_they_do_not_read() {
    let named = |name: &str| -> Vec<&str> { profile(name, &[]).idle().into_iter().map(|(key, _)| key).collect() };
    let chosen = named("random-real");
    let idle = ["iterations", "model", "dsa", "images.init", "images.lr", "images.space", "threat"];
    assert!(idle.iter().all(|key| chosen.contains(key)), "{chosen:?}");
    assert!(!named("herding").contains(&"model"));
    for key in ["threat", "companions"] {
        assert_eq!(named("dm").iter().filter(|idle| **idle == key).count(), 1, "{key}");
        assert!(!named("faithful").contains(&key) && !named("mat").contains(&key), "{key}");
    }
    // MAT attacks each image afresh.
    assert!(["companions.warm-start", "companions.reuse"].iter().all(|key| named("mat").contains(key)));
    // The pool of these trains the teacher, or the one network that chooses.
    assert!(["pool.snapshots", "pool.max-steps", "pool.push-every"].iter().all(|key| named("sre2l").contains(key)));
    let herding = named("herding");
    let idle = ["pool.snapshots", "pool.min-steps", "pool.steps-per-iteration", "pool.push-every", "pool.alive"];
    assert!(idle.iter().all(|key| herding.contains(key)), "{herding:?}");
    assert!(!herding.contains(&"pool.max-steps") && !herding.contains(&"pool.trajectories"), "{herding:?}");
    let chosen = |snapshots: i64, min_steps: i64| {
        let size =
            [("pool.snapshots", snapshots.into()), ("pool.min-steps", min_steps.into()), ("pool.max-steps", 3.into())];
        let mut distillation = start(&profile("herding", &size));
        finish(&mut distillation);
        images(&distillation)
    };
    assert_eq!(chosen(1, 1), chosen(3, 2));
    // The students of `SMALL` follow two epochs of their experts.
    let followed = |epochs: i64| {
        let config = profile("mtt", &[("experts.epochs", epochs.into())]);
        let is_named = config.idle().iter().any(|(key, _)| *key == "experts.epochs");
        let mut distillation = start(&config);
        finish(&mut distillation);
        (images(&distillation), is_named)
    };
    let ((two, is_two_named), (three, is_three_named)) = (followed(2), followed(3));
    assert!(two.equal(&three) && !is_two_named && is_three_named, "{is_two_named} {is_three_named}");
}

/// What `idle` names does nothing, and nothing that acts is named.
#[test]
fn idle_keys_are_named_and_change_nothing() {
    let named = |changes: &[(&str, toml::Value)]| -> Vec<&str> {
        config(changes).idle().into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(named(&[]), ["aac.remember", "pool.alive"]);
    assert_eq!(named(&[("companions.warm-start", true.into()), ("pool.push-every", 1.into())]), [""; 0]);
    assert!(!named(&[("images.batch-per-class", 1.into())]).contains(&"images.batch-per-class"));
    let without_crl = ("objective.robust", toml::Value::from("class-mean"));
    type Change = (&'static str, toml::Value);
    let unmatched: Change = ("matching.weight", 0.0.into());
    let clean: Vec<Change> = vec![("matching.attacked", false.into()), without_crl.clone()];
    let unseen: Vec<Change> = vec![unmatched.clone(), ("objective.eta", 0.0.into())];
    let untrained: Vec<Change> = vec![("pool.steps-per-iteration", 0.into())];
    let alone: Vec<Change> = vec![("objective.robust", "none".into()), ("aac.synthetic", off())];
    let radius: Change =
        ("attacks", table("synthetic.epsilon = \"4/255\"\npool.epsilon = \"4/255\"\nmatching.epsilon = \"4/255\""));
    let attack = table(
        "synthetic.companions.attack = \"fgsm\"\npool.companions.attack = \"fgsm\"\nmatching.companions.attack = \"fgsm\"",
    );
    let cases: Vec<(&str, Vec<Change>, Change)> = vec![
        ("aac.remember", vec![], ("aac.remember", "real".into())),
        ("companions.growth", vec![("companions.candidates", 1.into())], ("companions.growth", 3.0.into())),
        ("crl", vec![without_crl.clone()], ("crl.temperature", 0.1.into())),
        ("objective.candidates", vec![without_crl.clone()], ("objective.candidates", "none".into())),
        ("objective.anchors", vec![without_crl], ("objective.anchors", "real".into())),
        ("objective.candidates", vec![("objective.anchors", "real".into())], ("objective.candidates", "none".into())),
        ("objective.robust-weight", vec![("objective.eta", 0.0.into())], ("objective.robust-weight", 6.0.into())),
        ("objective.eta", vec![("objective.weight", 0.0.into())], ("objective.eta", 0.9.into())),
        ("objective.robust", vec![("objective.weight", 0.0.into())], ("objective.robust", "class-mean".into())),
        ("crl", vec![("objective.eta", 0.0.into())], ("crl.temperature", 0.1.into())),
        ("objective.anchors", vec![("objective.eta", 0.0.into())], ("objective.anchors", "real".into())),
        ("objective.candidates", vec![("objective.eta", 0.0.into())], ("objective.candidates", "none".into())),
        ("objective.robust", vec![("objective.robust-weight", 0.0.into())], ("objective.robust", "class-mean".into())),
        ("aac.weighted", vec![("objective.anchors", "real".into())], ("aac.weighted", "both".into())),
        ("aac.weighted", vec![("objective.robust", "none".into())], ("aac.weighted", "both".into())),
        ("objective.by-accuracy", vec![("objective.eta", 1.0.into())], ("objective.by-accuracy", true.into())),
        ("aac.synthetic", vec![("objective.eta", 1.0.into())], ("aac.synthetic", off())),
        ("matching.attacked", vec![unmatched.clone()], ("matching.attacked", false.into())),
        ("aac.matching", vec![unmatched.clone()], ("aac.matching", table("mode = \"weight\"\nfloor = 0.05"))),
        ("objective.distance", vec![unmatched], ("objective.distance", "squared-l1".into())),
        ("pool.networks-per-iteration", untrained, ("pool.networks-per-iteration", 2.into())),
        ("pool.alive", vec![], ("pool.alive", 4.into())),
        ("attacks.pool", vec![("pool.adversarial", false.into())], ("attacks.pool.epsilon", "4/255".into())),
        ("attacks.matching", clean.clone(), ("attacks.matching.epsilon", "4/255".into())),
        ("attacks.matching", unseen, ("attacks.matching.epsilon", "4/255".into())),
        ("attacks.synthetic", alone.clone(), ("attacks.synthetic.epsilon", "4/255".into())),
        ("attacks.synthetic", vec![("objective.weight", 0.0.into())], ("attacks.synthetic.epsilon", "4/255".into())),
        ("companions.warm-start", alone, ("companions.warm-start", true.into())),
        ("threat.epsilon", vec![radius], ("threat.epsilon", "32/255".into())),
        ("companions", vec![("attacks", attack)], ("companions.start", "random".into())),
        ("images.batch-per-class", vec![("images.batch-per-class", 2.into())], ("images.batch-per-class", 9.into())),
        // Places without an attack need no radius of their own, and nothing of theirs is remembered.
        ("threat.epsilon", vec![("pool.adversarial", false.into()), two_radii()], ("threat.epsilon", "32/255".into())),
        ("attacks.matching", without_real(), ("attacks.matching.epsilon", "4/255".into())),
        (
            "companions.warm-start",
            [clean, vec![("aac.remember", "real".into())]].concat(),
            ("companions.warm-start", true.into()),
        ),
    ];
    for (key, setting, change) in cases {
        assert!(named(&setting).contains(&key), "`{key}` is not named");
        let (_, before) = run(&setting);
        let (_, after) = run(&[setting, vec![change]].concat());
        assert!(before.equal(&after), "`{key}` has an effect");
    }
}

/// Radii of the two places where images of an update are attacked.
fn two_radii() -> (&'static str, toml::Value) {
    ("attacks", table("synthetic.epsilon = \"4/255\"\nmatching.epsilon = \"4/255\""))
}

/// No real image is matched or contrasted.
fn without_real() -> Vec<(&'static str, toml::Value)> {
    vec![("matching.weight", 0.0.into()), ("objective.candidates", "none".into()), ("crl", table("temperature = 0.5"))]
}

#[test]
fn keys_that_act_in_one_way_alone_are_not_named() {
    type Change = (&'static str, toml::Value);
    let order: Change = ("aac.pool", table("mode = \"order\"\nfirst = \"hard\""));
    let prefix = table("mode = \"prefix\"\nfirst = \"hard\"\nfraction = 0.5");
    let real: Change = ("attacks.matching.epsilon", "4/255".into());
    let synthetic: Change = ("attacks.synthetic.epsilon", "4/255".into());
    let with = |change: Change| [without_real(), vec![change]].concat();
    let queue: Vec<Change> = vec![
        ("matching.weight", 0.0.into()),
        ("objective.candidates", "none".into()),
        ("pool.trajectories", 1.into()),
        ("pool.snapshots", 1.into()),
    ];
    let chosen: Vec<Change> = vec![("objective.weight", 0.0.into()), ("aac.synthetic", prefix)];
    let weighted: Vec<Change> = vec![("objective.robust", "none".into())];
    let scored: Vec<Change> = vec![("pool.adversarial", false.into()), order, two_radii()];
    let cases: Vec<(Vec<Change>, Change)> = vec![
        (with(("objective.anchors", "real".into())), real.clone()),
        (with(("objective.candidates", "attacked".into())), real.clone()),
        (queue, real),
        (chosen, synthetic.clone()),
        (weighted, synthetic),
        (scored, ("threat.epsilon", "32/255".into())),
    ];
    for (setting, change) in cases {
        let idle = config(&setting).idle();
        assert!(idle.iter().all(|(key, _)| !change.0.starts_with(key)), "{setting:?}: {idle:?}");
        let (_, before) = run(&setting);
        let (_, after) = run(&[setting.clone(), vec![change.clone()]].concat());
        assert!(!before.equal(&after), "{setting:?}: `{}` has no effect", change.0);
    }
}

#[test]
fn every_switch_runs_and_changes_the_result() {
    let (_, plain) = run(&[]);
    let switches: Vec<(&str, Vec<(&str, toml::Value)>)> = vec![
        ("crl off", vec![("objective.robust", "class-mean".into())]),
        ("no robust term", vec![("objective.robust", "none".into()), ("aac.synthetic", off())]),
        ("eta", vec![("objective.eta", 0.6.into())]),
        ("anchors real", vec![("objective.anchors", "real".into())]),
        ("anchors both", vec![("objective.anchors", "both".into())]),
        ("synthetic candidates", vec![("objective.candidates", "none".into())]),
        ("attacked candidates", vec![("objective.candidates", "attacked".into())]),
        ("by accuracy", vec![("objective.by-accuracy", true.into())]),
        ("aac off", vec![("aac.synthetic", off())]),
        ("weights in both terms", vec![("aac.weighted", "both".into())]),
        ("loss weight", vec![("objective.weight", 10.0.into())]),
        ("robust weight", vec![("objective.robust-weight", 6.0.into())]),
        ("matching weight", vec![("matching.weight", 1.0.into())]),
        ("prefix", vec![("aac.synthetic", table("mode = \"prefix\"\nfirst = \"hard\"\nfraction = 0.5"))]),
        ("pace", vec![("aac.synthetic", table("mode = \"pace\"\nlow = [0.0, 0.5]\nhigh = [0.5, 1.0]"))]),
        ("pool order hard", vec![("aac.pool", table("mode = \"order\"\nfirst = \"hard\""))]),
        ("pool order easy", vec![("aac.pool", table("mode = \"order\"\nfirst = \"easy\""))]),
        ("pool order balanced", vec![("aac.pool", table("mode = \"order\"\nfirst = \"hard\"\nclass-balanced = true"))]),
        ("pool weight", vec![("aac.pool", table("mode = \"weight\"\nfloor = 0.05"))]),
        ("pool pace", vec![("aac.pool", table("mode = \"pace\"\nlow = [0.0, 0.0]\nhigh = [0.3, 1.0]"))]),
        ("easy targets", vec![("aac.matching", table("mode = \"prefix\"\nfirst = \"easy\"\nfraction = 0.5"))]),
        ("weighted targets", vec![("aac.matching", table("mode = \"weight\"\nfloor = 0.05"))]),
        ("paced targets", vec![("aac.matching", table("mode = \"pace\"\nlow = [0.0, 0.0]\nhigh = [0.5, 1.0]"))]),
        ("tau", vec![("crl.temperature", 0.1.into())]),
        ("random start", vec![("companions.start", "random".into())]),
        ("pgd", vec![("companions", table("attack = \"pgd\"\nsteps = 3\nrel-step-size = 0.5\nrandom-start = true"))]),
        ("clean targets", vec![("matching.attacked", false.into())]),
        ("natural pool", vec![("pool.adversarial", false.into())]),
        ("flat pool", vec![("pool.curvature", table("weight = 10.0\nstep = 3.0"))]),
        ("noise", vec![("images.init", "noise".into())]),
        ("coverage", vec![("images.init", "coverage".into())]),
        ("sgd", vec![("images.optimizer", "sgd".into())]),
        ("short adam", vec![("images.optimizer", "adam-short".into())]),
        ("normalized space", vec![("images.space", "normalized".into())]),
        ("no augmentation", vec![("dsa", "none".into())]),
    ];
    for (name, changes) in switches {
        let (_, changed) = run(&changes);
        assert!(max_difference(&changed, &plain) > 1e-5, "`{name}` has no effect");
    }
}

/// The queue acts from the second visit of a network on, so there is one network here.
#[test]
fn every_switch_of_the_queue_changes_the_loss() {
    let run = |changes: &[(&str, toml::Value)]| {
        let one = [("pool.trajectories", 1.into()), ("pool.snapshots", 1.into()), ("crl.queue.top-k", 4.into())];
        let robust: Vec<f64> = run(&[&one, changes].concat()).0.iter().map(|report| report.robust.unwrap()).collect();
        (robust[0], robust[robust.len() - 1])
    };
    let plain = run(&[]);
    let switches: [(&str, (&str, toml::Value)); 5] = [
        ("no queue", ("crl", table("temperature = 0.5"))),
        ("per class", ("crl.queue.per-class", 4.into())),
        ("top-k", ("crl.queue.top-k", 8.into())),
        ("projection", ("crl.queue.projection", 2.into())),
        ("moving average", ("crl.queue.momentum", 0.9.into())),
    ];
    for (name, change) in switches {
        let (first, last) = run(&[change]);
        assert_eq!(first, plain.0, "`{name}`: nothing is stored yet");
        assert_ne!(last, plain.1, "`{name}` has no effect");
    }
}

/// Sub-batches of one image per class, in every order.
#[test]
fn the_synthetic_side_takes_every_order() {
    let small = ("images.batch-per-class", toml::Value::from(1));
    let order = |text: &str| run(&[small.clone(), ("aac.synthetic", table(text))]).1;
    let hard = order("mode = \"order\"\nfirst = \"hard\"");
    let easy = order("mode = \"order\"\nfirst = \"easy\"");
    let balanced = order("mode = \"order\"\nfirst = \"hard\"\nclass-balanced = true");
    let off = order("mode = \"off\"");
    for (a, b) in [(&hard, &easy), (&hard, &balanced), (&hard, &off), (&easy, &off)] {
        assert!(max_difference(a, b) > 1e-5);
    }
}

/// The profile to the letter, at a size where its batches do not hold the whole set.
#[test]
fn the_first_batch_is_the_hardest_or_the_easiest() {
    let note = |config: &DistillConfig| config.method.note(&config.common);
    let first = |first: &str| {
        let changes = [("ipc", 8.into()), ("aac.synthetic", table(&format!("mode = \"order\"\nfirst = \"{first}\"")))];
        let mut distillation = start(&profile("literal", &changes));
        assert_eq!(note(distillation.config()), None);
        finish(&mut distillation).swap_remove(0).margin_quantiles.unwrap()
    };
    let (hard, easy) = (first("hard"), first("easy"));
    assert!(hard.iter().zip(easy).all(|(&hard, easy)| hard < easy), "{hard:?} {easy:?}");
    assert!(note(&profile("literal", &[])).unwrap().contains("one batch"), "two images per class, batches of five");
}

/// What a part does not touch stays as it is: the first losses of the terms, before anything has moved.
#[test]
fn switches_change_nothing_else() {
    let first = |changes: &[(&str, toml::Value)]| run(changes).0.swap_remove(0);
    let plain = first(&[]);
    let other = first(&[("objective.robust", "class-mean".into())]);
    assert_eq!((other.matching, other.performance), (plain.matching, plain.performance));
    assert_eq!(other.margin_quantiles, plain.margin_quantiles);
    assert_ne!(other.robust, plain.robust);
    let other = first(&[("aac.synthetic", off())]);
    assert_eq!((other.matching, other.robust), (plain.matching, plain.robust));
    assert_ne!(other.performance, plain.performance);
    let other = first(&[("aac.matching", table("mode = \"weight\"\nfloor = 0.05"))]);
    assert_eq!((other.performance, other.robust), (plain.performance, plain.robust));
    assert_ne!(other.matching, plain.matching);
    let easy = "mode = \"prefix\"\nfirst = \"easy\"\nfraction = 0.5";
    let other = first(&[("aac.matching", table(easy))]);
    assert_eq!((other.performance, other.robust), (plain.performance, plain.robust));
    assert_ne!(other.matching, plain.matching);
    let other = first(&[("aac.weighted", "both".into())]);
    assert_eq!((other.matching, other.performance), (plain.matching, plain.performance));
    assert_ne!(other.robust, plain.robust);
    let class_mean = ("objective.robust", toml::Value::from("class-mean"));
    let of_means = first(std::slice::from_ref(&class_mean)).robust;
    assert_ne!(first(&[class_mean, ("aac.weighted", "both".into())]).robust, of_means);
    let other = first(&[("objective.eta", 0.6.into())]);
    let parts = |report: &StepReport| (report.matching, report.performance, report.robust);
    assert_eq!(parts(&other), parts(&plain));
    assert_ne!(other.loss, plain.loss);
    let other = first(&[("objective.by-accuracy", true.into())]);
    assert_eq!(parts(&other), parts(&plain));
    assert!(other.loss < plain.loss, "the accuracy of a young network is below 1");
    let other = first(&[("objective.candidates", "none".into())]);
    assert_eq!((other.matching, other.performance), (plain.matching, plain.performance));
    // Fewer candidates, smaller denominators.
    assert!(other.robust < plain.robust);
}

/// Two ways of writing one loss: 0.6 of the cross-entropy and 2.4 of the robust term.
#[test]
fn the_robust_weight_scales_its_term_alone() {
    let written = |weight: f64, eta: f64, robust_weight: f64| {
        let changes = [
            ("objective.weight", weight.into()),
            ("objective.eta", eta.into()),
            ("objective.robust-weight", robust_weight.into()),
        ];
        run(&changes).0[0].loss
    };
    let (ours, other, without) = (written(1.0, 0.4, 6.0), written(3.0, 0.8, 1.0), written(1.0, 0.4, 1.0));
    assert!((ours - other).abs() < 1e-5 * ours.abs(), "{ours} {other}");
    assert!(ours > without + 0.1, "{ours} {without}");
}

/// The cache of each side is used where it is asked for: the same perturbation is kept without a backward pass.
#[test]
fn continuation_and_early_stop_act_on_the_side_they_name() {
    let reused = |remember: &str| {
        let changes = [
            ("companions.warm-start", true.into()),
            ("companions.reuse", true.into()),
            ("aac.remember", remember.into()),
            // One network that stays as it is: what is remembered of it stays true.
            ("pool.trajectories", 1.into()),
            ("pool.snapshots", 1.into()),
            ("pool.steps-per-iteration", 0.into()),
            ("matching.real-per-class", 40.into()),
            ("iterations", 3.into()),
            // Images that hardly move.
            ("images.lr", 1e-7.into()),
            ("images.final-lr", 0.0.into()),
        ];
        run(&changes).0.pop().unwrap()
    };
    let (synthetic, real, both) = (reused("synthetic"), reused("real"), reused("both"));
    // 400 real images and 20 synthetic ones in each of 3 iterations, of which 2 can reuse.
    assert!(real.passes.reused >= 780, "{real:?}");
    assert!(synthetic.passes.reused > 0 && synthetic.passes.reused <= 40, "{synthetic:?}");
    assert_eq!(both.passes.reused, real.passes.reused + synthetic.passes.reused);
    let share = both.passes.reused as f64 / both.passes.attacked as f64;
    assert!((both.reused_share.unwrap() - share).abs() < 1e-12);
    assert!(both.backward_saved > real.backward_saved && real.backward_saved > synthetic.backward_saved);
}

#[test]
fn companions_cost_what_they_say() {
    let saved = |companions: &str| run(&[("companions", table(companions))]).0.pop().unwrap();
    let pgd = saved("attack = \"pgd\"\nsteps = 10\nrel-step-size = 0.5\nrandom-start = true");
    assert_eq!((pgd.backward_saved, pgd.reused_share), (Some(0), Some(0.0)));
    let fgsm = saved("attack = \"fgsm\"");
    assert_eq!(fgsm.backward_saved, Some(9 * fgsm.passes.attacked as i64));
    let plain = run(&[]).0;
    assert_eq!(plain.last().unwrap().backward_saved, Some(9 * plain.last().unwrap().passes.attacked as i64));
}

#[test]
fn effects_are_measured_on_the_first_and_the_last_images() {
    let changes = [
        ("iterations", 30.into()),
        ("images.lr", 0.05.into()),
        ("pool.trajectories", 1.into()),
        ("pool.snapshots", 1.into()),
        ("pool.min-steps", 60.into()),
        ("pool.max-steps", 60.into()),
        ("pool.lr", 0.05.into()),
        ("pool.steps-per-iteration", 0.into()),
    ];
    let mut distillation = start(&config(&changes));
    finish(&mut distillation);
    let effect = distillation.effect().unwrap().unwrap();
    assert!(effect.margin_quantiles_after[1] > effect.margin_quantiles_before[1], "{effect:?}");
    assert!(effect.impostor_similarity_after < effect.impostor_similarity_before, "{effect:?}");
    let mut other = start(&profile("dm", &[]));
    finish(&mut other);
    assert_eq!(other.effect().unwrap(), None);
}

/// The images that cover a class are training images, and no two of them are the same.
#[test]
fn coverage_starts_from_images_that_spread() {
    let spread = |init: &str| {
        let changes = [("iterations", 0.into()), ("images.init", init.into()), ("ipc", 8.into())];
        let distillation = start(&config(&changes));
        let stored = images(&distillation).flatten(1, -1);
        let train = digits().train.subset_per_class(40);
        let mut gap = 0.0;
        for class in 0..10 {
            let own = stored.narrow(0, class * 8, 8);
            let (real, _) = train.batch(train.class_positions(class as usize), Device::Cpu);
            let distances = Tensor::cdist(&real.flatten(1, -1), &own, 2.0, None::<i64>);
            assert!(distances.amin([0i64].as_slice(), false).max().double_value(&[]) < 1e-2, "real images");
            let twice = Tensor::cdist(&own, &own, 2.0, None::<i64>) + Tensor::eye(8, (Kind::Float, Device::Cpu));
            assert!(twice.min().double_value(&[]) > 0.1, "no image twice");
            gap += distances.amin([1i64].as_slice(), false).mean(Kind::Float).double_value(&[]);
        }
        gap
    };
    let (covering, random) = (spread("coverage"), spread("real"));
    assert!(covering < 0.95 * random, "mean distance to the nearest chosen image: {covering} and {random}");
}

/// A rate that a profile keeps from start to end follows `images.lr`, unless the last one is given, too.
#[test]
fn a_constant_rate_stays_constant_when_it_is_changed() {
    let spec = digits().spec;
    let rates = |profile: &str, changes: &[(&str, f64)]| {
        let config = DistillConfig::resolve(profile, &spec, changes.iter().copied()).unwrap();
        (config.common.images.lr, config.common.images.final_lr)
    };
    for profile in ["dm", "dc", "dsa", "mtt", "mat", "rome"] {
        assert_eq!(rates(profile, &[("images.lr", 0.3)]), (0.3, 0.3), "{profile}");
        assert_eq!(rates(profile, &[("images.lr", 0.3), ("images.final-lr", 0.1)]), (0.3, 0.1), "{profile}");
        let (first, _) = rates(profile, &[]);
        assert_eq!(rates(profile, &[("images.final-lr", 0.1)]), (first, 0.1), "{profile}");
    }
    assert_eq!(rates("faithful", &[("images.lr", 0.3)]), (0.3, 0.001));
    assert_eq!(rates("sre2l", &[("images.lr", 0.3)]), (0.3, 0.0));
}

#[test]
fn a_weight_that_is_infinite_in_32_bits_is_refused() {
    let spec = digits().spec;
    for key in ["objective.weight", "objective.robust-weight", "matching.weight", "images.lr"] {
        let error = DistillConfig::resolve("faithful", &spec, [(key, 1e39)]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{key} must be at most 3.4e38")), "{error}");
    }
}

/// The gradient that moves the images, by SGD, is the slope of the loss: companions move with their images. The perturbations are
/// too small to matter, and the slope comes from central differences along the update.
#[test]
fn companions_pass_their_gradient_on() {
    for anchors in ["synthetic", "real", "both"] {
        let lr = 0.25;
        let config = config(&[
            ("iterations", 1.into()),
            ("threat.epsilon", "0.001/255".into()),
            ("images.init", "noise".into()),
            ("images.optimizer", "sgd".into()),
            ("images.space", "pixel".into()),
            ("images.lr", lr.into()),
            ("dsa", "none".into()),
            ("aac.synthetic", off()),
            ("objective.anchors", anchors.into()),
            ("objective.eta", 1.0.into()),
            ("objective.weight", 1.0.into()),
            ("objective.robust-weight", 1.0.into()),
            ("matching.weight", 0.0.into()),
        ]);
        let noise = images(&start(&config)) * 0.5 + 0.25;
        let from = |at: &Tensor| {
            let mut distillation = start(&config);
            distillation.images().copy_(at);
            let loss = finish(&mut distillation)[0].loss;
            (loss, images(&distillation))
        };
        let way = from(&noise).1 - &noise;
        let slope = -way.square().sum(Kind::Double).double_value(&[]) / lr;
        let [before, after] = [-1.0, 1.0].map(|side| from(&(&noise + &way * side)).0);
        let difference = (after - before) / 2.0;
        assert!((slope / difference - 1.0).abs() < 0.03, "{anchors}: {slope} is not {difference}");
    }
}
