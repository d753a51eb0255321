use std::{
    collections::BTreeMap,
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use c2r_attacks::{
    AdversarialImages, Answer, Attack, AttackConfig, AttackEntry, AttackError, AttackReport, EvaluateOptions, Event,
    Mode, Outcome, evaluate,
};
use c2r_base::{
    Classifier, Epsilon, Goal, LabelledImages, Norm, Seed, TargetRule, ThreatModel,
    artifact::{self, TensorFile},
};
use c2r_distill::Work;
use c2r_eval::{AttackRecord, RecordContext};
use c2r_experiment::Subject;
use c2r_files::remove_if_present;
use c2r_models::{Frozen, TorchScript, checkpoint};
use c2r_run::{Place, Plan, Run, RunError, Status};
use serde_json::{Value, json};
use tch::Device;

use crate::{
    cmd::estimate::{self, Passes, Written},
    data,
    exit::{self, OrExit},
    run_dir, throughput,
    ui::Ui,
};

const SCHEMA_VERSION: u32 = 1;
/// The suite that is a list of columns and not one attack.
const PAPER_SUITE: &str = "paper-six";
/// Samples of the test set that an estimate assumes to be attacked: a network trained on few images is
/// right about that often.
const ASSUMED_ACCURACY: f64 = 0.5;

/// Attack a classifier and report its robust accuracy.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("classifier").required(true).args(["model", "checkpoint"]))]
#[command(group = clap::ArgGroup::new("images").required(true).args(["inputs", "dataset"]))]
#[command(after_help = "\
Examples:
  c2r attack --model m.pt --inputs x.safetensors --attack autoattack-standard --norm linf --eps 2/255
  c2r attack --checkpoint runs/first/pgd-at/model.safetensors --dataset digits --attack fgsm,pgd --eps 32/255 --each

Attacks: clean noise fgsm r-fgsm bim pgd mi-fgsm ni-fgsm vmi-fgsm vni-fgsm tpgd eot-pgd jitter cw-linf apgd-ce \
apgd-dlr apgd-t deepfool cw-l2 fab fab-t square; suites: paper-six autoattack-standard autoattack-plus \
autoattack-rand. docs/attacks has every option, its default and where the default is from.

PGD, CW, VMI-FGSM and Jitter of paper-six take 10 steps of 2/255 at every --eps, as the field does: above 10/255 they cannot \
cross the ball. Asked for by name (fgsm,pgd,cw-linf,vmi-fgsm,jitter,autoattack-standard) they step a quarter of epsilon.

A model takes pixels in [0, 1] and returns logits; normalization is inside. Epsilon and step sizes are in \
pixel units. With --output or --save, the same command goes on where an interrupted one stopped.")]
pub(crate) struct Args {
    /// A TorchScript model
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,

    /// A network that c2r trained
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,

    /// A safetensors file with `images` (f32 in `[0, 1]` or u8, `[N, C, H, W]`) and `labels` (i64 `[N]`)
    #[arg(long, value_name = "FILE")]
    inputs: Option<PathBuf>,

    /// The test images of a dataset: digits, cifar10, ..., or folder:PATH
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,

    /// Folder that holds the downloaded datasets
    #[arg(long, value_name = "DIR", env = "C2R_DATA", requires = "dataset")]
    data: Option<PathBuf>,

    /// Attack, instead of the test images, each class's training images after the first N: for choosing settings of what
    /// was made with --train-per-class N without looking at the test images
    #[arg(long, value_name = "N", requires = "dataset", conflicts_with = "inputs")]
    held_out_after: Option<NonZeroUsize>,

    /// Attack only the first so many images
    #[arg(long, value_name = "N", alias = "limit", value_parser = clap::value_parser!(u64).range(1..))]
    n_test: Option<u64>,

    /// Attacks and suites, separated by commas; without --each, each runs on what the ones before it left, so the last line
    /// is the worst case of all
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true)]
    attack: Vec<String>,

    /// Judge every attack by itself, on all images that are classified correctly; paper-six is then six attacks
    #[arg(long)]
    each: bool,

    /// linf, l2 or l1
    #[arg(long, value_name = "NORM", default_value = "linf")]
    norm: Norm,

    /// Radius in pixel units: a fraction such as 2/255 or a decimal
    #[arg(long, value_name = "EPS")]
    eps: Epsilon,

    /// Aim at one class per image: next, random, least-likely or second-best
    #[arg(long, value_name = "RULE", value_parser = parse_rule)]
    targets: Option<TargetRule>,

    /// Number of steps
    #[arg(long, value_name = "N")]
    steps: Option<String>,

    /// Length of a step, pixel units, such as 2/255
    #[arg(long, value_name = "EPS")]
    step_size: Option<String>,

    /// Start at a random point of the ball
    #[arg(long, value_name = "BOOL")]
    random_start: Option<String>,

    /// Queries per image
    #[arg(long, value_name = "N")]
    queries: Option<String>,

    /// Attempts per image
    #[arg(long, value_name = "N")]
    restarts: Option<String>,

    /// Any option of one attack: ATTACK.OPTION=VALUE, e.g. vmi-fgsm.neighbours=5
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// Seed of all noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Images per pass; bounds memory, changes results by float rounding only
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..))]
    batch_size: u64,

    /// Write the report: what a table is made from with --checkpoint and --each, else every image's outcome
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Write the images that were judged, as a file that --inputs takes; with several attacks and --each, the images of
    /// each are called `images.NAME` instead of `images`
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,

    /// Save the state of a run with --output or --save every so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    checkpoint_seconds: u64,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Discard an earlier or unfinished result
    #[arg(long)]
    force: bool,

    /// Run the operators of --model as they are: without this, average pooling and instance normalization run as
    /// equal operators that are faster on the CPU
    #[arg(long, requires = "model")]
    as_is: bool,

    /// Print how long it would take here, from a short measurement, and stop (with --json as one object)
    #[arg(long)]
    estimate: bool,
}

