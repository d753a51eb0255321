//! The entries of a saved state. Each is checked before it is used: the file may be damaged, or belong to another run.

use std::{collections::BTreeMap, ops::RangeInclusive};

use tch::{Kind, Tensor};

use crate::distillation::DistillError;

/// Tensors by name.
pub(crate) type Entries = BTreeMap<String, Tensor>;

/// An error about one entry.
pub(crate) fn wrong(name: &str, expected: impl std::fmt::Display, got: impl std::fmt::Display) -> DistillError {
    DistillError::State(format!("`{name}` must be {expected}, got {got}"))
}

/// An error about the entries whose names start with `prefix`.
pub(crate) fn within(prefix: &str, reason: impl std::fmt::Display) -> DistillError {
    DistillError::State(format!("`{prefix}`: {reason}"))
}

/// The entry `name`, of this dtype and shape.
pub(crate) fn entry<'a>(state: &'a Entries, name: &str, kind: Kind, size: &[i64]) -> Result<&'a Tensor, DistillError> {
    let tensor = any(state, name)?;
    if tensor.kind() == kind && tensor.size() == size {
        return Ok(tensor);
    }
    Err(wrong(name, format!("{kind:?} {size:?}"), format!("{:?} {:?}", tensor.kind(), tensor.size())))
}

/// The entry `name`, of whatever dtype and shape.
pub(crate) fn any<'a>(state: &'a Entries, name: &str) -> Result<&'a Tensor, DistillError> {
    state.get(name).ok_or_else(|| DistillError::State(format!("there is no `{name}`")))
}

/// The integers of the entry `name`, i64 `[length]`, each in `range`; any number of them without `length`.
pub(crate) fn integers(
    state: &Entries,
    name: &str,
    length: Option<usize>,
    range: RangeInclusive<i64>,
) -> Result<Vec<i64>, DistillError> {
    let tensor = any(state, name)?;
    let size = tensor.size();
    if tensor.kind() != Kind::Int64 || size.len() != 1 || length.is_some_and(|length| size != [length as i64]) {
        let length = length.map_or("N".to_owned(), |length| length.to_string());
        return Err(wrong(name, format!("Int64 [{length}]"), format!("{:?} {size:?}", tensor.kind())));
    }
    let values = Vec::<i64>::try_from(tensor).expect("dtype and shape were checked");
    match values.iter().find(|value| !range.contains(value)) {
        Some(value) => Err(wrong(name, format!("in {}..={}", range.start(), range.end()), value)),
        None => Ok(values),
    }
}

/// The integer `name`, i64 `[1]`, in `range`.
pub(crate) fn integer(state: &Entries, name: &str, range: RangeInclusive<i64>) -> Result<i64, DistillError> {
    Ok(integers(state, name, Some(1), range)?[0])
}

/// The number `name`, f64 `[1]`, in `range`.
pub(crate) fn number(state: &Entries, name: &str, range: RangeInclusive<f64>) -> Result<f64, DistillError> {
    let value = entry(state, name, Kind::Double, &[1])?.double_value(&[0]);
    if range.contains(&value) {
        return Ok(value);
    }
    Err(wrong(name, format!("in {}..={}", range.start(), range.end()), value))
}

/// Every number must be finite, apart from the losses of perturbations, where NaN stands for none.
pub(crate) fn check_finite(state: &Entries) -> Result<(), DistillError> {
    let broken = state.iter().find(|(name, tensor)| {
        let fractional = matches!(tensor.kind(), Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16);
        fractional && !name.ends_with(".losses") && tensor.isfinite().all().int64_value(&[]) == 0
    });
    broken.map_or(Ok(()), |(name, _)| Err(wrong(name, "finite", "NaN or infinite numbers")))
}

/// The tensors whose name starts with `prefix`, without it.
pub(crate) fn section(state: &Entries, prefix: &str) -> Entries {
    state
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.shallow_clone())))
        .collect()
}

/// Adds the tensors of `section` under `prefix`.
pub(crate) fn put_section(into: &mut Entries, prefix: &str, section: impl IntoIterator<Item = (String, Tensor)>) {
    into.extend(section.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let state = Entries::from([
            ("n".to_owned(), Tensor::from_slice(&[3i64])),
            ("x".to_owned(), Tensor::from_slice(&[0.5f64])),
            ("nan".to_owned(), Tensor::from_slice(&[f32::NAN])),
        ]);
        assert_eq!(integer(&state, "n", 0..=3).unwrap(), 3);
        assert_eq!(number(&state, "x", 0.0..=1.0).unwrap(), 0.5);
        for (result, message) in [
            (integer(&state, "n", 0..=2).map(drop), "`n` must be in 0..=2, got 3"),
            (integer(&state, "x", 0..=2).map(drop), "`x` must be Int64 [1], got Double [1]"),
            (integers(&state, "n", Some(2), 0..=9).map(drop), "`n` must be Int64 [2], got Int64 [1]"),
            (integers(&state, "x", None, 0..=9).map(drop), "`x` must be Int64 [N], got Double [1]"),
            (integer(&state, "m", 0..=2).map(drop), "there is no `m`"),
            (number(&state, "x", 0.0..=0.4).map(drop), "`x` must be in 0..=0.4, got 0.5"),
            (entry(&state, "nan", Kind::Float, &[1, 1]).map(drop), "`nan` must be Float [1, 1], got Float [1]"),
            (check_finite(&state), "`nan` must be finite, got NaN or infinite numbers"),
        ] {
            assert!(result.unwrap_err().to_string().ends_with(message), "{message}");
        }
        let losses = Entries::from([("cache.losses".to_owned(), Tensor::from_slice(&[f32::NAN]))]);
        check_finite(&losses).unwrap();
    }
}
