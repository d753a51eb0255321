//! The numbers of a row: one per run and column.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::{Array1, ArrayView1};

use super::group::{Measured, Seeds};
use crate::{
    AttackScore, Source,
    columns::{CLEAN, MINIMUM, RATIOS, WORST_CASE, averages, counted, drop_rate_column, is_sanity, margin_column},
    metrics,
    record::count,
    stats::Summary,
};

/// The runs of a row.
pub(super) type Runs<'a> = BTreeMap<Seeds, Measured<'a>>;

/// One value per run, in percent or logits, and the files they came from.
#[derive(Default)]
pub(super) struct Values {
    pub(super) per_run: Vec<Option<f64>>,
    /// What each test image adds to a run's value, where its outcome was kept: their mean is the value.
    pub(super) per_image: Vec<Option<Vec<f64>>>,
    pub(super) sources: BTreeSet<String>,
}

/// A number of one run, and what each test image adds to it.
struct Number {
    value: f64,
    images: Option<Vec<f64>>,
}

/// The columns of a row in the order in which they first got a value.
#[derive(Default)]
struct Columns(Vec<(String, Values)>);

impl Columns {
    /// The value of the run at `position`, computed from `files`.
    fn put(&mut self, position: usize, column: &str, number: Option<Number>, files: &[&Source]) {
        let at = self.0.iter().position(|(name, _)| name == column).unwrap_or_else(|| {
            self.0.push((column.to_owned(), Values::default()));
            self.0.len() - 1
        });
        let values = &mut self.0[at].1;
        values.per_run.resize(position, None);
        values.per_image.resize(position, None);
        if number.is_some() {
            values.sources.extend(files.iter().map(|file| file.path.clone()));
        }
        let (value, images) = number.map_or((None, None), |Number { value, images }| (Some(value), images));
        values.per_run.push(value);
        values.per_image.push(images);
    }
}

/// Every column of a row, in order.
pub(super) fn values_of(runs: &Runs<'_>, attacks: &[String]) -> Vec<(String, Values)> {
    let mut columns = Columns::default();
    for (position, run) in runs.values().enumerate() {
        accuracies(run, attacks, &mut |column, number, files| columns.put(position, column, number, files));
    }
    for (position, run) in runs.values().enumerate() {
        for (attack, margins) in margins_of(run, attacks) {
            let file = run.attacks.get(attack).map_or(run.files[0], |(_, source)| source);
            for (part, value) in metrics::MARGIN_QUANTILES.into_iter().zip(metrics::margin_quantiles(margins)) {
                let number = Number { value, images: None };
                columns.put(position, &margin_column(part, attack), Some(number), &[file]);
            }
        }
    }
    let mut columns = columns.0;
    for (_, values) in &mut columns {
        values.per_run.resize(runs.len(), None);
        values.per_image.resize(runs.len(), None);
    }
    columns
}

/// Takes a column's name, its number and the files that it was computed from.
type Put<'a> = dyn FnMut(&str, Option<Number>, &[&Source]) + 'a;

/// The outcomes of one run without an attack or under one, as percentages.
#[derive(Clone)]
struct Outcomes {
    percent: f64,
    /// 100 for an image that is right, 0 for one that is wrong.
    images: Option<Vec<f64>>,
}

impl Outcomes {
    fn new(count: usize, n: usize, right: Option<&Array1<bool>>) -> Self {
        let images = right.map(|right| right.iter().map(|&right| if right { 100.0 } else { 0.0 }).collect());
        // Counted, so that 24 of 100 images are 24 and not 24.000000000000004.
        Self { percent: 100.0 * count as f64 / n as f64, images }
    }

    fn under(entry: &AttackScore) -> Self {
        Self::new(entry.survivors, entry.n, entry.survived.as_ref())
    }

    fn mean(all: &[Self]) -> Self {
        let n = all.len() as f64;
        let images: Option<Vec<&Vec<f64>>> = all.iter().map(|one| one.images.as_ref()).collect();
        let mean_of = |images: &[&Vec<f64>], at: usize| images.iter().map(|one| one[at]).sum::<f64>() / n;
        Self {
            percent: all.iter().map(|one| one.percent).sum::<f64>() / n,
            images: images.map(|images| (0..images[0].len()).map(|at| mean_of(&images, at)).collect()),
        }
    }

