//! Resizes RGB images.
//!
//! **What it is:** a [`Resizer`] resizes one image after the other, with the triangle filter as wide as the reduction, first along
//! the rows and then along the columns, in bytes. Pillow calls the same filter bilinear.
//!
//! **What it is not:** it reads no files. The readers, and the tests of the pixels, are in `c2r-data`. This is a crate of its own
//! because the filters of `fast_image_resize` take half a minute to compile: so they are compiled once, and not again with the
//! tests of `c2r-data`.
//!
//! **Where to start:** [`Resizer::resize`].
//!
//! ```
//! let mut resizer = c2r_resize::Resizer::new(1, 1);
//! assert_eq!(resizer.resize(2, 1, &[10, 20, 30, 20, 40, 60]), [15, 30, 45]);
//! ```

use fast_image_resize::{
    FilterType, PixelType, ResizeAlg, ResizeOptions,
    images::{Image, TypedImageRef},
    pixels::U8x3,
};

/// Resizes images to one size; each thread has its own.
pub struct Resizer {
    inner: fast_image_resize::Resizer,
    resized: Image<'static>,
}

impl Resizer {
    /// Resizes to `width` and `height`, in pixels.
    pub fn new(width: u32, height: u32) -> Self {
        Self { inner: fast_image_resize::Resizer::new(), resized: Image::new(width, height, PixelType::U8x3) }
    }

    /// The resized image: R, G, B of each pixel, row by row, 0 to 255. `pixels` has the same layout, for an image of `width` by
    /// `height`.
    ///
    /// # Panics
    /// If `pixels` has fewer than three bytes for each pixel.
    pub fn resize(&mut self, width: u32, height: u32, pixels: &[u8]) -> &[u8] {
        let from = TypedImageRef::from_buffer(width, height, pixels).expect("three bytes for each pixel");
        let mut to = self.resized.typed_image_mut::<U8x3>().expect("it was made for three bytes each");
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
        // `resize` would compile the filters of 13 kinds of pixels.
        self.inner.resize_typed(&from, &mut to, &options).expect("the whole image is resized");
        self.resized.buffer()
    }
}
