//! `c2r attack` from the outside, on the embedded digits.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

use c2r_base::{Seed, artifact::TensorFile};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::wait_for_writes;

/// A small network after a few steps of training: right now and then, and quick.
fn checkpoint_in(folder: &Path) -> String {
    trained_in(folder, "ConvNet-D3-W8-IN", "length={steps=60}")
}

fn trained_in(folder: &Path, model: &str, length: &str) -> String {
    let run_dir = folder.join("run").display().to_string();
    let words = ["train", "--dataset", "digits", "--model", model, "--set", length];
    let how = ["--device", "cpu", "--threads", "1", "--quiet", "--run-dir", &run_dir];
    let output = Command::new(env!("CARGO_BIN_EXE_c2r")).args(words).args(how).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    format!("{run_dir}/model.safetensors")
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

const DIGITS: [&str; 4] = ["--dataset", "digits", "--eps", "0.1"];

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
    // What is attacked may be guessed at, and `clean` asks for no gradient.
    assert!(again["flags"].as_array().unwrap().is_empty(), "{again}");
    let notes = again["notes"].to_string();
    assert!(notes.contains("has images that fgsm,pgd,square attacked") && !notes.contains("guessing"), "{notes}");
    // The command is done: it says the same without computing, and the run folder stands for its network.
    assert_eq!(json(&attack(&checkpoint, &words)), result);
    let run_dir = folder.path().join("run").display().to_string();
    assert_eq!(json(&attack(&run_dir, &words)), result);
    let none = attack(&folder.path().display().to_string(), &words);
    assert_eq!(none.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&none.stderr).contains("has no model.safetensors"), "{none:?}");
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
    assert_eq!(record.notes[0], "digits: 100 of 359 test images, class-balanced sample, seed 0");
    let samples = record.samples.as_ref().unwrap();
    let test = c2r_data::load("digits", None).unwrap().test;
    let positions = samples.positions.as_ref().unwrap();
    assert!(positions.iter().zip(&samples.labels).all(|(&at, &label)| test.labels()[at] == label as i64));
    assert!((0..10).all(|class| samples.labels.iter().filter(|&&label| label == class).count() == 10));
    assert!(record.attacks[0].survivors <= record.attacks[1].survivors);

    let output = folder.path().join("held-out.json");
    let held_out =
        with(&["--attack", "fgsm", "--each", "--held-out-after", "100", "--output", output.to_str().unwrap()]);
    assert!(attack(&checkpoint, &held_out).status.success());
    let held_out = c2r_eval::AttackRecord::read(&output).unwrap();
    // The digits have 1438 training images, at least 139 in each of ten classes.
    assert!(held_out.held_out && !record.held_out);
    assert_eq!(held_out.n, 438);
    assert!(held_out.notes[0].contains("not on test images"), "{:?}", held_out.notes);
    // The network was trained on all of them. One that was trained on the first 100 of each class has no such note.
    let is_doubted = |record: &c2r_eval::AttackRecord| record.notes.iter().any(|note| note.contains("NOT held out"));
    assert!(is_doubted(&held_out) && !is_doubted(&record), "{:?}", held_out.notes);
    let run = folder.path().join("apart");
    let words = ["train", "--dataset", "digits", "--train-per-class", "100", "--set", "length={steps=2}", "--quiet"];
    let trained = Command::new(env!("CARGO_BIN_EXE_c2r")).args(words).arg("--run-dir").arg(&run).output().unwrap();
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
    let apart = run.join("model.safetensors");
    for (n, expected) in [("99", true), ("100", false), ("101", false)] {
        let output = folder.path().join(format!("apart-{n}.json"));
        let words = ["--attack", "fgsm", "--each", "--held-out-after", n, "--output", output.to_str().unwrap()];
        assert!(attack(apart.to_str().unwrap(), &with(&words)).status.success());
        let record = c2r_eval::AttackRecord::read(&output).unwrap();
        assert_eq!(is_doubted(&record), expected, "{n}: {:?}", record.notes);
    }
    assert_ne!(held_out.test_sha256, record.test_sha256);
    // Of the training images after the 100th of each class, which are 39 to 46 a class, the same number of each.
    let output = folder.path().join("few.json");
    let few = ["--held-out-after", "100", "--n-test", "50", "--output", output.to_str().unwrap()];
    assert!(attack(&checkpoint, &with(&[&["--attack", "fgsm", "--each"][..], &few].concat())).status.success());
    let few = c2r_eval::AttackRecord::read(&output).unwrap();
    assert!(few.notes[1].contains("50 of 438 held-out training images, class-balanced"), "{:?}", few.notes);
    let labels = few.samples.unwrap().labels;
    assert!((0..10).all(|class| labels.iter().filter(|&&label| label == class).count() == 5), "{labels}");
    let none = attack(&checkpoint, &with(&["--attack", "fgsm", "--held-out-after", "2000"]));
    let said = String::from_utf8_lossy(&none.stderr);
    assert!(none.status.code() == Some(2) && said.contains("no class of digits has more than 2000"), "{said}");
}

