//! Networks as PyTorch saved them; the files are made by `crates/c2r-models/tests/state_dict.py`.

use super::*;

const ARCH: &str = "ConvNet-D1-W4-IN";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../c2r-models/tests/files").join(name)
}

fn attack_it(name: &str, arch: &str, more: &[&str]) -> Command {
    let mut command = c2r();
    command.args(["attack", "--dataset", "digits", "--eps", "32/255", "--attack", "fgsm", "--each", "--threads", "1"]);
    command.arg("--state-dict").arg(file(name)).args(["--arch", arch]).args(more);
    command
}

#[test]
fn a_state_dict_is_attacked_wherever_the_file_has_it_and_is_a_row() {
    let (_guard, folder) = folder();
    let judged = |name: &str, output: &str, more: &[&str]| -> Value {
        let path = folder.join(output);
        let text = path.to_str().unwrap();
        run(attack_it(name, ARCH, &["--output", text]).args(more));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let row = ["--ipc", "10", "--method", "dm", "--protocol", "natural"];
    let plain = judged("sd-plain.pth", "a/attack.json", &row);
    let other = ["--ipc", "10", "--method", "dm", "--protocol", "natural", "--train-seed", "1"];
    let nested = judged("sd-training.pt", "b/attack.json", &other);
    assert_eq!(plain["samples"], nested["samples"], "the same parameters give the same outcome for every image");
    let notes = nested["notes"].to_string();
    // One momentum for each of the six parameters, and the list of their numbers.
    assert!(notes.contains("ignored 7 tensors") && notes.contains("optimizer.state"), "{notes}");
    assert_eq!(plain["subject"]["model"], ARCH);
    assert_eq!(
        (plain["subject"]["images_per_class"].as_u64(), plain["subject"]["n_images"].as_u64()),
        (Some(10), Some(100))
    );

    let named = judged("sd-plain.pth", "c/attack.json", &["--ipc", "all", "--normalized", "0.5/0.25"]);
    assert_ne!(plain["samples"], named["samples"], "the normalization takes part");
    let method = named["subject"]["method"].as_str().unwrap();
    assert!(method.starts_with("sd-plain.pth@") && method.len() == 13 + 8, "{method}");
    assert!(named["subject"]["notes"].to_string().contains("normalized by 0.5/0.25"), "{named}");
    let table = text(&run(c2r().args(["table", "--format", "csv"]).arg(folder.join("a")).arg(folder.join("b"))).stdout);
    assert!(table.contains("dm") && table.contains(ARCH), "{table}");

    // A report without images per class cannot be a row.
    let without = judged("sd-plain.pth", "d/attack.json", &[]);
    assert!(without["subject"].is_null() && without["evaluation"].is_object(), "{without}");
    // The same file read in another way is another evaluation.
    let path = folder.join("d/attack.json");
    let (code, said) =
        fails(&mut attack_it("sd-plain.pth", ARCH, &["--normalized", "0.5/0.25", "--output", path.to_str().unwrap()]));
    assert!(code == 2 && said.contains("state_dict"), "{said}");
}

#[test]
fn what_does_not_fit_or_is_not_read_says_what_to_do() {
    let (code, said) = fails(&mut attack_it("sd-plain.pth", "ConvNet-D2-W8-IN", &[]));
    assert_eq!(code, 3, "{said}");
    for part in [
        "missing in the file: `features.4.weight` [8, 8, 3, 3]",
        "`features.0.weight` is [4, 1, 3, 3] in the file and [8, 1, 3, 3] in the architecture",
        "the file fits ConvNet-D1-W4-IN or ConvNet-D1-W4-GN",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let (code, said) = fails(&mut attack_it("sd-legacy.pth", ARCH, &[]));
    assert!(code == 3 && said.contains("python3 -c") && said.contains("torch.save"), "{code}: {said}");
    let (code, said) = fails(&mut attack_it("sd-plain.pth", "LeNet", &[]));
    assert!(code == 2 && said.contains("AlexNet-NONE"), "{said}");
    let (code, said) = fails(&mut attack_it("sd-plain.pth", ARCH, &["--normalized", "cifar11"]));
    assert!(code == 2 && said.contains("cifar10-dd"), "{said}");
    let (code, said) = fails(&mut attack_it("sd-plain.pth", ARCH, &["--normalized", "cifar10-dd"]));
    assert!(code == 3 && said.contains("mean has 3 values for 1 channels"), "{code}: {said}");
    let (code, said) = fails(c2r().arg("inspect").arg("--state-dict").arg(file("sd-plain.pth")));
    assert!(code == 2 && said.contains("--arch"), "{said}");
}

#[test]
fn inspect_shows_what_it_is() {
    let mut command = c2r();
    command.args(["inspect", "--arch", ARCH, "--dataset", "digits", "--state-dict"]).arg(file("sd-training.pt"));
    let said = text(&run(&mut command).stdout);
    // 4 x 9 + 4 of the convolution, 8 of the norm, 10 x 64 + 10 of the last layer.
    for part in ["state_dict of ConvNet-D1-W4-IN", "698", "[1, 8, 8], 10 classes (digits)", "ignored 7 tensors"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("looks wrong"), "{said}");
}
