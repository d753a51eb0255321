use std::ops::AddAssign;

use c2r_core::ls_pgd::Companions;
use serde::{Deserialize, Serialize};

/// Passes of a distillation so far, in images, and what its companions took of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunPasses {
    /// Images sent forward.
    pub forward: u64,
    /// Images sent backward.
    pub backward: u64,
    /// Samples for which companions were made.
    pub attacked: u64,
    /// Images sent backward to make companions; `backward` contains them.
    pub attack_backward: u64,
    /// Attacked samples whose remembered perturbation was kept without a backward pass.
    pub reused: u64,
}

impl RunPasses {
    /// Backward passes that PGD with `steps` steps would have needed more, to make the same number of
    /// companions, in images; negative where it would have needed fewer.
    pub const fn backward_saved(&self, steps: u32) -> i64 {
        self.attacked as i64 * steps as i64 - self.attack_backward as i64
    }
}

impl AddAssign<&Companions> for RunPasses {
    fn add_assign(&mut self, made: &Companions) {
        self.forward += made.passes.forward_images;
        self.backward += made.passes.backward_images;
        self.attacked += made.images.size()[0] as u64;
        self.attack_backward += made.passes.backward_images;
        self.reused += made.reused;
    }
}