/// A file that is sorted by class: its first 20 images are of one class.
#[test]
fn a_part_of_a_sorted_file_holds_every_class_and_says_which_images() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_in(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let test = c2r_data::load("digits", None).unwrap().test;
    let sorted: Vec<usize> = (0..3).flat_map(|class| test.class_positions(class)[..30].to_vec()).collect();
    let sorted = test.select(&sorted).to_labelled();
    let mut inputs = TensorFile::default();
    inputs.tensors.insert("images".to_owned(), sorted.images().shallow_clone());
    inputs.tensors.insert("labels".to_owned(), sorted.labels().shallow_clone());
    inputs.write(file("sorted.safetensors").as_ref()).unwrap();
    let run = |name: &str, n: &str, more: &[&str]| {
        let (inputs, output, save) = (file("sorted.safetensors"), file(name), file("adversarial.safetensors"));
        let words = ["--inputs", &inputs, "--eps", "0.1", "--attack", "pgd", "--n-test", n];
        let to = ["--output", &output, "--save", &save, "--force"];
        let result = attack(&checkpoint, &[&words[..], &to, more].concat());
        assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
        let record = c2r_eval::AttackRecord::read_any(output.as_ref()).unwrap();
        (record, TensorFile::read(save.as_ref()).unwrap(), String::from_utf8_lossy(&result.stdout).into_owned())
    };
    let (record, saved, said) = run("20.json", "20", &[]);
    assert!(said.contains("20 of 90 images of the file, class-balanced sample, seed 0"), "{said}");
    let samples = record.samples.unwrap();
    // The order that Python draws: crates/c2r-data/tests/it/splits.rs.
    let drawn = [40, 65, 0, 41, 67, 13, 36, 84, 7, 25, 88, 46, 14, 78, 38, 6, 63, 33, 2, 51];
    assert_eq!(samples.positions.as_ref().unwrap().to_vec(), drawn);
    assert_eq!(samples.labels.to_vec(), drawn.map(|position| position / 30));
    assert_eq!(Vec::<i64>::try_from(&saved.tensors["positions"]).unwrap(), drawn.map(|position| position as i64));
    // The smaller sample is the beginning of the larger one: also its noise is the same.
    let outcomes = |record: &c2r_eval::AttackRecord<_>| record.attacks[0].survived.clone().unwrap().to_vec();
    let (larger, ..) = run("40.json", "40", &[]);
    assert_eq!(outcomes(&larger)[..20], record.attacks[0].survived.clone().unwrap().to_vec());
    let (first, saved, said) = run("first.json", "20", &["--subset", "first"]);
    assert!(said.contains("the first 20 of 90 images of the file"), "{said}");
    assert!(first.samples.unwrap().labels.iter().all(|&label| label == 0));
    assert_eq!(Vec::<i64>::try_from(&saved.tensors["positions"]).unwrap(), (0..20).collect::<Vec<i64>>());
    let (all, saved, _) = run("all.json", "90", &[]);
    assert!(all.subset.is_none() && all.samples.unwrap().positions.is_none());
    assert!(!saved.tensors.contains_key("positions"));
}

