//! One iteration of C²R, from top to bottom: [`C2r::update`].
//!
//! It draws a network of the pool and a batch of synthetic images in curriculum order; companions
//! of both sides give the scores; class means of the synthetic images are pulled to those of attacked real
//! images, cross-entropy keeps them recognizable and the contrastive loss pulls them to their companions
//! and away from their nearest impostors. The network is then trained further on attacked real images.

use c2r_base::{Seed, grad::gradients, host::to_vec, loss};
use c2r_core::{
    crl::{Candidates, class_mean_alignment, nearest_impostor_similarity},
    ls_pgd::{Companions, PerturbationCache},
    queue::{MemoryQueue, QueueConfig},
};
use c2r_data::decode_formation;
use c2r_models::Model;
use c2r_train::{
    read,
    state::{State, StateError},
};
use rand::Rng;
use serde_json::json;
use tch::{Kind, Tensor};

use super::{
    config::{C2rConfig, Reduction, Remember, RobustTerm, Weighted},
    real::{Embedded, RealImages},
    terms::{contrast, match_means, weighted_mean},
    views::Views,
};
use crate::{
    config::{Place, ThreatConfig},
    context::Context,
    error::{DistillError, check_scores},
    method::{Effect, Measured, Method, Step, quantiles},
    parts::{
        companions::Attacked,
        epoch::Epoch,
        images::{SyntheticImages, first_images},
        pool::Pool,
        real_rows::RealRows,
    },
};

/// Anchors whose similarities with a whole set and its companions are held at once when an effect is measured.
const ANCHORS_AT_ONCE: i64 = 1024;

/// C²R in progress.
#[derive(Debug)]
pub(super) struct C2r {
    config: C2rConfig,
    real: RealRows,
    pool: Pool,
    /// What is remembered for each network of the pool: embeddings and perturbations of different networks
    /// do not compare.
    memories: Vec<Memory>,
    /// Perturbations of real images, by position.
    real_cache: Option<PerturbationCache>,
    epoch: Epoch,
}

#[derive(Debug, Default)]
struct Memory {
    queue: Option<MemoryQueue>,
    cache: Option<PerturbationCache>,
}

/// What an update draws first.
struct Drawn {
    seed: Seed,
    /// Of the pool.
    network: usize,
    augmentation: Views,
}

/// Synthetic images of an update.
struct Batch {
    /// f32 `[n, C, H, W]` in `[0, 1]`, tracked.
    images: Tensor,
    /// i64 `[n]`.
    labels: Tensor,
    /// Those of the decoded images.
    positions: Vec<usize>,
    /// The labels.
    classes: Vec<i64>,
}

impl C2r {
    pub(super) fn new(config: C2rConfig, context: &Context) -> Result<Self, DistillError> {
        let pool = context.common.pool.clone().ok_or_else(|| context.missing("pool"))?;
        let remembers_real = context.common.remembers_at(Place::Matching) && config.aac.remember != Remember::Synthetic;
        Ok(Self {
            real: RealRows::new(context, config.matching.real_per_class),
            pool: Pool::new(pool, config.aac.pool.clone(), context.seed.child("pool", 0)),
            memories: Vec::new(),
            real_cache: remembers_real.then(|| new_cache(context, context.data.len())),
            epoch: Epoch::default(),
            config,
        })
    }

    fn queue_config(&self) -> Option<QueueConfig> {
        self.config.crl.queue.clone().filter(|_| self.config.contrasts())
    }

