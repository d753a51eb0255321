//! C²R, its ablations and its backbone: Li et al. 2026 (arXiv:2605.20606). docs/method.md has the
//! equations, and says where the paper is silent and what is ours.
//!
//! One update draws a network of the pool and a batch of synthetic images in curriculum order; companions
//! of both sides give the scores; class means of the synthetic images are pulled to those of attacked real
//! images, cross-entropy keeps them recognizable and the contrastive loss pulls them to their companions
//! and away from their nearest impostors. The network is then trained further on attacked real images.

use std::collections::BTreeMap;

use c2r_base::{Seed, grad::gradients, loss};
use c2r_core::{
    crl::{Candidates, Contrast, CrlConfig, class_mean_alignment, class_means, nearest_impostor_similarity},
    curriculum::Curriculum,
    ls_pgd::PerturbationCache,
    queue::{MemoryQueue, QueueConfig},
};
use c2r_data::{ClassSampler, decode_formation, dsa::DsaDraw};
use c2r_models::Model;
use rand::Rng;
use serde_json::json;
use tch::{Kind, Tensor};

use crate::{
    canvas::{Canvas, first_images},
    config::{
        AacConfig, Anchors, DistillConfig, MatchingConfig, ObjectiveConfig, RealCandidates, RobustTerm, Weighted,
    },
    distillation::DistillError,
    method::{Claims, Method, StepReport, Turn, quantiles},
    plan::Plan,
    pool::{Pool, Training},
    setting::Setting,
    state::{Entries, any, put_section, within},
};

/// Anchors whose similarities with a whole set and its companions are held at once when claims are measured.
const ANCHORS_AT_ONCE: i64 = 1024;

/// C²R in progress.
#[derive(Debug)]
pub(crate) struct C2r {
    matching: MatchingConfig,
    objective: ObjectiveConfig,
    eta: f64,
    crl: CrlConfig,
    aac: AacConfig,
    sampler: ClassSampler,
    pool: Pool,
    /// What is remembered for each network of the pool: embeddings and perturbations of different networks
    /// do not compare.
    memories: Vec<Memory>,
    /// Perturbations of real images, by position.
    real_cache: Option<PerturbationCache>,
    plan: Plan,
}

#[derive(Debug, Default)]
struct Memory {
    queue: Option<MemoryQueue>,
    cache: Option<PerturbationCache>,
}

impl C2r {
    pub(crate) fn new(setting: &Setting) -> Result<Self, DistillError> {
        let config = &setting.config;
        let pool = config.need(&config.pool, "pool")?;
        let objective = config.need(&config.objective, "objective")?.clone();
        let aac = config.need(&config.aac, "aac")?.clone();
        let real_cache = (setting.companion().remembers() && aac.remember.real())
            .then(|| PerturbationCache::new(setting.data.len(), setting.input.image_shape(), setting.device));
        Ok(Self {
            matching: config.need(&config.matching, "matching")?.clone(),
            eta: objective.eta.expect("the outer loop fills it in"),
            objective,
            crl: config.need(&config.crl, "crl")?.clone(),
            aac,
            sampler: ClassSampler::new(setting.seed.child("real", 0)),
            pool: Pool::new(pool.clone(), setting.seed.child("pool", 0)),
            memories: Vec::new(),
            real_cache,
            plan: Plan::default(),
        })
    }

    fn contrasts(&self) -> bool {
        self.objective.robust == RobustTerm::Crl
    }

    fn anchors_real(&self) -> bool {
        self.contrasts() && self.objective.anchors != Anchors::Synthetic
    }

    /// Decoded images in one iteration.
    fn synthetic_batch(&self, setting: &Setting, canvas: &Canvas) -> usize {
        match setting.config.images.batch_per_class {
            0 => canvas.labels().len(),
            per_class => per_class * setting.n_classes(),
        }
    }

