//! What a difference needs to be called one: seeds and test images, five of them, and attacks that agree with each other.

use c2r_attacks::AttackConfig;
use c2r_eval::{
    AttackScore, Samples, Source, Table, TableOptions,
    stats::Covers,
    table::{Cell, Comparison},
};
use ndarray::Array1;
use serde_json::json;

use crate::{
    report::with_images,
    table::{close, source, table},
};

/// Test images of the digits.
const N: usize = 359;

/// A run whose PGD leaves the first 100 images right, but `lost`, and `gained`; the clean network is right on 200.
fn run(method: &str, seed: u64, gained: &[usize], lost: &[usize]) -> Source {
    let mut source = source(method, "natural", seed, 40, 24, 20);
    let survived: Array1<bool> = (0..N).map(|at| (at < 100 || gained.contains(&at)) && !lost.contains(&at)).collect();
    let survivors = survived.iter().filter(|&&survived| survived).count();
    let record = &mut source.record;
    (record.n, record.clean_accuracy) = (N, 200.0 / N as f64);
    record.samples = Some(Samples {
        labels: Array1::zeros(N),
        clean: (0..N).map(|at| at < 200).collect(),
        positions: None,
        margins: None,
    });
    record.attacks = vec![AttackScore {
        robust_accuracy: survivors as f64 / N as f64,
        survivors,
        n: N,
        survived: Some(survived),
        ..record.attacks[1].clone()
    }];
    record.check().unwrap();
    source
}

fn against(ours: [(&[usize], &[usize]); 3]) -> Comparison {
    let baseline = (0..3).map(|seed| run("class-mean", seed, &[], &[]));
    let ours = ours.into_iter().zip(0..).map(|((gained, lost), seed)| run("c2r", seed, gained, lost));
    let sources: Vec<Source> = baseline.chain(ours).collect();
    let options = TableOptions { baseline: Some("class-mean"), ..TableOptions::default() };
    let table = Table::build(&sources, &options).unwrap();
    let row = table.sections[0].rows.iter().find(|row| row.method == "c2r").unwrap();
    row.cell("pgd").unwrap().comparison.clone().unwrap()
}

/// Differences of -3, -4 and -4 of 359 images. SciPy 1.17.1: `ttest_1samp` of the seeds' differences gives 0.00816 with an
/// error of 0.0929 points; the mean over seeds of each image has an error of 0.649 points over the images. Both together by the
/// formulas of `Crossed`, with `scipy.stats.t`.
#[test]
fn four_of_359_images_are_no_finding() {
    let found = against([(&[100, 101], &[0, 1, 2, 3, 4]), (&[100], &[0, 1, 2, 3, 5]), (&[100], &[0, 1, 2, 3, 6])]);
    close(found.difference, -100.0 * 11.0 / 3.0 / 359.0);
    close(found.p_value_seeds.unwrap(), 0.008163401865824475);
    let errors = found.errors.unwrap();
    close(errors.seeds, 0.09285051067780874);
    close(errors.images, 0.6486183571343572);
    close(errors.both, 0.6486183571343572);
    close(errors.freedom, 162.15727145730864);
    close(found.p_value.unwrap(), 0.11728315707723413);
    close(found.images.unwrap(), 11.0 / 3.0);
    assert_eq!((found.covers, found.significant), (Covers::SeedsAndImages, false));
    // One image more in one seed: seeds that agree say nothing alone, and the p-value changes little.
    let found = against([(&[100], &[0, 1, 2, 3, 4]), (&[100], &[0, 1, 2, 3, 5]), (&[100], &[0, 1, 2, 3, 6])]);
    assert_eq!(found.p_value_seeds, None);
    close(found.p_value.unwrap(), 0.08387491151247548);
    assert!(!found.significant);
}

