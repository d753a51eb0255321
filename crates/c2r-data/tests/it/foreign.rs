//! Files of others. `tests/files` was written by torch, NumPy and safetensors themselves (`make.py` there).

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use c2r_base::artifact::TensorFile;
use c2r_data::{
    Clamped, ClassFolders, ClassOrder, DataError, FileKind, IMPORT_DOUBT, ImportOptions, PixelValues, SyntheticSet,
    arrays::to_tensor, import, read_class_folders, read_tensors,
};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::{import_options, values};

fn made(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files").join(name)
}

fn expected() -> TensorFile {
    TensorFile::read(&made("expected.safetensors")).unwrap()
}

fn same(name: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!((found.kind(), found.size()), (expected.kind(), expected.size()), "{name}");
    assert!(found.equal(expected), "{name}");
}

fn imported(
    file: &TensorFile,
    labels: Option<&TensorFile>,
    options: &ImportOptions,
) -> Result<(SyntheticSet, Vec<String>), DataError> {
    import(file, labels, &c2r_data::spec("digits").unwrap(), options, json!({"file": "x"}))
}

fn refused(file: &TensorFile, options: &ImportOptions, expected: &str) {
    let message = imported(file, None, options).unwrap_err().to_string();
    assert!(message.contains(expected), "{message}\nlacks {expected}");
}

fn tensors<const N: usize>(named: [(&str, Tensor); N]) -> TensorFile {
    TensorFile { tensors: named.map(|(name, tensor)| (name.to_owned(), tensor)).into(), ..TensorFile::default() }
}

fn close(found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size());
    let furthest = (found - expected).abs().max().double_value(&[]);
    assert!(furthest < 1e-6, "{furthest}");
}

#[test]
fn a_file_that_says_it_holds_mosaics_is_not_taken_for_images() {
    let (images, labels) =
        (Tensor::zeros([10, 1, 8, 8], (Kind::Float, Device::Cpu)), Tensor::arange(10, (Kind::Int64, Device::Cpu)));
    let file = tensors([("images", images), ("labels", labels), ("formation", Tensor::from_slice(&[2i64]))]);
    refused(&file, &import_options(), "mosaics of 2x2 tiles: give option `formation` 2");
    let (set, _) = imported(&file, None, &ImportOptions { formation: 2, ..import_options() }).unwrap();
    assert_eq!(set.decode(Device::Cpu).0.size(), [40, 1, 8, 8]);
}

#[test]
fn torch_files_of_the_field() {
    let expected = expected();
    let dc = read_tensors(&made("dc.pt")).unwrap();
    assert_eq!(dc.tensors.keys().collect::<Vec<_>>(), ["data[0][0]", "data[0][1]", "data[1][0]", "data[1][1]"]);
    same("dc images", &dc.tensors["data[0][0]"], &expected.tensors["normalized"]);
    same("dc second", &dc.tensors["data[1][0]"], &expected.tensors["second"]);
    same("dc labels", &dc.tensors["data[0][1]"], &expected.tensors["labels"]);
    assert_eq!(dc.header["lr"], "0.01");
    let mtt = read_tensors(&made("images_best.pt")).unwrap();
    same("mtt images", &mtt.tensors["tensor"], &expected.tensors["normalized"]);
    same("mtt labels", &read_tensors(&made("labels_best.pt")).unwrap().tensors["tensor"], &expected.tensors["logits"]);
    let state = read_tensors(&made("state_dict.pt")).unwrap();
    assert_eq!(state.tensors.keys().collect::<Vec<_>>(), ["bias", "weight"]);
    assert_eq!(state.tensors["weight"].size(), [3, 2]);
}

/// Pending negations are done, and arrays, lists of numbers and other pickle protocols are read; the rest is named.
#[test]
fn what_else_torch_files_hold() {
    let expected = expected();
    let negative = read_tensors(&made("negative.pt")).unwrap();
    same("images", &negative.tensors["images"], &expected.tensors["pixels"]);
    same("labels", &negative.tensors["labels"], &expected.tensors["labels"]);
    assert_eq!(negative.header["names"], "a list of length 2; what it holds is not read");
    let (set, notes) = imported(&negative, None, &import_options()).unwrap();
    same("labels", &to_tensor(set.labels.view()), &expected.tensors["labels"]);
    assert_eq!(notes.last().unwrap(), "not used: `names`");

    let numpy = read_tensors(&made("numpy.pt")).unwrap();
    same("images", &numpy.tensors["images"], &expected.tensors["pixels"]);
    same("labels", &numpy.tensors["labels"], &expected.tensors["labels"]);
    assert_eq!(numpy.header["lr"], "a number of NumPy, not read");
    same(
        "protocol 4",
        &read_tensors(&made("protocol4.pt")).unwrap().tensors["images"],
        &expected.tensors["pixels"].narrow(0, 0, 1),
    );
}

