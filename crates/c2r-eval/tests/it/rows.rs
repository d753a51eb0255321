//! What may stand in one row of a table: what is refused, what gets a note, and what becomes a row of its own.

use std::path::PathBuf;

use c2r_base::Epsilon;
use c2r_eval::{Alike, AttackRecord, EvalError, RunInfo, Source, Table, TableOptions, collect};
use c2r_experiment::{Subset, SubsetOrder};
use serde_json::json;

use crate::{
    report::with_images,
    table::{close, experiment, source, sources, table},
};

/// The parser of experiment files is not [`Epsilon`]'s, which needs libtorch.
#[test]
fn radii_of_experiment_files_are_those_of_attacks() {
    for text in
        ["2/255", " 8 / 255", "0.5", "1e-3", "0", "-1", "8/0", "-2/-255", "0/255", "2/-255", "1/2/3", "nan", "inf", ""]
    {
        let radius = text.parse::<Epsilon>().ok().map(Epsilon::value);
        assert_eq!(c2r_experiment::radius(text), radius, "{text}");
    }
}

fn refusal(spoil: impl Fn(&mut Vec<Source>)) -> String {
    let mut sources = sources();
    spoil(&mut sources);
    Table::build(&sources, &TableOptions::default()).unwrap_err().to_string()
}

#[test]
fn what_cannot_be_compared_is_refused_by_name() {
    let check = |part: &str, spoil: &dyn Fn(&mut Vec<Source>)| {
        let message = refusal(spoil);
        assert!(message.contains(part) && message.contains("attack.json"), "{message}");
    };
    let c2r = |sources: &mut Vec<Source>, change: fn(&mut AttackRecord)| change(&mut sources[7].record);
    check("the judged images (SHA-256, positions, notes) differ (cd and ef)", &|s| {
        c2r(s, |r| r.test_sha256 = "ef".into())
    });
    check("real training data (SHA-256) differ (ab and ef)", &|s| c2r(s, |r| r.subject.data_sha256 = "ef".into()));
    check("natural have different numbers of test images", &|s| c2r(s, |r| r.n = 50));
    // Also where both are of one network, whose clean accuracies then differ.
    let message = refusal(|s| {
        let mut fewer = s[6].clone();
        fewer.path = "few/attack.json".into();
        (fewer.record.n, fewer.record.clean_accuracy) = (50, 0.46);
        fewer.record.attacks.iter_mut().for_each(|entry| entry.attack += "-2");
        s.push(fewer);
    });
    assert!(message.contains("\n  50 images: few/attack.json\n  100 images: cifar10/all/full/seed0/"), "{message}");
    assert!(message.ends_with(" and 6 more") && message.contains("50 images: "), "{message}");
    let message = refusal(|s| {
        let mut held_out = s[6].clone();
        held_out.path = "held-out/attack.json".into();
        (held_out.record.test_sha256, held_out.record.clean_accuracy) = ("ef".into(), 0.46);
        held_out.record.notes = vec!["cifar10 training, held out".into()];
        held_out.record.attacks.iter_mut().for_each(|entry| entry.attack += "-2");
        s.push(held_out);
    });
    assert!(
        message
            .contains("the judged images (SHA-256, positions, notes) differ (cd and ef; cifar10 training, held out)"),
        "{message}"
    );
    check("numbers of training images differ (100 and 400)", &|s| c2r(s, |r| r.subject.n_images = 400));
    check("extra storage differ", &|s| c2r(s, |r| r.subject.extra_storage = "labels".into()));
    check("parameters of an attack differ", &|s| c2r(s, |r| r.attacks[1].config = json!({ "steps": 3 })));
    check("hold the same measurement (fgsm of c2r on cifar10, natural, training seed 0)", &|s| {
        let mut again = s[6].clone();
        again.path = "copy/attack.json".into();
        s.push(again);
    });
    check(
        "was measured on another network than cifar10/ipc10/c2r/seed0/natural/attack.json (SHA-256 01... and 02...)",
        &|s| {
            let mut again = s[6].clone();
            again.path = "more/attack.json".into();
            again.record.attacks.iter_mut().for_each(|entry| entry.attack += "-2");
            (s[6].record.model_sha256, again.record.model_sha256) = (Some("02".into()), Some("01".into()));
            s.push(again);
        },
    );
    check("clean accuracies of the same run differ (0.42 and 0.41)", &|s| {
        let mut again = s[6].clone();
        again.path = "more/attack.json".into();
        again.record.clean_accuracy = 0.41;
        s.push(again);
    });
}

