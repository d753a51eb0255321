//! How fast a network runs here, measured in a few seconds: the base of every time estimate.

use std::time::Instant;

use c2r_base::{Classifier, Seed, grad, loss};
use c2r_data::DatasetSpec;
use c2r_distill::Work;
use c2r_models::{ConvNetSpec, Model, ModelSpec};
use c2r_train::model_input;
use serde::{Deserialize, Serialize};
use tch::{Cuda, Device, Kind, Tensor};

/// Seconds of measuring per kind of pass, after one pass to warm up.
const SECONDS: f64 = 1.0;

/// Images per second.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Throughput {
    /// Forward only.
    pub(crate) forward: f64,
    /// Forward and backward to the pixels.
    pub(crate) input_gradient: f64,
    /// Forward and backward to the parameters; NaN where that was not measured.
    pub(crate) training: f64,
    /// Images per pass.
    pub(crate) batch_size: usize,
}

impl Throughput {
    /// Seconds for this work.
    pub(crate) fn seconds(&self, work: &Work) -> f64 {
        let Work { forward, input_gradient, training } = work;
        let backward = (1.0 / self.input_gradient - 1.0 / self.forward).max(0.0);
        let trained = if *training > 0.0 { training / self.training } else { 0.0 };
        forward / self.forward + input_gradient * backward + trained
    }
}

/// Measures a freshly initialized network on images of the dataset's shape.
pub(crate) fn measure(
    model: &ModelSpec,
    spec: &DatasetSpec,
    batch_size: usize,
    device: Device,
) -> anyhow::Result<Throughput> {
    let model = Model::new(model, &model_input(spec), Seed::new(0), device)?;
    let images = Tensor::full([batch_size as i64, spec.channels, spec.height, spec.width], 0.5, (Kind::Float, device));
    let labels = Tensor::zeros([batch_size as i64], (Kind::Int64, device));
    model.set_trainable(false);
    let attacked = of_classifier(&model, &images, &labels, true)?;
    model.set_trainable(true);
    let parameters = model.parameters();
    let handles: Vec<&Tensor> = parameters.iter().map(|(_, tensor)| tensor).collect();
    let training = rate(batch_size, device, SECONDS, &|| {
        let loss = loss::ce(&model.logits(&images), &labels).mean(Kind::Float);
        let _gradients = grad::gradients(&loss, &handles);
    });
    Ok(Throughput { training, ..attacked })
}

/// Measures a classifier on images f32 `[N, C, H, W]` with labels i64 `[N]`, both on its device.
///
/// * `has_gradient`: whether one reaches the images; without, such a pass counts as one forward.
pub(crate) fn of_classifier(
    classifier: &dyn Classifier,
    images: &Tensor,
    labels: &Tensor,
    has_gradient: bool,
) -> anyhow::Result<Throughput> {
    let (batch_size, device) = (labels.numel(), classifier.device());
    let logits = |x: &Tensor| classifier.logits(x).expect("the network fails on images that it took before");
    {
        let _no_grad = tch::no_grad_guard();
        let _logits = classifier.logits(images)?;
    }
    let rate = |pass: &dyn Fn()| rate(batch_size, device, SECONDS, pass);
    let forward = rate(&|| {
        let _no_grad = tch::no_grad_guard();
        let _logits = logits(images);
    });
    let with_gradient = || {
        rate(&|| {
            let _gradient = grad::input_gradient(images, |x| loss::ce(&logits(x), labels));
        })
    };
    let input_gradient = if has_gradient { with_gradient() } else { forward };
    Ok(Throughput { forward, input_gradient, training: f64::NAN, batch_size })
}

/// Images per second of a ConvNet's convolutions alone, each kind of pass measured for at least `seconds`: a bound for every
/// implementation that leaves convolutions to libtorch. On the CPU c2r's blocks do not, on a GPU all but the first one do: there
/// the features are channels last and the bias is left out, as in [`c2r_kernels::block`].
pub(crate) fn convolutions(
    model: &ConvNetSpec,
    spec: &DatasetSpec,
    batch_size: usize,
    device: Device,
    seconds: f64,
) -> Throughput {
    let _no_grad = tch::no_grad_guard();
    let values = |shape: [i64; 4]| {
        let [n, channels, height, width] = shape;
        let line = Tensor::linspace(-0.5, 0.5, shape.iter().product::<i64>(), (Kind::Float, device));
        match device.is_cuda() {
            true => line.view([n, height, width, channels]).permute([0, 3, 1, 2]),
            false => line.view(shape),
        }
    };
    let n = batch_size as i64;
    let layers: Vec<(Tensor, Tensor, Option<Tensor>, Tensor)> = (0..model.depth)
        .map(|block| {
            let channels = if block == 0 { spec.channels } else { model.width };
            let x = values([n, channels, spec.height >> block, spec.width >> block]);
            let weight = values([model.width, channels, 3, 3]);
            let bias = (!device.is_cuda()).then(|| Tensor::zeros([model.width], (Kind::Float, device)));
            let gradient = x.conv2d(&weight, bias.as_ref(), 1, 1, 1, 1);
            (x, weight, bias, gradient)
        })
        .collect();
    let forward = || {
        for (x, weight, bias, _) in &layers {
            let _y = x.conv2d(weight, bias.as_ref(), 1, 1, 1, 1);
        }
    };
    let backward = |wanted: &dyn Fn(usize) -> [bool; 2]| {
        for (block, (x, weight, _, gradient)) in layers.iter().enumerate() {
            let _gradients = c2r_kernels::convolution_backward(gradient, x, weight, wanted(block))
                .unwrap_or_else(|error| panic!("the gradients of a convolution could not be computed: {error}"));
        }
    };
    let rate = |pass: &dyn Fn()| rate(batch_size, device, seconds, pass);
    Throughput {
        forward: rate(&forward),
        input_gradient: rate(&|| {
            forward();
            backward(&|_| [true, false]);
        }),
        training: rate(&|| {
            forward();
            backward(&|block| [block > 0, true]);
        }),
        batch_size,
    }
}

/// Images per second of `pass`, which handles `batch_size` of them, measured for at least `seconds`.
fn rate(batch_size: usize, device: Device, seconds: f64, pass: &dyn Fn()) -> f64 {
    pass();
    synchronize(device);
    let (start, mut passes) = (Instant::now(), 0u32);
    while passes < 2 || start.elapsed().as_secs_f64() < seconds {
        pass();
        synchronize(device);
        passes += 1;
    }
    f64::from(passes) * batch_size as f64 / start.elapsed().as_secs_f64()
}

/// Waits until the device has done everything that it was asked to do.
pub(crate) fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}
