//! SRe2L-style recovery, and GUARD. Yin et al. 2023, "Squeeze, recover and relabel" (arXiv:2306.13092),
//! equations 6 to 9: a network is trained on the real images (squeeze), images are found that it recognizes
//! and that have the feature statistics of real ones (recover), and it labels every augmented view (relabel):
//!
//! `L = CE(f(A(s)), y) + alpha * sum_l m_l ( || mu_l(s) - mu_l || + || sigma^2_l(s) - sigma^2_l || )`
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
//! 0.01; GUARD: rate 0.1 and alpha 0.05.
//!
//! Differs from the paper: the ConvNet here has **instance norm, not batch norm**, so there are no running
//! statistics; mu_l and sigma^2_l are those of the convolutions' outputs, before the norm, over all real images.
//! All synthetic images are one batch (there: one image per class). The augmentation is `dsa` (there: a random
//! shift by up to 4 pixels on CIFAR), the network a ConvNet at a constant rate (there: ResNet-18 on a cosine), and
//! labels are made at temperature 1.

use std::collections::BTreeMap;

use c2r_base::{grad::gradients, loss};
use c2r_models::Model;
use tch::{Kind, Tensor};

use crate::{
    config::RecoveryConfig,
    distillation::DistillError,
    method::{Method, StepReport, Turn},
    setting::Setting,
    state::{entry, put_section, wrong},
};

/// Images per batch when the real statistics are taken.
const STATISTICS_BATCH: usize = 256;

/// Recovery in progress.
#[derive(Debug)]
pub(crate) struct Recovery {
    config: RecoveryConfig,
    /// Mean and variance of each layer's channels over the real images, f32 `[C]`; absent before the first
    /// update, because the teacher must be trained first.
    real: Option<Vec<(Tensor, Tensor)>>,
}

impl Recovery {
    pub(crate) fn new(setting: &Setting) -> Result<Self, DistillError> {
        let config = &setting.config;
        Ok(Self { config: config.need(&config.recovery, "recovery")?.clone(), real: None })
    }
}

/// Mean and variance of each channel of each layer over all real images.
fn real_statistics(teacher: &Model, turn: &mut Turn<'_>) -> Vec<(Tensor, Tensor)> {
    let _no_grad = tch::no_grad_guard();
    let setting = turn.setting;
    let all: Vec<usize> = (0..setting.data.len()).collect();
    // Sums in f64: a variance as a difference of two large f32 numbers would be noise.
    let mut sums: Vec<(Tensor, Tensor, f64)> = Vec::new();
    for positions in all.chunks(STATISTICS_BATCH) {
        let (images, _) = setting.data.batch(positions, setting.device);
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
    turn.passes.forward += setting.data.len() as u64;
    sums.into_iter()
        .map(|(first, second, n)| {
            let mean = first / n;
            let variance = second / n - mean.square();
            (mean.to_kind(Kind::Float), variance.to_kind(Kind::Float))
        })
        .collect()
}

/// `sum_l m_l ( || mu_l - mu_l(real) || + || sigma^2_l - sigma^2_l(real) || )`, a scalar.
fn statistics_distance(layers: &[Tensor], real: &[(Tensor, Tensor)], first_layer: f64) -> Tensor {
    let length = |x: Tensor| (x.square().sum(Kind::Float) + 1e-14).sqrt();
    let parts: Vec<Tensor> = layers
        .iter()
        .zip(real)
        .enumerate()
        .map(|(index, (layer, (mean, variance)))| {
            let (own_variance, own_mean) = layer.var_mean_dim([0i64, 2, 3].as_slice(), false, false);
            (length(own_mean - mean) + length(own_variance - variance)) * if index == 0 { first_layer } else { 1.0 }
        })
        .collect();
    Tensor::stack(&parts, 0).sum(Kind::Float)
}

impl Method for Recovery {
    fn update(&mut self, turn: &mut Turn<'_>) -> Result<StepReport, DistillError> {
        let setting = turn.setting;
        let teacher = turn.teacher.expect("the configuration was checked for [teacher]");
        if self.real.is_none() {
            self.real = Some(real_statistics(teacher, turn));
        }
        let real = self.real.as_ref().expect("just made");
        let seed = setting.seed.child("iteration", turn.canvas.iteration());
        let (tracked, decoded) = turn.canvas.tracked()?;
        let labels = setting.label_tensor(turn.canvas.labels());
        let draw = setting.config.dsa.draw(&mut seed.stream("dsa", 0));
        let (value, performance, matching) = tch::with_grad(|| {
            let (features, layers) = teacher.features_and_convolutions(&setting.augmented(&decoded, &draw));
            let performance = loss::ce(&teacher.classify(&features), &labels).mean(Kind::Float);
            let matching = statistics_distance(&layers, real, self.config.first_layer);
            let value = &performance + &matching * self.config.statistics;
            (value, performance.double_value(&[]), matching.double_value(&[]))
        });
        let gradient = gradients(&value, &[&tracked]).swap_remove(0);
        let n = turn.canvas.labels().len() as u64;
        turn.passes.forward += n;
        turn.passes.backward += n;
        let loss = value.double_value(&[]);
        turn.canvas.descend(&gradient, loss)?;
        Ok(StepReport { loss, performance: Some(performance), matching: Some(matching), ..StepReport::default() })
    }

    fn state(&self, into: &mut BTreeMap<String, Tensor>) {
        for (index, (mean, variance)) in self.real.iter().flatten().enumerate() {
            let pair = [("mean".to_owned(), mean.copy()), ("variance".to_owned(), variance.copy())];
            put_section(into, &format!("real.{index:04}."), pair);
        }
    }

    fn load_state(&mut self, setting: &Setting, state: &BTreeMap<String, Tensor>) -> Result<(), DistillError> {
        self.real = None;
        if !state.contains_key("real.0000.mean") {
            return Ok(());
        }
        let _no_grad = tch::no_grad_guard();
        let [c, h, w] = setting.input.image_shape();
        let blank = Tensor::zeros([1, c, h, w], (Kind::Float, setting.device));
        let (_, layers) = setting.network(setting.seed)?.features_and_convolutions(&blank);
        let layers = layers.iter().enumerate().map(|(index, layer)| {
            let get = |part: &str| {
                let name = format!("real.{index:04}.{part}");
                let tensor = entry(state, &name, Kind::Float, &layer.size()[1..2])?;
                if part == "variance" && tensor.min().double_value(&[]) < 0.0 {
                    return Err(wrong(&name, "0 or more", "negative numbers"));
                }
                Ok(tensor.to_device(setting.device).copy())
            };
            Ok((get("mean")?, get("variance")?))
        });
        self.real = Some(layers.collect::<Result<_, DistillError>>()?);
        Ok(())
    }
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
    fn statistics_are_finite_on_images() {
        let layers = [toys::images(3, [2, 4, 4])];
        let real = [(Tensor::from_slice(&[0.5f32, 0.5]), Tensor::from_slice(&[0.1f32, 0.1]))];
        assert!(statistics_distance(&layers, &real, 1.0).double_value(&[]).is_finite());
    }
}
