//! The pool of adversarially trained networks that the synthetic images are optimized through, and other networks that
//! are trained as its networks are.

use std::ops::RangeInclusive;

use c2r_base::{Seed, grad::gradients, loss};
use c2r_core::{curriculum::Curriculum, ls_pgd::PerturbationCache};
use c2r_models::Model;
use c2r_train::{
    Augmentation, LrSchedule, Sgd, SgdConfig, parameter_gradients, read,
    state::{State, StateError},
};
use rand::Rng;
use tch::{Kind, Tensor};

use crate::{
    config::{CurvatureConfig, Place, PoolConfig},
    context::Context,
    error::{DistillError, check_scores},
    method::{Step, TRAINING_LOSS},
    parts::{companions::Attacked, epoch::Epoch},
};

/// Images per batch when a whole epoch is scored for the curriculum.
const SCORING_BATCH: usize = 256;

/// Share of a network's average accuracy that is kept at each training step.
const ACCURACY_KEPT: f64 = 0.9;

/// How networks are trained on real images.
#[derive(Debug)]
struct Recipe {
    config: PoolConfig,
    curriculum: Curriculum,
    seed: Seed,
}

/// A network with everything that its training continues from.
#[derive(Debug)]
struct PoolNetwork {
    model: Model,
    optimizer: Sgd,
    /// Training steps so far.
    age: u64,
    /// Which initialization it comes from; selects its random streams.
    trajectory: u64,
    /// Moving average of the accuracy on its own training batches, before each step; 0 before the first. A scalar f64, on the
    /// device.
    accuracy: Tensor,
    epoch: Epoch,
    augmentation: Augmentation,
}

/// Networks of several ages, growing one training step at a time.
#[derive(Debug)]
pub(crate) struct Pool {
    networks: Vec<PoolNetwork>,
    /// The trajectory in training while the pool is filled.
    growing: Option<PoolNetwork>,
    next_trajectory: u64,
    recipe: Recipe,
}

impl Pool {
    /// An empty pool.
    ///
    /// * `curriculum`: in which order its networks see the real images.
    pub(crate) const fn new(config: PoolConfig, curriculum: Curriculum, seed: Seed) -> Self {
        let recipe = Recipe { config, curriculum, seed };
        Self { networks: Vec::new(), growing: None, next_trajectory: 0, recipe }
    }

    /// Number of networks that are ready.
    pub(crate) const fn len(&self) -> usize {
        self.networks.len()
    }

    /// Training steps that filling the pool takes.
    pub(crate) const fn steps_to_fill(config: &PoolConfig) -> u64 {
        config.trajectories as u64 * config.max_steps
    }

    /// Networks that each of `iterations` updates trains; the first ones may have fewer.
    pub(crate) fn trained_per_iteration(config: &PoolConfig, iterations: u64) -> u64 {
        let pushed = if config.push_every > 0 { Self::newcomers(config, iterations) as usize } else { 0 };
        let most = config.alive.unwrap_or(usize::MAX).min(config.trajectories * config.snapshots + pushed);
        config.networks_per_iteration.clamp(1, most.max(1)) as u64
    }

    /// Networks that join the pool in `iterations` updates: by time, or in place of one that is too old, if each is trained
    /// equally often.
    pub(crate) fn newcomers(config: &PoolConfig, iterations: u64) -> u64 {
        if config.push_every > 0 {
            return iterations.div_ceil(config.push_every);
        }
        let n_networks = (config.trajectories * config.snapshots).max(1) as u64;
        let n_trained = Self::trained_per_iteration(config, iterations);
        let steps = iterations * n_trained * config.steps_per_iteration / n_networks;
        // A network is replaced by the step that takes it past `max_steps`.
        let life = config.max_steps + 1 - config.min_steps;
        let of = |age: u64| (steps + life).saturating_sub(config.max_steps + 1 - age) / life;
        config.trajectories as u64 * snapshot_ages(config).into_iter().map(of).sum::<u64>()
    }

