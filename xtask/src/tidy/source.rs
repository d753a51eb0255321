//! Rust source as tokens: without its tests, and the paths and `use` declarations in it.

use std::{collections::BTreeSet, path::Path};

use anyhow::Context;
use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};

/// The tokens of a file.
pub(super) fn tokens(path: &Path) -> anyhow::Result<TokenStream> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.parse().map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))
}

/// The same without items under `#[cfg(test)]`, at any depth.
pub(super) fn without_tests(tokens: TokenStream) -> TokenStream {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut kept = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        if is_punct(Some(token), '#') && is_test_only(tokens.get(at + 1)) {
            at = end_of_item(&tokens, at);
            continue;
        }
        kept.push(match token {
            TokenTree::Group(group) => proc_macro2::Group::new(group.delimiter(), without_tests(group.stream())).into(),
            other => other.clone(),
        });
        at += 1;
    }
    kept.into_iter().collect()
}

/// `[cfg(test)]` or `[cfg(all(test, ...))]`.
fn is_test_only(token: Option<&TokenTree>) -> bool {
    let Some(TokenTree::Group(attribute)) = token else { return false };
    let text: String = attribute.stream().to_string().split_whitespace().collect();
    text == "cfg(test)" || text.starts_with("cfg(all(test,")
}

/// The position after the item whose attributes begin at `at`.
fn end_of_item(tokens: &[TokenTree], mut at: usize) -> usize {
    while is_punct(tokens.get(at), '#') {
        at += 2;
    }
    let is_use = tokens[at..].iter().take(3).any(|token| is_word(Some(token), "use"));
    while let Some(token) = tokens.get(at) {
        at += 1;
        let is_body = matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace);
        if is_punct(Some(token), ';') || is_punct(Some(token), ',') || (is_body && !is_use) {
            break;
        }
    }
    at
}

pub(super) fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

pub(super) fn is_word(token: Option<&TokenTree>, wanted: &str) -> bool {
    matches!(token, Some(TokenTree::Ident(ident)) if ident == wanted)
}

fn is_colons(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens.get(at), ':') && is_punct(tokens.get(at + 1), ':')
}

pub(super) fn word(token: Option<&TokenTree>) -> Option<&Ident> {
    if let Some(TokenTree::Ident(ident)) = token { Some(ident) } else { None }
}

/// A name that a `use` brings into scope, or `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Import {
    /// From its first segment to its last; without the `*`.
    pub(super) path: Vec<String>,
    /// `None` of a `*`.
    pub(super) name: Option<String>,
    /// `pub` in any form.
    pub(super) is_public: bool,
}

/// What is written in some code, braces, parentheses and macros included.
#[derive(Debug, Default)]
pub(super) struct Code {
    pub(super) imports: Vec<Import>,
    /// Paths of two segments or more outside `use`.
    pub(super) paths: BTreeSet<Vec<String>>,
    /// Single words outside `use` that may be names of items.
    pub(super) words: BTreeSet<String>,
}

impl Code {
    /// Adds what stands in `tokens`.
    pub(super) fn read(&mut self, tokens: &[TokenTree]) {
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => {
                    self.read(&group.stream().into_iter().collect::<Vec<_>>());
                    at += 1;
                }
                // Not the `use<'a>` of a type.
                TokenTree::Ident(ident) if ident == "use" && !is_punct(tokens.get(at + 1), '<') => {
                    let end = (at..tokens.len()).find(|end| is_punct(tokens.get(*end), ';')).unwrap_or(tokens.len());
                    let is_public = is_word(before(tokens, at, 1), "pub") || is_word(before(tokens, at, 2), "pub");
                    imports(&tokens[at + 1..end], &[], is_public, &mut self.imports);
                    at = end;
                }
                TokenTree::Ident(first) => {
                    let mut path = vec![first.to_string()];
                    let mut next = at + 1;
                    while is_colons(tokens, next)
                        && let Some(segment) = word(tokens.get(next + 2))
                    {
                        path.push(segment.to_string());
                        next += 3;
                    }
                    let continues = is_punct(before(tokens, at, 1), ':') && is_punct(before(tokens, at, 2), ':');
                    let is_member = is_punct(before(tokens, at, 1), '.');
                    if path.len() > 1 && !continues {
                        self.paths.insert(path);
                    } else if !is_member && !continues {
                        self.words.extend(path);
                    }
                    at = next;
                }
                _ => at += 1,
            }
        }
    }
}

