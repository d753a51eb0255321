//! The `c2r` command as a person uses it: separate processes, real files, exit codes.

mod attack;
mod elsewhere;
mod folders;
#[cfg(unix)]
mod long_runs;
mod models;
mod origins;
mod own_files;
#[cfg(unix)]
mod pages;
mod precision;
mod rates;
mod sets;
mod state_dicts;
#[cfg(unix)]
mod streams;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use c2r_base::artifact::TensorFile;
use serde_json::Value;

/// Keys that make a distillation of the digits take a second or two.
const SMALL: [&str; 8] = [
    "model=ConvNet-D2-W8-IN",
    "pool.trajectories=1",
    "pool.snapshots=2",
    "pool.min-steps=5",
    "pool.max-steps=10",
    "pool.batch-size=32",
    "matching.real-per-class=6",
    "crl.queue.per-class=8",
];

fn c2r() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_c2r"));
    command.env_remove("C2R_DATA").stdin(Stdio::null());
    command
}

fn distill(run_dir: &Path, iterations: u32, more: &[&str]) -> Command {
    let mut command = c2r();
    command.args([
        "distill",
        "--dataset",
        "digits",
        "--ipc",
        "1",
        "--seed",
        "7",
        "--iterations",
        &iterations.to_string(),
    ]);
    command.args(SMALL.iter().flat_map(|set| ["--set", set])).arg("--run-dir").arg(run_dir);
    if !more.contains(&"--threads") {
        command.args(["--threads", "1"]);
    }
    command.args(more);
    command
}

/// Judges the network in the run folder `trained` on the digits, each attack by itself, into `output` there.
fn attack(trained: &Path, attacks: &str, output: &str) -> Command {
    let mut command = c2r();
    command.args(["attack", "--dataset", "digits", "--eps", "32/255", "--each", "--threads", "1", "--attack", attacks]);
    command.arg("--checkpoint").arg(trained.join("model.safetensors")).arg("--output").arg(trained.join(output));
    command
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", text(&output.stderr));
    output
}

/// Runs a command that must fail; returns its exit code and what it said.
fn fails(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{command:?} must fail");
    (output.status.code().expect("it was not killed"), text(&output.stderr))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn synthetic(run_dir: &Path) -> Vec<u8> {
    fs::read(run_dir.join("synthetic.safetensors")).unwrap()
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    (folder, path)
}

/// Returns when `file` was written `n` times since the call, or the child has ended.
fn wait_for_writes(file: &Path, n: u64, child: &mut Child) {
    let written = || fs::metadata(file).and_then(|data| data.modified()).ok();
    let (begun, mut last, mut seen) = (Instant::now(), written(), 0);
    while seen < n && child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(120), "{} is not written", file.display());
        std::thread::sleep(Duration::from_millis(1));
        let now = written();
        seen += u64::from(now != last);
        last = now;
    }
}

/// The first example of the README, shorter: nothing but the dataset has to be said.
#[test]
fn the_embedded_digits_need_no_settings() {
    let (_guard, folder) = folder();
    let mut command = c2r();
    command.args([
        "distill",
        "--dataset",
        "digits",
        "--ipc",
        "1",
        "--iterations",
        "3",
        "--seed",
        "7",
        "--threads",
        "1",
    ]);
    run(command.args(["--checkpoint-every", "20", "--run-dir"]).arg(&folder));
    assert!(folder.join("synthetic.safetensors").exists() && folder.join("synthetic.png").exists());
}

#[test]
fn two_processes_write_the_same_bytes() {
    let (_guard, folder) = folder();
    for name in ["a", "b"] {
        run(&mut distill(&folder.join(name), 20, &[]));
    }
    assert_eq!(synthetic(&folder.join("a")), synthetic(&folder.join("b")));
}

#[test]
fn another_thread_count_changes_only_the_rounding() {
    let (_guard, folder) = folder();
    run(&mut distill(&folder.join("one"), 5, &["--threads", "1"]));
    run(&mut distill(&folder.join("two"), 5, &["--threads", "2"]));
    let images = |name: &str| {
        TensorFile::read(&folder.join(name).join("synthetic.safetensors")).unwrap().tensors["images"].shallow_clone()
    };
    let difference = (images("one") - images("two")).abs().max().double_value(&[]);
    assert!(difference < 1e-4, "{difference}");
}

