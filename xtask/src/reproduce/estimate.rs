//! How long a grid will take: one command of each kind measures its own speed (`c2r ... --estimate`).
//!
//! Before anything is distilled there is no set to train on and no network to attack. Training is then
//! measured on as many real images as the set will hold, and an attack on an untrained network.

use std::{path::Path, process::Command, time::Duration};

use anyhow::Context;
use serde::Deserialize;

use super::plan::{Stage, Step};
use crate::{
    checkout::{self, Checkout},
    process, ui,
};

/// What `c2r ... --estimate --json` prints, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Estimate {
    /// Expected wall-clock time of the whole command.
    seconds: f64,
}

/// Commands that take the same time: they differ in their seed only.
fn kind(step: &Step) -> (String, String) {
    let cell = &step.cell;
    let size = cell.ipc.map_or_else(|| "all".to_owned(), |ipc| format!("ipc {ipc}"));
    let stage = match &step.stage {
        Stage::Distill => format!("distill {}", cell.method),
        Stage::Train(protocol) => format!("train {protocol}"),
        Stage::Attack(_) => return ("attack".into(), cell.dataset.clone()),
    };
    (stage, format!("{}, {size}", cell.dataset))
}

/// Measures one command of each kind that is still to run and prints the sum.
///
/// # Errors
/// If the user interrupted.
pub(crate) fn print(steps: &[Step], finished: &[bool], n_jobs: usize, checkout: &Checkout) -> anyhow::Result<()> {
    // In the order of the plan.
    let mut kinds: Vec<((String, String), Vec<&Step>)> = Vec::new();
    for (step, _) in steps.iter().zip(finished).filter(|(_, done)| !**done) {
        match kinds.iter_mut().find(|(name, _)| *name == kind(step)) {
            Some((_, same)) => same.push(step),
            None => kinds.push((kind(step), vec![step])),
        }
    }
    ui::note(format!("measuring the speed of one command of each of {} kinds", kinds.len()));
    let (mut total, mut unknown) = (0.0, 0);
    for ((stage, size), same) in &kinds {
        process::check_interrupt()?;
        match measure(same[0], steps, checkout)? {
            Ok(seconds) => {
                total += seconds * same.len() as f64;
                ui::note(format!("  {stage} ({size}): {} x {}", same.len(), time(seconds)));
            }
            Err(reason) => {
                unknown += same.len();
                ui::note(format!("  {stage} ({size}): {} x unknown: {reason}", same.len()));
            }
        }
    }
    let left_out = match unknown {
        0 => String::new(),
        unknown => format!(", and {unknown} commands of unknown length"),
    };
    ui::note(format!(
        "about {}{left_out}, if nothing else runs here; stop with Ctrl-C at any time, the same command goes on",
        time(total / n_jobs as f64)
    ));
    Ok(())
}

