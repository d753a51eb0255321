//! The `c2r` command (docs/cli.md): its arguments, and which module runs each command.

mod allocator;
mod cmd;
mod config;
mod curves;
mod data;
mod fingerprint;
mod help;
mod kernels;
mod leave;
mod overwrite;
mod run_dir;
mod state_dict;
mod throughput;

use std::{num::NonZeroUsize, time::Duration};

use anyhow::Context;
use c2r_base::grad::is_out_of_memory;
use c2r_kernels::FloatFormat;
use c2r_run::{
    arguments, exit,
    signals::{self, Program},
    terminal::{self as ui, Ui},
};
use clap::{Parser, Subcommand, builder::TypedValueParser};

/// Robust dataset distillation (C2R), adversarial attacks and their evaluation
#[derive(Parser)]
#[command(name = "c2r", version, propagate_version = true, max_term_width = 120, after_long_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    global: Global,
}

const EXAMPLES: &str = "\
Examples:
  # Distil the built-in digits into one image per class
  c2r distill --dataset digits --ipc 1 --iterations 300 --seed 7 --run-dir runs/first

  # Train a network on these ten images, adversarially
  c2r train --synthetic runs/first --protocol pgd-at --seed 0 --run-dir runs/first/pgd-at

  # Attack the network
  c2r attack --checkpoint runs/first/pgd-at/model.safetensors --dataset digits \\
      --attack fgsm,pgd --eps 32/255 --each --output runs/first/pgd-at/attack.json

  # Print the results as a table
  c2r table runs/first

Exit codes:
  0    done
  1    unexpected failure
  2    wrong arguments or configuration
  3    data missing or damaged, or an attacked model failed
  4    finished, but numbers are outside the stated tolerance (table, report)
  101  memory ran out, or a defect; the last checkpoint stays
  124  the time limit is over; the state is saved, and the same command resumes
  130  interrupted; the state is saved, and the same command resumes";

/// Options that every command takes.
#[derive(clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// CPU threads [default: all cores]
    ///
    /// Use 1 for networks as small as those for the digits, which gain nothing from more, and on a busy machine, where threads
    /// block one another.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    threads: Option<i32>,

    /// Where to compute: cpu, cuda or cuda:N [default: cuda if available, otherwise cpu]
    #[arg(long, global = true, value_name = "DEVICE", value_parser = parse_device)]
    device: Option<tch::Device>,

    /// Precision of convolutions and matrix products [default: tf32 on a GPU, fp32 on the CPU]
    #[arg(long, global = true, value_name = "FORMAT", value_parser = precisions())]
    precision: Option<FloatFormat>,

    /// Stop after this time, e.g. 90s, 9m or 1h30m
    ///
    /// The exit code is then 124. `distill` and `train` save their state, and the same command resumes; so does `attack` with
    /// --output or --save.
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
    /// Make a table from attack reports
    Table(cmd::table::Args),
    /// Estimate how long commands would take on this machine
    Estimate(cmd::estimate::Args),
    /// Convert another project's distilled set to a synthetic set
    Import(cmd::import::Args),
    /// Write a distilled set for other programs, or a trained network as TorchScript
    Export(cmd::export::Args),
    /// Make a page of tables, charts and pictures from attack reports
    Report(cmd::report::Args),
    /// Describe a file, folder or dataset, and report what looks wrong
    Inspect(cmd::inspect::Args),
    /// Check libtorch, CUDA, threads and data, and suggest fixes
    Doctor(cmd::doctor::Args),
    /// Print hashes of the files that are built into this program
    #[command(hide = true)]
    BuiltIn,
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

fn precisions() -> impl TypedValueParser<Value = FloatFormat> {
    help::one_of([
        (FloatFormat::Fp32, "fp32", "32-bit floats"),
        (
            FloatFormat::Tf32,
            "tf32",
            "TensorFloat-32 (10-bit mantissa) in convolutions, fp32 in matrix products; GPU only",
        ),
        (FloatFormat::Bf16, "bf16", "`c2r train` only; docs/cli.md says what it does to accuracy"),
    ])
}

