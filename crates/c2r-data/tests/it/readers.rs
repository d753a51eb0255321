//! Every reader on files made here.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use c2r_data::{DataError, Dataset, Split, load, load_folder};
use image::{ImageFormat, Rgb, RgbImage};
use proptest::prelude::*;
use tempfile::TempDir;

/// RGB of the corners of one image: top left, top right, bottom left, bottom right.
pub(crate) fn corners(split: &Split, position: usize) -> [[u8; 3]; 4] {
    let [c, h, w] = split.shape().map(|side| side as usize);
    assert_eq!(c, 3);
    [(0, 0), (0, w - 1), (h - 1, 0), (h - 1, w - 1)]
        .map(|(row, column)| [0, 1, 2].map(|c| split.images()[[position, c, row, column]]))
}

/// The whole chain of causes, as the command line shows it.
fn message(result: Result<Dataset, DataError>) -> String {
    let error = result.expect_err("this must fail");
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

fn write(path: PathBuf, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A record whose corners in channel `c` are `10 c + 1, 2, 3, 4` plus `base`, everything else 200.
fn record(labels: &[u8], base: u8) -> Vec<u8> {
    let mut pixels = vec![200; 3 * 32 * 32];
    for c in 0..3 {
        for (corner, at) in [0, 31, 31 * 32, 31 * 32 + 31].into_iter().enumerate() {
            pixels[c * 1024 + at] = base + 10 * c as u8 + corner as u8 + 1;
        }
    }
    [labels, &pixels].concat()
}

fn expected_corners(base: u8) -> [[u8; 3]; 4] {
    [1, 2, 3, 4].map(|corner| [0, 10, 20].map(|channel| base + channel + corner))
}

fn cifar10() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let batches = folder.path().join("cifar-10-batches-bin");
    for batch in 1..=5 {
        write(batches.join(format!("data_batch_{batch}.bin")), [record(&[batch], batch), record(&[9], 100)].concat());
    }
    write(batches.join("test_batch.bin"), record(&[7], 50));
    let names = "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n";
    write(batches.join("batches.meta.txt"), names);
    folder
}

fn cifar100() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("cifar-100-binary");
    write(binary.join("train.bin"), [record(&[19, 99], 1), record(&[0, 3], 2)].concat());
    write(binary.join("test.bin"), record(&[11, 42], 3));
    folder
}

#[test]
fn cifar10_records() {
    let folder = cifar10();
    let data = load("cifar10", Some(folder.path())).unwrap();
    assert_eq!(data.train.labels().to_vec(), [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]);
    assert_eq!(data.test.labels().to_vec(), [7]);
    assert_eq!(corners(&data.train, 0), expected_corners(1));
    assert_eq!(corners(&data.train, 5), expected_corners(100));
    assert_eq!(corners(&data.train, 8), expected_corners(5));
    assert_eq!(corners(&data.test, 0), expected_corners(50));
    assert_eq!(data.notes, ["cifar10 train: 10 of 50000 images (subset)", "cifar10 test: 1 of 10000 images (subset)"]);
    // The folder itself does as well.
    let data = load("cifar10", Some(&folder.path().join("cifar-10-batches-bin"))).unwrap();
    assert_eq!(data.train.len(), 10);
}

#[test]
fn cifar100_takes_the_fine_label() {
    let folder = cifar100();
    let data = load("cifar100", Some(folder.path())).unwrap();
    assert_eq!(data.train.labels().to_vec(), [99, 3]);
    assert_eq!(data.test.labels().to_vec(), [42]);
    assert_eq!((corners(&data.train, 1), corners(&data.test, 0)), (expected_corners(2), expected_corners(3)));
    assert_eq!(data.notes.len(), 2);
}

