//! The outer loop, shared by all methods: one call is one unit of work, and between calls everything can be
//! saved.

use std::collections::BTreeMap;

use c2r_base::{
    Seed,
    artifact::{self, TensorFile},
};
use c2r_core::curriculum::Curriculum;
use c2r_data::{Dataset, SyntheticHeader, SyntheticSet, decode_formation};
use c2r_models::{Model, ModelError, ModelInput};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::{
    canvas::Canvas,
    companions::Companion,
    config::{ConfigError, DistillConfig, Init, LabelKind, MethodName, RobustTerm, TeacherConfig},
    method::{self, Claims, Method, StepReport, Turn},
    passes::RunPasses,
    pool::{Learner, TEACHER, Training},
    setting::Setting,
    state::{check_finite, integers, wrong},
};

const STATE_FORMAT: &str = "c2r distillation state";
/// Header of shared networks: [`Distillation::networks_id`].
const NETWORKS_ID: &str = "networks";
const STATE_SCHEMA: &str = "2";
/// More passes than any run makes.
const MOST_PASSES: i64 = 1 << 53;
/// What the paper compares LS-PGD with.
const PGD_STEPS: u32 = 10;

/// Why a distillation cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DistillError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The network cannot be built or restored.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The optimizer cannot be restored.
    #[error(transparent)]
    Train(#[from] c2r_train::TrainError),
    /// An attack on a network failed.
    #[error(transparent)]
    Attack(#[from] c2r_attacks::AttackError),
    /// A network gave no logits.
    #[error(transparent)]
    Classifier(#[from] c2r_base::ClassifierError),
    /// The synthetic set cannot be made.
    #[error(transparent)]
    Data(#[from] c2r_data::DataError),
    /// Fewer real images than the run needs.
    #[error("class {class} has {got} training images, but {needed} are needed ({why})")]
    TooFewImages {
        /// Class index.
        class: usize,
        /// Images there.
        got: usize,
        /// Images needed.
        needed: usize,
        /// What needs them.
        why: &'static str,
    },
    /// A loss exploded.
    #[error("{what} is {value} at step {at}: lower the learning rates; the state of the last checkpoint is unharmed")]
    NotFinite {
        /// Which number.
        what: &'static str,
        /// At which step of its loop.
        at: u64,
        /// NaN or infinite.
        value: f64,
    },
    /// A saved state that does not belong to this configuration, or is damaged.
    #[error("the saved state cannot be continued: {0}")]
    State(String),
}

/// What one [`Distillation::step`] did.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum DistillEvent {
    /// A unit of preparation, e.g. a training step of the pool or of an expert.
    Preparation {
        /// Units done.
        done: u64,
        /// All of them.
        total: u64,
        /// Training loss (cross-entropy in nats).
        loss: f64,
    },
    /// A training step of a teacher.
    Teacher {
        /// Steps of all teachers that are done.
        done: u64,
        /// All of them.
        total: u64,
        /// Training loss (cross-entropy in nats).
        loss: f64,
    },
    /// An update of the synthetic images.
    Images(Box<StepReport>),
}

/// A distillation in progress.
#[derive(Debug)]
pub struct Distillation {
    setting: Setting,
    canvas: Canvas,
    method: Box<dyn Method>,
    /// In the order of their training.
    teachers: Vec<Learner>,
    passes: RunPasses,
    data_sha256: String,
}

impl Distillation {
    /// Checks the configuration against the data and lays out the first images.
    ///
    /// # Errors
    /// [`DistillError`].
    pub fn new(mut config: DistillConfig, dataset: &Dataset, device: Device) -> Result<Self, DistillError> {
        config.fill_in();
        config.validate()?;
        let spec = dataset.spec.clone();
        let data = config.train_per_class.map_or_else(|| dataset.train.clone(), |n| dataset.train.subset_per_class(n));
        let per_image = (config.images.formation * config.images.formation) as usize;
        for class in 0..data.n_classes() {
            let got = data.class_positions(class).len();
            let enough = |needed, why| {
                if got < needed { Err(DistillError::TooFewImages { class, got, needed, why }) } else { Ok(()) }
            };
            if config.images.init != Init::Noise || config.method.selects() {
                enough(config.ipc * per_image, "ipc times formation squared, to start from real images")?;
            }
            if let Some(matching) = &config.matching {
                enough(matching.real_per_class, "matching.real-per-class")?;
            }
        }
        let seed = Seed::new(config.seed);
        let companion = match &config.companions {
            Some(companions) => Some(Companion::new(companions, config.threat())?),
            None => None,
        };
        let setting = Setting {
            input: ModelInput {
                channels: spec.channels,
                height: spec.height,
                width: spec.width,
                n_classes: spec.classes.len() as i64,
                mean: spec.mean.clone(),
                std: spec.std.clone(),
            },
            device,
            seed,
            companion,
            config,
            spec,
            data,
        };
        let teachers = match (&setting.config.teacher, &setting.config.pool) {
            (Some(TeacherConfig { count, steps, lr_schedule, .. }), Some(pool)) => (0..*count)
                .map(|k| {
                    let seed = seed.child("teacher", u64::from(k));
                    Learner::new(pool, *steps, lr_schedule.clone(), seed, TEACHER, &setting)
                })
                .collect::<Result<_, _>>()?,
            _ => Vec::new(),
        };
        Ok(Self {
            canvas: Canvas::new(&setting.config, &setting.spec, &setting.data, seed, device)?,
            method: method::build(&setting.config, &setting)?,
            teachers,
            passes: RunPasses::default(),
            data_sha256: setting.data.sha256(),
            setting,
        })
    }

    /// The resolved configuration.
    pub const fn config(&self) -> &DistillConfig {
        &self.setting.config
    }

    /// Updates of the images so far.
    pub const fn iteration(&self) -> u64 {
        self.canvas.iteration()
    }

    /// Updates of the images in all.
    pub const fn iterations(&self) -> u64 {
        if self.config().method.selects() { 0 } else { self.config().iterations }
    }

    /// Passes through networks so far, training included.
    pub const fn passes(&self) -> RunPasses {
        self.passes
    }

    /// Units of work done and in all: preparation, teacher training and image updates.
    pub fn progress(&self) -> (u64, u64) {
        let (prepared, preparation) = self.method.preparation(&self.setting);
        let preparation = if self.wants_preparation() { preparation } else { prepared };
        let (taught, teaching) = teaching(&self.teachers);
        (prepared + taught + self.iteration(), preparation + teaching + self.iterations())
    }

    /// Whether there is anything to prepare for: a choice of images, or an update.
    fn wants_preparation(&self) -> bool {
        self.config().method.selects() || self.iterations() > 0
    }

    fn preparation_is_due(&self) -> bool {
        self.wants_preparation() && self.iteration() == 0 && !self.method.is_prepared(&self.setting)
    }

    fn teacher_is_due(&self) -> bool {
        self.teachers.iter().any(|teacher| !teacher.is_trained())
    }

    /// Whether every unit of work is done.
    pub fn is_finished(&self) -> bool {
        !self.preparation_is_due() && !self.teacher_is_due() && self.iteration() >= self.iterations()
    }

    /// Does one unit of work: preparation until it is done, then a training step of a teacher until all are trained, then
    /// an update of the images.
    ///
    /// # Errors
    /// [`DistillError::NotFinite`]; the distillation must then be dropped and taken up from its last
    /// saved state.
    ///
    /// # Panics
    /// If it is finished.
    pub fn step(&mut self) -> Result<DistillEvent, DistillError> {
        assert!(!self.is_finished(), "a finished distillation has no next step");
        let prepares = self.preparation_is_due();
        let Self { setting, canvas, method, teachers, passes, .. } = self;
        if let (false, Some(learner)) = (prepares, teachers.iter_mut().find(|teacher| !teacher.is_trained())) {
            let curriculum = setting.config.aac.as_ref().map_or_else(Curriculum::default, |aac| aac.pool.clone());
            let loss = learner.train_step(Training { setting, curriculum: &curriculum }, passes)?;
            let (done, total) = teaching(teachers);
            return Ok(DistillEvent::Teacher { done, total, loss });
        }
        let taught = teachers.first().filter(|teacher| teacher.is_trained()).map(Learner::model);
        let mut turn = Turn { setting, canvas, teacher: taught, passes };
        if prepares {
            let loss = method.prepare(&mut turn)?;
            let (done, total) = method.preparation(setting);
            return Ok(DistillEvent::Preparation { done, total, loss });
        }
        let report = method.update(&mut turn)?;
        let attacked = passes.attacked > 0;
        Ok(DistillEvent::Images(Box::new(StepReport {
            iteration: canvas.iteration(),
            reused_share: attacked.then(|| passes.reused as f64 / passes.attacked as f64),
            backward_saved: attacked.then(|| passes.backward_saved(PGD_STEPS)),
            passes: *passes,
            ..report
        })))
    }

    /// What C²R claims to change about the images, from the first to the present ones; `None` for methods that
    /// claim nothing of the kind. Costs a few passes of the set through every network of the pool.
    ///
    /// # Errors
    /// [`DistillError::Data`] if the images cannot be decoded.
    pub fn claims(&self) -> Result<Option<Claims>, DistillError> {
        self.method.claims(&self.setting, &self.canvas)
    }

    /// Everything that the run continues from, and nothing else.
    pub fn state(&self) -> TensorFile {
        let mut file = TensorFile::default();
        file.header.insert("format".to_owned(), STATE_FORMAT.to_owned());
        file.header.insert("schema_version".to_owned(), STATE_SCHEMA.to_owned());
        let tensors = &mut file.tensors;
        let RunPasses { forward, backward, attacked, attack_backward, reused } = self.passes;
        let passes = [forward, backward, attacked, attack_backward, reused].map(|count| count as i64);
        tensors.insert("passes".to_owned(), Tensor::from_slice(&passes));
        self.canvas.state(tensors);
        self.method.state(tensors);
        for (k, teacher) in self.teachers.iter().enumerate() {
            teacher.state(&teacher_section(k), tensors);
        }
        file
    }

    /// Continues from [`Distillation::state`] of a run with the same configuration and data.
    ///
    /// # Errors
    /// [`DistillError::State`], naming what does not fit; the distillation must then be dropped.
    pub fn restore(&mut self, file: &TensorFile) -> Result<(), DistillError> {
        for (name, expected) in [("format", STATE_FORMAT), ("schema_version", STATE_SCHEMA)] {
            let found = file.header.get(name).map_or("nothing", String::as_str);
            if found != expected {
                let reason = format!("its {name} is `{found}`, this version reads `{expected}`");
                return Err(DistillError::State(reason));
            }
        }
        let state = &file.tensors;
        check_finite(state)?;
        self.canvas.load_state(state)?;
        let passes = integers(state, "passes", Some(5), 0..=MOST_PASSES)?;
        let passes = |at: usize| passes[at] as u64;
        let (forward, backward, attacked) = (passes(0), passes(1), passes(2));
        self.passes = RunPasses { forward, backward, attacked, attack_backward: passes(3), reused: passes(4) };
        self.method.load_state(&self.setting, state)?;
        for (k, teacher) in self.teachers.iter_mut().enumerate() {
            teacher.load_state(state, &teacher_section(k), &self.setting)?;
        }
        let ready = self.method.is_prepared(&self.setting) && !self.teacher_is_due();
        if self.iteration() > 0 && !ready {
            return Err(wrong("iteration", "0 while networks are still to be trained", self.iteration()));
        }
        let own = self.state().tensors;
        match state.keys().find(|name| !own.contains_key(*name)) {
            Some(stray) => Err(DistillError::State(format!("`{stray}` belongs to no part of this run"))),
            None => Ok(()),
        }
    }

    /// What the preparation and the teacher depend on (settings, seed, data), as a SHA-256 (hexadecimal): two runs of one
    /// value can share them by [`Distillation::networks`]. `None` where the method cannot share.
    pub fn networks_id(&self) -> Option<String> {
        let Setting { config, spec, .. } = &self.setting;
        let method = self.method.prepared_from(&self.setting)?;
        let all = json!({
            "schema": STATE_SCHEMA,
            "method": method,
            "model": config.model,
            "seed": config.seed,
            "teacher": config.teacher,
            "data": self.data_sha256,
            "mean": spec.mean,
            "std": spec.std,
        });
        Some(artifact::sha256_hex(all.to_string().as_bytes()))
    }

    /// The networks that preparation and teacher training have made, for [`Distillation::take_networks`] of another run;
    /// `None` before they are ready, after the first update, and where nothing can be shared.
    pub fn networks(&self) -> Option<TensorFile> {
        let ready = self.iteration() == 0 && !self.preparation_is_due() && !self.teacher_is_due();
        let id = self.networks_id().filter(|_| ready)?;
        let mut file = self.state();
        let mut images = BTreeMap::new();
        self.canvas.state(&mut images);
        file.tensors.retain(|name, _| !images.contains_key(name));
        file.header.insert(NETWORKS_ID.to_owned(), id);
        Some(file)
    }

    /// Begins with the [`Distillation::networks`] of another run. What follows is what it would be without, byte for byte.
    ///
    /// # Errors
    /// [`DistillError::State`], naming what does not fit; the distillation must then be dropped.
    ///
    /// # Panics
    /// If it has begun.
    pub fn take_networks(&mut self, networks: &TensorFile) -> Result<(), DistillError> {
        assert_eq!(self.progress().0, 0, "networks are taken before the first step");
        if networks.header.get(NETWORKS_ID) != self.networks_id().as_ref() {
            return Err(DistillError::State(
                "its networks are those of other settings, another seed or other data".into(),
            ));
        }
        let mut file = self.state();
        file.header.extend(networks.header.clone());
        file.tensors.extend(networks.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())));
        self.restore(&file)?;
        if self.preparation_is_due() || self.teacher_is_due() {
            return Err(DistillError::State("its networks are not trained to the end".into()));
        }
        Ok(())
    }

    /// The networks that labels come from, as far as they are trained; none where labels are hard and nothing is recovered
    /// from one. Where labels are [`LabelKind::Teacher`] there is one, and its checkpoint belongs beside the set.
    pub fn teachers(&self) -> impl Iterator<Item = &Model> {
        self.teachers.iter().map(Learner::model)
    }

    /// The images as they are stored, f32 `[M, C, H, W]` in `[0, 1]`, class by class.
    pub const fn images(&self) -> &Tensor {
        self.canvas.images()
    }

    /// The synthetic set as it stands.
    ///
    /// * `versions`: of the software, for the header.
    ///
    /// # Errors
    /// [`DistillError::Data`] if the set cannot be made.
    pub fn synthetic_set(&self, versions: BTreeMap<String, String>) -> Result<SyntheticSet, DistillError> {
        let Setting { config, spec, .. } = &self.setting;
        let formation = config.images.formation;
        let per_image = formation * formation;
        let labels: Vec<i64> = self.canvas.labels().iter().step_by(per_image as usize).copied().collect();
        let soft_labels = match (config.labels, &config.teacher) {
            (LabelKind::Soft, Some(TeacherConfig { temperature, .. })) => {
                let _no_grad = tch::no_grad_guard();
                let decoded = decode_formation(self.images(), formation)?;
                let of = |teacher: &Model| {
                    let logits = teacher.classify(&self.setting.embed(teacher, &decoded, None)) / *temperature;
                    logits.softmax(1, Kind::Float).to_device(Device::Cpu)
                };
                let all: Vec<Tensor> = self.teachers().map(of).collect();
                Some(Tensor::stack(&all, 0).mean_dim([0i64].as_slice(), false, Kind::Float))
            }
            _ => None,
        };
        let extra_storage = match (config.labels, self.teachers().next()) {
            (LabelKind::Soft, _) => {
                let floats = self.canvas.labels().len() * spec.classes.len();
                format!("soft labels, {floats} floats")
            }
            (LabelKind::Teacher, Some(teacher)) => {
                format!("teacher network, {} floats", teacher.n_parameters())
            }
            _ => String::new(),
        };
        let mut tensors = BTreeMap::from([
            ("images".to_owned(), self.images().detach().to_device(Device::Cpu)),
            ("labels".to_owned(), Tensor::from_slice(&labels)),
        ]);
        tensors.extend(soft_labels.map(|soft| ("soft_labels".to_owned(), soft)));
        let header = SyntheticHeader {
            schema_version: c2r_data::SCHEMA_VERSION,
            dataset: spec.name.clone(),
            classes: spec.classes.len(),
            images_per_class: config.ipc,
            method: self.method_name().to_owned(),
            seed: config.seed,
            iterations: self.iteration(),
            config: serde_json::to_value(config).expect("the configuration serializes to JSON"),
            versions,
            data_sha256: self.data_sha256.clone(),
            mean: spec.mean.clone(),
            std: spec.std.clone(),
            extra_storage,
        };
        Ok(SyntheticSet::from_tensors(tensors, formation, header)?)
    }

    /// The name that tables use.
    fn method_name(&self) -> &str {
        let config = self.config();
        match (&config.name, config.method, config.objective.as_ref().map(|objective| objective.robust)) {
            (Some(name), ..) => name,
            (None, MethodName::C2r, Some(RobustTerm::ClassMean)) => "class-mean",
            (None, MethodName::C2r, Some(RobustTerm::None)) => "backbone",
            (None, method, _) => method.as_str(),
        }
    }
}

/// Training steps of all teachers, done and in all.
fn teaching(teachers: &[Learner]) -> (u64, u64) {
    (teachers.iter().map(Learner::steps_done).sum(), teachers.iter().map(Learner::steps).sum())
}

/// Where the state of a teacher lies.
fn teacher_section(k: usize) -> String {
    if k == 0 { "teacher".to_owned() } else { format!("teacher-{k}") }
}
