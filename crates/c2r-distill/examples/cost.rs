//! CPU time per iteration and memory of C²R against images per class, classes and queue size, as a Markdown table.
//!
//! cargo run --release -p c2r-distill --example cost
//!
//! Random 3x32x32 images, ConvNet-D3-W32, one thread; each row is measured in a process of its own, because memory is
//! the peak of a process. Linux only.
//!
//! Last line of the output: a row that begins with `| 10 | 10 | 1024 |`.

use std::{error::Error, fs, process::Command};

use c2r_data::{Dataset, Split};
use c2r_distill::{DistillConfig, DistillEvent, Distillation, profiles};
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

#[expect(clippy::print_stdout, reason = "an example may print")]
fn main() -> Result<(), Box<dyn Error>> {
    let sizes: Vec<usize> = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    if let [ipc, n_classes, queue] = sizes[..] {
        let (milliseconds, megabytes) = measure(ipc, n_classes, queue)?;
        println!("| {ipc} | {n_classes} | {queue} | {milliseconds:.0} | {megabytes:.0} |");
        return Ok(());
    }
    println!(
        "| ipc | classes | queue per class | CPU ms per iteration | peak memory, MB |\n|---:|---:|---:|---:|---:|"
    );
    for row in ROWS {
        let output = Command::new(std::env::current_exe()?).args(row.map(|size| size.to_string())).output()?;
        print!("{}{}", String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    }
    Ok(())
}

fn measure(ipc: usize, n_classes: usize, queue: usize) -> Result<(f64, f64), Box<dyn Error>> {
    c2r_base::native::keep_large_allocations();
    tch::set_num_threads(1);
    let mut distillation = Distillation::new(config(ipc, queue)?, &dataset(n_classes)?, Device::Cpu)?;
    let mut updates = 0;
    let mut start = 0.0;
    while updates < 2 * TIMED {
        if let DistillEvent::Images(_) = distillation.step()? {
            updates += 1;
        }
        if updates == TIMED && start == 0.0 {
            start = cpu_seconds()?;
        }
    }
    Ok((1e3 * (cpu_seconds()? - start) / TIMED as f64, peak_megabytes()?))
}

fn config(ipc: usize, queue: usize) -> Result<DistillConfig, Box<dyn Error>> {
    let mut table = profiles::profile("faithful")?;
    let changes = format!(
        "model = \"ConvNet-D3-W32-IN\"\ndsa = \"crop\"\nipc = {ipc}\nthreat.epsilon = \"2/255\"\nimages.formation = 1\n\
         matching.real-per-class = 20\n\
         pool = {{trajectories = 1, snapshots = 1, min-steps = 1, max-steps = 1, batch-size = 64, dsa = \"none\", steps-per-iteration = 0}}"
    );
    for (key, value) in changes.parse::<toml::Table>()? {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => old.extend(new),
            (_, value) => drop(table.insert(key, value)),
        }
    }
    let mut config: DistillConfig = table.try_into()?;
    if let Some(crl) = &mut config.crl {
        crl.queue = crl.queue.take().filter(|_| queue > 0);
        if let Some(settings) = &mut crl.queue {
            settings.per_class = queue;
        }
    }
    Ok(config)
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
    let labels = (0..n).map(|at| (at % n_classes) as i64).collect();
    let train = Split::new([3, 32, 32], n_classes, pixels.collect(), labels)?;
    Ok(Dataset { spec, test: train.first(n_classes), train, notes: Vec::new() })
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

fn peak_megabytes() -> Result<f64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}
