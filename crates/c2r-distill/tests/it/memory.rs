//! Memory of a long run.

use std::{env, process::Command};

use c2r_distill::{DistillConfig, Distillation};
use tch::Device;
use toml::Value;

/// Updates of the images, and those after which nothing may grow.
const UPDATES: u64 = 10_000;
const SETTLED: u64 = 1_000;
/// Bytes that the process may take from the system in between: one small tensor that is kept of every update is 3 MB.
const MOST: u64 = 1 << 20;

/// Set for the process that runs the test alone: the memory of other tests would count, too.
const ALONE: &str = "C2R_TEST_ALONE";

/// Bytes of the process that are in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn ten_thousand_updates_take_no_more_memory_than_a_thousand() {
    if env::var_os(ALONE).is_none() {
        let mut alone = Command::new(env::current_exe().unwrap());
        alone.args(["--exact", "memory::ten_thousand_updates_take_no_more_memory_than_a_thousand"]).env(ALONE, "1");
        let output = alone.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    c2r_testkit::keep_large_allocations();
    tch::set_num_threads(1);
    let digits = c2r_data::load("digits", None).unwrap();
    let settings: [(&str, Value); 9] = [
        ("model", "ConvNet-D1-W4-IN".into()),
        ("ipc", 1.into()),
        ("images.formation", 1.into()),
        ("train-per-class", 2.into()),
        ("iterations", (UPDATES as i64).into()),
        ("pool.trajectories", 1.into()),
        ("pool.min-steps", 1.into()),
        ("pool.batch-size", 10.into()),
        ("matching.real-per-class", 2.into()),
    ];
    let config = DistillConfig::resolve("faithful", &digits.spec, settings).unwrap();
    let mut run = Distillation::new(config, &digits, Device::Cpu).unwrap();
    let mut settled = 0;
    while run.step().unwrap().is_some() {
        if run.iteration().is_multiple_of(10) {
            run.report().unwrap();
        }
        if run.iteration() == SETTLED {
            settled = resident();
        }
    }
    let grown = resident().saturating_sub(settled);
    assert!(grown <= MOST, "{grown} bytes more after {UPDATES} updates than after {SETTLED}");
}
