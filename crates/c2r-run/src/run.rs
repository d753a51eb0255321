use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Component, Path, PathBuf},
    time::Instant,
};

use c2r_files::{FileError, path_to_text, read_json, remove_parts_of, sha256_of_file, write_json};
use serde_json::Value;

use crate::{
    Environment, Lock, Log,
    record::{Record, first_difference},
    terminal::counted,
};

/// Why a run cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Another process holds the lock.
    #[error("another process is working on {}", path.display())]
    Busy {
        /// The run's folder, or the file that it writes.
        path: PathBuf,
    },
    /// The record was written by something else, or by another version.
    #[error("{} is not the record of a run", path.display())]
    Unreadable {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: FileError,
    },
    /// The record belongs to another run.
    #[error("{} belongs to a run with another configuration ({difference})", path.display())]
    Different {
        /// The run's folder, or the record.
        path: PathBuf,
        /// The first key that differs, with both values.
        difference: String,
    },
    /// The record belongs to a run of a version of c2r that makes other numbers.
    #[error("{} belongs to a run of another version of c2r, which computes different numbers ({difference})", path.display())]
    OtherResults {
        /// The run's folder, or the record.
        path: PathBuf,
        /// Both versions of the numbers, and who made those that are there.
        difference: String,
    },
    /// The record belongs to a run of another command.
    #[error("{} belongs to a run of `c2r {stage}`", path.display())]
    OtherCommand {
        /// The run's folder, or the record.
        path: PathBuf,
        /// The command.
        stage: String,
    },
    /// There are files that the run would overwrite, and no record that says whose they are.
    #[error("{} has {}, but no record of a run that wrote them", path.display(), found.join(", "))]
    NoRecord {
        /// The run's folder.
        path: PathBuf,
        /// Names of the files.
        found: Vec<String>,
    },
    /// An output of a finished run is not what the run wrote.
    #[error("{} was changed after it was written", path.display())]
    Changed {
        /// The output.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// How far a run was when it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Nothing is there, or it was discarded.
    New,
    /// The same run, not finished.
    Unfinished,
    /// The same run, finished.
    Finished,
}

/// Where a run keeps its record and its lock.
#[derive(Debug, Clone)]
pub struct Place {
    /// The folder or the output that the run is about.
    path: PathBuf,
    record: PathBuf,
    lock: PathBuf,
    is_folder: bool,
}

impl Place {
    /// A folder of its own, with `run.json` and `.lock`.
    pub fn folder(path: &Path) -> Self {
        Self { path: path.to_owned(), record: path.join("run.json"), lock: path.join(".lock"), is_folder: true }
    }

    /// Next to a file that the run writes: `NAME.run.json` and `NAME.run.lock`, where NAME is the file's without its
    /// extension. A first record appears with the first state that is saved.
    pub fn beside(file: &Path) -> Self {
        let name = file.file_stem().unwrap_or_default();
        let sibling = |suffix: &str| {
            let mut name = name.to_owned();
            name.push(suffix);
            file.with_file_name(name)
        };
        Self { path: file.to_owned(), record: sibling(".run.json"), lock: sibling(".run.lock"), is_folder: false }
    }

    /// Where the record is or will be.
    pub fn record(&self) -> &Path {
        &self.record
    }

    /// Where the lock is or will be.
    pub fn lock(&self) -> &Path {
        &self.lock
    }

    /// Whether the record that is there says that its run writes `file`. An unreadable record counts as claiming every file.
    pub fn claims(&self, file: &Path) -> bool {
        let Ok(record) = read_json::<Record>(&self.record) else { return self.record.exists() };
        let name = self.name_of(file);
        name.is_some_and(|name| record.outputs.contains(&name))
    }

    /// What the record calls an output: its path relative to the record's folder, so that all may be moved together.
    fn name_of(&self, file: &Path) -> Option<String> {
        let [own, other] = [&self.record, file].map(|path| std::path::absolute(path).ok());
        let (own, other) = (own?, other?);
        let mut from = own.parent()?.components().peekable();
        let mut to = other.components().peekable();
        while from.peek().is_some() && from.peek() == to.peek() {
            from.next();
            to.next();
        }
        let relative: PathBuf = from.map(|_| Component::ParentDir).chain(to).collect();
        Some(path_to_text(&relative).into_owned())
    }
}

