use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use c2r_base::{Epsilon, LabelledImages, Seed, Subject, artifact::TensorFile};
use c2r_data::{Dataset, DatasetSpec, Split, SyntheticSet};
use c2r_models::{Frozen, Model, ModelSpec, checkpoint};
use c2r_train::{Protocol, Targets, TrainConfig, TrainEvent, TrainSource, Trainer};
use serde_json::json;
use tch::{Device, Tensor};

use crate::{
    cmd::estimate::{self, Passes, Written},
    config, data,
    exit::{self, OrExit},
    run_dir::{Found, RunDir},
    throughput::{self, model_input},
    ui::Ui,
};

/// Train a network on a synthetic set, or on a real training set as the upper reference.
///
/// Leaves RUN_DIR/model.safetensors (weights, architecture and what it was trained on), log.jsonl and
/// run.json. The last checkpoint counts; no test image is ever looked at. The same command on the same
/// folder goes on where it stopped.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  c2r train --synthetic runs/first/synthetic.safetensors --protocol natural --seed 0 --run-dir runs/first/natural
  c2r train --dataset cifar10 --data DIR --protocol pgd-at --seed 0 --run-dir runs/full --set length={steps=2000}")]
pub(crate) struct Args {
    /// Synthetic set to train on
    #[arg(long, value_name = "FILE", conflicts_with = "dataset", required_unless_present = "dataset")]
    synthetic: Option<PathBuf>,

    /// Real training set to train on instead (the undistilled upper reference)
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,

    /// Folder that holds the downloaded datasets
    #[arg(long, value_name = "DIR", env = "C2R_DATA")]
    data: Option<PathBuf>,

    /// Use only the first so many real training images of each class (recorded in every result)
    #[arg(long, value_name = "N", conflicts_with = "synthetic")]
    train_per_class: Option<NonZeroUsize>,

    /// Downstream protocol; tables never mix them
    #[arg(long, value_name = "PROTOCOL", default_value = "natural")]
    protocol: Protocol,

    /// Change one key of the protocol, e.g. --set length={steps=500} (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// Architecture [default: the dataset's]
    #[arg(long, value_name = "SPEC")]
    model: Option<ModelSpec>,

    /// Radius of adversarial training in pixel units, e.g. 2/255 [default: the dataset's]
    #[arg(long, value_name = "EPS")]
    eps: Option<Epsilon>,

    /// Seed of initialization, order and augmentation
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Folder for everything this run writes
    #[arg(long, value_name = "DIR", required_unless_present = "estimate")]
    run_dir: Option<PathBuf>,

    /// Discard what another configuration left in the run folder
    #[arg(long)]
    force: bool,

    /// Print how long it would take here, from a short measurement, and stop
    #[arg(long)]
    estimate: bool,

    /// Print JSON on stdout when done
    #[arg(long)]
    json: bool,
}

/// Steps between log lines.
const LOG_EVERY: u64 = 50;
/// Time between saved states.
const CHECKPOINT: Duration = Duration::from_secs(300);

/// What to train on, whichever it is.
struct Material {
    spec: DatasetSpec,
    images: Images,
    soft_labels: Option<Tensor>,
    teacher: Option<Frozen>,
    method: String,
    profile: String,
    images_per_class: Option<usize>,
    distill_seed: Option<u64>,
    n_images: usize,
    extra_storage: String,
    data_sha256: String,
    notes: Vec<String>,
}

enum Images {
    Synthetic(LabelledImages),
    Real(Split),
}

impl Material {
    fn targets(&self) -> Targets<'_> {
        match (&self.soft_labels, &self.teacher) {
            (_, Some(teacher)) => Targets::Teacher(teacher),
            (Some(soft), None) => Targets::Soft(soft),
            (None, None) => Targets::Hard,
        }
    }

    fn source(&self) -> TrainSource<'_> {
        match &self.images {
            Images::Synthetic(images) => TrainSource::new(images, self.targets()),
            Images::Real(split) => TrainSource::of_split(split, self.targets()),
        }
    }

    /// SHA-256 of the training pixels, so that a run folder notices another training set.
    fn fingerprint(&self) -> String {
        match &self.images {
            Images::Synthetic(images) => {
                let mut file = TensorFile::default();
                file.tensors.insert("images".to_owned(), images.images().shallow_clone());
                file.tensors.insert("labels".to_owned(), images.labels().shallow_clone());
                c2r_base::artifact::sha256_hex(&file.to_bytes())
            }
            Images::Real(split) => split.sha256(),
        }
    }
}

