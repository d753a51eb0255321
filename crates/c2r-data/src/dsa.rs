//! Differentiable siamese augmentation (Zhao & Bilen 2021, arXiv:2102.08259): one of a set of
//! operations is drawn per call, and the same draw is applied to every image of the batch and to both
//! sides of a real/synthetic pair.
//!
//! The parameters are those of the authors' code and of everything built on it: flip probability 0.5,
//! scale 1.2, rotation 15 degrees, crop padding 0.125, cutout 0.5, brightness 1.0, saturation 2.0,
//! contrast 0.5.
//!
//! Where networks are trained, the field draws the operation for the batch and its parameters for each image
//! (the authors' `param.Siamese = False`): [`Dsa::draw_each`] and [`Dsa::apply_each`].
//!
//! Differs from the authors' code: the draw is separate from its application, so both sides of a pair
//! get it by value instead of by reseeding a global generator.

use std::{fmt, mem::discriminant, str::FromStr};

use c2r_base::host::send;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Probability that a flip operation flips.
pub const FLIP_PROBABILITY: f64 = 0.5;
/// Both axes are scaled by a factor in `[1 / SCALE, SCALE]`.
pub const SCALE: f64 = 1.2;
/// Largest rotation in either direction, degrees.
pub const ROTATE_DEGREES: f64 = 15.0;
/// Largest shift of a crop, as a part of the side.
pub const CROP_PAD: f64 = 0.125;
/// Side of the square that is cut out, as a part of the image's side.
pub const CUTOUT: f64 = 0.5;
/// Brightness adds a number in `[-BRIGHTNESS / 2, BRIGHTNESS / 2]`.
pub const BRIGHTNESS: f64 = 1.0;
/// Saturation multiplies the distance to the grey image by a factor in `[0, SATURATION]`.
pub const SATURATION: f64 = 2.0;
/// Contrast multiplies the distance to the mean by a factor in `[CONTRAST, CONTRAST + 1]`.
pub const CONTRAST: f64 = 0.5;

/// The field's usual strategy: all six operations.
pub const FULL_STRATEGY: &str = "color_crop_cutout_flip_scale_rotate";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Color,
    Crop,
    Cutout,
    Flip,
    Scale,
    Rotate,
}

const OPS: [(&str, Op); 6] = [
    ("color", Op::Color),
    ("crop", Op::Crop),
    ("cutout", Op::Cutout),
    ("flip", Op::Flip),
    ("scale", Op::Scale),
    ("rotate", Op::Rotate),
];

/// A set of operations to draw from, written `color_crop_cutout_flip_scale_rotate` or `none`.
///
/// ```
/// use c2r_base::Seed;
/// use c2r_data::dsa::Dsa;
/// use tch::{Device, Kind, Tensor};
///
/// let dsa: Dsa = "color_crop_cutout_flip_scale_rotate".parse().unwrap();
/// let draw = dsa.draw(&mut Seed::new(0).stream("dsa", 0));
/// let real = dsa.apply(&Tensor::ones([4, 3, 8, 8], (Kind::Float, Device::Cpu)), &draw);
/// let synthetic = dsa.apply(&Tensor::ones([1, 3, 8, 8], (Kind::Float, Device::Cpu)), &draw);
/// assert_eq!(real.size(), [4, 3, 8, 8]);
/// assert!(real.get(0).allclose(&synthetic.get(0), 1e-6, 1e-6, false));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Dsa {
    ops: Vec<Op>,
}

/// One operation with its parameters: what [`Dsa::draw`] drew for a whole batch.
///
/// Positions are parts of a side, so one draw fits images of every size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DsaDraw {
    /// Leaves the images as they are.
    Identity,
    /// Brightness, saturation and contrast, in this order.
    Color {
        /// Added to every value.
        brightness: f64,
        /// Factor of the distance to the mean over the channels of a pixel.
        saturation: f64,
        /// Factor of the distance to the mean over all values of an image.
        contrast: f64,
    },
    /// A shift by whole pixels, filled with zeros.
    Crop {
        /// Row shift: 0 is the largest one down, 1 (excluded) the largest one up.
        row: f64,
        /// Column shift: 0 is the largest one to the right, 1 (excluded) the largest one to the left.
        column: f64,
    },
    /// A square of zeros.
    Cutout {
        /// Row of its centre, 0 to 1 (excluded).
        row: f64,
        /// Column of its centre, 0 to 1 (excluded).
        column: f64,
    },
    /// Left becomes right, or nothing happens.
    Flip {
        /// Whether it happens.
        flip: bool,
    },
    /// Zoom about the centre: above 1 shrinks the picture (zeros around it), below 1 enlarges it.
    Scale {
        /// Factor from output to input positions, horizontally.
        x: f64,
        /// The same, vertically.
        y: f64,
    },
    /// Rotation about the centre, zeros around it.
    Rotate {
        /// Angle from output to input positions, radians.
        radians: f64,
    },
}

