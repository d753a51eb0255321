use c2r_base::Seed;
use c2r_data::dsa::{Dsa, DsaDraw, FULL_STRATEGY};
use tch::{Device, Kind, Tensor};

use crate::{distance, noise, values};

fn apply(images: &Tensor, draw: DsaDraw) -> Tensor {
    Dsa::full().apply(images, &draw)
}

/// One draw of each kind, away from the special cases.
const DRAWS: [DsaDraw; 8] = [
    DsaDraw::Identity,
    DsaDraw::Color { brightness: 0.3, saturation: 1.7, contrast: 0.6 },
    DsaDraw::Crop { row: 0.1, column: 0.9 },
    DsaDraw::Cutout { row: 0.9, column: 0.3 },
    DsaDraw::Flip { flip: true },
    DsaDraw::Flip { flip: false },
    DsaDraw::Scale { x: 1.15, y: 0.9 },
    DsaDraw::Rotate { radians: -0.2 },
];

#[test]
fn identity_draws_change_nothing() {
    let images = noise(&[3, 3, 8, 8], 1);
    for draw in [
        DsaDraw::Identity,
        DsaDraw::Flip { flip: false },
        DsaDraw::Color { brightness: 0.0, saturation: 1.0, contrast: 1.0 },
        DsaDraw::Crop { row: 0.5, column: 0.5 },
        DsaDraw::Scale { x: 1.0, y: 1.0 },
        DsaDraw::Rotate { radians: 0.0 },
    ] {
        assert!(distance(&apply(&images, draw), &images) < 1e-6, "{draw:?}");
    }
    let draw = Dsa::none().draw(&mut Seed::new(1).stream("dsa", 0));
    assert_eq!(draw, DsaDraw::Identity);
}

#[test]
fn colour_of_known_pixels() {
    let colour = |brightness, saturation, contrast| DsaDraw::Color { brightness, saturation, contrast };
    let check = |draw, pixels: &[f32], expected: &[f32]| {
        let result = values(&apply(&Tensor::from_slice(pixels).view([1, 3, 1, -1]), draw));
        for (result, expected) in result.iter().zip(expected) {
            assert!((result - expected).abs() < 1e-6, "{draw:?}: {result} is not {expected}");
        }
    };
    check(colour(0.25, 1.0, 1.0), &[0.2, 0.4, 0.9], &[0.45, 0.65, 1.15]);
    // The grey value of the pixel is 0.5.
    check(colour(0.0, 0.5, 1.0), &[0.2, 0.4, 0.9], &[0.35, 0.45, 0.7]);
    check(colour(0.0, 0.0, 1.0), &[0.2, 0.4, 0.9], &[0.5, 0.5, 0.5]);
    // Two grey pixels, 0 and 1: the mean of the image is 0.5.
    check(colour(0.0, 1.0, 1.5), &[0.0, 1.0, 0.0, 1.0, 0.0, 1.0], &[-0.25, 1.25, -0.25, 1.25, -0.25, 1.25]);
}

#[test]
fn colour_is_brightness_then_saturation_then_contrast() {
    let images = noise(&[4, 3, 6, 6], 2);
    let (brightness, saturation, contrast) = (-0.4, 0.3, 1.4);
    let x = &images + brightness;
    let grey = x.mean_dim([1i64].as_slice(), true, Kind::Float);
    let x: Tensor = (&x - &grey) * saturation + &grey;
    let mean = x.mean_dim([1i64, 2, 3].as_slice(), true, Kind::Float);
    let expected: Tensor = (&x - &mean) * contrast + &mean;
    let result = apply(&images, DsaDraw::Color { brightness, saturation, contrast });
    assert!(distance(&result, &expected) < 1e-6);
}

#[test]
fn shifts_holes_and_mirrors_of_a_known_picture() {
    let picture = Tensor::arange(64, (Kind::Float, Device::Cpu)).view([1, 1, 8, 8]) + 1.0;
    let at = |result: &Tensor, row: i64, column: i64| result.double_value(&[0, 0, row, column]);

    // A side of 8 shifts by at most one pixel; the picture moves down and left.
    let crop = apply(&picture, DsaDraw::Crop { row: 0.0, column: 0.99 });
    assert_eq!([at(&crop, 0, 0), at(&crop, 1, 0), at(&crop, 7, 6), at(&crop, 7, 7)], [0.0, 2.0, 56.0, 0.0]);
    // A side of 32 by at most four.
    let wide = Tensor::arange(32, (Kind::Float, Device::Cpu)).view([1, 1, 1, 32]).expand([1, 1, 32, 32], false);
    let crop = apply(&wide, DsaDraw::Crop { row: 0.5, column: 0.0 });
    assert_eq!([at(&crop, 9, 3), at(&crop, 9, 4), at(&crop, 9, 5), at(&crop, 9, 31)], [0.0, 0.0, 1.0, 27.0]);

    // Half the side, around row and column 4: rows and columns 2..6.
    let hole = apply(&picture, DsaDraw::Cutout { row: 0.5, column: 0.5 });
    for row in 0..8 {
        for column in 0..8 {
            let inside = (2..6).contains(&row) && (2..6).contains(&column);
            let expected = if inside { 0.0 } else { (8 * row + column + 1) as f64 };
            assert_eq!(at(&hole, row, column), expected, "{row} {column}");
        }
    }
    // At the border the hole is cut off: rows 0..2, columns 6..8.
    let hole = apply(&picture, DsaDraw::Cutout { row: 0.0, column: 0.999 });
    assert_eq!(values(&hole.eq(0.0).to_kind(Kind::Float).sum(Kind::Float)), [4.0]);
    assert_eq!([at(&hole, 1, 6), at(&hole, 2, 6), at(&hole, 1, 5)], [0.0, 23.0, 14.0]);

    let flip = apply(&picture, DsaDraw::Flip { flip: true });
    assert_eq!([at(&flip, 0, 0), at(&flip, 0, 7), at(&flip, 7, 0)], [8.0, 1.0, 64.0]);
}

