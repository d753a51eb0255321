//! Distillation on the embedded digits, with networks small enough to run in seconds.

mod backbone;
mod keys;
#[cfg(target_os = "linux")]
mod memory;
mod methods;
mod own;
mod switches;
mod updates;

use std::collections::{BTreeMap, BTreeSet};

use c2r_base::artifact::TensorFile;
use c2r_data::{Dataset, arrays::to_tensor};
use c2r_distill::{ConfigError, DistillConfig, DistillError, DistillEvent, Distillation, METHODS, StepReport};
use ndarray::Axis;
use tch::{Device, Kind, Tensor};

/// Settings that cut a distillation of the digits down to a second or so; those of sections that a method
/// does not read are dropped.
const SMALL: &str = r#"
model = "ConvNet-D2-W8-IN"
ipc = 2
iterations = 4
train-per-class = 40
[threat]
epsilon = "16/255"
[images]
formation = 1
[pool]
trajectories = 2
snapshots = 2
min-steps = 2
max-steps = 5
batch-size = 32
dsa = "color_crop_cutout_flip_scale_rotate"
[matching]
real-per-class = 6
[crl.queue]
per-class = 8
[gradients]
outer = 2
inner = 2
batch-size = 8
[experts]
count = 2
epochs = 3
batch-size = 64
dsa = "color_crop_cutout_flip_scale_rotate"
[student]
max-start = 2
span = 1
steps = 3
[teacher]
steps = 3
"#;

/// A profile with [`SMALL`] and then `changes`, by dotted key.
fn profile(name: &str, changes: &[(&str, toml::Value)]) -> DistillConfig {
    profile_table(name, changes).try_into().unwrap()
}

fn profile_table(name: &str, changes: &[(&str, toml::Value)]) -> toml::Table {
    let mut table = c2r_distill::profiles::profile(name).unwrap();
    if let Some(objective) = table.get_mut("objective").and_then(toml::Value::as_table_mut) {
        objective.entry("weight").or_insert(5.0.into());
    }
    let small: toml::Table = SMALL.parse().unwrap();
    let mut settings = Vec::new();
    flatten("", &small, &mut settings);
    let own: Vec<String> = table.keys().cloned().collect();
    settings.retain(|(key, _)| key.split_once('.').is_none_or(|(head, _)| own.iter().any(|own| own == head)));
    settings.extend(changes.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    if !table.contains_key("dsa") {
        table.insert("dsa".into(), "color_crop_cutout_flip_scale_rotate".into());
    }
    for (key, value) in settings {
        let mut at = &mut table;
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().unwrap();
        for part in parts {
            at = at.entry(part).or_insert_with(|| toml::Table::new().into()).as_table_mut().unwrap();
        }
        at.insert(last.to_owned(), value);
    }
    for section in unread(&table) {
        table.remove(section);
    }
    table
}

/// Sections of [`SMALL`] and of changes that the method of `table` does not read.
fn unread(table: &toml::Table) -> Vec<&'static str> {
    let entry = METHODS.iter().find(|entry| Some(entry.name) == table["method"].as_str()).unwrap();
    let taught = table.contains_key("teacher");
    let read =
        |section: &str| entry.sections.contains(&section) || (taught && ["pool", "companions"].contains(&section));
    METHODS.iter().flat_map(|entry| entry.sections).copied().filter(|section| !read(section)).collect()
}

fn flatten(prefix: &str, table: &toml::Table, into: &mut Vec<(String, toml::Value)>) {
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => flatten(&format!("{prefix}{key}."), inner, into),
            value => into.push((format!("{prefix}{key}"), value.clone())),
        }
    }
}

/// The faithful profile cut down to a few seconds.
fn config(changes: &[(&str, toml::Value)]) -> DistillConfig {
    profile("faithful", changes)
}

fn table(text: &str) -> toml::Value {
    toml::Value::Table(text.parse().unwrap())
}

fn digits() -> Dataset {
    c2r_data::load("digits", None).unwrap()
}