    /// Visiting order of the decoded images for a new epoch; scores them all first where needed.
    ///
    /// A set that fits one batch has no order; its scores are computed with the batch itself.
    fn synthetic_order(
        &mut self,
        turn: &mut Turn<'_>,
        network: usize,
        decoded: &Tensor,
        seed: Seed,
    ) -> Result<Vec<usize>, DistillError> {
        let labels = turn.canvas.labels();
        let n = labels.len();
        let curriculum = &self.aac.synthetic;
        if self.synthetic_batch(turn.setting, turn.canvas) >= n && !curriculum.chooses() {
            return Ok((0..n).collect());
        }
        let mut scores = vec![0.0f32; n];
        if curriculum.needs_scores() {
            let ids: Vec<u64> = (0..n as u64).collect();
            let model = self.pool.member(network);
            let cache = self.memories[network].cache.as_mut();
            let setting = turn.setting;
            let found = setting.companion().make(model, decoded, &setting.label_tensor(labels), &ids, seed, cache)?;
            *turn.passes += &found;
            scores = Vec::try_from(&found.scores).expect("scores are f32 [N]");
        }
        Ok(curriculum.order(&scores, labels, turn.canvas.progress(), &mut seed.stream("order", 0)))
    }

    /// Embeddings of real images, clean and attacked, without gradients.
    fn real_side(
        &mut self,
        turn: &mut Turn<'_>,
        network: usize,
        seed: Seed,
        draw: &DsaDraw,
    ) -> Result<RealSide, DistillError> {
        let _no_grad = tch::no_grad_guard();
        let setting = turn.setting;
        let crl = self.contrasts();
        let candidates = self.objective.candidates;
        let remembers = crl && self.crl.queue.is_some();
        let needs_attacked =
            self.matching.attacked || self.anchors_real() || (crl && candidates != RealCandidates::None) || remembers;
        let needs_clean = !self.matching.attacked || self.anchors_real() || (crl && candidates == RealCandidates::Both);
        let t = turn.canvas.iteration();
        let positions = setting.real_positions(&mut self.sampler, t, self.matching.real_per_class);
        let (images, labels) = setting.data.batch(&positions, setting.device);
        let classes: Vec<i64> = positions.iter().map(|&position| setting.data.labels()[position]).collect();
        let model = self.pool.member(network);
        let curriculum = &self.aac.matching;
        let mut views = Vec::new();
        let (mut kept, mut weights, mut margins) = (None, None, None);
        if needs_attacked || curriculum.needs_scores() {
            let ids: Vec<u64> = positions.iter().map(|&position| position as u64).collect();
            let seed_of_attack = seed.child("real", 0);
            let cache = self.real_cache.as_mut();
            let found = setting.companion().make(model, &images, &labels, &ids, seed_of_attack, cache)?;
            *turn.passes += &found;
            margins = Some(quantiles(&found.margins));
            if curriculum.chooses() {
                let scores = Vec::<f32>::try_from(&found.scores).expect("scores are f32 [N]");
                let progress = turn.canvas.progress();
                let order = curriculum.order(&scores, &classes, progress, &mut seed.stream("matching", 0));
                let order: Vec<i64> = order.into_iter().map(|at| at as i64).collect();
                kept = Some(setting.label_tensor(&order));
            }
            if matches!(curriculum, Curriculum::Weight(_)) {
                weights = Some(curriculum.weights(&found.scores));
            }
            if needs_attacked {
                views.push(found.images);
            }
        }
        if needs_clean {
            views.push(images);
        }
        turn.passes.forward += (positions.len() * views.len()) as u64;
        let embeddings = setting.embed(model, &Tensor::cat(&views, 0), Some(draw));
        let mut parts = embeddings.split(positions.len() as i64, 0).into_iter();
        let mut side = |needed: bool| {
            let embeddings = needed.then(|| parts.next().expect("one part per view"))?;
            Some(Embedded { embeddings, labels: labels.shallow_clone() })
        };
        let (attacked, clean) = (side(needs_attacked), side(needs_clean));
        Ok(RealSide { attacked, clean, classes, kept, weights, margins })
    }

