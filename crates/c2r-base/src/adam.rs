//! Adam, by which attacks and distillation move images.

use tch::Tensor;

/// Adam's moments of one tensor (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1), epsilon 1e-8.
///
/// ```
/// use c2r_base::Adam;
/// use tch::Tensor;
///
/// let x = Tensor::from_slice(&[0.5f32, 0.5]);
/// let mut adam = Adam::new(&x, (0.9, 0.999));
/// // The first step has length 1 in every coordinate.
/// let direction = adam.direction(&Tensor::from_slice(&[3.0f32, -0.01]), 1);
/// assert!((direction - Tensor::from_slice(&[1.0f32, -1.0])).abs().max().double_value(&[]) < 1e-5);
/// ```
#[derive(Debug)]
pub struct Adam {
    betas: (f64, f64),
    /// Moving average of the gradients.
    pub first: Tensor,
    /// Moving average of their squares.
    pub second: Tensor,
}

impl Adam {
    const EPSILON: f64 = 1e-8;

    /// Moments of 0 in the shape of `like`; `betas`: shares that are kept of the first and the second at each step.
    pub fn new(like: &Tensor, betas: (f64, f64)) -> Self {
        Self { betas, first: like.zeros_like(), second: like.zeros_like() }
    }

    /// What to subtract, times the learning rate, at `step`, which counts from 1.
    pub fn direction(&mut self, gradient: &Tensor, step: u32) -> Tensor {
        let (beta_1, beta_2) = self.betas;
        self.first = &self.first * beta_1 + gradient * (1.0 - beta_1);
        self.second = &self.second * beta_2 + gradient.square() * (1.0 - beta_2);
        let unbiased = |moment: &Tensor, beta: f64| moment / (1.0 - beta.powi(step as i32));
        unbiased(&self.first, beta_1) / (unbiased(&self.second, beta_2).sqrt() + Self::EPSILON)
    }
}
