//! What all experiments share: methods, and defaults of scales.

use toml::{Table, Value};

/// Adds what `common` says and `file` does not; see [`crate::Experiment`].
pub(crate) fn merge(file: &mut Table, common: Table, schema_version: u32) -> Result<(), String> {
    for (key, value) in common {
        match (key.as_str(), value) {
            ("schema_version", version) if version == Value::Integer(i64::from(schema_version)) => {}
            ("schema_version", version) => {
                return Err(format!("schema_version is {version}, this c2r reads {schema_version}"));
            }
            ("methods", Value::Table(methods)) => {
                if let Value::Table(own) = file.entry("methods").or_insert_with(|| Value::Table(Table::new())) {
                    for (name, method) in methods {
                        own.entry(name).or_insert(method);
                    }
                }
            }
            ("scales", Value::Table(scales)) => {
                let Some(Value::Table(own)) = file.get_mut("scales") else { continue };
                for (name, defaults) in scales {
                    if let (Some(Value::Table(scale)), Value::Table(defaults)) = (own.get_mut(&name), defaults) {
                        merge_scale(scale, defaults);
                    }
                }
            }
            _ => return Err(format!("`{key}` does not belong here: methods and defaults of scales do")),
        }
    }
    Ok(())
}

fn merge_scale(scale: &mut Table, defaults: Table) {
    for (key, value) in defaults {
        match (scale.get_mut(&key), value) {
            (Some(Value::Array(own)), Value::Array(mut common)) if key == "overrides" => {
                common.append(own);
                *own = common;
            }
            (Some(_), _) => {}
            (None, value) => drop(scale.insert(key, value)),
        }
    }
}