/// Every seed loses the same images and nothing else: mean -n / 359, error sqrt(n (359 - n) / 358) / 359 by hand.
#[test]
fn four_images_get_no_mark_whatever_their_p_value_and_five_may() {
    let lost = [0, 1, 2, 3, 4, 5];
    let of = |n: usize| against([(&[], &lost[..n]), (&[], &lost[..n]), (&[], &lost[..n])]);
    for (n, marked) in [(4, false), (5, true), (6, true)] {
        let found = of(n);
        let error = 100.0 * (n as f64 * (359 - n) as f64 / 358.0).sqrt() / 359.0;
        close(found.errors.unwrap().both, error);
        assert!(found.p_value.unwrap() < 0.05, "{n}: {found:?}");
        assert_eq!((found.significant, found.better), (marked, false), "{n}");
    }
}

/// Every seed loses six images and gains one: t = 5 / sqrt((7 - 25 / 359) 359 / 358) = 1.897 with 358 degrees of freedom, between
/// the limits for 0.1 (1.649) and for 0.05 (1.967) in any table of Student's t.
#[test]
fn five_images_without_a_small_p_value_get_no_mark() {
    let one: (&[usize], &[usize]) = (&[100], &[0, 1, 2, 3, 4, 5]);
    let found = against([one; 3]);
    close(found.images.unwrap(), 5.0);
    let errors = found.errors.unwrap();
    close(-found.difference / errors.both, 5.0 / ((7.0 - 25.0 / 359.0) * 359.0 / 358.0f64).sqrt());
    close(errors.freedom, 358.0);
    assert!((0.05..0.1).contains(&found.p_value.unwrap()) && !found.significant, "{found:?}");
}

/// Two sets with two trainings each, which lose three images each, and not the same: a set's mean over its trainings loses half of
/// six images. By hand: mean -3 / 359, error sqrt((6 / 4 - 9 / 359) / 358 / 359).
#[test]
fn trainings_of_one_set_are_averaged_image_by_image() {
    let of = |method: &'static str, lost: [&'static [usize]; 2]| {
        (0..2).flat_map(move |set| {
            lost.into_iter().zip(0..).map(move |(lost, training)| {
                let mut source = run(method, 2 * set + training, &[], lost);
                source.record.subject.distill_seed = Some(set);
                source
            })
        })
    };
    let sources: Vec<Source> = of("class-mean", [&[], &[]]).chain(of("c2r", [&[0, 1, 2], &[3, 4, 5]])).collect();
    let options = TableOptions { baseline: Some("class-mean"), ..TableOptions::default() };
    let table = Table::build(&sources, &options).unwrap();
    let found = cell(&table, "c2r", "pgd").comparison.as_ref().unwrap();
    assert_eq!(found.n_pairs, 2);
    close(found.difference, -100.0 * 3.0 / 359.0);
    close(found.errors.unwrap().both, 100.0 * ((1.5 - 9.0 / 359.0) / 358.0 / 359.0f64).sqrt());
}

fn cell<'a>(table: &'a Table, method: &str, column: &str) -> &'a Cell {
    table.sections[0].rows.iter().find(|row| row.method == method).unwrap().cell(column).unwrap()
}

