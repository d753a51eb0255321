//! Valid files, small, for each target: what fuzzing and the property tests change.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Cursor, Write},
    path::Path,
    time::{Duration, SystemTime},
};

use c2r_base::{Epsilon, Norm, Seed, ThreatModel, artifact::TensorFile};
use c2r_data::{Dataset, SCHEMA_VERSION, Split, SyntheticHeader, SyntheticSet};
use c2r_distill::{Distillation, profiles as distill_profiles};
use c2r_eval::{AttackRecord, AttackScore};
use c2r_experiment::{Selection, Subject};
use c2r_models::{Model, ModelInput, checkpoint};
use ndarray::{Array1, Array2, Array4};
use tch::{Device, Kind, Tensor};

type Seeds = Vec<(&'static str, Vec<u8>)>;

pub(crate) const CIFAR10_NAMES: &str = "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n";

/// What `write` leaves at the path that it is given.
fn written(write: impl FnOnce(&Path)) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("file");
    write(&path);
    fs::read(path).expect("it was just written")
}

fn committed(relative: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(relative);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Labels and a grey image of CIFAR.
pub(crate) fn record(labels: &[u8]) -> Vec<u8> {
    [labels, &[128; 3072]].concat()
}

/// A grey image in the Python version of CIFAR-10, as Python 2 pickled it: `{'data': array, 'labels': [label]}`.
pub(crate) fn python_batch(label: u8) -> Vec<u8> {
    let start = b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01K\x01M\0\x0c\
        \x86cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89T\0\x0c\0\0";
    [start, &[128; 3072][..], b"tbU\x06labels](K", &[label], b"eu."].concat()
}

pub(crate) fn digits() -> Vec<u8> {
    committed("data/digits/optdigits.csv").split_inclusive(|&byte| byte == b'\n').take(2).flatten().copied().collect()
}

pub(crate) fn png(width: u32, height: u32) -> Vec<u8> {
    encoded(width, height, image::ImageFormat::Png)
}

fn encoded(width: u32, height: u32, format: image::ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let picture = image::RgbImage::from_fn(width, height, |x, y| image::Rgb(colour(x, y)));
    picture.write_to(&mut bytes, format).expect("memory can be written");
    bytes.into_inner()
}

fn colour(x: u32, y: u32) -> [u8; 3] {
    [(x * 16) as u8, (y * 16) as u8, 7]
}

/// What [`png`] holds, channel by channel.
pub(crate) fn pixels(width: u32, height: u32) -> Vec<u8> {
    let plane = |channel: usize| (0..height).flat_map(move |y| (0..width).map(move |x| colour(x, y)[channel]));
    (0..3).flat_map(plane).collect()
}

/// A subset as small as it can be, and where its decoded images are kept.
pub(crate) const CACHED: &str = "imagenette@8";
pub(crate) const CACHE: &str = ".c2r-cache/imagenette-8x8-imagenet.safetensors";

/// One image a class and one for testing, all changed at the same moment, which the cache remembers.
pub(crate) fn prepare_cache(folder: &Path) {
    let folder = folder.join("imagenet");
    let spec = c2r_data::spec(CACHED).expect("the registry has it");
    let images = spec.wnids.iter().map(|id| folder.join("train").join(id).join("0.JPEG"));
    for path in images.chain([folder.join("val/val_0.JPEG")]) {
        fs::create_dir_all(path.parent().expect("it has a folder")).expect("the temporary folder can be written");
        let mut file = File::create(path).expect("the temporary folder can be written");
        file.write_all(&png(8, 8)).expect("the temporary folder can be written");
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        file.set_modified(then).expect("the temporary folder can be written");
    }
    let solution = format!("ImageId,PredictionString\nval_0,{} 1 2 3 4\n", spec.wnids[0]);
    fs::write(folder.join("LOC_val_solution.csv"), solution).expect("the temporary folder can be written");
}

pub(crate) fn cache() -> Seeds {
    let folder = tempfile::tempdir().expect("a temporary folder");
    prepare_cache(folder.path());
    c2r_data::load(CACHED, Some(folder.path())).expect("a valid dataset");
    vec![("ours", fs::read(folder.path().join(CACHE)).expect("it was just written"))]
}

/// Contents of every archive here.
const FILES: [(&str, &[u8]); 2] = [("top/a/1.txt", b"one"), ("top/2.txt", b"two")];

pub(crate) fn tar() -> Seeds {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, contents) in FILES {
        let mut header = tar::Header::new_ustar();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        tar.append_data(&mut header, name, contents).expect("memory can be written");
    }
    let plain = tar.into_inner().expect("memory can be written");
    vec![("gzipped", gzipped(&plain)), ("plain", plain)]
}

pub(crate) fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(bytes).and_then(|()| gz.finish()).expect("memory can be written")
}

