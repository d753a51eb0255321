mod one_text;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use c2r_attacks::AttackReport;
use c2r_base::{Epsilon, Goal, Norm, ThreatModel};
use c2r_experiment::{Subject, Subset};
use c2r_files::{FileError, read, write_json};
use ndarray::{Array1, ArrayView1};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{EvalError, NoCell, RecordError};

/// What one network does under attack: what `c2r attack --output` writes.
///
/// S is [`Subject`] in a cell of a table, an `attack.json` that [`AttackRecord::read`] has checked, and
/// `Option<Subject>` in what [`AttackRecord::read_any`] reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttackRecord<S = Subject> {
    /// [`AttackRecord::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// What was attacked; null for a model that c2r did not train.
    pub subject: S,
    /// What the attacker was allowed to do.
    pub threat: ThreatModel,
    /// Number of real test images.
    pub n: usize,
    /// Share of them that is classified correctly with no attack, in `[0, 1]`.
    pub clean_accuracy: f64,
    /// Wall-clock time of the clean pass over all `n` images; depends on the hardware.
    pub clean_seconds: f64,
    /// One entry per attack, in the order they were run, each judged by itself on all `n` images.
    pub attacks: Vec<AttackScore>,
    /// What happened to each image, where it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<Samples>,
    /// Seed of the attacks.
    pub attack_seed: u64,
    /// SHA-256 of the network's file, where it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_sha256: Option<String>,
    /// SHA-256 of the whole test split, also where not all of it was judged.
    pub test_sha256: String,
    /// Which of its images were judged; `None` for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subset: Option<Subset>,
    /// Whether these are not test images but training images that nothing was trained on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held_out: bool,
    /// The reasons for doubt in words, with their numbers.
    pub flag_notes: Vec<String>,
    /// Reductions and oddities of the evaluation to print under a table.
    pub notes: Vec<String>,
    /// Versions of the programs involved, e.g. `c2r`, `libtorch`.
    pub versions: BTreeMap<String, String>,
    /// Float formats (`fp32`, `tf32`) by what was computed in them: `convolutions`, `matmuls`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub precision: BTreeMap<String, String>,
    /// The command that wrote this file.
    pub argv: Vec<String>,
    /// Every detail, where the record is not a cell of a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Box<Evaluation>>,
}

/// An evaluation that is not a cell of a table: attacks on one another's survivors, or a model or images that c2r does not
/// know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Path of the model.
    pub model: String,
    /// SHA-256 of that file.
    pub model_sha256: String,
    /// Operators of a TorchScript model that were replaced by faster equivalents.
    pub tuned_operators: usize,
    /// Whether replacing them was forbidden.
    pub as_is: bool,
    /// Name of the dataset or path of the file that the images are from.
    pub inputs: String,
    /// What happened to every image.
    pub report: AttackReport,
}

/// One attack's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttackScore {
    /// The attack's name, e.g. `apgd-ce`.
    pub attack: String,
    /// How perturbations were measured.
    pub norm: Norm,
    /// The largest allowed perturbation, pixel units.
    pub epsilon: Epsilon,
    /// `survivors / n`: right without the attack and right under it, in `[0, 1]`.
    pub robust_accuracy: f64,
    /// Number of images that are still classified correctly.
    pub survivors: usize,
    /// Number of images, those that were wrong before included.
    pub n: usize,
    /// Images sent forward through the network.
    pub forward: u64,
    /// Images sent backward.
    pub backward: u64,
    /// Wall-clock time; depends on the hardware.
    pub seconds: f64,
    /// Reasons to doubt the number, e.g. `zero-gradient`; see docs/attacks/flags.md.
    pub flags: Vec<String>,
    /// The attack's parameters, e.g. steps and step size; null if unknown. Rows with other parameters do not mix.
    pub config: Value,
    /// Which images survived, `[N]`, in the order of [`Samples::labels`]; in the file a text such as `1101`.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "one_text")]
    pub survived: Option<Array1<bool>>,
    /// The smallest margin of each image's label that this attack found, `[N]`, in logits: an upper bound of the robust
    /// margin, as good as the attack. The clean image counts, so an image that is wrong has its clean margin. In the
    /// file one text, separated by spaces.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "one_text")]
    pub margins: Option<Array1<f32>>,
}

