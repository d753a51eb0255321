//! `cargo xtask tidy`: the rules of this repository that no compiler checks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use serde::Deserialize;

use crate::{checkout::Checkout, exit, process, ui};

/// Check the rules that no compiler checks: crate layers, links, file sizes, leftovers
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Checked: dependencies between crates against the table in docs/architecture.md, top-level entries, licences and \
Cargo.lock, links in Markdown files, file sizes, unfinished code, paths of one machine, pages nothing links to.

Examples:
  cargo xtask tidy
  .ci/run            everything that is checked before a change lands, this included")]
pub(crate) struct Args {}

/// The page with the table of crates.
const ARCHITECTURE: &str = "docs/architecture.md";

/// Test support that any crate may use in its tests.
const TESTKIT: &str = "c2r-testkit";

/// What the top of the repository holds.
const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".ci",
    ".github",
    ".gitattributes",
    ".gitignore",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "clippy.toml",
    "crates",
    "data",
    "docs",
    "rustfmt.toml",
    "tests",
    "xtask",
];

/// What must be committed.
const REQUIRED: &[&str] =
    &["Cargo.lock", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE-APACHE", "LICENSE-MIT", "README.md", ARCHITECTURE];

/// Larger files belong into a download.
const MAX_BYTES: u64 = 1_000_000;

/// Longer source files want to be two.
const MAX_RUST_LINES: usize = 1_200;

/// The command.
pub(crate) fn run(_: &Args, checkout: &Checkout) -> anyhow::Result<()> {
    let files = files(checkout)?;
    let mut problems = Vec::new();
    problems.extend(check_places(&files));
    for file in &files {
        let path = checkout.root().join(file);
        // A committed file may be gone from the working tree; a link to a folder has no contents.
        let Ok(data) = fs::metadata(&path) else { continue };
        if data.is_file() {
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            problems.extend(check_file(file, &bytes, &|target| exists(checkout, &files, target)));
        }
    }
    problems.extend(check_pages(checkout, &files)?);
    problems.extend(check_layers(checkout)?);
    if problems.is_empty() {
        ui::note(format!("tidy: {} files, nothing to complain about", files.len()));
        return Ok(());
    }
    for problem in &problems {
        ui::out(problem);
    }
    Err(exit::error(exit::UNEXPECTED, format!("{} things are not tidy", problems.len())))
}

/// Committed files and new ones that git does not ignore, from the top folder, with `/`.
fn files(checkout: &Checkout) -> anyhow::Result<BTreeSet<String>> {
    let mut command = Command::new("git");
    command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(checkout.root());
    let output = process::output(&mut command)?
        .filter(|output| output.status.success())
        .ok_or_else(|| exit::usage("tidy asks git which files belong to the repository; is this a git checkout?"))?;
    let text = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let there =
        text.split('\0').filter(|name| !name.is_empty() && checkout.root().join(name).symlink_metadata().is_ok());
    Ok(there.map(String::from).collect())
}

fn check_places(files: &BTreeSet<String>) -> Vec<String> {
    let tops: BTreeSet<&str> = files.iter().filter_map(|file| file.split('/').next()).collect();
    let extra = tops.iter().filter(|top| !TOP_LEVEL.contains(top));
    let missing = REQUIRED.iter().filter(|name| !files.contains(**name));
    extra
        .map(|top| format!("{top}: does not belong at the top of the repository"))
        .chain(missing.map(|name| format!("{name}: missing")))
        .collect()
}

/// What is wrong with one file; `exists` knows which paths a link may point at.
fn check_file(file: &str, bytes: &[u8], exists: &dyn Fn(&Path) -> bool) -> Vec<String> {
    let mut problems = Vec::new();
    if bytes.len() as u64 > MAX_BYTES {
        problems.push(format!("{file}: {} bytes, more than {MAX_BYTES}", bytes.len()));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return problems };
    let is_rust = file.ends_with(".rs");
    if is_rust && text.lines().count() > MAX_RUST_LINES {
        problems.push(format!("{file}: {} lines, more than {MAX_RUST_LINES}; split it", text.lines().count()));
    }
    for (number, line) in (1..).zip(text.lines()) {
        if is_rust {
            for leftover in leftovers() {
                if line.contains(&leftover) {
                    problems.push(format!("{file}:{number}: {leftover} is not finished code"));
                }
            }
        }
        for place in machine_paths() {
            if let Some((before, _)) = line.split_once(&place)
                && !before.ends_with(|c: char| c.is_ascii_alphanumeric() || "._-~$}/".contains(c))
            {
                problems.push(format!("{file}:{number}: {place} is a path of one machine"));
            }
        }
    }
    // Expected output of tests points at files that the tests make.
    let is_output = file.split('/').any(|part| part == "tests");
    if file.ends_with(".md") && !is_output {
        for (number, target) in local_links(text) {
            let folder = Path::new(file).parent().unwrap_or(Path::new(""));
            if !exists(&normal(&folder.join(target))) {
                problems.push(format!("{file}:{number}: links to {target}, which is not there"));
            }
        }
    }
    problems
}

/// Put together here so that this file does not contain them.
fn leftovers() -> [String; 4] {
    [("todo", "!("), ("unimplemented", "!("), ("dbg", "!("), ("FIXME", ":")].map(|(name, end)| format!("{name}{end}"))
}

fn machine_paths() -> [String; 4] {
    ["root", "work", "Users", "home"].map(|top| format!("/{top}/"))
}

/// Targets of Markdown links and pictures that are files, with their line; code blocks do not count.
fn local_links(text: &str) -> Vec<(usize, &str)> {
    let mut in_code = false;
    let mut links = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for (position, _) in line.match_indices("](") {
            let target = line[position + 2..].split([')', ' ', '#']).next().unwrap_or_default();
            let is_remote = target.contains("://") || target.starts_with("mailto:");
            // `#[deny](` in prose about code is no link; a link's text is outside backticks.
            let in_backticks = line[..position].matches('`').count() % 2 == 1;
            if !target.is_empty() && !is_remote && !in_backticks {
                links.push((number, target));
            }
        }
    }
    links
}

