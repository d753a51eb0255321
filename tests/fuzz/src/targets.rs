use std::{
    fs,
    io::{self, Cursor, Write},
    path::{Component, Path},
};

use c2r_archive::{ArchiveFormat, Entry, Limits};
use c2r_base::{
    LabelledImages,
    artifact::{self, TensorFile},
};
use c2r_data::{DatasetSpec, ImportOptions, PixelValues, SyntheticSet};
use c2r_distill::{DistillConfig, DistillError};
use c2r_eval::{AttackRecord, Experiment};
use c2r_models::checkpoint;
use tch::Device;
use zip::{CompressionMethod, ZipWriter, write::FileOptions};

use crate::{
    seeds,
    target::{Target, check},
};

/// Every reader.
pub static TARGETS: &[Target] = &[
    Target { name: "cifar10", prepare: prepare_cifar10, run: cifar10, seeds: || vec![("one", seeds::record(&[3]))] },
    Target {
        name: "cifar10-names",
        prepare: prepare_cifar10,
        run: cifar10_names,
        seeds: || vec![("names", seeds::CIFAR10_NAMES.into())],
    },
    Target {
        name: "cifar10-python",
        prepare: prepare_cifar10_python,
        run: cifar10_python,
        seeds: || vec![("one", seeds::python_batch(3))],
    },
    Target {
        name: "cifar100",
        prepare: prepare_cifar100,
        run: cifar100,
        seeds: || vec![("one", seeds::record(&[19, 99]))],
    },
    Target { name: "digits", prepare: |_| {}, run: digits, seeds: || vec![("two", seeds::digits())] },
    Target { name: "image", prepare: prepare_image, run: image, seeds: seeds::images },
    Target {
        name: "wnids",
        prepare: prepare_tiny_imagenet,
        run: wnids,
        seeds: || vec![("two", b"n01443537\nn01629819\n".into())],
    },
    Target {
        name: "val-annotations",
        prepare: prepare_tiny_imagenet,
        run: val_annotations,
        seeds: || vec![("one", b"val_0.JPEG\tn01443537\t0\t32\t44\t62\n".into())],
    },
    Target {
        name: "val-solution",
        prepare: prepare_imagenet,
        run: val_solution,
        seeds: || vec![("one", b"ImageId,PredictionString\nval_0,n01440764 1 2 3 4\nval_1,n9 1 2 3 4\n".into())],
    },
    Target { name: "cache", prepare: seeds::prepare_cache, run: cache, seeds: seeds::cache },
    Target { name: "tar", prepare: |_| {}, run: tar, seeds: seeds::tar },
    Target { name: "zip", prepare: |_| {}, run: zip, seeds: seeds::zip },
    Target { name: "safetensors", prepare: |_| {}, run: safetensors, seeds: seeds::safetensors },
    Target { name: "synthetic-set", prepare: |_| {}, run: synthetic_set, seeds: seeds::synthetic_sets },
    Target { name: "set-json", prepare: prepare_png_set, run: set_json, seeds: seeds::set_json },
    Target { name: "attack-inputs", prepare: |_| {}, run: attack_inputs, seeds: seeds::attack_inputs },
    Target { name: "checkpoint", prepare: |_| {}, run: model, seeds: seeds::checkpoint },
    Target { name: "distill-state", prepare: |_| {}, run: distill_state, seeds: seeds::distill_states },
    Target { name: "npy", prepare: |_| {}, run: npy, seeds: seeds::npy },
    Target { name: "npz", prepare: |_| {}, run: npz, seeds: seeds::npz },
    Target { name: "torch", prepare: |_| {}, run: torch, seeds: seeds::torch },
    Target { name: "pickle", prepare: |_| {}, run: pickle, seeds: seeds::pickles },
    Target { name: "attack-json", prepare: |_| {}, run: attack_json, seeds: seeds::attack_json },
    Target { name: "run-json", prepare: |_| {}, run: run_json, seeds: seeds::run_json },
    Target { name: "profile", prepare: |_| {}, run: profile, seeds: seeds::profiles },
    Target { name: "experiment", prepare: |_| {}, run: experiment, seeds: seeds::experiment },
];

impl Target {
    /// The target called `name`.
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }
}

fn write(path: &Path, bytes: &[u8]) {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).expect("the temporary folder can be written");
    }
    fs::write(path, bytes).expect("the temporary folder can be written");
}

fn prepare_cifar10(folder: &Path) {
    let folder = folder.join("cifar-10-batches-bin");
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
        write(&folder.join(format!("{name}.bin")), &seeds::record(&[1]));
    }
}

