use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{Checkout, N_COMMANDS, dataset, ended, exists};

#[test]
fn a_grid_is_run_once_and_its_table_shown() {
    let checkout = Checkout::new();
    let output = checkout.reproduce(&[]).output().unwrap();
    let (code, said) = ended(&output);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "the table\n");
    assert!(said.ends_with("report: runs/example-quick/report.html\n"), "{said}");
    assert!(exists(&checkout.path("runs/example-quick/report.html")));
    assert_eq!(checkout.calls().len(), N_COMMANDS);
    assert!(exists(&checkout.path("runs/example-quick/digits/ipc1/one/seed0/natural-fgsm-0.1/attack.json")));
    let (code, said) = ended(&checkout.reproduce(&[]).output().unwrap());
    assert!(code == Some(0) && said.contains("all 30 commands are finished already"), "{said}");
    assert_eq!(checkout.calls().len(), N_COMMANDS);
}

/// With several at once, a command waits for nothing but what it needs and those before it.
#[test]
fn what_comes_first_is_in_the_file() {
    for at_once in ["1", "3"] {
        let checkout = Checkout::new();
        let file = checkout.path("data/paper/example.toml");
        let order = "\nseed-by-seed = true\nfirst = [{ methods = [\"two\"], protocols = [\"pgd-at\"] }]\n";
        fs::write(&file, fs::read_to_string(&file).unwrap() + order).unwrap();
        let (code, said) = ended(&checkout.reproduce(&["--jobs", at_once]).output().unwrap());
        assert_eq!(code, Some(0), "{said}");
        let calls = checkout.calls();
        let distilled: Vec<&String> = calls.iter().filter(|line| line.starts_with("distill")).collect();
        let is = |line: &str, seed: usize, name: &str| line.contains(&format!(" --seed {seed} --name {name} "));
        let mut order: Vec<(usize, &str)> = Vec::new();
        for line in distilled {
            order.extend(
                (0..3).flat_map(|seed| ["two", "one"].map(|name| (seed, name))).filter(|&(s, n)| is(line, s, n)),
            );
        }
        if at_once == "1" {
            assert_eq!(order, [(0, "two"), (0, "one"), (1, "two"), (1, "one"), (2, "two"), (2, "one")]);
            // The rest of the first set comes after the first set's part and with the second set.
            assert!(calls[1].contains("--protocol pgd-at") && calls[2].starts_with("attack"), "{calls:#?}");
            assert!(calls[3].contains("--protocol natural"), "{calls:#?}");
        } else {
            order[..3].sort_unstable();
            assert_eq!(order[..3], [(0, "one"), (0, "two"), (1, "two")], "{calls:#?}");
        }
    }
}

/// Although only the last commands are wrong.
#[test]
fn a_mistake_is_found_before_the_first_command() {
    let checkout = Checkout::new();
    let file = checkout.path("data/paper/example.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("[\"fgsm\"]", "[\"fgsm\", \"mistaken\"]")).unwrap();
    for more in [&[][..], &["--dry-run"]] {
        let output = checkout.reproduce(more).output().unwrap();
        let (code, said) = ended(&output);
        assert!(code == Some(2) && output.stdout.is_empty() && checkout.calls().is_empty(), "{said}");
        assert!(said.contains("c2r would refuse 12 commands") && said.contains("11 more: it is mistaken"), "{said}");
    }
    // What is not asked for is not looked at.
    let (code, said) = ended(&checkout.reproduce(&["--only", "attack=fgsm"]).output().unwrap());
    assert!(code == Some(0) && checkout.n_finished() == N_COMMANDS, "{said}");

    fs::write(&file, text.replacen("profiles/p.toml", "profiles/pp.toml", 1)).unwrap();
    let (code, said) = ended(&checkout.reproduce(&[]).output().unwrap());
    assert!(code == Some(2) && said.contains("methods.one: there is no profile data/profiles/pp.toml in"), "{said}");
    let left_out = text.replacen("profile = \"data/profiles/p.toml\"", "implemented = false", 1);
    fs::write(&file, left_out).unwrap();
    let (code, said) = ended(&checkout.reproduce(&[]).output().unwrap());
    assert!(code == Some(0) && said.contains("not implemented and have no rows: one"), "{said}");
}

