//! One row: its numbers, notes and runs.

use std::collections::{BTreeMap, BTreeSet};

use c2r_attacks::AttackResult;
use c2r_base::artifact;
use serde_json::Value;

use super::{
    compare::{by_seeds, compare, summary},
    group::{Measured, RowKey, Rows, SectionKey, Seeds, from_unknown_data, same, trained_on},
    plan::Plan,
    schema::{Cell, Row, Run},
    settings,
    values::{Runs, Values, classes_of, margin_counts, values_of},
};
use crate::{
    EvalError, Source,
    columns::{caveat, is_comparable, is_share_of_clean, names, parts},
    doubts::GUESSING,
};

/// Note of rows whose sets say nothing of their real training images.
const ELSEWHERE: &str = "distilled elsewhere; the real images it was distilled from are unknown";

/// What the rows of a section share.
pub(super) struct Shared<'a> {
    pub(super) plan: &'a Plan<'a>,
    pub(super) section: &'a SectionKey,
    pub(super) rows: &'a Rows<'a>,
    pub(super) attacks: &'a [String],
    pub(super) margin_edges: &'a [f64],
}

/// Makes the row of `key`; its configurations are added to `configs`.
///
/// # Errors
/// [`EvalError::Mixed`] where its runs were trained on different numbers of images, or other extra storage.
pub(super) fn make_row(
    shared: &Shared<'_>,
    key: &RowKey,
    configs: &mut BTreeMap<String, Value>,
) -> Result<Row, EvalError> {
    let Shared { plan, section, rows, attacks, margin_edges } = shared;
    let runs = &rows[key];
    let files = || runs.values().flat_map(|run| run.files.iter().copied());
    let first = files().next().expect("a row is made for a run");
    for file in files() {
        same("the numbers of training images", first, file, |s| s.record.subject.n_images.to_string())?;
        same("the descriptions of extra storage", first, file, |s| s.record.subject.extra_storage.clone())?;
    }
    let undistilled = plan.undistilled(key);
    let several_profiles = rows.keys().any(|other| other.method == key.method && other.profile != key.profile);
    let mut label = plan.label(&key.method);
    if several_profiles && !key.profile.is_empty() {
        label = format!("{label} ({})", key.profile);
    }
    let hashes = files().map(|file| &file.record.subject.data_sha256);
    Ok(Row {
        images_per_class: key.images_per_class,
        method: key.method.clone(),
        profile: key.profile.clone(),
        label,
        undistilled,
        n_images: first.record.subject.n_images,
        extra_storage: first.record.subject.extra_storage.clone(),
        data_sha256: hashes.clone().find(|hash| !hash.is_empty()).cloned().unwrap_or_default(),
        planned_runs: plan.runs(section, key),
        runs: runs.iter().map(|(&seeds, run)| describe(seeds, run, configs)).collect(),
        cells: cells(shared, key),
        per_class: classes_of(runs, attacks),
        margin_counts: margin_counts(runs, attacks, margin_edges),
        notes: notes(shared, key, first, undistilled),
    })
}

fn describe((distill_seed, train_seed): Seeds, run: &Measured<'_>, configs: &mut BTreeMap<String, Value>) -> Run {
    let first = run.files[0];
    let mut remember = |config: &Value| {
        let digest = artifact::sha256_hex(config.to_string().as_bytes())[..12].to_owned();
        configs.entry(digest.clone()).or_insert_with(|| config.clone());
        digest
    };
    Run {
        distill_seed,
        train_seed,
        attack_seed: first.record.attack_seed,
        files: run.files.iter().map(|file| file.path.clone()).collect(),
        attack_argvs: run.files.iter().map(|file| file.record.argv.clone()).collect(),
        versions: first.record.versions.clone(),
        precision: first.record.precision.clone(),
        distill_argv: first.distillation.as_ref().map(|run| run.argv.clone()).unwrap_or_default(),
        train_argv: first.training.as_ref().map(|run| run.argv.clone()).unwrap_or_default(),
        distill_config: first.distillation.as_ref().map(|run| remember(&run.config)),
        train_config: first.training.as_ref().map(|run| remember(&run.config)),
    }
}

