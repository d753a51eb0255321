//! Results in JSON: attack reports, tables, records of runs.

use std::{collections::BTreeMap, path::Path};

use c2r_eval::{
    AttackRecord, Table,
    table::{CLEAN, MEAN_ROBUST, MEAN_ROBUST_AUTOATTACK},
};
use c2r_experiment::Subject;
use c2r_files::read_json;
use c2r_run::{
    exit::{self, OrExit},
    terminal::{counted, seconds},
};
use serde_json::Value;

use super::report::Report;

pub(super) fn json_file(report: &mut Report, path: &Path) -> anyhow::Result<()> {
    let value: Value = read_json(path).or_exit(exit::DATA)?;
    if value.get("stage").is_some() && value.get("config").is_some() {
        return run_record(report, path);
    }
    let has = |keys: &[&str]| keys.iter().all(|key| value.get(key).is_some());
    if has(&["sections", "planned_rows", "configs"]) {
        return table(report, path);
    }
    if has(&["attacks", "subject"]) {
        return attack_report(report, path);
    }
    let keys: Vec<&str> = value.as_object().into_iter().flat_map(|object| object.keys().map(String::as_str)).collect();
    report.title("json", path.display(), "JSON that c2r does not know");
    report.line("keys", keys.join(", "));
    Ok(())
}

/// What `c2r attack --output` writes.
fn attack_report(report: &mut Report, path: &Path) -> anyhow::Result<()> {
    let record = AttackRecord::read_any(path).or_exit(exit::DATA)?;
    let is_cell = record.evaluation.is_none();
    let title = if is_cell {
        "attack report"
    } else {
        "attack report with details of every image, which `c2r table` cannot read"
    };
    report.title("attack-report", path.display(), title);
    if let Some(attacked) = &record.subject {
        subject(report, attacked);
    }
    let images = if is_cell { "test image" } else { "image" };
    let n = counted(record.n, images);
    report.line("threat", format!("{} {}, {n}", record.threat.norm, record.threat.epsilon));
    if let Some(evaluation) = &record.evaluation {
        report.line("model", &evaluation.model);
        report.line("images from", &evaluation.inputs);
        report.line("seed", record.attack_seed.to_string());
    }
    report.line("clean", percent(record.clean_accuracy));
    for entry in &record.attacks {
        let flags = if entry.flags.is_empty() { String::new() } else { format!(" [{}]", entry.flags.join(", ")) };
        report.line(&entry.attack, format!("{}{flags}", percent(entry.robust_accuracy)));
    }
    if let Some(evaluation) = &record.evaluation {
        report.line("all attacks", percent(evaluation.report.robust_accuracy()));
    }
    record.notes.iter().for_each(|note| report.line("note", note));
    record.flag_notes.into_iter().for_each(|note| report.doubt(note));
    let dataset = record.subject.map(|subject| subject.dataset).unwrap_or_default();
    let classes = c2r_data::spec(&dataset).map_or(0, |spec| spec.classes.len());
    if classes > 0 && record.clean_accuracy * (classes as f64) < 1.5 {
        report.doubt("even without an attack, the network is hardly better than guessing");
    }
    Ok(())
}

/// The main numbers of `c2r table`: accuracies in percent, clean and under each attack.
fn table(report: &mut Report, path: &Path) -> anyhow::Result<()> {
    let table: Table = read_json(path).or_exit(exit::DATA)?;
    report.title("table", path.display(), format!("table `{}`", table.title));
    report.line("rows missing", table.missing.len().to_string());
    for section in &table.sections {
        let (model, threat) = (&section.model, format!("{} {}", section.norm, section.epsilon));
        let of = format!("{}, {}, {model}, {threat}, {}", section.dataset, section.protocol, section.images());
        report.line("section", of);
        for row in &section.rows {
            let main = |column: &str| {
                [CLEAN, MEAN_ROBUST, MEAN_ROBUST_AUTOATTACK].contains(&column)
                    || section.attacks.iter().any(|attack| attack == column)
            };
            let cells: Vec<String> = row
                .cells
                .iter()
                .filter(|cell| main(&cell.column))
                .map(|cell| {
                    let sd = cell.summary.sd.map(|sd| format!(" ± {sd:.2}")).unwrap_or_default();
                    format!("{} {:.2}{sd}", cell.column, cell.summary.mean)
                })
                .collect();
            let images = row.images_per_class.map_or("all images".to_owned(), |n| format!("{n} per class"));
            report.line(&row.label, format!("{images}, {}: {}", counted(row.runs.len(), "run"), cells.join(", ")));
        }
    }
    Ok(())
}

pub(super) fn run_record(report: &mut Report, path: &Path) -> anyhow::Result<()> {
    let value: Value = read_json(path).or_exit(exit::DATA)?;
    let text = |name: &str| {
        value.get(name).map(|value| value.as_str().map_or(value.to_string(), str::to_owned)).unwrap_or_default()
    };
    report.title("run", path.display(), format!("run of c2r {}, {}", text("stage"), text("status")));
    report.configuration = value.get("config").and_then(|config| config.get(text("stage"))).cloned();
    report.line("time", value["seconds"].as_f64().map(seconds).unwrap_or_default());
    report.line("device", text("device").replace("Cpu", "CPU"));
    for name in ["threads", "precision", "versions", "results", "config", "summary"] {
        report.line(name, text(name));
    }
    Ok(())
}

fn subject(report: &mut Report, subject: &Subject) {
    let images =
        subject.images_per_class.map_or("all images".to_owned(), |n| format!("{} per class", counted(n, "image")));
    let Subject { dataset, method, profile, protocol, model, train_seed, .. } = subject;
    let profile = if profile.is_empty() { String::new() } else { format!(" ({profile})") };
    report.line("subject", format!("{model}, {protocol} on {method}{profile}, {dataset}, {images}, seed {train_seed}"));
    report.line("extra storage", &subject.extra_storage);
    subject.notes.iter().for_each(|note| report.line("note", note));
}

/// The texts of a header; a subject in words.
pub(super) fn texts(report: &mut Report, header: &BTreeMap<String, String>) {
    for (name, text) in header {
        match serde_json::from_str::<Subject>(text) {
            Ok(parsed) if name == "subject" => subject(report, &parsed),
            _ => report.line(name, text),
        }
    }
}

fn percent(part: f64) -> String {
    format!("{:.2} %", 100.0 * part)
}
