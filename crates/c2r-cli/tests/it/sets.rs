//! Synthetic sets of ours and of others: imported, exported, trained on and put into one table.

use c2r_data::SyntheticSet;

use super::*;

/// From a run folder and from the file of another project to one table, with notes; two sets need two names.
#[test]
fn an_imported_set_stands_beside_a_distilled_one() {
    let (_guard, folder) = folder();
    let at = |name: &str| folder.join(name);
    run(&mut distill(&at("ours/distill"), 2, &[]));
    let dc = Path::new(env!("CARGO_MANIFEST_DIR")).join("../c2r-data/tests/files/dc.pt");
    let import = |images: &str, to: &str, seed: &str| {
        let mut import = c2r();
        import.arg("import").arg(&dc).args(["--dataset", "digits", "--normalized", "0.5/0.5", "--clamp"]);
        run(import.args(["--images", images, "--seed", seed, "-o"]).arg(at(to)));
    };
    import("data[0][0]", "a.safetensors", "0");
    import("data[1][0]", "b.safetensors", "0");
    let said = text(&run(c2r().arg("inspect").arg(at("a.safetensors"))).stdout);
    assert!(said.contains("clipped") && said.contains("% of the values lie outside [0, 1]"), "{said}");
    assert!(said.contains("over 10 % of the values were clipped"), "{said}");
    let (code, said) = fails(
        c2r().args(["train", "--model", "ConvNet-D2-W8-IN", "--synthetic"]).arg(&dc).arg("--run-dir").arg(at("x")),
    );
    assert!(code == 3 && said.contains("PyTorch file") && said.contains("`c2r import"), "{code} {said}");

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
    let shown_first = run(&mut table(&["ours", "a"]));
    assert!(!text(&shown_first.stderr).contains("not in the table"), "{}", text(&shown_first.stderr));
    // Another network, and an attack that was stopped.
    std::fs::create_dir_all(at("ours/later")).unwrap();
    for name in ["run.json", "model.safetensors"] {
        std::fs::copy(at("b").join(name), at("ours/later").join(name)).unwrap();
    }
    std::fs::create_dir_all(at("ours/stopped")).unwrap();
    std::fs::write(at("ours/stopped/attack.run.json"), "{}").unwrap();
    let shown = run(&mut table(&["ours", "a"]));
    let noted = text(&shown.stderr);
    assert!(noted.contains("2 folders not in the table, because no attack on the network is finished: "), "{noted}");
    assert!(noted.contains("ours/later, ") && noted.contains("ours/stopped"), "{noted}");
    // Attacked elsewhere: the report names the network by its hash.
    let shown = run(&mut table(&["ours", "b"]));
    assert!(text(&shown.stderr).contains("1 folder not in the table"), "{}", text(&shown.stderr));
    for name in ["later", "stopped"] {
        std::fs::remove_dir_all(at("ours").join(name)).unwrap();
    }
    let said = text(&shown_first.stdout);
    for part in ["c2r", "imported", "the real images it was distilled from are unknown", "lie outside [0, 1]"] {
        assert!(said.contains(part), "{said}\nlacks {part}");
    }
    let (code, said) = fails(&mut table(&["ours", "a", "b"]));
    assert!(
        code == 2 && said.contains("different sets under one name") && said.contains("--method NAME"),
        "{code} {said}"
    );
    // Of one method they are two runs.
    import("data[1][0]", "c.safetensors", "1");
    measure("c.safetensors", "c");
    let said = text(&run(&mut table(&["ours", "a", "c"])).stdout);
    let row = said.lines().find(|line| line.starts_with("| 2 | imported")).unwrap();
    assert_eq!(row.split(" | ").nth(2), Some("2"), "two runs: {row}");

    // The seed of a set that c2r distilled is how it was made; its name is free.
    let rename = |more: &[&str]| {
        let mut import = c2r();
        import
            .arg("import")
            .arg(at("ours/distill/synthetic.safetensors"))
            .args(more)
            .arg("-o")
            .arg(at("mine.safetensors"));
        import
    };
    let (code, said) = fails(&mut rename(&["--seed", "8"]));
    assert!(code == 2 && said.contains("distilled by c2r with seed 7") && said.contains("leave --seed out"), "{said}");
    run(&mut rename(&["--seed", "7", "--method", "mine"]));
    assert_eq!(SyntheticSet::load(&at("mine.safetensors")).unwrap().header.method, "mine");

    // A run folder that holds no set.
    let mut train = c2r();
    let (code, said) = fails(train.args(["train", "--synthetic"]).arg(at("a")).arg("--run-dir").arg(at("d")));
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

    // A set that says all itself may be called otherwise in tables.
    run(&mut import(&at("dm.npz"), &["--method", "theirs", "--seed", "4"], "renamed.safetensors"));
    let [mut plain, renamed] =
        ["dm", "renamed"].map(|name| SyntheticSet::load(&at(&format!("{name}.safetensors"))).unwrap());
    (plain.header.method, plain.header.seed) = ("theirs".to_owned(), 4);
    assert_eq!(plain, renamed);

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
        (files.join("dc.pt"), &digits[..2], 3, "normalized? Use `--normalized"),
        (files.join("dc.pt"), &[], 2, "--dataset NAME"),
        (at("absent.npz"), &digits, 3, "absent.npz"),
        // A file that says all itself is told nothing but another name.
        (at("dm.npz"), &["--clamp"], 2, "--dataset <NAME>"),
        (at("dm.npz"), &["--method", " "], 2, "at least one character"),
    ] {
        let (found, message) = fails(&mut import(&from, more, "refused.safetensors"));
        assert!(found == code && message.contains(expected), "{found}: {message}");
        assert!(!at("refused.safetensors").exists());
    }
    let (code, message) = fails(&mut import(&files.join("dc.pt"), &digits, "dm.safetensors"));
    assert!(code == 2 && message.contains("--force"), "{message}");
    // A set of ours would lose its header, and a picture that set.json does not list would be left out.
    for set in ["dm.npz", "png"] {
        let (code, message) = fails(&mut import(&at(set), &digits[..2], "refused.safetensors"));
        assert!(code == 2 && message.contains("leave --dataset out"), "{message}");
    }
    fs::copy(at("png/0/00.png"), at("png/0/more.png")).unwrap();
    let (code, message) = fails(&mut import(&at("png"), &[], "refused.safetensors"));
    assert!(code == 3 && message.contains("1 images are not listed in it, such as"), "{message}");
}

