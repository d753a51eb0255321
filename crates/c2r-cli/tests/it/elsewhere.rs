//! Networks of c2r on images of another dataset than they were trained on.

use super::*;

/// A folder of RGB images, 8 pixels wide.
fn images(folder: &Path, classes: &[&str], shade: u8) {
    for (at, class) in classes.iter().enumerate() {
        for (split, n) in [("train", 2u8), ("test", 6)] {
            let inside = folder.join(split).join(class);
            fs::create_dir_all(&inside).unwrap();
            for image in 0..n {
                let pixel = |x: u32, y: u32| image::Rgb([20 * at as u8 + image, shade + 8 * x as u8, 16 * y as u8]);
                image::RgbImage::from_fn(8, 8, pixel).save(inside.join(format!("{image}.png"))).unwrap();
            }
        }
    }
}

/// A folder of other classes is refused; one of the same classes is another dataset; another spelling is the same.
#[test]
fn results_are_filed_under_the_dataset_that_was_attacked() {
    let (_guard, folder) = folder();
    images(&folder.join("nb"), &["ant", "bee"], 0);
    images(&folder.join("shifted"), &["ant", "bee"], 90);
    images(&folder.join("others"), &["bee", "cow"], 0);
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
    run(train.args(["--set", "length={steps=2}", "--threads", "1"]));
    let attack = |dataset: &str, output: &str| {
        let mut attack = c2r();
        attack.current_dir(&folder).args(["attack", "--checkpoint", "r/model.safetensors", "--dataset", dataset]);
        attack.args(["--attack", "fgsm", "--eps", "2/255", "--each", "--threads", "1", "--output", output]);
        attack
    };
    let (code, said) = fails(&mut attack("folder:others", "r/others/attack.json"));
    for part in
        ["r/model.safetensors was trained on folder:nb", "class 0 is `ant` there and `bee` here", "--dataset folder:nb"]
    {
        assert!(code == 2 && said.contains(part), "{code} {said}\nlacks {part}");
    }
    assert!(!folder.join("r/others").exists());
    run(&mut attack(&format!("folder:{}", folder.join("nb").display()), "r/attack.json"));
    let said = text(&run(&mut attack("folder:shifted", "r/shifted/attack.json")).stdout);
    let note = "trained on folder:nb; judged on images of folder:shifted";
    assert!(said.contains(note), "{said}");
    let subject = |report: &str| -> Value {
        let report: Value = serde_json::from_slice(&fs::read(folder.join(report)).unwrap()).unwrap();
        report["subject"]["dataset"].clone()
    };
    assert_eq!([subject("r/attack.json"), subject("r/shifted/attack.json")], ["folder:nb", "folder:shifted"]);
    let said = text(&run(c2r().arg("table").arg(folder.join("r"))).stdout);
    for part in ["## folder:nb, natural training", "## folder:shifted, natural training", note] {
        assert!(said.contains(part), "{said}\nlacks {part}");
    }
    // The settings of the training are known for both.
    let table: Value =
        serde_json::from_slice(&run(c2r().args(["table", "--json"]).arg(folder.join("r"))).stdout).unwrap();
    for section in table["sections"].as_array().unwrap() {
        assert!(section["rows"][0]["runs"][0]["train_config"].is_string(), "{section}");
    }
}

/// The network says that it was trained on another dataset than it was.
#[test]
fn a_registered_dataset_is_compared_with_a_folder_by_its_classes() {
    let (_guard, folder) = folder();
    let cifar = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
    images(&folder.join("x10"), &cifar, 40);
    let mut train = c2r();
    train.current_dir(&folder).args([
        "train",
        "--dataset",
        "folder:x10",
        "--model",
        "ConvNet-D1-W4-IN",
        "--run-dir",
        "r",
    ]);
    run(train.args(["--set", "length={steps=2}", "--threads", "1"]));
    let network = folder.join("r/model.safetensors");
    let attack = |trained: &str, dataset: &str| {
        let mut file = TensorFile::read(&network).unwrap();
        let mut subject: Value = serde_json::from_str(&file.header["subject"]).unwrap();
        subject["dataset"] = trained.into();
        file.header.insert("subject".to_owned(), subject.to_string());
        file.write(&network).unwrap();
        let mut attack = c2r();
        attack.current_dir(&folder).args(["attack", "--checkpoint", "r/model.safetensors", "--dataset", dataset]);
        attack.args(["--attack", "fgsm", "--eps", "2/255", "--each", "--threads", "1"]);
        attack
    };
    let said = text(&run(&mut attack("cifar10", "folder:x10")).stdout);
    assert!(said.contains("trained on cifar10; judged on images of folder:x10"), "{said}");
    let (code, said) = fails(&mut attack("imagenette", "folder:x10"));
    for part in
        ["was trained on imagenette", "class 0 is `tench` there and `airplane` here", "(tench, English springer,"]
    {
        assert!(code == 2 && said.contains(part), "{code} {said}\nlacks {part}");
    }
    let said = text(&run(&mut attack("folder:gone", "folder:x10")).stdout);
    assert!(said.contains("trained on folder:gone, whose classes could not be compared; judged on"), "{said}");
}
