//! `cargo xtask reproduce`: fills a table of the paper. The work is done by `c2r-grid`; docs/reproduce.md says how.

use std::{env, path::PathBuf, time::Duration};

use c2r_experiment::{Experiment, SubsetOrder};
use c2r_grid::{
    Datasets, Grid, GridPlan, MOST_BYTES, Reproduction, Shard, SlurmArray, Subgrid, Workplace, list, pack,
    read_experiment, unpack,
};
use c2r_run::{arguments, exit, signals, terminal};

use crate::{
    checkout::{self, Checkout},
    setup,
};

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
  cargo xtask reproduce table2 --scale small --data ~/datasets --time-limit 9m
  cargo xtask reproduce table2 --scale small --pack work.tar.gz     then --unpack work.tar.gz on another machine
  cargo xtask reproduce table2 --scale paper --data ~/datasets --launcher slurm --sbatch '--partition=gpu --gres=gpu:1'

What is finished is not run again, by whichever experiment it was asked for first; what was interrupted resumes where it \
stopped; several processes or machines may share one --results folder. docs/reproduce.md says how that works.
Exit codes: 0 done, 1 a command failed, 2 wrong arguments, 3 data missing, 4 numbers outside the tolerance, \
124 the time limit is over, 130 interrupted.")]
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
    only: Vec<Subgrid>,

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

    /// Where the scale judges on N images, take the first N of the files, as versions before the class-balanced sample did:
    /// for comparing with their tables
    #[arg(long)]
    first_images: bool,

    /// How many commands run at once [default: as many as the cores carry]; with Slurm, how many tasks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,

    /// Device for every command: cpu, cuda, cuda:N [default: cuda if available, else cpu]
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

    /// Stop after this time, e.g. 90s, 9m, 1h30m: running commands save their states, and the same command resumes
    #[arg(long, value_name = "TIME", value_parser = arguments::duration)]
    time_limit: Option<Duration>,

    /// Run finished commands again, and discard what they wrote
    #[arg(long)]
    force: bool,

    /// Do not say first how long the scale `paper` will take
    #[arg(long)]
    no_estimate: bool,

    /// Write the work of this grid, finished and unfinished, into an archive of at most 60 MB and end; --unpack takes it up on
    /// another machine
    #[arg(long, value_name = "FILE", conflicts_with_all = ["unpack", "dry_run", "time_limit"])]
    pack: Option<PathBuf>,

    /// Take the work in an archive of --pack first, then go on with the grid
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    unpack: Option<PathBuf>,

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
    #[arg(long, conflicts_with_all = ["only", "shard", "seeds", "methods", "held_out", "first_images", "force", "dry_run", "pack", "unpack"])]
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
    if let Some(limit) = args.time_limit {
        signals::set_time_limit(limit);
    }
    let place = place(args, checkout)?;
    if args.list {
        return list(args.experiment.as_deref(), args.scale.as_deref(), &place);
    }
    let (Some(name), Some(scale_name)) = (&args.experiment, &args.scale) else {
        return Err(exit::usage("which experiment, and at which --scale? `--list` shows them"));
    };
    if args.time_limit.is_some() && args.launcher == Launcher::Slurm {
        return Err(exit::usage("--time-limit is for --launcher local; with Slurm, write --sbatch '--time=HH:MM:SS'"));
    }
    if args.sbatch.iter().any(|options| !options.is_empty()) && args.launcher != Launcher::Slurm {
        return Err(exit::usage("--sbatch is for --launcher slurm"));
    }
    let mut experiment = read_experiment(checkout.root(), name)?;
    experiment.change_grid(scale_name, &args.seeds, &args.methods).map_err(exit::usage)?;
    let mut scale = experiment.scale(scale_name).map_err(exit::usage)?.clone();
    scale.held_out |= args.held_out;
    if args.first_images {
        scale.subset = SubsetOrder::First;
    }
    if scale.held_out && scale.train_per_class.is_none() {
        return Err(exit::usage(format!("--held-out: scale {scale_name} trains on all images (no train-per-class)")));
    }
    let place = Workplace { threads: scale.threads, ..place };
    let datasets = Datasets::read(&place)?;
    let grid = Grid { experiment: &experiment, scale: &scale, place: &place, datasets: &datasets };
    let (changes, at_once) = (changes(args), args.jobs.map(usize::from));
    let reproduction = Reproduction { grid, scale_name, changes, at_once };
    let selection = Subgrid::merge(args.only.clone());
    selection.check(&scale).map_err(|reason| exit::usage(format!("--only: {reason}")))?;
    let plan = grid.plan(&selection, args.shard)?;
    if let Some(method) = args.methods.iter().find(|method| plan.without_profile.contains(*method)) {
        return Err(exit::usage(format!("method `{method}` is not implemented: its profile is not in data/profiles")));
    }
    scale.changes.iter().for_each(|change| terminal::note(format!("not the grid of the file: {change}")));
    say_what_is_missing(&experiment, &plan);
    if args.dry_run {
        return reproduction.dry_run(&plan, !args.no_table);
    }
    if let Some(file) = &args.pack {
        pack(&plan.jobs, file, MOST_BYTES)?.say(plan.jobs.len(), file);
        return Ok(());
    }
    if let Some(file) = &args.unpack {
        unpack(&plan.jobs, file, &place.results.join("jobs"))?.say(file);
    }
    let absent = reproduction.missing_data(&plan);
    if !absent.is_empty() {
        return exit::fail(exit::DATA, place.no_data_to_run(&absent));
    }
    if !args.prebuilt {
        setup::ensure(checkout)?;
        checkout.build_c2r()?;
    } else if !place.c2r.is_file() {
        return Err(exit::usage(format!("--prebuilt: there is no {}", place.c2r.display())));
    }
    terminal::note(format!("{}, scale {scale_name}: {}", experiment.title, scale.about));
    let name = reproduction.name();
    let array = (args.launcher == Launcher::Slurm).then(|| SlurmArray {
        name: &name,
        arguments: task_arguments(args, &place),
        options: &args.sbatch,
        tasks: args.tasks.map(usize::from),
        at_once,
    });
    if array.is_some() && args.shard != Shard::ALL {
        return Err(exit::usage("--launcher slurm splits the grid itself: --tasks says into how many parts"));
    }
    let with_estimate = scale_name == LONG_SCALE && !args.no_estimate;
    let summary = reproduction.run(&plan, with_estimate, array.as_ref())?;
    let outside = summary.n_done() > 0 && !args.no_table && reproduction.table()?;
    summary.conclude(&plan.jobs)?;
    if outside {
        let message = "finished, but numbers are outside the tolerance (marked in the table)";
        return exit::fail(exit::OUTSIDE_TOLERANCE, message);
    }
    Ok(())
}

