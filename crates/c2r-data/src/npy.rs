//! NumPy's arrays: `.npy` (format versions 1 to 3) and `.npz`. Python objects inside are refused, never unpickled.
//!
//! Our own reader, because `ndarray-npy` has neither texts nor f16, and `npyz` allocates what a header claims; both parse the
//! header with a recursive parser of Python literals, which a hostile one can nest.

use std::{fs, path::Path};

use c2r_archive::{Limits, ZipReader};
use c2r_base::artifact::{ArtifactError, TensorFile, tensor_from_bytes, write_atomically};
use tch::{Kind, Tensor};

use crate::{DataError, stored_zip::stored};

const MAGIC: &[u8] = b"\x93NUMPY";
const SUFFIX: &str = ".npy";
/// Why an array is refused that only `allow_pickle=True` reads.
const OBJECTS: &str = "holds Python objects, which c2r does not load";
/// How to make plain arrays of it: of an array, or of a dictionary of arrays.
const CONVERT_NPY: &str = "if you trust the file, convert it: python3 -c \"import numpy as np; d = np.load('IN.npy', \
    allow_pickle=True); np.savez('OUT.npz', **(d.item() if d.shape == () else {'array': np.array(d.tolist())}))\"";
/// How to keep the plain arrays of it, and make plain ones of lists.
const CONVERT_NPZ: &str = "if you trust the file, convert it: python3 -c \"import numpy as np; d = np.load('IN.npz', \
    allow_pickle=True); p = {k: np.array(d[k].tolist()) if d[k].dtype == object else d[k] for k in d}; \
    np.savez('OUT.npz', **{k: p[k] for k in p if p[k].dtype != object})\"";

/// `reason`, and how to convert the file where it holds Python objects.
fn advised(reason: String, convert: &str) -> String {
    if reason.contains(OBJECTS) { format!("{reason}; {convert}") } else { reason }
}

/// The array of a `.npy` file, under the name `array`.
pub(crate) fn read_npy(path: &Path) -> Result<TensorFile, DataError> {
    let bytes = fs::read(path).map_err(DataError::io(path))?;
    let mut file = TensorFile::default();
    let array = parse(&bytes).map_err(|reason| ArtifactError::format(path, "NumPy", advised(reason, CONVERT_NPY)))?;
    array.put("array".to_owned(), &mut file);
    Ok(file)
}

/// The arrays of a `.npz` file; a text without dimensions becomes a text of the header.
pub(crate) fn read_npz(path: &Path) -> Result<TensorFile, DataError> {
    let mut archive = ZipReader::open(path, Limits::ARRAYS).map_err(DataError::zip(path))?;
    let mut file = TensorFile::default();
    for entry in archive.names().map(str::to_owned).collect::<Vec<_>>() {
        let wrong = |reason: String| {
            ArtifactError::format(path, "NumPy", advised(format!("entry `{entry}`: {reason}"), CONVERT_NPZ))
        };
        let name = entry.strip_suffix(SUFFIX).ok_or_else(|| wrong("is not a `.npy` file".to_owned()))?;
        let bytes = archive.read(&entry, None).map_err(DataError::zip(path))?;
        parse(&bytes).map_err(wrong)?.put(name.to_owned(), &mut file);
    }
    Ok(file)
}

/// Writes tensors as arrays and the texts of the header as texts without dimensions; equal contents give equal bytes.
///
/// # Panics
/// If a tensor is neither u8, i64, f32 nor f64.
pub(crate) fn write_npz(path: &Path, file: &TensorFile) -> Result<(), DataError> {
    let entry = |name: &str, array: Vec<u8>| (format!("{name}{SUFFIX}"), array);
    let tensors = file.tensors.iter().map(|(name, tensor)| entry(name, tensor_npy(tensor)));
    let texts = file.header.iter().map(|(name, text)| {
        let data: Vec<u8> = text.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
        entry(name, npy(&format!("<U{}", text.chars().count()), &[], &data))
    });
    let bytes =
        stored(tensors.chain(texts)).map_err(|error| ArtifactError::format(path, "NumPy", error.to_string()))?;
    Ok(write_atomically(path, &bytes)?)
}

