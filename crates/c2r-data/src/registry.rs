use std::{collections::BTreeMap, sync::LazyLock};

use c2r_base::Epsilon;
use serde::Deserialize;

use crate::{DataError, dsa::Dsa};

/// What is known about a dataset, from `data/datasets.toml`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetSpec {
    /// What the command line says, e.g. `cifar10`; `imagenette@64` in another size than the registry's, see [`spec`];
    /// `folder:PATH` for a folder of images.
    pub name: String,
    /// What a table says, e.g. `CIFAR-10`.
    pub title: String,
    /// Which reader.
    pub format: Format,
    /// Channels, 1 (grey) or 3 (RGB).
    pub channels: i64,
    /// Height, pixels.
    pub height: i64,
    /// Width, pixels.
    pub width: i64,
    /// Published number of training images, where there is one.
    pub n_train: Option<usize>,
    /// Published number of test images, where there is one.
    pub n_test: Option<usize>,
    /// Mean of each channel over the training pixels in `[0, 1]`.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel over the training pixels in `[0, 1]`.
    pub std: Vec<f64>,
    /// Radius of the Linf ball that this dataset's tables use, pixel units.
    pub epsilon: Epsilon,
    /// Architecture that this dataset's tables use, in the spelling of `c2r-models`.
    pub model: String,
    /// Augmentation that this dataset's tables use.
    pub dsa: Dsa,
    /// Keys of the distillation configuration that this dataset needs otherwise than the field's values,
    /// dotted.
    #[serde(default)]
    pub distill: BTreeMap<String, toml::Value>,
    /// Folders inside the data folder that may hold the files; the first one that exists is read.
    pub folders: Vec<String>,
    /// Terms of use and whom to credit.
    pub licence: String,
    /// Where the dataset is described.
    pub homepage: String,
    /// Class names, in class order.
    pub classes: Vec<String>,
    /// WordNet ids of the classes, in class order; empty where classes have none.
    #[serde(default)]
    pub wnids: Vec<String>,
    /// The file of this repository that is the dataset.
    pub embedded: Option<EmbeddedFile>,
    /// What to download.
    #[serde(default)]
    pub files: Vec<DataFile>,
}

impl DatasetSpec {
    /// `[C, H, W]`.
    pub const fn shape(&self) -> [i64; 3] {
        [self.channels, self.height, self.width]
    }

    /// The name in the registry, which is that of every size.
    pub fn base_name(&self) -> &str {
        self.name.split_once(SIZE_MARK).map_or(&self.name, |(base, _)| base)
    }

    /// The same images at `side` x `side`; the network is as deep as the field's for that size.
    fn resized(self, side: i64) -> Self {
        if self.shape()[1..] == [side, side] {
            return self;
        }
        let depth = |side| format!("-D{}-", depth_for(side));
        Self {
            name: format!("{}{SIZE_MARK}{side}", self.name),
            title: format!("{} {side}x{side}", self.title),
            model: self.model.replace(&depth(self.height), &depth(side)),
            height: side,
            width: side,
            ..self
        }
    }
}

/// Between a name and a size.
const SIZE_MARK: char = '@';
/// Sides that images can be resized to, pixels.
const SIZES: std::ops::RangeInclusive<i64> = 8..=512;

/// The field's depth for images of this size: each block halves them, down to about 4x4.
/// ConvNet-D3 at 32, D4 at 64, D5 at 128.
pub(crate) fn depth_for(side: i64) -> u32 {
    side.max(8).ilog2().saturating_sub(2).clamp(1, 6)
}

/// Which reader understands a dataset's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// The embedded CSV.
    Digits,
    /// Binary records with one label.
    Cifar10,
    /// Binary records with a coarse and a fine label.
    Cifar100,
    /// JPEGs with `wnids.txt` and `val_annotations.txt`.
    TinyImagenet,
    /// One folder of images per class.
    ClassFolders,
}

/// A dataset that is part of the program.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddedFile {
    /// From the top of the repository.
    pub path: String,
    /// Size, bytes.
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

/// One file to download.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    /// File name.
    pub name: String,
    /// Where it is published.
    pub url: String,
    /// Size, bytes, where known.
    pub bytes: Option<u64>,
    /// MD5, hexadecimal, where known.
    pub md5: Option<String>,
    /// SHA-256, hexadecimal, where known.
    pub sha256: Option<String>,
    /// The folder that the archive unpacks to.
    pub folder: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Registry {
    schema_version: u32,
    dataset: Vec<DatasetSpec>,
}

static REGISTRY: LazyLock<Vec<DatasetSpec>> = LazyLock::new(|| {
    let registry: Registry =
        toml::from_str(include_str!("../../../data/datasets.toml")).expect("data/datasets.toml is tested");
    assert_eq!(registry.schema_version, 1, "data/datasets.toml is tested");
    registry.dataset
});

