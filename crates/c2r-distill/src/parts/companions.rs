//! Adversarial companions for training: LS-PGD, or what it is compared with.

use std::ops::Range;

use c2r_attacks::{Attack, AttackBatch, AttackConfig, AttackError, Oracle, PgdConfig};
use c2r_base::{Classifier, Passes, Seed, ThreatModel};
use c2r_core::ls_pgd::{Companions, LsPgd, PerturbationCache};
use c2r_train::ranges::RangeError;
use tch::Tensor;

use crate::{
    config::CompanionConfig,
    error::{ConfigError, DistillError},
};

/// Pixel values that go through a network at once where no gradient to the parameters or the synthetic images is asked
/// for: 5,461 images of 32x32, 341 of 128x128. The first layer of a network of width 128 then holds 3 GB.
const PIECE: usize = 1 << 24;

/// The rows of f32 `[N, ...]` in pieces of at most [`PIECE`] values, and of one row at least; one empty piece of none.
pub(crate) fn pieces(images: &Tensor) -> impl Iterator<Item = Range<usize>> + use<> {
    let n = images.size()[0] as usize;
    let length = images.numel().checked_div(n).map_or(1, |values| (PIECE / values.max(1)).max(1));
    (0..n.max(1)).step_by(length).map(move |start| start..(start + length).min(n))
}

/// Images to attack.
#[derive(Clone, Copy, Debug)]
pub struct Attacked<'a> {
    /// f32 `[N, C, H, W]` in `[0, 1]`.
    pub images: &'a Tensor,
    /// i64 `[N]`.
    pub labels: &'a Tensor,
    /// Position of each image in its set: rows of a cache and streams of random starts.
    pub positions: &'a [usize],
}

/// An attack that makes companions, checked.
pub struct CompanionAttack {
    rule: Rule,
    threat: ThreatModel,
}

enum Rule {
    LsPgd(LsPgd),
    Other(Box<dyn Attack>),
}

impl std::fmt::Debug for CompanionAttack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.rule {
            Rule::LsPgd(attack) => attack.fmt(f),
            Rule::Other(attack) => f.debug_tuple("CompanionAttack").field(&attack.name()).finish(),
        }
    }
}

impl CompanionAttack {
    /// Checks the options.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(config: &CompanionConfig, threat: ThreatModel) -> Result<Self, ConfigError> {
        let pgd = |steps, rel_step_size: f64, random_start| {
            let config = PgdConfig { steps, rel_step_size: Some(rel_step_size), random_start, ..PgdConfig::default() };
            AttackConfig::Pgd(config).build().map_err(|error| RangeError {
                key: "companions",
                expected: "a valid PGD attack",
                got: error.to_string(),
            })
        };
        let rule = match config {
            CompanionConfig::LsPgd(config) => Rule::LsPgd(LsPgd::new(config.clone(), threat)?),
            CompanionConfig::Pgd(config) => Rule::Other(pgd(config.steps, config.rel_step_size, config.random_start)?),
            CompanionConfig::Fgsm(_) => Rule::Other(pgd(1, 1.0, false)?),
        };
        Ok(Self { rule, threat })
    }

    /// Whether a [`PerturbationCache`] is of any use.
    pub(crate) const fn remembers(&self) -> bool {
        match &self.rule {
            Rule::LsPgd(attack) => attack.remembers(),
            Rule::Other(_) => false,
        }
    }

    /// Companions and perturbation scores of any number of images; see [`LsPgd::attack`] for `cache`.
    ///
    /// Every sample is attacked for itself, so a batch that would not fit in memory goes in pieces.
    ///
    /// # Errors
    /// [`DistillError::Attack`] or [`DistillError::Classifier`] if `model` fails.
    pub fn companions(
        &self,
        model: &dyn Classifier,
        attacked: Attacked<'_>,
        seed: Seed,
        mut cache: Option<&mut PerturbationCache>,
    ) -> Result<Companions, DistillError> {
        let mut parts = Vec::new();
        for piece in pieces(attacked.images) {
            let part = |tensor: &Tensor| tensor.narrow(0, piece.start as i64, piece.len() as i64);
            let (images, labels) = (part(attacked.images), part(attacked.labels));
            let ids: Vec<u64> = attacked.positions[piece].iter().map(|&position| position as u64).collect();
            parts.push(match &self.rule {
                Rule::LsPgd(attack) => attack.attack(model, &images, &labels, &ids, seed, cache.as_deref_mut())?,
                Rule::Other(attack) => self.other(&**attack, model, &images, &labels, &ids, seed)?,
            });
        }
        Ok(if parts.len() == 1 { parts.swap_remove(0) } else { Companions::cat(&parts) })
    }

    fn other(
        &self,
        attack: &dyn Attack,
        model: &dyn Classifier,
        images: &Tensor,
        labels: &Tensor,
        ids: &[u64],
        seed: Seed,
    ) -> Result<Companions, DistillError> {
        let batch = AttackBatch { images, labels, ids, targets: None };
        let perturbed = match attack.perturb(model, &batch, &self.threat, seed) {
            // The loss is then not finite either; the caller computes it and names the step.
            Err(AttackError::NonFiniteLogits { .. } | AttackError::NonFiniteGradient { .. }) => {
                Oracle::new(model, attack.name(), ids).finish(images.shallow_clone())
            }
            perturbed => perturbed?,
        };
        let images = self.threat.project(images, &perturbed.images);
        let _no_grad = tch::no_grad_guard();
        let logits = model.logits(&images)?;
        let passes = [perturbed.passes, Passes::forward(ids.len() as u64)].into_iter().sum();
        Ok(Companions::new(images, &logits, labels, passes, 0))
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn pieces_cover_every_image_once() {
        let of = |size: &[i64]| {
            let pieces = pieces(&Tensor::empty(size, (Kind::Float, Device::Cpu)));
            pieces.map(|piece| (piece.start, piece.end)).collect::<Vec<_>>()
        };
        assert_eq!(of(&[5, 3, 8, 8]), [(0, 5)]);
        assert_eq!(of(&[0, 3, 8, 8]), [(0, 0)]);
        // 2^22 values each: four at once.
        assert_eq!(of(&[9, 1, 2048, 2048]), [(0, 4), (4, 8), (8, 9)]);
        assert_eq!(of(&[2, 2, 4096, 4096]), [(0, 1), (1, 2)]);
    }
}
