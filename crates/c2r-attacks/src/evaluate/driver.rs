//! Runs attacks on the samples that are left and reports what happened to each.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use c2r_base::{Classifier, Goal, LabelledImages, Passes, Seed, TargetRule, ThreatModel, TooLong, host, loss};
use rand::Rng;
use tch::{Device, Tensor};

use crate::{
    attack::{Attack, Family},
    error::{AttackError, ConfigError},
    evaluate::{
        event::Event,
        flags::{climbs_from_label, flags_of_gradient, flags_of_model, flags_of_results, is_surer},
        judge::{Judged, Task, finite},
        parallel::Workers,
        report::{AttackEntry, AttackReport, Mode, Outcome, SampleOutcome, StageEntry},
        resume,
    },
    oracle::Oracle,
};

/// How an evaluation runs.
#[derive(Clone, Debug)]
pub struct EvaluateOptions {
    /// Where all noise comes from.
    pub seed: Seed,
    /// Samples per pass. Bounds memory and changes no result; [`default_batch_size`] has one for each device.
    pub batch_size: usize,
    /// How several attacks are combined.
    pub mode: Mode,
    /// Look for reasons to doubt the model before attacking it (docs/attacks/flags.md).
    pub self_check: bool,
    /// Threads that attack parts of a batch side by side, at least 1, if the model is on the CPU and can be
    /// replicated ([`Classifier::replica`]). While they run, each of them computes with one thread of
    /// libtorch. Changes no result but for float rounding.
    pub workers: usize,
    /// Attack images that are misclassified without an attack, too, and tell [`Event::Judged`] what became of them: for
    /// adversarial training, and for images to try on other models. In [`Mode::Suite`] the first attack does it, in
    /// [`Mode::Each`] every attack; of a suite, the first stage. They count as misclassified all the same, and nothing in the
    /// report changes. An evaluation that is resumed attacks them again.
    pub misclassified_too: bool,
    /// With [`TargetRule::Given`], the class that each sample should be taken for: one per sample, not its label. `None` for
    /// every other goal.
    pub targets: Option<Vec<i64>>,
    /// A report that [`Event::Judged`] or [`Event::Stopped`] showed, to continue from.
    pub resume: Option<AttackReport>,
    /// Set it from another thread or a signal handler to stop at the next pass through the model. The evaluation tells
    /// [`Event::Stopped`] and returns [`AttackError::Interrupted`]; the work on the batch that it was attacking is lost. Before
    /// the first batch of an attack there is nothing to continue from: it then returns the error alone. A `Break` of the
    /// observer stops after a batch instead, which can take minutes. Clones of these options share it.
    pub stop: Arc<AtomicBool>,
}

/// Values of the images of a full batch on a GPU: 1,024 images of CIFAR.
const BATCH_VALUES_ON_GPU: i64 = 1024 * 3 * 32 * 32;
/// Data of up to this many bytes is on the device while it is attacked; larger data goes there batch by batch.
const BYTES_ON_DEVICE: usize = 1 << 30;

/// Samples per pass by default, for images of `shape` (`[C, H, W]`): 128 on the CPU, whose cores have
/// their fill then; up to 1,024 on a GPU, fewer for images larger than CIFAR's.
pub fn default_batch_size(device: Device, shape: [i64; 3]) -> usize {
    let on_gpu = BATCH_VALUES_ON_GPU / shape.iter().product::<i64>().max(1);
    if device == Device::Cpu { 128 } else { on_gpu.clamp(64, 1024) as usize }
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        let workers = usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1);
        Self {
            seed: Seed::new(0),
            batch_size: default_batch_size(Device::Cpu, [3, 32, 32]),
            mode: Mode::Suite,
            self_check: true,
            workers,
            misclassified_too: false,
            targets: None,
            resume: None,
            stop: Arc::default(),
        }
    }
}

/// Attacks `model` on `data` and reports what happened to every sample.
///
/// Misclassified samples count as not robust and are not attacked, unless [`EvaluateOptions::misclassified_too`] asks for it.
/// Every proposal of an attack is
/// projected into the threat set and judged here, by a forward pass of its own. Beyond float rounding, a
/// sample's result for a seed depends on its image, label and position in `data` alone, to which its noise
/// belongs: batch size, workers and the other samples change nothing. So attacks that draw noise give other
/// results for data in another order.
///
/// # Errors
/// [`AttackError`]: labels outside the model's classes, a model that fails, logits of a wrong shape or dtype or not
/// finite (naming the sample), an attack that is not defined for the threat model or is there twice, a ball that holds every
/// image, a report to resume of other data or attacks, or a failed self-check.
pub fn evaluate(
    model: &dyn Classifier,
    data: &LabelledImages,
    attacks: &[Box<dyn Attack>],
    threat: &ThreatModel,
    options: &EvaluateOptions,
) -> Result<AttackReport, AttackError> {
    evaluate_with(model, data, attacks, threat, options, &mut |_| ControlFlow::Continue(()))
}

