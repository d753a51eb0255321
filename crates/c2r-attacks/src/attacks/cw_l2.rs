//! CW-L2: Adam on distance plus margin, in a space where the box is everything.

use c2r_base::{Adam, Norm, Passes, ThreatModel};
use tch::{Kind, Tensor};

use crate::{
    attack::{AttackBatch, Family},
    error::{AttackError, ConfigError},
    options::{Check, Options, Search, Task, options, passes},
    oracle::Oracle,
    rows::per_image,
};

/// Pixels are kept this far inside (-1, 1), so that values at the border have a finite preimage.
/// Carlini & Wagner's code.
const INSIDE: f64 = 0.999_999;
/// Kingma & Ba 2015 (arXiv:1412.6980), algorithm 1.
const ADAM_BETAS: (f64, f64) = (0.9, 0.999);
/// Factor on `c` while no upper bound is known. Carlini & Wagner's code.
const GROW: f64 = 10.0;

/// Steps of CW-L2. torchattacks 3.5.1; Carlini & Wagner 2017 (arXiv:1608.04644) use 10,000.
const STEPS: u32 = 50;
/// Learning rate of Adam in CW-L2. Carlini & Wagner 2017, their code.
const LR: f64 = 0.01;

options!(
    /// CW-L2 (Carlini & Wagner 2017, arXiv:1608.04644, section VI A).
    CwL2Config {
        /// Weight of the margin against the distance, at first if `search_steps` is not 0.
        c: f64 = 1.0,
        /// Confidence, logits: how far past the goal the loss pushes. An image is kept if it reaches the goal by any margin.
        kappa: f64 = 0.0,
        /// Steps of Adam.
        steps: u32 = STEPS,
        /// Learning rate of Adam.
        lr: f64 = LR,
        /// Rounds of bisection over `c` after the first run.
        search_steps: u32 = 0,
        /// Clip both sides of the margin at 0, as torchattacks does; wrong where logits are negative.
        clipped_margin: bool = false,
    }
);

impl Options for CwL2Config {
    fn build(&self, name: &'static str) -> Result<Box<dyn Search>, ConfigError> {
        let check = Check(name);
        check.count("steps", self.steps)?;
        check.positive("c", self.c)?;
        check.positive("lr", self.lr)?;
        check.at_least("kappa", self.kappa, 0.0)?;
        Ok(Box::new(self.clone()))
    }

    fn passes(&self, _: &ThreatModel, _: u64) -> Passes {
        let n = u64::from(self.steps) * (u64::from(self.search_steps) + 1);
        passes(n, n)
    }
}

impl Search for CwL2Config {
    fn family(&self) -> Family {
        Family::MinimumNorm
    }

    fn check(&self, check: &Check, threat: &ThreatModel, _: i64) -> Result<(), ConfigError> {
        check.norm(&[Norm::L2], threat)
    }

    fn search(&self, oracle: &mut Oracle<'_>, &Task { batch, .. }: &Task<'_>) -> Result<Tensor, AttackError> {
        let like = batch.images.select(1, 0).select(1, 0).select(1, 0);
        let mut found = batch.images.copy();
        let mut distance = like.full_like(f64::INFINITY);
        let mut c = like.full_like(self.c);
        let mut low = like.zeros_like();
        let mut high = like.full_like(f64::INFINITY);
        for _ in 0..=self.search_steps {
            let (images, distances) = self.minimize(oracle, batch, &c, false)?;
            let better = distances.lt_tensor(&distance);
            found = images.where_self(&per_image(&better), &found);
            distance = distances.minimum(&distance);
            let success = distances.isfinite();
            high = high.minimum(&c).where_self(&success, &high);
            low = low.where_self(&success, &low.maximum(&c));
            let middle = (&low + &high) * 0.5;
            c = middle.where_self(&high.isfinite(), &(&c * GROW));
        }
        Ok(found)
    }
}

impl CwL2Config {
    /// One run of Adam: the nearest images that reach the goal and their squared distances, infinite where
    /// there is none.
    ///
    /// With `abort`, all samples stop when the sum of their objectives has not fallen for a tenth of the
    /// steps, as in torchattacks: a sample's result then depends on its batch, so no evaluation uses it.
    pub(crate) fn minimize(
        &self,
        oracle: &mut Oracle<'_>,
        batch: &AttackBatch<'_>,
        c: &Tensor,
        abort: bool,
    ) -> Result<(Tensor, Tensor), AttackError> {
        let rows: Vec<usize> = (0..batch.ids.len()).collect();
        let mut w = ((batch.images * 2.0 - 1.0) * INSIDE).atanh();
        let mut adam = Adam::new(&w, ADAM_BETAS);
        let mut best = batch.images.copy();
        let mut best_distance = c.full_like(f64::INFINITY);
        let mut lowest = f64::INFINITY;
        for step in 1..=self.steps {
            let mut point = None;
            let found = oracle.gradient(&to_pixels(&w), &rows, |x, logits| {
                let distance =
                    (x - batch.images).square().flatten(1, -1).sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
                let margin = self.margin(logits, batch);
                point = Some((x.detach(), distance.detach()));
                distance + margin.clamp_min(-self.kappa) * c
            })?;
            let (x, distance) = point.expect("the loss was computed");
            let hit = batch.reached(&found.logits);
            let better = hit.logical_and(&distance.lt_tensor(&best_distance));
            best = x.where_self(&per_image(&better), &best);
            best_distance = distance.where_self(&better, &best_distance);
            // d tanh(w)/dw = 1 - tanh(w)^2, halved by the map to pixels.
            let gradient: Tensor = found.gradient * ((1.0 - w.tanh().square()) * 0.5);
            w -= adam.direction(&gradient, step) * self.lr;
            if abort && (step - 1) % (self.steps / 10).max(1) == 0 {
                let sum = oracle.read(&[&found.losses.sum(Kind::Double)])?[0];
                if sum > lowest * 0.9999 {
                    break;
                }
                lowest = sum;
            }
        }
        Ok((best, best_distance))
    }

    fn margin(&self, logits: &Tensor, batch: &AttackBatch<'_>) -> Tensor {
        if !self.clipped_margin {
            return batch.goal_margin(logits);
        }
        match batch.targets {
            Some(targets) => -clipped_margin(logits, targets),
            None => clipped_margin(logits, batch.labels),
        }
    }
}

fn to_pixels(w: &Tensor) -> Tensor {
    (w.tanh() + 1.0) * 0.5
}

/// torchattacks' margin: both sides through a product with a one-hot row, so the other side is clipped
/// at 0 from below.
pub fn clipped_margin(logits: &Tensor, labels: &Tensor) -> Tensor {
    let at = labels.unsqueeze(1);
    let own = logits.gather(1, &at, false).squeeze_dim(1);
    own - logits.scatter_value(1, &at, 0.0).amax([1i64].as_slice(), false)
}
