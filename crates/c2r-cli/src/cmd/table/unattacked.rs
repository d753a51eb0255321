//! Networks in the folders of a table that are in none of its rows.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use c2r_eval::{RunInfo, Source};
use c2r_files::{read_json, sha256_of_file};

use crate::{
    data::{NETWORK_FILE, REPORT_FILE, REPORT_RECORD},
    ui,
};

/// Folders that the note names.
const NAMED: usize = 3;

/// Names the folders under `roots` with a trained network or an unfinished attack, but without a report. `None` if there are none.
pub(super) fn note(roots: &[PathBuf], sources: &[Source]) -> Option<String> {
    let reports: Vec<&Path> = sources.iter().filter_map(|source| source.file.parent()).collect();
    let mut found = BTreeSet::new();
    for root in roots {
        walk(root, &mut found);
    }
    let measured: BTreeSet<&str> = sources.iter().filter_map(|source| source.record.model_sha256.as_deref()).collect();
    let elsewhere = |folder: &Path| {
        sha256_of_file(&folder.join(NETWORK_FILE)).is_ok_and(|sha256| measured.contains(sha256.as_str()))
    };
    found.retain(|folder| {
        let whole = folder.canonicalize().unwrap_or_else(|_| folder.clone());
        !reports.iter().any(|report| report.starts_with(&whole)) && !elsewhere(folder)
    });
    if found.is_empty() {
        return None;
    }
    let names: Vec<String> = found.iter().take(NAMED).map(|folder| folder.display().to_string()).collect();
    let more = match found.len() - names.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let n = ui::counted(found.len(), "folder");
    Some(format!(
        "note: {n} not in the table, because no attack on the network is finished: {}{more}",
        names.join(", ")
    ))
}

/// Adds the folders with a network of `c2r train` or the record of an attack. What cannot be read is none.
fn walk(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    let is_trained = || {
        let run = read_json::<RunInfo>(&folder.join("run.json"));
        folder.join(NETWORK_FILE).is_file() && run.is_ok_and(|run| run.stage == "train" && !run.is_running())
    };
    let is_attacked = || folder.join(REPORT_RECORD).is_file() && !folder.join(REPORT_FILE).is_file();
    if is_attacked() || is_trained() {
        found.insert(folder.to_owned());
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        // Links may lead in circles.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), found);
        }
    }
}
