//! Which attacks run, with which options.

use anyhow::Context;
use c2r_attacks::AttackConfig;

use super::args::Args;

/// The suite that is a list of columns and not one attack.
const PAPER_SUITE: &str = "paper-six";

/// The attacks with their options.
pub(super) fn configs(args: &Args) -> anyhow::Result<Vec<AttackConfig>> {
    let mut configs: Vec<AttackConfig> =
        args.attack.iter().map(|name| AttackConfig::named_for(name.trim(), args.norm)).collect::<Result<_, _>>()?;
    if args.each {
        // The paper's table has a column for each of them.
        let members = |config| match config {
            AttackConfig::Suite(suite) if suite.name == PAPER_SUITE => suite.attacks,
            other => vec![other],
        };
        configs = configs.into_iter().flat_map(members).collect();
    }
    for (option, value) in common_options(args) {
        for config in &mut configs {
            config.set(option, value)?;
        }
    }
    for assignment in &args.set {
        let wrong = || format!("`--set {assignment}` is not ATTACK.OPTION=VALUE");
        let (key, value) = assignment.split_once('=').with_context(wrong)?;
        let (name, option) = key.split_once('.').with_context(wrong)?;
        let mut is_known = false;
        for config in &mut configs {
            // A suite as a whole, or the members of one.
            let members = match config {
                AttackConfig::Suite(suite) if suite.name != name => &mut suite.attacks[..],
                other => std::slice::from_mut(other),
            };
            for config in members.iter_mut().filter(|config| config.name() == name) {
                config.set(option, value)?;
                is_known = true;
            }
        }
        anyhow::ensure!(is_known, "`--set {assignment}` names an attack that is not among --attack or in its suites");
    }
    for (at, config) in configs.iter().enumerate() {
        anyhow::ensure!(!configs[..at].contains(config), "--attack names `{}` twice", config.name());
    }
    Ok(configs)
}

/// Options that apply to every attack.
fn common_options(args: &Args) -> impl Iterator<Item = (&'static str, &str)> {
    let all = [
        ("steps", &args.steps),
        ("step-size", &args.step_size),
        ("random-start", &args.random_start),
        ("queries", &args.queries),
        ("restarts", &args.restarts),
    ];
    all.into_iter().filter_map(|(option, value)| Some((option, value.as_deref()?)))
}

/// One note for each suite whose options were changed, so that its name does not describe it.
pub(super) fn changed_suites(args: &Args, configs: &[AttackConfig]) -> Vec<String> {
    let common = common_options(args).map(|(option, value)| format!("{option}={value}"));
    let given: Vec<String> = common.chain(args.set.iter().cloned()).collect();
    let suites = configs.iter().filter(|config| matches!(config, AttackConfig::Suite(_)));
    suites
        .filter(|config| AttackConfig::named_for(config.name(), args.norm).is_ok_and(|standard| standard != **config))
        .map(|config| {
            format!("{} is changed and not comparable with others' numbers: {}", config.name(), given.join(", "))
        })
        .collect()
}
