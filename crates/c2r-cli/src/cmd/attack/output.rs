//! What an evaluation prints and writes.

use std::{collections::BTreeMap, path::Path};

use c2r_attacks::{AdversarialImages, AttackConfig, AttackReport, Mode, Outcome};
use c2r_base::artifact::TensorFile;
use c2r_eval::{AttackRecord, Evaluation, RecordContext};
use c2r_files::path_to_text;
use c2r_run::terminal::{Ui, count, counted, note, seconds};
use serde_json::{Value, json};
use tch::{Device, Tensor};

use super::{args::Args, inputs::Inputs, target::Target};
use crate::run_dir;

const SCHEMA_VERSION: u32 = 1;

/// The object that `--json` prints.
pub(super) fn summary(
    report: &AttackReport,
    args: &Args,
    target: &Target,
    (model, model_sha256): (&Path, &str),
    inputs: &Inputs,
    device: Device,
) -> Value {
    let attacks = report.attacks.iter().map(|entry| {
        let counts = entry.counts();
        json!({
            "attack": entry.name,
            "attacked": entry.stages.first().map_or(0, |stage| stage.attacked),
            "survivors": entry.samples.iter().filter(|sample| sample.outcome == Outcome::Survived).count(),
            "robust_accuracy": entry.robust_accuracy(),
            "forward": counts.forward_images,
            "backward": counts.backward_images,
            "seconds": entry.seconds(),
            "stages": entry.stages,
            "config": entry.config,
        })
    });
    let counts = report.counts();
    json!({
        "schema_version": SCHEMA_VERSION,
        "attack": args.attack.join(","),
        "mode": report.mode,
        "norm": report.threat.norm,
        "eps": report.threat.epsilon,
        "goal": report.threat.goal,
        "seed": report.seed,
        "n": report.n(),
        "subset": inputs.subset.as_ref().map(|(chosen, _)| chosen),
        "clean_accuracy": report.clean_accuracy(),
        "robust_accuracy": report.robust_accuracy(),
        "attacks": attacks.collect::<Vec<_>>(),
        "forward": counts.forward_images,
        "backward": counts.backward_images,
        "seconds": report.seconds(),
        "clean_seconds": report.clean_seconds,
        "flags": report.flags,
        "flag_notes": report.flags.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "notes": inputs.notes,
        "subject": target.subject,
        "model": path_to_text(model),
        "model_sha256": model_sha256,
        "tuned_operators": target.n_tuned,
        "inputs": inputs.name,
        "inputs_sha256": inputs.sha256,
        "versions": report.versions,
        "precision": run_dir::precision(device),
    })
}

/// Writes `images` and `labels` as `--inputs` takes them; with several attacks judged each by itself, `images.NAME`. Of a
/// subset, `positions` (i64 `[N]`) says which images of the dataset or file they are.
pub(super) fn save(
    path: &Path,
    images: &AdversarialImages,
    configs: &[AttackConfig],
    mode: Mode,
    inputs: &Inputs,
    summary: &Value,
    evaluation: &Value,
) -> anyhow::Result<()> {
    let header = BTreeMap::from([
        ("format".to_owned(), "c2r-adversarial".to_owned()),
        ("schema_version".to_owned(), SCHEMA_VERSION.to_string()),
        ("attack".to_owned(), summary["attack"].to_string()),
        ("robust_accuracy".to_owned(), summary["robust_accuracy"].to_string()),
        // Models, inputs, threat, seed and every option.
        ("evaluation".to_owned(), evaluation.to_string()),
    ]);
    let mut file = TensorFile { header, ..TensorFile::default() };
    file.tensors.insert("labels".to_owned(), inputs.images.labels().shallow_clone());
    if let Some((_, positions)) = &inputs.subset {
        let positions: Vec<i64> = positions.iter().map(|&position| position as i64).collect();
        file.tensors.insert("positions".to_owned(), Tensor::from_slice(&positions));
    }
    for (at, set) in images.sets().iter().enumerate() {
        let name = match (mode, images.sets().len()) {
            (Mode::Suite, _) | (Mode::Each, 1) => "images".to_owned(),
            (Mode::Each, _) => format!("images.{}", configs[at].name()),
        };
        file.tensors.insert(name, set.shallow_clone());
    }
    Ok(file.write(path)?)
}