/// A conjugation that is left to do is refused: `{'neg': True}` of `negative.pt` as `{'con': True}`.
#[test]
fn unknown_pending_operations_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("conj.pt");
    repacked(&made("negative.pt"), &path, b"X\x03\0\0\0neg", b"X\x04\0\0\0conj");
    let message = read_tensors(&path).unwrap_err().to_string();
    assert!(message.contains("pending operation `conj`") && message.contains(".resolve_conj()"), "{message}");
}

/// Views, strides, dtypes, parameters, scalars, nothing at all.
#[test]
fn every_shape_of_tensor() {
    let expected = expected();
    let odd = read_tensors(&made("odd.pt")).unwrap();
    assert_eq!(odd.tensors.len(), 12);
    for (name, tensor) in &odd.tensors {
        match expected.tensors.get(&format!("odd.{name}")) {
            Some(expected) => same(name, tensor, expected),
            None => same(name, tensor, &expected.tensors["labels"].gt(4)),
        }
    }
}

#[test]
fn numpy_files() {
    let expected = expected();
    let plain = read_tensors(&made("plain.npz")).unwrap();
    same("images", &plain.tensors["images"], &expected.tensors["pixels"]);
    same("labels", &plain.tensors["labels"], &expected.tensors["labels"]);
    let packed = read_tensors(&made("nhwc.npz")).unwrap();
    same(
        "x",
        &packed.tensors["x"].permute([0, 3, 1, 2]).contiguous(),
        &(&expected.tensors["pixels"] * 255.0).round().to_kind(Kind::Uint8),
    );
    same("y", &packed.tensors["y"], &expected.tensors["labels"].to_kind(Kind::Int));
    same("fortran", &packed.tensors["fortran"], &expected.tensors["pixels"].squeeze_dim(1).to_kind(Kind::Double));
    same(
        "array",
        &read_tensors(&made("images.npy")).unwrap().tensors["array"],
        &expected.tensors["pixels"].to_kind(Kind::Half),
    );
}

#[test]
fn kinds_are_told_by_content() {
    for (name, kind) in [
        ("dc.pt", FileKind::Torch),
        ("model.pt", FileKind::TorchScript),
        ("legacy.pt", FileKind::Pickle),
        ("plain.npz", FileKind::Npz),
        ("images.npy", FileKind::Npy),
        ("expected.safetensors", FileKind::Safetensors),
        ("make.py", FileKind::Other),
    ] {
        assert_eq!(FileKind::of(&made(name)).unwrap(), kind, "{name}");
    }
}

/// A byte order mark before JSON changes nothing.
#[test]
fn json_is_told_by_its_first_letter() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    for (bytes, kind) in [
        (&b"\n {}"[..], FileKind::Json),
        (b"\xef\xbb\xbf{}", FileKind::Json),
        (b"\xef\xbb{}", FileKind::Other),
        (b"\xef\xbb\xbf", FileKind::Other),
    ] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(FileKind::of(&path).unwrap(), kind, "{bytes:?}");
    }
}

#[test]
fn an_empty_file_is_said_to_be_empty() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.pt", "a.npz", "a.safetensors"] {
        let path = folder.path().join(name);
        std::fs::write(&path, b"").unwrap();
        let message = c2r_data::read_tensors(&path).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains("it is empty (0 bytes)"), "{message}");
    }
}

