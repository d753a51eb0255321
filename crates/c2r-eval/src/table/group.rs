//! Which results belong together: into a section, into a row, to a run.

use std::collections::BTreeMap;

use c2r_base::{Norm, artifact};
use c2r_experiment::{Selection, Subject};
use ndarray::Array1;

use crate::{Alike, AttackScore, EvalError, Source, columns::CLEAN};

/// What the results of one section have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SectionKey {
    pub(super) dataset: String,
    pub(super) protocol: String,
    pub(super) selection: Selection,
    pub(super) model: String,
    pub(super) norm: String,
    /// Bits of a positive float order as the float does.
    pub(super) epsilon: u64,
    pub(super) goal: String,
}

/// What the results of one row have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RowKey {
    pub(super) images_per_class: Option<usize>,
    pub(super) method: String,
    pub(super) profile: String,
}

/// Seeds of the distillation and of the training.
pub(super) type Seeds = (Option<u64>, u64);

/// The results of one run.
pub(super) struct Measured<'a> {
    /// With the attacks it brings; the first is where everything else is taken from.
    pub(super) files: Vec<&'a Source>,
    pub(super) attacks: BTreeMap<&'a str, (&'a AttackScore, &'a Source)>,
}

/// The results of one section.
pub(super) type Rows<'a> = BTreeMap<RowKey, BTreeMap<Seeds, Measured<'a>>>;

/// Sorts results by section, row and run.
///
/// # Errors
/// [`EvalError::TestImages`] and [`EvalError::Mixed`] for results that were measured on different images,
/// [`EvalError::OneName`] for different sets that call themselves the same, [`EvalError::OtherNetwork`] for different
/// networks of one run, [`EvalError::Twice`] for a measurement that is there twice, [`EvalError::OneNetwork`] for a network
/// that is there as two runs.
pub(super) fn group(sources: &[Source]) -> Result<BTreeMap<SectionKey, Rows<'_>>, EvalError> {
    let mut sorted: Vec<&Source> = sources.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    let mut by_section: BTreeMap<SectionKey, Vec<(&Source, Vec<&AttackScore>)>> = BTreeMap::new();
    for source in sorted {
        for (key, entries) in threats(source) {
            by_section.entry(key).or_default().push((source, entries));
        }
    }
    let mut sections = BTreeMap::new();
    for (key, parts) in by_section {
        as_many_test_images(&key, parts.iter().map(|(source, _)| *source))?;
        let first = parts[0].0;
        let mut rows: Rows<'_> = BTreeMap::new();
        for (source, entries) in parts {
            // Before the accuracies of a run are compared: other images, held-out ones say, are why those differ.
            if of_other_images(first, source) {
                same("the judged images (SHA-256, positions, notes)", first, source, judged)?;
            }
            let subject = &source.record.subject;
            let row = RowKey {
                images_per_class: subject.images_per_class,
                method: subject.method.clone(),
                profile: subject.profile.clone(),
            };
            let run = rows
                .entry(row)
                .or_default()
                .entry((subject.distill_seed, subject.train_seed))
                .or_insert_with(|| Measured { files: Vec::new(), attacks: BTreeMap::new() });
            add(run, source, &entries)?;
        }
        rows.values().try_for_each(one_run_each)?;
        sections.insert(key, rows);
    }
    one_network_each(&sections)?;
    Ok(sections)
}

/// Refuses a network that is there under two pairs of seeds.
fn one_run_each(runs: &BTreeMap<Seeds, Measured<'_>>) -> Result<(), EvalError> {
    let words = |(distill, train): Seeds| match distill {
        Some(distill) => format!("distillation seed {distill}, training seed {train}"),
        None => format!("training seed {train}"),
    };
    let mut known: BTreeMap<&str, (Seeds, &Source)> = BTreeMap::new();
    for (&seeds, run) in runs {
        for file in &run.files {
            let Some(sha256) = file.record.model_sha256.as_deref() else { continue };
            let (first, other) = *known.entry(sha256).or_insert((seeds, file));
            if first != seeds {
                return Err(EvalError::OneNetwork {
                    sha256: sha256.to_owned(),
                    seeds: format!("{}; {}", words(first), words(seeds)),
                    a: other.path.clone().into(),
                    b: file.path.clone().into(),
                });
            }
        }
    }
    Ok(())
}

