//! The table: rows, cells, and where each number came from.

use std::collections::{BTreeMap, BTreeSet};

use c2r_base::{Goal, Norm, artifact};
use c2r_experiment::Selection;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    AttackEntry, EvalError, Experiment, MethodKind, Scale, Source,
    group::{Measured, RowKey, Rows, SectionKey, Seeds, from_unknown_data, group, same, trained_on},
    metrics,
    render::size,
    settings,
    stats::{self, Summary},
};

/// Column: accuracy with no attack.
pub const CLEAN: &str = "clean";
/// Column: mean robust accuracy over the section's attacks.
pub const MEAN_ROBUST: &str = "mean-robust";
/// Column: the smallest robust accuracy over the section's attacks.
pub const MINIMUM: &str = "minimum";
/// Column: accuracy where the best attack is picked for each image.
pub const WORST_CASE: &str = "worst-case";
/// Column: drop rate under [`DROP_RATE_ATTACK`]; `drop-rate-NAME` under the other attacks.
pub const DROP_RATE: &str = "drop-rate";
/// The attack of the column [`DROP_RATE`].
pub const DROP_RATE_ATTACK: &str = "pgd";
/// Columns `margin-q05-NAME` to `margin-q95-NAME`: quantiles over the test images of the smallest margin that an attack
/// found ([`crate::AttackEntry::margins`]), in logits.
pub const MARGIN: &str = "margin";
/// Columns that measure the machine as much as the network.
pub const HARDWARE_COLUMNS: [&str; 3] = ["ae", "crei", "i-crei"];

/// Attacks that the field lists in this order; others follow by name.
const USUAL_ORDER: [&str; 6] = ["fgsm", "pgd", "cw-linf", "vmi-fgsm", "jitter", "autoattack-standard"];

/// Note of rows whose sets say nothing of their real training images.
const ELSEWHERE: &str = "distilled elsewhere: from which real images is not known";

/// Floors that an attack must beat; they are no attacks, so no mean or minimum contains them.
const SANITY: [&str; 2] = ["clean", "noise"];

/// What a table is made with, besides results.
#[derive(Clone, Copy, Debug, Default)]
pub struct TableOptions<'a> {
    /// Labels, order, published numbers.
    pub experiment: Option<&'a Experiment>,
    /// Name of the experiment's grid: planned runs, and whether the tolerance applies.
    pub scale: Option<&'a str>,
    /// Method that the others are compared with; otherwise the experiment's.
    pub baseline: Option<&'a str>,
}

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
    /// One per dataset, protocol, architecture and threat; these are never mixed.
    pub sections: Vec<Section>,
    /// Cells of the grid with no result at all.
    pub missing: Vec<PlannedRow>,
    /// Number of rows that the grid plans; 0 without one.
    pub planned_rows: usize,
    /// Configurations by the first 12 digits of their SHA-256; runs refer to them.
    pub configs: BTreeMap<String, Value>,
    /// Pictures that lie beside the table; [`Table::build`] makes none.
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
    /// SHA-256 of the test split.
    pub test_sha256: String,
    /// Attacks in the order of their columns; sanity floors are last.
    pub attacks: Vec<String>,
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
    /// Key of [`Table::configs`].
    pub distill_config: Option<String>,
    /// Key of [`Table::configs`].
    pub train_config: Option<String>,
}