pub(crate) fn zip() -> Seeds {
    let of = |method| {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let then = zip::DateTime::from_date_and_time(2000, 1, 1, 0, 0, 0).expect("a date");
        let options = zip::write::FileOptions::default().compression_method(method).last_modified_time(then);
        for (name, contents) in FILES {
            zip.start_file(name, options).and_then(|()| Ok(zip.write_all(contents)?)).expect("memory can be written");
        }
        zip.finish().expect("memory can be written").into_inner()
    };
    vec![("deflated", of(zip::CompressionMethod::Deflated)), ("stored", of(zip::CompressionMethod::Stored))]
}

/// One profile for each kind of state.
pub(crate) const STATE_PROFILES: [&str; 2] = ["faithful", "mtt"];

/// A distillation of two classes of grey images of 4x4, with everything on that a state can hold.
pub(crate) fn small_run(profile: &str) -> Distillation {
    let mut spec = c2r_data::spec("digits").expect("the registry has it");
    spec.classes.truncate(2);
    (spec.height, spec.width) = (4, 4);
    let split = |n: usize| {
        let images = Array4::from_shape_fn((n, 1, 4, 4), |(n, _, row, column)| (16 * n + 4 * row + column) as u8);
        Split::new(images, (0..n).map(|position| (position % 2) as i64).collect(), 2).expect("lengths fit")
    };
    let data = Dataset { spec, train: split(8), test: split(2), notes: Vec::new() };
    let settings = r#"
        model = "ConvNet-D1-W2-IN"
        dsa = "none"
        ipc = 1
        iterations = 2
        threat.epsilon = "16/255"
        images.formation = 1
        matching.real-per-class = 2
        objective.weight = 5.0
        companions = { warm-start = true, reuse = true }
        aac.remember = "both"
        crl.queue = { per-class = 2, projection = 2 }
        pool = { trajectories = 1, snapshots = 1, min-steps = 1, max-steps = 2, steps-per-iteration = 0, batch-size = 4, dsa = "none" }
        experts = { count = 1, epochs = 1, batch-size = 4, dsa = "none" }
        student = { max-start = 1, span = 1, steps = 1 }
    "#;
    let mut table = distill_profiles::profile(profile).expect("it is one of ours");
    merge(&mut table, settings.parse().expect("valid TOML"));
    let config = table.try_into().expect("a valid configuration");
    Distillation::new(config, &data, Device::Cpu).expect("a valid run")
}

/// Sections that `table` does not have stay out of it.
fn merge(table: &mut toml::Table, changes: toml::Table) {
    for (key, change) in changes {
        match (table.get_mut(&key), change) {
            (Some(toml::Value::Table(section)), toml::Value::Table(changes)) => merge(section, changes),
            (None, toml::Value::Table(_)) => {}
            (_, change) => drop(table.insert(key, change)),
        }
    }
}

/// States before the last step. Their numbers are put in: those of a run differ from processor to processor.
pub(crate) fn distill_states() -> Seeds {
    STATE_PROFILES
        .map(|profile| {
            let mut run = small_run(profile);
            while run.progress().0 + 1 < run.progress().1 {
                run.step().expect("a valid run");
            }
            let mut state = run.state().expect("a valid run");
            for tensor in state.tensors.values_mut().filter(|tensor| tensor.is_floating_point()) {
                let _ = tensor.fill_(0.25);
            }
            (profile, state.to_bytes())
        })
        .into()
}

pub(crate) fn images() -> Seeds {
    let mut grey = Cursor::new(Vec::new());
    image::GrayImage::new(8, 8).write_to(&mut grey, image::ImageFormat::Png).expect("memory can be written");
    vec![("rgb.png", png(8, 8)), ("grey.png", grey.into_inner()), ("rgb.jpg", encoded(8, 8, image::ImageFormat::Jpeg))]
}

/// Ten images of 8x8 or, as mosaics with soft labels, of 2x2.
pub(crate) fn small_set(soft: bool) -> SyntheticSet {
    let (formation, side) = if soft { (2, 2) } else { (1, 8) };
    let n = 10 * formation * formation;
    let pixel = |(image, _, row, column)| ((side * side * image + side * row + column) % 256) as f32 / 255.0;
    SyntheticSet {
        images: Array4::from_shape_fn((10, 1, side, side), pixel),
        labels: Array1::from_iter(0..10),
        soft_labels: soft.then(|| Array2::from_elem((n, 10), 0.1)),
        formation: formation as i64,
        header: SyntheticHeader {
            schema_version: SCHEMA_VERSION,
            dataset: "digits".into(),
            classes: 10,
            images_per_class: 1,
            method: "c2r".into(),
            seed: 7,
            iterations: 3,
            config: serde_json::json!({"ipc": 1}),
            versions: BTreeMap::new(),
            data_sha256: "ab".into(),
            mean: vec![0.3054],
            std: vec![0.3753],
            extra_storage: String::new(),
        },
    }
}

pub(crate) fn synthetic_sets() -> Seeds {
    [("hard", false), ("soft", true)]
        .map(|(name, soft)| (name, written(|path| small_set(soft).save(path).expect("a valid set"))))
        .into()
}

pub(crate) fn set_json() -> Seeds {
    [("hard", false), ("soft", true)]
        .map(|(name, soft)| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let png = folder.path().join("png");
            small_set(soft).save_png(&png, true).expect("a valid set");
            (name, fs::read(png.join("set.json")).expect("it was just written"))
        })
        .into()
}