fn start(config: &DistillConfig) -> Distillation {
    // Networks this small are slower on several threads, above all where tests run side by side.
    tch::set_num_threads(1);
    Distillation::new(config.clone(), &digits(), Device::Cpu).unwrap()
}

/// Runs to the end; returns the reports of the image updates.
fn finish(distillation: &mut Distillation) -> Vec<StepReport> {
    let mut reports = Vec::new();
    while let Some(event) = distillation.step().unwrap() {
        if let DistillEvent::Images { .. } = event {
            reports.extend(distillation.report().unwrap());
        }
    }
    reports
}

fn bytes(distillation: &Distillation) -> Vec<u8> {
    let set = distillation.synthetic_set(BTreeMap::new()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.safetensors");
    set.save(&path).unwrap();
    std::fs::read(path).unwrap()
}

fn images(distillation: &Distillation) -> Tensor {
    to_tensor(distillation.synthetic_set(BTreeMap::new()).unwrap().images.view())
}

#[test]
fn the_same_configuration_gives_the_same_bytes_and_another_seed_does_not() {
    let run = |seed: i64| {
        let mut distillation = start(&config(&[("seed", seed.into())]));
        finish(&mut distillation);
        bytes(&distillation)
    };
    let first = run(7);
    assert_eq!(first, run(7));
    assert_ne!(first, run(8));
}

/// Every part that has a state is on: queue, cache, growing and replaced networks, sub-batches in order.
fn everything() -> DistillConfig {
    config(&[
        ("iterations", 6.into()),
        ("images.batch-per-class", 1.into()),
        ("pool.steps-per-iteration", 3.into()),
        ("companions.warm-start", true.into()),
        ("companions.reuse", true.into()),
        ("aac.remember", "both".into()),
        ("aac.synthetic", table("mode = \"order\"\nfirst = \"hard\"\nclass-balanced = true")),
        ("aac.pool", table("mode = \"prefix\"\nfirst = \"easy\"\nfraction = 0.5")),
        ("labels", "soft".into()),
        ("teacher", table("count = 2\nsteps = 3\ntemperature = 2.0")),
    ])
}

#[test]
fn a_run_that_is_stopped_anywhere_ends_with_the_same_bytes() {
    for config in [everything(), backbone::freedom()] {
        stops_anywhere(&config);
    }
}

fn stops_anywhere(config: &DistillConfig) {
    let mut whole = start(config);
    finish(&mut whole);
    let expected = bytes(&whole);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let (_, total) = whole.progress();
    let mut distillation = start(config);
    for stop in 0..total {
        // Stop before every single step: save, drop, load, go on.
        distillation.state().unwrap().write(&path).unwrap();
        distillation = start(config);
        distillation.restore(&TensorFile::read(&path).unwrap()).unwrap();
        assert_eq!(distillation.progress().0, stop);
        distillation.step().unwrap();
    }
    assert!(distillation.is_finished());
    assert_eq!(bytes(&distillation), expected);
    assert_eq!(distillation.passes(), whole.passes());
}

#[test]
fn runs_with_the_same_networks_share_them_and_change_nothing() {
    let teacher = [("labels", "soft".into()), ("teacher", table("steps = 3\ntemperature = 2.0"))];
    let mut first = start(&config(&teacher));
    assert!(first.networks().unwrap().is_none(), "they are not trained yet");
    let networks = loop {
        first.step().unwrap();
        if let Some(networks) = first.networks().unwrap() {
            break networks;
        }
    };
    assert_eq!(first.iteration(), 0);

    // Another number of images, another objective, another curriculum: the same networks.
    let other = |changes: &[(&str, toml::Value)]| config(&[&teacher[..], changes].concat());
    let other_images =
        other(&[("ipc", 3.into()), ("objective.eta", 0.9.into()), ("aac.synthetic", table("mode = \"off\""))]);
    let mut whole = start(&other_images);
    finish(&mut whole);
    let mut shared = start(&other_images);
    shared.take_networks(&networks).unwrap();
    finish(&mut shared);
    assert_eq!(bytes(&shared), bytes(&whole));
    assert_eq!(shared.passes(), whole.passes());

    for changes in [
        ("seed", 9.into()),
        ("pool.lr", 0.02.into()),
        ("pool.max-steps", 6.into()),
        ("threat.epsilon", "8/255".into()),
        ("companions.rel-step-size", 0.25.into()),
        ("model", "ConvNet-D2-W4-IN".into()),
        ("train-per-class", 30.into()),
        ("teacher.steps", 4.into()),
        ("teacher.lr-schedule", "cosine".into()),
        ("aac.pool", table("mode = \"weight\"\nfloor = 0.1")),
    ] {
        let mut different = start(&other(std::slice::from_ref(&changes)));
        assert_ne!(different.networks_id(), first.networks_id(), "{changes:?}");
        let refused = different.take_networks(&networks).unwrap_err().to_string();
        assert!(refused.contains("other settings"), "{refused}");
    }
    let remembers = other(&[("companions.warm-start", true.into()), ("aac.remember", "real".into())]);
    assert_eq!(start(&remembers).networks_id(), None);

    let mut broken = networks;
    broken.tensors.remove("pool.0001.age");
    let refused = start(&other_images).take_networks(&broken).unwrap_err().to_string();
    assert!(refused.contains("pool"), "{refused}");
}

#[test]
fn a_state_of_another_configuration_is_refused() {
    let mut small = start(&config(&[]));
    small.step().unwrap();
    let mut old = small.state().unwrap();
    old.header.insert("schema_version".into(), "1".into());
    let message = start(&config(&[])).restore(&old).unwrap_err().to_string();
    assert!(message.contains("this version reads `2`"), "{message}");
    let mut other = start(&config(&[("ipc", 3.into())]));
    let message = other.restore(&small.state().unwrap()).unwrap_err().to_string();
    assert!(message.contains("[20, 1, 8, 8]") && message.contains("[30, 1, 8, 8]"), "{message}");
    let mut state = small.state().unwrap();
    state.tensors.remove("plan");
    let message = start(&config(&[])).restore(&state).unwrap_err().to_string();
    assert!(message.contains("`plan`"), "{message}");
}

#[test]
fn the_loss_is_what_the_method_says() {
    let mut distillation = start(&config(&[]));
    let before = images(&distillation);
    for report in finish(&mut distillation) {
        let [matching, performance, robust] =
            [report.matching, report.performance, report.robust].map(|part| part.unwrap());
        let expected = 10.0 * matching + 5.0 * (0.6 * performance + 0.4 * robust);
        assert!((report.loss - expected).abs() < 1e-4 * expected.abs(), "{report:?}");
        assert!(matching > 0.0 && performance > 0.0 && robust > 0.0);
    }
    let after = images(&distillation);
    assert!((&after - &before).abs().max().double_value(&[]) > 1e-3, "the images moved");
    assert!(after.min().double_value(&[]) >= 0.0 && after.max().double_value(&[]) <= 1.0);
    assert_eq!(after.kind(), Kind::Float);
}

#[test]
fn distillation_lowers_its_loss() {
    // Networks that have learned something and stay as they are, so that losses compare; a low temperature, because the
    // contrastive loss cannot fall far at a high one.
    let changes = [
        ("iterations", 60.into()),
        ("crl.temperature", 0.1.into()),
        ("images.lr", 0.05.into()),
        ("images.init", "noise".into()),
        ("pool.min-steps", 60.into()),
        ("pool.max-steps", 120.into()),
        ("pool.lr", 0.05.into()),
        ("pool.steps-per-iteration", 0.into()),
    ];
    let mut distillation = start(&config(&changes));
    let reports = finish(&mut distillation);
    let mean = |part: &[StepReport]| part.iter().map(|report| report.loss).sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&reports[..15]), mean(&reports[45..]));
    assert!(last < 0.8 * first, "from {first} to {last}");
}