fn before(tokens: &[TokenTree], at: usize, by: usize) -> Option<&TokenTree> {
    tokens.get(at.checked_sub(by)?)
}

/// The leaves of a `use` tree, `a::{b, c as d, e::*}`.
fn imports(tokens: &[TokenTree], prefix: &[String], is_public: bool, found: &mut Vec<Import>) {
    for tree in tokens.split(|token| is_punct(Some(token), ',')) {
        let mut path = prefix.to_vec();
        let mut alias = None;
        let mut is_leaf = !tree.is_empty();
        for (at, token) in tree.iter().enumerate() {
            match token {
                TokenTree::Group(group) => {
                    imports(&group.stream().into_iter().collect::<Vec<_>>(), &path, is_public, found);
                    is_leaf = false;
                }
                TokenTree::Ident(ident) if ident == "as" => {
                    alias = word(tree.get(at + 1)).map(ToString::to_string);
                    break;
                }
                // `self` at the end of a group is the group's own path.
                TokenTree::Ident(ident) if ident == "self" && !path.is_empty() => {}
                TokenTree::Ident(ident) => path.push(ident.to_string()),
                TokenTree::Punct(punct) if punct.as_char() == '*' => {
                    found.push(Import { path: path.clone(), name: None, is_public });
                    is_leaf = false;
                }
                _ => {}
            }
        }
        if is_leaf {
            let name = alias.or_else(|| path.last().cloned());
            found.push(Import { path, name, is_public });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Code {
        let mut code = Code::default();
        code.read(&without_tests(text.parse().unwrap()).into_iter().collect::<Vec<_>>());
        code
    }

    #[test]
    fn use_trees_have_their_leaves() {
        let code = read("pub(crate) use crate::{a::{self, B as C}, d::*}; use std::fmt;");
        let import = |path: &str, name: Option<&str>, is_public| Import {
            path: path.split("::").map(String::from).collect(),
            name: name.map(String::from),
            is_public,
        };
        assert_eq!(
            code.imports,
            [
                import("crate::a", Some("a"), true),
                import("crate::a::B", Some("C"), true),
                import("crate::d", None, true),
                import("std::fmt", Some("fmt"), false),
            ]
        );
    }

    #[test]
    fn paths_are_found_in_macros_and_types_and_not_in_text() {
        let code =
            read("fn f() -> Vec<crate::a::B> { assert!(x.y::<super::c::D>() > E, \"crate::no::Z\"); } // crate::n::Z");
        let paths: Vec<String> = code.paths.iter().map(|path| path.join("::")).collect();
        assert_eq!(paths, ["crate::a::B", "super::c::D"]);
        assert!(code.words.contains("E") && !code.words.contains("y"), "{:?}", code.words);
    }

    #[test]
    fn tests_are_left_out_and_what_follows_them_is_not() {
        let code = read(
            "#[cfg(test)] use crate::{a::A, b::B}; #[cfg(test)] #[allow(x)] mod tests { fn f() { c::C } } \
             impl X { #[cfg(test)] fn g() { d::D } fn h() { e::E } } #[cfg(all(test, unix))] fn i() { f::F }",
        );
        assert!(code.imports.is_empty(), "{:?}", code.imports);
        assert_eq!(code.paths, BTreeSet::from([vec!["e".into(), "E".into()]]));
    }
}