impl Dsa {
    /// No augmentation: every draw is [`DsaDraw::Identity`].
    pub const fn none() -> Self {
        Self { ops: Vec::new() }
    }

    /// All six operations.
    pub fn full() -> Self {
        Self { ops: OPS.iter().map(|&(_, op)| op).collect() }
    }

    /// Whether there is nothing to draw from.
    pub const fn is_none(&self) -> bool {
        self.ops.is_empty()
    }

    /// Draws an operation, each with the same probability, and its parameters.
    pub fn draw(&self, rng: &mut ChaCha8Rng) -> DsaDraw {
        if self.ops.is_empty() {
            return DsaDraw::Identity;
        }
        let op = self.ops[rng.random_range(0..self.ops.len())];
        let mut unit = || rng.random::<f64>();
        match op {
            Op::Color => DsaDraw::Color {
                brightness: (unit() - 0.5) * BRIGHTNESS,
                saturation: unit() * SATURATION,
                contrast: unit() + CONTRAST,
            },
            Op::Crop => DsaDraw::Crop { row: unit(), column: unit() },
            Op::Cutout => DsaDraw::Cutout { row: unit(), column: unit() },
            Op::Flip => DsaDraw::Flip { flip: unit() < FLIP_PROBABILITY },
            Op::Scale => {
                let mut factor = || unit() * (SCALE - 1.0 / SCALE) + 1.0 / SCALE;
                DsaDraw::Scale { x: factor(), y: factor() }
            }
            Op::Rotate => DsaDraw::Rotate { radians: (unit() - 0.5) * 2.0 * ROTATE_DEGREES.to_radians() },
        }
    }

    /// Draws one operation for `n` images and its parameters for each of them, as the field trains networks. The first of
    /// them are those of a smaller `n`.
    pub fn draw_each(&self, n: usize, rng: &mut ChaCha8Rng) -> Vec<DsaDraw> {
        let mut draws: Vec<DsaDraw> = Vec::with_capacity(n);
        while draws.len() < n {
            let draw = self.draw(rng);
            if draws.first().is_none_or(|first| discriminant(first) == discriminant(&draw)) {
                draws.push(draw);
            }
        }
        draws
    }

    /// The [`DsaDraw::numbers`] of [`Dsa::draw_each`] for images of `[H, W]`, f32 `[n, 4]`, row by row.
    pub fn draw_numbers(&self, n: usize, rng: &mut ChaCha8Rng, size: [i64; 2]) -> Vec<f32> {
        self.draw_each(n, rng).iter().flat_map(|draw| draw.numbers(size)).collect()
    }

    /// Applies a draw to every image.
    ///
    /// * `images`: f32 `[N, C, H, W]`, pixels or normalized values.
    ///
    /// Returns the same shape, differentiable. The colour operation may leave `[0, 1]`; nothing is
    /// clamped, as in the authors' code. There the images are normalized, so what is filled with zeros
    /// is the mean colour and a brightness step is one of normalized values: see
    /// [`Dsa::apply_normalized`].
    ///
    /// # Panics
    /// If `images` has not four dimensions.
    pub fn apply(&self, images: &Tensor, draw: &DsaDraw) -> Tensor {
        let (_, _, h, w) = images.size4().expect("images are [N, C, H, W]");
        match *draw {
            DsaDraw::Identity | DsaDraw::Flip { flip: false } => images.shallow_clone(),
            DsaDraw::Flip { flip: true } => images.flip([3]),
            DsaDraw::Crop { row, column } => {
                let (down, right) = (crop_shift(h, row), crop_shift(w, column));
                images.constant_pad_nd([right, -right, down, -down])
            }
            DsaDraw::Cutout { row, column } => {
                let (top, bottom) = cutout_range(h, row);
                let (left, right) = cutout_range(w, column);
                let mask = Tensor::ones([1, 1, h, w], (images.kind(), images.device()));
                let _ = mask.narrow(2, top, bottom - top).narrow(3, left, right - left).zero_();
                images * mask
            }
            DsaDraw::Color { .. } | DsaDraw::Scale { .. } | DsaDraw::Rotate { .. } => {
                // Filled in where they are needed: nothing is sent to the device.
                let number = |number: f32| Tensor::full([1, 1], f64::from(number), (Kind::Float, images.device()));
                draw.apply_each(images, &Tensor::cat(&draw.numbers([h, w]).map(number), 1))
            }
        }
    }

