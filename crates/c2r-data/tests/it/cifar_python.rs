//! The Python versions of CIFAR: the same splits as the binary ones.

use std::{fs, path::Path};

use c2r_data::{DataError, Dataset, load};
use tempfile::TempDir;

/// Pixels that differ from image to image and from place to place.
fn pixels(image: usize) -> Vec<u8> {
    (0..3072).map(|at| ((at + 7 * image) % 251) as u8).collect()
}

fn text(text: &str) -> Vec<u8> {
    [b"U", &[text.len() as u8][..], text.as_bytes()].concat()
}

/// A list of numbers below 256, or of texts.
fn list(items: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    [b"](", items.flatten().collect::<Vec<u8>>().as_slice(), b"e"].concat()
}

fn numbers(numbers: &[u8]) -> Vec<u8> {
    list(numbers.iter().map(|&number| vec![b'K', number]))
}

/// A dictionary as Python 2 pickled it, which is what the archives hold.
fn dictionary(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [b"\x80\x02}q\x01(", items.as_slice(), b"u."].concat()
}

fn array(n: usize, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01K".to_vec();
    bytes.push(n as u8);
    bytes.extend(
        b"M\0\x0c\x86cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89T",
    );
    bytes.extend((data.len() as u32).to_le_bytes());
    [bytes.as_slice(), data, b"tb"].concat()
}

/// Images `from..`, with the lists of labels.
fn batch(from: usize, labels: &[(&str, &[u8])]) -> Vec<u8> {
    let n = labels[0].1.len();
    let data: Vec<u8> = (from..from + n).flat_map(pixels).collect();
    let mut items = vec![("batch_label", text("training batch 1 of 5"))];
    items.extend(labels.iter().map(|(key, labels)| (*key, numbers(labels))));
    items.push(("data", array(n, &data)));
    items.push(("filenames", list((0..n).map(|at| text(&format!("{at}.png"))))));
    dictionary(&items)
}

/// Both versions of the same six images.
fn cifar10() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (binary, python) = (folder.path().join("cifar-10-batches-bin"), folder.path().join("cifar-10-batches-py"));
    fs::create_dir_all(&binary).unwrap();
    fs::create_dir_all(&python).unwrap();
    for at in 0..6 {
        let name = if at == 5 { "test_batch".to_owned() } else { format!("data_batch_{}", at + 1) };
        let record = |image: usize, label: u8| [vec![label], pixels(image)].concat();
        let (first, second) = (at as u8, 9 - at as u8);
        fs::write(binary.join(format!("{name}.bin")), [record(2 * at, first), record(2 * at + 1, second)].concat())
            .unwrap();
        fs::write(python.join(name), batch(2 * at, &[("labels", &[first, second])])).unwrap();
    }
    let names = &c2r_data::spec("cifar10").unwrap().classes;
    fs::write(python.join("batches.meta"), dictionary(&[("label_names", list(names.iter().map(|name| text(name))))]))
        .unwrap();
    folder
}

fn cifar100(python_only: bool) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (binary, python) = (folder.path().join("cifar-100-binary"), folder.path().join("cifar-100-python"));
    fs::create_dir_all(&binary).unwrap();
    fs::create_dir_all(&python).unwrap();
    for (from, name) in [(0, "train"), (2, "test")] {
        let records = [vec![19, 99], pixels(from), vec![0, 3], pixels(from + 1)].concat();
        if !python_only {
            fs::write(binary.join(format!("{name}.bin")), records).unwrap();
        }
        let labels: [(&str, &[u8]); 2] = [("fine_labels", &[99, 3]), ("coarse_labels", &[19, 0])];
        fs::write(python.join(name), batch(from, &labels)).unwrap();
    }
    folder
}

fn hashes(data: &Dataset) -> [String; 2] {
    [data.train.sha256(), data.test.sha256()]
}