#[test]
fn cifar_errors_name_file_and_place() {
    let check = |folder: TempDir, name: &str, file: &str, bytes: Option<Vec<u8>>, expected: &[&str]| {
        let path = folder.path().join(file);
        match bytes {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let message = message(load(name, Some(folder.path())));
        let file = path.file_name().unwrap().to_string_lossy();
        assert!(message.contains(&*file), "{message}");
        expected.iter().for_each(|part| assert!(message.contains(part), "{message} lacks {part}"));
    };
    let batch = "cifar-10-batches-bin/data_batch_3.bin";
    let two = [record(&[1], 0), record(&[2], 0)].concat();
    check(
        cifar10(),
        "cifar10",
        batch,
        Some(two[..6000].to_vec()),
        &["byte 3073", "record 1", "3073 bytes", "2927 bytes"],
    );
    check(cifar10(), "cifar10", batch, Some(Vec::new()), &["byte 0", "a record of 3073 bytes"]);
    let wrong_label = [record(&[1], 0), record(&[10], 0)].concat();
    check(cifar10(), "cifar10", batch, Some(wrong_label), &["byte 3073", "record 1", "a label below 10, found 10"]);
    check(cifar10(), "cifar10", batch, Some(record(&[1], 0).repeat(10_001)), &["byte 30730000", "after 10000 records"]);
    check(cifar10(), "cifar10", batch, None, &["cannot read"]);
    check(cifar10(), "cifar10", "cifar-10-batches-bin/test_batch.bin", None, &["cannot read"]);
    let names = "cifar-10-batches-bin/batches.meta.txt";
    check(cifar10(), "cifar10", names, Some(b"airplane\ncat\n".to_vec()), &["line 2", "`automobile`, found `cat`"]);
    check(cifar10(), "cifar10", names, Some(b"airplane\n".to_vec()), &["line 2", "the end of the file"]);
    check(cifar10(), "cifar10", names, Some(vec![0xff, 0xfe]), &["cannot read"]);
    let (train, test) = ("cifar-100-binary/train.bin", "cifar-100-binary/test.bin");
    check(cifar100(), "cifar100", train, Some(record(&[20, 0], 0)), &["byte 0", "below 20, found 20"]);
    check(cifar100(), "cifar100", test, Some(record(&[0, 100], 0)), &["byte 1", "below 100, found 100"]);
    check(cifar100(), "cifar100", test, Some(record(&[0], 0)), &["3074 bytes", "found 3073 bytes"]);
}

#[test]
fn missing_data_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    for (name, layout) in [
        ("cifar10", "`cifar-10-batches-bin/`"),
        ("cifar100", "`cifar-100-binary/`"),
        ("tiny-imagenet", "`tiny-imagenet-200/`"),
        ("imagenette", "`imagenet/` or `ILSVRC2012/` or `imagenette2-320/`"),
    ] {
        for message in [message(load(name, None)), message(load(name, Some(folder.path())))] {
            for part in [layout, "docs/datasets.md"] {
                assert!(message.contains(part), "{message} lacks {part}");
            }
        }
    }
    assert!(message(load("cifar10", Some(folder.path()))).contains(&folder.path().display().to_string()));
    assert!(message(load("mnist", None)).contains("`mnist` is not a dataset"));
}

/// A picture with known corners, 200 elsewhere.
fn picture(h: u32, w: u32, base: u8) -> RgbImage {
    let mut picture = RgbImage::from_pixel(w, h, Rgb([200; 3]));
    for ((x, y), rgb) in [(0, 0), (w - 1, 0), (0, h - 1), (w - 1, h - 1)].into_iter().zip(expected_corners(base)) {
        picture.put_pixel(x, y, Rgb(rgb));
    }
    picture
}

fn save(path: PathBuf, picture: &RgbImage, format: ImageFormat) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    picture.save_with_format(path, format).unwrap();
}

