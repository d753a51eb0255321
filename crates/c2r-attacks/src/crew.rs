//! Attacks and judges the samples of a batch, parts of it side by side.

use c2r_base::{Classifier, LabelledImages, Passes, Seed, ThreatModel, loss};
use tch::{Device, Kind, Tensor};

use crate::attack::{Attack, AttackBatch, AttackError, Oracle, first_not_finite, reached};

/// A model and its replicas.
///
/// One thread of libtorch for each part of a batch beats all threads for one part: the layers of a handful of
/// survivors are too small to share (docs/attacks/speed.md).
pub(crate) struct Crew<'a> {
    model: &'a dyn Classifier,
    /// Empty if everything runs on the caller's thread.
    replicas: Vec<Box<dyn Classifier + Send>>,
}

/// Samples to attack, on the model's device.
pub(crate) struct Task {
    images: Tensor,
    labels: Tensor,
    ids: Vec<u64>,
    targets: Option<Tensor>,
}

/// What became of them: one entry per sample.
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

impl<'a> Crew<'a> {
    pub(crate) fn new(model: &'a dyn Classifier, workers: usize) -> Self {
        let side_by_side = workers > 1 && model.device() == Device::Cpu;
        let replicas = if side_by_side { (0..workers).map_while(|_| model.replica()).collect() } else { Vec::new() };
        Self { model, replicas }
    }

    pub(crate) fn device(&self) -> Device {
        self.model.device()
    }

    /// The parts of a batch that run side by side: of equal size but for one sample.
    pub(crate) fn split<'b>(&self, batch: &'b [usize]) -> impl Iterator<Item = &'b [usize]> {
        let parts = self.replicas.len().clamp(1, batch.len().max(1));
        (0..parts).map(move |part| &batch[batch.len() * part / parts..batch.len() * (part + 1) / parts])
    }

    /// Attacks and judges every task; results in order.
    pub(crate) fn run(
        &mut self,
        attack: &dyn Attack,
        threat: &ThreatModel,
        seed: Seed,
        tasks: Vec<Task>,
    ) -> Result<Judged, AttackError> {
        if self.replicas.is_empty() {
            let parts: Result<Vec<_>, _> =
                tasks.into_iter().map(|task| attack_and_judge(self.model, attack, threat, seed, &task)).collect();
            return Ok(Judged::join(parts?));
        }
        let threads = tch::get_num_threads();
        let parts: Vec<Result<Judged, AttackError>> = std::thread::scope(|scope| {
            let running: Vec<_> = tasks
                .into_iter()
                .zip(&mut self.replicas)
                .map(|(task, replica)| {
                    scope.spawn(move || {
                        tch::set_num_threads(1);
                        attack_and_judge(replica.as_ref(), attack, threat, seed, &task)
                    })
                })
                .collect();
            running
                .into_iter()
                .map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        // The setting of one thread is the default of threads to come.
        tch::set_num_threads(threads);
        // The first error in the order of the samples, whichever part failed first.
        Ok(Judged::join(parts.into_iter().collect::<Result<_, _>>()?))
    }
}

impl Judged {
    fn join(parts: Vec<Self>) -> Self {
        let images: Vec<&Tensor> = parts.iter().map(|part| &part.images).collect();
        let mut all = Self {
            images: if let [one] = images.as_slice() { one.shallow_clone() } else { Tensor::cat(&images, 0) },
            broken: Vec::new(),
            predictions: Vec::new(),
            distances: Vec::new(),
            margins: Vec::new(),
            queries: Vec::new(),
            passes: Passes::default(),
        };
        for part in parts {
            all.broken.extend(part.broken);
            all.predictions.extend(part.predictions);
            all.distances.extend(part.distances);
            all.margins.extend(part.margins);
            all.queries.extend(part.queries);
            all.passes += part.passes;
        }
        all
    }
}

fn attack_and_judge(
    model: &dyn Classifier,
    attack: &dyn Attack,
    threat: &ThreatModel,
    seed: Seed,
    task: &Task,
) -> Result<Judged, AttackError> {
    let _no_grad = tch::no_grad_guard();
    let Task { images, labels, ids, targets } = task;
    let batch = AttackBatch { images, labels, ids, targets: targets.as_ref() };
    let proposal = attack.perturb(model, &batch, threat, seed)?;
    let judged = projected(attack.name(), &batch, threat, &proposal.images)?;

    let rows: Vec<usize> = (0..ids.len()).collect();
    let mut judge = Oracle::new(model, attack.name(), ids);
    let logits = judge.logits(&judged, &rows)?;
    let judging = judge.finish(logits);
    let logits = &judging.images;
    let mut passes = proposal.passes;
    passes += judging.passes;
    Ok(Judged {
        broken: Vec::<bool>::try_from(reached(logits, labels, targets.as_ref())).expect("bool tensor"),
        predictions: Vec::<i64>::try_from(logits.argmax(1, false)).expect("i64 tensor"),
        distances: Vec::<f64>::try_from(threat.norm.distance(&judged, images).to_kind(Kind::Double))
            .expect("f64 tensor"),
        margins: Vec::<f32>::try_from(loss::margin(logits, labels)).expect("f32 tensor"),
        queries: proposal.queries.iter().zip(&judging.queries).map(|(attack, judge)| attack + judge).collect(),
        passes,
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
