//! The page: what is in it, that nothing foreign gets in as markup, and that its numbers are those of the JSON.

use c2r_base::Epsilon;
use c2r_eval::{EmbeddedPicture, Samples, Source, Table, TableOptions};
use c2r_experiment::Selection;
use ndarray::Array1;
use serde_json::Value;

use crate::table::{golden, sources, table};

/// The sources of the table's tests, with an outcome and a margin for each image.
pub(crate) fn with_images() -> Vec<Source> {
    outcomes(sources())
}

/// Gives every source an outcome and a margin for each image.
pub(crate) fn outcomes(mut sources: Vec<Source>) -> Vec<Source> {
    for source in &mut sources {
        let record = &mut source.record;
        let clean = (record.clean_accuracy * 100.0).round() as usize;
        let first = |n: usize| (0..100).map(|image| image < n).collect::<Array1<bool>>();
        let margins = |n: usize| (0..100).map(|image| (n as f32 - image as f32 - 0.5) / 40.0).collect::<Array1<f32>>();
        record.samples = Some(Samples {
            labels: (0..100).map(|image| image % 2).collect(),
            positions: None,
            clean: first(clean),
            margins: Some(margins(clean)),
        });
        for entry in &mut record.attacks {
            entry.survived = Some(first(entry.survivors));
            entry.margins = Some(margins(entry.survivors));
        }
        record.check().unwrap();
    }
    sources
}

/// Another radius for each of the sources.
fn with_radii() -> Vec<Source> {
    let mut all = with_images();
    for mut source in with_images() {
        source.path = source.path.replace("/attack.json", "/eps8/attack.json");
        source.record.attacks.iter_mut().for_each(|entry| entry.epsilon = Epsilon::of_255(8.0));
        all.push(source);
    }
    all
}

fn picture() -> EmbeddedPicture {
    EmbeddedPicture {
        group: "cifar10, 10 images per class".into(),
        caption: "C²R".into(),
        png: vec![1, 2, 3],
        sources: vec!["cifar10/ipc10/c2r/seed0/distill/synthetic.safetensors".into()],
    }
}

/// Headings, table heads and what a screen reader says of drawings and numbers, in order.
fn outline(page: &str) -> String {
    let mut out = String::new();
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        let end = start + rest[start..].find('>').expect("every tag is closed");
        let tag = &rest[start + 1..end];
        let attribute = |name: &str| {
            let from = tag.find(&format!(" {name}=\""))? + name.len() + 3;
            Some(&tag[from..from + tag[from..].find('"')?])
        };
        let text = rest[end + 1..].split('<').next().unwrap_or_default().trim();
        let name = tag.split_whitespace().next().unwrap_or_default();
        match name {
            "h1" | "h2" | "h3" | "th" | "figcaption" | "summary" | "dt" => out.push_str(&format!("{name}: {text}\n")),
            "svg" | "button" | "img" => {
                let said = attribute("aria-label").or(attribute("alt")).unwrap_or(text);
                out.push_str(&format!("{name}: {said}\n"));
            }
            _ => {}
        }
        rest = &rest[end + 1..];
        if ["style", "script"].contains(&name) {
            rest = &rest[rest.find(&format!("</{name}>")).expect("it is closed")..];
        }
    }
    out
}

#[test]
fn the_structure_is_as_accepted() {
    let page = table(&with_radii(), "paper").html(&[picture()]);
    golden("report-outline.txt", &outline(&page));
    assert!(page.starts_with("<!DOCTYPE html><html lang=\"en\">") && page.ends_with("</html>\n"));
    assert!(page.contains("src=\"data:image/png;base64,AQID\""));
}

#[test]
fn equal_results_give_equal_bytes() {
    let page = table(&with_radii(), "quick").html(&[picture()]);
    let mut turned = with_radii();
    turned.reverse();
    assert!(page == table(&turned, "quick").html(&[picture()]));
}

