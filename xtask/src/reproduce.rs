//! `cargo xtask reproduce`: fills a table of the paper, through the public `c2r` command line only.

mod board;
mod estimate;
mod experiment;
mod plan;
mod record;
mod run;

use std::{
    collections::BTreeMap,
    env, fs,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::Context;
use fs4::fs_std::FileExt;

use crate::{
    checkout::{self, Checkout},
    exit, process, setup, ui,
};
use experiment::{Experiment, Scale};
use plan::{Only, Place, Step};

/// The scale whose commands take days: its time is estimated first.
const LONG_SCALE: &str = "paper";

/// Fill a table of the paper: distil, train, attack, and print it
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask reproduce table2 --scale quick
  cargo xtask reproduce table2 --scale small --data ~/datasets
  cargo xtask reproduce table2 --scale paper --data ~/datasets --only dataset=cifar10,ipc=10,seed=0
  cargo xtask reproduce table2 --scale quick --only method=c2r --dry-run
  cargo xtask reproduce --list

What is finished is not run again, and what was interrupted goes on where it stopped.
Exit codes: 0 done, 1 a command failed, 2 wrong arguments, 3 data missing, 4 numbers outside the tolerance, 130 interrupted.")]
pub(crate) struct Args {
    /// A file of data/paper, without `.toml`
    #[arg(required_unless_present = "list")]
    experiment: Option<String>,

    /// Which grid of the experiment: quick, small or paper
    #[arg(long, required_unless_present = "list")]
    scale: Option<String>,

    /// Folder with the datasets [default: the variable C2R_DATA]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Only this part of the grid, e.g. dataset=cifar10,ipc=10,method=c2r,seed=0,protocol=natural
    #[arg(long, value_name = "KEY=VALUE,..")]
    only: Vec<Only>,

    /// Other seeds than those of the grid
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    seeds: Vec<u64>,

    /// Other methods than those of the grid
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    methods: Vec<String>,

    /// How many commands run at once [default: as many as the cores carry]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,

    /// Device for every command: cpu, cuda, cuda:N [default: cuda if it comes up, else cpu]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,

    /// Where results go
    #[arg(long, value_name = "DIR", default_value = "runs")]
    results: PathBuf,

    /// Overwrite results of another configuration
    #[arg(long)]
    force: bool,

    /// Do not measure first how long the scale `paper` will take
    #[arg(long)]
    no_estimate: bool,

    /// Print the commands, run none
    #[arg(long)]
    dry_run: bool,

    /// Print the experiments with their scales
    #[arg(long)]
    list: bool,
}

/// The command.
pub(crate) fn run(args: &Args, checkout: &Checkout) -> anyhow::Result<()> {
    if args.list {
        return list(checkout);
    }
    let (Some(name), Some(scale_name)) = (&args.experiment, &args.scale) else {
        return Err(exit::usage("which experiment, and at which --scale? `--list` shows them"));
    };
    let experiment = Experiment::read(checkout, name)?;
    let mut scale = experiment.scale(scale_name)?.clone();
    if !args.seeds.is_empty() {
        scale.seeds.clone_from(&args.seeds);
    }
    if !args.methods.is_empty() {
        scale.methods.clone_from(&args.methods);
    }
    let user_folder = env::current_dir()?;
    let place = Place {
        root: checkout.root().to_owned(),
        runs: results_folder(args, checkout, &user_folder).join(format!("{name}-{scale_name}")),
        data: args.data.clone().or_else(|| env::var_os("C2R_DATA").map(PathBuf::from)).map(|dir| user_folder.join(dir)),
        threads: scale.threads,
        device: args.device.clone(),
        force: args.force,
    };
    let steps = plan::expand(&experiment, &scale, &Only::merge(args.only.clone()), &place)?;
    if args.dry_run {
        print_commands(&steps, &table_args(name, scale_name, &place), checkout);
        return Ok(());
    }

    setup::ensure(checkout)?;
    checkout.build_c2r()?;
    let _lock = lock(&place.runs)?;
    ui::note(format!("{}, scale {scale_name}: {}", experiment.title, scale.about));
    let finished = run::finished(&steps);
    let n_open = finished.iter().filter(|&&done| !done).count();
    let n_jobs = n_jobs(args, &scale, n_open);
    if n_open == 0 {
        ui::note(format!("all {} commands were finished before", steps.len()));
    } else {
        ui::note(format!(
            "{} commands, {n_open} of them to run, {n_jobs} at once; results in {}",
            steps.len(),
            checkout.relative(&place.runs).display()
        ));
        if scale_name == LONG_SCALE && !args.no_estimate {
            estimate::print(&steps, &finished, n_jobs, checkout)?;
        }
    }
    let summary = run::run(&steps, &finished, n_jobs, checkout)?;
    if n_open > 0 {
        ui::note(format!(
            "{} commands finished, {} of them before",
            summary.n_finished + summary.n_reused,
            summary.n_reused
        ));
    }
    let outside = if summary.n_finished + summary.n_reused > 0 {
        table(&table_args(name, scale_name, &place), checkout)?
    } else {
        false
    };
    conclude(&summary, &steps, outside)
}

/// Relative to where the user stands, except for the default, which belongs to the checkout.
fn results_folder(args: &Args, checkout: &Checkout, user_folder: &Path) -> PathBuf {
    let is_default = args.results.as_os_str() == "runs";
    if is_default { checkout.root().join(&args.results) } else { user_folder.join(&args.results) }
}

/// As many commands at once as the cores carry; small networks gain nothing from many threads each.
fn n_jobs(args: &Args, scale: &Scale, n_open: usize) -> usize {
    let n_cores = thread::available_parallelism().map_or(1, usize::from);
    let carried = scale.threads.map_or(1, |threads| (n_cores / threads).max(1));
    args.jobs.map_or(carried, usize::from).min(n_open.max(1))
}

fn list(checkout: &Checkout) -> anyhow::Result<()> {
    for name in experiment::names(checkout)? {
        let experiment = Experiment::read(checkout, &name)?;
        ui::out(format!("{name}: {}", experiment.title));
        for (scale, grid) in &experiment.scales {
            ui::out(format!("  --scale {scale}: {}", grid.about));
            ui::out(format!(
                "    methods {}; datasets {}; ipc {}; seeds {}; {}; attacks {}",
                grid.methods.join(", "),
                grid.datasets.join(", "),
                grid.ipcs.iter().map(u32::to_string).collect::<Vec<_>>().join(", "),
                grid.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
                grid.protocols.join(", "),
                grid.attacks.join(", ")
            ));
        }
    }
    Ok(())
}

fn print_commands(steps: &[Step], table_args: &[String], checkout: &Checkout) {
    let c2r = checkout.relative(&checkout.c2r()).display().to_string();
    for step in steps {
        let words = std::iter::once(c2r.as_str()).chain(step.args().map(String::as_str));
        ui::out(process::shell_line(words));
    }
    ui::out(process::shell_line(std::iter::once(c2r.as_str()).chain(table_args.iter().map(String::as_str))));
}

fn table_args(name: &str, scale: &str, place: &Place) -> Vec<String> {
    let runs = place.runs.strip_prefix(&place.root).unwrap_or(&place.runs).display().to_string();
    let file = Experiment::path(name);
    ["table", &runs, "--experiment", &file, "--scale", scale, "--output-dir", &runs].map(String::from).into()
}

/// Two reproductions in one folder would start the same commands.
fn lock(runs: &Path) -> anyhow::Result<fs::File> {
    fs::create_dir_all(runs).with_context(|| format!("cannot create {}", runs.display()))?;
    let path = runs.join(".lock");
    let file = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    if !FileExt::try_lock_exclusive(&file).with_context(|| format!("cannot lock {}", path.display()))? {
        return Err(exit::usage(format!(
            "another `cargo xtask reproduce` works in {}; wait for it or choose another --results",
            runs.display()
        )));
    }
    Ok(file)
}

/// Prints the table; `true` if numbers are outside the tolerance.
fn table(args: &[String], checkout: &Checkout) -> anyhow::Result<bool> {
    let mut command = Command::new(checkout.c2r());
    command.args(args).current_dir(checkout.root());
    checkout::with_libtorch(&mut command, &checkout.libtorch_link());
    let status = process::foreground(&mut command, |_| {})?;
    match status.code() {
        Some(0) => Ok(false),
        Some(code) if code == i32::from(exit::OUTSIDE_TOLERANCE) => Ok(true),
        _ => Err(exit::error(exit::UNEXPECTED, format!("`c2r table` failed ({status}); the reason stands above"))),
    }
}

/// The last word: what failed, grouped, because one missing dataset fails many commands.
fn conclude(summary: &run::Summary, steps: &[Step], outside: bool) -> anyhow::Result<()> {
    if summary.failures.is_empty() {
        return if outside {
            Err(exit::error(
                exit::OUTSIDE_TOLERANCE,
                "finished, but numbers are outside the tolerance (marked in the table)",
            ))
        } else {
            Ok(())
        };
    }
    let mut by_reason: BTreeMap<String, Vec<&run::Failure>> = BTreeMap::new();
    for failure in &summary.failures {
        let reason = log_tail(&steps[failure.position].log, 1).pop().unwrap_or_default();
        by_reason.entry(reason).or_default().push(failure);
    }
    for failures in by_reason.values() {
        ui::note(format!("\n{}", failures[0].report));
        if failures.len() > 1 {
            let others: Vec<String> = failures[1..].iter().map(|failure| steps[failure.position].name()).collect();
            ui::note(format!("  the same in {} more: {}", others.len(), others.join(", ")));
        }
    }
    let codes: Vec<u8> = summary.failures.iter().map(|failure| failure.code).collect();
    let code = if codes.iter().all(|code| *code == codes[0]) { codes[0] } else { exit::UNEXPECTED };
    let blocked = match summary.n_blocked {
        0 => String::new(),
        n_blocked => format!(", so {n_blocked} that need them did not run"),
    };
    Err(exit::error(
        code,
        format!("{} commands failed{blocked}; fix the cause and run the same command again", codes.len()),
    ))
}

/// The last lines of a log that say something; a progress bar's carriage returns count as line ends.
fn log_tail(path: &Path, n_lines: usize) -> Vec<String> {
    const BYTES: u64 = 16 << 10;
    let Ok(mut file) = fs::File::open(path) else { return vec![] };
    let length = file.metadata().map_or(0, |data| data.len());
    if file.seek(SeekFrom::Start(length.saturating_sub(BYTES))).is_err() {
        return vec![];
    }
    let mut bytes = Vec::new();
    if file.read_to_end(&mut bytes).is_err() {
        return vec![];
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<String> =
        text.split(['\n', '\r']).map(str::trim_end).filter(|line| !line.is_empty()).map(String::from).collect();
    lines.drain(..lines.len().saturating_sub(n_lines));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        assert!(log_tail(&log, 3).is_empty());
        fs::write(&log, "one\ntwo\n\nthree 10%\rthree 20%  \n").unwrap();
        assert_eq!(log_tail(&log, 2), ["three 10%", "three 20%"]);
        assert_eq!(log_tail(&log, 9).len(), 4);
        fs::write(&log, "x".repeat(100_000) + "\nlast\n").unwrap();
        assert_eq!(log_tail(&log, 1), ["last"]);
    }

    #[test]
    fn failures_that_agree_give_their_code() {
        let failure = |code| run::Failure { position: 0, code, report: "why".into() };
        let summary = |codes: &[u8]| run::Summary {
            failures: codes.iter().map(|&code| failure(code)).collect(),
            ..run::Summary::default()
        };
        let experiment = experiment::tests::example();
        let place = Place {
            root: "/repo".into(),
            runs: "/repo/runs".into(),
            data: None,
            threads: None,
            device: None,
            force: false,
        };
        let steps = plan::expand(&experiment, experiment.scale("quick").unwrap(), &Only::default(), &place).unwrap();
        let code = |codes: &[u8], outside| match conclude(&summary(codes), &steps, outside) {
            Ok(()) => 0,
            Err(error) => exit::code_of(&error),
        };
        assert_eq!(code(&[], false), 0);
        assert_eq!(code(&[], true), exit::OUTSIDE_TOLERANCE);
        assert_eq!(code(&[3, 3], false), 3);
        assert_eq!(code(&[3, 1], true), exit::UNEXPECTED);
    }
}
