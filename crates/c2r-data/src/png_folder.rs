//! A synthetic set as a folder of PNG images, and folders of images that others made.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Component, Path, PathBuf},
};

use c2r_base::artifact::{self, ArtifactError, TensorFile, tensor_from_bytes};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{DataError, DatasetSpec, SyntheticSet, decode, picture};

/// The file next to the images, with everything that is not a pixel.
pub(crate) const SET_FILE: &str = "set.json";
const SCHEMA_VERSION: u32 = 1;

/// Everything but the pixels.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetFile {
    schema_version: u32,
    /// The header of the safetensors file.
    header: BTreeMap<String, String>,
    /// Image files in the order of the set, from this folder.
    images: Vec<String>,
    /// Class of each.
    labels: Vec<i64>,
    /// `[M * formation^2, K]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    soft_labels: Option<Vec<Vec<f32>>>,
}

/// Writes `folder/CLASS/NUMBER.png` and `folder/set.json`: all of it or nothing.
///
/// `quantize` allows to round pixels to multiples of 1/255; returns how many were rounded.
pub(crate) fn write(set: &SyntheticSet, folder: &Path, quantize: bool) -> Result<usize, DataError> {
    let file = set.to_file()?;
    let (n, c, h, w) = set.images.dim();
    if ![1, 3].contains(&c) {
        return Err(DataError::Png(format!("a PNG has 1 or 3 channels, these images have {c}")));
    }
    let bytes = set.images.mapv(picture::to_byte);
    // As a reader computes it, so that equal means the same bits.
    let differences = || bytes.iter().zip(&set.images).map(|(&byte, pixel)| (f32::from(byte) / 255.0 - pixel).abs());
    let n_rounded = differences().filter(|&difference| difference != 0.0).count();
    if n_rounded > 0 && !quantize {
        let furthest = differences().fold(0.0, f32::max);
        return Err(DataError::Rounds { n_rounded, n: set.images.len(), furthest });
    }
    let exists = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file();
    if exists {
        let exists = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(ArtifactError::io("write", folder)(exists).into());
    }

    let digits = |most: usize| most.saturating_sub(1).to_string().len();
    let (class_digits, image_digits) = (digits(set.header.classes), digits(n));
    let labels = set.labels.to_vec();
    let names: Vec<String> = labels
        .iter()
        .enumerate()
        .map(|(position, label)| format!("{label:0class_digits$}/{position:0image_digits$}.png"))
        .collect();

    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(ArtifactError::io("create folder", parent))?;
    let workshop = tempfile::Builder::new()
        .prefix(".c2r-")
        .tempdir_in(parent)
        .map_err(ArtifactError::io("create folder", parent))?;
    for (name, image) in names.iter().zip(bytes.outer_iter()) {
        let path = workshop.path().join(name);
        let class = path.parent().expect("a name has a class");
        fs::create_dir_all(class).map_err(ArtifactError::io("create folder", class))?;
        let at = |channel: usize, x: u32, y: u32| image[[channel, y as usize, x as usize]];
        let (width, height) = (w as u32, h as u32);
        let saved = if c == 1 {
            image::GrayImage::from_fn(width, height, |x, y| image::Luma([at(0, x, y)])).save(&path)
        } else {
            image::RgbImage::from_fn(width, height, |x, y| image::Rgb([0, 1, 2].map(|channel| at(channel, x, y))))
                .save(&path)
        };
        saved.map_err(|error| ArtifactError::format(&path, "PNG", error.to_string()))?;
    }
    let soft_labels = set.soft_labels.as_ref().map(|soft| soft.outer_iter().map(|row| row.to_vec()).collect());
    let description =
        SetFile { schema_version: SCHEMA_VERSION, header: file.header, images: names, labels, soft_labels };
    artifact::write_json(&workshop.path().join(SET_FILE), &description)?;
    // An empty folder of that name is replaced.
    let _ = fs::remove_dir(folder);
    make_readable(workshop.path()).map_err(ArtifactError::io("write", folder))?;
    fs::rename(workshop.path(), folder).map_err(ArtifactError::io("write", folder))?;
    // The folder has another name already.
    let _ = workshop.keep();
    Ok(n_rounded)
}