fn cifar10(folder: &Path, bytes: &[u8]) {
    write(&folder.join("cifar-10-batches-bin/data_batch_3.bin"), bytes);
    if let Some(data) = check(c2r_data::load("cifar10", Some(folder)), "data_batch_3.bin") {
        assert_eq!(data.train.len() * 3073, bytes.len() + 4 * 3073);
    }
}

fn cifar10_names(folder: &Path, bytes: &[u8]) {
    write(&folder.join("cifar-10-batches-bin/batches.meta.txt"), bytes);
    check(c2r_data::load("cifar10", Some(folder)), "batches.meta.txt");
}

fn prepare_cifar10_python(folder: &Path) {
    let folder = folder.join("cifar-10-batches-py");
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
        write(&folder.join(name), &seeds::python_batch(1));
    }
}

/// As images, and as the names of the classes.
fn cifar10_python(folder: &Path, bytes: &[u8]) {
    let [batch, names] = ["data_batch_3", "batches.meta"].map(|name| folder.join("cifar-10-batches-py").join(name));
    write(&batch, bytes);
    if let Some(data) = check(c2r_data::load("cifar10", Some(folder)), "data_batch_3") {
        assert!(data.train.len() > 4 && data.train.len() * 3072 < bytes.len() + 4 * 3072);
    }
    write(&batch, &seeds::python_batch(1));
    write(&names, bytes);
    check(c2r_data::load("cifar10", Some(folder)), "batches.meta");
    fs::remove_file(&names).expect("it was just written");
}

fn prepare_cifar100(folder: &Path) {
    write(&folder.join("cifar-100-binary/test.bin"), &seeds::record(&[0, 0]));
}

fn cifar100(folder: &Path, bytes: &[u8]) {
    write(&folder.join("cifar-100-binary/train.bin"), bytes);
    check(c2r_data::load("cifar100", Some(folder)), "train.bin");
}

fn digits(_: &Path, bytes: &[u8]) {
    if let Some((pixels, labels)) = check(c2r_data::parse_digits(&String::from_utf8_lossy(bytes)), "optdigits.csv") {
        assert_eq!(pixels.len(), labels.len() * 64);
        assert!(labels.iter().all(|label| (0..10).contains(label)));
    }
}

fn prepare_image(folder: &Path) {
    write(&folder.join("test/a/1.png"), &seeds::png(8, 8));
    fs::create_dir_all(folder.join("train/a")).expect("the temporary folder can be written");
}

/// As the first of a folder that is read as it is, and resized.
fn image(folder: &Path, bytes: &[u8]) {
    write(&folder.join("train/a/1.png"), bytes);
    check(c2r_data::load_folder(folder, Some((8, 8))), "1.png");
    check(c2r_data::load_folder(folder, None), "1.png");
}

fn prepare_tiny_imagenet(folder: &Path) {
    let folder = folder.join("tiny-imagenet-200");
    write(&folder.join("wnids.txt"), b"n01443537\n");
    write(&folder.join("train/n01443537/images/n01443537_0.JPEG"), &seeds::png(64, 64));
    write(&folder.join("val/images/val_0.JPEG"), &seeds::png(64, 64));
    write(&folder.join("val/val_annotations.txt"), b"val_0.JPEG\tn01443537\t0\t0\t62\t62\n");
}

fn wnids(folder: &Path, bytes: &[u8]) {
    write(&folder.join("tiny-imagenet-200/wnids.txt"), bytes);
    check(c2r_data::load("tiny-imagenet", Some(folder)), "tiny-imagenet-200");
}

fn val_annotations(folder: &Path, bytes: &[u8]) {
    write(&folder.join("tiny-imagenet-200/val/val_annotations.txt"), bytes);
    check(c2r_data::load("tiny-imagenet", Some(folder)), "val");
}

fn prepare_imagenet(folder: &Path) {
    for id in &spec("imagenette").wnids {
        write(&folder.join("imagenet/train").join(id).join("0.JPEG"), &seeds::png(8, 8));
    }
    write(&folder.join("imagenet/val/val_0.JPEG"), &seeds::png(8, 8));
}

fn val_solution(folder: &Path, bytes: &[u8]) {
    write(&folder.join("imagenet/LOC_val_solution.csv"), bytes);
    check(c2r_data::load("imagenette", Some(folder)), "imagenet");
}

