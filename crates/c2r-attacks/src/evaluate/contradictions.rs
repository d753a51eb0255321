//! What results of several attacks on one model say about each other (docs/attacks/flags.md).

use serde::Deserialize;
use serde_json::Value;

use crate::{attack::Family, evaluate::report::Flag, registry::AttackConfig};

/// Attacks that differ by no more than this share of the samples are equally strong. AutoAttack, `checks.py`.
pub(super) const SAME_STRENGTH: f64 = 0.002;

/// One step counts as stronger than several of the same kind only if it breaks more than this additional share of the
/// samples: where the loss is almost linear, both end at the same place and single samples differ. Ours.
const STRONGER: f64 = 0.01;

/// What one attack left, judged by itself on all samples.
#[derive(Clone, Debug, PartialEq)]
pub struct AttackResult<'a> {
    /// Its name.
    pub attack: &'a str,
    /// What kind of attack it is; of a suite, its first attack.
    pub family: Family,
    /// Number of fixed steps up the cross entropy, for attacks that are made of them: FGSM has one.
    pub cross_entropy_steps: Option<u32>,
    /// Samples that are correctly classified and were not broken.
    pub survivors: usize,
}

impl<'a> AttackResult<'a> {
    /// The result of an attack of this crate with these options, or if they cannot be read, with the defaults of its name.
    /// `None` for attacks that this crate does not know.
    pub fn of_config(attack: &'a str, config: &Value, survivors: usize) -> Option<Self> {
        let config = AttackConfig::deserialize(config).ok().or_else(|| attack.parse().ok())?;
        let mut first = &config;
        while let AttackConfig::Suite(suite) = first {
            first = suite.attacks.first()?;
        }
        let family = first.build().ok()?.family();
        Some(Self { attack, family, cross_entropy_steps: cross_entropy_steps(&config), survivors })
    }
}

/// The fixed steps up the cross entropy that an attack takes.
pub(super) fn cross_entropy_steps(config: &AttackConfig) -> Option<u32> {
    config.iterative().ok()??.cross_entropy_steps()
}

