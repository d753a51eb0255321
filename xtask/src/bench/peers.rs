//! Our attacks next to torchattacks and pyautoattack: the same TorchScript model, images, radius and threads.

use std::path::{Path, PathBuf};

use anyhow::Context;
use c2r_run::{exit, terminal as ui};
use serde::{Deserialize, Serialize};

use super::python::{self, Peers, Script};
use crate::checkout::Checkout;

const AUTOATTACK: &str = "autoattack-standard";
const ATTACKS: [&str; 5] = ["fgsm", "pgd", "vmi-fgsm", "apgd-ce", AUTOATTACK];
/// Robust accuracies that differ by more than this are not the same result, points.
const TOLERANCE: f64 = 0.5;

/// What a round of either side printed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Round {
    robust_accuracy: f64,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Row {
    attack: &'static str,
    n: usize,
    ours: Vec<Round>,
    reference: Vec<Round>,
    /// Images that ours sent through the model, in its first round.
    passes: Passes,
    /// Seconds that the convolutions of these passes alone take.
    bound: f64,
}

/// Images sent forward, and those of them that were sent backward, too.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Passes {
    forward: u64,
    backward: u64,
}

/// Seconds of one image's convolutions, on one thread of the CPU or on a GPU, as PyTorch's profiler finds them.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Convolutions {
    forward: f64,
    backward: f64,
}

impl Convolutions {
    /// What passes would take if nothing but convolutions cost time, shared by `n` threads (or on one GPU) without loss.
    fn bound(self, passes: Passes, n: usize) -> f64 {
        (passes.forward as f64 * self.forward + passes.backward as f64 * self.backward) / n as f64
    }
}

impl Row {
    fn difference(&self) -> f64 {
        100.0 * (mean_accuracy(&self.ours) - mean_accuracy(&self.reference))
    }

    fn ratio(&self) -> f64 {
        median(&self.reference) / median(&self.ours)
    }

    fn agrees(&self) -> bool {
        self.difference().abs() <= TOLERANCE + 1e-9
    }
}

fn mean_accuracy(rounds: &[Round]) -> f64 {
    rounds.iter().map(|round| round.robust_accuracy).sum::<f64>() / rounds.len() as f64
}

fn median(rounds: &[Round]) -> f64 {
    python::median(rounds.iter().map(|round| round.seconds).collect())
}

/// Both sides, with what they attack.
struct Bench<'a> {
    checkout: &'a Checkout,
    script: Script,
    threads: usize,
    device: String,
    model: PathBuf,
    inputs: PathBuf,
    /// As it was written, for c2r, and as a number, for Python.
    epsilon: (String, f64),
}

/// Measures and prints.
pub(super) fn run(args: &Peers, checkout: &Checkout) -> anyhow::Result<()> {
    let attacks = chosen(&args.only)?;
    checkout.build_c2r()?;
    let script = args.script(checkout.root().join("crates/c2r-attacks/benches/peers.py"))?;
    let workshop = tempfile::tempdir().context("cannot make a temporary folder")?;
    let (model, inputs, epsilon) = material(args, checkout, &script, workshop.path())?;
    let epsilon = radius(args.eps.as_deref().unwrap_or(epsilon))?;
    let (threads, device) = (args.threads(), args.device.clone());
    let bench = Bench { checkout, script, threads, device, model, inputs, epsilon };

    let sharers = if bench.device == "cpu" { bench.threads } else { 1 };
    let mut rows = Vec::new();
    for attack in attacks {
        let slow = attack == AUTOATTACK;
        let n = args.n.unwrap_or(if slow { 50 } else { 200 });
        let repeats = args.repeats.unwrap_or(if slow { 1 } else { 3 });
        let images = workshop.path().join(format!("first-{n}.safetensors"));
        if !images.exists() {
            bench.script.call(&["cut", &bench.inputs.to_string_lossy(), &n.to_string(), &images.to_string_lossy()])?;
        }
        // A machine that others use, too, is not equally fast all the time, so each attack has its own bound.
        ui::note(format!("{attack}: the convolutions alone"));
        let convolutions = bench.convolutions()?;
        let (mut ours, mut reference) = (Vec::new(), Vec::new());
        let mut passes = None;
        for round in 1..=repeats {
            ui::note(format!("{attack}, {n} images, round {round} of {repeats}"));
            // The generators differ, so the noise does; equal seeds only make a round repeatable.
            let seed = (round - 1).to_string();
            let (round, sent) = bench.ours(attack, &images, n, &seed)?;
            ours.push(round);
            let _ = passes.get_or_insert(sent);
            reference.push(bench.reference(attack, &images, &seed)?);
        }
        let passes = passes.expect("there is at least one round");
        rows.push(Row { attack, n, ours, reference, passes, bound: convolutions.bound(passes, sharers) });
    }

    ui::text(table(&rows, &bench));
    args.write_json(&rows)?;
    let apart: Vec<&str> = rows.iter().filter(|row| !row.agrees()).map(|row| row.attack).collect();
    if apart.is_empty() {
        return Ok(());
    }
    let message = format!("robust accuracy differs by more than {TOLERANCE} points: {}", apart.join(", "));
    exit::fail(exit::OUTSIDE_TOLERANCE, message)
}