impl Global {
    /// Sets the number of threads and finds the requested device.
    fn device(&self, ui: &Ui) -> anyhow::Result<tch::Device> {
        if let Some(threads) = self.threads {
            let cores = std::thread::available_parallelism().map_or(usize::MAX, NonZeroUsize::get);
            if let Some(note) = check_threads(threads, cores)? {
                ui.note(note);
            }
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
                let name = run_dir::device_name(device);
                exit::fail(exit::USAGE, format!("--device {name} is not available: {reason}; `c2r doctor` says more"))
            }
            None => Ok(if count > 0 { tch::Device::Cuda(0) } else { tch::Device::Cpu }),
        }
    }

    /// Sets what `--precision` says. Returns whether training is to compute in bf16.
    fn bf16(&self, command: &Command, device: tch::Device) -> anyhow::Result<bool> {
        match self.precision {
            Some(FloatFormat::Bf16) if !matches!(command, Command::Train(_)) => exit::fail(
                exit::USAGE,
                "--precision bf16 is for `c2r train` only: sets and accuracies computed in bf16 are not comparable with \
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

/// More threads for each core take so long that a command seems to hang.
const MOST_THREADS_PER_CORE: usize = 16;

/// A note where threads block one another, an error where nothing would get done.
fn check_threads(threads: i32, cores: usize) -> anyhow::Result<Option<String>> {
    let n = threads as usize;
    let here = ui::counted(cores, "core");
    if n > cores.saturating_mul(MOST_THREADS_PER_CORE) {
        let message = format!(
            "--threads {n} is too many: the command has {here}, and the threads would only block one another; use at most \
             {cores}"
        );
        return exit::fail(exit::USAGE, message);
    }
    let note =
        || format!("note: --threads {n} is slow here: the command has {here}, and threads will block one another");
    Ok((n > cores).then(note))
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if !matches!(cli.command, Command::Distill(_)) {
        allocator::use_small_pages();
    }
    signals::listen(Program::Command)?;
    if let Some(limit) = cli.global.time_limit {
        signals::set_time_limit(limit);
    }
    if runs_models(&cli.command) {
        ui::keep_stdout().context("cannot set up stdout")?;
    }
    let ui = Ui { quiet: cli.global.quiet, verbose: cli.global.verbose };
    let device = cli.global.device(&ui)?;
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
        Command::BuiltIn => cmd::built_in::run(&ui),
        Command::Doctor(args) => cmd::doctor::run(args, cli.global.threads.is_some(), device, &ui),
    }
}

/// Commands that run other people's models, whose prints would otherwise be among ours.
fn runs_models(command: &Command) -> bool {
    matches!(command, Command::Attack(_) | Command::Inspect(_))
}

/// What the command line `words` would do, for `estimate`.
fn planned(words: &[String], written: &mut cmd::estimate::Written) -> anyhow::Result<cmd::estimate::Planned> {
    let cli: Cli = arguments::parse_from(std::iter::once("c2r").chain(words.iter().map(String::as_str)))
        .map_err(|error| exit::usage(refusal(&error)))?;
    match cli.command {
        Command::Distill(args) => cmd::distill::planned(&args, written),
        Command::Train(args) => cmd::train::planned(&args, written),
        Command::Attack(args) => cmd::attack::planned(&args, written),
        _ => anyhow::bail!("only distill, train and attack have an estimate; the other commands take seconds"),
    }
}

/// What is wrong with a command line, without its usage.
fn refusal(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let reason = text.split("\n\n").next().unwrap_or(&text);
    reason.trim().trim_start_matches("error: ").to_owned()
}

/// What to do about an error that says that memory ran out.
fn memory_advice(error: &str) -> Option<&'static str> {
    is_out_of_memory(error).then_some(
        "memory ran out: work on fewer images at once (attack: --batch-size N, which may change when a run resumes; train: \
         --set batch-size=N; distill: --set matching.real-per-class=N or images.batch-per-class=N), or free memory and run the \
         same command again, which resumes from its last checkpoint, if it keeps any",
    )
}

fn main() -> ! {
    allocator::keep_memory();
    ui::catch_panics(memory_advice);
    leave::now(arguments::parse().map_or_else(|code| code, |cli| ui::conclude(run(cli), memory_advice)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first is what libtorch said on the CPU where memory was limited, shortened; the second has the form that its source gives.
    #[test]
    fn what_to_do_is_said_where_memory_ran_out() {
        for said in [
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 786432000 bytes.",
            "CUDA out of memory. Tried",
        ] {
            let advice = memory_advice(said).unwrap();
            assert!(advice.contains("--batch-size") && !advice.contains('\n'), "{advice}");
        }
        assert_eq!(memory_advice("the size of tensor a (3) must match that of b"), None);
    }

    #[test]
    fn too_many_threads_are_noted_and_far_too_many_refused() {
        assert_eq!([1, 2].map(|threads| check_threads(threads, 2).unwrap()), [None, None]);
        let note = check_threads(32, 2).unwrap().unwrap();
        assert!(note.contains("--threads 32 is slow here: the command has 2 cores"), "{note}");
        let error = check_threads(33, 2).unwrap_err();
        assert!(exit::code_of(&error) == exit::USAGE && error.to_string().contains("use at most 2"), "{error}");
        assert!(check_threads(i32::MAX, usize::MAX).unwrap().is_none(), "the number of cores is not known");
    }
}
