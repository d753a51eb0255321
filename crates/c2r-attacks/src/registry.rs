//! Every attack of this crate by name: one line of [`AttackConfig`] each.

use std::str::FromStr;

use c2r_base::{Classifier, Epsilon, Goal, Norm, Passes, Seed, ThreatModel};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    attack::{Attack, AttackBatch, Family, Perturbed},
    attacks::{
        iterative::{FixedSteps, Iterative},
        suite::Suite,
        *,
    },
    error::{AttackError, ConfigError},
    options::{Check, LossKind, Options, Search, Task},
    oracle::unhurried,
};

/// Gradients per step of the `-rand` suite. Croce & Hein 2020 (arXiv:2003.01690), section 6.
const RAND_SAMPLES: u32 = 20;
/// Restarts of the untargeted attacks in `autoattack-plus`. Croce & Hein 2020, their code.
const PLUS_RESTARTS: u32 = 5;
/// The suite whose options depend on the norm.
const STANDARD: &str = "autoattack-standard";
/// Restarts of APGD-CE in `autoattack-standard` for L1. Croce & Hein 2021 (arXiv:2103.01208), their code.
const L1_RESTARTS: u32 = 5;
/// Target classes of APGD-T in `autoattack-standard` for L1. Croce & Hein 2021, their code.
const L1_TARGETS: u32 = 5;
/// The options of [`STANDARD`] that depend on the norm: member and option.
const BY_NORM: [(&str, &str); 2] = [("apgd-ce", "restarts"), ("apgd-t", "targets")];
/// Step size of the iterative attacks in `paper-six`, in 255ths of the pixel range, at every epsilon.
/// DD-RobustBench, its attack table.
const PAPER_STEP_255: f64 = 2.0;
/// Neighbours of VMI-FGSM in `paper-six`. DD-RobustBench (torchattacks' default).
const PAPER_NEIGHBOURS: u32 = 5;

/// Several attacks, each on what the ones before it left.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SuiteConfig {
    /// Name in reports.
    pub name: String,
    /// In this order.
    pub attacks: Vec<AttackConfig>,
    /// The norm that the members' options are for, where the authors of the suite use others in another norm. Linf stands for
    /// L2, too: no suite tells these two apart. `None` for any norm, as where somebody chose those options. It is not written:
    /// a suite that is read from a file has the options that its writer chose.
    #[serde(skip)]
    pub norm: Option<Norm>,
}

/// Suites are equal that run the same attacks; `norm` only says where one is refused.
impl PartialEq for SuiteConfig {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.attacks) == (&other.name, &other.attacks)
    }
}

