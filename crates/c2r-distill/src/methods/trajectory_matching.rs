//! MTT and MAT: trajectory matching. Cazenavette et al. 2022, "Dataset distillation by matching training
//! trajectories" (arXiv:2203.11932), equation 2 and algorithm 1:
//!
//! `L = || theta^_{t+N} - theta*_{t+M} ||^2 / || theta*_t - theta*_{t+M} ||^2`
//!
//! theta* are parameters of an expert trained on real images, recorded after every epoch; theta^ starts from
//! theta*_t, t < `student.max-start`, and makes N = `student.steps` SGD steps on augmented synthetic images with
//! a learning rate that is learned, too. The gradient goes through all N steps.
//!
//! **MAT** (Lai et al. 2025, "Robust dataset distillation by matching adversarial trajectories",
//! arXiv:2503.12069): the experts are trained on adversarial companions, and an exponential moving average of
//! their parameters is recorded, because adversarial training changes parameters too fast to be followed.
//!
//! Defaults (`data/profiles/mtt.toml`): those published for CIFAR-10 at 10 images per class without ZCA: 50
//! epochs per expert with SGD 0.01 and no momentum, batches of 256, DSA; 30 steps for 2 epochs, starts below
//! epoch 15, image rate 1000 on normalized values and rate of the rate 1e-5, both SGD with momentum 0.5, 5,000
//! iterations. `mat.toml` adds `adversarial = true` and `average = 0.999` (ours).
//!
//! Differs from the authors' code: 20 experts instead of 100, kept in memory and in the saved state; no ZCA;
//! images stay in `[0, 1]`, and the learned rate at or above 1e-6. There, networks are evaluated at the learned rate; here
//! the set records it, and `c2r train --lr learned` takes it. MAT's adversary is `[companions]` at `threat.epsilon`.

use std::sync::Arc;

use c2r_base::loss;
use c2r_core::curriculum::Curriculum;
use c2r_data::dsa::Dsa;
use c2r_models::Model;
use c2r_train::{
    LrSchedule,
    ranges::{below_one, count, count_or_none, in_range, not_negative, positive},
    state::State,
};
use rand::{Rng, seq::SliceRandom};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{
    config::{CommonConfig, Place, PoolConfig},
    context::Context,
    cost::Work,
    error::{ConfigError, DistillError},
    method::{Measured, Method, MethodConfig, MethodEntry, Needs, Step},
    parts::pool::NetworkTraining,
};

/// SGD momentum of the learned rate, as for the images.
const RATE_MOMENTUM: f64 = 0.5;
/// The learned rate does not fall below this.
const LOWEST_RATE: f64 = 1e-6;

/// Trajectory matching's line of the registry.
pub(crate) const ENTRY: MethodEntry = MethodEntry {
    name: "trajectory-matching",
    sections: &["companions", "experts", "student"],
    augmented: &["experts"],
    read: |sections| Ok(Arc::new(sections.read::<TrajectoryMatchingConfig>()?)),
};

/// Options of trajectory matching.
#[derive(Clone, Debug, Deserialize)]
pub struct TrajectoryMatchingConfig {
    /// The trainings on real images whose trajectories are matched.
    pub experts: ExpertsConfig,
    /// The unrolled training on synthetic images that is to follow an expert.
    pub student: StudentConfig,
}

/// Trainings on real images whose parameters are recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ExpertsConfig {
    /// Independent trainings, at least 1. Their snapshots are kept in memory and in the saved state:
    /// `count * (epochs + 1)` times the network's parameters.
    pub count: usize,
    /// Epochs of each, a snapshot after every one.
    pub epochs: u64,
    /// Real images per training step.
    pub batch_size: usize,
    /// SGD learning rate.
    pub lr: f64,
    /// SGD momentum.
    pub momentum: f64,
    /// SGD weight decay.
    pub weight_decay: f64,
    /// Train on adversarial companions (MAT) or on clean images (MTT).
    pub adversarial: bool,
    /// Record an exponential moving average of the parameters instead of the parameters (MAT): share of the
    /// average that is kept at each training step, in `[0, 1)`; 0 records the parameters.
    pub average: f64,
    /// Augmentation during training.
    pub dsa: Dsa,
}

