//! The run of an evaluation, kept beside its results until it is finished.

use std::{
    ffi::OsString,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use c2r_attacks::{AdversarialImages, AttackConfig, AttackReport};
use c2r_base::artifact::TensorFile;
use c2r_experiment::results;
use c2r_files::{remove_if_present, remove_parts_of};
use c2r_run::{Place, Plan, Run, RunError, Status, exit};
use serde_json::Value;

use super::setup::Setup;
use crate::run_dir;

pub(super) struct Journal {
    pub(super) run: Run,
    /// The images for `--save`.
    pub(super) images: Option<AdversarialImages>,
    /// Where they are kept until the evaluation is finished.
    part: PathBuf,
    /// Whether the record holds a state of this evaluation.
    pub(super) has_state: bool,
    /// How often an unfinished evaluation is saved.
    interval: Duration,
    saved: Instant,
}

/// Where an evaluation keeps its images until it is finished: under a name that nobody gives to a file.
pub(super) fn part(place: &Place) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(place.record().with_extension("part").file_name().unwrap_or_default());
    place.record().with_file_name(name)
}

impl Journal {
    /// Opens the run of the evaluation whose [`Setup::key`] is `config`.
    pub(super) fn open(place: Place, setup: &Setup, config: Value) -> anyhow::Result<(Self, Status)> {
        let Setup { args, attacks, inputs, .. } = setup;
        let images =
            args.save.as_ref().map(|_| AdversarialImages::new(&inputs.images, attacks.configs.len(), setup.mode));
        let names = attacks.configs.iter().map(AttackConfig::name);
        let results = names.map(|name| (name.to_owned(), results::attack(name))).collect();
        let part = part(&place);
        let outputs = args.outputs().map(|(flag, path)| (flag, path.to_owned())).collect();
        let environment = run_dir::environment(setup.device);
        let plan = Plan { stage: "attack", config, results, environment, outputs, needed: &[], writes: &[] };
        let opened = Run::open(place, plan, args.force, || remove_if_present(&part));
        let (run, status) = opened.map_err(|error| {
            let (code, advice) = match error {
                RunError::Busy { .. } => (exit::USAGE, "wait for it, or choose another file"),
                RunError::Unreadable { .. } => (exit::UNEXPECTED, "--force starts again"),
                RunError::Different { .. } => (exit::USAGE, "choose another file, or discard the run with --force"),
                RunError::OtherResults { .. } => (exit::USAGE, "--force attacks again"),
                RunError::OtherCommand { .. } => (exit::USAGE, "choose another file"),
                RunError::Changed { .. } => (exit::USAGE, "--force replaces it"),
                other => return other.into(),
            };
            exit::coded(code, run_dir::with_advice(error, advice))
        })?;
        remove_parts_of(&part)?;
        if status == Status::Finished {
            // A kill right after the last write of the record leaves it there.
            remove_if_present(&part)?;
        }
        let interval = Duration::from_secs(args.checkpoint_seconds);
        Ok((Self { run, images, part, has_state: false, interval, saved: Instant::now() }, status))
    }

    /// The report of an unfinished evaluation; its images are restored.
    pub(super) fn resume(&mut self) -> anyhow::Result<Option<AttackReport>> {
        let state = self.run.take_state();
        if state.is_null() {
            return Ok(None);
        }
        let context = || format!("cannot resume from {}; --force starts again", self.run.record().display());
        let report = serde_json::from_value(state).with_context(context)?;
        if let Some(images) = &mut self.images {
            let part = TensorFile::read(&self.part).with_context(context)?;
            images.restore(part.tensors.into_values().collect()).with_context(context)?;
        }
        self.has_state = true;
        Ok(Some(report))
    }

    /// Saves an unfinished evaluation where that is due, or `now`. Images first: an image that is newer than the report is
    /// attacked again and overwritten.
    pub(super) fn save(&mut self, report: &AttackReport, now: bool) -> anyhow::Result<()> {
        if !now && self.saved.elapsed() < self.interval {
            return Ok(());
        }
        if let Some(images) = &self.images {
            let tensors = images.sets().iter().enumerate().map(|(at, set)| (format!("{at:04}"), set.shallow_clone()));
            TensorFile { tensors: tensors.collect(), ..TensorFile::default() }.write(&self.part)?;
        }
        self.run.save(serde_json::to_value(report)?)?;
        self.has_state = true;
        self.saved = Instant::now();
        Ok(())
    }

    /// Records that all outputs are written.
    pub(super) fn finish(mut self, summary: Value) -> anyhow::Result<()> {
        self.run.finish(summary)?;
        Ok(remove_if_present(&self.part)?)
    }
}