/// Where everything is, according to the options.
fn place(args: &Args, checkout: &Checkout) -> anyhow::Result<Workplace> {
    let user_folder = env::current_dir()?;
    // Relative to where the user stands, except for the default, which belongs to the checkout.
    let is_default = args.results.as_os_str() == "runs";
    let results = if is_default { checkout.root().join(&args.results) } else { user_folder.join(&args.results) };
    if results.exists() && !results.is_dir() {
        return Err(exit::usage(format!("--results {}: this is not a folder", results.display())));
    }
    Ok(Workplace {
        root: checkout.root().to_owned(),
        c2r: checkout.c2r(),
        results,
        data: checkout::data_folder(args.data.as_deref())?,
        threads: None,
        device: args.device.clone(),
        force: args.force,
    })
}

fn say_what_is_missing(experiment: &Experiment, plan: &GridPlan) {
    for sentence in &experiment.missing {
        terminal::note(format!("missing: {sentence}"));
    }
    if !plan.without_profile.is_empty() {
        let names: Vec<&str> = plan.without_profile.iter().map(String::as_str).collect();
        terminal::note(format!("missing: not implemented yet, so without rows: {}", names.join(", ")));
    }
}

/// The options that make another grid of the file's.
fn changes(args: &Args) -> Vec<String> {
    let lists = [("--seeds", joined(&args.seeds)), ("--methods", joined(&args.methods))];
    lists.into_iter().filter_map(|(flag, list)| Some([flag.to_owned(), list?])).flatten().collect()
}

fn joined<T: ToString>(list: &[T]) -> Option<String> {
    (!list.is_empty()).then(|| list.iter().map(T::to_string).collect::<Vec<_>>().join(","))
}

/// The arguments of a task of Slurm, without the shard.
fn task_arguments(args: &Args, place: &Workplace) -> Vec<String> {
    let mut words = vec!["reproduce".to_owned()];
    words.extend(args.experiment.clone());
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
    for (flag, given) in [("--held-out", args.held_out), ("--first-images", args.first_images), ("--force", args.force)]
    {
        words.extend(given.then(|| flag.to_owned()));
    }
    words
}
