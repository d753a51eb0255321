use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::Context;
use c2r_base::artifact;
use c2r_data::DatasetSpec;
use c2r_distill::Work;
use c2r_models::{ConvNetSpec, ModelSpec};
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
/// timed for a few seconds; other programs on the machine distort the measurement. `note` says where a command asks for more images
/// than there are. With --measured, a ConvNet whose speed is not in the file gets that of one of the same width, scaled by the
/// multiplications of their convolutions; `scaled` names the two. An error has the exit code that the command would end with: `{"error": "...", "code": 2}`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  # One command, from standard input
  echo '[\"distill\", \"--dataset\", \"cifar10\", \"--ipc\", \"10\", \"--run-dir\", \"x\"]' | c2r estimate -

  # A file of commands
  c2r estimate commands.jsonl --threads 1

  # The same on a GPU that is not here
  c2r estimate commands.jsonl --measured data/speeds/h200.json

  # Only find wrong options, attacks, radii and --set keys
  c2r estimate commands.jsonl --check

For a single command, `c2r distill --estimate`, `c2r train --estimate` and `c2r attack --estimate` are simpler. \
`cargo xtask reproduce --list` and `--dry-run` use this command for whole experiments.")]
pub(crate) struct Args {
    /// File with a command per line, each a JSON array of strings; - for standard input
    #[arg(value_name = "FILE")]
    commands: PathBuf,

    /// Cache the measured speeds in this file, and measure only what is missing
    #[arg(long, value_name = "FILE")]
    speeds: Option<PathBuf>,

    /// Estimate for another machine: a file of speeds measured there, such as data/speeds/h200.json
    #[arg(long, value_name = "FILE", conflicts_with = "speeds")]
    measured: Option<PathBuf>,

    /// Measure nothing; print `{}` for each command whose options and configuration are valid
    ///
    /// What only the data or an input file can show is not checked.
    #[arg(long, conflicts_with_all = ["speeds", "measured"])]
    check: bool,
}

/// A file of `--measured`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Measured {
    /// Machine, command and date.
    #[serde(rename = "about")]
    _about: String,
    /// By attack: what is known to be wrong with its estimate, for people.
    #[serde(default, rename = "caveats")]
    _caveats: BTreeMap<String, String>,
    /// By [`network`].
    images_per_second: BTreeMap<String, Throughput>,
}

/// What a command will send through which network.
pub(crate) struct Planned {
    pub(crate) dataset: DatasetSpec,
    pub(crate) model: ModelSpec,
    pub(crate) work: Work,
    /// What the command would do otherwise than it says.
    pub(crate) note: Option<String>,
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
    let elsewhere = match &args.measured {
        Some(path) => Some((path, artifact::read_json::<Measured>(path).or_exit(exit::DATA)?.images_per_second)),
        None => None,
    };
    let mut speed_of = |planned: &Planned| match &elsewhere {
        Some((path, known)) => known_or_scaled(planned, known).with_context(|| {
            format!(
                "{} has no speed of {}; it has {}",
                path.display(),
                network(planned),
                known.keys().cloned().collect::<Vec<_>>().join("; ")
            )
        }),
        None => Ok((measured(planned, device, &mut speeds)?, None)),
    };
    for (number, line) in (1..).zip(text.lines()) {
        if ui.interrupted() {
            return Err(c2r_run::signals::stopped("run the same command again"));
        }
        let words: Vec<String> = serde_json::from_str(line)
            .with_context(|| {
                format!("line {number} is not a JSON array of words, such as [\"train\", \"--dataset\", \"digits\"]")
            })
            .or_exit(exit::USAGE)?;
        let answer = |planned: Planned| {
            if args.check {
                return Ok(json!({}));
            }
            let (speed, scaled) = speed_of(&planned)?;
            let mut answer = json!({ "seconds": speed.seconds(&planned.work) });
            for (key, text) in [("scaled", scaled), ("note", planned.note)] {
                text.into_iter().for_each(|text| answer[key] = text.into());
            }
            anyhow::Ok(answer)
        };
        let answer = planned(&words, &mut written).and_then(answer).unwrap_or_else(|error| {
            let reason = error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ");
            json!({ "error": reason, "code": exit::code_of(&error) })
        });
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

/// The network and what it sees: `ConvNet-D3-W128-IN on [3, 32, 32], 10 classes`.
fn network(Planned { dataset, model, .. }: &Planned) -> String {
    format!("{model} on {:?}, {} classes", dataset.shape(), dataset.classes.len())
}

/// The speed on another machine, as measured there. If the network was not measured, its speed is scaled from the measured
/// ConvNet of the same width and norm that is closest in multiplications, and the text names both networks.
fn known_or_scaled(planned: &Planned, known: &BTreeMap<String, Throughput>) -> Option<(Throughput, Option<String>)> {
    let name = network(planned);
    if let Some(speed) = known.get(&name) {
        return Some((*speed, None));
    }
    let ModelSpec::ConvNet(wanted) = planned.model else { return None };
    let products = multiplications(&wanted, planned.dataset.shape());
    let ratio = |other: &str| {
        let (model, rest) = other.split_once(" on ")?;
        let ModelSpec::ConvNet(layers) = model.parse().ok()? else { return None };
        let shape = serde_json::from_str(rest.rsplit_once(", ")?.0).ok()?;
        ((layers.width, layers.norm) == (wanted.width, wanted.norm)).then(|| multiplications(&layers, shape) / products)
    };
    let ratios = known.iter().filter_map(|(other, speed)| Some((other, speed, ratio(other)?)));
    let (other, speed, ratio) = ratios.min_by(|(_, _, a), (_, _, b)| a.ln().abs().total_cmp(&b.ln().abs()))?;
    let Throughput { forward, input_gradient, training, batch_size } = *speed;
    let [forward, input_gradient, training] = [forward, input_gradient, training].map(|speed| speed * ratio);
    Some((Throughput { forward, input_gradient, training, batch_size }, Some(format!("{name} from {other}"))))
}

/// How many multiplications the convolutions take for one image.
fn multiplications(layers: &ConvNetSpec, [channels, height, width]: [i64; 3]) -> f64 {
    let of = |block: i64| {
        let inputs = if block == 0 { channels } else { layers.width };
        (height >> block) * (width >> block) * inputs * layers.width * 9
    };
    (0..layers.depth).map(|block| of(block) as f64).sum()
}

/// The speed here, measured unless it is known.
fn measured(
    planned: &Planned,
    device: Device,
    speeds: &mut BTreeMap<String, Throughput>,
) -> anyhow::Result<Throughput> {
    let key = format!("{}, {device:?}, {} threads", network(planned), tch::get_num_threads());
    if let Some(speed) = speeds.get(&key) {
        return Ok(*speed);
    }
    let [_, height, width] = planned.dataset.shape();
    let batch = (BATCH * 32 * 32 / (height * width) as usize).clamp(2, 256);
    let speed = throughput::measure(&planned.model, &planned.dataset, batch, device)?;
    speeds.insert(key, speed);
    Ok(speed)
}