#[cfg(unix)]
#[test]
fn signals_save_the_state_and_exit_with_130() {
    let (_guard, folder) = folder();
    let mut child = distill(&folder, 20_000, &["--checkpoint-every", "5"]).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_writes(&folder.join("state.safetensors"), 1, &mut child);
    // A terminal and a scheduler may each send a signal: that is one request, and the state is saved.
    run(Command::new("sh").args(["-c", "kill -INT $0; kill -TERM $0; kill -INT $0", &child.id().to_string()]));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("is saved in"), "{}", text(&output.stderr));
}

/// A tenth of a second is too short for any state. The later limits are longer, so that the run ends on any machine.
#[test]
fn time_limits_save_the_state_exit_with_124_and_change_no_byte() {
    let (_guard, folder) = folder();
    let (limited, whole) = (folder.join("limited"), folder.join("whole"));
    let code_of = |limit: &str| {
        let output = distill(&limited, 300, &["--time-limit", limit]).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let (code, said) = code_of("100ms");
    assert!(code == Some(124) && said.contains("the time limit is over"), "{said}");
    let last = (1..).map(|seconds| code_of(&format!("{seconds}s"))).find(|(code, _)| *code != Some(124)).unwrap();
    assert_eq!(last.0, Some(0), "{}", last.1);
    run(&mut distill(&whole, 300, &[]));
    assert_eq!(synthetic(&limited), synthetic(&whole));
    let (code, said) = fails(&mut distill(&folder.join("other"), 300, &["--time-limit", "0s"]));
    assert!(code == 2 && said.contains("longer than 0 s"), "{said}");
}

#[test]
fn a_finished_run_says_so_and_another_configuration_is_refused() {
    let (_guard, folder) = folder();
    run(&mut distill(&folder, 3, &[]));
    let before = synthetic(&folder);
    let said = text(&run(&mut distill(&folder, 3, &[])).stderr);
    assert!(said.contains("is finished"), "{said}");
    let (code, said) = fails(&mut distill(&folder, 4, &[]));
    assert_eq!(code, 2);
    assert!(said.contains("distill.iterations is 3 there and 4 here") && said.contains("--force"), "{said}");
    assert_eq!(synthetic(&folder), before, "a refused run changes nothing");
    run(&mut distill(&folder, 4, &["--force"]));
    assert_ne!(synthetic(&folder), before);
}

/// What the study found for the weight of the loss (docs/method.md), and whose word counts more.
#[test]
fn the_weight_of_the_loss_follows_images_per_class_dataset_profile_and_command() {
    let weights = |dataset: &str, config: &str, more: &[&str]| {
        let mut command = c2r();
        command.args(["distill", "--dataset", dataset, "--config", config, "--print-config"]).args(more);
        let printed: toml::Table = text(&run(&mut command).stdout).parse().unwrap();
        let number = |key: &str| printed["objective"][key].as_float().unwrap();
        (number("weight"), number("robust-weight"))
    };
    assert_eq!(weights("cifar10", "faithful", &["--ipc", "10"]), (1.0, 6.0));
    assert_eq!(weights("cifar10", "class-mean", &["--ipc", "50"]), (1.0, 6.0));
    assert_eq!(weights("cifar10", "faithful", &["--ipc", "1"]), (5.0, 1.0));
    assert_eq!(weights("digits", "faithful", &["--ipc", "10"]), (5.0, 1.0));
    assert_eq!(weights("cifar10", "plus", &["--ipc", "10"]), (5.0, 1.0));
    assert_eq!(weights("cifar10", "rome", &["--ipc", "10"]).0, 40.0);
    assert_eq!(weights("cifar10", "faithful", &["--set", "objective.weight=2.0"]), (2.0, 6.0));
}

#[test]
fn an_option_and_its_key_are_not_given_together() {
    let print = ["distill", "--dataset", "digits", "--print-config", "--set", "ipc=5"];
    run(c2r().args(print));
    let (code, said) = fails(c2r().args(print).args(["--ipc", "10"]));
    assert!(code == 2 && said.contains("give --ipc or --set ipc=, not both"), "{code} {said}");
    // And they take the same values.
    let printed: toml::Table = text(&run(c2r().args(print).args(["--eps", "0"])).stdout).parse().unwrap();
    assert_eq!(printed["threat"]["epsilon"].as_str(), Some("0"));
}

/// The set, not the command, says how soft a teacher's labels are.
#[test]
fn a_teachers_temperature_reaches_the_training() {
    let (_guard, folder) = folder();
    let train = |set: &Path, network: &Path| {
        let mut train = c2r();
        train.args(["train", "--model", "ConvNet-D2-W8-IN", "--threads", "1", "--set", "length={steps=5}"]);
        train.arg("--synthetic").arg(set.join("synthetic.safetensors")).arg("--run-dir").arg(network);
        train
    };
    let distilled = |temperature: &str| {
        let set = folder.join(temperature);
        let temperature = format!("teacher.temperature={temperature}");
        let more = ["--set", "labels=teacher", "--set", "teacher.steps=10", "--set", &temperature];
        run(&mut distill(&set, 2, &more));
        set
    };
    let trained = |set: &Path| {
        let network = set.join("natural");
        run(&mut train(set, &network));
        TensorFile::read(&network.join("model.safetensors")).unwrap().tensors["classifier.weight"].shallow_clone()
    };
    let (own, softer) = (distilled("1.0"), distilled("6.0"));
    let (of_own, of_softer) = (trained(&own), trained(&softer));
    assert!(of_own.size() == of_softer.size() && of_own != of_softer);
    // Without its teacher a distillation is not finished, and one with another teacher is not its own.
    let again = || {
        let more = ["--set", "labels=teacher", "--set", "teacher.steps=10", "--set", "teacher.temperature=6.0"];
        distill(&softer, 2, &more)
    };
    let teacher = softer.join("teacher.safetensors");
    let written = fs::read(&teacher).unwrap();
    fs::write(&teacher, &written[1..]).unwrap();
    let (code, said) = fails(&mut again());
    assert!(code == 3 && said.contains("teacher.safetensors was changed after it was written"), "{code} {said}");
    fs::remove_file(&teacher).unwrap();
    run(&mut again());
    assert_eq!(fs::read(&teacher).unwrap(), written);
    // The images are the same; what labels them is not, so a run folder of one does not take the other.
    let images =
        |set: &Path| TensorFile::read(&set.join("synthetic.safetensors")).unwrap().tensors["images"].shallow_clone();
    assert_eq!(images(&own), images(&softer));
    let (code, said) = fails(&mut train(&softer, &own.join("natural")));
    assert!(code == 2 && said.contains("images_sha256 is"), "{said}");
}

#[test]
fn from_images_to_a_table() {
    let (_guard, folder) = folder();
    run(&mut distill(&folder.join("distill"), 3, &[]));
    let set = folder.join("distill/synthetic.safetensors");
    let trained = folder.join("pgd-at");
    let train = || {
        let mut command = c2r();
        command.args(["train", "--protocol", "pgd-at", "--seed", "3", "--model", "ConvNet-D2-W8-IN", "--threads", "1"]);
        command.args(["--set", "length={steps=20}", "--set", "adversarial.steps=1"]);
        command.arg("--synthetic").arg(&set).arg("--run-dir").arg(&trained);
        command
    };
    run(&mut train());
    assert!(text(&run(&mut train()).stderr).contains("is finished"));
    let report = trained.join("attack.json");
    run(attack(&trained, "fgsm,pgd", "attack.json").args(["--n-test", "60"]));
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert_eq!(report["subject"]["method"], "c2r");
    assert_eq!(report["subject"]["protocol"], "pgd-at");
    assert_eq!(report["subject"]["n_images"], 10);

    let table = run(c2r().args(["table", "--format", "csv"]).arg(&folder));
    let table = text(&table.stdout);
    let row = table.lines().find(|line| line.contains(",clean,")).expect("a line for clean accuracy");
    let clean = 100.0 * report["clean_accuracy"].as_f64().unwrap();
    let place = table.lines().next().unwrap().split(',').position(|name| name == "mean").unwrap();
    let mean: f64 = row.split(',').nth(place).unwrap().parse().unwrap();
    assert!((mean - clean).abs() < 1e-9, "{mean} instead of {clean}");
    assert_eq!(table.lines().filter(|line| line.contains(",margin-q50-pgd,")).count(), 1, "{table}");

    let page = folder.join("out/report.html");
    let tex = folder.join("out/report.tex");
    run(c2r().arg("report").arg(&folder).arg("-o").arg(&page).arg("-o").arg(&tex));
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("<!DOCTYPE html>") && page.contains("data:image/png;base64,iVBOR"), "no page or no picture");
    assert!(page.contains("c2r distill --dataset digits") || page.contains(" distill --dataset digits"), "no command");
    assert!(fs::read_to_string(tex).unwrap().contains("\\toprule"));
    // Far from a published number: all is written, marked, and the exit code says so; at another scale it is only shown.
    let experiment = folder.join("far.toml");
    let published = if clean < 50.0 { 100.0 } else { 0.0 };
    let scale = "about = \"x\"\nmethods = [\"c2r\"]\ndatasets = [\"digits\"]\nipcs = [1]\nseeds = [3]\nprotocols = [\"pgd-at\"]\n\
                 attacks = [\"fgsm\", \"pgd\"]\nnorm = \"linf\"\nepsilons = [\"32/255\"]\n";
    let text_of = format!(
        "schema_version = 2\nname = \"far\"\ntitle = \"Far\"\nsource = \"nobody\"\ntolerance = 2.0\n\
         [methods.c2r]\nlabel = \"C2R\"\nkind = \"distill\"\nprofile = \"p.toml\"\n\
         [scales.paper]\n{scale}[scales.quick]\n{scale}\
         [[published]]\ndataset = \"digits\"\nipc = 1\nmethod = \"c2r\"\ncolumn = \"clean\"\nprotocol = \"pgd-at\"\nvalue = {published:.1}\nsource = \"x\"\n"
    );
    fs::write(&experiment, text_of).unwrap();
    let far = |command: &str, scale: &str, flag: &str, to: &str| {
        let mut far = c2r();
        far.arg(command).arg(&folder).arg("--experiment").arg(&experiment).args(["--scale", scale, flag]);
        far.arg(folder.join("far").join(to)).output().unwrap()
    };
    for (command, flag, to, written) in
        [("table", "--output-dir", "", "far/table.md"), ("report", "-o", "far.html", "far/far.html")]
    {
        assert_eq!(far(command, "quick", flag, to).status.code(), Some(0), "{command}");
        fs::remove_file(folder.join(written)).unwrap();
        let output = far(command, "paper", flag, to);
        assert_eq!(output.status.code(), Some(4), "{command}");
        let said = text(&output.stderr);
        assert!(said.contains("farther than 2 points") && said.contains("digits pgd-at ipc 1 c2r clean"), "{said}");
        assert!(fs::read_to_string(folder.join(written)).unwrap().contains(" !"), "{command}: the number is marked");
    }

    let (code, said) = fails(c2r().arg("report").arg(&folder).args(["-o", "report.pdf"]));
    assert!(code == 2 && said.contains(".html"), "{code} {said}");
}

