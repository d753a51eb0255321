//! Where things are in the checkout, and the cargo commands that build it.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use c2r_run::{exit, process, terminal as ui};

use crate::compiler;

/// How often a line says that a silent program is still at work.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// The file by which a folder that `dist` packed is known.
pub(crate) const UNPACKED: &str = "dist.json";

/// A checkout of the repository, or what `dist` packed of one, which cannot build anything.
#[derive(Debug, Clone)]
pub(crate) struct Checkout {
    root: PathBuf,
    target: PathBuf,
    is_unpacked: bool,
}

impl Checkout {
    /// The unpacked archive that this program is in, else the checkout that `cargo xtask` was called in.
    ///
    /// # Errors
    /// If no folder above is a c2r checkout.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let program = env::current_exe().unwrap_or_default();
        if let Some(root) = program.ancestors().find(|folder| folder.join(UNPACKED).is_file()) {
            return Ok(Self { root: root.to_owned(), target: root.join("target"), is_unpacked: true });
        }
        let start = match variable("CARGO_MANIFEST_DIR") {
            Some(folder) => PathBuf::from(folder),
            None => env::current_dir()?,
        };
        let root = start
            .ancestors()
            .find(|folder| folder.join("xtask/Cargo.toml").is_file())
            .ok_or_else(|| exit::usage(format!("{} is not inside a c2r checkout", start.display())))?;
        let named = variable("CARGO_TARGET_DIR").map(|dir| root.join(dir));
        let target = named.or_else(|| target_of(&program, root)).unwrap_or_else(|| root.join("target"));
        Ok(Self { root: root.to_owned(), target, is_unpacked: false })
    }

    /// The top folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether this is an unpacked archive.
    pub(crate) fn is_unpacked(&self) -> bool {
        self.is_unpacked
    }

    /// Where cargo builds.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// The link to libtorch that `.cargo/config.toml` points at.
    pub(crate) fn libtorch_link(&self) -> PathBuf {
        self.root.join(".libtorch")
    }

    /// The `c2r` command, built or not.
    pub(crate) fn c2r(&self) -> PathBuf {
        self.target.join("release").join(format!("c2r{}", env::consts::EXE_SUFFIX))
    }

    /// The `c2r` command to run, which finds libtorch.
    pub(crate) fn run_c2r(&self) -> Command {
        let mut command = Command::new(self.c2r());
        with_libtorch(&mut command, &self.libtorch_link());
        command
    }

    /// Checks that there is a `c2r` command, for `--prebuilt`.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn check_c2r(&self) -> anyhow::Result<()> {
        let c2r = self.c2r();
        if c2r.is_file() {
            return Ok(());
        }
        let shown = c2r.display();
        Err(exit::usage(format!("--prebuilt: {shown} does not exist; build it, or leave --prebuilt out")))
    }

    /// `path` relative to the top folder, if it is inside.
    pub(crate) fn relative<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }

    /// A cargo command in the checkout. LIBTORCH is left to `.cargo/config.toml`.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(variable("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root).env_remove("LIBTORCH");
        if variable("CARGO_TARGET_DIR").is_none() {
            command.env_remove("CARGO_TARGET_DIR");
        }
        command
    }

    /// Checks that this is not an unpacked archive, in which there is nothing to build.
    ///
    /// # Errors
    /// If it is one.
    pub(crate) fn needs_sources(&self, doing: &str) -> anyhow::Result<()> {
        if !self.is_unpacked {
            return Ok(());
        }
        let root = self.root.display();
        Err(exit::usage(format!("{doing} needs a checkout of the repository, but {root} has only its programs")))
    }

    /// Runs a cargo command, with a line every half minute where there is no terminal.
    ///
    /// # Errors
    /// If it fails; names a C++ compiler if that is what is missing.
    pub(crate) fn run_cargo(&self, command: &mut Command, doing: &str) -> anyhow::Result<()> {
        self.needs_sources(doing)?;
        let mut next = HEARTBEAT;
        let status = process::foreground(command, |elapsed| {
            if elapsed >= next && !ui::is_terminal() {
                ui::note(format!("... {doing}: {}", ui::duration(elapsed)));
                next = elapsed + HEARTBEAT;
            }
        })?;
        if status.success() {
            return Ok(());
        }
        compiler::check()?;
        Err(exit::error(exit::UNEXPECTED, format!("{doing} failed ({status}); see its message above")))
    }

    /// Builds the `c2r` command; an unpacked archive has it.
    ///
    /// # Errors
    /// If the build fails.
    pub(crate) fn build_c2r(&self) -> anyhow::Result<()> {
        if self.is_unpacked && self.c2r().is_file() {
            return Ok(());
        }
        if !self.c2r().is_file() {
            ui::note("building c2r; the first build takes minutes (the bindings to libtorch)");
        }
        self.run_cargo(self.cargo().args(["build", "--release", "--package", "c2r-cli"]), "building c2r")
    }
}

/// Cargo's target folder: that in which this `program` lies, if it was built from the checkout `root`. A setting in a user's
/// configuration of cargo can move it.
fn target_of(program: &Path, root: &Path) -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let folder = program.parent()?;
    let is_ours = variable("CARGO_MANIFEST_DIR").is_some() && own == root && folder.ends_with("release");
    is_ours.then(|| folder.parent().map(Path::to_owned)).flatten()
}

/// An environment variable; one that is empty is not set.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// Lets a program find libtorch.
pub(crate) fn with_libtorch(command: &mut Command, link: &Path) {
    process::with_libraries(command, &link.join("lib"));
}

/// The data folder as the user named it: with an option, else with C2R_DATA.
pub(crate) fn data_folder(option: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    let variable = || variable("C2R_DATA").map(PathBuf::from);
    let user_folder = env::current_dir()?;
    Ok(option.map(Path::to_owned).or_else(variable).map(|dir| user_folder.join(dir)))
}
