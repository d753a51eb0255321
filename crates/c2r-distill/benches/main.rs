//! The parts of an iteration and the whole of it: companions, the contrastive loss with and without its queue,
//! the matching steps, an iteration of C²R. Results: docs/performance.md.
//!
//! One thread, CPU time.

#[path = "../../c2r-models/benches/cpu_time.rs"]
mod cpu_time;

use c2r_base::{Norm, Seed, ThreatModel, grad::gradients};
use c2r_core::{
    crl::CrlConfig,
    queue::{MemoryQueue, QueueConfig},
};
use c2r_data::Dataset;
use c2r_distill::{
    Attacked, CompanionAttack, CompanionConfig, DistillConfig, DistillEvent, Distillation, FgsmConfig, MultiStepConfig,
};
use c2r_models::{Frozen, Model, ModelInput};
use c2r_testkit::toys;
use cpu_time::CpuTime;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group};
use tch::{Device, Kind, Tensor};

const N: i64 = 100;
const N_CLASSES: i64 = 10;

fn companions(c: &mut Criterion<CpuTime>) {
    let input =
        ModelInput { channels: 3, height: 32, width: 32, n_classes: N_CLASSES, mean: vec![0.5; 3], std: vec![0.25; 3] };
    let spec = "ConvNet-D3-W32-IN".parse().expect("a spec");
    let model = Frozen::new(Model::new(&spec, &input, Seed::new(0), Device::Cpu).expect("sizes fit"));
    let images = toys::images(N, [3, 32, 32]);
    let labels = toys::labels(N, N_CLASSES);
    let positions: Vec<usize> = (0..N as usize).collect();
    let threat = ThreatModel::untargeted(Norm::Linf, "2/255".parse().expect("a radius"));
    let ls_pgd = config("faithful", &[]).common.companions.expect("faithful has companions");
    let pgd = CompanionConfig::Pgd(MultiStepConfig { steps: 10, rel_step_size: 0.25, random_start: true });
    let [mean, std] = [0.5, 0.25].map(|value| Tensor::full([1, 3, 1, 1], value, (Kind::Float, Device::Cpu)));
    let mut group = c.benchmark_group("companions");
    group.throughput(Throughput::Elements(N as u64)).sample_size(10);
    for (name, kind) in [("ls-pgd", ls_pgd), ("pgd-10", pgd), ("fgsm", CompanionConfig::Fgsm(FgsmConfig {}))] {
        let attack = CompanionAttack::new(&kind, threat, &mean, &std).expect("valid options");
        let attacked = Attacked { images: &images, labels: &labels, positions: &positions };
        group.bench_function(BenchmarkId::new(name, "W32/3x32x32/n100"), |b| {
            b.iter(|| attack.companions(&model, attacked, Seed::new(1), None));
        });
    }
    group.finish();
}

fn contrastive(c: &mut Criterion<CpuTime>) {
    const DIMENSION: i64 = 512;
    let mut group = c.benchmark_group("crl");
    group.sample_size(10);
    for n in [100i64, 400] {
        let embeddings = |seed: u64, n: i64| {
            let ids: Vec<u64> = (0..n as u64).collect();
            Norm::Linf.random_in_ball(&[DIMENSION], &ids, 1.0, Seed::new(seed), "bench")
        };
        let labels = toys::labels(n, N_CLASSES);
        let (anchors, companions) = (embeddings(1, n).set_requires_grad(true), embeddings(2, n));
        let config = CrlConfig { temperature: 0.1, queue: None };
        let settings = QueueConfig { per_class: 256, top_k: 64, projection: 64, momentum: 0.0 };
        let mut queue = MemoryQueue::new(settings, N_CLASSES as usize, DIMENSION, Seed::new(3), Device::Cpu);
        let stored: Vec<i64> = (0..256 * N_CLASSES).map(|row| row % N_CLASSES).collect();
        queue.push(&embeddings(4, 256 * N_CLASSES), &stored);
        for (name, queue) in [("batch", None), ("queue 10x256, top 64", Some(&queue))] {
            group.bench_function(BenchmarkId::new(name, format!("D{DIMENSION}/n{n}")), |b| {
                b.iter(|| {
                    let far = queue.and_then(|queue| queue.nearest_impostors(&anchors, &labels));
                    let loss =
                        config.contrast(&anchors, &labels, &companions, &[], far.as_ref()).loss.mean(Kind::Float);
                    gradients(&loss, &[&anchors])
                });
            });
        }
    }
    group.finish();
}

/// Key and value.
type Change<'a> = (&'a str, toml::Value);

/// A profile on the digits with a network of width 32 and what is given.
fn config(profile: &str, changes: &[Change<'_>]) -> DistillConfig {
    let spec = c2r_data::spec("digits").expect("the registry has it");
    let mut all: Vec<Change<'_>> = vec![
        ("model", "ConvNet-D3-W32-IN".into()),
        ("ipc", 10.into()),
        ("dsa", "crop_scale_rotate".into()),
        ("threat.epsilon", "32/255".into()),
        ("pool.trajectories", 1.into()),
        ("pool.min-steps", 0.into()),
        ("pool.max-steps", 30.into()),
        ("pool.batch-size", 64.into()),
        ("pool.dsa", "crop_scale_rotate".into()),
        ("experts.dsa", "crop_scale_rotate".into()),
    ];
    all.extend(changes.iter().cloned());
    DistillConfig::resolve(profile, &spec, all).expect("a configuration")
}

/// One update of the images, after all preparation.
fn updates(c: &mut Criterion<CpuTime>) {
    let digits: Dataset = c2r_data::load("digits", None).expect("the digits are embedded");
    let without_queue = toml::Value::Table("temperature = 0.1".parse().expect("TOML"));
    let cases: [(&str, &str, Vec<Change<'_>>); 6] = [
        ("iteration", "faithful", vec![]),
        ("iteration without queue", "faithful", vec![("crl", without_queue)]),
        ("iteration of the backbone", "class-mean", vec![]),
        ("matching step, dm", "dm", vec![]),
        ("matching step, dsa", "dsa", vec![("gradients.outer", 1.into())]),
        (
            "matching step, mtt (5 steps)",
            "mtt",
            vec![
                ("experts.count", 1.into()),
                ("experts.epochs", 2.into()),
                ("student.max-start", 1.into()),
                ("student.span", 1.into()),
                ("student.steps", 5.into()),
            ],
        ),
    ];
    let mut group = c.benchmark_group("update");
    group.sample_size(10);
    for (name, profile, changes) in cases {
        let config = config(profile, &changes);
        let mut distillation = Distillation::new(config, &digits, Device::Cpu).expect("a valid configuration");
        while !matches!(distillation.step().expect("finite losses"), Some(DistillEvent::Images { .. }) | None) {}
        group.bench_function(BenchmarkId::new(name, "W32/1x8x8/ipc10"), |b| {
            b.iter_batched(|| (), |()| distillation.step().expect("finite losses"), BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime::new());
    targets = companions, contrastive, updates
}

fn main() {
    c2r_testkit::keep_large_allocations();
    tch::set_num_threads(1);
    benches();
    Criterion::default().configure_from_args().final_summary();
}
