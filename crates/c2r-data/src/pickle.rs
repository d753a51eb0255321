//! The part of Python's pickle that `torch.save`, NumPy and the Python version of CIFAR use, as data: nothing is called,
//! nothing is imported.
//!
//! A pickle is a program for a stack machine that may call any function of any module. This reader knows the
//! instructions of protocols 2 to 5 that tensors, arrays, numbers, texts, lists and dictionaries need, and the few functions
//! in `pickle/value.rs`, which it does not call either: it notes what they would make. Everything else is an error that names
//! what and where.
//!
//! Sources: the comments of CPython's `pickletools.py` (instructions), `torch/serialization.py` and `torch/_utils.py`
//! (what torch writes), `numpy/_core/src/multiarray/methods.c` (what `ndarray.__reduce_ex__` writes).

mod value;

use std::borrow::Cow;

pub(crate) use value::{Array, Id, TensorView, Value};
use value::{Global, LONGEST, global};

/// Longest pickle of `torch.save` that is read, bytes. Pixels are stored outside the pickle, so this is tens of thousands of
/// tensors.
pub(crate) const MOST_BYTES: u64 = 8 << 20;
/// Most values of a pickle: an instruction of one byte makes a value of 40. CIFAR-100 has 150,000.
const MOST_VALUES: usize = 8 << 20;

/// An evaluated pickle.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: Id,
}

impl<'a> Pickle<'a> {
    pub(crate) const fn root(&self) -> Id {
        self.root
    }

    pub(crate) fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    /// The bytes of an array; none if it holds Python objects.
    pub(crate) fn data(&self, array: &Array) -> &[u8] {
        match self.get(array.data) {
            Value::Bytes(bytes) => bytes,
            _ => &[],
        }
    }

    /// The numbers of a list.
    ///
    /// # Errors
    /// In words, where the list holds something else.
    pub(crate) fn whole_numbers(&self, items: &[Id]) -> Result<Vec<i64>, String> {
        let number = |(position, &id): (usize, &Id)| match self.get(id) {
            Value::Int(number) => Ok(*number),
            _ => Err(format!("entry {position} of a list is not a whole number")),
        };
        items.iter().enumerate().map(number).collect()
    }

    /// The value of `key` in the dictionary that is the whole pickle.
    pub(crate) fn entry(&self, key: &str) -> Option<Id> {
        let Value::Dict(items) = self.get(self.root) else { return None };
        items.chunks_exact(2).find(|pair| self.get(pair[0]).text() == Some(key)).map(|pair| pair[1])
    }

    /// Evaluates `bytes`.
    ///
    /// # Errors
    /// In words: the byte, what was expected there and what was found.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let mut machine = Machine { bytes, ..Machine::default() };
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
#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: Vec<Option<Id>>,
    /// Bytes that were made of texts so far.
    encoded: usize,
}

