//! What docs/formats.md shows to users of Python, run as it stands there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use c2r_data::SyntheticSet;
use ndarray::Array2;
use tch::{Kind, Tensor};

const PAGE: &str = include_str!("../../../../docs/formats.md");

/// The interpreter that `cargo xtask test` prepares.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("C2R_TEST_PYTHON").map(PathBuf::from);
    if python.is_none() {
        c2r_testkit::skipped(
            "the examples of docs/formats.md: C2R_TEST_PYTHON names no Python with numpy, safetensors and pillow; \
             cargo xtask test installs one",
        );
    }
    python
}

/// The blocks of Python on the page that hold `text`, and no torch, which the environment of the tests does not have.
fn blocks(text: &str) -> Vec<&'static str> {
    let all = PAGE.split("```python\n").skip(1).filter_map(|rest| rest.split("```").next());
    all.filter(|block| block.contains(text) && !block.contains("torch")).collect()
}

/// Runs a script that must end with a line `read`.
fn reads(python: &Path, script: &str, folder: &Path) {
    let output = Command::new(python).args(["-c", script]).current_dir(folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout.ends_with(b"read\n"), "{script}\n{text}");
}

/// `c2r export --stored` and the function of the page give what `c2r export` gives.
#[test]
fn numpy_decodes_mosaics_as_we_do() {
    let [block] = blocks("def decode")[..] else { panic!("one function in NumPy") };
    assert!(block.lines().filter(|line| !line.is_empty()).count() <= 11, "{block}");
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let digits = c2r_data::load("digits", None).unwrap().train.subset_per_class(2);
    let set = SyntheticSet {
        images: digits.images().mapv(|byte| f32::from(byte) / 255.0),
        labels: digits.labels().to_owned(),
        soft_labels: None,
        formation: 2,
        header: crate::synthetic::digits_header(2),
    };
    set.save_npz(&folder.path().join("stored.npz")).unwrap();
    set.decoded().save_npz(&folder.path().join("decoded.npz")).unwrap();
    let checks = "
stored, ours = np.load('stored.npz'), np.load('decoded.npz')
assert stored['formation'].item() == '2' and ours['formation'].item() == '1'
images, labels = decode(stored['images'], 2), stored['labels'].repeat(4)
assert images.dtype == np.float32 and images.shape == (80, 1, 8, 8) and np.ptp(images) > 0.9
assert abs(images - ours['images']).max() < 1e-6 and (labels == ours['labels']).all()
print('read')
";
    reads(&python, &format!("{block}{checks}"), folder.path());
}

#[test]
fn python_reads_every_format() {
    let blocks = blocks("\"images\"]");
    assert_eq!(blocks.len(), 3, "safetensors, npz and PNG");
    assert!(blocks[..2].iter().all(|block| block.lines().count() == 2), "two lines each");
    let Some(python) = python() else { return };

    let folder = tempfile::tempdir().unwrap();
    let digits = c2r_data::load("digits", None).unwrap().train.subset_per_class(2);
    let soft = Array2::from_shape_fn((20, 10), |(n, k)| if digits.labels()[n] == k as i64 { 0.91 } else { 0.01 });
    let set = SyntheticSet {
        images: digits.images().mapv(|byte| f32::from(byte) / 255.0),
        labels: digits.labels().to_owned(),
        soft_labels: Some(soft),
        formation: 1,
        header: crate::synthetic::digits_header(2),
    };
    set.save(&folder.path().join("set.safetensors")).unwrap();
    set.save_npz(&folder.path().join("set.npz")).unwrap();
    set.save_png(&folder.path().join("set"), false).unwrap();
    fs::write(folder.path().join("bytes"), crate::bytes(&digits)).unwrap();
    let labels = set.labels.to_vec();

    let checks = "
import numpy as np
expected = np.fromfile('bytes', dtype=np.uint8).reshape(20, 1, 8, 8).astype(np.float32) / 255
assert images.dtype == np.float32 and images.shape == (20, 1, 8, 8), (images.dtype, images.shape)
assert (images == expected).all()
";
    let more = [
        "assert tensors['soft_labels'].shape == (20, 10)\n",
        "assert tensors['dataset'].item() == 'digits' and tensors['soft_labels'].shape == (20, 10)\n",
        "",
    ];
    for (block, more) in blocks.iter().zip(more) {
        let script = format!(
            "{block}{checks}assert list(labels) == {labels:?} and labels.dtype == np.int64\n{more}print('read')\n"
        );
        reads(&python, &script, folder.path());
    }
}

/// The other way: what NumPy and safetensors write is imported, value for value.
#[test]
fn what_python_writes_is_read() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let script = "
import numpy as np
from safetensors.numpy import save_file
x = np.arange(640, dtype=np.float32).reshape(10, 1, 8, 8) / 640
y = np.arange(10)
np.savez('a.npz', images=x, labels=y)
np.savez_compressed('b.npz', images=x, labels=y)
save_file({'images': x, 'labels': y}, 'c.safetensors')
np.save('d.npy', np.asfortranarray(x))
";
    let output = Command::new(python).arg("-c").arg(script).current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected = Tensor::arange(640, (Kind::Float, tch::Device::Cpu)).view([10, 1, 8, 8]) / 640.0;
    for (name, tensor) in [("a.npz", "images"), ("b.npz", "images"), ("c.safetensors", "images"), ("d.npy", "array")] {
        let file = c2r_data::read_tensors(&folder.path().join(name)).unwrap();
        assert!(file.tensors[tensor].equal(&expected), "{name}");
    }
}