#[test]
fn nothing_is_loaded() {
    let page = table(&with_radii(), "paper").html(&[picture()]);
    assert!(page.contains("default-src &#39;none&#39;") || page.contains("default-src 'none'"));
    for foreign in ["http:", "https:", "url(", "@import", "<link", "<iframe", "srcset", "src=\"//"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    for (attribute, allowed) in [("src=\"", "data:image/png;base64,"), ("href=\"", "#")] {
        for (position, _) in page.match_indices(attribute) {
            assert!(page[position + attribute.len()..].starts_with(allowed), "{}", &page[position..position + 60]);
        }
    }
    // Every link leads somewhere.
    for (position, _) in page.match_indices("href=\"#") {
        let target = page[position + 7..].split('"').next().unwrap();
        assert!(page.contains(&format!("id=\"{target}\"")), "{target}");
    }
    for (position, _) in page.match_indices("popovertarget=\"") {
        let target = page[position + 15..].split('"').next().unwrap();
        assert!(page.contains(&format!("id=\"{target}\"")), "{target}");
    }
}

#[test]
fn hostile_names_are_text() {
    const HOSTILE: [&str; 4] = [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "' onmouseover='alert(1)",
        "</style></title></textarea>&lt;b&gt;&amp;",
    ];
    let clean = table(&with_images(), "quick").html(&[picture()]);
    let count = |page: &str, what: &str| page.matches(what).count();
    for hostile in HOSTILE {
        let mut sources = with_images();
        for source in &mut sources {
            let subject = &mut source.record.subject;
            let replaced = subject.method == "c2r";
            for text in [&mut subject.dataset, &mut subject.protocol, &mut subject.model, &mut subject.profile] {
                text.push_str(hostile);
            }
            if replaced {
                subject.method.push_str(hostile);
            }
            subject.extra_storage = hostile.into();
            subject.data_sha256.push_str(hostile);
            subject.notes.push(hostile.into());
            let record = &mut source.record;
            record.attacks[0].attack.push_str(hostile);
            record.attacks[0].flags.push(hostile.into());
            record.attacks[0].config = serde_json::json!({ hostile: hostile });
            record.test_sha256.push_str(hostile);
            record.argv.push(hostile.into());
            record.versions.insert(hostile.into(), hostile.into());
            source.path = format!("{hostile}/{}", source.path);
            if let Some(run) = &mut source.training {
                run.config = serde_json::json!({ hostile: hostile });
                run.argv.push(hostile.into());
            }
        }
        let mut table =
            Table::build(&sources, &TableOptions { baseline: Some("class-mean"), ..TableOptions::default() }).unwrap();
        table.title.push_str(hostile);
        let mut picture = picture();
        for text in [&mut picture.group, &mut picture.caption, &mut picture.sources[0]] {
            text.push_str(hostile);
        }
        let page = table.html(&[picture]);
        for tag in ["<script", "</script", "<style", "</style", "<title>", "</title", "<img", "</textarea"] {
            assert_eq!(count(&page, tag), count(&clean, tag), "{tag} with {hostile}");
        }
        // Outside of what is escaped no attribute of the kind is there.
        for tag in page.split('<').filter_map(|part| part.split('>').next()) {
            let outside: String = tag.split('"').step_by(2).collect();
            assert!(!outside.contains("onerror") && !outside.contains("onmouseover"), "{tag}");
        }
        let tex = table.latex();
        assert!(!tex.lines().any(|line| !line.starts_with('%') && line.contains("&lt;b&gt;&amp;")), "{tex}");
    }
}

/// Everything between tags, without styles, scripts and drawings.
fn visible(page: &str) -> String {
    let mut text = String::new();
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        text.push_str(&rest[..start]);
        text.push(' ');
        let end = start + rest[start..].find('>').unwrap();
        let name = rest[start + 1..end].split_whitespace().next().unwrap_or_default().to_owned();
        rest = &rest[end + 1..];
        if ["style", "script", "svg"].contains(&name.as_str()) {
            rest = &rest[rest.find(&format!("</{name}>")).unwrap()..];
        }
    }
    text
}

fn numbers(value: &Value, into: &mut Vec<f64>) {
    match value {
        Value::Number(number) => into.extend(number.as_f64()),
        Value::Array(values) => values.iter().for_each(|value| numbers(value, into)),
        Value::Object(values) => values.values().for_each(|value| numbers(value, into)),
        _ => {}
    }
}

#[test]
fn every_number_of_the_page_is_in_the_json() {
    let table = table(&with_radii(), "paper");
    let mut known = vec![c2r_eval::stats::SIGNIFICANT];
    numbers(&serde_json::from_str(&table.json()).unwrap(), &mut known);
    let page = visible(&table.html(&[picture()]));
    let words = page.split(|c: char| !(c.is_ascii_alphanumeric() || ".-".contains(c)));
    let mut n_checked = 0;
    for word in words.map(|word| word.trim_end_matches('.')).filter(|word| word.contains('.')) {
        // Of `arXiv:0000.00000`.
        if word.starts_with("00") {
            continue;
        }
        let Ok(shown) = word.parse::<f64>() else { continue };
        let decimals = word.len() - word.find('.').unwrap() - 1;
        let same =
            |number: &f64| format!("{number:.decimals$}").trim_start_matches('-') == word.trim_start_matches('-');
        assert!(known.iter().any(same), "{shown} ({word}) is not in the JSON");
        n_checked += 1;
    }
    assert!(n_checked > 300, "{n_checked}");
}

#[test]
fn partial_results_say_what_is_missing() {
    // One seed, one method, no outcomes, no pictures.
    let all = sources();
    let page = table(&all[3..4], "quick").html(&[]);
    assert!(page.contains("id=\"missing\"") && page.contains("9 of 10 rows of the grid"), "{page}");
    assert!(page.contains("1 of 3") && !page.contains("id=\"images\"") && !page.contains("id=\"radii\""));
    assert!(!page.contains("Margins under") && !page.contains("Accuracy of each class"));
    // Only the reference, no experiment.
    let page = Table::build(&all[..1], &TableOptions::default()).unwrap().html(&[]);
    assert!(page.contains("undistilled") && !page.contains("Drop rate against images per class"), "{page}");
    // A drawing of one value has finite places.
    assert!(!["NaN", "\"inf", ",inf", "-inf"].iter().any(|odd| page.contains(odd)), "{page}");
}

