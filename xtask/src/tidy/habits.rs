//! Phrases that readers stumble over, in pages, help, messages and comments.

/// A phrase in small letters, ` -> ` and what to write instead, on each line.
const HABITS: &str = include_str!("habits.txt");

/// What may follow "is no": these are not nouns.
const NOT_NOUNS: [&str; 12] =
    ["longer", "more", "less", "better", "worse", "larger", "farther", "faster", "later", "different", "other", "one"];

/// The phrases in a page or in source, each with its line and its cure; tests are left out.
pub(super) fn check(file: &str, text: &str) -> Vec<String> {
    let is_prose = [".rs", ".md", ".py"].iter().any(|end| file.ends_with(end));
    if !is_prose || file.split('/').any(|part| part == "tests") {
        return Vec::new();
    }
    let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    // Phrases go across the ends of lines, so lines are joined without the marks of comments and strings.
    let (mut joined, mut starts) = (String::from(" "), Vec::new());
    for line in text.lines() {
        starts.push(joined.len());
        let line = line.trim().trim_end_matches('\\').trim_start_matches(['/', '!', '#', '-', '>']);
        joined.extend([line.trim(), " "]);
    }
    joined.make_ascii_lowercase();
    let is_part = |letter: Option<char>| letter.is_some_and(|letter| letter.is_alphanumeric() || "-_".contains(letter));
    let mut problems = Vec::new();
    let mut report = |at: usize, phrase: &str, cure: &str| {
        let line = starts.partition_point(|start| *start <= at);
        problems.push(format!("{file}:{line}: `{phrase}` reads badly; write {cure}"));
    };
    for (phrase, cure) in HABITS.lines().filter_map(|line| line.split_once(" -> ")) {
        for (at, _) in joined.match_indices(phrase) {
            let around = (joined[..at].chars().next_back(), joined[at + phrase.len()..].chars().next());
            if !is_part(around.0) && !is_part(around.1) {
                report(at, phrase, cure);
            }
        }
    }
    for (at, _) in joined.match_indices(" no ") {
        let before: Vec<&str> = joined[..at].split_whitespace().rev().take(2).collect();
        let noun = joined[at + 4..].split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        let is_verb = before.first().is_some_and(|word| ["is", "are", "was", "were"].contains(word));
        if is_verb
            && !before.get(1).is_some_and(|word| word.ends_with("there"))
            && !noun.is_empty()
            && !NOT_NOUNS.contains(&noun)
        {
            report(at, &format!("{} no {noun}", before[0]), &format!("\"{} not\"", before[0]));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    #[test]
    fn phrases_have_their_line_and_cure() {
        let check = |text: &str, expected: &[&str]| {
            let found = super::check("a.md", text);
            assert_eq!(found.len(), expected.len(), "{text}: {found:?}");
            expected.iter().zip(&found).for_each(|(part, found)| assert!(found.starts_with(part), "{found}"));
        };
        check("one\nIt stands beside\nthat.", &["a.md:2: `stands beside` reads badly; write \"is next to\""]);
        check("/// A second one is\n/// told so.", &["a.md:1: `is told`"]);
        check("\"the same command \\\n   goes on where\"", &["a.md:2: `goes on where`", "a.md:1: `command goes on`"]);
        check("This is no image.", &["a.md:1: `is no image` reads badly; write \"is not\""]);
        check(
            "There are no images, it is no longer so, and somebody is_told is not told-so. There\nare no others.",
            &[],
        );
        check("fine\n#[cfg(test)]\nmod tests {\n// anew\n}", &[]);
    }
}
