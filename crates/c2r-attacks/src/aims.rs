//! The classes that a targeted attack tries to reach.

use c2r_base::{Goal, ThreatModel};
use tch::Tensor;

use crate::{
    attack::AttackBatch,
    error::AttackError,
    oracle::Oracle,
    rows::{index, row_budget},
};

/// The classes that an attack tries to reach from each sample, one row each: i64 `[N, T]`; `None` for whichever is nearest.
pub(crate) struct Aims(Option<Tensor>);

/// How many classes [`Aims::new`] tries to reach from a sample if `likely` is given, and how many forward passes it takes
/// to choose them.
pub(crate) fn cost(threat: &ThreatModel, likely: u32, classes: u64) -> (u64, u64) {
    match threat.goal {
        Goal::Targeted(_) => (1, 0),
        Goal::Untargeted => (u64::from(likely).min(classes.saturating_sub(1)), 1),
    }
}

impl Aims {
    /// The goal's targets; else the `likely` classes with the largest clean logits apart from the label, most likely
    /// first, if that is given.
    pub(crate) fn new(
        oracle: &mut Oracle<'_>,
        batch: &AttackBatch<'_>,
        likely: Option<u32>,
    ) -> Result<Self, AttackError> {
        Ok(Self(match (batch.targets, likely) {
            (Some(targets), _) => Some(targets.unsqueeze(1)),
            (None, None) => None,
            (None, Some(likely)) => {
                let all: Vec<usize> = (0..batch.ids.len()).collect();
                let logits = oracle.logits(batch.images, &all)?;
                let n_aims = i64::from(likely).min(logits.size()[1] - 1);
                let others = logits.scatter_value(1, &batch.labels.unsqueeze(1), f64::NEG_INFINITY);
                Some(others.topk(n_aims, 1, true, true).1)
            }
        }))
    }

    /// Rows per sample.
    pub(crate) fn count(&self) -> usize {
        self.0.as_ref().map_or(1, |aims| aims.size()[1] as usize)
    }

    /// How many samples go through the model in one pass.
    pub(crate) fn samples_per_pass(&self, images: &Tensor) -> usize {
        (row_budget(images) / self.count()).max(1)
    }

    /// One row for each of these samples and aims: the sample of each row, and its aim.
    pub(crate) fn rows(&self, samples: &[usize]) -> (Vec<usize>, Option<Tensor>) {
        let rows = samples.iter().flat_map(|&sample| std::iter::repeat_n(sample, self.count())).collect();
        (rows, self.0.as_ref().map(|aims| aims.index_select(0, &index(samples, aims)).flatten(0, 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aims_are_the_likeliest_classes_but_the_label() {
        let images = Tensor::from_slice(&[0.1f32, 0.9, 0.3, 0.5, 0.8, 0.2, 0.6, 0.4]).view([2, 1, 1, 4]);
        let (labels, ids) = (Tensor::from_slice(&[1i64, 2]), [0, 1]);
        let batch = AttackBatch { images: &images, labels: &labels, ids: &ids, targets: None };
        let pixels = c2r_testkit::toys::function(|images| images.flatten(1, -1));
        let aims = |likely| Aims::new(&mut Oracle::new(&pixels, "test", &ids), &batch, Some(likely)).unwrap();
        let of = |likely, samples: &[usize]| {
            let (rows, classes) = aims(likely).rows(samples);
            (rows, Vec::<i64>::try_from(classes.unwrap()).unwrap())
        };
        assert_eq!(of(2, &[0, 1]), (vec![0, 0, 1, 1], vec![3, 2, 0, 3]));
        assert_eq!(of(1, &[1]), (vec![1], vec![0]));
        assert_eq!(aims(9).count(), 3, "four classes, one of them the label");
    }
}
