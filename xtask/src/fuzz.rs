//! `cargo xtask fuzz`: libFuzzer on every reader, with the stable compiler.
//!
//! libFuzzer is C++ that the crate libfuzzer-sys compiles, so neither a nightly compiler nor cargo-fuzz is needed. Only
//! our crates are compiled with coverage, through a wrapper around rustc: everything else, the bindings to libtorch
//! above all, is taken from the ordinary build.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::Context;
use c2r_run::{exit, process, terminal as ui};

use crate::{
    checkout::{self, Checkout},
    setup,
};

/// A reader that holds more than this is a finding, megabytes. libtorch itself takes 300.
const MOST_MEMORY_MB: u32 = 1500;
/// A file that takes longer than this to refuse is a finding, seconds.
const LONGEST_INPUT: u32 = 10;
/// What libFuzzer may grow a file to, bytes.
const LARGEST_INPUT: u32 = 20_000;
/// Where the wrapper around rustc lies, from the top folder.
const WRAPPER: &str = "tests/fuzz/rustc-with-coverage";

/// Feed randomly changed files to the code that reads them, to find crashes, hangs and excessive memory
///
/// Starts from the files in tests/fuzz/corpus/TARGET. Files that cause a failure are kept in target/fuzz/findings, with the command
/// that repeats the failure; once it is fixed, the file belongs in tests/fuzz/corpus. Works with the stable compiler.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = include_str!("help/fuzz.txt"))]
pub(crate) struct Args {
    /// Seconds for all targets together, without the build
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,

    /// Number of targets to run at once [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,

    /// List the targets
    #[arg(long)]
    list: bool,

