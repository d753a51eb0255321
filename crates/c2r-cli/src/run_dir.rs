//! A folder that one process works in, that says what it holds, and that can be taken up again.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use c2r_base::artifact;
use fs4::fs_std::FileExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit;

const SCHEMA_VERSION: u32 = 1;

/// `run.json`: what a run folder holds and how it came to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    schema_version: u32,
    /// `distill`, `train` or `attack`.
    stage: String,
    /// `running` or `finished`.
    status: String,
    /// The resolved configuration: every key that can change the result.
    config: Value,
    /// The command line of the process that wrote this.
    argv: Vec<String>,
    /// c2r, its git revision, tch and libtorch.
    versions: BTreeMap<String, String>,
    /// CPU threads; results of other thread counts agree up to float rounding only.
    threads: i32,
    /// Where it was computed.
    device: String,
    /// Seconds since 1970.
    started_unix: u64,
    /// Wall-clock seconds over all sessions that worked on this run.
    seconds: f64,
    /// Stage-specific results.
    #[serde(default)]
    summary: Value,
}

/// What was in the folder when it was opened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing, or a folder that was cleared with `--force`.
    Nothing,
    /// The same run, not finished.
    Unfinished,
    /// The same run, finished.
    Finished,
}

/// An open run folder; locked against other processes until it is dropped.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    record: RunRecord,
    opened: Instant,
    _lock: fs::File,
}

/// Versions that every artefact records.
pub(crate) fn versions() -> BTreeMap<String, String> {
    [("c2r", env!("CARGO_PKG_VERSION")), ("git", env!("C2R_GIT_REVISION")), ("tch", "0.24.0"), ("libtorch", "2.11")]
        .into_iter()
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .collect()
}

impl RunDir {
    /// Opens or creates the folder for a run of `stage` with `config`.
    ///
    /// # Errors
    /// If another process works in it, if it holds a run of another stage or configuration (naming
    /// the first key that differs) and `force` is off, or if it cannot be written.
    pub(crate) fn open(
        path: &Path,
        stage: &str,
        config: Value,
        device: tch::Device,
        force: bool,
    ) -> anyhow::Result<(Self, Found)> {
        fs::create_dir_all(path).with_context(|| format!("cannot create run folder {}", path.display()))?;
        let lock_path = path.join(".lock");
        let lock = fs::File::create(&lock_path).with_context(|| format!("cannot create {}", lock_path.display()))?;
        if !lock.try_lock_exclusive().with_context(|| format!("cannot lock {}", lock_path.display()))? {
            return exit::fail(
                exit::UNEXPECTED,
                format!("another process is working in {}; wait for it or choose another --run-dir", path.display()),
            );
        }
        // Ours alone while the lock is held: what a kill in the middle of a write has left.
        for folder in [path.to_owned(), path.join("pictures")] {
            artifact::remove_parts(&folder)?;
        }
        let record_path = path.join("run.json");
        let mut seconds = 0.0;
        let mut found = Found::Nothing;
        if record_path.exists() {
            let old: RunRecord = artifact::read_json(&record_path).with_context(|| {
                format!("{} holds no readable run; delete it or choose another --run-dir", path.display())
            })?;
            let difference = if old.stage == stage {
                first_difference(&old.config, &config, "")
            } else {
                Some(format!("stage: it holds a `{}` run", old.stage))
            };
            match difference {
                None if !force => {
                    seconds = old.seconds;
                    found = if old.status == "finished" { Found::Finished } else { Found::Unfinished };
                    if found == Found::Finished {
                        return Ok((
                            Self { path: path.to_owned(), record: old, opened: Instant::now(), _lock: lock },
                            found,
                        ));
                    }
                }
                Some(difference) if !force => {
                    return exit::fail(
                        exit::USAGE,
                        format!(
                            "{} holds a run with another configuration ({difference}); choose another --run-dir, or --force to discard it",
                            path.display()
                        ),
                    );
                }
                _ => clear(path)?,
            }
        }
        let record = RunRecord {
            schema_version: SCHEMA_VERSION,
            stage: stage.to_owned(),
            status: "running".to_owned(),
            config,
            argv: std::env::args().collect(),
            versions: versions(),
            threads: tch::get_num_threads(),
            device: format!("{device:?}"),
            started_unix: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs()),
            seconds,
            summary: Value::Null,
        };
        let run = Self { path: path.to_owned(), record, opened: Instant::now(), _lock: lock };
        run.write()?;
        Ok((run, found))
    }

    /// A file in the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the stage reported when it finished; null before that.
    pub(crate) fn summary(&self) -> &Value {
        &self.record.summary
    }

    /// Wall-clock seconds so far, over all sessions.
    pub(crate) fn seconds(&self) -> f64 {
        self.record.seconds + self.opened.elapsed().as_secs_f64()
    }

    /// Records the time spent so far, for a run that stops before it is finished.
    pub(crate) fn pause(&mut self) -> anyhow::Result<()> {
        self.record.seconds = self.seconds();
        self.opened = Instant::now();
        self.write()
    }

    /// Marks the run as finished. Call after every result file is in place.
    pub(crate) fn finish(&mut self, summary: Value) -> anyhow::Result<()> {
        self.record.summary = summary;
        self.record.status = "finished".to_owned();
        self.pause()
    }

    /// `log.jsonl`, without the lines of iterations after `iteration`: those will be done again.
    pub(crate) fn log(&self, iteration: u64) -> anyhow::Result<Log> {
        let path = self.file("log.jsonl");
        let kept = match fs::read_to_string(&path) {
            Ok(text) => text
                .lines()
                .filter(|line| {
                    serde_json::from_str::<Value>(line)
                        .is_ok_and(|line| line["iteration"].as_u64().is_some_and(|at| at <= iteration))
                })
                .fold(String::new(), |text, line| text + line + "\n"),
            Err(_) => String::new(),
        };
        artifact::write_atomically(&path, kept.as_bytes())?;
        let file = fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Log { file, path })
    }

    fn write(&self) -> anyhow::Result<()> {
        Ok(artifact::write_json(&self.file("run.json"), &self.record)?)
    }
}