fn time(seconds: f64) -> String {
    ui::duration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

/// Seconds of `step`, or why they are not known.
fn measure(step: &Step, steps: &[Step], checkout: &Checkout) -> anyhow::Result<Result<f64, String>> {
    let mut args: Vec<String> = step.args().cloned().collect();
    // Gone at the end, with what was made for the measurement.
    let workshop = tempfile::tempdir().context("cannot make a temporary folder")?;
    let needed = step.needs.map(|position| &steps[position]);
    if let (Some(needed), false) = (needed, step.inputs.iter().all(|input| input.is_file())) {
        let made = match step.stage {
            Stage::Attack(_) => untrained(&mut args, needed, workshop.path(), checkout)?,
            _ => {
                decoded_per_class(needed, checkout)?.map(|number| on_real_images(&mut args, &step.cell.dataset, number))
            }
        };
        if let Err(reason) = made {
            return Ok(Err(reason));
        }
    }
    args.extend(["--estimate".into(), "--json".into()]);
    let text = match c2r(&args, checkout)? {
        Ok(text) => text,
        Err(reason) => return Ok(Err(reason)),
    };
    Ok(serde_json::from_str::<Estimate>(&text).map(|estimate| estimate.seconds).map_err(|error| error.to_string()))
}

/// Trains on real images instead of a synthetic set that does not exist yet.
fn on_real_images(args: &mut Vec<String>, dataset: &str, n_per_class: u32) {
    if let Some(position) = args.iter().position(|arg| arg == "--synthetic") {
        let real = ["--dataset", dataset, "--train-per-class", &n_per_class.to_string()].map(String::from);
        args.splice(position..position + 2, real);
    }
}

/// Attacks a network that was trained for one step, made in `folder`, instead of the one `train` will make.
fn untrained(
    args: &mut [String],
    train: &Step,
    folder: &Path,
    checkout: &Checkout,
) -> anyhow::Result<Result<(), String>> {
    let mut train_args: Vec<String> = train.args().cloned().collect();
    on_real_images(&mut train_args, &train.cell.dataset, 1);
    put(&mut train_args, "--train-per-class", "1");
    put(&mut train_args, "--run-dir", &folder.display().to_string());
    train_args.extend(["--set", "length={steps=1}"].map(String::from));
    put(args, "--checkpoint", &folder.join("model.safetensors").display().to_string());
    Ok(c2r(&train_args, checkout)?.map(drop))
}

/// Changes the value of an option that is there.
fn put(args: &mut [String], option: &str, value: &str) {
    if let Some(position) = args.iter().position(|arg| arg == option) {
        value.clone_into(&mut args[position + 1]);
    }
}

/// What is read of a resolved distillation configuration.
#[derive(Debug, Deserialize)]
struct Config {
    ipc: u32,
    images: Images,
}

#[derive(Debug, Deserialize)]
struct Images {
    /// Images per side in each stored image.
    formation: u32,
}

/// How many images of a class a network sees that trains on what `distill` makes.
fn decoded_per_class(distill: &Step, checkout: &Checkout) -> anyhow::Result<Result<u32, String>> {
    let args: Vec<String> = distill.args().cloned().chain(["--print-config".into()]).collect();
    let text = match c2r(&args, checkout)? {
        Ok(text) => text,
        Err(reason) => return Ok(Err(reason)),
    };
    let config = toml::from_str::<Config>(&text).map_err(|error| error.to_string());
    Ok(config.map(|config| config.ipc * config.images.formation * config.images.formation))
}

/// What a short `c2r` command prints, or the last line of its complaint.
fn c2r(args: &[String], checkout: &Checkout) -> anyhow::Result<Result<String, String>> {
    let mut command = Command::new(checkout.c2r());
    command.args(args).current_dir(checkout.root());
    checkout::with_libtorch(&mut command, &checkout.libtorch_link());
    let Some(output) = process::output(&mut command)? else { return Ok(Err("c2r is not built".into())) };
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).map_err(|error| error.to_string()));
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Ok(Err(complaint.lines().last().unwrap_or("no reason given").trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            experiment::tests::example,
            plan::{Only, Place, expand},
        },
        *,
    };

    #[test]
    fn kinds_differ_in_more_than_the_seed() {
        let experiment = example();
        let place =
            Place { root: "/r".into(), runs: "/r/x".into(), data: None, threads: None, device: None, force: false };
        let steps = expand(&experiment, experiment.scale("quick").unwrap(), &Only::default(), &place).unwrap();
        let mut kinds: Vec<_> = steps.iter().map(kind).collect();
        kinds.sort();
        kinds.dedup();
        // Per dataset: 2 methods x 2 ipcs distilled, 2 protocols x (2 ipcs and all) trained, one attack.
        assert_eq!(kinds.len(), 2 * (4 + 6 + 1));
    }

    #[test]
    fn real_images_stand_in_for_a_set_that_is_not_there() {
        let mut args = ["train", "--seed", "0", "--synthetic", "x/synthetic.safetensors", "--run-dir", "x"]
            .map(String::from)
            .to_vec();
        on_real_images(&mut args, "cifar10", 40);
        put(&mut args, "--run-dir", "y");
        assert_eq!(args.join(" "), "train --seed 0 --dataset cifar10 --train-per-class 40 --run-dir y");
        let config: Config = toml::from_str("ipc = 10\nprofile = \"x\"\n[images]\nformation = 2\nlr = 0.1\n").unwrap();
        assert_eq!(config.ipc * config.images.formation * config.images.formation, 40);
    }
}