fn parse_rule(text: &str) -> Result<TargetRule, String> {
    serde_json::from_value(Value::String(text.to_owned()))
        .map_err(|_| "expected next, random, least-likely or second-best".to_owned())
}

pub(crate) fn run(args: Args, device: Device, ui: &Ui) -> anyhow::Result<()> {
    let configs = configs(&args).or_exit(exit::USAGE)?;
    let attacks: Vec<Box<dyn Attack>> =
        configs.iter().map(AttackConfig::build).collect::<Result<_, _>>().or_exit(exit::USAGE)?;
    if args.norm == Norm::Linf && args.eps.value() >= 1.0 {
        let eps = args.eps;
        return exit::fail(
            exit::USAGE,
            format!("--eps {eps} reaches every image, since pixels are in [0, 1]; write {eps}/255 for 8-bit units"),
        );
    }
    // As with --eps: 2 where 2/255 is meant.
    if let Some(step) = &args.step_size
        && args.norm == Norm::Linf
        && step.parse::<Epsilon>().is_ok_and(|size| size.value() >= 1.0)
    {
        let what = format!("--step-size {step} is as long as the range of pixels; write {step}/255 for 8-bit units");
        return exit::fail(exit::USAGE, what);
    }
    let threat =
        ThreatModel { norm: args.norm, epsilon: args.eps, goal: args.targets.map_or(Goal::Untargeted, Goal::Targeted) };
    if args.estimate {
        return estimate(&args, &configs, device, ui);
    }
    let place = args.output.as_ref().or(args.save.as_ref()).map(|path| Place::beside(path));
    check_outputs(&args, place.as_ref())?;
    let mut target = target(&args, device)?;
    let mut material = material(&args, ui)?;
    target.prepare(&material, args.as_is).or_exit(exit::DATA)?;
    material.notes.extend(changed_suites(&args, &configs));
    let mode = if args.each { Mode::Each } else { Mode::Suite };
    let key = json!({
        "model": target.sha256,
        "inputs": material.sha256,
        "n": material.images.len(),
        "threat": threat,
        "mode": mode,
        "seed": args.seed,
        "attacks": configs,
        "save": args.save.is_some(),
        "as_is": args.as_is,
    });
    let mut images = args.save.as_ref().map(|_| AdversarialImages::new(&material.images, attacks.len(), mode));
    let mut resume = None;
    let mut journal = place.map(|place| Journal::open(place, &args, key.clone(), device)).transpose()?;
    if let Some((journal, status)) = &mut journal {
        if *status == Status::Finished {
            ui.note(format!("{} is finished; nothing to do", journal.run.path().display()));
            let summary = journal.run.summary();
            if args.json {
                ui.out(summary.to_string());
            } else {
                print_summary(summary, ui);
            }
            return Ok(());
        }
        resume = journal.resume(images.as_mut())?;
        if resume.is_some() {
            ui.note(format!("resuming from {}", journal.run.record().display()));
        }
    }
    let mut journal = journal.map(|(journal, _)| journal);
    let options = EvaluateOptions {
        seed: Seed::new(args.seed),
        batch_size: usize::try_from(args.batch_size)?,
        mode,
        self_check: true,
        resume,
        ..EvaluateOptions::default()
    };
    let mut report = observed(&target, &material, &attacks, &threat, &options, journal.as_mut(), &mut images, ui)?;
    report.subject = target.subject.as_ref().map(serde_json::to_value).transpose()?;
    report.versions.extend(run_dir::versions());

    material.notes.extend(chance_level(&report));
    let summary = summary(&report, &args, &target, &material);
    if let (Some(path), Some(images)) = (&args.save, &images) {
        save(path, images, &configs, mode, &material, &summary, &key)?;
    }
    if let Some(path) = &args.output {
        match (&target.subject, args.each, &material.test_sha256) {
            (Some(subject), true, Some(sha256)) => {
                let context = RecordContext {
                    subject: subject.clone(),
                    test_sha256: sha256.clone(),
                    notes: material.notes.clone(),
                    argv: std::env::args().collect(),
                };
                AttackRecord::from_report(&report, context).map_err(anyhow::Error::msg)?.write(path)?;
            }
            _ => {
                let mut whole = serde_json::to_value(&report)?;
                for name in ["model", "model_sha256", "tuned_operators", "inputs", "inputs_sha256", "notes"] {
                    whole[name] = summary[name].clone();
                }
                whole["as_is"] = args.as_is.into();
                whole["command"] = json!(std::env::args().collect::<Vec<_>>());
                artifact::write_json(path, &whole)?;
            }
        }
    }
    if let Some(journal) = &mut journal {
        journal.run.finish(summary.clone())?;
        remove_if_present(&journal.images)?;
    }
    if args.json {
        ui.out(summary.to_string());
    } else {
        material.notes.iter().for_each(|note| ui.out(note));
        print(&report, target.subject.as_ref(), ui);
    }
    Ok(())
}

