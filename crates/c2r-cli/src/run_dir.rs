//! Run folders of the commands: what `c2r_run` does not know about c2r.

use std::{collections::BTreeMap, fs, path::Path};

use c2r_distill::{DistillConfig, folder};
use c2r_experiment::results;
use c2r_files::{FileError, read_json, remove_if_present, remove_parts, sha256_of_file};
use c2r_run::{Environment, Place, Plan, Run, RunError, Status, exit};
use serde_json::Value;

use crate::{
    data::{NETWORK_FILE, REPORT_FILE, REPORT_RECORD},
    ui::{self, Ui},
};

/// A command that writes to a run folder.
pub(crate) struct Stage {
    name: &'static str,
    /// Version of its numbers.
    results: u32,
    /// The files without which a run is not finished.
    needed: &'static [&'static str],
    /// All that it writes there besides the record and pictures.
    writes: &'static [&'static str],
}

/// `c2r distill`.
pub(crate) fn distill(config: &DistillConfig) -> Stage {
    Stage { name: "distill", results: results::DISTILL, needed: folder::needed(config), writes: folder::FILES }
}
/// `c2r train`.
pub(crate) const TRAIN: Stage = Stage {
    name: "train",
    results: results::TRAIN,
    needed: &[NETWORK_FILE],
    writes: &["state.safetensors", NETWORK_FILE, "log.jsonl"],
};
/// The report on the network of a folder and its record, and where each of them has the hash of the network.
const REPORTS: [(&str, &str); 2] = [(REPORT_FILE, "/model_sha256"), (REPORT_RECORD, "/config/model")];

/// Versions that every artefact records.
pub(crate) fn versions() -> BTreeMap<String, String> {
    let own = [("c2r", env!("CARGO_PKG_VERSION")), ("git", env!("C2R_GIT_REVISION"))];
    let own = own.map(|(name, version)| (name, version.to_owned()));
    own.into_iter().chain(c2r_kernels::versions()).map(|(name, version)| (name.to_owned(), version)).collect()
}

/// If a resumed run was computed with something else before, prints a note that says with what. A run that begins again forgets
/// its earlier sessions.
pub(crate) fn note_other_sessions(run: &mut Run, is_resumed: bool, ui: &Ui) {
    if !is_resumed {
        run.begin_again();
    }
    let others = run.other_sessions();
    if !others.is_empty() {
        ui.note(format!(
            "note: earlier sessions of this run computed with {}; its numbers may differ by rounding from those of a run in one go",
            others.join(", "),
        ));
    }
}

/// Records that a run is finished, deletes its state, and says what it wrote.
///
/// * `file`: the run's main output.
pub(crate) fn finish(run: &mut Run, summary: Value, file: &Path, json: bool, ui: &Ui) -> anyhow::Result<()> {
    let line = summary.to_string();
    run.finish(summary)?;
    remove_if_present(&run.file("state.safetensors"))?;
    ui.note(format!("wrote {} ({})", file.display(), ui::seconds(run.seconds())));
    if json {
        ui.out(line);
    }
    Ok(())
}

/// A device as `--device` takes it.
pub(crate) fn device_name(device: tch::Device) -> String {
    match device {
        tch::Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// What computes here.
pub(crate) fn environment(device: tch::Device) -> Environment {
    Environment {
        versions: versions(),
        threads: tch::get_num_threads(),
        device: format!("{device:?}"),
        precision: c2r_kernels::precision_names(device),
    }
}

/// Opens or creates the folder for a run of `stage` with `config`. What the command reads, `inputs` by option, is neither
/// overwritten nor deleted.
///
/// # Errors
/// Those of [`Run::open`], with what to do about them.
pub(crate) fn open(
    path: &Path,
    stage: &Stage,
    config: Value,
    inputs: &[(&str, &Path)],
    device: tch::Device,
    force: bool,
) -> anyhow::Result<(Run, Status)> {
    for (option, input) in inputs {
        let is_input = |name: &&&str| same_file(&path.join(name), input);
        if let Some(name) = stage.writes.iter().find(is_input) {
            let message = format!(
                "--run-dir {}: the run would write its {name} over the file of {option}; choose another --run-dir",
                path.display()
            );
            return exit::fail(exit::USAGE, message);
        }
    }
    let &Stage { name, results, needed, writes } = stage;
    let results = [(name.to_owned(), results)].into();
    let environment = environment(device);
    let plan = Plan { stage: name, config, results, environment, outputs: Vec::new(), needed, writes };
    let (run, status) = Run::open(Place::folder(path), plan, force, || discard(path, stage)).map_err(|error| {
        let (code, advice) = match error {
            RunError::Busy { .. } => (exit::USAGE, "wait for it, or choose another --run-dir"),
            RunError::Unreadable { .. } => (exit::UNEXPECTED, "delete it, or choose another --run-dir"),
            RunError::Different { .. } => (exit::USAGE, "choose another --run-dir, or discard the run with --force"),
            RunError::OtherResults { .. } => (exit::USAGE, "make it again with --force, or choose another --run-dir"),
            RunError::OtherCommand { .. } => (exit::USAGE, "choose another --run-dir"),
            RunError::NoRecord { .. } => (exit::USAGE, "choose another --run-dir, or delete them with --force"),
            RunError::Changed { .. } => (exit::DATA, "put it back as it was, or make it again with --force"),
            other => return other.into(),
        };
        exit::coded(code, with_advice(error, advice))
    })?;
    if status != Status::Finished {
        remove_parts(&path.join(folder::PICTURES))?;
    }
    Ok((run, status))
}

/// `error; advice`, with the error's causes.
pub(crate) fn with_advice(error: RunError, advice: &str) -> anyhow::Error {
    let message = format!("{error}; {advice}");
    match error {
        RunError::Unreadable { source, .. } => anyhow::Error::new(source).context(message),
        _ => anyhow::Error::msg(message),
    }
}

/// Whether both are there and one file.
pub(crate) fn same_file(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

/// Deletes what a run of `stage` wrote, and nothing else but a report on the network that goes with it: beside the next network
/// a table would take it for that one's, and the same attack on that one would be refused.
fn discard(path: &Path, stage: &Stage) -> Result<(), FileError> {
    if stage.name != TRAIN.name {
        return folder::discard(path);
    }
    if let Ok(network) = sha256_of_file(&path.join(NETWORK_FILE)) {
        for (name, of_network) in REPORTS {
            let file = path.join(name);
            if read_json::<Value>(&file)
                .is_ok_and(|record| record.pointer(of_network) == Some(&network.as_str().into()))
            {
                remove_if_present(&file)?;
            }
        }
    }
    stage.writes.iter().try_for_each(|name| remove_if_present(&path.join(name)))
}