/// The queue is empty at the first visit of a network, so its effect needs a second one.
#[test]
fn the_queue_has_an_effect_once_it_is_filled() {
    let run = |queue: bool| {
        let mut changes = vec![("iterations", 6.into()), ("pool.trajectories", 1.into()), ("pool.snapshots", 1.into())];
        if !queue {
            changes.push(("crl", table("temperature = 0.5")));
        }
        let mut distillation = start(&config(&changes));
        finish(&mut distillation);
        images(&distillation)
    };
    assert!((run(true) - run(false)).abs().max().double_value(&[]) > 1e-5);
}

#[test]
fn random_real_images_are_training_images_of_their_class() {
    let mut distillation = start(&profile("random-real", &[]));
    finish(&mut distillation);
    let set = distillation.synthetic_set(BTreeMap::new()).unwrap();
    assert_eq!(set.header.method, "random-real");
    let train = digits().train;
    for row in 0..20 {
        let class = set.labels[row];
        assert_eq!(class, row as i64 / 2);
        let (real, _) = train.batch(train.class_positions(class as usize), Device::Cpu);
        let nearest =
            (real - to_tensor(set.images.index_axis(Axis(0), row))).abs().amax([1i64, 2, 3].as_slice(), false).min();
        assert!(nearest.double_value(&[]) < 1e-6, "image {row} is no training image");
    }
}

