//! Adversarial attacks and robustness evaluation on libtorch, for any classifier that maps pixels to
//! logits.
//!
//! **What it is:** the attacks of the field as values ([`AttackConfig`] in, [`Attack`] out), suites
//! (`autoattack-standard`, `-plus`, `-rand`, `paper-six`), and a driver ([`evaluate`]) that runs them on
//! surviving samples only, projects and judges every proposal itself, and reports per sample. An attack of your own is
//! an [`Attack`] that asks the model through an [`Oracle`]; [`Pgd`] is the kernel for adversarial training.
//!
//! **What it is not:** it depends on no dataset, network or file format; it never prints, reads the
//! environment or touches the network. A model is whatever implements
//! [`Classifier`](c2r_base::Classifier): pixels in `[0, 1]` in, logits out, normalization inside.
//!
//! **Where to start:** [`evaluate`].
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
//!
//! [`c2r_base`] and [`tch`] are passed on because this crate's signatures are made of them: one dependency is enough,
//! and it has the right version of both.

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