pub(crate) fn run(args: Args, device: Device, ui: &Ui) -> anyhow::Result<()> {
    let material = match (&args.synthetic, &args.dataset) {
        (Some(file), _) => synthetic(file, device)?,
        (None, Some(name)) => real(name, &args, ui)?,
        (None, None) => unreachable!("clap requires one of them"),
    };
    let spec = match &args.model {
        Some(spec) => *spec,
        None => material.spec.model.parse()?,
    };
    let epsilon = args.eps.unwrap_or(material.spec.epsilon);
    let config = resolve(&args, epsilon, &material.spec, &material.targets())?;
    if args.estimate {
        return estimate(&config, &spec, &material, device, ui);
    }
    let path = args.run_dir.as_deref().expect("clap requires it here");
    let subject = Subject {
        dataset: material.spec.name.clone(),
        method: material.method.clone(),
        profile: material.profile.clone(),
        images_per_class: material.images_per_class,
        distill_seed: material.distill_seed,
        train_seed: args.seed,
        protocol: args.protocol.to_string(),
        model: spec.to_string(),
        n_images: material.n_images,
        extra_storage: material.extra_storage.clone(),
        data_sha256: material.data_sha256.clone(),
        notes: material.notes.clone(),
    };
    let record = json!({ "subject": subject, "train": config, "images_sha256": material.fingerprint() });
    let (mut run, found) = RunDir::open(path, "train", record, device, args.force)?;
    let file = run.file("model.safetensors");
    if found == Found::Finished {
        ui.note(format!("{} is finished; nothing to do", file.display()));
        if args.json {
            ui.out(run.summary().to_string());
        }
        return Ok(());
    }

    let seed = Seed::new(args.seed);
    let mut model = Model::new(&spec, &model_input(&material.spec), seed.child("model", 0), device)?;
    let mut trainer = Trainer::new(&mut model, &material.source(), &config, seed)?;
    let state = run.file("state.safetensors");
    if found == Found::Unfinished && state.exists() {
        trainer
            .load_state(&TensorFile::read(&state)?.tensors)
            .with_context(|| format!("cannot continue from {}; --force starts again", state.display()))?;
        ui.note(format!("going on at step {} of {} in {}", trainer.steps_done(), trainer.steps(), path.display()));
    }
    let mut log = run.log(trainer.steps_done())?;
    let mut progress = ui.progress("train", trainer.steps());
    let mut saved = Instant::now();
    while let Some(TrainEvent::Step { step, loss, lr, .. }) = trainer.step()? {
        let done = step + 1;
        progress.set(done, format!("loss {loss:.3}"));
        if done % LOG_EVERY == 0 || done == trainer.steps() {
            log.line(&json!({ "iteration": done, "loss": loss, "lr": lr }))?;
        }
        if ui.interrupted() || saved.elapsed() >= CHECKPOINT {
            let file = TensorFile { tensors: trainer.state(), ..TensorFile::default() };
            file.write(&state)?;
            run.pause()?;
            saved = Instant::now();
        }
        if ui.interrupted() {
            progress.finish();
            let path = path.display();
            return exit::fail(exit::INTERRUPTED, format!("interrupted; the same command goes on from {path}"));
        }
    }
    progress.finish();
    let final_loss = trainer.summary().final_loss;
    let header = [("subject".to_owned(), serde_json::to_string(&subject)?)].into();
    checkpoint::save(&file, &model, header)?;
    let summary = json!({ "checkpoint": "model.safetensors", "seconds": run.seconds(), "final_loss": final_loss });
    run.finish(summary.clone())?;
    if state.exists() {
        std::fs::remove_file(&state).with_context(|| format!("cannot delete {}", state.display()))?;
    }
    ui.note(format!("wrote {} ({:.0} s)", file.display(), run.seconds()));
    if args.json {
        ui.out(summary.to_string());
    }
    Ok(())
}

fn synthetic(file: &Path, device: Device) -> anyhow::Result<Material> {
    let set = SyntheticSet::load(file).or_exit(exit::DATA)?;
    let (images, labels) = set.decode(device);
    let images = LabelledImages::new(images, labels).or_exit(exit::DATA)?;
    let header = &set.header;
    let mut spec = c2r_data::spec(&header.dataset)
        .with_context(|| format!("{} was made from a dataset that this version does not know", file.display()))
        .or_exit(exit::DATA)?;
    // The set is the authority on how its pixels are normalized.
    (spec.mean, spec.std) = (header.mean.clone(), header.std.clone());
    let wants_teacher = header.config["labels"] == "teacher";
    let teacher = wants_teacher
        .then(|| {
            let path = file.with_file_name("teacher.safetensors");
            let (model, _) = checkpoint::load(&path, device)
                .with_context(|| format!("{} is labelled by a teacher, which belongs beside it", file.display()))
                .or_exit(exit::DATA)?;
            anyhow::Ok(Frozen::new(model))
        })
        .transpose()?;
    let mut notes = Vec::new();
    if let Some(per_class) = header.config["train-per-class"].as_u64() {
        notes.push(format!("distilled from the first {per_class} training images of each class"));
    }
    if set.formation > 1 {
        notes.push(format!("each stored image is a {0}x{0} mosaic", set.formation));
    }
    Ok(Material {
        images: Images::Synthetic(images),
        soft_labels: set.soft_labels.as_ref().map(|soft| soft.to_device(device)),
        teacher,
        method: header.method.clone(),
        profile: header.config["profile"].as_str().unwrap_or_default().to_owned(),
        images_per_class: Some(header.images_per_class),
        distill_seed: Some(header.seed),
        n_images: set.images.size()[0] as usize,
        extra_storage: header.extra_storage.clone(),
        data_sha256: header.data_sha256.clone(),
        notes,
        spec,
    })
}

