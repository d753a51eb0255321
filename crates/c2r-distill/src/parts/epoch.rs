//! Epochs of mini-batches in curriculum order, in a form that can be saved.

use c2r_train::state::{State, StateError};

/// The rest of an epoch: positions in visiting order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Epoch {
    rest: Vec<usize>,
}

impl Epoch {
    /// A new epoch in this order.
    pub(crate) const fn new(order: Vec<usize>) -> Self {
        Self { rest: order }
    }

    /// Whether a new epoch is due.
    pub(crate) const fn is_finished(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next contiguous mini-batch; the last one of an epoch may be smaller.
    pub(crate) fn next(&mut self, size: usize) -> Vec<usize> {
        let rest = self.rest.split_off(size.min(self.rest.len()));
        std::mem::replace(&mut self.rest, rest)
    }

    /// Visits the rest of an epoch over `n` samples.
    pub(crate) fn state(&mut self, state: &mut State<'_>, n: usize) -> Result<(), StateError> {
        state.positions("plan", &mut self.rest, n)
    }
}

#[cfg(test)]
mod tests {
    use c2r_train::state::Entries;

    use super::*;

    #[test]
    fn batches_are_contiguous_and_cover_the_epoch_once() {
        let mut epoch = Epoch::new(vec![4, 1, 3, 0, 2]);
        assert_eq!(epoch.next(2), [4, 1]);
        let mut saved = Entries::new();
        epoch.state(&mut State::writing(&mut saved), 5).unwrap();
        let mut resumed = Epoch::default();
        resumed.state(&mut State::reading(&saved), 5).unwrap();
        assert_eq!(resumed.next(2), [3, 0]);
        assert_eq!(resumed.next(2), [2]);
        assert!(resumed.is_finished() && !epoch.is_finished());
        let message = resumed.state(&mut State::reading(&saved), 3).unwrap_err().to_string();
        assert!(message.contains("`plan` must be in 0..=2, got 3"), "{message}");
        let mut finished = Entries::new();
        Epoch::default().state(&mut State::writing(&mut finished), 5).unwrap();
        epoch.state(&mut State::reading(&finished), 5).unwrap();
        assert!(epoch.is_finished());
    }
}