    /// Visiting order of the decoded images for a new epoch; scores them all first where needed.
    fn synthetic_order(
        &mut self,
        step: &mut Step<'_>,
        network: usize,
        decoded: &Tensor,
        seed: Seed,
    ) -> Result<Vec<usize>, DistillError> {
        let (context, labels) = (step.context, step.images.labels());
        let curriculum = &self.config.aac.synthetic;
        let all: Vec<usize> = (0..labels.len()).collect();
        let mut scores = vec![0.0f32; labels.len()];
        // Where perturbations are remembered, this pass also renews those that the weights come from.
        if curriculum.sorts() || (curriculum.needs_scores() && self.memories[network].cache.is_some()) {
            let attacked = Attacked { images: decoded, labels: step.images.targets(), positions: &all };
            let cache = self.memories[network].cache.as_mut();
            let model = self.pool.network(network);
            let companions = context.attack(Place::Synthetic, model, attacked, seed, cache, step.passes)?;
            scores = to_vec(&companions.scores);
            check_scores(&scores, step.images.iteration() + 1)?;
        }
        Ok(curriculum.order(&scores, labels, step.images.progress(), &mut seed.stream("order", 0)))
    }

    /// Replaces a network of the pool if one is due, and draws that of this iteration.
    fn network(&mut self, step: &mut Step<'_>, seed: Seed) -> Result<usize, DistillError> {
        let (context, t) = (step.context, step.images.iteration());
        if self.pool.push(t, step, self.real_cache.as_mut())? && !self.memories.is_empty() {
            self.memories.remove(0);
        }
        let network = seed.stream("network", 0).random_range(0..self.pool.len());
        if self.memories.len() < self.pool.len() {
            self.memories.resize_with(self.pool.len(), Memory::default);
        }
        if self.memories[network].cache.is_none() && self.config.remembers_synthetic(&context.common) {
            self.memories[network].cache = Some(new_cache(context, step.images.labels().len()));
        }
        Ok(network)
    }

    /// The next batch of the `decoded` images in curriculum order.
    fn batch(&mut self, step: &mut Step<'_>, drawn: &Drawn, decoded: Tensor) -> Result<Batch, DistillError> {
        let context = step.context;
        let n_decoded = step.images.labels().len();
        let batch_size = match context.common.images.batch_per_class {
            0 => n_decoded,
            per_class => per_class * context.n_classes(),
        };
        let (positions, images, labels);
        if batch_size >= n_decoded && !self.config.aac.synthetic.chooses() {
            // A set that fits one batch has no order; its scores are computed with the batch itself.
            positions = (0..n_decoded).collect();
            (images, labels) = (decoded, step.images.targets().shallow_clone());
        } else {
            if self.epoch.is_finished() {
                let decoded = drawn.augmentation.to_attack(context, &decoded);
                self.epoch = Epoch::new(self.synthetic_order(step, drawn.network, &decoded, drawn.seed)?);
            }
            let rows = self.epoch.next(batch_size, context.device);
            images = tch::with_grad(|| decoded.index_select(0, &rows.index));
            labels = step.images.targets().index_select(0, &rows.index);
            positions = rows.positions;
        }
        let classes = positions.iter().map(|&position| step.images.labels()[position]).collect();
        Ok(Batch { images, labels, positions, classes })
    }

    /// The images of a batch, followed by their companions if there are any, f32 `[n or 2 n, C, H, W]`; augmented if that
    /// comes before the attack.
    fn views(
        &mut self,
        step: &mut Step<'_>,
        drawn: &Drawn,
        batch: &Batch,
    ) -> Result<(Tensor, Option<Companions>), DistillError> {
        let (context, &Drawn { seed, network, ref augmentation }) = (step.context, drawn);
        let mut views = batch.images.shallow_clone();
        if augmentation.attack_after {
            views = tch::with_grad(|| augmentation.augment(context, &views, &batch.classes));
        }
        if !self.config.attacks_synthetic() {
            return Ok((views, None));
        }
        let clean = augmentation.to_attack(context, &views);
        let attacked = Attacked { images: &clean, labels: &batch.labels, positions: &batch.positions };
        let (model, cache) = (self.pool.network(network), self.memories[network].cache.as_mut());
        let made = context.attack(Place::Synthetic, model, attacked, seed, cache, step.passes)?;
        // The perturbation is a constant: gradients reach the image through x + d as through x.
        let views = tch::with_grad(|| Tensor::cat(&[&views, &(&views + (&made.images - clean))], 0));
        Ok((views, Some(made)))
    }

