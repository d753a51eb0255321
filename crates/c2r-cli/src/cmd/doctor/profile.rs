//! `c2r doctor --profile`: what a step of a long command asks of libtorch, reads back, copies and takes, next to the time
//! of its convolutions alone.

use std::{path::PathBuf, time::Instant};

use anyhow::Context;
use c2r_attacks::{Attack, AttackConfig, EvaluateOptions, Mode, evaluate};
use c2r_base::{Epsilon, LabelledImages, Norm, Seed, ThreatModel};
use c2r_data::{Dataset, Split};
use c2r_distill::{DistillConfig, DistillEvent, Distillation, METHODS, Work, profiles};
use c2r_kernels::count;
use c2r_models::{ConvNetSpec, Frozen, Model, ModelSpec};
use c2r_run::exit;
use c2r_train::{Ahead, Length, Protocol, Targets, TrainSource, Trainer, model_input};
use serde::Serialize;
use tch::Device;
use toml::Value;

use crate::{
    cmd::train,
    config,
    throughput::{self, Throughput, synchronize},
};

/// What is profiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Profiled {
    /// An update of the images by C2R (profile `faithful`), with a training step of one of the networks that it uses
    Distill,
    /// A natural training step, and one of PGD-AT
    Train,
    /// What each attack costs per call of the attacked network
    Attack,
}

/// What it is profiled on.
pub(super) struct Setting {
    pub(super) model: ModelSpec,
    pub(super) dataset: Dataset,
    /// Real images per class (distill), images per step (train), attacked images.
    pub(super) n: usize,
    /// Names of the attacks.
    pub(super) attacks: Vec<String>,
    /// Changes of the distillation's configuration, as `--set` has them.
    pub(super) sets: Vec<String>,
    /// Where what an update reads, and its losses, are written for another implementation.
    pub(super) write: Option<PathBuf>,
    /// Where the timeline of a run of each row is written.
    pub(super) trace: Option<PathBuf>,
    pub(super) device: Device,
    /// The least time of a measurement, in seconds.
    pub(super) patience: f64,
}

/// A run of one or more steps; the numbers are those of the run.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// E.g. `update of C2R`.
    what: String,
    steps: u64,
    /// `None` where it was run only once.
    counts: Option<Counted>,
    /// Images sent through networks.
    images: Work,
    /// Of the first run in this process; of PGD, from before the network was made and the images were sent to the device.
    first_seconds: f64,
    /// Of PGD: the attack and its judging in that run, after the clean images were classified.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_attack_seconds: Option<f64>,
    /// Median of all runs but the first, or the time of the first if it is the only one.
    seconds: f64,
    /// Their mean: some steps draw noise for many more.
    mean_seconds: f64,
    /// What the convolutions of these images take alone.
    convolution_seconds: f64,
    /// What is left after an attack, in `[0, 1]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    robust_accuracy: Option<f64>,
}

/// What [`count::during`] counts.
#[derive(Clone, Copy, Debug, Serialize)]
struct Counted {
    calls: u64,
    reads: u64,
    copies: u64,
    copied_bytes: u64,
}

/// Runs after the first that are timed, at least.
const TIMED: usize = 3;
/// The same for training steps on a GPU, where one that draws noise for the steps after it takes much longer than those: two
/// blocks of such steps.
const TIMED_ON_GPU: usize = 2 * Ahead::MOST_STEPS as usize;
/// Real images of each class, at least: four for each of ten stored images.
const PER_CLASS: usize = 40;
/// Training steps that fill the pool, and updates until one of its networks is replaced.
const POOL_STEPS: i64 = 10;
/// Rounds of the search for the radius.
const HALVINGS: usize = 8;
/// Images per pass when convolutions are timed alone, at most.
const CONVOLVED_AT_ONCE: usize = 1024;