/// As many test images, but not the same ones.
#[test]
fn a_sample_and_the_first_images_do_not_mix() {
    let drawn = |positions: std::ops::Range<usize>| {
        let mut sources = with_images();
        for source in &mut sources {
            let record = &mut source.record;
            record.subset = Some(Subset { n: 100, of: 200, order: SubsetOrder::ClassBalanced, seed: Some(0) });
            record.samples.as_mut().unwrap().positions = Some(positions.clone().collect());
            record.check().unwrap();
        }
        sources
    };
    let build = |sources: &[Source]| Table::build(sources, &TableOptions::default());
    let table = build(&drawn(50..150)).unwrap();
    let how = "100 of 200 test images, class-balanced sample, seed 0";
    assert!(table.sections[0].subset.as_ref().is_some_and(|subset| subset.describe("test images") == how));
    for text in [table.markdown(), table.csv().unwrap(), table.latex(), table.html(&[])] {
        assert!(text.contains(how), "{text}");
    }
    for others in [with_images(), drawn(0..100), drawn(51..151)] {
        let mut mixed = drawn(50..150);
        mixed[7] = others[7].clone();
        let error = build(&mixed).unwrap_err();
        let what = "the judged images (SHA-256, positions, notes)";
        assert!(matches!(&error, EvalError::Mixed { what: differ, .. } if *differ == what), "{error:?}");
    }
}

/// Held-out training images are not called test images.
#[test]
fn a_table_says_that_its_images_are_held_out() {
    for subset in [None, Some(Subset { n: 100, of: 40_000, order: SubsetOrder::ClassBalanced, seed: Some(0) })] {
        let mut sources = with_images();
        for source in &mut sources {
            source.record.held_out = true;
            source.record.subset = subset.clone();
            source.record.samples.as_mut().unwrap().positions = subset.as_ref().map(|_| (0..100).collect());
            source.record.check().unwrap();
        }
        let table = Table::build(&sources, &TableOptions::default()).unwrap();
        for text in [table.markdown(), table.latex(), table.html(&[])] {
            assert!(text.contains("held-out training images") && !text.contains("100 test images"), "{text}");
            assert!(!text.contains("40000 test images"), "{text}");
        }
    }
    // Where only some tables are about them, the legend does not speak for all.
    let mut sources = with_images();
    for source in sources.iter_mut().filter(|source| source.record.subject.protocol == "natural") {
        source.record.held_out = true;
    }
    let text = Table::build(&sources, &TableOptions::default()).unwrap().markdown();
    assert!(text.contains("Accuracies are percentages of the images that each table names"), "{text}");
}

/// A source of a set that `c2r import` made: its real images are not known, its seed is 0.
fn elsewhere(seed: u64, images: Option<&str>, clean: usize) -> Source {
    let mut source = source("theirs", "natural", seed, clean, 25, 24);
    let subject = &mut source.record.subject;
    (subject.profile, subject.data_sha256, subject.distill_seed) = (String::new(), String::new(), Some(0));
    source.distillation = None;
    match images {
        Some(images) => source.training.as_mut().unwrap().config["images_sha256"] = json!(images),
        None => source.training = None,
    }
    source
}

#[test]
fn a_set_of_unknown_origin_stands_beside_any_with_a_note() {
    let note = "distilled elsewhere; the real images it was distilled from are unknown";
    // First by path, so that the known ones are not compared with it.
    let mut theirs = elsewhere(0, Some("12"), 42);
    theirs.path = "a/attack.json".into();
    let mut sources = sources();
    sources.push(theirs);
    let made = table(&sources, "quick");
    let noted = |table: &Table| -> Vec<String> {
        let rows = table.sections.iter().flat_map(|section| &section.rows);
        rows.filter(|row| row.notes.iter().any(|found| found.starts_with(note))).map(|row| row.label.clone()).collect()
    };
    assert_eq!(noted(&made), ["theirs"]);
    let row = made.sections[0].rows.iter().find(|row| row.method == "theirs").unwrap();
    assert!(row.data_sha256.is_empty() && row.notes.iter().any(|found| found == note), "{:?}", row.notes);
    for text in [made.markdown(), made.terminal(Some(200)), made.latex(), made.html(&[]), made.csv().unwrap()] {
        assert!(text.contains(note), "{text}");
    }
    assert!(made.html(&[]).contains("training data unknown"));
    assert!(noted(&table(&self::sources(), "quick")).is_empty());

    // Two known ones are refused as before, and one unknown run of several is counted.
    sources[7].record.subject.data_sha256 = "ef".into();
    let message = Table::build(&sources, &TableOptions::default()).unwrap_err().to_string();
    assert!(message.contains("real training data (SHA-256) differ (ab and ef)"), "{message}");
    sources[7].record.subject.data_sha256 = String::new();
    let made = table(&sources, "quick");
    let row = made.sections[0].rows.iter().find(|row| row.method == "c2r").unwrap();
    assert!(row.notes.contains(&format!("{note} (1 of 3 runs)")) && row.data_sha256 == "ab", "{:?}", row.notes);
}

