//! Writes files of `torch.save`.

use std::path::Path;

use c2r_base::artifact::{ArtifactError, write_atomically};
use tch::{Kind, Tensor};

use crate::{DataError, stored_zip::stored};

/// The folder in the zip.
const ROOT: &str = "archive";

/// Writes `{"data": [[images, labels]], NAME: tensor, ...}`, which `torch.load` reads with `weights_only=True`.
///
/// # Panics
/// If a tensor is neither f32 nor i64.
pub(crate) fn write_pt(path: &Path, data: [&Tensor; 2], more: &[(&str, Tensor)]) -> Result<(), DataError> {
    let mut pickle = Pickle::default();
    // Protocol 2, and an empty dictionary.
    pickle.code.extend(b"\x80\x02}");
    pickle.text("data");
    // A list of a list of the two.
    pickle.code.extend(b"]](");
    data.iter().for_each(|tensor| pickle.tensor(tensor));
    pickle.code.extend(b"eas");
    for (name, tensor) in more {
        pickle.text(name);
        pickle.tensor(tensor);
        pickle.code.push(b's');
    }
    pickle.code.push(b'.');
    let mut entries = vec![("data.pkl".to_owned(), pickle.code), ("byteorder".to_owned(), b"little".to_vec())];
    entries.extend((0..).zip(pickle.storages).map(|(key, bytes): (usize, _)| (format!("data/{key}"), bytes)));
    entries.push(("version".to_owned(), b"3\n".to_vec()));
    let bytes = stored(entries.into_iter().map(|(name, bytes)| (format!("{ROOT}/{name}"), bytes)))
        .map_err(|error| ArtifactError::format(path, "torch.save", error.to_string()))?;
    Ok(write_atomically(path, &bytes)?)
}

/// Instructions of a pickle, and the storages that they name.
#[derive(Default)]
struct Pickle {
    code: Vec<u8>,
    storages: Vec<Vec<u8>>,
}

impl Pickle {
    fn text(&mut self, text: &str) {
        self.code.push(b'X');
        self.code.extend((text.len() as u32).to_le_bytes());
        self.code.extend(text.as_bytes());
    }

    fn number(&mut self, number: i64) {
        self.code.extend(b"\x8a\x08");
        self.code.extend(number.to_le_bytes());
    }

    fn tuple(&mut self, numbers: &[i64]) {
        self.code.push(b'(');
        numbers.iter().for_each(|&number| self.number(number));
        self.code.push(b't');
    }

    /// A call of `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`.
    fn tensor(&mut self, tensor: &Tensor) {
        let tensor = tensor.detach().to_device(tch::Device::Cpu).contiguous();
        let storage = match tensor.kind() {
            Kind::Float => "FloatStorage",
            Kind::Int64 => "LongStorage",
            other => panic!("dtype {other:?}, which c2r never stores"),
        };
        let mut bytes = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        self.code.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage");
        self.code.extend(format!("ctorch\n{storage}\n").as_bytes());
        self.text(&self.storages.len().to_string());
        self.text("cpu");
        self.number(tensor.numel() as i64);
        self.code.extend(b"tQ");
        self.number(0);
        self.tuple(&tensor.size());
        self.tuple(&tensor.stride());
        // False, and an empty OrderedDict.
        self.code.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        self.storages.push(bytes);
    }
}
