//! Epochs of mini-batches in curriculum order, in a form that can be saved.

use tch::Tensor;

use crate::{
    distillation::DistillError,
    state::{Entries, integers},
};

/// The rest of an epoch: positions in visiting order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    rest: Vec<usize>,
}

impl Plan {
    /// A new epoch in this order.
    pub(crate) const fn new(order: Vec<usize>) -> Self {
        Self { rest: order }
    }

    /// Whether a new epoch is due.
    pub(crate) fn is_finished(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next contiguous mini-batch; the last one of an epoch may be smaller.
    pub(crate) fn next(&mut self, size: usize) -> Vec<usize> {
        let rest = self.rest.split_off(size.min(self.rest.len()));
        std::mem::replace(&mut self.rest, rest)
    }

    /// i64 `[rest]`.
    pub(crate) fn state(&self) -> Tensor {
        Tensor::from_slice(&self.rest.iter().map(|&position| position as i64).collect::<Vec<_>>())
    }

    /// Continues from [`Plan::state`], stored as `name`, of an epoch over `n` samples.
    ///
    /// # Errors
    /// [`DistillError::State`] if it is none.
    pub(crate) fn from_state(state: &Entries, name: &str, n: usize) -> Result<Self, DistillError> {
        let rest = integers(state, name, None, 0..=n as i64 - 1)?;
        Ok(Self { rest: rest.into_iter().map(|position| position as usize).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_contiguous_and_cover_the_epoch_once() {
        let mut plan = Plan::new(vec![4, 1, 3, 0, 2]);
        assert_eq!(plan.next(2), [4, 1]);
        let saved = |plan: &Plan| Entries::from([("plan".to_owned(), plan.state())]);
        let mut resumed = Plan::from_state(&saved(&plan), "plan", 5).unwrap();
        assert_eq!(resumed.next(2), [3, 0]);
        assert_eq!(resumed.next(2), [2]);
        assert!(resumed.is_finished() && !plan.is_finished());
        assert!(Plan::from_state(&saved(&resumed), "plan", 5).unwrap().is_finished());
        let message = Plan::from_state(&saved(&plan), "plan", 3).unwrap_err().to_string();
        assert!(message.contains("`plan` must be in 0..=2, got 3"), "{message}");
    }
}
