//! Where a table finds the settings and images behind its numbers.

use super::*;

/// The name of each row's method, and the words of its first run's distillation.
fn rows(folder: &Path) -> Vec<(String, String, bool)> {
    let table = run(c2r().args(["table", "--json"]).arg(folder));
    let table: Value = serde_json::from_slice(&table.stdout).unwrap();
    let rows = table["sections"].as_array().unwrap().iter().flat_map(|section| section["rows"].as_array().unwrap());
    let of_row = |row: &Value| {
        let first = &row["runs"][0];
        (
            row["method"].as_str().unwrap().to_owned(),
            first["distill_argv"].to_string(),
            row["notes"].to_string().contains("REPLACED"),
        )
    };
    rows.map(of_row).collect()
}

/// The names of the pictures that a table of `folder` has.
fn pictures(folder: &Path) -> Vec<String> {
    let to = tempfile::tempdir().unwrap();
    run(c2r().arg("table").arg(folder).arg("--output-dir").arg(to.path()));
    let names = fs::read_dir(to.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".png")).collect();
    names.sort();
    names
}

fn train(words: &[&str], to: &Path) -> Command {
    let mut train = c2r();
    train.args(["train", "--model", "ConvNet-D2-W8-IN", "--threads", "1"]).args(words).arg("--run-dir").arg(to);
    train
}

const STEPS: [&str; 2] = ["--set", "length={steps=5}"];

/// Networks on an imported set and on real images lie in the folder of a distillation, which is then made again.
#[test]
fn settings_and_pictures_are_those_of_the_set_that_was_trained_on() {
    let (_guard, folder) = folder();
    let ours = folder.join("z/ours");
    run(&mut distill(&ours, 2, &[]));
    let dc = Path::new(env!("CARGO_MANIFEST_DIR")).join("../c2r-data/tests/files/dc.pt");
    let theirs = ours.join("theirs.safetensors");
    let mut import = c2r();
    import.arg("import").arg(dc).args(["--dataset", "digits", "--normalized", "0.5/0.5", "--clamp"]);
    run(import.args(["--images", "data[0][0]", "--method", "theirs", "-o"]).arg(&theirs));
    let of_set = |set: &Path, to: &str| {
        run(&mut train(&[&STEPS[..], &["--synthetic", set.to_str().unwrap()]].concat(), &ours.join(to)));
        run(attack(&ours.join(to), "fgsm", "attack.json").args(["--n-test", "60"]));
    };
    of_set(&ours, "natural");
    of_set(&theirs, "other");
    let full = ours.join("full");
    run(&mut train(&["--set", "length={steps=20}", "--dataset", "digits"], &full));
    run(attack(&full, "fgsm", "attack.json").args(["--n-test", "60"]));

    let of = |wanted: &str| rows(&folder).into_iter().find(|(method, ..)| method == wanted).unwrap();
    assert!(of("c2r").1.contains("distill") && !of("c2r").2, "{:?}", of("c2r"));
    assert_eq!([of("theirs").1, of("full").1], ["null", "null"]);
    assert_eq!(pictures(&folder), ["grid-digits-ipc1-c2r.png"]);

    run(&mut distill(&ours, 3, &["--force"]));
    assert_eq!((of("c2r").1.as_str(), of("c2r").2), ("null", true));
    assert_eq!(pictures(&folder), [""; 0]);
    let page = folder.join("out.html");
    run(c2r().arg("report").arg(&folder).arg("-o").arg(&page));
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("distilled again after the network was trained (z/ours/run.json)"), "no note");
    assert!(!page.contains("iterations&quot;: 3") && !page.contains("data:image/png;base64"));

    // Another radius below the network: training again leaves its report.
    let natural = ours.join("natural");
    fs::create_dir(natural.join("eps8")).unwrap();
    run(attack(&natural, "fgsm", "eps8/attack.json").args(["--n-test", "60"]));
    run(&mut train(&[&STEPS[..], &["--force", "--synthetic", ours.to_str().unwrap()]].concat(), &natural));
    run(attack(&natural, "pgd", "attack.json").args(["--n-test", "60", "--force"]));
    let (code, said) = fails(c2r().arg("table").arg(&folder));
    for part in
        ["eps8/attack.json was measured on another network than", "natural/model.safetensors", "attack it again"]
    {
        assert!(code == 3 && said.contains(part), "{code} {said}\nlacks {part}");
    }
    fs::remove_dir_all(natural.join("eps8")).unwrap();
    assert!(of("c2r").1.contains("distill") && !of("c2r").2, "{:?}", of("c2r"));
    assert_eq!(pictures(&folder), ["grid-digits-ipc1-c2r.png"]);
}

