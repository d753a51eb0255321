use std::{fs, path::Path};

use c2r_base::artifact::TensorFile;
use c2r_data::{DataError, SCHEMA_VERSION, SyntheticHeader, SyntheticSet};
use ndarray::{Array2, Array4, Ix4, arr1};
use proptest::prelude::*;
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::{array, noise};

fn header() -> SyntheticHeader {
    SyntheticHeader {
        schema_version: SCHEMA_VERSION,
        dataset: "cifar10".into(),
        classes: 3,
        images_per_class: 2,
        method: "c2r".into(),
        seed: u64::MAX,
        iterations: 300,
        config: json!({"z": 1, "a": [0.1, 0.30000000000000004, 5e-324], "text": "2/255 \u{e9}\n"}),
        versions: [("c2r".to_owned(), "0.1.0".to_owned()), ("a".to_owned(), "1".to_owned())].into(),
        data_sha256: "0123".into(),
        mean: vec![0.4914, 1.0 / 3.0, 0.4465],
        std: vec![0.247, 0.2435, 0.2616],
        extra_storage: "5".into(),
    }
}

pub(crate) fn digits_header(images_per_class: usize) -> SyntheticHeader {
    let spec = c2r_data::spec("digits").unwrap();
    SyntheticHeader {
        dataset: "digits".into(),
        classes: 10,
        images_per_class,
        mean: spec.mean.clone(),
        std: spec.std.clone(),
        ..header()
    }
}

fn set(formation: i64, soft: bool) -> SyntheticSet {
    SyntheticSet {
        images: array(&noise(&[6, 3, 8, 8], 1)),
        labels: arr1(&[0, 1, 2, 2, 1, 0]),
        soft_labels: soft.then(|| array(&noise(&[6 * formation * formation, 3], 2).softmax(1, Kind::Float))),
        formation,
        header: header(),
    }
}

#[test]
fn a_round_trip_keeps_every_bit() {
    let folder = tempfile::tempdir().unwrap();
    for (formation, soft) in [(1, false), (1, true), (2, true)] {
        let (first, second) = (folder.path().join("a/set.safetensors"), folder.path().join("b.safetensors"));
        let set = set(formation, soft);
        set.save(&first).unwrap();
        let back = SyntheticSet::load(&first).unwrap();
        assert_eq!(back, set);
        back.save(&second).unwrap();
        assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
    }
}

#[test]
fn a_set_says_what_the_registry_does_not_know() {
    let mut set = set(1, false);
    let full = SyntheticSet {
        images: array(&noise(&[10, 3, 32, 32], 1)),
        labels: (0..10).collect(),
        header: SyntheticHeader { classes: 10, images_per_class: 1, ..header() },
        ..set.clone()
    };
    let known = full.spec().unwrap();
    assert_eq!((known.shape(), known.mean.as_slice()), ([3, 32, 32], &set.header.mean[..]));
    assert_eq!(known.classes[0], "airplane");
    // Smaller images in three classes are not CIFAR-10, whatever they are called.
    let other = set.spec().unwrap();
    assert_eq!((other.shape(), other.classes.len()), ([3, 8, 8], 3));
    set.header.dataset = "folder:a/b".into();
    let spec = set.spec().unwrap();
    assert_eq!((spec.name.as_str(), spec.shape(), spec.classes.len()), ("folder:a/b", [3, 8, 8], 3));
    assert_eq!((&spec.mean, &spec.std), (&set.header.mean, &set.header.std));
    set.header.dataset = "imagenette@7".into();
    assert!(matches!(set.spec(), Err(DataError::Size { .. })));
}

#[test]
fn the_file_explains_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.safetensors");
    set(2, false).save(&path).unwrap();
    let file = TensorFile::read(&path).unwrap();
    assert!(SyntheticSet::is_header(&file.header));
    assert_eq!(file.header["format"], "c2r-synthetic-set");
    assert_eq!(file.header["dataset"], "cifar10");
    assert_eq!(file.header["formation"], "2");
    assert_eq!(file.header["images_per_class"], "2");
    assert_eq!(file.header["extra_storage"], "5");
    assert_eq!(file.tensors.keys().collect::<Vec<_>>(), ["images", "labels"]);
}

