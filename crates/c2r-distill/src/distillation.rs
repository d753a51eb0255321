//! The outer loop: one call is one unit of work, and between calls everything can be saved.

use std::collections::BTreeMap;

use c2r_attacks::loss;
use c2r_base::{Seed, artifact::TensorFile, grad::gradients};
use c2r_core::{
    crl::{Candidates, class_mean_alignment, class_means},
    ls_pgd::{Companions, Passes, PerturbationCache},
    queue::MemoryQueue,
};
use c2r_data::{ClassSampler, Dataset, DatasetSpec, Split, SyntheticHeader, SyntheticSet, decode_formation, mosaic};
use c2r_models::{Model, ModelError, ModelInput};
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use tch::{Device, Kind, Tensor};

use crate::{
    companions::Companion,
    config::{ConfigError, DistillConfig, Init, LabelKind, Method, RobustTerm},
    optimizer::{ImageUpdate, learning_rate},
    plan::Plan,
    pool::{Eval, Pool, Teacher, Training, scalar},
};

const STATE_SCHEMA: &str = "1";

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
    /// A training step of the pool.
    Pool {
        /// Steps done.
        done: u64,
        /// Steps that fill the pool.
        total: u64,
        /// Training loss (cross-entropy in nats).
        loss: f64,
    },
    /// A training step of the teacher.
    Teacher {
        /// Steps done.
        done: u64,
        /// All of them.
        total: u64,
        /// Training loss (cross-entropy in nats).
        loss: f64,
    },
    /// An update of the synthetic images.
    Images(StepReport),
}

/// Numbers of one update of the synthetic images; all before the update.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct StepReport {
    /// Updates done, this one included.
    pub iteration: u64,
    /// The whole loss.
    pub loss: f64,
    /// Class-mean matching, normalized.
    pub matching: f64,
    /// Cross-entropy of the synthetic images, in nats.
    pub performance: f64,
    /// The robust term.
    pub robust: f64,
    /// 10, 50 and 90 % quantiles of the perturbation score of the synthetic images, in logits; absent
    /// where no companions are made.
    pub score_quantiles: Option<[f64; 3]>,
}

/// A distillation in progress.
#[derive(Debug)]
pub struct Distillation {
    config: DistillConfig,
    spec: DatasetSpec,
    data: Split,
    data_sha256: String,
    input: ModelInput,
    device: Device,
    seed: Seed,
    companion: Companion,
    sampler: ClassSampler,
    /// The stored images, f32 `[M, C, H, W]` in `[0, 1]`.
    images: Tensor,
    /// Class of each decoded image, `M * formation^2` of them.
    decoded_labels: Vec<i64>,
    update: ImageUpdate,
    pool: Pool,
    teacher: Option<Teacher>,
    /// One queue per pool network: embeddings of different networks do not compare.
    queues: Vec<Option<MemoryQueue>>,
    cache: Option<PerturbationCache>,
    plan: Plan,
    iteration: u64,
    passes: Passes,
}

