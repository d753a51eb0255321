//! Line-search PGD (LS-PGD): one gradient, several step lengths, and a memory per sample
//! (docs/method.md, "LS-PGD"). It ranks and trains; it never evaluates.

use c2r_base::{
    Classifier, ClassifierError, Goal, Norm, Passes, Seed, ThreatModel, grad::try_input_gradient, host::send, loss,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::margin::hinge;

/// Options of LS-PGD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LsPgdConfig {
    /// Smallest step (the paper's alpha) as a fraction of epsilon, positive.
    pub rel_step_size: f64,
    /// Ratio of neighbouring steps (the paper's beta), above 1.
    pub growth: f64,
    /// Number of steps tried (the paper's Z), 1 to 8: `alpha * growth^q` for `q = 0..candidates`. The images of all of them
    /// go through the network together, which takes that many times the memory of a batch.
    pub candidates: u32,
    /// Start from the sample's last perturbation (the paper's continuation) instead of from `start`.
    pub warm_start: bool,
    /// Keep a remembered perturbation without a backward pass where its loss has not fallen (the
    /// paper's adaptive early stop). Needs `warm_start`.
    pub reuse: bool,
    /// Where a sample without a remembered perturbation starts.
    pub start: Start,
}

/// First point of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// The clean image.
    Clean,
    /// Uniform in the ball, clamped to `[0, 1]`.
    Random,
}

/// LS-PGD options that make no sense.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum LsPgdError {
    /// Zero, negative or not finite.
    #[error("ls-pgd rel-step-size must be positive, got {0}")]
    StepSize(f64),
    /// At or below 1.
    #[error("ls-pgd growth must be a finite number above 1, got {0}")]
    Growth(f64),
    /// Zero, or more than 8.
    #[error("ls-pgd candidates must be between 1 and 8, got {0}")]
    Candidates(u32),
    /// `reuse` without anything to reuse.
    #[error("ls-pgd reuse needs warm-start = true: without it no perturbation is remembered")]
    ReuseWithoutWarmStart,
    /// Only Linf is defined by the paper.
    #[error("ls-pgd is defined for linf, not for {0}")]
    Norm(Norm),
    /// It moves away from the label and aims at no class.
    #[error("ls-pgd is untargeted, and cannot aim at a class")]
    Targeted,
}

/// Adversarial companions of a batch.
#[derive(Debug)]
pub struct Companions {
    /// f32 `[N, C, H, W]`, inside the ball and `[0, 1]`, detached.
    pub images: Tensor,
    /// Margin of each sample at its companion: an upper bound of its robust margin, in logits, f32 `[N]`, detached.
    pub margins: Tensor,
    /// Perturbation score of each sample, `[1 - margin]_+`, f32 `[N]`, at least 0, detached.
    pub scores: Tensor,
    /// What they cost, all passes included.
    pub passes: Passes,
    /// Samples whose remembered perturbation was kept without a backward pass.
    pub reused: u64,
}

impl Companions {
    /// Companions with the logits that the network gives them, f32 `[N, K]`.
    pub fn new(images: Tensor, logits: &Tensor, labels: &Tensor, passes: Passes, reused: u64) -> Self {
        let margins = loss::margin(&logits.detach(), labels);
        Self { images, scores: hinge(&margins), margins, passes, reused }
    }

    /// The companions of several batches, as of one.
    ///
    /// # Panics
    /// If there are none.
    pub fn cat(parts: &[Self]) -> Self {
        let joined = |part: fn(&Self) -> &Tensor| Tensor::cat(&parts.iter().map(part).collect::<Vec<_>>(), 0);
        Self {
            images: joined(|part| &part.images),
            margins: joined(|part| &part.margins),
            scores: joined(|part| &part.scores),
            passes: parts.iter().map(|part| part.passes).sum(),
            reused: parts.iter().map(|part| part.reused).sum(),
        }
    }
}

/// Remembered perturbations and the losses that they had when they were stored, one row per sample id.
#[derive(Debug)]
pub struct PerturbationCache {
    deltas: Tensor,
    /// NaN where nothing is remembered.
    losses: Tensor,
}

