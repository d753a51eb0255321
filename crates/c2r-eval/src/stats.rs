//! Means, deviations, intervals and tests, over seeds alone and over seeds and test images together.

use ndarray::{ArrayView1, ArrayView2, Axis};
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// A difference is called significant below this two-sided p-value.
pub const SIGNIFICANT: f64 = 0.05;

/// Number of test images that a difference must be worth at least to be called significant.
pub const FEWEST_IMAGES: f64 = 5.0;

/// What an interval or a p-value speaks about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Covers {
    /// Other seeds, on these test images: other images would move the number by more than it says.
    #[default]
    Seeds,
    /// Other seeds and other test images of the same kind.
    SeedsAndImages,
}

impl Covers {
    /// In words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Seeds => "seeds, for these test images only",
            Self::SeedsAndImages => "seeds and test images",
        }
    }
}

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
        let half = student((n - 1) as f64).inverse_cdf(0.975) * sd / (n as f64).sqrt();
        Some(Self { n, mean, sd: Some(sd), ci95: Some((mean - half, mean + half)) })
    }
}

/// Two-sided p-value of the paired t-test on `differences`, `[N]` (ours minus the baseline's, one per seed).
///
/// `None` for fewer than two pairs, where all differences are the same number (up to rounding), because a deviation of
/// zero from a few runs says that accuracies are counts, not that the effect is certain, and where a difference is NaN
/// or so large that the deviation overflows.
pub fn paired_p_value<'a>(differences: impl Into<ArrayView1<'a, f64>>) -> Option<f64> {
    let summary = Summary::of(differences)?;
    let error = summary.sd? / (summary.n as f64).sqrt();
    if error <= 1e-9 * summary.mean.abs().max(1.0) {
        return None;
    }
    let t = summary.mean / error;
    // An infinite error would make a t of 0 of numbers that are too large.
    (t.is_finite() && error.is_finite()).then(|| 2.0 * student((summary.n - 1) as f64).cdf(-t.abs()))
}

/// A mean over seeds and test images, each of which is a sample: with which seeds a method was run is chance, and which
/// images it was judged on is chance.
///
/// The model is x = mean + seed + image + rest (every seed meets every image). With S seeds, N images and the mean squares A of
/// the seeds, B of the images and R of the rest, the variance of the mean is (A + B - R) / (S N). A and B are not taken to be
/// smaller than R, as they are by chance where seeds or images do not matter. Degrees of freedom are Satterthwaite's.
///
/// This is the analysis of variance that studies of several readers and several cases use (Dorfman, Berbaum & Metz 1992;
/// Obuchowski & Rockette 1995; Hillis 2007, doi:10.1002/sim.2532), where a seed is a reader and an image a case, with R's
/// share of the degrees of freedom kept. With few seeds that is cautious: of 2,000 simulated differences of nothing, at most 7 %
/// had p < 0.05 with 3 or 5 seeds and 359 or 1,000 images, where a test over seeds alone gave up to 21 %.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crossed {
    /// Mean over all.
    pub mean: f64,
    /// Standard error over seeds, for these images: deviation of the seeds' means / sqrt(S).
    pub error_seeds: f64,
    /// Standard error over images, for these seeds: deviation of the images' means / sqrt(N).
    pub error_images: f64,
    /// Standard error over both.
    pub error: f64,
    /// Degrees of freedom of `error`.
    pub freedom: f64,
}

impl Crossed {
    /// Of `values`, `[S, N]`: one row per seed, one column per image. `None` for fewer than two of either, where nothing
    /// varies, and where a value is NaN or so large that a sum of squares overflows.
    pub fn of(values: ArrayView2<'_, f64>) -> Option<Self> {
        let (n_seeds, n_images) = values.dim();
        if n_seeds < 2 || n_images < 2 {
            return None;
        }
        let (s, n) = (n_seeds as f64, n_images as f64);
        let of_seeds = values.mean_axis(Axis(1))?;
        let of_images = values.mean_axis(Axis(0))?;
        let mean = of_seeds.mean()?;
        let squares = |means: &ndarray::Array1<f64>| means.iter().map(|one| (one - mean).powi(2)).sum::<f64>();
        let seeds = n * squares(&of_seeds) / (s - 1.0);
        let images = s * squares(&of_images) / (n - 1.0);
        let rest = values
            .indexed_iter()
            .map(|((seed, image), value)| (value - of_seeds[seed] - of_images[image] + mean).powi(2));
        let rest = rest.sum::<f64>() / ((s - 1.0) * (n - 1.0));
        let (at_least_seeds, at_least_images) = (seeds.max(rest), images.max(rest));
        let whole = at_least_seeds + at_least_images - rest;
        if whole <= 1e-18 * mean.powi(2).max(1.0) {
            return None;
        }
        let below = at_least_seeds.powi(2) / (s - 1.0) + at_least_images.powi(2) / (n - 1.0);
        let freedom = whole.powi(2) / below;
        if ![mean, whole, freedom].iter().all(|number| number.is_finite()) {
            return None;
        }
        Some(Self {
            mean,
            error_seeds: (seeds / (s * n)).sqrt(),
            error_images: (images / (s * n)).sqrt(),
            error: (whole / (s * n)).sqrt(),
            freedom,
        })
    }

