//! Attack-aware curriculum (AAC): which samples come first, how many, and with what weight.
//!
//! The paper sorts an epoch's samples by perturbation score, hardest first, and cuts contiguous
//! mini-batches; no weights. On small sets that reading was measured to hurt (docs/method.md), so
//! the other readings are here too, each under its own name.

use rand::{Rng, seq::SliceRandom};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// How perturbation scores act.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mode", deny_unknown_fields, rename_all = "kebab-case")]
pub enum Curriculum {
    /// Not at all: a shuffled order, equal weights.
    Off(OffConfig),
    /// The paper's literal reading: sorted by score, contiguous batches.
    Order(OrderConfig),
    /// Only the hardest (or easiest) part of the samples, in shuffled order.
    Prefix(PrefixConfig),
    /// All samples, shuffled, each loss weighted by its score.
    Weight(WeightConfig),
    /// The samples between two quantiles of the score, which move over the run, in shuffled order. No
    /// part of the paper: an extension.
    Pace(PaceConfig),
}

/// No options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OffConfig {}

/// Options of [`Curriculum::Order`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OrderConfig {
    /// Smallest margins first (the paper) or last.
    pub first: First,
    /// Sort within each class and deal the classes in turn, so that a batch holds all of them.
    #[serde(default)]
    pub class_balanced: bool,
}

/// Options of [`Curriculum::Prefix`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PrefixConfig {
    /// Which end of the order is kept.
    pub first: First,
    /// Share of each class that is kept, in `(0, 1]`; at least one sample per class.
    pub fraction: f64,
}

/// Options of [`Curriculum::Weight`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WeightConfig {
    /// Added to every score, so that samples with a margin of 1 or more keep some weight.
    #[serde(default = "floor")]
    pub floor: f64,
}

/// The default of [`WeightConfig::floor`].
fn floor() -> f64 {
    0.05
}

/// Options of [`Curriculum::Pace`]: which part of each class, sorted from easy (0) to hard (1), is kept.
///
/// Both ends move linearly from their first value, at the start of the run, to their second, at its end; for images that
/// a network is trained on, the run is that network's training.
/// `low = [0, 0], high = [0.5, 1]` begins with the easier half and ends with everything;
/// `low = [0, 0.5], high = [0.5, 1]` moves a window of half the samples along the quantiles of the margin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PaceConfig {
    /// Lower end, at the start and at the end of the run, in `[0, 1]`.
    pub low: [f64; 2],
    /// Upper end, above the lower one, in `[0, 1]`.
    pub high: [f64; 2],
}

/// Which samples come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum First {
    /// The smallest margins (largest scores).
    Hard,
    /// The largest margins (smallest scores).
    Easy,
}

impl Default for Curriculum {
    fn default() -> Self {
        Self::Off(OffConfig {})
    }
}

/// A curriculum whose options make no sense.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum CurriculumError {
    /// Outside `(0, 1]`.
    #[error("curriculum fraction must be in (0, 1], got {0}")]
    Fraction(f64),
    /// Negative or not finite.
    #[error("curriculum floor must be a finite number that is at least 0, got {0}")]
    Floor(f64),
    /// Not a part of `[0, 1]`.
    #[error("curriculum pace needs 0 <= low < high <= 1, at the start and at the end of the run; got {0} and {1}")]
    Pace(f64, f64),
}

impl Curriculum {
    /// Checks the options.
    ///
    /// # Errors
    /// [`CurriculumError`].
    pub fn validate(&self) -> Result<(), CurriculumError> {
        match self {
            Self::Prefix(config) if !(config.fraction > 0.0 && config.fraction <= 1.0) => {
                Err(CurriculumError::Fraction(config.fraction))
            }
            Self::Weight(config) if !(config.floor.is_finite() && config.floor >= 0.0) => {
                Err(CurriculumError::Floor(config.floor))
            }
            Self::Pace(PaceConfig { low, high }) => low.iter().zip(high).try_for_each(|(&low, &high)| {
                if 0.0 <= low && low < high && high <= 1.0 { Ok(()) } else { Err(CurriculumError::Pace(low, high)) }
            }),
            _ => Ok(()),
        }
    }

    /// Whether scores are needed at all.
    pub const fn needs_scores(&self) -> bool {
        !matches!(self, Self::Off(_))
    }

