use std::{fmt, str::FromStr};

use rand::Rng;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{Epsilon, Seed, fill_rows, grad};

/// The norm that measures a perturbation, over all of an image's C x H x W values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// Largest absolute change of one value.
    Linf,
    /// Euclidean length.
    L2,
    /// Sum of absolute changes.
    L1,
}

/// A radius or step that reaches every image from every other.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "with pixels in [0, 1], any two images of {}x{}x{} are at most {} apart in {norm}",
    shape[0], shape[1], shape[2], (diameter * 100.0).round() / 100.0
)]
pub struct TooLong {
    /// The radius or step.
    pub length: Epsilon,
    /// What measures it.
    pub norm: Norm,
    /// Of the images: `[C, H, W]`.
    pub shape: [i64; 3],
    /// The largest distance of two of them, pixel units ([`Norm::diameter`]).
    pub diameter: f64,
    /// Whether it is written as a plain number that would fit if it counted 255ths, the steps of 8-bit pixels.
    pub counts_255ths: bool,
}

impl Norm {
    /// Distance of each pair of images.
    ///
    /// * `a`, `b`: f32 `[N, C, H, W]`.
    ///
    /// Returns f32 `[N]`, in pixel units.
    pub fn distance(self, a: &Tensor, b: &Tensor) -> Tensor {
        self.length(&(a - b))
    }

    /// The largest distance of two images of `shape` (`[C, H, W]`), pixel units: a ball of this radius holds every image.
    pub fn diameter(self, shape: [i64; 3]) -> f64 {
        let n_values = shape.iter().product::<i64>() as f64;
        match self {
            Self::Linf => 1.0,
            Self::L2 => n_values.sqrt(),
            Self::L1 => n_values,
        }
    }

