use std::collections::BTreeMap;

use tch::{Device, Tensor};

use crate::{
    convnet::{self, ConvNet, MODULES_PER_BLOCK, ParameterSpec},
    deep,
    error::ModelError,
    input::ModelInput,
    layer::{Layer, Norm, Stack},
    spec::{FeatureNorm, ModelSpec},
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

/// The layers up to the classifier, one by one.
pub(crate) fn layers(spec: &ModelSpec, input: &ModelInput) -> Vec<Layer> {
    let convnet = match spec {
        ModelSpec::Deep(deep) => return deep::layers(*deep, input),
        ModelSpec::ConvNet(convnet) => convnet,
    };
    let (mut all, width) = (Vec::new(), convnet.width);
    for block in 0..convnet.depth {
        let at = block * MODULES_PER_BLOCK;
        let from = if block == 0 { input.channels } else { width };
        all.push(Layer::convolution(format!("features.{at}"), from, width, 3, 1, true));
        if convnet.norm == FeatureNorm::Instance {
            all.push(Layer::Norm { name: format!("features.{}", at + 1), norm: Norm::Instance, channels: width });
        }
        all.extend([Layer::Relu, Layer::AveragePool]);
    }
    all
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