    /// Whether the order depends on scores.
    pub const fn sorts(&self) -> bool {
        !matches!(self, Self::Off(_) | Self::Weight(_))
    }

    /// Whether some samples are left out.
    pub const fn chooses(&self) -> bool {
        matches!(self, Self::Prefix(_) | Self::Pace(_))
    }

    /// The word that configurations use for it.
    pub const fn mode(&self) -> &'static str {
        match self {
            Self::Off(_) => "off",
            Self::Order(_) => "order",
            Self::Prefix(_) => "prefix",
            Self::Weight(_) => "weight",
            Self::Pace(_) => "pace",
        }
    }

    /// The order in which samples are visited, possibly without some of them.
    ///
    /// * `scores`: perturbation score of each sample, at least 0; `labels`: its class, same length.
    /// * `progress`: how much of the run is done, in `[0, 1]`.
    ///
    /// Returns positions into `scores`. Equal scores keep their order, so the result is a function of
    /// the arguments alone.
    ///
    /// # Panics
    /// If the lengths differ, an option makes no sense ([`Curriculum::validate`]), or a score that the order depends on is
    /// NaN.
    pub fn order(&self, scores: &[f32], labels: &[i64], progress: f64, rng: &mut impl Rng) -> Vec<usize> {
        assert_eq!(scores.len(), labels.len(), "one score per label");
        self.validate().unwrap_or_else(|error| panic!("{error}"));
        let unscored = scores.iter().position(|score| self.sorts() && score.is_nan());
        assert_eq!(unscored, None, "the score at this position is NaN, which is neither hard nor easy");
        let mut all: Vec<usize> = (0..scores.len()).collect();
        match self {
            Self::Off(_) | Self::Weight(_) => all.shuffle(rng),
            Self::Order(OrderConfig { first, class_balanced: false }) => sort_by_score(&mut all, scores, *first),
            Self::Order(OrderConfig { first, class_balanced: true }) => {
                let mut classes = by_class(&all, labels);
                for members in &mut classes {
                    sort_by_score(members, scores, *first);
                }
                let longest = classes.iter().map(Vec::len).max().unwrap_or(0);
                all = (0..longest)
                    .flat_map(|rank| classes.iter().filter_map(move |class| class.get(rank).copied()))
                    .collect();
            }
            Self::Prefix(PrefixConfig { first, fraction }) => {
                let mut classes = by_class(&all, labels);
                all.clear();
                for members in &mut classes {
                    sort_by_score(members, scores, *first);
                    let kept = rounded_up(members.len(), *fraction).clamp(1, members.len());
                    all.extend_from_slice(&members[..kept]);
                }
                all.shuffle(rng);
            }
            Self::Pace(PaceConfig { low, high }) => {
                let at = |[from, to]: [f64; 2]| from + (to - from) * progress.clamp(0.0, 1.0);
                let (low, high) = (at(*low), at(*high));
                let mut classes = by_class(&all, labels);
                all.clear();
                for members in &mut classes {
                    sort_by_score(members, scores, First::Easy);
                    let n = members.len();
                    // At least one sample, however narrow the window and small the class.
                    let first = rounded_down(n, low).min(n - 1);
                    let last = rounded_up(n, high).clamp(first + 1, n);
                    all.extend_from_slice(&members[first..last]);
                }
                all.shuffle(rng);
            }
        }
        all
    }

    /// The weight of each sample's loss, with a sum of N.
    ///
    /// * `scores`: f32 `[N]`, at least 0. NaN or infinity in one makes weights NaN.
    ///
    /// Returns f32 `[N]`, detached: `score + floor`, normalized, under [`Curriculum::Weight`]; ones otherwise.
    pub fn weights(&self, scores: &Tensor) -> Tensor {
        match self {
            Self::Weight(config) => {
                let raw = scores.detach() + config.floor;
                let mean = raw.mean(Kind::Float);
                // Where all margins are comfortable and the floor is 0, no sample is harder than another.
                scores.detach().ones_like().where_self(&mean.le(0.0), &(raw / &mean))
            }
            _ => scores.detach().ones_like(),
        }
    }
}

/// How far the product of a whole number and a decimal fraction may be off: 0.07 * 100 is a little more than 7.
const ROUNDING: f64 = 1e-9;

fn rounded_up(n: usize, share: f64) -> usize {
    (n as f64 * share - ROUNDING).ceil() as usize
}

