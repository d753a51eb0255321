//! DeepFool: steps to the nearest linearized boundary until the label changes.

use c2r_base::{Classifier, Goal, Norm, Seed, ThreatModel};
use tch::{Kind, Tensor};

use crate::{
    attack::{
        Attack, AttackBatch, AttackError, Family, Oracle, Perturbed, check_norms, index, per_image, positions, reached,
    },
    config::{ConfigError, DeepFoolConfig},
    jacobian::{dual_length, nearest_boundary},
};

/// In L1 a step would be one pixel, which the box stops.
const NORMS: [Norm; 2] = [Norm::Linf, Norm::L2];

/// DeepFool in L2 and Linf.
pub(crate) struct DeepFool {
    config: DeepFoolConfig,
}

impl DeepFool {
    pub(crate) fn new(config: DeepFoolConfig) -> Self {
        Self { config }
    }
}

impl Attack for DeepFool {
    fn name(&self) -> &str {
        "deepfool"
    }

    fn family(&self) -> Family {
        Family::MinimumNorm
    }

    fn check(&self, threat: &ThreatModel, _: i64) -> Result<(), ConfigError> {
        check_norms(self.name(), &NORMS, threat)?;
        if threat.goal != Goal::Untargeted {
            return Err(ConfigError::UnsupportedGoal { attack: self.name().to_owned() });
        }
        Ok(())
    }

    fn perturb(
        &self,
        model: &dyn Classifier,
        batch: &AttackBatch<'_>,
        threat: &ThreatModel,
        _: Seed,
    ) -> Result<Perturbed, AttackError> {
        let _no_grad = tch::no_grad_guard();
        let mut oracle = Oracle::new(model, self.name(), batch.ids);
        let mut found = batch.images.copy();
        let mut rows: Vec<usize> = (0..batch.ids.len()).collect();
        let mut clean = batch.images.copy();
        let mut labels = batch.labels.copy();
        let mut x = clean.copy();
        let mut total = clean.zeros_like();
        for _ in 0..self.config.steps {
            let (difference, gradient) = nearest_boundary(&mut oracle, &x, &rows, &labels, threat.norm)?;
            let step = step_onto(&difference, &gradient, threat.norm);
            x = if self.config.overshoot_each_step {
                (&x + step * (1.0 + self.config.overshoot)).clamp(0.0, 1.0)
            } else {
                total += step;
                (&clean + &total * (1.0 + self.config.overshoot)).clamp(0.0, 1.0)
            };
            let _ = found.index_copy_(0, &index(&rows, &found), &x);
            let left = positions(&reached(&oracle.logits(&x, &rows)?, &labels, None).logical_not());
            if left.is_empty() {
                break;
            }
            if left.len() < rows.len() {
                let keep = index(&left, &x);
                for tensor in [&mut clean, &mut labels, &mut x, &mut total] {
                    *tensor = tensor.index_select(0, &keep);
                }
                rows = left.iter().map(|&row| rows[row]).collect();
            }
        }
        Ok(oracle.finish(found))
    }
}

/// The shortest change to the linearized boundary: `|z_k - z_y| / |g|_2^2 * g`, in Linf `|z_k - z_y| / |g|_1 * sign(g)`
/// (Moosavi-Dezfooli et al. 2016, section 3, the extension to other norms).
pub(crate) fn step_onto(difference: &Tensor, gradient: &Tensor, norm: Norm) -> Tensor {
    match norm {
        Norm::Linf => {
            let length = dual_length(gradient, norm).clamp_min(1e-20);
            gradient.sign() * per_image(&(difference.abs() / length))
        }
        _ => {
            let squared = gradient.square().flatten(1, -1).sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
            gradient * per_image(&(difference.abs() / squared.clamp_min(1e-20)))
        }
    }
}
