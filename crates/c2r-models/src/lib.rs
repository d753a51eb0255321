//! Networks of the dataset distillation field, frozen classifiers, and strict checkpoints.
//!
//! **What it is:** [`ModelSpec`] (an architecture in one word, `ConvNet-D3-W128-IN`), [`Model`] (a
//! network to train: pixels in, features and logits out), [`Frozen`] (a trained network as an
//! attacker sees it), [`TorchScript`] (anyone's exported model as a classifier), [`StateDict`] (parameters
//! that PyTorch saved, as a classifier), and [`checkpoint`] (files that fit exactly or are refused).
//!
//! **What it is not:** a training loop (c2r-train) or a zoo of downloaded weights.
//!
//! **Where to start:** [`Model::new`].
//!
//! ```
//! use c2r_base::Seed;
//! use c2r_models::{Frozen, Model, ModelInput, ModelSpec};
//! use tch::{Device, Kind, Tensor};
//!
//! let spec: ModelSpec = "ConvNet-D3-W128-IN".parse()?;
//! let input = ModelInput {
//!     channels: 3, height: 32, width: 32, n_classes: 10,
//!     mean: vec![0.4914, 0.4822, 0.4465], std: vec![0.2470, 0.2435, 0.2616],
//! };
//! let model = Model::new(&spec, &input, Seed::new(0), Device::Cpu)?;
//! assert_eq!(model.n_parameters(), 320_010);
//! let classifier = Frozen::new(model);
//! let images = Tensor::full([2, 3, 32, 32], 0.5, (Kind::Float, Device::Cpu));
//! assert_eq!(classifier.logits(&images).size(), [2, 10]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod architecture;
pub mod checkpoint;
mod convnet;
mod deep;
mod error;
mod frozen;
mod input;
mod layer;
mod model;
mod network;
mod spec;
mod state_dict;
mod torchscript;

pub use architecture::{Architecture, ParseArchitectureError};
pub use error::{Misfit, ModelError};
pub use frozen::Frozen;
pub use input::ModelInput;
pub use model::Model;
pub use spec::{ConvNetSpec, DeepSpec, FeatureNorm, ModelSpec, ParseModelSpecError};
pub use state_dict::StateDict;
pub use torchscript::{Probed, TorchScript};
