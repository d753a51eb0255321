//! `cargo xtask reproduce`: fills a table of the paper. The work is done by `c2r-grid`; docs/reproduce.md says how.

use std::{env, path::PathBuf, time::Duration};

use c2r_experiment::{Experiment, Scale, Subgrid};
use c2r_grid::{
    Datasets, FoundExperiment, Grid, GridPlan, MOST_BYTES, Reproduction, Shard, SlurmArray, Workplace, list, pack,
    read_experiment, speeds_of, unpack,
};
use c2r_run::{arguments, exit, signals, terminal};

use crate::{
    checkout::{self, Checkout},
    setup,
};

/// The scale whose commands take days: its time is estimated first.
const LONG_SCALE: &str = Experiment::PAPER_SCALE;

/// Fill a table of the paper: distil, train, attack, and print it
///
/// Finished commands are not run again, whichever experiment first needed them, and interrupted ones resume. Several processes or
/// machines can share one --results folder. docs/reproduce.md explains how.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = include_str!("help/reproduce.txt"))]
pub(crate) struct Args {
    /// Experiment: the name of a file in data/paper, such as table2 (--list shows all), or the path of a file of your own
    #[arg(required_unless_present = "list")]
    experiment: Option<String>,

    /// Size of the experiment, smallest first: tiny, quick, small, medium or paper; needed unless --list is given
    #[arg(long, required_unless_present = "list")]
    scale: Option<String>,

    /// Folder with the downloaded datasets [default: the variable C2R_DATA]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Run (or list) only this part of the grid, e.g. dataset=cifar10,ipc=10,method=c2r,seed=0,protocol=natural,attack=pgd
    #[arg(long, value_name = "KEY=VALUE,..")]
    only: Vec<Subgrid>,

    /// Run only the I-th of N parts of the grid, so that N machines can share it
    #[arg(long, value_name = "I/N", default_value_t = Shard::ALL)]
    shard: Shard,

    /// Use these seeds instead of the experiment's
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    seeds: Vec<u64>,

    /// Use these methods instead of the experiment's; `all` means every method that its file lists at the scale `paper`
    ///
    /// They are called as in data/paper/common.toml, e.g. c2r (its profile is `faithful`) or class-mean, the backbone.
    /// Methods that you do not name are left out of the table, including references and the baseline; without the baseline, the
    /// table has no p-values. To run a part of a grid and keep the rest in its table, use --only.
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    methods: Vec<String>,

    /// Attack held-out training images instead of test images, to choose settings
    ///
    /// For scales that train on a part of the training images.
    #[arg(long)]
    held_out: bool,

    /// Number of commands (with Slurm, of tasks) to run at once [default: as many as fit on the cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,

    /// Device for every command: cpu, cuda or cuda:N [default: cuda if available, otherwise cpu]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,

    /// Folder for the results, which processes and machines can share [default: runs in the checkout]
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,

    /// Where to run the commands
    #[arg(long, value_enum, default_value_t = Launcher::Local)]
    launcher: Launcher,

    /// Options for sbatch, e.g. '--partition=gpu --time=12:00:00 --gres=gpu:1' (repeatable)
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    sbatch: Vec<String>,

    /// Number of tasks of the job array [default: one for each distilled set, at most 1,000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    tasks: Option<u16>,

    /// Stop after this time, e.g. 90s, 9m or 1h30m; running commands save their states, and the same command resumes
    #[arg(long, value_name = "TIME", value_parser = arguments::duration)]
    time_limit: Option<Duration>,

    /// Delete all work on these commands, finished or not, and run them from the beginning
    #[arg(long)]
    force: bool,

    /// Start the scale `paper` without estimating first how long it will take
    #[arg(long)]
    no_estimate: bool,

    /// Write the results and saved states of the grid to an archive of at most 60 MB, then exit
    ///
    /// If they are larger, the commands with the largest files are left out and listed. --unpack continues the work on
    /// another machine.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["unpack", "dry_run", "time_limit"])]
    pack: Option<PathBuf>,

    /// Unpack an archive of --pack, then continue the grid
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dry_run", "force"])]
    unpack: Option<PathBuf>,

