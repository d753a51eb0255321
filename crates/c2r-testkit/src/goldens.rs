//! Reference results that are next to the repository, in `../shared/goldens`. Tests that need them print a line and pass where they
//! are missing, and fail in the strict mode of `cargo xtask test --slow` ([`crate::skipped`]).

use std::path::{Path, PathBuf};

use c2r_base::artifact::TensorFile;
use serde_json::Value;
use tch::Tensor;

use crate::skipped;

fn below_shared(relative: &str) -> Option<PathBuf> {
    Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(relative)).filter(|path| path.exists())
}

/// A folder of safetensors files with a `manifest.json`.
#[derive(Debug)]
pub struct Goldens {
    folder: PathBuf,
    /// The parsed `manifest.json`.
    pub manifest: Value,
}

impl Goldens {
    /// The goldens beside the repository, or `None` after saying so.
    ///
    /// # Panics
    /// If they exist but cannot be read, and in the strict mode if they do not exist.
    pub fn find() -> Option<Self> {
        let Some(folder) = below_shared("goldens") else {
            skipped("tests against reference results on CIFAR-10: there is no ../shared/goldens beside the repository");
            return None;
        };
        let manifest = c2r_base::artifact::read_json(&folder.join("manifest.json")).expect("goldens have a manifest");
        Some(Self { folder, manifest })
    }

    /// The path of a file.
    ///
    /// # Panics
    /// If it does not exist.
    pub fn path(&self, name: &str) -> PathBuf {
        let path = self.folder.join(name);
        assert!(path.exists(), "there is no golden {}", path.display());
        path
    }

    /// All tensors of a safetensors file.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn tensors(&self, name: &str) -> TensorFile {
        TensorFile::read(&self.path(name)).unwrap_or_else(|error| panic!("{error}"))
    }

    /// One tensor of a safetensors file.
    ///
    /// # Panics
    /// If file or tensor do not exist.
    pub fn tensor(&self, file: &str, name: &str) -> Tensor {
        self.tensors(file).tensors.remove(name).unwrap_or_else(|| panic!("{file} has no tensor `{name}`"))
    }

    /// The 200 test images as f32 `[200, 3, 32, 32]` in `[0, 1]` and their labels, i64 `[200]`.
    pub fn images(&self) -> (Tensor, Tensor) {
        let mut file = self.tensors("inputs.safetensors");
        let mut take = |name: &str| file.tensors.remove(name).unwrap_or_else(|| panic!("inputs have no `{name}`"));
        (take("images_u8").to_kind(tch::Kind::Float) / 255.0, take("labels"))
    }

    /// A value of the manifest by JSON pointer, e.g. `/models/convnet_nat/mean`.
    ///
    /// # Panics
    /// If there is none.
    pub fn value(&self, pointer: &str) -> &Value {
        self.manifest.pointer(pointer).unwrap_or_else(|| panic!("the manifest has nothing at `{pointer}`"))
    }

    /// A list of numbers of the manifest.
    ///
    /// # Panics
    /// If there is none.
    pub fn numbers(&self, pointer: &str) -> Vec<f64> {
        let list = self.value(pointer).as_array().unwrap_or_else(|| panic!("`{pointer}` is not a list"));
        list.iter().map(|value| value.as_f64().unwrap_or_else(|| panic!("`{pointer}` holds {value}"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_match_the_manifest() {
        let Some(goldens) = Goldens::find() else { return };
        let (images, labels) = goldens.images();
        assert_eq!(images.size(), [200, 3, 32, 32]);
        assert_eq!(labels.int64_value(&[17]), 7);
        let mean = goldens.value("/inputs/mean_float").as_f64().unwrap();
        assert!((images.mean(tch::Kind::Double).double_value(&[]) - mean).abs() < 1e-6);
        crate::assert_close(
            "u8/255",
            &images.narrow(0, 0, 8),
            &goldens.tensor("inputs.safetensors", "images_f32_first8"),
            0.0,
        );
    }

    #[test]
    fn what_is_missing_is_none() {
        assert!(below_shared("no/such/file").is_none());
    }
}