/// The unrolled training on the synthetic images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StudentConfig {
    /// Last epoch that the student may start from (excluded), at least 1.
    pub max_start: u64,
    /// Epochs of the expert that it is to follow, at least 1.
    pub span: u64,
    /// Its own SGD steps in that time, at least 1; memory and time are proportional to it.
    pub steps: u64,
    /// Synthetic images per step; 0 means all of them.
    pub batch_size: usize,
    /// Its learning rate at the beginning; it is learned.
    pub lr: f64,
    /// Learning rate of that learning rate (SGD, momentum 0.5); 0 keeps it.
    pub lr_of_lr: f64,
}

impl TrajectoryMatchingConfig {
    /// The last epoch of an expert that a student looks at.
    const fn last_epoch(&self) -> u64 {
        self.student.max_start.saturating_sub(1).saturating_add(self.student.span)
    }
}

impl MethodConfig for TrajectoryMatchingConfig {
    fn entry(&self) -> &'static MethodEntry {
        &ENTRY
    }

    fn sections(&self) -> Vec<(&'static str, &dyn erased_serde::Serialize)> {
        vec![("experts", &self.experts), ("student", &self.student)]
    }

    fn validate(&self, _: &CommonConfig) -> Result<(), ConfigError> {
        let Self { experts, student } = self;
        count("experts.count", experts.count as u64)?;
        count("experts.epochs", experts.epochs)?;
        count("experts.batch-size", experts.batch_size as u64)?;
        not_negative("experts.lr", experts.lr)?;
        below_one("experts.momentum", experts.momentum)?;
        not_negative("experts.weight-decay", experts.weight_decay)?;
        below_one("experts.average", experts.average)?;
        count("student.max-start", student.max_start)?;
        count("student.span", student.span)?;
        let last = self.last_epoch();
        let reach = "no later with student.max-start than experts.epochs";
        in_range(last <= experts.epochs, "student.span", reach, format!("epoch {last} of {}", experts.epochs))?;
        count("student.steps", student.steps)?;
        count_or_none("student.batch-size", student.batch_size as u64)?;
        positive("student.lr", student.lr)?;
        Ok(not_negative("student.lr-of-lr", student.lr_of_lr)?)
    }

    fn needs(&self) -> Needs {
        let ExpertsConfig { adversarial, batch_size, .. } = self.experts;
        Needs { attacks: adversarial, training_batch: Some(batch_size), ..Needs::default() }
    }

    fn idle(&self, _: &CommonConfig) -> Vec<(&'static str, &'static str)> {
        let reason =
            "a student follows no epoch after student.max-start - 1 + student.span, so later ones only take time";
        if self.last_epoch() < self.experts.epochs { vec![("experts.epochs", reason)] } else { Vec::new() }
    }

    fn add_work(&self, common: &CommonConfig, n_classes: usize, n_train: usize, total: &mut Work) {
        let Self { experts, student } = self;
        let images = (experts.count as u64 * experts.epochs) as f64 * n_train as f64;
        total.training += images;
        total.add_attacked(common, Place::Pool, if experts.adversarial { images } else { 0.0 });
        let decoded = (n_classes * common.decoded_per_class()) as f64;
        let batch = if student.batch_size == 0 { decoded } else { decoded.min(student.batch_size as f64) };
        total.training += common.iterations as f64 * student.steps as f64 * 2.0 * batch;
    }

    fn build(&self, context: &Context) -> Result<Box<dyn Method>, DistillError> {
        let Self { experts, student } = self.clone();
        let steps_per_epoch = context.data.len().div_ceil(experts.batch_size) as u64;
        Ok(Box::new(TrajectoryMatching {
            training: PoolConfig {
                trajectories: 1,
                snapshots: 1,
                min_steps: 0,
                max_steps: experts.epochs * steps_per_epoch,
                steps_per_iteration: 0,
                networks_per_iteration: 0,
                push_every: 0,
                alive: None,
                batch_size: experts.batch_size,
                lr: experts.lr,
                momentum: experts.momentum,
                weight_decay: experts.weight_decay,
                adversarial: experts.adversarial,
                curvature: None,
                dsa: experts.dsa.clone(),
            },
            template: context.network(context.seed.child("student", 0))?,
            recorded: Vec::new(),
            growing: None,
            steps_per_epoch,
            lr: Tensor::full([], student.lr, (Kind::Double, context.device)),
            lr_velocity: Tensor::zeros([], (Kind::Double, context.device)),
            experts,
            student,
        }))
    }
}