    /// Those of the attack that does the most harm; `None` if there is none.
    fn minimum(all: &[Self]) -> Option<Self> {
        all.iter().min_by(|a, b| a.percent.total_cmp(&b.percent)).cloned()
    }

    fn number(self) -> Number {
        Number { value: self.percent, images: self.images }
    }
}

/// A number that is computed from `parts`, each with its derivative there: an image adds to it what it adds to the parts (the
/// delta method).
fn derived(value: Option<f64>, parts: &[(f64, &Outcomes)]) -> Option<Number> {
    let value = value?;
    let all: Option<Vec<(f64, f64, &Vec<f64>)>> =
        parts.iter().map(|(slope, part)| Some((*slope, part.percent, part.images.as_ref()?))).collect();
    let of_image = |parts: &[(f64, f64, &Vec<f64>)], at: usize| {
        value + parts.iter().map(|(slope, mean, images)| slope * (images[at] - mean)).sum::<f64>()
    };
    let images = all.map(|parts| (0..parts[0].2.len()).map(|at| of_image(&parts, at)).collect());
    Some(Number { value, images })
}

/// Everything of one run that is in percent.
fn accuracies(run: &Measured<'_>, attacks: &[String], put: &mut Put<'_>) {
    let record = &run.files[0].record;
    let right = record.samples.as_ref().map(|samples| &samples.clean);
    let clean = Outcomes::new((record.clean_accuracy * record.n as f64).round() as usize, record.n, right);
    put(CLEAN, Some(clean.clone().number()), &run.files[..1]);
    // An attack named like a column of ours would replace it.
    for attack in attacks.iter().filter(|attack| *attack != CLEAN) {
        match run.attacks.get(attack.as_str()) {
            Some((entry, source)) => put(attack, Some(Outcomes::under(entry).number()), &[source]),
            None => put(attack, None, &[]),
        }
    }
    let entries = |names: &[&str]| -> Option<Vec<&AttackScore>> {
        names.iter().map(|&attack| run.attacks.get(attack).map(|(entry, _)| *entry)).collect()
    };
    for (column, over) in averages(attacks) {
        let all = entries(&over).map(|all| all.into_iter().map(Outcomes::under).collect::<Vec<_>>());
        put(column, all.map(|all| Outcomes::mean(&all).number()), &run.files);
    }
    let counted = counted(attacks);
    let all = entries(&counted).filter(|all| !all.is_empty());
    let outcomes: Vec<Outcomes> = all.iter().flatten().map(|entry| Outcomes::under(entry)).collect();
    let minimum = Outcomes::minimum(&outcomes);
    put(MINIMUM, minimum.clone().map(Outcomes::number), &run.files);
    let worst = all.as_ref().and_then(|all| metrics::worst_case(record, all));
    put(WORST_CASE, worst.map(|worst| Outcomes::new(count(worst.view()), record.n, Some(&worst)).number()), &run.files);
    for attack in attacks.iter().filter(|attack| !is_sanity(attack)) {
        let column = drop_rate_column(attack);
        match run.attacks.get(attack.as_str()) {
            Some((entry, source)) => {
                let (a, robust) = (clean.percent, Outcomes::under(entry));
                let slopes = [(100.0 * robust.percent / a.powi(2), &clean), (-100.0 / a, &robust)];
                let rate = metrics::drop_rate(record.clean_accuracy, entry.robust_accuracy);
                put(&column, derived(rate, &slopes), &[source]);
            }
            None => put(&column, None, &[]),
        }
    }
    // With a single attack the mean is the minimum and the ratios say nothing.
    let ratios = all.filter(|all| all.len() > 1).zip(minimum).map(|(all, minimum)| {
        let mean = Outcomes::mean(&outcomes);
        let (a, u, v) = (clean.percent, clean.percent - mean.percent, clean.percent - minimum.percent);
        let rr_slopes = [((u - v) / v.powi(2), &clean), (1.0 / v, &mean), (-u / v.powi(2), &minimum)];
        let rr_slopes = rr_slopes.map(|(slope, part)| (100.0 * slope, part));
        let irr_slopes =
            [((2.0 * u * v / a - u - v) / a.powi(2), &clean), (v / a.powi(2), &mean), (u / a.powi(2), &minimum)];
        let irr_slopes = irr_slopes.map(|(slope, part)| (100.0 * slope, part));
        let mean_of = |of: fn(&AttackScore) -> f64| all.iter().map(|entry| of(entry)).sum::<f64>() / all.len() as f64;
        let least = all.iter().map(|entry| entry.robust_accuracy).fold(f64::INFINITY, f64::min);
        let parts = (record.clean_accuracy, mean_of(|entry| entry.robust_accuracy), least);
        let rr = metrics::robustness_ratio(parts.0, parts.1, parts.2);
        let irr = metrics::improved_robustness_ratio(parts.0, parts.1, parts.2);
        let longest = all.iter().map(|entry| entry.seconds).fold(0.0, f64::max);
        let ae = metrics::attack_efficiency(mean_of(|entry| entry.seconds), record.clean_seconds, longest);
        let index = |ratio: Option<f64>| Some(metrics::comprehensive_index(ratio?, ae?));
        let of_times = |value: Option<f64>| value.map(|value| Number { value, images: None });
        [derived(rr, &rr_slopes), derived(irr, &irr_slopes), of_times(ae), of_times(index(rr)), of_times(index(irr))]
    });
    for (column, number) in RATIOS.into_iter().zip(ratios.unwrap_or_default()) {
        put(column, number, &run.files);
    }
}