    /// `L_DM`: distance of class means, by the variance of the real embeddings; and that variance.
    fn match_means(&self, clean: &Tensor, labels: &Tensor, real: &RealSide, n_classes: i64) -> (Tensor, Tensor) {
        let target = if self.matching.attacked { &real.attacked } else { &real.clean };
        let target = target.as_ref().expect("what is matched was embedded");
        let target = match &real.kept {
            Some(at) => {
                let [embeddings, labels] = [&target.embeddings, &target.labels].map(|rows| rows.index_select(0, at));
                &Embedded { embeddings, labels }
            }
            None => target,
        };
        let spread = target.embeddings.var_dim([0i64].as_slice(), true, false).sum(Kind::Float).clamp_min(1e-12);
        let (synthetic_means, synthetic_counts) = class_means(clean, labels, n_classes, None);
        let (real_means, real_counts) =
            class_means(&target.embeddings, &target.labels, n_classes, real.weights.as_ref());
        // A sub-batch in literal order may miss classes, weights may be 0 for a whole class: nothing to match there.
        let present = synthetic_counts.gt(0.0).logical_and(&real_counts.gt(0.0)).to_kind(Kind::Float);
        let distances = (real_means - synthetic_means).square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        let n_present = present.sum(Kind::Float).clamp_min(1.0);
        ((distances * &present).sum(Kind::Float) / n_present / &spread, spread)
    }

    /// `L_CRL` of the anchors that the configuration names, and how similar their nearest impostors are on average;
    /// scalars.
    ///
    /// `weights`, f32 `[M]`: how much each synthetic anchor counts; all the same without.
    fn contrast(
        &self,
        network: usize,
        clean: &Embedded,
        perturbed: &Tensor,
        real: &RealSide,
        weights: Option<&Tensor>,
    ) -> (Tensor, Tensor) {
        let queue = self.memories[network].queue.as_ref();
        let impostors =
            |anchors: &Embedded| queue.and_then(|queue| queue.nearest_impostors(&anchors.embeddings, &anchors.labels));
        let chosen = |side: &Option<Embedded>, wanted: bool| side.as_ref().filter(|_| wanted).map(Embedded::shallow);
        let synthetic = || {
            let extra = [
                chosen(&real.clean, self.objective.candidates == RealCandidates::Both),
                chosen(&real.attacked, self.objective.candidates != RealCandidates::None),
            ];
            let extra: Vec<Candidates<'_>> = extra.iter().flatten().map(Embedded::candidates).collect();
            let far = impostors(clean);
            let Embedded { embeddings, labels } = clean;
            let Contrast { loss, nearest_impostor } =
                self.crl.contrast(embeddings, labels, perturbed, &extra, far.as_ref());
            let loss = weights.map_or_else(|| loss.mean(Kind::Float), |weights| weighted_mean(&loss, weights));
            (loss, nearest_impostor.mean(Kind::Float))
        };
        let on_real = || {
            let anchors = real.clean.as_ref().expect("real anchors were embedded");
            let companions = &real.attacked.as_ref().expect("companions of real anchors were embedded").embeddings;
            let extra = [clean.candidates(), Candidates { embeddings: perturbed, labels: &clean.labels }];
            let far = impostors(anchors);
            let Embedded { embeddings, labels } = anchors;
            let Contrast { loss, nearest_impostor } =
                self.crl.contrast(embeddings, labels, companions, &extra, far.as_ref());
            (loss.mean(Kind::Float), nearest_impostor.mean(Kind::Float))
        };
        match self.objective.anchors {
            Anchors::Synthetic => synthetic(),
            Anchors::Real => on_real(),
            Anchors::Both => {
                let ((a, similarity), (b, _)) = (synthetic(), on_real());
                ((a + b) * 0.5, similarity)
            }
        }
    }

    /// Puts attacked real embeddings into the network's queue.
    fn remember(&mut self, setting: &Setting, network: usize, real: &RealSide) {
        let Some((config, attacked)) = self.queue_config().zip(real.attacked.as_ref()) else { return };
        let dimension = attacked.embeddings.size()[1];
        self.memories[network]
            .queue
            .get_or_insert_with(|| new_queue(config, setting, dimension))
            .push(&attacked.embeddings, &real.classes);
    }

    fn queue_config(&self) -> Option<QueueConfig> {
        self.crl.queue.clone().filter(|_| self.contrasts())
    }

    fn new_cache(&self, setting: &Setting, n: usize) -> Option<PerturbationCache> {
        (setting.companion().remembers() && self.aac.remember.synthetic())
            .then(|| PerturbationCache::new(n, setting.input.image_shape(), setting.device))
    }

