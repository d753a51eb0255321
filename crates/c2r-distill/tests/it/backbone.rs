//! The switches of C²R's backbone: pool, attacks by place, augmentation, images and objective. Each has its effect, where it
//! should, and is off by default.

use c2r_testkit::max_difference;

use super::{
    switches::{off, run},
    *,
};

type Change = (&'static str, toml::Value);

/// Everything at once: networks come and go, places differ, images are attacked after each class got its own view.
pub(super) fn freedom() -> DistillConfig {
    config(&[
        ("iterations", 6.into()),
        (
            "images",
            table(
                "init = \"real\"\nformation = 1\noptimizer = \"sgd\"\nlr = 0.2\nfinal-lr = 0.2\nspace = \"normalized\"\nclamp = false\n\
             batch-per-class = 1",
            ),
        ),
        ("pool.push-every", 2.into()),
        ("pool.alive", 5.into()),
        ("pool.networks-per-iteration", 2.into()),
        ("pool.steps-per-iteration", 3.into()),
        ("attacks.synthetic.epsilon", "8/255".into()),
        ("attacks.pool.companions", table("attack = \"fgsm\"")),
        (
            "attacks.matching",
            table(
                "epsilon = \"4/255\"\ncompanions = {attack = \"pgd\", steps = 2, rel-step-size = 0.5, random-start = true}",
            ),
        ),
        ("aac.synthetic", table("mode = \"order\"\nfirst = \"hard\"")),
        ("objective.distance", "squared-l1".into()),
        ("objective.reduction", "sum".into()),
        ("objective.dsa-per-class", true.into()),
        ("objective.attack-after-dsa", true.into()),
        ("objective.by-accuracy", true.into()),
    ])
}

/// A switch, what it is switched on with, and what is set before.
#[test]
fn every_switch_of_the_backbone_changes_the_result() {
    let sgd = || vec![("images.optimizer", "sgd".into()), ("images.lr", 0.1.into())];
    let push = || vec![("pool.push-every", 1.into())];
    let pgd = || table("attack = \"pgd\"\nsteps = 3\nrel-step-size = 0.5\nrandom-start = true");
    let clamped = || table("attack = \"clamped-normalized-pgd\"\nsteps = 3\nrel-step-size = 0.5\nrandom-start = true");
    let switches: Vec<(Vec<Change>, Change)> = vec![
        (vec![], ("pool.push-every", 1.into())),
        (push(), ("pool.alive", 4.into())),
        (vec![], ("pool.networks-per-iteration", 2.into())),
        (vec![], ("attacks.synthetic.epsilon", "4/255".into())),
        (vec![], ("attacks.pool.epsilon", "4/255".into())),
        (vec![], ("attacks.matching.epsilon", "4/255".into())),
        (vec![], ("attacks.synthetic.companions", pgd())),
        (vec![], ("attacks.pool.companions", pgd())),
        (vec![], ("attacks.matching.companions", pgd())),
        (vec![("companions", pgd())], ("companions", clamped())),
        (vec![], ("threat.epsilon", "0".into())),
        (vec![("companions", pgd())], ("threat.epsilon", 0.into())),
        (vec![], ("images.clamp", false.into())),
        (vec![], ("objective.distance", "squared-l1".into())),
        (sgd(), ("objective.reduction", "sum".into())),
        (vec![], ("objective.dsa-per-class", true.into())),
        (vec![], ("objective.attack-after-dsa", true.into())),
        (vec![], ("matching.weight", 0.0.into())),
    ];
    for (before, (key, value)) in switches {
        let (_, plain) = run(&before);
        let (_, changed) = run(&[before, vec![(key, value)]].concat());
        assert!(max_difference(&changed, &plain) > 1e-5, "`{key}` has no effect");
        assert!(changed.min().double_value(&[]) >= 0.0 && changed.max().double_value(&[]) <= 1.0, "`{key}`");
    }
}

/// Off means off, and a place that says what holds everywhere says nothing.
#[test]
fn what_a_switch_stands_for_by_default_changes_nothing() {
    let (_, plain) = run(&[]);
    let default: toml::Value = profile_table("faithful", &[])["companions"].clone();
    let same: [Change; 12] = [
        ("pool.push-every", 0.into()),
        ("pool.alive", 4.into()),
        ("pool.networks-per-iteration", 0.into()),
        ("attacks.synthetic.epsilon", "16/255".into()),
        ("attacks.pool.epsilon", "16/255".into()),
        ("attacks.matching.epsilon", "16/255".into()),
        ("attacks.pool.companions", default),
        ("images.clamp", true.into()),
        ("objective.distance", "scaled-l2".into()),
        ("objective.reduction", "mean".into()),
        ("objective.dsa-per-class", false.into()),
        ("objective.attack-after-dsa", false.into()),
    ];
    for (key, value) in same {
        assert!(run(&[(key, value)]).1.equal(&plain), "`{key}` changes its default");
    }
    // Without augmentation it does not matter when it is drawn, nor for whom.
    let none = ("dsa", toml::Value::from("none"));
    let (_, plain) = run(std::slice::from_ref(&none));
    for key in ["objective.dsa-per-class", "objective.attack-after-dsa"] {
        assert!(run(&[none.clone(), (key, true.into())]).1.equal(&plain), "`{key}` acts without augmentation");
    }
}

/// A place changes what is attacked there, and nothing else.
#[test]
fn each_place_has_its_own_attack() {
    let first = |changes: &[Change]| run(changes).0.swap_remove(0);
    let plain = first(&[]);
    let id = |changes: &[Change]| start(&config(changes)).networks_id();
    let keys = ["attacks.synthetic.epsilon", "attacks.matching.epsilon", "attacks.pool.epsilon"];
    let [synthetic, matching, pool] = keys.map(|key| (key, toml::Value::from("4/255")));
    let other = first(std::slice::from_ref(&synthetic));
    assert_eq!((other.matching, &other.real_margin_quantiles), (plain.matching, &plain.real_margin_quantiles));
    assert_ne!(other.margin_quantiles, plain.margin_quantiles);
    let other = first(std::slice::from_ref(&matching));
    assert_eq!(other.margin_quantiles, plain.margin_quantiles);
    assert!(other.matching != plain.matching && other.real_margin_quantiles != plain.real_margin_quantiles);
    assert_eq!(id(&[synthetic, matching]), id(&[]), "the pool is the same");
    assert_ne!(id(std::slice::from_ref(&pool)), id(&[]));
    // A teacher is trained as the pool is: with the radius of the pool, whatever that of the others is.
    assert_eq!(id(std::slice::from_ref(&pool)), id(&[("threat.epsilon", "4/255".into())]));

    // A radius of 0 leaves what is matched clean.
    let none = first(&[("attacks.matching.epsilon", "0".into())]).matching.unwrap();
    let clean = first(&[("matching.attacked", false.into())]).matching.unwrap();
    assert!((none - clean).abs() < 1e-6 * clean, "{none} {clean}");
}

/// Numbers of every network of the pool at the end, from the state.
fn networks(distillation: &mut Distillation, what: &str) -> Vec<i64> {
    let state = distillation.state().unwrap();
    (0..)
        .map_while(|index| state.tensors.get(&format!("pool.{index:04}.{what}")))
        .map(|value| value.int64_value(&[0]))
        .collect()
}

/// Two trajectories of two snapshots each, of 2 and of 5 steps; then one more before updates 0, 2 and 4.
#[test]
fn networks_join_by_time_and_the_first_ones_leave() {
    let pool = |more: &[Change]| {
        let changes = [&[("iterations", 6.into()), ("pool.push-every", 2.into())], more].concat();
        let mut distillation = start(&config(&changes));
        finish(&mut distillation);
        ["trajectory", "age"].map(|what| networks(&mut distillation, what))
    };
    let [trajectories, ages] = pool(&[("pool.alive", 5.into()), ("pool.steps-per-iteration", 0.into())]);
    assert_eq!((trajectories, ages), (vec![1, 1, 2, 3, 4], vec![2, 5, 2, 2, 2]));
    let [trajectories, ages] = pool(&[("pool.steps-per-iteration", 0.into())]);
    assert_eq!((trajectories, &ages), (vec![0, 0, 1, 1, 2, 3, 4], &vec![2, 5, 2, 5, 2, 2, 2]));
    // Each update trains two others 10 steps further, past pool.max-steps.
    let members = ("pool.networks-per-iteration", toml::Value::from(2));
    let [_, trained] = pool(&[members, ("pool.steps-per-iteration", 10.into())]);
    let grown: Vec<i64> = trained.iter().zip(&ages).map(|(after, before)| after - before).collect();
    assert_eq!(grown.iter().sum::<i64>(), 6 * 2 * 10, "{grown:?}");
    assert!(
        grown.iter().all(|steps| steps % 10 == 0 && *steps <= 60) && trained.iter().any(|age| *age > 20),
        "{grown:?}"
    );
    // By default it is the one that was drawn, not always the same.
    let [_, drawn] = pool(&[("pool.push-every", 0.into()), ("pool.max-steps", 40.into())]);
    assert!(drawn.iter().zip([2, 40, 2, 40]).filter(|(age, before)| *age != before).count() > 1, "{drawn:?}");
    // More than there are: all of them.
    let all = [("pool.networks-per-iteration", 99.into()), ("pool.steps-per-iteration", 1.into())];
    assert_eq!(pool(&all)[1], [8, 11, 8, 11, 8, 6, 4]);
}

/// A queue leaves with its network: where each update has a network of its own, nothing is ever in it.
#[test]
fn what_is_remembered_of_a_network_leaves_with_it() {
    let one = [
        ("pool.trajectories", 1.into()),
        ("pool.snapshots", 1.into()),
        ("pool.push-every", 1.into()),
        ("pool.alive", 1.into()),
    ];
    let (_, with) = run(&one);
    let (_, without) = run(&[&one[..], &[("crl", table("temperature = 0.5"))]].concat());
    assert!(with.equal(&without));
}

/// ROME's loss: 0.2 of the distance and 0.4 of the accuracy in percent times the cross-entropy, summed over ten classes.
#[test]
fn romes_loss_is_that_of_its_code() {
    let mut distillation = start(&profile("rome", &[("pool.max-steps", 40.into()), ("pool.lr", 0.05.into())]));
    let mut accuracies = Vec::new();
    for report in finish(&mut distillation) {
        let [matching, performance] = [report.matching, report.performance].map(Option::unwrap);
        let percent = (report.loss / 10.0 - 0.2 * matching) / (0.4 * performance);
        accuracies.push(percent);
        assert_eq!((report.robust, report.margin_quantiles), (None, None));
    }
    assert!(accuracies.iter().all(|percent| (-1e-3..=100.0).contains(percent)), "{accuracies:?}");
    assert!(accuracies.iter().any(|percent| *percent > 10.0), "{accuracies:?}");
}

/// The reading in which the contrastive loss replaces the matching of class means.
#[test]
fn without_the_weight_of_matching_the_bracket_alone_is_optimized() {
    let (reports, images) = run(&[("matching.weight", 0.0.into())]);
    for report in &reports {
        let [performance, robust] = [report.performance, report.robust].map(Option::unwrap);
        let expected = 5.0 * (0.6 * performance + 0.4 * robust);
        assert!((report.loss - expected).abs() < 1e-4 * expected && report.matching > Some(0.0), "{report:?}");
    }
    let before = run(&[("matching.weight", 0.0.into()), ("iterations", 0.into())]).1;
    assert!(max_difference(&images, &before) > 1e-3);
    // The class means of the robust term are still those of the real images.
    let backbone = [("matching.weight", 0.0.into()), ("objective.robust", "class-mean".into())];
    assert!(run(&backbone).0.iter().all(|report| report.robust > Some(0.0)));
}

/// Unclamped images move where clamped ones stop, are stored in `[0, 1]`, and resume from where they were.
#[test]
fn unclamped_images_are_clamped_when_they_are_stored() {
    let mut distillation = start(&config(&[("images.clamp", false.into()), ("images.lr", 0.1.into())]));
    while distillation.iteration() < 3 {
        distillation.step().unwrap();
    }
    let state = distillation.state().unwrap();
    let least = state.tensors["images"].min().double_value(&[]);
    assert!(least < -0.05, "{least}");
    assert!(images(&distillation).equal(&state.tensors["images"].clamp(0.0, 1.0)));
    let mut clamped = start(&config(&[]));
    let refused = clamped.restore(&state).unwrap_err().to_string();
    assert!(refused.contains("`images` must be in 0..=1"), "{refused}");
}

#[test]
fn impossible_switches_are_errors_that_name_the_key() {
    let message = |changes: &[Change]| config(changes).validate().unwrap_err().to_string();
    let crowded = message(&[("pool.push-every", 1.into()), ("pool.alive", 3.into())]);
    assert!(crowded.contains("pool.alive must be at least pool.trajectories times pool.snapshots, got 3"), "{crowded}");
    let far = message(&[("attacks.pool.epsilon", "8".into())]);
    assert!(far.contains("attacks.pool.epsilon must be below 1"), "{far}");
    let slow = message(&[(
        "attacks.matching.companions",
        table("attack = \"pgd\"\nsteps = 0\nrel-step-size = 0.5\nrandom-start = true"),
    )]);
    assert!(slow.contains("`attacks.matching.companions`") && slow.contains("steps must be at least 1"), "{slow}");
    let warm = ("companions.warm-start", toml::Value::from(true));
    let after = message(&[warm.clone(), ("objective.attack-after-dsa", true.into())]);
    assert!(after.contains("objective.attack-after-dsa cannot be `true`"), "{after}");
    let apart = message(&[warm.clone(), ("aac.remember", "both".into()), ("attacks.pool.epsilon", "4/255".into())]);
    assert!(apart.contains("aac.remember cannot be") && apart.contains("[attacks]"), "{apart}");
    assert!(config(&[warm, ("attacks.pool.epsilon", "4/255".into())]).validate().is_ok());
    let elsewhere = profile("dm", &[("attacks.matching.epsilon", "4/255".into())]).validate().unwrap_err();
    assert!(matches!(elsewhere, ConfigError::SectionUnused { section: "attacks", method: "dm" }), "{elsewhere}");
    for (key, value, meant) in [
        ("attacks.pools.epsilon", "4/255", "pools"),
        ("attacks.pool.eps", "4/255", "eps"),
        ("attacks.pool.epsilon", "-1/255", "not positive"),
        ("objective.distance", "l1", "squared-l1"),
        ("objective.reduction", "max", "sum"),
    ] {
        let error = DistillConfig::from_table(METHODS, profile_table("faithful", &[(key, value.into())])).unwrap_err();
        let ConfigError::Key(error) = error else { panic!("{error}") };
        assert!(error.to_string().contains(meant) && key.starts_with(error.key.split('.').next().unwrap()), "{error}");
    }
}

/// Images that the whole run sends through networks, counted by hand for CIFAR-10 at ten images per class.
#[test]
fn the_passes_of_rome_by_hand() {
    let work = |profile: &str, changes: &[Change]| {
        let spec = c2r_data::spec("cifar10").unwrap();
        let all = [&[("ipc", 10.into()), ("iterations", 1000.into())], changes].concat();
        let work = DistillConfig::resolve(profile, &spec, all).unwrap().work(10, 50_000);
        [work.forward, work.input_gradient, work.training].map(|images| images / 1000.0)
    };
    // Of an update: two networks take ten steps of 256 images; PGD is ten steps and a look at what it made; 2,560 real images
    // are attacked and embedded; 400 synthetic ones go through once.
    let (trained, real, synthetic) = (2.0 * 10.0 * 256.0, 2560.0, 400.0);
    let expected = [11.0 * trained + 12.0 * real + synthetic, 10.0 * (trained + real) + synthetic, trained];
    assert_eq!(work("rome", &[]), expected);
    assert_eq!(expected, [87_440.0, 77_200.0, 5_120.0]);
    // Networks of age 100 join 1000 / 30 times, rounded up.
    let older = work("rome", &[("pool.min-steps", 100.into()), ("pool.max-steps", 100.into())]);
    assert_eq!(older[2], trained + (34.0 + 3.0) * 100.0 * 256.0 / 1000.0);
    // Another attack at one place costs there what it costs.
    let fgsm = |place: &'static str| work("rome", &[(place, table("attack = \"fgsm\""))]);
    assert_eq!(fgsm("attacks.pool.companions"), [expected[0] - 9.0 * trained, expected[1] - 9.0 * trained, trained]);
    assert_eq!(fgsm("attacks.matching.companions"), [expected[0] - 9.0 * real, expected[1] - 9.0 * real, trained]);
    assert_eq!(fgsm("attacks.synthetic.companions"), expected);
    let clamped = table("attack = \"clamped-normalized-pgd\"\nsteps = 10\nrel-step-size = 0.25\nrandom-start = true");
    assert_eq!(work("rome", &[("companions", clamped)]), expected);
    // C²R with as many networks trained by time as ROME.
    let plain = work("faithful", &[("pool.steps-per-iteration", 0.into())]);
    let pool =
        [("pool.push-every", 30.into()), ("pool.networks-per-iteration", 2.into()), ("pool.min-steps", 0.into())];
    let trained = work("faithful", &[&pool[..], &[("pool.steps-per-iteration", 10.into())]].concat());
    assert_eq!(trained[2] - plain[2], 20.0 * 256.0);
    let synthetic_fgsm = work(
        "faithful",
        &[("pool.steps-per-iteration", 0.into()), ("attacks.synthetic.companions", table("attack = \"fgsm\""))],
    );
    // LS-PGD looks at two candidates, FGSM at one.
    assert_eq!(plain[0] - synthetic_fgsm[0], 400.0);
}

/// The queue and the ordinary switches beside those of the backbone: nothing of it stops a run.
#[test]
fn switches_of_both_kinds_go_together() {
    let mut distillation = start(&freedom());
    assert_eq!(finish(&mut distillation).len(), 6);
    let (reports, _) = run(&[("aac.synthetic", off()), ("matching.weight", 0.0.into()), ("pool.push-every", 1.into())]);
    assert!(reports.iter().all(|report| report.loss.is_finite()));
}
