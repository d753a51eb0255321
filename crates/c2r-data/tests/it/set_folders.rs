//! Folders of images: whatever they hold is read, refused or named.

use std::{
    fs,
    path::{Path, PathBuf},
};

use c2r_data::{ClassFolders, ClassOrder, DataError, load, load_folder, read_class_folders};
use image::{ImageFormat, Luma, Rgb, RgbImage, Rgba};
use tempfile::TempDir;

const CIFAR10: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

fn save(path: PathBuf, value: u8) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(32, 32, Rgb([value; 3])).save_with_format(path, ImageFormat::Png).unwrap();
}

/// A set with an image a class, class by class darker than the next.
fn set(names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    names.iter().enumerate().for_each(|(class, name)| save(folder.path().join(name).join("0.png"), class as u8));
    folder
}

fn read(folder: &Path, sorted: bool) -> Result<ClassFolders, DataError> {
    read_class_folders(folder, &c2r_data::spec("cifar10").unwrap(), sorted)
}

/// What class each folder was taken for, by the value of its image.
fn classes(folders: &ClassFolders) -> Vec<i64> {
    (0..10).map(|at| folders.file.tensors["images"].int64_value(&[at, 0, 0, 0])).collect()
}

fn left_out(folder: &Path, parts: &[&str]) {
    for (path, found) in [read(folder, false).unwrap_err()].into_iter().map(|error| match error {
        DataError::LeftOut { path, found } => (path, found),
        other => panic!("{other:?}"),
    }) {
        assert_eq!(path, folder);
        parts.iter().for_each(|part| assert!(found.contains(part), "{found}\nlacks {part}"));
    }
}

#[test]
fn images_that_are_not_read_links_and_folders_are_refused() {
    let folder = set(&CIFAR10);
    let at = |name: &str| folder.path().join(name);
    for class in ["bird", "cat"] {
        for end in ["webp", "bmp", "TIFF"] {
            fs::write(at(class).join(format!("1.{end}")), "not looked at").unwrap();
        }
    }
    // A picture without an ending is one all the same.
    fs::copy(at("ship/0.png"), at("ship/1")).unwrap();
    left_out(folder.path(), &["7 images that c2r does not read (bird/1.TIFF, bird/1.bmp, bird/1.webp, ...)"]);
    for class in ["bird", "cat"] {
        ["webp", "bmp", "TIFF"].iter().for_each(|end| fs::remove_file(at(class).join(format!("1.{end}"))).unwrap());
    }
    fs::remove_file(at("ship/1")).unwrap();

    save(at("dog/more/1.png"), 1);
    left_out(folder.path(), &["1 folder inside a folder of images (dog/more)"]);
    fs::remove_dir_all(at("dog/more")).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("/no/such/3.png", at("frog/3.png")).unwrap();
        left_out(folder.path(), &["1 link to nothing (frog/3.png)"]);
        fs::remove_file(at("frog/3.png")).unwrap();
        std::os::unix::fs::symlink(at("frog/0.png"), at("frog/1.png")).unwrap();
        assert_eq!(read(folder.path(), false).unwrap().file.tensors["labels"].size(), [11]);
        fs::remove_file(at("frog/1.png")).unwrap();
    }

    // Files that are not images are named.
    fs::create_dir(at("horse/empty")).unwrap();
    ["horse/.DS_Store", "log.txt"].iter().for_each(|name| fs::write(at(name), "").unwrap());
    let notes = read(folder.path(), false).unwrap().notes;
    assert_eq!(notes, ["3 other files were not read (log.txt, horse/.DS_Store, horse/empty)"]);
    fs::remove_file(at("truck/0.png")).unwrap();
    let error = read(folder.path(), false).unwrap_err();
    assert!(matches!(&error, DataError::Layout { path, .. } if *path == at("truck")), "{error:?}");
}

