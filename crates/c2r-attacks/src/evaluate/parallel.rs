//! Runs parts of a batch side by side.

use std::sync::atomic::AtomicBool;

use c2r_base::{Classifier, Seed, ThreatModel};
use tch::Device;

use crate::{
    attack::Attack,
    error::AttackError,
    evaluate::judge::{Judged, Task, attack_and_judge},
};

/// Restores libtorch's number of threads when it is dropped, after a panic, too.
struct Threads(i32);

impl Drop for Threads {
    fn drop(&mut self) {
        tch::set_num_threads(self.0);
    }
}

/// A model and its replicas.
///
/// One thread of libtorch for each part of a batch beats all threads for one part: the layers of a handful of
/// survivors are too small to share (docs/attacks/speed.md).
pub(crate) struct Workers<'a> {
    model: &'a dyn Classifier,
    /// What the model returns for clean images.
    classes: i64,
    stop: &'a AtomicBool,
    /// Empty if everything runs on the caller's thread.
    replicas: Vec<Box<dyn Classifier + Send>>,
}

impl<'a> Workers<'a> {
    pub(crate) fn new(model: &'a dyn Classifier, classes: i64, workers: usize, stop: &'a AtomicBool) -> Self {
        let side_by_side = workers > 1 && model.device() == Device::Cpu;
        let replicas = if side_by_side { (0..workers).map_while(|_| model.replica()).collect() } else { Vec::new() };
        Self { model, classes, stop, replicas }
    }

    pub(crate) fn device(&self) -> Device {
        self.model.device()
    }

    /// The parts of a batch that run side by side: of equal size but for one sample.
    pub(crate) fn split<'b>(&self, batch: &'b [usize]) -> impl Iterator<Item = &'b [usize]> {
        let parts = self.replicas.len().clamp(1, batch.len().max(1));
        (0..parts).map(move |part| &batch[batch.len() * part / parts..batch.len() * (part + 1) / parts])
    }

    /// Attacks and judges every task; results in order, errors as those of [`attack_and_judge`].
    pub(crate) fn run(
        &mut self,
        attack: &dyn Attack,
        threat: &ThreatModel,
        seed: Seed,
        tasks: Vec<Task>,
    ) -> Result<Judged, AttackError> {
        let stop = self.stop;
        if self.replicas.is_empty() {
            let judge = |task: Task| attack_and_judge(self.model, self.classes, attack, threat, seed, &task, stop);
            return tasks.into_iter().map(judge).collect::<Result<_, _>>().map(Judged::join);
        }
        let classes = self.classes;
        // The setting of one thread is the default of threads to come.
        let _threads = Threads(tch::get_num_threads());
        let parts: Vec<Result<Judged, AttackError>> = std::thread::scope(|scope| {
            let running: Vec<_> = tasks
                .into_iter()
                .zip(&mut self.replicas)
                .map(|(task, replica)| {
                    scope.spawn(move || {
                        tch::set_num_threads(1);
                        attack_and_judge(replica.as_ref(), classes, attack, threat, seed, &task, stop)
                    })
                })
                .collect();
            running
                .into_iter()
                .map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        // The first error in the order of the samples, whichever part failed first.
        parts.into_iter().collect::<Result<_, _>>().map(Judged::join)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use c2r_base::{ClassifierError, LabelledImages, Norm};
    use tch::{Kind, Tensor};

    use super::*;
    use crate::attack::{AttackBatch, Family, Perturbed};

    struct Shared;

    impl Classifier for Shared {
        fn logits(&self, images: &Tensor) -> Result<Tensor, ClassifierError> {
            Ok(images.flatten(1, -1))
        }

        fn device(&self) -> Device {
            Device::Cpu
        }

        fn replica(&self) -> Option<Box<dyn Classifier + Send>> {
            Some(Box::new(Self))
        }
    }

    struct Panics;

    impl Attack for Panics {
        fn name(&self) -> &str {
            "panics"
        }

        fn family(&self) -> Family {
            Family::BlackBox
        }

        fn perturb(
            &self,
            _: &dyn Classifier,
            _: &AttackBatch<'_>,
            _: &ThreatModel,
            _: Seed,
        ) -> Result<Perturbed, AttackError> {
            panic!("on purpose")
        }
    }

    /// No other test of this binary sets the number of threads.
    #[test]
    fn a_panic_leaves_the_number_of_threads_as_it_was() {
        tch::set_num_threads(3);
        let images = Tensor::full([4, 1, 1, 2], 0.5, (Kind::Float, Device::Cpu));
        let data = LabelledImages::new(images, Tensor::from_slice(&[0i64; 4])).unwrap();
        let stop = AtomicBool::new(false);
        let mut workers = Workers::new(&Shared, 2, 2, &stop);
        let tasks = workers.split(&[0, 1, 2, 3]).map(|part| Task::new(part, &data, None, Device::Cpu)).collect();
        let threat = ThreatModel::untargeted(Norm::Linf, "0.1".parse().unwrap());
        let run = AssertUnwindSafe(|| workers.run(&Panics, &threat, Seed::new(0), tasks));
        assert!(catch_unwind(run).is_err());
        assert_eq!(std::thread::spawn(tch::get_num_threads).join().unwrap(), 3);
    }
}