/// What labels the images is part of what was trained on.
#[test]
fn sets_with_soft_labels_and_with_a_teacher_are_recognized() {
    let (_guard, folder) = folder();
    for labels in ["soft", "teacher"] {
        let set = folder.join(labels);
        let kind = format!("labels={labels}");
        let teacher = ["--set", "teacher.steps=10", "--set", "teacher.temperature=2.0"];
        run(&mut distill(&set, 2, &[&["--name", labels, "--set", &kind][..], &teacher].concat()));
        run(&mut train(&[&STEPS[..], &["--synthetic", set.to_str().unwrap()]].concat(), &set.join("natural")));
        run(attack(&set.join("natural"), "fgsm", "attack.json").args(["--n-test", "60"]));
        // Without the record of the distillation only the hash of the images tells.
        fs::remove_file(set.join("run.json")).unwrap();
    }
    let whole = ["grid-digits-ipc1-soft.png", "grid-digits-ipc1-teacher.png", "grid-digits-ipc1.png"];
    assert_eq!(pictures(&folder), whole);
    let set = folder.join("teacher/synthetic.safetensors");
    let mut file = TensorFile::read(&set).unwrap();
    let images = file.tensors["images"].shallow_clone();
    file.tensors.insert("images".to_owned(), images * 0.5);
    file.write(&set).unwrap();
    assert_eq!(pictures(&folder), whole[..1]);
}

/// One attack makes a cell without `--each`, several do not; what bears one name is named apart afterwards.
#[test]
fn rows_of_one_method_get_names_of_their_own() {
    let (_guard, folder) = folder();
    let network = folder.join("network");
    run(&mut train(&["--dataset", "digits", "--set", "length={steps=60}"], &network));
    let attacked = |words: &[&str]| {
        let mut attack = c2r();
        attack.args(["attack", "--dataset", "digits", "--threads", "1", "--checkpoint"]).arg(&network).args(words);
        attack
    };
    let clean = text(&run(&mut attacked(&["--attack", "clean"])).stdout);
    assert!(clean.matches("clean").count() == 1 && !clean.contains("radius"), "{clean}");
    let (code, said) = fails(&mut attacked(&["--attack", "clean,pgd"]));
    assert!(code == 2 && said.contains("--eps is missing"), "{said}");

    let report = |name: &str, attacks: &str| {
        let output = folder.join(name).join("attack.json");
        let mut attack = attacked(&["--eps", "32/255", "--attack", attacks, "--output"]);
        text(&run(attack.arg(output)).stderr)
    };
    let note = "cannot read this report; for a table, add --each";
    assert!(report("both", "fgsm,pgd").contains(note));
    assert!(["one", "two"].iter().all(|name| !report(name, "fgsm").contains(note)));
    let table = |names: &[&str]| {
        let mut table = c2r();
        table.args(["table", "one", "two", "--format", "markdown"]).args(names).current_dir(&folder);
        table
    };
    assert_eq!(fails(&mut table(&[])).0, 2, "the same network twice");
    let named = text(&run(&mut table(&["--name", "two=another"])).stdout);
    assert!(named.contains("| all | another") && named.contains("| all | full"), "{named}");
    let (code, said) = fails(&mut table(&["--name", "both=another"]));
    assert!(code == 2 && said.contains("no attack.json of this table is below both"), "{said}");
}

/// A changed profile still calls itself what it was, and the record has all of its settings.
#[test]
fn a_changed_profile_is_noted_and_its_configuration_printed() {
    let (_guard, folder) = folder();
    let said = text(&run(&mut distill(&folder.join("ours"), 1, &[])).stderr);
    assert!(said.contains("tables call this set `c2r`"), "{said}");
    let said = text(&run(&mut distill(&folder.join("named"), 1, &["--name", "mine"])).stderr);
    assert!(!said.contains("tables call this set"), "{said}");
    let printed = |path: &str| text(&run(c2r().args(["inspect", "--config"]).arg(folder.join(path))).stdout);
    let ours = printed("ours");
    assert_eq!(ours, printed("ours/synthetic.safetensors"));
    fs::write(folder.join("ours.toml"), &ours).unwrap();
    let mut again = c2r();
    again.args(["distill", "--dataset", "digits", "--print-config", "--config"]).arg(folder.join("ours.toml"));
    assert_eq!(text(&run(&mut again).stdout), ours);
    assert_eq!(fails(c2r().args(["inspect", "--config", "digits"])).0, 2);
}