/// JSON lines, one per logged step.
pub(crate) struct Log {
    file: fs::File,
    path: PathBuf,
}

impl Log {
    /// Appends a line.
    pub(crate) fn line(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        let line = serde_json::to_string(value)? + "\n";
        self.file.write_all(line.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Deletes what a run wrote: the files we know, nothing else.
fn clear(path: &Path) -> anyhow::Result<()> {
    for name in [
        "run.json",
        "state.safetensors",
        "synthetic.safetensors",
        "synthetic.png",
        "model.safetensors",
        "teacher.safetensors",
        "log.jsonl",
        "curves.svg",
        "attack.json",
    ] {
        let file = path.join(name);
        if file.exists() {
            fs::remove_file(&file).with_context(|| format!("cannot delete {}", file.display()))?;
        }
    }
    let pictures = path.join("pictures");
    let Ok(entries) = fs::read_dir(&pictures) else { return Ok(()) };
    for file in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let numbered = file.file_stem().is_some_and(|stem| stem.to_string_lossy().parse::<u64>().is_ok());
        if numbered && file.extension().is_some_and(|extension| extension == "png") {
            fs::remove_file(&file).with_context(|| format!("cannot delete {}", file.display()))?;
        }
    }
    // Not empty where somebody put something beside them.
    let _ = fs::remove_dir(&pictures);
    Ok(())
}

/// The first key, depth first, in which two configurations differ.
pub(crate) fn first_difference(old: &Value, new: &Value, at: &str) -> Option<String> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
            keys.into_iter().find_map(|key| {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                first_difference(old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null), &at)
            })
        }
        _ if old == new => None,
        _ => Some(format!("{at} is {old} there and {new} here")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn open(path: &Path, config: Value, force: bool) -> anyhow::Result<(RunDir, Found)> {
        RunDir::open(path, "distill", config, tch::Device::Cpu, force)
    }

    #[test]
    fn a_folder_is_resumed_finished_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let config = json!({"a": {"b": 1}, "seed": 7});
        assert_eq!(open(&path, config.clone(), false).unwrap().1, Found::Nothing);
        let (mut run, found) = open(&path, config.clone(), false).unwrap();
        assert_eq!(found, Found::Unfinished);
        let message = open(&path, config.clone(), false).unwrap_err().to_string();
        assert!(message.contains("another process"), "{message}");
        run.finish(json!({"loss": 0.5})).unwrap();
        drop(run);
        let (run, found) = open(&path, config, false).unwrap();
        assert_eq!((found, run.summary()["loss"].as_f64()), (Found::Finished, Some(0.5)));
        drop(run);
        let other = json!({"a": {"b": 2}, "seed": 7});
        let error = open(&path, other.clone(), false).unwrap_err();
        assert!(error.to_string().contains("a.b is 1 there and 2 here"), "{error}");
        assert_eq!(exit::code_of(&error), exit::USAGE);
        assert_eq!(open(&path, other, true).unwrap().1, Found::Nothing);
    }
}
