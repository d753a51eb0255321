//! A grid from its jobs to its table and page.

use std::{collections::BTreeSet, path::PathBuf, thread, time::Duration};

use anyhow::Context;
use c2r_files::shell_line;
use c2r_run::{Lock, exit, process, signals, terminal};

use crate::{
    Grid, GridPlan, Job, SlurmArray, built_in, estimate,
    experiments::FOLDER,
    run::{self, Summary, finished},
    table_folder,
};

/// The page next to the tables.
const PAGE: &str = "report.html";
/// How often a process that waits for another one's table looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A grid that is to be run.
pub struct Reproduction<'a> {
    /// The grid.
    pub grid: Grid<'a>,
    /// Name of its scale.
    pub scale_name: &'a str,
    /// Options of `c2r table` and `c2r report` that say in what the grid is not the file's.
    pub changes: Vec<String>,
    /// The files of an experiment that is not the checkout's ([`crate::FoundExperiment`]); copies go into the table's folder.
    pub own_files: Vec<PathBuf>,
    /// How many jobs run at once; as many as the cores carry unless given.
    pub at_once: Option<usize>,
}

impl Reproduction<'_> {
    /// `table2-quick`: the folder of the table in the results folder.
    pub fn name(&self) -> String {
        let Grid { experiment, scale, .. } = self.grid;
        let judged = if scale.held_out { "-held-out" } else { "" };
        format!("{}-{}{judged}", experiment.name, self.scale_name)
    }

    /// Runs what is not finished, on this machine or as an array of Slurm; `with_estimate` says first how long that takes
    /// here.
    ///
    /// # Errors
    /// If the process was asked to stop, if `c2r` was built with other files than those that the jobs are named after, or what
    /// [`SlurmArray::run`] says. A job that fails is not an error.
    pub fn run(&self, plan: &GridPlan, with_estimate: bool, array: Option<&SlurmArray<'_>>) -> anyhow::Result<Summary> {
        let (jobs, place) = (&plan.jobs, self.grid.place);
        let (finished, n_open) = self.finished(jobs);
        if n_open == 0 {
            terminal::note(format!("all {} are finished already", terminal::counted(jobs.len(), "command")));
            return Ok(Summary { n_reused: jobs.len(), ..Summary::default() });
        }
        built_in::check(jobs, place)?;
        estimate::check(jobs, &finished, place)?;
        let results = place.show(&place.results);
        let n = terminal::counted(jobs.len(), "command");
        terminal::note(format!("{n}, {n_open} of them still to run; results go to {results}"));
        let summary = if let Some(array) = array {
            array.run(plan, &finished, place)?
        } else {
            let at_once = self.at_once(n_open);
            if with_estimate {
                self.print_estimate(jobs, &finished, at_once)?;
            }
            if place.force {
                run::discard(jobs)?;
                // Nothing is left to discard; without the option, a command that is stopped can be resumed.
                let unforced: Vec<Job> = jobs.iter().map(Job::unforced).collect();
                run::run(&unforced, &finished, at_once, place)?
            } else {
                run::run(jobs, &finished, at_once, place)?
            }
        };
        let others = match summary.n_elsewhere {
            0 => String::new(),
            n => format!(", {n} by other processes"),
        };
        let before = match summary.n_reused {
            0 => String::new(),
            n => format!(", {n} of them before this run"),
        };
        let n = summary.n_done();
        let (done, are) = (terminal::counted(n, "command"), if n == 1 { "is" } else { "are" });
        terminal::note(format!("{done} {are} finished{before}{others}"));
        Ok(summary)
    }

    /// Prints the table of what is finished of the whole grid and writes the page; `true` if numbers are outside the
    /// tolerance, and nothing if no attack is finished.
    ///
    /// # Errors
    /// If the table's folder cannot be made, or `c2r table` or `c2r report` fails.
    pub fn table(&self) -> anyhow::Result<Option<bool>> {
        let Grid { scale, place, datasets, .. } = self.grid;
        let _lock = self.lock_table()?;
        let jobs = self.grid.whole()?.jobs;
        let absent = datasets.missing(&scale.datasets);
        if table_folder::update(&self.table_folder(), &jobs, &finished(&jobs), &absent)? == 0 {
            return Ok(None);
        }
        for (from, to) in self.copies() {
            c2r_files::write_atomically(&to, &c2r_files::read(&from)?)?;
        }
        let [table, report] = self.result_args();
        let status = process::foreground(&mut place.command(&table), |_| {}).map_err(|error| {
            // What is finished is not to be discarded again.
            if signals::requests() > 0 { signals::stopped(signals::how_to_resume(place.force)) } else { error }
        })?;
        let outside = match status.code().map(u8::try_from) {
            Some(Ok(0)) => false,
            Some(Ok(exit::OUTSIDE_TOLERANCE)) => true,
            _ => anyhow::bail!("`c2r table` failed ({status}); see its message above"),
        };
        let output = process::output(&mut place.command(&report))?.context("c2r is not built")?;
        // It judges the tolerance as `c2r table` has.
        if !matches!(output.status.code().map(u8::try_from), Some(Ok(0 | exit::OUTSIDE_TOLERANCE))) {
            let reason = String::from_utf8_lossy(&output.stderr);
            anyhow::bail!("`c2r report` failed ({}): {}", output.status, reason.trim());
        }
        terminal::note(format!("report: {}", report.last().map_or(PAGE, String::as_str)));
        Ok(Some(outside))
    }

    /// Waits until no other process makes this table. A table shows what was finished when its process looked, and an older one that
    /// is written last would replace a newer one. `None` if the results folder cannot be written, where nothing can be replaced.
    fn lock_table(&self) -> anyhow::Result<Option<Lock>> {
        let path = self.grid.place.results.join(format!(".{}.lock", self.name()));
        let mut is_said = false;
        loop {
            match Lock::acquire_where_possible(&path) {
                Ok(Some(lock)) => return Ok(Some(lock)),
                Err(_) => return Ok(None),
                Ok(None) => {}
            }
            if !is_said {
                terminal::note("another process is making this table; waiting for it");
                is_said = true;
            }
            process::check_interrupt()?;
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Prints a shell script that does what [`Reproduction::run`] and, if asked for, [`Reproduction::table`] would, and
    /// what it costs here. If that cannot be measured, as for a GPU that is not here, the reason is said in its place.
    ///
    /// # Errors
    /// If the process was asked to stop.
    pub fn dry_run(&self, plan: &GridPlan, with_table: bool) -> anyhow::Result<()> {
        let place = self.grid.place;
        let (done, n_open) = self.finished(&plan.jobs);
        // The machine that will run them may be another one, and this c2r an older one.
        if n_open > 0
            && place.c2r.is_file()
            && let Err(error) = estimate::check(&plan.jobs, &done, place)
        {
            process::check_interrupt()?;
            if exit::code_of(&error) == exit::USAGE {
                return Err(error);
            }
            terminal::note(format!("the commands are not checked: {}", exit::message(&error)));
        }
        let c2r = place.show(&place.c2r);
        let line = |args: Vec<&String>| shell_line(std::iter::once(&c2r).chain(args));
        plan.jobs.iter().for_each(|job| terminal::out(line(job.args().collect())));
        if with_table {
            // The table has what is finished of the rest of the grid, too.
            let whole = self.grid.whole()?.jobs;
            let asked: BTreeSet<&str> = plan.jobs.iter().map(|job| job.id.as_str()).collect();
            let mut shown = finished(&whole);
            shown.iter_mut().zip(&whole).for_each(|(shown, job)| *shown |= asked.contains(job.id.as_str()));
            let folder = table_folder::script(&self.table_folder(), &whole, &shown, |path| place.show(path));
            folder.into_iter().for_each(terminal::out);
            for (from, to) in self.copies() {
                terminal::out(shell_line(["cp", &place.show(&from), &place.show(&to)]));
            }
            self.result_args().iter().for_each(|args| terminal::out(line(args.iter().collect())));
        }
        terminal::note(format!(
            "to run these commands by hand, save them in a file and run it with `sh -e` in {}",
            place.root.display()
        ));
        let n = terminal::counted(plan.jobs.len(), "command");
        terminal::note(format!("{n}, {n_open} of them still to run"));
        let absent = self.missing_data(plan);
        if !absent.is_empty() {
            terminal::note(place.no_data_to_run(&absent));
        }
        if n_open > 0 && place.c2r.is_file() {
            self.print_estimate(&plan.jobs, &done, self.at_once(n_open))?;
        } else if n_open > 0 {
            terminal::note("to estimate their time, build c2r first: cargo xtask setup && cargo build --release");
        }
        Ok(())
    }

    /// Says how long `jobs` will take, or why that is not known: no estimate keeps the commands from what was asked for.
    fn print_estimate(&self, jobs: &[Job], finished: &[bool], at_once: usize) -> anyhow::Result<()> {
        match estimate::times(jobs, self.grid.place) {
            Ok(times) => {
                estimate::print(jobs, finished, &times, at_once, self.grid.place);
                let caveats = estimate::caveats(jobs, finished, self.grid.place)?;
                caveats.iter().for_each(|caveat| terminal::note(format!("  {caveat}")));
            }
            Err(error) => {
                process::check_interrupt()?;
                terminal::note(format!("their time is not known: {}", exit::message(&error)));
            }
        }
        Ok(())
    }

    /// Datasets that the plan needs and that are not here.
    pub fn missing_data(&self, plan: &GridPlan) -> Vec<String> {
        self.grid.datasets.missing(plan.jobs.iter().map(|job| &job.cell.dataset))
    }

    fn table_folder(&self) -> PathBuf {
        self.grid.place.results.join(self.name())
    }

    /// From where to where the files of an experiment that is not the checkout's are copied, its own first.
    fn copies(&self) -> impl Iterator<Item = (PathBuf, PathBuf)> {
        let folder = self.table_folder();
        self.own_files.iter().filter_map(move |from| Some((from.clone(), folder.join(from.file_name()?))))
    }

    /// The arguments of `c2r table` and `c2r report`, which write into the table's folder.
    fn result_args(&self) -> [Vec<String>; 2] {
        let place = self.grid.place;
        let (folder, page) = (place.show(&self.table_folder()), place.show(&self.table_folder().join(PAGE)));
        let file = match self.copies().next() {
            Some((_, copy)) => place.show(&copy),
            None => format!("{FOLDER}/{}.toml", self.grid.experiment.name),
        };
        [("table", "--output-dir", &folder), ("report", "--output", &page)].map(|(command, flag, to)| {
            let words = [command, &folder, "--experiment", &file, "--scale", self.scale_name].map(String::from);
            words.into_iter().chain(self.changes.clone()).chain([flag, to].map(String::from)).collect()
        })
    }

    /// Which jobs need not run, and how many must.
    fn finished(&self, jobs: &[Job]) -> (Vec<bool>, usize) {
        let finished = if self.grid.place.force { vec![false; jobs.len()] } else { finished(jobs) };
        let n_open = finished.iter().filter(|&&done| !done).count();
        (finished, n_open)
    }

    /// As many jobs at once as the cores carry; small networks gain nothing from many threads each.
    fn at_once(&self, n_open: usize) -> usize {
        let n_cores = thread::available_parallelism().map_or(1, usize::from);
        let carried = self.grid.place.threads.map_or(1, |threads| (n_cores / threads).max(1));
        self.at_once.unwrap_or(carried).min(n_open.max(1))
    }
}