    /// [`Dsa::apply`] with a draw for each image.
    ///
    /// * `images`: f32 `[N, C, H, W]`; `draws`: N, all of one operation, as [`Dsa::draw_each`] makes them.
    ///
    /// # Panics
    /// If `images` has not four dimensions, or `draws` are not N of one operation.
    pub fn apply_each(&self, images: &Tensor, draws: &[DsaDraw]) -> Tensor {
        let (n, _, h, w) = images.size4().expect("images are [N, C, H, W]");
        assert_eq!(draws.len() as i64, n, "one draw per image");
        let Some(first) = draws.first() else { return images.shallow_clone() };
        assert!(draws.iter().all(|draw| discriminant(draw) == discriminant(first)), "all draws are of one operation");
        let numbers: Vec<f32> = draws.iter().flat_map(|draw| draw.numbers([h, w])).collect();
        first.apply_each(images, &send(&Tensor::from_slice(&numbers).view([n, 4]), images.device()))
    }

    /// [`Dsa::apply`] as the field does it: on normalized values, here for images that are pixels.
    ///
    /// * `images`: f32 `[N, C, H, W]` in `[0, 1]`.
    /// * `mean`, `std`: of each channel, `[1, C, 1, 1]`, of the dtype and on the device of `images`.
    ///
    /// Equals normalizing, applying and undoing the normalization: empty regions get the mean colour
    /// and a brightness step is scaled by the channel's `std`. The colour operation may leave `[0, 1]`.
    ///
    /// # Panics
    /// If `images` has not four dimensions.
    pub fn apply_normalized(&self, images: &Tensor, draw: &DsaDraw, mean: &Tensor, std: &Tensor) -> Tensor {
        match draw {
            DsaDraw::Identity | DsaDraw::Flip { .. } => self.apply(images, draw),
            // Each channel is mapped linearly, so the scale cancels.
            DsaDraw::Crop { .. } | DsaDraw::Cutout { .. } | DsaDraw::Scale { .. } | DsaDraw::Rotate { .. } => {
                self.apply(&(images - mean), draw) + mean
            }
            DsaDraw::Color { .. } => self.apply(&((images - mean) / std), draw) * std + mean,
        }
    }
}

impl DsaDraw {
    /// What [`DsaDraw::apply_each`] takes of it for images of `[H, W]`: whole numbers of pixels, factors, or a flip as 0 or 1.
    pub fn numbers(&self, [height, width]: [i64; 2]) -> [f32; 4] {
        let numbers = match *self {
            Self::Identity => [0.0; 4],
            // See `color`.
            Self::Color { brightness, saturation, contrast } => {
                [contrast * saturation, contrast * (1.0 - saturation), 1.0 - contrast, brightness]
            }
            Self::Crop { row, column } => [crop_shift(height, row) as f64, crop_shift(width, column) as f64, 0.0, 0.0],
            Self::Cutout { row, column } => {
                let ((top, bottom), (left, right)) = (cutout_range(height, row), cutout_range(width, column));
                [top, bottom, left, right].map(|place| place as f64)
            }
            Self::Flip { flip } => [f64::from(u8::from(flip)), 0.0, 0.0, 0.0],
            // The matrix from output to input positions, row by row.
            Self::Scale { x, y } => [x, 0.0, 0.0, y],
            Self::Rotate { radians } => {
                let (sin, cos) = radians.sin_cos();
                [cos, -sin, sin, cos]
            }
        };
        numbers.map(|number| number as f32)
    }