/// With what the checkout's experiments share, and a profile beside it.
#[test]
fn an_experiment_can_lie_anywhere() {
    let checkout = Checkout::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    let text = fs::read_to_string(checkout.path("data/paper/example.toml")).unwrap();
    let (one, rest) = text.split_once("[methods.two]").unwrap();
    let (two, scale) = rest.split_once("[scales").unwrap();
    fs::write(checkout.path("data/paper/common.toml"), format!("schema_version = 2\n[methods.two]{two}")).unwrap();
    fs::write(checkout.path("data/paper/example.toml"), &text).unwrap();
    fs::write(&file, format!("{}[scales{scale}", one.replace("example", "mine").replace("data/profiles/", "")))
        .unwrap();
    let named = file.to_str().unwrap();
    let reproduce = |more: &[&str]| {
        let words = [&["reproduce", named, "--scale", "quick", "--prebuilt"], more].concat();
        let output = checkout.xtask(&words).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), ended(&output).1)
    };
    let (code, _, said) = reproduce(&[]);
    assert!(code == Some(2) && said.contains("there is no profile p.toml in"), "{said}");
    fs::write(folder.path().join("p.toml"), "eta = 0.3").unwrap();
    let only = ["--only", "seed=0"];
    let (code, script, said) = reproduce(&[&only[..], &["--dry-run"]].concat());
    assert_eq!(code, Some(0), "{said}");
    let words =
        format!("distill --config {} --dataset digits", folder.path().canonicalize().unwrap().join("p.toml").display());
    assert!(script.contains(&words) && script.contains(&format!("cp {named} runs/mine-quick/mine.toml\n")), "{script}");
    let (code, _, said) = reproduce(&only);
    assert!(code == Some(0) && said.contains("report: runs/mine-quick/report.html"), "{said}");
    let calls = fs::read_to_string(checkout.path("calls")).unwrap();
    assert!(calls.contains("table runs/mine-quick --experiment runs/mine-quick/mine.toml"), "{calls}");
    assert_eq!(fs::read(checkout.path("runs/mine-quick/mine.toml")).unwrap(), fs::read(&file).unwrap());
    assert!(exists(&checkout.path("runs/mine-quick/common.toml")));
    let (_, listed, said) = reproduce(&["--list"]);
    assert!(listed.contains("10 of 30 commands are finished"), "{listed}{said}");

    let (_, _, said) = reproduce(&["--pack", "work.tar.gz"]);
    assert!(said.contains("packed 10 finished") && said.contains("does not hold") && said.contains(named), "{said}");
    let elsewhere = ["--unpack", "work.tar.gz", "--results", "other", "--no-table"];
    let (code, _, said) = reproduce(&[&only[..], &elsewhere].concat());
    assert!(code == Some(0) && said.contains("took 10 finished"), "{said}");
    fs::rename(&file, folder.path().join("example.toml")).unwrap();
    let (code, _, said) = reproduce(&elsewhere);
    assert!(code == Some(2) && said.contains("there is no experiment file") && said.contains("copy it to"), "{said}");
    let other = folder.path().join("example.toml");
    fs::write(&other, text).unwrap();
    let words = ["reproduce", other.to_str().unwrap(), "--scale", "quick", "--prebuilt"];
    let (code, said) = ended(&checkout.xtask(&words).output().unwrap());
    assert!(code == Some(2) && said.contains("data/paper has an experiment `example`"), "{said}");
}

/// The example of docs/reproduce.md, with the real `c2r`.
#[test]
fn the_example_of_the_page_runs() {
    if super::built_libtorch().is_none() {
        return;
    }
    let page = include_str!("../../../docs/reproduce.md");
    let example = page.split("```toml tested\n").nth(1).unwrap().split("```").next().unwrap();
    assert!(example.lines().count() <= 20);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    fs::write(&file, example).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("reproduce").arg(&file).args(["--scale", "tiny", "--prebuilt", "--device", "cpu", "--results"]);
    command.arg(folder.path().join("runs")).current_dir(folder.path());
    command.env("CARGO_MANIFEST_DIR", env!("CARGO_MANIFEST_DIR")).env_remove("C2R_DATA");
    let output = command.output().unwrap();
    let (code, said) = ended(&output);
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(code == Some(0) && table.contains("| 10 | C²R, no mosaics |"), "{table}{said}");
}

