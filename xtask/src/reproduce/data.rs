//! Which datasets are here, and what is in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use anyhow::Context;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{identity::hex, plan::Place};
use crate::{exit, process, ui};

/// The registry that `c2r` embeds.
const REGISTRY: &str = "data/datasets.toml";

/// The dataset that lies in the repository.
const EMBEDDED: &str = "digits";

/// Files that hold pixels or say what they show; anything else beside them changes nothing.
const EXTENSIONS: [&str; 6] = ["bin", "csv", "jpeg", "jpg", "png", "txt"];

/// Keys of a registry entry that decide no number.
const ABOUT: [&str; 5] = ["title", "folders", "licence", "homepage", "files"];

/// Hashing more than this is announced, bytes.
const LARGE: u64 = 500_000_000;

/// A dataset that an experiment may name.
#[derive(Debug, Clone)]
pub(crate) struct Dataset {
    name: String,
    /// The network that commands take unless told otherwise.
    pub(crate) model: String,
    /// What the registry says about it, as far as it can change a number.
    pub(crate) entry: String,
    /// SHA-256 over names and contents of its files; `None` where it is not here.
    sha256: Option<String>,
}

impl Dataset {
    /// What stands for its contents in the name of a job. The jobs of a dataset that is not here have names too, so that
    /// they can be counted and shown; they can neither be finished nor run.
    pub(crate) fn contents(&self) -> &str {
        self.sha256.as_deref().unwrap_or("not here")
    }
}

/// What is read of the registry.
#[derive(Debug, Deserialize)]
struct Registry {
    dataset: Vec<toml::Table>,
}

/// All datasets by name.
#[derive(Debug, Clone)]
pub(crate) struct Datasets(BTreeMap<String, Dataset>);

impl Datasets {
    /// Reads the registry and finds every dataset in the data folder of `place`. Contents are hashed once: what was
    /// found for files of the same names, sizes and times stands in the results folder.
    ///
    /// # Errors
    /// If files cannot be read, or the user interrupted.
    pub(crate) fn read(place: &Place) -> anyhow::Result<Self> {
        let path = place.root.join(REGISTRY);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let registry: Registry =
            toml::from_str(&text).map_err(|error| exit::usage(format!("{}: {error}", path.display())))?;
        let mut datasets = BTreeMap::new();
        for mut entry in registry.dataset {
            let text = |value: &toml::Value| value.as_str().unwrap_or_default().to_owned();
            let texts = |entry: &toml::Table, key: &str| -> Vec<String> {
                entry.get(key).and_then(toml::Value::as_array).into_iter().flatten().map(text).collect()
            };
            let name = entry.get("name").map(text).unwrap_or_default();
            let wnids: BTreeSet<String> = match entry.get("format").map(text).as_deref() {
                // One folder holds the classes of many subsets.
                Some("class-folders") => texts(&entry, "wnids").into_iter().collect(),
                _ => BTreeSet::new(),
            };
            let folder = if name == EMBEDDED {
                Some(place.root.join("data/digits"))
            } else {
                let inside = |folder: &String| place.data.as_ref().map(|data| data.join(folder));
                texts(&entry, "folders").iter().filter_map(inside).find(|folder| folder.is_dir())
            };
            let sha256 = folder.map(|folder| contents(&folder, &wnids, &name, place)).transpose()?.flatten();
            let model = entry.get("model").map(text).unwrap_or_default();
            entry.retain(|key, _| !ABOUT.contains(&key));
            let entry = serde_json::to_string(&entry)?;
            datasets.insert(name.clone(), Dataset { name, model, entry, sha256 });
        }
        Ok(Self(datasets))
    }

    /// A dataset by name.
    ///
    /// # Errors
    /// The names there are.
    pub(crate) fn get(&self, name: &str) -> anyhow::Result<&Dataset> {
        self.0.get(name).ok_or_else(|| exit::usage(super::plan::unknown("dataset", name, self.0.keys())))
    }

    /// Which of `names` are not here.
    pub(crate) fn missing<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let names: BTreeSet<&str> = names.into_iter().collect();
        let gone = |dataset: &&Dataset| names.contains(dataset.name.as_str()) && dataset.sha256.is_none();
        self.0.values().filter(gone).map(|dataset| dataset.name.clone()).collect()
    }
}