/// Random images under the name of CIFAR-10: what is measured does not depend on what they show.
pub(super) fn random_images(shape: [i64; 3], n_classes: usize, n: usize) -> anyhow::Result<Dataset> {
    let [channels, height, width] = shape;
    let mut spec = c2r_data::spec("cifar10")?;
    (spec.channels, spec.height, spec.width) = (channels, height, width);
    let repeated = |values: &[f64]| values.iter().copied().cycle().take(channels as usize).collect();
    (spec.mean, spec.std) = (repeated(&spec.mean), repeated(&spec.std));
    spec.classes = (0..n_classes).map(|class| class.to_string()).collect();
    let mut state = 1u32;
    let mut split = |per_class: usize| -> anyhow::Result<Split> {
        let n = per_class * n_classes;
        let pixels = (0..n as i64 * channels * height * width).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        let sides = (n, channels as usize, height as usize, width as usize);
        let images = ndarray::Array4::from_shape_vec(sides, pixels.collect()).context("random images")?;
        Ok(Split::new(images, (0..n).map(|at| (at % n_classes) as i64).collect(), n_classes)?)
    };
    Ok(Dataset { spec, train: split(n.max(PER_CLASS))?, test: split(n.div_ceil(n_classes))?, notes: Vec::new() })
}

/// What one run did.
#[derive(Clone, Copy)]
struct Run {
    steps: u64,
    images: Work,
    robust_accuracy: Option<f64>,
}

impl Run {
    const fn step(images: Work) -> Self {
        Self { steps: 1, images, robust_accuracy: None }
    }
}

/// Runs it for the first time, then until it is timed, `least` times or more, then to count. With a `least` of 0 it is run only
/// once.
fn measure(
    what: &str,
    least: usize,
    convolutions: &Throughput,
    setting: &Setting,
    run: &mut dyn FnMut() -> anyhow::Result<Run>,
) -> anyhow::Result<Row> {
    let mut timed = || {
        synchronize(setting.device);
        let start = Instant::now();
        let done = run()?;
        synchronize(setting.device);
        anyhow::Ok((done, start.elapsed().as_secs_f64()))
    };
    let (first, first_seconds) = timed()?;
    let (once, mut later) = (least == 0, Vec::new());
    while !once && (later.len() < least || later.iter().sum::<f64>() < setting.patience) {
        later.push(timed()?.1);
    }
    later.sort_by(f64::total_cmp);
    let mean = later.iter().sum::<f64>() / later.len() as f64;
    if let Some(folder) = &setting.trace {
        let file = folder.join(format!("{}.json", what.replace(' ', "-")));
        let traced = || {
            let done = run();
            synchronize(setting.device);
            done
        };
        c2r_kernels::trace(setting.device, &file, traced)
            .with_context(|| format!("cannot write {}", file.display()))??;
    }
    let mut counts = None;
    if !once {
        let (done, counted) = count::during(setting.device, run);
        done?;
        let count::Counts { calls, reads, copies, copied_bytes } = counted;
        counts = Some(Counted { calls, reads, copies, copied_bytes });
    }
    Ok(Row {
        what: what.to_owned(),
        steps: first.steps,
        counts,
        images: first.images,
        first_seconds,
        first_attack_seconds: None,
        seconds: later.get(later.len() / 2).copied().unwrap_or(first_seconds),
        mean_seconds: if once { first_seconds } else { mean },
        convolution_seconds: convolutions.seconds(&first.images),
        robust_accuracy: first.robust_accuracy,
    })
}

/// Profiles it.
///
/// # Errors
/// For networks other than the ConvNet, whose convolutions alone are not known here.
pub(super) fn rows(what: Profiled, setting: &Setting) -> anyhow::Result<Vec<Row>> {
    let ModelSpec::ConvNet(layers) = setting.model else {
        return Err(exit::usage(format!(
            "--profile takes a ConvNet, and {} is not one; choose another --model",
            setting.model
        )));
    };
    match what {
        Profiled::Distill => distill(setting, &layers),
        Profiled::Train => train(setting, &layers),
        Profiled::Attack => attack(setting, &layers),
    }
}

/// The speed of the convolutions alone, in passes of up to `n` images.
fn convolutions(setting: &Setting, layers: &ConvNetSpec, n: usize) -> Throughput {
    let n = n.min(CONVOLVED_AT_ONCE);
    throughput::convolutions(layers, &setting.dataset.spec, n, setting.device, setting.patience / 3.0)
}

