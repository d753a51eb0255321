//! `cargo xtask tidy`: the rules of this repository that no compiler checks.

mod dependencies;
mod features;
mod habits;
mod modules;
mod pages;
mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::Context;

use crate::checkout::Checkout;
use c2r_run::{exit, process, terminal as ui};
use dependencies::{ARCHITECTURE, Metadata};

/// Check the rules that no compiler checks: crate layers, links, file sizes, leftovers, wording
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = include_str!("help/tidy.txt"))]
pub(crate) struct Args {}

/// What the top of the repository holds.
const TOP_LEVEL: &str = ".cargo .ci .github .gitattributes .gitignore CHANGELOG.md CITATION.cff CONTRIBUTING.md Cargo.lock Cargo.toml \
                         LICENSE-APACHE LICENSE-MIT README.md clippy.toml crates data docs python rustfmt.toml tests xtask";

/// What must be committed.
const REQUIRED: &[&str] =
    &["Cargo.lock", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE-APACHE", "LICENSE-MIT", "README.md", ARCHITECTURE];

/// Larger files belong in a download.
const MAX_BYTES: u64 = 1_000_000;

/// Longer source files should be split, tests included.
const MAX_RUST_LINES: usize = 1_200;

/// Files with more code than this say why at their top.
const MAX_CODE_LINES: usize = 600;

/// How the line of a file's documentation begins that says why it is longer.
const LONGER: &str = "//! Longer than 600 lines:";

/// The command.
pub(crate) fn run(_: &Args, checkout: &Checkout) -> anyhow::Result<()> {
    let files = files(checkout)?;
    let mut problems = Vec::new();
    let mut pages = BTreeMap::new();
    problems.extend(check_places(&files));
    for file in &files {
        let path = checkout.root().join(file);
        // A committed file may be gone from the working tree; a link to a folder has no contents.
        let Ok(data) = fs::metadata(&path) else { continue };
        if data.is_file() {
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            problems.extend(check_file(file, &bytes));
            // The change log is history.
            if let (Ok(text), true) = (std::str::from_utf8(&bytes), file != "CHANGELOG.md") {
                problems.extend(habits::check(file, text));
            }
            // Expected output of tests points at files that the tests make.
            if file.ends_with(".md") && file.split('/').all(|part| part != "tests") {
                pages.insert(file.clone(), String::from_utf8_lossy(&bytes).into_owned());
            }
        }
    }
    problems.extend(pages::check(&pages, &|target| exists(checkout, &files, target)));
    for file in files.iter().filter(|file| file.ends_with(".rs")) {
        let text = fs::read_to_string(checkout.root().join(file)).with_context(|| format!("cannot read {file}"))?;
        problems.extend(check_length(file, &text));
    }
    match Metadata::read(checkout)? {
        Err(problem) => problems.push(format!("Cargo.toml: {problem}")),
        Ok(metadata) => {
            let page = fs::read_to_string(checkout.root().join(ARCHITECTURE))
                .with_context(|| format!("cannot read {ARCHITECTURE}"))?;
            problems.extend(dependencies::check_edges(&metadata, &page));
            problems.extend(dependencies::check_used(&metadata, checkout)?);
            problems.extend(features::check(checkout)?);
            let name = |path: &Path| checkout.relative(path).display().to_string();
            for target in metadata.packages.iter().flat_map(|package| &package.targets) {
                if target.kind.iter().any(|kind| kind == "lib" || kind == "bin") {
                    problems.extend(modules::circles(&target.src_path, name)?);
                }
            }
        }
    }
    if problems.is_empty() {
        ui::note(format!("tidy: {} files are fine", files.len()));
        return Ok(());
    }
    for problem in &problems {
        ui::out(problem);
    }
    Err(exit::error(exit::UNEXPECTED, format!("{} problems; see above", problems.len())))
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
    let extra = tops.iter().filter(|top| !TOP_LEVEL.split(' ').any(|known| known == **top));
    let missing = REQUIRED.iter().filter(|name| !files.contains(**name));
    extra
        .map(|top| format!("{top}: does not belong at the top of the repository"))
        .chain(missing.map(|name| format!("{name}: missing")))
        .collect()
}

/// A file with much code says why.
fn check_length(file: &str, text: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().collect();
    let is_tests = |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ");
    let n = lines.windows(2).position(is_tests).unwrap_or(lines.len());
    let has_reason = || {
        let mut top = lines.iter().take_while(|line| line.starts_with("//"));
        top.any(|line| line.strip_prefix(LONGER).is_some_and(|reason| !reason.trim().is_empty()))
    };
    let is_fine = n <= MAX_CODE_LINES || has_reason();
    (!is_fine).then(|| format!("{file}: {n} lines of code; split it, or say why at its top: `{LONGER} ...`"))
}

/// What is wrong with one file.
fn check_file(file: &str, bytes: &[u8]) -> Vec<String> {
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
        if ["<", ">"].iter().any(|side| line.starts_with(&format!("{} ", side.repeat(7)))) {
            problems.push(format!("{file}:{number}: an unresolved merge conflict"));
        }
        for place in machine_paths() {
            if let Some((before, _)) = line.split_once(&place)
                && !before.ends_with(|c: char| c.is_ascii_alphanumeric() || "._-~$}/".contains(c))
            {
                problems.push(format!("{file}:{number}: {place} is a path of one machine"));
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

/// Files that git does not know are not there for anyone else; folders are there with their files.
fn exists(checkout: &Checkout, files: &BTreeSet<String>, target: &Path) -> bool {
    let name = target.to_string_lossy();
    files.contains(&*name)
        || (checkout.root().join(target).is_dir() && files.iter().any(|file| Path::new(file).starts_with(target)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let check = |file: &str, text: &str, problem: &str| {
            let problems = check_file(file, text.as_bytes());
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
        check("a.md", &format!("one\n{} HEAD\ntwo", "<".repeat(7)), "a.md:2: an unresolved merge conflict");
        check("a.md", "<<<<<<<\n=======\n", "");
        check("a.csv", &"x".repeat(MAX_BYTES as usize + 1), "more than 1000000");
    }

    #[test]
    fn long_files_have_a_reason() {
        let code = "fn f() {}\n".repeat(MAX_CODE_LINES);
        let tests = format!("\n#[cfg(test)]\nmod tests {{\n{code}}}\n");
        assert_eq!(check_length("a.rs", &format!("{}{tests}", &code[10..])), None);
        assert!(check_length("a.rs", &format!("{code}{tests}")).unwrap().starts_with("a.rs: 601 lines of code"));
        assert_eq!(check_length("a.rs", &format!("//! What.\n//!\n{LONGER} a table.\n{code}")), None);
        assert!(check_length("a.rs", &format!("//! What.\n{LONGER}\n{code}")).is_some());
        assert!(check_length("a.rs", &format!("//! What.\n\n{code}{LONGER} too late")).is_some());
    }
}
