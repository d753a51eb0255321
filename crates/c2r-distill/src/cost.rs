//! How much work a configuration asks for, before any of it is done.

use c2r_core::curriculum::Curriculum;

use crate::config::{CommonConfig, CompanionConfig, Place, PoolConfig};

/// Images that a distillation will send through networks, by kind of pass, as their speed is measured. The numbers are
/// estimates, and so not whole; a run counts its own ([`crate::RunPasses`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Work {
    /// Forward only.
    pub forward: f64,
    /// Backward to the images (each follows a forward pass that is counted in `forward`).
    pub input_gradient: f64,
    /// Forward and backward to the parameters.
    pub training: f64,
}

impl Work {
    /// About how many forward passes of one image take as long, to share out time: a backward pass to the images is counted as
    /// 1.3 of them (a rough guess; it depends on the network), and a training pass, forward and backward to the parameters, as 3.
    pub fn in_forward_passes(&self) -> f64 {
        self.forward + 1.3 * self.input_gradient + 3.0 * self.training
    }

    /// Adds companions of `images` images at `place`. Early stops are not foreseen: where companions are reused, this is an upper
    /// bound.
    pub fn add_attacked(&mut self, common: &CommonConfig, place: Place, images: f64) {
        let (forward, backward) = match common.companions_at(place) {
            Some(CompanionConfig::LsPgd(ls)) => (1.0 + f64::from(ls.candidates), 1.0),
            Some(CompanionConfig::Pgd(pgd) | CompanionConfig::ClampedNormalizedPgd(pgd)) => {
                (f64::from(pgd.steps) + 1.0, f64::from(pgd.steps))
            }
            Some(CompanionConfig::Fgsm(_)) => (2.0, 1.0),
            None => (0.0, 0.0),
        };
        self.forward += images * forward;
        self.input_gradient += images * backward;
    }

    /// Adds `steps` training steps of a network as the pool makes them, on `n_train` real images in the order of
    /// `curriculum`.
    pub fn add_training(
        &mut self,
        common: &CommonConfig,
        pool: &PoolConfig,
        curriculum: &Curriculum,
        steps: f64,
        n_train: usize,
    ) {
        let images = steps * pool.batch_size as f64;
        self.training += images * if pool.curvature.is_some() { 4.0 } else { 1.0 };
        // Scoring an epoch attacks every training image once more; weights come with the companions.
        let weighs = matches!(curriculum, Curriculum::Weight(_));
        let scores = curriculum.needs_scores() && !weighs;
        let epochs = images / n_train.max(1) as f64;
        self.add_attacked(common, Place::Pool, if scores { epochs.ceil() * n_train as f64 } else { 0.0 });
        self.add_attacked(common, Place::Pool, if pool.adversarial || weighs { images } else { 0.0 });
    }
}