/// Declares [`AttackConfig`]. `fixed` are the attacks with fixed steps, whose options are [`FixedSteps`]; those of the
/// others are [`Options`].
macro_rules! registry {
    (
        floors { $($first:ident $first_name:literal $first_options:ident;)* }
        fixed { $($fixed:ident $fixed_name:literal $fixed_options:ident;)* }
        others { $($other:ident $other_name:literal $other_options:ident;)* }
    ) => {
        /// One attack with its options. In TOML and JSON a table with the key `attack` and the options in
        /// kebab case; an option that the attack does not have is an error. From text by name, with its defaults; for L1, use
        /// [`AttackConfig::named_for`], because `autoattack-standard` has other options there.
        ///
        /// ```
        /// use c2r_attacks::AttackConfig;
        /// let mut pgd: AttackConfig = "pgd".parse().unwrap();
        /// pgd.set("steps", "20").unwrap();
        /// pgd.set("step-size", "2/255").unwrap();
        /// assert!("fgsm".parse::<AttackConfig>().unwrap().set("steps", "20").is_err());
        /// ```
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "attack")]
        #[expect(missing_docs, reason = "each variant is documented at its options")]
        pub enum AttackConfig {
            $(#[serde(rename = $first_name)] $first($first_options),)*
            $(#[serde(rename = $fixed_name)] $fixed($fixed_options),)*
            $(#[serde(rename = $other_name)] $other($other_options),)*
            #[serde(rename = "suite")]
            Suite(SuiteConfig),
        }

        /// Every single attack, in the order of docs/attacks.
        pub const ATTACKS: &[&str] = &[$($first_name,)* $($fixed_name,)* $($other_name,)*];

        impl AttackConfig {
            fn with_defaults(name: &str) -> Option<Self> {
                match name {
                    $($first_name => Some(Self::$first(Default::default())),)*
                    $($fixed_name => Some(Self::$fixed(Default::default())),)*
                    $($other_name => Some(Self::$other(Default::default())),)*
                    _ => None,
                }
            }

            /// The name it was asked for by.
            pub fn name(&self) -> &str {
                match self {
                    $(Self::$first(_) => $first_name,)*
                    $(Self::$fixed(_) => $fixed_name,)*
                    $(Self::$other(_) => $other_name,)*
                    Self::Suite(suite) => &suite.name,
                }
            }

            /// The attack itself, if it takes fixed steps.
            pub(crate) fn iterative(&self) -> Result<Option<Iterative>, ConfigError> {
                match self {
                    $(Self::$fixed(options) => options.iterative($fixed_name).map(Some),)*
                    _ => Ok(None),
                }
            }

            /// Checks every value and makes the attack.
            ///
            /// # Errors
            /// [`ConfigError::Option`] for a value out of its range.
            pub fn build(&self) -> Result<Box<dyn Attack>, ConfigError> {
                let (name, search): (_, Box<dyn Search>) = match self {
                    $(Self::$first(options) => ($first_name, options.build($first_name)?),)*
                    $(Self::$fixed(options) => ($fixed_name, Box::new(options.iterative($fixed_name)?)),)*
                    $(Self::$other(options) => ($other_name, options.build($other_name)?),)*
                    Self::Suite(suite) => return suite.build(Value::Object(self.fields())),
                };
                Ok(Box::new(Single { name, options: Value::Object(self.fields()), search }))
            }

            /// Passes per sample that no attack stops early on, for estimates of time, under `threat` on a model with
            /// `classes` classes; forward passes that a backward pass follows included. Judging is not. Every pass counts as
            /// one of a single image.
            pub fn passes(&self, threat: &ThreatModel, classes: u64) -> Passes {
                match self {
                    $(Self::$first(options) => options.passes(threat, classes),)*
                    $(Self::$other(options) => options.passes(threat, classes),)*
                    Self::Suite(suite) => suite.attacks.iter().map(|attack| attack.passes(threat, classes)).sum(),
                    _ => self.iterative().ok().flatten().map_or_else(Passes::default, |attack| attack.passes()),
                }
            }
        }
    };
}

registry! {
    floors {
        Clean "clean" CleanConfig;
        Noise "noise" NoiseConfig;
    }
    fixed {
        Fgsm "fgsm" FgsmConfig;
        RFgsm "r-fgsm" RFgsmConfig;
        Bim "bim" BimConfig;
        Pgd "pgd" PgdConfig;
        MiFgsm "mi-fgsm" MiFgsmConfig;
        NiFgsm "ni-fgsm" NiFgsmConfig;
        VmiFgsm "vmi-fgsm" VmiFgsmConfig;
        VniFgsm "vni-fgsm" VmiFgsmConfig;
        Tpgd "tpgd" TpgdConfig;
        EotPgd "eot-pgd" EotPgdConfig;
        Jitter "jitter" JitterConfig;
        CwLinf "cw-linf" CwLinfConfig;
    }
    others {
        ApgdCe "apgd-ce" ApgdConfig;
        ApgdDlr "apgd-dlr" ApgdConfig;
        ApgdT "apgd-t" ApgdTConfig;
        DeepFool "deepfool" DeepFoolConfig;
        CwL2 "cw-l2" CwL2Config;
        Fab "fab" FabConfig;
        FabT "fab-t" FabTConfig;
        Square "square" SquareConfig;
    }
}

/// Every suite.
pub const SUITES: [&str; 4] = ["paper-six", "autoattack-standard", "autoattack-plus", "autoattack-rand"];

impl SuiteConfig {
    /// A suite of [`SUITES`]; `paper-six` carries the parameters of the DD-RobustBench protocol
    /// (docs/attacks/suites.md).
    fn named(name: &str) -> Option<Self> {
        let attacks = match name {
            "autoattack-standard" => vec![
                AttackConfig::ApgdCe(ApgdConfig::default()),
                AttackConfig::ApgdT(ApgdTConfig::default()),
                AttackConfig::FabT(FabTConfig { minimize: false, ..FabTConfig::default() }),
                AttackConfig::Square(SquareConfig::default()),
            ],
            "autoattack-plus" => {
                let many = ApgdConfig { restarts: PLUS_RESTARTS, ..ApgdConfig::default() };
                vec![
                    AttackConfig::ApgdCe(many.clone()),
                    AttackConfig::ApgdDlr(many),
                    AttackConfig::Fab(FabConfig { restarts: PLUS_RESTARTS, minimize: false, ..FabConfig::default() }),
                    AttackConfig::Square(SquareConfig::default()),
                    AttackConfig::ApgdT(ApgdTConfig::default()),
                    AttackConfig::FabT(FabTConfig { minimize: false, ..FabTConfig::default() }),
                ]
            }
            "autoattack-rand" => {
                let averaged = ApgdConfig { samples: RAND_SAMPLES, ..ApgdConfig::default() };
                vec![AttackConfig::ApgdCe(averaged.clone()), AttackConfig::ApgdDlr(averaged)]
            }
            "paper-six" => {
                let step_size = Some(Epsilon::of_255(PAPER_STEP_255));
                let neighbours = PAPER_NEIGHBOURS;
                vec![
                    AttackConfig::Fgsm(FgsmConfig::default()),
                    AttackConfig::Pgd(PgdConfig { step_size, ..PgdConfig::default() }),
                    AttackConfig::CwLinf(CwLinfConfig { step_size, ..CwLinfConfig::default() }),
                    AttackConfig::VmiFgsm(VmiFgsmConfig { step_size, neighbours, ..VmiFgsmConfig::default() }),
                    AttackConfig::Jitter(JitterConfig { step_size, ..JitterConfig::default() }),
                    AttackConfig::Suite(Self::named("autoattack-standard").expect("defined above")),
                ]
            }
            _ => return None,
        };
        let norm = (name == STANDARD).then_some(Norm::Linf);
        Some(Self { name: name.to_owned(), attacks, norm })
    }

    /// Notes that somebody chose an option of a member: if it is one that depends on the norm, the choice counts in all.
    pub(crate) fn note_choice(&mut self, member: &str, option: &str) {
        if BY_NORM.contains(&(member, option)) {
            self.norm = None;
        }
    }

    fn build(&self, options: Value) -> Result<Box<dyn Attack>, ConfigError> {
        if self.attacks.is_empty() {
            return Err(ConfigError::Option {
                attack: self.name.clone(),
                option: "attacks".to_owned(),
                reason: "a suite needs at least one attack".to_owned(),
            });
        }
        let stages = self.attacks.iter().map(AttackConfig::build).collect::<Result<_, _>>()?;
        let norms = self.norm.map(|norm| match norm {
            Norm::L1 => [Norm::L1].as_slice(),
            Norm::Linf | Norm::L2 => &[Norm::Linf, Norm::L2],
        });
        Ok(Box::new(Suite { name: self.name.clone(), options, stages, norms }))
    }
}

impl FromStr for AttackConfig {
    type Err = ConfigError;

    /// An attack or suite of [`ATTACKS`] or [`SUITES`] with its defaults, which are those for Linf and L2. For L1, use
    /// [`AttackConfig::named_for`]: an evaluation refuses an `autoattack-standard` that is made for another norm.
    fn from_str(name: &str) -> Result<Self, ConfigError> {
        let suite = || SuiteConfig::named(name).map(Self::Suite);
        Self::with_defaults(name).or_else(suite).ok_or_else(|| ConfigError::UnknownAttack {
            name: name.to_owned(),
            known: ATTACKS.iter().chain(&SUITES).copied().collect::<Vec<_>>().join(" "),
        })
    }
}

impl AttackConfig {
    /// The attack of this name with what the authors of a suite use for `norm`: `autoattack-standard`, also as a member of
    /// `paper-six`, takes five restarts of APGD-CE and five targets of APGD-T in L1 (Croce & Hein 2021, arXiv:2103.01208,
    /// section 5). The other suites are the same in all norms.
    ///
    /// # Errors
    /// [`ConfigError::UnknownAttack`].
    pub fn named_for(name: &str, norm: Norm) -> Result<Self, ConfigError> {
        let mut config: Self = name.parse()?;
        if norm == Norm::L1 {
            config.for_l1();
        }
        Ok(config)
    }

    fn for_l1(&mut self) {
        let Self::Suite(suite) = self else { return };
        let standard = suite.name == STANDARD;
        if standard {
            suite.norm = Some(Norm::L1);
        }
        for member in &mut suite.attacks {
            match member {
                Self::ApgdCe(apgd) if standard => apgd.restarts = L1_RESTARTS,
                Self::ApgdT(apgd) if standard => apgd.targets = L1_TARGETS,
                Self::Suite(_) => member.for_l1(),
                _ => {}
            }
        }
    }

    /// Names of the options, in the order of the documentation; a suite has those of its members, sorted.
    pub fn options(&self) -> Vec<String> {
        match self {
            Self::Suite(suite) => {
                let all: std::collections::BTreeSet<String> = suite.attacks.iter().flat_map(Self::options).collect();
                all.into_iter().collect()
            }
            _ => self.fields().keys().filter(|key| *key != "attack").cloned().collect(),
        }
    }

    fn fields(&self) -> serde_json::Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            _ => unreachable!("an attack is a table"),
        }
    }

    /// Whether [`AttackConfig::set`] would know this option.
    pub fn has_option(&self, option: &str) -> bool {
        self.options().iter().any(|known| known == option)
    }

    /// Options that have no effect beside the others and in `threat`, whatever their values, and why. A suite has none of its
    /// own; ask its members.
    pub fn idle(&self, threat: &ThreatModel) -> Vec<(&'static str, &'static str)> {
        let (is_l1, is_targeted) = (threat.norm == Norm::L1, threat.goal != Goal::Untargeted);
        let rho = (is_l1, "rho", "in L1, steps shrink by another rule");
        let targets = (is_targeted, "targets", "the goal names the class to aim at");
        let all = match self {
            Self::Pgd(pgd) => vec![
                (pgd.loss != LossKind::Cw, "kappa", "it is the confidence of loss=cw"),
                (!is_l1, "sparsity", "it is for L1 only"),
            ],
            Self::ApgdCe(_) | Self::ApgdDlr(_) => vec![rho],
            Self::ApgdT(_) => vec![rho, targets],
            Self::FabT(_) => vec![targets],
            _ => Vec::new(),
        };
        all.into_iter().filter(|(is_idle, ..)| *is_idle).map(|(_, option, reason)| (option, reason)).collect()
    }

    /// Sets one option from its text, as on a command line: `steps` to `20`, `step-size` to `2/255`. On a
    /// suite it is set on every member that has it.
    ///
    /// # Errors
    /// [`ConfigError::UnknownOption`] or [`ConfigError::Option`]; nothing is changed then.
    pub fn set(&mut self, option: &str, text: &str) -> Result<(), ConfigError> {
        let mut changed = self.clone();
        changed.assign(option, text)?;
        *self = changed;
        Ok(())
    }

    /// [`AttackConfig::set`], but an error may leave a part of the change.
    fn assign(&mut self, option: &str, text: &str) -> Result<(), ConfigError> {
        let known = self.options();
        if !known.iter().any(|name| name == option) {
            return Err(ConfigError::UnknownOption {
                attack: self.name().to_owned(),
                option: option.to_owned(),
                known: if known.is_empty() { "none".to_owned() } else { known.join(", ") },
            });
        }
        if let Self::Suite(suite) = self {
            let members = suite.attacks.iter_mut().filter(|member| member.has_option(option));
            let mut chosen = Vec::new();
            for member in members {
                member.assign(option, text)?;
                chosen.push(member.name().to_owned());
            }
            chosen.iter().for_each(|member| suite.note_choice(member, option));
            return Ok(());
        }
        let mut fields = self.fields();
        // Numbers and booleans are read as such; `2/255` and names stay texts.
        let value = if option == "step-size" {
            Value::String(text.to_owned())
        } else {
            serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
        };
        fields.insert(option.to_owned(), value);
        *self = serde_json::from_value(Value::Object(fields)).map_err(|error| ConfigError::Option {
            attack: self.name().to_owned(),
            option: option.to_owned(),
            reason: error.to_string(),
        })?;
        self.build().map(drop)
    }
}