#[test]
fn what_is_not_read_says_why() {
    for (name, parts) in [
        ("call.pt", &["data.pkl, byte ", "`__builtin__.print`", "will not run"][..]),
        ("args.pt", &["`argparse.Namespace`", "will not run", "(torch.Tensor, list, dict))}, 'OUT.pt')"]),
        // The line of Python serves whole networks and datasets, too.
        (
            "args.pt",
            &["d.state_dict() if hasattr(d, 'state_dict')", "d.tensors)) if hasattr(d, 'tensors')", "else vars(d);"],
        ),
        ("legacy.pt", &["before 1.6", "torch.save(torch.load("]),
        ("python.pkl", &["as Python writes it", "pickle.load(open('IN.pkl', 'rb'))"]),
        ("model.pt", &["a TorchScript model"]),
        ("objects.npz", &["entry `images.npy`", "Python objects", "allow_pickle=True"]),
        ("make.py", &["neither safetensors, nor .npy"]),
    ] {
        let message = read_tensors(&made(name)).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
        parts.iter().for_each(|part| assert!(message.contains(part), "{message}\nlacks {part}"));
    }
}

/// `images_best.pt` with its pickle changed.
fn with_pickle(path: &Path, from: &[u8], to: &[u8]) {
    repacked(&made("images_best.pt"), path, from, to);
}

/// A file of torch with its pickle changed and all checksums right.
fn repacked(file: &Path, path: &Path, from: &[u8], to: &[u8]) {
    let mut zip = zip::ZipArchive::new(fs::File::open(file).unwrap()).unwrap();
    let mut out = zip::ZipWriter::new(fs::File::create(path).unwrap());
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if entry.name().ends_with("data.pkl") {
            let at = bytes.windows(from.len()).position(|window| window == from).expect("the pickle has it");
            bytes.splice(at..at + from.len(), to.iter().copied());
        }
        let stored = zip::write::FileOptions::default().compression_method(zip::CompressionMethod::Stored);
        out.start_file(entry.name(), stored).unwrap();
        out.write_all(&bytes).unwrap();
    }
    out.finish().unwrap();
}

/// A file that declares more than it has is refused before anything of that size is allocated.
#[test]
fn sizes_that_are_lies() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lie.pt");
    let check = |from: &[u8], to: &[u8], expected: &str| {
        with_pickle(&path, from, to);
        let message = read_tensors(&path).unwrap_err().to_string();
        assert!(message.contains("lie.pt") && message.contains(expected), "{message}\nlacks {expected}");
    };
    // BININT2 1280 is the length of the storage, (20, 1, 8, 8) the size of the tensor, '0' the name of the storage.
    check(b"M\x00\x05", b"M\xff\xff", "data/0` has 5120 bytes where 262140 were expected");
    check(b"M\x00\x05", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", "a storage of 9223372036854775807 values");
    check(b"M\x00\x05", b"J\xff\xff\xff\xff", "not a window");
    check(b"K\x14K\x01K\x08K\x08", b"K\x15K\x01K\x08K\x08", "more values than its storage has");
    check(
        b"K\x14K\x01K\x08K\x08",
        b"K\x14J\xff\xff\xff\x7fJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f",
        "more values than its storage has",
    );
    check(b"K@K@K\x08K\x01", b"K@K@K\x08K\x02", "reaches past the end");
    check(b"X\x01\0\0\x000", b"X\x01\0\0\x001", "data/1`");
    check(b"X\x01\0\0\x000", b"X\xff\xff\xff\x7f0", "2147483647 bytes were expected");
}