/// Every known dataset, in the order of `data/datasets.toml`.
pub fn registry() -> &'static [DatasetSpec] {
    &REGISTRY
}

/// The dataset called `name`.
///
/// An ImageNet subset may be followed by `@` and the side, pixels, that its images are resized to: `imagenette@64`.
/// The name then stays with everything that is made from it.
///
/// # Errors
/// [`DataError::UnknownDataset`], with the known names; [`DataError::Size`].
pub fn spec(name: &str) -> Result<DatasetSpec, DataError> {
    let (base, size) = name.split_once(SIZE_MARK).map_or((name, None), |(base, size)| (base, Some(size)));
    let known = || registry().iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>().join(", ");
    let spec = registry().iter().find(|spec| spec.name == base);
    let spec = spec.ok_or_else(|| DataError::UnknownDataset { name: name.to_owned(), known: known() })?;
    let Some(size) = size else { return Ok(spec.clone()) };
    let wrong = |reason| DataError::Size { name: name.to_owned(), reason };
    if spec.format != Format::ClassFolders {
        return Err(wrong(format!("the images of {base} are {}x{}; write `{base}`", spec.height, spec.width)));
    }
    let side = size.parse().ok().filter(|side| SIZES.contains(side));
    let side = side.ok_or_else(|| {
        let (least, most) = (SIZES.start(), SIZES.end());
        wrong(format!("`{size}` is not a side of {least} to {most} pixels; write e.g. `{base}@64`"))
    })?;
    Ok(spec.clone().resized(side))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_entry_is_consistent() {
        let names: HashSet<_> = registry().iter().map(|spec| &spec.name).collect();
        assert_eq!(names.len(), registry().len());
        for spec in registry() {
            let name = &spec.name;
            assert_eq!(spec.mean.len() as i64, spec.channels, "{name}");
            assert_eq!(spec.std.len() as i64, spec.channels, "{name}");
            assert!(spec.mean.iter().chain(&spec.std).all(|value| (0.0..1.0).contains(value)), "{name}");
            assert_eq!(spec.classes.iter().collect::<HashSet<_>>().len(), spec.classes.len(), "{name}");
            assert!(spec.wnids.is_empty() || spec.wnids.len() == spec.classes.len(), "{name}");
            assert!(spec.wnids.iter().all(|id| id.len() == 9 && id.starts_with('n')), "{name}");
            assert_eq!(spec.embedded.is_some(), spec.format == Format::Digits, "{name}");
            for file in &spec.files {
                assert!(file.md5.is_some() || file.sha256.is_some(), "{name}: {}", file.name);
                assert!(
                    [".tar.gz", ".tgz", ".zip"].iter().any(|end| file.name.ends_with(end)),
                    "{name}: {}",
                    file.name
                );
                assert!(spec.folders.contains(&file.folder), "{name}: {}", file.folder);
                assert!(file.url.ends_with(&file.name), "{name}: {}", file.url);
                assert!(file.md5.as_ref().is_none_or(|hash| hash.len() == 32), "{name}");
                assert!(file.sha256.as_ref().is_none_or(|hash| hash.len() == 64), "{name}");
            }
        }
        let n_classes = |name| spec(name).unwrap().classes.len();
        assert_eq!(["digits", "cifar10", "cifar100", "tiny-imagenet"].map(n_classes), [10, 10, 100, 200]);
    }

    #[test]
    fn a_subset_in_another_size() {
        for name in registry().iter().filter(|spec| spec.format == Format::ClassFolders).map(|spec| &spec.name) {
            let whole = spec(name).unwrap();
            assert_eq!(spec(&format!("{name}@128")).unwrap(), whole, "128 is what the registry says");
            let small = spec(&format!("{name}@64")).unwrap();
            assert_eq!((small.name.as_str(), small.base_name()), (format!("{name}@64").as_str(), name.as_str()));
            assert_eq!((small.shape(), small.model.as_str()), ([3, 64, 64], "ConvNet-D4-W128-IN"));
            assert_eq!((&small.wnids, &small.folders), (&whole.wnids, &whole.folders));
        }
        assert_eq!(spec("imagewoof@256").unwrap().model, "ConvNet-D6-W128-IN");
        let message = |name: &str| spec(name).unwrap_err().to_string();
        for size in ["", "7", "513", "0", "-64", "64x64", "64@64", "99999999999999999999"] {
            let message = message(&format!("imagenette@{size}"));
            assert!(message.contains("8 to 512 pixels") && message.contains("imagenette@64"), "{message}");
        }
        assert!(message("cifar10@64").contains("the images of cifar10 are 32x32"), "{}", message("cifar10@64"));
        assert!(message("mnist@64").contains("`mnist@64` is not a dataset"));
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = spec("cifar11").unwrap_err().to_string();
        assert!(message.contains("cifar11") && message.contains("cifar10, cifar100") && message.contains("folder:"));
    }
}