/// What is known about each of the N test images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Samples {
    /// True class of each image, `[N]`; in the file one text, separated by spaces.
    #[serde(with = "one_text")]
    pub labels: Array1<usize>,
    /// Which images are classified correctly with no attack, `[N]`; in the file a text such as `1101`.
    #[serde(with = "one_text")]
    pub clean: Array1<bool>,
    /// Position of each image in the split or file that it is from, `[N]`, counted from 0; `None` where image i is at
    /// position i. In the file one text, separated by spaces.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "one_text")]
    pub positions: Option<Array1<usize>>,
    /// Margin of each image's label with no attack, `[N]`, in logits.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "one_text")]
    pub margins: Option<Array1<f32>>,
}

impl AttackRecord {
    /// The version of the file format that this crate writes and reads.
    pub const SCHEMA_VERSION: u32 = 1;

    /// Reads and checks an `attack.json` that is a cell of a table.
    ///
    /// # Errors
    /// As [`AttackRecord::read_any`], and [`EvalError::NotACell`].
    pub fn read(path: &Path) -> Result<Self, EvalError> {
        let (text, value) = load(path)?;
        let unknown = value.get("subject") == Some(&Value::Null);
        if value.get("evaluation").is_some() || unknown {
            let words = value.get("argv").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
            let why = if words.into_iter().any(|word| word == "--inputs" || word.starts_with("--inputs=")) {
                NoCell::Inputs
            } else if unknown {
                NoCell::Unknown
            } else {
                NoCell::Suite
            };
            return Err(EvalError::NotACell { path: path.to_owned(), why });
        }
        Self::parse(path, &text, &value)
    }
}

impl AttackRecord<Option<Subject>> {
    /// Reads and checks what `c2r attack --output` wrote.
    ///
    /// # Errors
    /// [`EvalError::Artifact`] if the file cannot be read, is cut short or has missing or unknown fields;
    /// [`EvalError::Record`] if it was written by another version or contradicts itself. Both name the file.
    pub fn read_any(path: &Path) -> Result<Self, EvalError> {
        let (text, value) = load(path)?;
        Self::parse(path, &text, &value)
    }
}

fn load(path: &Path) -> Result<(Vec<u8>, Value), EvalError> {
    let text = read(path)?;
    let value = serde_json::from_slice(&text).map_err(|error| not_a_record(path, &error))?;
    Ok((text, value))
}

fn not_a_record(path: &Path, error: &serde_json::Error) -> FileError {
    FileError::format(path, "attack.json", error.to_string())
}

impl<S: Serialize + DeserializeOwned> AttackRecord<S> {
    fn parse(path: &Path, text: &[u8], value: &Value) -> Result<Self, EvalError> {
        match value.get("schema_version").and_then(Value::as_u64) {
            Some(version) if version == u64::from(<AttackRecord>::SCHEMA_VERSION) => {}
            Some(version) => {
                return Err(EvalError::record(
                    path,
                    format!(
                        "schema_version is {version}, this c2r reads {}; run `c2r attack` again or use the c2r that wrote it",
                        <AttackRecord>::SCHEMA_VERSION
                    ),
                ));
            }
            None => return Err(EvalError::record(path, "schema_version is missing: not written by `c2r attack`")),
        }
        // From the text and not from the value, so that a message has line and column.
        let record: Self = serde_json::from_slice(text).map_err(|error| not_a_record(path, &error))?;
        record.agree().map_err(|reason| EvalError::record(path, reason))?;
        Ok(record)
    }

    /// Checks the record and writes it, whole or not at all.
    ///
    /// # Errors
    /// [`EvalError::Record`] if the record contradicts itself, [`EvalError::Artifact`] if writing fails.
    pub fn write(&self, path: &Path) -> Result<(), EvalError> {
        self.agree().map_err(|reason| EvalError::record(path, reason))?;
        Ok(write_json(path, self)?)
    }

    /// Whether the parts agree with one another.
    ///
    /// # Errors
    /// [`RecordError`] with the first contradiction.
    pub fn check(&self) -> Result<(), RecordError> {
        self.agree().map_err(RecordError)
    }

