//! What there is to run: size of each grid, what is finished, how long the rest takes.

use std::{collections::BTreeSet, mem};

use c2r_experiment::{Experiment, Subgrid, unknown};
use c2r_run::{exit, process, terminal};

use crate::{
    Datasets, Grid, GridPlan, Job, Shard, Workplace,
    estimate::{self, Times},
    experiments::{experiment_names, read_experiment},
    run::finished,
};

/// Prints all experiments or the one that is named, at all scales or the one that is named, and of each only the part that
/// `selection` takes. A grid that has no such part is left out.
///
/// # Errors
/// If the experiment or the scale does not exist, no grid has the part, a file cannot be read, or the process was asked to stop.
pub fn list(
    experiment: Option<&str>,
    scale: Option<&str>,
    selection: &Subgrid,
    place: &Workplace,
) -> anyhow::Result<()> {
    // Every scale has its own number of threads, and one measurement takes one.
    let place = Workplace { threads: Some(1), ..place.clone() };
    let names = experiment.map_or_else(|| experiment_names(&place.root), |name| Ok(vec![name.to_owned()]))?;
    let experiments: Vec<Experiment> =
        names.iter().map(|name| Ok(read_experiment(&place.root, name)?.experiment)).collect::<anyhow::Result<_>>()?;
    let scales: BTreeSet<&String> = experiments.iter().flat_map(|experiment| experiment.scales.keys()).collect();
    if let Some(wanted) = scale.filter(|wanted| !scales.iter().any(|name| name == wanted)) {
        return Err(exit::usage(unknown("scale", wanted, scales)));
    }

    let listed = parts(&experiments, scale, selection, &place)?;
    let times = times(&listed, &place)?;
    let mut rest = &times[..];
    for Listed { heading, plan: GridPlan { jobs, not_implemented, .. }, absent } in &listed {
        let finished = finished(jobs);
        let own = rest.split_off(..jobs.len()).unwrap_or_default();
        terminal::text(heading);
        terminal::out(progress(jobs, &finished) + &remaining(own, &finished, &place));
        let caveats = if own.is_empty() { vec![] } else { estimate::caveats(jobs, &finished, &place)? };
        caveats.iter().for_each(|caveat| terminal::out(format!("    {caveat}")));
        if experiment.is_some() && scale.is_some() {
            begun(jobs, &finished).into_iter().for_each(terminal::out);
        }
        if !absent.is_empty() {
            terminal::out(format!("    to run this: {}", place.no_data(absent)));
        }
        if !not_implemented.is_empty() {
            let names: Vec<&str> = not_implemented.iter().map(String::as_str).collect();
            terminal::out(format!("    not implemented yet: {}", names.join(", ")));
        }
    }
    Ok(())
}

/// A grid, or the part of it that was asked for.
struct Listed {
    heading: String,
    plan: GridPlan,
    /// Datasets that it needs and that are not here.
    absent: Vec<String>,
}

/// What was asked for; at least one.
fn parts(
    experiments: &[Experiment],
    scale: Option<&str>,
    selection: &Subgrid,
    place: &Workplace,
) -> anyhow::Result<Vec<Listed>> {
    let is_asked = |name: &str| scale.is_none_or(|wanted| wanted == name);
    let asked = || experiments.iter().flat_map(|experiment| &experiment.scales).filter(|(name, _)| is_asked(name));
    let datasets = Datasets::read(place, asked().flat_map(|(_, scale)| &scale.datasets))?;
    let mut listed = Vec::new();
    let mut left_out = None;
    for experiment in experiments {
        let mut heading = format!("{}: {}\n", experiment.name, experiment.title);
        heading.extend(experiment.missing.iter().map(|text| format!("  missing: {text}\n")));
        for (name, scale) in experiment.scales.iter().filter(|(name, _)| is_asked(name)) {
            let grid = Grid { experiment, scale, place, datasets: &datasets };
            let plan = match grid.plan(selection, Shard::ALL) {
                Err(error) if *selection != Subgrid::default() && exit::code_of(&error) == exit::USAGE => {
                    left_out.get_or_insert(error);
                    continue;
                }
                plan => plan?,
            };
            let heading = format!("{}  --scale {name}: {}", mem::take(&mut heading), scale.about);
            let absent = datasets.missing(plan.jobs.iter().map(|job| &job.cell.dataset));
            listed.push(Listed { heading, plan, absent });
        }
    }
    match left_out {
        Some(error) if listed.is_empty() => Err(exit::usage(format!("--only: {}", exit::message(&error)))),
        _ => Ok(listed),
    }
}

