//! DeepFool: steps to the nearest linearized boundary until the label changes.

use c2r_base::{Goal, Norm, Passes, ThreatModel, grad::in_range};
use tch::{Kind, Tensor};

use crate::{
    active::{Active, Leaving, Samples},
    attack::Family,
    error::{AttackError, ConfigError},
    options::{Check, Options, Search, Task, options, passes},
    oracle::Oracle,
    rows::per_image,
};

/// In L1 a step would be one pixel, which the box stops.
const NORMS: [Norm; 2] = [Norm::Linf, Norm::L2];
/// Steps of DeepFool. Moosavi-Dezfooli et al. 2016 (arXiv:1511.04599), their code.
const STEPS: u32 = 50;
/// Overshoot of DeepFool. Moosavi-Dezfooli et al. 2016, section 2.2.
const OVERSHOOT: f64 = 0.02;
/// No step is longer in a pixel, so that sums of steps stay finite where a boundary is out of reach.
const LONGEST_STEP: f64 = 1e6;
/// No logit difference is larger once it has the factor of a tiny gradient.
const LARGEST_DIFFERENCE: f64 = 1e30;

options!(
    /// DeepFool (Moosavi-Dezfooli et al. 2016, arXiv:1511.04599), L2 and Linf.
    DeepFoolConfig {
        /// Steps at most.
        steps: u32 = STEPS,
        /// How far beyond the boundary, as a fraction of the perturbation.
        overshoot: f64 = OVERSHOOT,
        /// Overshoot every step, as torchattacks does, instead of the sum of the steps, as the paper does.
        overshoot_each_step: bool = false,
    }
);

impl Options for DeepFoolConfig {
    fn build(&self, name: &'static str) -> Result<Box<dyn Search>, ConfigError> {
        let check = Check(name);
        check.count("steps", self.steps)?;
        check.at_least("overshoot", self.overshoot, 0.0)?;
        Ok(Box::new(self.clone()))
    }

    fn passes(&self, _: &ThreatModel, classes: u64) -> Passes {
        let steps = u64::from(self.steps);
        passes(2 * steps, classes * steps)
    }
}

impl Search for DeepFoolConfig {
    fn family(&self) -> Family {
        Family::MinimumNorm
    }

    fn check(&self, check: &Check, threat: &ThreatModel, _: i64) -> Result<(), ConfigError> {
        check.norm(&NORMS, threat)?;
        if threat.goal != Goal::Untargeted {
            return Err(ConfigError::UnsupportedGoal { attack: check.0.to_owned() });
        }
        Ok(())
    }

    fn search(&self, oracle: &mut Oracle<'_>, &Task { batch, threat, .. }: &Task<'_>) -> Result<Tensor, AttackError> {
        let mut found = batch.images.copy();
        let all: Vec<usize> = (0..batch.ids.len()).collect();
        let mut active = Active::new(&all);
        let mut samples = Samples::of(batch, &all);
        let mut x = samples.clean.copy();
        let mut total = x.zeros_like();
        for step in 1..=self.steps {
            let (difference, gradient) = nearest_boundary(oracle, &x, active.samples(), &samples.labels, threat.norm)?;
            let change = step_onto(&difference, &gradient, threat.norm);
            let moved = if self.overshoot_each_step {
                (&x + change * (1.0 + self.overshoot)).clamp(0.0, 1.0)
            } else {
                total += change + threat.norm.steepest(&gradient) * push(threat.norm);
                (&samples.clean + &total * (1.0 + self.overshoot)).clamp(0.0, 1.0)
            };
            x = active.kept(&x, moved);
            active.note(samples.reached(&oracle.logits(&x, active.samples())?));
            if let Some(Leaving { done, left }) = active.leave(oracle, 2, step == self.steps)? {
                active.store(&mut found, &done, &x);
                if left.is_empty() {
                    return Ok(found);
                }
                active.keep(&left, samples.tensors().chain([&mut x, &mut total]));
            }
        }
        let all: Vec<usize> = (0..active.len()).collect();
        active.store(&mut found, &all, &x);
        Ok(found)
    }
}

