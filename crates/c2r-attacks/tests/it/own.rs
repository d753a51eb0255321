//! Attacks of other crates: what the driver checks before it believes them, and what it asks of all attacks.

use std::{cell::Cell, collections::BTreeSet, ops::ControlFlow};

use c2r_attacks::{
    AdversarialImages, Attack, AttackBatch, AttackConfig, AttackError, Choice, ConfigError, EvaluateOptions, Family,
    Mode, Oracle, Outcome, Perturbed, Setting, evaluate, evaluate_with,
};
use c2r_base::{Classifier, Goal, LabelledImages, Norm, Seed, TargetRule, ThreatModel, loss};
use c2r_testkit::toys::{self, Linear};
use tch::{Device, Kind, Tensor};

use crate::{
    properties::{CLASSES, NORMS, attacks, toy},
    support::{config, threat},
};

/// An attack that is a function, with its name.
struct Of<F>(&'static str, F);

type Proposal = Result<Perturbed, AttackError>;

impl<F: Fn(&dyn Classifier, &AttackBatch<'_>) -> Proposal + Send + Sync> Attack for Of<F> {
    fn name(&self) -> &str {
        self.0
    }

    fn family(&self) -> Family {
        Family::BlackBox
    }

    fn perturb(&self, model: &dyn Classifier, batch: &AttackBatch<'_>, _: &ThreatModel, _: Seed) -> Proposal {
        (self.1)(model, batch)
    }
}

fn own(perturb: impl Fn(&dyn Classifier, &AttackBatch<'_>) -> Proposal + Send + Sync + 'static) -> Box<dyn Attack> {
    Box::new(Of("own", perturb))
}

/// The clean images, without a pass.
fn unchanged(batch: &AttackBatch<'_>) -> Perturbed {
    let n = batch.ids.len();
    let (queries, repaired) = (vec![0; n], vec![false; n]);
    Perturbed { images: batch.images.copy(), queries, passes: Default::default(), repaired }
}

fn error_of(attack: Box<dyn Attack>, threat: &ThreatModel) -> AttackError {
    let (model, data) = toy();
    evaluate(&model, &data, &[attack], threat, &EvaluateOptions::default()).unwrap_err()
}

#[test]
fn proposals_of_another_form_are_errors() {
    let threat = threat(Norm::Linf, 0.02);
    let (model, data) = toy();
    let fine = [own(|_, batch| Ok(unchanged(batch)))];
    assert!(evaluate(&model, &data, &fine, &threat, &EvaluateOptions::default()).is_ok());

    let double = own(|_, batch| Ok(Perturbed { images: batch.images.to_kind(Kind::Double), ..unchanged(batch) }));
    let error = error_of(double, &threat);
    assert!(matches!(&error, AttackError::ImageKind { attack, got: Kind::Double } if attack == "own"), "{error}");
    let none = own(|_, batch| Ok(Perturbed { images: Tensor::new(), ..unchanged(batch) }));
    let error = error_of(none, &threat);
    assert!(matches!(&error, AttackError::ImageShape { got, .. } if got.is_empty()), "{error}");
    let uncounted = own(|_, batch| Ok(Perturbed { queries: vec![], ..unchanged(batch) }));
    let error = error_of(uncounted, &threat);
    assert!(matches!(error, AttackError::PerSample { field: "queries", expected: 10, got: 0, .. }), "{error}");
    let unmarked = own(|_, batch| Ok(Perturbed { repaired: vec![false], ..unchanged(batch) }));
    let error = error_of(unmarked, &threat);
    assert!(matches!(error, AttackError::PerSample { field: "repaired", expected: 10, got: 1, .. }), "{error}");
}

#[test]
fn rows_that_are_not_in_the_batch_are_errors_that_name_them() {
    fn ask(model: &dyn Classifier, batch: &AttackBatch<'_>, rows: &[usize], kind: u32) -> Proposal {
        let mut oracle = Oracle::new(model, "own", batch.ids);
        let all: Vec<usize> = (0..batch.ids.len()).collect();
        match kind {
            0 => drop(oracle.logits(batch.images, rows)?),
            1 => drop(oracle.gradient(batch.images, rows, |_, logits| batch.goal_margin(logits))?),
            _ => {
                let (x, logits) = oracle.tracked(batch.images, &all)?;
                drop(oracle.backward(&logits, &x, rows, false)?);
            }
        }
        Ok(oracle.finish(batch.images.copy()))
    }
    let threat = threat(Norm::Linf, 0.02);
    for kind in 0..3 {
        let far = own(move |model, batch| {
            let rows: Vec<usize> = (0..batch.ids.len()).map(|row| if row == 0 { 999 } else { row }).collect();
            ask(model, batch, &rows, kind)
        });
        let error = error_of(far, &threat);
        let AttackError::Rows { attack, reason } = &error else { panic!("{error}") };
        assert_eq!((attack.as_str(), reason.as_str()), ("own", "row 999 in a batch of 10 samples"));
        let short = own(move |model, batch| ask(model, batch, &[0], kind));
        let error = error_of(short, &threat);
        assert!(
            matches!(&error, AttackError::Rows { reason, .. } if reason == "1 rows for images of shape [10, 2, 6, 6]"),
            "{error}"
        );
    }
}

/// Nobody has to think of targets: an attack that does not say that it heeds them is not asked to.
#[test]
fn an_attack_that_says_nothing_about_targets_is_refused_for_targeted_goals() {
    let targeted = ThreatModel { goal: Goal::Targeted(TargetRule::Next), ..threat(Norm::Linf, 0.02) };
    let error = error_of(own(|_, batch| Ok(unchanged(batch))), &targeted);
    assert!(
        matches!(&error, AttackError::Config(ConfigError::UnsupportedGoal { attack }) if attack == "own"),
        "{error}"
    );
}

/// Every registered attack either refuses a target, or brings the images nearer to it, and nearer than the attack without one.
#[test]
fn attacks_move_towards_a_target_or_refuse_it() {
    let (model, data) = toy();
    let ids: Vec<u64> = (0..data.len() as u64).collect();
    let targets = (data.labels() + 1).remainder(CLASSES);
    let goal = Goal::Targeted(TargetRule::Next);
    let mut n_moved = 0;
    for (norm, epsilon) in NORMS {
        let untargeted = threat(norm, epsilon * 4.0);
        let targeted = ThreatModel { goal, ..untargeted };
        for attack in attacks(norm).into_iter().filter(|attack| attack.family() != Family::Sanity) {
            let what = format!("{} {norm}", attack.name());
            if let Err(error) = attack.check(&targeted, CLASSES) {
                assert!(matches!(error, ConfigError::UnsupportedGoal { .. }), "{what}: {error}");
                continue;
            }
            let batch =
                AttackBatch { images: data.images(), labels: data.labels(), ids: &ids, targets: Some(&targets) };
            let distance_to_target =
                |images: &Tensor| batch.goal_margin(&model.logits(images)).mean(Kind::Double).double_value(&[]);
            let found = |batch: &AttackBatch<'_>, threat: &ThreatModel| {
                attack.perturb(&model, batch, threat, Seed::new(3)).unwrap().images
            };
            let (aimed, free) = (found(&batch, &targeted), found(&AttackBatch { targets: None, ..batch }, &untargeted));
            assert!((&aimed - &free).abs().max().double_value(&[]) > 1e-3, "{what}: the target changes nothing");
            let [clean, aimed, free] = [data.images(), &aimed, &free].map(distance_to_target);
            // The smallest perturbation ends between label and target, where a third class may be larger.
            let nearest = attack.family() == Family::MinimumNorm;
            assert!(
                aimed < clean && (nearest || aimed < free),
                "{what}: {aimed} from the target, {clean} before, {free} without one"
            );
            n_moved += 1;
        }
    }
    assert!(n_moved > 20, "{n_moved}");
}

#[test]
fn a_suite_for_another_norm_is_refused() {
    let (model, data) = toy();
    let short = |mut config: AttackConfig| {
        config.set("queries", "5").unwrap();
        config.set("steps", "2").unwrap();
        config
    };
    let result = |config: &AttackConfig, norm| {
        let suite = [config.build().unwrap()];
        evaluate(&model, &data, &suite, &threat(norm, 0.02), &EvaluateOptions::default()).map(drop)
    };
    let named = |norm| short(AttackConfig::named_for("autoattack-standard", norm).unwrap());
    let parsed = short("autoattack-standard".parse().unwrap());
    let is_refused = |result: Result<(), AttackError>| matches!(result, Err(AttackError::Config(ConfigError::SuiteOfOtherNorm { suite, .. })) if suite == "autoattack-standard");
    for norm in [Norm::Linf, Norm::L2, Norm::L1] {
        assert!(result(&named(norm), norm).is_ok(), "{norm}");
        assert_eq!(is_refused(result(&parsed, norm)), norm == Norm::L1, "{norm}");
        assert_eq!(is_refused(result(&named(Norm::L1), norm)), norm != Norm::L1, "{norm}");
    }
    // Numbers that somebody chose are theirs, those of another norm among them.
    let mut chosen = parsed;
    chosen.set("restarts", "2").unwrap();
    assert!(result(&chosen, Norm::L1).is_ok());
    let set = [("apgd-ce", "restarts"), ("apgd-t", "targets")].map(|(attack, option)| Setting {
        attack: attack.to_owned(),
        option: option.to_owned(),
        value: "5".to_owned(),
    });
    let names = ["autoattack-standard".to_owned()];
    for norm in [Norm::Linf, Norm::L2, Norm::L1] {
        let choice = Choice { names: &names, norm, each: false, options: &[], set: &set };
        let chosen = short(choice.configs().unwrap().remove(0));
        assert!(result(&chosen, norm).is_ok(), "{norm}");
    }
}

/// What runs are told apart by and continued with is the same as before a suite knew its norm.
#[test]
fn the_norm_of_a_suite_is_not_written() {
    for norm in [Norm::Linf, Norm::L1] {
        let suite = AttackConfig::named_for("autoattack-standard", norm).unwrap();
        let written = serde_json::to_value(&suite).unwrap();
        let keys: BTreeSet<&String> = written.as_object().unwrap().keys().collect();
        assert!(keys.into_iter().eq(["attack", "attacks", "name"]), "{written}");
        // Read back, it has what its writer chose.
        let back: AttackConfig = serde_json::from_value(written).unwrap();
        assert!(back.build().unwrap().check(&threat(Norm::L1, 0.02), 10).is_ok());
    }
}

#[test]
fn attacks_that_cannot_run_are_refused_before_the_images_are_classified() {
    let (model, data) = toy();
    let n_asked = Cell::new(0);
    let counted = toys::function(|images| {
        n_asked.set(n_asked.get() + 1);
        model.logits(images)
    });
    let options = EvaluateOptions { batch_size: 2, ..EvaluateOptions::default() };
    let asked = |attacks: &[&str], threat: &ThreatModel| {
        let attacks: Vec<_> = attacks.iter().map(|name| config(name, &[]).build().unwrap()).collect();
        let Err(AttackError::Config(error)) = evaluate(&counted, &data, &attacks, threat, &options) else { panic!() };
        (error, n_asked.get())
    };
    let (error, n) = asked(&["pgd", "cw-linf"], &threat(Norm::L2, 0.1));
    assert!(matches!(error, ConfigError::UnsupportedNorm { attack, .. } if attack == "cw-linf"));
    assert_eq!(n, 0);
    let targeted = ThreatModel { goal: Goal::Targeted(TargetRule::Next), ..threat(Norm::Linf, 0.02) };
    let (error, n) = asked(&["pgd", "deepfool"], &targeted);
    assert!(matches!(error, ConfigError::UnsupportedGoal { attack } if attack == "deepfool"));
    assert_eq!(n, 0);
    // The number of classes is known once the model has answered.
    let three = toys::fallible(|images| Ok(counted.logits(images)?.narrow(1, 0, 3)));
    let data = {
        let labels = data.labels().clamp_max(2);
        LabelledImages::new(data.images().copy(), labels).unwrap()
    };
    let error = evaluate(&three, &data, &[config("apgd-t", &[]).build().unwrap()], &threat(Norm::Linf, 0.02), &options);
    assert!(matches!(error, Err(AttackError::Config(ConfigError::TooFewClasses { needed: 4, classes: 3, .. }))));
    assert_eq!(n_asked.get(), 1);
}

#[test]
fn attacks_of_the_same_name_are_refused_where_each_is_judged_by_itself() {
    let (model, data) = toy();
    let pgd = |steps: &str| config("pgd", &[("steps", steps)]).build().unwrap();
    let result = |attacks: &[Box<dyn Attack>], mode| {
        let options = EvaluateOptions { mode, ..EvaluateOptions::default() };
        evaluate(&model, &data, attacks, &threat(Norm::Linf, 0.02), &options).map(drop)
    };
    let twice = |result: Result<(), AttackError>| matches!(result, Err(AttackError::Config(ConfigError::Twice { attack })) if attack == "pgd");
    assert!(twice(result(&[pgd("2"), pgd("3")], Mode::Each)));
    assert!(result(&[pgd("2"), pgd("3")], Mode::Suite).is_ok(), "other options");
    assert!(twice(result(&[pgd("2"), pgd("2")], Mode::Suite)), "the same options");
}

#[test]
fn images_of_more_attacks_than_were_announced_are_kept() {
    let (model, data): (_, LabelledImages) = toy();
    let attacks = ["fgsm", "pgd"].map(|name| config(name, &[]).build().unwrap());
    let mut saved = AdversarialImages::new(&data, 1, Mode::Each);
    let options = EvaluateOptions { mode: Mode::Each, ..EvaluateOptions::default() };
    evaluate_with(&model, &data, &attacks, &threat(Norm::Linf, 0.02), &options, &mut |event| {
        saved.observe(event);
        ControlFlow::Continue(())
    })
    .unwrap();
    let [fgsm, pgd] = saved.sets() else { panic!("{} sets", saved.sets().len()) };
    assert!((fgsm - pgd).abs().max().double_value(&[]) > 1e-3);
    // Images 1 and 7 are misclassified and not attacked.
    let kept = pgd.get(1) - data.images().get(1);
    assert_eq!(kept.abs().max().double_value(&[]), 0.0);
}

/// Logits `(2 x, 1)` of the first pixel x; the image of each of these samples goes to another brightness.
fn brightness(name: &'static str, of: &'static [(u64, f64)]) -> Box<dyn Attack> {
    let perturb = move |_: &dyn Classifier, batch: &AttackBatch<'_>| {
        let proposal = unchanged(batch);
        for (row, id) in batch.ids.iter().enumerate() {
            if let Some((_, x)) = of.iter().find(|(known, _)| known == id) {
                let _ = proposal.images.get(row as i64).fill_(*x);
            }
        }
        Ok(proposal)
    };
    Box::new(Of(name, perturb))
}

