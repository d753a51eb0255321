//! How an attack asks the model.

use c2r_base::{Classifier, ClassifierError, Passes, grad::GradientError, host};
use tch::{Kind, Tensor};

use crate::{
    attack::Perturbed,
    error::AttackError,
    rows::{per_image, positions},
};

/// A value that was not finite, found later than it was made. The error never leaves this crate: [`unhurried`] catches it.
const UNSEEN: AttackError = AttackError::Interrupted;

/// The model as an attack sees it: counts passes, refuses logits that are not finite, and names the sample in errors.
///
/// The model gets a copy of every batch, which it may change. In gradients, NaN becomes 0 and infinity the largest finite
/// size of the image, and the sample is remembered ([`Perturbed::repaired`]): one NaN would spread over an image by its
/// length or mean. A gradient that is NaN everywhere is an error.
///
/// `rows` says which sample of the batch each image of a pass belongs to: `0..N` for one image per sample, fewer where
/// some samples are done, the same sample several times where several images of it are tried at once.
///
/// ```
/// use c2r_attacks::c2r_base::{Classifier, Seed, ThreatModel};
/// use c2r_attacks::{Attack, AttackBatch, AttackError, ConfigError, Family, Oracle, Perturbed};
///
/// /// One step of length epsilon against the gradient of the margin: away from the label, or towards the target.
/// struct MarginStep;
///
/// impl Attack for MarginStep {
///     fn name(&self) -> &str {
///         "margin-step"
///     }
///     fn family(&self) -> Family {
///         Family::Gradient
///     }
///     fn check(&self, _: &ThreatModel, _: i64) -> Result<(), ConfigError> {
///         // `goal_margin` heeds targets; without this, targeted goals are refused.
///         Ok(())
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
///         let found = oracle.gradient(batch.images, &rows, |_, logits| -batch.goal_margin(logits))?;
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
    repaired: Vec<bool>,
    /// Sums of logits and gradients that were not read yet; `None` if each is read at once.
    unread: Option<Vec<Tensor>>,
    /// Whether one of those that were read was not finite.
    is_spoiled: bool,
}