    /// With --list or --dry-run: estimate for another machine, e.g. h200 (the name of a file in data/speeds)
    #[arg(long, value_name = "NAME")]
    estimate_for: Option<String>,

    /// Do not make a table at the end
    #[arg(long)]
    no_table: bool,

    /// Run no command of the grid; only make the table of those that are finished
    #[arg(long, conflicts_with_all = ["no_table", "dry_run", "list", "pack", "force", "time_limit", "shard", "launcher"])]
    no_run: bool,

    /// Skip set-up and build; use the existing build of c2r
    #[arg(long)]
    prebuilt: bool,

    /// Run nothing; print the commands as a shell script, and estimate how long they would take on this machine
    ///
    /// The script makes the same table and report at its end.
    #[arg(long, visible_alias = "estimate")]
    dry_run: bool,

    /// List all experiments (or the one that is named, or the part that --only names) with size, progress and remaining time
    #[arg(long, conflicts_with_all = ["shard", "seeds", "methods", "held_out", "force", "dry_run", "pack", "unpack"])]
    list: bool,
}

/// Who runs the commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Launcher {
    /// This machine
    Local,
    /// A job array of a Slurm cluster that has the same folders
    Slurm,
}

/// The command.
pub(crate) fn run(args: &Args, checkout: &Checkout) -> anyhow::Result<()> {
    if let Some(limit) = args.time_limit {
        signals::set_time_limit(limit);
    }
    check_together(args)?;
    let place = place(args, checkout)?;
    let selection = Subgrid::merge(args.only.clone());
    // In a checkout, libtorch is linked before c2r is built; an estimate needs it.
    if checkout.is_unpacked() && (args.list || args.dry_run) {
        setup::ensure(checkout)?;
    }
    if args.list {
        return list(args.experiment.as_deref(), args.scale.as_deref(), &selection, &place);
    }
    let (Some(name), Some(scale_name)) = (&args.experiment, &args.scale) else {
        return Err(exit::usage("name an experiment and a --scale; `--list` shows them"));
    };
    let FoundExperiment { mut experiment, own_files } = read_experiment(checkout.root(), name).map_err(|error| {
        // The message says which file.
        let to_copy = "an archive of --pack does not hold the experiment's file; copy it to this machine, too";
        if args.unpack.is_some() { exit::usage(format!("{}; {to_copy}", exit::message(&error))) } else { error }
    })?;
    let scale = scale(args, scale_name, &mut experiment)?;
    let place = Workplace { threads: scale.threads, ..place };
    let datasets = Datasets::read(&place, &scale.datasets)?;
    let grid = Grid { experiment: &experiment, scale: &scale, place: &place, datasets: &datasets };
    let (changes, at_once) = (changes(args), args.jobs.map(usize::from));
    let reproduction = Reproduction { grid, scale_name, changes, own_files, at_once };
    scale.check_part(&selection).map_err(|reason| exit::usage(format!("--only: {reason}")))?;
    let plan = grid.plan(&selection, args.shard)?;
    if let Some(method) = args.methods.iter().find(|method| plan.not_implemented.contains(*method)) {
        return Err(exit::usage(format!("method `{method}` is not implemented, as the experiment says")));
    }
    scale.changes.iter().for_each(|change| terminal::note(format!("the grid differs from the file: {change}")));
    if let Some(lengths) = full_lengths(&scale).filter(|_| scale_name != LONG_SCALE) {
        terminal::note(format!(
            "scale {scale_name} gives no {lengths}: commands take the full length of their profile and protocol, e.g. 20,000 \
             updates and 1,000 epochs"
        ));
    }
    if args.dry_run {
        say_what_is_missing(&experiment, &plan);
        return reproduction.dry_run(&plan, !args.no_table);
    }
    if let Some(file) = &args.pack {
        pack(&plan.jobs, file, MOST_BYTES)?.say(plan.jobs.len(), file);
        if let Some(own) = reproduction.own_files.first() {
            let own = own.display();
            terminal::note(format!(
                "the archive does not hold {own}: copy it, and profiles beside it, to the other machine, too"
            ));
        }
        return Ok(());
    }
    if let Some(file) = &args.unpack {
        unpack(&plan.jobs, file, &place.results.join("jobs"))?.say(file);
    }
    let absent = reproduction.missing_data(&plan);
    if !absent.is_empty() {
        return exit::fail(exit::DATA, place.no_data_to_run(&absent));
    }
    say_what_is_missing(&experiment, &plan);
    if !args.prebuilt {
        setup::ensure(checkout)?;
        checkout.build_c2r()?;
    } else {
        checkout.check_c2r()?;
    }
    terminal::note(format!("{}, scale {scale_name}: {}", experiment.title, scale.about));
    if args.no_run {
        let nothing = || {
            let (name, results) = (reproduction.name(), place.results.display());
            exit::usage(format!("no attack of {name} is finished in {results}"))
        };
        return judged(reproduction.table()?.ok_or_else(nothing)?);
    }
    run_grid(args, &reproduction, &plan)
}