    /// Refuses a radius or step that reaches every image of `shape` (`[C, H, W]`) from every other: most often it is 8 where
    /// 8/255 is meant.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn check_length(self, length: Epsilon, shape: [i64; 3]) -> Result<(), TooLong> {
        let diameter = self.diameter(shape);
        if length.value() < diameter {
            return Ok(());
        }
        let counts_255ths = length.value() / 255.0 < diameter && !length.to_string().contains('/');
        Err(TooLong { length, norm: self, shape, diameter, counts_255ths })
    }

    /// Length of each perturbation, f32 `[N]`, of `delta`, f32 `[N, C, H, W]`.
    pub fn length(self, delta: &Tensor) -> Tensor {
        let flat = delta.flatten(1, -1);
        match self {
            Self::Linf => flat.abs().amax([1i64].as_slice(), false),
            Self::L2 => flat.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float).sqrt(),
            Self::L1 => flat.abs().sum_dim_intlist([1i64].as_slice(), false, Kind::Float),
        }
    }

    /// The threat set's point for `candidate`: inside the ball of `radius` around `images` **and**
    /// inside `[0, 1]`, whatever `candidate` is.
    ///
    /// * `images`: f32 `[N, C, H, W]` in `[0, 1]`; `candidate`: the same shape.
    /// * `radius`: pixel units, 0 or more.
    ///
    /// Linf: the nearest point. L2: scaled onto the ball, then clamped to the box, which only moves
    /// it towards `images`. L1: the nearest point of the ball intersected with the box (Croce &
    /// Hein 2021, arXiv:2103.01208, proposition 1). Float rounding may leave a distance above `radius`
    /// by about 1e-7. Carries no gradient.
    pub fn project(self, images: &Tensor, candidate: &Tensor, radius: f64) -> Tensor {
        self.ball(images, radius).project(candidate)
    }

    /// The threat set around `images`, for many projections ([`Norm::project`]): what they share is computed once.
    pub fn ball(self, images: &Tensor, radius: f64) -> Ball {
        let _no_grad = tch::no_grad_guard();
        Ball(match self {
            Self::Linf => Shape::Box { low: (images - radius).clamp_min(0.0), high: (images + radius).clamp_max(1.0) },
            norm => Shape::Round { norm, images: images.shallow_clone(), radius },
        })
    }

    /// The direction of length 1 in this norm that raises a linear function fastest.
    ///
    /// * `gradient`: f32 `[N, C, H, W]`, finite, of any size.
    ///
    /// Linf: the sign. L2: the gradient over its length (0 stays 0). L1: all weight on the
    /// largest component (the first one among equals).
    pub fn steepest(self, gradient: &Tensor) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        match self {
            Self::Linf => gradient.sign(),
            Self::L2 => {
                let (gradient, _) = grad::in_range(gradient);
                &gradient / per_image(&self.length(&gradient)).clamp_min(1e-12)
            }
            Self::L1 => {
                let flat = gradient.flatten(1, -1);
                let at = flat.abs().argmax(1, true);
                let sign = flat.gather(1, &at, false).sign();
                flat.zeros_like().scatter(1, &at, &sign).view_as(gradient)
            }
        }
    }

    /// A random perturbation inside the ball of `radius`, one stream per sample id, so that it does
    /// not depend on the batch a sample is in.
    ///
    /// * `shape`: `[C, H, W]`; `ids`: N sample ids; `purpose`: names the stream, e.g. `pgd/start`.
    ///
    /// Linf: uniform in the ball. L2: a Gaussian direction, length `radius * u^(1/d)` (uniform in
    /// the ball). L1: Laplace coordinates, length `radius * u^(1/d)` (uniform in the ball). Returns
    /// f32 `[N, C, H, W]` on the CPU, not clamped to the box.
    pub fn random_in_ball(self, shape: &[i64], ids: &[u64], radius: f64, seed: Seed, purpose: &str) -> Tensor {
        let values = self.values_in_ball(shape, ids, radius, seed, purpose);
        Tensor::from_slice(&values).view([&[ids.len() as i64], shape].concat().as_slice())
    }

    /// The values of [`Norm::random_in_ball`], one image after the other.
    pub fn values_in_ball(self, shape: &[i64], ids: &[u64], radius: f64, seed: Seed, purpose: &str) -> Vec<f32> {
        let len = shape.iter().product::<i64>() as usize;
        let mut values = vec![0.0; len * ids.len()];
        let mut streams: Vec<_> = ids.iter().map(|&id| seed.stream(purpose, id)).collect();
        fill_rows(&mut streams, &mut values, |rng, row| match self {
            Self::Linf => row.fill_with(|| ((2.0 * rng.random::<f64>() - 1.0) * radius) as f32),
            Self::L2 | Self::L1 => {
                let direction: Vec<f64> = (0..len)
                    .map(|_| match self {
                        Self::L2 => rand_distr::Distribution::sample(&rand_distr::StandardNormal, rng),
                        _ => {
                            let magnitude: f64 = rand_distr::Distribution::sample(&rand_distr::Exp1, rng);
                            if rng.random::<bool>() { magnitude } else { -magnitude }
                        }
                    })
                    .collect();
                let length = match self {
                    Self::L2 => direction.iter().map(|v| v * v).sum::<f64>().sqrt(),
                    _ => direction.iter().map(|v| v.abs()).sum::<f64>(),
                };
                let target = radius * rng.random::<f64>().powf(1.0 / len as f64);
                for (value, v) in row.iter_mut().zip(&direction) {
                    *value = (v / length * target) as f32;
                }
            }
        });
        values
    }
}

/// The threat set around some images: [`Norm::ball`].
#[derive(Debug)]
pub struct Ball(Shape);

#[derive(Debug)]
enum Shape {
    /// Linf: a range for each value.
    Box {
        low: Tensor,
        high: Tensor,
    },
    Round {
        norm: Norm,
        images: Tensor,
        radius: f64,
    },
}

impl Ball {
    /// Linf: the smallest and the largest value of each pixel, f32 of the images' shape.
    pub const fn range(&self) -> Option<[&Tensor; 2]> {
        match &self.0 {
            Shape::Box { low, high } => Some([low, high]),
            Shape::Round { .. } => None,
        }
    }