#[test]
fn soft_labels_are_the_teachers_and_are_declared() {
    let changes = [("labels", "soft".into()), ("teacher", table("steps = 4\ntemperature = 1.0"))];
    let mut distillation = start(&config(&changes));
    finish(&mut distillation);
    let set = distillation.synthetic_set(BTreeMap::new()).unwrap();
    let soft = to_tensor(set.soft_labels.unwrap().view());
    assert_eq!(soft.size(), [20, 10]);
    let images = to_tensor(set.images.view());
    let expected = distillation.teachers().next().unwrap().logits(&images).softmax(1, Kind::Float);
    assert!((soft - expected).abs().max().double_value(&[]) < 1e-6);
    assert_eq!(set.header.extra_storage, "soft labels, 200 floats");

    // Several teachers: the first is the same as alone, the labels are the mean of their probabilities.
    let pool = ("teacher", table("count = 3\nsteps = 4\ntemperature = 1.0"));
    let mut several = start(&config(&[("labels", "soft".into()), pool]));
    assert_eq!(several.progress().1, distillation.progress().1 + 8);
    finish(&mut several);
    let set = several.synthetic_set(BTreeMap::new()).unwrap();
    let images = to_tensor(set.images.view());
    let labels: Vec<Tensor> =
        several.teachers().map(|teacher| teacher.logits(&images).softmax(1, Kind::Float)).collect();
    assert_eq!(labels.len(), 3);
    let alone = distillation.teachers().next().unwrap().logits(&images).softmax(1, Kind::Float);
    assert!((&labels[0] - alone).abs().max().double_value(&[]) < 1e-6);
    assert!((&labels[0] - &labels[1]).abs().max().double_value(&[]) > 1e-3);
    let mean = (&labels[0] + &labels[1] + &labels[2]) / 3.0;
    assert!((to_tensor(set.soft_labels.unwrap().view()) - mean).abs().max().double_value(&[]) < 1e-6);
    assert_eq!(set.header.extra_storage, "soft labels, 200 floats");
}

/// A rate of a tenth from the middle on: the first half is that of a constant rate, and the second moves less.
#[test]
fn a_teachers_learning_rate_follows_its_schedule() {
    let taught = |steps: i64, schedule: &str| {
        let teacher = format!("steps = {steps}\ntemperature = 1.0\nlr-schedule = \"{schedule}\"");
        let mut distillation = start(&config(&[("labels", "soft".into()), ("teacher", table(&teacher))]));
        finish(&mut distillation);
        let parameters = distillation.teachers().next().unwrap().parameters();
        Tensor::cat(&parameters.iter().map(|(_, tensor)| tensor.detach().flatten(0, -1)).collect::<Vec<_>>(), 0)
    };
    let half = taught(4, "constant");
    let moved = |from: &Tensor, to: Tensor| (to - from).norm().double_value(&[]);
    let (constant, half_way) = (moved(&half, taught(8, "constant")), moved(&half, taught(8, "half-way")));
    // Momentum carries on; four steps of a tenth cannot come as far as four whole ones.
    assert!(half_way < 0.3 * constant, "{half_way} against {constant}");
    assert!(half_way > 0.0);
}

