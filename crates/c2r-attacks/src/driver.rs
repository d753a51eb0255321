//! Runs attacks on samples, projects what they propose, and judges it.

use std::{collections::BTreeMap, ops::ControlFlow, time::Instant};

use c2r_base::{Classifier, Goal, LabelledImages, Passes, Seed, TargetRule, ThreatModel, loss};
use rand::Rng;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{
    attack::{Attack, AttackError, Family, Oracle, positions},
    crew::{Crew, Judged, Task},
    flags::Flag,
    report::{AttackEntry, AttackReport, Outcome, SampleOutcome, StageEntry},
};

/// How several attacks are combined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Each attack runs on what the ones before it left: robust accuracy against all of them.
    #[default]
    Suite,
    /// Each attack runs on every correctly classified sample: one robust accuracy per attack.
    Each,
}

/// How [`evaluate`] runs.
#[derive(Clone, Debug)]
pub struct EvaluateOptions {
    /// Where all noise comes from.
    pub seed: Seed,
    /// Samples per pass. Bounds memory and changes no result.
    pub batch_size: usize,
    /// How several attacks are combined.
    pub mode: Mode,
    /// Look for reasons to doubt the model before attacking it (docs/attacks/flags.md).
    pub self_check: bool,
    /// Threads that attack parts of a batch side by side, at least 1, if the model is on the CPU and can be
    /// replicated ([`Classifier::replica`]). While they run, each of them computes with one thread of
    /// libtorch. Changes no result but for float rounding.
    pub workers: usize,
    /// A report that [`Event::Judged`] showed, to continue from.
    pub resume: Option<AttackReport>,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        let workers = usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1);
        Self { seed: Seed::new(0), batch_size: 128, mode: Mode::Suite, self_check: true, workers, resume: None }
    }
}

/// What [`evaluate`] tells while it runs.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Clean images were classified.
    Clean {
        /// So far.
        done: usize,
        /// Altogether.
        total: usize,
    },
    /// A batch was attacked and judged.
    Judged {
        /// Index of the entry in the report.
        entry: usize,
        /// Name of the stage.
        attack: &'a str,
        /// Samples that this stage has been run on.
        done: usize,
        /// Samples that it will be run on.
        total: usize,
        /// Positions of the batch's samples in the data.
        positions: &'a [usize],
        /// f32 `[n, C, H, W]`: the images that were judged.
        images: &'a Tensor,
        /// The report so far; complete enough to resume from.
        report: &'a AttackReport,
    },
}

/// The answer of an observer: go on, or stop with [`AttackError::Interrupted`].
pub type Answer = ControlFlow<()>;

/// Attacks `model` on `data` and reports what happened to every sample.
///
/// Misclassified samples count as not robust and are not attacked. Every proposal of an attack is
/// projected into the threat set and judged here, by a forward pass of its own. Results for a seed do
/// not depend on the batch size or on the order of the samples beyond float rounding; a sample's
/// noise belongs to its position in `data`.
///
/// # Errors
/// [`AttackError`]: labels outside the model's classes, logits of a wrong shape or dtype or not finite
/// (naming the sample), an attack that is not defined for the threat model, a failed self-check, or
/// an observer that stops the run.
pub fn evaluate(
    model: &dyn Classifier,
    data: &LabelledImages,
    attacks: &[Box<dyn Attack>],
    threat: &ThreatModel,
    options: &EvaluateOptions,
    observer: &mut dyn FnMut(&Event<'_>) -> Answer,
) -> Result<AttackReport, AttackError> {
    let _no_grad = tch::no_grad_guard();
    let batch_size = options.batch_size.max(1);
    let mut report = match &options.resume {
        Some(report) => resumable(report, data, attacks, threat, options)?,
        None => clean_pass(model, data, threat, options, batch_size, observer)?,
    };
    for attack in attacks {
        attack.check(threat, report.classes)?;
    }

    let mut crew = Crew::new(model, options.workers);
    for (entry, attack) in attacks.iter().enumerate() {
        if report.attacks.len() == entry {
            let samples = first_outcomes(&report, options.mode);
            report.attacks.push(AttackEntry {
                name: attack.name().to_owned(),
                config: attack.config().cloned(),
                stages: Vec::new(),
                samples,
            });
        }
        let whole = std::slice::from_ref(attack);
        let stages = attack.stages().unwrap_or(whole);
        for (stage, attack) in stages.iter().enumerate() {
            run_stage(
                &mut crew,
                data,
                attack.as_ref(),
                threat,
                options,
                batch_size,
                &mut report,
                (entry, stage),
                observer,
            )?;
        }
    }
    flags_of_results(&mut report);
    Ok(report)
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
            margin: report.clean_margins.get(position).copied(),
            queries: 0,
            stages: 0,
        })
        .collect()
}

