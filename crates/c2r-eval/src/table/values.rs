//! The numbers of a row: one per run and column.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::ArrayView1;

use super::group::{Measured, Seeds};
use crate::{
    AttackScore, Source,
    columns::{CLEAN, MEAN_ROBUST, MINIMUM, RATIOS, WORST_CASE, drop_rate_column, is_sanity, margin_column},
    metrics,
    stats::Summary,
};

/// The runs of a row.
pub(super) type Runs<'a> = BTreeMap<Seeds, Measured<'a>>;

/// One value per run, in percent or logits, and the files they came from.
#[derive(Default)]
pub(super) struct Values {
    pub(super) per_run: Vec<Option<f64>>,
    pub(super) sources: BTreeSet<String>,
}

/// The columns of a row in the order in which they first got a value.
#[derive(Default)]
struct Columns(Vec<(String, Values)>);

impl Columns {
    /// The value of the run at `position`, computed from `files`.
    fn put(&mut self, position: usize, column: &str, value: Option<f64>, files: &[&Source]) {
        let at = self.0.iter().position(|(name, _)| name == column).unwrap_or_else(|| {
            self.0.push((column.to_owned(), Values::default()));
            self.0.len() - 1
        });
        let values = &mut self.0[at].1;
        values.per_run.resize(position, None);
        values.per_run.push(value);
        if value.is_some() {
            values.sources.extend(files.iter().map(|file| file.path.clone()));
        }
    }
}

/// Every column of a row, in order.
pub(super) fn values_of(runs: &Runs<'_>, attacks: &[String]) -> Vec<(String, Values)> {
    let mut columns = Columns::default();
    for (position, run) in runs.values().enumerate() {
        accuracies(run, attacks, &mut |column, value, files| columns.put(position, column, value, files));
    }
    for (position, run) in runs.values().enumerate() {
        for (attack, margins) in margins_of(run, attacks) {
            let file = run.attacks.get(attack).map_or(run.files[0], |(_, source)| source);
            for (part, value) in metrics::MARGIN_QUANTILES.into_iter().zip(metrics::margin_quantiles(margins)) {
                columns.put(position, &margin_column(part, attack), Some(value), &[file]);
            }
        }
    }
    let mut columns = columns.0;
    columns.iter_mut().for_each(|(_, values)| values.per_run.resize(runs.len(), None));
    columns
}

/// Takes a column's name, its value and the files that it was computed from.
type Put<'a> = dyn FnMut(&str, Option<f64>, &[&Source]) + 'a;

/// Everything of one run that is in percent.
fn accuracies(run: &Measured<'_>, attacks: &[String], put: &mut Put<'_>) {
    let record = &run.files[0].record;
    let clean = record.clean_accuracy;
    put(CLEAN, Some(percent((clean * record.n as f64).round() as usize, record.n)), &run.files[..1]);
    // An attack named like a column of ours would replace it.
    for attack in attacks.iter().filter(|attack| *attack != CLEAN) {
        match run.attacks.get(attack.as_str()) {
            Some((entry, source)) => put(attack, Some(percent(entry.survivors, entry.n)), &[source]),
            None => put(attack, None, &[]),
        }
    }
    let compared: Vec<&String> = attacks.iter().filter(|attack| !is_sanity(attack)).collect();
    let all: Option<Vec<&AttackScore>> =
        compared.iter().map(|attack| run.attacks.get(attack.as_str()).map(|(entry, _)| *entry)).collect();
    let all = all.filter(|all| !all.is_empty());
    let mean = |all: &Vec<&AttackScore>, of: fn(&AttackScore) -> f64| {
        all.iter().map(|entry| of(entry)).sum::<f64>() / all.len() as f64
    };
    let minimum = |all: &Vec<&AttackScore>, of: fn(&AttackScore) -> f64| {
        all.iter().map(|entry| of(entry)).fold(f64::INFINITY, f64::min)
    };
    let points = |entry: &AttackScore| percent(entry.survivors, entry.n);
    put(MEAN_ROBUST, all.as_ref().map(|all| mean(all, points)), &run.files);
    put(MINIMUM, all.as_ref().map(|all| minimum(all, points)), &run.files);
    let worst = all.as_ref().and_then(|all| metrics::worst_case(record, all));
    put(WORST_CASE, worst.map(|worst| 100.0 * worst), &run.files);
    for attack in &compared {
        match run.attacks.get(attack.as_str()) {
            Some((entry, source)) => {
                put(&drop_rate_column(attack), metrics::drop_rate(clean, entry.robust_accuracy), &[source]);
            }
            None => put(&drop_rate_column(attack), None, &[]),
        }
    }
    // With a single attack the mean is the minimum and the ratios say nothing.
    let ratios = all.filter(|all| all.len() > 1).map(|all| {
        let robust = |entry: &AttackScore| entry.robust_accuracy;
        let seconds = |entry: &AttackScore| entry.seconds;
        let longest = all.iter().map(|entry| entry.seconds).fold(0.0, f64::max);
        let rr = metrics::robustness_ratio(clean, mean(&all, robust), minimum(&all, robust));
        let irr = metrics::improved_robustness_ratio(clean, mean(&all, robust), minimum(&all, robust));
        let ae = metrics::attack_efficiency(mean(&all, seconds), record.clean_seconds, longest);
        let index = |ratio: Option<f64>| Some(metrics::comprehensive_index(ratio?, ae?));
        [rr, irr, ae, index(rr), index(irr)]
    });
    for (column, value) in RATIOS.into_iter().zip(ratios.unwrap_or_default()) {
        put(column, value, &run.files);
    }
}

/// Counted, so that 24 of 100 images are 24 and not 24.000000000000004.
fn percent(count: usize, n: usize) -> f64 {
    100.0 * count as f64 / n as f64
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
