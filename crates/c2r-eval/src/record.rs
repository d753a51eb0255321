use std::{collections::BTreeMap, fs, path::Path};

use c2r_base::{
    Epsilon, Goal, Norm, ThreatModel,
    artifact::{self, ArtifactError},
};
use c2r_experiment::Subject;
use serde::{Deserialize, Serialize, de::Error as _};

use crate::EvalError;

/// What one trained network does under attack: the contents of an `attack.json`, all that a table needs.
///
/// ```
/// use c2r_eval::Bits;
/// let survived: Bits = [true, false, true].into_iter().collect();
/// assert_eq!(serde_json::to_string(&survived).unwrap(), r#""101""#);
/// assert_eq!(survived.count(), 2);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttackRecord {
    /// [`AttackRecord::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// What was attacked.
    pub subject: Subject,
    /// What the attacker was allowed to do.
    pub threat: ThreatModel,
    /// Number of real test images.
    pub n: usize,
    /// Part of them that is classified correctly with no attack, in `[0, 1]`.
    pub clean_accuracy: f64,
    /// Wall-clock time of the clean pass over all `n` images; depends on the hardware.
    pub clean_seconds: f64,
    /// One entry per attack, in the order they were run, each judged by itself on all `n` images.
    pub attacks: Vec<AttackEntry>,
    /// What happened to each image, where it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<Samples>,
    /// Seed of the attacks.
    pub attack_seed: u64,
    /// SHA-256 of the test split.
    pub test_sha256: String,
    /// The reasons for doubt in words, with their numbers.
    #[serde(default)]
    pub flag_notes: Vec<String>,
    /// Reductions and oddities of the evaluation to print under a table.
    pub notes: Vec<String>,
    /// Versions of the programs involved, e.g. `c2r`, `libtorch`.
    pub versions: BTreeMap<String, String>,
    /// The command that wrote this file.
    pub argv: Vec<String>,
}

/// One attack's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttackEntry {
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
    /// Reasons to doubt the number, e.g. `zero-gradient`; see docs/attacks.md.
    pub flags: Vec<String>,
    /// The attack's parameters, e.g. steps and step size; null if unknown. Rows with other parameters do not mix.
    #[serde(default)]
    pub config: serde_json::Value,
    /// Which images survived, in the order of [`Samples::labels`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub survived: Option<Bits>,
    /// The smallest margin of each image's label that this attack found, in logits: an estimate of the robust margin
    /// from above, as good as the attack. The clean image counts, so an image that is wrong has its clean margin. In
    /// the file one text, separated by spaces.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "spaced_or_none")]
    pub margins: Option<Vec<f32>>,
}

/// What is known about each test image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Samples {
    /// True class of each image; in the file one text, separated by spaces.
    #[serde(with = "spaced")]
    pub labels: Vec<usize>,
    /// Which images are classified correctly with no attack.
    pub clean: Bits,
    /// Margin of each image's label with no attack, in logits.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "spaced_or_none")]
    pub margins: Option<Vec<f32>>,
}

/// One yes or no per image; in the file a text such as `1101`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bits(pub Vec<bool>);

impl Bits {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of images with a yes.
    pub fn count(&self) -> usize {
        self.0.iter().filter(|&&bit| bit).count()
    }
}

impl FromIterator<bool> for Bits {
    fn from_iter<I: IntoIterator<Item = bool>>(bits: I) -> Self {
        Self(bits.into_iter().collect())
    }
}

impl Serialize for Bits {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.iter().map(|&bit| if bit { '1' } else { '0' }).collect::<String>())
    }
}

impl<'de> Deserialize<'de> for Bits {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .chars()
            .map(|c| match c {
                '0' => Ok(false),
                '1' => Ok(true),
                other => Err(D::Error::custom(format!("expected a text of 0 and 1, found {other:?} in it"))),
            })
            .collect::<Result<Vec<_>, _>>()
            .map(Self)
    }
}

/// Numbers as one text, separated by spaces: an array would take a line for each.
mod spaced {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, de::Error as _};

    pub(super) fn serialize<T: Display, S: serde::Serializer>(numbers: &[T], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    }

    pub(super) fn deserialize<'de, T: FromStr, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<T>, D::Error> {
        String::deserialize(deserializer)?
            .split_whitespace()
            .map(|word| word.parse().map_err(|_| D::Error::custom(format!("`{word}` is not a number that fits here"))))
            .collect()
    }
}

