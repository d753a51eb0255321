//! Means, deviations, intervals and the paired t-test.

use ndarray::ArrayView1;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// A difference is called significant below this two-sided p-value.
pub const SIGNIFICANT: f64 = 0.05;

/// What a handful of runs says about a number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Number of values.
    pub n: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Sample standard deviation (divisor n - 1); `None` for one value.
    pub sd: Option<f64>,
    /// 95 % confidence interval of the mean by Student's t; `None` for one value. For a few accuracies it may
    /// reach below 0 or above 100: it is not cut.
    pub ci95: Option<(f64, f64)>,
}

impl Summary {
    /// Summarizes `values`, `[N]`: a slice, an array or a view of one. `None` if there are none.
    ///
    /// ```
    /// let values = ndarray::arr2(&[[1.0, 9.0], [2.0, 9.0], [3.0, 9.0]]);
    /// let summary = c2r_eval::stats::Summary::of(values.column(0)).unwrap();
    /// assert_eq!((summary.mean, summary.sd), (2.0, Some(1.0)));
    /// ```
    pub fn of<'a>(values: impl Into<ArrayView1<'a, f64>>) -> Option<Self> {
        let values = values.into();
        let n = values.len();
        if n == 0 {
            return None;
        }
        // In order, not in the blocks of `ArrayBase::sum`: the same bits whatever the layout.
        let mean = values.iter().sum::<f64>() / n as f64;
        if n == 1 {
            return Some(Self { n, mean, sd: None, ci95: None });
        }
        let sd = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt();
        let half = student(n - 1).inverse_cdf(0.975) * sd / (n as f64).sqrt();
        Some(Self { n, mean, sd: Some(sd), ci95: Some((mean - half, mean + half)) })
    }
}

/// Two-sided p-value of the paired t-test on `differences`, `[N]` (ours minus the baseline's, one per seed).
///
/// `None` for fewer than two pairs, and where all differences are the same number (up to rounding): a deviation of
/// zero from a few runs says that accuracies are counts, not that the effect is certain.
pub fn paired_p_value<'a>(differences: impl Into<ArrayView1<'a, f64>>) -> Option<f64> {
    let summary = Summary::of(differences)?;
    let error = summary.sd? / (summary.n as f64).sqrt();
    if error <= 1e-9 * summary.mean.abs().max(1.0) {
        return None;
    }
    let t = summary.mean / error;
    Some(2.0 * student(summary.n - 1).cdf(-t.abs()))
}

fn student(freedom: usize) -> StudentsT {
    StudentsT::new(0.0, 1.0, freedom as f64).expect("at least one degree of freedom")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_by_hand() {
        // Mean 29, squared deviations 4 + 1 + 1 + 4 + 0 = 10, sd = sqrt(10 / 4).
        let summary = Summary::of(&[27.0, 28.0, 30.0, 31.0, 29.0]).unwrap();
        assert_eq!((summary.n, summary.mean), (5, 29.0));
        assert!((summary.sd.unwrap() - 2.5f64.sqrt()).abs() < 1e-12);
        // t(4, 0.975) = 2.776445 (any table of Student's t); half width 2.776445 * sqrt(2.5 / 5).
        let (low, high) = summary.ci95.unwrap();
        let half = 2.776_445 * 0.5f64.sqrt();
        assert!((low - (29.0 - half)).abs() < 1e-5 && (high - (29.0 + half)).abs() < 1e-5, "{low} {high}");
    }

    /// `scipy.stats.t.interval`, `ttest_rel` and `numpy.std(ddof=1)`, SciPy 1.17.1, on these numbers (2026-11-24).
    #[test]
    fn the_same_as_scipy() {
        let close = |got: f64, expected: f64| assert!((got - expected).abs() < 1e-9, "{got}, SciPy {expected}");
        let (ours, theirs) = ([28.1, 29.4, 27.7, 28.9, 29.6], [27.2, 28.8, 27.9, 27.5, 28.4]);
        for (values, mean, sd, (low, high)) in [
            (&ours[..], 28.74, 0.8203657720797474, (27.721381355449942, 29.758618644550054)),
            (&[48.31, 47.02, 49.5], 48.27666666666667, 1.2403359759893, (45.195501293471, 51.357832039862345)),
            (&[12.0, 12.5], 12.25, 0.3535533905932738, (9.073448815956326, 15.426551184043674)),
        ] {
            let summary = Summary::of(values).unwrap();
            close(summary.mean, mean);
            close(summary.sd.unwrap(), sd);
            close(summary.ci95.unwrap().0, low);
            close(summary.ci95.unwrap().1, high);
        }
        let differences: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours - theirs).collect();
        for (n_pairs, p) in [(5, 0.04952836898198644), (3, 0.3176769545940785), (2, 0.12566591637800412)] {
            close(paired_p_value(&differences[..n_pairs]).unwrap(), p);
        }
        close(paired_p_value(&[1.0, -1.0, 2.0, 1.0, -2.0, 5.0, 5.0]).unwrap(), 0.17441516877755162);
    }

    #[test]
    fn one_value_has_no_deviation() {
        assert_eq!(Summary::of(&[5.0]), Some(Summary { n: 1, mean: 5.0, sd: None, ci95: None }));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn paired_test_by_hand() {
        // Differences 1 2 3: mean 2, sd 1, t = 2 sqrt(3) = 3.4641 with 2 degrees of freedom, where
        // p = 1 - t / sqrt(2 + t^2) = 1 - sqrt(12 / 14) exactly.
        let p = paired_p_value(&[1.0, 2.0, 3.0]).unwrap();
        assert!((p - (1.0 - (12.0f64 / 14.0).sqrt())).abs() < 1e-10, "{p}");
        assert!((paired_p_value(&[-1.0, -2.0, -3.0]).unwrap() - p).abs() < 1e-12, "two-sided");
        // One degree of freedom: p = 1 - (2 / pi) atan(t); differences 1 3: mean 2, error 1, t = 2.
        let p = paired_p_value(&[1.0, 3.0]).unwrap();
        assert!((p - (1.0 - 2.0 / std::f64::consts::PI * 2.0f64.atan())).abs() < 1e-10, "{p}");
        assert!((paired_p_value(&[1.0, -1.0]).unwrap() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn no_test_without_a_deviation() {
        assert_eq!(paired_p_value(&[]), None);
        assert_eq!(paired_p_value(&[4.0]), None);
        assert_eq!(paired_p_value(&[0.1 + 0.2, 0.3, 0.3]), None);
        assert_eq!(paired_p_value(&[0.0, 0.0, 0.0]), None);
    }
}
