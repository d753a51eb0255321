//! Which files a split is read from, and the label of each.

use std::path::{Path, PathBuf};

use crate::{
    DataError, Split,
    decode::{self, Size},
    survey::Survey,
};

#[derive(Default)]
pub(crate) struct Listing {
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) labels: Vec<i64>,
}

impl Listing {
    /// Adds the images in `folder`, all of one class, by name; what else is there goes to `survey`.
    ///
    /// # Errors
    /// [`DataError::Layout`] that calls them `expected` if there are none.
    pub(crate) fn add(
        &mut self,
        class: usize,
        folder: &Path,
        expected: &str,
        survey: &mut Survey,
    ) -> Result<(), DataError> {
        let files = survey.images(folder)?;
        // What is there instead is the better thing to say.
        if files.is_empty() && !survey.is_refused() {
            return Err(DataError::Layout { path: folder.to_owned(), expected: expected.to_owned() });
        }
        self.labels.resize(self.labels.len() + files.len(), class as i64);
        self.paths.extend(files);
        Ok(())
    }

    /// Decodes the files into memory; `shape` is `[C, H, W]`. Returns, too, how many images lost something.
    pub(crate) fn read(self, shape: [i64; 3], n_classes: usize, size: Size) -> Result<(Split, usize), DataError> {
        let mut pixels = vec![0; self.paths.len() * shape.iter().product::<i64>() as usize];
        let n_lost = decode::read_into(&self.paths, size, &mut pixels)?;
        Ok((Split::from_bytes(shape, n_classes, pixels, self.labels)?, n_lost))
    }
}
