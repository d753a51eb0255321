//! What every iteration of a distillation asks of the data: which images of a class, and their pixels.

use c2r_base::Seed;
use c2r_data::{ClassSampler, Split};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ndarray::Array4;
use tch::Device;

/// One class among ten with `n` images, 3x32x32.
fn split(n: usize) -> Split {
    let labels = (0..10 * n).map(|position| (position % 10) as i64).collect();
    Split::new(Array4::from_elem((10 * n, 3, 32, 32), 7), labels, 10).expect("lengths fit")
}

fn sampling(criterion: &mut Criterion) {
    tch::set_num_threads(1);
    let mut sampler = ClassSampler::new(Seed::new(0));
    let mut group = criterion.benchmark_group("draw-128-of-a-class");
    for n in [500, 5000] {
        let split = split(n);
        let mut t = 0;
        group.bench_function(BenchmarkId::from_parameter(n), |bencher| {
            bencher.iter(|| {
                t += 1;
                sampler.positions(&split, t, 3, 128)
            });
        });
    }
    group.finish();
    let split = split(500);
    let positions = sampler.positions(&split, 0, 3, 128);
    criterion.bench_function("batch-of-128/3x32x32", |bencher| bencher.iter(|| split.batch(&positions, Device::Cpu)));
}

criterion_group!(benches, sampling);
criterion_main!(benches);
