use std::{fs, process::Command};

use super::{Checkout, ended};

/// The program was built elsewhere, and the link to libtorch does not exist yet.
#[test]
fn a_prebuilt_program_is_there_and_finds_libtorch() {
    let checkout = Checkout::new();
    let libtorch = checkout.path("torch");
    for name in ["include/torch/csrc/api/include/torch/torch.h", "lib/libtorch_cpu.so", "lib/libc10.so"] {
        fs::create_dir_all(libtorch.join(name).parent().unwrap()).unwrap();
        fs::write(libtorch.join(name), "").unwrap();
    }
    fs::write(libtorch.join("build-version"), "2.11.0").unwrap();
    let measure = || {
        let mut command = checkout.xtask(&["bench", "gpu", "--tiny", "--prebuilt"]);
        ended(&command.env("LIBTORCH", &libtorch).env("LD_LIBRARY_PATH", "elsewhere").output().unwrap())
    };
    // Written by another process: a program that is open for writing here, by a test beside this one, cannot be started.
    let script = r#"printf '#!/bin/sh\necho "libraries in $LD_LIBRARY_PATH" >&2\nexit 9\n' > "$0""#;
    let written = Command::new("sh").args(["-c", script]).arg(checkout.path("target/release/c2r")).status().unwrap();
    assert!(written.success());
    let (code, said) = measure();
    let link = checkout.path(".libtorch");
    assert!(code == Some(1) && said.contains(&format!("libraries in {}/lib:elsewhere", link.display())), "{said}");
    assert_eq!(fs::read_link(&link).unwrap(), libtorch.canonicalize().unwrap());

    fs::remove_file(checkout.path("target/release/c2r")).unwrap();
    let (code, said) = measure();
    assert!(code == Some(2) && said.contains("c2r does not exist; build it, or leave --prebuilt out"), "{said}");
}
