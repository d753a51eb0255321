//! Looks for reasons to doubt a result (docs/attacks/flags.md).

use std::collections::BTreeMap;

use c2r_base::{Goal, Seed, ThreatModel, grad::is_out_of_memory, loss};
use serde::Deserialize;
use tch::Tensor;

use crate::{
    attack::Family,
    error::AttackError,
    evaluate::{
        bounds::flags_of_bounds,
        contradictions::{AttackResult, SAME_STRENGTH, contradictions, cross_entropy_steps},
        report::{AttackEntry, AttackReport, Flag, Mode, Outcome, StageEntry},
    },
    oracle::Oracle,
    registry::AttackConfig,
    rows::positions,
};

/// Logits of two passes that differ by more than this, relative to their size, are not rounding.
const SAME_LOGITS: f64 = 1e-4;
/// Kernels for one image and for a batch differ in their rounding.
const SAME_LOGITS_ALONE: f64 = 1e-3;
/// A cross entropy whose gradient is smaller in every pixel has nearly vanished: probabilities of other classes around it
/// are below f32's steps next to 1. Ours.
const VANISHING: f64 = 1e-10;
/// A few saturated samples are ordinary; more than this share of the correct ones is a reason for doubt. Ours.
const VANISHING_SHARE: f64 = 0.05;
/// Fewer samples say nothing about the direction of a gradient. Ours.
const FEW_SURER: usize = 4;
/// A margin that grows by a larger share of itself has clearly grown. Ours.
const SURER: f32 = 0.1;

/// Whether this attack follows gradients of a loss of the label that fall with its margin. TPGD leaves the model's own
/// distribution in any direction, and APGD-T aims at one class after the other.
pub(crate) fn climbs_from_label(attack: &str, family: Family, goal: Goal) -> bool {
    family == Family::Gradient && goal == Goal::Untargeted && !matches!(attack, "tpgd" | "apgd-t")
}

/// Whether the label of an image has a clearly larger margin than that of the clean one.
pub(crate) fn is_surer(margin: f32, clean: f32) -> bool {
    margin > clean + SURER * clean.abs()
}

/// Reasons to doubt the model, found on its first clean batch.
///
/// # Errors
/// [`AttackError::SelfCheck`] if the evaluation cannot be right, or what the model returns.
pub(crate) fn flags_of_model(
    oracle: &mut Oracle<'_>,
    rows: &[usize],
    images: &Tensor,
    logits: &Tensor,
    threat: &ThreatModel,
    seed: Seed,
) -> Result<Vec<Flag>, AttackError> {
    let mut flags = Vec::new();
    let scale = logits.abs().max().double_value(&[]).max(1.0);
    // JSON has no infinity; NaN stays.
    let difference =
        |other: &Tensor, of: &Tensor| (other - of).abs().max().clamp_max(f64::from(f32::MAX)).double_value(&[]);

    // No budget, no change: noise projected at radius 0 must be the clean image again.
    let ids: Vec<u64> = rows.iter().map(|&row| row as u64).collect();
    let noise = threat.norm.random_in_ball(&images.size()[1..], &ids, 1.0, seed, "self-check");
    let unmoved = threat.norm.project(images, &(images + noise.to_device(images.device())), 0.0);
    let moved = difference(&unmoved, images);
    if moved > 1e-6 {
        return Err(AttackError::SelfCheck(format!("a projection at epsilon 0 moved a pixel by {moved:.1e}")));
    }
    let (again, given) = oracle.logits_and_copy(images, rows)?;
    let changed = difference(&given, images);
    // NaN is a change, too.
    if changed != 0.0 {
        flags.push(Flag::ChangesItsInput { difference: changed });
    }
    let repeated = difference(&again, logits);
    if repeated > SAME_LOGITS * scale {
        flags.push(Flag::RandomizedModel { difference: repeated });
    } else {
        let at_zero = oracle.logits(&unmoved, rows)?;
        // Samples on a boundary may flip with the last bit.
        let flipped = at_zero.argmax(1, false).ne_tensor(&logits.argmax(1, false));
        if flipped.any().int64_value(&[]) != 0 && difference(&at_zero, logits) > SAME_LOGITS * scale {
            return Err(AttackError::SelfCheck("accuracy at epsilon 0 is not the clean accuracy".to_owned()));
        }
        let alone = oracle.logits(&images.narrow(0, 0, 1), &rows[..1])?;
        let apart = difference(&alone, &logits.narrow(0, 0, 1));
        if apart > SAME_LOGITS_ALONE * scale {
            flags.push(Flag::BatchDependentModel { difference: apart });
        }
    }
    flags.extend(flags_of_bounds(oracle, rows, images, logits));
    Ok(flags)
}

