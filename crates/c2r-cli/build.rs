//! Records the git revision that the binary was built from, and whether the code was changed since.

use std::process::Command;

fn main() {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let revision = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    // The code of all crates, and what they depend on.
    const CODE: [&str; 2] = ["..", "../../Cargo.lock"];
    let changed = git(&[&["status", "--porcelain", "--untracked-files=no", "--"], CODE.as_slice()].concat());
    let suffix = if changed.is_some_and(|files| !files.is_empty()) { "-modified" } else { "" };
    println!("cargo::rustc-env=C2R_GIT_REVISION={revision}{suffix}");
    for path in CODE {
        println!("cargo::rerun-if-changed={path}");
    }
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", file]) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}