#[test]
fn imports_of_the_field() {
    let expected = expected();
    let digits = PixelValues::normalized("digits").unwrap();
    let normalized = ImportOptions { values: digits.clone(), ..import_options() };

    let (set, notes) = imported(&read_tensors(&made("dc.pt")).unwrap(), None, &normalized).unwrap();
    close(&to_tensor(set.images.view()), &expected.tensors["pixels"]);
    same("labels", &to_tensor(set.labels.view()), &expected.tensors["labels"]);
    assert!(set.soft_labels.is_none());
    assert_eq!((set.header.images_per_class, set.header.method.as_str()), (2, "other"));
    assert!(notes[0].contains("`data[0][0]`") && notes.iter().any(|note| note.contains("undone")), "{notes:?}");
    let second = ImportOptions { images: Some("data[1][0]".into()), ..normalized.clone() };
    let (set, _) = imported(&read_tensors(&made("dc.pt")).unwrap(), None, &second).unwrap();
    close(&to_tensor(set.images.view()), &expected.tensors["pixels"].flip([0]));
    same("labels", &to_tensor(set.labels.view()), &expected.tensors["labels"].flip([0]));

    let (images, labels) =
        (read_tensors(&made("images_best.pt")).unwrap(), read_tensors(&made("labels_best.pt")).unwrap());
    let message = imported(&images, Some(&labels), &normalized).unwrap_err().to_string();
    assert!(message.contains("option `logits`") && message.contains("from -1.000 to 3.000"), "{message}");
    let logits = ImportOptions { logits: true, ..normalized.clone() };
    let (set, _) = imported(&images, Some(&labels), &logits).unwrap();
    let soft = set.soft_labels.as_ref().unwrap();
    close(&to_tensor(soft.view()), &expected.tensors["logits"].softmax(1, Kind::Float));
    assert_eq!(set.header.extra_storage, format!("soft labels, {} floats", soft.len()));
    same("labels", &to_tensor(set.labels.view()), &expected.tensors["labels"]);

    let nhwc = ImportOptions { images: Some("x".into()), labels: Some("y".into()), nhwc: true, ..import_options() };
    let (set, _) = imported(&read_tensors(&made("nhwc.npz")).unwrap(), None, &nhwc).unwrap();
    same("images", &to_tensor(set.images.view()), &expected.tensors["pixels"]);
    let grouped = ImportOptions { grouped: true, ..import_options() };
    let (set, _) = imported(&read_tensors(&made("images.npy")).unwrap(), None, &grouped).unwrap();
    assert_eq!(set.labels.len(), 20);
    let one_hot =
        tensors([("images", expected.tensors["pixels"].copy()), ("labels", expected.tensors["labels"].one_hot(10))]);
    let (set, notes) = imported(&one_hot, None, &import_options()).unwrap();
    same("labels", &to_tensor(set.labels.view()), &expected.tensors["labels"]);
    assert!(set.soft_labels.is_none() && notes.last().unwrap().contains("one-hot"), "{notes:?}");
}

#[test]
fn declarations_are_checked() {
    let expected = expected();
    let pixels = || expected.tensors["pixels"].copy();
    let labels = || expected.tensors["labels"].copy();
    let with = |images: Tensor| tensors([("images", images), ("labels", labels())]);
    let digits = ImportOptions { values: PixelValues::normalized("digits").unwrap(), ..import_options() };

    refused(&with(pixels()), &digits, "all values are in [0, 1]");
    refused(&with(expected.tensors["normalized"].copy()), &import_options(), "normalized? Use option `normalized");
    refused(&with(pixels() * 255.0), &import_options(), "Use option `of-255`");
    refused(&with((pixels() * 255.0).to_kind(Kind::Uint8)), &digits, "which are pixels already");
    refused(&with(pixels() * f64::NAN), &import_options(), "not finite");
    refused(&with(pixels().permute([0, 2, 3, 1])), &import_options(), "use option `nhwc`");
    refused(&with(pixels().repeat([1, 3, 1, 1])), &import_options(), "are [N, 1, 8, 8], these are [20, 3, 8, 8]");
    refused(&with(pixels().to_kind(Kind::Int64)), &import_options(), "floats or u8");
    refused(
        &tensors([("a", pixels()), ("b", pixels())]),
        &import_options(),
        "Use option `images NAME`; there are `a` Float",
    );
    refused(&tensors([("a", pixels())]), &import_options(), "Use option `labels NAME`");
    refused(&TensorFile::default(), &import_options(), "no tensors");
    refused(&with(pixels()), &ImportOptions { images: Some("x".into()), ..import_options() }, "no tensor `x`");
    refused(
        &tensors([("images", pixels()), ("labels", labels().narrow(0, 0, 19))]),
        &import_options(),
        "must be [20] or [20, 10]",
    );
    refused(&tensors([("images", pixels()), ("labels", labels() + 1)]), &import_options(), "count from 1; subtract 1");
    refused(
        &tensors([("images", pixels()), ("labels", labels().clamp(1, 9) + 1)]),
        &import_options(),
        "labels up to 10, outside 0..=9",
    );
    refused(
        &tensors([("images", pixels()), ("labels", labels() + labels().eq(9))]),
        &import_options(),
        "label 10, outside 0..=9",
    );
    refused(&tensors([("images", pixels()), ("labels", labels() + 2)]), &import_options(), "outside 0..=9");
    refused(
        &tensors([("images", pixels()), ("labels", labels().to_kind(Kind::Float) + 0.5)]),
        &import_options(),
        "not classes",
    );
    refused(
        &tensors([("images", pixels().narrow(0, 0, 19)), ("labels", labels())]),
        &import_options(),
        "19 images are not equally many",
    );
    refused(
        &tensors([("images", pixels()), ("labels", labels().zeros_like())]),
        &import_options(),
        "class 0 (`0`) has 20 images, not 2",
    );

    let other = ImportOptions { values: PixelValues::normalized("0.5/0.5").unwrap(), ..import_options() };
    refused(&with(expected.tensors["normalized"].copy()), &other, "lie outside [0, 1], from 0.093 to 1.425");
    let (set, notes) =
        imported(&with(expected.tensors["normalized"].copy()), None, &ImportOptions { clamp: true, ..other }).unwrap();
    assert_eq!(set.images.iter().copied().fold(0.0, f32::max), 1.0);
    assert!(notes.iter().any(|note| note.contains("clipped")), "{notes:?}");
    assert!(set.header.config["notes"].to_string().contains("clipped"));

    let cut = set.header.origin().unwrap().clamped.unwrap();
    assert!(cut.part > 0.0 && (cut.high - 1.425).abs() < 1e-3 && (cut.low - 0.093).abs() < 1e-3, "{cut:?}");
    let (set, _) =
        imported(&with(pixels() * 255.0), None, &ImportOptions { values: PixelValues::Bytes, ..import_options() })
            .unwrap();
    close(&to_tensor(set.images.view()), &pixels());
}