    /// The loss of the images, and its terms: matching, cross-entropy, the robust one and the similarity of the nearest
    /// impostors; scalars.
    fn loss(
        &self,
        context: &Context,
        &Drawn { network, ref augmentation, .. }: &Drawn,
        batch: &Batch,
        views: Tensor,
        companions: Option<&Companions>,
        real: &RealImages,
    ) -> (Tensor, [Option<Tensor>; 4]) {
        let C2rConfig { matching: matching_config, objective, aac, .. } = &self.config;
        let (labels, n, n_classes) = (&batch.labels, batch.positions.len() as i64, context.input.n_classes);
        let n_views = if companions.is_some() { 2 } else { 1 };
        let model = self.pool.network(network);
        let views = if augmentation.attack_after {
            views
        } else {
            augmentation.augment(context, &views, &batch.classes.repeat(n_views))
        };
        let embeddings = model.features(&views);
        let clean = Embedded { embeddings: embeddings.narrow(0, 0, n), labels: labels.shallow_clone() };
        let perturbed = companions.map(|_| embeddings.narrow(0, n, n));
        let (matching, spread) = match_means(&self.config, &clean, real, n_classes);

        let weights = match companions {
            Some(made) => aac.synthetic.weights(&made.scores),
            None => Tensor::ones([n], (Kind::Float, context.device)),
        };
        let entropy = loss::ce(&model.classify(&clean.embeddings), labels);
        let performance = weighted_mean(&entropy, &weights);
        let anchor_weights = Some(&weights).filter(|_| aac.weighted == Weighted::Both);

        let mut similarity = None;
        let robust = match (objective.robust, &perturbed) {
            (RobustTerm::Crl, Some(perturbed)) => {
                let queue = self.memories[network].queue.as_ref();
                let (loss, nearest) = contrast(&self.config, queue, &clean, perturbed, real, anchor_weights);
                similarity = Some(nearest);
                loss
            }
            (RobustTerm::ClassMean, Some(perturbed)) => {
                class_mean_alignment(&clean.embeddings, perturbed, labels, n_classes, anchor_weights)
                    / n_classes as f64
                    / &spread
            }
            _ => Tensor::zeros([], (Kind::Float, context.device)),
        };
        let robust_share = objective.eta * objective.robust_weight;
        let confident = if objective.by_accuracy {
            &performance * self.pool.accuracy(network).to_kind(Kind::Float)
        } else {
            performance.shallow_clone()
        };
        let value = &matching * matching_config.weight
            + (confident * (1.0 - objective.eta) + &robust * robust_share) * objective.weight;
        let value = match objective.reduction {
            Reduction::Mean => value,
            Reduction::Sum => value * n_classes as f64,
        };
        let robust = (objective.robust != RobustTerm::None).then_some(robust);
        (value, [Some(matching), Some(performance), robust, similarity])
    }

    /// Attacked real embeddings go into the network's queue, and networks learn.
    fn learn(&mut self, step: &mut Step<'_>, drawn: &Drawn, real: &RealImages) -> Result<(), DistillError> {
        let (context, &Drawn { seed, network, .. }) = (step.context, drawn);
        if let Some((config, attacked)) = self.queue_config().zip(real.attacked.as_ref()) {
            let dimension = attacked.embeddings.size()[1];
            self.memories[network]
                .queue
                .get_or_insert_with(|| new_queue(config, context, dimension))
                .push(&attacked.embeddings, &real.classes);
        }
        for index in self.pool.to_train(network, &mut seed.stream("trained", 0)) {
            if self.pool.grow(index, step, self.real_cache.as_mut())? {
                self.memories[index] = Memory::default();
            }
        }
        Ok(())
    }