/// Nothing is lost, and no command runs twice at once, not even beside one that outlived its parent.
#[test]
fn killed_again_and_again_it_goes_on() {
    let checkout = Checkout::new();
    checkout.mark("slow");
    for round in 0..4 {
        let mut child = checkout.reproduce(&["--jobs", "2"]).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        let wanted = checkout.calls().len() + 2 + round;
        while checkout.calls().len() < wanted {
            assert!(start.elapsed() < Duration::from_secs(60), "nothing is started");
            thread::sleep(Duration::from_millis(5));
        }
        // SIGKILL: there is no time to give anything back.
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let before = checkout.n_finished();
    let (code, said) = ended(&checkout.reproduce(&["--jobs", "2"]).output().unwrap());
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(checkout.n_finished(), N_COMMANDS);
    assert!(before < N_COMMANDS && checkout.calls().len() <= N_COMMANDS + 4 * 2 * 2, "{:#?}", checkout.calls());
}

#[test]
fn a_time_limit_stops_the_grid_and_says_what_is_left() {
    let checkout = Checkout::new();
    checkout.mark("slow");
    let (code, said) = ended(&checkout.reproduce(&["--jobs", "1", "--time-limit", "1s"]).output().unwrap());
    assert_eq!(code, Some(124), "{said}");
    let n_finished = checkout.n_finished();
    assert!(n_finished < N_COMMANDS && said.contains(&format!("{n_finished} of 30 commands are finished")), "{said}");
    fs::remove_file(checkout.path("slow")).unwrap();
    let (code, said) = ended(&checkout.reproduce(&["--time-limit", "10m"]).output().unwrap());
    assert_eq!(code, Some(0), "{said}");
    assert!(checkout.n_finished() == N_COMMANDS && checkout.calls().len() <= N_COMMANDS + 1);
    let (code, said) = ended(&checkout.reproduce(&["--time-limit", "9"]).output().unwrap());
    assert!(code == Some(2) && said.contains("e.g. 90s, 9m, 1h30m"), "{said}");
}

#[test]
fn what_is_forced_begins_again_once_and_can_be_resumed() {
    let checkout = Checkout::new();
    let (code, said) = ended(&checkout.reproduce(&[]).output().unwrap());
    assert_eq!((code, checkout.n_finished()), (Some(0), N_COMMANDS), "{said}");
    checkout.mark("slow");
    let (code, said) = ended(&checkout.reproduce(&["--force", "--jobs", "1", "--time-limit", "1s"]).output().unwrap());
    assert!(code == Some(124) && said.contains("to resume, run the same command without --force"), "{said}");
    assert!(checkout.n_finished() < N_COMMANDS, "old results do not count as new ones");
    fs::remove_file(checkout.path("slow")).unwrap();
    let (code, said) = ended(&checkout.reproduce(&[]).output().unwrap());
    assert_eq!((code, checkout.n_finished()), (Some(0), N_COMMANDS), "{said}");
    let calls = checkout.calls();
    assert!(calls.len() <= 2 * N_COMMANDS + 1 && !calls.iter().any(|call| call.contains("--force")), "{calls:#?}");
}

#[test]
fn failures_are_told_when_the_time_is_over() {
    let checkout = Checkout::new();
    checkout.mark("broken");
    checkout.mark("slow");
    let (code, said) = ended(&checkout.reproduce(&["--jobs", "4", "--time-limit", "1s"]).output().unwrap());
    assert!(code == Some(124) && said.contains("failed (see above)"), "{said}");
    assert!(said.contains("cannot read data_batch_1.bin"), "{said}");
}

#[test]
fn options_that_would_change_nothing_are_refused() {
    let checkout = Checkout::new();
    let cases: [(&[&str], &str); 3] = [
        (&["--tasks", "3"], "--tasks is for --launcher slurm"),
        (&["--estimate-for", "h200"], "--estimate-for is for --list and --dry-run"),
        // Before anything is unpacked or built.
        (
            &["--launcher", "slurm", "--shard", "1/2", "--unpack", "nowhere.tar"],
            "--launcher slurm splits the grid itself: leave --shard out",
        ),
    ];
    for (words, reason) in cases {
        let (code, said) = ended(&checkout.reproduce(words).output().unwrap());
        assert!(code == Some(2) && said.contains(reason), "{said}");
    }
    assert!(checkout.calls().is_empty());
}

#[test]
fn shards_and_others_share_a_results_folder() {
    let checkout = Checkout::new();
    checkout.mark("slow");
    let start = |more: &[&str]| checkout.reproduce(more).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let children = [
        start(&["--shard", "1/2", "--no-table"]),
        start(&["--shard", "2/2", "--no-table"]),
        start(&["--jobs", "2", "--no-table"]),
    ];
    for child in children {
        let (code, said) = ended(&child.wait_with_output().unwrap());
        assert_eq!(code, Some(0), "{said}");
    }
    assert_eq!(checkout.n_finished(), N_COMMANDS);
    assert_eq!(checkout.calls().len(), N_COMMANDS, "each command ran once");
}

#[test]
fn a_failure_is_said_at_once_and_at_the_end_with_its_code() {
    let checkout = Checkout::new();
    checkout.mark("broken");
    let (code, said) = ended(&checkout.reproduce(&[]).output().unwrap());
    assert_eq!(code, Some(3), "{said}");
    let at_once = |line: &str| line.contains(" FAILED (") && line.contains("cannot read data_batch_1.bin");
    assert!(said.lines().filter(|line| at_once(line)).count() == 2, "{said}");
    assert!(said.contains("1 more failed in the same way"), "{said}");
    assert!(said.contains("2 commands failed, so 8 that need their results did not run"), "{said}");
}

#[test]
fn numbers_outside_the_tolerance_are_code_4_and_a_page_that_cannot_be_made_is_code_1() {
    let checkout = Checkout::new();
    checkout.mark("outside");
    let (code, said) = ended(&checkout.reproduce(&[]).output().unwrap());
    assert!(code == Some(4) && said.contains("numbers are outside the tolerance"), "{said}");
    assert!(said.contains("report: runs/example-quick/report.html"), "{said}");
    checkout.mark("unreadable");
    let (code, said) = ended(&checkout.reproduce(&[]).output().unwrap());
    assert!(code == Some(1) && said.contains("`c2r report` failed (exit status: 3): error: cannot read it"), "{said}");
}

#[test]
fn results_belong_into_a_folder() {
    let checkout = Checkout::new();
    let file = checkout.path("file");
    fs::write(&file, "").unwrap();
    let mut command = checkout.reproduce(&["--dry-run"]);
    let (code, said) = ended(&command.arg("--results").arg(&file).output().unwrap());
    assert!(code == Some(2) && said.contains("this is not a folder"), "{said}");
}

#[test]
fn missing_data_is_said_before_anything_runs() {
    let checkout = Checkout::new();
    fs::remove_file(checkout.path("data/digits/digits.csv")).unwrap();
    let (code, said) = ended(&checkout.reproduce(&[]).output().unwrap());
    assert!(code == Some(3) && said.contains("data not found: digits"), "{said}");
    assert!(checkout.calls().is_empty());
    // What it would do is shown all the same.
    fs::remove_file(checkout.path("target/release/c2r")).unwrap();
    let output = checkout.reproduce(&["--dry-run"]).output().unwrap();
    let (code, said) = ended(&output);
    assert!(code == Some(0) && said.contains("30 commands, 30 of them still to run"), "{said}");
    let n_shown = 6 + 12;
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), N_COMMANDS + n_shown + 2);
}

