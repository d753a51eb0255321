//! `c2r attack --model` and `c2r inspect` on models as people have them, written by Python
//! (`crates/c2r-models/tests/files/make.py`), for images of 1x8x8 pixels and 3 classes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use c2r_base::{Norm, artifact::TensorFile};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{c2r, distill, run, text};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../c2r-models/tests/files").join(name)
}

/// 32 images of noise, darker than 0.9, with the classes that `good.pt` gives them.
fn inputs() -> TensorFile {
    let images = (Tensor::arange(32 * 64, (Kind::Float, Device::Cpu)) * 0.618_034).frac().view([32, 1, 8, 8]) * 0.9;
    let good = tch::CModule::load(model("good.pt")).unwrap();
    let labels = good.forward_ts(&[&images]).unwrap().argmax(1, false);
    let mut file = TensorFile::default();
    file.tensors.insert("images".to_owned(), images);
    file.tensors.insert("labels".to_owned(), labels);
    file
}

/// A folder with the images in `x.safetensors`.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    inputs().write(&folder.path().join("x.safetensors")).unwrap();
    folder
}

fn attack(folder: &Path, name: &str, words: &[&str]) -> Output {
    let mut command = c2r();
    command.args(["attack", "--device", "cpu", "--threads", "1"]).arg("--model").arg(model(name)).args(words);
    if !words.contains(&"--inputs") {
        command.arg("--inputs").arg(folder.join("x.safetensors"));
    }
    command.output().unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs an attack that must end with `code` and these words on stderr.
fn fails(folder: &Path, name: &str, words: &[&str], code: i32, said: &[&str]) {
    let output = attack(folder, name, words);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{name} {words:?}: {stderr}");
    said.iter().for_each(|words| assert!(stderr.contains(words), "{name}: {stderr}\nlacks {words}"));
    assert!(!stderr.contains("panicked") && stderr.lines().count() <= 4, "{name}: {stderr}");
}

const PGD: [&str; 4] = ["--attack", "pgd", "--eps", "0.05"];

#[test]
fn models_that_misbehave_are_errors_that_say_what_to_write() {
    let folder = folder();
    for (name, said) in [
        ("squeeze.pt", &["for 1 image it returns Float [3]", ".flatten(1) instead of .squeeze()"][..]),
        ("fixed-batch.pt", &["takes 2 images at once, not 1 or 3", "torch.jit.script(model.eval())"]),
        ("one-output.pt", &["torch.cat([torch.zeros_like(z), z], 1)"]),
        ("classes.pt", &["return one logit for each class"]),
        ("half.pt", &["does not take images of 1 channels and 8x8 pixels", "call model.float()"]),
        ("double.pt", &["call model.float()"]),
        ("tuple.pt", &["return out[0]"]),
        ("dict.pt", &["return out[\"logits\"]"]),
        ("state-dict.pth", &["torch.save"]),
        ("legacy.pth", &["before torch 1.6"]),
        ("exported.pt2", &["torch.export"]),
        ("one-hot.pt", &["no gradient flows", "square, noise"]),
    ] {
        fails(folder.path(), name, &PGD, 3, said);
    }
}

#[test]
fn models_that_work_in_their_own_way_are_taken() {
    let folder = folder();
    let result = |name: &str, words: &[&str]| json(&attack(folder.path(), name, &[words, &["--json"]].concat()));
    let good = result("good.pt", &PGD);
    assert_eq!((good["clean_accuracy"].as_f64(), &good["flags"]), (Some(1.0), &Value::Array(vec![])));
    for name in ["in-place.pt", "cuda.pt", "root.pt"] {
        assert_eq!(result(name, &PGD)["robust_accuracy"], good["robust_accuracy"], "{name}");
    }
    let flags = |result: &Value| {
        let flags = result["flags"].as_array().unwrap();
        flags.iter().map(|flag| flag["flag"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(flags(&result("in-place.pt", &PGD)), ["changes-its-input"]);
    assert_eq!(flags(&result("mutating.pt", &PGD)), ["changes-its-input"]);
    assert_eq!(flags(&result("sigmoid.pt", &PGD)), ["probabilities-not-logits"]);
    assert_eq!(flags(&result("dropout.pt", &PGD)), ["randomized-model"]);
    assert!(flags(&result("own-mean.pt", &PGD)).is_empty());
    // Black-box attacks need no gradient.
    let square = ["--attack", "square", "--queries", "50", "--eps", "0.2"];
    let (one_hot, logits) = (result("one-hot.pt", &square), result("good.pt", &square));
    assert!(flags(&one_hot).contains(&"no-gradient".to_owned()), "{one_hot}");
    assert!(one_hot["robust_accuracy"].as_f64() < Some(1.0) && logits["robust_accuracy"].as_f64() < Some(1.0));
}

/// A program that reads `--json` gets JSON, whatever a model prints while it runs.
#[test]
#[cfg(unix)]
fn what_a_model_prints_is_not_among_the_results() {
    let folder = folder();
    let output = attack(folder.path(), "printing.pt", &[&PGD[..], &["--json"]].concat());
    let good = json(&attack(folder.path(), "good.pt", &[&PGD[..], &["--json"]].concat()));
    assert_eq!(json(&output)["robust_accuracy"], good["robust_accuracy"]);
    assert!(text(&output.stderr).lines().any(|line| line == "a batch"), "{}", text(&output.stderr));
    let output = run(c2r().arg("inspect").arg(model("printing.pt")).arg("--json"));
    assert_eq!(json(&output)["found"][0]["kind"], "torchscript");
}

/// What is saved is in the ball and gives the same accuracy, although the model writes into its images.
#[test]
fn saved_images_of_a_model_that_changes_them_are_those_that_it_was_given() {
    let folder = folder();
    let saved = folder.path().join("adv.safetensors");
    let result = json(&attack(
        folder.path(),
        "mutating.pt",
        &[&PGD[..], &["--json", "--save", saved.to_str().unwrap()]].concat(),
    ));
    let again = json(&attack(
        folder.path(),
        "mutating.pt",
        &["--inputs", saved.to_str().unwrap(), "--attack", "clean", "--eps", "0.01", "--json"],
    ));
    assert_eq!(again["clean_accuracy"], result["robust_accuracy"]);
    let images = |path: &Path| TensorFile::read(path).unwrap().tensors.remove("images").unwrap();
    let moved = Norm::Linf.distance(&images(&saved), &images(&folder.path().join("x.safetensors")));
    assert!(moved.max().double_value(&[]) <= 0.05 + 1e-6);
}

/// `root.pt` is `good.pt` with gradients that are NaN where a pixel is 0.
#[test]
fn nan_in_gradients_is_flagged_or_an_error_about_gradients() {
    let folder = folder();
    let mut file = inputs();
    let _ = file.tensors["images"].narrow(2, 0, 1).narrow(3, 0, 1).fill_(0.0);
    let good = tch::CModule::load(model("good.pt")).unwrap();
    let labels = good.forward_ts(&[&file.tensors["images"]]).unwrap().argmax(1, false);
    file.tensors.insert("labels".to_owned(), labels);
    file.write(&folder.path().join("x.safetensors")).unwrap();
    for (attack_name, norm, eps) in [
        ("mi-fgsm", "linf", "0.05"),
        ("deepfool", "linf", "0.05"),
        ("pgd", "l2", "0.5"),
        ("apgd-ce,fab,square", "l2", "0.5"),
    ] {
        let words = ["--attack", attack_name, "--norm", norm, "--eps", eps, "--json"];
        let short: &[&str] = if attack_name.contains("square") { &["--set", "square.queries=20"] } else { &[] };
        let [root, good] =
            ["root.pt", "good.pt"].map(|name| json(&attack(folder.path(), name, &[&words[..], short].concat())));
        let notes = root["flag_notes"].to_string();
        assert!(notes.contains("the gradient has values that are NaN or infinite"), "{attack_name}: {notes}");
        let apart = root["robust_accuracy"].as_f64().unwrap() - good["robust_accuracy"].as_f64().unwrap();
        assert!(apart.abs() <= 0.07, "{attack_name}: {apart}");
    }
    let said = ["outside [0, 1], where `ni-fgsm` takes a gradient", "images.clamp(0, 1)"];
    fails(folder.path(), "root.pt", &["--attack", "ni-fgsm", "--eps", "0.05"], 3, &said);
}

/// 128/255 of an image of 64 pixels is short; 128, eight times the longest way between two images.
#[test]
fn a_radius_in_255ths_is_refused_in_every_norm_with_advice_that_is_right() {
    let folder = folder();
    for (norm, eps, said) in [
        ("linf", "8", &["--eps 8 is too large", "at most 1 apart in linf", "write 8/255"][..]),
        ("l2", "128", &["--eps 128 is too large", "1x8x8", "at most 8 apart in l2", "write 128/255"]),
        ("l1", "3000", &["at most 64 apart in l1", "write 3000/255"]),
        ("l2", "3000", &["choose a smaller one"]),
        ("linf", "300/255", &["choose a smaller one"]),
    ] {
        fails(folder.path(), "good.pt", &["--attack", "fgsm", "--norm", norm, "--eps", eps], 2, said);
    }
    let wide = json(&attack(folder.path(), "good.pt", &["--attack", "fgsm", "--norm", "l2", "--eps", "4", "--json"]));
    assert!(wide["notes"].to_string().contains("turns every image into plain grey"), "{wide}");
    let usual =
        json(&attack(folder.path(), "good.pt", &["--attack", "fgsm", "--norm", "l2", "--eps", "128/255", "--json"]));
    assert_eq!(usual["notes"], Value::Array(vec![]));
}

/// `1.0000001` is what `x * std + mean` gives for white.
#[test]
fn rounding_above_one_and_tensors_beside_are_taken() {
    let folder = folder();
    let path = folder.path().join("x.safetensors");
    let plain = json(&attack(folder.path(), "good.pt", &[&PGD[..], &["--json"]].concat()));
    let file = inputs();
    let _ = file.tensors["images"].get(5).get(0).get(0).get(0).fill_(f64::from(1.0f32.next_up()));
    file.write(&path).unwrap();
    let rounded = json(&attack(folder.path(), "good.pt", &[&PGD[..], &["--json"]].concat()));
    assert!(rounded["notes"].to_string().contains("1 value outside [0, 1] by less than 1e-6"), "{rounded}");
    let _ = file.tensors["images"].get(5).get(0).get(0).get(0).fill_(1.01);
    file.write(&path).unwrap();
    fails(folder.path(), "good.pt", &PGD, 3, &["sample 5 has a pixel of 1.0"]);

    // The same file with one tensor more, or with another dtype: 256 bytes are 32 labels or 256 truth values.
    let with = |tensor: &str, dtype: &str| {
        let bytes = inputs().to_bytes();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let end = bytes.len() - 8 - length;
        match header.get_mut(tensor) {
            Some(tensor) => (tensor["dtype"], tensor["shape"]) = (dtype.into(), vec![256].into()),
            None => {
                header[tensor] = serde_json::json!({"dtype": dtype, "shape": [32], "data_offsets": [end, end + 32]})
            }
        }
        let end = end + if header.get("labels").is_some_and(|labels| labels["dtype"] == "BOOL") { 0 } else { 32 };
        let header = header.to_string();
        let mut body = bytes[8 + length..].to_vec();
        body.resize(end, 1);
        fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &body].concat()).unwrap();
    };
    for (tensor, dtype) in [("mask", "BOOL"), ("weights", "F8_E4M3")] {
        with(tensor, dtype);
        let beside = json(&attack(folder.path(), "good.pt", &[&PGD[..], &["--json"]].concat()));
        assert_eq!(beside["robust_accuracy"], plain["robust_accuracy"]);
        let said = text(&c2r().arg("inspect").arg(&path).output().unwrap().stdout);
        let said: String = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(&format!("{tensor} {dtype} [32]; a dtype that c2r does not read")), "{said}");
    }
    with("labels", "BOOL");
    fails(folder.path(), "good.pt", &PGD, 3, &["x.safetensors: tensor `labels` has dtype BOOL [256]; c2r reads"]);
}

/// `bright.pt` raises an error on pixels above 0.99: only an attack makes such images.
#[test]
fn what_had_finished_before_a_failure_is_kept() {
    let folder = folder();
    let report = folder.path().join("report.json");
    let output = attack(
        folder.path(),
        "bright.pt",
        &["--attack", "clean,square", "--eps", "0.2", "--output", report.to_str().unwrap()],
    );
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("ValueError: too bright") && said.contains("during `square`"), "{said}");
    assert!(said.contains("finished before the failure") && said.contains("100.00 % left"), "{said}");
    assert!(output.stdout.is_empty() && !report.exists(), "a report is of the whole evaluation");
    let record: Value = serde_json::from_slice(&fs::read(folder.path().join("report.run.json")).unwrap()).unwrap();
    assert!(record.to_string().contains("\"attack\":\"clean\""), "{record}");
}

