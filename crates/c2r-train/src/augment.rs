use c2r_data::dsa::{Dsa, DsaDraw};
use rand::Rng;
use tch::Tensor;

/// Augments a training batch as the field's training does (Zhao & Bilen 2021, the authors' `DiffAugment` with
/// `param.Siamese = False`): one operation for the whole batch, its parameters drawn for each image, on
/// normalized values. What is filled in gets the mean colour, and values may leave `[0, 1]`.
///
/// * `images`: f32 `[N, C, H, W]` in `[0, 1]`; `mean`, `std`: f32 `[1, C, 1, 1]`.
pub fn augment(dsa: &Dsa, images: &Tensor, mean: &Tensor, std: &Tensor, rng: &mut impl Rng) -> Tensor {
    let draws = dsa.draw_each(images.size()[0] as usize, rng);
    match draws.first() {
        // Nothing is filled in and no value changes, so normalizing would only round.
        None | Some(DsaDraw::Identity | DsaDraw::Flip { .. }) => dsa.apply_each(images, &draws),
        Some(_) => dsa.apply_each(&((images - mean) / std), &draws) * std + mean,
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
            let draws = dsa.draw_each(5, &mut seed.stream("dsa", index));
            let each = draws.iter().zip(images.split(1, 0));
            let expected: Vec<Tensor> =
                each.map(|(draw, image)| dsa.apply_normalized(&image, draw, &means, &stds)).collect();
            assert_close(&format!("{draws:?}"), &out, &Tensor::cat(&expected, 0), 1e-5);
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
