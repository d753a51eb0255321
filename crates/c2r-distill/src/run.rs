//! A run: one call is one unit of work of a method, and between calls everything can be saved.

use std::collections::BTreeMap;

use c2r_base::{
    Seed,
    artifact::{self, TensorFile},
};
use c2r_data::{Batches, Dataset, SetOrigin, SyntheticHeader, SyntheticSet, decode_formation};
use c2r_kernels::FloatFormat;
use c2r_models::Model;
use c2r_train::{
    model_input,
    state::{Entries, State, StateError},
};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::{
    config::{Init, LabelKind, PoolConfig, TeacherConfig},
    context::{Context, per_channel},
    error::DistillError,
    method::{Effect, Measured, Method, Step, StepReport, TRAINING_LOSS, Watch},
    parts::{companions::Attacks, images::SyntheticImages, pool::NetworkTraining},
    passes::RunPasses,
    resolve::DistillConfig,
};

const STATE_FORMAT: &str = "c2r distillation state";
/// Header of shared networks: [`Distillation::networks_id`].
const NETWORKS_ID: &str = "networks";
const STATE_SCHEMA: &str = "2";
/// More passes than any run makes.
const MOST_PASSES: i64 = 1 << 53;
/// Numbers that are read at the latest when there are as many.
const MOST_UNREAD: usize = 200;
/// What the paper compares LS-PGD with.
const PGD_STEPS: u32 = 10;
/// A teacher is a trajectory of its own, outside the numbering of the pool.
const TEACHER: u64 = u64::MAX;

/// What one [`Distillation::step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DistillEvent {
    /// A unit of preparation, e.g. a training step of the pool or of an expert.
    Preparation {
        /// Units done.
        done: u64,
        /// All of them.
        total: u64,
    },
    /// A training step of a teacher.
    Teacher {
        /// Steps of all teachers that are done.
        done: u64,
        /// All of them.
        total: u64,
    },
    /// An update of the synthetic images; [`Distillation::report`] has its numbers.
    Images {
        /// Updates done, this one included.
        iteration: u64,
    },
}

/// A distillation in progress.
#[derive(Debug)]
pub struct Distillation {
    config: DistillConfig,
    context: Context,
    images: SyntheticImages,
    method: Box<dyn Method>,
    /// In the order of their training.
    teachers: Vec<NetworkTraining>,
    passes: RunPasses,
    watch: Watch,
    /// Of the last update.
    measured: Option<Measured>,
    /// Training loss that was read last.
    training_loss: Option<f64>,
    data_sha256: String,
    /// Whether real images are chosen, and never updated.
    selects: bool,
}

impl Distillation {
    /// Checks the configuration against the data and makes the first images.
    ///
    /// # Errors
    /// [`DistillError`].
    pub fn new(config: DistillConfig, dataset: &Dataset, device: Device) -> Result<Self, DistillError> {
        config.validate()?;
        let needs = config.method.needs();
        let spec = dataset.spec.clone();
        let mut common = config.common.clone();
        if needs.selects {
            // Whatever is to be chosen, the images begin as real ones.
            common.images.init = Init::Real;
        }
        let data = common.train_per_class.map_or_else(|| dataset.train.clone(), |n| dataset.train.subset_per_class(n));
        for class in 0..data.n_classes() {
            let got = data.class_positions(class).len();
            let enough = |needed, why| {
                if got < needed { Err(DistillError::TooFewImages { class, got, needed, why }) } else { Ok(()) }
            };
            if common.images.init != Init::Noise {
                let why = "ipc times formation squared, to start from real images";
                enough(common.decoded_per_class(), why)?;
            }
            enough(needs.real_per_class, "matching.real-per-class")?;
        }
        let seed = Seed::new(common.seed);
        let [mean, std] = [&spec.mean, &spec.std].map(|values| per_channel(values, device));
        let attacks = Attacks::new(&common, &mean, &std)?;
        let context = Context {
            input: model_input(&spec),
            device,
            seed,
            attacks,
            batches: Batches::new(&data, device, None),
            mean,
            std,
            method: config.method.entry().name,
            common,
            spec,
            data,
        };
        let mut teachers = Vec::new();
        if let (Some(teacher), Some(pool)) = (&context.common.teacher, &context.common.pool) {
            for k in 0..teacher.count {
                let recipe = PoolConfig { max_steps: teacher.steps, ..pool.clone() };
                let (order, seed) = (needs.curriculum.clone(), seed.child("teacher", u64::from(k)));
                let schedule = teacher.lr_schedule.clone();
                teachers.push(NetworkTraining::new(recipe, order, schedule, seed, TEACHER, &context)?);
            }
        }
        Ok(Self {
            images: SyntheticImages::new(&context.common, &context.spec, &context.data, seed, device)?,
            method: config.method.build(&context)?,
            teachers,
            passes: RunPasses::default(),
            watch: Watch::default(),
            measured: None,
            training_loss: None,
            data_sha256: context.data.sha256(),
            context,
            config,
            selects: needs.selects,
        })
    }