/// One number, in percent ([`MARGIN`]: in logits).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// [`CLEAN`], an attack's name, [`MEAN_ROBUST`], ...
    pub column: String,
    /// Over runs. The interval is over independent units: runs that share a distilled set are averaged first.
    pub summary: Summary,
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
    /// Where it stands.
    pub source: String,
    /// Ours minus the paper's, percentage points.
    pub difference: f64,
    /// Whether that is more than the tolerance; `None` where the two are not comparable.
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
    /// Two-sided p-value of the paired t-test; `None` where it cannot be computed.
    pub p_value: Option<f64>,
    /// Whether the p-value is below [`stats::SIGNIFICANT`].
    pub significant: bool,
    /// Whether the difference is in the good direction.
    pub better: bool,
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

    /// Makes the table. The order of `sources` does not matter.
    ///
    /// # Errors
    /// [`EvalError::Mixed`] where results of one section were measured on different data, [`EvalError::OneName`] where
    /// different sets call themselves the same, [`EvalError::Twice`] where a measurement is there twice,
    /// [`EvalError::NoBaseline`] and [`EvalError::Experiment`] for names that do not exist.
    pub fn build(sources: &[Source], options: &TableOptions<'_>) -> Result<Self, EvalError> {
        let plan = Plan::new(options)?;
        let mut configs = BTreeMap::new();
        let mut sections = Vec::new();
        for (key, rows) in group(sources)? {
            sections.push(section(&key, &rows, &plan, &mut configs)?);
        }
        sections.sort_by_cached_key(|section| plan.section_order(section));
        if let Some(wanted) = options.baseline {
            let found: BTreeSet<&str> =
                sections.iter().flat_map(|section| &section.rows).map(|row| row.method.as_str()).collect();
            if !found.contains(wanted) {
                let found = found.into_iter().collect::<Vec<_>>().join(", ");
                return Err(EvalError::NoBaseline { wanted: wanted.to_owned(), found });
            }
        }
        let planned = plan.rows();
        let missing: Vec<PlannedRow> =
            planned.iter().filter(|row| !sections.iter().any(|section| plan.covers(section, row))).cloned().collect();
        Ok(Self {
            schema_version: Self::SCHEMA_VERSION,
            title: options.experiment.map_or_else(|| "Results".to_owned(), |experiment| experiment.title.clone()),
            experiment: options.experiment.map(|experiment| ExperimentInfo {
                name: experiment.name.clone(),
                scale: options.scale.map(str::to_owned),
                about: plan.scale.map(|scale| scale.about.clone()).unwrap_or_default(),
                changes: plan.scale.map(|scale| scale.changes.clone()).unwrap_or_default(),
                threat: plan.scale.map(threat).unwrap_or_default(),
                source: experiment.source.clone(),
                tolerance: experiment.tolerance,
                tolerance_applies: plan.tolerance.is_some(),
            }),
            baseline: plan.baseline.map(str::to_owned),
            sections,
            missing,
            planned_rows: planned.len(),
            configs,
            pictures: Vec::new(),
        })
    }

    /// Cells farther from the published number than the tolerance: dataset, protocol, row and cell of each.
    pub fn outside_tolerance(&self) -> impl Iterator<Item = (&Section, &Row, &Cell)> {
        self.sections
            .iter()
            .flat_map(|section| section.rows.iter().map(move |row| (section, row)))
            .flat_map(|(section, row)| row.cells.iter().map(move |cell| (section, row, cell)))
            .filter(|(_, _, cell)| {
                cell.published.as_ref().is_some_and(|published| published.outside_tolerance == Some(true))
            })
    }
}

impl Row {
    /// The cell of a column.
    pub fn cell(&self, column: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.column == column)
    }
}

/// What the experiment and the options ask for.
struct Plan<'a> {
    experiment: Option<&'a Experiment>,
    scale: Option<&'a Scale>,
    baseline: Option<&'a str>,
    tolerance: Option<f64>,
}

impl<'a> Plan<'a> {
    fn new(options: &TableOptions<'a>) -> Result<Self, EvalError> {
        let experiment = options.experiment;
        let scale = match (experiment, options.scale) {
            (Some(experiment), Some(name)) => Some(experiment.scale(name)?),
            _ => None,
        };
        let paper = scale.is_some() && options.scale == Some(Experiment::PAPER_SCALE);
        Ok(Self {
            experiment,
            scale,
            baseline: options.baseline.or(experiment.and_then(|experiment| experiment.baseline.as_deref())),
            tolerance: experiment.filter(|_| paper).map(|experiment| experiment.tolerance),
        })
    }

    /// Where `name` stands in a list of the scale; unknown names come last.
    fn place(&self, list: fn(&Scale) -> &[String], name: &str) -> usize {
        self.scale.and_then(|scale| list(scale).iter().position(|known| known == name)).unwrap_or(usize::MAX)
    }

    fn section_order(&self, section: &Section) -> impl Ord + use<> {
        (
            self.place(|scale| &scale.datasets, &section.dataset),
            section.dataset.clone(),
            section.model.clone(),
            self.place(|scale| &scale.protocols, &section.protocol),
            section.protocol.clone(),
            section.selection,
            format!("{:?} {:?}", section.norm, section.goal),
            epsilon_of(section).to_bits(),
        )
    }

    fn attack_order(&self, attack: &str) -> impl Ord + use<> {
        (
            is_sanity(attack),
            self.place(|scale| &scale.attacks, attack),
            USUAL_ORDER.iter().position(|known| *known == attack).unwrap_or(USUAL_ORDER.len()),
            attack.to_owned(),
        )
    }

    fn row_order(&self, key: &RowKey) -> impl Ord + use<> {
        let undistilled = self.undistilled(key);
        (
            key.images_per_class.unwrap_or(0),
            self.place(|scale| &scale.methods, &key.method),
            !undistilled,
            key.method.clone(),
            key.profile.clone(),
        )
    }

    fn undistilled(&self, key: &RowKey) -> bool {
        let full = |experiment: &Experiment| {
            experiment.methods.get(&key.method).is_some_and(|method| method.kind == MethodKind::Full)
        };
        key.images_per_class.is_none() || self.experiment.is_some_and(full)
    }

    fn label(&self, method: &str) -> String {
        let known = self.experiment.and_then(|experiment| experiment.methods.get(method));
        known.map_or_else(|| method.to_owned(), |known| known.label.clone())
    }

