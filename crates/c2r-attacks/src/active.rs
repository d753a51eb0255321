//! Which samples an attack still works on, and the rows of its tensors that belong to them.

use tch::{Kind, Tensor};

use crate::{
    attack::AttackBatch,
    error::AttackError,
    oracle::Oracle,
    rows::{are_all, index, per_image, pick, write_rows},
};

/// Clean images, labels and targets of some rows.
pub(crate) struct Samples {
    pub(crate) clean: Tensor,
    pub(crate) labels: Tensor,
    pub(crate) targets: Option<Tensor>,
}

impl Samples {
    /// Row r belongs to sample `rows[r]` of the batch.
    pub(crate) fn of(batch: &AttackBatch<'_>, rows: &[usize]) -> Self {
        let at = (!are_all(rows, batch.ids.len() as i64)).then(|| index(rows, batch.images));
        let take = |all: &Tensor| at.as_ref().map_or_else(|| all.shallow_clone(), |at| all.index_select(0, at));
        Self { clean: take(batch.images), labels: take(batch.labels), targets: batch.targets.map(take) }
    }

    /// Each row `n` times over, its copies side by side.
    pub(crate) fn repeat(&self, n: i64) -> Self {
        let repeat = |rows: &Tensor| rows.repeat_interleave_self_int(n, 0, None::<i64>);
        Self { clean: repeat(&self.clean), labels: repeat(&self.labels), targets: self.targets.as_ref().map(repeat) }
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

/// The host reads again after a quarter (one over the first number) of the steps so far, and after 10 at most. Most samples that break do so
/// early, and a GPU has nothing to do while the host reads.
const READ_AFTER: (u32, u32) = (4, 10);

/// Rows of samples that are done, and the other rows.
#[derive(Debug, PartialEq)]
pub(crate) struct Leaving {
    pub(crate) done: Vec<usize>,
    pub(crate) left: Vec<usize>,
}

/// The rows that are still worked on.
///
/// A sample leaves with all its rows when one of them reaches the goal. The device notes at each step which did
/// ([`Active::note`]), and the host reads that every few steps ([`Active::leave`]). Until then the rows of a sample that is done stay
/// in the batch, and their results do not change ([`Active::open`]).
pub(crate) struct Active {
    /// Sample of the batch that each row belongs to; rows of one sample are adjacent, equally many for each.
    samples: Vec<usize>,
    /// Row of the result that each row is written to.
    slots: Vec<usize>,
    /// Whether the row that is written to each slot reached the goal.
    reached: Vec<bool>,
    /// Rows per sample.
    per_sample: usize,
    /// Whether each row's sample is open after each step since the last reading: bool `[rows]`.
    open: Vec<Tensor>,
    /// Rows that reached the goal since then while their samples were open: bool `[rows]`.
    new: Option<Tensor>,
    step: u32,
    next_reading: u32,
}

impl Active {
    /// All of them: row r belongs to sample `samples[r]`.
    pub(crate) fn new(samples: &[usize]) -> Self {
        let per_sample = samples.iter().take_while(|sample| **sample == samples[0]).count();
        Self {
            samples: samples.to_vec(),
            slots: (0..samples.len()).collect(),
            reached: vec![false; samples.len()],
            per_sample,
            open: Vec::new(),
            new: None,
            step: 0,
            next_reading: 1,
        }
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

    /// Whether the row of each slot is known to have reached the goal.
    pub(crate) fn reached(&self) -> &[bool] {
        &self.reached
    }

    /// `mask`, bool `[rows]`, where the row's sample is open.
    pub(crate) fn open(&self, mask: Tensor) -> Tensor {
        match self.open.last() {
            Some(open) => mask.logical_and(open),
            None => mask,
        }
    }

    /// Notes which rows reach the goal, bool `[rows]`, after a step.
    pub(crate) fn note(&mut self, hit: Tensor) {
        let new = self.open(hit);
        let of_sample = if self.per_sample == 1 {
            new.logical_not()
        } else {
            let by_sample = new.view([-1, self.per_sample as i64]);
            by_sample.any_dim(1, true).logical_not().expand_as(&by_sample).flatten(0, 1)
        };
        self.open.push(self.open(of_sample));
        self.new = Some(match &self.new {
            Some(before) => before.logical_or(&new),
            None => new,
        });
        self.step += 1;
    }

    /// `moved` where the row's sample is open, `x` where it is done; both f32 `[rows, C, H, W]`.
    pub(crate) fn kept(&self, x: &Tensor, moved: Tensor) -> Tensor {
        match self.open.last() {
            Some(open) => moved.where_self(&per_image(open), x),
            None => moved,
        }
    }

    /// How many steps will be noted before [`Active::leave`] reads.
    pub(crate) fn steps_to_reading(&self) -> u32 {
        self.next_reading.saturating_sub(self.step)
    }

    /// Reads which samples reached the goal, if it is time or if this is the `last` call, and takes back the queries that they
    /// made afterwards: `passes` in each step. Returns `None` if no sample did; otherwise the caller stores the rows that are done
    /// and continues with the others.
    pub(crate) fn leave(
        &mut self,
        oracle: &mut Oracle<'_>,
        passes: u64,
        last: bool,
    ) -> Result<Option<Leaving>, AttackError> {
        let due = last || self.step >= self.next_reading;
        let (true, Some(new)) = (due && !self.open.is_empty(), &self.new) else { return Ok(None) };
        let n_steps = self.open.len() as f64;
        let open_for = Tensor::stack(&self.open, 0).sum_dim_intlist([0i64].as_slice(), false, Kind::Int64);
        let read = oracle.read(&[&open_for, new])?;
        let (share, most) = READ_AFTER;
        self.next_reading = self.step + (self.step / share).clamp(1, most);
        self.open.clear();
        self.new = None;
        let (open_for, new) = read.split_at(self.len());
        for row in 0..self.len() {
            self.reached[self.slots[row]] |= new[row] != 0.0;
            if open_for[row] < n_steps {
                let steps = n_steps - 1.0 - open_for[row];
                oracle.refund(self.samples[row], steps as u64 * passes);
            }
        }
        let (left, done): (Vec<usize>, Vec<usize>) = (0..self.len()).partition(|&row| open_for[row] == n_steps);
        Ok((!done.is_empty()).then_some(Leaving { done, left }))
    }

    /// Writes the rows `rows` of `values` to their place in `result`.
    pub(crate) fn store(&self, result: &mut Tensor, rows: &[usize], values: &Tensor) {
        let slots = pick(&self.slots, rows);
        if rows.len() == self.len() {
            write_rows(result, &slots, values);
        } else {
            write_rows(result, &slots, &values.index_select(0, &index(rows, values)));
        }
    }

    /// Continues with the rows `rows` alone, in every tensor of the attack's state.
    pub(crate) fn keep<'t>(&mut self, rows: &[usize], state: impl IntoIterator<Item = &'t mut Tensor>) {
        self.samples = pick(&self.samples, rows);
        self.slots = pick(&self.slots, rows);
        let mut at = None;
        for tensor in state {
            let at = at.get_or_insert_with(|| index(rows, tensor));
            *tensor = tensor.index_select(0, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use c2r_testkit::toys;
    use tch::Device;

    use super::*;

    /// Three samples of two rows each. Sample 7 reaches its goal in step 9 by its second row, and by its first one in step
    /// 10, which does not count any more; sample 9 in step 10 by both. The readings are after steps 1 to 8 and 10.
    #[test]
    fn samples_leave_with_all_rows_and_pay_for_their_queries_alone() {
        let ids: Vec<u64> = (0..10).collect();
        let rows = [5, 5, 7, 7, 9, 9];
        let constant = toys::function(|x| Tensor::zeros([x.size()[0], 2], (Kind::Float, Device::Cpu)));
        let mut oracle = Oracle::new(&constant, "test", &ids);
        let mut active = Active::new(&rows);
        let images = Tensor::zeros([6, 1, 1, 1], (Kind::Float, Device::Cpu));
        let mut readings = Vec::new();
        let mut last = None;
        for step in 1..=10 {
            let _logits = oracle.logits(&images, active.samples()).unwrap();
            let hits: &[usize] = match step {
                9 => &[3],
                10 => &[2, 4, 5],
                _ => &[],
            };
            let hit: Vec<bool> = (0..6).map(|row| hits.contains(&row)).collect();
            let is_open = active.open(Tensor::from_slice(&[true; 6]));
            assert_eq!(Vec::<bool>::try_from(is_open).unwrap()[2], step < 10, "step {step}");
            active.note(Tensor::from_slice(&hit));
            if active.steps_to_reading() == 0 {
                readings.push(step);
            }
            last = active.leave(&mut oracle, 1, false).unwrap().or(last);
        }
        assert_eq!(readings, [1, 2, 3, 4, 5, 6, 7, 8, 10]);
        assert_eq!(last, Some(Leaving { done: vec![2, 3, 4, 5], left: vec![0, 1] }));
        assert_eq!(active.reached(), [false, false, false, true, true, true]);
        let moved = Tensor::ones([6, 1, 1, 1], (Kind::Float, Device::Cpu));
        assert_eq!(
            Vec::<f32>::try_from(active.kept(&images, moved).flatten(0, -1)).unwrap(),
            [1.0; 6],
            "all open again"
        );
        // Two rows of ten steps, and two of the nine that sample 7 took.
        let queries = oracle.finish(images).queries;
        assert_eq!([queries[5], queries[7], queries[9], queries[0]], [20, 18, 20, 0]);
    }
}
