use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Where all randomness of a run comes from.
///
/// Noise is drawn on the host from one stream per (seed, purpose, index), so results depend on
/// neither batch size, order, thread count nor device.
///
/// ```
/// use c2r_base::{Seed, rand::Rng};
/// let seed = Seed::new(7);
/// let a: u64 = seed.stream("pgd/start", 3).random();
/// let b: u64 = seed.stream("pgd/start", 3).random();
/// let c: u64 = seed.stream("pgd/start", 4).random();
/// assert!(a == b && a != c);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seed(u64);

impl Seed {
    /// The seed that a person writes down.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number that [`Seed::new`] was given, or that [`Seed::child`] derived.
    pub const fn value(self) -> u64 {
        self.0
    }

    /// A generator for one purpose and one index (a sample id, an iteration).
    pub fn stream(self, purpose: &str, index: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.0 ^ fnv1a(purpose.as_bytes()));
        rng.set_stream(index);
        rng
    }

    /// A seed for a part of the run, e.g. one network of a pool.
    pub fn child(self, purpose: &str, index: u64) -> Self {
        let mut bytes = purpose.as_bytes().to_vec();
        bytes.extend_from_slice(&self.0.to_le_bytes());
        bytes.extend_from_slice(&index.to_le_bytes());
        Self(fnv1a(&bytes))
    }
}

/// 64-bit FNV-1a: stable over platforms and versions, unlike `std::hash`.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_matches_the_published_vectors() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn children_differ() {
        let seed = Seed::new(1);
        assert_ne!(seed.child("a", 0), seed.child("a", 1));
        assert_ne!(seed.child("a", 0), seed.child("b", 0));
        assert_eq!(seed.child("a", 0), Seed::new(1).child("a", 0));
    }
}