    fn agree(&self) -> Result<(), String> {
        if self.n == 0 {
            return Err("n is 0: no test image was judged".into());
        }
        if !(0.0..=1.0).contains(&self.clean_accuracy) {
            return Err(format!("clean_accuracy is {}, outside [0, 1]", self.clean_accuracy));
        }
        let clean = self.clean_accuracy * self.n as f64;
        if (clean - clean.round()).abs() > 1e-6 * self.n as f64 {
            return Err(format!("clean_accuracy {} is not a number of images out of {}", self.clean_accuracy, self.n));
        }
        if let Some(subset) = &self.subset
            && (subset.n != self.n || subset.of <= subset.n)
        {
            return Err(format!("subset says {} of {} images, n is {}", subset.n, subset.of, self.n));
        }
        if let Some(samples) = &self.samples {
            if let Some(positions) = &samples.positions {
                self.check_positions(positions.view()).map_err(|reason| format!("samples.positions {reason}"))?;
            }
            if samples.labels.len() != self.n || samples.clean.len() != self.n {
                return Err(format!(
                    "samples has {} labels and {} clean outcomes, n is {}",
                    samples.labels.len(),
                    samples.clean.len(),
                    self.n
                ));
            }
            if let Some(margins) = &samples.margins {
                check_margins(margins.view(), samples.clean.view(), false)
                    .map_err(|reason| format!("samples.margins {reason}"))?;
            }
            let n_right = count(samples.clean.view());
            if n_right as f64 != clean.round() {
                return Err(format!("samples.clean counts {n_right} right images, clean_accuracy {}", clean.round()));
            }
        }
        if let Some(Evaluation { report, .. }) = self.evaluation.as_deref() {
            let n = self.n;
            if report.clean_predictions.len() != n || report.attacks.iter().any(|attack| attack.samples.len() != n) {
                return Err(format!("evaluation.report does not have {n} images in every part"));
            }
        }
        for (position, entry) in self.attacks.iter().enumerate() {
            self.check_entry(entry, clean.round() as usize)
                .map_err(|reason| format!("attack `{}`: {reason}", entry.attack))?;
            let same = |other: &&AttackScore| {
                other.attack == entry.attack && other.norm == entry.norm && other.epsilon == entry.epsilon
            };
            if self.attacks[..position].iter().any(|other| same(&other)) {
                return Err(format!("attack `{}` appears twice at {}", entry.attack, entry.epsilon));
            }
        }
        Ok(())
    }

    fn check_positions(&self, positions: ArrayView1<'_, usize>) -> Result<(), String> {
        if positions.len() != self.n {
            return Err(format!("has {} numbers, n is {}", positions.len(), self.n));
        }
        let different: BTreeSet<&usize> = positions.iter().collect();
        if different.len() != self.n {
            return Err("names an image twice".to_owned());
        }
        match (&self.subset, different.last()) {
            (Some(subset), Some(&&last)) if last >= subset.of => {
                Err(format!("names image {last}, of {} counted from 0", subset.of))
            }
            _ => Ok(()),
        }
    }

    fn check_entry(&self, entry: &AttackScore, clean: usize) -> Result<(), String> {
        if entry.n != self.n {
            return Err(format!(
                "judged on {} images, the record on {}: a table cannot take results of a suite on survivors",
                entry.n, self.n
            ));
        }
        if entry.survivors > clean {
            return Err(format!(
                "{} survivors but only {clean} images right without an attack; an image that is wrong to begin with is not robust",
                entry.survivors
            ));
        }
        if (entry.robust_accuracy - entry.survivors as f64 / entry.n as f64).abs() > 1e-6 {
            return Err(format!(
                "robust_accuracy is {} with {} survivors of {}",
                entry.robust_accuracy, entry.survivors, entry.n
            ));
        }
        if let Some(survived) = &entry.survived {
            let Some(samples) = &self.samples else {
                return Err("outcomes per image without the record's samples".into());
            };
            let (n, survivors) = (survived.len(), count(survived.view()));
            if (n, survivors) != (entry.n, entry.survivors) {
                return Err(format!(
                    "outcomes of {n} images with {survivors} survivors, expected {} and {}",
                    entry.n, entry.survivors
                ));
            }
            if let Some(image) = (0..n).find(|&image| survived[image] && !samples.clean[image]) {
                return Err(format!("image {image} survived but is wrong without an attack"));
            }
        }
        if let Some(margins) = &entry.margins {
            let Some(survived) = &entry.survived else {
                return Err("margins without outcomes per image".into());
            };
            let targeted = self.threat.goal != Goal::Untargeted;
            check_margins(margins.view(), survived.view(), targeted).map_err(|reason| format!("margins {reason}"))?;
        }
        Ok(())
    }
}

/// A right image has no negative margin and a wrong one no positive one. Under a `targeted` attack the label may lose
/// to a class that is not the target.
fn check_margins(margins: ArrayView1<'_, f32>, right: ArrayView1<'_, bool>, targeted: bool) -> Result<(), String> {
    if margins.len() != right.len() {
        return Err(format!("has {} numbers for {} images", margins.len(), right.len()));
    }
    let wrong = |(&margin, &right): (&f32, &bool)| {
        !margin.is_finite() || (right && margin < 0.0 && !targeted) || (!right && margin > 0.0)
    };
    match margins.iter().zip(&right).position(wrong) {
        Some(image) => {
            let what = if right[image] { "right" } else { "wrong" };
            Err(format!("says {} for image {image}, which is {what}", margins[image]))
        }
        None => Ok(()),
    }
}

