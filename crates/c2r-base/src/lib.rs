//! Words and traits that every c2r crate shares.
//!
//! **What it is:** [`Norm`], [`Epsilon`] and [`ThreatModel`] (what an attacker may do), [`Seed`]
//! (where randomness comes from), [`Classifier`] (pixels in, logits out), [`loss`] (one value per sample), [`grad`]
//! (the only place that differentiates), [`Passes`] (counts them), and [`artifact`] (files that are written whole or
//! not at all).
//!
//! **What it is not:** it depends on no dataset, network or attack, and it never prints, reads
//! the environment or touches the network.
//!
//! **Where to start:** [`Classifier`], then [`ThreatModel`].
//!
//! ```
//! use c2r_base::{Epsilon, Norm};
//! use tch::{Kind, Tensor};
//!
//! let epsilon: Epsilon = "2/255".parse().unwrap();
//! let image = Tensor::zeros([1, 1, 2, 2], (Kind::Float, tch::Device::Cpu));
//! let far = Tensor::ones([1, 1, 2, 2], (Kind::Float, tch::Device::Cpu));
//! let near = Norm::Linf.project(&image, &far, epsilon.value());
//! assert!((near.max().double_value(&[]) - 2.0 / 255.0).abs() < 1e-7);
//! ```
//!
//! Letters in the documentation of tensors: N batch, C channels, H height, W width, K classes,
//! D embedding length. Images are f32 `[N, C, H, W]` in `[0, 1]` ("pixels") everywhere outside a
//! network; normalization is part of the network.

mod adam;
pub mod artifact;
mod classifier;
mod epsilon;
pub mod grad;
pub mod host;
mod images;
pub mod loss;
pub mod native;
mod norm;
mod passes;
mod rows;
mod seed;
mod threat;

pub use adam::Adam;
pub use classifier::{Classifier, ClassifierError, ClassifierFn, classifier_fn};
pub use epsilon::{Epsilon, ParseEpsilonError};
pub use images::{ImageError, LabelledImages};
pub use norm::{Ball, Norm, ParseNormError, TooLong};
pub use passes::Passes;
pub use rand;
pub use rows::{fill_rows, normal, uniform};
pub use seed::Seed;
pub use threat::{Goal, TargetRule, ThreatModel};