    /// Training steps of the filling that are done, and all of them.
    pub(crate) fn filling(&self) -> (u64, u64) {
        let config = &self.recipe.config;
        let complete = self.next_trajectory.saturating_sub(u64::from(self.growing.is_some()));
        // A trajectory of no steps is a unit of work, too.
        let unit = config.max_steps.max(1);
        let complete = complete.min(config.trajectories as u64) * unit;
        let done = complete + self.growing.as_ref().map_or(0, |network| network.age);
        let total = config.trajectories as u64 * unit;
        (done.min(total), total)
    }

    /// Whether the first networks are there.
    pub(crate) const fn is_full(&self) -> bool {
        self.growing.is_none() && self.next_trajectory >= self.recipe.config.trajectories as u64
    }

    pub(crate) fn network(&self, index: usize) -> &Model {
        &self.networks[index].model
    }

    /// Moving average of a network's accuracy on its training batches, in `[0, 1]`, a scalar f64.
    pub(crate) fn accuracy(&self, index: usize) -> &Tensor {
        &self.networks[index].accuracy
    }

    /// One training step of the trajectory in training; takes snapshots as they fall due.
    pub(crate) fn fill_step(
        &mut self,
        step: &mut Step<'_>,
        cache: Option<&mut PerturbationCache>,
    ) -> Result<(), DistillError> {
        let context = step.context;
        let Self { networks, recipe, .. } = self;
        let mut network = match self.growing.take() {
            Some(network) => network,
            None => {
                let trajectory = self.next_trajectory;
                self.next_trajectory += 1;
                let network = recipe.new_network(context, trajectory)?;
                recipe.take_snapshots(&network, context, networks)?;
                network
            }
        };
        if network.age < recipe.config.max_steps {
            recipe.train_step(&mut network, step, cache)?;
            recipe.take_snapshots(&network, context, networks)?;
        }
        if network.age < recipe.config.max_steps {
            self.growing = Some(network);
        }
        Ok(())
    }

    /// Lets a young network join where one is due before update `t`, with `push-every`.
    ///
    /// Returns whether the one that joined first has left: the others have moved up by one.
    pub(crate) fn push(
        &mut self,
        t: u64,
        step: &mut Step<'_>,
        cache: Option<&mut PerturbationCache>,
    ) -> Result<bool, DistillError> {
        let PoolConfig { push_every, alive, .. } = self.recipe.config;
        if push_every == 0 || !t.is_multiple_of(push_every) {
            return Ok(false);
        }
        self.networks.push(self.recipe.young_network(self.next_trajectory, step, cache)?);
        self.next_trajectory += 1;
        let full = alive.is_some_and(|alive| self.networks.len() > alive);
        if full {
            self.networks.remove(0);
        }
        Ok(full)
    }

    /// The networks that an update trains: the one that was drawn, or `networks-per-iteration` random ones.
    pub(crate) fn to_train(&self, drawn: usize, rng: &mut impl Rng) -> Vec<usize> {
        let n = self.recipe.config.networks_per_iteration;
        if n == 0 {
            return vec![drawn];
        }
        let mut all: Vec<usize> = (0..self.networks.len()).collect();
        let n = n.min(all.len());
        for at in 0..n {
            let other = rng.random_range(at..all.len());
            all.swap(at, other);
        }
        all.truncate(n);
        all
    }