#[test]
fn different_sets_under_one_name_are_named() {
    let two = |mut a: Source, mut b: Source| {
        (a.path, b.path) = ("a/attack.json".into(), "b/attack.json".into());
        Table::build(&[a, b], &TableOptions::default())
    };
    let refused = |a: Source, b: Source, expected: Alike, parts: &[&str]| {
        let error = two(a, b).unwrap_err();
        let message = error.to_string();
        assert!(
            message
                .starts_with(&format!("a/attack.json and b/attack.json come from different {expected} under one name")),
            "{message}"
        );
        assert!(matches!(error, EvalError::OneName { alike, .. } if alike == expected), "{message}");
        for part in parts {
            assert!(message.contains(part), "{message}\nlacks {part}");
        }
    };
    let parts = ["(theirs, 10 images per class, the same seeds)"];
    let images = "the training images (SHA-256) differ (12 and 34)";
    refused(
        elsewhere(0, Some("12"), 42),
        elsewhere(0, Some("34"), 40),
        Alike::ImportedSets,
        &[&parts[..], &[images]].concat(),
    );
    // Also where the accuracies are the same, and where each file has attacks of its own.
    refused(elsewhere(0, Some("12"), 42), elsewhere(0, Some("34"), 42), Alike::ImportedSets, &[images]);
    let (mut fgsm, mut pgd) = (elsewhere(0, Some("12"), 42), elsewhere(0, Some("34"), 42));
    fgsm.record.attacks.truncate(1);
    pgd.record.attacks.remove(0);
    refused(fgsm, pgd, Alike::ImportedSets, &[images]);
    // Without a run.json the accuracies show it.
    let accuracies = "the clean accuracies differ (0.42 and 0.4)";
    refused(elsewhere(0, None, 42), elsewhere(0, None, 40), Alike::ImportedSets, &[&parts[..], &[accuracies]].concat());
    // What c2r distilled has other ways to be told apart.
    let ours = |images: &str| {
        let mut ours = source("c2r", "natural", 0, 42, 25, 24);
        ours.training.as_mut().unwrap().config["images_sha256"] = json!(images);
        ours
    };
    refused(ours("12"), ours("34"), Alike::Sets, &[images]);

    // Networks of others have no set that c2r knows: their files tell them apart, also where the accuracies are the same.
    let network = |sha256: Option<&str>, clean: usize| {
        let mut network = elsewhere(0, None, clean);
        (network.record.subject.distill_seed, network.record.model_sha256) = (None, sha256.map(str::to_owned));
        network
    };
    let files = "the networks (SHA-256 of their files) differ (12 and 34)";
    refused(network(Some("12"), 42), network(Some("34"), 42), Alike::Networks, &[files]);
    refused(network(None, 42), network(None, 40), Alike::Networks, &[accuracies]);
    let message = two(network(Some("12"), 42), network(Some("12"), 42)).unwrap_err().to_string();
    assert!(message.contains("hold the same measurement"), "{message}");

    // One set is none of that: the same run twice, and two trainings of it.
    let message = two(elsewhere(0, Some("12"), 42), elsewhere(0, Some("12"), 42)).unwrap_err().to_string();
    assert!(message.contains("hold the same measurement"), "{message}");
    let message = two(elsewhere(0, Some("12"), 42), elsewhere(0, Some("12"), 40)).unwrap_err().to_string();
    assert!(message.contains("the clean accuracies of the same run differ"), "{message}");
    let notes = |a: Source, b: Source| two(a, b).unwrap().sections[0].rows[0].notes.join("\n");
    assert!(notes(elsewhere(0, Some("12"), 42), elsewhere(1, Some("12"), 40)).contains("share a distilled set"));
    let text = notes(elsewhere(0, Some("12"), 42), elsewhere(1, Some("34"), 40));
    assert!(text.contains("its runs are of 2 DIFFERENT sets under one name") && !text.contains("share"), "{text}");
}