/// Reasons to doubt `results` on one model and the same `n` samples, whose threat is the same: one step that breaks more than
/// many ([`Flag::OneStepBeatsMany`]), noise that breaks more than an attack ([`Flag::WeakerThanNoise`]), and an attack that sees
/// no gradient and breaks more than all that do ([`Flag::BlackBoxBeatsWhiteBox`]).
///
/// [`crate::evaluate`] looks for them among the attacks of one call in [`Mode::Each`](crate::Mode::Each); attacks that were run
/// one by one are compared by this function.
///
/// ```
/// use c2r_attacks::{AttackResult, Flag, contradictions};
/// use serde_json::json;
///
/// let fgsm = AttackResult::of_config("fgsm", &json!({"attack": "fgsm"}), 0).unwrap();
/// let pgd = AttackResult::of_config("pgd", &json!({"attack": "pgd", "steps": 10}), 23).unwrap();
/// let found = contradictions(&[fgsm, pgd], 200);
/// assert_eq!(found, [Flag::OneStepBeatsMany { attack: "pgd".into(), steps: 10, samples: 23 }]);
/// ```
pub fn contradictions(results: &[AttackResult<'_>], n: usize) -> Vec<Flag> {
    let few = (SAME_STRENGTH * n as f64) as usize;
    let clearly = (STRONGER * n as f64) as usize;
    let strongest =
        results.iter().filter(|result| result.family.follows_gradients()).map(|result| result.survivors).min();
    let of = |name: &str| results.iter().find(|result| result.attack == name);
    let noise = of("noise").map(|result| result.survivors);
    let one_step = of("fgsm").filter(|result| result.cross_entropy_steps == Some(1)).map(|result| result.survivors);
    let mut flags = Vec::new();
    for AttackResult { attack, family, cross_entropy_steps, survivors } in results {
        let (attack, survivors) = ((*attack).to_owned(), *survivors);
        if let (Family::BlackBox, Some(strongest)) = (family, strongest)
            && survivors + few < strongest
        {
            flags.push(Flag::BlackBoxBeatsWhiteBox { attack: attack.clone(), samples: strongest - survivors });
        }
        if let (Some(one_step), Some(steps @ 2..)) = (one_step, *cross_entropy_steps)
            && survivors > one_step + clearly
        {
            flags.push(Flag::OneStepBeatsMany { attack: attack.clone(), steps, samples: survivors - one_step });
        }
        if let Some(noise) = noise
            && *family != Family::Sanity
            && survivors > noise + few
        {
            flags.push(Flag::WeakerThanNoise { attack, samples: survivors - noise });
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn result(attack: &str, survivors: usize) -> AttackResult<'_> {
        AttackResult::of_config(attack, &Value::Null, survivors).unwrap()
    }

    #[test]
    fn each_contradiction_is_found_beyond_its_share() {
        // Of 1,000 samples 2 are too few to speak of, and 10 where one step is compared with many.
        let found = |results: &[(&str, usize)]| {
            let results: Vec<_> = results.iter().map(|&(attack, survivors)| result(attack, survivors)).collect();
            contradictions(&results, 1000)
        };
        assert_eq!(found(&[("fgsm", 300), ("pgd", 310), ("noise", 308), ("square", 298)]), []);
        let steps = match "pgd".parse::<AttackConfig>().unwrap() {
            AttackConfig::Pgd(pgd) => pgd.steps,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            found(&[("fgsm", 300), ("pgd", 311)]),
            [Flag::OneStepBeatsMany { attack: "pgd".into(), steps, samples: 11 }]
        );
        assert_eq!(
            found(&[("pgd", 300), ("noise", 297)]),
            [Flag::WeakerThanNoise { attack: "pgd".into(), samples: 3 }]
        );
        assert_eq!(
            found(&[("pgd", 300), ("apgd-ce", 290), ("square", 287)]),
            [Flag::BlackBoxBeatsWhiteBox { attack: "square".into(), samples: 3 }]
        );
        // The suite's first attack sees gradients, and the suite leaves less than Square.
        assert_eq!(found(&[("autoattack-standard", 280), ("square", 287)]), []);
        assert_eq!(found(&[("square", 287), ("noise", 400)]), [], "nothing that sees gradients to compare with");
    }

    #[test]
    fn flags_are_called_what_reports_call_them() {
        let (attack, samples) = ("pgd".to_owned(), 1);
        for flag in [
            Flag::RandomizedModel { difference: 1.0 },
            Flag::BatchDependentModel { difference: 1.0 },
            Flag::ProbabilitiesNotLogits,
            Flag::ZeroGradient { samples, of: 2 },
            Flag::BlackBoxBeatsWhiteBox { attack: attack.clone(), samples },
            Flag::OneStepBeatsMany { attack: attack.clone(), steps: 2, samples },
            Flag::WeakerThanNoise { attack, samples },
        ] {
            let written = serde_json::to_value(&flag).unwrap();
            assert_eq!((written["flag"].as_str(), written["attack"].as_str()), (Some(flag.name()), flag.attack()));
        }
    }

    #[test]
    fn one_sample_is_not_samples() {
        let text = |samples| Flag::OneStepBeatsMany { attack: "pgd".to_owned(), steps: 10, samples }.to_string();
        assert!(text(1).starts_with("`fgsm` breaks 1 more sample in one step"), "{}", text(1));
        assert!(text(2).starts_with("`fgsm` breaks 2 more samples in one step"), "{}", text(2));
        let noise = |samples| Flag::WeakerThanNoise { attack: "pgd".to_owned(), samples }.to_string();
        assert_eq!(noise(1), "random noise breaks 1 more sample than `pgd`");
        assert_eq!(noise(2), "random noise breaks 2 more samples than `pgd`");
    }

    #[test]
    fn attacks_of_others_are_left_out() {
        assert_eq!(AttackResult::of_config("mine", &json!({"attack": "mine", "steps": 3}), 5), None);
        // The options count, not the name.
        let one = AttackResult::of_config("pgd", &json!({"attack": "pgd", "steps": 1}), 5).unwrap();
        assert_eq!(one.cross_entropy_steps, Some(1));
    }
}