/// Refuses options that do not go together.
fn check_together(args: &Args) -> anyhow::Result<()> {
    let with_slurm = args.launcher == Launcher::Slurm;
    if args.tasks.is_some() && !with_slurm {
        return Err(exit::usage("--tasks is for --launcher slurm; --shard I/N runs one of N parts here"));
    }
    if args.estimate_for.is_some() && !args.dry_run && !args.list {
        return Err(exit::usage("--estimate-for is for --list and --dry-run"));
    }
    if args.time_limit.is_some() && with_slurm {
        return Err(exit::usage("--time-limit is for --launcher local; with Slurm, write --sbatch '--time=HH:MM:SS'"));
    }
    if args.sbatch.iter().any(|options| !options.is_empty()) && !with_slurm {
        return Err(exit::usage("--sbatch is for --launcher slurm"));
    }
    if args.shard != Shard::ALL && with_slurm {
        return Err(exit::usage(
            "--launcher slurm splits the grid itself: leave --shard out, and set the number of parts with --tasks",
        ));
    }
    Ok(())
}

/// The scale with what the options change in it and in the grid of its `experiment`.
fn scale(args: &Args, name: &str, experiment: &mut Experiment) -> anyhow::Result<Scale> {
    experiment.change_grid(name, &args.seeds, &args.methods).map_err(exit::usage)?;
    let mut scale = experiment.scale(name).map_err(exit::usage)?.clone();
    scale.held_out |= args.held_out;
    if scale.held_out && scale.train_per_class.is_none() {
        return Err(exit::usage(format!(
            "--held-out needs a scale with train-per-class, and scale {name} trains on all images"
        )));
    }
    Ok(scale)
}

/// Runs what is left of the grid, here or with Slurm, and makes the table.
fn run_grid(args: &Args, reproduction: &Reproduction<'_>, plan: &GridPlan) -> anyhow::Result<()> {
    let name = reproduction.name();
    let array = (args.launcher == Launcher::Slurm).then(|| SlurmArray {
        name: &name,
        arguments: task_arguments(args, reproduction.own_files.first(), reproduction.grid.place),
        options: &args.sbatch,
        tasks: args.tasks.map(usize::from),
        at_once: reproduction.at_once,
    });
    let with_estimate = reproduction.scale_name == LONG_SCALE && !args.no_estimate;
    let summary = reproduction.run(plan, with_estimate, array.as_ref())?;
    let table = if summary.n_done() > 0 && !args.no_table { reproduction.table() } else { Ok(None) };
    // A table that cannot be made does not hide why commands failed.
    let concluded = summary.conclude(&plan.jobs, args.force);
    if let (Err(error), Err(_)) = (&table, &concluded) {
        terminal::notes(exit::message(error));
    }
    concluded?;
    judged(table?.unwrap_or(false))
}

/// The error of a table with numbers `outside` the tolerance.
fn judged(outside: bool) -> anyhow::Result<()> {
    if outside {
        let message = "finished, but numbers are outside the tolerance (marked in the table)";
        return exit::fail(exit::OUTSIDE_TOLERANCE, message);
    }
    Ok(())
}

