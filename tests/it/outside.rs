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

/// A crate that depends on `c2r-attacks` alone; its programs are the examples `own_model` and `own_attack`. The folder
/// stays, so that only what has changed is built again.
fn outside() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("outside");
    let workspace: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let mut manifest = toml::toml! {
        [package]
        name = "outside"
        version = "0.0.0"
        edition = "2024"

        [dependencies]

        // Not a member of c2r's.
        [workspace]
    };
    let path = root().join("crates/c2r-attacks").display().to_string();
    manifest["dependencies"] = toml::Table::from_iter([(
        "c2r-attacks".to_owned(),
        toml::Table::from_iter([("path".to_owned(), path.into())]).into(),
    )])
    .into();
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
    for example in ["own_model.rs", "own_attack.rs"] {
        let text = fs::read_to_string(root().join("crates/c2r-attacks/examples").join(example)).unwrap();
        put(&format!("src/bin/{example}"), text);
    }
    folder
}

/// What cargo prints, run in the checkout for its `.cargo/config.toml`, on the crate outside.
fn cargo(words: &[&str]) -> String {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(words).arg("--offline").arg("--manifest-path").arg(outside().join("Cargo.toml"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_crate_outside_brings_its_own_model_and_attack_and_gets_nothing_else() {
    // target/tmp is beside target/release.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().display().to_string();
    for (program, expected) in [
        ("own_model", "robust accuracy under 8/255: 50 %"),
        ("own_attack", "broken: shift 1, pgd 1, autoattack-standard 1 of 2"),
    ] {
        let said = cargo(&["run", "--release", "--target-dir", &target, "--bin", program]);
        assert_eq!(said.lines().last(), Some(expected), "{said}");
    }

    let tree = cargo(&["tree", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]);
    let names: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    let mut ours: Vec<&str> = names.iter().copied().filter(|name| name.starts_with("c2r-")).collect();
    ours.sort_unstable();
    ours.dedup();
    assert_eq!(ours, ["c2r-attacks", "c2r-base"]);
    let strangers: Vec<_> = names.iter().filter(|name| STRANGERS.contains(name)).collect();
    assert!(names.contains(&"torch-sys") && strangers.is_empty(), "{strangers:?} in {tree}");
}