/// Nothing that this command did not write is replaced, and what it reads never.
fn check_outputs(args: &Args, place: Option<&Place>) -> anyhow::Result<()> {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let inputs = [("--model", &args.model), ("--checkpoint", &args.checkpoint), ("--inputs", &args.inputs)];
    if let (Some(output), Some(save)) = (&args.output, &args.save)
        && real(output) == real(save)
    {
        return exit::fail(exit::USAGE, "--output and --save are the same file");
    }
    for (flag, path) in outputs(args) {
        let shown = path.display();
        for (read, other) in inputs.iter().filter_map(|(read, other)| Some((read, other.as_deref()?))) {
            if real(path) == real(other) {
                return exit::fail(exit::USAGE, format!("{flag} {shown} would replace what {read} reads"));
            }
        }
        let Ok(found) = fs::metadata(path) else { continue };
        if !found.is_file() {
            return exit::fail(exit::USAGE, format!("{flag} {shown} is no regular file; name a file"));
        }
        let ours = place.is_some_and(|place| place.record().exists());
        if !ours && !args.force {
            return exit::fail(
                exit::USAGE,
                format!(
                    "{flag} {shown} exists, and no evaluation that is known beside it wrote it; --force replaces it"
                ),
            );
        }
    }
    Ok(())
}

/// A suite whose members are changed is not the one that its name says.
fn changed_suites(args: &Args, configs: &[AttackConfig]) -> Vec<String> {
    let common = common_options(args).map(|(option, value)| format!("{option}={value}"));
    let given: Vec<String> = common.chain(args.set.iter().cloned()).collect();
    let suites = configs.iter().filter(|config| matches!(config, AttackConfig::Suite(_)));
    suites
        .filter(|config| AttackConfig::named_for(&config.name(), args.norm).is_ok_and(|standard| standard != **config))
        .map(|config| {
            format!("{} is changed and not comparable with others' numbers: {}", config.name(), given.join(", "))
        })
        .collect()
}

/// A classifier that guesses is most often one that is asked the wrong way.
fn chance_level(report: &AttackReport) -> Option<String> {
    const FEWEST: usize = 50;
    let chance = 1.0 / report.classes as f64;
    (report.n() >= FEWEST && report.clean_accuracy() < 1.5 * chance).then(|| {
        format!(
            "doubtful: the clean accuracy is that of guessing among {} classes; a model takes pixels in [0, 1] \
             (normalization belongs inside it) and labels in its own class order",
            report.classes
        )
    })
}

/// Options that are given for every attack.
fn common_options(args: &Args) -> impl Iterator<Item = (&'static str, &str)> {
    let all = [
        ("steps", &args.steps),
        ("step-size", &args.step_size),
        ("random-start", &args.random_start),
        ("queries", &args.queries),
        ("restarts", &args.restarts),
    ];
    all.into_iter().filter_map(|(option, value)| Some((option, value.as_deref()?)))
}

/// The attacks with their options.
fn configs(args: &Args) -> anyhow::Result<Vec<AttackConfig>> {
    let mut configs: Vec<AttackConfig> =
        args.attack.iter().map(|name| AttackConfig::named_for(name.trim(), args.norm)).collect::<Result<_, _>>()?;
    if args.each {
        // The paper's table has a column for each.
        let members = |config| match config {
            AttackConfig::Suite(suite) if suite.name == PAPER_SUITE => suite.attacks,
            other => vec![other],
        };
        configs = configs.into_iter().flat_map(members).collect();
    }
    for (option, value) in common_options(args) {
        for config in &mut configs {
            config.set(option, value)?;
        }
    }
    for assignment in &args.set {
        let wrong = || format!("`--set {assignment}` is not ATTACK.OPTION=VALUE");
        let (key, value) = assignment.split_once('=').with_context(wrong)?;
        let (name, option) = key.split_once('.').with_context(wrong)?;
        let mut found = false;
        for config in &mut configs {
            // A suite as a whole, or the members of one.
            let members = match config {
                AttackConfig::Suite(suite) if suite.name != name => &mut suite.attacks[..],
                other => std::slice::from_mut(other),
            };
            for config in members.iter_mut().filter(|config| config.name() == name) {
                config.set(option, value)?;
                found = true;
            }
        }
        anyhow::ensure!(found, "`--set {assignment}` names an attack that is not among --attack or in its suites");
    }
    for (at, config) in configs.iter().enumerate() {
        anyhow::ensure!(!configs[..at].contains(config), "--attack names `{}` twice", config.name());
    }
    Ok(configs)
}

