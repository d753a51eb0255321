//! Files of others: what they are, and their tensors.

use std::{io::Read, path::Path};

use c2r_archive::{Limits, ZipReader};
use c2r_base::artifact::{ArtifactError, TensorFile};
use c2r_files::open;

use crate::{DataError, npy, torch_save};

/// What a file is, judged by its first bytes and, in a zip, by its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// Named tensors with a header.
    Safetensors,
    /// One array of NumPy.
    Npy,
    /// Named arrays of NumPy.
    Npz,
    /// `torch.save` of torch 1.6 or later.
    Torch,
    /// `torch.jit.save`: a program, not data.
    TorchScript,
    /// A zip of something else.
    Zip,
    /// A bare pickle: `torch.save` before torch 1.6, or anything of Python.
    Pickle,
    /// Starts as JSON does.
    Json,
    /// PNG.
    Png,
    /// JPEG.
    Jpeg,
    /// No byte at all.
    Empty,
    /// Nothing that c2r knows.
    Other,
}

fn open_zip(path: &Path) -> Result<ZipReader, DataError> {
    ZipReader::open(path, Limits::ARRAYS).map_err(DataError::zip(path))
}

/// How a file of `torch.save` before torch 1.6 begins: with a number that stands for its format.
const LEGACY: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.";
/// How to convert it.
const CONVERT_LEGACY: &str = "if you trust it, convert it: python3 -c \"import torch; torch.save(torch.load('IN.pt', \
    map_location='cpu', weights_only=True), 'OUT.pt')\"";
/// How to convert any other pickle, of a dictionary or of one array.
const CONVERT_PICKLE: &str = "if you trust it, convert it: python3 -c \"import pickle, numpy as np; d = \
    pickle.load(open('IN.pkl', 'rb')); np.savez('OUT.npz', **(d if isinstance(d, dict) else {'array': d}))\"";

/// What is wrong with [`FileKind::Empty`].
const EMPTY: &str = "it is empty (0 bytes), perhaps because writing or copying it was cut short; make or copy it again";

impl FileKind {
    /// Looks at `path`.
    ///
    /// # Errors
    /// [`DataError::Io`] if it cannot be read, [`DataError::Artifact`] if it is a zip that is cut short.
    pub fn of(path: &Path) -> Result<Self, DataError> {
        let mut start = Vec::new();
        open(path)?.take(16).read_to_end(&mut start).map_err(DataError::io(path))?;
        let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&start);
        let first_text = text.iter().find(|byte| !byte.is_ascii_whitespace());
        Ok(match &start[..] {
            [] => Self::Empty,
            [b'P', b'K', ..] => Self::of_zip(&open_zip(path)?),
            [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => Self::Npy,
            [0x89, b'P', b'N', b'G', ..] => Self::Png,
            [0xff, 0xd8, ..] => Self::Jpeg,
            [0x80, 2..=5, ..] if start.get(8) != Some(&b'{') => Self::Pickle,
            _ if first_text == Some(&b'{') => Self::Json,
            _ if start.get(8) == Some(&b'{') => Self::Safetensors,
            _ => Self::Other,
        })
    }

    fn of_zip(archive: &ZipReader) -> Self {
        let inside =
            |name: &str| archive.names().any(|member| member.split_once('/').is_some_and(|(_, end)| end == name));
        if inside("constants.pkl") {
            Self::TorchScript
        } else if inside("data.pkl") {
            Self::Torch
        } else if archive.names().any(|name| name.ends_with(".npy")) {
            Self::Npz
        } else {
            Self::Zip
        }
    }
}

/// The tensors of a safetensors, `.npy`, `.npz` or `torch.save` file, on the CPU, with the texts beside them.
///
/// Names are those of the file; in a `torch.save` file they say where a tensor is, e.g. `data[0][1]`, or `tensor` where
/// it is the whole file, and the array of a `.npy` is `array`. Nothing in a file is executed: pickles are read as
/// data, and one that names a function other than those that make tensors of torch and arrays of NumPy is refused.
///
/// # Errors
/// [`DataError::Io`] or [`DataError::Artifact`], naming the file, the place in it and what was expected.
pub fn read_tensors(path: &Path) -> Result<TensorFile, DataError> {
    let wrong = |format, reason: &str| Err(ArtifactError::format(path, format, reason).into());
    match FileKind::of(path)? {
        FileKind::Safetensors => Ok(TensorFile::read(path)?),
        FileKind::Npy => npy::read_npy(path),
        FileKind::Npz => npy::read_npz(path),
        FileKind::Torch => {
            let mut archive = open_zip(path)?;
            let prefix = archive.names().find_map(|name| name.strip_suffix("/data.pkl").filter(|p| !p.contains('/')));
            let prefix = prefix.expect("the kind was told by it").to_owned();
            torch_save::read(path, &mut archive, &prefix)
        }
        FileKind::TorchScript => wrong("torch.save", "it is a TorchScript model, not tensors"),
        FileKind::Pickle => {
            let mut start = Vec::new();
            let file = open(path)?;
            file.take(LEGACY.len() as u64).read_to_end(&mut start).map_err(DataError::io(path))?;
            let (what, convert) = if start == LEGACY {
                ("as torch before 1.6 wrote it", CONVERT_LEGACY)
            } else {
                ("as Python writes it", CONVERT_PICKLE)
            };
            wrong("tensor", &format!("it is a plain pickle, {what}, which c2r does not read; {convert}"))
        }
        FileKind::Empty => wrong("tensor", EMPTY),
        FileKind::Zip | FileKind::Json | FileKind::Png | FileKind::Jpeg | FileKind::Other => {
            wrong("tensor", "it is neither safetensors, nor .npy or .npz, nor written by torch.save")
        }
    }
}
