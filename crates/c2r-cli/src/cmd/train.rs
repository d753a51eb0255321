mod args;
mod values;

use std::{
    num::NonZeroUsize,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use c2r_base::{Epsilon, LabelledImages, Seed, artifact::TensorFile};
use c2r_data::{Dataset, DatasetSpec, Mosaics, SetLabels, Split, SyntheticSet, arrays::to_tensor};
use c2r_distill::folder;
use c2r_experiment::{Selection, Subject};
use c2r_kernels::{Bf16, FloatFormat};
use c2r_models::{Frozen, Model, ModelSpec, checkpoint};
use c2r_run::{Run, Status, process::peak_memory_mb, signals};
use c2r_train::{
    Best, Targets, Teacher, TrainConfig, TrainSource, TrainStep, Trainer, layers, model_input, state::State,
};
use serde_json::json;
use tch::{Device, Tensor};
use toml::Value;

use crate::{
    cmd::estimate::{self, Planned, Written},
    config, data,
    exit::{self, OrExit},
    fingerprint,
    kernels::KernelNotes,
    run_dir, throughput,
    ui::Ui,
};

pub(crate) use args::Args;
pub(crate) use values::work;
use values::{LEARNED, Rate, how_long};

/// Networks that `--select` compares by default.
const DEFAULT_COMPARISONS: u64 = 100;
/// Images per pass when they are compared; changes nothing but memory and speed.
const JUDGED_AT_ONCE: usize = 256;
/// Images of up to this many bytes are on the device while networks are compared on them; more go there batch by batch.
const JUDGES_ON_DEVICE: usize = 1 << 30;
/// Time between saved states.
const CHECKPOINT: Duration = Duration::from_secs(300);

/// Share of an imported set's values that may be clipped without a note in every result.
const NOTED_CUT: f64 = 0.01;

/// Files of a run folder.
const STATE: &str = "state.safetensors";

/// What to train on, whichever it is.
struct Material {
    spec: DatasetSpec,
    images: Images,
    soft_labels: Option<Tensor>,
    teacher: Option<(Frozen, f64)>,
    /// The learning rate that the distillation of the set learned.
    learned_lr: Option<f64>,
    /// What results say about it and about the training; the network is not named yet.
    subject: Subject,
    /// What `--select` compares the networks on; `None` for the last one.
    judges: Option<LabelledImages>,
}

enum Images {
    Synthetic(LabelledImages),
    Real(Split),
}

impl Material {
    fn targets(&self) -> Targets<'_> {
        match (&self.soft_labels, &self.teacher) {
            (_, Some((network, temperature))) => Targets::Teacher(Teacher { network, temperature: *temperature }),
            (Some(soft), None) => Targets::Soft(soft),
            (None, None) => Targets::Hard,
        }
    }

    fn source(&self) -> TrainSource<'_> {
        match &self.images {
            Images::Synthetic(images) => {
                TrainSource::new(images, self.targets()).of_mosaics(self.subject.formation() as usize)
            }
            Images::Real(split) => TrainSource::of_split(split, self.targets()),
        }
    }

    /// SHA-256 of the training pixels and of what labels them, so that a run folder notices another training set.
    fn fingerprint(&self) -> String {
        match &self.images {
            Images::Synthetic(images) => fingerprint::of(images, &self.targets()),
            Images::Real(split) => split.sha256(),
        }
    }
}

