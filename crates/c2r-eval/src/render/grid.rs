//! The cells of a section as texts, for every rendering.

use c2r_base::{Goal, TargetRule};
use c2r_experiment::Selection;

use crate::{
    columns::{column_heading, fixed, size},
    table::{Cell, Row, Section},
};

/// Dataset, protocol, and how the step was chosen where it was.
pub(crate) fn heading(section: &Section) -> String {
    let protocol = match section.protocol.as_str() {
        "natural" => "natural training".to_owned(),
        "dd-robustbench" => "natural training (DD-RobustBench's recipe)".to_owned(),
        "pgd-at" => "adversarial training (PGD-AT)".to_owned(),
        "trades" => "adversarial training (TRADES)".to_owned(),
        other => format!("protocol {other}"),
    };
    let chosen = match section.selection {
        Selection::Last => "",
        Selection::HeldOut => ", step chosen on held-out training images",
        Selection::BestTest => ", step chosen on the TEST images (best-test: optimistic)",
    };
    format!("{}, {protocol}{chosen}", section.dataset)
}

/// Network, attacks and test images.
pub(crate) fn setting(section: &Section) -> String {
    format!(
        "{}; attacks: {:?} ball of {} in pixel units{}; {}.",
        section.model,
        section.norm,
        section.epsilon,
        goal(section),
        section.images()
    )
}

/// Norm, radius and goal of the attacker: `Linf 2/255`, `L2 0.5, targeted (next)`.
pub(crate) fn threat(section: &Section) -> String {
    format!("{:?} {}{}", section.norm, section.epsilon, goal(section))
}

/// What follows the radius: nothing, or the goal of a targeted attack.
pub(super) fn goal(section: &Section) -> &'static str {
    match section.goal {
        Goal::Untargeted => "",
        Goal::Targeted(TargetRule::Next) => ", targeted (next)",
        Goal::Targeted(TargetRule::Random) => ", targeted (random)",
        Goal::Targeted(TargetRule::LeastLikely) => ", targeted (least-likely)",
        Goal::Targeted(TargetRule::SecondBest) => ", targeted (second-best)",
        Goal::Targeted(TargetRule::Given) => ", targeted (given classes)",
    }
}

/// Notes by their numbers, from 1, each said once.
#[derive(Default)]
pub(crate) struct Notes(pub(crate) Vec<String>);

impl Notes {
    /// The number of a note.
    pub(crate) fn number(&mut self, note: &str) -> usize {
        let position = self.0.iter().position(|known| known == note).unwrap_or_else(|| {
            self.0.push(note.to_owned());
            self.0.len() - 1
        });
        position + 1
    }
}

/// The notes of a cell.
pub(crate) fn cell_notes(row: &Row, cell: &Cell) -> Vec<String> {
    let caveat = cell.published.as_ref().map(|published| published.caveat.clone()).filter(|caveat| !caveat.is_empty());
    let runs = (cell.summary.n < row.runs.len()).then(|| format!("{} of {} runs", cell.summary.n, row.runs.len()));
    let flags = cell.flags.iter().map(|flag| match meaning(flag.split(' ').next().unwrap_or_default()) {
        "" => format!("doubtful: {flag}"),
        meaning => format!("doubtful: {flag}: {meaning}"),
    });
    caveat.into_iter().chain(runs).chain(flags).collect()
}

/// A flag of attacks that contradict each other, in words; docs/attacks/flags.md says what to do.
fn meaning(flag: &str) -> &'static str {
    match flag {
        "one-step-beats-many" => {
            "FGSM breaks more images in one step than this attack in many; its step size may not fit the radius"
        }
        "weaker-than-noise" => "random noise breaks more images than this attack",
        "black-box-beats-white-box" => {
            "this attack uses no gradients but breaks images that the attacks with gradients do not; gradients may be masked"
        }
        _ => "",
    }
}

/// The number of runs, and whether that is fewer than planned.
pub(crate) fn runs(row: &Row) -> (String, bool) {
    match row.planned_runs.filter(|&planned| row.runs.len() < planned) {
        Some(planned) => (format!("{} of {planned}", row.runs.len()), true),
        None => (row.runs.len().to_string(), false),
    }
}

/// A section as texts.
pub(super) struct Grid {
    pub(super) header: Vec<String>,
    pub(super) rows: Vec<Vec<Entry>>,
    pub(super) notes: Notes,
}

pub(super) struct Entry {
    pub(super) text: String,
    /// Significantly better than the baseline.
    pub(super) better: bool,
}

impl Grid {
    pub(super) fn new(section: &Section) -> Self {
        let mut header = ["ipc", "method", "runs"].map(str::to_owned).to_vec();
        header.extend(section.columns.iter().map(|column| column_heading(&section.attacks, column)));
        let mut notes = Notes::default();
        let rows = section.rows.iter().map(|row| line(section, row, &mut notes)).collect();
        Self { header, rows, notes }
    }
}

fn line(section: &Section, row: &Row, notes: &mut Notes) -> Vec<Entry> {
    let mut marked = |mut text: String, said: &[String]| {
        said.iter().for_each(|note| text.push_str(&format!(" [{}]", notes.number(note))));
        text
    };
    let undistilled = if row.undistilled { ", undistilled" } else { "" };
    let label = marked(format!("{}{undistilled}", row.label), &row.notes);
    let (mut n_runs, fewer) = runs(row);
    if fewer {
        n_runs = marked(n_runs, &["fewer runs than planned".to_owned()]);
    }
    let plain = |text: String| Entry { text, better: false };
    let mut line = vec![plain(size(row.images_per_class)), plain(label), plain(n_runs)];
    line.extend(section.columns.iter().map(|column| {
        let Some(cell) = row.cell(column) else { return plain("–".to_owned()) };
        let significant = cell.comparison.as_ref().filter(|comparison| comparison.significant);
        let better = significant.is_some_and(|comparison| comparison.better);
        Entry { text: marked(text(cell, significant.is_some() && !better), &cell_notes(row, cell)), better }
    }));
    line
}

/// `41.5 ± 0.3 ↓ (42.0) !`.
fn text(cell: &Cell, worse: bool) -> String {
    let mut text = fixed(cell.summary.mean, 1);
    if let Some(sd) = cell.summary.sd {
        text.push_str(&format!(" ± {}", fixed(sd, 1)));
    }
    if worse {
        text.push_str(" ↓");
    }
    if let Some(published) = &cell.published {
        text.push_str(&format!(" ({})", fixed(published.value, 1)));
        if published.outside_tolerance == Some(true) {
            text.push_str(" !");
        }
    }
    text
}