pub(crate) fn safetensors() -> Seeds {
    let mut file = TensorFile::default();
    file.header.insert("a".into(), "b".into());
    for kind in [Kind::Uint8, Kind::Int, Kind::Int64, Kind::Half, Kind::Float, Kind::Double] {
        file.tensors.insert(format!("{kind:?}"), Tensor::ones([2, 2], (kind, Device::Cpu)));
    }
    vec![("kinds", file.to_bytes()), ("empty", TensorFile::default().to_bytes())]
}

pub(crate) fn attack_inputs() -> Seeds {
    let of = |images: Tensor| {
        let mut file = TensorFile::default();
        file.tensors.insert("images".into(), images);
        file.tensors.insert("labels".into(), Tensor::from_slice(&[3i64, 1]));
        file.to_bytes()
    };
    vec![
        ("floats", of(Tensor::full([2, 1, 2, 2], 0.5, (Kind::Float, Device::Cpu)))),
        ("bytes", of(Tensor::full([2, 1, 2, 2], 5, (Kind::Uint8, Device::Cpu)))),
    ]
}

pub(crate) fn checkpoint() -> Seeds {
    let input = ModelInput { channels: 1, height: 8, width: 8, n_classes: 10, mean: vec![0.3], std: vec![0.4] };
    let spec = "ConvNet-D1-W2-IN".parse().expect("a valid name");
    let model = Model::new(&spec, &input, Seed::new(0), Device::Cpu).expect("a valid network");
    vec![("convnet", written(|path| checkpoint::save(path, &model, BTreeMap::new()).expect("a valid network")))]
}

pub(crate) fn npy() -> Seeds {
    let mut file = committed("crates/c2r-data/tests/files/images.npy");
    // One image is enough.
    let at = file.windows(4).position(|window| window == b"(20,").expect("NumPy wrote this shape");
    file[at..at + 4].copy_from_slice(b"(01,");
    file.truncate(128 + 64 * 2);
    vec![("one", file)]
}

pub(crate) fn npz() -> Seeds {
    vec![
        ("deflated", committed("crates/c2r-data/tests/files/nhwc.npz")),
        ("ours", written(|path| small_set(false).save_npz(path).expect("a valid set"))),
    ]
}

pub(crate) fn torch() -> Seeds {
    vec![("labels", committed("crates/c2r-data/tests/files/labels_best.pt"))]
}

/// The pickles of the files that torch wrote.
pub(crate) fn pickles() -> Seeds {
    ["dc", "odd", "state_dict", "call", "negative", "numpy"]
        .map(|name| {
            let bytes = committed(&format!("crates/c2r-data/tests/files/{name}.pt"));
            let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).expect("torch wrote it");
            let mut pickle = Vec::new();
            let mut entry = zip.by_name(&format!("{name}/data.pkl")).expect("torch wrote it");
            std::io::copy(&mut entry, &mut pickle).expect("torch wrote it");
            (name, pickle)
        })
        .into()
}

pub(crate) fn attack_json() -> Seeds {
    let threat = ThreatModel::untargeted(Norm::Linf, Epsilon::of_255(2.0));
    let record = AttackRecord {
        schema_version: AttackRecord::SCHEMA_VERSION,
        subject: Subject {
            dataset: "digits".into(),
            method: "c2r".into(),
            profile: "plus".into(),
            images_per_class: Some(10),
            distill_seed: Some(1),
            train_seed: 2,
            protocol: "pgd-at".into(),
            selection: Selection::default(),
            model: "ConvNet-D3-W8-IN".into(),
            n_images: 100,
            extra_storage: String::new(),
            data_sha256: String::new(),
            notes: vec![],
        },
        threat,
        n: 8,
        clean_accuracy: 0.5,
        clean_seconds: 1.0,
        attacks: vec![AttackScore {
            attack: "pgd".into(),
            norm: threat.norm,
            epsilon: threat.epsilon,
            robust_accuracy: 0.375,
            survivors: 3,
            n: 8,
            forward: 1,
            backward: 1,
            seconds: 1.0,
            flags: vec![],
            config: serde_json::Value::Null,
            survived: None,
            margins: None,
        }],
        samples: None,
        attack_seed: 0,
        model_sha256: None,
        test_sha256: String::new(),
        subset: None,
        held_out: true,
        flag_notes: vec![],
        notes: vec![],
        versions: BTreeMap::new(),
        precision: BTreeMap::new(),
        argv: vec![],
        evaluation: None,
    };
    vec![("one", written(|path| record.write(path).expect("a valid record")))]
}

pub(crate) fn run_json() -> Seeds {
    vec![("distill", br#"{"stage": "distill", "status": "running", "config": {"ipc": 1, "seed": 0}}"#.into())]
}

pub(crate) fn profiles() -> Seeds {
    vec![("faithful", committed("data/profiles/faithful.toml")), ("plus", committed("data/profiles/plus.toml"))]
}

pub(crate) fn experiment() -> Seeds {
    vec![("table2", committed("data/paper/table2.toml"))]
}