#[test]
fn decode_repeats_labels_in_the_order_of_the_tiles() {
    let (images, labels) = set(2, false).decode(Device::Cpu);
    assert_eq!(images.size(), [24, 3, 8, 8]);
    let labels = Vec::<i64>::try_from(labels).unwrap();
    assert_eq!(labels[..8], [0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!(labels.len(), 24);
    let single = set(1, false);
    let (images, labels) = single.decode(Device::Cpu);
    assert_eq!(array::<f32, Ix4>(&images), single.images);
    assert_eq!(Vec::<i64>::try_from(labels).unwrap(), [0, 1, 2, 2, 1, 0]);
}

#[test]
fn the_picture_has_a_row_per_class() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("grid.png");
    let mut set = set(1, false);
    set.images = Array4::from_shape_fn((6, 3, 8, 8), |(n, ..)| n as f32 / 5.0);
    set.grid_png(&path).unwrap();
    let picture = image::open(&path).unwrap().to_rgb8();
    assert_eq!(picture.dimensions(), (2 * 66 + 2, 3 * 66 + 2));
    let at = |row: u32, column: u32| picture.get_pixel(2 + column * 66, 2 + row * 66).0[0];
    assert_eq!([at(0, 0), at(0, 1), at(1, 0), at(1, 1), at(2, 0), at(2, 1)], [0, 255, 51, 204, 102, 153]);
}

/// Both `save` and `load` refuse a set that breaks a rule; `load` names the file.
fn check_refused(path: &Path, change: impl FnOnce(&mut SyntheticSet), expected: &str) {
    let mut set = set(1, true);
    change(&mut set);
    let message = set.save(path).unwrap_err().to_string();
    assert!(message.contains(expected), "{message} lacks {expected}");
    assert!(!path.exists());
}

#[test]
fn broken_sets_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.safetensors");
    check_refused(&path, |set| set.images[[0, 0, 0, 7]] = 1.01, "outside [0, 1]");
    check_refused(&path, |set| set.images[[0, 0, 0, 7]] = f32::NAN, "not finite");
    check_refused(&path, |set| set.labels = arr1(&[0, 1, 2]), "[6]");
    check_refused(&path, |set| set.labels[5] = 3, "label 3, outside 0..=2");
    check_refused(&path, |set| set.labels[5] = 1, "class 0 has 1 images");
    check_refused(&path, |set| set.header.images_per_class = 3, "6 images are not 3 classes of 3");
    check_refused(&path, |set| set.header.classes = 1 << 40, "6 images are not");
    check_refused(&path, |set| set.header.schema_version = 2, "schema version 2");
    check_refused(&path, |set| set.header.mean = vec![0.5], "1 values of mean for 3 channels");
    check_refused(&path, |set| set.header.std = vec![], "0 values of std for 3 channels");
    check_refused(&path, |set| set.formation = 3, "8x8");
    check_refused(&path, |set| set.formation = 2, "soft labels must be f32 [24, 3]");
    check_refused(&path, |set| set.soft_labels = Some(array(&noise(&[6, 4], 1))), "soft labels must be f32 [6, 3]");
    check_refused(&path, |set| set.soft_labels = Some(array(&noise(&[6, 3], 1))), "must be probabilities");
    check_refused(&path, |set| set.soft_labels.as_mut().unwrap()[[2, 1]] = f32::NAN, "must be probabilities");
    let negative = Array2::from_shape_fn((6, 3), |(_, k)| [1.5, -0.5, 0.0][k]);
    check_refused(&path, |set| set.soft_labels = Some(negative), "must be probabilities");
    check_refused(
        &path,
        |set| {
            (set.formation, set.soft_labels) = (2, None);
            set.images = array(&noise(&[6, 3, 8, 7], 1));
        },
        "8x7",
    );
}

#[test]
fn files_that_break_the_format_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("good.safetensors");
    set(1, true).save(&good).unwrap();
    let check = |change: &dyn Fn(&mut TensorFile), expected: &str| {
        let mut file = TensorFile::read(&good).unwrap();
        change(&mut file);
        let path = folder.path().join("changed.safetensors");
        file.write(&path).unwrap();
        let message = SyntheticSet::load(&path).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("changed.safetensors"), "{message} lacks {expected}");
    };
    let put = |name: &'static str, text: &'static str| {
        move |file: &mut TensorFile| drop(file.header.insert(name.into(), text.into()))
    };
    check(&|file| drop(file.header.remove("format")), "no `format`");
    check(&put("format", "c2r-model"), "no `format`");
    check(&put("schema_version", "2"), "schema version `2`; this program reads 1");
    check(&|file| drop(file.header.remove("schema_version")), "schema version ``");
    check(&|file| drop(file.header.remove("formation")), "`formation`");
    check(&put("formation", "two"), "`two`");
    check(&put("formation", "4"), "formation must be 1 or 2");
    check(&|file| drop(file.header.remove("method")), "method");
    check(&put("author", "\"me\""), "author");
    check(&put("classes", "many"), "classes");
    check(&put("seed", "-1"), "-1");
    check(&put("mean", "[0.5]"), "mean");
    check(&|file| drop(file.tensors.remove("images")), "no tensor `images`");
    check(&|file| drop(file.tensors.remove("labels")), "no tensor `labels`");
    let replace = |name: &'static str, change: fn(&Tensor) -> Tensor| {
        move |file: &mut TensorFile| drop(file.tensors.insert(name.into(), change(&file.tensors[name])))
    };
    check(&replace("images", |images| images.to_kind(Kind::Double)), "must be f32, got Double");
    check(&replace("images", |images| images.to_kind(Kind::Uint8)), "must be f32, got Uint8");
    check(&replace("images", |images| images.view([6, 3, 64])), "[6, 3, 64]");
    check(&replace("labels", |labels| labels.to_kind(Kind::Int)), "i64");
    check(&replace("soft_labels", |soft| soft.to_kind(Kind::Double)), "soft labels must be f32 [6, 3], got Double");
    check(&|file| drop(file.tensors.insert("momentum".into(), Tensor::from(1.0f32))), "`momentum`");
    let missing = SyntheticSet::load(&folder.path().join("missing.safetensors")).unwrap_err().to_string();
    assert!(missing.contains("missing.safetensors"), "{missing}");
}