/// The margins that a run kept: without an attack ([`CLEAN`]) and under each.
pub(super) fn margins_of<'a>(run: &Measured<'a>, attacks: &'a [String]) -> Vec<(&'a str, ArrayView1<'a, f32>)> {
    let clean = run.files.iter().find_map(|file| file.record.samples.as_ref()?.margins.as_ref());
    let attacked = attacks.iter().filter(|attack| *attack != CLEAN).filter_map(|attack| {
        let (entry, _) = run.attacks.get(attack.as_str())?;
        Some((attack.as_str(), entry.margins.as_ref()?.view()))
    });
    clean.map(|margins| (CLEAN, margins.view())).into_iter().chain(attacked).collect()
}

/// Number of bins of a margin histogram, about.
const MARGIN_BINS: f64 = 32.0;

/// Edges at whole multiples of a round width, one of them 0, that hold all but the outermost hundredths of `margins`.
pub(super) fn bin_edges(mut margins: Vec<f32>) -> Vec<f64> {
    margins.sort_unstable_by(f32::total_cmp);
    let at = |part: f64| f64::from(margins[(part * (margins.len() - 1) as f64).round() as usize]);
    if margins.is_empty() || at(0.0) == at(1.0) {
        return Vec::new();
    }
    let (low, high) = (at(0.01).min(0.0), at(0.99).max(0.0));
    let width = metrics::round_step((high - low).max(f64::from(f32::EPSILON)) / MARGIN_BINS);
    let (first, last) = ((low / width).floor() as i64, (high / width).ceil() as i64);
    (first..=last.max(first + 1)).map(|edge| edge as f64 * width).collect()
}

/// Number of test images in each bin, over all runs.
pub(super) fn margin_counts(runs: &Runs<'_>, attacks: &[String], edges: &[f64]) -> BTreeMap<String, Vec<usize>> {
    let mut counts: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    if edges.len() < 2 {
        return counts;
    }
    for (attack, margins) in runs.values().flat_map(|run| margins_of(run, attacks)) {
        let bins = counts.entry(attack.to_owned()).or_insert_with(|| vec![0; edges.len() - 1]);
        for &margin in margins {
            bins[edges[1..edges.len() - 1].partition_point(|&edge| edge <= f64::from(margin))] += 1;
        }
    }
    counts
}

