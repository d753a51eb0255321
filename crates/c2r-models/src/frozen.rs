use c2r_base::{Classifier, ClassifierError};
use tch::{Device, Tensor};

use crate::model::Model;

/// A network that is done learning: no parameter gradients. This is what attacks and
/// evaluations take.
#[derive(Debug)]
pub struct Frozen(Model);

impl Frozen {
    /// Freezes `model`. Handles from [`Model::parameters`] are the same tensors; code that kept one can
    /// still write into it, but must not.
    pub fn new(model: Model) -> Self {
        model.set_trainable(false);
        Self(model)
    }

    /// [`Model::logits`], f32 `[N, K]`.
    pub fn logits(&self, images: &Tensor) -> Tensor {
        self.0.logits(images)
    }

    /// The network itself.
    pub const fn model(&self) -> &Model {
        &self.0
    }
}

impl Classifier for Frozen {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        Classifier::logits(&self.0, images)
    }

    fn device(&self) -> Device {
        self.0.device()
    }

    fn replica(&self) -> Option<Box<dyn Classifier + Send>> {
        Some(Box::new(Self(self.0.share())))
    }
}
