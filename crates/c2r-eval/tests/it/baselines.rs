//! Which runs are compared with which of the baseline, and what then gets a mark.

use c2r_eval::{Source, Table, TableOptions, table::Row};

use crate::table::{close, source, table};

/// PGD of a run with this number of images per class and this profile.
fn pgd_of(method: &str, images_per_class: usize, profile: &str, survivors: usize) -> Source {
    let mut source = source(method, "natural", 0, 60, 50, survivors);
    let subject = &mut source.record.subject;
    (subject.images_per_class, subject.profile) = (Some(images_per_class), profile.into());
    source.path = format!("{method}/{images_per_class}/{profile}/attack.json");
    source
}

/// By how much PGD of c2r with this number of images per class and this profile differs from the baseline.
fn difference(sources: &[Source], images_per_class: usize, profile: &str) -> Option<f64> {
    let options = TableOptions { baseline: Some("class-mean"), ..TableOptions::default() };
    let table = Table::build(sources, &options).unwrap();
    let is_it = |row: &&Row| {
        (row.method.as_str(), row.images_per_class, row.profile.as_str()) == ("c2r", Some(images_per_class), profile)
    };
    let row = table.sections[0].rows.iter().find(is_it).unwrap();
    Some(row.cell("pgd").unwrap().comparison.as_ref()?.difference)
}

#[test]
fn a_baseline_is_of_the_same_size() {
    let mut sources: Vec<Source> = [("class-mean", 10, 20), ("c2r", 10, 30), ("class-mean", 50, 40), ("c2r", 50, 45)]
        .map(|(method, images_per_class, survivors)| pgd_of(method, images_per_class, "faithful", survivors))
        .into();
    let of = |sources: &[Source]| [10, 50].map(|size| difference(sources, size, "faithful"));
    assert_eq!(of(&sources), [Some(10.0), Some(5.0)]);
    sources.remove(2);
    assert_eq!(of(&sources), [Some(10.0), None], "the only baseline is smaller");
}

#[test]
fn a_baseline_is_of_the_same_profile_or_the_only_one() {
    let ours = ["faithful", "plus"].map(|profile| pgd_of("c2r", 10, profile, 30));
    let mut sources: Vec<Source> = ours.into_iter().chain([pgd_of("class-mean", 10, "faithful", 20)]).collect();
    let of = |sources: &[Source]| ["faithful", "plus"].map(|profile| difference(sources, 10, profile));
    assert_eq!(of(&sources), [Some(10.0), Some(10.0)]);
    // By name before the other.
    sources.push(pgd_of("class-mean", 10, "extra", 27));
    assert_eq!(of(&sources), [Some(10.0), None], "two others");
}

/// A set with seed 0 and a training without a set.
#[test]
fn a_set_and_a_training_with_one_number_are_two_units() {
    let of = |method: &str, set: Option<u64>, pgd: usize| {
        let mut source = source(method, "natural", 0, 60, 50, pgd);
        source.record.subject.distill_seed = set;
        source.path = format!("{method}/{set:?}/attack.json");
        source
    };
    let sources =
        [of("class-mean", Some(0), 20), of("class-mean", None, 20), of("c2r", Some(0), 30), of("c2r", None, 34)];
    let table = table(&sources, "quick");
    let row = table.sections[0].rows.iter().find(|row| row.method == "c2r").unwrap();
    let found = row.cell("pgd").unwrap().comparison.as_ref().unwrap();
    assert_eq!((found.n_pairs, found.difference), (2, 12.0));
    // Differences 10 and 14: mean 12, error 2, one degree of freedom.
    close(found.p_value_seeds.unwrap(), 1.0 - 2.0 / std::f64::consts::PI * 6.0f64.atan());
}

