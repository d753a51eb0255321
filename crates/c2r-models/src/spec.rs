use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An architecture, written as the field writes it: `ConvNet-D3-W128-IN`.
///
/// ```
/// use c2r_models::ModelSpec;
/// let spec: ModelSpec = "ConvNet-D4-W64-NONE".parse()?;
/// assert_eq!(spec.to_string(), "ConvNet-D4-W64-NONE");
/// # Ok::<(), c2r_models::ParseModelSpecError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum ModelSpec {
    /// Convolutions and average pools.
    ConvNet(ConvNetSpec),
    /// A network of fixed size, for cross-architecture tables.
    Deep(DeepSpec),
}

/// Networks that the field tests distilled images on, besides the one they were made with. Their size is fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeepSpec {
    /// `ResNet18-IN`: the form for small images (a 3x3 convolution first, global mean last), instance-normalized;
    /// images of 9x9 pixels or more.
    ResNet18,
    /// `VGG11-IN`: eight convolutions, instance-normalized, one linear layer; images of 32x32 pixels or more.
    Vgg11,
    /// `AlexNet-NONE`: five convolutions without norms, one linear layer; images of 8x8 pixels or more.
    AlexNet,
}

impl DeepSpec {
    const ALL: [Self; 3] = [Self::ResNet18, Self::Vgg11, Self::AlexNet];

    const fn name(self) -> &'static str {
        match self {
            Self::ResNet18 => "ResNet18-IN",
            Self::Vgg11 => "VGG11-IN",
            Self::AlexNet => "AlexNet-NONE",
        }
    }
}

/// The ConvNet of the dataset distillation field (Zhao et al. 2021, arXiv:2006.05929): `depth` blocks of
/// 3x3 convolution, normalization, ReLU and 2x2 average pool, then one linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvNetSpec {
    /// Number of blocks, 1 to 6; each halves the image (odd sizes are rounded down).
    pub depth: i64,
    /// Channels of every block, 1 to 4096.
    pub width: i64,
    /// Normalization after each convolution.
    pub norm: FeatureNorm,
}

/// How a block normalizes its features. Only choices that treat every image by itself: with batch
/// statistics a synthetic image's gradient would depend on its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FeatureNorm {
    /// `IN`: instance normalization with learned scale and shift, eps 1e-5.
    Instance,
    /// `NONE`.
    None,
}

pub(crate) const DEPTHS: std::ops::RangeInclusive<i64> = 1..=6;
pub(crate) const WIDTHS: std::ops::RangeInclusive<i64> = 1..=4096;

impl ModelSpec {
    /// An instance-normalized ConvNet.
    ///
    /// # Panics
    /// If `depth` is not in 1..=6 or `width` not in 1..=4096.
    pub fn convnet(depth: i64, width: i64) -> Self {
        assert!(DEPTHS.contains(&depth) && WIDTHS.contains(&width), "no ConvNet of depth {depth} and width {width}");
        Self::ConvNet(ConvNetSpec { depth, width, norm: FeatureNorm::Instance })
    }
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConvNetSpec { depth, width, norm } = match self {
            Self::ConvNet(layers) => layers,
            Self::Deep(deep) => return f.write_str(deep.name()),
        };
        let norm = match norm {
            FeatureNorm::Instance => "IN",
            FeatureNorm::None => "NONE",
        };
        write!(f, "ConvNet-D{depth}-W{width}-{norm}")
    }
}

/// A text that names no [`ModelSpec`].
#[derive(Debug, thiserror::Error)]
#[error(
    "`{text}` is not a model: {reason} (write e.g. ConvNet-D3-W128-IN: depth 1 to 6, width, IN or NONE; or ResNet18-IN, VGG11-IN, AlexNet-NONE)"
)]
pub struct ParseModelSpecError {
    text: String,
    reason: String,
}

impl FromStr for ModelSpec {
    type Err = ParseModelSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |reason: String| ParseModelSpecError { text: text.to_owned(), reason };
        if let Some(deep) = DeepSpec::ALL.into_iter().find(|deep| deep.name() == text) {
            return Ok(Self::Deep(deep));
        }
        let is_relative = |deep: &DeepSpec| deep.name().split('-').next() == text.split('-').next();
        if let Some(deep) = DeepSpec::ALL.into_iter().find(is_relative) {
            return Err(wrong(format!("the one of this family is called {}", deep.name())));
        }
        let parts: Vec<&str> = text.split('-').collect();
        let &[family, depth, width, norm] = parts.as_slice() else {
            return Err(wrong("it is none of the known networks, and the name of a ConvNet has four parts".to_owned()));
        };
        if family != "ConvNet" {
            return Err(wrong(format!("unknown family `{family}`")));
        }
        let number = |part: &str, letter: char, range: std::ops::RangeInclusive<i64>| {
            part.strip_prefix(letter)
                .filter(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
                .filter(|digits| !digits.starts_with('0'))
                .and_then(|digits| digits.parse().ok())
                .filter(|value| range.contains(value))
                .ok_or_else(|| wrong(format!("`{part}` is not {letter}{} to {letter}{}", range.start(), range.end())))
        };
        Ok(Self::ConvNet(ConvNetSpec {
            depth: number(depth, 'D', DEPTHS)?,
            width: number(width, 'W', WIDTHS)?,
            norm: match norm {
                "IN" => FeatureNorm::Instance,
                "NONE" => FeatureNorm::None,
                other => return Err(wrong(format!("unknown normalization `{other}`"))),
            },
        }))
    }
}

impl TryFrom<String> for ModelSpec {
    type Error = ParseModelSpecError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ModelSpec> for String {
    fn from(spec: ModelSpec) -> Self {
        spec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spec_round_trips() {
        for depth in DEPTHS {
            for width in [1, 32, 128, 4096] {
                for norm in [FeatureNorm::Instance, FeatureNorm::None] {
                    let spec = ModelSpec::ConvNet(ConvNetSpec { depth, width, norm });
                    assert_eq!(spec.to_string().parse::<ModelSpec>().unwrap(), spec);
                    let json = serde_json::to_string(&spec).unwrap();
                    assert_eq!(serde_json::from_str::<ModelSpec>(&json).unwrap(), spec);
                }
            }
        }
    }

    #[test]
    fn deep_networks_have_one_name_each() {
        for deep in DeepSpec::ALL {
            let spec = ModelSpec::Deep(deep);
            assert_eq!(spec.to_string().parse::<ModelSpec>().unwrap(), spec);
        }
        let message = "ResNet18-BN".parse::<ModelSpec>().unwrap_err().to_string();
        assert!(message.contains("ResNet18-IN, VGG11-IN, AlexNet-NONE"), "{message}");
    }

    #[test]
    fn errors_say_which_part_is_wrong() {
        for (text, part) in [
            ("ConvNet", "four parts"),
            ("ResNet-D3-W128-IN", "`ResNet`"),
            ("ConvNet-D0-W128-IN", "`D0` is not D1 to D6"),
            ("ConvNet-D7-W128-IN", "`D7`"),
            ("ConvNet-D03-W128-IN", "`D03`"),
            ("ConvNet-D3-W5000-IN", "`W5000`"),
            ("ConvNet-D3-128-IN", "`128`"),
            ("ConvNet-D+3-W128-IN", "`D+3`"),
            ("ConvNet-D3-W128-BN", "`BN`"),
            ("convnet-D3-W128-IN", "`convnet`"),
        ] {
            let message = text.parse::<ModelSpec>().unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("ConvNet-D3-W128-IN"), "{text}: {message}");
        }
    }
}