/// Refuses a run that has one network at one radius and another one at another.
fn one_network_each(sections: &BTreeMap<SectionKey, Rows<'_>>) -> Result<(), EvalError> {
    let mut known: BTreeMap<_, &Source> = BTreeMap::new();
    for (key, rows) in sections {
        let section = (&key.dataset, &key.protocol, key.selection, &key.model);
        for (row, runs) in rows {
            for (seeds, run) in runs {
                for file in run.files.iter().filter(|file| file.record.model_sha256.is_some()) {
                    one_network(known.entry((section, row, seeds)).or_insert(file), file)?;
                }
            }
        }
    }
    Ok(())
}

/// Refuses two files of one run that are of different networks.
fn one_network(a: &Source, b: &Source) -> Result<(), EvalError> {
    let (Some(left), Some(right)) = (&a.record.model_sha256, &b.record.model_sha256) else { return Ok(()) };
    if left == right {
        return Ok(());
    }
    if let (Some(left), Some(right)) = (trained_on(a), trained_on(b))
        && left != right
    {
        return Err(one_name(other_images(left, right), a, b));
    }
    let (report, measured) = (b.path.clone().into(), right.clone());
    Err(EvalError::OtherNetwork { report, measured, other: a.path.clone().into(), now: left.clone() })
}

/// The attacks of a file by the section they belong to.
fn threats(source: &Source) -> BTreeMap<SectionKey, Vec<&AttackScore>> {
    let record = &source.record;
    let subject = &record.subject;
    let key = |norm: Norm, epsilon: f64| SectionKey {
        dataset: subject.dataset.clone(),
        protocol: subject.protocol.clone(),
        selection: subject.selection,
        model: subject.model.clone(),
        norm: format!("{norm:?}"),
        epsilon: epsilon.to_bits(),
        goal: format!("{:?}", record.threat.goal),
    };
    let mut threats: BTreeMap<SectionKey, Vec<&AttackScore>> = BTreeMap::new();
    for entry in &record.attacks {
        threats.entry(key(entry.norm, entry.epsilon.value())).or_default().push(entry);
    }
    if threats.is_empty() {
        threats.insert(key(record.threat.norm, record.threat.epsilon.value()), Vec::new());
    }
    threats
}

fn as_many_test_images<'a>(section: &SectionKey, files: impl Iterator<Item = &'a Source>) -> Result<(), EvalError> {
    let mut by_number: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for file in files {
        by_number.entry(file.record.n).or_default().push(file.path.clone());
    }
    if by_number.len() < 2 {
        return Ok(());
    }
    Err(EvalError::TestImages { section: format!("{}, {}", section.dataset, section.protocol), files: by_number })
}

/// Whether two files are of different test images.
fn of_other_images(a: &Source, b: &Source) -> bool {
    a.record.test_sha256 != b.record.test_sha256 || positions(a) != positions(b)
}

/// Which images of the split a file's outcomes are of; `None` for the first ones.
fn positions(source: &Source) -> Option<&Array1<usize>> {
    source.record.samples.as_ref()?.positions.as_ref()
}

/// Hashes of the images that a file's network was judged on, and what the file says about them.
fn judged(source: &Source) -> String {
    let record = &source.record;
    let positions = positions(source).map(|positions| {
        let text: Vec<String> = positions.iter().map(ToString::to_string).collect();
        format!("positions {}", &artifact::sha256_hex(text.join(" ").as_bytes())[..12])
    });
    let hash = [record.test_sha256.clone()];
    hash.into_iter().chain(positions).chain(record.notes.iter().cloned()).collect::<Vec<_>>().join("; ")
}

/// Adds one file's attacks to a run; several files may hold different attacks on the same network.
fn add<'a>(run: &mut Measured<'a>, source: &'a Source, entries: &[&'a AttackScore]) -> Result<(), EvalError> {
    if let Some(first) = run.files.first() {
        // Before the accuracies are compared and the attacks counted, which differ or repeat because of it.
        if let Some(differ) = different_networks(first, source).or_else(|| different_sets(first, source)) {
            return Err(one_name(differ, first, source));
        }
        one_network(first, source)?;
        same("the clean accuracies of the same run", first, source, |s| s.record.clean_accuracy.to_string())?;
        same_clean_outcomes(first, source)?;
        if entries.is_empty() || run.attacks.is_empty() {
            return Err(twice(CLEAN, first, source));
        }
    }
    for entry in entries {
        if let Some((_, other)) = run.attacks.insert(&entry.attack, (entry, source)) {
            return Err(twice(&entry.attack, other, source));
        }
    }
    run.files.push(source);
    Ok(())
}

