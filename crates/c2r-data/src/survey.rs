//! What the folders of a dataset or of a set hold: nothing is left out in silence.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use c2r_files::path_to_text;

use crate::DataError;

/// Endings of image files that are read.
const READ: [&str; 3] = ["jpg", "jpeg", "png"];
/// Endings of image files that are not read, as Pillow knows them.
const NOT_READ: [&str; 22] = [
    "apng", "avif", "bmp", "dib", "gif", "heic", "heif", "ico", "j2k", "jfif", "jp2", "jpe", "jxl", "pbm", "pgm",
    "ppm", "qoi", "svg", "tga", "tif", "tiff", "webp",
];
/// What is named of many.
const EXAMPLES: usize = 3;

/// Collects what is found beside the images.
pub(crate) struct Survey {
    root: PathBuf,
    /// Images of other types.
    images: Vec<PathBuf>,
    /// Links to nothing.
    dangling: Vec<PathBuf>,
    /// Folders in folders of images.
    folders: Vec<PathBuf>,
    /// What may be left out: hidden files, texts.
    others: Vec<PathBuf>,
}

impl Survey {
    /// Of what lies in `root`, from which paths are given.
    pub(crate) fn new(root: &Path) -> Self {
        let nothing = Vec::new;
        Self { root: root.to_owned(), images: nothing(), dangling: nothing(), folders: nothing(), others: nothing() }
    }

    /// The folders in a folder that are not hidden, with their names, by name. No two names are the same text.
    pub(crate) fn folders(&mut self, folder: &Path) -> Result<Vec<(String, PathBuf)>, DataError> {
        let mut folders = Vec::new();
        for entry in entries(folder)? {
            match entry.kind {
                // Empty or not, it stands for a class.
                Kind::Folder | Kind::EmptyFolder => {
                    let name = path_to_text(entry.path.file_name().unwrap_or_default()).into_owned();
                    if folders.iter().any(|(other, _)| *other == name) {
                        let expected =
                            format!("another name than `{name}`, because a second folder is written in the same way");
                        return Err(DataError::Layout { path: entry.path, expected });
                    }
                    folders.push((name, entry.path));
                }
                Kind::Dangling => self.dangling.push(entry.path),
                Kind::Image | Kind::OtherImage | Kind::Other => self.others.push(entry.path),
            }
        }
        Ok(folders)
    }

    /// Notes what is in a folder beside the folders `used`; hidden entries there are nobody's data.
    pub(crate) fn beside(&mut self, folder: &Path, used: &[&Path]) -> Result<(), DataError> {
        let is_hidden = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let paths = entries(folder)?.into_iter().map(|entry| entry.path);
        self.others.extend(paths.filter(|path| !is_hidden(path) && !used.contains(&path.as_path())));
        Ok(())
    }

    /// The image files in a folder of images, by name, without those that are hidden.
    pub(crate) fn images(&mut self, folder: &Path) -> Result<Vec<PathBuf>, DataError> {
        let mut images = Vec::new();
        for entry in entries(folder)? {
            let list = match entry.kind {
                Kind::Image => &mut images,
                Kind::OtherImage => &mut self.images,
                Kind::Dangling => &mut self.dangling,
                Kind::Folder => &mut self.folders,
                Kind::Other | Kind::EmptyFolder => &mut self.others,
            };
            list.push(entry.path);
        }
        Ok(images)
    }

    /// Whether something was found that must not be left out.
    pub(crate) fn is_refused(&self) -> bool {
        [&self.images, &self.dangling, &self.folders].iter().any(|list| !list.is_empty())
    }

    /// What was left out, in words; `None` for nothing.
    ///
    /// # Errors
    /// [`DataError::LeftOut`] if there is an image of another type, a link to nothing, or a folder among images.
    pub(crate) fn finish(self) -> Result<Option<String>, DataError> {
        let mut found = Vec::new();
        for (list, one, many) in [
            (&self.images, "image that c2r does not read", "images that c2r does not read"),
            (&self.dangling, "link to nothing", "links to nothing"),
            (&self.folders, "folder inside a folder of images", "folders inside folders of images"),
        ] {
            if !list.is_empty() {
                let what = if list.len() == 1 { one } else { many };
                found.push(format!("{} {what} ({})", list.len(), self.examples(list)));
            }
        }
        if !found.is_empty() {
            return Err(DataError::LeftOut { path: self.root, found: found.join(", ") });
        }
        let n = self.others.len();
        let files = if n == 1 { "other file was" } else { "other files were" };
        Ok((n > 0).then(|| format!("{n} {files} not read ({})", self.examples(&self.others))))
    }

    fn examples(&self, list: &[PathBuf]) -> String {
        let name = |path: &PathBuf| path.strip_prefix(&self.root).unwrap_or(path).display().to_string();
        let mut names: Vec<String> = list.iter().take(EXAMPLES).map(name).collect();
        if list.len() > EXAMPLES {
            names.push("...".to_owned());
        }
        names.join(", ")
    }
}

enum Kind {
    Folder,
    EmptyFolder,
    Image,
    OtherImage,
    Dangling,
    /// Hidden, or neither folder nor image.
    Other,
}

struct Entry {
    path: PathBuf,
    kind: Kind,
}

/// The entries of a folder, by name.
fn entries(folder: &Path) -> Result<Vec<Entry>, DataError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(DataError::io(folder))? {
        let entry = entry.map_err(DataError::io(folder))?;
        let path = entry.path();
        let kind = if entry.file_name().to_string_lossy().starts_with('.') {
            Kind::Other
        } else {
            match fs::metadata(&path) {
                Err(_) if path.is_symlink() => Kind::Dangling,
                Err(error) => return Err(DataError::io(&path)(error)),
                Ok(data) if data.is_dir() => of_folder(&path)?,
                Ok(data) if data.is_file() => of_file(&path),
                Ok(_) => Kind::Other,
            }
        };
        found.push(Entry { path, kind });
    }
    found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// An empty folder is nothing to read.
fn of_folder(path: &Path) -> Result<Kind, DataError> {
    let is_empty = fs::read_dir(path).map_err(DataError::io(path))?.next().is_none();
    Ok(if is_empty { Kind::EmptyFolder } else { Kind::Folder })
}

/// By its name, or by its first bytes where the name says nothing.
fn of_file(path: &Path) -> Kind {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    match extension.as_deref() {
        Some(extension) if READ.contains(&extension) => Kind::Image,
        Some(extension) if NOT_READ.contains(&extension) => Kind::OtherImage,
        _ => {
            let mut start = Vec::new();
            let read = File::open(path).and_then(|file| file.take(32).read_to_end(&mut start));
            if read.is_ok() && image::guess_format(&start).is_ok() { Kind::OtherImage } else { Kind::Other }
        }
    }
}
