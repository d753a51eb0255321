//! The `c2r` command (docs/cli.md): its arguments, and which module runs each command.

mod allocator;
mod cmd;
mod config;
mod curves;
mod data;
mod run_dir;
mod state_dict;
mod throughput;

use std::{process::ExitCode, time::Duration};

use c2r_kernels::FloatFormat;
use c2r_run::{
    arguments, exit,
    signals::{self, Program},
    terminal::{self as ui, Ui},
};
use clap::{Parser, Subcommand};

/// Robust dataset distillation (C2R), adversarial attacks and honest evaluation on libtorch.
#[derive(Parser)]
#[command(name = "c2r", version, propagate_version = true, max_term_width = 120, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    global: Global,
}

const EXAMPLES: &str = "\
Examples:
  c2r distill --dataset digits --ipc 1 --iterations 300 --seed 7 --run-dir runs/first
  c2r train --synthetic runs/first/synthetic.safetensors --protocol pgd-at --seed 0 --run-dir runs/first/pgd-at
  c2r attack --checkpoint runs/first/pgd-at/model.safetensors --dataset digits --attack fgsm,pgd --eps 32/255 --each

Exit codes: 0 done, 1 unexpected failure, 2 wrong arguments or configuration, 3 data missing or wrong, \
4 finished but outside the stated tolerance, 124 the time limit is over, 130 interrupted (after both the state is saved: run \
the same command again to resume).";

/// Options that every command takes.
#[derive(clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// CPU threads [default: all cores]. Use 1 for networks as small as those for the digits, which gain nothing from more,
    /// and on a busy machine, where threads block one another
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    threads: Option<i32>,

    /// Where to compute: cpu, cuda or cuda:N [default: cuda if available, otherwise cpu]
    #[arg(long, global = true, value_name = "DEVICE", value_parser = parse_device)]
    device: Option<tch::Device>,

    /// Floats of convolutions and matrix products: fp32; tf32 (convolutions on a GPU round their factors to 10 bits); bf16
    /// (train only; its effect on accuracy has not been studied) [default: tf32 on a GPU, fp32 on the CPU]
    #[arg(long, global = true, value_name = "FORMAT", value_parser = parse_precision)]
    precision: Option<FloatFormat>,

    /// Stop after this time, e.g. 90s, 9m, 1h30m: save the state and exit with 124; the same command resumes
    #[arg(long, global = true, value_name = "TIME", value_parser = arguments::duration)]
    time_limit: Option<Duration>,

    /// Print results and errors only
    #[arg(short, long, global = true)]
    quiet: bool,

    /// Print more notes on stderr
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Distil a training set into a few images per class
    Distill(cmd::distill::Args),
    /// Train a network on a synthetic or a real training set
    Train(cmd::train::Args),
    /// Attack a classifier and report its robust accuracy
    Attack(Box<cmd::attack::Args>),
    /// Make a table from folders of attack reports
    Table(cmd::table::Args),
    /// Estimate how long commands would take on this machine
    Estimate(cmd::estimate::Args),
    /// Convert a distilled set of another project to a synthetic set
    Import(cmd::import::Args),
    /// Write a distilled set for other programs, or a trained network as TorchScript
    Export(cmd::export::Args),
    /// Make one page of tables, charts and pictures from folders of attack reports
    Report(cmd::report::Args),
    /// Show what a file, folder or dataset is, and what looks wrong with it
    Inspect(cmd::inspect::Args),
    /// Check libtorch, CUDA, threads and data, and say how to fix what is missing
    Doctor(cmd::doctor::Args),
}

fn parse_device(text: &str) -> Result<tch::Device, String> {
    match text.split_once(':') {
        None if text == "cpu" => Ok(tch::Device::Cpu),
        None if text == "cuda" => Ok(tch::Device::Cuda(0)),
        Some(("cuda", index)) => {
            index.parse().map(tch::Device::Cuda).map_err(|_| format!("`{index}` is not a GPU number"))
        }
        _ => Err("expected cpu, cuda or cuda:N".to_owned()),
    }
}