fn tensor_npy(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.detach().to_device(tch::Device::Cpu).contiguous();
    let descr = match tensor.kind() {
        Kind::Uint8 => "|u1",
        Kind::Int64 => "<i8",
        Kind::Float => "<f4",
        Kind::Double => "<f8",
        other => panic!("dtype {other:?}, which c2r never stores"),
    };
    let mut data = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut data, tensor.numel());
    npy(descr, &tensor.size(), &data)
}

/// One `.npy`, format version 1.
fn npy(descr: &str, shape: &[i64], data: &[u8]) -> Vec<u8> {
    let sides: String = shape.iter().map(|side| format!("{side}, ")).collect();
    // A tuple of one ends in a comma, no other does.
    let sides = sides.trim_end_matches(if shape.len() == 1 { " " } else { ", " });
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sides}), }}");
    let length = (MAGIC.len() + 4 + header.len() + 1).next_multiple_of(64) - MAGIC.len() - 4;
    header += &" ".repeat(length - 1 - header.len());
    header.push('\n');
    let length = u16::try_from(header.len()).expect("a tensor has few dimensions").to_le_bytes();
    [MAGIC, &[1, 0], &length, header.as_bytes(), data].concat()
}

/// One array.
enum Array {
    Numbers(Tensor),
    /// A text, or a sentence about an array of texts.
    Text(String),
}

