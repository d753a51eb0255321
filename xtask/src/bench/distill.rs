//! Our update of C²R next to one written class by class and anchor by anchor in PyTorch: the same mathematics and sizes.

use std::collections::BTreeMap;

use anyhow::Context;
use c2r_run::{exit, terminal as ui};
use serde::{Deserialize, Serialize};

use super::python::{self, Peers};
use crate::checkout::Checkout;

/// What the check's update has so that both sides compute the same loss: nothing random, one network that stays as it is,
/// and negatives that are chosen by the embeddings themselves.
const CHECKED: [&str; 7] = [
    "dsa=none",
    "pool.dsa=none",
    "pool.snapshots=1",
    "pool.min-steps=1",
    "pool.max-steps=1",
    "pool.steps-per-iteration=0",
    "crl.queue.projection=0",
];
/// What the timed updates have: an augmentation that the script knows.
const TIMED: [&str; 2] = ["dsa=crop", "pool.dsa=crop"];
/// Real images per class of the check: all that there are.
const CHECKED_REAL: usize = 40;
/// Losses that differ by a greater part are not the same loss; rounding alone stays below a tenth of it.
const TOLERANCE: f64 = 1e-3;

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Round {
    seconds: f64,
}

/// Each loss, ours and theirs.
type Losses = BTreeMap<String, [f64; 2]>;

#[derive(Debug, Serialize)]
struct Rounds {
    losses: Losses,
    ours: Vec<Round>,
    reference: Vec<Round>,
}

/// The losses that differ, each with both values.
fn apart(losses: &Losses) -> Vec<String> {
    let same = |[ours, theirs]: &[f64; 2]| (ours - theirs).abs() <= TOLERANCE * theirs.abs().max(1e-6);
    let wrong = losses.iter().filter(|(_, values)| !same(values));
    wrong.map(|(name, [ours, theirs])| format!("{name} {ours} and {theirs}")).collect()
}

/// Measures and prints.
pub(super) fn run(args: &Peers, checkout: &Checkout) -> anyhow::Result<()> {
    checkout.build_c2r()?;
    let script = args.script(checkout.root().join("tests/peers/c2r_update.py"))?;
    let workshop = tempfile::tempdir().context("cannot make a temporary folder")?;
    let (width, real, threads) = (args.width.unwrap_or(128), args.n.unwrap_or(256), args.threads().to_string());
    let model = format!("ConvNet-D3-W{width}-IN");
    let profile = |device: &str, real: usize, sets: &[&str]| {
        let mut command = checkout.run_c2r();
        command.args([
            "--quiet",
            "--threads",
            &threads,
            "--device",
            device,
            "doctor",
            "--json",
            "--profile",
            "distill",
        ]);
        command.args(["--input", "3x32x32", "--model", &model, "--n", &real.to_string()]);
        command.args(sets.iter().flat_map(|set| ["--set", set]));
        command
    };

    ui::note("the losses of one update, on the CPU");
    let file = workshop.path().join("update.safetensors");
    python::printed_by(profile("cpu", CHECKED_REAL, &CHECKED).arg("--write").arg(&file))?;
    let losses: Losses = script.json(&["check", &file.to_string_lossy()])?;
    let wrong = apart(&losses);
    if !wrong.is_empty() {
        return exit::fail(exit::OUTSIDE_TOLERANCE, format!("the losses of one update differ: {}", wrong.join(", ")));
    }

    let mut rounds = Rounds { losses, ours: Vec::new(), reference: Vec::new() };
    let repeats = args.repeats.unwrap_or(3);
    for round in 1..=repeats {
        ui::note(format!("updates, round {round} of {repeats}"));
        let printed = super::gpu::Profile::read(&mut profile(&args.device, real, &TIMED))?;
        rounds.ours.push(Round { seconds: printed.profile[0].seconds });
        rounds.reference.push(script.json(&[
            "time",
            &width.to_string(),
            &real.to_string(),
            "3",
            &threads,
            &args.device,
        ])?);
    }
    let median = |rounds: &[Round]| python::median(rounds.iter().map(|round| round.seconds).collect());
    let (ours, reference) = (median(&rounds.ours), median(&rounds.reference));
    let [our_loss, their_loss] = rounds.losses["loss"];
    ui::text(
        [
            format!(
                "an update of C2R, {model}, ten classes of 32x32 colour images, ten mosaics and {real} real images per \
                 class, {}, {threads} thread(s), torch 2.11.0; medians of {repeats} rounds in turn",
                args.device
            ),
            String::new(),
            "| ours, s | per class in PyTorch, s | ratio | loss of one update, ours | PyTorch |".into(),
            "|---:|---:|---:|---:|---:|".into(),
            format!("| {ours:.3} | {reference:.3} | {:.2} | {our_loss:.6} | {their_loss:.6} |", reference / ours),
        ]
        .join("\n"),
    );
    args.write_json(&rounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_agree_up_to_rounding() {
        let losses = |ours| Losses::from([("loss".into(), [ours, 2.0]), ("robust".into(), [1.0, 1.0])]);
        assert!(apart(&losses(2.001)).is_empty());
        assert_eq!(apart(&losses(2.003)), ["loss 2.003 and 2"]);
        assert_eq!(apart(&losses(f64::NAN)).len(), 1, "NaN agrees with nothing");
    }
}
