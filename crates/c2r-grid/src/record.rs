//! What is written next to a job that ended: `job.json` if it is finished, `failed.json` if it is not.
//!
//! The record of `c2r-run` cannot stand in for it: that one belongs to the command and its configuration, while this one
//! says that the output in the folder belongs to the folder's name, also for `c2r attack`, whose run is a file, and after
//! the command failed.

use std::time::Duration;

use c2r_files::{FileError, read_json, remove_if_present, write_json};
use serde::{Deserialize, Serialize};

use crate::{Job, lease};

const SCHEMA_VERSION: u32 = 2;

/// The record of a finished job, in its folder.
pub(crate) const FINISHED: &str = "job.json";
const FAILED: &str = "failed.json";

/// A finished job.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Finished {
    schema_version: u32,
    /// The folder's name.
    id: String,
    /// The cell it was made for first; others may use it too.
    name: String,
    /// The arguments that decide the result.
    what: Vec<String>,
    /// Wall-clock time of the command, in its last session.
    seconds: f64,
    /// Where it ran.
    host: String,
}

/// A job that failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    /// Exit code of the command; 1 if it had none (killed by a signal).
    pub code: u8,
    /// What happened, with the end of its log.
    pub report: String,
}

/// Whether `job` is finished: the folder records it, and its output is there.
pub(crate) fn is_finished(job: &Job) -> bool {
    let is_its = |record: Finished| record.schema_version == SCHEMA_VERSION && record.id == job.id;
    job.output().is_file() && read_json(&job.folder.join(FINISHED)).is_ok_and(is_its)
}

/// Writes that `job` is finished.
pub(crate) fn finish(job: &Job, took: Duration) -> Result<(), FileError> {
    let record = Finished {
        schema_version: SCHEMA_VERSION,
        id: job.id.clone(),
        name: job.name(),
        what: job.what.clone(),
        seconds: took.as_secs_f64(),
        host: lease::host_name(),
    };
    write_json(&job.folder.join(FINISHED), &record)
}

/// Writes why `job` failed, for those who did not see it run.
pub(crate) fn fail(job: &Job, failed: &Failed) -> Result<(), FileError> {
    write_json(&job.folder.join(FAILED), failed)
}

/// Why `job` failed the last time, if it did.
pub(crate) fn failure(job: &Job) -> Option<Failed> {
    read_json(&job.folder.join(FAILED)).ok()
}

/// Forgets how `job` ended before.
pub(crate) fn forget(job: &Job) -> Result<(), FileError> {
    [FINISHED, FAILED].into_iter().try_for_each(|name| remove_if_present(&job.folder.join(name)))
}
