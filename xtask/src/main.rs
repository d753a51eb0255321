//! `cargo xtask`: set-up, downloads, tests, reproduction and checks of this repository.
//!
//! Links neither libtorch nor a c2r library that does, so it builds anywhere and can install what they need.

mod bench;
mod book;
mod checkout;
mod compiler;
mod dist;
mod download;
mod fuzz;
mod package;
mod reproduce;
mod setup;
mod smoke;
mod test;
mod tidy;

use std::process::ExitCode;

use c2r_run::{
    arguments,
    signals::{self, Program},
    terminal,
};
use clap::{Parser, Subcommand};

use checkout::Checkout;

/// Set up, download data, run tests, reproduce the paper's tables, and check this repository
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 120, after_long_help = include_str!("help/xtask.txt"))]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Args),
    Download(download::Args),
    Test(test::Args),
    Reproduce(reproduce::Args),
    Bench(bench::Args),
    Fuzz(fuzz::Args),
    Book(book::Args),
    Dist(dist::Args),
    Tidy(tidy::Args),
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    signals::listen(Program::Parent)?;
    let checkout = Checkout::find()?;
    if matches!(cli.command, Command::Fuzz(_) | Command::Book(_) | Command::Tidy(_) | Command::Dist(_)) {
        checkout.needs_sources("this command")?;
    }
    match &cli.command {
        Command::Setup(args) => setup::run(args, &checkout),
        Command::Download(args) => download::run(args, &checkout),
        Command::Test(args) => test::run(args, &checkout),
        Command::Reproduce(args) => reproduce::run(args, &checkout),
        Command::Bench(args) => bench::run(args, &checkout),
        Command::Fuzz(args) => fuzz::run(args, &checkout),
        Command::Book(args) => book::run(args, &checkout),
        Command::Dist(args) => dist::run(args, &checkout),
        Command::Tidy(args) => tidy::run(args, &checkout),
    }
}

fn main() -> ExitCode {
    // Memory runs out in commands of c2r, which say themselves what to do.
    let advice = |_: &str| None;
    terminal::catch_panics(advice);
    ExitCode::from(arguments::parse().map_or_else(|code| code, |cli: Cli| terminal::conclude(run(&cli), advice)))
}
