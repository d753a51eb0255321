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

use std::collections::BTreeMap;

use c2r_core::curriculum::Curriculum;
use tch::{Device, Kind, Tensor};

use crate::{
    config::MethodName,
    distillation::DistillError,
    method::{Method, StepReport, Turn},
    pool::{Pool, Training},
    setting::Setting,
    state::integer,
};

/// Images per batch when a class is embedded.
const EMBEDDING_BATCH: usize = 256;

/// A choice of real images in progress.
#[derive(Debug)]
pub(crate) struct Coreset {
    rule: MethodName,
    /// Absent where no embedding is needed.
    pool: Option<Pool>,
    chosen: bool,
}

impl Coreset {
    pub(crate) fn new(setting: &Setting) -> Result<Self, DistillError> {
        let config = &setting.config;
        let pool = match config.method {
            MethodName::RandomReal => None,
            _ => Some(Pool::new(config.need(&config.pool, "pool")?.clone(), setting.seed.child("pool", 0))),
        };
        // The canvas begins with real images drawn at random.
        Ok(Self { rule: config.method, chosen: pool.is_none(), pool })
    }

    fn choose(&self, turn: &mut Turn<'_>, pool: &Pool) -> Result<(), DistillError> {
        let _no_grad = tch::no_grad_guard();
        let setting = turn.setting;
        let model = pool.member(pool.len() - 1);
        let n = turn.canvas.labels().len() / setting.n_classes();
        let mut positions = Vec::with_capacity(turn.canvas.labels().len());
        for class in 0..setting.n_classes() {
            let members = setting.data.class_positions(class);
            let embeddings: Vec<Tensor> = members
                .chunks(EMBEDDING_BATCH)
                .map(|chunk| model.features(&setting.data.batch(chunk, setting.device).0))
                .collect();
            turn.passes.forward += members.len() as u64;
            let embeddings = Tensor::cat(&embeddings, 0).to_device(Device::Cpu);
            let rows = if self.rule == MethodName::Herding { herd(&embeddings, n) } else { centres(&embeddings, n) };
            positions.extend(rows.into_iter().map(|row| members[row]));
        }
        turn.canvas.show(&setting.data, &positions)
    }
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
        // Below every distance: duplicates of a centre may be chosen, the centre itself may not.
        for &taken in &rows {
            let _ = nearest.get(taken as i64).fill_(-1.0);
        }
        row = nearest.argmax(0, false).int64_value(&[]);
    }
    rows
}

impl Method for Coreset {
    fn preparation(&self, setting: &Setting) -> (u64, u64) {
        let Some(pool) = &self.pool else { return (0, 0) };
        let filling = setting.config.pool.as_ref().map_or(0, Pool::steps_to_fill);
        (if self.chosen { filling + 1 } else { pool.steps_done() }, filling + 1)
    }

    fn is_prepared(&self, _: &Setting) -> bool {
        self.chosen
    }

    fn prepare(&mut self, turn: &mut Turn<'_>) -> Result<f64, DistillError> {
        let mut pool = self.pool.take().expect("random images need no preparation");
        let training = Training { setting: turn.setting, curriculum: &Curriculum::default() };
        let loss = if pool.is_full() {
            self.choose(turn, &pool)?;
            self.chosen = true;
            0.0
        } else {
            pool.fill_step(training, None, turn.passes)?
        };
        self.pool = Some(pool);
        Ok(loss)
    }

    fn update(&mut self, _: &mut Turn<'_>) -> Result<StepReport, DistillError> {
        unreachable!("chosen images are not updated")
    }

    fn state(&self, into: &mut BTreeMap<String, Tensor>) {
        into.insert("chosen".to_owned(), Tensor::from_slice(&[i64::from(self.chosen)]));
        if let (Some(pool), false) = (&self.pool, self.chosen) {
            pool.state(into);
        }
    }

    fn load_state(&mut self, setting: &Setting, state: &BTreeMap<String, Tensor>) -> Result<(), DistillError> {
        // What needs no network is chosen from the start.
        let least = i64::from(self.pool.is_none());
        self.chosen = integer(state, "chosen", least..=1)? != 0;
        if let (Some(pool), false) = (&mut self.pool, self.chosen) {
            pool.load_state(state, Training { setting, curriculum: &Curriculum::default() })?;
        }
        Ok(())
    }
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
