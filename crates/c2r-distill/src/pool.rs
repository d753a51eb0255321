//! The pool of adversarially trained networks that the synthetic images are optimized through.

use std::{collections::BTreeMap, ops::RangeInclusive};

use c2r_base::{Seed, grad::gradients, loss};
use c2r_core::{curriculum::Curriculum, ls_pgd::PerturbationCache};
use c2r_models::Model;
use c2r_train::{LrSchedule, Sgd, SgdConfig};
use tch::{Kind, Tensor};

use crate::{
    config::{CurvatureConfig, PoolConfig},
    distillation::DistillError,
    passes::RunPasses,
    plan::Plan,
    setting::Setting,
    state::{Entries, integer, number, put_section, section, within, wrong},
};

/// Images per batch when a whole epoch is scored for the curriculum.
const SCORING_BATCH: usize = 256;

/// Share of a network's average accuracy that is kept at each training step.
const ACCURACY_KEPT: f64 = 0.9;

/// The teacher is a trajectory of its own, outside the numbering of the pool.
pub(crate) const TEACHER: u64 = u64::MAX;

/// One network with everything that its training continues from.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) model: Model,
    optimizer: Sgd,
    /// Training steps so far.
    age: u64,
    /// Which initialization it comes from; selects its random streams.
    trajectory: u64,
    /// Moving average of the accuracy on its own training batches, before each step; 0 before the first.
    accuracy: f64,
    plan: Plan,
}

/// Networks of several ages, growing one training step at a time.
#[derive(Debug)]
pub struct Pool {
    members: Vec<Member>,
    /// The trajectory in training while the pool is filled.
    growing: Option<Member>,
    next_trajectory: u64,
    config: PoolConfig,
    seed: Seed,
}

/// What pool training needs besides the pool.
#[derive(Clone, Copy)]
pub(crate) struct Training<'a> {
    pub(crate) setting: &'a Setting,
    pub(crate) curriculum: &'a Curriculum,
}

impl Pool {
    pub(crate) const fn new(config: PoolConfig, seed: Seed) -> Self {
        Self { members: Vec::new(), growing: None, next_trajectory: 0, config, seed }
    }

    /// Number of networks that are ready.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether no network is ready.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Training steps that filling the pool takes.
    pub(crate) const fn steps_to_fill(config: &PoolConfig) -> u64 {
        config.trajectories as u64 * config.max_steps
    }

    /// Networks that are replaced in `iterations` updates, if each is drawn equally often.
    pub(crate) fn replacements(config: &PoolConfig, iterations: u64) -> u64 {
        let n_members = (config.trajectories * config.snapshots).max(1) as u64;
        let steps = iterations * config.steps_per_iteration / n_members;
        // A network is replaced by the step that takes it past `max_steps`.
        let life = config.max_steps + 1 - config.min_steps;
        let of = |age: u64| (steps + life).saturating_sub(config.max_steps + 1 - age) / life;
        config.trajectories as u64 * snapshot_ages(config).into_iter().map(of).sum::<u64>()
    }

    /// Training steps of the filling that are done.
    pub(crate) fn steps_done(&self) -> u64 {
        let complete = self.next_trajectory.saturating_sub(u64::from(self.growing.is_some()));
        let complete = complete.min(self.config.trajectories as u64) * self.config.max_steps;
        complete + self.growing.as_ref().map_or(0, |member| member.age)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.growing.is_none() && self.members.len() == self.config.trajectories * self.config.snapshots
    }

    pub(crate) fn member(&self, index: usize) -> &Model {
        &self.members[index].model
    }

    /// Moving average of a network's accuracy on its training batches, in `[0, 1]`.
    pub(crate) fn accuracy(&self, index: usize) -> f64 {
        self.members[index].accuracy
    }

    /// One training step of the trajectory in training; takes snapshots as they fall due.
    ///
    /// Returns the training loss.
    pub(crate) fn fill_step(
        &mut self,
        training: Training<'_>,
        cache: Option<&mut PerturbationCache>,
        passes: &mut RunPasses,
    ) -> Result<f64, DistillError> {
        let mut member = match self.growing.take() {
            Some(member) => member,
            None => {
                let trajectory = self.next_trajectory;
                self.next_trajectory += 1;
                let member = self.new_member(training.setting, trajectory)?;
                self.take_snapshots(&member)?;
                member
            }
        };
        let loss = if member.age < self.config.max_steps {
            let loss = self.train_step(&mut member, training, cache, passes)?;
            self.take_snapshots(&member)?;
            loss
        } else {
            0.0
        };
        if member.age < self.config.max_steps {
            self.growing = Some(member);
        }
        Ok(loss)
    }

    fn take_snapshots(&mut self, member: &Member) -> Result<(), DistillError> {
        for _ in snapshot_ages(&self.config).iter().filter(|&&age| age == member.age) {
            let copy = member.copy(&self.config)?;
            self.members.push(copy);
        }
        Ok(())
    }