/// Scale and rotation against sampling written out by hand.
#[test]
fn resampling_matches_bilinear_by_hand() {
    let (h, w) = (5i64, 7i64);
    let images = noise(&[2, 3, h, w], 3);
    let (sin, cos) = 0.2f64.sin_cos();
    for (draw, theta) in [
        (DsaDraw::Scale { x: 1.2, y: 0.85 }, [1.2, 0.0, 0.0, 0.85]),
        (DsaDraw::Rotate { radians: 0.2 }, [cos, -sin, sin, cos]),
    ] {
        let result = apply(&images, draw);
        for index in 0..2 * 3 * h * w {
            let (n, c, row, column) = (index / (3 * h * w), index / (h * w) % 3, index / w % h, index % w);
            let x = (2 * column + 1) as f64 / w as f64 - 1.0;
            let y = (2 * row + 1) as f64 / h as f64 - 1.0;
            let source_x = ((theta[0] * x + theta[1] * y + 1.0) * w as f64 - 1.0) / 2.0;
            let source_y = ((theta[2] * x + theta[3] * y + 1.0) * h as f64 - 1.0) / 2.0;
            let mut expected = 0.0;
            for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let (r, k) = (source_y.floor() as i64 + i, source_x.floor() as i64 + j);
                if (0..h).contains(&r) && (0..w).contains(&k) {
                    let weight = (1.0 - (source_y - r as f64).abs()) * (1.0 - (source_x - k as f64).abs());
                    expected += weight * images.double_value(&[n, c, r, k]);
                }
            }
            let found = result.double_value(&[n, c, row, column]);
            assert!((found - expected).abs() < 1e-5, "{draw:?} at {row} {column}: {found} is not {expected}");
        }
    }
}

#[test]
fn the_same_draw_is_the_same_transform_for_every_image_and_batch() {
    let (real, synthetic) = (noise(&[5, 3, 8, 8], 4), noise(&[2, 3, 8, 8], 5));
    for draw in DRAWS {
        let together = apply(&Tensor::cat(&[&real, &synthetic], 0), draw);
        assert!(distance(&together.narrow(0, 0, 5), &apply(&real, draw)) < 1e-6, "{draw:?}");
        assert!(distance(&together.narrow(0, 6, 1), &apply(&synthetic.narrow(0, 1, 1), draw)) < 1e-6, "{draw:?}");
    }
}

/// Every operation is affine in the pixels, so its gradient predicts any finite step exactly.
#[test]
fn gradients_flow_and_are_right() {
    let (images, weight, step) = (noise(&[2, 3, 8, 8], 6), noise(&[2, 3, 8, 8], 7), noise(&[2, 3, 8, 8], 8));
    let loss = |images: &Tensor, draw| (apply(images, draw) * &weight).sum(Kind::Double);
    for draw in DRAWS {
        let tracked = images.detach().set_requires_grad(true);
        let gradient = c2r_base::grad::gradients(&loss(&tracked, draw), &[&tracked]).swap_remove(0);
        let predicted = (&gradient * &step).sum(Kind::Double).double_value(&[]);
        let actual = (loss(&(&images + &step), draw) - loss(&images, draw)).double_value(&[]);
        assert!((predicted - actual).abs() < 1e-3, "{draw:?}: {predicted} {actual}");
        assert!(actual.abs() > 1.0, "{draw:?} cuts the gradient");
    }
}

#[test]
fn normalized_application_is_normalizing_first() {
    let images = noise(&[3, 3, 8, 8], 9);
    let (mean, std) = ([0.4, 0.5, 0.3], [0.2, 0.25, 0.3]);
    let per_channel = |values: &[f64; 3]| Tensor::from_slice(values).to_kind(Kind::Float).view([1, 3, 1, 1]);
    for draw in DRAWS {
        let normalized = (&images - per_channel(&mean)) / per_channel(&std);
        let expected = apply(&normalized, draw) * per_channel(&std) + per_channel(&mean);
        let result = Dsa::full().apply_normalized(&images, &draw, &per_channel(&mean), &per_channel(&std));
        assert!(distance(&result, &expected) < 1e-6, "{draw:?}");
    }
}

