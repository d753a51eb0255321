//! The update rule of the synthetic images, with a state that can be saved.

use c2r_base::Adam;
use c2r_train::state::{State, StateError};
use tch::Tensor;

use crate::{
    config::{ImageOptimizer, ImageSpace, ImagesConfig},
    context::per_channel,
};

/// SRe2L (Yin et al. 2023, arXiv:2306.13092), the authors' code.
const SHORT_BETAS: (f64, f64) = (0.5, 0.9);
/// DM (Zhao & Bilen 2023, arXiv:2110.04181) and ROME.
const SGD_MOMENTUM: f64 = 0.5;

/// Adam or SGD over one tensor of images.
#[derive(Debug)]
pub(crate) struct ImageUpdate {
    rule: ImageOptimizer,
    /// Pixels per unit of the space that the learning rate is about, where that is not pixels.
    unit: Option<Tensor>,
    clamp: bool,
    /// SGD's velocity is the first.
    moments: Adam,
}

impl ImageUpdate {
    /// * `std`: deviation of each channel, for [`ImageSpace::Normalized`].
    pub(crate) fn new(config: &ImagesConfig, images: &Tensor, std: &[f64]) -> Self {
        let unit = (config.space == ImageSpace::Normalized).then(|| per_channel(std, images.device()));
        let betas = if config.optimizer == ImageOptimizer::AdamShort { SHORT_BETAS } else { (0.9, 0.999) };
        Self { rule: config.optimizer, unit, clamp: config.clamp, moments: Adam::new(images, betas) }
    }

    /// Moves `images` against `gradient` and, unless that is switched off, clamps them to `[0, 1]`; `step` counts from 1.
    pub(crate) fn apply(&mut self, images: &mut Tensor, gradient: &Tensor, lr: f64, step: u64) {
        let _no_grad = tch::no_grad_guard();
        let scaled = |values: Tensor| match &self.unit {
            Some(unit) => values * unit,
            None => values,
        };
        let gradient = scaled(gradient.shallow_clone());
        let change = scaled(match self.rule {
            ImageOptimizer::Adam | ImageOptimizer::AdamShort => self.moments.direction(&gradient, step as u32),
            ImageOptimizer::Sgd => {
                self.moments.first = &self.moments.first * SGD_MOMENTUM + gradient;
                self.moments.first.shallow_clone()
            }
        });
        let moved = &*images - change * lr;
        images.copy_(&if self.clamp { moved.clamp(0.0, 1.0) } else { moved });
    }

    /// Visits the moments; SGD has one.
    pub(crate) fn state(&mut self, state: &mut State<'_>) -> Result<(), StateError> {
        state.tensor("first", &mut self.moments.first)?;
        state.tensor("second", &mut self.moments.second)?;
        if self.moments.second.min().double_value(&[]) < 0.0 {
            return Err(StateError::wrong(&state.name("second"), "0 or more", "negative numbers"));
        }
        Ok(())
    }
}

/// Learning rate of iteration `t` of `total`: a cosine from `lr` to `final_lr`.
pub(crate) fn learning_rate(config: &ImagesConfig, t: u64, total: u64) -> f64 {
    let progress = if total <= 1 { 0.0 } else { t as f64 / (total - 1) as f64 };
    config.final_lr + (config.lr - config.final_lr) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
}

#[cfg(test)]
mod tests {
    use c2r_train::state::Entries;

    use tch::Kind;

    use super::*;
    use crate::config::Init;

    fn config(optimizer: ImageOptimizer) -> ImagesConfig {
        ImagesConfig {
            init: Init::Real,
            formation: 1,
            optimizer,
            lr: 0.1,
            final_lr: 0.02,
            space: ImageSpace::Pixel,
            clamp: true,
            batch_per_class: 0,
        }
    }

    #[test]
    fn adam_by_hand() {
        let mut images = Tensor::from_slice(&[0.5f32, 0.5, 0.99]);
        let mut update = ImageUpdate::new(&config(ImageOptimizer::Adam), &images, &[]);
        // The first Adam step has length lr in every coordinate; the last one is clamped.
        update.apply(&mut images, &Tensor::from_slice(&[3.0f32, -0.01, -1.0]), 0.1, 1);
        let got: Vec<f32> = Vec::try_from(&images).unwrap();
        for (got, expected) in got.iter().zip([0.4, 0.6, 1.0]) {
            assert!((got - expected).abs() < 1e-5, "{got} instead of {expected}");
        }
    }

