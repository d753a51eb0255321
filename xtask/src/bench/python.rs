//! What both comparisons with Python take and need.

use std::{path::PathBuf, process::Command};

use anyhow::Context;
use c2r_run::{exit, process};
use c2r_setup::python::Environment;
use serde::{Serialize, de::DeserializeOwned};

/// What the environment holds. torchattacks and pyautoattack do not pin what they need.
const REQUIREMENTS: &[&str] = &[
    "torch==2.11.0",
    "torchvision==0.26.0",
    "torchattacks==3.5.1",
    "pyautoattack==0.2.0",
    "safetensors==0.8.0",
    "numpy==2.4.6",
    "scipy==1.17.1",
    "tqdm==4.70.1",
];
const ENVIRONMENT: Environment = Environment { folder: "peers-1", requirements: REQUIREMENTS, size: "5 GB" };

/// What `--peers` takes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Peers {
    /// Run c2r and a Python reference in turn
    #[arg(long)]
    pub(super) peers: bool,

    /// TorchScript model; needs --inputs [default: the small digits network of the tests, or the reference network in ../shared/goldens if that folder exists]
    #[arg(long, value_name = "FILE", requires_all = ["peers", "inputs"])]
    pub(super) model: Option<PathBuf>,

    /// File of images: safetensors with `images` and `labels`
    #[arg(long, value_name = "FILE", requires_all = ["peers", "model"])]
    pub(super) inputs: Option<PathBuf>,

    /// Linf radius: a fraction such as 2/255 or a decimal [default: 2/255; 0.15 on the digits]
    #[arg(long, value_name = "EPS", requires = "peers")]
    pub(super) eps: Option<String>,

    /// Number of images to attack [default: 200, AutoAttack: 50]
    ///
    /// With `bench data`: JPEGs to make [default: 3000]. For distill: real images per class [default: 256].
    #[arg(long, value_name = "N", requires = "peers")]
    pub(super) n: Option<usize>,

    /// Run only these attacks, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "peers")]
    pub(super) only: Vec<String>,

    /// Where to compute: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = parse_device)]
    pub(super) device: String,

    /// With `bench distill`: width of the ConvNet-D3 [default: 128]
    #[arg(long, value_name = "N", requires = "peers", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(super) width: Option<u32>,

    /// CPU threads of both sides [default: all cores]
    #[arg(long, value_name = "N", requires = "peers")]
    pub(super) threads: Option<usize>,

    /// Rounds, each with its own seed [default: 3, AutoAttack: 1]
    ///
    /// The mean of the accuracies and the median of the times are reported.
    #[arg(long, value_name = "N", requires = "peers", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) repeats: Option<u32>,

    /// With `bench data`: make the JPEGs from enlarged pictures of this folder [default: from noise with the spectrum of photographs]
    #[arg(long, value_name = "DIR", requires = "peers")]
    pub(super) pictures: Option<PathBuf>,

    /// Python interpreter that has the packages already
    #[arg(long, value_name = "FILE", requires = "peers")]
    pub(super) python: Option<PathBuf>,

    /// Also write every measured time to this file
    ///
    /// With `bench gpu`: one line of JSON for each measured time [default: bench-gpu.jsonl next to the program c2r].
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
}

fn parse_device(text: &str) -> Result<String, String> {
    let is_gpu = text.strip_prefix("cuda").is_some_and(|index| {
        index.is_empty() || index.strip_prefix(':').is_some_and(|index| index.parse::<u16>().is_ok())
    });
    if is_gpu || text == "cpu" { Ok(text.to_owned()) } else { Err("expected cpu, cuda or cuda:N".to_owned()) }
}

impl Peers {
    /// The script at `path` with the given Python, or with one that has the packages.
    pub(super) fn script(&self, path: PathBuf) -> anyhow::Result<Script> {
        let interpreter = self.python.clone().map_or_else(|| ENVIRONMENT.python(), Ok)?;
        Ok(Script { interpreter, path })
    }

    /// Writes every single time where the user asked for it.
    pub(super) fn write_json(&self, times: &impl Serialize) -> anyhow::Result<()> {
        Ok(self.json.iter().try_for_each(|path| c2r_files::write_json(path, times))?)
    }

    /// CPU threads of both sides.
    pub(super) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }
}

/// The median of at least one number.
pub(super) fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    let middle = seconds.len() / 2;
    if seconds.len() % 2 == 1 { seconds[middle] } else { (seconds[middle - 1] + seconds[middle]) / 2.0 }
}

/// A Python script with its interpreter.
pub(super) struct Script {
    interpreter: PathBuf,
    path: PathBuf,
}

impl Script {
    /// What the script prints when it is called with `words`.
    pub(super) fn call(&self, words: &[&str]) -> anyhow::Result<String> {
        let printed = printed(Command::new(&self.interpreter).arg(&self.path).args(words))?;
        let advice = || exit::usage(format!("`{}` does not exist; give another --python", self.interpreter.display()));
        printed.ok_or_else(advice)
    }

    /// The last line that it prints, as JSON; libraries may print lines of their own before.
    pub(super) fn json<T: DeserializeOwned>(&self, words: &[&str]) -> anyhow::Result<T> {
        json(&self.call(words)?)
    }
}

/// The last line of what a program printed.
pub(super) fn json<T: DeserializeOwned>(printed: &str) -> anyhow::Result<T> {
    let last = printed.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("the program printed `{last}`"))
}

/// What a program that was built here prints.
///
/// # Errors
/// If it is not there or fails; then with what it says.
pub(super) fn printed_by(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().display().to_string();
    printed(command)?.ok_or_else(|| exit::usage(format!("`{program}` does not exist; build it")))
}

/// What a program prints; `None` if it is not there.
fn printed(command: &mut Command) -> anyhow::Result<Option<String>> {
    process::check_interrupt()?;
    let program = command.get_program().display().to_string();
    let Some(output) = process::output(command)? else { return Ok(None) };
    process::check_interrupt()?;
    anyhow::ensure!(
        output.status.success(),
        "`{program}` failed ({}):\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(Some(String::from_utf8(output.stdout)?))
}
