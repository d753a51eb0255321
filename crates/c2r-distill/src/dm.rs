//! DM: distribution matching. Zhao & Bilen 2023, "Dataset condensation with distribution matching"
//! (arXiv:2110.04181), equation 4:
//!
//! `L = sum_c || mean_i psi(A(x_i)) - mean_j psi(A(s_j)) ||^2`
//!
//! with psi the embedding of a new random network in each iteration and A one DSA draw per class, the same on
//! both sides.
//!
//! Defaults (`data/profiles/dm.toml`) are those of the authors' code: 20,000 iterations, real images to begin
//! with, SGD with momentum 0.5 and rate 1 on normalized values, 256 real images per class, full DSA.
//!
//! Differs from it: images stay in `[0, 1]`; `matching.attacked` (off) matches attacked real images;
//! `matching.weight` (1) multiplies the loss; networks with instance norm only.

use std::collections::BTreeMap;

use c2r_base::grad::gradients;
use c2r_data::ClassSampler;
use tch::{Kind, Tensor};

use crate::{
    config::MatchingConfig,
    distillation::DistillError,
    method::{Method, StepReport, Turn, quantiles},
    setting::Setting,
};

/// DM in progress; nothing is carried from one iteration to the next.
#[derive(Debug)]
pub(crate) struct Dm {
    matching: MatchingConfig,
    sampler: ClassSampler,
}

impl Dm {
    pub(crate) fn new(setting: &Setting) -> Result<Self, DistillError> {
        let config = &setting.config;
        Ok(Self {
            matching: config.need(&config.matching, "matching")?.clone(),
            sampler: ClassSampler::new(setting.seed.child("real", 0)),
        })
    }
}

impl Method for Dm {
    fn update(&mut self, turn: &mut Turn<'_>) -> Result<StepReport, DistillError> {
        let setting = turn.setting;
        let t = turn.canvas.iteration();
        let seed = setting.seed.child("iteration", t);
        let model = setting.network(seed.child("network", 0))?;
        let (tracked, decoded) = turn.canvas.tracked()?;
        let n_real = self.matching.real_per_class as i64;
        let n_synthetic = decoded.size()[0] / setting.input.n_classes;
        let positions = setting.real_positions(&mut self.sampler, t, self.matching.real_per_class);
        let (mut real, labels) = setting.data.batch(&positions, setting.device);
        let mut report = StepReport::default();
        if self.matching.attacked {
            let ids: Vec<u64> = positions.iter().map(|&position| position as u64).collect();
            let found = setting.companion().make(&model, &real, &labels, &ids, seed.child("real", 0), None)?;
            *turn.passes += &found;
            report.real_margin_quantiles = Some(quantiles(&found.margins));
            real = found.images;
        }
        // Every class has its own draw.
        let augmented = |images: &Tensor, per_class: i64| {
            let views: Vec<Tensor> = (0..setting.input.n_classes)
                .map(|class| {
                    let draw = setting.config.dsa.draw(&mut seed.stream("dsa", class as u64));
                    setting.augmented(&images.narrow(0, class * per_class, per_class), &draw)
                })
                .collect();
            Tensor::cat(&views, 0)
        };
        let means = |embeddings: Tensor, per_class: i64| {
            let rows = embeddings.view([setting.input.n_classes, per_class, -1]);
            rows.mean_dim([1i64].as_slice(), false, Kind::Float)
        };
        let target = means(setting.embed(&model, &augmented(&real, n_real), None), n_real);
        let value = tch::with_grad(|| {
            (target - means(model.features(&augmented(&decoded, n_synthetic)), n_synthetic)).square().sum(Kind::Float)
        });
        let matching = value.double_value(&[]);
        let loss = matching * self.matching.weight;
        let gradient = gradients(&value, &[&tracked]).swap_remove(0) * self.matching.weight;
        turn.passes.forward += positions.len() as u64 + decoded.size()[0] as u64;
        turn.passes.backward += decoded.size()[0] as u64;
        turn.canvas.descend(&gradient, loss)?;
        Ok(StepReport { loss, matching: Some(matching), ..report })
    }

    fn state(&self, _: &mut BTreeMap<String, Tensor>) {}

    fn load_state(&mut self, _: &Setting, _: &BTreeMap<String, Tensor>) -> Result<(), DistillError> {
        Ok(())
    }
}