/// Temporary folders are private to their owner; results are meant to be shared.
#[cfg(unix)]
fn make_readable(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn make_readable(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Reads what [`write`] wrote.
pub(crate) fn read(folder: &Path) -> Result<TensorFile, DataError> {
    let path = folder.join(SET_FILE);
    let wrong = |reason: String| DataError::from(ArtifactError::format(&path, "synthetic set", reason));
    let set: SetFile = artifact::read_json(&path)?;
    if set.schema_version != SCHEMA_VERSION {
        return Err(wrong(format!("schema_version {}; this c2r reads {SCHEMA_VERSION}", set.schema_version)));
    }
    if set.images.is_empty() || set.images.len() != set.labels.len() {
        return Err(wrong(format!("{} images and {} labels", set.images.len(), set.labels.len())));
    }
    let outside = |name: &&String| !Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if let Some(name) = set.images.iter().find(outside) {
        return Err(wrong(format!("`{name}` is not inside the folder")));
    }
    let paths: Vec<PathBuf> = set.images.iter().map(|name| folder.join(name)).collect();
    let images = read_images(&paths, None)?;
    let mut file = TensorFile { header: set.header, ..TensorFile::default() };
    file.tensors.insert("images".to_owned(), images.to_kind(Kind::Float) / 255.0);
    file.tensors.insert("labels".to_owned(), Tensor::from_slice(&set.labels));
    if let Some(rows) = set.soft_labels {
        let n_columns = rows.first().map_or(0, Vec::len);
        if rows.iter().any(|row| row.len() != n_columns) {
            return Err(wrong("rows of soft labels have different lengths".to_owned()));
        }
        let values: Vec<f32> = rows.concat();
        let soft = Tensor::from_slice(&values).view([rows.len() as i64, n_columns as i64]);
        file.tensors.insert("soft_labels".to_owned(), soft);
    }
    Ok(file)
}

/// How the names of folders say which class is which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassOrder {
    /// Folders are called as the classes.
    Names,
    /// Folders are called as the WordNet ids of the classes.
    Wnids,
    /// Folders are numbered from 0.
    Numbers,
    /// By sorted name, because the names say nothing.
    Sorted,
}

/// Reads a distilled set that is a folder of images, `folder/CLASS/*.{png,jpg,jpeg}`, all of one size.
///
/// Returns the tensors `images`, u8 `[N, C, H, W]` with the channels of `spec`, and `labels`, i64 `[N]`, grouped by class,
/// each class by file name; and by what the folders were matched with the classes of `spec`.
///
/// # Errors
/// [`DataError`], naming the folder or file: another number of folders than classes, no images, an image that cannot be
/// decoded, is of another size than the first, or in colour where the dataset is grey.
pub fn read_class_folders(folder: &Path, spec: &DatasetSpec) -> Result<(TensorFile, ClassOrder), DataError> {
    let folders = decode::folders(folder)?;
    let n_classes = spec.classes.len();
    if folders.len() != n_classes {
        let expected =
            format!("a folder for each of the {n_classes} classes of {}, found {}", spec.name, folders.len());
        return Err(DataError::Layout { path: folder.to_owned(), expected });
    }
    let (order, class_of) = class_order(folders.iter().map(|(name, _)| name.as_str()), spec);
    let mut by_class: Vec<&PathBuf> = vec![&folders[0].1; n_classes];
    for ((_, path), class) in folders.iter().zip(class_of) {
        by_class[class] = path;
    }
    let (mut paths, mut labels) = (Vec::new(), Vec::new());
    for (class, folder) in by_class.into_iter().enumerate() {
        let files = decode::image_files(folder)?;
        labels.resize(labels.len() + files.len(), class as i64);
        paths.extend(files);
    }
    if paths.is_empty() {
        return Err(DataError::Layout { path: folder.to_owned(), expected: "images (png, jpg, jpeg)".to_owned() });
    }
    let mut file = TensorFile::default();
    file.tensors.insert("images".to_owned(), read_images(&paths, Some(spec.channels))?);
    file.tensors.insert("labels".to_owned(), Tensor::from_slice(&labels));
    Ok((file, order))
}

/// The class of each folder, in the order of `names`, which are sorted and as many as there are classes.
pub(crate) fn class_order<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
    spec: &DatasetSpec,
) -> (ClassOrder, Vec<usize>) {
    let number: HashMap<String, usize> = (0..spec.classes.len()).map(|class| (class.to_string(), class)).collect();
    let find = |known: &[String], name: &str| known.iter().position(|other| other == name);
    let by_number = |name: &str| {
        let digits = name.trim_start_matches('0');
        number.get(if digits.is_empty() && !name.is_empty() { "0" } else { digits }).copied()
    };
    let of = |class_of: &dyn Fn(&str) -> Option<usize>| -> Option<Vec<usize>> {
        let classes: Vec<usize> = names.clone().map(class_of).collect::<Option<_>>()?;
        let mut seen = vec![false; spec.classes.len()];
        classes.iter().all(|&class| !std::mem::replace(&mut seen[class], true)).then_some(classes)
    };
    if let Some(classes) = of(&|name| find(&spec.classes, name)) {
        (ClassOrder::Names, classes)
    } else if let Some(classes) = of(&|name| find(&spec.wnids, name)) {
        (ClassOrder::Wnids, classes)
    } else if let Some(classes) = of(&by_number) {
        (ClassOrder::Numbers, classes)
    } else {
        (ClassOrder::Sorted, (0..names.count()).collect())
    }
}

/// u8 `[N, C, H, W]`; `channels` is that of the first image unless given.
fn read_images(paths: &[PathBuf], channels: Option<i64>) -> Result<Tensor, DataError> {
    let first = decode::read(&paths[0])?;
    let channels = channels.unwrap_or(if first.color().has_color() { 3 } else { 1 });
    let (w, h) = (first.width(), first.height());
    let plane = w as usize * h as usize;
    let mut pixels = Vec::new();
    for path in paths {
        let image = decode::read_sized(path, (h, w))?;
        if channels == 1 && image.color().has_color() {
            let reason = "it is in colour; the dataset is grey".to_owned();
            return Err(DataError::Image { path: path.clone(), reason });
        }
        if channels == 1 {
            pixels.extend_from_slice(image.to_luma8().as_raw());
        } else {
            let rgb = image.to_rgb8();
            for channel in 0..3 {
                pixels.extend(rgb.pixels().map(|pixel| pixel.0[channel]));
            }
        }
    }
    let channels = if channels == 1 { 1 } else { 3 };
    debug_assert_eq!(pixels.len(), paths.len() * channels * plane);
    let shape = [paths.len(), channels, h as usize, w as usize];
    tensor_from_bytes(&pixels, &shape, Kind::Uint8).map_err(DataError::Synthetic)
}