    /// Changes how many bytes of real images the device keeps at most ([`Batches::new`]).
    pub fn keep(&mut self, most_bytes: usize) {
        self.context.batches = Batches::new(&self.context.data, self.context.device, Some(most_bytes));
    }

    /// The resolved configuration.
    pub const fn config(&self) -> &DistillConfig {
        &self.config
    }

    /// Updates of the images so far.
    pub const fn iteration(&self) -> u64 {
        self.images.iteration()
    }

    /// Updates of the images in all.
    pub fn iterations(&self) -> u64 {
        if self.selects { 0 } else { self.config.common.iterations }
    }

    /// Passes through networks so far, training included.
    pub const fn passes(&self) -> RunPasses {
        self.passes
    }

    /// Units of work done and in all: preparation, teacher training and image updates.
    pub fn progress(&self) -> (u64, u64) {
        let (prepared, preparation) = self.method.preparation();
        let preparation = if self.wants_preparation() { preparation } else { prepared };
        let (taught, teaching) = self.teaching();
        (prepared + taught + self.iteration(), preparation + teaching + self.iterations())
    }

    /// What [`Distillation::progress`] says in forward passes of an image, as the configuration foretells them: an update
    /// takes longer than a training step.
    pub fn work_progress(&self) -> (f64, f64) {
        let (n_classes, n_train) = (self.context.n_classes(), self.context.data.len());
        let cost = |iterations| {
            let mut config = self.config.clone();
            config.common.iterations = iterations;
            config.work(n_classes, n_train).in_forward_passes()
        };
        let (done, total) = self.progress();
        let (updated, updates) = (self.iteration(), self.iterations());
        let before = cost(0);
        let share = |done: u64, total: u64| if total == 0 { 0.0 } else { done as f64 / total as f64 };
        let updating = cost(updates) - before;
        let trained = before * share(done - updated, total - updates);
        (trained + updating * share(updated, updates), before + updating)
    }

    /// Training steps of all teachers, done and in all.
    fn teaching(&self) -> (u64, u64) {
        let sum = |of: fn(&NetworkTraining) -> u64| self.teachers.iter().map(of).sum();
        (sum(NetworkTraining::steps_done), sum(NetworkTraining::steps))
    }

    /// Whether there is anything to prepare for: a choice of images, or an update.
    fn wants_preparation(&self) -> bool {
        self.selects || self.iterations() > 0
    }

    fn preparation_is_due(&self) -> bool {
        self.wants_preparation() && self.iteration() == 0 && !self.method.is_prepared()
    }

    fn teacher_is_due(&self) -> bool {
        self.teachers.iter().any(|teacher| !teacher.is_trained())
    }

    /// Whether every unit of work is done.
    pub fn is_finished(&self) -> bool {
        !self.preparation_is_due() && !self.teacher_is_due() && self.iteration() >= self.iterations()
    }

    /// Does one unit of work: preparation until it is done, then a training step of a teacher until all are trained, then
    /// an update of the images. `None` if it is finished.
    ///
    /// Losses stay on the device. They are read now and then, by [`Distillation::report`] and
    /// [`Distillation::training_loss`], before a state is saved and at the end.
    ///
    /// # Errors
    /// [`DistillError::NotFinite`] for a number of this step or of one since losses were last read; the distillation must
    /// then be dropped and resumed from its last saved state. [`DistillError::Broken`] for a method of another crate that
    /// does not move the images once in an update, or by a gradient of another shape, or that measures no loss.
    pub fn step(&mut self) -> Result<Option<DistillEvent>, DistillError> {
        if self.is_finished() {
            return Ok(None);
        }
        let event = self.work()?;
        if self.watch.len() >= MOST_UNREAD || self.is_finished() {
            self.check()?;
        }
        Ok(Some(event))
    }

