//! The whole configuration of a distillation: what every method has and the method's own part, from TOML, from a profile,
//! a dataset and assignments of single keys.

use std::sync::Arc;

use c2r_data::DatasetSpec;
use c2r_train::{
    layers::{self, Assignment, KeyError},
    ranges::{count_or_none, in_range, positive},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error, ser::SerializeMap};
use toml::{Table, Value};

use crate::{
    config::{CommonConfig, CompanionConfig, LabelKind},
    cost::Work,
    error::ConfigError,
    method::{MethodConfig, MethodEntry, Sections},
    profiles,
    registry::METHODS,
};

/// The sections that methods share; a teacher is trained by them, too.
const SHARED: [&str; 2] = ["pool", "companions"];

/// How many networks a pool has, and how old they are.
const SIZES_OF_POOL: [&str; 4] = ["pool.trajectories", "pool.snapshots", "pool.min-steps", "pool.max-steps"];
/// How a pool changes from update to update.
const CHANGES_OF_POOL: [&str; 4] =
    ["pool.steps-per-iteration", "pool.networks-per-iteration", "pool.push-every", "pool.alive"];

/// Everything that decides what a distillation produces, except the data itself.
///
/// In TOML and JSON it is one table, without a trace of this division: a profile (`data/profiles/*.toml`) is one, with
/// comments. Unknown keys are errors.
#[derive(Clone, Debug)]
pub struct DistillConfig {
    /// What every method has.
    pub common: CommonConfig,
    /// What fills the synthetic set, with the sections that only it reads.
    pub method: Arc<dyn MethodConfig>,
}

impl DistillConfig {
    /// A profile ([`profiles::names`]) for a dataset, with changed keys: `("ipc", 10)`, `("pool.lr", 0.02)`.
    ///
    /// What the profile leaves open comes from the dataset (model, augmentation, radius, and `distill` in its entry),
    /// then from the images per class, as chosen on held-out images, and from the field. A learning rate of the images that
    /// the profile keeps constant stays so where `images.lr` is changed and `images.final-lr` is not. Sections that the method does
    /// not read are left out. `c2r distill` uses the same values.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key.
    pub fn resolve<K: Into<String>, V: Into<Value>>(
        profile: &str,
        spec: &DatasetSpec,
        changes: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ConfigError> {
        let changes: Vec<Assignment> = changes.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        let (config, _) = Self::resolve_with(METHODS, profiles::profile(profile)?, spec, &changes)?;
        Ok(config)
    }

    /// [`DistillConfig::resolve`] of a table in which `base` is expanded ([`profiles::expand`]), with the methods that
    /// there are: [`METHODS`], and those of other crates. Returns the names of the sections that were left out, too.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key.
    pub fn resolve_with(
        methods: &[MethodEntry],
        mut table: Table,
        spec: &DatasetSpec,
        changes: &[Assignment],
    ) -> Result<(Self, Vec<&'static str>), ConfigError> {
        let was = profiles::constant_rate(&table);
        layers::assign(&mut table, changes)?;
        if !changes.iter().any(|(key, _)| key == "images.final-lr" || key == "images") {
            profiles::keep_constant(&mut table, was);
        }
        let entry = table.get("method").and_then(|name| methods.iter().find(|entry| Some(entry.name) == name.as_str()));
        let has_teacher = table.contains_key("teacher");
        let unread = |section: &&'static str| {
            let read =
                |entry: &MethodEntry| entry.sections.contains(section) || (has_teacher && SHARED.contains(section));
            !entry.is_none_or(read)
        };
        let mut left_out: Vec<&'static str> = all_sections(methods).into_iter().filter(unread).collect();
        left_out.retain(|section| table.remove(*section).is_some());
        // A section that the method does not have gets no defaults either.
        let mut default = |key: &str, value: Value| match key.split_once('.') {
            Some((section, _)) if !table.contains_key(section) => Ok(()),
            _ => layers::put_default(&mut table, key, value),
        };
        default("model", Value::String(spec.model.clone()))?;
        default("threat.epsilon", Value::String(spec.epsilon.to_string()))?;
        default("dsa", Value::String(spec.dsa.to_string()))?;
        for section in ["pool"].iter().chain(entry.map_or(&[][..], |entry| entry.augmented)) {
            default(&format!("{section}.dsa"), Value::String(spec.dsa.to_string()))?;
        }
        for (key, value) in &spec.distill {
            default(key, value.clone())?;
        }
        let config = Self::from_table(methods, table)?;
        config.validate()?;
        Ok((config, left_out))
    }

