//! Whether an evaluation can go on from a report of an earlier one.

use c2r_base::{Goal, LabelledImages, Seed, ThreatModel, artifact, host};
use tch::Kind;

use crate::{
    attack::Attack,
    error::AttackError,
    evaluate::report::{AttackEntry, AttackReport, Mode},
};

/// Images that are hashed at a time.
const IMAGES_AT_A_TIME: i64 = 256;

/// Tells images from others: a hash of their shape and their values.
pub(crate) fn fingerprint(data: &LabelledImages) -> String {
    let _no_grad = tch::no_grad_guard();
    let images = data.images();
    let n = images.size()[0];
    let mut text = format!("{:?}", images.size());
    for first in (0..n).step_by(IMAGES_AT_A_TIME as usize) {
        let part = images.narrow(0, first, IMAGES_AT_A_TIME.min(n - first)).contiguous().flatten(0, -1);
        text += &artifact::sha256_hex(&host::to_vec::<u8>(&part.view_dtype(Kind::Uint8)));
    }
    artifact::sha256_hex(text.as_bytes())
}

/// Checks that `report` is an unfinished run of the same evaluation on the same data, and whole.
///
/// * `fingerprint`: that of the images of `data`; `seed` and `mode`: of the evaluation that is to go on.
///
/// # Errors
/// [`AttackError::Resume`], which says what differs or is missing.
pub(crate) fn check(
    report: &AttackReport,
    data: &LabelledImages,
    fingerprint: &str,
    attacks: &[Box<dyn Attack>],
    threat: &ThreatModel,
    (seed, mode): (Seed, Mode),
) -> Result<(), AttackError> {
    let refuse = |reason: String| Err(AttackError::Resume(reason));
    if report.labels != host::to_vec::<i64>(data.labels()) {
        return refuse("its labels are not those of the data".to_owned());
    }
    if report.images_fingerprint != fingerprint {
        return refuse("its images are not those of the data".to_owned());
    }
    if report.threat != *threat || report.seed != seed || report.mode != mode {
        return refuse("its threat model, seed or mode differs".to_owned());
    }
    let same =
        |entry: &AttackEntry, attack: &dyn Attack| entry.name == attack.name() && entry.config == attack.options();
    let differ = report.attacks.iter().zip(attacks).any(|(entry, attack)| !same(entry, attack.as_ref()));
    if differ || report.attacks.len() > attacks.len() {
        return refuse("its attacks or their options differ".to_owned());
    }
    let whole = attacks.iter().zip(&report.attacks).try_for_each(|(attack, entry)| check_entry(entry, attack.as_ref()));
    match check_lists(report).and(whole) {
        Ok(()) => Ok(()),
        Err(reason) => refuse(format!("the report is damaged: {reason}")),
    }
}

/// One value per sample, in every list.
fn check_lists(report: &AttackReport) -> Result<(), String> {
    let n = report.n();
    let length = |what: &str, got: usize| {
        if got == n { Ok(()) } else { Err(format!("it has {got} {what} for {n} samples")) }
    };
    length("clean predictions", report.clean_predictions.len())?;
    length("clean margins", report.clean_margins.len())?;
    let is_targeted = report.threat.goal != Goal::Untargeted;
    match &report.targets {
        Some(targets) if is_targeted => {
            length("targets", targets.len())?;
            if let Some(target) = targets.iter().find(|target| !(0..report.classes).contains(*target)) {
                return Err(format!("target {target} is none of the {} classes", report.classes));
            }
        }
        None if !is_targeted => {}
        targets => {
            let has = if targets.is_some() { "has" } else { "has no" };
            return Err(format!("it {has} targets, with goal {:?}", report.threat.goal));
        }
    }
    report.attacks.iter().try_for_each(|entry| length(&format!("samples of `{}`", entry.name), entry.samples.len()))
}

/// No more stages than the attack has, and of the same names.
fn check_entry(entry: &AttackEntry, attack: &dyn Attack) -> Result<(), String> {
    let stages =
        attack.stages().map_or_else(|| vec![attack.name()], |all| all.iter().map(|stage| stage.name()).collect());
    let known: Vec<&str> = entry.stages.iter().map(|stage| stage.attack.as_str()).collect();
    if !stages.starts_with(&known) {
        return Err(format!("the stages of `{}` are {known:?}, of the attack {stages:?}", entry.name));
    }
    if let Some(stage) = entry.stages.iter().find(|stage| stage.survivors > stage.attacked) {
        return Err(format!("`{}` has {} survivors of {}", stage.attack, stage.survivors, stage.attacked));
    }
    match entry.samples.iter().find(|sample| sample.stages > stages.len()) {
        Some(sample) => Err(format!("a sample of `{}` has {} of {} stages", entry.name, sample.stages, stages.len())),
        None => Ok(()),
    }
}