/// What is attacked.
struct Target {
    classifier: Box<dyn Classifier>,
    subject: Option<Subject>,
    name: String,
    sha256: String,
    /// `[C, H, W]` of the images that a network of c2r takes.
    shape: Option<[i64; 3]>,
    /// Classes of a network of c2r.
    n_classes: Option<i64>,
    /// The model once more if it is a TorchScript file, for what depends on the shape of the images.
    script: Option<TorchScript>,
    /// Operators of a TorchScript model that run as faster equal ones.
    n_tuned: usize,
}

impl Target {
    /// Checks that the model takes such images, and lets TorchScript run faster unless it should stay as it is.
    fn prepare(&mut self, material: &Material, as_is: bool) -> anyhow::Result<()> {
        let (name, shape) = (&self.name, material.images.image_shape());
        let [channels, height, width] = shape;
        let images = format!("images of {channels} channels and {height}x{width} pixels ({})", material.name);
        let last =
            if width <= 4 && channels > 4 { "; are the channels last? They come first: [N, C, H, W]" } else { "" };
        if let Some(expected) = self.shape {
            anyhow::ensure!(expected == shape, "{name} takes images of shape {expected:?}, not {images}{last}");
        }
        let Some(script) = self.script.take() else { return self.check_classes(self.n_classes, material) };
        let n_classes = script.classes(shape).map_err(|error| {
            // TorchScript says where in the exporter's code it happened first, and what happened last.
            let text = error.to_string();
            let reason = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
            anyhow::anyhow!("{name} does not take {images}{last}: {reason}")
        })?;
        self.check_classes(Some(n_classes), material)?;
        if !as_is && let Some((tuned, n_replaced)) = script.tuned(shape)? {
            self.classifier = Box::new(tuned);
            self.n_tuned = n_replaced;
        }
        Ok(())
    }

    /// A dataset's labels mean nothing to a model of other classes.
    fn check_classes(&self, n_classes: Option<i64>, material: &Material) -> anyhow::Result<()> {
        let (Some(n_classes), Some(classes)) = (n_classes, &material.classes) else { return Ok(()) };
        anyhow::ensure!(
            n_classes == classes.len() as i64,
            "{} returns {n_classes} logits, {} has {} classes: {}",
            self.name,
            material.name,
            classes.len(),
            classes.join(", ")
        );
        Ok(())
    }
}

fn target(args: &Args, device: Device) -> anyhow::Result<Target> {
    let path = args.model.as_ref().or(args.checkpoint.as_ref()).expect("clap requires one");
    let sha256 = artifact::sha256_of_file(path).or_exit(exit::DATA)?;
    let name = path.display().to_string();
    if args.model.is_some() {
        let script = TorchScript::load(path, device);
        if script.is_err() && checkpoint::load(path, device).is_ok() {
            return exit::fail(exit::USAGE, format!("{name} is a network that c2r trained: use --checkpoint {name}"));
        }
        let script = match script {
            Err(error) if error.to_string().contains("constants.pkl") => {
                let what = format!(
                    "{name} is a file of torch.save (a state_dict or a pickled module), not TorchScript: write one with \
                     torch.jit.trace(model.eval(), images[:2]).save(FILE)"
                );
                return exit::fail(exit::DATA, what);
            }
            other => other.or_exit(exit::DATA)?,
        };
        let classifier = Box::new(script.clone());
        return Ok(Target {
            classifier,
            subject: None,
            name,
            sha256,
            shape: None,
            n_classes: None,
            script: Some(script),
            n_tuned: 0,
        });
    }
    let loaded = checkpoint::load(path, device);
    if loaded.is_err() && TorchScript::load(path, device).is_ok() {
        return exit::fail(exit::USAGE, format!("{name} is a TorchScript model: use --model {name}"));
    }
    let (model, header) = loaded.or_exit(exit::DATA)?;
    let subject = match header.get("subject") {
        Some(text) => {
            Some(serde_json::from_str(text).with_context(|| format!("the subject in {name}")).or_exit(exit::DATA)?)
        }
        None => None,
    };
    let (shape, n_classes) = (Some(model.input().image_shape()), Some(model.input().n_classes));
    let classifier = Box::new(Frozen::new(model));
    Ok(Target { classifier, subject, name, sha256, shape, n_classes, script: None, n_tuned: 0 })
}

