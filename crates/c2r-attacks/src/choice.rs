//! Which attacks an evaluation runs, with which options.

use c2r_base::{Norm, ThreatModel};

use crate::{attack::Attack, error::ConfigError, registry::AttackConfig};

/// The suite that is a list of columns and not one attack.
const PAPER_SUITE: &str = "paper-six";

/// What an evaluation is asked to run.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Names of attacks and suites.
    pub names: &'a [String],
    /// The norm of the perturbation, which a suite's own options depend on.
    pub norm: Norm,
    /// Judge every attack by itself; `paper-six` then counts as six attacks.
    pub each: bool,
    /// Options of all of them: name and value.
    pub options: &'a [(String, String)],
    /// Options of one attack, or of one attack of a suite.
    pub set: &'a [Setting],
}

/// An option of one attack and its value, as on a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The attack's name, e.g. `apgd-ce`; a suite's members have theirs.
    pub attack: String,
    /// The option in kebab case, e.g. `step-size`.
    pub option: String,
    /// Its value as text, e.g. `2/255` ([`AttackConfig::set`]).
    pub value: String,
}

impl Choice<'_> {
    /// The attacks with their options.
    ///
    /// # Errors
    /// Those of [`AttackConfig::named_for`] and [`AttackConfig::set`]; [`ConfigError::NotChosen`], [`ConfigError::Twice`].
    pub fn configs(&self) -> Result<Vec<AttackConfig>, ConfigError> {
        let named = |name: &String| AttackConfig::named_for(name.trim(), self.norm);
        let mut configs: Vec<AttackConfig> = self.names.iter().map(named).collect::<Result<_, _>>()?;
        if self.each {
            // The paper's table has a column for each of them.
            let members = |config| match config {
                AttackConfig::Suite(suite) if suite.name == PAPER_SUITE => suite.attacks,
                other => vec![other],
            };
            configs = configs.into_iter().flat_map(members).collect();
        }
        for (option, value) in self.options {
            configs.iter_mut().try_for_each(|config| config.set(option, value))?;
        }
        for Setting { attack, option, value } in self.set {
            let mut is_known = false;
            for config in &mut configs {
                is_known |= set_on(config, attack, option, value)?;
            }
            if !is_known {
                return Err(ConfigError::NotChosen { attack: attack.clone(), option: option.clone() });
            }
        }
        // If each attack is judged by itself, its name is all that identifies its result.
        let same = |a: &AttackConfig, b: &AttackConfig| a == b || self.each && a.name() == b.name();
        match (1..configs.len()).find(|&at| configs[..at].iter().any(|other| same(other, &configs[at]))) {
            Some(at) => Err(ConfigError::Twice { attack: configs[at].name().to_owned() }),
            None => Ok(configs),
        }
    }

    /// One note for each given option that has no effect in `threat` on any attack of `configs` that it is set on
    /// ([`AttackConfig::idle`]).
    pub fn idle(&self, configs: &[AttackConfig], threat: &ThreatModel) -> Vec<String> {
        let common = self.options.iter().map(|(option, _)| (None, option));
        let own = self.set.iter().map(|setting| (Some(setting.attack.as_str()), &setting.option));
        let note = |(attack, option): (Option<&str>, &String)| {
            let mut reasons = Vec::new();
            configs.iter().for_each(|config| reasons_on(config, attack, option, threat, &mut reasons));
            let reason = reasons.iter().copied().collect::<Option<Vec<_>>>()?.first().copied()?;
            let key = attack.map_or_else(|| option.clone(), |attack| format!("{attack}.{option}"));
            Some(format!("{key} has no effect: {reason}"))
        };
        common.chain(own).filter_map(note).collect()
    }

    /// One note for each suite of `configs` whose options were changed, so that its name does not describe it.
    pub fn changed_suites(&self, configs: &[AttackConfig]) -> Vec<String> {
        let common = self.options.iter().map(|(option, value)| format!("{option}={value}"));
        let own = self.set.iter().map(|Setting { attack, option, value }| format!("{attack}.{option}={value}"));
        let given: Vec<String> = common.chain(own).collect();
        let suites = configs.iter().filter(|config| matches!(config, AttackConfig::Suite(_)));
        suites
            .filter(|config| {
                AttackConfig::named_for(config.name(), self.norm).is_ok_and(|standard| standard != **config)
            })
            .map(|config| {
                format!("{} is changed and not comparable with others' numbers: {}", config.name(), given.join(", "))
            })
            .collect()
    }
}

/// Sets an option on `config` if it is `attack`, else on its members of that name. Returns whether there was one.
fn set_on(config: &mut AttackConfig, attack: &str, option: &str, value: &str) -> Result<bool, ConfigError> {
    if config.name() == attack {
        return config.set(option, value).map(|()| true);
    }
    let AttackConfig::Suite(suite) = config else { return Ok(false) };
    let mut is_known = false;
    for member in &mut suite.attacks {
        is_known |= set_on(member, attack, option, value)?;
    }
    if is_known {
        suite.note_choice(attack, option);
    }
    Ok(is_known)
}

