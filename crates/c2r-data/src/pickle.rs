//! The part of Python's pickle that `torch.save` uses, as data: nothing is called, nothing is imported.
//!
//! A pickle is a program for a stack machine that may call any function of any module. This reader knows the
//! instructions of protocol 2 that torch writes and the few functions in [`GLOBALS`], which it does not call either:
//! it notes what they would make. Everything else is an error that names what and where.
//!
//! Sources: the comments of CPython's `pickletools.py` (instructions), `torch/serialization.py` and `torch/_utils.py`
//! (what torch writes).

use tch::Kind;

/// Longest pickle that is read, bytes. Pixels are stored outside the pickle, so this is tens of thousands of tensors; a value
/// takes at most 40 bytes of memory per byte of pickle.
pub(crate) const MOST_BYTES: u64 = 8 << 20;

/// Longest name of a storage and most dimensions: what is copied must be short, since a shared value can be copied by
/// every third byte.
const LONGEST: usize = 64;

/// Position of a value in [`Pickle::values`]: values are shared, and lists grow after they were noted.
pub(crate) type Id = u32;

/// What a pickle evaluates to, without any function having been called.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// A list or a tuple.
    List(Vec<Id>),
    /// A dictionary, ordered or not: keys and values in turn.
    Dict(Vec<Id>),
    Storage {
        kind: Kind,
        key: String,
        length: i64,
    },
    Tensor(TensorView),
    /// A number of NumPy, whose value is not needed.
    Opaque,
    Global(Global),
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
}

/// A function or type that may be named.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Global {
    RebuildTensor,
    RebuildParameter,
    OrderedDict,
    Size,
    Storage(Kind),
    /// `numpy.dtype`, a scalar of NumPy, or the bytes in one. DC, DSA and DM save accuracies as such beside the images.
    NumpyScalar,
}

const GLOBALS: [(&str, &str, Global); 19] = [
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
    ("numpy", "dtype", Global::NumpyScalar),
    ("numpy.dtypes", "Float64DType", Global::NumpyScalar),
    ("_codecs", "encode", Global::NumpyScalar),
];

/// An evaluated pickle.
#[derive(Debug)]
pub(crate) struct Pickle {
    values: Vec<Value>,
    root: Id,
}

impl Pickle {
    pub(crate) const fn root(&self) -> Id {
        self.root
    }

    pub(crate) fn get(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    /// Evaluates `bytes`.
    ///
    /// # Errors
    /// In words: the byte, what was expected there and what was found.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut machine =
            Machine { bytes, at: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: Vec::new() };
        loop {
            let at = machine.at;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(Self { values: machine.values, root }),
                Err(reason) => return Err(format!("byte {at}: {reason}")),
            }
        }
    }
}

/// The stack machine.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: Vec<Option<Id>>,
}