fn distill(setting: &Setting, layers: &ConvNetSpec) -> anyhow::Result<Vec<Row>> {
    let Setting { model, dataset, n, sets, write, device, .. } = setting;
    let own: [(&str, Value); 6] = [
        ("model", model.to_string().into()),
        ("matching.real-per-class", (*n as i64).into()),
        ("pool.trajectories", 1.into()),
        ("pool.snapshots", 2.into()),
        ("pool.min-steps", 1.into()),
        ("pool.max-steps", POOL_STEPS.into()),
    ];
    let mut changes: Vec<(String, Value)> = own.map(|(key, value)| (key.to_owned(), value)).into();
    changes.extend(config::assignments(sets)?);
    let (config, _) = DistillConfig::resolve_with(METHODS, profiles::profile("faithful")?, &dataset.spec, &changes)
        .map_err(|error| exit::coded(exit::USAGE, error))?;
    let [none, one] = [0, 1].map(|iterations| {
        let mut config = config.clone();
        config.common.iterations = iterations;
        config.work(dataset.spec.classes.len(), dataset.train.len())
    });
    let images = Work {
        forward: one.forward - none.forward,
        input_gradient: one.input_gradient - none.input_gradient,
        training: one.training - none.training,
    };
    let mut distillation = Distillation::new(config, dataset, *device)?;
    // The first update fills the queue.
    while !matches!(distillation.step()?, Some(DistillEvent::Images { .. }) | None) {}
    if let Some(path) = write {
        let mut file = distillation.state()?;
        let everything: Vec<usize> = (0..dataset.train.len()).collect();
        let (images, labels) = dataset.train.batch(&everything, Device::Cpu);
        file.tensors.extend([("real-images".to_owned(), images), ("real-labels".to_owned(), labels)]);
        distillation.step()?;
        if let Some(report) = distillation.report()? {
            file.header.insert("report".to_owned(), serde_json::to_string(&report)?);
        }
        file.write(path)?;
    }
    let convolutions = convolutions(setting, layers, CONVOLVED_AT_ONCE);
    let mut update = || {
        distillation.step()?;
        Ok(Run::step(images))
    };
    Ok(vec![measure("update of C2R", TIMED, &convolutions, setting, &mut update)?])
}

fn train(setting: &Setting, layers: &ConvNetSpec) -> anyhow::Result<Vec<Row>> {
    let Setting { model, dataset, n, device, .. } = setting;
    let images = dataset.train.subset_per_class(PER_CLASS).to_labelled();
    let convolutions = convolutions(setting, layers, *n);
    let step_of = |(what, protocol): (&str, Protocol)| {
        let mut config = protocol.config();
        (config.batch_size, config.dsa) = (*n, dataset.spec.dsa.clone());
        if let Some(adversarial) = &mut config.adversarial {
            adversarial.epsilon = dataset.spec.epsilon;
        }
        config.length = Length::Steps(1);
        let done = Run::step(train::work(&config, images.len()));
        // As many as a training may have, so that it does not end while it is measured.
        config.length = Length::Steps(i32::MAX as u64);
        let mut network = Model::new(model, &model_input(&dataset.spec), Seed::new(0), *device)?;
        let source = TrainSource::new(&images, Targets::Hard);
        let mut trainer = Trainer::new(&mut network, &source, &config, Seed::new(0))?;
        let least = if device.is_cuda() { TIMED_ON_GPU } else { TIMED };
        measure(what, least, &convolutions, setting, &mut || {
            trainer.step()?;
            Ok(done)
        })
    };
    [("natural training", Protocol::Natural), ("PGD-AT", Protocol::PgdAt)].into_iter().map(step_of).collect()
}

