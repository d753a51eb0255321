//! A column of a row with its interval, and against the same column of the baseline.

use std::collections::BTreeMap;

use ndarray::Array2;

use super::{
    group::Seeds,
    schema::{Comparison, Errors},
    values::{Runs, Values},
};
use crate::{
    columns::DROP_RATE,
    stats::{self, Covers, Crossed, FEWEST_IMAGES, Summary},
};

/// A column of one run, or a difference of two runs.
#[derive(Clone)]
pub(super) struct Value {
    pub(super) value: f64,
    /// What each test image adds to it: their mean is the value.
    images: Option<Vec<f64>>,
}

/// The values of a column by the seeds of their runs.
pub(super) fn by_seeds(runs: &Runs<'_>, values: &Values) -> BTreeMap<Seeds, Value> {
    let of_run = |((&seeds, value), images): ((&Seeds, &Option<f64>), &Option<Vec<f64>>)| {
        Some((seeds, Value { value: (*value)?, images: images.clone() }))
    };
    runs.keys().zip(&values.per_run).zip(&values.per_image).filter_map(of_run).collect()
}

/// Mean and deviation over runs; the interval is over independent units, and over test images where their outcomes were kept.
pub(super) fn summary(values: &BTreeMap<Seeds, Value>) -> Option<(Summary, Covers)> {
    let mut summary = Summary::of(&values.values().map(|value| value.value).collect::<Vec<_>>())?;
    let units = by_unit(values);
    let (ci95, covers) = match (over_seeds(&units).and_then(|seeds| seeds.ci95), crossed(&units)) {
        (Some(_), Some(both)) => (Some(both.ci95()), Covers::SeedsAndImages),
        (seeds, _) => (seeds, Covers::Seeds),
    };
    // If no outcome varies, no error can be computed: 0 % in every run does not mean that other images would give 0 %.
    summary.ci95 = ci95.filter(|(low, high)| low < high);
    Some((summary, covers))
}

/// Ours minus the baseline's, seed by seed and image by image.
pub(super) fn compare(
    baseline: &str,
    column: &str,
    ours: &BTreeMap<Seeds, Value>,
    theirs: &BTreeMap<Seeds, Value>,
) -> Option<Comparison> {
    let pairs: BTreeMap<Seeds, (&Value, &Value)> =
        ours.iter().filter_map(|(&seeds, ours)| Some((seeds, (ours, theirs.get(&seeds)?)))).collect();
    let units = by_unit(&pairs.iter().map(|(&seeds, (ours, theirs))| (seeds, ours.minus(theirs))).collect());
    let seeds = over_seeds(&units)?;
    let p_value_seeds = stats::paired_p_value(&units.iter().map(|unit| unit.value).collect::<Vec<_>>());
    let both = crossed(&units);
    let one_image = pairs.values().flat_map(|(ours, theirs)| [ours.one_image(), theirs.one_image()]);
    let one_image = one_image.collect::<Option<Vec<f64>>>().map(|all| all.into_iter().fold(0.0, f64::max));
    let in_images = one_image.map(|one| seeds.mean.abs() / one);
    let p_value = both.map(|both| both.p_value());
    Some(Comparison {
        baseline: baseline.to_owned(),
        difference: seeds.mean,
        n_pairs: units.len(),
        covers: if both.is_some() { Covers::SeedsAndImages } else { Covers::Seeds },
        p_value: p_value.or(p_value_seeds),
        p_value_seeds,
        errors: both.map(|Crossed { error_seeds, error_images, error, freedom, .. }| Errors {
            seeds: error_seeds,
            images: error_images,
            both: error,
            freedom,
        }),
        images: in_images,
        // Rounding must not decide about five images.
        significant: p_value.is_some_and(|p| p < stats::SIGNIFICANT)
            && in_images.is_some_and(|images| images >= FEWEST_IMAGES - 1e-9),
        better: if column.starts_with(DROP_RATE) { seeds.mean < 0.0 } else { seeds.mean > 0.0 },
    })
}

/// Runs of one distilled set are not independent evidence about the method, so they are averaged to one value. Without
/// a distillation each training is its own unit.
fn by_unit(values: &BTreeMap<Seeds, Value>) -> Vec<Value> {
    let mut units: BTreeMap<(bool, u64), Vec<&Value>> = BTreeMap::new();
    for (&(distill, train), value) in values {
        units.entry((distill.is_some(), distill.unwrap_or(train))).or_default().push(value);
    }
    units.into_values().map(|unit| Value::mean(&unit)).collect()
}

fn over_seeds(units: &[Value]) -> Option<Summary> {
    Summary::of(&units.iter().map(|unit| unit.value).collect::<Vec<_>>())
}

/// Both errors, where every unit has its images and there are as many of them.
fn crossed(units: &[Value]) -> Option<Crossed> {
    let images: Vec<&Vec<f64>> = units.iter().map(|unit| unit.images.as_ref()).collect::<Option<_>>()?;
    let n_images = images.first()?.len();
    let all: Vec<f64> = images.iter().flat_map(|images| images.iter().copied()).collect();
    Crossed::of(Array2::from_shape_vec((units.len(), n_images), all).ok()?.view())
}

impl Value {
    fn minus(&self, other: &Self) -> Self {
        let images = self.images.as_ref().zip(other.images.as_ref()).filter(|(a, b)| a.len() == b.len());
        Self {
            value: self.value - other.value,
            images: images.map(|(ours, theirs)| ours.iter().zip(theirs).map(|(ours, theirs)| ours - theirs).collect()),
        }
    }

    fn mean(values: &[&Self]) -> Self {
        let n = values.len() as f64;
        let images: Option<Vec<&Vec<f64>>> = values.iter().map(|value| value.images.as_ref()).collect();
        let images = images.filter(|images| images.iter().all(|other| other.len() == images[0].len()));
        let mean_of_image = |images: &[&Vec<f64>], at: usize| images.iter().map(|one| one[at]).sum::<f64>() / n;
        Self {
            value: values.iter().map(|value| value.value).sum::<f64>() / n,
            images: images.map(|images| (0..images[0].len()).map(|at| mean_of_image(&images, at)).collect()),
        }
    }

    /// By how much the outcome of one image changes the value at most; that of an accuracy unless more is seen.
    fn one_image(&self) -> Option<f64> {
        let images = self.images.as_ref()?;
        let (least, most) = images
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), &one| (least.min(one), most.max(one)));
        Some((most - least).max(100.0) / images.len() as f64)
    }
}
