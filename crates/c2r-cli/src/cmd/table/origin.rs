//! Which synthetic set a result is of: what lies in a folder above it may be of another method, or distilled since.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use c2r_data::SyntheticHeader;
use c2r_eval::{RunInfo, Source};
use c2r_experiment::Subject;
use c2r_run::exit::{self, OrExit};

use crate::{data::SET_FILE, fingerprint};

/// How far above an `attack.json` its set may be, as for its runs.
const LEVELS: usize = 3;

/// What a set says, and the hash of its images where it can be computed.
type Known = (SyntheticHeader, Option<String>);

/// The sets that were read.
#[derive(Default)]
pub(super) struct Sets(HashMap<PathBuf, Known>);

impl Sets {
    fn read(&mut self, file: &Path) -> anyhow::Result<&Known> {
        if !self.0.contains_key(file) {
            self.0.insert(file.to_owned(), fingerprint::of_set(file)?);
        }
        Ok(&self.0[file])
    }

    /// Takes the distillation from every result whose set was distilled again after the network was trained on it.
    pub(super) fn check(&mut self, sources: &mut [Source]) {
        for source in sources {
            let Some(distillation) = &source.distillation else { continue };
            if self.is_replaced(distillation, source.training.as_ref()) {
                source.replaced = Some(beside(source, &distillation.file));
                source.distillation = None;
            }
        }
    }

    fn is_replaced(&mut self, distillation: &RunInfo, training: Option<&RunInfo>) -> bool {
        let Some(training) = training else { return distillation.is_running() };
        // A network may be trained on a copy of the set, such as a rounded one, whose hash is another one.
        if distillation.started_unix < training.started_unix {
            return false;
        }
        let set = distillation.file.with_file_name(SET_FILE);
        let now = if set.is_file() { self.read(&set).ok().and_then(|(_, hash)| hash.as_deref()) } else { None };
        match (trained_on(training), now) {
            (Some(then), Some(now)) => then != now,
            _ => distillation.is_running() || distillation.started_unix > training.started_unix,
        }
    }

    /// The set that a network was trained on: on disk, and relative to the results folder. It is in a folder above, or in
    /// `distill` beside the protocols, as `cargo xtask reproduce` puts it.
    pub(super) fn find(&mut self, source: &Source) -> anyhow::Result<Option<(PathBuf, String)>> {
        let depth = Path::new(&source.path).components().count();
        for folder in source.file.ancestors().skip(1).take(LEVELS.min(depth)) {
            for name in ["distill", ""] {
                let file = folder.join(name).join(SET_FILE);
                if file.is_file() && self.is_of(&file, source)? {
                    let relative = beside(source, &file);
                    return Ok(Some((file, relative)));
                }
            }
        }
        Ok(None)
    }

    fn is_of(&mut self, file: &Path, source: &Source) -> anyhow::Result<bool> {
        let record = file.with_file_name("run.json");
        if source.replaced.as_ref() == Some(&beside(source, &record)) {
            return Ok(false);
        }
        let (header, hash) = self.read(file).or_exit(exit::DATA)?;
        if !fits(header, &source.record.subject) {
            return Ok(false);
        }
        // Of a distillation that was not replaced, a network may also be trained on a copy.
        let distilled = source.distillation.as_ref().is_some_and(|run| run.file == record);
        let then = source.training.as_ref().and_then(trained_on);
        Ok(distilled || then.zip(hash.as_deref()).is_none_or(|(then, now)| then == now))
    }
}

/// Whether a set says the same as a network that may have been trained on it. A decoded set counts other images per class.
fn fits(header: &SyntheticHeader, network: &Subject) -> bool {
    let profile = header.origin().map(|origin| origin.profile).unwrap_or_default();
    (&header.method, &profile, &header.data_sha256) == (&network.method, &network.profile, &network.data_sha256)
        && Some(header.seed) == network.distill_seed
}

/// Hash of the images that a training records.
fn trained_on(training: &RunInfo) -> Option<&str> {
    training.config.get("images_sha256")?.as_str()
}

/// A file in a folder above a result, relative to the results folder as the result is.
fn beside(source: &Source, file: &Path) -> String {
    let path = Path::new(&source.path);
    let depth = path.components().count();
    let inside = |(above, folder): (usize, &Path)| {
        let rest = file.strip_prefix(folder).ok()?;
        let from: PathBuf = match depth.checked_sub(above) {
            Some(n) => path.components().take(n).collect(),
            None => std::iter::repeat_n("..", above - depth).collect(),
        };
        Some(from.join(rest).to_string_lossy().replace('\\', "/"))
    };
    source.file.ancestors().enumerate().skip(1).find_map(inside).unwrap_or_else(|| file.display().to_string())
}