/// [`evaluate`] that tells `observer` about every batch; its `Break` stops the run.
///
/// # Errors
/// As [`evaluate`]; [`AttackError::Interrupted`] if the observer or [`EvaluateOptions::stop`] stops the run.
pub fn evaluate_with(
    model: &dyn Classifier,
    data: &LabelledImages,
    attacks: &[Box<dyn Attack>],
    threat: &ThreatModel,
    options: &EvaluateOptions,
    observer: &mut dyn FnMut(&Event<'_>) -> ControlFlow<()>,
) -> Result<AttackReport, AttackError> {
    let _no_grad = tch::no_grad_guard();
    let checked = threat.norm.check_length(threat.epsilon, data.image_shape());
    checked.map_err(|TooLong { length, norm, diameter, .. }| ConfigError::EpsilonCoversAll {
        epsilon: length,
        norm,
        diameter,
    })?;
    check_names(attacks, options.mode)?;
    check_threat(attacks, threat)?;
    check_targets(data, threat, options.targets.as_deref())?;
    let fingerprint = resume::fingerprint(data);
    let bytes = data.images().numel() * std::mem::size_of::<f32>();
    let on_device = (bytes <= BYTES_ON_DEVICE).then(|| data.to_device(model.device()));
    let data = on_device.as_ref().unwrap_or(data);
    let mut run = Evaluation { data, threat, options, batch_size: options.batch_size.max(1), observer };
    let mut report = match &options.resume {
        Some(report) => {
            resume::check(report, data, &fingerprint, attacks, threat, (options.seed, options.mode))?;
            check_classes(attacks, threat, report.classes)?;
            if options.targets.is_some() && report.targets != options.targets {
                return Err(AttackError::Resume("its targets differ".to_owned()));
            }
            report.clone()
        }
        None => run.clean_pass(model, attacks, fingerprint)?,
    };

    let mut workers = Workers::new(model, report.classes, options.workers, &options.stop);
    for (entry, attack) in attacks.iter().enumerate() {
        if report.attacks.len() == entry {
            let samples = first_outcomes(&report, options.mode);
            let (name, config) = (attack.name().to_owned(), attack.options());
            report.attacks.push(AttackEntry { name, config, stages: Vec::new(), samples });
        }
        let whole = std::slice::from_ref(attack);
        for (stage, attack) in attack.stages().unwrap_or(whole).iter().enumerate() {
            run.run_stage(&mut workers, attack.as_ref(), &mut report, (entry, stage))?;
        }
        if options.misclassified_too && (entry == 0 || options.mode == Mode::Each) {
            let first = attack.stages().and_then(<[_]>::first).unwrap_or(attack);
            run.attack_misclassified(&mut workers, first.as_ref(), &report, entry)?;
        }
    }
    flags_of_results(&mut report);
    Ok(report)
}

/// Refuses an attack with the same options twice, and where each attack is judged by itself, of the same name, which is all
/// that tells its result from others.
fn check_names(attacks: &[Box<dyn Attack>], mode: Mode) -> Result<(), ConfigError> {
    let same = |a: &dyn Attack, b: &dyn Attack| {
        a.name() == b.name() && (mode == Mode::Each || a.options().is_some() && a.options() == b.options())
    };
    for (at, attack) in attacks.iter().enumerate() {
        if attacks[..at].iter().any(|other| same(other.as_ref(), attack.as_ref())) {
            return Err(ConfigError::Twice { attack: attack.name().to_owned() });
        }
    }
    Ok(())
}

/// Refuses attacks that do not know the norm or the goal, before the model is asked anything.
fn check_threat(attacks: &[Box<dyn Attack>], threat: &ThreatModel) -> Result<(), ConfigError> {
    use ConfigError::{Option, SuiteOfOtherNorm, UnsupportedGoal, UnsupportedNorm};
    for attack in attacks {
        // What an attack says about the number of classes counts when the model's is known.
        let checked = attack.check(threat, i64::MAX);
        if let Err(UnsupportedNorm { .. } | UnsupportedGoal { .. } | SuiteOfOtherNorm { .. } | Option { .. }) = checked
        {
            return checked;
        }
    }
    Ok(())
}

/// Refuses targets that are not one class for each sample besides its label, or that the goal does not ask for.
fn check_targets(data: &LabelledImages, threat: &ThreatModel, targets: Option<&[i64]>) -> Result<(), AttackError> {
    let refuse = |reason: String| Err(AttackError::Targets(reason));
    let targets = match (threat.goal, targets) {
        (Goal::Targeted(TargetRule::Given), Some(targets)) => targets,
        (Goal::Targeted(TargetRule::Given), None) => return refuse("none are given".to_owned()),
        (goal, Some(_)) => return refuse(format!("classes are given, but the goal is {goal:?}")),
        (_, None) => return Ok(()),
    };
    let labels = host::to_vec::<i64>(data.labels());
    if targets.len() != labels.len() {
        return refuse(format!("there are {} for {} samples", targets.len(), labels.len()));
    }
    match targets.iter().zip(&labels).position(|(target, label)| target == label || *target < 0) {
        Some(at) if targets[at] < 0 => refuse(format!("that of sample {at} is negative ({})", targets[at])),
        Some(at) => refuse(format!("that of sample {at} is its label, {}", labels[at])),
        None => Ok(()),
    }
}

/// Refuses attacks that cannot run on a model with this many classes.
fn check_classes(attacks: &[Box<dyn Attack>], threat: &ThreatModel, classes: i64) -> Result<(), ConfigError> {
    attacks.iter().try_for_each(|attack| attack.check(threat, classes))
}

/// Outcomes before an entry's first stage.
fn first_outcomes(report: &AttackReport, mode: Mode) -> Vec<SampleOutcome> {
    if let (Mode::Suite, Some(before)) = (mode, report.attacks.last()) {
        return before.samples.iter().map(|sample| SampleOutcome { stages: 0, ..sample.clone() }).collect();
    }
    report
        .clean_correct()
        .zip(&report.clean_predictions)
        .enumerate()
        .map(|(position, (correct, &prediction))| SampleOutcome {
            outcome: if correct { Outcome::Survived } else { Outcome::CleanError },
            prediction,
            distance: 0.0,
            margin: report.clean_margins[position],
            queries: 0,
            stages: 0,
        })
        .collect()
}

/// What one evaluation is about.
struct Evaluation<'a> {
    data: &'a LabelledImages,
    threat: &'a ThreatModel,
    options: &'a EvaluateOptions,
    batch_size: usize,
    observer: &'a mut dyn FnMut(&Event<'_>) -> ControlFlow<()>,
}

