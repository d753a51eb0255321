//! What a run has and no step of it changes.

use c2r_base::{Classifier, Seed, host::send};
use c2r_core::ls_pgd::{Companions, PerturbationCache};
use c2r_data::{
    Batches, DatasetSpec, Rows, Split,
    dsa::{Dsa, DsaDraw},
};
use c2r_models::{Model, ModelError, ModelInput};
use c2r_train::Augmentation;
use tch::{Device, Kind, Tensor};

use crate::{
    config::{CommonConfig, Place},
    error::{ConfigError, DistillError},
    parts::companions::{Attacked, Attacks, pieces},
    passes::RunPasses,
};

/// The configuration, the data and everything else that a method reads and none changes.
#[derive(Debug)]
pub struct Context {
    /// The part of the configuration that every method has.
    pub common: CommonConfig,
    /// The method's name in configurations.
    pub method: &'static str,
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
    pub(crate) attacks: Attacks,
    /// The same images, for batches of them.
    pub(crate) batches: Batches,
    /// Mean and deviation of each channel, f32 `[1, C, 1, 1]`.
    pub(crate) mean: Tensor,
    pub(crate) std: Tensor,
}

/// `[1, C, 1, 1]` of one value per channel.
pub(crate) fn per_channel(values: &[f64], device: Device) -> Tensor {
    Tensor::from_slice(values).to_kind(Kind::Float).to_device(device).view([1, -1, 1, 1])
}

impl Context {
    /// Number of classes, K.
    pub fn n_classes(&self) -> usize {
        self.spec.classes.len()
    }

    /// The error for a section that the configuration lacks.
    pub const fn missing(&self, section: &'static str) -> ConfigError {
        ConfigError::SectionMissing { section, method: self.method }
    }

    /// Adversarial companions of any number of images as `place` asks for them, with their scores; counted in `passes`.
    /// Places differ only where the configuration has `[attacks]`.
    ///
    /// # Errors
    /// [`ConfigError::SectionMissing`] without `[companions]`, otherwise what the network or the attack returns.
    pub fn attack(
        &self,
        place: Place,
        model: &dyn Classifier,
        attacked: Attacked<'_>,
        seed: Seed,
        cache: Option<&mut PerturbationCache>,
        passes: &mut RunPasses,
    ) -> Result<Companions, DistillError> {
        let attack = self.attacks.at(place).ok_or_else(|| self.missing("companions"))?;
        let companions = attack.companions(model, attacked, seed, cache)?;
        *passes += &companions;
        Ok(companions)
    }

    /// A new network of the configured architecture; its parameters track no gradients.
    ///
    /// # Errors
    /// [`ModelError`] if the architecture does not fit the images.
    pub fn network(&self, seed: Seed) -> Result<Model, ModelError> {
        let model = Model::new(&self.common.model, &self.input, seed, self.device)?;
        model.set_trainable(false);
        Ok(model)
    }

    /// Real images at positions of [`Context::data`], f32 `[n, C, H, W]`, and their labels, i64 `[n]`.
    pub fn real(&self, rows: &Rows) -> (Tensor, Tensor) {
        self.batches.batch(rows)
    }

    /// One augmentation draw, the same for every image, on normalized values as in the field.
    pub fn augmented(&self, images: &Tensor, draw: &DsaDraw) -> Tensor {
        self.common.dsa.apply_normalized(images, draw, &self.mean, &self.std)
    }

    /// For the batches that a network is trained on, of at most `batch_size` images: one operation of `dsa` for all images
    /// with parameters of its own for each, on normalized values, as in the field and downstream.
    pub fn augmentation(&self, dsa: &Dsa, batch_size: usize) -> Augmentation {
        Augmentation::new(dsa.clone(), &self.mean, &self.std, batch_size)
    }

    /// Pixels as the first layer of a network sees them: less the mean of their channel, divided by its deviation.
    pub fn normalized(&self, images: &Tensor) -> Tensor {
        (images - &self.mean) / &self.std
    }

    /// Embeddings of any number of images under one augmentation draw, f32 `[N, D]`, without gradients.
    pub fn embed(&self, model: &Model, images: &Tensor, draw: Option<&DsaDraw>) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let embeddings: Vec<Tensor> = pieces(images)
            .map(|piece| {
                let images = images.narrow(0, piece.start as i64, piece.len() as i64);
                model.features(&draw.map_or_else(|| images.shallow_clone(), |draw| self.augmented(&images, draw)))
            })
            .collect();
        Tensor::cat(&embeddings, 0)
    }

    /// Labels or positions as a tensor on the device, i64 `[N]`.
    pub fn indices(&self, values: &[i64]) -> Tensor {
        send(&Tensor::from_slice(values), self.device)
    }
}
