//! Models that fail, change, hide their gradients or are doubtful in another way, and the workers that share one.

use std::{cell::Cell, ops::ControlFlow};

use c2r_attacks::{AttackConfig, AttackError, EvaluateOptions, Event, Flag, Mode, evaluate, evaluate_with};
use c2r_base::{
    Classifier, ClassifierError, Goal, LabelledImages, Norm, TargetRule, ThreatModel,
    grad::{GradientError, try_gradient},
};
use c2r_testkit::toys::{self, Linear, Tanh};
use tch::{Device, Kind, Tensor};

use crate::{
    digits::Digits,
    properties::{CLASSES, NORMS, SHAPE, attacks, toy},
    support::{config, run, threat},
};

/// Answers with what it was given.
fn fixed(logits: Tensor) -> impl Classifier {
    toys::function(move |images| {
        let zero = images.flatten(1, -1).sum_dim_intlist([1i64].as_slice(), true, Kind::Float) * 0.0;
        logits.narrow(0, 0, images.size()[0]) + zero
    })
}

/// A model that lends itself to other threads, and counts on how many it runs.
#[derive(Clone)]
struct Shared(std::sync::Arc<std::sync::Mutex<std::collections::HashSet<std::thread::ThreadId>>>);

impl Classifier for Shared {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        self.0.lock().unwrap().insert(std::thread::current().id());
        Ok(Tanh::new(CLASSES, SHAPE, 12).logits(images))
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn replica(&self) -> Option<Box<dyn Classifier + Send>> {
        Some(Box::new(self.clone()))
    }
}

#[test]
fn outcomes_do_not_depend_on_the_workers() {
    let (_, data) = toy();
    for (norm, epsilon) in NORMS {
        let report = |workers| {
            let threads = std::sync::Arc::default();
            let options = EvaluateOptions { batch_size: 9, mode: Mode::Each, workers, ..Default::default() };
            let report =
                run(&Shared(std::sync::Arc::clone(&threads)), &data, &attacks(norm), &threat(norm, epsilon), &options);
            let threads = threads.lock().unwrap().len();
            (report, threads)
        };
        let (alone, one) = report(1);
        assert_eq!(one, 1);
        // More workers than samples leave some idle.
        for workers in [2, 3, 50] {
            let (together, many) = report(workers);
            assert!(many > 1, "{workers} workers ran on {many} thread");
            for (a, b) in alone.attacks.iter().zip(&together.attacks) {
                assert_eq!(a.stages[0].attacked, b.stages[0].attacked);
                let name = &a.name;
                for (a, b) in a.samples.iter().zip(&b.samples) {
                    // DeepFool ends on the boundary itself, where the last bit decides.
                    if name != "deepfool" {
                        assert_eq!((&a.outcome, a.prediction), (&b.outcome, b.prediction), "{name} {norm}");
                    }
                    assert!((a.distance - b.distance).abs() <= 1e-4 * a.distance.max(1.0));
                }
            }
        }
    }
}

/// A model that breaks on bright images, wherever it runs.
#[derive(Clone)]
struct Fragile;

impl Classifier for Fragile {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        let bright = images.mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float);
        let dark: Tensor = 2.0 - &bright;
        Ok(Tensor::stack(&[dark.masked_fill(&bright.gt(0.35), f64::NAN), bright], 1))
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn replica(&self) -> Option<Box<dyn Classifier + Send>> {
        Some(Box::new(self.clone()))
    }
}

#[test]
fn workers_report_the_first_offending_sample() {
    // Clean images are fine; random noise makes samples 2 and 3 too bright.
    let means = Tensor::from_slice(&[0.1f32, 0.1, 0.34, 0.34]).view([4, 1, 1, 1]);
    let images = means.expand([4, 1, 2, 2], false).contiguous();
    let data = LabelledImages::new(images, Tensor::zeros([4], (Kind::Int64, Device::Cpu))).unwrap();
    for workers in [1, 2, 4] {
        let options = EvaluateOptions { workers, self_check: false, ..Default::default() };
        let attacks = [config("pgd", &[("steps", "10")]).build().unwrap()];
        let threat = threat(Norm::Linf, 0.1);
        let result = evaluate(&Fragile, &data, &attacks, &threat, &options);
        assert!(matches!(result, Err(AttackError::NonFiniteLogits { sample: 2, .. })), "{workers}: {result:?}");
    }
}