#[test]
fn mosaics_hold_four_images() {
    let mut distillation = start(&config(&[("images.formation", 2.into())]));
    finish(&mut distillation);
    let set = distillation.synthetic_set(BTreeMap::new()).unwrap();
    assert_eq!((set.images.dim(), set.formation), ((20, 1, 8, 8), 2));
    assert_eq!(set.decode(Device::Cpu).0.size(), [80, 1, 8, 8]);
}

#[test]
fn too_little_data_and_wrong_options_are_errors_that_name_them() {
    let error = Distillation::new(config(&[("ipc", 41.into())]), &digits(), Device::Cpu).unwrap_err();
    assert!(matches!(error, DistillError::TooFewImages { class: 0, got: 40, needed: 41, .. }), "{error}");
    let message = |key: &str, value: toml::Value| config(&[(key, value)]).validate().unwrap_err().to_string();
    assert!(message("objective.eta", 1.5.into()).contains("objective.eta must be in [0, 1], got 1.5"));
    assert!(message("images.formation", 3.into()).contains("images.formation must be 1 or 2, got 3"));
    for key in [
        "ipc",
        "iterations",
        "images.batch-per-class",
        "pool.trajectories",
        "pool.snapshots",
        "pool.max-steps",
        "pool.steps-per-iteration",
        "pool.networks-per-iteration",
        "pool.push-every",
        "pool.batch-size",
        "matching.real-per-class",
    ] {
        assert_eq!(message(key, i64::MAX.into()), format!("{key} must be at most 2147483647, got {}", i64::MAX));
    }
    let steps = message("pool.min-steps", 6.into());
    assert!(
        steps.contains("at most pool.max-steps, got 6 and 5; a key that you do not set has its default"),
        "{steps}"
    );
    assert!(message("labels", "soft".into()).contains("[teacher]"));
    let taught = |labels: &str, count: i64| {
        let teacher = table(&format!("count = {count}\nsteps = 4\ntemperature = 1.0"));
        config(&[("labels", labels.into()), ("teacher", teacher)]).validate().map_err(|error| error.to_string())
    };
    assert_eq!(taught("soft", 2), Ok(()));
    assert!(taught("soft", 0).unwrap_err().contains("teacher.count must be at least 1, got 0"));
    assert!(taught("teacher", 2).unwrap_err().contains("teacher.count must be 1 unless labels = \"soft\", got 2"));
    assert!(message("threat.norm", "l2".into()).contains("linf"));
    assert!(message("threat.epsilon", "8".into()).contains("threat.epsilon must be below 1"));
    let nothing = config(&[("objective.weight", 0.0.into()), ("matching.weight", 0.0.into())]);
    let message_of_nothing = nothing.validate().unwrap_err().to_string();
    assert!(message_of_nothing.contains("nothing would be optimized"), "{message_of_nothing}");
    assert!(
        message("aac.matching", table("mode = \"order\"\nfirst = \"hard\"")).contains("aac.matching cannot be `order`")
    );
    let fraction = message("aac.pool", table("mode = \"prefix\"\nfirst = \"hard\"\nfraction = 0.0"));
    assert_eq!(fraction, "aac.pool: curriculum fraction must be in (0, 1], got 0");
    let one_batch = message("aac.synthetic", table("mode = \"order\"\nfirst = \"hard\""));
    assert!(
        one_batch.contains("aac.synthetic cannot be `order`") && one_batch.contains("batch-per-class = 0"),
        "{one_batch}"
    );
    let elsewhere = profile("dm", &[("images.batch-per-class", 2.into())]).validate().unwrap_err().to_string();
    assert!(elsewhere.contains("images.batch-per-class must be 0"), "{elsewhere}");
    let weightless = config(&[("aac.weighted", "both".into()), ("aac.synthetic", table("mode = \"off\""))]);
    assert!(weightless.validate().unwrap_err().to_string().contains("aac.weighted cannot be `both`"));
    assert!(message("pool.min-steps", 9.into()).contains("pool.max-steps"));
    let sections = |change: &dyn Fn(&mut toml::Table)| {
        let mut table = profile_table("faithful", &[]);
        change(&mut table);
        DistillConfig::from_table(METHODS, table).unwrap_err()
    };
    let unused = sections(&|table| drop(table.insert("experts".into(), profile_table("mtt", &[])["experts"].clone())));
    assert!(matches!(unused, ConfigError::SectionUnused { section: "experts", method: "c2r" }), "{unused}");
    let missing = sections(&|table| drop(table.remove("objective")));
    assert!(matches!(missing, ConfigError::SectionMissing { section: "objective", method: "c2r" }), "{missing}");
    let mut without = profile("mat", &[]);
    without.common.companions = None;
    let missing = without.validate().unwrap_err();
    assert!(matches!(missing, ConfigError::SectionMissing { section: "companions", .. }), "{missing}");
    let unknown = sections(&|table| drop(table.insert("objectiv".into(), 1.into())));
    let ConfigError::Key(unknown) = unknown else { panic!("{unknown}") };
    assert_eq!((unknown.key.as_str(), unknown.meant.as_deref()), ("objectiv", Some("objective")));
    // The keys of the top belong to no section.
    let nested = sections(&|table| drop(table["companions"].as_table_mut().unwrap().insert("paces".into(), 1.into())));
    let nested = nested.to_string();
    assert!(nested.contains("`paces`") && nested.contains("`growth`") && !nested.contains("`objective`"), "{nested}");
    let unknown = sections(&|table| drop(table.insert("method".into(), "magic".into())));
    assert!(unknown.to_string().contains("`magic`") && unknown.to_string().contains("`k-center`"), "{unknown}");
    let far = profile("mtt", &[("student.span", 3.into())]).validate().unwrap_err().to_string();
    assert!(far.contains("student.span") && far.contains("epoch 4 of 3"), "{far}");
}

