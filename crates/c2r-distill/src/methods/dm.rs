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

use std::sync::Arc;

use c2r_base::grad::gradients;
use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::{
    config::{CommonConfig, MatchingConfig, Place},
    context::Context,
    cost::Work,
    error::{ConfigError, DistillError},
    method::{Measured, Method, MethodConfig, MethodEntry, Needs, Step},
    parts::{companions::Attacked, real_rows::RealRows},
};

/// DM's line of the registry.
pub(crate) const ENTRY: MethodEntry = MethodEntry {
    name: "dm",
    sections: &["companions", "matching"],
    augmented: &[],
    read: |sections| Ok(Arc::new(sections.read::<DmConfig>()?)),
};

/// Options of distribution matching.
#[derive(Clone, Debug, Deserialize)]
pub struct DmConfig {
    /// The real images, and the weight of the loss.
    pub matching: MatchingConfig,
}

impl MethodConfig for DmConfig {
    fn entry(&self) -> &'static MethodEntry {
        &ENTRY
    }

    fn sections(&self) -> Vec<(&'static str, &dyn erased_serde::Serialize)> {
        vec![("matching", &self.matching)]
    }

    fn validate(&self, _: &CommonConfig) -> Result<(), ConfigError> {
        Ok(self.matching.validate()?)
    }

    fn needs(&self) -> Needs {
        Needs::of_matching(&self.matching)
    }

    fn add_work(&self, common: &CommonConfig, n_classes: usize, _: usize, total: &mut Work) {
        let (iterations, decoded) = (common.iterations as f64, (n_classes * common.decoded_per_class()) as f64);
        let real = (self.matching.real_per_class * n_classes) as f64;
        total.add_attacked(common, Place::Matching, if self.matching.attacked { iterations * real } else { 0.0 });
        total.forward += iterations * (real + decoded);
        total.input_gradient += iterations * decoded;
    }

    fn build(&self, context: &Context) -> Result<Box<dyn Method>, DistillError> {
        let real = RealRows::new(context, self.matching.real_per_class);
        Ok(Box::new(Dm { matching: self.matching.clone(), real }))
    }
}

/// DM in progress; nothing is carried from one iteration to the next.
#[derive(Debug)]
struct Dm {
    matching: MatchingConfig,
    real: RealRows,
}

impl Method for Dm {
    fn update(&mut self, step: &mut Step<'_>) -> Result<Measured, DistillError> {
        let context = step.context;
        let t = step.images.iteration();
        let seed = context.seed.child("iteration", t);
        let model = context.network(seed.child("network", 0))?;
        let (tracked, decoded) = step.images.tracked()?;
        let n_real = self.matching.real_per_class as i64;
        let n_synthetic = decoded.size()[0] / context.input.n_classes;
        let rows = self.real.of(context, t);
        let (mut real, labels) = context.real(&rows);
        let mut real_margins = None;
        if self.matching.attacked {
            let attacked = Attacked { images: &real, labels: &labels, positions: &rows.positions };
            let companions =
                context.attack(Place::Matching, &model, attacked, seed.child("real", 0), None, step.passes)?;
            (real, real_margins) = (companions.images, Some(companions.margins));
        }
        // Every class has its own draw.
        let augmented = |images: &Tensor, per_class: i64| {
            let views: Vec<Tensor> = (0..context.input.n_classes)
                .map(|class| {
                    let draw = context.common.dsa.draw(&mut seed.stream("dsa", class as u64));
                    context.augmented(&images.narrow(0, class * per_class, per_class), &draw)
                })
                .collect();
            Tensor::cat(&views, 0)
        };
        let means = |embeddings: Tensor, per_class: i64| {
            let rows = embeddings.view([context.input.n_classes, per_class, -1]);
            rows.mean_dim([1i64].as_slice(), false, Kind::Float)
        };
        let target = means(context.embed(&model, &augmented(&real, n_real), None), n_real);
        let value = tch::with_grad(|| {
            (target - means(model.features(&augmented(&decoded, n_synthetic)), n_synthetic)).square().sum(Kind::Float)
        });
        let gradient = gradients(&value, &[&tracked]).swap_remove(0) * self.matching.weight;
        let matching = value.detach().to_kind(Kind::Double);
        let loss = &matching * self.matching.weight;
        step.passes.forward += rows.positions.len() as u64 + decoded.size()[0] as u64;
        step.passes.backward += decoded.size()[0] as u64;
        step.descend(&gradient, &loss);
        Ok(Measured { loss, matching: Some(matching), real_margins, ..Measured::default() })
    }
}