impl PerturbationCache {
    /// A cache for sample ids `0..n` of images `[C, H, W]`, with nothing in it.
    pub fn new(n: usize, shape: [i64; 3], device: Device) -> Self {
        let [channels, height, width] = shape;
        Self {
            deltas: Tensor::zeros([n as i64, channels, height, width], (Kind::Float, device)),
            losses: Tensor::full([n as i64], f64::NAN, (Kind::Float, device)),
        }
    }

    /// Checks that there is a row for each of `ids`, of the shape of `images`.
    fn check(&self, ids: &[u64], images: &Tensor) -> Result<(), ClassifierError> {
        let (own, given) = (self.deltas.size(), images.size());
        let n = own[0] as u64;
        if let Some(id) = ids.iter().find(|id| **id >= n) {
            let reason = format!("ls-pgd: sample {id} has no row in a cache of {n} perturbations; ids are below {n}");
            return Err(ClassifierError::new(reason));
        }
        if given.get(1..) != Some(&own[1..]) {
            let reason = format!("ls-pgd: the cache holds perturbations {:?}, the images are {given:?}", &own[1..]);
            return Err(ClassifierError::new(reason));
        }
        Ok(())
    }

    /// What must be saved to continue: perturbations f32 `[n, C, H, W]` and losses f32 `[n]`.
    pub fn state(&self) -> (Tensor, Tensor) {
        (self.deltas.copy(), self.losses.copy())
    }

    /// Continues from [`PerturbationCache::state`].
    ///
    /// # Errors
    /// A message that names dtypes and shapes, if they are not this cache's.
    pub fn load_state(&mut self, deltas: &Tensor, losses: &Tensor) -> Result<(), String> {
        let is = |tensor: &Tensor| (tensor.kind(), tensor.size());
        if is(deltas) != is(&self.deltas) || is(losses) != is(&self.losses) {
            return Err(format!(
                "cache state has perturbations {:?} and losses {:?}, expected {:?} and {:?}",
                is(deltas),
                is(losses),
                is(&self.deltas),
                is(&self.losses)
            ));
        }
        self.deltas = deltas.to_device(self.deltas.device()).copy();
        self.losses = losses.to_device(self.losses.device()).copy();
        Ok(())
    }
}

/// What a search begins with.
struct Origin {
    /// f32 `[N, C, H, W]`.
    start: Tensor,
    /// The samples, f32 `[N, C, H, W]`.
    clean: Tensor,
    /// i64 `[N]`.
    labels: Tensor,
}

impl Origin {
    fn n(&self) -> i64 {
        self.labels.size()[0]
    }

    /// The samples at `rows`, i64 `[n]`.
    fn rows(&self, rows: &Tensor) -> Self {
        let [start, clean, labels] = [&self.start, &self.clean, &self.labels].map(|all| all.index_select(0, rows));
        Self { start, clean, labels }
    }
}

/// What a search ends with.
struct Found {
    /// f32 `[N, C, H, W]`.
    images: Tensor,
    /// What is remembered with them, f32 `[N]`.
    losses: Tensor,
    /// Of `images`, f32 `[N, K]`.
    logits: Tensor,
    passes: Passes,
    reused: u64,
}

/// The attack, checked.
#[derive(Clone, Debug)]
pub struct LsPgd {
    config: LsPgdConfig,
    threat: ThreatModel,
}

impl LsPgd {
    /// Checks the options.
    ///
    /// # Errors
    /// [`LsPgdError`].
    pub fn new(config: LsPgdConfig, threat: ThreatModel) -> Result<Self, LsPgdError> {
        if threat.norm != Norm::Linf {
            return Err(LsPgdError::Norm(threat.norm));
        }
        if threat.goal != Goal::Untargeted {
            return Err(LsPgdError::Targeted);
        }
        if !(config.rel_step_size.is_finite() && config.rel_step_size > 0.0) {
            return Err(LsPgdError::StepSize(config.rel_step_size));
        }
        if !(config.growth.is_finite() && config.growth > 1.0) {
            return Err(LsPgdError::Growth(config.growth));
        }
        if !(1..=8).contains(&config.candidates) {
            return Err(LsPgdError::Candidates(config.candidates));
        }
        if config.reuse && !config.warm_start {
            return Err(LsPgdError::ReuseWithoutWarmStart);
        }
        Ok(Self { config, threat })
    }

