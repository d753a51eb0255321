//! Refusals that name their cause, so that the user knows what to change.

use c2r_eval::{AttackRecord, EvalError, Table, TableOptions};
use c2r_experiment::Subject;
use serde_json::json;

use crate::table::sources;

/// Sets of different parts of the training images: the numbers and not the hashes say what to change.
#[test]
fn other_numbers_of_training_images_are_named() {
    let mut sources = sources();
    sources[7].record.subject.data_sha256 = "0123456789abcdef".into();
    sources[7].record.subject.notes = vec![Subject::part_note(100, true)];
    let error = Table::build(&sources, &TableOptions::default()).unwrap_err();
    assert!(matches!(error, EvalError::TrainingData { other_number: true, .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("differ (ab, all images and 0123456789ab, the first 100 of each class)"), "{message}");
}

/// The cause that the file shows is the one that is named.
#[test]
fn what_makes_a_report_no_cell_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("attack.json");
    let why = |argv: &[&str], subject: serde_json::Value| {
        let report = json!({ "evaluation": {}, "subject": subject, "argv": argv });
        std::fs::write(&path, report.to_string()).unwrap();
        AttackRecord::read(&path).unwrap_err().to_string()
    };
    let known = || json!({ "method": "c2r" });
    for words in [&["c2r", "attack", "--inputs", "x.npz", "--each"][..], &["c2r", "attack", "--inputs=x.npz"]] {
        for subject in [known(), json!(null)] {
            let message = why(words, subject);
            assert!(message.contains("with `--inputs`") && !message.contains("--each"), "{message}");
        }
    }
    let message = why(&["c2r", "attack", "--each"], json!(null));
    assert!(message.contains("without `--ipc`") && !message.contains("--each"), "{message}");
    let message = why(&["c2r", "attack"], known());
    assert!(message.contains("without `--each`") && !message.contains("--ipc"), "{message}");
}