#[test]
fn classes_are_named_or_declared() {
    let names = ["plane", "car", "Bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
    let folders = read(set(&names).path(), false).unwrap();
    assert_eq!((folders.order, classes(&folders)), (ClassOrder::Names, (0..10).collect()));
    assert_eq!(folders.notes, ["classes by folder: plane = airplane, car = automobile, Bird = bird"]);

    let from_one: Vec<String> = (1..=10).map(|class| class.to_string()).collect();
    let folder = set(&from_one.iter().map(String::as_str).collect::<Vec<_>>());
    let error = read(folder.path(), false).unwrap_err();
    assert!(matches!(&error, DataError::ClassNames { reason, .. } if reason.contains("found 1 to 10")), "{error:?}");
    let folders = read(folder.path(), true).unwrap();
    assert_eq!((folders.order, classes(&folders)), (ClassOrder::Sorted, (0..10).collect()));
    let error = read(set(&CIFAR10).path(), true).unwrap_err();
    assert!(matches!(&error, DataError::ClassNames { reason, .. } if reason.contains("leave it out")), "{error:?}");
}

#[test]
fn what_eight_bits_cannot_hold_is_refused() {
    let folder = set(&CIFAR10);
    let path = folder.path().join("cat/0.png");
    let refused = |part: &str| {
        let error = read(folder.path(), false).unwrap_err();
        assert!(
            matches!(&error, DataError::Image { path: at, reason } if *at == path && reason.contains(part)),
            "{error:?}"
        );
    };
    image::ImageBuffer::from_pixel(32, 32, Luma([300u16])).save(&path).unwrap();
    refused("16 bits");
    let mut glass = image::RgbaImage::from_pixel(32, 32, Rgba([3, 3, 3, 255]));
    glass.save(&path).unwrap();
    assert_eq!(classes(&read(folder.path(), false).unwrap()), (0..10).collect::<Vec<_>>());
    glass.put_pixel(3, 4, Rgba([3, 3, 3, 254]));
    glass.save(&path).unwrap();
    refused("transparent");
}

/// As a dataset of one's own.
#[test]
fn datasets_leave_nothing_out() {
    let folder = tempfile::tempdir().unwrap();
    for split in ["train", "test"] {
        ["a", "b"].iter().for_each(|class| save(folder.path().join(split).join(class).join("0.png"), 9));
    }
    fs::write(folder.path().join("test/a/1.webp"), "").unwrap();
    let error = load_folder(folder.path(), None).unwrap_err();
    assert!(matches!(&error, DataError::LeftOut { found, .. } if found.contains("test/a/1.webp")), "{error:?}");
    fs::rename(folder.path().join("test/a/1.webp"), folder.path().join("train/readme.md")).unwrap();
    save(folder.path().join("val/a/0.png"), 3);
    let data = load_folder(folder.path(), None).unwrap();
    assert!(data.notes[0].contains("2 other files were not read (val, train/readme.md)"), "{:?}", data.notes);
}

/// Latin-1 letters that are not UTF-8, and a folder whose name is what one of them is written as.
#[test]
#[cfg(target_os = "linux")]
fn classes_that_are_not_utf8_stay_apart() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let folder = tempfile::tempdir().unwrap();
    let class = |split: &str, name: &[u8]| folder.path().join(split).join(OsStr::from_bytes(name)).join("0.png");
    for (name, value) in [(b"caf\xe8", 3), (b"caf\xe9", 9)] {
        ["train", "test"].into_iter().for_each(|split| save(class(split, name), value));
    }
    let data = load_folder(folder.path(), None).unwrap();
    assert_eq!(data.spec.classes, [r"caf\xE8", r"caf\xE9"]);
    assert!([data.train.labels(), data.test.labels()].iter().all(|labels| labels.to_vec() == [0, 1]));
    save(class("train", br"caf\xE9"), 9);
    let error = load_folder(folder.path(), None).unwrap_err().to_string();
    assert!(error.contains("train/caf") && error.contains(r"another name than `caf\xE9`"), "{error}");
}

/// As torchvision and Pillow do it with `convert("RGB")`, but with a word.
#[test]
fn datasets_name_what_eight_bits_cannot_hold() {
    let folder = tempfile::tempdir().unwrap();
    for split in ["train", "test"] {
        ["a", "b"].iter().for_each(|class| save(folder.path().join(split).join(class).join("0.png"), 9));
    }
    image::RgbaImage::from_pixel(32, 32, Rgba([3, 3, 3, 128])).save(folder.path().join("train/a/0.png")).unwrap();
    image::ImageBuffer::from_pixel(32, 32, Luma([300u16])).save(folder.path().join("test/b/0.png")).unwrap();
    let data = load_folder(folder.path(), None).unwrap();
    assert!(data.notes[0].ends_with("2 images lost transparent pixels or 16 bits per channel"), "{:?}", data.notes);
}

/// Not the least rounding of a deviation of 0 is divided by.
#[test]
fn a_channel_that_never_varies_is_divided_by_one() {
    let folder = tempfile::tempdir().unwrap();
    for (split, class, value) in [("train", "a", 10), ("train", "b", 30), ("test", "a", 30)] {
        let path = folder.path().join(split).join(class).join("0.png");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(4, 4, Rgb([value, 77, 0])).save(path).unwrap();
    }
    let data = load_folder(folder.path(), None).unwrap();
    // Values 10 and 30 as often as each other: mean 20, deviation 10.
    assert!((data.spec.std[0] - 10.0 / 255.0).abs() < 1e-12);
    assert_eq!((data.spec.std[1], data.spec.std[2], data.spec.mean[2]), (1.0, 1.0, 0.0));
    assert!((data.spec.mean[1] - 77.0 / 255.0).abs() < 1e-15);
    assert_eq!(data.notes.len(), 2);
    assert!(data.notes[0].contains("channel 1 (green) is 77 in every training image"), "{:?}", data.notes);
}

#[test]
fn folders_that_are_not_there_say_what_is() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("data/cifar");
    for (error, at, part) in [
        (load("cifar10", Some(&absent)), absent.clone(), format!("; {} exists", folder.path().display())),
        (load(&format!("folder:{}", absent.display()), None), absent.clone(), "exists".to_owned()),
        (load("folder:~/plain", None), PathBuf::from("~/plain"), "only a shell expands `~`".to_owned()),
        (load("cifar10", Some(Path::new("~/data"))), PathBuf::from("~/data"), "$HOME instead of `~`".to_owned()),
    ] {
        let Err(DataError::NoFolder { path, advice }) = error else { panic!("{error:?}") };
        assert_eq!(path, at);
        assert!(advice.contains(&part), "{advice}\nlacks {part}");
    }
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let Err(DataError::NoFolder { advice, .. }) = load("cifar10", Some(&file)) else {
        panic!("a file is not a folder")
    };
    assert!(advice.contains("it is a file"), "{advice}");
}
