//! `c2r attack` from the outside, on the embedded digits.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use c2r_base::{Seed, Subject};
use c2r_models::{Model, ModelInput, ModelSpec, checkpoint};
use serde_json::Value;

const SUBJECT: &str = r#"{"dataset":"digits","method":"full","profile":"","images_per_class":null,"distill_seed":null,
"train_seed":0,"protocol":"natural","model":"ConvNet-D3-W8-IN","n_images":1,"extra_storage":"","data_sha256":"ab",
"notes":[]}"#;

/// A network with random weights: right by luck, and quick.
fn checkpoint_in(folder: &Path) -> String {
    let spec = c2r_data::spec("digits").unwrap();
    let input = ModelInput {
        channels: spec.channels,
        height: spec.height,
        width: spec.width,
        n_classes: spec.classes.len() as i64,
        mean: spec.mean,
        std: spec.std,
    };
    let model = Model::new(&"ConvNet-D3-W8-IN".parse::<ModelSpec>().unwrap(), &input, Seed::new(1), tch::Device::Cpu);
    let subject: Subject = serde_json::from_str(SUBJECT).unwrap();
    let header = [("subject".to_owned(), serde_json::to_string(&subject).unwrap())].into();
    let path = folder.join("model.safetensors");
    checkpoint::save(&path, &model.unwrap(), header).unwrap();
    path.display().to_string()
}

fn command(checkpoint: &str, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_c2r"));
    command.args(["attack", "--checkpoint", checkpoint, "--device", "cpu", "--threads", "1", "--quiet"]).args(words);
    command
}

fn attack(checkpoint: &str, words: &[&str]) -> Output {
    command(checkpoint, words).output().unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A radius at which even the constant answer of random weights changes.
const DIGITS: [&str; 4] = ["--dataset", "digits", "--eps", "0.6"];

fn with<'a>(words: &[&'a str]) -> Vec<&'a str> {
    DIGITS.iter().copied().chain(words.iter().copied()).collect()
}

#[test]
fn what_is_saved_gives_the_same_accuracy() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_in(folder.path());
    let saved = folder.path().join("adv.safetensors").display().to_string();
    let words = with(&["--attack", "fgsm,pgd,square", "--queries", "20", "--json", "--save", &saved]);
    // `--queries` is an error for fgsm and pgd.
    let refused = attack(&checkpoint, &words);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("`fgsm` has no option `queries`"));

    let words = with(&["--attack", "fgsm,pgd,square", "--set", "square.queries=20", "--json", "--save", &saved]);
    let result = json(&attack(&checkpoint, &words));
    assert_eq!(result["attacks"].as_array().unwrap().len(), 3);
    assert!(result["robust_accuracy"].as_f64() < result["clean_accuracy"].as_f64(), "{result}");
    assert!(result["forward"].as_u64() > result["backward"].as_u64());
    let again = json(&attack(&checkpoint, &["--inputs", &saved, "--eps", "1/255", "--attack", "clean", "--json"]));
    assert_eq!(again["clean_accuracy"], result["robust_accuracy"]);
    // The command is done: it says the same without computing.
    assert_eq!(json(&attack(&checkpoint, &words)), result);
    let other = with(&["--attack", "fgsm", "--json", "--save", &saved]);
    let other = attack(&checkpoint, &other);
    assert_eq!(other.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&other.stderr).contains("attacks"), "{other:?}");
}

#[test]
fn a_report_for_tables() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_in(folder.path());
    let path = folder.path().join("attack.json");
    let output = path.display().to_string();
    let words = with(&["--attack", "fgsm,noise", "--each", "--n-test", "100", "--output", &output]);
    let result = attack(&checkpoint, &words);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    assert!(String::from_utf8_lossy(&result.stdout).contains("fgsm"));
    let record = c2r_eval::AttackRecord::read(&path).unwrap();
    assert_eq!((record.n, record.attacks.len()), (100, 2));
    assert!(record.notes[0].contains("first 100 of"), "{:?}", record.notes);
    assert!(record.attacks[0].survivors <= record.attacks[1].survivors);
}

#[test]
fn wrong_arguments_and_missing_files_have_their_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_in(folder.path());
    let code = |words: &[&str]| attack(&checkpoint, words).status.code();
    assert_eq!(code(&with(&["--attack", "fgsmm"])), Some(2));
    assert_eq!(code(&with(&["--attack", "deepfool", "--norm", "linf"])), Some(2));
    assert_eq!(code(&["--dataset", "digits", "--eps", "0", "--attack", "fgsm"]), Some(2));
    assert_eq!(code(&["--inputs", "absent.safetensors", "--eps", "0.1", "--attack", "fgsm"]), Some(3));
    assert_eq!(attack("absent", &with(&["--attack", "fgsm"])).status.code(), Some(3));
}

#[cfg(unix)]
#[test]
fn an_interrupted_attack_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_in(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (whole, part) = (file("whole.safetensors"), file("part.safetensors"));
    let words = |save| {
        with(&["--attack", "pgd,square", "--set", "square.queries=1500", "--batch-size", "4", "--json", "--save", save])
    };
    let whole_result = json(&attack(&checkpoint, &words(&whole)));
    let child = command(&checkpoint, &words(&part)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let stopped = child.wait_with_output().unwrap();
    assert_eq!(stopped.status.code(), Some(130), "{stopped:?}");
    assert!(folder.path().join("part.run.json").exists());
    let resumed = json(&attack(&checkpoint, &words(&part)));
    for key in ["clean_accuracy", "robust_accuracy", "n", "flags"] {
        assert_eq!(resumed[key], whole_result[key], "{key}");
    }
    assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&part).unwrap(), "the same images, byte for byte");
}
