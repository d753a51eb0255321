//! Learning rates and lengths that are not those of a protocol for distilled sets, and commands that are checked beforehand.

use super::*;

/// A set whose distillation learned a rate, and one without.
fn sets(folder: &Path) -> [PathBuf; 2] {
    ["mtt", "random-real"].map(|profile| {
        let run_dir = folder.join(profile);
        let mut command = c2r();
        command.args(["distill", "--dataset", "digits", "--ipc", "1", "--config", profile, "--threads", "1"]);
        if profile == "mtt" {
            for set in ["experts.count=1", "experts.epochs=2", "student.max-start=1", "student.span=1"] {
                command.args(["--set", set]);
            }
            let set = ["--set", "student.steps=2", "--set", "student.lr-of-lr=1e-3", "--set", "model=ConvNet-D2-W8-IN"];
            command.args(["--iterations", "3"]).args(set);
        }
        run(command.arg("--run-dir").arg(&run_dir));
        run_dir
    })
}

#[test]
fn a_learned_rate_is_taken_from_the_set() {
    let (_guard, folder) = folder();
    let [learned, plain] = sets(&folder);
    let train = |set: &Path, more: &[&str]| {
        let mut command = c2r();
        command.args(["train", "--model", "ConvNet-D2-W8-IN", "--threads", "1", "--set", "length={steps=3}"]);
        command.arg("--synthetic").arg(set).args(more);
        command
    };
    let header = TensorFile::read(&learned.join("synthetic.safetensors")).unwrap().header;
    let config: Value = serde_json::from_str(&header["config"]).unwrap();
    let rate = config["learned-lr"].as_f64().unwrap();
    assert!(rate > 0.0 && rate != 0.01, "the rate moved: {rate}");
    let printed_rate = |more: &[&str]| {
        let printed: toml::Table = text(&run(train(&learned, more).arg("--print-config")).stdout).parse().unwrap();
        printed["lr"].as_float().unwrap()
    };
    assert_eq!(printed_rate(&[]), 0.01, "the protocol's, unless the learned one is asked for");
    assert_eq!(printed_rate(&["--lr", "0.02"]), 0.02);
    assert_eq!(printed_rate(&["--lr", "learned"]), rate);
    assert_eq!(printed_rate(&["--set", "lr=learned"]), rate);

    let trained = folder.join("trained");
    run(train(&learned, &["--lr", "learned", "--run-dir"]).arg(&trained));
    let record: Value = serde_json::from_slice(&fs::read(trained.join("run.json")).unwrap()).unwrap();
    assert_eq!(record["config"]["train"]["lr"].as_f64(), Some(rate), "{record}");
    assert_eq!(record["config"]["lr_is_learned"], true);
    run(attack(&trained, "fgsm", "attack.json").args(["--n-test", "20"]));
    let said = text(&run(c2r().arg("table").arg(&trained)).stdout);
    assert!(said.contains("trained at the learning rate that the distillation of each set learned"), "{said}");

    for (set, more, part) in [
        (&plain, &["--lr", "learned"][..], "has no learned learning rate"),
        (&plain, &["--set", "lr=learned"], "has no learned learning rate"),
        (&learned, &["--lr", "0"], "expected a positive number"),
        (&learned, &["--lr", "0.1", "--set", "lr=0.2"], "give --lr or --set lr=, not both"),
        (
            &plain,
            &["--protocol", "pgd-at", "--eps", "0.1", "--set", "adversarial.epsilon=0.2"],
            "give --eps or --set adversarial.epsilon=, not both",
        ),
    ] {
        let (code, said) = fails(train(set, more).arg("--print-config"));
        assert!(code == 2 && said.contains(part), "{code} {said}");
    }
    let (code, said) = fails(c2r().args(["train", "--dataset", "digits", "--lr", "learned", "--print-config"]));
    assert!(code == 2 && said.contains("--lr learned needs --synthetic"), "{code} {said}");
}

