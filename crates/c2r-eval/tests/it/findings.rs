//! The sentences at the top of a table say what its rows hold, and no more.

use c2r_base::{Goal, Norm, TargetRule};
use c2r_eval::Source;

use crate::{
    report::outcomes,
    table::{source, table},
};

/// Three runs of each: clean, FGSM and PGD of the first; FGSM and PGD rise by one from run to run.
fn rows(of: &[(&str, usize, usize)]) -> Vec<Source> {
    let mut sources = Vec::new();
    for &(method, clean, robust) in of {
        for seed in 0..3 {
            let robust = robust + seed as usize;
            sources.push(source(method, "natural", seed, clean, robust, robust));
        }
    }
    outcomes(sources)
}

fn shown(sources: &[Source]) -> String {
    let text = table(sources, "quick").markdown();
    let (_, rest) = text.split_once("## What this shows\n\n").unwrap_or_default();
    rest.split("\n\n").next().unwrap_or_default().to_owned()
}

#[test]
fn a_clear_difference_is_said_with_its_numbers() {
    let text = shown(&rows(&[("full", 90, 5), ("random-real", 60, 10), ("class-mean", 60, 20), ("c2r", 60, 30)]));
    let expected = "- **cifar10, natural training, Linf 2/255**. C²R: networks trained on 10 distilled images per class are right on \
                    31.0 ± 1.0 % of attacked test images (mean of FGSM, PGD) and on 60.0 ± 0.0 % of clean ones. \
                    Networks trained on all 50,000 real images are right on 6.0 ± 1.0 % of attacked and on 90.0 ± 0.0 % of clean ones. The distilled images train the more robust \
                    networks (the 95 % intervals do not overlap). Networks trained on as many real images (random-real) are \
                    right on 11.0 ± 1.0 % of attacked and on 60.0 ± 0.0 % of clean ones. \
                    Compared with class means: 10.0 points more under attack, p = 0.001, a significant difference.";
    let first = text.lines().next().unwrap();
    let (start, p) = first.split_once(", p ").unwrap();
    assert_eq!(start, expected.split_once(", p ").unwrap().0);
    assert!(p.ends_with(", a significant difference."), "{p}");
    let rest: Vec<&str> = text.lines().skip(1).collect();
    assert_eq!(
        rest,
        [
            "- Not shown: AutoAttack was not run, and a stronger attack can only lower these robust accuracies.",
            "- Not shown: Some rows have 3 independent runs; small differences need 5 or more.",
            "- Not shown: `quick` is not the paper's scale, so this neither confirms nor refutes the paper.",
        ]
    );
}

/// What an attack may do and wants is part of what its accuracy means.
#[test]
fn the_threat_model_is_said() {
    let mut sources = rows(&[("random-real", 60, 10), ("class-mean", 60, 20), ("c2r", 60, 30)]);
    for source in &mut sources {
        source.record.threat.norm = Norm::L2;
        source.record.attacks.iter_mut().for_each(|entry| entry.norm = Norm::L2);
    }
    let text = shown(&sources);
    assert!(text.starts_with("- **cifar10, natural training, L2 2/255**. C²R: networks trained on"), "{text}");
    for source in &mut sources {
        source.record.threat.goal = Goal::Targeted(TargetRule::Next);
    }
    let text = shown(&sources);
    let expected = "- **cifar10, natural training, L2 2/255, targeted (next)**. C²R: networks trained on 10 distilled images per \
                    class keep 31.0 ± 1.0 % of test images from the class that targeted attacks aim at (mean of FGSM, PGD) and \
                    are right on 60.0 ± 0.0 % of clean ones. Networks trained on as many real images (random-real) keep \
                    11.0 ± 1.0 % from that class and are right on 60.0 ± 0.0 % of clean ones.";
    assert!(text.starts_with(expected), "{text}");
    assert!(table(&sources, "quick").markdown().contains("in pixel units, targeted (next); "));
}