    /// Margin quantiles and mean nearest-impostor similarity of stored images, over all networks of the pool.
    fn look_at(&self, setting: &Setting, canvas: &Canvas, images: &Tensor) -> Result<([f64; 3], f64), DistillError> {
        let _no_grad = tch::no_grad_guard();
        let decoded = decode_formation(images, setting.config.images.formation)?;
        let labels = setting.label_tensor(canvas.labels());
        let ids: Vec<u64> = (0..canvas.labels().len() as u64).collect();
        let (mut margins, mut similarity) = (Vec::new(), 0.0);
        for network in 0..self.pool.len() {
            let model = self.pool.member(network);
            let seed = setting.seed.child("claims", network as u64);
            let found = setting.companion().make(model, &decoded, &labels, &ids, seed, None)?;
            let [clean, attacked] = [&decoded, &found.images].map(|images| setting.embed(model, images, None));
            let candidates = [&clean, &attacked].map(|embeddings| Candidates { embeddings, labels: &labels });
            let nearest: Vec<Tensor> = clean
                .split(ANCHORS_AT_ONCE, 0)
                .iter()
                .zip(labels.split(ANCHORS_AT_ONCE, 0))
                .map(|(anchors, labels)| nearest_impostor_similarity(anchors, &labels, &candidates))
                .collect();
            similarity += Tensor::cat(&nearest, 0).mean(Kind::Float).double_value(&[]) / self.pool.len() as f64;
            margins.push(found.margins);
        }
        Ok((quantiles(&Tensor::cat(&margins, 0)), similarity))
    }
}

impl Method for C2r {
    fn preparation(&self, setting: &Setting) -> (u64, u64) {
        let total = setting.config.pool.as_ref().map_or(0, Pool::steps_to_fill);
        (self.pool.steps_done().min(total), total)
    }

    fn is_prepared(&self, _: &Setting) -> bool {
        self.pool.is_full()
    }

    fn prepare(&mut self, turn: &mut Turn<'_>) -> Result<f64, DistillError> {
        let training = Training { setting: turn.setting, curriculum: &self.aac.pool };
        self.pool.fill_step(training, self.real_cache.as_mut(), turn.passes)
    }

    fn prepared_from(&self, setting: &Setting) -> Option<serde_json::Value> {
        let DistillConfig { pool, companions, threat, .. } = &setting.config;
        // Perturbations of real images that are remembered go on into the updates.
        self.real_cache.is_none().then(|| {
            json!({"method": "c2r", "pool": pool, "companions": companions, "threat": threat, "aac.pool": self.aac.pool})
        })
    }

