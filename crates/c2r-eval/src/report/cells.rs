//! The tables of a section.

use maud::{Markup, html};

use crate::{
    columns::{
        CLEAN, DROP_RATE_ATTACK, MINIMUM, RATIOS, WORST_CASE, column_heading, column_label, drop_rate_column, fixed,
        margin_column, size, value,
    },
    metrics::MARGIN_QUANTILES,
    render::{Notes, cell_notes, heading, runs},
    table::{Cell, Row, Section},
};

/// Accuracies of more classes than this are left to `table.json`.
const MOST_CLASSES: usize = 20;

/// A table that scrolls where it is too wide.
pub(super) fn scroll_table(label: &str, head: &[&str], body: &Markup) -> Markup {
    html! {
        div.scroll role="region" tabindex="0" aria-label=(label) {
            table {
                thead {
                    tr {
                        @for name in head {
                            @match *name {
                                "method" => th.method scope="col" { "method" },
                                "ipc" => th scope="col" { abbr title="images per class" { "ipc" } },
                                _ => th scope="col" { (name) },
                            }
                        }
                    }
                }
                tbody { (body) }
            }
        }
    }
}

/// `10 images per class`.
pub(super) fn images(images_per_class: Option<usize>) -> String {
    match images_per_class {
        None => "all images".to_owned(),
        Some(1) => "1 image per class".to_owned(),
        Some(n) => format!("{n} images per class"),
    }
}

pub(super) fn panel_id(section: usize, row: usize) -> String {
    format!("p{section}-{row}")
}

/// The rows and columns of a section that Markdown has, too.
pub(super) fn main_table(at: usize, section: &Section, notes: &mut Notes) -> Markup {
    let headings: Vec<String> = section.columns.iter().map(|column| column_heading(&section.attacks, column)).collect();
    let head: Vec<&str> = ["method", "ipc", "runs"].into_iter().chain(headings.iter().map(String::as_str)).collect();
    scroll_table(
        &heading(section),
        &head,
        &html! {
            @for (place, row) in section.rows.iter().enumerate() {
                @let first = place == 0 || section.rows[place - 1].images_per_class != row.images_per_class;
                tr.first[first].reference[row.undistilled] {
                    th.method scope="row" {
                        (row.label)
                        @if row.undistilled { span.tag { "undistilled" } }
                        @for note in &row.notes { sup { (notes.number(note)) } }
                    }
                    td { (size(row.images_per_class)) }
                    td { (runs(row).0) }
                    @for column in &section.columns {
                        @match row.cell(column) {
                            Some(cell) => (shown_cell(&panel_id(at, place), row, cell, notes)),
                            None => td.none { span aria-label="not measured" { "–" } },
                        }
                    }
                }
            }
        },
    )
}

/// A number with everything that is next to it.
fn shown_cell(panel: &str, row: &Row, cell: &Cell, notes: &mut Notes) -> Markup {
    let significant = cell.comparison.as_ref().filter(|comparison| comparison.significant);
    let better = significant.is_some_and(|comparison| comparison.better);
    html! {
        td {
            (button(panel, row, cell, html! {
                span.value.better[better] {
                    (mean_and_sd(cell))
                    @if significant.is_some() && !better {
                        span.worse aria-label="significantly worse than the baseline" { " ↓" }
                    }
                }
                @if let Some(published) = &cell.published {
                    span.paper {
                        "paper " (fixed(published.value, 1))
                        @if published.outside_tolerance == Some(true) { span.outside title="outside the tolerance" { " !" } }
                    }
                }
            }))
            @for note in cell_notes(row, cell) { sup { (notes.number(&note)) } }
        }
    }
}

fn mean_and_sd(cell: &Cell) -> Markup {
    html! {
        (value(&cell.column, cell.summary.mean))
        @if let Some(sd) = cell.summary.sd { span.sd { " ± " (value(&cell.column, sd)) } }
    }
}

/// What opens the provenance of a number: works with the keyboard and without scripts.
fn button(panel: &str, row: &Row, cell: &Cell, inside: Markup) -> Markup {
    let about = format!(
        "{}, {}, {}: {}{}. Show where it comes from",
        column_label(&cell.column),
        row.label,
        images(row.images_per_class),
        value(&cell.column, cell.summary.mean),
        cell.summary.sd.map_or_else(String::new, |sd| format!(" ± {}", value(&cell.column, sd)))
    );
    html! {
        button.cell type="button" popovertarget=(panel) data-column=(cell.column) aria-haspopup="dialog" aria-label=(about) {
            (inside)
        }
    }
}