/// Numbers of attacks that ran one after the other are not those of attacks judged by themselves, and say so.
#[test]
fn what_is_left_so_far_is_no_accuracy_of_one_attack_and_short_steps_are_doubtful() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained_in(folder.path(), "ConvNet-D2-W16-IN", "length={steps=80}");
    let said = |more: &[&str]| {
        let words = ["--attack", "fgsm,pgd", "--n-test", "100", "--set", "pgd.step-size=0.1/255"];
        let output = attack(&checkpoint, &with(&[&words[..], more].concat()));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let output = folder.path().join("report.json").display().to_string();
    let together = said(&["--output", &output]);
    assert!(
        together.contains("left so far") && together.contains("--each judges every attack by itself"),
        "{together}"
    );
    assert!(!together.contains(" accuracy ") && !together.contains("doubtful"), "{together}");
    let again = said(&["--output", &output]);
    assert!(again.contains("--each judges every attack by itself"), "{again}");
    let each = said(&["--each"]);
    assert!(each.contains(" accuracy ") && !each.contains("left so far"), "{each}");
    assert!(each.contains("doubtful: `fgsm` breaks") && each.contains("than `pgd` in 10 steps"), "{each}");
}

/// Of a network that is there, and of one that is not trained yet.
#[test]
fn what_has_no_effect_and_what_is_not_there_is_said_before_the_attack() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_in(folder.path());
    let said = |checkpoint: &str, words: &[&str]| {
        let how = ["attack", "--checkpoint", checkpoint, "--device", "cpu", "--threads", "1", "--attack", "pgd"];
        let output =
            Command::new(env!("CARGO_BIN_EXE_c2r")).args(how).args(DIGITS).arg("--estimate").args(words).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let plain = said(&checkpoint, &["--set", "pgd.kappa=5", "--set", "pgd.loss=cw"]);
    assert!(plain.0 == Some(0) && !plain.1.contains("note: "), "{plain:?}");
    let idle = said(&checkpoint, &["--set", "pgd.kappa=5"]);
    assert!(idle.1.contains("note: pgd.kappa has no effect: it is the confidence of loss=cw"), "{idle:?}");
    for checkpoint in [checkpoint.as_str(), "later/model.safetensors"] {
        let many = said(checkpoint, &["--n-test", "999"]);
        assert!(many.1.contains("note: --n-test 999 is more than there are; 359 images will be attacked"), "{many:?}");
        let none = said(checkpoint, &["--held-out-after", "999"]);
        assert!(none.0 == Some(2) && none.1.contains("no class of digits has more than 999"), "{none:?}");
    }
}

#[test]
fn wrong_arguments_and_missing_files_have_their_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_in(folder.path());
    let code = |words: &[&str]| attack(&checkpoint, words).status.code();
    assert_eq!(code(&with(&["--attack", "fgsmm"])), Some(2));
    assert_eq!(code(&with(&["--attack", "deepfool", "--norm", "l1"])), Some(2));
    assert_eq!(code(&["--dataset", "digits", "--eps", "0", "--attack", "fgsm"]), Some(2));
    assert_eq!(code(&["--inputs", "absent.safetensors", "--eps", "0.1", "--attack", "fgsm"]), Some(3));
    assert_eq!(attack("absent", &with(&["--attack", "fgsm"])).status.code(), Some(3));

    // A checkpoint is no TorchScript model, and a suite's report no table cell: both say what to do instead.
    let mut mistaken = Command::new(env!("CARGO_BIN_EXE_c2r"));
    mistaken.args(["attack", "--model", &checkpoint, "--device", "cpu", "--attack", "fgsm"]).args(DIGITS);
    let mistaken = mistaken.output().unwrap();
    let said = String::from_utf8_lossy(&mistaken.stderr);
    assert!(mistaken.status.code() == Some(2) && said.contains("use --checkpoint"), "{said}");
    let suite = folder.path().join("suite/attack.json");
    let output = suite.display().to_string();
    assert_eq!(code(&with(&["--attack", "fgsm,pgd", "--n-test", "20", "--output", &output])), Some(0));
    let table = Command::new(env!("CARGO_BIN_EXE_c2r")).arg("table").arg(suite.parent().unwrap()).output().unwrap();
    let said = String::from_utf8_lossy(&table.stderr);
    assert!(table.status.code() == Some(3) && said.contains("made without `--each`"), "{said}");
}