#[expect(clippy::too_many_arguments, reason = "a stage needs what the evaluation needs, and one caller gives it")]
fn run_stage(
    crew: &mut Crew<'_>,
    data: &LabelledImages,
    attack: &dyn Attack,
    threat: &ThreatModel,
    options: &EvaluateOptions,
    batch_size: usize,
    report: &mut AttackReport,
    (entry, stage): (usize, usize),
    observer: &mut dyn FnMut(&Event<'_>) -> Answer,
) -> Result<(), AttackError> {
    let open: Vec<usize> = report.attacks[entry]
        .samples
        .iter()
        .enumerate()
        .filter(|(_, sample)| sample.outcome == Outcome::Survived && sample.stages == stage)
        .map(|(position, _)| position)
        .collect();
    if report.attacks[entry].stages.len() == stage {
        report.attacks[entry].stages.push(StageEntry {
            attack: attack.name().to_owned(),
            family: attack.family(),
            attacked: 0,
            survivors: 0,
            counts: Passes::default(),
            seconds: 0.0,
        });
    }
    let total = report.attacks[entry].stages[stage].attacked + open.len();
    for part in open.chunks(batch_size) {
        let start = Instant::now();
        let tasks = crew.split(part).map(|part| Task::new(part, data, report.targets.as_deref(), crew.device()));
        let tasks: Vec<Task> = tasks.collect();
        let Judged { images, broken, predictions, distances, margins, queries, passes } =
            crew.run(attack, threat, options.seed, tasks)?;

        let result = &mut report.attacks[entry];
        for (row, &position) in part.iter().enumerate() {
            let sample = &mut result.samples[position];
            sample.stages = stage + 1;
            sample.prediction = predictions[row];
            sample.distance = distances[row];
            sample.margin = sample.margin.map(|margin| margin.min(margins[row]));
            sample.queries += queries[row];
            if broken[row] {
                sample.outcome = Outcome::Broken { by: attack.name().to_owned() };
            }
        }
        let done = &mut result.stages[stage];
        done.attacked += part.len();
        done.survivors += broken.iter().filter(|broken| !**broken).count();
        done.counts += passes;
        done.seconds += start.elapsed().as_secs_f64();
        let done = done.attacked;
        let event = Event::Judged {
            entry,
            attack: attack.name(),
            done,
            total,
            positions: part,
            images: &images,
            report: &*report,
        };
        if observer(&event).is_break() {
            return Err(AttackError::Interrupted);
        }
    }
    Ok(())
}

/// Classifies the clean images, chooses targets, and looks for reasons to doubt the model.
fn clean_pass(
    model: &dyn Classifier,
    data: &LabelledImages,
    threat: &ThreatModel,
    options: &EvaluateOptions,
    batch_size: usize,
    observer: &mut dyn FnMut(&Event<'_>) -> Answer,
) -> Result<AttackReport, AttackError> {
    let start = Instant::now();
    let n = data.len();
    let all: Vec<usize> = (0..n).collect();
    let ids: Vec<u64> = (0..n as u64).collect();
    let mut oracle = Oracle::new(model, "clean", &ids);
    let mut classes = None;
    let mut clean_predictions = Vec::with_capacity(n);
    let mut clean_margins = Vec::with_capacity(n);
    let mut targets = Vec::new();
    let mut flags = Vec::new();
    for part in all.chunks(batch_size) {
        let (images, labels) = data.select(part, model.device());
        let logits = oracle.logits(&images, part)?;
        let found = logits.size()[1];
        if logits.kind() != Kind::Float {
            return Err(AttackError::LogitsKind(logits.kind()));
        }
        let expected = *classes.get_or_insert(found);
        if found != expected {
            return Err(AttackError::ClassesChanged { expected, got: found });
        }
        if clean_predictions.is_empty() {
            data.check_classes(found)?;
            if options.self_check {
                flags = flags_of_model(&mut oracle, part, &images, &labels, &logits, threat, options.seed)?;
            }
        }
        clean_predictions.extend(Vec::<i64>::try_from(logits.argmax(1, false)).expect("i64 tensor"));
        clean_margins.extend(Vec::<f32>::try_from(loss::margin(&logits, &labels)).expect("f32 tensor"));
        if let Goal::Targeted(rule) = threat.goal {
            let part_ids: Vec<u64> = part.iter().map(|&position| position as u64).collect();
            let chosen = targets_for(rule, &logits, &labels, &part_ids, options.seed);
            targets.extend(Vec::<i64>::try_from(chosen).expect("i64 tensor"));
        }
        if observer(&Event::Clean { done: clean_predictions.len(), total: n }).is_break() {
            return Err(AttackError::Interrupted);
        }
    }
    let counted = oracle.finish(Tensor::new());
    Ok(AttackReport {
        subject: None,
        threat: *threat,
        mode: options.mode,
        seed: options.seed,
        batch_size,
        classes: classes.expect("there is at least one image"),
        labels: Vec::<i64>::try_from(data.labels()).expect("i64 tensor"),
        targets: matches!(threat.goal, Goal::Targeted(_)).then_some(targets),
        clean_predictions,
        clean_margins,
        clean_counts: counted.passes,
        clean_seconds: start.elapsed().as_secs_f64(),
        attacks: Vec::new(),
        flags,
        versions: BTreeMap::from([("c2r-attacks".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]),
    })
}

/// The target class of each sample; never its label.
///
/// * `logits`: f32 `[N, K]` of the clean images; `labels`: i64 `[N]`; `ids`: N sample ids.
///
/// Returns i64 `[N]`.
pub fn targets_for(rule: TargetRule, logits: &Tensor, labels: &Tensor, ids: &[u64], seed: Seed) -> Tensor {
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
    }
}

/// Logits of two passes that differ by more than this, relative to their size, are not rounding.
const SAME_LOGITS: f64 = 1e-4;
/// Kernels for one image and for a batch differ in their rounding.
const SAME_LOGITS_ALONE: f64 = 1e-3;

fn flags_of_model(
    oracle: &mut Oracle<'_>,
    rows: &[usize],
    images: &Tensor,
    labels: &Tensor,
    logits: &Tensor,
    threat: &ThreatModel,
    seed: Seed,
) -> Result<Vec<Flag>, AttackError> {
    let mut flags = Vec::new();
    let scale = logits.abs().max().double_value(&[]).max(1.0);
    let difference = |other: &Tensor, of: &Tensor| (other - of).abs().max().double_value(&[]);

    // No budget, no change: noise projected at radius 0 must be the clean image again.
    let ids: Vec<u64> = rows.iter().map(|&row| oracle.ids()[row]).collect();
    let noise = threat.norm.random_in_ball(&images.size()[1..], &ids, 1.0, seed, "self-check");
    let unmoved = threat.norm.project(images, &(images + noise.to_device(images.device())), 0.0);
    let moved = difference(&unmoved, images);
    if moved > 1e-6 {
        return Err(AttackError::SelfCheck(format!("a projection at epsilon 0 moved a pixel by {moved:.1e}")));
    }
    let again = oracle.logits(images, rows)?;
    let repeated = difference(&again, logits);
    if repeated > SAME_LOGITS * scale {
        flags.push(Flag::RandomizedModel { difference: repeated });
    } else {
        let at_zero = oracle.logits(&unmoved, rows)?;
        // Samples on a boundary may flip with the last bit.
        let flipped = at_zero.argmax(1, false).ne_tensor(&logits.argmax(1, false));
        if flipped.any().int64_value(&[]) != 0 && difference(&at_zero, logits) > SAME_LOGITS * scale {
            return Err(AttackError::SelfCheck(
                "accuracy at epsilon 0 is not the clean accuracy: does the model change its input?".to_owned(),
            ));
        }
        let alone = oracle.logits(&images.narrow(0, 0, 1), &rows[..1])?;
        let apart = difference(&alone, &logits.narrow(0, 0, 1));
        if apart > SAME_LOGITS_ALONE * scale {
            flags.push(Flag::BatchDependentModel { difference: apart });
        }
    }
    let sums = logits.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
    if logits.min().double_value(&[]) >= 0.0
        && logits.max().double_value(&[]) <= 1.0
        && (sums - 1.0).abs().max().double_value(&[]) < 1e-3
    {
        flags.push(Flag::ProbabilitiesNotLogits);
    }
    let slope = oracle.slope(images, rows, |_, logits| loss::ce(logits, labels))?;
    let flat = slope.gradient.abs().flatten(1, -1).amax([1i64].as_slice(), false).eq(0.0);
    let correct = logits.argmax(1, false).eq_tensor(labels);
    let samples = positions(&flat.logical_and(&correct)).len();
    if samples > 0 {
        flags.push(Flag::ZeroGradient { samples, of: positions(&correct).len() });
    }
    Ok(flags)
}

/// Attacks that differ by no more than this share of the samples are equally strong. AutoAttack, `checks.py`.
const SAME_STRENGTH: f64 = 0.002;

/// One step is no stronger than several of the same kind unless it breaks more than this share of the samples besides:
/// where the loss is almost linear both end at the same place, and single samples differ. Ours.
const STRONGER: f64 = 0.01;

/// Flags that compare attacks with each other.
fn flags_of_results(report: &mut AttackReport) {
    let mut flags: Vec<Flag> = Vec::new();
    let few = (SAME_STRENGTH * report.n() as f64) as usize;
    let sees_gradients = |family| matches!(family, Family::Gradient | Family::MinimumNorm);
    // Stages in the order in which they ran on the same survivors.
    let runs: Vec<Vec<&StageEntry>> = match report.mode {
        Mode::Suite => vec![report.attacks.iter().flat_map(|attack| &attack.stages).collect()],
        Mode::Each => report.attacks.iter().map(|attack| attack.stages.iter().collect()).collect(),
    };
    for stages in &runs {
        for (at, stage) in stages.iter().enumerate() {
            let samples = stage.attacked - stage.survivors;
            let after = |wanted: &dyn Fn(Family) -> bool| stages[..at].iter().rev().find(|s| wanted(s.family));
            if samples <= few {
                continue;
            }
            if stage.family == Family::BlackBox && after(&sees_gradients).is_some() {
                flags.push(Flag::BlackBoxBeatsWhiteBox { attack: stage.attack.clone(), samples });
            }
            if stage.attack == "noise"
                && let Some(weaker) = after(&|family| family != Family::Sanity)
            {
                flags.push(Flag::WeakerThanNoise { attack: weaker.attack.clone(), samples });
            }
        }
    }
    if report.mode == Mode::Each {
        let robust = |entry: &AttackEntry| entry.samples.iter().filter(|s| s.outcome == Outcome::Survived).count();
        let family = |entry: &AttackEntry| entry.stages.first().map_or(Family::Sanity, |stage| stage.family);
        let strongest = report.attacks.iter().filter(|entry| sees_gradients(family(entry))).map(robust).min();
        let noise = report.attack("noise").map(robust);
        let cross_entropy_steps = |entry: &AttackEntry| entry.config.as_ref()?.cross_entropy_steps();
        let one_step = report.attack("fgsm").filter(|entry| cross_entropy_steps(entry) == Some(1)).map(robust);
        let clearly = (STRONGER * report.n() as f64) as usize;
        for entry in &report.attacks {
            if let (Family::BlackBox, Some(strongest)) = (family(entry), strongest)
                && robust(entry) + few < strongest
            {
                let samples = strongest - robust(entry);
                flags.push(Flag::BlackBoxBeatsWhiteBox { attack: entry.name.clone(), samples });
            }
            if let (Some(one_step), Some(steps @ 2..)) = (one_step, cross_entropy_steps(entry))
                && robust(entry) > one_step + clearly
            {
                let samples = robust(entry) - one_step;
                flags.push(Flag::OneStepBeatsMany { attack: entry.name.clone(), steps, samples });
            }
            if let Some(noise) = noise
                && family(entry) != Family::Sanity
                && robust(entry) > noise + few
            {
                let samples = robust(entry) - noise;
                flags.push(Flag::WeakerThanNoise { attack: entry.name.clone(), samples });
            }
        }
    }
    for flag in flags {
        if !report.flags.contains(&flag) {
            report.flags.push(flag);
        }
    }
}

/// Checks that `report` is an unfinished run of the same evaluation.
fn resumable(
    report: &AttackReport,
    data: &LabelledImages,
    attacks: &[Box<dyn Attack>],
    threat: &ThreatModel,
    options: &EvaluateOptions,
) -> Result<AttackReport, AttackError> {
    let refuse = |reason: &str| Err(AttackError::Resume(reason.to_owned()));
    if report.labels != Vec::<i64>::try_from(data.labels()).expect("i64 tensor") {
        return refuse("its labels are not those of the data");
    }
    if report.threat != *threat || report.seed != options.seed || report.mode != options.mode {
        return refuse("its threat model, seed or mode differs");
    }
    let same = |entry: &AttackEntry, attack: &dyn Attack| {
        entry.name == attack.name() && entry.config.as_ref() == attack.config()
    };
    if report.attacks.len() > attacks.len()
        || report.attacks.iter().zip(attacks).any(|(entry, attack)| !same(entry, attack.as_ref()))
    {
        return refuse("its attacks or their options differ");
    }
    Ok(report.clone())
}

/// Collects the images that were judged, for a re-evaluation that gives the same accuracy: the last
/// judged image of every attacked sample, the clean image of the others.
#[derive(Debug)]
pub struct AdversarialImages {
    mode: Mode,
    sets: Vec<Tensor>,
}

impl AdversarialImages {
    /// One set in [`Mode::Suite`], one per attack in [`Mode::Each`].
    pub fn new(data: &LabelledImages, n_attacks: usize, mode: Mode) -> Self {
        let n_sets = match mode {
            Mode::Suite => 1,
            Mode::Each => n_attacks,
        };
        Self { mode, sets: (0..n_sets).map(|_| data.images().copy()).collect() }
    }

    /// Keeps the images of an [`Event::Judged`].
    pub fn observe(&mut self, event: &Event<'_>) {
        if let Event::Judged { entry, positions, images, .. } = event {
            let set = match self.mode {
                Mode::Suite => 0,
                Mode::Each => *entry,
            };
            let _no_grad = tch::no_grad_guard();
            let at = crate::attack::index(positions, &self.sets[set]);
            let images = images.to_device(self.sets[set].device());
            let _ = self.sets[set].index_copy_(0, &at, &images);
        }
    }

    /// The sets: f32 `[N, C, H, W]` each.
    pub fn sets(&self) -> &[Tensor] {
        &self.sets
    }

    /// Continues from sets that were stored.
    ///
    /// # Errors
    /// [`AttackError::Resume`] if number or shapes do not fit.
    pub fn restore(&mut self, sets: Vec<Tensor>) -> Result<(), AttackError> {
        if sets.len() != self.sets.len() || sets.iter().zip(&self.sets).any(|(a, b)| a.size() != b.size()) {
            return Err(AttackError::Resume("the stored images have another shape".to_owned()));
        }
        self.sets = sets;
        Ok(())
    }
}