/// Number of images with a yes.
pub(crate) fn count(images: ArrayView1<'_, bool>) -> usize {
    images.iter().filter(|&&yes| yes).count()
}

#[cfg(test)]
pub(crate) mod tests {
    use c2r_base::TargetRule;
    use c2r_experiment::SubsetOrder;
    use ndarray::{arr1, s};

    use super::*;
    use std::fs;

    /// Eight test images of two classes, six right, five and four after the two attacks.
    pub(crate) fn example() -> AttackRecord {
        let entry = |attack: &str, survived: &str| {
            let survived: Array1<bool> = survived.chars().map(|c| c == '1').collect();
            AttackScore {
                attack: attack.into(),
                norm: Norm::Linf,
                epsilon: Epsilon::of_255(2.0),
                robust_accuracy: count(survived.view()) as f64 / 8.0,
                survivors: count(survived.view()),
                n: 8,
                forward: 16,
                backward: 8,
                seconds: 0.5,
                flags: vec![],
                config: serde_json::json!({ "attack": attack }),
                margins: Some(survived.mapv(|survived| if survived { 0.25 } else { -1.5 })),
                survived: Some(survived),
            }
        };
        AttackRecord {
            schema_version: AttackRecord::SCHEMA_VERSION,
            subject: Subject {
                dataset: "digits".into(),
                method: "c2r".into(),
                profile: "faithful".into(),
                images_per_class: Some(1),
                distill_seed: Some(0),
                train_seed: 0,
                protocol: "natural".into(),
                selection: Default::default(),
                model: "ConvNet-D3-W32-IN".into(),
                n_images: 2,
                extra_storage: String::new(),
                data_sha256: "ab".into(),
                notes: vec![],
            },
            threat: ThreatModel::untargeted(Norm::Linf, Epsilon::of_255(2.0)),
            n: 8,
            clean_accuracy: 0.75,
            clean_seconds: 0.1,
            attacks: vec![entry("fgsm", "11101100"), entry("pgd", "11100100")],
            samples: Some(Samples {
                labels: arr1(&[0, 0, 0, 0, 1, 1, 1, 1]),
                positions: None,
                clean: "11101110".chars().map(|c| c == '1').collect(),
                margins: Some(arr1(&[1.0, 2.0, 0.5, -1.5, 1.0, 2.0, 0.5, -1.5])),
            }),
            attack_seed: 0,
            model_sha256: Some("ef".into()),
            test_sha256: "cd".into(),
            subset: None,
            held_out: false,
            flag_notes: vec![],
            notes: vec![],
            versions: BTreeMap::from([("c2r".into(), "0.1.0".into())]),
            precision: BTreeMap::new(),
            argv: vec!["c2r".into(), "attack".into()],
            evaluation: None,
        }
    }