pub(crate) fn run(args: Args, device: Device, bf16: bool, ui: &Ui) -> anyhow::Result<()> {
    let set = args.synthetic.as_deref().map(data::set_file).transpose()?;
    let material = match (&set, &args.dataset) {
        (Some(file), _) => synthetic(file, &args, device, ui)?,
        (None, Some(name)) => real(name, &args, ui)?,
        (None, None) => unreachable!("clap requires one of them"),
    };
    let spec = match &args.model {
        Some(spec) => *spec,
        None => material.spec.model.parse()?,
    };
    let epsilon = args.eps.unwrap_or(material.spec.epsilon);
    let learned = || material.learned_lr.ok_or_else(|| no_learned_rate(&args));
    let (config, is_learned) = resolve(&args, epsilon, &material.spec, &material.targets(), &learned)?;
    note_idle(&args, &config, ui);
    if args.print_config {
        ui.text(toml::to_string(&config)?.trim_end());
        return Ok(());
    }
    let bf16 = bf16.then_some(device);
    if args.estimate {
        let _bf16 = bf16.map(Bf16::on);
        return estimate(&config, &spec, &material, device, args.json, ui);
    }
    let path = args.run_dir.as_deref().expect("clap requires it here");
    let task = Task::new(&args, &material, &config, &spec, is_learned, bf16);
    let (mut run, status) = {
        let record = task.record(&config, is_learned, device);
        let _bf16 = bf16.map(Bf16::on);
        let inputs: Vec<_> = set.iter().map(|file| ("--synthetic", file.as_path())).collect();
        run_dir::open(path, &run_dir::TRAIN, record, &inputs, device, args.force)?
    };
    if status == Status::Finished {
        ui.note(format!("{} is finished; nothing to do", run.file(data::NETWORK_FILE).display()));
        if args.json {
            ui.out(run.summary().to_string());
        }
        return Ok(());
    }

    let seed = Seed::new(args.seed);
    let mut model = Model::new(&spec, &model_input(&material.spec), seed.child("model", 0), device)?;
    let mut trainer = Trainer::new(&mut model, &material.source(), &config, seed)?;
    let mut best = Best::default();
    let state = run.file(STATE);
    let is_resumed = status == Status::Unfinished && state.exists();
    if is_resumed {
        let context = || format!("cannot resume from {}; --force starts again", state.display());
        let tensors = TensorFile::read(&state).with_context(context)?.tensors;
        let mut saved = State::reading(&tensors);
        trainer.state(&mut saved).with_context(context)?;
        best.state(&mut saved).with_context(context)?;
        ui.note(format!("resuming {} at step {} of {}", path.display(), trainer.steps_done(), trainer.steps()));
    }
    run_dir::note_other_sessions(&mut run, is_resumed, ui);
    signals::will_save();
    let kernels = task.work(&mut trainer, &mut best, &mut run, device, ui)?;
    let final_loss = trainer.summary().final_loss;
    best.restore(trainer.model())?;
    task.finish(&model, &best, final_loss, &kernels, &mut run, ui)
}

/// Says which options do nothing.
fn note_idle(args: &Args, config: &TrainConfig, ui: &Ui) {
    if args.eps.is_some() && config.adversarial.is_none() {
        ui.note(format!("note: --eps has no effect: the protocol {} does not attack", args.protocol));
    }
    if args.select_every.is_some() && args.select.is_last() {
        ui.note("note: --select-every has no effect: --select last compares no networks");
    }
    if args.held_out_part.is_some() && args.select != Selection::HeldOut {
        ui.note("note: --held-out-part has no effect without --select held-out");
    }
}

/// What a run is asked for.
struct Task<'a> {
    args: &'a Args,
    material: &'a Material,
    /// With the network.
    subject: Subject,
    /// Steps of the whole training.
    total: u64,
    /// Steps between two networks that are compared.
    select_every: u64,
    /// The device, if its steps are in bf16.
    bf16: Option<Device>,
}

impl<'a> Task<'a> {
    fn new(
        args: &'a Args,
        material: &'a Material,
        config: &TrainConfig,
        spec: &ModelSpec,
        is_learned: bool,
        bf16: Option<Device>,
    ) -> Self {
        let total = config.length.steps(material.source().len(), config.batch_size);
        let mut subject = Subject { model: spec.to_string(), ..material.subject.clone() };
        if is_learned {
            subject.notes.push("trained at the learning rate that the distillation of each set learned".to_owned());
        }
        if matches!(material.images, Images::Real(_)) {
            subject.notes.push(how_long(config, total, material.source().len()));
        }
        if bf16.is_some() {
            subject.notes.push("trained in bf16 (docs/cli.md)".to_owned());
        }
        let select_every = args.select_every.unwrap_or_else(|| total.div_ceil(DEFAULT_COMPARISONS)).max(1);
        Self { args, material, subject, total, select_every, bf16 }
    }

    /// What makes the run this one.
    fn record(&self, config: &TrainConfig, is_learned: bool, device: Device) -> serde_json::Value {
        let images = self.material.fingerprint();
        let mut record = json!({ "subject": self.subject, "train": config, "images_sha256": images });
        if is_learned {
            record["lr_is_learned"] = true.into();
        }
        if !self.args.select.is_last() {
            record["select_every"] = self.select_every.into();
        }
        let format = self.bf16.map_or_else(|| FloatFormat::unusual(device), |_| Some(FloatFormat::Bf16));
        if let Some(format) = format {
            record["precision"] = json!(format.to_string());
        }
        record
    }