/// Files that a user may have: what is wrong with them is said with the sample, and bytes are pixels.
#[test]
fn inputs_are_checked_and_bytes_are_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_in(folder.path());
    let digits = c2r_data::load("digits", None).unwrap().test.select(&(0..20).collect::<Vec<_>>()).to_labelled();
    let (images, labels) = (digits.images(), digits.labels());
    let path = folder.path().join("x.safetensors");
    let inputs = path.display().to_string();
    let attacked = |images: &Tensor, labels: &Tensor, batch_size: &str| {
        let mut file = TensorFile::default();
        file.tensors.insert("images".to_owned(), images.shallow_clone());
        file.tensors.insert("labels".to_owned(), labels.shallow_clone());
        file.write(&path).unwrap();
        let attacks = ["--attack", "pgd,apgd-ce,square", "--set", "square.queries=50", "--json"];
        let how = ["--inputs", &inputs, "--eps", "0.1", "--batch-size", batch_size];
        attack(&checkpoint, &[&attacks[..], &how].concat())
    };
    let with_pixel = |sample: i64, value: f64| {
        let changed = images.copy();
        let _ = changed.get(sample).get(0).get(1).get(2).fill_(value);
        changed
    };
    let with_label = |sample: i64, value: i64| {
        let changed = labels.copy();
        let _ = changed.get(sample).fill_(value);
        changed
    };
    for (images, labels, expected) in [
        (with_pixel(3, f64::NAN), labels.copy(), "sample 3 has a pixel that is not finite (NaN)"),
        (with_pixel(4, f64::INFINITY), labels.copy(), "sample 4 has a pixel that is not finite (inf)"),
        (with_pixel(5, 1.5), labels.copy(), "sample 5 has a pixel of 1.5, outside [0, 1]"),
        (with_pixel(6, -0.5), labels.copy(), "sample 6 has a pixel of -0.5, outside [0, 1]"),
        (images.copy(), with_label(7, 10), "sample 7 has label 10, outside 0..=9: the model has 10 outputs"),
        (images.copy(), with_label(8, -1), "sample 8 has label -1; labels start at 0"),
        (images.to_kind(Kind::Double), labels.copy(), "got Double; in Python, write images.float()"),
        (images.copy(), labels.to_kind(Kind::Int), "labels must be i64, got Int; in Python, write labels.long()"),
        (images.get(0), labels.copy(), "images must have shape [N, C, H, W], got [1, 8, 8]"),
        (images.copy(), labels.narrow(0, 0, 19), "labels must have shape [20], one per image, got [19]"),
        (images.narrow(0, 0, 0), labels.narrow(0, 0, 0), "there are no images"),
        (
            images.narrow(3, 0, 7),
            labels.copy(),
            "takes images of shape [1, 8, 8], not images of 1 channels and 8x7 pixels",
        ),
    ] {
        let output = attacked(&images, &labels, "128");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{expected}: {said}");
        assert!(said.contains(expected) && said.contains("x.safetensors"), "{expected}: {said}");
    }
    let results = |images: &Tensor, batch_size: &str| {
        let mut result = without_seconds(json(&attacked(images, labels, batch_size)));
        result.as_object_mut().unwrap().remove("inputs_sha256");
        result
    };
    let floats = results(images, "128");
    assert!(floats["robust_accuracy"].as_f64() < floats["clean_accuracy"].as_f64(), "{floats}");
    assert_eq!(results(&(images * 255.0).round().to_kind(Kind::Uint8), "128"), floats, "bytes are pixels times 255");
    let few = results(images, "3");
    for key in ["clean_accuracy", "robust_accuracy", "n", "flags"] {
        assert_eq!(few[key], floats[key], "{key} depends on the batch size");
    }
    let survivors = |result: &Value| {
        result["attacks"].as_array().unwrap().iter().map(|entry| entry["survivors"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(survivors(&few), survivors(&floats));
}

#[test]
fn nothing_is_replaced_that_it_did_not_write() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_in(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let network = std::fs::read(&checkpoint).unwrap();
    let refused = |words: &[&str], reason: &str| {
        let output = attack(&checkpoint, &with(words));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(reason), "{said}");
    };
    refused(&["--attack", "fgsm", "--output", &checkpoint], "is also the file of --checkpoint");
    refused(&["--attack", "fgsm", "--output", &file("a"), "--save", &file("a")], "name the same file");
    refused(&["--attack", "fgsm", "--save", &file("run")], "not a regular file");
    std::fs::write(file("notes.json"), "mine").unwrap();
    refused(&["--attack", "fgsm", "--output", &file("notes.json")], "--force replaces it");
    assert_eq!(std::fs::read(&checkpoint).unwrap(), network);
    assert_eq!(std::fs::read(file("notes.json")).unwrap(), b"mine");

    // What is finished is only believed while its files are there and as they were written.
    let (report, images) = (file("a.json"), file("a.safetensors"));
    let words = ["--attack", "fgsm,pgd", "--n-test", "60", "--output", &report, "--save", &images, "--json"];
    let first = json(&attack(&checkpoint, &with(&words)));
    let saved = std::fs::read(&images).unwrap();
    std::fs::remove_file(&images).unwrap();
    let again = json(&attack(&checkpoint, &with(&words)));
    assert_eq!(again["robust_accuracy"], first["robust_accuracy"]);
    assert_eq!(std::fs::read(&images).unwrap(), saved);
    let written: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(written["evaluation"]["model_sha256"], first["model_sha256"]);
    assert_eq!(written["evaluation"]["report"]["labels"].as_array().map(Vec::len), Some(60));
    assert!(written["argv"].as_array().unwrap().iter().any(|word| word == "fgsm,pgd"));
    std::fs::write(&report, "{}").unwrap();
    refused(&words, "was changed after it was written");
}

#[test]
fn a_changed_suite_and_a_guessing_model_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_in(folder.path());
    let notes = |words: &[&str]| {
        let result = json(&attack(&checkpoint, &with(&[words, &["--n-test", "60", "--json"]].concat())));
        result["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let changed = notes(&["--attack", "autoattack-standard", "--steps", "2", "--queries", "5"]);
    assert!(changed.iter().any(|note| note.contains("changed") && note.contains("steps=2, queries=5")), "{changed:?}");
    let member = notes(&["--attack", "autoattack-standard", "--steps", "2", "--set", "square.queries=5"]);
    assert!(member.iter().any(|note| note.contains("square.queries=5")), "{member:?}");
    for (words, reason) in [
        (&["--attack", "pgd,pgd"][..], "names `pgd` twice"),
        (&["--attack", "pgd", "--step-size", "2"], "write 2/255"),
        (&["--attack", "autoattack-standard", "--set", "autoattack-standard.foo=2"], "it has: "),
        (&["--attack", "pgd", "--set", "square.queries=5"], "neither in --attack"),
    ] {
        let output = attack(&checkpoint, &with(words));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(reason) && !said.contains("it has: none"), "{said}");
    }
    assert!(!notes(&["--attack", "paper-six"]).iter().any(|note| note.contains("changed")));

    let guesses = folder.path().join("guesses").display().to_string();
    let words = ["train", "--dataset", "digits", "--model", "ConvNet-D3-W8-IN", "--set", "length={steps=1}", "--set"];
    let how = ["lr=1e-9", "--device", "cpu", "--threads", "1", "--quiet", "--run-dir", &guesses];
    assert!(Command::new(env!("CARGO_BIN_EXE_c2r")).args(words).args(how).status().unwrap().success());
    let output = attack(&format!("{guesses}/model.safetensors"), &with(&["--attack", "fgsm"]));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("guessing among 10 classes"), "{said}");
}

