//! The table for LaTeX, with the rules of the package `booktabs`.

use super::grid::{Entry, Grid, heading, setting};
use crate::{Table, table::Section};

impl Table {
    /// One `table` environment per section, for `\input` in a document (LaTeX of 2018 or newer) that loads the packages
    /// `booktabs` and `graphicx`. A table that is wider than its line is made smaller. Marks are those of Markdown: bold, an arrow, published numbers in parentheses, `!` outside the tolerance, notes below.
    pub fn latex(&self) -> String {
        let mut out = format!("% {}\n% Needs \\usepackage{{booktabs,graphicx}}.\n", self.title.replace('\n', " "));
        for section in &self.sections {
            out.push_str(&environment(section));
        }
        out.push('\n');
        for line in self.legend("Bold") {
            out.push_str(&format!("% {}\n", line.replace('\n', " ")));
        }
        out
    }
}

fn environment(section: &Section) -> String {
    let grid = Grid::new(section);
    let columns = "r".repeat(grid.header.len().saturating_sub(2));
    let line = |cells: Vec<String>| format!("    {} \\\\\n", cells.join(" & "));
    let mut out = format!(
        "\n\\begin{{table}}\n  \\centering\n  \\caption{{{}. {}}}\n",
        escaped(&heading(section)),
        escaped(&setting(section))
    );
    out.push_str("  \\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n");
    out.push_str(&format!("  \\begin{{tabular}}{{rl{columns}}}\n    \\toprule\n"));
    out.push_str(&line(grid.header.iter().map(|name| escaped(name)).collect()));
    out.push_str("    \\midrule\n");
    for (place, row) in grid.rows.iter().enumerate() {
        if place > 0 && grid.rows[place - 1][0].text != row[0].text {
            out.push_str("    \\addlinespace\n");
        }
        let cell = |entry: &Entry| {
            let text = escaped(&entry.text);
            if entry.better { format!("\\textbf{{{text}}}") } else { text }
        };
        out.push_str(&line(row.iter().map(cell).collect()));
    }
    out.push_str("    \\bottomrule\n  \\end{tabular}}\n");
    let numbered = grid.notes.0.iter().enumerate().map(|(place, note)| format!("[{}] {note}", place + 1));
    let notes: Vec<String> = numbered.chain(section.notes.iter().cloned()).map(|note| escaped(&note)).collect();
    if !notes.is_empty() {
        out.push_str(&format!("\n  \\smallskip\\footnotesize\\raggedright\n  {}\\par\n", notes.join("\\par\n  ")));
    }
    out.push_str("\\end{table}\n");
    out
}

/// Text for LaTeX: what has a meaning there, and what its fonts do not have.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            '\\' => out.push_str("\\textbackslash{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '<' => out.push_str("$<$"),
            '>' => out.push_str("$>$"),
            '±' => out.push_str("$\\pm$"),
            '↓' => out.push_str("$\\downarrow$"),
            '²' => out.push_str("$^2$"),
            'η' => out.push_str("$\\eta$"),
            'τ' => out.push_str("$\\tau$"),
            '–' => out.push_str("--"),
            // A bracket at the start of a row would be an option of the line break before it.
            '[' => out.push_str("{[}"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_to_latex_is_text() {
        assert_eq!(escaped("a_b & 50 % {x} $ #"), r"a\_b \& 50 \% \{x\} \$ \#");
        assert_eq!(escaped(r"\input{x}~^"), r"\textbackslash{}input\{x\}\textasciitilde{}\textasciicircum{}");
        assert_eq!(escaped("C²R, η τ 1.0 ± 0.5 ↓ [1]\n"), r"C$^2$R, $\eta$ $\tau$ 1.0 $\pm$ 0.5 $\downarrow$ {[}1] ");
    }
}
