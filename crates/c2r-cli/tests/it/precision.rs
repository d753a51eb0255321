//! Float formats of convolutions and matrix products.

use super::*;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn float_formats_are_recorded_and_bf16_is_for_training() {
    let (_guard, folder) = folder();
    let formats = |format: &str| serde_json::json!({"convolutions": format, "matmuls": format});
    let train = |name: &str, more: &[&str]| {
        let run_dir = folder.join(name);
        let mut command = c2r();
        command.args(["train", "--dataset", "digits", "--model", "ConvNet-D2-W8-IN", "--train-per-class", "2"]);
        command.args(["--threads", "1", "--set", "length={steps=3}", "--device", "cpu"]);
        command.arg("--run-dir").arg(&run_dir).args(more);
        (run_dir, command)
    };
    let weights = |run_dir: &Path| fs::read(run_dir.join("model.safetensors")).unwrap();
    let (plain, mut command) = train("plain", &[]);
    run(&mut command);
    let (same, mut command) = train("fp32", &["--precision", "fp32"]);
    run(&mut command);
    assert_eq!(json(&plain.join("run.json"))["precision"], formats("fp32"));
    assert_eq!(weights(&plain), weights(&same), "the default on the CPU");

    let (bf16, mut command) = train("bf16", &["--precision", "bf16"]);
    run(&mut command);
    let record = json(&bf16.join("run.json"));
    assert_eq!(record["precision"], formats("bf16"));
    let [a, b] = [&plain, &bf16].map(|run_dir| TensorFile::read(&run_dir.join("model.safetensors")).unwrap().tensors);
    let difference = |name: &String| f64::try_from((&a[name] - &b[name]).abs().max()).unwrap();
    let largest = a.keys().map(difference).fold(0.0, f64::max);
    assert!(largest > 1e-6 && largest < 0.05, "a rounding, and no more: {largest}");
    let (code, said) = fails(&mut train("bf16", &[]).1);
    assert!(code == 2 && said.contains("another configuration") && said.contains("trained in bf16"), "{said}");

    run(attack(&bf16, "fgsm", "attack.json").args(["--n-test", "20", "--device", "cpu"]));
    let report = json(&bf16.join("attack.json"));
    assert_eq!(report["precision"], formats("fp32"));
    let said = text(&run(c2r().arg("table").arg(&bf16)).stdout);
    assert!(said.contains("trained in bf16"), "{said}");

    for (command, words, part) in [
        (attack(&bf16, "fgsm", "again.json"), ["--precision", "bf16"], "for `c2r train` only"),
        (distill(&folder.join("set"), 1, &[]), ["--precision", "bf16"], "for `c2r train` only"),
        (train("x", &[]).1, ["--precision", "tf32"], "needs an NVIDIA GPU"),
        (train("x", &[]).1, ["--precision", "fp16"], "[possible values: fp32, tf32, bf16]"),
    ] {
        let mut command = command;
        let (code, said) = fails(command.args(words));
        assert!(code == 2 && said.contains(part), "{said}");
    }
}
