use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use c2r_base::{Epsilon, artifact::TensorFile};
use c2r_data::{Dataset, DatasetSpec};
use c2r_distill::{
    ConfigError, DistillConfig, DistillEvent, Distillation, Init, LabelKind, METHODS, StepReport, folder, profiles,
};
use c2r_files::text_to_path;
use c2r_run::{
    Log, Run, Status,
    arguments::{self, any_text},
    process::{memory_bytes, peak_memory_mb},
    signals,
};
use clap::builder::RangedU64ValueParser;
use serde_json::{Value as Json, json};
use tch::Device;
use toml::Value;

use crate::{
    cmd::estimate::{self, Planned, Written},
    config, curves, data,
    exit::{self, OrExit},
    kernels::KernelNotes,
    run_dir::{self, versions},
    throughput,
    ui::{self, Ui},
};

/// Distil a training set into a few images per class
///
/// Writes to RUN_DIR: synthetic.safetensors (images, labels and their origin), synthetic.png (a picture of them), pictures/
/// (snapshots during the run), log.jsonl and curves.svg (losses, margins, cost) and run.json (configuration, versions,
/// summary). The same command on the same folder resumes an interrupted run.
#[derive(clap::Args)]
#[command(
    override_usage = "c2r distill [OPTIONS] --dataset <NAME> --run-dir <DIR>",
    after_long_help = "\
Examples:
  # The method C2R on the digits, one image per class
  c2r distill --dataset digits --ipc 1 --iterations 300 --seed 7 --run-dir runs/first

  # CIFAR-10, ten images per class, with a teacher's labels and another learning rate
  c2r distill --dataset cifar10 --data DIR --config plus --ipc 10 --set images.lr=0.02 \\
      --run-dir runs/plus

  # How long would distribution matching take on this machine?
  c2r distill --dataset cifar10 --data DIR --config dm --ipc 10 --estimate

Profiles for --config (docs/method.md and docs/baselines.md have the equations and sources):
  faithful (or c2r)   C2R; our reading where the paper is ambiguous
  plus                C2R; a teacher network, stored with the set, labels the images in training
  literal             C2R; ambiguous passages taken word for word
  class-mean          C2R without its two parts (its backbone)
  aac                 the backbone and the attack-aware curriculum
  crl                 the backbone and the contrastive robustness loss
  rome                ROME as its code does it (Zhou et al. 2025)
  mat                 matching adversarial trajectories (arXiv:2503.12069)
  guard               SRe2L with a curvature penalty (GUARD, arXiv:2403.10045)
  dm                  distribution matching (arXiv:2110.04181)
  dc                  gradient matching (arXiv:2006.05929)
  dsa                 gradient matching with Siamese augmentation (arXiv:2102.08259)
  mtt                 matching training trajectories (arXiv:2203.11932)
  sre2l               squeeze, recover, relabel (arXiv:2306.13092)
  random-real         real images drawn at random
  random-real-mosaic  the same, four smaller images in each stored image
  herding             real images close to their class mean (arXiv:1611.07725)
  k-center            real images that cover their class (arXiv:1708.00489)
A TOML file may build on a profile: base = \"faithful\"."
)]
pub(crate) struct Args {
    #[command(flatten)]
    data: data::DatasetArgs,

    /// Method: a profile (`c2r distill --help` lists them) or a TOML file
    #[arg(long, value_name = "PROFILE", default_value = "faithful", value_parser = any_text())]
    config: String,

    /// Change one key of the profile, e.g. --set objective.eta=0.6 (repeatable)
    ///
    /// docs/configuration.md describes every key.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// Images per class [default: the profile's]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(..=LARGEST))]
    ipc: Option<usize>,

    /// Number of updates of the images [default: the profile's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=LARGEST))]
    iterations: Option<u64>,

    /// Seed of all randomness [default: the profile's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=LARGEST))]
    seed: Option<u64>,