#[cfg(unix)]
#[test]
fn an_interrupted_attack_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_in(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (whole, part) = (file("whole.safetensors"), file("part.safetensors"));
    let words = |save| {
        with(&[
            "--attack",
            "pgd,square",
            "--set",
            "square.queries=600",
            "--batch-size",
            "4",
            "--checkpoint-seconds",
            "0",
            "--json",
            "--save",
            save,
        ])
    };
    let whole_result = json(&attack(&checkpoint, &words(&whole)));
    let mut child = command(&checkpoint, &words(&part)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_writes(&folder.path().join("part.run.json"), 1, &mut child);
    // Not SIGINT, which stays ignored where the tests were started in the background.
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let stopped = child.wait_with_output().unwrap();
    assert_eq!(stopped.status.code(), Some(130), "{}", String::from_utf8_lossy(&stopped.stderr));
    assert!(folder.path().join("part.run.json").exists());
    let resumed = json(&attack(&checkpoint, &words(&part)));
    for key in ["clean_accuracy", "robust_accuracy", "n", "flags"] {
        assert_eq!(resumed[key], whole_result[key], "{key}");
    }
    assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&part).unwrap(), "the same images, byte for byte");
    assert!(!folder.path().join(".part.run.part").exists());
}

#[test]
fn a_resumed_attack_replaces_only_its_own_files() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_in(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let [report, mine, foreign] = ["report.json", "mine.safetensors", "foreign.safetensors"].map(file);
    let words = ["--attack", "fgsm,square", "--checkpoint-seconds", "0", "--output", &report, "--save"];
    let with_save = |save, more: &[&'static str]| attack(&checkpoint, &with(&[&words[..], &[save], more].concat()));
    let stopped = with_save(&mine, &["--set", "square.queries=1000000", "--time-limit", "3s"]);
    assert_eq!(stopped.status.code(), Some(124), "{}", String::from_utf8_lossy(&stopped.stderr));
    std::fs::write(&foreign, "precious").unwrap();
    let refused = with_save(&foreign, &["--set", "square.queries=1000000", "--time-limit", "3s"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("foreign.safetensors exists"), "{said}");
    assert_eq!(std::fs::read(&foreign).unwrap(), b"precious");
    // A file of the same name in another folder is not its own either.
    std::fs::create_dir(folder.path().join("other")).unwrap();
    let namesake = folder.path().join("other").join("mine.safetensors").display().to_string();
    std::fs::write(&namesake, "precious").unwrap();
    let refused = with_save(&namesake, &["--set", "square.queries=1000000", "--time-limit", "3s"]);
    assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
    assert_eq!(std::fs::read(&namesake).unwrap(), b"precious");
    // What it had written itself when it was killed.
    std::fs::write(&mine, "half").unwrap();
    let resumed = with_save(&mine, &["--set", "square.queries=1000000", "--time-limit", "2s"]);
    assert_eq!(resumed.status.code(), Some(124), "{}", String::from_utf8_lossy(&resumed.stderr));
}

#[test]
fn a_time_limit_stops_inside_a_long_batch() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_in(folder.path());
    let report = folder.path().join("report.json").display().to_string();
    // One batch of Square would take minutes.
    let words = ["--attack", "fgsm,square", "--set", "square.queries=1000000", "--checkpoint-seconds", "0"];
    let limit = ["--time-limit", "3s", "--output", &report];
    let said: Vec<String> = (0..10)
        .map(|_| {
            let stopped = attack(&checkpoint, &with(&[&words[..], &limit[..]].concat()));
            assert_eq!(stopped.status.code(), Some(124), "{}", String::from_utf8_lossy(&stopped.stderr));
            String::from_utf8_lossy(&stopped.stderr).into_owned()
        })
        .take_while(|said| {
            !said.contains("no batch was finished this time: allow more time, or use a smaller --batch-size")
        })
        .collect();
    // FGSM is finished the first time, and nothing more afterwards.
    assert!(said.len() < 10, "{said:?}");
    let path = folder.path().join("report.run.json");
    let read = || serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap();
    let mut record = read();
    assert!(record["state"].to_string().contains("square"), "{record}");
    // The record of a finished run whose report was deleted holds no state of the new one.
    record["status"] = "finished".into();
    record["state"] = Value::Null;
    std::fs::write(&path, record.to_string()).unwrap();
    let stopped = attack(&checkpoint, &with(&[&words[..], &limit[..]].concat()));
    assert!(String::from_utf8_lossy(&stopped.stderr).contains("the state is saved"));
    assert!(read()["state"].is_object(), "{}", read());
}

/// More images than there are, and a state before the first batch, from which there is nothing to go on.
#[test]
fn notes_say_what_happens() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_in(folder.path());
    let said = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_c2r"));
        command.args(["attack", "--checkpoint", &checkpoint, "--device", "cpu", "--threads", "1"]).args(with(words));
        String::from_utf8_lossy(&command.output().unwrap().stderr).into_owned()
    };
    let note = "note: --n-test 360 is more than there are; 359 images will be attacked";
    assert!(said(&["--attack", "clean", "--n-test", "360"]).contains(note), "{}", said(&["--attack", "clean"]));
    assert!(!said(&["--attack", "clean", "--n-test", "359"]).contains("note: --n-test"));

    let report = folder.path().join("report.json").display().to_string();
    let long = ["--set", "square.queries=1000000", "--time-limit", "3s", "--output", &report];
    let alone = [&["--attack", "square"][..], &long].concat();
    assert!(said(&alone).contains("the state is saved"));
    let again = said(&alone);
    assert!(again.contains("the state is saved") && !again.contains("resuming from"), "{again}");
    let after = [&["--attack", "clean,square", "--force"][..], &long].concat();
    assert!(said(&after).contains("the state is saved"));
    let again = said(&after.iter().copied().filter(|word| *word != "--force").collect::<Vec<_>>());
    assert!(again.contains("resuming from"), "{again}");
}