fn real(name: &str, args: &Args, ui: &Ui) -> anyhow::Result<Material> {
    let Dataset { spec, train, notes, .. } = data::load(name, args.data.as_deref(), ui)?;
    let mut notes = notes;
    let split = match args.train_per_class {
        Some(n) => {
            notes.push(format!("trained on the first {n} training images of each class"));
            train.subset_per_class(n.get())
        }
        None => train,
    };
    let (n_images, data_sha256) = (split.len(), split.sha256());
    Ok(Material {
        spec,
        images: Images::Real(split),
        soft_labels: None,
        teacher: None,
        method: "full".to_owned(),
        profile: String::new(),
        images_per_class: None,
        distill_seed: None,
        n_images,
        extra_storage: String::new(),
        data_sha256,
        notes,
    })
}

/// The protocol with everything that the command line changes.
fn resolve(args: &Args, epsilon: Epsilon, spec: &DatasetSpec, targets: &Targets<'_>) -> anyhow::Result<TrainConfig> {
    let mut preset = args.protocol.config();
    preset.labels = targets.label_source();
    preset.dsa = spec.dsa.clone();
    if let Some(adversarial) = &mut preset.adversarial {
        adversarial.epsilon = epsilon;
    }
    let mut table = config::parse(&toml::to_string(&preset)?, "the protocol")?;
    for assignment in &args.set {
        config::set(&mut table, assignment)?;
    }
    let config: TrainConfig = config::resolve(table, &format!("protocol {}", args.protocol))?;
    config.check().or_exit(exit::USAGE)?;
    Ok(config)
}

/// What the command will send through its network. Labels of a teacher, which cost a forward pass each, are not foreseen.
pub(crate) fn passes(args: &Args, written: &mut Written) -> anyhow::Result<Passes> {
    let (dataset, n) = match (&args.synthetic, &args.dataset) {
        (Some(file), _) => match written.sets.get(file) {
            Some((dataset, per_class)) => (dataset.clone(), per_class * dataset.classes.len()),
            None => {
                let material = synthetic(file, Device::Cpu)?;
                let n = material.source().len();
                (material.spec, n)
            }
        },
        (None, Some(name)) => {
            let dataset = c2r_data::spec(name).or_exit(exit::USAGE)?;
            let wanted = args.train_per_class.map_or(usize::MAX, NonZeroUsize::get);
            let n = estimate::train_per_class(&dataset).min(wanted) * dataset.classes.len();
            (dataset, n)
        }
        (None, None) => unreachable!("clap requires one of them"),
    };
    let model = match &args.model {
        Some(model) => *model,
        None => dataset.model.parse()?,
    };
    let config = resolve(args, args.eps.unwrap_or(dataset.epsilon), &dataset, &Targets::Hard)?;
    let (attack_steps, training) = images(&config, n);
    written.network(args.run_dir.as_deref(), model);
    Ok(Passes { dataset, model, forward: attack_steps, input_gradient: attack_steps, training })
}

/// Images that are attacked, once per step, and images that are trained on.
fn images(config: &TrainConfig, n: usize) -> (f64, f64) {
    let images = config.length.steps(n, config.batch_size) as f64 * config.batch_size.min(n) as f64;
    let attack_steps = config.adversarial.as_ref().map_or(0.0, |adversarial| f64::from(adversarial.steps));
    (attack_steps * images, images)
}

fn estimate(
    config: &TrainConfig,
    spec: &ModelSpec,
    material: &Material,
    device: Device,
    ui: &Ui,
) -> anyhow::Result<()> {
    let n = material.source().len();
    let batch = config.batch_size.min(n);
    let speed = throughput::measure(spec, &material.spec, batch, device)?;
    let (attacked, images) = images(config, n);
    let teacher = if material.teacher.is_some() { images } else { 0.0 };
    ui.out(
        json!({
            "seconds": speed.seconds(attacked + teacher, attacked, images),
            "throughput": speed,
            "device": format!("{device:?}"),
            "threads": tch::get_num_threads(),
        })
        .to_string(),
    );
    Ok(())
}