/// The step that is kept: the last one, or one chosen on training or on test images, which is then said everywhere.
#[test]
fn a_chosen_step_is_marked_in_every_output() {
    let (_guard, folder) = folder();
    let train = |select: &str, steps: &str| {
        let mut command = c2r();
        command.args(["train", "--dataset", "digits", "--train-per-class", "5", "--model", "ConvNet-D2-W8-IN"]);
        command.args(["--threads", "1", "--json", "--set", steps, "--select-every", "5", "--select", select]);
        command.arg("--run-dir").arg(folder.join(select));
        command
    };
    let summary = |select: &str| -> Value {
        serde_json::from_slice(&run(&mut train(select, "length={steps=40}")).stdout).unwrap()
    };
    assert_eq!(summary("last")["selected"], Value::Null);
    let (held_out, best_test) = (summary("held-out"), summary("best-test"));
    assert_eq!(held_out["selected"]["by"], "held-out");
    let digits = |select: &str, output: &str| text(&run(&mut attack(&folder.join(select), "fgsm", output)).stdout);
    let said = digits("best-test", "attack.json");
    assert!(said.contains("best-test: the step was chosen on the TEST images"), "{said}");
    assert!(digits("held-out", "attack.json").contains("test images were not used"));
    let report = |select: &str| -> Value {
        serde_json::from_slice(&fs::read(folder.join(select).join("attack.json")).unwrap()).unwrap()
    };
    let report_of_best = report("best-test");
    assert_eq!(report_of_best["subject"]["selection"], "best-test");
    // The network that was kept is the one that the test images liked best.
    assert_eq!(report_of_best["clean_accuracy"], best_test["selected"]["accuracy"]);
    assert_eq!(report("held-out")["subject"]["n_images"], 40, "of 50 images a tenth of each class is kept aside");
    for kind in ["table", "report"] {
        let mut command = c2r();
        command.arg(kind).arg(&folder);
        let file = folder.join("out.html");
        if kind == "report" {
            command.arg("-o").arg(&file);
        }
        let said = text(&run(&mut command).stdout) + &fs::read_to_string(&file).unwrap_or_default();
        assert!(said.contains("step chosen on the TEST images (best-test: optimistic)"), "{said}");
        assert!(said.contains("step chosen on held-out training images"), "{said}");
    }
    let (code, said) = fails(train("best", "length={steps=40}").arg("--force"));
    assert!(code == 2 && said.contains("held-out"), "{code} {said}");
}

