use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use c2r_base::artifact::{self, ArtifactError};
use c2r_experiment::Subject;
use serde::Deserialize;
use serde_json::Value;

use crate::{AttackRecord, EvalError};

/// A result and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Path of the `attack.json`, relative to the results folder, with `/`.
    pub path: String,
    /// The file itself.
    pub file: PathBuf,
    /// Its contents.
    pub record: AttackRecord,
    /// How the network was trained; `None` where its `run.json` is not there.
    pub training: Option<RunInfo>,
    /// How its training images were made; `None` where that `run.json` is not there, and where nothing was distilled.
    pub distillation: Option<RunInfo>,
    /// The `run.json` of a distillation that has replaced the training images since, as [`Source::path`]; a note of the row
    /// names it. [`collect`] reads no images, so it leaves this empty.
    pub replaced: Option<String>,
}

/// What a `run.json` says about how a run came to be.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RunInfo {
    /// `distill` or `train`.
    pub stage: String,
    /// The resolved configuration.
    pub config: Value,
    /// The command.
    pub argv: Vec<String>,
    /// `running` or `finished`; empty where it is not known.
    pub status: String,
    /// When its last session began, seconds since 1970; 0 where it is not known.
    pub started_unix: u64,
    /// The `run.json` itself.
    #[serde(skip)]
    pub file: PathBuf,
}

impl RunInfo {
    /// Whether it is not finished.
    pub fn is_running(&self) -> bool {
        self.status == "running"
    }

    /// The network that a training says it makes; `None` where it says nothing.
    fn makes(&self) -> Option<Subject> {
        Subject::deserialize(self.config.get("subject")?).ok()
    }

    /// Whether a training may be that of a network: it says nothing else of it. The dataset is not compared, because a
    /// network may be judged on another one than it was trained on.
    fn trained(&self, network: &Subject) -> bool {
        let told = |subject: &Subject| Subject { dataset: String::new(), notes: Vec::new(), ..subject.clone() };
        !self.is_running() && self.makes().is_none_or(|made| told(&made) == told(network))
    }

    /// Whether a distillation may have made the images that a network was trained on: it says nothing else of them.
    fn distilled_for(&self, network: &Subject) -> bool {
        let said =
            |value: Option<&Value>, expected: Value| value.is_none_or(|said| said.is_null() || *said == expected);
        let config = |key: &str| self.config.get("distill")?.get(key);
        // Of some images of each class, the network has the hash of these.
        let whole = config("train-per-class").is_none_or(Value::is_null);
        let data = self.config.get("data_sha256").filter(|_| whole || network.data_sha256.is_empty());
        said(data, network.data_sha256.as_str().into())
            && said(config("name"), network.method.as_str().into())
            && said(config("profile"), network.profile.as_str().into())
            && said(config("seed"), network.distill_seed.into())
    }
}

/// Reads every `attack.json` under `roots` (a root may be such a file itself), in the order of their paths. Links to
/// folders are followed, each folder once.
///
/// Paths are relative to the root, or to the common ancestor of several roots.
///
/// The training and the distillation of a result are the nearest ones above it whose `run.json` says nothing else than its
/// subject does: a folder of one run may hold those of others.
///
/// # Errors
/// [`EvalError::Nothing`] where there is none, [`EvalError::OtherNetwork`] where a network was trained again after it was
/// attacked, [`EvalError::Several`] naming every file that is broken, [`EvalError::Artifact`] if a folder cannot be read.
pub fn collect(roots: &[PathBuf]) -> Result<Vec<Source>, EvalError> {
    let mut files = BTreeSet::new();
    let mut ancestor: Option<PathBuf> = None;
    let mut seen = BTreeSet::new();
    for root in roots {
        let whole = root.canonicalize().map_err(ArtifactError::io("read", root))?;
        let folder = if whole.is_dir() {
            walk(&whole, &mut files, &mut seen)?;
            whole
        } else {
            files.insert(whole.clone());
            whole.parent().unwrap_or(&whole).to_owned()
        };
        ancestor = Some(match ancestor {
            Some(ancestor) => common(&ancestor, &folder),
            None => folder,
        });
    }
    if files.is_empty() {
        return Err(EvalError::Nothing(roots.to_vec()));
    }
    let ancestor = ancestor.unwrap_or_default();
    let mut sources = Vec::new();
    let mut broken = Vec::new();
    let mut networks = BTreeMap::new();
    for file in &files {
        match read(file, &ancestor, &mut networks) {
            Ok(source) => sources.push(source),
            Err(error) => broken.push(error),
        }
    }
    match broken.len() {
        0 => Ok(sources),
        1 => Err(broken.swap_remove(0)),
        _ => Err(EvalError::Several(broken)),
    }
}