    #[test]
    fn round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attack.json");
        example().write(&path).unwrap();
        assert_eq!(AttackRecord::read(&path).unwrap(), example());
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.contains(r#""survived": "11101100""#) && text.contains(r#""labels": "0 0 0 0 1 1 1 1""#),
            "{text}"
        );
        assert!(text.contains(r#""margins": "1 2 0.5 -1.5 1 2 0.5 -1.5""#), "{text}");
        let mut drawn = example();
        drawn.subset = some(20);
        drawn.samples.as_mut().unwrap().positions = Some(arr1(&[19, 0, 3, 4, 11, 7, 2, 18]));
        drawn.write(&path).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains(r#""positions": "19 0 3 4 11 7 2 18""#));
        assert_eq!(AttackRecord::read(&path).unwrap(), drawn);
        let mut bare = example();
        bare.model_sha256 = None;
        bare.samples.as_mut().unwrap().margins = None;
        bare.attacks.iter_mut().for_each(|entry| entry.margins = None);
        bare.write(&path).unwrap();
        assert!(!fs::read_to_string(&path).unwrap().contains("margins"));
        assert_eq!(AttackRecord::read(&path).unwrap(), bare);
    }

    /// Eight images of this many.
    fn some(of: usize) -> Option<Subset> {
        Some(Subset { n: 8, of, order: SubsetOrder::ClassBalanced, seed: Some(0) })
    }

    fn shorten<T: Clone>(values: &mut Array1<T>) {
        *values = values.slice(s![..7]).to_owned();
    }

    #[test]
    fn every_contradiction_is_named() {
        let check = |part: &str, spoil: fn(&mut AttackRecord)| {
            let mut record = example();
            spoil(&mut record);
            let message = record.check().unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        check("n is 0", |r| r.n = 0);
        check("outside [0, 1]", |r| r.clean_accuracy = 75.0);
        check("outside [0, 1]", |r| r.clean_accuracy = f64::NAN);
        check("not a number of images out of 8", |r| r.clean_accuracy = 0.7);
        check("samples.clean counts 6 right images, clean_accuracy 7", |r| r.clean_accuracy = 0.875);
        check("8 labels and 7 clean", |r| shorten(&mut r.samples.as_mut().unwrap().clean));
        check("attack `pgd`: judged on 5 images", |r| r.attacks[1].n = 5);
        check("robust_accuracy is 0.5 with 5 survivors of 8", |r| r.attacks[0].robust_accuracy = 0.5);
        check("7 survivors but only 6 images right", |r| {
            r.attacks[0].survivors = 7;
            r.attacks[0].robust_accuracy = 0.875;
        });
        check("image 3 survived but is wrong", |r| {
            r.attacks[0].survived = Some("11110100".chars().map(|c| c == '1').collect())
        });
        check("without the record's samples", |r| r.samples = None);
        check("samples.margins has 7 numbers for 8 images", |r| {
            shorten(r.samples.as_mut().unwrap().margins.as_mut().unwrap())
        });
        check("attack `pgd`: margins says 0.5 for image 3, which is wrong", |r| {
            r.attacks[1].margins.as_mut().unwrap()[3] = 0.5
        });
        check("margins says -0.5 for image 0, which is right", |r| r.attacks[1].margins.as_mut().unwrap()[0] = -0.5);
        check("margins says NaN", |r| r.attacks[0].margins.as_mut().unwrap()[0] = f32::NAN);
        check("subset says 8 of 8 images, n is 8", |r| r.subset = some(8));
        check("samples.positions has 7 numbers, n is 8", |r| {
            r.samples.as_mut().unwrap().positions = Some(arr1(&[0, 1, 2, 3, 4, 5, 6]))
        });
        check("samples.positions names an image twice", |r| {
            r.samples.as_mut().unwrap().positions = Some(arr1(&[0, 1, 2, 3, 4, 5, 6, 6]))
        });
        check("samples.positions names image 9, of 9 counted from 0", |r| {
            r.subset = some(9);
            r.samples.as_mut().unwrap().positions = Some(arr1(&[0, 1, 2, 3, 4, 5, 6, 9]));
        });
        check("attack `fgsm` appears twice at 2/255", |r| r.attacks[1] = r.attacks[0].clone());
    }

    /// A targeted attack fails on an image that it does not bring into the target class, whichever other class wins.
    #[test]
    fn right_under_a_targeted_attack_with_a_negative_margin() {
        let mut record = example();
        record.attacks[1].margins.as_mut().unwrap()[0] = -0.5;
        assert!(record.check().is_err());
        record.threat.goal = Goal::Targeted(TargetRule::Next);
        assert_eq!(record.check(), Ok(()));
        // Clean images are judged by their labels, whatever the goal of the attacks.
        record.samples.as_mut().unwrap().margins.as_mut().unwrap()[0] = -0.5;
        assert!(
            record.check().unwrap_err().to_string().contains("samples.margins says -0.5 for image 0, which is right")
        );
    }

    #[test]
    fn a_broken_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attack.json");
        let check = |text: &str, part: &str| {
            fs::write(&path, text).unwrap();
            let message = AttackRecord::read(&path).unwrap_err().to_string();
            assert!(message.contains("attack.json") && message.contains(part), "{message}");
        };
        let text = serde_json::to_string_pretty(&example()).unwrap();
        for length in (0..text.len()).step_by(13) {
            check(&text[..length], "");
        }
        check(&text.replace(r#""schema_version": 1"#, r#""schema_version": 9"#), "schema_version is 9");
        check(&text.replace(r#""schema_version": 1,"#, ""), "schema_version is missing");
        check(&text.replace(r#""n": 8,"#, r#""n": 8, "extra": 1,"#), "unknown field `extra`");
        check(r#"{"schema_version": 1, "evaluation": {}}"#, "a table cannot take this report");
        check(&text.replace(r#""attack_seed": 0,"#, ""), "missing field `attack_seed`");
        check(&text.replace("11101100", "1110110x"), "found 'x'");
        check(&text.replace("0 0 0 0 1", "0 0 0 a 1"), "`a` is not a number");
        check(&text.replace(r#""survivors": 5"#, r#""survivors": 4"#), "robust_accuracy is 0.625 with 4 survivors");
    }
}