    fn work(&mut self) -> Result<DistillEvent, DistillError> {
        let prepares = self.preparation_is_due();
        let Self { context, images, method, teachers, passes, watch, .. } = self;
        if let (false, Some(teacher)) = (prepares, teachers.iter_mut().find(|teacher| !teacher.is_trained())) {
            teacher.train_step(&mut Step { context, images, teacher: None, passes, watch, refused: None })?;
            let (done, total) = self.teaching();
            return Ok(DistillEvent::Teacher { done, total });
        }
        let teacher = teachers.first().filter(|teacher| teacher.is_trained()).map(NetworkTraining::model);
        let before = images.iteration();
        let mut step = Step { context, images, teacher, passes, watch, refused: None };
        if prepares {
            method.prepare(&mut step)?;
            let (done, total) = method.preparation();
            return Ok(DistillEvent::Preparation { done, total });
        }
        let updated = method.update(&mut step);
        let refused = step.refused.take();
        let broken = |reason| DistillError::Broken { method: context.method, reason };
        if let Some(reason) = refused {
            return Err(broken(reason));
        }
        let measured = updated?;
        let iteration = images.iteration();
        if iteration != before + 1 {
            let n = iteration - before;
            return Err(broken(format!("`update` must call `Step::descend` once; it did so {n} times")));
        }
        measured.check().map_err(|reason| broken(format!("`update` returned {reason}")))?;
        self.measured = Some(measured);
        Ok(DistillEvent::Images { iteration })
    }

    /// Reads every number that must be finite.
    fn check(&mut self) -> Result<(), DistillError> {
        for ((what, at), value) in self.watch.read() {
            if !value.is_finite() {
                // Found again whenever someone asks.
                self.watch.push((what, at), &Tensor::from(value).to_device(self.context.device));
                return Err(DistillError::NotFinite { what, at, value });
            }
            if what == TRAINING_LOSS {
                self.training_loss = Some(value);
            }
        }
        Ok(())
    }

    /// Loss (cross-entropy in nats) of the last training step of the preparation or of a teacher; `None` if there was none.
    ///
    /// # Errors
    /// [`DistillError::NotFinite`], as for [`Distillation::step`].
    pub fn training_loss(&mut self) -> Result<Option<f64>, DistillError> {
        self.check()?;
        Ok(self.training_loss)
    }

    /// Numbers of the last update of the images; `None` before the first.
    ///
    /// # Errors
    /// [`DistillError::NotFinite`], as for [`Distillation::step`].
    pub fn report(&mut self) -> Result<Option<StepReport>, DistillError> {
        self.check()?;
        let passes = self.passes;
        let attacked = passes.attacked > 0;
        Ok(self.measured.as_ref().map(|measured| StepReport {
            iteration: self.images.iteration(),
            reused_share: attacked.then(|| passes.reused as f64 / passes.attacked as f64),
            backward_saved: attacked.then(|| passes.backward_saved(PGD_STEPS)),
            passes,
            ..measured.report()
        }))
    }

    /// What the updates did to the images; `None` for methods that do not measure it. Costs a few passes of the set
    /// through every network of the pool.
    ///
    /// # Errors
    /// [`DistillError::Data`] if the images cannot be decoded.
    pub fn effect(&self) -> Result<Option<Effect>, DistillError> {
        self.method.effect(&self.context, &self.images)
    }

    /// Visits everything that the run continues from, and nothing else.
    fn visit(&mut self, state: &mut State<'_>) -> Result<(), DistillError> {
        let RunPasses { forward, backward, attacked, attack_backward, reused } = self.passes;
        let mut passes = [forward, backward, attacked, attack_backward, reused];
        state.integers("passes", &mut passes, 0..=MOST_PASSES)?;
        let [forward, backward, attacked, attack_backward, reused] = passes;
        self.passes = RunPasses { forward, backward, attacked, attack_backward, reused };
        self.images.state(state)?;
        self.method.state(&self.context, state)?;
        for (k, teacher) in self.teachers.iter_mut().enumerate() {
            let prefix = if k == 0 { "teacher.".to_owned() } else { format!("teacher-{k}.") };
            state.section(&prefix, |state| teacher.state(&self.context, state))?;
        }
        Ok(())
    }