    /// Radius of the attacks that are used while distilling, in pixel units, e.g. 2/255 [default: the dataset's]
    ///
    /// It does not change attacks that have a radius of their own in the configuration: attacks.synthetic.epsilon,
    /// attacks.pool.epsilon or attacks.matching.epsilon (docs/configuration.md). The profiles set none of these. With 0,
    /// nothing is attacked.
    #[arg(long, value_name = "EPS", alias = "epsilon", value_parser = |text: &str| Epsilon::try_from(text.to_owned()))]
    eps: Option<Epsilon>,

    /// Folder to write to; not needed with --estimate or --print-config
    #[arg(long, value_name = "DIR", required_unless_present_any = ["estimate", "print_config"])]
    run_dir: Option<PathBuf>,

    /// Method name shown in tables [default: derived from the configuration, e.g. c2r]
    #[arg(long, value_name = "NAME", value_parser = arguments::name)]
    name: Option<String>,

    /// Folder that caches trained networks for other runs
    ///
    /// Runs reuse them if settings, seed and data match. The result is the same without the cache.
    #[arg(long, value_name = "DIR")]
    networks: Option<PathBuf>,

    /// Save the state every STEPS steps
    #[arg(long, value_name = "STEPS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_every: u64,

    /// Save the state every SECONDS seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    checkpoint_seconds: u64,

    /// Number of evenly spaced snapshots of the images; 0 for none
    #[arg(long, value_name = "N", default_value_t = 10)]
    pictures: u64,

    /// Discard an earlier run in the run folder, whatever its configuration
    #[arg(long)]
    force: bool,

    /// Print how long the command would take on this machine, then exit
    #[arg(long)]
    estimate: bool,

    /// Print the resolved configuration as TOML, then exit
    #[arg(long, conflicts_with = "estimate")]
    print_config: bool,

    /// Print JSON lines on stdout: one per logged step, one at the end
    #[arg(long)]
    json: bool,
}

/// The largest whole number of TOML, in which the configuration is kept.
const LARGEST: u64 = i64::MAX as u64;
/// Images per pass of an estimate where the configuration does not say how networks are trained.
const ESTIMATE_BATCH: usize = 256;
/// Updates between log lines.
const LOG_EVERY: u64 = 10;
/// Training steps between lines of `--json` before the first update.
const TRAINING_LOG_EVERY: u64 = 100;

