//! Adversarial attacks and robustness evaluation on libtorch, for any classifier that maps pixels to
//! logits.
//!
//! [`evaluate`] runs attacks on a model and reports, for every image, whether it was broken. It needs
//!
//! * a **model**: any [`Classifier`](c2r_base::Classifier), which maps f32 images `[N, C, H, W]` with pixels in `[0, 1]`
//!   to f32 logits `[N, K]`; normalization happens inside it;
//! * **images** with pixels in `[0, 1]` (f32, or u8, which is divided by 255) and their classes, as
//!   [`LabelledImages`](c2r_base::LabelledImages);
//! * **attacks** by name: [`ATTACKS`] and [`SUITES`] list them, and docs/attacks describes their options;
//! * a [`ThreatModel`](c2r_base::ThreatModel): the norm, and epsilon in pixel units. In Linf, `8/255` lets an attack
//!   change each pixel value by 8/255.
//!
//! ```
//! use c2r_attacks::c2r_base::{Classifier, ClassifierError, LabelledImages, Norm, ThreatModel};
//! use c2r_attacks::tch::{Device, Kind, Tensor};
//! use c2r_attacks::{AttackConfig, EvaluateOptions, evaluate};
//!
//! /// Dark or bright?
//! struct Brightness;
//! impl Classifier for Brightness {
//!     fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
//!         let bright = images.mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float);
//!         Ok(Tensor::stack(&[0.5 - &bright, bright - 0.5], 1))
//!     }
//!     fn device(&self) -> Device {
//!         Device::Cpu
//!     }
//! }
//!
//! // One image far from the boundary at 0.5, one near it.
//! let grey = |value: f64| Tensor::full([1, 1, 4, 4], value, (Kind::Float, Device::Cpu));
//! let images = Tensor::cat(&[grey(0.1), grey(0.48)], 0);
//! let data = LabelledImages::new(images, Tensor::from_slice(&[0i64, 0])).unwrap();
//!
//! let threat = ThreatModel::untargeted(Norm::Linf, "8/255".parse().unwrap());
//! let attacks = ["fgsm", "pgd"].map(|name| AttackConfig::named_for(name, threat.norm).unwrap().build().unwrap());
//! let report = evaluate(&Brightness, &data, &attacks, &threat, &EvaluateOptions::default()).unwrap();
//! assert_eq!(report.clean_accuracy(), 1.0);
//! assert_eq!(report.robust_accuracy(), 0.5);
//! ```
//!
//! [`AttackConfig::named_for`] makes an attack for a norm: `autoattack-standard` has more restarts and fewer targets in L1.
//! By default ([`Mode::Suite`]), each attack runs only on the images that the attacks before it did not break.
//!
//! **A closure** becomes a model with [`c2r_base::classifier_fn`], in place of `Brightness` above; so does a network of `tch::nn`:
//! `classifier_fn(device, |images| Ok(network.forward_t(&((images - &mean) / &std), false)))`.
//!
//! **The attacked images** are collected by [`AdversarialImages`], which is an observer of [`evaluate_with`].
//!
//! **Other parts.** An attack of your own is an [`Attack`] that queries the model through an [`Oracle`]. [`Pgd`] is a bare PGD
//! loop for adversarial training. The crate has no datasets and no networks; it never prints, reads the environment or
//! accesses the internet.
//!
//! [`c2r_base`] and [`tch`] are re-exported, because the signatures of this crate use their types. Depend on this crate
//! alone, and you have the right versions of both.

mod active;
mod aims;
mod attack;
mod attacks;
mod choice;
mod draws;
mod error;
mod evaluate;
mod options;
mod oracle;
mod pgd;
mod registry;
/// Not part of the interface: the conformance tests run attacks step for step through it, and it changes with them.
#[doc(hidden)]
pub mod replay;
mod rows;

pub use c2r_base;
pub use tch;

pub use attack::{Attack, AttackBatch, Family, Perturbed};
pub use attacks::*;
pub use choice::{Choice, Setting, needs_gradient};
pub use error::{AttackError, ConfigError};
pub use evaluate::*;
pub use options::LossKind;
pub use oracle::{LossGradient, Oracle};
pub use pgd::Pgd;
pub use registry::{ATTACKS, AttackConfig, SUITES, SuiteConfig};
