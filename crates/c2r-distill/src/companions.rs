//! Adversarial companions for training: LS-PGD, or what it is compared with.

use c2r_attacks::{Attack, AttackBatch, AttackConfig, AttackError, Counts, Perturbed, PgdConfig};
use c2r_base::{Classifier, Seed, ThreatModel};
use c2r_core::ls_pgd::{Companions, LsPgd, Passes, PerturbationCache};
use tch::Tensor;

use crate::config::{CompanionConfig, ConfigError};

/// A way to make companions, checked.
pub struct Companion {
    kind: Kind,
    threat: ThreatModel,
}

enum Kind {
    LsPgd(LsPgd),
    Other(Box<dyn Attack>),
}

impl std::fmt::Debug for Companion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            Kind::LsPgd(attack) => attack.fmt(f),
            Kind::Other(attack) => f.debug_tuple("Companion").field(&attack.name()).finish(),
        }
    }
}

impl Companion {
    /// Checks the options.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(config: &CompanionConfig, threat: ThreatModel) -> Result<Self, ConfigError> {
        let pgd = |steps, rel_step_size: f64, random_start| {
            let config = PgdConfig { steps, rel_step_size: Some(rel_step_size), random_start, ..PgdConfig::default() };
            AttackConfig::Pgd(config).build().map_err(|error| ConfigError::Range {
                key: "companions",
                expected: "a valid PGD attack",
                got: error.to_string(),
            })
        };
        let kind = match config {
            CompanionConfig::LsPgd(config) => Kind::LsPgd(LsPgd::new(config.clone(), threat)?),
            CompanionConfig::Pgd(config) => Kind::Other(pgd(config.steps, config.rel_step_size, config.random_start)?),
            CompanionConfig::Fgsm(_) => Kind::Other(pgd(1, 1.0, false)?),
        };
        Ok(Self { kind, threat })
    }

    /// Whether a [`PerturbationCache`] is of any use.
    pub const fn remembers(&self) -> bool {
        match &self.kind {
            Kind::LsPgd(attack) => attack.remembers(),
            Kind::Other(_) => false,
        }
    }

    /// Companions and perturbation scores of a batch; see [`LsPgd::attack`] for the arguments.
    pub fn make(
        &self,
        model: &dyn Classifier,
        images: &Tensor,
        labels: &Tensor,
        ids: &[u64],
        seed: Seed,
        cache: Option<&mut PerturbationCache>,
    ) -> Companions {
        match &self.kind {
            Kind::LsPgd(attack) => attack.attack(model, images, labels, ids, seed, cache),
            Kind::Other(attack) => {
                let batch = AttackBatch { images, labels, ids, targets: None };
                let found = match attack.perturb(model, &batch, &self.threat, seed) {
                    // Then the loss is not finite either, and whoever computes it knows at which step.
                    Err(AttackError::NonFiniteLogits { .. }) => {
                        Perturbed { images: images.shallow_clone(), queries: vec![], counts: Counts::default() }
                    }
                    found => found.expect("the attack was checked and the batch is ours"),
                };
                let images = self.threat.project(images, &found.images);
                let _no_grad = tch::no_grad_guard();
                let n = ids.len() as u64;
                let passes = Passes {
                    forward: found.counts.forward_images + n,
                    backward: found.counts.backward_images,
                    attacked: n,
                    attack_backward: found.counts.backward_images,
                    reused: 0,
                };
                let logits = model.logits(&images);
                Companions::new(images, &logits, labels, passes)
            }
        }
    }
}
