//! Saved states. One function visits every value that a computation continues from; [`State`] either writes the values
//! or reads them back, so that the two cannot disagree. A file may be damaged or belong to another run: each entry is
//! checked before it is used.

use std::{collections::BTreeMap, fmt::Display, ops::RangeInclusive};

use c2r_models::Model;
use tch::{Kind, Tensor};

/// Tensors by name.
pub type Entries = BTreeMap<String, Tensor>;

/// A saved state that is damaged or belongs to another run; the text names the entry.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct StateError(pub String);

impl StateError {
    /// An entry with another value than expected.
    pub fn wrong(name: &str, expected: impl Display, got: impl Display) -> Self {
        Self(format!("`{name}` must be {expected}, got {got}"))
    }
}

#[derive(Debug)]
enum Direction<'a> {
    Write(&'a mut Entries),
    Read(&'a Entries),
}

/// The entries of a saved state while they are written or read.
///
/// Reading replaces the values that are visited, or returns a [`StateError`] that names the entry; some values are then
/// replaced and others are not.
#[derive(Debug)]
pub struct State<'a> {
    direction: Direction<'a>,
    /// Begins the name of every entry.
    prefix: String,
}

impl<'a> State<'a> {
    /// Values are written into `entries`.
    pub const fn writing(entries: &'a mut Entries) -> Self {
        Self { direction: Direction::Write(entries), prefix: String::new() }
    }

    /// Values are read from `entries`.
    pub const fn reading(entries: &'a Entries) -> Self {
        Self { direction: Direction::Read(entries), prefix: String::new() }
    }

    /// Whether values are read.
    pub const fn reads(&self) -> bool {
        matches!(self.direction, Direction::Read(_))
    }

    /// Visits entries whose names begin with `prefix`.
    pub fn section<T, E>(&mut self, prefix: &str, visit: impl FnOnce(&mut Self) -> Result<T, E>) -> Result<T, E> {
        let length = self.prefix.len();
        self.prefix.push_str(prefix);
        let result = visit(self);
        self.prefix.truncate(length);
        result
    }

    /// Visits a value that there may be: reading makes a new one where there is an entry `marker`.
    pub fn optional<T, E>(
        &self,
        marker: &str,
        value: &mut Option<T>,
        new: impl FnOnce() -> Result<T, E>,
    ) -> Result<(), E> {
        if self.reads() {
            *value = self.has(marker).then(new).transpose()?;
        }
        Ok(())
    }

    /// The whole name of an entry.
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn entries(&self) -> &Entries {
        match &self.direction {
            Direction::Write(entries) => entries,
            Direction::Read(entries) => entries,
        }
    }

    /// Whether there is an entry `name`.
    pub fn has(&self, name: &str) -> bool {
        self.entries().contains_key(&self.name(name))
    }

    /// Writes the entry `name`; does nothing while reading.
    pub fn put(&mut self, name: &str, tensor: Tensor) {
        let name = self.name(name);
        if let Direction::Write(entries) = &mut self.direction {
            entries.insert(name, tensor);
        }
    }

    /// The entry `name`, of whatever dtype and shape.
    pub fn get(&self, name: &str) -> Result<&Tensor, StateError> {
        let name = self.name(name);
        self.entries().get(&name).ok_or_else(|| StateError(format!("there is no `{name}`")))
    }

    /// The entry `name` if it has this dtype and shape, which -1 leaves open for a dimension.
    fn checked(&self, name: &str, kind: Kind, size: &[i64]) -> Result<&Tensor, StateError> {
        let tensor = self.get(name)?;
        let (own, shape) = (tensor.kind(), tensor.size());
        let fits = shape.len() == size.len() && shape.iter().zip(size).all(|(got, want)| *want == -1 || got == want);
        if own == kind && fits {
            return Ok(tensor);
        }
        let size: Vec<String> =
            size.iter().map(|length| if *length == -1 { "N".to_owned() } else { length.to_string() }).collect();
        Err(StateError::wrong(
            &self.name(name),
            format!("{kind:?} [{}]", size.join(", ")),
            format!("{own:?} {shape:?}"),
        ))
    }

    /// A tensor; what is read must have its dtype and shape.
    pub fn tensor(&mut self, name: &str, value: &mut Tensor) -> Result<(), StateError> {
        if self.reads() {
            *value = self.checked(name, value.kind(), &value.size())?.to_device(value.device()).copy();
        } else {
            self.put(name, value.detach().copy());
        }
        Ok(())
    }

    /// Whole numbers, i64 `[len]`, each in `range` (as i64: `u64::MAX` is -1).
    pub fn integers(&mut self, name: &str, values: &mut [u64], range: RangeInclusive<i64>) -> Result<(), StateError> {
        if self.reads() {
            let read = self.in_range(name, values.len() as i64, range)?;
            values.iter_mut().zip(read).for_each(|(value, read)| *value = read as u64);
        } else {
            self.put(name, Tensor::from_slice(&values.iter().map(|&value| value as i64).collect::<Vec<_>>()));
        }
        Ok(())
    }