    /// Everything that the run continues from, and nothing else.
    ///
    /// # Errors
    /// [`DistillError::NotFinite`] for a number of a step so far; [`DistillError`] if the method cannot tell.
    pub fn state(&mut self) -> Result<TensorFile, DistillError> {
        self.check()?;
        let mut file = TensorFile::default();
        file.header.insert("format".to_owned(), STATE_FORMAT.to_owned());
        file.header.insert("schema_version".to_owned(), STATE_SCHEMA.to_owned());
        self.visit(&mut State::writing(&mut file.tensors))?;
        Ok(file)
    }

    /// Continues from [`Distillation::state`] of a run with the same configuration and data.
    ///
    /// # Errors
    /// [`DistillError::State`], naming what does not fit; the distillation must then be dropped.
    pub fn restore(&mut self, file: &TensorFile) -> Result<(), DistillError> {
        for (name, expected) in [("format", STATE_FORMAT), ("schema_version", STATE_SCHEMA)] {
            let found = file.header.get(name).map_or("nothing", String::as_str);
            if found != expected {
                return Err(unfit(format!("its {name} is `{found}`, this version reads `{expected}`")));
            }
        }
        check_finite(&file.tensors)?;
        self.visit(&mut State::reading(&file.tensors))?;
        let ready = self.method.is_prepared() && !self.teacher_is_due();
        if self.iteration() > 0 && !ready {
            let expected = "0 while networks are still to be trained";
            return Err(StateError::wrong("iteration", expected, self.iteration()).into());
        }
        let own = self.state()?.tensors;
        match file.tensors.keys().find(|name| !own.contains_key(*name)) {
            Some(stray) => Err(unfit(format!("`{stray}` belongs to no part of this run"))),
            None => Ok(()),
        }
    }

    /// What the preparation and the teacher depend on (settings, seed, data), as a SHA-256 (hexadecimal): two runs of one
    /// value can share them by [`Distillation::networks`]. `None` where the method cannot share.
    pub fn networks_id(&self) -> Option<String> {
        let Context { common, spec, .. } = &self.context;
        let method = self.method.prepared_from(&self.context)?;
        let mut all = json!({
            "schema": STATE_SCHEMA,
            "method": method,
            "model": common.model,
            "seed": common.seed,
            "teacher": common.teacher,
            "data": self.data_sha256,
            "mean": spec.mean,
            "std": spec.std,
        });
        // Another device rounds differently, and after hundreds of steps its networks differ.
        if self.context.device.is_cuda() {
            all["device"] = json!("cuda");
            if c2r_kernels::precision(self.context.device)[0] == FloatFormat::Fp32 {
                all["precision"] = json!("fp32");
            }
        }
        Some(artifact::sha256_hex(all.to_string().as_bytes()))
    }

