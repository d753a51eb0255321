//! Image files to bytes, on all cores.

use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
};

use image::{ImageReader, RgbImage, imageops};
use rayon::prelude::*;

use crate::DataError;

/// What to do with an image of another size than wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// It is an error.
    Exact(u32, u32),
    /// Resize it to height, width, without keeping the aspect ratio.
    Resize(u32, u32),
}

/// Decodes files into one buffer: images in the order of `paths`, each as the planes R, G, B; grey
/// images become RGB.
///
/// # Errors
/// Those of the first failing path, whatever the number of threads.
pub(crate) fn read_all(paths: &[PathBuf], size: Size) -> Result<Vec<u8>, DataError> {
    let (Size::Exact(h, w) | Size::Resize(h, w)) = size;
    let plane = (h * w) as usize;
    let mut pixels = vec![0u8; paths.len() * 3 * plane];
    let failure = pixels.par_chunks_mut(3 * plane).zip(paths).filter_map(|(out, path)| {
        let image = match read_rgb(path) {
            Ok(image) if image.dimensions() == (w, h) => image,
            Ok(image) if size == Size::Resize(h, w) => imageops::resize(&image, w, h, imageops::FilterType::Triangle),
            Ok(image) => {
                let found = (image.height(), image.width());
                return Some(DataError::ImageSize { path: path.clone(), found, expected: (h, w) });
            }
            Err(error) => return Some(error),
        };
        for (at, pixel) in image.pixels().enumerate() {
            for (channel, &value) in pixel.0.iter().enumerate() {
                out[channel * plane + at] = value;
            }
        }
        None
    });
    match failure.find_first(|_| true) {
        Some(error) => Err(error),
        None => Ok(pixels),
    }
}

/// One image file, by its content, whatever it is called.
pub(crate) fn read_rgb(path: &Path) -> Result<RgbImage, DataError> {
    let bytes = fs::read(path).map_err(DataError::io(path))?;
    let wrong = |reason: String| DataError::Image { path: path.to_owned(), reason };
    // The decoders fill what is missing with grey, or do not look past the last pixel, and say nothing.
    let ends: [(&str, &[u8], &[u8]); 2] =
        [("JPEG", b"\xff\xd8", b"\xff\xd9"), ("PNG", b"\x89PNG", b"\0\0\0\0IEND\xae\x42\x60\x82")];
    for (format, start, end) in ends {
        if bytes.starts_with(start) && !bytes.windows(end.len()).rev().any(|window| window == end) {
            return Err(wrong(format!("the {format} is cut short after {} bytes (no end marker)", bytes.len())));
        }
    }
    let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format().map_err(DataError::io(path))?;
    Ok(reader.decode().map_err(|error| wrong(format!("{error} ({} bytes)", bytes.len())))?.to_rgb8())
}

/// The image files in a folder, by name, without those that are hidden.
pub(crate) fn image_files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    Ok(entries(folder)?.into_iter().filter(|path| path.is_file() && is_image(path)).collect())
}

/// The entries of a folder that are not hidden, by name.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(DataError::io(folder))? {
        let entry = entry.map_err(DataError::io(folder))?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            found.push(entry.path());
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    matches!(extension.as_deref(), Some("jpg" | "jpeg" | "png"))
}