    /// Trains a network further; without `push-every`, one past its age makes room for a young one.
    ///
    /// Returns whether the network was replaced: whatever is remembered of its embeddings is void then.
    pub(crate) fn grow(
        &mut self,
        index: usize,
        step: &mut Step<'_>,
        mut cache: Option<&mut PerturbationCache>,
    ) -> Result<bool, DistillError> {
        let Self { networks, recipe, next_trajectory, .. } = self;
        let network = &mut networks[index];
        for _ in 0..recipe.config.steps_per_iteration {
            recipe.train_step(network, step, cache.as_deref_mut())?;
        }
        let PoolConfig { steps_per_iteration, push_every, max_steps, .. } = recipe.config;
        let replaced = push_every == 0 && steps_per_iteration > 0 && network.age > max_steps;
        if replaced {
            *network = recipe.young_network(*next_trajectory, step, cache)?;
            *next_trajectory += 1;
        }
        Ok(replaced)
    }

    /// Visits all networks.
    pub(crate) fn state(&mut self, context: &Context, state: &mut State<'_>) -> Result<(), DistillError> {
        let PoolConfig { trajectories, snapshots, max_steps, .. } = self.recipe.config;
        let PoolConfig { networks_per_iteration, push_every, alive, steps_per_iteration, .. } = self.recipe.config;
        let iterations = context.common.iterations;
        // An update adds one network at most, or replaces those that it trains.
        let most = trajectories as u64 + iterations * networks_per_iteration.max(1) as u64;
        let oldest = if push_every > 0 {
            max_steps.saturating_add(iterations.saturating_mul(steps_per_iteration))
        } else {
            max_steps
        };
        state.integer("pool.next-trajectory", &mut self.next_trajectory, 0..=most as i64)?;
        let newest = self.next_trajectory as i64 - 1;
        let prefix = |index: usize| format!("pool.{index:04}.");
        if state.reads() {
            let stored = (0..).take_while(|&index| state.has(&format!("{}age", prefix(index)))).count();
            self.networks = (0..stored).map(|_| self.recipe.new_network(context, 0)).collect::<Result<_, _>>()?;
        }
        let n = context.data.len();
        for (index, network) in self.networks.iter_mut().enumerate() {
            state.section(&prefix(index), |state| network.state(state, n, oldest, 0..=newest))?;
        }
        state.optional("pool.growing.age", &mut self.growing, || self.recipe.new_network(context, 0))?;
        if let Some(network) = &mut self.growing {
            let unfinished = max_steps.saturating_sub(1);
            state.section("pool.growing.", |state| network.state(state, n, unfinished, newest..=newest))?;
        }
        // With another number the pool would never be full.
        let n_complete = self.next_trajectory.min(trajectories as u64) as usize;
        let n_pushed = if push_every > 0 { self.next_trajectory as usize - n_complete } else { 0 };
        let n_now = (n_complete * snapshots + n_pushed).min(alive.unwrap_or(usize::MAX));
        let n_expected = self.growing.as_ref().map_or(n_now, |growing| {
            let n_taken = snapshot_ages(&self.recipe.config).iter().filter(|&&age| age <= growing.age).count();
            n_complete.saturating_sub(1) * snapshots + n_taken
        });
        if self.networks.len() != n_expected {
            let expected = format!("followed by {n_expected} networks");
            return Err(StateError::wrong("pool.next-trajectory", expected, self.networks.len()).into());
        }
        Ok(())
    }
}

impl Recipe {
    fn new_network(&self, context: &Context, trajectory: u64) -> Result<PoolNetwork, DistillError> {
        let model = context.network(self.seed.child("pool/init", trajectory))?;
        let PoolConfig { lr, momentum, weight_decay, .. } = self.config;
        let optimizer = Sgd::new(SgdConfig { lr, momentum, weight_decay }, &model.parameters());
        let accuracy = Tensor::zeros([], (Kind::Double, context.device));
        let (epoch, augmentation) = (Epoch::default(), self.augmentation(context));
        Ok(PoolNetwork { model, optimizer, age: 0, trajectory, accuracy, epoch, augmentation })
    }

    /// A network of `min-steps`.
    fn young_network(
        &self,
        trajectory: u64,
        step: &mut Step<'_>,
        mut cache: Option<&mut PerturbationCache>,
    ) -> Result<PoolNetwork, DistillError> {
        let mut network = self.new_network(step.context, trajectory)?;
        while network.age < self.config.min_steps {
            self.train_step(&mut network, step, cache.as_deref_mut())?;
        }
        Ok(network)
    }