    #[test]
    fn adam_corrects_the_bias_of_every_step() {
        // Corrected, the moments of a constant gradient g are g and g^2: every step has length lr.
        // With betas of 0.5 and 0.9, gradients 2 and 1 give moments 1 and 0.4, then 1 and 0.46; of a bias of 3/4 and 0.19.
        // A gradient of -1 then makes the first moment 0.
        let second = (1.0 / 0.75) / (0.46f64 / 0.19).sqrt();
        for (optimizer, gradients, lengths) in [
            (ImageOptimizer::Adam, [3.0f32, 3.0, 3.0], [1.0, 1.0, 1.0]),
            (ImageOptimizer::AdamShort, [2.0, 1.0, -1.0], [1.0, second, 0.0]),
        ] {
            let mut images = Tensor::from_slice(&[0.9f32]);
            let mut update = ImageUpdate::new(&config(optimizer), &images, &[]);
            let mut expected = 0.9;
            for (step, (gradient, length)) in gradients.into_iter().zip(lengths).enumerate() {
                update.apply(&mut images, &Tensor::from_slice(&[gradient]), 0.1, step as u64 + 1);
                expected -= 0.1 * length;
                assert!((images.double_value(&[0]) - expected).abs() < 1e-5, "{step}: {images:?} is not {expected}");
            }
        }
    }

    /// From 0.8 by 0.3 beyond white, and back by 0.15.
    #[test]
    fn without_the_clamp_an_image_comes_back_from_where_it_went() {
        for (clamp, expected) in [(false, [1.1, 0.95]), (true, [1.0, 0.85])] {
            let mut images = Tensor::from_slice(&[0.8f32]);
            let config = ImagesConfig { clamp, ..config(ImageOptimizer::Sgd) };
            let mut update = ImageUpdate::new(&config, &images, &[]);
            for (step, (gradient, expected)) in [-3.0f32, 3.0].into_iter().zip(expected).enumerate() {
                // The velocity: -3, then 3 - 1.5.
                update.apply(&mut images, &Tensor::from_slice(&[gradient]), 0.1, step as u64 + 1);
                assert!((images.double_value(&[0]) - expected).abs() < 1e-6, "{images:?}");
            }
        }
    }

    #[test]
    fn sgd_by_hand_and_after_a_resume() {
        let mut images = Tensor::from_slice(&[0.5f32]);
        let mut update = ImageUpdate::new(&config(ImageOptimizer::Sgd), &images, &[]);
        update.apply(&mut images, &Tensor::from_slice(&[1.0f32]), 0.1, 1);
        let mut resumed = ImageUpdate::new(&config(ImageOptimizer::Sgd), &images, &[]);
        let mut saved = Entries::new();
        update.state(&mut State::writing(&mut saved)).unwrap();
        resumed.state(&mut State::reading(&saved)).unwrap();
        // Momentum 0.5 * 1 + 1 = 1.5.
        resumed.apply(&mut images, &Tensor::from_slice(&[1.0f32]), 0.1, 2);
        assert!((images.double_value(&[0]) - 0.25).abs() < 1e-6);
    }

    /// SGD on normalized values, by hand: 0.5 = 2 * 0.25 is moved by lr * (gradient * 0.25) * 0.25.
    #[test]
    fn normalized_space_scales_gradient_and_step() {
        let mut images = Tensor::full([1, 1, 1, 1], 0.5, (Kind::Float, tch::Device::Cpu));
        let config = ImagesConfig { space: ImageSpace::Normalized, ..config(ImageOptimizer::Sgd) };
        let mut update = ImageUpdate::new(&config, &images, &[0.25]);
        update.apply(&mut images, &Tensor::full([1, 1, 1, 1], 2.0, (Kind::Float, tch::Device::Cpu)), 1.0, 1);
        assert!((images.double_value(&[0, 0, 0, 0]) - 0.375).abs() < 1e-6);
    }

    #[test]
    fn learning_rate_falls_on_a_cosine() {
        let config = config(ImageOptimizer::Adam);
        assert!((learning_rate(&config, 0, 101) - 0.1).abs() < 1e-12);
        assert!((learning_rate(&config, 50, 101) - 0.06).abs() < 1e-12);
        assert!((learning_rate(&config, 100, 101) - 0.02).abs() < 1e-12);
        assert!((learning_rate(&config, 0, 1) - 0.1).abs() < 1e-12);
    }
}
