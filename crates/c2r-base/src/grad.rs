//! The only place that differentiates.
//!
//! Losses return one value per sample and are summed, never averaged: a sample's gradient must not
//! depend on who else is in its batch, and a mean underflows.

use std::convert::Infallible;

use tch::Tensor;

/// Gradient of the sum of per-sample losses with respect to the images only.
///
/// * `images`: f32 `[N, C, H, W]`; not changed, whether or not it tracks gradients.
/// * `loss`: maps a tracked copy of the images to one value per sample, `[N]`.
///
/// Returns the gradient (f32, shape of `images`) and the detached losses. The `.grad` of every
/// parameter stays as it was.
pub fn input_gradient(images: &Tensor, loss: impl FnOnce(&Tensor) -> Tensor) -> (Tensor, Tensor) {
    match try_input_gradient(images, |x| Ok::<_, Infallible>(loss(x))) {
        Ok(found) => found,
        Err(never) => match never {},
    }
}

/// [`input_gradient`] of a loss that can fail, e.g. because its [`crate::Classifier`] does.
///
/// # Errors
/// What `loss` returns.
pub fn try_input_gradient<E>(
    images: &Tensor,
    loss: impl FnOnce(&Tensor) -> Result<Tensor, E>,
) -> Result<(Tensor, Tensor), E> {
    // `shallow_clone` would turn tracking on in the caller's tensor; `detach` is a new handle.
    let tracked = images.detach().set_requires_grad(true);
    let (losses, sum) = tch::with_grad(|| {
        let losses = loss(&tracked)?;
        let sum = losses.sum(losses.kind());
        Ok((losses, sum))
    })?;
    let gradient = gradients(&sum, &[&tracked]).swap_remove(0);
    Ok((gradient, losses.detach()))
}

/// Gradients of a scalar with respect to `inputs`, without touching any `.grad`.
///
/// # Panics
/// If `scalar` tracks no gradient (it was computed under a no-grad guard, or from constants), or an
/// input took no part in computing it; both are bugs of the caller.
pub fn gradients(scalar: &Tensor, inputs: &[&Tensor]) -> Vec<Tensor> {
    // libtorch's C shim crashes here instead of reporting an error.
    assert!(scalar.requires_grad(), "cannot differentiate a scalar that tracks no gradient");
    Tensor::run_backward(&[scalar], inputs, false, false)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn gradient_is_of_the_sum_and_leaves_the_caller_alone() {
        let images = Tensor::full([2, 1, 1, 2], 3.0, (Kind::Float, Device::Cpu));
        let weight = Tensor::full([1], 2.0, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let (gradient, losses) = input_gradient(&images, |x| {
            (x.square() * &weight).sum_dim_intlist([1i64, 2, 3].as_slice(), false, Kind::Float)
        });
        assert_eq!(Vec::<f32>::try_from(gradient.flatten(0, -1)).unwrap(), [12.0; 4]);
        assert_eq!(Vec::<f32>::try_from(losses).unwrap(), [36.0; 2]);
        assert!(!images.requires_grad());
        assert!(!weight.grad().defined());
    }

    #[test]
    fn works_inside_no_grad() {
        let _no_grad = tch::no_grad_guard();
        let images = Tensor::ones([1, 1, 1, 1], (Kind::Float, Device::Cpu));
        let (gradient, _) = input_gradient(&images, |x| (x * 5.0).flatten(0, -1));
        assert_eq!(gradient.double_value(&[0, 0, 0, 0]), 5.0);
    }
}
