//! Dependencies: between crates as the table of the architecture page has them, and none that nothing uses.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use c2r_run::process;
use proc_macro2::{TokenStream, TokenTree};
use serde::Deserialize;

use super::source::{self, Code};
use crate::checkout::Checkout;

/// The page with the table of crates.
pub(super) const ARCHITECTURE: &str = "docs/architecture.md";

/// Test support that any crate may use in its tests.
const TESTKIT: &str = "c2r-testkit";

/// Crates whose library is not called as the package is.
const LIBRARIES: [(&str, &str); 1] = [("md-5", "md5")];

/// What `cargo metadata` prints, as far as it is read here.
#[derive(Deserialize)]
pub(super) struct Metadata {
    pub(super) packages: Vec<Package>,
}

#[derive(Deserialize)]
pub(super) struct Package {
    pub(super) name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
    pub(super) targets: Vec<BuildTarget>,
}

/// A library, program, test, bench, example or build script.
#[derive(Deserialize)]
pub(super) struct BuildTarget {
    pub(super) kind: Vec<String>,
    pub(super) src_path: PathBuf,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    rename: Option<String>,
    /// `None`, `dev` or `build`.
    kind: Option<String>,
    /// Of a dependency inside the workspace.
    path: Option<String>,
}

impl Metadata {
    /// Or what cargo says is wrong.
    pub(super) fn read(checkout: &Checkout) -> anyhow::Result<Result<Self, String>> {
        let mut command = checkout.cargo();
        command.args(["metadata", "--no-deps", "--format-version", "1", "--locked"]);
        let output = process::output(&mut command)?.context("cargo is gone")?;
        if !output.status.success() {
            return Ok(Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        Ok(Ok(serde_json::from_slice(&output.stdout).context("cannot read what cargo metadata prints")?))
    }
}

/// Edges that the table does not have, and edges that it has and no crate.
pub(super) fn check_edges(metadata: &Metadata, page: &str) -> Vec<String> {
    compare(&members(metadata), &allowed_edges(page))
}

/// A member of the workspace and what it depends on inside the workspace, or on libtorch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    name: String,
    normal: Vec<String>,
    dev: Vec<String>,
}

fn members(metadata: &Metadata) -> Vec<Member> {
    let inside = |dependency: &&Dependency| dependency.path.is_some() || dependency.name == "tch";
    let names = |package: &Package, dev: bool| {
        let wanted = package.dependencies.iter().filter(inside);
        wanted.filter(|d| (d.kind.as_deref() == Some("dev")) == dev).map(|d| d.name.clone()).collect()
    };
    let member = |package: &Package| Member {
        name: package.name.clone(),
        normal: names(package, false),
        dev: names(package, true),
    };
    metadata.packages.iter().map(member).collect()
}

/// What a crate may use.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Allowed {
    All,
    These(BTreeSet<String>),
}

/// The table of crates: the second column names the crate, the last one what it may use.
/// `all` stands for every crate.
fn allowed_edges(page: &str) -> BTreeMap<String, Allowed> {
    let backticked = |cell: &str| cell.split('`').skip(1).step_by(2).map(String::from).collect::<Vec<_>>();
    let rows = page
        .lines()
        .filter_map(|line| line.trim().strip_prefix('|')?.strip_suffix('|'))
        .map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    let allowed = |cell: &str| match cell.split(' ').next() {
        Some("all") => Allowed::All,
        _ => Allowed::These(backticked(cell).into_iter().collect()),
    };
    rows.filter(|row| row.len() == 4)
        .filter_map(|row| Some((backticked(row[1]).into_iter().next()?, allowed(row[3]))))
        .collect()
}

fn compare(members: &[Member], allowed: &BTreeMap<String, Allowed>) -> Vec<String> {
    let mut problems = Vec::new();
    for Member { name, normal, dev } in members {
        let these = match allowed.get(name) {
            None => {
                problems.push(format!("{name}: not in the table of {ARCHITECTURE}"));
                continue;
            }
            Some(Allowed::All) => continue,
            Some(Allowed::These(these)) => these,
        };
        for other in normal.iter().filter(|other| !these.contains(*other)) {
            problems.push(format!("{name}: may not depend on {other} (table in {ARCHITECTURE})"));
        }
        for other in dev.iter().filter(|other| !these.contains(*other) && *other != TESTKIT) {
            problems.push(format!("{name}: its tests may not depend on {other} (table in {ARCHITECTURE})"));
        }
        for other in these.iter().filter(|other| !normal.contains(other) && !dev.contains(other)) {
            problems.push(format!("{ARCHITECTURE}: {name} may use {other}, but does not depend on it"));
        }
    }
    for name in allowed.keys().filter(|name| !members.iter().any(|member| &member.name == *name)) {
        problems.push(format!("{ARCHITECTURE}: its table has {name}, which is not in the workspace"));
    }
    problems
}