#[test]
fn the_protocols_are_files_and_can_be_printed() {
    for protocol in ["natural", "dd-robustbench", "pgd-at", "trades"] {
        let mut command = c2r();
        command.args(["train", "--dataset", "digits", "--protocol", protocol, "--print-config"]);
        let printed: toml::Table = text(&run(&mut command).stdout).parse().unwrap();
        assert_eq!(printed["lr"].as_float(), Some(0.05), "that of full data");
        assert_eq!(printed.contains_key("adversarial"), ["pgd-at", "trades"].contains(&protocol));
    }
    let mut natural = c2r();
    natural.args(["train", "--dataset", "digits", "--protocol", "natural", "--print-config"]);
    let (code, said) = fails(natural.args(["--set", "adversarial.steps=3"]));
    assert!(
        code == 2 && said.contains("--set adversarial.steps: the protocol natural does not train on"),
        "{code} {said}"
    );
    let (code, said) = fails(c2r().args(["train", "--run-dir", "x"]));
    assert!(code == 2 && said.contains("--synthetic") && said.contains("--dataset"), "{code} {said}");
    let (code, said) = fails(c2r().args(["attack", "--eps", "2/255", "--attack", "fgsm", "--dataset", "digits"]));
    assert!(code == 2 && said.contains("--model") && said.contains("--checkpoint"), "{code} {said}");
}