    /// One of [`State::integers`].
    pub fn integer(&mut self, name: &str, value: &mut u64, range: RangeInclusive<i64>) -> Result<(), StateError> {
        self.integers(name, std::slice::from_mut(value), range)
    }

    /// Positions in a set of `n`, i64 `[N]`, any number of them.
    pub fn positions(&mut self, name: &str, values: &mut Vec<usize>, n: usize) -> Result<(), StateError> {
        if self.reads() {
            let read = self.in_range(name, -1, 0..=n as i64 - 1)?;
            *values = read.into_iter().map(|position| position as usize).collect();
        } else {
            self.put(name, Tensor::from_slice(&values.iter().map(|&value| value as i64).collect::<Vec<_>>()));
        }
        Ok(())
    }

    fn in_range(&self, name: &str, length: i64, range: RangeInclusive<i64>) -> Result<Vec<i64>, StateError> {
        let values =
            Vec::<i64>::try_from(self.checked(name, Kind::Int64, &[length])?).expect("dtype and shape were checked");
        match values.iter().find(|value| !range.contains(value)) {
            Some(value) => {
                Err(StateError::wrong(&self.name(name), format!("in {}..={}", range.start(), range.end()), value))
            }
            None => Ok(values),
        }
    }

    /// Numbers, f64 `[len]`, each in `range`.
    pub fn numbers(&mut self, name: &str, values: &mut [f64], range: RangeInclusive<f64>) -> Result<(), StateError> {
        if !self.reads() {
            self.put(name, Tensor::from_slice(values));
            return Ok(());
        }
        let stored = self.checked(name, Kind::Double, &[values.len() as i64])?;
        for (at, value) in values.iter_mut().enumerate() {
            *value = stored.double_value(&[at as i64]);
            if !range.contains(value) {
                let expected = format!("in {}..={}", range.start(), range.end());
                return Err(StateError::wrong(&self.name(name), expected, value));
            }
        }
        Ok(())
    }

    /// One of [`State::numbers`].
    pub fn number(&mut self, name: &str, value: &mut f64, range: RangeInclusive<f64>) -> Result<(), StateError> {
        self.numbers(name, std::slice::from_mut(value), range)
    }

    /// All parameters of a network, under `prefix`.
    pub fn model(&mut self, prefix: &str, model: &Model) -> Result<(), StateError> {
        if self.reads() {
            let entries = self.below(prefix);
            return model.load_state(&entries).map_err(|error| StateError(format!("`{}`: {error}", self.name(prefix))));
        }
        for (name, tensor) in model.state() {
            self.put(&format!("{prefix}{name}"), tensor);
        }
        Ok(())
    }

    /// Entries whose names begin with `prefix`, without it.
    pub fn below(&self, prefix: &str) -> Entries {
        let prefix = self.name(prefix);
        let below =
            |(name, tensor): (&String, &Tensor)| Some((name.strip_prefix(&prefix)?.to_owned(), tensor.shallow_clone()));
        self.entries().iter().filter_map(below).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let entries = Entries::from([
            ("n".to_owned(), Tensor::from_slice(&[3i64])),
            ("x".to_owned(), Tensor::from_slice(&[0.5f64])),
            ("y".to_owned(), Tensor::from_slice(&[0.5f32])),
        ]);
        let state = || State::reading(&entries);
        let (mut n, mut x) = (0, 0.0);
        state().integer("n", &mut n, 0..=3).unwrap();
        state().number("x", &mut x, 0.0..=1.0).unwrap();
        assert_eq!((n, x), (3, 0.5));
        let mut table = Tensor::zeros([1, 1], (Kind::Float, tch::Device::Cpu));
        for (result, message) in [
            (state().integer("n", &mut n, 0..=2), "`n` must be in 0..=2, got 3"),
            (state().integer("x", &mut n, 0..=2), "`x` must be Int64 [1], got Double [1]"),
            (state().integers("n", &mut [0, 0], 0..=9), "`n` must be Int64 [2], got Int64 [1]"),
            (state().positions("x", &mut vec![], 9), "`x` must be Int64 [N], got Double [1]"),
            (state().positions("n", &mut vec![], 3), "`n` must be in 0..=2, got 3"),
            (state().integer("m", &mut n, 0..=2), "there is no `m`"),
            (state().section("a.", |state| state.integer("m", &mut n, 0..=2)), "there is no `a.m`"),
            (state().number("x", &mut x, 0.0..=0.4), "`x` must be in 0..=0.4, got 0.5"),
            (state().tensor("y", &mut table), "`y` must be Float [1, 1], got Float [1]"),
        ] {
            assert_eq!(result.unwrap_err().to_string(), message);
        }
    }
}
