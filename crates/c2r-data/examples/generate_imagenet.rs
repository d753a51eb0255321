//! Generates images in the layout of ILSVRC-2012, for machines that do not have it: JPEGs of the ten classes of ImageNette, in
//! sizes that are common in ILSVRC-2012. Every run makes the same images.
//!
//! ```sh
//! cargo run --release -p c2r-data --example generate_imagenet -- DIR 1300
//! ```
//!
//! `DIR/imagenet/` gets that many training images per class and up to 50 test images. Each image shows an ellipse with stripes on
//! a plain ground, with noise over all. Each class has stripes of its own direction and width and a tint of its own, with some
//! spread, so a network can learn the classes. What it learns says nothing about photographs.

use std::{
    error::Error,
    f32::consts::{PI, TAU},
    fs::{self, File},
    io::BufWriter,
    path::Path,
};

use c2r_base::Seed;
use image::{Rgb, RgbImage, codecs::jpeg::JpegEncoder};
use rand::{Rng, RngCore};
use rayon::prelude::*;

/// Widths and heights in pixels; the first is the most common in ILSVRC-2012.
const SIZES: [(u32, u32); 4] = [(500, 375), (375, 500), (500, 333), (400, 300)];
/// Test images of each class, as in ILSVRC-2012.
const N_TEST: usize = 50;
/// JPEG quality; an image then has about 45 kB.
const QUALITY: u8 = 85;

/// Image number `index`, counted over all classes.
fn picture(class: usize, n_classes: usize, index: usize) -> RgbImage {
    let mut rng = Seed::new(0).stream("examples/generate_imagenet", index as u64);
    let (w, h) = SIZES[rng.random_range(0..SIZES.len())];
    let place = class as f32 / n_classes as f32;
    // Classes whose stripes have similar directions have stripes of different widths.
    let (angle, wave) = (PI * place + rng.random_range(-0.15..0.15), if class.is_multiple_of(2) { 14.0 } else { 36.0 });
    let (sin, cos) = angle.sin_cos();
    let (wave, phase) = (wave * rng.random_range(0.8f32..1.2), rng.random_range(0.0..TAU));
    let tint = [0.0, 1.0, 2.0].map(|channel| 25.0 * (TAU * (place + channel / 3.0)).cos());
    let mut colour = || tint.map(|tint| tint + rng.random_range(70.0f32..185.0));
    let [ground, dark, bright] = [colour(), colour(), colour()];
    let middle = [w, h].map(|side| side as f32 * rng.random_range(0.35..0.65));
    let radius = [w, h].map(|side| side as f32 * rng.random_range(0.25..0.45));
    let mut grain = vec![0; (w * h) as usize];
    rng.fill_bytes(&mut grain);
    RgbImage::from_fn(w, h, |x, y| {
        let [dx, dy] = [x as f32 - middle[0], y as f32 - middle[1]];
        let is_inside = (dx / radius[0]).powi(2) + (dy / radius[1]).powi(2) < 1.0;
        let share = 0.5 + 0.5 * (TAU * (dx * cos + dy * sin) / wave + phase).sin();
        let noise = (f32::from(grain[(y * w + x) as usize]) - 127.5) / 5.0;
        Rgb([0, 1, 2].map(|channel| {
            let stripes = dark[channel] + share * (bright[channel] - dark[channel]);
            // `as` keeps the value within 0 to 255.
            ((if is_inside { stripes } else { ground[channel] }) + noise).round() as u8
        }))
    })
}

/// Writes `folder/imagenet` with `n_train` training images per class, as many test images up to [`N_TEST`].
///
/// # Errors
/// If `folder/imagenet` exists, or cannot be written.
pub(crate) fn generate(folder: &Path, n_train: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
    let folder = folder.join("imagenet");
    if folder.exists() {
        return Err(format!("{} exists; name another folder", folder.display()).into());
    }
    let wnids = c2r_data::spec("imagenette")?.wnids.clone();
    let n_test = n_train.min(N_TEST);
    for (split, wnid) in ["train", "val"].iter().flat_map(|split| wnids.iter().map(move |wnid| (split, wnid))) {
        fs::create_dir_all(folder.join(split).join(wnid))?;
    }
    // The reader notes each file that it does not read, so every result on these images shows this one.
    fs::write(
        folder.join("train").join(&wnids[0]).join("GENERATED.txt"),
        "These images were generated; they are not ImageNet.\n",
    )?;
    (0..wnids.len() * (n_train + n_test)).into_par_iter().try_for_each(|index| {
        let (class, number) = (index % wnids.len(), index / wnids.len());
        let wnid = &wnids[class];
        let path = match number.checked_sub(n_train) {
            None => folder.join("train").join(wnid).join(format!("{wnid}_{number}.JPEG")),
            Some(_) => folder.join("val").join(wnid).join(format!("ILSVRC2012_val_{index:08}.JPEG")),
        };
        let file = BufWriter::new(File::create(path)?);
        Ok(JpegEncoder::new_with_quality(file, QUALITY).encode_image(&picture(class, wnids.len(), index))?)
    })
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (folder, n_train) = match &words[..] {
        [folder, n] => (folder, n.parse().ok().filter(|n| *n > 0)),
        _ => return Err("say where, and how many images per class: generate_imagenet DIR 1300".into()),
    };
    let n_train = n_train.ok_or_else(|| format!("`{}` is not a number of images", words[1]))?;
    generate(Path::new(folder), n_train)
}