fn chosen(only: &[String]) -> anyhow::Result<Vec<&'static str>> {
    if let Some(unknown) = only.iter().find(|name| !ATTACKS.contains(&name.as_str())) {
        return Err(exit::usage(format!("`{unknown}` has no reference; choose from {}", ATTACKS.join(", "))));
    }
    Ok(ATTACKS.into_iter().filter(|name| only.is_empty() || only.iter().any(|wanted| wanted == name)).collect())
}

/// Model, images and radius.
fn material(
    args: &Peers,
    checkout: &Checkout,
    script: &Script,
    workshop: &Path,
) -> anyhow::Result<(PathBuf, PathBuf, &'static str)> {
    if let (Some(model), Some(inputs)) = (&args.model, &args.inputs) {
        return Ok((model.clone(), inputs.clone(), "2/255"));
    }
    let shared = checkout.root().join("../shared/goldens");
    let (model, inputs) = (shared.join("convnet_nat.torchscript.pt"), shared.join("inputs.safetensors"));
    if model.is_file() && inputs.is_file() {
        return Ok((model, inputs, "2/255"));
    }
    ui::note("no reference models in ../shared/goldens: comparing on the small network for the digits");
    let goldens = checkout.root().join("crates/c2r-attacks/tests/goldens/digits.safetensors");
    script.call(&["material", &goldens.to_string_lossy(), &workshop.to_string_lossy()])?;
    Ok((workshop.join("digits.pt"), workshop.join("digits.safetensors"), "0.15"))
}

impl Bench<'_> {
    fn convolutions(&self) -> anyhow::Result<Convolutions> {
        self.script.json(&["bound", &self.model.to_string_lossy(), &self.inputs.to_string_lossy(), &self.device])
    }

    fn reference(&self, attack: &str, images: &Path, seed: &str) -> anyhow::Result<Round> {
        let (model, images) = (self.model.to_string_lossy(), images.to_string_lossy());
        let (epsilon, step) = (self.epsilon.1.to_string(), (self.epsilon.1 / 4.0).to_string());
        let threads = self.threads.to_string();
        self.script.json(&["attack", &model, &images, attack, &epsilon, &step, seed, &threads, &self.device])
    }

    fn ours(&self, attack: &str, images: &Path, n: usize, seed: &str) -> anyhow::Result<(Round, Passes)> {
        #[derive(Deserialize)]
        struct Printed {
            robust_accuracy: f64,
            forward: u64,
            backward: u64,
            attacks: Vec<Entry>,
        }
        #[derive(Deserialize)]
        struct Entry {
            seconds: f64,
        }
        let mut command = self.checkout.run_c2r();
        command.args(["--quiet", "--threads", &self.threads.to_string(), "attack", "--json", "--device", &self.device]);
        command.arg("--model").arg(&self.model).arg("--inputs").arg(images);
        command.args(["--attack", attack, "--eps", &self.epsilon.0, "--seed", seed]);
        command.args(["--batch-size", &n.to_string()]);
        if ["pgd", "vmi-fgsm"].contains(&attack) {
            command.args(["--steps", "10", "--step-size", &(self.epsilon.1 / 4.0).to_string()]);
        }
        if attack == "vmi-fgsm" {
            command.args(["--set", "vmi-fgsm.neighbours=5"]);
        }
        let printed: Printed = serde_json::from_str(&python::printed_by(&mut command)?)
            .context("c2r printed something other than a result")?;
        let seconds = printed.attacks.iter().map(|entry| entry.seconds).sum();
        let passes = Passes { forward: printed.forward, backward: printed.backward };
        Ok((Round { robust_accuracy: printed.robust_accuracy, seconds }, passes))
    }
}

