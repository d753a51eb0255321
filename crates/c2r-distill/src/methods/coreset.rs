//! Real images, chosen and left as they are: at random, by herding, or as k centres.
//!
//! - **random**: drawn class by class. The floor that every distillation must beat.
//! - **herding** (Welling 2009, "Herding dynamical weights to learn", equation 4; as a coreset: Rebuffi et al.
//!   2017, arXiv:1611.07725, algorithm 4): `p_k = argmin_x || mu - (phi(x) + sum_{j<k} phi(p_j)) / k ||`,
//!   mu the mean embedding of the class.
//! - **k-center** (Sener & Savarese 2018, arXiv:1708.00489, algorithm 1, greedy, per class as in Zhao et al.
//!   2021, arXiv:2006.05929, section 4.1): the first centre is the image nearest to the mean, each next one the
//!   image farthest from its nearest centre.
//!
//! phi is the embedding (features before the classifier) of the oldest network of the pool, trained on the
//! real images; no image is chosen twice. Zhao et al. train that network to convergence; here `[pool]` says
//! how long.

use std::sync::Arc;

use c2r_core::curriculum::Curriculum;
use c2r_train::state::State;
use tch::{Device, Kind, Tensor};

use crate::{
    config::CommonConfig,
    context::Context,
    cost::Work,
    error::DistillError,
    method::{Measured, Method, MethodConfig, MethodEntry, Needs, Step},
    parts::pool::Pool,
};

/// Images per batch when a class is embedded.
const EMBEDDING_BATCH: usize = 256;

/// The line of the registry of random real images.
pub(crate) const RANDOM_REAL: MethodEntry =
    MethodEntry { name: "random-real", sections: &[], augmented: &[], read: |_| Ok(Arc::new(Coreset::Random)) };

/// The line of the registry of herding.
pub(crate) const HERDING: MethodEntry = MethodEntry {
    name: "herding",
    sections: &["pool", "companions"],
    augmented: &[],
    read: |_| Ok(Arc::new(Coreset::Herding)),
};

/// The line of the registry of k centres.
pub(crate) const K_CENTER: MethodEntry =
    MethodEntry { name: "k-center", read: |_| Ok(Arc::new(Coreset::KCenter)), ..HERDING };

/// How real images are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coreset {
    /// Drawn class by class.
    Random,
    /// Images whose mean embedding is that of their class, chosen one by one.
    Herding,
    /// Images that no image of their class is far from, in a network's embedding.
    KCenter,
}

impl MethodConfig for Coreset {
    fn entry(&self) -> &'static MethodEntry {
        match self {
            Self::Random => &RANDOM_REAL,
            Self::Herding => &HERDING,
            Self::KCenter => &K_CENTER,
        }
    }

    /// None: the rule is in the method's name.
    fn sections(&self) -> Vec<(&'static str, &dyn erased_serde::Serialize)> {
        Vec::new()
    }

    fn needs(&self) -> Needs {
        Needs { selects: true, ..Needs::default() }
    }

    fn add_work(&self, common: &CommonConfig, _: usize, n_train: usize, total: &mut Work) {
        if let (Self::Herding | Self::KCenter, Some(pool)) = (self, &common.pool) {
            total.add_training(common, pool, &Curriculum::default(), Pool::steps_to_fill(pool) as f64, n_train);
            total.forward += n_train as f64;
        }
    }

    fn build(&self, context: &Context) -> Result<Box<dyn Method>, DistillError> {
        let pool = match self {
            Self::Random => None,
            Self::Herding | Self::KCenter => {
                let config = context.common.pool.clone().ok_or_else(|| context.missing("pool"))?;
                Some(Pool::new(config, Curriculum::default(), context.seed.child("pool", 0)))
            }
        };
        // The images begin as real ones that are drawn at random.
        Ok(Box::new(Choice { rule: *self, chosen: pool.is_none(), pool }))
    }
}

/// A choice of real images in progress.
#[derive(Debug)]
struct Choice {
    rule: Coreset,
    /// Absent where no embedding is needed.
    pool: Option<Pool>,
    chosen: bool,
}

/// Rows of f32 `[N, D]` in the order of herding, `n` of them.
fn herd(embeddings: &Tensor, n: usize) -> Vec<usize> {
    let mean = embeddings.mean_dim([0i64].as_slice(), false, Kind::Float);
    let mut sum = mean.zeros_like();
    let free = Tensor::zeros([embeddings.size()[0]], (Kind::Float, Device::Cpu));
    (1..=n)
        .map(|k| {
            let gaps = &mean - (embeddings + &sum) / k as f64;
            let distances = gaps.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float) + &free;
            let row = distances.argmin(0, false).int64_value(&[]);
            let _ = free.get(row).fill_(f64::INFINITY);
            sum += embeddings.get(row);
            row as usize
        })
        .collect()
}

