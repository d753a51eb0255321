//! Attacks some samples, projects what comes back into the threat set, and judges it.

use c2r_base::{Classifier, ClassifierError, LabelledImages, Passes, Seed, ThreatModel, grad::GradientError, loss};
use tch::{Device, Kind, Tensor};

use crate::{
    attack::{Attack, AttackBatch},
    error::AttackError,
    oracle::{Oracle, first_not_finite},
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

/// A model that must keep the number of classes that it had on the clean images.
struct SameClasses<'a> {
    model: &'a dyn Classifier,
    classes: i64,
}

impl Classifier for SameClasses<'_> {
    fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
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
pub(crate) fn attack_and_judge(
    model: &dyn Classifier,
    classes: i64,
    attack: &dyn Attack,
    threat: &ThreatModel,
    seed: Seed,
    task: &Task,
) -> Result<Judged, AttackError> {
    let _no_grad = tch::no_grad_guard();
    let model = &SameClasses { model, classes };
    let Task { images, labels, ids, targets } = task;
    let batch = AttackBatch { images, labels, ids, targets: targets.as_ref() };
    let proposal = attack.perturb(model, &batch, threat, seed)?;
    let judged = projected(attack.name(), &batch, threat, &proposal.images)?;

    let rows: Vec<usize> = (0..ids.len()).collect();
    let mut judge = Oracle::new(model, attack.name(), ids);
    let logits = judge.logits(&judged, &rows)?;
    let judging = judge.finish(judged);
    let judged = judging.images;
    Ok(Judged {
        broken: Vec::<bool>::try_from(batch.reached(&logits)).expect("bool tensor"),
        predictions: Vec::<i64>::try_from(logits.argmax(1, false)).expect("i64 tensor"),
        distances: Vec::<f64>::try_from(threat.norm.distance(&judged, images).to_kind(Kind::Double))
            .expect("f64 tensor"),
        margins: Vec::<f32>::try_from(loss::margin(&logits, labels)).expect("f32 tensor"),
        queries: proposal.queries.iter().zip(&judging.queries).map(|(attack, judge)| attack + judge).collect(),
        passes: [proposal.passes, judging.passes].into_iter().sum(),
        repaired: proposal.repaired,
        images: judged,
    })
}

/// Never trust the attack: right shape, finite, inside the ball and the box.
fn projected(
    attack: &str,
    batch: &AttackBatch<'_>,
    threat: &ThreatModel,
    proposal: &Tensor,
) -> Result<Tensor, AttackError> {
    if proposal.size() != batch.images.size() {
        return Err(AttackError::ImageShape {
            attack: attack.to_owned(),
            expected: batch.images.size(),
            got: proposal.size(),
        });
    }
    if let Some(row) = first_not_finite(proposal) {
        return Err(AttackError::NonFiniteImage { attack: attack.to_owned(), sample: batch.ids[row] });
    }
    Ok(threat.project(batch.images, proposal))
}