    /// The set's point for `candidate`, f32 of the images' shape: [`Norm::project`].
    pub fn project(&self, candidate: &Tensor) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        match &self.0 {
            Shape::Box { low, high } => candidate.clamp_tensor(Some(low), Some(high)),
            Shape::Round { norm: Norm::L1, images, radius } => {
                let delta = (candidate - images).flatten(1, -1);
                images + project_l1_box(&images.flatten(1, -1), &delta, *radius).view_as(images)
            }
            Shape::Round { norm, images, radius } => {
                let delta = candidate - images;
                let scale = (*radius / per_image(&norm.length(&delta)).clamp_min(1e-12)).clamp_max(1.0);
                (images + delta * scale).clamp(0.0, 1.0)
            }
        }
    }
}

/// Reshapes `[N]` to `[N, 1, 1, 1]`.
fn per_image(values: &Tensor) -> Tensor {
    values.view([-1, 1, 1, 1])
}

/// The smallest change of `delta` (f32 `[N, D]`) that brings `image + delta` into `[0, 1]` and
/// `delta` into the L1 ball of `radius`; exact, by sorting the break points of the dual.
///
/// For a multiplier `t >= 0` the minimizer is `d_i(t) = sign(delta_i) * min(max(|delta_i| - t, 0), u_i)`,
/// where `u_i` is the room to the box in that direction. Its L1 length falls piecewise linearly in `t`
/// with break points `|delta_i|` and `max(|delta_i| - u_i, 0)`.
fn project_l1_box(image: &Tensor, delta: &Tensor, radius: f64) -> Tensor {
    let sign = delta.sign();
    let magnitude = delta.abs();
    let room: Tensor = delta.gt(0.0).to_kind(Kind::Float) * (1.0 - image) + delta.lt(0.0).to_kind(Kind::Float) * image;
    let room = room.clamp_min(0.0);
    let length_at_zero = magnitude.minimum(&room).sum_dim_intlist([1i64].as_slice(), true, Kind::Double);

    // Slope of the length just above each break point: -1 enters at |delta| - room, +1 leaves at |delta|.
    let enter = (&magnitude - &room).clamp_min(0.0);
    let points = Tensor::cat(&[&enter, &magnitude], 1).to_kind(Kind::Double);
    let active = magnitude.gt(0.0).to_kind(Kind::Double);
    let slope_change = Tensor::cat(&[&(-&active), &active], 1);
    let (points, order) = points.sort_stable(true, 1, false);
    let slope = slope_change.gather(1, &order, false).cumsum(1, Kind::Double);
    // Length at each break point: the length at 0 plus the integral of the slope.
    let width = points.diff(1, 1, None::<&Tensor>, None::<&Tensor>);
    let n_points = points.size()[1];
    let fall = (&slope.narrow(1, 0, n_points - 1) * width).cumsum(1, Kind::Double);
    let length = Tensor::cat(&[&length_at_zero, &(&length_at_zero + fall)], 1);
    // The last break point whose length is still at least the radius.
    let before =
        (length.ge(radius).to_kind(Kind::Int64).sum_dim_intlist([1i64].as_slice(), true, Kind::Int64) - 1).clamp_min(0);
    let at = points.gather(1, &before, false);
    let excess = (length.gather(1, &before, false) - radius).clamp_min(0.0);
    let rate = (-slope.gather(1, &before, false)).clamp_min(1.0);
    let multiplier = (at + excess / rate).to_kind(Kind::Float);
    let multiplier = multiplier.where_scalarother(&length_at_zero.gt(radius), 0.0);
    sign * (magnitude - multiplier).clamp_min(0.0).minimum(&room)
}

impl fmt::Display for Norm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linf => "linf",
            Self::L2 => "l2",
            Self::L1 => "l1",
        })
    }
}

/// A text that names no [`Norm`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a norm (linf, l2 or l1)")]
pub struct ParseNormError(String);

