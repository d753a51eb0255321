//! Whose files they are: what a command deletes, replaces, refuses to replace, and notices that somebody changed.

use super::*;

fn train(set: &Path, run_dir: &Path, more: &[&str]) -> Command {
    let mut command = c2r();
    command.args(["train", "--model", "ConvNet-D2-W8-IN", "--threads", "1", "--set", "length={steps=2}"]);
    command.arg("--synthetic").arg(set).arg("--run-dir").arg(run_dir).args(more);
    command
}

/// Two real digits, which take no time to choose.
fn set(run_dir: &Path, more: &[&str]) -> Command {
    let mut command = c2r();
    command.args(["distill", "--dataset", "digits", "--config", "random-real", "--ipc", "1", "--threads", "1"]);
    command.arg("--run-dir").arg(run_dir).args(more);
    command
}

#[test]
fn a_forced_training_deletes_its_own_files_and_no_input() {
    let (_guard, folder) = folder();
    run(&mut set(&folder.join("run"), &[]));
    let own = folder.join("own");
    fs::create_dir(&own).unwrap();
    let images = own.join("synthetic.safetensors");
    fs::copy(folder.join("run/synthetic.safetensors"), &images).unwrap();
    fs::write(own.join("curves.svg"), "mine").unwrap();
    let before = fs::read(&images).unwrap();
    run(&mut train(&images, &own, &[]));
    let network = fs::read(own.join("model.safetensors")).unwrap();
    run(attack(&own, "fgsm", "attack.json").args(["--n-test", "20"]));

    run(&mut train(&images, &own, &["--force", "--seed", "1"]));
    assert_eq!(fs::read(&images).unwrap(), before);
    assert_eq!(fs::read(own.join("curves.svg")).unwrap(), b"mine");
    assert_ne!(fs::read(own.join("model.safetensors")).unwrap(), network);
    // A table would take the old network's report for the new one's. The same command attacks the new one.
    assert!(!own.join("attack.json").exists());
    run(attack(&own, "fgsm", "attack.json").args(["--n-test", "20"]));
    // A report on another network is somebody's.
    fs::write(own.join("attack.json"), r#"{"model_sha256": "ab"}"#).unwrap();
    run(&mut train(&images, &own, &["--force"]));
    assert!(own.join("attack.json").exists() && images.exists());

    // An input that has the name of an output is not written over.
    let input = folder.join("model.safetensors");
    fs::copy(&images, &input).unwrap();
    let (code, said) = fails(&mut train(&input, &folder, &["--force"]));
    assert!(code == 2 && said.contains("model.safetensors over the file of --synthetic"), "{code} {said}");
    assert_eq!(fs::read(&input).unwrap(), before);
}

#[test]
fn results_without_a_record_are_refused_and_only_force_replaces_them() {
    let (_guard, folder) = folder();
    let (theirs, network) = (folder.join("theirs"), folder.join("network"));
    for (place, names) in
        [(&theirs, &["synthetic.safetensors", "log.jsonl"][..]), (&network, &["model.safetensors", "synthetic.png"])]
    {
        fs::create_dir(place).unwrap();
        names.iter().for_each(|name| fs::write(place.join(name), "theirs").unwrap());
    }
    let (code, said) = fails(&mut set(&theirs, &[]));
    assert!(code == 2 && said.contains("has synthetic.safetensors, log.jsonl, but no record"), "{code} {said}");
    assert!(said.contains("choose another --run-dir, or delete them with --force"), "{said}");
    run(&mut set(&folder.join("run"), &[]));
    let (code, said) = fails(&mut train(&folder.join("run"), &network, &[]));
    assert!(code == 2 && said.contains("has model.safetensors, but no record"), "{code} {said}");
    for place in [&theirs, &network] {
        let files: Vec<_> = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() == 2 && files.iter().all(|file| fs::read(file).unwrap() == b"theirs"), "{files:?}");
    }
    run(&mut set(&theirs, &["--force"]));
    run(&mut train(&theirs, &network, &["--force"]));
    assert_eq!(fs::read(network.join("synthetic.png")).unwrap(), b"theirs", "no training writes it");
}