/// Trajectory matching in progress.
#[derive(Debug)]
struct TrajectoryMatching {
    experts: ExpertsConfig,
    training: PoolConfig,
    student: StudentConfig,
    /// A network whose layers are used at other parameters.
    template: Model,
    /// Snapshots of each finished expert, f32 `[epochs + 1, P]`.
    recorded: Vec<Tensor>,
    growing: Option<GrowingExpert>,
    steps_per_epoch: u64,
    /// The learned rate and its momentum, scalars f64.
    lr: Tensor,
    lr_velocity: Tensor,
}

/// An expert in training.
#[derive(Debug)]
struct GrowingExpert {
    training: NetworkTraining,
    /// Moving average of its parameters, f32 `[P]`.
    average: Tensor,
    snapshots: Vec<Tensor>,
}

impl TrajectoryMatching {
    fn new_expert(&self, context: &Context) -> Result<GrowingExpert, DistillError> {
        let (index, seed) = (self.recorded.len() as u64, context.seed.child("experts", 0));
        let (config, order) = (self.training.clone(), Curriculum::default());
        let training = NetworkTraining::new(config, order, LrSchedule::Constant, seed, index, context)?;
        let start = flat(training.model());
        Ok(GrowingExpert { training, average: start.copy(), snapshots: vec![start] })
    }
}

/// All parameters in one row, f32 `[P]`, a copy.
fn flat(model: &Model) -> Tensor {
    let parts: Vec<Tensor> = model.parameters().into_iter().map(|(_, tensor)| tensor.detach().flatten(0, -1)).collect();
    Tensor::cat(&parts, 0)
}

/// The network of `template` at the parameters `row`, f32 `[P]`, through which gradients flow.
fn at_parameters(template: &Model, row: &Tensor) -> Model {
    let mut start = 0;
    let parts = template.parameters().into_iter().map(|(_, tensor)| {
        let length = tensor.numel() as i64;
        let part = row.narrow(0, start, length).view(tensor.size().as_slice());
        start += length;
        part
    });
    template.with_parameters(parts.collect())
}

impl Method for TrajectoryMatching {
    fn preparation(&self) -> (u64, u64) {
        let growing = self.growing.as_ref().map_or(0, |growing| growing.training.steps_done());
        let each = self.training.max_steps;
        (self.recorded.len() as u64 * each + growing, self.experts.count as u64 * each)
    }

    fn prepare(&mut self, step: &mut Step<'_>) -> Result<(), DistillError> {
        let mut growing = match self.growing.take() {
            Some(growing) => growing,
            None => self.new_expert(step.context)?,
        };
        growing.training.train_step(step)?;
        let _no_grad = tch::no_grad_guard();
        let now = flat(growing.training.model());
        growing.average = &growing.average * self.experts.average + now * (1.0 - self.experts.average);
        if growing.training.steps_done().is_multiple_of(self.steps_per_epoch) {
            growing.snapshots.push(growing.average.copy());
        }
        if growing.training.is_trained() {
            self.recorded.push(Tensor::stack(&growing.snapshots, 0));
        } else {
            self.growing = Some(growing);
        }
        Ok(())
    }