/// Whatever lies where decoded images are kept: what is read are the images, unless the file itself carries the SHA-256 of
/// what was read. Damage is detected; forgery is not, which no hash beside the data can do.
fn cache(folder: &Path, bytes: &[u8]) {
    let path = folder.join(seeds::CACHE);
    // The one that is made anew may only be read.
    let _ = fs::remove_file(&path);
    write(&path, bytes);
    let data = c2r_data::load(seeds::CACHED, Some(folder)).expect("images that can be decoded are there");
    let expected = seeds::pixels(8, 8);
    for (name, split, labels) in [("train", &data.train, (0..10).collect()), ("test", &data.test, vec![0])] {
        let are_the_images = split.images().outer_iter().all(|image| image.iter().eq(&expected));
        // A copy, whose hash is computed and not remembered.
        let copy = split.select(&(0..split.len()).collect::<Vec<_>>());
        let is_forged = || cache_texts(bytes)[format!("{name}.sha256")] == copy.sha256();
        assert!((are_the_images && split.labels().to_vec() == labels) || is_forged(), "{name} is not what was decoded");
    }
}

/// The texts in the header of a safetensors file, if it has any.
fn cache_texts(bytes: &[u8]) -> serde_json::Value {
    let header = bytes.split_first_chunk().and_then(|(length, rest)| {
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        serde_json::from_slice::<serde_json::Value>(rest.get(..length)?).ok()
    });
    header.map_or(serde_json::Value::Null, |mut header| header["__metadata__"].take())
}

/// Every entry stays in its folder, all of them together within the limits, and no error has control characters.
fn archive(format: ArchiveFormat, bytes: &[u8]) {
    let limits = Limits { entries: 32, bytes: 1 << 20, ratio: 20 };
    let (mut n, mut unpacked) = (0, 0);
    let result = c2r_archive::walk(format, Cursor::new(bytes), "top", &limits, &mut |entry| {
        n += 1;
        let (Entry::Folder(path) | Entry::File(path, _)) = &entry;
        assert!(path.components().all(|part| matches!(part, Component::Normal(_))), "{}", path.display());
        assert!(path.as_os_str().is_empty() || path.starts_with("top"), "{}", path.display());
        if let Entry::File(_, contents) = entry {
            // What stands for a reader that ends here is no error of the walk.
            unpacked += io::copy(contents, &mut io::sink()).unwrap_or_default();
        }
        Ok(())
    });
    assert!(n <= limits.entries && unpacked <= limits.bytes, "{n} entries, {unpacked} bytes");
    if let Err(error) = result {
        let text = error.to_string();
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}

/// As a tar.gz, and as the tar in one, whose checksum would stop most changes.
fn tar(_: &Path, bytes: &[u8]) {
    archive(ArchiveFormat::TarGz, bytes);
    archive(ArchiveFormat::TarGz, &seeds::gzipped(bytes));
}

fn zip(_: &Path, bytes: &[u8]) {
    archive(ArchiveFormat::Zip, bytes);
}

fn safetensors(folder: &Path, bytes: &[u8]) {
    let path = folder.join("file.safetensors");
    write(&path, bytes);
    if let Some(file) = check(TensorFile::read(&path), "file.safetensors") {
        // What is read can be written and read again.
        let again = folder.join("again.safetensors");
        file.write(&again).expect("the temporary folder can be written");
        let back = TensorFile::read(&again).expect("it was just written");
        assert_eq!((back.header, back.tensors.len()), (file.header, file.tensors.len()));
    }
}

fn synthetic_set(folder: &Path, bytes: &[u8]) {
    let path = folder.join("set.safetensors");
    write(&path, bytes);
    if let Some(set) = check(SyntheticSet::load(&path), "set.safetensors") {
        let (images, labels) = set.decode(Device::Cpu);
        assert_eq!(images.size()[0], labels.size()[0]);
        set.save_npz(&folder.join("set.npz")).expect("a set that was read can be written");
        let back = SyntheticSet::load(&folder.join("set.npz")).expect("it was just written");
        assert_eq!(back.header, set.header);
        assert_eq!(back.images, set.images);
    }
}

fn prepare_png_set(folder: &Path) {
    fs::create_dir_all(folder.join("set")).expect("the temporary folder can be written");
    seeds::small_set(false).save_png(&folder.join("set/png"), true).expect("the temporary folder can be written");
}

fn set_json(folder: &Path, bytes: &[u8]) {
    write(&folder.join("set/png/set.json"), bytes);
    check(SyntheticSet::load(&folder.join("set/png")), "png");
}

/// What `c2r attack --inputs` does.
fn attack_inputs(folder: &Path, bytes: &[u8]) {
    let path = folder.join("inputs.safetensors");
    write(&path, bytes);
    let Some(mut file) = check(TensorFile::read(&path), "inputs.safetensors") else { return };
    if let (Some(images), Some(labels)) = (file.tensors.remove("images"), file.tensors.remove("labels"))
        && let Ok(images) = LabelledImages::new(images, labels)
    {
        let _ = images.check_classes(10);
        assert!(images.images().min().double_value(&[]) >= 0.0);
    }
}

fn model(folder: &Path, bytes: &[u8]) {
    let path = folder.join("model.safetensors");
    write(&path, bytes);
    check(checkpoint::load(&path, Device::Cpu), "model.safetensors");
}

/// What `c2r distill` does to go on: what is taken is all there was, and a step from there does not panic.
fn distill_state(folder: &Path, bytes: &[u8]) {
    let path = folder.join("state.safetensors");
    write(&path, bytes);
    let Some(file) = check(TensorFile::read(&path), "state.safetensors") else { return };
    for profile in seeds::STATE_PROFILES {
        let mut run = seeds::small_run(profile);
        match run.restore(&file) {
            Ok(()) => {
                assert_eq!(run.state().expect("it was just read").tensors.len(), file.tensors.len());
                let _ = run.step();
            }
            Err(error) => assert!(matches!(error, DistillError::State(_)), "{error}"),
        }
    }
}

fn spec(name: &str) -> DatasetSpec {
    c2r_data::spec(name).expect("the registry has it")
}

/// Reads and imports.
fn tensors(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    write(&path, bytes);
    let Some(file) = check(c2r_data::read_tensors(&path), name) else { return };
    let options = ImportOptions {
        images: None,
        labels: None,
        grouped: true,
        logits: true,
        values: PixelValues::normalized("digits").expect("a dataset's name"),
        nhwc: false,
        bgr: false,
        clamp: true,
        formation: 1,
        method: "fuzz".to_owned(),
        seed: 0,
    };
    for options in [ImportOptions { values: PixelValues::Unit, ..options.clone() }, options] {
        if let Ok((set, _)) = c2r_data::import(&file, None, &spec("digits"), &options, serde_json::Value::Null) {
            set.check().expect("an imported set is valid");
        }
    }
}

fn npy(folder: &Path, bytes: &[u8]) {
    tensors(folder, "array.npy", bytes);
}

fn npz(folder: &Path, bytes: &[u8]) {
    tensors(folder, "arrays.npz", bytes);
}

fn torch(folder: &Path, bytes: &[u8]) {
    tensors(folder, "tensors.pt", bytes);
}

/// The pickle inside a `.pt`, whose checksum would stop most changes of the whole file.
fn pickle(folder: &Path, bytes: &[u8]) {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = FileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, data) in [("a/data.pkl", bytes), ("a/data/0", &[0x3e; 5120]), ("a/data/1", &[0; 160])] {
        zip.start_file(name, stored).and_then(|()| Ok(zip.write_all(data)?)).expect("a zip in memory");
    }
    tensors(folder, "pickle.pt", zip.finish().expect("a zip in memory").get_ref());
}