/// Four images of class 0 with x = 0.75, of which the first attack breaks 0 and the second one 1, and one that is wrong.
#[test]
fn a_report_takes_the_worst_of_all_attacks_for_each_image() {
    let model = Linear::two_pixels();
    let images = Tensor::full([5, 1, 1, 2], 0.75, (Kind::Float, Device::Cpu));
    let _ = images.get(4).fill_(0.25);
    let data = LabelledImages::new(images, Tensor::zeros([5], (Kind::Int64, Device::Cpu))).unwrap();
    // The first one moves image 2 away from the boundary, the second one a little towards it.
    let attacks: [Box<dyn Attack>; 2] =
        [brightness("one", &[(0, 0.4), (2, 0.9)]), brightness("two", &[(1, 0.4), (2, 0.7)])];
    let options = EvaluateOptions { mode: Mode::Each, ..Default::default() };
    let report = evaluate(&model, &data, &attacks, &threat(Norm::Linf, 0.5), &options).unwrap();
    let share = |attack: &str| report.attack(attack).unwrap().robust_accuracy();
    assert_eq!((report.clean_accuracy(), share("one"), share("two")), (0.8, 0.6, 0.6));
    assert_eq!(report.robust_accuracy(), 0.4);
    // The clean margin of image 2 is 0.5: the first attack's is larger, and only the second one's counts.
    let margin = |attack: usize| f64::from(report.attacks[attack].samples[2].margin);
    assert!((margin(0) - 0.5).abs() < 1e-6 && (margin(1) - 0.4).abs() < 1e-6, "{} {}", margin(0), margin(1));
    let distance = |attack: usize| report.attacks[attack].samples[2].distance;
    assert!((distance(0) - 0.15).abs() < 1e-6 && (distance(1) - 0.05).abs() < 1e-6);
}

