//! The table as one page that needs nothing else: no network, no other file, scripts only for comfort.
//!
//! Everything that comes from files goes through [`maud`], which escapes it. A policy in the page forbids every load and
//! every script but the page's own.

mod cells;
mod figures;
mod provenance;

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

use crate::{
    Table,
    columns::size,
    render::{Notes, heading, setting, threat},
    table::Section,
};
use cells::{classes, images, main_table, margin_quantiles, more_metrics, scroll_table};
use figures::{Figure, Inks};
use provenance::provenance;

const STYLE: &str = include_str!("report/report.css");
const SCRIPT: &str = include_str!("report/report.js");

/// A picture to put into the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedPicture {
    /// Pictures of one group are next to each other, e.g. `digits, 10 images per class`.
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
                            (provenance(&cells::panel_id(at, place), section, row))
                        }
                    }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        };
        page.into_string() + "\n"
    }

    fn header(&self) -> Markup {
        let n_runs: usize = self.rows().map(|(_, row)| row.runs.len()).sum();
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
                (self.shown())
                dl.tiles {
                    (tile("networks", &n_runs.to_string(), "trained and attacked"))
                    @if self.planned_rows > 0 {
                        @let done = self.planned_rows - self.missing.len();
                        (tile("rows", &format!("{done} of {}", self.planned_rows), "of the grid have a result"))
                    } @else {
                        (tile("rows", &self.rows().count().to_string(), "no grid was named"))
                    }
                    @if let Some(experiment) = self.experiment.as_ref().filter(|experiment| experiment.tolerance_applies) {
                        @let about = format!("numbers farther than {} points from the paper's", experiment.tolerance);
                        (tile("outside", &self.outside_tolerance().count().to_string(), &about))
                    }
                }
            }
        }
    }

    /// [`Table::findings`].
    fn shown(&self) -> Markup {
        html! {
            @for finding in self.findings() {
                p.finding { b { (finding.heading) ". " } (finding.sentences.join(" ")) }
            }
            @for line in self.not_shown() { p.finding { b { "Not shown. " } (prose(&line)) } }
        }
    }

    fn navigation(&self, curves: bool, pictures: bool) -> Markup {
        html! {
            nav aria-label="Parts of this page" {
                @for (at, section) in self.sections.iter().enumerate() {
                    a href={ "#t" (at) } { (heading(section)) ", " (threat(section)) }
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
                h2 id={ (id) "-h" } { (heading(section)) ", " (threat(section)) }
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
                (scroll_table("Rows without a result", &["dataset", "protocol", "ipc", "method"], &html! {
                    @for row in &self.missing {
                        tr {
                            td.text { (row.dataset) }
                            td.text { (row.protocol) }
                            td { (size(row.images_per_class)) }
                            td.text { (row.method) }
                        }
                    }
                }))
            }
        }
    }

    /// What each configuration was for, by its digest: the first run that has it.
    fn uses_of_configurations(&self) -> BTreeMap<&str, String> {
        let mut uses = BTreeMap::new();
        for (section, row) in self.rows() {
            let what = format!("{}, {}", row.label, images(row.images_per_class));
            for run in &row.runs {
                let seed = run.distill_seed.map_or_else(String::new, |seed| format!(", seed {seed}"));
                let distillation = format!("distillation: {}, {what}{seed}", section.dataset);
                let training = format!("training: {}, {what}, seed {}", heading(section), run.train_seed);
                for (digest, text) in [(&run.distill_config, distillation), (&run.train_config, training)] {
                    digest.as_deref().map(|digest| uses.entry(digest).or_insert(text));
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
                p.setting { "Each is named by the first digits of its SHA-256, which the runs refer to." }
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

/// What a Content-Security-Policy calls an inline text.
fn source_hash(text: &str) -> String {
    format!("sha256-{}", BASE64.encode(Sha256::digest(text)))
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
