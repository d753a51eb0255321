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
    run_dir,
    throughput::{self, Throughput},
    ui::{self, Ui},
};

/// Training images of each class, where the registry does not say (ImageNet).
const IMAGENET_TRAIN_PER_CLASS: usize = 1300;
/// Test images of each class, where the registry does not say (ImageNet).
const IMAGENET_TEST_PER_CLASS: usize = 50;
/// Pixels in the passes that are timed, as a number of 32x32 images; fewer, larger images take as much memory.
const BATCH: usize = 16;

/// Estimate how long a list of commands would take on this machine
///
/// Reads one command per line, a JSON array of words, and prints a JSON object per line: `{"seconds": 12.5}` or
/// `{"error": "..."}`. Input files need not exist if an earlier command in the list would write them. Each network is
/// timed for a few seconds; other programs on the machine distort the measurement.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  # One command, from standard input
  echo '[\"distill\", \"--dataset\", \"cifar10\", \"--ipc\", \"10\", \"--run-dir\", \"x\"]' | c2r estimate -

  # A file of commands
  c2r estimate commands.jsonl --threads 1

For a single command, `c2r distill --estimate`, `c2r train --estimate` and `c2r attack --estimate` are simpler. \
`cargo xtask reproduce --list` and `--dry-run` use this command for whole grids.")]
pub(crate) struct Args {
    /// File with a command per line, each a JSON array of strings; - for standard input
    #[arg(value_name = "FILE")]
    commands: PathBuf,

    /// Cache the measured speeds in this file, and measure only what is missing
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
            .with_context(|| {
                format!("line {number} is not a JSON array of words, such as [\"train\", \"--dataset\", \"digits\"]")
            })
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
    let place = match device {
        Device::Cpu => format!("CPU, {}", ui::counted(threads as usize, "thread")),
        other => run_dir::device_name(other),
    };
    let training =
        if work.training > 0.0 { format!(", {} in training", ui::count(speed.training)) } else { String::new() };
    ui.out(format!(
        "about {} here ({place}); images per second: {} forward, {} with gradients of the pixels{training}",
        ui::seconds(seconds),
        ui::count(speed.forward),
        ui::count(speed.input_gradient),
    ));
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
