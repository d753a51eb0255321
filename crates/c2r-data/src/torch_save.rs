//! Files of `torch.save` (torch 1.6 and later): a zip with a pickle and one entry per storage.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::Path,
};

use c2r_archive::{Limits, ZipReader};
use c2r_base::artifact::{ArtifactError, MOST_DIMENSIONS, TensorFile, tensor_from_bytes};
use tch::{Kind, Tensor};

use crate::{
    DataError, npy,
    pickle::{self, Id, Pickle, TensorView, Value},
};

const FORMAT: &str = "torch.save";
/// How deep lists and dictionaries may be nested.
const DEEPEST: usize = 16;
/// How many values are looked at: shared lists of shared lists are exponentially many.
const MOST_VISITS: usize = 1 << 16;
/// Longest name of a tensor and longest text that is kept, bytes: shared keys could add up to names of any length.
const LONGEST_TEXT: usize = 1024;

/// How to keep the tensors of a file that holds other things, too: of a whole network, of a `TensorDataset`, of a dictionary, or of
/// any other object. Python loads a network only if it can import its class.
const CONVERT: &str = "if you trust the file, keep only its tensors and lists (for a network, Python must be able to import its class): \
    python3 -c \"import torch; d = torch.load('IN.pt', map_location='cpu', weights_only=False); \
    d = d.state_dict() if hasattr(d, 'state_dict') else dict(zip(('images', 'labels'), d.tensors)) if hasattr(d, 'tensors') \
    else d if isinstance(d, dict) else vars(d); torch.save({k: d[k] for k in d if isinstance(d[k], (torch.Tensor, list, dict))}, 'OUT.pt')\"";

/// The tensors of the file, by where they are: `data[0][1]`, `images`, `tensor` for a tensor by itself. Arrays of NumPy
/// and lists of whole numbers in dictionaries are tensors, too. Numbers and texts in dictionaries become texts of the
/// header, and so do sentences about what else there is.
pub(crate) fn read(path: &Path, archive: &mut ZipReader, prefix: &str) -> Result<TensorFile, DataError> {
    let wrong = |reason: String| DataError::from(ArtifactError::format(path, FORMAT, reason));
    let byteorder = format!("{prefix}/byteorder");
    let has_byteorder = archive.contains(&byteorder);
    let mut member = |name: &str, length| archive.read(name, length).map_err(DataError::zip(path));
    if has_byteorder && member(&byteorder, None)? != b"little" {
        return Err(wrong("written on a big-endian machine; save it again on another one".to_owned()));
    }
    let bytes = member(&format!("{prefix}/data.pkl"), None)?;
    if bytes.len() as u64 > pickle::MOST_BYTES {
        return Err(wrong(format!("data.pkl has {} bytes; c2r reads at most {}", bytes.len(), pickle::MOST_BYTES)));
    }
    let pickle = Pickle::parse(&bytes).map_err(|reason| {
        let advice = if reason.contains("does not know") { format!("; {CONVERT}") } else { String::new() };
        wrong(format!("data.pkl, {reason}{advice}"))
    })?;
    let mut contents = Contents {
        pickle: &pickle,
        views: BTreeMap::new(),
        arrays: BTreeMap::new(),
        texts: BTreeMap::new(),
        visits: 0,
    };
    contents.visit(pickle.root(), String::new(), 0).map_err(wrong)?;

    let mut storages: BTreeMap<&str, Tensor> = BTreeMap::new();
    let mut file = TensorFile { header: contents.texts, ..TensorFile::default() };
    // Tensors that are not a contiguous part of their storage are copied, and any number of them may share one.
    let mut bytes_left = Limits::ARRAYS.bytes;
    for (name, view) in contents.views {
        let wrong = |reason: String| wrong(format!("tensor `{name}`: {reason}"));
        let n_bytes = view.check().map_err(wrong)?;
        bytes_left = bytes_left
            .checked_sub(n_bytes)
            .ok_or_else(|| wrong(format!("more than {} bytes of tensors", Limits::ARRAYS.bytes)))?;
        if !storages.contains_key(view.key.as_str()) {
            let length = view.length as usize;
            let n_bytes = (length as u64).checked_mul(view.kind.elt_size_in_bytes() as u64);
            let n_bytes = n_bytes.ok_or_else(|| wrong(format!("a storage of {length} values")))?;
            let mut data = member(&format!("{prefix}/data/{}", view.key), Some(n_bytes))?;
            if view.kind == Kind::Bool {
                // Any other byte in a bool is undefined behaviour in C++.
                data.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
            }
            storages.insert(&view.key, tensor_from_bytes(&data, &[length], view.kind).map_err(wrong)?);
        }
        let storage = &storages[view.key.as_str()];
        if storage.kind() != view.kind || storage.size() != [view.length] {
            return Err(wrong(format!("storage {} is described in two ways", view.key)));
        }
        let tensor = storage.f_as_strided(&view.size, &view.stride, view.offset);
        let tensor = tensor.map_err(|error| wrong(error.to_string()))?;
        let tensor = if view.is_negative { tensor.f_neg() } else { Ok(tensor) };
        file.tensors.insert(name.clone(), tensor.map_err(|error| wrong(error.to_string()))?.contiguous());
    }
    // Shared arrays are one tensor.
    let mut made: BTreeMap<Id, Tensor> = BTreeMap::new();
    for (name, id) in contents.arrays {
        let tensor = match made.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                entry.insert(array(&pickle, id).map_err(|reason| wrong(format!("array `{name}`: {reason}")))?)
            }
        };
        file.tensors.insert(name, tensor.shallow_clone());
    }
    Ok(file)
}