    fn update(&mut self, step: &mut Step<'_>) -> Result<Measured, DistillError> {
        let context = step.context;
        let seed = context.seed.child("iteration", step.images.iteration());
        let expert = &self.recorded[seed.stream("expert", 0).random_range(0..self.recorded.len())];
        let start = seed.stream("start", 0).random_range(0..self.student.max_start) as i64;
        let from = expert.get(start);
        let target = expert.get(start + self.student.span as i64);
        let distance_of = |a: &Tensor, b: &Tensor| (a - b).square().sum(Kind::Float);
        let moved = distance_of(&from, &target);

        let (tracked, decoded) = step.images.tracked()?;
        let labels = step.images.targets();
        let n = decoded.size()[0] as usize;
        let batch_size = if self.student.batch_size == 0 { n } else { self.student.batch_size.min(n) };
        let per_epoch = n.div_ceil(batch_size) as u64;
        let mut orders: Vec<i64> = Vec::new();
        for at in (0..self.student.steps).step_by(per_epoch as usize) {
            let mut order: Vec<i64> = (0..n as i64).collect();
            order.shuffle(&mut seed.stream("student/order", at));
            orders.extend(order);
        }
        let orders = context.indices(&orders);
        let mut augmentation = context.augmentation(&context.common.dsa, batch_size);
        let dsa_rng = |at| seed.stream("student/dsa", at);
        let rate = self.lr.to_kind(Kind::Float).set_requires_grad(true);
        let mut parameters = from.detach().set_requires_grad(true);
        let value = tch::with_grad(|| {
            for at in 0..self.student.steps {
                let start = (at % per_epoch) as usize * batch_size;
                let first = (at / per_epoch) as usize * n + start;
                let rows = orders.narrow(0, first as i64, batch_size.min(n - start) as i64);
                let images = augmentation.apply(&decoded.index_select(0, &rows), at, self.student.steps, dsa_rng);
                let logits = at_parameters(&self.template, &parameters).logits(&images);
                let entropy = loss::ce(&logits, &labels.index_select(0, &rows)).mean(Kind::Float);
                let slope = Tensor::run_backward(&[entropy], &[&parameters], true, true).swap_remove(0);
                parameters = &parameters - &rate * slope;
                step.passes.forward += rows.numel() as u64;
                // Once for the step and, twice differentiated, once for the images.
                step.passes.backward += 2 * rows.numel() as u64;
            }
            // An expert that did not move cannot be followed; its distance is then reported as it is.
            distance_of(&parameters, &target) / moved.clamp_min(1e-12)
        });
        let mut gradients = Tensor::run_backward(&[&value], &[&tracked, &rate], false, false).into_iter();
        let (gradient, rate_gradient) = (gradients.next().expect("two"), gradients.next().expect("two"));
        let loss = value.detach();
        step.descend(&gradient, &loss);
        let _no_grad = tch::no_grad_guard();
        self.lr_velocity = &self.lr_velocity * RATE_MOMENTUM + rate_gradient;
        self.lr = (&self.lr - &self.lr_velocity * self.student.lr_of_lr).clamp_min(LOWEST_RATE);
        let (matching, student_lr) = (Some(loss.shallow_clone()), Some(self.lr.shallow_clone()));
        Ok(Measured { loss, matching, student_lr, ..Measured::default() })
    }

    fn learned_lr(&self) -> Option<f64> {
        (self.student.lr_of_lr > 0.0).then(|| self.lr.double_value(&[]))
    }

    fn state(&mut self, context: &Context, state: &mut State<'_>) -> Result<(), DistillError> {
        let n_parameters = self.template.n_parameters();
        let empty = |rows: u64| Tensor::zeros([rows as i64, n_parameters], (Kind::Float, context.device));
        let least = LOWEST_RATE.min(self.student.lr);
        for (name, scalar, least) in
            [("student.lr", &mut self.lr, least), ("student.lr-velocity", &mut self.lr_velocity, f64::MIN)]
        {
            let mut value = scalar.double_value(&[]);
            state.number(name, &mut value, least..=f64::MAX)?;
            *scalar = Tensor::full([], value, (Kind::Double, context.device));
        }
        let mut n_recorded = self.recorded.len() as u64;
        state.integer("experts.n-recorded", &mut n_recorded, 0..=self.experts.count as i64)?;
        if state.reads() {
            self.recorded = (0..n_recorded).map(|_| empty(self.experts.epochs + 1)).collect();
        }
        for (index, snapshots) in self.recorded.iter_mut().enumerate() {
            state.tensor(&format!("experts.{index:04}"), snapshots)?;
        }
        let mut growing = self.growing.take();
        state.optional("experts.growing.average", &mut growing, || self.new_expert(context))?;
        if let Some(growing) = &mut growing {
            state.section("experts.growing.", |state| growing.training.state(context, state))?;
            state.tensor("experts.growing.average", &mut growing.average)?;
            let mut snapshots = if state.reads() {
                empty(growing.training.steps_done() / self.steps_per_epoch + 1)
            } else {
                Tensor::stack(&growing.snapshots, 0)
            };
            state.tensor("experts.growing.snapshots", &mut snapshots)?;
            growing.snapshots = snapshots.unbind(0);
        }
        self.growing = growing;
        Ok(())
    }
}