/// The numbers of `numbers_by_hand` with the first n images right; NumPy 2.4.6 and SciPy 1.17.1 by the formulas of `Crossed`.
/// An image adds 100 r c / A^2 - 100 x / A to a drop rate, for outcomes c without and x under the attack.
#[test]
fn every_column_has_both_errors() {
    let table = table(&with_images(), "quick");
    for (column, difference, p, images) in [
        ("clean", 2.0, 0.2227254429414085, 2.0),
        ("fgsm", 3.0, 0.2678418125423015, 3.0),
        ("pgd", 5.0, 0.017113056521818586, 5.0),
        ("mean-robust", 4.0, 0.08834123203118473, 4.0),
        ("drop-rate", -9.426406926406928, 0.050025635970854444, 3.7705627705627713),
    ] {
        let found = cell(&table, "c2r", column).comparison.as_ref().unwrap();
        close(found.difference, difference);
        close(found.p_value.unwrap(), p);
        close(found.images.unwrap(), images);
        assert_eq!((found.covers, found.significant), (Covers::SeedsAndImages, column == "pgd"), "{column}");
    }
    for (column, low, high) in [
        ("pgd", 17.237227325901117, 34.76277267409888),
        ("mean-robust", 17.614968145738573, 35.38503185426143),
        ("drop-rate", 23.641281190488087, 52.50590495669803),
    ] {
        let cell = cell(&table, "c2r", column);
        close(cell.summary.ci95.unwrap().0, low);
        close(cell.summary.ci95.unwrap().1, high);
        assert_eq!(cell.ci95_covers, Covers::SeedsAndImages);
    }
    assert!(!table.markdown().contains("these test images only"));
    let csv = table.csv().unwrap();
    // Quantiles of margins and what is made of times are not means over images.
    let others = [",margin-", ",ae,", ",crei,", ",i-crei,"];
    let accuracies: Vec<&str> = csv.lines().filter(|line| !others.iter().any(|other| line.contains(other))).collect();
    assert!(accuracies.iter().any(|line| line.contains("seeds and test images")), "{csv}");
    assert!(!accuracies.iter().any(|line| line.contains("these test images only")), "{csv}");
}

#[test]
fn without_outcomes_per_image_the_table_says_what_its_numbers_cover_and_marks_nothing() {
    let mut sources = with_images();
    sources[7].record.attacks[1].survived = None;
    sources[7].record.attacks[1].margins = None;
    let table = table(&sources, "quick");
    let pgd = cell(&table, "c2r", "pgd");
    let found = pgd.comparison.as_ref().unwrap();
    close(found.p_value.unwrap(), 1.0 - 5.0 / 27.0f64.sqrt());
    assert_eq!((found.covers, found.significant, pgd.ci95_covers), (Covers::Seeds, false, Covers::Seeds));
    assert_eq!(cell(&table, "c2r", "fgsm").comparison.as_ref().unwrap().covers, Covers::SeedsAndImages);
    for text in [table.markdown(), table.latex(), table.html(&[]), table.csv().unwrap()] {
        assert!(text.contains("for these test images only"), "{text}");
    }
    assert!(table.html(&[]).contains("0.038 (these test images only)"));
}

/// `reproduce` runs one attack per command: each file alone says nothing of the other.
#[test]
fn attacks_of_several_files_are_held_against_each_other() {
    let alone = |attack: &str, survivors: usize| {
        let mut source = source("c2r", "natural", 0, 40, survivors, survivors);
        source.path = format!("{attack}/attack.json");
        let attacks = &mut source.record.attacks;
        attacks.truncate(1);
        attacks[0].attack = attack.into();
        attacks[0].config = serde_json::to_value(attack.parse::<AttackConfig>().unwrap()).unwrap();
        source
    };
    let flags = |sources: &[Source], column: &str| {
        let table = Table::build(sources, &TableOptions::default()).unwrap();
        (cell(&table, "c2r", column).flags.clone(), table)
    };
    let both = [alone("fgsm", 0), alone("pgd", 12)];
    let (found, table) = flags(&both, "pgd");
    assert_eq!(found, ["one-step-beats-many (1 of 1 runs)"]);
    for text in [table.markdown(), table.latex(), table.html(&[])] {
        assert!(text.contains("one-step-beats-many (1 of 1 runs): FGSM breaks more images"), "{text}");
    }
    assert!(table.markdown().contains("| 12.0 [1] |"), "{}", table.markdown());
    assert!(["clean", "fgsm"].iter().all(|column| cell(&table, "c2r", column).flags.is_empty()));
    for column in ["mean-robust", "minimum", "drop-rate"] {
        assert_eq!(cell(&table, "c2r", column).flags, ["computed from doubtful results (PGD)"], "{column}");
    }
    let more = [alone("pgd", 12), alone("noise", 11), alone("square", 10), alone("autoattack-standard", 12)];
    assert_eq!(flags(&more, "pgd").0, ["weaker-than-noise (1 of 1 runs)"]);
    assert_eq!(flags(&more, "square").0, ["black-box-beats-white-box (1 of 1 runs)"]);
    // Other radii are other tables.
    let mut apart = [alone("fgsm", 0), alone("pgd", 12)];
    apart[1].record.attacks[0].epsilon = c2r_base::Epsilon::of_255(8.0);
    assert!(
        Table::build(&apart, &TableOptions::default())
            .unwrap()
            .sections
            .iter()
            .all(|section| { section.rows[0].cells.iter().all(|cell| cell.flags.is_empty()) })
    );
}