/// An attack of this crate, with the options that it was made from.
struct Single {
    name: &'static str,
    options: Value,
    search: Box<dyn Search>,
}

impl Attack for Single {
    fn name(&self) -> &str {
        self.name
    }

    fn family(&self) -> Family {
        self.search.family()
    }

    fn check(&self, threat: &ThreatModel, classes: i64) -> Result<(), ConfigError> {
        self.search.check(&Check(self.name), threat, classes)
    }

    fn perturb(
        &self,
        model: &dyn Classifier,
        batch: &AttackBatch<'_>,
        threat: &ThreatModel,
        seed: Seed,
    ) -> Result<Perturbed, AttackError> {
        let task = Task { batch, threat, seed };
        let (images, oracle) = unhurried(model, self.name, batch.ids, |oracle| self.search.search(oracle, &task))?;
        Ok(oracle.finish(images))
    }

    fn options(&self) -> Option<Value> {
        Some(self.options.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_builds_and_round_trips() {
        for name in ATTACKS.iter().chain(&SUITES) {
            let config = name.parse::<AttackConfig>().unwrap();
            assert_eq!(config.name(), *name);
            assert_eq!(config.build().unwrap().name(), *name);
            let text = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<AttackConfig>(&text).unwrap(), config, "{text}");
        }
        assert!("pgdd".parse::<AttackConfig>().err().unwrap().to_string().contains("apgd-ce"));
    }

    #[test]
    fn unknown_options_are_errors_everywhere() {
        for name in ATTACKS {
            let text = format!(r#"{{"attack": "{name}", "stpes": 3}}"#);
            let error = serde_json::from_str::<AttackConfig>(&text).unwrap_err().to_string();
            assert!(error.contains("stpes"), "{name}: {error}");
            let error = name.parse::<AttackConfig>().unwrap().set("stpes", "3").unwrap_err().to_string();
            assert!(error.contains("has no option `stpes`"), "{name}: {error}");
        }
        let error = "fgsm".parse::<AttackConfig>().unwrap().set("steps", "3").unwrap_err().to_string();
        assert_eq!(error, "attack `fgsm` has no option `steps`; it has: loss");
    }

    #[test]
    fn values_are_checked() {
        for (name, option, value) in [
            ("pgd", "steps", "0"),
            ("apgd-ce", "steps", "4294967295"),
            ("pgd", "steps", "-1"),
            ("pgd", "steps", "x"),
            ("pgd", "step-size", "0"),
            ("pgd", "rel-step-size", "-1"),
            ("pgd", "random-start", "maybe"),
            ("pgd", "loss", "mse"),
            ("square", "queries", "0"),
            ("square", "p-init", "1.5"),
            ("vmi-fgsm", "beta", "0"),
            ("apgd-t", "targets", "0"),
            ("fab", "eta", "0.5"),
        ] {
            let error = name.parse::<AttackConfig>().unwrap().set(option, value).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(option), "{error}");
        }
        let mut both = "pgd".parse::<AttackConfig>().unwrap();
        both.set("step-size", "2/255").unwrap();
        assert!(both.set("rel-step-size", "0.5").unwrap_err().to_string().contains("together"));
    }

    #[test]
    fn an_error_changes_nothing() {
        for (name, option, value) in [("pgd", "steps", "0"), ("autoattack-standard", "restarts", "0")] {
            let mut config = name.parse::<AttackConfig>().unwrap();
            let before = config.clone();
            assert!(config.set(option, value).is_err());
            assert_eq!(config, before, "{name}");
        }
        let fab = AttackConfig::Fab(FabConfig::default());
        let pgd = AttackConfig::Pgd(PgdConfig { rel_step_size: Some(0.5), ..PgdConfig::default() });
        let bim = AttackConfig::Bim(BimConfig::default());
        let suite = SuiteConfig { name: "own".to_owned(), attacks: vec![bim, fab, pgd], norm: None };
        let mut suite = AttackConfig::Suite(suite);
        let before = suite.clone();
        assert!(suite.set("step-size", "2/255").is_err(), "it excludes the last member's rel-step-size");
        assert_eq!(suite, before, "the first member is not changed either");
    }

    #[test]
    fn a_suite_passes_options_on() {
        let mut suite = "autoattack-standard".parse::<AttackConfig>().unwrap();
        suite.set("queries", "7").unwrap();
        let AttackConfig::Suite(SuiteConfig { attacks, .. }) = &suite else { unreachable!() };
        assert!(matches!(attacks.last(), Some(AttackConfig::Square(SquareConfig { queries: 7, .. }))));
        assert!(suite.set("decay", "0.5").is_err());
    }
}
