//! The folder of a run, which the command and the Python package share: what a run is, and what it writes there.

use std::{fs, path::Path};

use c2r_data::Dataset;
use c2r_files::{FileError, remove_if_present};
use c2r_kernels::FloatFormat;
use serde_json::{Value, json};
use tch::Device;

use crate::{config::LabelKind, resolve::DistillConfig};

/// The state of an unfinished run.
pub const STATE: &str = "state.safetensors";
/// The synthetic set.
pub const SET: &str = "synthetic.safetensors";
/// The network that labels the set, with [`LabelKind::Teacher`].
pub const TEACHER: &str = "teacher.safetensors";
/// A picture of the set.
pub const PICTURE: &str = "synthetic.png";
/// Numbers of the updates.
pub const LOG: &str = "log.jsonl";
/// A plot of them.
pub const CURVES: &str = "curves.svg";
/// A folder with pictures of the images during the run: the number of updates, `.png`.
pub const PICTURES: &str = "pictures";
/// All files of a run besides its record and [`PICTURES`].
pub const FILES: &[&str] = &[STATE, SET, PICTURE, TEACHER, LOG, CURVES];

/// The files without which a run is not finished.
pub const fn needed(config: &DistillConfig) -> &'static [&'static str] {
    match config.common.labels {
        LabelKind::Teacher => &[SET, TEACHER],
        LabelKind::Hard | LabelKind::Soft => &[SET],
    }
}

/// What makes a run this one: a run with another record is another run.
pub fn record(config: &DistillConfig, dataset: &Dataset, device: Device) -> Value {
    let mut record = json!({
        "dataset": dataset.spec.name,
        "data_sha256": dataset.train.sha256(),
        "distill": config,
    });
    if let Some(format) = FloatFormat::unusual(device) {
        record["precision"] = json!(format.to_string());
    }
    record
}

/// Deletes what a run wrote in `folder`, and nothing else. Its record stays.
///
/// # Errors
/// [`FileError::Io`] if a file cannot be deleted.
pub fn discard(folder: &Path) -> Result<(), FileError> {
    FILES.iter().try_for_each(|name| remove_if_present(&folder.join(name)))?;
    let pictures = folder.join(PICTURES);
    let Ok(entries) = fs::read_dir(&pictures) else { return Ok(()) };
    for file in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let numbered = file.file_stem().is_some_and(|stem| stem.to_string_lossy().parse::<u64>().is_ok());
        if numbered && file.extension().is_some_and(|extension| extension == "png") {
            remove_if_present(&file)?;
        }
    }
    // It stays if it holds other files.
    let _ = fs::remove_dir(&pictures);
    Ok(())
}

#[cfg(test)]
mod tests {
    use c2r_kernels::Bf16;

    use super::*;

    #[test]
    fn another_float_format_is_another_run() {
        let digits = c2r_data::load("digits", None).unwrap();
        let config = DistillConfig::resolve("dm", &digits.spec, [("ipc", 1)]).unwrap();
        let record = || record(&config, &digits, Device::Cpu);
        let usual = record();
        assert_eq!(usual.as_object().unwrap().keys().collect::<Vec<_>>(), ["dataset", "data_sha256", "distill"]);
        let _bf16 = Bf16::on(Device::Cpu);
        let mut unusual = record();
        assert_eq!(unusual.as_object_mut().unwrap().remove("precision"), Some("bf16".into()));
        assert_eq!(unusual, usual);
    }

    #[test]
    fn what_is_discarded_are_the_files_of_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at(PICTURES)).unwrap();
        let theirs = ["run.json", "notes.txt", "pictures/first.png", "pictures/1.txt"];
        let ours = FILES.iter().copied().chain(["pictures/000000.png"]);
        ours.clone().chain(theirs).for_each(|name| fs::write(at(name), "x").unwrap());
        discard(folder.path()).unwrap();
        assert!(theirs.into_iter().all(|name| at(name).exists()) && !ours.clone().any(|name| at(name).exists()));
        ["pictures/first.png", "pictures/1.txt"].iter().for_each(|name| fs::remove_file(at(name)).unwrap());
        discard(folder.path()).unwrap();
        assert!(!at(PICTURES).exists());
    }
}
