//! Decoded images in a file: made once, used again, and never used when it is not what it should be.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use c2r_base::artifact::TensorFile;
use c2r_data::{DataError, Dataset, LoadEvent, Provenance, load_with};
use image::{ImageFormat, Rgb, RgbImage};
use ndarray::Axis;
use tempfile::TempDir;

/// Height and width of each picture of the subset, and its class.
const PICTURES: [(u32, u32, usize); 3] = [(300, 200, 0), (50, 40, 1), (128, 300, 2)];

fn picture(h: u32, w: u32) -> RgbImage {
    let value = |x: u32, y: u32| [x * x * 7 + y * 13, x * 5 + y * y * 3, x * y * 11].map(|value| (value % 256) as u8);
    RgbImage::from_fn(w, h, |x, y| Rgb(value(x, y)))
}

/// `imagenette2-320/` with one picture a class in each split.
fn subset() -> TempDir {
    let data = tempfile::tempdir().unwrap();
    for (class, id) in c2r_data::spec("imagenette").unwrap().wnids.iter().enumerate() {
        let (h, w, _) = PICTURES[class % 3];
        for split in ["train", "val"] {
            let folder = data.path().join("imagenette2-320").join(split).join(id);
            fs::create_dir_all(&folder).unwrap();
            picture(h, w).save_with_format(folder.join("a.JPEG"), ImageFormat::Png).unwrap();
        }
    }
    data
}

fn cache(data: &Path) -> PathBuf {
    data.join(".c2r-cache/imagenette-128x128-imagenette2-320.safetensors")
}

fn load(data: &Path) -> (Result<Dataset, DataError>, Vec<LoadEvent>) {
    let mut events = Vec::new();
    let dataset = load_with("imagenette", Some(data), &mut |event| events.push(event));
    (dataset, events)
}

/// Loading must say that it decodes because of `reason`, and give what it gave before.
fn is_made_anew(data: &Path, before: &Dataset, reason: &str) {
    let (dataset, events) = load(data);
    let Some(LoadEvent::CacheDropped { path, reason: found }) = events.first() else { panic!("{events:?}") };
    assert!(*path == cache(data) && found.contains(reason), "{events:?} lacks {reason}");
    assert!(matches!(events[1], LoadEvent::Decoding { n_images: 20, .. }), "{events:?}");
    let dataset = dataset.unwrap();
    assert_eq!(dataset.train.images(), before.train.images());
    assert_eq!(dataset.test.sha256(), before.test.sha256());
    assert_eq!(load(data).1, [], "and the new one is used");
}

#[test]
fn images_are_decoded_once() {
    let data = subset();
    let (first, events) = load(data.path());
    let first = first.unwrap();
    let decoding = LoadEvent::Decoding { n_images: 20, cache: cache(data.path()) };
    assert_eq!(events, [decoding, LoadEvent::Decoded { n_images: 10 }, LoadEvent::Decoded { n_images: 20 }]);
    let (second, events) = load(data.path());
    let second = second.unwrap();
    assert_eq!(events, []);
    assert_eq!(first.train.images(), second.train.images());
    assert_eq!(first.test.labels(), second.test.labels());
    assert_eq!(first.train.labels().to_vec(), (0..10).collect::<Vec<_>>());
    assert!(first.notes[0].contains("from fast.ai (imagenette2-320/)"), "{:?}", first.notes);

    // The hash that was kept is the hash of what is there.
    let copy = first.train.select(&(0..10).collect::<Vec<_>>());
    assert_eq!(copy.sha256(), first.train.sha256());
    // Other programs can read the file.
    let file = TensorFile::read(&cache(data.path())).unwrap();
    assert_eq!(file.tensors["train.images"].size(), [10, 3, 128, 128]);
    assert_eq!(Vec::<i64>::try_from(&file.tensors["test.labels"]).unwrap(), (0..10).collect::<Vec<_>>());
    let names: Vec<_> = fs::read_dir(data.path().join(".c2r-cache")).unwrap().collect();
    assert_eq!(names.len(), 1, "no temporary file is left");
}

#[test]
fn what_killed_commands_left_is_removed_a_day_later() {
    let data = subset();
    let folder = data.path().join(".c2r-cache");
    fs::create_dir(&folder).unwrap();
    let [old, new] = ["old", "new"].map(|name| folder.join(format!(".c2r-{name}.part")));
    fs::write(&new, b"of a command that still runs").unwrap();
    File::create(&old).unwrap().set_modified(SystemTime::now() - Duration::from_secs(25 * 3600)).unwrap();
    load(data.path()).0.unwrap();
    assert!(new.exists() && !old.exists());
}

/// One file per subset and size; neither disturbs the other.
#[test]
fn each_size_has_its_own_file() {
    let data = subset();
    load(data.path()).0.unwrap();
    let small = c2r_data::load("imagenette@32", Some(data.path())).unwrap();
    assert_eq!((small.spec.name.as_str(), small.train.shape()), ("imagenette@32", [3, 32, 32]));
    assert!(small.notes[0].starts_with("imagenette@32 from fast.ai"), "{:?}", small.notes);
    let file = TensorFile::read(&data.path().join(".c2r-cache/imagenette-32x32-imagenette2-320.safetensors")).unwrap();
    assert_eq!(file.tensors["test.images"].size(), [10, 3, 32, 32]);
    assert_eq!(load(data.path()).1, [], "the other size is still there");
    let events = &mut Vec::new();
    load_with("imagenette@32", Some(data.path()), &mut |event| events.push(event)).unwrap();
    assert_eq!(*events, []);
}