/// A job is named after files that `c2r` has compiled in: where it was built before they changed, an old result would pass for a new
/// one.
#[test]
fn a_build_from_other_files_is_refused() {
    let checkout = Checkout::new();
    let run = |only: &str| ended(&checkout.reproduce(&["--only", only]).output().unwrap());
    let write = |name: &str, text: &str| fs::write(checkout.path(name), text).unwrap();
    write("data/protocols/natural.toml", "# faster\nlr = 0.03");
    let (code, said) = run("method=one,seed=0");
    assert!(code == Some(2) && said.contains("data/protocols/natural.toml was changed"), "{said}");
    assert!(said.contains("build it again, or leave --prebuilt out") && checkout.calls().is_empty(), "{said}");
    // What is not asked for, comments, and the profile itself, which `c2r` reads.
    assert_eq!(run("method=one,seed=0,protocol=pgd-at").0, Some(0));
    write("data/protocols/natural.toml", "# as before\nlr = 0.01");
    write("data/profiles/p.toml", "eta = 0.5");
    assert_eq!(run("method=one,seed=0").0, Some(0));
    // One that it builds on is compiled in.
    write("data/profiles/p.toml", "base = \"q\"\neta = 0.5");
    write("data/profiles/q.toml", "eta = 0.4");
    let (code, said) = run("method=one,seed=0");
    assert!(code == Some(2) && said.contains("data/profiles/q.toml was changed"), "{said}");

    // What `dist` packed cannot build.
    write("dist.json", "{}");
    fs::create_dir(checkout.path("bin")).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_xtask"), checkout.path("bin/xtask")).unwrap();
    let mut unpacked = Command::new(checkout.path("bin/xtask"));
    unpacked.args(["reproduce", "example", "--scale", "quick", "--prebuilt"]).env_remove("C2R_DATA");
    let (code, said) = ended(&unpacked.output().unwrap());
    assert!(code == Some(2) && said.contains("write the change into the experiment"), "{said}");

    write("built-in.json", "{}");
    let (code, said) = run("method=one,seed=0");
    assert!(code == Some(2) && said.contains("target/release/c2r is another version of c2r"), "{said}");
}