fn attack(setting: &Setting, layers: &ConvNetSpec) -> anyhow::Result<Vec<Row>> {
    let Setting { model, dataset, n, attacks, device, .. } = setting;
    let images = dataset.test.to_labelled();
    // From here on things are used for the first time, and made ready, compiled and compared for that.
    let start = Instant::now();
    let network = Frozen::new(Model::new(model, &model_input(&dataset.spec), Seed::new(0), *device)?);
    // Labelled by the network itself, so that every image is attacked.
    let (images, _) = images.select(&(0..images.len().min(*n)).collect::<Vec<_>>(), *device);
    let labels = {
        let _no_grad = tch::no_grad_guard();
        network.logits(&images).argmax(1, false)
    };
    let images = LabelledImages::new(images, labels)?;
    let options = EvaluateOptions {
        batch_size: *n,
        mode: Mode::Each,
        self_check: false,
        workers: 1,
        ..EvaluateOptions::default()
    };
    let run = |attack: &AttackConfig, epsilon: f64| {
        let attacks: [Box<dyn Attack>; 1] = [attack.build()?];
        let threat = ThreatModel::untargeted(Norm::Linf, epsilon.to_string().parse::<Epsilon>()?);
        anyhow::Ok(evaluate(&network, &images, &attacks, &threat, &options)?)
    };
    // A network that nothing has trained has margins of its own: half of the images are to survive PGD.
    let pgd: AttackConfig = "pgd".parse()?;
    let (mut low, mut high) = (1e-5f64, 0.25f64);
    let mut first = None;
    for _ in 0..HALVINGS {
        let middle = (low * high).sqrt();
        let report = run(&pgd, middle)?;
        first.get_or_insert_with(|| (start.elapsed().as_secs_f64(), report.attacks[0].seconds()));
        if report.robust_accuracy() > 0.5 { low = middle } else { high = middle }
    }
    let epsilon = (low * high).sqrt();
    let convolutions = convolutions(setting, layers, images.len());
    let row_of = |name: &String| {
        let mut config: AttackConfig = name.parse()?;
        if name == "vmi-fgsm" {
            config.set("neighbours", "5")?;
        }
        let least = if name.starts_with("autoattack") { 0 } else { TIMED };
        let mut row = measure(name, least, &convolutions, setting, &mut || {
            let report = run(&config, epsilon)?;
            let passes = report.counts();
            let (forward, backward) = (passes.forward_images as f64, passes.backward_images as f64);
            let images = Work { forward, input_gradient: backward, training: 0.0 };
            Ok(Run { steps: passes.forward_calls, images, robust_accuracy: Some(report.robust_accuracy()) })
        })?;
        if let (Some((whole, attack)), "pgd") = (first, name.as_str()) {
            (row.first_seconds, row.first_attack_seconds) = (whole, Some(attack));
        }
        Ok(row)
    };
    attacks.iter().map(row_of).collect()
}

