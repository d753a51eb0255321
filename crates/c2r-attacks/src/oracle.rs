//! How an attack asks the model.

use c2r_base::{Classifier, ClassifierError, Passes, grad::try_input_gradient};
use tch::{Kind, Tensor};

use crate::{attack::Perturbed, error::AttackError};

/// The model as an attack sees it: counts passes, refuses logits that are not finite, and names the sample in errors.
///
/// `rows` says which sample of the batch each image of a pass belongs to: `0..N` for one image per sample, fewer where
/// some samples are done, the same sample several times where several images of it are tried at once.
///
/// ```
/// use c2r_attacks::c2r_base::{Classifier, Seed, ThreatModel, loss};
/// use c2r_attacks::{Attack, AttackBatch, AttackError, Family, Oracle, Perturbed};
///
/// /// One step of length epsilon along the gradient of the margin.
/// struct MarginStep;
///
/// impl Attack for MarginStep {
///     fn name(&self) -> &str {
///         "margin-step"
///     }
///     fn family(&self) -> Family {
///         Family::Gradient
///     }
///     fn perturb(
///         &self,
///         model: &dyn Classifier,
///         batch: &AttackBatch<'_>,
///         threat: &ThreatModel,
///         _: Seed,
///     ) -> Result<Perturbed, AttackError> {
///         let mut oracle = Oracle::new(model, self.name(), batch.ids);
///         let rows: Vec<usize> = (0..batch.ids.len()).collect();
///         let found = oracle.gradient(batch.images, &rows, |_, logits| -loss::margin(logits, batch.labels))?;
///         let step = threat.norm.steepest(&found.gradient) * threat.epsilon.value();
///         Ok(oracle.finish(batch.images + step))
///     }
/// }
/// ```
pub struct Oracle<'a> {
    model: &'a dyn Classifier,
    attack: &'a str,
    ids: &'a [u64],
    queries: Vec<u64>,
    passes: Passes,
}

/// A gradient, and what the pass before it returned.
#[derive(Debug)]
pub struct LossGradient {
    /// Gradient of each row's loss with respect to its image, shape of the images.
    pub gradient: Tensor,
    /// f32 `[rows]`, detached.
    pub losses: Tensor,
    /// f32 `[rows, K]`, detached.
    pub logits: Tensor,
}

impl<'a> Oracle<'a> {
    /// * `attack`: its name, for errors; `ids`: those of the batch ([`crate::AttackBatch::ids`]).
    pub fn new(model: &'a dyn Classifier, attack: &'a str, ids: &'a [u64]) -> Self {
        Self { model, attack, ids, queries: vec![0; ids.len()], passes: Passes::default() }
    }

    /// Logits of `images`, f32 `[rows, K]`, without gradient; row r belongs to sample `rows[r]` of the batch.
    ///
    /// # Errors
    /// [`AttackError::Model`], [`AttackError::LogitsShape`] or [`AttackError::NonFiniteLogits`].
    pub fn logits(&mut self, images: &Tensor, rows: &[usize]) -> Result<Tensor, AttackError> {
        let _no_grad = tch::no_grad_guard();
        let logits = self.model.logits(images).map_err(|error| self.model_failed(rows, error))?;
        self.check(&logits, rows)?;
        Ok(logits)
    }

    /// Gradient of the summed `loss(images, logits)`, one loss per row, with respect to the images.
    ///
    /// # Errors
    /// As [`Oracle::logits`].
    pub fn gradient(
        &mut self,
        images: &Tensor,
        rows: &[usize],
        loss: impl FnOnce(&Tensor, &Tensor) -> Tensor,
    ) -> Result<LossGradient, AttackError> {
        let mut logits = None;
        let (gradient, losses) = try_input_gradient(images, |x| {
            let tracked = self.model.logits(x).map_err(|error| self.model_failed(rows, error))?;
            let losses = loss(x, &tracked);
            logits = Some(tracked.detach());
            Ok::<_, AttackError>(losses)
        })?;
        let logits = logits.expect("the loss is computed once");
        self.check(&logits, rows)?;
        self.passes += Passes::backward(rows.len() as u64);
        Ok(LossGradient { gradient, losses, logits })
    }

    /// Logits through which gradients flow to a tracked copy of `images`, for attacks that differentiate several
    /// outputs of one pass: the copy and the logits. Such an attack counts its backward passes with
    /// [`Oracle::count_backward`].
    ///
    /// # Errors
    /// As [`Oracle::logits`].
    pub fn tracked(&mut self, images: &Tensor, rows: &[usize]) -> Result<(Tensor, Tensor), AttackError> {
        let x = images.detach().set_requires_grad(true);
        let logits = tch::with_grad(|| self.model.logits(&x)).map_err(|error| self.model_failed(rows, error))?;
        self.check(&logits.detach(), rows)?;
        Ok((x, logits))
    }

    /// Counts `calls` backward passes of `rows` images each.
    pub fn count_backward(&mut self, rows: usize, calls: u64) {
        self.passes.backward_calls += calls;
        self.passes.backward_images += rows as u64 * calls;
    }

    /// The proposal `images`, f32 `[N, C, H, W]`, with what it cost.
    pub fn finish(self, images: Tensor) -> Perturbed {
        Perturbed { images, queries: self.queries, passes: self.passes }
    }

    fn model_failed(&self, rows: &[usize], source: ClassifierError) -> AttackError {
        let sample = rows.first().map_or(0, |&row| self.ids[row]);
        AttackError::Model { sample, rows: rows.len(), attack: self.attack.to_owned(), source }
    }

    /// Counts a forward pass and checks what came out.
    fn check(&mut self, logits: &Tensor, rows: &[usize]) -> Result<(), AttackError> {
        self.passes += Passes::forward(rows.len() as u64);
        for &row in rows {
            self.queries[row] += 1;
        }
        let size = logits.size();
        if size.len() != 2 || size[0] != rows.len() as i64 || size[1] < 2 {
            return Err(AttackError::LogitsShape { rows: rows.len() as i64, got: size });
        }
        if let Some(row) = first_not_finite(logits) {
            return Err(AttackError::NonFiniteLogits { sample: self.ids[rows[row]], attack: self.attack.to_owned() });
        }
        Ok(())
    }
}

/// The first row with a value that is not finite.
pub(crate) fn first_not_finite(values: &Tensor) -> Option<usize> {
    // The sum of finite f32 values cannot overflow in f64, and NaN and infinity survive it.
    if values.sum(Kind::Double).double_value(&[]).is_finite() {
        return None;
    }
    let bad = values.isfinite().logical_not().flatten(1, -1).any_dim(1, false);
    let bad = Vec::<bool>::try_from(bad).expect("bool tensor");
    bad.iter().position(|&bad| bad)
}
