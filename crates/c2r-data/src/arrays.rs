//! Between arrays on the host and tensors, for what libtorch computes.

use ndarray::{Array, ArrayD, ArrayView, Dimension};
use tch::{Tensor, kind::Element};

/// The values of `array` as a tensor of the same shape and dtype on the CPU.
pub fn to_tensor<T: Element + Clone, D: Dimension>(array: ArrayView<'_, T, D>) -> Tensor {
    Tensor::try_from(array.as_standard_layout()).expect("an array in standard order is one slice")
}

/// The values of `tensor`, from any device, as an array of the same shape.
///
/// # Errors
/// In words: `tensor` has another dtype or another number of dimensions.
pub fn to_array<T: Element + Copy, D: Dimension>(tensor: &Tensor) -> Result<Array<T, D>, String> {
    let (kind, size) = (tensor.kind(), tensor.size());
    let wrong = || format!("expected {:?} with {:?} dimensions, got {kind:?} {size:?}", T::KIND, D::NDIM);
    if kind != T::KIND {
        return Err(wrong());
    }
    let array: ArrayD<T> = tensor.try_into().map_err(|error: tch::TchError| error.to_string())?;
    array.into_dimensionality().map_err(|_| wrong())
}
