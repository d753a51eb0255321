//! How long a grid will take: one command of each kind measures its own speed (`c2r ... --estimate`).

use std::{collections::BTreeMap, process::Command, time::Duration};

use serde::Deserialize;

use super::plan::{Stage, Step};
use crate::{
    checkout::{self, Checkout},
    process, ui,
};

/// What `c2r ... --estimate --json` prints, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Estimate {
    /// Expected wall-clock time of the whole command.
    seconds: f64,
}

/// Commands that take the same time: they differ in their seed only.
fn kind(step: &Step) -> (String, String) {
    let cell = &step.cell;
    let size = cell.ipc.map_or_else(|| "all".to_owned(), |ipc| format!("ipc {ipc}"));
    let stage = match &step.stage {
        Stage::Distill => format!("distill {}", cell.method),
        Stage::Train(protocol) => format!("train {protocol}"),
        Stage::Attack(_) => return ("attack".into(), cell.dataset.clone()),
    };
    (stage, format!("{}, {size}", cell.dataset))
}

/// Measures one command of each kind that is still to run and prints the sum.
///
/// # Errors
/// If the user interrupted.
pub(crate) fn print(steps: &[Step], finished: &[bool], n_jobs: usize, checkout: &Checkout) -> anyhow::Result<()> {
    let mut kinds: BTreeMap<(String, String), Vec<&Step>> = BTreeMap::new();
    for (step, _) in steps.iter().zip(finished).filter(|(_, done)| !**done) {
        kinds.entry(kind(step)).or_default().push(step);
    }
    ui::note(format!("measuring the speed of one command of each of {} kinds", kinds.len()));
    let (mut total, mut unknown) = (0.0, 0);
    for ((stage, size), steps) in &kinds {
        process::check_interrupt()?;
        match measure(steps[0], checkout)? {
            Ok(seconds) => {
                total += seconds * steps.len() as f64;
                ui::note(format!("  {stage} ({size}): {} x {}", steps.len(), time(seconds)));
            }
            Err(reason) => {
                unknown += steps.len();
                ui::note(format!("  {stage} ({size}): {} x unknown: {reason}", steps.len()));
            }
        }
    }
    let left_out = match unknown {
        0 => String::new(),
        unknown => format!(", and {unknown} commands of unknown length"),
    };
    ui::note(format!(
        "about {}{left_out}, if nothing else runs here; stop with Ctrl-C at any time, the same command goes on",
        time(total / n_jobs as f64)
    ));
    Ok(())
}

fn time(seconds: f64) -> String {
    ui::duration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

/// Seconds of `step`, or why they are not known.
fn measure(step: &Step, checkout: &Checkout) -> anyhow::Result<Result<f64, String>> {
    let mut command = Command::new(checkout.c2r());
    command.args(step.args()).args(["--estimate", "--json"]).current_dir(checkout.root());
    checkout::with_libtorch(&mut command, &checkout.libtorch_link());
    let Some(output) = process::output(&mut command)? else { return Ok(Err("c2r is not built".into())) };
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Ok(Err(text.lines().last().unwrap_or("no reason given").to_owned()));
    }
    Ok(serde_json::from_slice::<Estimate>(&output.stdout).map(|estimate| estimate.seconds).map_err(|e| e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            experiment::tests::example,
            plan::{Only, Place, expand},
        },
        *,
    };

    #[test]
    fn kinds_differ_in_more_than_the_seed() {
        let experiment = example();
        let place =
            Place { root: "/r".into(), runs: "/r/x".into(), data: None, threads: None, device: None, force: false };
        let steps = expand(&experiment, experiment.scale("quick").unwrap(), &Only::default(), &place).unwrap();
        let mut kinds: Vec<_> = steps.iter().map(kind).collect();
        kinds.sort();
        kinds.dedup();
        // Per dataset: 2 methods x 2 ipcs distilled, 2 protocols x (2 ipcs and all) trained, one attack.
        assert_eq!(kinds.len(), 2 * (4 + 6 + 1));
    }
}