/// The rows as a table of numbers per step.
pub(super) fn table(rows: &[Row]) -> Vec<String> {
    let line = |[what, cells @ ..]: [String; 10]| {
        format!("{what:<20}{}", cells.iter().map(|cell| format!("{cell:>10}")).collect::<String>())
    };
    let heading =
        ["per step of", "calls", "reads", "copies", "kB copied", "forward", "backward", "ms", "mean", "share"];
    let mut lines = vec![line(heading.map(str::to_owned))];
    lines.extend(rows.iter().map(|row| {
        let steps = row.steps.max(1) as f64;
        let counted = |of: fn(&Counted) -> u64, unit: f64| {
            row.counts.as_ref().map_or("-".to_owned(), |counts| format!("{:.1}", of(counts) as f64 / unit / steps))
        };
        let Work { forward, input_gradient, training } = row.images;
        line([
            row.what.clone(),
            counted(|counts| counts.calls, 1.0),
            counted(|counts| counts.reads, 1.0),
            counted(|counts| counts.copies, 1.0),
            counted(|counts| counts.copied_bytes, 1e3),
            format!("{:.0}", (forward + training) / steps),
            format!("{:.0}", (input_gradient + training) / steps),
            format!("{:.2}", 1e3 * row.seconds / steps),
            format!("{:.2}", 1e3 * row.mean_seconds / steps),
            format!("{:.0} %", 100.0 * row.convolution_seconds / row.seconds),
        ])
    }));
    lines
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn numbers_are_per_step_and_the_share_is_of_the_time() {
        let counts = Counted { calls: 30, reads: 5, copies: 10, copied_bytes: 20_000 };
        let images = Work { forward: 100.0, input_gradient: 50.0, training: 10.0 };
        let row = Row {
            what: "x".into(),
            steps: 10,
            counts: Some(counts),
            images,
            first_seconds: 9.0,
            first_attack_seconds: None,
            seconds: 0.2,
            mean_seconds: 0.25,
            convolution_seconds: 0.05,
            robust_accuracy: None,
        };
        let words = |row: Row| table(&[row])[1].split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
        assert_eq!(words(row), "x 3.0 0.5 1.0 2.0 11 6 20.00 25.00 25 %");
    }

    /// The passes are those that the definitions give by hand.
    #[test]
    fn every_step_is_counted_with_its_images() {
        let profiled = |what, attack: &str| {
            let dataset = c2r_data::load("digits", None).unwrap();
            let (model, attacks) = (ModelSpec::convnet(2, 8), vec![attack.to_owned()]);
            let (sets, write, trace, device) = (vec!["ipc=1".to_owned()], None, None, Device::Cpu);
            rows(what, &Setting { model, dataset, n: 8, attacks, sets, write, trace, device, patience: 0.0 }).unwrap()
        };
        let images = |forward, input_gradient, training| Work { forward, input_gradient, training };
        let train = profiled(Profiled::Train, "pgd");
        assert_eq!(train[0].images, images(0.0, 0.0, 8.0));
        assert_eq!(train[1].images, images(56.0, 56.0, 8.0), "seven steps of PGD");
        // Real images: one gradient, two candidates, two views. Synthetic: the same attack, two views with gradient. The pool's
        // batch of 64: attacked, and learned.
        let distill = profiled(Profiled::Distill, "pgd");
        let (real, synthetic, pool) = (80.0, 10.0, 64.0);
        let forward = real * 5.0 + synthetic * 5.0 + pool * 3.0;
        assert_eq!(distill[0].images, images(forward, real + 3.0 * synthetic + pool, pool));
        // The clean pass, once more to warm up, ten steps, and the pass that judges.
        let attack = profiled(Profiled::Attack, "pgd");
        assert_eq!((attack[0].images, attack[0].steps), (images(104.0, 80.0, 0.0), 13));
        let alone = attack[0].first_attack_seconds.expect("it is PGD");
        assert!(0.0 < alone && alone < attack[0].first_seconds && train[0].first_attack_seconds.is_none());
        for row in train.iter().chain(&distill).chain(&attack) {
            let counts = row.counts.expect("it was run more than once");
            assert!(counts.calls > 2 * row.steps && row.seconds > 0.0 && row.convolution_seconds > 0.0, "{row:?}");
        }
    }

    /// One step in four does the work of all, as one that draws noise ahead.
    #[test]
    fn the_mean_counts_what_the_median_leaves_out() {
        let dataset = c2r_data::load("digits", None).unwrap();
        let (model, attacks, sets) = (ModelSpec::convnet(2, 8), Vec::new(), Vec::new());
        let (write, trace, device) = (None, None, Device::Cpu);
        let setting = Setting { model, dataset, n: 8, attacks, sets, write, trace, device, patience: 0.0 };
        let speed = Throughput { forward: 1.0, input_gradient: 1.0, training: 1.0, batch_size: 1 };
        let runs = Cell::new(0);
        let mut step = || {
            runs.set(runs.get() + 1);
            if runs.get() % 4 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(40));
            }
            Ok(Run::step(Work { forward: 1.0, input_gradient: 0.0, training: 0.0 }))
        };
        let row = measure("x", 8, &speed, &setting, &mut step).unwrap();
        assert_eq!(runs.get(), 10, "one before what is timed, and one to count");
        assert!(row.mean_seconds >= 0.01 && row.mean_seconds > row.seconds, "{row:?}");
        let once = measure("x", 0, &speed, &setting, &mut step).unwrap();
        assert!(runs.get() == 11 && once.mean_seconds == once.first_seconds && once.counts.is_none());
    }

    #[test]
    fn random_images_have_the_shape_that_was_asked_for() {
        let dataset = random_images([1, 8, 8], 3, 7).unwrap();
        assert_eq!((dataset.train.len(), dataset.test.len()), (3 * PER_CLASS, 9));
        assert_eq!((dataset.spec.shape(), dataset.spec.mean.len(), dataset.spec.std.len()), ([1, 8, 8], 1, 1));
        let bytes: std::collections::BTreeSet<u8> = dataset.train.images().iter().copied().collect();
        assert!(bytes.len() > 200, "they are random: {}", bytes.len());
    }
}
