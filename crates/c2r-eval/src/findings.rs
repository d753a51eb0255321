//! What a table shows, in sentences: the first thing that a reader of it sees.
//!
//! The sentences are about one method of each section at its largest size: C²R where it has a row, else the last method
//! that the experiment lists.

use std::collections::BTreeSet;

use c2r_base::Goal;

use crate::{
    Table,
    columns::{AUTOATTACK, CLEAN, MEAN_ROBUST, MEAN_ROBUST_AUTOATTACK, fixed, names, p_value, thousands},
    render::{heading, threat},
    stats::{Covers, FEWEST_IMAGES, SIGNIFICANT},
    table::{Cell, Row, Section},
};

/// The method that this project is about.
const SUBJECT: &str = "c2r";
/// How the names of random real images begin, as they are and in mosaics.
const REAL_IMAGES: &str = "random-real";
/// Other methods that store real images, which they choose.
const CHOSEN_REAL_IMAGES: [&str; 3] = ["herding", "k-center", "plus-real"];
/// With fewer runs than this, a note asks for more.
const ENOUGH_RUNS: usize = 5;

/// What one section shows.
pub(crate) struct Finding {
    /// Dataset, protocol and threat model.
    pub(crate) heading: String,
    pub(crate) sentences: Vec<String>,
}

impl Table {
    /// One for each section with a distilled set that is not the baseline.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let of_section = |section: &Section| {
            let row = self.subject(section)?;
            let name = self.name(section, row);
            let mut sentences = accuracies(section, row, &name).or_else(|| incomplete(section, row, &name))?;
            sentences.extend(beside_baseline(section, row));
            Some(Finding { heading: format!("{}, {}", heading(section), threat(section)), sentences })
        };
        self.sections.iter().filter_map(of_section).collect()
    }

    /// What the table does not show, though a reader may think so; empty without [`Table::findings`].
    pub(crate) fn not_shown(&self) -> Vec<String> {
        if self.findings().is_empty() {
            return Vec::new();
        }
        // These are the rows that the sentences name.
        let named = self.sections.iter().filter_map(|section| Some((section, self.subject(section)?))).flat_map(
            |(section, subject)| {
                let baseline = section.rows.iter().filter(|row| Some(&row.method) == self.baseline.as_ref());
                let baseline = baseline.filter(|row| row.images_per_class == subject.images_per_class);
                baseline.chain(references(section, subject)).chain([subject])
            },
        );
        let fewest = named.map(Row::n_units).min().unwrap_or(0);
        let mut lines = Vec::new();
        let means = || self.sections.iter().filter_map(|section| Some((section, robust(self.subject(section)?)?)));
        let without = |&(section, cell): &(&Section, &Cell)| {
            !section.averages.get(&cell.column).is_some_and(|over| over.iter().any(|attack| attack == AUTOATTACK))
        };
        let weaker = match means().filter(without).count() {
            0 => None,
            all if all == means().count() => Some("AutoAttack was not run"),
            _ => Some("Some of these means are without AutoAttack"),
        };
        lines.extend(
            weaker.map(|weaker| format!("{weaker}, and a stronger attack can only lower these robust accuracies.")),
        );
        if fewest == 1 {
            lines.push("Some rows have 1 independent run, so no difference from them can be tested.".to_owned());
        } else if fewest < ENOUGH_RUNS {
            lines.push(format!(
                "Some rows have {fewest} independent runs; small differences need {ENOUGH_RUNS} or more."
            ));
        }
        if let Some(scale) =
            self.experiment.as_ref().filter(|one| !one.tolerance_applies).and_then(|one| one.scale.as_ref())
        {
            lines.push(format!("`{scale}` is not the paper's scale, so this neither confirms nor refutes the paper."));
        }
        lines
    }

    fn subject<'a>(&self, section: &'a Section) -> Option<&'a Row> {
        let rows = self.candidates(section);
        rows.iter().find(|row| row.method == SUBJECT).or(rows.last()).copied()
    }

    /// The label of the subject; where it is one of several methods and not C²R, that too.
    fn name(&self, section: &Section, subject: &Row) -> String {
        let label = &subject.label;
        match self.candidates(section).len() {
            several @ 2.. if subject.method != SUBJECT => format!("{label} (the last of {several} methods)"),
            _ => label.clone(),
        }
    }

    /// The rows with distilled sets of the largest size, without the baseline.
    fn candidates<'a>(&self, section: &'a Section) -> Vec<&'a Row> {
        let distilled = |row: &&Row| {
            !row.undistilled
                && row.images_per_class.is_some()
                && !row.method.starts_with(REAL_IMAGES)
                && !CHOSEN_REAL_IMAGES.contains(&row.method.as_str())
                && self.baseline.as_ref() != Some(&row.method)
        };
        let rows = || section.rows.iter().filter(distilled);
        let largest = rows().filter_map(|row| row.images_per_class).max();
        rows().filter(|row| row.images_per_class == largest).collect()
    }
}

/// The mean over most attacks that a row has.
fn robust(row: &Row) -> Option<&Cell> {
    row.cell(MEAN_ROBUST_AUTOATTACK).or_else(|| row.cell(MEAN_ROBUST))
}

/// Which attacks a mean is over, in parentheses.
fn mean_of(section: &Section, mean: &Cell) -> String {
    let over = section.averages.get(&mean.column).map(|over| names(over.iter().map(String::as_str)));
    over.map(|over| format!(" (mean of {over})")).unwrap_or_default()
}

