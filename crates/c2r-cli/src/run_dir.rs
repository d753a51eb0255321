//! Run folders of the commands: what `c2r_run` does not know about c2r.

use std::{collections::BTreeMap, fs, path::Path};

use c2r_files::{FileError, remove_if_present, remove_parts};
use c2r_kernels::FloatFormat;
use c2r_run::{Environment, Place, Plan, Run, RunError, Status, exit};
use serde_json::Value;

/// What a run may leave in its folder besides the record.
const WRITTEN: [&str; 8] = [
    "state.safetensors",
    "synthetic.safetensors",
    "synthetic.png",
    "model.safetensors",
    "teacher.safetensors",
    "log.jsonl",
    "curves.svg",
    "attack.json",
];
const PICTURES: &str = "pictures";

/// Versions that every artefact records.
pub(crate) fn versions() -> BTreeMap<String, String> {
    [("c2r", env!("CARGO_PKG_VERSION")), ("git", env!("C2R_GIT_REVISION")), ("tch", "0.24.0"), ("libtorch", "2.11")]
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .into()
}

/// The floats of convolutions and of matrix products on this device.
pub(crate) fn precision(device: tch::Device) -> BTreeMap<String, String> {
    let names = ["convolutions", "matmuls"].map(str::to_owned);
    names.into_iter().zip(c2r_kernels::precision(device).map(|format| format.to_string())).collect()
}

/// The float format of convolutions where it is not the default of the device: then it belongs to what a run is asked for, and a
/// run in another format is another run.
pub(crate) fn unusual_format(device: tch::Device) -> Option<FloatFormat> {
    let [convolutions, _] = c2r_kernels::precision(device);
    is_unusual(device.is_cuda(), convolutions).then_some(convolutions)
}

fn is_unusual(on_gpu: bool, convolutions: FloatFormat) -> bool {
    convolutions != if on_gpu { FloatFormat::Tf32 } else { FloatFormat::Fp32 }
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
        precision: precision(device),
    }
}

/// Opens or creates the folder for a run of `stage` with `config`, which makes the file `main` there.
///
/// # Errors
/// Those of [`Run::open`], with what to do about them.
pub(crate) fn open(
    path: &Path,
    (stage, main): (&'static str, &'static str),
    config: Value,
    device: tch::Device,
    force: bool,
) -> anyhow::Result<(Run, Status)> {
    let plan = Plan { stage, config, environment: environment(device), outputs: Vec::new(), main: Some(main) };
    let (run, status) = Run::open(Place::folder(path), plan, force, || discard(path)).map_err(|error| {
        let (code, advice) = match error {
            RunError::Busy { .. } => (exit::USAGE, "wait for it, or choose another --run-dir"),
            RunError::Unreadable { .. } => (exit::UNEXPECTED, "delete it, or choose another --run-dir"),
            RunError::Different { .. } => (exit::USAGE, "choose another --run-dir, or discard the run with --force"),
            RunError::OtherCommand { .. } => (exit::USAGE, "choose another --run-dir, or delete this folder"),
            other => return other.into(),
        };
        exit::coded(code, with_advice(error, advice))
    })?;
    remove_parts(&path.join(PICTURES))?;
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

/// Deletes what a run wrote: the files we know, nothing else.
fn discard(path: &Path) -> Result<(), FileError> {
    WRITTEN.iter().try_for_each(|name| remove_if_present(&path.join(name)))?;
    let pictures = path.join(PICTURES);
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
    use super::*;

    #[test]
    fn the_default_format_is_not_part_of_a_run() {
        let unusual =
            |on_gpu| [FloatFormat::Fp32, FloatFormat::Tf32, FloatFormat::Bf16].map(|format| is_unusual(on_gpu, format));
        assert_eq!(unusual(true), [true, false, true]);
        assert_eq!(unusual(false), [false, true, true]);
        assert_eq!(unusual_format(tch::Device::Cpu), None);
    }
}
