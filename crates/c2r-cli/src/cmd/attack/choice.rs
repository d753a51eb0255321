//! Which attacks run, with which options.

use anyhow::Context;
use c2r_attacks::{AttackConfig, Choice, ConfigError, Setting};
use c2r_base::ThreatModel;

use super::args::Args;

/// The options of all attacks and those of one that the command line gives.
struct Given {
    options: Vec<(String, String)>,
    set: Vec<Setting>,
}

impl Given {
    fn of(args: &Args) -> anyhow::Result<Self> {
        let set = args.set.iter().map(|assignment| {
            let wrong = || format!("`--set {assignment}` does not have the form ATTACK.OPTION=VALUE");
            let (key, value) = assignment.split_once('=').with_context(wrong)?;
            let (attack, option) = key.split_once('.').with_context(wrong)?;
            Ok(Setting { attack: attack.to_owned(), option: option.to_owned(), value: value.to_owned() })
        });
        Ok(Self { options: common_options(args), set: set.collect::<anyhow::Result<_>>()? })
    }

    fn choice<'a>(&'a self, args: &'a Args) -> Choice<'a> {
        Choice { names: &args.attack, norm: args.norm, each: args.each, options: &self.options, set: &self.set }
    }
}

/// The attacks with their options.
pub(super) fn configs(args: &Args) -> anyhow::Result<Vec<AttackConfig>> {
    let given = Given::of(args)?;
    given.choice(args).configs().map_err(|error| match &error {
        ConfigError::NotChosen { attack, option } => {
            let assignment = format!("{attack}.{option}=");
            let assignment = args.set.iter().find(|set| set.starts_with(&assignment)).unwrap_or(&assignment);
            anyhow::anyhow!("`--set {assignment}` names an attack that is neither in --attack nor in one of its suites")
        }
        ConfigError::Twice { attack } => anyhow::anyhow!("--attack names `{attack}` twice"),
        _ => error.into(),
    })
}

/// Options that apply to every attack.
fn common_options(args: &Args) -> Vec<(String, String)> {
    let all = [
        ("steps", &args.steps),
        ("step-size", &args.step_size),
        ("random-start", &args.random_start),
        ("queries", &args.queries),
        ("restarts", &args.restarts),
    ];
    all.into_iter().filter_map(|(option, value)| Some((option.to_owned(), value.clone()?))).collect()
}

/// One note for each suite whose options were changed, so that its name does not describe it.
pub(super) fn changed_suites(args: &Args, configs: &[AttackConfig]) -> Vec<String> {
    Given::of(args).map_or_else(|_| Vec::new(), |given| given.choice(args).changed_suites(configs))
}

/// One note for each given option that has no effect.
pub(super) fn idle(args: &Args, configs: &[AttackConfig], threat: &ThreatModel) -> Vec<String> {
    Given::of(args).map_or_else(|_| Vec::new(), |given| given.choice(args).idle(configs, threat))
}
