//! The field's numbers for one trained network, in percent.
//!
//! Letters: A clean accuracy, a mean accuracy under attack over attacks, m the smallest of them; t mean attack
//! time, t0 time of the clean pass, tmax the longest attack's time, each wall-clock seconds over all test images.
//! Accuracies are given in `[0, 1]`.
//! A ratio whose denominator is zero is `None`, never 0 or 100.

use ndarray::{Array1, ArrayView1};

use crate::{AttackRecord, AttackScore};

/// Drop rate `100 (A - r) / A` of a robust accuracy r; `None` where nothing was right to begin with.
///
/// ```
/// use c2r_eval::metrics::drop_rate;
/// assert_eq!(drop_rate(0.5, 0.2), Some(60.0));
/// assert_eq!(drop_rate(0.0, 0.0), None);
/// ```
pub fn drop_rate(clean: f64, robust: f64) -> Option<f64> {
    ratio(clean - robust, clean)
}

/// Robustness ratio RR `100 [1 - (A - a) / (A - m)]`; `None` where no attack does any harm.
/// Source: BEARD (arXiv:2411.09265).
pub fn robustness_ratio(clean: f64, mean: f64, minimum: f64) -> Option<f64> {
    ratio(clean - mean, clean - minimum).map(|lost| 100.0 - lost)
}

/// Improved robustness ratio I-RR `100 [1 - (A - a)(A - m) / A^2]`; `None` where nothing was right to begin with.
/// Source: ROME (ICML 2025).
pub fn improved_robustness_ratio(clean: f64, mean: f64, minimum: f64) -> Option<f64> {
    ratio((clean - mean) * (clean - minimum), clean * clean).map(|lost| 100.0 - lost)
}

/// What the times of [`attack_efficiency`] must span, seconds: shorter ones measure warm-up and scheduling.
pub const SHORTEST_SPAN: f64 = 1.0;

/// Attack efficiency AE `100 (t - t0) / (tmax - t0)`, times in seconds, each over all test images. Depends on the
/// hardware and on how fast the slowest attack was programmed. `None` where tmax - t0 is shorter than
/// [`SHORTEST_SPAN`], and where the value is outside of `[0, 100]`, as it is where the attacks took less time than the clean
/// pass. Source: BEARD (arXiv:2411.09265).
///
/// ```
/// use c2r_eval::metrics::attack_efficiency;
/// assert_eq!(attack_efficiency(3.0, 1.0, 9.0), Some(25.0));
/// assert_eq!(attack_efficiency(0.06, 0.09, 0.1), None);
/// ```
pub fn attack_efficiency(mean: f64, clean: f64, longest: f64) -> Option<f64> {
    let span = longest - clean;
    let efficiency = 100.0 * (mean - clean) / span;
    (span >= SHORTEST_SPAN && (0.0..=100.0).contains(&efficiency)).then_some(efficiency)
}

/// Comprehensive index: the mean of a ratio ([`robustness_ratio`] for CREI, [`improved_robustness_ratio`] for
/// I-CREI) and [`attack_efficiency`], whose dependence on the hardware it inherits.
pub fn comprehensive_index(ratio: f64, efficiency: f64) -> f64 {
    f64::midpoint(ratio, efficiency)
}

fn ratio(above: f64, below: f64) -> Option<f64> {
    (below != 0.0).then(|| 100.0 * above / below)
}

/// Which images, `[N]`, are right under **every** attack of `entries`: the attacker picks the best attack for each image.
/// They are no more than under the attack that does the most harm. `None` without outcomes per image.
pub fn worst_case(record: &AttackRecord, entries: &[&AttackScore]) -> Option<Array1<bool>> {
    let mut survived = record.samples.as_ref()?.clean.clone();
    for entry in entries {
        survived.zip_mut_with(entry.survived.as_ref()?, |all, &one| *all &= one);
    }
    Some(survived)
}

/// Accuracy of each class in percent, with no attack or under one; `None` for a class with no image. The whole is
/// `None` without outcomes per image.
pub fn per_class(record: &AttackRecord, under: Option<&AttackScore>) -> Option<Vec<Option<f64>>> {
    let samples = record.samples.as_ref()?;
    let right = match under {
        Some(entry) => entry.survived.as_ref()?,
        None => &samples.clean,
    };
    let n_classes = samples.labels.iter().max()? + 1;
    let mut counts = vec![(0usize, 0usize); n_classes];
    for (&label, &right) in samples.labels.iter().zip(right) {
        counts[label].0 += usize::from(right);
        counts[label].1 += 1;
    }
    Some(counts.into_iter().map(|(right, all)| ratio(right as f64, all as f64)).collect())
}

/// Which quantiles [`margin_quantiles`] gives.
pub const MARGIN_QUANTILES: [f64; 5] = [0.05, 0.25, 0.5, 0.75, 0.95];

