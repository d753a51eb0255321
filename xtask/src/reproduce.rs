//! `cargo xtask reproduce`: fills a table of the paper, through the public `c2r` command line only; of its own it keeps a
//! record of each command, and copies small files into the folder of the table. docs/reproduce.md says how.

mod board;
pub(crate) mod data;
mod estimate;
mod identity;
mod lease;
pub(crate) mod plan;
pub(crate) mod record;
pub(crate) mod run;
mod slurm;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::Context;
use c2r_experiment::{COMMON, Experiment, Scale};

use crate::{
    checkout::{self, Checkout},
    exit, process, setup, ui,
};
use data::Datasets;
use plan::{Only, Place, Plan, Planner, Shard, Step};

/// Where the experiment files lie.
const FOLDER: &str = "data/paper";

/// The page beside the tables.
const PAGE: &str = "report.html";

/// The scale whose commands take days: its time is estimated first.
const LONG_SCALE: &str = Experiment::PAPER_SCALE;

/// Fill a table of the paper: distil, train, attack, and print it
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask reproduce --list
  cargo xtask reproduce table2 --list --scale small --data ~/datasets
  cargo xtask reproduce table2 --scale quick
  cargo xtask reproduce table2 --scale small --data ~/datasets --dry-run
  cargo xtask reproduce table2 --scale paper --data ~/datasets --only dataset=cifar10,ipc=10,seed=0
  cargo xtask reproduce ablation --scale paper --data ~/datasets --shard 2/8
  cargo xtask reproduce table2 --scale paper --data ~/datasets --launcher slurm --sbatch '--partition=gpu --gres=gpu:1'

What is finished is not run again, by whichever experiment it was asked for first; what was interrupted goes on where it \
stopped; several processes or machines may share one --results folder. docs/reproduce.md says how that works.
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

    /// Only this part of the grid, e.g. dataset=cifar10,ipc=10,method=c2r,seed=0,protocol=natural,attack=pgd
    #[arg(long, value_name = "KEY=VALUE,..")]
    only: Vec<Only>,

    /// Only the I-th of N parts of the grid, for N machines that each take another I
    #[arg(long, value_name = "I/N", default_value_t = Shard::ALL)]
    shard: Shard,

    /// The grid with these seeds instead of its own; table and report count by them
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    seeds: Vec<u64>,

    /// The grid with these methods instead of its own; `all`: every method of the scale `paper`. What is not named is left
    /// out, references and baseline too: without the baseline there are no p-values (--only runs a part of a grid and
    /// keeps the rest in its table)
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    methods: Vec<String>,

    /// Judge on training images that nothing was trained on instead of on test images, for choosing settings; for scales
    /// that train on a part
    #[arg(long)]
    held_out: bool,

    /// How many commands run at once [default: as many as the cores carry]; with Slurm, how many tasks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,

    /// Device for every command: cpu, cuda, cuda:N [default: cuda if it comes up, else cpu]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,

    /// Where results go; may be shared with other processes and machines
    #[arg(long, value_name = "DIR", default_value = "runs")]
    results: PathBuf,

    /// Who runs the commands: this machine, or a job array of a Slurm cluster that sees the same folders
    #[arg(long, value_enum, default_value_t = Launcher::Local)]
    launcher: Launcher,

    /// Options for sbatch, e.g. '--partition=gpu --time=12:00:00 --gres=gpu:1' (repeatable)
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    sbatch: Vec<String>,

    /// Tasks of the job array [default: one for each distilled set, at most 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    tasks: Option<u16>,

    /// Run finished commands again, and discard what they wrote
    #[arg(long)]
    force: bool,

    /// Do not say first how long the scale `paper` will take
    #[arg(long)]
    no_estimate: bool,

    /// Make no table at the end
    #[arg(long)]
    no_table: bool,

    /// Neither set up nor build: c2r is built already, and this machine need not be able to
    #[arg(long)]
    prebuilt: bool,

    /// Print what would be run, as a shell script that ends in the same table and report, and what it costs here
    #[arg(long)]
    dry_run: bool,

    /// Print the experiments, or the one that is named, at every scale or at --scale: size, what is finished, how long the
    /// rest takes here
    #[arg(long, conflicts_with_all = ["only", "shard", "seeds", "methods", "held_out", "force", "dry_run"])]
    list: bool,
}

