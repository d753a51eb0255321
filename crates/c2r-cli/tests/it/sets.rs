//! Synthetic sets of ours and of others: imported, exported, trained on and put into one table.

use super::*;

/// From a run folder and from the file of another project to one table, with notes; two sets need two names.
#[test]
fn an_imported_set_stands_beside_a_distilled_one() {
    let (_guard, folder) = folder();
    let at = |name: &str| folder.join(name);
    run(&mut distill(&at("ours/distill"), 2, &[]));
    let dc = Path::new(env!("CARGO_MANIFEST_DIR")).join("../c2r-data/tests/files/dc.pt");
    let import = |images: &str, to: &str| {
        let mut import = c2r();
        import.arg("import").arg(&dc).args(["--dataset", "digits", "--normalized", "0.5/0.5", "--clamp"]);
        run(import.args(["--images", images, "-o"]).arg(at(to)));
    };
    import("data[0][0]", "a.safetensors");
    import("data[1][0]", "b.safetensors");
    let said = text(&run(c2r().arg("inspect").arg(at("a.safetensors"))).stdout);
    assert!(said.contains("cut off") && said.contains("% of the values lie outside [0, 1]"), "{said}");

    let measure = |set: &str, to: &str| {
        let mut train = c2r();
        train.args(["train", "--model", "ConvNet-D2-W8-IN", "--threads", "1", "--set", "length={steps=5}"]);
        run(train.arg("--synthetic").arg(at(set)).arg("--run-dir").arg(at(to)));
        run(attack(&at(to), "fgsm", "attack.json").args(["--n-test", "60"]));
    };
    measure("ours/distill", "ours/natural");
    measure("a.safetensors", "a");
    measure("b.safetensors", "b");
    let table = |names: &[&str]| {
        let mut table = c2r();
        table.arg("table").args(names.iter().map(|name| at(name)));
        table
    };
    let said = text(&run(&mut table(&["ours", "a"])).stdout);
    for part in ["c2r", "imported", "from which real images is not known", "lie outside [0, 1]"] {
        assert!(said.contains(part), "{said}\nlacks {part}");
    }
    let (code, said) = fails(&mut table(&["ours", "a", "b"]));
    assert!(
        code == 2 && said.contains("different sets under one name") && said.contains("--method NAME"),
        "{code} {said}"
    );

    // A run folder that holds no set.
    let mut train = c2r();
    let (code, said) = fails(train.args(["train", "--synthetic"]).arg(at("a")).arg("--run-dir").arg(at("c")));
    assert!(code == 3 && said.contains("a run folder without synthetic.safetensors"), "{code} {said}");
}

/// A file of torch, in, through every format and back; and what is refused leaves nothing.
#[test]
fn sets_of_others_come_in_and_go_out() {
    let (_guard, folder) = folder();
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../c2r-data/tests/files");
    let at = |name: &str| folder.join(name);
    let import = |from: &Path, more: &[&str], to: &str| {
        let mut command = c2r();
        command.arg("import").arg(from).args(more).arg("-o").arg(at(to));
        command
    };
    let export = |from: &str, format: &str, to: &str| {
        let mut command = c2r();
        command.arg("export").arg(at(from)).args(["--to", format]).arg(at(to));
        command
    };
    let digits = ["--dataset", "digits", "--normalized", "digits", "--method", "dm"];
    run(&mut import(&files.join("dc.pt"), &digits, "dm.safetensors"));
    run(&mut export("dm.safetensors", "npz", "dm.npz"));
    run(&mut import(&at("dm.npz"), &[], "back.safetensors"));
    assert_eq!(fs::read(at("dm.safetensors")).unwrap(), fs::read(at("back.safetensors")).unwrap());

    // Undoing a normalization leaves pixels beside the multiples of 1/255.
    let (code, message) = fails(&mut export("dm.safetensors", "png", "png"));
    assert!(code == 3 && message.contains("--quantize") && !at("png").exists(), "{message}");
    run(export("dm.safetensors", "png", "png").arg("--quantize"));
    run(&mut import(&at("png"), &[], "bytes.safetensors"));
    run(&mut export("bytes.safetensors", "png", "again"));

    // The folder of a run stands for the set in it.
    fs::create_dir(at("run")).unwrap();
    let (code, message) = fails(&mut export("run", "npz", "run.npz"));
    assert!(code == 3 && message.contains("neither a run folder"), "{code}: {message}");
    fs::write(at("run/run.json"), "{}").unwrap();
    let (code, message) = fails(&mut export("run", "npz", "run.npz"));
    assert!(code == 3 && message.contains("a run folder without synthetic.safetensors"), "{code}: {message}");
    fs::copy(at("dm.safetensors"), at("run/synthetic.safetensors")).unwrap();
    run(&mut export("run", "npz", "run.npz"));
    assert_eq!(fs::read(at("run.npz")).unwrap(), fs::read(at("dm.npz")).unwrap());

    for (from, more, code, expected) in [
        (files.join("call.pt"), &digits[..], 3, "will not run"),
        (files.join("dc.pt"), &digits[..2], 3, "normalized? Say `--normalized"),
        (files.join("dc.pt"), &[], 2, "--dataset NAME"),
        (at("absent.npz"), &digits, 3, "absent.npz"),
        // A file that says all itself is told nothing.
        (at("dm.npz"), &["--method", "mine"], 2, "--dataset <NAME>"),
        (at("dm.npz"), &["--clamp"], 2, "--dataset <NAME>"),
    ] {
        let (found, message) = fails(&mut import(&from, more, "refused.safetensors"));
        assert!(found == code && message.contains(expected), "{found}: {message}");
        assert!(!at("refused.safetensors").exists());
    }
    let (code, message) = fails(&mut import(&files.join("dc.pt"), &digits, "dm.safetensors"));
    assert!(code == 2 && message.contains("--force"), "{message}");
}
