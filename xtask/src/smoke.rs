//! `cargo xtask test --device NAME`: every command of `c2r` once, on a device of one's choice.

use std::{fs, path::Path, time::Instant};

use anyhow::Context;
use c2r_files::shell_line;
use c2r_run::{exit, process, terminal as ui};

use crate::checkout::Checkout;

/// The commands in an order in which each finds what it reads; `@` stands for a temporary folder. Distillation and training
/// are as short as they can be: what counts is that every tensor is on the device.
const COMMANDS: &[&str] = &[
    "doctor",
    "estimate @/commands.jsonl",
    "distill --dataset digits --ipc 1 --iterations 2 --run-dir @/runs/set --set model=ConvNet-D2-W8-IN \
     --set pool.trajectories=1 --set pool.snapshots=2 --set pool.min-steps=5 --set pool.max-steps=10 \
     --set pool.batch-size=32 --set matching.real-per-class=6 --set crl.queue.per-class=8",
    "inspect @/runs/set",
    "export @/runs/set --to npz @/set.npz",
    "import @/set.npz --output @/set.safetensors",
    "train --synthetic @/set.safetensors --protocol pgd-at --set length={steps=4} --run-dir @/runs/network",
    "attack --checkpoint @/runs/network/model.safetensors --dataset digits --n-test 32 --attack paper-six --eps 32/255 \
     --each --output @/runs/network/attack.json",
    "table @/runs",
    "report @/runs --output @/report.html",
];

/// What `estimate` reads.
const ESTIMATED: &str = r#"["distill", "--dataset", "digits", "--ipc", "1", "--run-dir", "x"]"#;

/// Runs them all and stops at the first that fails.
///
/// # Errors
/// If a command fails, or `c2r` has one that is not in the list.
pub(crate) fn run(device: &str, checkout: &Checkout) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    fs::write(folder.path().join("commands.jsonl"), ESTIMATED).context("cannot write the commands to estimate")?;
    let help = said(checkout, &["--help"])?;
    let left_out: Vec<&str> =
        names(&help).into_iter().filter(|name| !COMMANDS.iter().any(|c| first(c) == *name)).collect();
    anyhow::ensure!(left_out.is_empty(), "xtask/src/smoke.rs does not run {}", left_out.join(", "));
    for command in COMMANDS {
        let words = words(command, folder.path(), device);
        let begun = Instant::now();
        said(checkout, &words.iter().map(String::as_str).collect::<Vec<_>>())?;
        ui::note(format!("c2r {:<9} --device {device}: {}", first(command), ui::duration(begun.elapsed())));
    }
    Ok(())
}

fn first(command: &str) -> &str {
    command.split(' ').next().unwrap_or_default()
}

fn words(command: &str, folder: &Path, device: &str) -> Vec<String> {
    let folder = folder.display().to_string();
    let words = command.split(' ').map(|word| word.replacen('@', &folder, 1));
    words.chain(["--device", device, "--threads", "1"].map(String::from)).collect()
}

/// The commands that a help text lists, `help` itself left out.
fn names(help: &str) -> Vec<&str> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A description that continues in the next line is indented further.
    let starts = list.filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' '));
    starts.map(first).filter(|name| *name != "help").collect()
}

/// What `c2r` prints.
fn said(checkout: &Checkout, words: &[&str]) -> anyhow::Result<String> {
    let mut command = checkout.run_c2r();
    command.args(words).env_remove("C2R_DATA");
    let output =
        process::output(&mut command)?.with_context(|| format!("{} does not exist", checkout.c2r().display()))?;
    process::check_interrupt()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let line = shell_line(["c2r"].iter().chain(words));
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(exit::error(exit::UNEXPECTED, format!("`{line}` failed ({}):\n{reason}", output.status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_the_folder_and_the_device() {
        let words = words("export @/runs/set --to npz @/set.npz", Path::new("/tmp/x"), "cuda:1").join(" ");
        assert_eq!(words, "export /tmp/x/runs/set --to npz /tmp/x/set.npz --device cuda:1 --threads 1");
    }

    #[test]
    fn commands_are_found_in_the_help() {
        let help = "About\n\nCommands:\n  distill   Distil a training set\n            into images\n  doctor    Say\n  help      Print\n\nOptions:\n  -q\n";
        assert_eq!(names(help), ["distill", "doctor"]);
    }
}
