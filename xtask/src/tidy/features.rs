//! Every command must ask for the same features of a crate. Otherwise cargo compiles the crate, and all that use it, again.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use c2r_run::process;

use crate::checkout::Checkout;

/// The packages that are built before the tests, and the edges of `cargo tree` to follow. For `c2r-cli` build scripts are
/// left out: `cargo tree` shows wrong features for crates that programs and build scripts both use.
const BUILT_FIRST: [(&str, &str); 2] = [("xtask", "normal,build"), ("c2r-cli", "normal")];

/// The sets of features of each crate: one, or two if build scripts use it with other features.
type Features = BTreeMap<String, BTreeSet<String>>;

/// The crates that the tests would compile again, as problems.
pub(super) fn check(checkout: &Checkout) -> anyhow::Result<Vec<String>> {
    let tests = read(checkout, &["--workspace", "--edges", "normal,build,dev"])?;
    let mut problems = Vec::new();
    for (package, edges) in BUILT_FIRST {
        let built = read(checkout, &["--package", package, "--edges", edges])?;
        problems.extend(differences(&built, &tests).map(|problem| format!("{package}: {problem}")));
    }
    Ok(problems)
}

fn read(checkout: &Checkout, words: &[&str]) -> anyhow::Result<Features> {
    let mut command = checkout.cargo();
    command.args(["tree", "--locked", "--prefix", "none", "--no-dedupe", "--format", "{p}\t{f}"]).args(words);
    let output = process::output(&mut command)?.context("cargo is gone")?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

fn parse(tree: &str) -> Features {
    let mut features = Features::new();
    for (package, these) in tree.lines().filter_map(|line| line.split_once('\t')) {
        features.entry(package.to_owned()).or_default().insert(these.to_owned());
    }
    features
}

fn differences(built: &Features, tests: &Features) -> impl Iterator<Item = String> {
    built.iter().filter_map(|(package, these)| {
        let others = tests.get(package)?;
        let own = these.iter().find(|own| !others.contains(*own))?;
        let others = others.iter().map(String::as_str).collect::<Vec<_>>().join("] or [");
        Some(format!(
            "built with the features [{own}] of {package}, and the tests with [{others}], so cargo compiles it twice; name \
             the crate and the features in Cargo.toml, as for getrandom"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_only_tests_ask_for_are_found() {
        let tests = parse("c2r v0.1.0 (/x)\t\nrand v0.9.0\tstd\nlibc v0.2.0\tstd\nlibc v0.2.0\textra,std\n");
        let check = |built: &str| differences(&parse(built), &tests).collect::<Vec<_>>();
        assert_eq!(check("c2r v0.1.0 (/x)\t\nrand v0.9.0\tstd\nlibc v0.2.0\tstd\nonly v1.0.0\tstd"), [""; 0]);
        let problems = check("rand v0.9.0\t\nlibc v0.2.0\tstd");
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].starts_with("built with the features [] of rand v0.9.0, and the tests with [std]"),
            "{problems:?}"
        );
    }
}
