//! Whether `c2r` was built with the files that jobs are named after.
//!
//! A job is named after protocols, profiles and datasets as the checkout has them, and `c2r` uses its own copies of them. Where a
//! file was changed and `c2r` was not built again, the result would be that of the old file under the name of the new one, for good.

use std::{collections::BTreeSet, path::Path};

use anyhow::Context;
use c2r_experiment::{BuiltIn, DatasetEntry};
use c2r_run::{exit, process};

use crate::{Job, Stage, Workplace, identity};

/// An error that names what differs, if `c2r` was built with other files than those that these jobs are named after.
///
/// # Errors
/// Also if `c2r` cannot be run.
pub(crate) fn check(jobs: &[Job], place: &Workplace) -> anyhow::Result<()> {
    let c2r = place.show(&place.c2r);
    let output = process::output(&mut place.command(["built-in", "--device", "cpu"]))?.context("c2r is not built")?;
    process::check_interrupt()?;
    let again = if place.can_build {
        "build it again, or leave --prebuilt out"
    } else {
        "its files and its programs come from different builds: unpack the archive again"
    };
    if output.status.code() == Some(i32::from(exit::USAGE)) {
        return Err(exit::usage(format!(
            "{c2r} is another version of c2r, which cannot list what is built into it; {}",
            again
        )));
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "`{c2r} built-in` failed ({}): {}", output.status, reason.trim());
    let built_in: BuiltIn = serde_json::from_slice(&output.stdout)
        .map_err(|error| exit::usage(format!("{c2r} is another version of c2r ({error}); {}", again)))?;
    let results = built_in.changed_results();
    if !results.is_empty() {
        let results = results.join(", ");
        let what_to_do = if place.can_build { "build both again" } else { again };
        return Err(exit::usage(format!(
            "{c2r} and this program are different versions, whose results differ ({results}); {what_to_do}"
        )));
    }
    let used = used(jobs, &place.root)?;
    let files = built_in.changed_files(&place.root, &used);
    if files.is_empty() {
        return Ok(());
    }
    let what_to_do = if place.can_build {
        again
    } else {
        "what is built into c2r cannot be changed without its sources: take the file as it was, and write the change into the \
         experiment (`train-set`, `distill-set`, or `set` of a method)"
    };
    let (verb, them) = if files.len() == 1 { ("was", "it") } else { ("were", "them") };
    let files = files.join(", ");
    Err(exit::usage(format!(
        "{files} {verb} changed since {c2r} was built, which has its own copy of {them}; {what_to_do}"
    )))
}

/// The files of the checkout that these jobs are named after and that `c2r` has compiled in.
fn used(jobs: &[Job], root: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut used = BTreeSet::from([DatasetEntry::REGISTRY.to_owned()]);
    let datasets: BTreeSet<&String> = jobs.iter().map(|job| &job.cell.dataset).collect();
    for entry in DatasetEntry::read_all(&root.join(DatasetEntry::REGISTRY)).map_err(exit::usage)? {
        used.extend(entry.embedded.filter(|_| datasets.contains(&entry.name)).map(|file| file.path));
    }
    for job in jobs {
        match &job.stage {
            Stage::Train(network) => drop(used.insert(format!("data/protocols/{}.toml", network.protocol))),
            Stage::Distill => {
                let option = job.what.iter().position(|word| word == "--config");
                let profile = option.and_then(|position| job.what.get(position + 1));
                let mut next = profile.and_then(|profile| base(&root.join(profile)));
                // A profile that builds on itself is an error of `c2r`.
                while let Some(name) = next.filter(|name| used.insert(name.clone())) {
                    next = base(&root.join(&name));
                }
            }
            Stage::Attack { .. } => {}
        }
    }
    Ok(used)
}

/// The profile that a profile starts from. The first one is a file that `c2r` reads, and those behind it are its own.
fn base(profile: &Path) -> Option<String> {
    identity::base(&c2r_files::read_text(profile).ok()?.parse().ok()?)
}