/// Values that another normalization of the dataset would leave inside, and very many that are cut off, are doubted.
#[test]
fn another_normalization_is_doubted() {
    let cifar10 = c2r_data::spec("cifar10").unwrap();
    // Pixels of which about 2 % were optimized past their range.
    let quantiles = Tensor::linspace(-0.9999, 0.9999, 30720, (Kind::Float, Device::Cpu)).erfinv() * 2f64.sqrt();
    let pixels = (quantiles.view([10, 32, 32, 3]).permute([0, 3, 1, 2]) * 0.215 + 0.5).contiguous();
    let dd = |pixels: &Tensor| {
        let of = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]);
        tensors([("images", (pixels - of([0.4914, 0.4822, 0.4465])) / of([0.2023, 0.1994, 0.201]))])
    };
    // Fewer past their range than are worth a doubt.
    let narrow = dd(&((&pixels - 0.5) * 0.7 + 0.5));
    let dd = dd(&pixels);
    let doubts = |file: &TensorFile, text: &str| {
        let values = PixelValues::normalized(text).unwrap();
        let options = ImportOptions { values, clamp: true, grouped: true, ..import_options() };
        let (set, notes) = import(file, None, &cifar10, &options, json!({})).unwrap();
        assert_eq!(set.header.config["notes"], json!(notes));
        let refused = import(file, None, &cifar10, &ImportOptions { clamp: false, ..options }, json!({}));
        let doubts: Vec<String> =
            notes.iter().filter_map(|note| note.strip_prefix(IMPORT_DOUBT)).map(str::to_owned).collect();
        (doubts, refused.unwrap_err().to_string())
    };
    let (none, refused) = doubts(&dd, "cifar10-dd");
    assert!(none.is_empty() && !refused.contains("would leave"), "{none:?} {refused}");
    let (halves, refused) = doubts(&dd, "0.5,0.5,0.5/0.5,0.5,0.5");
    assert!(halves[0].starts_with("over 10 % of the values were clipped") && halves[0].contains("look at the images"));
    let named = "fewer values would lie outside with `cifar10` (6.";
    assert!(
        halves[1].contains(named) && halves[1].contains(" %) or `cifar10-dd` (2.0 %) than with what was given (3"),
        "{halves:?}"
    );
    assert!(refused.contains(named), "{refused}");
    let (own, _) = doubts(&dd, "cifar10");
    assert!(own.len() == 1 && own[0].contains("outside with `cifar10-dd` (2.0 %) than"), "{own:?}");
    // `cifar10-dd` leaves fewer here, but no less than half; and there, hardly any are cut off.
    let (near, _) = doubts(&dd, "0.4914,0.4822,0.4465/0.215,0.212,0.2136");
    assert!(near.is_empty(), "{near:?}");
    let (few, _) = doubts(&narrow, "cifar10");
    assert!(few.is_empty(), "{few:?}");
    // Clearly fewer there too: pixels that were not normalized.
    let plain = tensors([("images", pixels.copy())]);
    let (plain, _) = doubts(&plain, "0.5,0.5,0.5/1.2,1.2,1.2");
    assert!(plain.iter().any(|doubt| doubt.contains(" or none (2.0 %) than")), "{plain:?}");
}

