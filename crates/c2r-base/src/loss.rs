//! What attacks ascend. Every loss returns one value per sample, f32 `[N]`, and grows when the attack
//! gets closer to its goal; [`margin`] alone is a measure, not a loss, and falls.

use tch::{Kind, Tensor};

/// Cross entropy `-log softmax(z)_y`.
///
/// * `logits`: f32 `[N, K]`; `labels`: i64 `[N]`.
pub fn ce(logits: &Tensor, labels: &Tensor) -> Tensor {
    logits.cross_entropy_loss::<Tensor>(labels, None, tch::Reduction::None, -100, 0.0)
}

/// Signed logit margin `z_y - max_{k != y} z_k`; negative means misclassified.
///
/// * `logits`: f32 `[N, K]`, before softmax; `labels`: i64 `[N]`, in `0..K`.
///
/// In logits (not pixels). Source: Carlini & Wagner 2017 (arXiv:1608.04644), objective f6, sign
/// flipped and unclipped.
pub fn margin(logits: &Tensor, labels: &Tensor) -> Tensor {
    let at = labels.unsqueeze(1);
    let own = logits.gather(1, &at, false).squeeze_dim(1);
    let other = logits.scatter_value(1, &at, f64::NEG_INFINITY).amax([1i64].as_slice(), false);
    own - other
}

/// CW margin loss `-max(z_y - max_{k != y} z_k + kappa, 0)`: ascending it lowers the margin until it
/// is `-kappa`.
///
/// `kappa`: confidence, in logits, 0 or more. Source: Carlini & Wagner 2017, f6; as the Linf attack
/// of Madry et al. 2018 (arXiv:1706.06083), which uses kappa 50.
pub fn cw(logits: &Tensor, labels: &Tensor, kappa: f64) -> Tensor {
    -(margin(logits, labels) + kappa).clamp_min(0.0)
}

/// Difference of logits ratio `-(z_y - max_{k != y} z_k) / (z_(1) - z_(3))`, sorted descending.
///
/// Needs 3 classes. Source: Croce & Hein 2020 (arXiv:2003.01690), equation 6; 1e-12 in the
/// denominator as in their code.
pub fn dlr(logits: &Tensor, labels: &Tensor) -> Tensor {
    let (sorted, _) = logits.topk(3, 1, true, true);
    -margin(logits, labels) / (sorted.select(1, 0) - sorted.select(1, 2) + 1e-12)
}

/// Targeted difference of logits ratio `-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)`.
///
/// Needs 4 classes. Source: Croce & Hein 2020, equation 7.
pub fn dlr_targeted(logits: &Tensor, labels: &Tensor, targets: &Tensor) -> Tensor {
    let (sorted, _) = logits.topk(4, 1, true, true);
    let own = logits.gather(1, &labels.unsqueeze(1), false).squeeze_dim(1);
    let target = logits.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
    (target - own) / (sorted.select(1, 0) - (sorted.select(1, 2) + sorted.select(1, 3)) * 0.5 + 1e-12)
}

/// `KL(p || softmax(z))`, the loss of TRADES (Zhang et al. 2019, arXiv:1901.08573, equation 5).
///
/// * `probabilities`: f32 `[N, K]`, rows sum to 1, e.g. the softmax of the clean logits.
pub fn kl(probabilities: &Tensor, logits: &Tensor) -> Tensor {
    let log_q = logits.log_softmax(1, Kind::Float);
    let log_p = probabilities.clamp_min(f64::from(f32::MIN_POSITIVE)).log();
    (probabilities * (log_p - log_q)).sum_dim_intlist([1i64].as_slice(), false, Kind::Float)
}

/// Jitter: `mean_k (softmax(scale * z / max|z|)_k + noise_k - onehot(y)_k)^2`, divided by the length of
/// the perturbation where the sample is already misclassified.
///
/// * `noise`: f32 `[N, K]`, already multiplied by its standard deviation.
/// * `length`: f32 `[N]`, Linf length of the perturbation so far; gradients flow through it.
///
/// Source: Schwinn et al. 2021 (arXiv:2105.10304), equations 6 to 8; mean over classes instead of the
/// sum, which only scales.
pub fn jitter(logits: &Tensor, labels: &Tensor, noise: &Tensor, scale: f64, length: &Tensor) -> Tensor {
    let largest = logits.abs().amax([1i64].as_slice(), true);
    let softened = (logits * scale / largest.clamp_min(1e-12)).softmax(1, Kind::Float) + noise;
    let onehot = labels.onehot(logits.size()[1]).to_kind(Kind::Float);
    let distance = (softened - onehot).square().mean_dim([1i64].as_slice(), false, Kind::Float);
    let divided = logits.argmax(1, false).ne_tensor(labels).logical_and(&length.gt(0.0));
    // `where` would send NaN gradients through the branch that divides by zero.
    let divisor = length.where_self(&divided, &length.ones_like());
    distance / divisor
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &Tensor, expected: &[f64]) {
        let values = Vec::<f64>::try_from(values.to_kind(Kind::Double)).unwrap();
        assert_eq!(values.len(), expected.len());
        for (value, expected) in values.iter().zip(expected) {
            assert!((value - expected).abs() < 1e-5, "{values:?} instead of {expected}");
        }
    }

    fn logits() -> Tensor {
        Tensor::from_slice(&[3.0f32, 1.0, -1.0, 0.0, -2.0, -1.0, -4.0, -3.0]).view([2, 4])
    }

    fn labels() -> Tensor {
        Tensor::from_slice(&[0i64, 2])
    }

    #[test]
    fn values_by_hand() {
        check(&margin(&logits(), &labels()), &[2.0, -3.0]);
        check(&cw(&logits(), &labels(), 1.0), &[-3.0, 0.0]);
        check(&dlr(&logits(), &labels()), &[-2.0 / 3.0, 3.0 / 2.0]);
        // Sorted: 3 1 0 -1 and -1 -2 -3 -4.
        check(&dlr_targeted(&logits(), &labels(), &Tensor::from_slice(&[1i64, 0])), &[-2.0 / 3.5, 2.0 / 2.5]);
        let sum: f64 = [3.0f64, 1.0, -1.0, 0.0].iter().map(|z| z.exp()).sum();
        check(&ce(&logits(), &labels()).narrow(0, 0, 1), &[sum.ln() - 3.0]);
    }

    #[test]
    fn kl_of_equal_distributions_is_zero() {
        let p = logits().softmax(1, Kind::Float);
        check(&kl(&p, &logits()), &[0.0, 0.0]);
        assert!(kl(&p, &(logits() * 2.0)).double_value(&[0]) > 0.0);
    }

    #[test]
    fn jitter_has_finite_gradients_at_the_clean_image() {
        let z = logits().set_requires_grad(true);
        let noise = z.zeros_like().detach();
        let loss = jitter(&z, &labels(), &noise, 10.0, &Tensor::zeros([2], (Kind::Float, tch::Device::Cpu)));
        let gradient = crate::grad::gradients(&loss.sum(Kind::Float), &[&z]).swap_remove(0);
        assert_eq!(gradient.isfinite().all().int64_value(&[]), 1);
    }
}