/// A whole training set is trained on for the length of the protocol's section for full data, and a table says so.
#[test]
fn real_images_are_trained_on_under_rules_of_their_own() {
    let (_guard, folder) = folder();
    let [_, plain] = sets(&folder);
    let printed = |what: &str, from: &Path| -> toml::Table {
        let mut command = c2r();
        command.args(["train", "--protocol", "pgd-at", "--print-config"]).arg(what).arg(from);
        text(&run(&mut command).stdout).parse().unwrap()
    };
    let (real, synthetic) = (printed("--dataset", Path::new("digits")), printed("--synthetic", &plain));
    assert_ne!(real["length"], synthetic["length"]);
    assert_ne!(real["lr-schedule"], synthetic["lr-schedule"]);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/protocols/pgd-at.toml");
    let file: toml::Table = fs::read_to_string(file).unwrap().parse().unwrap();
    for (key, value) in file["full-data"].as_table().unwrap() {
        assert_eq!(&real[key], value, "{key}");
    }

    // 50 images are one batch, so that seven steps are seven epochs.
    let trained = folder.join("full");
    let mut command = c2r();
    command.args(["train", "--dataset", "digits", "--train-per-class", "5", "--model", "ConvNet-D2-W8-IN"]);
    command.args(["--threads", "1", "--set", "length={steps=7}", "--set", "lr-schedule=constant", "--run-dir"]);
    run(command.arg(&trained));
    run(attack(&trained, "fgsm", "attack.json").args(["--n-test", "20"]));
    let table = text(&run(c2r().arg("table").arg(&trained)).stdout);
    let note = "trained for 7 epochs (7 steps) at a learning rate of 0.05, constant";
    assert!(table.contains(note), "{table}");
}

/// Without measuring anything, and although nothing that the commands read is there.
#[test]
fn wrong_commands_are_found_before_any_is_run() {
    let (_guard, folder) = folder();
    let file = folder.join("commands");
    let distill = r#"["distill", "--dataset", "digits", "--ipc", "10", "--run-dir", "a""#;
    let attack = r#"["attack", "--checkpoint", "b/model.safetensors", "--dataset", "digits""#;
    let cases = [
        (format!("{distill}]"), None),
        (r#"["train", "--synthetic", "a", "--run-dir", "b"]"#.to_owned(), None),
        (format!("{attack}, \"--attack\", \"pgd\", \"--eps\", \"0.1\"]"), None),
        (format!("{distill}, \"--set\", \"aac.synthetc={{mode=\\\"off\\\"}}\"]"), Some("aac.synthetc")),
        (r#"["train", "--synthetic", "a", "--run-dir", "c", "--set", "length={stps=40}"]"#.to_owned(), Some("stps")),
        (format!("{attack}, \"--attack\", \"aa\", \"--eps\", \"0.1\"]"), Some("`aa` is not an attack")),
        (format!("{attack}, \"--attack\", \"pgd\", \"--eps\", \"32\"]"), Some("write 32/255")),
        (
            format!("{attack}, \"--attack\", \"pgd\", \"--eps\", \"0.1\", \"--set\", \"pgd.stps=3\"]"),
            Some("has no option `stps`"),
        ),
        (format!("{attack}, \"--atack\", \"pgd\"]"), Some("--atack")),
    ];
    fs::write(&file, cases.each_ref().map(|(line, _)| line.as_str()).join("\n")).unwrap();
    let said = text(&run(c2r().arg("estimate").arg(&file).args(["--check", "--device", "cpu"])).stdout);
    let answers: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), cases.len());
    for ((line, reason), answer) in cases.iter().zip(&answers) {
        match reason {
            None => assert_eq!(answer.to_string(), "{}", "{line}"),
            Some(reason) => {
                let error = answer["error"].as_str().unwrap_or_else(|| panic!("{line}: {answer}"));
                assert!(error.contains(reason) && !error.contains('\n') && answer["code"] == 2, "{line}: {answer}");
            }
        }
    }
}
