use c2r_data::dsa::{Dsa, DsaDraw};
use rand::Rng;
use tch::Tensor;

/// Augments a training batch as the field's training does (Zhao & Bilen 2021, the authors' `DiffAugment` with
/// `param.Siamese = False`): one operation for the whole batch, its parameters drawn for each image, on
/// normalized values. What is filled in gets the mean colour, and values may leave `[0, 1]`.
///
/// * `images`: f32 `[N, C, H, W]` in `[0, 1]`; `mean`, `std`: f32 `[1, C, 1, 1]`.
pub(crate) fn augment(dsa: &Dsa, images: &Tensor, mean: &Tensor, std: &Tensor, rng: &mut impl Rng) -> Tensor {
    if dsa.is_none() {
        return images.shallow_clone();
    }
    let n = images.size()[0] as usize;
    let first = dsa.draw(rng);
    let draws: Vec<DsaDraw> = std::iter::once(first).chain((1..n).map(|_| redraw(dsa, &first, rng))).collect();
    // A flip is the only operation with few outcomes, and needs no normalization.
    if draws.iter().all(|draw| matches!(draw, DsaDraw::Identity | DsaDraw::Flip { .. })) {
        let flips: Vec<bool> = draws.iter().map(|draw| matches!(draw, DsaDraw::Flip { flip: true })).collect();
        let flips = Tensor::from_slice(&flips).to_device(images.device()).view([-1, 1, 1, 1]);
        return images.flip([3]).where_self(&flips, images);
    }
    let normalized = (images - mean) / std;
    let augmented: Vec<Tensor> =
        draws.iter().zip(normalized.split(1, 0)).map(|(draw, image)| dsa.apply(&image, draw)).collect();
    Tensor::cat(&augmented, 0) * std + mean
}

/// Another draw of the same operation.
fn redraw(dsa: &Dsa, like: &DsaDraw, rng: &mut impl Rng) -> DsaDraw {
    loop {
        let draw = dsa.draw(rng);
        if std::mem::discriminant(&draw) == std::mem::discriminant(like) {
            return draw;
        }
    }
}

#[cfg(test)]
mod tests {
    use c2r_base::Seed;
    use c2r_testkit::{assert_close, max_difference, toys};

    use super::*;

    fn per_channel(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).view([1, -1, 1, 1])
    }

    #[test]
    fn parameters_differ_between_images_and_the_operation_does_not() {
        let image = toys::images(1, [3, 8, 8]);
        let images = image.expand([16, 3, 8, 8], false).contiguous();
        let (mean, std) = (per_channel(&[0.5, 0.4, 0.3]), per_channel(&[0.2, 0.3, 0.25]));
        for name in ["color", "crop", "cutout", "flip", "scale", "rotate"] {
            let dsa: Dsa = name.parse().unwrap();
            let out = augment(&dsa, &images, &mean, &std, &mut Seed::new(1).stream("dsa", 0));
            assert_eq!(out.size(), images.size());
            let different = (1..16).filter(|&at| max_difference(&out.get(0), &out.get(at)) > 1e-3).count();
            assert!((4..=15).contains(&different), "{name}: {different}");
        }
    }

    /// Against the library's own normalized form, image by image.
    #[test]
    fn equals_one_draw_per_image() {
        let images = toys::images(5, [3, 8, 8]);
        let (means, stds) = ([0.5, 0.4, 0.3], [0.2, 0.3, 0.25]);
        let (mean, std) = (per_channel(&means.map(|v| v as f32)), per_channel(&stds.map(|v| v as f32)));
        let dsa = Dsa::full();
        for index in 0..12 {
            let seed = Seed::new(3);
            let out = augment(&dsa, &images, &mean, &std, &mut seed.stream("dsa", index));
            let mut rng = seed.stream("dsa", index);
            let first = dsa.draw(&mut rng);
            let expected: Vec<Tensor> = (0..5)
                .map(|at| {
                    let draw = if at == 0 { first } else { redraw(&dsa, &first, &mut rng) };
                    dsa.apply_normalized(&images.narrow(0, at, 1), &draw, &means, &stds)
                })
                .collect();
            assert_close(&format!("{first:?}"), &out, &Tensor::cat(&expected, 0), 1e-5);
        }
    }

    #[test]
    fn nothing_is_nothing() {
        let images = toys::images(2, [1, 4, 4]);
        let one = per_channel(&[1.0]);
        let out = augment(&Dsa::none(), &images, &one, &one, &mut Seed::new(0).stream("dsa", 0));
        assert_close("none", &out, &images, 0.0);
    }
}