#[test]
fn several_references_on_real_images_are_named() {
    let mut sources = rows(&[("full", 90, 5), ("c2r", 60, 30)]);
    assert!(
        shown(&sources).contains("all 50,000 real images are right on 6.0 ± 1.0 % of attacked"),
        "{}",
        shown(&sources)
    );
    for mut other in rows(&[("full", 80, 8)]) {
        other.record.subject.method = "mine".into();
        other.path = other.path.replace("full", "mine");
        sources.push(other);
    }
    let text = shown(&sources);
    for part in [
        "all 50,000 real images (all real images) are right on 6.0 ±",
        "all 50,000 real images (mine) are right on 9.0 ±",
    ] {
        assert!(text.contains(part), "{text}\nlacks {part}");
    }
}

#[test]
fn noise_is_no_difference_and_all_images_may_be_better() {
    let text = shown(&rows(&[("full", 90, 60), ("class-mean", 60, 20), ("c2r", 60, 19)]));
    assert!(
        text.contains("Compared with class means: 1.0 points fewer under attack, p = ")
            && text.contains(", no significant difference."),
        "{text}"
    );
    assert!(!text.contains("more robust"), "{text}");
}

/// 31 % against 26 %, each of 100 images: the intervals are wider than the difference.
#[test]
fn intervals_that_overlap_show_no_more_robust_networks() {
    let text = shown(&rows(&[("full", 90, 25), ("class-mean", 60, 20), ("c2r", 60, 30)]));
    assert!(
        text.contains("31.0 ± 1.0 % of attacked") && text.contains("real images are right on 26.0 ± 1.0 % of attacked"),
        "{text}"
    );
    assert!(!text.contains("more robust"), "{text}");
}

/// Three runs of the reference, five of the method and of the baseline.
#[test]
fn few_runs_of_a_reference_are_said() {
    let five = |method: &'static str| (0..5).map(move |seed| source(method, "natural", seed, 60, 20, 20));
    let with = |references: usize| {
        let references = rows(&[("full", 90, 5)]).into_iter().take(references);
        shown(&outcomes(references.chain(five("class-mean")).chain(five("c2r")).collect()))
    };
    assert!(with(3).contains("Some rows have 3 independent runs"), "{}", with(3));
    assert!(!with(0).contains("Some rows have"), "{}", with(0));
}

#[test]
fn equal_networks_are_the_same() {
    let text = shown(&rows(&[("class-mean", 60, 20), ("c2r", 60, 20)]));
    assert!(text.contains("Compared with class means: the same under attack."), "{text}");
}

#[test]
fn one_of_several_methods_is_said_to_be_one() {
    let text = shown(&rows(&[("class-mean", 60, 20), ("mine", 60, 30), ("theirs", 60, 10)]));
    assert!(text.contains("theirs (the last of 2 methods): networks trained on"), "{text}");
    let text = shown(&rows(&[("class-mean", 60, 20), ("mine", 60, 30)]));
    assert!(text.contains(". mine: networks trained on"), "{text}");
}

/// AutoAttack for C²R alone: the baseline is compared on what both have.
#[test]
fn a_baseline_without_autoattack_is_compared_without_it() {
    let mut sources = rows(&[("class-mean", 60, 20), ("c2r", 60, 30)]);
    for source in sources.iter_mut().filter(|source| source.record.subject.method == "c2r") {
        let mut entry = source.record.attacks[1].clone();
        entry.attack = "autoattack-standard".into();
        entry.config = serde_json::json!({ "attack": "autoattack-standard" });
        source.record.attacks.push(entry);
    }
    let text = shown(&sources);
    assert!(text.contains("31.0 ± 1.0 % of attacked test images (mean of FGSM, PGD, AutoAttack)"), "{text}");
    let compared = "Compared with class means: 10.0 points more under attack (mean of FGSM, PGD), p ";
    assert!(text.contains(compared), "{text}");
}

#[test]
fn a_method_that_lacks_an_attack_is_named() {
    let mut sources = rows(&[("class-mean", 60, 20), ("c2r", 60, 30)]);
    sources.iter_mut().skip(3).for_each(|source| drop(source.record.attacks.pop()));
    let text = shown(&sources);
    let expected = "C²R was not attacked with everything that others were, so it has no mean to compare.";
    assert!(text.contains(expected), "{text}");
}