impl Array {
    fn put(self, name: String, file: &mut TensorFile) {
        match self {
            Self::Numbers(tensor) => drop(file.tensors.insert(name, tensor)),
            Self::Text(text) => drop(file.header.insert(name, text)),
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Array, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it does not start with \\x93NUMPY")?;
    let (&[major, _], rest) = rest.split_first_chunk().ok_or("it ends before the version")?;
    let (length, rest) = match major {
        1 => rest.split_first_chunk().map(|(length, rest)| (usize::from(u16::from_le_bytes(*length)), rest)),
        2 | 3 => rest.split_first_chunk().map(|(length, rest)| (u32::from_le_bytes(*length) as usize, rest)),
        other => return Err(format!("format version {other}; c2r reads 1 to 3")),
    }
    .ok_or("it ends before the length of the header")?;
    let (header, data) = rest
        .split_at_checked(length)
        .ok_or_else(|| format!("the header declares {length} bytes and {} follow", rest.len()))?;
    let header = std::str::from_utf8(header).map_err(|error| format!("the header is not text: {error}"))?;
    let Header { descr, fortran_order, shape } =
        Header::parse(header).map_err(|expected| format!("expected {expected} in the header `{}`", header.trim()))?;
    match &descr[1..] {
        text if text.starts_with('U') => unicode(data, &shape, &descr).map(Array::Text),
        _ => numbers(data, &shape, fortran_order, &descr).map(Array::Numbers),
    }
}

/// The values of an array. `descr` is NumPy's: byte order, kind and width, such as `<f4`.
///
/// # Errors
/// In words: a dtype that is not read, or another number of bytes than the shape has.
pub(crate) fn numbers(data: &[u8], shape: &[usize], fortran_order: bool, descr: &str) -> Result<Tensor, String> {
    let numbers = |kind| array(data, shape, fortran_order, kind, descr);
    let unsigned = |width| integers(data, shape, fortran_order, width, descr);
    match descr.get(1..).unwrap_or_default() {
        "u1" => numbers(Kind::Uint8),
        "i1" => numbers(Kind::Int8),
        "i2" => numbers(Kind::Int16),
        "i4" => numbers(Kind::Int),
        "i8" => numbers(Kind::Int64),
        "f2" => numbers(Kind::Half),
        "f4" => numbers(Kind::Float),
        "f8" => numbers(Kind::Double),
        "u2" => unsigned(2),
        "u4" => unsigned(4),
        "u8" => unsigned(8),
        "b1" => numbers(Kind::Uint8).map(|bytes| bytes.ne(0)),
        text if text.starts_with('O') => Err(OBJECTS.to_owned()),
        _ => Err(format!("dtype `{descr}`; c2r reads u1 to u8, i1 to i8, f2 to f8, b1 and U")),
    }
}

fn array(data: &[u8], shape: &[usize], fortran_order: bool, kind: Kind, descr: &str) -> Result<Tensor, String> {
    let width = kind.elt_size_in_bytes();
    let swapped;
    let data = if descr.starts_with('>') {
        swapped = data.chunks(width).flat_map(|value| value.iter().rev().copied()).collect::<Vec<u8>>();
        &swapped
    } else {
        data
    };
    if !fortran_order {
        return tensor_from_bytes(data, shape, kind);
    }
    let reversed: Vec<usize> = shape.iter().rev().copied().collect();
    let dimensions: Vec<i64> = (0..shape.len() as i64).rev().collect();
    tensor_from_bytes(data, &reversed, kind).map(|tensor| tensor.permute(dimensions).contiguous())
}

/// Unsigned integers that libtorch has no arithmetic for, as i64.
fn integers(data: &[u8], shape: &[usize], fortran_order: bool, width: usize, descr: &str) -> Result<Tensor, String> {
    // Here and not only where the tensor is made: a value that is cut would become a whole one of 8 bytes.
    let expected = shape.iter().try_fold(width, |product, &length| product.checked_mul(length));
    if expected != Some(data.len()) {
        let expected = expected.map_or_else(|| "more bytes than there can be".to_owned(), |n| format!("{n} bytes"));
        return Err(format!("shape {shape:?} of `{descr}` needs {expected}, found {}", data.len()));
    }
    let mut wide = Vec::with_capacity(data.len() / width * 8);
    for value in data.chunks_exact(width) {
        let mut bytes = [0u8; 8];
        bytes[..width].copy_from_slice(value);
        if descr.starts_with('>') {
            bytes[..width].reverse();
        }
        if i64::from_le_bytes(bytes) < 0 {
            return Err(format!("a value of {} does not fit into an i64", u64::from_le_bytes(bytes)));
        }
        wide.extend(bytes);
    }
    array(&wide, shape, fortran_order, Kind::Int64, "<i8")
}

fn unicode(data: &[u8], shape: &[usize], descr: &str) -> Result<String, String> {
    if !shape.is_empty() {
        return Ok(format!("texts of shape {shape:?}"));
    }
    let length: usize = descr[2..].parse().map_err(|_| format!("dtype `{descr}`"))?;
    if length.checked_mul(4) != Some(data.len()) {
        return Err(format!("a text of {length} characters does not have {} bytes", data.len()));
    }
    let characters = data.chunks_exact(4).map(|c| {
        let bytes: [u8; 4] = c.try_into().expect("chunks of 4");
        char::from_u32(if descr.starts_with('>') { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    });
    let text: Option<String> = characters.collect();
    let text = text.ok_or("a text with something that is not a character")?;
    // NumPy pads with zeros.
    Ok(text.trim_end_matches('\0').to_owned())
}

/// The header's Python dictionary.
struct Header {
    /// Byte order, kind and width, e.g. `<f4`.
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Errors say what was expected.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        let mut rest = text.trim().strip_prefix('{').ok_or("`{`")?.trim_start();
        while !rest.starts_with('}') {
            let (key, after) = quoted(rest)?;
            rest = after.trim_start().strip_prefix(':').ok_or("`:`")?.trim_start();
            match key {
                "descr" if rest.starts_with('[') => return Err("a plain dtype, not a record of fields,"),
                "descr" => {
                    let (value, after) = quoted(rest)?;
                    let is_dtype = value.starts_with(['<', '>', '|', '=']) && value.is_ascii() && value.len() > 1;
                    descr = Some(value.to_owned()).filter(|_| is_dtype);
                    rest = after;
                }
                "fortran_order" => {
                    let (value, after) = [(true, "True"), (false, "False")]
                        .into_iter()
                        .find_map(|(value, word)| rest.strip_prefix(word).map(|after| (value, after)))
                        .ok_or("True or False")?;
                    fortran_order = Some(value);
                    rest = after;
                }
                "shape" => {
                    let (inside, after) =
                        rest.strip_prefix('(').and_then(|rest| rest.split_once(')')).ok_or("a shape in brackets")?;
                    let sides = inside.split(',').map(str::trim).filter(|side| !side.is_empty());
                    let sides: Result<Vec<usize>, _> = sides.map(str::parse).collect();
                    shape = Some(sides.map_err(|_| "whole numbers as shape")?);
                    rest = after;
                }
                _ => return Err("no key but descr, fortran_order and shape"),
            }
            rest = rest.trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
        }
        Ok(Self {
            descr: descr.ok_or("`descr` with a byte order, such as '<f4',")?,
            fortran_order: fortran_order.ok_or("`fortran_order`")?,
            shape: shape.ok_or("`shape`")?,
        })
    }
}

/// A text in quotes and what follows it.
fn quoted(text: &str) -> Result<(&str, &str), &'static str> {
    let quote = text.chars().next().filter(|c| ['\'', '"'].contains(c)).ok_or("a text in quotes")?;
    text[1..].split_once(quote).ok_or("a text in quotes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(bytes: &[u8]) -> Tensor {
        match parse(bytes).unwrap() {
            Array::Numbers(tensor) => tensor,
            Array::Text(text) => panic!("{text}"),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for shape in [&[][..], &[1], &[6], &[2, 3], &[0, 3]] {
            let n = shape.iter().product::<i64>();
            let tensor = Tensor::arange(n, (Kind::Float, tch::Device::Cpu)).view(shape);
            let bytes = tensor_npy(&tensor);
            assert_eq!((bytes.len() - n as usize * 4) % 64, 0);
            let back = numbers(&bytes);
            assert_eq!((back.kind(), back.size()), (Kind::Float, shape.to_vec()));
            assert!(back.equal(&tensor));
        }
    }

    #[test]
    fn dtypes_and_orders() {
        let ints = |descr: &str, data: &[u8]| {
            Vec::<i64>::try_from(numbers(&npy(descr, &[2], data)).to_kind(Kind::Int64)).unwrap()
        };
        assert_eq!(ints("<u2", &[1, 0, 0, 255]), [1, 65_280]);
        assert_eq!(ints(">u2", &[0, 1, 255, 0]), [1, 65_280]);
        assert_eq!(ints(">i4", &[0, 0, 0, 1, 255, 255, 255, 255]), [1, -1]);
        assert_eq!(ints("|b1", &[0, 2]), [0, 1]);
        assert_eq!(ints("|i1", &[255, 3]), [-1, 3]);
        let mut bytes = npy("|u1", &[2, 3], &[1, 4, 2, 5, 3, 6]);
        let at = bytes.windows(5).position(|window| window == b"False").unwrap();
        bytes[at..at + 5].copy_from_slice(b"True ");
        assert_eq!(Vec::<u8>::try_from(numbers(&bytes).flatten(0, -1)).unwrap(), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let check = |bytes: Vec<u8>, expected: &str| match parse(&bytes) {
            Ok(_) => panic!("expected: {expected}"),
            Err(message) => assert!(message.contains(expected), "{message}"),
        };
        let replaced = |from: &str, to: &str| {
            let bytes = npy("<f4", &[2], &[0; 8]);
            let header: String = bytes[10..128 - 10].iter().map(|&byte| char::from(byte)).collect();
            let header = header.trim_end_matches(|c| c != '}').replace(from, to);
            let length = (header.len() as u16).to_le_bytes();
            [MAGIC, &[1, 0], &length, header.as_bytes(), &[0; 8]].concat()
        };
        check(b"PK".to_vec(), "NUMPY");
        check(MAGIC.to_vec(), "before the version");
        check([MAGIC, &[4, 0, 0, 0]].concat(), "format version 4");
        check([MAGIC, &[1, 0, 255]].concat(), "length of the header");
        check([MAGIC, &[2, 0, 255, 255, 255, 255]].concat(), "declares 4294967295 bytes and 0 follow");
        check(replaced("<f4", "<c8"), "dtype `<c8`");
        check(npy("|u1", &[1; 70], &[0]), "70 dimensions");
        check(replaced("<f4", "|O"), "Python objects");
        check(replaced("<f4", "f4"), "byte order");
        check(replaced("'<f4'", "[('a', '<f4')]"), "record of fields");
        check(replaced("(2,)", "(3,)"), "does not have 8 bytes");
        check(replaced("(2,)", "(18446744073709551615, 2)"), "does not have 8 bytes");
        check(replaced("(2,)", "(-2,)"), "whole numbers");
        check(replaced("shape", "form"), "no key but");
        check(replaced("}", ""), "a text in quotes");
        check(npy("<u8", &[1], &[255; 8]), "does not fit");
        for (descr, width) in [("<u2", 2), (">u2", 2), ("<u4", 4), ("<u8", 8)] {
            for found in [3 * width - 1, 3 * width + 1, 2 * width] {
                let expected = format!("shape [3] of `{descr}` needs {} bytes, found {found}", 3 * width);
                check(npy(descr, &[3], &vec![0; found]), &expected);
            }
        }
        check(npy("<U2", &[], &[0; 4]), "a text of 2 characters");
    }
}