/// Who runs the commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Launcher {
    Local,
    Slurm,
}

/// The command.
pub(crate) fn run(args: &Args, checkout: &Checkout) -> anyhow::Result<()> {
    let place = place(args, checkout)?;
    if args.list {
        return list(args, &place, checkout);
    }
    let (Some(name), Some(scale_name)) = (&args.experiment, &args.scale) else {
        return Err(exit::usage("which experiment, and at which --scale? `--list` shows them"));
    };
    if args.sbatch.iter().any(|options| !options.is_empty()) && args.launcher != Launcher::Slurm {
        return Err(exit::usage("--sbatch is for --launcher slurm"));
    }
    let mut experiment = read(checkout, name)?;
    experiment.change_grid(scale_name, &args.seeds, &args.methods).map_err(exit::usage)?;
    let mut scale = experiment.scale(scale_name).map_err(exit::usage)?.clone();
    scale.held_out |= args.held_out;
    if scale.held_out && scale.train_per_class.is_none() {
        return Err(exit::usage(format!("--held-out: scale {scale_name} trains on all images (no train-per-class)")));
    }
    let place = Place { threads: scale.threads, ..place };
    let datasets = Datasets::read(&place)?;
    let planner = Planner { experiment: &experiment, scale: &scale, place: &place, datasets: &datasets };
    let only = Only::merge(args.only.clone());
    let plan = planner.plan(&only, args.shard)?;
    if let Some(method) = args.methods.iter().find(|method| plan.without_profile.contains(*method)) {
        return Err(exit::usage(format!("method `{method}` is not implemented: its profile is not in data/profiles")));
    }
    scale.changes.iter().for_each(|change| ui::note(format!("not the grid of the file: {change}")));
    say_what_is_missing(&experiment, &plan);
    let absent = datasets.missing(plan.steps.iter().map(|step| step.cell.dataset.as_str()));
    let judged = if scale.held_out { "-held-out" } else { "" };
    let job = Job { name: format!("{name}-{scale_name}{judged}"), args, scale: &scale, place: &place, checkout };
    let (table_args, report_args) = job.result_args(name, scale_name);
    if args.dry_run {
        let whole = planner.plan(&Only::default(), Shard::ALL)?;
        return dry_run(&job, &plan, &whole, &[&table_args, &report_args], &absent);
    }
    if !absent.is_empty() {
        return Err(exit::error(exit::DATA, no_data_to_run(&absent, &place)));
    }
    if args.prebuilt {
        if !checkout.c2r().is_file() {
            return Err(exit::usage(format!("--prebuilt: there is no {}", checkout.c2r().display())));
        }
    } else {
        setup::ensure(checkout)?;
        checkout.build_c2r()?;
    }
    ui::note(format!("{}, scale {scale_name}: {}", experiment.title, scale.about));
    let summary = job.run(&plan)?;
    let mut outside = false;
    if summary.n_done() > 0 && !args.no_table {
        let whole = planner.plan(&Only::default(), Shard::ALL)?;
        let absent = datasets.missing(scale.datasets.iter().map(String::as_str));
        if view::update(&job.table_folder(), &whole.steps, &run::finished(&whole.steps), &absent)? > 0 {
            outside = table(&table_args, checkout)?;
            report(&report_args, checkout)?;
        }
    }
    conclude(&summary, &plan.steps, outside)
}

/// Where everything is, as the user said it.
fn place(args: &Args, checkout: &Checkout) -> anyhow::Result<Place> {
    let user_folder = env::current_dir()?;
    // Relative to where the user stands, except for the default, which belongs to the checkout.
    let is_default = args.results.as_os_str() == "runs";
    let results = if is_default { checkout.root().join(&args.results) } else { user_folder.join(&args.results) };
    if results.exists() && !results.is_dir() {
        return Err(exit::usage(format!("--results {}: this is no folder", results.display())));
    }
    let data = args.data.clone().or_else(|| env::var_os("C2R_DATA").filter(|dir| !dir.is_empty()).map(PathBuf::from));
    Ok(Place {
        root: checkout.root().to_owned(),
        results,
        data: data.map(|dir| user_folder.join(dir)),
        threads: None,
        device: args.device.clone(),
        force: args.force,
    })
}