    /// Whether a [`PerturbationCache`] is of any use.
    pub const fn remembers(&self) -> bool {
        self.config.warm_start
    }

    /// Makes companions.
    ///
    /// * `images`: f32 `[N, C, H, W]` in `[0, 1]`; `labels`: i64 `[N]`.
    /// * `ids`: sample ids; rows of `cache` and streams of the random start.
    ///
    /// A sample that the cache has not seen always gets its gradient step, with or without `reuse`:
    /// otherwise the companions of the first epoch would be the clean images.
    ///
    /// # Errors
    /// What `model` returns; an id that `cache` has no row for. NaN in the logits is not looked for, because
    /// that would wait for the device: it ends up in the scores.
    ///
    /// # Panics
    /// If the logits do not depend on the images by gradients, or a label is outside their classes.
    pub fn attack(
        &self,
        model: &dyn Classifier,
        images: &Tensor,
        labels: &Tensor,
        ids: &[u64],
        seed: Seed,
        cache: Option<&mut PerturbationCache>,
    ) -> Result<Companions, ClassifierError> {
        let _no_grad = tch::no_grad_guard();
        let cache = cache.filter(|_| self.config.warm_start);
        cache.as_deref().map_or(Ok(()), |cache| cache.check(ids, images))?;
        let mut cache = cache.map(|cache| {
            let rows: Vec<i64> = ids.iter().map(|&id| id as i64).collect();
            (cache, send(&Tensor::from_slice(&rows), images.device()))
        });
        let remembered = cache
            .as_ref()
            .map(|(cache, rows)| (cache.deltas.index_select(0, rows), cache.losses.index_select(0, rows)));
        let start = self.start(images, ids, seed, remembered.as_ref());
        let from = Origin { start, clean: images.shallow_clone(), labels: labels.shallow_clone() };
        let found = match &remembered {
            Some((_, losses)) if self.config.reuse => self.keep_or_search(model, &from, losses)?,
            _ => self.search(model, &from)?,
        };
        if let Some((cache, rows)) = &mut cache {
            let _ = cache.deltas.index_copy_(0, rows, &(&found.images - images));
            let _ = cache.losses.index_copy_(0, rows, &found.losses);
        }
        Ok(Companions::new(found.images, &found.logits, labels, found.passes, found.reused))
    }

    /// Where the attack starts, f32 `[N, C, H, W]`: from the `remembered` perturbation and loss of each sample if it has some.
    fn start(&self, images: &Tensor, ids: &[u64], seed: Seed, remembered: Option<&(Tensor, Tensor)>) -> Tensor {
        let fresh = match self.config.start {
            Start::Clean => None,
            Start::Random => {
                let shape = &images.size()[1..];
                let radius = self.threat.epsilon.value();
                Some(send(&Norm::Linf.random_in_ball(shape, ids, radius, seed, "ls-pgd/start"), images.device()))
            }
        };
        let start = match (remembered, fresh) {
            (None, None) => images.shallow_clone(),
            (None, Some(fresh)) => images + fresh,
            (Some((deltas, losses)), fresh) => {
                let fresh = fresh.unwrap_or_else(|| images.zeros_like());
                images + deltas.where_self(&losses.isnan().logical_not().view([-1, 1, 1, 1]), &fresh)
            }
        };
        self.threat.project(images, &start)
    }

