//! Classifiers whose margins and smallest adversarial distances are known in closed form.

use c2r_base::{Classifier, ClassifierError, Norm, classifier_fn};
use tch::{Device, Kind, Tensor};

/// Makes a toy a classifier on the CPU, which never fails; the toy's own `logits` needs no `unwrap`.
macro_rules! classifier {
    ($toy:ty) => {
        impl Classifier for $toy {
            fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
                Ok(self.logits(images))
            }

            fn device(&self) -> Device {
                Device::Cpu
            }
        }
    };
}

/// A model on the CPU that is a function of the images, f32 `[N, C, H, W]`, to logits, f32 `[N, K]`.
pub fn function(logits: impl Fn(&Tensor) -> Tensor) -> impl Classifier {
    fallible(move |images| Ok(logits(images)))
}

/// [`function`] that may fail.
pub fn fallible(logits: impl Fn(&Tensor) -> Result<Tensor, ClassifierError>) -> impl Classifier {
    classifier_fn(Device::Cpu, logits)
}

/// Logits `W x + b` on flattened images: the smallest change of a label in any norm is known.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// * `weight`: f32 `[K, D]`, one row per class; `bias`: f32 `[K]`.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn new(weight: Tensor, bias: Tensor) -> Self {
        let (n_classes, _) = weight.size2().expect("weight is [K, D]");
        assert_eq!(bias.size(), [n_classes], "bias is [K]");
        Self { weight, bias }
    }

    /// Two classes on images of 1 x 1 x 2: logits `(2 x_0, 1)`, so the boundary is `x_0 = 1/2` and the
    /// second pixel does nothing.
    pub fn two_pixels() -> Self {
        let weight = Tensor::from_slice(&[2.0f32, 0.0, 0.0, 0.0]).view([2, 2]);
        Self::new(weight, Tensor::from_slice(&[0.0f32, 1.0]))
    }

    /// `n_classes` classes on images of `shape` (`[C, H, W]`) with fixed weights without structure in
    /// `[-1, 1]`, zero on average over classes at a mid-grey image.
    pub fn mixed(n_classes: i64, shape: [i64; 3]) -> Self {
        let dim: i64 = shape.iter().product();
        let weight = waves(n_classes * dim, 12.9898, 1.0).view([n_classes, dim]);
        let bias = -(&weight * 0.5).sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        Self::new(weight, bias)
    }

    /// `f_y - max_{k != y} f_k` of each image, f32 `[N]`; `labels` i64 `[N]`.
    pub fn margin(&self, images: &Tensor, labels: &Tensor) -> Tensor {
        self.per_rival(images, labels, |difference, _| difference)
    }

    /// How far each image is from the nearest decision boundary of its label in `norm`, ignoring
    /// `[0, 1]`; 0 where it is misclassified. f32 `[N]`.
    ///
    /// `min_k (f_y - f_k) / |w_y - w_k|_q` with the dual norm q: L1 for Linf, L2 for L2, Linf for L1.
    pub fn distance(&self, images: &Tensor, labels: &Tensor, norm: Norm) -> Tensor {
        self.per_rival(images, labels, |difference, direction| {
            let dims = [-1i64];
            let dual = match norm {
                Norm::Linf => direction.abs().sum_dim_intlist(dims.as_slice(), false, Kind::Float),
                Norm::L2 => direction.square().sum_dim_intlist(dims.as_slice(), false, Kind::Float).sqrt(),
                Norm::L1 => direction.abs().amax(dims.as_slice(), false),
            };
            difference / dual
        })
        .clamp_min(0.0)
    }

    /// The smallest value over the other classes of `value(f_y - f_k, w_y - w_k)`.
    fn per_rival(&self, images: &Tensor, labels: &Tensor, value: impl Fn(Tensor, Tensor) -> Tensor) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let logits = self.logits(images);
        let own = logits.gather(1, &labels.unsqueeze(1), false);
        let direction = self.weight.index_select(0, labels).unsqueeze(1) - self.weight.unsqueeze(0);
        let values = value(own - &logits, direction);
        let is_own = labels.unsqueeze(1).eq_tensor(&Tensor::arange(logits.size()[1], (Kind::Int64, Device::Cpu)));
        values.masked_fill(&is_own, f64::INFINITY).amin([1i64].as_slice(), false)
    }

    /// Logits, f32 `[N, K]`, of images, f32 `[N, C, H, W]`.
    pub fn logits(&self, images: &Tensor) -> Tensor {
        images.flatten(1, -1).linear(&self.weight, Some(&self.bias))
    }
}

classifier!(Linear);

/// A small smooth network with fixed weights: `W2 tanh(W1 (x - 1/2))`. Not linear, not random.
#[derive(Debug)]
pub struct Tanh {
    hidden: Tensor,
    out: Tensor,
}

impl Tanh {
    /// For images of `shape` (`[C, H, W]`), with `n_hidden` hidden units.
    pub fn new(n_classes: i64, shape: [i64; 3], n_hidden: i64) -> Self {
        let dim: i64 = shape.iter().product();
        let hidden = waves(n_hidden * dim, 12.9898, 3.0 / (dim as f64).sqrt()).view([n_hidden, dim]);
        let out = waves(n_classes * n_hidden, 78.233, 3.0 / (n_hidden as f64).sqrt()).view([n_classes, n_hidden]);
        Self { hidden, out }
    }

