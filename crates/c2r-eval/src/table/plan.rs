//! What the experiment and the options ask of a table.

use std::collections::BTreeSet;

use c2r_base::Norm;
use c2r_experiment::{Experiment, MethodKind, Published, Scale, Selection};

use super::{
    group::{RowKey, SectionKey},
    schema::{ExperimentInfo, PlannedRow, PublishedCell},
};
use crate::{
    EvalError,
    columns::{CLEAN, MEAN_ROBUST, MEAN_ROBUST_AUTOATTACK, averages, is_sanity, names, size},
};

/// Attacks that the field lists in this order; others follow by name.
const USUAL_ORDER: [&str; 6] = ["fgsm", "pgd", "cw-linf", "vmi-fgsm", "jitter", "autoattack-standard"];

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

pub(super) struct Plan<'a> {
    experiment: Option<&'a Experiment>,
    scale: Option<&'a Scale>,
    scale_name: Option<&'a str>,
    pub(super) baseline: Option<&'a str>,
    /// Percentage points; `None` where nothing is held against published numbers.
    tolerance: Option<f64>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(options: &TableOptions<'a>) -> Result<Self, EvalError> {
        let experiment = options.experiment;
        let scale = match (experiment, options.scale) {
            (Some(experiment), Some(name)) => Some(experiment.scale(name)?),
            _ => None,
        };
        let paper = scale.is_some() && options.scale == Some(Experiment::PAPER_SCALE);
        Ok(Self {
            experiment,
            scale,
            scale_name: options.scale,
            baseline: options.baseline.or(experiment.and_then(|experiment| experiment.baseline.as_deref())),
            tolerance: experiment.filter(|_| paper).map(|experiment| experiment.tolerance),
        })
    }

    pub(super) fn title(&self) -> String {
        self.experiment.map_or_else(|| "Results".to_owned(), |experiment| experiment.title.clone())
    }

    pub(super) fn info(&self) -> Option<ExperimentInfo> {
        let threat = |scale: &Scale| {
            let norm = norm(scale).map_or_else(|| scale.norm.clone(), |norm| format!("{norm:?}"));
            format!("{norm} {}", scale.epsilons.join(", "))
        };
        self.experiment.map(|experiment| ExperimentInfo {
            name: experiment.name.clone(),
            scale: self.scale_name.map(str::to_owned),
            about: self.scale.map(|scale| scale.about.clone()).unwrap_or_default(),
            changes: self.scale.map(|scale| scale.changes.clone()).unwrap_or_default(),
            threat: self.scale.map(threat).unwrap_or_default(),
            source: experiment.source.clone(),
            tolerance: experiment.tolerance,
            tolerance_applies: self.tolerance.is_some(),
        })
    }

    /// The position of `name` in a list of the scale; unknown names come last.
    fn position(&self, list: fn(&Scale) -> &[String], name: &str) -> usize {
        self.scale.and_then(|scale| list(scale).iter().position(|known| known == name)).unwrap_or(usize::MAX)
    }

    pub(super) fn section_order(&self, key: &SectionKey) -> impl Ord + use<> {
        (
            self.position(|scale| &scale.datasets, &key.dataset),
            key.dataset.clone(),
            key.model.clone(),
            self.position(|scale| &scale.protocols, &key.protocol),
            key.protocol.clone(),
            key.selection,
            format!("{} {}", key.norm, key.goal),
            key.epsilon,
        )
    }

    pub(super) fn attack_order(&self, attack: &str) -> impl Ord + use<> {
        (
            is_sanity(attack),
            self.position(|scale| &scale.attacks, attack),
            USUAL_ORDER.iter().position(|known| *known == attack).unwrap_or(USUAL_ORDER.len()),
            attack.to_owned(),
        )
    }

    pub(super) fn row_order(&self, key: &RowKey) -> impl Ord + use<> {
        (
            key.images_per_class.unwrap_or(0),
            self.position(|scale| &scale.methods, &key.method),
            !self.undistilled(key),
            key.method.clone(),
            key.profile.clone(),
        )
    }

    fn uses_all_images(&self, method: &str) -> bool {
        let method = self.experiment.and_then(|experiment| experiment.methods.get(method));
        method.is_some_and(|method| method.kind == MethodKind::Full)
    }

    pub(super) fn undistilled(&self, key: &RowKey) -> bool {
        key.images_per_class.is_none() || self.uses_all_images(&key.method)
    }

    pub(super) fn label(&self, method: &str) -> String {
        let known = self.experiment.and_then(|experiment| experiment.methods.get(method));
        known.map_or_else(|| method.to_owned(), |known| known.label.clone())
    }

    /// The rows of the grid, or of the part that was asked for.
    pub(super) fn rows(&self) -> Vec<PlannedRow> {
        let mut rows = Vec::new();
        let Some(scale) = self.scale else { return rows };
        for dataset in &scale.datasets {
            for protocol in &scale.protocols {
                for method in &scale.methods {
                    let sizes: Vec<Option<usize>> = if self.uses_all_images(method) {
                        vec![None]
                    } else {
                        scale.ipcs.iter().copied().map(Some).collect()
                    };
                    rows.extend(sizes.into_iter().map(|images_per_class| PlannedRow {
                        dataset: dataset.clone(),
                        protocol: protocol.clone(),
                        images_per_class,
                        method: method.clone(),
                    }));
                }
            }
        }
        rows.retain(|row: &PlannedRow| {
            let asked = |key, value: &str| scale.asked.takes(key, value);
            asked("dataset", &row.dataset)
                && asked("protocol", &row.protocol)
                && asked("method", &row.method)
                && asked("ipc", &size(row.images_per_class))
        });
        rows
    }

    /// Whether a row of results is the planned one.
    pub(super) fn is_planned(&self, planned: &PlannedRow, section: &SectionKey, row: &RowKey) -> bool {
        let Some(scale) = self.scale else { return false };
        norm(scale).is_some_and(|norm| format!("{norm:?}") == section.norm)
            && scale.radii().contains(&f64::from_bits(section.epsilon))
            && section.selection == scale.select.unwrap_or_default()
            && is_network_of(scale, &section.model)
            && planned.dataset == section.dataset
            && planned.protocol == section.protocol
            && planned.method == row.method
            && planned.images_per_class == row.images_per_class
    }

    /// Number of runs planned for a row. All seeds of the grid count, whichever were asked for: a mean over fewer shows it.
    pub(super) fn runs(&self, section: &SectionKey, row: &RowKey) -> Option<usize> {
        let planned = self.rows().iter().any(|planned| self.is_planned(planned, section, row));
        self.scale.filter(|_| planned).map(|scale| scale.seeds.len())
    }

    /// The published number beside ours, whose value is `mean`, in a section with these attacks. `held_out`: ours is on training
    /// images.
    pub(super) fn published(
        &self,
        section: &SectionKey,
        row: &RowKey,
        column: &str,
        attacks: &[String],
        held_out: bool,
        mean: f64,
    ) -> Option<PublishedCell> {
        let averages = averages(attacks);
        // The attacks that ours is the mean of, where it is a mean.
        let ours = averages.iter().find(|(name, _)| *name == column).map(|(_, over)| over);
        let published_column = if ours.is_some() { MEAN_ROBUST } else { column };
        let matches = |number: &&Published| {
            number.dataset == section.dataset
                && Some(number.ipc) == row.images_per_class
                && number.method == row.method
                && number.column == published_column
                && number.protocol.as_ref().is_none_or(|protocol| *protocol == section.protocol)
                && (column == CLEAN
                    || section.norm == format!("{:?}", Norm::Linf)
                        && section.goal == "Untargeted"
                        && number.radius().to_bits() == section.epsilon)
        };
        let candidates = || self.experiment.into_iter().flat_map(|experiment| &experiment.published).filter(matches);
        let is_over = |number: &&Published, ours: &[&str]| {
            let theirs: BTreeSet<&str> = number.over.iter().map(String::as_str).collect();
            theirs == ours.iter().copied().collect()
        };
        let (number, same) = match candidates().find(|number| ours.is_none_or(|ours| is_over(number, ours))) {
            Some(number) => (number, true),
            None => {
                // A number that belongs to the other mean of the section is shown next to that mean only.
                let other = |number: &&Published| averages.iter().any(|(_, over)| is_over(number, over));
                let number = candidates().find(|number| !other(number)).filter(|_| column != MEAN_ROBUST_AUTOATTACK)?;
                (number, false)
            }
        };
        let difference = mean - number.value;
        let chosen = section.selection == Selection::BestTest;
        let other_training = number.protocol.is_none() && !is_natural(&section.protocol);
        let other_network = self.scale.is_some_and(|scale| !is_network_of(scale, &section.model));
        let ours = || names(ours.into_iter().flatten().copied());
        let caveat = if chosen {
            "our number is for a step that was chosen on the test images (best-test)".to_owned()
        } else if held_out {
            "our number is for held-out training images, the published one for test images".to_owned()
        } else if other_network {
            format!("our number is for {}, a network that the experiment does not name", section.model)
        } else if !same && number.over.is_empty() {
            format!("the paper does not say which attacks its mean is over; ours is over {}", ours())
        } else if !same {
            format!(
                "the paper's mean is over {}, ours is over {}",
                names(number.over.iter().map(String::as_str)),
                ours()
            )
        } else if other_training {
            "the published number is for natural training (its drop rate shows this), so it is only for orientation"
                .to_owned()
        } else {
            String::new()
        };
        let comparable = same && !chosen && !held_out && !other_training && !other_network;
        Some(PublishedCell {
            value: number.value,
            source: number.source.clone(),
            difference,
            outside_tolerance: self.tolerance.filter(|_| comparable).map(|tolerance| difference.abs() > tolerance),
            caveat,
        })
    }
}

/// Whether a protocol trains on images without an attack. Published numbers that name no protocol are of such training: their
/// drop rates are those of natural training (docs/tables.md).
fn is_natural(protocol: &str) -> bool {
    ["natural", "dd-robustbench"].contains(&protocol)
}

/// Whether a network is one of the grid's. Where the grid leaves the choice to the dataset, that is a ConvNet of some depth.
fn is_network_of(scale: &Scale, model: &str) -> bool {
    scale
        .downstream()
        .into_iter()
        .any(|planned| planned.map_or_else(|| model.starts_with("ConvNet-"), |name| name == model))
}

/// The norm of the grid, where it is one.
fn norm(scale: &Scale) -> Option<Norm> {
    scale.norm.parse().ok()
}