    /// Trains to the end; saves the state on the way and on Ctrl-C.
    fn work(
        &self,
        trainer: &mut Trainer<'_>,
        best: &mut Best,
        run: &mut Run,
        device: Device,
        ui: &Ui,
    ) -> anyhow::Result<KernelNotes> {
        let mut log = run.log(trainer.steps_done())?;
        let mut progress = ui.progress("train", trainer.steps_done(), trainer.steps());
        let mut saved = Instant::now();
        let mut doing = String::new();
        let mut kernels = KernelNotes::default();
        // Once, and not at every comparison, unless they are many.
        let judges = self.material.judges.as_ref().map(|judges| {
            let bytes = judges.images().numel() * size_of::<f32>();
            judges.to_device(if bytes <= JUDGES_ON_DEVICE { device } else { judges.images().device() })
        });
        let next = |trainer: &mut Trainer<'_>| {
            let _bf16 = self.bf16.map(Bf16::on);
            trainer.step()
        };
        while let Some(TrainStep { step, loss, lr, .. }) = next(trainer)? {
            let done = step + 1;
            if let Some(loss) = loss {
                log.line(&json!({ "iteration": done, "loss": loss, "lr": lr }))?;
                doing = format!("loss {loss:.3}");
            }
            progress.set(done, &doing);
            kernels.update(ui);
            if let Some(judges) = &judges
                && (done % self.select_every == 0 || done == trainer.steps())
            {
                best.offer(trainer.model(), done, judges, JUDGED_AT_ONCE)?;
            }
            // Read once: an interrupt in between would stop the run without its state.
            let interrupted = ui.interrupted();
            if interrupted || saved.elapsed() >= CHECKPOINT {
                let mut file = TensorFile::default();
                let mut written = State::writing(&mut file.tensors);
                trainer.state(&mut written)?;
                best.state(&mut written)?;
                file.write(&run.file(STATE))?;
                run.pause()?;
                saved = Instant::now();
            }
            if interrupted {
                progress.finish();
                let (path, resume) = (run.path().display(), signals::how_to_resume(self.args.force));
                let total = trainer.steps();
                return Err(signals::stopped(format!("step {done} of {total} is saved in {path}; {resume}")));
            }
        }
        progress.finish();
        Ok(kernels)
    }

    /// Writes the network and the record, and deletes the state.
    fn finish(
        &self,
        model: &Model,
        best: &Best,
        final_loss: f64,
        kernels: &KernelNotes,
        run: &mut Run,
        ui: &Ui,
    ) -> anyhow::Result<()> {
        let Self { args, total, .. } = self;
        let file = run.file(data::NETWORK_FILE);
        let header = [("subject".to_owned(), serde_json::to_string(&self.subject)?)].into();
        checkpoint::save(&file, model, header)?;
        let mut summary = json!({
            "checkpoint": data::NETWORK_FILE,
            "seconds": run.seconds(),
            "peak_memory_mb": peak_memory_mb(),
            "final_loss": final_loss,
        });
        if let Some((step, accuracy)) = best.found() {
            summary["selected"] = json!({ "by": args.select, "step": step, "accuracy": accuracy });
            let percent = 100.0 * accuracy;
            ui.note(format!(
                "kept the network of step {step} of {total}: {percent:.1} % accuracy on the images of --select {}",
                args.select
            ));
            if args.select == Selection::BestTest {
                ui.note("best-test: this network was chosen on the test images, so its test accuracies are optimistic");
            }
        }
        kernels.record(&mut summary);
        run_dir::finish(run, summary, &file, args.json, ui)
    }
}

/// What the networks are compared on, and the note that every result carries.
fn judges(args: &Args, test: &Split, held_out: Split, of_a_set: bool) -> (LabelledImages, String) {
    if args.select == Selection::BestTest {
        let note = "best-test: the step was chosen on the TEST images, so accuracies are optimistic; use it only to compare \
                    with work that does the same";
        return (test.to_labelled(), note.to_owned());
    }
    let seen = if of_a_set { ", which the distillation may have seen" } else { "" };
    let note = format!(
        "held-out: the step was chosen on {} real training images{seen}; test images were not used",
        held_out.len()
    );
    (held_out.to_labelled(), note)
}

/// Which real images are kept aside is the same for every run.
const HELD_OUT_SEED: u64 = 0;

/// The share of the real training images that is kept aside.
fn held_out_part(args: &Args) -> f64 {
    args.held_out_part.unwrap_or(0.1)
}