/// `c2r attack` never keeps its record, its lock or its unfinished images in a file that is not its own.
#[test]
fn an_attack_keeps_its_state_in_no_file_that_it_reads_or_writes() {
    let (_guard, folder) = folder();
    let (images, net) = (folder.join("run"), folder.join("net"));
    run(&mut set(&images, &[]));
    run(&mut train(&images, &net, &[]));
    let at = |name: &str| folder.join(name);
    let model = fs::read(net.join("model.safetensors")).unwrap();
    for name in ["model.safetensors", "y.run.json", "y.run.lock", ".y.run.part"] {
        fs::write(at(name), &model).unwrap();
    }
    let attack = |checkpoint: &str, output: &str, save: &str| {
        let mut command = c2r();
        command.args(["attack", "--dataset", "digits", "--eps", "0.1", "--attack", "fgsm", "--n-test", "20"]);
        command.args(["--threads", "1", "--force", "--checkpoint-seconds", "0", "--checkpoint"]).arg(at(checkpoint));
        command.arg("--output").arg(at(output)).arg("--save").arg(at(save)).current_dir(&folder);
        command
    };
    for name in ["y.run.json", "y.run.lock", ".y.run.part"] {
        let (code, said) = fails(&mut attack(name, "y.json", "z.safetensors"));
        assert!(code == 2 && said.contains("--checkpoint") && said.contains("keeps its state"), "{code} {said}");
        assert!(fs::read(at(name)).unwrap() == model, "{name}");
        let (code, said) = fails(&mut attack("model.safetensors", "w.json", &format!("./{}", name.replace('y', "w"))));
        assert!(code == 2 && said.contains("--save") && said.contains("keeps its state"), "{code} {said}");
    }
    let (code, said) = fails(&mut attack("model.safetensors", "w.json", "run/../w.json"));
    assert!(code == 2 && said.contains("name the same file"), "{code} {said}");
    fs::remove_file(at("y.run.json")).unwrap();
    run(&mut attack("model.safetensors", "y.json", "z.safetensors"));
    assert!(fs::read(at("y.run.lock")).unwrap() == model, "a lock has no contents, so the file is not emptied");
}

#[test]
fn a_run_of_a_version_with_other_numbers_is_made_again_only_by_force() {
    let (_guard, folder) = folder();
    let (images, net) = (folder.join("run"), folder.join("net"));
    run(&mut set(&images, &[]));
    run(&mut train(&images, &net, &[]));
    let report = |more: &[&str]| {
        let mut command = attack(&net, "fgsm,noise", "attack.json");
        command.args(["--n-test", "20"]).args(more);
        command
    };
    run(&mut report(&[]));
    type Make<'a> = &'a dyn Fn(&[&str]) -> Command;
    let commands: [(&str, Make<'_>); 3] = [
        ("net/attack.run.json", &report),
        ("run/run.json", &|more| set(&images, more)),
        ("net/run.json", &|more| train(&images, &net, more)),
    ];
    for (path, command) in commands {
        let path = folder.join(path);
        let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let results = record["results"].as_object_mut().unwrap();
        assert!(results.values().all(|version| version.as_u64() > Some(0)), "{results:?}");
        *results.values_mut().last().unwrap() = 999.into();
        fs::write(&path, record.to_string()).unwrap();
        let (code, said) = fails(&mut command(&[]));
        assert!(code == 2 && said.contains("computes different numbers (results version of "), "{code} {said}");
        assert!(said.contains("999 there, c2r 0.") && said.contains("--force"), "{said}");
        run(&mut command(&["--force"]));
    }
}

/// Others may read results if the user lets others read files.
#[cfg(unix)]
#[test]
fn the_umask_says_who_may_read_results() {
    use std::os::unix::fs::PermissionsExt;
    let (_guard, folder) = folder();
    for (umask, expected) in [("077", 0o600), ("002", 0o664)] {
        let images = folder.join(umask);
        let inner = set(&images, &[]);
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("umask {umask}; exec \"$0\" \"$@\""));
        run(command.arg(inner.get_program()).args(inner.get_args()).env_remove("C2R_DATA"));
        for name in ["synthetic.safetensors", "run.json", "synthetic.png"] {
            let mode = fs::metadata(images.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, expected, "{name} with umask {umask}");
        }
    }
}

/// An imagenette of one picture under many names, which takes seconds to decode.
#[cfg(unix)]
#[test]
fn an_interrupt_leaves_no_temporary_file() {
    let (_guard, folder) = folder();
    let picture = folder.join("picture.jpg");
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/image/rgb.jpg"), &picture).unwrap();
    for wnid in &c2r_data::spec("imagenette").unwrap().wnids {
        for (split, n) in [("train", 500), ("val", 1)] {
            let class = folder.join("imagenette2-160").join(split).join(wnid);
            fs::create_dir_all(&class).unwrap();
            (0..n).for_each(|at| fs::hard_link(&picture, class.join(format!("{at}.JPEG"))).unwrap());
        }
    }
    let mut command = c2r();
    command.args(["distill", "--dataset", "imagenette", "--config", "random-real", "--ipc", "1", "--threads", "1"]);
    command.arg("--data").arg(&folder).arg("--run-dir").arg(folder.join("run"));
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let cache = folder.join(".c2r-cache");
    let n_files = || fs::read_dir(&cache).map_or(0, Iterator::count);
    while n_files() == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(Duration::from_millis(1));
    }
    // Not SIGINT, which stays ignored where the tests were started in the background.
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let stopped = child.wait_with_output().unwrap();
    assert_eq!(stopped.status.code(), Some(130), "{}", text(&stopped.stderr));
    assert_eq!(n_files(), 0);
}