    fn update(&mut self, turn: &mut Turn<'_>) -> Result<StepReport, DistillError> {
        let setting = turn.setting;
        let seed = setting.seed.child("iteration", turn.canvas.iteration());
        let network = seed.stream("network", 0).random_range(0..self.pool.len());
        if self.memories.len() < self.pool.len() {
            self.memories.resize_with(self.pool.len(), Memory::default);
        }
        if self.memories[network].cache.is_none() {
            self.memories[network].cache = self.new_cache(setting, turn.canvas.labels().len());
        }

        // Synthetic side: the next batch in curriculum order, its companions and scores.
        let (tracked, decoded) = turn.canvas.tracked()?;
        if self.plan.is_finished() {
            self.plan = Plan::new(self.synthetic_order(turn, network, &decoded.detach(), seed)?);
        }
        let batch = self.plan.next(self.synthetic_batch(setting, turn.canvas));
        let index = setting.label_tensor(&batch.iter().map(|&at| at as i64).collect::<Vec<_>>());
        let labels: Vec<i64> = batch.iter().map(|&at| turn.canvas.labels()[at]).collect();
        let labels = setting.label_tensor(&labels);
        let synthetic = tch::with_grad(|| decoded.index_select(0, &index));
        let needs_companions = self.objective.robust != RobustTerm::None || self.aac.synthetic.needs_scores();
        let mut companions = None;
        if needs_companions {
            let ids: Vec<u64> = batch.iter().map(|&at| at as u64).collect();
            let model = self.pool.member(network);
            let cache = self.memories[network].cache.as_mut();
            let found = setting.companion().make(model, &synthetic.detach(), &labels, &ids, seed, cache)?;
            *turn.passes += &found;
            companions = Some(found);
        }

        // Real side, the same augmentation draw.
        let draw = setting.config.dsa.draw(&mut seed.stream("dsa", 0));
        let real = self.real_side(turn, network, seed, &draw)?;

        let model = self.pool.member(network);
        let n = batch.len() as i64;
        let n_classes = setting.input.n_classes;
        let mut report = StepReport { real_margin_quantiles: real.margins, ..StepReport::default() };
        let has_robust = self.objective.robust != RobustTerm::None;
        let (value, terms) = tch::with_grad(|| {
            let views = match &companions {
                // The perturbation is a constant: gradients reach the image through x + d as through x.
                Some(found) => Tensor::cat(&[&synthetic, &(&synthetic + (&found.images - synthetic.detach()))], 0),
                None => synthetic.shallow_clone(),
            };
            let embeddings = model.features(&setting.augmented(&views, &draw));
            let clean = Embedded { embeddings: embeddings.narrow(0, 0, n), labels: labels.shallow_clone() };
            let perturbed = companions.as_ref().map(|_| embeddings.narrow(0, n, n));
            let (matching, spread) = self.match_means(&clean.embeddings, &labels, &real, n_classes);

            let weights = match &companions {
                Some(found) => self.aac.synthetic.weights(&found.scores),
                None => Tensor::ones([n], (Kind::Float, setting.device)),
            };
            let entropy = loss::ce(&model.classify(&clean.embeddings), &labels);
            let performance = weighted_mean(&entropy, &weights);
            let anchor_weights = Some(&weights).filter(|_| self.aac.weighted == Weighted::Both);
            let confidence = if self.objective.by_accuracy { self.pool.accuracy(network) } else { 1.0 };

            let mut similarity = None;
            let robust = match (self.objective.robust, &perturbed) {
                (RobustTerm::Crl, Some(perturbed)) => {
                    let (loss, nearest) = self.contrast(network, &clean, perturbed, &real, anchor_weights);
                    similarity = Some(nearest);
                    loss
                }
                (RobustTerm::ClassMean, Some(perturbed)) => {
                    class_mean_alignment(&clean.embeddings, perturbed, &labels, n_classes, anchor_weights)
                        / n_classes as f64
                        / &spread
                }
                _ => Tensor::zeros([], (Kind::Float, setting.device)),
            };
            let robust_share = self.eta * self.objective.robust_weight;
            let value = &matching * self.matching.weight
                + (&performance * confidence * (1.0 - self.eta) + &robust * robust_share) * self.objective.weight;
            (value, [Some(matching), Some(performance), has_robust.then_some(robust), similarity])
        });
        let gradient = gradients(&value, &[&tracked]).swap_remove(0);
        let n_views = n as u64 * if companions.is_some() { 2 } else { 1 };
        turn.passes.forward += n_views;
        turn.passes.backward += n_views;
        // Numbers are read once all work of the iteration is on its way: a read waits for the device.
        let read = |scalar: Option<Tensor>| scalar.map(|scalar| scalar.double_value(&[]));
        [report.matching, report.performance, report.robust, report.impostor_similarity] = terms.map(read);
        report.loss = value.double_value(&[]);
        report.margin_quantiles = companions.as_ref().map(|found| quantiles(&found.margins));
        turn.canvas.descend(&gradient, report.loss)?;

        self.remember(setting, network, &real);
        let training = Training { setting, curriculum: &self.aac.pool };
        if self.pool.grow(network, training, self.real_cache.as_mut(), turn.passes)? {
            self.memories[network] = Memory::default();
        }
        Ok(report)
    }

    fn state(&self, into: &mut BTreeMap<String, Tensor>) {
        into.insert("plan".to_owned(), self.plan.state());
        self.pool.state(into);
        for (index, memory) in self.memories.iter().enumerate() {
            if let Some(queue) = &memory.queue {
                let (rows, projected, pushed) = queue.state();
                let parts = [("rows", rows), ("projected", projected), ("pushed", pushed)];
                put_section(into, &format!("queue.{index:04}."), parts.map(|(part, tensor)| (part.to_owned(), tensor)));
            }
            if let Some(cache) = &memory.cache {
                put_section(into, &format!("cache.{index:04}."), cache_state(cache));
            }
        }
        if let Some(cache) = &self.real_cache {
            put_section(into, "real-cache.", cache_state(cache));
        }
    }