fn rounded_down(n: usize, share: f64) -> usize {
    (n as f64 * share + ROUNDING).floor() as usize
}

fn sort_by_score(positions: &mut [usize], scores: &[f32], first: First) {
    positions.sort_by(|&a, &b| match first {
        First::Hard => scores[b].total_cmp(&scores[a]),
        First::Easy => scores[a].total_cmp(&scores[b]),
    });
}

/// Positions of each class that occurs, by ascending label.
fn by_class(positions: &[usize], labels: &[i64]) -> Vec<Vec<usize>> {
    let mut classes = std::collections::BTreeMap::<i64, Vec<usize>>::new();
    for &position in positions {
        classes.entry(labels[position]).or_default().push(position);
    }
    classes.into_values().collect()
}

#[cfg(test)]
mod tests {
    use c2r_base::Seed;

    use super::*;

    const SCORES: [f32; 6] = [0.1, 2.0, 0.5, 1.0, 0.0, 3.0];
    const LABELS: [i64; 6] = [0, 0, 0, 1, 1, 1];

    fn order(curriculum: &Curriculum) -> Vec<usize> {
        curriculum.order(&SCORES, &LABELS, 0.0, &mut Seed::new(1).stream("test", 0))
    }

    #[test]
    fn literal_order_is_by_descending_score() {
        let hard = Curriculum::Order(OrderConfig { first: First::Hard, class_balanced: false });
        assert_eq!(order(&hard), [5, 1, 3, 2, 0, 4]);
        let easy = Curriculum::Order(OrderConfig { first: First::Easy, class_balanced: false });
        assert_eq!(order(&easy), [4, 0, 2, 3, 1, 5]);
    }

    #[test]
    fn balanced_order_deals_the_classes_in_turn() {
        let curriculum = Curriculum::Order(OrderConfig { first: First::Hard, class_balanced: true });
        assert_eq!(order(&curriculum), [1, 5, 2, 3, 0, 4]);
    }

    #[test]
    fn prefix_keeps_the_share_of_every_class() {
        let mut kept = order(&Curriculum::Prefix(PrefixConfig { first: First::Hard, fraction: 0.5 }));
        kept.sort_unstable();
        assert_eq!(kept, [1, 2, 3, 5]);
        let mut kept = order(&Curriculum::Prefix(PrefixConfig { first: First::Easy, fraction: 0.01 }));
        kept.sort_unstable();
        assert_eq!(kept, [0, 4]);
        // 1.2 of three, rounded up.
        let mut kept = order(&Curriculum::Prefix(PrefixConfig { first: First::Hard, fraction: 0.4 }));
        kept.sort_unstable();
        assert_eq!(kept, [1, 2, 3, 5]);
    }

    #[test]
    fn a_whole_share_is_not_rounded() {
        // In f64, 0.07 * 100 is a little more than 7, and 0.29 * 100 a little less than 29.
        let n_kept = |curriculum: &Curriculum| {
            let scores: Vec<f32> = (0..100_u8).map(f32::from).collect();
            curriculum.order(&scores, &[0; 100], 0.0, &mut Seed::new(1).stream("test", 0)).len()
        };
        assert_eq!(n_kept(&Curriculum::Prefix(PrefixConfig { first: First::Hard, fraction: 0.07 })), 7);
        assert_eq!(n_kept(&Curriculum::Pace(PaceConfig { low: [0.0; 2], high: [0.07; 2] })), 7);
        assert_eq!(n_kept(&Curriculum::Pace(PaceConfig { low: [0.29; 2], high: [1.0; 2] })), 71);
    }

    #[test]
    fn pace_moves_a_window_from_easy_to_hard() {
        let kept = |low, high, progress| {
            let pace = Curriculum::Pace(PaceConfig { low, high });
            let mut kept = pace.order(&SCORES, &LABELS, progress, &mut Seed::new(1).stream("test", 0));
            kept.sort_unstable();
            kept
        };
        // Class 0 from easy to hard is 0, 2, 1; class 1 is 4, 3, 5.
        assert_eq!(kept([0.0, 0.0], [0.3, 1.0], 0.0), [0, 4]);
        assert_eq!(kept([0.0, 0.0], [0.3, 1.0], 0.5), [0, 2, 3, 4]);
        assert_eq!(kept([0.0, 0.0], [0.3, 1.0], 1.0), [0, 1, 2, 3, 4, 5]);
        assert_eq!(kept([0.0, 0.67], [0.33, 1.0], 0.0), [0, 4]);
        assert_eq!(kept([0.0, 0.67], [0.33, 1.0], 1.0), [1, 5]);
        // The sample in the middle lies on both sides of the window's end, and is in it.
        assert_eq!(kept([0.5, 0.5], [1.0, 1.0], 0.0), [1, 2, 3, 5]);
    }