/// The times of all their jobs, one after the other; none, after saying why, if they are not known.
fn times(listed: &[Listed], place: &Workplace) -> anyhow::Result<Times> {
    let reason = if place.c2r.is_file() {
        if place.estimate_for.is_none() {
            terminal::note("estimating the times (the first estimate measures this machine for about a minute)");
        }
        let mut all: Vec<Job> = Vec::new();
        for Listed { plan, .. } in listed {
            let first = all.len();
            all.extend(plan.jobs.iter().map(|job| Job { needs: job.needs.map(|n| n + first), ..job.clone() }));
        }
        match estimate::times(&all, place) {
            Ok(times) => return Ok(times),
            Err(error) => {
                process::check_interrupt()?;
                exit::message(&error)
            }
        }
    } else {
        "c2r is not built".to_owned()
    };
    terminal::notes(format!("times are not estimated: {reason}"));
    Ok(Vec::new())
}

/// How many commands there are, and how many are finished.
fn progress(jobs: &[Job], finished: &[bool]) -> String {
    let count = |stage: &str| jobs.iter().filter(|job| job.stage.command() == stage).count();
    format!(
        "    {}, {}, {}; {} of {} commands are finished",
        terminal::counted(count("distill"), "distillation"),
        terminal::counted(count("train"), "training"),
        terminal::counted(count("attack"), "attack"),
        finished.iter().filter(|&&done| done).count(),
        jobs.len()
    )
}

/// How long the commands that are not finished take, of which these `times` are known.
fn remaining(times: &[Result<f64, String>], finished: &[bool], place: &Workplace) -> String {
    let open = times.iter().zip(finished).filter(|(_, done)| !**done);
    let (known, unknown): (Vec<_>, Vec<_>) = open.map(|(time, _)| time).partition(|time| time.is_ok());
    let mut words = String::new();
    if !known.is_empty() {
        let sum = known.into_iter().flatten().sum();
        let at_once = if place.estimate_for.is_none() { " with one thread" } else { "" };
        words += &format!(
            "; the rest takes about {} {}, one command{at_once} at a time",
            terminal::seconds(sum),
            estimate::there(place)
        );
    }
    if !unknown.is_empty() {
        words += &format!(" (no estimate for {})", terminal::counted(unknown.len(), "command"));
    }
    words
}

/// A line for each distilled set that has finished commands.
fn begun(jobs: &[Job], finished: &[bool]) -> Vec<String> {
    let mut sets: Vec<(String, usize, usize)> = Vec::new();
    for (job, &done) in jobs.iter().zip(finished) {
        let set = job.cell.folder();
        let position = sets.iter().position(|(name, ..)| *name == set).unwrap_or_else(|| {
            sets.push((set, 0, 0));
            sets.len() - 1
        });
        sets[position].1 += usize::from(done);
        sets[position].2 += 1;
    }
    let begun = sets.into_iter().filter(|(_, done, _)| *done > 0);
    begun.map(|(set, done, n)| format!("      {set}: {done} of {n} commands are finished")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::Example;

    #[test]
    fn sets_with_finished_commands_are_listed() {
        let mut jobs = Example::new().jobs("dataset=digits,ipc=1,method=c2r,seed=0,protocol=natural,attack=pgd");
        let mut other = jobs[0].clone();
        other.cell.seed = 1;
        jobs.push(other);
        assert!(begun(&jobs, &[false; 4]).is_empty());
        assert_eq!(
            begun(&jobs, &[true, true, false, false]),
            ["      digits/ipc1/c2r/seed0: 2 of 3 commands are finished"]
        );
    }
}
