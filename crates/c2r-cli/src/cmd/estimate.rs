use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::Context;
use c2r_base::artifact;
use c2r_data::DatasetSpec;
use c2r_distill::Work;
use c2r_models::ModelSpec;
use serde_json::json;
use tch::Device;

use crate::{
    data,
    exit::{self, OrExit},
    throughput::{self, Throughput},
    ui::Ui,
};

/// Training images of each class, where the registry does not say (ImageNet).
const IMAGENET_TRAIN_PER_CLASS: usize = 1300;
/// Test images of each class, where the registry does not say (ImageNet).
const IMAGENET_TEST_PER_CLASS: usize = 50;
/// Pixels in the passes that are timed, as a number of 32x32 images; fewer, larger images take as much memory.
const BATCH: usize = 16;

/// Estimate how long commands would take here, before anything that they need exists.
///
/// Reads commands, one JSON array of words per line, and prints one JSON object per line: `{"seconds": 12.5}` or
/// `{"error": "..."}`. A file that an earlier command of the list would write counts as written. No data is read; each
/// network is timed once for each kind of image (a few seconds each). Other programs on the machine slow the measurement.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  echo '[\"distill\", \"--dataset\", \"cifar10\", \"--ipc\", \"10\", \"--run-dir\", \"x\"]' | c2r estimate -
  c2r estimate commands.jsonl --threads 1

`cargo xtask reproduce --list` and `--dry-run` ask this command for a whole grid.")]
pub(crate) struct Args {
    /// A file of commands, or - for standard input
    #[arg(value_name = "FILE")]
    commands: PathBuf,

    /// Keep the measured speeds in this file, and measure only what it lacks
    #[arg(long, value_name = "FILE")]
    speeds: Option<PathBuf>,
}

/// What a command will send through which network.
pub(crate) struct Planned {
    pub(crate) dataset: DatasetSpec,
    pub(crate) model: ModelSpec,
    pub(crate) work: Work,
}

/// What the commands so far will have written.
#[derive(Default)]
pub(crate) struct Written {
    /// Synthetic sets: the dataset, and how many images of each class a network sees that trains on it.
    pub(crate) sets: BTreeMap<PathBuf, (DatasetSpec, usize)>,
    /// Networks.
    pub(crate) networks: BTreeMap<PathBuf, ModelSpec>,
}

impl Written {
    /// Remembers what a command with this run folder leaves.
    pub(crate) fn set(&mut self, run_dir: Option<&Path>, spec: &DatasetSpec, per_class: usize) {
        if let Some(run_dir) = run_dir {
            self.sets.insert(run_dir.join(data::SET_FILE), (spec.clone(), per_class));
        }
    }

    /// Remembers what a command with this run folder leaves.
    pub(crate) fn network(&mut self, run_dir: Option<&Path>, model: ModelSpec) {
        if let Some(run_dir) = run_dir {
            self.networks.insert(run_dir.join("model.safetensors"), model);
        }
    }
}

/// Training images of each class.
pub(crate) fn train_per_class(spec: &DatasetSpec) -> usize {
    spec.n_train.map_or(IMAGENET_TRAIN_PER_CLASS, |n| n / spec.classes.len())
}

/// Test images.
pub(crate) fn n_test(spec: &DatasetSpec) -> usize {
    spec.n_test.unwrap_or(IMAGENET_TEST_PER_CLASS * spec.classes.len())
}

/// What a command line would do, and what it would leave for those after it.
pub(crate) type Plan = fn(&[String], &mut Written) -> anyhow::Result<Planned>;

pub(crate) fn run(args: &Args, planned: Plan, device: Device, ui: &Ui) -> anyhow::Result<()> {
    let text = if args.commands.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        text
    } else {
        c2r_files::read_text(&args.commands).or_exit(exit::USAGE)?
    };
    let mut written = Written::default();
    let mut speeds: BTreeMap<String, Throughput> = match &args.speeds {
        Some(path) if path.exists() => artifact::read_json(path).or_exit(exit::DATA)?,
        _ => BTreeMap::new(),
    };
    let n_known = speeds.len();
    for (number, line) in (1..).zip(text.lines()) {
        if ui.interrupted() {
            return Err(c2r_run::signals::stopped("run the same command again"));
        }
        let words: Vec<String> = serde_json::from_str(line)
            .with_context(|| format!("line {number} is not a JSON array of words"))
            .or_exit(exit::USAGE)?;
        let answer = match planned(&words, &mut written).and_then(|planned| seconds(&planned, device, &mut speeds)) {
            Ok(seconds) => json!({ "seconds": seconds }),
            Err(error) => json!({ "error": error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ") }),
        };
        ui.out(answer.to_string());
    }
    if let Some(path) = args.speeds.as_deref().filter(|_| speeds.len() > n_known) {
        artifact::write_json(path, &speeds)?;
    }
    Ok(())
}

/// Prints what `--estimate` of one command found: a line, or one object with `--json`.
pub(crate) fn answer(work: &Work, speed: &Throughput, device: Device, json: bool, ui: &Ui) {
    let seconds = speed.seconds(work);
    let threads = tch::get_num_threads();
    if json {
        let answer = json!({
            "seconds": seconds,
            "work": work,
            "throughput": speed,
            "device": format!("{device:?}"),
            "threads": threads,
        });
        ui.out(answer.to_string());
        return;
    }
    let threads = if device == Device::Cpu { format!(", {threads} threads") } else { String::new() };
    let training = if work.training > 0.0 { format!(", {:.0} in training", speed.training) } else { String::new() };
    ui.out(format!(
        "about {} here ({device:?}{threads}); images per second: {:.0} forward, {:.0} with gradients of pixels{training}",
        duration(seconds),
        speed.forward,
        speed.input_gradient,
    ));
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} seconds"),
        s if s < 90.0 * 60.0 => format!("{:.0} minutes", s / 60.0),
        s => format!("{:.1} hours", s / 3600.0),
    }
}

fn seconds(planned: &Planned, device: Device, speeds: &mut BTreeMap<String, Throughput>) -> anyhow::Result<f64> {
    let Planned { dataset, model, work } = planned;
    let (shape, n_classes, threads) = (dataset.shape(), dataset.classes.len(), tch::get_num_threads());
    let key = format!("{model} on {shape:?}, {n_classes} classes, {device:?}, {threads} threads");
    let speed = match speeds.get(&key) {
        Some(speed) => *speed,
        None => {
            let batch = (BATCH * 32 * 32 / (shape[1] * shape[2]) as usize).clamp(2, 256);
            let speed = throughput::measure(model, dataset, batch, device)?;
            speeds.insert(key, speed);
            speed
        }
    };
    Ok(speed.seconds(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_for_people() {
        for (seconds, said) in [(0.2, "0 seconds"), (89.0, "89 seconds"), (120.0, "2 minutes"), (9000.0, "2.5 hours")] {
            assert_eq!(duration(seconds), said);
        }
    }
}
