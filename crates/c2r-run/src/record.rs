use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use c2r_files::path_to_text;
use serde::{Deserialize, Serialize};
use serde_json::Value;

const SCHEMA_VERSION: u32 = 1;
const RUNNING: &str = "running";
const FINISHED: &str = "finished";

/// What computes a run; recorded, but another one may resume it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Versions of the programs involved, e.g. `c2r` and its git revision.
    pub versions: BTreeMap<String, String>,
    /// CPU threads; results of other thread counts agree up to float rounding only.
    pub threads: i32,
    /// Where it computes, e.g. `Cpu`.
    pub device: String,
    /// Float formats by what is computed in them, e.g. `tf32` of `convolutions`.
    pub precision: BTreeMap<String, String>,
}

/// `run.json`: what a run is, how it came to be, and how far it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    schema_version: u32,
    /// `distill`, `train`, ...
    pub(crate) stage: String,
    /// [`RUNNING`] or [`FINISHED`].
    status: String,
    /// The resolved configuration: every key that can change the result.
    pub(crate) config: Value,
    /// Versions of the numbers, by stage or by attack.
    pub(crate) results: BTreeMap<String, u32>,
    /// The command line of the process that wrote this.
    argv: Vec<String>,
    /// What computes it, since it was started or last resumed.
    #[serde(flatten)]
    pub(crate) environment: Environment,
    /// What computed earlier sessions, if it was something else; in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) earlier: Vec<Environment>,
    /// Seconds since 1970.
    started_unix: u64,
    /// Wall-clock seconds over all sessions that worked on this run.
    pub(crate) seconds: f64,
    /// Results of a finished run.
    pub(crate) summary: Value,
    /// How far an unfinished run is, where no file of its own holds that.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub(crate) state: Value,
    /// Files outside a folder of its own that the run writes, relative to the record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) outputs: Vec<String>,
    /// SHA-256 of the outputs of a finished run, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) written: BTreeMap<String, String>,
}

/// The command line of this process. A word that is not UTF-8 is written as [`path_to_text`] writes a path.
pub fn argv() -> Vec<String> {
    std::env::args_os().map(|word| path_to_text(&word).into_owned()).collect()
}

impl Record {
    pub(crate) fn new(stage: &str, config: Value, results: BTreeMap<String, u32>, environment: Environment) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            stage: stage.to_owned(),
            status: RUNNING.to_owned(),
            config,
            results,
            argv: argv(),
            environment,
            earlier: Vec::new(),
            started_unix: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs()),
            seconds: 0.0,
            summary: Value::Null,
            state: Value::Null,
            outputs: Vec::new(),
            written: BTreeMap::new(),
        }
    }

    /// Goes on with the run of `old`, which is unfinished.
    pub(crate) fn resume(&mut self, old: Self) {
        (self.seconds, self.state, self.earlier) = (old.seconds, old.state, old.earlier);
        if old.environment != self.environment && !self.earlier.contains(&old.environment) {
            self.earlier.push(old.environment);
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.status == FINISHED
    }

    /// The first version of the numbers that is another one in `results`, in words.
    pub(crate) fn other_results(&self, results: &BTreeMap<String, u32>) -> Option<String> {
        let (name, there, here) = self.results.iter().find_map(|(name, there)| {
            let here = results.get(name).filter(|here| *here != there)?;
            Some((name, there, here))
        })?;
        let made_by =
            ["c2r", "git"].iter().filter_map(|key| Some(format!(", {key} {}", self.environment.versions.get(*key)?)));
        Some(format!("results version of {name}: {there} there{}; {here} here", made_by.collect::<String>()))
    }

    pub(crate) fn finish(&mut self, summary: Value, written: BTreeMap<String, String>) {
        self.status = FINISHED.to_owned();
        (self.summary, self.state, self.written) = (summary, Value::Null, written);
    }
}

/// The first key, depth first, in which two configurations differ, in words.
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
