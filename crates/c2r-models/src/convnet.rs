use std::collections::BTreeMap;

use c2r_kernels::KernelError;
use tch::{Device, Kind, Tensor};

use crate::{
    input::ModelInput,
    spec::{ConvNetSpec, FeatureNorm},
};

/// Epsilon of the instance normalization, torch's default.
pub(crate) const NORM_EPS: f64 = 1e-5;

/// Module positions per block in the original `nn.Sequential`: convolution, norm, ReLU, pool.
pub(crate) const MODULES_PER_BLOCK: i64 = 4;

/// Name, shape and role of a parameter, in the order of the forward pass.
pub(crate) struct ParameterSpec {
    pub(crate) name: String,
    pub(crate) shape: Vec<i64>,
    pub(crate) init: Init,
}

/// How a parameter begins.
pub(crate) enum Init {
    /// Uniform in `[-1/sqrt(fan_in), 1/sqrt(fan_in)]`: torch's default for the weights (Kaiming uniform with
    /// a = sqrt(5)) and the biases of convolutions and linear layers.
    Uniform { fan_in: i64 },
    /// A constant.
    Constant(f32),
}

/// Height and width after `depth` poolings.
pub(crate) fn feature_size(spec: &ConvNetSpec, input: &ModelInput) -> (i64, i64) {
    (input.height >> spec.depth, input.width >> spec.depth)
}

/// The parameters of a ConvNet, with the names of the field's `state_dict`.
pub(crate) fn parameters(spec: &ConvNetSpec, input: &ModelInput) -> Vec<ParameterSpec> {
    let mut all = Vec::new();
    let mut add = |name: String, shape: Vec<i64>, init: Init| all.push(ParameterSpec { name, shape, init });
    let mut channels = input.channels;
    for block in 0..spec.depth {
        let at = block * MODULES_PER_BLOCK;
        let fan_in = channels * 9;
        add(format!("features.{at}.weight"), vec![spec.width, channels, 3, 3], Init::Uniform { fan_in });
        add(format!("features.{at}.bias"), vec![spec.width], Init::Uniform { fan_in });
        if spec.norm == FeatureNorm::Instance {
            add(format!("features.{}.weight", at + 1), vec![spec.width], Init::Constant(1.0));
            add(format!("features.{}.bias", at + 1), vec![spec.width], Init::Constant(0.0));
        }
        channels = spec.width;
    }
    let (height, width) = feature_size(spec, input);
    let fan_in = channels * height * width;
    add("classifier.weight".into(), vec![input.n_classes, fan_in], Init::Uniform { fan_in });
    add("classifier.bias".into(), vec![input.n_classes], Init::Uniform { fan_in });
    all
}

/// The layers up to the classifier, as handles of the parameters.
#[derive(Debug)]
pub(crate) struct ConvNet(Vec<Block>);

#[derive(Debug)]
struct Block {
    convolution: (Tensor, Tensor),
    norm: Option<(Tensor, Tensor)>,
    pool: AveragePool,
}

impl ConvNet {
    /// * `parameters`: those of [`parameters`] by name, on `device`.
    pub(crate) fn new(
        spec: &ConvNetSpec,
        input: &ModelInput,
        parameters: &BTreeMap<String, Tensor>,
        device: Device,
    ) -> Self {
        let pair = |module: &str| {
            let get = |name: &str| parameters[&format!("{module}.{name}")].shallow_clone();
            (get("weight"), get("bias"))
        };
        let blocks = (0..spec.depth)
            .map(|block| {
                let at = block * MODULES_PER_BLOCK;
                Block {
                    convolution: pair(&format!("features.{at}")),
                    norm: (spec.norm == FeatureNorm::Instance).then(|| pair(&format!("features.{}", at + 1))),
                    pool: AveragePool::new(input.width >> block, device, parameters["classifier.weight"].kind()),
                }
            })
            .collect();
        Self(blocks)
    }