impl Evaluation<'_> {
    fn tell(&mut self, event: &Event<'_>) -> Result<(), AttackError> {
        if (self.observer)(event).is_break() { Err(AttackError::Interrupted) } else { Ok(()) }
    }

    /// Runs one stage of an entry on the samples that are left.
    fn run_stage(
        &mut self,
        workers: &mut Workers<'_>,
        attack: &dyn Attack,
        report: &mut AttackReport,
        (entry, stage): (usize, usize),
    ) -> Result<(), AttackError> {
        let left = |sample: &SampleOutcome| sample.outcome == Outcome::Survived && sample.stages == stage;
        let samples = &report.attacks[entry].samples;
        let open: Vec<usize> = (0..samples.len()).filter(|&position| left(&samples[position])).collect();
        if report.attacks[entry].stages.len() == stage {
            report.attacks[entry].stages.push(StageEntry {
                attack: attack.name().to_owned(),
                family: attack.family(),
                attacked: 0,
                survivors: 0,
                counts: Passes::default(),
                seconds: 0.0,
                repaired_gradients: 0,
                surer: 0,
            });
        }
        let done = report.attacks[entry].stages[stage].attacked;
        let total = done + open.len();
        if !open.is_empty() {
            self.tell(&Event::Started { entry, attack: attack.name(), done, total })?;
        }
        for part in open.chunks(self.batch_size) {
            let start = Instant::now();
            let judged = self.attack_part(workers, attack, report, entry, part)?;
            let Judged { images, broken, predictions, distances, margins, queries, passes, repaired } = judged;
            let climbs = climbs_from_label(attack.name(), attack.family(), self.threat.goal);
            let clean = |position: usize| report.clean_margins[position];
            let surer =
                part.iter().zip(&margins).filter(|&(&position, &margin)| is_surer(margin, clean(position))).count();
            let result = &mut report.attacks[entry];
            for (row, &position) in part.iter().enumerate() {
                let sample = &mut result.samples[position];
                sample.stages = stage + 1;
                sample.prediction = predictions[row];
                sample.distance = distances[row];
                sample.margin = sample.margin.min(margins[row]);
                sample.queries += queries[row];
                if broken[row] {
                    sample.outcome = Outcome::Broken { by: attack.name().to_owned() };
                }
            }
            let done = &mut result.stages[stage];
            done.attacked += part.len();
            done.survivors += broken.iter().filter(|broken| !**broken).count();
            done.counts += passes;
            done.repaired_gradients += repaired.iter().filter(|repaired| **repaired).count();
            done.surer += if climbs { surer } else { 0 };
            done.seconds += start.elapsed().as_secs_f64();
            let done = done.attacked;
            let (positions, attack) = (part, attack.name());
            self.tell(&Event::Judged { entry, attack, done, total, positions, images: &images, report: &*report })?;
        }
        Ok(())
    }

    /// Attacks what is misclassified, with no effect on the report.
    fn attack_misclassified(
        &mut self,
        workers: &mut Workers<'_>,
        attack: &dyn Attack,
        report: &AttackReport,
        entry: usize,
    ) -> Result<(), AttackError> {
        let correct = report.clean_correct().enumerate();
        let wrong: Vec<usize> = correct.filter(|(_, correct)| !correct).map(|(position, _)| position).collect();
        let (mut done, total, name) = (0, wrong.len(), attack.name());
        for part in wrong.chunks(self.batch_size) {
            let images = self.attack_part(workers, attack, report, entry, part)?.images;
            done += part.len();
            self.tell(&Event::Judged { entry, attack: name, done, total, positions: part, images: &images, report })?;
        }
        Ok(())
    }

    /// Attacks and judges the samples at the positions of `part`.
    fn attack_part(
        &mut self,
        workers: &mut Workers<'_>,
        attack: &dyn Attack,
        report: &AttackReport,
        entry: usize,
        part: &[usize],
    ) -> Result<Judged, AttackError> {
        let tasks = workers
            .split(part)
            .map(|part| Task::new(part, self.data, report.targets.as_deref(), workers.device()))
            .collect();
        let run = || workers.run(attack, self.threat, self.options.seed, tasks);
        // libtorch's operators panic where memory runs out.
        let judged = panic::catch_unwind(AssertUnwindSafe(run));
        if !matches!(judged, Ok(Ok(_))) {
            let stopped = self.options.stop.load(Ordering::Relaxed);
            // The evaluation ends here, whatever the observer returns.
            let _ = (self.observer)(&Event::Stopped { entry, report });
            if stopped && judged.is_ok() {
                return Err(AttackError::Interrupted);
            }
        }
        judged.unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    /// Classifies the clean images, chooses targets, and looks for reasons to doubt the model.
    ///
    /// The first batch is classified twice, and timed the second time: the first one warms up and is not the clean pass.
    fn clean_pass(
        &mut self,
        model: &dyn Classifier,
        attacks: &[Box<dyn Attack>],
        fingerprint: String,
    ) -> Result<AttackReport, AttackError> {
        let start = Instant::now();
        let Self { data, threat, options, batch_size, .. } = *self;
        let n = data.len();
        let all: Vec<usize> = (0..n).collect();
        let ids: Vec<u64> = (0..n as u64).collect();
        let mut oracle = Oracle::new(model, "clean", &ids);
        let first = &all[..batch_size.min(n)];
        let (images, labels) = data.select(first, model.device());
        let logits = oracle.logits(&images, first)?;
        let classes = logits.size()[1];
        data.check_classes(classes)?;
        check_classes(attacks, threat, classes)?;
        let highest = options.targets.iter().flatten().max().filter(|&&target| target >= classes);
        if let Some(target) = highest {
            return Err(AttackError::Targets(format!("{target} is one, and the model has {classes} classes")));
        }
        let mut flags = Vec::new();
        if options.self_check {
            flags = flags_of_model(&mut oracle, first, &images, &logits, threat, options.seed)?;
            // Clean images and noise need none.
            if attacks.iter().any(|attack| attack.family() != Family::Sanity) {
                flags.extend(flags_of_gradient(&mut oracle, first, &images, &labels, &logits));
            }
        }
        self.tell(&Event::Clean { done: 0, total: n })?;
        let check_seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let mut clean_predictions = Vec::with_capacity(n);
        let mut clean_margins = Vec::with_capacity(n);
        let mut targets = Vec::new();
        for part in all.chunks(batch_size) {
            let (images, labels) = data.select(part, model.device());
            let logits = oracle.logits(&images, part)?;
            let got = logits.size()[1];
            if got != classes {
                return Err(AttackError::ClassesChanged { expected: classes, got });
            }
            clean_predictions.extend(host::to_vec::<i64>(&logits.argmax(1, false)));
            clean_margins.extend(host::to_vec::<f32>(&loss::margin(&logits, &labels)).into_iter().map(finite));
            if let Some(given) = &options.targets {
                targets.extend(part.iter().map(|&position| given[position]));
            } else if let Goal::Targeted(rule) = threat.goal {
                let part_ids: Vec<u64> = part.iter().map(|&position| position as u64).collect();
                let chosen = targets_for(rule, &logits, &labels, &part_ids, options.seed);
                targets.extend(host::to_vec::<i64>(&chosen));
            }
            self.tell(&Event::Clean { done: clean_predictions.len(), total: n })?;
            if options.stop.load(Ordering::Relaxed) {
                return Err(AttackError::Interrupted);
            }
        }
        Ok(AttackReport {
            schema_version: AttackReport::SCHEMA_VERSION,
            threat: *threat,
            mode: options.mode,
            seed: options.seed,
            batch_size,
            classes,
            labels: host::to_vec::<i64>(data.labels()),
            images_fingerprint: fingerprint,
            targets: matches!(threat.goal, Goal::Targeted(_)).then_some(targets),
            clean_predictions,
            clean_margins,
            clean_counts: oracle.finish(Tensor::new()).passes,
            clean_seconds: start.elapsed().as_secs_f64(),
            check_seconds,
            attacks: Vec::new(),
            flags,
            versions: BTreeMap::from([("c2r-attacks".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]),
        })
    }
}

/// The target class of each sample; never its label.
///
/// * `logits`: f32 `[N, K]` of the clean images; `labels`: i64 `[N]`; `ids`: N sample ids.
///
/// Returns i64 `[N]`.
fn targets_for(rule: TargetRule, logits: &Tensor, labels: &Tensor, ids: &[u64], seed: Seed) -> Tensor {
    let classes = logits.size()[1];
    let at = labels.unsqueeze(1);
    match rule {
        TargetRule::Next => (labels + 1).remainder(classes),
        TargetRule::Random => {
            let steps: Vec<i64> = ids.iter().map(|&id| seed.stream("target", id).random_range(1..classes)).collect();
            (labels + Tensor::from_slice(&steps).to_device(labels.device())).remainder(classes)
        }
        TargetRule::LeastLikely => logits.scatter_value(1, &at, f64::INFINITY).argmin(1, false),
        TargetRule::SecondBest => logits.scatter_value(1, &at, f64::NEG_INFINITY).argmax(1, false),
        TargetRule::Given => panic!("the caller has chosen, and what it chose has been checked"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four classes; the label of the first image has its largest logit, that of the second one its smallest.
    #[test]
    fn targets_are_what_their_rule_says_and_never_the_label() {
        let logits = Tensor::from_slice(&[0.0f32, 1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 0.0]).view([2, 4]);
        let labels = Tensor::from_slice(&[3i64, 3]);
        let of = |rule, ids: [u64; 2]| host::to_vec::<i64>(&targets_for(rule, &logits, &labels, &ids, Seed::new(1)));
        assert_eq!(of(TargetRule::Next, [0, 1]), [0, 0]);
        assert_eq!(of(TargetRule::LeastLikely, [0, 1]), [0, 2]);
        assert_eq!(of(TargetRule::SecondBest, [0, 1]), [2, 0]);
        let mut counts = [0; 4];
        for id in 0..300 {
            of(TargetRule::Random, [2 * id, 2 * id + 1]).into_iter().for_each(|target| counts[target as usize] += 1);
        }
        assert!(counts[3] == 0 && counts[..3].iter().all(|count| (150..250).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_gpu_takes_as_many_values_as_1024_images_of_cifar() {
        for (shape, expected) in [([3, 32, 32], 1024), ([1, 8, 8], 1024), ([3, 64, 64], 256), ([3, 224, 224], 64)] {
            assert_eq!(default_batch_size(Device::Cuda(0), shape), expected, "{shape:?}");
            assert_eq!(default_batch_size(Device::Cpu, shape), 128);
        }
    }
}
