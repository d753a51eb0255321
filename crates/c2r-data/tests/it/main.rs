//! Tests of the public interface; one binary, because each one links libtorch.

mod cache;
mod cifar_python;
mod dsa;
mod foreign;
mod formation;
mod generated;
mod labels;
mod picture;
mod python;
mod readers;
mod real_data;
mod set_folders;
mod splits;
mod synthetic;

use c2r_data::{ImportOptions, PixelValues, Split, arrays::to_array};
use ndarray::{Array, Array4, Dimension};
use proptest::test_runner::{Config as ProptestConfig, RngSeed};
use tch::Tensor;

/// Options of an import that declare nothing: pixels in [0, 1] and hard labels.
fn import_options() -> ImportOptions {
    ImportOptions {
        images: None,
        labels: None,
        grouped: false,
        logits: false,
        values: PixelValues::Unit,
        nhwc: false,
        bgr: false,
        clamp: false,
        formation: 1,
        method: "other".into(),
        seed: 0,
    }
}

/// A split of images of `shape`, `[C, H, W]`, from their bytes one after the other.
fn split(shape: [usize; 3], n_classes: usize, bytes: Vec<u8>, labels: Vec<i64>) -> Result<Split, c2r_data::DataError> {
    let [c, h, w] = shape;
    let images = Array4::from_shape_vec((bytes.len() / (c * h * w), c, h, w), bytes).unwrap();
    Split::new(images, labels.into(), n_classes)
}

/// All bytes of a split, image by image.
fn bytes(split: &Split) -> Vec<u8> {
    split.images().iter().copied().collect()
}

/// A tensor as an array.
fn array<T: tch::kind::Element + Copy, D: Dimension>(tensor: &Tensor) -> Array<T, D> {
    to_array(tensor).unwrap()
}

/// All values in storage order.
fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.contiguous().flatten(0, -1)).unwrap()
}

/// Values that look like noise but are the same everywhere: `[0, 1)`, f32, of `shape`.
fn noise(shape: &[i64], seed: u64) -> Tensor {
    use rand::Rng;
    let mut rng = c2r_base::Seed::new(seed).stream("test/noise", 0);
    let values: Vec<f32> = (0..shape.iter().product::<i64>()).map(|_| rng.random()).collect();
    Tensor::from_slice(&values).view(shape)
}

/// Largest absolute difference.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

/// The same random cases in every run.
fn cases(n: u32) -> ProptestConfig {
    let rng_seed = RngSeed::Fixed(20605);
    ProptestConfig { cases: n, failure_persistence: None, rng_seed, ..ProptestConfig::default() }
}
