//! Attacks some samples, projects what comes back into the threat set, and judges it.

use std::sync::atomic::{AtomicBool, Ordering};

use c2r_base::{Classifier, ClassifierError, LabelledImages, Passes, Seed, ThreatModel, grad::GradientError, loss};
use tch::{Device, Kind, Tensor};

use crate::{
    attack::{Attack, AttackBatch},
    error::AttackError,
    oracle::{first_not_finite, unhurried},
};

/// Samples to attack, on the model's device.
pub(crate) struct Task {
    images: Tensor,
    labels: Tensor,
    ids: Vec<u64>,
    targets: Option<Tensor>,
}

/// The outcome: one entry per sample.
pub(crate) struct Judged {
    /// The images that were judged.
    pub(crate) images: Tensor,
    pub(crate) broken: Vec<bool>,
    pub(crate) predictions: Vec<i64>,
    pub(crate) distances: Vec<f64>,
    /// Margins of the labels, whatever the goal, in logits.
    pub(crate) margins: Vec<f32>,
    pub(crate) queries: Vec<u64>,
    pub(crate) passes: Passes,
    /// Whether a gradient of the sample had values that were not finite.
    pub(crate) repaired: Vec<bool>,
}

/// A model that must keep the number of classes that it had on the clean images, and that fails once `stop` is set.
struct Watched<'a> {
    model: &'a dyn Classifier,
    classes: i64,
    stop: &'a AtomicBool,
}

impl Classifier for Watched<'_> {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(ClassifierError::new(AttackError::Interrupted));
        }
        let logits = self.model.logits(images)?;
        match logits.size()[..] {
            [_, got] if got != self.classes => {
                Err(ClassifierError::new(AttackError::ClassesChanged { expected: self.classes, got }))
            }
            _ => Ok(logits),
        }
    }

    fn device(&self) -> Device {
        self.model.device()
    }

    fn gradient(&self, scalar: &Tensor, images: &Tensor, keep_graph: bool) -> Result<Tensor, GradientError> {
        self.model.gradient(scalar, images, keep_graph)
    }
}

/// A margin as reports have it: JSON has no infinity, so a difference beyond the range of f32 is the largest one in it.
pub(crate) const fn finite(margin: f32) -> f32 {
    margin.clamp(f32::MIN, f32::MAX)
}

impl Task {
    /// The samples at `positions` of the data.
    pub(crate) fn new(positions: &[usize], data: &LabelledImages, targets: Option<&[i64]>, device: Device) -> Self {
        let (images, labels) = data.select(positions, device);
        let targets = targets.map(|targets| {
            let chosen: Vec<i64> = positions.iter().map(|&position| targets[position]).collect();
            Tensor::from_slice(&chosen).to_device(device)
        });
        Self { images, labels, ids: positions.iter().map(|&position| position as u64).collect(), targets }
    }
}

impl Judged {
    /// The parts of a batch, as of one.
    pub(crate) fn join(parts: Vec<Self>) -> Self {
        let images: Vec<&Tensor> = parts.iter().map(|part| &part.images).collect();
        let mut all = Self {
            images: if let [one] = images.as_slice() { one.shallow_clone() } else { Tensor::cat(&images, 0) },
            broken: Vec::new(),
            predictions: Vec::new(),
            distances: Vec::new(),
            margins: Vec::new(),
            queries: Vec::new(),
            passes: Passes::default(),
            repaired: Vec::new(),
        };
        for part in parts {
            all.broken.extend(part.broken);
            all.predictions.extend(part.predictions);
            all.distances.extend(part.distances);
            all.margins.extend(part.margins);
            all.queries.extend(part.queries);
            all.passes += part.passes;
            all.repaired.extend(part.repaired);
        }
        all
    }
}

/// Attacks and judges the samples of `task`; the model has `classes` classes.
///
/// # Errors
/// Those of the attack and the model. Once `stop` is set, the next pass through the model fails; the error may be of any kind.
pub(crate) fn attack_and_judge(
    model: &dyn Classifier,
    classes: i64,
    attack: &dyn Attack,
    threat: &ThreatModel,
    seed: Seed,
    task: &Task,
    stop: &AtomicBool,
) -> Result<Judged, AttackError> {
    let _no_grad = tch::no_grad_guard();
    let model = &Watched { model, classes, stop };
    let Task { images, labels, ids, targets } = task;
    let batch = AttackBatch { images, labels, ids, targets: targets.as_ref() };
    let proposal = attack.perturb(model, &batch, threat, seed)?;
    proposal.check(attack.name(), &batch)?;
    // Never trust the attack: finite, inside the ball and the box.
    let judged = threat.project(images, &proposal.images);
    let found = unhurried(model, attack.name(), ids, |judge| {
        let rows: Vec<usize> = (0..ids.len()).collect();
        let logits = judge.logits(&judged, &rows)?;
        judge.read(&[
            &batch.reached(&logits),
            &logits.argmax(1, false),
            &threat.norm.distance(&judged, images),
            &loss::margin(&logits, labels),
            &proposal.images.sum(Kind::Double),
        ])
    });
    // A proposal that is not finite comes before what the model makes of it.
    if !found.as_ref().is_ok_and(|(values, _)| values.last().is_some_and(|sum| sum.is_finite()))
        && let Some(row) = first_not_finite(&proposal.images)
    {
        return Err(AttackError::NonFiniteImage { attack: attack.name().to_owned(), sample: ids[row] });
    }
    let (values, judge) = found?;
    let mut columns = values.chunks(ids.len());
    let mut column = || columns.next().expect("a value per sample").iter().copied();
    let judging = judge.finish(judged);
    Ok(Judged {
        broken: column().map(|reached| reached != 0.0).collect(),
        predictions: column().map(|class| class as i64).collect(),
        distances: column().collect(),
        margins: column().map(|margin| finite(margin as f32)).collect(),
        queries: proposal.queries.iter().zip(&judging.queries).map(|(attack, judge)| attack + judge).collect(),
        passes: [proposal.passes, judging.passes].into_iter().sum(),
        repaired: proposal.repaired,
        images: judging.images,
    })
}