mod spaced_or_none {
    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(super) fn serialize<S: serde::Serializer>(
        margins: &Option<Vec<f32>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        super::spaced::serialize(margins.as_deref().unwrap_or_default(), serializer)
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<f32>>, D::Error> {
        super::spaced::deserialize(deserializer).map(Some)
    }
}

impl AttackRecord {
    /// The version of the file format that this crate writes and reads.
    pub const SCHEMA_VERSION: u32 = 1;

    /// Reads and checks an `attack.json`.
    ///
    /// # Errors
    /// [`EvalError::Artifact`] if the file cannot be read, is cut short or has missing or unknown fields;
    /// [`EvalError::Record`] if it was written by another version or contradicts itself. Both name the file.
    pub fn read(path: &Path) -> Result<Self, EvalError> {
        let text =
            fs::read(path).map_err(|source| ArtifactError::Io { action: "read", path: path.to_owned(), source })?;
        let wrong = |error: serde_json::Error| ArtifactError::format(path, "attack.json", error.to_string());
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(wrong)?;
        if value.get("mode").is_some() && value.get("clean_predictions").is_some() {
            return Err(EvalError::record(
                path,
                "this is a report of attacks on one another's survivors or of a model without a subject, which is no \
                 table cell; `c2r attack --checkpoint FILE --dataset NAME --each --output FILE` writes one",
            ));
        }
        match value.get("schema_version").and_then(serde_json::Value::as_u64) {
            Some(version) if version == u64::from(Self::SCHEMA_VERSION) => {}
            Some(version) => {
                return Err(EvalError::record(
                    path,
                    format!(
                        "schema_version is {version}, this c2r reads {}; run `c2r attack` again or use the c2r that wrote it",
                        Self::SCHEMA_VERSION
                    ),
                ));
            }
            None => return Err(EvalError::record(path, "schema_version is missing: not written by `c2r attack`")),
        }
        // From the text and not from the value, so that a message has line and column.
        let record: Self = serde_json::from_slice(&text).map_err(wrong)?;
        record.check().map_err(|reason| EvalError::record(path, reason))?;
        Ok(record)
    }

    /// Checks the record and writes it, whole or not at all.
    ///
    /// # Errors
    /// [`EvalError::Record`] if the record contradicts itself, [`EvalError::Artifact`] if writing fails.
    pub fn write(&self, path: &Path) -> Result<(), EvalError> {
        self.check().map_err(|reason| EvalError::record(path, reason))?;
        Ok(artifact::write_json(path, self)?)
    }

    /// Whether the parts agree with one another.
    ///
    /// # Errors
    /// The first contradiction, in words.
    pub fn check(&self) -> Result<(), String> {
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
        if let Some(samples) = &self.samples {
            if samples.labels.len() != self.n || samples.clean.len() != self.n {
                return Err(format!(
                    "samples has {} labels and {} clean outcomes, n is {}",
                    samples.labels.len(),
                    samples.clean.len(),
                    self.n
                ));
            }
            if let Some(margins) = &samples.margins {
                check_margins(margins, &samples.clean, false).map_err(|reason| format!("samples.margins {reason}"))?;
            }
            if samples.clean.count() as f64 != clean.round() {
                return Err(format!(
                    "samples.clean counts {} right images, clean_accuracy {}",
                    samples.clean.count(),
                    clean.round()
                ));
            }
        }
        for (position, entry) in self.attacks.iter().enumerate() {
            self.check_entry(entry, clean.round() as usize)
                .map_err(|reason| format!("attack `{}`: {reason}", entry.attack))?;
            let same = |other: &&AttackEntry| {
                other.attack == entry.attack && other.norm == entry.norm && other.epsilon == entry.epsilon
            };
            if self.attacks[..position].iter().any(|other| same(&other)) {
                return Err(format!("attack `{}` appears twice at {}", entry.attack, entry.epsilon));
            }
        }
        Ok(())
    }

