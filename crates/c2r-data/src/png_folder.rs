//! A synthetic set as a folder of PNG images, and folders of images that others made.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    path::{Component, Path, PathBuf},
};

use c2r_base::artifact::{self, ArtifactError, TensorFile, tensor_from_bytes};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{
    ClassOrder, DataError, DatasetSpec, SyntheticSet, class_order::class_order, decode, listing::Listing, picture,
    survey::Survey,
};

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
    let mut survey = Survey::new(folder);
    let listed: HashSet<&PathBuf> = paths.iter().collect();
    let mut unlisted = Vec::new();
    for (_, class) in survey.folders(folder)? {
        unlisted.extend(survey.images(&class)?.into_iter().filter(|path| !listed.contains(path)));
    }
    survey.finish()?;
    if let [first, ..] = &unlisted[..] {
        return Err(wrong(format!("{} images are not listed in it, such as {}", unlisted.len(), first.display())));
    }
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

/// A distilled set that is a folder of images.
#[derive(Debug)]
pub struct ClassFolders {
    /// `images`, u8 `[N, C, H, W]`, and `labels`, i64 `[N]`, grouped by class, each class by file name.
    pub file: TensorFile,
    /// By what the folders were matched with the classes.
    pub order: ClassOrder,
    /// Which folders have other names than their classes, and what was not read.
    pub notes: Vec<String>,
}

/// Reads a distilled set that is a folder of images, `folder/CLASS/*.{png,jpg,jpeg}`, all of one size, with the channels of
/// `spec`.
///
/// * `sorted`: where the names of the folders say nothing about the classes, their sorted order is that of the classes.
///
/// # Errors
/// [`DataError`], naming the folder or file: another number of folders than classes, names of folders that say nothing about
/// the classes (or something, and `sorted`), a class without images, images that would be left out or lose something
/// (16 bits, transparency), an image that cannot be decoded, is of another size than the first, or in colour where the
/// dataset is grey.
pub fn read_class_folders(folder: &Path, spec: &DatasetSpec, sorted: bool) -> Result<ClassFolders, DataError> {
    DataError::check_folder(folder)?;
    let mut survey = Survey::new(folder);
    let folders = survey.folders(folder)?;
    let names: Vec<&str> = folders.iter().map(|(name, _)| name.as_str()).collect();
    let (order, class_of) = class_order(&names, spec, sorted)
        .map_err(|reason| DataError::ClassNames { path: folder.to_owned(), reason })?;
    let mut by_class: Vec<&(String, PathBuf)> = vec![&folders[0]; spec.classes.len()];
    for (folder, class) in folders.iter().zip(class_of) {
        by_class[class] = folder;
    }
    let mut listing = Listing::default();
    for (class, (_, folder)) in by_class.iter().enumerate() {
        listing.add(class, folder, "images (png, jpg, jpeg)", &mut survey)?;
    }
    let mut notes: Vec<String> = survey.finish()?.into_iter().collect();
    let renamed = by_class.iter().zip(&spec.classes).filter(|((name, _), class)| name != *class);
    let renamed: Vec<String> = renamed.map(|((name, _), class)| format!("{name} = {class}")).collect();
    if !renamed.is_empty() && matches!(order, ClassOrder::Names | ClassOrder::Sorted) {
        notes.push(format!("classes by folder: {}", renamed.join(", ")));
    }
    let mut file = TensorFile::default();
    file.tensors.insert("images".to_owned(), read_images(&listing.paths, Some(spec.channels))?);
    file.tensors.insert("labels".to_owned(), Tensor::from_slice(&listing.labels));
    Ok(ClassFolders { file, order, notes })
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
        if let Some(what) = decode::loss(&image) {
            let reason = format!(
                "it has {what}, which c2r would drop: save the image without them, or store the set as npz or safetensors"
            );
            return Err(DataError::Image { path: path.clone(), reason });
        }
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