    /// Reads a table that gives every key that has no default; checks nothing beyond types ([`DistillConfig::validate`]).
    ///
    /// # Errors
    /// [`ConfigError::Key`], [`ConfigError::SectionMissing`] and [`ConfigError::SectionUnused`].
    pub fn from_table(methods: &[MethodEntry], mut table: Table) -> Result<Self, ConfigError> {
        let name: String = match table.remove("method") {
            Some(Value::String(name)) => name,
            Some(other) => return Err(KeyError::new("method".to_owned(), format!("{other} is not a text")).into()),
            None => {
                return Err(KeyError::new(
                    ".".to_owned(),
                    "missing field `method`; to change a profile, begin with `base = \"faithful\"`, or another one"
                        .to_owned(),
                )
                .into());
            }
        };
        let entry = methods.iter().find(|entry| entry.name == name).ok_or_else(|| {
            let known: Vec<String> = methods.iter().map(|entry| format!("`{}`", entry.name)).collect();
            let reason = format!("unknown method `{name}`, expected one of {}", known.join(", "));
            KeyError::new("method".to_owned(), reason)
        })?;
        let method = entry.name;
        let mut own = Table::new();
        let sections = all_sections(methods);
        for section in sections.iter().filter(|section| !SHARED.contains(section)) {
            match (table.remove(*section), entry.sections.contains(section)) {
                (Some(value), true) => drop(own.insert((*section).to_owned(), value)),
                (Some(_), false) => return Err(ConfigError::SectionUnused { section, method }),
                (None, true) => return Err(ConfigError::SectionMissing { section, method }),
                (None, false) => {}
            }
        }
        let common: CommonConfig = layers::read(table).map_err(|error| {
            // The sections of methods are known keys, too.
            let is_top = error.reason.starts_with(&format!("unknown field `{}`", error.key));
            let own = sections.iter().filter(|section| !SHARED.contains(section));
            let known: String = own.map(|section| format!(", `{section}`")).collect();
            if is_top { KeyError::new(error.key, error.reason + &known) } else { error }
        })?;
        let method = (entry.read)(Sections { table: own, ipc: common.ipc })?;
        Ok(Self { common, method })
    }

