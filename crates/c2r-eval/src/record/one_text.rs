//! One value per image as one text of a JSON file: an array would take a line for each.

use std::{fmt::Display, str::FromStr};

use ndarray::Array1;
use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// What is written as one text.
pub(super) trait OneText: Sized {
    fn to_text(&self) -> String;
    fn from_text(text: &str) -> Result<Self, String>;
}

/// `1101`: one yes or no per image.
impl OneText for Array1<bool> {
    fn to_text(&self) -> String {
        self.iter().map(|&bit| if bit { '1' } else { '0' }).collect()
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let bit = |c| match c {
            '0' | '1' => Ok(c == '1'),
            other => Err(format!("expected a text of 0 and 1, found {other:?} in it")),
        };
        text.chars().map(bit).collect()
    }
}

/// Numbers with spaces between them.
trait Number: Display + FromStr {}
impl Number for usize {}
impl Number for f32 {}

impl<T: Number> OneText for Array1<T> {
    fn to_text(&self) -> String {
        self.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let number = |word: &str| word.parse().map_err(|_| format!("`{word}` is not a number that fits here"));
        text.split_whitespace().map(number).collect()
    }
}

/// A field that is left out where there is none.
impl<T: OneText> OneText for Option<T> {
    fn to_text(&self) -> String {
        self.as_ref().map_or_else(String::new, OneText::to_text)
    }

    fn from_text(text: &str) -> Result<Self, String> {
        T::from_text(text).map(Some)
    }
}

pub(super) fn serialize<T: OneText, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_text())
}

pub(super) fn deserialize<'de, T: OneText, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::from_text(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}