pub(crate) fn run(args: Args, device: Device, ui: &Ui) -> anyhow::Result<()> {
    // What is known of a folder of images is computed from its images, so they are read once, here.
    let read = args.data.is_folder().then(|| args.data.load(ui)).transpose()?;
    let spec = read.as_ref().map_or_else(|| args.data.spec(), |dataset| Ok(dataset.spec.clone()))?;
    let (config, left_out) = resolve(&args, &spec)?;
    for section in left_out {
        let line = format!("the section [{section}] has no effect with this method and is left out");
        if config::is_set(&args.set, section) { ui.note(format!("note: {line}")) } else { ui.detail(line) }
    }
    for (key, reason) in config.idle() {
        let option = match key {
            "threat" | "threat.epsilon" if args.eps.is_some() => "--eps",
            "iterations" if args.iterations.is_some() => "--iterations",
            _ if config::is_set(&args.set, key) => key,
            _ => continue,
        };
        ui.note(format!("note: {option} has no effect: {reason}"));
    }
    if args.print_config {
        ui.text(toml::to_string(&config)?.trim_end());
        return Ok(());
    }
    let dataset = read.map_or_else(|| args.data.load(ui), Ok)?;
    if let Some(n) = args.data.train_per_class {
        data::note_too_many(n.get(), &dataset.train, ui);
    }
    if args.estimate {
        return estimate(&config, &dataset, device, args.json, ui);
    }
    let path = args.run_dir.as_deref().expect("clap requires it here");
    check_memory(&config, &dataset.spec)?;
    let mut distillation = Distillation::new(config.clone(), &dataset, device).or_exit(exit::USAGE)?;
    if args.name.is_none() && config.common.name.is_none() && is_changed(&args) {
        ui.note(format!(
            "note: tables call this set `{}`, as they do without your changes; --name gives it a name of its own",
            config.label()
        ));
    }
    if args.networks.is_some() && distillation.networks_id().is_none() {
        ui.note("note: --networks has no effect: no other run can use the networks of this one (docs/cli.md)");
    }
    let record = folder::record(&config, &dataset, device);
    let (mut run, status) = run_dir::open(path, &run_dir::distill(&config), record, &[], device, args.force)?;
    if status == Status::Finished {
        ui.note(format!("{} is finished; nothing to do", run.file(folder::SET).display()));
        if args.json {
            ui.out(run.summary().to_string());
        }
        return Ok(());
    }
    let state = run.file(folder::STATE);
    let is_resumed = status == Status::Unfinished && state.exists();
    if is_resumed {
        let context = || format!("cannot resume from {}; --force starts again", state.display());
        distillation.restore(&TensorFile::read(&state).with_context(context)?).with_context(context)?;
        let (done, total) = distillation.progress();
        ui.note(format!("resuming {} at step {done} of {total}", path.display()));
    } else if let Some(shared) = shared_networks(&distillation, &args).filter(|file| file.exists()) {
        let context =
            || format!("cannot read the trained networks in {}; delete the file to train them again", shared.display());
        distillation.take_networks(&TensorFile::read(&shared).with_context(context)?).with_context(context)?;
        ui.note(format!("reusing the trained networks in {}", shared.display()));
    }
    run_dir::note_other_sessions(&mut run, is_resumed, ui);
    if let Some(note) = config.method.note(&config.common) {
        ui.note(format!("note: {note}"));
    }
    signals::will_save();
    let mut session = Session::new(distillation, run, &args, ui)?;
    session.work()?;
    session.finish()
}

/// Whether settings differ from those of a profile in more than sizes, seeds and what is distilled.
fn is_changed(args: &Args) -> bool {
    args.eps.is_some() || !args.set.is_empty() || profiles::names().all(|name| name != args.config)
}

/// Kinds of files that a run can do without: if one of them cannot be written, the run goes on.
const NETWORKS: &str = "the networks for --networks";
const PICTURES: &str = "a picture of the images";
const CURVES: &str = "the curves";

/// Where `--networks` has or would have the networks of this run.
fn shared_networks(distillation: &Distillation, args: &Args) -> Option<PathBuf> {
    let id = distillation.networks_id()?;
    let version = c2r_experiment::results::DISTILL;
    Some(args.networks.as_ref()?.join(format!("v{version}-{id}.safetensors")))
}

/// A run from where it was started or resumed.
struct Session<'a> {
    distillation: Distillation,
    run: Run,
    args: &'a Args,
    ui: &'a Ui,
    log: Log,
    pace: Pace,
    /// The losses that were read last, as they are shown.
    numbers: String,
    /// When the state was saved last, and the steps since then.
    saved: (Instant, u64),
    kernels: KernelNotes,
    /// Kinds of files that could not be written.
    failed: Vec<&'static str>,
}

impl<'a> Session<'a> {
    fn new(distillation: Distillation, run: Run, args: &'a Args, ui: &'a Ui) -> anyhow::Result<Self> {
        Ok(Self {
            log: run.log(distillation.iteration())?,
            pace: Pace::new(&distillation),
            numbers: String::new(),
            saved: (Instant::now(), 0),
            kernels: KernelNotes::default(),
            failed: Vec::new(),
            distillation,
            run,
            args,
            ui,
        })
    }

