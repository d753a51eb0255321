//! Which file of a crate uses which other, and the circles among them.
//!
//! A file uses another if it names something that is defined there, however it comes by the name: a name that an ancestor
//! re-exports from a sibling is the sibling's. A parent that re-exports its children without using them uses nothing.
//! Methods are found by no name, so a circle through method calls alone stays unseen.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use proc_macro2::TokenTree;

use super::source::{self, Code, is_punct, word};

/// Longer chains of re-exports than this are taken for none.
const MOST_HOPS: usize = 16;

/// A module, in a file of its own or inside one.
#[derive(Debug, Default)]
struct Module {
    file: PathBuf,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    items: BTreeSet<String>,
    code: Code,
}

/// What a path leads to: a module, something that is defined in it, or another crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Module(usize),
    Item(usize),
    Outside,
}

/// Who uses whom, with the names.
type Edges = BTreeMap<PathBuf, BTreeMap<PathBuf, BTreeSet<String>>>;

/// A problem for each group of files of the crate at `root` (its `lib.rs` or `main.rs`) that use each other.
pub(super) fn circles(root: &Path, name: impl Fn(&Path) -> String) -> anyhow::Result<Vec<String>> {
    let mut tree = Tree::default();
    let folder = root.parent().unwrap_or(Path::new(""));
    tree.read_file(root, folder, None)?;
    Ok(groups(&tree.edges()).iter().map(|(circle, edges)| describe(circle, edges, &name)).collect())
}

/// The shortest circle, then every use inside the group.
fn describe(circle: &[PathBuf], edges: &Edges, name: &dyn Fn(&Path) -> String) -> String {
    let around: Vec<String> = circle.iter().chain(circle.first()).map(|file| name(file)).collect();
    let mut lines = vec![format!("a circle among {} files: {}", edges.len(), around.join(" -> "))];
    for (from, targets) in edges {
        for (to, names) in targets {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            lines.push(format!("    {} -> {}: {}", name(from), name(to), names.join(", ")));
        }
    }
    lines.join("\n")
}

#[derive(Debug, Default)]
struct Tree {
    modules: Vec<Module>,
}

impl Tree {
    /// `folder` is where the files of its child modules lie.
    fn read_file(&mut self, file: &Path, folder: &Path, parent: Option<usize>) -> anyhow::Result<usize> {
        let tokens: Vec<TokenTree> = source::without_tests(source::tokens(file)?).into_iter().collect();
        self.read_module(file, folder, parent, &tokens)
    }