#[test]
fn a_time_that_is_not_known_keeps_nothing_from_running() {
    let checkout = Checkout::new();
    let file = checkout.path("data/paper/example.toml");
    fs::write(&file, fs::read_to_string(&file).unwrap().replace("scales.quick", "scales.paper")).unwrap();
    checkout.mark("no-device");
    let words = ["reproduce", "example", "--scale", "paper", "--prebuilt", "--only", "method=one,seed=0"];
    let (code, said) = ended(&checkout.xtask(&words).output().unwrap());
    assert!(code == Some(0) && said.contains("their time is not known: `c2r estimate` failed"), "{said}");
    assert_eq!(checkout.n_finished(), 5);
}

#[test]
fn a_list_that_is_stopped_while_it_estimates_says_so() {
    let checkout = Checkout::new();
    checkout.mark("slow");
    checkout.mark("no-device");
    let list = ["reproduce", "--list", "--time-limit", "1s"];
    let (code, said) = ended(&checkout.xtask(&list).output().unwrap());
    assert!(code == Some(124) && said.contains("the time limit is over") && !said.contains("not estimated"), "{said}");
}

/// What a folder holds: for a link where it leads, for a file what is in it.
fn contents(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            found.insert(path.clone(), fs::read_link(&path).unwrap().display().to_string());
        } else if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read_to_string(&path).unwrap());
        }
    }
    found
}