impl Distillation {
    /// Checks the configuration against the data and lays out the first images.
    ///
    /// # Errors
    /// [`DistillError`].
    pub fn new(config: DistillConfig, dataset: &Dataset, device: Device) -> Result<Self, DistillError> {
        config.validate()?;
        let spec = dataset.spec.clone();
        let data = config.train_per_class.map_or_else(|| dataset.train.clone(), |n| dataset.train.subset_per_class(n));
        let per_image = (config.images.formation * config.images.formation) as usize;
        for class in 0..data.n_classes() {
            let got = data.class_positions(class).len();
            let enough = |needed, why| {
                if got < needed { Err(DistillError::TooFewImages { class, got, needed, why }) } else { Ok(()) }
            };
            if config.images.init == Init::Real || config.method == Method::RandomReal {
                enough(config.ipc * per_image, "ipc times formation squared, to start from real images")?;
            }
            if config.method == Method::C2r {
                enough(config.matching.real_per_class, "matching.real-per-class")?;
            }
        }
        let input = ModelInput {
            channels: spec.channels,
            height: spec.height,
            width: spec.width,
            n_classes: spec.classes.len() as i64,
            mean: spec.mean.clone(),
            std: spec.std.clone(),
        };
        let seed = Seed::new(config.seed);
        let images = first_images(&config, &spec, &data, seed, device)?;
        let decoded_labels: Vec<i64> = (0..spec.classes.len())
            .flat_map(|class| std::iter::repeat_n(class as i64, config.ipc * per_image))
            .collect();
        let companion = Companion::new(&config.companions, config.threat())?;
        let cache = companion
            .remembers()
            .then(|| PerturbationCache::new(decoded_labels.len(), [spec.channels, spec.height, spec.width], device));
        let mut distillation = Self {
            data_sha256: data.sha256(),
            input,
            device,
            seed,
            companion,
            sampler: ClassSampler::new(seed.child("real", 0)),
            update: ImageUpdate::new(&config.images, &images),
            images,
            decoded_labels,
            pool: Pool::new(config.pool.clone(), seed.child("pool", 0)),
            teacher: None,
            queues: Vec::new(),
            cache,
            plan: Plan::default(),
            iteration: 0,
            passes: Passes::default(),
            config,
            spec,
            data,
        };
        if let Some(teacher) = &distillation.config.teacher {
            let trained = Teacher::new(
                &distillation.config.pool,
                teacher.steps,
                seed.child("teacher", 0),
                &distillation.training(),
            )?;
            distillation.teacher = Some(trained);
        }
        Ok(distillation)
    }