    fn read_module(
        &mut self,
        file: &Path,
        folder: &Path,
        parent: Option<usize>,
        tokens: &[TokenTree],
    ) -> anyhow::Result<usize> {
        let module = self.modules.len();
        self.modules.push(Module { file: file.to_owned(), parent, ..Default::default() });
        let mut own: Vec<TokenTree> = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            let name = word(tokens.get(at + 1)).map(ToString::to_string);
            let next = tokens.get(at + 2);
            match (&tokens[at], name) {
                (TokenTree::Ident(keyword), Some(name)) if keyword == "mod" => {
                    let inner = folder.join(&name);
                    let child = match next {
                        Some(TokenTree::Group(body)) => {
                            let body: Vec<TokenTree> = body.stream().into_iter().collect();
                            self.read_module(file, &inner, Some(module), &body)?
                        }
                        _ => {
                            let flat = inner.with_extension("rs");
                            let file = if flat.is_file() { flat } else { inner.join("mod.rs") };
                            self.read_file(&file, &inner, Some(module))?
                        }
                    };
                    self.modules[module].children.insert(name, child);
                    at += 3;
                    continue;
                }
                (TokenTree::Ident(keyword), Some(name)) if is_item_keyword(&keyword.to_string()) => {
                    self.modules[module].items.insert(name);
                }
                (TokenTree::Ident(keyword), None) if keyword == "macro_rules" && is_punct(tokens.get(at + 1), '!') => {
                    self.modules[module].items.extend(word(next).map(ToString::to_string));
                }
                _ => {}
            }
            own.push(tokens[at].clone());
            at += 1;
        }
        self.modules[module].code.read(&own);
        Ok(module)
    }

    fn is_below(&self, mut module: usize, ancestor: usize) -> bool {
        while let Some(parent) = self.modules[module].parent {
            if parent == ancestor {
                return true;
            }
            module = parent;
        }
        false
    }

    /// What `name` means in `module`, if it is a name of this crate.
    fn lookup(&self, module: usize, name: &str, hops: usize) -> Option<Target> {
        let here = &self.modules[module];
        if let Some(&child) = here.children.get(name) {
            return Some(Target::Module(child));
        }
        if here.items.contains(name) {
            return Some(Target::Item(module));
        }
        let hops = hops.checked_sub(1)?;
        let named = here.code.imports.iter().find(|import| import.name.as_deref() == Some(name));
        if let Some(import) = named {
            return Some(self.resolve(module, &import.path, hops).unwrap_or(Target::Outside));
        }
        here.code.imports.iter().filter(|import| import.name.is_none()).find_map(|all| {
            match self.resolve(module, &all.path, hops)? {
                Target::Module(other) if other != module => self.lookup(other, name, hops),
                _ => None,
            }
        })
    }

    /// What a path in `from` leads to; `None` outside this crate.
    fn resolve(&self, from: usize, path: &[String], hops: usize) -> Option<Target> {
        let hops = hops.checked_sub(1)?;
        let (first, rest) = path.split_first()?;
        let mut target = match first.as_str() {
            "crate" => Target::Module(0),
            "self" => Target::Module(from),
            "super" => Target::Module(self.modules[from].parent?),
            name => self.lookup(from, name, hops)?,
        };
        for segment in rest {
            let Target::Module(module) = target else { break };
            target = match segment.as_str() {
                "super" => Target::Module(self.modules[module].parent?),
                // What is not seen to be defined elsewhere (by a macro, say) is the module's own.
                name => self.lookup(module, name, hops).unwrap_or(Target::Item(module)),
            };
        }
        Some(target)
    }

    fn edges(&self) -> Edges {
        let mut edges = Edges::new();
        for (index, module) in self.modules.iter().enumerate() {
            let mut add = |target: Option<Target>, name: &str| {
                if let Some(Target::Item(other)) = target
                    && self.modules[other].file != module.file
                {
                    let targets = edges.entry(module.file.clone()).or_default();
                    targets.entry(self.modules[other].file.clone()).or_default().insert(name.to_owned());
                }
            };
            for path in &module.code.paths {
                // Of `attack::Attack::new` the type, of `loss::ce` the function.
                let is_type = |segment: &&String| segment.starts_with(char::is_uppercase);
                let name = path.iter().find(is_type).or(path.last());
                add(self.resolve(index, path, MOST_HOPS), name.map_or("", String::as_str));
            }
            for import in &module.code.imports {
                let target = self.resolve(index, &import.path, MOST_HOPS);
                match (&import.name, target) {
                    (Some(name), Some(Target::Item(other))) => {
                        let is_reexport = import.is_public && self.is_below(other, index);
                        if !is_reexport || module.code.words.contains(name) {
                            add(target, name);
                        }
                    }
                    (None, Some(Target::Module(other))) => {
                        let own = |name: &&String| !module.items.contains(*name);
                        for name in module.code.words.iter().filter(own) {
                            add(self.lookup(other, name, MOST_HOPS), name);
                        }
                    }
                    _ => {}
                }
            }
        }
        edges
    }
}

fn is_item_keyword(text: &str) -> bool {
    ["struct", "enum", "fn", "trait", "type", "const", "static", "union"].contains(&text)
}

/// Groups of files that can all reach each other, each with its shortest circle and the uses inside.
fn groups(edges: &Edges) -> Vec<(Vec<PathBuf>, Edges)> {
    let reachable: BTreeMap<&PathBuf, BTreeSet<PathBuf>> =
        edges.keys().map(|file| (file, shortest_paths(edges, file).into_keys().collect())).collect();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for file in edges.keys() {
        let in_circle = |other: &PathBuf| {
            reachable[file].contains(other) && reachable.get(other).is_some_and(|back| back.contains(file))
        };
        if seen.contains(file) || !in_circle(file) {
            continue;
        }
        let group: BTreeSet<PathBuf> = edges.keys().filter(|other| in_circle(other)).cloned().collect();
        let circles = group.iter().filter_map(|start| shortest_paths(edges, start).remove(start));
        let circle = circles.min_by_key(Vec::len).unwrap_or_default();
        let inside = |targets: &BTreeMap<PathBuf, BTreeSet<String>>| {
            targets
                .iter()
                .filter(|(to, _)| group.contains(*to))
                .map(|(to, names)| (to.clone(), names.clone()))
                .collect()
        };
        let inner = group.iter().map(|from| (from.clone(), inside(&edges[from]))).collect();
        seen.extend(group);
        found.push((circle, inner));
    }
    found
}