/// `a/../b` is `b`.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// Files that git does not know are not there for anyone else; folders are there with their files.
fn exists(checkout: &Checkout, files: &BTreeSet<String>, target: &Path) -> bool {
    let name = target.to_string_lossy();
    files.contains(&*name)
        || (checkout.root().join(target).is_dir() && files.iter().any(|file| Path::new(file).starts_with(target)))
}

/// Every page of docs/ can be reached from the README or from another page.
fn check_pages(checkout: &Checkout, files: &BTreeSet<String>) -> anyhow::Result<Vec<String>> {
    let mut linked = BTreeSet::new();
    for file in files.iter().filter(|file| file.ends_with(".md")) {
        let path = checkout.root().join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let folder = Path::new(file).parent().unwrap_or(Path::new("")).to_owned();
        let targets = local_links(&text).into_iter().map(|(_, target)| normal(&folder.join(target)));
        linked.extend(targets.filter(|target| target != Path::new(file)));
    }
    let pages = files.iter().filter(|file| file.starts_with("docs/") && file.ends_with(".md"));
    Ok(pages
        .filter(|page| !linked.contains(Path::new(page)))
        .map(|page| format!("{page}: no other page links to it"))
        .collect())
}

/// A member of the workspace and what it depends on inside the workspace, or on libtorch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    name: String,
    normal: Vec<String>,
    dev: Vec<String>,
}

/// What `cargo metadata` prints, as far as it is read here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `None`, `dev` or `build`.
    kind: Option<String>,
    /// Of a dependency inside the workspace.
    path: Option<String>,
}

fn check_layers(checkout: &Checkout) -> anyhow::Result<Vec<String>> {
    let mut command = checkout.cargo();
    command.args(["metadata", "--no-deps", "--format-version", "1", "--locked"]);
    let output = process::output(&mut command)?.context("cargo is gone")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Ok(vec![format!("Cargo.toml: {text}")]);
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("cannot read what cargo metadata prints")?;
    let page = fs::read_to_string(checkout.root().join(ARCHITECTURE))
        .with_context(|| format!("cannot read {ARCHITECTURE}"))?;
    Ok(compare(&members(metadata), &allowed_edges(&page)))
}