    fn augmentation(&self, context: &Context) -> Augmentation {
        context.augmentation(&self.config.dsa, self.config.batch_size.min(context.data.len()))
    }

    /// Puts copies of `network` into the pool if it has one of the ages for that.
    fn take_snapshots(
        &self,
        network: &PoolNetwork,
        context: &Context,
        pool: &mut Vec<PoolNetwork>,
    ) -> Result<(), DistillError> {
        for _ in snapshot_ages(&self.config).iter().filter(|&&age| age == network.age) {
            let model = network.model.snapshot()?;
            model.set_trainable(false);
            pool.push(PoolNetwork {
                model,
                optimizer: network.optimizer.copy(),
                accuracy: network.accuracy.copy(),
                epoch: Epoch::new(network.epoch.rest()),
                augmentation: self.augmentation(context),
                ..*network
            });
        }
        Ok(())
    }

    /// One SGD step on the next mini-batch of the network's epoch. The loss is watched.
    fn train_step(
        &self,
        network: &mut PoolNetwork,
        step: &mut Step<'_>,
        cache: Option<&mut PerturbationCache>,
    ) -> Result<(), DistillError> {
        let context = step.context;
        let Self { config, curriculum, seed } = self;
        let (age, trained) = (network.age, seed.child("pool/train", network.trajectory));
        let seed = trained.child("step", age);
        if network.epoch.is_finished() {
            let progress = (network.age as f64 / config.max_steps.max(1) as f64).min(1.0);
            let scores = epoch_scores(&network.model, curriculum, seed, step, cache)?;
            check_scores(&scores, age + 1)?;
            let labels = context.data.labels().to_vec();
            let order = curriculum.order(&scores, &labels, progress, &mut seed.stream("order", 0));
            network.epoch = Epoch::new(order);
        }
        let rows = network.epoch.next(config.batch_size, context.device);
        let (images, labels) = context.real(&rows);
        let dsa_rng = |age| trained.child("step", age).stream("dsa", 0);
        // With `push-every` nobody knows when the last step is.
        let end = if config.push_every > 0 { u64::MAX } else { config.max_steps + 1 };
        let mut images = network.augmentation.apply(&images, age, end, dsa_rng);
        let mut weights = None;
        let weighs = matches!(curriculum, Curriculum::Weight(_));
        if config.adversarial || weighs {
            // Augmentation may leave the box; attacks live inside it.
            images = images.clamp(0.0, 1.0);
            let attacked = Attacked { images: &images, labels: &labels, positions: &rows.positions };
            let companions = context.attack(Place::Pool, &network.model, attacked, seed, None, step.passes)?;
            weights = weighs.then(|| curriculum.weights(&companions.scores));
            if config.adversarial {
                images = companions.images;
            }
        }
        let model = &network.model;
        let mut right = None;
        let (value, gradients) = parameter_gradients(model, || {
            let logits = model.logits(&images);
            right = Some(logits.argmax(1, false).eq_tensor(&labels).mean(Kind::Double));
            let entropy = loss::ce(&logits, &labels);
            let value = match &weights {
                Some(weights) => (entropy * weights).mean(Kind::Float),
                None => entropy.mean(Kind::Float),
            };
            match &config.curvature {
                Some(config) => value + curvature(model, &images, &labels, config, &context.std),
                None => value,
            }
        });
        // The penalty differentiates three more forward passes.
        let n_passes = rows.positions.len() as u64 * if config.curvature.is_some() { 4 } else { 1 };
        step.passes.forward += n_passes;
        step.passes.backward += n_passes;
        network.optimizer.step(&model.parameters(), &gradients);
        let kept = if age == 0 { 0.0 } else { ACCURACY_KEPT };
        let right = right.expect("the loss was computed");
        network.accuracy = &network.accuracy * kept + right * (1.0 - kept);
        network.age += 1;
        step.watch.push((TRAINING_LOSS, network.age), &value);
        Ok(())
    }
}

