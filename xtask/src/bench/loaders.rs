//! Our reading of an ImageNet subset next to torchvision's: the same JPEGs, size and number of threads.

use std::{fs, path::Path, process::Command};

use anyhow::Context;
use c2r_run::terminal as ui;
use serde::{Deserialize, Serialize};

use super::python::{self, Peers};
use crate::checkout::{self, Checkout};

/// JPEGs for training; a tenth as many for testing.
const N: usize = 3000;

#[derive(Debug, Deserialize, Serialize)]
struct Theirs {
    images: usize,
    seconds: f64,
}

/// What the example `load` prints, as far as it is read here.
#[derive(Debug, Deserialize, Serialize)]
struct Ours {
    images: usize,
    decoded: usize,
    load_seconds: f64,
    anonymous_mb_peak: u64,
}

#[derive(Debug, Deserialize, Serialize)]
struct Difference {
    mean: f64,
    max: u8,
    equal: f64,
    within_one: f64,
}

#[derive(Debug, Default, Serialize)]
struct Rounds {
    decoding: Vec<Ours>,
    cached: Vec<Ours>,
    torchvision: Vec<Theirs>,
}

/// Measures and prints.
pub(super) fn run(args: &Peers, checkout: &Checkout) -> anyhow::Result<()> {
    let mut build = checkout.cargo();
    build.args(["build", "--release", "--package", "c2r-data", "--example", "load"]);
    checkout.run_cargo(&mut build, "building the example `load`")?;
    let script = args.script(checkout.root().join("crates/c2r-data/benches/peers.py"))?;
    let workshop = tempfile::tempdir().context("cannot make a temporary folder")?;
    let data = workshop.path();
    let n = args.n.unwrap_or(N);
    ui::note(format!("making {n} + {} JPEGs", n / 10));
    let registry = checkout.root().join("data/datasets.toml");
    let (n_text, pictures) = (n.to_string(), args.pictures.as_ref().map(|path| path.to_string_lossy()));
    let (registry, data_text) = (registry.to_string_lossy(), data.to_string_lossy());
    let mut words = vec!["make", &registry, &data_text, &n_text];
    words.extend(pictures.as_deref());
    script.call(&words)?;

    let threads = args.threads();
    let threads_text = threads.to_string();
    let folder = data.join("imagenette2-320").to_string_lossy().into_owned();
    let ours = || -> anyhow::Result<Ours> {
        let mut command = Command::new(checkout.c2r().with_file_name("examples/load"));
        command.args(["imagenette", &data_text]).env("RAYON_NUM_THREADS", &threads_text);
        checkout::with_libtorch(&mut command, &checkout.libtorch_link());
        python::json(&python::printed_by(&mut command)?)
    };
    let cache = data.join(".c2r-cache");
    let mut rounds = Rounds::default();
    let repeats = args.repeats.unwrap_or(3);
    for round in 1..=repeats {
        ui::note(format!("round {round} of {repeats}"));
        if cache.exists() {
            fs::remove_dir_all(&cache).with_context(|| format!("cannot remove {}", cache.display()))?;
        }
        rounds.decoding.push(ours()?);
        rounds.cached.push(ours()?);
        rounds.torchvision.push(script.json(&["load", &folder, &threads_text])?);
    }
    let (first, second) = (&rounds.decoding[0], &rounds.cached[0]);
    anyhow::ensure!(
        first.decoded == first.images && second.decoded == 0 && rounds.torchvision[0].images == first.images,
        "the two did not do the same: {rounds:?}"
    );
    let difference: Difference = script.json(&["compare", &folder, &only_file(&cache)?])?;

    let seconds = |ours: &[Ours]| python::median(ours.iter().map(|round| round.load_seconds).collect());
    let theirs = python::median(rounds.torchvision.iter().map(|round| round.seconds).collect());
    let megabytes = rounds.decoding.iter().chain(&rounds.cached).map(|round| round.anonymous_mb_peak).max();
    let row = |name: &str, seconds: f64| {
        format!("| {name} | {seconds:.2} | {:.0} | {:.1} |", first.images as f64 / seconds, theirs / seconds)
    };
    ui::text(
        [
            format!(
                "{} JPEGs of 500x375 to 128x128, {threads} thread(s), medians of {repeats} rounds in turn, {}",
                first.images,
                args.pictures.as_ref().map_or("pictures of noise".into(), |path| format!("pictures of {}", path.display()))
            ),
            String::new(),
            "| reading | s | images/s | ratio |".into(),
            "|---|---|---|---|".into(),
            row("torchvision 0.26.0: ImageFolder, Resize, CenterCrop, PILToTensor", theirs),
            row("c2r, first time (decodes, writes and checks the cache)", seconds(&rounds.decoding)),
            row("c2r, from the cache (checked)", seconds(&rounds.cached)),
            String::new(),
            format!(
                "Pixels next to Pillow's: {:.2} % equal, {:.2} % within one, mean difference {:.3}, largest {}. Memory of \
                 c2r's own at its peak: {} MB.",
                100.0 * difference.equal,
                100.0 * difference.within_one,
                difference.mean,
                difference.max,
                megabytes.unwrap_or_default()
            ),
        ]
        .join("\n"),
    );
    args.write_json(&(rounds, difference))
}

fn only_file(folder: &Path) -> anyhow::Result<String> {
    let mut entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let entry = entries.next().context("no cache was written")??;
    Ok(entry.path().to_string_lossy().into_owned())
}
