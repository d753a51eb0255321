//! Links of the Markdown pages, and the sidebar of the book that docs/ is.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

/// The sidebar of the book.
const SUMMARY: &str = "docs/SUMMARY.md";

/// What is wrong with the links of `pages`, texts by path.
///
/// * `exists`: which paths, from the top folder, a link may point at.
pub(super) fn check(pages: &BTreeMap<String, String>, exists: &dyn Fn(&Path) -> bool) -> Vec<String> {
    let mut problems = Vec::new();
    let mut listed = BTreeSet::new();
    for (file, text) in pages {
        let folder = Path::new(file).parent().unwrap_or(Path::new(""));
        for (number, target) in local_links(text) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() { file.into() } else { normal(&folder.join(path)) };
            let reason = match path.to_str().and_then(|path| pages.get(path)) {
                _ if !exists(&path) => "which is not there",
                _ if file.starts_with("docs/") && !path.starts_with("docs") => "which the book does not have",
                Some(page) if !anchor.is_empty() && !anchors(page).contains(anchor) => "which has no such heading",
                _ => {
                    listed.extend((file == SUMMARY).then_some(path));
                    continue;
                }
            };
            problems.push(format!("{file}:{number}: links to {target}, {reason}"));
        }
    }
    let in_book = pages.keys().filter(|page| page.starts_with("docs/") && *page != SUMMARY);
    let missing = in_book.filter(|page| !listed.contains(Path::new(page)));
    problems.extend(missing.map(|page| format!("{page}: is not in {SUMMARY}")));
    problems
}

/// Lines outside of code blocks, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// Targets of links and pictures that are files or headings, with their line.
fn local_links(text: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    for (number, line) in prose(text) {
        for (position, _) in line.match_indices("](") {
            let target = line[position + 2..].split([')', ' ']).next().unwrap_or_default();
            let is_remote = target.contains("://") || target.starts_with("mailto:");
            // `#[deny](` in prose about code is not a link; a link's text is outside backticks.
            let in_backticks = line[..position].matches('`').count() % 2 == 1;
            if !target.is_empty() && !is_remote && !in_backticks {
                links.push((number, target));
            }
        }
    }
    links
}

/// The anchors of a page's headings, as GitHub and mdBook name them.
fn anchors(text: &str) -> BTreeSet<String> {
    let slug = |heading: &str| {
        let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    prose(text).filter(|(_, line)| line.starts_with('#')).map(|(_, line)| slug(line.trim_start_matches('#'))).collect()
}

/// `a/../b` is `b`.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_the_sidebar() {
        let check = |file: &str, text: &str, problem: &str| {
            let mut pages = BTreeMap::from(
                [(SUMMARY, "[Set-up](install.md)"), ("docs/install.md", "# Set-up\n## With `c2r`, on CUDA\n")]
                    .map(|(name, text)| (name.to_owned(), text.to_owned())),
            );
            pages.insert(file.to_owned(), text.to_owned());
            let exists = |path: &Path| {
                pages.contains_key(path.to_str().unwrap())
                    || ["data", "docs/a.py"].iter().any(|there| path == Path::new(there))
            };
            let problems = super::check(&pages, &exists);
            match problem {
                "" => assert_eq!(problems, [""; 0], "{text}"),
                _ => assert!(problems.len() == 1 && problems[0].contains(problem), "{problems:?}"),
            }
        };
        let page = "docs/install.md";
        check("README.md", "see [install](docs/install.md#set-up), [x](https://x.y/z#a) and [data](data)", "");
        check("README.md", "[up](docs/../docs/install.md#with-c2r-on-cuda)", "");
        check(
            "README.md",
            "first\n[cuda](docs/install.md#cuda)",
            "README.md:2: links to docs/install.md#cuda, which has no such",
        );
        check(
            page,
            "# Set-up\nsee ![picture](pictures/grid.png)",
            "docs/install.md:2: links to pictures/grid.png, which is not",
        );
        check(page, "# Set-up\n```text\n[a](b)\n# c\n```\n`#[a](b)` [own](#set-up) [script](a.py)", "");
        check(page, "```text\n# a\n```\n[a](#a)", "which has no such heading");
        check(page, "[data](../data)", "../data, which the book does not have");
        check("docs/more/b.md", "text", "docs/more/b.md: is not in docs/SUMMARY.md");
    }
}