#[test]
fn more_training_images_than_there_are_get_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let train = |per_class: &str| {
        let words = ["train", "--dataset", "digits", "--train-per-class", per_class, "--set", "length={steps=2}"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_c2r"));
        command.args(words).arg("--run-dir").arg(folder.path().join(per_class));
        String::from_utf8_lossy(&command.output().unwrap().stderr).into_owned()
    };
    let note = "training images, so --train-per-class 2000 takes all";
    let said = train("2000");
    assert!(said.contains("note: no class has more than") && said.contains(note), "{said}");
    assert!(!train("100").contains("note: no class"));
}

/// A report without what a clock measured.
fn without_seconds(mut report: Value) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|name, _| !["seconds", "clean_seconds", "check_seconds"].contains(&name.as_str()));
                fields.values_mut().for_each(strip);
            }
            Value::Array(values) => values.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut report);
    report
}

/// kill -9 after a seeded number of saved states, in the attacks and between them, until one run gets through.
#[test]
fn a_killed_attack_goes_on_and_ends_with_the_same_files() {
    const MOST_KILLS: u64 = 6;
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint_in(folder.path());
    let file = |run: &str, name: &str| folder.path().join(run).join(name);
    let start = |run: &str| {
        let words = with(&["--attack", "pgd,apgd-ce,square", "--set", "square.queries=300", "--batch-size", "16"]);
        let mut command = command(&checkpoint, &words);
        command.args(["--n-test", "160", "--checkpoint-seconds", "0", "--json"]);
        command.arg("--output").arg(file(run, "attack.json")).arg("--save").arg(file(run, "adv.safetensors"));
        command
    };
    let whole = json(&start("whole").output().unwrap());

    let state = file("killed", "attack.run.json");
    let mut n_resumed = 0;
    for round in 0..MOST_KILLS {
        let mut child = start("killed").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for_writes(&state, 1 + Seed::new(5).child("kill", round).value() % 6, &mut child);
        child.kill().unwrap();
        if child.wait().unwrap().success() || file("killed", "attack.json").exists() {
            break;
        }
        n_resumed += 1;
    }
    assert!(n_resumed >= 1, "it was done before it could be killed");

    let resumed = json(&start("killed").output().unwrap());
    assert_eq!(without_seconds(resumed), without_seconds(whole), "the same object on stdout");
    let report = |run| {
        let mut report: Value = serde_json::from_slice(&std::fs::read(file(run, "attack.json")).unwrap()).unwrap();
        // The two differ in where they write.
        assert!(report.as_object_mut().unwrap().remove("argv").is_some());
        report
    };
    assert_eq!(without_seconds(report("killed")), without_seconds(report("whole")), "the same report");
    let saved = |run| std::fs::read(file(run, "adv.safetensors")).unwrap();
    assert!(saved("killed") == saved("whole"), "the same images, byte for byte");
    assert!(!file("killed", ".attack.run.part").exists(), "a finished run keeps no unfinished images");
}