    /// The grid's rows.
    fn rows(&self) -> Vec<PlannedRow> {
        let (Some(experiment), Some(scale)) = (self.experiment, self.scale) else { return Vec::new() };
        let mut rows = Vec::new();
        for dataset in &scale.datasets {
            for protocol in &scale.protocols {
                for method in &scale.methods {
                    let full = experiment.methods.get(method).is_some_and(|method| method.kind == MethodKind::Full);
                    let sizes: Vec<Option<usize>> =
                        if full { vec![None] } else { scale.ipcs.iter().copied().map(Some).collect() };
                    rows.extend(sizes.into_iter().map(|images_per_class| PlannedRow {
                        dataset: dataset.clone(),
                        protocol: protocol.clone(),
                        images_per_class,
                        method: method.clone(),
                    }));
                }
            }
        }
        rows
    }

    fn covers(&self, section: &Section, planned: &PlannedRow) -> bool {
        self.same_threat(section.norm, epsilon_of(section))
            && section.selection == self.selection()
            && section.dataset == planned.dataset
            && section.protocol == planned.protocol
            && section
                .rows
                .iter()
                .any(|row| row.method == planned.method && row.images_per_class == planned.images_per_class)
    }

    /// Which step the grid asks for.
    fn selection(&self) -> Selection {
        let asked = self.scale.and_then(Scale::selection);
        asked.and_then(|asked| serde_json::from_value(asked.into()).ok()).unwrap_or_default()
    }

    fn same_threat(&self, norm: Norm, epsilon: f64) -> bool {
        self.scale.is_some_and(|scale| {
            scale.norm.parse::<Norm>().is_ok_and(|planned| planned == norm) && scale.radii().contains(&epsilon)
        })
    }

    /// Number of runs planned for a row.
    fn runs(&self, key: &SectionKey, norm: Norm, row: &RowKey) -> Option<usize> {
        let scale = self.scale?;
        let planned = self.same_threat(norm, f64::from_bits(key.epsilon))
            && key.selection == self.selection()
            && self.rows().iter().any(|planned| {
                planned.dataset == key.dataset
                    && planned.protocol == key.protocol
                    && planned.method == row.method
                    && planned.images_per_class == row.images_per_class
            });
        planned.then_some(scale.seeds.len())
    }

    fn published(
        &self,
        section: &SectionKey,
        norm: Norm,
        row: &RowKey,
        column: &str,
        attacks: &[&str],
        mean: f64,
    ) -> Option<PublishedCell> {
        let matches = |number: &&crate::Published| {
            number.dataset == section.dataset
                && Some(number.ipc) == row.images_per_class
                && number.method == row.method
                && number.column == column
                && number.protocol.as_ref().is_none_or(|protocol| *protocol == section.protocol)
                && (column == CLEAN
                    || norm == Norm::Linf
                        && section.goal == "Untargeted"
                        && number.radius().to_bits() == section.epsilon)
        };
        let candidates = || self.experiment.into_iter().flat_map(|experiment| &experiment.published).filter(matches);
        let over = |number: &&crate::Published| {
            let theirs: BTreeSet<&str> = number.over.iter().map(String::as_str).collect();
            column != MEAN_ROBUST || theirs == attacks.iter().copied().collect()
        };
        let (number, same) = match candidates().find(over) {
            Some(number) => (number, true),
            None => (candidates().next()?, false),
        };
        let difference = mean - number.value;
        let chosen = section.selection == Selection::BestTest;
        let caveat = if chosen {
            "ours is of the step that the test images chose (best-test)".to_owned()
        } else if same {
            String::new()
        } else if number.over.is_empty() {
            format!("the paper does not say which attacks its mean is over; ours is over {}", names(attacks))
        } else {
            let theirs: Vec<&str> = number.over.iter().map(String::as_str).collect();
            format!("the paper's mean is over {}, ours over {}", names(&theirs), names(attacks))
        };
        Some(PublishedCell {
            value: number.value,
            source: number.source.clone(),
            difference,
            outside_tolerance: self.tolerance.filter(|_| same && !chosen).map(|tolerance| difference.abs() > tolerance),
            caveat,
        })
    }
}

/// `Linf 2/255`.
fn threat(scale: &Scale) -> String {
    let norm = scale.norm.parse::<Norm>().map_or_else(|_| scale.norm.clone(), |norm| format!("{norm:?}"));
    format!("{norm} {}", scale.epsilons.join(", "))
}

pub(crate) fn epsilon_of(section: &Section) -> f64 {
    section.epsilon.parse::<c2r_base::Epsilon>().map_or(0.0, c2r_base::Epsilon::value)
}

/// Whether an attack is a floor that every real attack must beat.
pub(crate) fn is_sanity(attack: &str) -> bool {
    SANITY.contains(&attack)
}

/// Attack names as people write them, separated by commas.
pub(crate) fn names(attacks: &[&str]) -> String {
    attacks.iter().map(|attack| column_label(attack)).collect::<Vec<_>>().join(", ")
}

