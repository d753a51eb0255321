use c2r_base::Seed;
use c2r_data::Rows;
use c2r_models::Model;
use rand::seq::SliceRandom;
use tch::{Kind, Tensor};

use crate::{
    AdversarialConfig, AdversarialLoss, Ahead, Augmentation, Order, Sgd, TrainConfig, TrainError, TrainSource, Unread,
    adversarial::{attack, cross_entropy, divergence, start_noise},
    cutmix::CutMix,
    parameter_gradients,
    ranges::in_range,
    source::{LoadedSource, Teacher},
    state::State,
};

/// Steps after which their losses are read from the device.
const LOSSES_READ_EVERY: u64 = 50;

/// A step of a training run that is done.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct TrainStep {
    /// Zero-based step.
    pub step: u64,
    /// Total number of steps.
    pub steps: u64,
    /// Zero-based pass over the training set.
    pub epoch: u64,
    /// Mean loss of the batch, before the step, where losses are read: at every 50th step and the last one.
    pub loss: Option<f64>,
    /// Learning rate of the step.
    pub lr: f64,
}

/// What came of a training run.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct TrainSummary {
    /// Optimizer steps.
    pub steps: u64,
    /// Passes over the training set, the last one perhaps not whole.
    pub epochs: u64,
    /// Mean loss over the images of the last epoch, as far as it came.
    pub final_loss: f64,
}

/// Trains `model` to the end: [`Trainer`] with nothing between the steps.
///
/// Everything random (order, augmentation, starts of attacks) comes from `seed`; the same seed gives the same
/// bytes on the same CPU with the same number of threads. On a GPU, some gradients are added in any order.
///
/// # Errors
/// [`TrainError::Config`] and [`TrainError::Source`] before anything is done, [`TrainError::NotFinite`] for a loss
/// that is NaN or infinite; the network is then of no use.
pub fn train(
    model: &mut Model,
    source: &TrainSource<'_>,
    config: &TrainConfig,
    seed: Seed,
    observer: &mut dyn FnMut(TrainStep),
) -> Result<TrainSummary, TrainError> {
    let mut trainer = Trainer::new(model, source, config, seed)?;
    while let Some(event) = trainer.step()? {
        observer(event);
    }
    Ok(trainer.summary())
}

/// A training run, step by step.
///
/// The order of epoch e is a permutation from the seed's stream e (or that of storage: [`Order`]), and what step t draws comes from stream t, so
/// a run that is continued from [`Trainer::state`] ends with the same bytes as one that never stopped (see [`train`]).
#[derive(Debug)]
pub struct Trainer<'a> {
    model: &'a mut Model,
    source: LoadedSource<'a>,
    config: TrainConfig,
    seed: Seed,
    sgd: Sgd,
    next_step: u64,
    steps: u64,
    /// Of the epoch that was computed last.
    order: Option<(u64, Rows)>,
    augmentation: Augmentation,
    /// Noise at the starts of attacks.
    starts: Ahead,
    unread: Unread<Taken>,
    /// Sum of losses over images and number of images, in the epoch of the last step whose loss was read.
    epoch_loss: (f64, u64),
}

/// A step that was taken.
#[derive(Debug)]
struct Taken {
    step: u64,
    begins_epoch: bool,
    n_images: u64,
    lr: f64,
}

impl<'a> Trainer<'a> {
    /// Checks everything; no step is done yet.
    ///
    /// # Errors
    /// [`TrainError::Config`] or [`TrainError::Source`].
    pub fn new(
        model: &'a mut Model,
        source: &TrainSource<'a>,
        config: &TrainConfig,
        seed: Seed,
    ) -> Result<Self, TrainError> {
        config.check()?;
        if let Some(AdversarialConfig { norm, epsilon, .. }) = config.adversarial {
            let is_ball = epsilon.value() < norm.diameter(model.input().image_shape());
            in_range(
                is_ball,
                "adversarial.epsilon",
                "less than the distance between a black and a white image",
                epsilon,
            )?;
        }
        let device = model.device();
        let source = source.load(model.input(), config.labels, device)?;
        model.set_trainable(false);
        let per_channel =
            |values: &[f64]| Tensor::from_slice(values).to_kind(Kind::Float).to_device(device).view([1, -1, 1, 1]);
        let (mean, std) = (per_channel(&model.input().mean), per_channel(&model.input().std));
        let batch_size = config.batch_size.min(source.len());
        Ok(Self {
            augmentation: Augmentation::new(config.dsa.clone(), &mean, &std, batch_size),
            sgd: Sgd::new(config.sgd(), &model.parameters()),
            steps: config.length.steps(source.len(), config.batch_size),
            config: config.clone(),
            model,
            source,
            seed,
            next_step: 0,
            order: None,
            starts: Ahead::default(),
            unread: Unread::default(),
            epoch_loss: (0.0, 0),
        })
    }