/// What it is attacked with.
struct Material {
    images: LabelledImages,
    name: String,
    sha256: String,
    /// Hash of the whole test split, for tables.
    test_sha256: Option<String>,
    /// Names of a dataset's classes.
    classes: Option<Vec<String>>,
    notes: Vec<String>,
}

fn material(args: &Args, ui: &Ui) -> anyhow::Result<Material> {
    let n_test = args.n_test.map(usize::try_from).transpose()?;
    if let Some(name) = &args.dataset {
        let dataset = data::load(name, args.data.as_deref(), ui)?;
        let mut notes = Vec::new();
        let (split, called) = match args.held_out_after {
            Some(n) => {
                let rest = dataset.train.rest_per_class(n.get());
                if rest.is_empty() {
                    let message = format!("--held-out-after {n}: no class of {name} has more than {n} training images");
                    return exit::fail(exit::USAGE, message);
                }
                notes.push(format!(
                    "judged on the training images after the first {n} of each class, not on test images"
                ));
                (rest, "training, held out")
            }
            None => (dataset.test, "test"),
        };
        let sha256 = split.sha256();
        let test = match n_test {
            Some(n) if n < split.len() => {
                notes.push(format!("{name} {called}: the first {n} of {} images", split.len()));
                split.first(n)
            }
            _ => split,
        };
        return Ok(Material {
            images: test.to_labelled(),
            name: name.clone(),
            sha256: sha256.clone(),
            test_sha256: Some(sha256),
            classes: Some(dataset.spec.classes.clone()),
            notes,
        });
    }
    let path = args.inputs.as_ref().expect("clap requires it here");
    let mut file = TensorFile::read(path)
        .context(
            "--inputs takes a safetensors file with `images` and `labels` (folders of images: --dataset folder:DIR)",
        )
        .or_exit(exit::DATA)?;
    let there = file.tensors.keys().cloned().collect::<Vec<_>>().join(", ");
    let mut take = |name: &str| match file.tensors.remove(name) {
        Some(tensor) => Ok(match n_test {
            Some(n) if tensor.dim() > 0 => tensor.narrow(0, 0, tensor.size()[0].min(n as i64)),
            _ => tensor,
        }),
        None => exit::fail(exit::DATA, format!("{} has no tensor `{name}`; it has: {there}", path.display())),
    };
    let (images, labels) = (take("images")?, take("labels")?);
    let images = LabelledImages::new(images, labels).with_context(|| path.display().to_string()).or_exit(exit::DATA)?;
    let sha256 = artifact::sha256_of_file(path).or_exit(exit::DATA)?;
    Ok(Material {
        images,
        name: path.display().to_string(),
        sha256,
        test_sha256: None,
        classes: None,
        notes: Vec::new(),
    })
}

/// [`evaluate`] with progress, a journal and Ctrl-C.
#[expect(clippy::too_many_arguments, reason = "one call of one function, split for reading")]
fn observed(
    target: &Target,
    material: &Material,
    attacks: &[Box<dyn Attack>],
    threat: &ThreatModel,
    options: &EvaluateOptions,
    mut journal: Option<&mut Journal>,
    images: &mut Option<AdversarialImages>,
    ui: &Ui,
) -> anyhow::Result<AttackReport> {
    let mut progress = ui.progress("clean", material.images.len() as u64);
    let mut running = (usize::MAX, String::new());
    let mut written = Instant::now();
    let mut failure = None;
    let result = evaluate(target.classifier.as_ref(), &material.images, attacks, threat, options, &mut |event| {
        if let Some(images) = images.as_mut() {
            images.observe(event);
        }
        match event {
            Event::Clean { done, .. } => progress.set(*done as u64, ""),
            Event::Judged { entry, attack, done, total, report, .. } => {
                if (running.0, running.1.as_str()) != (*entry, *attack) {
                    running = (*entry, (*attack).to_owned());
                    let next = ui.progress(attack, *total as u64);
                    std::mem::replace(&mut progress, next).finish();
                }
                progress.set(*done as u64, format!("{:.1} % robust", 100.0 * report.attacks[*entry].robust_accuracy()));
                if let Some(journal) = &mut journal
                    && (ui.interrupted() || written.elapsed() >= journal.interval)
                {
                    if let Err(error) = journal.save(report, images.as_ref()) {
                        failure = Some(error);
                        return Answer::Break(());
                    }
                    written = Instant::now();
                }
            }
            _ => {}
        }
        if ui.interrupted() { Answer::Break(()) } else { Answer::Continue(()) }
    });
    progress.finish();
    if let Some(error) = failure {
        return Err(error);
    }
    match result {
        Ok(report) => Ok(report),
        Err(AttackError::Interrupted) => {
            let what = match journal {
                Some(journal) => {
                    format!("interrupted; the same command resumes from {}", journal.run.record().display())
                }
                None => "interrupted; nothing was kept (with --output or --save the command can be resumed)".to_owned(),
            };
            exit::fail(exit::INTERRUPTED, what)
        }
        Err(error @ AttackError::Config(_)) => Err(exit::coded(exit::USAGE, error)),
        Err(error @ AttackError::Images(_)) => {
            Err(exit::coded(exit::DATA, anyhow::Error::new(error).context(material.name.clone())))
        }
        // The model was checked on images of this shape; what it does not take is in these images or in the file.
        Err(error @ AttackError::Model { .. }) => {
            Err(exit::coded(exit::DATA, anyhow::Error::new(error).context(target.name.clone())))
        }
        Err(error) => Err(error.into()),
    }
}