/// Two classes; PNGs under the layout's names, so that pixels are exact (files are told by content).
fn tiny_imagenet() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tiny = folder.path().join("tiny-imagenet-200");
    write(tiny.join("wnids.txt"), "n02124075\nn01443537\n");
    for (id, base) in [("n02124075", 20), ("n01443537", 40)] {
        for index in 0..2 {
            let name = format!("train/{id}/images/{id}_{index}.JPEG");
            save(tiny.join(name), &picture(64, 64, base + index), ImageFormat::Png);
        }
    }
    save(tiny.join("val/images/val_0.JPEG"), &picture(64, 64, 80), ImageFormat::Png);
    save(tiny.join("val/images/val_1.JPEG"), &picture(64, 64, 90), ImageFormat::Png);
    write(
        tiny.join("val/val_annotations.txt"),
        "val_1.JPEG\tn02124075\t0\t0\t9\t9\nval_0.JPEG\tn01443537\t0\t0\t9\t9\n",
    );
    write(tiny.join("train/n01443537/images/.hidden.JPEG"), "no image");
    write(tiny.join("train/n01443537/n01443537_boxes.txt"), "no image");
    folder
}

#[test]
fn tiny_imagenet_layout() {
    let folder = tiny_imagenet();
    let data = load("tiny-imagenet", Some(folder.path())).unwrap();
    // Class order is that of the sorted ids, not of the file.
    assert_eq!(data.spec.wnids, ["n01443537", "n02124075"]);
    assert_eq!(data.spec.classes, ["goldfish", "Egyptian cat"]);
    assert_eq!(data.train.labels().to_vec(), [0, 0, 1, 1]);
    assert_eq!(data.test.labels().to_vec(), [1, 0]);
    assert_eq!((data.train.shape(), data.train.n_classes()), ([3, 64, 64], 2));
    let train = [40, 41, 20, 21].map(expected_corners);
    assert_eq!([0, 1, 2, 3].map(|position| corners(&data.train, position)), train);
    assert_eq!([corners(&data.test, 0), corners(&data.test, 1)], [90, 80].map(expected_corners));
    assert_eq!(data.notes.len(), 4);
    assert!(data.notes[0].contains("2 of 200 classes"), "{:?}", data.notes);
    let hidden = "1 other file was not read (train/n01443537/images/.hidden.JPEG)";
    assert!(data.notes[1].contains(hidden), "{:?}", data.notes);
    assert!(data.notes[2].contains("4 of 100000 images (subset)"), "{:?}", data.notes);
}

/// As scripts leave it that make `val/` a folder for `ImageFolder`: the same splits, and those of the archive in order.
#[test]
fn tiny_imagenet_with_sorted_validation_images() {
    let archive = tiny_imagenet();
    let hashes = |data: &Dataset| [data.train.sha256(), data.test.sha256()];
    let expected = hashes(&load("tiny-imagenet", Some(archive.path())).unwrap());
    for (inner, annotated) in [("", true), ("images/", true), ("", false), ("images/", false)] {
        let folder = tiny_imagenet();
        let val = folder.path().join("tiny-imagenet-200/val");
        for (name, id) in [("val_0.JPEG", "n01443537"), ("val_1.JPEG", "n02124075")] {
            let place = val.join(id).join(inner);
            fs::create_dir_all(&place).unwrap();
            fs::rename(val.join("images").join(name), place.join(name)).unwrap();
        }
        fs::remove_dir(val.join("images")).unwrap();
        if !annotated {
            fs::remove_file(val.join("val_annotations.txt")).unwrap();
        }
        let data = load("tiny-imagenet", Some(folder.path())).unwrap();
        if annotated {
            assert_eq!(hashes(&data), expected, "{inner}");
        } else {
            // By the number in the name; the annotations above begin with 1.
            assert_eq!(data.test.labels().to_vec(), [0, 1]);
            assert_eq!([corners(&data.test, 0), corners(&data.test, 1)], [80, 90].map(expected_corners));
        }
    }
    let folder = tiny_imagenet();
    let val = folder.path().join("tiny-imagenet-200/val");
    fs::rename(val.join("images"), val.join("n01443537")).unwrap();
    fs::create_dir(val.join("n02124075")).unwrap();
    save(val.join("n02124075/val_2.JPEG"), &picture(64, 64, 1), ImageFormat::Png);
    let text = message(load("tiny-imagenet", Some(folder.path())));
    assert!(
        text.contains("n01443537/val_1.JPEG") && text.contains("an image of n02124075, as val_annotations.txt says"),
        "{text}"
    );
}

