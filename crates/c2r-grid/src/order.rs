//! The order in which a grid is run: [`Scale::seed_by_seed`] and [`Scale::first`].

use c2r_experiment::Scale;

use crate::{Cell, Job, Stage};

/// Position of the seed where seeds come first, then of the part: smaller is earlier.
type Rank = (usize, usize);

/// When the first job of a cell is due.
pub(crate) fn of_cell(scale: &Scale, cell: &Cell) -> Rank {
    rank(scale, cell, |_| true)
}

/// `jobs` in the order of the scale. A job is due when the first of those that need it is, so it stays before them; jobs that
/// are due together stay in their order.
pub(crate) fn sorted(scale: &Scale, jobs: Vec<Job>) -> Vec<Job> {
    let mut due: Vec<Rank> = jobs
        .iter()
        .map(|job| match &job.stage {
            Stage::Attack { network, attack, .. } => {
                rank(scale, &job.cell, |part| scale.first[part].has_attack(&network.protocol, attack))
            }
            _ => (usize::MAX, usize::MAX),
        })
        .collect();
    for (position, job) in jobs.iter().enumerate().rev() {
        if let Some(needed) = job.needs {
            due[needed] = due[needed].min(due[position]);
        }
    }
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by_key(|&position| due[position]);
    let mut position_now = vec![0; jobs.len()];
    order.iter().enumerate().for_each(|(now, &before)| position_now[before] = now);
    let moved = |job: &Job| Job { needs: job.needs.map(|needed| position_now[needed]), ..job.clone() };
    order.iter().map(|&position| moved(&jobs[position])).collect()
}

fn rank(scale: &Scale, cell: &Cell, fits: impl Fn(usize) -> bool) -> Rank {
    let seed = scale.seeds.iter().position(|seed| *seed == cell.seed).filter(|_| scale.seed_by_seed);
    let part = (0..scale.first.len())
        .find(|&part| scale.first[part].has_set(&cell.dataset, cell.ipc, &cell.method) && fits(part));
    (seed.unwrap_or(0), part.unwrap_or(scale.first.len()))
}
