use c2r_data::dsa::{Dsa, DsaDraw};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use crate::Ahead;

/// Augments the batches of one loop as the field's training does (Zhao & Bilen 2021, the authors' `DiffAugment` with
/// `param.Siamese = False`): one operation for the whole batch, its parameters drawn for each image, on
/// normalized values. What is filled in gets the mean colour, and values may leave `[0, 1]`.
#[derive(Debug)]
pub struct Augmentation {
    dsa: Dsa,
    mean: Tensor,
    std: Tensor,
    /// Images of a batch, at most.
    batch_size: usize,
    ahead: Ahead,
}

impl Augmentation {
    /// * `mean`, `std`: of each channel, f32 `[1, C, 1, 1]`, on the device of the images.
    /// * `batch_size`: images of a batch, at most.
    pub fn new(dsa: Dsa, mean: &Tensor, std: &Tensor, batch_size: usize) -> Self {
        Self { dsa, mean: mean.shallow_clone(), std: std.shallow_clone(), batch_size, ahead: Ahead::default() }
    }

    /// The batch of `step`.
    ///
    /// * `images`: f32 `[N, C, H, W]` in `[0, 1]`, N at most the batch size.
    /// * `end`: the loop has no step from there on; `rng`: what a step draws with, also asked for later ones.
    pub fn apply(&mut self, images: &Tensor, step: u64, end: u64, rng: impl Fn(u64) -> ChaCha8Rng) -> Tensor {
        let operation = self.dsa.draw(&mut rng(step));
        if operation == DsaDraw::Identity {
            return images.shallow_clone();
        }
        let (n, _, height, width) = images.size4().expect("images are [N, C, H, W]");
        let (dsa, batch_size) = (&self.dsa, self.batch_size);
        let numbers = self.ahead.of(step, end, &[batch_size as i64, 4], images.device(), |step| {
            dsa.draw_numbers(batch_size, &mut rng(step), [height, width])
        });
        let numbers = numbers.narrow(0, 0, n);
        match operation {
            // Nothing is filled in and no value changes, so normalizing would only round.
            DsaDraw::Flip { .. } => operation.apply_each(images, &numbers),
            _ => operation.apply_each(&((images - &self.mean) / &self.std), &numbers) * &self.std + &self.mean,
        }
    }
}

#[cfg(test)]
mod tests {
    use c2r_base::Seed;
    use c2r_testkit::{assert_close, max_difference, toys};
    use tch::Kind;

    use super::*;

    fn per_channel(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).to_kind(Kind::Float).view([1, -1, 1, 1])
    }

    /// The first of the steps of stream `index`.
    fn augment(dsa: &Dsa, images: &Tensor, [mean, std]: &[Tensor; 2], seed: Seed, index: u64) -> Tensor {
        let mut augmentation = Augmentation::new(dsa.clone(), mean, std, 16);
        augmentation.apply(images, index, index + 3, |index| seed.stream("dsa", index))
    }

    #[test]
    fn parameters_differ_between_images_and_the_operation_does_not() {
        let image = toys::images(1, [3, 8, 8]);
        let images = image.expand([16, 3, 8, 8], false).contiguous();
        let scale = [per_channel(&[0.5, 0.4, 0.3]), per_channel(&[0.2, 0.3, 0.25])];
        for name in ["color", "crop", "cutout", "flip", "scale", "rotate"] {
            let dsa: Dsa = name.parse().unwrap();
            let out = augment(&dsa, &images, &scale, Seed::new(1), 0);
            assert_eq!(out.size(), images.size());
            let different = (1..16).filter(|&at| max_difference(&out.get(0), &out.get(at)) > 1e-3).count();
            assert!((4..=15).contains(&different), "{name}: {different}");
        }
    }

    /// Against the library's own normalized form, image by image.
    #[test]
    fn equals_one_draw_per_image() {
        let images = toys::images(5, [3, 8, 8]);
        let scale = [per_channel(&[0.5, 0.4, 0.3]), per_channel(&[0.2, 0.3, 0.25])];
        let dsa = Dsa::full();
        for index in 0..12 {
            let seed = Seed::new(3);
            let out = augment(&dsa, &images, &scale, seed, index);
            let draws = dsa.draw_each(5, &mut seed.stream("dsa", index));
            let each = draws.iter().zip(images.split(1, 0));
            let expected: Vec<Tensor> =
                each.map(|(draw, image)| dsa.apply_normalized(&image, draw, &scale[0], &scale[1])).collect();
            assert_close(&format!("{draws:?}"), &out, &Tensor::cat(&expected, 0), 1e-5);
        }
    }

    #[test]
    fn nothing_is_nothing() {
        let images = toys::images(2, [1, 4, 4]);
        let out = augment(&Dsa::none(), &images, &[per_channel(&[1.0]), per_channel(&[1.0])], Seed::new(0), 0);
        assert_close("none", &out, &images, 0.0);
    }
}