/// For each file that `start` reaches, itself included if there is a way back, the files on the shortest way from `start`,
/// without the last.
fn shortest_paths(edges: &Edges, start: &Path) -> BTreeMap<PathBuf, Vec<PathBuf>> {
    let mut found: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    let mut queue = std::collections::VecDeque::from([(start.to_owned(), Vec::new())]);
    while let Some((file, mut way)) = queue.pop_front() {
        way.push(file.clone());
        for next in edges.get(&file).into_iter().flat_map(BTreeMap::keys) {
            if !found.contains_key(next) {
                found.insert(next.clone(), way.clone());
                queue.push_back((next.clone(), way.clone()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Circles in a crate of these files.
    fn check(files: &[(&str, &str)]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let name = |path: &Path| path.strip_prefix(folder.path()).unwrap().display().to_string();
        circles(&folder.path().join(files[0].0), name).unwrap()
    }

    #[test]
    fn a_parent_may_reexport_its_children_and_they_may_use_it_not() {
        let child = ("a.rs", "use super::Shared; pub struct A(Shared);");
        assert_eq!(check(&[("lib.rs", "mod a; pub use a::A; pub struct Shared;"), child]), [""; 0]);
        let used = check(&[("lib.rs", "mod a; pub use a::A; pub struct Shared; fn f(a: A) {}"), child]);
        let lines = "a circle among 2 files: a.rs -> lib.rs -> a.rs\n    a.rs -> lib.rs: Shared\n    lib.rs -> a.rs: A";
        assert_eq!(used, [lines]);
        let called = check(&[("lib.rs", "mod a; pub struct Shared; fn f() { a::A::new() }"), child]);
        assert_eq!(called, [lines]);
    }

    #[test]
    fn siblings_see_each_other_through_their_parent() {
        let lib = ("lib.rs", "mod a; mod b; pub use a::A; pub use b::*;");
        let b = ("b.rs", "pub struct B; fn f() { match crate::A::Variant { _ => () } }");
        for using in [
            "use crate::B; struct A(B);",
            "use super::*; struct A(B);",
            "struct A(super::B);",
            "struct A(crate::b::B);",
        ] {
            let problems = check(&[lib, ("a.rs", using), b]);
            assert!(
                problems.len() == 1 && problems[0].starts_with("a circle among 2 files: a.rs -> b.rs -> a.rs"),
                "{using}: {problems:?}"
            );
        }
        assert_eq!(check(&[lib, ("a.rs", "struct A;"), b]), [""; 0]);
        let in_tests = "struct A; #[cfg(test)] mod tests { use super::*; use crate::B; }";
        assert_eq!(check(&[lib, ("a.rs", in_tests), b]), [""; 0]);
    }

    #[test]
    fn modules_under_another_name_and_in_folders_are_followed() {
        let files = [
            ("lib.rs", "mod loss; mod attacks;"),
            ("loss.rs", "pub fn ce() { crate::attacks::pgd::run() }"),
            ("attacks/mod.rs", "pub mod pgd;"),
            ("attacks/pgd.rs", "use crate::loss as terms; pub fn run() { terms::ce() }"),
        ];
        let problems = check(&files);
        assert!(
            problems[0].starts_with("a circle among 2 files: attacks/pgd.rs -> loss.rs -> attacks/pgd.rs"),
            "{problems:?}"
        );
    }

    #[test]
    fn modules_inside_a_file_are_the_file() {
        let lib = "mod a; mod inner { use super::f; pub fn g() { f() } } fn f() { inner::g() }";
        assert_eq!(check(&[("lib.rs", lib), ("a.rs", "fn h() { crate::inner::g() }")]), [""; 0]);
    }

    #[test]
    fn names_of_other_crates_are_none_of_ours() {
        let main = ("main.rs", "mod a; use shared::exit; fn main() { a::run() }");
        assert_eq!(check(&[main, ("a.rs", "use crate::exit; pub fn run() { exit::code() }")]), [""; 0]);
        let lib = ("lib.rs", "mod tar; use tar::unpack; fn f() { unpack() }");
        assert_eq!(
            check(&[lib, ("tar.rs", "use ::tar::Archive; use serde::de; pub fn unpack() { de::x() }")]),
            [""; 0]
        );
    }
}
