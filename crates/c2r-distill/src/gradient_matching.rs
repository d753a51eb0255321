//! DC and DSA: gradient matching. Zhao et al. 2021, "Dataset condensation with gradient matching"
//! (arXiv:2006.05929), equations 9 and 10, algorithm 1; Zhao & Bilen 2021, "Dataset condensation with
//! differentiable Siamese augmentation" (arXiv:2102.08259), equation 7:
//!
//! `L = sum_c D( grad_theta L(A(S_c), theta), grad_theta L(A(T_c), theta) )`,
//! `D(a, b) = sum_layers sum_out (1 - <a_out, b_out> / (|a_out| |b_out|))`
//!
//! over the rows of each layer's weight that belong to one output; biases and norms do not count. A is one
//! DSA draw per class, the same on both sides (DSA), or nothing (DC). A new random network is drawn every
//! `outer` updates; between two updates it learns the synthetic images for `inner` epochs.
//!
//! Defaults (`data/profiles/dc.toml`, `dsa.toml`) are those of the authors' code: 1,000 networks, loops by
//! images per class ([`crate::dc_loops`]), SGD with momentum 0.5 and rate 0.1 on normalized values for the
//! images, 256 real images per class, and for the network SGD with rate 0.01, momentum 0.5 (the released version
//! of DC), batches of 256; DC begins with noise, DSA with real images.
//!
//! Differs from it: `iterations` counts updates, networks times `outer` there; the number of loops is defined
//! for every number of images per class; images stay in `[0, 1]`; `matching.attacked` (off) takes the
//! gradients of attacked real images.

use std::collections::BTreeMap;

use c2r_base::{Seed, grad::gradients, loss};
use c2r_data::ClassSampler;
use c2r_models::Model;
use c2r_train::{Sgd, SgdConfig};
use rand::seq::SliceRandom;
use tch::{Kind, Tensor};

use crate::{
    config::{GradientsConfig, MatchingConfig},
    distillation::DistillError,
    method::{Method, StepReport, Turn, quantiles},
    setting::Setting,
    state::{put_section, section, within},
};

/// Added to the product of lengths, as in the authors' code.
const SMALL: f64 = 1e-6;

/// Gradient matching in progress.
#[derive(Debug)]
pub(crate) struct GradientMatching {
    matching: MatchingConfig,
    config: GradientsConfig,
    outer: u64,
    inner: u64,
    sampler: ClassSampler,
    /// The network of the current outer loop and its optimizer; absent before the first update.
    learner: Option<(Model, Sgd)>,
}

impl GradientMatching {
    pub(crate) fn new(setting: &Setting) -> Result<Self, DistillError> {
        let config = &setting.config;
        let gradients = config.need(&config.gradients, "gradients")?.clone();
        Ok(Self {
            matching: config.need(&config.matching, "matching")?.clone(),
            outer: gradients.outer.expect("the outer loop fills it in"),
            inner: gradients.inner.expect("the outer loop fills it in"),
            config: gradients,
            sampler: ClassSampler::new(setting.seed.child("real", 0)),
            learner: None,
        })
    }

    fn new_learner(&self, setting: &Setting, t: u64) -> Result<(Model, Sgd), DistillError> {
        let model = setting.network(setting.seed.child("network", t / self.outer))?;
        let sgd = SgdConfig { lr: self.config.lr, momentum: self.config.momentum, weight_decay: 0.0 };
        let optimizer = Sgd::new(sgd, &model.parameters());
        Ok((model, optimizer))
    }

