//! Test support for the c2r workspace: toy models with closed-form margins, golden readers, tensor asserts.
//!
//! **What it is:** [`toys`] (classifiers whose smallest adversarial distance is known on paper),
//! [`assert_close`] and friends (failures that say where and by how much), [`goldens`] (reference results next to the
//! repository), [`skipped`] for tests that lack what they need, and [`keep_large_allocations`] for those that measure.
//!
//! **What it is not:** a dependency of anything but tests, benches and examples; it panics freely.
//!
//! **Where to start:** [`toys::Linear`].
//!
//! ```
//! use c2r_base::{Classifier, Norm};
//! use c2r_testkit::{assert_close, toys::Linear};
//! use tch::Tensor;
//!
//! let toy = Linear::two_pixels();
//! let image = Tensor::from_slice(&[0.75f32, 0.5]).view([1, 1, 1, 2]);
//! let label = Tensor::from_slice(&[0i64]);
//! assert_close("margin", &toy.margin(&image, &label), &Tensor::from_slice(&[0.5f32]), 1e-6);
//! assert_close("distance", &toy.distance(&image, &label, Norm::L1), &Tensor::from_slice(&[0.25f32]), 1e-6);
//! ```

mod assert;
pub mod goldens;
mod memory;
mod skip;
pub mod toys;

pub use assert::{assert_close, assert_same_bytes, max_difference, relative_error};
pub use memory::keep_large_allocations;
pub use skip::skipped;