    /// Logits, f32 `[N, K]`, of images, f32 `[N, C, H, W]`.
    pub fn logits(&self, images: &Tensor) -> Tensor {
        let hidden = (images.flatten(1, -1) - 0.5).linear(&self.hidden, None::<&Tensor>).tanh();
        hidden.linear(&self.out, None::<&Tensor>)
    }
}

classifier!(Tanh);

/// `n` images of `shape` (`[C, H, W]`) without structure, f32 in `[0, 1]`, the same in every run.
pub fn images(n: i64, shape: [i64; 3]) -> Tensor {
    let [channels, height, width] = shape;
    (waves(n * channels * height * width, 39.425, 0.5) + 0.5).view([n, channels, height, width])
}

/// `n` labels 0, 1, .., `n_classes` - 1, 0, .., i64.
pub fn labels(n: i64, n_classes: i64) -> Tensor {
    Tensor::arange(n, (Kind::Int64, Device::Cpu)).remainder(n_classes)
}

/// Fixed values in `[-amplitude, amplitude)`, about uniform: the fractional part of large sines.
fn waves(n: i64, frequency: f64, amplitude: f64) -> Tensor {
    let values: Vec<f32> = (0..n)
        .map(|at| {
            let value = ((at as f64 + 1.0) * frequency).sin() * 43_758.545_3;
            (((value - value.floor()) * 2.0 - 1.0) * amplitude) as f32
        })
        .collect();
    Tensor::from_slice(&values)
}

#[cfg(test)]
mod tests {
    use c2r_base::grad::input_gradient;

    use super::*;
    use crate::assert_close;

    #[test]
    fn linear_distances_by_hand() {
        // f = (x_0, x_1, x_0 + x_1 - 1): at (0.8, 0.3) the logits are 0.8, 0.3, 0.1, the differences of
        // class 0 are 0.5 along (1, -1) and 0.7 along (0, -1).
        let weight = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0, 1.0, 1.0]).view([3, 2]);
        let toy = Linear::new(weight, Tensor::from_slice(&[0.0f32, 0.0, -1.0]));
        let image = Tensor::from_slice(&[0.8f32, 0.3]).view([1, 1, 1, 2]);
        let label = Tensor::from_slice(&[0i64]);
        assert_close("margin", &toy.margin(&image, &label), &Tensor::from_slice(&[0.5f32]), 1e-6);
        for (norm, expected) in [(Norm::Linf, 0.25), (Norm::L2, 0.5 / 2f32.sqrt()), (Norm::L1, 0.5)] {
            assert_close("distance", &toy.distance(&image, &label, norm), &Tensor::from_slice(&[expected]), 1e-6);
        }
        let wrong = Tensor::from_slice(&[1i64]);
        assert_close("wrong", &toy.distance(&image, &wrong, Norm::L2), &Tensor::from_slice(&[0.0f32]), 0.0);
    }

    /// A step of the closed-form length along the dual direction ends on the boundary, in every norm.
    #[test]
    fn linear_distance_reaches_the_boundary() {
        let toy = Linear::mixed(5, [3, 4, 4]);
        let images = images(8, [3, 4, 4]);
        let labels = toy.logits(&images).argmax(1, false);
        let rival = {
            let own = toy.logits(&images).scatter_value(1, &labels.unsqueeze(1), f64::NEG_INFINITY);
            own.argmax(1, false)
        };
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            let (gradient, _) = input_gradient(&images, |x| {
                let logits = toy.logits(x);
                let at = |index: &Tensor| logits.gather(1, &index.unsqueeze(1), false).squeeze_dim(1);
                at(&rival) - at(&labels)
            });
            // The nearest boundary need not be the second-best class's, but is never farther.
            let reach = toy.margin(&images, &labels)
                / (norm.steepest(&gradient) * &gradient).flatten(1, -1).sum_dim_intlist(
                    [1i64].as_slice(),
                    false,
                    Kind::Float,
                );
            let distance = toy.distance(&images, &labels, norm);
            assert!((&distance - &reach).max().double_value(&[]) < 1e-5, "{norm}");
            assert!(distance.min().double_value(&[]) > 0.0);
            let moved = &images + norm.steepest(&gradient) * reach.view([-1, 1, 1, 1]);
            assert!(toy.margin(&moved, &labels).max().double_value(&[]) < 1e-4, "{norm}");
        }
    }

    #[test]
    fn tanh_uses_every_class_and_stays_fixed() {
        let toy = Tanh::new(4, [1, 4, 4], 16);
        let images = images(64, [1, 4, 4]);
        let counts = toy.logits(&images).argmax(1, false).bincount(None::<&Tensor>, 4);
        assert!(counts.min().int64_value(&[]) > 0, "{counts:?}");
        assert!(images.min().double_value(&[]) >= 0.0 && images.max().double_value(&[]) <= 1.0);
    }
}
