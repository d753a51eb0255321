//! The synthetic images while they are made: values, update rule, iteration.

use c2r_base::Seed;
use c2r_data::{ClassSampler, DataError, DatasetSpec, Split, decode_formation, mosaic};
use c2r_train::state::{State, StateError};
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use tch::{Device, Kind, Tensor};

use crate::{
    config::{CommonConfig, ImagesConfig, Init},
    error::DistillError,
    parts::optimizer::{ImageUpdate, learning_rate},
};

/// Rounds of the clustering of [`Init::Coverage`]; it ends earlier where nothing changes.
const CLUSTERING_ROUNDS: usize = 30;

/// The synthetic images of a run: what methods look at and move.
#[derive(Debug)]
pub struct SyntheticImages {
    /// The images, f32 `[M, C, H, W]`; in `[0, 1]` unless the update does not clamp them.
    images: Tensor,
    /// Class of each decoded image, `M * formation^2` of them.
    labels: Vec<i64>,
    /// The same on the device, i64.
    targets: Tensor,
    update: ImageUpdate,
    config: ImagesConfig,
    iteration: u64,
    iterations: u64,
}

impl SyntheticImages {
    /// The images before the first update.
    pub(crate) fn new(
        common: &CommonConfig,
        spec: &DatasetSpec,
        data: &Split,
        seed: Seed,
        device: Device,
    ) -> Result<Self, DataError> {
        let images = first_images(common, spec, data, seed, device)?;
        let per_class = common.decoded_per_class();
        let labels: Vec<i64> =
            (0..spec.classes.len()).flat_map(|class| std::iter::repeat_n(class as i64, per_class)).collect();
        Ok(Self {
            targets: Tensor::from_slice(&labels).to_device(device),
            labels,
            update: ImageUpdate::new(&common.images, &images, &spec.std),
            images,
            config: common.images.clone(),
            iteration: 0,
            iterations: common.iterations,
        })
    }

    /// The images as they are stored, f32 `[M, C, H, W]` in `[0, 1]`, class by class.
    pub fn stored(&self) -> Tensor {
        if self.config.clamp { self.images.shallow_clone() } else { self.images.clamp(0.0, 1.0) }
    }

    /// Class of each decoded image.
    pub fn labels(&self) -> &[i64] {
        &self.labels
    }

    /// The same as a tensor on the device, i64 `[M * formation^2]`.
    pub const fn targets(&self) -> &Tensor {
        &self.targets
    }

    /// Updates so far.
    pub const fn iteration(&self) -> u64 {
        self.iteration
    }

    /// How much of the run is done, in `[0, 1]`: 0 at the first update, 1 at the last.
    pub fn progress(&self) -> f64 {
        self.iteration as f64 / self.iterations.saturating_sub(1).max(1) as f64
    }

    /// A handle of the images that tracks gradients, and the images that it decodes to
    /// (`[M * formation^2, C, H, W]`), through which they flow.
    ///
    /// # Errors
    /// [`DistillError::Data`] if the formation does not fit the images.
    pub fn tracked(&self) -> Result<(Tensor, Tensor), DistillError> {
        let tracked = self.images.detach().set_requires_grad(true);
        let decoded = tch::with_grad(|| decode_formation(&tracked, self.config.formation))?;
        Ok((tracked, decoded))
    }

    /// Checks that `gradient` is one of the stored images; says what it is instead.
    pub(crate) fn check_gradient(&self, gradient: &Tensor) -> Result<(), String> {
        if !gradient.defined() {
            return Err("no gradient".to_owned());
        }
        let form = |tensor: &Tensor| (tensor.size(), tensor.kind(), tensor.device());
        let (expected, got) = (form(&self.images), form(gradient));
        if got == expected {
            return Ok(());
        }
        let text = |(shape, kind, device): (Vec<i64>, Kind, Device)| format!("{shape:?}, {kind:?} on {device:?}");
        Err(format!("a gradient that is {}; the stored images are {}", text(got), text(expected)))
    }

    /// Moves the images against `gradient`, of the loss by the stored images, by the configured rule.
    pub(crate) fn descend(&mut self, gradient: &Tensor) {
        let lr = learning_rate(&self.config, self.iteration, self.iterations);
        self.iteration += 1;
        self.update.apply(&mut self.images, gradient, lr, self.iteration);
    }

    /// Replaces the stored images by real ones.
    ///
    /// * `positions`: in `data`, class by class, `ipc * formation^2` of each.
    ///
    /// # Errors
    /// [`DistillError::Data`] if they do not fill the images.
    pub fn replace(&mut self, data: &Split, positions: &[usize]) -> Result<(), DistillError> {
        self.images = mosaic(&data.batch(positions, self.images.device()).0, self.config.formation)?;
        Ok(())
    }

    /// Visits images, iteration and the state of the update rule.
    pub(crate) fn state(&mut self, state: &mut State<'_>) -> Result<(), StateError> {
        state.tensor("images", &mut self.images)?;
        let [least, most] = [self.images.min(), self.images.max()].map(|value| value.double_value(&[]));
        if self.config.clamp && (least < 0.0 || most > 1.0) {
            return Err(StateError::wrong("images", "in 0..=1", format!("{least} to {most}")));
        }
        state.integer("iteration", &mut self.iteration, 0..=self.iterations as i64)?;
        state.section("update.", |state| self.update.state(state))
    }
}