fn synthetic(file: &Path, args: &Args, device: Device, ui: &Ui) -> anyhow::Result<Material> {
    let set = SyntheticSet::load(file).or_exit(exit::DATA)?;
    let (images, labels) = set.decode(device);
    let images = LabelledImages::new(images, labels).or_exit(exit::DATA)?;
    let header = &set.header;
    let origin = header.origin().with_context(|| file.display().to_string()).or_exit(exit::DATA)?;
    let spec = set.spec().with_context(|| file.display().to_string()).or_exit(exit::DATA)?;
    if !spec.name.starts_with(data::FOLDER) && c2r_data::spec(&spec.name).is_err() {
        ui.note(format!(
            "note: c2r has no dataset {}; the network gets its input shape, classes and normalization from the set",
            spec.name
        ));
    }
    let teacher = (origin.labels == SetLabels::Teacher)
        .then(|| {
            let path = file.with_file_name(folder::TEACHER);
            let (model, _) = checkpoint::load(&path, device)
                .with_context(|| {
                    format!("{} is labelled by a teacher, whose file has to be in the same folder", file.display())
                })
                .or_exit(exit::DATA)?;
            anyhow::Ok((Frozen::new(model), origin.teacher.unwrap_or_default().temperature))
        })
        .transpose()?;
    let mut notes = Vec::new();
    if let Some(per_class) = origin.train_per_class {
        notes.push(Subject::part_note(per_class, true));
    }
    if set.formation > 1 {
        notes.push(Subject::mosaic_note(set.formation));
    }
    if let Some(Mosaics { formation, images_per_class }) = origin.decoded_from {
        notes.push(format!("decoded from {images_per_class} mosaics of {formation}x{formation} images per class"));
    }
    // `c2r inspect` shows the numbers of the set. Here they would give a row of a table one note for each seed.
    if origin.clamped.is_some_and(|cut| cut.part > NOTED_CUT) {
        notes.push(format!("imported: over {} % of its values lie outside [0, 1] and were clipped", 100.0 * NOTED_CUT));
    }
    let mut judged_on = None;
    if !args.select.is_last() {
        let dataset = data::load_of_set(&set, args.data.as_deref(), ui)?;
        let (_, held_out) = dataset.train.hold_out(held_out_part(args), Seed::new(HELD_OUT_SEED));
        let (images, note) = judges(args, &dataset.test, held_out, true);
        notes.push(note);
        judged_on = Some(images);
    }
    let subject = Subject {
        dataset: spec.name.clone(),
        method: header.method.clone(),
        profile: origin.profile,
        images_per_class: Some(header.images_per_class),
        distill_seed: Some(header.seed),
        n_images: set.labels.len(),
        extra_storage: header.extra_storage.clone(),
        data_sha256: header.data_sha256.clone(),
        notes,
        ..training(args)
    };
    let soft_labels = set.soft_labels.as_ref().map(|soft| to_tensor(soft.view()).to_device(device));
    let learned_lr = origin.learned_lr;
    if let Some(rate) = learned_lr.filter(|rate| !(rate.is_finite() && *rate > 0.0)) {
        let file = file.display();
        return exit::fail(exit::DATA, format!("{file}: its learned learning rate is {rate}, and it must be positive"));
    }
    let images = Images::Synthetic(images);
    Ok(Material { spec, images, soft_labels, teacher, learned_lr, subject, judges: judged_on })
}

/// What results say about the training, without what it was trained on.
fn training(args: &Args) -> Subject {
    Subject { train_seed: args.seed, protocol: args.protocol.to_string(), selection: args.select, ..Subject::default() }
}

fn real(name: &str, args: &Args, ui: &Ui) -> anyhow::Result<Material> {
    let Dataset { spec, train, test, notes } = data::load(name, args.data.as_deref(), ui)?;
    let mut notes = notes;
    let mut split = match args.train_per_class {
        Some(n) => {
            notes.push(Subject::part_note(n.get(), false));
            data::note_too_many(n.get(), &train, ui);
            train.subset_per_class(n.get())
        }
        None => train,
    };
    let data_sha256 = split.sha256();
    let mut judged_on = None;
    if !args.select.is_last() {
        let (rest, held_out) = split.hold_out(held_out_part(args), Seed::new(HELD_OUT_SEED));
        if args.select == Selection::HeldOut {
            split = rest;
        }
        let (images, note) = judges(args, &test, held_out, false);
        notes.push(note);
        judged_on = Some(images);
    }
    let subject = Subject {
        dataset: spec.name.clone(),
        method: "full".to_owned(),
        n_images: split.len(),
        data_sha256,
        notes,
        ..training(args)
    };
    let images = Images::Real(split);
    Ok(Material { spec, images, soft_labels: None, teacher: None, learned_lr: None, subject, judges: judged_on })
}

