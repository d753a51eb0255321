//! What an observer is told, and what stopping costs.

use std::{
    ops::ControlFlow,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use c2r_attacks::{AttackConfig, AttackError, AttackReport, EvaluateOptions, Mode, evaluate, evaluate_with};
use c2r_base::{Classifier, ClassifierError, LabelledImages, Norm, Seed, ThreatModel};
use c2r_testkit::toys::{self, Tanh};
use tch::{Device, Tensor};

use crate::{
    properties::toy,
    support::{config, run, threat},
};

#[test]
fn resume_equals_never_stopped() {
    let (model, data) = toy();
    let attacks = || {
        ["fgsm", "autoattack-standard"].map(|name| {
            let mut config = name.parse::<AttackConfig>().unwrap();
            if name != "fgsm" {
                config.set("queries", "20").unwrap();
                config.set("steps", "5").unwrap();
            }
            config.build().unwrap()
        })
    };
    let threat = threat(Norm::Linf, 0.02);
    for mode in [Mode::Suite, Mode::Each] {
        let options = EvaluateOptions { batch_size: 4, mode, ..Default::default() };
        let whole = run(&model, &data, &attacks(), &threat, &options);
        let n_events = {
            let mut n = 0;
            evaluate_with(&model, &data, &attacks(), &threat, &options, &mut |_| {
                n += 1;
                ControlFlow::Continue(())
            })
            .unwrap();
            n
        };
        for stop_after in 3..n_events {
            let (mut seen, mut state) = (0, None);
            let stopped = evaluate_with(&model, &data, &attacks(), &threat, &options, &mut |event| {
                seen += 1;
                if let c2r_attacks::Event::Judged { report, .. } = event {
                    state = Some(serde_json::to_string(report).unwrap());
                }
                if seen > stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            assert!(matches!(stopped, Err(AttackError::Interrupted)));
            let Some(state) = state else { continue };
            let resumed = EvaluateOptions { resume: Some(serde_json::from_str(&state).unwrap()), ..options.clone() };
            let resumed = run(&model, &data, &attacks(), &threat, &resumed);
            let strip = |report: &c2r_attacks::AttackReport| -> Vec<_> {
                report.attacks.iter().map(|entry| entry.samples.clone()).collect()
            };
            assert_eq!(strip(&whole), strip(&resumed), "{mode:?} after {stop_after}");
            assert_eq!(whole.flags, resumed.flags);
        }
        let other = EvaluateOptions { seed: Seed::new(9), resume: Some(whole.clone()), ..options.clone() };
        let refused = evaluate(&model, &data, &attacks(), &threat, &other);
        assert!(matches!(refused, Err(AttackError::Resume(_))));
    }
}

/// Other images with the same labels, and reports with something cut off.
#[test]
fn resume_refuses_other_images_and_damaged_reports() {
    let (model, data) = toy();
    let attacks = || [config("fgsm", &[]).build().unwrap()];
    let threat = threat(Norm::Linf, 0.02);
    let report = run(&model, &data, &attacks(), &threat, &EvaluateOptions::default());
    let resumed = |data: &LabelledImages, report: &AttackReport| {
        // By way of a file.
        let resume = Some(serde_json::from_str(&serde_json::to_string(report).unwrap()).unwrap());
        evaluate(&model, data, &attacks(), &threat, &EvaluateOptions { resume, ..EvaluateOptions::default() })
    };
    let reason = |data: &LabelledImages, report: &AttackReport| match resumed(data, report) {
        Err(AttackError::Resume(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert!(resumed(&data, &report).is_ok());
    let respelled = ThreatModel::untargeted(Norm::Linf, "2/100".parse().unwrap());
    assert!(resumed(&data, &AttackReport { threat: respelled, ..report.clone() }).is_ok(), "0.02, written otherwise");
    let others = data.images().flip([3]);
    let others = LabelledImages::new(others, data.labels().copy()).unwrap();
    assert_eq!(reason(&others, &report), "its images are not those of the data");

    let damaged = |damage: fn(&mut AttackReport)| {
        let mut report = report.clone();
        damage(&mut report);
        assert!((0.0..=1.0).contains(&report.robust_accuracy()));
        reason(&data, &report)
    };
    let text = "the report is damaged: ";
    assert_eq!(
        damaged(|report| report.attacks[0].samples.truncate(3)),
        format!("{text}it has 3 samples of `fgsm` for 12 samples")
    );
    assert_eq!(
        damaged(|report| report.clean_predictions.truncate(3)),
        format!("{text}it has 3 clean predictions for 12 samples")
    );
    assert_eq!(
        damaged(|report| report.clean_margins.truncate(3)),
        format!("{text}it has 3 clean margins for 12 samples")
    );
    assert_eq!(
        damaged(|report| report.targets = Some(vec![0; 12])),
        format!("{text}it has targets, with goal Untargeted")
    );
    assert_eq!(
        damaged(|report| report.attacks[0].stages[0].attack = "pgd".to_owned()),
        format!("{text}the stages of `fgsm` are [\"pgd\"], of the attack [\"fgsm\"]")
    );
    assert_eq!(
        damaged(|report| report.attacks[0].stages[0].survivors = 99),
        format!("{text}`fgsm` has 99 survivors of 10")
    );
    assert_eq!(
        damaged(|report| report.attacks[0].samples[0].stages = 2),
        format!("{text}a sample of `fgsm` has 2 of 1 stages")
    );
}

/// A model that sets a flag at its `at`-th pass.
struct StopsAt<'a> {
    model: &'a Tanh,
    at: usize,
    passes: AtomicUsize,
    flag: Arc<AtomicBool>,
}

impl Classifier for StopsAt<'_> {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        if self.passes.fetch_add(1, Ordering::Relaxed) + 1 == self.at {
            self.flag.store(true, Ordering::Relaxed);
        }
        Ok(self.model.logits(images))
    }

    fn device(&self) -> Device {
        self.model.device()
    }
}

/// libtorch's operators panic when memory runs out.
#[test]
fn a_panic_loses_only_its_batch() {
    let (model, data) = toy();
    let attacks = [config("pgd", &[("steps", "9")]).build().unwrap()];
    let (threat, options) = (threat(Norm::Linf, 0.02), EvaluateOptions { batch_size: 5, ..Default::default() });
    let whole = run(&model, &data, &attacks, &threat, &options);
    let (full, mut state) = (AtomicBool::new(false), None);
    let panics = toys::function(|images| {
        assert!(!full.load(Ordering::Relaxed), "on purpose");
        model.logits(images)
    });
    let ended = panic::catch_unwind(AssertUnwindSafe(|| {
        evaluate_with(&panics, &data, &attacks, &threat, &options, &mut |event| {
            match event {
                c2r_attacks::Event::Judged { .. } => full.store(true, Ordering::Relaxed),
                c2r_attacks::Event::Stopped { report, .. } => state = Some((*report).clone()),
                _ => {}
            }
            ControlFlow::Continue(())
        })
    }));
    assert_eq!(ended.unwrap_err().downcast_ref(), Some(&"on purpose"));
    let state = state.expect("the observer was told");
    assert_eq!(state.attacks[0].stages[0].attacked, 5);
    let resumed = run(&model, &data, &attacks, &threat, &EvaluateOptions { resume: Some(state), ..options });
    assert_eq!(whole.attacks[0].samples, resumed.attacks[0].samples);
}

#[test]
fn a_flag_stops_inside_a_batch_and_loses_only_that() {
    let (model, data) = toy();
    let attacks = [("fgsm", "", ""), ("pgd", "steps", "9"), ("square", "queries", "30"), ("apgd-t", "steps", "6")].map(
        |(name, option, value)| {
            let options: &[(&str, &str)] = if option.is_empty() { &[] } else { &[(option, value)] };
            config(name, options).build().unwrap()
        },
    );
    let options = EvaluateOptions { batch_size: 5, mode: Mode::Each, ..Default::default() };
    let threat = threat(Norm::Linf, 0.02);
    let passes = |at: usize, flag: &Arc<AtomicBool>| StopsAt {
        model: &model,
        at,
        passes: AtomicUsize::new(0),
        flag: Arc::clone(flag),
    };
    let counted = passes(0, &Arc::default());
    let whole = run(&counted, &data, &attacks, &threat, &options);
    let all = counted.passes.into_inner();
    let (mut inside, mut before) = (0, 0);
    for at in (1..all).step_by(3) {
        let flag: Arc<AtomicBool> = Arc::default();
        let stopping = passes(at, &flag);
        let stoppable = EvaluateOptions { stop: flag, ..options.clone() };
        let mut state = None;
        let stopped = evaluate_with(&stopping, &data, &attacks, &threat, &stoppable, &mut |event| {
            if let c2r_attacks::Event::Stopped { report, .. } = event {
                state = Some(serde_json::to_string(report).unwrap());
            }
            ControlFlow::Continue(())
        });
        assert!(matches!(stopped, Err(AttackError::Interrupted)), "at pass {at}: {stopped:?}");
        // The pass that set the flag was the last one, but for what the clean images had left of their batch.
        let done = stopping.passes.into_inner();
        assert!(done <= at + 20, "{done} passes, stopped at {at}");
        let Some(state) = state else {
            before += 1;
            continue;
        };
        inside += 1;
        let resume = Some(serde_json::from_str(&state).unwrap());
        let resumed = run(&model, &data, &attacks, &threat, &EvaluateOptions { resume, ..options.clone() });
        for (a, b) in whole.attacks.iter().zip(&resumed.attacks) {
            assert_eq!(a.samples, b.samples, "stopped at pass {at}");
            let counted = |entry: &c2r_attacks::AttackEntry| -> Vec<_> {
                entry.stages.iter().map(|stage| (stage.attacked, stage.survivors, stage.counts)).collect()
            };
            assert_eq!(counted(a), counted(b), "stopped at pass {at}");
        }
        assert_eq!(whole.flags, resumed.flags);
    }
    assert!(inside > 10 && before > 0, "{inside} inside a batch, {before} before the first attack");
}

#[test]
fn each_attack_is_announced_before_its_batches() {
    let (model, data) = toy();
    let attacks = ["fgsm", "pgd"].map(|name| config(name, &[]).build().unwrap());
    let options = EvaluateOptions { batch_size: 4, mode: Mode::Each, ..Default::default() };
    let (mut announced, mut order) = (None, Vec::new());
    evaluate_with(&model, &data, &attacks, &threat(Norm::Linf, 0.02), &options, &mut |event| {
        match event {
            c2r_attacks::Event::Started { attack, done, total, .. } => {
                assert_eq!(*done, 0);
                announced = Some(((*attack).to_owned(), *total));
                order.push((*attack).to_owned());
            }
            c2r_attacks::Event::Judged { attack, total, .. } => {
                assert_eq!(announced, Some(((*attack).to_owned(), *total)));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(order, ["fgsm", "pgd"]);
}