#[test]
fn more_methods_than_colours_are_drawn_in_parts() {
    let mut all = with_images();
    let of_c2r: Vec<Source> = all.iter().filter(|source| source.record.subject.method == "c2r").cloned().collect();
    for place in 0..7 {
        for mut source in of_c2r.clone() {
            source.record.subject.method = format!("method{place}");
            source.path = format!("{place}/{}", source.path);
            all.push(source);
        }
    }
    let page = Table::build(&all, &TableOptions::default()).unwrap().html(&[]);
    let part = |part: usize| {
        let start = page.find(&format!("Drop rate against images per class (part {part} of 2)")).unwrap();
        &page[start..start + page[start..].find("</figure>").unwrap()]
    };
    for place in 0..7 {
        let label = format!("method{place}");
        assert!(part(1).contains(&label) != part(2).contains(&label), "{label} is drawn once");
    }
    for part in [part(1), part(2)] {
        assert!(part.contains("full"), "the reference is in both: {part}");
        let legend = &part[..part.find("</ul>").unwrap()];
        let inks: Vec<&str> = legend
            .split("class=\"key\"")
            .skip(1)
            .filter_map(|key| key.split("stroke=\"#").nth(1)?.split('"').next())
            .collect();
        let different: std::collections::BTreeSet<&str> = inks.iter().copied().collect();
        assert!(inks.len() > 1 && different.len() == inks.len(), "no colour is there twice: {inks:?}");
    }
    assert!(!table(&with_images(), "quick").html(&[]).contains("(part "), "few methods need no parts");
}

#[test]
fn what_the_test_images_chose_stands_apart_and_is_marked() {
    let mut sources = with_images();
    for mut source in with_images() {
        source.path = format!("best/{}", source.path);
        source.record.subject.selection = Selection::BestTest;
        source.record.subject.notes = vec!["best-test: chosen".into()];
        sources.push(source);
    }
    let table = table(&sources, "paper");
    assert_eq!(table.sections.len(), 4);
    assert_eq!(table.sections[0].selection, Selection::Last);
    let chosen = &table.sections[1];
    assert_eq!((chosen.protocol.as_str(), chosen.selection), ("natural", Selection::BestTest));
    let pgd = chosen.rows[2].cell("pgd").unwrap().published.as_ref().unwrap();
    assert!(pgd.outside_tolerance.is_none() && pgd.caveat.contains("best-test"), "{pgd:?}");
    assert_eq!(chosen.rows[2].planned_runs, None, "the grid plans last steps");
    for text in [table.markdown(), table.latex(), table.html(&[])] {
        assert!(text.contains("step chosen on the TEST images (best-test: optimistic)"), "{text}");
    }
    let csv = table.csv().unwrap();
    for line in csv.lines().skip(1) {
        let of_best = line.contains("best/");
        assert!(line.contains(",best-test,") == of_best && line.contains("best-test: chosen") == of_best, "{line}");
    }
    let json: Value = serde_json::from_str(&table.json()).unwrap();
    assert_eq!(json["sections"][1]["selection"], "best-test");
}

#[test]
fn radii_of_other_images_are_another_curve() {
    let title = "Accuracy under PGD against the radius";
    let curves = |sources: &[Source]| table(sources, "quick").html(&[]).matches(title).count();
    let mut sources = with_radii();
    let together = curves(&sources);
    assert!(together > 0);
    for source in sources.iter_mut().filter(|source| source.path.contains("eps8")) {
        source.record.held_out = true;
    }
    assert_eq!(curves(&sources), 0, "each radius is of other images");
}

#[test]
fn margins_by_hand() {
    let table = table(&with_images(), "quick");
    let section = &table.sections[0];
    let row = &section.rows[1];
    // PGD 20, 22, 21 survivors: margins (20 - i - 0.5) / 40 for i in 0..100; the median is that of i = 49.5.
    let median = row.cell("margin-q50-pgd").unwrap();
    let expected = [20.0, 22.0, 21.0].map(|n| (n - 50.0) / 40.0);
    for (value, expected) in median.values.iter().zip(expected) {
        assert!((value.unwrap() - expected).abs() < 1e-6, "{value:?}, expected {expected}");
    }
    assert!(median.comparison.is_none() && median.caveat.contains("logits"));
    let counts = &row.margin_counts["pgd"];
    assert_eq!(counts.iter().sum::<usize>(), 300, "three runs of 100 images");
    let zero = section.margin_edges.iter().position(|edge| *edge == 0.0).expect("an edge at 0");
    assert_eq!(counts[zero..].iter().sum::<usize>(), 20 + 22 + 21, "right of 0 are the survivors");
    assert_eq!(row.margin_counts.keys().collect::<Vec<_>>(), ["clean", "fgsm", "pgd"]);
}
