//! Streams, signals, paths and texts as a shell, a scheduler and other people's files have them.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::pipe,
    os::unix::ffi::OsStrExt,
};

use tch::Tensor;

use super::*;

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// A pipe that nobody reads.
fn closed() -> std::io::PipeWriter {
    pipe().unwrap().1
}

#[test]
fn a_full_stdout_is_an_error_and_a_closed_one_is_quiet() {
    let commands: [&[&str]; 4] = [
        &["inspect", "digits"],
        &["distill", "--dataset", "digits", "--print-config"],
        &["doctor", "--json"],
        &["--help"],
    ];
    for words in commands {
        let output = c2r().args(words).stdout(full()).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
        assert!(said.contains("cannot write to stdout") && said.contains("No space left"), "{words:?}: {said}");
        let output = c2r().args(words).stdout(closed()).output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{words:?}");
    }
    // Whoever reads the lines of a long run has seen enough: it stops with its state.
    let (_guard, folder) = folder();
    let output = distill(&folder, 20_000, &["--json"]).stdout(closed()).output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(folder.join("state.safetensors").is_file());
}

#[test]
fn a_stderr_that_is_full_or_gone_costs_no_result() {
    let (_guard, folder) = folder();
    run(&mut distill(&folder.join("whole"), 20, &[]));
    for (name, stderr) in [("full", Stdio::from(full())), ("gone", Stdio::from(closed()))] {
        let run_dir = folder.join(name);
        let output = distill(&run_dir, 20, &["--verbose"]).stderr(stderr).output().unwrap();
        assert!(output.status.success(), "{name}: {:?}", output.status);
        assert_eq!(synthetic(&run_dir), synthetic(&folder.join("whole")), "{name}");
    }
    let output = c2r().args(["inspect", "no-such-thing"]).stderr(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "an error keeps its code");
}

#[test]
fn signals_that_were_ignored_stay_ignored() {
    let (_guard, folder) = folder();
    let inner = distill(&folder, 20_000, &["--checkpoint-every", "5"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP INT; exec \"$0\" \"$@\""]).arg(inner.get_program()).args(inner.get_args());
    let mut child = shell.env_remove("C2R_DATA").stderr(Stdio::piped()).spawn().unwrap();
    let state = folder.join("state.safetensors");
    wait_for_writes(&state, 1, &mut child);
    let kill = |signal: &str| run(Command::new("kill").args([signal, &child.id().to_string()]));
    kill("-HUP");
    kill("-INT");
    wait_for_writes(&state, 3, &mut child);
    assert!(child.try_wait().unwrap().is_none(), "it goes on");
    let kill = |signal: &str| run(Command::new("kill").args([signal, &child.id().to_string()]));
    // As GNU timeout does: the process, then its group.
    kill("-TERM");
    kill("-TERM");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("is saved in"), "{}", text(&output.stderr));
}

#[test]
fn paths_in_latin_1_work_in_options_and_records() {
    let (_guard, folder) = folder();
    let place = folder.join(OsStr::from_bytes(b"r\xe9sultats"));
    let run_dir = place.join("run");
    run(&mut distill(&run_dir, 3, &[]));
    let said = text(&run(&mut distill(&run_dir, 3, &[])).stderr);
    assert!(said.contains("is finished"), "{said}");
    let record: Value = serde_json::from_slice(&fs::read(run_dir.join("run.json")).unwrap()).unwrap();
    let words = record["argv"].as_array().unwrap();
    assert!(words.iter().any(|word| word.as_str().unwrap().contains(r"r\xE9sultats/run")), "{record}");

    let trained = place.join("trained");
    let mut train = c2r();
    train.args(["train", "--protocol", "natural", "--set", "length={steps=5}", "--threads", "1", "--synthetic"]);
    run(train.arg(&run_dir).arg("--run-dir").arg(&trained));
    for name in [&b"\xff.json"[..], b"\xfe.json"] {
        let mut attack = c2r();
        attack.args([
            "attack",
            "--dataset",
            "digits",
            "--eps",
            "32/255",
            "--attack",
            "fgsm",
            "--threads",
            "1",
            "--each",
        ]);
        attack.arg("--checkpoint").arg(trained.join("model.safetensors"));
        run(attack.arg("--output").arg(place.join(OsStr::from_bytes(name))));
    }
    let records = fs::read_dir(&place).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.as_bytes().ends_with(b".run.json")
    });
    assert_eq!(records.count(), 2, "two outputs have two records");

    // A folder of images, by the path and by the text that a record has for it.
    let images = place.join("bilder");
    for split in ["train", "test"] {
        for class in ["a", "b"] {
            let to = images.join(split).join(class);
            fs::create_dir_all(&to).unwrap();
            fs::copy(run_dir.join("synthetic.png"), to.join("0.png")).unwrap();
        }
    }
    let mut named = OsString::from("folder:");
    named.push(&images);
    let by_path = run(c2r().arg("inspect").arg(&named).arg("--json"));
    let as_text = c2r_files::path_to_text(&named).into_owned();
    assert!(as_text.contains(r"\xE9"), "{as_text}");
    let by_text = run(c2r().arg("inspect").arg(&as_text).arg("--json"));
    let found = |output: &Output| serde_json::from_slice::<Value>(&output.stdout).unwrap()["found"].clone();
    assert_eq!(found(&by_path), found(&by_text));
    run(c2r().arg("inspect").arg(&images));
    run(c2r().arg("inspect").arg(run_dir.join("synthetic.safetensors")));
    run(c2r().arg("table").arg(place.join(OsStr::from_bytes(b"\xff.json"))));
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let unset = run(c2r().args(["inspect", "digits", "--json"]));
    let empty = run(c2r().env("C2R_DATA", "").args(["inspect", "digits", "--json"]));
    assert_eq!(unset.stdout, empty.stdout);
    let (code, said) = fails(c2r().env("C2R_DATA", "").args(["distill", "--dataset", "cifar10", "--run-dir", "x"]));
    assert!(code == 3 && said.contains("no data folder was given"), "{code}: {said}");
}