    /// Trains the drawn network further; a network past its age makes room for a young one.
    ///
    /// Returns whether the network was replaced: whatever is remembered of its embeddings is void then.
    pub(crate) fn grow(
        &mut self,
        index: usize,
        training: Training<'_>,
        mut cache: Option<&mut PerturbationCache>,
        passes: &mut RunPasses,
    ) -> Result<bool, DistillError> {
        if self.config.steps_per_iteration == 0 {
            return Ok(false);
        }
        let mut member = self.members.swap_remove(index);
        for _ in 0..self.config.steps_per_iteration {
            self.train_step(&mut member, training, cache.as_deref_mut(), passes)?;
        }
        let replaced = member.age > self.config.max_steps;
        if replaced {
            let trajectory = self.next_trajectory;
            self.next_trajectory += 1;
            member = self.new_member(training.setting, trajectory)?;
            while member.age < self.config.min_steps {
                self.train_step(&mut member, training, cache.as_deref_mut(), passes)?;
            }
        }
        self.members.push(member);
        let last = self.members.len() - 1;
        self.members.swap(index, last);
        Ok(replaced)
    }

    fn new_member(&self, setting: &Setting, trajectory: u64) -> Result<Member, DistillError> {
        let model = setting.network(self.seed.child("pool/init", trajectory))?;
        model.set_trainable(false);
        Ok(Member {
            optimizer: Sgd::new(sgd_config(&self.config), &model.parameters()),
            model,
            age: 0,
            trajectory,
            accuracy: 0.0,
            plan: Plan::default(),
        })
    }

    /// One SGD step on the next mini-batch of the member's epoch.
    fn train_step(
        &self,
        member: &mut Member,
        training: Training<'_>,
        cache: Option<&mut PerturbationCache>,
        passes: &mut RunPasses,
    ) -> Result<f64, DistillError> {
        let Training { setting, curriculum } = training;
        let seed = self.seed.child("pool/train", member.trajectory).child("step", member.age);
        if member.plan.is_finished() {
            let progress = member.age as f64 / self.config.max_steps.max(1) as f64;
            member.plan = Plan::new(epoch_order(&member.model, training, progress, seed, cache, passes)?);
        }
        let positions = member.plan.next(self.config.batch_size);
        let (images, labels) = setting.data.batch(&positions, setting.device);
        let draw = self.config.dsa.draw(&mut seed.stream("dsa", 0));
        let (mean, std) = (&setting.input.mean, &setting.input.std);
        let mut images = self.config.dsa.apply_normalized(&images, &draw, mean, std);
        let mut weights = None;
        let weighs = matches!(curriculum, Curriculum::Weight(_));
        if self.config.adversarial || weighs {
            // Augmentation may leave the box; attacks live inside it.
            images = images.clamp(0.0, 1.0);
            let ids: Vec<u64> = positions.iter().map(|&position| position as u64).collect();
            let found = setting.companion().make(&member.model, &images, &labels, &ids, seed, None)?;
            *passes += &found;
            weights = weighs.then(|| curriculum.weights(&found.scores));
            if self.config.adversarial {
                images = found.images;
            }
        }
        let parameters = member.model.parameters();
        member.model.set_trainable(true);
        let (value, right) = tch::with_grad(|| {
            let logits = member.model.logits(&images);
            let right = logits.argmax(1, false).eq_tensor(&labels).sum(Kind::Int64);
            let entropy = loss::ce(&logits, &labels);
            let value = match &weights {
                Some(weights) => (entropy * weights).mean(Kind::Float),
                None => entropy.mean(Kind::Float),
            };
            let value = match &self.config.curvature {
                Some(config) => value + curvature(&member.model, &images, &labels, config, std),
                None => value,
            };
            (value, right)
        });
        let handles: Vec<&Tensor> = parameters.iter().map(|(_, tensor)| tensor).collect();
        let step = gradients(&value, &handles);
        member.model.set_trainable(false);
        // The penalty differentiates three more forward passes.
        let n_passes = positions.len() as u64 * if self.config.curvature.is_some() { 4 } else { 1 };
        passes.forward += n_passes;
        passes.backward += n_passes;
        member.optimizer.step(&parameters, &step);
        let accuracy = right.int64_value(&[]) as f64 / positions.len() as f64;
        let kept = if member.age == 0 { 0.0 } else { ACCURACY_KEPT };
        member.accuracy = kept * member.accuracy + (1.0 - kept) * accuracy;
        member.age += 1;
        let value = value.double_value(&[]);
        if !value.is_finite() {
            let what = "training loss of a network on real images";
            return Err(DistillError::NotFinite { what, at: member.age, value });
        }
        Ok(value)
    }

