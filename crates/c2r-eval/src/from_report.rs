use std::collections::{BTreeMap, BTreeSet};

use c2r_attacks::{AttackReport, Flag, Mode, Outcome};
use c2r_experiment::{Subject, Subset};
use ndarray::Array1;
use serde::{Serialize, de::DeserializeOwned};

use crate::{AttackRecord, AttackScore, Evaluation, RecordError, Samples, record::count};

/// What an [`AttackReport`] does not know about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordContext<S = Subject> {
    /// What was attacked.
    pub subject: S,
    /// SHA-256 of the network's file, for a cell of a table; an [`Evaluation`] has its own.
    pub model_sha256: Option<String>,
    /// SHA-256 of the whole test split.
    pub test_sha256: String,
    /// Which images were judged, and the position of each in the split, where they are not all.
    pub subset: Option<(Subset, Vec<usize>)>,
    /// [`AttackRecord::held_out`].
    pub held_out: bool,
    /// Reductions and oddities of the evaluation to print under a table, e.g. `cifar10: 1000 of 10000 test images, class-balanced sample, seed 0`.
    pub notes: Vec<String>,
    /// [`AttackRecord::precision`].
    pub precision: BTreeMap<String, String>,
    /// The command.
    pub argv: Vec<String>,
}

impl AttackRecord {
    /// The record of an evaluation in which every attack was judged by itself ([`Mode::Each`]) or in which there was
    /// only one.
    ///
    /// # Errors
    /// [`RecordError`] if several attacks were run on one another's survivors, or if the parts contradict each other.
    pub fn from_report(report: &AttackReport, context: RecordContext) -> Result<Self, RecordError> {
        if report.mode == Mode::Suite && report.attacks.len() > 1 {
            let reason = "the attacks ran on one another's survivors, so a table cannot take their numbers: run each by itself (mode `each`)";
            return Err(RecordError(reason.to_owned()));
        }
        Self::of(report, context)
    }
}

impl AttackRecord<Option<Subject>> {
    /// The record of an evaluation of any kind, with every detail.
    ///
    /// # Errors
    /// [`RecordError`] if the parts contradict each other.
    pub fn from_evaluation(
        evaluation: Evaluation,
        context: RecordContext<Option<Subject>>,
    ) -> Result<Self, RecordError> {
        let record = Self::of(&evaluation.report, context)?;
        Ok(Self { evaluation: Some(Box::new(evaluation)), ..record })
    }
}

impl<S: Serialize + DeserializeOwned> AttackRecord<S> {
    fn of(report: &AttackReport, context: RecordContext<S>) -> Result<Self, RecordError> {
        let n = report.n();
        let attacks = report
            .attacks
            .iter()
            .map(|entry| {
                let survived: Array1<bool> =
                    entry.samples.iter().map(|sample| sample.outcome == Outcome::Survived).collect();
                let counts = entry.counts();
                AttackScore {
                    attack: entry.name.clone(),
                    norm: report.threat.norm,
                    epsilon: report.threat.epsilon,
                    robust_accuracy: entry.robust_accuracy(),
                    survivors: count(survived.view()),
                    n: entry.samples.len(),
                    forward: counts.forward_images,
                    backward: counts.backward_images,
                    seconds: entry.seconds(),
                    flags: flags(&report.flags, entry),
                    config: serde_json::to_value(&entry.config).expect("a configuration serializes to JSON"),
                    survived: Some(survived),
                    margins: Some(entry.samples.iter().map(|sample| sample.margin).collect()),
                }
            })
            .collect();
        let labels: Result<Array1<usize>, _> = report.labels.iter().map(|&label| usize::try_from(label)).collect();
        let labels = labels.map_err(|_| RecordError("a label is negative".to_owned()))?;
        let (subset, positions) = context.subset.unzip();
        let record = Self {
            schema_version: <AttackRecord>::SCHEMA_VERSION,
            subject: context.subject,
            threat: report.threat,
            n,
            clean_accuracy: report.clean_accuracy(),
            clean_seconds: report.clean_seconds,
            attacks,
            samples: Some(Samples {
                labels,
                clean: report.clean_correct().collect(),
                positions: positions.map(Array1::from),
                margins: Some(report.clean_margins.clone().into()),
            }),
            attack_seed: report.seed.value(),
            model_sha256: context.model_sha256,
            test_sha256: context.test_sha256,
            subset,
            held_out: context.held_out,
            flag_notes: report.flags.iter().map(ToString::to_string).collect(),
            notes: context.notes,
            versions: report.versions.clone(),
            precision: context.precision,
            argv: context.argv,
            evaluation: None,
        };
        record.check()?;
        Ok(record)
    }
}

