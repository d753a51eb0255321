//! Floors: an attack that leaves more samples robust than these is broken.

use c2r_base::{Classifier, Seed, ThreatModel};
use tch::Tensor;

use crate::{
    attack::{Attack, AttackBatch, AttackError, Family, Oracle, Perturbed, goal_margin, index, per_image},
    config::ConfigError,
};

/// Returns the images as they are.
pub(crate) struct Clean;

impl Attack for Clean {
    fn name(&self) -> &str {
        "clean"
    }

    fn family(&self) -> Family {
        Family::Sanity
    }

    fn check(&self, _: &ThreatModel, _: i64) -> Result<(), ConfigError> {
        Ok(())
    }

    fn perturb(
        &self,
        model: &dyn Classifier,
        batch: &AttackBatch<'_>,
        _: &ThreatModel,
        _: Seed,
    ) -> Result<Perturbed, AttackError> {
        Ok(Oracle::new(model, "clean", batch.ids).finish(batch.images.copy()))
    }
}

/// The worst of several uniform draws from the ball, by margin.
pub(crate) struct Noise {
    samples: u32,
}

impl Noise {
    pub(crate) fn new(samples: u32) -> Self {
        Self { samples }
    }
}

impl Attack for Noise {
    fn name(&self) -> &str {
        "noise"
    }

    fn family(&self) -> Family {
        Family::Sanity
    }

    fn check(&self, _: &ThreatModel, _: i64) -> Result<(), ConfigError> {
        Ok(())
    }

    fn perturb(
        &self,
        model: &dyn Classifier,
        batch: &AttackBatch<'_>,
        threat: &ThreatModel,
        seed: Seed,
    ) -> Result<Perturbed, AttackError> {
        let _no_grad = tch::no_grad_guard();
        let mut oracle = Oracle::new(model, "noise", batch.ids);
        let rows: Vec<usize> = (0..batch.ids.len()).collect();
        let mut worst: Option<(Tensor, Tensor)> = None;
        let shape = &batch.images.size()[1..];
        let clean = batch.images.index_select(0, &index(&rows, batch.images));
        for sample in 0..self.samples {
            let delta = threat.norm.random_in_ball(
                shape,
                batch.ids,
                threat.epsilon.value(),
                seed.child("noise", u64::from(sample)),
                "noise",
            );
            let images = threat.project(&clean, &(&clean + delta.to_device(clean.device())));
            let margin = goal_margin(&oracle.logits(&images, &rows)?, batch.labels, batch.targets);
            worst = Some(match worst {
                None => (images, margin),
                Some((best_images, best_margin)) => {
                    let better = margin.lt_tensor(&best_margin);
                    (images.where_self(&per_image(&better), &best_images), margin.minimum(&best_margin))
                }
            });
        }
        let (images, _) = worst.expect("at least one sample");
        Ok(oracle.finish(images))
    }
}
