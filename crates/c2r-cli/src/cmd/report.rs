use std::{ffi::OsString, path::PathBuf};

use anyhow::Context;
use c2r_base::artifact;
use c2r_eval::{EmbeddedPicture, Source, Table};
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::table::{Results, Shown, TableFormat, judge, synthetic_sets};
use crate::{
    overwrite::{self, Kind},
    ui::Ui,
};

/// Make a page (or the tables alone) from folders of attack reports
///
/// The page is one HTML file: tables next to the published numbers, charts, pictures of the training images, and for every number
/// its runs, seeds, configurations, commands and files.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  # A page for an experiment of the paper
  c2r report runs/table2-quick --experiment data/paper/table2.toml -o report.html

  # The same results as a page, as LaTeX and as CSV, compared with the method class-mean
  c2r report runs/mine --baseline class-mean -o report.html -o report.tex -o report.csv

docs/report.md describes the page.
Exit code 4: at the scale `paper`, a number is farther from the published one than the tolerance.")]
pub(crate) struct Args {
    #[command(flatten)]
    results: Results,

    /// File to write: .html (the page), .md, .csv, .tex (needs booktabs and graphicx) or .json (repeatable)
    #[arg(short, long, value_name = "FILE", required = true, value_parser = OsStringValueParser::new().try_map(parse_output))]
    output: Vec<Output>,

    /// Leave out the pictures of the synthetic images
    #[arg(long)]
    no_pictures: bool,
}

/// A file to write: tables alone where the extension names one of their formats, else the whole page.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Output {
    path: PathBuf,
    format: Option<TableFormat>,
}

fn parse_output(word: OsString) -> Result<Output, String> {
    let path = PathBuf::from(word);
    let format = match path.extension().and_then(|ending| ending.to_str()) {
        Some("html") => None,
        Some("md") => Some(TableFormat::Markdown),
        Some("csv") => Some(TableFormat::Csv),
        Some("tex") => Some(TableFormat::Latex),
        Some("json") => Some(TableFormat::Json),
        _ => return Err("the name must end in .html, .md, .csv, .tex or .json".to_owned()),
    };
    Ok(Output { path, format })
}

pub(crate) fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    for Output { path, format } in &args.output {
        overwrite::check("--output", path, format.map_or(Kind::Page, TableFormat::kind))?;
    }
    let (table, sources) = args.results.table()?;
    for Output { path, format } in &args.output {
        let text = match format {
            Some(format) => format.render(&table)?,
            None if args.no_pictures => table.html(&[]),
            None => table.html(&pictures(&table, &sources, ui)?),
        };
        artifact::write_atomically(path, text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        ui.note(format!("wrote {}", path.display()));
    }
    judge(&table)
}

/// The training images of every method and size.
fn pictures(table: &Table, sources: &[Source], ui: &Ui) -> anyhow::Result<Vec<EmbeddedPicture>> {
    let folder = tempfile::tempdir()?;
    let picture = |shown: Shown| {
        let path = folder.path().join(&shown.file);
        shown.draw(&path)?;
        let png = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(EmbeddedPicture { group: shown.group(), caption: shown.label, png, sources: vec![shown.source] })
    };
    synthetic_sets(table, sources, ui)?.into_iter().map(picture).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_is_the_format() {
        assert_eq!(parse_output("a/b.html".into()).unwrap().format, None);
        assert_eq!(parse_output("b.tex".into()).unwrap().format, Some(TableFormat::Latex));
        for wrong in ["report", "report.pdf", ".html"] {
            assert!(parse_output(wrong.into()).unwrap_err().contains(".html"), "{wrong}");
        }
    }
}
