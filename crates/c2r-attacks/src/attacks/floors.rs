//! Floors: an attack that leaves more samples robust than these is broken.

use c2r_base::{Classifier, Passes, Seed, ThreatModel};
use tch::Tensor;

use crate::{
    active::per_image,
    attack::{Attack, AttackBatch, Family, Perturbed},
    error::{AttackError, ConfigError},
    options::{Check, Options, options, passes},
    oracle::Oracle,
};

options!(
    /// No attack: the floor that needs no budget.
    CleanConfig {}
);
options!(
    /// The worst of several uniform perturbations in the ball, by margin: a floor that every attack must beat.
    NoiseConfig {
        /// Number of perturbations.
        samples: u32 = 10,
    }
);

impl Options for CleanConfig {
    fn build(&self, name: &'static str) -> Result<Box<dyn Attack>, ConfigError> {
        Ok(Box::new(Clean { name }))
    }

    fn passes(&self, _: u64) -> Passes {
        Passes::default()
    }
}

impl Options for NoiseConfig {
    fn build(&self, name: &'static str) -> Result<Box<dyn Attack>, ConfigError> {
        Check(name).count("samples", self.samples)?;
        Ok(Box::new(Noise { name, samples: self.samples }))
    }

    fn passes(&self, _: u64) -> Passes {
        passes(u64::from(self.samples), 0)
    }
}

struct Clean {
    name: &'static str,
}

impl Attack for Clean {
    fn name(&self) -> &str {
        self.name
    }

    fn family(&self) -> Family {
        Family::Sanity
    }

    fn perturb(
        &self,
        model: &dyn Classifier,
        batch: &AttackBatch<'_>,
        _: &ThreatModel,
        _: Seed,
    ) -> Result<Perturbed, AttackError> {
        Ok(Oracle::new(model, self.name, batch.ids).finish(batch.images.copy()))
    }
}

struct Noise {
    name: &'static str,
    samples: u32,
}

impl Attack for Noise {
    fn name(&self) -> &str {
        self.name
    }

    fn family(&self) -> Family {
        Family::Sanity
    }

    fn perturb(
        &self,
        model: &dyn Classifier,
        batch: &AttackBatch<'_>,
        threat: &ThreatModel,
        seed: Seed,
    ) -> Result<Perturbed, AttackError> {
        let _no_grad = tch::no_grad_guard();
        let mut oracle = Oracle::new(model, self.name, batch.ids);
        let rows: Vec<usize> = (0..batch.ids.len()).collect();
        let mut worst: Option<(Tensor, Tensor)> = None;
        let (clean, radius) = (batch.images, threat.epsilon.value());
        for sample in 0..self.samples {
            let seed = seed.child("noise", u64::from(sample));
            let delta = threat.norm.random_in_ball(&clean.size()[1..], batch.ids, radius, seed, "noise");
            let images = threat.project(clean, &(clean + delta.to_device(clean.device())));
            let margin = batch.goal_margin(&oracle.logits(&images, &rows)?);
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
