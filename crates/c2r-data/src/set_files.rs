//! Synthetic sets in files of every format.

use std::path::Path;

use c2r_base::artifact::ArtifactError;

use tch::{Kind, Tensor};

use crate::{
    DataError, SyntheticSet,
    foreign::{FileKind, read_tensors},
    npy, picture, png_folder, torch_write,
};

impl SyntheticSet {
    /// Writes the set as safetensors, whole or not at all; equal sets give equal bytes.
    ///
    /// # Errors
    /// [`DataError::Synthetic`] or [`DataError::Formation`] if the set breaks a rule of its fields,
    /// [`DataError::Artifact`] if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), DataError> {
        Ok(self.to_file()?.write(path)?)
    }

    /// Writes the set as NumPy's `.npz`, whole or not at all: the arrays `images`, `labels` and perhaps `soft_labels`, and
    /// each field of the header as a text without dimensions. Nothing is lost; equal sets give equal bytes.
    ///
    /// # Errors
    /// As [`SyntheticSet::save`].
    pub fn save_npz(&self, path: &Path) -> Result<(), DataError> {
        npy::write_npz(path, &self.to_file()?)
    }

    /// Writes the set as `torch.save` does, in the layout of DC, DSA and DM: `{"data": [[images, labels]]}`, f32 and i64, with the
    /// tensors `mean` and `std` beside it and, where there are any, `soft_labels`. Mosaics stay mosaics; see
    /// [`SyntheticSet::decoded`].
    ///
    /// * `normalized`: mean and standard deviation of each channel; images are then `(pixel - mean) / std`, and these are the
    ///   `mean` and `std` of the file. Otherwise images are pixels in `[0, 1]`, and the header has both.
    ///
    /// # Errors
    /// As [`SyntheticSet::save`]; [`DataError::Import`] if there is not one `mean` and `std` for each channel.
    pub fn save_pt(&self, path: &Path, normalized: Option<(&[f64], &[f64])>) -> Result<(), DataError> {
        let mut tensors = self.to_file()?.tensors;
        let (mean, std) = normalized.unwrap_or((&self.header.mean, &self.header.std));
        let channels = self.images.dim().1;
        if [mean.len(), std.len()] != [channels, channels] {
            let reason = format!("{} values of mean and {} of std for {channels} channels", mean.len(), std.len());
            return Err(DataError::Import(reason));
        }
        let [mean, std] = [mean, std].map(|values| Tensor::from_slice(values).to_kind(Kind::Float));
        let mut images = tensors.remove("images").expect("a set has images");
        if normalized.is_some() {
            let per_channel = |values: &Tensor| values.view([1, -1, 1, 1]);
            images = (images - per_channel(&mean)) / per_channel(&std);
        }
        let mut more = vec![("mean", mean), ("std", std)];
        more.extend(tensors.remove("soft_labels").map(|soft| ("soft_labels", soft)));
        // So that nobody takes them for pixels, or mosaics for images.
        more.extend((self.formation > 1).then(|| ("formation", Tensor::from_slice(&[self.formation]))));
        more.extend(normalized.map(|_| ("normalized", Tensor::from_slice(&[1i64]))));
        torch_write::write_pt(path, [&images, &tensors["labels"]], &more)
    }

    /// Writes the set as a folder of PNG images, whole or not at all: `folder/CLASS/NUMBER.png`, 8 bits per channel, with
    /// the class and the position in the set as numbers, and everything else in `folder/set.json`.
    ///
    /// Nothing is lost where every pixel is a multiple of 1/255. Where one is not, `quantize` must allow rounding; a PNG
    /// of 16 bits could not hold an f32 either. Returns the number of rounded values.
    ///
    /// # Errors
    /// As [`SyntheticSet::save`]; [`DataError::Synthetic`] if pixels would be rounded and `quantize` is false, or an image
    /// has neither 1 nor 3 channels; [`DataError::Artifact`] if `folder` is there and not empty.
    pub fn save_png(&self, folder: &Path, quantize: bool) -> Result<usize, DataError> {
        png_folder::write(self, folder, quantize)
    }

    /// Reads what [`SyntheticSet::save`], [`SyntheticSet::save_npz`] or [`SyntheticSet::save_png`] wrote, onto the CPU.
    ///
    /// # Errors
    /// [`DataError::Artifact`] or another that names the file: it cannot be read, is not a synthetic set, has a tensor
    /// or header field too many or too few, or breaks a rule of the fields (shapes, dtypes, ranges).
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let file = if path.is_dir() { png_folder::read(path)? } else { read_tensors(path)? };
        if !Self::is_header(&file.header) && path.is_file() {
            let kind = match FileKind::of(path)? {
                FileKind::Torch => "a PyTorch file",
                FileKind::Npy | FileKind::Npz => "a NumPy file",
                _ => "a file",
            };
            let name = path.display();
            let reason = format!(
                "the header has no `format` of a set of c2r; if this is {kind} with a set of another program, convert it with \
                 `c2r import {name} --dataset NAME -o set.safetensors`"
            );
            return Err(ArtifactError::format(path, "synthetic set", reason).into());
        }
        Self::from_file(file).map_err(|error| ArtifactError::format(path, "synthetic set", error.to_string()).into())
    }

    /// Whether `folder` is one that [`SyntheticSet::save_png`] wrote.
    pub fn is_png_folder(folder: &Path) -> bool {
        folder.join(png_folder::SET_FILE).is_file()
    }

    /// Writes a picture (PNG): one row per class, images as stored, small ones enlarged without blurring.
    ///
    /// # Errors
    /// [`DataError::Synthetic`] if there is nothing to draw, [`DataError::Artifact`] if the file cannot be
    /// written.
    pub fn grid_png(&self, path: &Path) -> Result<(), DataError> {
        let mut rows = vec![Vec::new(); self.header.classes];
        for (position, &label) in self.labels.iter().enumerate() {
            rows[label as usize].push(position);
        }
        picture::write_grid(path, self.images.view(), &rows)
    }
}
