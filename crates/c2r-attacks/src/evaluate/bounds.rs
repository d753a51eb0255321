//! Whether a model's outputs were squashed into fixed bounds, by a sigmoid, a tanh, a softmax or a clamp.
//!
//! Ordinary logits of a small network may happen to lie between 0 and 1. So the model is driven: for each of some classes,
//! one image goes most of the way to the corner of the pixel range that its gradient points to, up and down. Logits keep growing
//! on the way and end where each class's weights let them; squashed outputs flatten, and end at the same two values for all
//! classes.

use std::ops::Range;

use c2r_base::host;
use tch::{Kind, Tensor};

use crate::{error::AttackError, evaluate::report::Flag, oracle::Oracle};

/// Classes that are driven.
const CLASSES: i64 = 10;
/// How far towards the corner. Short of it, so that no image becomes constant, which some normalizations do not take.
const REACH: f64 = 0.9;
/// Steps towards the corner, which is looked up each time.
const STEPS: usize = 3;
/// Ends that differ by less than this share of the range of all outputs are the same.
const SAME_END: f64 = 0.05;
/// Outputs that stay in `[0, 1]` are probabilities if they fill more than this share of it.
const UNIT_SHARE: f64 = 0.6;
/// Share of the classes that must end there, and of the ways whose second half must change the output by less than that.
const MOST: f64 = 0.8;

/// The flag of a model whose outputs are bounded, if they are, and [`Flag::CheckFailed`] if it fails on driven images.
///
/// * `images`: f32 `[N, C, H, W]`; `rows`: their samples; `logits`: f32 `[N, K]` of these images. No pass has more images.
pub(crate) fn flags_of_bounds(oracle: &mut Oracle<'_>, rows: &[usize], images: &Tensor, logits: &Tensor) -> Vec<Flag> {
    let (driven, failure) = match Driven::new(oracle, rows, images, logits) {
        Ok(mut driven) => {
            let failure = driven.failure.take();
            (Some(driven), failure)
        }
        Err(error) => (None, Some(error.reason())),
    };
    let failed = failure.map(|reason| Flag::CheckFailed { check: "bounded-outputs".to_owned(), reason });
    flag_of(logits, driven).into_iter().chain(failed).collect()
}

fn flag_of(logits: &Tensor, driven: Option<Driven>) -> Option<Flag> {
    let all = match &driven {
        Some(driven) => Tensor::cat(&[logits].into_iter().chain(&driven.outputs).collect::<Vec<_>>(), 0),
        None => logits.shallow_clone(),
    };
    let (low, high) = (all.min().double_value(&[]), all.max().double_value(&[]));
    let sums = logits.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
    let adds_up = (sums - 1.0).abs().max().double_value(&[]) < 1e-3;
    let (lowest, highest) = (logits.min().double_value(&[]), logits.max().double_value(&[]));
    let fills_unit = low >= 0.0 && high <= 1.0 && high - low > UNIT_SHARE;
    if (lowest >= 0.0 && highest <= 1.0 && adds_up) || fills_unit {
        return Some(Flag::ProbabilitiesNotLogits);
    }
    let range = high - low;
    let Driven { n, second_half, .. } = driven?;
    // All but a few: a class that wins nowhere does not reach the end of a softmax.
    let most = |count: usize, of: usize| count as f64 >= MOST * of as f64;
    let at_end = |ends: &Tensor, end: f64| {
        let near = (ends.narrow(0, 0, n) - end).abs().le(SAME_END * range);
        most(near.sum(Kind::Int64).int64_value(&[]) as usize, n as usize)
    };
    let tops = at_end(&all.amax([0i64].as_slice(), false), high);
    let bottoms = at_end(&all.amin([0i64].as_slice(), false), low);
    let flat = second_half.iter().filter(|change| f64::from(**change) <= SAME_END * range).count();
    (range > 0.0 && tops && bottoms && most(flat, second_half.len())).then_some(Flag::BoundedOutputs { low, high })
}

/// Outputs for driven images.
struct Driven {
    /// Classes that were driven: 0 to n - 1.
    n: i64,
    /// f32 `[rows, K]` each, at every point that was visited.
    outputs: Vec<Tensor>,
    /// Size of the change of each driven output on the second half of its way.
    second_half: Vec<f32>,
    /// Why a backward pass failed, if one did, of a model that has gradients.
    failure: Option<String>,
}

impl Driven {
    /// In passes of as many images as `images` has, at most.
    fn new(oracle: &mut Oracle<'_>, rows: &[usize], images: &Tensor, logits: &Tensor) -> Result<Self, AttackError> {
        let n = logits.size()[1].min(CLASSES);
        let mut driven = Self { n, outputs: Vec::new(), second_half: Vec::new(), failure: None };
        for first in (0..n).step_by(rows.len()) {
            let last = n.min(first + rows.len() as i64);
            driven.drive(oracle, rows, images, first..last)?;
        }
        Ok(driven)
    }

    /// One image for each class of a range, up and down.
    fn drive(
        &mut self,
        oracle: &mut Oracle<'_>,
        rows: &[usize],
        images: &Tensor,
        range: Range<i64>,
    ) -> Result<(), AttackError> {
        let rows: Vec<usize> = range.clone().map(|class| rows[class as usize % rows.len()]).collect();
        let classes = Tensor::arange_start(range.start, range.end, (Kind::Int64, images.device()));
        let start = images.index_select(0, &classes.remainder(images.size()[0]));
        let own = |outputs: &Tensor| outputs.gather(1, &classes.unsqueeze(1), false).squeeze_dim(1);
        for way in [1.0, -1.0] {
            let mut end = start.shallow_clone();
            for _ in 0..STEPS {
                let (x, outputs) = oracle.tracked(&end, &rows)?;
                let values = tch::with_grad(|| own(&outputs));
                self.outputs.push(outputs.detach());
                // Without a gradient the images stay where they are.
                let gradient = match oracle.backward(&values, &x, &rows, false) {
                    Ok(gradient) => gradient,
                    Err(error) => {
                        if matches!(error, AttackError::Model { .. }) {
                            self.failure.get_or_insert(error.reason());
                        }
                        break;
                    }
                };
                let direction = gradient.sign() * way;
                let corner = ((&direction + 1.0) * 0.5).where_self(&direction.ne(0.0), &end);
                end = &start + (corner - &start) * REACH;
            }
            let half = oracle.logits(&((&start + &end) * 0.5), &rows)?;
            let outputs = oracle.logits(&end, &rows)?;
            self.second_half.extend(host::to_vec::<f32>(&(own(&outputs) - own(&half)).abs()));
            self.outputs.extend([half, outputs]);
        }
        Ok(())
    }
}
