//! How to read a table, in words.

use std::collections::BTreeSet;

use crate::{
    Table,
    columns::{AUTOATTACK, DROP_RATE, DROP_RATE_ATTACK, MEAN_ROBUST, PAPER_ATTACKS, column_label, names, size},
    stats::{FEWEST_IMAGES, SIGNIFICANT},
    table::{PlannedRow, Section},
};

/// How many missing rows are named; all are in the JSON.
const NAMED_MISSING: usize = 6;

impl Table {
    /// A sentence for the top of a table whose grid is another than its experiment's; empty where it is that.
    pub(crate) fn changed_grid(&self) -> &'static str {
        let changed = self.experiment.as_ref().is_some_and(|experiment| !experiment.changes.is_empty());
        if changed { " The grid was changed; the notes at the end say how." } else { "" }
    }

    /// Whether any number has a published one beside it.
    pub(crate) fn has_published(&self) -> bool {
        self.cells().any(|(_, _, cell)| cell.published.is_some())
    }

    /// Which of the paper's five attacks a mean lacks, where it lacks some.
    fn absent(&self) -> String {
        let of_section = |section: &Section| {
            let over = section.averages.get(MEAN_ROBUST)?;
            Some(names(PAPER_ATTACKS.into_iter().filter(|attack| !over.iter().any(|used| used == attack))))
        };
        let mut absent: BTreeSet<String> = self.sections.iter().filter_map(of_section).collect();
        let first = absent.pop_first().unwrap_or_default();
        if !absent.is_empty() {
            " Not all tables here have all of these; their columns show which.".to_owned()
        } else if first.is_empty() {
            String::new()
        } else {
            format!(" Not run here: {first}.")
        }
    }

    /// How many marks there are, and how many chance would make: with many tests, some marks mean nothing.
    fn many_tests(&self) -> String {
        let (tested, marked) = (self.n_tested, self.n_marked);
        let plural = if tested == 1 { "" } else { "s" };
        let verb = if marked == 1 { "is" } else { "are" };
        let by_chance = SIGNIFICANT * tested as f64;
        let chance = if by_chance < 1.0 { "fewer than one".to_owned() } else { format!("about {}", by_chance.round()) };
        format!(
            "{marked} of {tested} comparison{plural} with the baseline {verb} marked. If no method differed from it, chance would mark {chance}: the tests are not corrected for their number."
        )
    }

    pub(crate) fn legend(&self, bold: &str) -> Vec<String> {
        let kinds: BTreeSet<&str> = self.sections.iter().map(Section::kind).collect();
        let images = match kinds.len() {
            0 => "test images".to_owned(),
            1 => kinds.into_iter().collect(),
            _ => "images that each table names".to_owned(),
        };
        let mut lines = vec![format!(
            "Accuracies are percentages of the {images}, mean ± sample standard deviation over runs. An image that is misclassified without an attack counts as not robust."
        )];
        let shown =
            |column: &str| self.sections.iter().any(|section| section.columns.iter().any(|name| name == column));
        if shown(MEAN_ROBUST) {
            let five = names(PAPER_ATTACKS);
            lines.push(format!(
                "mean robust: the mean over the attacks in parentheses. The paper does not say whether its mean is over {five} or over these and {}.{}",
                column_label(AUTOATTACK),
                self.absent()
            ));
        }
        if shown(DROP_RATE) {
            let attack = column_label(DROP_RATE_ATTACK);
            lines.push(format!(
                "DR ({attack}): drop rate, the percentage of the clean accuracy that is lost under {attack}; lower is better."
            ));
        }
        if self.has_published() {
            lines.push("The published number is in parentheses.".to_owned());
            lines.push(match &self.experiment {
                Some(experiment) if experiment.tolerance_applies => format!(
                    "`!` marks numbers farther than {} points from the published one ({} here).",
                    experiment.tolerance,
                    self.outside_tolerance().count()
                ),
                _ => "This is not the paper's setting, so differences from the published numbers are not marked."
                    .to_owned(),
            });
        }
        let methods = || self.rows().map(|(_, row)| &row.method);
        lines.push(match &self.baseline {
            None => "No baseline was named, so differences are not tested for significance.".to_owned(),
            Some(baseline) if !methods().any(|method| method == baseline) => format!(
                "The baseline `{baseline}` has no row here, so there are no p-values, and differences are not tested for significance."
            ),
            Some(baseline) if methods().all(|method| method == baseline) => {
                format!("`{baseline}` is the baseline and the only method here, so nothing is compared with it.")
            }
            Some(baseline) if self.cells().all(|(_, _, cell)| cell.comparison.is_none()) => format!(
                "No row shares size, protocol and seeds with a row of `{baseline}`, so differences are not tested for significance."
            ),
            Some(baseline) => format!(
                "{bold} marks numbers that are better than `{baseline}` by at least {FEWEST_IMAGES} test images, with p < {SIGNIFICANT} in a paired test over seeds and test images together; ↓ marks worse ones. A number without a mark did not pass this test, or has nothing to be compared with."
            ),
        });
        lines.extend((self.n_tested > 0).then(|| self.many_tests()));
        let changes = self.experiment.iter().flat_map(|experiment| &experiment.changes);
        lines.extend(changes.map(|change| format!("The grid differs from the experiment's file: {change}.")));
        let missing = self.missing.len();
        if self.planned_rows > 0 && missing == 0 {
            lines.push(format!("All {} rows of the grid have at least one result.", self.planned_rows));
        } else if self.planned_rows > 0 {
            let name = |row: &PlannedRow| {
                format!("{} {} ipc {} {}", row.dataset, row.protocol, size(row.images_per_class), row.method)
            };
            let mut named: Vec<String> = self.missing.iter().take(NAMED_MISSING).map(name).collect();
            if missing > NAMED_MISSING {
                named.push("... (all with `--format json`)".to_owned());
            }
            let threat = self.experiment.as_ref().map_or("", |experiment| experiment.threat.as_str());
            lines.push(format!(
                "{missing} of {} rows of the grid (at {threat}) have no result: {}.",
                self.planned_rows,
                named.join("; ")
            ));
        }
        lines.push(
            "`c2r table --format json` lists the files, seeds and configurations of every number; docs/tables.md has the formulas."
                .to_owned(),
        );
        lines
    }
}
