//! What a pickle evaluates to, and the functions that it may name.

use std::borrow::Cow;

use tch::Kind;

/// Longest name of a storage and most dimensions: what is copied must be short, since a shared value can be copied by
/// every third byte.
pub(crate) const LONGEST: usize = 64;

/// Position of a value in the list of values: values are shared, and lists grow after they were noted.
pub(crate) type Id = u32;

/// What a pickle evaluates to, without any function having been called.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    /// Bytes, or a text of Python 2.
    Bytes(Cow<'a, [u8]>),
    /// A list or a tuple.
    List(Vec<Id>),
    /// A dictionary, ordered or not: keys and values in turn.
    Dict(Vec<Id>),
    Storage {
        kind: Kind,
        key: &'a str,
        length: i64,
    },
    Tensor(Box<TensorView>),
    /// NumPy's name of a dtype, such as `u1`, and its byte order, such as `<`.
    Dtype {
        name: &'a str,
        order: &'a str,
    },
    Array(Box<Array>),
    /// A number of NumPy, whose value is not needed.
    Opaque,
    Global(Global),
}

impl<'a> Value<'a> {
    /// A text, as Python 2 or 3 writes it.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// As [`Value::text`], where it is a part of the pickle.
    pub(crate) fn borrowed_text(&self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Bytes(Cow::Borrowed(bytes)) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }
}

/// A tensor as torch describes it: a window into a storage.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TensorView {
    pub(crate) kind: Kind,
    /// Name of the storage in the archive.
    pub(crate) key: String,
    /// Number of values of the storage.
    pub(crate) length: i64,
    /// First value of the tensor.
    pub(crate) offset: i64,
    pub(crate) size: Vec<i64>,
    pub(crate) stride: Vec<i64>,
    /// The storage holds the negatives of the values, as after `x.conj().imag`.
    pub(crate) is_negative: bool,
}

/// An array of NumPy whose values are in the pickle.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Array {
    /// Byte order, kind and width, e.g. `<f4`.
    pub(crate) descr: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) fortran_order: bool,
    /// The values, a [`Value::Bytes`].
    pub(crate) data: Id,
}

/// A function or type that may be named.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Global {
    RebuildTensor,
    RebuildParameter,
    OrderedDict,
    Size,
    Storage(Kind),
    /// A scalar of NumPy. DC, DSA and DM save accuracies as such beside the images.
    NumpyScalar,
    /// `numpy.dtype`.
    Dtype,
    /// `numpy.ndarray`, which only [`Global::Reconstruct`] takes.
    Ndarray,
    /// Makes an empty array; its state has the values.
    Reconstruct,
    /// An array of protocol 5.
    FromBuffer,
    /// `_codecs.encode`: bytes as a text in latin1, in protocol 2.
    Encode,
    /// `bytes()` or `bytearray(...)`.
    Bytes,
}

const GLOBALS: [(&str, &str, Global); 27] = [
    ("torch._utils", "_rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils", "_rebuild_parameter", Global::RebuildParameter),
    ("collections", "OrderedDict", Global::OrderedDict),
    ("torch", "Size", Global::Size),
    ("torch", "FloatStorage", Global::Storage(Kind::Float)),
    ("torch", "DoubleStorage", Global::Storage(Kind::Double)),
    ("torch", "HalfStorage", Global::Storage(Kind::Half)),
    ("torch", "BFloat16Storage", Global::Storage(Kind::BFloat16)),
    ("torch", "LongStorage", Global::Storage(Kind::Int64)),
    ("torch", "IntStorage", Global::Storage(Kind::Int)),
    ("torch", "ShortStorage", Global::Storage(Kind::Int16)),
    ("torch", "CharStorage", Global::Storage(Kind::Int8)),
    ("torch", "ByteStorage", Global::Storage(Kind::Uint8)),
    ("torch", "BoolStorage", Global::Storage(Kind::Bool)),
    ("numpy.core.multiarray", "scalar", Global::NumpyScalar),
    ("numpy._core.multiarray", "scalar", Global::NumpyScalar),
    ("numpy.dtypes", "Float64DType", Global::NumpyScalar),
    ("numpy", "dtype", Global::Dtype),
    ("numpy", "ndarray", Global::Ndarray),
    ("numpy.core.multiarray", "_reconstruct", Global::Reconstruct),
    ("numpy._core.multiarray", "_reconstruct", Global::Reconstruct),
    ("numpy.core.numeric", "_frombuffer", Global::FromBuffer),
    ("numpy._core.numeric", "_frombuffer", Global::FromBuffer),
    ("_codecs", "encode", Global::Encode),
    ("__builtin__", "bytes", Global::Bytes),
    ("builtins", "bytes", Global::Bytes),
    ("builtins", "bytearray", Global::Bytes),
];

/// The function or type of that name.
pub(crate) fn global(module: &str, name: &str) -> Result<Global, String> {
    let known = GLOBALS.iter().find(|(m, n, _)| (*m, *n) == (module, name));
    known.map(|(.., global)| *global).ok_or_else(|| {
        let short = |text: &str| text.chars().take(LONGEST).collect::<String>();
        format!(
            "it names `{}.{}`, which c2r does not know and will not run: only tensors and arrays in lists and dictionaries are read",
            short(module),
            short(name)
        )
    })
}
