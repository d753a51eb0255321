//! Which samples an attack still works on, and the rows of its tensors that belong to them.

use std::collections::BTreeSet;

use c2r_base::Seed;
use tch::{Kind, Tensor};

use crate::attack::AttackBatch;

/// The smallest number of rows that is worth a forward pass: about 2 MiB of pixels. Attacks that try
/// several targets or neighbours of a sample put them in one pass up to this size or the batch's.
const ROW_BUDGET_VALUES: i64 = 1 << 19;

/// How many rows a pass may have for a batch of these images.
pub(crate) fn row_budget(images: &Tensor) -> usize {
    let size = images.size();
    let values: i64 = size[1..].iter().product();
    size[0].max(ROW_BUDGET_VALUES / values.max(1)).max(1) as usize
}

/// The seed of an attempt: restarts draw from streams of their own.
pub(crate) fn attempt_seed(seed: Seed, restart: u32) -> Seed {
    if restart == 0 { seed } else { seed.child("restart", u64::from(restart)) }
}

/// `mask` (bool `[N]`) as a list of the positions that are true.
pub(crate) fn positions(mask: &Tensor) -> Vec<usize> {
    let mask = Vec::<bool>::try_from(mask.to_kind(Kind::Bool)).expect("bool tensor");
    mask.iter().enumerate().filter_map(|(position, &set)| set.then_some(position)).collect()
}

/// The entries of `list` at `positions`.
pub(crate) fn pick<T: Copy>(list: &[T], positions: &[usize]) -> Vec<T> {
    positions.iter().map(|&position| list[position]).collect()
}

/// An index tensor for `index_select` on `like`'s device.
pub(crate) fn index(positions: &[usize], like: &Tensor) -> Tensor {
    let positions: Vec<i64> = positions.iter().map(|&position| position as i64).collect();
    Tensor::from_slice(&positions).to_device(like.device())
}

/// Writes `values` to the rows `rows` of `into`.
pub(crate) fn write_rows(into: &mut Tensor, rows: &[usize], values: &Tensor) {
    let _ = into.index_copy_(0, &index(rows, into), values);
}

/// Reshapes `[N]` to `[N, 1, 1, 1]`.
pub(crate) fn per_image(values: &Tensor) -> Tensor {
    values.view([-1, 1, 1, 1])
}

/// Clean images, labels and targets of some rows.
pub(crate) struct Samples {
    pub(crate) clean: Tensor,
    pub(crate) labels: Tensor,
    pub(crate) targets: Option<Tensor>,
}

impl Samples {
    /// Row r belongs to sample `rows[r]` of the batch.
    pub(crate) fn of(batch: &AttackBatch<'_>, rows: &[usize]) -> Self {
        let at = index(rows, batch.images);
        Self {
            clean: batch.images.index_select(0, &at),
            labels: batch.labels.index_select(0, &at),
            targets: batch.targets.map(|targets| targets.index_select(0, &at)),
        }
    }

    /// All rows `n` times over.
    pub(crate) fn repeat(&self, n: i64) -> Self {
        Self {
            clean: self.clean.repeat([n, 1, 1, 1]),
            labels: self.labels.repeat([n]),
            targets: self.targets.as_ref().map(|targets| targets.repeat([n])),
        }
    }

    /// As a batch; `ids` has one entry per row, or none where nothing is drawn.
    pub(crate) fn batch<'a>(&'a self, ids: &'a [u64]) -> AttackBatch<'a> {
        AttackBatch { images: &self.clean, labels: &self.labels, ids, targets: self.targets.as_ref() }
    }

    pub(crate) fn reached(&self, logits: &Tensor) -> Tensor {
        self.batch(&[]).reached(logits)
    }

    pub(crate) fn tensors(&mut self) -> impl Iterator<Item = &mut Tensor> {
        [&mut self.clean, &mut self.labels].into_iter().chain(self.targets.as_mut())
    }
}

/// The rows that are still worked on.
pub(crate) struct Active {
    /// Sample of the batch that each row belongs to; rows of one sample are adjacent.
    samples: Vec<usize>,
    /// Row of the result that each row is written to.
    slots: Vec<usize>,
}

impl Active {
    /// All of them: row r belongs to sample `samples[r]`.
    pub(crate) fn new(samples: &[usize]) -> Self {
        Self { samples: samples.to_vec(), slots: (0..samples.len()).collect() }
    }

    pub(crate) fn samples(&self) -> &[usize] {
        &self.samples
    }

    pub(crate) fn slots(&self) -> &[usize] {
        &self.slots
    }

    pub(crate) fn len(&self) -> usize {
        self.samples.len()
    }

    /// Writes the rows `rows` of `values` to their place in `result`.
    pub(crate) fn store(&self, result: &mut Tensor, rows: &[usize], values: &Tensor) {
        write_rows(result, &pick(&self.slots, rows), &values.index_select(0, &index(rows, values)));
    }

    /// The rows of all samples that have a row among `done`, and the other rows.
    pub(crate) fn split(&self, done: &[usize]) -> (Vec<usize>, Vec<usize>) {
        let done: BTreeSet<usize> = done.iter().map(|&row| self.samples[row]).collect();
        (0..self.len()).partition(|&row| done.contains(&self.samples[row]))
    }

    /// Goes on with the rows `rows` alone, in every tensor of the attack's state.
    pub(crate) fn keep<'t>(&mut self, rows: &[usize], state: impl IntoIterator<Item = &'t mut Tensor>) {
        self.samples = pick(&self.samples, rows);
        self.slots = pick(&self.slots, rows);
        for tensor in state {
            *tensor = tensor.index_select(0, &index(rows, tensor));
        }
    }
}