/// For adversarial training: images that are wrong without an attack are attacked like the others, in their ball and with their
/// noise, and the report is that of an evaluation without them.
#[test]
fn misclassified_images_are_attacked_where_that_is_asked_for() {
    let (model, data) = toy();
    let (n, threat) = (data.len() as i64, threat(Norm::Linf, 0.02));
    // Every other label is wrong.
    let odd = Tensor::arange(n, (Kind::Int64, Device::Cpu)).remainder(2);
    let labels = (data.labels() + odd).remainder(CLASSES);
    let data = LabelledImages::new(data.images().copy(), labels).unwrap();
    let attacks = [config("pgd", &[("steps", "3")]).build().unwrap()];
    let attacked = |misclassified_too, batch_size| {
        let options = EvaluateOptions { misclassified_too, batch_size, ..EvaluateOptions::default() };
        let mut images = AdversarialImages::new(&data, 1, options.mode);
        let report = evaluate_with(&model, &data, &attacks, &threat, &options, &mut |event| {
            images.observe(event);
            ControlFlow::Continue(())
        });
        (report.unwrap(), images.sets()[0].copy())
    };
    let ((without, few), (with, all)) = (attacked(false, 4), attacked(true, 4));
    assert_eq!(with.attacks[0].samples, without.attacks[0].samples);
    assert_eq!(with.attacks[0].stages[0].attacked, without.attacks[0].stages[0].attacked);
    let moved = |images: &Tensor, position| threat.norm.distance(images, data.images()).double_value(&[position]);
    let logits = |images: &Tensor| model.logits(images);
    let (before, after) = (loss::ce(&logits(data.images()), data.labels()), loss::ce(&logits(&all), data.labels()));
    let mut n_wrong = 0;
    for (position, correct) in with.clean_correct().enumerate() {
        let at = position as i64;
        if correct {
            assert_eq!(few.get(at), all.get(at));
            continue;
        }
        n_wrong += 1;
        assert_eq!(moved(&few, at), 0.0);
        assert!(moved(&all, at) > 0.0 && moved(&all, at) <= 0.02 + 1e-6);
        assert!(after.double_value(&[at]) > before.double_value(&[at]), "position {position}");
    }
    assert!(n_wrong > 2, "the test needs images that are misclassified");
    let (_, other) = attacked(true, 3);
    assert!(all.allclose(&other, 0.0, 1e-5, false), "noise belongs to the position");
}