#[test]
fn mistakes_have_an_exit_code_and_say_what_to_do() {
    let (_guard, folder) = folder();
    let run_dir = folder.join("run");
    let (code, said) = fails(&mut distill(&run_dir, 3, &["--set", "objective.etta=0.5"]));
    assert!(code == 2 && said.contains("--set objective.etta=0.5: "), "{code} {said}");
    assert!(said.contains("did you mean `objective.eta`?") && !said.contains("line"), "{said}");
    let (code, said) = fails(&mut distill(&run_dir, 3, &["--set", "objective.eta=7"]));
    assert!(code == 2 && said.contains("objective.eta must be in [0, 1], got 7"), "{code} {said}");
    // Of noise, as many images can be made as the memory holds, where the system says how much it has.
    let noise = ["--set", "ipc=2147483647", "--set", "images.init=\"noise\"", "--run-dir"];
    if cfg!(target_os = "linux") {
        let (code, said) = fails(c2r().args(["distill", "--dataset", "digits"]).args(noise).arg(&run_dir));
        assert!(code == 2 && said.contains("64 values each, take 5497558136320 bytes, and this machine has"), "{said}");
    }
    assert!(!run_dir.exists(), "a refused configuration leaves no folder");
    let (code, said) = fails(c2r().args(["distill", "--dataset", "mnist", "--run-dir"]).arg(&run_dir));
    assert!(code == 2 && said.contains("mnist") && said.contains("cifar10"), "{code} {said}");
    let data = folder.join("nothing-here");
    fs::create_dir(&data).unwrap();
    let (code, said) =
        fails(c2r().args(["distill", "--dataset", "cifar10", "--run-dir"]).arg(&run_dir).arg("--data").arg(&data));
    assert!(code == 3 && said.contains("cifar-10-batches-bin") && said.contains("--data"), "{code} {said}");
    let (code, said) = fails(c2r().args(["distill", "--dataset", "digits", "--eps", "8/0", "--run-dir"]).arg(&run_dir));
    assert!(code == 2 && said.contains("8/0") && said.contains("2/255"), "{code} {said}");
    let cut = folder.join("cut.safetensors");
    fs::write(&cut, b"not a synthetic set").unwrap();
    let (code, said) = fails(c2r().args(["train", "--run-dir"]).arg(&run_dir).arg("--synthetic").arg(&cut));
    assert!(code == 3 && said.contains("cut.safetensors"), "{code} {said}");
}

