//! SRe2L-style recovery, and GUARD. Yin et al. 2023, "Squeeze, recover and relabel" (arXiv:2306.13092),
//! equations 6 to 9: a network is trained on the real images (squeeze), images are found that it recognizes
//! and that have the feature statistics of real ones (recover), and it labels every augmented view (relabel):
//!
//! `L = CE(f(A(s)), y) + alpha * sum_l m_l ( || mu_l(s) - mu_l || + || sigma^2_l(s) - sigma^2_l || )`
//!
//! plus, where `[recovery]` gives them a weight, the two priors of images that the code knows: total variation and the
//! length of an image, both of normalized values as the network sees them ([`image_priors`]).
//!
//! mu_l and sigma^2_l are mean and variance of each channel of layer l over images and places; m_l is 10 for the
//! first layer and 1 for the others, as in the authors' code.
//!
//! **GUARD** (Xue et al. 2025, arXiv:2403.10045) is the same with a penalty on the curvature of the loss in the
//! squeeze: [`crate::CurvatureConfig`] in `[pool]`.
//!
//! The network is the teacher: `[teacher]` says how long, `[pool]` how it is trained.
//!
//! Defaults (`data/profiles/sre2l.toml`, `guard.toml`): CIFAR values of the authors' scripts: Adam with betas
//! 0.5 and 0.9, rate 0.25 on normalized values falling on a cosine to 0, 1,000 iterations from noise, alpha
//! 0.01, the same for GUARD. The priors are off: the authors' code for CIFAR and Tiny-ImageNet has none, and
//! their command for ImageNet gives both a weight of 0 (the defaults of that program are 1e-4 and 1e-5).
//!
//! Differs from the paper: the ConvNet here has **instance norm, not batch norm**, so there are no running
//! statistics; mu_l and sigma^2_l are those of the convolutions' outputs, before the norm, over all real images.
//! All synthetic images are one batch (there: one image per class). The augmentation is `dsa` (there: a random
//! shift by up to 4 pixels on CIFAR), the network a ConvNet at a constant rate (there: ResNet-18 on a cosine), and
//! labels are made at temperature 1.

use std::sync::Arc;

use c2r_base::{grad::gradients, loss};
use c2r_models::Model;
use c2r_train::{
    ranges::not_negative,
    state::{State, StateError},
};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{
    config::CommonConfig,
    context::Context,
    cost::Work,
    error::{ConfigError, DistillError},
    method::{Measured, Method, MethodConfig, MethodEntry, Needs, Step},
};

/// Images per batch when the real statistics are taken.
const STATISTICS_BATCH: usize = 256;

/// Recovery's line of the registry.
pub(crate) const ENTRY: MethodEntry = MethodEntry {
    name: "recovery",
    sections: &["pool", "companions", "recovery"],
    augmented: &[],
    read: |sections| Ok(Arc::new(sections.read::<RecoveryConfig>()?)),
};

/// Options of recovery.
#[derive(Clone, Debug, Deserialize)]
pub struct RecoveryConfig {
    /// The feature statistics.
    pub recovery: StatisticsConfig,
}

/// The term of feature statistics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StatisticsConfig {
    /// Weight of the distance of feature statistics.
    pub statistics: f64,
    /// How many times the first layer's statistics count.
    pub first_layer: f64,
    /// Weight of the total variation; the authors' commands have 0.
    #[serde(default)]
    pub total_variation: f64,
    /// Weight of the mean length (L2) of an image; the authors' commands have 0.
    #[serde(default)]
    pub l2: f64,
}

impl MethodConfig for RecoveryConfig {
    fn entry(&self) -> &'static MethodEntry {
        &ENTRY
    }

    fn sections(&self) -> Vec<(&'static str, &dyn erased_serde::Serialize)> {
        vec![("recovery", &self.recovery)]
    }

    fn validate(&self, _: &CommonConfig) -> Result<(), ConfigError> {
        let StatisticsConfig { statistics, first_layer, total_variation, l2 } = self.recovery;
        not_negative("recovery.statistics", statistics)?;
        not_negative("recovery.first-layer", first_layer)?;
        not_negative("recovery.total-variation", total_variation)?;
        Ok(not_negative("recovery.l2", l2)?)
    }

    fn needs(&self) -> Needs {
        Needs { teacher: true, ..Needs::default() }
    }

    fn add_work(&self, common: &CommonConfig, n_classes: usize, n_train: usize, total: &mut Work) {
        let (iterations, decoded) = (common.iterations as f64, (n_classes * common.decoded_per_class()) as f64);
        total.forward += n_train as f64 + iterations * decoded;
        total.input_gradient += iterations * decoded;
    }

    fn build(&self, _: &Context) -> Result<Box<dyn Method>, DistillError> {
        Ok(Box::new(Recovery { config: self.recovery.clone(), real: None }))
    }
}