    /// Step 1: where the loss has not fallen below the `remembered` one, f32 `[N]`, the perturbation stays. The others are
    /// searched.
    fn keep_or_search(
        &self,
        model: &dyn Classifier,
        from: &Origin,
        remembered: &Tensor,
    ) -> Result<Found, ClassifierError> {
        let logits = model.logits(&from.start)?;
        // A comparison with NaN, where nothing is remembered, is false.
        let keep = loss::ce(&logits, &from.labels).ge_tensor(remembered);
        let rows = keep.logical_not().nonzero().squeeze_dim(1);
        let (n, n_searched) = (from.n(), rows.size()[0]);
        let mut found = Found {
            images: from.start.shallow_clone(),
            // A kept perturbation keeps the loss that it was stored with. A threshold that followed the current loss
            // would climb with every network that finds the sample harder.
            losses: remembered.shallow_clone(),
            logits,
            passes: Passes::forward(n as u64),
            reused: (n - n_searched) as u64,
        };
        if n_searched > 0 {
            let searched = self.search(model, &from.rows(&rows))?;
            found.images = found.images.index_copy(0, &rows, &searched.images);
            found.losses = found.losses.index_copy(0, &rows, &searched.losses);
            found.logits = found.logits.index_copy(0, &rows, &searched.logits);
            found.passes += searched.passes;
        }
        Ok(found)
    }

    /// Steps 2 and 3: one gradient, then the best of several step lengths.
    fn search(&self, model: &dyn Classifier, from: &Origin) -> Result<Found, ClassifierError> {
        let Origin { start, clean, labels } = from;
        let (gradient, _) = try_input_gradient(start, |x| model.logits(x).map(|logits| loss::ce(&logits, labels)))?;
        let direction = gradient.sign();
        let steps = self.steps();
        let candidates: Vec<Tensor> =
            steps.iter().map(|step| self.threat.project(clean, &(start + &direction * *step))).collect();
        let candidates = Tensor::cat(&candidates, 0);
        let logits = model.logits(&candidates)?;
        let (n, n_steps) = (from.n(), steps.len() as i64);
        let losses = loss::ce(&logits, &labels.repeat([n_steps])).view([n_steps, n]);
        let (losses, winner) = losses.max_dim(0, false);
        let at = winner * n + Tensor::arange(n, (Kind::Int64, clean.device()));
        let made = [Passes::forward(n as u64), Passes::forward((n * n_steps) as u64), Passes::backward(n as u64)];
        Ok(Found {
            images: candidates.index_select(0, &at),
            losses,
            logits: logits.index_select(0, &at),
            passes: made.into_iter().sum(),
            reused: 0,
        })
    }

