//! Every figure that docs/performance.md has of a GPU, in one command; each is written as soon as it is there.

use std::{fs::File, io::Write, path::PathBuf, process::Command, time::Instant};

use anyhow::Context;
use c2r_run::terminal as ui;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::python;
use crate::checkout::Checkout;

/// What `c2r doctor --json` prints, as far as it is read here.
#[derive(Debug, Deserialize)]
pub(super) struct Profile {
    throughput: Option<Throughput>,
    #[serde(default)]
    pub(super) profile: Vec<Row>,
    /// Of c2r's CUDA kernels, each with the reason.
    #[serde(default)]
    unusable_kernels: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Throughput {
    forward: f64,
    input_gradient: f64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Row {
    what: String,
    first_seconds: f64,
    first_attack_seconds: Option<f64>,
    pub(super) seconds: f64,
    mean_seconds: f64,
    robust_accuracy: Option<f64>,
}

impl Profile {
    /// Runs the command.
    pub(super) fn read(command: &mut Command) -> anyhow::Result<Self> {
        serde_json::from_str(&python::printed_by(command)?).context("c2r printed something other than a report")
    }

    /// Fails if c2r's own kernels did not run: the figures would be those of something else.
    fn check_kernels(&self) -> anyhow::Result<()> {
        let reasons = &self.unusable_kernels;
        anyhow::ensure!(reasons.is_empty(), "a CUDA kernel of c2r could not be used: {}", reasons.join("; "));
        Ok(())
    }

    fn row(&self, what: &str) -> anyhow::Result<&Row> {
        self.profile.iter().find(|row| row.what == what).with_context(|| format!("c2r did not profile {what}"))
    }
}

/// A line of the table.
#[derive(Debug, PartialEq, Serialize)]
struct Figure {
    what: String,
    value: f64,
    unit: &'static str,
}

/// Steps of a training in the table.
const STEPS: f64 = 2000.0;

/// What a command of c2r measures, in the order of the table.
#[derive(Debug, Clone, Copy)]
enum Measured {
    Passes,
    Updates,
    Trainings,
    Attacks,
    AutoAttack,
}

impl Measured {
    const ALL: [Self; 5] = [Self::Passes, Self::Updates, Self::Trainings, Self::Attacks, Self::AutoAttack];

    /// The words after `c2r doctor --json`; the sizes of the table, or those of a rehearsal on the digits.
    fn words(self, tiny: bool) -> Vec<&'static str> {
        let text = match (self, tiny) {
            (Self::Passes, false) => "--throughput ConvNet-D3-W128-IN --batch-size 1024",
            (Self::Passes, true) => "--throughput ConvNet-D2-W32-IN --input 1x8x8",
            (Self::Updates, false) => "--profile distill --input 3x32x32 --n 256",
            (Self::Updates, true) => "--profile distill",
            (Self::Trainings, false) => "--profile train --input 3x32x32 --n 256",
            (Self::Trainings, true) => "--profile train",
            (Self::Attacks, false) => "--profile attack --attack pgd,vmi-fgsm,apgd-ce --input 3x32x32 --n 2000",
            (Self::Attacks, true) => "--profile attack --attack pgd,vmi-fgsm,apgd-ce",
            (Self::AutoAttack, false) => "--profile attack --attack autoattack-standard --input 3x32x32 --n 1000",
            (Self::AutoAttack, true) => "--profile attack --attack autoattack-standard --n 8",
        };
        text.split(' ').collect()
    }

    /// The lines of the table.
    fn figures(self, found: &Profile) -> anyhow::Result<Vec<Figure>> {
        let figure = |what: &str, value: f64, unit| Figure { what: what.to_owned(), value, unit };
        let seconds = |what: &str| anyhow::Ok(found.row(what)?.seconds);
        // Of steps in a row: some draw noise for many, which the median leaves out.
        let mean = |what: &str| anyhow::Ok(found.row(what)?.mean_seconds);
        Ok(match self {
            Self::Passes => {
                let speed = found.throughput.as_ref().context("c2r measured no throughput")?;
                vec![
                    figure("forward", speed.forward, "images/s"),
                    figure("input gradient", speed.input_gradient, "images/s"),
                ]
            }
            Self::Updates => vec![figure("updates of C2R", 1.0 / mean("update of C2R")?, "1/s")],
            Self::Trainings => vec![
                figure("natural training, 2,000 steps", STEPS * mean("natural training")?, "s"),
                figure("PGD-AT, 2,000 steps", STEPS * mean("PGD-AT")?, "s"),
            ],
            Self::Attacks => {
                let pgd = found.row("pgd")?;
                let alone = pgd.first_attack_seconds.context("c2r did not time the first attack")?;
                vec![
                    figure("PGD, first of the process, with network and images made ready", pgd.first_seconds, "s"),
                    figure("PGD, first of the process, the attack alone", alone, "s"),
                    figure("PGD, later", pgd.seconds, "s"),
                    figure("VMI-FGSM, 5 neighbours", seconds("vmi-fgsm")?, "s"),
                    figure("APGD-CE", seconds("apgd-ce")?, "s"),
                ]
            }
            Self::AutoAttack => {
                let row = found.row("autoattack-standard")?;
                let robust = 100.0 * row.robust_accuracy.unwrap_or(f64::NAN);
                vec![figure(&format!("AutoAttack, {robust:.0} % robust"), row.seconds, "s")]
            }
        })
    }
}

/// Measures, writes each figure to `file` as a line of JSON, and prints all of them.
pub(super) fn run(device: &str, tiny: bool, file: Option<PathBuf>, checkout: &Checkout) -> anyhow::Result<()> {
    let path = file.unwrap_or_else(|| checkout.c2r().with_file_name("bench-gpu.jsonl"));
    let context = || format!("cannot write {}", path.display());
    let mut out = File::create(&path).with_context(context)?;
    let begun = Instant::now();
    let mut lines = vec!["| what | |".to_owned(), "|---|---:|".to_owned()];
    for measured in Measured::ALL {
        let mut command = checkout.run_c2r();
        command.args(["--quiet", "--device", device, "doctor", "--json"]).args(measured.words(tiny));
        let found = Profile::read(&mut command)?;
        found.check_kernels()?;
        for figure in measured.figures(&found)? {
            let Figure { what, value, unit } = &figure;
            ui::note(format!("{}: {what}: {value:.2} {unit}", ui::duration(begun.elapsed())));
            writeln!(out, "{}", json!({ "device": device, "tiny": tiny, "figure": figure })).with_context(context)?;
            out.flush().with_context(context)?;
            lines.push(format!("| {what} | {value:.2} {unit} |"));
        }
    }
    ui::text(lines.join("\n"));
    ui::note(format!("{} in all; the figures are in {}", ui::duration(begun.elapsed()), path.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_comes_out_of_a_report() {
        let row = |what: &str, seconds: f64, mean_seconds: f64| {
            json!({ "what": what, "first_seconds": 9.0, "first_attack_seconds": 0.5, "seconds": seconds, "mean_seconds": mean_seconds,
                "robust_accuracy": 0.49 })
        };
        let rows = [
            row("update of C2R", 0.01, 0.05),
            row("natural training", 0.003, 0.004),
            row("PGD-AT", 0.012, 0.0125),
            row("pgd", 0.25, 0.26),
            row("vmi-fgsm", 1.0, 1.1),
            row("apgd-ce", 2.0, 2.1),
            row("autoattack-standard", 17.0, 17.0),
        ];
        let report = json!({ "throughput": { "forward": 630.0, "input_gradient": 220.0 }, "profile": rows });
        let report: Profile = serde_json::from_value(report).unwrap();
        let figures = Measured::ALL.map(|measured| measured.figures(&report).unwrap());
        let told: Vec<String> = figures
            .iter()
            .flatten()
            .map(|figure| format!("{} {} {}", figure.what, figure.value, figure.unit))
            .collect();
        let expected = [
            "forward 630 images/s",
            "input gradient 220 images/s",
            "updates of C2R 20 1/s",
            "natural training, 2,000 steps 8 s",
            "PGD-AT, 2,000 steps 25 s",
            "PGD, first of the process, with network and images made ready 9 s",
            "PGD, first of the process, the attack alone 0.5 s",
            "PGD, later 0.25 s",
            "VMI-FGSM, 5 neighbours 1 s",
            "APGD-CE 2 s",
            "AutoAttack, 49 % robust 17 s",
        ];
        assert_eq!(told, expected);
        report.check_kernels().unwrap();
    }

    #[test]
    fn figures_without_the_kernels_are_refused() {
        let line = "cuda:0, features of 8x8: libtorch's operators, because it has no nvrtc";
        let report: Profile = serde_json::from_value(json!({ "unusable_kernels": [line] })).unwrap();
        assert!(report.check_kernels().unwrap_err().to_string().contains(line));
    }
}
