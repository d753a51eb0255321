//! A network of c2r on images of another dataset than it was trained on.

use std::{
    fs,
    path::{Path, PathBuf},
};

use c2r_data::DatasetSpec;
use c2r_experiment::Subject;
use c2r_files::text_to_path;
use c2r_run::exit;

use super::inputs::Inputs;
use crate::data::FOLDER;

/// How many classes an error lists.
const LISTED: usize = 12;

/// Files the results of a network under the dataset that it is judged on; returns whether that is another one than it was
/// trained on. A note of the results then names both.
///
/// # Errors
/// If the classes are not the same: the labels of the images would mean nothing to the network.
pub(super) fn judged_on(subject: &mut Subject, network: &Path, inputs: &mut Inputs) -> anyhow::Result<bool> {
    let Some(classes) = &inputs.classes else { return Ok(false) };
    let (trained, judged) = (subject.dataset.clone(), named(&inputs.name));
    if is_same(&trained, &judged) {
        return Ok(false);
    }
    let of_trained = Classes::of(&trained);
    if let Some(difference) = of_trained.as_ref().and_then(|known| known.difference(classes)) {
        let network = network.display();
        let advice = match &of_trained {
            Some(Classes::Known(spec)) if judged.starts_with(FOLDER) => {
                let more = if spec.classes.len() > LISTED { ", ..." } else { "" };
                let listed = spec.classes.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
                format!("if these are images of {trained}, name their folders after its classes ({listed}{more})")
            }
            _ => format!("attack it with --dataset {trained}"),
        };
        return exit::fail(
            exit::USAGE,
            format!(
                "{network} was trained on {trained}, whose classes are not those of {judged}: {difference}; {advice}"
            ),
        );
    }
    let unknown = if of_trained.is_none() { ", whose classes could not be compared" } else { "" };
    inputs.notes.push(format!("trained on {trained}{unknown}; judged on images of {judged}"));
    subject.dataset = judged;
    Ok(true)
}

/// A dataset's name as results have it: `imagenette@128` is `imagenette`.
fn named(dataset: &str) -> String {
    c2r_data::spec(dataset).map_or_else(|_| dataset.to_owned(), |spec| spec.name.clone())
}

/// Whether two names are of one dataset: a folder may be spelt in several ways.
fn is_same(a: &str, b: &str) -> bool {
    let folder = |name: &str| text_to_path(name.strip_prefix(FOLDER)?).canonicalize().ok();
    a == b || folder(a).is_some_and(|path| folder(b) == Some(path))
}

/// The classes of the dataset that a network was trained on.
enum Classes {
    /// Of a dataset that c2r knows.
    Known(Box<DatasetSpec>),
    /// Of a folder of images, as they are sorted.
    Sorted(Vec<String>),
}

impl Classes {
    /// `None` where nothing is known of the dataset here, such as a folder of another machine.
    fn of(dataset: &str) -> Option<Self> {
        match dataset.strip_prefix(FOLDER) {
            Some(path) => Some(Self::Sorted(folders(&text_to_path(path).join("train")).filter(|all| !all.is_empty())?)),
            None => c2r_data::spec(dataset).ok().map(|spec| Self::Known(Box::new(spec))),
        }
    }

    /// The first class that is another one, in words. Case and the marks between words do not count, and WordNet ids are names.
    fn difference(&self, others: &[String]) -> Option<String> {
        let (names, ids) = match self {
            Self::Known(spec) => (&spec.classes, &spec.wnids),
            Self::Sorted(names) => (names, names),
        };
        let first = |known: &[String]| (0..names.len()).find(|&at| !is_one_class(known.get(at), others.get(at)));
        let at = first(names).filter(|_| first(ids).is_some())?;
        let other = others.get(at).map_or("nothing", String::as_str);
        Some(format!("class {at} is `{}` there and `{other}` here", names[at]))
    }
}

fn is_one_class(a: Option<&String>, b: Option<&String>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    a == b || !letters(a).is_empty() && letters(a) == letters(b)
}

/// Letters and digits, small.
fn letters(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// The names of the folders in a folder that are not hidden, sorted.
fn folders(path: &Path) -> Option<Vec<String>> {
    let inside = fs::read_dir(path).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let name = |path: PathBuf| Some(path.file_name()?.to_string_lossy().into_owned());
    let mut names: Vec<String> =
        inside.filter(|path| path.is_dir()).filter_map(name).filter(|name| !name.starts_with('.')).collect();
    names.sort();
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differs(dataset: &str, others: &[&str]) -> Option<String> {
        let others: Vec<String> = others.iter().map(|name| (*name).to_owned()).collect();
        Classes::of(dataset).unwrap().difference(&others)
    }

    #[test]
    fn classes_are_the_same_in_the_same_order() {
        let mut cifar = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
        assert_eq!(differs("cifar10", &cifar), None);
        cifar[0] = "Air_plane";
        assert_eq!(differs("cifar10", &cifar), None);
        cifar.swap(3, 4);
        assert_eq!(differs("cifar10", &cifar).unwrap(), "class 3 is `cat` there and `deer` here");
        let spec = c2r_data::spec("imagenette").unwrap();
        let wnids: Vec<&str> = spec.wnids.iter().map(String::as_str).collect();
        assert_eq!(differs("imagenette", &wnids), None);
        let woof = c2r_data::spec("imagewoof").unwrap();
        let woof: Vec<&str> = woof.classes.iter().map(String::as_str).collect();
        assert!(differs("imagenette", &woof).is_some());
        assert!(Classes::of("a dataset of Python").is_none() && Classes::of("folder:no/such/folder").is_none());
    }

    #[test]
    fn one_dataset_has_several_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| format!("folder:{}", folder.path().join(name).display());
        fs::create_dir_all(folder.path().join("x/train/b")).unwrap();
        fs::create_dir_all(folder.path().join("x/train/a")).unwrap();
        fs::create_dir_all(folder.path().join("x/train/.hidden")).unwrap();
        assert!(is_same("cifar10", "cifar10") && !is_same("cifar10", &at("x")));
        assert!(is_same(&at("x"), &at("x/../x/")) && !is_same(&at("x"), &at("")));
        assert!(is_same("folder:gone", "folder:gone") && !is_same("folder:gone", "folder:lost"));
        assert_eq!(named("imagenette@128"), "imagenette");
        assert_eq!(differs(&at("x"), &["a", "b"]), None);
        assert_eq!(differs(&at("x"), &["a", "c"]).unwrap(), "class 1 is `b` there and `c` here");
    }
}