#[test]
fn an_exploding_run_stops_with_an_error() {
    let mut distillation = start(&config(&[("pool.lr", 1e30.into())]));
    let error = loop {
        if let Err(error) = distillation.step() {
            break error;
        }
        assert!(!distillation.is_finished(), "a learning rate of 1e30 must explode");
    };
    assert!(matches!(error, DistillError::NotFinite { .. }), "{error}");
}

/// Between two readings of losses: what is on disk is from before, nothing broken is saved after, and the run goes on from
/// there to the same bytes.
#[test]
fn a_broken_run_leaves_its_last_good_state() {
    let config = config(&[("iterations", 8.into())]);
    let mut straight = start(&config);
    finish(&mut straight);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let mut broken = start(&config);
    while broken.iteration() < 3 {
        broken.step().unwrap();
    }
    broken.state().unwrap().write(&path).unwrap();
    broken.step().unwrap();
    let _ = broken.images().shallow_clone().fill_(f64::NAN);
    broken.step().unwrap();
    for error in [broken.state().map(drop), broken.report().map(drop), broken.training_loss().map(drop)] {
        let Err(DistillError::NotFinite { what: "distillation loss", at: 5, value }) = error else {
            panic!("{error:?}")
        };
        assert!(value.is_nan());
    }
    let mut resumed = start(&config);
    resumed.restore(&TensorFile::read(&path).unwrap()).unwrap();
    finish(&mut resumed);
    assert_eq!(bytes(&resumed), bytes(&straight));
}

#[test]
fn what_the_device_keeps_changes_nothing() {
    for name in ["faithful", "dm", "dsa", "mtt", "sre2l"] {
        let config = profile(name, &[]);
        let (mut host, mut kept) = (start(&config), start(&config));
        kept.keep(usize::MAX);
        assert_eq!(finish(&mut host), finish(&mut kept), "{name}");
        assert_eq!(bytes(&host), bytes(&kept), "{name}");
    }
}