#[test]
fn a_network_that_guesses_has_no_better_drop_rate() {
    let significant = |guessing: &str| {
        let mut sources = crate::report::outcomes(
            (0..3)
                .flat_map(|seed| {
                    let ours = source("c2r", "natural", seed, 20, 20, 20);
                    let mut both = [ours, source("class-mean", "natural", seed, 60, 20, 20)];
                    for one in both.iter_mut().filter(|one| one.record.subject.method == guessing) {
                        let note = "doubtful: the clean accuracy is no better than guessing among 10 classes; check it";
                        one.record.notes.push(note.to_owned());
                    }
                    both
                })
                .collect(),
        );
        sources.sort_by(|a, b| a.path.cmp(&b.path));
        let table = table(&sources, "quick");
        let row = table.sections[0].rows.iter().find(|row| row.method == "c2r").unwrap();
        let of = |column: &str| row.cell(column).unwrap().comparison.as_ref().unwrap().significant;
        [of("drop-rate"), of("i-rr"), of("clean")]
    };
    assert_eq!(significant("nobody"), [true, true, true]);
    // Whichever of the two guesses.
    for guessing in ["c2r", "class-mean"] {
        assert_eq!(significant(guessing), [false, false, true], "{guessing}");
    }
}

/// All accuracies fall, the clean one most: 80 and 40 give a drop rate of 50 %, 42 and 30 one of 29 %.
#[test]
fn a_less_robust_network_has_no_better_drop_rate() {
    let marks = |fgsm: usize, pgd: usize| {
        let of =
            |seed| [source("class-mean", "natural", seed, 80, 40, 40), source("c2r", "natural", seed, 42, fgsm, pgd)];
        let table = table(&crate::report::outcomes((0..3).flat_map(of).collect()), "quick");
        let row = table.sections[0].rows.iter().find(|row| row.method == "c2r").unwrap().clone();
        ["pgd", "drop-rate", "drop-rate-fgsm", "i-rr"].map(|column| {
            let comparison = row.cell(column).unwrap().comparison.as_ref().unwrap();
            (comparison.significant, comparison.better)
        })
    };
    let (better, worse, unmarked) = ((true, true), (true, false), (false, true));
    assert_eq!(marks(30, 30), [worse, unmarked, unmarked, unmarked]);
    // One attack each: a ratio is over both.
    assert_eq!(marks(40, 30), [worse, unmarked, better, unmarked]);
    assert_eq!(marks(40, 40)[1..], [better; 3]);
}

/// Shown: clean, FGSM, PGD, their mean and the drop rate. `minimum`, ratios and the like are compared, but not shown.
#[test]
fn marks_are_counted_beside_those_of_chance() {
    let seeds = |method: &'static str, clean: usize, pgd: usize| {
        (0..3).map(move |seed| source(method, "natural", seed, clean + usize::from(seed == 1), pgd, pgd))
    };
    let two = || seeds("class-mean", 60, 30).chain(seeds("c2r", 60, 40)).collect::<Vec<_>>();
    let options = TableOptions { baseline: Some("class-mean"), ..TableOptions::default() };
    let table = |sources: Vec<Source>| Table::build(&sources, &options).unwrap();
    let counts = |table: &Table| (table.n_tested, table.n_marked);

    // The outcomes of clean images are the baseline's, so nothing varies there and nothing was tested.
    let one = table(crate::report::outcomes(two()));
    assert_eq!(counts(&one), (4, 4), "{:?}", one.sections[0].columns);
    let line = "4 of 4 comparisons with the baseline are marked. If no method differed from it, chance would mark fewer than one";
    for text in [one.markdown(), one.terminal(Some(200)), one.latex(), one.html(&[])] {
        assert!(text.contains(line), "{text}");
    }
    let json: serde_json::Value = serde_json::from_str(&one.json()).unwrap();
    assert_eq!((&json["n_tested"], &json["n_marked"]), (&4.into(), &4.into()));

    // A lead of two images is too small for a mark.
    let mut many = two();
    many.extend(["a", "b", "c", "d", "e", "f", "g", "h"].into_iter().flat_map(|method| seeds(method, 60, 32)));
    let many = table(crate::report::outcomes(many));
    assert_eq!(counts(&many), (36, 4));
    assert!(many.markdown().contains("4 of 36 comparisons with the baseline are marked"), "{}", many.markdown());
    assert!(many.markdown().contains("chance would mark about 2:"), "{}", many.markdown());

    // Outcomes per image are missing: nothing can get a mark.
    let seeds_only = table(two());
    assert_eq!(counts(&seeds_only), (0, 0));
    assert!(!seeds_only.markdown().contains("chance would mark"));
}