/// Each sample is aimed at the class that the caller chose for it.
#[test]
fn targets_of_the_callers_own_choice_are_aimed_at() {
    let (model, data) = toy();
    let untargeted = threat(Norm::Linf, 0.3);
    let goal = |rule| ThreatModel { goal: Goal::Targeted(rule), ..untargeted };
    let labels = Vec::<i64>::try_from(data.labels()).unwrap();
    let chosen: Vec<i64> = (2..).zip(&labels).map(|(step, label)| (label + 1 + step % 2) % CLASSES).collect();
    let attacks = [config("pgd", &[("steps", "20")]).build().unwrap()];
    let report = |threat: &ThreatModel, targets: Option<Vec<i64>>| {
        let options = EvaluateOptions { targets, self_check: false, ..EvaluateOptions::default() };
        evaluate(&model, &data, &attacks, threat, &options)
    };
    let given = goal(TargetRule::Given);
    let found = report(&given, Some(chosen.clone())).unwrap();
    assert_eq!(found.targets.as_ref(), Some(&chosen));
    let samples = found.attacks[0].samples.iter().zip(&chosen).zip(found.clean_correct());
    let broken = samples.filter(|((sample, _), correct)| *correct && sample.outcome != Outcome::Survived);
    let hit: Vec<bool> = broken.map(|((sample, target), _)| sample.prediction == *target).collect();
    assert!(hit.len() > 3 && hit.iter().all(|hit| *hit), "{hit:?}");

    // With the rule that chooses the same, everything is the same.
    let next: Vec<i64> = labels.iter().map(|label| (label + 1) % CLASSES).collect();
    let (by_rule, by_hand) = (report(&goal(TargetRule::Next), None).unwrap(), report(&given, Some(next)).unwrap());
    assert_eq!(by_rule.attacks[0].samples, by_hand.attacks[0].samples);

    let with = |at: usize, target: i64| {
        let mut targets = chosen.clone();
        targets[at] = target;
        Some(targets)
    };
    for (threat, targets, reason) in [
        (&given, None, "none are given"),
        (&given, Some(chosen[1..].to_vec()), "samples"),
        (&given, with(2, labels[2]), "that of sample 2 is its label"),
        (&given, with(1, -1), "that of sample 1 is negative (-1)"),
        (&given, with(1, CLASSES + 4), "the model has"),
        (&untargeted, Some(chosen.clone()), "but the goal is Untargeted"),
        (&goal(TargetRule::Next), Some(chosen.clone()), "but the goal is Targeted(Next)"),
    ] {
        let error = report(threat, targets).unwrap_err().to_string();
        assert!(error.starts_with("targets: ") && error.contains(reason), "{error}");
    }
    let third = (0..CLASSES).find(|class| ![labels[0], chosen[0]].contains(class)).unwrap();
    let other = EvaluateOptions { targets: with(0, third), resume: Some(found), ..Default::default() };
    let error = evaluate(&model, &data, &attacks, &given, &other).unwrap_err().to_string();
    assert!(error.contains("its targets differ"), "{error}");
}

/// 2 where 2/255 is meant.
#[test]
fn a_step_through_the_whole_cube_is_refused() {
    let (model, data) = toy();
    let refused = |name, step: &str, norm| {
        let attacks = [config(name, &[("step-size", step)]).build().unwrap()];
        let asked = Cell::new(false);
        let watched = toys::function(|images| {
            asked.set(true);
            model.logits(images)
        });
        let result = evaluate(&watched, &data, &attacks, &threat(norm, 0.1), &EvaluateOptions::default());
        result.err().map(|error| (error.to_string(), asked.get()))
    };
    let reason = "attack `pgd`: option `step-size`: 2 takes a pixel from black to white in one step; write 2/255 if you mean steps";
    let (error, asked) = refused("pgd", "2", Norm::Linf).unwrap();
    assert!(error.starts_with(reason) && !asked, "{error}");
    assert!(refused("vmi-fgsm", "1", Norm::Linf).is_some() && refused("cw-linf", "255/255", Norm::Linf).is_some());
    assert_eq!([refused("pgd", "254/255", Norm::Linf), refused("pgd", "2", Norm::L2)], [None, None]);
}