/// The stored images before the first update, f32 `[M, C, H, W]`, class by class.
pub(crate) fn first_images(
    common: &CommonConfig,
    spec: &DatasetSpec,
    data: &Split,
    seed: Seed,
    device: Device,
) -> Result<Tensor, DataError> {
    let per_class = common.decoded_per_class();
    let real = |choose: &mut dyn FnMut(usize) -> Vec<usize>| {
        let positions: Vec<usize> = (0..data.n_classes()).flat_map(choose).collect();
        mosaic(&data.batch(&positions, device).0, common.images.formation)
    };
    let init_seed = seed.child("init", 0);
    match common.images.init {
        Init::Real => {
            let mut sampler = ClassSampler::new(init_seed);
            real(&mut |class| sampler.positions(data, 0, class, per_class))
        }
        Init::Coverage => real(&mut |class| covering(data, class, per_class, init_seed)),
        Init::Noise => {
            let plane = (spec.height * spec.width) as usize;
            let length = spec.channels as usize * plane;
            let mut values = Vec::with_capacity(data.n_classes() * common.ipc * length);
            for id in 0..(data.n_classes() * common.ipc) as u64 {
                let mut rng = seed.stream("init/noise", id);
                values.extend((0..length).map(|at| {
                    let channel = at / plane;
                    let noise: f64 = StandardNormal.sample(&mut rng);
                    (spec.mean[channel] + spec.std[channel] * noise).clamp(0.0, 1.0) as f32
                }));
            }
            Ok(Tensor::from_slice(&values).view([-1, spec.channels, spec.height, spec.width]).to_device(device))
        }
    }
}

/// Positions of `n` images of `class`: those nearest to the centres of a k-means clustering of the pixels,
/// started by k-means++ (Arthur & Vassilvitskii 2007), no image twice.
fn covering(data: &Split, class: usize, n: usize, seed: Seed) -> Vec<usize> {
    let _no_grad = tch::no_grad_guard();
    let positions = data.class_positions(class);
    let points = data.batch(positions, Device::Cpu).0.flatten(1, -1);
    let mut rng = seed.stream("coverage", class as u64);
    let mut chosen = vec![rng.random_range(0..positions.len()) as i64];
    let distances = |centres: &Tensor| Tensor::cdist(&points, centres, 2.0, None::<i64>).square();
    let row = |at: &[i64]| points.index_select(0, &Tensor::from_slice(at));
    let mut nearest = distances(&row(&chosen)).squeeze_dim(1);
    while chosen.len() < n {
        let weights = Vec::<f32>::try_from(&nearest).expect("distances are f32 [N]");
        let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        let mut left = rng.random::<f64>() * total;
        // With only duplicates left every weight is 0: any image will do.
        let next = weights
            .iter()
            .position(|&weight| {
                left -= f64::from(weight);
                left < 0.0
            })
            .unwrap_or_else(|| rng.random_range(0..weights.len())) as i64;
        chosen.push(next);
        nearest = nearest.minimum(&distances(&row(&[next])).squeeze_dim(1));
    }
    let mut centres = row(&chosen);
    for _ in 0..CLUSTERING_ROUNDS {
        let owner = distances(&centres).argmin(1, false);
        let member = owner.one_hot(n as i64).to_kind(Kind::Float).transpose(0, 1);
        let sizes = member.sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
        // A centre that lost all its images stays where it was.
        let moved = (member.matmul(&points) / sizes.clamp_min(1.0)).where_self(&sizes.gt(0.0), &centres);
        let shift = (&moved - &centres).abs().max().double_value(&[]);
        centres = moved;
        if shift < 1e-6 {
            break;
        }
    }
    let distances = distances(&centres);
    (0..n as i64)
        .map(|centre| {
            let at = distances.select(1, centre).argmin(0, false).int64_value(&[]);
            // Taken: infinitely far from every other centre.
            let _ = distances.select(0, at).fill_(f64::INFINITY);
            positions[at as usize]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, Array4};

    use super::*;
    use crate::DistillConfig;

    /// Means and deviations so far inside of `[0, 1]` that nothing is clamped; of 10,240 pixels of each channel.
    #[test]
    fn noise_has_the_mean_and_the_deviation_of_each_channel() {
        let mut spec = c2r_data::spec("cifar10").unwrap();
        (spec.mean, spec.std) = (vec![0.2, 0.5, 0.8], vec![0.02, 0.06, 0.04]);
        let mut common = DistillConfig::resolve("faithful", &spec, [("ipc", 1)]).unwrap().common;
        common.images.init = Init::Noise;
        let data = Split::new(Array4::zeros((10, 3, 32, 32)), Array1::from_iter(0..10), 10).unwrap();
        let images = first_images(&common, &spec, &data, Seed::new(0), Device::Cpu).unwrap();
        for channel in 0..3 {
            let pixels = images.select(1, channel as i64);
            let (mean, std) = (pixels.mean(Kind::Float).double_value(&[]), pixels.std(true).double_value(&[]));
            assert!((mean - spec.mean[channel]).abs() < 0.003, "channel {channel}: a mean of {mean}");
            assert!((std / spec.std[channel] - 1.0).abs() < 0.05, "channel {channel}: a deviation of {std}");
        }
    }
}