    /// Normalized images f32 `[N, C, H, W]` to features f32 `[N, D]`; see [`crate::network::Network::features`].
    pub(crate) fn features(&self, images: &Tensor, mut convolutions: Option<&mut Vec<Tensor>>) -> Tensor {
        let mut x = images.shallow_clone();
        for Block { convolution, norm, pool } in &self.0 {
            if let (None, Some(norm)) = (&convolutions, norm) {
                x = done(c2r_kernels::block(&x, (&convolution.0, &convolution.1), (&norm.0, &norm.1), NORM_EPS));
                continue;
            }
            x = x.conv2d(&convolution.0, Some(&convolution.1), 1, 1, 1, 1);
            if let Some(convolutions) = &mut convolutions {
                convolutions.push(x.shallow_clone());
            }
            x = match norm {
                Some((weight, bias)) => done(c2r_kernels::norm_relu_pool(&x, weight, bias, NORM_EPS)),
                // In place where it may be: the convolution does not need its output for its gradient.
                None => pool.apply(&if convolutions.is_some() { x.relu() } else { x.relu_() }),
            };
        }
        x.flatten(1, -1)
    }
}

/// What a kernel returned. Parameters have the shapes of the specification, and images were checked: what can still fail is the
/// machine, by running out of memory first of all.
fn done(result: Result<Tensor, KernelError>) -> Tensor {
    result.unwrap_or_else(|error| panic!("a block of the network could not be computed: {error}"))
}

/// 2x2 average pooling with stride 2; odd sizes are rounded down.
#[derive(Debug)]
pub(crate) struct AveragePool {
    /// On the CPU: `[2 W, W / 2]` with 1/4 where a value of a pair of rows belongs to an output.
    ///
    /// libtorch's `avg_pool2d` is slow in NCHW, above all its gradient; two rows of the image times this
    /// matrix are the same sums as one matrix product (docs/performance.md).
    averages: Option<Tensor>,
}

impl AveragePool {
    pub(crate) fn new(width: i64, device: Device, kind: Kind) -> Self {
        let half = width / 2;
        let averages = (device == Device::Cpu && half > 0).then(|| {
            let row = Tensor::eye(half, (kind, device)).repeat_interleave_self_int(2, 0, None) * 0.25;
            Tensor::cat(&[&row, &row], 0)
        });
        Self { averages }
    }

    pub(crate) fn apply(&self, x: &Tensor) -> Tensor {
        let Some(averages) = &self.averages else {
            return x.avg_pool2d([2i64, 2], [2i64, 2], [0i64, 0], false, true, None::<i64>);
        };
        let (n, channels, height, width) = x.size4().expect("features are [N, C, H, W]");
        let (half_height, half_width) = (height / 2, width / 2);
        let even = match (height % 2, width % 2) {
            (0, 0) => x.shallow_clone(),
            _ => x.narrow(2, 0, half_height * 2).narrow(3, 0, half_width * 2),
        };
        let pairs = even.reshape([n * channels * half_height, 4 * half_width]);
        pairs.matmul(averages).view([n, channels, half_height, half_width])
    }
}

#[cfg(test)]
mod tests {
    use c2r_base::grad::input_gradient;
    use c2r_testkit::{assert_close, toys};

    use super::*;

    /// Values and gradients of the fast CPU forms against the plain operators.
    #[test]
    fn pool_and_norm_equal_the_plain_operators() {
        for (height, width) in [(32, 32), (8, 8), (7, 5), (2, 2), (3, 2)] {
            let x = toys::images(3, [4, height, width]);
            let weight = toys::images(1, [4, 1, 1]).flatten(0, -1) + 0.5;
            let bias = &weight - 0.7;
            let pool = AveragePool::new(width, Device::Cpu, Kind::Float);
            let ours = |x: &Tensor| pool.apply(&x.group_norm(4, Some(&weight), Some(&bias), NORM_EPS, true).relu_());
            let plain = |x: &Tensor| {
                x.instance_norm(
                    Some(&weight),
                    Some(&bias),
                    None::<&Tensor>,
                    None::<&Tensor>,
                    true,
                    0.1,
                    NORM_EPS,
                    false,
                )
                .relu()
                .avg_pool2d([2i64, 2], [2i64, 2], [0i64, 0], false, true, None::<i64>)
            };
            let what = format!("{height}x{width}");
            assert_close(&format!("{what} forward"), &ours(&x), &plain(&x), 1e-5);
            // A loss with a different weight for each output, so that a misplaced one shows.
            let loss = |y: Tensor| {
                let (n, c, h, w) = y.size4().unwrap();
                (&y * toys::images(n, [c, h, w])).sum_dim_intlist([1i64, 2, 3].as_slice(), false, Kind::Float)
            };
            let (got, _) = input_gradient(&x, |x| loss(ours(x)));
            let (expected, _) = input_gradient(&x, |x| loss(plain(x)));
            assert_close(&format!("{what} gradient"), &got, &expected, 1e-5);
        }
    }
}