    /// Total number of steps.
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    /// Steps that are done.
    pub const fn steps_done(&self) -> u64 {
        self.next_step
    }

    /// The network as it is.
    pub const fn model(&self) -> &Model {
        self.model
    }

    /// Takes one step, or returns `None` if training is finished.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] where losses are read and one of them is NaN or infinite, whichever step it is of; the
    /// trainer must then be dropped.
    pub fn step(&mut self) -> Result<Option<TrainStep>, TrainError> {
        let (step, steps) = (self.next_step, self.steps);
        if step == steps {
            return Ok(None);
        }
        let n_batches = self.source.len().div_ceil(self.config.batch_size) as u64;
        let (epoch, batch) = (step / n_batches, (step % n_batches) as usize);
        let rows = self.rows(epoch, batch);
        let lr = self.config.lr * self.config.lr_schedule.factor(step, steps, epoch);

        let (loss, gradients) = self.loss(step, &rows);
        self.sgd.set_lr(lr);
        self.sgd.step(&self.model.parameters(), &gradients);
        let n_images = rows.positions.len() as u64;
        self.unread.push(Taken { step, begins_epoch: batch == 0, n_images, lr }, &loss);
        self.next_step += 1;
        let is_read = self.next_step.is_multiple_of(LOSSES_READ_EVERY) || self.next_step == steps;
        let loss = if is_read { self.read()? } else { None };
        Ok(Some(TrainStep { step, steps, epoch, loss, lr }))
    }

    /// Reads the losses of the steps since the last time, and returns the newest.
    fn read(&mut self) -> Result<Option<f64>, TrainError> {
        let mut newest = None;
        for (Taken { step, begins_epoch, n_images, lr }, loss) in self.unread.read() {
            if !loss.is_finite() {
                // Found again whenever someone asks.
                let value = Tensor::from(loss).to_device(self.source.device);
                self.unread.push(Taken { step, begins_epoch, n_images, lr }, &value);
                return Err(TrainError::NotFinite { step, steps: self.steps, loss, lr });
            }
            if begins_epoch {
                self.epoch_loss = (0.0, 0);
            }
            self.epoch_loss.0 += loss * n_images as f64;
            self.epoch_loss.1 += n_images;
            newest = Some(loss);
        }
        Ok(newest)
    }

    /// What came of the steps so far, as far as their losses are read.
    pub fn summary(&self) -> TrainSummary {
        let n_batches = self.source.len().div_ceil(self.config.batch_size) as u64;
        let (sum, n_images) = self.epoch_loss;
        TrainSummary {
            steps: self.next_step,
            epochs: self.next_step.div_ceil(n_batches),
            final_loss: sum / n_images.max(1) as f64,
        }
    }

    /// Visits everything that the next step depends on besides training set, config and seed.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] before anything is written, if the loss of a step so far was NaN or infinite;
    /// [`TrainError::State`] if what is read belongs to another network or config. The trainer must then be dropped.
    pub fn state(&mut self, state: &mut State<'_>) -> Result<(), TrainError> {
        self.read()?;
        state.integer("step", &mut self.next_step, 0..=self.steps as i64)?;
        let mut loss = [self.epoch_loss.0, self.epoch_loss.1 as f64];
        state.numbers("epoch-loss", &mut loss, f64::MIN..=f64::MAX)?;
        self.epoch_loss = (loss[0], loss[1] as u64);
        state.model("model.", self.model)?;
        Ok(state.section("sgd.", |state| self.sgd.state(state))?)
    }

    fn rows(&mut self, epoch: u64, batch: usize) -> Rows {
        let n = self.source.len();
        if self.order.as_ref().is_none_or(|(of, _)| *of != epoch) {
            let mut order: Vec<usize> = (0..n).collect();
            match self.config.order {
                Order::Shuffled => order.shuffle(&mut self.seed.stream("train/order", epoch)),
                Order::Stored => {}
                Order::TileByTile => order.sort_by_key(|image| {
                    let f = self.source.formation;
                    (image % f, image / f % f)
                }),
            }
            self.order = Some((epoch, Rows::send(order, self.source.device)));
        }
        let (_, order) = self.order.as_ref().expect("it was just made");
        let start = batch * self.config.batch_size;
        order.part(start, self.config.batch_size.min(n - start))
    }