/// Names of the flags that concern `entry`: those of its attacks and those of the model.
fn flags(flags: &[Flag], entry: &c2r_attacks::AttackEntry) -> Vec<String> {
    let about = |attack: &str| entry.name == attack || entry.stages.iter().any(|stage| stage.attack == attack);
    let concern = flags.iter().filter(|flag| flag.attack().is_none_or(about));
    let names: BTreeSet<String> = concern.map(|flag| flag.name().to_owned()).collect();
    names.into_iter().collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use c2r_attacks::{AttackConfig, Family, SampleOutcome, StageEntry};
    use c2r_base::{Epsilon, Norm, Passes, Seed, ThreatModel};

    use super::*;

    /// Five images, four right, of which `fgsm` breaks one and `pgd` two.
    pub(crate) fn report(mode: Mode) -> AttackReport {
        let entry = |name: &str, outcomes: &str| c2r_attacks::AttackEntry {
            name: name.into(),
            config: name.parse::<AttackConfig>().ok().and_then(|config| serde_json::to_value(config).ok()),
            stages: vec![StageEntry {
                attack: name.into(),
                family: Family::Gradient,
                attacked: 4,
                survivors: outcomes.matches('s').count(),
                counts: Passes { forward_calls: 1, forward_images: 8, backward_calls: 1, backward_images: 4 },
                seconds: 0.25,
                repaired_gradients: 0,
                surer: 0,
            }],
            samples: outcomes
                .chars()
                .map(|outcome| SampleOutcome {
                    outcome: match outcome {
                        's' => Outcome::Survived,
                        'b' => Outcome::Broken { by: name.into() },
                        _ => Outcome::CleanError,
                    },
                    prediction: 0,
                    distance: 0.0,
                    margin: if outcome == 's' { 0.5 } else { -1.25 },
                    queries: 1,
                    stages: 1,
                })
                .collect(),
        };
        AttackReport {
            schema_version: AttackReport::SCHEMA_VERSION,
            threat: ThreatModel::untargeted(Norm::Linf, Epsilon::of_255(2.0)),
            mode,
            seed: Seed::new(3),
            batch_size: 5,
            classes: 2,
            labels: vec![0, 1, 0, 1, 0],
            images_fingerprint: String::new(),
            targets: None,
            clean_predictions: vec![0, 1, 0, 1, 1],
            clean_margins: vec![1.0, 1.0, 1.0, 1.0, -1.25],
            clean_counts: Passes::default(),
            clean_seconds: 0.125,
            check_seconds: 0.5,
            attacks: vec![entry("fgsm", "sssbc"), entry("pgd", "ssbbc")],
            flags: vec![
                Flag::ZeroGradient { samples: 1, of: 4 },
                Flag::WeakerThanNoise { attack: "pgd".into(), samples: 1 },
            ],
            versions: Default::default(),
        }
    }

    fn context() -> RecordContext {
        RecordContext {
            subject: crate::record::tests::example().subject,
            model_sha256: Some("ef".into()),
            test_sha256: "cd".into(),
            subset: None,
            held_out: false,
            notes: vec!["5 images".into()],
            precision: BTreeMap::new(),
            argv: vec!["c2r".into()],
        }
    }

    #[test]
    fn outcomes_become_counts() {
        let record = AttackRecord::from_report(&report(Mode::Each), context()).unwrap();
        assert_eq!((record.n, record.clean_accuracy, record.attack_seed), (5, 0.8, 3));
        let survivors: Vec<usize> = record.attacks.iter().map(|entry| entry.survivors).collect();
        assert_eq!(survivors, [3, 2]);
        assert_eq!(record.attacks[1].robust_accuracy, 0.4);
        assert_eq!((record.attacks[0].forward, record.attacks[0].backward), (8, 4));
        assert_eq!(record.attacks[0].flags, ["zero-gradient"]);
        assert_eq!(record.attacks[1].flags, ["weaker-than-noise", "zero-gradient"]);
        assert_eq!(record.attacks[1].config["attack"], "pgd");
        assert_eq!(record.samples.as_ref().map(|samples| count(samples.clean.view())), Some(4));
        assert_eq!(record.samples.as_ref().unwrap().margins.as_ref().unwrap()[4], -1.25);
        assert_eq!(record.attacks[1].margins.as_ref().unwrap().to_vec(), [0.5, 0.5, -1.25, -1.25, -1.25]);
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<AttackRecord>(&text).unwrap(), record);
    }

    #[test]
    fn suites_are_no_cells() {
        let error: &dyn std::error::Error = &AttackRecord::from_report(&report(Mode::Suite), context()).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("`each`"), "{message}");
        let mut single = report(Mode::Suite);
        single.attacks.truncate(1);
        assert_eq!(AttackRecord::from_report(&single, context()).unwrap().attacks.len(), 1);
    }
}
