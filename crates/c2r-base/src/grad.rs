//! The only place that differentiates.
//!
//! Losses return one value per sample and are summed, never averaged: a sample's gradient must not
//! depend on who else is in its batch, and a mean underflows.

use std::convert::Infallible;

use tch::{TchError, Tensor};

/// Gradients between these sizes have squares and sums that f32 holds.
const IN_RANGE: std::ops::Range<f64> = 1.0 / (1u64 << 30) as f64..(1u64 << 30) as f64;
/// Twice this, up or down, brings any f32 other than 0 into [`IN_RANGE`].
const RESCALE: f64 = (1u64 << 60) as f64;

/// The reason why a tensor has no gradient.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GradientError {
    /// The outputs track no gradient: they were computed without it, rounded, or are indices.
    #[error("no gradient flows from the outputs to the images")]
    Untracked,
    /// The outputs track gradients, but not to the input.
    #[error("the outputs do not depend on the images")]
    Unused,
    /// libtorch's own error.
    #[error("the backward pass failed: {0}")]
    Failed(String),
}

/// What libtorch says, without its C++ stack.
pub fn message_of(error: &TchError) -> String {
    let text = error.to_string();
    // What the Rust binding puts in front.
    let text = text.strip_prefix("Internal torch error: ").unwrap_or(&text);
    text.split("Exception raised from").next().unwrap_or(text).trim().to_owned()
}

/// Whether an error of libtorch says that memory ran out, on the CPU or on a GPU. It then says nothing about the model.
pub fn is_out_of_memory(message: &str) -> bool {
    ["out of memory", "can't allocate memory", "bad_alloc", "ALLOC_FAILED"].iter().any(|said| message.contains(said))
}

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
/// If `scalar` tracks no gradient: it was computed under a no-grad guard, or from constants.
///
/// The gradient of an input that took no part in computing it is an undefined tensor ([`Tensor::defined`]).
pub fn gradients(scalar: &Tensor, inputs: &[&Tensor]) -> Vec<Tensor> {
    // libtorch's C shim crashes here instead of reporting an error.
    assert!(scalar.requires_grad(), "cannot differentiate a scalar that tracks no gradient");
    Tensor::run_backward(&[scalar], inputs, false, false)
}

/// The gradient of a scalar with respect to `input`, for models that are not ours and may have none.
///
/// * `keep_graph`: whether the graph is needed for another gradient.
///
/// # Errors
/// [`GradientError`].
pub fn try_gradient(scalar: &Tensor, input: &Tensor, keep_graph: bool) -> Result<Tensor, GradientError> {
    if !scalar.requires_grad() {
        return Err(GradientError::Untracked);
    }
    let found = Tensor::f_run_backward(&[scalar], &[input], keep_graph, false);
    let gradient = found.map_err(|error| GradientError::Failed(message_of(&error)))?.swap_remove(0);
    if gradient.defined() { Ok(gradient) } else { Err(GradientError::Unused) }
}

/// Gradients multiplied by a power of two for each image, so that their squares and sums neither under- nor overflow:
/// f32 squares end at sizes of 1e-19 and 1e19, gradients of saturated or scaled logits do not.
///
/// * `gradients`: f32 `[N, C, H, W]`. Images whose largest value has a size between 1e-9 and 1e9 keep their bytes.
///
/// Returns the products and the factors, f32 `[N]`. What is proportional to the gradient takes the same factor.
pub fn in_range(gradients: &Tensor) -> (Tensor, Tensor) {
    let _no_grad = tch::no_grad_guard();
    let mut largest = gradients.flatten(1, -1).abs().amax([1i64].as_slice(), false);
    let mut factors = largest.ones_like();
    for _ in 0..2 {
        let small = largest.lt(IN_RANGE.start).logical_and(&largest.gt(0.0));
        let step = largest.ones_like().masked_fill(&small, RESCALE);
        let step = step.masked_fill(&largest.ge(IN_RANGE.end), 1.0 / RESCALE);
        largest *= &step;
        factors *= step;
    }
    (gradients * factors.view([-1, 1, 1, 1]), factors)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    /// Squares of 1e-25 are 0 in f32, and those of 1e25 infinite. Powers of two change no digit.
    #[test]
    fn gradients_of_any_size_come_into_range_and_ordinary_ones_stay_as_they_are() {
        let sizes = [1e-45f32, f32::MIN_POSITIVE, 1e-25, 1e-9, 0.3, 1e8, 1e25, f32::MAX];
        for size in sizes {
            let (scaled, factor) = in_range(&Tensor::from_slice(&[size, -size / 2.0, 0.0]).view([1, 1, 1, 3]));
            let largest = scaled.abs().max().double_value(&[]);
            assert!(IN_RANGE.contains(&largest), "{size} became {largest}");
            let factor = factor.double_value(&[0]);
            assert!(factor.log2().fract() == 0.0 && largest == f64::from(size) * factor, "{size}: {factor}");
            assert_eq!(factor == 1.0, (1e-9..1e9).contains(&size), "{size}: {factor}");
        }
        let (zero, factor) = in_range(&Tensor::zeros([1, 1, 1, 2], (Kind::Float, Device::Cpu)));
        assert_eq!((zero.abs().max().double_value(&[]), factor.double_value(&[0])), (0.0, 1.0));
    }

    #[test]
    fn a_missing_gradient_is_an_error_that_says_why() {
        let x = Tensor::ones([1, 1, 1, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let other = x.detach().set_requires_grad(true);
        assert!(matches!(try_gradient(&x.argmax(-1, false), &x, false), Err(GradientError::Untracked)));
        let sum = (&other * 2.0).sum(Kind::Float);
        assert!(matches!(try_gradient(&sum, &x, false), Err(GradientError::Unused)));
        let sum = (&x * 2.0).sum(Kind::Float);
        assert_eq!(try_gradient(&sum, &x, false).unwrap().double_value(&[0, 0, 0, 0]), 2.0);
        // The graph is gone after the first backward pass.
        let sum = x.square().sum(Kind::Float);
        let _first = try_gradient(&sum, &x, false).unwrap();
        assert!(
            matches!(try_gradient(&sum, &x, false), Err(GradientError::Failed(text)) if text.contains("second time"))
        );
    }

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