/// The run of an evaluation, kept beside its results.
struct Journal {
    run: Run,
    /// The images of an unfinished evaluation.
    images: PathBuf,
    /// How often an unfinished evaluation is saved.
    interval: Duration,
}

impl Journal {
    fn open(place: Place, args: &Args, config: Value, device: Device) -> anyhow::Result<(Self, Status)> {
        let images = place.record().with_extension("").with_extension("part.safetensors");
        let outputs = outputs(args).map(|(flag, path)| (flag, path.to_owned())).collect();
        let plan = Plan { stage: "attack", config, environment: run_dir::environment(device), outputs };
        let opened = Run::open(place, plan, args.force, || remove_if_present(&images));
        let (run, status) = opened.map_err(|error| {
            let (code, advice) = match error {
                RunError::Busy { .. } => (exit::USAGE, "wait for it, or choose another file"),
                RunError::Unreadable { .. } => (exit::UNEXPECTED, "--force starts again"),
                RunError::Different { .. } => (exit::USAGE, "choose another file, or discard the run with --force"),
                RunError::Changed { .. } => (exit::USAGE, "--force replaces it"),
                other => return other.into(),
            };
            exit::coded(code, run_dir::with_advice(error, advice))
        })?;
        if status == Status::Finished {
            remove_if_present(&images)?;
        }
        Ok((Self { run, images, interval: Duration::from_secs(args.checkpoint_seconds) }, status))
    }

    /// Images first: an image that is newer than the report is attacked again and overwritten.
    fn save(&mut self, report: &AttackReport, images: Option<&AdversarialImages>) -> anyhow::Result<()> {
        if let Some(images) = images {
            let tensors = images.sets().iter().enumerate().map(|(at, set)| (format!("{at:04}"), set.shallow_clone()));
            TensorFile { tensors: tensors.collect(), ..TensorFile::default() }.write(&self.images)?;
        }
        Ok(self.run.save(serde_json::to_value(report)?)?)
    }

    /// The report of an unfinished evaluation, and its images.
    fn resume(&mut self, images: Option<&mut AdversarialImages>) -> anyhow::Result<Option<AttackReport>> {
        let state = self.run.take_state();
        if state.is_null() {
            return Ok(None);
        }
        let wrong = || format!("cannot resume from {}; --force starts again", self.run.record().display());
        let report = serde_json::from_value(state).with_context(wrong)?;
        if let Some(images) = images {
            images.restore(TensorFile::read(&self.images)?.tensors.into_values().collect()).with_context(wrong)?;
        }
        Ok(Some(report))
    }
}

/// The files that are asked for, by option.
fn outputs(args: &Args) -> impl Iterator<Item = (&'static str, &Path)> {
    let all = [("--output", &args.output), ("--save", &args.save)];
    all.into_iter().filter_map(|(flag, path)| Some((flag, path.as_deref()?)))
}

fn n_robust(entry: &AttackEntry) -> usize {
    entry.samples.iter().filter(|sample| sample.outcome == Outcome::Survived).count()
}

/// The object that `--json` prints.
fn summary(report: &AttackReport, args: &Args, target: &Target, material: &Material) -> Value {
    let attacks: Vec<Value> = report
        .attacks
        .iter()
        .map(|entry| {
            let counts = entry.counts();
            json!({
                "attack": entry.name,
                "attacked": entry.stages.first().map_or(0, |stage| stage.attacked),
                "survivors": n_robust(entry),
                "robust_accuracy": entry.robust_accuracy(),
                "forward": counts.forward_images,
                "backward": counts.backward_images,
                "seconds": entry.seconds(),
                "stages": entry.stages,
                "config": entry.config,
            })
        })
        .collect();
    let counts = report.counts();
    json!({
        "schema_version": SCHEMA_VERSION,
        "attack": args.attack.join(","),
        "mode": report.mode,
        "norm": report.threat.norm,
        "eps": report.threat.epsilon,
        "goal": report.threat.goal,
        "seed": report.seed,
        "n": report.n(),
        "clean_accuracy": report.clean_accuracy(),
        "robust_accuracy": report.robust_accuracy(),
        "attacks": attacks,
        "forward": counts.forward_images,
        "backward": counts.backward_images,
        "seconds": report.seconds(),
        "flags": report.flags,
        "flag_notes": report.flags.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "notes": material.notes,
        "subject": target.subject,
        "model": target.name,
        "model_sha256": target.sha256,
        "tuned_operators": target.n_tuned,
        "inputs": material.name,
        "inputs_sha256": material.sha256,
        "versions": report.versions,
    })
}