#[test]
fn a_cache_of_other_files_is_made_anew() {
    let data = subset();
    let before = load(data.path()).0.unwrap();
    let image = data.path().join("imagenette2-320/train/n01440764/a.JPEG");
    let later = SystemTime::now() + Duration::from_secs(100);
    File::options().write(true).open(&image).unwrap().set_modified(later).unwrap();
    is_made_anew(data.path(), &before, "other files");
    // Another image: another training set, the same test set.
    fs::copy(&image, image.with_file_name("b.JPEG")).unwrap();
    let (after, events) = load(data.path());
    assert!(
        matches!(&events[0], LoadEvent::CacheDropped { reason, .. } if reason.contains("other files")),
        "{events:?}"
    );
    let after = after.unwrap();
    assert_eq!((after.train.len(), after.train.class_positions(0)), (11, [0, 1].as_slice()));
    assert_eq!(after.test.sha256(), before.test.sha256());
}

#[test]
fn a_damaged_cache_is_made_anew() {
    let data = subset();
    let before = load(data.path()).0.unwrap();
    let path = cache(data.path());
    let whole = fs::read(&path).unwrap();
    let replace = |bytes: &[u8]| {
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    };
    let length = whole.len();
    // A pixel of each split, a label, the hash itself.
    for at in [length / 3, length - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        replace(&bytes);
        is_made_anew(data.path(), &before, "the SHA-256 of");
    }
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut bytes = whole.clone();
    bytes[header] = 3;
    replace(&bytes);
    is_made_anew(data.path(), &before, "the SHA-256 of train");
    bytes[header] = 77;
    replace(&bytes);
    is_made_anew(data.path(), &before, "label 77");
    for cut in [0, 7, 100, header, length / 2, length - 1] {
        replace(&whole[..cut]);
        is_made_anew(data.path(), &before, "damaged");
    }
    replace(b"not a cache at all, but long enough to look at");
    is_made_anew(data.path(), &before, "damaged");
}

#[test]
fn without_a_place_for_the_cache_the_images_are_in_memory() {
    let data = subset();
    fs::write(data.path().join(".c2r-cache"), "a file where the folder should be").unwrap();
    for _ in 0..2 {
        let (dataset, events) = load(data.path());
        assert!(matches!(events.last(), Some(LoadEvent::NotCached { .. })), "{events:?}");
        assert_eq!(dataset.unwrap().train.len(), 10);
    }
}

#[test]
fn an_image_that_cannot_be_decoded_leaves_no_cache() {
    let data = subset();
    let image = data.path().join("imagenette2-320/val/n03888257/a.JPEG");
    fs::write(&image, "no image").unwrap();
    let message = load(data.path()).0.unwrap_err().to_string();
    assert!(message.contains("n03888257/a.JPEG"), "{message}");
    assert_eq!(fs::read_dir(data.path().join(".c2r-cache")).unwrap().count(), 0);
}

/// Pixels by Pillow 13.0: `Image.resize((128, 128), Image.BILINEAR)` of the same pictures, which torchvision's `Resize`
/// calls. Both round in between, so single values may differ by one.
#[test]
fn resizing_is_that_of_pillow() {
    let expected: [([[u8; 3]; 4], i64); 3] = [
        ([[14, 6, 4], [103, 163, 121], [151, 145, 94], [109, 142, 128]], 6_221_903),
        ([[0, 0, 0], [146, 107, 190], [144, 147, 156], [20, 230, 29]], 6_092_948),
        ([[9, 4, 0], [118, 60, 93], [166, 234, 133], [98, 214, 121]], 6_221_341),
    ];
    let data = subset();
    let train = load(data.path()).0.unwrap().train;
    for ((_, _, class), (corners, sum)) in PICTURES.into_iter().zip(expected) {
        let images = train.images();
        let image = images.index_axis(Axis(0), class);
        for ((row, column), rgb) in [(0, 0), (5, 64), (77, 31), (127, 127)].into_iter().zip(corners) {
            let found = [0, 1, 2].map(|channel| image[[channel, row, column]]);
            assert!(found.iter().zip(rgb).all(|(a, b)| a.abs_diff(b) <= 1), "{class}: {found:?}, Pillow {rgb:?}");
        }
        let found: i64 = image.iter().map(|&value| i64::from(value)).sum();
        assert!((found - sum).abs() < 500, "{class}: the pixels add up to {found}, Pillow's to {sum}");
    }
}

#[test]
fn an_accepted_hash_is_in_every_result() {
    let data = subset();
    let record = r#"{"archive": "a.tgz", "sha256": "12ab", "accepted_instead_of": "md5 34cd", "more": 1}"#;
    let path = data.path().join("imagenette2-320/.c2r-download.json");
    fs::write(&path, record).unwrap();
    let notes = load(data.path()).0.unwrap().notes;
    assert!(notes[1].contains("a.tgz was accepted by hand with sha256 12ab instead of md5 34cd"), "{notes:?}");
    fs::write(&path, record.replace("\"md5 34cd\"", "null")).unwrap();
    assert_eq!(load(data.path()).0.unwrap().notes.len(), 1);
    let provenance = || Provenance::of("imagenette", Some(data.path())).to_string();
    assert_eq!(provenance(), "the published archive a.tgz, sha256 12ab");
    fs::remove_file(&path).unwrap();
    assert!(provenance().starts_with("unknown"));
    assert_eq!(Provenance::of("digits", None), Provenance::Embedded);
}
