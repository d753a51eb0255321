//! The synthetic images while they are made: values, update rule, iteration.

use std::collections::BTreeMap;

use c2r_base::Seed;
use c2r_data::{ClassSampler, DataError, DatasetSpec, Split, decode_formation, mosaic};
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use tch::{Device, Kind, Tensor};

use crate::{
    config::{DistillConfig, Init},
    distillation::DistillError,
    optimizer::{ImageUpdate, learning_rate},
    state::{entry, integer, put_section, section, within, wrong},
};

/// Rounds of the clustering of [`Init::Coverage`]; it ends earlier where nothing changes.
const CLUSTERING_ROUNDS: usize = 30;

/// The synthetic images of a run: what methods look at and move.
#[derive(Debug)]
pub struct Canvas {
    /// The stored images, f32 `[M, C, H, W]` in `[0, 1]`.
    images: Tensor,
    /// Class of each decoded image, `M * formation^2` of them.
    labels: Vec<i64>,
    update: ImageUpdate,
    config: crate::config::ImagesConfig,
    iteration: u64,
    iterations: u64,
}

impl Canvas {
    pub(crate) fn new(
        config: &DistillConfig,
        spec: &DatasetSpec,
        data: &Split,
        seed: Seed,
        device: Device,
    ) -> Result<Self, DataError> {
        let images = first_images(config, spec, data, seed, device)?;
        let per_class = config.ipc * (config.images.formation * config.images.formation) as usize;
        Ok(Self {
            labels: (0..spec.classes.len()).flat_map(|class| std::iter::repeat_n(class as i64, per_class)).collect(),
            update: ImageUpdate::new(&config.images, &images, &spec.std),
            images,
            config: config.images.clone(),
            iteration: 0,
            iterations: config.iterations,
        })
    }

    /// The stored images, f32 `[M, C, H, W]` in `[0, 1]`, class by class.
    pub const fn images(&self) -> &Tensor {
        &self.images
    }

    /// Class of each decoded image.
    pub fn labels(&self) -> &[i64] {
        &self.labels
    }

    /// Updates so far.
    pub const fn iteration(&self) -> u64 {
        self.iteration
    }

    /// How much of the run is done, in `[0, 1]`: 0 at the first update, 1 at the last.
    pub fn progress(&self) -> f64 {
        self.iteration as f64 / self.iterations.saturating_sub(1).max(1) as f64
    }

    /// A handle of the stored images that tracks gradients, and the images that it decodes to
    /// (`[M * formation^2, C, H, W]`), through which they flow.
    ///
    /// # Errors
    /// [`DistillError::Data`] if the formation does not fit the images.
    pub fn tracked(&self) -> Result<(Tensor, Tensor), DistillError> {
        let tracked = self.images.detach().set_requires_grad(true);
        let decoded = tch::with_grad(|| decode_formation(&tracked, self.config.formation))?;
        Ok((tracked, decoded))
    }

    /// Moves the images against `gradient` by the configured rule and clamps them to `[0, 1]`.
    ///
    /// * `gradient`: of the loss by the stored images; `loss`: its value, for the error.
    ///
    /// # Errors
    /// [`DistillError::NotFinite`] if either is not finite; nothing is changed then.
    pub fn descend(&mut self, gradient: &Tensor, loss: f64) -> Result<(), DistillError> {
        let at = self.iteration + 1;
        if !loss.is_finite() {
            return Err(DistillError::NotFinite { what: "distillation loss", at, value: loss });
        }
        // A sum is finite if its terms are, but for an overflow, which is no better.
        let sum = gradient.abs().sum(Kind::Double).double_value(&[]);
        if !sum.is_finite() {
            return Err(DistillError::NotFinite { what: "gradient of the images", at, value: sum });
        }
        let lr = learning_rate(&self.config, self.iteration, self.iterations);
        self.update.apply(&mut self.images, gradient, lr, self.iteration + 1);
        self.iteration += 1;
        Ok(())
    }

    /// Puts real images in the place of the stored ones.
    ///
    /// * `positions`: in `data`, class by class, `ipc * formation^2` of each.
    ///
    /// # Errors
    /// [`DistillError::Data`] if they do not fill the images.
    pub fn show(&mut self, data: &Split, positions: &[usize]) -> Result<(), DistillError> {
        self.images = mosaic(&data.batch(positions, self.images.device()).0, self.config.formation)?;
        Ok(())
    }

    pub(crate) fn state(&self, into: &mut BTreeMap<String, Tensor>) {
        into.insert("images".to_owned(), self.images.copy());
        into.insert("iteration".to_owned(), Tensor::from_slice(&[self.iteration as i64]));
        put_section(into, "update.", self.update.state());
    }

    pub(crate) fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), DistillError> {
        let images = entry(state, "images", Kind::Float, &self.images.size())?;
        let [least, most] = [images.min(), images.max()].map(|value| value.double_value(&[]));
        if least < 0.0 || most > 1.0 {
            return Err(wrong("images", "in 0..=1", format!("{least} to {most}")));
        }
        self.images = images.to_device(self.images.device()).copy();
        self.iteration = integer(state, "iteration", 0..=self.iterations as i64)? as u64;
        self.update.load_state(&section(state, "update.")).map_err(|reason| within("update", reason))
    }
}

/// The stored images before the first update, f32 `[M, C, H, W]`, class by class.
pub(crate) fn first_images(
    config: &DistillConfig,
    spec: &DatasetSpec,
    data: &Split,
    seed: Seed,
    device: Device,
) -> Result<Tensor, DataError> {
    let per_class = config.ipc * (config.images.formation * config.images.formation) as usize;
    let real = |positions: &[usize]| mosaic(&data.batch(positions, device).0, config.images.formation);
    let init = if config.method.selects() { Init::Real } else { config.images.init };
    match init {
        Init::Real => {
            let mut sampler = ClassSampler::new(seed.child("init", 0));
            let draw = |class| sampler.positions(data, 0, class, per_class);
            real(&(0..data.n_classes()).flat_map(draw).collect::<Vec<_>>())
        }
        Init::Coverage => {
            let seed = seed.child("init", 0);
            real(&(0..data.n_classes()).flat_map(|class| covering(data, class, per_class, seed)).collect::<Vec<_>>())
        }
        Init::Noise => {
            let ids: Vec<u64> = (0..(data.n_classes() * config.ipc) as u64).collect();
            let length = (spec.channels * spec.height * spec.width) as usize;
            let mut values = Vec::with_capacity(ids.len() * length);
            for id in ids {
                let mut rng = seed.stream("init/noise", id);
                values.extend((0..length).map(|at| {
                    let channel = at / (spec.height * spec.width) as usize;
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
