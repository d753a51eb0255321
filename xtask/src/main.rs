//! `cargo xtask`: set-up, downloads, tests, reproduction and checks of this repository.
//!
//! Links neither libtorch nor a c2r library that does, so it builds anywhere and can install what they need.

mod bench;
mod book;
mod cache;
mod checkout;
mod compiler;
mod download;
mod fuzz;
mod install;
mod libtorch;
mod package;
mod python;
mod regression;
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

/// Set-up, downloads, tests, reproduction and checks of this repository
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 120, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask setup
  cargo xtask download cifar10 --data ~/datasets
  cargo xtask reproduce table2 --scale quick
  cargo xtask test

Exit codes: 0 done, 1 unexpected failure, 2 wrong arguments or machine set-up, 3 data missing or wrong, \
4 finished but outside the stated tolerance, 124 the time limit is over, 130 interrupted (the same command resumes).";

#[derive(Subcommand)]
enum Command {
    Setup(setup::Args),
    Download(download::Args),
    Test(test::Args),
    Reproduce(reproduce::Args),
    Bench(bench::Args),
    Fuzz(fuzz::Args),
    Book(book::Args),
    Tidy(tidy::Args),
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    signals::listen(Program::Parent)?;
    let checkout = Checkout::find()?;
    match &cli.command {
        Command::Setup(args) => setup::run(args, &checkout),
        Command::Download(args) => download::run(args, &checkout),
        Command::Test(args) => test::run(args, &checkout),
        Command::Reproduce(args) => reproduce::run(args, &checkout),
        Command::Bench(args) => bench::run(args, &checkout),
        Command::Fuzz(args) => fuzz::run(args, &checkout),
        Command::Book(args) => book::run(args, &checkout),
        Command::Tidy(args) => tidy::run(args, &checkout),
    }
}

fn main() -> ExitCode {
    terminal::catch_panics();
    arguments::parse().map_or_else(|code| code, |cli: Cli| terminal::conclude(run(&cli)))
}
