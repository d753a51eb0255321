//! What an observer of an evaluation receives, and what it can collect from that.

use c2r_base::LabelledImages;
use tch::Tensor;

use crate::{
    error::AttackError,
    evaluate::report::{AttackReport, Mode},
    rows::write_rows,
};

/// What [`crate::evaluate_with`] tells its observer.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Clean images were classified; first none, when the check of the model is over.
    Clean {
        /// So far.
        done: usize,
        /// Altogether.
        total: usize,
    },
    /// An attack of an entry is about to run.
    Started {
        /// Index of the entry in the report.
        entry: usize,
        /// Name of the stage.
        attack: &'a str,
        /// Samples that this stage was run on before the evaluation was resumed.
        done: usize,
        /// Samples that it will be run on.
        total: usize,
    },
    /// A batch was attacked and judged.
    Judged {
        /// Index of the entry in the report.
        entry: usize,
        /// Name of the stage.
        attack: &'a str,
        /// Samples that this stage has been run on.
        done: usize,
        /// Samples that it will be run on.
        total: usize,
        /// Positions of the batch's samples in the data.
        positions: &'a [usize],
        /// f32 `[n, C, H, W]`: the images that were judged.
        images: &'a Tensor,
        /// The report so far; complete enough to resume from.
        report: &'a AttackReport,
    },
    /// [`crate::EvaluateOptions::stop`] was set while a batch was attacked, or the model or the attack failed or panicked on it. The
    /// evaluation ends with an error or that panic, whatever the observer returns.
    Stopped {
        /// Index of the entry in the report.
        entry: usize,
        /// The report without this batch; complete enough to resume from.
        report: &'a AttackReport,
    },
}

/// Collects the images that were judged, for a re-evaluation that gives the same accuracy: the last
/// judged image of every attacked sample, the clean image of the others.
///
/// ```
/// # use c2r_attacks::c2r_base::{LabelledImages, Norm, ThreatModel, classifier_fn};
/// # use c2r_attacks::tch::{Device, Kind, Tensor};
/// # use c2r_attacks::{AttackConfig, EvaluateOptions};
/// use std::ops::ControlFlow;
/// use c2r_attacks::{AdversarialImages, evaluate_with};
///
/// # let model = classifier_fn(Device::Cpu, |x: &Tensor| {
/// #     let bright = x.mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float);
/// #     Ok(Tensor::stack(&[0.5 - &bright, bright - 0.5], 1))
/// # });
/// # let images = Tensor::full([2, 1, 4, 4], 0.48, (Kind::Float, Device::Cpu));
/// # let data = LabelledImages::new(images, Tensor::from_slice(&[0i64, 0])).unwrap();
/// # let threat = ThreatModel::untargeted(Norm::Linf, "8/255".parse().unwrap());
/// # let attacks = [AttackConfig::named_for("pgd", threat.norm).unwrap().build().unwrap()];
/// # let options = EvaluateOptions::default();
/// let mut attacked = AdversarialImages::new(&data, attacks.len(), options.mode);
/// let report = evaluate_with(&model, &data, &attacks, &threat, &options, &mut |event| {
///     attacked.observe(event);
///     ControlFlow::Continue(())
/// })?;
/// let images: &Tensor = &attacked.sets()[0];
/// # assert!(report.robust_accuracy() == 0.0 && images.mean(Kind::Float).double_value(&[]) > 0.5);
/// # Ok::<(), c2r_attacks::AttackError>(())
/// ```
#[derive(Debug)]
pub struct AdversarialImages {
    mode: Mode,
    clean: Tensor,
    sets: Vec<Tensor>,
}

impl AdversarialImages {
    /// One set in [`Mode::Suite`], one per attack in [`Mode::Each`]; sets of attacks beyond `n_attacks` are added when they are
    /// observed.
    pub fn new(data: &LabelledImages, n_attacks: usize, mode: Mode) -> Self {
        let n_sets = match mode {
            Mode::Suite => 1,
            Mode::Each => n_attacks,
        };
        let clean = data.images().shallow_clone();
        Self { mode, sets: (0..n_sets).map(|_| clean.copy()).collect(), clean }
    }

    /// Keeps the images of an [`Event::Judged`].
    pub fn observe(&mut self, event: &Event<'_>) {
        if let Event::Judged { entry, positions, images, .. } = event {
            let set = match self.mode {
                Mode::Suite => 0,
                Mode::Each => *entry,
            };
            let _no_grad = tch::no_grad_guard();
            while self.sets.len() <= set {
                self.sets.push(self.clean.copy());
            }
            let images = images.to_device(self.sets[set].device());
            write_rows(&mut self.sets[set], positions, &images);
        }
    }

    /// The sets: f32 `[N, C, H, W]` each.
    pub fn sets(&self) -> &[Tensor] {
        &self.sets
    }

    /// Continues from sets that were stored.
    ///
    /// # Errors
    /// [`AttackError::Resume`] if number or shapes do not fit.
    pub fn restore(&mut self, sets: Vec<Tensor>) -> Result<(), AttackError> {
        if sets.len() != self.sets.len() || sets.iter().zip(&self.sets).any(|(a, b)| a.size() != b.size()) {
            return Err(AttackError::Resume("the stored images have another shape".to_owned()));
        }
        self.sets = sets;
        Ok(())
    }
}