/// `images` and `labels` as `--inputs` takes them; with several attacks judged each by itself, `images.NAME`.
fn save(
    path: &Path,
    images: &AdversarialImages,
    configs: &[AttackConfig],
    mode: Mode,
    material: &Material,
    summary: &Value,
    key: &Value,
) -> anyhow::Result<()> {
    let header = BTreeMap::from([
        ("format".to_owned(), "c2r-adversarial".to_owned()),
        ("schema_version".to_owned(), SCHEMA_VERSION.to_string()),
        ("attack".to_owned(), summary["attack"].to_string()),
        ("robust_accuracy".to_owned(), summary["robust_accuracy"].to_string()),
        // Models, inputs, threat, seed and every option.
        ("evaluation".to_owned(), key.to_string()),
    ]);
    let mut file = TensorFile { header, ..TensorFile::default() };
    file.tensors.insert("labels".to_owned(), material.images.labels().shallow_clone());
    for (at, set) in images.sets().iter().enumerate() {
        let name = match (mode, images.sets().len()) {
            (Mode::Suite, _) | (Mode::Each, 1) => "images".to_owned(),
            (Mode::Each, _) => format!("images.{}", configs[at].name()),
        };
        file.tensors.insert(name, set.shallow_clone());
    }
    Ok(file.write(path)?)
}

/// Said where several attacks ran one after the other.
const LEFT_SO_FAR: &str = "each line is what is left after its attack and those above it: the worst case so far; --each \
                           judges every attack by itself";

/// What a finished evaluation printed, as far as its state has it.
fn print_summary(summary: &Value, ui: &Ui) {
    if summary["mode"] == json!(Mode::Suite) && summary["attacks"].as_array().is_some_and(|attacks| attacks.len() > 1) {
        ui.out(LEFT_SO_FAR);
    }
    let line = |name: &str, accuracy: &Value| {
        ui.out(format!("{name:<22}{:>10.2} %", 100.0 * accuracy.as_f64().unwrap_or(f64::NAN)));
    };
    line("clean", &summary["clean_accuracy"]);
    for attack in summary["attacks"].as_array().into_iter().flatten() {
        line(attack["attack"].as_str().unwrap_or_default(), &attack["robust_accuracy"]);
    }
}

fn print(report: &AttackReport, subject: Option<&Subject>, ui: &Ui) {
    for note in subject.iter().filter(|subject| !subject.selection.is_last()).flat_map(|subject| &subject.notes) {
        ui.out(note);
    }
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    ui.out(format!("{} images, {} {}", report.n(), report.threat.norm, report.threat.epsilon));
    if let Goal::Targeted(rule) = report.threat.goal {
        let rule =
            serde_json::to_value(rule).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default();
        ui.out(format!("targeted ({rule}): accuracy is the share of images that were not taken to their target"));
    }
    let one_after_the_other = report.mode == Mode::Suite && report.attacks.len() > 1;
    if one_after_the_other {
        ui.out(LEFT_SO_FAR);
    }
    let accuracy = if one_after_the_other { "left so far" } else { "accuracy" };
    ui.out(format!("{:<22}{accuracy:>12}{:>12}{:>10}", "attack", "broken", "seconds"));
    ui.out(format!("{:<22}{:>12}{:>12}{:>10.1}", "clean", percent(report.clean_accuracy()), "", report.clean_seconds));
    for entry in &report.attacks {
        let broken = |attacked: usize, left: usize| format!("{} of {attacked}", attacked - left);
        let attacked = entry.stages.first().map_or(0, |stage| stage.attacked);
        let left = entry.stages.last().map_or(attacked, |stage| stage.survivors);
        ui.out(format!(
            "{:<22}{:>12}{:>12}{:>10.1}",
            entry.name,
            percent(entry.robust_accuracy()),
            broken(attacked, left),
            entry.seconds()
        ));
        if entry.stages.len() > 1 {
            for stage in &entry.stages {
                let broken = broken(stage.attacked, stage.survivors);
                ui.out(format!("  {:<20}{:>12}{broken:>12}{:>10.1}", stage.attack, "", stage.seconds));
            }
        }
    }
    if report.attacks.len() > 1 {
        ui.out(format!("{:<22}{:>12}", "all together", percent(report.robust_accuracy())));
    }
    for flag in &report.flags {
        ui.out(format!("doubtful: {flag}"));
    }
}

