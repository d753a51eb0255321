//! The sentences at the top of a table say what its rows hold, and no more.

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
    let expected = "- **cifar10, natural training, 2/255**. C²R: networks trained on 10 distilled images per class are right on \
                    31.0 ± 1.0 % of attacked test images (mean of FGSM, PGD) and on 60.0 ± 0.0 % of clean ones. \
                    All 50,000 real images: 6.0 ± 1.0 % attacked, 90.0 ± 0.0 % clean. The distilled images train the more robust \
                    networks (the 95 % intervals do not overlap). As many random-real: 11.0 ± 1.0 % attacked, 60.0 ± 0.0 % clean. \
                    Compared with class means: 10.0 points more, p = 0.001, a significant difference.";
    let first = text.lines().next().unwrap();
    let (start, p) = first.split_once(", p ").unwrap();
    assert_eq!(start, expected.split_once(", p ").unwrap().0);
    assert!(p.ends_with(", a significant difference."), "{p}");
    let rest: Vec<&str> = text.lines().skip(1).collect();
    assert_eq!(
        rest,
        [
            "- Not shown: AutoAttack was not run, and a stronger attack can only lower these robust accuracies.",
            "- Not shown: Some rows have 3 runs; small differences need 5 or more.",
            "- Not shown: `quick` is not the paper's scale, so this neither confirms nor refutes the paper.",
        ]
    );
}

#[test]
fn noise_is_no_difference_and_all_images_may_be_better() {
    let text = shown(&rows(&[("full", 90, 60), ("class-mean", 60, 20), ("c2r", 60, 19)]));
    assert!(
        text.contains("Compared with class means: 1.0 points fewer, p = ")
            && text.contains(", no significant difference."),
        "{text}"
    );
    assert!(!text.contains("more robust"), "{text}");
}

#[test]
fn references_alone_show_nothing() {
    assert_eq!(shown(&rows(&[("full", 90, 60), ("class-mean", 60, 20)])), "");
}