fn say_what_is_missing(experiment: &Experiment, plan: &Plan) {
    for sentence in &experiment.missing {
        ui::note(format!("missing: {sentence}"));
    }
    if !plan.without_profile.is_empty() {
        let names: Vec<&str> = plan.without_profile.iter().map(String::as_str).collect();
        ui::note(format!("missing: not implemented yet, so without rows: {}", names.join(", ")));
    }
}

/// Which datasets are not here, and who says where they are.
fn no_data(absent: &[String], place: &Place) -> String {
    let looked = match &place.data {
        Some(folder) => format!("not in {}, which --data or C2R_DATA names", folder.display()),
        None => "--data DIR or C2R_DATA names the folder that has it".to_owned(),
    };
    format!("no data: {} ({looked})", absent.join(", "))
}

/// The same for whoever wanted to run them.
fn no_data_to_run(absent: &[String], place: &Place) -> String {
    format!("{}; docs/datasets.md says what belongs there, --only leaves datasets out", no_data(absent, place))
}

/// A part of a grid that is to be run.
struct Job<'a> {
    /// `table2-quick`: the folder of its table.
    name: String,
    args: &'a Args,
    scale: &'a Scale,
    place: &'a Place,
    checkout: &'a Checkout,
}

impl Job<'_> {
    fn table_folder(&self) -> PathBuf {
        self.place.results.join(&self.name)
    }

    /// The arguments of `c2r table` and `c2r report`, which write into the table's folder.
    fn result_args(&self, name: &str, scale: &str) -> (Vec<String>, Vec<String>) {
        let folder = self.place.show(&self.table_folder());
        let page = self.place.show(&self.table_folder().join(PAGE));
        let file = format!("{FOLDER}/{name}.toml");
        let mut change = Vec::new();
        if !self.args.seeds.is_empty() {
            let seeds: Vec<String> = self.args.seeds.iter().map(ToString::to_string).collect();
            change.extend(["--seeds".to_owned(), seeds.join(",")]);
        }
        if !self.args.methods.is_empty() {
            change.extend(["--methods".to_owned(), self.args.methods.join(",")]);
        }
        let args = |command: &str, flag: &str, to: &str| {
            let words = [command, &folder, "--experiment", &file, "--scale", scale].map(String::from);
            words.into_iter().chain(change.clone()).chain([flag, to].map(String::from)).collect()
        };
        (args("table", "--output-dir", &folder), args("report", "--output", &page))
    }

    fn finished(&self, steps: &[Step]) -> Vec<bool> {
        if self.args.force { vec![false; steps.len()] } else { run::finished(steps) }
    }

    /// As many commands at once as the cores carry; small networks gain nothing from many threads each.
    fn n_jobs(&self, n_open: usize) -> usize {
        let n_cores = thread::available_parallelism().map_or(1, usize::from);
        let carried = self.scale.threads.map_or(1, |threads| (n_cores / threads).max(1));
        self.args.jobs.map_or(carried, usize::from).min(n_open.max(1))
    }

    fn run(&self, plan: &Plan) -> anyhow::Result<run::Summary> {
        let steps = &plan.steps;
        let finished = self.finished(steps);
        let n_open = finished.iter().filter(|&&done| !done).count();
        if n_open == 0 {
            ui::note(format!("all {} commands were finished before", steps.len()));
            return Ok(run::Summary { n_reused: steps.len(), ..run::Summary::default() });
        }
        let n_jobs = self.n_jobs(n_open);
        let results = self.checkout.relative(&self.place.results).display().to_string();
        ui::note(format!("{} commands, {n_open} of them to run; results in {results}", steps.len()));
        let local = self.args.launcher == Launcher::Local;
        if self.args.scale.as_deref() == Some(LONG_SCALE) && !self.args.no_estimate && local {
            let times = estimate::times(steps, &self.place.results, self.checkout)?;
            estimate::print(steps, &finished, &times, n_jobs);
        }
        let summary = match self.args.launcher {
            Launcher::Local => run::run(steps, &finished, n_jobs, self.checkout)?,
            Launcher::Slurm => slurm::run(self, plan, &finished)?,
        };
        let others = match summary.n_elsewhere {
            0 => String::new(),
            n => format!(", {n} of them by others"),
        };
        ui::note(format!("{} commands finished, {} of them before{others}", summary.n_done(), summary.n_reused));
        Ok(summary)
    }
}

