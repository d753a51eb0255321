//! Networks that distilled images are tested on but not made with: ResNet-18, VGG-11 and AlexNet, as the field's
//! cross-architecture tables have them (Zhao et al. 2021, arXiv:2006.05929), with instance normalization for batch
//! statistics.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::{
    convnet::{Init, NORM_EPS, ParameterSpec},
    input::ModelInput,
    spec::DeepSpec,
};

/// A layer; names are those of its parameters before `.weight` and `.bias`.
#[derive(Debug, Clone)]
enum Layer {
    Convolution {
        name: String,
        from: i64,
        to: i64,
        kernel: i64,
        stride: i64,
        padding: i64,
        bias: bool,
    },
    /// One group per channel.
    InstanceNorm {
        name: String,
        channels: i64,
    },
    Relu,
    /// 2x2, stride 2; odd sizes are rounded down.
    MaxPool,
    /// `relu(inner(x) + shortcut(x))`; an empty shortcut is x itself.
    Residual {
        inner: Vec<Layer>,
        shortcut: Vec<Layer>,
    },
    /// Mean of each channel.
    GlobalMean,
}

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

/// Layers up to the classifier, and the length of the embedding.
fn layers(spec: DeepSpec, input: &ModelInput) -> (Vec<Layer>, i64) {
    match spec {
        DeepSpec::Vgg11 => {
            let mut layers = Vec::new();
            let mut from = input.channels;
            for channels in VGG11 {
                if channels == 0 {
                    layers.push(Layer::MaxPool);
                    continue;
                }
                let name = |at: usize| format!("features.{at}");
                let at = layers.len();
                layers.push(convolution(name(at), from, channels, 3, 1, true));
                layers.push(Layer::InstanceNorm { name: name(at + 1), channels });
                layers.push(Layer::Relu);
                from = channels;
            }
            let side = |length: i64| length >> VGG11.iter().filter(|&&channels| channels == 0).count();
            (layers, from * side(input.height) * side(input.width))
        }
        DeepSpec::AlexNet => {
            let mut layers = Vec::new();
            let mut from = input.channels;
            for (kernel, channels) in ALEXNET {
                if kernel == 0 {
                    layers.push(Layer::MaxPool);
                    continue;
                }
                layers.push(convolution(format!("features.{}", layers.len()), from, channels, kernel, 1, true));
                layers.push(Layer::Relu);
                from = channels;
            }
            let side = |length: i64| length >> ALEXNET.iter().filter(|(kernel, _)| *kernel == 0).count();
            (layers, from * side(input.height) * side(input.width))
        }
        DeepSpec::ResNet18 => {
            let norm = |name: String, channels: i64| Layer::InstanceNorm { name, channels };
            let mut from = RESNET18[0];
            let first = convolution("conv1".into(), input.channels, from, 3, 1, false);
            let mut layers = vec![first, norm("bn1".into(), from), Layer::Relu];
            for (stage, channels) in (1..).zip(RESNET18) {
                for block in 0..2 {
                    let stride = if stage > 1 && block == 0 { 2 } else { 1 };
                    let name = |part: &str| format!("layer{stage}.{block}.{part}");
                    let inner = vec![
                        convolution(name("conv1"), from, channels, 3, stride, false),
                        norm(name("bn1"), channels),
                        Layer::Relu,
                        convolution(name("conv2"), channels, channels, 3, 1, false),
                        norm(name("bn2"), channels),
                    ];
                    let shortcut = if stride == 1 && from == channels {
                        vec![]
                    } else {
                        let fit = convolution(name("shortcut.0"), from, channels, 1, stride, false);
                        vec![fit, norm(name("shortcut.1"), channels)]
                    };
                    layers.push(Layer::Residual { inner, shortcut });
                    from = channels;
                }
            }
            layers.push(Layer::GlobalMean);
            (layers, from)
        }
    }
}

/// A convolution that keeps the image's size up to its stride.
fn convolution(name: String, from: i64, to: i64, kernel: i64, stride: i64, bias: bool) -> Layer {
    Layer::Convolution { name, from, to, kernel, stride, padding: kernel / 2, bias }
}

