use c2r_data::{decode_formation, mosaic};
use tch::{Device, Kind, Tensor};

use crate::{distance, noise, values};

#[test]
fn tiles_are_enlarged_bilinearly() {
    // One 4x4 mosaic; its second tile (top right) is 2, 6 / 10, 14.
    let image = Tensor::from_slice(&[
        0f32, 0., 2., 6., //
        0., 0., 10., 14., //
        1., 1., 0., 0., //
        1., 1., 0., 8.,
    ]);
    let decoded = decode_formation(&image.view([1, 1, 4, 4]), 2).unwrap();
    assert_eq!(decoded.size(), [4, 1, 4, 4]);
    assert_eq!(values(&decoded.get(0)), [0.0; 16]);
    // Rows and columns lie at source positions 0, 0.25, 0.75 and 1.
    #[rustfmt::skip]
    let expected = [
         2.,  3.,  5.,  6.,
         4.,  5.,  7.,  8.,
         8.,  9., 11., 12.,
        10., 11., 13., 14.,
    ];
    assert_eq!(values(&decoded.get(1)), expected);
    assert_eq!(values(&decoded.get(2)), [1.0; 16]);
    assert_eq!(decoded.double_value(&[3, 0, 3, 3]), 8.0);
    assert_eq!(decoded.double_value(&[3, 0, 1, 2]), 8.0 * 0.25 * 0.75);
}

#[test]
fn tiles_of_each_image_stay_together_in_row_order() {
    // Image m, channel c, tile t holds the value 100 m + 10 c + t.
    let images = Tensor::zeros([3, 2, 8, 8], (Kind::Float, Device::Cpu));
    for index in 0..3 * 2 * 4 {
        let (m, c, tile) = (index / 8, index / 4 % 2, index % 4);
        let tile_pixels = images.get(m).get(c).narrow(0, tile / 2 * 4, 4).narrow(1, tile % 2 * 4, 4);
        let _ = { tile_pixels }.fill_((100 * m + 10 * c + tile) as f64);
    }
    let decoded = decode_formation(&images, 2).unwrap();
    assert_eq!(decoded.size(), [12, 2, 8, 8]);
    for index in 0..12 {
        for c in 0..2 {
            let expected = (100 * (index / 4) + 10 * c + index % 4) as f32;
            assert_eq!(values(&decoded.get(index).get(c)), [expected; 64]);
        }
    }
    // Constant tiles survive the way back exactly.
    assert_eq!(values(&mosaic(&decoded, 2).unwrap()), values(&images));
}

#[test]
fn mosaics_take_the_mean_of_each_block() {
    let images = Tensor::arange(16, (Kind::Float, Device::Cpu)).view([1, 1, 4, 4]);
    let images = Tensor::cat(&[&images, &(&images + 100.0), &(&images + 200.0), &(&images + 300.0)], 0);
    #[rustfmt::skip]
    let expected = [
          2.5,   4.5, 102.5, 104.5,
         10.5,  12.5, 110.5, 112.5,
        202.5, 204.5, 302.5, 304.5,
        210.5, 212.5, 310.5, 312.5,
    ];
    let result = mosaic(&images, 2).unwrap();
    assert_eq!(result.size(), [1, 1, 4, 4]);
    assert_eq!(values(&result), expected);
}

#[test]
fn formation_one_changes_nothing() {
    let images = noise(&[3, 1, 7, 5], 1);
    assert_eq!(distance(&decode_formation(&images, 1).unwrap(), &images), 0.0);
    assert_eq!(distance(&mosaic(&images, 1).unwrap(), &images), 0.0);
}

#[test]
fn gradients_reach_every_pixel() {
    let images = noise(&[2, 3, 8, 8], 2).set_requires_grad(true);
    let decoded = decode_formation(&images, 2).unwrap();
    // A pixel's weights over its enlarged tile sum to 2 along each side.
    let gradient = c2r_base::grad::gradients(&decoded.sum(Kind::Float), &[&images]).swap_remove(0);
    assert!(values(&gradient).iter().all(|value| (value - 4.0).abs() < 1e-5));

    let weight = noise(&[8, 3, 8, 8], 3);
    let loss = |images: &Tensor| (decode_formation(images, 2).unwrap() * &weight).sum(Kind::Double);
    let tracked = images.detach().set_requires_grad(true);
    let gradient = c2r_base::grad::gradients(&loss(&tracked), &[&tracked]).swap_remove(0);
    let step = noise(&[2, 3, 8, 8], 4);
    let predicted = (&gradient * &step).sum(Kind::Double).double_value(&[]);
    let actual = (loss(&(images.detach() + &step)) - loss(&images.detach())).double_value(&[]);
    assert!((predicted - actual).abs() < 1e-3, "{predicted} {actual}");
}

#[test]
fn sizes_that_cannot_be_cut_are_named() {
    let message = |shape: &[i64], formation| {
        let images = noise(shape, 5);
        let decoding = decode_formation(&images, formation).unwrap_err().to_string();
        assert_eq!(decoding, mosaic(&images, formation).unwrap_err().to_string());
        decoding
    };
    assert!(message(&[4, 1, 7, 8], 2).contains("7x8"));
    assert!(message(&[4, 1, 8, 5], 2).contains("8x5"));
    assert!(message(&[4, 1, 9, 9], 3).contains("formation must be 1 or 2"));
    assert!(message(&[4, 1, 8, 8], 0).contains("0x0 tiles"));
    assert!(message(&[4, 8, 8], 2).contains("[4, 8, 8]"));
    assert!(mosaic(&noise(&[6, 1, 8, 8], 5), 2).unwrap_err().to_string().contains("6 images"));
}
