//! Folders of images as datasets: distilled, trained on, attacked, inspected, exported and imported, from wherever the command
//! is started.

use c2r_data::SyntheticSet;

use super::*;

/// Two classes of 8x8 images, four in each split, which differ with `seed`.
fn images(folder: &Path, seed: u32) {
    for (split, class) in [("train", 0), ("train", 1), ("test", 0), ("test", 1)] {
        let to = folder.join(split).join(["cat", "dog"][class as usize]);
        fs::create_dir_all(&to).unwrap();
        for image in 0..4 {
            let offset = 7 * image + 90 * class + seed + u32::from(split == "test");
            let pixel = |x: u32, y: u32| image::Rgb([20 * x + offset, 15 * y + offset, 100].map(|value| value as u8));
            image::RgbImage::from_fn(8, 8, pixel).save(to.join(format!("{image}.png"))).unwrap();
        }
    }
}

fn train(set: &Path, run_dir: &Path) -> Command {
    let mut command = c2r();
    command.args([
        "train",
        "--model",
        "ConvNet-D1-W4-IN",
        "--threads",
        "1",
        "--set",
        "length={steps=2}",
        "--synthetic",
    ]);
    command.arg(set).arg("--run-dir").arg(run_dir);
    command
}

#[test]
fn a_set_of_a_folder_is_used_from_anywhere() {
    let (_guard, folder) = folder();
    let at = |name: &str| folder.join(name);
    images(&at("img"), 0);
    let mut distill = c2r();
    distill.current_dir(&folder).args(["distill", "--dataset", "folder:img", "--config", "random-real", "--ipc", "1"]);
    run(distill.args(["--set", "model=ConvNet-D1-W4-IN", "--threads", "1", "--run-dir", "run"]));
    let set = SyntheticSet::load(&at("run/synthetic.safetensors")).unwrap();
    assert_eq!(set.header.dataset, "folder:img");

    // The set says all that a training needs; the folder is not even there.
    run(&mut train(&at("run"), &at("net")));
    let whole = format!("folder:{}", at("img").display());
    let attack = |dataset: &str, more: &[&str]| {
        let mut attack = c2r();
        attack.args(["attack", "--attack", "fgsm", "--eps", "8/255", "--each", "--threads", "1", "--dataset", dataset]);
        attack.arg("--checkpoint").arg(at("net/model.safetensors")).args(more);
        attack
    };
    run(attack(&whole, &["--output"]).arg(at("net/attack.json")));
    run(attack("folder:img", &[]).current_dir(&folder));
    let table = text(&run(c2r().arg("table").arg(at("net"))).stdout);
    assert!(table.contains("folder:img") && table.contains("random-real"), "{table}");

    // What is chosen on the real images needs them: where they were, or where --data says.
    let chosen = |to: &str| {
        let mut command = train(&at("run"), &at(to));
        command.args(["--select", "best-test"]);
        command
    };
    let (code, said) = fails(&mut chosen("absent"));
    assert!(code == 3 && said.contains("distilled from folder:img") && said.contains("`--data DIR`"), "{code} {said}");
    run(chosen("here").current_dir(&folder));
    run(chosen("there").arg("--data").arg(at("img")));
    images(&at("other"), 1);
    let (code, said) = fails(chosen("absent").arg("--data").arg(at("other")));
    assert!(code == 3 && said.contains("other training images") && !at("absent").exists(), "{code} {said}");

    // Inspected with and without the folder.
    let inspect = |more: &[&str]| {
        let mut inspect = c2r();
        inspect.arg("inspect").arg(at("run/synthetic.safetensors")).args(more);
        inspect
    };
    let said = text(&run(&mut inspect(&[])).stdout);
    assert!(said.contains("synthetic set of folder:img") && !said.contains("labels fit"), "{said}");
    for mut command in [inspect(&["--dataset", &whole]), inspect(&[])] {
        let said = text(&run(command.current_dir(&folder)).stdout);
        assert!(said.contains(" of 2 labels") && !said.contains("looks wrong: mean and std"), "{said}");
    }
    let (code, said) = fails(&mut inspect(&["--dataset", "folder:absent"]));
    assert!(code == 3 && said.contains("absent"), "{code} {said}");
}

#[test]
fn sets_of_a_folder_go_out_and_come_in() {
    let (_guard, folder) = folder();
    let at = |name: &str| folder.join(name);
    images(&at("img"), 0);
    let mut distill = c2r();
    distill.current_dir(&folder).args(["distill", "--dataset", "folder:img", "--config", "random-real", "--ipc", "1"]);
    run(distill.args(["--set", "model=ConvNet-D1-W4-IN", "--threads", "1", "--run-dir", "run"]));
    run(c2r().arg("export").arg(at("run")).args(["--to", "pt"]).arg(at("set.pt")));
    let whole = format!("folder:{}", at("img").display());
    let import = |dataset: &str, to: &str| {
        let mut import = c2r();
        import.arg("import").arg(at("set.pt")).args(["--dataset", dataset, "-o"]).arg(at(to));
        import
    };
    run(&mut import(&whole, "a.safetensors"));
    run(import("folder:img", "b.safetensors").current_dir(&folder));
    let [ours, a, b] = ["run/synthetic.safetensors", "a.safetensors", "b.safetensors"]
        .map(|name| SyntheticSet::load(&at(name)).unwrap());
    assert!(ours.images == a.images && a.images == b.images && ours.header.mean == a.header.mean);
    assert_eq!([&a, &b].map(|set| set.header.dataset.as_str()), [&whole, "folder:img"]);
    run(&mut train(&at("a.safetensors"), &at("net")));

    // A network of others on the test images of a folder, with the number of images that it was trained on.
    run(c2r().arg("export").arg(at("net")).args(["--to", "torchscript"]).arg(at("net.pt")));
    let mut attack = c2r();
    attack.args([
        "attack",
        "--attack",
        "fgsm",
        "--eps",
        "8/255",
        "--threads",
        "1",
        "--ipc",
        "all",
        "--dataset",
        &whole,
    ]);
    run(attack.arg("--model").arg(at("net.pt")).arg("--output").arg(at("attack.json")));
    let report: Value = serde_json::from_slice(&fs::read(at("attack.json")).unwrap()).unwrap();
    assert_eq!(report["subject"]["n_images"], 8);

    let line = format!(r#"["train", "--dataset", "{whole}", "--run-dir", "x"]"#);
    fs::write(at("commands"), line).unwrap();
    let said = text(&run(c2r().arg("estimate").arg(at("commands")).args(["--threads", "1"])).stdout);
    assert!(said.contains("seconds"), "{said}");
}