#[test]
fn attacks_of_one_run_may_lie_in_several_files() {
    let mut split = sources();
    for position in 0..split.len() {
        let mut second = split[position].clone();
        split[position].record.attacks.truncate(1);
        second.record.attacks.remove(0);
        second.path = second.path.replace("/attack.json", "/pgd/attack.json");
        split[position].record.argv.extend(["--attack", "fgsm"].map(str::to_owned));
        second.record.argv.extend(["--attack", "pgd"].map(str::to_owned));
        split.push(second);
    }
    let (whole, parts) = (table(&sources(), "quick"), table(&split, "quick"));
    for (a, b) in whole.sections.iter().zip(&parts.sections) {
        for (a, b) in a.rows.iter().zip(&b.rows) {
            let summaries = |row: &c2r_eval::table::Row| row.cells.iter().map(|cell| cell.summary).collect::<Vec<_>>();
            assert_eq!(summaries(a), summaries(b));
        }
    }
    let pgd = parts.sections[0].rows[2].cell("pgd").unwrap();
    assert_eq!(pgd.sources[0], "cifar10/ipc10/c2r/seed0/natural/pgd/attack.json");
    let run = &parts.sections[0].rows[2].runs[0];
    assert_eq!(
        run.files,
        ["attack.json", "pgd/attack.json"].map(|file| format!("cifar10/ipc10/c2r/seed0/natural/{file}"))
    );
    assert_eq!(run.attack_argvs, [["c2r", "attack", "--attack", "fgsm"], ["c2r", "attack", "--attack", "pgd"]]);
    let page = parts.html(&[]);
    for (file, argv) in run.files.iter().zip(["c2r attack --attack fgsm", "c2r attack --attack pgd"]) {
        assert!(page.contains(&format!("<p><code>{file}</code></p><pre>{argv}</pre>")), "{file}, {argv}");
    }
}

/// As many images are right without an attack, but not the same ones.
#[test]
fn files_of_one_run_agree_about_every_clean_image() {
    let mut sources = with_images();
    let mut second = sources[7].clone();
    second.path = "other/attack.json".into();
    sources[7].record.attacks.truncate(1);
    second.record.attacks.remove(0);
    sources.push(second.clone());
    Table::build(&sources, &TableOptions::default()).unwrap();
    let clean = &mut second.record.samples.as_mut().unwrap().clean;
    (clean[3], clean[90]) = (false, true);
    *sources.last_mut().unwrap() = second;
    let message = Table::build(&sources, &TableOptions::default()).unwrap_err().to_string();
    let differ = "(image 3 is classified correctly and image 3 is classified wrongly)";
    assert!(message.contains(differ) && message.contains("other/attack.json"), "{message}");
}

#[test]
fn a_missing_attack_leaves_no_mean() {
    let mut sources = sources();
    sources[8].record.attacks.truncate(1);
    let table = table(&sources, "quick");
    let row = &table.sections[0].rows[2];
    assert_eq!(row.cell("pgd").unwrap().values, [Some(24.0), Some(26.0), None]);
    assert_eq!(row.cell("mean-robust").unwrap().summary.n, 2);
    assert!(table.markdown().contains("2 of 3 runs"), "{}", table.markdown());
}

#[test]
fn radii_and_architectures_are_never_mixed() {
    let mut sources = sources();
    for source in &mut sources[3..6] {
        source.record.attacks.iter_mut().for_each(|entry| entry.epsilon = Epsilon::of_255(8.0));
    }
    sources[6].record.subject.model = "ResNet-18".into();
    let table = table(&sources, "quick");
    let sections: Vec<(String, String, usize)> = table
        .sections
        .iter()
        .map(|section| (section.model.clone(), format!("{} {}", section.protocol, section.epsilon), section.rows.len()))
        .collect();
    let expected = [
        ("ConvNet-D3-W128-IN", "natural 2/255", 2),
        ("ConvNet-D3-W128-IN", "natural 8/255", 1),
        ("ConvNet-D3-W128-IN", "pgd-at 2/255", 1),
        ("ResNet-18", "natural 2/255", 1),
    ];
    assert_eq!(sections, expected.map(|(model, rest, rows)| (model.to_owned(), rest.to_owned(), rows)));
    let published: Vec<bool> = table.sections[1].rows[0].cells.iter().map(|cell| cell.published.is_some()).collect();
    assert!(published.iter().all(|published| !published), "published numbers are at 2/255");
}