/// The parameters of such a network, in the order of the forward pass.
pub(crate) fn parameters(spec: DeepSpec, input: &ModelInput) -> Vec<ParameterSpec> {
    let (layers, features) = layers(spec, input);
    let mut all = Vec::new();
    collect(&layers, &mut all);
    let init = || Init::Uniform { fan_in: features };
    all.push(ParameterSpec { name: "classifier.weight".into(), shape: vec![input.n_classes, features], init: init() });
    all.push(ParameterSpec { name: "classifier.bias".into(), shape: vec![input.n_classes], init: init() });
    all
}

fn collect(layers: &[Layer], all: &mut Vec<ParameterSpec>) {
    for layer in layers {
        let mut add = |name: String, shape: Vec<i64>, init: Init| all.push(ParameterSpec { name, shape, init });
        match layer {
            Layer::Convolution { name, from, to, kernel, bias, .. } => {
                let fan_in = from * kernel * kernel;
                add(format!("{name}.weight"), vec![*to, *from, *kernel, *kernel], Init::Uniform { fan_in });
                if *bias {
                    add(format!("{name}.bias"), vec![*to], Init::Uniform { fan_in });
                }
            }
            Layer::InstanceNorm { name, channels } => {
                add(format!("{name}.weight"), vec![*channels], Init::Constant(1.0));
                add(format!("{name}.bias"), vec![*channels], Init::Constant(0.0));
            }
            Layer::Residual { inner, shortcut } => {
                collect(inner, all);
                collect(shortcut, all);
            }
            Layer::Relu | Layer::MaxPool | Layer::GlobalMean => {}
        }
    }
}

/// The layers up to the classifier, with handles of the parameters.
#[derive(Debug)]
pub(crate) struct Deep {
    layers: Vec<Layer>,
    parameters: BTreeMap<String, Tensor>,
}

impl Deep {
    /// * `parameters`: those of [`parameters`] by name.
    pub(crate) fn new(spec: DeepSpec, input: &ModelInput, parameters: &BTreeMap<String, Tensor>) -> Self {
        let parameters = parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        Self { layers: layers(spec, input).0, parameters }
    }

    /// Normalized images f32 `[N, C, H, W]` to features f32 `[N, D]`; see [`crate::network::Network::features`].
    pub(crate) fn features(&self, images: &Tensor, convolutions: Option<&mut Vec<Tensor>>) -> Tensor {
        match convolutions {
            None => self.apply(&self.layers, images, &mut |_| {}),
            Some(all) => self.apply(&self.layers, images, &mut |x| all.push(x.shallow_clone())),
        }
        .flatten(1, -1)
    }

    /// `convolved` is shown the output of every convolution.
    fn apply(&self, layers: &[Layer], images: &Tensor, convolved: &mut dyn FnMut(&Tensor)) -> Tensor {
        let parameter = |name: &str, part: &str| self.parameters.get(&format!("{name}.{part}"));
        let mut x = images.shallow_clone();
        for layer in layers {
            x = match layer {
                Layer::Convolution { name, stride, padding, .. } => {
                    let weight = &self.parameters[&format!("{name}.weight")];
                    let y = x.conv2d(weight, parameter(name, "bias"), *stride, *padding, 1, 1);
                    convolved(&y);
                    y
                }
                Layer::InstanceNorm { name, channels } => {
                    x.group_norm(*channels, parameter(name, "weight"), parameter(name, "bias"), NORM_EPS, true)
                }
                Layer::Relu => x.relu(),
                Layer::MaxPool => x.max_pool2d([2i64, 2], [2i64, 2], [0i64, 0], [1i64, 1], false),
                Layer::Residual { inner, shortcut } => {
                    (self.apply(inner, &x, convolved) + self.apply(shortcut, &x, convolved)).relu()
                }
                Layer::GlobalMean => x.mean_dim([2i64, 3].as_slice(), false, None),
            };
        }
        x
    }
}
