//! One folder of images per class: any image folder, ILSVRC-2012 and the fast.ai archives.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use c2r_files::path_to_text;

use crate::{
    DataError, Dataset, DatasetSpec, LoadEvent, cache,
    decode::{self, Size},
    in_memory::moments,
    listing::Listing,
    registry::unlisted_spec,
    survey::Survey,
};

/// Refuses a height and width that no image has.
fn check_size(path: &Path, size: Option<(u32, u32)>) -> Result<(), DataError> {
    let Some((h, w)) = size else { return Ok(()) };
    let bytes = 3 * u128::from(h) * u128::from(w);
    let reason = if bytes == 0 {
        format!("images of {h}x{w} have no pixels; height and width are at least 1")
    } else if bytes > u128::from(decode::MOST_BYTES) {
        format!("images of {h}x{w} have {bytes} bytes each, more than c2r takes ({})", decode::MOST_BYTES)
    } else {
        return Ok(());
    };
    Err(DataError::Size { name: format!("folder:{}", path_to_text(path)), reason })
}

/// Reads a folder of images: `train/<class>/*.{jpg,jpeg,png}` and `test/<class>/...` or `val/<class>/...`.
///
/// * `size`: height and width to resize every image to (without keeping the aspect ratio); `None` takes the
///   size of the first training image and demands it of all others. Both are at least 1, and an image has at most 512 MiB.
///
/// Class order is that of the sorted folder names of `train/`. Images have 3 channels; grey ones become
/// RGB. `mean` and `std` are computed from the training images; a channel that never varies gets a `std` of 1 and a note.
///
/// # Errors
/// [`DataError`]: `size` is 0 or too large; a folder is missing or empty; an image cannot be decoded or has another size; the test
/// split has a class that the training split has not; there are images of other types, links to nothing or folders
/// among the images, which would be left out. The message names the path.
pub fn load_folder(path: &Path, size: Option<(u32, u32)>) -> Result<Dataset, DataError> {
    check_size(path, size)?;
    let expected = "`train/CLASS/*.{jpg,jpeg,png}` and `test/CLASS/...` or `val/CLASS/...`";
    DataError::check_folder(path)?;
    let missing = || DataError::Layout { path: path.to_owned(), expected: expected.into() };
    let train_folder = path.join("train");
    let test_folder = ["test", "val"].map(|name| path.join(name)).into_iter().find(|folder| folder.is_dir());
    let test_folder = test_folder.filter(|_| train_folder.is_dir()).ok_or_else(missing)?;
    let mut survey = Survey::new(path);
    survey.beside(path, &[&train_folder, &test_folder])?;
    let (train_folders, test_folders) = (survey.folders(&train_folder)?, survey.folders(&test_folder)?);
    let classes: Vec<String> = train_folders.iter().map(|(name, _)| name.clone()).collect();
    let class_of: HashMap<&str, usize> =
        classes.iter().enumerate().map(|(class, name)| (name.as_str(), class)).collect();
    let mut list = |split: &Path, folders: Vec<(String, PathBuf)>| -> Result<Listing, DataError> {
        let mut listing = Listing::default();
        for (name, folder) in folders {
            let class = *class_of.get(name.as_str()).ok_or_else(|| DataError::Layout {
                path: folder.clone(),
                expected: format!("a class that is in {} too", train_folder.display()),
            })?;
            listing.add(class, &folder, "images (jpg, jpeg, png)", &mut survey)?;
        }
        if listing.paths.is_empty() && !survey.is_refused() {
            return Err(DataError::Layout { path: split.to_owned(), expected: "a folder for each class".into() });
        }
        Ok(listing)
    };
    let train = list(&train_folder, train_folders)?;
    let test = list(&test_folder, test_folders)?;
    let mut notes: Vec<String> =
        survey.finish()?.map(|note| format!("{}: {note}", path.display())).into_iter().collect();
    let size = match size {
        Some((h, w)) => Size::Resize(h, w),
        None => {
            let first = decode::read(&train.paths[0])?;
            Size::Exact(first.height(), first.width())
        }
    };
    let (Size::Exact(h, w) | Size::Resize(h, w)) = size;
    let shape = [3, i64::from(h), i64::from(w)];
    let [train, test] = [train, test].map(|listing| listing.read(shape, classes.len(), size));
    let ((train, lost_train), (test, lost_test)) = (train?, test?);
    if lost_train + lost_test > 0 {
        let n = lost_train + lost_test;
        notes.push(format!("{}: {n} images lost transparent pixels or 16 bits per channel", path.display()));
    }
    let name = format!("folder:{}", path_to_text(path));
    let title = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (mean, std) = moments(&train);
    let mut spec = unlisted_spec(name, title, shape, classes, (mean, std.clone()));
    (spec.n_train, spec.n_test) = (Some(train.len()), Some(test.len()));
    for (channel, name) in ["red", "green", "blue"].into_iter().enumerate().filter(|&(at, _)| std[at] == 0.0) {
        let value = (255.0 * spec.mean[channel]).round();
        notes.push(format!(
            "{}: channel {channel} ({name}) is {value} in every training image; it is divided by 1 to normalize it",
            path.display()
        ));
        spec.std[channel] = 1.0;
    }
    Ok(Dataset { spec, train, test, notes })
}