/// Folders whose names say nothing are taken as they are sorted only where that is said.
#[test]
fn folders_of_others_are_matched_or_refused() {
    let (_guard, folder) = folder();
    for (class, name) in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"].into_iter().enumerate() {
        fs::create_dir_all(folder.join("set").join(name)).unwrap();
        image::GrayImage::from_pixel(8, 8, image::Luma([class as u8]))
            .save(folder.join("set").join(name).join("0.png"))
            .unwrap();
    }
    let import = |more: &[&str]| {
        let mut command = c2r();
        command
            .current_dir(&folder)
            .args(["import", "set", "--dataset", "digits", "-o", "out.safetensors", "--force"])
            .args(more);
        command
    };
    let (code, message) = fails(&mut import(&[]));
    assert!(
        code == 3 && message.contains("no class is called a, b") && message.contains("use `--sorted`"),
        "{message}"
    );
    run(&mut import(&["--sorted"]));
    fs::write(folder.join("set/a/1.webp"), "").unwrap();
    let (code, message) = fails(&mut import(&["--sorted"]));
    assert!(code == 3 && message.contains("1 image that c2r does not read (a/1.webp)"), "{message}");
    let (code, message) = fails(c2r().args(["inspect", "folder:~/plain"]));
    assert!(code == 3 && message.contains("only a shell expands `~`"), "{message}");
    let (code, message) = fails(c2r().args(["inspect", "cifar10", "--data=~/plain"]));
    assert!(code == 3 && message.contains("there is no folder ~/plain"), "{message}");
}