/// An array of NumPy, or a list of whole numbers.
fn array(pickle: &Pickle<'_>, id: Id) -> Result<Tensor, String> {
    match pickle.get(id) {
        Value::Array(array) => npy::numbers(pickle.data(array), &array.shape, array.fortran_order, &array.descr),
        Value::List(items) => pickle.whole_numbers(items).map(|numbers| Tensor::from_slice(&numbers)),
        _ => Err("neither an array nor a list".to_owned()),
    }
}

impl TensorView {
    /// Checks that the window fits inside its storage. Returns its size in bytes.
    fn check(&self) -> Result<u64, String> {
        let Self { size, stride, offset, length, .. } = self;
        let wrong =
            |what: &str| Err(format!("{what}: size {size:?}, stride {stride:?}, offset {offset}, storage of {length}"));
        if size.len() != stride.len() || size.iter().chain(stride).chain([offset, length]).any(|&value| value < 0) {
            return wrong("not a window into a storage");
        }
        if size.len() > MOST_DIMENSIONS {
            return wrong("too many dimensions");
        }
        let n = size.iter().try_fold(1i64, |product, &side| product.checked_mul(side));
        if n == Some(0) && offset <= length {
            return Ok(0);
        }
        // Otherwise a few bytes could ask for a tensor of any size.
        let Some(n) = n.filter(|n| n <= length) else {
            return wrong("more values than its storage has (an expanded tensor? save it after `.contiguous()`)");
        };
        let last = size.iter().zip(stride).try_fold(*offset, |last, (side, stride)| {
            (side - 1).checked_mul(*stride).and_then(|step| last.checked_add(step))
        });
        if last.is_none_or(|last| last >= *length) {
            return wrong("reaches past the end of its storage");
        }
        Ok((n as u64).saturating_mul(self.kind.elt_size_in_bytes() as u64))
    }
}

/// What is in the nested lists and dictionaries.
struct Contents<'a> {
    pickle: &'a Pickle<'a>,
    views: BTreeMap<String, &'a TensorView>,
    /// Arrays of NumPy and lists of whole numbers.
    arrays: BTreeMap<String, Id>,
    texts: BTreeMap<String, String>,
    visits: usize,
}