    fn training(&self) -> Training<'_> {
        Training {
            spec: &self.config.model,
            input: &self.input,
            data: &self.data,
            companion: &self.companion,
            curriculum: &self.config.aac.pool,
            device: self.device,
        }
    }

    /// The resolved configuration.
    pub const fn config(&self) -> &DistillConfig {
        &self.config
    }

    /// Updates of the images so far.
    pub const fn iteration(&self) -> u64 {
        self.iteration
    }

    /// Passes through networks so far, pool training included.
    pub const fn passes(&self) -> Passes {
        self.passes
    }

    /// Units of work done and in all: pool and teacher training steps plus image updates.
    pub fn progress(&self) -> (u64, u64) {
        let teacher = self.config.teacher.as_ref().map_or(0, |teacher| teacher.steps);
        if self.config.method == Method::RandomReal {
            return (self.teacher.as_ref().map_or(0, Teacher::steps_done), teacher);
        }
        let done = self.pool.steps_done().min(Pool::steps_to_fill(&self.config.pool))
            + self.teacher.as_ref().map_or(0, Teacher::steps_done)
            + self.iteration;
        (done, Pool::steps_to_fill(&self.config.pool) + teacher + self.config.iterations)
    }

    fn pool_is_due(&self) -> bool {
        self.config.method == Method::C2r && self.iteration == 0 && !self.pool.is_full()
    }

    fn teacher_is_due(&self) -> bool {
        self.teacher.as_ref().is_some_and(|teacher| !teacher.is_trained())
    }

    /// Whether every unit of work is done.
    pub fn is_finished(&self) -> bool {
        let images = self.config.method == Method::RandomReal || self.iteration >= self.config.iterations;
        images && !self.teacher_is_due() && !(self.config.iterations > 0 && self.pool_is_due())
    }

    /// Does one unit of work: a training step of the pool until it is full, then of the teacher, then
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
        let mut passes = Passes::default();
        let event = if self.pool_is_due() {
            let mut pool = std::mem::replace(&mut self.pool, Pool::new(self.config.pool.clone(), self.seed));
            let loss = pool.fill_step(&self.training(), &mut passes);
            self.pool = pool;
            DistillEvent::Pool {
                done: self.pool.steps_done(),
                total: Pool::steps_to_fill(&self.config.pool),
                loss: loss?,
            }
        } else if self.teacher_is_due() {
            let mut teacher = self.teacher.take().expect("a teacher is due");
            let loss = teacher.train_step(&self.training(), &mut passes);
            let done = teacher.steps_done();
            self.teacher = Some(teacher);
            let total = self.config.teacher.as_ref().map_or(0, |teacher| teacher.steps);
            DistillEvent::Teacher { done, total, loss: loss? }
        } else {
            let report = self.update_images(&mut passes)?;
            DistillEvent::Images(report)
        };
        self.passes += passes;
        Ok(event)
    }

    /// One iteration of the method; docs/method.md has the equations.
    fn update_images(&mut self, passes: &mut Passes) -> Result<StepReport, DistillError> {
        let t = self.iteration;
        let seed = self.seed.child("iteration", t);
        let network = seed.stream("network", 0).random_range(0..self.pool.len());
        if self.queues.len() < self.pool.len() {
            self.queues.resize_with(self.pool.len(), || None);
        }

        // Synthetic side: the next batch in curriculum order, its companions and scores.
        let tracked = self.images.detach().set_requires_grad(true);
        let decoded = tch::with_grad(|| decode_formation(&tracked, self.config.images.formation))?;
        let needs_companions =
            self.config.objective.robust != RobustTerm::None || self.config.aac.synthetic.needs_scores();
        if self.plan.is_finished() {
            self.plan = Plan::new(self.synthetic_order(network, &decoded.detach(), seed, passes));
        }
        let batch = self.plan.next(self.synthetic_batch());
        let model = self.pool.member(network);
        let index = Tensor::from_slice(&batch.iter().map(|&at| at as i64).collect::<Vec<_>>()).to_device(self.device);
        let labels: Vec<i64> = batch.iter().map(|&at| self.decoded_labels[at]).collect();
        let labels = Tensor::from_slice(&labels).to_device(self.device);
        let synthetic = tch::with_grad(|| decoded.index_select(0, &index));
        let companions = needs_companions.then(|| {
            let ids: Vec<u64> = batch.iter().map(|&at| at as u64).collect();
            let found =
                self.companion.make(&Eval(model), &synthetic.detach(), &labels, &ids, seed, self.cache.as_mut());
            *passes += found.passes;
            found
        });

        // Real side, the same augmentation draw.
        let draw = self.config.dsa.draw(&mut seed.stream("dsa", 0));
        let real = self.real_side(model, t, seed, &draw, passes);

        let n = batch.len() as i64;
        let n_classes = self.input.n_classes;
        let (value, parts) = tch::with_grad(|| {
            let views = match &companions {
                // The perturbation is a constant: gradients reach the image through x + d as through x.
                Some(found) => Tensor::cat(&[&synthetic, &(&synthetic + (&found.images - synthetic.detach()))], 0),
                None => synthetic.shallow_clone(),
            };
            let embeddings = model.features(&self.augmented(&views, &draw), false);
            let clean = embeddings.narrow(0, 0, n);
            let perturbed = companions.as_ref().map(|_| embeddings.narrow(0, n, n));

            let target = if self.config.matching.attacked { &real.attacked } else { &real.clean };
            let spread = target.embeddings.var_dim([0i64].as_slice(), true, false).sum(Kind::Float).clamp_min(1e-12);
            let (synthetic_means, synthetic_counts) = class_means(&clean, &labels, n_classes);
            let (real_means, _) = class_means(&target.embeddings, &target.labels, n_classes);
            // A sub-batch in literal order may miss classes; they have nothing to match.
            let present = synthetic_counts.gt(0.0).to_kind(Kind::Float);
            let distances =
                (real_means - synthetic_means).square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
            let matching = (distances * &present).sum(Kind::Float) / present.sum(Kind::Float) / &spread;

            let weights = match &companions {
                Some(found) => self.config.aac.synthetic.weights(&found.scores),
                None => Tensor::ones([n], (Kind::Float, self.device)),
            };
            let entropy = loss::ce(&model.classify(&clean), &labels);
            let performance = (entropy * &weights).sum(Kind::Float) / weights.sum(Kind::Float);

            let robust = match (self.config.objective.robust, &perturbed) {
                (RobustTerm::Crl, Some(perturbed)) => {
                    let extra = [real.clean.candidates(), real.attacked.candidates()];
                    let impostors =
                        self.queues[network].as_ref().and_then(|queue| queue.nearest_impostors(&clean, &labels));
                    self.config.crl.loss(&clean, &labels, perturbed, &extra, impostors.as_ref()).mean(Kind::Float)
                }
                (RobustTerm::ClassMean, Some(perturbed)) => {
                    class_mean_alignment(&clean, perturbed, &labels, n_classes) / n_classes as f64 / &spread
                }
                _ => Tensor::zeros([], (Kind::Float, self.device)),
            };
            let objective = &self.config.objective;
            let value = &matching * self.config.matching.weight
                + (&performance * (1.0 - objective.eta) + &robust * objective.eta) * objective.weight;
            (value, [matching, performance, robust].map(|part| part.double_value(&[])))
        });
        let gradient = gradients(&value, &[&tracked]).swap_remove(0);
        passes.forward += n as u64 * if companions.is_some() { 2 } else { 1 };
        passes.backward += n as u64 * if companions.is_some() { 2 } else { 1 };
        let [matching, performance, robust] = parts;
        let report = StepReport {
            iteration: t + 1,
            loss: value.double_value(&[]),
            matching,
            performance,
            robust,
            score_quantiles: companions.as_ref().map(score_quantiles),
        };
        if !report.loss.is_finite() || gradient.isfinite().all().int64_value(&[]) == 0 {
            return Err(DistillError::NotFinite { what: "distillation loss", at: t + 1, value: report.loss });
        }
        let lr = learning_rate(&self.config.images, t, self.config.iterations);
        self.update.apply(&mut self.images, &gradient, lr, t + 1);

        self.remember(network, &real.attacked);
        let mut pool = std::mem::replace(&mut self.pool, Pool::new(self.config.pool.clone(), self.seed));
        let replaced = pool.grow(network, &self.training(), passes);
        self.pool = pool;
        if replaced? {
            self.queues[network] = None;
        }
        self.iteration += 1;
        Ok(report)
    }

    /// One augmentation draw, the same for every image, on normalized values as in the field.
    fn augmented(&self, images: &Tensor, draw: &c2r_data::dsa::DsaDraw) -> Tensor {
        self.config.dsa.apply_normalized(images, draw, &self.input.mean, &self.input.std)
    }

    /// Decoded images in one iteration.
    fn synthetic_batch(&self) -> usize {
        match self.config.images.batch_per_class {
            0 => self.decoded_labels.len(),
            per_class => per_class * self.spec.classes.len(),
        }
    }

    /// Visiting order of the decoded images for a new epoch; scores them all first where needed.
    ///
    /// A set that fits one batch has no order; its scores are computed with the batch itself.
    fn synthetic_order(&mut self, network: usize, decoded: &Tensor, seed: Seed, passes: &mut Passes) -> Vec<usize> {
        let n = self.decoded_labels.len();
        let curriculum = &self.config.aac.synthetic;
        let chooses = matches!(curriculum, c2r_core::curriculum::Curriculum::Prefix(_));
        if self.synthetic_batch() >= n && !chooses {
            return (0..n).collect();
        }
        let mut scores = vec![0.0f32; n];
        if curriculum.needs_scores() {
            let labels = Tensor::from_slice(&self.decoded_labels).to_device(self.device);
            let ids: Vec<u64> = (0..n as u64).collect();
            let model = Eval(self.pool.member(network));
            let found = self.companion.make(&model, decoded, &labels, &ids, seed, self.cache.as_mut());
            *passes += found.passes;
            scores = Vec::try_from(&found.scores).expect("scores are f32 [N]");
        }
        curriculum.order(&scores, &self.decoded_labels, &mut seed.stream("order", 0))
    }

    /// Embeddings of real images, clean and attacked, without gradients.
    fn real_side(
        &self,
        model: &Model,
        t: u64,
        seed: Seed,
        draw: &c2r_data::dsa::DsaDraw,
        passes: &mut Passes,
    ) -> RealSide {
        let _no_grad = tch::no_grad_guard();
        let needs_attacked = self.config.matching.attacked || self.config.objective.robust == RobustTerm::Crl;
        let needs_clean = !self.config.matching.attacked || self.config.objective.robust == RobustTerm::Crl;
        let positions: Vec<usize> = (0..self.data.n_classes())
            .flat_map(|class| self.sampler.positions(&self.data, t, class, self.config.matching.real_per_class))
            .collect();
        let (images, labels) = self.data.batch(&positions, self.device);
        let mut views = Vec::new();
        let mut kept = None;
        if needs_attacked || self.config.aac.matching.needs_scores() {
            let ids: Vec<u64> = positions.iter().map(|&position| position as u64).collect();
            let found = self.companion.make(&Eval(model), &images, &labels, &ids, seed.child("real", 0), None);
            *passes += found.passes;
            if self.config.aac.matching.needs_scores() {
                let scores = Vec::<f32>::try_from(&found.scores).expect("scores are f32 [N]");
                let classes: Vec<i64> = Vec::try_from(&labels).expect("labels are i64 [N]");
                let order = self.config.aac.matching.order(&scores, &classes, &mut seed.stream("matching", 0));
                let order: Vec<i64> = order.into_iter().map(|at| at as i64).collect();
                kept = Some(Tensor::from_slice(&order).to_device(self.device));
            }
            views.push(found.images);
        }
        if needs_clean {
            views.push(images);
        }
        passes.forward += (positions.len() * views.len()) as u64;
        let embeddings = model.features(&self.augmented(&Tensor::cat(&views, 0), draw), false);
        let n = positions.len() as i64;
        let mut parts = embeddings.split(n, 0).into_iter();
        let attacked = if needs_attacked { parts.next() } else { None };
        let clean = if needs_clean { parts.next_back() } else { None };
        let side = |embeddings: Option<Tensor>| {
            let embeddings = embeddings.unwrap_or_else(|| Tensor::zeros([0, 1], (Kind::Float, self.device)));
            match &kept {
                Some(at) if embeddings.size()[0] > 0 => {
                    Embedded { embeddings: embeddings.index_select(0, at), labels: labels.index_select(0, at) }
                }
                _ if embeddings.size()[0] == 0 => Embedded { embeddings, labels: labels.narrow(0, 0, 0) },
                _ => Embedded { embeddings, labels: labels.shallow_clone() },
            }
        };
        RealSide { attacked: side(attacked), clean: side(clean) }
    }

    /// Puts attacked real embeddings into the network's queue.
    fn remember(&mut self, network: usize, real: &Embedded) {
        let Some(queue) = self.config.crl.queue.clone().filter(|_| self.config.objective.robust == RobustTerm::Crl)
        else {
            return;
        };
        let labels: Vec<i64> = Vec::try_from(&real.labels).expect("labels are i64 [N]");
        let dimension = real.embeddings.size()[1];
        self.queues[network]
            .get_or_insert_with(|| {
                MemoryQueue::new(queue, self.spec.classes.len(), dimension, self.seed.child("queue", 0), self.device)
            })
            .push(&real.embeddings, &labels);
    }

    /// Everything that the run continues from, and nothing else.
    pub fn state(&self) -> TensorFile {
        let mut file = TensorFile::default();
        file.header.insert("format".to_owned(), "c2r distillation state".to_owned());
        file.header.insert("schema_version".to_owned(), STATE_SCHEMA.to_owned());
        let tensors = &mut file.tensors;
        tensors.insert("images".to_owned(), self.images.copy());
        tensors.insert("iteration".to_owned(), Tensor::from_slice(&[self.iteration as i64]));
        tensors.insert("plan".to_owned(), self.plan.state());
        let passes = [self.passes.forward, self.passes.backward, self.passes.reused].map(|count| count as i64);
        tensors.insert("passes".to_owned(), Tensor::from_slice(&passes));
        tensors.extend(self.update.state().into_iter().map(|(name, tensor)| (format!("update.{name}"), tensor)));
        self.pool.state(tensors);
        if let Some(teacher) = &self.teacher {
            teacher.state(tensors);
        }
        for (index, queue) in self.queues.iter().enumerate() {
            if let Some(queue) = queue {
                let (rows, pushed) = queue.state();
                tensors.insert(format!("queue.{index:04}.rows"), rows);
                tensors.insert(format!("queue.{index:04}.pushed"), pushed);
            }
        }
        if let Some(cache) = &self.cache {
            let (deltas, losses) = cache.state();
            tensors.insert("cache.deltas".to_owned(), deltas);
            tensors.insert("cache.losses".to_owned(), losses);
        }
        file
    }

    /// Continues from [`Distillation::state`] of a run with the same configuration and data.
    ///
    /// # Errors
    /// [`DistillError::State`], naming what does not fit.
    pub fn restore(&mut self, file: &TensorFile) -> Result<(), DistillError> {
        let schema = file.header.get("schema_version").map(String::as_str);
        if schema != Some(STATE_SCHEMA) {
            return Err(DistillError::State(format!("its schema is {schema:?}, this version reads {STATE_SCHEMA}")));
        }
        let state = &file.tensors;
        let get = |name: &str| state.get(name).ok_or_else(|| DistillError::State(format!("no tensor `{name}`")));
        let images = get("images")?;
        if images.size() != self.images.size() {
            return Err(DistillError::State(format!(
                "images are {:?}, expected {:?}",
                images.size(),
                self.images.size()
            )));
        }
        self.images = images.to_device(self.device).copy();
        self.iteration = scalar(state, "iteration")? as u64;
        self.plan = Plan::from_state(get("plan")?).map_err(DistillError::State)?;
        let passes = Vec::<i64>::try_from(get("passes")?).map_err(|error| DistillError::State(error.to_string()))?;
        let [forward, backward, reused] = passes[..] else {
            return Err(DistillError::State("`passes` must have 3 entries".to_owned()));
        };
        self.passes = Passes { forward: forward as u64, backward: backward as u64, reused: reused as u64 };
        let update: BTreeMap<String, Tensor> = state
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix("update.")?.to_owned(), tensor.shallow_clone())))
            .collect();
        self.update.load_state(&update).map_err(DistillError::State)?;
        let mut pool = Pool::new(self.config.pool.clone(), self.seed.child("pool", 0));
        pool.load_state(state, &self.training())?;
        self.pool = pool;
        if let Some(mut teacher) = self.teacher.take() {
            teacher.load_state(state, &self.training())?;
            self.teacher = Some(teacher);
        }
        self.queues = (0..self.pool.len()).map(|_| None).collect();
        for (index, slot) in self.queues.iter_mut().enumerate() {
            let (Some(rows), Some(pushed)) =
                (state.get(&format!("queue.{index:04}.rows")), state.get(&format!("queue.{index:04}.pushed")))
            else {
                continue;
            };
            let Some(config) = self.config.crl.queue.clone() else { continue };
            let mut queue = MemoryQueue::new(
                config,
                self.spec.classes.len(),
                rows.size().get(1).copied().unwrap_or(0),
                self.seed.child("queue", 0),
                self.device,
            );
            queue.load_state(rows, pushed).map_err(DistillError::State)?;
            *slot = Some(queue);
        }
        if let Some(cache) = &mut self.cache {
            cache.load_state(get("cache.deltas")?, get("cache.losses")?).map_err(DistillError::State)?;
        }
        Ok(())
    }

    /// The trained teacher, where labels come from one; its checkpoint belongs beside the set when
    /// labels are [`LabelKind::Teacher`].
    pub fn teacher(&self) -> Option<&Model> {
        self.teacher.as_ref().map(Teacher::model)
    }

    /// The synthetic set as it stands.
    ///
    /// * `versions`: of the software, for the header.
    ///
    /// # Errors
    /// [`DistillError::Data`] if the set cannot be made.
    pub fn synthetic_set(&self, versions: BTreeMap<String, String>) -> Result<SyntheticSet, DistillError> {
        let per_image = self.config.images.formation * self.config.images.formation;
        let labels: Vec<i64> = self.decoded_labels.iter().step_by(per_image as usize).copied().collect();
        let soft_labels = match (self.config.labels, self.teacher(), &self.config.teacher) {
            (LabelKind::Soft, Some(teacher), Some(config)) => {
                let _no_grad = tch::no_grad_guard();
                let decoded = decode_formation(&self.images, self.config.images.formation)?;
                let logits = teacher.logits(&decoded, false) / config.temperature;
                Some(logits.softmax(1, Kind::Float).to_device(Device::Cpu))
            }
            _ => None,
        };
        let extra_storage = match (self.config.labels, self.teacher()) {
            (LabelKind::Soft, _) => {
                let floats = self.decoded_labels.len() * self.spec.classes.len();
                format!("soft labels, {floats} floats")
            }
            (LabelKind::Teacher, Some(teacher)) => {
                format!("teacher network, {} floats", teacher.n_parameters())
            }
            _ => String::new(),
        };
        Ok(SyntheticSet {
            images: self.images.detach().to_device(Device::Cpu).copy(),
            labels: Tensor::from_slice(&labels),
            soft_labels,
            formation: self.config.images.formation,
            header: SyntheticHeader {
                schema_version: c2r_data::SCHEMA_VERSION,
                dataset: self.spec.name.clone(),
                classes: self.spec.classes.len(),
                images_per_class: self.config.ipc,
                method: self.method_name().to_owned(),
                seed: self.config.seed,
                iterations: self.iteration,
                config: serde_json::to_value(&self.config).expect("the configuration serializes to JSON"),
                versions,
                data_sha256: self.data_sha256.clone(),
                mean: self.spec.mean.clone(),
                std: self.spec.std.clone(),
                extra_storage,
            },
        })
    }

    /// The name that tables use.
    fn method_name(&self) -> &str {
        if let Some(name) = &self.config.name {
            return name;
        }
        match (self.config.method, self.config.objective.robust) {
            (Method::RandomReal, _) => "random-real",
            (Method::C2r, RobustTerm::Crl) => "c2r",
            (Method::C2r, RobustTerm::ClassMean) => "class-mean",
            (Method::C2r, RobustTerm::None) => "backbone",
        }
    }
}