    /// The mean loss of a batch and its gradients by the parameters.
    fn loss(&mut self, step: u64, rows: &Rows) -> (Tensor, Vec<Tensor>) {
        let (model, seed, steps) = (&*self.model, self.seed, self.steps);
        let (images, stored) = self.source.batch(rows);
        let images = self.augmentation.apply(&images, step, steps, |step| seed.stream("train/dsa", step));
        let mix = CutMix::draw(self.config.cutmix, &images, &mut seed.stream("train/cutmix", step));
        let images = mix.as_ref().map_or_else(|| images.shallow_clone(), |mix| mix.images(&images));
        // The attacks' box is [0, 1], so what augmentation put outside comes back; without an attack it stays
        // outside, as in the field's natural training.
        let images = match self.config.adversarial {
            Some(_) => images.clamp(0.0, 1.0),
            None => images,
        };
        let distributions = match (self.source.teacher, &mix) {
            (Some(Teacher { network, temperature }), _) => {
                let _no_grad = tch::no_grad_guard();
                (network.logits(&images) / temperature).softmax(1, Kind::Float)
            }
            (None, Some(mix)) => mix.distributions(&stored),
            (None, None) => stored,
        };
        let batch_size = self.config.batch_size.min(self.source.len());
        let starts = &mut self.starts;
        let attacked = self.config.adversarial.as_ref().map(|config| {
            let noise = config.random_start.then(|| {
                let size = images.size();
                let whole = [&[batch_size as i64], &size[1..]].concat();
                let noise = starts.of(step, steps, &whole, images.device(), |step| {
                    start_noise(config, &size[1..], batch_size, seed.child("train/attack", step))
                });
                noise.narrow(0, 0, size[0])
            });
            (config.loss, attack(model, &images, &distributions, config, noise.as_ref()))
        });
        parameter_gradients(model, || {
            let losses = match attacked {
                None => cross_entropy(&model.logits(&images), &distributions),
                Some((AdversarialLoss::PgdAt, attacked)) => cross_entropy(&model.logits(&attacked), &distributions),
                Some((AdversarialLoss::Trades(trades), attacked)) => {
                    let clean = model.logits(&images);
                    let divergence = divergence(&clean, &model.logits(&attacked));
                    cross_entropy(&clean, &distributions) + divergence * trades.beta
                }
            };
            losses.mean(Kind::Float)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use c2r_base::{LabelledImages, Norm, grad};
    use c2r_data::{Split, dsa::Dsa};
    use c2r_models::{Frozen, ModelInput, ModelSpec};
    use c2r_testkit::{assert_close, assert_same_bytes, toys};
    use tch::Device;

    use super::*;
    use crate::{LabelSource, Length, LrSchedule, Protocol, Targets, accuracy, state::Entries};

    fn input() -> ModelInput {
        ModelInput { channels: 1, height: 8, width: 8, n_classes: 10, mean: vec![0.3], std: vec![0.37] }
    }

    fn model(seed: u64) -> Model {
        Model::new(&ModelSpec::convnet(2, 16), &input(), Seed::new(seed), Device::Cpu).unwrap()
    }

    fn digits() -> (Split, LabelledImages) {
        let digits = c2r_data::load("digits", None).unwrap();
        (digits.train, digits.test.to_labelled())
    }

    fn config(protocol: Protocol, steps: u64) -> TrainConfig {
        let mut config = protocol.config();
        config.length = Length::Steps(steps);
        config.batch_size = 32;
        config.lr = 0.02;
        if let Some(adversarial) = &mut config.adversarial {
            adversarial.steps = 2;
            adversarial.rel_step_size = 0.5;
            adversarial.epsilon = "16/255".parse().unwrap();
        }
        config
    }

    fn run(model: &mut Model, source: &TrainSource<'_>, config: &TrainConfig, seed: u64) -> TrainSummary {
        train(model, source, config, Seed::new(seed), &mut |_| {}).unwrap()
    }

    /// Digits have 64 pixels: black and white are 8 apart in L2 and 64 in L1.
    #[test]
    fn a_radius_that_reaches_every_image_is_refused_in_every_norm() {
        let (train, _) = digits();
        let train = train.subset_per_class(1);
        let source = TrainSource::of_split(&train, Targets::Hard);
        for (norm, epsilon, ok) in
            [(Norm::L2, "128", false), (Norm::L2, "8", false), (Norm::L2, "7.9", true), (Norm::L1, "64", false)]
        {
            let mut config = config(Protocol::PgdAt, 1);
            let adversarial = config.adversarial.as_mut().unwrap();
            (adversarial.norm, adversarial.epsilon) = (norm, epsilon.parse().unwrap());
            let mut model = model(0);
            let made = Trainer::new(&mut model, &source, &config, Seed::new(0)).map(drop);
            match made {
                Ok(()) => assert!(ok, "{norm} {epsilon}"),
                Err(TrainError::Config(error)) => assert!(!ok && error.key == "adversarial.epsilon", "{error}"),
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let (train, _) = digits();
        let train = train.subset_per_class(7);
        let source = TrainSource::of_split(&train, Targets::Hard);
        for protocol in Protocol::ALL {
            let trained = |seed| {
                let mut model = model(0);
                run(&mut model, &source, &config(protocol, 7), seed);
                model.state()
            };
            let (first, second, other) = (trained(1), trained(1), trained(2));
            for (name, tensor) in &first {
                assert_same_bytes(&format!("{protocol} {name}"), tensor, &second[name]);
            }
            assert!(c2r_testkit::max_difference(&first["classifier.weight"], &other["classifier.weight"]) > 0.0);
        }
    }

    #[test]
    fn resumed_equals_never_stopped() {
        let (train, _) = digits();
        let train = train.subset_per_class(7);
        let source = TrainSource::of_split(&train, Targets::Hard);
        let config = config(Protocol::PgdAt, 8);
        let (mut straight, mut first, mut second) = (model(0), model(0), model(5));
        let summary = run(&mut straight, &source, &config, 1);
        let mut trainer = Trainer::new(&mut first, &source, &config, Seed::new(1)).unwrap();
        for _ in 0..4 {
            trainer.step().unwrap();
        }
        let mut saved = Entries::new();
        trainer.state(&mut State::writing(&mut saved)).unwrap();
        trainer.step().unwrap();
        let mut trainer = Trainer::new(&mut second, &source, &config, Seed::new(1)).unwrap();
        trainer.state(&mut State::reading(&saved)).unwrap();
        assert_eq!(trainer.steps_done(), 4);
        while trainer.step().unwrap().is_some() {}
        assert_eq!(trainer.summary(), summary);
        for (name, tensor) in straight.state() {
            assert_same_bytes(&name, &tensor, &second.state()[&name]);
        }
    }

    #[test]
    fn a_state_of_another_run_is_refused() {
        let (train, _) = digits();
        let source = TrainSource::of_split(&train, Targets::Hard);
        let mut model = model(0);
        let mut trainer = Trainer::new(&mut model, &source, &config(Protocol::Natural, 3), Seed::new(1)).unwrap();
        let mut saved = Entries::new();
        trainer.state(&mut State::writing(&mut saved)).unwrap();
        let mut message = |saved: &Entries| trainer.state(&mut State::reading(saved)).unwrap_err().to_string();
        saved.insert("step".into(), Tensor::from_slice(&[4i64]));
        assert_eq!(message(&saved), "the saved state does not fit: `step` must be in 0..=3, got 4");
        saved.remove("step");
        assert_eq!(message(&saved), "the saved state does not fit: there is no `step`");
    }

    /// One natural step without augmentation, against the gradient of the plain loss.
    #[test]
    fn one_step_by_hand() {
        let (train, _) = digits();
        let train = train.subset_per_class(3);
        let mut config = config(Protocol::Natural, 1);
        config.dsa = Dsa::none();
        let mut ours = model(0);
        let summary = run(&mut ours, &TrainSource::of_split(&train, Targets::Hard), &config, 1);
        let by_hand = model(0);
        let (images, labels) = train.batch(&(0..30).collect::<Vec<_>>(), Device::Cpu);
        let loss = by_hand.logits(&images).cross_entropy_for_logits(&labels);
        let parameters = by_hand.parameters();
        let handles: Vec<&Tensor> = parameters.iter().map(|(_, tensor)| tensor).collect();
        let gradients = grad::gradients(&loss, &handles);
        assert!((summary.final_loss - loss.double_value(&[])).abs() < 1e-5);
        let before = model(0).state();
        for ((name, _), gradient) in parameters.iter().zip(gradients) {
            let expected = &before[name] - (gradient + &before[name] * config.weight_decay) * config.lr;
            assert_close(name, &ours.state()[name], &expected, 1e-6);
        }
    }

    /// `images` with the colours that the first step gives them; outside of `[0, 1]` too.
    fn coloured(config: &TrainConfig, images: &Tensor, seed: Seed) -> Tensor {
        let [mean, std] = [0.3, 0.37].map(|value| Tensor::full([1, 1, 1, 1], value, (Kind::Float, Device::Cpu)));
        let mut augmentation = Augmentation::new(config.dsa.clone(), &mean, &std, images.size()[0] as usize);
        let coloured = augmentation.apply(images, 0, 1, |step| seed.stream("train/dsa", step));
        let beyond = |x: Tensor| x.double_value(&[]) > 0.05;
        assert!(beyond(-coloured.min()) && beyond(coloured.max() - 1.0));
        coloured
    }

    #[test]
    fn natural_training_learns_from_colours_outside_of_the_box() {
        let (train, _) = digits();
        let train = train.subset_per_class(3);
        let source = TrainSource::of_split(&train, Targets::Hard);
        let mut config = config(Protocol::Natural, 1);
        config.dsa = "color".parse().unwrap();
        let (mut ours, seed) = (model(0), Seed::new(1));
        let mut trainer = Trainer::new(&mut ours, &source, &config, seed).unwrap();
        let rows = trainer.rows(0, 0);
        let (value, _) = trainer.loss(0, &rows);
        let (images, labels) = train.batch(&rows.positions, Device::Cpu);
        let logits = model(0).logits(&coloured(&config, &images, seed));
        assert_close("loss", &value, &logits.cross_entropy_for_logits(&labels), 1e-5);
    }

    /// The first step of PGD-AT, and of TRADES with a beta of 2.5, on coloured images that are clamped to `[0, 1]`. The attack
    /// starts at random and takes two steps of half of epsilon; then comes the gradient of the training loss.
    #[test]
    fn adversarial_steps_by_hand() {
        let (train, _) = digits();
        let train = train.subset_per_class(3);
        let source = TrainSource::of_split(&train, Targets::Hard);
        for protocol in [Protocol::PgdAt, Protocol::Trades] {
            let mut config = config(protocol, 1);
            config.dsa = "color".parse().unwrap();
            let adversarial = config.adversarial.as_mut().unwrap();
            let is_trades = matches!(adversarial.loss, AdversarialLoss::Trades(_));
            if let AdversarialLoss::Trades(trades) = &mut adversarial.loss {
                trades.beta = 2.5;
            }
            let (epsilon, seed) = (16.0 / 255.0, Seed::new(1));
            let noise = start_noise(adversarial, &[1, 8, 8], 30, seed.child("train/attack", 0));
            assert_ne!(noise[..64], noise[64..128], "each image has a start of its own");
            let mut ours = model(0);
            let mut trainer = Trainer::new(&mut ours, &source, &config, seed).unwrap();
            let rows = trainer.rows(0, 0);
            let (value, gradients) = trainer.loss(0, &rows);

            let model = model(0);
            model.set_trainable(false);
            let (images, labels) = train.batch(&rows.positions, Device::Cpu);
            let images = coloured(&config, &images, seed).clamp(0.0, 1.0);
            let inside = |x: &Tensor| x.maximum(&(&images - epsilon)).minimum(&(&images + epsilon)).clamp(0.0, 1.0);
            let clean = model.logits(&images).softmax(1, Kind::Float);
            let mut x = inside(&(&images + Tensor::from_slice(&noise).view_as(&images)));
            for _ in 0..2 {
                let (gradient, _) = grad::input_gradient(&x, |x| match is_trades {
                    true => c2r_base::loss::kl(&clean, &model.logits(x)),
                    false => c2r_base::loss::ce(&model.logits(x), &labels),
                });
                x = inside(&(x + gradient.sign() * (epsilon / 2.0)));
            }
            let (expected, expected_gradients) = parameter_gradients(&model, || {
                let attacked = model.logits(&x);
                if !is_trades {
                    return attacked.cross_entropy_for_logits(&labels);
                }
                let clean = model.logits(&images);
                let ratio = clean.log_softmax(1, Kind::Float) - attacked.log_softmax(1, Kind::Float);
                let divergence = (clean.softmax(1, Kind::Float) * ratio).sum(Kind::Float) / 30.0;
                clean.cross_entropy_for_logits(&labels) + divergence * 2.5
            });
            assert_close(&format!("{protocol}"), &value, &expected, 1e-5);
            for (got, expected) in gradients.iter().zip(&expected_gradients) {
                assert_close(&format!("{protocol}"), got, expected, 1e-4);
            }
        }
    }

    /// Augmentation, CutMix and starts of attacks are those of the step.
    #[test]
    fn every_step_draws_anew() {
        let (train, _) = digits();
        let train = train.subset_per_class(3);
        let source = TrainSource::of_split(&train, Targets::Hard);
        for (part, protocol) in [("dsa", Protocol::Natural), ("cutmix", Protocol::Natural), ("start", Protocol::PgdAt)]
        {
            let mut config = config(protocol, 4);
            if part != "dsa" {
                config.dsa = Dsa::none();
            }
            if part == "cutmix" {
                config.cutmix = 1.0;
            }
            let mut ours = model(0);
            let mut trainer = Trainer::new(&mut ours, &source, &config, Seed::new(1)).unwrap();
            let rows = trainer.rows(0, 0);
            let losses = [0, 1, 0].map(|step| trainer.loss(step, &rows).0.double_value(&[]));
            assert!(losses[0] == losses[2] && (losses[0] - losses[1]).abs() > 1e-5, "{part}: {losses:?}");
        }
    }

    /// The loss of mixed images against mixed labels.
    #[test]
    fn a_step_with_cutmix_by_hand() {
        let (train, _) = digits();
        let train = train.subset_per_class(3);
        let mut config = config(Protocol::Natural, 1);
        (config.dsa, config.cutmix) = (Dsa::none(), 1.0);
        let (mut ours, seed) = (model(0), Seed::new(1));
        let source = TrainSource::of_split(&train, Targets::Hard);
        let mut trainer = Trainer::new(&mut ours, &source, &config, seed).unwrap();
        let rows = trainer.rows(0, 0);
        let (value, _) = trainer.loss(0, &rows);
        let (images, labels) = train.batch(&rows.positions, Device::Cpu);
        let mix = CutMix::draw(1.0, &images, &mut seed.stream("train/cutmix", 0)).unwrap();
        let labels = mix.distributions(&labels.one_hot(10).to_kind(Kind::Float));
        let logits = model(0).logits(&mix.images(&images));
        let expected = -(logits.log_softmax(1, Kind::Float) * labels).sum(Kind::Float) / 30.0;
        assert_close("loss", &value, &expected, 1e-5);
    }

    #[test]
    fn batches_are_drawn_anew_unless_the_order_is_that_of_storage() {
        let (train, _) = digits();
        let train = train.subset_per_class(5);
        let source = TrainSource::of_split(&train, Targets::Hard);
        let batches = |protocol| {
            let mut model = model(0);
            let mut trainer = Trainer::new(&mut model, &source, &config(protocol, 4), Seed::new(0)).unwrap();
            [(0, 0), (0, 1), (1, 0)].map(|(epoch, batch)| trainer.rows(epoch, batch).positions)
        };
        let [first, second, again] = batches(Protocol::DdRobustbench);
        assert_eq!((first, second), ((0..32).collect(), (32..50).collect()));
        assert_eq!(again, (0..32).collect::<Vec<_>>());
        let [first, _, again] = batches(Protocol::Natural);
        assert_ne!(first, again);
    }

    /// The decoding that IDM, ROME and DD-RobustBench share: for each place of a tile, column by column, that tile of every
    /// mosaic, enlarged; these one after the other.
    #[test]
    fn tile_by_tile_is_the_order_of_dd_robustbench() {
        let mosaics = toys::images(5, [1, 8, 8]);
        let mut theirs = Vec::new();
        for column in [0, 4] {
            for row in [0, 4] {
                let tile = mosaics.narrow(2, row, 4).narrow(3, column, 4);
                theirs.push(tile.upsample_bilinear2d([8i64, 8], false, None, None));
            }
        }
        let theirs = Tensor::cat(&theirs, 0);
        let decoded = c2r_data::decode_formation(&mosaics, 2).unwrap();
        let images = LabelledImages::new(decoded, toys::labels(20, 10)).unwrap();
        let source = TrainSource::new(&images, Targets::Hard).of_mosaics(2);
        let mut config = config(Protocol::DdRobustbench, 3);
        config.batch_size = 8;
        let mut model = model(0);
        let mut trainer = Trainer::new(&mut model, &source, &config, Seed::new(0)).unwrap();
        for (batch, length) in [8, 8, 4].into_iter().enumerate() {
            let rows = trainer.rows(0, batch);
            let (ours, _) = trainer.source.batch(&rows);
            assert_close("batch", &ours, &theirs.narrow(0, 8 * batch as i64, length), 0.0);
        }
    }

    #[test]
    fn every_protocol_learns() {
        let (train, test) = digits();
        let train = train.subset_per_class(20);
        let source = TrainSource::of_split(&train, Targets::Hard);
        for protocol in Protocol::ALL {
            let mut model = model(0);
            let mut losses = Vec::new();
            let config = config(protocol, 150);
            let summary = super::train(&mut model, &source, &config, Seed::new(3), &mut |event| {
                let TrainStep { step, loss, lr, .. } = event;
                losses.extend(loss);
                let late = config.lr_schedule == LrSchedule::HalfWay && step >= 75;
                assert!((lr - if late { 0.002 } else { 0.02 }).abs() < 1e-12);
            })
            .unwrap();
            assert_eq!((losses.len(), summary.steps, summary.epochs), (3, 150, 22));
            let clean = accuracy(&Frozen::new(model), &test, 500).unwrap();
            assert!(clean > 0.75, "{protocol}: clean accuracy {clean}");
        }
    }

    /// What adversarial training is for: more accuracy under an attack than natural training gives.
    #[test]
    fn adversarial_training_is_more_robust() {
        let (train, test) = digits();
        let source = TrainSource::of_split(&train, Targets::Hard);
        let robust = |protocol| {
            let mut model = model(0);
            run(&mut model, &source, &config(protocol, 200), 4);
            model.set_trainable(false);
            let mut attack_config = Protocol::PgdAt.config().adversarial.unwrap();
            attack_config.epsilon = "32/255".parse().unwrap();
            let one_hot = test.labels().one_hot(10).to_kind(Kind::Float);
            let noise = start_noise(&attack_config, &[1, 8, 8], test.len(), Seed::new(9));
            let noise = Tensor::from_slice(&noise).view_as(test.images());
            let attacked = attack(&model, test.images(), &one_hot, &attack_config, Some(&noise));
            assert!(Norm::Linf.distance(&attacked, test.images()).max().double_value(&[]) < 32.1 / 255.0);
            let attacked = LabelledImages::new(attacked, test.labels().shallow_clone()).unwrap();
            accuracy(&Frozen::new(model), &attacked, 500).unwrap()
        };
        let natural = robust(Protocol::Natural);
        for protocol in [Protocol::PgdAt, Protocol::Trades] {
            let ours = robust(protocol);
            assert!(ours > natural + 0.03, "{protocol}: {ours} against {natural} of natural training");
        }
    }

    /// One-hot soft labels are hard labels; a teacher's are its softmax on the same view.
    #[test]
    fn targets_mean_what_they_say() {
        let (train, _) = digits();
        let train = train.subset_per_class(4);
        let images = train.to_labelled();
        let mut config = config(Protocol::Natural, 4);
        let trained = |targets: Targets<'_>, config: &TrainConfig| {
            let mut model = model(0);
            run(&mut model, &TrainSource::new(&images, targets), config, 1);
            model.state()
        };
        let hard = trained(Targets::Hard, &config);
        let one_hot = images.labels().one_hot(10).to_kind(Kind::Float);
        config.labels = LabelSource::Soft;
        let soft = trained(Targets::Soft(&one_hot), &config);
        config.dsa = Dsa::none();
        let teacher = Frozen::new(model(8));
        let stored = {
            let _no_grad = tch::no_grad_guard();
            teacher.logits(images.images()).softmax(1, Kind::Float)
        };
        let soft_of_teacher = trained(Targets::Soft(&stored), &config);
        config.labels = LabelSource::Teacher;
        let taught = |temperature| Targets::Teacher(Teacher { network: &teacher, temperature });
        let of_teacher = trained(taught(1.0), &config);
        let softened = trained(taught(8.0), &config);
        for name in hard.keys() {
            assert_close(name, &soft[name], &hard[name], 0.0);
            assert_close(name, &of_teacher[name], &soft_of_teacher[name], 1e-6);
        }
        let head = |state: &BTreeMap<String, Tensor>| state["classifier.weight"].shallow_clone();
        assert!(c2r_testkit::max_difference(&head(&hard), &head(&of_teacher)) > 1e-3);
        assert!(c2r_testkit::max_difference(&head(&softened), &head(&of_teacher)) > 1e-3);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let images = LabelledImages::new(toys::images(6, [1, 8, 8]), toys::labels(6, 3)).unwrap();
        let message = |source: &TrainSource<'_>, labels: LabelSource| {
            let mut model = model(0);
            let mut config = config(Protocol::Natural, 1);
            config.labels = labels;
            match Trainer::new(&mut model, source, &config, Seed::new(0)) {
                Err(TrainError::Source(reason)) => reason,
                other => panic!("{:?}", other.err()),
            }
        };
        let colour = LabelledImages::new(toys::images(6, [3, 8, 8]), toys::labels(6, 3)).unwrap();
        assert!(message(&TrainSource::new(&colour, Targets::Hard), LabelSource::Hard).contains("[3, 8, 8]"));
        let many = LabelledImages::new(toys::images(12, [1, 8, 8]), toys::labels(12, 11)).unwrap();
        assert!(message(&TrainSource::new(&many, Targets::Hard), LabelSource::Hard).contains("label 10"));
        assert!(message(&TrainSource::new(&images, Targets::Hard), LabelSource::Soft).contains("Soft labels"));
        let short = Tensor::full([5, 10], 0.1, (Kind::Float, Device::Cpu));
        assert!(message(&TrainSource::new(&images, Targets::Soft(&short)), LabelSource::Soft).contains("[6, 10]"));
        let logits = Tensor::full([6, 10], 0.1, (Kind::Float, Device::Cpu));
        let _ = logits.get(2).get(0).fill_(0.7);
        let text = message(&TrainSource::new(&images, Targets::Soft(&logits)), LabelSource::Soft);
        assert!(text.contains("1 soft labels are not distributions") && text.ends_with("the first is 2"), "{text}");
        let other = ModelInput { n_classes: 3, ..input() };
        let teacher = Frozen::new(Model::new(&ModelSpec::convnet(1, 4), &other, Seed::new(0), Device::Cpu).unwrap());
        let source = TrainSource::new(&images, Targets::Teacher(Teacher { network: &teacher, temperature: 1.0 }));
        assert!(message(&source, LabelSource::Teacher).contains("tells 3 classes apart"));
        let source = TrainSource::new(&images, Targets::Teacher(Teacher { network: &teacher, temperature: 0.0 }));
        assert!(message(&source, LabelSource::Teacher).contains("temperature must be positive, got 0"));
        let nothing = digits().0.select(&[]);
        assert!(message(&TrainSource::of_split(&nothing, Targets::Hard), LabelSource::Hard).contains("no images"));
    }

    #[test]
    fn a_loss_that_is_not_finite_names_its_step() {
        let (train, _) = digits();
        let train = train.subset_per_class(2);
        let mut model = model(0);
        let mut config = config(Protocol::Natural, 50);
        config.lr = 1e30;
        config.lr_schedule = LrSchedule::Constant;
        let source = TrainSource::of_split(&train, Targets::Hard);
        let error = super::train(&mut model, &source, &config, Seed::new(0), &mut |_| {}).unwrap_err();
        let TrainError::NotFinite { step, steps: 50, .. } = error else { panic!("{error}") };
        assert!((1..50).contains(&step), "{error}");
    }

    /// Between two readings of losses: what is saved is from before, and nothing broken is saved after.
    #[test]
    fn a_broken_run_leaves_its_last_good_state() {
        let (train, _) = digits();
        let train = train.subset_per_class(7);
        let source = TrainSource::of_split(&train, Targets::Hard);
        let config = config(Protocol::Natural, 2 * LOSSES_READ_EVERY);
        let (mut straight, mut broken, mut resumed) = (model(0), model(0), model(5));
        run(&mut straight, &source, &config, 1);

        let mut weight = broken.parameters().swap_remove(0).1;
        let mut trainer = Trainer::new(&mut broken, &source, &config, Seed::new(1)).unwrap();
        let mut on_disk = Entries::new();
        for step in 0..70 {
            if step == 60 {
                trainer.state(&mut State::writing(&mut on_disk)).unwrap();
            }
            if step == 67 {
                let _no_grad = tch::no_grad_guard();
                let _ = weight.fill_(f64::NAN);
            }
            trainer.step().unwrap();
        }
        let mut nothing = Entries::new();
        let error = trainer.state(&mut State::writing(&mut nothing)).unwrap_err();
        assert!(matches!(error, TrainError::NotFinite { step: 67, loss, .. } if loss.is_nan()), "{error}");
        assert!(trainer.state(&mut State::writing(&mut nothing)).is_err() && nothing.is_empty());

        let mut trainer = Trainer::new(&mut resumed, &source, &config, Seed::new(1)).unwrap();
        trainer.state(&mut State::reading(&on_disk)).unwrap();
        while trainer.step().unwrap().is_some() {}
        for (name, tensor) in straight.state() {
            assert_same_bytes(&name, &tensor, &resumed.state()[&name]);
        }
    }

    #[test]
    fn what_the_device_keeps_changes_nothing() {
        let (train, _) = digits();
        let train = train.subset_per_class(7);
        let trained = |source: &TrainSource<'_>| {
            let mut model = model(0);
            run(&mut model, source, &config(Protocol::PgdAt, 7), 1);
            model.state()
        };
        let source = TrainSource::of_split(&train, Targets::Hard);
        let kept = trained(&source.keeping(usize::MAX));
        for (name, tensor) in trained(&source) {
            assert_same_bytes(&name, &tensor, &kept[&name]);
        }
    }

    #[test]
    fn an_epoch_sees_every_image_once() {
        let (train, _) = digits();
        let train = train.subset_per_class(7);
        let mut model = model(0);
        let source = TrainSource::of_split(&train, Targets::Hard);
        let mut trainer = Trainer::new(&mut model, &source, &config(Protocol::Natural, 9), Seed::new(0)).unwrap();
        let mut epochs = Vec::new();
        for epoch in 0..2 {
            let batches: Vec<Vec<usize>> = (0..3).map(|batch| trainer.rows(epoch, batch).positions).collect();
            assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [32, 32, 6]);
            let mut all = batches.concat();
            epochs.push(all.clone());
            all.sort_unstable();
            assert_eq!(all, (0..70).collect::<Vec<_>>());
        }
        assert_ne!(epochs[0], epochs[1]);
    }
}