fn percent(cell: &Cell) -> String {
    let sd = cell.summary.sd.map(|sd| format!(" ± {}", fixed(sd, 1))).unwrap_or_default();
    format!("{}{sd} %", fixed(cell.summary.mean, 1))
}

/// The method next to the same number of real images and to all of them.
fn accuracies(section: &Section, row: &Row, name: &str) -> Option<Vec<String>> {
    let (subject, clean) = (robust(row)?, row.cell(CLEAN)?);
    let per_class = row.images_per_class?;
    let over = mean_of(section, subject);
    let images = if per_class == 1 { "image" } else { "images" };
    let (kind, attacked, clean) = (section.kind(), percent(subject), percent(clean));
    let trained = format!("networks trained on {per_class} distilled {images} per class");
    let mut sentences = vec![match section.goal {
        Goal::Untargeted => {
            format!("{name}: {trained} are right on {attacked} of attacked {kind}{over} and on {clean} of clean ones.")
        }
        // An image that gets a third class has resisted.
        Goal::Targeted(_) => format!(
            "{name}: {trained} keep {attacked} of {kind} from the class that targeted attacks aim at{over} and are right on \
             {clean} of clean ones."
        ),
    }];
    let several = section.rows.iter().filter(|other| other.undistilled).count() > 1;
    for other in references(section, row) {
        let (Some(robust), Some(clean)) = (other.cell(&subject.column), other.cell(CLEAN)) else { continue };
        let all = || format!("all {} real images", thousands(other.n_images));
        let label = match (other.undistilled, several) {
            (true, true) => format!("{} ({})", all(), other.label),
            (true, false) => all(),
            (false, _) => format!("as many real images ({})", other.label),
        };
        let (attacked, clean) = (percent(robust), percent(clean));
        sentences.push(match section.goal {
            Goal::Untargeted => {
                format!("Networks trained on {label} are right on {attacked} of attacked and on {clean} of clean ones.")
            }
            Goal::Targeted(_) => {
                format!("Networks trained on {label} keep {attacked} from that class and are right on {clean} of clean ones.")
            }
        });
        if let (true, Some(ours), Some(theirs)) = (other.undistilled, subject.summary.ci95, robust.summary.ci95)
            && ours.0 > theirs.1
            // Intervals over seeds alone say nothing of other images.
            && [subject, robust].iter().all(|cell| cell.ci95_covers == Covers::SeedsAndImages)
        {
            sentences.push(
                "The distilled images train the more robust networks (the 95 % intervals do not overlap).".to_owned(),
            );
        }
    }
    Some(sentences)
}

/// What is said of a method that has no mean because it lacks an attack that other rows have.
fn incomplete(section: &Section, row: &Row, name: &str) -> Option<Vec<String>> {
    let missing = section.averages.contains_key(MEAN_ROBUST) && robust(row).is_none();
    missing.then(|| {
        vec![format!("{name} was not attacked with everything that others were, so it has no mean to compare.")]
    })
}

/// All real images, and as many of them as `row` has.
fn references<'a>(section: &'a Section, row: &'a Row) -> impl Iterator<Item = &'a Row> {
    section.rows.iter().filter(|other| {
        other.undistilled || other.images_per_class == row.images_per_class && other.method.starts_with(REAL_IMAGES)
    })
}

/// Whether the method differs from the baseline.
fn beside_baseline(section: &Section, row: &Row) -> Option<String> {
    let fullest = robust(row)?;
    // The baseline may lack AutoAttack.
    let cell = [Some(fullest), row.cell(MEAN_ROBUST)].into_iter().flatten().find(|cell| cell.comparison.is_some())?;
    let comparison = cell.comparison.as_ref()?;
    let over = if cell.column == fullest.column { String::new() } else { mean_of(section, cell) };
    let size = row.images_per_class;
    let baseline = section.rows.iter().find(|one| one.method == comparison.baseline && one.images_per_class == size);
    let name = baseline.map_or(comparison.baseline.as_str(), |baseline| baseline.label.as_str());
    let points = fixed(comparison.difference.abs(), 1);
    let side = if comparison.difference < 0.0 { "fewer" } else { "more" };
    let verdict = match comparison.p_value {
        None => "no p-value could be computed, so this may be chance".to_owned(),
        Some(p) => {
            let passes = p < SIGNIFICANT;
            let p = format!("p {}", p_value(p));
            match (comparison.significant, comparison.covers) {
                (true, _) => format!("{p}, a significant difference"),
                (false, Covers::SeedsAndImages) if passes => {
                    format!("{p}, but the difference is fewer than {FEWEST_IMAGES} test images, so it is not marked")
                }
                (false, Covers::SeedsAndImages) => format!("{p}, no significant difference"),
                (false, Covers::Seeds) => format!("{p} over the seeds alone, so it may be chance"),
            }
        }
    };
    let whole = [Some(row), baseline].into_iter().flatten().all(|row| row.n_units() <= comparison.n_pairs);
    let seeds = |row: &Row| -> BTreeSet<_> { row.runs.iter().map(|run| (run.distill_seed, run.train_seed)).collect() };
    let on = if !whole {
        match comparison.n_pairs {
            1 => " on the one seed that both have".to_owned(),
            n => format!(" on the {n} seeds that both have"),
        }
    } else if baseline.is_some_and(|baseline| seeds(baseline) != seeds(row)) {
        " on the pairs of seeds (distillation and training) that both have".to_owned()
    } else {
        String::new()
    };
    if comparison.difference == 0.0 {
        return Some(format!("Compared with {name}{on}: the same under attack{over}."));
    }
    Some(format!("Compared with {name}{on}: {points} points {side} under attack{over}, {verdict}."))
}
