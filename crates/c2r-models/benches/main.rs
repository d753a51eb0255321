//! Forward pass, input gradient and training step of the ConvNet, beside the same network made of libtorch's
//! `instance_norm` and `avg_pool2d`. Results and what follows from them: docs/performance.md.
//!
//! One thread, CPU time.

mod cpu_time;

use c2r_base::{Seed, grad};
use c2r_models::{Model, ModelInput, ModelSpec};
use c2r_testkit::toys;
use cpu_time::CpuTime;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use tch::{Device, Kind, Tensor};

/// Spec, `[C, H, W]` and batch: CIFAR-10 as published, CIFAR-10 reduced, digits.
const CASES: [(&str, [i64; 3], i64); 3] = [
    ("ConvNet-D3-W128-IN", [3, 32, 32], 128),
    ("ConvNet-D3-W32-IN", [3, 32, 32], 100),
    ("ConvNet-D3-W32-IN", [1, 8, 8], 100),
];

/// Images to logits.
type Form<'a> = &'a dyn Fn(&Tensor) -> Tensor;

fn model(spec: &str, [channels, height, width]: [i64; 3]) -> Model {
    let input = ModelInput {
        channels,
        height,
        width,
        n_classes: 10,
        mean: vec![0.5; channels as usize],
        std: vec![0.25; channels as usize],
    };
    let spec: ModelSpec = spec.parse().expect("a spec");
    Model::new(&spec, &input, Seed::new(0), Device::Cpu).expect("sizes fit")
}

/// The plain network on the parameters of `model`.
fn plain(parameters: &[(String, Tensor)], images: &Tensor) -> Tensor {
    let get = |name: String| &parameters.iter().find(|(own, _)| *own == name).expect("a parameter").1;
    let pair = |module: &str| (get(format!("{module}.weight")), get(format!("{module}.bias")));
    let mut x = (images - 0.5) / 0.25;
    for block in 0..3 {
        let (weight, bias) = pair(&format!("features.{}", 4 * block));
        x = x.conv2d(weight, Some(bias), 1, 1, 1, 1);
        let (weight, bias) = pair(&format!("features.{}", 4 * block + 1));
        x = x.instance_norm(Some(weight), Some(bias), None::<&Tensor>, None::<&Tensor>, true, 0.1, 1e-5, true);
        x = x.relu().avg_pool2d([2i64, 2], [2i64, 2], [0i64, 0], false, true, None::<i64>);
    }
    let (weight, bias) = pair("classifier");
    x.flatten(1, -1).linear(weight, Some(bias))
}

fn networks(c: &mut Criterion<CpuTime>) {
    for (spec, shape, n) in CASES {
        let model = model(spec, shape);
        let parameters = model.parameters();
        let handles: Vec<&Tensor> = parameters.iter().map(|(_, tensor)| tensor).collect();
        let images = toys::images(n, shape);
        let labels = toys::labels(n, 10);
        let ours = |x: &Tensor| model.logits(x);
        let plain = |x: &Tensor| plain(&parameters, x);
        let forms: [(&str, Form<'_>); 2] = [("c2r", &ours), ("plain", &plain)];
        let id = |form: &str| BenchmarkId::new(form, format!("{spec}/{}x{}x{}/n{n}", shape[0], shape[1], shape[2]));
        let losses =
            |logits: Tensor| logits.cross_entropy_loss(&labels, None::<&Tensor>, tch::Reduction::None, -100, 0.0);
        let mut run = |group: &str, form: &str, work: &dyn Fn()| {
            let mut group = c.benchmark_group(group);
            group.throughput(Throughput::Elements(n as u64)).sample_size(20);
            group.bench_function(id(form), |b| b.iter(work));
            group.finish();
        };
        model.set_trainable(false);
        for (form, logits) in forms {
            run("forward", form, &|| {
                let _no_grad = tch::no_grad_guard();
                drop(logits(&images));
            });
            run("input-gradient", form, &|| drop(grad::input_gradient(&images, |x| losses(logits(x)))));
        }
        model.set_trainable(true);
        for (form, logits) in forms {
            run("parameter-gradient", form, &|| {
                let loss = losses(logits(&images)).mean(Kind::Float);
                drop(grad::gradients(&loss, &handles));
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime::new());
    targets = networks
}

fn main() {
    c2r_testkit::keep_large_allocations();
    tch::set_num_threads(1);
    benches();
    Criterion::default().configure_from_args().final_summary();
}
