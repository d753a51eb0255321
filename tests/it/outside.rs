//! A distillation method in someone else's crate.

use std::process::Command;

/// The program, an example of `c2r-distill`, is built with the dependencies of this package and not with what tests have.
#[test]
fn another_crate_adds_a_method_in_one_file() {
    let output = Command::new(env!("CARGO_BIN_EXE_own_method")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.lines().last(), Some("pixel-mean: 10 images, the loss fell"));
}