/// Where everything is, according to the options.
fn place(args: &Args, checkout: &Checkout) -> anyhow::Result<Workplace> {
    let user_folder = env::current_dir()?;
    let results = match &args.results {
        Some(folder) => user_folder.join(folder),
        None => checkout.root().join("runs"),
    };
    let data = checkout::data_folder(args.data.as_deref())?;
    // The commands of jobs and their records are stored as text.
    for (option, folder) in [("--results", Some(&results)), ("the data folder", data.as_ref())] {
        if let Some(folder) = folder.filter(|folder| folder.to_str().is_none()) {
            let folder = folder.display();
            return Err(exit::usage(format!(
                "{option} {folder}: reproduce needs a path in UTF-8; rename it, or make a link to it"
            )));
        }
    }
    if results.exists() && !results.is_dir() {
        return Err(exit::usage(format!("--results {}: this is not a folder; name another one", results.display())));
    }
    Ok(Workplace {
        root: checkout.root().to_owned(),
        c2r: checkout.c2r(),
        results,
        data,
        can_build: !checkout.is_unpacked(),
        threads: None,
        device: args.device.clone(),
        force: args.force,
        estimate_for: args.estimate_for.as_ref().map(|name| speeds_of(checkout.root(), name)).transpose()?,
    })
}

/// The settings of lengths that a scale lacks; most of its commands then take as long as in the paper.
fn full_lengths(scale: &Scale) -> Option<String> {
    let lacks = |sets: &[String], key: &str| !sets.iter().any(|set| set.starts_with(key));
    let distill = lacks(&scale.distill_set, "iterations").then_some("iterations=N in distill-set");
    let train = lacks(&scale.train_set, "length").then_some("length={steps=N} in train-set");
    let lacking: Vec<&str> = distill.into_iter().chain(train).collect();
    (!lacking.is_empty()).then(|| lacking.join(" and no "))
}

fn say_what_is_missing(experiment: &Experiment, plan: &GridPlan) {
    for sentence in &experiment.missing {
        terminal::note(format!("missing: {sentence}"));
    }
    if !plan.not_implemented.is_empty() {
        let names: Vec<&str> = plan.not_implemented.iter().map(String::as_str).collect();
        terminal::note(format!("missing: these methods are not implemented and have no rows: {}", names.join(", ")));
    }
}

/// The options that change the grid of the file, and the one that names the part that the table is about.
fn changes(args: &Args) -> Vec<String> {
    let lists =
        [("--seeds", joined(&args.seeds)), ("--methods", joined(&args.methods)), ("--only", joined(&args.only))];
    lists.into_iter().filter_map(|(flag, list)| Some([flag.to_owned(), list?])).flatten().collect()
}

fn joined<T: ToString>(list: &[T]) -> Option<String> {
    (!list.is_empty()).then(|| list.iter().map(T::to_string).collect::<Vec<_>>().join(","))
}

/// The arguments of a task of Slurm, without the shard; `experiment` is the file of one that is not the checkout's.
fn task_arguments(args: &Args, experiment: Option<&PathBuf>, place: &Workplace) -> Vec<String> {
    let mut words = vec!["reproduce".to_owned()];
    words.extend(experiment.map(|file| file.display().to_string()).or_else(|| args.experiment.clone()));
    let mut option = |flag: &str, value: Option<String>| {
        words.extend(value.map(|value| [flag.to_owned(), value]).into_iter().flatten());
    };
    option("--scale", args.scale.clone());
    option("--results", Some(place.results.display().to_string()));
    option("--data", place.data.as_ref().map(|data| data.display().to_string()));
    option("--device", args.device.clone());
    option("--methods", joined(&args.methods));
    option("--seeds", joined(&args.seeds));
    args.only.iter().for_each(|only| option("--only", Some(only.to_string())));
    words.extend(["--prebuilt", "--no-table", "--no-estimate"].map(String::from));
    // --force is left out: old results are discarded before the array is submitted.
    words.extend(args.held_out.then(|| "--held-out".to_owned()));
    words
}
