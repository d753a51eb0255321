//! Datasets, samplers, augmentation and the file format of a distilled set.
//!
//! **What it is:** [`load`] reads the datasets of the field into [`Split`]s (u8 on the host),
//! [`ClassSampler`] draws from them, [`subset`] chooses the images that stand for all, [`dsa`] augments differentiably, and [`SyntheticSet`] is the file
//! in which distillation and evaluation meet. [`registry`] lists every known dataset.
//!
//! [`read_tensors`] and [`import`] take in the distilled sets of others (safetensors, NumPy, `torch.save`, folders of
//! images).
//!
//! **What it is not:** it downloads nothing, contains neither networks nor
//! attacks, and does not normalize: pixels are in `[0, 1]` and normalization belongs inside the model.
//!
//! **Where to start:** [`load`], then [`Split::images`] for arrays or [`Split::batch`] for tensors.
//!
//! ```
//! use c2r_data::ndarray::Axis;
//!
//! let digits = c2r_data::load("digits", None)?;
//! let (images, labels) = (digits.train.images(), digits.train.labels());
//! assert_eq!((images.dim(), labels.len()), ((1438, 1, 8, 8), 1438));
//! // The first image of a three, and how bright it is on average.
//! let three = images.index_axis(Axis(0), digits.train.class_positions(3)[0]);
//! let brightness = three.mapv(f32::from).mean().unwrap() / 255.0;
//! assert!((0.2..0.4).contains(&brightness));
//!
//! let (batch, _) = digits.train.batch(&[0, 1, 2], tch::Device::Cpu);
//! assert_eq!(batch.size(), [3, 1, 8, 8]);
//! # Ok::<(), c2r_data::DataError>(())
//! ```

// Used only for its features; see the workspace's Cargo.toml.
use either as _;

pub mod arrays;
mod batches;
mod built_in;
mod cache;
mod cifar;
mod cifar_python;
mod class_folders;
mod class_order;
mod dataset;
mod decode;
mod digits;
pub mod dsa;
mod error;
mod foreign;
mod formation;
mod import;
mod in_memory;
mod listing;
mod load;
mod npy;
mod pickle;
mod picture;
mod pixels;
mod png_folder;
mod provenance;
mod registry;
mod sampler;
mod set_files;
mod split;
mod stored_zip;
mod subset;
mod survey;
mod synthetic;
mod tiny_imagenet;
mod torch_save;
mod torch_write;

pub use batches::{Batches, Rows};
pub use built_in::BUILT_IN;
pub use c2r_experiment::{DatasetFormat, SubsetOrder};
pub use class_folders::load_folder;
pub use class_order::ClassOrder;
pub use dataset::{Dataset, LoadEvent};
pub use digits::parse_digits;
pub use error::DataError;
pub use foreign::{FileKind, read_tensors};
pub use formation::{decode_formation, mosaic};
pub use import::{IMPORT_DOUBT, ImportOptions, PixelValues, import};
pub use load::{load, load_with};
pub use ndarray;
pub use picture::write_grid;
pub use png_folder::{ClassFolders, read_class_folders};
pub use provenance::Provenance;
pub use registry::{DatasetSpec, registry, spec};
pub use sampler::ClassSampler;
pub use split::Split;
pub use subset::subset;
pub use synthetic::{
    Clamped, Mosaics, SCHEMA_VERSION, SetLabels, SetOrigin, SetTeacher, SyntheticHeader, SyntheticSet,
};