#[test]
fn published_numbers_do_not_judge_another_architecture() {
    let mut sources = sources();
    for source in &mut sources {
        source.record.subject.model = "ResNet18-IN".into();
    }
    let table = table(&sources, "paper");
    assert_eq!(table.outside_tolerance().count(), 0);
    let cell = table.sections[0].rows[2].cell("pgd").unwrap();
    let published = cell.published.as_ref().unwrap();
    assert!(published.outside_tolerance.is_none() && published.caveat.contains("ResNet18-IN"), "{published:?}");
    assert!(table.sections[0].rows.iter().all(|row| row.planned_runs.is_none()));
    assert_eq!(table.missing.len(), 3, "none of these rows is the grid's");
}

#[test]
fn published_numbers_do_not_judge_held_out_images() {
    let mut sources = sources();
    sources.iter_mut().for_each(|source| source.record.held_out = true);
    let table = table(&sources, "paper");
    assert_eq!(table.outside_tolerance().count(), 0);
    let cell = table.sections[0].rows[2].cell("pgd").unwrap();
    let published = cell.published.as_ref().unwrap();
    assert!(published.outside_tolerance.is_none() && published.caveat.contains("held-out"), "{published:?}");
    close(published.difference, 26.0 - 29.12);
}

#[test]
fn a_row_that_shares_no_seeds_with_the_baseline_is_not_compared() {
    let mut sources = sources();
    for source in sources.iter_mut().filter(|source| source.record.subject.method == "c2r") {
        source.record.subject.distill_seed = source.record.subject.distill_seed.map(|seed| seed + 10);
    }
    let table =
        Table::build(&sources, &TableOptions { baseline: Some("class-mean"), ..TableOptions::default() }).unwrap();
    let row = |method: &str| table.sections[0].rows.iter().find(|row| row.method == method).unwrap();
    let c2r = row("c2r");
    assert!(c2r.cells.iter().all(|cell| cell.comparison.is_none()));
    let note = "shares no pair of seeds (distillation and training) with `class-mean`, so it is not compared";
    assert_eq!(c2r.notes.iter().filter(|held| *held == note).count(), 1, "{:?}", c2r.notes);
    for other in ["full", "class-mean"] {
        assert!(!row(other).notes.iter().any(|held| held == note), "{other}: {:?}", row(other).notes);
    }
}

#[test]
fn runs_of_one_set_are_one_unit() {
    // c2r: distilled set 0 trained with seeds 0 and 1, set 1 with seed 2; the baseline likewise.
    let mut sources = sources();
    for (position, (distill, train)) in [(3, (0, 0)), (4, (0, 1)), (5, (1, 2)), (6, (0, 0)), (7, (0, 1)), (8, (1, 2))] {
        sources[position].record.subject.distill_seed = Some(distill);
        sources[position].record.subject.train_seed = train;
    }
    let table = table(&sources, "quick");
    let pgd = table.sections[0].rows[2].cell("pgd").unwrap();
    assert_eq!(pgd.summary.n, 3);
    let comparison = pgd.comparison.as_ref().unwrap();
    // Differences 4 and 4 in set 0, 7 in set 1: units 4 and 7, mean 5.5, error 1.5, one degree of freedom.
    assert_eq!(comparison.n_pairs, 2);
    close(comparison.difference, 5.5);
    close(comparison.p_value.unwrap(), 1.0 - 2.0 / std::f64::consts::PI * (5.5f64 / 1.5).atan());
    assert!(
        table.sections[0]
            .notes
            .iter()
            .chain(&table.sections[0].rows[2].notes)
            .any(|note| note.contains("share a distilled set"))
    );
}