fn walk(folder: &Path, files: &mut BTreeSet<PathBuf>, seen: &mut BTreeSet<PathBuf>) -> Result<(), EvalError> {
    if !seen.insert(folder.to_owned()) {
        return Ok(());
    }
    for entry in fs::read_dir(folder).map_err(ArtifactError::io("read", folder))? {
        let path = entry.map_err(ArtifactError::io("read", folder))?.path();
        // A dangling link is not a result.
        let Ok(whole) = path.canonicalize() else { continue };
        if whole.is_dir() {
            walk(&whole, files, seen)?;
        } else if path.file_name().is_some_and(|name| name == "attack.json") {
            files.insert(whole);
        }
    }
    Ok(())
}

fn common(a: &Path, b: &Path) -> PathBuf {
    a.components().zip(b.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
}

/// * `networks`: hashes of the networks that were read, by path.
fn read(file: &Path, ancestor: &Path, networks: &mut BTreeMap<PathBuf, String>) -> Result<Source, EvalError> {
    let record = AttackRecord::read(file)?;
    let relative = file.strip_prefix(ancestor).unwrap_or(file);
    let parts: Vec<_> = relative.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    let subject = &record.subject;
    let training = nearest(file, "train", |run| run.trained(subject))?;
    check_network(file, &record, training.as_ref(), networks)?;
    let distillation = match subject.distill_seed {
        Some(_) => nearest(file, "distill", |run| run.distilled_for(subject))?,
        None => None,
    };
    let path = parts.join("/");
    Ok(Source { path, training, distillation, replaced: None, file: file.to_owned(), record })
}

/// How far above an `attack.json` its runs may be: `RUN/natural/attack.json`, `RUN/natural/eps8/attack.json`.
const LEVELS: usize = 3;
/// The network that `c2r train` leaves in its run folder.
const NETWORK: &str = "model.safetensors";

/// The run of `stage` that fits, in the folder of `file` or in the nearest one above it.
fn nearest(file: &Path, stage: &str, fits: impl Fn(&RunInfo) -> bool) -> Result<Option<RunInfo>, EvalError> {
    for folder in file.ancestors().skip(1).take(LEVELS) {
        for name in ["run.json", "distill/run.json"] {
            let path = folder.join(name);
            if path.is_file() {
                let run = RunInfo { file: path.clone(), ..artifact::read_json(&path)? };
                if run.stage == stage && fits(&run) {
                    return Ok(Some(run));
                }
            }
        }
    }
    Ok(None)
}

/// Refuses a report if the network in its run folder is not the one that was measured.
fn check_network(
    file: &Path,
    record: &AttackRecord,
    training: Option<&RunInfo>,
    networks: &mut BTreeMap<PathBuf, String>,
) -> Result<(), EvalError> {
    let Some(measured) = &record.model_sha256 else { return Ok(()) };
    // Another training in the same folder says something else of its network. Then the command tells whose report it is.
    let named = match training {
        Some(_) => None,
        None => nearest(file, "train", |run| names(&record.argv, &run.file.with_file_name(NETWORK)))?,
    };
    let Some(run) = training.filter(|run| run.makes().is_some()).or(named.as_ref()) else { return Ok(()) };
    let network = run.file.with_file_name(NETWORK);
    if !network.is_file() {
        return Ok(());
    }
    let now = match networks.get(&network) {
        Some(hash) => hash.clone(),
        None => artifact::sha256_of_file(&network)?,
    };
    networks.insert(network.clone(), now.clone());
    if now == *measured {
        return Ok(());
    }
    Err(EvalError::OtherNetwork { report: file.to_owned(), measured: measured.clone(), other: network, now })
}

/// Whether a command attacks this network, as far as its last folder and name tell.
fn names(argv: &[String], network: &Path) -> bool {
    let after = |pair: &[String]| (pair[0] == "--checkpoint").then(|| pair[1].clone());
    let joined = |word: &String| word.strip_prefix("--checkpoint=").map(str::to_owned);
    let named = argv.windows(2).find_map(after).or_else(|| argv.iter().find_map(joined));
    let last: PathBuf = network.components().rev().take(2).collect::<Vec<_>>().into_iter().rev().collect();
    named.is_some_and(|named| Path::new(&named).ends_with(last))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::record::tests::example;

    fn write(path: &Path, value: &Value) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value.to_string()).unwrap();
    }

    /// The only result under `root`.
    fn one(root: &Path) -> Source {
        let mut sources = collect(&[root.to_owned()]).unwrap();
        assert_eq!(sources.len(), 1);
        sources.remove(0)
    }

    /// `z/dm0` is a distillation; `theirs` and `full` in it are networks on other images.
    #[test]
    fn a_run_in_the_folder_of_another_is_not_its_result() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("z/dm0");
        let ours = example().subject;
        let distill = json!({ "name": ours.method, "profile": ours.profile, "seed": 0, "ipc": 1 });
        let config = json!({ "dataset": "digits", "data_sha256": "ab", "distill": distill });
        write(&run.join("run.json"), &json!({ "stage": "distill", "status": "finished", "config": config }));
        let found = |change: fn(&mut Subject)| {
            let mut record = example();
            change(&mut record.subject);
            record.write(&run.join("net/attack.json")).unwrap();
            one(folder.path()).distillation.is_some()
        };
        assert!(found(|_| ()));
        assert!(found(|subject| subject.dataset = "folder:shifted".into()), "the images are those of the distillation");
        assert!(!found(|subject| subject.method = "theirs".into()));
        assert!(!found(|subject| subject.profile = "plus".into()));
        assert!(!found(|subject| subject.distill_seed = Some(1)));
        assert!(!found(|subject| subject.data_sha256 = String::new()), "an imported set");
        let full = |subject: &mut Subject| {
            (subject.method, subject.images_per_class, subject.distill_seed) = ("full".into(), None, None);
        };
        assert!(!found(full));
        // Nor may a record that says nothing be taken for one of a network on real images.
        write(&run.join("run.json"), &json!({ "stage": "distill", "config": {} }));
        assert!(found(|_| ()) && !found(full));
    }

    #[test]
    fn settings_are_those_of_the_training_that_made_the_network() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("dm0/natural");
        let record = |subject: &Subject, status: &str| json!({ "stage": "train", "status": status, "config": { "subject": subject, "train": { "lr": 0.01 } } });
        example().write(&run.join("eps8/attack.json")).unwrap();
        let subject = example().subject;
        write(&run.join("run.json"), &record(&subject, "finished"));
        assert_eq!(one(folder.path()).training.unwrap().config["train"]["lr"], 0.01);
        // One that is not finished has made nothing yet, and one of another seed made another network.
        write(&run.join("run.json"), &record(&subject, "running"));
        assert_eq!(one(folder.path()).training, None);
        write(&run.join("run.json"), &record(&Subject { train_seed: 1, ..subject.clone() }, "finished"));
        assert_eq!(one(folder.path()).training, None);
        // The next one above is asked, too.
        write(&run.with_file_name("run.json"), &record(&subject, "finished"));
        assert!(one(folder.path()).training.is_some());
    }

    /// `c2r train --force` deletes `RUN/natural/attack.json`, but not the report at another radius.
    #[test]
    fn a_report_of_a_network_that_was_trained_again_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("natural");
        fs::create_dir_all(&run).unwrap();
        let network = run.join(NETWORK);
        let write_report = |argv: &[&str]| {
            let mut record = example();
            record.model_sha256 = Some(artifact::sha256_hex(b"before"));
            record.argv = argv.iter().map(|word| (*word).to_owned()).collect();
            record.write(&run.join("eps8/attack.json")).unwrap();
        };
        let train = |subject: &Subject| {
            let config = json!({ "subject": subject });
            write(&run.join("run.json"), &json!({ "stage": "train", "status": "finished", "config": config }));
        };
        let collected = || collect(&[folder.path().to_owned()]);
        write_report(&[]);
        train(&example().subject);
        fs::write(&network, "before").unwrap();
        assert_eq!(collected().unwrap().len(), 1);
        fs::write(&network, "after").unwrap();
        let error = collected().unwrap_err();
        let EvalError::OtherNetwork { report, measured, other, now } = error else { panic!("{error}") };
        assert!(report.ends_with("natural/eps8/attack.json") && other.ends_with("natural/model.safetensors"));
        assert_eq!([measured, now], [b"before".as_slice(), b"after"].map(artifact::sha256_hex));
        // Another seed: the command still says which network it was.
        train(&Subject { train_seed: 1, ..example().subject });
        assert_eq!(collected().unwrap().len(), 1, "the network of another command");
        for argv in
            [&["--checkpoint", "runs/natural/model.safetensors"][..], &["--checkpoint=natural/model.safetensors"]]
        {
            write_report(argv);
            assert!(matches!(collected(), Err(EvalError::OtherNetwork { .. })), "{argv:?}");
        }
        write_report(&["--checkpoint", "runs/other/model.safetensors"]);
        assert_eq!(collected().unwrap().len(), 1);
        // A network that was deleted tells nothing.
        train(&example().subject);
        fs::remove_file(&network).unwrap();
        assert_eq!(collected().unwrap().len(), 1);
    }

    #[test]
    fn files_are_found_in_order_with_their_configs() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for seed in [1u64, 0] {
            let mut record = example();
            record.subject.train_seed = seed;
            record.write(&root.join(format!("digits/seed{seed}/natural/attack.json"))).unwrap();
        }
        fs::create_dir_all(root.join("digits/seed0/distill")).unwrap();
        fs::write(
            root.join("digits/seed0/distill/run.json"),
            r#"{"config": {"ipc": 1}, "argv": ["c2r"], "stage": "distill"}"#,
        )
        .unwrap();
        let sources = collect(&[root.to_owned()]).unwrap();
        let paths: Vec<&str> = sources.iter().map(|source| source.path.as_str()).collect();
        assert_eq!(paths, ["digits/seed0/natural/attack.json", "digits/seed1/natural/attack.json"]);
        let distillation = RunInfo {
            stage: "distill".into(),
            config: json!({"ipc": 1}),
            argv: vec!["c2r".into()],
            file: root.canonicalize().unwrap().join("digits/seed0/distill/run.json"),
            ..RunInfo::default()
        };
        assert_eq!(sources[0].distillation.as_ref(), Some(&distillation));
        assert_eq!((&sources[0].training, &sources[1].distillation), (&None, &None));
        // An attack at another radius lies a level deeper and belongs to the same runs.
        let deeper = root.join("digits/seed0/natural/eps8/attack.json");
        fs::create_dir_all(deeper.parent().unwrap()).unwrap();
        fs::rename(root.join("digits/seed0/natural/attack.json"), &deeper).unwrap();
        fs::write(root.join("digits/seed0/natural/run.json"), r#"{"config": {"seed": 0}, "stage": "train"}"#).unwrap();
        let moved = collect(std::slice::from_ref(&deeper)).unwrap().remove(0);
        assert_eq!(moved.distillation, Some(distillation));
        assert_eq!(moved.training.unwrap().config, json!({"seed": 0}));
        fs::rename(&deeper, root.join("digits/seed0/natural/attack.json")).unwrap();
        let both = collect(&[root.join("digits/seed0"), root.join("digits/seed1/natural/attack.json")]).unwrap();
        assert_eq!(
            both.iter().map(|source| source.path.as_str()).collect::<Vec<_>>(),
            ["seed0/natural/attack.json", "seed1/natural/attack.json"]
        );
        assert_eq!(collect(&[root.to_owned(), root.join("digits")]).unwrap().len(), 2, "no file is counted twice");
    }

    #[test]
    fn every_broken_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        let message = collect(std::slice::from_ref(&root)).unwrap_err().to_string();
        assert!(message.contains("no attack.json was found under"), "{message}");
        for name in ["good", "cut", "empty"] {
            example().write(&root.join(name).join("attack.json")).unwrap();
        }
        fs::write(root.join("cut/attack.json"), "{\"schema_version\": 1, ").unwrap();
        fs::write(root.join("empty/attack.json"), "").unwrap();
        let message = collect(std::slice::from_ref(&root)).unwrap_err().to_string();
        assert!(message.starts_with("2 result files") && message.contains("cut/attack.json"), "{message}");
        assert!(message.contains("empty/attack.json") && !message.contains("good/attack.json"), "{message}");
        let message = collect(&[root.join("none")]).unwrap_err().to_string();
        assert!(message.contains("none"), "{message}");
    }
}