    pub(crate) fn state(&self, into: &mut BTreeMap<String, Tensor>) {
        into.insert("pool.next-trajectory".to_owned(), Tensor::from_slice(&[self.next_trajectory as i64]));
        for (index, member) in self.members.iter().enumerate() {
            member.state(&format!("pool.{index:04}"), into);
        }
        if let Some(member) = &self.growing {
            member.state("pool.growing", into);
        }
    }

    pub(crate) fn load_state(
        &mut self,
        state: &BTreeMap<String, Tensor>,
        training: Training<'_>,
    ) -> Result<(), DistillError> {
        let setting = training.setting;
        let PoolConfig { trajectories, snapshots, max_steps, .. } = self.config;
        // An update replaces one network at most.
        let most = trajectories as u64 + setting.config.iterations;
        self.next_trajectory = integer(state, "pool.next-trajectory", 0..=most as i64)? as u64;
        let newest = self.next_trajectory as i64 - 1;
        self.members.clear();
        loop {
            let prefix = format!("pool.{:04}", self.members.len());
            match self.restore_member(state, &prefix, setting, max_steps, 0..=newest)? {
                Some(member) => self.members.push(member),
                None => break,
            }
        }
        let unfinished = max_steps.saturating_sub(1);
        self.growing = self.restore_member(state, "pool.growing", setting, unfinished, newest..=newest)?;
        // With another number the pool would never be full.
        let n_complete = self.next_trajectory.min(trajectories as u64) as usize;
        let n_expected = self.growing.as_ref().map_or(n_complete * snapshots, |growing| {
            let n_taken = snapshot_ages(&self.config).iter().filter(|&&age| age <= growing.age).count();
            n_complete.saturating_sub(1) * snapshots + n_taken
        });
        if self.members.len() != n_expected {
            let expected = format!("followed by {n_expected} networks");
            return Err(wrong("pool.next-trajectory", expected, self.members.len()));
        }
        Ok(())
    }

    /// The network under `prefix`, if there is one, at most `most_steps` steps old and of one of `trajectories`.
    fn restore_member(
        &self,
        state: &Entries,
        prefix: &str,
        setting: &Setting,
        most_steps: u64,
        trajectories: RangeInclusive<i64>,
    ) -> Result<Option<Member>, DistillError> {
        let name = |part: &str| format!("{prefix}.{part}");
        if !state.contains_key(&name("age")) {
            return Ok(None);
        }
        let trajectory = integer(state, &name("trajectory"), trajectories)? as u64;
        let mut member = self.new_member(setting, trajectory)?;
        member.age = integer(state, &name("age"), 0..=most_steps as i64)? as u64;
        member.accuracy = number(state, &name("accuracy"), 0.0..=1.0)?;
        member.plan = Plan::from_state(state, &name("plan"), setting.data.len())?;
        let model = member.model.load_state(&section(state, &name("model.")));
        model.map_err(|error| within(prefix, error))?;
        let optimizer = member.optimizer.load_state(&section(state, &name("sgd.")));
        optimizer.map_err(|error| within(prefix, error))?;
        Ok(Some(member))
    }
}

impl Member {
    fn copy(&self, config: &PoolConfig) -> Result<Self, DistillError> {
        let model = self.model.snapshot()?;
        model.set_trainable(false);
        let mut optimizer = Sgd::new(sgd_config(config), &model.parameters());
        optimizer.load_state(&self.optimizer.state())?;
        Ok(Self { model, optimizer, plan: self.plan.clone(), ..*self })
    }

    fn state(&self, prefix: &str, into: &mut BTreeMap<String, Tensor>) {
        into.insert(format!("{prefix}.age"), Tensor::from_slice(&[self.age as i64]));
        into.insert(format!("{prefix}.accuracy"), Tensor::from_slice(&[self.accuracy]));
        into.insert(format!("{prefix}.trajectory"), Tensor::from_slice(&[self.trajectory as i64]));
        into.insert(format!("{prefix}.plan"), self.plan.state());
        put_section(into, &format!("{prefix}.model."), self.model.state());
        put_section(into, &format!("{prefix}.sgd."), self.optimizer.state());
    }
}

/// One network that is trained on real images for `steps` steps, as the pool's are: a teacher, an expert.
#[derive(Debug)]
pub(crate) struct Learner {
    trainer: Pool,
    member: Member,
    steps: u64,
    schedule: LrSchedule,
}

impl Learner {
    /// * `trajectory`: selects initialization and random streams under `seed`.
    pub(crate) fn new(
        config: &PoolConfig,
        steps: u64,
        schedule: LrSchedule,
        seed: Seed,
        trajectory: u64,
        setting: &Setting,
    ) -> Result<Self, DistillError> {
        let trainer = Pool::new(PoolConfig { max_steps: steps, ..config.clone() }, seed);
        let member = trainer.new_member(setting, trajectory)?;
        Ok(Self { trainer, member, steps, schedule })
    }