    /// Checks everything that can be checked without data.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Self { common, method: own } = self;
        let (entry, method) = (own.entry(), own.entry().name);
        let needs = own.needs();
        let attacks = needs.attacks || common.pool.as_ref().is_some_and(|pool| pool.adversarial);
        for (section, is_there, needed) in
            [("pool", common.pool.is_some(), true), ("companions", common.companions.is_some(), attacks)]
        {
            let reads = entry.sections.contains(&section) || common.teacher.is_some();
            if is_there && !reads {
                return Err(ConfigError::SectionUnused { section, method });
            }
            if reads && needed && !is_there {
                return Err(ConfigError::SectionMissing { section, method });
            }
        }
        if !common.attacks.is_empty() && !needs.places {
            return Err(ConfigError::SectionUnused { section: "attacks", method });
        }
        common.validate()?;
        own.validate(common)?;
        let per_class = common.images.batch_per_class;
        in_range(
            needs.takes_batches || per_class == 0,
            "images.batch-per-class",
            "0 with every method but C²R",
            per_class,
        )?;
        match (&common.teacher, common.labels) {
            (None, LabelKind::Hard) if needs.teacher => Err(ConfigError::SectionMissing { section: "teacher", method }),
            (None, LabelKind::Hard) => Ok(()),
            (None, labels) => {
                let value = if labels == LabelKind::Soft { "soft" } else { "teacher" };
                let reason = "there is no [teacher] section, e.g. teacher = { steps = 1000, temperature = 1.0 }";
                Err(ConfigError::Conflict { key: "labels", value, reason })
            }
            (Some(_), LabelKind::Hard) if !needs.teacher => {
                let reason = "a [teacher] section has no effect then; remove it or choose soft or teacher labels";
                Err(ConfigError::Conflict { key: "labels", value: "hard", reason })
            }
            (Some(teacher), labels) => {
                positive("teacher.temperature", teacher.temperature)?;
                count_or_none("teacher.steps", teacher.steps)?;
                count_or_none("teacher.count", u64::from(teacher.count))?;
                let (most, expected) = match labels {
                    LabelKind::Soft => (u32::MAX, "at least 1"),
                    LabelKind::Hard | LabelKind::Teacher => (1, "1 unless labels = \"soft\""),
                };
                Ok(in_range((1..=most).contains(&teacher.count), "teacher.count", expected, teacher.count)?)
            }
        }
    }

    /// Keys that cannot act beside the others, or ask for more than is used, and why. Profiles have some of them; they matter
    /// to a user who sets one.
    pub fn idle(&self) -> Vec<(&'static str, &'static str)> {
        let mut idle = self.method.idle(&self.common);
        let needs = self.method.needs();
        if needs.selects {
            let keys = [
                "iterations",
                "dsa",
                "images.init",
                "images.optimizer",
                "images.lr",
                "images.final-lr",
                "images.space",
                "images.clamp",
            ];
            idle.extend(keys.map(|key| (key, "real images are chosen and left as they are")));
            if self.common.pool.is_none() {
                idle.push(("model", "no network is trained"));
            }
        }
        let trains_on_attacked = self.common.pool.as_ref().is_some_and(|pool| pool.adversarial);
        if !needs.attacks && !trains_on_attacked {
            idle.extend(["threat", "companions"].map(|key| (key, "nothing is attacked")));
        } else if !needs.places {
            let reason = "this method attacks every image afresh";
            idle.extend(["companions.warm-start", "companions.reuse"].map(|key| (key, reason)));
        }
        if matches!(&self.common.companions, Some(CompanionConfig::LsPgd(ls)) if ls.candidates == 1) {
            idle.push(("companions.growth", "companions.candidates = 1 tries one step length"));
        }
        if let Some(pool) = &self.common.pool {
            let attacks = pool.adversarial || self.method.needs().curriculum.needs_scores();
            if !attacks {
                idle.push(("attacks.pool", "no image that the pool is trained on is attacked (pool.adversarial)"));
            }
            let (serves_teacher, chooses) =
                (!self.method.entry().sections.contains(&"pool") || needs.teacher, needs.selects);
            if serves_teacher {
                let reason = "[pool] only says how the teacher is trained";
                idle.extend(SIZES_OF_POOL.iter().chain(&CHANGES_OF_POOL).map(|key| (*key, reason)));
            } else if chooses {
                let keys = ["pool.snapshots", "pool.min-steps"].into_iter().chain(CHANGES_OF_POOL);
                idle.extend(keys.map(|key| (key, "one network, trained once for pool.max-steps, chooses the images")));
            }
            if pool.steps_per_iteration == 0 && !serves_teacher && !chooses {
                idle.push((
                    "pool.networks-per-iteration",
                    "an update trains them for pool.steps-per-iteration = 0 steps",
                ));
            }
            if pool.push_every == 0 && !serves_teacher && !chooses {
                idle.push(("pool.alive", "networks are replaced by age (pool.push-every = 0)"));
            }
        }
        idle
    }

    /// The passes of a whole run on `n_classes` classes and `n_train` training images.
    pub fn work(&self, n_classes: usize, n_train: usize) -> Work {
        let Self { common, method } = self;
        let mut total = Work::default();
        if let (Some(teacher), Some(pool)) = (&common.teacher, &common.pool) {
            let steps = teacher.steps as f64 * f64::from(teacher.count);
            total.add_training(common, pool, &method.needs().curriculum, steps, n_train);
        }
        method.add_work(common, n_classes, n_train, &mut total);
        total
    }

    /// The name that tables use.
    pub fn label(&self) -> &str {
        self.common.name.as_deref().unwrap_or_else(|| self.method.label())
    }
}

/// The sections that some methods read, each once.
fn all_sections(methods: &[MethodEntry]) -> Vec<&'static str> {
    let mut all = Vec::new();
    for section in methods.iter().flat_map(|entry| entry.sections) {
        if !all.contains(section) {
            all.push(*section);
        }
    }
    all
}

impl PartialEq for DistillConfig {
    fn eq(&self, other: &Self) -> bool {
        Value::try_from(self).ok() == Value::try_from(other).ok()
    }
}

impl Serialize for DistillConfig {
    /// The keys are in the order of the profiles, which is that of the header of every set.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let common = &self.common;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("profile", &common.profile)?;
        common.name.iter().try_for_each(|name| map.serialize_entry("name", name))?;
        map.serialize_entry("method", self.method.entry().name)?;
        map.serialize_entry("ipc", &common.ipc)?;
        map.serialize_entry("iterations", &common.iterations)?;
        map.serialize_entry("seed", &common.seed)?;
        common.train_per_class.iter().try_for_each(|n| map.serialize_entry("train-per-class", n))?;
        map.serialize_entry("model", &common.model)?;
        map.serialize_entry("dsa", &common.dsa)?;
        map.serialize_entry("threat", &common.threat)?;
        map.serialize_entry("images", &common.images)?;
        common.pool.iter().try_for_each(|pool| map.serialize_entry("pool", pool))?;
        common.companions.iter().try_for_each(|companions| map.serialize_entry("companions", companions))?;
        if !common.attacks.is_empty() {
            map.serialize_entry("attacks", &common.attacks)?;
        }
        for (name, section) in self.method.sections() {
            map.serialize_entry(name, section)?;
        }
        map.serialize_entry("labels", &common.labels)?;
        common.teacher.iter().try_for_each(|teacher| map.serialize_entry("teacher", teacher))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for DistillConfig {
    /// With the methods of this crate.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_table(METHODS, Table::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