/// A column's heading.
pub(crate) fn column_label(column: &str) -> String {
    match column {
        "jitter" => "Jitter".into(),
        "square" => "Square".into(),
        "deepfool" => "DeepFool".into(),
        "cw-linf" => "CW".into(),
        "autoattack-standard" => "AutoAttack".into(),
        MEAN_ROBUST => "mean robust".into(),
        DROP_RATE => format!("DR ({})", column_label(DROP_RATE_ATTACK)),
        CLEAN | MINIMUM | WORST_CASE | "noise" => column.into(),
        _ => match column.strip_prefix("drop-rate-") {
            Some(attack) => format!("DR ({})", column_label(attack)),
            None if is_margin(column) => {
                let (quantile, attack) = column[MARGIN.len() + 2..].split_once('-').unwrap_or((column, CLEAN));
                format!("margin, {} % quantile ({})", quantile.trim_start_matches('0'), column_label(attack))
            }
            None => column.to_uppercase(),
        },
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
            same("the real training data (SHA-256)", first, file, |s| s.record.subject.data_sha256.clone())?;
        }
    }
    let mut parameters: BTreeMap<&str, (&AttackEntry, &Source)> = BTreeMap::new();
    for (&name, &(entry, file)) in runs().flat_map(|run| &run.attacks) {
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
    let mut attacks: Vec<String> = runs().flat_map(|run| run.attacks.keys()).map(|&name| name.to_owned()).collect();
    attacks.sort_by_cached_key(|attack| plan.attack_order(attack));
    attacks.dedup();
    let entry = runs().flat_map(|run| run.attacks.values()).map(|(entry, _)| (entry.norm, entry.epsilon)).next();
    let (norm, epsilon) = entry.unwrap_or((first.record.threat.norm, first.record.threat.epsilon));

    let margins = runs().flat_map(|run| margins_of(run, &attacks)).flat_map(|(_, margins)| margins);
    let margin_edges = bin_edges(margins.copied().collect());
    let mut keys: Vec<&RowKey> = rows.keys().collect();
    keys.sort_by_cached_key(|row| plan.row_order(row));
    let mut made = Vec::new();
    for &row in &keys {
        let several = rows.keys().any(|other| other.method == row.method && other.profile != row.profile);
        made.push(make_row(key, norm, row, several, rows, &attacks, &margin_edges, plan, configs)?);
    }
    let mut columns = vec![CLEAN.to_owned()];
    columns.extend(attacks.iter().cloned());
    columns.extend([MEAN_ROBUST, DROP_RATE].map(str::to_owned));
    columns.retain(|column| made.iter().any(|row| row.cell(column).is_some()));
    let mut notes = Vec::new();
    let of_data: BTreeSet<&String> =
        files().flat_map(|file| file.record.subject.notes.iter().chain(&file.record.notes)).collect();
    lift_common_notes(&mut made, &of_data, &mut notes);
    let trained: Vec<(String, Vec<Value>)> = keys
        .iter()
        .zip(&made)
        .map(|(key, row)| (format!("{} ipc {}", row.label, size(row.images_per_class)), trainings(&rows[*key])))
        .collect();
    if let Some(differences) = settings::differences_of_rows(&trained) {
        notes.push(format!("rows were trained with DIFFERENT settings: {differences}"));
    }
    let (unknown, all) = (files().filter(|file| file.training.is_none()).count(), files().count());
    if unknown > 0 && unknown < all {
        notes.push(format!(
            "training settings not compared for {unknown} of {all} attack.json: no run.json beside them"
        ));
    }
    let versions: BTreeSet<String> = files()
        .map(|file| {
            let versions = &file.record.versions;
            versions.iter().map(|(name, version)| format!("{name} {version}")).collect::<Vec<_>>().join(", ")
        })
        .collect();
    if versions.len() > 1 {
        let list = versions.into_iter().collect::<Vec<_>>().join("; ");
        notes.push(format!("runs of different program versions stand side by side: {list}"));
    }
    Ok(Section {
        dataset: key.dataset.clone(),
        protocol: key.protocol.clone(),
        selection: key.selection,
        model: key.model.clone(),
        norm,
        epsilon: epsilon.to_string(),
        goal: first.record.threat.goal,
        n_test: first.record.n,
        test_sha256: first.record.test_sha256.clone(),
        attacks,
        attack_configs: parameters
            .into_iter()
            .map(|(name, (entry, _))| (name.to_owned(), entry.config.clone()))
            .collect(),
        columns,
        margin_edges,
        rows: made,
        notes,
    })
}

/// Moves notes about data and evaluation that stand in every row to the section.
fn lift_common_notes(rows: &mut [Row], of_data: &BTreeSet<&String>, notes: &mut Vec<String>) {
    let Some(first) = rows.first() else { return };
    let everywhere = |note: &&String| of_data.contains(note) && rows.iter().all(|row| row.notes.contains(note));
    let common: Vec<String> = first.notes.iter().filter(everywhere).cloned().collect();
    for row in rows {
        row.notes.retain(|note| !common.contains(note));
    }
    notes.extend(common);
}