/// Published means stand beside the mean of the same attacks, here of the networks of one run.
#[test]
fn the_mean_of_the_five_and_the_mean_with_autoattack() {
    let mut source = source("c2r", "natural", 0, 50, 24, 20);
    let score = source.record.attacks[0].clone();
    // The paper's five and AutoAttack by hand: 150 / 5 = 30 and 168 / 6 = 28; all eight would be 26.
    let survivors = [("fgsm", 36), ("pgd", 30), ("cw-linf", 28), ("vmi-fgsm", 27), ("jitter", 29)];
    let others = [("apgd-ce", 21), ("apgd-t", 19), ("autoattack-standard", 18)];
    source.record.attacks = survivors
        .into_iter()
        .chain(others)
        .map(|(attack, survivors)| AttackScore {
            attack: attack.into(),
            survivors,
            robust_accuracy: survivors as f64 / 100.0,
            config: json!({ "attack": attack }),
            ..score.clone()
        })
        .collect();
    let mut experiment = crate::table::experiment();
    let six = ["fgsm", "pgd", "cw-linf", "vmi-fgsm", "jitter", "autoattack-standard"];
    for (number, over) in experiment.published.iter_mut().filter(|number| number.column == "mean-robust").zip([six]) {
        number.over = over.map(str::to_owned).to_vec();
    }
    let options = TableOptions { experiment: Some(&experiment), scale: Some("paper"), baseline: None };
    let table = Table::build(&[source], &options).unwrap();
    assert_eq!(cell(&table, "c2r", "mean-robust").summary.mean, 30.0);
    assert_eq!(cell(&table, "c2r", "mean-robust-autoattack").summary.mean, 28.0);
    assert!(cell(&table, "c2r", "mean-robust").published.is_none(), "the published number is over six");
    let published = cell(&table, "c2r", "mean-robust-autoattack").published.as_ref().unwrap();
    assert_eq!((published.value, published.caveat.as_str(), published.outside_tolerance), (28.41, "", Some(false)));
    let text = table.markdown();
    assert!(
        text.contains("| mean robust (FGSM, PGD, CW, VMI-FGSM, Jitter) | mean robust (these and AutoAttack) |"),
        "{text}"
    );
    assert!(table.csv().unwrap().contains("fgsm pgd cw-linf vmi-fgsm jitter autoattack-standard"));
    // AutoAttack's parts count in no ratio beside it: the smallest is AutoAttack's 18, the mean of the six 28.
    close(cell(&table, "c2r", "rr").summary.mean, 100.0 * (1.0 - (50.0 - 28.0) / (50.0 - 18.0)));
}

#[test]
fn an_attack_that_one_table_lacks_is_not_reported_for_all() {
    let few = || source("c2r", "natural", 0, 50, 24, 20);
    let mut five = source("c2r", "pgd-at", 0, 50, 24, 20);
    let score = five.record.attacks[0].clone();
    five.record.attacks.extend(["cw-linf", "vmi-fgsm", "jitter"].map(|attack| AttackScore {
        attack: attack.into(),
        config: json!({ "attack": attack }),
        ..score.clone()
    }));
    let markdown = |sources: &[Source]| Table::build(sources, &TableOptions::default()).unwrap().markdown();
    let text = markdown(&[few()]);
    assert!(text.contains(" Not run here: CW, VMI-FGSM, Jitter."), "{text}");
    let text = markdown(&[few(), five]);
    assert!(text.contains("Not all tables here have all of these") && !text.contains("Not run here"), "{text}");
}