    /// The networks that preparation and teacher training have made, for [`Distillation::take_networks`] of another run;
    /// `None` before they are ready, after the first update, and where nothing can be shared.
    ///
    /// # Errors
    /// As [`Distillation::state`].
    pub fn networks(&mut self) -> Result<Option<TensorFile>, DistillError> {
        let ready = self.iteration() == 0 && !self.preparation_is_due() && !self.teacher_is_due();
        let Some(id) = self.networks_id().filter(|_| ready) else { return Ok(None) };
        let mut file = self.state()?;
        let mut images = Entries::new();
        self.images.state(&mut State::writing(&mut images))?;
        file.tensors.retain(|name, _| !images.contains_key(name));
        file.header.insert(NETWORKS_ID.to_owned(), id);
        Ok(Some(file))
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
            return Err(unfit("its networks are those of other settings, another seed or other data".to_owned()));
        }
        let mut file = self.state()?;
        file.header.extend(networks.header.clone());
        file.tensors.extend(networks.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())));
        self.restore(&file)?;
        if self.preparation_is_due() || self.teacher_is_due() {
            return Err(unfit("its networks are not trained to the end".to_owned()));
        }
        Ok(())
    }

    /// The networks that labels come from, as far as they are trained; none where labels are hard and nothing is recovered
    /// from one. Where labels are [`LabelKind::Teacher`] there is one, and its checkpoint belongs beside the set.
    pub fn teachers(&self) -> impl Iterator<Item = &Model> {
        self.teachers.iter().map(NetworkTraining::model)
    }

    /// The images as they are stored, f32 `[M, C, H, W]` in `[0, 1]`, class by class.
    pub fn images(&self) -> Tensor {
        self.images.stored()
    }

    /// The synthetic set at this point of the run.
    ///
    /// * `versions`: of the software, for the header.
    ///
    /// # Errors
    /// [`DistillError::NotFinite`] if an update has left pixels that are NaN; [`DistillError::Data`] if the set cannot be made.
    pub fn synthetic_set(&self, versions: BTreeMap<String, String>) -> Result<SyntheticSet, DistillError> {
        let Context { common, spec, .. } = &self.context;
        let formation = common.images.formation;
        let per_image = formation * formation;
        let labels: Vec<i64> = self.images.labels().iter().step_by(per_image as usize).copied().collect();
        let soft_labels = match (common.labels, &common.teacher) {
            (LabelKind::Soft, Some(TeacherConfig { temperature, .. })) => {
                let _no_grad = tch::no_grad_guard();
                let decoded = decode_formation(&self.images(), formation)?;
                let of = |teacher: &Model| {
                    let logits = teacher.classify(&self.context.embed(teacher, &decoded, None)) / *temperature;
                    logits.softmax(1, Kind::Float).to_device(Device::Cpu)
                };
                let all: Vec<Tensor> = self.teachers().map(of).collect();
                Some(Tensor::stack(&all, 0).mean_dim([0i64].as_slice(), false, Kind::Float))
            }
            _ => None,
        };
        let extra_storage = match (common.labels, self.teachers().next()) {
            (LabelKind::Soft, _) => {
                let floats = self.images.labels().len() * spec.classes.len();
                format!("soft labels, {floats} floats")
            }
            (LabelKind::Teacher, Some(teacher)) => {
                format!("teacher network, {} floats", teacher.n_parameters())
            }
            _ => String::new(),
        };
        let images = self.images().detach().to_device(Device::Cpu);
        if images.isfinite().all().int64_value(&[]) == 0 {
            // Stored images are clamped, so nothing is infinite.
            let (what, at, value) = ("pixel of the synthetic images", self.iteration(), f64::NAN);
            return Err(DistillError::NotFinite { what, at, value });
        }
        let mut tensors =
            Entries::from([("images".to_owned(), images), ("labels".to_owned(), Tensor::from_slice(&labels))]);
        tensors.extend(soft_labels.map(|soft| ("soft_labels".to_owned(), soft)));
        let mut config = serde_json::to_value(&self.config).expect("the configuration serializes to JSON");
        if let Some(rate) = self.method.learned_lr() {
            config[SetOrigin::LEARNED_LR] = rate.into();
        }
        let header = SyntheticHeader {
            schema_version: c2r_data::SCHEMA_VERSION,
            dataset: spec.name.clone(),
            classes: spec.classes.len(),
            images_per_class: common.ipc,
            method: self.config.label().to_owned(),
            seed: common.seed,
            iterations: self.iteration(),
            config,
            versions,
            data_sha256: self.data_sha256.clone(),
            mean: spec.mean.clone(),
            std: spec.std.clone(),
            extra_storage,
        };
        Ok(SyntheticSet::from_tensors(tensors, formation, header)?)
    }
}

fn unfit(reason: String) -> DistillError {
    StateError(reason).into()
}

/// Every number must be finite, apart from the losses of perturbations, where NaN stands for none.
fn check_finite(state: &Entries) -> Result<(), StateError> {
    let broken = state.iter().find(|(name, tensor)| {
        let fractional = matches!(tensor.kind(), Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16);
        fractional && !name.ends_with(".losses") && tensor.isfinite().all().int64_value(&[]) == 0
    });
    broken.map_or(Ok(()), |(name, _)| Err(StateError::wrong(name, "finite", "NaN or infinite numbers")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_state_are_finite_but_losses_may_be_absent() {
        let nan = |name: &str| Entries::from([(name.to_owned(), Tensor::from_slice(&[f32::NAN]))]);
        let message = check_finite(&nan("x")).unwrap_err().to_string();
        assert_eq!(message, "`x` must be finite, got NaN or infinite numbers");
        check_finite(&nan("cache.losses")).unwrap();
    }
}
