//! Tiny-ImageNet in the layout of its archive.

use std::{collections::HashMap, fs, path::Path};

use crate::{DataError, Dataset, DatasetSpec, LoadEvent, cache, dataset, decode::Size, listing::Listing};

/// Reads `wnids.txt`, `train/<wnid>/images/` and `val/images/` with `val_annotations.txt` (the published
/// test set has no labels, so the validation images are the test split). Class order is that of the
/// sorted ids.
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
    let mut train = Listing::default();
    for (class, id) in spec.wnids.iter().enumerate() {
        train.add(class, &folder.join("train").join(id).join("images"), "JPEG images")?;
    }
    let annotations = folder.join("val").join("val_annotations.txt");
    let text = fs::read_to_string(&annotations).map_err(DataError::io(&annotations))?;
    let class_of: HashMap<&str, i64> =
        spec.wnids.iter().enumerate().map(|(class, id)| (id.as_str(), class as i64)).collect();
    let mut val = Listing::default();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |expected: &str, found: &str| DataError::Line {
            path: annotations.clone(),
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
        val.labels.push(*class_of.get(id.trim()).ok_or_else(|| wrong("a class id of wnids.txt", id))?);
        val.paths.push(folder.join("val").join("images").join(name));
    }
    if val.paths.is_empty() {
        return Err(DataError::Layout { path: annotations, expected: "a line for each validation image".into() });
    }
    dataset::note_subset(&mut notes, &spec, train.paths.len(), val.paths.len());
    let size = Size::Exact(spec.height as u32, spec.width as u32);
    let [train, test] = cache::splits(&spec, folder, size, [train, val], on_event)?;
    Ok(Dataset { train, test, spec, notes })
}

fn read_wnids(path: &Path) -> Result<Vec<String>, DataError> {
    let text = fs::read_to_string(path).map_err(DataError::io(path))?;
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