/// Reads the ten classes of an ImageNet subset from an ILSVRC-2012 folder or a fast.ai archive:
/// `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`, or a flat `val/` with the label file
/// `LOC_val_solution.csv` beside or above it. Images are resized to the size of `spec`, as in the field
/// (MTT, DD-RobustBench).
pub(crate) fn load_imagenet_subset(
    spec: DatasetSpec,
    folder: &Path,
    on_event: &mut dyn FnMut(LoadEvent),
) -> Result<Dataset, DataError> {
    let size = Size::Resize(spec.height as u32, spec.width as u32);
    let mut survey = Survey::new(folder);
    let mut per_class = |split: &Path| -> Result<Listing, DataError> {
        let mut listing = Listing::default();
        for (class, id) in spec.wnids.iter().enumerate() {
            listing.add(class, &split.join(id), "JPEG images", &mut survey)?;
        }
        Ok(listing)
    };
    let train = per_class(&folder.join("train"))?;
    let val = folder.join("val");
    let solution = ["LOC_val_solution.csv", "val/LOC_val_solution.csv"].map(|name| folder.join(name));
    let test = match solution.into_iter().find(|path| path.is_file()) {
        Some(labels) if !val.join(&spec.wnids[0]).is_dir() => flat_validation(&spec, &val, &labels)?,
        _ => per_class(&val)?,
    };
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    // The two split training and test differently, so results on one do not compare with results on the other.
    let source = if spec.files.iter().any(|file| file.folder == name) { "fast.ai" } else { "ILSVRC-2012" };
    let mut notes = vec![format!(
        "{} from {source} ({name}/): {} training and {} test images",
        spec.name,
        train.paths.len(),
        test.paths.len()
    )];
    notes.extend(survey.finish()?.map(|note| format!("{}: {note}", spec.name)));
    let [train, test] = cache::splits(&spec, folder, size, [train, test], on_event)?;
    Ok(Dataset { train, test, spec, notes })
}

/// The validation images of the subset's classes: lines `ILSVRC2012_val_00048981,n03995372 85 1 499 272`.
fn flat_validation(spec: &DatasetSpec, val: &Path, solution: &Path) -> Result<Listing, DataError> {
    let text = c2r_files::read_text(solution)?;
    let mut listing = Listing::default();
    for (index, line) in text.lines().enumerate().skip(1).filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = || DataError::Line {
            path: solution.to_owned(),
            line: index + 1,
            expected: "an image name, a comma and a class id".into(),
            found: format!("`{line}`"),
        };
        let (name, rest) = line.split_once(',').ok_or_else(wrong)?;
        let id = rest.split_whitespace().next().ok_or_else(wrong)?;
        if name.is_empty() || name.contains(['/', '\\']) {
            return Err(wrong());
        }
        if let Some(class) = spec.wnids.iter().position(|wnid| wnid == id) {
            listing.paths.push(val.join(format!("{name}.JPEG")));
            listing.labels.push(class as i64);
        }
    }
    if listing.paths.is_empty() {
        let expected = format!("validation images of the classes of {}", spec.name);
        return Err(DataError::Layout { path: solution.to_owned(), expected });
    }
    Ok(listing)
}
