//! What an evaluation prints and writes.

use std::{collections::BTreeMap, path::Path};

use c2r_attacks::{AdversarialImages, AttackReport, Flag, Mode, Outcome, StageEntry};
use c2r_base::{Epsilon, Goal, Norm, Seed, artifact::TensorFile};
use c2r_eval::{AttackRecord, Evaluation, RecordContext};
use c2r_experiment::{Subject, Subset};
use c2r_files::path_to_text;
use c2r_run::terminal::{Ui, count, counted, note, seconds};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::Tensor;

use super::{args::CLEAN, inputs::ADVERSARIAL, setup::Setup};

const SCHEMA_VERSION: u32 = 1;

/// The object that `--json` prints, and what the record of a finished evaluation keeps.
#[derive(Serialize, Deserialize)]
pub(super) struct Summary {
    schema_version: u32,
    attack: String,
    mode: Mode,
    norm: Norm,
    eps: Epsilon,
    goal: Goal,
    seed: Seed,
    n: usize,
    subset: Option<Subset>,
    clean_accuracy: f64,
    robust_accuracy: f64,
    attacks: Vec<OfAttack>,
    forward: u64,
    backward: u64,
    seconds: f64,
    clean_seconds: f64,
    flags: Vec<Flag>,
    flag_notes: Vec<String>,
    notes: Vec<String>,
    subject: Option<Subject>,
    model: String,
    model_sha256: String,
    tuned_operators: usize,
    inputs: String,
    inputs_sha256: String,
    versions: BTreeMap<String, String>,
    precision: BTreeMap<String, String>,
}

/// One attack or suite of a [`Summary`].
#[derive(Serialize, Deserialize)]
struct OfAttack {
    attack: String,
    attacked: usize,
    survivors: usize,
    robust_accuracy: f64,
    forward: u64,
    backward: u64,
    seconds: f64,
    stages: Vec<StageEntry>,
    config: Option<Value>,
}

impl Summary {
    pub(super) fn new(report: &AttackReport, setup: &Setup) -> Self {
        let Setup { args, inputs, target, .. } = setup;
        let attacks = report.attacks.iter().map(|entry| {
            let counts = entry.counts();
            OfAttack {
                attack: entry.name.clone(),
                attacked: entry.stages.first().map_or(0, |stage| stage.attacked),
                survivors: entry.samples.iter().filter(|sample| sample.outcome == Outcome::Survived).count(),
                robust_accuracy: entry.robust_accuracy(),
                forward: counts.forward_images,
                backward: counts.backward_images,
                seconds: entry.seconds(),
                stages: entry.stages.clone(),
                config: entry.config.clone(),
            }
        });
        let counts = report.counts();
        Self {
            schema_version: SCHEMA_VERSION,
            attack: args.attack.join(","),
            mode: report.mode,
            norm: report.threat.norm,
            eps: report.threat.epsilon,
            goal: report.threat.goal,
            seed: report.seed,
            n: report.n(),
            subset: inputs.subset.as_ref().map(|(chosen, _)| chosen.clone()),
            clean_accuracy: report.clean_accuracy(),
            robust_accuracy: report.robust_accuracy(),
            attacks: attacks.collect(),
            forward: counts.forward_images,
            backward: counts.backward_images,
            seconds: report.seconds(),
            clean_seconds: report.clean_seconds,
            flags: report.flags.clone(),
            flag_notes: report.flags.iter().map(ToString::to_string).collect(),
            notes: inputs.notes.clone(),
            subject: target.subject.clone(),
            model: path_to_text(setup.model()).into_owned(),
            model_sha256: setup.model_sha256.clone(),
            tuned_operators: target.n_tuned,
            inputs: inputs.name.clone(),
            inputs_sha256: inputs.sha256.clone(),
            versions: report.versions.clone(),
            precision: c2r_kernels::precision_names(setup.device),
        }
    }

    /// Prints it for people.
    pub(super) fn print(&self, ui: &Ui) {
        let percent = |share: f64| format!("{:.2} %", 100.0 * share);
        self.notes.iter().for_each(|note| ui.out(note));
        // How a step was selected changes what the numbers mean.
        if let Some(subject) = self.subject.as_ref().filter(|subject| !subject.selection.is_last()) {
            subject.notes.iter().for_each(|note| ui.out(note));
        }
        let images = counted(self.n, "image");
        ui.out(if self.eps == Epsilon::ZERO { images } else { format!("{images}, {} radius {}", self.norm, self.eps) });
        if let Goal::Targeted(rule) = self.goal {
            let rule = json!(rule);
            let rule = rule.as_str().expect("a rule is a word");
            ui.out(format!(
                "targeted ({rule}): accuracy is the share of images that were not classified as their target"
            ));
        }
        let cumulative = self.mode == Mode::Suite && self.attacks.len() > 1;
        if cumulative {
            ui.out(
                "each line shows the share of images that its attack and all attacks above it failed to break; --each judges \
                 every attack by itself",
            );
        }
        let accuracy = if cumulative { "left so far" } else { "accuracy" };
        ui.out(format!("{:<22}{accuracy:>12}{:>18}{:>14}", "attack", "broken", "time"));
        let (clean, took) = (percent(self.clean_accuracy), seconds(self.clean_seconds));
        if self.attacks.iter().all(|entry| entry.attack != CLEAN) {
            ui.out(format!("{CLEAN:<22}{clean:>12}{:>18}{took:>14}", ""));
        }
        let share = |broken: usize, of: usize| format!("{} of {}", count(broken as f64), count(of as f64));
        let broken = |stage: &StageEntry| stage.attacked.saturating_sub(stage.survivors);
        for entry in &self.attacks {
            let OfAttack { attack, attacked, stages, .. } = entry;
            let (left, took) = (percent(entry.robust_accuracy), seconds(entry.seconds));
            let all = share(stages.iter().map(broken).sum(), *attacked);
            ui.out(format!("{attack:<22}{left:>12}{all:>18}{took:>14}"));
            for stage in stages.iter().filter(|_| stages.len() > 1) {
                let (own, took) = (share(broken(stage), stage.attacked), seconds(stage.seconds));
                ui.out(format!("  {:<20}{:>12}{own:>18}{took:>14}", stage.attack, ""));
            }
        }
        if self.attacks.len() > 1 {
            ui.out(format!("{:<22}{:>12}", "worst case of all", percent(self.robust_accuracy)));
        }
        self.flag_notes.iter().for_each(|note| ui.out(format!("doubtful: {note}")));
    }
}