#[expect(clippy::too_many_arguments, reason = "one caller; a struct for it would only rename the arguments")]
fn make_row(
    section: &SectionKey,
    norm: Norm,
    key: &RowKey,
    several_profiles: bool,
    rows: &Rows<'_>,
    attacks: &[String],
    margin_edges: &[f64],
    plan: &Plan<'_>,
    configs: &mut BTreeMap<String, Value>,
) -> Result<Row, EvalError> {
    let measured = &rows[key];
    let first = measured.values().next().expect("a row is made for a run").files[0];
    for file in measured.values().flat_map(|run| &run.files) {
        same("the numbers of training images", first, file, |s| s.record.subject.n_images.to_string())?;
        same("the descriptions of extra storage", first, file, |s| s.record.subject.extra_storage.clone())?;
    }
    let undistilled = plan.undistilled(key);
    let mut label = plan.label(&key.method);
    if several_profiles && !key.profile.is_empty() {
        label = format!("{label} ({})", key.profile);
    }
    let mut notes: Vec<String> = Vec::new();
    let mut note = |text: String| {
        if !notes.contains(&text) {
            notes.push(text);
        }
    };
    if undistilled {
        note("undistilled: trained on real images, the upper reference and no competitor".to_owned());
    }
    if !first.record.subject.extra_storage.is_empty() {
        note(format!("stores in addition to its images: {}", first.record.subject.extra_storage));
    }
    let unknown = measured.values().filter(|run| run.files.iter().any(|file| from_unknown_data(file))).count();
    if unknown > 0 {
        let part =
            if unknown < measured.len() { format!(" ({unknown} of {} runs)", measured.len()) } else { String::new() };
        note(format!("{ELSEWHERE}{part}"));
    }
    for file in measured.values().flat_map(|run| &run.files) {
        for text in file.record.subject.notes.iter().chain(&file.record.notes) {
            let has = |file: &&Source| file.record.subject.notes.contains(text) || file.record.notes.contains(text);
            match measured.values().filter(|run| run.files.iter().any(&has)).count() {
                all if all == measured.len() => note(text.clone()),
                some => note(format!("{text} ({some} of {} runs)", measured.len())),
            }
        }
    }
    if let Some(differences) = settings::differences(distillations(measured)) {
        note(format!(
            "its runs were distilled with DIFFERENT settings, so their mean is of no one method: {differences}"
        ));
    }
    if let Some(differences) = settings::differences(trainings(measured).iter()) {
        note(format!(
            "its runs were trained with DIFFERENT settings, so their mean is of no one protocol: {differences}"
        ));
    }
    let different = different_sets(measured);
    if different > 1 {
        note(format!(
            "its runs are of {different} DIFFERENT sets under one name and seed of distillation, which count as one set; \
             where they are of several methods, `c2r import --method NAME` tells them apart"
        ));
    } else if shared_sets(measured) {
        note("some runs share a distilled set: interval and p-value are over sets, not over runs".to_owned());
    }

    let values = values_of(measured, attacks);
    let compared: Vec<&str> = attacks.iter().map(String::as_str).filter(|attack| !is_sanity(attack)).collect();
    let baseline = plan.baseline.filter(|baseline| *baseline != key.method).and_then(|baseline| {
        let candidates = || {
            rows.iter().filter(|(other, _)| other.method == baseline && other.images_per_class == key.images_per_class)
        };
        let same_profile = candidates().find(|(other, _)| other.profile == key.profile);
        let only = || candidates().next().filter(|_| candidates().count() == 1);
        same_profile.or_else(only).map(|(_, runs)| (baseline, runs))
    });
    let baseline_values = baseline.map(|(name, runs)| (name, runs, values_of(runs, attacks)));
    let mut cells = Vec::new();
    for (column, value) in &values {
        let present: Vec<(Seeds, f64)> =
            measured.keys().zip(&value.per_run).filter_map(|(&seeds, value)| Some((seeds, (*value)?))).collect();
        let plain: Vec<f64> = present.iter().map(|(_, value)| *value).collect();
        let Some(mut summary) = Summary::of(&plain) else { continue };
        summary.ci95 = Summary::of(&by_unit(&present)).and_then(|units| units.ci95);
        let comparison = baseline_values.as_ref().and_then(|(name, runs, theirs)| {
            let (_, theirs) = theirs.iter().find(|(other, _)| other == column)?;
            let theirs: BTreeMap<Seeds, f64> =
                runs.keys().zip(&theirs.per_run).filter_map(|(&seeds, value)| Some((seeds, (*value)?))).collect();
            compare(name, column, &present, &theirs)
        });
        cells.push(Cell {
            column: column.clone(),
            published: plan.published(section, norm, key, column, &compared, summary.mean),
            summary,
            values: value.per_run.clone(),
            sources: value.sources.iter().cloned().collect(),
            comparison,
            flags: flags(measured, column),
            caveat: caveat(column).to_owned(),
        });
    }
    let runs = measured
        .iter()
        .map(|(&(distill_seed, train_seed), run)| {
            let first = run.files[0];
            Run {
                distill_seed,
                train_seed,
                attack_seed: first.record.attack_seed,
                files: run.files.iter().map(|file| file.path.clone()).collect(),
                attack_argvs: run.files.iter().map(|file| file.record.argv.clone()).collect(),
                versions: first.record.versions.clone(),
                distill_argv: first.distillation.as_ref().map(|run| run.argv.clone()).unwrap_or_default(),
                train_argv: first.training.as_ref().map(|run| run.argv.clone()).unwrap_or_default(),
                distill_config: first.distillation.as_ref().map(|run| remember(&run.config, configs)),
                train_config: first.training.as_ref().map(|run| remember(&run.config, configs)),
            }
        })
        .collect();
    Ok(Row {
        images_per_class: key.images_per_class,
        method: key.method.clone(),
        profile: key.profile.clone(),
        label,
        undistilled,
        n_images: first.record.subject.n_images,
        extra_storage: first.record.subject.extra_storage.clone(),
        data_sha256: {
            let hashes = measured.values().flat_map(|run| &run.files).map(|file| &file.record.subject.data_sha256);
            hashes.clone().find(|hash| !hash.is_empty()).cloned().unwrap_or_default()
        },
        planned_runs: plan.runs(section, norm, key),
        runs,
        cells,
        per_class: classes_of(measured, attacks),
        margin_counts: margin_counts(measured, attacks, margin_edges),
        notes,
    })
}