/// Embeddings f32 `[A, D]` with their labels i64 `[A]`.
struct Embedded {
    embeddings: Tensor,
    labels: Tensor,
}

impl Embedded {
    const fn candidates(&self) -> Candidates<'_> {
        Candidates { embeddings: &self.embeddings, labels: &self.labels }
    }
}

struct RealSide {
    clean: Embedded,
    attacked: Embedded,
}

fn score_quantiles(companions: &Companions) -> [f64; 3] {
    let levels = Tensor::from_slice(&[0.1f32, 0.5, 0.9]).to_device(companions.scores.device());
    let values = companions.scores.quantile(&levels, None::<i64>, false, "linear");
    [0, 1, 2].map(|index| values.double_value(&[index]))
}

/// The stored images before the first update, f32 `[M, C, H, W]`, class by class.
fn first_images(
    config: &DistillConfig,
    spec: &DatasetSpec,
    data: &Split,
    seed: Seed,
    device: Device,
) -> Result<Tensor, c2r_data::DataError> {
    let per_image = (config.images.formation * config.images.formation) as usize;
    if config.images.init == Init::Real || config.method == Method::RandomReal {
        let sampler = ClassSampler::new(seed.child("init", 0));
        let positions: Vec<usize> =
            (0..data.n_classes()).flat_map(|class| sampler.positions(data, 0, class, config.ipc * per_image)).collect();
        return mosaic(&data.batch(&positions, device).0, config.images.formation);
    }
    let ids: Vec<u64> = (0..(data.n_classes() * config.ipc) as u64).collect();
    let length = (spec.channels * spec.height * spec.width) as usize;
    let mut values = Vec::with_capacity(ids.len() * length);
    for id in ids {
        let mut rng = seed.stream("init/noise", id);
        values.extend((0..length).map(|at| {
            let channel = at / (spec.height * spec.width) as usize;
            let noise: f64 = StandardNormal.sample(&mut rng);
            (spec.mean[channel] + spec.std[channel] * noise).clamp(0.0, 1.0) as f32
        }));
    }
    Ok(Tensor::from_slice(&values).view([-1, spec.channels, spec.height, spec.width]).to_device(device))
}