#[test]
fn a_dry_run_is_a_script_that_does_the_same() {
    let checkout = Checkout::new();
    // Something is finished already, and stays in the table.
    assert_eq!(ended(&checkout.reproduce(&["--only", "method=one,seed=0"]).output().unwrap()).0, Some(0));
    let only = ["--only", "method=two,seed=1,protocol=natural"];
    let script = checkout.reproduce(&[&only[..], &["--dry-run"]].concat()).output().unwrap().stdout;
    let mut shell = Command::new("sh").arg("-e").current_dir(checkout.path("")).stdin(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(&script).unwrap();
    assert!(shell.wait().unwrap().success(), "{}", String::from_utf8_lossy(&script));
    let table = checkout.path("runs/example-quick");
    let by_hand = contents(&table);
    assert!(by_hand.contains_key(&table.join("digits/ipc1/two/seed1/natural-fgsm-0.1/attack.json")));
    fs::remove_dir_all(&table).unwrap();
    assert_eq!(ended(&checkout.reproduce(&only).output().unwrap()).0, Some(0));
    assert_eq!(contents(&table), by_hand);
}

#[test]
fn no_run_makes_the_table_of_what_is_finished() {
    let checkout = Checkout::new();
    let (code, said) = ended(&checkout.reproduce(&["--no-run"]).output().unwrap());
    assert!(code == Some(2) && said.contains("no attack of example-quick is finished in"), "{said}");
    assert_eq!(ended(&checkout.reproduce(&["--only", "method=one,seed=0"]).output().unwrap()).0, Some(0));
    let n_finished = checkout.n_finished();
    fs::remove_dir_all(checkout.path("runs/example-quick")).unwrap();
    let (code, said) = ended(&checkout.reproduce(&["--no-run"]).output().unwrap());
    assert!(code == Some(0) && said.contains("report: runs/example-quick/report.html"), "{said}");
    assert!(n_finished < N_COMMANDS && checkout.n_finished() == n_finished);
    assert!(checkout.path("runs/example-quick/digits/ipc1/one/seed0").is_dir());
    let list = checkout.xtask(&["reproduce", "example", "--scale", "quick", "--list"]).output().unwrap();
    let listed = String::from_utf8_lossy(&list.stdout);
    assert!(listed.contains("      digits/ipc1/one/seed0: 5 of 5 commands are finished"), "{listed}");
}

/// The machine that will run the commands may be another one.
#[test]
fn a_dry_run_needs_no_device() {
    let checkout = Checkout::new();
    checkout.mark("no-device");
    let output = checkout.reproduce(&["--dry-run", "--device", "cuda"]).output().unwrap();
    let (code, said) = ended(&output);
    let script = String::from_utf8_lossy(&output.stdout);
    assert_eq!((code, script.matches(" --device cuda\n").count()), (Some(0), N_COMMANDS), "{script}{said}");
    let reason = "their time is not known: `c2r estimate` failed: error: --device cuda is not available";
    assert!(said.contains("30 commands, 30 of them still to run") && said.contains(reason), "{said}");
}

#[test]
fn a_changed_grid_is_passed_on_to_table_and_report() {
    let checkout = Checkout::new();
    let (code, said) = ended(&checkout.reproduce(&["--seeds", "0,7", "--methods", "two"]).output().unwrap());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the grid differs from the file: seeds 0, 7 instead of 0, 1, 2"), "{said}");
    assert!(said.contains("the grid differs from the file: methods two, without one"), "{said}");
    let calls = fs::read_to_string(checkout.path("calls")).unwrap();
    let results: Vec<&str> =
        calls.lines().filter(|line| line.starts_with("table") || line.starts_with("report")).collect();
    assert_eq!(results.len(), 2);
    assert!(results.iter().all(|line| line.contains(" --scale quick --seeds 0,7 --methods two --output")), "{calls}");
    let (code, said) = ended(&checkout.reproduce(&["--only", "seed=0", "--only", "method=two"]).output().unwrap());
    assert_eq!(code, Some(0), "{said}");
    let calls = fs::read_to_string(checkout.path("calls")).unwrap();
    let part = " --scale quick --only seed=0,method=two --output";
    assert_eq!(calls.lines().filter(|line| line.contains(part)).count(), 2, "{calls}");
    let (code, said) = ended(&checkout.reproduce(&["--methods", "three"]).output().unwrap());
    assert!(code == Some(2) && said.contains("no method `three`; there are: one, two"), "{said}");
}

#[test]
fn the_list_is_of_what_was_asked_for() {
    let checkout = Checkout::new();
    let other = fs::read_to_string(checkout.path("data/paper/example.toml"))
        .unwrap()
        .replace("\"example\"", "\"other\"")
        .replace("scales.quick", "scales.small")
        .replace("[\"digits\"]", "[\"cifar10\"]");
    fs::write(checkout.path("data/paper/other.toml"), other).unwrap();
    let mut known = fs::read_to_string(checkout.path("data/datasets.toml")).unwrap();
    known += &dataset("cifar10", "cifar", "");
    fs::write(checkout.path("data/datasets.toml"), known).unwrap();
    let list = |more: &[&str]| {
        let output = checkout.xtask(&[&["reproduce", "--list"], more].concat()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), ended(&output).1)
    };
    let (code, all, said) = list(&[]);
    assert!(code == Some(0) && all.contains("example: ") && all.contains("other: "), "{all}{said}");
    assert!(all.contains("to run this: data not found: cifar10 (name the data folder with --data DIR"), "{all}");
    for more in [&["example"][..], &["--scale", "quick"]] {
        let (code, listed, said) = list(more);
        assert!(code == Some(0) && listed.contains("example: ") && !listed.contains("other: "), "{listed}{said}");
    }
    let (_, listed, _) = list(&["--scale", "small", "--data", "elsewhere"]);
    assert!(!listed.contains("example: ") && listed.contains("not in the data folder"), "{listed}");
    // A part; grids that do not have it are left out.
    let (code, listed, said) = list(&["--only", "dataset=digits,method=one,seed=0", "--only", "protocol=natural"]);
    assert!(code == Some(0) && !listed.contains("other: "), "{listed}{said}");
    assert!(listed.contains("1 distillation, 1 training, 1 attack; 0 of 3 commands are finished"), "{listed}");
    let (_, listed, _) = list(&["--only", "seed=1"]);
    assert_eq!(listed.matches("2 distillations, 4 trainings, 4 attacks").count(), 2, "{listed}");
    for (more, reason) in [
        (&["--only", "seed=9"][..], "--only: there is no seed `9`; there are: 0, 1, 2"),
        (&["example", "--only", "ipc=all"], "--only: nothing to run: the selection matches no part of the grid"),
        (&["--only", "sed=1"], "there is no key `sed`"),
        (&["--scale", "huge"], "no scale `huge`; there are: quick, small"),
        (&["others"], "no experiment `others`; there are: example, other"),
        (&["--seeds", "1"], "--seeds"),
    ] {
        let (code, _, said) = list(more);
        assert!(code == Some(2) && said.contains(reason), "{said}");
    }
}