fn remember(config: &Value, configs: &mut BTreeMap<String, Value>) -> String {
    let digest = artifact::sha256_hex(config.to_string().as_bytes())[..12].to_owned();
    configs.entry(digest.clone()).or_insert_with(|| config.clone());
    digest
}

/// One value per run, in percent, and the files they came from.
#[derive(Default)]
struct Values {
    per_run: Vec<Option<f64>>,
    sources: BTreeSet<String>,
}

/// Every column of a row, in order.
fn values_of(runs: &BTreeMap<Seeds, Measured<'_>>, attacks: &[String]) -> Vec<(String, Values)> {
    let compared: Vec<&String> = attacks.iter().filter(|attack| !is_sanity(attack)).collect();
    let mut columns: Vec<(String, Values)> = Vec::new();
    for (position, run) in runs.values().enumerate() {
        let mut put = |column: &str, value: Option<f64>, files: &[&Source]| {
            let place = columns.iter().position(|(name, _)| name == column).unwrap_or_else(|| {
                columns.push((column.to_owned(), Values::default()));
                columns.len() - 1
            });
            let values = &mut columns[place].1;
            values.per_run.resize(position, None);
            values.per_run.push(value);
            if value.is_some() {
                values.sources.extend(files.iter().map(|file| file.path.clone()));
            }
        };
        let record = &run.files[0].record;
        let clean = record.clean_accuracy;
        put(CLEAN, Some(percent((clean * record.n as f64).round() as usize, record.n)), &run.files[..1]);
        for attack in attacks {
            let found = run.attacks.get(attack.as_str());
            // An attack named like a column of ours would replace it.
            if attack != CLEAN {
                let files: Vec<&Source> = found.iter().map(|(_, source)| *source).collect();
                put(attack, found.map(|(entry, _)| percent(entry.survivors, entry.n)), &files);
            }
        }
        let all: Option<Vec<&AttackEntry>> =
            compared.iter().map(|attack| run.attacks.get(attack.as_str()).map(|(entry, _)| *entry)).collect();
        let all = all.filter(|all| !all.is_empty());
        let robust = |entry: &&AttackEntry| entry.robust_accuracy;
        let points = |entry: &&AttackEntry| percent(entry.survivors, entry.n);
        let mean_points = all.as_ref().map(|all| all.iter().map(points).sum::<f64>() / all.len() as f64);
        let mean = all.as_ref().map(|all| all.iter().map(robust).sum::<f64>() / all.len() as f64);
        let minimum = all.as_ref().map(|all| all.iter().map(robust).fold(f64::INFINITY, f64::min));
        put(MEAN_ROBUST, mean_points, &run.files);
        put(MINIMUM, all.as_ref().map(|all| all.iter().map(points).fold(f64::INFINITY, f64::min)), &run.files);
        let worst = all.as_ref().and_then(|all| metrics::worst_case(record, all));
        put(WORST_CASE, worst.map(|worst| 100.0 * worst), &run.files);
        for attack in &compared {
            let found = run.attacks.get(attack.as_str());
            let files: Vec<&Source> = found.iter().map(|(_, source)| *source).collect();
            let rate = found.and_then(|(entry, _)| metrics::drop_rate(clean, entry.robust_accuracy));
            let column =
                if *attack == DROP_RATE_ATTACK { DROP_RATE.to_owned() } else { format!("{DROP_RATE}-{attack}") };
            put(&column, rate, &files);
        }
        // With a single attack the mean is the minimum and the ratios say nothing.
        let several = all.as_ref().filter(|all| all.len() > 1).zip(mean.zip(minimum));
        let ratios = several.map(|(all, (mean, minimum))| {
            let seconds = |entry: &&AttackEntry| entry.seconds;
            let mean_seconds = all.iter().map(seconds).sum::<f64>() / all.len() as f64;
            let longest = all.iter().map(seconds).fold(0.0, f64::max);
            let rr = metrics::robustness_ratio(clean, mean, minimum);
            let irr = metrics::improved_robustness_ratio(clean, mean, minimum);
            let ae = metrics::attack_efficiency(mean_seconds, record.clean_seconds, longest);
            let index = |ratio: Option<f64>| Some(metrics::comprehensive_index(ratio?, ae?));
            [rr, irr, ae, index(rr), index(irr)]
        });
        for (column, value) in ["rr", "i-rr", "ae", "crei", "i-crei"].into_iter().zip(ratios.unwrap_or_default()) {
            put(column, value, &run.files);
        }
    }
    for (position, run) in runs.values().enumerate() {
        for (attack, margins) in margins_of(run, attacks) {
            for (part, value) in metrics::MARGIN_QUANTILES.into_iter().zip(metrics::margin_quantiles(margins)) {
                let column = format!("{MARGIN}-q{:02}-{attack}", (100.0 * part).round());
                let file = run.attacks.get(attack).map_or(run.files[0], |(_, source)| source);
                let place = columns.iter().position(|(name, _)| *name == column).unwrap_or_else(|| {
                    columns.push((column, Values::default()));
                    columns.len() - 1
                });
                let values = &mut columns[place].1;
                values.per_run.resize(position, None);
                values.per_run.push(Some(value));
                values.sources.insert(file.path.clone());
            }
        }
    }
    for (_, values) in &mut columns {
        values.per_run.resize(runs.len(), None);
    }
    columns
}