/// Adds, for `config` or for each of its members, why `option` has no effect, where it is set: on the attacks of the name
/// `attack`, or on all. `None` where it has an effect.
fn reasons_on(
    config: &AttackConfig,
    attack: Option<&str>,
    option: &str,
    threat: &ThreatModel,
    reasons: &mut Vec<Option<&'static str>>,
) {
    let others = attack.filter(|name| *name != config.name());
    match config {
        AttackConfig::Suite(suite) => {
            suite.attacks.iter().for_each(|member| reasons_on(member, others, option, threat, reasons));
        }
        _ if others.is_none() && config.has_option(option) => {
            reasons.push(config.idle(threat).into_iter().find(|(idle, _)| *idle == option).map(|(_, reason)| reason));
        }
        _ => {}
    }
}

/// Whether an attack, or one of a suite's, follows gradients.
pub fn needs_gradient(attack: &dyn Attack) -> bool {
    match attack.stages() {
        Some(stages) => stages.iter().any(|stage| needs_gradient(stage.as_ref())),
        None => attack.family().follows_gradients(),
    }
}

#[cfg(test)]
mod tests {
    use c2r_base::{Epsilon, Goal, TargetRule};

    use super::*;

    fn setting((attack, option, value): (&str, &str, &str)) -> Setting {
        Setting { attack: attack.to_owned(), option: option.to_owned(), value: value.to_owned() }
    }

    fn configs(names: &[&str], each: bool, set: &[(&str, &str, &str)]) -> Result<Vec<AttackConfig>, ConfigError> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let set: Vec<_> = set.iter().copied().map(setting).collect();
        Choice { names: &names, norm: Norm::Linf, each, options: &[], set: &set }.configs()
    }

    #[test]
    fn options_reach_the_members_of_a_suite_in_a_suite() {
        for each in [false, true] {
            let changed = configs(&["paper-six"], each, &[("square", "queries", "10")]).unwrap();
            assert!(serde_json::to_string(&changed).unwrap().contains(r#""queries":10"#), "{changed:?}");
        }
        assert!(matches!(
            configs(&["paper-six"], false, &[("deepfool", "steps", "9")]),
            Err(ConfigError::NotChosen { .. })
        ));
    }

    #[test]
    fn a_suite_is_changed_where_it_runs_something_else() {
        let names = ["autoattack-standard".to_owned()];
        for (value, n_notes) in [("1", 0), ("5", 1)] {
            let set = [("apgd-ce", "restarts", value)].map(setting);
            let choice = Choice { names: &names, norm: Norm::Linf, each: false, options: &[], set: &set };
            assert_eq!(choice.changed_suites(&choice.configs().unwrap()).len(), n_notes, "{value}");
        }
    }

    #[test]
    fn options_without_effect_are_named() {
        let untargeted = |norm| ThreatModel::untargeted(norm, Epsilon::of_255(8.0));
        let targeted = ThreatModel { goal: Goal::Targeted(TargetRule::Next), ..untargeted(Norm::Linf) };
        let idle = |names: &[&str], set: &[(&str, &str, &str)], threat: &ThreatModel| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            let set: Vec<_> = set.iter().copied().map(setting).collect();
            let choice = Choice { names: &names, norm: threat.norm, each: false, options: &[], set: &set };
            choice.idle(&choice.configs().unwrap(), threat)
        };
        let (linf, l1) = (untargeted(Norm::Linf), untargeted(Norm::L1));
        let kappa = ("pgd", "kappa", "5");
        assert_eq!(idle(&["pgd"], &[kappa], &linf), ["pgd.kappa has no effect: it is the confidence of loss=cw"]);
        assert_eq!(idle(&["pgd"], &[kappa, ("pgd", "loss", "cw")], &linf), [""; 0]);
        let sparsity = ("pgd", "sparsity", "0.5");
        assert_eq!(idle(&["paper-six"], &[sparsity], &linf), ["pgd.sparsity has no effect: it is for L1 only"]);
        assert_eq!(idle(&["pgd"], &[sparsity], &l1), [""; 0]);
        for (names, set) in [("fab-t", "fab-t"), ("apgd-t", "apgd-t"), ("autoattack-standard", "autoattack-standard")] {
            let targets = [(set, "targets", "3")];
            let expected = format!("{set}.targets has no effect: the goal names the class to aim at");
            assert_eq!(idle(&[names], &targets, &targeted), [expected]);
            assert_eq!(idle(&[names], &targets, &linf), [""; 0]);
        }
        let rho = ("apgd-ce", "rho", "0.5");
        assert_eq!(idle(&["apgd-ce"], &[rho], &l1), ["apgd-ce.rho has no effect: in L1, steps shrink by another rule"]);
        // Set on every member, it acts on one.
        assert_eq!(idle(&["autoattack-standard"], &[("autoattack-standard", "steps", "9")], &targeted), [""; 0]);
    }

    #[test]
    fn attacks_that_are_judged_apart_have_names_of_their_own() {
        let twice = |each| configs(&["paper-six", "pgd"], each, &[]);
        assert!(matches!(twice(true), Err(ConfigError::Twice { attack }) if attack == "pgd"));
        assert!(twice(false).is_ok(), "a suite and another attack");
    }
}
