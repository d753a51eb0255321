//! The C++ compiler that the bindings to libtorch need.

use std::{env, process::Command};

use c2r_run::{exit, process};

/// Checks that a C++ compiler is there, by the rule of the build script that will call it: `CXX`, else `c++`.
///
/// # Errors
/// What to install.
pub(crate) fn check() -> anyhow::Result<()> {
    let chosen = env::var("CXX").ok().filter(|name| !name.trim().is_empty());
    let command_line = chosen.as_deref().unwrap_or("c++");
    let mut words = command_line.split_whitespace();
    let program = words.next().unwrap_or("c++");
    let works = process::output(Command::new(program).args(words).arg("--version"))?
        .is_some_and(|output| output.status.success());
    if works {
        return Ok(());
    }
    Err(exit::usage(match chosen {
        Some(name) => format!("CXX is `{name}`, which does not run; unset it or name a C++17 compiler"),
        None => format!("no C++ compiler (`c++`) was found, and the bindings to libtorch need one; {INSTALL}"),
    }))
}

const INSTALL: &str = "install one, for example\n    \
    Debian, Ubuntu:  sudo apt-get install g++\n    \
    Fedora, RHEL:    sudo dnf install gcc-c++\n    \
    Arch:            sudo pacman -S gcc\n    \
    macOS:           xcode-select --install";