    #[test]
    fn off_and_weight_visit_everything_in_a_seeded_order() {
        for curriculum in [Curriculum::default(), Curriculum::Weight(WeightConfig { floor: 0.05 })] {
            let mut visited = order(&curriculum);
            assert_eq!(visited, order(&curriculum));
            visited.sort_unstable();
            assert_eq!(visited, [0, 1, 2, 3, 4, 5]);
        }
    }

    /// Two draws of 40 samples are the same by chance once in 40! times.
    #[test]
    fn every_draw_shuffles_anew() {
        let (scores, labels) = ([1.0; 40], [0; 40]);
        for curriculum in [
            Curriculum::default(),
            Curriculum::Weight(WeightConfig { floor: 0.05 }),
            Curriculum::Prefix(PrefixConfig { first: First::Hard, fraction: 1.0 }),
            Curriculum::Pace(PaceConfig { low: [0.0, 0.0], high: [1.0, 1.0] }),
        ] {
            let [one, two] =
                [0, 1].map(|draw| curriculum.order(&scores, &labels, 0.0, &mut Seed::new(1).stream("test", draw)));
            assert_ne!(one, two, "{}", curriculum.mode());
        }
    }

    #[test]
    fn weights_follow_the_scores_and_sum_to_n() {
        let scores = Tensor::from_slice(&[0.0f32, 1.0, 3.0]);
        let weights = Curriculum::Weight(WeightConfig { floor: 0.5 }).weights(&scores);
        // (0.5, 1.5, 3.5) over their mean 11/6.
        let expected = [3.0 / 11.0, 9.0 / 11.0, 21.0 / 11.0];
        for (index, expected) in expected.into_iter().enumerate() {
            assert!((weights.double_value(&[index as i64]) - expected).abs() < 1e-6);
        }
        let ones = Curriculum::default().weights(&scores);
        assert_eq!(Vec::<f32>::try_from(ones).unwrap(), [1.0; 3]);
        let zeros = Curriculum::Weight(WeightConfig { floor: 0.0 }).weights(&Tensor::from_slice(&[0.0f32, 0.0]));
        assert_eq!(Vec::<f32>::try_from(zeros).unwrap(), [1.0; 2]);
    }

    #[test]
    #[should_panic(expected = "curriculum fraction must be in (0, 1], got -1")]
    fn a_negative_fraction_has_no_order() {
        order(&Curriculum::Prefix(PrefixConfig { first: First::Hard, fraction: -1.0 }));
    }

    #[test]
    #[should_panic(expected = "the score at this position is NaN")]
    fn a_score_that_is_nan_has_no_order() {
        let hard = Curriculum::Order(OrderConfig { first: First::Hard, class_balanced: false });
        hard.order(&[1.0, f32::NAN], &[0, 1], 0.0, &mut Seed::new(1).stream("test", 0));
    }

    /// Where nobody looks at scores, there need be none.
    #[test]
    fn a_shuffled_order_needs_no_scores() {
        let order = Curriculum::default().order(&[f32::NAN; 2], &[0, 1], 0.0, &mut Seed::new(1).stream("test", 0));
        assert_eq!(order.len(), 2);
    }

    #[test]
    fn options_are_checked() {
        let prefix = |fraction| Curriculum::Prefix(PrefixConfig { first: First::Hard, fraction });
        assert_eq!(prefix(0.0).validate(), Err(CurriculumError::Fraction(0.0)));
        assert!(prefix(1.0).validate().is_ok());
        assert_eq!(Curriculum::Weight(WeightConfig { floor: -1.0 }).validate(), Err(CurriculumError::Floor(-1.0)));
        let pace = |low, high| Curriculum::Pace(PaceConfig { low, high }).validate();
        assert_eq!(pace([0.0, 0.5], [0.5, 0.5]), Err(CurriculumError::Pace(0.5, 0.5)));
        assert!(pace([0.0, 0.5], [0.5, 1.0]).is_ok());
    }
}
