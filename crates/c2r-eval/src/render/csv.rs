//! One line per cell.

use super::grid::goal;
use crate::{
    EvalError, Table,
    columns::size,
    table::{Cell, Comparison, Errors, Row, Section},
};

impl Table {
    /// One line per cell, full precision, with the files each number was computed from.
    ///
    /// # Errors
    /// None in practice: writing to memory does not fail.
    pub fn csv(&self) -> Result<String, EvalError> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let broken = |error: String| EvalError::record(std::path::Path::new("table.csv"), error);
        writer.write_record(FIELDS.map(|(name, _)| name)).map_err(|error| broken(error.to_string()))?;
        for (section, row, cell) in self.cells() {
            let line = FIELDS.map(|(_, text)| text(section, row, cell));
            writer.write_record(line).map_err(|error| broken(error.to_string()))?;
        }
        let bytes = writer.into_inner().map_err(|error| broken(error.to_string()))?;
        String::from_utf8(bytes).map_err(|error| broken(error.to_string()))
    }
}

type Field = (&'static str, fn(&Section, &Row, &Cell) -> String);

/// Every field of a line: its name, and its text.
const FIELDS: [Field; 43] = [
    ("dataset", |section, _, _| section.dataset.clone()),
    ("images_per_class", |_, row, _| size(row.images_per_class)),
    ("protocol", |section, _, _| section.protocol.clone()),
    ("selection", |section, _, _| section.selection.to_string()),
    ("model", |section, _, _| section.model.clone()),
    ("norm", |section, _, _| format!("{:?}", section.norm).to_lowercase()),
    ("epsilon", |section, _, _| section.epsilon.clone()),
    ("goal", |section, _, _| goal_or_untargeted(section)),
    ("method", |_, row, _| row.method.clone()),
    ("profile", |_, row, _| row.profile.clone()),
    ("label", |_, row, _| row.label.clone()),
    ("undistilled", |_, row, _| row.undistilled.to_string()),
    ("column", |_, _, cell| cell.column.clone()),
    ("mean_over", |section, _, cell| {
        section.averages.get(&cell.column).map_or_else(String::new, |over| over.join(" "))
    }),
    ("runs", |_, _, cell| cell.summary.n.to_string()),
    ("planned_runs", |_, row, _| text(row.planned_runs)),
    ("mean", |_, _, cell| cell.summary.mean.to_string()),
    ("sd", |_, _, cell| text(cell.summary.sd)),
    ("ci95_low", |_, _, cell| text(cell.summary.ci95.map(|(low, _)| low))),
    ("ci95_high", |_, _, cell| text(cell.summary.ci95.map(|(_, high)| high))),
    ("ci95_covers", |_, _, cell| text(cell.summary.ci95.map(|_| cell.ci95_covers.words()))),
    ("published", |_, _, cell| text(cell.published.as_ref().map(|published| published.value))),
    ("published_source", |_, _, cell| text(cell.published.as_ref().map(|published| &published.source))),
    ("difference_from_published", |_, _, cell| text(cell.published.as_ref().map(|published| published.difference))),
    ("outside_tolerance", |_, _, cell| text(cell.published.as_ref().and_then(|published| published.outside_tolerance))),
    ("baseline", |_, _, cell| text(cell.comparison.as_ref().map(|comparison| &comparison.baseline))),
    ("difference_from_baseline", |_, _, cell| text(cell.comparison.as_ref().map(|comparison| comparison.difference))),
    ("p_value", |_, _, cell| text(cell.comparison.as_ref().and_then(|comparison| comparison.p_value))),
    ("p_value_covers", |_, _, cell| text(tested(cell).map(|comparison| comparison.covers.words()))),
    ("p_value_seeds", |_, _, cell| text(cell.comparison.as_ref().and_then(|comparison| comparison.p_value_seeds))),
    ("error_seeds", |_, _, cell| text(errors(cell).map(|errors| errors.seeds))),
    ("error_images", |_, _, cell| text(errors(cell).map(|errors| errors.images))),
    ("error", |_, _, cell| text(errors(cell).map(|errors| errors.both))),
    ("freedom", |_, _, cell| text(errors(cell).map(|errors| errors.freedom))),
    ("significant", |_, _, cell| text(cell.comparison.as_ref().map(|comparison| comparison.significant))),
    ("n_test", |section, _, _| section.n_test.to_string()),
    ("test_subset", |section, _, _| text(section.subset.as_ref().map(|_| section.images()))),
    ("n_images", |_, row, _| row.n_images.to_string()),
    ("extra_storage", |_, row, _| row.extra_storage.clone()),
    ("flags", |_, _, cell| cell.flags.join("; ")),
    ("notes", notes),
    ("seeds", seeds),
    ("sources", |_, _, cell| cell.sources.join("; ")),
];

/// `untargeted`, or `targeted (next)`.
fn goal_or_untargeted(section: &Section) -> String {
    let goal = goal(section).trim_start_matches(", ");
    if goal.is_empty() { "untargeted".to_owned() } else { goal.to_owned() }
}

fn errors(cell: &Cell) -> Option<Errors> {
    cell.comparison.as_ref()?.errors
}

/// The comparison that has a p-value.
fn tested(cell: &Cell) -> Option<&Comparison> {
    cell.comparison.as_ref().filter(|comparison| comparison.p_value.is_some())
}

/// Empty for nothing.
fn text<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

fn notes(section: &Section, row: &Row, cell: &Cell) -> String {
    let caveats = [cell.caveat.as_str(), cell.published.as_ref().map_or("", |published| &published.caveat)];
    let caveats = caveats.into_iter().filter(|caveat| !caveat.is_empty());
    let notes = row.notes.iter().chain(&section.notes).map(String::as_str).chain(caveats);
    notes.collect::<Vec<_>>().join("; ")
}

/// Seeds of distillation and training of the runs that have a value.
fn seeds(_: &Section, row: &Row, cell: &Cell) -> String {
    let runs = row.runs.iter().zip(&cell.values).filter(|(_, value)| value.is_some());
    let seeds = runs.map(|(run, _)| {
        let distill = run.distill_seed.map_or_else(|| "-".to_owned(), |seed| seed.to_string());
        format!("{distill}/{}", run.train_seed)
    });
    seeds.collect::<Vec<_>>().join("; ")
}