/// Dependencies that no code of their crate names, and those of the workspace that no crate has.
pub(super) fn check_used(metadata: &Metadata, checkout: &Checkout) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    for package in &metadata.packages {
        let names = Names::read(package, &metadata.packages)?;
        problems.extend(package.dependencies.iter().filter_map(|dependency| names.problem(&package.name, dependency)));
    }
    let manifest = fs::read_to_string(checkout.root().join("Cargo.toml")).context("cannot read Cargo.toml")?;
    let manifest: toml::Table = toml::from_str(&manifest).context("cannot read Cargo.toml")?;
    let declared = manifest["workspace"].get("dependencies").and_then(toml::Value::as_table);
    let used: BTreeSet<&str> =
        metadata.packages.iter().flat_map(|package| &package.dependencies).map(Dependency::identifier).collect();
    let unused = declared.into_iter().flat_map(toml::Table::keys).filter(|name| !used.contains(name.as_str()));
    problems.extend(unused.map(|name| format!("Cargo.toml: no crate depends on {name}")));
    Ok(problems)
}

impl Dependency {
    /// As it stands in the manifest.
    fn identifier(&self) -> &str {
        self.rename.as_deref().unwrap_or(&self.name)
    }
}

/// Words of a package that may name a crate, by where they stand.
#[derive(Debug, Default)]
struct Names {
    code: BTreeSet<String>,
    /// Unit tests, integration tests, examples, benches and documentation.
    tests: BTreeSet<String>,
    build: BTreeSet<String>,
}

impl Names {
    fn read(package: &Package, all: &[Package]) -> anyhow::Result<Self> {
        let mut names = Self::default();
        let folder = package.manifest_path.parent().unwrap_or(Path::new(""));
        let source = folder.join("src");
        let others: Vec<&Path> =
            all.iter().filter_map(|other| other.manifest_path.parent()).filter(|other| *other != folder).collect();
        let mut files = Vec::new();
        rust_files(folder, &others, &mut files)?;
        // An example of another crate that is a program of this one.
        let programs =
            package.targets.iter().filter(|target| target.kind == ["bin"] && !target.src_path.starts_with(&source));
        for program in programs {
            crate_names(source::tokens(&program.src_path)?, &mut names.code);
        }
        for file in files {
            let tokens = source::tokens(&file)?;
            if file.starts_with(&source) {
                crate_names(source::without_tests(tokens.clone()), &mut names.code);
            }
            if file.file_name().is_some_and(|name| name == "build.rs") {
                crate_names(tokens, &mut names.build);
            } else {
                documentation_names(tokens.clone(), &mut names.tests);
                crate_names(tokens, &mut names.tests);
            }
        }
        Ok(names)
    }

    fn problem(&self, package: &str, dependency: &Dependency) -> Option<String> {
        let name = dependency.identifier();
        let other_name =
            LIBRARIES.iter().find(|(package, _)| *package == name).map(|(_, library)| (*library).to_owned());
        let identifier = other_name.unwrap_or_else(|| name.replace('-', "_"));
        let kind = dependency.kind.as_deref();
        let (place, what) = match kind {
            Some("dev") => (&self.tests, "no test, example or bench"),
            Some("build") => (&self.build, "no build script"),
            _ => (&self.code, "no code"),
        };
        if place.contains(&identifier) {
            return None;
        }
        let hint = if kind.is_none() && self.tests.contains(&identifier) { " outside tests" } else { "" };
        Some(format!("{package}: {what}{hint} uses {name}, which its Cargo.toml declares"))
    }
}