#[test]
fn validation_images_without_a_label_are_named() {
    let folder = tiny_imagenet();
    save(folder.path().join("tiny-imagenet-200/val/images/val_7.JPEG"), &picture(64, 64, 9), ImageFormat::Png);
    let data = load("tiny-imagenet", Some(folder.path())).unwrap();
    assert_eq!(data.test.len(), 2);
    assert_eq!(data.notes[1], "tiny-imagenet: 1 images in val/images are not in val_annotations.txt");
}

/// Editors of some systems begin a text with a mark.
#[test]
fn byte_order_marks_are_no_text() {
    let folder = cifar10();
    let names = folder.path().join("cifar-10-batches-bin/batches.meta.txt");
    let mark = |path: &Path| fs::write(path, [b"\xef\xbb\xbf".to_vec(), fs::read(path).unwrap()].concat()).unwrap();
    mark(&names);
    assert_eq!(load("cifar10", Some(folder.path())).unwrap().train.len(), 10);

    let folder = tiny_imagenet();
    let tiny = folder.path().join("tiny-imagenet-200");
    ["wnids.txt", "val/val_annotations.txt"].iter().for_each(|name| mark(&tiny.join(name)));
    assert_eq!(load("tiny-imagenet", Some(folder.path())).unwrap().test.labels().to_vec(), [1, 0]);
    fs::write(tiny.join("wnids.txt"), b"\xff\xfen\0").unwrap();
    assert!(message(load("tiny-imagenet", Some(folder.path()))).contains("UTF-16"));
}

#[test]
fn jpegs_are_decoded_and_grey_becomes_rgb() {
    let folder = tiny_imagenet();
    let images = folder.path().join("tiny-imagenet-200/train/n01443537/images");
    let smooth = RgbImage::from_fn(64, 64, |x, y| Rgb([x as u8 * 3, y as u8 * 3, 100]));
    save(images.join("n01443537_0.JPEG"), &smooth, ImageFormat::Jpeg);
    let grey = image::GrayImage::from_fn(64, 64, |x, y| image::Luma([(x + y) as u8]));
    let file = images.join("n01443537_1.JPEG");
    grey.save_with_format(&file, ImageFormat::Jpeg).unwrap();
    // A film behind the image, as in a motion photo, holds markers of its own.
    let film = b"\0\0\0\x18ftypmp42 \xff\xda and no end";
    fs::write(&file, [&fs::read(&file).unwrap()[..], film].concat()).unwrap();
    let data = load("tiny-imagenet", Some(folder.path())).unwrap();
    let near = |found: [[u8; 3]; 4], expected: [[u8; 3]; 4]| {
        let pairs = found.as_flattened().iter().zip(expected.as_flattened());
        assert!(pairs.clone().all(|(found, expected)| found.abs_diff(*expected) <= 8), "{found:?} {expected:?}");
    };
    near(corners(&data.train, 0), [[0, 0, 100], [189, 0, 100], [0, 189, 100], [189, 189, 100]]);
    near(corners(&data.train, 1), [[0; 3], [63; 3], [63; 3], [126; 3]]);
    assert!(corners(&data.train, 1).iter().all(|[r, g, b]| r == g && g == b));
}