/// Writes `images` and `labels` as `--inputs` takes them; with several attacks judged each by itself, `images.NAME`. Of a
/// subset, `positions` (i64 `[N]`) says which images of the dataset or file they are.
pub(super) fn save(
    path: &Path,
    images: &AdversarialImages,
    setup: &Setup,
    summary: &Value,
    evaluation: &Value,
) -> anyhow::Result<()> {
    let header = BTreeMap::from([
        ("format".to_owned(), ADVERSARIAL.to_owned()),
        ("schema_version".to_owned(), SCHEMA_VERSION.to_string()),
        ("attack".to_owned(), summary["attack"].to_string()),
        ("robust_accuracy".to_owned(), summary["robust_accuracy"].to_string()),
        // Models, inputs, threat, seed and every option.
        ("evaluation".to_owned(), evaluation.to_string()),
    ]);
    let inputs = &setup.inputs;
    let mut file = TensorFile { header, ..TensorFile::default() };
    file.tensors.insert("labels".to_owned(), inputs.images.labels().shallow_clone());
    if let Some((_, positions)) = &inputs.subset {
        let positions: Vec<i64> = positions.iter().map(|&position| position as i64).collect();
        file.tensors.insert("positions".to_owned(), Tensor::from_slice(&positions));
    }
    for (at, set) in images.sets().iter().enumerate() {
        let name = match (setup.mode, images.sets().len()) {
            (Mode::Suite, _) | (Mode::Each, 1) => "images".to_owned(),
            (Mode::Each, _) => format!("images.{}", setup.attacks.configs[at].name()),
        };
        file.tensors.insert(name, set.shallow_clone());
    }
    Ok(file.write(path)?)
}

/// Writes the report: a cell of a table, or else a record with the outcome for every image.
pub(super) fn write_report(path: &Path, report: AttackReport, setup: &Setup) -> anyhow::Result<()> {
    let Setup { args, inputs, target, .. } = setup;
    let (test_sha256, notes, subset) = (inputs.sha256.clone(), inputs.notes.clone(), inputs.subset.clone());
    let (argv, precision, held_out) =
        (c2r_run::argv(), c2r_kernels::precision_names(setup.device), args.held_out_after.is_some());
    match target.subject.clone() {
        Some(subject) if setup.is_cell() => {
            let model_sha256 = Some(setup.model_sha256.clone());
            let context =
                RecordContext { subject, model_sha256, test_sha256, subset, held_out, notes, precision, argv };
            AttackRecord::from_report(&report, context)?.write(path)?;
        }
        subject => {
            let evaluation = Evaluation {
                model: path_to_text(setup.model()).into_owned(),
                model_sha256: setup.model_sha256.clone(),
                tuned_operators: target.n_tuned,
                as_is: args.as_is,
                inputs: inputs.name.clone(),
                report,
            };
            let model_sha256 = None;
            let context =
                RecordContext { subject, model_sha256, test_sha256, subset, held_out, notes, precision, argv };
            AttackRecord::from_evaluation(evaluation, context)?.write(path)?;
        }
    }
    Ok(())
}

/// Prints on stderr, before the error, what attacks had finished before the evaluation failed; `record` is where it is kept.
pub(super) fn print_finished(report: &AttackReport, record: Option<&Path>, resume: &str) {
    let kept = match record {
        Some(record) => format!("saved in {}; {resume}", record.display()),
        None => "not saved; --output saves them".to_owned(),
    };
    note(format!("attacks that finished before the failure ({kept}):"));
    note(format!("{:<22}{:>11.2} %", "clean", 100.0 * report.clean_accuracy()));
    for entry in &report.attacks {
        note(format!("{:<22}{:>11.2} % left", entry.name, 100.0 * entry.robust_accuracy()));
        for stage in &entry.stages {
            let (broken, of) = (stage.attacked - stage.survivors, stage.attacked);
            note(format!("  {:<20}{:>13} {broken} of {of} broken", stage.attack, ""));
        }
    }
}