    /// Runs until finished; saves the state on the way, on Ctrl-C, and not after a failure.
    fn work(&mut self) -> anyhow::Result<()> {
        let (done, total) = self.distillation.progress();
        let mut progress = self.ui.progress("distil", done, total);
        self.picture()?;
        while let Some(event) = self.distillation.step()? {
            self.saved.1 += 1;
            self.share_networks(&event)?;
            let (done, _) = self.distillation.progress();
            let what = self.report(&event)?;
            if let Some(seconds) = self.pace.seconds_left(&self.distillation) {
                progress.set_left(seconds);
            }
            let speed = ui::count(self.pace.images(&self.distillation));
            progress.set(done, format!("{what}, {}{speed} images/s", self.numbers));
            self.kernels.update(self.ui);
            let interrupted = self.ui.interrupted();
            if interrupted || self.is_save_due() {
                self.save()?;
            }
            if interrupted {
                progress.finish();
                let (done, total) = self.distillation.progress();
                return Err(signals::stopped(format!(
                    "step {done} of {total} ({what}) is saved in {}; {}",
                    self.run.path().display(),
                    signals::how_to_resume(self.args.force)
                )));
            }
        }
        progress.finish();
        Ok(())
    }

    /// Writes trained networks for `--networks` once they are there.
    fn share_networks(&mut self, event: &DistillEvent) -> anyhow::Result<()> {
        if let (DistillEvent::Preparation { .. } | DistillEvent::Teacher { .. }, Some(file)) =
            (event, shared_networks(&self.distillation, self.args))
            && !file.exists()
            && !self.failed.contains(&NETWORKS)
            && let Some(networks) = self.distillation.networks()?
        {
            self.wrote(NETWORKS, networks.write(&file).map_err(Into::into));
        }
        Ok(())
    }

    /// Reads and logs numbers where that is due (a read waits for the device), and draws the images. Returns what the run is
    /// at: the steps that it counts are those of the networks and the updates of the images.
    fn report(&mut self, event: &DistillEvent) -> anyhow::Result<String> {
        match *event {
            DistillEvent::Preparation { done, total } | DistillEvent::Teacher { done, total } => {
                let teaches = matches!(event, DistillEvent::Teacher { .. });
                if done % TRAINING_LOG_EVERY == 0 || done == total {
                    let loss = self.distillation.training_loss()?;
                    self.numbers = loss.map_or_else(String::new, |loss| format!("loss {loss:.3}, "));
                    let stage = if teaches { "teacher" } else { "preparation" };
                    self.say(json!({"stage": stage, "step": done, "loss": loss}));
                }
                let stage = if teaches { "training the teacher" } else { "preparing" };
                Ok(format!("{stage} {done}/{total}"))
            }
            DistillEvent::Images { iteration } => {
                if (iteration % LOG_EVERY == 0 || self.distillation.is_finished())
                    && let Some(report) = self.distillation.report()?
                {
                    self.numbers = describe(&report);
                    self.log.line(&report)?;
                    let mut line = serde_json::to_value(&report)?;
                    line["stage"] = "images".into();
                    self.say(line);
                }
                // Until the first losses of the images are read, those of the networks must not be shown with the updates.
                if iteration < LOG_EVERY && !self.distillation.is_finished() {
                    self.numbers.clear();
                }
                self.picture()?;
                Ok(format!("update {iteration}/{}", self.distillation.config().common.iterations))
            }
            _ => Ok(String::new()),
        }
    }

    /// Prints a line of `--json`, with the speed.
    fn say(&self, line: Json) {
        if self.args.json {
            self.ui.out(self.pace.line(&self.distillation, line).to_string());
        }
    }

    fn is_save_due(&self) -> bool {
        let (at, steps) = self.saved;
        let late = at.elapsed() >= Duration::from_secs(self.args.checkpoint_seconds);
        (late || steps >= self.args.checkpoint_every) && !self.distillation.is_finished()
    }

    fn save(&mut self) -> anyhow::Result<()> {
        self.distillation.state()?.write(&self.run.file(folder::STATE))?;
        self.curves();
        self.run.pause()?;
        self.saved = (Instant::now(), 0);
        Ok(())
    }