/// What is true of a row as a whole, each said once.
fn notes(shared: &Shared<'_>, key: &RowKey, first: &Source, undistilled: bool) -> Vec<String> {
    let runs = &shared.rows[key];
    let mut notes: Vec<String> = Vec::new();
    let mut note = |text: String| {
        if !notes.contains(&text) {
            notes.push(text);
        }
    };
    // `text`, with the number of runs that it is about where it is not about all.
    let of_runs = |text: &str, has: &dyn Fn(&Source) -> bool| match runs
        .values()
        .filter(|run| run.files.iter().any(|file| has(file)))
        .count()
    {
        all if all == runs.len() => text.to_owned(),
        some => format!("{text} ({some} of {} runs)", runs.len()),
    };
    let files = || runs.values().flat_map(|run| run.files.iter().copied());
    if undistilled {
        note("undistilled: trained on real images; an upper reference, not a competitor".to_owned());
    }
    if !first.record.subject.extra_storage.is_empty() {
        note(format!("stores in addition to its images: {}", first.record.subject.extra_storage));
    }
    if !undistilled && files().any(from_unknown_data) {
        note(of_runs(ELSEWHERE, &from_unknown_data));
    }
    let said =
        |file: &Source, text: &String| file.record.subject.notes.contains(text) || file.record.notes.contains(text);
    for text in files().flat_map(|file| file.record.subject.notes.iter().chain(&file.record.notes)) {
        note(of_runs(text, &|file| said(file, text)));
    }
    let replaced: BTreeSet<&str> = files().filter_map(|file| file.replaced.as_deref()).collect();
    if !replaced.is_empty() {
        let records = replaced.into_iter().collect::<Vec<_>>().join(", ");
        let text = format!(
            "REPLACED: its set was distilled again after the network was trained ({records}), so settings and images of the \
             distillation are left out; train and attack again"
        );
        note(of_runs(&text, &|file| file.replaced.is_some()));
    }
    let distillations = files().filter_map(|file| Some(&file.distillation.as_ref()?.config));
    if let Some(differences) = settings::differences(distillations) {
        note(format!("its runs were distilled with DIFFERENT settings, so their mean mixes methods: {differences}"));
    }
    if let Some(differences) = settings::differences(trainings(runs).iter()) {
        note(format!("its runs were trained with DIFFERENT settings, so their mean mixes protocols: {differences}"));
    }
    let different = different_sets(runs);
    let seeds: Vec<u64> = runs.keys().filter_map(|(distill, _)| *distill).collect();
    if different > 1 {
        note(format!(
            "its runs are of {different} DIFFERENT sets under one name and seed of distillation, which count as one set; \
             give repetitions of one method a seed each (`c2r import --seed N`) and different methods a name each (`c2r table \
             --name FOLDER=NAME`)"
        ));
    } else if seeds.iter().collect::<BTreeSet<_>>().len() < seeds.len() {
        note("some runs share a distilled set, so the interval and p-value are over sets, not over runs".to_owned());
    }
    if let Some((baseline, theirs)) = baseline_of(shared, key) {
        let both = || runs.keys().filter(|seeds| theirs.contains_key(seeds));
        let common = units(both());
        if common == 0 {
            note(format!(
                "shares no pair of seeds (distillation and training) with `{baseline}`, so it is not compared"
            ));
        } else if common < units(runs.keys()).max(units(theirs.keys())) {
            let seeds = if common == 1 { "the one seed" } else { &format!("the {common} seeds") };
            note(format!(
                "compared with `{baseline}` only on {seeds} that both rows have; the means shown are over all runs"
            ));
        } else if both().count() < runs.len().max(theirs.len()) {
            let n = both().count();
            let pairs = if n == 1 { "the one pair" } else { &format!("the {n} pairs") };
            note(format!(
                "compared with `{baseline}` only on {pairs} of seeds (distillation and training) that both rows have; the means \
                 shown are over all runs"
            ));
        }
    }
    notes
}

/// How many independent units these runs are: distilled sets, or trainings without one.
fn units<'a>(runs: impl Iterator<Item = &'a Seeds>) -> usize {
    runs.map(|(distill, train)| (distill.is_some(), distill.unwrap_or(*train))).collect::<BTreeSet<_>>().len()
}

/// The baseline and its row of the same size.
fn baseline_of<'a>(shared: &Shared<'a>, key: &RowKey) -> Option<(&'a str, &'a Runs<'a>)> {
    let Shared { plan, rows, .. } = shared;
    let baseline = plan.baseline.filter(|baseline| *baseline != key.method)?;
    let candidates =
        || rows.iter().filter(|(other, _)| other.method == baseline && other.images_per_class == key.images_per_class);
    let same_profile = candidates().find(|(other, _)| other.profile == key.profile);
    let only = || candidates().next().filter(|_| candidates().count() == 1);
    same_profile.or_else(only).map(|(_, runs)| (baseline, runs))
}

/// The training's settings of every file of a row that has its `run.json`.
pub(super) fn trainings(runs: &Runs<'_>) -> Vec<Value> {
    let configs = runs.values().flat_map(|run| &run.files).filter_map(|file| Some(&file.training.as_ref()?.config));
    configs.map(settings::of_training).collect()
}

/// The largest number of different training sets whose runs have one seed of the distillation.
fn different_sets(runs: &Runs<'_>) -> usize {
    let mut by_seed: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    for ((distill, _), run) in runs {
        let (Some(distill), Some(images)) = (distill, trained_on(run.files[0])) else { continue };
        by_seed.entry(*distill).or_default().insert(images);
    }
    by_seed.values().map(BTreeSet::len).max().unwrap_or(0)
}

