//! Seconds per attack on a small convolutional network, without data: fixed weights, fixed images.

use c2r_attacks::{AttackBatch, AttackConfig};
use c2r_base::{Classifier, ClassifierError, Norm, Seed, ThreatModel};
use criterion::{Criterion, criterion_group, criterion_main};
use tch::{Device, Kind, Tensor};

const N: i64 = 32;
const WIDTH: i64 = 32;

/// Three blocks of convolution, group norm, ReLU and pooling, then a linear layer, on 3 x 32 x 32.
struct ConvNet {
    convolutions: Vec<Tensor>,
    linear: Tensor,
}

/// Fixed numbers without structure in [-1, 1].
fn waves(shape: &[i64]) -> Tensor {
    let n: i64 = shape.iter().product();
    (Tensor::arange(n, (Kind::Double, Device::Cpu)) * 12.9898).sin().view(shape).to_kind(Kind::Float)
}

impl ConvNet {
    fn new() -> Self {
        let convolutions =
            [3, WIDTH, WIDTH].map(|channels| waves(&[WIDTH, channels, 3, 3]) / (9.0 * channels as f64).sqrt());
        Self { convolutions: convolutions.into(), linear: waves(&[10, WIDTH * 16]) / (WIDTH as f64 * 16.0).sqrt() }
    }
}

impl Classifier for ConvNet {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        let mut x = images.shallow_clone();
        for weight in &self.convolutions {
            x = x.conv2d(weight, None::<Tensor>, 1, 1, 1, 1).group_norm(
                WIDTH,
                None::<Tensor>,
                None::<Tensor>,
                1e-5,
                true,
            );
            x = x.relu().avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>);
        }
        Ok(x.flatten(1, -1).linear(&self.linear, None::<Tensor>))
    }

    fn device(&self) -> Device {
        Device::Cpu
    }
}

fn attacks(criterion: &mut Criterion) {
    c2r_testkit::keep_large_allocations();
    let model = ConvNet::new();
    let images = waves(&[N, 3, 32, 32]) * 0.5 + 0.5;
    let labels = {
        let _no_grad = tch::no_grad_guard();
        model.logits(&images).unwrap().argmax(1, false)
    };
    let ids: Vec<u64> = (0..N as u64).collect();
    let batch = AttackBatch { images: &images, labels: &labels, ids: &ids, targets: None };
    let mut group = criterion.benchmark_group("attack");
    group.sample_size(10);
    for (name, norm, epsilon, options) in [
        ("fgsm", Norm::Linf, "2/255", &[][..]),
        ("pgd", Norm::Linf, "2/255", &[]),
        ("pgd", Norm::L2, "0.5", &[]),
        ("pgd", Norm::L1, "5", &[]),
        ("vmi-fgsm", Norm::Linf, "2/255", &[("neighbours", "5")]),
        ("apgd-ce", Norm::Linf, "0.1/255", &[("steps", "10")]),
        ("apgd-t", Norm::Linf, "0.1/255", &[("steps", "5")]),
        ("fab-t", Norm::Linf, "0.1/255", &[("steps", "5")]),
        ("square", Norm::Linf, "0.1/255", &[("queries", "50")]),
        ("square", Norm::L2, "0.01", &[("queries", "50")]),
    ] {
        let mut config = name.parse::<AttackConfig>().expect("a known attack");
        for (option, value) in options {
            config.set(option, value).expect("a known option");
        }
        let attack = config.build().expect("valid options");
        let threat = ThreatModel::untargeted(norm, epsilon.parse().expect("a radius"));
        group.bench_function(format!("{name}/{norm}/n{N}/convnet3-w{WIDTH}"), |bencher| {
            bencher.iter(|| attack.perturb(&model, &batch, &threat, Seed::new(0)).expect("finite logits"));
        });
    }
    group.finish();
}

criterion_group!(benches, attacks);
criterion_main!(benches);