impl<'a> Machine<'a> {
    /// Runs one instruction; returns the result at the last one.
    fn step(&mut self) -> Result<Option<Id>, String> {
        let [instruction] = self.take()?;
        match instruction {
            0x80 => match self.take()? {
                [2] => {}
                [other] => {
                    return Err(format!(
                        "pickle protocol {other}; torch.save writes 2 unless told otherwise: save it again without `pickle_protocol`"
                    ));
                }
            },
            b'.' => {
                let root = self.pop()?;
                return match self.bytes.len() - self.at {
                    0 => Ok(Some(root)),
                    left => Err(format!("{left} bytes follow the end of the pickle")),
                };
            }
            b'(' => self.marks.push(self.stack.len()),
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item], false)?;
            }
            b'e' | b'u' => {
                let items = self.pop_to_mark()?;
                self.extend(items, instruction == b'u')?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.extend(vec![key, value], true)?;
            }
            b'q' | b'h' => {
                let [place] = self.take()?;
                self.memo(instruction == b'q', place.into())?;
            }
            b'r' | b'j' => {
                let place = u32::from_le_bytes(self.take()?);
                self.memo(instruction == b'r', place as usize)?;
            }
            b'b' => {
                // State of an ordered dictionary (torch's `_metadata`) or of a dtype: nothing that is needed.
                self.pop()?;
                let target = self.top()?;
                if !matches!(self.values[target as usize], Value::Dict(_) | Value::Opaque) {
                    return Err("state for something that is neither an OrderedDict nor of NumPy".to_owned());
                }
            }
            _ => {
                let value = self.value(instruction)?;
                // Fewer values than bytes, and those are limited.
                self.stack.push(self.values.len() as Id);
                self.values.push(value);
            }
        }
        Ok(None)
    }

    /// The value that an instruction puts onto the stack.
    fn value(&mut self, instruction: u8) -> Result<Value, String> {
        Ok(match instruction {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'K' => Value::Int(u8::from_le_bytes(self.take()?).into()),
            b'M' => Value::Int(u16::from_le_bytes(self.take()?).into()),
            b'J' => Value::Int(i32::from_le_bytes(self.take()?).into()),
            0x8a => {
                let [length] = self.take()?;
                let digits = self.slice(length.into())?;
                if digits.len() > 8 {
                    return Err(format!("a whole number of {} bytes", digits.len()));
                }
                let negative = digits.last().is_some_and(|byte| byte & 0x80 != 0);
                let mut value = [if negative { 0xff } else { 0 }; 8];
                value[..digits.len()].copy_from_slice(digits);
                Value::Int(i64::from_le_bytes(value))
            }
            b'G' => Value::Float(f64::from_be_bytes(self.take()?)),
            b'X' => {
                let length = u32::from_le_bytes(self.take()?) as usize;
                let text = std::str::from_utf8(self.slice(length)?).map_err(|_| "a text that is not UTF-8")?;
                Value::Text(text.to_owned())
            }
            b')' | b']' => Value::List(Vec::new()),
            b'}' => Value::Dict(Vec::new()),
            b't' => Value::List(self.pop_to_mark()?),
            0x85..=0x87 => {
                let mut items = (0x84..instruction).map(|_| self.pop()).collect::<Result<Vec<Id>, _>>()?;
                items.reverse();
                Value::List(items)
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let known = GLOBALS.iter().find(|(m, n, _)| (*m, *n) == (module, name));
                let (.., global) = known.ok_or_else(|| {
                    format!("it names `{module}.{name}`, which c2r does not know and will not run: only tensors in lists and dictionaries are read")
                })?;
                Value::Global(*global)
            }
            b'Q' => {
                let id = self.pop()?;
                self.storage(id)?
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.reduce(function, arguments)?
            }
            other => return Err(format!("instruction 0x{other:02x}, which torch.save does not write")),
        })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.slice(N)?.try_into().expect("the slice has N bytes"))
    }

    fn slice(&mut self, length: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let Some((taken, _)) = rest.split_at_checked(length) else {
            return Err(format!("{length} bytes were expected and {} follow: the pickle is cut short", rest.len()));
        };
        self.at += length;
        Ok(taken)
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or("a name without an end")?;
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| "a name that is not text".to_owned())
    }

    fn top(&self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().ok_or_else(|| "the stack is empty".to_owned())
    }

    fn pop(&mut self) -> Result<Id, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("a list ends that never began")?;
        Ok(self.stack.split_off(mark))
    }

    /// Adds to the list or dictionary on top of the stack.
    fn extend(&mut self, items: Vec<Id>, pairs: bool) -> Result<(), String> {
        let target = self.top()? as usize;
        match &mut self.values[target] {
            Value::List(list) if !pairs => list.extend(items),
            Value::Dict(_) if items.len() % 2 == 1 => return Err("a key without a value".to_owned()),
            Value::Dict(list) if pairs => list.extend(items),
            _ => return Err("items for something that takes none".to_owned()),
        }
        Ok(())
    }

    /// Notes the top of the stack at `place`, or pushes what was noted there.
    fn memo(&mut self, note: bool, place: usize) -> Result<(), String> {
        if !note {
            let id = self.memo.get(place).copied().flatten().ok_or_else(|| format!("place {place} is empty"))?;
            self.stack.push(id);
            return Ok(());
        }
        let top = self.top()?;
        // Pickle counts its places, so an honest one is small.
        if place > self.values.len() {
            return Err(format!("place {place} after {} values", self.values.len()));
        }
        if self.memo.len() <= place {
            self.memo.resize(place + 1, None);
        }
        self.memo[place] = Some(top);
        Ok(())
    }

    fn list(&self, id: Id) -> Result<&[Id], String> {
        match &self.values[id as usize] {
            Value::List(items) => Ok(items),
            _ => Err("a tuple was expected".to_owned()),
        }
    }

    fn numbers(&self, id: Id) -> Result<Vec<i64>, String> {
        self.short_list(id)?.iter().map(|&item| self.number(item)).collect()
    }

    fn short_list(&self, id: Id) -> Result<&[Id], String> {
        let items = self.list(id)?;
        if items.len() > LONGEST { Err(format!("a tensor of {} dimensions", items.len())) } else { Ok(items) }
    }

    fn number(&self, id: Id) -> Result<i64, String> {
        match &self.values[id as usize] {
            Value::Int(value) => Ok(*value),
            _ => Err("a whole number was expected".to_owned()),
        }
    }

    /// `('storage', type, key, device, length)`.
    fn storage(&self, id: Id) -> Result<Value, String> {
        let wrong = || "a storage was expected: ('storage', type, key, device, length)".to_owned();
        let &[word, kind, key, _, length] = self.list(id)? else { return Err(wrong()) };
        let value = |id: Id| &self.values[id as usize];
        match (value(word), value(kind), value(key)) {
            (Value::Text(word), Value::Global(Global::Storage(kind)), Value::Text(key))
                if word == "storage" && key.len() <= LONGEST =>
            {
                Ok(Value::Storage { kind: *kind, key: key.clone(), length: self.number(length)? })
            }
            _ => Err(wrong()),
        }
    }

    /// What a call would make.
    fn reduce(&self, function: Id, arguments: Id) -> Result<Value, String> {
        let arguments = self.list(arguments)?;
        let Value::Global(function) = self.values[function as usize] else {
            return Err("a call of something that is no function".to_owned());
        };
        match function {
            Global::OrderedDict if arguments.is_empty() => Ok(Value::Dict(Vec::new())),
            Global::OrderedDict => Err("an OrderedDict with arguments".to_owned()),
            Global::NumpyScalar => Ok(Value::Opaque),
            Global::Size => match arguments {
                &[sides] => Ok(Value::List(self.short_list(sides)?.to_vec())),
                _ => Err("torch.Size takes one tuple".to_owned()),
            },
            Global::Storage(_) => Err("a call of a storage type".to_owned()),
            // (data, requires_grad, hooks)
            Global::RebuildParameter => match arguments.first().map(|&data| &self.values[data as usize]) {
                Some(Value::Tensor(tensor)) => Ok(Value::Tensor(tensor.clone())),
                _ => Err("a parameter without a tensor".to_owned()),
            },
            // (storage, offset, size, stride, requires_grad, hooks, and perhaps metadata)
            Global::RebuildTensor => {
                let (&[storage, offset, size, stride], _) =
                    arguments.split_first_chunk().ok_or("a tensor takes storage, offset, size and stride")?;
                let Value::Storage { kind, key, length } = &self.values[storage as usize] else {
                    return Err("a tensor without a storage".to_owned());
                };
                Ok(Value::Tensor(TensorView {
                    kind: *kind,
                    key: key.clone(),
                    length: *length,
                    offset: self.number(offset)?,
                    size: self.numbers(size)?,
                    stride: self.numbers(stride)?,
                }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(bytes: &[u8], expected: &str) {
        let message = Pickle::parse(bytes).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn plain_values_and_shared_lists() {
        // {'a': [1, -2, 300, 0.5, True, None], 'b': the same list}
        let mut bytes =
            b"\x80\x02}q\0(X\x01\0\0\0a]q\x01(K\x01J\xfe\xff\xff\xffM\x2c\x01G\x3f\xe0\0\0\0\0\0\0\x88Ne".to_vec();
        bytes.extend(b"X\x01\0\0\0bh\x01u.");
        let pickle = Pickle::parse(&bytes).unwrap();
        let Value::Dict(items) = pickle.get(pickle.root()) else { panic!("a dictionary") };
        let [a, list, _, same] = items[..] else { panic!("two pairs") };
        assert_eq!((pickle.get(a), list), (&Value::Text("a".into()), same));
        let Value::List(list) = pickle.get(list) else { panic!("a list") };
        let values: Vec<&Value> = list.iter().map(|&id| pickle.get(id)).collect();
        let expected =
            [Value::Int(1), Value::Int(-2), Value::Int(300), Value::Float(0.5), Value::Bool(true), Value::None];
        assert_eq!(values, expected.iter().collect::<Vec<_>>());
        let long = Pickle::parse(b"\x80\x02\x8a\x02\xff\xfe.").unwrap();
        assert_eq!(long.get(long.root()), &Value::Int(-257));
    }

    #[test]
    fn everything_else_is_refused_with_its_place() {
        fails(b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.", "byte 2: it names `os.system`");
        fails(b"\x80\x02cbuiltins\neval\n.", "`builtins.eval`");
        fails(b"\x80\x04.", "byte 0: pickle protocol 4");
        fails(b"\x80\x02i", "byte 2: instruction 0x69");
        fails(b"\x80\x02X\xff\xff\xff\xffa.", "byte 2: 4294967295 bytes were expected and 2 follow");
        fails(b"\x80\x02N", "byte 3: 1 bytes were expected and 0 follow");
        fails(b"\x80\x02.", "the stack is empty");
        fails(b"\x80\x02t.", "never began");
        fails(b"\x80\x02N(a.", "the stack is empty");
        fails(b"\x80\x02Nr\xff\xff\xff\xff.", "place 4294967295 after 1 values");
        fails(b"\x80\x02h\x05.", "place 5 is empty");
        fails(b"\x80\x02NNa.", "takes none");
        fails(b"\x80\x02}(Nu.", "a key without a value");
        fails(b"\x80\x02NNR.", "a tuple was expected");
        fails(b"\x80\x02N)R.", "no function");
        fails(b"\x80\x02NQ.", "a tuple was expected");
        fails(b"\x80\x02)Q.", "a storage was expected");
        fails(b"\x80\x02]Nb.", "state for something");
        fails(b"\x80\x02ctorch\nFloatStorage\n)R.", "a call of a storage type");
        fails(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "a tensor takes storage");
        fails(b"\x80\x02\x8a\x09123456789.", "a whole number of 9 bytes");
        fails(b"\x80\x02N.N", "1 bytes follow the end");
    }
}