/// Recovery in progress.
#[derive(Debug)]
struct Recovery {
    config: StatisticsConfig,
    /// Mean and variance of each layer's channels over the real images, f32 `[C]`; absent before the first
    /// update, because the teacher must be trained first.
    real: Option<Vec<(Tensor, Tensor)>>,
}

/// Mean and variance of each channel of each layer over all real images.
fn real_statistics(teacher: &Model, step: &mut Step<'_>) -> Vec<(Tensor, Tensor)> {
    let _no_grad = tch::no_grad_guard();
    let context = step.context;
    let n = context.data.len();
    let all = context.batches.rows((0..n).collect());
    // Sums in f64: a variance as a difference of two large f32 numbers would be noise.
    let mut sums: Vec<(Tensor, Tensor, f64)> = Vec::new();
    for start in (0..n).step_by(STATISTICS_BATCH) {
        let (images, _) = context.real(&all.part(start, STATISTICS_BATCH.min(n - start)));
        let (_, layers) = teacher.features_and_convolutions(&images);
        for (index, layer) in layers.iter().enumerate() {
            let values = layer.to_kind(Kind::Double);
            let sum = |x: &Tensor| x.sum_dim_intlist([0i64, 2, 3].as_slice(), false, Kind::Double);
            let (first, second) = (sum(&values), sum(&values.square()));
            let n = layer.numel() as f64 / layer.size()[1] as f64;
            match sums.get_mut(index) {
                Some(total) => {
                    total.0 += first;
                    total.1 += second;
                    total.2 += n;
                }
                None => sums.push((first, second, n)),
            }
        }
    }
    step.passes.forward += context.data.len() as u64;
    sums.into_iter()
        .map(|(first, second, n)| {
            let mean = first / n;
            let variance = second / n - mean.square();
            (mean.to_kind(Kind::Float), variance.to_kind(Kind::Float))
        })
        .collect()
}

/// A length whose derivative is defined at 0.
fn length(x: &Tensor) -> Tensor {
    (x.square().sum(Kind::Float) + 1e-14).sqrt()
}

/// Total variation, the sum of the lengths of the differences to the neighbours in four directions (across, down and both
/// diagonals) over the whole batch, and the mean length of an image: two scalars, as in the authors' `recover/utils.py` and
/// `data_synthesis.py`.
///
/// * `images`: f32 `[N, C, H, W]`, normalized.
fn image_priors(images: &Tensor) -> (Tensor, Tensor) {
    let (n, _, h, w) = images.size4().expect("images are [N, C, H, W]");
    // The part of the picture that begins at a row and a column and leaves out as many rows and columns.
    let part =
        |row: i64, column: i64, rows: i64, columns: i64| images.narrow(2, row, h - rows).narrow(3, column, w - columns);
    let differences = [
        part(0, 0, 0, 1) - part(0, 1, 0, 1),
        part(0, 0, 1, 0) - part(1, 0, 1, 0),
        part(1, 0, 1, 1) - part(0, 1, 1, 1),
        part(0, 0, 1, 1) - part(1, 1, 1, 1),
    ];
    let variation = Tensor::stack(&differences.map(|difference| length(&difference)), 0).sum(Kind::Float);
    let lengths =
        (images.reshape([n, -1]).square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float) + 1e-14).sqrt();
    (variation, lengths.mean(Kind::Float))
}

/// `sum_l m_l ( || mu_l - mu_l(real) || + || sigma^2_l - sigma^2_l(real) || )`, a scalar.
fn statistics_distance(layers: &[Tensor], real: &[(Tensor, Tensor)], first_layer: f64) -> Tensor {
    let parts: Vec<Tensor> = layers
        .iter()
        .zip(real)
        .enumerate()
        .map(|(index, (layer, (mean, variance)))| {
            let (own_variance, own_mean) = layer.var_mean_dim([0i64, 2, 3].as_slice(), false, false);
            (length(&(own_mean - mean)) + length(&(own_variance - variance)))
                * if index == 0 { first_layer } else { 1.0 }
        })
        .collect();
    Tensor::stack(&parts, 0).sum(Kind::Float)
}