#[test]
fn a_variable_asks_for_no_option() {
    let words = ["attack", "--model", "m.pt", "--inputs", "x.safetensors", "--attack", "pgd"];
    for data in [None, Some("data")] {
        let (code, said) = fails(c2r().envs(data.map(|data| ("C2R_DATA", data))).args(words));
        assert!(code == 2 && said.contains("--eps is missing") && !said.contains("--dataset"), "{code} {said}");
    }
}

#[test]
fn pipes_are_refused_and_never_waited_for() {
    let (_guard, folder) = folder();
    let fifo = folder.join("fifo");
    run(Command::new("mkfifo").arg(&fifo));
    let out = folder.join("out");
    let mut commands: Vec<Command> = (0..5).map(|_| c2r()).collect();
    commands[0].arg("inspect").arg(&fifo);
    commands[1].args(["import", "--dataset", "digits", "-o"]).arg(&out).arg(&fifo);
    commands[2].args(["export", "--to", "npz"]).arg(&fifo).arg(&out);
    commands[3].args(["attack", "--attack", "fgsm", "--eps", "0.1", "--dataset", "digits", "--model"]).arg(&fifo);
    commands[4].args(["table"]).arg(&fifo);
    for command in &mut commands {
        let (code, said) = fails(command);
        assert!(code == 3 && said.contains("pipe or a device"), "{command:?}: {code}: {said}");
    }
    // What would be replaced by a file stays what it is.
    let set = folder.join("run");
    run(&mut distill(&set, 2, &[]));
    let (_, said) = fails(c2r().args(["export", "--force", "--to", "npz"]).arg(&set).arg(&fifo));
    assert!(said.contains("pipe or a device"), "{said}");
    assert!(!fs::metadata(&fifo).unwrap().is_file());
}

/// Nothing but line ends may steer a terminal, and no line may look like one of ours.
fn is_safe(what: &str, output: &Output) {
    for stream in [&output.stdout, &output.stderr] {
        let said = text(stream);
        let active = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
        assert!(!said.contains(active), "{what}: {said:?}");
        assert!(!said.lines().any(|line| line.starts_with("looks wrong: forged")), "{what}: {said}");
    }
}

#[test]
fn nothing_from_a_file_reaches_a_terminal_as_it_is() {
    const HOSTILE: &str = "\u{1b}]0;x\u{7}\u{9b}31m\u{202e}\nlooks wrong: forged";
    let (_guard, folder) = folder();
    let place = folder.join(HOSTILE);
    fs::create_dir_all(&place).unwrap();
    let file = place.join("x.safetensors");
    let tensors = [(HOSTILE.to_owned(), Tensor::from_slice(&[1.0f32, f32::NAN]))].into();
    let header = [("dataset", HOSTILE), (HOSTILE, "x")].map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    TensorFile { header, tensors, ..TensorFile::default() }.write(&file).unwrap();
    for class in ["a", HOSTILE] {
        for split in ["train", "test"] {
            fs::create_dir_all(place.join("images").join(split).join(class)).unwrap();
            fs::write(place.join("images").join(split).join(class).join("0.png"), "no picture").unwrap();
        }
    }
    fs::write(place.join("attack.json"), format!("{{\"schema_version\": {HOSTILE:?}")).unwrap();
    fs::write(place.join("c.toml"), format!("base = '{}'", HOSTILE.replace('\n', ""))).unwrap();
    let commands: [(&str, &[&str], Option<&str>); 11] = [
        ("inspect", &[], Some("x.safetensors")),
        ("inspect", &["--json"], Some("x.safetensors")),
        ("inspect", &[], Some("attack.json")),
        ("inspect", &[], Some("images")),
        ("inspect", &[], Some("missing")),
        ("import", &["--dataset", "digits", "-o", "o.st"], Some("x.safetensors")),
        ("export", &["--to", "npz", "o.npz"], Some("x.safetensors")),
        ("table", &[], Some("")),
        ("attack", &["--attack", "fgsm", "--eps", "0.1", "--checkpoint", "x", "--inputs"], Some("x.safetensors")),
        ("distill", &["--dataset", "digits", "--run-dir", "r", "--config"], Some("c.toml")),
        ("distill", &["--dataset", HOSTILE, "--run-dir", "r"], None),
    ];
    for (command, words, named) in commands {
        let mut line = c2r();
        line.current_dir(&folder).arg(command).args(words).args(named.map(|name| place.join(name)));
        let output = line.output().unwrap();
        is_safe(&format!("{command} {words:?} {named:?}"), &output);
        assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
    }
    let json = run(c2r().arg("inspect").arg(&file).arg("--json"));
    let printed: Value = serde_json::from_slice(&json.stdout).unwrap();
    let name = &printed["found"][0]["tensors"][0]["name"];
    assert_eq!(name, HOSTILE, "JSON loses nothing: {printed}");
}
