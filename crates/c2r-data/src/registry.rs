use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut, RangeInclusive},
    sync::LazyLock,
};

use c2r_base::Epsilon;
use c2r_experiment::{DatasetEntry, DatasetFormat};

use crate::{DataError, dsa::Dsa};

/// What is known about a dataset: its entry in `data/datasets.toml`, whose fields this has, too, and which may be changed.
///
/// The `name` is `imagenette@64` in another size than the registry's, see [`spec`], and `folder:PATH` for a folder of
/// images.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetSpec {
    entry: DatasetEntry,
    /// Radius of the Linf ball that this dataset's tables use, pixel units.
    pub epsilon: Epsilon,
    /// Augmentation that this dataset's tables use.
    pub dsa: Dsa,
}

impl Deref for DatasetSpec {
    type Target = DatasetEntry;

    fn deref(&self) -> &DatasetEntry {
        &self.entry
    }
}

impl DerefMut for DatasetSpec {
    fn deref_mut(&mut self) -> &mut DatasetEntry {
        &mut self.entry
    }
}

impl DatasetSpec {
    /// An entry whose radius and augmentation are read.
    ///
    /// # Errors
    /// In words, naming the field that is not what it should be.
    pub(crate) fn new(entry: DatasetEntry) -> Result<Self, String> {
        let epsilon = entry.epsilon.parse::<Epsilon>().map_err(|error| format!("epsilon: {error}"))?;
        let dsa = entry.dsa.parse::<Dsa>().map_err(|error| format!("dsa: {error}"))?;
        Ok(Self { entry, epsilon, dsa })
    }

    /// `[C, H, W]`.
    pub fn shape(&self) -> [i64; 3] {
        [self.channels, self.height, self.width]
    }

    /// The name in the registry, which is that of every size.
    pub fn base_name(&self) -> &str {
        self.name.split_once(SIZE_MARK).map_or(&self.name, |(base, _)| base)
    }

    /// The same images at `side` x `side`; the network is as deep as the field's for that size.
    fn resize(&mut self, side: i64) {
        if self.shape()[1..] != [side, side] {
            let depth = |side| format!("-D{}-", depth_for(side));
            self.name = format!("{}{SIZE_MARK}{side}", self.name);
            self.title = format!("{} {side}x{side}", self.title);
            self.model = self.model.replace(&depth(self.height), &depth(side));
            (self.height, self.width) = (side, side);
        }
    }
}

/// Between a name and a size.
const SIZE_MARK: char = '@';
/// Sides that images can be resized to, pixels.
const SIZES: RangeInclusive<i64> = 8..=512;

/// The field's depth for images of this size: each block halves them, down to about 4x4.
/// ConvNet-D3 at 32, D4 at 64, D5 at 128.
pub(crate) fn depth_for(side: i64) -> u32 {
    side.max(8).ilog2().saturating_sub(2).clamp(1, 6)
}

/// What is known of images of `shape` (`[C, H, W]`) that are not in the registry, with the settings of most of its
/// datasets.
pub(crate) fn unlisted_spec(
    name: String,
    title: String,
    [channels, height, width]: [i64; 3],
    classes: Vec<String>,
    (mean, std): (Vec<f64>, Vec<f64>),
) -> DatasetSpec {
    let entry = DatasetEntry {
        name,
        title,
        format: DatasetFormat::ClassFolders,
        channels,
        height,
        width,
        n_train: None,
        n_test: None,
        mean,
        std,
        epsilon: "2/255".to_owned(),
        model: format!("ConvNet-D{}-W128-IN", depth_for(height.min(width))),
        dsa: crate::dsa::FULL_STRATEGY.to_owned(),
        distill: BTreeMap::new(),
        folders: Vec::new(),
        licence: String::new(),
        homepage: String::new(),
        classes,
        wnids: Vec::new(),
        embedded: None,
        files: Vec::new(),
        table: toml::Table::new(),
    };
    DatasetSpec::new(entry).expect("radius and augmentation are right")
}

pub(crate) const TEXT: &str = include_str!("../../../data/datasets.toml");

static REGISTRY: LazyLock<Vec<DatasetSpec>> = LazyLock::new(|| {
    let entries = DatasetEntry::parse_all(TEXT);
    let specs = entries.and_then(|entries| entries.into_iter().map(DatasetSpec::new).collect());
    specs.expect("data/datasets.toml is tested")
});

/// Every known dataset, in the order of `data/datasets.toml`.
pub fn registry() -> &'static [DatasetSpec] {
    &REGISTRY
}

/// The dataset called `name`.
///
/// An ImageNet subset may be followed by `@` and the side, pixels, that its images are resized to: `imagenette@64`.
/// The name is then part of everything that is made from it.
///
/// # Errors
/// [`DataError::UnknownDataset`], with the known names; [`DataError::Size`].
pub fn spec(name: &str) -> Result<DatasetSpec, DataError> {
    let (base, size) = name.split_once(SIZE_MARK).map_or((name, None), |(base, size)| (base, Some(size)));
    let known = || registry().iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>().join(", ");
    let spec = registry().iter().find(|spec| spec.name == base);
    let mut spec = spec.ok_or_else(|| DataError::UnknownDataset { name: name.to_owned(), known: known() })?.clone();
    if let Some(size) = size {
        let wrong = |reason| DataError::Size { name: name.to_owned(), reason };
        if spec.format != DatasetFormat::ClassFolders {
            return Err(wrong(format!("the images of {base} are {}x{}; write `{base}`", spec.height, spec.width)));
        }
        let side = size.parse().ok().filter(|side| SIZES.contains(side));
        spec.resize(side.ok_or_else(|| {
            let (least, most) = (SIZES.start(), SIZES.end());
            wrong(format!("`{size}` is not a size from {least} to {most} pixels; write e.g. `{base}@64`"))
        })?);
    }
    Ok(spec)
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
            assert_eq!(spec.embedded.is_some(), spec.format == DatasetFormat::Digits, "{name}");
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
        for name in registry().iter().filter(|spec| spec.format == DatasetFormat::ClassFolders).map(|spec| &spec.name) {
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
