//! The page of the keys.

use super::*;

/// docs/configuration.md names every key, and no key that there is not.
#[test]
fn the_page_of_the_keys_is_complete() {
    let page = include_str!("../../../../docs/configuration.md");
    let page = page.split("\n## Training").next().unwrap();
    let rows: Vec<Vec<&str>> =
        page.lines().filter(|line| line.starts_with("| `")).map(|line| line.split('|').collect()).collect();
    let code = |cell: &'static str| cell.split('`').skip(1).step_by(2);
    let documented: BTreeSet<&str> = rows.iter().flat_map(|row| code(row[1])).collect();

    let mut configs: Vec<DistillConfig> = c2r_distill::profiles::names().map(|name| profile(name, &[])).collect();
    configs.extend([
        everything(),
        backbone::freedom(),
        config(&[
            ("name", "x".into()),
            ("companions", table("attack = \"pgd\"\nsteps = 3\nrel-step-size = 0.5\nrandom-start = true")),
            ("pool.curvature", table("weight = 10.0\nstep = 3.0")),
            ("aac.matching", table("mode = \"pace\"\nlow = [0.0, 0.0]\nhigh = [0.5, 1.0]")),
            ("labels", "soft".into()),
            ("teacher", table("count = 2\nsteps = 3\ntemperature = 1.0\nlr-schedule = \"cosine\"")),
        ]),
    ]);
    let mut keys = BTreeSet::from(["base".to_owned()]);
    for config in configs {
        let mut settings = Vec::new();
        flatten("", &toml::Table::try_from(&config).unwrap(), &mut settings);
        keys.extend(settings.into_iter().map(|(key, _)| match key.split('.').collect::<Vec<_>>()[..] {
            // The three places of the curriculum have the same keys.
            ["aac", _, last] if last != "mode" => format!("aac.PLACE.{last}"),
            ["attacks", _, "companions", ..] => "attacks.PLACE.companions".to_owned(),
            ["attacks", _, last] => format!("attacks.PLACE.{last}"),
            _ => key,
        }));
    }
    let missing: Vec<&String> = keys.iter().filter(|key| !documented.contains(key.as_str())).collect();
    assert!(missing.is_empty(), "docs/configuration.md lacks {missing:?}");
    let unknown: Vec<&&str> = documented.iter().filter(|key| !keys.contains(**key)).collect();
    assert!(unknown.is_empty(), "docs/configuration.md has keys that there are not: {unknown:?}");

    // A default is that of the first of these profiles which has the key, or of the one named after it.
    let spec = c2r_data::spec("cifar10").unwrap();
    let settings = |profile: &str| {
        let config = DistillConfig::resolve(profile, &spec, [("ipc", 10)]).unwrap();
        let mut settings = Vec::new();
        flatten("", &toml::Table::try_from(&config).unwrap(), &mut settings);
        settings.into_iter().collect::<BTreeMap<String, toml::Value>>()
    };
    let all = ["faithful", "plus", "sre2l", "dsa", "mtt"].map(settings);
    let mut n_compared = 0;
    for row in &rows {
        let key = code(row[1]).next().unwrap().replace("PLACE", "synthetic");
        let [default, profile] = [0, 1].map(|n| code(row[2]).nth(n));
        let own = profile.map(settings);
        let value = own.as_ref().map_or_else(|| all.iter().find_map(|of| of.get(&key)), |own| own.get(&key));
        let (Some(default), Some(value)) = (default, value) else { continue };
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let same = match (text.parse::<f64>(), default.parse::<f64>()) {
            (Ok(value), Ok(default)) => value == default,
            _ => text == default,
        };
        assert!(same, "docs/configuration.md: {key} = {default}, but it is {text}");
        n_compared += 1;
    }
    assert!(n_compared > 60, "only {n_compared} defaults were compared");
}
