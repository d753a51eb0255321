//! The command as separate processes: downloads from a hostile server; `reproduce` killed, side by side, and under a real
//! Slurm, with a shell script in the place of `c2r`; the archive of `dist`, with the real one.
#![cfg(unix)]

mod bench;
#[cfg(target_os = "linux")]
mod dist;
mod download;
mod reproduce;
mod slurm;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use c2r_experiment::BuiltIn;

/// Six distilled sets, each trained on and attacked under two protocols.
const EXPERIMENT: &str = r#"
schema_version = 2
name = "example"
title = "An example"
source = "nobody"
tolerance = 2.0
[methods.one]
label = "one"
kind = "distill"
profile = "data/profiles/p.toml"
[methods.two]
label = "two"
kind = "distill"
profile = "data/profiles/p.toml"
[scales.quick]
about = "an example"
methods = ["one", "two"]
datasets = ["digits"]
ipcs = [1]
seeds = [0, 1, 2]
protocols = ["natural", "pgd-at"]
attacks = ["fgsm"]
norm = "linf"
epsilons = ["0.1"]
threads = 1
"#;

/// Commands of the example: a distillation, two trainings, two attacks for each set.
const N_COMMANDS: usize = 6 * 5;

/// Says what it was built with. Writes what else it was called with into `calls`, fails if it is not alone in its folder, fails in seed 1's distillation while
/// there is a file `broken`, takes longer while there is a file `slow`. While there is a file `outside`, table and report end
/// with code 4; while there is `unreadable`, the report cannot be made; while there is `no-device`, no time is estimated. A command
/// with the word `mistaken` is one that it would refuse.
const C2R: &str = r#"#!/bin/sh
[ "$1" = built-in ] && { read -r line < built-in.json; echo "$line"; exit; }
[ "$1 $3" = "estimate --check" ] && {
    while read -r line; do
        case $line in
            *mistaken*) echo '{"error": "it is mistaken", "code": 2}' ;;
            *) echo '{}' ;;
        esac
    done < "$2"
    exit
}
echo "$*" >> calls
command=$1
while [ $# -gt 0 ]; do
    case $1 in
        --run-dir) dir=$2 ;;
        --output) out=$2; dir=$(dirname "$2") ;;
        --seed) seed=$2 ;;
    esac
    shift
done
[ "$command" = estimate ] && [ -f slow ] && sleep 2
[ "$command" = estimate ] && [ -f no-device ] && { echo "error: --device cuda is not available" >&2; exit 2; }
[ -f outside ] && verdict=4
[ "$command" = table ] && { echo "the table"; exit ${verdict:-0}; }
[ "$command$(ls unreadable 2>/dev/null)" = reportunreadable ] && { echo "error: cannot read it" >&2; exit 3; }
[ "$command" = report ] && { echo "the page" > "$out"; exit ${verdict:-0}; }
mkdir -p "$dir"
mkdir "$dir/alone" || { echo "not alone in $dir"; exit 9; }
trap 'rmdir "$dir/alone"' EXIT
trap 'exit 130' TERM
[ -f broken ] && [ "$command$seed" = distill1 ] && { echo "error: cannot read data_batch_1.bin"; exit 3; }
[ -f slow ] && sleep 0.3
case $command in
    distill) echo "$seed" > "$dir/synthetic.safetensors" ;;
    train) echo "$seed" > "$dir/model.safetensors"; echo "{}" > "$dir/run.json" ;;
    attack) echo "{}" > "$out" ;;
esac
"#;

/// An entry of the registry; what is read by the command itself is given.
fn dataset(name: &str, folder: &str, more: &str) -> String {
    format!(
        "[[dataset]]\nname = \"{name}\"\nformat = \"{name}\"\nfolders = [\"{folder}\"]\ntitle = \"\"\nchannels = 1\n\
         height = 8\nwidth = 8\nmean = [0.5]\nstd = [0.5]\nepsilon = \"0.1\"\nmodel = \"\"\ndsa = \"\"\nlicence = \"\"\n\
         homepage = \"\"\nclasses = []\n{more}\n"
    )
}

/// A checkout with the example in a temporary folder.
struct Checkout {
    folder: tempfile::TempDir,
}

impl Checkout {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut written = Vec::new();
        let mut write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            written.push((name.to_owned(), text.to_owned()));
        };
        write("xtask/Cargo.toml", "");
        write("data/paper/example.toml", EXPERIMENT);
        write("data/profiles/p.toml", "eta = 0.4");
        for protocol in ["natural", "pgd-at"] {
            write(&format!("data/protocols/{protocol}.toml"), "lr = 0.01");
        }
        write("data/digits/digits.csv", "pixels");
        let embedded = "embedded = { path = \"data/digits/digits.csv\", bytes = 6, sha256 = \"\" }";
        write("data/datasets.toml", &format!("schema_version = 1\n{}", dataset("digits", "", embedded)));
        write("target/release/script", C2R);
        let texts = written.iter().map(|(name, text)| (name.clone(), text.as_str()));
        let built_in = serde_json::to_string(&BuiltIn::new(["fgsm"], texts)).unwrap();
        fs::write(folder.path().join("built-in.json"), built_in).unwrap();
        // Copied by another process: a program that is open for writing here, by a test beside this one, cannot be started.
        let copy = "cp \"$0/script\" \"$0/c2r\" && chmod +x \"$0/c2r\"";
        let copied = Command::new("sh").args(["-c", copy]).arg(folder.path().join("target/release")).status().unwrap();
        assert!(copied.success());
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn mark(&self, name: &str) {
        fs::write(self.path(name), "").unwrap();
    }

    fn reproduce(&self, more: &[&str]) -> Command {
        self.xtask(&[&["reproduce", "example", "--scale", "quick", "--prebuilt"], more].concat())
    }

    fn xtask(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(args);
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_TARGET_DIR").env_remove("C2R_DATA");
        command
    }

    /// How often each command was started; table and report do not count.
    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        text.lines()
            .filter(|line| !line.starts_with("table") && !line.starts_with("report"))
            .map(String::from)
            .collect()
    }

    fn n_finished(&self) -> usize {
        let jobs = fs::read_dir(self.path("runs/jobs")).into_iter().flatten().flatten();
        jobs.filter(|job| job.path().join("job.json").is_file()).count()
    }
}

/// What is needed: c2r as it was built last, and the libtorch that it was built on.
#[expect(clippy::print_stderr, reason = "a test that is left out says so")]
fn built_libtorch() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let c2r = Path::new(env!("CARGO_BIN_EXE_xtask")).with_file_name("c2r");
    let libtorch = root.join(".libtorch").canonicalize().ok().filter(|_| c2r.is_file());
    if libtorch.is_none() {
        let text = "SKIPPED: what needs the real c2r, which is not built; cargo build --release";
        assert!(env::var_os("C2R_TEST_STRICT").is_none(), "{text}");
        eprintln!("{text}");
    }
    libtorch
}

/// Exit code and what was said.
fn ended(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn exists(path: &Path) -> bool {
    path.exists()
}