/// The margins that a run kept: without an attack ([`CLEAN`]) and under each.
fn margins_of<'a>(run: &Measured<'a>, attacks: &'a [String]) -> Vec<(&'a str, &'a [f32])> {
    let clean = run.files.iter().find_map(|file| file.record.samples.as_ref()?.margins.as_deref());
    let attacked = attacks.iter().filter(|attack| *attack != CLEAN).filter_map(|attack| {
        let (entry, _) = run.attacks.get(attack.as_str())?;
        Some((attack.as_str(), entry.margins.as_deref()?))
    });
    clean.map(|margins| (CLEAN, margins)).into_iter().chain(attacked).collect()
}

/// Number of bins of a margin histogram, about.
const MARGIN_BINS: f64 = 32.0;

/// Edges at whole multiples of a round width, one of them 0, that hold all but the outermost hundredths of `margins`.
fn bin_edges(mut margins: Vec<f32>) -> Vec<f64> {
    margins.sort_unstable_by(f32::total_cmp);
    let at = |part: f64| f64::from(margins[(part * (margins.len() - 1) as f64).round() as usize]);
    if margins.is_empty() || at(0.0) == at(1.0) {
        return Vec::new();
    }
    let (low, high) = (at(0.01).min(0.0), at(0.99).max(0.0));
    let width = metrics::round_step((high - low).max(f64::from(f32::EPSILON)) / MARGIN_BINS);
    let (first, last) = ((low / width).floor() as i64, (high / width).ceil() as i64);
    (first..=last.max(first + 1)).map(|edge| edge as f64 * width).collect()
}

fn margin_counts(
    runs: &BTreeMap<Seeds, Measured<'_>>,
    attacks: &[String],
    edges: &[f64],
) -> BTreeMap<String, Vec<usize>> {
    let mut counts: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    if edges.len() < 2 {
        return counts;
    }
    for (attack, margins) in runs.values().flat_map(|run| margins_of(run, attacks)) {
        let bins = counts.entry(attack.to_owned()).or_insert_with(|| vec![0; edges.len() - 1]);
        for &margin in margins {
            let above = edges[1..edges.len() - 1].partition_point(|&edge| edge <= f64::from(margin));
            bins[above] += 1;
        }
    }
    counts
}

/// Counted, so that 24 of 100 images are 24 and not 24.000000000000004.
fn percent(count: usize, n: usize) -> f64 {
    100.0 * count as f64 / n as f64
}

fn caveat(column: &str) -> &'static str {
    if HARDWARE_COLUMNS.contains(&column) {
        "made of wall-clock times: depends on the hardware"
    } else if is_margin(column) {
        "in logits, so networks of different scale do not compare; from above, as good as the attack"
    } else {
        ""
    }
}

