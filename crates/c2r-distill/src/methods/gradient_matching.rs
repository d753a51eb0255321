//! DC and DSA: gradient matching. Zhao et al. 2021, "Dataset condensation with gradient matching"
//! (arXiv:2006.05929), equations 9 and 10, algorithm 1; Zhao & Bilen 2021, "Dataset condensation with
//! differentiable Siamese augmentation" (arXiv:2102.08259), equation 7:
//!
//! `L = sum_c D( grad_theta L(A(S_c), theta), grad_theta L(A(T_c), theta) )`,
//! `D(a, b) = sum_layers sum_out (1 - <a_out, b_out> / (|a_out| |b_out|))`
//!
//! over the rows of each layer's weight that belong to one output; biases and norms do not count. A is one
//! DSA draw per class, the same on both sides (DSA), or nothing (DC). A new random network is drawn every
//! `outer` updates; between two updates it learns the synthetic images for `inner` epochs, augmented as in any
//! training of a network: parameters of their own for each image.
//!
//! Defaults (`data/profiles/dc.toml`, `dsa.toml`) are those of the authors' code: 1,000 networks, loops by
//! images per class ([`loops`]), SGD with momentum 0.5 and rate 0.1 on normalized values for the
//! images, 256 real images per class, and for the network SGD with rate 0.01, momentum 0.5 (the released version
//! of DC), batches of 256; DC begins with noise, DSA with real images.
//!
//! Differs from it: `iterations` counts updates, networks times `outer` there; the number of loops is defined
//! for every number of images per class; images stay in `[0, 1]`; `matching.attacked` (off) takes the
//! gradients of attacked real images.

use std::sync::Arc;

use c2r_base::{Seed, grad::gradients, loss};
use c2r_models::Model;
use c2r_train::{
    Sgd, SgdConfig, parameter_gradients,
    ranges::{below_one, count, count_or_none, not_negative},
    state::State,
};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{
    config::{CommonConfig, MatchingConfig, Place},
    context::Context,
    cost::Work,
    error::{ConfigError, DistillError},
    method::{Measured, Method, MethodConfig, MethodEntry, Needs, Sections, Step},
    parts::{companions::Attacked, real_rows::RealRows},
};

/// Added to the product of lengths, as in the authors' code.
const SMALL: f64 = 1e-6;

/// Gradient matching's line of the registry.
pub(crate) const ENTRY: MethodEntry = MethodEntry {
    name: "gradient-matching",
    sections: &["companions", "matching", "gradients"],
    augmented: &[],
    read: |mut sections: Sections| {
        let (outer, inner) = loops(sections.ipc);
        sections.put_default("gradients", "outer", outer);
        sections.put_default("gradients", "inner", inner);
        Ok(Arc::new(sections.read::<GradientMatchingConfig>()?))
    },
};

/// Options of gradient matching.
#[derive(Clone, Debug, Deserialize)]
pub struct GradientMatchingConfig {
    /// The real images, and the weight of the loss.
    pub matching: MatchingConfig,
    /// The networks whose gradients are matched.
    pub gradients: GradientsConfig,
}

/// The networks whose parameter gradients are matched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GradientsConfig {
    /// Updates of the images through one network before a new one is drawn (the paper's T), at least 1;
    /// by the images per class where a configuration does not say.
    pub outer: u64,
    /// Epochs on the synthetic images that the network learns between two updates (the paper's
    /// sigma_theta); by the images per class where a configuration does not say.
    pub inner: u64,
    /// Synthetic images per training step.
    pub batch_size: usize,
    /// SGD learning rate of the network.
    pub lr: f64,
    /// SGD momentum of the network.
    pub momentum: f64,
}

/// Outer and inner loops of DC and DSA for a number of images per class, as in the authors' code
/// (`get_loops`), which knows 1, 10, 20, 30, 40 and 50: the largest of these that is not above `ipc`.
const fn loops(ipc: usize) -> (i64, i64) {
    match ipc {
        0..10 => (1, 1),
        10..20 => (10, 50),
        20..30 => (20, 25),
        30..40 => (30, 20),
        40..50 => (40, 15),
        _ => (50, 10),
    }
}