/// The Rust files below `folder`, without those of the packages in `others`.
fn rust_files(folder: &Path, others: &[&Path], found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() && !others.contains(&path.as_path()) {
            rust_files(&path, others, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// First words of paths and of `use` declarations.
fn crate_names(tokens: TokenStream, names: &mut BTreeSet<String>) {
    let mut code = Code::default();
    code.read(&tokens.into_iter().collect::<Vec<_>>());
    let imported = code.imports.iter().filter_map(|import| import.path.first());
    names.extend(code.paths.iter().filter_map(|path| path.first()).chain(imported).cloned());
}

/// Words before `::` in documentation, where examples are.
fn documentation_names(tokens: TokenStream, names: &mut BTreeSet<String>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => documentation_names(group.stream(), names),
            TokenTree::Literal(literal) => {
                let text = literal.to_string();
                let starts =
                    text.split("::").map(|part| part.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next());
                names.extend(starts.flatten().map(String::from));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
| layer | crate | holds | may use |
|---|---|---|---|
| L1 | `c2r-data` | readers | `c2r-base` `tch` |
| L0 | `c2r-base` | words | `tch` |
| dev | `c2r-testkit` | toys | `c2r-base` |
| - | `c2r-tests` (in `tests/`) | cross-crate tests | all |
| - | `xtask` | commands | nothing |
";

    fn member(name: &str, normal: &[&str], dev: &[&str]) -> Member {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Member { name: name.into(), normal: owned(normal), dev: owned(dev) }
    }

    #[test]
    fn the_table_and_the_crates_have_the_same_edges() {
        let good = [
            member("c2r-data", &["c2r-base", "tch"], &["c2r-testkit"]),
            member("c2r-base", &["tch"], &[]),
            member("c2r-testkit", &["c2r-base"], &[]),
            member("c2r-tests", &[], &["c2r-base", "c2r-data", "tch"]),
            member("xtask", &[], &[]),
        ];
        let allowed = allowed_edges(PAGE);
        assert_eq!(compare(&good, &allowed), [""; 0]);

        let check = |position: usize, changed: Member, problem: &str| {
            let mut members = good.to_vec();
            members[position] = changed;
            let problems = compare(&members, &allowed);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(problem), "{problems:?}");
        };
        check(1, member("c2r-base", &["tch", "c2r-data"], &[]), "c2r-base: may not depend on c2r-data");
        check(1, member("c2r-base", &["tch", "c2r-testkit"], &[]), "may not depend on c2r-testkit");
        check(1, member("c2r-base", &["tch"], &["c2r-data"]), "its tests may not depend on c2r-data");
        check(0, member("c2r-data", &["tch"], &[]), "c2r-data may use c2r-base, but does not depend on it");
        check(4, member("xtask", &["tch"], &[]), "xtask: may not depend on tch");
        let missing = compare(&good[..4], &allowed);
        assert!(missing[0].contains("its table has xtask"), "{missing:?}");
        let mut extra = good.to_vec();
        extra.push(member("c2r-new", &[], &[]));
        assert!(compare(&extra, &allowed)[0].contains("c2r-new: not in the table"));
    }

    const METADATA: &str = r#"{"packages": [{"name": "c2r-data", "manifest_path": "FOLDER/Cargo.toml", "targets": [],
        "dependencies": [
            {"name": "c2r-base", "kind": null, "path": "/x"}, {"name": "serde-x", "kind": null},
            {"name": "tch", "kind": null}, {"name": "c2r-testkit", "kind": "dev", "path": "/y"},
            {"name": "cc", "kind": "build"}]}]}"#;

    #[test]
    fn metadata_is_read() {
        let read = members(&serde_json::from_str(METADATA).unwrap());
        assert_eq!(read, [member("c2r-data", &["c2r-base", "tch"], &["c2r-testkit"])]);
    }

    #[test]
    fn dependencies_without_a_user_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let text = METADATA.replace("FOLDER", &folder.path().display().to_string());
        let metadata: Metadata = serde_json::from_str(&text).unwrap();
        let package = &metadata.packages[0];
        let check = |source: &str, test: &str, build: &str| -> Vec<String> {
            for (file, text) in [("src/lib.rs", source), ("tests/it.rs", test), ("build.rs", build)] {
                let path = folder.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            let names = Names::read(package, &metadata.packages).unwrap();
            package.dependencies.iter().filter_map(|dependency| names.problem("c2r-data", dependency)).collect()
        };
        let all = "use c2r_base::Seed; use {serde_x as x, tch::Tensor};";
        assert_eq!(check(all, "fn f() { c2r_testkit::toy() }", "fn main() { cc::Build }"), [""; 0]);
        let in_documentation = format!("{all}\n/// ```\n/// c2r_testkit::toy();\n/// ```\nfn f() {{}}");
        assert_eq!(check(&in_documentation, "", "use cc;"), [""; 0]);
        assert_eq!(
            check("use c2r_base::Seed; // tch::x\n#[cfg(test)] use serde_x::A;", "", ""),
            [
                "c2r-data: no code outside tests uses serde-x, which its Cargo.toml declares",
                "c2r-data: no code uses tch, which its Cargo.toml declares",
                "c2r-data: no test, example or bench uses c2r-testkit, which its Cargo.toml declares",
                "c2r-data: no build script uses cc, which its Cargo.toml declares",
            ]
        );
    }
}
