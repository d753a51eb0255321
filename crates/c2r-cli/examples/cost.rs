//! CPU time per iteration and memory of C²R against images per class, classes and queue size, as a Markdown table and, to
//! the file that is named, as a plot.
//!
//! cargo run --release -p c2r-cli --example cost -- docs/cost.svg
//!
//! Random 3x32x32 images, ConvNet-D3-W32, one thread; each row is measured in a process of its own, because memory is
//! the peak of a process. Linux only.
//!
//! Last line of the output: a row that begins with `| 10 | 10 | 1024 |`.

use std::{error::Error, fs, ops::Range, process::Command};

use c2r_data::{Dataset, Split};
use c2r_distill::{DistillConfig, DistillEvent, Distillation};
use c2r_eval::plot::{self, Axis, Ink, Mark, Plot};
use c2r_run::process::peak_memory_mb;
use ndarray::Array4;
use tch::Device;

/// Images per class, classes, queue size per class: one varies, the others stay.
const ROWS: [[usize; 3]; 13] = [
    [1, 10, 64],
    [2, 10, 64],
    [5, 10, 64],
    [10, 10, 64],
    [20, 10, 64],
    [5, 5, 64],
    [5, 10, 64],
    [5, 20, 64],
    [5, 40, 64],
    [10, 10, 0],
    [10, 10, 64],
    [10, 10, 256],
    [10, 10, 1024],
];
/// Iterations that are timed, after as many to warm up.
const TIMED: u64 = 5;

/// What varies: its name, its place in a row, and the rows.
const SERIES: [(&str, usize, Range<usize>); 3] =
    [("images per class", 0, 0..5), ("classes", 1, 5..9), ("queue per class", 2, 9..13)];
/// What is measured, by its place in the result.
const MEASURED: [(&str, usize); 2] = [("CPU ms per iteration", 0), ("peak memory, MB", 1)];

#[expect(clippy::print_stdout, reason = "an example may print")]
fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [ipc, n_classes, queue] = &args[..] {
        let [milliseconds, megabytes] = measure(ipc.parse()?, n_classes.parse()?, queue.parse()?)?;
        println!("{milliseconds:.0} {megabytes:.0}");
        return Ok(());
    }
    println!(
        "| ipc | classes | queue per class | CPU ms per iteration | peak memory, MB |\n|---:|---:|---:|---:|---:|"
    );
    let mut results = Vec::new();
    for row in ROWS {
        let output = Command::new(std::env::current_exe()?).args(row.map(|size| size.to_string())).output()?;
        let said = String::from_utf8(output.stdout)?;
        let [milliseconds, megabytes] = said.split_whitespace().collect::<Vec<_>>()[..] else {
            return Err(String::from_utf8(output.stderr)?.into());
        };
        let [ipc, n_classes, queue] = row;
        println!("| {ipc} | {n_classes} | {queue} | {milliseconds} | {megabytes} |");
        results.push([milliseconds.parse()?, megabytes.parse()?]);
    }
    if let [file] = &args[..] {
        plot(file, &results)?;
    }
    Ok(())
}

/// A panel for each thing that varies and each that is measured, both axes from 0, with the line of least squares.
fn plot(file: &str, results: &[[f64; 2]]) -> Result<(), Box<dyn Error>> {
    let panel = |measured: &str, at: usize, varied: &str, size: usize, rows: Range<usize>| {
        let points: Vec<(f64, f64)> = rows.map(|row| (ROWS[row][size] as f64, results[row][at])).collect();
        let last = points.iter().fold(0f64, |last, point| last.max(point.0));
        let (slope, start) = least_squares(&points);
        let ink = Ink::Method(1);
        let line = Mark::Line { ink, points: [0.0, last].map(|x| (x, start + slope * x)).to_vec(), shift: 0.0 };
        let point = |&(x, y): &(f64, f64)| Mark::Point {
            ink,
            x: (x, None),
            y: (y, None),
            shift: 0.0,
            word: String::new(),
            title: String::new(),
        };
        let axis =
            |label: &str, values: Vec<f64>| Axis::round(label, values.into_iter().chain([0.0]), (0.0, f64::INFINITY));
        Plot {
            title: String::new(),
            legend: Vec::new(),
            x: axis(varied, points.iter().map(|point| point.0).collect()),
            y: axis(measured, points.iter().map(|point| point.1).collect()),
            marks: std::iter::once(line).chain(points.iter().map(point)).collect(),
        }
    };
    let cells = MEASURED.iter().flat_map(|measured| SERIES.iter().map(move |series| (measured, series)));
    let panels: Vec<Plot> =
        cells.map(|(&(measured, at), (varied, size, rows))| panel(measured, at, varied, *size, rows.clone())).collect();
    fs::write(file, plot::file("Cost of an iteration", &panels, SERIES.len()))?;
    Ok(())
}

