//! Commands that make a page, a table or a picture again replace the last one without being asked, and nothing else.

use std::{fs, path::Path};

use c2r_files::read_json;
use c2r_run::exit;
use serde_json::Value;

/// What a command is about to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Page,
    Markdown,
    Csv,
    Latex,
    Json,
    Picture,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Page => "page of `c2r report`",
            Self::Markdown | Self::Csv | Self::Latex | Self::Json => "table of c2r",
            Self::Picture => "PNG picture",
        }
    }

    /// Whether a file is what a command has written for this, in this version or an earlier one.
    fn is(self, path: &Path) -> bool {
        if self == Self::Json {
            let table = read_json::<Value>(path).unwrap_or_default();
            return ["schema_version", "title", "sections"].iter().all(|key| table.get(key).is_some());
        }
        let Ok(bytes) = fs::read(path) else { return false };
        let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        match self {
            Self::Page => bytes.starts_with(b"<!DOCTYPE html>") && has("href=\"#main\">To the tables<"),
            Self::Markdown => bytes.starts_with(b"# ") && has("\n## How to read this\n"),
            Self::Csv => bytes.starts_with(b"dataset,images_per_class,"),
            Self::Latex => has("% Needs \\usepackage{booktabs,graphicx}."),
            Self::Picture => bytes.starts_with(b"\x89PNG\r\n\x1a\n"),
            Self::Json => unreachable!("read above"),
        }
    }
}

/// Refuses to write where there is a file of another kind. One that is empty holds nothing that could be lost.
pub(crate) fn check(option: &str, path: &Path, kind: Kind) -> anyhow::Result<()> {
    let is_other = fs::metadata(path).is_ok_and(|data| data.is_file() && data.len() > 0) && !kind.is(path);
    if is_other {
        let (path, name) = (path.display(), kind.name());
        let message = format!("{option} {path} exists and is not a {name}; choose another name, or move it away");
        return exit::fail(exit::USAGE, message);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_same_kind_are_replaced() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../c2r-eval/tests/it/golden");
        let table: c2r_eval::Table = read_json(&golden.join("table.json")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("page"), table.html(&[])).unwrap();
        image::GrayImage::new(2, 2).save(at("picture.png")).unwrap();
        let files = [
            (Kind::Page, at("page")),
            (Kind::Markdown, golden.join("table.md")),
            (Kind::Csv, golden.join("table.csv")),
            (Kind::Latex, golden.join("table.tex")),
            (Kind::Json, golden.join("table.json")),
            (Kind::Picture, at("picture.png")),
        ];
        for (kind, _) in &files {
            for (other, path) in &files {
                assert_eq!(check("-o", path, *kind).is_ok(), kind == other, "{kind:?} over {other:?}");
            }
            check("-o", &at("absent"), *kind).unwrap();
        }
        for (name, contents) in
            [("notes.md", "# Notes\n"), ("attack.json", "{\"schema_version\": 1}"), ("x.csv", "a,b\n")]
        {
            fs::write(at(name), contents).unwrap();
            for (kind, _) in &files {
                let error = check("-o", &at(name), *kind).unwrap_err();
                assert!(exit::code_of(&error) == exit::USAGE && error.to_string().contains(name), "{error}");
            }
        }
        fs::write(at("empty"), "").unwrap();
        files.iter().for_each(|(kind, _)| check("-o", &at("empty"), *kind).unwrap());
    }
}
