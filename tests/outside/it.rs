//! `c2r-attacks` as the only dependency of a crate.

use std::process::Command;

/// What a tree of dependencies must not have: the rest of the workspace, and what reads datasets, archives and command
/// lines there.
const STRANGERS: [&str; 9] = ["clap", "csv", "image", "indicatif", "memmap2", "rawzip", "tar", "toml", "ureq"];

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_crate_brings_its_own_model_and_attack() {
    for (program, expected) in [
        (env!("CARGO_BIN_EXE_own_model"), "robust accuracy under 8/255: 50 %"),
        (env!("CARGO_BIN_EXE_own_attack"), "broken: shift 1, pgd 1, autoattack-standard 1 of 2"),
    ] {
        assert_eq!(said(&mut Command::new(program)).lines().last(), Some(expected));
    }
}

#[test]
fn a_crate_gets_nothing_else() {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["tree", "--offline", "--package", env!("CARGO_PKG_NAME"), "--edges", "normal,build"]);
    let tree = said(command.args(["--prefix", "none", "--format", "{p}"]));
    let names: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    let mut ours: Vec<&str> = names.iter().copied().filter(|name| name.starts_with("c2r-")).collect();
    ours.sort_unstable();
    ours.dedup();
    assert_eq!(ours, ["c2r-attacks", "c2r-base", "c2r-files", env!("CARGO_PKG_NAME")]);
    let strangers: Vec<_> = names.iter().filter(|name| STRANGERS.contains(name)).collect();
    assert!(names.contains(&"torch-sys") && strangers.is_empty(), "{strangers:?} in {tree}");
}
