//! Layers and stacks of them, of which every network but [`crate::convnet`] is made.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::convnet::{AveragePool, Init, NORM_EPS, ParameterSpec};

/// A layer; names are those of its parameters before `.weight` and `.bias`.
#[derive(Debug, Clone)]
pub(crate) enum Layer {
    Convolution {
        name: String,
        from: i64,
        to: i64,
        kernel: i64,
        stride: i64,
        padding: i64,
        bias: bool,
    },
    Norm {
        name: String,
        norm: Norm,
        channels: i64,
    },
    Relu,
    /// 2x2, stride 2; odd sizes are rounded down.
    MaxPool,
    /// 2x2, stride 2; odd sizes are rounded down.
    AveragePool,
    /// `relu(inner(x) + shortcut(x))`; an empty shortcut is x itself.
    Residual {
        inner: Vec<Layer>,
        shortcut: Vec<Layer>,
    },
    /// Mean of each channel.
    GlobalMean,
}

/// A normalization with a learned scale and shift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Norm {
    /// One group per channel.
    Instance,
    /// This many groups of channels.
    Groups(i64),
    /// All of an image, which has this height and width.
    Layer(i64, i64),
    /// By the running statistics of the training, as PyTorch does after `eval()`.
    Batch,
}

impl Layer {
    /// A convolution that keeps the image's size up to its stride.
    pub(crate) fn convolution(name: String, from: i64, to: i64, kernel: i64, stride: i64, bias: bool) -> Self {
        Self::Convolution { name, from, to, kernel, stride, padding: kernel / 2, bias }
    }

    /// The parameters of `layers`, in the order of the forward pass.
    pub(crate) fn parameters(layers: &[Self]) -> Vec<ParameterSpec> {
        let mut all = Vec::new();
        collect(layers, &mut all);
        all
    }
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
            Layer::Norm { name, norm, channels } => {
                let shape = match norm {
                    Norm::Layer(height, width) => vec![*channels, *height, *width],
                    _ => vec![*channels],
                };
                add(format!("{name}.weight"), shape.clone(), Init::Constant(1.0));
                add(format!("{name}.bias"), shape, Init::Constant(0.0));
                if *norm == Norm::Batch {
                    add(format!("{name}.running_mean"), vec![*channels], Init::Constant(0.0));
                    add(format!("{name}.running_var"), vec![*channels], Init::Constant(1.0));
                }
            }
            Layer::Residual { inner, shortcut } => {
                collect(inner, all);
                collect(shortcut, all);
            }
            Layer::Relu | Layer::MaxPool | Layer::AveragePool | Layer::GlobalMean => {}
        }
    }
}

/// Layers with handles of their parameters.
#[derive(Debug)]
pub(crate) struct Stack {
    layers: Vec<Layer>,
    parameters: BTreeMap<String, Tensor>,
}

impl Stack {
    /// * `parameters`: those of [`Layer::parameters`] by name; others are not looked at.
    pub(crate) fn new(layers: Vec<Layer>, parameters: &BTreeMap<String, Tensor>) -> Self {
        let parameters = parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        Self { layers, parameters }
    }

    /// The same layers with handles of the same parameters.
    pub(crate) fn share(&self) -> Self {
        Self::new(self.layers.clone(), &self.parameters)
    }

    /// f32 `[N, C, H, W]` to f32 `[N, D]`; `convolutions` gets the output of every convolution.
    pub(crate) fn features(&self, images: &Tensor, convolutions: Option<&mut Vec<Tensor>>) -> Tensor {
        match convolutions {
            None => self.apply(&self.layers, images, &mut |_| {}),
            Some(all) => self.apply(&self.layers, images, &mut |x| all.push(x.shallow_clone())),
        }
        .flatten(1, -1)
    }

    /// How many numbers the parameters are, without running statistics.
    pub(crate) fn n_parameters(&self) -> i64 {
        let is_parameter = |(name, _): &(&String, &Tensor)| name.ends_with(".weight") || name.ends_with(".bias");
        self.parameters.iter().filter(is_parameter).map(|(_, tensor)| tensor.numel() as i64).sum()
    }

    /// All parameters by name.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.parameters.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// A parameter.
    pub(crate) fn parameter(&self, name: &str, part: &str) -> Option<&Tensor> {
        self.parameters.get(&format!("{name}.{part}"))
    }

    /// `convolved` is shown the output of every convolution.
    fn apply(&self, layers: &[Layer], images: &Tensor, convolved: &mut dyn FnMut(&Tensor)) -> Tensor {
        let mut x = images.shallow_clone();
        for layer in layers {
            x = match layer {
                Layer::Convolution { name, stride, padding, .. } => {
                    let weight = &self.parameters[&format!("{name}.weight")];
                    let y = x.conv2d(weight, self.parameter(name, "bias"), *stride, *padding, 1, 1);
                    convolved(&y);
                    y
                }
                Layer::Norm { name, norm, channels } => self.normalize(&x, name, *norm, *channels),
                Layer::Relu => x.relu(),
                Layer::MaxPool => x.max_pool2d([2i64, 2], [2i64, 2], [0i64, 0], [1i64, 1], false),
                Layer::AveragePool => AveragePool::new(x.size()[3], x.device(), x.kind()).apply(&x),
                Layer::Residual { inner, shortcut } => {
                    (self.apply(inner, &x, convolved) + self.apply(shortcut, &x, convolved)).relu()
                }
                Layer::GlobalMean => x.mean_dim([2i64, 3].as_slice(), false, None),
            };
        }
        x
    }

    fn normalize(&self, x: &Tensor, name: &str, norm: Norm, channels: i64) -> Tensor {
        let of = |part: &str| self.parameter(name, part);
        let groups = |n: i64| x.group_norm(n, of("weight"), of("bias"), NORM_EPS, true);
        match norm {
            Norm::Instance => groups(channels),
            Norm::Groups(n) => groups(n),
            Norm::Layer(height, width) => {
                x.layer_norm([channels, height, width], of("weight"), of("bias"), NORM_EPS, true)
            }
            Norm::Batch => {
                let (mean, variance) = (of("running_mean"), of("running_var"));
                x.batch_norm(of("weight"), of("bias"), mean, variance, false, 0.0, NORM_EPS, true)
            }
        }
    }
}
