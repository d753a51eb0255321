use std::{error::Error, fmt};

use tch::{Device, Tensor};

use crate::grad::{GradientError, try_gradient};

/// A classifier as an attacker sees it: pixels in, logits out, always in evaluation mode.
///
/// An implementation must not depend on anything but `images` (no batch statistics, no dropout) and must let gradients flow
/// from the logits to `images`. Normalization happens inside. No gradient is asked for parameters: they need not be frozen,
/// and their `.grad` stays as it is.
///
/// ```
/// use c2r_base::{Classifier, ClassifierError};
/// use tch::{Device, Kind, Tensor};
///
/// /// Two classes: how dark, how bright.
/// struct Brightness;
/// impl Classifier for Brightness {
///     fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
///         let bright = images.mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float);
///         Ok(Tensor::stack(&[1.0 - &bright, bright], 1))
///     }
///     fn device(&self) -> Device {
///         Device::Cpu
///     }
/// }
/// let logits = Brightness.logits(&Tensor::ones([3, 1, 4, 4], (Kind::Float, Device::Cpu)))?;
/// assert_eq!(logits.size(), [3, 2]);
/// # Ok::<(), ClassifierError>(())
/// ```
pub trait Classifier {
    /// Logits of a batch.
    ///
    /// * `images`: f32 `[N, C, H, W]` in `[0, 1]`, on [`Classifier::device`].
    ///
    /// Returns f32 `[N, K]`, before softmax; tracks gradients if `images` does.
    ///
    /// # Errors
    /// [`ClassifierError`] if the model cannot be run on these images.
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError>;

    /// Where the parameters are and where `images` must be.
    fn device(&self) -> Device;

    /// Gradient of `scalar`, computed from the model's logits, with respect to `images`: f32 of their shape. By default
    /// libtorch's backward pass; for models whose backward pass has to be called in another way.
    ///
    /// * `keep_graph`: whether the graph is needed for another gradient.
    ///
    /// # Errors
    /// [`GradientError`].
    fn gradient(&self, scalar: &Tensor, images: &Tensor, keep_graph: bool) -> Result<Tensor, GradientError> {
        try_gradient(scalar, images, keep_graph)
    }

    /// The same model for another thread, sharing its parameters where it can; `None` (the default) if the
    /// model must stay where it is.
    ///
    /// With replicas, an evaluation on the CPU runs parts of a batch side by side, one thread each.
    fn replica(&self) -> Option<Box<dyn Classifier + Send>> {
        None
    }
}

/// A model that is a function of the images: `logits` takes f32 `[N, C, H, W]` in `[0, 1]` on `device` and returns f32
/// `[N, K]`.
///
/// libtorch's operators panic when they fail. If yours may, call the forms that begin with `f_`, which return their errors:
///
/// ```
/// use c2r_base::{Classifier, ClassifierError, classifier_fn};
/// use tch::{Device, Kind, Tensor};
///
/// let weights = Tensor::full([3, 16], 0.1, (Kind::Float, Device::Cpu));
/// let model = classifier_fn(Device::Cpu, |images| {
///     images.flatten(1, -1).f_matmul(&weights.tr()).map_err(ClassifierError::new)
/// });
/// assert_eq!(model.logits(&Tensor::ones([2, 1, 4, 4], (Kind::Float, Device::Cpu)))?.size(), [2, 3]);
/// assert!(model.logits(&Tensor::ones([2, 1, 5, 5], (Kind::Float, Device::Cpu))).is_err());
/// # Ok::<(), ClassifierError>(())
/// ```
pub fn classifier_fn<F>(device: Device, logits: F) -> ClassifierFn<F>
where
    F: Fn(&Tensor) -> Result<Tensor, ClassifierError>,
{
    ClassifierFn { device, logits }
}

/// What [`classifier_fn`] returns.
#[derive(Clone, Copy)]
pub struct ClassifierFn<F> {
    device: Device,
    logits: F,
}

impl<F> fmt::Debug for ClassifierFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClassifierFn").field("device", &self.device).finish_non_exhaustive()
    }
}

impl<F: Fn(&Tensor) -> Result<Tensor, ClassifierError>> Classifier for ClassifierFn<F> {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        (self.logits)(images)
    }

    fn device(&self) -> Device {
        self.device
    }
}

/// Why a model returned no logits: the model's own error or message.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ClassifierError(Box<dyn Error + Send + Sync>);

impl ClassifierError {
    /// From the model's own error, or from a message.
    pub fn new(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(reason.into())
    }
}