    fn load_state(&mut self, setting: &Setting, state: &BTreeMap<String, Tensor>) -> Result<(), DistillError> {
        let n = n_decoded(setting);
        self.plan = Plan::from_state(state, "plan", n)?;
        self.pool.load_state(state, Training { setting, curriculum: &self.aac.pool })?;
        self.memories = (0..self.pool.len()).map(|_| Memory::default()).collect();
        for index in 0..self.memories.len() {
            let queue = format!("queue.{index:04}");
            if let (true, Some(config)) = (state.contains_key(&format!("{queue}.rows")), self.queue_config()) {
                let dimension = n_features(self.pool.member(index));
                let mut stored = new_queue(config, setting, dimension);
                let [rows, projected, pushed] =
                    ["rows", "projected", "pushed"].map(|part| any(state, &format!("{queue}.{part}")));
                stored.load_state(rows?, projected?, pushed?).map_err(|reason| within(&queue, reason))?;
                self.memories[index].queue = Some(stored);
            }
            let prefix = format!("cache.{index:04}");
            if let (true, Some(mut cache)) =
                (state.contains_key(&format!("{prefix}.deltas")), self.new_cache(setting, n))
            {
                load_cache(&mut cache, state, &prefix)?;
                self.memories[index].cache = Some(cache);
            }
        }
        if let Some(cache) = &mut self.real_cache {
            load_cache(cache, state, "real-cache")?;
        }
        Ok(())
    }

    fn claims(&self, setting: &Setting, canvas: &Canvas) -> Result<Option<Claims>, DistillError> {
        if self.pool.is_empty() {
            return Ok(None);
        }
        let first = first_images(&setting.config, &setting.spec, &setting.data, setting.seed, setting.device)?;
        let before = self.look_at(setting, canvas, &first)?;
        let after = self.look_at(setting, canvas, canvas.images())?;
        Ok(Some(Claims {
            margin_quantiles_before: before.0,
            margin_quantiles_after: after.0,
            impostor_similarity_before: before.1,
            impostor_similarity_after: after.1,
        }))
    }
}

/// Mean of `values`, f32 `[N]`, each counting as much as its weight, f32 `[N]`.
fn weighted_mean(values: &Tensor, weights: &Tensor) -> Tensor {
    (values * weights).sum(Kind::Float) / weights.sum(Kind::Float)
}

/// Decoded images of the whole set.
fn n_decoded(setting: &Setting) -> usize {
    let config = &setting.config;
    setting.n_classes() * config.ipc * (config.images.formation * config.images.formation) as usize
}

fn cache_state(cache: &PerturbationCache) -> [(String, Tensor); 2] {
    let (deltas, losses) = cache.state();
    [("deltas".to_owned(), deltas), ("losses".to_owned(), losses)]
}

fn load_cache(cache: &mut PerturbationCache, state: &Entries, prefix: &str) -> Result<(), DistillError> {
    let [deltas, losses] = ["deltas", "losses"].map(|part| any(state, &format!("{prefix}.{part}")));
    cache.load_state(deltas?, losses?).map_err(|reason| within(prefix, reason))
}

fn new_queue(config: QueueConfig, setting: &Setting, dimension: i64) -> MemoryQueue {
    MemoryQueue::new(config, setting.n_classes(), dimension, setting.seed.child("queue", 0), setting.device)
}

/// Length of the embeddings of `model`.
fn n_features(model: &Model) -> i64 {
    let _no_grad = tch::no_grad_guard();
    let [c, h, w] = model.input().image_shape();
    model.features(&Tensor::zeros([1, c, h, w], (Kind::Float, model.device()))).size()[1]
}

/// Embeddings f32 `[A, D]` with their labels i64 `[A]`.
#[derive(Debug)]
struct Embedded {
    embeddings: Tensor,
    labels: Tensor,
}

impl Embedded {
    const fn candidates(&self) -> Candidates<'_> {
        Candidates { embeddings: &self.embeddings, labels: &self.labels }
    }

    fn shallow(&self) -> Self {
        Self { embeddings: self.embeddings.shallow_clone(), labels: self.labels.shallow_clone() }
    }
}

/// The real images of an iteration; a side that nothing looks at is absent.
struct RealSide {
    attacked: Option<Embedded>,
    clean: Option<Embedded>,
    /// Class of each image.
    classes: Vec<i64>,
    /// Positions of the images whose class means are matched, i64; all of them without.
    kept: Option<Tensor>,
    /// How much each image counts in its class mean.
    weights: Option<Tensor>,
    margins: Option<[f64; 3]>,
}
