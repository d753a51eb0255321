//! The augmentation of an update, of synthetic and real images alike.

use c2r_base::{Seed, host::send};
use c2r_data::dsa::DsaDraw;
use tch::Tensor;

use super::config::ObjectiveConfig;
use crate::context::Context;

/// What an update draws: one augmentation for all images, or one for each class.
#[derive(Debug)]
pub(super) struct Views {
    draws: Vec<DsaDraw>,
    /// Images are attacked after they are augmented, not before.
    pub(super) attack_after: bool,
}

impl Views {
    pub(super) fn new(config: &ObjectiveConfig, context: &Context, seed: Seed) -> Self {
        let n_draws = if config.dsa_per_class { context.n_classes() as u64 } else { 1 };
        let draw = |class| context.common.dsa.draw(&mut seed.stream("dsa", class));
        Self { draws: (0..n_draws).map(draw).collect(), attack_after: config.attack_after_dsa }
    }

    /// The draw that all images share.
    pub(super) fn shared(&self) -> Option<&DsaDraw> {
        if self.draws.len() == 1 { self.draws.first() } else { None }
    }

    /// Augmented images, f32 `[N, C, H, W]`; gradients flow.
    ///
    /// * `images`: f32 `[N, C, H, W]`; `classes`: of each of them, on the host.
    pub(super) fn augment(&self, context: &Context, images: &Tensor, classes: &[i64]) -> Tensor {
        match self.shared() {
            Some(draw) => context.augmented(images, draw),
            None => class_by_class(images, classes, |rows, class| context.augmented(rows, &self.draws[class])),
        }
    }

    /// What is attacked of a view, without gradients: attacks live in `[0, 1]`, which augmentation and images that are not
    /// clamped may leave.
    pub(super) fn to_attack(&self, context: &Context, view: &Tensor) -> Tensor {
        let view = view.detach();
        if self.attack_after || !context.common.images.clamp { view.clamp(0.0, 1.0) } else { view }
    }
}

/// What `each` makes of the rows of every class that there is, in the order that they had.
///
/// * `images`: `[N, ...]`, one row at least; `classes`: of each of them.
fn class_by_class(images: &Tensor, classes: &[i64], each: impl Fn(&Tensor, usize) -> Tensor) -> Tensor {
    let mut order: Vec<i64> = (0..classes.len() as i64).collect();
    order.sort_by_key(|&at| classes[at as usize]);
    let chunks = order.chunk_by(|&a, &b| classes[a as usize] == classes[b as usize]);
    let (present, sizes): (Vec<usize>, Vec<i64>) =
        chunks.map(|chunk| (classes[chunk[0] as usize] as usize, chunk.len() as i64)).unzip();
    let index = (!order.is_sorted()).then(|| send(&Tensor::from_slice(&order), images.device()));
    let rows = index.as_ref().map_or_else(|| images.shallow_clone(), |index| images.index_select(0, index));
    let parts = rows.split_with_sizes(sizes.as_slice(), 0);
    let made: Vec<Tensor> = parts.iter().zip(present).map(|(rows, class)| each(rows, class)).collect();
    let made = Tensor::cat(&made, 0);
    match index {
        Some(index) => made.index_select(0, &index.argsort(0, false)),
        None => made,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_gets_what_its_class_gets_and_stays_where_it_was() {
        let images = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0]).view([5, 1]);
        let of = |classes: &[i64]| {
            let made = class_by_class(&images, classes, |rows, class| rows + 10.0 * class as f64);
            Vec::<f32>::try_from(made.view(-1)).unwrap()
        };
        assert_eq!(of(&[0, 0, 1, 1, 3]), [1.0, 2.0, 13.0, 14.0, 35.0]);
        assert_eq!(of(&[2, 0, 2, 1, 0]), [21.0, 2.0, 23.0, 14.0, 5.0]);
    }
}