/// PGD leaves no image in any run: nothing varies, so nothing is known about other images.
#[test]
fn what_does_not_vary_has_no_interval() {
    let mut sources = rows(&[("class-mean", 60, 20), ("c2r", 60, 30)]);
    for source in &mut sources {
        source.record.attacks[1].survivors = 0;
        source.record.attacks[1].robust_accuracy = 0.0;
    }
    let whole = table(&outcomes(sources), "quick");
    let row = whole.sections[0].rows.iter().find(|row| row.method == "c2r").unwrap();
    assert_eq!(row.cell("pgd").unwrap().summary.ci95, None);
    assert!(row.cell("fgsm").unwrap().summary.ci95.is_some());
}

#[test]
fn references_alone_show_nothing() {
    assert_eq!(shown(&rows(&[("full", 90, 60), ("class-mean", 60, 20)])), "");
}

/// One run of the baseline.
#[test]
fn a_comparison_on_one_seed_is_singular() {
    let mut sources = outcomes(vec![source("class-mean", "natural", 0, 60, 20, 20)]);
    sources.extend(outcomes((0..3).map(|seed| source("c2r", "natural", seed, 60, 30, 30)).collect()));
    let text = shown(&sources);
    assert!(text.contains("Compared with class means on the one seed that both have: "), "{text}");
}

/// Five runs of one method against three of the baseline.
#[test]
fn a_comparison_on_some_seeds_says_so() {
    let mut sources = rows(&[("class-mean", 60, 20)]);
    sources.extend((0..5).map(|seed| {
        let robust = if seed < 3 { 30 + seed as usize } else { 2 };
        source("c2r", "natural", seed, 60, robust, robust)
    }));
    let sources = outcomes(sources);
    let text = shown(&sources);
    assert!(
        text.contains("Compared with class means on the 3 seeds that both have: 10.0 points more under attack"),
        "{text}"
    );
    assert!(text.contains("Some rows have 3 independent runs"), "the baseline's: {text}");
    let whole = table(&sources, "quick");
    let note = "compared with `class-mean` only on the 3 seeds that both rows have; the means shown are over all runs";
    let notes = |method: &str| &whole.sections[0].rows.iter().find(|row| row.method == method).unwrap().notes;
    assert!(notes("c2r").iter().any(|said| said == note), "{:?}", notes("c2r"));
    assert!(notes("class-mean").is_empty(), "{:?}", notes("class-mean"));
    // One distilled set each, and one of two trainings has no partner.
    let mut sources = rows(&[("class-mean", 60, 20), ("c2r", 60, 30)]);
    sources.retain(|source| source.record.subject.distill_seed == Some(0));
    let mut second = source("c2r", "natural", 0, 60, 2, 2);
    second.record.subject.train_seed = 1;
    sources.push(second);
    let sources = outcomes(sources);
    let whole = table(&sources, "quick");
    let row = whole.sections[0].rows.iter().find(|row| row.method == "c2r").unwrap();
    assert!(row.notes.iter().any(|note| note.contains("only on the one pair of seeds")), "{:?}", row.notes);
    assert!(shown(&sources).contains("on the pairs of seeds (distillation and training) that both have"));
    let complete = table(&rows(&[("class-mean", 60, 20), ("c2r", 60, 30)]), "quick");
    assert!(complete.sections[0].rows.iter().all(|row| row.notes.is_empty()));
}

#[test]
fn methods_that_choose_real_images_are_not_called_distilled() {
    assert_eq!(shown(&rows(&[("class-mean", 60, 20), ("herding", 60, 30), ("k-center", 60, 30)])), "");
}

#[test]
fn a_small_p_value_over_few_images_is_no_contradiction() {
    // Four images more in every seed: p = 0.045, by hand as in errors.rs.
    let mut sources = Vec::new();
    for (method, robust) in [("class-mean", 96), ("c2r", 100)] {
        sources.extend((0..3).map(|seed| source(method, "natural", seed, 100, robust, robust)));
    }
    let text = shown(&outcomes(sources));
    let verdict = "but the difference is fewer than 5 test images, so it is not marked";
    assert!(text.contains(verdict), "{text}");
}