/// Whether a column is in logits and not in percent.
pub fn is_margin(column: &str) -> bool {
    column.strip_prefix(MARGIN).is_some_and(|rest| rest.starts_with("-q"))
}

/// Runs of one distilled set are no independent evidence about the method, so they are averaged to one value. Without
/// a distillation each training is its own unit.
fn by_unit(values: &[(Seeds, f64)]) -> Vec<f64> {
    let mut units: BTreeMap<(bool, u64), Vec<f64>> = BTreeMap::new();
    for &((distill, train), value) in values {
        units.entry((distill.is_some(), distill.unwrap_or(train))).or_default().push(value);
    }
    units.into_values().map(|unit| unit.iter().sum::<f64>() / unit.len() as f64).collect()
}

fn shared_sets(runs: &BTreeMap<Seeds, Measured<'_>>) -> bool {
    let sets: BTreeSet<u64> = runs.keys().filter_map(|(distill, _)| *distill).collect();
    sets.len() < runs.keys().filter(|(distill, _)| distill.is_some()).count()
}

/// The largest number of different training sets whose runs have one seed of the distillation.
fn different_sets(runs: &BTreeMap<Seeds, Measured<'_>>) -> usize {
    let mut by_seed: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    for ((distill, _), run) in runs {
        let (Some(distill), Some(images)) = (distill, trained_on(run.files[0])) else { continue };
        by_seed.entry(*distill).or_default().insert(images);
    }
    by_seed.values().map(BTreeSet::len).max().unwrap_or(0)
}

fn compare(baseline: &str, column: &str, ours: &[(Seeds, f64)], theirs: &BTreeMap<Seeds, f64>) -> Option<Comparison> {
    if HARDWARE_COLUMNS.contains(&column) || is_margin(column) {
        return None;
    }
    let pairs: Vec<(Seeds, f64)> =
        ours.iter().filter_map(|&(seeds, value)| Some((seeds, value - theirs.get(&seeds)?))).collect();
    let units = by_unit(&pairs);
    let difference = Summary::of(&units)?.mean;
    let p_value = stats::paired_p_value(&units);
    Some(Comparison {
        baseline: baseline.to_owned(),
        difference,
        n_pairs: units.len(),
        p_value,
        significant: p_value.is_some_and(|p| p < stats::SIGNIFICANT),
        better: if column.starts_with(DROP_RATE) { difference < 0.0 } else { difference > 0.0 },
    })
}

/// `zero-gradient (2 of 3 runs)`, ...
fn flags(runs: &BTreeMap<Seeds, Measured<'_>>, attack: &str) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for run in runs.values() {
        for flag in run.attacks.get(attack).iter().flat_map(|(entry, _)| &entry.flags).collect::<BTreeSet<_>>() {
            *counts.entry(flag).or_default() += 1;
        }
    }
    counts.into_iter().map(|(flag, count)| format!("{flag} ({count} of {} runs)", runs.len())).collect()
}

fn classes_of(runs: &BTreeMap<Seeds, Measured<'_>>, attacks: &[String]) -> BTreeMap<String, Vec<Option<f64>>> {
    let mut columns = BTreeMap::new();
    let mut put = |column: &str, per_run: Option<Vec<Vec<Option<f64>>>>| {
        let Some(per_run) = per_run else { return };
        let n_classes = per_run.iter().map(Vec::len).max().unwrap_or(0);
        let mean = |class: usize| {
            let values: Option<Vec<f64>> = per_run.iter().map(|run| run.get(class).copied().flatten()).collect();
            Some(Summary::of(&values?)?.mean)
        };
        columns.insert(column.to_owned(), (0..n_classes).map(mean).collect());
    };
    put(CLEAN, runs.values().map(|run| metrics::per_class(&run.files[0].record, None)).collect());
    for attack in attacks.iter().filter(|attack| *attack != CLEAN) {
        let one = |run: &Measured<'_>| {
            let (entry, source) = run.attacks.get(attack.as_str())?;
            metrics::per_class(&source.record, Some(entry))
        };
        put(attack, runs.values().map(one).collect());
    }
    columns
}

/// The distillation's settings of every file of a row that has its `run.json`.
fn distillations<'a>(runs: &'a BTreeMap<Seeds, Measured<'_>>) -> impl Iterator<Item = &'a Value> {
    runs.values().flat_map(|run| &run.files).filter_map(|file| Some(&file.distillation.as_ref()?.config))
}

/// The training's settings of every file of a row that has its `run.json`.
fn trainings(runs: &BTreeMap<Seeds, Measured<'_>>) -> Vec<Value> {
    let configs = runs.values().flat_map(|run| &run.files).filter_map(|file| Some(&file.training.as_ref()?.config));
    configs.map(settings::of_training).collect()
}
