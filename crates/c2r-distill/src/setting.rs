//! What a run has and no step of it changes.

use c2r_base::Seed;
use c2r_data::{ClassSampler, DatasetSpec, Split, dsa::DsaDraw};
use c2r_models::{Model, ModelError, ModelInput};
use tch::{Device, Tensor};

use crate::{
    companions::{Companion, pieces},
    config::DistillConfig,
};

/// The configuration, the data and everything else that a method reads and none changes.
#[derive(Debug)]
pub struct Setting {
    /// The resolved configuration.
    pub config: DistillConfig,
    /// What is known about the dataset.
    pub spec: DatasetSpec,
    /// The real training images, cut down to `train-per-class`.
    pub data: Split,
    /// What networks are made for.
    pub input: ModelInput,
    /// Where to compute.
    pub device: Device,
    /// Seed of everything random in the run.
    pub seed: Seed,
    /// How companions are made, where the configuration says so.
    pub(crate) companion: Option<Companion>,
}

impl Setting {
    /// Number of classes, K.
    pub const fn n_classes(&self) -> usize {
        self.spec.classes.len()
    }

    /// How companions are made.
    ///
    /// # Panics
    /// If the configuration has no `[companions]`; it was checked that whoever asks has them.
    pub fn companion(&self) -> &Companion {
        self.companion.as_ref().expect("the configuration was checked for [companions]")
    }

    /// A new network of the configured architecture; its parameters track no gradients.
    ///
    /// # Errors
    /// [`ModelError`] if the architecture does not fit the images.
    pub fn network(&self, seed: Seed) -> Result<Model, ModelError> {
        let model = Model::new(&self.config.model, &self.input, seed, self.device)?;
        model.set_trainable(false);
        Ok(model)
    }

    /// One augmentation draw, the same for every image, on normalized values as in the field.
    pub fn augmented(&self, images: &Tensor, draw: &DsaDraw) -> Tensor {
        self.config.dsa.apply_normalized(images, draw, &self.input.mean, &self.input.std)
    }

    /// Embeddings of any number of images under one augmentation draw, f32 `[N, D]`, without gradients.
    pub(crate) fn embed(&self, model: &Model, images: &Tensor, draw: Option<&DsaDraw>) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let parts: Vec<Tensor> = pieces(images)
            .map(|piece| {
                let images = images.narrow(0, piece.start as i64, piece.len() as i64);
                model.features(&draw.map_or_else(|| images.shallow_clone(), |draw| self.augmented(&images, draw)))
            })
            .collect();
        Tensor::cat(&parts, 0)
    }

    /// Positions of the real images of iteration `t`: `per_class` of every class, class by class.
    pub fn real_positions(&self, sampler: &mut ClassSampler, t: u64, per_class: usize) -> Vec<usize> {
        (0..self.data.n_classes()).flat_map(|class| sampler.positions(&self.data, t, class, per_class)).collect()
    }

    /// The labels as a tensor on the device, i64 `[N]`.
    pub fn label_tensor(&self, labels: &[i64]) -> Tensor {
        Tensor::from_slice(labels).to_device(self.device)
    }
}
