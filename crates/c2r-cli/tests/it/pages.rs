//! Commands in pages, in blocks that begin with "```console tested", run as they stand there.

use super::*;

/// Runs the blocks of a page one after the other in a folder of their own; returns what they printed.
fn commands_of(page: &str) -> String {
    let (_guard, folder) = folder();
    commands_in(&folder, page)
}

/// The same in this folder.
fn commands_in(folder: &Path, page: &str) -> String {
    let blocks = page.split("```console tested\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    // A command begins with a dollar sign; the other lines go on with it.
    let script: String =
        blocks.flat_map(str::lines).map(|line| format!("{}\n", line.strip_prefix("$ ").unwrap_or(line))).collect();
    assert!(script.contains("c2r "), "the page has no tested command");
    let program = Path::new(env!("CARGO_BIN_EXE_c2r")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.args(["-eu", "-o", "pipefail", "-c", &script]).current_dir(folder).env("PATH", path).env_remove("C2R_DATA");
    text(&run(bash.stdin(Stdio::null())).stdout)
}

#[test]
fn readme() {
    let said = commands_of(include_str!("../../../../README.md"));
    assert!(said.contains("digits, adversarial training (PGD-AT)"), "{said}");
}

#[test]
fn distil_and_train() {
    commands_of(include_str!("../../../../docs/start/train.md"));
}

/// The table compares the three methods. The same commands again find everything finished.
#[test]
fn compare() {
    let (_guard, folder) = folder();
    for _ in 0..2 {
        let said = commands_in(&folder, include_str!("../../../../docs/start/compare.md"));
        for row in ["| 1 | mine", "| 1 | c2r", "| 1 | random-real"] {
            assert!(said.contains(row), "{said}");
        }
    }
}

#[test]
fn a_loss_of_ones_own() {
    commands_of(include_str!("../../../../docs/own-loss.md"));
}
