//! Floors: an attack that leaves more samples robust than these is broken.

use c2r_base::{Passes, ThreatModel};
use tch::Tensor;

use crate::{
    attack::Family,
    error::{AttackError, ConfigError},
    options::{Check, Options, Search, Task, options, passes},
    oracle::Oracle,
    rows::per_image,
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
    fn build(&self, _: &'static str) -> Result<Box<dyn Search>, ConfigError> {
        Ok(Box::new(self.clone()))
    }

    fn passes(&self, _: &ThreatModel, _: u64) -> Passes {
        Passes::default()
    }
}

impl Options for NoiseConfig {
    fn build(&self, name: &'static str) -> Result<Box<dyn Search>, ConfigError> {
        Check(name).count("samples", self.samples)?;
        Ok(Box::new(self.clone()))
    }

    fn passes(&self, _: &ThreatModel, _: u64) -> Passes {
        passes(u64::from(self.samples), 0)
    }
}

impl Search for CleanConfig {
    fn family(&self) -> Family {
        Family::Sanity
    }

    fn check(&self, _: &Check, _: &ThreatModel, _: i64) -> Result<(), ConfigError> {
        Ok(())
    }

    fn search(&self, _: &mut Oracle<'_>, task: &Task<'_>) -> Result<Tensor, AttackError> {
        Ok(task.batch.images.copy())
    }
}

impl Search for NoiseConfig {
    fn family(&self) -> Family {
        Family::Sanity
    }

    /// Of several perturbations it takes the one that is nearest to the goal, whatever that is.
    fn check(&self, _: &Check, _: &ThreatModel, _: i64) -> Result<(), ConfigError> {
        Ok(())
    }

    fn search(&self, oracle: &mut Oracle<'_>, &Task { batch, threat, seed }: &Task<'_>) -> Result<Tensor, AttackError> {
        let rows: Vec<usize> = (0..batch.ids.len()).collect();
        let mut worst: Option<(Tensor, Tensor)> = None;
        let (clean, radius, ball) = (batch.images, threat.epsilon.value(), threat.ball(batch.images));
        for sample in 0..self.samples {
            let seed = seed.child("noise", u64::from(sample));
            let delta = threat.norm.random_in_ball(&clean.size()[1..], batch.ids, radius, seed, "noise");
            let images = ball.project(&(clean + delta.to_device(clean.device())));
            let margin = batch.goal_margin(&oracle.logits(&images, &rows)?);
            worst = Some(match worst {
                None => (images, margin),
                Some((best_images, best_margin)) => {
                    let better = margin.lt_tensor(&best_margin);
                    (images.where_self(&per_image(&better), &best_images), margin.minimum(&best_margin))
                }
            });
        }
        Ok(worst.expect("at least one sample").0)
    }
}