#[test]
fn what_a_model_says_when_it_fails_comes_back_with_the_samples() {
    let (model, data) = toy();
    let small = toys::fallible(|images| match images.size()[0] {
        1..=2 => Ok(model.logits(images)),
        n => Err(ClassifierError::new(format!("{n} images are too many"))),
    });
    let attacks = [config("deepfool", &[]).build().unwrap()];
    let (threat, options) = (threat(Norm::Linf, 0.1), EvaluateOptions::default());
    let error = evaluate(&small, &data, &attacks, &threat, &options).unwrap_err();
    let AttackError::Model { sample: 0, rows, ref attack, ref source } = error else { panic!("{error:?}") };
    assert_eq!((rows, attack.as_str()), (data.len(), "clean"));
    assert_eq!(source.to_string(), format!("{rows} images are too many"));
}

#[test]
fn bad_logits_and_labels_name_the_sample() {
    let images = toys::images(3, [1, 2, 2]);
    let data = LabelledImages::new(images, Tensor::from_slice(&[0i64, 1, 1])).unwrap();
    let result = |logits: Tensor| {
        let attacks = [config("fgsm", &[]).build().unwrap()];
        let options = EvaluateOptions::default();
        evaluate(&fixed(logits), &data, &attacks, &threat(Norm::Linf, 0.1), &options)
    };
    let nan = Tensor::from_slice(&[1.0f32, 0.0, f32::NAN, 1.0, 0.0, 1.0]).view([3, 2]);
    assert!(matches!(result(nan), Err(AttackError::NonFiniteLogits { sample: 1, .. })));
    let double = Tensor::zeros([3, 2], (Kind::Double, Device::Cpu));
    assert!(matches!(result(double), Err(AttackError::LogitsKind(Kind::Double))));
    let one = Tensor::zeros([3, 1], (Kind::Float, Device::Cpu));
    assert!(matches!(result(one), Err(AttackError::LogitsShape { .. })));
    let labels = LabelledImages::new(toys::images(3, [1, 2, 2]), Tensor::from_slice(&[0i64, 7, 1])).unwrap();
    let attacks = [config("fgsm", &[]).build().unwrap()];
    let three = fixed(Tensor::zeros([3, 3], (Kind::Float, Device::Cpu)));
    let error = evaluate(&three, &labels, &attacks, &threat(Norm::Linf, 0.1), &EvaluateOptions::default());
    assert!(error.unwrap_err().to_string().ends_with("sample 1 has label 7, outside 0..=2: the model has 3 outputs"));
}

#[test]
fn doubtful_models_are_flagged() {
    let (model, data) = toy();
    let probabilities = toys::function(|x| model.logits(x).softmax(1, Kind::Float));
    let in_batch = toys::function(|x| model.logits(&(x - x.mean_dim([0i64].as_slice(), true, Kind::Float))));
    let saturated = toys::function(|x| model.logits(x) * 1e4);
    let flags = |model: &dyn Classifier| {
        run(model, &data, &[config("fgsm", &[]).build().unwrap()], &threat(Norm::Linf, 0.01), &Default::default()).flags
    };
    assert_eq!(flags(&model), []);
    assert!(flags(&probabilities).contains(&Flag::ProbabilitiesNotLogits));
    assert!(flags(&in_batch).iter().any(|flag| matches!(flag, Flag::BatchDependentModel { .. })));
    let saturated = flags(&saturated);
    assert!(saturated.iter().any(|flag| matches!(flag, Flag::ZeroGradient { .. })), "{saturated:?}");
    assert!(!saturated.iter().any(|flag| matches!(flag, Flag::FlatModel { .. })), "{saturated:?}");
    for rounds in [
        |x: &Tensor, model: &Tanh| model.logits(&((x * 8.0).round() / 8.0)),
        |x: &Tensor, model: &Tanh| (model.logits(x) * 100.0).round() / 100.0,
    ] {
        let flags = flags(&toys::function(|x| rounds(x, &model)));
        assert!(flags.iter().any(|flag| matches!(flag, Flag::FlatModel { .. })), "{flags:?}");
        assert!(!flags.iter().any(|flag| matches!(flag, Flag::ZeroGradient { .. })), "{flags:?}");
    }
}