/// The cells of every row in `columns`, folded away.
fn folded(at: usize, section: &Section, title: &str, about: &str, columns: &[String]) -> Markup {
    let known = |column: &&String| section.rows.iter().any(|row| row.cell(column).is_some());
    let columns: Vec<&String> = columns.iter().filter(known).collect();
    if columns.is_empty() {
        return html! {};
    }
    let headings: Vec<String> = columns.iter().map(|column| column_label(column)).collect();
    let head: Vec<&str> = ["method", "ipc"].into_iter().chain(headings.iter().map(String::as_str)).collect();
    details(
        title,
        about,
        scroll_table(
            title,
            &head,
            &html! {
                @for (place, row) in section.rows.iter().enumerate() {
                    tr {
                        th.method scope="row" { (row.label) }
                        td { (size(row.images_per_class)) }
                        @for column in &columns {
                            td {
                                @match row.cell(column) {
                                    Some(cell) => (button(&panel_id(at, place), row, cell, html! { span.value { (mean_and_sd(cell)) } })),
                                    None => "–",
                                }
                            }
                        }
                    }
                }
            },
        ),
    )
}

fn details(title: &str, about: &str, content: Markup) -> Markup {
    html! { details.more { summary { (title) } p.note { (about) } (content) } }
}

pub(super) fn more_metrics(at: usize, section: &Section) -> Markup {
    let rates = section.attacks.iter().filter(|attack| *attack != DROP_RATE_ATTACK);
    let mut columns = [MINIMUM, WORST_CASE].map(str::to_owned).to_vec();
    columns.extend(rates.map(|attack| drop_rate_column(attack)));
    columns.extend(RATIOS.map(str::to_owned));
    let about = "All are percentages. Worst-case accuracy counts the images that no attack breaks. RR and CREI are from BEARD, \
                 I-RR and I-CREI from ROME; the published ones are of normalized tensors and not comparable with these. AE, CREI \
                 and I-CREI contain wall-clock times and depend on the hardware. They are left out where the longest attack is \
                 not a second longer than the clean pass, or where AE is outside 0 to 100.";
    folded(at, section, "More metrics", about, &columns)
}

pub(super) fn margin_quantiles(at: usize, section: &Section) -> Markup {
    let attacks = std::iter::once(CLEAN).chain(section.attacks.iter().map(String::as_str));
    let columns: Vec<String> =
        attacks.flat_map(|attack| MARGIN_QUANTILES.map(|part| margin_column(part, attack))).collect();
    let about = "Quantiles over the test images of the smallest margin that the attack found, in logits. They are upper bounds of \
                 the robust margin, as good as the attack, and not comparable between networks of different logit scales.";
    folded(at, section, "Robust margins", about, &columns)
}

/// The accuracy of each class, where there are few.
pub(super) fn classes(section: &Section) -> Markup {
    let n_classes = section.rows.iter().flat_map(|row| row.per_class.values()).map(Vec::len).max().unwrap_or(0);
    if !(1..=MOST_CLASSES).contains(&n_classes) {
        return html! {};
    }
    let numbers: Vec<String> = (0..n_classes).map(|class| class.to_string()).collect();
    let head: Vec<&str> = ["method", "ipc", "under"].into_iter().chain(numbers.iter().map(String::as_str)).collect();
    let columns = || std::iter::once(CLEAN).chain(section.attacks.iter().map(String::as_str));
    let lines = section
        .rows
        .iter()
        .flat_map(|row| columns().filter_map(move |column| Some((row, column, row.per_class.get(column)?))));
    let title = "Accuracy of each class";
    let table = scroll_table(
        title,
        &head,
        &html! {
            @for (row, column, values) in lines {
                tr {
                    th.method scope="row" { (row.label) }
                    td { (size(row.images_per_class)) }
                    td.text { (column_label(column)) }
                    @for value in values {
                        @match value {
                            Some(value) => td class={ "h" ((value / 10.0).clamp(0.0, 9.0) as usize) } { (fixed(*value, 1)) },
                            None => td { "–" },
                        }
                    }
                }
            }
        },
    );
    details(
        title,
        "Accuracies on the test images of each class in percent, mean over runs; darker is higher.",
        html! { div.heat { (table) } },
    )
}