impl PoolNetwork {
    /// Visits a network that is at most `most_steps` steps old and of one of `trajectories`, trained on `n` images.
    fn state(
        &mut self,
        state: &mut State<'_>,
        n: usize,
        most_steps: u64,
        trajectories: RangeInclusive<i64>,
    ) -> Result<(), StateError> {
        state.integer("age", &mut self.age, 0..=most_steps as i64)?;
        let mut accuracy = self.accuracy.double_value(&[]);
        state.number("accuracy", &mut accuracy, 0.0..=1.0)?;
        let _ = self.accuracy.fill_(accuracy);
        state.integer("trajectory", &mut self.trajectory, trajectories)?;
        self.epoch.state(state, n)?;
        state.model("model.", &self.model)?;
        state.section("sgd.", |state| self.optimizer.state(state))
    }
}

/// One network that is trained on real images as the pool's are: a teacher, an expert.
#[derive(Debug)]
pub(crate) struct NetworkTraining {
    /// Its `max-steps` are the steps of this training.
    recipe: Recipe,
    network: PoolNetwork,
    schedule: LrSchedule,
}

impl NetworkTraining {
    /// * `config`: with `max-steps` training steps; `trajectory`: selects initialization and random streams under `seed`.
    pub(crate) fn new(
        config: PoolConfig,
        curriculum: Curriculum,
        schedule: LrSchedule,
        seed: Seed,
        trajectory: u64,
        context: &Context,
    ) -> Result<Self, DistillError> {
        let recipe = Recipe { config, curriculum, seed };
        Ok(Self { network: recipe.new_network(context, trajectory)?, recipe, schedule })
    }

    pub(crate) const fn steps_done(&self) -> u64 {
        self.network.age
    }

    /// Training steps in all.
    pub(crate) const fn steps(&self) -> u64 {
        self.recipe.config.max_steps
    }

    pub(crate) const fn is_trained(&self) -> bool {
        self.network.age >= self.steps()
    }

    pub(crate) const fn model(&self) -> &Model {
        &self.network.model
    }

    pub(crate) fn train_step(&mut self, step: &mut Step<'_>) -> Result<(), DistillError> {
        let (age, config) = (self.network.age, &self.recipe.config);
        let epoch = age / step.context.data.len().div_ceil(config.batch_size) as u64;
        self.network.optimizer.set_lr(config.lr * self.schedule.factor(age, self.steps(), epoch));
        self.recipe.train_step(&mut self.network, step, None)
    }

    pub(crate) fn state(&mut self, context: &Context, state: &mut State<'_>) -> Result<(), StateError> {
        let own = self.network.trajectory as i64;
        self.network.state(state, context.data.len(), self.recipe.config.max_steps, own..=own)
    }
}

/// Ages at which a trajectory enters the pool, evenly spaced from `min_steps` to `max_steps`.
fn snapshot_ages(config: &PoolConfig) -> Vec<u64> {
    let (min, max, n) = (config.min_steps, config.max_steps, config.snapshots as u64);
    if n == 1 { vec![max] } else { (0..n).map(|k| min + (max - min) * k / (n - 1)).collect() }
}

