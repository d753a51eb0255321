//! Projected gradient ascent, the loop at the heart of attacks and of adversarial training.
//!
//! It has no model, judges nothing and never stops early: the caller gives the function to ascend. Attacks of an
//! evaluation are in [`crate::AttackConfig`].

use c2r_base::{Ball, Norm, Seed, ThreatModel, host::send};
use tch::{Kind, Tensor};

/// Steps of fixed length in the steepest direction, each projected into the threat set (Madry et al. 2018,
/// arXiv:1706.06083, section 2.1).
///
/// ```
/// use c2r_attacks::Pgd;
/// use c2r_attacks::c2r_base::{Norm, Seed, ThreatModel, grad::input_gradient};
/// use c2r_attacks::tch::{Device, Kind, Tensor};
///
/// // Raise the brightness of two images as far as 8/255 allow.
/// let threat = ThreatModel::untargeted(Norm::Linf, "8/255".parse().unwrap());
/// let pgd = Pgd { threat, steps: 5, step_size: 2.0 / 255.0, sparsity: None };
/// let images = Tensor::full([2, 1, 4, 4], 0.5, (Kind::Float, Device::Cpu));
/// let start = pgd.random_start(&images, &[0, 1], Seed::new(3), "example/start");
/// let brightness = |x: &Tensor| x.mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float);
/// let found = pgd.ascend(&images, &start, |x| Ok::<_, ()>(input_gradient(x, brightness).0)).unwrap();
/// let moved = Norm::Linf.distance(&found, &images).max().double_value(&[]);
/// assert!(moved <= 8.0 / 255.0 + 1e-7 && found.min().double_value(&[]) > 0.5);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pgd {
    /// The ball, around the clean images, and its norm; the goal is not read.
    pub threat: ThreatModel,
    /// Number of steps.
    pub steps: u32,
    /// Length of a step in the norm, pixel units.
    pub step_size: f64,
    /// L1 only: share of the values that a step changes (Tramer & Boneh 2019, arXiv:1904.13000, section 4), in
    /// `(0, 1]`; `None` for the single steepest value. Other norms ignore it.
    pub sparsity: Option<f64>,
}

impl Pgd {
    /// A random point of the threat set for each image ([`Norm::random_in_ball`], projected).
    ///
    /// * `images`: f32 `[N, C, H, W]` in `[0, 1]`.
    /// * `ids`: N sample ids; `purpose`: names the streams of `seed` that they draw from, e.g. `train/start`.
    pub fn random_start(&self, images: &Tensor, ids: &[u64], seed: Seed, purpose: &str) -> Tensor {
        let (shape, radius) = (&images.size()[1..], self.threat.epsilon.value());
        let delta = self.threat.norm.random_in_ball(shape, ids, radius, seed, purpose);
        self.threat.project(images, &(images + send(&delta, images.device())))
    }

    /// Takes all steps and returns the last images, f32 `[N, C, H, W]`, without gradient.
    ///
    /// * `clean`: f32 `[N, C, H, W]` in `[0, 1]`, the middle of the ball; `start`: where the first step begins.
    /// * `gradient`: of what is to grow, at a point: f32 of the same shape, e.g. by
    ///   [`c2r_base::grad::input_gradient`].
    ///
    /// # Errors
    /// What `gradient` returns.
    pub fn ascend<E>(
        &self,
        clean: &Tensor,
        start: &Tensor,
        mut gradient: impl FnMut(&Tensor) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        let _no_grad = tch::no_grad_guard();
        let ball = self.threat.ball(clean);
        let mut x = start.shallow_clone();
        for _ in 0..self.steps {
            let gradient = gradient(&x)?;
            x = self.step_in(&ball, &x, &gradient);
        }
        Ok(x)
    }

    /// One step from `x`, projected into `ball`; both of f32 `[N, C, H, W]`.
    pub(crate) fn step_in(&self, ball: &Ball, x: &Tensor, gradient: &Tensor) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let direction = match (self.threat.norm, self.sparsity) {
            (Norm::L1, Some(share)) => sparse_direction(x, gradient, share),
            (norm, _) => norm.steepest(gradient),
        };
        ball.project(&(x + direction * self.step_size))
    }
}

/// Equal weight on the largest `share` of a gradient's values, L1 length 1, leaving out values that the
/// box does not let move (Tramer & Boneh 2019, arXiv:1904.13000, section 4: SLIDE).
fn sparse_direction(x: &Tensor, gradient: &Tensor, share: f64) -> Tensor {
    let blocked = gradient.gt(0.0).logical_and(&x.ge(1.0)).logical_or(&gradient.lt(0.0).logical_and(&x.le(0.0)));
    let free = gradient.masked_fill(&blocked, 0.0).flatten(1, -1);
    let n_values = free.size()[1];
    let n_moved = ((n_values as f64 * share).ceil() as i64).clamp(1, n_values);
    let (_, at) = free.abs().topk(n_moved, 1, true, false);
    let signs = free.gather(1, &at, false).sign();
    let moved = signs.abs().sum_dim_intlist([1i64].as_slice(), true, Kind::Float).clamp_min(1.0);
    free.zeros_like().scatter(1, &at, &(signs / moved)).view_as(gradient)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// Of ten values 25 % are three, rounded up: the largest three that the box lets move.
    #[test]
    fn sparse_steps_move_the_largest_values_that_are_free() {
        let x = Tensor::full([1, 1, 1, 10], 0.5, (Kind::Float, Device::Cpu));
        // The first value cannot rise, and the second cannot fall.
        let _ = (x.narrow(3, 0, 1).fill_(1.0), x.narrow(3, 1, 1).fill_(0.0));
        let gradient =
            Tensor::from_slice(&[9.0f32, -8.0, 1.0, -7.0, 2.0, 6.0, 3.0, -5.0, 0.5, 4.0]).view([1, 1, 1, 10]);
        let direction = Vec::<f32>::try_from(sparse_direction(&x, &gradient, 0.25).view(-1)).unwrap();
        let third = 1.0 / 3.0;
        assert_eq!(direction, [0.0, 0.0, 0.0, -third, 0.0, third, 0.0, -third, 0.0, 0.0]);
    }

    #[test]
    fn a_random_start_may_lie_anywhere_in_the_ball() {
        let images = Tensor::full([20, 3, 8, 8], 0.5, (Kind::Float, Device::Cpu));
        let threat = ThreatModel::untargeted(Norm::Linf, "0.1".parse().unwrap());
        let pgd = Pgd { threat, steps: 1, step_size: 0.1, sparsity: None };
        let ids: Vec<u64> = (0..20).collect();
        let moved = pgd.random_start(&images, &ids, Seed::new(1), "test") - images;
        // 3,840 uniform values.
        assert!(moved.max().double_value(&[]) > 0.099 && moved.min().double_value(&[]) < -0.099);
        assert!(
            moved.abs().max().double_value(&[]) <= 0.1 + 1e-6
                && moved.mean(Kind::Float).double_value(&[]).abs() < 0.005
        );
    }
}
