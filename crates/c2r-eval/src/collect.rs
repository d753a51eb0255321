use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use c2r_base::artifact::{self, ArtifactError};
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
    /// How its training images were made; `None` where that `run.json` is not there.
    pub distillation: Option<RunInfo>,
}

/// What a `run.json` says about how a run came to be.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct RunInfo {
    /// `distill` or `train`.
    #[serde(default)]
    pub stage: String,
    /// The resolved configuration.
    #[serde(default)]
    pub config: Value,
    /// The command.
    #[serde(default)]
    pub argv: Vec<String>,
}

/// Reads every `attack.json` under `roots` (a root may be such a file itself), in the order of their paths. Links to
/// folders are followed, each folder once.
///
/// Paths are relative to the root, or to the common ancestor of several roots.
///
/// # Errors
/// [`EvalError::Nothing`] where there is none, [`EvalError::Several`] naming every file that is broken,
/// [`EvalError::Artifact`] if a folder cannot be read.
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
    for file in &files {
        match read(file, &ancestor) {
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

fn read(file: &Path, ancestor: &Path) -> Result<Source, EvalError> {
    let record = AttackRecord::read(file)?;
    let relative = file.strip_prefix(ancestor).unwrap_or(file);
    let parts: Vec<_> = relative.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    Ok(Source {
        path: parts.join("/"),
        training: nearest(file, "train")?,
        distillation: nearest(file, "distill")?,
        file: file.to_owned(),
        record,
    })
}

/// How far above an `attack.json` its runs may be: `RUN/natural/attack.json`, `RUN/natural/eps8/attack.json`.
const LEVELS: usize = 3;

/// The run of `stage` in the folder of `file` or in the nearest one above it.
fn nearest(file: &Path, stage: &str) -> Result<Option<RunInfo>, EvalError> {
    for folder in file.ancestors().skip(1).take(LEVELS) {
        for name in ["run.json", "distill/run.json"] {
            let path = folder.join(name);
            if path.is_file() {
                let run: RunInfo = artifact::read_json(&path)?;
                if run.stage == stage {
                    return Ok(Some(run));
                }
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::example;

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
        let distillation =
            RunInfo { stage: "distill".into(), config: serde_json::json!({"ipc": 1}), argv: vec!["c2r".into()] };
        assert_eq!(sources[0].distillation.as_ref(), Some(&distillation));
        assert_eq!((&sources[0].training, &sources[1].distillation), (&None, &None));
        // An attack at another radius lies a level deeper and belongs to the same runs.
        let deeper = root.join("digits/seed0/natural/eps8/attack.json");
        fs::create_dir_all(deeper.parent().unwrap()).unwrap();
        fs::rename(root.join("digits/seed0/natural/attack.json"), &deeper).unwrap();
        fs::write(root.join("digits/seed0/natural/run.json"), r#"{"config": {"seed": 0}, "stage": "train"}"#).unwrap();
        let moved = collect(std::slice::from_ref(&deeper)).unwrap().remove(0);
        assert_eq!(moved.distillation, Some(distillation));
        assert_eq!(moved.training.unwrap().config, serde_json::json!({"seed": 0}));
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