    /// The network learns the synthetic images as they stand.
    fn learn(
        &self,
        (model, optimizer): &mut (Model, Sgd),
        turn: &mut Turn<'_>,
        seed: Seed,
    ) -> Result<(), DistillError> {
        let setting = turn.setting;
        let images = turn.canvas.tracked()?.1.detach();
        let labels = setting.label_tensor(turn.canvas.labels());
        let parameters = model.parameters();
        let handles: Vec<&Tensor> = parameters.iter().map(|(_, tensor)| tensor).collect();
        model.set_trainable(true);
        for epoch in 0..self.inner {
            let mut order: Vec<i64> = (0..images.size()[0]).collect();
            order.shuffle(&mut seed.stream("learn/order", epoch));
            for (at, rows) in order.chunks(self.config.batch_size).enumerate() {
                let rows = setting.label_tensor(rows);
                let draw = setting.config.dsa.draw(&mut seed.child("learn", epoch).stream("dsa", at as u64));
                let batch = setting.augmented(&images.index_select(0, &rows), &draw);
                let logits = tch::with_grad(|| model.logits(&batch));
                let value = loss::ce(&logits, &labels.index_select(0, &rows)).mean(Kind::Float);
                optimizer.step(&parameters, &gradients(&value, &handles));
            }
        }
        model.set_trainable(false);
        turn.passes.forward += self.inner * images.size()[0] as u64;
        turn.passes.backward += self.inner * images.size()[0] as u64;
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
    fn update(&mut self, turn: &mut Turn<'_>) -> Result<StepReport, DistillError> {
        let setting = turn.setting;
        let t = turn.canvas.iteration();
        let seed = setting.seed.child("iteration", t);
        let mut learner = match self.learner.take() {
            Some(learner) if !t.is_multiple_of(self.outer) => learner,
            _ => self.new_learner(setting, t)?,
        };
        let model = &learner.0;
        let parameters = model.parameters();
        let handles: Vec<&Tensor> = parameters.iter().map(|(_, tensor)| tensor).collect();
        let (tracked, decoded) = turn.canvas.tracked()?;
        let per_class = decoded.size()[0] / setting.input.n_classes;
        let mut gradient = tracked.zeros_like();
        let (mut matching, mut margins) = (0.0, Vec::new());
        for class in 0..setting.n_classes() {
            let positions = self.sampler.positions(&setting.data, t, class, self.matching.real_per_class);
            let (mut real, labels) = setting.data.batch(&positions, setting.device);
            if self.matching.attacked {
                let ids: Vec<u64> = positions.iter().map(|&position| position as u64).collect();
                let found = setting.companion().make(model, &real, &labels, &ids, seed.child("real", 0), None)?;
                *turn.passes += &found;
                margins.push(found.margins);
                real = found.images;
            }
            let draw = setting.config.dsa.draw(&mut seed.stream("dsa", class as u64));
            let own_labels = setting.label_tensor(&vec![class as i64; per_class as usize]);
            model.set_trainable(true);
            let value = tch::with_grad(|| {
                let mean_loss = |images: &Tensor, labels: &Tensor| {
                    loss::ce(&model.logits(&setting.augmented(images, &draw)), labels).mean(Kind::Float)
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
            matching += value.double_value(&[]);
            turn.passes.forward += positions.len() as u64 + per_class as u64;
            turn.passes.backward += positions.len() as u64 + 2 * per_class as u64;
        }
        let loss = matching * self.matching.weight;
        turn.canvas.descend(&(gradient * self.matching.weight), loss)?;
        // The last update of a network needs no more learning.
        if !(t + 1).is_multiple_of(self.outer) {
            self.learn(&mut learner, turn, seed)?;
        }
        self.learner = Some(learner);
        let real_margin_quantiles = (!margins.is_empty()).then(|| quantiles(&Tensor::cat(&margins, 0)));
        Ok(StepReport { loss, matching: Some(matching), real_margin_quantiles, ..StepReport::default() })
    }

    fn state(&self, into: &mut BTreeMap<String, Tensor>) {
        if let Some((model, optimizer)) = &self.learner {
            put_section(into, "learner.model.", model.state());
            put_section(into, "learner.sgd.", optimizer.state());
        }
    }

    fn load_state(&mut self, setting: &Setting, state: &BTreeMap<String, Tensor>) -> Result<(), DistillError> {
        let stored = section(state, "learner.model.");
        self.learner = None;
        if !stored.is_empty() {
            let (model, mut optimizer) = self.new_learner(setting, 0)?;
            model.load_state(&stored).map_err(|error| within("learner", error))?;
            let stored = optimizer.load_state(&section(state, "learner.sgd."));
            stored.map_err(|error| within("learner", error))?;
            self.learner = Some((model, optimizer));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
