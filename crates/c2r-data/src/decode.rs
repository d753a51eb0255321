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
const MOST_BYTES: u64 = 512 << 20;

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

/// The marker before the coded pixels of a JPEG. There can be several.
const START_OF_SCAN: &[u8] = b"\xff\xda";

/// One image file, by its content, whatever it is called.
pub(crate) fn read(path: &Path) -> Result<DynamicImage, DataError> {
    decode(path, None)
}

/// One image file of a known height and width; nothing is decoded if it has another size.
pub(crate) fn read_sized(path: &Path, size: (u32, u32)) -> Result<DynamicImage, DataError> {
    decode(path, Some(size))
}

fn decode(path: &Path, expected: Option<(u32, u32)>) -> Result<DynamicImage, DataError> {
    let bytes = c2r_files::read(path)?;
    let wrong = |reason: String| DataError::Image { path: path.to_owned(), reason };
    // The decoders fill what is missing with grey, or do not look past the last pixel, and say nothing.
    let ends: [(&str, &[u8], &[u8]); 2] =
        [("JPEG", b"\xff\xd8", b"\xff\xd9"), ("PNG", b"\x89PNG", b"\0\0\0\0IEND\xae\x42\x60\x82")];
    for (format, start, end) in ends {
        let last = |marker: &[u8]| bytes.windows(marker.len()).rposition(|window| window == marker);
        // A thumbnail in the header of a JPEG has an end marker, too; coded pixels hold neither marker.
        let pixels = if format == "JPEG" { last(START_OF_SCAN).unwrap_or(0) } else { 0 };
        if bytes.starts_with(start) && last(end).is_none_or(|end| end < pixels) {
            return Err(wrong(format!("the {format} is cut short after {} bytes (no end marker)", bytes.len())));
        }
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