/// A whole cell is foreseen before any of it exists: a set by the command that makes it, a network by its training.
#[test]
fn times_of_commands_whose_inputs_do_not_exist_are_estimated() {
    let (_guard, folder) = folder();
    let file = folder.join("commands");
    let lines = [
        r#"["distill", "--dataset", "digits", "--ipc", "10", "--iterations", "50", "--run-dir", "a"]"#,
        r#"["train", "--synthetic", "a/synthetic.safetensors", "--run-dir", "b", "--set", "length={epochs=10}"]"#,
        r#"["train", "--synthetic", "a", "--run-dir", "b", "--set", "length={epochs=1000}"]"#,
        r#"["attack", "--checkpoint", "b/model.safetensors", "--dataset", "digits", "--attack", "pgd", "--eps", "0.1"]"#,
        r#"["attack", "--checkpoint", "c/model.safetensors", "--dataset", "digits", "--attack", "pgd", "--eps", "0.1"]"#,
        r#"["table", "b"]"#,
        r#"["attack", "--checkpoint", "b/model.safetensors", "--dataset", "digits", "--attack", "pgd", "--eps", "0.1", "--n-test", "999"]"#,
        r#"["attack", "--checkpoint", "b/model.safetensors", "--dataset", "digits", "--attack", "pgd", "--eps", "0.1", "--held-out-after", "999"]"#,
    ];
    fs::write(&file, lines.join("\n")).unwrap();
    let speeds = folder.join("speeds.json");
    let estimate = || {
        let mut command = c2r();
        command.arg("estimate").arg(&file).args(["--threads", "1", "--speeds"]).arg(&speeds);
        let said = text(&run(&mut command).stdout);
        said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let answers = estimate();
    assert_eq!(answers.len(), lines.len());
    let seconds: Vec<f64> = answers[..4].iter().map(|answer| answer["seconds"].as_f64().unwrap()).collect();
    assert!(seconds.iter().all(|seconds| *seconds > 0.0));
    assert!((seconds[2] / seconds[1] - 100.0).abs() < 1e-6, "{seconds:?}");
    assert!(answers[4]["error"].as_str().unwrap().contains("c/model.safetensors"), "{}", answers[4]);
    assert!(answers[5]["error"].as_str().unwrap().contains("only distill, train and attack"), "{}", answers[5]);
    // As many as there are, and none.
    assert_eq!(answers[6]["seconds"], answers[3]["seconds"]);
    assert_eq!(answers[6]["note"], "--n-test 999 is more than there are; 359 images will be attacked");
    let none = "--held-out-after 999: digits has 143 training images of each class";
    assert!(answers[3].get("note").is_none() && answers[7]["error"] == none, "{} {}", answers[3], answers[7]);
    assert_eq!(estimate(), answers, "what was measured is not measured again");
    // Another machine: 400 images are 100 a second there; the network that it does not know is named.
    fs::write(&file, lines[1]).unwrap();
    let measured = folder.join("there.json");
    let speed = r#"{"forward": 400, "input_gradient": 200, "training": 100, "batch_size": 1}"#;
    let known = |network: &str| format!(r#"{{"about": "x", "images_per_second": {{"{network}": {speed}}}}}"#);
    fs::write(folder.join("commands"), [lines[0], lines[1]].join("\n")).unwrap();
    let there = |network: &str| {
        fs::write(&measured, known(network)).unwrap();
        let said = text(&run(c2r().arg("estimate").arg(&file).arg("--measured").arg(&measured)).stdout);
        serde_json::from_str::<Value>(said.lines().last().unwrap()).unwrap()
    };
    assert_eq!(there("ConvNet-D2-W32-IN on [1, 8, 8], 10 classes")["seconds"], 10.0, "ten epochs of 100 images");
    // A ninth of the multiplications: 8 x 8 x 9 x 32 without the second block's 4 x 4 x 9 x 32 x 32.
    let scaled = there("ConvNet-D1-W32-IN on [1, 8, 8], 10 classes");
    assert!((scaled["seconds"].as_f64().unwrap() - 90.0).abs() < 1e-9, "{scaled}");
    let both = "ConvNet-D2-W32-IN on [1, 8, 8], 10 classes from ConvNet-D1-W32-IN on [1, 8, 8], 10 classes";
    assert_eq!(scaled["scaled"], both);
    let reason = there("ConvNet-D2-W8-IN on [1, 8, 8], 10 classes")["error"].to_string();
    assert!(
        reason.contains("no speed of ConvNet-D2-W32-IN on [1, 8, 8]") && reason.contains("it has ConvNet-D2-W8-IN")
    );
    fs::write(&file, "distill").unwrap();
    let (code, said) = fails(c2r().arg("estimate").arg(&file));
    assert!(code == 2 && said.contains("line 1 is not a JSON array"), "{code} {said}");
}

#[test]
fn an_estimate_is_a_line_for_people_and_an_object_for_programs() {
    let estimate = |more: &[&str]| {
        let mut command = c2r();
        command.args(["--threads", "1", "distill", "--dataset", "digits", "--ipc", "1", "--iterations", "3"]);
        text(&run(command.arg("--estimate").args(more)).stdout)
    };
    let said = estimate(&[]);
    assert!(said.starts_with("about ") && said.contains(" here (CPU, 1 thread); images per second: "), "{said}");
    let object: Value = serde_json::from_str(&estimate(&["--json"])).unwrap();
    assert!(object["seconds"].as_f64().unwrap() > 0.0 && object["work"]["forward"].as_f64().unwrap() > 0.0);
}

#[test]
fn every_command_has_help_with_examples() {
    for command in
        ["distill", "train", "attack", "table", "report", "estimate", "import", "export", "inspect", "doctor"]
    {
        let said = text(&run(c2r().args([command, "--help"])).stdout);
        assert!(said.contains("Examples:") && said.contains(&format!("c2r {command} ")), "{command}: {said}");
    }
}

#[test]
fn doctor_says_what_it_found() {
    let said = text(&run(c2r().args(["doctor", "--json"])).stdout);
    let found: Value = serde_json::from_str(&said).unwrap();
    assert!(found.as_object().is_some_and(|found| found.len() > 3), "{said}");
    assert!(said.contains("2.11"), "{said}");
}

#[test]
fn options_that_do_nothing_are_refused_or_said() {
    for option in [["--set", "images.lr=0.1"], ["--write", "update.safetensors"]] {
        let refused = c2r().args(["doctor", "--profile", "train", "--n", "8"]).args(option).output().unwrap();
        let said = text(&refused.stderr);
        assert!(refused.status.code() == Some(2) && said.contains("it goes with --profile distill"), "{said}");
    }
    let train =
        |more: &[&str]| text(&run(c2r().args(["train", "--dataset", "digits", "--print-config"]).args(more)).stderr);
    let note = "--held-out-part has no effect without --select held-out";
    assert!(train(&["--held-out-part", "0.2"]).contains(note));
    assert!(!train(&["--held-out-part", "0.2", "--select", "held-out"]).contains(note));
    let distill = |more: &[&str]| {
        text(&run(c2r().args(["distill", "--dataset", "digits", "--ipc", "2", "--print-config"]).args(more)).stderr)
    };
    let note = "note: images.batch-per-class has no effect: ";
    assert!(distill(&["--set", "images.batch-per-class=99"]).contains(note));
    assert!(!distill(&["--set", "images.batch-per-class=1"]).contains(note));
    let note = "note: experts.epochs has no effect: a student follows no epoch after";
    assert!(distill(&["--config", "mtt", "--set", "experts.epochs=99"]).contains(note));
    assert!(!distill(&["--config", "mtt"]).contains(note));
}