impl MethodConfig for GradientMatchingConfig {
    fn entry(&self) -> &'static MethodEntry {
        &ENTRY
    }

    fn sections(&self) -> Vec<(&'static str, &dyn erased_serde::Serialize)> {
        vec![("matching", &self.matching), ("gradients", &self.gradients)]
    }

    fn validate(&self, _: &CommonConfig) -> Result<(), ConfigError> {
        let gradients = &self.gradients;
        self.matching.validate()?;
        count("gradients.outer", gradients.outer)?;
        count_or_none("gradients.inner", gradients.inner)?;
        count("gradients.batch-size", gradients.batch_size as u64)?;
        not_negative("gradients.lr", gradients.lr)?;
        Ok(below_one("gradients.momentum", gradients.momentum)?)
    }

    fn needs(&self) -> Needs {
        Needs::of_matching(&self.matching)
    }

    fn add_work(&self, common: &CommonConfig, n_classes: usize, _: usize, total: &mut Work) {
        let (iterations, decoded) = (common.iterations as f64, (n_classes * common.decoded_per_class()) as f64);
        let real = (self.matching.real_per_class * n_classes) as f64;
        total.add_attacked(common, Place::Matching, if self.matching.attacked { iterations * real } else { 0.0 });
        // Twice differentiated: a training pass and about as much again.
        total.training += iterations * (real + 2.0 * decoded);
        let learned = 1.0 - 1.0 / self.gradients.outer as f64;
        total.training += iterations * learned * self.gradients.inner as f64 * decoded;
    }

    fn build(&self, context: &Context) -> Result<Box<dyn Method>, DistillError> {
        let real = RealRows::new(context, self.matching.real_per_class);
        Ok(Box::new(GradientMatching { config: self.clone(), real, learner: None }))
    }
}

/// Gradient matching in progress.
#[derive(Debug)]
struct GradientMatching {
    config: GradientMatchingConfig,
    real: RealRows,
    /// The network of the current outer loop and its optimizer; absent before the first update.
    learner: Option<(Model, Sgd)>,
}

impl GradientsConfig {
    fn new_learner(&self, context: &Context, t: u64) -> Result<(Model, Sgd), DistillError> {
        let model = context.network(context.seed.child("network", t / self.outer))?;
        let sgd = SgdConfig { lr: self.lr, momentum: self.momentum, weight_decay: 0.0 };
        let optimizer = Sgd::new(sgd, &model.parameters());
        Ok((model, optimizer))
    }

    /// The network learns the synthetic images as they are.
    fn learn(
        &self,
        (model, optimizer): &mut (Model, Sgd),
        step: &mut Step<'_>,
        seed: Seed,
    ) -> Result<(), DistillError> {
        let context = step.context;
        let (images, labels) = (step.images.tracked()?.1.detach(), step.images.targets());
        let n = images.size()[0] as usize;
        let mut orders: Vec<i64> = Vec::with_capacity(self.inner as usize * n);
        for epoch in 0..self.inner {
            let mut order: Vec<i64> = (0..n as i64).collect();
            order.shuffle(&mut seed.stream("learn/order", epoch));
            orders.extend(order);
        }
        let orders = context.indices(&orders);
        let mut augmentation = context.augmentation(&context.common.dsa, self.batch_size.min(n));
        let per_epoch = n.div_ceil(self.batch_size) as u64;
        let dsa_rng = |at| seed.child("learn", at / per_epoch).stream("dsa", at % per_epoch);
        let steps = self.inner * per_epoch;
        for at in 0..steps {
            let start = (at % per_epoch) as usize * self.batch_size;
            let first = (at / per_epoch) as usize * n + start;
            let rows = orders.narrow(0, first as i64, self.batch_size.min(n - start) as i64);
            let batch = augmentation.apply(&images.index_select(0, &rows), at, steps, dsa_rng);
            let (_, gradients) = parameter_gradients(model, || {
                loss::ce(&model.logits(&batch), &labels.index_select(0, &rows)).mean(Kind::Float)
            });
            optimizer.step(&model.parameters(), &gradients);
        }
        step.passes.forward += self.inner * images.size()[0] as u64;
        step.passes.backward += self.inner * images.size()[0] as u64;
        Ok(())
    }
}

/// The distance D of two sets of parameter gradients, a scalar.
fn distance(ours: &[Tensor], theirs: &[Tensor]) -> Tensor {
    let layers = ours.iter().zip(theirs).filter(|(gradient, _)| gradient.dim() > 1);
    let parts: Vec<Tensor> = layers
        .map(|(a, b)| {
            let (a, b) = (a.flatten(1, -1), b.flatten(1, -1));
            let product = (&a * &b).sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
            // The derivative of a length is not defined at 0, where a row of a dead unit is.
            let length =
                |x: &Tensor| (x.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float) + 1e-20).sqrt();
            let cosine = product / (length(&a) * length(&b) + SMALL);
            (cosine.ones_like() - cosine).sum(Kind::Float)
        })
        .collect();
    Tensor::stack(&parts, 0).sum(Kind::Float)
}