fn parse_precision(text: &str) -> Result<FloatFormat, String> {
    use FloatFormat::{Bf16, Fp32, Tf32};
    let found = [Fp32, Tf32, Bf16].into_iter().find(|format| format.to_string() == text);
    found.ok_or_else(|| "expected fp32, tf32 or bf16".to_owned())
}

impl Global {
    /// Sets the number of threads and finds the requested device.
    fn device(&self) -> anyhow::Result<tch::Device> {
        if let Some(threads) = self.threads {
            tch::set_num_threads(threads);
        }
        if self.device == Some(tch::Device::Cpu) {
            return Ok(tch::Device::Cpu);
        }
        let loaded = c2r_base::native::load_cuda();
        let count = tch::Cuda::device_count();
        match self.device {
            Some(tch::Device::Cuda(index)) if (index as i64) < count => Ok(tch::Device::Cuda(index)),
            Some(device) => {
                let reason = loaded.err().unwrap_or_else(|| format!("{count} GPUs are visible"));
                exit::fail(exit::USAGE, format!("{device:?} is not available: {reason}; see `c2r doctor`"))
            }
            None => Ok(if count > 0 { tch::Device::Cuda(0) } else { tch::Device::Cpu }),
        }
    }

    /// Sets what `--precision` says. Returns whether training is to compute in bf16.
    fn bf16(&self, command: &Command, device: tch::Device) -> anyhow::Result<bool> {
        match self.precision {
            Some(FloatFormat::Bf16) if !matches!(command, Command::Train(_)) => exit::fail(
                exit::USAGE,
                "--precision bf16 is for `c2r train` only: a distilled set or an accuracy in bf16 does not compare with \
                 others; use fp32 or tf32",
            ),
            Some(FloatFormat::Tf32) if !device.is_cuda() => exit::fail(
                exit::USAGE,
                "--precision tf32 needs an NVIDIA GPU: the CPU computes in fp32; leave --precision out, or use fp32",
            ),
            precision => {
                c2r_kernels::allow_tf32(precision != Some(FloatFormat::Fp32));
                Ok(precision == Some(FloatFormat::Bf16))
            }
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    signals::listen(Program::Command)?;
    if let Some(limit) = cli.global.time_limit {
        signals::set_time_limit(limit);
    }
    let ui = Ui { quiet: cli.global.quiet, verbose: cli.global.verbose };
    let device = cli.global.device()?;
    let bf16 = cli.global.bf16(&cli.command, device)?;
    match cli.command {
        Command::Distill(args) => cmd::distill::run(args, device, &ui),
        Command::Train(args) => cmd::train::run(args, device, bf16, &ui),
        Command::Attack(args) => cmd::attack::run(*args, device, &ui),
        Command::Table(args) => cmd::table::run(args, &ui),
        Command::Estimate(args) => cmd::estimate::run(&args, planned, device, &ui),
        Command::Import(args) => cmd::import::run(args, &ui),
        Command::Export(args) => cmd::export::run(args, &ui),
        Command::Report(args) => cmd::report::run(args, &ui),
        Command::Inspect(args) => cmd::inspect::run(args, &ui),
        Command::Doctor(args) => cmd::doctor::run(args, device, &ui),
    }
}

/// What the command line `words` would do, for `estimate`.
fn planned(words: &[String], written: &mut cmd::estimate::Written) -> anyhow::Result<cmd::estimate::Planned> {
    let cli: Cli = arguments::parse_from(std::iter::once("c2r").chain(words.iter().map(String::as_str)))?;
    match cli.command {
        Command::Distill(args) => cmd::distill::planned(&args, written),
        Command::Train(args) => cmd::train::planned(&args, written),
        Command::Attack(args) => cmd::attack::planned(&args, written),
        _ => anyhow::bail!("only distill, train and attack take long"),
    }
}

fn main() -> ExitCode {
    allocator::keep_memory();
    ui::catch_panics();
    arguments::parse().map_or_else(|code| code, |cli| ui::conclude(run(cli)))
}
