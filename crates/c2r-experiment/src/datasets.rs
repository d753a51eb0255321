use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::{Table, Value};

use crate::ExperimentError;

/// One `[[dataset]]` of `data/datasets.toml`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetEntry {
    /// What the command line says, e.g. `cifar10`.
    pub name: String,
    /// What a table says, e.g. `CIFAR-10`.
    pub title: String,
    /// Which reader.
    pub format: DatasetFormat,
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
    /// Radius of the Linf ball of this dataset's tables, pixel units, e.g. `2/255`.
    pub epsilon: String,
    /// Network of this dataset's tables.
    pub model: String,
    /// Augmentation of this dataset's tables.
    pub dsa: String,
    /// Dotted keys of the distillation configuration that this dataset needs otherwise than the field's values.
    #[serde(default)]
    pub distill: BTreeMap<String, Value>,
    /// Folders inside the data folder that may hold the files ([`DatasetEntry::folder_in`]).
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
    /// Archives to download; the first one unless another is asked for.
    #[serde(default)]
    pub files: Vec<DataFile>,
    /// All of the entry as the file has it, for hashing.
    #[serde(skip)]
    pub table: Table,
}

/// Which reader understands a dataset's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatasetFormat {
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

/// One archive to download.
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
    /// The one folder that the archive holds.
    pub folder: String,
}

impl DatasetEntry {
    /// Where the registry is, from the top of the repository.
    pub const REGISTRY: &str = "data/datasets.toml";

    const SCHEMA_VERSION: u32 = 1;

    /// All datasets of a registry, in its order.
    ///
    /// # Errors
    /// What is wrong and where, as a message to be read after the file's name.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Registry<T> {
            schema_version: u32,
            dataset: Vec<T>,
        }
        // Both from the text, because only then does an error name its line.
        let Registry::<Self> { schema_version, dataset } = toml::from_str(text).map_err(|error| error.to_string())?;
        let tables: Registry<Table> = toml::from_str(text).map_err(|error| error.to_string())?;
        if schema_version != Self::SCHEMA_VERSION {
            return Err(format!("schema_version is {schema_version}, this c2r reads {}", Self::SCHEMA_VERSION));
        }
        Ok(dataset.into_iter().zip(tables.dataset).map(|(entry, table)| Self { table, ..entry }).collect())
    }

    /// As [`DatasetEntry::parse_all`], from a file.
    ///
    /// # Errors
    /// [`ExperimentError`], naming the file.
    pub fn read_all(path: &Path) -> Result<Vec<Self>, ExperimentError> {
        let text = c2r_files::read_text(path)?;
        Self::parse_all(&text).map_err(|reason| ExperimentError::wrong(path, reason))
    }

    /// The folder that is read: the first of [`DatasetEntry::folders`] that is a folder in `data` and not empty, or else the first
    /// that is a folder; or `data` itself if it is called that.
    pub fn folder_in(&self, data: &Path) -> Option<PathBuf> {
        if self.folders.iter().any(|name| data.ends_with(name)) && data.is_dir() {
            return Some(data.to_owned());
        }
        let folders: Vec<PathBuf> =
            self.folders.iter().map(|name| data.join(name)).filter(|path| path.is_dir()).collect();
        folders.iter().find(|folder| !c2r_files::is_empty_folder(folder)).or(folders.first()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_folder_hides_no_other_and_the_data_folder_may_be_the_dataset_itself() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(DatasetEntry::REGISTRY);
        let entries = DatasetEntry::read_all(&path).unwrap();
        let cifar = entries.iter().find(|entry| entry.name == "cifar10").unwrap();
        let data = tempfile::tempdir().unwrap();
        let [first, second] = [&cifar.folders[0], &cifar.folders[1]].map(|name| data.path().join(name));
        assert_eq!(cifar.folder_in(data.path()), None);
        std::fs::create_dir(&first).unwrap();
        assert_eq!(cifar.folder_in(data.path()), Some(first.clone()));
        std::fs::create_dir(&second).unwrap();
        std::fs::write(second.join("test_batch"), "").unwrap();
        assert_eq!(cifar.folder_in(data.path()), Some(second.clone()));
        assert_eq!(cifar.folder_in(&second), Some(second));
        std::fs::write(first.join("test_batch.bin"), "").unwrap();
        assert_eq!(cifar.folder_in(data.path()), Some(first));
    }

    #[test]
    fn the_registry_of_the_repository_is_read_and_mistakes_are_named() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(DatasetEntry::REGISTRY);
        let entries = DatasetEntry::read_all(&path).unwrap();
        let cifar = entries.iter().find(|entry| entry.name == "cifar10").unwrap();
        assert_eq!((cifar.format, cifar.epsilon.as_str()), (DatasetFormat::Cifar10, "2/255"));
        assert_eq!(cifar.table["mean"].as_array().unwrap().len(), 3);
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to, reason) in [
            ("schema_version = 1", "schema_version = 2", "schema_version is 2"),
            ("format = \"cifar10\"", "format = \"cifar11\"", "unknown variant `cifar11`"),
            ("licence = ", "license = ", "license"),
        ] {
            assert!(text.contains(from));
            let message = DatasetEntry::parse_all(&text.replacen(from, to, 1)).unwrap_err();
            assert!(message.contains(reason), "{message}");
        }
    }
}
