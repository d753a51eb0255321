//! What is written beside a finished command, so that the next `reproduce` need not start it again.

use std::{fs, io::Read, path::Path, time::Duration};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::plan::Step;

/// A finished command.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    schema_version: u32,
    /// The arguments that decide the result.
    what: Vec<String>,
    /// SHA-256 over `what` and the contents of the input files.
    fingerprint: String,
    /// Wall-clock time.
    seconds: f64,
}

const SCHEMA_VERSION: u32 = 1;

/// SHA-256 over what decides the result of `step`: its arguments and the contents of its inputs.
///
/// # Errors
/// If an input cannot be read.
pub(crate) fn fingerprint(step: &Step) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    for word in &step.what {
        hash.update((word.len() as u64).to_le_bytes());
        hash.update(word);
    }
    for input in &step.inputs {
        hash.update(hash_of_file(input).with_context(|| format!("cannot read {}", input.display()))?);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn hash_of_file(path: &Path) -> std::io::Result<[u8; 32]> {
    let mut file = fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            length => hash.update(&buffer[..length]),
        }
    }
}

/// Whether `step` was finished with the same arguments and inputs, and its outputs are still there.
pub(crate) fn is_finished(step: &Step) -> bool {
    let Ok(text) = fs::read(&step.record) else { return false };
    let Ok(record) = serde_json::from_slice::<Record>(&text) else { return false };
    record.schema_version == SCHEMA_VERSION
        && step.outputs.iter().all(|output| output.is_file())
        && fingerprint(step).is_ok_and(|now| now == record.fingerprint)
}

/// Writes that `step` is finished.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn write(step: &Step, took: Duration) -> anyhow::Result<()> {
    let record = Record {
        schema_version: SCHEMA_VERSION,
        what: step.what.clone(),
        fingerprint: fingerprint(step)?,
        seconds: took.as_secs_f64(),
    };
    let fresh = step.record.with_extension("json.part");
    let mut text = serde_json::to_string_pretty(&record)?;
    text.push('\n');
    fs::write(&fresh, text)
        .and_then(|()| fs::rename(&fresh, &step.record))
        .with_context(|| format!("cannot write {}", step.record.display()))
}

#[cfg(test)]
mod tests {
    use super::{
        super::plan::{Cell, Stage},
        *,
    };

    #[test]
    fn finished_means_same_arguments_same_inputs_and_outputs_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let mut step = Step {
            cell: Cell { dataset: "digits".into(), ipc: Some(1), method: "c2r".into(), seed: 0 },
            stage: Stage::Distill,
            needs: None,
            what: vec!["distill".into(), "--ipc".into(), "1".into()],
            how: vec![],
            inputs: vec![file("profile")],
            outputs: vec![file("synthetic")],
            log: file("log"),
            record: file("record.json"),
        };
        fs::write(file("profile"), "eta = 0.4").unwrap();
        fs::write(file("synthetic"), "x").unwrap();
        assert!(!is_finished(&step));
        write(&step, Duration::from_secs(1)).unwrap();
        assert!(is_finished(&step));

        step.how.push("--threads=2".into());
        assert!(is_finished(&step), "threads do not decide the result");
        step.what[2] = "10".into();
        assert!(!is_finished(&step));
        step.what[2] = "1".into();
        fs::write(file("profile"), "eta = 0.6").unwrap();
        assert!(!is_finished(&step));
        fs::write(file("profile"), "eta = 0.4").unwrap();
        assert!(is_finished(&step));
        fs::remove_file(file("synthetic")).unwrap();
        assert!(!is_finished(&step));
    }

    #[test]
    fn words_do_not_run_together() {
        let step = |what: &[&str]| Step {
            cell: Cell { dataset: String::new(), ipc: None, method: String::new(), seed: 0 },
            stage: Stage::Distill,
            needs: None,
            what: what.iter().map(|word| (*word).to_owned()).collect(),
            how: vec![],
            inputs: vec![],
            outputs: vec![],
            log: "log".into(),
            record: "record".into(),
        };
        assert_ne!(fingerprint(&step(&["ab", "c"])).unwrap(), fingerprint(&step(&["a", "bc"])).unwrap());
    }
}