/// Runs `work` with an [`Oracle`] that does not look at what the model returns until it is asked to
/// ([`Oracle::read`]), so that a GPU never waits for the host.
///
/// Should a logit or a gradient turn out not to be finite, `work` is done again with one that looks at every pass, as
/// [`Oracle::new`] does: repairs and errors are the same. `work` must return the same for the same answers.
pub(crate) fn unhurried<'a, T>(
    model: &'a dyn Classifier,
    attack: &'a str,
    ids: &'a [u64],
    mut work: impl FnMut(&mut Oracle<'a>) -> Result<T, AttackError>,
) -> Result<(T, Oracle<'a>), AttackError> {
    let _no_grad = tch::no_grad_guard();
    let mut oracle = Oracle { unread: Some(Vec::new()), ..Oracle::new(model, attack, ids) };
    let found = work(&mut oracle);
    // What is still unread decides whether an error is the model's or that of NaN on its way.
    if oracle.read(&[]).is_ok() {
        return Ok((found?, oracle));
    }
    let mut careful = Oracle { passes: oracle.passes, ..Oracle::new(model, attack, ids) };
    let found = work(&mut careful)?;
    Ok((found, careful))
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
        let (queries, repaired) = (vec![0; ids.len()], vec![false; ids.len()]);
        let (passes, unread, is_spoiled) = (Passes::default(), None, false);
        Self { model, attack, ids, queries, passes, repaired, unread, is_spoiled }
    }

    /// Its attack's name.
    pub(crate) const fn attack(&self) -> &'a str {
        self.attack
    }

    /// The values of `tensors`, one after the other, in one transfer with all that is unread.
    ///
    /// # Errors
    /// If a logit or a gradient since the last reading was not finite; [`unhurried`] takes care of it.
    pub(crate) fn read(&mut self, tensors: &[&Tensor]) -> Result<Vec<f64>, AttackError> {
        let sums = self.unread.as_mut().map(std::mem::take).unwrap_or_default();
        let all: Vec<Tensor> =
            sums.iter().chain(tensors.iter().copied()).map(|t| t.flatten(0, -1).to_kind(Kind::Double)).collect();
        let mut values = match all.as_slice() {
            [] => Vec::new(),
            all => host::to_vec::<f64>(&Tensor::cat(all, 0)),
        };
        let wanted = values.split_off(sums.len());
        self.is_spoiled |= values.iter().any(|sum| !sum.is_finite());
        if self.is_spoiled { Err(UNSEEN) } else { Ok(wanted) }
    }

    /// Whether `sum` is of finite values only, as far as that is looked at now.
    fn is_finite(&mut self, sum: Tensor) -> bool {
        match &mut self.unread {
            Some(unread) => {
                unread.push(sum);
                true
            }
            None => sum.double_value(&[]).is_finite(),
        }
    }

    /// Takes back `n` queries of a sample: passes that it took part in after it had reached the goal.
    pub(crate) fn refund(&mut self, sample: usize, n: u64) {
        self.queries[sample] -= n;
    }

    /// Logits of `images`, f32 `[rows, K]`, without gradient; row r belongs to sample `rows[r]` of the batch.
    ///
    /// # Errors
    /// [`AttackError::Model`], [`AttackError::LogitsShape`], [`AttackError::LogitsKind`],
    /// [`AttackError::NonFiniteLogits`] or [`AttackError::NonFiniteOutside`]; [`AttackError::Rows`] if `rows` are not one
    /// sample of the batch for each image.
    pub fn logits(&mut self, images: &Tensor, rows: &[usize]) -> Result<Tensor, AttackError> {
        Ok(self.logits_and_copy(images, rows)?.0)
    }

    /// [`Oracle::logits`] as values, row by row, for loops on the CPU ([`host::is_at_hand`]).
    pub(crate) fn logit_values(&mut self, images: &Tensor, rows: &[usize]) -> Result<Vec<f32>, AttackError> {
        let _no_grad = tch::no_grad_guard();
        self.check_rows(images, rows)?;
        let logits = self.model.logits(&images.copy()).map_err(|error| self.model_failed(rows, error))?;
        self.check_shape(&logits, rows)?;
        let values = host::to_vec::<f32>(&logits);
        if !values.iter().all(|value| value.is_finite()) {
            self.check_values(images, &logits, rows)?;
        }
        Ok(values)
    }

    /// [`Oracle::logits`], and the copy of the images that the model was given, as it left it.
    pub(crate) fn logits_and_copy(&mut self, images: &Tensor, rows: &[usize]) -> Result<(Tensor, Tensor), AttackError> {
        let _no_grad = tch::no_grad_guard();
        self.check_rows(images, rows)?;
        let given = images.copy();
        let logits = self.model.logits(&given).map_err(|error| self.model_failed(rows, error))?;
        self.check(images, &logits, rows)?;
        Ok((logits, given))
    }

    /// Gradient of the summed `loss(images, logits)`, one loss per row, with respect to the images.
    ///
    /// # Errors
    /// As [`Oracle::logits`] and [`Oracle::backward`].
    pub fn gradient(
        &mut self,
        images: &Tensor,
        rows: &[usize],
        loss: impl FnOnce(&Tensor, &Tensor) -> Tensor,
    ) -> Result<LossGradient, AttackError> {
        let (x, logits) = self.tracked(images, rows)?;
        // The loss may depend on the images in another way.
        if !logits.requires_grad() {
            let (attack, source) = (self.attack.to_owned(), GradientError::Untracked);
            return Err(AttackError::NoGradient { attack, source });
        }
        let losses = tch::with_grad(|| loss(&x, &logits));
        let gradient = self.backward(&losses, &x, rows, false)?;
        Ok(LossGradient { gradient, losses: losses.detach(), logits: logits.detach() })
    }

    /// Logits through which gradients flow to a tracked copy of `images`, for attacks that differentiate several
    /// outputs of one pass with [`Oracle::backward`]: the copy and the logits.
    ///
    /// # Errors
    /// As [`Oracle::logits`].
    pub fn tracked(&mut self, images: &Tensor, rows: &[usize]) -> Result<(Tensor, Tensor), AttackError> {
        self.check_rows(images, rows)?;
        let x = images.detach().set_requires_grad(true);
        let logits = tch::with_grad(|| self.model.logits(&x.copy())).map_err(|error| self.model_failed(rows, error))?;
        self.check(images, &logits.detach(), rows)?;
        Ok((x, logits))
    }

    /// Gradient of the summed `values` with respect to `x`, both of [`Oracle::tracked`]; `keep_graph` if it is not the
    /// last one of this pass.
    ///
    /// # Errors
    /// [`AttackError::NoGradient`], [`AttackError::NonFiniteGradient`], [`AttackError::Model`] if the backward pass
    /// fails, or [`AttackError::Rows`].
    pub fn backward(
        &mut self,
        values: &Tensor,
        x: &Tensor,
        rows: &[usize],
        keep_graph: bool,
    ) -> Result<Tensor, AttackError> {
        self.check_rows(x, rows)?;
        let sum = tch::with_grad(|| values.sum(values.kind()));
        let gradient = self.model.gradient(&sum, x, keep_graph).map_err(|error| match error {
            GradientError::Failed(_) => self.model_failed(rows, ClassifierError::new(error)),
            source => AttackError::NoGradient { attack: self.attack.to_owned(), source },
        })?;
        self.passes += Passes::backward(rows.len() as u64);
        self.repair(gradient, rows)
    }

    /// The gradient without NaN and infinity.
    fn repair(&mut self, gradient: Tensor, rows: &[usize]) -> Result<Tensor, AttackError> {
        // NaN and infinity survive a sum; one that overflows is looked at more closely.
        if self.is_finite(gradient.sum(Kind::Float)) {
            return Ok(gradient);
        }
        let _no_grad = tch::no_grad_guard();
        let in_rows = |mask: &Tensor| positions(&mask.flatten(1, -1).any_dim(1, false));
        let (is_finite, is_nan) = (gradient.isfinite(), gradient.isnan());
        let with_direction = in_rows(&is_nan.logical_not());
        if let Some(lost) = (0..rows.len()).find(|row| with_direction.binary_search(row).is_err()) {
            return Err(AttackError::NonFiniteGradient {
                sample: self.ids[rows[lost]],
                attack: self.attack.to_owned(),
            });
        }
        for row in in_rows(&is_finite.logical_not()) {
            self.repaired[rows[row]] = true;
        }
        let finite = gradient.masked_fill(&is_finite.logical_not(), 0.0);
        let largest = finite.flatten(1, -1).abs().amax([1i64].as_slice(), false);
        let largest = per_image(&largest.masked_fill(&largest.eq(0.0), 1.0));
        Ok(finite + gradient.masked_fill(&is_nan.logical_or(&is_finite), 0.0).sign() * largest)
    }

    /// The proposal `images`, f32 `[N, C, H, W]`, with what it cost.
    pub fn finish(self, images: Tensor) -> Perturbed {
        Perturbed { images, queries: self.queries, passes: self.passes, repaired: self.repaired }
    }

    /// Checks that `rows` has a sample of the batch for each of the images.
    fn check_rows(&self, images: &Tensor, rows: &[usize]) -> Result<(), AttackError> {
        let (n_samples, size) = (self.ids.len(), images.size());
        let reason = if size.first() != Some(&(rows.len() as i64)) {
            format!("{} rows for images of shape {size:?}", rows.len())
        } else if let Some(row) = rows.iter().find(|row| **row >= n_samples) {
            format!("row {row} in a batch of {n_samples} samples")
        } else {
            return Ok(());
        };
        Err(AttackError::Rows { attack: self.attack.to_owned(), reason })
    }

    fn model_failed(&self, rows: &[usize], source: ClassifierError) -> AttackError {
        let sample = rows.first().map_or(0, |&row| self.ids[row]);
        AttackError::Model { sample, rows: rows.len(), attack: self.attack.to_owned(), source }
    }

    /// Counts a forward pass and checks what came out.
    fn check(&mut self, images: &Tensor, logits: &Tensor, rows: &[usize]) -> Result<(), AttackError> {
        self.check_shape(logits, rows)?;
        // The sum of finite f32 values cannot overflow in f64.
        if self.is_finite(logits.sum(Kind::Double)) { Ok(()) } else { self.check_values(images, logits, rows) }
    }

    /// Counts a forward pass and checks the form of what came out.
    fn check_shape(&mut self, logits: &Tensor, rows: &[usize]) -> Result<(), AttackError> {
        self.passes += Passes::forward(rows.len() as u64);
        for &row in rows {
            self.queries[row] += 1;
        }
        let size = logits.size();
        if size.len() != 2 || size[0] != rows.len() as i64 || size[1] < 2 {
            return Err(AttackError::LogitsShape { rows: rows.len() as i64, got: size });
        }
        if logits.kind() != Kind::Float {
            return Err(AttackError::LogitsKind(logits.kind()));
        }
        Ok(())
    }

    /// Finds the first logit that is not finite.
    fn check_values(&self, images: &Tensor, logits: &Tensor, rows: &[usize]) -> Result<(), AttackError> {
        if let Some(row) = first_not_finite(logits) {
            let (sample, attack) = (self.ids[rows[row]], self.attack.to_owned());
            let image = images.get(row as i64);
            let is_outside = image.min().double_value(&[]) < 0.0 || image.max().double_value(&[]) > 1.0;
            return Err(if is_outside {
                AttackError::NonFiniteOutside { sample, attack }
            } else {
                AttackError::NonFiniteLogits { sample, attack }
            });
        }
        Ok(())
    }
}

/// The first row with a value that is not finite.
pub(crate) fn first_not_finite(values: &Tensor) -> Option<usize> {
    let bad = values.isfinite().logical_not().flatten(1, -1).any_dim(1, false);
    host::to_vec::<bool>(&bad).iter().position(|&bad| bad)
}
