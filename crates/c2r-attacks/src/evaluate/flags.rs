//! Looks for reasons to doubt a result (docs/attacks/flags.md).

use c2r_base::{Seed, ThreatModel, loss};
use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::{
    active::positions,
    attack::Family,
    error::AttackError,
    evaluate::{
        contradictions::{AttackResult, SAME_STRENGTH, contradictions, cross_entropy_steps, sees_gradients},
        report::{AttackEntry, AttackReport, Flag, Mode, Outcome, StageEntry},
    },
    oracle::Oracle,
    registry::AttackConfig,
};

/// Logits of two passes that differ by more than this, relative to their size, are not rounding.
const SAME_LOGITS: f64 = 1e-4;
/// Kernels for one image and for a batch differ in their rounding.
const SAME_LOGITS_ALONE: f64 = 1e-3;

/// Reasons to doubt the model, found on its first clean batch.
///
/// # Errors
/// [`AttackError::SelfCheck`] if the evaluation cannot be right, or what the model returns.
pub(crate) fn flags_of_model(
    oracle: &mut Oracle<'_>,
    rows: &[usize],
    images: &Tensor,
    labels: &Tensor,
    logits: &Tensor,
    threat: &ThreatModel,
    seed: Seed,
) -> Result<Vec<Flag>, AttackError> {
    let mut flags = Vec::new();
    let scale = logits.abs().max().double_value(&[]).max(1.0);
    let difference = |other: &Tensor, of: &Tensor| (other - of).abs().max().double_value(&[]);

    // No budget, no change: noise projected at radius 0 must be the clean image again.
    let ids: Vec<u64> = rows.iter().map(|&row| row as u64).collect();
    let noise = threat.norm.random_in_ball(&images.size()[1..], &ids, 1.0, seed, "self-check");
    let unmoved = threat.norm.project(images, &(images + noise.to_device(images.device())), 0.0);
    let moved = difference(&unmoved, images);
    if moved > 1e-6 {
        return Err(AttackError::SelfCheck(format!("a projection at epsilon 0 moved a pixel by {moved:.1e}")));
    }
    let again = oracle.logits(images, rows)?;
    let repeated = difference(&again, logits);
    if repeated > SAME_LOGITS * scale {
        flags.push(Flag::RandomizedModel { difference: repeated });
    } else {
        let at_zero = oracle.logits(&unmoved, rows)?;
        // Samples on a boundary may flip with the last bit.
        let flipped = at_zero.argmax(1, false).ne_tensor(&logits.argmax(1, false));
        if flipped.any().int64_value(&[]) != 0 && difference(&at_zero, logits) > SAME_LOGITS * scale {
            return Err(AttackError::SelfCheck(
                "accuracy at epsilon 0 is not the clean accuracy: does the model change its input?".to_owned(),
            ));
        }
        let alone = oracle.logits(&images.narrow(0, 0, 1), &rows[..1])?;
        let apart = difference(&alone, &logits.narrow(0, 0, 1));
        if apart > SAME_LOGITS_ALONE * scale {
            flags.push(Flag::BatchDependentModel { difference: apart });
        }
    }
    let sums = logits.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
    if logits.min().double_value(&[]) >= 0.0
        && logits.max().double_value(&[]) <= 1.0
        && (sums - 1.0).abs().max().double_value(&[]) < 1e-3
    {
        flags.push(Flag::ProbabilitiesNotLogits);
    }
    let found = oracle.gradient(images, rows, |_, logits| loss::ce(logits, labels))?;
    let flat = found.gradient.abs().flatten(1, -1).amax([1i64].as_slice(), false).eq(0.0);
    let correct = logits.argmax(1, false).eq_tensor(labels);
    let samples = positions(&flat.logical_and(&correct)).len();
    if samples > 0 {
        flags.push(Flag::ZeroGradient { samples, of: positions(&correct).len() });
    }
    Ok(flags)
}

/// Adds flags that compare attacks with each other.
pub(crate) fn flags_of_results(report: &mut AttackReport) {
    let mut flags: Vec<Flag> = Vec::new();
    let few = (SAME_STRENGTH * report.n() as f64) as usize;
    // Stages in the order in which they ran on the same survivors.
    let runs: Vec<Vec<&StageEntry>> = match report.mode {
        Mode::Suite => vec![report.attacks.iter().flat_map(|attack| &attack.stages).collect()],
        Mode::Each => report.attacks.iter().map(|attack| attack.stages.iter().collect()).collect(),
    };
    for stages in &runs {
        for (at, stage) in stages.iter().enumerate() {
            let samples = stage.attacked - stage.survivors;
            let after = |wanted: &dyn Fn(Family) -> bool| stages[..at].iter().rev().find(|s| wanted(s.family));
            if samples <= few {
                continue;
            }
            if stage.family == Family::BlackBox && after(&sees_gradients).is_some() {
                flags.push(Flag::BlackBoxBeatsWhiteBox { attack: stage.attack.clone(), samples });
            }
            if stage.attack == "noise"
                && let Some(weaker) = after(&|family| family != Family::Sanity)
            {
                flags.push(Flag::WeakerThanNoise { attack: weaker.attack.clone(), samples });
            }
        }
    }
    if report.mode == Mode::Each {
        let survivors = |entry: &AttackEntry| entry.samples.iter().filter(|s| s.outcome == Outcome::Survived).count();
        let steps = |entry: &AttackEntry| {
            AttackConfig::deserialize(entry.config.as_ref()?).ok().as_ref().and_then(cross_entropy_steps)
        };
        let results = report.attacks.iter().map(|entry| AttackResult {
            attack: &entry.name,
            family: entry.stages.first().map_or(Family::Sanity, |stage| stage.family),
            cross_entropy_steps: steps(entry),
            survivors: survivors(entry),
        });
        flags.extend(contradictions(&results.collect::<Vec<_>>(), report.n()));
    }
    for flag in flags {
        if !report.flags.contains(&flag) {
            report.flags.push(flag);
        }
    }
}