/// What is added to the length of every step. The L2 value is that of the authors' code, which has only L2; the Linf value is
/// ours. Without it, an image that comes to lie on the boundary stays there, because the next step is too short for f32.
const fn push(norm: Norm) -> f64 {
    match norm {
        Norm::Linf => 1e-5,
        Norm::L2 | Norm::L1 => 1e-4,
    }
}

/// The shortest change to the linearized boundary: `|z_k - z_y| / |g|_2^2 * g`, in Linf `|z_k - z_y| / |g|_1 * sign(g)`
/// (Moosavi-Dezfooli et al. 2016, section 3, the extension to other norms).
///
/// A gradient that is not [`in_range`] must have been scaled together with its difference.
pub(crate) fn step_onto(difference: &Tensor, gradient: &Tensor, norm: Norm) -> Tensor {
    let ratio = |length: Tensor| per_image(&(difference.abs() / length.clamp_min(1e-20)).clamp_max(LARGEST_DIFFERENCE));
    let step = match norm {
        Norm::Linf => gradient.sign() * ratio(dual_length(gradient, norm)),
        _ => {
            let squared = gradient.square().flatten(1, -1).sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
            gradient * ratio(squared)
        }
    };
    step.clamp(-LONGEST_STEP, LONGEST_STEP)
}

/// Logit differences, f32 `[N]`, with the factors of their gradients ([`in_range`]).
pub(crate) fn scaled(differences: &Tensor, factors: &Tensor) -> Tensor {
    (differences * factors).clamp(-LARGEST_DIFFERENCE, LARGEST_DIFFERENCE)
}

/// The linearized decision boundary that is nearest to each image, by one gradient per class, one class at a time, so
/// that memory does not grow with the classes.
///
/// * `images`: f32 `[N, C, H, W]`; `labels`: i64 `[N]`.
///
/// Returns `z_k - z_y`, f32 `[N]`, and its gradient, f32 `[N, C, H, W]`, for the class k with the
/// smallest `|z_k - z_y| / |gradient|_q`, q the dual of `norm`. Both carry the factor that brings the gradient [`in_range`].
pub(crate) fn nearest_boundary(
    oracle: &mut Oracle<'_>,
    images: &Tensor,
    rows: &[usize],
    labels: &Tensor,
    norm: Norm,
) -> Result<(Tensor, Tensor), AttackError> {
    let (x, logits) = oracle.tracked(images, rows)?;
    let differences = tch::with_grad(|| &logits - logits.gather(1, &labels.unsqueeze(1), false));
    let classes = logits.size()[1];
    let mut best: Option<(Tensor, Tensor, Tensor)> = None;
    for class in 0..classes {
        // The last pass may free the graph.
        let keep = class + 1 < classes;
        let of_class = tch::with_grad(|| differences.select(1, class));
        let (gradient, factor) = in_range(&oracle.backward(&of_class, &x, rows, keep)?);
        let difference = scaled(&of_class.detach(), &factor);
        let distance =
            (difference.abs() / (dual_length(&gradient, norm) + 1e-12)).masked_fill(&labels.eq(class), f64::INFINITY);
        best = Some(match best {
            None => (distance, difference, gradient),
            Some((best_distance, best_difference, best_gradient)) => {
                let nearer = distance.lt_tensor(&best_distance);
                (
                    distance.minimum(&best_distance),
                    difference.where_self(&nearer, &best_difference),
                    gradient.where_self(&per_image(&nearer), &best_gradient),
                )
            }
        });
    }
    let (_, difference, gradient) = best.expect("there are at least two classes");
    Ok((difference, gradient))
}

/// Length in the dual norm, f32 `[N]`.
fn dual_length(gradient: &Tensor, norm: Norm) -> Tensor {
    match norm {
        Norm::Linf => Norm::L1.length(gradient),
        Norm::L2 => Norm::L2.length(gradient),
        Norm::L1 => Norm::Linf.length(gradient),
    }
}