/// What no undoing was declared of is pixels, or nearly; bytes are not images in `[0, 1]`.
#[test]
fn what_is_no_pixel_is_not_cut_to_one() {
    let expected = expected();
    let with = |images: Tensor| tensors([("images", images), ("labels", expected.tensors["labels"].copy())]);
    let of_255 = ImportOptions { values: PixelValues::Bytes, ..import_options() };
    let pixels = &expected.tensors["pixels"];
    refused(&with(pixels / pixels.max()), &of_255, "the largest value is 1.000, and option `of-255` divides by 255");
    refused(&with(pixels - 0.1), &of_255, "option `of-255` divides by 255");
    let ones = (pixels.gt(0.5)).to_kind(Kind::Uint8);
    refused(&with(ones.copy()), &import_options(), "the largest value is 1, and bytes go to 255");
    for (black, options) in [(pixels.zeros_like(), of_255.clone()), (ones.zeros_like(), import_options())] {
        imported(&with(black), None, &options).unwrap();
    }
    imported(&with(ones * 2), None, &import_options()).unwrap();

    let clamp = ImportOptions { clamp: true, ..import_options() };
    // 20 images of 64 values: 128 are a tenth.
    let outside = |n: i64| {
        let images = pixels.full_like(0.5);
        let _ = images.view([-1]).narrow(0, 0, n).fill_(1.5);
        with(images)
    };
    let message = |file: &TensorFile, options: &ImportOptions| imported(file, None, options).unwrap_err().to_string();
    let few = message(&outside(128), &import_options());
    assert!(
        few.contains("10.0 % of the values lie outside [0, 1], from 0.500 to 1.500") && few.contains("option `clamp`")
    );
    let (set, _) = imported(&outside(128), None, &clamp).unwrap();
    assert_eq!(set.header.origin().unwrap().clamped, Some(Clamped { part: 0.1, low: 0.5, high: 1.5 }));
    let many = message(&outside(129), &import_options());
    assert!(
        many.contains("10.1 %") && many.contains("option `normalized MEAN/STD`") && !many.contains("--clamp"),
        "{many}"
    );
    refused(
        &outside(129),
        &clamp,
        "not pixels, and option `clamp` clips 10 % at most; normalized? Use option `normalized",
    );
    refused(&with(pixels * 255.0), &clamp, "Use option `of-255`");
    refused(&with(pixels * 2550.0), &ImportOptions { clamp: true, ..of_255 }, "instead of option `of-255`");
    assert_eq!(imported(&with(pixels.copy()), None, &clamp).unwrap().0.header.origin().unwrap().clamped, None);
}

#[test]
fn options_that_the_file_contradicts_are_refused() {
    let expected = expected();
    let (pixels, labels) = (&expected.tensors["pixels"], &expected.tensors["labels"]);
    let with = |labels: Tensor| tensors([("images", pixels.copy()), ("labels", labels)]);
    let (grouped, logits) =
        (ImportOptions { grouped: true, ..import_options() }, ImportOptions { logits: true, ..import_options() });
    let one_hot = || labels.one_hot(10);
    refused(&with(labels.copy()), &grouped, "`labels` says the class of each image");
    refused(&with(one_hot()), &grouped, "leave option `grouped` out");
    refused(&with(labels.copy()), &logits, "`labels` has classes, not logits, which are [20, 10]");
    refused(&with(one_hot()), &logits, "probabilities or one-hot already: leave option `logits` out");
    let only = tensors([("images", pixels.copy())]);
    refused(&only, &ImportOptions { logits: true, ..grouped.clone() }, "there are no labels");
    refused(
        &with(labels.copy()),
        &ImportOptions { bgr: true, ..import_options() },
        "one channel: leave option `bgr` out",
    );
    refused(&with(labels.copy()), &ImportOptions { nhwc: true, ..import_options() }, "already, leave it out");
    let message = imported(&only, Some(&with(labels.copy())), &grouped).unwrap_err().to_string();
    assert!(message.contains("leave option `grouped` out"), "{message}");

    // Hard labels do not contradict the soft rows beside them, and numbers that are not classes do not either.
    let soft = Tensor::full([20, 10], 0.1, (Kind::Float, tch::Device::Cpu));
    let (set, _) = imported(&with(soft), None, &grouped).unwrap();
    assert!(set.soft_labels.is_some() && set.labels.as_slice().unwrap()[18..] == [9, 9]);
    let weights = tensors([("images", pixels.copy()), ("weights", labels.to_kind(Kind::Float) + 0.5)]);
    imported(&weights, None, &grouped).unwrap();
    let named = ImportOptions { labels: Some("weights".into()), ..grouped };
    refused(&weights, &named, "`weights` has numbers that are not classes");
}

