//! What `table.json` holds.

use std::collections::{BTreeMap, BTreeSet};

use c2r_base::{Epsilon, Goal, Norm};
use c2r_experiment::{Selection, Subset};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    columns::thousands,
    stats::{Covers, Summary},
};

/// Everything that `table.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// [`Table::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Heading.
    pub title: String,
    /// What it reproduces.
    pub experiment: Option<ExperimentInfo>,
    /// The method that the others are compared with.
    pub baseline: Option<String>,
    /// Number of shown cells that were tested over seeds and test images against the baseline.
    pub n_tested: usize,
    /// Number of those that got a mark ([`Comparison::significant`]).
    pub n_marked: usize,
    /// One per dataset, protocol, architecture and threat; these are never mixed.
    pub sections: Vec<Section>,
    /// Cells of the grid with no result at all.
    pub missing: Vec<PlannedRow>,
    /// Number of rows that the grid plans; 0 without one.
    pub planned_rows: usize,
    /// Configurations by the first 12 digits of their SHA-256; runs refer to them.
    pub configs: BTreeMap<String, Value>,
    /// Pictures next to the table; [`Table::build`] makes none.
    pub pictures: Vec<Picture>,
}

/// A picture of synthetic images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Picture {
    /// File name beside the table.
    pub file: String,
    /// What it shows.
    pub caption: String,
    /// The synthetic sets it shows, relative to the results folder.
    pub sources: Vec<String>,
}

/// Which experiment a table belongs to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExperimentInfo {
    /// Short name.
    pub name: String,
    /// The grid, where one was named.
    pub scale: Option<String>,
    /// What the grid is for.
    pub about: String,
    /// In what the grid is not that of the experiment's file, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    /// The ball that the grid plans, e.g. `Linf 2/255`; empty without a grid.
    pub threat: String,
    /// Where the published numbers are from.
    pub source: String,
    /// Percentage points.
    pub tolerance: f64,
    /// Whether cells are held against the tolerance (only at the paper's scale).
    pub tolerance_applies: bool,
}

/// Rows that may be compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Dataset.
    pub dataset: String,
    /// Downstream protocol.
    pub protocol: String,
    /// Which step's network each run kept.
    #[serde(default, skip_serializing_if = "Selection::is_last")]
    pub selection: Selection,
    /// Architecture.
    pub model: String,
    /// Norm of the attacks.
    pub norm: Norm,
    /// Radius of the attacks as written, pixel units.
    pub epsilon: String,
    /// Goal of the attacker.
    pub goal: Goal,
    /// Number of test images.
    pub n_test: usize,
    /// Which of the test images these are; `None` for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subset: Option<Subset>,
    /// Whether they are not test images but training images that nothing was trained on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held_out: bool,
    /// SHA-256 of the test split.
    pub test_sha256: String,
    /// Attacks in the order of their columns; sanity floors are last.
    pub attacks: Vec<String>,
    /// The attacks that each column of a mean robust accuracy is over.
    pub averages: BTreeMap<String, Vec<String>>,
    /// Parameters of each attack.
    pub attack_configs: BTreeMap<String, Value>,
    /// The columns that Markdown and terminal show; the other cells are in CSV and JSON.
    pub columns: Vec<String>,
    /// Edges of the bins of [`Row::margin_counts`] in logits, upwards; smaller and larger margins are in the outermost
    /// bins. Empty where no margins were kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub margin_edges: Vec<f64>,
    /// Rows: images per class upwards (all real images first), methods as the experiment lists them.
    pub rows: Vec<Row>,
    /// What is true of every row.
    pub notes: Vec<String>,
}

/// One method at one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Images per class; `None` for the whole training set.
    pub images_per_class: Option<usize>,
    /// Method.
    pub method: String,
    /// Distillation profile; empty for none.
    pub profile: String,
    /// Name to print.
    pub label: String,
    /// Whether nothing was distilled: an upper reference, not a competitor.
    pub undistilled: bool,
    /// Number of stored training images.
    pub n_images: usize,
    /// What is stored beyond images and one hard label each.
    pub extra_storage: String,
    /// SHA-256 of the real training split; empty where no run's is known.
    pub data_sha256: String,
    /// Number of runs that the experiment plans.
    pub planned_runs: Option<usize>,
    /// The runs, by seed.
    pub runs: Vec<Run>,
    /// Every column that could be computed.
    pub cells: Vec<Cell>,
    /// Mean accuracy of each class by column (`clean` and attacks), percent; only where outcomes per image were kept.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub per_class: BTreeMap<String, Vec<Option<f64>>>,
    /// Number of test images by margin, over all runs: `clean` and attacks, one number per bin of
    /// [`Section::margin_edges`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub margin_counts: BTreeMap<String, Vec<usize>>,
    /// What is true of this row only.
    pub notes: Vec<String>,
}

/// One trained network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Seed of the distillation.
    pub distill_seed: Option<u64>,
    /// Seed of the training.
    pub train_seed: u64,
    /// Seed of the attacks of the first of the files.
    pub attack_seed: u64,
    /// The `attack.json` files.
    pub files: Vec<String>,
    /// The command that wrote each of [`Run::files`], in their order.
    pub attack_argvs: Vec<Vec<String>>,
    /// The command that distilled; empty where it is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub distill_argv: Vec<String>,
    /// The command that trained; empty where it is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub train_argv: Vec<String>,
    /// Versions of the programs involved.
    pub versions: BTreeMap<String, String>,
    /// Float formats by what the attacks computed in them; empty where it is not known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub precision: BTreeMap<String, String>,
    /// Key of [`Table::configs`].
    pub distill_config: Option<String>,
    /// Key of [`Table::configs`].
    pub train_config: Option<String>,
}