fn members(metadata: Metadata) -> Vec<Member> {
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

/// The table of crates: the second column names the crate, the last one what it may use.
/// `all` stands for every crate of the table that starts with `c2r-`.
fn allowed_edges(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let backticked = |cell: &str| cell.split('`').skip(1).step_by(2).map(String::from).collect::<Vec<_>>();
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter_map(|line| line.trim().strip_prefix('|')?.strip_suffix('|'))
        .map(|row| row.split('|').map(str::trim).collect())
        .filter(|row: &Vec<&str>| row.len() == 4)
        .collect();
    let crates: Vec<(String, &str)> =
        rows.iter().filter_map(|row| Some((backticked(row[1]).into_iter().next()?, row[3]))).collect();
    let all: BTreeSet<String> =
        crates.iter().map(|(name, _)| name.clone()).filter(|name| name.starts_with("c2r-")).collect();
    let uses = |cell: &str| match cell.split(' ').next() {
        Some("all") => all.iter().cloned().chain(["tch".to_owned()]).collect(),
        _ => backticked(cell).into_iter().collect(),
    };
    crates.iter().map(|(name, cell)| (name.clone(), uses(cell))).collect()
}

fn compare(members: &[Member], allowed: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut problems = Vec::new();
    for member in members {
        let Some(may_use) = allowed.get(&member.name) else {
            problems.push(format!("{}: not in the table of {ARCHITECTURE}", member.name));
            continue;
        };
        let in_tests = |name: &&String| *name == TESTKIT;
        let bad_normal = member.normal.iter().filter(|name| !may_use.contains(*name));
        let bad_dev = member.dev.iter().filter(|name| !may_use.contains(*name) && !in_tests(name));
        for name in bad_normal {
            problems.push(format!("{}: may not depend on {name} (table in {ARCHITECTURE})", member.name));
        }
        for name in bad_dev {
            problems.push(format!("{}: its tests may not depend on {name} (table in {ARCHITECTURE})", member.name));
        }
    }
    for name in allowed.keys().filter(|name| !members.iter().any(|member| &member.name == *name)) {
        problems.push(format!("{ARCHITECTURE}: its table has {name}, which is not in the workspace"));
    }
    problems
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
    fn edges_outside_the_table_are_found() {
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
        check(1, member("c2r-base", &["c2r-testkit"], &[]), "may not depend on c2r-testkit");
        check(1, member("c2r-base", &[], &["c2r-data"]), "its tests may not depend on c2r-data");
        check(4, member("xtask", &["tch"], &[]), "xtask: may not depend on tch");
        let missing = compare(&good[..4], &allowed);
        assert!(missing[0].contains("its table has xtask"), "{missing:?}");
        let mut extra = good.to_vec();
        extra.push(member("c2r-new", &[], &[]));
        assert!(compare(&extra, &allowed)[0].contains("c2r-new: not in the table"));
    }

    #[test]
    fn metadata_is_read() {
        let text = r#"{"packages": [{"name": "c2r-data", "dependencies": [
            {"name": "c2r-base", "kind": null, "path": "/x"}, {"name": "serde", "kind": null},
            {"name": "tch", "kind": null}, {"name": "c2r-testkit", "kind": "dev", "path": "/y"}]}]}"#;
        let read = members(serde_json::from_str(text).unwrap());
        assert_eq!(read, [member("c2r-data", &["c2r-base", "tch"], &["c2r-testkit"])]);
    }

    #[test]
    fn files_and_their_places() {
        let mut files: BTreeSet<String> = REQUIRED.iter().map(|name| (*name).to_owned()).collect();
        files.insert("crates/c2r-base/src/lib.rs".into());
        assert_eq!(check_places(&files), [""; 0]);
        files.remove("LICENSE-MIT");
        files.insert("notes.txt".into());
        let problems = check_places(&files);
        assert!(problems[0].starts_with("notes.txt:") && problems[1] == "LICENSE-MIT: missing", "{problems:?}");
    }

    #[test]
    fn contents() {
        let exists = |path: &Path| path == Path::new("docs/install.md") || path == Path::new("data");
        let check = |file: &str, text: &str, problem: &str| {
            let problems = check_file(file, text.as_bytes(), &exists);
            match problem {
                "" => assert_eq!(problems, [""; 0], "{text}"),
                _ => assert!(problems.len() == 1 && problems[0].contains(problem), "{problems:?}"),
            }
        };
        for leftover in leftovers() {
            check("a.rs", &format!("    {leftover}"), "is not finished code");
            check("a.md", &leftover, "");
        }
        for place in machine_paths() {
            check("a.toml", &format!("dir = \"{place}me\""), "path of one machine");
            check("a.toml", &format!("dir = \"~{place}me\""), "");
        }
        check("a.rs", &"\n".repeat(MAX_RUST_LINES + 1), "split it");
        check("a.csv", &"x".repeat(MAX_BYTES as usize + 1), "more than 1000000");
        check("docs/a.md", "see [install](install.md#cuda), [x](https://x.y/z) and [data](../data)", "");
        check("docs/a.md", "first\nsee ![picture](pictures/grid.png)", "docs/a.md:2: links to pictures/grid.png");
        check("docs/a.md", "```text\n[a](b)\n```\n`#[a](b)`", "");
        check("crates/x/tests/golden/a.md", "[made](grid.png)", "");
        check("README.md", "[up](docs/../docs/install.md)", "");
    }
}
