//! Which real images each update takes.

use std::collections::VecDeque;

use c2r_data::{ClassSampler, Rows};

use crate::context::Context;

/// Updates whose positions are sent together.
const MOST_UPDATES: u64 = 64;

/// The real images of one update after the other, as many of every class, class by class. What an update takes depends on
/// the seed and its number only, so there is nothing to save.
#[derive(Debug)]
pub(crate) struct RealRows {
    sampler: ClassSampler,
    per_class: usize,
    /// Of this update and the next ones.
    sent: VecDeque<(u64, Rows)>,
}

impl RealRows {
    pub(crate) fn new(context: &Context, per_class: usize) -> Self {
        Self { sampler: ClassSampler::new(context.seed.child("real", 0)), per_class, sent: VecDeque::new() }
    }

    /// Positions for update `t`: `per_class` of every class.
    pub(crate) fn of(&mut self, context: &Context, t: u64) -> Rows {
        while self.sent.front().is_some_and(|(of, _)| *of != t) {
            self.sent.pop_front();
        }
        if self.sent.is_empty() {
            let updates = t..(t + MOST_UPDATES).min(context.common.iterations).max(t + 1);
            let classes = 0..context.data.n_classes();
            let mut positions = Vec::new();
            for t in updates.clone() {
                for class in classes.clone() {
                    positions.extend(self.sampler.positions(&context.data, t, class, self.per_class));
                }
            }
            let n = positions.len() / (updates.end - updates.start) as usize;
            let all = context.batches.rows(positions);
            self.sent = updates.enumerate().map(|(at, t)| (t, all.part(at * n, n))).collect();
        }
        self.sent.pop_front().expect("it was just sent").1
    }
}