/// What a run is about to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `distill`, `train`, ...
    pub stage: &'static str,
    /// The resolved configuration: every key that can change the result.
    pub config: Value,
    /// The versions of the numbers that the run makes, by stage or by attack: a run of another version is another run.
    pub results: BTreeMap<String, u32>,
    /// What computes it.
    pub environment: Environment,
    /// Files outside a folder of its own that the run writes, by name: it only counts as finished while they are there
    /// and unchanged.
    pub outputs: Vec<(&'static str, PathBuf)>,
    /// The files in the run's own folder without which it does not count as finished; they must also be as the run wrote them.
    pub needed: &'static [&'static str],
    /// All files that the run writes in its own folder, besides the record. Where they are there without a record, the run is not
    /// opened.
    pub writes: &'static [&'static str],
}

/// An open run; locked against other processes until it is dropped, if the file system has locks.
#[derive(Debug)]
pub struct Run {
    place: Place,
    outputs: Vec<(&'static str, PathBuf)>,
    needed: &'static [&'static str],
    record: Record,
    opened: Instant,
    /// `None` of a finished run in a folder where nothing can be written.
    _lock: Option<Lock>,
}

impl Run {
    /// Starts the run that is planned, or takes up what an earlier process left of it. With `force` an earlier run of the
    /// same command, also with another configuration, is thrown away after `discard` has deleted what it wrote besides its
    /// record; so are files of its names that have no record.
    ///
    /// # Errors
    /// Any [`RunError`]; [`RunError::Different`] names the first key that differs.
    pub fn open(
        place: Place,
        plan: Plan,
        force: bool,
        discard: impl FnOnce() -> Result<(), FileError>,
    ) -> Result<(Self, Status), RunError> {
        // Every run writes its record first. Before the lock, which would be one file more in somebody else's folder.
        if place.is_folder && !force {
            let there = |name: &&&str| place.path.join(name).exists();
            let found: Vec<String> = plan.writes.iter().filter(there).map(ToString::to_string).collect();
            if !found.is_empty() && !place.record.exists() {
                return Err(RunError::NoRecord { path: place.path, found });
            }
        }
        let lock = match Lock::acquire_where_possible(&place.lock) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Err(RunError::Busy { path: place.path }),
            // Nothing can be computed there, but a run may be finished.
            Err(error) if !force && is_refused(&error) => return Self::finished(place, plan).ok_or(error.into()),
            Err(error) => return Err(error.into()),
        };
        // Ours alone while the lock is held: what a kill in the middle of a write has left. Reports and tables may be written to
        // the folder meanwhile.
        let inside = plan.writes.iter().map(|name| place.path.join(name));
        let outside = plan.outputs.iter().map(|(_, path)| path.clone());
        inside.chain(outside).chain([place.record.clone()]).try_for_each(|file| remove_parts_of(&file))?;
        let Plan { stage, config, results, environment, outputs, needed, writes: _ } = plan;
        let mut record = Record::new(stage, config, results, environment);
        record.outputs = outputs.iter().filter_map(|(_, path)| place.name_of(path)).collect();
        let mut status = Status::New;
        if place.record.exists() {
            let read = read_json::<Record>(&place.record);
            let about = || if place.is_folder { place.path.clone() } else { place.record.clone() };
            if let Ok(old) = &read
                && old.stage != stage
            {
                return Err(RunError::OtherCommand { path: about(), stage: old.stage.clone() });
            }
            if force {
                discard()?;
            } else {
                let old = read.map_err(|source| RunError::Unreadable { path: place.record.clone(), source })?;
                if let Some(difference) = first_difference(&old.config, &record.config, "") {
                    return Err(RunError::Different { path: about(), difference });
                }
                if let Some(difference) = old.other_results(&record.results) {
                    return Err(RunError::OtherResults { path: about(), difference });
                }
                if !old.is_finished() {
                    status = Status::Unfinished;
                    record.resume(old);
                } else if is_written(&written_files(&place, &outputs, needed), &old)? {
                    (status, record) = (Status::Finished, old);
                }
            }
        } else if force {
            discard()?;
        }
        let run = Self { place, outputs, needed, record, opened: Instant::now(), _lock: Some(lock) };
        // Beside a file, an old record is replaced at once: it may tell of work that is gone, and the new one claims the old files.
        if status != Status::Finished && (run.place.is_folder || run.place.record.exists()) {
            run.write()?;
        }
        Ok((run, status))
    }

    /// The planned run if it is finished, without the lock.
    fn finished(place: Place, plan: Plan) -> Option<(Self, Status)> {
        let Plan { stage, config, results, outputs, needed, .. } = plan;
        let record = read_json::<Record>(&place.record).ok()?;
        let is_same = record.stage == stage
            && first_difference(&record.config, &config, "").is_none()
            && record.other_results(&results).is_none();
        let is_whole = record.is_finished() && is_written(&written_files(&place, &outputs, needed), &record).ok()?;
        let run = Self { place, outputs, needed, record, opened: Instant::now(), _lock: None };
        (is_same && is_whole).then_some((run, Status::Finished))
    }

    /// The run's folder, or the file beside which its record is.
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// A file in the run's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.place.path.join(name)
    }

    /// The record.
    pub fn record(&self) -> &Path {
        &self.place.record
    }

    /// What the run reported when it finished; null before that.
    pub fn summary(&self) -> &Value {
        &self.record.summary
    }

    /// Forgets earlier sessions, because nothing that they computed is left.
    pub fn begin_again(&mut self) {
        self.record.earlier.clear();
    }

    /// What earlier sessions of this run computed with, where it differs from this session, in words for people.
    pub fn other_sessions(&self) -> Vec<String> {
        let now = &self.record.environment;
        let mut found = Vec::new();
        for then in &self.record.earlier {
            if then.threads != now.threads {
                found.push(counted(then.threads.unsigned_abs() as usize, "thread"));
            }
            if then.device != now.device {
                found.push(format!("device {}", then.device));
            }
            if then.precision != now.precision {
                let formats = then.precision.iter().map(|(what, format)| format!("{format} for {what}"));
                found.push(formats.collect::<Vec<_>>().join(" and "));
            }
            if then.versions != now.versions {
                let changed = then.versions.iter().filter(|(name, version)| now.versions.get(*name) != Some(*version));
                found
                    .push(changed.map(|(name, version)| format!("{name} {version}")).collect::<Vec<_>>().join(" and "));
            }
        }
        let mut seen = BTreeSet::new();
        found.retain(|text| !text.is_empty() && seen.insert(text.clone()));
        found
    }

    /// What [`Run::save`] was given last; null where nothing was saved.
    pub fn take_state(&mut self) -> Value {
        self.record.state.take()
    }

    /// Wall-clock seconds so far, over all sessions.
    pub fn seconds(&self) -> f64 {
        self.record.seconds + self.opened.elapsed().as_secs_f64()
    }

    /// Records the time spent so far, after a state was written to a file of its own.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn pause(&mut self) -> Result<(), FileError> {
        self.record.seconds = self.seconds();
        self.opened = Instant::now();
        self.write()
    }

    /// Records how far the run is, where that is not in a file of its own.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn save(&mut self, state: Value) -> Result<(), FileError> {
        self.record.state = state;
        self.pause()
    }

    /// Marks the run as finished. Call after every result file is in place.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn finish(&mut self, summary: Value) -> Result<(), FileError> {
        let files = written_files(&self.place, &self.outputs, self.needed);
        let hashes = files.iter().map(|(name, path)| Ok(((*name).to_owned(), sha256_of_file(path)?)));
        let written = hashes.collect::<Result<BTreeMap<_, _>, FileError>>()?;
        self.record.finish(summary, written);
        self.pause()
    }

    /// `log.jsonl` in the run's folder, without the lines of iterations after `iteration`.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn log(&self, iteration: u64) -> Result<Log, FileError> {
        Log::open(&self.file("log.jsonl"), iteration)
    }

    fn write(&self) -> Result<(), FileError> {
        write_json(&self.place.record, &self.record)
    }
}

