//! Networks that distilled images are tested on but not made with: ResNet-18, VGG-11 and AlexNet, as the field's
//! cross-architecture tables have them (Zhao et al. 2021, arXiv:2006.05929), with instance normalization for batch
//! statistics.

use crate::{
    convnet::{Init, ParameterSpec},
    input::ModelInput,
    layer::{Layer, Norm},
    spec::DeepSpec,
};

/// Channels of VGG-11's convolutions; 0 is a pooling (Simonyan & Zisserman 2015, arXiv:1409.1556, configuration A).
const VGG11: [i64; 13] = [64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0];

/// AlexNet for small images as the field has it: kernel and channels; 0 is a pooling.
const ALEXNET: [(i64, i64); 8] = [(5, 128), (0, 0), (5, 192), (0, 0), (3, 256), (3, 192), (3, 192), (0, 0)];

/// Channels of ResNet-18's stages, two blocks each; every stage but the first halves the image (He et al. 2016,
/// arXiv:1512.03385, in the form for small images: a 3x3 convolution and no pooling before the first stage).
const RESNET18: [i64; 4] = [64, 128, 256, 512];

/// The smallest image side: instance normalization of a single pixel would leave nothing of it.
pub(crate) const fn smallest_side(spec: DeepSpec) -> i64 {
    match spec {
        // Three halvings, rounded up, before the last norm sees at least two pixels.
        DeepSpec::ResNet18 => 9,
        // Four halvings before the last norm.
        DeepSpec::Vgg11 => 32,
        // Three halvings and no norm.
        DeepSpec::AlexNet => 8,
    }
}

/// Layers up to the classifier.
pub(crate) fn layers(spec: DeepSpec, input: &ModelInput) -> Vec<Layer> {
    match spec {
        DeepSpec::Vgg11 => vgg11(input.channels, Norm::Instance, 1),
        DeepSpec::AlexNet => alexnet(input.channels, 2),
        DeepSpec::ResNet18 => resnet18(input.channels, Norm::Instance, false),
    }
}

/// * `padding`: that of the first convolution.
pub(crate) fn vgg11(channels: i64, norm: Norm, padding: i64) -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut from = channels;
    for channels in VGG11 {
        if channels == 0 {
            layers.push(Layer::MaxPool);
            continue;
        }
        let name = |at: usize| format!("features.{at}");
        let at = layers.len();
        layers.push(Layer::convolution(name(at), from, channels, 3, 1, true));
        layers.push(Layer::Norm { name: name(at + 1), norm, channels });
        layers.push(Layer::Relu);
        from = channels;
    }
    pad_first(layers, padding)
}

/// * `padding`: that of the first convolution.
pub(crate) fn alexnet(channels: i64, padding: i64) -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut from = channels;
    for (kernel, channels) in ALEXNET {
        if kernel == 0 {
            layers.push(Layer::MaxPool);
            continue;
        }
        layers.push(Layer::convolution(format!("features.{}", layers.len()), from, channels, kernel, 1, true));
        layers.push(Layer::Relu);
        from = channels;
    }
    pad_first(layers, padding)
}

pub(crate) fn pad_first(mut layers: Vec<Layer>, to: i64) -> Vec<Layer> {
    if let Some(Layer::Convolution { padding, .. }) = layers.first_mut() {
        *padding = to;
    }
    layers
}

/// * `pools`: average pooling where the others have a stride, and no mean at the end (`ResNet18_AP` of DC and MTT).
pub(crate) fn resnet18(channels: i64, norm: Norm, pools: bool) -> Vec<Layer> {
    let norm = |name: String, channels: i64| Layer::Norm { name, norm, channels };
    let mut from = RESNET18[0];
    let mut layers =
        vec![Layer::convolution("conv1".into(), channels, from, 3, 1, false), norm("bn1".into(), from), Layer::Relu];
    for (stage, channels) in (1..).zip(RESNET18) {
        for block in 0..2 {
            let halves = stage > 1 && block == 0;
            let stride = if halves && !pools { 2 } else { 1 };
            let pool = || (halves && pools).then_some(Layer::AveragePool);
            let name = |part: &str| format!("layer{stage}.{block}.{part}");
            let convolution = |part: &str, from: i64, kernel: i64, stride: i64| {
                Layer::convolution(name(part), from, channels, kernel, stride, false)
            };
            let mut inner = vec![convolution("conv1", from, 3, stride), norm(name("bn1"), channels), Layer::Relu];
            inner.extend(pool());
            inner.extend([convolution("conv2", channels, 3, 1), norm(name("bn2"), channels)]);
            let mut shortcut = Vec::new();
            if halves || from != channels {
                shortcut.push(convolution("shortcut.0", from, 1, stride));
                shortcut.extend(pool());
                shortcut.push(norm(name(&format!("shortcut.{}", shortcut.len())), channels));
            }
            layers.push(Layer::Residual { inner, shortcut });
            from = channels;
        }
    }
    if !pools {
        layers.push(Layer::GlobalMean);
    }
    layers
}

/// The parameters of such a network, in the order of the forward pass.
pub(crate) fn parameters(spec: DeepSpec, input: &ModelInput) -> Vec<ParameterSpec> {
    let side = |length: i64, halvings: u32| length >> halvings;
    let features = match spec {
        DeepSpec::Vgg11 => 512 * side(input.height, 5) * side(input.width, 5),
        DeepSpec::AlexNet => 192 * side(input.height, 3) * side(input.width, 3),
        DeepSpec::ResNet18 => 512,
    };
    let mut all = Layer::parameters(&layers(spec, input));
    let init = || Init::Uniform { fan_in: features };
    all.push(ParameterSpec { name: "classifier.weight".into(), shape: vec![input.n_classes, features], init: init() });
    all.push(ParameterSpec { name: "classifier.bias".into(), shape: vec![input.n_classes], init: init() });
    all
}