    /// Margin quantiles and mean nearest-impostor similarity of stored images, over all networks of the pool.
    fn measure(&self, context: &Context, labels: &Tensor, images: &Tensor) -> Result<([f64; 3], f64), DistillError> {
        let _no_grad = tch::no_grad_guard();
        let decoded = decode_formation(images, context.common.images.formation)?;
        let positions: Vec<usize> = (0..labels.numel()).collect();
        let (mut margins, mut similarity) = (Vec::new(), 0.0);
        for network in 0..self.pool.len() {
            let model = self.pool.network(network);
            let seed = context.seed.child("claims", network as u64);
            let attacked = Attacked { images: &decoded, labels, positions: &positions };
            let uncounted = &mut Default::default();
            let companions = context.attack(Place::Synthetic, model, attacked, seed, None, uncounted)?;
            let [clean, attacked] = [&decoded, &companions.images].map(|images| context.embed(model, images, None));
            let candidates = [&clean, &attacked].map(|embeddings| Candidates { embeddings, labels });
            let nearest: Vec<Tensor> = clean
                .split(ANCHORS_AT_ONCE, 0)
                .iter()
                .zip(labels.split(ANCHORS_AT_ONCE, 0))
                .map(|(anchors, labels)| nearest_impostor_similarity(anchors, &labels, &candidates))
                .collect();
            similarity += Tensor::cat(&nearest, 0).mean(Kind::Float).double_value(&[]) / self.pool.len() as f64;
            margins.push(companions.margins);
        }
        let quantiles = read(&[quantiles(&Tensor::cat(&margins, 0))]);
        Ok((quantiles.try_into().expect("three quantiles"), similarity))
    }
}

impl Method for C2r {
    fn preparation(&self) -> (u64, u64) {
        self.pool.filling()
    }

    fn is_prepared(&self) -> bool {
        self.pool.is_full()
    }

    fn prepare(&mut self, step: &mut Step<'_>) -> Result<(), DistillError> {
        self.pool.fill_step(step, self.real_cache.as_mut())
    }

    fn prepared_from(&self, context: &Context) -> Option<serde_json::Value> {
        let (common, order) = (&context.common, &self.config.aac.pool);
        let (pool, companions) = (&common.pool, common.companions_at(Place::Pool));
        let threat = ThreatConfig { epsilon: common.threat_at(Place::Pool).epsilon, ..common.threat };
        // Perturbations of real images that are remembered go on into the updates.
        self.real_cache.is_none().then(
            || json!({"method": "c2r", "pool": pool, "companions": companions, "threat": threat, "aac.pool": order}),
        )
    }

    fn update(&mut self, step: &mut Step<'_>) -> Result<Measured, DistillError> {
        let context = step.context;
        let t = step.images.iteration();
        let seed = context.seed.child("iteration", t);
        let network = self.network(step, seed)?;
        let drawn = Drawn { seed, network, augmentation: Views::new(&self.config.objective, context, seed) };
        let (tracked, decoded) = step.images.tracked()?;
        let batch = self.batch(step, &drawn, decoded)?;
        let (views, companions) = self.views(step, &drawn, &batch)?;

        // Real side, the same augmentation.
        let rows = self.real.of(context, t);
        let (model, cache) = (self.pool.network(network), self.real_cache.as_mut());
        let real = RealImages::new(&self.config, &rows, model, cache, step, seed, &drawn.augmentation)?;

        let n_views = views.size()[0];
        let (value, terms) = tch::with_grad(|| self.loss(context, &drawn, &batch, views, companions.as_ref(), &real));
        let gradient = gradients(&value, &[&tracked]).swap_remove(0);
        step.passes.forward += n_views as u64;
        step.passes.backward += n_views as u64;
        let [matching, performance, robust, impostor_similarity] =
            terms.map(|scalar| scalar.map(|scalar| scalar.detach()));
        step.descend(&gradient, &value);
        self.learn(step, &drawn, &real)?;
        Ok(Measured {
            loss: value.detach(),
            matching,
            performance,
            robust,
            impostor_similarity,
            margins: companions.map(|made| made.margins),
            real_margins: real.margins,
            ..Measured::default()
        })
    }

