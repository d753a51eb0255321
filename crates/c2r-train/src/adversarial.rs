use std::convert::Infallible;

use c2r_attacks::Pgd;
use c2r_base::{Seed, ThreatModel, grad::input_gradient};
use c2r_models::Model;
use tch::{Kind, Tensor};

use crate::{AdversarialConfig, AdversarialLoss};

/// Deviation of TRADES's random start, from its authors' code.
const TRADES_START: f64 = 0.001;

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
/// * `seed`: of this step; the start is drawn from one stream per place in the batch.
pub(crate) fn attack(
    model: &Model,
    images: &Tensor,
    distributions: &Tensor,
    config: &AdversarialConfig,
    seed: Seed,
) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    let pgd = Pgd {
        threat: ThreatModel::untargeted(config.norm, config.epsilon),
        steps: config.steps,
        step_size: config.rel_step_size * config.epsilon.value(),
        sparsity: None,
    };
    let trades = matches!(config.loss, AdversarialLoss::Trades(_));
    let places: Vec<u64> = (0..images.size()[0] as u64).collect();
    let start = match (config.random_start, trades) {
        (false, _) => images.shallow_clone(),
        (true, true) => {
            let noise = gaussian(&images.size(), &places, seed) * TRADES_START;
            pgd.threat.project(images, &(images + noise.to_device(images.device())))
        }
        (true, false) => pgd.random_start(images, &places, seed, "train/start"),
    };
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

/// Standard normal values, one stream per place.
fn gaussian(shape: &[i64], places: &[u64], seed: Seed) -> Tensor {
    // Box and Muller: two uniforms for two normals.
    let len = shape[1..].iter().product::<i64>() as usize;
    let mut values = Vec::with_capacity(len * places.len());
    for &place in places {
        let mut rng = seed.stream("train/start", place);
        let end = values.len() + len;
        while values.len() < end {
            let (u, v): (f64, f64) = (1.0 - rand::Rng::random::<f64>(&mut rng), rand::Rng::random(&mut rng));
            let (sin, cos) = (std::f64::consts::TAU * v).sin_cos();
            let length = (-2.0 * u.ln()).sqrt();
            values.push((length * cos) as f32);
            if values.len() < end {
                values.push((length * sin) as f32);
            }
        }
    }
    Tensor::from_slice(&values).view(shape)
}

#[cfg(test)]
mod tests {
    use c2r_base::Norm;
    use c2r_models::{ModelInput, ModelSpec};
    use c2r_testkit::{assert_close, toys};
    use tch::Device;

    use super::*;
    use crate::Protocol;

    fn model() -> Model {
        let input = ModelInput { channels: 1, height: 8, width: 8, n_classes: 4, mean: vec![0.5], std: vec![0.25] };
        let model = Model::new(&ModelSpec::convnet(2, 8), &input, Seed::new(2), Device::Cpu).unwrap();
        model.set_trainable(false);
        model
    }

    #[test]
    fn losses_by_hand() {
        let logits = Tensor::from_slice(&[0.0f32, 0.0, 1.0, 0.0]).view([2, 2]);
        let targets = Tensor::from_slice(&[1.0f32, 0.0, 0.25, 0.75]).view([2, 2]);
        // ln 2; and ln(1 + e) - 0.25.
        let expected = [std::f64::consts::LN_2, (1.0 + 1f64.exp()).ln() - 0.25];
        assert_close("ce", &cross_entropy(&logits, &targets), &Tensor::from_slice(&expected), 1e-6);
        // KL of (1/2, 1/2) and (s, 1 - s), s = e / (1 + e).
        let s = 1f64.exp() / (1.0 + 1f64.exp());
        let kl = 0.5 * (0.5 / s).ln() + 0.5 * (0.5 / (1.0 - s)).ln();
        let got = divergence(&logits.narrow(0, 0, 1), &logits.narrow(0, 1, 1));
        assert_close("kl", &got, &Tensor::from_slice(&[kl]), 1e-6);
    }

    #[test]
    fn attacked_images_stay_in_the_threat_set_and_lose() {
        let model = model();
        let images = toys::images(12, [1, 8, 8]);
        let one_hot = toys::labels(12, 4).one_hot(4).to_kind(Kind::Float);
        let mean_loss = |x: &Tensor| cross_entropy(&model.logits(x), &one_hot).mean(Kind::Float).double_value(&[]);
        for protocol in [Protocol::PgdAt, Protocol::Trades] {
            for norm in [Norm::Linf, Norm::L2, Norm::L1] {
                let mut config = protocol.config().adversarial.unwrap();
                config.norm = norm;
                config.epsilon = match norm {
                    Norm::Linf => "8/255",
                    Norm::L2 => "0.5",
                    Norm::L1 => "4",
                }
                .parse()
                .unwrap();
                let attacked = attack(&model, &images, &one_hot, &config, Seed::new(5));
                let what = format!("{protocol} {norm}");
                assert!(!attacked.requires_grad());
                let farthest = norm.distance(&attacked, &images).max().double_value(&[]);
                assert!(farthest <= config.epsilon.value() + 1e-5, "{what}: {farthest}");
                assert!(farthest > 0.5 * config.epsilon.value(), "{what}: {farthest}");
                assert!(attacked.min().double_value(&[]) >= 0.0 && attacked.max().double_value(&[]) <= 1.0);
                if protocol == Protocol::PgdAt {
                    let (before, after) = (mean_loss(&images), mean_loss(&attacked));
                    assert!(after > before + 0.02, "{what}: {before} -> {after}");
                } else {
                    let kl = divergence(&model.logits(&images), &model.logits(&attacked));
                    assert!(kl.min().double_value(&[]) > 1e-5, "{what}");
                }
            }
        }
    }

    #[test]
    fn gaussian_start_is_normal_and_streamed() {
        let values = gaussian(&[4, 1, 31, 33], &[0, 1, 2, 3], Seed::new(1));
        assert!(values.mean(Kind::Float).double_value(&[]).abs() < 0.05);
        assert!((values.std(true).double_value(&[]) - 1.0).abs() < 0.05);
        let alone = gaussian(&[1, 1, 31, 33], &[2], Seed::new(1));
        assert_close("stream", &values.narrow(0, 2, 1), &alone, 0.0);
    }
}
