//! In which settings configurations differ.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// What a row's runs hold at one setting: JSON texts, and `nothing` where a configuration has no such key.
type Held = BTreeSet<String>;

/// The settings that a protocol has otherwise for a whole real training set (`[full-data]` in `data/protocols`, and what
/// `--lr` changes).
pub(super) const OF_FULL_DATA: [&str; 3] = ["length", "lr", "lr-schedule"];

/// Every setting apart from seeds in which `configs` differ, with what they hold there: `lr: 0.01, 0.05; ...`.
pub(super) fn differences<'a>(configs: impl Iterator<Item = &'a Value>) -> Option<String> {
    let differing: Vec<String> = held(configs)
        .into_iter()
        .filter(|(_, values)| values.len() > 1)
        .map(|(key, values)| format!("{key}: {}", values.into_iter().collect::<Vec<_>>().join(", ")))
        .collect();
    (!differing.is_empty()).then(|| differing.join("; "))
}

/// Every setting in which the trainings of a section's rows differ, with the rows that hold each value:
/// `lr: 0.01 (dm), 0.05 (c2r)`.
pub(super) fn differences_of_rows(rows: &[(String, Vec<Value>)]) -> Option<String> {
    let rows: Vec<(&str, BTreeMap<String, Held>)> = rows
        .iter()
        .filter(|(_, configs)| !configs.is_empty())
        .map(|(name, configs)| (name.as_str(), held(configs.iter())))
        .collect();
    let keys: BTreeSet<&String> = rows.iter().flat_map(|(_, settings)| settings.keys()).collect();
    let nothing = Held::from([NOTHING.to_owned()]);
    let mut differing = Vec::new();
    for key in keys {
        let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, settings) in &rows {
            for value in settings.get(key).unwrap_or(&nothing) {
                names.entry(value).or_default().push(name);
            }
        }
        if names.values().any(|holders| holders.len() < rows.len()) {
            let values = names.into_iter().map(|(value, holders)| format!("{value} ({})", holders.join(", ")));
            differing.push(format!("{key}: {}", values.collect::<Vec<_>>().join(", ")));
        }
    }
    (!differing.is_empty()).then(|| differing.join("; "))
}

/// What a configuration holds at a key that it lacks.
const NOTHING: &str = "nothing";

/// What `configs` hold at each setting, by its path (`length.steps`).
fn held<'a>(configs: impl Iterator<Item = &'a Value>) -> BTreeMap<String, Held> {
    let settings: Vec<BTreeMap<String, String>> = configs
        .map(|config| {
            let mut settings = BTreeMap::new();
            flatten(config, String::new(), &mut settings);
            settings
        })
        .collect();
    let keys: BTreeSet<&String> = settings.iter().flat_map(BTreeMap::keys).collect();
    let values = |key: &String| {
        settings.iter().map(|settings| settings.get(key).cloned().unwrap_or_else(|| NOTHING.to_owned())).collect()
    };
    keys.into_iter().map(|key| (key.clone(), values(key))).collect()
}

/// The settings below `at`, without seeds.
fn flatten(value: &Value, at: String, settings: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object.iter().filter(|(key, _)| !key.ends_with("seed")) {
                flatten(value, if at.is_empty() { key.clone() } else { format!("{at}.{key}") }, settings);
            }
        }
        _ => {
            settings.insert(at, value.to_string());
        }
    }
}

/// The configuration of a training without what was trained on, which differs from run to run; the protocol's settings
/// by the names that `--set` has for them. A learning rate that came with each set is `learned`, whatever the number.
pub(super) fn of_training(config: &Value) -> Value {
    let mut settings = config.clone();
    if let Some(settings) = settings.as_object_mut() {
        settings.retain(|key, _| !["subject", "images_sha256"].contains(&key.as_str()));
        if let Some(Value::Object(protocol)) = settings.remove("train") {
            settings.extend(protocol);
        }
        if settings.remove("lr_is_learned").is_some() {
            settings.insert("lr".to_owned(), "learned".into());
        }
    }
    settings
}

/// Names and versions of programs, or float formats by what is computed in them, separated by commas.
pub(super) fn named(values: &BTreeMap<String, String>) -> String {
    values.iter().map(|(name, version)| format!("{name} {version}")).collect::<Vec<_>>().join(", ")
}
