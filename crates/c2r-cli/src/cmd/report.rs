use std::path::{Path, PathBuf};

use anyhow::Context;
use c2r_base::artifact;
use c2r_eval::{EmbeddedPicture, Source, Table};

use super::table::{Results, judge, synthetic_sets};
use crate::ui::Ui;

/// Make the report from a folder of attack reports: one page, or the tables alone.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  c2r report runs/table2-quick --experiment data/paper/table2.toml -o report.html
  c2r report runs/mine --baseline class-mean -o report.html -o report.tex -o report.csv

The page holds everything and loads nothing: tables beside the published numbers, drawings, pictures of the training \
images, and behind every number its runs, seeds, configurations, commands and files. docs/report.md says more.
Exit code 4: at the scale `paper` a number is farther from the published one than the tolerance.")]
pub(crate) struct Args {
    #[command(flatten)]
    results: Results,

    /// What to write, by its ending: .html (the page), .md, .csv, .tex (booktabs, graphicx) or .json (repeatable)
    #[arg(short, long, value_name = "FILE", required = true, value_parser = parse_output)]
    output: Vec<Output>,

    /// No pictures of the training images
    #[arg(long)]
    no_pictures: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Output {
    path: PathBuf,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Html,
    Markdown,
    Csv,
    Latex,
    Json,
}

fn parse_output(text: &str) -> Result<Output, String> {
    let path = PathBuf::from(text);
    let format = match path.extension().and_then(|ending| ending.to_str()) {
        Some("html") => Format::Html,
        Some("md") => Format::Markdown,
        Some("csv") => Format::Csv,
        Some("tex") => Format::Latex,
        Some("json") => Format::Json,
        _ => return Err("the ending says the format: .html, .md, .csv, .tex or .json".to_owned()),
    };
    Ok(Output { path, format })
}

pub(crate) fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    let (table, sources) = args.results.table()?;
    for Output { path, format } in &args.output {
        let text = match format {
            Format::Html if args.no_pictures => table.html(&[]),
            Format::Html => table.html(&pictures(&table, &sources, ui)?),
            Format::Markdown => table.markdown(),
            Format::Csv => table.csv()?,
            Format::Latex => table.latex(),
            Format::Json => table.json(),
        };
        write(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        ui.note(format!("wrote {}", path.display()));
    }
    judge(&table)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    Ok(artifact::write_atomically(path, text.as_bytes())?)
}

/// The training images of every method and size.
fn pictures(table: &Table, sources: &[Source], ui: &Ui) -> anyhow::Result<Vec<EmbeddedPicture>> {
    let folder = tempfile::tempdir()?;
    let picture = |shown: super::table::Shown| {
        let path = folder.path().join(&shown.file);
        shown.draw(&path)?;
        let png = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let images = if shown.ipc == 1 { "image" } else { "images" };
        let group = format!("{}, {} {images} per class", shown.dataset, shown.ipc);
        Ok(EmbeddedPicture { group, caption: shown.label, png, sources: vec![shown.source] })
    };
    synthetic_sets(table, sources, ui).into_iter().map(picture).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_is_the_format() {
        assert_eq!(parse_output("a/b.html").unwrap().format, Format::Html);
        assert_eq!(parse_output("b.tex").unwrap().format, Format::Latex);
        for wrong in ["report", "report.pdf", ".html"] {
            assert!(parse_output(wrong).unwrap_err().contains(".html"), "{wrong}");
        }
    }
}
