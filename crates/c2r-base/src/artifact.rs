//! Tensors in safetensors files, with texts that explain them.

use std::{collections::BTreeMap, path::Path};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::{Kind, Tensor};

pub use c2r_files::{
    FileError as ArtifactError, read_json, remove_parts, sha256_hex, sha256_of_file, write_atomically, write_json,
};

/// What safetensors calls the dtypes of libtorch, with their width in bytes.
const KINDS: [(Dtype, Kind, usize); 9] = [
    (Dtype::U8, Kind::Uint8, 1),
    (Dtype::I8, Kind::Int8, 1),
    (Dtype::I16, Kind::Int16, 2),
    (Dtype::I32, Kind::Int, 4),
    (Dtype::I64, Kind::Int64, 8),
    (Dtype::F16, Kind::Half, 2),
    (Dtype::BF16, Kind::BFloat16, 2),
    (Dtype::F32, Kind::Float, 4),
    (Dtype::F64, Kind::Double, 8),
];

/// The most dimensions of a tensor in a file: libtorch panics at more than 64, and no network or image has more than a few.
pub const MOST_DIMENSIONS: usize = 16;

/// A tensor on the CPU from its little-endian values in row-major order.
///
/// # Errors
/// In words, if `shape` has more than [`MOST_DIMENSIONS`], or does not have exactly as many values of `kind` as `bytes` holds:
/// libtorch would read past the end.
pub fn tensor_from_bytes(bytes: &[u8], shape: &[usize], kind: Kind) -> Result<Tensor, String> {
    if shape.len() > MOST_DIMENSIONS {
        return Err(format!("it has {} dimensions; c2r reads tensors with up to {MOST_DIMENSIONS}", shape.len()));
    }
    let width = kind.elt_size_in_bytes();
    let expected = shape.iter().try_fold(width, |product, &length| product.checked_mul(length));
    if expected != Some(bytes.len()) {
        let length = bytes.len();
        return Err(format!("shape {shape:?} of {kind:?} ({width} bytes each) does not have {length} bytes"));
    }
    let size = shape.iter().map(|&length| i64::try_from(length)).collect::<Result<Vec<i64>, _>>();
    let size = size.map_err(|_| format!("shape {shape:?} has a side that is too long"))?;
    Tensor::f_from_data_size(bytes, &size, kind).map_err(|error| first_line(&error.to_string()))
}

/// libtorch appends its C++ stack, which helps nobody here.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Named tensors with a header of named texts: the contents of a safetensors file.
#[derive(Debug, Default)]
pub struct TensorFile {
    /// Free-form texts, sorted by name.
    pub header: BTreeMap<String, String>,
    /// Tensors on the CPU, sorted by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Tensors of a file whose dtype c2r does not read, such as masks of BOOL: dtype and shape, sorted by name. They are
    /// not written.
    pub unread: BTreeMap<String, String>,
}

impl TensorFile {
    /// Reads a safetensors file.
    ///
    /// # Errors
    /// [`ArtifactError::Io`] if the file cannot be read, [`ArtifactError::Format`] if it is cut short or not safetensors.
    /// A tensor of a dtype other than u8, i8, i16, i32, i64, f16, bf16, f32, f64 is not an error but listed in
    /// [`TensorFile::unread`].
    pub fn read(path: &Path) -> Result<Self, ArtifactError> {
        let bytes = c2r_files::read(path)?;
        let wrong = |reason: String| ArtifactError::format(path, "safetensors", reason);
        let (_, metadata) = SafeTensors::read_metadata(&bytes)
            .map_err(|error| wrong(format!("{error} (the file has {} bytes)", bytes.len())))?;
        let header = metadata.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        let parsed = SafeTensors::deserialize(&bytes)
            .map_err(|error| wrong(format!("{error} (the file has {} bytes)", bytes.len())))?;
        let (mut tensors, mut unread) = (BTreeMap::new(), BTreeMap::new());
        for (name, view) in parsed.tensors() {
            let Some((_, kind, _)) = KINDS.into_iter().find(|(dtype, ..)| *dtype == view.dtype()) else {
                unread.insert(name.clone(), format!("{:?} {:?}", view.dtype(), view.shape()));
                continue;
            };
            let tensor = tensor_from_bytes(view.data(), view.shape(), kind);
            tensors.insert(name.clone(), tensor.map_err(|error| wrong(format!("tensor `{name}`: {error}")))?);
        }
        Ok(Self { header, tensors, unread })
    }

    /// What a file has instead of a tensor that is not among those read, in words for an error.
    pub fn instead_of(&self, wanted: &str) -> String {
        if let Some(dtype) = self.unread.get(wanted) {
            let known = KINDS.map(|(dtype, ..)| format!("{dtype:?}")).join(", ");
            return format!("tensor `{wanted}` has dtype {dtype}; c2r reads {known}");
        }
        let names: Vec<&str> = self.tensors.keys().chain(self.unread.keys()).map(String::as_str).collect();
        format!("no tensor `{wanted}`; it has: {}", names.join(", "))
    }