#[test]
fn both_versions_are_the_same_split() {
    let folder = cifar10();
    let binary = load("cifar10", Some(&folder.path().join("cifar-10-batches-bin"))).unwrap();
    let python = load("cifar10", Some(&folder.path().join("cifar-10-batches-py"))).unwrap();
    assert_eq!(hashes(&python), hashes(&binary));
    assert_eq!(python.train.labels().to_vec(), [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]);
    assert_eq!(crate::bytes(&python.test)[3072..], pixels(11));
    assert_eq!(python.notes, binary.notes);
    // The binary one is read where both are there; the other one where it is alone, or the folder of the binary one empty.
    let batch = folder.path().join("cifar-10-batches-py/data_batch_1");
    fs::write(&batch, "broken").unwrap();
    assert_eq!(hashes(&load("cifar10", Some(folder.path())).unwrap()), hashes(&binary));
    let broken = load("cifar10", Some(&folder.path().join("cifar-10-batches-py"))).unwrap_err().to_string();
    assert!(broken.contains("data_batch_1"), "{broken}");

    let both = cifar100(false);
    let binary = load("cifar100", Some(both.path())).unwrap();
    let python = cifar100(true);
    let python = load("cifar100", Some(python.path())).unwrap();
    assert_eq!(hashes(&python), hashes(&binary));
    assert_eq!(python.train.labels().to_vec(), [99, 3]);
}

/// Written by Python 3.11 with NumPy 2.4, in every protocol that it has (`tests/files/make.py`).
#[test]
fn batches_of_other_programs() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files");
    let expected: Vec<u8> = (0..2 * 3072).map(|at| (at % 251) as u8).collect();
    for protocol in 2..=5 {
        let folder = cifar10();
        let python = folder.path().join("cifar-10-batches-py");
        fs::copy(files.join(format!("batch_{protocol}.pkl")), python.join("test_batch")).unwrap();
        let test = load("cifar10", Some(&python)).unwrap().test;
        assert_eq!(
            (crate::bytes(&test), test.labels().to_vec()),
            (expected.clone(), vec![3, 9]),
            "protocol {protocol}"
        );
    }
}

#[test]
fn errors_name_the_file_and_what_was_expected() {
    let check = |file: &str, bytes: Option<Vec<u8>>, expected: &[&str]| {
        let folder = cifar10();
        let python = folder.path().join("cifar-10-batches-py");
        match bytes {
            Some(bytes) => fs::write(python.join(file), bytes).unwrap(),
            None => fs::remove_file(python.join(file)).unwrap(),
        }
        let error = load("cifar10", Some(&python)).unwrap_err();
        assert!(matches!(error, DataError::Io { .. } | DataError::Artifact(_) | DataError::Layout { .. }), "{error:?}");
        let message = error.to_string();
        [&[file], expected].concat().iter().for_each(|part| assert!(message.contains(part), "{message}\nlacks {part}"));
    };
    let good = |labels: &[u8]| batch(0, &[("labels", labels)]);
    check("data_batch_2", None, &["cannot read"]);
    check("data_batch_2", Some(good(&[1])[..2000].to_vec()), &["byte", "cut short"]);
    check("data_batch_2", Some(good(&[1, 10])), &["`labels`, record 1: expected a label below 10, found 10"]);
    check("test_batch", Some(batch(0, &[("fine_labels", &[1])])), &["expected a list as `labels`"]);
    check("test_batch", Some(dictionary(&[("labels", numbers(&[1]))])), &["expected an array of NumPy as `data`"]);
    let of = |array: Vec<u8>, labels: &[u8]| dictionary(&[("labels", numbers(labels)), ("data", array)]);
    check("test_batch", Some(of(array(1, &pixels(0)), &[1, 2])), &["2 labels for 1 images"]);
    check("test_batch", Some(of(array(2, &pixels(0)), &[1, 2])), &["u1 [N, 3072]", "[2, 3072] with 3072 bytes"]);
    check("test_batch", Some(of(array(0, &[]), &[])), &["found |u1 [0, 3072] with 0 bytes"]);
    check("test_batch", Some(of(numbers(&[1]), &[1])), &["expected an array of NumPy"]);
    let call = b"\x80\x02cos\nsystem\nU\x02ls\x85R.".to_vec();
    check("test_batch", Some(call), &["byte 2: it names `os.system`", "will not run"]);
    check(
        "batches.meta",
        Some(dictionary(&[("label_names", list([text("cat")].into_iter()))])),
        &["expected `airplane` as class 0 in `label_names`, found `cat`"],
    );
    check("batches.meta", Some(dictionary(&[("names", numbers(&[1]))])), &["a list of names as `label_names`"]);
}

#[test]
fn an_empty_folder_says_which_file_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("cifar-10-batches-py")).unwrap();
    let error = load("cifar10", Some(folder.path())).unwrap_err();
    let DataError::Io { path, .. } = &error else { panic!("{error:?}") };
    assert!(path.ends_with("cifar-10-batches-py/data_batch_1"), "{error}");
}