/// Rows of f32 `[N, D]` that are far from each other, `n` of them, the one nearest to the mean first.
fn centres(embeddings: &Tensor, n: usize) -> Vec<usize> {
    let distance_to =
        |point: &Tensor| (embeddings - point).square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
    let mean = embeddings.mean_dim([0i64].as_slice(), false, Kind::Float);
    let mut row = distance_to(&mean).argmin(0, false).int64_value(&[]);
    let mut nearest = Tensor::full([embeddings.size()[0]], f64::INFINITY, (Kind::Float, Device::Cpu));
    let mut rows = Vec::with_capacity(n);
    while rows.len() < n {
        rows.push(row as usize);
        nearest = nearest.minimum(&distance_to(&embeddings.get(row)));
        // Below every distance, from here on: duplicates of a centre may be chosen, the centre itself may not.
        let _ = nearest.get(row).fill_(-1.0);
        row = nearest.argmax(0, false).int64_value(&[]);
    }
    rows
}

impl Method for Choice {
    fn preparation(&self) -> (u64, u64) {
        let Some(pool) = &self.pool else { return (0, 0) };
        let (filled, filling) = pool.filling();
        (if self.chosen { filling + 1 } else { filled }, filling + 1)
    }

    fn is_prepared(&self) -> bool {
        self.chosen
    }

    fn prepare(&mut self, step: &mut Step<'_>) -> Result<(), DistillError> {
        let Some(pool) = &mut self.pool else { return Ok(()) };
        if !pool.is_full() {
            return pool.fill_step(step, None);
        }
        choose(step, pool, self.rule)?;
        self.chosen = true;
        Ok(())
    }

    /// Nothing: chosen images are not updated.
    fn update(&mut self, _: &mut Step<'_>) -> Result<Measured, DistillError> {
        Ok(Measured::default())
    }

    fn state(&mut self, context: &Context, state: &mut State<'_>) -> Result<(), DistillError> {
        let mut chosen = u64::from(self.chosen);
        // What needs no network is chosen from the start.
        state.integer("chosen", &mut chosen, i64::from(self.pool.is_none())..=1)?;
        self.chosen = chosen != 0;
        match &mut self.pool {
            Some(pool) if !self.chosen => pool.state(context, state),
            _ => Ok(()),
        }
    }
}

/// Replaces the images by those that `rule` chooses.
fn choose(step: &mut Step<'_>, pool: &Pool, rule: Coreset) -> Result<(), DistillError> {
    let _no_grad = tch::no_grad_guard();
    let context = step.context;
    let model = pool.network(pool.len() - 1);
    let n = step.images.labels().len() / context.n_classes();
    let mut positions = Vec::with_capacity(step.images.labels().len());
    for class in 0..context.n_classes() {
        let members = context.data.class_positions(class);
        let embeddings: Vec<Tensor> = members
            .chunks(EMBEDDING_BATCH)
            .map(|chunk| model.features(&context.data.batch(chunk, context.device).0))
            .collect();
        step.passes.forward += members.len() as u64;
        let embeddings = Tensor::cat(&embeddings, 0).to_device(Device::Cpu);
        let rows = if rule == Coreset::Herding { herd(&embeddings, n) } else { centres(&embeddings, n) };
        positions.extend(rows.into_iter().map(|row| members[row]));
    }
    step.images.replace(&context.data, &positions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(values: &[[f32; 2]]) -> Tensor {
        Tensor::from_slice(values.as_flattened()).view([values.len() as i64, 2])
    }

    /// Mean (2, 0). First the point at the mean, then the pair around it whose means stay there.
    #[test]
    fn herding_by_hand() {
        let rows = points(&[[0.0, 0.0], [2.0, 0.0], [4.0, 0.0], [1.0, 1.0], [3.0, -1.0]]);
        let order = herd(&rows, 5);
        assert_eq!(order[0], 1);
        // After (2, 0): (1, 1) and (3, -1) each leave a gap of sqrt(2) / 2, (0, 0) and (4, 0) one of 1.
        assert_eq!(order[1..3], [3, 4]);
        let mut all = order;
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn centres_by_hand() {
        // Mean (2.75, 0): the image at 3 first, then 0, then 6, then the other near 3.
        let rows = points(&[[0.0, 0.0], [3.0, 0.0], [6.0, 0.0], [2.0, 0.0]]);
        assert_eq!(centres(&rows, 4), [1, 0, 2, 3]);
        // Duplicates do not end the choice.
        assert_eq!(centres(&points(&[[1.0, 1.0], [1.0, 1.0]]), 2), [0, 1]);
    }
}