impl<'a> Machine<'a> {
    /// Runs one instruction; returns the result at the last one.
    fn step(&mut self) -> Result<Option<Id>, String> {
        let [instruction] = self.take()?;
        match instruction {
            0x80 => match self.take()? {
                [2..=5] => {}
                [other] => return Err(format!("pickle protocol {other}; c2r reads 2 to 5")),
            },
            // How many bytes belong together: of use to those who read from a pipe.
            0x95 => drop(self.take::<8>()?),
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
            0x94 => self.memo(true, self.memo.len())?,
            b'q' | b'h' => {
                let [place] = self.take()?;
                self.memo(instruction == b'q', place.into())?;
            }
            b'r' | b'j' => {
                let place = u32::from_le_bytes(self.take()?);
                self.memo(instruction == b'r', place as usize)?;
            }
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                self.build(target, state)?;
            }
            _ => {
                let value = self.value(instruction)?;
                if self.values.len() >= MOST_VALUES {
                    return Err(format!("more than {MOST_VALUES} values"));
                }
                self.stack.push(self.values.len() as Id);
                self.values.push(value);
            }
        }
        Ok(None)
    }

    /// The value that an instruction puts onto the stack.
    fn value(&mut self, instruction: u8) -> Result<Value<'a>, String> {
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
            b'X' | 0x8c | 0x8d => {
                let text = match instruction {
                    b'X' => self.counted::<4>()?,
                    0x8c => self.counted::<1>()?,
                    _ => self.counted::<8>()?,
                };
                Value::Text(std::str::from_utf8(text).map_err(|_| "a text that is not UTF-8")?)
            }
            b'U' | b'C' => Value::Bytes(self.counted::<1>()?.into()),
            b'T' | b'B' => Value::Bytes(self.counted::<4>()?.into()),
            0x8e | 0x96 => Value::Bytes(self.counted::<8>()?.into()),
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
                Value::Global(global(module, name)?)
            }
            0x93 => {
                let [name, module] = [self.pop()?, self.pop()?].map(|id| self.values[id as usize].borrowed_text());
                let (module, name) = module.zip(name).ok_or("a function without a name")?;
                Value::Global(global(module, name)?)
            }
            b'Q' => {
                let id = self.pop()?;
                self.storage(id)?
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.reduce(function, arguments)?
            }
            other => return Err(format!("instruction 0x{other:02x}, which neither torch.save nor NumPy needs")),
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

    /// What follows the number of its bytes, which is `N` bytes wide.
    fn counted<const N: usize>(&mut self) -> Result<&'a [u8], String> {
        let mut length = [0; 8];
        length[..N].copy_from_slice(&self.take::<N>()?);
        let length = u64::from_le_bytes(length);
        self.slice(usize::try_from(length).unwrap_or(usize::MAX))
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
    fn storage(&self, id: Id) -> Result<Value<'a>, String> {
        let wrong = || "a storage was expected: ('storage', type, key, device, length)".to_owned();
        let &[word, kind, key, _, length] = self.list(id)? else { return Err(wrong()) };
        let value = |id: Id| &self.values[id as usize];
        match (value(word), value(kind), value(key)) {
            (&Value::Text("storage"), &Value::Global(Global::Storage(kind)), &Value::Text(key))
                if key.len() <= LONGEST =>
            {
                Ok(Value::Storage { kind, key, length: self.number(length)? })
            }
            _ => Err(wrong()),
        }
    }

    /// What a call would make.
    fn reduce(&mut self, function: Id, arguments: Id) -> Result<Value<'a>, String> {
        self.list(arguments)?;
        let Value::Global(function) = self.values[function as usize] else {
            return Err("a call of something that is not a function".to_owned());
        };
        if function == Global::Encode {
            let &[text, codec] = self.list(arguments)? else { return Err("bytes without a codec".to_owned()) };
            return self.encode(text, codec);
        }
        let arguments = self.list(arguments)?;
        let value = |id: Id| &self.values[id as usize];
        match function {
            Global::OrderedDict if arguments.is_empty() => Ok(Value::Dict(Vec::new())),
            Global::OrderedDict => Err("an OrderedDict with arguments".to_owned()),
            Global::NumpyScalar => Ok(Value::Opaque),
            // (name, align, copy); the state has the byte order.
            Global::Dtype => {
                let name = arguments.first().and_then(|&name| value(name).borrowed_text());
                Ok(Value::Dtype { name: name.ok_or("a dtype without a name")?, order: "|" })
            }
            // (ndarray, (0,), b'b')
            Global::Reconstruct => match arguments.first().map(|&kind| value(kind)) {
                Some(Value::Global(Global::Ndarray)) => Ok(Value::Array(Box::default())),
                _ => Err("an array of another type than numpy.ndarray".to_owned()),
            },
            // (bytes, dtype, shape, order)
            Global::FromBuffer => {
                let &[data, dtype, shape, order] = arguments else {
                    return Err("an array takes bytes, a dtype, a shape and an order".to_owned());
                };
                self.array(dtype, shape, value(order).text() == Some("F"), data)
            }
            Global::Bytes => match arguments {
                [] => Ok(Value::Bytes(Cow::Borrowed(b""))),
                &[bytes] if matches!(value(bytes), Value::Bytes(Cow::Borrowed(_))) => Ok(value(bytes).clone()),
                _ => Err("bytes of something else than bytes".to_owned()),
            },
            Global::Size => match arguments {
                &[sides] => Ok(Value::List(self.short_list(sides)?.to_vec())),
                _ => Err("torch.Size takes one tuple".to_owned()),
            },
            Global::Storage(_) => Err("a call of a storage type".to_owned()),
            Global::Ndarray | Global::Encode => Err("a call of a type".to_owned()),
            // (data, requires_grad, hooks)
            Global::RebuildParameter => match arguments.first().map(|&data| value(data)) {
                Some(Value::Tensor(tensor)) => Ok(Value::Tensor(tensor.clone())),
                _ => Err("a parameter without a tensor".to_owned()),
            },
            // (storage, offset, size, stride, requires_grad, hooks, and perhaps metadata)
            Global::RebuildTensor => {
                let (&[storage, offset, size, stride], more) =
                    arguments.split_first_chunk().ok_or("a tensor takes storage, offset, size and stride")?;
                let &Value::Storage { kind, key, length } = value(storage) else {
                    return Err("a tensor without a storage".to_owned());
                };
                Ok(Value::Tensor(Box::new(TensorView {
                    kind,
                    key: key.to_owned(),
                    length,
                    offset: self.number(offset)?,
                    size: self.numbers(size)?,
                    stride: self.numbers(stride)?,
                    is_negative: self.is_negative(more.get(2).copied())?,
                })))
            }
        }
    }

    /// Whether a tensor's metadata, `{'neg': True}`, says that its storage holds the negatives of its values. What else
    /// could be left to do, the conjugation of complex numbers, c2r does not know.
    fn is_negative(&self, metadata: Option<Id>) -> Result<bool, String> {
        let items = match metadata.map(|id| &self.values[id as usize]) {
            None | Some(Value::None) => return Ok(false),
            Some(Value::Dict(items)) => items,
            Some(_) => return Err("metadata of a tensor that is not a dictionary".to_owned()),
        };
        let mut negative = false;
        for pair in items.chunks_exact(2) {
            match (self.values[pair[0] as usize].text(), &self.values[pair[1] as usize]) {
                (_, Value::Bool(false)) => {}
                (Some("neg"), Value::Bool(true)) => negative = true,
                (key, _) => {
                    let key: String = key.unwrap_or("?").chars().take(LONGEST).collect();
                    return Err(format!(
                        "a tensor with the pending operation `{key}`: save it again after `.resolve_conj().resolve_neg()`"
                    ));
                }
            }
        }
        Ok(negative)
    }

    /// The bytes that a text in latin1 stands for.
    fn encode(&mut self, text: Id, codec: Id) -> Result<Value<'a>, String> {
        let (Value::Text(text), Some("latin1" | "latin-1")) =
            (&self.values[text as usize], self.values[codec as usize].text())
        else {
            return Err("bytes in another encoding than latin1".to_owned());
        };
        // A shared text could be encoded by every fifth byte.
        self.encoded += text.len();
        if self.encoded > self.bytes.len() {
            return Err("texts that are encoded more than once".to_owned());
        }
        let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
        Ok(Value::Bytes(bytes.ok_or("a character that is not in latin1")?.into()))
    }

    fn array(&self, dtype: Id, shape: Id, fortran_order: bool, data: Id) -> Result<Value<'a>, String> {
        let &Value::Dtype { name, order } = &self.values[dtype as usize] else {
            return Err("an array without a dtype".to_owned());
        };
        if name.len() + order.len() > LONGEST {
            return Err("a dtype with a long name".to_owned());
        }
        let shape = self.numbers(shape)?.into_iter().map(usize::try_from).collect::<Result<_, _>>();
        let shape = shape.map_err(|_| "a side below 0")?;
        Ok(Value::Array(Box::new(Array { descr: format!("{order}{name}"), shape, fortran_order, data })))
    }

    /// Sets the state of the value at `target`.
    fn build(&mut self, target: Id, state: Id) -> Result<(), String> {
        let value = |id: Id| &self.values[id as usize];
        let built = match (value(target), value(state)) {
            // State of an ordered dictionary (torch's `_metadata`): nothing that is needed.
            (Value::Dict(_) | Value::Opaque, _) => return Ok(()),
            // (version, byte order, ...)
            (&Value::Dtype { name, .. }, Value::List(state)) => {
                let order = state.get(1).and_then(|&order| value(order).borrowed_text());
                Value::Dtype { name, order: order.ok_or("a dtype without a byte order")? }
            }
            // (version, shape, dtype, whether columns come first, bytes)
            (Value::Array(_), Value::List(state)) => {
                let &[_, shape, dtype, fortran_order, data] = &state[..] else {
                    return Err("the state of an array takes version, shape, dtype, order and bytes".to_owned());
                };
                let fortran_order = matches!(value(fortran_order), Value::Bool(true) | Value::Int(1));
                self.array(dtype, shape, fortran_order, data)?
            }
            _ => return Err("state for something that is neither an OrderedDict nor of NumPy".to_owned()),
        };
        self.values[target as usize] = built;
        Ok(())
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
        assert_eq!((pickle.get(a), list), (&Value::Text("a"), same));
        let Value::List(list) = pickle.get(list) else { panic!("a list") };
        let values: Vec<&Value<'_>> = list.iter().map(|&id| pickle.get(id)).collect();
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
        fails(b"\x80\x06.", "byte 0: pickle protocol 6; c2r reads 2 to 5");
        fails(b"\x80\x01.", "byte 0: pickle protocol 1");
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
        fails(b"\x80\x02N)R.", "not a function");
        fails(b"\x80\x02NQ.", "a tuple was expected");
        fails(b"\x80\x02)Q.", "a storage was expected");
        fails(b"\x80\x02]Nb.", "state for something");
        fails(b"\x80\x02ctorch\nFloatStorage\n)R.", "a call of a storage type");
        fails(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "a tensor takes storage");
        fails(b"\x80\x02\x8a\x09123456789.", "a whole number of 9 bytes");
        fails(b"\x80\x02N.N", "1 bytes follow the end");
        fails(b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "it names `os.system`");
        fails(b"\x80\x04NN\x93.", "a function without a name");
        fails(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff.", "18446744073709551615 bytes were expected");
        fails(b"\x80\x02cnumpy\nndarray\n)R.", "a call of a type");
        fails(b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0utf-8\x86R.", "another encoding than latin1");
        fails(b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN\x85R.", "another type than numpy.ndarray");
        fails(b"\x80\x02cnumpy\ndtype\nU\x02u1\x85RNb.", "state for something");
    }
}
