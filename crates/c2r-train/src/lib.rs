//! Training loops, schedules and adversarial training for c2r.
//!
//! **What it is:** [`train`] fits a [`Model`](c2r_models::Model) to a distilled or a real training set under a
//! [`TrainConfig`]: natural, PGD-AT or TRADES, with hard, stored soft or teacher's labels. [`Trainer`] is
//! the same loop step by step, with a [`state`] that can be saved. [`Sgd`] is torch's optimizer with explicit
//! state. [`layers`] builds configurations from defaults and assignments of single keys. [`Protocol`] names the settings that tables are made with.
//!
//! **What it is not:** an evaluation under attack (c2r-attacks), and it never looks at test images by itself: the
//! result is the last step's network, unless the caller keeps the [`Best`] on images of its choice.
//!
//! **Where to start:** [`Protocol::config`], then [`train`].
//!
//! ```
//! use c2r_base::Seed;
//! use c2r_models::{Frozen, Model, ModelInput, ModelSpec};
//! use c2r_train::{Length, Protocol, Targets, TrainSource, accuracy, train};
//! use tch::Device;
//!
//! let digits = c2r_data::load("digits", None)?;
//! let training_set = digits.train.subset_per_class(5);
//! let input = ModelInput {
//!     channels: 1, height: 8, width: 8, n_classes: 10,
//!     mean: digits.spec.mean.clone(), std: digits.spec.std.clone(),
//! };
//! let mut model = Model::new(&ModelSpec::convnet(2, 16), &input, Seed::new(0), Device::Cpu)?;
//! let mut config = Protocol::Natural.config();
//! config.length = Length::Steps(30);
//! let source = TrainSource::of_split(&training_set, Targets::Hard);
//! let summary = train(&mut model, &source, &config, Seed::new(0), &mut |_event| {})?;
//! assert_eq!(summary.steps, 30);
//! let clean_accuracy = accuracy(&Frozen::new(model), &training_set.to_labelled(), 100)?;
//! assert!(clean_accuracy > 0.3, "{clean_accuracy}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod accuracy;
mod adversarial;
mod ahead;
mod augment;
mod best;
mod config;
mod cutmix;
mod error;
pub mod layers;
pub mod ranges;
mod sgd;
mod source;
pub mod state;
mod trainer;
mod unread;

pub use accuracy::accuracy;
pub use ahead::Ahead;
pub use augment::Augmentation;
pub use best::Best;
pub use config::{
    AdversarialConfig, AdversarialLoss, LabelSource, Length, LrSchedule, Order, ParseProtocolError, Protocol,
    TradesConfig, TrainConfig,
};
pub use error::TrainError;
pub use sgd::{Sgd, SgdConfig, parameter_gradients};
pub use source::{Targets, Teacher, TrainSource, model_input};
pub use trainer::{TrainStep, TrainSummary, Trainer, train};
pub use unread::{Unread, read};
