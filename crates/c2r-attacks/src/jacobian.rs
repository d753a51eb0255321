//! Gradients of all logits, one class at a time, so that memory does not grow with the classes.

use c2r_base::Norm;
use tch::{Kind, Tensor};

use crate::attack::{AttackError, Oracle, per_image};

/// The linearized decision boundary that is nearest to each image.
///
/// * `images`: f32 `[N, C, H, W]`; `labels`: i64 `[N]`.
///
/// Returns `z_k - z_y`, f32 `[N]`, and its gradient, f32 `[N, C, H, W]`, for the class k with the
/// smallest `|z_k - z_y| / |gradient|_q`, q the dual of `norm`.
pub(crate) fn nearest_boundary(
    oracle: &mut Oracle<'_>,
    images: &Tensor,
    rows: &[usize],
    labels: &Tensor,
    norm: Norm,
) -> Result<(Tensor, Tensor), AttackError> {
    let x = images.detach().set_requires_grad(true);
    let at = labels.unsqueeze(1);
    let logits = tch::with_grad(|| oracle.model().logits(&x)).map_err(|source| oracle.failed(rows, source))?;
    let differences = tch::with_grad(|| &logits - logits.gather(1, &at, false));
    oracle.seen(&logits.detach(), rows)?;
    let classes = logits.size()[1];
    let mut best: Option<(Tensor, Tensor, Tensor)> = None;
    for class in 0..classes {
        // The last pass may free the graph.
        let keep = class + 1 < classes;
        let sum = tch::with_grad(|| differences.select(1, class).sum(Kind::Float));
        let gradient = Tensor::run_backward(&[sum], &[&x], keep, false).swap_remove(0);
        let difference = differences.detach().select(1, class);
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
    oracle.count_backward(rows.len(), classes as u64);
    let (_, difference, gradient) = best.expect("there are at least two classes");
    Ok((difference, gradient))
}

/// Length in the dual norm, f32 `[N]`.
pub(crate) fn dual_length(gradient: &Tensor, norm: Norm) -> Tensor {
    match norm {
        Norm::Linf => Norm::L1.length(gradient),
        Norm::L2 => Norm::L2.length(gradient),
        Norm::L1 => Norm::Linf.length(gradient),
    }
}
