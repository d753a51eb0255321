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
//! one augmentation draw per step, the same for every image; images stay in `[0, 1]`, and the learned rate at
//! or above 1e-6. MAT's adversary is `[companions]` at `threat.epsilon`.

use std::collections::BTreeMap;

use c2r_base::loss;
use c2r_core::curriculum::Curriculum;
use c2r_models::Model;
use c2r_train::LrSchedule;
use rand::{Rng, seq::SliceRandom};
use tch::{Kind, Tensor};

use crate::{
    config::{ExpertsConfig, PoolConfig, StudentConfig},
    distillation::DistillError,
    method::{Method, StepReport, Turn},
    pool::{Learner, Training},
    setting::Setting,
    state::{entry, integer, number},
};

/// SGD momentum of the learned rate, as for the images.
const RATE_MOMENTUM: f64 = 0.5;
/// The learned rate does not fall below this.
const LOWEST_RATE: f64 = 1e-6;

/// Trajectory matching in progress.
#[derive(Debug)]
pub(crate) struct TrajectoryMatching {
    experts: ExpertsConfig,
    training: PoolConfig,
    student: StudentConfig,
    /// A network whose layers are used at other parameters.
    template: Model,
    /// Snapshots of each finished expert, f32 `[epochs + 1, P]`.
    recorded: Vec<Tensor>,
    growing: Option<Growing>,
    steps_per_epoch: u64,
    lr: f64,
    lr_velocity: f64,
}

/// An expert in training.
#[derive(Debug)]
struct Growing {
    learner: Learner,
    /// Moving average of its parameters, f32 `[P]`.
    average: Tensor,
    snapshots: Vec<Tensor>,
}

impl TrajectoryMatching {
    pub(crate) fn new(setting: &Setting) -> Result<Self, DistillError> {
        let config = &setting.config;
        let experts = config.need(&config.experts, "experts")?.clone();
        let student = config.need(&config.student, "student")?.clone();
        let steps_per_epoch = setting.data.len().div_ceil(experts.batch_size) as u64;
        Ok(Self {
            training: PoolConfig {
                trajectories: 1,
                snapshots: 1,
                min_steps: 0,
                max_steps: experts.epochs * steps_per_epoch,
                steps_per_iteration: 0,
                batch_size: experts.batch_size,
                lr: experts.lr,
                momentum: experts.momentum,
                weight_decay: experts.weight_decay,
                adversarial: experts.adversarial,
                curvature: None,
                dsa: experts.dsa.clone(),
            },
            template: setting.network(setting.seed.child("student", 0))?,
            recorded: Vec::new(),
            growing: None,
            steps_per_epoch,
            lr: student.lr,
            lr_velocity: 0.0,
            experts,
            student,
        })
    }

    fn new_expert(&self, setting: &Setting) -> Result<Growing, DistillError> {
        let index = self.recorded.len() as u64;
        let seed = setting.seed.child("experts", 0);
        let learner =
            Learner::new(&self.training, self.training.max_steps, LrSchedule::Constant, seed, index, setting)?;
        let start = flat(learner.model());
        Ok(Growing { learner, average: start.copy(), snapshots: vec![start] })
    }
}

/// All parameters in one row, f32 `[P]`, a copy.
fn flat(model: &Model) -> Tensor {
    let parts: Vec<Tensor> = model.parameters().into_iter().map(|(_, tensor)| tensor.detach().flatten(0, -1)).collect();
    Tensor::cat(&parts, 0)
}