#[test]
fn names_that_do_not_exist_are_errors() {
    let experiment = experiment();
    let build = |options: &TableOptions<'_>| Table::build(&sources(), options).unwrap_err();
    let error = build(&TableOptions { baseline: Some("dm"), ..TableOptions::default() });
    assert!(matches!(&error, EvalError::NoBaseline { methods, .. } if methods == "c2r, class-mean, full"), "{error}");
    let error = build(&TableOptions { experiment: Some(&experiment), scale: Some("huge"), baseline: None });
    assert!(error.to_string().contains("no scale `huge`"), "{error}");
    assert!(collect(&[PathBuf::from("no/such/folder")]).unwrap_err().to_string().contains("no/such/folder"));
}

#[test]
fn profiles_of_one_method_are_two_rows() {
    let mut sources = sources();
    let mut plus = source("c2r", "natural", 0, 46, 33, 32);
    plus.record.subject.profile = "plus".into();
    plus.record.subject.extra_storage = "teacher weights, 1.3 MB".into();
    plus.path = "plus/attack.json".into();
    sources.push(plus);
    let table = table(&sources, "quick");
    let labels: Vec<&str> = table.sections[0].rows.iter().map(|row| row.label.as_str()).collect();
    assert_eq!(labels, ["all real images", "class means", "C²R (faithful)", "C²R (plus)"]);
    assert!(table.markdown().contains("stores in addition to its images: teacher weights, 1.3 MB"));
}

/// All real images are trained on for longer than a distilled set, and nothing else is otherwise.
#[test]
fn a_reference_has_the_length_and_rates_of_full_data() {
    let mut sources = sources();
    let train = |config: serde_json::Value| {
        let config = json!({ "subject": {}, "train": config });
        Some(RunInfo { stage: "train".into(), config, ..RunInfo::default() })
    };
    for source in &mut sources {
        source.training = train(json!({ "length": { "epochs": 1000 }, "lr-schedule": "half-way", "batch-size": 256 }));
    }
    for source in &mut sources[0..3] {
        source.training = train(json!({ "length": { "epochs": 9 }, "lr-schedule": "cosine", "batch-size": 256 }));
    }
    let made = table(&sources, "quick");
    assert!(made.sections[0].rows[0].undistilled);
    assert!(!made.markdown().contains("DIFFERENT"), "{}", made.markdown());

    for source in &mut sources[0..3] {
        source.training = train(json!({ "length": { "epochs": 9 }, "lr-schedule": "cosine", "batch-size": 128 }));
    }
    let made = table(&sources, "quick");
    let note = "rows were trained with DIFFERENT settings: batch-size: 128 (all real images ipc all), \
                256 (class means ipc 10, C²R ipc 10)";
    assert!(made.sections[0].notes.iter().any(|found| found == note), "{:?}", made.sections[0].notes);
}

#[test]
fn attacks_in_different_float_formats_are_told_apart() {
    let formats = |convolutions: &str| {
        [("convolutions", convolutions), ("matmuls", "fp32")].map(|(what, format)| (what.into(), format.into())).into()
    };
    let mut sources = sources();
    // Of those that do not say, nothing is known.
    for source in &mut sources[0..3] {
        source.record.precision = formats("fp32");
    }
    assert!(!table(&sources, "quick").markdown().contains("float formats"));
    sources[6].record.precision = formats("tf32");
    let made = table(&sources, "quick");
    let note = "attacks were computed in different float formats: convolutions fp32, matmuls fp32; \
                convolutions tf32, matmuls fp32";
    assert!(made.sections[0].notes.iter().any(|found| found == note), "{:?}", made.sections[0].notes);
}

#[test]
fn rows_of_mosaics_and_of_whole_images_are_told_apart() {
    let mut sources = sources();
    for source in &mut sources[6..9] {
        source.record.subject.notes.push("each stored image is a 2x2 mosaic".to_owned());
    }
    let made = table(&sources, "quick");
    let note = "rows store DIFFERENT numbers of training images per stored image: one image in each stored image: \
                class means ipc 10; 4 smaller images in each (2x2 mosaic): C²R ipc 10";
    assert!(made.sections[0].notes.iter().any(|found| found == note), "{:?}", made.sections[0].notes);
    for source in &mut sources[3..6] {
        source.record.subject.notes.push("each stored image is a 2x2 mosaic".to_owned());
    }
    assert!(!table(&sources, "quick").markdown().contains("DIFFERENT"));
}