    /// Targets [default: all]
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

/// The command.
pub(crate) fn run(args: &Args, checkout: &Checkout) -> anyhow::Result<()> {
    let known = targets(checkout)?;
    if args.list {
        known.iter().for_each(ui::out);
        return Ok(());
    }
    if let Some(unknown) = args.targets.iter().find(|name| !known.contains(name)) {
        return Err(exit::usage(format!("`{unknown}` is not a target; the targets are {}", known.join(", "))));
    }
    let chosen = if args.targets.is_empty() { known } else { args.targets.clone() };
    setup::ensure(checkout)?;
    let program = build(checkout)?;

    let jobs = args.jobs.map_or_else(|| thread::available_parallelism().map_or(1, usize::from), usize::from);
    let seconds = seconds_each(args.seconds, chosen.len(), jobs);
    ui::note(format!("{}, {seconds} s each, {jobs} at a time", ui::counted(chosen.len(), "target")));
    let mut failed = Vec::new();
    for names in chosen.chunks(jobs) {
        let started: Vec<Running> =
            names.iter().map(|name| Running::start(checkout, &program, name, seconds)).collect::<Result<_, _>>()?;
        for running in started {
            let name = running.name.clone();
            if !running.finish()? {
                failed.push(name);
            }
        }
        process::check_interrupt()?;
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(exit::error(exit::UNEXPECTED, format!("readers fail on files of {}; see above", failed.join(", "))))
}

/// Names of the targets: the folders of the corpus, of which a test says that they are complete.
fn targets(checkout: &Checkout) -> anyhow::Result<Vec<String>> {
    let corpus = corpus(checkout);
    let entries = fs::read_dir(&corpus).with_context(|| format!("cannot read {}", corpus.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn corpus(checkout: &Checkout) -> PathBuf {
    checkout.root().join("tests/fuzz/corpus")
}

/// `total` shared out over rounds of `jobs` targets.
fn seconds_each(total: u64, n_targets: usize, jobs: usize) -> u64 {
    (total / n_targets.div_ceil(jobs).max(1) as u64).max(1)
}

fn build(checkout: &Checkout) -> anyhow::Result<PathBuf> {
    let mut command = checkout.cargo();
    command.args(["build", "--release", "--package", "c2r-fuzz", "--bin", "c2r-fuzz", "--features", "libfuzzer"]);
    // Of our own crates alone cargo keeps what a wrapper made apart from what plain rustc made.
    command.env("RUSTC_WORKSPACE_WRAPPER", checkout.root().join(WRAPPER));
    checkout.run_cargo(&mut command, "building the readers with coverage")?;
    Ok(checkout.c2r().with_file_name(format!("c2r-fuzz{}", std::env::consts::EXE_SUFFIX)))
}

/// One target at work.
struct Running {
    name: String,
    child: Child,
    log: PathBuf,
    findings: PathBuf,
    repeat: String,
}

impl Running {
    fn start(checkout: &Checkout, program: &Path, name: &str, seconds: u64) -> anyhow::Result<Self> {
        let folder = checkout.root().join("target/fuzz");
        let (learned, findings) = (folder.join("corpus").join(name), folder.join("findings").join(name));
        for made in [&learned, &findings] {
            fs::create_dir_all(made).with_context(|| format!("cannot create {}", made.display()))?;
        }
        let mut command = Command::new(program);
        command.env("C2R_FUZZ_TARGET", name).env("OMP_NUM_THREADS", "1").current_dir(checkout.root());
        checkout::with_libtorch(&mut command, &checkout.libtorch_link());
        command.args([
            format!("-max_total_time={seconds}"),
            format!("-rss_limit_mb={MOST_MEMORY_MB}"),
            format!("-timeout={LONGEST_INPUT}"),
            format!("-max_len={LARGEST_INPUT}"),
            format!("-artifact_prefix={}/", findings.display()),
            "-print_final_stats=1".into(),
        ]);
        command.arg(&learned).arg(corpus(checkout).join(name));
        let log = folder.join(format!("{name}.log"));
        let child = process::background(command, Stdio::null(), &log)?;
        let repeat = format!(
            "C2R_FUZZ_TARGET={name} LD_LIBRARY_PATH=.libtorch/lib {} FILE",
            checkout.relative(program).display()
        );
        Ok(Self { name: name.to_owned(), child, log, findings, repeat })
    }

    /// Waits; says how it went and whether nothing was found.
    fn finish(mut self) -> anyhow::Result<bool> {
        let status = process::wait(&mut self.child, |_| true)?;
        process::check_interrupt()?;
        let log = String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned();
        if status.success() {
            let number = |name: &str| stat(&log, name).unwrap_or_default();
            let (runs, new) = (number("stat::number_of_executed_units:"), number("stat::new_units_added:"));
            anyhow::ensure!(runs > 0, "{}: libFuzzer ran nothing; see {}", self.name, self.log.display());
            ui::note(format!("{:<16} {:>11} files, {new} of them new", self.name, ui::count(runs as f64)));
            return Ok(true);
        }
        let start = log.lines().position(|line| line.contains("panicked at") || line.contains("ERROR: libFuzzer"));
        let lines: Vec<&str> = log.lines().skip(start.unwrap_or(0)).take(25).collect();
        ui::notes(format!(
            "{}: {status}\n{}\nfiles in {}, the log in {}; to repeat:\n  {}",
            self.name,
            lines.join("\n"),
            self.findings.display(),
            self.log.display(),
            self.repeat
        ));
        Ok(false)
    }
}

impl Drop for Running {
    /// Where one target ends with an error, the others must not go on alone.
    fn drop(&mut self) {
        process::kill(&mut self.child);
    }
}

/// A number that libFuzzer prints at its end.
fn stat(log: &str, name: &str) -> Option<u64> {
    log.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_shared_out() {
        assert_eq!(seconds_each(60, 21, 2), 5);
        assert_eq!(seconds_each(60, 1, 8), 60);
        assert_eq!(seconds_each(1, 21, 2), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_target_that_is_given_up_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut command = Command::new("sleep");
        command.arg("60");
        let child = process::background(command, Stdio::null(), &log).unwrap();
        let id = Path::new("/proc").join(child.id().to_string());
        assert!(id.exists());
        let (name, repeat) = ("sleep".to_owned(), String::new());
        drop(Running { name, child, log, findings: PathBuf::new(), repeat });
        assert!(!id.exists());
    }

    #[test]
    fn statistics_are_read() {
        let log = "#2 INITED\nstat::number_of_executed_units: 1234\nstat::new_units_added:          5\n";
        assert_eq!(stat(log, "stat::number_of_executed_units:"), Some(1234));
        assert_eq!(stat(log, "stat::new_units_added:"), Some(5));
        assert_eq!(stat(log, "stat::absent:"), None);
    }
}