/// What a new epoch is ordered by: the score of every real image, where the curriculum needs it.
///
/// Weights are made batch by batch, from the companions that are trained on.
fn epoch_scores(
    model: &Model,
    curriculum: &Curriculum,
    seed: Seed,
    step: &mut Step<'_>,
    mut cache: Option<&mut PerturbationCache>,
) -> Result<Vec<f32>, DistillError> {
    let context = step.context;
    let n = context.data.len();
    let mut scores = vec![0.0f32; n];
    if curriculum.needs_scores() && !matches!(curriculum, Curriculum::Weight(_)) {
        let all = context.batches.rows((0..n).collect());
        let mut scored = Vec::new();
        for start in (0..n).step_by(SCORING_BATCH) {
            let rows = all.part(start, SCORING_BATCH.min(n - start));
            let (images, labels) = context.real(&rows);
            let attacked = Attacked { images: &images, labels: &labels, positions: &rows.positions };
            scored.push(context.attack(Place::Pool, model, attacked, seed, cache.as_deref_mut(), step.passes)?.scores);
        }
        scores = read(&scored).into_iter().map(|score| score as f32).collect();
    }
    Ok(scores)
}

/// GUARD's penalty, a scalar; see [`CurvatureConfig`].
///
/// * `images`: f32 `[N, C, H, W]`, pixels; `labels`: i64 `[N]`; `std`: deviation of each channel, f32 `[1, C, 1, 1]`.
fn curvature(model: &Model, images: &Tensor, labels: &Tensor, config: &CurvatureConfig, std: &Tensor) -> Tensor {
    let tracked = images.detach().set_requires_grad(true);
    // A sum, so that the gradient at an image is that of its own loss, whatever the size of the batch.
    let value = |x: &Tensor| loss::ce(&model.logits(x), labels).sum(Kind::Float);
    let length = |x: &Tensor| (x.square().sum_dim_intlist([1i64, 2, 3].as_slice(), true, Kind::Float) + 1e-14).sqrt();
    tch::with_grad(|| {
        // A derivative by normalized values is the deviation times the one by pixels.
        let slope = gradients(&value(&tracked), &[&tracked]).swap_remove(0) * std;
        let step = &slope / length(&slope) * config.step;
        let there = &tracked + step.detach() * std;
        let difference = value(&there) - value(&tracked);
        let change = Tensor::run_backward(&[difference], &[&tracked], true, true).swap_remove(0) * std;
        length(&change).mean(Kind::Float) * config.weight
    })
}

#[cfg(test)]
mod tests {
    use c2r_base::grad::input_gradient;
    use c2r_models::ModelInput;
    use tch::Device;

    use super::*;

    /// Against the definition, image by image: neither the size of the batch nor the other images matter.
    #[test]
    fn the_penalty_is_a_mean_over_images() {
        let spec = "ConvNet-D2-W4-IN".parse().unwrap();
        let (mean, std) = (vec![0.4, 0.5], vec![0.2, 0.3]);
        let input = ModelInput { channels: 2, height: 8, width: 8, n_classes: 3, mean, std };
        let model = Model::new(&spec, &input, Seed::new(3), Device::Cpu).unwrap();
        let std = Tensor::from_slice(&[0.2_f32, 0.3]).view([1, 2, 1, 1]);
        let images =
            (Tensor::arange(5 * 2 * 8 * 8, (Kind::Float, Device::Cpu)) * 0.7).sin().view([5, 2, 8, 8]) * 0.5 + 0.5;
        let labels = Tensor::from_slice(&[0_i64, 1, 2, 2, 0]);
        let config = CurvatureConfig { weight: 0.7, step: 1.5 };
        let slope = |x: &Tensor, label: &Tensor| input_gradient(x, |x| loss::ce(&model.logits(x), label)).0 * &std;
        let mut expected = 0.0;
        for row in 0..5 {
            let (image, label) = (images.narrow(0, row, 1), labels.narrow(0, row, 1));
            let here = slope(&image, &label);
            let there = slope(&(&image + &here / here.norm() * 1.5 * &std), &label);
            expected += 0.7 / 5.0 * (there - here).norm().double_value(&[]);
        }
        let found = curvature(&model, &images, &labels, &config, &std).double_value(&[]);
        assert!((found - expected).abs() < 1e-4 * expected, "{found} instead of {expected}");
    }
}
