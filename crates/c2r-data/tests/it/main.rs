//! Tests of the public interface; one binary, because each one links libtorch.

mod cache;
mod dsa;
mod foreign;
mod formation;
mod picture;
mod python;
mod readers;
mod real_data;
mod splits;
mod synthetic;

use proptest::test_runner::{Config as ProptestConfig, RngSeed};
use tch::Tensor;

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