    fn curves(&mut self) {
        self.wrote(CURVES, curves::write(&self.run.file(folder::CURVES), &self.run.file(folder::LOG)));
    }

    /// Draws the images where one of the `--pictures` falls due: before the first update, after the last one and
    /// evenly in between.
    fn picture(&mut self) -> anyhow::Result<()> {
        let (at, total) = (self.distillation.iteration(), self.distillation.iterations());
        let n = self.args.pictures;
        if n == 0 || total == 0 || (at % total.div_ceil(n) != 0 && at != total) {
            return Ok(());
        }
        let path = self.run.file(folder::PICTURES).join(format!("{at:06}.png"));
        if !path.exists() {
            let set = self.distillation.synthetic_set(versions())?;
            self.wrote(PICTURES, set.grid_png(&path).map_err(Into::into));
        }
        Ok(())
    }

    /// Prints a note on the first error of each kind of file.
    fn wrote(&mut self, what: &'static str, result: anyhow::Result<()>) {
        if let Err(error) = result
            && !self.failed.contains(&what)
        {
            self.ui.note(format!("note: {what} could not be written, and the run goes on: {error:#}"));
            self.failed.push(what);
        }
    }

    /// Writes the results.
    fn finish(mut self) -> anyhow::Result<()> {
        let set = self.distillation.synthetic_set(versions())?;
        let labels = self.distillation.config().common.labels;
        if let (LabelKind::Teacher, Some(teacher)) = (labels, self.distillation.teachers().next()) {
            c2r_models::checkpoint::save(&self.run.file(folder::TEACHER), teacher, Default::default())?;
        }
        let file = self.run.file(folder::SET);
        set.save(&file)?;
        self.wrote(PICTURES, set.grid_png(&self.run.file(folder::PICTURE)).map_err(Into::into));
        self.curves();
        let mut summary = json!({
            "synthetic_set": folder::SET,
            "sha256": c2r_base::artifact::sha256_of_file(&file)?,
            "iterations": self.distillation.iteration(),
            "seconds": self.run.seconds(),
            "peak_memory_mb": peak_memory_mb(),
            "passes": self.distillation.passes(),
            "claims": self.distillation.effect()?,
        });
        self.kernels.record(&mut summary);
        run_dir::finish(&mut self.run, summary, &file, self.args.json, self.ui)
    }
}

/// What is shown of an update while it runs.
fn describe(report: &StepReport) -> String {
    let margins = report.margin_quantiles.map_or_else(String::new, |[low, median, high]| {
        format!(", margins {low:.2} {median:.2} {high:.2} (10, 50, 90 %)")
    });
    format!("loss {:.3}{margins}, ", report.loss)
}

/// How fast this session is.
struct Pace {
    start: Instant,
    forward: u64,
    /// [`Distillation::work_progress`] at the start.
    done: f64,
}

impl Pace {
    fn new(distillation: &Distillation) -> Self {
        Self { start: Instant::now(), forward: distillation.passes().forward, done: distillation.work_progress().0 }
    }

    /// Images sent forward through a network per second.
    fn images(&self, distillation: &Distillation) -> f64 {
        (distillation.passes().forward - self.forward) as f64 / self.start.elapsed().as_secs_f64().max(1e-9)
    }

    /// Seconds left if a pass through a network takes as long as in this session so far; `None` before any is counted.
    fn seconds_left(&self, distillation: &Distillation) -> Option<f64> {
        let (done, total) = distillation.work_progress();
        (done > self.done).then(|| self.start.elapsed().as_secs_f64() / (done - self.done) * (total - done))
    }

    /// A line of `--json` with the speed.
    fn line(&self, distillation: &Distillation, mut line: Json) -> Json {
        line["images_per_second"] = self.images(distillation).into();
        line["seconds_left"] = self.seconds_left(distillation).into();
        line
    }
}