    pub(crate) const fn steps_done(&self) -> u64 {
        self.member.age
    }

    /// Training steps in all.
    pub(crate) const fn steps(&self) -> u64 {
        self.steps
    }

    pub(crate) const fn is_trained(&self) -> bool {
        self.member.age >= self.steps
    }

    pub(crate) const fn model(&self) -> &Model {
        &self.member.model
    }

    pub(crate) fn train_step(&mut self, training: Training<'_>, passes: &mut RunPasses) -> Result<f64, DistillError> {
        let age = self.member.age;
        let epoch = age / training.setting.data.len().div_ceil(self.trainer.config.batch_size) as u64;
        self.member.optimizer.set_lr(self.trainer.config.lr * self.schedule.factor(age, self.steps, epoch));
        self.trainer.train_step(&mut self.member, training, None, passes)
    }

    pub(crate) fn state(&self, prefix: &str, into: &mut BTreeMap<String, Tensor>) {
        self.member.state(prefix, into);
    }

    pub(crate) fn load_state(
        &mut self,
        state: &BTreeMap<String, Tensor>,
        prefix: &str,
        setting: &Setting,
    ) -> Result<(), DistillError> {
        let own = self.member.trajectory as i64;
        let restored = self.trainer.restore_member(state, prefix, setting, self.steps, own..=own)?;
        self.member = restored.ok_or_else(|| DistillError::State(format!("there is no `{prefix}.age`")))?;
        Ok(())
    }
}

/// Ages at which a trajectory enters the pool, evenly spaced from `min_steps` to `max_steps`.
fn snapshot_ages(config: &PoolConfig) -> Vec<u64> {
    let (min, max, n) = (config.min_steps, config.max_steps, config.snapshots as u64);
    if n == 1 { vec![max] } else { (0..n).map(|k| min + (max - min) * k / (n - 1)).collect() }
}

const fn sgd_config(config: &PoolConfig) -> SgdConfig {
    SgdConfig { lr: config.lr, momentum: config.momentum, weight_decay: config.weight_decay }
}

/// The order of a new epoch: scores every real image first, where the curriculum needs it.
///
/// Weights are made batch by batch, from the companions that are trained on.
fn epoch_order(
    model: &Model,
    training: Training<'_>,
    progress: f64,
    seed: Seed,
    mut cache: Option<&mut PerturbationCache>,
    passes: &mut RunPasses,
) -> Result<Vec<usize>, DistillError> {
    let Training { setting, curriculum } = training;
    let n = setting.data.len();
    let mut scores = vec![0.0f32; n];
    if curriculum.needs_scores() && !matches!(curriculum, Curriculum::Weight(_)) {
        let all: Vec<usize> = (0..n).collect();
        for positions in all.chunks(SCORING_BATCH) {
            let (images, labels) = setting.data.batch(positions, setting.device);
            let ids: Vec<u64> = positions.iter().map(|&position| position as u64).collect();
            let found = setting.companion().make(model, &images, &labels, &ids, seed, cache.as_deref_mut())?;
            *passes += &found;
            let batch = Vec::<f32>::try_from(&found.scores).expect("scores are f32 [N]");
            scores[positions[0]..positions[0] + positions.len()].copy_from_slice(&batch);
        }
    }
    Ok(curriculum.order(&scores, &setting.data.labels().to_vec(), progress, &mut seed.stream("order", 0)))
}

/// GUARD's penalty, a scalar; see [`CurvatureConfig`].
///
/// * `images`: f32 `[N, C, H, W]`, pixels; `labels`: i64 `[N]`; `std`: deviation of each channel.
pub(crate) fn curvature(
    model: &Model,
    images: &Tensor,
    labels: &Tensor,
    config: &CurvatureConfig,
    std: &[f64],
) -> Tensor {
    let std = Tensor::from_slice(std).to_kind(Kind::Float).to_device(images.device()).view([1, -1, 1, 1]);
    let tracked = images.detach().set_requires_grad(true);
    let value = |x: &Tensor| loss::ce(&model.logits(x), labels).mean(Kind::Float);
    let length = |x: &Tensor| (x.square().sum_dim_intlist([1i64, 2, 3].as_slice(), true, Kind::Float) + 1e-14).sqrt();
    tch::with_grad(|| {
        // A derivative by normalized values is the deviation times the one by pixels.
        let slope = gradients(&value(&tracked), &[&tracked]).swap_remove(0) * &std;
        let step = &slope / length(&slope) * config.step;
        let there = &tracked + step.detach() * &std;
        let difference = value(&there) - value(&tracked);
        let change = Tensor::run_backward(&[difference], &[&tracked], true, true).swap_remove(0) * &std;
        length(&change).mean(Kind::Float) * config.weight
    })
}