/// Whether the system lets nobody, or not us, write there.
fn is_refused(error: &FileError) -> bool {
    let kinds = [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied];
    matches!(error, FileError::Io { source, .. } if kinds.contains(&source.kind()))
}

/// The files whose hashes a finished run records.
fn written_files(
    place: &Place,
    outputs: &[(&'static str, PathBuf)],
    needed: &[&'static str],
) -> Vec<(&'static str, PathBuf)> {
    outputs.iter().cloned().chain(needed.iter().map(|&name| (name, place.path.join(name)))).collect()
}

/// Whether the outputs of a finished run are there.
fn is_written(outputs: &[(&str, PathBuf)], record: &Record) -> Result<bool, RunError> {
    if !outputs.iter().all(|(_, path)| path.exists()) {
        return Ok(false);
    }
    for (name, path) in outputs {
        let now = sha256_of_file(path)?;
        if record.written.get(*name).is_some_and(|written| *written != now) {
            return Err(RunError::Changed { path: path.clone() });
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan(config: &Value, outputs: &[&Path]) -> Plan {
        let outputs = ["--output", "--save"].into_iter().zip(outputs.iter().map(|path| path.to_path_buf())).collect();
        let environment = Environment::default();
        let results = [("distill".to_owned(), 4)].into();
        let (config, writes) = (config.clone(), &["set", "log"]);
        Plan { stage: "distill", config, results, environment, outputs, needed: &[], writes }
    }

    #[test]
    fn a_folder_is_resumed_finished_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let config = json!({"a": {"b": 1}, "seed": 7});
        let open = |config: &Value| Run::open(Place::folder(&path), plan(config, &[]), false, || unreachable!());
        assert_eq!(open(&config).unwrap().1, Status::New);
        let (mut run, status) = open(&config).unwrap();
        assert_eq!(status, Status::Unfinished);
        assert!(matches!(open(&config), Err(RunError::Busy { path: busy }) if busy == path));
        run.finish(json!({"loss": 0.5})).unwrap();
        drop(run);
        let (run, status) = open(&config).unwrap();
        assert_eq!((status, run.summary()["loss"].as_f64()), (Status::Finished, Some(0.5)));
        drop(run);
        let other = json!({"a": {"b": 2}, "seed": 7});
        let Err(RunError::Different { difference, .. }) = open(&other) else { panic!("{config} is not {other}") };
        assert_eq!(difference, "a.b is 1 there and 2 here");
        let stage = Plan { stage: "train", ..plan(&config, &[]) };
        for force in [false, true] {
            let error = Run::open(Place::folder(&path), stage.clone(), force, || unreachable!()).unwrap_err();
            assert!(matches!(&error, RunError::OtherCommand { stage, .. } if stage == "distill"), "{error}");
        }
        let with_set = || {
            let plan = Plan { needed: &["set"], ..plan(&config, &[]) };
            Run::open(Place::folder(&path), plan, false, || unreachable!()).unwrap().1
        };
        std::fs::write(path.join("set"), "images").unwrap();
        assert_eq!(with_set(), Status::Finished, "a file that was not needed has no hash");
        std::fs::remove_file(path.join("set")).unwrap();
        assert_eq!(with_set(), Status::New, "what it made is gone");

        let mut discarded = false;
        let (run, status) = Run::open(Place::folder(&path), plan(&other, &[]), true, || {
            discarded = true;
            Ok(())
        })
        .unwrap();
        assert!(discarded && status == Status::New);
        std::fs::write(run.record(), "{}").unwrap();
        drop(run);
        assert!(matches!(open(&other), Err(RunError::Unreadable { .. })));
    }

    #[test]
    fn what_a_kill_left_of_its_own_files_is_removed_and_what_others_write_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let parts = [".c2r-set-aaaaaa.part", ".c2r-run.json-bbbbbb.part", ".c2r-attack.json-cccccc.part"];
        parts.iter().for_each(|name| std::fs::write(at(name), b"half").unwrap());
        Run::open(Place::folder(folder.path()), plan(&json!({}), &[]), false, || Ok(())).unwrap();
        assert_eq!(parts.map(|name| at(name).exists()), [false, false, true]);
        let report = at("attack.json");
        Run::open(Place::beside(&report), plan(&json!({}), &[&report]), false, || Ok(())).unwrap();
        assert!(!at(parts[2]).exists());
    }

    #[test]
    fn a_finished_run_is_refused_if_a_file_of_it_was_changed_and_made_again_if_one_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let open = || {
            let plan = Plan { needed: &["set", "teacher"], ..plan(&json!(1), &[]) };
            Run::open(Place::folder(folder.path()), plan, false, || unreachable!())
        };
        let paths = ["set", "teacher"].map(|name| folder.path().join(name));
        for path in &paths {
            let mut run = open().unwrap().0;
            paths.iter().for_each(|path| std::fs::write(path, "floats").unwrap());
            run.finish(Value::Null).unwrap();
            drop(run);
            assert_eq!(open().unwrap().1, Status::Finished);
            std::fs::write(path, "float").unwrap();
            assert!(matches!(open(), Err(RunError::Changed { path: changed }) if changed == *path));
            std::fs::remove_file(path).unwrap();
            assert_eq!(open().unwrap().1, Status::New);
        }
    }

    #[test]
    fn a_run_of_other_numbers_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let open = |version: u32, force| {
            let results = [("distill".to_owned(), version)].into();
            let environment = Environment {
                versions: [("c2r", "0.1.0"), ("git", "abc")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
                ..Environment::default()
            };
            let plan = Plan { results, environment, ..plan(&json!(1), &[]) };
            Run::open(Place::folder(folder.path()), plan, force, || Ok(()))
        };
        let refused = |version| {
            let Err(RunError::OtherResults { difference, .. }) = open(version, false) else {
                panic!("{version} is new")
            };
            difference
        };
        assert_eq!(open(4, false).unwrap().1, Status::New);
        assert_eq!(refused(5), "results version of distill: 4 there, c2r 0.1.0, git abc; 5 here");
        let (mut run, _) = open(4, false).unwrap();
        run.finish(Value::Null).unwrap();
        drop(run);
        assert_eq!(open(4, false).unwrap().1, Status::Finished);
        refused(5);
        assert_eq!(open(5, true).unwrap().1, Status::New);
        refused(4);
    }

    #[test]
    fn a_run_knows_what_earlier_sessions_computed_with() {
        let folder = tempfile::tempdir().unwrap();
        let session = |threads, device: &str| {
            let environment = Environment { threads, device: device.to_owned(), ..Environment::default() };
            Run::open(Place::folder(folder.path()), Plan { environment, ..plan(&json!(1), &[]) }, false, || Ok(()))
                .unwrap()
                .0
        };
        let none: [&str; 0] = [];
        assert_eq!(session(2, "Cpu").other_sessions(), none);
        assert_eq!(session(2, "Cpu").other_sessions(), none);
        assert_eq!(session(1, "Cpu").other_sessions(), ["2 threads"]);
        assert_eq!(session(2, "Cuda(0)").other_sessions(), ["device Cpu", "1 thread"]);
        let mut run = session(2, "Cpu");
        assert_eq!(run.other_sessions(), ["1 thread", "device Cuda(0)"]);
        run.finish(Value::Null).unwrap();
        assert_eq!(run.other_sessions(), ["1 thread", "device Cuda(0)"], "the record of a finished run has them, too");
        drop(run);
        assert_eq!(session(4, "Cpu").other_sessions(), ["1 thread", "device Cuda(0)"], "nothing is computed again");
        let mut lost = Run::open(Place::folder(folder.path()), plan(&json!(1), &[]), true, || Ok(())).unwrap().0;
        assert_eq!(lost.other_sessions(), none);
        lost.save(Value::Null).unwrap();
        drop(lost);
        let mut again = session(4, "Cpu");
        again.begin_again();
        assert_eq!(again.other_sessions(), none);
    }

    /// Root may write wherever there are permissions, so the system's refusal is not tested here.
    #[test]
    fn a_finished_run_is_recognised_without_its_lock() {
        let folder = tempfile::tempdir().unwrap();
        let place = || Place::folder(folder.path());
        let planned = |config: i32| Plan { needed: &["set"], ..plan(&json!(config), &[]) };
        let finished = |config| Run::finished(place(), planned(config));
        assert!(finished(1).is_none());
        let (mut run, _) = Run::open(place(), planned(1), false, || unreachable!()).unwrap();
        assert!(finished(1).is_none(), "it is only begun");
        std::fs::write(folder.path().join("set"), "images").unwrap();
        run.finish(json!("summary")).unwrap();
        let (run, status) = finished(1).unwrap();
        assert_eq!((status, run.summary()), (Status::Finished, &json!("summary")));
        assert!(finished(2).is_none());
        assert!(Run::finished(place(), Plan { stage: "train", ..planned(1) }).is_none());
        std::fs::write(folder.path().join("set"), "changed").unwrap();
        assert!(finished(1).is_none());
        let refused = |kind: io::ErrorKind| is_refused(&FileError::io("create", folder.path())(kind.into()));
        assert!(refused(io::ErrorKind::ReadOnlyFilesystem) && refused(io::ErrorKind::PermissionDenied));
        assert!(!refused(io::ErrorKind::StorageFull));
    }

    #[test]
    fn files_without_a_record_are_refused_and_only_force_discards_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::write(path.join("notes"), "theirs").unwrap();
        let open = |force| {
            let mut discarded = false;
            let opened = Run::open(Place::folder(path), plan(&json!(1), &[]), force, || {
                discarded = true;
                Ok(())
            });
            (opened.map(|(_, status)| status), discarded)
        };
        for name in ["set", "log"] {
            std::fs::write(path.join(name), "theirs").unwrap();
        }
        let (refused, discarded) = open(false);
        let Err(RunError::NoRecord { found, .. }) = refused else { panic!("they are theirs") };
        assert_eq!((found, discarded), (vec!["set".to_owned(), "log".to_owned()], false));
        assert!(!path.join(".lock").exists() && !path.join("run.json").exists(), "nothing is written there");
        assert!(matches!(open(true), (Ok(Status::New), true)));
        // From now on there is a record.
        assert!(matches!(open(false), (Ok(Status::Unfinished), false)));
    }

    #[test]
    fn a_run_beside_a_file_is_finished_while_the_file_is_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("attack.json");
        let open = || Run::open(Place::beside(&output), plan(&json!(1), &[&output]), false, || unreachable!());
        let (mut run, status) = open().unwrap();
        let record = folder.path().join("attack.run.json");
        let claims = |name: &str| Place::beside(&output).claims(&folder.path().join(name));
        assert!(!claims("attack.json"));
        assert!(status == Status::New && run.record() == record && !record.exists(), "nothing is saved yet");
        run.save(json!({"done": 3})).unwrap();
        drop(run);
        assert!(claims("attack.json") && !claims("attack.txt"));
        let (mut run, status) = open().unwrap();
        assert_eq!((status, run.take_state()), (Status::Unfinished, json!({"done": 3})));
        std::fs::write(&output, "result").unwrap();
        run.finish(json!("summary")).unwrap();
        drop(run);
        let (mut run, status) = open().unwrap();
        assert_eq!((status, run.take_state(), run.summary()), (Status::Finished, Value::Null, &json!("summary")));
        drop(run);
        std::fs::write(&output, "another").unwrap();
        assert!(matches!(open(), Err(RunError::Changed { path }) if path == output));
        std::fs::remove_file(&output).unwrap();
        // The record of what is gone does not stay: a kill right now leaves a run that was only begun.
        assert_eq!(open().unwrap().1, Status::New);
        let (mut run, status) = open().unwrap();
        assert_eq!((status, run.take_state()), (Status::Unfinished, Value::Null));
        drop(run);
        std::fs::write(&output, "result").unwrap();
        let forced = || Run::open(Place::beside(&output), plan(&json!(2), &[&output]), true, || Ok(())).unwrap().1;
        assert!(forced() == Status::New && claims("attack.json"), "a kill right now leaves a record of its old file");
        assert!(matches!(open(), Err(RunError::Different { .. })));
    }

    /// Two outputs of one name in different folders are different files, and all may move together.
    #[test]
    fn a_run_claims_its_own_files_only() {
        let folder = tempfile::tempdir().unwrap();
        let [all, elsewhere] = ["all", "elsewhere"].map(|name| folder.path().join(name));
        let [at, other] = ["at", "other"].map(|name| all.join(name));
        let (output, saved) = (at.join("attack.json"), all.join("sets").join("images"));
        let mut run =
            Run::open(Place::beside(&output), plan(&json!(1), &[&output, &saved]), false, || unreachable!()).unwrap().0;
        run.save(json!(null)).unwrap();
        drop(run);
        let place = Place::beside(&output);
        assert!(place.claims(&output) && place.claims(&saved));
        assert!(!place.claims(&other.join("images")) && !place.claims(&at.join("images")));
        std::fs::rename(&at, &other).unwrap();
        let moved = other.join("attack.json");
        assert!(Place::beside(&moved).claims(&moved));
        std::fs::rename(&other, &at).unwrap();
        std::fs::rename(&all, &elsewhere).unwrap();
        let place = Place::beside(&elsewhere.join("at").join("attack.json"));
        assert!(place.claims(&elsewhere.join("sets").join("images")) && !place.claims(&saved));
    }
}
