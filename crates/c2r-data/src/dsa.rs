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

use rand::Rng;
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
    pub fn draw(&self, rng: &mut impl Rng) -> DsaDraw {
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

    /// Draws one operation for `n` images and its parameters for each of them, as the field trains networks.
    pub fn draw_each(&self, n: usize, rng: &mut impl Rng) -> Vec<DsaDraw> {
        let mut draws: Vec<DsaDraw> = Vec::with_capacity(n);
        while draws.len() < n {
            let draw = self.draw(rng);
            if draws.first().is_none_or(|first| discriminant(first) == discriminant(&draw)) {
                draws.push(draw);
            }
        }
        draws
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
        let (n, c, h, w) = images.size4().expect("images are [N, C, H, W]");
        match *draw {
            DsaDraw::Identity | DsaDraw::Flip { flip: false } => images.shallow_clone(),
            DsaDraw::Flip { flip: true } => images.flip([3]),
            DsaDraw::Color { .. } => color(images, &[draw.numbers()]),
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
            DsaDraw::Scale { .. } | DsaDraw::Rotate { .. } => resample(images, [n, c, h, w], &[draw.matrix()]),
        }
    }

    /// [`Dsa::apply`] with a draw for each image.
    ///
    /// * `images`: f32 `[N, C, H, W]`; `draws`: N, all of one operation, as [`Dsa::draw_each`] makes them.
    ///
    /// # Panics
    /// If `images` has not four dimensions, or `draws` are not N of one operation.
    pub fn apply_each(&self, images: &Tensor, draws: &[DsaDraw]) -> Tensor {
        let (n, c, h, w) = images.size4().expect("images are [N, C, H, W]");
        assert_eq!(draws.len() as i64, n, "one draw per image");
        let Some(first) = draws.first() else { return images.shallow_clone() };
        assert!(draws.iter().all(|draw| discriminant(draw) == discriminant(first)), "all draws are of one operation");
        let device = images.device();
        let places = |side: i64| Tensor::arange(side, (Kind::Int64, device));
        let per_image = |values: Vec<i64>| Tensor::from_slice(&values).to_device(device).view([n, 1]);
        let at = |axis: usize| draws.iter().map(move |draw| draw.numbers()[axis]);
        match first {
            DsaDraw::Identity => images.shallow_clone(),
            DsaDraw::Flip { .. } => {
                let flips = per_image(at(0).map(|flip| flip as i64).collect()).gt(0).view([n, 1, 1, 1]);
                images.flip([3]).where_self(&flips, images)
            }
            DsaDraw::Color { .. } => color(images, &draws.iter().map(DsaDraw::numbers).collect::<Vec<_>>()),
            DsaDraw::Crop { .. } => {
                // Where each row and column comes from, and whether that lies in the image.
                let from = |side: i64, axis| {
                    let from = places(side) - per_image(at(axis).map(|part| crop_shift(side, part)).collect());
                    let inside = from.ge(0).logical_and(&from.lt(side));
                    (from.clamp(0, side - 1), inside)
                };
                let ((rows, row_inside), (columns, column_inside)) = (from(h, 0), from(w, 1));
                let shifted = images.gather(2, &rows.view([n, 1, h, 1]).expand([n, c, h, w], false), false).gather(
                    3,
                    &columns.view([n, 1, 1, w]).expand([n, c, h, w], false),
                    false,
                );
                shifted * row_inside.view([n, 1, h, 1]).logical_and(&column_inside.view([n, 1, 1, w]))
            }
            DsaDraw::Cutout { .. } => {
                let hole = |side: i64, axis| {
                    let (starts, ends) = at(axis).map(|part| cutout_range(side, part)).unzip();
                    let places = places(side);
                    places.ge_tensor(&per_image(starts)).logical_and(&places.lt_tensor(&per_image(ends)))
                };
                let (rows, columns) = (hole(h, 0).view([n, 1, h, 1]), hole(w, 1).view([n, 1, 1, w]));
                images * rows.logical_and(&columns).logical_not()
            }
            DsaDraw::Scale { .. } | DsaDraw::Rotate { .. } => {
                resample(images, [n, c, h, w], &draws.iter().map(DsaDraw::matrix).collect::<Vec<_>>())
            }
        }
    }

    /// [`Dsa::apply`] as the field does it: on normalized values, here for images that are pixels.
    ///
    /// * `images`: f32 `[N, C, H, W]` in `[0, 1]`.
    /// * `mean`, `std`: of each channel, as in [`crate::DatasetSpec`].
    ///
    /// Equals normalizing, applying and undoing the normalization: empty regions get the mean colour
    /// and a brightness step is scaled by the channel's `std`. The colour operation may leave `[0, 1]`.
    ///
    /// # Panics
    /// If `images` has not four dimensions, or `mean` or `std` not C values.
    pub fn apply_normalized(&self, images: &Tensor, draw: &DsaDraw, mean: &[f64], std: &[f64]) -> Tensor {
        let per_channel = |values: &[f64]| {
            assert_eq!(values.len() as i64, images.size()[1], "one value per channel");
            Tensor::from_slice(values).to_kind(images.kind()).to_device(images.device()).view([1, -1, 1, 1])
        };
        match draw {
            DsaDraw::Identity | DsaDraw::Flip { .. } => self.apply(images, draw),
            // Each channel is mapped linearly, so the scale cancels.
            DsaDraw::Crop { .. } | DsaDraw::Cutout { .. } | DsaDraw::Scale { .. } | DsaDraw::Rotate { .. } => {
                let mean = per_channel(mean);
                self.apply(&(images - &mean), draw) + mean
            }
            DsaDraw::Color { .. } => {
                let (mean, std) = (per_channel(mean), per_channel(std));
                self.apply(&((images - &mean) / &std), draw) * std + mean
            }
        }
    }
}

