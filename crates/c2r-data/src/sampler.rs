use c2r_base::Seed;
use rand::{Rng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::Split;

/// Draws images of one class, iteration after iteration: what is drawn in iteration `t` depends on the seed and `t`
/// only, so a resumed run draws what the unstopped one would have, and there is nothing to save.
///
/// The images of a class are shuffled and dealt out `n` at a time; where fewer than `n` are left they
/// are shuffled again (the rest waits for a later shuffle), so no draw holds an image twice unless
/// `n` exceeds the class.
///
/// The shuffle in progress is kept, so that a draw that follows another continues it: drawing iteration after
/// iteration takes time in proportion to `n`, whatever the size of the class, and 8 bytes per image. A draw out of turn
/// computes its shuffle as far as it needs.
#[derive(Clone, Debug)]
pub struct ClassSampler {
    seed: Seed,
    /// By class.
    deals: Vec<Option<Deal>>,
}

/// A shuffle as far as it was needed.
#[derive(Clone, Debug)]
struct Deal {
    /// Which shuffle.
    shuffle: u64,
    rng: ChaCha8Rng,
    /// Places in the class; final up to `n_dealt`.
    places: Vec<usize>,
    n_dealt: usize,
}

impl ClassSampler {
    /// A sampler whose draws follow from `seed`.
    pub const fn new(seed: Seed) -> Self {
        Self { seed, deals: Vec::new() }
    }

    /// The positions (in `split`) of the `n` images of `class` drawn in iteration `t`.
    ///
    /// Keep `n` the same over all iterations: it decides where each shuffle is cut. If the class has
    /// fewer than `n` images, each occurs `n / len` times, rounded up or down. Empty if the class is.
    ///
    /// # Panics
    /// If `class` is not below [`Split::n_classes`].
    pub fn positions(&mut self, split: &Split, t: u64, class: usize, n: usize) -> Vec<usize> {
        let positions = split.class_positions(class);
        if positions.is_empty() || n == 0 {
            return Vec::new();
        }
        let seed = self.seed.child("data/sampler", class as u64);
        let draws_per_shuffle = (positions.len() / n) as u64;
        if draws_per_shuffle == 0 {
            let mut positions = positions.to_vec();
            positions.shuffle(&mut seed.stream("deal", t));
            return positions.iter().copied().cycle().take(n).collect();
        }
        let (shuffle, draw) = (t / draws_per_shuffle, (t % draws_per_shuffle) as usize);
        if self.deals.len() <= class {
            self.deals.resize(class + 1, None);
        }
        let kept = self.deals[class].take().filter(|deal| deal.is_of(shuffle, positions.len()));
        let deal = self.deals[class]
            .insert(kept.unwrap_or_else(|| Deal::new(shuffle, positions.len(), seed.stream("deal", shuffle))));
        deal.go_on_to((draw + 1) * n);
        deal.places[draw * n..(draw + 1) * n].iter().map(|&place| positions[place]).collect()
    }
}

impl Deal {
    fn new(shuffle: u64, len: usize, rng: ChaCha8Rng) -> Self {
        Self { shuffle, rng, places: (0..len).collect(), n_dealt: 0 }
    }

    fn is_of(&self, shuffle: u64, len: usize) -> bool {
        self.shuffle == shuffle && self.places.len() == len
    }

    /// Fisher-Yates from the front: every draw of one shuffle shares the same prefix.
    /// `SliceRandom::partial_shuffle` works from the back, so its results for two lengths disagree.
    fn go_on_to(&mut self, end: usize) {
        while self.n_dealt < end {
            let other = self.rng.random_range(self.n_dealt..self.places.len());
            self.places.swap(self.n_dealt, other);
            self.n_dealt += 1;
        }
    }
}
