//! `c2r-attacks` as a dependency of someone else's crate.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What a tree of dependencies must not have: the rest of the workspace, and what reads datasets, archives and command
/// lines there.
const STRANGERS: [&str; 9] = ["clap", "csv", "image", "indicatif", "memmap2", "rawzip", "tar", "toml", "ureq"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A crate that is not a member of the workspace; its programs are examples of ours. The folder stays, so that only what
/// has changed is built again.
///
/// * `crates`: ours that it depends on; `others`: further dependencies, as the workspace has them; `examples`: their
///   files, the crate and the name.
pub(crate) fn outside(name: &str, crates: &[&str], others: &[&str], examples: &[(&str, &str)]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let workspace: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let mut manifest = toml::toml! {
        [package]
        version = "0.0.0"
        edition = "2024"

        [dependencies]

        // Not a member of c2r's.
        [workspace]
    };
    manifest["package"].as_table_mut().unwrap().insert("name".to_owned(), name.into());
    let dependencies = manifest["dependencies"].as_table_mut().unwrap();
    for name in crates {
        let path = root().join("crates").join(name).display().to_string();
        dependencies.insert((*name).to_owned(), toml::Table::from_iter([("path".to_owned(), path.into())]).into());
    }
    for name in others {
        dependencies.insert((*name).to_owned(), workspace["workspace"]["dependencies"][*name].clone());
    }
    // With the workspace's profiles and versions, the bindings to libtorch, minutes of C++, are built once for both.
    manifest.insert("profile".to_owned(), workspace["profile"].clone());
    fs::create_dir_all(folder.join("src/bin")).unwrap();
    let put = |name: &str, text: String| {
        let path = folder.join(name);
        if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            fs::write(path, text).unwrap();
        }
    };
    put("Cargo.toml", manifest.to_string());
    put("Cargo.lock", fs::read_to_string(root().join("Cargo.lock")).unwrap());
    for (owner, example) in examples {
        let text = fs::read_to_string(root().join(format!("crates/{owner}/examples/{example}.rs"))).unwrap();
        put(&format!("src/bin/{example}.rs"), text);
    }
    folder
}

/// What cargo prints, run in the checkout for its `.cargo/config.toml`, on a crate outside.
pub(crate) fn cargo(folder: &Path, words: &[&str]) -> String {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(words).arg("--offline").arg("--manifest-path").arg(folder.join("Cargo.toml"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a program of the crate prints at last, built into the workspace's target folder.
pub(crate) fn last_line(folder: &Path, program: &str) -> String {
    // target/tmp is beside target/release.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().display().to_string();
    let said = cargo(folder, &["run", "--release", "--target-dir", &target, "--bin", program]);
    said.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn a_crate_outside_brings_its_own_model_and_attack_and_gets_nothing_else() {
    let examples = [("c2r-attacks", "own_model"), ("c2r-attacks", "own_attack")];
    let folder = outside("outside", &["c2r-attacks"], &[], &examples);
    for (program, expected) in [
        ("own_model", "robust accuracy under 8/255: 50 %"),
        ("own_attack", "broken: shift 1, pgd 1, autoattack-standard 1 of 2"),
    ] {
        assert_eq!(last_line(&folder, program), expected);
    }

    let tree = cargo(&folder, &["tree", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]);
    let names: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    let mut ours: Vec<&str> = names.iter().copied().filter(|name| name.starts_with("c2r-")).collect();
    ours.sort_unstable();
    ours.dedup();
    assert_eq!(ours, ["c2r-attacks", "c2r-base", "c2r-files"]);
    let strangers: Vec<_> = names.iter().filter(|name| STRANGERS.contains(name)).collect();
    assert!(names.contains(&"torch-sys") && strangers.is_empty(), "{strangers:?} in {tree}");
}