proptest! {
    #![proptest_config(crate::cases(256))]

    #[test]
    fn damaged_files_never_panic(
        random in prop::collection::vec(any::<u8>(), 0..300),
        at in 0.0f64..1.0,
        value in any::<u8>(),
        in_header in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.safetensors");
        fs::write(&path, &random).unwrap();
        prop_assert!(SyntheticSet::load(&path).is_err());

        set(1, true).save(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..(at * whole.len() as f64) as usize]).unwrap();
        prop_assert!(SyntheticSet::load(&path).is_err());

        let range = if in_header { 1200 } else { whole.len() };
        let mut bytes = whole;
        bytes[(at * range as f64) as usize] = value;
        fs::write(&path, &bytes).unwrap();
        if let Err(error) = SyntheticSet::load(&path) {
            prop_assert!(error.to_string().contains("set.safetensors"), "{}", error);
        }
    }
}

/// The same set in three formats: equal tensors, equal header, and equal bytes when it comes back.
#[test]
fn every_format_keeps_everything() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (formation, soft) in [(1, false), (2, true)] {
        let mut set = set(formation, soft);
        set.save(&at("first.safetensors")).unwrap();
        set.save_npz(&at("set.npz")).unwrap();
        let back = SyntheticSet::load(&at("set.npz")).unwrap();
        back.save(&at("second.safetensors")).unwrap();
        assert_eq!(fs::read(at("first.safetensors")).unwrap(), fs::read(at("second.safetensors")).unwrap());

        let message = set.save_png(&at("png"), false).unwrap_err().to_string();
        assert!(message.starts_with("not written as PNG: it would lose digits."), "{message}");
        assert!(message.contains("not multiples of 1/255") && message.contains("rounding changes"), "{message}");
        assert!(!at("png").exists());
        assert!(set.save_png(&at("lossy"), true).unwrap() > 1000);
        let lossy = SyntheticSet::load(&at("lossy")).unwrap();
        let furthest = (&lossy.images - &set.images).fold(0.0f32, |most, difference| most.max(difference.abs()));
        assert!(furthest > 0.0 && furthest <= 0.5 / 255.0 + 1e-6, "{furthest}");

        // Bytes survive.
        set.images.mapv_inplace(|pixel| (pixel * 255.0).round() / 255.0);
        set.save(&at("first.safetensors")).unwrap();
        assert_eq!(set.save_png(&at("png"), false).unwrap(), 0);
        let back = SyntheticSet::load(&at("png")).unwrap();
        back.save(&at("second.safetensors")).unwrap();
        assert_eq!(fs::read(at("first.safetensors")).unwrap(), fs::read(at("second.safetensors")).unwrap());
        assert!(at("png/2/3.png").is_file() && SyntheticSet::is_png_folder(&at("png")));

        let message = set.save_png(&at("png"), false).unwrap_err().to_string();
        assert!(message.contains("png"), "{message}");
        let names = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(names, 5, "nothing is left behind");
        fs::remove_dir_all(at("png")).unwrap();
        fs::remove_dir_all(at("lossy")).unwrap();
    }
}

#[test]
fn grey_sets_are_grey_pngs() {
    let folder = tempfile::tempdir().unwrap();
    let mut set = set(1, false);
    set.images = Array4::from_shape_fn((6, 1, 8, 8), |(n, _, h, w)| ((64 * n + 8 * h + w) % 256) as f32 / 255.0);
    (set.header.mean, set.header.std) = (vec![0.5], vec![0.25]);
    set.save_png(&folder.path().join("png"), false).unwrap();
    assert_eq!(SyntheticSet::load(&folder.path().join("png")).unwrap().images, set.images);
}

