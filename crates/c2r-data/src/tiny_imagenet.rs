//! Tiny-ImageNet in the layout of its archive, or with validation images that were sorted into class folders.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use crate::{
    DataError, Dataset, DatasetSpec, LoadEvent, cache, dataset, decode::Size, listing::Listing, survey::Survey,
};

/// Reads `wnids.txt`, `train/<wnid>/images/` and `val/images/` with `val_annotations.txt` (the published
/// test set has no labels, so the validation images are the test split). Class order is that of the
/// sorted ids.
///
/// `val/<wnid>/` or `val/<wnid>/images/` may hold the validation images instead, and `train/<wnid>/` those for training.
pub(crate) fn load(
    mut spec: DatasetSpec,
    folder: &Path,
    on_event: &mut dyn FnMut(LoadEvent),
) -> Result<Dataset, DataError> {
    let mut notes = Vec::new();
    let wnids = read_wnids(&folder.join("wnids.txt"))?;
    if wnids != spec.wnids {
        notes.push(format!("{}: {} of {} classes (subset)", spec.name, wnids.len(), spec.wnids.len()));
        let names: HashMap<_, _> = spec.wnids.iter().zip(&spec.classes).collect();
        spec.classes = wnids.iter().map(|id| names.get(id).map_or(id, |name| *name).clone()).collect();
        spec.wnids = wnids;
    }
    let mut survey = Survey::new(folder);
    let mut train = Listing::default();
    for (class, id) in spec.wnids.iter().enumerate() {
        train.add(class, &class_folder(&folder.join("train"), id), "JPEG images", &mut survey)?;
    }
    let val = folder.join("val");
    let is_sorted = !val.join("images").is_dir() && spec.wnids.iter().any(|id| val.join(id).is_dir());
    let annotations = Annotations::read(&val.join("val_annotations.txt"), &spec.wnids, is_sorted)?;
    let val = if is_sorted {
        sorted(&spec, &val, &annotations, &mut survey)?
    } else {
        let listing = annotations.listing(&val)?;
        let n_unlisted = survey.images(&val.join("images"))?.len().saturating_sub(listing.paths.len());
        if n_unlisted > 0 {
            notes.push(format!("{}: {n_unlisted} images in val/images are not in val_annotations.txt", spec.name));
        }
        listing
    };
    notes.extend(survey.finish()?.map(|note| format!("{}: {note}", spec.name)));
    dataset::note_subset(&mut notes, &spec, train.paths.len(), val.paths.len());
    let size = Size::Exact(spec.height as u32, spec.width as u32);
    let [train, test] = cache::splits(&spec, folder, size, [train, val], on_event)?;
    Ok(Dataset { train, test, spec, notes })
}

/// Where the images of a class are.
fn class_folder(split: &Path, id: &str) -> PathBuf {
    let images = split.join(id).join("images");
    if images.is_dir() { images } else { split.join(id) }
}

/// The validation images in class folders: in the order of the annotations where they are there, then by the number in
/// their names.
fn sorted(
    spec: &DatasetSpec,
    val: &Path,
    annotations: &Annotations,
    survey: &mut Survey,
) -> Result<Listing, DataError> {
    let mut unordered = Listing::default();
    for (class, id) in spec.wnids.iter().enumerate() {
        unordered.add(class, &class_folder(val, id), "JPEG images", survey)?;
    }
    let line_of: HashMap<&str, (usize, i64)> =
        annotations.images.iter().enumerate().map(|(at, (name, class))| (name.as_str(), (at, *class))).collect();
    let mut images = Vec::new();
    for (path, label) in unordered.paths.into_iter().zip(unordered.labels) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let line = line_of.get(name.as_str()).copied();
        if let Some((_, class)) = line.filter(|&(_, class)| class != label) {
            let expected = format!("an image of {}, as val_annotations.txt says", spec.wnids[class as usize]);
            return Err(DataError::Layout { path, expected });
        }
        let digits: String = name.chars().filter(char::is_ascii_digit).collect();
        let number = digits.parse::<u64>().unwrap_or(u64::MAX);
        images.push((line.map_or(usize::MAX, |(at, _)| at), number, label, path));
    }
    images.sort();
    let (paths, labels) = images.into_iter().map(|(_, _, label, path)| (path, label)).unzip();
    Ok(Listing { paths, labels })
}

/// The lines of `val_annotations.txt`.
struct Annotations {
    path: PathBuf,
    /// Name and class of each image.
    images: Vec<(String, i64)>,
}

impl Annotations {
    /// They may be missing where `optional`.
    fn read(path: &Path, wnids: &[String], optional: bool) -> Result<Self, DataError> {
        let mut annotations = Self { path: path.to_owned(), images: Vec::new() };
        if optional && !path.exists() {
            return Ok(annotations);
        }
        let text = c2r_files::read_text(path)?;
        let class_of: HashMap<&str, i64> =
            wnids.iter().enumerate().map(|(class, id)| (id.as_str(), class as i64)).collect();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = |expected: &str, found: &str| DataError::Line {
                path: path.to_owned(),
                line: index + 1,
                expected: expected.into(),
                found: format!("`{found}`"),
            };
            let mut fields = line.split('\t');
            let (Some(name), Some(id)) = (fields.next(), fields.next()) else {
                return Err(wrong("a file name, a tab and a class id", line));
            };
            if name.is_empty() || name.contains(['/', '\\']) {
                return Err(wrong("a file name without folders", name));
            }
            let class = *class_of.get(id.trim()).ok_or_else(|| wrong("a class id of wnids.txt", id))?;
            annotations.images.push((name.to_owned(), class));
        }
        Ok(annotations)
    }

    /// The images in `val/images/`, in the order of the lines.
    fn listing(self, val: &Path) -> Result<Listing, DataError> {
        if self.images.is_empty() {
            return Err(DataError::Layout { path: self.path, expected: "a line for each validation image".into() });
        }
        let (paths, labels) =
            self.images.into_iter().map(|(name, class)| (val.join("images").join(name), class)).unzip();
        Ok(Listing { paths, labels })
    }
}

fn read_wnids(path: &Path) -> Result<Vec<String>, DataError> {
    let text = c2r_files::read_text(path)?;
    let mut wnids: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if let Some(line) = wnids.iter().position(|id| id.contains(['/', '\\', '.'])) {
        let (line, found) = (line + 1, format!("`{}`", wnids[line]));
        return Err(DataError::Line { path: path.to_owned(), line, expected: "a class id".into(), found });
    }
    wnids.sort_unstable();
    wnids.dedup();
    if wnids.is_empty() {
        return Err(DataError::Layout { path: path.to_owned(), expected: "a class id on each line".into() });
    }
    Ok(wnids)
}
