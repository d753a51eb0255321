//! Architectures as the repositories of dataset distillation define them, layer by layer and name by name: those of DC, DSA,
//! DM and MTT (`networks.py` of VICO-UoE/DatasetCondensation and GeorgeCazenavette/mtt-distillation).

use std::{fmt, str::FromStr};

use crate::{
    convnet::ParameterSpec,
    deep,
    error::ModelError,
    input::ModelInput,
    layer::{Layer, Norm},
    spec::{DEPTHS, WIDTHS},
};

/// What a `state_dict` is of: `ConvNet-D3-W128-IN`, `ResNet18-BN`, ...
///
/// More than [`crate::ModelSpec`] has, because these networks are only attacked: batch normalization has its running
/// statistics here. Activations are ReLU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    family: Family,
    norm: FieldNorm,
    pooling: Pooling,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    ConvNet {
        depth: i64,
        width: i64,
    },
    ResNet18,
    /// With average pooling instead of strides.
    ResNet18Ap,
    Vgg11,
    AlexNet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldNorm {
    Instance,
    Batch,
    /// In four groups of channels.
    Group,
    Layer,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pooling {
    Average,
    Max,
    None,
}

const NORMS: [(&str, FieldNorm); 5] = [
    ("IN", FieldNorm::Instance),
    ("BN", FieldNorm::Batch),
    ("GN", FieldNorm::Group),
    ("LN", FieldNorm::Layer),
    ("NONE", FieldNorm::None),
];
/// How ConvNet's last part names another pooling than the average.
const POOLINGS: [(&str, Pooling); 2] = [("MP", Pooling::Max), ("NP", Pooling::None)];
/// The networks of fixed size, with the norms that they are defined with.
const FIXED: [(&str, Family, &[FieldNorm]); 4] = [
    ("ResNet18", Family::ResNet18, &[FieldNorm::Instance, FieldNorm::Batch]),
    ("ResNet18AP", Family::ResNet18Ap, &[FieldNorm::Instance, FieldNorm::Batch]),
    ("VGG11", Family::Vgg11, &[FieldNorm::Instance, FieldNorm::Batch]),
    ("AlexNet", Family::AlexNet, &[FieldNorm::None]),
];
const GROUPS: i64 = 4;

impl Architecture {
    /// What may be written, for help and errors.
    pub const ALLOWED: &'static str = "ConvNet-D3-W128-IN (depth D1 to D6, any width, norm IN, BN, GN, LN or NONE, and -MP \
                                       or -NP at the end for max or no pooling), ResNet18-IN or -BN, ResNet18AP-IN or -BN, \
                                       VGG11-IN or -BN, AlexNet-NONE";

    /// The layers up to the classifier, and the length of what they give: one entry for each padding of the first
    /// convolution that the field's code uses for such images. For one channel it pads 28x28 images to 32x32.
    pub(crate) fn variants(&self, input: &ModelInput) -> Result<Vec<(Vec<Layer>, i64)>, ModelError> {
        let (usual, wide) = if self.family == Family::AlexNet { (2, 4) } else { (1, 3) };
        let paddings = match self.family {
            Family::ResNet18 | Family::ResNet18Ap => vec![usual],
            _ if input.channels == 1 => vec![wide, usual],
            _ => vec![usual],
        };
        let variants: Vec<_> = paddings
            .into_iter()
            .filter_map(|padding| {
                let padded = |side: i64| side + 2 * (padding - usual);
                let (height, width) = (padded(input.height), padded(input.width));
                let layers = self.layers(input.channels, padding, height, width);
                let n_features = self.n_features(height, width);
                (n_features > 0).then_some((layers, n_features))
            })
            .collect();
        if variants.is_empty() {
            let (height, width) = (input.height, input.width);
            let smallest = 1 << self.halvings();
            return Err(ModelError::TooSmall { spec: self.to_string(), smallest, height, width });
        }
        Ok(variants)
    }

    /// * `height`, `width`: of what the first convolution gives.
    fn layers(&self, channels: i64, padding: i64, height: i64, width: i64) -> Vec<Layer> {
        let norm = if self.norm == FieldNorm::Batch { Norm::Batch } else { Norm::Instance };
        match self.family {
            Family::ConvNet { depth, width: filters } => {
                deep::pad_first(self.convnet(channels, depth, filters, height, width), padding)
            }
            Family::ResNet18 => deep::resnet18(channels, norm, false),
            Family::ResNet18Ap => deep::resnet18(channels, norm, true),
            Family::Vgg11 => deep::vgg11(channels, norm, padding),
            Family::AlexNet => deep::alexnet(channels, padding),
        }
    }

    /// Numbered without gaps, as `nn.Sequential` does.
    fn convnet(&self, channels: i64, depth: i64, filters: i64, height: i64, width: i64) -> Vec<Layer> {
        let mut layers = Vec::new();
        let (mut from, mut height, mut width) = (channels, height, width);
        for _ in 0..depth {
            layers.push(Layer::convolution(format!("features.{}", layers.len()), from, filters, 3, 1, true));
            let norm = match self.norm {
                FieldNorm::Instance => Some(Norm::Instance),
                FieldNorm::Batch => Some(Norm::Batch),
                FieldNorm::Group => Some(Norm::Groups(GROUPS)),
                FieldNorm::Layer => Some(Norm::Layer(height, width)),
                FieldNorm::None => None,
            };
            let name = format!("features.{}", layers.len());
            layers.extend(norm.map(|norm| Layer::Norm { name, norm, channels: filters }));
            layers.push(Layer::Relu);
            match self.pooling {
                Pooling::Average => layers.push(Layer::AveragePool),
                Pooling::Max => layers.push(Layer::MaxPool),
                Pooling::None => {}
            }
            if self.pooling != Pooling::None {
                (height, width) = (height / 2, width / 2);
            }
            from = filters;
        }
        layers
    }

    /// How often the layers halve an image.
    fn halvings(&self) -> i64 {
        match self.family {
            Family::ConvNet { depth, .. } => {
                if self.pooling == Pooling::None {
                    0
                } else {
                    depth
                }
            }
            Family::Vgg11 => 5,
            Family::AlexNet | Family::ResNet18Ap => 3,
            Family::ResNet18 => 0,
        }
    }

    fn n_features(&self, height: i64, width: i64) -> i64 {
        let halvings = self.halvings();
        let channels = match self.family {
            Family::ConvNet { width, .. } => width,
            Family::AlexNet => 192,
            // A mean over the image.
            Family::ResNet18 => return 512,
            Family::Vgg11 | Family::ResNet18Ap => 512,
        };
        channels * (height >> halvings) * (width >> halvings)
    }

    /// Every architecture that a network of this width may have, the usual ones first.
    pub(crate) fn all(width: i64) -> impl Iterator<Item = Self> {
        let average = move |norm| Self { family: Family::ConvNet { depth: 1, width }, norm, pooling: Pooling::Average };
        let convnets = NORMS.into_iter().filter(move |_| WIDTHS.contains(&width)).flat_map(move |(_, norm)| {
            [Pooling::Average, Pooling::None].into_iter().flat_map(move |pooling| {
                DEPTHS.map(move |depth| Self { family: Family::ConvNet { depth, width }, pooling, ..average(norm) })
            })
        });
        let fixed = FIXED.into_iter().flat_map(|(_, family, norms)| {
            norms.iter().map(move |&norm| Self { family, norm, pooling: Pooling::Average })
        });
        convnets.chain(fixed)
    }

    /// The parameters of `layers` and of the classifier after them.
    pub(crate) fn parameters(layers: &[Layer], n_features: i64, n_classes: i64) -> Vec<(String, Vec<i64>)> {
        let named = |ParameterSpec { name, shape, .. }: ParameterSpec| (name, shape);
        let mut all: Vec<_> = Layer::parameters(layers).into_iter().map(named).collect();
        all.push(("classifier.weight".into(), vec![n_classes, n_features]));
        all.push(("classifier.bias".into(), vec![n_classes]));
        all
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.family {
            Family::ConvNet { depth, width } => write!(f, "ConvNet-D{depth}-W{width}")?,
            family => f.write_str(FIXED.iter().find(|(_, known, _)| *known == family).map_or("", |(name, ..)| name))?,
        }
        let norm = NORMS.iter().find(|(_, norm)| *norm == self.norm).map_or("", |(name, _)| name);
        let pooling = POOLINGS.iter().find(|(_, pooling)| *pooling == self.pooling);
        write!(f, "-{norm}{}", pooling.map_or(String::new(), |(name, _)| format!("-{name}")))
    }
}

/// A text that names no [`Architecture`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not one of: {allowed}", allowed = Architecture::ALLOWED)]
pub struct ParseArchitectureError(String);

impl FromStr for Architecture {
    type Err = ParseArchitectureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParseArchitectureError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Architecture> {
    let norm_of = |text: &str| NORMS.iter().find(|(name, _)| *name == text).map(|(_, norm)| *norm);
    let parts: Vec<&str> = text.split('-').collect();
    match parts[..] {
        ["ConvNet", depth, width, norm, ref rest @ ..] => {
            let number = |text: &str, letter: char| text.strip_prefix(letter)?.parse::<i64>().ok();
            let pooling = match rest {
                [] => Pooling::Average,
                [name] => POOLINGS.iter().find(|(known, _)| known == name)?.1,
                _ => return None,
            };
            let (depth, width) = (number(depth, 'D')?, number(width, 'W')?);
            let norm = norm_of(norm)?;
            let fits =
                DEPTHS.contains(&depth) && WIDTHS.contains(&width) && (norm != FieldNorm::Group || width % GROUPS == 0);
            fits.then_some(Architecture { family: Family::ConvNet { depth, width }, norm, pooling })
        }
        [name, norm] => {
            let (_, family, norms) = FIXED.into_iter().find(|(known, ..)| *known == name)?;
            let norm = norm_of(norm).filter(|norm| norms.contains(norm))?;
            Some(Architecture { family, norm, pooling: Pooling::Average })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for name in
            ["ConvNet-D3-W128-IN", "ConvNet-D4-W64-GN-MP", "ConvNet-D1-W8-NONE-NP", "ResNet18AP-BN", "AlexNet-NONE"]
        {
            assert_eq!(name.parse::<Architecture>().unwrap().to_string(), name);
        }
        for wrong in
            ["ConvNet", "ConvNet-D3-W6-GN", "ConvNet-D0-W8-IN", "ConvNet-D3-W8-IN-AP", "AlexNet-BN", "LeNet-NONE"]
        {
            let message = wrong.parse::<Architecture>().unwrap_err().to_string();
            assert!(message.contains(wrong) && message.contains("VGG11-IN"), "{message}");
        }
    }

    #[test]
    fn a_one_channel_image_is_padded_as_the_field_does_or_not_at_all() {
        let input = ModelInput { channels: 1, height: 28, width: 28, n_classes: 10, mean: vec![0.0], std: vec![1.0] };
        let features = |name: &str| -> Vec<i64> {
            let variants = name.parse::<Architecture>().unwrap().variants(&input).unwrap();
            variants.into_iter().map(|(_, n_features)| n_features).collect()
        };
        // 28 + 2 x 3 - 2 = 32 pixels, 4 after three halvings; 3 without the padding.
        assert_eq!(features("ConvNet-D3-W16-IN"), [16 * 16, 16 * 9]);
        assert_eq!(features("AlexNet-NONE"), [192 * 16, 192 * 9]);
        // 28 pixels are too few for five halvings; 32 are not.
        assert_eq!(features("VGG11-BN"), [512]);
        assert_eq!(features("ResNet18AP-IN"), [512 * 9]);
    }
}