#[test]
fn every_differing_setting_of_the_runs_is_named() {
    let train = |config: serde_json::Value| {
        let config = json!({ "subject": {}, "train": config });
        Some(RunInfo { stage: "train".into(), config, ..RunInfo::default() })
    };
    let mut sources = sources();
    for source in &mut sources {
        let seed = source.record.subject.train_seed;
        source.training = train(json!({ "length": { "steps": 40 }, "lr": 0.01, "seed": seed }));
        // The training data is not a setting of the training.
        source.training.as_mut().unwrap().config["images_sha256"] = json!(source.path);
    }
    let all_notes = |table: &Table| {
        let section = &table.sections[0];
        section
            .notes
            .iter()
            .chain(section.rows.iter().flat_map(|row| &row.notes))
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert!(!all_notes(&table(&sources, "quick")).contains("DIFFERENT"), "{}", all_notes(&table(&sources, "quick")));

    // Two rows, each of one mind.
    for source in &mut sources[6..9] {
        source.training = train(json!({ "length": { "steps": 150 }, "lr": 0.05 }));
    }
    let rows = table(&sources, "quick");
    let note = "rows were trained with DIFFERENT settings: length.steps: 150 (C²R ipc 10), 40 (class means ipc 10); \
                lr: 0.01 (class means ipc 10), 0.05 (C²R ipc 10)";
    assert!(rows.sections[0].notes.iter().any(|found| found == note), "{:?}", rows.sections[0].notes);
    assert!(rows.sections[0].rows.iter().all(|row| !row.notes.iter().any(|note| note.contains("DIFFERENT"))));
    assert!(rows.markdown().contains(note) && rows.csv().unwrap().contains("trained with DIFFERENT settings"));

    // A learning rate that came with each set is one setting, whatever the numbers.
    let mut learned = sources.clone();
    for (source, rate) in learned[6..9].iter_mut().zip([0.05, 0.06, 0.07]) {
        source.training = train(json!({ "length": { "steps": 40 }, "lr": rate }));
        source.training.as_mut().unwrap().config["lr_is_learned"] = json!(true);
    }
    let learned = table(&learned, "quick");
    let note = "rows were trained with DIFFERENT settings: lr: \"learned\" (C²R ipc 10), 0.01 (class means ipc 10)";
    assert!(learned.sections[0].notes.iter().any(|found| found == note), "{:?}", learned.sections[0].notes);
    assert!(learned.sections[0].rows.iter().all(|row| !row.notes.iter().any(|note| note.contains("DIFFERENT"))));

    // One row of two minds.
    sources[7].training = train(json!({ "length": { "epochs": 3 }, "lr": 0.05 }));
    sources[7].training.as_mut().unwrap().config["select_every"] = json!(7);
    let row = &table(&sources, "quick").sections[0].rows[2];
    let note = "its runs were trained with DIFFERENT settings, so their mean mixes protocols: \
                length.epochs: 3, nothing; length.steps: 150, nothing; select_every: 7, nothing";
    assert!(row.notes.iter().any(|found| found == note), "{:?}", row.notes);

    sources[7].distillation.as_mut().unwrap().config = json!({ "iterations": 30, "images": { "lr": 2 }, "seed": 1 });
    let row = &table(&sources, "quick").sections[0].rows[2];
    let note = "distilled with DIFFERENT settings, so their mean mixes methods: \
                images.lr: 2, nothing; iterations: 30, 300";
    assert!(row.notes.iter().any(|found| found.ends_with(note)), "{:?}", row.notes);

    // What cannot be compared is said, unless nothing can.
    let mut sources = self::sources();
    sources[6].training = None;
    let note = "training settings were not compared for 1 of 9 attack.json files, which have no run.json next to them";
    assert!(table(&sources, "quick").sections[0].notes.iter().any(|found| found == note));
    sources.iter_mut().for_each(|source| source.training = None);
    assert!(!table(&sources, "quick").markdown().contains("not compared"));

    // A second file of the same run that another training lies beside.
    let mut sources = self::sources();
    let mut second = sources[6].clone();
    sources[6].record.attacks.truncate(1);
    second.record.attacks.remove(0);
    second.path = "elsewhere/attack.json".into();
    second.training = train(json!({ "steps": 21 }));
    sources.push(second);
    let row = &table(&sources, "quick").sections[0].rows[2];
    assert!(
        row.notes.iter().any(|note| note.contains("trained with DIFFERENT settings") && note.contains("steps: 20, 21"))
    );
}