fn attack_json(folder: &Path, bytes: &[u8]) {
    let path = folder.join("attack.json");
    write(&path, bytes);
    if let Some(record) = check(AttackRecord::read(&path), "attack.json") {
        record.write(&folder.join("again.json")).expect("a record that was read can be written");
        assert_eq!(AttackRecord::read(&folder.join("again.json")).expect("it was just written"), record);
    }
}

fn run_json(folder: &Path, bytes: &[u8]) {
    let path = folder.join("run.json");
    write(&path, bytes);
    check(artifact::read_json::<serde_json::Value>(&path), "run.json");
}

/// A profile, completed by what the dataset says, as `c2r distill` does.
fn profile(_: &Path, bytes: &[u8]) {
    let Ok(mut table) = String::from_utf8_lossy(bytes).parse::<toml::Table>() else { return };
    let spec = spec("digits");
    let own = [
        ("model", spec.model.clone().into()),
        ("dsa", "none".into()),
        ("threat.epsilon", spec.epsilon.to_string().into()),
    ];
    for (key, value) in own.into_iter().chain(spec.distill.iter().map(|(key, value)| (key.as_str(), value.clone()))) {
        let (section, key) = key.split_once('.').unwrap_or(("", key));
        let place = if section.is_empty() {
            Some(&mut table)
        } else {
            table.entry(section).or_insert_with(|| toml::Table::new().into()).as_table_mut()
        };
        if let Some(place) = place {
            place.entry(key).or_insert(value);
        }
    }
    if let Ok(config) = table.try_into::<DistillConfig>() {
        let _ = config.validate();
        // As texts: not a number is not equal to itself.
        let write = |config: &DistillConfig| toml::to_string(config).expect("a config can be written");
        let back = toml::from_str(&write(&config)).expect("it was just written");
        assert_eq!(write(&back), write(&config));
    }
}

fn experiment(folder: &Path, bytes: &[u8]) {
    let path = folder.join("table.toml");
    write(&path, bytes);
    check(Experiment::read(&path), "table.toml");
}