    /// Two-sided p-value of the mean's being 0.
    pub fn p_value(&self) -> f64 {
        2.0 * student(self.freedom).cdf(-(self.mean / self.error).abs())
    }

    /// 95 % confidence interval of the mean.
    pub fn ci95(&self) -> (f64, f64) {
        let half = student(self.freedom).inverse_cdf(0.975) * self.error;
        (self.mean - half, self.mean + half)
    }
}

fn student(freedom: f64) -> StudentsT {
    StudentsT::new(0.0, 1.0, freedom).expect("degrees of freedom are positive")
}

#[cfg(test)]
mod tests {
    use ndarray::arr2;

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

    #[track_caller]
    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-9, "{got}, expected {expected}");
    }

    /// Mean squares of two seeds and four images, by hand: seeds 4 (2 * 0.125^2) / 1 = 0.125, images
    /// 2 (0.375^2 + 0.125^2 + 0.375^2 + 0.625^2) / 3 = 11/24, rest (6 * 0.125^2 + 2 * 0.375^2) / 3 = 0.125.
    #[test]
    fn two_errors_by_hand() {
        let crossed = Crossed::of(arr2(&[[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]).view()).unwrap();
        let (seeds, images, rest) = (0.125, 11.0 / 24.0, 0.125f64);
        let whole: f64 = seeds + images - rest;
        close(crossed.mean, 0.625);
        close(crossed.error_seeds, (seeds / 8.0f64).sqrt());
        close(crossed.error_images, (images / 8.0f64).sqrt());
        close(crossed.error, (whole / 8.0).sqrt());
        close(crossed.freedom, whole.powi(2) / (seeds.powi(2) + images.powi(2) / 3.0));
        // SciPy 1.17.1: t.sf and t.interval with these degrees of freedom.
        close(crossed.p_value(), 0.09797370463777906);
        let (low, high) = crossed.ci95();
        close(low, -0.24253891629319346);
        close(high, 1.4925389162931935);
    }

    #[test]
    fn errors_need_seeds_and_images_that_vary() {
        let of = |values: &[[f64; 2]]| Crossed::of(arr2(values).view());
        assert_eq!(of(&[[1.0, 0.0]]), None, "one seed");
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[[1.0, 1.0], [1.0, 1.0]]), None, "nothing varies");
        assert_eq!(Crossed::of(arr2(&[[1.0], [0.0]]).view()), None, "one image");
        // Seeds that agree in every image: the error is that of the images, sqrt(0.5) / sqrt(2).
        let same = of(&[[1.0, 0.0], [1.0, 0.0]]).unwrap();
        assert_eq!(same.error_seeds, 0.0);
        close(same.error, (0.5f64 / 2.0).sqrt());
        // Images that agree in every seed: the error is that of the seeds.
        let same = of(&[[1.0, 1.0], [0.0, 0.0]]).unwrap();
        assert_eq!(same.error_images, 0.0);
        close(same.error, (0.5f64 / 2.0).sqrt());
        close(same.freedom, 1.0);
    }

    #[test]
    fn numbers_that_are_none_or_too_large_have_no_test() {
        for wrong in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e308, -1e308, 1e200] {
            assert_eq!(paired_p_value(&[1.0, wrong, 2.0]), None, "{wrong}");
            assert_eq!(Crossed::of(arr2(&[[1.0, wrong], [0.0, 1.0]]).view()), None, "{wrong}");
        }
        // Large, but their squares are finite: as 0, 1 and 2.
        let (large, small) = (paired_p_value(&[0.0, 1e100, 2e100]), paired_p_value(&[0.0, 1.0, 2.0]));
        close(large.unwrap(), small.unwrap());
    }

    #[test]
    fn no_test_without_a_deviation() {
        assert_eq!(paired_p_value(&[]), None);
        assert_eq!(paired_p_value(&[4.0]), None);
        assert_eq!(paired_p_value(&[0.1 + 0.2, 0.3, 0.3]), None);
        assert_eq!(paired_p_value(&[0.0, 0.0, 0.0]), None);
    }
}