fn read(checkout: &Checkout, name: &str) -> anyhow::Result<Experiment> {
    let there = names(checkout)?;
    if !there.iter().any(|other| other == name) {
        return Err(exit::usage(plan::unknown("experiment", name, there)));
    }
    let path = checkout.root().join(FOLDER).join(name).with_extension("toml");
    Experiment::read(&path).map_err(exit::usage)
}

/// The experiments of the checkout, sorted.
fn names(checkout: &Checkout) -> anyhow::Result<Vec<String>> {
    let folder = checkout.root().join(FOLDER);
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_experiment = path.extension().is_some_and(|end| end == "toml") && !path.ends_with(COMMON);
        names.extend(path.file_stem().filter(|_| is_experiment).map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Everything about a grid that `--list` shows.
struct Listed {
    heading: String,
    plan: Plan,
    n_finished: usize,
    /// Datasets that are not here.
    absent: Vec<String>,
    /// Where its commands start among all that are asked for.
    from: usize,
}

fn list(args: &Args, place: &Place, checkout: &Checkout) -> anyhow::Result<()> {
    let datasets = Datasets::read(place)?;
    let (mut listed, mut asked) = (Vec::new(), Vec::<Step>::new());
    let names = args.experiment.clone().map_or_else(|| names(checkout), |name| Ok(vec![name]))?;
    let experiments: Vec<Experiment> = names.iter().map(|name| read(checkout, name)).collect::<Result<_, _>>()?;
    let takes = |scale: &str| args.scale.as_ref().is_none_or(|wanted| wanted == scale);
    let scales: BTreeSet<&String> = experiments.iter().flat_map(|experiment| experiment.scales.keys()).collect();
    if let Some(wanted) = args.scale.as_ref().filter(|wanted| !scales.contains(wanted)) {
        return Err(exit::usage(plan::unknown("scale", wanted, scales)));
    }
    for experiment in &experiments {
        let name = &experiment.name;
        for (scale_name, scale) in experiment.scales.iter().filter(|(name, _)| takes(name)) {
            let place = Place { threads: scale.threads, ..place.clone() };
            let planner = Planner { experiment, scale, place: &place, datasets: &datasets };
            let plan = planner.plan(&Only::default(), Shard::ALL)?;
            let first = listed.iter().all(|other: &Listed| !other.heading.starts_with(&format!("{name}: ")));
            let heading = if first { format!("{name}: {}\n", experiment.title) } else { String::new() };
            let missing: String = experiment.missing.iter().map(|text| format!("  missing: {text}\n")).collect();
            let heading =
                format!("{heading}{}  --scale {scale_name}: {}", if first { &missing } else { "" }, scale.about);
            let n_finished = run::finished(&plan.steps).iter().filter(|&&done| done).count();
            let absent = datasets.missing(scale.datasets.iter().map(String::as_str));
            let from = asked.len();
            asked.extend(plan.steps.iter().map(|step| Step { needs: step.needs.map(|n| n + from), ..step.clone() }));
            listed.push(Listed { heading, plan, n_finished, absent, from });
        }
    }
    let times = if checkout.c2r().is_file() {
        // Every scale has its own number of threads, and one measurement takes one.
        ui::note("asking c2r how long everything takes here (the first time it measures for a minute)");
        let asked: Vec<Step> = asked.into_iter().map(one_thread).collect();
        estimate::times(&asked, &place.results, checkout).map_err(|error| exit::message(&error))
    } else {
        Err("c2r is not built".to_owned())
    };
    if let Err(reason) = &times {
        ui::note(format!("no times: {reason}"));
    }
    for part in &listed {
        ui::out(&part.heading);
        let steps = &part.plan.steps;
        let count = |stage: &str| steps.iter().filter(|step| step.stage.command() == stage).count();
        let (distilled, trained, attacked) = (count("distill"), count("train"), count("attack"));
        let mut line = format!("    {distilled} distillations, {trained} trainings, {attacked} attacks");
        line += &format!("; {} of {} commands finished", part.n_finished, steps.len());
        if let Ok(times) = &times {
            let finished = run::finished(steps);
            let open = times[part.from..part.from + steps.len()].iter().zip(&finished).filter(|(_, done)| !**done);
            let known: Vec<f64> = open.clone().filter_map(|(time, _)| time.as_ref().ok().copied()).collect();
            let n_unknown = open.count() - known.len();
            if !known.is_empty() {
                line += &format!(", the rest takes about {} of one core here", estimate::time(known.iter().sum()));
            }
            if n_unknown > 0 {
                line += &format!(" ({n_unknown} commands of unknown length)");
            }
        }
        ui::out(line);
        if !part.absent.is_empty() {
            ui::out(format!("    {}", no_data(&part.absent, place)));
        }
        if !part.plan.without_profile.is_empty() {
            let names: Vec<&str> = part.plan.without_profile.iter().map(String::as_str).collect();
            ui::out(format!("    not implemented yet: {}", names.join(", ")));
        }
    }
    Ok(())
}

fn one_thread(mut step: Step) -> Step {
    match step.how.iter().position(|word| word == "--threads") {
        Some(position) => step.how[position + 1] = "1".into(),
        None => step.how.extend(["--threads", "1"].map(String::from)),
    }
    step
}

/// Prints a shell script that does what the command would: the commands, the folder of the table, table and report.
fn dry_run(job: &Job<'_>, plan: &Plan, whole: &Plan, results: &[&[String]], absent: &[String]) -> anyhow::Result<()> {
    let c2r = job.checkout.relative(&job.checkout.c2r()).display().to_string();
    let line = |args: Vec<&String>| process::shell_line(std::iter::once(&c2r).chain(args));
    plan.steps.iter().for_each(|step| ui::out(line(step.args().collect())));
    if !job.args.no_table {
        // The table has what is finished of the rest of the grid, too.
        let asked: BTreeSet<&str> = plan.steps.iter().map(|step| step.id.as_str()).collect();
        let shown: Vec<bool> = run::finished(&whole.steps)
            .into_iter()
            .zip(&whole.steps)
            .map(|(finished, step)| finished || asked.contains(step.id.as_str()))
            .collect();
        let folder = view::script(&job.table_folder(), &whole.steps, &shown, |path| job.place.show(path));
        folder.into_iter().for_each(ui::out);
        results.iter().for_each(|args| ui::out(line(args.iter().collect())));
    }
    ui::note(format!("to run this by hand: in {}, with `sh -e`", job.place.root.display()));
    let finished = job.finished(&plan.steps);
    let n_open = finished.iter().filter(|&&done| !done).count();
    ui::note(format!("{} commands, {n_open} of them to run", plan.steps.len()));
    if !absent.is_empty() {
        ui::note(no_data_to_run(absent, job.place));
    }
    if n_open > 0 && job.checkout.c2r().is_file() {
        let times = estimate::times(&plan.steps, &job.place.results, job.checkout)?;
        estimate::print(&plan.steps, &finished, &times, job.n_jobs(n_open));
    } else if n_open > 0 {
        ui::note("what they cost is not known before c2r is built: cargo xtask setup && cargo build --release");
    }
    Ok(())
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

/// Writes the page beside the tables. What it would say about the tolerance, `c2r table` has said.
fn report(args: &[String], checkout: &Checkout) -> anyhow::Result<()> {
    let mut command = Command::new(checkout.c2r());
    command.args(args).current_dir(checkout.root());
    checkout::with_libtorch(&mut command, &checkout.libtorch_link());
    let output = process::output(&mut command)?.context("there is no c2r")?;
    let page = args.last().map_or(PAGE, String::as_str);
    match output.status.code() {
        Some(code) if code == 0 || code == i32::from(exit::OUTSIDE_TOLERANCE) => {
            ui::note(format!("report: {page}"));
            Ok(())
        }
        _ => {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(exit::error(exit::UNEXPECTED, format!("`c2r report` failed ({}): {reason}", output.status)))
        }
    }
}

/// The last word: what failed, grouped, because one missing file fails many commands.
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
        let reason = log_tail(&steps[failure.position].log(), 1).pop().unwrap_or_default();
        by_reason.entry(reason).or_default().push(failure);
    }
    for failures in by_reason.values() {
        ui::note(format!("\n{}", failures[0].failed.report));
        if failures.len() > 1 {
            let others: Vec<String> = failures[1..].iter().map(|failure| steps[failure.position].name()).collect();
            ui::note(format!("  the same in {} more: {}", others.len(), others.join(", ")));
        }
    }
    let codes: BTreeSet<u8> = summary.failures.iter().map(|failure| failure.failed.code).collect();
    let code = if codes.len() == 1 { codes.into_iter().next().unwrap_or(exit::UNEXPECTED) } else { exit::UNEXPECTED };
    let blocked = match summary.n_blocked {
        0 => String::new(),
        n_blocked => format!(", so {n_blocked} that need them did not run"),
    };
    let n_failed = summary.failures.len();
    Err(exit::error(code, format!("{n_failed} commands failed{blocked}; fix the cause and run the same command again")))
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
        let failure = |code| run::Failure { position: 0, failed: record::Failed { code, report: "why".into() } };
        let summary = |codes: &[u8]| run::Summary {
            failures: codes.iter().map(|&code| failure(code)).collect(),
            ..run::Summary::default()
        };
        let steps = plan::tests::Example::new().steps("");
        let code = |codes: &[u8], outside| match conclude(&summary(codes), &steps, outside) {
            Ok(()) => 0,
            Err(error) => exit::code_of(&error),
        };
        assert_eq!(code(&[], false), 0);
        assert_eq!(code(&[], true), exit::OUTSIDE_TOLERANCE);
        assert_eq!(code(&[3, 3], false), 3);
        assert_eq!(code(&[3, 1], true), exit::UNEXPECTED);
    }

    /// Every experiment of the repository can be planned at every scale, with or without data.
    #[test]
    fn every_experiment_has_a_plan() {
        let checkout = Checkout::find().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let place = Place {
            root: checkout.root().to_owned(),
            results: folder.path().to_owned(),
            data: None,
            threads: None,
            device: None,
            force: false,
        };
        let datasets = Datasets::read(&place).unwrap();
        let names = names(&checkout).unwrap();
        let ids = |name: &str, scale: &str| -> BTreeSet<String> {
            let experiment = read(&checkout, name).unwrap();
            let scale = experiment.scale(scale).unwrap();
            let planner = Planner { experiment: &experiment, scale, place: &place, datasets: &datasets };
            planner.plan(&Only::default(), Shard::ALL).unwrap().steps.into_iter().map(|step| step.id).collect()
        };
        for name in [
            "ablation",
            "autoattack",
            "cross-arch",
            "drop-rate",
            "eta",
            "imagenet-subsets",
            "larger-eps",
            "ls-pgd",
            "negatives",
            "table2",
        ] {
            assert!(names.iter().any(|there| there == name), "{name}");
            for (scale, grid) in read(&checkout, name).unwrap().scales {
                assert!(ids(name, &scale).len() > 5, "{name} {scale}");
                for reference in ["full", "random-real"] {
                    assert!(grid.methods.iter().any(|method| method == reference), "{name} {scale} has no {reference}");
                }
            }
        }
        // What experiments have in common is done once.
        let distilled = |name| ids(name, "paper").into_iter().filter(|id| id.starts_with("distill")).collect();
        let table2: BTreeSet<String> = distilled("table2");
        let drop_rate: BTreeSet<String> = distilled("drop-rate");
        assert!(drop_rate.is_subset(&table2));
        let larger_eps: BTreeSet<String> = distilled("larger-eps");
        assert!(larger_eps.is_subset(&table2));
        let trained = |name| ids(name, "quick").into_iter().filter(|id| id.starts_with("train")).collect();
        let (cross, quick): (BTreeSet<String>, BTreeSet<String>) = (trained("cross-arch"), trained("table2"));
        assert_eq!(cross.intersection(&quick).count(), 4 * 3 * 2, "the digits' own network, named or not");
        let ablation: BTreeSet<String> = distilled("ablation");
        let shared = ablation.intersection(&table2).count();
        assert_eq!(shared, 3 * 3 * 5, "three distilled methods, three datasets, five seeds");
        assert!(ids("drop-rate", "paper").is_subset(&ids("table2", "paper")), "attacks too");
    }
}