fn no_learned_rate(args: &Args) -> anyhow::Error {
    exit::usage(match &args.synthetic {
        Some(set) => format!(
            "--lr {LEARNED}: {} has no learned learning rate. Only MTT and MAT learn one, and sets of early versions of c2r \
             did not store it; give a number, such as --lr 0.01",
            set.display()
        ),
        None => format!("--lr {LEARNED} needs --synthetic: real images have no learned learning rate"),
    })
}

/// The protocol with everything that the command line changes, and whether its learning rate is `learned`.
fn resolve(
    args: &Args,
    epsilon: Epsilon,
    spec: &DatasetSpec,
    targets: &Targets<'_>,
    learned: &dyn Fn() -> anyhow::Result<f64>,
) -> anyhow::Result<(TrainConfig, bool)> {
    let mut preset = if args.dataset.is_some() { args.protocol.full_data() } else { args.protocol.config() };
    preset.labels = targets.label_source();
    preset.dsa = spec.dsa.clone();
    if let Some(adversarial) = &mut preset.adversarial {
        adversarial.epsilon = epsilon;
    }
    if args.eps.is_some() {
        config::not_both(&args.set, "adversarial.epsilon", "--eps")?;
    }
    if args.lr.is_some() {
        config::not_both(&args.set, "lr", "--lr")?;
    }
    let mut changes = config::assignments(&args.set)?;
    match args.lr {
        Some(Rate::Of(rate)) => changes.push(("lr".to_owned(), Value::Float(rate))),
        Some(Rate::Learned) => changes.push(("lr".to_owned(), Value::String(LEARNED.to_owned()))),
        None => {}
    }
    let in_adversarial = |(key, _): &&layers::Assignment| key.starts_with("adversarial.");
    if preset.adversarial.is_none()
        && let Some((key, _)) = changes.iter().find(in_adversarial)
        && !changes.iter().any(|(key, _)| key == "adversarial")
    {
        let protocol = args.protocol;
        return Err(exit::usage(format!(
            "--set {key}: the protocol {protocol} does not train on attacked images; name another --protocol, such as pgd-at"
        )));
    }
    let mut is_learned = false;
    for (_, value) in changes.iter_mut().filter(|(key, value)| key == "lr" && value.as_str() == Some(LEARNED)) {
        *value = Value::Float(learned()?);
        is_learned = true;
    }
    let mut table = toml::Table::try_from(&preset)?;
    let read = layers::assign(&mut table, &changes).and_then(|()| layers::read(table));
    let origin = format!("protocol {}", args.protocol);
    let config: TrainConfig = read.map_err(|error| config::wrong(&error, &args.set, &origin))?;
    config.check().or_exit(exit::USAGE)?;
    Ok((config, is_learned))
}

/// What the command will send through its network. Labels of a teacher, which cost a forward pass each, are not foreseen.
pub(crate) fn planned(args: &Args, written: &mut Written) -> anyhow::Result<Planned> {
    let (dataset, n) = match (&args.synthetic, &args.dataset) {
        (Some(named), _) => match written.sets.get(named).or_else(|| written.sets.get(&named.join(data::SET_FILE))) {
            Some((dataset, per_class)) => (dataset.clone(), per_class * dataset.classes.len()),
            None => {
                let set = SyntheticSet::load(&data::set_file(named)?).or_exit(exit::DATA)?;
                let dataset = set.spec().or_exit(exit::DATA)?;
                (dataset, set.decode(Device::Cpu).1.numel())
            }
        },
        (None, Some(name)) => {
            let dataset = data::spec(name)?;
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
    // A set that is not there yet has no learned rate yet; any will do, since it costs nothing.
    let any_rate = || Ok(args.protocol.config().lr);
    let epsilon = args.eps.unwrap_or(dataset.epsilon);
    let (config, _) = resolve(args, epsilon, &dataset, &Targets::Hard, &any_rate)?;
    written.network(args.run_dir.as_deref(), model);
    Ok(Planned { dataset, model, work: work(&config, n), note: None })
}

fn estimate(
    config: &TrainConfig,
    spec: &ModelSpec,
    material: &Material,
    device: Device,
    json: bool,
    ui: &Ui,
) -> anyhow::Result<()> {
    let n = material.source().len();
    let batch = config.batch_size.min(n);
    let speed = throughput::measure(spec, &material.spec, batch, device)?;
    let mut work = work(config, n);
    if material.teacher.is_some() {
        work.forward += work.training;
    }
    estimate::answer(&work, &speed, device, json, ui);
    Ok(())
}
