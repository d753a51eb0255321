//! From results to a table.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    group::{Measured, RowKey, Rows, SectionKey, from_unknown_data, group, same_data},
    plan::{Plan, TableOptions},
    row::{Shared, make_row, trainings},
    schema::{Comparison, Row, Section, Table},
    settings,
    values::{Runs, bin_edges, margins_of},
};
use crate::{
    AttackScore, EvalError, Source,
    columns::{CLEAN, DROP_RATE, MEAN_ROBUST, MEAN_ROBUST_AUTOATTACK, averages, size},
    stats::Covers,
};

impl Table {
    /// Makes the table. The order of `sources` does not matter.
    ///
    /// # Errors
    /// [`EvalError::Mixed`] where results of one section were measured on different data, [`EvalError::OneName`] where
    /// different sets have the same name, [`EvalError::OtherNetwork`] where different networks are of the same run,
    /// [`EvalError::Twice`] and [`EvalError::OneNetwork`] where a measurement or a network is there twice,
    /// [`EvalError::NoBaseline`] and [`EvalError::Experiment`] for names that do not exist.
    pub fn build(sources: &[Source], options: &TableOptions<'_>) -> Result<Self, EvalError> {
        let plan = Plan::new(options)?;
        let mut grouped: Vec<(SectionKey, Rows<'_>)> = group(sources)?.into_iter().collect();
        grouped.sort_by_cached_key(|(key, _)| plan.section_order(key));
        let mut configs = BTreeMap::new();
        let sections = grouped.iter().map(|(key, rows)| section(key, rows, &plan, &mut configs));
        let sections = sections.collect::<Result<Vec<Section>, EvalError>>()?;
        if let Some(wanted) = options.baseline {
            let methods: BTreeSet<&str> =
                grouped.iter().flat_map(|(_, rows)| rows.keys()).map(|row| row.method.as_str()).collect();
            if !methods.contains(wanted) {
                let methods = methods.into_iter().collect::<Vec<_>>().join(", ");
                return Err(EvalError::NoBaseline { wanted: wanted.to_owned(), methods });
            }
        }
        let mut missing = plan.rows();
        let planned_rows = missing.len();
        missing.retain(|planned| {
            !grouped.iter().any(|(key, rows)| rows.keys().any(|row| plan.is_planned(planned, key, row)))
        });
        let tested: Vec<&Comparison> = tested(&sections).collect();
        let (n_tested, n_marked) = (tested.len(), tested.iter().filter(|one| one.significant).count());
        Ok(Self {
            schema_version: Self::SCHEMA_VERSION,
            title: plan.title(),
            experiment: plan.info(),
            baseline: plan.baseline.map(str::to_owned),
            n_tested,
            n_marked,
            sections,
            missing,
            planned_rows,
            configs,
            pictures: Vec::new(),
        })
    }
}

fn section(
    key: &SectionKey,
    rows: &Rows<'_>,
    plan: &Plan<'_>,
    configs: &mut BTreeMap<String, Value>,
) -> Result<Section, EvalError> {
    let runs = || rows.values().flat_map(BTreeMap::values);
    let files = || runs().flat_map(|run| run.files.iter().copied());
    let first = files().next().expect("a section is made for a file");
    let mut known = files().filter(|file| !from_unknown_data(file));
    if let Some(first) = known.next() {
        for file in known {
            same_data(first, file)?;
        }
    }
    let parameters = parameters(runs())?;
    let mut attacks: Vec<String> = parameters.keys().map(|&name| name.to_owned()).collect();
    attacks.sort_by_cached_key(|attack| plan.attack_order(attack));
    let entry = runs().flat_map(|run| run.attacks.values()).map(|(entry, _)| (entry.norm, entry.epsilon)).next();
    let (norm, epsilon) = entry.unwrap_or((first.record.threat.norm, first.record.threat.epsilon));

    let margins = runs().flat_map(|run| margins_of(run, &attacks)).flat_map(|(_, margins)| margins);
    let margin_edges = bin_edges(margins.copied().collect());
    let mut keys: Vec<&RowKey> = rows.keys().collect();
    keys.sort_by_cached_key(|row| plan.row_order(row));
    let shared = Shared { plan, section: key, rows, attacks: &attacks, margin_edges: &margin_edges };
    let mut made = keys.iter().map(|row| make_row(&shared, row, configs)).collect::<Result<Vec<Row>, _>>()?;
    let mut columns = vec![CLEAN.to_owned()];
    columns.extend(attacks.iter().cloned());
    columns.extend([MEAN_ROBUST, MEAN_ROBUST_AUTOATTACK, DROP_RATE].map(str::to_owned));
    columns.retain(|column| made.iter().any(|row| row.cell(column).is_some()));

    let of_data: BTreeSet<&String> =
        files().flat_map(|file| file.record.subject.notes.iter().chain(&file.record.notes)).collect();
    let mut notes = lift_common_notes(&mut made, &of_data);
    let named: Vec<(String, &Row, &Runs<'_>)> = keys
        .iter()
        .zip(&made)
        .map(|(key, row)| (format!("{} ipc {}", row.label, size(row.images_per_class)), row, &rows[*key]))
        .collect();
    notes.extend(differences(&named));
    Ok(Section {
        dataset: key.dataset.clone(),
        protocol: key.protocol.clone(),
        selection: key.selection,
        model: key.model.clone(),
        norm,
        epsilon: epsilon.to_string(),
        goal: first.record.threat.goal,
        n_test: first.record.n,
        subset: first.record.subset.clone(),
        held_out: first.record.held_out,
        test_sha256: first.record.test_sha256.clone(),
        averages: averages(&attacks)
            .into_iter()
            .map(|(column, over)| (column.to_owned(), over.into_iter().map(str::to_owned).collect()))
            .collect(),
        attack_configs: parameters.into_iter().map(|(name, config)| (name.to_owned(), config.clone())).collect(),
        attacks,
        columns,
        margin_edges,
        rows: made,
        notes,
    })
}

/// Notes on what differs between the rows, and on what was not compared.
fn differences(rows: &[(String, &Row, &Runs<'_>)]) -> Vec<String> {
    let files = || rows.iter().flat_map(|(_, _, runs)| runs.values()).flat_map(|run| run.files.iter().copied());
    let mut notes: Vec<String> = different_trainings(rows).into_iter().chain(different_formations(rows)).collect();
    let (unknown, all) = (files().filter(|file| file.training.is_none()).count(), files().count());
    if unknown > 0 && unknown < all {
        notes.push(format!(
            "training settings were not compared for {unknown} of {all} attack.json files, which have no run.json next to them"
        ));
    }
    notes.extend(conditional(rows));
    let mixed = |of: fn(&Source) -> &BTreeMap<String, String>| {
        let found: BTreeSet<String> =
            files().map(|file| settings::named(of(file))).filter(|named| !named.is_empty()).collect();
        (found.len() > 1).then(|| found.into_iter().collect::<Vec<_>>().join("; "))
    };
    if let Some(list) = mixed(|file| &file.record.versions) {
        notes.push(format!("the runs come from different program versions: {list}"));
    }
    if let Some(list) = mixed(|file| &file.record.precision) {
        notes.push(format!("attacks were computed in different float formats: {list}"));
    }
    notes
}

/// In which settings the rows were trained differently. A reference on real images has the length and the rates of its
/// protocol for full data, which a note of its own row says.
fn different_trainings(rows: &[(String, &Row, &Runs<'_>)]) -> Option<String> {
    let compare = |of_full_data: bool| {
        let compared: Vec<(String, Vec<Value>)> = rows
            .iter()
            .filter(|(_, row, _)| !(of_full_data && row.undistilled))
            .map(|(name, _, runs)| {
                let mut trained = trainings(runs);
                for settings in trained.iter_mut().filter_map(Value::as_object_mut) {
                    settings.retain(|key, _| settings::OF_FULL_DATA.contains(&key.as_str()) == of_full_data);
                }
                (name.clone(), trained)
            })
            .collect();
        settings::differences_of_rows(&compared)
    };
    let differences: Vec<String> = [true, false].into_iter().filter_map(compare).collect();
    (!differences.is_empty()).then(|| format!("rows were trained with DIFFERENT settings: {}", differences.join("; ")))
}

/// Which rows store mosaics and which whole images, where both are there: a mosaic holds four training images.
fn different_formations(rows: &[(String, &Row, &Runs<'_>)]) -> Option<String> {
    let mut formations: BTreeMap<i64, BTreeSet<&str>> = BTreeMap::new();
    for (name, _, runs) in rows.iter().filter(|(_, row, _)| !row.undistilled) {
        for file in runs.values().flat_map(|run| &run.files) {
            formations.entry(file.record.subject.formation()).or_default().insert(name);
        }
    }
    let words = |(&formation, names): (&i64, &BTreeSet<&str>)| {
        let names = names.iter().copied().collect::<Vec<_>>().join(", ");
        match formation {
            1 => format!("one image in each stored image: {names}"),
            side => format!("{} smaller images in each ({side}x{side} mosaic): {names}", side * side),
        }
    };
    (formations.len() > 1).then(|| {
        let groups: Vec<String> = formations.iter().map(words).collect();
        format!("rows store DIFFERENT numbers of training images per stored image: {}", groups.join("; "))
    })
}

/// The note where outcomes of images are missing.
fn conditional(rows: &[(String, &Row, &Runs<'_>)]) -> Option<String> {
    let compared = || rows.iter().flat_map(|(_, row, _)| &row.cells).filter_map(|cell| cell.comparison.as_ref());
    let of_seeds = compared().filter(|one| one.covers == Covers::Seeds && one.p_value.is_some()).count();
    (of_seeds > 0).then(|| {
        format!(
            "{of_seeds} of {} comparisons are over seeds for these test images only and get no mark: some attack.json does not hold \
             the outcome of each image",
            compared().count()
        )
    })
}

/// The comparisons of cells that are shown, where the test is one that may give a mark.
fn tested(sections: &[Section]) -> impl Iterator<Item = &Comparison> {
    let shown = sections.iter().flat_map(|section| section.rows.iter().map(move |row| (section, row)));
    let cells = shown.flat_map(|(section, row)| section.columns.iter().filter_map(|column| row.cell(column)));
    let comparisons = cells.filter_map(|cell| cell.comparison.as_ref());
    comparisons.filter(|one| one.covers == Covers::SeedsAndImages && one.p_value.is_some())
}

/// The parameters of each attack, which are those of every run.
fn parameters<'a>(runs: impl Iterator<Item = &'a Measured<'a>>) -> Result<BTreeMap<&'a str, &'a Value>, EvalError> {
    let mut parameters: BTreeMap<&str, (&AttackScore, &Source)> = BTreeMap::new();
    for (&name, &(entry, file)) in runs.flat_map(|run| &run.attacks) {
        let (known, first) = *parameters.entry(name).or_insert((entry, file));
        if known.config != entry.config {
            return Err(EvalError::Mixed {
                what: "the parameters of an attack",
                a_path: first.path.clone().into(),
                a: known.config.to_string(),
                b_path: file.path.clone().into(),
                b: entry.config.to_string(),
            });
        }
    }
    Ok(parameters.into_iter().map(|(name, (entry, _))| (name, &entry.config)).collect())
}

/// Removes from the rows the notes about data and evaluation that all of them have, and returns these.
fn lift_common_notes(rows: &mut [Row], of_data: &BTreeSet<&String>) -> Vec<String> {
    let Some(first) = rows.first() else { return Vec::new() };
    let everywhere = |note: &&String| of_data.contains(note) && rows.iter().all(|row| row.notes.contains(note));
    let common: Vec<String> = first.notes.iter().filter(everywhere).cloned().collect();
    for row in rows {
        row.notes.retain(|note| !common.contains(note));
    }
    common
}