    fn check_entry(&self, entry: &AttackEntry, clean: usize) -> Result<(), String> {
        if entry.n != self.n {
            return Err(format!(
                "judged on {} images, the record on {}: results of a suite on survivors are no table cells (use --each)",
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
            if survived.len() != entry.n || survived.count() != entry.survivors {
                return Err(format!(
                    "outcomes of {} images with {} survivors, expected {} and {}",
                    survived.len(),
                    survived.count(),
                    entry.n,
                    entry.survivors
                ));
            }
            if let Some(image) = (0..entry.n).find(|&i| survived.0[i] && !samples.clean.0[i]) {
                return Err(format!("image {image} survived but is wrong without an attack"));
            }
        }
        if let Some(margins) = &entry.margins {
            let Some(survived) = &entry.survived else {
                return Err("margins without outcomes per image".into());
            };
            let targeted = self.threat.goal != Goal::Untargeted;
            check_margins(margins, survived, targeted).map_err(|reason| format!("margins {reason}"))?;
        }
        Ok(())
    }
}

/// A right image has no negative margin and a wrong one no positive one. Under a `targeted` attack the label may lose
/// to a class that is not the target.
fn check_margins(margins: &[f32], right: &Bits, targeted: bool) -> Result<(), String> {
    if margins.len() != right.len() {
        return Err(format!("has {} numbers for {} images", margins.len(), right.len()));
    }
    let wrong = |(margin, right): (f32, bool)| {
        !margin.is_finite() || (right && margin < 0.0 && !targeted) || (!right && margin > 0.0)
    };
    match margins.iter().copied().zip(right.0.iter().copied()).position(wrong) {
        Some(image) => Err(format!(
            "says {} for image {image}, which is {}",
            margins[image],
            if right.0[image] { "right" } else { "wrong" }
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Eight test images of two classes, six right, five and four after the two attacks.
    pub(crate) fn example() -> AttackRecord {
        let entry = |attack: &str, survived: &str| {
            let survived: Bits = survived.chars().map(|c| c == '1').collect();
            AttackEntry {
                attack: attack.into(),
                norm: Norm::Linf,
                epsilon: Epsilon::of_255(2.0),
                robust_accuracy: survived.count() as f64 / 8.0,
                survivors: survived.count(),
                n: 8,
                forward: 16,
                backward: 8,
                seconds: 0.5,
                flags: vec![],
                config: serde_json::json!({ "attack": attack }),
                margins: Some(survived.0.iter().map(|&survived| if survived { 0.25 } else { -1.5 }).collect()),
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
                labels: vec![0, 0, 0, 0, 1, 1, 1, 1],
                clean: "11101110".chars().map(|c| c == '1').collect(),
                margins: Some(vec![1.0, 2.0, 0.5, -1.5, 1.0, 2.0, 0.5, -1.5]),
            }),
            attack_seed: 0,
            test_sha256: "cd".into(),
            flag_notes: vec![],
            notes: vec![],
            versions: BTreeMap::from([("c2r".into(), "0.1.0".into())]),
            argv: vec!["c2r".into(), "attack".into()],
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
        let mut older = example();
        older.samples.as_mut().unwrap().margins = None;
        older.attacks.iter_mut().for_each(|entry| entry.margins = None);
        older.write(&path).unwrap();
        assert!(!fs::read_to_string(&path).unwrap().contains("margins"));
        assert_eq!(AttackRecord::read(&path).unwrap(), older);
    }

    #[test]
    fn every_contradiction_is_named() {
        let check = |part: &str, spoil: fn(&mut AttackRecord)| {
            let mut record = example();
            spoil(&mut record);
            let message = record.check().unwrap_err();
            assert!(message.contains(part), "{message}");
        };
        check("n is 0", |r| r.n = 0);
        check("outside [0, 1]", |r| r.clean_accuracy = 75.0);
        check("outside [0, 1]", |r| r.clean_accuracy = f64::NAN);
        check("not a number of images out of 8", |r| r.clean_accuracy = 0.7);
        check("samples.clean counts 6 right images, clean_accuracy 7", |r| r.clean_accuracy = 0.875);
        check("8 labels and 7 clean", |r| r.samples.as_mut().unwrap().clean.0.truncate(7));
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
            r.samples.as_mut().unwrap().margins.as_mut().unwrap().truncate(7)
        });
        check("attack `pgd`: margins says 0.5 for image 3, which is wrong", |r| {
            r.attacks[1].margins.as_mut().unwrap()[3] = 0.5
        });
        check("margins says -0.5 for image 0, which is right", |r| r.attacks[1].margins.as_mut().unwrap()[0] = -0.5);
        check("margins says NaN", |r| r.attacks[0].margins.as_mut().unwrap()[0] = f32::NAN);
        check("attack `fgsm` appears twice at 2/255", |r| r.attacks[1] = r.attacks[0].clone());
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
        check(
            r#"{"schema_version": 1, "mode": "suite", "clean_predictions": [1]}"#,
            "--each --output FILE` writes one",
        );
        check(&text.replace(r#""attack_seed": 0,"#, ""), "missing field `attack_seed`");
        check(&text.replace("11101100", "1110110x"), "found 'x'");
        check(&text.replace("0 0 0 0 1", "0 0 0 a 1"), "`a` is not a number");
        check(&text.replace(r#""survivors": 5"#, r#""survivors": 4"#), "robust_accuracy is 0.625 with 4 survivors");
    }
}
