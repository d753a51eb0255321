use std::convert::Infallible;

use c2r_attacks::Pgd;
use c2r_base::{Seed, ThreatModel, grad::input_gradient, normal};
use c2r_models::Model;
use tch::{Kind, Tensor};

use crate::{AdversarialConfig, AdversarialLoss};

/// Deviation of TRADES's random start, from its authors' code.
const TRADES_START: f32 = 0.001;
/// What the random start of an attack is drawn for.
const START: &str = "train/start";

/// Cross-entropy per image, f32 `[N]`, of `logits` f32 `[N, K]` against distributions f32 `[N, K]`.
pub(crate) fn cross_entropy(logits: &Tensor, distributions: &Tensor) -> Tensor {
    -(logits.log_softmax(1, Kind::Float) * distributions).sum_dim_intlist([1i64].as_slice(), false, Kind::Float)
}

/// `KL(p || q)` per image, f32 `[N]`, of two sets of logits f32 `[N, K]`; differentiable in both.
pub(crate) fn divergence(p: &Tensor, q: &Tensor) -> Tensor {
    let (p, q) = (p.log_softmax(1, Kind::Float), q.log_softmax(1, Kind::Float));
    (p.exp() * (p - q)).sum_dim_intlist([1i64].as_slice(), false, Kind::Float)
}

/// The attacked images of a training step, f32 `[N, C, H, W]` in `[0, 1]`, without gradient.
///
/// The parameters must be frozen, so that only the images' gradient is computed.
///
/// * `images`: f32 `[N, C, H, W]` in `[0, 1]`; `distributions`: what they are to be classified as, f32
///   `[N, K]`.
/// * `noise`: [`start_noise`] of the step, f32 `[N, C, H, W]`; without, the attack starts at the images.
pub(crate) fn attack(
    model: &Model,
    images: &Tensor,
    distributions: &Tensor,
    config: &AdversarialConfig,
    noise: Option<&Tensor>,
) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    let pgd = Pgd {
        threat: ThreatModel::untargeted(config.norm, config.epsilon),
        steps: config.steps,
        step_size: config.rel_step_size * config.epsilon.value(),
        sparsity: None,
    };
    let trades = matches!(config.loss, AdversarialLoss::Trades(_));
    let start = noise.map_or_else(|| images.shallow_clone(), |noise| pgd.threat.project(images, &(images + noise)));
    let clean = trades.then(|| model.logits(images));
    let attacked = pgd.ascend(images, &start, |x| {
        let loss = |x: &Tensor| match &clean {
            Some(clean) => divergence(clean, &model.logits(x)),
            None => cross_entropy(&model.logits(x), distributions),
        };
        Ok::<_, Infallible>(input_gradient(x, loss).0)
    });
    match attacked {
        Ok(attacked) => attacked,
        Err(never) => match never {},
    }
}

/// What is added to `n` images of `shape` (`[C, H, W]`) before the first step of an attack, image by image.
///
/// * `seed`: of this training step; there is one stream per place in the batch.
pub(crate) fn start_noise(config: &AdversarialConfig, shape: &[i64], n: usize, seed: Seed) -> Vec<f32> {
    let places: Vec<u64> = (0..n as u64).collect();
    match config.loss {
        AdversarialLoss::Trades(_) => {
            let mut streams: Vec<_> = places.iter().map(|&place| seed.stream(START, place)).collect();
            normal(&mut streams, shape.iter().product::<i64>() as usize, TRADES_START)
        }
        AdversarialLoss::PgdAt => config.norm.values_in_ball(shape, &places, config.epsilon.value(), seed, START),
    }
}