/// Writes the report: a cell of a table, or else a record with the outcome for every image.
pub(super) fn write_report(
    path: &Path,
    report: AttackReport,
    args: &Args,
    target: &Target,
    (model, model_sha256): (&Path, &str),
    inputs: &Inputs,
    device: Device,
) -> anyhow::Result<()> {
    let (test_sha256, notes, subset) = (inputs.sha256.clone(), inputs.notes.clone(), inputs.subset.clone());
    let (argv, precision, held_out) = (c2r_run::argv(), run_dir::precision(device), args.held_out_after.is_some());
    match target.subject.clone() {
        Some(subject) if args.each && args.dataset.is_some() => {
            let model_sha256 = Some(model_sha256.to_owned());
            let context =
                RecordContext { subject, model_sha256, test_sha256, subset, held_out, notes, precision, argv };
            AttackRecord::from_report(&report, context).map_err(anyhow::Error::msg)?.write(path)?;
        }
        subject => {
            let evaluation = Evaluation {
                model: path_to_text(model).into_owned(),
                model_sha256: model_sha256.to_owned(),
                tuned_operators: target.n_tuned,
                as_is: args.as_is,
                inputs: inputs.name.clone(),
                report,
            };
            let model_sha256 = None;
            let context =
                RecordContext { subject, model_sha256, test_sha256, subset, held_out, notes, precision, argv };
            AttackRecord::from_evaluation(evaluation, context).map_err(anyhow::Error::msg)?.write(path)?;
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

/// Prints a summary for people.
pub(super) fn print(summary: &Value, ui: &Ui) {
    let list = |key: &str| summary[key].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let percent = |value: &Value| format!("{:.2} %", 100.0 * value.as_f64().unwrap_or(f64::NAN));
    let took = |value: &Value| seconds(value["seconds"].as_f64().unwrap_or_default());
    list("notes").iter().for_each(|note| ui.out(text(note)));
    // How a step was selected changes what the numbers mean.
    if let Some(notes) = summary["subject"].get("selection").and(summary["subject"]["notes"].as_array()) {
        notes.iter().for_each(|note| ui.out(text(note)));
    }
    let n = counted(summary["n"].as_u64().unwrap_or_default() as usize, "image");
    ui.out(format!("{n}, {} radius {}", text(&summary["norm"]), text(&summary["eps"])));
    if let Some(rule) = summary["goal"]["targeted"].as_str() {
        ui.out(format!("targeted ({rule}): accuracy is the share of images that were not classified as their target"));
    }
    let attacks = list("attacks");
    let cumulative = summary["mode"] == json!(Mode::Suite) && attacks.len() > 1;
    if cumulative {
        ui.out(
            "each line shows the share that its attack and all above it left, the worst case so far; --each judges every \
             attack by itself",
        );
    }
    let accuracy = if cumulative { "left so far" } else { "accuracy" };
    ui.out(format!("{:<22}{accuracy:>12}{:>18}{:>14}", "attack", "broken", "time"));
    let clean = seconds(summary["clean_seconds"].as_f64().unwrap_or_default());
    ui.out(format!("{:<22}{:>12}{:>18}{clean:>14}", "clean", percent(&summary["clean_accuracy"]), ""));
    let broken = |attacked: &Value, left: &Value| {
        let attacked = attacked.as_u64().unwrap_or_default();
        let broken = attacked - left.as_u64().unwrap_or(attacked);
        format!("{} of {}", count(broken as f64), count(attacked as f64))
    };
    for entry in &attacks {
        let stages = entry["stages"].as_array().map(Vec::as_slice).unwrap_or_default();
        let left = stages.last().map_or(&Value::Null, |stage| &stage["survivors"]);
        let (name, share) = (text(&entry["attack"]), percent(&entry["robust_accuracy"]));
        ui.out(format!("{name:<22}{share:>12}{:>18}{:>14}", broken(&entry["attacked"], left), took(entry)));
        for stage in stages.iter().filter(|_| stages.len() > 1) {
            let broken = broken(&stage["attacked"], &stage["survivors"]);
            ui.out(format!("  {:<20}{:>12}{broken:>18}{:>14}", text(&stage["attack"]), "", took(stage)));
        }
    }
    if attacks.len() > 1 {
        ui.out(format!("{:<22}{:>12}", "worst case of all", percent(&summary["robust_accuracy"])));
    }
    list("flag_notes").iter().for_each(|note| ui.out(format!("doubtful: {}", text(note))));
}