    /// Step lengths, pixel units, smallest first.
    fn steps(&self) -> Vec<f64> {
        (0..self.config.candidates)
            .map(|power| {
                self.config.rel_step_size * self.threat.epsilon.value() * self.config.growth.powi(power as i32)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use c2r_base::{ClassifierError, grad::input_gradient};
    use c2r_testkit::toys;
    use proptest::prelude::*;

    use super::*;

    /// A two-layer network with fixed weights drawn from a seed.
    struct Toy {
        first: Tensor,
        second: Tensor,
        forwards: std::cell::Cell<u64>,
    }

    impl Toy {
        fn new(seed: u64) -> Self {
            let draw = |purpose: &str, rows: i64, columns: i64| {
                Norm::Linf
                    .random_in_ball(&[1, rows, columns], &[0], 2.0, Seed::new(seed), purpose)
                    .view([rows, columns])
            };
            Self { first: draw("first", 12, 16), second: draw("second", 16, 4), forwards: std::cell::Cell::new(0) }
        }
    }

    impl Classifier for Toy {
        fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
            self.forwards.set(self.forwards.get() + images.size()[0] as u64);
            Ok(images.flatten(1, -1).matmul(&self.first).relu().matmul(&self.second))
        }

        fn device(&self) -> Device {
            Device::Cpu
        }
    }

    fn config() -> LsPgdConfig {
        LsPgdConfig {
            rel_step_size: 0.25,
            growth: 2.0,
            candidates: 3,
            warm_start: false,
            reuse: false,
            start: Start::Clean,
        }
    }

    fn threat() -> ThreatModel {
        ThreatModel::untargeted(Norm::Linf, "8/255".parse().unwrap())
    }

    fn batch(seed: u64, n: u64) -> (Tensor, Tensor, Vec<u64>) {
        let ids: Vec<u64> = (0..n).collect();
        let images = (Norm::Linf.random_in_ball(&[3, 2, 2], &ids, 0.5, Seed::new(seed), "image") + 0.5).clamp(0.0, 1.0);
        let labels = Tensor::from_slice(&ids.iter().map(|id| (id % 4) as i64).collect::<Vec<_>>());
        (images, labels, ids)
    }

    fn loss_at(model: &Toy, images: &Tensor, labels: &Tensor) -> Tensor {
        loss::ce(&model.logits(images).unwrap(), labels)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        /// Never weaker than one PGD step of alpha from the same start, never outside the threat set.
        #[test]
        fn beats_a_pgd_step_and_stays_inside(seed in 0u64..1000, random in any::<bool>(), candidates in 1u32..4) {
            let model = Toy::new(seed);
            let (images, labels, ids) = batch(seed + 1, 8);
            let start = if random { Start::Random } else { Start::Clean };
            let attack = LsPgd::new(LsPgdConfig { start, candidates, ..config() }, threat()).unwrap();
            let ours = attack.attack(&model, &images, &labels, &ids, Seed::new(seed), None).unwrap();
            prop_assert!(Norm::Linf.distance(&ours.images, &images).max().double_value(&[]) <= 8.0 / 255.0 + 1e-6);
            prop_assert!(ours.images.min().double_value(&[]) >= 0.0 && ours.images.max().double_value(&[]) <= 1.0);

            let delta = match start {
                Start::Clean => images.zeros_like(),
                Start::Random => Norm::Linf.random_in_ball(&[3, 2, 2], &ids, 8.0 / 255.0, Seed::new(seed), "ls-pgd/start"),
            };
            let from = threat().project(&images, &(&images + delta));
            let (gradient, _) = input_gradient(&from, |x| loss_at(&model, x, &labels));
            let step = threat().project(&images, &(&from + gradient.sign() * (2.0 / 255.0)));
            let gain = loss_at(&model, &ours.images, &labels) - loss_at(&model, &step, &labels);
            prop_assert!(gain.min().double_value(&[]) >= -1e-6);
        }
    }

    #[test]
    fn scores_are_the_hinge_at_the_companion_and_passes_are_counted() {
        let model = Toy::new(3);
        let (images, labels, ids) = batch(4, 6);
        let ours =
            LsPgd::new(config(), threat()).unwrap().attack(&model, &images, &labels, &ids, Seed::new(0), None).unwrap();
        let expected = Passes { forward_calls: 2, forward_images: 6 * 4, backward_calls: 1, backward_images: 6 };
        assert_eq!((ours.passes, ours.reused), (expected, 0));
        assert_eq!(model.forwards.get(), ours.passes.forward_images);
        let expected = hinge(&loss::margin(&model.logits(&ours.images).unwrap(), &labels));
        assert!((ours.scores - expected).abs().max().double_value(&[]) < 1e-5);
    }

    #[test]
    fn cache_continues_and_reuses_only_what_it_has_seen() {
        let model = Toy::new(5);
        let (images, labels, ids) = batch(6, 6);
        let attack = LsPgd::new(LsPgdConfig { warm_start: true, reuse: true, ..config() }, threat()).unwrap();
        let mut cache = PerturbationCache::new(10, [3, 2, 2], Device::Cpu);
        let first = attack.attack(&model, &images, &labels, &ids, Seed::new(0), Some(&mut cache)).unwrap();
        assert_eq!(first.reused, 0, "nothing is remembered in the first epoch");
        assert!(
            (&first.images - &images).abs().max().double_value(&[]) > 1e-3,
            "companions differ from the clean images"
        );
        // The same network: every remembered loss still holds, so no backward pass at all.
        let second = attack.attack(&model, &images, &labels, &ids, Seed::new(0), Some(&mut cache)).unwrap();
        assert_eq!((second.passes, second.reused), (Passes::forward(6), 6));
        assert_eq!(second.images, first.images);
        // Without reuse the warm start goes on climbing.
        let attack = LsPgd::new(LsPgdConfig { warm_start: true, ..config() }, threat()).unwrap();
        let third = attack.attack(&model, &images, &labels, &ids, Seed::new(0), Some(&mut cache)).unwrap();
        assert_eq!((third.passes.backward_images, third.reused), (6, 0));
        // Another id has seen nothing: it starts from the clean image whatever the others remember.
        let (one, label) = (images.narrow(0, 0, 1), labels.narrow(0, 0, 1));
        let unseen = attack.attack(&model, &one, &label, &[9], Seed::new(0), Some(&mut cache)).unwrap();
        let plain =
            LsPgd::new(config(), threat()).unwrap().attack(&model, &one, &label, &[9], Seed::new(0), None).unwrap();
        assert_eq!(unseen.images, plain.images);
        // Without a warm start the cache is not read.
        let cold = LsPgd::new(LsPgdConfig { candidates: 1, ..config() }, threat()).unwrap();
        let cold = |cache| cold.attack(&model, &one, &label, &[9], Seed::new(0), cache).unwrap().images;
        assert_eq!(cold(Some(&mut cache)), cold(None));
    }

    #[test]
    fn a_cache_goes_on_from_its_state() {
        let model = Toy::new(5);
        let (images, labels, ids) = batch(6, 6);
        let attack = LsPgd::new(LsPgdConfig { warm_start: true, reuse: true, ..config() }, threat()).unwrap();
        let mut old = PerturbationCache::new(6, [3, 2, 2], Device::Cpu);
        let first = attack.attack(&model, &images, &labels, &ids, Seed::new(0), Some(&mut old)).unwrap();
        let (deltas, losses) = old.state();
        let saved = (deltas.copy(), losses.copy());
        let mut new = PerturbationCache::new(6, [3, 2, 2], Device::Cpu);
        new.load_state(&deltas, &losses).unwrap();
        // Remembered losses hold, so all perturbations stay.
        let second = attack.attack(&model, &images, &labels, &ids, Seed::new(0), Some(&mut new)).unwrap();
        assert_eq!((second.reused, &second.images), (6, &first.images));
        // What was saved does not follow the cache.
        let on = LsPgd::new(LsPgdConfig { warm_start: true, ..config() }, threat()).unwrap();
        on.attack(&Toy::new(8), &images, &labels, &ids, Seed::new(0), Some(&mut old)).unwrap();
        assert_ne!(old.state(), saved);
        assert_eq!((deltas, losses), saved);
    }

    #[test]
    fn a_cache_without_a_row_for_a_sample_is_an_error() {
        let model = Toy::new(5);
        let (images, labels, ids) = batch(6, 6);
        let attack = LsPgd::new(LsPgdConfig { warm_start: true, ..config() }, threat()).unwrap();
        let message = |n, shape| {
            let mut cache = PerturbationCache::new(n, shape, Device::Cpu);
            attack.attack(&model, &images, &labels, &ids, Seed::new(0), Some(&mut cache)).unwrap_err().to_string()
        };
        let largest = ids.iter().max().unwrap();
        let n = *largest as usize;
        assert_eq!(
            message(n, [3, 2, 2]),
            format!("ls-pgd: sample {largest} has no row in a cache of {n} perturbations; ids are below {n}")
        );
        assert_eq!(
            message(n + 1, [1, 2, 2]),
            "ls-pgd: the cache holds perturbations [1, 2, 2], the images are [6, 3, 2, 2]"
        );
    }

    #[test]
    fn reuse_searches_only_where_the_loss_fell() {
        let (images, labels, ids) = batch(6, 8);
        let attack = LsPgd::new(LsPgdConfig { warm_start: true, reuse: true, ..config() }, threat()).unwrap();
        let mut cache = PerturbationCache::new(8, [3, 2, 2], Device::Cpu);
        attack.attack(&Toy::new(5), &images, &labels, &ids, Seed::new(0), Some(&mut cache)).unwrap();
        let (deltas, losses) = cache.state();
        // Another network: some losses rise, some fall.
        let other = Toy::new(8);
        let there = loss_at(&other, &threat().project(&images, &(&images + &deltas)), &labels);
        let kept = there.ge_tensor(&losses);
        let n_kept = kept.to_kind(Kind::Int64).sum(Kind::Int64).int64_value(&[]) as u64;
        assert!(n_kept > 0 && n_kept < 8, "the seeds must exercise both branches, kept {n_kept}");
        let ours = attack.attack(&other, &images, &labels, &ids, Seed::new(0), Some(&mut cache)).unwrap();
        assert_eq!((ours.reused, ours.passes.backward_images), (n_kept, 8 - n_kept));
        let moved = (&ours.images - (&images + &deltas)).abs().amax([1i64, 2, 3].as_slice(), false).gt(1e-6);
        assert_eq!(moved.logical_and(&kept).any().int64_value(&[]), 0, "kept samples do not move");
        let expected = hinge(&loss::margin(&other.logits(&ours.images).unwrap(), &labels));
        assert!((ours.scores - expected).abs().max().double_value(&[]) < 1e-5);
    }

    /// Logits `[slope * x, 0]` of images of one pixel.
    fn sloping(slope: f64) -> impl Classifier {
        toys::function(move |images| {
            let x = images.view([-1, 1]);
            Tensor::cat(&[&x * slope, x.zeros_like()], 1)
        })
    }

    /// A pixel of 0.5 of class 1, whose loss `ln(1 + exp(slope * x))` rises with x, so the attack ends at 0.75.
    #[test]
    fn a_kept_perturbation_keeps_the_loss_it_was_stored_with() {
        let config = LsPgdConfig { rel_step_size: 1.0, candidates: 1, warm_start: true, reuse: true, ..config() };
        let threat = ThreatModel::untargeted(Norm::Linf, "0.25".parse().unwrap());
        let attack = LsPgd::new(config, threat).unwrap();
        let (image, label) = (Tensor::full([1, 1, 1, 1], 0.5, (Kind::Float, Device::Cpu)), Tensor::from_slice(&[1i64]));
        let mut cache = PerturbationCache::new(1, [1, 1, 1], Device::Cpu);
        // slope, kept, stored loss: `python3 -c "from math import *; print([log(1 + exp(.75 * s)) for s in (1, 3, 2, .5)])"`
        // prints 1.136871, 2.350206, 1.701413, 0.898123. The third network is above the first, though below the second.
        for (slope, kept, stored) in [(1.0, 0, 1.136871), (3.0, 1, 1.136871), (2.0, 1, 1.136871), (0.5, 0, 0.898123)] {
            let ours = attack.attack(&sloping(slope), &image, &label, &[0], Seed::new(0), Some(&mut cache)).unwrap();
            let (deltas, losses) = cache.state();
            let got = losses.double_value(&[0]);
            assert!((got - stored).abs() < 1e-5, "slope {slope}: {got} is stored, not {stored}");
            assert_eq!((ours.reused, deltas.double_value(&[0])), (kept, 0.25), "slope {slope}");
        }
    }

    /// A random start is drawn once: what is remembered takes its place.
    #[test]
    fn only_what_is_not_remembered_starts_at_random() {
        // A step of 0.025, up.
        let config = LsPgdConfig { rel_step_size: 0.1, candidates: 1, start: Start::Random, ..config() };
        let threat = ThreatModel::untargeted(Norm::Linf, "0.25".parse().unwrap());
        let attack = |warm_start| LsPgd::new(LsPgdConfig { warm_start, ..config.clone() }, threat).unwrap();
        let images = Tensor::full([2, 1, 1, 1], 0.5, (Kind::Float, Device::Cpu));
        let (labels, ids) = (Tensor::from_slice(&[1i64, 1]), [0, 1]);
        let plain = attack(false).attack(&sloping(1.0), &images, &labels, &ids, Seed::new(4), None).unwrap().images;
        assert!(
            plain.max().double_value(&[]) < 0.7 && (plain.get(0) - plain.get(1)).abs().double_value(&[0, 0, 0]) > 0.01
        );
        let mut cache = PerturbationCache::new(2, [1, 1, 1], Device::Cpu);
        let mut next = || {
            attack(true).attack(&sloping(1.0), &images, &labels, &ids, Seed::new(4), Some(&mut cache)).unwrap().images
        };
        assert_eq!(next(), plain);
        assert!((next() - (plain + 0.025)).abs().max().double_value(&[]) < 1e-6);
    }

    /// Steps of 0.1 * 0.5 * 3^q: 0.05, 0.15 and 0.45. Each pixel is one of them away from the peak, above or below.
    #[test]
    fn each_sample_takes_its_best_step() {
        let config = LsPgdConfig { rel_step_size: 0.1, growth: 3.0, candidates: 3, ..config() };
        let attack = LsPgd::new(config, ThreatModel::untargeted(Norm::Linf, "0.5".parse().unwrap())).unwrap();
        let images = Tensor::from_slice(&[0.65f32, 0.55, 0.25, 0.75, 0.85]).view([5, 1, 1, 1]);
        let (labels, ids) = (Tensor::from_slice(&[1i64; 5]), [0, 1, 2, 3, 4]);
        // For class 1 nothing is worse than 0.7.
        let peak = toys::function(|images| {
            let x = images.view([-1, 1]);
            Tensor::cat(&[(&x - 0.7).square() * -50.0, x.zeros_like()], 1)
        });
        let found = attack.attack(&peak, &images, &labels, &ids, Seed::new(0), None).unwrap();
        assert!((&found.images - 0.7).abs().max().double_value(&[]) < 1e-6, "{}", found.images);
        // f_1 - f_0 at the peak.
        assert!(found.margins.abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn options_are_checked() {
        let check = |config| LsPgd::new(config, threat()).unwrap_err();
        assert_eq!(check(LsPgdConfig { rel_step_size: 0.0, ..config() }), LsPgdError::StepSize(0.0));
        assert_eq!(check(LsPgdConfig { growth: 1.0, ..config() }), LsPgdError::Growth(1.0));
        assert_eq!(check(LsPgdConfig { candidates: 0, ..config() }), LsPgdError::Candidates(0));
        assert_eq!(check(LsPgdConfig { reuse: true, ..config() }), LsPgdError::ReuseWithoutWarmStart);
        let l2 = ThreatModel::untargeted(Norm::L2, "1".parse().unwrap());
        assert_eq!(LsPgd::new(config(), l2).unwrap_err(), LsPgdError::Norm(Norm::L2));
        let aimed = ThreatModel { norm: Norm::Linf, goal: Goal::Targeted(c2r_base::TargetRule::Next), ..l2 };
        assert_eq!(LsPgd::new(config(), aimed).unwrap_err(), LsPgdError::Targeted);
    }

    #[test]
    fn parts_of_a_batch_make_the_same_companions() {
        let toy = Toy::new(3);
        let (images, labels, ids) = batch(1, 5);
        let config = LsPgdConfig {
            rel_step_size: 0.5,
            growth: 2.0,
            candidates: 2,
            warm_start: true,
            reuse: false,
            start: Start::Random,
        };
        let attack = LsPgd::new(config, threat()).unwrap();
        let mut caches = [(); 2].map(|()| PerturbationCache::new(5, [3, 2, 2], Device::Cpu));
        let [one, two] = &mut caches;
        let whole = attack.attack(&toy, &images, &labels, &ids, Seed::new(2), Some(one)).unwrap();
        let mut part = |from: i64, n: i64| {
            let [images, labels] = [&images, &labels].map(|tensor| tensor.narrow(0, from, n));
            let ids = &ids[from as usize..(from + n) as usize];
            attack.attack(&toy, &images, &labels, ids, Seed::new(2), Some(&mut *two)).unwrap()
        };
        let parts = Companions::cat(&[part(0, 2), part(2, 3)]);
        assert_eq!((parts.images, parts.scores, parts.margins), (whole.images, whole.scores, whole.margins));
        assert_eq!(parts.passes.forward_images, whole.passes.forward_images);
        assert_eq!(parts.passes.backward_images, whole.passes.backward_images);
        assert_eq!(caches[0].state(), caches[1].state());
    }
}