/// Whether attacks that follow the gradient have one.
pub(crate) fn flags_of_gradient(
    oracle: &mut Oracle<'_>,
    rows: &[usize],
    images: &Tensor,
    labels: &Tensor,
    logits: &Tensor,
) -> Vec<Flag> {
    let not_checked = |reason| Flag::CheckFailed { check: "zero-gradient".to_owned(), reason };
    // Largest value of each image's gradient of a loss.
    let mut largest_gradient = |loss: fn(&Tensor, &Tensor) -> Tensor| {
        let (x, own) = oracle.tracked(images, rows).map_err(|error| not_checked(error.reason()))?;
        let losses = tch::with_grad(|| loss(&own, labels));
        match oracle.backward(&losses, &x, rows, false) {
            Ok(gradient) => Ok(gradient.abs().flatten(1, -1).amax([1i64].as_slice(), false)),
            Err(error) if is_out_of_memory(&error.reason()) => Err(not_checked(error.reason())),
            // Attacks that need none do not care, and the others will fail with this.
            Err(error) => Err(Flag::NoGradient { reason: error.reason() }),
        }
    };
    let largest = match largest_gradient(loss::ce) {
        Ok(largest) => largest,
        Err(flag) => return vec![flag],
    };
    let mut flags = Vec::new();
    let correct = logits.argmax(1, false).eq_tensor(labels);
    let of = positions(&correct).len();
    let is_zero = largest.eq(0.0).logical_and(&correct);
    let zero = positions(&is_zero).len();
    if zero > 0 {
        // A saturated softmax leaves the margin its gradient; a model that rounds has none at all.
        match largest_gradient(loss::margin) {
            Ok(of_margin) => {
                let flat = positions(&of_margin.eq(0.0).logical_and(&is_zero)).len();
                if flat > 0 {
                    flags.push(Flag::FlatModel { samples: flat, of });
                }
                if zero > flat {
                    flags.push(Flag::ZeroGradient { samples: zero - flat, of });
                }
            }
            Err(flag) => flags.extend([Flag::ZeroGradient { samples: zero, of }, flag]),
        }
    }
    let samples = positions(&largest.lt(VANISHING).logical_and(&correct)).len() - zero;
    if samples as f64 > VANISHING_SHARE * of as f64 {
        flags.push(Flag::VanishingGradient { samples, of });
    }
    flags
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
            if stage.family == Family::BlackBox && after(&Family::follows_gradients).is_some() {
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
    let mut repaired: BTreeMap<&str, usize> = BTreeMap::new();
    for stage in report.attacks.iter().flat_map(|entry| &entry.stages).filter(|stage| stage.repaired_gradients > 0) {
        let samples = repaired.entry(&stage.attack).or_default();
        *samples = stage.repaired_gradients.max(*samples);
    }
    flags.extend(
        repaired.into_iter().map(|(attack, samples)| Flag::NonFiniteGradient { attack: attack.to_owned(), samples }),
    );
    flags.extend(downhill(&report.flags, report.attacks.iter().flat_map(|entry| &entry.stages)));
    for flag in flags {
        if !report.flags.contains(&flag) {
            report.flags.push(flag);
        }
    }
}

/// Attacks whose gradient leads them to images that are classified more surely. Where the gradient is zero, they end at random
/// points, which says nothing.
fn downhill<'a>(known: &[Flag], stages: impl Iterator<Item = &'a StageEntry>) -> Vec<Flag> {
    let without_gradient = |flag: &Flag| match flag {
        Flag::FlatModel { samples, of } | Flag::ZeroGradient { samples, of } => 2 * samples > *of,
        _ => false,
    };
    if known.iter().any(without_gradient) {
        return Vec::new();
    }
    let wrong = stages.filter(|stage| stage.surer >= FEW_SURER && 2 * stage.surer > stage.attacked);
    wrong
        .map(|stage| Flag::Downhill { attack: stage.attack.clone(), samples: stage.surer, of: stage.attacked })
        .collect()
}

#[cfg(test)]
mod tests {
    use c2r_base::{Passes, TargetRule};

    use super::*;

    #[test]
    fn attacks_that_climb_a_loss_of_the_label_fall_with_its_margin() {
        let climbs = |attack| climbs_from_label(attack, Family::Gradient, Goal::Untargeted);
        assert_eq!(["pgd", "apgd-ce", "tpgd", "apgd-t"].map(climbs), [true, true, false, false]);
        assert!(!climbs_from_label("square", Family::BlackBox, Goal::Untargeted));
        assert!(!climbs_from_label("pgd", Family::Gradient, Goal::Targeted(TargetRule::Next)));
    }

    #[test]
    fn a_margin_is_surer_when_it_grew_by_a_tenth_of_its_size() {
        assert!(is_surer(1.2, 1.0) && !is_surer(1.05, 1.0));
        assert!(is_surer(-0.8, -1.0) && !is_surer(-0.95, -1.0));
    }

    #[test]
    fn downhill_is_most_of_the_images_of_a_model_with_a_gradient() {
        let stage = |attacked, surer| StageEntry {
            attack: "pgd".to_owned(),
            family: Family::Gradient,
            attacked,
            survivors: attacked,
            counts: Passes::default(),
            seconds: 0.0,
            repaired_gradients: 0,
            surer,
        };
        let found = |known: &[Flag], attacked, surer| downhill(known, [stage(attacked, surer)].iter());
        let flag = |of, samples| vec![Flag::Downhill { attack: "pgd".to_owned(), samples, of }];
        assert_eq!(found(&[], 10, 6), flag(10, 6));
        assert_eq!(found(&[], 10, 5), [], "half of the images");
        assert_eq!((found(&[], 4, 4), found(&[], 3, 3)), (flag(4, 4), vec![]), "few images");
        for flat in [false, true] {
            let without_gradient = |samples| match flat {
                true => Flag::FlatModel { samples, of: 10 },
                false => Flag::ZeroGradient { samples, of: 10 },
            };
            assert_eq!(found(&[without_gradient(5)], 10, 6), flag(10, 6));
            assert_eq!(found(&[without_gradient(6)], 10, 6), []);
        }
    }
}