/// One number, in percent ([`crate::table::MARGIN`]: in logits).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// [`crate::table::CLEAN`], an attack's name, [`crate::table::MEAN_ROBUST`], ...
    pub column: String,
    /// Over runs. The interval is over independent units: runs that share a distilled set are averaged first.
    pub summary: Summary,
    /// What the interval speaks about.
    pub ci95_covers: Covers,
    /// One value per run of [`Row::runs`]; `None` where it is missing or undefined.
    pub values: Vec<Option<f64>>,
    /// The `attack.json` files it was computed from.
    pub sources: Vec<String>,
    /// The paper's number.
    pub published: Option<PublishedCell>,
    /// Against the baseline.
    pub comparison: Option<Comparison>,
    /// Reasons to doubt it.
    pub flags: Vec<String>,
    /// What it depends on besides the network.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub caveat: String,
}

/// The paper's number beside ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedCell {
    /// Percent.
    pub value: f64,
    /// Where the paper has it.
    pub source: String,
    /// Ours minus the paper's, percentage points.
    pub difference: f64,
    /// Whether the difference exceeds the tolerance; `None` where the two are not comparable.
    pub outside_tolerance: Option<bool>,
    /// Why the two are not the same quantity; empty where they are.
    pub caveat: String,
}

/// A paired comparison with the baseline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// The method compared with.
    pub baseline: String,
    /// Mean of the paired differences, ours minus the baseline's, percentage points.
    pub difference: f64,
    /// Number of pairs; runs that share a distilled set count once.
    pub n_pairs: usize,
    /// What the p-value speaks about.
    pub covers: Covers,
    /// Two-sided p-value of the paired differences: over seeds and test images ([`crate::stats::Crossed`]) where every run
    /// kept the outcome of each image, else [`Comparison::p_value_seeds`]. `None` where it cannot be computed.
    pub p_value: Option<f64>,
    /// Two-sided p-value of the paired t-test over seeds, for these test images only.
    pub p_value_seeds: Option<f64>,
    /// Standard errors of the difference; `None` without outcomes per image.
    pub errors: Option<Errors>,
    /// The size of the difference in test images: how many would have to come out differently, at least.
    pub images: Option<f64>,
    /// Whether the p-value covers seeds and test images and is below [`crate::stats::SIGNIFICANT`], and the difference is
    /// worth [`crate::stats::FEWEST_IMAGES`] test images or more. A drop rate or ratio is not marked as better where an accuracy that
    /// it is made of is marked as worse, nor at all where a network only guesses.
    pub significant: bool,
    /// Whether the difference is in the good direction.
    pub better: bool,
}

/// Standard errors of a difference, percentage points.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Errors {
    /// Over seeds, for these test images.
    pub seeds: f64,
    /// Over test images, for these seeds.
    pub images: f64,
    /// Over both.
    pub both: f64,
    /// Degrees of freedom of `both`.
    pub freedom: f64,
}

/// A row of the grid.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedRow {
    /// Dataset.
    pub dataset: String,
    /// Downstream protocol.
    pub protocol: String,
    /// Images per class; `None` for the whole training set.
    pub images_per_class: Option<usize>,
    /// Method.
    pub method: String,
}

impl Table {
    /// The version of `table.json`.
    pub const SCHEMA_VERSION: u32 = 1;

    /// Every row with its section.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&Section, &Row)> {
        self.sections.iter().flat_map(|section| section.rows.iter().map(move |row| (section, row)))
    }

    /// Every cell with its section and row.
    pub(crate) fn cells(&self) -> impl Iterator<Item = (&Section, &Row, &Cell)> {
        self.rows().flat_map(|(section, row)| row.cells.iter().map(move |cell| (section, row, cell)))
    }

    /// Cells farther from the published number than the tolerance, with their section and row.
    pub fn outside_tolerance(&self) -> impl Iterator<Item = (&Section, &Row, &Cell)> {
        self.cells().filter(|(_, _, cell)| {
            cell.published.as_ref().is_some_and(|published| published.outside_tolerance == Some(true))
        })
    }
}

impl Section {
    /// The radius, pixel units.
    pub(crate) fn radius(&self) -> f64 {
        self.epsilon.parse::<Epsilon>().map_or(0.0, Epsilon::value)
    }

    /// The judged images in words, such as `1,000 test images`.
    pub fn images(&self) -> String {
        let all = || format!("{} {}", thousands(self.n_test), self.kind());
        self.subset.as_ref().map_or_else(all, |subset| subset.describe(self.kind()))
    }

    /// What the judged images are called.
    pub(crate) fn kind(&self) -> &'static str {
        if self.held_out { "held-out training images" } else { "test images" }
    }
}

impl Row {
    /// How many independent runs it has: those of one distilled set count once.
    pub(crate) fn n_units(&self) -> usize {
        let unit = |run: &Run| (run.distill_seed.is_some(), run.distill_seed.unwrap_or(run.train_seed));
        self.runs.iter().map(unit).collect::<BTreeSet<_>>().len()
    }

    /// The cell of a column.
    pub fn cell(&self, column: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.column == column)
    }
}
