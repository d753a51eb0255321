//! Epochs of mini-batches in curriculum order, in a form that can be saved.

use c2r_data::Rows;
use c2r_train::state::{State, StateError};
use tch::Device;

/// The rest of an epoch: positions in visiting order.
#[derive(Debug, Default)]
pub(crate) struct Epoch {
    order: Vec<usize>,
    /// How many of them are done.
    done: usize,
    /// All of them on the device, once a batch was asked for.
    sent: Option<Rows>,
}

impl Epoch {
    /// A new epoch in this order.
    pub(crate) const fn new(order: Vec<usize>) -> Self {
        Self { order, done: 0, sent: None }
    }

    /// Whether a new epoch is due.
    pub(crate) const fn is_finished(&self) -> bool {
        self.done == self.order.len()
    }

    /// What is left of it.
    pub(crate) fn rest(&self) -> Vec<usize> {
        self.order[self.done..].to_vec()
    }

    /// The next contiguous mini-batch on `device`; the last one of an epoch may be smaller.
    pub(crate) fn next(&mut self, size: usize, device: Device) -> Rows {
        let all = self.sent.get_or_insert_with(|| Rows::send(self.order.clone(), device));
        let batch = all.part(self.done, size.min(self.order.len() - self.done));
        self.done += batch.positions.len();
        batch
    }

    /// Visits the rest of an epoch over `n` samples.
    pub(crate) fn state(&mut self, state: &mut State<'_>, n: usize) -> Result<(), StateError> {
        let mut rest = self.rest();
        state.positions("plan", &mut rest, n)?;
        if state.reads() {
            *self = Self::new(rest);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use c2r_train::state::Entries;

    use super::*;

    fn next(epoch: &mut Epoch, size: usize) -> Vec<usize> {
        let Rows { positions, index } = epoch.next(size, Device::Cpu);
        let index = Vec::<i64>::try_from(index).unwrap();
        assert_eq!(index, positions.iter().map(|&position| position as i64).collect::<Vec<_>>());
        positions
    }

    #[test]
    fn batches_are_contiguous_and_cover_the_epoch_once() {
        let mut epoch = Epoch::new(vec![4, 1, 3, 0, 2]);
        assert_eq!(next(&mut epoch, 2), [4, 1]);
        let mut saved = Entries::new();
        epoch.state(&mut State::writing(&mut saved), 5).unwrap();
        let mut resumed = Epoch::default();
        resumed.state(&mut State::reading(&saved), 5).unwrap();
        assert_eq!(next(&mut resumed, 2), [3, 0]);
        assert_eq!(next(&mut resumed, 2), [2]);
        assert!(resumed.is_finished() && !epoch.is_finished());
        let message = resumed.state(&mut State::reading(&saved), 3).unwrap_err().to_string();
        assert!(message.contains("`plan` must be in 0..=2, got 3"), "{message}");
        let mut finished = Entries::new();
        Epoch::default().state(&mut State::writing(&mut finished), 5).unwrap();
        epoch.state(&mut State::reading(&finished), 5).unwrap();
        assert!(epoch.is_finished());
    }
}