fn cells(shared: &Shared<'_>, key: &RowKey) -> Vec<Cell> {
    let Shared { plan, section, rows, attacks, .. } = shared;
    let runs = &rows[key];
    let baseline = baseline_of(shared, key).map(|(baseline, runs)| (baseline, runs, values_of(runs, attacks)));
    // A network that only guesses has nothing to lose: shares of its accuracy say nothing.
    let guesses = only_guesses(runs) || baseline.as_ref().is_some_and(|(_, runs, _)| only_guesses(runs));
    let found: Vec<_> = runs.values().map(contradictions).collect();
    let held_out = runs.values().flat_map(|run| &run.files).any(|file| file.record.held_out);
    let cell = |(column, values): (String, Values)| {
        let present = by_seeds(runs, &values);
        let (summary, ci95_covers) = summary(&present)?;
        let comparison = baseline.as_ref().filter(|_| is_comparable(&column)).and_then(|(name, runs, theirs)| {
            let (_, theirs) = theirs.iter().find(|(other, _)| *other == column)?;
            let mut comparison = compare(name, &column, &present, &by_seeds(runs, theirs))?;
            comparison.significant &= !guesses || !is_share_of_clean(&column);
            Some(comparison)
        });
        Some(Cell {
            published: plan.published(section, key, &column, attacks, held_out, summary.mean),
            summary,
            ci95_covers,
            values: values.per_run,
            sources: values.sources.into_iter().collect(),
            comparison,
            flags: flags(runs, &found, attacks, &column),
            caveat: caveat(&column).to_owned(),
            column,
        })
    };
    let mut cells: Vec<Cell> = values_of(runs, attacks).into_iter().filter_map(cell).collect();
    unmark_ratios_of_less_robust_networks(&mut cells, attacks);
    cells
}

/// Takes away the marks of drop rates and ratios that are better although an accuracy under attack that they are computed from is
/// marked as worse. They improved only because the clean accuracy fell more.
fn unmark_ratios_of_less_robust_networks(cells: &mut [Cell], attacks: &[String]) {
    let is = |better: bool, cell: &Cell| {
        cell.comparison.as_ref().is_some_and(|comparison| comparison.significant && comparison.better == better)
    };
    let worse: Vec<String> = cells.iter().filter(|cell| is(false, cell)).map(|cell| cell.column.clone()).collect();
    for cell in cells.iter_mut().filter(|cell| is_share_of_clean(&cell.column) && is(true, cell)) {
        let less_robust = parts(attacks, &cell.column).into_iter().any(|attack| worse.iter().any(|one| one == attack));
        if let Some(comparison) = &mut cell.comparison {
            comparison.significant = !less_robust;
        }
    }
}

/// What the attacks of one run say about each other, over all its files: the names of flags by attack.
fn contradictions(run: &Measured<'_>) -> BTreeMap<String, BTreeSet<&'static str>> {
    let results: Vec<AttackResult<'_>> = run
        .attacks
        .values()
        .filter_map(|(entry, _)| AttackResult::of_config(&entry.attack, &entry.config, entry.survivors))
        .collect();
    let mut found: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for flag in c2r_attacks::contradictions(&results, run.files[0].record.n) {
        if let Some(attack) = flag.attack() {
            found.entry(attack.to_owned()).or_default().insert(flag.name());
        }
    }
    found
}

/// Whether a network of these runs classifies clean images no better than by guessing.
fn only_guesses(runs: &Runs<'_>) -> bool {
    runs.values().flat_map(|run| &run.files).any(|file| file.record.notes.iter().any(|note| note.starts_with(GUESSING)))
}

/// `zero-gradient (2 of 3 runs)`, ...: what the files say of the attack that a column is of, and what their results say
/// together. For a column that is computed from attacks, those of them that have such flags.
fn flags(
    runs: &Runs<'_>,
    found: &[BTreeMap<String, BTreeSet<&'static str>>],
    attacks: &[String],
    column: &str,
) -> Vec<String> {
    let counts = |attack: &str| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (run, found) in runs.values().zip(found) {
            let said = run.attacks.get(attack).into_iter().flat_map(|(entry, _)| &entry.flags).map(String::as_str);
            for flag in said.chain(found.get(attack).into_iter().flatten().copied()).collect::<BTreeSet<_>>() {
                *counts.entry(flag.to_owned()).or_default() += 1;
            }
        }
        counts
    };
    if attacks.iter().any(|attack| attack == column) {
        let n_runs = runs.len();
        return counts(column).into_iter().map(|(flag, count)| format!("{flag} ({count} of {n_runs} runs)")).collect();
    }
    let doubtful: Vec<&str> = parts(attacks, column).into_iter().filter(|attack| !counts(attack).is_empty()).collect();
    if doubtful.is_empty() { vec![] } else { vec![format!("computed from doubtful results ({})", names(doubtful))] }
}