#[test]
fn a_randomized_model_is_flagged_and_another_accuracy_at_epsilon_zero_is_an_error() {
    let (model, data) = toy();
    let result = |factor: fn(u32) -> f64| {
        let n_passes = Cell::new(0);
        let model = toys::function(|images| {
            n_passes.set(n_passes.get() + 1);
            model.logits(images) * factor(n_passes.get())
        });
        let attacks = [config("fgsm", &[]).build().unwrap()];
        let options = EvaluateOptions::default();
        evaluate(&model, &data, &attacks, &threat(Norm::Linf, 0.01), &options)
    };
    let flags = result(|pass| 1.0 + 0.01 * f64::from(pass)).unwrap().flags;
    assert!(flags.iter().any(|flag| matches!(flag, Flag::RandomizedModel { .. })), "{flags:?}");
    // The same twice, and upside down for the images that were projected at epsilon 0.
    let error = result(|pass| if pass == 3 { -1.0 } else { 1.0 });
    assert!(matches!(error, Err(AttackError::SelfCheck(_))), "{error:?}");
}

#[test]
fn an_attack_that_noise_beats_is_flagged() {
    let model = Linear::mixed(3, SHAPE);
    let images = toys::images(8, SHAPE);
    let labels = model.logits(&images).argmax(1, false);
    let data = LabelledImages::new(images, labels).unwrap();
    let hardly_moves = config("bim", &[("steps", "1"), ("step-size", "0.0001/255")]).build().unwrap();
    let attacks = [hardly_moves, config("noise", &[]).build().unwrap()];
    for mode in [Mode::Suite, Mode::Each] {
        let options = EvaluateOptions { mode, ..Default::default() };
        let flags = run(&model, &data, &attacks, &threat(Norm::Linf, 0.9), &options).flags;
        assert!(
            flags.iter().any(|flag| matches!(flag, Flag::WeakerThanNoise { attack, .. } if attack == "bim")),
            "{mode:?} {flags:?}"
        );
    }
}

#[test]
fn several_steps_that_one_step_beats_are_flagged() {
    let model = Linear::mixed(3, SHAPE);
    let images = toys::images(8, SHAPE);
    let labels = model.logits(&images).argmax(1, false);
    let data = LabelledImages::new(images, labels).unwrap();
    let flags = |name: &str, options: &[(&str, &str)]| {
        let attacks = [config("fgsm", &[]).build().unwrap(), config(name, options).build().unwrap()];
        let options = EvaluateOptions { mode: Mode::Each, ..Default::default() };
        run(&model, &data, &attacks, &threat(Norm::Linf, 0.9), &options).flags
    };
    let short = ("step-size", "0.0001/255");
    let flagged = flags("bim", &[short]);
    assert!(
        matches!(&flagged[..], [Flag::OneStepBeatsMany { attack, steps: 10, samples: 1.. }] if attack == "bim"),
        "{flagged:?}"
    );
    let text = flagged[0].to_string();
    assert!(text.contains("than `bim` in 10 steps") && text.contains("size may not fit epsilon"), "{text}");
    assert_eq!(flags("bim", &[]), [], "the default step reaches the surface");
    assert_eq!(flags("bim", &[short, ("steps", "1")]), [], "one step against one step says nothing");
    assert_eq!(flags("bim", &[short, ("loss", "cw")]), [], "another loss is another attack");
}

#[test]
fn square_on_a_masked_gradient_raises_the_flag() {
    let linear = Linear::mixed(3, SHAPE);
    // Differentiates to zero, but moves.
    let model = toys::function(|images| {
        let zero = images.flatten(1, -1).sum_dim_intlist([1i64].as_slice(), true, Kind::Float) * 0.0;
        linear.logits(&images.detach()) + zero
    });
    let images = toys::images(8, SHAPE);
    let labels = model.logits(&images).unwrap().argmax(1, false);
    let data = LabelledImages::new(images, labels).unwrap();
    let attacks = ["bim", "square"].map(|name| name.parse::<AttackConfig>().unwrap().build().unwrap());
    for mode in [Mode::Suite, Mode::Each] {
        let options = EvaluateOptions { mode, ..Default::default() };
        let report = run(&model, &data, &attacks, &threat(Norm::Linf, 0.2), &options);
        assert!(
            report.flags.iter().any(|flag| matches!(flag, Flag::BlackBoxBeatsWhiteBox { .. })),
            "{mode:?} {:?}",
            report.flags
        );
    }
}

/// Dark or bright, with a backward pass of its own that points the wrong way.
struct OwnBackward;

impl Classifier for OwnBackward {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        let bright = images.mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float);
        Ok(Tensor::stack(&[0.5 - &bright, bright - 0.5], 1))
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn gradient(&self, scalar: &Tensor, images: &Tensor, keep_graph: bool) -> Result<Tensor, GradientError> {
        Ok(-try_gradient(scalar, images, keep_graph)?)
    }
}