impl DsaDraw {
    /// Its parameters in the order of their fields, a flip as 0 or 1.
    fn numbers(&self) -> [f64; 3] {
        match *self {
            Self::Identity => [0.0; 3],
            Self::Color { brightness, saturation, contrast } => [brightness, saturation, contrast],
            Self::Crop { row, column } | Self::Cutout { row, column } => [row, column, 0.0],
            Self::Flip { flip } => [f64::from(u8::from(flip)), 0.0, 0.0],
            Self::Scale { x, y } => [x, y, 0.0],
            Self::Rotate { radians } => [radians, 0.0, 0.0],
        }
    }

    /// From output to input positions, row by row; the identity for what moves nothing.
    fn matrix(&self) -> [f64; 4] {
        match *self {
            Self::Scale { x, y } => [x, 0.0, 0.0, y],
            Self::Rotate { radians } => {
                let (sin, cos) = radians.sin_cos();
                [cos, -sin, sin, cos]
            }
            _ => [1.0, 0.0, 0.0, 1.0],
        }
    }
}

/// Brightness, saturation and contrast in one pass; `draws` holds the three for each image, or once for all.
///
/// With `m` the mean over channels of a pixel and `M` the mean of an image, the three steps
/// `x + b`, `(x - m) s + m`, `(x - M) c + M` compose to `c s x + c (1 - s) m + (1 - c) M + b`, because
/// neither of the first two changes how far a mean is from another.
fn color(images: &Tensor, draws: &[[f64; 3]]) -> Tensor {
    let of = |value: fn(&[f64; 3]) -> f64| {
        let values: Vec<f64> = draws.iter().map(value).collect();
        Tensor::from_slice(&values).to_kind(images.kind()).to_device(images.device()).view([-1, 1, 1, 1])
    };
    let grey = images.mean_dim([1i64].as_slice(), true, images.kind());
    let mean = grey.mean_dim([2i64, 3].as_slice(), true, images.kind());
    let offset = grey * of(|[_, saturation, contrast]| contrast * (1.0 - saturation))
        + (mean * of(|[_, _, contrast]| 1.0 - contrast) + of(|[brightness, ..]| *brightness));
    images * of(|[_, saturation, contrast]| contrast * saturation) + offset
}

/// Pixels by which the picture moves towards higher indices.
fn crop_shift(side: i64, part: f64) -> i64 {
    let largest = (side as f64 * CROP_PAD + 0.5) as i64;
    largest - (part * (2 * largest + 1) as f64) as i64
}

/// First row of the hole and the row after its last one; cut off at the image's border.
fn cutout_range(side: i64, part: f64) -> (i64, i64) {
    let size = (side as f64 * CUTOUT + 0.5) as i64;
    let centre = (part * (side + 1 - size % 2) as f64) as i64;
    let start = centre - size / 2;
    (start.max(0), (start + size).min(side))
}

/// Bilinear sampling at a matrix times the output position, in units of half a side from the centre; `matrices` holds one
/// for each image, or one for all.
fn resample(images: &Tensor, [n, c, h, w]: [i64; 4], matrices: &[[f64; 4]]) -> Tensor {
    // The constants of `torch.nn.functional.grid_sample`, libtorch 2.11.
    const BILINEAR: i64 = 0;
    const ZEROS: i64 = 0;
    let theta: Vec<f64> = matrices.iter().flat_map(|&[xx, xy, yx, yy]| [xx, xy, 0.0, yx, yy, 0.0]).collect();
    let theta = Tensor::from_slice(&theta).to_kind(images.kind()).view([-1, 2, 3]).to_device(images.device());
    let grid = Tensor::affine_grid_generator(&theta, [matrices.len() as i64, c, h, w], false);
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
    "`{0}` is not an augmentation strategy: write `none`, or each at most once of color, crop, cutout, flip, scale, rotate joined by `_`"
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