#[test]
fn a_finished_run_with_a_damaged_file_says_so() {
    let (_guard, folder) = folder();
    let (images, net) = (folder.join("run"), folder.join("net"));
    run(&mut set(&images, &[]));
    run(&mut train(&images, &net, &[]));
    let network = net.join("model.safetensors");
    let whole = fs::read(&network).unwrap();
    fs::write(&network, &whole[..whole.len() / 2]).unwrap();
    let (code, said) = fails(&mut train(&images, &net, &[]));
    assert!(code == 3 && said.contains("model.safetensors was changed after it was written"), "{code} {said}");
    assert!(said.contains("put it back as it was, or make it again with --force"), "{said}");
    run(&mut train(&images, &net, &["--force"]));
    assert_eq!(fs::read(&network).unwrap(), whole);
}

#[test]
fn pages_tables_and_pictures_replace_only_their_like() {
    let (_guard, folder) = folder();
    let (images, net) = (folder.join("run"), folder.join("net"));
    run(&mut set(&images, &[]));
    run(&mut train(&images, &net, &[]));
    run(attack(&net, "fgsm", "attack.json").args(["--n-test", "20"]));
    let (measured, notes) = (net.join("attack.json"), folder.join("notes.md"));
    fs::write(&notes, "# Notes\n").unwrap();
    let set = images.join("synthetic.safetensors");
    let kept = [&measured, &notes, &set].map(|path| fs::read(path).unwrap());
    let report = |to: &Path| {
        let mut command = c2r();
        command.arg("report").arg(&net).arg("-o").arg(to);
        command
    };
    let grid = |to: &Path| {
        let mut command = c2r();
        command.arg("inspect").arg(&images).arg("--grid").arg(to);
        command
    };
    for (mut command, said) in [
        (report(&measured), "is not a table of c2r"),
        (report(&notes), "is not a table of c2r"),
        (grid(&set), "is not a PNG picture"),
    ] {
        let (code, message) = fails(&mut command);
        assert!(code == 2 && message.contains(said) && message.contains("choose another name"), "{code} {message}");
    }
    assert_eq!([&measured, &notes, &set].map(|path| fs::read(path).unwrap()), kept);
    // What they wrote themselves, they write again.
    for name in ["r.html", "r.md", "r.csv", "r.tex", "r.json"] {
        run(&mut report(&folder.join(name)));
        run(&mut report(&folder.join(name)));
    }
    run(&mut grid(&folder.join("g.png")));
    run(&mut grid(&folder.join("g.png")));
    let tables = folder.join("tables");
    let table = || {
        let mut command = c2r();
        command.arg("table").arg(&net).arg("--output-dir").arg(&tables);
        command
    };
    run(&mut table());
    run(&mut table());
    fs::write(tables.join("table.csv"), "mine").unwrap();
    let (code, said) = fails(&mut table());
    assert!(code == 2 && said.contains("table.csv exists"), "{code} {said}");
}

#[test]
fn numbers_and_names_that_do_not_fit_are_named_with_their_option() {
    let (_guard, folder) = folder();
    for (words, said) in [
        (
            ["--seed", "18446744073709551615"],
            "for '--seed <N>': 18446744073709551615 is not in 0..=9223372036854775807",
        ),
        (["--seed", "9223372036854775808"], "'--seed <N>'"),
        (["--iterations", "9223372036854775808"], "'--iterations <N>'"),
        (["--name", ""], "'--name <NAME>'"),
        (["--name", "  "], "a name needs at least one character"),
        (["--set", "name="], "name must be at least one character, or left out, got ``"),
    ] {
        let (code, message) = fails(&mut set(&folder.join("run"), &words));
        assert!(code == 2 && message.contains(said), "{words:?}: {code} {message}");
    }
    let mut largest = set(&folder.join("run"), &["--seed", "9223372036854775807", "--print-config"]);
    assert!(text(&run(&mut largest).stdout).contains("seed = 9223372036854775807"));
    let row = ["--ipc", "1", "--attack", "fgsm", "--eps", "0.1", "--dataset", "digits", "--model", "m.pt"];
    for option in ["--method", "--protocol", "--model-name"] {
        let (code, message) = fails(c2r().arg("attack").args(row).args([option, ""]));
        assert!(code == 2 && message.contains("at least one character"), "{option}: {code} {message}");
    }
}
