//! The table as one page that needs nothing else: no network, no other file, scripts only for comfort.
//!
//! Everything that comes from files goes through [`maud`], which escapes it. A policy in the page forbids every load and
//! every script but the page's own.

mod figures;
mod svg;

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

use crate::{
    Table,
    render::{heading, percent, setting, size},
    stats,
    table::{Cell, MINIMUM, Row, Run, Section, WORST_CASE, column_label, is_margin},
};
use figures::{Figure, Inks};

const STYLE: &str = include_str!("report/report.css");
const SCRIPT: &str = include_str!("report/report.js");
/// Accuracies of more classes than this are left to `table.json`.
const MOST_CLASSES: usize = 20;

/// A picture to put into the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedPicture {
    /// Pictures of one group stand beside each other, e.g. `digits, 10 images per class`.
    pub group: String,
    /// What it shows.
    pub caption: String,
    /// The file's bytes.
    pub png: Vec<u8>,
    /// The synthetic sets it shows, relative to the results folder.
    pub sources: Vec<String>,
}

impl Table {
    /// A page (HTML) with tables beside the published numbers, drawings, `pictures`, and behind every number the runs,
    /// seeds, configurations, commands and files it came from. Equal tables give equal bytes.
    pub fn html(&self, pictures: &[EmbeddedPicture]) -> String {
        let inks = Inks::of(self);
        let curves = figures::over_radii(self, &inks);
        let policy = format!(
            "default-src 'none'; img-src data:; style-src '{}'; script-src '{}'; base-uri 'none'; form-action 'none'",
            source_hash(STYLE),
            source_hash(SCRIPT)
        );
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(policy);
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    a.skip href="#main" { "To the tables" }
                    (self.header())
                    (self.navigation(!curves.is_empty(), !pictures.is_empty()))
                    main #main {
                        @for (at, section) in self.sections.iter().enumerate() { (self.section(at, section, &inks)) }
                        @if !curves.is_empty() {
                            section #radii aria-labelledby="radii-h" {
                                h2 #radii-h { "Robustness against the radius" }
                                (drawings(&curves))
                            }
                        }
                        (gallery(pictures))
                        (self.not_run())
                        section #reading aria-labelledby="reading-h" {
                            h2 #reading-h { "How to read this" }
                            ul.prose {
                                @for line in self.legend("Bold") { li { (prose(&line)) } }
                                li { "Choose any number to see its runs, seeds, commands, configurations and files." }
                            }
                        }
                        (self.configurations())
                    }
                    @for (at, section) in self.sections.iter().enumerate() {
                        @for (place, row) in section.rows.iter().enumerate() {
                            (provenance(&panel_id(at, place), section, row))
                        }
                    }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        };
        page.into_string() + "\n"
    }

    fn header(&self) -> Markup {
        let rows = || self.sections.iter().flat_map(|section| &section.rows);
        let n_runs: usize = rows().map(|row| row.runs.len()).sum();
        let comparisons = || {
            let shown = |section: &Section, cell: &Cell| section.columns.contains(&cell.column);
            let cells = self.sections.iter().flat_map(move |section| {
                section.rows.iter().flat_map(|row| &row.cells).filter(move |cell| shown(section, cell))
            });
            cells.filter_map(|cell| cell.comparison.as_ref())
        };
        let significant = |better| comparisons().filter(|c| c.significant && c.better == better).count();
        html! {
            header.page {
                p.kicker {
                    @match &self.experiment {
                        Some(experiment) => {
                            (experiment.name)
                            @if let Some(scale) = &experiment.scale { ", scale " (scale) }
                        }
                        None => "c2r",
                    }
                }
                h1 { (self.title) }
                @if let Some(experiment) = &self.experiment {
                    p.lead {
                        @if !experiment.about.is_empty() { (experiment.about) "." (self.changed_grid()) " " }
                        @if self.has_published() { "Published numbers: " (experiment.source) "." }
                    }
                }
                dl.tiles {
                    (tile("networks", &n_runs.to_string(), "trained and attacked"))
                    @if self.planned_rows > 0 {
                        @let done = self.planned_rows - self.missing.len();
                        (tile("rows", &format!("{done} of {}", self.planned_rows), "of the grid have a result"))
                    } @else {
                        (tile("rows", &rows().count().to_string(), "no grid was named"))
                    }
                    @if let Some(baseline) = &self.baseline {
                        @let n = comparisons().count();
                        @let about = format!("than {baseline}, of {n} comparisons, p < {}", stats::SIGNIFICANT);
                        (tile("significantly better", &significant(true).to_string(), &about))
                        (tile("significantly worse", &significant(false).to_string(), &about))
                    }
                    @if let Some(experiment) = self.experiment.as_ref().filter(|experiment| experiment.tolerance_applies) {
                        @let about = format!("numbers farther than {} points from the paper's", experiment.tolerance);
                        (tile("outside", &self.outside_tolerance().count().to_string(), &about))
                    }
                }
            }
        }
    }

    fn navigation(&self, curves: bool, pictures: bool) -> Markup {
        html! {
            nav aria-label="Parts of this page" {
                @for (at, section) in self.sections.iter().enumerate() {
                    a href={ "#t" (at) } { (heading(section)) ", " (section.epsilon) }
                }
                @if curves { a href="#radii" { "Radius" } }
                @if pictures { a href="#images" { "Images" } }
                @if !self.missing.is_empty() { a href="#missing" { "Missing" } }
                a href="#reading" { "How to read this" }
                @if !self.configs.is_empty() { a href="#configurations" { "Configurations" } }
            }
        }
    }

    fn section(&self, at: usize, section: &Section, inks: &Inks) -> Markup {
        let id = format!("t{at}");
        let mut notes = Notes::default();
        let table = main_table(at, section, &mut notes);
        html! {
            section id=(id) aria-labelledby={ (id) "-h" } {
                h2 id={ (id) "-h" } { (heading(section)) ", " (section.epsilon) }
                p.setting { (setting(section)) }
                (table)
                @if !notes.0.is_empty() || !section.notes.is_empty() {
                    div.notes {
                        @if !notes.0.is_empty() { ol { @for note in &notes.0 { li { (note) } } } }
                        @for note in &section.notes { p { (note) } }
                    }
                }
                (drawings(&figures::of_section(section, inks)))
                (more_metrics(at, section))
                (margin_quantiles(at, section))
                (classes(section))
            }
        }
    }

    fn not_run(&self) -> Markup {
        if self.missing.is_empty() {
            return html! {};
        }
        let threat = self.experiment.as_ref().map_or("", |experiment| experiment.threat.as_str());
        html! {
            section #missing aria-labelledby="missing-h" {
                h2 #missing-h { "Missing" }
                p.setting { (self.missing.len()) " of " (self.planned_rows) " rows of the grid (" (threat) ") have no result." }
                div.scroll role="region" tabindex="0" aria-label="Rows without a result" {
                    table {
                        thead { tr { th scope="col" { "dataset" } th scope="col" { "protocol" } th scope="col" { "ipc" } th scope="col" { "method" } } }
                        tbody {
                            @for row in &self.missing {
                                tr {
                                    td.text { (row.dataset) }
                                    td.text { (row.protocol) }
                                    td { (size(row.images_per_class)) }
                                    td.text { (row.method) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// What each configuration was for, by its digest: the first run that has it.
    fn uses_of_configurations(&self) -> BTreeMap<&str, String> {
        let mut uses = BTreeMap::new();
        for section in &self.sections {
            for row in &section.rows {
                for run in &row.runs {
                    if let Some(digest) = &run.distill_config {
                        let seed = run.distill_seed.map_or_else(String::new, |seed| format!(", seed {seed}"));
                        let text =
                            || format!("distillation: {}, {}, {}{seed}", section.dataset, row.label, images(row));
                        uses.entry(digest.as_str()).or_insert_with(text);
                    }
                    if let Some(digest) = &run.train_config {
                        let (seed, what) = (run.train_seed, heading(section));
                        let text = || format!("training: {what}, {}, {}, seed {seed}", row.label, images(row));
                        uses.entry(digest.as_str()).or_insert_with(text);
                    }
                }
            }
        }
        uses
    }

    fn configurations(&self) -> Markup {
        if self.configs.is_empty() {
            return html! {};
        }
        let uses = self.uses_of_configurations();
        html! {
            section #configurations aria-labelledby="configurations-h" {
                h2 #configurations-h { "Configurations" }
                p.setting { "By the first digits of their SHA-256; runs refer to them." }
                div.configs {
                    @for (digest, config) in &self.configs {
                        details id={ "config-" (digest) } {
                            summary { code { (digest) } " " (uses.get(digest.as_str()).map_or("", String::as_str)) }
                            pre { (serde_json::to_string_pretty(config).unwrap_or_default()) }
                        }
                    }
                }
            }
        }
    }
}

/// `10 images per class`.
fn images(row: &Row) -> String {
    match row.images_per_class {
        None => "all images".to_owned(),
        Some(1) => "1 image per class".to_owned(),
        Some(n) => format!("{n} images per class"),
    }
}

/// What a Content-Security-Policy calls an inline text.
fn source_hash(text: &str) -> String {
    format!("sha256-{}", BASE64.encode(Sha256::digest(text)))
}

fn panel_id(section: usize, row: usize) -> String {
    format!("p{section}-{row}")
}

fn tile(name: &str, value: &str, about: &str) -> Markup {
    html! { div { dt { (name) } dd { b { (value) } span { (about) } } } }
}

/// `code` between backquotes.
fn prose(text: &str) -> Markup {
    html! {
        @for (place, part) in text.split('`').enumerate() {
            @if place % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

/// Notes by their numbers, each said once.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn mark(&mut self, note: &str) -> Markup {
        let place = self.0.iter().position(|known| known == note).unwrap_or_else(|| {
            self.0.push(note.to_owned());
            self.0.len() - 1
        });
        html! { sup { (place + 1) } }
    }
}

fn main_table(at: usize, section: &Section, notes: &mut Notes) -> Markup {
    let mut rows = Vec::new();
    for (place, row) in section.rows.iter().enumerate() {
        let marks: Vec<Markup> = row.notes.iter().map(|note| notes.mark(note)).collect();
        let runs = match row.planned_runs {
            Some(planned) if row.runs.len() < planned => format!("{} of {planned}", row.runs.len()),
            _ => row.runs.len().to_string(),
        };
        let first = place == 0 || section.rows[place - 1].images_per_class != row.images_per_class;
        let cells: Vec<Markup> = section
            .columns
            .iter()
            .map(|column| match row.cell(column) {
                Some(cell) => shown_cell(&panel_id(at, place), row, cell, notes),
                None => html! { td.none { span aria-label="not measured" { "–" } } },
            })
            .collect();
        rows.push(html! {
            tr.first[first].reference[row.undistilled] {
                th.method scope="row" {
                    (row.label)
                    @if row.undistilled { span.tag { "undistilled" } }
                    @for mark in &marks { (mark) }
                }
                td { (size(row.images_per_class)) }
                td { (runs) }
                @for cell in &cells { (cell) }
            }
        });
    }
    html! {
        div.scroll role="region" tabindex="0" aria-labelledby={ "t" (at) "-h" } {
            table {
                thead {
                    tr {
                        th.method scope="col" { "method" }
                        th scope="col" { abbr title="images per class" { "ipc" } }
                        th scope="col" { "runs" }
                        @for column in &section.columns { th scope="col" { (column_label(column)) } }
                    }
                }
                tbody { @for row in &rows { (row) } }
            }
        }
    }
}

/// A number with everything that stands beside it.
fn shown_cell(panel: &str, row: &Row, cell: &Cell, notes: &mut Notes) -> Markup {
    let significant = cell.comparison.as_ref().filter(|comparison| comparison.significant);
    let better = significant.is_some_and(|comparison| comparison.better);
    let worse = significant.is_some_and(|comparison| !comparison.better);
    let mut marks = Vec::new();
    if let Some(caveat) = cell.published.as_ref().map(|published| &published.caveat).filter(|text| !text.is_empty()) {
        marks.push(notes.mark(caveat));
    }
    if cell.summary.n < row.runs.len() {
        marks.push(notes.mark(&format!("{} of {} runs", cell.summary.n, row.runs.len())));
    }
    for flag in &cell.flags {
        marks.push(notes.mark(&format!("doubtful: {flag}")));
    }
    html! {
        td {
            (button(panel, row, cell, html! {
                span.value.better[better] {
                    (value(cell, cell.summary.mean))
                    @if let Some(sd) = cell.summary.sd { span.sd { " ± " (value(cell, sd)) } }
                    @if worse { span.worse aria-label="significantly worse than the baseline" { " ↓" } }
                }
                @if let Some(published) = &cell.published {
                    span.paper {
                        "paper " (percent(published.value))
                        @if published.outside_tolerance == Some(true) { span.outside title="outside the tolerance" { " !" } }
                    }
                }
            }))
            @for mark in &marks { (mark) }
        }
    }
}

/// What opens the provenance of a number: works with the keyboard and without scripts.
fn button(panel: &str, row: &Row, cell: &Cell, inside: Markup) -> Markup {
    let about = format!(
        "{}, {}, {}: {}{}. Where it is from",
        column_label(&cell.column),
        row.label,
        images(row),
        value(cell, cell.summary.mean),
        cell.summary.sd.map_or_else(String::new, |sd| format!(" ± {}", value(cell, sd)))
    );
    html! {
        button.cell type="button" popovertarget=(panel) data-column=(cell.column) aria-haspopup="dialog" aria-label=(about) {
            (inside)
        }
    }
}

/// Percent with one decimal, logits with two.
fn value(cell: &Cell, number: f64) -> String {
    if is_margin(&cell.column) { two_decimals(number) } else { percent(number) }
}

fn two_decimals(number: f64) -> String {
    let text = format!("{number:.2}");
    if text == "-0.00" { "0.00".to_owned() } else { text }
}

fn drawings(figures: &[Figure]) -> Markup {
    html! {
        @if !figures.is_empty() {
            div.figures {
                @for figure in figures {
                    figure {
                        figcaption { (figure.title) }
                        (figure.legend)
                        (figure.drawing)
                        p.note { (figure.note) }
                    }
                }
            }
        }
    }
}

/// The cells of every row in `columns`, folded away.
fn folded(at: usize, section: &Section, title: &str, about: &str, columns: &[&str]) -> Markup {
    let there: Vec<&str> =
        columns.iter().copied().filter(|column| section.rows.iter().any(|row| row.cell(column).is_some())).collect();
    html! {
        @if !there.is_empty() {
            details.more {
                summary { (title) }
                p.note { (about) }
                div.scroll role="region" tabindex="0" aria-label=(title) {
                    table {
                        thead {
                            tr {
                                th.method scope="col" { "method" }
                                th scope="col" { "ipc" }
                                @for column in &there { th scope="col" { (column_label(column)) } }
                            }
                        }
                        tbody {
                            @for (place, row) in section.rows.iter().enumerate() {
                                tr {
                                    th.method scope="row" { (row.label) }
                                    td { (size(row.images_per_class)) }
                                    @for column in &there {
                                        td {
                                            @if let Some(cell) = row.cell(column) {
                                                (button(&panel_id(at, place), row, cell, html! {
                                                    span.value {
                                                        (value(cell, cell.summary.mean))
                                                        @if let Some(sd) = cell.summary.sd { span.sd { " ± " (value(cell, sd)) } }
                                                    }
                                                }))
                                            } @else { "–" }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn more_metrics(at: usize, section: &Section) -> Markup {
    let rates: Vec<String> = section.attacks.iter().map(|attack| format!("drop-rate-{attack}")).collect();
    let mut columns = vec![MINIMUM, WORST_CASE];
    columns.extend(rates.iter().map(String::as_str));
    columns.extend(["rr", "i-rr", "ae", "crei", "i-crei"]);
    let about = "Percent. Worst-case: right under every attack, the best one picked for each image. RR, CREI: BEARD; I-RR, I-CREI: \
                 ROME; theirs are of normalized tensors and do not compare with these. AE, CREI and I-CREI contain wall-clock \
                 times and depend on the hardware; they have no value where the longest attack is not a second longer \
                 than the clean pass, or AE is outside of 0 to 100.";
    folded(at, section, "More metrics", about, &columns)
}

fn margin_quantiles(at: usize, section: &Section) -> Markup {
    let columns: Vec<String> = std::iter::once("clean")
        .chain(section.attacks.iter().map(String::as_str))
        .flat_map(|attack| ["05", "25", "50", "75", "95"].map(|part| format!("margin-q{part}-{attack}")))
        .collect();
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let about = "Quantiles over the test images of the smallest margin that the attack found, in logits: estimates of the robust \
                 margin from above, as good as the attack. Networks of different scale do not compare.";
    folded(at, section, "Robust margins", about, &columns)
}

fn classes(section: &Section) -> Markup {
    let n_classes = section.rows.iter().flat_map(|row| row.per_class.values()).map(Vec::len).max().unwrap_or(0);
    if !(1..=MOST_CLASSES).contains(&n_classes) {
        return html! {};
    }
    let columns = || std::iter::once("clean").chain(section.attacks.iter().map(String::as_str));
    html! {
        details.more {
            summary { "Accuracy of each class" }
            p.note { "Percent of the class's test images, mean over runs; darker is higher." }
            div.scroll role="region" tabindex="0" aria-label="Accuracy of each class" {
                table.heat {
                    thead {
                        tr {
                            th.method scope="col" { "method" }
                            th scope="col" { "ipc" }
                            th scope="col" { "under" }
                            @for class in 0..n_classes { th scope="col" { (class) } }
                        }
                    }
                    tbody {
                        @for row in &section.rows {
                            @for column in columns() {
                                @if let Some(values) = row.per_class.get(column) {
                                    tr {
                                        th.method scope="row" { (row.label) }
                                        td { (size(row.images_per_class)) }
                                        td.text { (column_label(column)) }
                                        @for value in values {
                                            @match value {
                                                Some(value) => td class={ "h" ((value / 10.0).clamp(0.0, 9.0) as usize) } { (percent(*value)) },
                                                None => td { "–" },
                                            }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn gallery(pictures: &[EmbeddedPicture]) -> Markup {
    let mut groups: Vec<&str> = pictures.iter().map(|picture| picture.group.as_str()).collect();
    groups.dedup();
    html! {
        @if !pictures.is_empty() {
            section #images aria-labelledby="images-h" {
                h2 #images-h { "Training images" }
                @for group in groups {
                    h3 { (group) }
                    div.pictures {
                        @for picture in pictures.iter().filter(|picture| picture.group == group) {
                            figure {
                                figcaption { (picture.caption) }
                                img alt={ (picture.caption) ", " (group) ", one row per class" }
                                    src={ "data:image/png;base64," (BASE64.encode(&picture.png)) };
                                @for source in &picture.sources { p.note { code { (source) } } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Everything behind the numbers of a row.
fn provenance(id: &str, section: &Section, row: &Row) -> Markup {
    html! {
        div.panel id=(id) popover role="dialog" aria-labelledby={ (id) "-h" } {
            div.top {
                h2 id={ (id) "-h" } { (row.label) ", " (images(row)) }
                button.close type="button" popovertarget=(id) popovertargetaction="hide" autofocus { "Close" }
            }
            p.setting { (heading(section)) ". " (setting(section)) }
            ul.facts {
                li { (row.n_images) " stored training images" @if !row.profile.is_empty() { ", profile " (row.profile) } }
                @if !row.extra_storage.is_empty() { li { "also stored: " (row.extra_storage) } }
                li { "training data " @if row.data_sha256.is_empty() { "not known" } @else { code { (row.data_sha256) } } }
                li { "test images " code { (section.test_sha256) } }
                @for note in &row.notes { li { (note) } }
            }
            h3 { "Numbers" }
            div.scroll role="region" tabindex="0" aria-label="Numbers of this row" {
                table {
                    thead {
                        tr {
                            @for name in ["", "mean", "sd", "95 % interval", "runs"] { th scope="col" { (name) } }
                            @if row.cells.iter().any(|cell| cell.comparison.is_some()) {
                                th scope="col" { "against baseline" } th scope="col" { "p" }
                            }
                            @if row.cells.iter().any(|cell| cell.published.is_some()) { th scope="col" { "paper" } }
                            th.text scope="col" { "run by run" }
                        }
                    }
                    tbody {
                        @for (place, cell) in row.cells.iter().enumerate() {
                            @let said = place > 0 && row.cells[place - 1].caveat == cell.caveat;
                            (number_line(row, cell, if said { "" } else { &cell.caveat }))
                        }
                    }
                }
            }
            h3 { "Runs" }
            @for run in &row.runs { (run_block(run)) }
            h3 { "Attacks" }
            @for (attack, config) in &section.attack_configs {
                details { summary { (column_label(attack)) } pre { (serde_json::to_string_pretty(config).unwrap_or_default()) } }
            }
        }
    }
}

fn number_line(row: &Row, cell: &Cell, caveat: &str) -> Markup {
    let dash = || "–".to_owned();
    let number = |number: Option<f64>| number.map_or_else(dash, |number| value(cell, number));
    let signed = |number: f64| if number > 0.0 { format!("+{}", value(cell, number)) } else { value(cell, number) };
    html! {
        tr data-column=(cell.column) {
            th scope="row" { (column_label(&cell.column)) }
            td { (value(cell, cell.summary.mean)) }
            td { (number(cell.summary.sd)) }
            td { @match cell.summary.ci95 { Some((low, high)) => { (value(cell, low)) " to " (value(cell, high)) }, None => "–" } }
            td { (cell.summary.n) }
            @if row.cells.iter().any(|cell| cell.comparison.is_some()) {
                @match &cell.comparison {
                    Some(comparison) => {
                        td { (signed(comparison.difference)) " (" (comparison.n_pairs) " pairs with " (comparison.baseline) ")" }
                        td { (comparison.p_value.map_or_else(dash, |p| format!("{p:.3}"))) }
                    }
                    None => { td { "–" } td { "–" } }
                }
            }
            @if row.cells.iter().any(|cell| cell.published.is_some()) {
                td {
                    @match &cell.published {
                        Some(published) => { (percent(published.value)) ", " (published.source) " (" (signed(published.difference)) ")" }
                        None => "–",
                    }
                }
            }
            td.text {
                (cell.values.iter().map(|value| number(*value)).collect::<Vec<_>>().join(", "))
                @if !caveat.is_empty() { br; span.note { (caveat) } }
            }
        }
    }
}

fn run_block(run: &Run) -> Markup {
    let versions: BTreeSet<String> = run.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let configs = [("distillation", &run.distill_config), ("training", &run.train_config)];
    html! {
        div.run {
            p {
                b {
                    "Seeds: "
                    @if let Some(seed) = run.distill_seed { "distillation " (seed) ", " }
                    "training " (run.train_seed) ", attacks " (run.attack_seed)
                }
            }
            (command(&run.distill_argv))
            (command(&run.train_argv))
            @for (file, argv) in run.files.iter().zip(&run.attack_argvs) {
                p { code { (file) } }
                (command(argv))
            }
            p.note {
                @for (name, digest) in configs {
                    @if let Some(digest) = digest { "configuration of the " (name) " " a href={ "#config-" (digest) } { code { (digest) } } "; " }
                }
                (versions.into_iter().collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// A command; nothing where it is not known.
fn command(argv: &[String]) -> Markup {
    html! { @if !argv.is_empty() { pre { (shell_line(argv)) } } }
}

/// A command as a shell takes it.
fn shell_line(argv: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=+@%".contains(c);
    let word = |word: &String| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    argv.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted() {
        let argv = ["c2r", "train", "--set", "length={steps=20}", "it's", ""].map(str::to_owned);
        assert_eq!(shell_line(&argv), r"c2r train --set 'length={steps=20}' 'it'\''s' ''");
    }
}
