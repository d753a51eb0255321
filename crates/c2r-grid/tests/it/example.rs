//! A small grid in a temporary checkout, for the tests in this folder and in `src`.

use c2r_experiment::{Experiment, Subgrid};
use c2r_grid::{Datasets, Grid, GridPlan, Job, Shard, Workplace};

/// Two distilled methods, one that is not implemented and the reference, on two datasets.
const EXPERIMENT: &str = r#"
schema_version = 2
name = "example"
title = "An example"
source = "nobody"
tolerance = 2.0
[methods.full]
label = "all real images"
kind = "full"
[methods.class-mean]
label = "class means"
kind = "distill"
profile = "data/profiles/faithful.toml"
set = ["crl=false"]
[methods.c2r]
label = "C2R"
kind = "distill"
profile = "data/profiles/faithful.toml"
[methods.dm]
label = "DM"
kind = "distill"
implemented = false
[scales.quick]
about = "seconds"
methods = ["full", "class-mean", "c2r", "dm"]
datasets = ["digits", "cifar10"]
ipcs = [1, 10]
seeds = [0, 1, 2]
protocols = ["natural", "pgd-at"]
attacks = ["fgsm", "pgd"]
norm = "linf"
epsilons = ["0.1"]
distill-set = ["iterations=30"]
train-set = ["steps=20"]
attack-set = ["pgd.steps=3", "pgd.step-size=2/255"]
model = "ConvNet-D3-W32-IN"
train-per-class = 500
n-test = 100
threads = 1
[[scales.quick.overrides]]
dataset = "cifar10"
ipc = 10
distill-set = ["eta=0.6"]
[[scales.quick.overrides]]
method = "c2r"
protocol = "natural"
attack-set = ["pgd.steps=5"]
"#;

/// A registry with digits in the repository and another dataset in a folder.
const DATASETS: &str = r#"
schema_version = 1
[[dataset]]
name = "digits"
title = "Digits"
format = "digits"
channels = 1
height = 8
width = 8
mean = [0.3]
std = [0.4]
epsilon = "32/255"
model = "ConvNet-D2-W32-IN"
dsa = "crop"
folders = []
licence = "none"
homepage = "none"
classes = ["0", "1"]
embedded = { path = "data/digits/digits.bin", bytes = 6, sha256 = "" }
[[dataset]]
name = "cifar10"
title = "CIFAR-10"
format = "cifar10"
channels = 3
height = 32
width = 32
mean = [0.5, 0.5, 0.4]
std = [0.2, 0.2, 0.3]
epsilon = "2/255"
model = "ConvNet-D3-W128-IN"
dsa = "crop"
folders = ["cifar-10-batches-bin"]
licence = "none"
homepage = "none"
classes = ["a", "b"]
"#;

/// The datasets of the example, or those of the same names.
pub(crate) fn datasets(place: &Workplace) -> Datasets {
    Datasets::read(place, &["digits", "cifar10"].map(String::from)).unwrap()
}

/// A checkout with the example, one profile, two protocols and two small datasets, in a temporary folder.
pub(crate) struct Example {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) experiment: Experiment,
    pub(crate) place: Workplace,
}

impl Example {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let write = |name: &str, text: &str| c2r_files::write_atomically(&root.join(name), text.as_bytes()).unwrap();
        write("data/paper/example.toml", EXPERIMENT);
        write("data/profiles/faithful.toml", "eta = 0.4");
        write("data/protocols/natural.toml", "lr = 0.01");
        write("data/protocols/pgd-at.toml", "lr = 0.01");
        write("data/digits/digits.bin", "pixels");
        write("cifar/cifar-10-batches-bin/data_batch_1.bin", "pixels");
        write("data/datasets.toml", DATASETS);
        let experiment = Experiment::read(&root.join("data/paper/example.toml")).unwrap();
        let place = Workplace {
            root: root.to_owned(),
            c2r: root.join("c2r"),
            results: root.join("runs"),
            data: Some(root.join("cifar")),
            can_build: true,
            threads: Some(1),
            device: None,
            force: false,
            estimate_for: None,
        };
        Self { folder, experiment, place }
    }

    pub(crate) fn plan_in(&self, place: &Workplace, selection: &Subgrid, shard: Shard) -> anyhow::Result<GridPlan> {
        let datasets = datasets(place);
        let scale = self.experiment.scale("quick").unwrap();
        Grid { experiment: &self.experiment, scale, place, datasets: &datasets }.plan(selection, shard)
    }

    pub(crate) fn jobs(&self, selection: &str) -> Vec<Job> {
        self.plan_in(&self.place, &selection.parse().unwrap(), Shard::ALL).unwrap().jobs
    }

    /// Puts a shell script in the place of `c2r`.
    #[cfg(unix)]
    pub(crate) fn program(&self, script: &str) {
        use std::{io::Write, process};
        // Written by another process: a program that is open for writing here cannot be started, and a test beside this one
        // may hold a copy of the open file while it starts something.
        let mut writer = process::Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod +x \"$0\""])
            .arg(&self.place.c2r)
            .stdin(process::Stdio::piped())
            .spawn()
            .unwrap();
        writer.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
    }
}