/// A model without a gradient: memory ran out, or its backward pass is broken.
struct NoBackward<'a>(&'a Tanh, &'static str);

impl Classifier for NoBackward<'_> {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        Ok(self.0.logits(images))
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn gradient(&self, _: &Tensor, _: &Tensor, _: bool) -> Result<Tensor, GradientError> {
        Err(GradientError::Failed(self.1.to_owned()))
    }
}

#[test]
fn too_little_memory_is_no_verdict_on_a_model() {
    let (model, data) = toy();
    let flag = |reason| {
        let square = [config("square", &[("queries", "2")]).build().unwrap()];
        let model = NoBackward(&model, reason);
        // The check of bounded outputs follows the gradient, too, and comes first.
        run(&model, &data, &square, &threat(Norm::Linf, 0.01), &EvaluateOptions::default()).flags.last().unwrap().name()
    };
    assert_eq!(flag("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), "check-failed");
    assert_eq!(flag("derivative for aten::sign is not implemented"), "no-gradient");
}

/// An image that FGSM would break becomes darker instead.
#[test]
fn a_model_may_have_a_backward_pass_of_its_own() {
    let data =
        LabelledImages::new(Tensor::full([1, 1, 2, 2], 0.48, (Kind::Float, Device::Cpu)), Tensor::from_slice(&[0i64]));
    let fgsm = [config("fgsm", &[]).build().unwrap()];
    let threat = threat(Norm::Linf, 8.0 / 255.0);
    let report = run(&OwnBackward, &data.unwrap(), &fgsm, &threat, &EvaluateOptions::default());
    assert_eq!(report.robust_accuracy(), 1.0);
    let margin = report.attacks[0].samples[0].margin;
    assert!((margin - 0.04).abs() < 1e-6, "{margin}: the clean image's is the smaller one");
}

/// The digits' network with a backward pass that points the wrong way.
struct Reversed(Digits);

impl Classifier for Reversed {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        self.0.logits(images)
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn gradient(&self, scalar: &Tensor, images: &Tensor, keep_graph: bool) -> Result<Tensor, GradientError> {
        Ok(-self.0.gradient(scalar, images, keep_graph)?)
    }
}

fn downhill(flags: &[Flag]) -> Vec<&str> {
    flags.iter().filter(|flag| flag.name() == "downhill").filter_map(Flag::attack).collect()
}

#[test]
fn a_gradient_that_points_the_wrong_way_is_flagged() {
    let reversed = Reversed(Digits::load());
    let data = reversed.0.data(30);
    let attacks =
        ["fgsm", "pgd", "cw-linf", "noise", "tpgd", "deepfool"].map(|name| config(name, &[]).build().unwrap());
    let options = EvaluateOptions { mode: Mode::Each, batch_size: 8, ..Default::default() };
    let threat = threat(Norm::Linf, 16.0 / 255.0);
    let report = run(&reversed, &data, &attacks, &threat, &options);
    assert_eq!(downhill(&report.flags), ["fgsm", "pgd", "cw-linf"], "{:?}", report.flags);
    let text = report.flags.iter().find(|flag| flag.name() == "downhill").unwrap().to_string();
    assert!(text.starts_with("the images of `fgsm` are classified more surely than the clean ones for "), "{text}");
    assert_eq!(downhill(&run(&reversed.0, &data, &attacks, &threat, &options).flags), [""; 0]);

    // Too few samples to say so, and another goal.
    let few = run(&reversed, &reversed.0.data(3), &attacks, &threat, &options);
    assert_eq!(downhill(&few.flags), [""; 0]);
    let aims = ThreatModel { goal: Goal::Targeted(TargetRule::Next), ..threat };
    let aimed = run(&reversed, &data, &attacks[1..2], &aims, &options);
    assert_eq!((downhill(&aimed.flags), aimed.attacks[0].stages[0].surer), (vec![], 0));

    // What was counted before an interruption counts.
    let mut state = String::new();
    let stopped = evaluate_with(&reversed, &data, &attacks, &threat, &options, &mut |event| match event {
        Event::Judged { report, attack: "pgd", done: 24, .. } => {
            state = serde_json::to_string(report).unwrap();
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped, Err(AttackError::Interrupted)));
    let resume = Some(serde_json::from_str(&state).unwrap());
    let resumed = run(&reversed, &data, &attacks, &threat, &EvaluateOptions { resume, ..options });
    assert_eq!(resumed.flags, report.flags);
    assert_eq!(resumed.attacks[1].stages[0].surer, report.attacks[1].stages[0].surer);
}

/// Neither where the gradient is right, at any radius, nor where it is zero and images end at random points.
#[test]
fn ordinary_and_flat_models_are_not_said_to_point_the_wrong_way() {
    let digits = Digits::load();
    let data = digits.data(20);
    let saturated = toys::fallible(|x| Ok(digits.logits(x)? * 1e4));
    let rounds = toys::fallible(|x| digits.logits(&((x * 16.0).round() / 16.0)));
    let models: [(&str, &dyn Classifier); 3] = [("as it is", &digits), ("saturated", &saturated), ("rounds", &rounds)];
    for (norm, epsilon) in
        [(Norm::Linf, 1.0 / 255.0), (Norm::Linf, 0.1), (Norm::Linf, 0.5), (Norm::L2, 1.0), (Norm::L2, 5.0)]
    {
        for (what, model) in models {
            let options = EvaluateOptions { mode: Mode::Each, ..Default::default() };
            let report = run(model, &data, &attacks(norm), &threat(norm, epsilon), &options);
            assert_eq!(downhill(&report.flags), [""; 0], "{what} {norm} {epsilon}");
            let surer = report.attacks.iter().flat_map(|entry| &entry.stages).map(|stage| stage.surer).sum::<usize>();
            assert!(what != "as it is" || surer == 0, "{surer} at {norm} {epsilon}");
        }
    }

    // Where the gradient is zero and noise alone makes the model surer.
    let valley = toys::function(|x| {
        let margin = ((x.detach() - 0.5).square() + x * 0.0).mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float);
        Tensor::stack(&[&margin + 0.001, margin * 0.0], 1)
    });
    let grey = Tensor::full([8, 1, 4, 4], 0.5, (Kind::Float, Device::Cpu));
    let grey = LabelledImages::new(grey, Tensor::zeros([8], (Kind::Int64, Device::Cpu))).unwrap();
    let pgd = [config("pgd", &[]).build().unwrap()];
    let report = run(&valley, &grey, &pgd, &threat(Norm::Linf, 0.1), &EvaluateOptions::default());
    assert_eq!(report.attacks[0].stages[0].surer, 8);
    assert!(report.flags.iter().any(|flag| flag.name() == "flat-model"), "{:?}", report.flags);
    assert_eq!(downhill(&report.flags), [""; 0]);
}

#[test]
fn checks_of_the_model_keep_to_the_batch_size() {
    let (model, data) = toy();
    let largest = Cell::new(0);
    let model = toys::fallible(|images| {
        let n = images.size()[0];
        largest.set(largest.get().max(n));
        if n > 2 { Err(ClassifierError::new("out of memory")) } else { Ok(model.logits(images)) }
    });
    let options = EvaluateOptions { batch_size: 2, ..Default::default() };
    let report = run(&model, &data, &[config("fgsm", &[]).build().unwrap()], &threat(Norm::Linf, 0.01), &options);
    assert_eq!((report.flags, largest.get()), (vec![], 2));
}

/// The first pass is the warm-up, and three follow for other checks; then images are driven up and down, with five passes
/// each, and the last pass is that of the gradient.
#[test]
fn a_check_that_the_model_fails_in_is_named() {
    let (model, data) = toy();
    let flags = |at| {
        let n_passes = Cell::new(0);
        let model = toys::fallible(|images| {
            n_passes.set(n_passes.get() + 1);
            if n_passes.get() == at { Err(ClassifierError::new("out of memory")) } else { Ok(model.logits(images)) }
        });
        run(
            &model,
            &data,
            &[config("fgsm", &[]).build().unwrap()],
            &threat(Norm::Linf, 0.01),
            &EvaluateOptions::default(),
        )
        .flags
    };
    assert_eq!(flags(0), []);
    for (passes, expected) in [(5..15, "bounded-outputs"), (15..16, "zero-gradient")] {
        for at in passes {
            let found = flags(at);
            let [Flag::CheckFailed { check, reason }] = &found[..] else { panic!("pass {at}: {found:?}") };
            assert_eq!((check.as_str(), reason.as_str()), (expected, "out of memory"), "pass {at}");
            assert_eq!(found[0].name(), "check-failed");
        }
    }
}
