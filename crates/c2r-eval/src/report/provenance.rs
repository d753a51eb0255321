//! Everything behind the numbers of a row.

use c2r_files::shell_line;
use maud::{Markup, html};

use super::cells::{images, scroll_table};
use crate::{
    columns::{column_heading, column_label, fixed, p_value, thousands, value},
    render::{heading, setting},
    stats::Covers,
    table::{Cell, Comparison, Row, Run, Section},
};

/// The panel that opens with each number of a row.
pub(super) fn provenance(id: &str, section: &Section, row: &Row) -> Markup {
    let compared = row.cells.iter().any(|cell| cell.comparison.is_some());
    let published = row.cells.iter().any(|cell| cell.published.is_some());
    let mut head = vec!["", "mean", "sd", "95 % interval over seeds and images", "runs"];
    head.extend(compared.then_some(["against baseline", "p over seeds and images"]).into_iter().flatten());
    head.extend(published.then_some("paper"));
    head.push("run by run");
    html! {
        div.panel id=(id) popover role="dialog" aria-labelledby={ (id) "-h" } {
            div.top {
                h2 id={ (id) "-h" } { (row.label) ", " (images(row.images_per_class)) }
                button.close type="button" popovertarget=(id) popovertargetaction="hide" autofocus { "Close" }
            }
            p.setting { (heading(section)) ". " (setting(section)) }
            ul.facts {
                li { (thousands(row.n_images)) " stored training images" @if !row.profile.is_empty() { ", profile " (row.profile) } }
                @if !row.extra_storage.is_empty() { li { "also stored: " (row.extra_storage) } }
                li { "training data " @if row.data_sha256.is_empty() { "unknown" } @else { code { (row.data_sha256) } } }
                li { "test images " code { (section.test_sha256) } }
                @for note in &row.notes { li { (note) } }
            }
            h3 { "Numbers" }
            (scroll_table("Numbers of this row", &head, &html! {
                @for (place, cell) in row.cells.iter().enumerate() {
                    @let said = place > 0 && row.cells[place - 1].caveat == cell.caveat;
                    (number_line(section, cell, compared, published, if said { "" } else { &cell.caveat }))
                }
            }))
            h3 { "Runs" }
            @for run in &row.runs { (run_block(run)) }
            h3 { "Attacks" }
            @for (attack, config) in &section.attack_configs {
                details { summary { (column_label(attack)) } pre { (serde_json::to_string_pretty(config).unwrap_or_default()) } }
            }
        }
    }
}

fn number_line(section: &Section, cell: &Cell, compared: bool, published: bool, caveat: &str) -> Markup {
    let value = |number: f64| value(&cell.column, number);
    let dash = || "–".to_owned();
    let number = |number: Option<f64>| number.map_or_else(dash, value);
    let signed = |number: f64| if number > 0.0 { format!("+{}", value(number)) } else { value(number) };
    html! {
        tr data-column=(cell.column) {
            th scope="row" { (column_heading(&section.attacks, &cell.column)) }
            td { (value(cell.summary.mean)) }
            td { (number(cell.summary.sd)) }
            td {
                @match cell.summary.ci95 {
                    Some((low, high)) => { (value(low)) " to " (value(high)) (only(cell.ci95_covers)) },
                    None => "–",
                }
            }
            td { (cell.summary.n) }
            @if compared {
                @match &cell.comparison {
                    Some(comparison) => {
                        td { (signed(comparison.difference)) " (" (comparison.n_pairs) " pairs with " (comparison.baseline) ")" }
                        td {
                            @match comparison.p_value {
                                Some(p) => { (p_value(p).trim_start_matches("= ")) (only(comparison.covers)) (errors(comparison)) },
                                None => "–",
                            }
                        }
                    }
                    None => { td { "–" } td { "–" } }
                }
            }
            @if published {
                td {
                    @match &cell.published {
                        Some(published) => { (fixed(published.value, 1)) ", " (published.source) " (" (signed(published.difference)) ")" }
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

/// The note on an interval or p-value that does not cover the test images.
fn only(covers: Covers) -> &'static str {
    if covers == Covers::Seeds { " (these test images only)" } else { "" }
}

/// What a p-value is made of.
fn errors(comparison: &Comparison) -> String {
    comparison.errors.map_or_else(String::new, |errors| {
        format!(
            "; standard error {:.2} over seeds, {:.2} over images, {:.2} over both",
            errors.seeds, errors.images, errors.both
        )
    })
}

fn run_block(run: &Run) -> Markup {
    let named = run.versions.iter().chain(&run.precision);
    let versions: Vec<String> = named.map(|(name, value)| format!("{name} {value}")).collect();
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
                (versions.join(", "))
            }
        }
    }
}

/// A command; nothing where it is not known.
fn command(argv: &[String]) -> Markup {
    html! { @if !argv.is_empty() { pre { (shell_line(argv)) } } }
}
