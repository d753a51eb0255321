//! `cargo xtask setup`: finds or installs libtorch and links it to `.libtorch`. The work is done by `c2r-setup`.

use std::path::PathBuf;

use c2r_run::terminal as ui;
use c2r_setup::{Cuda, choose, libtorch::Libtorch, link};

use crate::{
    checkout::{Checkout, variable},
    compiler,
};

/// Find or install libtorch, and link it to `.libtorch`, where cargo looks for it
///
/// Takes the first that it finds: the libtorch that the environment variable LIBTORCH names, the one in `torch` of your Python, or the
/// one in the cache folder (c2r in $XDG_CACHE_HOME or ~/.cache). If there is none, pip installs libtorch into the cache folder.
/// docs/install.md says more.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = include_str!("help/setup.txt"))]
pub(crate) struct Args {
    /// Whether libtorch must be able to use a GPU
    #[arg(long, value_enum, default_value_t = Cuda::Auto)]
    cuda: Cuda,

    /// Download libtorch again, even if it is installed
    #[arg(long)]
    force: bool,
}

/// The command.
pub(crate) fn run(args: &Args, checkout: &Checkout) -> anyhow::Result<()> {
    if !checkout.is_unpacked() {
        compiler::check()?;
    }
    let found = choose(chosen_by_user(checkout).as_deref(), args.cuda, args.force)?;
    link(&found, &checkout.libtorch_link())?;
    ui::note(format!("{found}, linked to .libtorch"));
    Ok(())
}

/// Sets up unless that is done: what every command that builds calls first. Instant if so.
///
/// # Errors
/// As [`run`].
pub(crate) fn ensure(checkout: &Checkout) -> anyhow::Result<()> {
    let link = checkout.libtorch_link();
    if let Ok(linked) = Libtorch::inspect(&link) {
        let chosen = chosen_by_user(checkout).map(|folder| folder.canonicalize());
        let as_chosen = chosen.is_none_or(|folder| folder.ok() == link.canonicalize().ok());
        if linked.is_right_version() && as_chosen {
            return Ok(());
        }
    }
    run(&Args { cuda: Cuda::Auto, force: false }, checkout)
}

/// `LIBTORCH` of the user. Where it is not set, cargo sets it to our own link (`.cargo/config.toml`).
fn chosen_by_user(checkout: &Checkout) -> Option<PathBuf> {
    let folder = PathBuf::from(variable("LIBTORCH")?);
    (!folder.as_os_str().is_empty() && folder != checkout.libtorch_link()).then_some(folder)
}
