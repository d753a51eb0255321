//! Which attacks an evaluation runs, with which options.

use c2r_base::Norm;

use crate::{
    attack::{Attack, Family},
    error::ConfigError,
    registry::AttackConfig,
};

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
    /// Options of one attack, or of one attack of a suite: attack, name and value.
    pub set: &'a [(String, String, String)],
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
        for (attack, option, value) in self.set {
            let mut is_known = false;
            for config in &mut configs {
                // A suite as a whole, or the members of one.
                let members = match config {
                    AttackConfig::Suite(suite) if suite.name != *attack => &mut suite.attacks[..],
                    other => std::slice::from_mut(other),
                };
                for config in members.iter_mut().filter(|config| config.name() == attack) {
                    config.set(option, value)?;
                    is_known = true;
                }
            }
            if !is_known {
                return Err(ConfigError::NotChosen { attack: attack.clone(), option: option.clone() });
            }
        }
        match (1..configs.len()).find(|&at| configs[..at].contains(&configs[at])) {
            Some(at) => Err(ConfigError::Twice { attack: configs[at].name().to_owned() }),
            None => Ok(configs),
        }
    }

    /// One note for each suite of `configs` whose options were changed, so that its name does not describe it.
    pub fn changed_suites(&self, configs: &[AttackConfig]) -> Vec<String> {
        let common = self.options.iter().map(|(option, value)| format!("{option}={value}"));
        let own = self.set.iter().map(|(attack, option, value)| format!("{attack}.{option}={value}"));
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

/// Whether an attack, or one of a suite's, follows gradients.
pub fn needs_gradient(attack: &dyn Attack) -> bool {
    match attack.stages() {
        Some(stages) => stages.iter().any(|stage| needs_gradient(stage.as_ref())),
        None => matches!(attack.family(), Family::Gradient | Family::MinimumNorm),
    }
}
