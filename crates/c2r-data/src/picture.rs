use std::{io::Cursor, path::Path};

use c2r_base::artifact::{ArtifactError, write_atomically};
use image::{ImageFormat, RgbImage, imageops};
use ndarray::{ArrayView4, Axis};

use crate::DataError;

/// Small images are enlarged by a whole factor to about this height, pixels.
const WANTED_HEIGHT: u32 = 64;
/// No side of a picture grows beyond this by enlarging, pixels.
const LARGEST_SIDE: u32 = 8192;
/// White lines between images, pixels.
const GAP: u32 = 2;

/// Writes a picture (PNG) with one row per entry of `rows`, whole or not at all.
///
/// * `images`: f32 `[N, C, H, W]`, C 1 or 3; values are clamped to `[0, 1]`.
/// * `rows`: positions in `images`, left to right; rows may differ in length.
///
/// Small images are enlarged by a whole factor without blurring.
///
/// # Errors
/// [`DataError::Synthetic`] if the shape cannot be drawn or there is nothing to draw,
/// [`DataError::Artifact`] if the file cannot be written.
///
/// # Panics
/// If a position is not below N.
pub fn write_grid(path: &Path, images: ArrayView4<'_, f32>, rows: &[Vec<usize>]) -> Result<(), DataError> {
    let (c, h, w) = match images.dim() {
        (_, c @ (1 | 3), h, w) if h > 0 && w > 0 => (c, h as u32, w as u32),
        _ => return Err(DataError::Synthetic(format!("cannot draw images of shape {:?}", images.shape()))),
    };
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0) as u32;
    if n_columns == 0 {
        return Err(DataError::Synthetic("there is no image to draw".into()));
    }
    let n_rows = rows.len() as u32;
    let fits = LARGEST_SIDE / (n_columns * (w + GAP)).max(n_rows * (h + GAP));
    let factor = WANTED_HEIGHT.div_ceil(h).min(fits).max(1);
    let (cell_w, cell_h) = (w * factor + GAP, h * factor + GAP);
    let mut picture =
        RgbImage::from_pixel(n_columns * cell_w + GAP, n_rows * cell_h + GAP, image::Rgb([255, 255, 255]));

    for (row, positions) in rows.iter().enumerate() {
        for (column, &position) in positions.iter().enumerate() {
            let image = images.index_axis(Axis(0), position).mapv(to_byte);
            let tile = RgbImage::from_fn(w * factor, h * factor, |x, y| {
                let at = |channel: usize| image[[channel.min(c - 1), (y / factor) as usize, (x / factor) as usize]];
                image::Rgb([at(0), at(1), at(2)])
            });
            let (left, top) = (GAP + column as u32 * cell_w, GAP + row as u32 * cell_h);
            imageops::replace(&mut picture, &tile, left.into(), top.into());
        }
    }
    let mut png = Cursor::new(Vec::new());
    picture
        .write_to(&mut png, ImageFormat::Png)
        .map_err(|error| ArtifactError::format(path, "PNG", error.to_string()))?;
    Ok(write_atomically(path, png.get_ref())?)
}

/// The byte nearest to a pixel in `[0, 1]`, the even one of two; other values are clamped.
pub(crate) fn to_byte(pixel: f32) -> u8 {
    (pixel.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}
