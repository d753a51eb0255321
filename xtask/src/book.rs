//! `cargo xtask book`: the pages of docs/ as a book, by mdBook.

use std::{env, path::PathBuf, process::Command};

use c2r_run::terminal as ui;
use c2r_setup::cache;

use crate::checkout::Checkout;

/// Version of mdBook.
const VERSION: &str = "0.5.4";

/// Build the pages of docs/ as a book with search: target/book/index.html
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
mdBook 0.5.4 makes it. The first time, `cargo install` compiles mdBook into the cache folder, which takes minutes.

Examples:
  # Build the book
  cargo xtask book

  # Check the links of the pages
  cargo xtask tidy")]
pub(crate) struct Args {}

/// The command.
pub(crate) fn run(_: &Args, checkout: &Checkout) -> anyhow::Result<()> {
    let mut command = Command::new(mdbook(checkout)?);
    command.arg("build").arg(checkout.root().join("docs"));
    checkout.run_cargo(&mut command, "building the book")?;
    ui::out("target/book/index.html");
    Ok(())
}

/// The program, which is installed if it is not there.
fn mdbook(checkout: &Checkout) -> anyhow::Result<PathBuf> {
    let (cache, name) = (cache::folder()?, format!("mdbook-{VERSION}"));
    let program = cache.join(&name).join("bin").join(format!("mdbook{}", env::consts::EXE_SUFFIX));
    if !program.is_file() {
        cache::make(
            &cache,
            &name,
            || program.is_file(),
            |_, made| {
                ui::note(format!("installing mdBook {VERSION}, once per user"));
                let mut command = checkout.cargo();
                command.args(["install", "mdbook", "--version", VERSION, "--locked", "--no-default-features"]);
                // Not optimized, it compiles in half the time and takes a second for these pages.
                command.args(["--debug", "--features", "search", "--root"]).arg(made);
                checkout.run_cargo(&mut command, "installing mdBook")
            },
        )?;
    }
    Ok(program)
}