/// Slope and value at 0 of the line through `points`.
fn least_squares(points: &[(f64, f64)]) -> (f64, f64) {
    let n = points.len() as f64;
    let mean = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / n, sum.1 + point.1 / n));
    let (covariance, variance) = points.iter().fold((0.0, 0.0), |(covariance, variance), point| {
        let (x, y) = (point.0 - mean.0, point.1 - mean.1);
        (covariance + x * y, variance + x * x)
    });
    let slope = covariance / variance;
    (slope, mean.1 - slope * mean.0)
}

/// Milliseconds of CPU time per iteration, and the process's most megabytes.
fn measure(ipc: usize, n_classes: usize, queue: usize) -> Result<[f64; 2], Box<dyn Error>> {
    c2r_testkit::keep_large_allocations();
    tch::set_num_threads(1);
    let mut distillation = Distillation::new(config(ipc, queue)?, &dataset(n_classes)?, Device::Cpu)?;
    let mut updates = 0;
    let mut start = 0.0;
    while updates < 2 * TIMED {
        let event = distillation.step()?.ok_or("the distillation ended too early")?;
        updates += u64::from(matches!(event, DistillEvent::Images { .. }));
        if updates == TIMED && start == 0.0 {
            start = cpu_seconds()?;
        }
    }
    Ok([
        1e3 * (cpu_seconds()? - start) / TIMED as f64,
        peak_memory_mb().ok_or("the system does not tell the peak memory")? as f64,
    ])
}

fn config(ipc: usize, queue: usize) -> Result<DistillConfig, Box<dyn Error>> {
    let mut changes: toml::Table = format!(
        "model = \"ConvNet-D3-W32-IN\"\ndsa = \"crop\"\nipc = {ipc}\n\"threat.epsilon\" = \"2/255\"\n\
         \"images.formation\" = 1\n\"matching.real-per-class\" = 20\n\"objective.weight\" = 1.0\n\
         \"pool.trajectories\" = 1\n\"pool.snapshots\" = 1\n\"pool.min-steps\" = 1\n\"pool.max-steps\" = 1\n\
         \"pool.batch-size\" = 64\n\"pool.dsa\" = \"none\"\n\"pool.steps-per-iteration\" = 0"
    )
    .parse()?;
    if queue > 0 {
        changes.insert("crl.queue.per-class".to_owned(), (queue as i64).into());
    } else {
        changes.insert("crl".to_owned(), toml::Table::from_iter([("temperature".to_owned(), 0.5.into())]).into());
    }
    Ok(DistillConfig::resolve("faithful", &c2r_data::spec("cifar10")?, changes)?)
}

/// 40 random images of each class.
fn dataset(n_classes: usize) -> Result<Dataset, Box<dyn Error>> {
    let mut spec = c2r_data::spec("cifar10")?;
    spec.classes = (0..n_classes).map(|class| class.to_string()).collect();
    let n = 40 * n_classes;
    let mut state = 1u32;
    let pixels = (0..n * 3 * 32 * 32).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    let images = Array4::from_shape_vec((n, 3, 32, 32), pixels.collect())?;
    let train = Split::new(images, (0..n).map(|at| (at % n_classes) as i64).collect(), n_classes)?;
    Ok(Dataset { spec, test: train.subset_per_class(1), train, notes: Vec::new() })
}

/// CPU time of this process, all threads, from Linux's scheduler.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let mut nanoseconds = 0.0;
    for thread in fs::read_dir("/proc/self/task")? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        nanoseconds += text.split_whitespace().next().unwrap_or("0").parse::<f64>()?;
    }
    Ok(nanoseconds / 1e9)
}
