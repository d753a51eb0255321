//! Image files to bytes, on all cores.

use std::{
    io::Cursor,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use c2r_resize::Resizer;
use image::{DynamicImage, ImageDecoder, ImageReader};
use rayon::prelude::*;

use crate::DataError;

/// Pixel bytes per byte of an image file. Deflate reaches 1032; a JPEG codes 64 pixels of three channels in two bits per
/// channel at best, which is 256.
const LARGEST_RATIO: u64 = 1032;
/// Pixel bytes of one image, 512 MiB.
pub(crate) const MOST_BYTES: u64 = 512 << 20;

/// What to do with an image of another size than wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// It is an error.
    Exact(u32, u32),
    /// Resize it to height, width, without keeping the aspect ratio.
    Resize(u32, u32),
}

/// How images are resized: the triangle filter, as wide as the reduction, first along the rows and then along the
/// columns, in bytes. Pillow does the same under the name of bilinear (docs/performance.md compares the pixels).
pub(crate) const RESAMPLING: &str = "triangle filter, antialiased, rows first";

/// Decodes files into one buffer: images in the order of `paths`, each as the planes R, G, B; grey
/// images become RGB. Returns how many lost something ([`loss`]).
///
/// # Errors
/// Those of the first failing path, whatever the number of threads.
pub(crate) fn read_into(paths: &[PathBuf], size: Size, out: &mut [u8]) -> Result<usize, DataError> {
    let n_lost = AtomicUsize::new(0);
    let (Size::Exact(h, w) | Size::Resize(h, w)) = size;
    let plane = (h * w) as usize;
    let read = |resizer: &mut Resizer, out: &mut [u8], path: &PathBuf| -> Result<(), DataError> {
        let image = match size {
            Size::Exact(h, w) => read_sized(path, (h, w))?,
            Size::Resize(..) => read(path)?,
        };
        n_lost.fetch_add(usize::from(loss(&image).is_some()), Ordering::Relaxed);
        let image = image.into_rgb8();
        let rgb = if image.dimensions() == (w, h) {
            image.as_raw()
        } else {
            resizer.resize(image.width(), image.height(), &image)
        };
        let (red, rest) = out.split_at_mut(plane);
        let (green, blue) = rest.split_at_mut(plane);
        for (((pixel, r), g), b) in rgb.chunks_exact(3).zip(red).zip(green).zip(blue) {
            (*r, *g, *b) = (pixel[0], pixel[1], pixel[2]);
        }
        Ok(())
    };
    let failure = out
        .par_chunks_mut(3 * plane)
        .zip(paths)
        .map_init(|| Resizer::new(w, h), |resizer, (out, path)| read(resizer, out, path).err())
        .flatten();
    let failure = failure.find_first(|_| true);
    failure.map_or(Ok(n_lost.into_inner()), Err)
}

/// What is lost of an image in 8 bits without transparency.
pub(crate) fn loss(image: &DynamicImage) -> Option<&'static str> {
    let color = image.color();
    if usize::from(color.bytes_per_pixel()) > usize::from(color.channel_count()) {
        return Some("16 bits per channel");
    }
    let is_transparent = color.has_alpha() && image.to_rgba8().pixels().any(|pixel| pixel.0[3] != u8::MAX);
    is_transparent.then_some("transparent pixels")
}

/// One image file, by its content, whatever it is called.
pub(crate) fn read(path: &Path) -> Result<DynamicImage, DataError> {
    decode(path, None)
}

/// One image file of a known height and width; nothing is decoded if it has another size.
pub(crate) fn read_sized(path: &Path, size: (u32, u32)) -> Result<DynamicImage, DataError> {
    decode(path, Some(size))
}

/// Whether a JPEG has its own end marker: not that of a thumbnail in its header, and whatever follows it, such as the
/// film of a motion photo.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[first, kind]) = bytes.get(at..at + 2) {
        match (first, kind) {
            (0xff, 0xd9) => return true,
            (0xff, 0xff) => at += 1,
            // Markers without a segment.
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => at += 2,
            (0xff, _) => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
                let is_scan = kind == 0xda;
                // Coded pixels, in which 0xff stands before 0x00 or a restart marker only.
                let goes_on = |pair: &[u8]| pair[0] != 0xff || matches!(pair[1], 0x00 | 0xd0..=0xd7);
                while is_scan && bytes.get(at..at + 2).is_some_and(goes_on) {
                    at += 1;
                }
            }
            // Decoders skip what is between segments.
            _ => at += 1,
        }
    }
    false
}

fn decode(path: &Path, expected: Option<(u32, u32)>) -> Result<DynamicImage, DataError> {
    let bytes = c2r_files::read(path)?;
    let wrong = |reason: String| DataError::Image { path: path.to_owned(), reason };
    // The decoders fill what is missing with grey, or do not look past the last pixel, and say nothing.
    let is_cut = |format| wrong(format!("the {format} is cut short after {} bytes (no end marker)", bytes.len()));
    if bytes.starts_with(b"\xff\xd8") && !jpeg_ends(&bytes) {
        return Err(is_cut("JPEG"));
    }
    let png_end = b"\0\0\0\0IEND\xae\x42\x60\x82";
    if bytes.starts_with(b"\x89PNG") && !bytes.windows(png_end.len()).any(|window| window == png_end) {
        return Err(is_cut("PNG"));
    }
    let failed = |error: image::ImageError| wrong(format!("{error} ({} bytes)", bytes.len()));
    let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format().map_err(DataError::io(path))?;
    let decoder = reader.into_decoder().map_err(failed)?;
    let (w, h) = decoder.dimensions();
    if let Some(expected) = expected.filter(|&expected| expected != (h, w)) {
        return Err(DataError::ImageSize { path: path.to_owned(), found: (h, w), expected });
    }
    let most = (bytes.len() as u64).saturating_mul(LARGEST_RATIO).min(MOST_BYTES);
    if decoder.total_bytes() > most {
        let length = bytes.len();
        return Err(wrong(format!("{h}x{w} pixels (height x width) are more than a file of {length} bytes may hold")));
    }
    DynamicImage::from_decoder(decoder).map_err(failed)
}
