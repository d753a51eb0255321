//! `cargo xtask dist`: one archive with which a machine without Rust runs c2r, grids and the comparison with Python.
//!
//! It unpacks to a folder that is laid out as a checkout is, so that every command finds its files where it does there.

use std::{env, fs, io::Write, path::PathBuf, process::Command};

use anyhow::Context;
use c2r_files::AtomicFile;
use c2r_run::{exit, process, terminal as ui};
use c2r_setup::libtorch::LIBTORCH_VERSION;
use lzma_rust2::{XzOptions, XzWriter};

use crate::{
    checkout::{Checkout, UNPACKED},
    setup,
};

/// What is taken as it is: files, and folders with everything in them.
const TAKEN: [&str; 11] = [
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "crates/c2r-attacks/benches/peers.py",
    "crates/c2r-attacks/tests/goldens/digits.safetensors",
    "data/datasets.toml",
    "data/digits",
    "data/paper",
    "data/profiles",
    "data/protocols",
    "data/speeds",
    "tests/peers",
];

/// What is only there.
const ADDED: [(&str, &str, u32); 3] = [
    ("README.md", include_str!("dist/README.md"), 0o644),
    ("c2r", include_str!("dist/c2r.sh"), 0o755),
    ("xtask", include_str!("dist/xtask.sh"), 0o755),
];

/// 6 is faster by a quarter and makes it larger by a fifteenth.
const PRESET: u32 = 8;

/// Make an archive that runs c2r on machines without Rust
///
/// The archive holds c2r and this program (both stripped of symbols), the profiles, protocols and experiments, the digits, and
/// the scripts of `bench --peers`. Its README.md says how to use it. docs/install.md explains what the other machine needs.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Examples:
  # Make target/dist/c2r-VERSION-ARCH-linux.tar.xz
  cargo xtask dist

  # On the other machine: tar, or a Python, unpacks it
  python3 -m tarfile -e c2r-*.tar.xz && cd c2r-*/ && ./c2r doctor")]
pub(crate) struct Args {
    /// The archive, a .tar.xz [default: in target/dist]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Skip set-up and build; pack the existing build of c2r
    #[arg(long)]
    prebuilt: bool,
}

/// The command.
pub(crate) fn run(args: &Args, checkout: &Checkout) -> anyhow::Result<()> {
    if !args.prebuilt {
        setup::ensure(checkout)?;
        checkout.build_c2r()?;
    }
    let top = format!("c2r-{}-{}-{}", env!("CARGO_PKG_VERSION"), env::consts::ARCH, env::consts::OS);
    let output = args.output.clone().unwrap_or_else(|| checkout.target().join("dist").join(format!("{top}.tar.xz")));
    let mut files: Vec<(String, Vec<u8>, u32)> = Vec::new();
    for program in [checkout.c2r(), env::current_exe().context("cannot tell which program this is")?] {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push((format!("target/release/{name}"), stripped(&program)?, 0o755));
    }
    files.extend(ADDED.map(|(name, text, mode)| (name.to_owned(), text.into(), mode)));
    let about = serde_json::json!({"c2r": env!("CARGO_PKG_VERSION"), "libtorch": LIBTORCH_VERSION});
    files.push((UNPACKED.to_owned(), format!("{about:#}\n").into(), 0o644));
    let mut open: Vec<PathBuf> = TAKEN.iter().map(|name| checkout.root().join(name)).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))?;
            // Python's own cache, and what an editor left.
            let is_left_out =
                |path: &PathBuf| path.ends_with("__pycache__") || path.extension().is_some_and(|end| end == "swp");
            for entry in entries {
                open.extend(Some(entry?.path()).filter(|path| !is_left_out(path)));
            }
        } else {
            let name = checkout.relative(&path).to_string_lossy().into_owned();
            files.push((name, c2r_files::read(&path)?, 0o644));
        }
    }
    files.sort();

    let failed = || format!("cannot write {}", output.display());
    let mut file = AtomicFile::create(&output)?;
    let mut archive = tar::Builder::new(XzWriter::new(&mut file, XzOptions::with_preset(PRESET)).with_context(failed)?);
    for (name, bytes, mode) in &files {
        process::check_interrupt()?;
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(*mode);
        archive.append_data(&mut header, format!("{top}/{name}"), &bytes[..]).with_context(failed)?;
    }
    archive.into_inner().and_then(XzWriter::finish).and_then(Write::flush).with_context(failed)?;
    file.finish()?;
    let bytes = fs::metadata(&output).with_context(failed)?.len();
    ui::note(format!("{} files, {}", files.len(), ui::megabytes(bytes)));
    ui::out(output.display().to_string());
    Ok(())
}

/// A program without its symbols, which are a fifth of it.
fn stripped(program: &PathBuf) -> anyhow::Result<Vec<u8>> {
    if !program.is_file() {
        return Err(exit::usage(format!("{} does not exist; build it, or leave --prebuilt out", program.display())));
    }
    let workshop = tempfile::tempdir().context("cannot make a temporary folder")?;
    let smaller = workshop.path().join("program");
    let mut command = Command::new("strip");
    command.args(["--strip-all", "-o"]).args([&smaller, program]);
    let said = process::output(&mut command)?
        .ok_or_else(|| exit::usage("`strip` is not installed; it comes with the linker: apt-get install binutils"))?;
    let reason = String::from_utf8_lossy(&said.stderr);
    anyhow::ensure!(said.status.success(), "`strip` failed on {}: {}", program.display(), reason.trim());
    Ok(c2r_files::read(&smaller)?)
}
