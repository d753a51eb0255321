use std::collections::BTreeMap;

use tch::{Device, Tensor};

use crate::{
    convnet::{self, ConvNet, ParameterSpec},
    deep,
    error::ModelError,
    input::ModelInput,
    layer::Stack,
    spec::ModelSpec,
};

/// The layers of a [`crate::Model`] up to its classifier, whichever architecture it has.
#[derive(Debug)]
pub(crate) enum Network {
    ConvNet(ConvNet),
    Deep(Stack),
}

/// The parameters of an architecture for images of this kind.
///
/// # Errors
/// [`ModelError::TooDeep`] or [`ModelError::TooSmall`].
pub(crate) fn parameters(spec: &ModelSpec, input: &ModelInput) -> Result<Vec<ParameterSpec>, ModelError> {
    let (height, width) = (input.height, input.width);
    match spec {
        ModelSpec::ConvNet(layers) => {
            let (rows, columns) = convnet::feature_size(layers, input);
            if rows == 0 || columns == 0 {
                return Err(ModelError::TooDeep { spec: spec.to_string(), depth: layers.depth, height, width });
            }
            Ok(convnet::parameters(layers, input))
        }
        ModelSpec::Deep(deep) => {
            let smallest = deep::smallest_side(*deep);
            if height.min(width) < smallest {
                return Err(ModelError::TooSmall { spec: spec.to_string(), smallest, height, width });
            }
            Ok(deep::parameters(*deep, input))
        }
    }
}

impl Network {
    /// * `parameters`: those of [`parameters`] by name, on `device`.
    pub(crate) fn new(
        spec: &ModelSpec,
        input: &ModelInput,
        parameters: &BTreeMap<String, Tensor>,
        device: Device,
    ) -> Self {
        match spec {
            ModelSpec::ConvNet(layers) => Self::ConvNet(ConvNet::new(layers, input, parameters, device)),
            ModelSpec::Deep(deep) => Self::Deep(Stack::new(deep::layers(*deep, input), parameters)),
        }
    }

    /// Normalized images f32 `[N, C, H, W]` to features f32 `[N, D]`. What every convolution gives on the way, before its
    /// norm, is added to `convolutions`.
    pub(crate) fn features(&self, images: &Tensor, convolutions: Option<&mut Vec<Tensor>>) -> Tensor {
        match self {
            Self::ConvNet(network) => network.features(images, convolutions),
            Self::Deep(network) => network.features(images, convolutions),
        }
    }
}
