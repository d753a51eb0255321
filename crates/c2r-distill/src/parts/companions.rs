//! Adversarial companions for training: LS-PGD, or what it is compared with.

use std::ops::Range;

use c2r_attacks::Pgd;
use c2r_base::{
    Classifier, ClassifierError, Norm, Passes, Seed, ThreatModel, grad::try_input_gradient, host::send, loss,
};
use c2r_core::ls_pgd::{Companions, LsPgd, PerturbationCache};
use tch::Tensor;

use crate::{
    config::{CommonConfig, CompanionConfig, MultiStepConfig, Place},
    error::ConfigError,
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

/// The attack at each [`Place`].
#[derive(Debug)]
pub(crate) struct Attacks {
    /// That of `[companions]` and `[threat]`.
    all: Option<CompanionAttack>,
    /// Those of `[attacks]`.
    own: [(Place, Option<CompanionAttack>); 3],
}

impl Attacks {
    /// * `mean`, `std`: of each channel, f32 `[1, C, 1, 1]`.
    pub(crate) fn new(common: &CommonConfig, mean: &Tensor, std: &Tensor) -> Result<Self, ConfigError> {
        let new = |companions: Option<&CompanionConfig>, threat| {
            companions.map(|companions| CompanionAttack::new(companions, threat, mean, std)).transpose()
        };
        let own = |place| {
            let companions = common.attacks.at(place).and_then(|_| common.companions_at(place));
            Ok::<_, ConfigError>((place, new(companions, common.threat_at(place))?))
        };
        Ok(Self {
            all: new(common.companions.as_ref(), common.threat())?,
            own: [own(Place::Synthetic)?, own(Place::Pool)?, own(Place::Matching)?],
        })
    }

    pub(crate) fn at(&self, place: Place) -> Option<&CompanionAttack> {
        let own = self.own.iter().find(|(at, _)| *at == place);
        own.and_then(|(_, own)| own.as_ref()).or(self.all.as_ref())
    }
}

/// An attack that makes companions, checked.
#[derive(Debug)]
pub struct CompanionAttack(Rule);

#[derive(Debug)]
enum Rule {
    LsPgd(LsPgd),
    MultiStep(MultiStep),
    ClampedNormalized(ClampedNormalized),
}

impl CompanionAttack {
    /// Checks the options.
    ///
    /// * `mean`, `std`: of each channel, f32 `[1, C, 1, 1]`, for [`CompanionConfig::ClampedNormalizedPgd`].
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(
        config: &CompanionConfig,
        threat: ThreatModel,
        mean: &Tensor,
        std: &Tensor,
    ) -> Result<Self, ConfigError> {
        config.validate(threat)?;
        let multi_step = |steps, rel_step_size: f64, random_start| {
            let step_size = rel_step_size * threat.epsilon.value();
            Rule::MultiStep(MultiStep { pgd: Pgd { threat, steps, step_size, sparsity: None }, random_start })
        };
        Ok(Self(match config {
            CompanionConfig::LsPgd(config) => Rule::LsPgd(LsPgd::new(config.clone(), threat)?),
            CompanionConfig::Pgd(config) => multi_step(config.steps, config.rel_step_size, config.random_start),
            CompanionConfig::Fgsm(_) => multi_step(1, 1.0, false),
            CompanionConfig::ClampedNormalizedPgd(config) => Rule::ClampedNormalized(ClampedNormalized {
                config: config.clone(),
                radius: threat.epsilon.value(),
                mean: mean.shallow_clone(),
                std: std.shallow_clone(),
            }),
        }))
    }

    /// Companions and perturbation scores of any number of images; see [`LsPgd::attack`] for `cache`.
    ///
    /// Every sample is attacked for itself, so a batch that would not fit in memory goes in pieces.
    ///
    /// # Errors
    /// What `model` returns; an id that `cache` has no row for.
    pub fn companions(
        &self,
        model: &dyn Classifier,
        attacked: Attacked<'_>,
        seed: Seed,
        mut cache: Option<&mut PerturbationCache>,
    ) -> Result<Companions, ClassifierError> {
        let mut parts = Vec::new();
        for piece in pieces(attacked.images) {
            let part = |tensor: &Tensor| tensor.narrow(0, piece.start as i64, piece.len() as i64);
            let (images, labels) = (part(attacked.images), part(attacked.labels));
            let ids: Vec<u64> = attacked.positions[piece].iter().map(|&position| position as u64).collect();
            parts.push(match &self.0 {
                Rule::LsPgd(attack) => attack.attack(model, &images, &labels, &ids, seed, cache.as_deref_mut())?,
                Rule::MultiStep(attack) => attack.companions(model, &images, &labels, &ids, seed)?,
                Rule::ClampedNormalized(attack) => attack.companions(model, &images, &labels, &ids, seed)?,
            });
        }
        Ok(if parts.len() == 1 { parts.swap_remove(0) } else { Companions::cat(&parts) })
    }
}

/// What `steps` gradient steps of `n` images cost, with the scores of the companions.
fn passes(steps: u32, n: usize) -> Passes {
    let n = n as u64;
    let steps = (0..steps).flat_map(|_| [Passes::forward(n), Passes::backward(n)]);
    steps.chain([Passes::forward(n)]).sum()
}

/// PGD on the cross-entropy of the labels. It looks at no value: NaN ends in the loss that the companions are for, where the
/// caller names the step.
#[derive(Debug)]
struct MultiStep {
    pgd: Pgd,
    /// Start uniformly in the ball instead of at the clean image.
    random_start: bool,
}

impl MultiStep {
    fn companions(
        &self,
        model: &dyn Classifier,
        images: &Tensor,
        labels: &Tensor,
        ids: &[u64],
        seed: Seed,
    ) -> Result<Companions, ClassifierError> {
        let _no_grad = tch::no_grad_guard();
        let start = if self.random_start {
            self.pgd.random_start(images, ids, seed, "pgd/start")
        } else {
            images.shallow_clone()
        };
        let images = self.pgd.ascend(images, &start, |x| {
            let losses = |x: &Tensor| model.logits(x).map(|logits| loss::ce(&logits, labels));
            try_input_gradient(x, losses).map(|(gradient, _)| gradient)
        })?;
        let logits = model.logits(&images)?;
        Ok(Companions::new(images, &logits, labels, passes(self.pgd.steps, ids.len()), 0))
    }
}

/// See [`CompanionConfig::ClampedNormalizedPgd`]: `torchattacks.PGD` on normalized images, as ROME's code calls it.
#[derive(Debug)]
struct ClampedNormalized {
    config: MultiStepConfig,
    /// In normalized values.
    radius: f64,
    /// Of each channel, f32 `[1, C, 1, 1]`.
    mean: Tensor,
    std: Tensor,
}

impl ClampedNormalized {
    fn companions(
        &self,
        model: &dyn Classifier,
        images: &Tensor,
        labels: &Tensor,
        ids: &[u64],
        seed: Seed,
    ) -> Result<Companions, ClassifierError> {
        let _no_grad = tch::no_grad_guard();
        let pixels = |normalized: &Tensor| normalized * &self.std + &self.mean;
        let normalized = (images - &self.mean) / &self.std;
        // The library's order: into the ball around the unclamped image, then into [0, 1].
        let clamped = |change: Tensor| (&normalized + change.clamp(-self.radius, self.radius)).clamp(0.0, 1.0);
        let mut x = normalized.shallow_clone();
        if self.config.random_start {
            let noise = Norm::Linf.random_in_ball(&images.size()[1..], ids, self.radius, seed, "clamped-pgd/start");
            x = clamped(send(&noise, images.device()));
        }
        let step = self.config.rel_step_size * self.radius;
        for _ in 0..self.config.steps {
            let (gradient, _) = try_input_gradient(&x, |x| {
                let logits = model.logits(&pixels(x))?;
                Ok::<_, ClassifierError>(loss::ce(&logits, &(labels + 1).remainder(logits.size()[1])))
            })?;
            x = clamped(&x - gradient.sign() * step - &normalized);
        }
        let images = pixels(&x);
        let logits = model.logits(&images)?;
        Ok(Companions::new(images, &logits, labels, passes(self.config.steps, ids.len()), 0))
    }
}

#[cfg(test)]
mod tests {
    use c2r_testkit::toys;
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

    /// Logits `[-x, x]` of images of one pixel, brighter or darker.
    fn brightness() -> impl Classifier {
        toys::function(|images| {
            let x = images.view([-1, 1]);
            Tensor::cat(&[-&x, x], 1)
        })
    }

    /// One step to the edge of the ball, or of `[0, 1]`: class 0 is attacked towards class 1, brighter.
    #[test]
    fn fgsm_by_hand() {
        let one = Tensor::ones([1, 1, 1, 1], (Kind::Float, Device::Cpu));
        let threat = ThreatModel::untargeted(Norm::Linf, "0.1".parse().unwrap());
        let config: CompanionConfig = toml::from_str("attack = \"fgsm\"").unwrap();
        let attack = CompanionAttack::new(&config, threat, &one, &one).unwrap();
        let images = Tensor::from_slice(&[0.6f32, 0.95, 0.6, 0.05]).view([4, 1, 1, 1]);
        let labels = Tensor::from_slice(&[0i64, 0, 1, 1]);
        let attacked = Attacked { images: &images, labels: &labels, positions: &[0, 1, 2, 3] };
        let made = attack.companions(&brightness(), attacked, Seed::new(0), None).unwrap();
        let got = Vec::<f32>::try_from(made.images.view(-1)).unwrap();
        for (got, expected) in got.iter().zip([0.7, 1.0, 0.5, 0.0]) {
            assert!((got - expected).abs() < 1e-6, "{got} instead of {expected}");
        }
        assert_eq!((made.passes.forward_images, made.passes.backward_images), (4 * 2, 4));
    }

    /// Mean 0.5, deviation 0.25, radius 0.1. Class 0 is attacked towards class 1, brighter. Normalized 0.4 goes to 0.5; 1.6 and
    /// -1.6 go to the ends of [0, 1], whatever the radius is; class 1 is attacked towards class 0 and goes to 0.3.
    #[test]
    fn clamped_normalized_pgd_by_hand() {
        let scale = [0.5, 0.25].map(|value| Tensor::full([1, 1, 1, 1], value, (Kind::Float, Device::Cpu)));
        let steps = MultiStepConfig { steps: 2, rel_step_size: 0.5, random_start: false };
        let attack = |config: MultiStepConfig| {
            let threat = ThreatModel::untargeted(Norm::Linf, "0.1".parse().unwrap());
            let config = CompanionConfig::ClampedNormalizedPgd(config);
            let attack = CompanionAttack::new(&config, threat, &scale[0], &scale[1]).unwrap();
            let images = Tensor::from_slice(&[0.6f32, 0.9, 0.1, 0.6]).view([4, 1, 1, 1]);
            let labels = Tensor::from_slice(&[0i64, 0, 0, 1]);
            let attacked = Attacked { images: &images, labels: &labels, positions: &[0, 1, 2, 3] };
            attack.companions(&brightness(), attacked, Seed::new(0), None).unwrap()
        };
        let made = attack(steps);
        let got = Vec::<f32>::try_from(made.images.view(-1)).unwrap();
        for (got, expected) in got.iter().zip([0.625, 0.75, 0.5, 0.575]) {
            assert!((got - expected).abs() < 1e-6, "{got} instead of {expected}");
        }
        assert_eq!((made.passes.forward_images, made.passes.backward_images), (4 * 3, 4 * 2));
        // A random start, and a step too short to reach the end of the ball.
        let random = attack(MultiStepConfig { steps: 1, rel_step_size: 0.1, random_start: true }).images;
        let normalized = (random - 0.5) / 0.25;
        assert!(normalized.min().double_value(&[]) >= 0.0 && normalized.max().double_value(&[]) <= 1.0);
        let first = normalized.double_value(&[0, 0, 0, 0]);
        assert!((first - 0.4).abs() <= 0.1 + 1e-6 && (first - 0.41).abs() > 1e-3, "{first}");
    }
}
