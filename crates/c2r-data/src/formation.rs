use tch::Tensor;

use crate::DataError;

/// Cuts each mosaic into its tiles and enlarges them to full size.
///
/// * `images`: f32 `[M, C, H, W]`, each a mosaic of `formation` x `formation` tiles.
///
/// Returns `[M * formation^2, C, H, W]`: the tiles of the first image in row-major order, then those of
/// the second, each enlarged bilinearly (`align_corners = false`). Differentiable. `formation` 1
/// returns the images. Source: multi-formation of Kim et al. 2022 (arXiv:2205.14959), section 3.
///
/// # Errors
/// [`DataError::Formation`] if `formation` is neither 1 nor 2 or does not divide both sides.
///
/// ```
/// use tch::{Device, Kind, Tensor};
///
/// let images = Tensor::ones([3, 1, 8, 8], (Kind::Float, Device::Cpu));
/// assert_eq!(c2r_data::decode_formation(&images, 2).unwrap().size(), [12, 1, 8, 8]);
/// ```
pub fn decode_formation(images: &Tensor, formation: i64) -> Result<Tensor, DataError> {
    let [m, c, h, w] = check(images, formation)?;
    if formation == 1 {
        return Ok(images.shallow_clone());
    }
    let (f, tile_h, tile_w) = (formation, h / formation, w / formation);
    let tiles = images.view([m, c, f, tile_h, f, tile_w]).permute([0, 2, 4, 1, 3, 5]);
    Ok(tiles.reshape([m * f * f, c, tile_h, tile_w]).upsample_bilinear2d([h, w], false, None, None))
}

/// Shrinks images and joins each run of `formation^2` of them into one: the start of a set that
/// [`decode_formation`] will cut apart again.
///
/// * `images`: f32 `[M * formation^2, C, H, W]`.
///
/// Returns `[M, C, H, W]`; each tile is the mean over `formation` x `formation` pixels of its image.
///
/// # Errors
/// [`DataError::Formation`] as [`decode_formation`]; [`DataError::Synthetic`] if the number of images
/// is not a multiple of `formation^2`.
pub fn mosaic(images: &Tensor, formation: i64) -> Result<Tensor, DataError> {
    let [n, c, h, w] = check(images, formation)?;
    let f = formation;
    if n % (f * f) != 0 {
        return Err(DataError::Synthetic(format!("{n} images do not fill mosaics of {f}x{f}")));
    }
    if formation == 1 {
        return Ok(images.shallow_clone());
    }
    let (tile_h, tile_w) = (h / f, w / f);
    let tiles = images.avg_pool2d([f, f], [f, f], [0, 0], false, true, None);
    let rows = tiles.view([n / (f * f), f, f, c, tile_h, tile_w]).permute([0, 3, 1, 4, 2, 5]);
    Ok(rows.reshape([n / (f * f), c, h, w]))
}

fn check(images: &Tensor, formation: i64) -> Result<[i64; 4], DataError> {
    let size = images.size();
    let [n, c, h, w] = size[..] else {
        return Err(DataError::Synthetic(format!("images must have shape [M, C, H, W], got {size:?}")));
    };
    if !matches!(formation, 1 | 2) || h % formation != 0 || w % formation != 0 {
        return Err(DataError::Formation { height: h, width: w, formation });
    }
    Ok([n, c, h, w])
}