/// The network of `template` at the parameters `row`, f32 `[P]`, through which gradients flow.
fn at(template: &Model, row: &Tensor) -> Model {
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
    fn preparation(&self, _: &Setting) -> (u64, u64) {
        let growing = self.growing.as_ref().map_or(0, |growing| growing.learner.steps_done());
        let each = self.training.max_steps;
        (self.recorded.len() as u64 * each + growing, self.experts.count as u64 * each)
    }

    fn prepare(&mut self, turn: &mut Turn<'_>) -> Result<f64, DistillError> {
        let mut growing = match self.growing.take() {
            Some(growing) => growing,
            None => self.new_expert(turn.setting)?,
        };
        let training = Training { setting: turn.setting, curriculum: &Curriculum::default() };
        let loss = growing.learner.train_step(training, turn.passes)?;
        let _no_grad = tch::no_grad_guard();
        let now = flat(growing.learner.model());
        growing.average = &growing.average * self.experts.average + now * (1.0 - self.experts.average);
        if growing.learner.steps_done().is_multiple_of(self.steps_per_epoch) {
            growing.snapshots.push(growing.average.copy());
        }
        if growing.learner.is_trained() {
            self.recorded.push(Tensor::stack(&growing.snapshots, 0));
        } else {
            self.growing = Some(growing);
        }
        Ok(loss)
    }

    fn update(&mut self, turn: &mut Turn<'_>) -> Result<StepReport, DistillError> {
        let setting = turn.setting;
        let seed = setting.seed.child("iteration", turn.canvas.iteration());
        let expert = &self.recorded[seed.stream("expert", 0).random_range(0..self.recorded.len())];
        let start = seed.stream("start", 0).random_range(0..self.student.max_start) as i64;
        let from = expert.get(start);
        let target = expert.get(start + self.student.span as i64);
        let distance_of = |a: &Tensor, b: &Tensor| (a - b).square().sum(Kind::Float);
        let way = distance_of(&from, &target);

        let (tracked, decoded) = turn.canvas.tracked()?;
        let labels = setting.label_tensor(turn.canvas.labels());
        let n = decoded.size()[0];
        let batch_size = if self.student.batch_size == 0 { n as usize } else { self.student.batch_size };
        let rate = Tensor::from(self.lr as f32).to_device(setting.device).set_requires_grad(true);
        let mut order: Vec<i64> = Vec::new();
        let mut parameters = from.detach().set_requires_grad(true);
        let value = tch::with_grad(|| {
            for step in 0..self.student.steps {
                if order.is_empty() {
                    order = (0..n).collect();
                    order.shuffle(&mut seed.stream("student/order", step));
                }
                let rest = order.split_off(batch_size.min(order.len()));
                let rows = setting.label_tensor(&std::mem::replace(&mut order, rest));
                let draw = setting.config.dsa.draw(&mut seed.stream("student/dsa", step));
                let images = setting.augmented(&decoded.index_select(0, &rows), &draw);
                let logits = at(&self.template, &parameters).logits(&images);
                let entropy = loss::ce(&logits, &labels.index_select(0, &rows)).mean(Kind::Float);
                let slope = Tensor::run_backward(&[entropy], &[&parameters], true, true).swap_remove(0);
                parameters = &parameters - &rate * slope;
                turn.passes.forward += rows.numel() as u64;
                // Once for the step and, twice differentiated, once for the images.
                turn.passes.backward += 2 * rows.numel() as u64;
            }
            // An expert that did not move cannot be followed; its distance is then reported as it is.
            distance_of(&parameters, &target) / way.clamp_min(1e-12)
        });
        let mut gradients = Tensor::run_backward(&[&value], &[&tracked, &rate], false, false).into_iter();
        let (gradient, rate_gradient) = (gradients.next().expect("two"), gradients.next().expect("two"));
        let loss = value.double_value(&[]);
        turn.canvas.descend(&gradient, loss)?;
        self.lr_velocity = RATE_MOMENTUM * self.lr_velocity + rate_gradient.double_value(&[]);
        self.lr = (self.lr - self.student.lr_of_lr * self.lr_velocity).max(LOWEST_RATE);
        Ok(StepReport { loss, matching: Some(loss), student_lr: Some(self.lr), ..StepReport::default() })
    }

    fn state(&self, into: &mut BTreeMap<String, Tensor>) {
        into.insert("student.lr".to_owned(), Tensor::from_slice(&[self.lr]));
        into.insert("student.lr-velocity".to_owned(), Tensor::from_slice(&[self.lr_velocity]));
        into.insert("experts.n-recorded".to_owned(), Tensor::from_slice(&[self.recorded.len() as i64]));
        for (index, snapshots) in self.recorded.iter().enumerate() {
            into.insert(format!("experts.{index:04}"), snapshots.copy());
        }
        if let Some(growing) = &self.growing {
            growing.learner.state("experts.growing", into);
            into.insert("experts.growing.average".to_owned(), growing.average.copy());
            into.insert("experts.growing.snapshots".to_owned(), Tensor::stack(&growing.snapshots, 0));
        }
    }

    fn load_state(&mut self, setting: &Setting, state: &BTreeMap<String, Tensor>) -> Result<(), DistillError> {
        let n_parameters = self.template.n_parameters();
        let get = |name: &str, size: &[i64]| {
            Ok::<_, DistillError>(entry(state, name, Kind::Float, size)?.to_device(setting.device).copy())
        };
        self.lr = number(state, "student.lr", LOWEST_RATE.min(self.student.lr)..=f64::MAX)?;
        self.lr_velocity = number(state, "student.lr-velocity", f64::MIN..=f64::MAX)?;
        let n_recorded = integer(state, "experts.n-recorded", 0..=self.experts.count as i64)?;
        self.recorded = (0..n_recorded)
            .map(|index| get(&format!("experts.{index:04}"), &[self.experts.epochs as i64 + 1, n_parameters]))
            .collect::<Result<_, _>>()?;
        self.growing = None;
        if state.contains_key("experts.growing.average") {
            let mut growing = self.new_expert(setting)?;
            growing.learner.load_state(state, "experts.growing", setting)?;
            growing.average = get("experts.growing.average", &[n_parameters])?;
            let n_epochs = growing.learner.steps_done() / self.steps_per_epoch;
            growing.snapshots = get("experts.growing.snapshots", &[n_epochs as i64 + 1, n_parameters])?.unbind(0);
            self.growing = Some(growing);
        }
        Ok(())
    }
}