impl Method for GradientMatching {
    fn update(&mut self, step: &mut Step<'_>) -> Result<Measured, DistillError> {
        let context = step.context;
        let config = &self.config;
        let t = step.images.iteration();
        let seed = context.seed.child("iteration", t);
        let mut learner = match self.learner.take() {
            Some(learner) if !t.is_multiple_of(config.gradients.outer) => learner,
            _ => config.gradients.new_learner(context, t)?,
        };
        let model = &learner.0;
        let parameters = model.parameters();
        let handles: Vec<&Tensor> = parameters.iter().map(|(_, tensor)| tensor).collect();
        let (tracked, decoded) = step.images.tracked()?;
        let per_class = decoded.size()[0] / context.input.n_classes;
        let mut gradient = tracked.zeros_like();
        let mut matching = Tensor::zeros([], (Kind::Double, context.device));
        let mut margins = Vec::new();
        let rows = self.real.of(context, t);
        for class in 0..context.n_classes() {
            let n_real = config.matching.real_per_class;
            let rows = rows.part(class * n_real, n_real);
            let (mut real, labels) = context.real(&rows);
            if config.matching.attacked {
                let attacked = Attacked { images: &real, labels: &labels, positions: &rows.positions };
                let companions =
                    context.attack(Place::Matching, model, attacked, seed.child("real", 0), None, step.passes)?;
                margins.push(companions.margins);
                real = companions.images;
            }
            let draw = context.common.dsa.draw(&mut seed.stream("dsa", class as u64));
            let own_labels = step.images.targets().narrow(0, class as i64 * per_class, per_class);
            model.set_trainable(true);
            let value = tch::with_grad(|| {
                let mean_loss = |images: &Tensor, labels: &Tensor| {
                    loss::ce(&model.logits(&context.augmented(images, &draw)), labels).mean(Kind::Float)
                };
                let theirs = gradients(&mean_loss(&real, &labels), &handles);
                let synthetic = decoded.narrow(0, class as i64 * per_class, per_class);
                let ours = Tensor::run_backward(&[mean_loss(&synthetic, &own_labels)], &handles, true, true);
                distance(&ours, &theirs)
            });
            // Class by class, so that only one class's graph is alive; the shared decoding graph is kept.
            let part = Tensor::run_backward(&[&value], &[&tracked], true, false).swap_remove(0);
            model.set_trainable(false);
            gradient += part;
            matching += value.detach();
            step.passes.forward += n_real as u64 + per_class as u64;
            step.passes.backward += n_real as u64 + 2 * per_class as u64;
        }
        let loss = &matching * config.matching.weight;
        step.descend(&(gradient * config.matching.weight), &loss);
        // The last update of a network needs no more learning.
        if !(t + 1).is_multiple_of(config.gradients.outer) {
            config.gradients.learn(&mut learner, step, seed)?;
        }
        self.learner = Some(learner);
        let real_margins = (!margins.is_empty()).then(|| Tensor::cat(&margins, 0));
        Ok(Measured { loss, matching: Some(matching), real_margins, ..Measured::default() })
    }

    fn state(&mut self, context: &Context, state: &mut State<'_>) -> Result<(), DistillError> {
        if state.reads() {
            let stored = !state.below("learner.model.").is_empty();
            self.learner = stored.then(|| self.config.gradients.new_learner(context, 0)).transpose()?;
        }
        if let Some((model, optimizer)) = &mut self.learner {
            state.model("learner.model.", model)?;
            state.section("learner.sgd.", |state| optimizer.state(state))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_follow_from_the_images_per_class() {
        let loops = [1, 10, 15, 20, 30, 40, 50, 60].map(loops);
        assert_eq!(loops, [(1, 1), (10, 50), (10, 50), (20, 25), (30, 20), (40, 15), (50, 10), (50, 10)]);
    }

    #[test]
    fn distance_by_hand() {
        let rows = |values: &[f32]| Tensor::from_slice(values).view([2, 2]);
        let bias = |values: &[f32]| Tensor::from_slice(values);
        let (a, b) = (rows(&[1.0, 0.0, 0.0, 2.0]), rows(&[3.0, 0.0, 4.0, 4.0]));
        // Cosines 1 and 1 / sqrt(2); the bias, however different, does not count.
        let got = distance(&[a, bias(&[1.0])], &[b, bias(&[-9.0])]).double_value(&[]);
        assert!((got - (1.0 - 0.5f64.sqrt())).abs() < 1e-4, "{got}");
    }
}
