//! An evaluation while it runs: progress, its journal, Ctrl-C.

use std::ops::ControlFlow;

use c2r_attacks::{AttackError, AttackReport, EvaluateOptions, Event, evaluate_with};
use c2r_run::{
    exit, signals,
    terminal::{Progress, Ui},
};

use super::{journal::Journal, output, setup::Setup};
use crate::kernels::KernelNotes;

/// Evaluates; saves the state on the way and on Ctrl-C. Notes on CUDA kernels are added to `kernels`.
pub(super) fn evaluate(
    setup: &Setup,
    options: &EvaluateOptions,
    journal: Option<&mut Journal>,
    kernels: &mut KernelNotes,
    ui: &Ui,
) -> anyhow::Result<AttackReport> {
    let Setup { target, inputs, attacks, threat, .. } = setup;
    let mut watch = Watch {
        ui,
        journal,
        kernels,
        progress: ui.progress("clean", 0, inputs.images.len() as u64),
        judged: false,
        finished: None,
        failure: None,
    };
    let mut see = |event: &Event<'_>| watch.see(event);
    let result = evaluate_with(target.classifier.as_ref(), &inputs.images, &attacks.built, threat, options, &mut see);
    watch.end(result, setup)
}

struct Watch<'a> {
    ui: &'a Ui,
    journal: Option<&'a mut Journal>,
    kernels: &'a mut KernelNotes,
    progress: Progress,
    /// Whether a batch was judged in this session.
    judged: bool,
    /// The report when an attack last finished: with a failure, this is kept.
    finished: Option<AttackReport>,
    /// Why the state could not be saved.
    failure: Option<anyhow::Error>,
}

impl Watch<'_> {
    fn see(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        if let Some(images) = self.journal.as_mut().and_then(|journal| journal.images.as_mut()) {
            images.observe(event);
        }
        self.kernels.update(self.ui);
        // Read once: a signal in between would stop the evaluation without its state.
        let interrupted = self.ui.interrupted();
        match event {
            Event::Clean { done, .. } => self.progress.set(*done as u64, ""),
            Event::Started { attack, done, total, .. } => {
                let next = self.ui.progress(attack, *done as u64, *total as u64);
                std::mem::replace(&mut self.progress, next).finish();
                self.progress.set(*done as u64, "");
                // After a request to stop, the next event saves the state.
                return ControlFlow::Continue(());
            }
            Event::Judged { entry, done, total, report, .. } => {
                self.judged = true;
                let robust = 100.0 * report.attacks[*entry].robust_accuracy();
                self.progress.set(*done as u64, format!("{robust:.1} % robust"));
                if done == total {
                    self.finished = Some((*report).clone());
                }
                let saved = self.journal.as_mut().map_or(Ok(()), |journal| journal.save(report, interrupted));
                if let Err(error) = saved {
                    self.failure = Some(error);
                    return ControlFlow::Break(());
                }
            }
            Event::Stopped { report, .. } => {
                // A session that finished no batch has nothing new to save, and must not look like progress.
                if let Some(journal) = self.journal.as_mut().filter(|journal| self.judged || !journal.has_state) {
                    self.failure = journal.save(report, true).err();
                }
            }
            _ => {}
        }
        if interrupted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn end(self, result: Result<AttackReport, AttackError>, setup: &Setup) -> anyhow::Result<AttackReport> {
        let Self { journal, judged, .. } = self;
        self.progress.finish();
        if let Some(error) = self.failure {
            return Err(error);
        }
        let resume = signals::how_to_resume(setup.args.force);
        let record = journal.as_ref().map(|journal| journal.run.record());
        result.map_err(|error| {
            if let (Some(report), false) = (&self.finished, matches!(error, AttackError::Interrupted)) {
                output::print_finished(report, record, resume);
            }
            match error {
                AttackError::Interrupted => signals::stopped(match record {
                    Some(record) if journal.as_ref().is_some_and(|journal| journal.has_state) => {
                        let saved = format!("the state is saved in {}; {resume}", record.display());
                        let no_batch = " (no batch was finished this time: allow more time, or use a smaller --batch-size; the run resumes with it, too)";
                        saved + if judged { "" } else { no_batch }
                    }
                    Some(_) => "nothing was finished yet; the same command starts from the beginning".to_owned(),
                    None => "nothing was saved (with --output or --save, the command can resume)".to_owned(),
                }),
                AttackError::Config(_) => exit::coded(exit::USAGE, error),
                AttackError::Images(_) => {
                    exit::coded(exit::DATA, anyhow::Error::new(error).context(setup.inputs.name.clone()))
                }
                AttackError::Failed { .. } | AttackError::Resume(_) => error.into(),
                // The model was checked on images of this shape; what it does not take is in these images or in the file.
                _ => exit::coded(exit::DATA, anyhow::Error::new(error).context(setup.model().display().to_string())),
            }
        })
    }
}