#[test]
fn tiny_imagenet_errors_name_file_and_place() {
    let check = |file: &str, change: &dyn Fn(&Path), expected: &[&str]| {
        let folder = tiny_imagenet();
        let path = folder.path().join("tiny-imagenet-200").join(file);
        change(&path);
        let message = message(load("tiny-imagenet", Some(folder.path())));
        assert!(message.contains(path.file_name().unwrap().to_str().unwrap()), "{message}");
        expected.iter().for_each(|part| assert!(message.contains(part), "{message} lacks {part}"));
    };
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    let image = "train/n02124075/images/n02124075_0.JPEG";
    check(image, &|path| save(path.into(), &picture(32, 64, 0), ImageFormat::Png), &["32x64", "expected 64x64"]);
    check(image, &|path| fs::write(path, "no image").unwrap(), &["not a readable image", "8 bytes"]);
    check(image, &|path| fs::write(path, "").unwrap(), &["not a readable image", "0 bytes"]);
    check(
        image,
        &|path| {
            save(path.into(), &picture(64, 64, 0), ImageFormat::Jpeg);
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        },
        &["cut short"],
    );
    // A thumbnail in the header is a whole JPEG.
    check(
        image,
        &|path| {
            save(path.into(), &picture(64, 64, 0), ImageFormat::Jpeg);
            let bytes = fs::read(path).unwrap();
            let header = [&b"Exif\0\0"[..], &bytes].concat();
            let length = u16::try_from(header.len() + 2).unwrap().to_be_bytes();
            let whole = [&bytes[..2], b"\xff\xe1", &length, &header, &bytes[2..]].concat();
            // A few of the pixels' bytes are missing.
            fs::write(path, &whole[..whole.len() - 40]).unwrap();
        },
        &["cut short"],
    );
    check(
        image,
        &|path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        },
        &["not a readable image"],
    );
    check("wnids.txt", &remove, &["cannot read"]);
    check("wnids.txt", &|path| fs::write(path, "\n\n").unwrap(), &["a class id on each line"]);
    check("wnids.txt", &|path| fs::write(path, "../up\n").unwrap(), &["line 1", "`../up`"]);
    check("val/val_annotations.txt", &remove, &["cannot read"]);
    check("val/val_annotations.txt", &|path| fs::write(path, "").unwrap(), &["each validation image"]);
    check("val/val_annotations.txt", &|path| fs::write(path, "val_0.JPEG\n").unwrap(), &["line 1", "a tab"]);
    check("val/val_annotations.txt", &|path| fs::write(path, "\nval_0.JPEG\tn9\n").unwrap(), &["line 2", "`n9`"]);
    check("val/val_annotations.txt", &|path| fs::write(path, "../x\tn02124075\n").unwrap(), &["line 1", "`../x`"]);
    check("val/images/val_1.JPEG", &remove, &["cannot read"]);
    let empty = |path: &Path| {
        fs::remove_dir_all(path).unwrap();
        fs::create_dir(path).unwrap();
    };
    check("train/n02124075/images", &empty, &["JPEG images"]);
    check("train/n02124075/images", &|path| fs::remove_dir_all(path).unwrap(), &["train/n02124075", "JPEG images"]);
    check("train/n02124075", &|path| fs::remove_dir_all(path).unwrap(), &["cannot read"]);
}

fn image_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, base) in [("train/dog/b.png", 2), ("train/dog/a.PNG", 1), ("train/cat/x.png", 3), ("val/dog/y.png", 4)] {
        save(folder.path().join(name), &picture(5, 7, base), ImageFormat::Png);
    }
    folder
}