impl FromStr for Norm {
    type Err = ParseNormError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "linf" => Ok(Self::Linf),
            "l2" => Ok(Self::L2),
            "l1" => Ok(Self::L1),
            _ => Err(ParseNormError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Device;

    use super::*;

    fn row(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).view([1, 1, 1, values.len() as i64])
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    #[test]
    fn distances_of_a_known_pair() {
        let (a, b) = (row(&[0.0, 0.0]), row(&[0.3, -0.4]));
        for (norm, expected) in [(Norm::Linf, 0.4), (Norm::L2, 0.5), (Norm::L1, 0.7)] {
            assert!((norm.distance(&a, &b).double_value(&[0]) - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn balls_project_by_hand() {
        let (images, candidates) = (row(&[0.0, 0.5, 1.0]), row(&[-0.2, 0.9, 0.7]));
        let project = |norm: Norm, radius| values(&norm.ball(&images, radius).project(&candidates));
        assert_eq!(project(Norm::Linf, 0.25), [0.0, 0.75, 0.75]);
        // Changes of -0.2, 0.4 and -0.3, whose Euclidean length is 0.5385 and becomes 0.2693.
        let l2 = project(Norm::L2, 0.29f64.sqrt() / 2.0);
        assert!(l2.iter().zip([0.0, 0.7, 0.85]).all(|(got, expected)| (got - expected).abs() < 1e-6), "{l2:?}");
        // The first change leaves the box; 0.4 and 0.3 lose 0.15 each.
        let l1 = project(Norm::L1, 0.4);
        assert!(l1.iter().zip([0.0, 0.75, 0.85]).all(|(got, expected)| (got - expected).abs() < 1e-6), "{l1:?}");
    }

    #[test]
    fn steepest_has_unit_length() {
        let gradient = row(&[0.3, -0.4, 0.1]);
        assert_eq!(values(&Norm::Linf.steepest(&gradient)), [1.0, -1.0, 1.0]);
        assert_eq!(values(&Norm::L1.steepest(&gradient)), [0.0, -1.0, 0.0]);
        assert!((Norm::L2.length(&Norm::L2.steepest(&gradient)).double_value(&[0]) - 1.0).abs() < 1e-6);
        assert_eq!(values(&Norm::L2.steepest(&row(&[0.0, 0.0]))), [0.0, 0.0]);
    }

    /// 3-4-5 at every size that f32 has, and beside an image of another size. NumPy in f64: [0.6, -0.8, 0].
    #[test]
    fn steepest_is_right_for_gradients_of_any_size() {
        for size in [1e-44f32, 4e-38, 1e-25, 1e-15, 1e-6, 1.0, 1e6, 1e25, 8e37] {
            let gradient = Tensor::cat(&[row(&[3.0 * size, -4.0 * size, 0.0]), row(&[0.0, 0.0, 2.0])], 0);
            let unit = values(&Norm::L2.steepest(&gradient));
            // 3e-44 and 4e-44 are 21 and 29 times the smallest f32.
            let within = if size < f32::MIN_POSITIVE { 0.02 } else { 1e-6 };
            let expected = [0.6, -0.8, 0.0, 0.0, 0.0, 1.0];
            assert!(unit.iter().zip(expected).all(|(a, b)| (a - b).abs() < within), "{size}: {unit:?}");
            assert_eq!(values(&Norm::L1.steepest(&gradient)), [0.0, -1.0, 0.0, 0.0, 0.0, 1.0], "{size}");
        }
    }

    #[test]
    fn no_two_images_are_farther_apart_than_the_diameter() {
        let (black, white) = (
            Tensor::zeros([1, 3, 8, 8], (Kind::Float, Device::Cpu)),
            Tensor::ones([1, 3, 8, 8], (Kind::Float, Device::Cpu)),
        );
        for (norm, expected) in [(Norm::Linf, 1.0), (Norm::L2, 192f64.sqrt()), (Norm::L1, 192.0)] {
            assert_eq!(norm.diameter([3, 8, 8]), expected);
            let check = |length: &str| norm.check_length(length.parse().unwrap(), [3, 8, 8]);
            assert_eq!(check(&(expected * 0.999).to_string()), Ok(()));
            let error = check(&expected.to_string()).unwrap_err();
            assert_eq!((error.diameter, error.counts_255ths), (expected, true), "{norm}");
            assert!(!check(&(255.0 * expected).to_string()).unwrap_err().counts_255ths, "too many 255ths, too");
            assert!(!check("4000/2").unwrap_err().counts_255ths, "a fraction is meant");
            assert!((norm.distance(&black, &white).double_value(&[0]) - expected).abs() < 1e-5);
        }
    }

    #[test]
    fn l1_projection_uses_the_room_that_the_box_leaves() {
        // The first value has no room upwards, so the whole radius goes to the second.
        let projected = Norm::L1.project(&row(&[1.0, 0.5]), &row(&[2.0, 0.9]), 0.3);
        let [first, second] = values(&projected)[..] else { unreachable!() };
        assert!((first - 1.0).abs() < 1e-6 && (second - 0.8).abs() < 1e-6, "{first} {second}");
    }

    #[test]
    fn random_start_does_not_depend_on_the_batch() {
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            let together = norm.random_in_ball(&[1, 2, 3], &[4, 9], 0.1, Seed::new(3), "test");
            let alone = norm.random_in_ball(&[1, 2, 3], &[9], 0.1, Seed::new(3), "test");
            assert_eq!(values(&together.get(1)), values(&alone));
            assert!(norm.length(&together).max().double_value(&[]) <= 0.1 + 1e-6);
        }
    }

    /// A point that is uniform in a ball of d dimensions has d / (d + 1) of its radius on average, and favours no side.
    #[test]
    fn random_points_are_uniform_in_their_ball() {
        let ids: Vec<u64> = (0..4000).collect();
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            let points = norm.random_in_ball(&[1, 1, 3], &ids, 0.4, Seed::new(8), "test");
            let length = norm.length(&points).mean(Kind::Double).double_value(&[]) / 0.4;
            assert!((length - 0.75).abs() < 0.01, "{norm}: {length} of the radius");
            let middle = points.mean_dim([0i64].as_slice(), false, Kind::Float).abs().max().double_value(&[]);
            assert!(middle < 0.015, "{norm}: the middle is off by {middle}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// Inside the ball and the box, a fixed point of itself, and no farther than any feasible point.
        #[test]
        fn projection_is_feasible_and_idempotent(
            pixels in prop::collection::vec(0.0f32..=1.0, 6),
            moves in prop::collection::vec(-2.0f32..=2.0, 6),
            other in prop::collection::vec(-2.0f32..=2.0, 6),
            radius in 0.0f64..=1.5,
        ) {
            let image = row(&pixels);
            let candidate = &image + row(&moves);
            for norm in [Norm::Linf, Norm::L2, Norm::L1] {
                let projected = norm.project(&image, &candidate, radius);
                prop_assert!(norm.distance(&projected, &image).double_value(&[0]) <= radius + 1e-6);
                prop_assert!(projected.min().double_value(&[]) >= -1e-6 && projected.max().double_value(&[]) <= 1.0 + 1e-6);
                let again = norm.project(&image, &projected, radius);
                prop_assert!((again - &projected).abs().max().double_value(&[]) <= 2e-6);
                if norm != Norm::L2 {
                    let rival = norm.project(&image, &(&image + row(&other)), radius);
                    let (ours, theirs) = (Norm::L2.distance(&projected, &candidate), Norm::L2.distance(&rival, &candidate));
                    prop_assert!(ours.double_value(&[0]) <= theirs.double_value(&[0]) + 1e-5);
                }
            }
        }
    }

    #[test]
    fn zero_radius_returns_the_image() {
        let image = Tensor::full([2, 1, 2, 2], 0.25, (Kind::Float, Device::Cpu));
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            let projected = norm.project(&image, &(&image + 0.5), 0.0);
            assert!((projected - &image).abs().max().double_value(&[]) < 1e-7, "{norm}");
        }
    }
}