/// Hash of a dataset's files; `None` if the folder holds none.
fn contents(folder: &Path, wnids: &BTreeSet<String>, name: &str, place: &Place) -> anyhow::Result<Option<String>> {
    let mut files = Vec::new();
    list(folder, &mut files)?;
    files.retain(|file| {
        let inside = file.strip_prefix(folder).unwrap_or(file);
        wnids.is_empty() || inside.iter().any(|part| part.to_str().is_some_and(|part| wnids.contains(part)))
    });
    files.sort();
    let (mut stamp, mut n_bytes) = (Sha256::new(), 0);
    for file in &files {
        let data = fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
        let time = data.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        stamp.update(format!("{} {} {}\n", file.display(), data.len(), time.as_nanos()));
        n_bytes += data.len();
    }
    if n_bytes == 0 {
        return Ok(None);
    }
    let stamp = hex(&stamp.finalize());
    let cache = place.results.join("jobs").join(format!("data-{name}.json"));
    let mut known: BTreeMap<String, String> =
        fs::read(&cache).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    if let Some(sha256) = known.get(&stamp) {
        return Ok(Some(sha256.clone()));
    }
    if n_bytes > LARGE {
        ui::note(format!("reading {name} once ({}) to know its contents", ui::megabytes(n_bytes)));
    }
    let mut hash = Sha256::new();
    for file in &files {
        process::check_interrupt()?;
        let inside = file.strip_prefix(folder).unwrap_or(file);
        hash.update(inside.to_string_lossy().as_bytes());
        hash.update([0]);
        hash.update(hash_of_file(file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    let sha256 = hex(&hash.finalize());
    known.insert(stamp, sha256.clone());
    // Knowing it the next time is a convenience: a results folder that cannot be written is reported by who needs it.
    let _ = super::record::write_whole(&cache, &serde_json::to_vec_pretty(&known)?);
    Ok(Some(sha256))
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() {
            list(&path, files)?;
        } else if !hidden
            && path
                .extension()
                .is_some_and(|end| EXTENSIONS.contains(&end.to_ascii_lowercase().to_string_lossy().as_ref()))
        {
            files.push(path);
        }
    }
    Ok(())
}

fn hash_of_file(path: &Path) -> std::io::Result<[u8; 32]> {
    let mut file = fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            length => hash.update(&buffer[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::plan::tests::Example, *};

    #[test]
    fn contents_decide_and_what_is_not_here_is_said() {
        let example = Example::new();
        let sha256 = |place: &Place| Datasets::read(place).unwrap().get("cifar10").unwrap().sha256.clone();
        let before = sha256(&example.place).unwrap();
        let folder = example.folder.path().join("cifar/cifar-10-batches-bin");
        fs::write(folder.join("readme.html"), "other words").unwrap();
        fs::write(folder.join(".hidden.bin"), "other words").unwrap();
        assert_eq!(sha256(&example.place).unwrap(), before);
        fs::write(folder.join("data_batch_2.bin"), "more pixels").unwrap();
        assert_ne!(sha256(&example.place).unwrap(), before);
        fs::remove_file(folder.join("data_batch_2.bin")).unwrap();
        assert_eq!(sha256(&example.place).unwrap(), before);

        let without = Place { data: None, ..example.place.clone() };
        assert_eq!(sha256(&without), None);
        let datasets = Datasets::read(&without).unwrap();
        assert_eq!(datasets.missing(["digits", "cifar10"]), ["cifar10"]);
        assert!(exit::message(&datasets.get("mnist").unwrap_err()).contains("no dataset `mnist`; there are: cifar10"));
    }

    #[test]
    fn a_subset_is_its_classes() {
        let example = Example::new();
        let folder = example.folder.path().join("imagenet/train");
        for class in ["n01", "n02"] {
            fs::create_dir_all(folder.join(class)).unwrap();
            fs::write(folder.join(class).join("1.JPEG"), class).unwrap();
        }
        let wnids = BTreeSet::from(["n01".to_owned()]);
        let hash = || contents(&example.folder.path().join("imagenet"), &wnids, "x", &example.place).unwrap().unwrap();
        let before = hash();
        fs::write(folder.join("n02/2.JPEG"), "another class").unwrap();
        assert_eq!(hash(), before);
        fs::write(folder.join("n01/2.JPEG"), "another image").unwrap();
        assert_ne!(hash(), before);
    }
}