/// Refuses to make more images of noise than the memory holds. Real images never outnumber those of the dataset.
fn check_memory(config: &DistillConfig, spec: &DatasetSpec) -> anyhow::Result<()> {
    let Some(most) = memory_bytes().filter(|_| config.common.images.init == Init::Noise) else { return Ok(()) };
    let (ipc, n_classes, n_values) = (config.common.ipc, spec.classes.len(), spec.shape().iter().product::<i64>());
    let needed = ipc as f64 * n_classes as f64 * n_values as f64 * size_of::<f32>() as f64;
    if needed <= most as f64 {
        return Ok(());
    }
    let message = format!(
        "ipc = {ipc} is too many: {ipc} images of each of {n_classes} classes, {n_values} values each, take {needed:.0} bytes, \
         and this machine has {most} bytes of memory; choose fewer"
    );
    exit::fail(exit::USAGE, message)
}

/// The profile with everything that the command line changes, and the sections that have no effect.
fn resolve(args: &Args, spec: &DatasetSpec) -> anyhow::Result<(DistillConfig, Vec<&'static str>)> {
    let known = profiles::names().any(|name| name == args.config);
    let is_file = args.config.ends_with(".toml") || args.config.contains(std::path::MAIN_SEPARATOR);
    // What is neither a profile nor looks like a file is a misspelt profile.
    let table = if known || !is_file {
        profiles::profile(&args.config)
    } else {
        profiles::expand(config::read(&text_to_path(&args.config))?)
    };
    let origin = format!("--config {}", args.config);
    let table = table.context(origin.clone()).or_exit(exit::USAGE)?;
    let mut changes = config::assignments(&args.set)?;
    // More training images than there are mean all of them.
    let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let options = [
        ("--name", "name", args.name.clone().map(Value::String)),
        ("--ipc", "ipc", args.ipc.map(|n| Value::Integer(n as i64))),
        ("--iterations", "iterations", args.iterations.map(|n| Value::Integer(n as i64))),
        ("--seed", "seed", args.seed.map(|n| Value::Integer(n as i64))),
        ("--eps", "threat.epsilon", args.eps.map(|epsilon| Value::String(epsilon.to_string()))),
        ("--train-per-class", "train-per-class", args.data.train_per_class.map(|n| Value::Integer(whole(n.get())))),
    ];
    for (flag, key, value) in options {
        if let Some(value) = value {
            config::not_both(&args.set, key, flag)?;
            changes.push((key.to_owned(), value));
        }
    }
    DistillConfig::resolve_with(METHODS, table, spec, &changes).map_err(|error| match &error {
        ConfigError::Key(key) => config::wrong(key, &args.set, &origin),
        _ => exit::coded(exit::USAGE, error),
    })
}

/// What the command will send through its networks.
pub(crate) fn planned(args: &Args, written: &mut Written) -> anyhow::Result<Planned> {
    let dataset = args.data.spec()?;
    let (config, _) = resolve(args, &dataset)?;
    let n_classes = dataset.classes.len();
    let per_class = estimate::train_per_class(&dataset).min(config.common.train_per_class.unwrap_or(usize::MAX));
    let work = config.work(n_classes, per_class * n_classes);
    written.set(args.run_dir.as_deref(), &dataset, config.common.decoded_per_class());
    Ok(Planned { dataset, model: config.common.model, work, note: None })
}

