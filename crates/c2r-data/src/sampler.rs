use c2r_base::Seed;
use rand::{Rng, seq::SliceRandom};

use crate::Split;

/// Draws images of one class, iteration after iteration, without state: what is drawn in iteration
/// `t` depends on the seed and `t` only, so a resumed run draws what the unstopped one would have.
///
/// The images of a class are shuffled and dealt out `n` at a time; where fewer than `n` are left they
/// are shuffled again (the rest waits for a later shuffle), so no draw holds an image twice unless
/// `n` exceeds the class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassSampler {
    seed: Seed,
}

impl ClassSampler {
    /// A sampler whose draws follow from `seed`.
    pub const fn new(seed: Seed) -> Self {
        Self { seed }
    }

    /// The positions (in `split`) of the `n` images of `class` drawn in iteration `t`.
    ///
    /// Keep `n` the same over all iterations: it decides where each shuffle is cut. If the class has
    /// fewer than `n` images, each occurs `n / len` times, rounded up or down. Empty if the class is.
    ///
    /// # Panics
    /// If `class` is not below [`Split::n_classes`].
    pub fn positions(&self, split: &Split, t: u64, class: usize, n: usize) -> Vec<usize> {
        let mut positions = split.class_positions(class).to_vec();
        if positions.is_empty() || n == 0 {
            return Vec::new();
        }
        let seed = self.seed.child("data/sampler", class as u64);
        let draws_per_shuffle = (positions.len() / n) as u64;
        if draws_per_shuffle == 0 {
            positions.shuffle(&mut seed.stream("deal", t));
            return positions.iter().copied().cycle().take(n).collect();
        }
        let (shuffle, draw) = (t / draws_per_shuffle, (t % draws_per_shuffle) as usize);
        // Fisher-Yates from the front: every draw of one shuffle computes the same prefix, as far as it needs.
        // `SliceRandom::partial_shuffle` works from the back, so its results for two lengths disagree.
        let mut rng = seed.stream("deal", shuffle);
        for i in 0..(draw + 1) * n {
            let j = rng.random_range(i..positions.len());
            positions.swap(i, j);
        }
        positions[draw * n..(draw + 1) * n].to_vec()
    }
}