/// What the command will send through its network.
pub(crate) fn passes(args: &Args, written: &Written) -> anyhow::Result<Passes> {
    let (Some(name), Some(checkpoint)) = (&args.dataset, &args.checkpoint) else {
        anyhow::bail!("only attacks with --dataset and --checkpoint are foreseen");
    };
    let configs = configs(args)?;
    let dataset = c2r_data::spec(name)?;
    let model = match written.networks.get(checkpoint) {
        Some(model) => *model,
        None => *checkpoint::load(checkpoint, Device::Cpu)?.0.spec(),
    };
    let there = match args.held_out_after {
        Some(n) => estimate::train_per_class(&dataset).saturating_sub(n.get()) * dataset.classes.len(),
        None => estimate::n_test(&dataset),
    };
    let n = args.n_test.map_or(usize::MAX, |n| n as usize).min(there);
    let (forward, input_gradient) = images(&configs, n as f64, dataset.classes.len());
    Ok(Passes { dataset, model, forward, input_gradient, training: 0.0 })
}

/// Images forward, and backward to the pixels, for attacks on `n` test images.
fn images(configs: &[AttackConfig], n: f64, classes: usize) -> (f64, f64) {
    let attacked = n * ASSUMED_ACCURACY;
    let (mut forward, mut backward) = (n, 0.0);
    for config in configs {
        let (one_forward, one_backward) = config.passes(classes as u64);
        forward += attacked * (one_forward + 1) as f64;
        backward += attacked * one_backward as f64;
    }
    (forward, backward)
}

fn estimate(args: &Args, configs: &[AttackConfig], device: Device, ui: &Ui) -> anyhow::Result<()> {
    let Some(name) = &args.dataset else {
        return exit::fail(exit::USAGE, "--estimate needs --dataset");
    };
    let dataset = data::load(name, args.data.as_deref(), ui)?;
    let n = args.n_test.map_or(dataset.test.len(), |n| dataset.test.len().min(n as usize)) as f64;
    let spec = match &args.checkpoint {
        // An estimate of a whole grid comes before its networks are trained.
        Some(path) if path.exists() => *checkpoint::load(path, Device::Cpu).or_exit(exit::DATA)?.0.spec(),
        _ => dataset.spec.model.parse()?,
    };
    let batch = (args.batch_size as usize).min(n as usize).max(1);
    let speed = throughput::measure(&spec, &dataset.spec, batch, device)?;
    let (forward, backward) = images(configs, n, dataset.spec.classes.len());
    let work = Work { forward, input_gradient: backward, training: 0.0 };
    estimate::answer(&work, &speed, device, args.json, ui);
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(more: &[&str]) -> Args {
        let line = ["attack", "--model", "m.pt", "--inputs", "x", "--eps", "2/255"].iter().chain(more);
        Line::try_parse_from(line).unwrap_or_else(|error| panic!("{error}")).args
    }

    #[test]
    fn options_reach_their_attack_and_strangers_are_errors() {
        let configs_of = |more: &[&str]| configs(&parse(more));
        let pgd = &configs_of(&["--attack", "pgd", "--steps", "7", "--step-size", "0.25/255"]).unwrap()[0];
        let AttackConfig::Pgd(pgd) = pgd else { panic!() };
        assert_eq!((pgd.steps, pgd.step_size), (7, Some(Epsilon::of_255(0.25))));
        let error = configs_of(&["--attack", "fgsm,pgd", "--steps", "7"]).unwrap_err().to_string();
        assert!(error.contains("`fgsm` has no option `steps`"), "{error}");
        let both = configs_of(&["--attack", "fgsm,pgd", "--set", "pgd.steps=7"]).unwrap();
        assert!(matches!(&both[1], AttackConfig::Pgd(pgd) if pgd.steps == 7));
        assert!(configs_of(&["--attack", "fgsm", "--set", "pgd.steps=7"]).is_err());
        assert!(configs_of(&["--attack", "fgsmm"]).unwrap_err().to_string().contains("apgd-ce"));
        assert!(configs_of(&["--attack", "autoattack-standard", "--queries", "9"]).is_ok());
        let names = |more: &[&str]| -> Vec<String> {
            configs_of(more).unwrap().iter().map(|config| config.name().to_owned()).collect()
        };
        assert_eq!(names(&["--attack", "paper-six"]), ["paper-six"]);
        let six = ["fgsm", "pgd", "cw-linf", "vmi-fgsm", "jitter", "autoattack-standard"];
        assert_eq!(names(&["--attack", "paper-six", "--each"]), six, "one column each");
        assert!(configs_of(&["--attack", "pgd", "--random-start", "maybe"]).is_err());
    }

    #[test]
    fn target_rules_are_words() {
        assert_eq!(parse_rule("least-likely"), Ok(TargetRule::LeastLikely));
        assert!(parse_rule("worst").is_err());
    }
}