#[test]
fn a_draw_for_each_image_is_that_image_by_itself() {
    let images = noise(&[2, 3, 8, 10], 4);
    for (one, other) in [
        (DRAWS[1], DsaDraw::Color { brightness: -0.2, saturation: 0.4, contrast: 1.3 }),
        (DRAWS[2], DsaDraw::Crop { row: 0.99, column: 0.4 }),
        (DRAWS[3], DsaDraw::Cutout { row: 0.0, column: 0.99 }),
        (DRAWS[4], DRAWS[5]),
        (DRAWS[6], DsaDraw::Scale { x: 0.85, y: 1.0 }),
        (DRAWS[7], DsaDraw::Rotate { radians: 0.1 }),
        (DRAWS[0], DRAWS[0]),
    ] {
        let parts = [apply(&images.narrow(0, 0, 1), one), apply(&images.narrow(0, 1, 1), other)];
        let each = Dsa::full().apply_each(&images, &[one, other]);
        assert!(distance(&each, &Tensor::cat(&parts, 0)) < 1e-6, "{one:?}, {other:?}");
    }
    let draws = Dsa::full().draw_each(5, &mut Seed::new(5).stream("dsa", 0));
    assert!(draws.iter().all(|draw| std::mem::discriminant(draw) == std::mem::discriminant(&draws[0])), "{draws:?}");
    assert!(draws.iter().any(|draw| *draw != draws[0]), "{draws:?}");
}

#[test]
fn draws_have_the_published_ranges() {
    let dsa = Dsa::full();
    let mut counts = [0; 6];
    let mut ranges = [(f64::INFINITY, f64::NEG_INFINITY); 10];
    let mut flips = 0;
    for index in 0..6000 {
        let mut note = |at: usize, value: f64| {
            let (low, high) = ranges[at];
            ranges[at] = (low.min(value), high.max(value));
        };
        let op = match dsa.draw(&mut Seed::new(5).stream("dsa", index)) {
            DsaDraw::Identity => panic!("the full strategy always does something"),
            DsaDraw::Color { brightness, saturation, contrast } => {
                [brightness, saturation, contrast].into_iter().enumerate().for_each(|(i, value)| note(i, value));
                0
            }
            DsaDraw::Crop { row, column } => {
                note(3, row);
                note(4, column);
                1
            }
            DsaDraw::Cutout { row, column } => {
                note(5, row);
                note(6, column);
                2
            }
            DsaDraw::Flip { flip } => {
                flips += i32::from(flip);
                3
            }
            DsaDraw::Scale { x, y } => {
                note(7, x);
                note(8, y);
                4
            }
            DsaDraw::Rotate { radians } => {
                note(9, radians.to_degrees());
                5
            }
        };
        counts[op] += 1;
    }
    assert!(counts.iter().all(|count| (880..1120).contains(count)), "{counts:?}");
    assert!((430..570).contains(&(flips * 1000 / counts[3])), "{flips} of {}", counts[3]);
    let unit = (0.0, 1.0);
    let scale = (1.0 / 1.2, 1.2);
    let expected = [(-0.5, 0.5), (0.0, 2.0), (0.5, 1.5), unit, unit, unit, unit, scale, scale, (-15.0, 15.0)];
    for (at, (found, expected)) in ranges.iter().zip(expected).enumerate() {
        let width = expected.1 - expected.0;
        assert!(found.0 >= expected.0 && found.1 <= expected.1, "{at}: {found:?} leaves {expected:?}");
        assert!(found.0 < expected.0 + 0.02 * width && found.1 > expected.1 - 0.02 * width, "{at}: {found:?}");
    }
}

#[test]
fn a_draw_follows_from_its_stream() {
    let draw = |index| Dsa::full().draw(&mut Seed::new(5).stream("dsa", index));
    assert_eq!(draw(3), draw(3));
    assert!((0..10).any(|index| draw(index) != draw(3)));
}

#[test]
fn strategies_are_texts() {
    assert_eq!(Dsa::full().to_string(), FULL_STRATEGY);
    for text in [FULL_STRATEGY, "none", "flip", "rotate_color"] {
        let dsa: Dsa = text.parse().unwrap();
        assert_eq!(dsa.to_string(), text);
        let json = serde_json::to_string(&dsa).unwrap();
        assert_eq!(json, format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<Dsa>(&json).unwrap(), dsa);
    }
    for text in ["", "flip_", "flip_flip", "blur", "color crop", "None"] {
        let message = text.parse::<Dsa>().unwrap_err().to_string();
        assert!(message.contains(&format!("`{text}`")) && message.contains("cutout"), "{message}");
    }
    assert!(serde_json::from_str::<Dsa>("\"blur\"").is_err());
    let only_flips: Dsa = "flip".parse().unwrap();
    assert!((0..50).all(|i| matches!(only_flips.draw(&mut Seed::new(0).stream("dsa", i)), DsaDraw::Flip { .. })));
}