/// An error if two files of one run, whose clean accuracies agree, disagree about an image without an attack. Where one of them has
/// no outcomes, the accuracies must do.
fn same_clean_outcomes(a: &Source, b: &Source) -> Result<(), EvalError> {
    let (Some(left), Some(right)) = (&a.record.samples, &b.record.samples) else { return Ok(()) };
    let Some(image) = left.clean.iter().zip(&right.clean).position(|(left, right)| left != right) else {
        return Ok(());
    };
    same("outcomes of the same run without an attack", a, b, |source| {
        let right = source.record.samples.as_ref().is_some_and(|samples| samples.clean[image]);
        format!("image {image} is classified {}", if right { "correctly" } else { "wrongly" })
    })
}

/// In what two files of one run show that they are of different networks that c2r did not train.
fn different_networks(a: &Source, b: &Source) -> Option<String> {
    let (left, right) = (a.record.model_sha256.as_ref()?, b.record.model_sha256.as_ref()?);
    (is_foreign(a) && is_foreign(b) && left != right)
        .then(|| format!("the networks (SHA-256 of their files) differ ({left} and {right})"))
}

/// Whether c2r knows neither the training images of a network nor their seed, as of those that it did not train.
fn is_foreign(source: &Source) -> bool {
    from_unknown_data(source) && source.record.subject.distill_seed.is_none()
}

/// In what two files of one run show that they are of different training images.
fn different_sets(a: &Source, b: &Source) -> Option<String> {
    match (trained_on(a), trained_on(b)) {
        (Some(left), Some(right)) => (left != right).then(|| other_images(left, right)),
        // Without a `run.json` the accuracies are evidence enough, where every set of unknown origin has seed 0.
        _ => {
            let accuracies = (a.record.clean_accuracy, b.record.clean_accuracy);
            (from_unknown_data(a) && from_unknown_data(b) && accuracies.0 != accuracies.1)
                .then(|| format!("the clean accuracies differ ({} and {})", accuracies.0, accuracies.1))
        }
    }
}

fn other_images(a: &str, b: &str) -> String {
    format!("the training images (SHA-256) differ ({a} and {b})")
}

/// Hash of the images that a network was trained on, where its `run.json` says it.
pub(super) fn trained_on(source: &Source) -> Option<&str> {
    source.training.as_ref()?.config.get("images_sha256")?.as_str()
}

/// Whether the training images were distilled from real images that are not known, as for sets of `c2r import`.
pub(super) fn from_unknown_data(source: &Source) -> bool {
    source.record.subject.data_sha256.is_empty()
}

fn one_name(differ: String, a: &Source, b: &Source) -> EvalError {
    let subject = &a.record.subject;
    EvalError::OneName {
        name: match subject.images_per_class {
            Some(1) => format!("{}, 1 image per class", subject.method),
            Some(ipc) => format!("{}, {ipc} images per class", subject.method),
            None => subject.method.clone(),
        },
        differ,
        alike: match (from_unknown_data(a) || from_unknown_data(b), is_foreign(a) && is_foreign(b)) {
            (_, true) => Alike::Networks,
            (true, false) => Alike::ImportedSets,
            (false, false) => Alike::Sets,
        },
        a: a.path.clone().into(),
        b: b.path.clone().into(),
    }
}

fn twice(column: &str, a: &Source, b: &Source) -> EvalError {
    let subject = &a.record.subject;
    let what = format!(
        "{column} of {} on {}, {}, training seed {}",
        subject.method, subject.dataset, subject.protocol, subject.train_seed
    );
    EvalError::Twice { what, a: a.path.clone().into(), b: b.path.clone().into() }
}

/// Refuses two files that are of different real images.
pub(super) fn same_data(a: &Source, b: &Source) -> Result<(), EvalError> {
    let (left, right) = (&a.record.subject, &b.record.subject);
    if left.data_sha256 == right.data_sha256 {
        return Ok(());
    }
    let other_number = left.n_train_per_class() != right.n_train_per_class();
    let words = |subject: &Subject| {
        let of = match subject.n_train_per_class() {
            _ if !other_number => String::new(),
            Some(n) => format!(", the first {n} of each class"),
            None => ", all images".to_owned(),
        };
        format!("{:.12}{of}", subject.data_sha256)
    };
    let (a_path, b_path) = (a.path.clone().into(), b.path.clone().into());
    Err(EvalError::TrainingData { a_path, a: words(left), b_path, b: words(right), other_number })
}

/// An error that names both files, unless `value` is the same for both.
pub(super) fn same(
    what: &'static str,
    a: &Source,
    b: &Source,
    value: impl Fn(&Source) -> String,
) -> Result<(), EvalError> {
    let (left, right) = (value(a), value(b));
    if left == right {
        return Ok(());
    }
    let (a_path, b_path) = (a.path.clone().into(), b.path.clone().into());
    Err(EvalError::Mixed { what, a_path, a: left, b_path, b: right })
}