/// A held lock ends every command with the same exit code.
#[test]
fn a_run_that_another_process_works_on_is_refused_with_the_same_code_by_every_command() {
    let folder = folder();
    let (run_dir, report) = (folder.path().join("run"), folder.path().join("a.json"));
    let _run = c2r_run::Lock::acquire(&run_dir.join(".lock")).unwrap().unwrap();
    let _report = c2r_run::Lock::acquire(&folder.path().join("a.run.lock")).unwrap().unwrap();
    let mut distill = distill(&run_dir, 1, &[]);
    let mut train = c2r();
    train.args(["train", "--dataset", "digits", "--protocol", "natural", "--set", "length={steps=1}", "--run-dir"]);
    train.arg(&run_dir);
    let mut attack = c2r();
    attack.args(["attack", "--attack", "fgsm", "--eps", "0.1", "--model"]).arg(model("good.pt"));
    attack.arg("--inputs").arg(folder.path().join("x.safetensors")).arg("--output").arg(&report);
    for command in [&mut distill, &mut train, &mut attack] {
        let (code, said) = super::fails(command);
        assert!(code == 2 && said.contains("another process is working on"), "{command:?}: {code} {said}");
    }
}

#[test]
fn inspect_says_what_is_wrong_with_a_model() {
    let inspected = |name: &str| {
        let output = c2r().arg("inspect").arg(model(name)).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{name}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    assert_eq!(inspected("cuda.pt").replace("cuda.pt", "good.pt"), inspected("good.pt"));
    for (name, said) in [
        ("squeeze.pt", "looks wrong: for images of 1 channels and 8x8 pixels, for 1 image it returns Float [3]"),
        ("fixed-batch.pt", "looks wrong: for images of 1 channels and 8x8 pixels, it takes 2 images at once"),
        ("half.pt", "looks wrong: its parameters are Half"),
    ] {
        let shown = inspected(name);
        assert!(shown.contains(said), "{name}: {shown}");
    }
}

/// A network of c2r as a TorchScript model: the same outcome for every image, and a row in one table with itself.
#[test]
fn a_foreign_model_is_a_row_beside_networks_of_c2r() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    run(&mut distill(&at("set"), 2, &[]));
    let mut train = c2r();
    train.args(["train", "--model", "ConvNet-D2-W8-IN", "--threads", "1", "--set", "length={steps=20}"]);
    run(train.arg("--synthetic").arg(at("set")).arg("--run-dir").arg(at("ours")));
    run(c2r().arg("export").arg(at("ours")).args(["--to", "torchscript"]).arg(at("net.pt")));

    let of_digits = |attack: &str| {
        let mut command = c2r();
        command.args(["attack", "--dataset", "digits", "--eps", "32/255", "--threads", "1", "--attack", attack]);
        command
    };
    let theirs = |attack: &str, more: &[&str]| {
        let mut command = of_digits(attack);
        command.arg("--model").arg(at("net.pt")).args(more);
        command
    };
    fs::create_dir(at("theirs")).unwrap();
    let output = at("theirs/attack.json").to_str().unwrap().to_owned();
    let row =
        ["--ipc", "1", "--method", "mine", "--protocol", "natural", "--model-name", "ConvNet-D2-W8-IN", "--output"];
    // One attack by itself needs no --each.
    run(theirs("fgsm", &row).arg(&output));
    let mut ours = of_digits("fgsm");
    ours.args(["--each", "--checkpoint"]).arg(at("ours/model.safetensors"));
    run(ours.arg("--output").arg(at("ours/attack.json")));
    let read = |path: &str| -> Value { serde_json::from_slice(&fs::read(at(path)).unwrap()).unwrap() };
    let [ours, foreign] = ["ours/attack.json", "theirs/attack.json"].map(read);
    assert_eq!(foreign["attacks"][0]["survived"], ours["attacks"][0]["survived"]);
    assert_eq!(foreign["samples"]["clean"], ours["samples"]["clean"]);
    assert!(foreign["subject"]["notes"].to_string().contains("not trained by c2r: net.pt"), "{foreign}");

    let table = text(&run(c2r().arg("table").arg(at("ours")).arg(at("theirs"))).stdout);
    assert!(table.contains("mine") && table.contains("c2r"), "{table}");
    assert_eq!(table.matches("ConvNet-D2-W8-IN").count(), 1, "one section: {table}");

    // The same network under another architecture's name is in a table of its own, unless both are to be in one.
    fs::create_dir(at("other")).unwrap();
    let renamed = row.map(|word| if word == "ConvNet-D2-W8-IN" { "Other" } else { word });
    run(theirs("fgsm", &renamed).arg(at("other/attack.json")));
    let tables = |more: &[&str]| {
        let mut command = c2r();
        command.arg("table").arg(at("ours")).arg(at("other")).args(["--baseline", "mine"]).args(more);
        text(&run(&mut command).stdout)
    };
    let apart = tables(&[]);
    assert_eq!(apart.matches("digits, natural training\n").count(), 2, "{apart}");
    let together = tables(&["--across-networks"]);
    assert_eq!(together.matches("digits, natural training\n").count(), 1, "{together}");
    for row in ["mine, Other", "c2r, ConvNet-D2-W8-IN", "several networks; attacks"] {
        assert!(together.contains(row), "{row}: {together}");
    }

    // Two networks that call themselves the same are told apart by what made their reports.
    fs::create_dir(at("twice")).unwrap();
    let mut twice = c2r();
    twice.args(["attack", "--dataset", "digits", "--eps", "32/255", "--threads", "1", "--attack", "fgsm"]).args(row);
    let mut seed = c2r();
    seed.args(["train", "--model", "ConvNet-D2-W8-IN", "--threads", "1", "--set", "length={steps=20}", "--seed", "1"]);
    run(seed.arg("--synthetic").arg(at("set")).arg("--run-dir").arg(at("second")));
    run(c2r().arg("export").arg(at("second")).args(["--to", "torchscript"]).arg(at("second.pt")));
    run(twice.arg(at("twice/attack.json")).arg("--model").arg(at("second.pt")));
    let (code, said) = super::fails(c2r().arg("table").arg(at("theirs")).arg(at("twice")));
    assert!(code == 2 && said.contains("different networks under one name"), "{code} {said}");
    assert!(said.contains("`c2r attack --method NAME`") && said.contains("--train-seed N"), "{said}");
    assert!(!said.contains("import"), "{said}");

    // Another name is another row, and is not taken for the one that is there.
    let renamed = theirs("fgsm", &row).args([output.as_str(), "--train-seed", "1"]).output().unwrap();
    assert!(renamed.status.code() == Some(2) && text(&renamed.stderr).contains("row"), "{}", text(&renamed.stderr));
    let several = theirs("fgsm,pgd", &row).arg(&output).output().unwrap();
    assert!(several.status.code() == Some(2) && text(&several.stderr).contains("add --each"), "{several:?}");
    let without = theirs("fgsm", &["--output"]).arg(at("plain.json")).output().unwrap();
    assert!(text(&without.stderr).contains("--ipc"), "{}", text(&without.stderr));
    for name in ["net.pt", "ours/model.safetensors"] {
        let flag = if name == "net.pt" { "--model" } else { "--checkpoint" };
        let mut estimate = of_digits("autoattack-standard");
        let said = text(&run(estimate.args(["--estimate", flag]).arg(at(name))).stdout);
        assert!(said.starts_with("about ") && !said.contains("in training"), "{said}");
    }
}