/// Quantiles of `margins`, `[N]`, at [`MARGIN_QUANTILES`], linear between the two nearest images (type 7 of Hyndman & Fan 1996, the
/// default of NumPy).
///
/// # Panics
/// If `margins` is empty.
///
/// ```
/// use c2r_eval::metrics::margin_quantiles;
/// let margins = ndarray::arr1(&[4.0, 0.0, 1.0, 2.0, 3.0]);
/// assert_eq!(margin_quantiles(margins.view()), [0.2, 1.0, 2.0, 3.0, 3.8]);
/// ```
pub fn margin_quantiles(margins: ArrayView1<'_, f32>) -> [f64; 5] {
    assert!(!margins.is_empty(), "there is no margin");
    let mut sorted: Vec<f64> = margins.iter().map(|&margin| f64::from(margin)).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    MARGIN_QUANTILES.map(|part| {
        let place = part * (sorted.len() - 1) as f64;
        let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        below + (above - below) * place.fract()
    })
}

/// The smallest of 1, 2, 2.5 and 5 times a power of ten that is at least `step`: for bins and axes.
pub(crate) fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let round = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|round| round * power >= step * (1.0 - 1e-9));
    round.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::example;

    fn close(got: Option<f64>, expected: f64) {
        assert!((got.unwrap() - expected).abs() < 1e-12, "{got:?}, expected {expected}");
    }

    #[test]
    fn formulas_by_hand() {
        // A = 0.8, a = 0.5, m = 0.4.
        close(drop_rate(0.8, 0.5), 37.5);
        // 100 [1 - 0.3 / 0.4]
        close(robustness_ratio(0.8, 0.5, 0.4), 25.0);
        // 100 [1 - 0.3 * 0.4 / 0.64]
        close(improved_robustness_ratio(0.8, 0.5, 0.4), 81.25);
        // t0 = 1, t = 3, tmax = 9: 100 * 2 / 8
        close(attack_efficiency(3.0, 1.0, 9.0), 25.0);
        assert_eq!(comprehensive_index(25.0, 50.0), 37.5);
    }

    #[test]
    fn undefined_is_not_a_number() {
        assert_eq!(drop_rate(0.0, 0.0), None);
        assert_eq!(robustness_ratio(0.5, 0.5, 0.5), None);
        assert_eq!(improved_robustness_ratio(0.0, 0.0, 0.0), None);
        assert_eq!(attack_efficiency(1.0, 1.0, 1.0), None);
        // All attacks faster than the clean pass: (0.5 - 1) / (0.9 - 1) would be 500.
        assert_eq!(attack_efficiency(0.5, 1.0, 0.9), None);
        // The mean attack is faster: (5 - 6) / (9 - 6) would be -33.
        assert_eq!(attack_efficiency(5.0, 6.0, 9.0), None);
        assert_eq!(attack_efficiency(6.0, 6.0, 9.0), Some(0.0));
        assert_eq!(attack_efficiency(9.0, 6.0, 9.0), Some(100.0));
        // In range, but too short.
        assert_eq!(attack_efficiency(0.5, 0.1, 0.9), None);
        assert_eq!(attack_efficiency(1.0, 0.5, 1.5), Some(50.0));
    }

    #[test]
    fn worst_case_is_over_images_and_not_over_attacks() {
        let mut record = example();
        // fgsm keeps images 0 1 2 4 5, pgd 0 1 2 5: all four of pgd.
        let entries: Vec<&AttackScore> = record.attacks.iter().collect();
        let names = |survived: Option<Array1<bool>>| -> Option<String> {
            Some(survived?.iter().map(|&survived| if survived { '1' } else { '0' }).collect())
        };
        assert_eq!(names(worst_case(&record, &entries)).as_deref(), Some("11100100"));
        // pgd keeps 1 2 4 5 6: five as well, but only four are kept by both.
        record.attacks[1].survived = Some("01101110".chars().map(|c| c == '1').collect());
        let entries: Vec<&AttackScore> = record.attacks.iter().collect();
        assert_eq!(names(worst_case(&record, &entries)).as_deref(), Some("01101100"));
        record.attacks[1].survived = None;
        let entries: Vec<&AttackScore> = record.attacks.iter().collect();
        assert_eq!(names(worst_case(&record, &entries)), None);
    }

    #[test]
    fn steps_are_round() {
        for (step, round) in
            [(0.1, 0.1), (0.11, 0.2), (0.21, 0.25), (0.26, 0.5), (7.0, 10.0), (1.0, 1.0), (1300.0, 2000.0)]
        {
            close(Some(round_step(step)), round);
        }
    }

    #[test]
    fn classes_by_hand() {
        let mut record = example();
        // Clean 1110 1110, fgsm 1110 1100.
        assert_eq!(per_class(&record, None), Some(vec![Some(75.0), Some(75.0)]));
        assert_eq!(per_class(&record, Some(&record.attacks[0])), Some(vec![Some(75.0), Some(50.0)]));
        record.samples.as_mut().unwrap().labels = ndarray::arr1(&[0, 0, 0, 0, 2, 2, 2, 2]);
        assert_eq!(per_class(&record, None), Some(vec![Some(75.0), None, Some(75.0)]));
        record.samples = None;
        assert_eq!(per_class(&record, None), None);
    }
}