/// Blue is 0 everywhere: its deviation is 0, and nothing is divided by that.
#[test]
fn a_channel_that_never_varies_trains() {
    let (_guard, folder) = folder();
    for (at, (split, class)) in [("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")].into_iter().enumerate() {
        fs::create_dir_all(folder.join("nb").join(split).join(class)).unwrap();
        for image in 0..2 {
            let pixel = |x: u32, y: u32| image::Rgb([(40 * at as u32 + 16 * x + image) as u8, (y * 20) as u8, 0]);
            let path = folder.join("nb").join(split).join(class).join(format!("{image}.png"));
            image::RgbImage::from_fn(8, 8, pixel).save(path).unwrap();
        }
    }
    let mut train = c2r();
    train.current_dir(&folder).args([
        "train",
        "--dataset",
        "folder:nb",
        "--model",
        "ConvNet-D1-W4-IN",
        "--run-dir",
        "r",
    ]);
    let output = run(train.args(["--protocol", "natural", "--set", "length={steps=2}", "--threads", "1"]));
    let said = text(&output.stderr);
    assert!(said.contains("nb: channel 2 (blue) is 0 in every training image"), "{said}");
    let model = c2r_base::artifact::TensorFile::read(&folder.join("r/model.safetensors")).unwrap();
    assert!(model.tensors.values().all(|tensor| tensor.isfinite().all().int64_value(&[]) == 1));
}

/// Other programs get the images that networks are trained on, and mosaics only where they are asked for.
#[test]
fn mosaics_are_decoded_on_their_way_out() {
    let (_guard, folder) = folder();
    let at = |name: &str| folder.join(name);
    let mut distill = c2r();
    distill.args(["distill", "--dataset", "digits", "--config", "random-real-mosaic", "--ipc", "2", "--threads", "1"]);
    run(distill.arg("--run-dir").arg(at("run")));
    let stored = SyntheticSet::load(&at("run/synthetic.safetensors")).unwrap();
    let export = |format: &str, to: &str, more: &[&str]| {
        let mut command = c2r();
        text(&run(command.arg("export").arg(at("run")).args(["--to", format]).arg(at(to)).args(more)).stderr)
    };
    let said = export("npz", "set.npz", &[]);
    assert!(said.contains("2x2 mosaic is decoded: 2 stored images per class become 8"), "{said}");
    assert_eq!(SyntheticSet::load(&at("set.npz")).unwrap(), stored.decoded());
    assert!(!export("png", "png", &["--quantize"]).contains("are 2x2 mosaics"));
    assert_eq!(SyntheticSet::load(&at("png")).unwrap().labels, stored.decoded().labels);
    for (format, to) in [("safetensors", "stored.safetensors"), ("npz", "stored.npz"), ("pt", "stored.pt")] {
        let said = export(format, to, &["--stored"]);
        assert!(said.contains("the images are 2x2 mosaics; cut them apart before training"), "{said}");
    }
    assert_eq!(fs::read(at("stored.safetensors")).unwrap(), fs::read(at("run/synthetic.safetensors")).unwrap());

    // What DC's scripts take comes back.
    let said = export("pt", "set.pt", &["--normalized"]);
    assert!(said.contains("mean [0.3054] and std [0.3753]"), "{said}");
    let mut import = c2r();
    import.arg("import").arg(at("set.pt")).args(["--dataset", "digits", "--normalized", "digits", "--clamp", "-o"]);
    run(import.arg(at("back.safetensors")));
    let back = SyntheticSet::load(&at("back.safetensors")).unwrap();
    let furthest = (&back.images - &stored.decoded().images).mapv(f32::abs).fold(0.0f32, |most, x| most.max(*x));
    assert!(back.labels == stored.decoded().labels && furthest < 1e-6, "{furthest}");

    let mut train = c2r();
    train.args(["train", "--model", "ConvNet-D2-W8-IN", "--threads", "1", "--set", "length={steps=2}"]);
    run(train.arg("--synthetic").arg(at("set.npz")).arg("--run-dir").arg(at("net")));
    let record = fs::read_to_string(at("net/run.json")).unwrap();
    assert!(record.contains("decoded from 2 mosaics of 2x2 images per class"), "{record}");

    for (words, expected) in [
        (&["--to", "npz", "--normalized"][..], "--normalized is only for --to pt"),
        (&["--to", "pt", "--quantize"], "--quantize is only for --to png"),
        (&["--to", "torchscript", "--stored"], "--stored is only for sets"),
    ] {
        let (code, said) = fails(c2r().arg("export").arg(at("run")).args(words).arg(at("refused")));
        assert!(code == 2 && said.contains(expected) && !at("refused").exists(), "{code}: {said}");
    }
    let (code, said) = fails(c2r().arg("export").arg(at("net")).args(["--to", "npz"]).arg(at("refused")));
    assert!(code == 2 && said.contains("use --to torchscript"), "{code}: {said}");
}