/// Mean accuracy of each class by column, where every run kept outcomes per image.
pub(super) fn classes_of(runs: &Runs<'_>, attacks: &[String]) -> BTreeMap<String, Vec<Option<f64>>> {
    let of_run = |run: &Measured<'_>, column: &str| {
        if column == CLEAN {
            return metrics::per_class(&run.files[0].record, None);
        }
        let (entry, source) = run.attacks.get(column)?;
        metrics::per_class(&source.record, Some(entry))
    };
    let of_column = |column: &str| {
        let per_run: Vec<_> = runs.values().map(|run| of_run(run, column)).collect::<Option<_>>()?;
        let n_classes = per_run.iter().map(Vec::len).max().unwrap_or(0);
        let mean = |class: usize| {
            let values: Option<Vec<f64>> = per_run.iter().map(|run| run.get(class).copied().flatten()).collect();
            Some(Summary::of(&values?)?.mean)
        };
        Some((column.to_owned(), (0..n_classes).map(mean).collect()))
    };
    let columns = attacks.iter().map(String::as_str).filter(|attack| *attack != CLEAN);
    std::iter::once(CLEAN).chain(columns).filter_map(of_column).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::record::tests::example;

    /// Calls `check` with one run, of the eight images of [`example`].
    fn with_one_run(check: impl Fn(&Runs<'_>, &[String])) {
        let (path, file) = (String::new(), PathBuf::new());
        let source = Source { path, file, record: example(), training: None, distillation: None, replaced: None };
        let attacks = source.record.attacks.iter().map(|entry| (entry.attack.as_str(), (entry, &source))).collect();
        check(
            &BTreeMap::from([((Some(0), 0), Measured { files: vec![&source], attacks })]),
            &["fgsm", "pgd"].map(str::to_owned),
        );
    }

    /// What an image adds to a column is the derivative of the column for the weight of the image; all other weights fall alike.
    #[test]
    fn what_an_image_adds_to_a_ratio_is_the_finite_difference_of_the_ratio() {
        type Ratio = fn(f64, f64, f64) -> Option<f64>;
        let ratios: [(&str, Ratio); 3] = [
            ("drop-rate", |clean, _, pgd| metrics::drop_rate(clean, pgd)),
            ("rr", metrics::robustness_ratio),
            ("i-rr", metrics::improved_robustness_ratio),
        ];
        // Right under nothing, FGSM and PGD, which is the stronger one.
        let outcomes = ["11101110", "11101100", "11100100"];
        with_one_run(|runs, attacks| {
            let columns = values_of(runs, attacks);
            for (column, ratio) in ratios {
                let values = &columns.iter().find(|(name, _)| name == column).unwrap().1;
                for (at, got) in values.per_image[0].as_ref().unwrap().iter().enumerate() {
                    let shifted = |step: f64| {
                        let [clean, fgsm, pgd] = outcomes.map(|right| {
                            let share = right.matches('1').count() as f64 / 8.0;
                            share + step * (f64::from(u8::from(right.as_bytes()[at] == b'1')) - share)
                        });
                        ratio(clean, f64::midpoint(fgsm, pgd), pgd).unwrap()
                    };
                    let expected = values.per_run[0].unwrap() + (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
                    assert!((got - expected).abs() < 1e-5, "{column}, image {at}: {got}, expected {expected}");
                }
            }
        });
    }

    #[test]
    fn a_margin_on_an_edge_is_right_of_it() {
        with_one_run(|runs, attacks| {
            // FGSM leaves five images a margin of 0.25 and three -1.5.
            let counts = margin_counts(runs, attacks, &[-2.0, -1.5, 0.0, 0.25, 1.0]);
            assert_eq!(counts["fgsm"], [0, 3, 0, 5]);
        });
    }

    #[test]
    fn classes_are_those_under_the_attack() {
        with_one_run(|runs, attacks| {
            let classes = classes_of(runs, attacks);
            // Clean 1110 1110, FGSM 1110 1100, PGD 1110 0100.
            for (column, second) in [("clean", 75.0), ("fgsm", 50.0), ("pgd", 25.0)] {
                assert_eq!(classes[column], [Some(75.0), Some(second)], "{column}");
            }
        });
    }
}