#[test]
fn normalizations_are_names_or_numbers() {
    let normalized = |mean: &[f64], std: &[f64]| PixelValues::Normalized { mean: mean.into(), std: std.into() };
    let dd = PixelValues::normalized("cifar10-dd").unwrap();
    assert_eq!(dd, normalized(&[0.4914, 0.4822, 0.4465], &[0.2023, 0.1994, 0.201]));
    assert_eq!(
        PixelValues::normalized("cifar10").unwrap(),
        normalized(&[0.4914, 0.4822, 0.4465], &[0.247, 0.2435, 0.2616])
    );
    assert_eq!(PixelValues::normalized("0.5, 0.25/1,2").unwrap(), normalized(&[0.5, 0.25], &[1.0, 2.0]));
    for text in ["", "0.5", "0.5/0", "0.5/-1", "0.5/1,2", "nan/1", "a/b", "cifar11"] {
        let message = PixelValues::normalized(text).unwrap_err().to_string();
        assert!(message.contains("cifar10-dd") && message.contains("MEAN/STD"), "{message}");
    }
}

#[test]
fn blue_first_becomes_red_first() {
    let spec = c2r_data::spec("cifar10").unwrap();
    let images = Tensor::arange(10 * 3 * 1024, (Kind::Float, tch::Device::Cpu)).view([10, 3, 32, 32]) / 30720.0;
    let file = tensors([("images", images.copy())]);
    let options = ImportOptions { grouped: true, bgr: true, ..import_options() };
    let (set, _) = import(&file, None, &spec, &options, json!({})).unwrap();
    assert_eq!(values(&to_tensor(set.images.view()).select(1, 0)), values(&images.select(1, 2)));
    assert_eq!(values(&to_tensor(set.images.view()).select(1, 1)), values(&images.select(1, 1)));
}

#[test]
fn folders_of_images() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, value: u8| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::GrayImage::from_pixel(8, 8, image::Luma([value])).save(path).unwrap();
    };
    let spec = c2r_data::spec("digits").unwrap();
    let message = |folder: &Path| read_class_folders(folder, &spec, false).unwrap_err().to_string();
    for class in 0..10u8 {
        write(&format!("{class:03}/a.png"), 10 * class);
    }
    let ClassFolders { file, order, .. } = read_class_folders(folder.path(), &spec, false).unwrap();
    assert_eq!(order, ClassOrder::Numbers);
    assert_eq!(file.tensors["images"].size(), [10, 1, 8, 8]);
    assert_eq!(file.tensors["images"].int64_value(&[7, 0, 0, 0]), 70);
    assert_eq!(Vec::<i64>::try_from(&file.tensors["labels"]).unwrap(), (0..10).collect::<Vec<_>>());
    let (set, _) = imported(&file, None, &import_options()).unwrap();
    assert_eq!(set.header.images_per_class, 1);

    image::RgbImage::from_pixel(8, 8, image::Rgb([1, 2, 3])).save(folder.path().join("003/a.png")).unwrap();
    assert!(message(folder.path()).contains("003/a.png") && message(folder.path()).contains("the dataset is grey"));
    image::GrayImage::new(8, 9).save(folder.path().join("003/a.png")).unwrap();
    assert!(message(folder.path()).contains("9x8"), "{}", message(folder.path()));
    fs::remove_dir_all(folder.path().join("003")).unwrap();
    assert!(message(folder.path()).contains("each of the 10 classes of digits, found 9"));
}