#[test]
fn image_folders() {
    let folder = image_folder();
    let name = format!("folder:{}", folder.path().display());
    let data = load(&name, None).unwrap();
    assert_eq!(data.spec.classes, ["cat", "dog"]);
    assert_eq!((data.train.labels().to_vec(), data.test.labels().to_vec()), (vec![0, 1, 1], vec![1]));
    assert_eq!(data.train.shape(), [3, 5, 7]);
    assert_eq!([0, 1, 2].map(|position| corners(&data.train, position)), [3, 1, 2].map(expected_corners));
    assert_eq!(corners(&data.test, 0), expected_corners(4));
    assert_eq!(data.spec.name, name);
    // Channel 0 holds 31 values of 200 and four of base + 1..=4 in each of the images 1, 2 and 3.
    let values: Vec<f64> = (1..=3)
        .flat_map(|base| (1..=4).map(move |corner| (base + corner) as f64 / 255.0))
        .chain([200.0 / 255.0; 93])
        .collect();
    let mean = values.iter().sum::<f64>() / 105.0;
    let std = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 105.0).sqrt();
    assert!((data.spec.mean[0] - mean).abs() < 1e-12 && (data.spec.std[0] - std).abs() < 1e-12);
    assert!(data.spec.mean[1] > data.spec.mean[0]);

    let resized = load_folder(folder.path(), Some((10, 14))).unwrap();
    assert_eq!(resized.train.shape(), [3, 10, 14]);
    // `test` wins over `val`.
    save(folder.path().join("test/cat/z.png"), &picture(5, 7, 9), ImageFormat::Png);
    assert_eq!(load(&name, None).unwrap().test.labels().to_vec(), [0]);
}

#[test]
fn sizes_that_no_image_has_are_refused() {
    let folder = image_folder();
    for (h, w) in [(0, 8), (8, 0), (0, 0), (u32::MAX, u32::MAX), (20_000, 20_000)] {
        let error = load_folder(folder.path(), Some((h, w))).unwrap_err();
        assert!(
            matches!(&error, DataError::Size { reason, .. } if reason.starts_with(&format!("images of {h}x{w} have "))),
            "{error}"
        );
    }
}

#[test]
fn image_folder_errors_name_the_path() {
    let check = |change: &dyn Fn(&Path), expected: &[&str]| {
        let folder = image_folder();
        change(folder.path());
        let message = message(load_folder(folder.path(), None));
        expected.iter().for_each(|part| assert!(message.contains(part), "{message} lacks {part}"));
    };
    let odd = |name: &'static str| move |root: &Path| save(root.join(name), &picture(4, 7, 0), ImageFormat::Png);
    check(&odd("train/dog/c.png"), &["dog/c.png", "4x7", "expected 5x7"]);
    check(&odd("val/dog/c.png"), &["val/dog/c.png", "4x7"]);
    // The first one that differs, in order.
    check(&|root| ["train/dog/c.png", "train/cat/y.png"].iter().for_each(|name| odd(name)(root)), &["cat/y.png"]);
    check(&|root| fs::remove_dir_all(root.join("val")).unwrap(), &["test/CLASS", "val/CLASS"]);
    check(&|root| fs::remove_dir_all(root.join("train")).unwrap(), &["train/CLASS"]);
    check(&|root| fs::create_dir(root.join("train/empty")).unwrap(), &["train/empty", "images"]);
    check(&|root| save(root.join("val/bird/a.png"), &picture(5, 7, 0), ImageFormat::Png), &["val/bird", "train too"]);
    check(&|root| write(root.join("train/dog/broken.jpg"), [0xff, 0xd8, 0xff]), &["broken.jpg"]);
    assert!(message(load("folder:/no/such/folder", None)).contains("/no/such/folder"));
}