impl Method for Recovery {
    fn update(&mut self, step: &mut Step<'_>) -> Result<Measured, DistillError> {
        let context = step.context;
        let teacher = step.teacher.ok_or_else(|| context.missing("teacher"))?;
        let real = self.real.get_or_insert_with(|| real_statistics(teacher, step));
        let seed = context.seed.child("iteration", step.images.iteration());
        let (tracked, decoded) = step.images.tracked()?;
        let labels = step.images.targets().shallow_clone();
        let draw = context.common.dsa.draw(&mut seed.stream("dsa", 0));
        let (value, performance, matching) = tch::with_grad(|| {
            let views = context.augmented(&decoded, &draw);
            let (features, layers) = teacher.features_and_convolutions(&views);
            let performance = loss::ce(&teacher.classify(&features), &labels).mean(Kind::Float);
            let StatisticsConfig { statistics, first_layer, total_variation, l2 } = self.config;
            let matching = statistics_distance(&layers, real, first_layer);
            let mut value = &performance + &matching * statistics;
            if total_variation > 0.0 || l2 > 0.0 {
                let (variation, size) = image_priors(&context.normalized(&views));
                value = value + variation * total_variation + size * l2;
            }
            (value, performance.detach(), matching.detach())
        });
        let gradient = gradients(&value, &[&tracked]).swap_remove(0);
        let n = step.images.labels().len() as u64;
        step.passes.forward += n;
        step.passes.backward += n;
        let loss = value.detach();
        step.descend(&gradient, &loss);
        Ok(Measured { loss, performance: Some(performance), matching: Some(matching), ..Measured::default() })
    }

    fn state(&mut self, context: &Context, state: &mut State<'_>) -> Result<(), DistillError> {
        state.optional("real.0000.mean", &mut self.real, || blank_statistics(context))?;
        for (index, (mean, variance)) in self.real.iter_mut().flatten().enumerate() {
            state.section(&format!("real.{index:04}."), |state| {
                state.tensor("mean", mean)?;
                state.tensor("variance", variance)?;
                if variance.min().double_value(&[]) < 0.0 {
                    return Err(StateError::wrong(&state.name("variance"), "0 or more", "negative numbers"));
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Statistics of the right shapes, to be read over.
fn blank_statistics(context: &Context) -> Result<Vec<(Tensor, Tensor)>, DistillError> {
    let _no_grad = tch::no_grad_guard();
    let [c, h, w] = context.input.image_shape();
    let blank = Tensor::zeros([1, c, h, w], (Kind::Float, context.device));
    let (_, layers) = context.network(context.seed)?.features_and_convolutions(&blank);
    let zeros = |layer: &Tensor| Tensor::zeros(&layer.size()[1..2], (Kind::Float, context.device));
    Ok(layers.iter().map(|layer| (zeros(layer), zeros(layer))).collect())
}

#[cfg(test)]
mod tests {
    use c2r_testkit::toys;

    use super::*;

    #[test]
    fn statistics_distance_by_hand() {
        // One channel: 0, 2 has mean 1 and variance 1; the other: 3, 3.
        let layer = Tensor::from_slice(&[0.0f32, 2.0, 3.0, 3.0]).view([1, 2, 1, 2]);
        let real = (Tensor::from_slice(&[1.0f32, 0.0]), Tensor::from_slice(&[5.0f32, 3.0]));
        // Means differ by (0, 3), variances by (-4, -3): 3 + 5.
        let layers = [layer.shallow_clone(), layer];
        let real = [(real.0.copy(), real.1.copy()), real];
        let got = statistics_distance(&layers, &real, 10.0).double_value(&[]);
        assert!((got - 88.0).abs() < 1e-4, "{got}");
    }

    #[test]
    fn image_priors_by_hand() {
        // Across -1, -2; down -2, -3; diagonals 2 - 1 and 0 - 4: sqrt(5) + sqrt(13) + 1 + 4. Lengths sqrt(21) and 0.
        let image = Tensor::from_slice(&[0.0f32, 1.0, 2.0, 4.0]).view([1, 1, 2, 2]);
        let images = Tensor::cat(&[image.copy(), image.zeros_like()], 0);
        let (variation, size) = image_priors(&images);
        let (variation, size) = (variation.double_value(&[]), size.double_value(&[]));
        assert!((variation - (5f64.sqrt() + 13f64.sqrt() + 5.0)).abs() < 1e-4, "{variation}");
        assert!((size - 21f64.sqrt() / 2.0).abs() < 1e-4, "{size}");
    }

    #[test]
    fn statistics_are_finite_on_images() {
        let layers = [toys::images(3, [2, 4, 4])];
        let real = [(Tensor::from_slice(&[0.5f32, 0.5]), Tensor::from_slice(&[0.1f32, 0.1]))];
        assert!(statistics_distance(&layers, &real, 1.0).double_value(&[]).is_finite());
    }
}
