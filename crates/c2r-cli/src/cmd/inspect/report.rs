//! What is known of an inspected thing, and what is doubtful about it.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// Longest text of a header or configuration that is printed whole, characters.
const LONGEST_TEXT: usize = 300;
/// The version of what `--json` prints.
const SCHEMA_VERSION: u32 = 1;

/// One thing, with what is known of it.
#[derive(Serialize)]
pub(super) struct Section {
    /// What it is, for machines: `synthetic-set`, `checkpoint`, ...
    kind: &'static str,
    title: String,
    facts: Vec<(String, String)>,
    tensors: Vec<TensorFacts>,
}

#[derive(Serialize)]
pub(super) struct TensorFacts {
    name: String,
    dtype: String,
    shape: Vec<i64>,
    /// Smallest and largest value, where there are any and all are finite.
    range: Option<[f64; 2]>,
}

/// What is printed, and what is doubtful.
#[derive(Default)]
pub(super) struct Report {
    sections: Vec<Section>,
    pub(super) doubts: Vec<String>,
    /// Name of the dataset to compare with, given by the user.
    pub(super) dataset: Option<String>,
    /// Folder that holds the downloaded datasets.
    pub(super) data: Option<PathBuf>,
    /// The whole configuration of a run or a set of c2r.
    pub(super) configuration: Option<Value>,
}

impl Report {
    pub(super) fn new(dataset: Option<String>, data: Option<PathBuf>) -> Self {
        Self { dataset, data, ..Self::default() }
    }

    pub(super) fn title(&mut self, kind: &'static str, name: impl std::fmt::Display, text: impl std::fmt::Display) {
        let title = format!("{name}: {text}");
        self.sections.push(Section { kind, title, facts: Vec::new(), tensors: Vec::new() });
    }

    fn section(&mut self) -> &mut Section {
        self.sections.last_mut().expect("a title comes first")
    }

    /// Adds a fact, unless `text` is empty.
    pub(super) fn line(&mut self, name: &str, text: impl AsRef<str>) {
        let text = text.as_ref();
        if !text.is_empty() {
            self.section().facts.push((name.to_owned(), text.to_owned()));
        }
    }

    /// Adds the facts about a tensor, with `more` appended for people.
    pub(super) fn tensor(&mut self, name: &str, tensor: &Tensor, more: &str) {
        let facts = TensorFacts::of(name, tensor);
        self.line(name, format!("{}{more}", facts.text()));
        self.section().tensors.push(facts);
    }

    pub(super) fn doubt(&mut self, text: impl Into<String>) {
        self.doubts.push(text.into());
    }

    /// For people: facts are indented, and cut off where they are long.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for section in &self.sections {
            lines.push(section.title.clone());
            for (name, text) in &section.facts {
                if text.chars().count() > LONGEST_TEXT {
                    let start: String = text.chars().take(LONGEST_TEXT).collect();
                    lines.push(format!("  {name:<13} {start}... ({} bytes)", text.len()));
                } else {
                    lines.push(format!("  {name:<13} {text}"));
                }
            }
        }
        lines
    }

    /// For machines.
    pub(super) fn json(&self, what: &str) -> Value {
        json!({ "schema_version": SCHEMA_VERSION, "what": what, "found": self.sections, "looks_wrong": self.doubts })
    }
}

impl TensorFacts {
    fn of(name: &str, tensor: &Tensor) -> Self {
        let dtype = match tensor.kind() {
            Kind::Float => "f32".to_owned(),
            Kind::Double => "f64".to_owned(),
            Kind::Half => "f16".to_owned(),
            Kind::BFloat16 => "bf16".to_owned(),
            Kind::Int64 => "i64".to_owned(),
            Kind::Int => "i32".to_owned(),
            Kind::Uint8 => "u8".to_owned(),
            other => format!("{other:?}").to_lowercase(),
        };
        // f64 holds every value of the others but some i64, which a range need not tell apart.
        let values = tensor.to_kind(Kind::Double);
        let range = (tensor.numel() > 0).then(|| [values.min().double_value(&[]), values.max().double_value(&[])]);
        let range = range.filter(|range| range.iter().all(|value| value.is_finite()));
        Self { name: name.to_owned(), dtype, shape: tensor.size(), range }
    }

    /// Dtype, shape and, where there are values, their range.
    fn text(&self) -> String {
        match self.range {
            Some([low, high]) => format!("{} {:?}, {} to {}", self.dtype, self.shape, rounded(low), rounded(high)),
            None if self.shape.contains(&0) => format!("{} {:?}, empty", self.dtype, self.shape),
            None => format!("{} {:?}, not finite", self.dtype, self.shape),
        }
    }
}

/// Fractions with four digits.
fn rounded(value: f64) -> f64 {
    if value.fract() == 0.0 {
        return value;
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

pub(super) fn range_of_counts(counts: &[usize]) -> String {
    match (counts.iter().min(), counts.iter().max()) {
        (Some(low), Some(high)) if low == high => format!("{low} per class"),
        (Some(low), Some(high)) => format!("{low} to {high} per class"),
        _ => "empty".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_short_and_whole_numbers_whole() {
        assert_eq!([0.0, 12345.0, 0.941_176_5, -2.429_065_7].map(rounded), [0.0, 12345.0, 0.9412, -2.429]);
    }
}