impl Contents<'_> {
    fn visit(&mut self, id: Id, name: String, depth: usize) -> Result<(), String> {
        self.visits += 1;
        if depth > DEEPEST || self.visits > MOST_VISITS {
            return Err(format!(
                "lists and dictionaries nested deeper than {DEEPEST}, or more than {MOST_VISITS} values"
            ));
        }
        if name.len() > LONGEST_TEXT {
            return Err(format!(
                "a name of more than {LONGEST_TEXT} bytes: {}...",
                &name.chars().take(40).collect::<String>()
            ));
        }
        let or = |instead: &str| if name.is_empty() { instead.to_owned() } else { name.clone() };
        let text = match self.pickle.get(id) {
            Value::Tensor(view) => {
                self.views.insert(or("tensor"), view);
                None
            }
            Value::Array(_) => {
                self.arrays.insert(or("array"), id);
                None
            }
            Value::List(items) => {
                let mut left = 0;
                for (position, &item) in items.iter().enumerate() {
                    // Numbers in lists are measurements by the thousand.
                    if matches!(
                        self.pickle.get(item),
                        Value::List(_) | Value::Dict(_) | Value::Tensor(_) | Value::Array(_)
                    ) {
                        self.visit(item, format!("{name}[{position}]"), depth + 1)?;
                    } else {
                        left += 1;
                    }
                }
                if left == items.len()
                    && !name.ends_with(']')
                    && !items.is_empty()
                    && self.pickle.whole_numbers(items).is_ok()
                {
                    self.arrays.insert(or("list"), id);
                    left = 0;
                }
                (left > 0).then(|| {
                    let n = items.len();
                    let what = if left == n { "what it holds is" } else { &format!("{left} of its values are") };
                    format!("a list of length {n}; {what} not read")
                })
            }
            Value::Dict(items) => {
                for pair in items.chunks_exact(2) {
                    let key = match self.pickle.get(pair[0]) {
                        Value::Int(key) => key.to_string(),
                        other => match other.text() {
                            Some(key) => key.to_owned(),
                            None => return Err(format!("a key in `{name}` is neither a text nor a whole number")),
                        },
                    };
                    let inner = if name.is_empty() { key } else { format!("{name}.{key}") };
                    self.visit(pair[1], inner, depth + 1)?;
                }
                None
            }
            Value::Bool(value) => Some(value.to_string()),
            Value::Int(value) => Some(value.to_string()),
            Value::Float(value) => Some(value.to_string()),
            Value::None => None,
            Value::Opaque => Some("a number of NumPy, not read".to_owned()),
            other => match other.text() {
                Some(text) if text.len() <= LONGEST_TEXT => Some(text.to_owned()),
                Some(text) => Some(format!("a text of {} bytes, not read", text.len())),
                None => Some("something that is not read".to_owned()),
            },
        };
        if let Some(text) = text {
            self.texts.insert(or("value"), text);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_stay_inside_their_storage() {
        let view = |length, offset, size: &[i64], stride: &[i64]| {
            let view = TensorView {
                kind: Kind::Float,
                key: "0".into(),
                length,
                offset,
                size: size.into(),
                stride: stride.into(),
                is_negative: false,
            };
            view.check()
        };
        view(6, 0, &[2, 3], &[3, 1]).unwrap();
        view(6, 0, &[3, 2], &[1, 3]).unwrap();
        view(6, 5, &[], &[]).unwrap();
        view(0, 0, &[0, 3], &[3, 1]).unwrap();
        for (length, offset, size, stride) in [
            (6, 1, &[2, 3][..], &[3, 1][..]),
            (6, 6, &[], &[]),
            (6, 0, &[2, 3], &[3]),
            (6, 0, &[2], &[6]),
            (6, 0, &[7], &[0]),
            (6, -1, &[1], &[1]),
            (6, 0, &[-1], &[1]),
            (6, 0, &[2], &[-1]),
            (6, 0, &[2], &[i64::MAX]),
            (i64::MAX, i64::MAX, &[2], &[1]),
            (6, 0, &[i64::MAX, i64::MAX], &[0, 0]),
            (-6, 0, &[1], &[1]),
            (6, 7, &[0], &[1]),
            (1, 0, &[1; 17], &[1; 17]),
        ] {
            let message = view(length, offset, size, stride).unwrap_err();
            assert!(message.contains("storage of"), "{message}");
        }
    }
}