    /// Applies its operation, whatever its own parameters are, with those of `numbers` to each image.
    ///
    /// * `images`: f32 `[N, C, H, W]`.
    /// * `numbers`: f32 `[N, 4]`, or `[1, 4]` for all images, on the same device: the [`DsaDraw::numbers`] of draws of one
    ///   operation. They may have been sent long before.
    ///
    /// # Panics
    /// If `images` has not four dimensions, or `numbers` another number of rows.
    pub fn apply_each(&self, images: &Tensor, numbers: &Tensor) -> Tensor {
        let (n, c, h, w) = images.size4().expect("images are [N, C, H, W]");
        let column = |index: i64| numbers.narrow(1, index, 1);
        let places = |side: i64, kind: Kind| Tensor::arange(side, (kind, images.device()));
        match self {
            Self::Identity => images.shallow_clone(),
            Self::Flip { .. } => images.flip([3]).where_self(&column(0).gt(0.0).view([-1, 1, 1, 1]), images),
            Self::Color { .. } => color(images, numbers),
            Self::Crop { .. } => {
                let (down, right) = (largest_shift(h), largest_shift(w));
                let shifts = numbers.to_kind(Kind::Int64);
                let from = |side: i64, largest: i64, axis: i64| {
                    places(side, Kind::Int64) + largest - shifts.narrow(1, axis, 1)
                };
                let rows = from(h, down, 0).view([-1, 1, h, 1]).expand([n, c, h, w + 2 * right], false);
                let columns = from(w, right, 1).view([-1, 1, 1, w]).expand([n, c, h, w], false);
                let padded = images.constant_pad_nd([right, right, down, down]);
                padded.gather(2, &rows, false).gather(3, &columns, false)
            }
            Self::Cutout { .. } => {
                let hole = |side: i64, start: i64| {
                    let places = places(side, Kind::Float);
                    places.ge_tensor(&column(start)).logical_and(&places.lt_tensor(&column(start + 1)))
                };
                let (rows, columns) = (hole(h, 0).view([-1, 1, h, 1]), hole(w, 2).view([-1, 1, 1, w]));
                images * rows.logical_and(&columns).logical_not()
            }
            Self::Scale { .. } | Self::Rotate { .. } => resample(images, [n, c, h, w], numbers),
        }
    }
}

/// Brightness, saturation and contrast in one pass.
///
/// With `m` the mean over channels of a pixel and `M` the mean of an image, the three steps
/// `x + b`, `(x - m) s + m`, `(x - M) c + M` compose to `c s x + c (1 - s) m + (1 - c) M + b`, because
/// neither of the first two changes how far a mean is from another. `numbers` holds the four factors for each image.
fn color(images: &Tensor, numbers: &Tensor) -> Tensor {
    let of = |index: i64| numbers.narrow(1, index, 1).view([-1, 1, 1, 1]);
    let grey = images.mean_dim([1i64].as_slice(), true, images.kind());
    let mean = grey.mean_dim([2i64, 3].as_slice(), true, images.kind());
    let offset = grey * of(1) + (mean * of(2) + of(3));
    images * of(0) + offset
}

/// Pixels by which the picture moves towards higher indices.
fn crop_shift(side: i64, part: f64) -> i64 {
    let largest = largest_shift(side);
    largest - (part * (2 * largest + 1) as f64) as i64
}

fn largest_shift(side: i64) -> i64 {
    (side as f64 * CROP_PAD + 0.5) as i64
}

/// First row of the hole and the row after its last one; cut off at the image's border.
fn cutout_range(side: i64, part: f64) -> (i64, i64) {
    let size = (side as f64 * CUTOUT + 0.5) as i64;
    let centre = (part * (side + 1 - size % 2) as f64) as i64;
    let start = centre - size / 2;
    (start.max(0), (start + size).min(side))
}

/// Bilinear sampling at a matrix times the output position, in units of half a side from the centre; `matrices`, f32
/// `[N, 4]`, holds one for each image, or one for all.
fn resample(images: &Tensor, [n, c, h, w]: [i64; 4], matrices: &Tensor) -> Tensor {
    // The constants of `torch.nn.functional.grid_sample`, libtorch 2.11.
    const BILINEAR: i64 = 0;
    const ZEROS: i64 = 0;
    let theta = matrices.view([-1, 2, 2]).constant_pad_nd([0, 1]);
    let grid = Tensor::affine_grid_generator(&theta, [theta.size()[0], c, h, w], false);
    images.grid_sampler(&grid.expand([n, h, w, 2], false), BILINEAR, ZEROS, false)
}

impl fmt::Display for Dsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ops.is_empty() {
            return f.write_str("none");
        }
        for (i, op) in self.ops.iter().enumerate() {
            let (name, _) = OPS.iter().find(|(_, known)| known == op).expect("OPS lists every operation");
            write!(f, "{}{name}", if i == 0 { "" } else { "_" })?;
        }
        Ok(())
    }
}

/// A text that names no [`Dsa`].
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not an augmentation strategy: write `none`, or some of color, crop, cutout, flip, scale and rotate, each at most once, joined by `_`"
)]
pub struct ParseDsaError(String);

impl FromStr for Dsa {
    type Err = ParseDsaError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            return Ok(Self::none());
        }
        let mut ops = Vec::new();
        for word in text.split('_') {
            match OPS.iter().find(|(name, _)| *name == word) {
                Some((_, op)) if !ops.contains(op) => ops.push(*op),
                _ => return Err(ParseDsaError(text.to_owned())),
            }
        }
        Ok(Self { ops })
    }
}

impl TryFrom<String> for Dsa {
    type Error = ParseDsaError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Dsa> for String {
    fn from(dsa: Dsa) -> Self {
        dsa.to_string()
    }
}