#[test]
fn imagenet_subsets_from_class_folders_and_from_a_flat_val_folder() {
    let wnids = c2r_data::spec("imagenette").unwrap().wnids.clone();
    let folder = tempfile::tempdir().unwrap();
    for flat in [false, true] {
        let root = folder.path().join(if flat { "ILSVRC2012" } else { "imagenette2-320" });
        let mut solution = "ImageId,PredictionString\n".to_owned();
        for (class, id) in wnids.iter().enumerate() {
            let solid = RgbImage::from_pixel(20 + class as u32, 30, Rgb([class as u8 * 20, 7, 250]));
            save(root.join(format!("train/{id}/a.JPEG")), &solid, ImageFormat::Png);
            if flat {
                solution = format!("{solution}val_{class},{id} 1 2 3 4\nother_{class},n00000000 1 2 3 4\n");
                save(root.join(format!("val/val_{class}.JPEG")), &solid, ImageFormat::Png);
            } else {
                save(root.join(format!("val/{id}/b.JPEG")), &solid, ImageFormat::Png);
            }
        }
        if flat {
            write(root.join("LOC_val_solution.csv"), solution);
        }
        let data = load("imagenette", Some(&root)).unwrap();
        assert_eq!(data.train.shape(), [3, 128, 128]);
        assert_eq!(data.train.labels(), data.test.labels());
        assert_eq!(data.test.labels().to_vec(), (0..10).collect::<Vec<_>>());
        assert_eq!(corners(&data.train, 9), [[180, 7, 250]; 4]);
        assert_eq!(corners(&data.test, 3), [[60, 7, 250]; 4]);
        let source = root.file_name().unwrap().to_string_lossy();
        assert!(data.notes[0].contains(&*source) && data.notes[0].contains("10 test images"), "{:?}", data.notes);
        assert!(data.notes[0].contains(if flat { "from ILSVRC-2012" } else { "from fast.ai" }), "{:?}", data.notes);
    }
    fs::remove_dir_all(folder.path().join("ILSVRC2012/train").join(&wnids[4])).unwrap();
    assert!(message(load("imagenette", Some(folder.path()))).contains(&wnids[4]));
}

proptest! {
    #![proptest_config(crate::cases(48))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4000), cut in 0usize..3074) {
        let folder = cifar10();
        let batch = folder.path().join("cifar-10-batches-bin/data_batch_1.bin");
        fs::write(&batch, &bytes).unwrap();
        if bytes.len() % 3073 != 0 {
            prop_assert!(message(load("cifar10", Some(folder.path()))).contains("data_batch_1.bin: byte"));
        }
        fs::write(&batch, &record(&[3], 0)[..cut.min(3073)]).unwrap();
        prop_assert_eq!(load("cifar10", Some(folder.path())).is_ok(), cut >= 3073);
        fs::write(folder.path().join("cifar-10-batches-bin/batches.meta.txt"), &bytes).unwrap();
        let _ = load("cifar10", Some(folder.path()));

        let folder = tiny_imagenet();
        let tiny = folder.path().join("tiny-imagenet-200");
        for file in ["val/val_annotations.txt", "wnids.txt", "val/images/val_0.JPEG"] {
            let before = fs::read(tiny.join(file)).unwrap();
            fs::write(tiny.join(file), &bytes).unwrap();
            prop_assert!(load("tiny-imagenet", Some(folder.path())).is_err());
            fs::write(tiny.join(file), &before[..cut.min(before.len())]).unwrap();
            let _ = load("tiny-imagenet", Some(folder.path()));
            fs::write(tiny.join(file), before).unwrap();
        }
    }

    /// Damaged image files: an error that names the file, or pixels, but no panic.
    #[test]
    fn damaged_images_never_panic(jpeg in any::<bool>(), at in 0.0f64..1.0, value in any::<u8>(), cut in 0.0f64..1.0) {
        let folder = image_folder();
        let path = folder.path().join("train/dog/b.png");
        save(path.clone(), &picture(5, 7, 2), if jpeg { ImageFormat::Jpeg } else { ImageFormat::Png });
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        bytes[(at * whole.len() as f64) as usize] = value;
        fs::write(&path, &bytes).unwrap();
        if let Err(error) = load_folder(folder.path(), None) {
            prop_assert!(error.to_string().contains("b.png"), "{}", error);
        }
        fs::write(&path, &whole[..(cut * whole.len() as f64) as usize]).unwrap();
        let message = message(load_folder(folder.path(), None));
        prop_assert!(message.contains("b.png"), "{}", message);
    }
}
