//! How to read a table, in words.

use std::collections::BTreeSet;

use crate::{
    Table,
    columns::{DROP_RATE, DROP_RATE_ATTACK, MEAN_ROBUST, PAPER_ATTACKS, column_label, names, size},
    stats::{FEWEST_IMAGES, SIGNIFICANT},
    table::{PlannedRow, Section},
};

/// How many missing rows are named; all are in the JSON.
const NAMED_MISSING: usize = 6;

impl Table {
    /// A sentence for the top of a table whose grid is another than its experiment's; empty where it is that.
    pub(crate) fn changed_grid(&self) -> &'static str {
        let changed = self.experiment.as_ref().is_some_and(|experiment| !experiment.changes.is_empty());
        if changed { " Another grid than that was asked for, as the notes at the end say." } else { "" }
    }

    /// Whether any number has a published one beside it.
    pub(crate) fn has_published(&self) -> bool {
        self.cells().any(|(_, _, cell)| cell.published.is_some())
    }

    /// Which of the paper's five attacks a mean lacks, where it lacks some.
    fn absent(&self) -> String {
        let of_section = |section: &Section| {
            let over = section.averages.get(MEAN_ROBUST)?;
            let absent = names(PAPER_ATTACKS.into_iter().filter(|attack| !over.iter().any(|used| used == attack)));
            (!absent.is_empty()).then_some(absent)
        };
        let absent: BTreeSet<String> = self.sections.iter().filter_map(of_section).collect();
        match absent.len() {
            0 => String::new(),
            _ => format!(" Not judged here: {}.", absent.into_iter().collect::<Vec<_>>().join("; ")),
        }
    }

    pub(crate) fn legend(&self, bold: &str) -> Vec<String> {
        let mut lines = vec![
            "Accuracies in percent of all judged test images, mean ± sample standard deviation over runs. An image that is wrong without an attack counts as not robust.".to_owned(),
        ];
        let shown =
            |column: &str| self.sections.iter().any(|section| section.columns.iter().any(|name| name == column));
        if shown(MEAN_ROBUST) {
            let five = names(PAPER_ATTACKS);
            lines.push(format!(
                "mean robust: mean over the attacks in parentheses; the paper's are {five}.{}",
                self.absent()
            ));
        }
        if shown(DROP_RATE) {
            let attack = column_label(DROP_RATE_ATTACK);
            lines.push(format!(
                "DR ({attack}): drop rate, 100 (clean - robust) / clean under {attack}; less is better."
            ));
        }
        if self.has_published() {
            lines.push("In parentheses: the published number.".to_owned());
            lines.push(match &self.experiment {
                Some(experiment) if experiment.tolerance_applies => format!(
                    "`!`: farther than {} points from the published number ({} of the numbers here).",
                    experiment.tolerance,
                    self.outside_tolerance().count()
                ),
                _ => "This is not the paper's setting, so no number is held against a published one.".to_owned(),
            });
        }
        let methods = || self.rows().map(|(_, row)| &row.method);
        lines.push(match &self.baseline {
            None => "No baseline was named, so no difference here is called significant.".to_owned(),
            Some(baseline) if !methods().any(|method| method == baseline) => format!(
                "`{baseline}`, with which the others would be compared, has no row here, so there are no p-values and no difference is called significant."
            ),
            Some(baseline) if methods().all(|method| method == baseline) => {
                format!("`{baseline}`, the baseline, has no other row beside it to be compared with.")
            }
            Some(baseline) if self.cells().all(|(_, _, cell)| cell.comparison.is_none()) => format!(
                "No row here shares seeds with a row of `{baseline}`, so no difference here is called significant."
            ),
            Some(baseline) => format!(
                "{bold}: better than `{baseline}` by at least {FEWEST_IMAGES} test images, with p < {SIGNIFICANT} in a paired test over seeds and test images together; ↓: worse by the same test. Not corrected for the number of cells; any other difference is not a finding."
            ),
        });
        let changes = self.experiment.iter().flat_map(|experiment| &experiment.changes);
        lines.extend(changes.map(|change| format!("The grid is not that of the experiment's file: {change}.")));
        let missing = self.missing.len();
        if self.planned_rows > 0 && missing == 0 {
            lines.push(format!("All {} rows of the grid have a result.", self.planned_rows));
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
                "Missing: {missing} of {} rows of the grid, which is at {threat}: {}.",
                self.planned_rows,
                named.join("; ")
            ));
        }
        lines.push(
            "Every number's files, seeds and configurations: `c2r table --format json`; formulas: docs/tables.md."
                .to_owned(),
        );
        lines
    }
}