fn table(rows: &[Row], bench: &Bench<'_>) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut lines = vec![
        format!(
            "{}, {}, Linf {}, {}, {} thread(s), torch 2.11.0; robust accuracy and median seconds (attack and judging)",
            name(&bench.model),
            name(&bench.inputs),
            bench.epsilon.0,
            bench.device,
            bench.threads
        ),
        String::new(),
        "| attack | reference | images | rounds | ours, % | reference, % | ours, s | reference, s | ratio | convolutions, s | share |".into(),
        "|---|---|---|---|---|---|---|---|---|---|---|".into(),
    ];
    lines.extend(rows.iter().map(|row| {
        format!(
            "| {} | {} | {} | {} | {:.1} | {:.1}{} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} % |",
            row.attack,
            if ["apgd-ce", AUTOATTACK].contains(&row.attack) { "pyautoattack 0.2.0" } else { "torchattacks 3.5.1" },
            row.n,
            row.ours.len(),
            100.0 * mean_accuracy(&row.ours),
            100.0 * mean_accuracy(&row.reference),
            if row.agrees() { "" } else { " (!)" },
            median(&row.ours),
            median(&row.reference),
            row.ratio(),
            row.bound,
            100.0 * row.bound / median(&row.ours)
        )
    }));
    lines.extend([
        String::new(),
        "ratio: the reference's seconds over ours. Ours attacks what is classified correctly; torchattacks attacks \
         everything. (!): the accuracies differ by more than 0.5 points. convolutions: what those of our passes take \
         alone on as many threads or the GPU; share: of our seconds."
            .into(),
    ]);
    lines.join("\n")
}

fn radius(text: &str) -> anyhow::Result<(String, f64)> {
    let value = c2r_experiment::radius(text).ok_or_else(|| {
        exit::usage(format!("--eps {text} is not a radius; write a fraction such as 2/255 or a decimal such as 0.0078"))
    })?;
    Ok((text.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_ratios_and_agreement() {
        let rounds = |accuracy, seconds: &[f64]| -> Vec<Round> {
            seconds.iter().map(|&seconds| Round { robust_accuracy: accuracy, seconds }).collect()
        };
        let passes = Passes { forward: 10, backward: 4 };
        let row = |ours, reference| Row { attack: "pgd", n: 4, ours, reference, passes, bound: 0.0 };
        let same = row(rounds(0.5, &[3.0, 1.0, 2.0]), rounds(0.505, &[4.0, 8.0]));
        assert_eq!(same.ratio(), 3.0);
        assert!(same.agrees());
        assert!(!row(rounds(0.5, &[1.0]), rounds(0.51, &[1.0])).agrees());
    }

    #[test]
    fn the_bound_counts_both_directions() {
        let convolutions = Convolutions { forward: 0.5, backward: 1.0 };
        assert_eq!(convolutions.bound(Passes { forward: 10, backward: 4 }, 2), 4.5);
    }

    #[test]
    fn radii_are_fractions_or_decimals() {
        let value = |text: &str| radius(text).map(|(_, value)| value);
        assert_eq!(value("2/255").unwrap(), 2.0 / 255.0);
        assert_eq!(value("0.15").unwrap(), 0.15);
        for wrong in ["", "2/0", "-1", "x/255", "nan"] {
            assert_eq!(exit::code_of(&value(wrong).unwrap_err()), exit::USAGE, "{wrong}");
        }
    }

    #[test]
    fn attacks_are_chosen_by_name() {
        assert_eq!(chosen(&[]).unwrap(), ATTACKS);
        assert_eq!(chosen(&["apgd-ce".into(), "fgsm".into()]).unwrap(), ["fgsm", "apgd-ce"]);
        assert!(chosen(&["deepfool".into()]).unwrap_err().to_string().contains("vmi-fgsm"));
    }
}