fn estimate(config: &DistillConfig, dataset: &Dataset, device: Device, json: bool, ui: &Ui) -> anyhow::Result<()> {
    let n_classes = dataset.spec.classes.len();
    let per_class = config.common.train_per_class.unwrap_or(usize::MAX);
    let work = config.work(n_classes, dataset.train.len().min(per_class.saturating_mul(n_classes)));
    let pool = config.common.pool.as_ref().map(|pool| pool.batch_size);
    let batch_size = pool.or(config.method.needs().training_batch).unwrap_or(ESTIMATE_BATCH).min(dataset.train.len());
    let speed = throughput::measure(&config.common.model, &dataset.spec, batch_size, device)?;
    estimate::answer(&work, &speed, device, json, ui);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path};

    use c2r_experiment::Experiment;
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Distill {
        #[command(flatten)]
        args: Args,
    }

    /// What `--print-config` prints: a process for each would take most of the time of all tests of the command.
    fn printed<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
        let args = Distill::parse_from(["distill", "--print-config"].into_iter().chain(words)).args;
        let (config, _) = resolve(&args, &args.data.spec().unwrap()).unwrap();
        toml::to_string(&config).unwrap()
    }

    /// Every distillation that an experiment file plans has a configuration that resolves.
    #[test]
    fn every_planned_distillation_resolves() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        // Each configuration with one dataset, and each dataset with one configuration.
        let mut planned: BTreeMap<(PathBuf, Vec<String>), (String, String)> = BTreeMap::new();
        let mut datasets: BTreeMap<String, (PathBuf, Vec<String>, String)> = BTreeMap::new();
        for entry in fs::read_dir(root.join("data/paper")).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with(c2r_experiment::COMMON) {
                continue;
            }
            let experiment = Experiment::read(&path).unwrap();
            for scale in experiment.scales.values() {
                for name in &scale.methods {
                    let method = experiment.method(name).unwrap();
                    let Some(profile) = method.profile.as_ref().map(|path| root.join(path)) else { continue };
                    for dataset in &scale.datasets {
                        let overrides =
                            scale.overrides.iter().filter(|part| part.matches(dataset, part.ipc, name, None));
                        let sets = overrides.flat_map(|part| part.distill_set.clone());
                        let sets: Vec<String> =
                            [scale.distill_set.clone(), method.set.clone(), sets.collect()].concat();
                        datasets.insert(dataset.clone(), (profile.clone(), sets.clone(), name.clone()));
                        planned.insert((profile.clone(), sets), (dataset.clone(), name.clone()));
                    }
                }
            }
        }
        assert!(planned.len() >= 30 && datasets.len() == 10, "{} {}", planned.len(), datasets.len());
        for (dataset, (profile, sets, name)) in datasets {
            planned.insert((profile, sets), (dataset, name));
        }
        for ((profile, sets), (dataset, name)) in planned {
            let words = ["--dataset", &dataset, "--name", &name, "--config", profile.to_str().unwrap()];
            let printed = printed(words.into_iter().chain(sets.iter().flat_map(|set| ["--set", set])));
            assert!(printed.contains(&format!("name = \"{name}\"")), "{printed}");
        }
    }

    /// Every profile is complete with what a dataset adds, what a method does not read is not recorded, and the library
    /// resolves to the same as the command.
    #[test]
    fn every_profile_resolves_with_every_dataset() {
        let profiles = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/profiles")).unwrap();
        let mut names: Vec<String> =
            profiles.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect();
        names.sort();
        assert!(names.len() >= 17, "{names:?}");
        for name in names {
            for dataset in ["digits", "cifar10"] {
                let printed =
                    |more: &[&str]| printed(["--dataset", dataset, "--config", &name].iter().chain(more).copied());
                for ipc in [1, 10, 50] {
                    let spec = c2r_data::spec(dataset).unwrap();
                    let ours = DistillConfig::resolve(&name, &spec, [("ipc", ipc)]).unwrap();
                    assert_eq!(
                        printed(&["--ipc", &ipc.to_string()]),
                        toml::to_string(&ours).unwrap(),
                        "{name} {dataset}"
                    );
                }
                // A setting that methods share.
                let printed = printed(&["--set", "crl.temperature=0.5"]);
                let config: toml::Table = printed.parse().unwrap();
                assert_eq!(config["profile"].as_str(), Some(name.as_str()));
                assert_eq!(config.contains_key("crl"), config["method"].as_str() == Some("c2r"), "{printed}");
            }
        }
    }
}