    fn state(&mut self, context: &Context, state: &mut State<'_>) -> Result<(), DistillError> {
        let n = context.n_classes() * context.common.decoded_per_class();
        self.epoch.state(state, n)?;
        self.pool.state(context, state)?;
        if state.reads() {
            self.memories = (0..self.pool.len()).map(|_| Memory::default()).collect();
        }
        let (queue_config, remembers) = (self.queue_config(), self.config.remembers_synthetic(&context.common));
        for (index, memory) in self.memories.iter_mut().enumerate() {
            let (queue, cache) = (format!("queue.{index:04}."), format!("cache.{index:04}."));
            if let Some(config) = &queue_config {
                let dimension = || n_features(self.pool.network(index));
                let new = || Ok::<_, StateError>(new_queue(config.clone(), context, dimension()));
                state.optional(&format!("{queue}rows"), &mut memory.queue, new)?;
            }
            if remembers {
                let new = || Ok::<_, StateError>(new_cache(context, n));
                state.optional(&format!("{cache}deltas"), &mut memory.cache, new)?;
            }
            if let Some(own) = &mut memory.queue {
                state.section(&queue, |state| queue_state(own, state))?;
            }
            if let Some(own) = &mut memory.cache {
                state.section(&cache, |state| cache_state(own, state))?;
            }
        }
        if let Some(cache) = &mut self.real_cache {
            state.section("real-cache.", |state| cache_state(cache, state))?;
        }
        Ok(())
    }

    fn effect(&self, context: &Context, images: &SyntheticImages) -> Result<Option<Effect>, DistillError> {
        if self.pool.len() == 0 {
            return Ok(None);
        }
        let first = first_images(&context.common, &context.spec, &context.data, context.seed, context.device)?;
        let before = self.measure(context, images.targets(), &first)?;
        let after = self.measure(context, images.targets(), &images.stored())?;
        Ok(Some(Effect {
            margin_quantiles_before: before.0,
            margin_quantiles_after: after.0,
            impostor_similarity_before: before.1,
            impostor_similarity_after: after.1,
        }))
    }
}

fn new_cache(context: &Context, n: usize) -> PerturbationCache {
    PerturbationCache::new(n, context.input.image_shape(), context.device)
}

fn cache_state(cache: &mut PerturbationCache, state: &mut State<'_>) -> Result<(), StateError> {
    if state.reads() {
        let read = cache.load_state(state.get("deltas")?, state.get("losses")?);
        return read.map_err(|reason| StateError(format!("`{}`: {reason}", state.name(""))));
    }
    let (deltas, losses) = cache.state();
    state.put("deltas", deltas);
    state.put("losses", losses);
    Ok(())
}

fn new_queue(config: QueueConfig, context: &Context, dimension: i64) -> MemoryQueue {
    MemoryQueue::new(config, context.n_classes(), dimension, context.seed.child("queue", 0), context.device)
}

fn queue_state(queue: &mut MemoryQueue, state: &mut State<'_>) -> Result<(), StateError> {
    if state.reads() {
        let read = queue.load_state(state.get("rows")?, state.get("projected")?, state.get("pushed")?);
        return read.map_err(|reason| StateError(format!("`{}`: {reason}", state.name(""))));
    }
    let (rows, projected, pushed) = queue.state();
    state.put("rows", rows);
    state.put("projected", projected);
    state.put("pushed", pushed);
    Ok(())
}

/// Length of the embeddings of `model`.
fn n_features(model: &Model) -> i64 {
    let _no_grad = tch::no_grad_guard();
    let [c, h, w] = model.input().image_shape();
    model.features(&Tensor::zeros([1, c, h, w], (Kind::Float, model.device()))).size()[1]
}
