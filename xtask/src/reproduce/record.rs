//! What is written beside a job that ended: `job.json` if it is finished, `failed.json` if it is not.

use std::{fs, io, path::Path, time::Duration};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::{lease, plan::Step};

const SCHEMA_VERSION: u32 = 2;

const FINISHED: &str = "job.json";
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
pub(crate) struct Failed {
    /// Exit code of the command; 1 if it had none (killed by a signal).
    pub(crate) code: u8,
    /// What happened, with the end of its log.
    pub(crate) report: String,
}

/// Whether `step` is finished: the folder says so, and its output is there.
pub(crate) fn is_finished(step: &Step) -> bool {
    step.folder.join(step.output).is_file()
        && read::<Finished>(&step.folder.join(FINISHED))
            .is_some_and(|record| record.schema_version == SCHEMA_VERSION && record.id == step.id)
}

/// Writes that `step` is finished.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn finish(step: &Step, took: Duration) -> anyhow::Result<()> {
    let record = Finished {
        schema_version: SCHEMA_VERSION,
        id: step.id.clone(),
        name: step.name(),
        what: step.what.clone(),
        seconds: took.as_secs_f64(),
        host: lease::host_name(),
    };
    write(&step.folder.join(FINISHED), &record)
}

/// Writes why `step` failed, for those who did not see it run.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn fail(step: &Step, failed: &Failed) -> anyhow::Result<()> {
    write(&step.folder.join(FAILED), failed)
}

/// Why `step` failed the last time, if it did.
pub(crate) fn failure(step: &Step) -> Option<Failed> {
    read(&step.folder.join(FAILED))
}

/// Forgets how `step` ended before.
///
/// # Errors
/// If a file is there and cannot be removed.
pub(crate) fn forget(step: &Step) -> anyhow::Result<()> {
    for name in [FINISHED, FAILED] {
        remove(&step.folder.join(name))?;
    }
    Ok(())
}

/// Removes a file that need not be there.
///
/// # Errors
/// If it is there and cannot be removed.
pub(crate) fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a file whole or not at all, also where several processes write it at once.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let fresh = path.with_extension(format!("{}.part", lease::token()));
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&fresh, bytes))
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn write(path: &Path, record: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(record)?;
    text.push('\n');
    write_whole(path, text.as_bytes())
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::{super::plan::tests::Example, *};

    #[test]
    fn finished_means_recorded_and_the_output_there() {
        let example = Example::new();
        let step = example.steps("dataset=digits,ipc=1,method=c2r,seed=0").swap_remove(0);
        fs::create_dir_all(&step.folder).unwrap();
        fs::write(step.folder.join(step.output), "x").unwrap();
        assert!(!is_finished(&step));
        finish(&step, Duration::from_secs(1)).unwrap();
        assert!(is_finished(&step));
        let other = Step { id: "distill-other".into(), ..step.clone() };
        assert!(!is_finished(&other), "a folder that was copied under another name");
        fs::remove_file(step.folder.join(step.output)).unwrap();
        assert!(!is_finished(&step));

        fail(&step, &Failed { code: 3, report: "no data".into() }).unwrap();
        assert_eq!(failure(&step).unwrap().code, 3);
        forget(&step).unwrap();
        assert!(failure(&step).is_none() && !is_finished(&step));
        let left: Vec<_> = fs::read_dir(&step.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