#[test]
fn broken_png_folders_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (png, file) = (folder.path().join("png"), folder.path().join("png/set.json"));
    let mut set = set(1, true);
    set.images.fill(0.0);
    set.save_png(&png, false).unwrap();
    let text = fs::read_to_string(&file).unwrap();
    let check = |from: &str, to: &str, expected: &str| {
        assert!(text.contains(from), "{text}");
        fs::write(&file, text.replacen(from, to, 1)).unwrap();
        let message = SyntheticSet::load(&png).unwrap_err().to_string();
        assert!(message.contains("png") && message.contains(expected), "{message}");
    };
    check("\"schema_version\": 1,", "\"schema_version\": 2,", "schema_version 2");
    check("\"0/0.png\"", "\"../0.png\"", "not inside the folder");
    check("\"0/0.png\"", "\"0/9.png\"", "cannot read");
    check("\"0/0.png\",", "", "5 images and 6 labels");
    check("\"labels\"", "\"label\"", "unknown field");
    check("\"format\"", "\"form\"", "no `format`");
    fs::write(&file, text.replacen("\"soft_labels\": [\n    [", "\"soft_labels\": [\n    [0.0, ", 1)).unwrap();
    assert!(SyntheticSet::load(&png).unwrap_err().to_string().contains("different lengths"));
}

#[test]
fn a_set_of_another_program_is_to_be_imported() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files");
    for (name, kind) in [
        ("dc.pt", "a PyTorch file"),
        ("plain.npz", "a NumPy file"),
        ("images.npy", "a NumPy file"),
        ("expected.safetensors", "a file"),
    ] {
        let path = files.join(name);
        let message = SyntheticSet::load(&path).unwrap_err().to_string();
        let advice =
            format!("if this is {kind} with a set of another program, convert it with `c2r import {} ", path.display());
        assert!(message.contains(&advice), "{message}");
    }
}

/// What another program trains on; the header still says what the set stores.
#[test]
fn a_set_is_decoded_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.safetensors");
    let stored = set(2, true);
    let decoded = stored.decoded();
    decoded.save(&path).unwrap();
    let back = SyntheticSet::load(&path).unwrap();
    assert_eq!(back, decoded);
    let (images, labels) = stored.decode(Device::Cpu);
    assert_eq!((array::<f32, Ix4>(&images), array(&labels)), (decoded.images.clone(), decoded.labels.clone()));
    assert_eq!(decoded.soft_labels, stored.soft_labels);
    let from = back.header.origin().unwrap().decoded_from.unwrap();
    assert_eq!((back.formation, back.header.images_per_class), (1, 8));
    assert_eq!((from.formation, from.images_per_class), (2, 2));
    assert_eq!((decoded.decoded(), set(1, false).decoded()), (decoded, set(1, false)));
}

/// The layout of DC, DSA and DM, as our own reader finds it; `python/tests` reads it with torch.
#[test]
fn a_set_is_written_as_torch_saves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.pt");
    let set = set(1, true);
    set.save_pt(&path, None).unwrap();
    let file = c2r_data::read_tensors(&path).unwrap();
    let names: Vec<&str> = file.tensors.keys().map(String::as_str).collect();
    assert_eq!(names, ["data[0][0]", "data[0][1]", "mean", "soft_labels", "std"]);
    assert_eq!(array::<f32, Ix4>(&file.tensors["data[0][0]"]), set.images);
    assert_eq!(array::<i64, _>(&file.tensors["data[0][1]"]), set.labels);
    assert_eq!(array::<f32, _>(&file.tensors["soft_labels"]), set.soft_labels.clone().unwrap());
    assert_eq!(Vec::<f32>::try_from(&file.tensors["std"]).unwrap(), [0.247, 0.2435, 0.2616]);

    set.save_pt(&path, Some((&[0.5, 0.25, 0.0], &[0.5, 0.25, 1.0]))).unwrap();
    let file = c2r_data::read_tensors(&path).unwrap();
    let normalized = array::<f32, Ix4>(&file.tensors["data[0][0]"]);
    let [pixel, other] = [[2, 0, 3, 4], [2, 1, 3, 4]];
    assert_eq!(normalized[pixel], (set.images[pixel] - 0.5) / 0.5);
    assert_eq!(normalized[other], (set.images[other] - 0.25) / 0.25);
    assert_eq!(Vec::<f32>::try_from(&file.tensors["mean"]).unwrap(), [0.5, 0.25, 0.0]);
    assert_eq!(array::<i64, _>(&file.tensors["normalized"]), arr1(&[1]));
    let message = set.save_pt(&path, Some((&[0.5], &[0.5]))).unwrap_err().to_string();
    assert!(message.contains("1 values of mean"), "{message}");
}