    /// The bytes of the safetensors file; equal contents give equal bytes.
    ///
    /// # Panics
    /// If a tensor has a dtype that [`TensorFile::read`] does not read.
    pub fn to_bytes(&self) -> Vec<u8> {
        let raw: Vec<(&String, Dtype, Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, tensor)| {
                let tensor = tensor.detach().to_device(tch::Device::Cpu).contiguous();
                let (dtype, _, width) = KINDS
                    .into_iter()
                    .find(|(_, kind, _)| *kind == tensor.kind())
                    .unwrap_or_else(|| panic!("tensor `{name}` has dtype {:?}, which c2r never stores", tensor.kind()));
                let mut bytes = vec![0u8; tensor.numel() * width];
                tensor.copy_data_u8(&mut bytes, tensor.numel());
                (name, dtype, tensor.size().iter().map(|&length| length as usize).collect(), bytes)
            })
            .collect();
        let views = raw.iter().map(|(name, dtype, shape, bytes)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).expect("length was computed from the shape"))
        });
        let header = self.header.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        // safetensors 0.6 writes an empty map of texts as broken JSON if there is no tensor either.
        let header = Some(header).filter(|_| !self.header.is_empty());
        let bytes = safetensors::serialize(views, header).expect("views are valid");
        sort_header(bytes)
    }

    /// Writes the file atomically.
    ///
    /// # Errors
    /// [`ArtifactError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), ArtifactError> {
        write_atomically(path, &self.to_bytes())
    }
}

/// safetensors keeps the texts of its header in a `HashMap`, so their order differs from run to run;
/// this writes the JSON header again with sorted keys and the same length of padding.
fn sort_header(bytes: Vec<u8>) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let (head, data) = bytes[8..].split_at(length);
    let parsed: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(head).expect("safetensors wrote this header");
    let sorted: BTreeMap<String, serde_json::Value> = parsed
        .into_iter()
        .map(|(key, value)| match (key.as_str(), value) {
            ("__metadata__", serde_json::Value::Object(texts)) => {
                let texts: BTreeMap<_, _> = texts.into_iter().collect();
                (key, serde_json::to_value(texts).expect("texts"))
            }
            (_, value) => (key, value),
        })
        .collect();
    let mut head = serde_json::to_vec(&sorted).expect("a map of JSON values");
    head.resize(head.len().next_multiple_of(8), b' ');
    let mut out = (head.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(&head);
    out.extend_from_slice(data);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> TensorFile {
        let mut file = TensorFile::default();
        file.header.insert("schema_version".into(), "1".into());
        for name in ["b", "a", "c", "d"] {
            file.header.insert(name.into(), name.to_uppercase());
        }
        file.tensors.insert("x".into(), Tensor::from_slice(&[1.5f32, -2.0]).view([1, 2]));
        file.tensors.insert("y".into(), Tensor::from_slice(&[7i64]));
        file
    }

    #[test]
    fn round_trip_and_equal_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/file.safetensors");
        example().write(&path).unwrap();
        let back = TensorFile::read(&path).unwrap();
        assert_eq!(back.header, example().header);
        assert_eq!(back.tensors["x"].size(), [1, 2]);
        assert_eq!(back.tensors["x"].double_value(&[0, 1]), -2.0);
        assert_eq!(back.tensors["y"].int64_value(&[0]), 7);
        assert_eq!(example().to_bytes(), example().to_bytes());
    }

    #[test]
    fn an_empty_file_is_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty.safetensors");
        TensorFile::default().write(&path).unwrap();
        let back = TensorFile::read(&path).unwrap();
        assert!(back.header.is_empty() && back.tensors.is_empty());
    }

    /// Written by Python: `torch.save_file({"x": torch.tensor([2.5]), "m": torch.tensor([True, False]), "f":
    /// torch.tensor([1.0]).to(torch.float8_e4m3fn)})`, with the header in short.
    #[test]
    fn other_dtypes_beside_the_wanted_ones_are_listed_and_not_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.safetensors");
        let header = br#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"f":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[4,5]},"m":{"dtype":"BOOL","shape":[2],"data_offsets":[5,7]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(&[0, 0, 0x20, 0x40, 0x38, 1, 0]);
        std::fs::write(&path, bytes).unwrap();
        let file = TensorFile::read(&path).unwrap();
        assert_eq!(file.tensors["x"].double_value(&[0]), 2.5);
        assert_eq!(
            file.unread,
            [("f", "F8_E4M3 [1]"), ("m", "BOOL [2]")].map(|(a, b)| (a.to_owned(), b.to_owned())).into()
        );
        assert!(file.instead_of("m").contains("`m` has dtype BOOL [2]; c2r reads U8"), "{}", file.instead_of("m"));
        assert_eq!(file.instead_of("y"), "no tensor `y`; it has: x, f, m");
    }

    #[test]
    fn more_dimensions_than_libtorch_has_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep.safetensors");
        for n in [MOST_DIMENSIONS, MOST_DIMENSIONS + 1, 65, 1000] {
            let shape = vec!["1"; n].join(",");
            let header = format!(r#"{{"x":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,4]}}}}"#);
            let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 4]].concat();
            std::fs::write(&path, bytes).unwrap();
            match TensorFile::read(&path) {
                Ok(file) => assert_eq!((file.tensors["x"].dim(), n), (MOST_DIMENSIONS, MOST_DIMENSIONS)),
                Err(error) => {
                    let message = error.to_string();
                    assert!(
                        n > MOST_DIMENSIONS && message.contains(&format!("`x`: it has {n} dimensions")),
                        "{message}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_cut_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.safetensors");
        let bytes = example().to_bytes();
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let message = TensorFile::read(&path).unwrap_err().to_string();
            assert!(message.contains("cut.safetensors"), "{length}: {message}");
        }
    }
}
